"""A critic that knows what a mistake is before PPO begins, at the cost of no sample.

It is trained on any answers whose score is known, whoever wrote them (InstructGPT started its
critic from the reward model for the same reason, arXiv 2203.02155). Taught in notebook 05.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from accelerate.optimizer import AcceleratedOptimizer
from torch import Tensor
from tqdm.auto import tqdm

from helpers import losses
from helpers.data import Task, stable_hash
from helpers.files import UsageError
from helpers.models import PackedAnswers
from helpers.rewards import score_all

from .checkpoint import Checkpoints, data_hash
from .ppo import PPOTrainer
from .sampler import Sampler, pieces


@dataclass
class KnownAnswers:
    """Answers to tasks and their scores, each of which is computed once."""

    sampler: Sampler  # packs and scores them
    tasks: Sequence[Task]
    answers: Sequence[Sequence[str]]  # to each task
    scores: dict[int, list[float]] = field(default_factory=dict)  # number of a task → its answers'

    def batch(self, numbers: Sequence[int]) -> tuple[PackedAnswers, Tensor]:
        """The answers to the tasks with these numbers, and their scores, (answers,)."""
        turns, images = [], []
        answers, scores = [], []
        for number in numbers:
            task = self.tasks[number]
            pictures = task.open_images()
            if number not in self.scores:
                given = [task.scorer_inputs(pictures, text) for text in self.answers[number]]
                found = score_all(self.sampler.score, given)
                self.scores[number] = [score.total for score in found]
            turns.append(task.turns)
            images.append(pictures)
            answers.append(self.answers[number])
            scores += self.scores[number]
        packed = self.sampler.packer(turns, images, answers)
        return packed, torch.tensor(scores).to(packed.mask.device)


def warm_up_critic(
    trainer: PPOTrainer,
    tasks: Sequence[Task],
    answers: Sequence[Sequence[str]],
    epochs: int = 8,
    prompts_per_step: int = 16,
) -> list[float]:
    """Draw the value of every token to the score of its whole answer; returns the losses.

    answers: to each task, whoever wrote them. `mini_batch` of a step's prompts are in one pass. The
    learning rate falls linearly to 0. A trainer with a folder keeps the state after every epoch in
    `warm-up` there, and goes on from it. In a run that has iterations behind it nothing is left to
    do: its critic is warm. Raises UsageError if the critic has no adapter of its own.
    """
    actor, settings = trainer.actor, trainer.settings
    if not actor.own_adapter:
        raise UsageError(
            "only a critic with an adapter of its own can be warmed up: set critic_adapter=True."
        )
    if trainer.iteration:
        return []
    known = KnownAnswers(trainer.sampler, tasks, answers)
    weights = actor.trainable_parameters()["critic"]
    rate = settings.critic_warm_up_learning_rate
    adamw = torch.optim.AdamW(weights, lr=rate, weight_decay=0.0)
    # the last step of an epoch may be smaller
    steps = epochs * -(-len(tasks) // prompts_per_step)
    schedule = torch.optim.lr_scheduler.LinearLR(adamw, 1.0, 0.0, steps)
    optimizer = trainer.accelerator.prepare(adamw)
    state = WarmUpState(trainer, optimizer, schedule)
    kept = _checkpoints(trainer, known, epochs, prompts_per_step)
    done = state.go_on(kept, epochs)
    trainer.model.eval()
    actor.start_updates()
    for epoch, order in _orders(len(tasks), epochs):
        if epoch < done:
            continue
        for chosen in pieces(order, prompts_per_step):
            state.take_step([known.batch(piece) for piece in pieces(chosen, settings.mini_batch)])
        kept.save(epoch + 1, state.as_dictionary())
    return state.losses


@dataclass
class WarmUpState:
    """What the next step of a warm-up depends on, and the losses so far."""

    trainer: PPOTrainer
    optimizer: AcceleratedOptimizer
    schedule: torch.optim.lr_scheduler.LRScheduler
    losses: list[float] = field(default_factory=list)

    def as_dictionary(self) -> dict[str, Any]:
        return {
            "weights": self.trainer.actor.trained_weights(),
            "optimizer": self.optimizer.state_dict(),
            "schedule": self.schedule.state_dict(),
            "losses": self.losses,
        }

    def take_step(self, parts: Sequence[tuple[PackedAnswers, Tensor]]) -> None:
        """Go a step on some answers and their scores, which come in parts that fit into memory."""
        scores = torch.cat([scores for _, scores in parts])
        self.trainer.actor.start_at(float(scores.mean()))
        self.losses.append(_add_gradients(self.trainer, parts))
        self.optimizer.step()
        self.schedule.step()
        self.optimizer.zero_grad()

    @torch.no_grad()
    def go_on(self, kept: Checkpoints, epochs: int) -> int:
        """Take up the state of the newest checkpoint; returns how many epochs are done."""
        found = kept.load(epochs)
        if found is None:
            return 0
        epoch, state = found
        for name, weight in self.trainer.actor.trained_weights().items():
            weight.copy_(state["weights"][name])
        self.optimizer.load_state_dict(state["optimizer"])
        self.schedule.load_state_dict(state["schedule"])
        self.losses = state["losses"]
        return epoch


def _checkpoints(
    trainer: PPOTrainer, known: KnownAnswers, epochs: int, prompts_per_step: int
) -> Checkpoints:
    """Return the checkpoints of a warm-up; those of another one are set aside."""
    run = trainer.checkpoints
    if run.folder is None:
        return Checkpoints(None, {})
    more = {
        "stage": "warm-up of a critic",
        "warm-up tasks": data_hash(known.tasks),
        "answers": stable_hash([list(each) for each in known.answers]),
        "epochs of the warm-up": str(epochs),
        "prompts a step": str(prompts_per_step),
    }
    return Checkpoints(run.folder / "warm-up", run.identity | more, replace_other=True)


def _orders(prompts: int, epochs: int) -> Iterator[tuple[int, np.ndarray]]:
    """Yield the number of each epoch and the order of its prompts; each epoch has its own."""
    rng = np.random.default_rng(0)
    for epoch in tqdm(range(epochs), desc="critic", unit="epoch", leave=False):
        yield epoch, rng.permutation(prompts)


def _add_gradients(trainer: PPOTrainer, parts: Sequence[tuple[PackedAnswers, Tensor]]) -> float:
    """Add up the gradients of a step, part by part; returns its loss, a mean over all tokens."""
    tokens = sum(packed.mask[:, 1:].sum() for packed, _ in parts)
    total = 0.0
    for packed, scores in parts:
        with trainer.actor.as_critic():
            # (answers, longest), against one score an answer
            values = trainer.forward(packed, critic=True)
            errors = (values - scores[:, None]) ** 2
            loss = 0.5 * losses.masked_mean(errors, packed.mask[:, 1:], tokens)
            trainer.accelerator.backward(loss)
        total += float(loss.detach())
    return total
