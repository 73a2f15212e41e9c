"""Nine ways to align a model, with what each costs: which one to take when.

python benchmarks/comparison.py                  # two tasks, three seeds; two hours of one core
python benchmarks/comparison.py --only reasons --seeds 0
python benchmarks/comparison.py --table          # only writes the table again

On the embedded models, by the recipes `counting`, where right or wrong is known while it trains,
and `reasons`, where nobody says what is right: people compared answers, a reward model learnt from
them, and the truth is only shown. All methods have the same questions and the same budget: SFT and
DPO 120 steps of 16 written answers or pairs, the others at most 2,304 answers of their own. Best of
n has no training; it pays for every answer.

`benchmarks/comparison.json` gets each run as it ends, and a rerun skips those that are there.
docs/which_method.md gets the table.
"""

import logging
import shutil
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from benchmarks.arguments import benchmark_parser
from benchmarks.real_language import as_flags, as_text, kl_from_base
from helpers import models
from helpers.data import Task
from helpers.evaluation import evaluate_greedy_and_sampled, kl_bound, sample_best_of_n
from helpers.files import artifacts_dir, read_json, write_json
from helpers.recipe_stages import run_stages
from helpers.recipes import RecipeRun, find_recipe, read_recipe
from helpers.report import markdown_table
from helpers.rewards import RewardRanker, load_reward_model
from helpers.runtime import machine_summary
from helpers.statistics import Proportion, mcnemar_p, proportion
from tools.publish import write_block

OUT = Path(__file__).with_suffix(".json")
PAGE = ROOT / "docs" / "which_method.md"
BLOCK = "comparison"
SEEDS = (0, 1, 2)
QUESTIONS = 400  # held out
KL_QUESTIONS = 64
BUDGET = 2304  # sampled answers: 36 iterations of 64
BEST_OF = 8
ROUNDS = 3  # of online DPO
# to each question, in a round of online DPO and for rejection sampling
ONLINE_ANSWERS = 4
REJECTION_ANSWERS = 8
# Recipe → what ranks or rewards a policy's own answers
RANKERS = {"counting": "truth", "reasons": "reward_model"}

Changes = dict[str, Any]
# So short that nothing is learnt: is everything there?
TOY: Changes = {
    "data.limit": 8,
    "reward.settings": {"epochs": 1},
    "sft.settings": {"steps": 2},
    "dpo.settings": {"steps": 2},
    "dpo.preflight": False,
    "online.settings": {"steps": 2, "sft_weight": 0.0},
    "ppo.settings": {"iterations": 2, "prompts_per_iteration": 8},
    "rank.answers": 2,
}


@dataclass(frozen=True)
class Method:
    """What is trained: stages of a recipe beside `data` and `reward`, and what is set in them."""

    stages: tuple[str, ...] = ()
    changes: Changes = field(default_factory=dict)
    samples: bool = True  # does it learn from answers of its own?

    @property
    def policy(self) -> str:
        """The stage that leaves the policy."""
        return self.stages[-1]


def policy_gradient(preset: str, critic_layers: int = 0) -> Method:
    """Return PPO, RLOO or GRPO; without layers the critic is a constant."""
    settings = {"critic_layers": critic_layers, "critic_adapter": critic_layers > 0}
    return Method(("ppo",), {"ppo.preset": preset, "ppo.settings": settings})


METHODS: Mapping[str, Method] = {
    "SFT": Method(("sft",), samples=False),
    "DPO": Method(("dpo",), samples=False),
    "rejection sampling": Method(("rank", "sft"), {"rank.answers": REJECTION_ANSWERS}),
    "online DPO": Method(
        ("online",),
        {
            "online.preset": "tiny",
            "online.rounds": ROUNDS,
            "online.answers": ONLINE_ANSWERS,
            "online.settings": {"steps": 40, "sft_weight": 0.0},
        },
    ),
    "PPO": policy_gradient("tiny"),
    "PPO with a critic": policy_gradient("tiny", critic_layers=3),
    "RLOO": policy_gradient("tiny-rloo"),
    "GRPO": policy_gradient("tiny-grpo"),
}
BASE = "base"
BEST = f"best of {BEST_OF}"
ROWS = (BASE, *METHODS, BEST)


def name_of(task: str, row: str, seed: int) -> str:
    """Return the name of an entry: `reasons | DPO | 0`."""
    return f"{task} | {row} | {seed}"


def changes_of(task: str, method: Method, questions: int) -> Changes:
    """What is set beside the recipe, so that a method asks for as many answers as it may."""
    ranker = RANKERS[task]
    changes = {"stages": ("data", "reward", *method.stages), **method.changes}
    if method.policy == "online":
        changes["online.scorer"] = ranker
        changes["online.share"] = min(1.0, BUDGET / (ROUNDS * ONLINE_ANSWERS * questions))
    elif "rank" in method.stages:
        # the nearest of wrong answers is nothing to learn
        changes["rank.scorer"] = "right" if ranker == "truth" else ranker
        changes["rank.share"] = min(1.0, BUDGET / (REJECTION_ANSWERS * questions))
    elif method.policy == "ppo" and ranker == "reward_model":
        changes["ppo.score"] = {"reward_model": 1.0}
        changes["ppo.critic_warm_up_epochs"] = 0  # it would be shown true answers
    return changes


class Comparison:
    """The runs of one task and seed, in one folder: they share data and reward model."""

    def __init__(self, task: str, seed: int, folder: Path, shorter: Changes):
        self.task = task
        self.seed = seed
        self.folder = folder
        self.shorter = shorter

    def run_of(self, changes: Changes) -> RecipeRun:
        changes = {"seed": self.seed, "reward.preset": "tiny", **changes, **self.shorter}
        recipe = read_recipe(find_recipe(self.task), laptop=True, changes=list(changes.items()))
        return RecipeRun(recipe, self.folder)

    @cached_property
    def prepared(self) -> RecipeRun:
        """A run with the data, and with the reward model that all methods share."""
        run = self.run_of({"stages": ("data", "reward")})
        started = time.process_time()
        run_stages(run)
        seconds = self.folder / "reward_seconds.json"
        if not seconds.exists():  # else it was only loaded now
            write_json(seconds, time.process_time() - started)
        self.reward_seconds = read_json(seconds)
        return run

    @cached_property
    def tasks(self) -> list[Task]:
        return self.prepared.tasks("test")[:QUESTIONS]

    @cached_property
    def questions(self) -> int:
        """How many there are to train on."""
        return len(self.prepared.tasks("train"))

    def train(self, row: str) -> tuple[RecipeRun, float]:
        """Train by a method; the run, and the processor's seconds."""
        method = METHODS[row]
        run = self.run_of(changes_of(self.task, method, self.questions))
        # of the method before, in this folder
        shutil.rmtree(self.folder / method.policy, ignore_errors=True)
        started = time.process_time()
        run_stages(run, method.stages)
        return run, time.process_time() - started

    def measure(self, row: str) -> dict[str, Any]:
        """Train by a method, or take the base, and ask the held-out questions."""
        if row == BEST:
            return self.measure_best()
        policy, processor = self.prepared.load()
        seconds = 0.0
        samples = 0
        if row != BASE:
            run, seconds = self.train(row)
            policy = models.load_adapter(run.load()[0], run.left_by(METHODS[row].policy))
            samples = self.samples_of(run, METHODS[row])
        found = evaluate_greedy_and_sampled(policy, processor, self.tasks)
        figures = {
            "greedy": as_text(found.greedy.right),
            "sampled": as_text(found.sampled.right),
            "samples": samples,
            "seconds": seconds,
        }
        if row != BASE:
            kl = kl_from_base(policy, processor, self.tasks[:KL_QUESTIONS])
            figures["kl"] = asdict(kl)
            if samples and RANKERS[self.task] == "reward_model":
                figures["reward_seconds"] = self.reward_seconds
        return figures

    def samples_of(self, run: RecipeRun, method: Method) -> int:
        """Answers that the method has sampled for its training."""
        if not method.samples:
            return 0
        recipe = run.recipe
        if method.policy == "ppo":
            settings = recipe.ppo_settings()
            answers = settings.prompts_per_iteration * settings.group_size
            return answers * settings.iterations
        if method.policy == "online":
            asked = max(1, round(recipe.online.share * self.questions))
            return asked * recipe.online.answers * recipe.online.rounds
        asked = max(1, round(recipe.rank.share * self.questions))
        return asked * recipe.rank.answers

    def measure_best(self) -> dict[str, Any]:
        """Let the base answer n times, and the reward model choose. Nothing is trained but that."""
        base, processor = self.prepared.load()
        reward = load_reward_model(*self.prepared.load(), self.folder / "reward" / "best")
        started = time.process_time()
        found = sample_best_of_n(
            base,
            processor,
            self.tasks,
            RewardRanker(reward, "reward model"),
            BEST_OF,
            seed=self.seed,
        )
        # of equal scores the first, which is the first of equal answers, too
        chosen = found.scores.argmax(1)
        right = found.right[np.arange(len(chosen)), chosen]
        return {
            "sampled": as_text(right == 1),
            "samples": 0,
            "seconds": 0.0,
            "seconds_an_answer": (time.process_time() - started) / len(self.tasks),
            "reward_seconds": self.reward_seconds,
            "kl": {"value": kl_bound(BEST_OF)},
        }


# --- The table ---


def known_seeds(figures: Mapping[str, dict], task: str, row: str) -> list[int]:
    return [seed for seed in SEEDS if name_of(task, row, seed) in figures]


def share_cell(texts: Sequence[str]) -> str:
    """All seeds together, with an interval, and each seed."""
    if not texts:
        return "–"
    pooled: Proportion = proportion(sum(text.count("1") for text in texts), len("".join(texts)))
    each = ", ".join(f"{as_flags(text).mean():.2f}" for text in texts)
    return f"{pooled.value:.3f} [{pooled.low:.3f}, {pooled.high:.3f}] ({each})"


def p_cell(figures: Mapping[str, dict], task: str, row: str, key: str) -> str:
    """McNemar's p against SFT of the same seed, each seed; + where it is better, − where worse."""
    cells = []
    for seed in known_seeds(figures, task, row):
        own = figures[name_of(task, row, seed)].get(key)
        baseline = figures.get(name_of(task, "SFT", seed), {}).get(key)
        if row == "SFT" or own is None or baseline is None:
            continue
        p = mcnemar_p(as_flags(baseline), as_flags(own))
        sign = "+" if own.count("1") > baseline.count("1") else "−"
        cells.append(f"{sign}{p:.1g}" if p < 1 else "1")
    return ", ".join(cells) or "–"


def mean_of(figures: Sequence[dict], key: str) -> float | None:
    values = [found[key] for found in figures if key in found]
    return float(np.mean(values)) if values else None


def row_of(figures: Mapping[str, dict], task: str, row: str) -> list[str]:
    """A line of the table: what a method gives, and what it costs."""
    found = [figures[name_of(task, row, seed)] for seed in known_seeds(figures, task, row)]
    kl = [one["kl"]["value"] for one in found if "kl" in one]
    reward = mean_of(found, "reward_seconds")
    seconds = f"{mean_of(found, 'seconds'):.0f}"
    if reward is not None:
        seconds += f" + {reward:.0f}"
    if row == BEST:
        seconds += f", then {1000 * mean_of(found, 'seconds_an_answer'):.0f} ms an answer"
    at_most = "≤ " if row == BEST else ""
    return [
        row,
        share_cell([one["greedy"] for one in found if "greedy" in one]),
        share_cell([one["sampled"] for one in found]),
        p_cell(figures, task, row, "greedy"),
        p_cell(figures, task, row, "sampled"),
        f"{found[0]['samples']:,}",
        seconds,
        f"{at_most}{np.mean(kl):.2f}" if kl else "–",
    ]


HEAD = (
    "method",
    "right, greedy (each seed)",
    "right, sampled",
    "p against SFT, greedy",
    "p, sampled",
    "answers sampled",
    "CPU seconds (+ reward model)",
    "KL, nats an answer",
)


def table(figures: Mapping[str, dict]) -> str:
    """Return a table for each task."""
    parts = []
    for task in RANKERS:
        rows = [row_of(figures, task, row) for row in ROWS if known_seeds(figures, task, row)]
        if rows:
            parts.append(f"`{task}`:\n\n{markdown_table([HEAD, *rows])}")
    return "\n\n".join(parts)


def main(arguments: list[str] | None = None) -> None:
    parser = benchmark_parser(__doc__, OUT, SEEDS, toy="a few records, and two steps of each")
    parser.add_argument("--only", nargs="+", default=list(RANKERS), choices=list(RANKERS))
    parser.add_argument("--methods", nargs="+", default=list(ROWS), choices=ROWS)
    given = parser.parse_args(arguments)
    logging.getLogger("transformers").setLevel(logging.ERROR)
    known = read_json(given.out) if given.out.exists() else {"figures": {}}
    for seed in () if given.table else given.seeds:
        for task in given.only:
            folder = artifacts_dir() / "comparison" / f"{task}-{seed}"
            compared = Comparison(task, seed, folder, TOY if given.toy else {})
            for row in given.methods:
                name = name_of(task, row, seed)
                if name in known["figures"]:
                    continue
                known["figures"][name] = compared.measure(row)
                known["environment"] = machine_summary()
                write_json(given.out, known)
    print(table(known["figures"]))
    if given.out == OUT:
        write_block(PAGE, BLOCK, table(known["figures"]))


if __name__ == "__main__":
    main()
