"""Records to model inputs: the only place that knows the chat template.

Images come first and the text after them, where TRL puts them too, so that what is sampled, trained
and evaluated is one and the same sequence. Two things are not in the rendered text, and are put
right where text becomes tokens: LLaVA's first token, which its template leaves to the tokenizer,
and the space that some templates write before an answer. Marks of other models' templates in a
text are found by `helpers/data/templates.py`.
"""

from collections.abc import Sequence
from functools import lru_cache

from PIL import Image
from transformers import BatchFeature, ProcessorMixin

from helpers.data import Message, require_plain_texts

Conversation = Sequence[Message]  # the last message is the question that is answered
ImageLists = Sequence[Sequence[Image.Image]]  # the images of each prompt

# Model inputs of which a kind of token is one: 0 is text
TOKEN_KINDS = ("mm_token_type_ids", "token_type_ids")

# --- records to text ---


def user_message(text: str) -> Message:
    """Return a question as a message. Unlike a message read from a file, it may be empty."""
    return Message.model_construct(role="user", content=text)


def _chat_message(message: Message, images: int = 0) -> dict:
    """Return a message in the words of chat templates: places for `images`, then the text."""
    content = [{"type": "image"}] * images + [{"type": "text", "text": message.content}]
    return {"role": message.role, "content": content}


def render_conversation(processor: ProcessorMixin, messages: Conversation, images: int) -> str:
    """Return messages as the model sees them, up to where the answer begins.

    The images are in the first question. Raises UsageError for a text with a mark of the model.
    """
    require_plain_texts(processor, [("the text", message.content) for message in messages])
    turns = [_chat_message(message) for message in messages]
    first = [message.role for message in messages].index("user")
    turns[first] = _chat_message(messages[first], images)
    return processor.apply_chat_template(turns, add_generation_prompt=True)


def render(processor: ProcessorMixin, prompt: str, images: int = 1) -> str:
    """Return the prompt as the model sees it, up to the point where the answer begins."""
    return render_conversation(processor, [user_message(prompt)], images)


def _question_and_answer(processor: ProcessorMixin) -> str:
    messages = [user_message("question"), Message(role="assistant", content="answer")]
    return processor.apply_chat_template([_chat_message(message) for message in messages])


# --- text to tokens ---


def encode(
    processor: ProcessorMixin, prompts: Sequence[str], images: Sequence[Image.Image]
) -> BatchFeature:
    """Make model inputs of one image and one prompt a row, left-padded.

    All prompts so end in the same column.
    """
    texts = [render(processor, prompt) for prompt in prompts]
    return tokenize(processor, texts, [[image] for image in images])


def tokenize(
    processor: ProcessorMixin,
    texts: Sequence[str],
    images: ImageLists,
    padding_side: str = "left",
) -> BatchFeature:
    """Make model inputs of rendered prompts and the images of each.

    They begin with the model's token for the beginning, if it has one. TRL leaves that out where
    the template does not write it (LLaVA).
    """
    begin = bos_text(processor)
    # Every text begins with "", so that nothing is added where there is no such token
    is_written = any(text.startswith(begin) for text in texts)
    return processor(
        text=list(texts),
        images=[list(row) for row in images] if any(images) else None,
        padding=True,
        padding_side=padding_side,
        add_special_tokens=not is_written,
        return_tensors="pt",
    )


def _token_ids(processor: ProcessorMixin, text: str) -> list[int]:
    return processor.tokenizer(text, add_special_tokens=False)["input_ids"]


def bos_text(processor: ProcessorMixin) -> str:
    """Return the text of the token (BOS) that the tokenizer puts before every text.

    It is "" if there is none, or if the tokenizer adds anything else.
    """
    tokenizer = processor.tokenizer
    bos = tokenizer.bos_token_id
    if bos is None or tokenizer("")["input_ids"] != [bos]:
        return ""
    return tokenizer.bos_token


# --- answers ---


def end_of_turn(processor: ProcessorMixin) -> str:
    """Return the token with which the model ends an answer.

    It is what the chat template writes there, which need not be the end that the tokenizer knows
    (Gemma). LLaVA's template writes nothing: it is the tokenizer's then.
    """
    return _end_of_turn(processor, str(processor.chat_template))


# Keyed by the template too, which a caller may change
@lru_cache(maxsize=8)
def _end_of_turn(processor: ProcessorMixin, template: str) -> str:
    tokenizer = processor.tokenizer
    first, *_ = _token_ids(processor, text_after_answer(processor)) or [None]
    if first in tokenizer.added_tokens_decoder:  # a token of its own, and no text
        return tokenizer.convert_ids_to_tokens(first)
    return tokenizer.eos_token


def answer_ids(processor: ProcessorMixin, answer: str) -> list[int]:
    """Return the tokens of an answer as they follow a prompt, with the end of turn.

    SmolVLM's prompt ends in "Assistant:", and its template goes on with " Two.": the space belongs
    to the first word. Line breaks before an answer are left out: they would melt into the last
    token of the prompt, which no answer is sampled with. Raises UsageError for an answer with a
    mark of the model: it would end there, and begin another turn.
    """
    require_plain_texts(processor, [("the answer", answer)])
    before, space = _answer_prefix(processor, str(processor.chat_template))
    answer = answer.lstrip("\r\n")
    text = answer if answer.startswith(space) else space + answer
    text += end_of_turn(processor)
    head = _token_ids(processor, before)
    ids = _token_ids(processor, before + text)
    if ids[: len(head)] != head:  # the answer begins within a token of the prompt
        return _token_ids(processor, text)
    return ids[len(head) :]


def answer_texts(processor: ProcessorMixin, ids: Sequence[Sequence[int]]) -> list[str]:
    """Return answers as text, without special tokens and the template's space before them."""
    _, space = _answer_prefix(processor, str(processor.chat_template))
    texts = processor.tokenizer.batch_decode(ids, skip_special_tokens=True)
    return [text.removeprefix(space) for text in texts]


# Keyed by the template too, which a caller may change
@lru_cache(maxsize=8)
def _answer_prefix(processor: ProcessorMixin, template: str) -> tuple[str, str]:
    """Return the end of a prompt, and the space, if any, that `template` writes behind it.

    Only a space is taken: the line break of LLaVA-NeXT's template is not what that model was
    trained with.
    """
    prompt = render(processor, "question", images=0)
    whole = _question_and_answer(processor)
    if not whole.startswith(prompt):
        return "", ""
    space = whole[len(prompt) :].partition("answer")[0]
    return prompt.rpartition("question")[2], space if space == " " else ""


def text_after_answer(processor: ProcessorMixin) -> str:
    """Return what the template writes after an answer: the end of turn, or nothing.

    White space is left out.
    """
    return _question_and_answer(processor).rpartition("answer")[2].strip()


# --- image tokens ---


def image_token_id(processor: ProcessorMixin) -> int:
    """Return the id of the token that stands for one visual token.

    What a template writes for a whole image may be another (Gemma 3).
    """
    first, *_ = getattr(processor, "image_token_ids", [processor.image_token_id])
    return first


def count_image_tokens(processor: ProcessorMixin, inputs: BatchFeature) -> list[int]:
    """Return the number of visual tokens in each row of `inputs`."""
    return (inputs["input_ids"] == image_token_id(processor)).sum(-1).tolist()
