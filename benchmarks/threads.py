"""Training beside a busy program: `python benchmarks/threads.py` (about 5 minutes on two cores).

Trains the tiny reward model for one epoch on 128 records, alone and beside one process that
computes without end, with the threads that `helpers` chooses and with all of them awake, as torch
does by itself. All are run in turn, `--rounds` times; printed are medians, and by how much the busy
program slows each. The losses must be equal. `--root` measures another copy of the repository.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
TRAIN = """
import json, sys, time
from dataclasses import replace
from pathlib import Path
import torch
from helpers import models
from helpers.config import reward_preset
from helpers.data import read_records
from helpers.rewards import reward_model
from helpers.training import RewardTrainer
settings = replace(reward_preset("tiny"), epochs=1, evaluations=1)
records = read_records(Path("data/traffic/preferences_train.jsonl"))[:128]
model = models.load_model("tiny")
if sys.argv[1] == "all":
    torch.set_num_threads(torch.multiprocessing.cpu_count())
reward = reward_model.new_reward_model(*model, settings, 0)
trainer = RewardTrainer(reward, records, records[:16], settings, 0)
started = time.perf_counter()
log = trainer.train().log
seconds = time.perf_counter() - started
print(json.dumps([torch.get_num_threads(), seconds, [row["loss"] for row in log]]))
"""
BUSY = "while True: pass"
# Without OMP_NUM_THREADS, as a reader starts it; awake: what OpenMP does where nobody says more.
THREADS = {"chosen": {}, "all": {"OMP_WAIT_POLICY": ""}}


def train(threads: str, root: Path) -> tuple[int, float, list[float]]:
    """Train once in a process of its own → threads, seconds, losses."""
    environment = {k: v for k, v in os.environ.items() if not k.startswith("OMP_")}
    run = subprocess.run(
        [sys.executable, "-c", TRAIN, threads],
        cwd=root,
        env=environment | THREADS[threads],
        capture_output=True,
        text=True,
    )
    if run.returncode:
        raise SystemExit(run.stdout + run.stderr)
    return json.loads(run.stdout.splitlines()[-1])


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--root", type=Path, default=ROOT)
    args = parser.parse_args()
    seconds: dict[tuple[str, str], list[float]] = {}
    losses, numbers = set(), {}
    for _ in range(args.rounds):
        for place in ("alone", "beside"):
            busy = subprocess.Popen([sys.executable, "-c", BUSY]) if place == "beside" else None
            try:
                for threads in THREADS:
                    numbers[threads], taken, curve = train(threads, args.root)
                    seconds.setdefault((threads, place), []).append(taken)
                    losses.add(tuple(curve))
            finally:
                if busy:
                    busy.kill()
    for threads, number in numbers.items():
        alone = statistics.median(seconds[threads, "alone"])
        beside = statistics.median(seconds[threads, "beside"])
        print(
            f"{threads} ({number}): alone {alone:.1f} s, beside a busy program {beside:.1f} s, "
            f"{beside / alone:.2f} times"
        )
    same = "equal" if len(losses) == 1 else f"{len(losses)} different curves"
    load = ", ".join(f"{value:.1f}" for value in os.getloadavg())
    print(f"losses: {same}; medians of {args.rounds}, {os.cpu_count()} cores, load {load}")


if __name__ == "__main__":
    main()
