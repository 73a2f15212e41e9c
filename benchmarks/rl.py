"""PPO, RLOO and GRPO as TRL runs them against this suite's loop: about an hour on 2 cores.

Stock is `trl.GRPOTrainer` or `trl.RLOOTrainer` with nothing overridden; a fresh adapter's needless
copy and cast to bf16 are gone, as in `benchmarks/dpo.py`. Ours is
`helpers.training.ppo.PPOTrainer`. Equal on both sides, and checked: adapter, questions and their
order, answers to a question, optimizer steps and, where speed is measured, tokens of every answer
(none can end early). Also equal: base, reward, learning rate, KL weight, clipping, temperature 1,
the whole vocabulary but image marks. Not equal: TRL mixes the answers to all prompts in a
mini-batch, ours keeps a prompt's answers together, and TRL's RLOO has one ratio for an answer where
ours has one for a token.

* proxy: an iteration (images, sampling, scores, old and reference log-probabilities, updates) with
  the random weights of `benchmarks/dpo.py` at 256 visual tokens in fp32, 2 prompts × 8 answers × 20
  tokens, 4 updates, without gradient checkpointing, and once with it, TRL's default. Iterations
  alternate in an order that changes, until the ratios of the last three lie within 15 %; images are
  always new;
* bf16: an iteration in Qwen2-VL-2B's own shape on a CPU that computes in bf16 (VLM_DTYPE=bf16), 1
  prompt × 8 answers at 64 visual tokens; 9 GB and about an hour of one thread;
* memory: what one such iteration needs beyond the model, each side in a process of its own;
* group: seconds and memory of 8 and of 64 answers to one prompt, ours;
* learning: `benchmarks/rl_learning.py`, samples until held-out answers of the embedded model are
  .90 exact;
* gpu: the proxy in Qwen2-VL-2B's own shape, 4-bit, fp16, checkpointing; not run without a GPU.

Writes `benchmarks/rl.json` (entries `{value, low, high, n, seed}`), a `.png` beside it and three
tables of `docs/results.md`. `--only` does one part.
"""

import argparse
import dataclasses
import logging
import os
import sys
import tempfile
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path

import datasets
import matplotlib.pyplot as plt
import numpy as np
import torch
from tqdm.auto import tqdm

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from benchmarks import dpo
from benchmarks.dpo import QWEN2_VL_2B, THIRD, TOY
from benchmarks.rl_learning import (
    GOAL,
    METHODS,
    learning,
    learning_runs,
    learning_table,
    slug,
    stock_trainer,
)
from helpers import models
from helpers.config import PPOSettings
from helpers.data.tasks import tasks_of
from helpers.files import UsageError, read_json, write_json
from helpers.report import markdown_table
from helpers.report.plots import ACCENT_COLOR, CHOSEN_COLOR, NEUTRAL_COLOR, REJECTED_COLOR
from helpers.rewards.scoring import make_scorer
from helpers.runtime import compute_dtype, machine_summary, peak_memory_gb
from helpers.training.ppo import PPOTrainer
from tools.publish import write_block

OUT = Path(__file__).with_suffix(".json")
COLORS = (
    REJECTED_COLOR,
    "#b7791f",
    NEUTRAL_COLOR,
    ACCENT_COLOR,
    CHOSEN_COLOR,
    ACCENT_COLOR,
    CHOSEN_COLOR,
)  # of rl_learning.METHODS
SIDES = ("stock", "ours")
# A case is repeated until the ratios of so many alternations lie within this range of each other
NARROW_RANGE = 1.15
MOST_ALTERNATIONS = 4  # times what a case asks for
GROUP_SIZES = (8, 64)
length = make_scorer("length", lambda image, question, answer, facts: {"length": len(answer) / 100})


@dataclass(frozen=True)
class Case(dpo.Case):
    settings: PPOSettings

    @property
    def iterations(self) -> int:
        """How many there may be: alternations, one before them to warm up, and one to count."""
        return MOST_ALTERNATIONS * self.alternations + 2


def cases(toy: bool) -> list[Case]:
    plain = PPOSettings(
        "grpo",
        prompts_per_iteration=2,
        group_size=8,
        mini_batch=1,
        max_new_tokens=20,
        learning_rate=1e-4,
    )
    checkpointing = dataclasses.replace(plain, gradient_checkpointing=True)
    found = [
        Case("proxy_grpo", THIRD, (448, 448), plain, 3, four_bit=False),
        Case(
            "proxy_rloo",
            THIRD,
            (448, 448),
            dataclasses.replace(plain, advantages="rloo"),
            2,
            four_bit=False,
        ),
        Case("proxy_grpo_checkpointing", THIRD, (448, 448), checkpointing, 2, four_bit=False),
        Case("gpu_grpo", QWEN2_VL_2B, (448, 448), checkpointing, 5),
        Case(
            "bf16_grpo",
            QWEN2_VL_2B,
            (224, 224),
            dataclasses.replace(plain, prompts_per_iteration=1),
            2,
            four_bit=False,
        ),
    ]
    small = [dataclasses.replace(c, shape=TOY, size=(112, 112), alternations=1) for c in found]
    short = [
        dataclasses.replace(c, settings=dataclasses.replace(c.settings, max_new_tokens=6))
        for c in small
    ]
    return short if toy else found


class Side(dpo.Side):
    """One of the two trainers, driven an iteration at a time, with counts of what it does."""

    def __init__(self, case: Case, folder: Path, stock: bool):
        location, settings = folder / "model", case.settings
        count = case.iterations * settings.prompts_per_iteration
        model, processor = models.load_model(
            location, four_bit=case.four_bit, max_pixels=case.size[0] * case.size[1]
        )
        tasks = tasks_of(dpo.records_in(folder, count))
        self.settings, self.stock = settings, stock
        counted = ("tokens", "patches", "updates", "answers", "generated", "sampling_flops")
        self.counts = dict.fromkeys(counted, 0)
        self.counter = None  # of FLOPs, while an iteration is counted
        if stock:
            forced = {"min_new_tokens": settings.max_new_tokens}
            self._prepare_stock(
                stock_trainer(
                    model,
                    processor,
                    tasks,
                    length,
                    settings,
                    0,
                    output_dir=str(folder / "run"),
                    shuffle_dataset=False,
                    generation_kwargs=forced,
                )
            )
        else:
            # ids of image marks are suppressed, so that no answer can end
            model.generation_config.eos_token_id = models.banned_tokens(processor)[0]
            self.trainer = PPOTrainer(model, processor, tasks, length, settings)
            size = settings.prompts_per_iteration
            self.trainer.sampler.next_tasks = lambda iteration, shard: tasks[iteration * size :][
                :size
            ]
            self.weights = self.trainer.actor.adapter
            self._time(self.trainer.sampler, "sample")
        self.trainer.optimizer.optimizer.register_step_post_hook(self._count_update)
        model.get_decoder().register_forward_pre_hook(self._count_tokens, with_kwargs=True)
        model.model.visual.register_forward_pre_hook(self._count_patches, with_kwargs=True)

    def _prepare_stock(self, trainer) -> None:
        """As `Trainer.train` does it."""
        self.trainer = trainer
        if self.settings.gradient_checkpointing:
            trainer.model.gradient_checkpointing_enable()
        trainer.current_gradient_accumulation_steps = 1
        trainer.create_optimizer()
        self.model, trainer.optimizer = trainer.accelerator.prepare(
            trainer.model, trainer.optimizer
        )
        self.weights = [p for p in self.model.parameters() if p.requires_grad]
        self.batches = iter(trainer.get_train_dataloader())
        self._time(trainer, "_generate")
        self._time(trainer, "_calculate_rewards")

    def _time(self, owner: object, name: str) -> None:
        """Count the seconds of a method of the trainer, or of its sampler, as sampling.

        Images, features and scores are in them; FLOPs are counted likewise.
        """
        inner = getattr(owner, name)

        def timed(*args, **kwargs):
            started, before = dpo.now(), self._flops()
            result = inner(*args, **kwargs)
            self.sampling += dpo.now() - started
            self.counts["sampling_flops"] += self._flops() - before
            return result

        setattr(owner, name, timed)

    def _flops(self) -> int:
        return self.counter.get_total_flops() if self.counter else 0

    def _count_update(self, *_) -> None:
        self.counts["updates"] += 1

    def step(self, rows: range | None = None) -> float:
        """Seconds of one iteration on the next prompts; `sampling` of them went into sampling and
        scoring.
        """
        self.sampling, started = 0.0, dpo.now()
        if self.stock:
            for _ in range(
                self.settings.epochs
                * (self.settings.prompts_per_iteration // self.settings.mini_batch)
            ):
                batch = next(self.batches)
                self.trainer.training_step(self.model, batch, None)
                self.trainer.accelerator.clip_grad_norm_(self.weights, self.settings.max_grad_norm)
                self.trainer.optimizer.step()
                self.trainer.optimizer.zero_grad()
            seconds = dpo.now() - started
            lengths = [
                int(n) for b in self.trainer._buffered_inputs for n in b["completion_mask"].sum(1)
            ]
            self.asked = [
                (row["prompt"][-1]["content"], row["truth"])
                for row in batch[:: self.settings.group_size]
            ]
        else:
            self.trainer.train(1)
            seconds = dpo.now() - started
            rollout = self.trainer.last.rollout
            self.asked = [(task.question, task.facts) for task in rollout.tasks]
            lengths = [len(ids) for ids in rollout.ids]
        self.counts |= {"answers": len(lengths), "generated": sum(lengths)}
        return seconds

    def counted(self, rows: range | None = None) -> dict[str, int]:
        """What an iteration computes, as in `benchmarks/dpo.py`, and how many updates, answers and
        tokens came of it.
        """
        self.counts |= {"updates": 0, "sampling_flops": 0}
        return super().counted(rows)


def compare(case: Case, folder: Path) -> dict[str, list[float]]:
    """Raw figures of a case: seconds and ratios of each alternation, and what an iteration
    computes.
    """
    # the images
    dpo.pairs(case, folder, case.iterations * case.settings.prompts_per_iteration)
    stock, ours = Side(case, folder, stock=True), Side(case, folder, stock=False)
    if not all(map(torch.equal, stock.weights, ours.weights)):
        raise UsageError(f"{case.name}: the two trainers start from different adapters")
    figures = {
        f"{side}_{what}": []
        for side in SIDES
        for what in ("seconds", "sampling_seconds", "rest_seconds")
    }
    loads = []
    # without the one that warms up and the one that is counted
    for number in tqdm(range(case.iterations - 1), desc=case.name):
        if is_narrow(figures, case.alternations):
            break
        loads.append(os.getloadavg()[0])
        for name, side in [("stock", stock), ("ours", ours)][:: 1 if number % 2 else -1]:
            seconds = side.step()
            if number:  # the first iteration warms up
                parts = {"seconds": seconds, "sampling_seconds": side.sampling}
                parts["rest_seconds"] = seconds - side.sampling
                for what, value in parts.items():
                    figures[f"{name}_{what}"].append(value)
        if stock.asked != ours.asked:
            raise UsageError(f"{case.name}: the two trainers were asked different questions")
    work = {"stock": stock.counted(), "ours": ours.counted()}
    settings, answers = (
        case.settings,
        case.settings.prompts_per_iteration * case.settings.group_size,
    )
    expected = {"answers": answers, "generated": answers * settings.max_new_tokens}
    expected["updates"] = settings.epochs * settings.prompts_per_iteration // settings.mini_batch
    for side, found in work.items():
        figures |= {f"{side}_{what}": [value] for what, value in found.items()}
        if wrong := {what: found[what] for what, value in expected.items() if found[what] != value}:
            raise UsageError(f"{case.name}, {side}: {wrong} instead of {expected}")
    for what in ("", "sampling_", "rest_"):
        both = zip(figures[f"stock_{what}seconds"], figures[f"ours_{what}seconds"], strict=True)
        figures[f"{what}ratio"] = [a / b for a, b in both]
    return figures | {
        "load": loads,
        "limit": [work["stock"]["flops"] / work["ours"]["flops"]],
        "sampling_limit": [work["stock"]["sampling_flops"] / work["ours"]["sampling_flops"]],
        "visual_tokens": [case.visual_tokens],
    }


def is_narrow(figures: dict[str, list[float]], least: int) -> bool:
    """Do the last ratios of stock's seconds to ours lie near each other? `least`: how many."""
    both = zip(figures["stock_seconds"], figures["ours_seconds"], strict=True)
    ratios = [stock / ours for stock, ours in both][-least:]
    return len(ratios) == least and max(ratios) < NARROW_RANGE * min(ratios)


def as_on_a_t4() -> None:
    """A T4 has no bf16: fp16 on every GPU."""
    if torch.cuda.is_available():
        torch.cuda.get_device_capability = lambda *_: (7, 5)


def peak_megabytes(case: Case, folder: Path, stock: bool) -> float:
    """What one iteration needs beyond the model at rest, in MB (10⁶ bytes)."""
    as_on_a_t4()
    dpo.pairs(case, folder, 2 * case.settings.prompts_per_iteration)
    side = Side(dataclasses.replace(case, alternations=0), folder, stock)
    before = dpo.forget_peak()
    side.step()
    return 1e3 * (peak_memory_gb() - before)


def memory(case: Case, folder: Path) -> dict[str, list[float]]:
    """Peak memory of both sides, each in a process of its own."""
    figures = {}
    for side in SIDES if sys.platform == "linux" else ():
        with ProcessPoolExecutor(1, get_context("spawn")) as process:
            try:
                peak = process.submit(peak_megabytes, case, folder, side == "stock").result()
                figures[f"{side}_peak_mb"] = [peak]
            except (BrokenProcessPool, torch.OutOfMemoryError) as error:
                print(f"⚠️  {case.name}, {side}: out of memory, most likely ({error})")
    return figures


def sampling_costs(case: Case, folder: Path, group_size: int) -> dict[str, float]:
    """Seconds of sampling so many answers to a prompt, the median of three, and MB beyond rest."""
    dpo.pairs(case, folder, 4)
    location, size = folder / "model", case.size
    model, processor = models.load_model(location, four_bit=False, max_pixels=size[0] * size[1])
    model.generation_config.eos_token_id = models.banned_tokens(processor)[0]
    packer = models.Packer(model, processor)
    seconds = []
    peak = 0.0
    for task in tasks_of(dpo.records_in(folder, 4)):
        before = dpo.forget_peak()
        started = dpo.now()
        prompts = packer.encode([task.turns], [task.open_images()])
        models.sample_ids(
            model,
            processor,
            prompts,
            group_size=group_size,
            max_new_tokens=case.settings.max_new_tokens,
        )
        seconds.append(dpo.now() - started)
        peak = max(peak, 1e3 * (peak_memory_gb() - before))
    # the first one warms up
    return {"seconds": float(np.median(seconds[1:])), "peak_mb": peak}


def group(case: Case, folder: Path) -> dict[str, list[float]]:
    """What 8 and 64 answers to one prompt cost, each in a process of its own."""
    figures = {}
    for size in GROUP_SIZES if sys.platform == "linux" else ():
        with ProcessPoolExecutor(1, get_context("spawn")) as process:
            for what, value in process.submit(sampling_costs, case, folder, size).result().items():
                figures[f"of_{size}_{what}"] = [value]
    return figures


def group_table(figures: dict[str, dict]) -> str:
    """Return a line for each number of answers to one prompt."""
    rows = [["answers to one prompt", "seconds of sampling", "memory beyond the model, MB"]]
    for size in GROUP_SIZES:
        seconds = figures.get(f"proxy_grpo_of_{size}_seconds")
        if seconds:
            peak = figures[f"proxy_grpo_of_{size}_peak_mb"]
            rows.append([str(size), f"{seconds['value']:.1f}", f"{peak['value']:.0f}"])
    return markdown_table(rows)


def run(case: Case, parts: set[str], toy: bool) -> dict[str, dict]:
    """All entries of a case: of its speed, of its memory, or of both."""
    with tempfile.TemporaryDirectory() as name:
        folder, figures = Path(name), {}
        figures["parameters"] = [dpo.write_model(case.shape, folder / "model")]
        if "memory" in parts and not toy:
            figures |= memory(case, folder)
        if "speed" in parts:
            figures |= compare(case, folder)
        if "group" in parts and case.name == "proxy_grpo":
            figures |= group(case, folder)
    return {f"{case.name}_{key}": dpo.entry(values) for key, values in figures.items()}


def speed_table(figures: dict[str, dict]) -> str:
    """One line a case; what a side computes is tokens of the language model, image patches and
    TFLOP an iteration.
    """
    rows = [
        [
            "case",
            "stock, s an iteration",
            "ours",
            "faster (limit)",
            "sampling, faster (limit)",
            "the rest, faster",
        ]
    ]
    rows[0] += ["tokens", "image patches", "TFLOP", "peak memory, MB", "load of the machine"]
    for name in dpo.names(figures):
        row = [name, *(dpo._show(figures, name, f"{side}_seconds", "{:.3g}") for side in SIDES)]
        faster, limit = (dpo._show(figures, name, key, "{:.2f}") for key in ("ratio", "limit"))
        row.append(f"{faster} ({limit})")
        sampling, limit = (
            dpo._show(figures, name, f"sampling_{key}", "{:.2f}") for key in ("ratio", "limit")
        )
        row += [f"{sampling} ({limit})", dpo._show(figures, name, "rest_ratio", "{:.2f}")]
        for what in ("tokens", "patches", "flops", "peak_mb"):
            scaled = {
                k: {**f, "value": f["value"] / (1e12 if what == "flops" else 1)}
                for k, f in figures.items()
            }
            form = "{:.2f}" if what == "flops" else "{:.0f}"
            row.append(
                " → ".join(dpo._show(scaled, name, f"{side}_{what}", form) for side in SIDES)
            )
        row.append(dpo._show(figures, name, "load", "{:.1f}"))
        rows.append(row)
    return markdown_table(rows)


def chart(figures: dict[str, dict]) -> plt.Figure:
    """Seconds an iteration, sampling below and the rest above; held-out exact share against
    samples.
    """
    figure, (bars, curves) = plt.subplots(1, 2, figsize=(11, 3.8), layout="constrained")
    for number, name in enumerate(dpo.names(figures)):
        for side, offset, color in zip(
            SIDES, (-0.2, 0.2), (NEUTRAL_COLOR, ACCENT_COLOR), strict=True
        ):
            sampling, rest = (
                figures[f"{name}_{side}_{what}_seconds"]["value"] for what in ("sampling", "rest")
            )
            bars.bar(
                number + offset,
                sampling,
                0.38,
                color=color,
                label=None if number else f"{side}: sampling",
            )
            label = None if number else f"{side}: the rest"
            bars.bar(number + offset, rest, 0.38, sampling, color=color, alpha=0.5, label=label)
        top = figures[f"{name}_ours_seconds"]["value"]
        ratio = f"{figures[f'{name}_ratio']['value']:.1f} ×"
        bars.annotate(ratio, (number + 0.2, top), (0, 5), textcoords="offset points", ha="center")
    bars.set_xticks(
        range(len(dpo.names(figures))),
        [n.replace("_", "\n", 1) for n in dpo.names(figures)],
        fontsize=8,
    )
    bars.set(title="seconds an iteration", ylim=(0, None))
    for method, color in zip(METHODS, COLORS, strict=True):
        start = f"{slug(method)}_held_out_after_"
        places = sorted(
            {
                int(key.removeprefix(start).partition("_")[0])
                for key in figures
                if key.startswith(start)
            }
        )
        means = []
        for place in places:
            runs = learning_runs(figures, method, f"held_out_after_{place}")
            means.append(np.mean([entry["value"] for entry in runs]))
        curves.plot(places, means, ".:" if METHODS[method][1] else ".-", color=color, label=method)
    curves.axhline(GOAL, color=NEUTRAL_COLOR, linewidth=0.5)
    curves.set(title="held-out exact, greedy, mean of the seeds", xlabel="samples", ylim=(0, 1.02))
    for axis in (bars, curves):
        axis.legend(frameon=False, fontsize=8)
        axis.spines[["top", "right"]].set_visible(False)
    plt.close(figure)
    return figure


# --only → starts of the names of its cases, and what is measured of them
PARTS = {
    None: (("proxy", "gpu", "bf16"), {"speed", "memory", "group"}),
    "proxy": (("proxy",), {"speed"}),
    "bf16": (("bf16",), {"speed"}),
    "memory": (("proxy",), {"memory"}),
    "group": (("proxy_grpo",), {"group"}),
    "learning": ((), set()),
    "gpu": (("gpu",), {"speed", "memory"}),
}


def can_run(case: Case) -> bool:
    """Has this machine what a case needs? Says so if not."""
    needed = ""
    if case.name.startswith("gpu") and not torch.cuda.is_available():
        needed = "a GPU"
    if case.name.startswith("bf16") and compute_dtype() != torch.bfloat16:
        needed = "VLM_DTYPE=bf16"
    if needed:
        print(f"{case.name}: not run, it needs {needed}.")
    return not needed


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", choices=[part for part in PARTS if part])
    parser.add_argument(
        "--case",
        help="only this one of a part, for example proxy_grpo, or ppo of the part learning",
    )
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument(
        "--iterations", type=int, default=36, help="of each run of the learning part"
    )
    parser.add_argument(
        "--toy", action="store_true", help="tiny shapes and two of everything, as the test does"
    )
    parser.add_argument("--out", type=Path, default=OUT)
    args = parser.parse_args(arguments)
    logging.getLogger("transformers").setLevel(logging.ERROR)
    datasets.disable_progress_bars()
    as_on_a_t4()
    figures = read_json(args.out)["figures"] if args.only and args.out.exists() else {}
    wanted, parts = PARTS[args.only]
    for case in cases(args.toy):
        if args.case not in (None, case.name):
            continue
        if case.name.startswith(wanted) and (args.toy or can_run(case)):
            figures |= run(case, parts, args.toy)
    if args.only in (None, "learning"):
        figures |= learning(args.seeds, args.iterations, args.toy, args.case)
    write_json(args.out, {"environment": machine_summary(), "figures": figures})
    chart(figures).savefig(args.out.with_suffix(".png"), dpi=90)
    tables = {
        "rl_speed": speed_table(figures),
        "rl_group": group_table(figures),
        "rl_learning": learning_table(figures),
    }
    for name, body in tables.items():
        print(body)
        if args.out == OUT:
            page = ROOT / "docs" / "results.md"
            write_block(page, name, body)
    for name in dpo.names(figures):
        print(f"{name}: {dpo._show(figures, name, 'ratio', '{:.2f}')} times as fast as TRL")


if __name__ == "__main__":
    main()
