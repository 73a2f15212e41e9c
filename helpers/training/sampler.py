"""Which questions an iteration of PPO asks, and in which mini-batches it learns from the answers.

The questions of an iteration are dealt to shards, each of which has a random seed of its own, and
the shards to the processes. So several processes get what one process gets that samples as many
shards. What is drawn follows from the seed and the number of the iteration alone: a run that goes
on after a checkpoint needs no random state. Used by `helpers/training/ppo.py`.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from accelerate import Accelerator
from torch import Tensor

from helpers.config import PPOSettings
from helpers.data import Task
from helpers.models import PackedAnswers, Packer
from helpers.rewards import Scorer

from .distributed import mean_over_processes, own_share
from .rollout import Experience, MiniBatch, Rollout, roll_out

# between the seeds of two slices: a prime, since of seeds the last 32 bits count
SLICE_STEP = 2_654_435_761


def pieces(numbers: np.ndarray, size: int) -> list[np.ndarray]:
    """`numbers` in pieces of `size`; the last one may be smaller."""
    return np.split(numbers, range(size, len(numbers), size))


@dataclass
class Sampler:
    """Samples and scores answers with `packer.model`, and deals them out in mini-batches."""

    packer: Packer
    tasks: Sequence[Task]
    score: Scorer
    truth: Scorer | None  # scores the same answers, and nothing is learnt from it
    settings: PPOSettings
    accelerator: Accelerator
    seed: int
    shards: int

    def sample(self, iteration: int) -> Rollout:
        """The answers to this process's questions of an iteration."""
        self.packer.model.eval()
        rollouts = []
        for shard in own_share(self.accelerator, range(self.shards)):
            # a seed of its own for every iteration, shard and slice
            seed = (self.seed * 1_000_003 + iteration) * 1_009 + shard
            for tasks in self._cut(self.next_tasks(iteration, shard)):
                rollout = roll_out(
                    self.packer,
                    tasks,
                    self.score,
                    self.settings,
                    seed,
                    self.truth,
                )
                rollouts.append(rollout)
                seed += SLICE_STEP
        return Rollout.concatenate(rollouts)

    def next_tasks(self, iteration: int, shard: int) -> list[Task]:
        """The tasks of an iteration and shard; each pass over all tasks has an order of its own."""
        size = self.settings.prompts_per_iteration
        passes, place = divmod(iteration, len(self.tasks) // size)
        rng = np.random.default_rng([self.seed, passes])
        order = rng.permutation(len(self.tasks))
        asked = order[place * size : (place + 1) * size]
        own = asked[shard :: self.shards]
        return [self.tasks[number] for number in own]

    def _cut(self, tasks: Sequence) -> list[Sequence]:
        """Slices of tasks that fit into memory together in passes without gradients."""
        size = self.settings.sampling_batch
        if size == 0:
            # all of a shard
            size = self.settings.prompts_per_iteration // self.shards
        return [tasks[start : start + size] for start in range(0, len(tasks), size)]

    def slices(self, rollout: Rollout) -> Iterator[PackedAnswers]:
        """All answers of a rollout as inputs of passes without gradients."""
        for tasks in self._cut(range(len(rollout.tasks))):
            yield rollout.pack(self.packer, tasks)

    def mini_batches(self, experience: Experience, iteration: int) -> Iterator[MiniBatch]:
        """The experience in mini-batches of tasks, `epochs` times, each time in another order."""
        settings = self.settings
        rng = np.random.default_rng([self.seed, iteration])
        shard_size = settings.prompts_per_iteration // self.shards
        size = settings.mini_batch // self.shards
        shard_starts = range(0, len(experience.rollout.tasks), shard_size)
        for _ in range(settings.epochs):
            # the same places of every shard, so that it does not matter who has which shard
            order = rng.permutation(shard_size)
            for places in pieces(order, size):
                tasks = np.concatenate([start + places for start in shard_starts])
                batch = self._mini_batch(experience, tasks)
                # no step where no process has a token to learn from
                if batch.count > 0:
                    yield batch

    def _mini_batch(self, experience: Experience, tasks: np.ndarray) -> MiniBatch:
        rollout = experience.rollout
        # which answers, and then which tasks, have a token to learn from
        answers = experience.learnt.any(1)
        learnt = answers.view(-1, rollout.group_size).any(1).tolist()
        chosen = [task for task in tasks if learnt[task]]
        if not chosen:
            # a task without such a token keeps this process in step with the others
            chosen = tasks[:1]
        packed = rollout.pack(self.packer, chosen)
        numbers = rollout.answer_numbers(chosen)
        longest = packed.mask.shape[1] - 1

        def cut(figure: Tensor) -> Tensor:
            return figure[numbers, :longest]

        mask = cut(experience.learnt)
        return MiniBatch(
            packed=packed,
            mask=mask,
            old_logps=cut(experience.old_logps),
            reference_logps=cut(experience.reference_logps),
            values=cut(experience.values),
            advantages=cut(experience.advantages),
            returns=cut(experience.returns),
            count=mean_over_processes(self.accelerator, mask.sum()),
        )
