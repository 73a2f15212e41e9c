"""Checkpoints of a run of `helpers/training/ppo.py`: one file with its whole state, and what must be equal to go on from it.

The file is written under another name and renamed, so that a run killed while writing has the one before. No path is
in it: the folder may be moved, or mounted elsewhere. Taught in notebook 05.
"""

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from transformers import ProcessorMixin

from helpers.files import UsageError, file_hash, replace_file
from helpers.models import reference_hash

from .rollout import Task

CheckpointState = dict[str, Any]


def run_identity(
    model: PeftModel, processor: ProcessorMixin, tasks: Sequence[Task], **settings: Any
) -> dict[str, str]:
    """Describe what a resumed run must share with its checkpoint: settings, data, base model and processor."""
    asked = []
    for task in tasks:
        turns = tuple((message.role, message.content) for message in task.turns)
        asked.append(([file_hash(image) for image in task.images], turns, repr(task.facts)))
    return {name: repr(value) for name, value in settings.items()} | {
        "data": hashlib.blake2b(repr(asked).encode(), digest_size=16).hexdigest(),
        "base model or processor": reference_hash(model, processor, None),
    }


def save_checkpoint(path: Path, state: CheckpointState) -> None:
    """Write `state` to `path` in one step."""
    with replace_file(path) as temporary:
        torch.save(state, temporary)


def load_checkpoint(path: Path, identity: dict[str, str]) -> CheckpointState:
    """The state in `path`. Raises UsageError if it is not of a run with this identity, naming what differs."""
    try:
        state = torch.load(path, weights_only=True, map_location="cpu")
    except Exception as error:  # torch has no error of its own for a file that is none of its
        raise UsageError(
            f"{path}: cannot be read ({type(error).__name__}). Delete it to start afresh."
        ) from None
    differs = [name for name, value in identity.items() if state["identity"].get(name) != value]
    if differs:
        raise UsageError(
            f"{path}: of a run with other {', '.join(differs)}. Put that back, or delete the file."
        )
    return state
