"""Records to model inputs: the only place that knows the chat template.

Images come first and the text after them, where TRL puts them too, so that what is sampled, trained
and evaluated is one and the same sequence. A prompt that was written with the marks of another model's
template is recognised here too: this model would read the marks as words.
"""

import re
from collections.abc import Sequence

import torch
from PIL import Image
from transformers import BatchFeature, ProcessorMixin

IMAGE_MARK = "<image>"  # stands for an image in the data files of other projects
_FOREIGN_TEMPLATES = {  # each pattern finds the start of a turn, and the role in it
    "<|user|>": re.compile(r"<\|(system|user|assistant)\|>"),
    "<|im_start|>user": re.compile(r"<\|im_start\|>(system|user|assistant)\b"),
    "USER: … ASSISTANT:": re.compile(r"(?:^|(?<=\s))(USER|ASSISTANT):"),
}
_END_MARK = re.compile(r"<\|(?:im_)?end\|>|</s>")


def chat_messages(prompt: str, images: int = 1) -> list[dict]:
    """One user turn: `images` placeholders, then the text."""
    content = [{"type": "image"}] * images + [{"type": "text", "text": prompt}]
    return [{"role": "user", "content": content}]


def render(processor: ProcessorMixin, prompt: str, images: int = 1) -> str:
    """The prompt as the model sees it, up to the point where the answer begins."""
    return processor.apply_chat_template(chat_messages(prompt, images), add_generation_prompt=True, tokenize=False)


def encode(
    processor: ProcessorMixin,
    prompts: Sequence[str],
    images: Sequence[Image.Image],
    completions: Sequence[str] | None = None,
) -> tuple[BatchFeature, torch.Tensor | None]:
    """One image and one prompt a row → model inputs, left-padded (prompts end in the same column).

    With `completions`, each is appended with the end-of-turn token and the second value is its mask,
    (batch, seq), 1 on completion tokens; else the second value is None.
    """
    texts = [render(processor, prompt) for prompt in prompts]
    if completions is None:
        return _tokenize(processor, texts, images), None
    end = end_of_turn(processor)
    full = _tokenize(processor, [t + c + end for t, c in zip(texts, completions, strict=True)], images)
    mask = torch.zeros_like(full["input_ids"])
    for row, completion in enumerate(completions):
        length = len(processor.tokenizer(completion + end, add_special_tokens=False)["input_ids"])
        mask[row, -length:] = 1
    return full, mask


def _tokenize(processor: ProcessorMixin, texts: list[str], images: Sequence[Image.Image]) -> BatchFeature:
    return processor(
        text=texts,
        images=[[image] for image in images],
        padding=True,
        padding_side="left",
        add_special_tokens=False,  # the template has written them
        return_tensors="pt",
    )


def end_of_turn(processor: ProcessorMixin) -> str:
    """The token with which the model ends an answer."""
    return processor.tokenizer.eos_token


def image_token_id(processor: ProcessorMixin) -> int:
    """Id of the token that stands for one visual token."""
    return processor.image_token_id


def count_image_tokens(processor: ProcessorMixin, inputs: BatchFeature) -> list[int]:
    """Number of visual tokens in each row of `inputs`."""
    return (inputs["input_ids"] == image_token_id(processor)).sum(-1).tolist()


def repair_prompt(text: str) -> tuple[list[dict[str, str]], str | None]:
    """Chat messages of a prompt that may hold a template's marks, and what was done (None: nothing).

    `"<|user|>\\nCount the cars. <image>\\n<|assistant|>\\n"` → one user message, "Count the cars."
    """
    for template, mark in _FOREIGN_TEMPLATES.items():
        before, *turns = mark.split(text)
        contents = [strip_image_marks(_END_MARK.sub("", content)).strip() for content in turns[1::2]]
        messages = [
            {"role": role.lower(), "content": content}
            for role, content in zip(turns[::2], contents, strict=True)
            if content
        ]
        if messages and not before.strip():
            return messages, f"the prompt was in another model's chat template ({template}): now chat messages"
    moved = IMAGE_MARK in text.strip().removeprefix(IMAGE_MARK).removesuffix(IMAGE_MARK)
    change = "the image mark stood inside the text: moved to the front" if moved else None
    return [{"role": "user", "content": strip_image_marks(text)}], change


def strip_image_marks(text: str) -> str:
    """The text without `<image>` marks; without any, it stays as it is."""
    return re.sub(rf"[ \t]*{IMAGE_MARK}[ \t]*\n?", " ", text).strip() if IMAGE_MARK in text else text
