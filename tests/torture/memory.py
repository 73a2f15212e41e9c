"""Long runs: what a process holds must not grow with the images that it has seen."""

import dataclasses
import os
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import numpy as np
import psutil
from PIL import Image
from transformers import TrainerCallback

from helpers import models
from helpers.config import dpo_preset, ppo_preset, reward_preset
from helpers.data import PreferenceRecord, tasks_of, to_trl
from helpers.rewards import make_scorer, reward_model
from helpers.training import PPOTrainer, RewardTrainer, dpo

from . import children
from .outcome import Outcome, Trial

SIDE = 336  # pixels of an image
FIRST = 50  # images, while the process takes what it needs
MOST = 0.1  # MB an image after them
ANSWERS = (("2 cars, 1 bus", "1 car, 2 buses"), ("No.", "Yes, there are 3 cars."))


def grow(stage: str, images: int, folder: Path) -> float:
    """Train a stage on so many images, each of which it sees once; MB that it grows by for each."""
    folder.mkdir(parents=True)
    held: list[float] = []
    STAGES[stage](_records(images, folder), folder, _Watch(held))
    # the step that each image was in
    steps = np.linspace(0, images, len(held))
    late = steps > FIRST
    return float(np.polyfit(steps[late], np.array(held)[late], 1)[0])


class _Watch:
    """Notes what the process holds, in MB, whenever it is called."""

    def __init__(self, held: list[float]):
        self._held = held
        self._process = psutil.Process(os.getpid())

    def __call__(self, *_given: object, **_more: object) -> None:
        self._held.append(self._process.memory_info().rss / 1e6)


def _records(images: int, folder: Path) -> list[PreferenceRecord]:
    """Records of as many images of noise, which no two share."""
    draws = np.random.default_rng(0)
    found = []
    for number in range(images):
        picture = Image.fromarray(draws.integers(0, 255, (SIDE, SIDE, 3), dtype=np.uint8))
        path = folder / f"{number}.png"
        picture.save(path, compress_level=1)
        answers = [{"text": text} for text in ANSWERS[number % 2]]
        record = PreferenceRecord(
            image=str(path), prompt="How many?", answers=answers, ranking=[[0], [1]]
        )
        found.append(record)
    return found


def _train_reward(records: list[PreferenceRecord], folder: Path, watch: _Watch) -> None:
    settings = dataclasses.replace(
        reward_preset("tiny"), epochs=1, batch_size=1, accumulation=1, evaluations=1
    )
    loaded = models.load_model("tiny", max_pixels=SIDE * SIDE)
    scored = reward_model.new_reward_model(*loaded, settings, 0)
    # a forward is one record here
    scored.register_forward_hook(watch)
    RewardTrainer(scored, records, records[:2], settings, 0).train()


def _train_dpo(records: list[PreferenceRecord], folder: Path, watch: _Watch) -> None:
    settings = dataclasses.replace(
        dpo_preset("tiny"), steps=len(records), batch_size=1, accumulation=1
    )
    model, processor = models.load_model("tiny", max_pixels=SIDE * SIDE)
    step = _EachStep(watch)
    dpo.train_dpo(
        dpo.dpo_trainer(
            model, processor, to_trl(records), settings, cache=folder / "cache", callbacks=[step]
        )
    )


class _EachStep(TrainerCallback):
    def __init__(self, watch: _Watch):
        self._watch = watch

    def on_step_end(self, *_given: object, **_more: object) -> None:
        self._watch()


def _train_ppo(records: list[PreferenceRecord], folder: Path, watch: _Watch) -> None:
    a_step = 4
    settings = dataclasses.replace(
        ppo_preset("tiny-rloo"),
        iterations=len(records) // a_step,
        prompts_per_iteration=a_step,
        group_size=2,
        mini_batch=2,
        max_new_tokens=4,
    )
    model, processor = models.load_model("tiny", max_pixels=SIDE * SIDE)
    score = make_scorer("length", lambda *given: {"length": float(len(given[2]))})
    trainer = PPOTrainer(
        model, processor, tasks_of(records), score, settings, cache=folder / "cache", watch=[watch]
    )
    trainer.train()


STAGES: dict[str, Callable[[list[PreferenceRecord], Path, _Watch], None]] = {
    "reward": _train_reward,
    "dpo": _train_dpo,
    "ppo": _train_ppo,
}


def memory_trials(home: Path, images: int) -> Iterator[Trial]:
    """Every stage once."""
    for stage in STAGES:
        yield partial(_grow_in_a_child, stage, images, home / f"memory-{stage}")


def _grow_in_a_child(stage: str, images: int, folder: Path) -> Outcome:
    ended = children.run(grow, stage, images, folder)
    what = f"{stage} on {images} images of {SIDE} × {SIDE}"
    if ended.has_traceback:
        return Outcome("raw traceback", f"{what}\n{ended.text[-1500:]}")
    if not ended.value < MOST:
        return Outcome("silently wrong", f"{what}: {ended.value:.2f} MB more for each image")
    return Outcome("survived", f"{stage} {ended.value:.3f} MB an image")
