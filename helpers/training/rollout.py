"""What an iteration of PPO, RLOO or GRPO learns from: sampled answers, and what they are worth.

Several answers to a prompt are sampled together, with its image's features computed once. The
tokens are kept as they were sampled: reading them again from the text may give others, and the
ratio of new to old probability would then compare two different answers. Taught in notebook 05.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from PIL import Image
from torch import Tensor

from helpers.config import PPOSettings
from helpers.data import Task
from helpers.models import (
    EncodedPrompts,
    PackedAnswers,
    Packer,
    answer_texts,
    sample_ids,
)
from helpers.rewards import Score, Scorer, ScorerInputs, score_all


@dataclass(frozen=True)
class Rollout:
    """`group_size` answers to each task, the answers to one task together."""

    tasks: Sequence[Task]
    prompts: EncodedPrompts  # as they were read for sampling; updates read them no second time
    images: Sequence[Sequence[Image.Image]]
    group_size: int
    ids: Sequence[Tensor]  # tokens of each answer, with the end of turn if it came
    texts: Sequence[str]
    ended: Tensor  # (answers,) bool
    scores: Tensor  # (answers,), the penalty for a missing end included
    results: Sequence[Score]  # of each answer: what the score is made of
    truth: Tensor | None = None  # (answers,) score by another scorer, which is only watched

    @classmethod
    def concatenate(cls, rollouts: Sequence["Rollout"]) -> "Rollout":
        """The rollouts of several lists of tasks as one."""
        if len(rollouts) == 1:
            return rollouts[0]
        truths = [one.truth for one in rollouts]
        return cls(
            tasks=[task for one in rollouts for task in one.tasks],
            prompts=EncodedPrompts.concatenate([one.prompts for one in rollouts]),
            images=[images for one in rollouts for images in one.images],
            group_size=rollouts[0].group_size,
            ids=[ids for one in rollouts for ids in one.ids],
            texts=[text for one in rollouts for text in one.texts],
            ended=torch.cat([one.ended for one in rollouts]),
            scores=torch.cat([one.scores for one in rollouts]),
            results=[score for one in rollouts for score in one.results],
            truth=None if truths[0] is None else torch.cat(truths),
        )

    def answers(self, task: int) -> Sequence[Tensor]:
        return self.ids[task * self.group_size : (task + 1) * self.group_size]

    def answer_numbers(self, tasks: Sequence[int]) -> list[int]:
        """Numbers of the answers to these tasks, in their order."""
        return [task * self.group_size + k for task in tasks for k in range(self.group_size)]

    def pack(self, packer: Packer, tasks: Sequence[int] | None = None) -> PackedAnswers:
        """Model inputs of the answers to some of the tasks (None: all of them), in their order."""
        chosen = range(len(self.tasks)) if tasks is None else tasks
        return packer.pack(self.prompts.select(chosen), [self.answers(task) for task in chosen])

    @property
    def parts(self) -> dict[str, Tensor]:
        """What the scores are made of, (answers,) each; a part that a score does not have is 0."""
        table = {}
        for name in dict.fromkeys(name for score in self.results for name in score.parts):
            table[name] = torch.tensor([score.parts.get(name, 0.0) for score in self.results])
        return table

    def equal_scores(self) -> Tensor:
        """Do all answers to a task have the same score? (tasks,) bool."""
        # (tasks, group_size)
        grouped = self.scores.view(-1, self.group_size)
        return (grouped == grouped[:, :1]).all(1)


def keep_all(rollout: Rollout) -> Tensor:
    """Learn from every answer."""
    return torch.ones(len(rollout.scores), dtype=torch.bool)


def keep_different_scores(rollout: Rollout) -> Tensor:
    """Learn from the answers to a task only if their scores differ: equal ones compare nothing.

    The dynamic sampling of DAPO (Yu et al. 2025, arXiv 2503.14476), without sampling others
    instead.
    """
    return ~rollout.equal_scores().repeat_interleave(rollout.group_size)


# name → which answers of a rollout are learnt from, (answers,) bool
ROLLOUT_FILTERS = {"all": keep_all, "different_scores": keep_different_scores}


@dataclass(frozen=True)
class Experience:
    """A rollout with what is known of its tokens; tensors are (answers, longest), 0 where `mask`
    is.

    Two of the three log-probabilities are here: `old_logps`, of the policy that sampled, and
    `reference_logps`. The third, of the policy that is being updated, is computed anew in each
    update.
    """

    rollout: Rollout
    # as in `TokenLook`
    mask: Tensor  # True on an answer's own tokens
    old_logps: Tensor
    reference_logps: Tensor
    entropy: Tensor
    values: Tensor  # what the critic expects before each token; without one, the mean
    # what follows from them
    learnt: Tensor  # as `mask`, but nowhere in answers that the filter left out
    rewards: Tensor  # of each token: the score on the last one, and the KL penalty
    advantages: Tensor
    returns: Tensor  # what the critic should have expected


@dataclass(frozen=True)
class MiniBatch:
    """The answers of one update; tensors are (answers, longest)."""

    packed: PackedAnswers
    mask: Tensor  # True on the tokens that are learnt from
    old_logps: Tensor
    reference_logps: Tensor
    values: Tensor
    advantages: Tensor
    returns: Tensor
    count: Tensor  # (), what sums over tokens are divided by: those of all processes / processes


def roll_out(
    packer: Packer,
    tasks: Sequence[Task],
    score: Scorer,
    settings: PPOSettings,
    seed: int,
    truth: Scorer | None = None,
) -> Rollout:
    """Sample `group_size` answers to each task with `packer.model`, and score them."""
    # each prompt and each image is read once, here
    images = [task.open_images() for task in tasks]
    prompts = packer.encode([task.turns for task in tasks], images)
    ids, ended = sample_ids(
        packer.model,
        packer.processor,
        prompts,
        group_size=settings.group_size,
        temperature=settings.temperature,
        top_p=settings.top_p,
        max_new_tokens=settings.max_new_tokens,
        seed=seed,
    )
    texts = answer_texts(packer.processor, ids)
    rows = _scorer_rows(tasks, images, texts, settings.group_size)
    found = score_all(score, rows)
    ends = torch.tensor(ended)
    # an answer is worth its score, less what a missing end costs
    penalties = settings.no_end_penalty * (~ends).float()
    return Rollout(
        tasks=tasks,
        prompts=prompts,
        images=images,
        group_size=settings.group_size,
        ids=ids,
        texts=texts,
        ended=ends,
        scores=_totals(found) - penalties,
        results=found,
        truth=_totals(score_all(truth, rows)) if truth else None,
    )


def _scorer_rows(
    tasks: Sequence[Task],
    images: Sequence[Sequence[Image.Image]],
    texts: Sequence[str],
    group_size: int,
) -> list[ScorerInputs]:
    rows = []
    for number, text in enumerate(texts):
        # the answers to a task stand together
        task = number // group_size
        rows.append(tasks[task].scorer_inputs(images[task], text))
    return rows


def _totals(scores: Sequence[Score]) -> Tensor:
    return torch.tensor([score.total for score in scores])
