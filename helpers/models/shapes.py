"""What the arithmetic of memory and time needs of a model: its shapes, and visual tokens.

Shapes are counted on the model without weights. Visual tokens follow the image processors of
`transformers`, as arithmetic: `_get_number_of_features` of processing_llava_next.py,
`resize_for_vision_encoder` of image_processing_idefics3.py. This needs no processor, and so no
download; `helpers/doctor/lengths.py` asks the processor instead. Used by
`helpers/machine/memory.py`.

Simplification: only the placeholders are counted. The tags that SmolVLM writes around tiles are a
few tokens more.
"""

import functools
import math
from dataclasses import dataclass
from pathlib import Path

from torch import nn
from transformers import AutoImageProcessor
from transformers.image_processing_utils import select_best_resolution

from helpers.config import LoraSettings
from helpers.files import UsageError

from .presets import PRESETS, config_of, locate, model_without_weights, preset_of

# Kinds of models that resize an image to any number of visual tokens, and the pixels that their
# image processors enlarge a small one to
LEAST_PIXELS = {"qwen2_vl": 56**2, "qwen2_5_vl": 56**2, "qwen3_vl": 256**2}

# Kinds of models that cut an image into tiles
TILE_TYPES = ("idefics3", "smolvlm")

# Visual tokens a side of the smallest square that a Qwen-VL is to see: 224 pixels for a Qwen2-VL
FEWEST_TOKENS = 8

# Bytes a weight: 4 bits, an 8-bit scale for 64 weights, an fp32 scale for 256 of those
NF4_BYTES = 0.5 + 1 / 64 + 4 / (64 * 256)


# --- shapes ---


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
    vision_width: int
    vision_depth: int
    vision_intermediate: int
    keeps_vision_states: bool  # the vision tower gives the states of all its layers (LLaVA)


def is_known(name: str) -> bool:
    """Can its shapes be known without the network: is it a preset, or a checkpoint in a folder?"""
    return preset_of(name) is not None or (Path(name) / "config.json").exists()


_config = functools.cache(config_of)


@functools.cache
def shapes_of(name: str) -> ModelShapes:
    """Return the shapes of a preset or of a checkpoint in a folder, else raise UsageError."""
    if not is_known(name):
        raise UsageError(
            f"{locate(name)}: its shapes are on the hub. Give a folder or a preset: "
            f"{', '.join(PRESETS)}."
        )
    model = model_without_weights(name)
    decoder = model.get_decoder()
    linear, outside = _linear_layers(model, decoder)
    sizes = [inputs * outputs for _, inputs, outputs in linear]
    numbers = sum(tensor.numel() for tensor in [*model.parameters(), *model.buffers()])
    config = _config(name)
    text = config.get_text_config()
    head = getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads
    # Qwen2-VL calls the sizes of its vision tower otherwise than all others
    vision = config.vision_config
    width = getattr(vision, "embed_dim", None) or vision.hidden_size
    ratio = getattr(vision, "mlp_ratio", 0)
    return ModelShapes(
        quantised=sum(sizes),
        others=numbers - sum(sizes),
        largest=max(sizes),
        linear=linear,
        outside=outside,
        hidden=text.hidden_size,
        layers=text.num_hidden_layers,
        queries=text.num_attention_heads * head,
        keys=text.num_key_value_heads * head,
        heads=text.num_attention_heads,
        intermediate=text.intermediate_size,
        vocab=text.vocab_size,
        normed_heads=any(path.endswith("q_norm") for path, _ in decoder.named_modules()),
        extra_features=len(getattr(vision, "deepstack_visual_indexes", None) or ()),
        vision_width=width,
        vision_depth=getattr(vision, "depth", None) or vision.num_hidden_layers,
        vision_intermediate=getattr(vision, "intermediate_size", None) or round(width * ratio),
        keeps_vision_states="llava" in config.model_type,
    )


def _linear_layers(model: nn.Module, decoder: nn.Module) -> tuple[tuple, tuple]:
    """Return last name, inputs and outputs of each Linear layer: in the language model, outside.

    The language head belongs to neither.
    """
    inside = {id(module) for module in decoder.modules()}
    language = []
    outside = []
    for path, module in model.named_modules():
        name = path.split(".")[-1]
        if isinstance(module, nn.Linear) and name != "lm_head":
            layers = language if id(module) in inside else outside
            layers.append((name, module.in_features, module.out_features))
    return tuple(language), tuple(outside)


def weight_bytes(model: ModelShapes, four_bit: bool = True, compute_bytes: int = 2) -> float:
    """Return the bytes of all weights; `compute_bytes`: of a number that is not quantised."""
    language = NF4_BYTES if four_bit else compute_bytes
    return model.quantised * language + model.others * compute_bytes


def lora_weights(model: ModelShapes, lora: LoraSettings) -> int:
    """Return r · (in + out) of each Linear layer that `models.lora_config` would choose."""
    chosen = [layer for layer in model.linear if layer[0] in lora.module_names]
    if lora.vision:
        chosen += model.outside
    return sum(lora.r * (inputs + outputs) for _, inputs, outputs in chosen)


# --- visual tokens of an image, for each way to resize it ---


def qwen_grid(width: int, height: int, side: int, least: int, most: int) -> tuple[int, int]:
    """Return columns and rows of visual tokens of `side` × `side` pixels each.

    The image is resized to `least` … `most` pixels before. Raises UsageError for a thin strip.
    """
    # Only here, since it imports torchvision
    from transformers.models.qwen2_vl.image_processing_qwen2_vl import smart_resize

    if max(width, height) > 200 * min(width, height):
        raise UsageError(
            f"an image of {width} × {height} pixels: Qwen-VL refuses sides of over 200 : 1. "
            "Crop it."
        )
    resized_height, resized_width = smart_resize(height, width, side, least, most)
    return resized_width // side, resized_height // side


def llava_next_grid(
    width: int, height: int, pinpoints: list[list[int]], tile: int, side: int
) -> tuple[int, int]:
    """Return LLaVA-NeXT's visual tokens and tiles.

    They are of the whole image, of the best fitting resolution without its padding, and a token at
    the end of each of its rows. `pinpoints`: (height, width); `side`: pixels of a token.
    """
    best_height, best_width = select_best_resolution((height, width), pinpoints)
    rows = best_height // tile * (tile // side)
    columns = best_width // tile * (tile // side)
    # The padding is the same on both sides, so an odd row or column of it stays
    if width / height > columns / rows:
        rows -= (rows - int(round(height * columns / width, 7))) // 2 * 2
    else:
        columns -= (columns - int(round(width * rows / height, 7))) // 2 * 2
    tiles = 1 + best_height * best_width // tile**2
    return (tile // side) ** 2 + rows * columns + rows, tiles


def tile_edge(max_pixels: int, tile: int) -> int:
    """Return the side of the largest square of whole tiles with at most `max_pixels`.

    It is of one tile at least.
    """
    return max(1, math.isqrt(max_pixels) // tile) * tile


def idefics_tiles(width: int, height: int, longest_edge: int, tile: int) -> int:
    """Return the number of tiles of Idefics3 and SmolVLM.

    The image is resized to `longest_edge`, cut, and shown whole besides if it was cut.
    """
    along = math.ceil(longest_edge / tile)
    short = int(longest_edge * min(width, height) / max(width, height))
    short += short % 2  # sides are even
    across = math.ceil(int(along * tile * short / longest_edge) / tile)
    return along * across + 1 if along > 1 else 1


# --- the same for a model by its name ---


@functools.cache
def _pixel_limits(name: str) -> tuple[int, int | None]:
    """Return the least and most pixels that images are brought to; None: any.

    Those of a preset are its own, those of a folder its image processor's.
    """
    kind = _config(name).model_type
    preset = preset_of(name)
    least = LEAST_PIXELS.get(kind, 0)
    if kind not in (*LEAST_PIXELS, *TILE_TYPES):
        return least, None
    if preset and preset.max_pixels:
        return least, preset.max_pixels
    if preset and preset.longest_edge:
        return least, preset.longest_edge**2
    size = AutoImageProcessor.from_pretrained(name).size
    if kind in LEAST_PIXELS:  # both are numbers of pixels here
        return size["shortest_edge"], size["longest_edge"]
    return least, size["longest_edge"] ** 2


def default_max_pixels(name: str) -> int | None:
    """Return the pixels that images are reduced to if nothing else is asked for.

    None for a model that sees every image in sizes of its own (LLaVA).
    """
    return _pixel_limits(name)[1]


def smaller_limits(name: str, pixels: int) -> list[int]:
    """Return smaller limits than `pixels` that make a difference, the largest first.

    They are squares of whole visual tokens, `FEWEST_TOKENS` a side or more (Qwen-VL), or of whole
    tiles (SmolVLM). There are none for a LLaVA.
    """
    config = _config(name)
    vision = config.vision_config
    if config.model_type in LEAST_PIXELS:
        step = vision.patch_size * vision.spatial_merge_size
        fewest = FEWEST_TOKENS
    elif config.model_type in TILE_TYPES:
        step = vision.image_size
        fewest = 1
    else:
        return []
    most = math.isqrt(pixels - 1) // step
    return [(n * step) ** 2 for n in range(most, fewest - 1, -1)]


def visual_tokens(name: str, width: int, height: int, max_pixels: int | None = None) -> int:
    """Return the tokens that stand for an image of that many pixels in a prompt.

    name: a preset or a checkpoint in a folder. max_pixels: as of `models.load_model` (None: the
    model's own).
    """
    return tokens_and_patches(name, width, height, max_pixels)[0]


def tokens_and_patches(
    name: str, width: int, height: int, max_pixels: int | None = None
) -> tuple[int, int]:
    """Return the visual tokens of an image, and the patches that the vision tower sees of it.

    Raises UsageError for a size of 0.
    """
    if min(width, height) < 1:
        raise UsageError(
            f"an image of {width} × {height} pixels: give both sides in whole pixels, from 1."
        )
    least, most = _pixel_limits(name)
    limit = max_pixels or most
    config = _config(name)
    kind = config.model_type
    vision = config.vision_config
    if kind in LEAST_PIXELS:
        side = vision.patch_size * vision.spatial_merge_size
        columns, rows = qwen_grid(width, height, side, min(least, limit), limit)
        return columns * rows, columns * rows * vision.spatial_merge_size**2
    tile = vision.image_size
    patches = (tile // vision.patch_size) ** 2  # of a tile
    if kind == "llava":
        return patches, patches + 1
    if kind == "llava_next":
        pinpoints = config.image_grid_pinpoints
        tokens, tiles = llava_next_grid(width, height, pinpoints, tile, vision.patch_size)
        return tokens, tiles * (patches + 1)
    if kind in TILE_TYPES:
        edge = tile_edge(max_pixels, tile) if max_pixels else math.isqrt(most)
        tiles = idefics_tiles(width, height, edge, tile)
        return tiles * patches // config.scale_factor**2, tiles * patches
    raise UsageError(
        f"{name}: visual tokens of {kind} models are not known here. Forecasts need Qwen-VL, LLaVA "
        "or SmolVLM."
    )
