"""What each architecture can do in each precision, on random models of 24 layers.

python benchmarks/architectures.py                       # all; some ten minutes on a CPU
python benchmarks/architectures.py --only gemma3 --notebooks   # and all notebooks in short

The models are those of the tests, from folders as on the hub. Columns: whether all answers to an
image share a row, how far packed answers lie from plain ones and these from each other
(`models.check_packing`, relative to their norm), whether image features are kept, and whether a
step of mDPO and an iteration of PPO train with finite figures, in 4 bits as well. 16 bits are
computed on the CPU as a GPU would. Writes `benchmarks/architectures.json` and the table of
`docs/architectures.md`.
"""

import argparse
import dataclasses
import math
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

from architectures import BUILDERS, build_deep, save_as_on_the_hub
from ci import run_chain
from newer_architectures import NEWER
from precisions import sixteen_bits

from helpers import models
from helpers.config import DPO_PRESETS, PPO_PRESETS, LoraSettings
from helpers.data import add_image_negatives, read_records, tasks_of, to_trl
from helpers.files import read_json, write_json
from helpers.report import markdown_table
from helpers.rewards import make_scorer
from helpers.runtime import DTYPES
from helpers.training import PPOTrainer, dpo_trainer, train_dpo
from tools.publish import write_block

RESULTS = Path(__file__).with_suffix(".json")
PAGE = ROOT / "docs" / "architectures.md"
PAIRS = ROOT / "data" / "traffic" / "preferences_train.jsonl"
HEAD = (
    "architecture",
    "precision",
    "packed",
    "packed differs by",
    "plain layouts differ by",
    "features kept",
    "mDPO",
    "PPO",
    "4 bits",
    "notebooks",
)
LORA = LoraSettings(r=4)
# In fp16 a step is left out whose gradients overflow: the first ones, until the scale of the loss
# is found, and single ones later. Behind 24 random layers gradients are large.
MDPO = dataclasses.replace(
    DPO_PRESETS["mdpo"], steps=12, batch_size=2, accumulation=1, warmup_share=0.0, lora=LORA
)
PPO = dataclasses.replace(
    PPO_PRESETS["t4"],
    iterations=6,
    prompts_per_iteration=2,
    group_size=2,
    mini_batch=1,
    critic_layers=3,
    max_new_tokens=6,
    no_end_penalty=0.0,
    lora=LORA,
)
by_length = make_scorer("length", lambda image, question, answer, facts: {"length": len(answer)})


def train_mdpo(folder: Path, four_bit: bool) -> None:
    """Take some steps of mDPO. Raises ValueError if they do not train."""
    spoilt = add_image_negatives(read_records(PAIRS)[:2], folder / "negatives")
    pairs = to_trl(spoilt)
    model, processor = models.load_model(folder, four_bit=four_bit)
    log = train_dpo(dpo_trainer(model, processor, pairs, MDPO)).log
    require_finite([row["loss"] for row in log], [row["grad_norm"] for row in log])


def train_ppo(folder: Path, four_bit: bool) -> None:
    """Take some iterations of PPO. Raises ValueError if they do not train."""
    tasks = tasks_of(read_records(PAIRS)[:4])
    model, processor = models.load_model(folder, four_bit=four_bit)
    log = PPOTrainer(model, processor, tasks, by_length, PPO).train()
    losses = [row["ppo/loss/policy"] for row in log]
    require_finite(losses, [row["grad_norm/adapter"] for row in log])


def require_finite(losses: list[float], norms: list[float]) -> None:
    """Raise ValueError for a loss that is no number, or if none of the last gradients is finite."""
    if not all(map(math.isfinite, losses)):
        raise ValueError("a loss is not finite")
    if not any(map(math.isfinite, norms[-3:])):
        raise ValueError("the last three gradients are not finite")


def outcome(call: Callable[..., None], *given: Any) -> str:
    """Return "yes", or what the call raises in a line."""
    try:
        call(*given)
    except Exception as error:  # whatever an architecture makes of it is the figure
        first, *_ = str(error).splitlines() or [""]
        return f"{type(error).__name__}: {first[:80]}"
    return "yes"


def measure(folder: Path, precision: str) -> dict[str, Any]:
    """Return the figures of a checkpoint in a precision."""
    dtype = DTYPES[precision]
    # 4 bits are multiplied in the precision of the rest
    with nullcontext() if precision == "fp32" else sixteen_bits(dtype):
        model, processor = models.load_model(folder, four_bit=False)
        packs = models.can_pack(model, processor)
        check = models.check_packing(model, processor, packs=packs)
        return {
            "packed": packs,
            "difference": check.difference,
            "floor": check.floor,
            "features": models.can_keep_features(model, processor),
            "mDPO": outcome(train_mdpo, folder, False),
            "PPO": outcome(train_ppo, folder, False),
            "4 bits": outcome(train_mdpo, folder, True),
        }


def run_notebooks(name: str, folder: Path) -> dict[str, Any]:
    """Run all notebooks in short on a shallow model; the seconds they take, or what went wrong."""
    model = save_as_on_the_hub(name, folder / "model")
    started = time.perf_counter()
    said = outcome(run_chain, folder, True, model)
    return {"notebooks": said, "seconds": time.perf_counter() - started}


def table_rows(known: dict[str, Any]) -> list[list[str]]:
    """Return the head of the table, and a row for each architecture and precision."""
    rows = [[*HEAD]]
    for name, figures in known.items():
        notebooks = figures.get("notebooks", {}).get("notebooks", "–")
        for precision in DTYPES:
            found = figures.get(precision)
            if found is None:
                continue
            row = [name, precision, "yes" if found["packed"] else "no"]
            row += [f"{found['difference']:.1e}", f"{found['floor']:.1e}"]
            row.append("yes" if found["features"] else "no")
            row += [found[stage] for stage in ("mDPO", "PPO", "4 bits")]
            # they ran once, in the precision of this machine
            row.append(notebooks if precision == "fp32" else "")
            rows.append(row)
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    names = [*BUILDERS, *NEWER]
    parser.add_argument("--only", nargs="+", choices=names, default=names)
    parser.add_argument("--notebooks", action="store_true", help="run the notebooks, not the rest")
    given = parser.parse_args()
    for name in given.only:
        known = read_json(RESULTS) if RESULTS.exists() else {}
        figures = known.get(name, {})
        with tempfile.TemporaryDirectory() as temporary:
            if given.notebooks:
                figures["notebooks"] = run_notebooks(name, Path(temporary))
            else:
                folder = save_as_on_the_hub(name, Path(temporary) / "model", build_deep)
                for precision in DTYPES:
                    figures[precision] = measure(folder, precision)
                    print(name, precision, figures[precision], flush=True)
        # in the order of the parser, whichever was measured first
        known[name] = figures
        write_json(RESULTS, {key: known[key] for key in names if key in known})
        table = markdown_table(table_rows(read_json(RESULTS)))
        write_block(PAGE, "architectures", table)


if __name__ == "__main__":
    main()
