"""What a training writes down while it runs.

Here: figures of an iteration, held-out answers, JSON lines, TensorBoard. `experience_figures` has
the figures of PPO's samples, `update_figures` those of its updates. Each is defined in one sentence
in `docs/metrics.md`. Taught in notebooks 04 and 05.
"""

import json
import math
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from torch import Tensor
from transformers import ProcessorMixin, TrainerCallback

from helpers.data import PreferenceRecord, tasks_of
from helpers.files import UsageError, null_if_not_finite, write_lines
from helpers.losses import PolicyLoss, explained_variance, masked_mean, masked_var
from helpers.models import VLM, answer_tasks
from helpers.rewards import right_share
from helpers.statistics import Proportion, proportion, repeated_share

from .rollout import Experience

IterationRow = dict[str, float]

LOGGED_SAMPLES = 8  # answers that `SampleLog` writes at a time

# what `update_figures` would say of an iteration in which nothing moved
NO_UPDATE = {
    "ppo/loss/policy": 0.0,
    "ppo/loss/value": 0.0,
    "ppo/policy/approxkl": 0.0,
    "ppo/policy/clipfrac": 0.0,
    "ppo/ratio": 1.0,
    "grad_norm/adapter": 0.0,
    "grad_norm/critic": 0.0,
}


def experience_figures(experience: Experience) -> IterationRow:
    """Means over the answers of an iteration, before the update."""
    rollout = experience.rollout
    values, returns = experience.values, experience.returns
    row = {}
    if rollout.truth is not None:
        row["objective/truth"] = rollout.truth.mean()
    row["objective/scores"] = rollout.scores.mean()

    # of all tokens
    mask = experience.mask
    kl = experience.old_logps - experience.reference_logps
    row["objective/kl"] = kl.sum(1).mean()
    row["objective/entropy"] = masked_mean(experience.entropy, mask)

    # of the tokens that are learnt from
    learnt = experience.learnt
    row["ppo/returns/mean"] = masked_mean(returns, learnt)
    row["ppo/returns/var"] = masked_var(returns, learnt)
    row["ppo/explained_variance"] = explained_variance(values, returns, learnt)
    row["ppo/advantages/size"] = masked_mean(experience.advantages.abs(), learnt)

    # of the language
    repeats = [repeated_share(ids.tolist()) for ids in rollout.ids]
    row["answers/tokens"] = mask.sum(1).float().mean()
    row["answers/not_ended"] = (~rollout.ended).float().mean()
    row["answers/repeated"] = sum(repeats) / len(repeats)
    row["answers/distinct"] = len(set(rollout.texts)) / len(rollout.texts)
    row["answers/learnt"] = learnt.any(1).float().mean()
    row["groups/zero_variance"] = rollout.equal_scores().float().mean()
    row["tokens"] = mask.sum()
    for name, part in rollout.parts.items():
        row[f"reward/{name}"] = part.mean()
    return {name: float(figure) for name, figure in row.items()}


def update_figures(policy: PolicyLoss, value: Tensor, norms: Mapping[str, float]) -> IterationRow:
    """Figures of one update; value: the critic's loss, norms: of the gradients before clipping."""
    return {
        "ppo/loss/policy": float(policy.loss.detach()),
        "ppo/loss/value": float(value.detach()),
        "ppo/policy/approxkl": policy.approx_kl,
        "ppo/policy/clipfrac": policy.clip_share,
        "ppo/ratio": policy.ratio,
        "grad_norm/adapter": norms["adapter"],
        "grad_norm/critic": norms["critic"],
    }


def mean_of_updates(updates: Sequence[IterationRow]) -> IterationRow:
    """Means over the updates of an iteration; ratio and KL of the first one, which are rounding.

    Without an update nothing has moved: losses and gradients are 0, and the ratio is 1.
    """
    rows = updates or [NO_UPDATE]
    means = {name: log_mean(rows, name) for name in NO_UPDATE}
    first = rows[0]
    return means | {
        "ppo/ratio_first": first["ppo/ratio"],
        "ppo/policy/approxkl_first": first["ppo/policy/approxkl"],
    }


def pooled_explained_variance(rows: Sequence[IterationRow]) -> float:
    """Explained variance of several iterations: 1 − Σ Var(returns − V) / Σ Var(returns).

    Each variance is within its iteration. A single iteration has too few failed answers for a
    figure of its own. NaN if all returns were equal.
    """
    total = left = 0.0
    for row in rows:
        variance = row["ppo/returns/var"]
        if variance > 0:
            total += variance
            left += (1 - row["ppo/explained_variance"]) * variance
    return 1 - left / total if total else math.nan


def log_mean(rows: Sequence[Mapping[str, float]], name: str) -> float:
    """Mean of a figure over rows of a log, such as its last ten: `log_mean(log[-10:], "loss")`."""
    return float(np.mean([row[name] for row in rows]))


class JSONLog:
    """The log as JSON lines; written whole each time, so that a resumed run has no row twice."""

    def __init__(self, path: Path):
        self.path = path

    def __call__(self, trainer) -> None:
        lines = []
        for row in trainer.log:
            lines.append(json.dumps(null_if_not_finite(row)))
        write_lines(self.path, lines)


class SampleLog:
    """Some sampled answers with questions and scores, every `every` iterations, in one file."""

    def __init__(self, path: Path, every: int = 5):
        self.path = path
        self.every = every

    def __call__(self, trainer) -> None:
        if trainer.iteration % self.every and trainer.iteration > 1:
            return
        lines = []
        if self.path.exists():
            lines = self.path.read_text(encoding="utf-8").splitlines()
        # a run that goes on writes again what it does again
        kept = [line for line in lines if json.loads(line)["iteration"] < trainer.iteration]
        new = [json.dumps(sample, ensure_ascii=False) for sample in first_samples(trainer)]
        write_lines(self.path, kept + new)


def first_samples(trainer) -> list[dict]:
    """Answers of the last iteration, the first of each group, with question and score."""
    rollout = trainer.last.rollout
    samples = []
    for task, prompt in enumerate(rollout.prompts.texts[:LOGGED_SAMPLES]):
        first = task * rollout.group_size
        samples.append(
            {
                "iteration": trainer.iteration,
                "prompt": prompt,
                "answer": rollout.texts[first],
                "score": float(rollout.scores[first]),
            }
        )
    return samples


class TensorBoard:
    """The log for TensorBoard, in `folder`. Raises UsageError if it is not installed."""

    def __init__(self, folder: Path):
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError:
            raise UsageError(
                "TensorBoard is not installed: pip install tensorboard, or do without its log."
            ) from None
        self.folder = folder
        self.make = SummaryWriter
        self.writer: SummaryWriter | None = None

    def __call__(self, trainer) -> None:
        if self.writer is None:
            # a run that goes on replaces what it does again
            self.writer = self.make(str(self.folder), purge_step=trainer.iteration)
        for name, value in trainer.log[-1].items():
            self.writer.add_scalar(name, value, trainer.iteration)
        self.writer.flush()


class HeldOutAnswers(TrainerCallback):
    """Greedy answers to records, before the first step and every `every` steps.

    It is a callback of TRL's trainers, and a watcher of `ppo.PPOTrainer`, whose iterations are
    steps here and whose log gets the share. `shares` holds (step, share of right answers), nothing
    where no truth is known; `watching` counts the seconds that it took.
    """

    def __init__(
        self, processor: ProcessorMixin, records: Sequence[PreferenceRecord], every: int = 20
    ):
        self.processor = processor
        # without a truth there is nothing to ask for
        self.tasks = [task for task in tasks_of(records) if task.is_known]
        self.every = every
        self.shares: list[tuple[int, Proportion]] = []
        self.watching = 0.0

    def on_train_begin(self, args, state, control, model=None, **kwargs):
        self._record_answers(model, state.global_step)

    def on_step_end(self, args, state, control, model=None, **kwargs):
        if state.global_step % self.every == 0 or state.global_step == state.max_steps:
            self._record_answers(model, state.global_step)

    def __call__(self, trainer) -> None:
        if trainer.iteration % self.every == 0 or trainer.iteration == trainer.settings.iterations:
            share = self._record_answers(trainer.model, trainer.iteration)
            if share:
                trainer.log[-1]["held_out/exact"] = share.value

    def go_on(self, trainer) -> None:
        """Take the shares of a run that goes on from its log."""
        n = len(self.tasks)
        for row in trainer.log:
            if "held_out/exact" in row:
                share = proportion(round(row["held_out/exact"] * n), n)
                self.shares.append((int(row["iteration"]), share))

    def _record_answers(self, model: VLM, step: int) -> Proportion | None:
        if not self.tasks:
            return None
        started = time.monotonic()
        answers = answer_tasks(model, self.processor, self.tasks)
        share = right_share(self.tasks, answers)
        self.shares.append((step, share))
        self.watching += time.monotonic() - started
        return share
