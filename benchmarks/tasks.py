"""Run the five tasks by their recipes, on the embedded models: figures and the table of the five.

python benchmarks/tasks.py                        # three seeds; about an hour on two cores
python benchmarks/tasks.py --only reasons --seeds 0
python benchmarks/tasks.py --table                # only writes the table again

Each recipe runs as `python -m helpers train --config TASK --laptop` does. `benchmarks/tasks.json`
gets the figures, README and docs/results.md the table that notebook 07 shows, too.
"""

import argparse
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from helpers.data import SHIPPED_TASKS
from helpers.files import ROOT, artifacts_dir, read_json, write_json
from helpers.report import TASK_FIGURES, markdown_table, task_rows
from tools.publish import write_block

PAGES = (ROOT / "README.md", ROOT / "docs" / "results.md")
BLOCK = "table of the five tasks"
SEEDS = (0, 1, 2)

# Of each task: name of a run → what is set beside its recipe. "" is the recipe itself.
RUNS: Mapping[str, Mapping[str, Sequence[str]]] = {
    "counting": {"": ()},
    "instructions": {"": ()},
    # the source's way: its rules about words, a small network that follows them, PPO against it
    "reasons": {
        "": (),
        "hacked": (
            "stages=['data', 'rank', 'features', 'ppo', 'evaluate']",
            "ppo.score={'features': 1.0}",
            "ppo.settings.kl_weight=0.02",
        ),
    },
    "questions": {"": ()},
    "reasoning": {"": ()},
}
# Policies of a recipe, as the figures are called
POLICIES = {"base": "base", "sft": "sft", "dpo": "dpo", "rl": "ppo"}
EVIDENCE = {
    "pairs": "{}_pair_accuracy",
    "wins": "{}_win_rate_reward_model",
    "agreement": "{}_agreement_reward_model",
}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", nargs="+", default=list(SHIPPED_TASKS), choices=SHIPPED_TASKS)
    parser.add_argument("--seeds", nargs="+", type=int, default=list(SEEDS))
    parser.add_argument("--table", action="store_true", help="write the table again, run nothing")
    args = parser.parse_args()
    for task in () if args.table else args.only:
        for seed in args.seeds:
            for run, changes in RUNS[task].items():
                # another way shows that it fails, for which one seed is enough
                if run and seed != SEEDS[0]:
                    continue
                figures = run_recipe(task, run, seed, changes)
                known = read_json(TASK_FIGURES) if TASK_FIGURES.exists() else {}
                write_json(TASK_FIGURES, known | name_figures(task, run, seed, figures))
    table = markdown_table(task_rows(read_json(TASK_FIGURES)))
    for page in PAGES:
        write_block(page, BLOCK, table)


def run_recipe(task: str, run: str, seed: int, changes: Sequence[str]) -> dict[str, Any]:
    """Run a recipe as a user would; its figures, and how long it took."""
    folder = artifacts_dir() / "tasks" / f"{task}{'-' if run else ''}{run}-{seed}"
    started = time.perf_counter()
    command = [sys.executable, "-m", "helpers", "train", "--config", task, "--laptop"]
    command += ["--out", str(folder), "--replace", "--set", f"seed={seed}", *changes]
    subprocess.run(command, check=True, cwd=ROOT)
    seconds = {"value": time.perf_counter() - started, "seed": seed, "n": 1}
    return read_json(folder / "figures.json") | {"seconds": seconds}


def name_figures(
    task: str, run: str, seed: int, figures: Mapping[str, dict[str, Any]]
) -> dict[str, dict[str, Any]]:
    """The figures that the table needs, by their names there: `reasons_dpo_seed_1`."""
    end = f"_seed_{seed}" if seed else ""
    start = f"{task}_{run}_" if run else f"{task}_"
    share = "exact" if "base_exact" in figures else "right"
    found = {f"{start}seconds{end}": figures["seconds"]}
    for name, policy in POLICIES.items():
        row = figures.get(f"{policy}_{share}")
        # a run of another way has the base of the first
        if row is None or (run and name == "base"):
            continue
        found[f"{start}{name}{end}"] = row
        found[f"{start}{name}_sampled{end}"] = figures[f"{policy}_{share}_sampled"]
        p = figures.get(f"{policy}_vs_sft_p")
        if p is not None:
            found[f"{start}{name}_p{end}"] = p
        for kind, pattern in EVIDENCE.items():
            more = figures.get(pattern.format(policy))
            if more is not None:
                found[f"{start}{name}_{kind}{end}"] = more
    return found


if __name__ == "__main__":
    main()
