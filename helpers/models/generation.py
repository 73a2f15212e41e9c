"""Answers of a model: greedy or sampled, one to an image and prompt or several to a prompt that is read once.

Equal arguments give equal answers; tokens that stand for images are never generated. Taught in notebooks 01 and 05.
"""

import warnings
from collections.abc import Sequence
from pathlib import Path

import torch
from accelerate.utils.memory import clear_device_cache, should_reduce_batch_size
from peft import PeftModel
from PIL import Image
from torch import Tensor
from tqdm.auto import tqdm
from transformers import Cache, DynamicCache, GenerationConfig, ProcessorMixin

from helpers.data import PreferenceRecord
from helpers.files import open_image
from helpers.runtime import compute_dtype

from .adapters import VLM
from .caches import backbone_of, use_features
from .prompts import answer_texts, encode
from .shared_prefix import EncodedPrompts, prompt_inputs


def banned_tokens(processor: ProcessorMixin) -> list[int]:
    """Tokens that stand for images and videos, which no answer may hold."""
    ids = [processor.image_token_id, getattr(processor, "video_token_id", None)]
    return [i for i in ids if i is not None]


def generation_config(
    model: VLM,
    processor: ProcessorMixin,
    temperature: float,
    top_p: float = 1.0,
    max_new_tokens: int = 64,
) -> GenerationConfig:
    """Greedy at temperature 0, else sampling from the whole vocabulary without image tokens."""
    sampling = (
        {"do_sample": True, "temperature": temperature, "top_p": top_p, "top_k": 0}
        if temperature
        else {}
    )
    return GenerationConfig(
        max_new_tokens=max_new_tokens,
        eos_token_id=model.generation_config.eos_token_id,
        pad_token_id=processor.tokenizer.pad_token_id,
        suppress_tokens=banned_tokens(processor),
        **sampling,
    )


@torch.no_grad()
def generate_from_cache(
    model: VLM, cache: Cache, config: GenerationConfig, **inputs: Tensor
) -> Tensor:
    """Tokens (rows, seq) that follow `inputs`, of which `cache` holds all but the last column.

    unsloth's own `generate` insists on a cache of its own, so the one that it has replaced is called.
    """
    base = model.get_base_model() if isinstance(model, PeftModel) else model
    generate = getattr(base, "_old_generate", base.generate)
    with torch.autocast(base.device.type, compute_dtype(), enabled=base.device.type == "cuda"):
        return generate(**inputs, past_key_values=cache, generation_config=config)


@torch.no_grad()
def generate_answers(
    model: VLM,
    processor: ProcessorMixin,
    images: Sequence[Image.Image | Path],
    prompts: Sequence[str],
    *,
    temperature: float = 0.0,
    top_p: float = 1.0,
    seed: int = 0,
    max_new_tokens: int = 64,
    batch_size: int = 64,
    description: str = "answers",
) -> list[str]:
    """One answer to each (image, prompt): greedy at temperature 0, else sampled from the whole vocabulary.

    Images may be paths, opened when their turn comes. Prompts are left-padded; equal arguments give
    equal answers. Image tokens are never generated. If a batch does not fit into memory, all starts anew with half of it.
    """
    if len(images) != len(prompts):
        raise ValueError(
            f"{len(images)} images but {len(prompts)} prompts: one image a prompt is needed"
        )
    config = generation_config(model, processor, temperature, top_p, max_new_tokens)
    was_training = model.training
    model.eval()
    try:
        with torch.random.fork_rng(), warnings.catch_warnings():
            torch.manual_seed(seed)
            return _generate_in_batches(
                model, processor, images, prompts, config, batch_size, description
            )
    except RuntimeError as error:
        if batch_size == 1 or not should_reduce_batch_size(error):
            raise
    finally:
        model.train(was_training)
    clear_device_cache(garbage_collection=True)
    print(
        f"⚠️  {batch_size} answers at once do not fit into memory: starting again with {batch_size // 2}."
    )
    again = {
        "temperature": temperature,
        "top_p": top_p,
        "seed": seed,
        "max_new_tokens": max_new_tokens,
    }
    return generate_answers(
        model,
        processor,
        images,
        prompts,
        **again,
        batch_size=batch_size // 2,
        description=description,
    )


def _generate_in_batches(
    model: VLM,
    processor: ProcessorMixin,
    images: Sequence[Image.Image | Path],
    prompts: Sequence[str],
    config: GenerationConfig,
    size: int,
    description: str,
) -> list[str]:
    answers = []
    for start in tqdm(range(0, len(prompts), size), desc=description, leave=False):
        rows = slice(start, start + size)
        pictures = [
            open_image(image) if isinstance(image, Path) else image for image in images[rows]
        ]
        inputs = encode(processor, prompts[rows], pictures).to(model.device)
        output = model.generate(**inputs, generation_config=config)
        answers += answer_texts(processor, output[:, inputs["input_ids"].shape[1] :])
    return answers


def answer_records(
    model: VLM, processor: ProcessorMixin, records: Sequence[PreferenceRecord]
) -> list[str]:
    """Greedy answers to the prompts of records, from their first image and last turn."""
    images = [record.image_paths[0] for record in records]
    return generate_answers(
        model, processor, images, [record.prompt[-1].content for record in records]
    )


def answer_budget(processor: ProcessorMixin, texts: Sequence[str]) -> int:
    """Tokens to allow for an answer, where `texts` are answers of the right kind: the longest and half as much again."""
    longest = max(len(processor.tokenizer(text)["input_ids"]) for text in texts)
    return longest + longest // 2 + 2


def sample_answers(
    model: VLM,
    processor: ProcessorMixin,
    images: Sequence[Image.Image | Path],
    questions: Sequence[str],
    number: int = 4,
    *,
    temperature: float = 1.0,
    seed: int = 0,
    max_new_tokens: int = 64,
) -> list[list[str]]:
    """`number` sampled answers to each question about its image: (questions, number)."""
    columns = [
        generate_answers(
            model, processor, images, questions,
            temperature=temperature, seed=seed + i, max_new_tokens=max_new_tokens,
            description=f"sampling answer {i + 1} of {number}",
        )
        for i in range(number)
    ]  # fmt: skip
    return [list(answers) for answers in zip(*columns, strict=True)]


@torch.no_grad()
def sample_ids(
    model: torch.nn.Module,
    processor: ProcessorMixin,
    prompts: EncodedPrompts,
    *,
    group_size: int = 1,
    temperature: float = 1.0,
    top_p: float = 1.0,
    max_new_tokens: int = 64,
    seed: int = 0,
) -> tuple[list[Tensor], list[bool]]:
    """`group_size` answers to each prompt: their tokens, with the end of turn if it came, and whether it did.

    Image and prompt are read once for all answers to them: the cache of keys and values, which holds all but the
    prompt's last token, is repeated. Equal arguments give equal answers; the caller's random numbers are left alone.
    """
    config = generation_config(model, processor, temperature, top_p, max_new_tokens)
    stops = config.eos_token_id if isinstance(config.eos_token_id, list) else [config.eos_token_id]
    inputs, kept, _ = prompt_inputs(processor, prompts)
    inputs, kept = (
        inputs.to(model.device),
        {name: value.to(model.device) for name, value in kept.items()},
    )
    tokens = {name for name, value in inputs.items() if value.shape == inputs["input_ids"].shape}
    before = {name: value[:, :-1] if name in tokens else value for name, value in inputs.items()}
    cache, inner = DynamicCache(config=model.config.get_text_config()), backbone_of(model)
    with (
        use_features(model, kept),
        torch.autocast(model.device.type, compute_dtype(), enabled=model.device.type == "cuda"),
    ):
        inner(**before, past_key_values=cache, use_cache=True)
    cache.batch_repeat_interleave(group_size)
    if (
        getattr(inner, "rope_deltas", None) is not None
    ):  # M-RoPE: how far positions lag behind tokens, (rows, 1)
        inner.rope_deltas = inner.rope_deltas.repeat_interleave(group_size, 0)
    rows = {
        name: inputs[name].repeat_interleave(group_size, 0)
        for name in ("input_ids", "attention_mask")
    }
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        output = generate_from_cache(model, cache, config, **rows)
    rows = output[:, inputs["input_ids"].shape[1] :].cpu()
    ends = torch.isin(rows, torch.tensor(stops))
    ended = ends.any(1).tolist()
    lengths = [
        int(row.nonzero()[0]) + 1 if end else len(row) for row, end in zip(ends, ended, strict=True)
    ]
    return [row[:length] for row, length in zip(rows, lengths, strict=True)], ended
