"""The shapes of a model, which the arithmetic of memory and time needs.

They are counted on the model without weights. Used by `helpers/machine/memory.py`.
"""

import functools
from dataclasses import dataclass
from pathlib import Path

from torch import nn

from helpers.config import SAME_PART, LoraSettings
from helpers.files import UsageError

from .caches import is_recurrent
from .presets import PRESETS, locate, model_without_weights, preset_of

# Bytes a weight: 4 bits, an 8-bit scale for 64 weights, an fp32 scale for 256 of those
NF4_BYTES = 0.5 + 1 / 64 + 4 / (64 * 256)

# The layer that widens a state in the feed-forward part, by its names
UP_PROJECTIONS = {"up_proj", *SAME_PART["up_proj"]}


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
    recurrent: bool  # layers hand states on, so that answers do not share a row (`is_recurrent`)


def is_known(name: str) -> bool:
    """Can its shapes be known without the network: is it a preset, or a checkpoint in a folder?"""
    return preset_of(name) is not None or (Path(name) / "config.json").exists()


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
    config = model.config
    text = config.get_text_config()
    # Gemma 4 has heads of two widths: the larger
    keys = max(width for name, _, width in linear if name == "k_proj")
    head = keys // text.num_key_value_heads
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
        keys=keys,
        heads=text.num_attention_heads,
        # LFM2 makes another size of the one that its config names, and Gemma 4 two
        intermediate=max(width for name, _, width in linear if name in UP_PROJECTIONS),
        vocab=text.vocab_size,
        normed_heads=any(path.endswith("q_norm") for path, _ in decoder.named_modules()),
        extra_features=len(getattr(vision, "deepstack_visual_indexes", None) or ()),
        vision_width=width,
        vision_depth=getattr(vision, "depth", None) or vision.num_hidden_layers,
        vision_intermediate=getattr(vision, "intermediate_size", None) or round(width * ratio),
        keeps_vision_states="llava" in config.model_type,
        recurrent=is_recurrent(model),
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
