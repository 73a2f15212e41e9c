"""Answers of a model: greedy or sampled, one to an image and prompt, or several to a prompt.

Equal arguments give equal answers, however many are asked at once; tokens that stand for images are
never generated. A prompt is read once for all answers to it (`helpers/models/decoding.py`). Taught
in notebooks 01 and 05.
"""

from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from accelerate.utils.memory import clear_device_cache, should_reduce_batch_size
from PIL import Image
from torch import Tensor
from tqdm.auto import tqdm
from transformers import ProcessorMixin

from helpers.data import (
    CountedImage,
    PreferenceRecord,
    Task,
    count_answer,
    counting_tasks,
    tasks_of,
)
from helpers.files import open_image

from .adapters import VLM, evaluation_mode
from .decoding import DecodingSettings, decode_together, decode_with_generate, draw_numbers
from .decoding_check import can_share_prompts
from .encoded_prompts import EncodedPrompts, encode_prompts
from .kept_answers import KeptAnswers, SampledAnswer
from .loading import stop_ids
from .prompts import (
    Conversation,
    answer_texts,
    render_conversation,
    user_message,
)

Pictures = Image.Image | Path | Sequence[Image.Image | Path]  # of one prompt

# Tokens to allow for an answer where nothing says how long one is: some ninety words.
FREE_TEXT_TOKENS = 128
ANSWERS_AT_ONCE = 64  # where memory allows it


# --- one answer to an image and a prompt ---


def generate_answers(
    model: VLM,
    processor: ProcessorMixin,
    images: Sequence[Pictures],
    prompts: Sequence[str | Conversation],
    *,
    temperature: float = 0.0,
    seed: int = 0,
    max_new_tokens: int = 64,
    batch_size: int = ANSWERS_AT_ONCE,
    description: str = "answers",
) -> list[str]:
    """Return one answer to each prompt about its image or images: greedy at temperature 0.

    A prompt is a question, or the messages of a conversation that ends with one. Images may be
    paths, opened when their turn comes. If a batch does not fit into memory, it goes on with half
    of it. The caller's random numbers are left alone.
    """
    how = DecodingSettings(temperature, max_new_tokens=max_new_tokens, seed=seed)
    found = _answer_all(model, processor, images, prompts, 1, how, batch_size, description)
    return [answer.text for (answer,) in found]


def _answer_all(
    model: VLM,
    processor: ProcessorMixin,
    images: Sequence[Pictures],
    prompts: Sequence[str | Conversation],
    group_size: int,
    how: DecodingSettings,
    batch_size: int,
    description: str,
) -> list[list[SampledAnswer]]:
    """Return `group_size` answers to each prompt, at most `batch_size` at once."""
    if len(images) != len(prompts):
        raise ValueError(
            f"images for {len(images)} prompts, but {len(prompts)} prompts: give each its own"
        )
    # numbers for all of them at once, so that an answer does not depend on the batches
    kept = KeptAnswers.of(model, processor, images, prompts, how, group_size)
    numbers = draw_numbers(len(prompts), group_size, how)

    def ask(rows: slice) -> list[list[SampledAnswer]]:
        encoded = _encode(processor, images[rows], prompts[rows])
        ids, ended = _decode(model, processor, encoded, numbers[rows], how)
        answers = list(map(SampledAnswer, answer_texts(processor, ids), ended))
        return [answers[i : i + group_size] for i in range(0, len(answers), group_size)]

    with evaluation_mode(model):
        return _answer_in_batches(ask, kept, len(prompts), batch_size, group_size, description)


def _answer_in_batches(
    ask: Callable[[slice], list[list[SampledAnswer]]],
    kept: KeptAnswers,
    number: int,
    batch_size: int,
    group_size: int,
    description: str,
) -> list[list[SampledAnswer]]:
    """Ask for the answers to `number` prompts; what is kept of an earlier call is not asked again.

    batch_size: answers at once, halved until they fit into memory.
    """
    answers = []
    with tqdm(total=number, desc=description, leave=False) as bar:
        while len(answers) < number:
            start = len(answers)
            batch = kept.read(start)
            if batch is None:
                at_once = max(1, batch_size // group_size)
                try:
                    batch = ask(slice(start, start + at_once))
                except RuntimeError as error:
                    if at_once == 1 or not should_reduce_batch_size(error):
                        raise
                if batch is None:
                    # Only here, behind `except`, nothing holds the failed pass's tensors any more
                    clear_device_cache(garbage_collection=True)
                    batch_size //= 2
                    print(
                        f"⚠️  {2 * batch_size} answers at once do not fit into memory: "
                        f"going on with {batch_size}."
                    )
                    continue
                kept.write(start, batch)
            answers += batch
            bar.update(len(batch))
    return answers


def _encode(
    processor: ProcessorMixin,
    images: Sequence[Pictures],
    prompts: Sequence[str | Conversation],
) -> EncodedPrompts:
    """Open the images of each prompt, and read both."""
    # images are opened here, batch by batch: all at once would fill the memory
    texts = []
    opened = []
    for pictures, prompt in zip(images, prompts, strict=True):
        shown = [pictures] if isinstance(pictures, Image.Image | Path) else pictures
        turns = [user_message(prompt)] if isinstance(prompt, str) else prompt
        opened.append([open_image(one) if isinstance(one, Path) else one for one in shown])
        texts.append(render_conversation(processor, turns, len(shown)))
    return encode_prompts(processor, texts, opened)


def answer_tasks(
    model: VLM,
    processor: ProcessorMixin,
    tasks: Sequence[Task],
    *,
    images: Sequence[Pictures] | None = None,
    temperature: float = 0.0,
    seed: int = 0,
    max_new_tokens: int = 64,
    description: str = "answers",
) -> list[str]:
    """Return one answer to each task, from all its images and turns.

    images: to show in place of the tasks' own.
    """
    shown = [task.images for task in tasks] if images is None else images
    return generate_answers(
        model,
        processor,
        shown,
        [task.turns for task in tasks],
        temperature=temperature,
        seed=seed,
        max_new_tokens=max_new_tokens,
        description=description,
    )


def answer_records(
    model: VLM, processor: ProcessorMixin, records: Sequence[PreferenceRecord]
) -> list[str]:
    """Return greedy answers to the prompts of records."""
    return answer_tasks(model, processor, tasks_of(records))


def answer_budget(processor: ProcessorMixin, texts: Sequence[str]) -> int:
    """Return the tokens to allow for an answer, where `texts` are answers of the right kind.

    It is the longest of them and half as much again.
    """
    longest = max(len(processor.tokenizer(text)["input_ids"]) for text in texts)
    return longest + longest // 2 + 2


def sample_task_answers(
    model: VLM,
    processor: ProcessorMixin,
    tasks: Sequence[Task],
    number: int = 4,
    *,
    temperature: float = 1.0,
    seed: int = 0,
    max_new_tokens: int | None = None,
    expected: Sequence[str] = (),
) -> list[list[SampledAnswer]]:
    """Sample `number` answers to each task, from all its images and turns: (tasks, number).

    max_new_tokens: None allows what the longest of `expected` needs (`answer_budget`), answers of
    the right kind; without any, `FREE_TEXT_TOKENS`.
    """
    if max_new_tokens is None:
        max_new_tokens = answer_budget(processor, expected) if expected else FREE_TEXT_TOKENS
    how = DecodingSettings(temperature, max_new_tokens=max_new_tokens, seed=seed)
    images, prompts = [task.images for task in tasks], [task.turns for task in tasks]
    description = f"sampling {number} answers each"
    return _answer_all(model, processor, images, prompts, number, how, ANSWERS_AT_ONCE, description)


def sample_counting_answers(
    model: VLM,
    processor: ProcessorMixin,
    items: Sequence[CountedImage],
    number: int = 4,
    *,
    seed: int = 0,
) -> list[list[str]]:
    """Sample `number` answers to the counting question about each image: (images, number)."""
    expected = [count_answer(item.counts) for item in items]
    sampled = sample_task_answers(
        model, processor, counting_tasks(items), number, seed=seed, expected=expected
    )
    texts = []
    for answers in sampled:
        texts.append([answer.text for answer in answers])
    return texts


# --- several answers to a prompt that is read once ---


def sample_ids(
    model: VLM,
    processor: ProcessorMixin,
    prompts: EncodedPrompts,
    *,
    group_size: int = 1,
    temperature: float = 1.0,
    top_p: float = 1.0,
    max_new_tokens: int = 64,
    seed: int = 0,
) -> tuple[list[Tensor], list[bool]]:
    """Sample `group_size` answers to each prompt: their tokens, and whether each came to its end.

    The end of turn is among the tokens if it came. The caller's random numbers are left alone.
    """
    how = DecodingSettings(temperature, top_p, max_new_tokens, seed)
    numbers = draw_numbers(len(prompts), group_size, how)
    return _decode(model, processor, prompts, numbers, how)


@torch.no_grad()
def _decode(
    model: VLM,
    processor: ProcessorMixin,
    prompts: EncodedPrompts,
    numbers: Tensor,
    how: DecodingSettings,
) -> tuple[list[Tensor], list[bool]]:
    """Return the tokens of all answers and whether they ended; numbers: see `draw_numbers`."""
    decode = decode_together if can_share_prompts(model, processor) else decode_with_generate
    ids = decode(model, processor, prompts, numbers, how)
    ends = stop_ids(model)
    return ids, [len(own) > 0 and int(own[-1]) in ends for own in ids]
