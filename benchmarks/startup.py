"""How long it takes to start: `python benchmarks/startup.py` (about 2 minutes on two quiet cores).

* `check`: the command on 64 records, with their images
* `import helpers.models`, beside the three libraries that it is made of
* the set-up cell of a notebook, once those libraries are loaded

All are started in turn, `--rounds` times after one round that is not counted; printed are medians,
in seconds on the clock and of the processor. `--root` measures another copy of the repository with
this Python and its packages.
"""

import argparse
import os
import resource
import statistics
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
RECORDS = "data/traffic/preferences_valid.jsonl"
LIBRARIES = "import torch, transformers, peft"
CELL = f"""
import time
{LIBRARIES}
started = time.perf_counter(), time.process_time()
from helpers.setup import set_up
set_up()
print(time.perf_counter() - started[0], time.process_time() - started[1])
"""
STARTS = {
    "check": ["-m", "helpers", "check", RECORDS],
    "libraries": ["-c", LIBRARIES],
    "helpers.models": ["-c", "import helpers.models"],
    "set-up cell": ["-c", CELL],
}


def measure(arguments: list[str], root: Path) -> tuple[float, float]:
    """Start Python with these arguments in `root` → seconds on the clock, of the processor."""
    before, started = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    # with compiled files, as everywhere but in a shell that forbids them
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONDONTWRITEBYTECODE"}
    run = subprocess.run(
        [sys.executable, *arguments], cwd=root, env=environment, capture_output=True, text=True
    )
    seconds, after = time.perf_counter() - started, resource.getrusage(resource.RUSAGE_CHILDREN)
    if run.returncode:
        raise SystemExit(run.stdout + run.stderr)
    if CELL in arguments:  # has timed itself
        seconds, used = map(float, run.stdout.split()[-2:])
        return seconds, used
    used = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return seconds, used


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--root", type=Path, default=ROOT)
    args = parser.parse_args()
    found: dict[str, list[tuple[float, float]]] = {name: [] for name in STARTS}
    for number in range(args.rounds + 1):
        for name, arguments in STARTS.items():
            taken = measure(arguments, args.root)
            if number:  # the first one reads the disk
                found[name].append(taken)
    clock, used = {}, {}
    for name, rows in found.items():
        clock[name], used[name] = map(statistics.median, zip(*rows, strict=True))
        print(f"{name:<16} {clock[name]:6.2f} s, processor {used[name]:6.2f} s")
    share = clock["helpers.models"] / clock["libraries"]
    by_processor = used["helpers.models"] / used["libraries"]
    print(f"helpers.models / libraries: {share:.2f}, by the processor {by_processor:.2f}")
    load = ", ".join(f"{value:.1f}" for value in os.getloadavg())
    print(f"medians of {args.rounds}, {os.cpu_count()} cores, load of 1, 5, 15 minutes: {load}")


if __name__ == "__main__":
    main()
