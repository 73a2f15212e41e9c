"""DPO of a vision-language model with `trl.DPOTrainer` (Rafailov et al. 2023, arXiv 2305.18290).

TRL does the training; this module hands it a base with one adapter and takes care of what TRL 1.14
does to it: a frozen copy of the adapter (here the reference is the base with the adapter off) and a
cast of the adapter to bf16 (which a T4 cannot train). Taught in notebook 04.
"""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from datasets import Dataset
from peft import PeftModel
from tqdm.auto import tqdm
from transformers import PreTrainedModel, PrinterCallback, ProcessorMixin, ProgressCallback, TrainerCallback
from transformers.utils.notebook import NotebookProgressCallback
from trl import DPOConfig, DPOTrainer

from helpers import models
from helpers.config import DPOSettings
from helpers.runtime import compute_dtype


@dataclass(frozen=True)
class DPORun:
    """What a training run leaves: its log (one dictionary a logged step) and its duration."""

    log: list[dict[str, float]]
    seconds: float
    trained_pairs: int


def dpo_config(settings: DPOSettings, seed: int, output_dir: Path) -> DPOConfig:
    """`settings` in TRL's words, with the defaults that a VLM on a CPU or a T4 needs."""
    dtype = compute_dtype()
    with_sft = settings.sft_weight > 0
    return DPOConfig(
        output_dir=str(output_dir),
        beta=settings.beta,
        loss_type=["sigmoid", "sft"] if with_sft else ["sigmoid"],
        loss_weights=[1.0, settings.sft_weight] if with_sft else None,
        learning_rate=settings.learning_rate,
        max_steps=settings.steps,
        per_device_train_batch_size=settings.batch_size,
        per_device_eval_batch_size=settings.batch_size,
        gradient_accumulation_steps=settings.accumulation,
        warmup_steps=round(settings.warmup_share * settings.steps),
        lr_scheduler_type="cosine",
        max_length=None,  # TRL's default of 1024 cuts image tokens
        gradient_checkpointing=settings.gradient_checkpointing,
        use_cpu=not torch.cuda.is_available(),
        fp16=dtype == torch.float16,
        bf16=dtype == torch.bfloat16,
        logging_steps=1,
        save_strategy="no",
        report_to=[],
        seed=seed,
        data_seed=seed,
        dataloader_pin_memory=torch.cuda.is_available(),
    )


def make_trainer(
    model: PreTrainedModel | PeftModel,
    processor: ProcessorMixin,
    dataset: Dataset,
    settings: DPOSettings,
    *,
    seed: int = 0,
    output_dir: Path,
    callbacks: Sequence[TrainerCallback] = (),
) -> DPOTrainer:
    """A TRL trainer for `model`, which gets a fresh adapter unless it has one to go on with.

    dataset: columns images, prompt, chosen, rejected (`preferences.to_trl`). The adapter is in fp32
    and the only thing that is trained; the reference is the base with the adapter off.
    """
    if not isinstance(model, PeftModel):
        model = models.add_adapter(model, settings.lora, seed)
    _align_special_tokens(model, processor)
    weights = {n: p.detach().clone() for n, p in model.named_parameters() if p.requires_grad}
    trainer = DPOTrainer(
        model=model,
        args=dpo_config(settings, seed, output_dir),
        train_dataset=dataset,
        processing_class=processor,
        callbacks=list(callbacks),
    )
    for callback in (PrinterCallback, ProgressCallback, NotebookProgressCallback):
        trainer.remove_callback(callback)  # a line or a table row for each step
    trainer.add_callback(ProgressBar())
    if "ref" in model.peft_config:  # TRL's frozen copy of the adapter; without it, it switches adapters off
        model.delete_adapter("ref")
    for name, parameter in model.named_parameters():
        if name in weights:
            parameter.data = weights[name]
    return trainer


def _align_special_tokens(model: PeftModel, processor: ProcessorMixin) -> None:
    """Tell the model's configs the tokenizer's special tokens; the Trainer does it too, with a warning."""
    for name in ("bos_token_id", "pad_token_id", "eos_token_id"):
        token = getattr(processor.tokenizer, name)
        setattr(model.config, name, token)
        if name != "eos_token_id":  # generation may stop at several tokens
            setattr(model.generation_config, name, token)


class ProgressBar(TrainerCallback):
    """One bar with the loss and the accuracy of the step."""

    def on_train_begin(self, args, state, control, **kwargs):
        self.bar = tqdm(total=state.max_steps, initial=state.global_step, desc="DPO", unit="step", mininterval=1)

    def on_log(self, args, state, control, logs=None, **kwargs):
        if logs and "rewards/accuracies" in logs:
            self.bar.set_postfix(
                loss=f"{logs['loss']:.3f}", accuracy=f"{logs['rewards/accuracies']:.2f}", refresh=False
            )
            self.bar.update(state.global_step - self.bar.n)

    def on_train_end(self, args, state, control, **kwargs):
        self.bar.close()


def train(trainer: DPOTrainer) -> DPORun:
    """Run the training to its end and collect its log."""
    started = time.perf_counter()
    trainer.train()
    trainer.model.eval()
    log = [{k: v for k, v in row.items()} for row in trainer.state.log_history if "loss" in row]
    pairs = trainer.state.global_step * trainer.args.train_batch_size * trainer.args.gradient_accumulation_steps
    return DPORun(log, time.perf_counter() - started, pairs)
