"""DPO as TRL runs it against DPO as this suite does: about 12 minutes on 2 cores.

Two trainers with the same weights, adapters, data and optimizer take the same batches in turn, in
one process and in an order that changes each time. Stock is `trl.DPOTrainer` with its own collator
and forward: `dpo.dpo_trainer(packs=False)`, in which nothing of TRL's step is overridden; only the
needless copy of a fresh adapter is gone, as with TRL's own `peft_config`. Ours shows image and
prompt of a pair once, keeps image features and asks the reference once. Each batch comes twice: in
the first epoch our caches are filled, from the second on they are warm. A step is all of it:
decoding of images, collator, forward, backward, clipping, optimizer. No figure holds what is done
once, which is reported as "setup".

* proxy: random weights with the proportions of Qwen2-VL-2B, 256 visual tokens, fp32;
* proxy_checkpointing: the same with gradient checkpointing, TRL's default and that of the t4
  preset;
* embedded: the embedded model at 16 visual tokens;
* gpu: random weights in Qwen2-VL-2B's own shape, 4-bit, fp16, checkpointing; not run without a GPU.

The FLOP ratio is the speed-up that is left if everything but matrix products cost nothing. Writes
`benchmarks/dpo.json` (entries `{value, low, high, n, seed}`: median, least, most), a `.png` beside
it and the table of `docs/results.md`. `--only` does one part.
"""

import argparse
import dataclasses
import json
import logging
import math
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import datasets
import matplotlib.pyplot as plt
import numpy as np
import torch
from torch.utils.flop_counter import FlopCounterMode, sdpa_backward_flop_count, sdpa_flop_count
from tqdm.auto import tqdm
from transformers import AutoProcessor, Qwen2VLConfig, Qwen2VLForConditionalGeneration
from trl.trainer.dpo_trainer import DataCollatorForVisionPreference

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from helpers import models
from helpers.config import DPO_PRESETS, DPOSettings
from helpers.data.preferences import read_records
from helpers.data.record import PreferenceRecord
from helpers.data.trl_pairs import to_trl
from helpers.files import UsageError, open_image, read_json, write_json
from helpers.models import presets
from helpers.report import markdown_table
from helpers.report.plots import ACCENT_COLOR, CHOSEN_COLOR, NEUTRAL_COLOR
from helpers.runtime import TOLERANCES, compute_dtype, device, machine_summary, peak_memory_gb
from helpers.training import dpo
from tools.publish import write_block

TRAFFIC = ROOT / "data" / "traffic"
PREFERENCES = TRAFFIC / "preferences_train.jsonl"
TINY = ROOT / presets.PRESETS["tiny"].location
OUT = Path(__file__).with_suffix(".json")
LARGEST_LOSS_DIFFERENCE = 1e-3
PHASES = ("stock", "ours_first", "ours_later")


@dataclass(frozen=True)
class Shape:
    layers: int
    hidden: int
    intermediate: int
    heads: int  # of 128, if `mrope` is not given
    kv_heads: int
    depth: int  # of the vision tower
    embed: int
    vision_heads: int  # of 80
    vocabulary: int = 402
    mrope: tuple[int, int, int] = (16, 24, 24)  # half a head, shared by time, height and width


QWEN2_VL_2B = Shape(28, 1536, 8960, 12, 2, 32, 1280, 16, 151_936)
# A third of width and depth: 9 × (2 × 512² + 2 × 512 × 128 + 3 × 512 × 2986) = 47.2 M and
# 10 × 12 × 400² = 19.2 M weights in the layers. That is .41 of vision to language where the
# original has 629 M / 1,310 M = .48, since its attention, which does not shrink with the width
# squared, weighs more: FLOPs on 1,024 patches to those on a row of 320 tokens, attention included,
# are 1.83 here and 1.73 there. The language head has .18 of the language model's weights in both
# (233 M / 1,310 M, 8.4 M / 47.2 M), for which 16,384 tokens are needed.
THIRD = Shape(9, 512, 2986, 4, 1, 10, 400, 5, 16_384)
TOY = Shape(2, 128, 256, 1, 1, 2, 80, 1)


@dataclass(frozen=True)
class Case:
    name: str
    shape: Shape | None  # None: the embedded model
    size: tuple[int, int]  # of the images; one visual token is 28 × 28
    settings: DPOSettings
    alternations: int
    four_bit: bool = True

    @property
    def visual_tokens(self) -> int:
        return self.size[0] * self.size[1] // 28**2


def cases(toy: bool) -> list[Case]:
    t4 = dataclasses.replace(
        DPO_PRESETS["t4"], accumulation=1, learning_rate=1e-4, checkpoint_steps=0
    )
    proxy = dataclasses.replace(t4, gradient_checkpointing=False)
    sizes = {(448, 448): 2, (448, 896): 2, (896, 896): 1}  # pairs a batch
    found = [
        Case("proxy", THIRD, (448, 448), proxy, 7, four_bit=False),
        Case("proxy_checkpointing", THIRD, (448, 448), t4, 7, four_bit=False),
        Case("embedded", None, (112, 112), DPO_PRESETS["tiny"], 21),
        *(
            Case(
                f"gpu_{w * h // 28**2}",
                QWEN2_VL_2B,
                (w, h),
                dataclasses.replace(t4, batch_size=n),
                7,
            )
            for (w, h), n in sizes.items()
        ),
    ]
    if not toy:
        return found
    small = [
        dataclasses.replace(c, size=(112, 112), alternations=2, shape=c.shape and TOY)
        for c in found[:4]
    ]
    return [
        dataclasses.replace(c, settings=dataclasses.replace(c.settings, batch_size=2))
        for c in small
    ]


def write_model(shape: Shape, folder: Path) -> int:
    """Write random weights of `shape` with the embedded processor; return how many weights."""
    processor = AutoProcessor.from_pretrained(TINY)
    marks = {"image_token": "<|image_pad|>", "video_token": "<|video_pad|>"}
    marks |= {f"vision_{name}_token": f"<|vision_{name}|>" for name in ("start", "end")}
    text = {
        "hidden_size": shape.hidden,
        "intermediate_size": shape.intermediate,
        "num_hidden_layers": shape.layers,
        "num_attention_heads": shape.heads,
        "num_key_value_heads": shape.kv_heads,
        "vocab_size": shape.vocabulary,
        "rope_parameters": {
            "rope_type": "default",
            "rope_theta": 1e6,
            "mrope_section": [*shape.mrope],
        },
    }
    vision = {
        "depth": shape.depth,
        "embed_dim": shape.embed,
        "num_heads": shape.vision_heads,
        "hidden_size": shape.hidden,
        "patch_size": 14,
        "mlp_ratio": 4,
    }
    ids = {
        f"{name}_id": processor.tokenizer.convert_tokens_to_ids(mark)
        for name, mark in marks.items()
    }
    config = Qwen2VLConfig(text_config=text, vision_config=vision, tie_word_embeddings=True, **ids)
    torch.manual_seed(0)
    with device():
        model = Qwen2VLForConditionalGeneration._from_config(config, dtype=compute_dtype())
    model.generation_config.eos_token_id = processor.tokenizer.eos_token_id
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return model.num_parameters()


def pairs(case: Case, folder: Path, number: int) -> datasets.Dataset:
    """`number` shipped pairs, each of another scene, with scenes drawn at the size of `case`."""
    records = records_in(folder, number)
    for record, shipped in zip(records, read_records(PREFERENCES), strict=False):
        path = record.image_paths[0]
        path.parent.mkdir(parents=True, exist_ok=True)
        open_image(shipped.image_paths[0]).resize(case.size).save(path)
    return to_trl(records, "extremes")


def records_in(folder: Path, number: int) -> list[PreferenceRecord]:
    """The first `number` shipped records, with images of the same names in `folder`."""
    records = read_records(PREFERENCES)[:number]
    moved = []
    for record in records:
        images = [str(folder / name) for name in record.image_names()]
        moved.append(record.model_copy(update={"images": images}))
    return moved


class Side:
    """One of the two trainers, prepared as `Trainer.train` does and driven a step at a time."""

    def __init__(self, case: Case, folder: Path, dataset: datasets.Dataset, packed: bool):
        location = folder / "model" if case.shape else TINY
        model, processor = models.load_model(
            location, four_bit=case.four_bit, max_pixels=case.size[0] * case.size[1]
        )
        started = time.perf_counter()
        self.trainer = dpo.dpo_trainer(
            model,
            processor,
            dataset,
            case.settings,
            packs=None if packed else False,
        )
        self.setup_seconds = time.perf_counter() - started
        collator = dpo.PairCollator if packed else DataCollatorForVisionPreference
        if type(self.trainer.data_collator) is not collator:
            raise UsageError(
                f"{case.name}: {type(self.trainer.data_collator).__name__} instead of "
                f"{collator.__name__}"
            )
        if case.settings.gradient_checkpointing:
            self.trainer.model.gradient_checkpointing_enable()
        self.trainer.current_gradient_accumulation_steps = 1
        self.trainer.create_optimizer()
        prepare = self.trainer.accelerator.prepare
        self.model, self.trainer.optimizer = prepare(self.trainer.model, self.trainer.optimizer)
        self.weights = [p for p in self.model.parameters() if p.requires_grad]
        self.losses, self.counts = [], {"tokens": 0, "patches": 0}
        self.counter = None  # of FLOPs, while a step is counted
        model.get_decoder().register_forward_pre_hook(self._count_tokens, with_kwargs=True)
        model.model.visual.register_forward_pre_hook(self._count_patches, with_kwargs=True)

    def _count_tokens(self, module, args, kwargs) -> None:
        self.counts["tokens"] += kwargs["inputs_embeds"].shape[:2].numel()

    def _count_patches(self, module, args, kwargs) -> None:
        self.counts["patches"] += len(args[0] if args else kwargs["hidden_states"])

    def step(self, rows: range) -> float:
        """Seconds of one optimizer step on these rows of the data set."""
        started = now()
        batch = self.trainer.data_collator([self.trainer.train_dataset[row] for row in rows])
        loss = self.trainer.training_step(self.model, batch)
        self.trainer.accelerator.clip_grad_norm_(self.weights, self.trainer.args.max_grad_norm)
        self.trainer.optimizer.step()
        self.trainer.optimizer.zero_grad()
        self.losses.append(float(loss))
        return now() - started

    def counted(self, rows: range) -> dict[str, int]:
        """What a step computes: matrix FLOPs, tokens of the language model (padding too), image
        patches.
        """
        self.counts |= {"tokens": 0, "patches": 0}
        with FlopCounterMode(display=False, custom_mapping=_more_flops()) as self.counter:
            self.step(rows)
        flops = self.counter.get_total_flops()
        self.counter = None
        return {"flops": flops, **self.counts}


def _more_flops() -> dict:
    """What PyTorch's counter leaves out: attention on a CPU, products with a 4-bit matrix."""
    attention = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
    backward = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward
    more = {
        attention: lambda q, k, v, *_, **__: sdpa_flop_count(q, k, v),
        backward: lambda grad, q, k, v, *_, **__: sdpa_backward_flop_count(grad, q, k, v),
    }
    if hasattr(torch.ops.bitsandbytes, "gemm_4bit"):  # (…, in) × (out, in)
        more[torch.ops.bitsandbytes.gemm_4bit] = lambda x, _, shape, *__, **___: (
            2 * math.prod(x) * shape[0]
        )
    return more


def now() -> float:
    """Seconds on the clock, when the GPU has done what it was asked for."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter()


def compare(case: Case, folder: Path) -> dict[str, list[float]]:
    """Raw figures of a case: seconds and ratios of each alternation, FLOPs of a step, losses."""
    n, batch = case.alternations, case.settings.batch_size
    dataset = pairs(case, folder, (n + 2) * batch)
    batches = [range(start, start + batch) for start in range(0, len(dataset), batch)]
    stock, ours = (
        Side(case, folder, dataset, packed=False),
        Side(case, folder, dataset, packed=True),
    )
    if not all(map(torch.equal, stock.weights, ours.weights)):
        raise UsageError(f"{case.name}: the two trainers start from different adapters")
    row = stock.trainer.data_collator([dataset[0]])["input_ids"][0]
    if int((row == stock.trainer.processing_class.image_token_id).sum()) != case.visual_tokens:
        raise UsageError(f"{case.name}: an image is not {case.visual_tokens} visual tokens")
    times = {phase: [] for phase in PHASES}
    plan = [(batches[0], None)] * 2 + [
        (rows, phase) for phase in PHASES[1:] for rows in batches[1 : n + 1]
    ]
    for number, (rows, phase) in enumerate(
        tqdm(plan, desc=f"{case.name}, {case.visual_tokens} visual tokens")
    ):
        turn = [("stock", stock), (phase, ours)][:: 1 if number % 2 else -1]
        for name, side in turn:
            seconds = side.step(rows)
            if phase:  # the first batch warms up
                times[name].append(seconds)
    work = {"stock": stock.counted(batches[-1])} | {
        phase: ours.counted(batches[-1]) for phase in PHASES[1:]
    }
    stock.step(batches[-1])  # as many steps as ours
    figures = {
        f"{phase}_{what}": [value] for phase in PHASES for what, value in work[phase].items()
    }
    figures |= {
        f"{phase}_limit": [work["stock"]["flops"] / work[phase]["flops"]] for phase in PHASES[1:]
    }
    figures |= {f"{phase}_seconds": values for phase, values in times.items()}
    for phase, start in (("ours_first", 0), ("ours_later", n)):
        figures[f"{phase}_ratio"] = [
            a / b for a, b in zip(times["stock"][start:], times[phase], strict=False)
        ]
    figures |= {
        "stock_setup_seconds": [stock.setup_seconds],
        "ours_setup_seconds": [ours.setup_seconds],
    }
    differences = [abs(a - b) for a, b in zip(stock.losses, ours.losses, strict=True)]
    figures |= {"loss": ours.losses, "loss_difference": differences}
    # what rounding makes of a margin is β times what it makes of a log-probability
    rounding = case.settings.beta * TOLERANCES[compute_dtype()].nats
    allowed = max(LARGEST_LOSS_DIFFERENCE, rounding)
    if not torch.cuda.is_available() and max(differences) > allowed:
        raise UsageError(f"{case.name}: the losses differ by {max(differences):.1e}")
    return figures


def peak_megabytes(case: Case, folder: Path, packed: bool) -> float:
    """What four steps (two batches, each twice) need beyond the model at rest, in MB (10⁶ B)."""
    batch = case.settings.batch_size
    side = Side(case, folder, pairs(case, folder, 2 * batch), packed)
    before = forget_peak()
    for _ in range(2):
        side.step(range(batch))
        side.step(range(batch, 2 * batch))
    return 1e3 * (peak_memory_gb() - before)


def forget_peak() -> float:
    """Let peaks begin now; return the memory that is in use, in GB."""
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
    else:
        Path("/proc/self/clear_refs").write_text("5")
    return peak_memory_gb()


def memory(case: Case, folder: Path, arguments: list[str]) -> dict[str, list[float]]:
    """Peak memory of both trainers, each in a process of its own."""
    figures = {}
    for side in ("stock", "ours") if sys.platform == "linux" else ():
        command = [
            sys.executable,
            __file__,
            *arguments,
            "--memory",
            side,
            "--case",
            case.name,
            "--folder",
            str(folder),
        ]
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode:  # out of memory, most likely
            print(f"⚠️  {case.name}, {side}: {done.stderr.splitlines()[-1:]}")
        else:
            figures[f"{side}_peak_mb"] = [json.loads(done.stdout.splitlines()[-1])]
    return figures


def run(case: Case, arguments: list[str], toy: bool) -> dict[str, dict]:
    """All entries of a case."""
    with tempfile.TemporaryDirectory() as name:
        folder, figures = Path(name), {}
        if case.shape:
            figures["parameters"] = [write_model(case.shape, folder / "model")]
            torch.cuda.empty_cache()
        figures |= {} if toy else memory(case, folder, arguments)
        try:
            figures |= compare(case, folder)
        except torch.OutOfMemoryError as error:
            print(f"⚠️  {case.name}: {str(error).splitlines()[0]}")
    figures |= {"visual_tokens": [case.visual_tokens], "pairs": [case.settings.batch_size]}
    return {f"{case.name}_{key}": entry(values) for key, values in figures.items()}


def entry(values: list[float]) -> dict[str, float]:
    """Median, least and most; of losses' differences the largest counts."""
    low, middle, high = (float(f(values)) for f in (np.min, np.median, np.max))
    return {"value": middle, "low": low, "high": high, "n": len(values), "seed": 0}


def table(figures: dict[str, dict]) -> str:
    """One line a case."""
    rows = [
        [
            "case",
            "visual tokens × pairs",
            "stock, s a step",
            "ours, first epoch",
            "ours, later epochs",
        ]
    ]
    rows[0] += [
        "faster in the first epoch (limit)",
        "faster later (limit)",
        "peak memory, MB",
        "losses differ by",
    ]
    for name in names(figures):
        row = [name, f"{_show(figures, name, 'visual_tokens')} × {_show(figures, name, 'pairs')}"]
        row += [_show(figures, name, f"{phase}_seconds", "{:.3g}") for phase in PHASES]
        for phase in PHASES[1:]:
            limit = _show(figures, name, f"{phase}_limit", "{:.2f}")
            row.append(f"{_show(figures, name, f'{phase}_ratio', '{:.2f}')} ({limit})")
        row.append(
            " → ".join(_show(figures, name, f"{side}_peak_mb") for side in ("stock", "ours"))
        )
        rows.append([*row, f"≤ {figures[f'{name}_loss_difference']['high']:.0e}"])
    return markdown_table(rows)


def names(figures: dict[str, dict]) -> list[str]:
    return [key.removesuffix("_stock_seconds") for key in figures if key.endswith("_stock_seconds")]


def _show(figures: dict[str, dict], name: str, key: str, form: str = "{:.0f}") -> str:
    found = figures.get(f"{name}_{key}")
    if found is None:
        return "–"
    interval = (
        f" [{form.format(found['low'])}, {form.format(found['high'])}]" if found["n"] > 1 else ""
    )
    return form.format(found["value"]) + interval


def chart(figures: dict[str, dict]) -> plt.Figure:
    """Seconds a step of both, with their range; the line across a bar is what the FLOPs alone would
    take.
    """
    found = names(figures)
    figure, axes = plt.subplots(
        1, len(found), figsize=(4 * len(found), 3.6), squeeze=False, layout="constrained"
    )
    for axis, name in zip(axes[0], found, strict=True):
        stock = figures[f"{name}_stock_seconds"]["value"]
        for place, (phase, color) in enumerate(
            zip(PHASES, (NEUTRAL_COLOR, ACCENT_COLOR, CHOSEN_COLOR), strict=True)
        ):
            time_ = figures[f"{name}_{phase}_seconds"]
            spread = [[time_["value"] - time_["low"]], [time_["high"] - time_["value"]]]
            axis.bar(place, time_["value"], 0.6, color=color, yerr=spread, error_kw={"alpha": 0.5})
            if phase != "stock":
                limit = stock / figures[f"{name}_{phase}_limit"]["value"]
                axis.hlines(limit, place - 0.38, place + 0.38, color="black", linestyle=":")
                ratio = figures[f"{name}_{phase}_ratio"]["value"]
                axis.annotate(
                    f"{ratio:.1f} ×",
                    (place, time_["high"]),
                    (0, 5),
                    textcoords="offset points",
                    ha="center",
                )
        tokens = figures[f"{name}_visual_tokens"]["value"]
        axis.set(
            title=f"{name}: {tokens:.0f} visual tokens an image",
            ylim=(0, None),
            ylabel="seconds a step",
        )
        axis.set_xticks(range(3), ["TRL", "ours,\nfirst epoch", "ours,\nlater epochs"])
        axis.spines[["top", "right"]].set_visible(False)
    figure.supxlabel("dotted: the time that is left if only matrix products count", fontsize=9)
    plt.close(figure)
    return figure


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", choices=("proxy", "proxy_checkpointing", "embedded", "gpu"))
    parser.add_argument(
        "--toy", action="store_true", help="tiny shapes and two alternations, as the test does"
    )
    parser.add_argument("--out", type=Path, default=OUT)
    for name in ("memory", "case", "folder"):  # of the process that measures memory
        parser.add_argument(f"--{name}", help=argparse.SUPPRESS)
    args = parser.parse_args(arguments)
    logging.getLogger("transformers").setLevel(logging.ERROR)
    datasets.disable_progress_bars()
    if torch.cuda.is_available():  # as on a T4, which has no bf16: fp16 everywhere
        torch.cuda.get_device_capability = lambda *_: (7, 5)
    known = cases(args.toy)
    if args.memory:
        case = next(case for case in known if case.name == args.case)
        print(json.dumps(peak_megabytes(case, Path(args.folder), args.memory == "ours")))
        return
    figures = read_json(args.out)["figures"] if args.only and args.out.exists() else {}
    passed_on = ["--toy"] if args.toy else []
    for case in known:
        if case.shape == QWEN2_VL_2B and not torch.cuda.is_available():
            print(f"{case.name}: not run, it needs a GPU.")
        elif args.only in (
            None,
            case.name,
            case.name.partition("_")[0] if "gpu" in case.name else None,
        ):
            figures |= run(case, passed_on, args.toy)
    write_json(args.out, {"environment": machine_summary(), "figures": figures})
    if names(figures):
        chart(figures).savefig(args.out.with_suffix(".png"), dpi=90)
    print(table(figures))
    if args.out == OUT:
        page = ROOT / "docs" / "results.md"
        try:
            write_block(page, "dpo_speed", table(figures))
        except UsageError as error:
            print(f"⚠️  {page.name}: {error}")
    for name in names(figures):
        print(
            f"{name}: {_show(figures, name, 'ours_later_ratio', '{:.2f}')} times as fast as TRL "
            "with warm caches"
        )


if __name__ == "__main__":
    main()
