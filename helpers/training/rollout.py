"""What one iteration of PPO, RLOO or GRPO learns from: answers that the policy sampled, and what they are worth.

Several answers to a prompt are sampled together, with its image's features computed once. The tokens are kept
as they were sampled: reading them again from the text may give others, and the ratio of new to old
probability would then compare two different answers. Taught in notebook 05.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor
from torch.nn.functional import pad

from helpers.data import Counts, Message, PreferenceRecord
from helpers.files import open_image
from helpers.models import EncodedPrompts, Packer, answer_texts, sample_ids, user_message
from helpers.rewards import Facts, Scorer, ScorerInputs, score_all


@dataclass(frozen=True)
class Task:
    """A question that is answered again and again; images are opened when they are needed."""

    images: tuple[Path, ...]
    turns: tuple[Message, ...]  # the last one is the question
    facts: Facts  # the truth that the rewards need

    @property
    def question(self) -> str:
        return self.turns[-1].content

    def open_images(self) -> list[Image.Image]:
        """The images, decoded. Raises UsageError naming one that cannot be read."""
        return [open_image(image) for image in self.images]

    def scorer_inputs(self, images: Sequence[Image.Image], answer: str) -> ScorerInputs:
        """Arguments for a scorer: the first image, the question, the answer and the truth."""
        return images[0] if images else None, self.question, answer, self.facts


def tasks_of(records: Sequence[PreferenceRecord]) -> list[Task]:
    """The prompts of records; their answers are not used, their truth is."""
    return [
        Task(tuple(record.image_paths), tuple(record.prompt), record.truth) for record in records
    ]


def tasks_asking(
    records: Sequence[PreferenceRecord],
    ask: Callable[[Counts, int], tuple[str, str]],
) -> list[Task]:
    """Other questions about the images of records, with their true answers.

    ask: the true counts and the number of a record → question and answer, such as
    `data.presence_question`.
    """
    tasks = []
    for number, record in enumerate(records):
        question, answer = ask(record.truth, number)
        tasks.append(Task(tuple(record.image_paths), (user_message(question),), answer))
    return tasks


@dataclass(frozen=True)
class Rollout:
    """`group_size` answers to each task, the answers to one task together."""

    prompts: EncodedPrompts  # of the tasks, as they were read for sampling; updates read them no second time
    images: Sequence[Sequence[Image.Image]]
    group_size: int
    ids: Sequence[Tensor]  # tokens of each answer, with the end of turn if it came
    texts: Sequence[str]
    ended: Tensor  # (answers,) bool
    scores: Tensor  # (answers,), the penalty for a missing end included
    parts: dict[str, Tensor]  # what the scores are made of, (answers,) each
    truth: Tensor | None = None  # (answers,) score by another scorer, which is only watched

    @classmethod
    def concatenate(cls, parts: Sequence["Rollout"]) -> "Rollout":
        """The rollouts of several lists of tasks as one."""
        if len(parts) == 1:
            return parts[0]
        rows = {
            name: [x for part in parts for x in getattr(part, name)]
            for name in ("images", "ids", "texts")
        }
        names = dict.fromkeys(name for part in parts for name in part.parts)
        return cls(
            prompts=EncodedPrompts.concatenate([part.prompts for part in parts]),
            **rows,
            group_size=parts[0].group_size,
            ended=torch.cat([part.ended for part in parts]),
            scores=torch.cat([part.scores for part in parts]),
            parts={
                n: torch.cat([p.parts.get(n, torch.zeros(len(p.scores))) for p in parts])
                for n in names
            },
            truth=None if parts[0].truth is None else torch.cat([part.truth for part in parts]),
        )

    def answers(self, task: int) -> Sequence[Tensor]:
        return self.ids[task * self.group_size : (task + 1) * self.group_size]

    def answer_numbers(self, tasks: Sequence[int]) -> list[int]:
        """Numbers of the answers to these tasks, in their order."""
        return [task * self.group_size + k for task in tasks for k in range(self.group_size)]


@dataclass(frozen=True)
class Experience:
    """A rollout with what is known of its tokens; tensors are (answers, longest), 0 where `mask` is 0.

    Two of the three log-probabilities are here: `old_logps`, of the policy that sampled, and `reference_logps`.
    The third, of the policy that is being updated, is computed anew in each update.
    """

    rollout: Rollout
    mask: Tensor  # 1 on an answer's own tokens
    old_logps: Tensor
    reference_logps: Tensor
    values: Tensor  # what the critic expects before each token
    entropy: Tensor
    rewards: Tensor  # of each token: the score on the last one, and the KL penalty
    advantages: Tensor
    returns: Tensor  # what the critic should have expected

    def cut(self, name: str, answers: Sequence[int], longest: int) -> Tensor:
        """A tensor for some of the answers, none of which is longer than `longest`."""
        return getattr(self, name)[answers, :longest]


def pad_and_stack(parts: Sequence[Tensor]) -> Tensor:
    """(answers, longest) of several slices as one, with 0 where the answers of a slice are shorter."""
    longest = max(part.shape[1] for part in parts)
    return torch.cat([pad(part, (0, longest - part.shape[1])) for part in parts])


def roll_out(
    packer: Packer,
    tasks: Sequence[Task],
    score: Scorer,
    *,
    group_size: int,
    temperature: float,
    top_p: float,
    max_new_tokens: int,
    no_end_penalty: float,
    seed: int,
    truth: Scorer | None = None,
) -> Rollout:
    """Sample `group_size` answers to each task and score them; one that does not end loses `no_end_penalty`.

    packer: of the model that answers.
    """
    images = [task.open_images() for task in tasks]
    prompts = packer.encode([task.turns for task in tasks], images)
    repeated = [number for number in range(len(tasks)) for _ in range(group_size)]
    ids, ended = sample_ids(
        packer.model, packer.processor, prompts, group_size=group_size,
        temperature=temperature, top_p=top_p, max_new_tokens=max_new_tokens, seed=seed,
    )  # fmt: skip
    texts = answer_texts(packer.processor, ids)
    rows = [
        tasks[i].scorer_inputs(images[i], text) for i, text in zip(repeated, texts, strict=True)
    ]
    found, ends = score_all(score, rows), torch.tensor(ended)
    names = dict.fromkeys(name for result in found for name in result.parts)
    return Rollout(
        prompts, images, group_size, ids, texts, ends,
        scores=torch.tensor([result.total for result in found]) - no_end_penalty * (~ends).float(),
        parts={name: torch.tensor([result.parts.get(name, 0.0) for result in found]) for name in names},
        truth=torch.tensor([result.total for result in score_all(truth, rows)]) if truth else None,
    )  # fmt: skip
