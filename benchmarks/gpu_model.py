"""What the parts of `benchmarks/gpu.py` have in common: checkpoints, data, settings, machine.

Two models are written: one in the preset's shapes, and one of the same architecture with two
layers, for what is about exactness and not about size. Their tokenizer is the embedded one with a
word for every other id, so that whatever is sampled can be read and scored.
"""

import dataclasses
import json
import logging
import platform
import subprocess
import sys
from collections import Counter
from importlib import metadata
from pathlib import Path
from typing import Any

from helpers import models  # before all that unsloth changes

# isort: split
import datasets
import torch
from torch import Tensor, nn
from transformers import (
    AutoModelForImageTextToText,
    AutoProcessor,
    PretrainedConfig,
    PreTrainedModel,
    ProcessorMixin,
)
from transformers.models.auto.processing_auto import PROCESSOR_MAPPING

from benchmarks.dpo import TINY, TRAFFIC, records_in
from benchmarks.gpu_run import Plan
from helpers import runtime
from helpers.config import DPO_PRESETS, PPO_PRESETS, DPOSettings, PPOSettings
from helpers.data.preferences import read_records
from helpers.data.record import PreferenceRecord
from helpers.data.tasks import Task, tasks_of
from helpers.data.trl_pairs import to_trl
from helpers.files import UsageError
from helpers.machine import memory
from helpers.machine.workload import StageSettings, Workload
from helpers.models import presets
from helpers.models.prompts import answer_ids, render_conversation, tokenize
from helpers.runtime import machine_summary, peak_memory_gb

PACKAGES = (
    "torch",
    "transformers",
    "trl",
    "peft",
    "accelerate",
    "bitsandbytes",
    "unsloth",
    "unsloth_zoo",
    "triton",
)
MARKS = {"image_token": "<|image_pad|>", "video_token": "<|video_pad|>"}
MARKS |= {f"vision_{name}_token": f"<|vision_{name}|>" for name in ("start", "end")}
BATCH = 2  # pairs, as in the preset "t4"
ASKED = 8  # pairs whose lengths the forecast takes, and prompts that are answered as one batch


def prepare(plan: Plan, capped: bool) -> None:
    """What holds for all that follows in this process: the precision, and how much of the GPU may
    be used.
    """
    logging.getLogger("transformers").setLevel(logging.ERROR)
    datasets.disable_progress_bars()
    if torch.cuda.is_available():
        force_dtype(runtime.DTYPES[plan.dtype])
        total = torch.cuda.get_device_properties(0).total_memory / 1e9
        if capped and plan.gigabytes and plan.gigabytes < total:
            torch.cuda.set_per_process_memory_fraction(plan.gigabytes / total)


def force_dtype(dtype: torch.dtype) -> None:
    """Let every module compute in `dtype`, whatever the card could do."""
    for name, module in list(sys.modules.items()):
        if name.partition(".")[0] in ("helpers", "benchmarks") and hasattr(module, "compute_dtype"):
            module.compute_dtype = lambda: dtype


class Peak:
    """Memory since now, in GB (10⁹ bytes)."""

    def __init__(self) -> None:
        if torch.cuda.is_available():
            torch.cuda.reset_peak_memory_stats()

    def figures(self, forecast: memory.PhaseMemory | None = None) -> dict[str, float]:
        found = {"peak_gb": peak_memory_gb()}
        if torch.cuda.is_available():
            found["reserved_gb"] = torch.cuda.max_memory_reserved() / 1e9
        if forecast:
            found["forecast_gb"] = forecast.total - (
                memory.OVERHEAD_GB if torch.cuda.is_available() else 0
            )
            found["forecast_ratio"] = found["peak_gb"] / found["forecast_gb"]
        return found


def dtypes(model: nn.Module, optimizer: Any = None) -> dict[str, int]:
    """How many tensors there are of each: weights, buffers, what 4-bit layers compute in, and the
    optimizer's averages.
    """
    found = Counter(str(tensor.dtype) for tensor in [*model.parameters(), *model.buffers()])
    for module in model.modules():
        state = getattr(getattr(module, "weight", None), "quant_state", None)
        if state is not None and hasattr(
            module, "compute_dtype"
        ):  # peft's wrapper has the state only
            found.update([str(module.compute_dtype), str(state.dtype)])
    for state in optimizer.state.values() if optimizer else ():
        found.update(str(value.dtype) for value in state.values() if isinstance(value, Tensor))
    return {name.removeprefix("torch."): number for name, number in found.items()}


def environment() -> dict[str, Any]:
    """Machine, driver and versions; None for what is not there."""
    found: dict[str, Any] = {
        "machine": machine_summary(),
        "python": platform.python_version(),
        "driver": None,
    }
    found["versions"] = {name: _version(name) for name in PACKAGES}
    found["compute_dtype"] = str(runtime.compute_dtype()).removeprefix("torch.")
    if torch.cuda.is_available():
        properties = torch.cuda.get_device_properties(0)
        found |= {
            "gpu": properties.name,
            "total_gb": properties.total_memory / 1e9,
            "cuda": torch.version.cuda,
        }
        found["capability"] = ".".join(map(str, torch.cuda.get_device_capability()))
        ask = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
        found["driver"] = subprocess.run(ask, capture_output=True, text=True).stdout.strip()
    return found


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def configuration(preset: str, small: bool) -> PretrainedConfig:
    """The preset's; with `small`, two layers of one head each. Raises UsageError if it is not of
    the Qwen-VL family.
    """
    config = presets.config_of(preset)
    if config.model_type not in ("qwen2_vl", "qwen2_5_vl", "qwen3_vl"):
        raise UsageError(
            f"{preset}: random weights are written of Qwen-VL models only, "
            f"this is a {config.model_type}."
        )
    if not small:
        return config
    values = config.to_dict()
    text, vision = values["text_config"], values["vision_config"]
    text |= {
        "hidden_size": 128,
        "intermediate_size": 256,
        "num_hidden_layers": 2,
        "vocab_size": 600,
    }
    text |= {"num_attention_heads": 1, "num_key_value_heads": 1}
    text.pop("layer_types", None)
    # one of these is the width of the tower, the other that of the language model
    width, out = (
        ("embed_dim", "hidden_size")
        if "embed_dim" in vision
        else ("hidden_size", "out_hidden_size")
    )
    vision |= {"depth": 2, "num_heads": 1, width: 80, out: 128}
    others = {
        "intermediate_size": 160,
        "fullatt_block_indexes": [1],
        "deepstack_visual_indexes": [0, 1],
    }
    vision |= {name: value for name, value in others.items() if name in vision}
    return type(config).from_dict(values)


def processor_of(config: PretrainedConfig) -> ProcessorMixin:
    """Of the architecture's own class, with the embedded tokenizer and images cut as `config` wants
    them.
    """
    embedded, vision = AutoProcessor.from_pretrained(TINY), config.vision_config
    images, videos = embedded.image_processor, embedded.video_processor
    for part in (images, videos):
        part.patch_size, part.merge_size = vision.patch_size, vision.spatial_merge_size
    return PROCESSOR_MAPPING[type(config)](
        images, embedded.tokenizer, videos, chat_template=embedded.chat_template
    )


def write_model(preset: str, folder: Path, small: bool) -> int:
    """Random weights from seed 0 in fp16 with a processor, as a checkpoint; returns how many
    weights.
    """
    config = configuration(preset, small)
    processor = processor_of(config)
    for name, mark in MARKS.items():
        setattr(config, f"{name}_id", processor.tokenizer.convert_tokens_to_ids(mark))
    text = config.get_text_config()
    text.bos_token_id, text.eos_token_id = None, processor.tokenizer.eos_token_id
    return save_random(config, processor, folder, torch.float16)


def save_random(
    config: PretrainedConfig, processor: ProcessorMixin, folder: Path, dtype: torch.dtype
) -> int:
    """A checkpoint of random weights from seed 0 with that processor; returns how many weights."""
    torch.manual_seed(0)
    with runtime.device():
        model = AutoModelForImageTextToText.from_config(config, dtype=dtype)
    model.generation_config.eos_token_id = processor.tokenizer.eos_token_id
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    _name_all_ids(folder / "tokenizer.json", config.get_text_config().vocab_size)
    return model.num_parameters()


def _name_all_ids(path: Path, vocabulary: int) -> None:
    """A word for each id that the tokenizer does not know. No text becomes such a token: there are
    no merges.
    """
    content = json.loads(path.read_text(encoding="utf-8"))
    known = content["model"]["vocab"]
    known |= {
        token["content"]: token["id"] for token in content["added_tokens"]
    }  # else they are renumbered
    known |= {f"Ġw{number}": number for number in range(len(known), vocabulary)}
    path.write_text(json.dumps(content, ensure_ascii=False), encoding="utf-8")


def load_model(plan: Plan, name: str = "model") -> tuple[PreTrainedModel, ProcessorMixin]:
    return models.load_model(plan.folder / name, four_bit=True, max_pixels=plan.side**2)


def records_of(number: int) -> list[PreferenceRecord]:
    return read_records(TRAFFIC / "preferences_train.jsonl")[:number]


def dataset_of(plan: Plan, number: int) -> datasets.Dataset:
    """`number` pairs, each of another scene."""
    return to_trl(records_in(plan.folder, number), "extremes")


def questions(plan: Plan, number: int) -> list[Task]:
    return tasks_of(records_in(plan.folder, number))


def dpo_settings(plan: Plan, **changes: Any) -> DPOSettings:
    """The preset "t4" without accumulation and with a learning rate at which 20 steps change
    something.
    """
    settings = dataclasses.replace(
        DPO_PRESETS["t4"], batch_size=BATCH, accumulation=1, learning_rate=1e-4
    )
    return dataclasses.replace(settings, **({"steps": plan.steps, "checkpoint_steps": 0} | changes))


def ppo_settings(plan: Plan, **changes: Any) -> PPOSettings:
    """The preset "t4" with a critic, the part of PPO that needs most memory."""
    changes = {"iterations": plan.iterations, "max_new_tokens": 4 if plan.toy else 20} | changes
    return dataclasses.replace(PPO_PRESETS["t4"], **({"critic_layers": 3} | changes))


def forecast(plan: Plan, settings: StageSettings, processor: ProcessorMixin) -> memory.PhaseMemory:
    """Forecast the memory of the checkpoint that was written, for the lengths of its prompts and
    answers.
    """
    tasks, rows = questions(plan, ASKED), dataset_of(plan, ASKED)
    texts = [render_conversation(processor, task.turns, 0) for task in tasks]
    prompt = (
        tokenize(processor, texts, [[] for _ in texts])["input_ids"].shape[1] + 2
    )  # marks around the image
    answers = [
        len(answer_ids(processor, row[side][0]["content"]))
        for row in rows
        for side in ("chosen", "rejected")
    ]
    workload = Workload(
        str(plan.folder / "model"), plan.side, plan.side, prompt_tokens=prompt,
        answer_tokens=getattr(settings, "max_new_tokens", max(answers)),
        compute_bytes=2 if torch.cuda.is_available() else 4,
        on_gpu=torch.cuda.is_available(),
    )  # fmt: skip
    return memory.forecast_memory(workload, settings)
