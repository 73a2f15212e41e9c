"""How fast a step is in bf16: TRL's DPO and GRPO against this suite's, interleaved, on a CPU.

python benchmarks/sixteen_bits.py              # both
python benchmarks/sixteen_bits.py --only dpo

It wants a CPU with instructions for bf16 (AVX-512 or AMX). Without, a product
is many times as slow as in fp32 (`bf16_gain` of `helpers/machine/speed.py`), and this takes hours.

The comparisons of `benchmarks/dpo.py` and `benchmarks/rl.py` with random weights in the shapes of
SmolLM2-135M (30 layers of 576, a vocabulary of 49,280), 256 visual tokens, images' features kept.
The limit is the ratio of FLOPs: what is left if everything but matrix products cost nothing. Writes
`benchmarks/sixteen_bits.json` and a table of `docs/results.md`.
"""

import argparse
import dataclasses
import logging
import os
import sys
from pathlib import Path

# Before anything asks what to compute in
os.environ["VLM_DTYPE"] = "bf16"

import datasets

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from benchmarks import dpo, rl
from helpers.files import read_json, write_json
from helpers.report import markdown_table
from helpers.runtime import machine_summary
from tools.publish import write_block

OUT = Path(__file__).with_suffix(".json")
PAGE = ROOT / "docs" / "results.md"
BLOCK = "sixteen_bits"
# 9 heads of 64, and the vision tower of SmolVLM-256M
SMOLLM2_135M = dpo.Shape(30, 576, 1536, 9, 3, 12, 768, 12, 49_280, mrope=(8, 12, 12))
HEAD = ("method", "stock, s", "ours, s", "times as fast", "limit", "what is stepped")


def find_case(toy: bool, module, name: str, alternations: int):
    """Return the case of a module's name, in the shapes of SmolLM2-135M; toy: as it is."""
    (case,) = (case for case in module.cases(toy) if case.name == name)
    if toy:
        return case
    return dataclasses.replace(case, shape=SMOLLM2_135M, alternations=alternations)


def measure_dpo(toy: bool) -> dict[str, dict]:
    """Return the figures of a step of DPO, with caches that are warm and with such that are not."""
    case = find_case(toy, dpo, "proxy", 5)
    figures = dpo.run(case, [], toy=True)
    return {
        "dpo_bf16_ratio": figures["proxy_ours_later_ratio"],
        "dpo_bf16_limit": figures["proxy_ours_later_limit"],
        "dpo_bf16_first_ratio": figures["proxy_ours_first_ratio"],
        "dpo_bf16_first_limit": figures["proxy_ours_first_limit"],
        "dpo_bf16_stock_seconds": figures["proxy_stock_seconds"],
        "dpo_bf16_seconds": figures["proxy_ours_later_seconds"],
        "dpo_bf16_loss_difference": figures["proxy_loss_difference"],
    }


def measure_grpo(toy: bool) -> dict[str, dict]:
    """Return the figures of an iteration of GRPO; images are always new."""
    case = find_case(toy, rl, "proxy_grpo", 2)
    figures = rl.run(case, {"speed"}, toy)
    return {
        "grpo_bf16_ratio": figures["proxy_grpo_ratio"],
        "grpo_bf16_limit": figures["proxy_grpo_limit"],
        "grpo_bf16_stock_seconds": figures["proxy_grpo_stock_seconds"],
        "grpo_bf16_seconds": figures["proxy_grpo_ours_seconds"],
    }


MEASURES = {"dpo": measure_dpo, "grpo": measure_grpo}
STEPS = {
    "dpo": "2 pairs, in the second epoch and later",
    "grpo": "2 prompts × 8 answers × 20 tokens, 4 updates",
}


def table(figures: dict[str, dict]) -> str:
    """Return a row for each method that was measured."""
    rows = [[*HEAD]]
    for method, what in STEPS.items():
        if f"{method}_bf16_ratio" not in figures:
            continue
        row = [method.upper()]
        for key in ("stock_seconds", "seconds", "ratio", "limit"):
            figure = figures[f"{method}_bf16_{key}"]
            text = f"{figure['value']:.3g}"
            if figure["n"] > 1:
                text += f" [{figure['low']:.3g}, {figure['high']:.3g}]"
            row.append(text)
        rows.append([*row, what])
    return markdown_table(rows)


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", choices=MEASURES)
    parser.add_argument("--toy", action="store_true", help="tiny shapes, as the test does")
    parser.add_argument("--out", type=Path, default=OUT)
    given = parser.parse_args(arguments)
    logging.getLogger("transformers").setLevel(logging.ERROR)
    datasets.disable_progress_bars()
    figures = read_json(given.out)["figures"] if given.out.exists() else {}
    for method in [given.only] if given.only else MEASURES:
        figures |= MEASURES[method](given.toy)
        write_json(given.out, {"environment": machine_summary(), "figures": figures})
    print(table(figures))
    if given.out == OUT:
        write_block(PAGE, BLOCK, table(figures))


if __name__ == "__main__":
    main()
