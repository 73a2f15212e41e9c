"""Records to model inputs: the only place that knows the chat template.

Images come first and the text after them, where TRL puts them too, so that what is sampled, trained
and evaluated is one and the same sequence. Marks of other models' templates in a text are found by
`helpers/templates.py`.
"""

from collections.abc import Sequence

from PIL import Image
from transformers import BatchFeature, ProcessorMixin


def chat_messages(prompt: str, images: int = 1) -> list[dict]:
    """One user turn: `images` placeholders, then the text."""
    content = [{"type": "image"}] * images + [{"type": "text", "text": prompt}]
    return [{"role": "user", "content": content}]


def render_conversation(processor: ProcessorMixin, turns: Sequence[tuple[str, str]], images: int) -> str:
    """(role, text) turns as the model sees them, up to where the answer begins; images are in the first question."""
    first = [role for role, _ in turns].index("user")
    messages = [chat_messages(text, images if i == first else 0)[0] | {"role": r} for i, (r, text) in enumerate(turns)]
    return processor.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)


def render(processor: ProcessorMixin, prompt: str, images: int = 1) -> str:
    """The prompt as the model sees it, up to the point where the answer begins."""
    return render_conversation(processor, [("user", prompt)], images)


def encode(processor: ProcessorMixin, prompts: Sequence[str], images: Sequence[Image.Image]) -> BatchFeature:
    """One image and one prompt a row → model inputs, left-padded: prompts end in the same column."""
    return processor(
        text=[render(processor, prompt) for prompt in prompts],
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
