"""What the presets of a T4 do on a model with real language weights: `smollm2-scenes`.

python benchmarks/real_language.py                         # what is missing of three seeds; hours
python benchmarks/real_language.py --only dpo --seeds 0
python benchmarks/real_language.py --table                 # only writes the tables again

Each run is the recipe `benchmarks/real_language.toml` with some of its stages. A policy is asked
200 held-out questions, greedy and sampled; how far it has moved is the KL divergence from the base
in nats an answer, estimated by log π − log π_base of its own samples; whether it still speaks, the
perplexity of a plain text. Every run is written to `benchmarks/real_language.json` as it ends, and
a run that is there is not run again. Beside the runs stand figures over the seeds. Writes tables of
docs/results.md.

On a CPU with AVX-512 or AMX, VLM_DTYPE=bf16 before the command makes products more than twice as
fast. Every row says in what it was computed.
"""

import argparse
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tqdm.auto import trange

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from helpers import models
from helpers.data import Task, read_prepared
from helpers.evaluation import evaluate_greedy_and_sampled
from helpers.files import artifacts_dir, read_json, write_json
from helpers.models import answer_logps, disable_adapters
from helpers.report import figure_name, markdown_table
from helpers.runtime import machine_summary
from helpers.statistics import Estimate, mcnemar_p, sample_mean
from tools.publish import write_block

MODEL = "smollm2-scenes"
RECIPE = Path(__file__).with_suffix(".toml")
OUT = Path(__file__).with_suffix(".json")
PAGE = ROOT / "docs" / "results.md"
BLOCK = "real_language"
SEEDS = (0, 1, 2)
QUESTIONS = 200  # held out; each is asked twice of every policy
KL_QUESTIONS = 64
KL_BATCH = 16  # of them at once


@dataclass(frozen=True)
class Run:
    """A training: stages of the recipe after `data`, what is changed in it, and its policy.

    policy: the folder of what it leaves; None: a reward model, or nothing. before: runs whose
    folders it needs.
    """

    stages: tuple[str, ...]
    changes: tuple[str, ...] = ()
    policy: str | None = None
    before: tuple[str, ...] = ()


BASE = "base"
RUNS: Mapping[str, Run] = {
    BASE: Run(()),
    "sft": Run(("sft",), policy="sft"),
    "dpo": Run(("dpo",), policy="dpo"),
    "rloo": Run(("ppo",), policy="ppo"),
    "reward": Run(("reward",)),
    # with a critic, against what the run `reward` has learnt
    "ppo": Run(
        ("ppo",),
        ("ppo.preset='t4'", "ppo.settings.critic_layers=3", "ppo.score={'reward_model': 1.0}"),
        policy="ppo",
        before=("reward",),
    ),
    "grpo": Run(("ppo",), ("ppo.preset='t4-grpo'",), policy="ppo"),
    "dpo_rloo": Run(("ppo",), ("ppo.start='dpo'",), policy="ppo", before=("dpo",)),
}
NAMES = {
    BASE: "base",
    "sft": "SFT on the chosen answers",
    "dpo": "DPO",
    "rloo": "RLOO, right or wrong as its reward",
    "ppo": "PPO with a critic, against the reward model",
    "grpo": "GRPO",
    "dpo_rloo": "DPO, then RLOO",
}
# What figures over the seeds are called; those of reward models have a form of their own
PREFIXES = {
    BASE: "base",
    "sft": "sft",
    "dpo": "dpo_t4",
    "rloo": "rl_t4",
    "ppo": "ppo_t4",
    "grpo": "grpo_t4",
    "dpo_rloo": "dpo_rl_t4",
}
REWARD = "reward_mlp_bradley_terry"
REWARD_FIGURES = {
    "reward_t4_pairs": f"{REWARD}_pair_accuracy",
    "reward_t4_pairs_shuffled_images": f"{REWARD}_other_images",
}


def folder_of(seed: int) -> Path:
    """Return where all runs of a seed are; they share its data."""
    return artifacts_dir() / "real-language" / f"seed-{seed}"


def train(name: str, seed: int) -> tuple[Path, dict[str, Any], float]:
    """Run a training as a user would: its folder, its figures and its seconds.

    Those of a run that was stopped and goes on are those of all its parts.
    """
    run = RUNS[name]
    home = folder_of(seed)
    folder = home / name
    # What it needs of other runs is linked, so that the recipe finds it in its own folder
    folder.mkdir(parents=True, exist_ok=True)
    for other in run.before:
        link = folder / other
        if not link.exists():
            link.symlink_to(home / other / other)
    command = [sys.executable, "-m", "helpers", "train", "--config", str(RECIPE)]
    command += ["--out", str(folder)]
    for stage in ("data", *run.stages):
        command += ["--stage", stage]
    for change in (f"seed={seed}", *run.changes):
        command += ["--set", change]
    clock = folder / "seconds.json"
    before = read_json(clock) if clock.exists() else 0.0
    started = time.perf_counter()
    try:
        subprocess.run(command, check=True, cwd=ROOT)
    finally:
        write_json(clock, before + time.perf_counter() - started)
    return folder, read_json(folder / "figures.json"), read_json(clock)


def examine(model, processor, tasks: Sequence[Task]) -> tuple[dict[str, Any], np.ndarray]:
    """Ask the held-out questions: figures, and which greedy answers are right."""
    found = evaluate_greedy_and_sampled(model, processor, tasks)
    figures = {}
    for measure, share in found.shares().items():
        figures[figure_name(measure)] = asdict(share)
    figures["perplexity"] = {"value": models.plain_english(model, processor).value}
    return figures, found.greedy.right


@torch.no_grad()
def kl_from_base(policy, processor, tasks: Sequence[Task]) -> Estimate:
    """Estimate KL(policy ‖ base) in nats an answer: mean log π − log π_base of its samples."""
    packer = models.Packer(policy, processor, keeps_features=False)
    ratios = []
    for start in trange(0, len(tasks), KL_BATCH, desc="KL", leave=False):
        batch = tasks[start : start + KL_BATCH]
        prompts = packer.encode(
            [task.turns for task in batch], [task.open_images() for task in batch]
        )
        answers, _ = models.sample_ids(
            policy, processor, prompts, max_new_tokens=64, seed=start, temperature=1.0
        )
        packed = packer.pack(prompts, [[answer] for answer in answers])
        moved = answer_logps(policy, packed).sum(-1)
        with disable_adapters(policy):
            base = answer_logps(policy, packed).sum(-1)
        ratios += (moved - base).tolist()
    return sample_mean(np.array(ratios))


def measure(name: str, seed: int, base_right: str | None) -> dict[str, Any]:
    """Train a run, and examine the policy that it has left, or the base.

    base_right: which of the base's answers are right ("1") and wrong ("0"), for the paired test.
    """
    folder, trained, seconds = train(name, seed)
    figures = {"machine": machine_summary(), "seconds": {"value": seconds}, "training": trained}
    policy = RUNS[name].policy
    if policy is None and name != BASE:
        return figures
    tasks = read_prepared(folder / "data").tasks("test")[:QUESTIONS]
    model, processor = models.load_model(MODEL, four_bit=False)
    if policy is not None:
        model = models.load_adapter(model, folder / policy)
    found, right = examine(model, processor, tasks)
    figures |= found | {"right": as_text(right)}
    if policy is not None:
        figures["kl"] = asdict(kl_from_base(model, processor, tasks[:KL_QUESTIONS]))
    if policy is not None and base_right is not None:
        p = mcnemar_p(as_flags(base_right), right)
        figures["p"] = {"value": float(p), "n": len(right)}
    for figure, row in found.items():
        print(f"{name}, seed {seed}: {figure} {cell(row)}", flush=True)
    return figures


def as_text(right: Sequence[bool]) -> str:
    """A character for each question, 1 if its answer is right, so that the file stays short."""
    return "".join(str(int(each)) for each in right)


def as_flags(text: str) -> np.ndarray:
    return np.array([each == "1" for each in text])


def over_seeds(rows: Sequence[Mapping[str, float]]) -> dict[str, Any]:
    """Return the mean of a figure of several seeds, inside the outermost limits of their intervals.

    n: questions or pairs of a seed. seeds: the value of each.
    """
    values = [row["value"] for row in rows]
    figure = {"value": float(np.mean(values)), "seeds": values}
    if "low" in rows[0]:
        figure["low"] = min(row["low"] for row in rows)
        figure["high"] = max(row["high"] for row in rows)
    if "n" in rows[0]:
        figure["n"] = rows[0]["n"]
    return figure


def summarise(runs: Mapping[str, Any]) -> dict[str, Any]:
    """Return figures over the seeds of each run; the p of a run is the largest of its seeds."""
    figures = {}
    for name in RUNS:
        rows = [row for key, row in runs.items() if key.rpartition("_seed_")[0] == name]
        if not rows:
            continue
        if name == "reward":
            trained = [row["training"] for row in rows]
            for figure, key in REWARD_FIGURES.items():
                figures[figure] = over_seeds([row[key] for row in trained])
            continue
        prefix = PREFIXES[name]
        for key in ("exact", "exact_sampled", "wellformed_sampled", "kl", "perplexity", "seconds"):
            if key in rows[0]:
                figures[f"{prefix}_{key}"] = over_seeds([row[key] for row in rows])
        if "p" in rows[0]:
            figures[f"{prefix}_p"] = max((row["p"] for row in rows), key=lambda p: p["value"])
    return figures


def table(runs: Mapping[str, Any]) -> str:
    """Return a row for the base and for each run and seed."""
    head = ["", "seed", "all counts right, greedy", "sampled", "well formed, sampled"]
    head += ["p against the base", "KL, nats an answer", "perplexity", "minutes"]
    rows = [head]
    for key, figures in sorted(runs.items(), key=place_of):
        name, _, seed = key.rpartition("_seed_")
        if name not in NAMES:
            continue
        row = [NAMES[name], seed]
        for figure in ("exact", "exact_sampled", "wellformed_sampled", "p", "kl", "perplexity"):
            row.append(cell(figures.get(figure)))
        rows.append([*row, f"{figures['seconds']['value'] / 60:.0f}"])
    return markdown_table(rows)


def place_of(item: tuple[str, Any]) -> tuple[int, str]:
    """Return where a run stands in the tables: by what it is, then by its seed."""
    name, _, seed = item[0].rpartition("_seed_")
    return list(RUNS).index(name), seed


def cell(figure: Mapping[str, float] | None) -> str:
    """Write a figure with its interval."""
    if figure is None:
        return ""
    text = f"{figure['value']:.3g}"
    if figure.get("low") is not None:
        text += f" [{figure['low']:.3g}, {figure['high']:.3g}]"
    return text


def reward_table(runs: Mapping[str, Any]) -> str:
    """Return a row for each reward model: held-out pairs, with their images and with others."""
    rows = [["reward model, pooled by", "seed", "held-out pairs", "with other images", "minutes"]]
    for key, figures in sorted(runs.items(), key=place_of):
        name, _, seed = key.rpartition("_seed_")
        if name != "reward":
            continue
        row = ["mean", seed]
        for figure in REWARD_FIGURES.values():
            row.append(cell(figures["training"][figure]))
        rows.append([*row, f"{figures['seconds']['value'] / 60:.0f}"])
    return markdown_table(rows)


def read_runs() -> dict[str, Any]:
    """Return the runs that the file of figures has."""
    return read_json(OUT)["runs"] if OUT.exists() else {}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", nargs="+", default=list(RUNS), choices=RUNS)
    parser.add_argument("--seeds", nargs="+", type=int, default=list(SEEDS))
    parser.add_argument("--table", action="store_true", help="write the tables again, run nothing")
    args = parser.parse_args()
    runs = read_runs()
    for seed in () if args.table else args.seeds:
        for name in args.only:
            key = f"{name}_seed_{seed}"
            # Greedy answers of the base are the same for every seed
            if key in runs or (name == BASE and seed != SEEDS[0]):
                continue
            base = runs.get(f"{BASE}_seed_{SEEDS[0]}", {})
            row = measure(name, seed, base.get("right"))
            # Another process may have written meanwhile
            runs = read_runs() | {key: row}
            write_json(OUT, {"figures": summarise(runs), "runs": runs})
    body = table(runs)
    if any(key.startswith("reward_") for key in runs):
        body += f"\n\n{reward_table(runs)}"
    write_block(PAGE, BLOCK, body)


if __name__ == "__main__":
    main()
