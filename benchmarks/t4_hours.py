"""How long the presets of a T4 take there, by arithmetic: nothing is run, and no T4 is needed.

python benchmarks/t4_hours.py

`helpers/machine/duration.py` forecasts a stage from the speed of layers. Here that speed is not
measured but taken from what a T4 can do: 65 TFLOPS in fp16 and 320 GB a second by its data sheet
(nvidia.com/t4), of which a product of LoRA-sized layers reaches a share, and 20 to 60 small
operations in a layer that each cost what it takes to start them. Two sets of shares, one that is
kind to the card and one that is not, bound the hours. Writes the table of `docs/results.md`.
"""

import sys
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from helpers.config import dpo_preset, ppo_preset, reward_preset, sft_preset
from helpers.machine.duration import StageSeconds
from helpers.machine.speed import Line, MachineSpeed
from helpers.machine.workload import StageSettings, Workload
from helpers.models import ModelShapes
from helpers.report import markdown_table
from tools.publish import write_block

PAGE = ROOT / "docs" / "results.md"
BLOCK = "t4_hours"
PEAK_FLOPS = 65e12  # of a T4 in fp16, a second
PEAK_BYTES = 320e9  # read or written, a second
SECONDS_AN_HOUR = 3600
MODELS = ("smolvlm-256m", "qwen2-vl-2b", "qwen2.5-vl-3b")
# Images of 448 × 448, which are 256 visual tokens of Qwen2-VL; 60 tokens of text, answers of 20
SIDE = 448


@dataclass(frozen=True)
class Shares:
    """What of a card's peak is reached, and what a layer costs besides its products."""

    product: float  # of the peak of FLOPs, in a matrix product
    attention: float  # of the peak of FLOPs, in attention
    memory: float  # of the peak of bytes
    fixed: float  # seconds of a layer forward, whatever its tokens: operations that are started


KIND = Shares(product=0.4, attention=0.2, memory=0.8, fixed=5e-4)
UNKIND = Shares(product=0.2, attention=0.05, memory=0.6, fixed=2e-3)


def stages() -> dict[str, StageSettings]:
    """Return what is timed: each preset that is meant for a T4, by its name in the table."""
    return {
        "SFT `t4`": sft_preset("t4"),
        "DPO `t4`": dpo_preset("t4"),
        "DPO `vehicles`": dpo_preset("vehicles"),
        "reward model `t4`": reward_preset("t4"),
        "PPO `t4`": ppo_preset("t4"),
        "PPO `t4`, with a critic": ppo_preset("t4", critic_layers=3),
        "PPO `t4-rloo`": ppo_preset("t4-rloo"),
        "PPO `t4-grpo`": ppo_preset("t4-grpo"),
    }


def speed_of(model: ModelShapes, shares: Shares) -> MachineSpeed:
    """Return a T4's speed at layers of these shapes, by arithmetic.

    Each weight is two operations a token forward; backward as many again for the gradients of the
    inputs, since the base is frozen. A query that looks at a key is four operations for each number
    of the query, twice as many more backward.
    """
    flops = shares.product * PEAK_FLOPS
    token = 2 * model.quantised / model.layers / flops
    outside = sum(inputs * outputs for _, inputs, outputs in model.outside)
    seen = 2 * outside / model.vision_depth / flops
    pair = 4 * model.queries / (shares.attention * PEAK_FLOPS)
    return MachineSpeed(
        forward=Line(shares.fixed, token),
        # Backward starts about twice as many operations
        training=Line(3 * shares.fixed, 2 * token),
        vision=Line(shares.fixed, seen),
        pair=pair,
        trained_pair=3 * pair,
        flops=flops,
        bytes=shares.memory * PEAK_BYTES,
    )


def hours(model: str, settings: StageSettings) -> tuple[float, float]:
    """Return the hours of a stage on a T4: with shares that are kind to it, and with others."""
    workload = Workload(model, SIDE, SIDE)
    found = []
    for shares in (KIND, UNKIND):
        speed = speed_of(workload.shapes, shares)
        found.append(StageSeconds(workload, speed).of_stage(settings) / SECONDS_AN_HOUR)
    return found[0], found[1]


def table() -> str:
    """Return a row for each preset, a column for each model."""
    rows = [["hours of a T4, 500 records", *MODELS]]
    for name, settings in stages().items():
        row = [name]
        for model in MODELS:
            least, most = hours(model, settings)
            row.append(f"{least:.1f} to {most:.1f}")
        rows.append(row)
    return markdown_table(rows)


if __name__ == "__main__":
    body = table()
    print(body)
    write_block(PAGE, BLOCK, body)
