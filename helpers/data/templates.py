"""Marks of chat templates inside texts: finds and counts them, repairs prompts that hold them.

A prompt that was written with the marks of one model's template is poison for another, which reads
them as words. `helpers/models/prompts.py` writes the marks that the model at hand understands.
"""

import re
from collections import Counter

IMAGE_MARK = "<image>"  # stands for an image in the data files of other projects
# Each pattern finds the start of a turn, and the role in it.
_FOREIGN_TEMPLATES = {
    "<|user|>": re.compile(r"<\|(system|user|assistant)\|>"),
    "<|im_start|>user": re.compile(r"<\|im_start\|>(system|user|assistant)\b"),
    "USER: … ASSISTANT:": re.compile(r"(?:^|(?<=\s))(USER|ASSISTANT):"),
}
IMAGE_MARKS = re.compile(
    r"<image>|<image[ _]\d+>|<\|image(?:_\d+)?\|>|(?:<\|image_pad\|>)+|<\|vision_start\|>"
    r"|<start_of_image>|<image_placeholder>|<ImageHere>|\[IMG\]"
)
# What a model writes at the end of its turn.
END_MARK = re.compile(
    r"<\|(?:im_end|eot_id|eot|end_?of_?text|end|return)\|>|<end_of_(?:turn|utterance)>"
    r"|</s>|<eos>|<｜end▁of▁sentence｜>"
)
# What a template writes at the start of a turn.
CHAT_MARK = re.compile(
    r"<\|(?:user|assistant|system|im_start|begin_of_text|start_header_id)\|>"
    r"|\[/?INST\]|<</?SYS>>|<start_of_turn>"
    r"|(?<!\S)(?:USER|ASSISTANT):|^(?:Human|Assistant):"
    r"|###\s*(?:Human|User|Assistant|Instruction|Response)\b",
    re.MULTILINE,
)


def count_placeholders(text: str) -> int:
    """For how many images does `text` have placeholders?

    One image may be written as several marks of different kinds.
    """
    kinds = Counter(mark.split(">")[0].rstrip("0123456789|") for mark in IMAGE_MARKS.findall(text))
    return max(kinds.values(), default=0)


def repair_prompt(text: str) -> tuple[list[dict[str, str]], str | None]:
    """Make chat messages of a prompt that may hold a template's marks, and say what was done.

    `"<|user|>\\nCount the cars. <image>\\n<|assistant|>\\n"` → one user message, "Count the cars."
    None: nothing was done.
    """
    for template, mark in _FOREIGN_TEMPLATES.items():
        before, *turns = mark.split(text)
        # After the split, roles and texts take turns.
        messages = []
        for role, content in zip(turns[::2], turns[1::2], strict=True):
            content = strip_image_marks(END_MARK.sub("", content)).strip()
            if content:
                messages.append({"role": role.lower(), "content": content})
        if messages and not before.strip():
            change = f"the prompt was in another model's chat template ({template})"
            return messages, f"{change}: now chat messages"
    change = None
    if IMAGE_MARK in text.strip().removeprefix(IMAGE_MARK).removesuffix(IMAGE_MARK):
        change = "the image mark stood inside the text: moved to the front"
    return [{"role": "user", "content": strip_image_marks(text)}], change


def strip_image_marks(text: str) -> str:
    """Take the `<image>` marks out of the text; without any, it stays as it is."""
    if IMAGE_MARK not in text:
        return text
    return re.sub(rf"[ \t]*{IMAGE_MARK}[ \t]*\n?", " ", text).strip()
