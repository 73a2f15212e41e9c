"""Answers of a model: greedy or sampled, one to an image and prompt, or several to a prompt.

Equal arguments give equal answers; tokens that stand for images are never generated. Taught in
notebooks 01 and 05.
"""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from accelerate.utils import send_to_device
from accelerate.utils.memory import clear_device_cache, should_reduce_batch_size
from PIL import Image
from torch import Tensor
from tqdm.auto import tqdm
from transformers import Cache, DynamicCache, GenerationConfig, ProcessorMixin

from helpers.data import (
    CountedImage,
    PreferenceRecord,
    Task,
    count_answer,
    counting_tasks,
    tasks_of,
)
from helpers.files import open_image

from .adapters import VLM, autocast, base_of, contiguous_head, evaluation_mode
from .caches import Features, backbone_of, is_recurrent, use_features
from .encoded_prompts import EncodedPrompts, prompt_inputs
from .kept_answers import KeptAnswers
from .prompts import (
    Conversation,
    answer_texts,
    image_token_id,
    render_conversation,
    tokenize,
    user_message,
)

Pictures = Image.Image | Path | Sequence[Image.Image | Path]  # of one prompt

# Tokens to allow for an answer where nothing says how long one is: some ninety words.
FREE_TEXT_TOKENS = 128
ANSWERS_AT_ONCE = 64  # where memory allows it


class SampledAnswer(NamedTuple):
    """An answer, and whether the model came to its end before its tokens were used up."""

    text: str
    ended: bool


def banned_tokens(processor: ProcessorMixin) -> list[int]:
    """Return the tokens that stand for images, videos and sounds, which no answer may hold."""
    ids = {image_token_id(processor)}
    for name in ("image_token_id", "video_token_id", "audio_token_id"):
        ids.add(getattr(processor, name, None))
    return sorted(ids - {None})


def generation_config(
    model: VLM,
    processor: ProcessorMixin,
    temperature: float,
    top_p: float = 1.0,
    max_new_tokens: int = 64,
) -> GenerationConfig:
    """Return settings without image tokens: greedy at temperature 0, else from all the others."""
    sampling = {}
    if temperature:
        # top_k = 0: transformers would sample from the 50 likeliest
        sampling = {"do_sample": True, "temperature": temperature, "top_p": top_p, "top_k": 0}
    return GenerationConfig(
        max_new_tokens=max_new_tokens,
        eos_token_id=model.generation_config.eos_token_id,
        pad_token_id=processor.tokenizer.pad_token_id,
        suppress_tokens=banned_tokens(processor),
        **sampling,
    )


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
    """Return one answer to each prompt about its image or images, as `generation_config` says.

    A prompt is a question, or the messages of a conversation that ends with one. Images may be
    paths, opened when their turn comes. If a batch does not fit into memory, all
    starts anew with half of it. The caller's random numbers are left alone.
    """
    config = generation_config(model, processor, temperature, max_new_tokens=max_new_tokens)
    found = _generate_all(model, processor, images, prompts, config, seed, batch_size, description)
    return [answer.text for answer in found]


def _generate_all(
    model: VLM,
    processor: ProcessorMixin,
    images: Sequence[Pictures],
    prompts: Sequence[str | Conversation],
    config: GenerationConfig,
    seed: int,
    batch_size: int,
    description: str,
) -> list[SampledAnswer]:
    """Return one answer to each prompt, batch by batch."""
    if len(images) != len(prompts):
        raise ValueError(
            f"images for {len(images)} prompts, but {len(prompts)} prompts: give each its own"
        )
    with evaluation_mode(model):
        while True:
            starts = tqdm(range(0, len(prompts), batch_size), desc=description, leave=False)
            try:
                return _generate_batches(
                    model, processor, images, prompts, config, seed, batch_size, starts
                )
            except RuntimeError as error:
                if batch_size == 1 or not should_reduce_batch_size(error):
                    raise
            # Only here, behind `except`, nothing holds the tensors of the failed pass any more
            clear_device_cache(garbage_collection=True)
            half = batch_size // 2
            print(
                f"⚠️  {batch_size} answers at once do not fit into memory: "
                f"starting again with {half}."
            )
            batch_size = half


def _generate_batches(
    model: VLM,
    processor: ProcessorMixin,
    images: Sequence[Pictures],
    prompts: Sequence[str | Conversation],
    config: GenerationConfig,
    seed: int,
    batch_size: int,
    starts: Iterable[int],
) -> list[SampledAnswer]:
    """Return the answers batch by batch; what is kept of an earlier call is not asked again."""
    kept = KeptAnswers.of(model, processor, images, prompts, config, seed, batch_size)
    answers: list[SampledAnswer] = []
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        for start in starts:
            rows = slice(start, start + batch_size)
            batch = kept.read(start)
            if batch is None:
                batch = _generate(model, processor, images[rows], prompts[rows], config)
                kept.write(start, batch)
            answers += [SampledAnswer(text, ended) for text, ended in batch]
    return answers


def _generate(
    model: VLM,
    processor: ProcessorMixin,
    images: Sequence[Pictures],
    prompts: Sequence[str | Conversation],
    config: GenerationConfig,
) -> list[SampledAnswer]:
    """Return the answers of one batch."""
    texts = []
    opened = []
    for pictures, prompt in zip(images, prompts, strict=True):
        shown = [pictures] if isinstance(pictures, Image.Image | Path) else pictures
        turns = [user_message(prompt)] if isinstance(prompt, str) else prompt
        opened.append([open_image(one) if isinstance(one, Path) else one for one in shown])
        texts.append(render_conversation(processor, turns, len(shown)))
    inputs = tokenize(processor, texts, opened).to(model.device)
    with contiguous_head(model):
        output = model.generate(**inputs, generation_config=config)
    ids = output[:, inputs["input_ids"].shape[1] :]
    ended = _is_end(ids, config).any(1).tolist()
    return list(map(SampledAnswer, answer_texts(processor, ids), ended))


def _is_end(ids: Tensor, config: GenerationConfig) -> Tensor:
    """Mark the tokens that end an answer, of the shape of `ids`."""
    return torch.isin(ids, torch.tensor(config.eos_token_id, device=ids.device))


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
    config = generation_config(model, processor, temperature, max_new_tokens=max_new_tokens)
    images, prompts = [task.images for task in tasks], [task.turns for task in tasks]
    rounds = []  # each holds one answer to every task
    for i in range(number):
        description = f"sampling answer {i + 1} of {number}"
        rounds.append(
            _generate_all(
                model, processor, images, prompts, config, seed + i, ANSWERS_AT_ONCE, description
            )
        )
    return [list(answers) for answers in zip(*rounds, strict=True)]


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


def generate_from_cache(
    model: VLM, cache: Cache, config: GenerationConfig, **inputs: Tensor
) -> Tensor:
    """Return tokens (rows, seq) behind `inputs`, of which `cache` holds all but the last column.

    unsloth's own `generate` insists on a cache of its own, so the one that it has replaced is
    called.
    """
    base = base_of(model)
    generate = getattr(base, "_old_generate", base.generate)
    with autocast(base.device):
        return generate(**inputs, past_key_values=cache, generation_config=config)


@torch.no_grad()
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

    The end of turn is among the tokens if it came. Image and prompt are read once for all answers
    to them, unless the model is recurrent: its states cannot be repeated. The caller's random
    numbers are left alone.
    """
    config = generation_config(model, processor, temperature, top_p, max_new_tokens)
    if is_recurrent(model):  # then each answer has a prompt of its own
        prompts = prompts.select([n for n in range(len(prompts)) for _ in range(group_size)])
        group_size = 1
    # Image and prompt, once each
    inputs, features = send_to_device(prompt_inputs(processor, prompts), model.device)
    cache = _read_prompts(model, inputs, features)
    # One row a prompt becomes one row an answer
    if group_size > 1:
        cache.batch_repeat_interleave(group_size)
    rows = {}
    for name in ("input_ids", "attention_mask"):
        rows[name] = inputs[name].repeat_interleave(group_size, 0)
    # M-RoPE: how far positions lag behind tokens, (rows, 1)
    inner = backbone_of(model)
    if getattr(inner, "rope_deltas", None) is not None:
        inner.rope_deltas = inner.rope_deltas.repeat_interleave(group_size, 0)
    # The last token of the prompt is read again, and the answer goes on from it
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        output = generate_from_cache(model, cache, config, **rows)
    answers = output[:, inputs["input_ids"].shape[1] :].cpu()  # (answers, longest)
    is_end = _is_end(answers, config)
    ended = is_end.any(1)
    # Tokens before the first end, and the end itself
    lengths = (is_end.cumsum(1) == 0).sum(1) + ended
    ids = [row[:length] for row, length in zip(answers, lengths.tolist(), strict=True)]
    return ids, ended.tolist()


def _read_prompts(model: VLM, inputs: dict[str, Tensor], features: Features) -> Cache:
    """Return the keys and values of all but the last token of each prompt."""
    shape = inputs["input_ids"].shape
    before = {}
    for name, value in inputs.items():
        before[name] = value[:, :-1] if value.shape == shape else value
    inner = backbone_of(model)
    if hasattr(inner, "rope_deltas"):
        inner.rope_deltas = None  # those of an earlier batch, which text alone would not replace
    else:
        # Without it padding counts, which `generate` will leave out where the answer goes on
        before["position_ids"] = (before["attention_mask"].cumsum(1) - 1).clamp(min=0)
    cache = DynamicCache(config=model.config.get_text_config())
    with use_features(model, features), autocast(model.device):
        inner(**before, past_key_values=cache, use_cache=True)
    return cache
