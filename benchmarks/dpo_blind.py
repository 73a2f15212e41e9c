"""DPO against mDPO on pairs that can be solved without looking: about 10 minutes.

Trains the embedded base on one-sided pairs of the shipped scenes (the rejected answer always counts
more), with DPO and with mDPO, which also prefers the right image to another one. Measured on the
400 test scenes: pairs whose worse answer has another scene's counts, with the right images and with
shuffled ones, and the answers. Three seeds. Writes `benchmarks/dpo_blind.json`, the table of
`docs/results.md`, and prints the headline as the last line.
"""

import argparse
import dataclasses
import logging
import sys
import tempfile
from pathlib import Path

import datasets
from tqdm.auto import tqdm

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from helpers import models
from helpers.config import DPO_PRESETS
from helpers.data import read_counts
from helpers.data.pairs import add_image_negatives, build_records, counting_tasks, make_one_sided
from helpers.data.preferences import read_records
from helpers.data.trl_pairs import to_trl
from helpers.evaluation.pair_accuracy import evaluate_pairs
from helpers.evaluation.task_results import evaluate_tasks
from helpers.evaluation.truth_judges import judges
from helpers.files import write_json
from helpers.report import markdown_table
from helpers.runtime import machine_summary
from helpers.statistics import Proportion, derangement
from helpers.training import dpo
from tools.publish import write_block

TRAFFIC = ROOT / "data" / "traffic"
PLAIN = dataclasses.replace(DPO_PRESETS["tiny"], steps=60, sft_weight=0.0)
VARIANTS = {
    "DPO": PLAIN,
    "DPO, SFT term": dataclasses.replace(PLAIN, sft_weight=2.0),
    "mDPO": dataclasses.replace(PLAIN, image_weight=1.0, anchor_weight=1.0),
}


def training_pairs(folder: Path) -> datasets.Dataset:
    """One-sided pairs, each with the image of another scene as its spoilt image."""
    records = make_one_sided(read_records(TRAFFIC / "preferences_train.jsonl"))
    return to_trl(add_image_negatives(records, folder, ("shuffled",)))


def unseen_pairs(items) -> tuple[datasets.Dataset, datasets.Dataset]:
    """Pairs of true counts and those of another scene, with right and with exchanged images."""
    records = build_records(items, [()] * len(items), ("other image",), seed=1)
    others = [records[i].images for i in derangement(len(records), 0)]
    shuffled = [
        r.model_copy(update={"images": images}) for r, images in zip(records, others, strict=True)
    ]
    right, wrong = (to_trl(rows) for rows in (records, shuffled))
    return right, wrong


def train_and_measure(data, settings, seed, items, pairs) -> dict[str, Proportion]:
    model, processor = models.load_model("tiny")
    trainer = dpo.dpo_trainer(model, processor, data, settings, seed=seed)
    dpo.train_dpo(trainer)
    policy = trainer.model
    judge = judges(counting_tasks(items))
    sampled = evaluate_tasks(policy, processor, judge, temperature=1.0, seed=seed)
    return {
        "pairs": evaluate_pairs(policy, processor, pairs[0]).accuracy,
        "pairs, shuffled images": evaluate_pairs(policy, processor, pairs[1]).accuracy,
        "exact": evaluate_tasks(policy, processor, judge).right_share,
        "exact, shuffled images": evaluate_tasks(
            policy, processor, judge, images="shuffled", seed=seed
        ).right_share,
        "exact, sampled": sampled.right_share,
        "well formed, sampled": sampled.share("well formed"),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--out", type=Path, default=Path(__file__).with_suffix(".json"))
    args = parser.parse_args()
    logging.getLogger("transformers").setLevel(logging.ERROR)
    datasets.disable_progress_bars()
    items = read_counts(TRAFFIC, "test")
    pairs = unseen_pairs(items)
    figures, rows = {}, []
    with tempfile.TemporaryDirectory() as folder:
        data = training_pairs(Path(folder))
        for name, seed in tqdm(
            [(name, seed) for name in VARIANTS for seed in range(args.seeds)], desc="runs"
        ):
            shares = train_and_measure(data, VARIANTS[name], seed, items, pairs)
            for measure, share in shares.items():
                key = f"{name}_{measure}_seed_{seed}".replace(", ", "_").replace(" ", "_").lower()
                figures[key] = {**dataclasses.asdict(share), "seed": seed}
            rows.append([name, str(seed), *map(str, shares.values())])
    header = ["loss", "seed", *shares]
    write_json(
        args.out,
        {"environment": machine_summary(), "training_pairs": len(data), "figures": figures},
    )
    print(markdown_table([header, *rows]))
    if args.out == Path(__file__).with_suffix(".json"):
        page = ROOT / "docs" / "results.md"
        write_block(page, "dpo_blind", markdown_table([header, *rows]))
    print(" | ".join(f"{row[0]} seed {row[1]}: exact {row[4]}" for row in rows))


if __name__ == "__main__":
    main()
