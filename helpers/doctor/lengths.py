"""How long each record is in tokens, as a model's chat template and image processor see it.

Text is tokenised, images are not opened: their tokens follow from width and height. Taught in
notebook 02.
"""

from array import array

import numpy as np
from jinja2 import TemplateError
from PIL import Image
from transformers import ProcessorMixin

from helpers.data import PreferenceRecord, Problems
from helpers.models import (
    answer_ids,
    bos_text,
    count_image_tokens,
    encode,
    image_token_id,
    render_conversation,
)


class RecordLengths:
    """Tokens of each record, as the model sees it."""

    def __init__(self, processor: ProcessorMixin, context: int | None = None) -> None:
        limit = processor.tokenizer.model_max_length
        # transformers says 1e30 if it does not know
        self.context = context or (limit if limit < 1e9 else None)
        self.processor = processor
        # small, since a file may have millions of records
        self.texts = array("L")
        self.images = array("L")
        self.known: dict[tuple[int, int], int] = {}  # size of an image → tokens

    def problems(self, record: PreferenceRecord, sizes: list[tuple[int, int]]) -> Problems:
        """Say what is wrong with the length of a record whose images have these sizes."""
        try:
            text = text_tokens(self.processor, record)
            for size in set(sizes) - self.known.keys():
                self.known[size] = image_tokens(self.processor, size)
        except (ValueError, TemplateError) as error:  # a shape of image, or an order of roles
            yield "unfit for the model", str(error).splitlines()[0]
            return
        images = sum(self.known[size] for size in sizes)
        self.texts.append(text)
        self.images.append(images)
        if self.context and text + images > self.context:
            yield (
                "too long",
                f"{text + images:,} tokens, {images:,} of them images; "
                f"the model takes {self.context:,}",
            )

    def summary(self) -> dict[str, dict[str, float]]:
        """Median, 95 % quantile and maximum of each kind of length.

        Images that were not opened are left out.
        """
        rows = {"tokens of prompt and longest answer": self.texts, "tokens of images": self.images}
        summary = {}
        for what, row in rows.items():
            if any(row):
                figures = np.percentile(row, (50, 95, 100)).tolist()
                summary[what] = dict(zip(("median", "95 %", "max"), figures, strict=True))
        return summary


def text_tokens(processor: ProcessorMixin, record: PreferenceRecord) -> int:
    """Tokens of the prompt in its chat template and of the longest answer, without images'."""
    prompt = render_conversation(processor, record.prompt, len(record.images))
    ids = processor.tokenizer(prompt, add_special_tokens=False)["input_ids"]
    own = len(ids) + bool(bos_text(processor)) - ids.count(image_token_id(processor))
    return own + max(len(answer_ids(processor, answer.text)) for answer in record.answers)


def image_tokens(processor: ProcessorMixin, size: tuple[int, int]) -> int:
    """Tokens of an image of this size (width, height).

    Calculated for Qwen-VL, else counted on a blank image.
    """
    rules = processor.image_processor
    if hasattr(rules, "get_number_of_image_patches") and hasattr(rules, "merge_size"):
        width, height = size
        return rules.get_number_of_image_patches(height, width) // rules.merge_size**2
    inputs = encode(processor, [""], [Image.new("RGB", size)])
    return count_image_tokens(processor, inputs)[0]
