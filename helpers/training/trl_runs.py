"""What runs of TRL's trainers share here: an adapter in fp32, checkpoints, a bar.

`TRLRun` stands before a trainer of TRL in the list of bases (`VLMDPOTrainer`, `VLMSFTTrainer`) and
takes back what TRL 1.14 does to a base with one adapter: a needless frozen copy of a fresh adapter,
and a cast of the adapter to bf16, which a T4 cannot train. What a batch of our collators holds, and
that a run goes on from its last whole checkpoint, is said here once for all of them.
"""

import time
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from torch import Tensor
from tqdm.auto import tqdm
from transformers import (
    PrinterCallback,
    ProcessorMixin,
    ProgressCallback,
    TrainerCallback,
    TrainerState,
)
from transformers.utils.notebook import NotebookProgressCallback

from helpers import models
from helpers.config import DPOSettings, LoraSettings, SFTSettings
from helpers.files import UsageError, read_json, write_json
from helpers.machine import TRAINER_STATE, checkpoint_step, seal_checkpoint
from helpers.models import VLM
from helpers.runtime import compute_dtype, device, has_cuda, tensors_hash

from .checkpoint import KEPT_CHECKPOINTS, Checkpoints, alone_in_its_folder

# TRL's name for a frozen copy of an adapter that was trained before.
REFERENCE_ADAPTER = "ref"

# In a checkpoint, beside what TRL writes: how long the run has taken until then.
TIME_FILE = "time.json"


class StopsAskedFor(TrainerCallback):
    """Notes that one of the callbacks before it has stopped the run."""

    def __init__(self):
        self.asked = False

    def on_step_end(self, args, state, control, **kwargs):
        self.asked |= control.should_training_stop

    def on_log(self, args, state, control, **kwargs):
        self.asked |= control.should_training_stop


class TRLRun:
    """The part of a trainer that every method has; `options` are TRL's."""

    def __init__(self, model: PeftModel, checkpoints: Checkpoints, **options: Any):
        weights, fresh = trained_weights(model), is_fresh(model)
        super().__init__(model=model, **options)
        if fresh and REFERENCE_ADAPTER in model.peft_config:
            # without the copy, TRL switches the adapter off: the reference is the base
            model.delete_adapter(REFERENCE_ADAPTER)
        undo_casts(model, weights)
        self.checkpoints = checkpoints
        # a line or a table row for each step
        for callback in (PrinterCallback, ProgressCallback, NotebookProgressCallback):
            self.remove_callback(callback)
        # the last of them, which sees what all others have asked for
        self.stops = StopsAskedFor()
        self.add_callback(self.stops)
        self._started = time.perf_counter()
        self._seconds_before = 0.0

    def _prepare_inputs(self, inputs):
        inputs = super()._prepare_inputs(inputs)
        if "packed" in inputs:
            inputs["packed"] = inputs["packed"].to(self.accelerator.device)
        return inputs

    def seconds(self) -> float:
        """How long the run has taken, its parts before a resume included, watching left out."""
        callbacks = self.callback_handler.callbacks
        watching = sum(getattr(callback, "watching", 0) for callback in callbacks)
        return self._seconds_before + time.perf_counter() - self._started - watching

    def trained_examples(self) -> int:
        """Pairs or answers that the steps so far have seen, in all processes together."""
        args = self.args
        a_step = args.train_batch_size * args.gradient_accumulation_steps * args.world_size
        return self.state.global_step * a_step

    @alone_in_its_folder
    def run_to_end(self) -> list[dict[str, float]]:
        """Train from the last whole checkpoint, or from the start; what was finished is loaded.

        Returns the log, a dictionary for each step. Raises UsageError for a run that ends before
        its steps though no callback has stopped it: transformers takes a StopIteration in the data
        for their end, and says nothing.
        """
        self._started = time.perf_counter()
        last = self.checkpoints.newest()
        if last is None:
            # a new run
            self.train()
        else:
            self.checkpoints.announce(last, self.args.max_steps)
            self._go_on(last)
        done, planned = self.state.global_step, self.args.max_steps
        if done < planned and not self.stops.asked:
            raise UsageError(
                f"training ended after {done} of {planned} steps, and nothing asked it to: reading "
                "the data broke off (StopIteration). Look at what reads images and answers; the "
                "last checkpoint is kept."
            )
        self.model.eval()
        return [dict(row) for row in self.state.log_history if "loss" in row]

    def _go_on(self, last: Path) -> None:
        """Finish a run that was cut off, or load one that has come to its end."""
        if checkpoint_step(last) < self.args.max_steps:
            self.train(resume_from_checkpoint=str(last))
        else:
            self._load_from_checkpoint(str(last))
            self.state = TrainerState.load_from_json(str(last / TRAINER_STATE))

    def _save_checkpoint(self, model, trial):
        """Write TRL's files, and when all processes have written theirs, what run they are of."""
        super()._save_checkpoint(model, trial)
        self.accelerator.wait_for_everyone()
        if self.accelerator.is_main_process:
            checkpoint = self.checkpoints.folder / f"checkpoint-{self.state.global_step}"
            write_json(checkpoint / TIME_FILE, {"seconds": self.seconds()})
            for callback in self._callbacks_with("keep"):
                callback.keep(checkpoint)
            seal_checkpoint(checkpoint, self.checkpoints.identity)

    def _load_from_checkpoint(self, resume_from_checkpoint, model=None):
        """Load the adapter: of one with a frozen copy, transformers would load the copy alone."""
        checkpoint = Path(resume_from_checkpoint)
        if self.is_fsdp_enabled:
            # the parts of one model in several processes
            super()._load_from_checkpoint(resume_from_checkpoint, model)
        else:
            policy = self.accelerator.unwrap_model(model or self.model)
            policy.load_adapter(str(checkpoint), models.POLICY_ADAPTER, is_trainable=True)
        self._seconds_before = read_json(checkpoint / TIME_FILE)["seconds"]
        # TRL logs a running sum, and would begin it anew
        state = TrainerState.load_from_json(str(checkpoint / TRAINER_STATE))
        self._total_train_tokens = state.log_history[-1]["num_tokens"]
        for callback in self._callbacks_with("go_on_from"):
            callback.go_on_from(checkpoint)

    def _callbacks_with(self, method: str) -> list[TrainerCallback]:
        """Those that keep something in checkpoints, by `keep` and `go_on_from` of a folder."""
        return [c for c in self.callback_handler.callbacks if hasattr(c, method)]

    def create_model_card(self, *args, **kwargs):
        """Write none: TRL would put its own into the run's folder at every checkpoint."""


# --- What a trainer is made of ---


def common_options(
    settings: DPOSettings | SFTSettings, seed: int, folder: Path | None
) -> dict[str, Any]:
    """The settings that all methods have, in TRL's words, as a VLM on a CPU or a T4 needs them."""
    dtype = compute_dtype()
    return {
        # it must have one, and writes nothing there without checkpoints
        "output_dir": str(folder or Path.cwd()),
        "learning_rate": settings.learning_rate,
        "max_steps": settings.steps,
        "per_device_train_batch_size": settings.batch_size,
        "gradient_accumulation_steps": settings.accumulation,
        "warmup_steps": round(settings.warmup_share * settings.steps),
        "lr_scheduler_type": "cosine",
        # TRL's default of 1024 cuts image tokens
        "max_length": None,
        "gradient_checkpointing": settings.gradient_checkpointing,
        "use_cpu": device().type == "cpu",
        "fp16": dtype == torch.float16,
        "bf16": dtype == torch.bfloat16,
        "logging_steps": 1,
        # else the log would have a number where the loss is none
        "logging_nan_inf_filter": False,
        "save_strategy": "steps" if folder else "no",
        # after the last step there is one in any case
        "save_steps": settings.checkpoint_steps or settings.steps,
        "save_total_limit": KEPT_CHECKPOINTS,
        "seed": seed,
        "data_seed": seed,
        # the collator picks what it needs
        "remove_unused_columns": False,
        "dataloader_pin_memory": has_cuda(),
    }


def with_one_adapter(
    model: VLM, processor: ProcessorMixin, lora: LoraSettings, seed: int
) -> PeftModel:
    """The model with a fresh adapter, unless it has one to go on with, and no frozen copy of it."""
    if not isinstance(model, PeftModel):
        model = models.add_adapter(model, lora, seed)
    if REFERENCE_ADAPTER in model.peft_config:
        # of a round before
        model.delete_adapter(REFERENCE_ADAPTER)
    _align_special_tokens(model, processor)
    return model


def as_reference(model: PeftModel) -> AbstractContextManager:
    """The model as the reference inside: the frozen copy of an adapter, or the base alone."""
    if REFERENCE_ADAPTER in model.peft_config:
        return models.use_adapter(model, REFERENCE_ADAPTER)
    return models.disable_adapters(model)


def is_fresh(model: PeftModel) -> bool:
    """Is the adapter at its start, where it changes nothing?"""
    added = [p for n, p in model.named_parameters() if p.requires_grad and "lora_B" in n]
    return not any(weight.any() for weight in added)


def trained_weights(model: PeftModel) -> dict[str, Tensor]:
    """Copies of the weights that are trained, by their names."""
    return {n: p.detach().clone() for n, p in model.named_parameters() if p.requires_grad}


def adapter_hash(model: PeftModel) -> str:
    """What a run begins with: a fresh adapter, or the hash of one that was trained before."""
    if is_fresh(model):
        return "fresh"
    return tensors_hash(sorted(trained_weights(model).items()))


def undo_casts(model: PeftModel, weights: dict[str, Tensor]) -> None:
    """Undo TRL's cast to bf16, in the adapter and in its frozen copy."""
    for name, parameter in model.named_parameters():
        source = name.replace(f".{REFERENCE_ADAPTER}.", f".{models.POLICY_ADAPTER}.")
        if source in weights:
            parameter.data = weights[source] if source == name else weights[source].clone()
            parameter.requires_grad_(source == name)


def _align_special_tokens(model: PeftModel, processor: ProcessorMixin) -> None:
    """Tell the model's configs the tokenizer's special tokens; the Trainer warns as it does so."""
    for name in ("bos_token_id", "pad_token_id", "eos_token_id"):
        token = getattr(processor.tokenizer, name)
        setattr(model.config, name, token)
        # generation may stop at several tokens
        if name != "eos_token_id":
            setattr(model.generation_config, name, token)


class ProgressBar(TrainerCallback):
    """One bar with the loss of the step and an accuracy, which the log has under `figure`."""

    def __init__(self, method: str = "DPO", figure: str = "rewards/accuracies"):
        self.method = method
        self.figure = figure

    def on_train_begin(self, args, state, control, **kwargs):
        self.bar = tqdm(
            total=state.max_steps,
            initial=state.global_step,
            desc=self.method,
            unit="step",
            mininterval=1,
        )

    def on_log(self, args, state, control, logs=None, **kwargs):
        if logs and self.figure in logs:
            self.bar.set_postfix(
                loss=f"{logs['loss']:.3f}",
                accuracy=f"{logs[self.figure]:.2f}",
                refresh=False,
            )
            self.bar.update(state.global_step - self.bar.n)

    def on_train_end(self, args, state, control, **kwargs):
        self.bar.close()
