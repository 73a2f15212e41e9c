"""What each part of the DPO recipe is worth: about 15 minutes on 2 cores.

Trains the embedded base on the shipped preference data with one thing changed at a time and
measures greedy and sampled answers on the 400 test scenes, with three seeds of each variant. Writes
`benchmarks/dpo_recipe.json` (entries `{value, low, high, n, seed}`), a `.png` beside it and the
table of `docs/results.md`, and prints the headline as the last line.
"""

import argparse
import dataclasses
import logging
import sys
from pathlib import Path

import datasets
from tqdm.auto import tqdm

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from helpers import models
from helpers.config import DPO_PRESETS, DPOSettings
from helpers.data import read_counts
from helpers.data.pairs import build_records, counting_tasks
from helpers.data.trl_pairs import to_trl
from helpers.evaluation.task_results import evaluate_tasks
from helpers.evaluation.truth_judges import judges
from helpers.files import write_json
from helpers.report import markdown_table
from helpers.report.plots import interval_chart
from helpers.runtime import machine_summary
from helpers.statistics import Proportion, proportion
from helpers.training import dpo
from tools.publish import write_block

TRAFFIC = ROOT / "data" / "traffic"
PRESET = DPO_PRESETS["tiny"]
MIXED = ("own", "other image")
VARIANTS: dict[str, tuple[tuple[str, ...], DPOSettings]] = {
    "preset": (MIXED, PRESET),
    "no SFT term": (MIXED, dataclasses.replace(PRESET, sft_weight=0.0)),
    "SFT term only": (MIXED, dataclasses.replace(PRESET, beta=1e-6)),
    "only own answers": (("own",), PRESET),
    "only other images": (("other image",), PRESET),
    "only edits": (("edit",), PRESET),
}
CONDITIONS = {
    "exact": {},
    "exact_sampled": {"temperature": 1.0},
    "exact_shuffled_images": {"images": "shuffled"},
}


def train_and_measure(
    dataset, settings: DPOSettings, seed: int, items
) -> tuple[dict[str, Proportion], float]:
    """Shares of exact and well-formed answers after one training run, and its seconds."""
    model, processor = models.load_model("tiny")
    trainer = dpo.dpo_trainer(model, processor, dataset, settings, seed=seed)
    seconds = dpo.train_dpo(trainer).seconds
    judge = judges(counting_tasks(items))
    results = {
        name: evaluate_tasks(trainer.model, processor, judge, seed=seed, **how)
        for name, how in CONDITIONS.items()
    }
    shares = {name: result.right_share for name, result in results.items()}
    return {**shares, "wellformed_sampled": results["exact_sampled"].share("well formed")}, seconds


def pooled(shares: list[Proportion]) -> Proportion:
    """All seeds together. They share the items: the interval is of items, not of seeds."""
    return proportion(
        sum(share.value * share.n for share in shares), sum(share.n for share in shares)
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--variants", nargs="*", default=list(VARIANTS), choices=list(VARIANTS))
    parser.add_argument("--out", type=Path, default=Path(__file__).with_suffix(".json"))
    args = parser.parse_args()
    logging.getLogger("transformers").setLevel(logging.ERROR)
    datasets.disable_progress_bars()
    train_items, items = read_counts(TRAFFIC, "train"), read_counts(TRAFFIC, "test")
    model, processor = models.load_model("tiny")
    own = models.sample_counting_answers(model, processor, train_items)
    figures, table = {}, {}
    runs = tqdm([(name, seed) for name in args.variants for seed in range(args.seeds)], desc="runs")
    for name, seed in runs:
        negatives, settings = VARIANTS[name]
        records = build_records(train_items, own, negatives)
        shares, seconds = train_and_measure(to_trl(records), settings, seed, items)
        key = name.replace(" ", "_").lower()
        for measure, share in shares.items():
            figures[f"{key}_{measure}_seed_{seed}"] = {**dataclasses.asdict(share), "seed": seed}
            table.setdefault(name, {}).setdefault(measure, []).append(share)
        figures[f"{key}_seconds_seed_{seed}"] = {
            "value": seconds,
            "low": seconds,
            "high": seconds,
            "n": 1,
            "seed": seed,
        }
    write_json(args.out, {"environment": machine_summary(), "figures": figures})
    chart = {}
    for name, row in table.items():
        chart[name] = {measure: pooled(shares) for measure, shares in row.items()}
    interval_chart(chart, f"{len(items)} test scenes, {args.seeds} seeds pooled").savefig(
        args.out.with_suffix(".png"), dpi=90
    )
    rows = [["variant", *next(iter(chart.values()))]]
    rows += [[name, *map(str, row.values())] for name, row in chart.items()]
    print(markdown_table(rows))
    if args.out == Path(__file__).with_suffix(".json"):
        page = ROOT / "docs" / "results.md"
        write_block(page, "dpo_recipe", markdown_table(rows))
    worst = {
        name: min(shares, key=lambda s: s.value) for name, shares in table[args.variants[0]].items()
    }
    print(
        f"{args.variants[0]}, worst of {args.seeds} seeds: "
        + ", ".join(f"{name} {share}" for name, share in worst.items())
    )


if __name__ == "__main__":
    main()
