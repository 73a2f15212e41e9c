"""Train a reward model: one visible loop, held-out accuracy, early stopping, exact resume.

A batch is a number of records, each with all its answers; every pair of a better and a worse answer
counts once, however the pairs fall into batches, so that accumulated gradients are those of the full
batch; nor does it matter over how many processes they are shared. `accelerate` does mixed precision and its gradient
scaling. Taught in notebook 03.
"""

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from tqdm.auto import tqdm
from transformers import get_cosine_schedule_with_warmup

from helpers.config import RewardSettings
from helpers.data import PreferenceRecord, file_of
from helpers.files import UsageError, open_image, replace_file
from helpers.losses import bradley_terry_loss, focal_bradley_terry_loss, listwise_loss
from helpers.models import PackedAnswers
from helpers.rewards import RewardModel, pair_gaps, pair_hits, score_records

from . import distributed

# steps in a row whose numbers may break: a scaler of fp16 gradients halves itself each time, and needs a few such
# steps at its start only
MAX_OVERFLOWS = 8
Objective = Callable[
    [Tensor, PreferenceRecord, RewardSettings], Tensor
]  # scores (answers,) → losses (terms,)


@dataclass
class RewardRun:
    """What a training leaves: a row for each step and for each evaluation, and its duration."""

    log: list[dict[str, float]] = field(
        default_factory=list
    )  # step, loss, accuracy, learning_rate, grad_norm
    evaluations: list[dict[str, float]] = field(default_factory=list)  # step, accuracy, loss
    seconds: float = 0.0
    best_step: int = 0


def _pair_scores(scores: Tensor, record: PreferenceRecord) -> tuple[Tensor, Tensor, Tensor]:
    """Scores of the better and the worse answer of each pair, and by how much the data says it is better."""
    places = torch.tensor(list(record.tier_pairs()), device=scores.device)
    known = [(record.answers[b].score, record.answers[w].score) for b, w in places.tolist()]
    gaps = [high - low if high is not None and low is not None else 0.0 for high, low in known]
    return scores[places[:, 0]], scores[places[:, 1]], torch.tensor(gaps, device=scores.device)


def _bradley_terry_terms(
    scores: Tensor, record: PreferenceRecord, settings: RewardSettings
) -> Tensor:
    better, worse, gaps = _pair_scores(scores, record)
    margin = settings.margin_weight * gaps
    return bradley_terry_loss(
        better, worse, margin, settings.label_smoothing, settings.centring_weight
    )


def _focal_terms(scores: Tensor, record: PreferenceRecord, settings: RewardSettings) -> Tensor:
    return focal_bradley_terry_loss(*_pair_scores(scores, record)[:2], settings.focal_gamma)


def _listwise_terms(scores: Tensor, record: PreferenceRecord, settings: RewardSettings) -> Tensor:
    return listwise_loss(scores, record.ranking)


OBJECTIVES: dict[str, Objective] = {
    "bradley_terry": _bradley_terry_terms,
    "focal": _focal_terms,
    "listwise": _listwise_terms,
}


def losses_of(
    scores: Tensor, records: Sequence[PreferenceRecord], settings: RewardSettings
) -> Tensor:
    """Compute all loss terms of a batch, (terms,), from the scores of its answers, (answers,)."""
    parts = scores.split([len(record.answers) for record in records])
    terms = [
        OBJECTIVES[settings.objective](part, record, settings)
        for part, record in zip(parts, records, strict=True)
    ]
    return torch.cat(terms)


class RewardTrainer:
    """`train()` runs to the end, or to where held-out accuracy stops rising; the best weights stay.

    records: what is trained on (those that do not fill a step are left to other epochs); held_out: records of other
    photos. `checkpoint` is a file:
    after each evaluation the whole state is in it, and a trainer that finds it goes on as if it had
    never stopped. Raises UsageError for records without a pair or an unknown objective.
    """

    def __init__(
        self,
        reward: RewardModel,
        records: Sequence[PreferenceRecord],
        held_out: Sequence[PreferenceRecord],
        settings: RewardSettings,
        seed: int = 0,
        checkpoint: Path | None = None,
    ):
        self.reward, self.settings = reward, settings
        self.records, self.held_out = (
            [r for r in rows if any(r.tier_pairs())] for rows in (records, held_out)
        )
        if not self.records or not self.held_out:
            raise UsageError(
                f"{file_of(records)}: no pair of a better and a worse answer to train on, or none held out."
            )
        if settings.objective not in OBJECTIVES:
            raise UsageError(
                f"unknown objective {settings.objective!r}: choose from {', '.join(OBJECTIVES)}."
            )
        self.seed, self.checkpoint, self.run, self.step = seed, checkpoint, RewardRun(), 0
        self.accelerator = distributed.new_accelerator("the reward model")
        self.per_step = settings.batch_size * settings.accumulation * self.accelerator.num_processes
        self.steps = settings.epochs * max(1, len(self.records) // self.per_step)
        self.every = max(1, self.steps // settings.evaluations)
        self.weights = reward.trainable_parameters()
        adamw = torch.optim.AdamW(
            self.weights.values(), settings.learning_rate, weight_decay=settings.weight_decay
        )
        self.optimizer = self.accelerator.prepare(adamw)
        warmup = round(settings.warmup_share * self.steps)
        self.schedule = get_cosine_schedule_with_warmup(adamw, warmup, self.steps)
        self.best: dict[str, Tensor] = {}
        self.not_finite = 0  # steps in a row
        if settings.gradient_checkpointing:
            reward.backbone.gradient_checkpointing_enable({"use_reentrant": False})
        with reward.use_adapter():
            for weight in self.weights.values():
                weight.requires_grad_(True)
            self.forward = distributed.wrap_for_processes(self.accelerator, reward)

    def train(self) -> RewardRun:
        torch.manual_seed(self.seed)
        self._resume()
        started = time.perf_counter() - self.run.seconds
        name, quiet = (
            f"reward model, {self.settings.objective}",
            not self.accelerator.is_main_process or None,
        )
        bar = tqdm(total=self.steps, initial=self.step, desc=name, unit="step", disable=quiet)
        with self.reward.use_adapter():
            while self.step < self.steps and not self._is_stuck():
                self.run.log.append(self._train_step())
                self.step += 1
                bar.update()
                if self.step % self.every == 0 or self.step == self.steps:
                    self._evaluate()
                    bar.set_postfix(held_out=f"{self.run.evaluations[-1]['accuracy']:.3f}")
                    self.run.seconds = time.perf_counter() - started
                    self._save_checkpoint()
            self._restore(self.best)
        bar.close()
        self.run.seconds = time.perf_counter() - started
        self.reward.eval()
        return self.run

    def _train_step(self) -> dict[str, float]:
        """One optimizer step over `per_step` records; gradients that are not finite change no weight."""
        self.reward.train()
        figures = self.gradients(self._rows(self.step))
        norm = self.accelerator.clip_grad_norm_(self.weights.values(), self.settings.max_grad_norm)
        self._watch_numbers(figures["loss"], float(norm))
        if (
            self.accelerator.scaler or not self.not_finite
        ):  # the scaler skips such a step itself, and learns from it
            self.optimizer.step()
        rate = self.schedule.get_last_lr()[0]
        self.schedule.step()
        self.optimizer.zero_grad()
        return {"step": self.step + 1, **figures, "learning_rate": rate, "grad_norm": float(norm)}

    def _watch_numbers(self, loss: float, norm: float) -> None:
        """Raises UsageError after `MAX_OVERFLOWS` steps in a row whose loss or gradient is no number."""
        self.not_finite = 0 if math.isfinite(loss) and math.isfinite(norm) else self.not_finite + 1
        if self.not_finite == MAX_OVERFLOWS:
            raise UsageError(
                f"reward model: loss {loss:g} and gradient {norm:g} at step {self.step + 1}, and nothing finite for "
                f"{MAX_OVERFLOWS} steps. The weights are those before them. Lower learning_rate, or look for answers that "
                "are empty."
            )

    def gradients(self, rows: Sequence[PreferenceRecord]) -> dict[str, float]:
        """Add the gradients of the mean loss over `rows`, computed in pieces of `batch_size`; loss and accuracy.

        With several processes each has its share of the rows, and the gradients are those of all.
        """
        own, size = distributed.own_share(self.accelerator, rows), self.settings.batch_size
        pieces = [own[start : start + size] for start in range(0, len(own), size)]
        terms = len(
            losses_of(torch.zeros(sum(len(row.answers) for row in rows)), rows, self.settings)
        )
        terms /= self.accelerator.num_processes
        loss, found = 0.0, []
        for piece in pieces:
            with self.accelerator.autocast():
                scores = self.forward(self._batch(piece))
            part = losses_of(scores, piece, self.settings).sum() / terms
            self.accelerator.backward(part)
            loss += part.item()
            values = [
                row.tolist() for row in scores.split([len(record.answers) for record in piece])
            ]
            found.append(pair_hits(pair_gaps(piece, values)))
        return distributed.mean_rows(
            self.accelerator, {"loss": loss, "accuracy": float(np.concatenate(found).mean())}
        )

    def _rows(self, step: int) -> list[PreferenceRecord]:
        """The records of a step: every epoch has an order of its own, which only seed and epoch decide."""
        steps = max(1, len(self.records) // self.per_step)
        epoch, place = divmod(step, steps)
        order = np.random.default_rng([self.seed, epoch]).permutation(len(self.records))
        return [self.records[i] for i in order[place * self.per_step : (place + 1) * self.per_step]]

    def _batch(self, rows: Sequence[PreferenceRecord]) -> PackedAnswers:
        images = [
            [open_image(image, record.place) for image in record.image_paths] for record in rows
        ]
        return self.reward.batch(rows, images)

    def _evaluate(self) -> None:
        accuracy, loss = self.held_out_accuracy()
        if not self.run.evaluations or accuracy > max(
            row["accuracy"] for row in self.run.evaluations
        ):
            self.best = {name: value.detach().cpu().clone() for name, value in self.weights.items()}
            self.run.best_step = self.step
        self.run.evaluations.append({"step": self.step, "accuracy": accuracy, "loss": loss})

    def held_out_accuracy(self) -> tuple[float, float]:
        """Accuracy and mean loss on the held-out records."""
        records = self.held_out
        own = score_records(self.reward, distributed.own_share(self.accelerator, records))
        scores = distributed.gather_in_order(self.accelerator, own)
        flat = torch.tensor([value for row in scores for value in row])
        return float(pair_hits(pair_gaps(records, scores)).mean()), float(
            losses_of(flat, records, self.settings).mean()
        )

    def _is_stuck(self) -> bool:
        since = [row for row in self.run.evaluations if row["step"] > self.run.best_step]
        return len(since) >= self.settings.patience

    @torch.no_grad()
    def _restore(self, weights: dict[str, Tensor]) -> None:
        for name, value in weights.items():
            self.weights[name].copy_(value)

    def _save_checkpoint(self) -> None:
        if self.checkpoint is None or not self.accelerator.is_main_process:
            return
        scaler = self.accelerator.scaler
        state = {
            "settings": repr((self.settings, self.seed, len(self.records))),
            "step": self.step,
            "run": asdict(self.run),
            "weights": {name: value.detach() for name, value in self.weights.items()},
            "best": self.best,
            "optimizer": self.optimizer.state_dict(),
            "schedule": self.schedule.state_dict(),
            "scaler": scaler.state_dict() if scaler else None,
            "random": [
                torch.get_rng_state(),
                *(torch.cuda.get_rng_state_all() if torch.cuda.is_available() else []),
            ],
        }
        with replace_file(self.checkpoint) as temporary:
            torch.save(state, temporary)

    def _resume(self) -> None:
        if self.checkpoint is None or not self.checkpoint.exists():
            return
        state = torch.load(self.checkpoint, weights_only=True, map_location="cpu")
        if state["settings"] != repr((self.settings, self.seed, len(self.records))):
            raise UsageError(
                f"{self.checkpoint}: of a run with other settings or data. Delete it to start afresh."
            )
        self.step, self.run, self.best = state["step"], RewardRun(**state["run"]), state["best"]
        self._restore(state["weights"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.schedule.load_state_dict(state["schedule"])
        if self.accelerator.scaler:
            self.accelerator.scaler.load_state_dict(state["scaler"])
        cpu, *gpus = state["random"]
        torch.set_rng_state(cpu)
        if gpus:
            torch.cuda.set_rng_state_all(gpus)
        print(f"Going on at step {self.step} of {self.steps} ({self.checkpoint}).")
