"""DPO of a vision-language model with `trl.DPOTrainer` (Rafailov et al. 2023, arXiv 2305.18290).

TRL does the training: the loop, the loss −log σ(β · margin), logging, devices. This module hands it

* batches in which image and prompt of a pair stand once (`helpers/models/shared_prefix.py`), and
  in place of the model a function from such a batch to the logits of the answers, which is all
  that TRL looks at;
* reference log-probabilities that were computed once (`helpers/models/caches.py`);
* a base with one adapter, and what `helpers/training/trl_runs.py` has for all methods: checkpoints,
  and the adapter in fp32.

One step is `VLMDPOTrainer.compute_loss`: policy, reference, TRL's loss, the image terms of mDPO.
Taught in notebook 04.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from datasets import Dataset
from peft import PeftModel
from torch import Tensor
from transformers import ProcessorMixin, TrainerCallback
from trl import DPOConfig, DPOTrainer

from helpers import models
from helpers.config import DPOSettings
from helpers.data import require_plain_texts, texts_of_dataset
from helpers.files import UsageError
from helpers.losses import anchor_loss, completion_logps, dpo_loss
from helpers.machine import Identity
from helpers.models import VLM, Packer, ReferenceLogps, reference_hash

from .checkpoint import Checkpoints, run_identity
from .collators import AnswerForward, PairCollator
from .trl_runs import (
    ProgressBar,
    TRLRun,
    adapter_hash,
    as_reference,
    common_options,
    is_fresh,
    with_one_adapter,
)

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


class VLMDPOTrainer(TRLRun, DPOTrainer):
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
        super().__init__(model, checkpoints, data_collator=collator, **options)
        self.image_weight = settings.image_weight
        self.anchor_weight = settings.anchor_weight
        # TRL takes them from the batch then; as an argument it refuses this for images
        self.precompute_ref_logps = collator is not None

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
            with as_reference(self.model):
                output = AnswerForward(self.model)(**inputs)
            # the sums over tokens are TRL's, as those of the policy
            columns = [*self.compute_ref_log_probs(lambda **_: output, inputs)]
            self.model.train(was_training)
            if output.spoilt_logps is not None:
                columns.append(output.spoilt_logps)
            kept = torch.stack(columns, dim=1)
            store.add(inputs["keys"], kept)
        return kept.to(self.accelerator.device)

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


# --- The trainer of a policy ---


def dpo_config(settings: DPOSettings, seed: int, folder: Path | None = None) -> DPOConfig:
    """`settings` in TRL's words, with the defaults that a VLM on a CPU or a T4 needs."""
    losses = _weighted_losses(settings)
    return DPOConfig(
        **common_options(settings, seed, folder),
        beta=settings.beta,
        loss_type=list(losses),
        loss_weights=list(losses.values()),
        label_smoothing=settings.label_smoothing,
        # else TRL takes settings.lora.dropout away
        disable_dropout=False,
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
    of a pair once; None tries whether the model can, and takes a row for each answer if not; False
    takes TRL's own layout, unless the settings have the image terms of mDPO.
    """
    require_plain_texts(processor, texts_of_dataset(dataset))
    config = dpo_config(settings, seed, folder)
    model = with_one_adapter(model, processor, settings.lora, seed)
    collator = _pair_collator(model, processor, settings, cache, packs)
    identity: Identity = {}
    if folder:
        identity = run_identity(
            "DPO", model, processor, dataset, settings, seed=seed,
            packs=bool(collator and collator.packer.packs), adapter=adapter_hash(model),
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
    """The collator of a pair's answers in one row, or of a row each where the model cannot pack.

    None: TRL's own, which is asked for by packs=False; it knows no spoilt images, which mDPO needs.
    """
    spoilt = bool(settings.image_weight or settings.anchor_weight)
    if packs is False and not spoilt:
        return None
    features = cache / "features" if cache else None
    # on the CPU, where TRL's loader pins batches; `_prepare_inputs` moves them
    packer = Packer(model, processor, cache=features, packs=packs, device="cpu")
    reference = None if is_fresh(model) else models.POLICY_ADAPTER
    store = ReferenceLogps(reference_hash(model, processor, reference), cache)
    return PairCollator(packer, store, spoilt)


# --- A run ---


def train_dpo(trainer: VLMDPOTrainer) -> DPORun:
    """Run the training to its end and collect its log.

    A run with a folder goes on from its last whole checkpoint; a finished one is only loaded.
    """
    log = trainer.run_to_end()
    return DPORun(log, trainer.seconds(), trainer.trained_examples())
