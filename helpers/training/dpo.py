"""DPO of a vision-language model with `trl.DPOTrainer` (Rafailov et al. 2023, arXiv 2305.18290).

TRL does the training: the loop, the loss −log σ(β · margin), logging, devices. This module hands it

* batches in which image and prompt of a pair stand once (`helpers/models/shared_prefix.py`), and
  in place of the model a function from such a batch to the logits of the answers, which is all
  that TRL looks at;
* reference log-probabilities that were computed once (`helpers/models/caches.py`);
* a base with one adapter, and takes back what TRL 1.14 does to that: a needless frozen copy of a
  fresh adapter, and a cast of the adapter to bf16, which a T4 cannot train.

One step is `VLMDPOTrainer.compute_loss`: policy, reference, TRL's loss, the image terms of mDPO.
Taught in notebook 04.
"""

import re
import time
from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from datasets import Dataset
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
from trl import DPOConfig, DPOTrainer

from helpers import models
from helpers.config import DPOSettings
from helpers.files import UsageError, read_json, write_json
from helpers.losses import anchor_loss, completion_logps, dpo_loss
from helpers.machine import TRAINER_STATE, Identity, checkpoint_step, seal_checkpoint
from helpers.models import VLM, Packer, ReferenceLogps, reference_hash
from helpers.runtime import compute_dtype, tensors_hash

from .checkpoint import KEPT_CHECKPOINTS, Checkpoints, run_identity
from .collators import AnswerForward, PairCollator

# TRL's name for a frozen copy of an adapter that was trained before.
REFERENCE_ADAPTER = "ref"

# In a checkpoint, beside what TRL writes: how long the run has taken until then.
TIME_FILE = "time.json"

# What TRL can train with: its own list stands in the help of the option.
_LOSS_HELP = DPOConfig.__dataclass_fields__["loss_type"].metadata["help"]
DPO_LOSSES = tuple(re.findall(r"`'(\w+)'`", _LOSS_HELP))


@dataclass(frozen=True)
class DPORun:
    """What a training run leaves: its log (one dictionary a logged step) and its duration."""

    log: list[dict[str, float]]
    seconds: float  # without what callbacks spent on watching
    trained_pairs: int


# --- The loss ---


class ImageTerms(NamedTuple):
    """What mDPO adds to DPO (Wang et al. 2024, arXiv 2406.11839)."""

    conditional: Tensor  # (): the chosen answer is likelier with its image than with a spoilt one
    anchor: Tensor  # (): it does not become less likely than under the reference
    margin: Tensor  # (pairs,): of the right image over the spoilt one


def image_terms(
    chosen_logps: Tensor, spoilt_logps: Tensor, reference: Tensor, beta: float
) -> ImageTerms:
    """Compute mDPO's terms.

    chosen_logps, spoilt_logps: of the chosen answers, given the image and given its spoilt copy,
    (pairs,); reference: what the reference says of chosen, rejected and spoilt, (pairs, 3).
    """
    chosen, spoilt = reference[:, 0], reference[:, 2]
    conditional, margin = dpo_loss(chosen_logps, spoilt_logps, chosen, spoilt, beta)
    return ImageTerms(conditional, anchor_loss(chosen_logps, chosen, beta), margin)


class VLMDPOTrainer(DPOTrainer):
    """TRL's trainer on batches of `PairCollator`; without one it is TRL's trainer with TRL's own.

    It also adds the image terms of mDPO, since they need an answer that TRL does not know of.
    options: TRL's.
    """

    def __init__(
        self,
        model: PeftModel,
        settings: DPOSettings,
        checkpoints: Checkpoints,
        collator: PairCollator | None,
        **options: Any,
    ):
        adapter, fresh = _trained_weights(model), _is_fresh(model)
        super().__init__(model=model, data_collator=collator, **options)
        if fresh:
            # without the copy, TRL switches the adapter off: the reference is the base
            model.delete_adapter(REFERENCE_ADAPTER)
        undo_casts(model, adapter)
        self.checkpoints = checkpoints
        self.image_weight = settings.image_weight
        self.anchor_weight = settings.anchor_weight
        # TRL takes them from the batch then; as an argument it refuses this for images
        self.precompute_ref_logps = collator is not None
        # a line or a table row for each step
        for callback in (PrinterCallback, ProgressCallback, NotebookProgressCallback):
            self.remove_callback(callback)
        self._started = time.perf_counter()
        self._seconds_before = 0.0

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        """Compute the loss of one batch, (). A batch of TRL's own collator is left to TRL."""
        if "packed" not in inputs:
            return super().compute_loss(model, inputs, return_outputs, num_items_in_batch)
        # The reference: its log-probabilities are known from an earlier epoch, or asked once.
        reference = self._reference(inputs)
        inputs = inputs | {
            "ref_chosen_logps": reference[:, 0],
            "ref_rejected_logps": reference[:, 1],
        }
        # The policy, and TRL's losses with their weights.
        loss, outputs = super().compute_loss(AnswerForward(model), inputs, True, num_items_in_batch)
        # mDPO: the chosen answer is likelier with its image than with a spoilt one.
        if self.image_weight or self.anchor_weight:
            # the first half of the rows are the chosen answers, (pairs, 1 + longest, vocab)
            spoilt = outputs.spoilt_logps
            first = slice(len(spoilt))
            chosen = completion_logps(
                outputs.logits[first], inputs["input_ids"][first], inputs["completion_mask"][first]
            )
            terms = image_terms(chosen, spoilt, reference, self.beta)
            own = self.image_weight * terms.conditional + self.anchor_weight * terms.anchor
            loss = loss + own
            self._log_images(terms.margin)
        return (loss, outputs) if return_outputs else loss

    @torch.no_grad()
    def _reference(self, inputs: dict[str, Any]) -> Tensor:
        """Log-probabilities under the reference, (pairs, 2), or (pairs, 3) with spoilt images."""
        store: ReferenceLogps = self.data_collator.reference
        kept = store.get(inputs["keys"])
        if kept is None:
            # a copy of an adapter with dropout is a reference without
            was_training = self.model.training
            self.model.eval()
            with self._reference_adapter():
                output = AnswerForward(self.model)(**inputs)
            # the sums over tokens are TRL's, as those of the policy
            columns = [*self.compute_ref_log_probs(lambda **_: output, inputs)]
            self.model.train(was_training)
            if output.spoilt_logps is not None:
                columns.append(output.spoilt_logps)
            kept = torch.stack(columns, dim=1)
            store.add(inputs["keys"], kept)
        return kept.to(self.accelerator.device)

    def _reference_adapter(self) -> AbstractContextManager:
        """The model as the reference: the frozen copy of an adapter, or the base alone."""
        if REFERENCE_ADAPTER in self.model.peft_config:
            return models.use_adapter(self.model, REFERENCE_ADAPTER)
        return models.disable_adapters(self.model)

    def _log_images(self, margin: Tensor) -> None:
        metrics = self._metrics["train" if self.model.training else "eval"]
        metrics["image/accuracies"].append(float((margin > 0).float().mean()))
        metrics["image/margins"].append(float(self.beta * margin.mean()))

    # --- Batches ---

    def forward(self, model: torch.nn.Module, batch: dict[str, Any]) -> Tensor:
        """Logits of the answers of any batch, at the places of batch["input_ids"].

        They are (2 · pairs, seq, vocab).
        """
        skipped = {"completion_mask", "ref_chosen_logps", "ref_rejected_logps", "keys"}
        inputs = {name: value for name, value in batch.items() if name not in skipped}
        return (AnswerForward(model) if "packed" in batch else model)(**inputs).logits

    def _prepare_inputs(self, inputs):
        inputs = super()._prepare_inputs(inputs)
        if "packed" in inputs:
            inputs["packed"] = inputs["packed"].to(self.accelerator.device)
        return inputs

    # --- Checkpoints ---

    def seconds(self) -> float:
        """How long the run has taken, its parts before a resume included, watching left out."""
        callbacks = self.callback_handler.callbacks
        watching = sum(getattr(callback, "watching", 0) for callback in callbacks)
        return self._seconds_before + time.perf_counter() - self._started - watching

    def run_to_end(self) -> None:
        """Train from the last whole checkpoint, or from the start; what was finished is loaded."""
        self._started = time.perf_counter()
        last = self.checkpoints.newest()
        # A new run.
        if last is None:
            self.train()
            return
        self.checkpoints.announce(last, self.args.max_steps)
        # One that was cut off, or one that has come to its end.
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


# --- The trainer of a policy ---


def dpo_config(settings: DPOSettings, seed: int, folder: Path | None = None) -> DPOConfig:
    """`settings` in TRL's words, with the defaults that a VLM on a CPU or a T4 needs."""
    losses = _weighted_losses(settings)
    dtype = compute_dtype()
    return DPOConfig(
        # it must have one, and writes nothing there without checkpoints
        output_dir=str(folder or Path.cwd()),
        beta=settings.beta,
        loss_type=list(losses),
        loss_weights=list(losses.values()),
        label_smoothing=settings.label_smoothing,
        learning_rate=settings.learning_rate,
        max_steps=settings.steps,
        per_device_train_batch_size=settings.batch_size,
        gradient_accumulation_steps=settings.accumulation,
        warmup_steps=round(settings.warmup_share * settings.steps),
        lr_scheduler_type="cosine",
        # else TRL takes settings.lora.dropout away
        disable_dropout=False,
        # TRL's default of 1024 cuts image tokens
        max_length=None,
        gradient_checkpointing=settings.gradient_checkpointing,
        use_cpu=not torch.cuda.is_available(),
        fp16=dtype == torch.float16,
        bf16=dtype == torch.bfloat16,
        logging_steps=1,
        save_strategy="steps" if folder else "no",
        # after the last step there is one in any case
        save_steps=settings.checkpoint_steps or settings.steps,
        save_total_limit=KEPT_CHECKPOINTS,
        seed=seed,
        data_seed=seed,
        # the collator picks what it needs
        remove_unused_columns=False,
        dataloader_pin_memory=torch.cuda.is_available(),
    )


def _weighted_losses(settings: DPOSettings) -> dict[str, float]:
    """TRL's losses and their weights. Raises UsageError for one that TRL does not know."""
    unknown = [name for name in settings.losses if name not in DPO_LOSSES]
    if unknown:
        raise UsageError(f"unknown loss {unknown[0]!r}: choose from {', '.join(DPO_LOSSES)}.")
    losses = dict(zip(settings.losses, settings.loss_weights, strict=True))
    if settings.sft_weight:
        losses["sft"] = settings.sft_weight
    return losses


def dpo_trainer(
    model: VLM,
    processor: ProcessorMixin,
    dataset: Dataset,
    settings: DPOSettings,
    *,
    seed: int = 0,
    folder: Path | None = None,
    replace_other: bool = False,
    callbacks: Sequence[TrainerCallback] = (),
    cache: Path | None = None,
    packs: bool | None = None,
) -> VLMDPOTrainer:
    """A TRL trainer for `model`, which gets a fresh adapter unless it has one to go on with.

    dataset: columns images, prompt, chosen, rejected (`preferences.to_trl`). The adapter is in fp32
    and the only thing that is trained. The reference is the model as it is handed over: the base
    with the adapter off, or a frozen copy of an adapter that was trained before.

    folder, replace_other: of its checkpoints, as in `Checkpoints`. cache: a folder for image
    features and reference log-probabilities, else they are kept in memory. packs: image and prompt
    of a pair once, or TRL's own layout; None tries whether the model can.
    """
    config = dpo_config(settings, seed, folder)
    if not isinstance(model, PeftModel):
        model = models.add_adapter(model, settings.lora, seed)
    if REFERENCE_ADAPTER in model.peft_config:
        # of a round before
        model.delete_adapter(REFERENCE_ADAPTER)
    _align_special_tokens(model, processor)
    collator = _pair_collator(model, processor, settings, cache, packs)
    identity: Identity = {}
    if folder:
        identity = run_identity(
            "DPO", model, processor, dataset, settings, seed=seed,
            packs=collator is not None, adapter=_adapter_hash(model),
        )  # fmt: skip
    return VLMDPOTrainer(
        model, settings, Checkpoints(folder, identity, replace_other=replace_other), collator,
        args=config, train_dataset=dataset, processing_class=processor,
        callbacks=[*callbacks, ProgressBar()],
    )  # fmt: skip


def _pair_collator(
    model: PeftModel,
    processor: ProcessorMixin,
    settings: DPOSettings,
    cache: Path | None,
    packs: bool | None,
) -> PairCollator | None:
    """The collator of a model that packs. Raises UsageError if it does not, and has to."""
    features = cache / "features" if cache else None
    # on the CPU, where TRL's loader pins batches; `_prepare_inputs` moves them
    packer = Packer(model, processor, cache=features, packs=packs, device="cpu")
    spoilt = bool(settings.image_weight or settings.anchor_weight)
    if spoilt and not packer.packs:
        raise UsageError(
            "image_weight and anchor_weight need one row per image, which this model cannot do: "
            "set 0."
        )
    if not packer.packs:
        return None
    reference = None if _is_fresh(model) else models.POLICY_ADAPTER
    store = ReferenceLogps(reference_hash(model, processor, reference), cache)
    return PairCollator(packer, store, spoilt)


def _is_fresh(model: PeftModel) -> bool:
    """Is the adapter at its start, where it changes nothing?"""
    added = [p for n, p in model.named_parameters() if p.requires_grad and "lora_B" in n]
    return not any(weight.any() for weight in added)


def _trained_weights(model: PeftModel) -> dict[str, Tensor]:
    """Copies of the weights that are trained, by their names."""
    return {n: p.detach().clone() for n, p in model.named_parameters() if p.requires_grad}


def _adapter_hash(model: PeftModel) -> str:
    """What a run begins with: a fresh adapter, or the hash of one that was trained before."""
    if _is_fresh(model):
        return "fresh"
    return tensors_hash(sorted(_trained_weights(model).items()))


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


# --- A run ---


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


def train_dpo(trainer: VLMDPOTrainer) -> DPORun:
    """Run the training to its end and collect its log.

    A run with a folder goes on from its last whole checkpoint; a finished one is only loaded.
    """
    trainer.run_to_end()
    trainer.model.eval()
    log = [dict(row) for row in trainer.state.log_history if "loss" in row]
    args = trainer.args
    pairs_a_step = args.train_batch_size * args.gradient_accumulation_steps * args.world_size
    return DPORun(log, trainer.seconds(), trainer.state.global_step * pairs_a_step)
