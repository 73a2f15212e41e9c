"""The checkpoints that the suite knows by name (`helpers/models/presets.toml`), and their models without weights.

A model without weights (PyTorch's device "meta") has every layer and shape of the checkpoint and takes no memory. What
follows from shapes, LoRA's number of weights and the memory forecast, can so be known without a download.
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
    location: str  # folder in this repository or hub id
    licence: str
    gpu_gb: int  # smallest usual card on which it can be trained in 4 bits; 0: none is needed
    revision: str | None = None  # commit on the hub
    four_bit: str | None = None  # hub id of a copy that was quantised before
    parameters: int | None = None  # as the hub counts them
    max_pixels: int | None = None  # images are reduced to this many (Qwen-VL)
    longest_edge: int | None = None  # images are reduced to this side before they are cut (SmolVLM)
    note: str = ""
    config: dict[str, Any] = field(default_factory=dict)
    text: dict[str, Any] = field(default_factory=dict)
    vision: dict[str, Any] = field(default_factory=dict)


PRESETS = {
    name: Preset(**values)
    for name, values in tomllib.loads(
        (Path(__file__).with_suffix(".toml")).read_text(encoding="utf-8")
    ).items()
}


def locate(name_or_path: str | Path) -> str:
    """Folder or hub id of a preset name, a local folder or a hub id. Raises UsageError."""
    name = str(name_or_path)
    if name in PRESETS:
        local = ROOT / PRESETS[name].location
        return str(local) if local.is_dir() else PRESETS[name].location
    if name and Path(name).is_dir():
        if not (Path(name) / "config.json").exists():
            raise UsageError(
                f"{name}: this folder holds no config.json. Give the folder of a saved checkpoint."
            )
        return name
    if re.fullmatch(r"[\w.-]+/[\w.-]+", name) and name[0] not in ".":
        return name
    near = difflib.get_close_matches(name, PRESETS, n=1)
    hint = f"Did you mean {near[0]!r}? " if near else ""
    raise UsageError(
        f"unknown model {name!r}. {hint}Choose a preset ({', '.join(PRESETS)}), "
        "a folder that holds a checkpoint, or a hub id such as owner/name."
    )


def preset_of(name_or_path: str | Path) -> Preset | None:
    """The preset of that name, or the one whose checkpoint `name_or_path` is (another copy of it counts)."""
    name = str(name_or_path)
    if name in PRESETS:
        return PRESETS[name]
    return next(
        (p for p in PRESETS.values() if name in (p.location, p.four_bit, str(ROOT / p.location))),
        None,
    )


def config_of(name_or_path: str | Path) -> PretrainedConfig:
    """Configuration of a model: of a preset from its table, of a folder from its file, else from the hub."""
    preset = preset_of(name_or_path)
    if preset is None or not preset.config:
        return AutoConfig.from_pretrained(locate(name_or_path))
    values = dict(preset.config)
    return getattr(transformers, values.pop("class"))(
        text_config=dict(preset.text), vision_config=dict(preset.vision), **values
    )


def model_without_weights(name_or_path: str | Path) -> PreTrainedModel:
    """The model with all its layers and shapes, but no memory for its weights."""
    with torch.device("meta"):
        return AutoModelForImageTextToText.from_config(config_of(name_or_path), dtype=torch.float16)
