"""Does the policy prefer the better answer of unseen pairs, more than the reference does?

Taught in notebook 04.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from datasets import Dataset
from peft import PeftModel
from PIL import Image
from tqdm.auto import tqdm
from transformers import ProcessorMixin

from helpers import models
from helpers.data import PreferenceRecord, from_trl
from helpers.files import open_image
from helpers.models import Packer, answer_logps
from helpers.rewards import split_scores
from helpers.statistics import Proportion, share_of


@torch.no_grad()
def pair_logps(
    packer: Packer, dataset: Dataset, batch_size: int = 16
) -> tuple[np.ndarray, np.ndarray]:
    """Log-probabilities of the chosen and the rejected answer of every pair, (pairs,) each.

    packer: of the model that is asked. dataset: columns images, prompt, chosen, rejected
    (`preferences.to_trl`).
    """
    size = len(dataset)
    values = []
    for start in tqdm(range(0, size, batch_size), desc="log-probabilities", leave=False):
        numbers = range(start, min(start + batch_size, size))
        pairs = [from_trl(dataset[number]) for number in numbers]
        answers = [[pair.chosen, pair.rejected] for pair in pairs]
        packed = packer([pair.prompt for pair in pairs], [pair.images for pair in pairs], answers)
        # (answers, tokens) → (answers,), two of each pair in a row
        values.append(answer_logps(packer.model, packed).sum(1).cpu())
    chosen, rejected = torch.cat(values).numpy().reshape(-1, 2).T
    return chosen, rejected


@torch.no_grad()
def record_logps(
    packer: Packer,
    records: Sequence[PreferenceRecord],
    images: Sequence[Sequence[Path | Image.Image]] | None = None,
    batch_size: int = 16,
) -> list[list[float]]:
    """Log-probabilities of all answers of each record, in their order, summed over their tokens.

    images: to show in place of the records' own. Raises UsageError for one that cannot be read.
    """
    if images is None:
        images = [record.image_paths for record in records]
    values = []
    for start in tqdm(range(0, len(records), batch_size), desc="log-probabilities", leave=False):
        rows = slice(start, start + batch_size)
        # opened in their turn: all at once would fill the memory
        opened = []
        answers = []
        for record, pictures in zip(records[rows], images[rows], strict=True):
            opened.append([_opened(picture, record.place) for picture in pictures])
            answers.append([answer.text for answer in record.answers])
        packed = packer([record.prompt for record in records[rows]], opened, answers)
        # (answers, tokens) → (answers,)
        found = answer_logps(packer.model, packed).sum(1)
        values += split_scores(found, records[rows])
    return values


def _opened(image: Path | Image.Image, place: str) -> Image.Image:
    return open_image(image, place) if isinstance(image, Path) else image


@dataclass(frozen=True)
class PairResult:
    """Log-probabilities of the answers of every pair under policy and reference, (pairs,) each."""

    chosen: np.ndarray
    rejected: np.ndarray
    reference_chosen: np.ndarray
    reference_rejected: np.ndarray

    @property
    def accuracy(self) -> Proportion:
        """Share of pairs in which the policy prefers the chosen answer more than the reference."""
        gain = self.chosen - self.reference_chosen
        loss = self.rejected - self.reference_rejected
        return share_of(gain - loss > 0)


def evaluate_pairs(model: PeftModel, processor: ProcessorMixin, dataset: Dataset) -> PairResult:
    """Ask policy and reference (the adapter off) for the log-probabilities of every pair."""
    # features of all held-out images would fill the memory, and each is needed only a few times
    packer = Packer(model, processor, keeps_features=False)
    policy = pair_logps(packer, dataset)
    with models.disable_adapters(model):
        return PairResult(*policy, *pair_logps(packer, dataset))
