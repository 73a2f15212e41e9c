"""DPO of a vision-language model with `trl.DPOTrainer` (Rafailov et al. 2023, arXiv 2305.18290).

TRL does the training: losses, logging, checkpoints, devices. This module hands it

* batches in which image and prompt of a pair stand once (`helpers/models/shared_prefix.py`), and in place of the
  model a function from such a batch to the logits of the answers, which is all that TRL looks at;
* reference log-probabilities that were computed once (`helpers/models/caches.py`);
* a base with one adapter, and takes back what TRL 1.14 does to that: a needless frozen copy of a fresh
  adapter, and a cast of the adapter to bf16, which a T4 cannot train.

Taught in notebook 04.
"""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from peft import PeftModel
from torch import Tensor
from tqdm.auto import tqdm
from transformers import PrinterCallback, ProcessorMixin, ProgressCallback, TrainerCallback
from transformers.modeling_outputs import CausalLMOutput
from transformers.utils.notebook import NotebookProgressCallback
from trl import DPOConfig, DPOTrainer

from helpers import models
from helpers.config import DPOSettings
from helpers.files import UsageError
from helpers.losses import anchor_loss, completion_logps, dpo_loss
from helpers.machine import last_checkpoint
from helpers.models import VLM, PackedAnswers, Packer, ReferenceLogps, answer_logits, reference_hash
from helpers.runtime import compute_dtype

from .collators import PairCollator

REFERENCE_ADAPTER = "ref"  # TRL's name for a frozen copy of an adapter that was trained before


@dataclass(frozen=True)
class DPORun:
    """What a training run leaves: its log (one dictionary a logged step) and its duration."""

    log: list[dict[str, float]]
    seconds: float  # without what callbacks spent on watching
    trained_pairs: int


def dpo_config(settings: DPOSettings, seed: int, output_dir: Path) -> DPOConfig:
    """`settings` in TRL's words, with the defaults that a VLM on a CPU or a T4 needs."""
    dtype = compute_dtype()
    sft = {"sft": settings.sft_weight} if settings.sft_weight else {}
    losses = dict(zip(settings.losses, settings.loss_weights, strict=True)) | sft
    return DPOConfig(
        output_dir=str(output_dir),
        beta=settings.beta,
        loss_type=list(losses),
        loss_weights=list(losses.values()),
        label_smoothing=settings.label_smoothing,
        learning_rate=settings.learning_rate,
        max_steps=settings.steps,
        per_device_train_batch_size=settings.batch_size,
        per_device_eval_batch_size=settings.batch_size,
        gradient_accumulation_steps=settings.accumulation,
        warmup_steps=round(settings.warmup_share * settings.steps),
        lr_scheduler_type="cosine",
        disable_dropout=False,  # else TRL takes settings.lora.dropout away
        max_length=None,  # TRL's default of 1024 cuts image tokens
        gradient_checkpointing=settings.gradient_checkpointing,
        use_cpu=not torch.cuda.is_available(),
        fp16=dtype == torch.float16,
        bf16=dtype == torch.bfloat16,
        logging_steps=1,
        save_strategy="steps" if settings.checkpoint_steps else "no",
        save_steps=settings.checkpoint_steps or 500,
        save_total_limit=2,
        report_to=[],
        seed=seed,
        data_seed=seed,
        remove_unused_columns=False,  # the collator picks what it needs
        dataloader_pin_memory=torch.cuda.is_available(),
    )


class AnswerForward:
    """The model as TRL sees it: a batch of `PairCollator` → logits of chosen and rejected answers, (2n, seq, vocab)."""

    def __init__(self, model: torch.nn.Module):
        self.model, self.spoilt_logps = model, None

    def __call__(self, packed: PackedAnswers, input_ids: Tensor, **_) -> CausalLMOutput:
        logits, pairs = answer_logits(self.model, packed), len(input_ids)
        if pairs < len(logits):
            self.spoilt_logps = completion_logps(
                logits[pairs:], packed.ids[pairs:], packed.mask[pairs:]
            )
        return CausalLMOutput(
            logits=logits[:pairs].float()
        )  # else TRL takes log-softmax in 16 bits


class VLMDPOTrainer(DPOTrainer):
    """TRL's trainer on batches of `PairCollator`; with TRL's own collator it is TRL's trainer.

    It also adds the image terms of mDPO, since they need an answer that TRL does not know of.
    """

    image_weight = anchor_weight = 0.0

    def forward(self, model: torch.nn.Module, batch: dict[str, Any]) -> Tensor:
        """Logits of the answers of any batch, at the places of batch["input_ids"], (2n, seq, vocab)."""
        skipped = {"completion_mask", "ref_chosen_logps", "ref_rejected_logps", "keys"}
        inputs = {name: value for name, value in batch.items() if name not in skipped}
        return (AnswerForward(model) if "packed" in batch else model)(**inputs).logits

    def _prepare_inputs(self, inputs):
        inputs = super()._prepare_inputs(inputs)
        return (
            inputs | {"packed": inputs["packed"].to(self.accelerator.device)}
            if "packed" in inputs
            else inputs
        )

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        if "packed" not in inputs:
            return super().compute_loss(model, inputs, return_outputs, num_items_in_batch)
        reference, policy = self._reference(inputs), AnswerForward(model)
        inputs = inputs | {
            "ref_chosen_logps": reference[:, 0],
            "ref_rejected_logps": reference[:, 1],
        }
        loss, outputs = super().compute_loss(policy, inputs, True, num_items_in_batch)
        if self.image_weight or self.anchor_weight:
            loss = loss + self._image_terms(inputs, outputs.logits, policy.spoilt_logps, reference)
        return (loss, outputs) if return_outputs else loss

    def _reference(self, inputs: dict[str, Any]) -> Tensor:
        """Log-probabilities under the reference, (n, 2), or (n, 3) with spoilt images."""
        store: ReferenceLogps = self.data_collator.reference
        kept = store.get(inputs["keys"])
        if kept is None:
            forward, was_training = AnswerForward(self.model), self.model.training
            self.model.eval()  # a copy of an adapter with dropout is a reference without
            columns = [*self.compute_ref_log_probs(forward, inputs)]
            self.model.train(was_training)
            kept = torch.stack(
                columns + ([] if forward.spoilt_logps is None else [forward.spoilt_logps]), dim=1
            )
            store.add(inputs["keys"], kept)
        return kept.to(self.accelerator.device)

    def _image_terms(
        self, inputs: dict[str, Any], logits: Tensor, spoilt: Tensor, reference: Tensor
    ) -> Tensor:
        n = len(spoilt)
        chosen = completion_logps(
            logits[:n], inputs["input_ids"][:n], inputs["completion_mask"][:n]
        )
        image, margin = dpo_loss(chosen, spoilt, reference[:, 0], reference[:, 2], self.beta)
        metrics = self._metrics["train" if self.model.training else "eval"]
        metrics["image/accuracies"].append(float((margin > 0).float().mean()))
        metrics["image/margins"].append(float(self.beta * margin.mean()))
        return self.image_weight * image + self.anchor_weight * anchor_loss(
            chosen, reference[:, 0], self.beta
        )


def dpo_trainer(
    model: VLM,
    processor: ProcessorMixin,
    dataset: Dataset,
    settings: DPOSettings,
    *,
    seed: int = 0,
    output_dir: Path,
    callbacks: Sequence[TrainerCallback] = (),
    cache: Path | None = None,
    packs: bool | None = None,
) -> VLMDPOTrainer:
    """A TRL trainer for `model`, which gets a fresh adapter unless it has one to go on with.

    dataset: columns images, prompt, chosen, rejected (`preferences.to_trl`). The adapter is in fp32
    and the only thing that is trained. The reference is the model as it is handed over: the base
    with the adapter off, or a frozen copy of an adapter that was trained before. Image features and
    reference log-probabilities are kept in the folder `cache`, else in memory. `packs`: image
    and prompt of a pair once, or TRL's own layout; None tries whether the model can.
    """
    if not isinstance(model, PeftModel):
        model = models.add_adapter(model, settings.lora, seed)
    if REFERENCE_ADAPTER in model.peft_config:
        model.delete_adapter(REFERENCE_ADAPTER)
    _align_special_tokens(model, processor)
    weights = {n: p.detach().clone() for n, p in model.named_parameters() if p.requires_grad}
    fresh = not any(weight.any() for name, weight in weights.items() if "lora_B" in name)
    folder = cache / "features" if cache else None
    # on the CPU, where TRL's loader pins batches; `_prepare_inputs` moves them
    packer = Packer(model, processor, cache=folder, packs=packs, device="cpu")
    if not packer.packs and (settings.image_weight or settings.anchor_weight):
        raise UsageError(
            "image_weight and anchor_weight need one row per image, which this model cannot do: set 0."
        )
    trainer = VLMDPOTrainer(
        model=model,
        args=dpo_config(settings, seed, output_dir),
        train_dataset=dataset,
        processing_class=processor,
        callbacks=list(callbacks),
    )
    for callback in (PrinterCallback, ProgressCallback, NotebookProgressCallback):
        trainer.remove_callback(callback)  # a line or a table row for each step
    trainer.add_callback(ProgressBar())
    if fresh:  # without the copy, TRL switches the adapter off
        model.delete_adapter(REFERENCE_ADAPTER)
    _restore(model, weights)
    if packer.packs:
        _use_packed(trainer, packer, settings, None if fresh else REFERENCE_ADAPTER, cache)
    return trainer


def _restore(model: PeftModel, weights: dict[str, Tensor]) -> None:
    """Undo TRL's cast to bf16, in the adapter and in its frozen copy."""
    for name, parameter in model.named_parameters():
        source = name.replace(f".{REFERENCE_ADAPTER}.", f".{models.POLICY_ADAPTER}.")
        if source in weights:
            parameter.data = weights[source] if source == name else weights[source].clone()
            parameter.requires_grad_(source == name)


def _use_packed(
    trainer: VLMDPOTrainer,
    packer: Packer,
    settings: DPOSettings,
    reference: str | None,
    cache: Path | None,
) -> None:
    store = ReferenceLogps(
        reference_hash(trainer.model, trainer.processing_class, reference), cache
    )
    spoilt = bool(settings.image_weight or settings.anchor_weight)
    trainer.data_collator = PairCollator(packer, store, spoilt)
    trainer.image_weight, trainer.anchor_weight = settings.image_weight, settings.anchor_weight
    trainer.precompute_ref_logps = (
        True  # TRL takes them from the batch; as an argument it refuses this for images
    )


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
        self.bar = tqdm(
            total=state.max_steps, initial=state.global_step, desc="DPO", unit="step", mininterval=1
        )

    def on_log(self, args, state, control, logs=None, **kwargs):
        if logs and "rewards/accuracies" in logs:
            self.bar.set_postfix(
                loss=f"{logs['loss']:.3f}",
                accuracy=f"{logs['rewards/accuracies']:.2f}",
                refresh=False,
            )
            self.bar.update(state.global_step - self.bar.n)

    def on_train_end(self, args, state, control, **kwargs):
        self.bar.close()


def train_dpo(trainer: DPOTrainer, resume: bool = False) -> DPORun:
    """Run the training to its end and collect its log; `resume` goes on from its last whole checkpoint, if there is one."""
    started = time.perf_counter()
    last = last_checkpoint(Path(trainer.args.output_dir)) if resume else None
    trainer.train(resume_from_checkpoint=str(last[1]) if last else None)
    trainer.model.eval()
    log = [{k: v for k, v in row.items()} for row in trainer.state.log_history if "loss" in row]
    args = trainer.args
    pairs = (
        trainer.state.global_step
        * args.train_batch_size
        * args.gradient_accumulation_steps
        * args.world_size
    )
    watching = sum(
        getattr(callback, "watching", 0) for callback in trainer.callback_handler.callbacks
    )
    return DPORun(log, time.perf_counter() - started - watching, pairs)
