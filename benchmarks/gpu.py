"""What only a GPU can show, in one go of under 10 minutes: `python benchmarks/gpu.py`.

Random weights (seed 0) in the shapes of a preset, 4 bits, images of 448 × 448, fp16 even where the
card has bf16, and only as much GPU memory as a T4 lets PyTorch have: the allocator is capped, the
context (about 0.5 GB) comes on top.

* checkpoint: writes the weights; what the machine is;
* load: seconds, memory, greedy answers; logits, log-probabilities and the gradient of one DPO
  batch;
* exchange: the same once more with transformers, compared with itself (the noise) and with unsloth;
  saved adapters read;
* dpo, trl: DPO as this suite runs it and as `trl.DPOTrainer` does, on the same pairs, each of which
  comes twice: in the first epoch our caches are filled, then they are warm;
* ppo: PPO with the preset "t4" and short answers;
* resume_dpo, resume_ppo: a run killed with SIGKILL after a checkpoint and gone on, compared with
  two that were not killed, on a small checkpoint of the same architecture.

Each part runs in a process of its own, once with transformers' loading and once with unsloth's, so
that peaks are of that part alone and the rest goes on if one crashes: its row then ends in an
`error`. A part has a time limit, and all of them share one. Simplification: one seed and one run a
part, so that only what differs by much is news.

Writes `benchmarks/gpu.json` after each part. `--toy`, or no GPU: tiny widths and two steps, in fp32
on a CPU, to test the script itself; it writes only where `--out` says.
"""

import argparse
import importlib.util
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import torch

from benchmarks.gpu_run import Part, Plan, Row, import_parts, run_part, tidy, work
from helpers.files import UsageError, write_json

OUT = Path(__file__).with_suffix(".json")
SECONDS = 560  # all parts together
LEAST = 10  # seconds without which no part is begun


PARTS = [
    Part("checkpoint", "transformers", 120),
    Part("load", "transformers", 120),
    Part("load", "unsloth", 180),
    Part("exchange", "transformers", 90),
    *(
        Part(what, backend, 120)
        for what in ("dpo", "trl", "ppo")
        for backend in ("transformers", "unsloth")
    ),
    *(
        Part(f"resume_{what}", backend, 90)
        for backend in ("transformers", "unsloth")
        for what in ("dpo", "ppo")
    ),
]


def run_parts(
    parts: Sequence[Part],
    plan: Plan,
    save: Callable[[dict[str, Row]], Any],
    seconds: float = SECONDS,
) -> dict[str, Row]:
    """Rows by part, in order, saved after each; those for which nothing is there, or no time is
    left, say so.
    """
    rows, end = {}, time.perf_counter() + seconds
    for part in parts:
        left = end - time.perf_counter()
        if reason := missing(part):
            rows[part.name] = {"skipped": reason}
        elif left < LEAST:
            rows[part.name] = {"error": f"not begun: {seconds:.0f} s are over"}
        else:
            out = plan.folder / f"{part.name}.json"
            rows[part.name] = run_part(work, (part, plan), out, min(part.limit, left))
        print(f"{part.name}: {in_short(rows[part.name])}", flush=True)
        save(rows)
    return rows


def missing(part: Part) -> str:
    """Why a part cannot run here, or nothing."""
    if part.backend != "unsloth":
        return ""
    if not torch.cuda.is_available():
        return "no GPU"
    return "" if importlib.util.find_spec("unsloth") else "unsloth is not installed"


def comparisons(rows: Mapping[str, Row]) -> Row:
    """How many times as fast as TRL ours is with the same loader, and ours with unsloth as TRL
    without; 1: equally fast.
    """
    pairs = {
        "transformers": ("trl_transformers", "dpo_transformers"),
        "unsloth": ("trl_unsloth", "dpo_unsloth"),
    }
    pairs["unsloth_to_stock"] = ("trl_transformers", "dpo_unsloth")
    found = {}
    for name, sides in pairs.items():
        for when in ("", "_first_epoch", "_later"):
            stock, ours = (rows.get(side, {}).get(f"seconds{when}") for side in sides)
            if stock and ours:
                found[f"{name}_faster{when}"] = stock / ours
    return found


SHOWN = {
    "seconds": "{:.3g} s",
    "seconds_first_epoch": "{:.3g} s in the first epoch",
    "seconds_later": "{:.3g} s later",
    "peak_gb": "{:.2f} GB",
    "forecast_ratio": "{:.2f} of the forecast",
    "loss_first": "loss {:.4f} first",
    "loss_last": "{:.4f} last",
    "non_finite_gradients": "{} non-finite gradients",
    "ratio_first": "ratio {:.5f} first",
    "bf16_tensors": "{} in bf16",
    "largest_difference": "weights differ by ≤ {:.1e}",
    "largest_difference_unkilled": "without a kill by ≤ {:.1e}",
    "logits_relative_error": "logits differ by {:.1e}",
    "gradient_cosine": "gradients' cosine {:.6f}",
}


def in_short(row: Row) -> str:
    """The figures of a row that one looks at first."""
    values = {name: row[name] for name in SHOWN if name in row}
    figures = [f"{n}: {v}" if isinstance(v, str) else SHOWN[n].format(v) for n, v in values.items()]
    inner = {name: in_short(part) for name, part in row.items() if isinstance(part, Mapping)}
    figures += [f"{name}: {short}" for name, short in inner.items() if short != "done"]
    return (
        "; ".join(
            [*figures, *(f"{name}: {row[name]}" for name in ("skipped", "error") if name in row)]
        )
        or "done"
    )


def table(results: Row) -> str:
    """A line for each part, and the comparisons."""
    lines = [f"{name:<24}{in_short(row)}" for name, row in results["parts"].items()]
    return "\n".join(
        [*lines, *(f"{name:<40}{value:.2f}" for name, value in results["comparisons"].items())]
    )


def read_plan(arguments: list[str] | None = None) -> tuple[Plan, Path | None]:
    """The command line: what is to be done, and where the JSON goes, if anywhere. Raises
    UsageError.
    """
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--preset",
        default="qwen2-vl-2b",
        help="of helpers/models/presets.toml, of the Qwen-VL family",
    )
    parser.add_argument(
        "--gigabytes", type=float, default=15, help="10⁹ bytes of GPU memory that may be used"
    )
    parser.add_argument("--dtype", choices=("fp16", "bf16"), default="fp16")
    parser.add_argument("--steps", type=int, default=20, help="of DPO")
    parser.add_argument("--iterations", type=int, default=3, help="of PPO")
    parser.add_argument("--out", type=Path, help="default: benchmarks/gpu.json; as a toy, none")
    parser.add_argument(
        "--folder", type=Path, help="keep checkpoint, adapters and logs here instead of nowhere"
    )
    parser.add_argument(
        "--toy", action="store_true", help="tiny widths, 2 steps, 1 iteration, no limit of memory"
    )
    args = vars(parser.parse_args(arguments))
    out, folder = args.pop("out"), args.pop("folder")
    if min(args["steps"], args["iterations"], args["gigabytes"]) <= 0:
        raise UsageError("--steps, --iterations and --gigabytes must be more than 0.")
    if (
        folder
        and folder.exists()
        and not (folder.is_dir() and next(folder.iterdir(), None) is None)
    ):
        raise UsageError(f"{folder}: holds something already. Give --folder an empty or a new one.")
    if not args["toy"] and not torch.cuda.is_available():
        print("No GPU: as with --toy.")
        args["toy"] = True
    small = {"steps": 2, "iterations": 1, "gigabytes": None} if args["toy"] else {}
    return Plan(**(args | small), folder=folder), out or (None if args["toy"] else OUT)


def results_of(plan: Plan, rows: Mapping[str, Row]) -> Row:
    """What the JSON holds: the machine is noted by the part that writes the checkpoint."""
    settings = {name: value for name, value in asdict(plan).items() if name != "folder"} | {
        "seed": 0
    }
    environment = rows.get("checkpoint", {}).get("environment", {})
    parts = {}
    for part, row in rows.items():
        parts[part] = {name: value for name, value in row.items() if name != "environment"}
    return {
        "environment": environment,
        "settings": settings,
        "parts": parts,
        "comparisons": comparisons(rows),
    }


def main(arguments: list[str] | None = None) -> None:
    try:
        plan, out = read_plan(arguments)
    except UsageError as error:
        sys.exit(f"Error: {error}")
    if not torch.cuda.is_available():
        import_parts("transformers")  # once for all that is forked
    with tempfile.TemporaryDirectory() as temporary:
        plan = replace(plan, folder=(plan.folder or Path(temporary)).resolve())
        plan.folder.mkdir(parents=True, exist_ok=True)
        rows = run_parts(
            PARTS, plan, lambda rows: out and write_json(out, tidy(results_of(plan, rows)))
        )
    print(table(results_of(plan, rows)))


if __name__ == "__main__":
    main()
