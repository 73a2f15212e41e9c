"""DPO in rounds, on pairs that the policy itself has just made (Guo et al. 2024, arXiv 2402.04792).

A policy that learns leaves its old mistakes behind, and pairs that were made once show only those.
The answers are ranked by any `rewards.Ranker`; the paper asks a judge. Taught in notebook 04.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from transformers import ProcessorMixin

from helpers.config import DPOSettings
from helpers.data import Task, to_trl
from helpers.models import VLM
from helpers.rewards import RankedBy, sample_and_rank

from .dpo import DPORun, dpo_trainer, train_dpo


@dataclass(frozen=True)
class OnPolicyRound:
    """What a round leaves: the policy that begins the next one, and what it was trained on."""

    policy: VLM
    pairs: int
    run: DPORun | None  # None: there was no pair to train on

    def __str__(self) -> str:
        if self.run is None:
            return "left out, since the answers to each question score the same: no pairs"
        losses = [step["loss"] for step in self.run.log]
        return f"{self.pairs} pairs, loss {losses[0]:.3f} → {losses[-1]:.3f}"


def on_policy_round(
    policy: VLM,
    processor: ProcessorMixin,
    tasks: Sequence[Task],
    ranker: RankedBy,
    settings: DPOSettings,
    *,
    sampling_seed: int,
    seed: int = 0,
    answers: int = 4,
    cache: Path | None = None,
    folder: Path | None = None,
    replace_other: bool = False,
) -> OnPolicyRound:
    """Sample `answers` to each question, rank them, train on the best against the worst.

    policy: the base in the first round, then what the round before has left; it is the reference
    of this round. cache: a folder for image features and reference log-probabilities. folder,
    replace_other: of the training's checkpoints, as in `Checkpoints`; a round that was cut off goes
    on there, and one that was finished is only loaded.
    """
    ranked = sample_and_rank(policy, processor, tasks, ranker, answers, seed=sampling_seed)
    if not any(record.pairs("extremes") for record in ranked):
        return OnPolicyRound(policy, 0, None)
    pairs = to_trl(ranked, "extremes")
    trainer = dpo_trainer(
        policy,
        processor,
        pairs,
        settings,
        seed=seed,
        folder=folder,
        replace_other=replace_other,
        cache=cache,
    )
    run = train_dpo(trainer)
    return OnPolicyRound(trainer.model, len(pairs), run)
