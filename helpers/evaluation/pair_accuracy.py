"""Does the policy prefer the better answer of pairs it has never seen, more than the reference does?

Taught in notebook 04.
"""

from dataclasses import dataclass

import numpy as np
import torch
from datasets import Dataset
from peft import PeftModel
from tqdm.auto import tqdm
from transformers import PreTrainedModel, ProcessorMixin

from helpers import models
from helpers.models.prompts import render_conversation
from helpers.models.shared_prefix import answer_logps, can_pack, pack, pack_separately
from helpers.statistics import Proportion, proportion


@torch.no_grad()
def pair_logps(
    model: PreTrainedModel | PeftModel, processor: ProcessorMixin, dataset: Dataset, batch_size: int = 16
) -> tuple[np.ndarray, np.ndarray]:
    """Log-probabilities of the chosen and the rejected answer of every pair, (pairs,) each.

    dataset: columns images, prompt, chosen, rejected (`preferences.to_trl`).
    """
    packs, values = can_pack(model, processor), []
    for start in tqdm(range(0, len(dataset), batch_size), desc="log-probabilities", leave=False):
        rows = dataset[start : start + batch_size]
        prompts = [
            render_conversation(processor, [(turn["role"], turn["content"]) for turn in prompt], len(images))
            for prompt, images in zip(rows["prompt"], rows["images"], strict=True)
        ]
        answers = [[c[0]["content"], r[0]["content"]] for c, r in zip(rows["chosen"], rows["rejected"], strict=True)]
        batch = processor, prompts, rows["images"], answers
        packed = pack(model, *batch) if packs else pack_separately(*batch)
        values.append(answer_logps(model, packed.to(model.device)).sum(1).cpu())
    chosen, rejected = torch.cat(values).numpy().reshape(-1, 2).T
    return chosen, rejected


@dataclass(frozen=True)
class PairResult:
    """Log-probabilities of the answers of every pair under policy and reference, (pairs,) each."""

    chosen: np.ndarray
    rejected: np.ndarray
    reference_chosen: np.ndarray
    reference_rejected: np.ndarray

    @property
    def accuracy(self) -> Proportion:
        """Share of pairs in which the policy prefers the chosen answer more than the reference does."""
        margin = (self.chosen - self.reference_chosen) - (self.rejected - self.reference_rejected)
        return proportion(int((margin > 0).sum()), len(margin))


def evaluate_pairs(model: PeftModel, processor: ProcessorMixin, dataset: Dataset) -> PairResult:
    """Ask policy and reference (the adapter off) for the log-probabilities of every pair."""
    policy = pair_logps(model, processor, dataset)
    with models.disable_adapters(model):
        return PairResult(*policy, *pair_logps(model, processor, dataset))
