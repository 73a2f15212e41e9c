"""How many samples does a critic save? PPO with and without one: about 20 minutes of CPU time.

python benchmarks/critic.py             # all methods, rates and seeds that critic.json lacks
python benchmarks/critic.py --table     # only writes the table again

The embedded model counts four kinds of vehicles in an answer. Two rewards: *at the end* is 1 for an
answer whose counts are all true; *at each count* gives the share of true counts, a quarter for each
at the token that ends it, so that what is still to come depends on the place. One number for all
places is then too low at the beginning and too high at the end, which whitening does not mend. The
fair opponents of the critic have a mean for each place: over all answers, or over the others to the
same question. None of them costs anything.

An iteration has 8 samples (2 questions × 4 answers) and 2 updates, the rate does not fall, and
after each iteration the policy answers 64 validation scenes greedily. A run ends when .90 of them
are right, or after 160 samples. Every method has each of `RATES`, so that no method is measured at
a rate that suits another. The critic has an adapter of its own and is warmed up as in notebook 05;
its λ is the default, or .5, which trusts it more. Seconds are those of the processor, without what
the looks take; those of the warm-up are apart.

Simplification: where a count is rewarded on its own, its place is found by reading the answer's
first tokens, and the next ones, and so on, until the number is there.
"""

import logging
import os
import re
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from benchmarks.arguments import benchmark_parser
from helpers import losses, models
from helpers.config import PPO_PRESETS, PPOSettings
from helpers.data import Task, read_counts
from helpers.data.pairs import counting_tasks
from helpers.data.preferences import read_records
from helpers.data.tasks import tasks_of
from helpers.evaluation.task_results import evaluate_tasks
from helpers.evaluation.truth_judges import judges
from helpers.files import read_json, write_json
from helpers.losses import TokenMean
from helpers.report import markdown_table
from helpers.rewards import known_answers
from helpers.rewards.scoring import count_exact, count_per_class
from helpers.runtime import machine_summary
from helpers.training.advantages import ADVANTAGES, AdvantageWay
from helpers.training.ppo import PPOTrainer
from helpers.training.rollout import Rollout
from helpers.training.warm_up import warm_up_critic
from helpers.training.watch import pooled_explained_variance
from tools.publish import write_block

OUT = Path(__file__).with_suffix(".json")
PAGE = ROOT / "docs" / "results.md"
BLOCK = "table of benchmarks/critic.py"
TRAFFIC = ROOT / "data" / "traffic"
GOAL = 0.9  # greedy exact share of the held-out scenes
HELD_OUT = 64
MOST_SAMPLES = 160
RATES = (1e-3, 2e-3)  # that of the preset, and twice as much
SEEDS = (0, 1, 2)
WARM_UP = 8  # epochs of the critic, as in notebook 05
SETTINGS = replace(
    PPO_PRESETS["tiny"],
    prompts_per_iteration=2,
    group_size=4,
    mini_batch=2,
    anneal_lr=False,
    critic_layers=0,
)
CRITIC = {"critic_layers": 3, "critic_adapter": True}
AT_EACH_COUNT = "at each count"

Figures = dict[str, dict[str, float]]


@dataclass(frozen=True)
class Method:
    """What is measured against what."""

    expected: str  # what is taken off the return: "constant", "mean", "others" or "critic"
    changes: Mapping[str, object] = field(default_factory=dict)  # to the settings


CRITICS = {
    "critic, λ .95": Method("critic", CRITIC),
    "critic, λ .5": Method("critic", CRITIC | {"lam": 0.5}),
}
# reward → name → method
METHODS = {
    "at the end": {
        "constant": Method("constant"),
        "RLOO": Method("others", {"advantages": "rloo"}),
        **CRITICS,
    },
    AT_EACH_COUNT: {
        "constant": Method("constant"),
        "mean at each count": Method("mean"),
        "RLOO at each count": Method("others"),
        **CRITICS,
    },
}


# --- a reward at each count ---


@dataclass(frozen=True)
class CountPlaces:
    """Where the counts of answers are earned; tensors (answers, longest)."""

    rewards: Tensor  # a count's part of the score at the token that ends its number
    ended: Tensor  # how many numbers have ended before each token


def count_places(rollout: Rollout, tokenizer: PreTrainedTokenizerBase, longest: int) -> CountPlaces:
    """Find the token that ends each true class's number, in the answers that have a score."""
    rewards = torch.zeros(len(rollout.ids), longest)
    ended = torch.zeros(len(rollout.ids), longest, dtype=torch.long)
    for row, (ids, text, score) in enumerate(
        zip(rollout.ids, rollout.texts, rollout.results, strict=True)
    ):
        facts = rollout.tasks[row // rollout.group_size].facts
        # an answer that cannot be read has no counts, and earns nothing
        found = _numbers(text, facts) if score.total else []
        ends = _token_ends(ids.tolist(), tokenizer)
        for end, is_right in found:
            # the first token after which the number is there
            place = int(np.searchsorted(ends, end))
            rewards[row, place] += is_right / len(facts)
            ended[row, place + 1 :] += 1
    return CountPlaces(rewards, ended)


def _numbers(text: str, facts: Mapping[str, int]) -> list[tuple[int, bool]]:
    """Where each class's number ends in the answer, in characters, and whether it is true."""
    found = []
    for name, number in facts.items():
        stated = re.search(rf"\d+(?= {re.escape(name)}\b)", text)
        if stated:
            found.append((stated.end(), int(stated[0]) == number))
    return found


def _token_ends(ids: Sequence[int], tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """How many characters of the answer there are after each of its tokens."""
    texts = [tokenizer.decode(ids[: n + 1], skip_special_tokens=True) for n in range(len(ids))]
    return [len(text) for text in texts]


@dataclass
class EachCount:
    """Advantages of a run in which each count is rewarded where it is stated."""

    expected: str
    tokenizer: PreTrainedTokenizerBase
    rollout: Rollout | None = None

    def follow(self, trainer: PPOTrainer) -> None:
        """Remember what the trainer samples."""
        sample = trainer.sampler.sample

        def remembered(iteration: int) -> Rollout:
            self.rollout = sample(iteration)
            return self.rollout

        trainer.sampler.sample = remembered

    def estimate(
        self,
        rewards: Tensor,
        values: Tensor,
        mask: Tensor,
        settings: PPOSettings,
        mean: TokenMean,
    ) -> tuple[Tensor, Tensor]:
        """An entry of `ADVANTAGES`: the score at the end is given where it was earned instead."""
        places = count_places(self.rollout, self.tokenizer, mask.shape[1])
        rewards = rewards + places.rewards
        last = mask.sum(1).long() - 1
        rewards[torch.arange(len(rewards)), last] -= places.rewards.sum(1)
        # before each token, what the critic expects of the whole answer is partly earned already
        earned = places.rewards.cumsum(1) - places.rewards
        if self.expected == "critic":
            values = (values - earned) * mask
        elif self.expected != "constant":
            ahead, _ = losses.gae(rewards, torch.zeros_like(rewards), mask, 1.0, 1.0)
            group = settings.group_size if self.expected == "others" else None
            values = mean_at_each_count(ahead, places.ended, mask, group)
        lam = settings.lam if self.expected in ("constant", "critic") else 1.0
        by_gae = ADVANTAGES["gae"].estimate
        advantages, returns = by_gae(rewards, values, mask, replace(settings, lam=lam), mean)
        return advantages, (returns + earned) * mask


def mean_at_each_count(
    ahead: Tensor, ended: Tensor, mask: Tensor, group_size: int | None = None
) -> Tensor:
    """Mean of what is ahead after as many numbers; all tensors are (answers, longest).

    group_size: the mean is that of the other answers to the same question; None: of all answers.
    """
    expected = torch.zeros_like(ahead)
    for number in ended[mask].unique():
        here = mask & (ended == number)
        counted = here.float()
        if group_size is None:
            level = (ahead * counted).sum() / counted.sum()
        else:
            own, tokens = (ahead * counted).sum(1), counted.sum(1)
            # (questions, 1) − (questions, group_size): all answers but this one
            totals = [part.view(-1, group_size) for part in (own, tokens)]
            other, beside = (part.sum(1, keepdim=True) - part for part in totals)
            level = (other / beside.clamp(min=1)).view(-1, 1)
        expected += level * counted
    return expected


# --- a run ---


@dataclass
class Sets:
    """What is learnt from and asked, for how long, and the critics that are warm."""

    tasks: Sequence[Task]
    held_out: Sequence[Task]
    warm_up: int  # epochs
    most_samples: int = MOST_SAMPLES
    # reward and seed → weights, and the seconds that they took
    warm: dict[tuple[str, int], tuple[list[Tensor], float]] = field(default_factory=dict)


def warm(trainer: PPOTrainer, sets: Sets, reward: str, seed: int) -> float:
    """Give the trainer the warm critic of a reward and a seed; the seconds that it took."""
    own = trainer.actor.trainable_parameters()["critic"]
    if (reward, seed) not in sets.warm:
        started = time.process_time()
        warm_up_critic(trainer, sets.tasks, known_answers(sets.tasks, seed), sets.warm_up)
        weights = [weight.detach().clone() for weight in own]
        sets.warm[reward, seed] = weights, time.process_time() - started
    weights, seconds = sets.warm[reward, seed]
    with torch.no_grad():
        for weight, learnt in zip(own, weights, strict=True):
            weight.copy_(learnt)
    return seconds


class Goal:
    """A watcher that ends the run where .90 of the held-out answers are right."""

    def __init__(self, processor, held_out: Sequence[Task]):
        self.processor, self.judge = processor, judges(held_out)
        self.shares: dict[int, float] = {}  # after so many samples
        self.seconds = 0.0  # of the processor, of all looks

    def __call__(self, trainer: PPOTrainer) -> None:
        started = time.process_time()
        result = evaluate_tasks(trainer.model, self.processor, self.judge)
        self.shares[int(trainer.log[-1]["samples"])] = result.right_share.value
        trainer.stopped = self.is_reached
        self.seconds += time.process_time() - started

    @property
    def is_reached(self) -> bool:
        return max(self.shares.values()) >= GOAL


def run_once(reward: str, name: str, rate: float, seed: int, sets: Sets) -> Figures:
    """Train until the goal is reached; figures of the run."""
    method = METHODS[reward][name]
    per_iteration = SETTINGS.prompts_per_iteration * SETTINGS.group_size
    limit = {"learning_rate": rate, "iterations": sets.most_samples // per_iteration}
    settings = replace(SETTINGS, **limit, **method.changes)
    model, processor = models.load_model()
    goal = Goal(processor, sets.held_out)
    each = EachCount(method.expected, processor.tokenizer)
    score = count_exact
    if reward == AT_EACH_COUNT:
        score = count_per_class
        settings = replace(settings, advantages=AT_EACH_COUNT)
        ADVANTAGES[AT_EACH_COUNT] = AdvantageWay(each.estimate, learns_values=True)
    trainer = PPOTrainer(model, processor, sets.tasks, score, settings, seed=seed, watch=[goal])
    each.follow(trainer)
    warming = warm(trainer, sets, reward, seed) if trainer.actor.own_adapter else 0.0
    started = time.process_time()
    trainer.train()
    seconds = time.process_time() - started - goal.seconds
    found = {"samples": max(goal.shares), "reached": goal.is_reached, "seconds": seconds}
    if trainer.actor.own_adapter:
        found |= {"warm-up seconds": warming}
        found |= {"explained variance": pooled_explained_variance(trainer.log)}
    return {what: {"value": float(value), "n": 1, "seed": seed} for what, value in found.items()}


def new_runs(
    rates: Sequence[float], seeds: Sequence[int], known: Mapping[str, dict]
) -> Iterator[tuple[str, str, float, int]]:
    """Yield the runs that are not known: reward, name, rate and seed."""
    for seed in seeds:
        for reward, methods in METHODS.items():
            for name in methods:
                for rate in rates:
                    if f"{reward} | {name} | {rate} | {seed} | samples" not in known:
                        yield reward, name, rate, seed


def measure(rates: Sequence[float], seeds: Sequence[int], sets: Sets, out: Path) -> Figures:
    """Run what `out` does not have yet, and write each run to it; all that it has then."""
    figures = read_json(out)["figures"] if out.exists() else {}
    for run in new_runs(rates, seeds, figures):
        start = " | ".join(map(str, run))
        for what, figure in run_once(*run, sets).items():
            figures[f"{start} | {what}"] = figure
        print(start, figures[f"{start} | samples"]["value"], flush=True)
        write_json(out, {"environment": machine_summary(), "figures": figures})
    return figures


# --- the table ---


def table(figures: Figures) -> str:
    """Return a row for each reward and method: samples at each rate, and the best rate's cost."""
    rates = sorted({float(key.split(" | ")[2]) for key in figures})
    head = ["reward", "what was expected", *(f"samples at {rate:g}, a seed each" for rate in rates)]
    head += ["mean at its best rate", "CPU seconds, and of the warm-up", "explains"]
    rows = [head]
    for reward, methods in METHODS.items():
        for name in methods:
            at_rates = {rate: seeds_of(figures, reward, name, rate, "samples") for rate in rates}
            means = {rate: np.mean(samples) for rate, samples in at_rates.items() if samples}
            if not means:
                continue
            best = min(means, key=means.get)
            texts = [samples_text(figures, reward, name, rate) for rate in rates]
            of_best = partial(seeds_of, figures, reward, name, best)
            seconds = f"{np.mean(of_best('seconds')):.0f}"
            if warming := of_best("warm-up seconds"):
                seconds += f" + {np.mean(warming):.0f}"
            explained = ", ".join(f"{value:.2f}" for value in of_best("explained variance"))
            rows.append([reward, name, *texts, f"{means[best]:.0f}", seconds, explained])
    return markdown_table(rows)


def samples_text(figures: Figures, reward: str, name: str, rate: float) -> str:
    """Samples until the goal, seed by seed; "> 160" where it was not reached."""
    samples = seeds_of(figures, reward, name, rate, "samples")
    reached = seeds_of(figures, reward, name, rate, "reached")
    pairs = zip(samples, reached, strict=True)
    return ", ".join(f"{n:.0f}" if done else f"> {n:.0f}" for n, done in pairs)


def seeds_of(figures: Figures, reward: str, name: str, rate: float, what: str) -> list[float]:
    """The values of a figure of a method at a rate, seed by seed."""
    start, end = f"{reward} | {name} | {rate} | ", f" | {what}"
    return [e["value"] for key, e in figures.items() if key.startswith(start) and key.endswith(end)]


def main(arguments: Sequence[str] | None = None) -> None:
    parser = benchmark_parser(__doc__, OUT, SEEDS, toy="few scenes, as the test does")
    parser.add_argument("--rates", nargs="+", type=float, default=list(RATES))
    given = parser.parse_args(arguments)
    logging.getLogger("transformers").setLevel(logging.ERROR)
    os.environ["TQDM_DISABLE"] = "1"
    if given.table:
        figures = read_json(given.out)["figures"]
    else:
        tasks = tasks_of(read_records(TRAFFIC / "preferences_train.jsonl"))
        held_out = counting_tasks(read_counts(TRAFFIC, "valid"))[:HELD_OUT]
        sets = Sets(tasks, held_out, WARM_UP)
        if given.toy:
            sets = Sets(tasks[:16], held_out[:4], warm_up=1, most_samples=16)
        figures = measure(given.rates, given.seeds, sets, given.out)
    print(table(figures))
    if given.out == OUT:
        write_block(PAGE, BLOCK, table(figures))


if __name__ == "__main__":
    main()
