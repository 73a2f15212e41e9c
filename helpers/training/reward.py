"""Train a reward model: one visible loop, held-out accuracy, early stopping, exact resume.

A batch is a number of records, each with all its answers; every pair of a better and a worse answer
counts once, however the pairs fall into pieces of a batch, so that accumulated gradients are those
of the full batch; nor does it matter over how many processes they are shared. `accelerate` does
mixed precision and its gradient scaling.

From top to bottom: the losses of one record, the loop `RewardTrainer.train`, what the loop calls,
and the state from which it goes on. Formulas are in `helpers/losses.py`. Taught in notebook 03.
"""

import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate.utils import gather_object
from torch import Tensor
from tqdm.auto import tqdm
from transformers import get_cosine_schedule_with_warmup

from helpers.config import RewardSettings
from helpers.data import PreferenceRecord, file_of, require_plain_texts, texts_of_records
from helpers.files import UsageError, open_image
from helpers.losses import bradley_terry_loss, focal_bradley_terry_loss, listwise_loss
from helpers.machine import Identity
from helpers.models import PackedAnswers
from helpers.rewards import RewardModel, pair_gaps, pair_hits, score_records
from helpers.runtime import has_cuda, tensors_hash

from . import distributed
from .checkpoint import Checkpoints, alone_in_its_folder, data_hash, run_identity

# Steps in a row whose numbers may break. A scaler of fp16 gradients halves itself each time, and
# needs a few such steps at its start only.
MAX_OVERFLOWS = 8

# Scores (answers,) of one record → its losses (terms,).
Objective = Callable[[Tensor, PreferenceRecord, RewardSettings], Tensor]


@dataclass
class RewardRun:
    """What a training leaves: a row for each step and for each evaluation, and its duration."""

    # step, loss, accuracy, learning_rate, grad_norm
    log: list[dict[str, float]] = field(default_factory=list)
    # step, accuracy, loss
    evaluations: list[dict[str, float]] = field(default_factory=list)
    seconds: float = 0.0
    best_step: int = 0


# --- The loss of a record ---


def _pair_scores(scores: Tensor, record: PreferenceRecord) -> tuple[Tensor, Tensor]:
    """Scores of the better and of the worse answer of each pair, (pairs,) and (pairs,)."""
    places = torch.tensor(list(record.tier_pairs()), device=scores.device)
    return scores[places[:, 0]], scores[places[:, 1]]


def _known_gaps(record: PreferenceRecord) -> list[float]:
    """By how much the data says the better answer of each pair is better; 0 if it does not."""
    gaps = [pair.margin for pair in record.pairs()]
    return [0.0 if gap is None else gap for gap in gaps]


def _bradley_terry_terms(
    scores: Tensor, record: PreferenceRecord, settings: RewardSettings
) -> Tensor:
    better, worse = _pair_scores(scores, record)
    margin = settings.margin_weight * torch.tensor(_known_gaps(record), device=scores.device)
    return bradley_terry_loss(
        better, worse, margin, settings.label_smoothing, settings.centring_weight
    )


def _focal_terms(scores: Tensor, record: PreferenceRecord, settings: RewardSettings) -> Tensor:
    better, worse = _pair_scores(scores, record)
    return focal_bradley_terry_loss(better, worse, settings.focal_gamma)


def _listwise_terms(scores: Tensor, record: PreferenceRecord, settings: RewardSettings) -> Tensor:
    return listwise_loss(scores, record.ranking)


OBJECTIVES: dict[str, Objective] = {
    "bradley_terry": _bradley_terry_terms,
    "focal": _focal_terms,
    "listwise": _listwise_terms,
}


# Settings that only one objective reads, each with the value at which it does nothing
_SETTINGS_OF = {
    "bradley_terry": {"margin_weight": 0.0, "label_smoothing": 0.0, "centring_weight": 0.0},
    "focal": {"focal_gamma": RewardSettings.focal_gamma},
}


def idle_settings(settings: RewardSettings) -> list[str]:
    """Name settings that are set and that the objective does not read."""
    idle = []
    for objective, own in _SETTINGS_OF.items():
        if objective == settings.objective:
            continue
        idle += [name for name, unset in own.items() if getattr(settings, name) != unset]
    return idle


def _check_before(
    reward: RewardModel, records: Sequence[PreferenceRecord], settings: RewardSettings
) -> None:
    require_plain_texts(reward.processor, texts_of_records(records))
    for name in idle_settings(settings):
        print(f"⚠️  {name} does nothing for the objective {settings.objective}.")


def losses_of(
    scores: Tensor, records: Sequence[PreferenceRecord], settings: RewardSettings
) -> Tensor:
    """Compute all loss terms of a batch, (terms,), from the scores of its answers, (answers,)."""
    objective = OBJECTIVES[settings.objective]
    terms = []
    for own, record in zip(_by_record(scores, records), records, strict=True):
        terms.append(objective(own, record, settings))
    return torch.cat(terms)


def _by_record(scores: Tensor, records: Sequence[PreferenceRecord]) -> Sequence[Tensor]:
    """Scores (answers,) of a batch → those of each record."""
    return scores.split([len(record.answers) for record in records])


def _with_pairs(records: Sequence[PreferenceRecord]) -> list[PreferenceRecord]:
    """Records that have a pair. Raises UsageError if none has."""
    found = [record for record in records if any(record.tier_pairs())]
    if not found:
        raise UsageError(
            f"{file_of(records)}: no pair of a better and a worse answer to train on, "
            "or none held out."
        )
    return found


def _count_terms(records: Sequence[PreferenceRecord], settings: RewardSettings) -> int:
    """How many loss terms records have: their rankings alone decide it."""
    answers = sum(len(record.answers) for record in records)
    return len(losses_of(torch.zeros(answers), records, settings))


def _hits(scores: Tensor, records: Sequence[PreferenceRecord]) -> np.ndarray:
    """Of each pair 1 if the better answer has the higher score, ½ if both are equal, else 0."""
    rows = [row.tolist() for row in _by_record(scores, records)]
    return pair_hits(pair_gaps(records, rows))


# --- The loop ---


class RewardTrainer:
    """`train()` runs to the end, or to where held-out accuracy stops rising; the best weights stay.

    records: what is trained on (those that do not fill a step are left to other epochs); held_out:
    records of other photos. folder, replace_other: of its checkpoints, as in `Checkpoints`; one is
    written after each evaluation. Raises UsageError for records without a pair or an unknown
    objective.
    """

    def __init__(
        self,
        reward: RewardModel,
        records: Sequence[PreferenceRecord],
        held_out: Sequence[PreferenceRecord],
        settings: RewardSettings,
        seed: int = 0,
        folder: Path | None = None,
        replace_other: bool = False,
    ):
        if settings.objective not in OBJECTIVES:
            raise UsageError(
                f"unknown objective {settings.objective!r}: choose from {', '.join(OBJECTIVES)}."
            )
        _check_before(reward, [*records, *held_out], settings)
        self.reward = reward
        self.settings = settings
        self.seed = seed
        self.records = _with_pairs(records)
        self.held_out = _with_pairs(held_out)
        self.accelerator = distributed.new_accelerator("the reward model")
        # Records of a step, over all processes; steps, and steps between two evaluations.
        self.per_step = settings.batch_size * settings.accumulation
        self.per_step *= self.accelerator.num_processes
        self.steps_an_epoch = max(1, len(self.records) // self.per_step)
        self.steps = settings.epochs * self.steps_an_epoch
        self.every = max(1, self.steps // settings.evaluations)
        # What is trained: the adapter and the head.
        self.weights = reward.trainable_parameters()
        identity = self._identity() if folder else {}
        self.checkpoints = Checkpoints(folder, identity, replace_other=replace_other)
        adamw = torch.optim.AdamW(
            self.weights.values(), settings.learning_rate, weight_decay=settings.weight_decay
        )
        self.optimizer = self.accelerator.prepare(adamw)
        warmup = round(settings.warmup_share * self.steps)
        self.schedule = get_cosine_schedule_with_warmup(adamw, warmup, self.steps)
        # How far the run is.
        self.run = RewardRun()
        self.step = 0
        self.best: dict[str, Tensor] = {}
        # steps in a row
        self.not_finite = 0
        self.forward = self._trainable_model()

    @alone_in_its_folder
    def train(self) -> RewardRun:
        """Train what is left of the run, and put the best weights back."""
        settings, accelerator = self.settings, self.accelerator
        torch.manual_seed(self.seed)
        self._go_on()
        started = time.perf_counter() - self.run.seconds
        with self.reward.use_adapter(), self._progress_bar() as bar:
            # Stop: at the end, or when held-out accuracy has not risen for a while.
            while self.step < self.steps and not self.is_stuck():
                # Batch: the records of this step, and how many pairs are in all of them.
                records = self.records_of_step(self.step)
                terms = _count_terms(records, settings) / accelerator.num_processes
                self.reward.train()
                loss, hits = 0.0, []
                for piece in self.pieces(records):
                    # Scores: of all answers of the piece, in one forward, (answers,).
                    with accelerator.autocast():
                        scores = self.forward(self.pack(piece))

                    # Loss: this piece's part of the mean over all pairs of the step.
                    part = losses_of(scores, piece, settings).sum() / terms

                    # Backward: the gradients of the pieces add up.
                    accelerator.backward(part)
                    loss += part.item()
                    hits.append(_hits(scores, piece))
                accuracy = float(np.concatenate(hits).mean())
                row = distributed.mean_rows(accelerator, {"loss": loss, "accuracy": accuracy})

                # Clip: to a norm of at most max_grad_norm.
                norm = float(
                    accelerator.clip_grad_norm_(self.weights.values(), settings.max_grad_norm)
                )

                # Step: not on numbers that are broken; a scaler skips those itself, and learns.
                finite = self.watch_numbers(row["loss"], norm)
                if accelerator.scaler or finite:
                    self.optimizer.step()
                row |= {"learning_rate": self.schedule.get_last_lr()[0], "grad_norm": norm}
                self.schedule.step()
                self.optimizer.zero_grad()
                self.step += 1
                self.run.log.append({"step": self.step, **row})
                bar.update()

                # Evaluate: on photos that are not trained on; the best weights are kept.
                if self.step % self.every == 0 or self.step == self.steps:
                    self.evaluate()
                    bar.set_postfix(held_out=f"{self.run.evaluations[-1]['accuracy']:.3f}")
                    self.run.seconds = time.perf_counter() - started
                    self._save()
            self._restore(self.best)
        self.run.seconds = time.perf_counter() - started
        self.reward.eval()
        return self.run

    # --- What the loop calls ---

    def _trainable_model(self) -> torch.nn.Module:
        """The reward model, as the loop calls it to have gradients."""
        if self.settings.gradient_checkpointing:
            self.reward.backbone.gradient_checkpointing_enable({"use_reentrant": False})
        with self.reward.use_adapter():
            # a model that was loaded is frozen
            for weight in self.weights.values():
                weight.requires_grad_(True)
            return distributed.wrap_for_processes(self.accelerator, self.reward)

    def records_of_step(self, step: int) -> list[PreferenceRecord]:
        """The records of a step. Each epoch has its own order, by seed and epoch alone."""
        epoch, place = divmod(step, self.steps_an_epoch)
        # no state of the generator is kept: a run that goes on draws the same order
        order = np.random.default_rng([self.seed, epoch]).permutation(len(self.records))
        start = place * self.per_step
        return [self.records[i] for i in order[start : start + self.per_step]]

    def pieces(self, records: list[PreferenceRecord]) -> Iterator[list[PreferenceRecord]]:
        """Yield this process's share of the records, as many at a time as fit into one forward."""
        own = distributed.own_share(self.accelerator, records)
        size = self.settings.batch_size
        for start in range(0, len(own), size):
            yield own[start : start + size]

    def pack(self, records: Sequence[PreferenceRecord]) -> PackedAnswers:
        """Model inputs of all answers of some records, with their images."""
        # opened here and not before, since those of all data would not fit into memory
        images = []
        for record in records:
            images.append([open_image(image, record.place) for image in record.image_paths])
        return self.reward.batch(records, images)

    def watch_numbers(self, loss: float, norm: float) -> bool:
        """Are loss and gradient finite? Raises UsageError if `MAX_OVERFLOWS` steps were not."""
        finite = math.isfinite(loss) and math.isfinite(norm)
        self.not_finite = 0 if finite else self.not_finite + 1
        if self.not_finite == MAX_OVERFLOWS:
            raise UsageError(
                f"reward model: loss {loss:g} and gradient {norm:g} at step {self.step + 1}, "
                f"and nothing finite for {MAX_OVERFLOWS} steps. The weights are those before "
                "them. Lower learning_rate, or look for answers that are empty."
            )
        return finite

    def evaluate(self) -> None:
        """Note accuracy and loss on the held-out records; keep the weights if they are better."""
        accuracy, loss = self.held_out_accuracy()
        best_before = max((row["accuracy"] for row in self.run.evaluations), default=-math.inf)
        if accuracy > best_before:
            for name, value in self.weights.items():
                self.best[name] = value.detach().cpu().clone()
            self.run.best_step = self.step
        self.run.evaluations.append({"step": self.step, "accuracy": accuracy, "loss": loss})

    def held_out_accuracy(self) -> tuple[float, float]:
        """Accuracy and mean loss on the held-out records."""
        # each process scores its share, and has all scores then
        own = score_records(self.reward, distributed.own_share(self.accelerator, self.held_out))
        scores = distributed.gather_in_order(self.accelerator, own)
        accuracy = pair_hits(pair_gaps(self.held_out, scores)).mean()
        flat = torch.tensor([value for row in scores for value in row])
        return float(accuracy), float(losses_of(flat, self.held_out, self.settings).mean())

    def is_stuck(self) -> bool:
        """Has held-out accuracy not risen in the last `patience` evaluations?"""
        since = [row for row in self.run.evaluations if row["step"] > self.run.best_step]
        return len(since) >= self.settings.patience

    def _progress_bar(self) -> tqdm:
        return tqdm(
            total=self.steps,
            initial=self.step,
            desc=f"reward model, {self.settings.objective}",
            unit="step",
            disable=not self.accelerator.is_main_process or None,
        )

    # --- What it goes on from ---

    def _identity(self) -> Identity:
        reward = self.reward
        return run_identity(
            "reward model",
            reward.backbone,
            reward.processor,
            self.records,
            self.settings,
            seed=self.seed,
            held_out=data_hash(self.held_out),
            # of a model that was loaded, whatever the settings say
            pooling=reward.pooling_name,
            sees_images=reward.sees_images,
            packs=reward.packer.packs,
            first_weights=tensors_hash(sorted(self.weights.items())),
        )

    def _stateful(self) -> dict[str, Any]:
        """What keeps a state of its own between steps."""
        parts = {"optimizer": self.optimizer, "schedule": self.schedule}
        if self.accelerator.scaler:
            parts["scaler"] = self.accelerator.scaler
        return parts

    def _save(self) -> None:
        state = {
            "run": asdict(self.run),
            "weights": {name: value.detach() for name, value in self.weights.items()},
            "best": self.best,
            "not_finite": self.not_finite,
            # of every process, since each draws its own dropout
            "random": gather_object([_random_states()]),
            "finished": self.step == self.steps or self.is_stuck(),
        }
        for name, part in self._stateful().items():
            state[name] = part.state_dict()
        self.checkpoints.save(self.step, state)

    def _go_on(self) -> None:
        found = self.checkpoints.load(self.steps)
        if found is None:
            return
        self.step, state = found
        self.run = RewardRun(**state["run"])
        self.best = state["best"]
        self.not_finite = state["not_finite"]
        self._restore(state["weights"])
        for name, part in self._stateful().items():
            part.load_state_dict(state[name])
        cpu, *gpus = state["random"][self.accelerator.process_index]
        torch.set_rng_state(cpu)
        if gpus:
            torch.cuda.set_rng_state_all(gpus)

    @torch.no_grad()
    def _restore(self, weights: dict[str, Tensor]) -> None:
        for name, value in weights.items():
            self.weights[name].copy_(value)


def _random_states() -> list[Tensor]:
    """The state of random numbers of this process, and of its GPUs."""
    gpus = torch.cuda.get_rng_state_all() if has_cuda() else []
    return [torch.get_rng_state(), *gpus]
