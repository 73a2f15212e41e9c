"""Marks of chat templates inside texts: finds and counts them, repairs prompts that hold them.

A prompt that was written with the marks of one model's template is poison for another, which reads
them as words. `helpers/models/prompts.py` writes the marks that the model at hand understands. Its
own marks inside a text are worse: they are no words to it, but the end of a turn, or an image that
is not there. Such a text is refused.
"""

import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from functools import lru_cache
from typing import TYPE_CHECKING

from helpers.files import UsageError

from .record import Message, PreferenceRecord

if TYPE_CHECKING:
    # for types alone: reading data needs neither
    from datasets import Dataset
    from transformers import ProcessorMixin

    from .tasks import Task

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


# --- off a text ---

# Where an answer begins in a rendered conversation
_ASSISTANT = re.compile(
    r"<\|im_start\|>assistant\s*|<\|assistant\|>\s*|<start_of_turn>model\s*|\[/INST\]\s*"
    r"|<\|start_header_id\|>assistant<\|end_header_id\|>\s*|(?:^|(?<=\s))ASSISTANT:\s*"
)
# All that is no text in any template
_MARKS = re.compile(
    rf"{END_MARK.pattern}|{IMAGE_MARKS.pattern}|<\|(?:video|vision)_\w+\|>|<\|begin_of_text\|>|<s>"
    r"|<\|im_start\|>(?:system|user|assistant)?\n?|<\|(?:system|user|assistant)\|>\n?"
    r"|<\|start_header_id\|>\w*(?:<\|end_header_id\|>)?\n*|<start_of_turn>(?:user|model)?\n?"
    r"|\[/?INST\]|<</?SYS>>"
)


def strip_record(record: PreferenceRecord) -> PreferenceRecord:
    """Take rendered templates and their marks off the texts of a record.

    Of an answer that is a whole conversation the last turn is kept. A text that is nothing but
    marks stays as it is.
    """
    prompt: list[Message] = []
    for message in record.prompt:
        turns, _ = repair_prompt(message.content)
        if message.role != "user":
            turns = [{"role": message.role, "content": message.content}]
        for turn in turns:
            prompt.append(Message(role=turn["role"], content=_bare(turn["content"])))
    answers = []
    for answer in record.answers:
        *_, last = _ASSISTANT.split(answer.text)
        answers.append(answer.model_copy(update={"text": _bare(last)}))
    return record.model_copy(update={"prompt": prompt, "answers": answers})


def _bare(text: str) -> str:
    return _MARKS.sub("", text).strip() or text


# --- the marks of the model at hand ---


def find_special_mark(processor: "ProcessorMixin", text: str) -> str | None:
    """Return the first piece of a text that is no text to a model, such as the end of its turn."""
    found = _special_marks(processor).search(text)
    return found.group() if found else None


@lru_cache(maxsize=8)
def _special_marks(processor: "ProcessorMixin") -> re.Pattern[str]:
    added = processor.tokenizer.added_tokens_decoder.values()
    marks = {token.content for token in added if token.special}
    for name in ("image_token", "video_token"):
        mark = getattr(processor, name, None)
        marks.add(mark if isinstance(mark, str) else "")
    # an ordinary word, should a tokenizer have one among them, is no mark
    marks = {mark for mark in marks if re.search(r"[^\w\s]", mark)}
    longest_first = sorted(marks, key=len, reverse=True)
    return re.compile("|".join(map(re.escape, longest_first)) or r"(?!)")


def require_plain_texts(processor: "ProcessorMixin", texts: Iterable[tuple[str, str]]) -> None:
    """Raise UsageError for a text with a mark of the model. texts: where each stands, and it."""
    for where, text in texts:
        mark = find_special_mark(processor, text)
        if mark is not None:
            raise UsageError(
                f"{where} holds {mark!r}, which is no text to this model but a mark of its own: "
                f"{text[:80]!r}. Take it out, or all such marks: "
                "python -m helpers convert FILE OUT --strip"
            )


def texts_of_records(records: Sequence[PreferenceRecord]) -> Iterator[tuple[str, str]]:
    """Yield all texts that a model would read, and where each stands."""
    for record in records:
        for message in record.prompt:
            yield f"{record.place}: the prompt", message.content
        for place, answer in enumerate(record.answers):
            yield f"{record.place}: answer {place}", answer.text


def texts_of_tasks(tasks: "Sequence[Task]") -> Iterator[tuple[str, str]]:
    """The same of questions."""
    for number, task in enumerate(tasks, start=1):
        name = f" ({task.id})" if task.id else ""
        for turn in task.turns:
            yield f"question {number}{name}", turn.content


def texts_of_dataset(dataset: "Dataset") -> Iterator[tuple[str, str]]:
    """The same of rows of chat messages, such as `to_trl` makes; images stay closed."""
    columns = ("prompt", "chosen", "rejected", "completion")
    texts = dataset.select_columns([name for name in columns if name in dataset.column_names])
    for number, row in enumerate(texts, start=1):
        for name, turns in row.items():
            for turn in turns:
                yield f"row {number} of the data, {name}", turn["content"]
