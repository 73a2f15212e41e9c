"""What run it is, and its checkpoints: the same for DPO, reward models and PPO.

A run is its data and its settings. What must be equal for a run to be gone on with is its identity;
it stands in `identity.json` in every checkpoint (`helpers/machine/checkpoints.py`). A run that is
repeated goes on from its last whole checkpoint, and one that was finished is not trained a step
further. A folder that holds another run is refused, or set aside under the name NAME.old-1. Taught
in notebooks 03, 04 and 05.

Simplification: versions of torch and transformers are no part of the identity, so that the session
of another day goes on.
"""

import hashlib
import json
import re
import shutil
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import fields, is_dataclass
from functools import wraps
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState
from datasets import Dataset
from transformers import ProcessorMixin

from helpers.data import PreferenceRecord, Task
from helpers.files import UsageError, file_hash, hold_folder, set_aside
from helpers.machine import (
    Identity,
    checkpoint_identity,
    checkpoint_step,
    checkpoints_in,
    is_whole,
    seal_checkpoint,
)
from helpers.models import VLM, processor_settings, weights_hash
from helpers.rewards import Scorer
from helpers.runtime import compute_dtype

from .fingerprints import fingerprint

TrainingData = Sequence[PreferenceRecord] | Sequence[Task] | Dataset

# They decide when a checkpoint is written and how much is in memory at a time, and change no
# weight.
NOT_IN_IDENTITY = ("checkpoint_every", "checkpoint_steps", "sampling_batch")

# the newest, and the one before in case the newest is damaged
KEPT_CHECKPOINTS = 2

STATE_FILE = "state.pt"

# of a TRL data set
IMAGE_COLUMNS = ("images", "negative_images")

# of such a data set, while its hash is made: images may stand in it
ROWS_AT_A_TIME = 100


# --- What run it is ---


def run_identity(
    stage: str,
    model: VLM,
    processor: ProcessorMixin,
    data: TrainingData,
    settings: Any,
    *,
    seed: int,
    **more: Any,
) -> Identity:
    """Describe what a run must share with a checkpoint to go on from it.

    settings: a dataclass. more: what else decides the result, by its name for the reader, such as
    `reward` and `reward_identity(score)`. Raises UsageError for an image that cannot be read.
    """
    return {
        "stage": stage,
        "data": data_hash(data),
        "base model": weights_hash(model, None),
        "processor": _hash(processor_settings(processor)),
        "precision": str(compute_dtype()).removeprefix("torch."),
        "seed": str(seed),
        "number of processes": str(PartialState().num_processes),
        **_settings_identity(settings),
        **{name: str(value) for name, value in more.items()},
    }


def data_hash(data: TrainingData) -> str:
    """Hash of what is learnt from, in its order: images by their files' bytes, never by paths."""
    # a file is read once, however many records show it
    known: dict[str, str] = {}
    if isinstance(data, Dataset):
        rows = _dataset_rows(data, known)
    else:
        rows = [_row(item, known) for item in data]
    return _hash(json.dumps(rows, sort_keys=True, default=repr))


def reward_identity(score: Scorer) -> str:
    """The name of a reward, and a hash of what it is made of: its code, its weights."""
    return f"{score.__name__} {fingerprint(score)}"


def _row(item: PreferenceRecord | Task, known: dict[str, str]) -> list[Any]:
    if isinstance(item, Task):
        turns = [[turn.role, turn.content] for turn in item.turns]
        return [_image_hashes(item.images, known), turns, item.facts]
    images = _image_hashes(item.image_paths, known)
    spoilt = _image_hashes(item.negative_image_paths, known)
    turns = [[turn.role, turn.content] for turn in item.prompt]
    answers = [[answer.text, answer.score] for answer in item.answers]
    return [images, spoilt, turns, answers, item.ranking, item.truth]


def _image_hashes(paths: Sequence[Path], known: dict[str, str]) -> list[str]:
    for path in paths:
        if str(path) not in known:
            known[str(path)] = file_hash(path)
    return [known[str(path)] for path in paths]


def _dataset_rows(data: Dataset, known: dict[str, str]) -> list[Any]:
    """The rows of a TRL data set, with the hash of each image in place of the image."""
    columns = [name for name in IMAGE_COLUMNS if name in data.column_names]
    rows = []
    # as it is stored, not decoded: a path, or the bytes where the data set holds them
    for part in data.with_format("arrow").iter(ROWS_AT_A_TIME):
        for row in part.to_pylist():
            for name in columns:
                row[name] = [_embedded_hash(image, known) for image in row[name] or []]
            rows.append(row)
    return rows


def _embedded_hash(image: Mapping[str, Any], known: dict[str, str]) -> str:
    if image["bytes"] is not None:
        return hashlib.blake2b(image["bytes"], digest_size=16).hexdigest()
    return _image_hashes([Path(image["path"])], known)[0]


def _settings_identity(settings: Any) -> Identity:
    """Each setting by its name; those of a part, such as `lora`, behind its name and a dot."""
    found: Identity = {}
    for field in fields(settings):
        value = getattr(settings, field.name)
        if is_dataclass(value):
            inner = _settings_identity(value)
            found |= {f"{field.name}.{name}": text for name, text in inner.items()}
        elif field.name not in NOT_IN_IDENTITY:
            found[field.name] = repr(value)
    return found


def _hash(text: str) -> str:
    return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()


def name_differences(there: Identity, here: Identity) -> str:
    """What differs between two runs, in words: "learning_rate (0.001, here 0.01), data"."""
    found = {}
    for name in sorted(there.keys() | here.keys()):
        old, new = there.get(name, "none"), here.get(name, "none")
        # a hash says nothing to a reader
        hashed = re.search(r"[0-9a-f]{32}", f"{old} {new}")
        if old != new:
            found[name] = name if hashed else f"{name} ({old}, here {new})"
    if len(found) > 1:
        # they follow from the seed and the settings
        found.pop("first_weights", None)
    return ", ".join(found.values())


# --- Its checkpoints ---


def alone_in_its_folder(train: Callable[..., Any]) -> Callable[..., Any]:
    """Let a trainer's method run while no other program trains in the folder of its checkpoints."""

    @wraps(train)
    def train_alone(trainer: Any, *given: Any, **more: Any) -> Any:
        with trainer.checkpoints.alone():
            return train(trainer, *given, **more)

    return train_alone


class Checkpoints:
    """The checkpoints of a run: `checkpoint-STEP` in its folder, of which the last two are kept.

    folder: of this run alone; None writes nothing. Raises UsageError if it holds another run,
    naming what differs; with `replace_other` the whole folder is set aside instead, as NAME.old-1,
    NAME.old-2, …
    """

    def __init__(self, folder: Path | None, identity: Identity, *, replace_other: bool = False):
        self.folder = folder
        self.identity = identity
        self._main = PartialState().is_main_process
        if folder is None:
            return
        # another process looks when the folder has been set aside
        with PartialState().main_process_first():
            self._refuse_or_replace(folder, replace_other)

    def _refuse_or_replace(self, folder: Path, replace_other: bool) -> None:
        known = [checkpoint_identity(path) for path in checkpoints_in(folder)]
        others = [identity for identity in known if identity is not None]
        if not others or self.identity in others:
            return
        if not replace_other:
            differs = name_differences(others[0], self.identity)
            raise UsageError(
                f"{folder}: of a run with other {differs}. Put that back, give another folder, or "
                "keep the old run under another name: replace_other=True (REPLACE in a notebook, "
                "--replace of a recipe)."
            )
        with hold_folder(folder):
            print(f"{folder}: held another run, which is now {set_aside(folder).name}.")

    def alone(self) -> AbstractContextManager[None]:
        """Keep other programs out of the folder; raises UsageError if one trains there."""
        return hold_folder(self.folder) if self.folder and self._main else nullcontext()

    def newest(self) -> Path | None:
        """The newest whole checkpoint of this run. What is passed over is named, a line each."""
        if self.folder is None:
            return None
        for path in checkpoints_in(self.folder):
            if checkpoint_identity(path) not in (self.identity, None):
                self._print(f"⚠️  {path}: of another run. It is passed over.")
            elif not is_whole(path):
                self._print(
                    f"⚠️  {path}: damaged, or cut off while it was written. It is passed over."
                )
            else:
                return path
        return None

    def save(self, step: int, state: Mapping[str, Any]) -> None:
        """Write the state after `step` steps. Of several processes the first one writes."""
        if self.folder is None or not self._main:
            return
        target = self.folder / f"checkpoint-{step}"
        # written beside and renamed: a run that is killed here has the checkpoint before
        beside = self.folder / f".{target.name}.part"
        shutil.rmtree(beside, ignore_errors=True)
        beside.mkdir(parents=True)
        torch.save(dict(state), beside / STATE_FILE)
        seal_checkpoint(beside, self.identity)
        if target.exists():
            shutil.rmtree(target)
        beside.rename(target)
        for old in checkpoints_in(self.folder)[KEPT_CHECKPOINTS:]:
            shutil.rmtree(old)

    def load(self, steps: int | None = None) -> tuple[int, dict[str, Any]] | None:
        """Step and state of the newest whole checkpoint, on the CPU; None if there is none.

        steps: how many the whole run has, for the line that is printed.
        """
        path = self.newest()
        if path is None:
            return None
        state = torch.load(path / STATE_FILE, weights_only=True, map_location="cpu")
        self.announce(path, steps, state.get("finished", False))
        return checkpoint_step(path), state

    def announce(self, path: Path, steps: int | None, finished: bool = False) -> None:
        """Say in one line from where the run goes on, or that nothing of it is left to train.

        finished: also before the last of its steps.
        """
        step = checkpoint_step(path)
        if finished or step == steps:
            self._print(f"Finished after step {step} ({path}): loaded, not trained again.")
        else:
            whole = f" of {steps}" if steps else ""
            self._print(f"Going on after step {step}{whole} ({path}).")

    def _print(self, line: str) -> None:
        if self._main:
            print(line)
