"""Adapters and sampling: the only module that knows peft's loading. Checkpoints come from `helpers/models/loading.py`.

The base model is loaded once. A role is an adapter on it: the policy is base + LoRA, the reference is the same base
with the adapter off.
"""

import contextlib
import json
import re
from collections.abc import Iterator
from pathlib import Path

import torch

# Before peft and transformers, since it may import unsloth
from .loading import load_model as load_model

# isort: split
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import PreTrainedModel

from helpers.config import LoraSettings
from helpers.files import UsageError, write_json
from helpers.runtime import seed_everything

VLM = PreTrainedModel | PeftModel  # a base, or a base with adapters on it
POLICY_ADAPTER = "default"  # peft's name for the first adapter, which TRL relies on


def weight_megabytes(model: torch.nn.Module) -> float:
    """Size of all parameters and buffers in MB (10⁶ bytes), as stored."""
    tensors = [*model.parameters(), *model.buffers()]
    quantised = [
        p.quant_state
        for p in model.parameters()
        if hasattr(p, "quant_state") and p.quant_state is not None
    ]
    extra = sum(state.absmax.nbytes for state in quantised)
    return (sum(t.nbytes for t in tensors) + extra) / 1e6


def lora_config(model: PreTrainedModel, settings: LoraSettings) -> LoraConfig:
    """LoRA on the linear layers of the language model that `settings` names; with `vision`, also on all outside it."""
    decoder = model.get_decoder()
    prefix = next(name for name, module in model.named_modules() if module is decoder)
    target = rf".*{re.escape(prefix)}\.layers\.\d+\..*\.({'|'.join(settings.target_modules)})"
    if settings.vision:
        linear = [
            name for name, module in model.named_modules() if isinstance(module, torch.nn.Linear)
        ]
        outside = [
            name
            for name in linear
            if not name.startswith(f"{prefix}.") and not name.endswith("lm_head")
        ]
        target = "|".join([target, *(re.escape(name) for name in outside)])
    return LoraConfig(
        r=settings.r,
        lora_alpha=settings.alpha,
        lora_dropout=settings.dropout,
        target_modules=target,
        task_type="CAUSAL_LM",
    )


def add_adapter(
    model: VLM, settings: LoraSettings, seed: int = 0, name: str = POLICY_ADAPTER
) -> PeftModel:
    """Put a fresh LoRA adapter on `model`, switch to it and print how many weights it trains (all in fp32).

    The adapter starts at zero: until it is trained, the answers are those of the base.
    """
    seed_everything(seed)
    if isinstance(model, PeftModel):
        model.add_adapter(name, lora_config(model.get_base_model(), settings))
        model.set_adapter(name)
    else:
        model = get_peft_model(model, lora_config(model, settings), adapter_name=name)
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.float()
    trained, total = model.get_nb_trainable_parameters()
    print(
        f"LoRA r {settings.r}, α {settings.alpha}: {trained:,} of {total:,} weights are trained ({trained / total:.1%})."
    )
    return model


def save_adapter(model: PeftModel, folder: Path, about: dict, name: str = POLICY_ADAPTER) -> Path:
    """Save an adapter (safetensors) with `about`, a dictionary that says how it was made."""
    model.save_pretrained(folder, selected_adapters=[name])
    if name != POLICY_ADAPTER:  # peft puts it into a subfolder
        for file in (folder / name).iterdir():
            file.replace(folder / file.name)
        (folder / name).rmdir()
    write_json(folder / "about.json", about)
    return folder


@contextlib.contextmanager
def use_adapter(model: PeftModel, name: str) -> Iterator[PeftModel]:
    """Switch to an adapter for a while; the one before, and what was to be trained, comes back afterwards."""
    before, trained = (
        model.active_adapter,
        {n: p.requires_grad for n, p in model.named_parameters()},
    )
    model.set_adapter(name)
    try:
        yield model
    finally:
        model.set_adapter(before)
        for parameter_name, parameter in model.named_parameters():
            parameter.requires_grad_(trained.get(parameter_name, False))  # False: added in between


def load_adapter(model: VLM, folder: Path, name: str = POLICY_ADAPTER) -> PeftModel:
    """Put a saved adapter on `model` under `name` and switch to it. Raises UsageError if it does not fit."""
    if not (folder / "adapter_config.json").exists():
        raise UsageError(
            f"{folder}: holds no adapter (adapter_config.json). Run notebook 04, or give another folder."
        )
    try:
        if isinstance(model, PeftModel):
            model.load_adapter(str(folder), adapter_name=name)
        else:
            model = PeftModel.from_pretrained(model, str(folder), adapter_name=name)
    except (RuntimeError, ValueError) as error:
        base = json.loads((folder / "adapter_config.json").read_text())["base_model_name_or_path"]
        raise UsageError(
            f"{folder}: this adapter was trained on {base} and does not fit the model loaded."
        ) from error
    model.set_adapter(name)
    return model.eval()


@contextlib.contextmanager
def disable_adapters(model: VLM) -> Iterator[VLM]:
    """The reference model: the same base weights, with every adapter switched off."""
    with model.disable_adapter() if isinstance(model, PeftModel) else contextlib.nullcontext():
        yield model
