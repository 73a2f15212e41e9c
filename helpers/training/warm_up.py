"""A critic that knows what a mistake is before PPO begins, at the cost of no sample.

It is trained on any answers whose score is known, whoever wrote them (InstructGPT started its
critic from the reward model for the same reason, arXiv 2203.02155). Taught in notebook 05.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor
from tqdm.auto import tqdm

from helpers import losses
from helpers.data import Task
from helpers.files import UsageError
from helpers.models import PackedAnswers
from helpers.rewards import score_all

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
    learning rate falls linearly to 0. In a run that goes on after a checkpoint nothing is left to
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
    history = []
    trainer.model.eval()
    actor.start_updates()
    for chosen in _prompts_of_steps(len(tasks), epochs, prompts_per_step):
        # what fits into memory, piece by piece, and one step on all of it
        parts = [known.batch(piece) for piece in pieces(chosen, settings.mini_batch)]
        all_scores = torch.cat([scores for _, scores in parts])
        actor.start_at(float(all_scores.mean()))
        history.append(_add_gradients(trainer, parts))
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
    return history


def _prompts_of_steps(prompts: int, epochs: int, prompts_per_step: int) -> Iterator[np.ndarray]:
    """Numbers of the prompts of each step; every epoch has all of them, in an order of its own."""
    rng = np.random.default_rng(0)
    for _ in tqdm(range(epochs), desc="critic", unit="epoch", leave=False):
        order = rng.permutation(prompts)
        yield from pieces(order, prompts_per_step)


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
