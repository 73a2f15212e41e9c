"""The folders `checkpoint-STEP` of a run, and how to tell a whole one from one that was cut off.

The last file that is written into a checkpoint is `identity.json`: what run it is of, and the hash
of every other file in it. A checkpoint without that file, or with a file that is another one, is
not gone on with. No path is in it: the folder may be moved, or mounted elsewhere. Written by
`helpers/training/checkpoint.py`.
"""

import json
import re
from collections.abc import Iterable
from pathlib import Path

from helpers.files import UsageError, file_hash, write_json

IDENTITY_FILE = "identity.json"

# TRL's log of a run of DPO, in each of its checkpoints
TRAINER_STATE = "trainer_state.json"

CHECKPOINT_FOLDER = re.compile(r"checkpoint-(\d+)")

# Of what must be equal for a run to be gone on with: its name → its hash, or its repr where it is
# small.
Identity = dict[str, str]


def checkpoint_step(checkpoint: Path) -> int:
    """The step after which a checkpoint was written, from its folder's name."""
    return int(CHECKPOINT_FOLDER.fullmatch(checkpoint.name)[1])


def checkpoints_in(folder: Path) -> list[Path]:
    """All checkpoints in a run's folder, the newest first, also those that are not whole."""
    return sorted(_named_so(folder.glob("checkpoint-*")), key=checkpoint_step, reverse=True)


def folders_with_checkpoints(folder: Path) -> list[Path]:
    """Every run's folder under `folder` that has a checkpoint, whole or not."""
    return sorted({path.parent for path in _named_so(folder.rglob("checkpoint-*"))})


def _named_so(paths: Iterable[Path]) -> list[Path]:
    return [path for path in paths if CHECKPOINT_FOLDER.fullmatch(path.name)]


def seal_checkpoint(checkpoint: Path, identity: Identity) -> None:
    """Say what run a checkpoint is of, and what is in it: the last that is written into it."""
    files = _file_hashes(checkpoint)
    write_json(checkpoint / IDENTITY_FILE, {"identity": identity, "files": files})


def checkpoint_identity(checkpoint: Path) -> Identity | None:
    """What run a checkpoint is of; None if it does not say so."""
    sealed = _read_seal(checkpoint)
    return sealed["identity"] if sealed else None


def is_whole(checkpoint: Path) -> bool:
    """Is every file of a checkpoint there, as it was written?"""
    sealed = _read_seal(checkpoint)
    try:
        return sealed is not None and _file_hashes(checkpoint) == sealed["files"]
    except UsageError:
        # removed meanwhile: by its trainer, which has newer ones
        return False


def last_checkpoint(folder: Path) -> Path | None:
    """The newest whole checkpoint in a run's folder; None if there is none."""
    return next((path for path in checkpoints_in(folder) if is_whole(path)), None)


def _read_seal(checkpoint: Path) -> dict[str, dict[str, str]] | None:
    try:
        sealed = json.loads((checkpoint / IDENTITY_FILE).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    if not isinstance(sealed, dict):
        return None
    parts = [sealed.get(name) for name in ("identity", "files")]
    return sealed if all(isinstance(part, dict) for part in parts) else None


def _file_hashes(checkpoint: Path) -> dict[str, str]:
    """The hash of each file in a checkpoint, by its name there with slashes."""
    files = [path for path in sorted(checkpoint.rglob("*")) if path.is_file()]
    names = {path.relative_to(checkpoint).as_posix(): path for path in files}
    return {name: file_hash(path) for name, path in names.items() if name != IDENTITY_FILE}
