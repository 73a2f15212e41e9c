"""What the arithmetic of memory and time needs of a model, counted on the model without weights, and visual tokens.

Visual tokens follow the image processors of `transformers`, as arithmetic: smart_resize of image_processing_qwen2_vl.py,
_get_number_of_features of processing_llava_next.py, resize_for_vision_encoder of image_processing_idefics3.py. They need no
processor, and so no download; `helpers/doctor/lengths.py` asks the processor instead. Used by `helpers/machine/memory.py`.

Simplification: only the placeholders are counted. The tags that SmolVLM writes around tiles are a few tokens more.
"""

import functools
import math
from dataclasses import dataclass
from pathlib import Path

from torch import nn
from transformers import AutoImageProcessor

from helpers.config import LoraSettings
from helpers.files import UsageError

from .presets import PRESETS, config_of, locate, model_without_weights, preset_of

QWEN_TYPES, TILE_TYPES = ("qwen2_vl", "qwen2_5_vl", "qwen3_vl"), ("idefics3", "smolvlm")
FEWEST_TOKENS = 8  # visual tokens a side of the smallest square that a Qwen-VL is to see: 224 pixels for a Qwen2-VL
NF4_BYTES = (
    0.5 + 1 / 64 + 4 / (64 * 256)
)  # bytes a weight: 4 bits, an 8-bit scale for 64, an fp32 scale for 256 of those


@dataclass(frozen=True)
class ModelShapes:
    """The sizes of a model that the arithmetic of memory and time needs."""

    quantised: int  # weights of the language Linear layers
    others: int  # all other weights, and buffers
    largest: int  # weights of the largest quantised layer
    linear: tuple[tuple[str, int, int], ...]  # language Linear layers: last name, in, out
    outside: tuple[tuple[str, int, int], ...]  # those of vision tower and projector
    hidden: int
    layers: int
    queries: int  # heads × width of a head
    keys: int  # the same of keys, and of values
    heads: int
    intermediate: int
    vocab: int
    normed_heads: bool  # queries and keys have norms of their own (Qwen3)
    extra_features: int  # layers that get image features besides the input (Qwen3-VL's deepstack)
    vision: tuple[int, int, int, bool]  # width, depth, intermediate, all hidden states kept


def is_known(name: str) -> bool:
    """Can its shapes be known without the network: is it a preset, or a checkpoint in a folder?"""
    return preset_of(name) is not None or (Path(name) / "config.json").exists()


_config = functools.cache(config_of)


@functools.cache
def shapes_of(name: str) -> ModelShapes:
    """Shapes of a preset or of a checkpoint in a folder. Raises UsageError for others."""
    if not is_known(name):
        raise UsageError(
            f"{locate(name)}: its shapes are on the hub. Give a folder or a preset: {', '.join(PRESETS)}."
        )
    model, config = model_without_weights(name), _config(name)
    text, vision, decoder = config.get_text_config(), config.vision_config, model.get_decoder()
    inside = {id(module) for module in decoder.modules()}
    linear = [
        (path.split(".")[-1], m) for path, m in model.named_modules() if isinstance(m, nn.Linear)
    ]
    language = [(n, m) for n, m in linear if id(m) in inside]
    outside = [(n, m) for n, m in linear if id(m) not in inside and n != "lm_head"]
    quantised = [m.weight.numel() for _, m in language]
    everything = sum(t.numel() for t in [*model.parameters(), *model.buffers()])
    head = getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads
    width = getattr(vision, "embed_dim", None) or vision.hidden_size
    inner = getattr(vision, "intermediate_size", None) or round(width * vision.mlp_ratio)
    return ModelShapes(
        sum(quantised), everything - sum(quantised), max(quantised),
        *(tuple((n, m.in_features, m.out_features) for n, m in rows) for rows in (language, outside)),
        hidden=text.hidden_size, layers=text.num_hidden_layers, heads=text.num_attention_heads,
        queries=text.num_attention_heads * head, keys=text.num_key_value_heads * head,
        intermediate=text.intermediate_size, vocab=text.vocab_size,
        normed_heads=any(path.endswith("q_norm") for path, _ in decoder.named_modules()),
        extra_features=len(getattr(vision, "deepstack_visual_indexes", None) or ()),
        vision=(width, getattr(vision, "depth", None) or vision.num_hidden_layers, inner, "llava" in config.model_type),
    )  # fmt: skip


def qwen_grid(width: int, height: int, side: int, least: int, most: int) -> tuple[int, int]:
    """Columns and rows of visual tokens of `side` × `side` pixels each, after resizing to `least` … `most` pixels."""
    if max(width, height) > 200 * min(width, height):
        raise UsageError(
            f"an image of {width} × {height} pixels: Qwen-VL refuses sides of over 200 : 1. Crop it."
        )
    columns, rows = round(width / side), round(height / side)
    if columns * rows * side**2 > most:
        shrink = math.sqrt(width * height / most)
        columns, rows = (max(1, math.floor(x / shrink / side)) for x in (width, height))
    elif columns * rows * side**2 < least:
        grow = math.sqrt(least / (width * height))
        columns, rows = (math.ceil(x * grow / side) for x in (width, height))
    return columns, rows


def llava_next_grid(
    width: int, height: int, pinpoints: list[list[int]], tile: int, side: int
) -> tuple[int, int]:
    """LLaVA-NeXT's visual tokens and tiles: the whole image, the best fitting resolution without its padding, and a
    token at the end of each of its rows. `pinpoints`: (height, width); `side`: pixels of a token."""

    def fit(point: list[int]) -> tuple[int, int]:
        scale = min(point[1] / width, point[0] / height)
        seen = min(int(width * scale) * int(height * scale), width * height)
        return seen, seen - point[0] * point[1]

    best = max(pinpoints, key=fit)
    rows, columns = best[0] // tile * (tile // side), best[1] // tile * (tile // side)
    if width / height > columns / rows:
        rows -= (rows - int(round(height * columns / width, 7))) // 2 * 2
    else:
        columns -= (columns - int(round(width * rows / height, 7))) // 2 * 2
    return (tile // side) ** 2 + rows * columns + rows, 1 + best[0] * best[1] // tile**2


def tile_edge(max_pixels: int, tile: int) -> int:
    """Side of the largest square of whole tiles with at most `max_pixels`, of one tile at least."""
    return max(1, math.isqrt(max_pixels) // tile) * tile


def idefics_tiles(width: int, height: int, longest_edge: int, tile: int) -> int:
    """Tiles of Idefics3 and SmolVLM: the image is resized to `longest_edge`, cut, and shown whole besides if it was cut."""
    long, short = max(width, height), min(width, height)
    short = int(longest_edge * short / long)
    number = math.ceil(longest_edge / tile)
    across = math.ceil(int(number * tile * (short + short % 2) / longest_edge) / tile)
    return number * across + 1 if number > 1 else 1


@functools.cache
def _pixel_limits(name: str) -> tuple[int, int | None]:
    """Least and most pixels that images are brought to: the preset's with its checkpoint's, of a folder its processor's."""
    preset, kind = preset_of(name), _config(name).model_type
    if kind not in (*QWEN_TYPES, *TILE_TYPES):
        return 0, None
    if preset and (preset.max_pixels or preset.longest_edge):
        return 256**2 if kind == "qwen3_vl" else 56**2, preset.max_pixels or preset.longest_edge**2
    size = AutoImageProcessor.from_pretrained(name).size
    return (
        (size["shortest_edge"], size["longest_edge"])
        if kind in QWEN_TYPES
        else (0, size["longest_edge"] ** 2)
    )


def default_max_pixels(name: str) -> int | None:
    """Pixels that images are reduced to if nothing else is asked for; None for a model that sees every image in sizes of
    its own (LLaVA)."""
    return _pixel_limits(name)[1]


def smaller_limits(name: str, pixels: int) -> list[int]:
    """Smaller limits than `pixels` that make a difference, the largest first: squares of whole visual tokens, `FEWEST_TOKENS`
    a side or more (Qwen-VL), or of whole tiles (SmolVLM). Empty for a LLaVA."""
    vision, kind = _config(name).vision_config, _config(name).model_type
    if kind not in (*QWEN_TYPES, *TILE_TYPES):
        return []
    step = (
        vision.patch_size * vision.spatial_merge_size if kind in QWEN_TYPES else vision.image_size
    )
    fewest = FEWEST_TOKENS if kind in QWEN_TYPES else 1
    return [(n * step) ** 2 for n in range(math.isqrt(pixels - 1) // step, fewest - 1, -1)]


def visual_tokens(name: str, width: int, height: int, max_pixels: int | None = None) -> int:
    """Tokens that stand for an image of that many pixels in the prompt of a preset or a checkpoint in a folder.
    max_pixels: as of `models.load_model` (None: the model's own)."""
    return tokens_and_patches(name, width, height, max_pixels)[0]


def tokens_and_patches(
    name: str, width: int, height: int, max_pixels: int | None = None
) -> tuple[int, int]:
    """Visual tokens of an image, and patches that the vision tower sees of it. Raises UsageError for a size of 0."""
    if min(width, height) < 1:
        raise UsageError(
            f"an image of {width} × {height} pixels: give both sides in whole pixels, from 1."
        )
    config, limit = _config(name), max_pixels or default_max_pixels(name)
    vision, kind = config.vision_config, config.model_type
    if kind in QWEN_TYPES:
        side = vision.patch_size * vision.spatial_merge_size
        columns, rows = qwen_grid(width, height, side, min(_pixel_limits(name)[0], limit), limit)
        return columns * rows, columns * rows * vision.spatial_merge_size**2
    patches = (vision.image_size // vision.patch_size) ** 2
    if kind == "llava":
        return patches, patches + 1
    if kind == "llava_next":
        tokens, tiles = llava_next_grid(
            width, height, config.image_grid_pinpoints, vision.image_size, vision.patch_size
        )
        return tokens, tiles * (patches + 1)
    if kind in TILE_TYPES:
        edge = tile_edge(max_pixels, vision.image_size) if max_pixels else math.isqrt(limit)
        tiles = idefics_tiles(width, height, edge, vision.image_size)
        return tiles * patches // config.scale_factor**2, tiles * patches
    raise UsageError(
        f"{name}: visual tokens of {kind} models are not known here. Forecasts need Qwen-VL, LLaVA or SmolVLM."
    )


def weight_bytes(model: ModelShapes, *, four_bit: bool = True, compute_bytes: int = 2) -> float:
    return (
        model.quantised * (NF4_BYTES if four_bit else compute_bytes) + model.others * compute_bytes
    )


def lora_weights(model: ModelShapes, lora: LoraSettings) -> int:
    """r · (in + out) of each Linear layer that `models.lora_config` would choose."""
    chosen = [row for row in model.linear if row[0] in lora.target_modules]
    return sum(lora.r * (i + o) for _, i, o in [*chosen, *(model.outside if lora.vision else ())])
