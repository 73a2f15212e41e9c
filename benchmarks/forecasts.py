"""What a stage takes on a CPU, beside what was forecast: memory and time.

python benchmarks/forecasts.py                            # all; about fifteen minutes on one core
python benchmarks/forecasts.py --shapes tiny --stages dpo ppo

Three models: the embedded one, random weights with the proportions of Qwen2-VL-2B, and random
weights in the shapes of SmolVLM-256M (SmolLM2-135M with SigLIP). Each stage runs in a process of
its own, on shipped scenes. The forecasts are those of `check_machine`, for the lengths of these
prompts and answers, made before the stage begins; the peak is that of the whole process. Seconds
are those of the training itself, or of a batch of answers. The speed of the machine is measured as
for any user: what else runs on it falls on both. Writes `benchmarks/forecasts.json` and the table
of `docs/results.md`.
"""

import argparse
import json
import logging
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

import datasets
import torch
from architectures import idefics3
from tqdm.auto import tqdm
from transformers import ProcessorMixin

from benchmarks.dpo import THIRD, entry, write_model
from benchmarks.gpu_model import save_random
from helpers import models
from helpers.config import dpo_preset, ppo_preset, reward_preset, sft_preset
from helpers.data import PreferenceRecord, read_records, tasks_of, to_trl
from helpers.files import UsageError, open_image, read_json, write_json
from helpers.machine.duration import StageSeconds
from helpers.machine.fits import speed_here, workload_here
from helpers.machine.memory import forecast_memory
from helpers.machine.workload import GenerationSettings, StageSettings, Workload
from helpers.models.prompts import answer_ids, render_conversation, tokenize
from helpers.report import markdown_table
from helpers.rewards import make_scorer
from helpers.rewards.reward_model import new_reward_model
from helpers.runtime import machine_summary, peak_memory_gb
from helpers.training import (
    PPOTrainer,
    chosen_answers,
    dpo_trainer,
    sft_trainer,
    train_dpo,
    train_sft,
)
from helpers.training.reward import RewardTrainer
from tools.publish import write_block

OUT = Path(__file__).with_suffix(".json")
PAGE = ROOT / "docs" / "results.md"
BLOCK = "forecasts"
PAIRS = ROOT / "data" / "traffic" / "preferences_train.jsonl"
PAIRS_SEEN = 8
NEW_TOKENS = 20
HEAD = (
    "model",
    "stage",
    "forecast, GB",
    "taken, GB",
    "ratio",
    "forecast, s",
    "taken, s",
    "ratio",
)


@dataclass(frozen=True)
class Shape:
    """A model whose stages are weighed and timed."""

    write: Callable[[Path], object] | None  # None: the embedded model
    size: tuple[int, int]  # of the images, pixels
    epochs: int  # features and reference are computed in the first, and kept


by_length = make_scorer("length", lambda image, question, answer, facts: {"length": len(answer)})


def write_proxy(folder: Path) -> None:
    """Write random weights with the proportions of Qwen2-VL-2B."""
    write_model(THIRD, folder)


def write_smolvlm(folder: Path) -> None:
    """Write random weights in the shapes of SmolVLM-256M; its processor with a small tokenizer."""
    config = models.config_of("smolvlm-256m")
    processor = idefics3()[1]
    tokenizer = processor.tokenizer
    side = config.vision_config.image_size
    processor.image_processor.size = {"longest_edge": side}
    processor.image_processor.max_image_size = {"longest_edge": side}
    patches = (side // config.vision_config.patch_size) ** 2
    processor.image_seq_len = patches // config.scale_factor**2
    config.image_token_id = tokenizer.convert_tokens_to_ids("<image>")
    config.text_config.pad_token_id = tokenizer.pad_token_id
    # On the hub they are in bf16, too
    save_random(config, processor, folder, torch.bfloat16)


SHAPES = {
    "tiny": Shape(None, (112, 112), 20),
    "proxy": Shape(write_proxy, (448, 448), 2),
    "smolvlm-256m": Shape(write_smolvlm, (512, 512), 2),
}
STAGES = ("load", "sft", "dpo", "reward", "ppo")


def settings_of(stage: str, epochs: int) -> StageSettings:
    """Return settings with which a stage sees its pairs so often, 4 at a time."""
    if stage == "load":
        return GenerationSettings(batch_size=PAIRS_SEEN, max_new_tokens=NEW_TOKENS)
    if stage == "reward":
        # An evaluation at the end of the first epoch and of the last
        return replace(
            reward_preset("tiny"), epochs=epochs, batch_size=4, learning_rate=1e-5, evaluations=2
        )
    if stage == "ppo":
        return replace(
            ppo_preset("tiny-rloo"),
            iterations=max(1, epochs // 2),
            prompts_per_iteration=PAIRS_SEEN,
            mini_batch=4,
            learning_rate=1e-6,
            max_new_tokens=NEW_TOKENS,
        )
    preset = {"sft": sft_preset, "dpo": dpo_preset}[stage]("tiny")
    return replace(preset, steps=epochs * PAIRS_SEEN // 4, batch_size=4, learning_rate=1e-5)


# --- a stage, in a process of its own ---


def records_at(size: tuple[int, int], folder: Path) -> list[PreferenceRecord]:
    """Return shipped records whose images have that size."""
    records = []
    for record in read_records(PAIRS)[:PAIRS_SEEN]:
        image = folder / record.image_names()[0]
        image.parent.mkdir(parents=True, exist_ok=True)
        open_image(record.image_paths[0]).resize(size).save(image)
        records.append(record.model_copy(update={"images": [str(image)]}))
    return records


def prepare_stage(
    stage: str,
    settings: StageSettings,
    model: models.VLM,
    processor: ProcessorMixin,
    records: list[PreferenceRecord],
) -> Callable[[], object]:
    """Return what runs the stage; all that is done before the first step is done."""
    tasks = tasks_of(records)
    if stage == "sft":
        tuning = sft_trainer(model, processor, chosen_answers(records), settings)
        return lambda: train_sft(tuning)
    if stage == "dpo":
        trainer = dpo_trainer(model, processor, to_trl(records, "extremes"), settings)
        return lambda: train_dpo(trainer)
    if stage == "reward":
        reward = new_reward_model(model, processor, settings)
        held_out = records[: max(1, len(records) // 8)]
        return RewardTrainer(reward, records, held_out, settings).train
    if stage == "ppo":
        return PPOTrainer(model, processor, tasks, by_length, settings).train
    asked = tasks[: settings.batch_size]
    return lambda: models.generate_answers(
        model,
        processor,
        [task.images[0] for task in asked],
        [task.question for task in asked],
        max_new_tokens=settings.max_new_tokens,
        batch_size=settings.batch_size,
    )


def workload_of(
    folder: Path, size: tuple[int, int], processor, records: list[PreferenceRecord], stage: str
) -> Workload:
    """Return the workload of these records, with the longest of their texts."""
    texts = [render_conversation(processor, task.turns, 0) for task in tasks_of(records)]
    prompts = tokenize(processor, texts, [[] for _ in texts])["input_ids"]
    answers = []
    for record in records:
        answers += [len(answer_ids(processor, answer.text)) for answer in record.answers]
    samples = stage in ("load", "ppo")
    return replace(
        workload_here(str(folder), size, four_bit=False),
        max_pixels=size[0] * size[1],
        prompt_tokens=prompts.shape[1] + 2,  # marks around the image
        answer_tokens=NEW_TOKENS if samples else max(answers),
        answers=max(len(record.answers) for record in records),
        examples=len(records),
    )


def measure_stage(name: str, stage: str, folder: Path) -> dict[str, float]:
    """Return what was forecast of a stage, and what it took."""
    shape = SHAPES[name]
    records = records_at(shape.size, folder / "images")
    location = Path(folder / "model" if shape.write else models.locate("tiny"))
    processor = models.load_processor(location)
    workload = workload_of(location, shape.size, processor, records, stage)
    settings = settings_of(stage, shape.epochs)
    memory = forecast_memory(workload, settings)
    model, processor = models.load_model(location, four_bit=False, max_pixels=workload.max_pixels)
    speed = speed_here(workload)
    run = prepare_stage(stage, settings, model, processor, records)
    started = time.perf_counter()
    run()
    seconds = time.perf_counter() - started
    return {
        "forecast_gb": memory.total,
        "gb": peak_memory_gb(),
        "forecast_seconds": StageSeconds(workload, speed).of_stage(settings),
        "seconds": seconds,
    }


# --- all of them ---


def measure_apart(name: str, stage: str, folder: Path) -> dict[str, float]:
    """Return the figures of `measure_stage`, from a process of its own.

    Raises UsageError with the last line of one that fails.
    """
    command = [sys.executable, __file__, "--shapes", name, "--stages", stage]
    done = subprocess.run([*command, "--part", str(folder)], capture_output=True, text=True)
    if done.returncode:
        last = (done.stderr.strip().splitlines() or ["it wrote nothing"])[-1]
        raise UsageError(f"{name}, {stage}: {last}")
    return json.loads(done.stdout.splitlines()[-1])


def measure_shape(name: str, stages: list[str]) -> dict[str, dict[str, float]]:
    """Return the figures of a model's stages by entry."""
    write = SHAPES[name].write
    found = {}
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        if write:
            write(folder / "model")
        for stage in tqdm(stages, desc=name):
            figures = measure_apart(name, stage, folder)
            for what in ("gb", "seconds"):
                figures[f"{what}_ratio"] = figures[what] / figures[f"forecast_{what}"]
            found |= {f"{name}_{stage}_{what}": entry([value]) for what, value in figures.items()}
    return found


def forecast_presets() -> dict[str, dict[str, float]]:
    """Return minutes of the presets "laptop" for SmolVLM-256M, and seconds a step of DPO's "t4".

    For 240 records, of which pairs have two answers, and photos of one tile.
    """
    model = "smolvlm-256m"
    workload = replace(workload_here(model, (512, 512), four_bit=False), examples=240)
    seconds = StageSeconds(workload, speed_here(workload))
    found = {"laptop_threads": torch.get_num_threads()}
    presets = {"sft": sft_preset, "dpo": dpo_preset, "reward": reward_preset, "ppo": ppo_preset}
    for stage, preset in presets.items():
        settings = preset("laptop")
        found[f"laptop_{stage}_minutes"] = seconds.of_stage(settings) / 60
        found[f"laptop_{stage}_gb"] = forecast_memory(workload, settings).total
    # A step while each of its 16 images is new, and when their features and the reference are kept
    t4 = replace(dpo_preset("t4"), steps=1)
    for name, new in (("first", t4.batch_size * t4.accumulation), ("later", 0)):
        step = StageSeconds(replace(workload, examples=new), seconds.speed)
        found[f"t4_dpo_{name}_step_seconds"] = step.of_stage(t4)
    return {name: entry([value]) for name, value in found.items()}


def presets_text(figures: dict[str, dict]) -> str:
    """Return a sentence about what `forecast_presets` found."""
    threads = figures["laptop_threads"]["value"]
    stages = []
    for stage in STAGES[1:]:
        minutes = figures[f"laptop_{stage}_minutes"]["value"]
        memory = figures[f"laptop_{stage}_gb"]["value"]
        stages.append(f"{stage} {minutes:.0f} minutes and {memory:.1f} GB")
    return (
        f"By forecast, with `OMP_NUM_THREADS={threads:.0f}`, the presets `laptop` take for "
        f"`smolvlm-256m`: {', '.join(stages)} (240 records, photos of one tile). A step of DPO's "
        f"`t4` takes {figures['t4_dpo_first_step_seconds']['value']:.0f} seconds while its images "
        f"are new, and {figures['t4_dpo_later_step_seconds']['value']:.0f} seconds later."
    )


def table(figures: dict[str, dict]) -> str:
    """A row for each model and stage."""
    rows = [HEAD]
    for name in SHAPES:
        rows += [
            row_of(figures, name, stage) for stage in STAGES if f"{name}_{stage}_gb" in figures
        ]
    return markdown_table(rows)


def row_of(figures: dict[str, dict], name: str, stage: str) -> tuple[str, ...]:
    """A model's stage: memory and time, each as forecast, as taken, and their ratio."""
    row = [name, stage]
    for what, form in (("gb", ".2f"), ("seconds", ".3g")):
        row.append(format(figures[f"{name}_{stage}_forecast_{what}"]["value"], form))
        row.append(format(figures[f"{name}_{stage}_{what}"]["value"], form))
        row.append(format(figures[f"{name}_{stage}_{what}_ratio"]["value"], ".2f"))
    return tuple(row)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--shapes", nargs="+", choices=SHAPES, default=list(SHAPES))
    parser.add_argument("--stages", nargs="+", choices=STAGES, default=STAGES)
    parser.add_argument("--part", type=Path, help="a folder: measure one stage in this process")
    given = parser.parse_args()
    logging.getLogger("transformers").setLevel(logging.ERROR)
    datasets.disable_progress_bars()
    if given.part:
        print(json.dumps(measure_stage(given.shapes[0], given.stages[0], given.part)))
        return
    figures = read_json(OUT)["figures"] if OUT.exists() else {}
    figures |= forecast_presets()
    for name in given.shapes:
        figures |= measure_shape(name, given.stages)
        write_json(OUT, {"environment": machine_summary(), "figures": figures})
    block = f"{table(figures)}\n\n{presets_text(figures)}"
    print(block)
    write_block(PAGE, BLOCK, block)


if __name__ == "__main__":
    main()
