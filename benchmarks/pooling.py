"""Which of an answer's tokens a reward model should read: last, mean or attention.

python benchmarks/pooling.py                            # `tiny`, counting; about 25 minutes
python benchmarks/pooling.py --model tiny-tasks --task instructions
python benchmarks/pooling.py --model FOLDER --rates 1e-4 1e-3 --records 64 --test-records 100
python benchmarks/pooling.py --table                    # only writes the table again

MODEL, a preset or a folder, gets a reward model for each pooling, learning rate and seed. The task
is that of a recipe, with the pairs that it makes; settings are those of its `[laptop]`, or the
preset `tiny`, which notebook 03 begins with. Judged on held-out pairs, with their own images and
with those of other records. Before that a linear probe: a logistic regression on the difference of
two answers' pooled states under the base as it is, which says how much of the answers they hold.
Each run goes to `benchmarks/pooling.json` as it ends, and one that is there is not run again. The
table is written to `docs/results.md`.
"""

import logging
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from benchmarks.arguments import benchmark_parser
from helpers import models
from helpers.config import RewardSettings, reward_preset
from helpers.data import PreferenceRecord
from helpers.files import open_image, read_json, write_json
from helpers.models import POOLINGS
from helpers.recipe_stages import run_stages
from helpers.recipes import RecipeRun, find_recipe, read_recipe
from helpers.report import markdown_table
from helpers.rewards import RewardReport, other_images, reward_model, score_records
from helpers.runtime import machine_summary
from helpers.statistics import Estimate, share_of
from helpers.training import RewardTrainer
from tools.publish import write_block

OUT = Path(__file__).with_suffix(".json")
PAGE = ROOT / "docs" / "results.md"
BLOCK = "table of benchmarks/pooling.py"
TASKS = ("counting", "instructions", "reasons", "reasoning")
SEEDS = (0, 1, 2)
PROBE = "probe"  # in place of a learning rate
PROBE_BATCH = 16  # records whose states are taken in one forward
# Of the probe: inverse weights of its penalty, of which held-out pairs choose one
PENALTIES = (1e-3, 1e-2, 1e-1, 1.0)
CONDITIONS = ("right", "shuffled")
HEAD = (
    "model",
    "task: trained on + judged on",
    "pooling",
    "learning rate",
    "pairs right, a seed each",
    "with shuffled images",
    "pairs",
    "CPU seconds",
)

Figures = dict[str, dict[str, float]]
Images = Sequence[Sequence[Path | Image.Image]]


@dataclass(frozen=True)
class Trial:
    """What is measured: a base, its records, and the settings beside pooling and rate."""

    model: str  # a preset or a folder
    task: str
    splits: Mapping[str, list[PreferenceRecord]]  # train, valid and test
    settings: RewardSettings

    def key(self, pooling: str, rate: float | str, seed: int) -> str:
        """The start of the names of a run's figures: another run has another one."""
        train, test = (len(self.splits[name]) for name in ("train", "test"))
        epochs = self.settings.epochs
        task = f"{self.task}: {train} + {test} records, {epochs} epochs"
        return f"{Path(self.model).name} | {task} | {pooling} | {rate} | {seed}"


def new_trial(model: str, task: str, train: int | None = None, test: int | None = None) -> Trial:
    """Make the data of a recipe, of which the first `train` and `test` records are used."""
    recipe = read_recipe(find_recipe(task), laptop=True)
    has_reward = "reward" in recipe.stages
    settings = recipe.reward_settings() if has_reward else reward_preset("tiny")
    with tempfile.TemporaryDirectory() as folder:
        run = RecipeRun(recipe, Path(folder))
        run_stages(run, ["data"])
        limits = {"train": train, "valid": test, "test": test}
        splits = {}
        for split, limit in limits.items():
            paired = [record for record in run.pairs(split) if record.pairs()]
            splits[split] = paired[:limit]
    return Trial(model, task, splits, settings)


# --- a trained reward model ---


def train_once(trial: Trial, pooling: str, rate: float, seed: int) -> Figures:
    """Train one reward model, and judge it on the pairs of the test split."""
    settings = replace(trial.settings, pooling=pooling, learning_rate=rate)
    loaded = models.load_model(trial.model, four_bit=False)
    reward = reward_model.new_reward_model(*loaded, settings, seed)
    splits = trial.splits
    started = time.process_time()
    RewardTrainer(reward, splits["train"], splits["valid"], settings, seed).train()
    # Of the processor: what else runs on the machine does not count
    seconds = time.process_time() - started
    test = splits["test"]
    scores = {"right": score_records(reward, test)}
    scores["shuffled"] = score_records(reward, test, other_images(test, "shuffled"))
    report = RewardReport("reward model", test, scores)
    found = {condition: as_entry(report.accuracy(condition), seed) for condition in CONDITIONS}
    return found | {"seconds": {"value": seconds, "n": 1, "seed": seed}}


def as_entry(figure: Estimate, seed: int) -> dict[str, float]:
    """Return a figure with its interval, n and seed, as the JSON has it."""
    return asdict(figure) | {"seed": seed}


# --- the linear probe ---


@torch.no_grad()
def pooled_states(
    model: models.VLM, processor, records: Sequence[PreferenceRecord], images: Images
) -> dict[str, np.ndarray]:
    """Return the states of all answers, (answers, hidden), by pooling: those that learn nothing."""
    packer = models.Packer(model, processor)
    found = {name: [] for name in ("last", "mean")}
    for start in range(0, len(records), PROBE_BATCH):
        rows = slice(start, start + PROBE_BATCH)
        seen = []
        for shown in images[rows]:
            seen.append([open_image(one) if isinstance(one, Path) else one for one in shown])
        answers = [[answer.text for answer in record.answers] for record in records[rows]]
        packed = packer([record.prompt for record in records[rows]], seen, answers)
        states = models.hidden_states(model, packed).float()[:, :, None]
        for name, parts in found.items():
            pooling = POOLINGS[name](1, states.shape[-1])
            parts.append(pooling(states, packed.mask[:, 1:])[:, 0].cpu())
    return {name: torch.cat(parts).numpy() for name, parts in found.items()}


def gaps_of(records: Sequence[PreferenceRecord], states: np.ndarray) -> np.ndarray:
    """Return state of the better minus state of the worse answer of each pair, (pairs, hidden)."""
    gaps, first = [], 0
    for record in records:
        own = states[first : first + len(record.answers)]
        gaps += [own[better] - own[worse] for better, worse in record.tier_pairs()]
        first += len(record.answers)
    return np.array(gaps)


def probe(gaps: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Fit on `train`, choose the penalty on `valid`, and say which test pairs are right.

    gaps: by "train", "valid", "right" and "shuffled". A pair stands in it both ways round, so that
    the probe is a direction without a constant.
    """
    scale = StandardScaler(with_mean=False).fit(gaps["train"])
    given = {name: scale.transform(part) for name, part in gaps.items()}
    both = np.concatenate([given["train"], -given["train"]])
    labels = np.repeat([1, 0], len(given["train"]))
    fitted = []
    for penalty in PENALTIES:
        fit = LogisticRegression(C=penalty, fit_intercept=False, max_iter=1000)
        fitted.append(fit.fit(both, labels))
    best = max(fitted, key=lambda fit: fit.predict(given["valid"]).mean())
    return {condition: best.predict(given[condition]) for condition in CONDITIONS}


def probe_base(trial: Trial) -> dict[str, Figures]:
    """Return the figures of the probe by pooling."""
    model, processor = models.load_model(trial.model, four_bit=False)
    test = trial.splits["test"]
    shown = {}
    for split, records in trial.splits.items():
        name = "right" if split == "test" else split
        shown[name] = records, [record.image_paths for record in records]
    shown["shuffled"] = test, other_images(test, "shuffled")
    gaps = {}
    for name, (records, images) in shown.items():
        states = pooled_states(model, processor, records, images)
        gaps[name] = {pooling: gaps_of(records, part) for pooling, part in states.items()}
    found = {}
    for pooling in gaps["right"]:
        hits = probe({name: part[pooling] for name, part in gaps.items()})
        found[pooling] = {what: as_entry(share_of(rights), 0) for what, rights in hits.items()}
    return found


# --- all of them ---


def measure(
    trial: Trial, poolings: Sequence[str], rates: Sequence[float], seeds: Sequence[int], out: Path
) -> Figures:
    """Run what `out` does not have yet, and write each run to it; all that it has then."""
    figures = read_json(out)["figures"] if out.exists() else {}
    for found in new_runs(trial, poolings, rates, seeds, figures):
        for name, figure in found.items():
            figures[name] = figure
            print(name, f"{figure['value']:.3f}", flush=True)
        write_json(out, {"environment": machine_summary(), "figures": figures})
    return figures


def new_runs(
    trial: Trial,
    poolings: Sequence[str],
    rates: Sequence[float],
    seeds: Sequence[int],
    known: Mapping[str, dict],
) -> Iterator[Figures]:
    """Yield the figures of each run that is not known, by their whole names."""
    if f"{trial.key('last', PROBE, 0)} | right" not in known:
        for pooling, found in probe_base(trial).items():
            yield _named(trial.key(pooling, PROBE, 0), found)
    for rate in rates or [trial.settings.learning_rate]:
        for seed in seeds:
            for pooling in poolings:
                key = trial.key(pooling, rate, seed)
                if f"{key} | right" not in known:
                    yield _named(key, train_once(trial, pooling, rate, seed))


def _named(key: str, found: Figures) -> Figures:
    return {f"{key} | {what}": figure for what, figure in found.items()}


def table(figures: Figures) -> str:
    """Return a row for each model, task, pooling and rate, with a figure for each seed."""
    groups: dict[tuple[str, ...], dict[str, list[dict]]] = {}
    for name, figure in figures.items():
        *group, _, what = name.split(" | ")
        groups.setdefault(tuple(group), {}).setdefault(what, []).append(figure)
    rows = [HEAD]
    for group, found in groups.items():
        shares = []
        for condition in CONDITIONS:
            texts = [
                f"{e['value']:.3f} [{e['low']:.3f}, {e['high']:.3f}]" for e in found[condition]
            ]
            shares.append("; ".join(texts))
        pairs = str(found["right"][0]["n"])
        seconds = "; ".join(f"{e['value']:.0f}" for e in found.get("seconds", []))
        rows.append((*group, *shares, pairs, seconds))
    return markdown_table(rows)


def main() -> None:
    parser = benchmark_parser(__doc__, OUT, SEEDS, toy="few records and one epoch")
    parser.add_argument("--model", default="tiny", help="a preset or a folder")
    parser.add_argument("--task", default="counting", choices=TASKS)
    parser.add_argument("--poolings", nargs="+", choices=POOLINGS, default=list(POOLINGS))
    parser.add_argument("--rates", nargs="+", type=float, help="default: that of the settings")
    parser.add_argument("--records", type=int, help="to train on; default: all")
    parser.add_argument("--test-records", type=int, help="held out; default: all")
    parser.add_argument("--epochs", type=int, help="default: those of the settings")
    given = parser.parse_args()
    logging.getLogger("transformers").setLevel(logging.ERROR)
    if given.toy:
        given.records, given.test_records, given.epochs, given.seeds = 16, 8, 1, [0]
    if given.table:
        figures = read_json(given.out)["figures"]
    else:
        trial = new_trial(given.model, given.task, given.records, given.test_records)
        settings = replace(trial.settings, epochs=given.epochs or trial.settings.epochs)
        trial = replace(trial, settings=settings)
        figures = measure(trial, given.poolings, given.rates, given.seeds, given.out)
    print(table(figures))
    if given.out == OUT:
        write_block(PAGE, BLOCK, table(figures))


if __name__ == "__main__":
    main()
