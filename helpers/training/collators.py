"""Rows of a preference data set → a batch for DPO: each image and prompt once, with both answers behind it.

Taught in notebook 04.
"""

from collections.abc import Sequence
from typing import Any

from peft import PeftModel
from transformers import PreTrainedModel, ProcessorMixin

from helpers.files import UsageError
from helpers.models.caches import ImageFeatures, ReferenceLogps, images_hash
from helpers.models.prompts import render_conversation
from helpers.models.shared_prefix import pack


class PairCollator:
    """Rows of a preference data set → a batch: each image and prompt once, with both answers.

    rows: images, prompt, chosen, rejected (`preferences.to_trl`); with `spoilt`, also negative_images, of
    which the first is shown with the chosen answer alone.
    """

    def __init__(
        self,
        model: PreTrainedModel | PeftModel,
        processor: ProcessorMixin,
        features: ImageFeatures | None,
        reference: ReferenceLogps,
        spoilt: bool = False,
    ):
        self.model, self.processor, self.features = model, processor, features
        self.reference, self.spoilt = reference, spoilt

    def __call__(self, examples: Sequence[dict[str, Any]]) -> dict[str, Any]:
        n, images = len(examples), [example["images"] for example in examples]
        prompts = [
            render_conversation(self.processor, [(t["role"], t["content"]) for t in e["prompt"]], len(e["images"]))
            for e in examples
        ]
        answers = [[e["chosen"][0]["content"], e["rejected"][0]["content"]] for e in examples]
        keys = [[images_hash(i), p, *a] for i, p, a in zip(images, prompts, answers, strict=True)]
        order = [*range(0, 2 * n, 2), *range(1, 2 * n, 2)]  # TRL's: all chosen answers, then all rejected ones
        if self.spoilt:
            negatives = [_first_negative(example) for example in examples]
            keys = [[*key, images_hash(i)] for key, i in zip(keys, negatives, strict=True)]
            order += range(2 * n, 3 * n)
            images, prompts = images + negatives, prompts * 2
            answers = answers + [[chosen] for chosen, _ in answers]
        packed = pack(self.model, self.processor, prompts, images, answers, self.features).order(order)
        return {
            "input_ids": packed.ids[: 2 * n],  # what TRL calls so: labels, with the token before them
            "completion_mask": packed.mask[: 2 * n].long(),
            "attention_mask": (packed.inputs["input_ids"] != self.processor.tokenizer.pad_token_id).long(),
            "packed": packed,
            "keys": [self.reference.key(*key) for key in keys],
        }


def _first_negative(example: dict[str, Any]) -> list:
    if not example.get("negative_images"):
        raise UsageError("a pair has no negative_images, which image_weight needs: see pairs.add_image_negatives.")
    return example["negative_images"][:1]
