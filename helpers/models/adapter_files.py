"""Adapters on disk: saved, and put back on a model only if every tensor finds its place.

peft leaves out what finds no layer of its name, with a warning at most: such a model answers as its
base does, and a comparison of both reports no difference. So what is on the model after loading is
compared with the file, tensor by tensor.
"""

import shutil
from collections.abc import Mapping
from pathlib import Path

import torch

from .adapters import POLICY_ADAPTER, VLM

# isort: split
from peft import PeftModel, get_peft_model_state_dict
from safetensors import SafetensorError
from safetensors.torch import load_file

from helpers.files import UsageError, read_json, require_whole, seal_folder, write_json

CONFIG_FILE = "adapter_config.json"
WEIGHTS_FILE = "adapter_model.safetensors"
# Beside the adapter of a reward model; such an adapter answers nothing
HEAD_FILE = "head.safetensors"
ABOUT_FILE = "about.json"
ADAPTER_FILES = (CONFIG_FILE, WEIGHTS_FILE, ABOUT_FILE)


def save_adapter(model: PeftModel, folder: Path, about: dict, name: str = POLICY_ADAPTER) -> Path:
    """Save an adapter (safetensors) with `about`, a dictionary that says how it was made.

    `files.json`, the last file, says which files belong together.
    """
    model.save_pretrained(folder, selected_adapters=[name])
    if name != POLICY_ADAPTER:  # peft puts it into a subfolder
        shutil.copytree(folder / name, folder, dirs_exist_ok=True)
        shutil.rmtree(folder / name)
    write_json(folder / ABOUT_FILE, about)
    seal_folder(folder, ADAPTER_FILES)
    return folder


def load_adapter(model: VLM, folder: Path, name: str = POLICY_ADAPTER) -> PeftModel:
    """Put a policy's saved adapter on `model` under `name` and switch to it.

    Raises UsageError for a reward model's folder, and for what `attach_adapter` refuses.
    """
    if (folder / HEAD_FILE).exists():
        raise UsageError(
            f"{folder}: of a reward model ({HEAD_FILE}), which answers nothing. "
            "Give a policy's adapter."
        )
    return attach_adapter(model, folder, name)


def attach_adapter(model: VLM, folder: Path, name: str) -> PeftModel:
    """Put any saved adapter on `model` under `name` and switch to it.

    Raises UsageError for a folder without one or of which a save was cut off, and if a tensor is
    missing, finds no place, has another shape or is not finite.
    """
    base = _named_base(folder)
    require_whole(folder)
    saved = read_adapter_tensors(folder)
    try:
        if isinstance(model, PeftModel):
            model.load_adapter(str(folder), adapter_name=name)
        else:
            model = PeftModel.from_pretrained(model, str(folder), adapter_name=name)
    except (RuntimeError, ValueError, KeyError, TypeError) as error:
        raise UsageError(
            f"{folder}: this adapter was trained on {base} and does not fit the model loaded "
            f"({str(error).splitlines()[0]})."
        ) from error
    wrong = _misplaced(model, saved, name)
    if wrong:
        model.delete_adapter(name)
        raise UsageError(
            f"{folder}: {len(wrong)} tensors do not fit this base ({min(wrong)} …). The adapter "
            f"was trained on {base}: give that base, or save the adapter again."
        )
    model.set_adapter(name)
    return model.eval()


def read_adapter_tensors(folder: Path) -> dict[str, torch.Tensor]:
    """Read the tensors of a saved adapter by name.

    Raises UsageError for a file that cannot be read, for whole numbers and for what is not finite.
    """
    path = folder / WEIGHTS_FILE
    try:
        saved = load_file(path)
    except FileNotFoundError:
        raise UsageError(
            f"{folder}: holds no adapter ({WEIGHTS_FILE}). Give another folder."
        ) from None
    except (OSError, SafetensorError) as error:
        raise UsageError(f"{path}: cannot be read ({error}). Save the adapter again.") from None
    for tensor, value in saved.items():
        if not value.is_floating_point():
            raise UsageError(
                f"{path}: {tensor} is of {value.dtype}, in which no adapter answers. "
                "Save it in fp32 or 16 bits."
            )
        if not value.isfinite().all():
            raise UsageError(
                f"{path}: {tensor} is not finite. Its training broke: train again, "
                "with a lower learning rate."
            )
    return saved


def _named_base(folder: Path) -> str:
    """Return the name of the base that an adapter was trained on."""
    path = folder / CONFIG_FILE
    if not path.exists():
        raise UsageError(
            f"{folder}: holds no adapter ({CONFIG_FILE}). Run notebook 04, or give another folder."
        )
    about = folder / ABOUT_FILE
    if about.exists():
        named = read_json(about).get("base")
        if named:
            return str(named)
    return str(read_json(path).get("base_model_name_or_path"))


def _misplaced(model: PeftModel, saved: Mapping[str, torch.Tensor], name: str) -> set[str]:
    """Return the names of tensors that are only in the file, only on the model, or unequal."""
    own = get_peft_model_state_dict(model, adapter_name=name)
    wrong = set(saved.keys() ^ own.keys())
    for tensor in saved.keys() & own.keys():
        # On the model it may be in another precision
        expected = saved[tensor].to(own[tensor].device, own[tensor].dtype)
        if not torch.equal(expected, own[tensor]):
            wrong.add(tensor)
    return wrong
