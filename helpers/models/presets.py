"""The checkpoints that the suite knows by name, and their models without weights.

They are in `helpers/models/presets.toml`. A model without weights (PyTorch's device "meta") has
every layer and shape of the checkpoint and takes no memory. What follows from shapes, LoRA's number
of weights and the memory forecast, can so be known without a download.
"""

import difflib
import re
import tomllib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import transformers
from transformers import AutoConfig, AutoModelForImageTextToText, PretrainedConfig, PreTrainedModel

from helpers.files import ROOT, UsageError


@dataclass(frozen=True)
class Preset:
    """A checkpoint, and what it needs. The last three fields build its configuration."""

    location: str  # folder in this repository or hub id
    licence: str
    gpu_gb: int  # smallest usual card on which it can be trained in 4 bits; 0: none is needed
    revision: str | None = None  # commit on the hub
    four_bit: str | None = None  # hub id of a copy that was quantised before
    quantised: bool = True  # loaded in 4 bits, unless something else is asked for
    parameters: int | None = None  # as the hub counts them
    max_pixels: int | None = None  # images are reduced to this many (Qwen-VL)
    longest_edge: int | None = None  # images are reduced to this side before they are cut (SmolVLM)
    note: str = ""
    config: dict[str, Any] = field(default_factory=dict)
    text: dict[str, Any] = field(default_factory=dict)
    vision: dict[str, Any] = field(default_factory=dict)


_TABLE = Path(__file__).with_suffix(".toml").read_text(encoding="utf-8")
PRESETS = {name: Preset(**values) for name, values in tomllib.loads(_TABLE).items()}


def locate(name_or_path: str | Path) -> str:
    """Return the folder or hub id of a preset, a local folder or a hub id. Raises UsageError."""
    name = str(name_or_path)
    if name in PRESETS:
        location = PRESETS[name].location
        return str(ROOT / location) if (ROOT / location).is_dir() else location
    if name and Path(name).is_dir():
        if not (Path(name) / "config.json").exists():
            raise UsageError(
                f"{name}: this folder holds no config.json. Give the folder of a saved checkpoint."
            )
        return name
    if re.fullmatch(r"[\w.-]+/[\w.-]+", name) and name[0] not in ".":
        return name
    # Neither: most likely a slip of the finger
    near = difflib.get_close_matches(name, PRESETS, n=1)
    hint = f"Did you mean {near[0]!r}? " if near else ""
    raise UsageError(
        f"unknown model {name!r}. {hint}Choose a preset ({', '.join(PRESETS)}), "
        "a folder that holds a checkpoint, or a hub id such as owner/name."
    )


def preset_of(name_or_path: str | Path) -> Preset | None:
    """Return the preset of that name, or whose checkpoint it is; a copy in 4 bits counts."""
    name = str(name_or_path)
    for known, preset in PRESETS.items():
        if name in (known, preset.location, preset.four_bit, str(ROOT / preset.location)):
            return preset
    return None


def in_four_bits(name_or_path: str | Path, asked: bool | None = None) -> bool:
    """Is a model to be loaded in 4 bits? As was asked for, else as its preset says."""
    if asked is not None:
        return asked
    preset = preset_of(name_or_path)
    return preset is None or preset.quantised


def config_of(name_or_path: str | Path) -> PretrainedConfig:
    """Return the configuration of a model.

    It is read from a preset's table, a folder's file, else from the hub.
    """
    preset = preset_of(name_or_path)
    if preset is None or not preset.config:
        return AutoConfig.from_pretrained(locate(name_or_path))
    # No network is asked
    values = dict(preset.config)
    config_class = getattr(transformers, values.pop("class"))
    # Copies, since a configuration changes what it is given
    return config_class(text_config={**preset.text}, vision_config={**preset.vision}, **values)


def model_without_weights(name_or_path: str | Path) -> PreTrainedModel:
    """Build the model with all its layers and shapes, but without memory for its weights."""
    with torch.device("meta"):
        return AutoModelForImageTextToText.from_config(config_of(name_or_path), dtype=torch.float16)
