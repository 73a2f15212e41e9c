"""Records to model inputs: the only place that knows the chat template.

Images come first and the text after them, where TRL puts them too, so that what is sampled, trained
and evaluated is one and the same sequence. Two things are not in the rendered text, and are put right where text
becomes tokens: LLaVA's first token, which its template leaves to the tokenizer, and the space that some templates
write before an answer. Marks of other models' templates in a text are found by `helpers/data/templates.py`.
"""

from collections.abc import Sequence
from functools import lru_cache

from PIL import Image
from transformers import BatchFeature, ProcessorMixin

from helpers.data import Message

Conversation = Sequence[Message]  # the last message is the question that is answered


def user_message(text: str) -> Message:
    """A question as a message. Unlike a message that is read from a file, it may be empty."""
    return Message.model_construct(role="user", content=text)


def _chat_message(message: Message, images: int = 0) -> dict:
    """A message in the words of chat templates: `images` placeholders, then the text."""
    content = [{"type": "image"}] * images + [{"type": "text", "text": message.content}]
    return {"role": message.role, "content": content}


def render_conversation(processor: ProcessorMixin, messages: Conversation, images: int) -> str:
    """Messages as the model sees them, up to where the answer begins; images are in the first question."""
    first = [message.role for message in messages].index("user")
    turns = [
        _chat_message(message, images if i == first else 0) for i, message in enumerate(messages)
    ]
    return processor.apply_chat_template(turns, add_generation_prompt=True, tokenize=False)


def render(processor: ProcessorMixin, prompt: str, images: int = 1) -> str:
    """The prompt as the model sees it, up to the point where the answer begins."""
    return render_conversation(processor, [user_message(prompt)], images)


def encode(
    processor: ProcessorMixin, prompts: Sequence[str], images: Sequence[Image.Image]
) -> BatchFeature:
    """One image and one prompt a row → model inputs, left-padded: prompts end in the same column."""
    return tokenize(
        processor, [render(processor, prompt) for prompt in prompts], [[image] for image in images]
    )


def tokenize(
    processor: ProcessorMixin,
    texts: Sequence[str],
    images: Sequence[Sequence[Image.Image]],
    padding_side: str = "left",
) -> BatchFeature:
    """Rendered prompts and the images of each → model inputs, with one token for the beginning where the model has one.

    TRL leaves such a token out where the template does not write it (LLaVA).
    """
    pictures, begin = [list(row) for row in images], bos_text(processor)
    return processor(
        text=list(texts),
        images=pictures if any(pictures) else None,
        padding=True,
        padding_side=padding_side,
        add_special_tokens=bool(begin) and not any(text.startswith(begin) for text in texts),
        return_tensors="pt",
    )


def bos_text(processor: ProcessorMixin) -> str:
    """Text of the token (BOS) that the tokenizer puts before every text, if it adds nothing else; else ""."""
    tokenizer = processor.tokenizer
    begins = tokenizer.bos_token_id is not None and tokenizer("")["input_ids"] == [
        tokenizer.bos_token_id
    ]
    return tokenizer.bos_token if begins else ""


def end_of_turn(processor: ProcessorMixin) -> str:
    """The token with which the model ends an answer."""
    return processor.tokenizer.eos_token


def answer_ids(processor: ProcessorMixin, answer: str) -> list[int]:
    """Tokens of an answer as they follow a prompt, with the end of turn.

    SmolVLM's prompt ends in "Assistant:" and its template goes on with " Two.": the space belongs to the first word.
    """
    before, space = _answer_prefix(processor, str(processor.chat_template))
    text = (answer if answer.startswith(space) else space + answer) + end_of_turn(processor)
    head, ids = (
        processor.tokenizer(t, add_special_tokens=False)["input_ids"]
        for t in (before, before + text)
    )
    if ids[: len(head)] == head:
        return ids[len(head) :]
    return processor.tokenizer(text, add_special_tokens=False)[
        "input_ids"
    ]  # the answer begins in a prompt's token


def answer_texts(processor: ProcessorMixin, ids: Sequence[Sequence[int]]) -> list[str]:
    """Answers as text: without special tokens, and without the space that the template writes before them."""
    _, space = _answer_prefix(processor, str(processor.chat_template))
    return [
        text.removeprefix(space)
        for text in processor.tokenizer.batch_decode(ids, skip_special_tokens=True)
    ]


@lru_cache(maxsize=8)
def _answer_prefix(processor: ProcessorMixin, template: str) -> tuple[str, str]:
    """The end of a prompt, and the space, if any, that `template` writes between it and the answer.

    Only a space is taken: the line break of LLaVA-NeXT's template is not what that model was trained with.
    """
    prompt = render(processor, "question", images=0)
    whole = _question_and_answer(processor)
    if not whole.startswith(prompt):
        return "", ""
    space = whole[len(prompt) :].partition("answer")[0]
    return prompt.rpartition("question")[2], space if space == " " else ""


def text_after_answer(processor: ProcessorMixin) -> str:
    """What the chat template writes after an answer, without white space: the end of turn, or nothing."""
    return _question_and_answer(processor).rpartition("answer")[2].strip()


def _question_and_answer(processor: ProcessorMixin) -> str:
    messages = [user_message("question"), Message(role="assistant", content="answer")]
    return processor.apply_chat_template([_chat_message(m) for m in messages], tokenize=False)


def image_token_id(processor: ProcessorMixin) -> int:
    """Id of the token that stands for one visual token."""
    return processor.image_token_id


def count_image_tokens(processor: ProcessorMixin, inputs: BatchFeature) -> list[int]:
    """Number of visual tokens in each row of `inputs`."""
    return (inputs["input_ids"] == image_token_id(processor)).sum(-1).tolist()
