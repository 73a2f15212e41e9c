"""Adapters on a model: a new one, and which of them answers.

The base model is loaded once, by `helpers/models/loading.py`. A role is an adapter on it: the
policy is base + LoRA, the reference is the same base with the adapter off.
`helpers/models/adapter_files.py` saves and loads them.
"""

import contextlib
import re
from collections import Counter
from collections.abc import Iterator

import torch

# Before peft and transformers, since it may import unsloth
from .loading import load_model as load_model

# isort: split
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import PreTrainedModel

from helpers.config import ALL_LINEAR, LoraSettings
from helpers.runtime import compute_dtype, seed_everything

VLM = PreTrainedModel | PeftModel  # a base, or a base with adapters on it
POLICY_ADAPTER = "default"  # peft's name for the first adapter, which TRL relies on


# --- the model, with or without adapters ---


def base_of(model: VLM) -> PreTrainedModel:
    """Return the model as it was loaded; adapters stay where they are."""
    return model.get_base_model() if isinstance(model, PeftModel) else model


def stored_tensors(model: torch.nn.Module) -> Iterator[tuple[str, torch.Tensor]]:
    """Yield all parameters by name, and the scales of those in 4 bits, which are no parameters."""
    for name, parameter in model.named_parameters():
        yield name, parameter
        state = getattr(parameter, "quant_state", None)
        if state is not None:
            yield f"{name}.absmax", state.absmax


def weight_megabytes(model: torch.nn.Module) -> float:
    """Return the size of all parameters and buffers in MB (10⁶ bytes), as stored."""
    tensors = [tensor for _, tensor in stored_tensors(model)]
    return sum(tensor.nbytes for tensor in [*tensors, *model.buffers()]) / 1e6


@contextlib.contextmanager
def evaluation_mode(model: torch.nn.Module) -> Iterator[None]:
    """Switch dropout off inside; afterwards the model trains again, if it did."""
    was_training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(was_training)


def autocast(device: torch.device) -> torch.autocast:
    """Let a GPU compute in this machine's precision; a CPU computes in that of the weights."""
    return torch.autocast(device.type, compute_dtype(), enabled=device.type == "cuda")


@contextlib.contextmanager
def contiguous_head(model: VLM) -> Iterator[None]:
    """Hand the language head its input in one piece inside.

    With `logits_to_keep`, transformers hands it a slice, and torch multiplies that row by row of
    the batch, each time with a copy of the weight.
    """
    head = base_of(model).get_output_embeddings()
    hook = head.register_forward_pre_hook(_make_contiguous)
    try:
        yield
    finally:
        hook.remove()


def _make_contiguous(head: torch.nn.Module, inputs: tuple[torch.Tensor, ...]) -> tuple:
    return tuple(value.contiguous() for value in inputs)


# --- a new adapter ---


def lora_config(model: PreTrainedModel, settings: LoraSettings) -> LoraConfig:
    """Return LoRA on the linear layers of the language model that `settings` names.

    With `vision`, it is also on all outside the language model.
    """
    decoder = model.get_decoder()
    prefix = next(name for name, module in model.named_modules() if module is decoder)
    # One of them as the last part of a name, in any layer of the decoder
    names = "|".join(settings.module_names)
    targets = [rf".*{re.escape(prefix)}\.layers\.\d+\.(.*\.)?({names})"]
    for name, module in model.named_modules():
        is_inside = name.startswith(f"{prefix}.") or name.endswith("lm_head")
        if settings.vision and isinstance(module, torch.nn.Linear) and not is_inside:
            targets.append(re.escape(name))
    return LoraConfig(
        r=settings.r,
        lora_alpha=settings.alpha,
        lora_dropout=settings.dropout,
        target_modules="|".join(targets),
        task_type="CAUSAL_LM",
    )


def add_adapter(
    model: VLM, settings: LoraSettings, seed: int = 0, name: str = POLICY_ADAPTER
) -> PeftModel:
    """Put a fresh LoRA adapter on `model`, switch to it and print how many weights it trains.

    They are in fp32. The adapter starts at zero: until it is trained, the answers are the base's.
    """
    seed_everything(seed)
    config = lora_config(base_of(model), settings)
    if isinstance(model, PeftModel):
        model.add_adapter(name, config)
        model.set_adapter(name)
    else:
        model = get_peft_model(model, config, adapter_name=name)
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.float()
    trained, total = model.get_nb_trainable_parameters()
    print(
        f"LoRA r {settings.r}, α {settings.alpha}: {trained:,} of {total:,} weights are trained "
        f"({trained / total:.1%})."
    )
    missed = _missed_layers(base_of(model), settings)
    if missed:
        print(f"⚠️  LoRA does not reach all of the language model: not {', '.join(missed)}.")
    return model


def _missed_layers(model: PreTrainedModel, settings: LoraSettings) -> list[str]:
    """Return what was asked for and is not reached: "out_proj in 18 layers", "layer 3".

    Asked for all of it, every linear layer of the decoder counts; else a decoder layer counts if
    nothing in it is adapted.
    """
    asked_for_all = {*ALL_LINEAR} <= {*settings.target_modules}
    bare = Counter()  # last name of a linear layer without LoRA → how many there are
    empty = []  # numbers of decoder layers without any
    for number, layer in enumerate(model.get_decoder().layers):
        names = [name for name, _ in layer.named_parameters()]
        if not any("lora_" in name for name in names):
            empty.append(f"layer {number}")
        for name, module in layer.named_modules():
            # one with LoRA is the base_layer of its place, and has two small ones beside it
            is_part_of_lora = "base_layer" in name or "lora_" in name
            if isinstance(module, torch.nn.Linear) and not is_part_of_lora:
                bare[name.split(".")[-1]] += 1
    if asked_for_all:
        return [f"{name} in {count} layers" for name, count in bare.items()]
    return empty


# --- which adapter answers ---


@contextlib.contextmanager
def use_adapter(model: PeftModel, name: str) -> Iterator[PeftModel]:
    """Switch to an adapter inside; afterwards the one before is back, and what was trained."""
    before = model.active_adapter
    trained = {n for n, parameter in model.named_parameters() if parameter.requires_grad}
    model.set_adapter(name)
    try:
        yield model
    finally:
        model.set_adapter(before)
        for parameter_name, parameter in model.named_parameters():
            parameter.requires_grad_(parameter_name in trained)


@contextlib.contextmanager
def disable_adapters(model: VLM) -> Iterator[VLM]:
    """Make `model` the reference inside: the same base weights, with every adapter off."""
    with model.disable_adapter() if isinstance(model, PeftModel) else contextlib.nullcontext():
        yield model
