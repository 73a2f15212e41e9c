"""How many tokens an image is, for a model by its name: arithmetic, without a processor.

It follows the image processors of `transformers`: `_get_number_of_features` of
processing_llava_next.py, `resize_for_vision_encoder` of image_processing_idefics3.py,
`get_aspect_ratio_preserving_size` of image_processing_gemma4.py, `smart_resize` of
image_processing_lfm2_vl.py, `get_optimal_tiled_canvas` of image_processing_got_ocr2.py (InternVL).
So nothing is downloaded; `helpers/doctor/lengths.py` asks the processor instead. `limit_pixels`
tells a processor the limit that the arithmetic was made with.

Simplification: only the placeholders are counted. The tags that some processors write around tiles
are a few tokens more.
"""

import functools
import math

from transformers import AutoImageProcessor, BaseImageProcessor, PretrainedConfig, ProcessorMixin
from transformers.image_processing_utils import select_best_resolution

from helpers.files import UsageError

from .presets import config_of, preset_of

# Kinds of models that resize an image to any number of visual tokens, and the pixels that their
# image processors enlarge a small one to
LEAST_PIXELS = {
    "qwen2_vl": 56**2,
    "qwen2_5_vl": 56**2,
    "qwen3_vl": 256**2,
    "qwen3_5": 256**2,
}

# Kinds of models that cut an image into tiles
TILE_TYPES = ("idefics3", "smolvlm")

# Visual tokens a side of the smallest square that a Qwen-VL is to see: 224 pixels for a Qwen2-VL
FEWEST_TOKENS = 8

# Gemma 4's image processor takes these numbers of tokens alone
GEMMA4_TOKENS = (70, 140, 280, 560, 1120)

# What LFM2-VL's image processor does where a checkpoint does not say otherwise
LFM2_LEAST_TOKENS = 64

_config = functools.cache(config_of)


# --- for each way to resize an image ---


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


def gemma4_grid(width: int, height: int, side: int, most: int) -> tuple[int, int]:
    """Return columns and rows of Gemma 4's visual tokens of `side` × `side` pixels, `most` in all.

    The image fills as many as it can in its own proportions; a thin strip gets a row of them.
    """
    factor = math.sqrt(most * side**2 / (width * height))
    columns = math.floor(factor * width / side)
    rows = math.floor(factor * height / side)
    if not rows:
        return min(width // height, most), 1
    if not columns:
        return 1, min(height // width, most)
    return columns, rows


def lfm2_grid(width: int, height: int, side: int, least: int, most: int) -> tuple[int, int]:
    """Return columns and rows of LFM2-VL's visual tokens of `side` × `side` pixels.

    They are `least` … `most` tokens, of an image that is not cut.
    """
    columns = max(1, round(width / side))
    rows = max(1, round(height / side))
    if columns * rows > most:
        shrink = math.sqrt(width * height / (most * side**2))
        columns = max(1, math.floor(width / shrink / side))
        rows = max(1, math.floor(height / shrink / side))
    elif columns * rows < least:
        grow = math.sqrt(least * side**2 / (width * height))
        columns = math.ceil(width * grow / side)
        rows = math.ceil(height * grow / side)
    return columns, rows


def internvl_tiles(width: int, height: int, tile: int, least: int, most: int) -> int:
    """Return the number of InternVL's tiles, with the small view of the whole if it is cut."""
    # Only here, since it imports torchvision
    from transformers.models.got_ocr2.image_processing_got_ocr2 import get_optimal_tiled_canvas

    if most <= 1:
        return 1
    columns, rows = get_optimal_tiled_canvas((height, width), (tile, tile), least, most)
    return columns * rows + 1 if columns * rows > 1 else 1


# --- the same for a model by its name ---


@functools.cache
def _own_processor(name: str) -> BaseImageProcessor | None:
    """Return the image processor of a folder; None for a preset, which names its limits."""
    preset = preset_of(name)
    if preset and (preset.max_pixels or preset.longest_edge):
        return None
    return AutoImageProcessor.from_pretrained(name)


def _token_side(config: PretrainedConfig) -> int:
    """Return the pixels a side of a visual token, of a model that does not cut images."""
    vision = config.vision_config
    if config.model_type == "gemma4":
        return vision.patch_size * vision.pooling_kernel_size
    if config.model_type == "lfm2_vl":
        return vision.patch_size * config.downsample_factor
    return vision.patch_size * vision.spatial_merge_size


def _tile(config: PretrainedConfig) -> int:
    """Return the pixels a side of what the vision tower sees at once."""
    size = config.vision_config.image_size
    return size if isinstance(size, int) else size[0]


@functools.cache
def default_max_pixels(name: str) -> int | None:
    """Return the pixels that images are reduced to if nothing else is asked for.

    None for a model that sees every image in sizes of its own (LLaVA, Gemma 3; LFM2-VL while it
    cuts images). Those of a preset are its own, those of a folder its image processor's.
    """
    config = _config(name)
    kind = config.model_type
    if kind not in LIMITED:
        return None
    own = _own_processor(name)
    if own is None:
        preset = preset_of(name)
        return preset.max_pixels or preset.longest_edge**2
    if kind in LEAST_PIXELS:  # a number of pixels here
        return own.size["longest_edge"]
    if kind in TILE_TYPES:  # a side
        edge = own.size["longest_edge"] if own.do_image_splitting else _tile(config)
        return edge**2
    if kind == "gemma4":
        return own.max_soft_tokens * _token_side(config) ** 2
    if kind == "internvl":
        return own.max_patches * _tile(config) ** 2
    return None if own.do_image_splitting else own.max_image_tokens * _token_side(config) ** 2


def smaller_limits(name: str, pixels: int) -> list[int]:
    """Return smaller limits than `pixels` that make a difference, the largest first.

    They are squares of whole visual tokens, `FEWEST_TOKENS` a side or more (Qwen-VL, LFM2-VL), or
    of whole tiles (SmolVLM), or numbers of these that the processor takes (Gemma 4, InternVL).
    There are none for a LLaVA and Gemma 3.
    """
    config = _config(name)
    kind = config.model_type
    if kind not in LIMITED:
        return []
    if kind == "gemma4":
        side = _token_side(config)
        sizes = [tokens * side**2 for tokens in GEMMA4_TOKENS]
        return [size for size in reversed(sizes) if size < pixels]
    if kind == "internvl":
        tile = _tile(config) ** 2
        return [number * tile for number in range((pixels - 1) // tile, 0, -1)]
    if kind in TILE_TYPES:
        step = _tile(config)
        fewest = 1
    else:
        step = _token_side(config)
        fewest = FEWEST_TOKENS
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
    config = _config(name)
    way = WAYS.get(config.model_type)
    if way is None:
        raise UsageError(
            f"{name}: visual tokens of {config.model_type} models are not known here. Forecasts "
            f"need one of {', '.join(WAYS)}."
        )
    return way(name, config, width, height, max_pixels)


# The ways of `WAYS`. Each takes a model's name and config, width and height of an image and the
# limit of pixels that was asked for, and returns visual tokens and patches.


def _of_qwen(name, config, width, height, max_pixels) -> tuple[int, int]:
    own = _own_processor(name)
    least = own.size["shortest_edge"] if own else LEAST_PIXELS[config.model_type]
    limit = max_pixels or default_max_pixels(name)
    columns, rows = qwen_grid(width, height, _token_side(config), min(least, limit), limit)
    return columns * rows, columns * rows * config.vision_config.spatial_merge_size**2


def _of_llava(name, config, width, height, max_pixels) -> tuple[int, int]:
    patches = (_tile(config) // config.vision_config.patch_size) ** 2
    return patches, patches + 1


def _of_llava_next(name, config, width, height, max_pixels) -> tuple[int, int]:
    tile = _tile(config)
    side = config.vision_config.patch_size
    tokens, tiles = llava_next_grid(width, height, config.image_grid_pinpoints, tile, side)
    return tokens, tiles * ((tile // side) ** 2 + 1)


def _of_smolvlm(name, config, width, height, max_pixels) -> tuple[int, int]:
    tile = _tile(config)
    patches = (tile // config.vision_config.patch_size) ** 2  # of a tile
    own = _own_processor(name)
    if own and not own.do_image_splitting:
        tiles = 1
    else:
        limit = max_pixels or default_max_pixels(name)
        edge = tile_edge(max_pixels, tile) if max_pixels else math.isqrt(limit)
        tiles = idefics_tiles(width, height, edge, tile)
    return tiles * patches // config.scale_factor**2, tiles * patches


def _of_gemma3(name, config, width, height, max_pixels) -> tuple[int, int]:
    patches = (_tile(config) // config.vision_config.patch_size) ** 2
    return config.mm_tokens_per_image, patches


def _of_gemma4(name, config, width, height, max_pixels) -> tuple[int, int]:
    side = _token_side(config)
    most = gemma4_tokens(max_pixels or default_max_pixels(name), side)
    columns, rows = gemma4_grid(width, height, side, most)
    return columns * rows, columns * rows * config.vision_config.pooling_kernel_size**2


def _of_lfm2(name, config, width, height, max_pixels) -> tuple[int, int]:
    side = _token_side(config)
    limit = max_pixels or default_max_pixels(name)
    own = _own_processor(name)
    least = own.min_image_tokens if own else LFM2_LEAST_TOKENS
    most = limit // side**2 if limit else own.max_image_tokens
    columns, rows = lfm2_grid(width, height, side, min(least, most), most)
    tokens = columns * rows
    if limit is None:
        tokens += _lfm2_tile_tokens(own, width, height, side)
    return tokens, tokens * config.downsample_factor**2


def _lfm2_tile_tokens(own: BaseImageProcessor, width: int, height: int, side: int) -> int:
    """Return the tokens of the tiles that a large image is cut into, without those of the whole."""
    area = max(1, round(width / side)) * max(1, round(height / side))
    if area <= own.max_image_tokens * own.max_pixels_tolerance:
        return 0
    layout = own._get_grid_layout(height, width, own.min_tiles, own.max_tiles, own.tile_size)
    columns, rows = layout[:2]
    return columns * rows * (own.tile_size // side) ** 2


def _of_internvl(name, config, width, height, max_pixels) -> tuple[int, int]:
    tile = _tile(config)
    own = _own_processor(name)
    most = (max_pixels or default_max_pixels(name)) // tile**2
    tiles = internvl_tiles(width, height, tile, own.min_patches if own else 1, most)
    patch = config.vision_config.patch_size
    patches = (tile // (patch if isinstance(patch, int) else patch[0])) ** 2
    return tiles * round(patches * config.downsample_ratio**2), tiles * patches


WAYS = {
    **dict.fromkeys(LEAST_PIXELS, _of_qwen),
    "llava": _of_llava,
    "llava_next": _of_llava_next,
    **dict.fromkeys(TILE_TYPES, _of_smolvlm),
    "gemma3": _of_gemma3,
    "gemma4": _of_gemma4,
    "lfm2_vl": _of_lfm2,
    "internvl": _of_internvl,
}
# Those whose images a limit of pixels makes smaller
LIMITED = {*LEAST_PIXELS, *TILE_TYPES, "gemma4", "lfm2_vl", "internvl"}


# --- the processor's own terms ---


def gemma4_tokens(max_pixels: int, side: int) -> int:
    """Return the largest number of tokens that Gemma 4's processor takes for so many pixels."""
    fitting = [tokens for tokens in GEMMA4_TOKENS if tokens * side**2 <= max_pixels]
    return max(fitting, default=GEMMA4_TOKENS[0])


def limit_pixels(processor: ProcessorMixin, max_pixels: int) -> None:
    """Set the limit in the terms of the processor. Raises UsageError if it has none.

    Qwen-VL's `longest_edge` is a number of pixels; of processors that cut tiles (Idefics3, SmolVLM)
    it is a side. Gemma 4 and LFM2-VL count tokens, InternVL tiles. LFM2-VL cuts no image then.
    """
    images = processor.image_processor
    tile = (getattr(images, "max_image_size", None) or {}).get("longest_edge")
    if hasattr(images, "merge_size"):
        images.size["longest_edge"] = max_pixels
        # Small images are enlarged to this
        images.size["shortest_edge"] = min(images.size["shortest_edge"], max_pixels)
    elif tile:
        images.size["longest_edge"] = tile_edge(max_pixels, tile)
    elif hasattr(images, "max_soft_tokens"):
        side = images.patch_size * images.pooling_kernel_size
        images.max_soft_tokens = gemma4_tokens(max_pixels, side)
    elif hasattr(images, "max_image_tokens"):
        side = images.encoder_patch_size * images.downsample_factor
        images.do_image_splitting = False
        images.max_image_tokens = max(1, max_pixels // side**2)
        images.min_image_tokens = min(images.min_image_tokens, images.max_image_tokens)
    elif hasattr(images, "max_patches"):
        images.max_patches = max(1, max_pixels // (images.size["height"] * images.size["width"]))
        images.min_patches = min(images.min_patches, images.max_patches)
    else:
        name = type(processor).__name__
        raise UsageError(f"{name} has no limit of pixels. Leave max_pixels out for this model.")
