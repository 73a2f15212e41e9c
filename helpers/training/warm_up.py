"""A critic that knows what a mistake is before PPO begins, at the cost of no sample.

It is trained on any answers whose score is known, whoever wrote them (InstructGPT started its
critic from the reward model for the same reason, arXiv 2203.02155). Taught in notebook 05.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from accelerate import Accelerator
from torch import Tensor, nn
from tqdm.auto import tqdm

from helpers import losses
from helpers.files import UsageError
from helpers.models import PackedAnswers, Packer
from helpers.rewards import Scorer, score_all

from .actor_critic import ActorCritic
from .rollout import Task


@dataclass
class KnownAnswers:
    """Answers to tasks, whoever wrote them, and their scores, each of which is computed once."""

    packer: Packer
    score: Scorer
    tasks: Sequence[Task]
    answers: Sequence[Sequence[str]]  # to each task
    scores: dict[int, list[float]] = field(default_factory=dict)  # number of a task → its answers'

    def batch(self, numbers: Sequence[int]) -> tuple[PackedAnswers, Tensor]:
        """The answers to the tasks with these numbers, and their scores, (answers,)."""
        images = [self.tasks[number].open_images() for number in numbers]
        scores = []
        for number, pictures in zip(numbers, images, strict=True):
            if number not in self.scores:
                task = self.tasks[number]
                given = [task.scorer_inputs(pictures, text) for text in self.answers[number]]
                self.scores[number] = [found.total for found in score_all(self.score, given)]
            scores += self.scores[number]
        turns = [self.tasks[number].turns for number in numbers]
        packed = self.packer(turns, images, [self.answers[number] for number in numbers])
        return packed, torch.tensor(scores).to(self.packer.device)


def warm_up_critic(
    actor: ActorCritic,
    forward: nn.Module,
    accelerator: Accelerator,
    known: KnownAnswers,
    epochs: int,
    prompts_per_step: int,
) -> list[float]:
    """Draw the value of every token to the score of the whole answer; returns the losses.

    `mini_batch` of a step's prompts are in one pass. The learning rate falls linearly to 0.
    forward: `actor`, as several processes call it. Raises UsageError if the critic has no adapter
    of its own.
    """
    if not actor.own_adapter:
        raise UsageError(
            "only a critic with an adapter of its own can be warmed up: set critic_adapter=True."
        )
    settings = actor.settings
    prompts = len(known.tasks)
    adamw = torch.optim.AdamW(
        actor.trainable_parameters()["critic"],
        lr=settings.critic_warm_up_learning_rate,
        weight_decay=0.0,
    )
    steps = epochs * -(-prompts // prompts_per_step)  # the last step of an epoch may be smaller
    schedule = torch.optim.lr_scheduler.LinearLR(adamw, 1.0, 0.0, steps)
    optimizer = accelerator.prepare(adamw)
    rng = np.random.default_rng(0)
    history = []
    actor.start_updates()
    for _ in tqdm(range(epochs), desc="critic", unit="epoch", leave=False):
        # an epoch sees all prompts, in an order of its own
        order = rng.permutation(prompts)
        for chosen in _pieces(order, prompts_per_step):
            parts = [known.batch(piece) for piece in _pieces(chosen, settings.mini_batch)]
            mean = torch.cat([scores for _, scores in parts]).mean()
            actor.start_at(float(mean))
            history.append(_add_gradients(actor, forward, accelerator, parts))
            optimizer.step()
            schedule.step()
            optimizer.zero_grad()
    return history


def _pieces(numbers: np.ndarray, size: int) -> list[np.ndarray]:
    return np.split(numbers, range(size, len(numbers), size))


def _add_gradients(
    actor: ActorCritic,
    forward: nn.Module,
    accelerator: Accelerator,
    parts: Sequence[tuple[PackedAnswers, Tensor]],
) -> float:
    """Add up the gradients of a step, part by part; returns its loss, a mean over all tokens."""
    tokens = sum(packed.mask[:, 1:].sum() for packed, _ in parts)
    total = 0.0
    for packed, scores in parts:
        with actor.as_critic():
            errors = (forward(packed, critic=True) - scores[:, None]) ** 2
            loss = 0.5 * losses.masked_mean(errors, packed.mask[:, 1:], tokens)
            accelerator.backward(loss)
        total += float(loss.detach())
    return total
