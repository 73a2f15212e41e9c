"""Short questions with known answers (recipe `questions`): what RL alone learns, and after a start.

python benchmarks/questions.py                       # all ways, three seeds
python benchmarks/questions.py --only rl --seeds 0   # some; the others stay as they were measured

The embedded model and the 1,024 questions of `data/tasks/questions`. Each way answers the same 800
held-out questions, greedily and sampled. Three measures, each beside the base and beside the most
frequent answer to a question in training, which needs no image: exact match, VQA accuracy (as if
ten people had given the answer) and the cosine that the project was rewarded by. Writes
`benchmarks/questions.json` and the table of `docs/recipes.md`.
"""

import argparse
import sys
import tempfile
import time
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from helpers import models
from helpers.config import PPOSettings, dpo_preset, ppo_preset
from helpers.data import Answer, PreferenceRecord, Task, to_trl
from helpers.doctor import PPODoctor, verdict_kinds
from helpers.files import artifacts_dir, read_json, write_json
from helpers.models import VLM
from helpers.recipe_stages import run_stages
from helpers.recipes import Recipe, RecipeRun, find_recipe, read_recipe
from helpers.report import markdown_table
from helpers.rewards import Scorer, are_right, get_scorer, known_answers, reward_of, score_all
from helpers.rewards.truths import TRUTHS
from helpers.runtime import machine_summary
from helpers.statistics import drawn_share, mcnemar_p, mean_interval, proportion
from helpers.training import (
    REFERENCE_ADAPTER,
    IterationRow,
    PPOTrainer,
    dpo_trainer,
    reference_answers,
    sft_trainer,
    train_dpo,
    train_sft,
)
from tools.publish import write_block

RESULTS = Path(__file__).with_suffix(".json")
PEOPLE = 10  # who give the true answer, as in VQA v2: with one alone its accuracy is 1/3 at most
SOURCE = {  # the project's preset, but for the rate, at which the embedded model does not move
    "iterations": 256,
    "learning_rate": 1e-3,
    "max_new_tokens": 16,
}

# the preset's rate is for 932 pairs of long answers
DPO = replace(dpo_preset("tiny"), learning_rate=1e-3, steps=200)
FEW_STEPS = 60  # of SFT on a tenth: × 16 / 102 = 9.4 passes


@dataclass
class Outcome:
    """Greedy answers of a way, and what they have cost."""

    answers: list[str]
    sampled: list[str]
    seconds: float = 0.0
    questions: int = 0  # with a right answer that was shown
    samples: int = 0  # answers that were scored
    says: str = ""  # the doctor
    # of ten parts of the run: share of right answers among the sampled, and of questions whose
    # answers all score the same
    curve: list[float] = field(default_factory=list)
    equal: list[float] = field(default_factory=list)


@dataclass
class Bench:
    """The questions, and where features of their images are kept."""

    recipe: Recipe
    train: list[Task]
    test: list[Task]
    cache: Path

    def load(self) -> tuple[VLM, object]:
        return models.load_model(self.recipe.model)

    def outcome(self, model: VLM, processor, started: float, **cost) -> Outcome:
        seconds = time.perf_counter() - started
        texts = []
        for temperature in (0.0, 1.0):
            texts.append(
                models.answer_tasks(
                    model, processor, self.test, temperature=temperature, max_new_tokens=16
                )
            )
        return Outcome(*texts, seconds, **cost)


def open_bench(folder: Path) -> Bench:
    """The recipe's questions, split by photo as it says."""
    recipe = read_recipe(find_recipe("questions"), laptop=True)
    run = RecipeRun(recipe, folder)
    run_stages(run, ["data"])
    return Bench(recipe, run.tasks("train"), run.tasks("test"), folder / "cache")


# --- the ways ---


def ask_base(bench: Bench, seed: int) -> Outcome:
    model, processor = bench.load()
    return bench.outcome(model, processor, time.perf_counter())


def exploration(bench: Bench, number: int = 16, temperature: float = 1.0) -> dict[str, float]:
    """What the base finds by sampling, of three in ten training questions.

    mean: of all answers, those that are right. found: of the questions that it answers wrongly when
    greedy, those that some sample answers rightly. equal_N: of questions, those whose first N
    samples are all right or all wrong, so that RL learns nothing from them.
    """
    model, processor = bench.load()
    tasks = drawn_share(bench.train, 0.3, 0)
    greedy = are_right(tasks, models.answer_tasks(model, processor, tasks, max_new_tokens=16))
    rows = []
    for seed in range(number):
        texts = models.answer_tasks(
            model, processor, tasks, temperature=temperature, seed=seed, max_new_tokens=16
        )
        rows.append(are_right(tasks, texts))
    # (samples, questions)
    right = np.array(rows)
    found = {"temperature": temperature, "samples": number, "n": len(tasks)}
    found |= {"mean": float(right.mean()), "found": float(right[:, ~greedy].any(0).mean())}
    for size in (4, 8):
        same = (right[:size] == right[0]).all(0)
        found[f"equal_{size}"] = float(same.mean())
    return found


def most_frequent_answers(bench: Bench, seed: int) -> Outcome:
    """The answer that is most often right for the same words, whatever is in the image."""
    counts: dict[str, Counter] = defaultdict(Counter)
    for task in bench.train:
        counts[task.question][task.facts] += 1
    answers = [counts[task.question].most_common(1)[0][0] for task in bench.test]
    return Outcome(answers, answers)


def reinforce(
    bench: Bench,
    model: VLM,
    processor,
    settings: PPOSettings,
    seed: int,
    score: Scorer | None = None,
    started: float | None = None,
    questions: int = 0,
) -> Outcome:
    """RL with the settings; the reward is 1 for a right answer, unless there is another `score`."""
    started = time.perf_counter() if started is None else started
    doctor = PPODoctor()
    trainer = PPOTrainer(
        model,
        processor,
        bench.train,
        score or reward_of(bench.train),
        replace(settings, checkpoint_every=settings.iterations),
        seed=seed,
        truth=reward_of(bench.train),
        watch=[doctor],
        cache=bench.cache / "features",
    )
    trainer.train()
    cost = {"questions": questions, "samples": int(trainer.log[-1]["samples"])}
    cost |= {"says": verdict_kinds(doctor.verdicts)}
    cost |= {"curve": in_tenths(trainer.log, "objective/truth")}
    cost |= {"equal": in_tenths(trainer.log, "groups/zero_variance")}
    return bench.outcome(trainer.model, processor, started, **cost)


def in_tenths(log: Sequence[IterationRow], name: str) -> list[float]:
    """Means over ten parts of a run, in their order."""
    parts = np.array_split([row[name] for row in log], min(10, len(log)))
    return [round(float(part.mean()), 3) for part in parts]


def soft_reward(bench: Bench) -> Scorer:
    """The project's reward, the cosine of answer and truth."""
    return TRUTHS["cosine"].reward([task.facts for task in bench.train])


def one_answer_at_a_time(bench: Bench, seed: int) -> Outcome:
    settings = ppo_preset("vqa", **SOURCE)
    return reinforce(bench, *bench.load(), settings, seed, soft_reward(bench))


def reinforce_alone(bench: Bench, seed: int) -> Outcome:
    return reinforce(bench, *bench.load(), bench.recipe.ppo_settings(), seed)


def reinforce_softly(bench: Bench, seed: int) -> Outcome:
    settings = bench.recipe.ppo_settings()
    return reinforce(bench, *bench.load(), settings, seed, soft_reward(bench))


def fine_tune(bench: Bench, seed: int, share: float) -> tuple[VLM, object, int]:
    """SFT on a share of the true answers, as the recipe's stage does."""
    model, processor = bench.load()
    answers = reference_answers(drawn_share(bench.train, share, seed))
    settings = bench.recipe.sft_settings()
    if share < 1:
        settings = replace(settings, steps=FEW_STEPS)
    trainer = sft_trainer(model, processor, answers, settings, seed=seed, cache=bench.cache)
    train_sft(trainer)
    return trainer.accelerator.unwrap_model(trainer.model), processor, len(answers)


def fine_tune_alone(share: float):
    def way(bench: Bench, seed: int) -> Outcome:
        started = time.perf_counter()
        model, processor, number = fine_tune(bench, seed, share)
        return bench.outcome(model, processor, started, questions=number)

    return way


def fine_tune_then_reinforce(bench: Bench, seed: int) -> Outcome:
    started = time.perf_counter()
    model, processor, number = fine_tune(bench, seed, 0.1)
    settings = bench.recipe.ppo_settings()
    return reinforce(bench, model, processor, settings, seed, started=started, questions=number)


def true_against_wrong(tasks: Sequence[Task], seed: int) -> list[PreferenceRecord]:
    """The true answer of each question, preferred to answers that are true of other questions."""
    records = []
    for task, (right, *others) in zip(tasks, known_answers(tasks, seed), strict=True):
        wrong = [text for text in dict.fromkeys(others) if text != right]
        row = {
            "images": [str(image) for image in task.images],
            "prompt": [turn.model_dump() for turn in task.turns],
            "answers": [Answer(text=text) for text in (right, *wrong)],
            "ranking": [[0], list(range(1, len(wrong) + 1))],
        }
        records.append(PreferenceRecord(**row))
    return records


def prefer_then_reinforce(bench: Bench, seed: int) -> dict[str, Outcome]:
    """DPO on all true answers against wrong ones, and then RL as without it."""
    started = time.perf_counter()
    model, processor = bench.load()
    pairs = to_trl(true_against_wrong(bench.train, seed))
    trainer = dpo_trainer(model, processor, pairs, DPO, seed=seed, cache=bench.cache)
    train_dpo(trainer)
    policy = trainer.accelerator.unwrap_model(trainer.model)
    # the trainer's copy of the adapter at its start
    if REFERENCE_ADAPTER in policy.peft_config:
        policy.delete_adapter(REFERENCE_ADAPTER)
    shown = len(bench.train)
    found = {"dpo": bench.outcome(policy, processor, started, questions=shown)}
    settings = bench.recipe.ppo_settings()
    found["dpo rl"] = reinforce(
        bench, policy, processor, settings, seed, started=started, questions=shown
    )
    return found


WAYS = {
    "base": ask_base,
    "most frequent": most_frequent_answers,
    "source": one_answer_at_a_time,
    "rl": reinforce_alone,
    "rl soft": reinforce_softly,
    "sft tenth": fine_tune_alone(0.1),
    "sft tenth rl": fine_tune_then_reinforce,
    "sft": fine_tune_alone(1.0),
    "dpo rl": prefer_then_reinforce,  # and "dpo", which it begins with
}
ROWS = (*list(WAYS)[:-1], "dpo", "dpo rl")
UNTRAINED = ("base", "most frequent")  # no seed changes them


# --- measures ---


def measured(bench: Bench, answers: Sequence[str]) -> dict[str, np.ndarray]:
    """Exact match, VQA accuracy and cosine of each answer, (questions,) each."""
    rows, voted = [], []
    for task, text in zip(bench.test, answers, strict=True):
        rows.append(task.scorer_inputs([], text))
        voted.append((None, task.question, text, [task.facts] * PEOPLE))
    found = {
        "vqa": score_all(get_scorer("vqa_accuracy"), voted),
        "cosine": score_all(soft_reward(bench), rows),
    }
    values = {name: np.array([score.total for score in scores]) for name, scores in found.items()}
    return {"exact": are_right(bench.test, answers), **values}


def estimate(values: np.ndarray) -> dict[str, float]:
    """Value, interval and n: of shares after Wilson, of means after Student."""
    binary = bool(np.isin(values, (0, 1)).all())
    found = proportion(float(values.sum()), len(values)) if binary else mean_interval(values)
    return {"value": found.value, "low": found.low, "high": found.high, "n": len(values)}


def entry(bench: Bench, outcome: Outcome, seed: int) -> dict:
    """What is written down of one run."""
    about = ("seconds", "questions", "samples", "says", "curve", "equal")
    row = {name: getattr(outcome, name) for name in about} | {"seed": seed}
    for name, values in measured(bench, outcome.answers).items():
        row[name] = estimate(values)
    row["sampled"] = estimate(are_right(bench.test, outcome.sampled))
    # of each question, for paired tests
    hits = are_right(bench.test, outcome.answers).astype(int)
    row["right"] = "".join(map(str, hits))
    return row


def paired_p(before: dict, after: dict) -> float:
    """McNemar's test on the same questions."""
    hits = [[mark == "1" for mark in row["right"]] for row in (before, after)]
    return float(mcnemar_p(*hits))


def keep(way: str, row: dict) -> None:
    """Write a run down beside the others."""
    # read anew, as another process may have measured another way meanwhile
    runs = read_json(RESULTS)["runs"] if RESULTS.exists() else {}
    others = [other for other in runs.get(way, []) if other["seed"] != row["seed"]]
    runs[way] = sorted([*others, row], key=lambda one: one["seed"])
    write_json(RESULTS, {"environment": machine_summary(), "runs": runs})
    print(way, row["seed"], row["exact"], row["says"], round(row["seconds"]), flush=True)


def table(runs: dict[str, list[dict]]) -> str:
    rows = []
    for name in ROWS:
        for row in runs.get(name, []):
            p = "" if name == "base" else f"{paired_p(runs['base'][0], row):.1g}"
            cells = [name, "" if name in UNTRAINED else str(row["seed"])]
            for measure in ("exact", "sampled", "vqa", "cosine"):
                found = row[measure]
                text = f"{found['value']:.3f}"
                if measure == "exact":
                    text += f" [{found['low']:.3f}, {found['high']:.3f}]"
                cells.append(text)
            minutes = f"{row['seconds'] / 60:.1f}" if row["seconds"] > 1 else ""
            rows.append([*cells, p, f"{row['questions']:,}", f"{row['samples']:,}", minutes])
    head = ["way", "seed", "exact", "exact, sampled", "VQA accuracy", "cosine"]
    head += ["p against base", "answers shown", "answers scored", "minutes"]
    return markdown_table([head, *rows])


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", nargs="+", default=list(WAYS), choices=list(WAYS))
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=artifacts_dir()) as folder:
        bench = open_bench(Path(folder))
        for name in args.only:
            for seed in args.seeds[:1] if name in UNTRAINED else args.seeds:
                found = WAYS[name](bench, seed)
                if isinstance(found, Outcome):
                    found = {name: found}
                for way, outcome in found.items():
                    row = entry(bench, outcome, seed)
                    if way == "base":
                        row["exploration"] = [exploration(bench, temperature=t) for t in (1.0, 1.2)]
                    keep(way, row)
    page = ROOT / "docs" / "recipes.md"
    write_block(page, "questions", table(read_json(RESULTS)["runs"]))


if __name__ == "__main__":
    main()
