"""What the reward models are worth: `python benchmarks/reward.py` (about 25 minutes, 2 cores).

Trains on the shipped traffic preferences and reports on the pairs of the 400 test scenes: every
head with every objective, the preset with three seeds, its text-only twin, and shuffled labels with
eight, with which nothing can be learnt. Then times four answers to one image in one forward against
one by one, on a random model with the proportions of Qwen2-VL-2B. Writes `benchmarks/reward.json`
(entries `{value, low, high, n, seed}`) and the tables of `docs/results.md`. `--only speed` or
`--only accuracy` does a part, `--match TEXT` the training runs of such a name; `--only tables`
writes the tables again.
"""

import argparse
import dataclasses
import logging
import sys
import time
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from scipy.stats import t
from transformers import AutoProcessor, Qwen2VLConfig, Qwen2VLForConditionalGeneration

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from helpers import models
from helpers.config import RewardSettings, reward_preset
from helpers.data.preferences import read_records
from helpers.data.record import PreferenceRecord
from helpers.files import read_json, write_json
from helpers.models.encoded_prompts import encode_prompts
from helpers.models.prompts import render
from helpers.models.shared_prefix import hidden_states, pack, pack_separately
from helpers.report import markdown_table
from helpers.rewards import reward_model
from helpers.rewards.reward_model import score_records
from helpers.rewards.reward_report import RewardReport, other_images
from helpers.runtime import machine_summary
from helpers.statistics import Proportion
from helpers.training.reward import RewardTrainer
from tools.publish import write_block

TRAFFIC = ROOT / "data" / "traffic"
PRESET = reward_preset("tiny")
SEEDS = (0, 1, 2)
OUT = ROOT / "benchmarks" / "reward.json"
HEADS = ("linear", "mlp", "fusion")
OBJECTIVES = ("bradley_terry", "listwise", "focal")
COLUMNS = (
    "right image",
    "shuffled image",
    "blank image",
    "other image",
    "own",
    "other image, shuffled image",
)


def records_of(split: str) -> list[PreferenceRecord]:
    return read_records(TRAFFIC / f"preferences_{split}.jsonl")


def random_labels(records: list[PreferenceRecord], seed: int) -> list[PreferenceRecord]:
    """The records with a random answer on top."""
    rng = np.random.default_rng(seed)
    result = []
    for record in records:
        best = int(rng.integers(len(record.answers)))
        rest = [place for place in range(len(record.answers)) if place != best]
        result.append(record.model_copy(update={"ranking": [[best], rest]}))
    return result


def measure(
    settings: RewardSettings, seed: int, *, sees_images: bool = True, shuffle_labels: bool = False
) -> dict[str, Proportion | float]:
    """Accuracies on the test pairs after one training run, and its seconds."""
    train, held_out, test = map(records_of, ("train", "valid", "test"))
    reward = reward_model.new_reward_model(*models.load_model("tiny"), settings, seed, sees_images)
    if (
        shuffle_labels
    ):  # of the validation pairs too: the best of several models of noise may be right by chance
        train, held_out = random_labels(train, seed), random_labels(held_out, seed + 100)
    run = RewardTrainer(reward, train, held_out, settings, seed).train()
    images = {"right": None} | {c: other_images(test, c) for c in ("shuffled", "blank")}
    scores = {condition: score_records(reward, test, row) for condition, row in images.items()}
    report = RewardReport("reward model", test, scores)
    kinds = {
        f"{kind}, shuffled image": share
        for kind, share in report.accuracy_by_kind("shuffled").items()
    }
    shares = {"right image": report.accuracy(), "shuffled image": report.accuracy("shuffled")}
    shares |= {"blank image": report.accuracy("blank"), **report.accuracy_by_kind(), **kinds}
    return shares | {"seconds": run.seconds}


def accuracy(match: str = "") -> dict[str, dict]:
    """Entries of the training runs whose name holds `match`."""
    plans = {
        f"{head}, {objective}": ({"head": head, "objective": objective}, {}, (0,))
        for head in HEADS
        for objective in OBJECTIVES
    }
    plans["mlp, bradley_terry"] = ({}, {}, SEEDS)
    plans["text-only twin"] = ({}, {"sees_images": False}, (0,))
    plans["shuffled labels"] = ({}, {"shuffle_labels": True}, range(8))
    entries: dict[str, dict] = {}
    for name, (change, how, seeds) in plans.items():
        for seed in seeds if match in name else ():
            for what, figure in measure(dataclasses.replace(PRESET, **change), seed, **how).items():
                figure = (
                    figure
                    if isinstance(figure, Proportion)
                    else Proportion(figure, figure, figure, 1)
                )
                entries[f"{name} | {what} | {seed}"] = dataclasses.asdict(figure) | {"seed": seed}
            print(name, seed, entries[f"{name} | right image | {seed}"], flush=True)
    return entries


def proxy() -> Qwen2VLForConditionalGeneration:
    """Random weights, a quarter of the width and depth of Qwen2-VL-2B's two towers.

    Those have widths of 1536 and 1280, and 28 and 32 layers.
    """
    text = {
        "hidden_size": 384,
        "intermediate_size": 2240,
        "num_hidden_layers": 7,
        "num_attention_heads": 3,
        "num_key_value_heads": 1,
        "vocab_size": 512,
        "rope_parameters": {
            "rope_type": "default",
            "rope_theta": 1e6,
            "mrope_section": [16, 24, 24],
        },
    }
    vision = {
        "depth": 8,
        "embed_dim": 320,
        "num_heads": 4,
        "hidden_size": 384,
        "patch_size": 14,
        "mlp_ratio": 4,
    }
    tokenizer = AutoProcessor.from_pretrained(ROOT / "data" / "tiny-qwen2-vl").tokenizer
    marks = {
        f"{n}_token_id": tokenizer.convert_tokens_to_ids(f"<|{n}_pad|>") for n in ("image", "video")
    }
    marks |= {
        f"vision_{n}_token_id": tokenizer.convert_tokens_to_ids(f"<|vision_{n}|>")
        for n in ("start", "end")
    }
    torch.manual_seed(0)
    return Qwen2VLForConditionalGeneration(
        Qwen2VLConfig(text_config=text, vision_config=vision, **marks)
    ).eval()


@torch.no_grad()
def speed(repeats: int = 15) -> dict[str, dict]:
    """Seconds of one by one over seconds of all four in one forward; both in turn, so that noise
    hits both.
    """
    model = proxy()
    processor = AutoProcessor.from_pretrained(ROOT / "data" / "tiny-qwen2-vl")
    processor.image_processor.size["longest_edge"] = 448 * 448
    image = Image.effect_noise((448, 448), 80).convert("RGB")
    prompt = render(processor, "How many cars, motorcycles, buses and bicycles are in the image?")
    answers = [
        f"There are {n} cars, {n} motorcycles, 0 buses, 0 bicycles in the image." for n in range(4)
    ]
    encoded = encode_prompts(processor, [prompt], [[image]])
    packed = pack(model, processor, encoded, [answers])
    singles = [pack_separately(processor, encoded, [[answer]]) for answer in answers]
    visual = int((packed.inputs["input_ids"] == processor.image_token_id).sum())
    together = hidden_states(model, packed)[:, -1]
    apart = torch.cat([hidden_states(model, single)[:, -1] for single in singles])
    torch.testing.assert_close(together, apart, rtol=1e-3, atol=1e-4)
    ratios = []
    for _ in range(repeats):
        started = time.perf_counter()
        hidden_states(model, packed)
        middle = time.perf_counter()
        for single in singles:
            hidden_states(model, single)
        ratios.append((time.perf_counter() - middle) / (middle - started))
    low, high = np.percentile(ratios, [2.5, 97.5])
    print(
        f"{visual} visual tokens, 4 answers: one forward is {np.median(ratios):.2f} times as fast "
        f"[{low:.2f}, {high:.2f}]"
    )
    value = {
        "value": float(np.median(ratios)),
        "low": float(low),
        "high": float(high),
        "n": repeats,
        "seed": 0,
    }
    return {f"speed of 4 answers in one forward, {visual} visual tokens": value}


def tables(entries: dict[str, dict]) -> str:
    """The accuracies as Markdown, one line a training run."""
    rows = [["model", "seed", *COLUMNS, "seconds"]]
    for key in entries:
        name, *rest = key.split(" | ")
        if rest and rest[0] == "right image":
            found = [entries[f"{name} | {column} | {rest[1]}"] for column in COLUMNS]
            shares = [f"{e['value']:.3f} [{e['low']:.3f}, {e['high']:.3f}]" for e in found]
            rows.append(
                [name, rest[1], *shares, f"{entries[f'{name} | seconds | {rest[1]}']['value']:.0f}"]
            )
    lines = [
        f"{key}: {e['value']:.2f} [{e['low']:.2f}, {e['high']:.2f}]"
        for key, e in entries.items()
        if "speed" in key
    ]
    return "\n\n".join([markdown_table(rows), *over_seeds(entries), *lines])


def over_seeds(entries: dict[str, dict]) -> list[str]:
    """Mean over the seeds with its 95 % t interval, for every model that has several."""
    lines = []
    for name in dict.fromkeys(key.split(" | ")[0] for key in entries if " | right image | " in key):
        values = {}
        for column in COLUMNS:
            start = f"{name} | {column} | "
            values[column] = [e["value"] for key, e in entries.items() if key.startswith(start)]
        n = len(values["right image"])
        if n > 1:
            half = {
                c: t.ppf(0.975, n - 1) * np.std(row, ddof=1) / n**0.5 for c, row in values.items()
            }
            shares = [
                f"{c} {np.mean(v):.3f} [{np.mean(v) - half[c]:.3f}, {np.mean(v) + half[c]:.3f}]"
                for c, v in values.items()
            ]
            lines.append(f"{name}, mean of {n} seeds (t interval): " + ", ".join(shares) + ".")
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", choices=("accuracy", "speed", "tables"))
    parser.add_argument("--match", default="", help="only training runs whose name holds this")
    args = parser.parse_args()
    only = "accuracy" if args.match else args.only
    logging.getLogger("transformers").setLevel(logging.ERROR)
    stored = read_json(OUT)["entries"] if OUT.exists() and only else {}
    if only in (None, "speed"):
        stored |= speed()
    if only in (None, "accuracy"):
        stored |= accuracy(args.match)
    write_json(OUT, {"machine": machine_summary(), "entries": stored})
    results = ROOT / "docs" / "results.md"
    write_block(results, "table of benchmarks/reward.py", tables(stored))


if __name__ == "__main__":
    main()
