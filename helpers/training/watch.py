"""What a training writes down while it runs: figures of an iteration, held-out answers, JSON lines, TensorBoard.

`experience_figures` has the figures of PPO's samples; losses, gradients and ratios come from the updates. Each is
defined in one sentence in `docs/metrics.md`. Taught in notebooks 04 and 05.
"""

import json
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from transformers import ProcessorMixin, TrainerCallback

from helpers.data import PreferenceRecord, is_exact
from helpers.files import UsageError, write_lines
from helpers.losses import explained_variance, masked_mean, masked_var
from helpers.models import VLM, answer_records
from helpers.statistics import Proportion, proportion, repeated_share

from .rollout import Experience

IterationRow = dict[str, float]

LOGGED_SAMPLES = 8  # answers that `SampleLog` writes at a time


def experience_figures(experience: Experience) -> IterationRow:
    """Means over the answers of an iteration, before the update."""
    rollout, mask = experience.rollout, experience.mask
    grouped = rollout.scores.view(-1, rollout.group_size)
    truth = {} if rollout.truth is None else {"objective/truth": rollout.truth.mean()}
    row = truth | {
        "objective/scores": rollout.scores.mean(),
        "objective/kl": (experience.old_logps - experience.reference_logps).sum(1).mean(),
        "objective/entropy": masked_mean(experience.entropy, mask),
        "ppo/returns/mean": masked_mean(experience.returns, mask),
        "ppo/returns/var": masked_var(experience.returns, mask),
        "ppo/explained_variance": explained_variance(experience.values, experience.returns, mask),
        "ppo/advantages/size": masked_mean(experience.advantages.abs(), mask),
        "answers/tokens": mask.sum(1).float().mean(),
        "answers/not_ended": (~rollout.ended).float().mean(),
        "answers/repeated": sum(repeated_share(row.tolist()) for row in rollout.ids)
        / len(rollout.ids),
        "answers/distinct": len(set(rollout.texts)) / len(rollout.texts),
        "groups/zero_variance": (grouped == grouped[:, :1]).all(1).float().mean(),
        "tokens": mask.sum(),
    }
    parts = {f"reward/{name}": values.mean() for name, values in rollout.parts.items()}
    return {name: float(value) for name, value in (row | parts).items()}


def pooled_explained_variance(rows: Sequence[IterationRow]) -> float:
    """Explained variance of several iterations: 1 − Σ Var(returns − V) / Σ Var(returns), each within its iteration.

    A single iteration has too few failed answers for a figure of its own. NaN if all returns were equal.
    """
    known = [row for row in rows if row["ppo/returns/var"] > 0]
    total = sum(row["ppo/returns/var"] for row in known)
    left = sum((1 - row["ppo/explained_variance"]) * row["ppo/returns/var"] for row in known)
    return 1 - left / total if total else float("nan")


def log_mean(rows: Sequence[Mapping[str, float]], name: str) -> float:
    """Mean of a figure over some rows of a log, such as its last ten: `log_mean(log[-10:], "loss")`."""
    return float(np.mean([row[name] for row in rows]))


class JSONLog:
    """The log as JSON lines in `path`; written whole each time, so that a resumed run has no row twice."""

    def __init__(self, path: Path):
        self.path = path

    def __call__(self, trainer) -> None:
        # NaN is no JSON
        rows = [
            {name: value if value == value else None for name, value in row.items()}
            for row in trainer.log
        ]
        write_lines(self.path, (json.dumps(row) for row in rows))


class SampleLog:
    """Some sampled answers with their questions and scores, every `every` iterations, appended to `path`."""

    def __init__(self, path: Path, every: int = 5):
        self.path, self.every = path, every

    def __call__(self, trainer) -> None:
        if trainer.iteration % self.every and trainer.iteration > 1:
            return
        kept = self.path.read_text(encoding="utf-8").splitlines() if self.path.exists() else []
        kept = [
            line for line in kept if json.loads(line)["iteration"] < trainer.iteration
        ]  # of a run that went on
        write_lines(
            self.path,
            [*kept, *(json.dumps(row, ensure_ascii=False) for row in first_samples(trainer))],
        )


def first_samples(trainer) -> list[dict]:
    """Answers of the last iteration, the first of each group: what was asked and sampled, and its score."""
    rollout = trainer.last.rollout
    return [
        {
            "iteration": trainer.iteration,
            "prompt": rollout.prompts.texts[task],
            "answer": rollout.texts[task * rollout.group_size],
            "score": float(rollout.scores[task * rollout.group_size]),
        }
        for task in range(min(LOGGED_SAMPLES, len(rollout.prompts)))
    ]


class TensorBoard:
    """The log for TensorBoard, in `folder`. Raises UsageError if the package is not installed (Colab has it)."""

    def __init__(self, folder: Path):
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError:
            raise UsageError(
                "TensorBoard is not installed: pip install tensorboard, or do without its log."
            ) from None
        self.folder, self.make, self.writer = folder, SummaryWriter, None

    def __call__(self, trainer) -> None:
        if self.writer is None:  # a run that went on replaces what it does anew
            self.writer = self.make(str(self.folder), purge_step=trainer.iteration)
        for name, value in trainer.log[-1].items():
            self.writer.add_scalar(name, value, trainer.iteration)
        self.writer.flush()


class HeldOutAnswers(TrainerCallback):
    """Greedy answers to records, before the first step and every `every` steps.

    It is a callback of TRL's trainers, and a watcher of `ppo.PPOTrainer`, whose iterations are steps here.
    `shares` holds (step, share of exact answers); `watching` counts the seconds that it took.
    """

    def __init__(
        self, processor: ProcessorMixin, records: Sequence[PreferenceRecord], every: int = 20
    ):
        self.processor, self.records, self.every = processor, records, every
        self.shares: list[tuple[int, Proportion]] = []
        self.watching = 0.0

    def on_train_begin(self, args, state, control, model=None, **kwargs):
        self._record_answers(model, state.global_step)

    def on_step_end(self, args, state, control, model=None, **kwargs):
        if state.global_step % self.every == 0 or state.global_step == state.max_steps:
            self._record_answers(model, state.global_step)

    def __call__(self, trainer) -> None:
        if trainer.iteration % self.every == 0 or trainer.iteration == trainer.settings.iterations:
            self._record_answers(trainer.model, trainer.iteration)

    def _record_answers(self, model: VLM, step: int) -> None:
        started = time.monotonic()
        answers = answer_records(model, self.processor, self.records)
        exact = sum(
            is_exact(answer, record.truth)
            for answer, record in zip(answers, self.records, strict=True)
        )
        self.shares.append((step, proportion(exact, len(answers))))
        self.watching += time.monotonic() - started
