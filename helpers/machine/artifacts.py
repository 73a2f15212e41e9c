"""What is in a folder of artifacts, and whether it is what was written: `python -m helpers verify`.

Two kinds of folders say which files belong to them: what was saved (`files.json`, see
`helpers/files.py`) and checkpoints (`identity.json`, see `checkpoints.py`). Their hashes are
computed again here.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from helpers.files import SEAL_FILE, UsageError, broken_files, read_json

from .checkpoints import checkpoint_identity, checkpoints_in, folders_with_checkpoints, is_whole

# What is said of an artifact, in this order
NAMED = ("base", "recipe", "data", "seed", "reward", "start")


@dataclass(frozen=True)
class Artifact:
    """A folder of files that belong together.

    broken: names of those that are missing or other ones; a checkpoint names itself.
    """

    name: str
    made_from: str
    broken: tuple[str, ...] = ()

    def __str__(self) -> str:
        state = f"✗ not as it was written: {', '.join(self.broken)}" if self.broken else "✓ whole"
        return f"{self.name}: {state}; {self.made_from}"


def find_artifacts(folder: Path) -> list[Artifact]:
    """Return what is under a folder, each with its state. Raises UsageError if there is nothing."""
    if not folder.is_dir():
        raise UsageError(f"{folder}: no such folder. Give one of artifacts, or of a single one.")
    found = [*_saved(folder), *_checkpoints(folder)]
    if not found:
        raise UsageError(
            f"{folder}: nothing here says which files belong together ({SEAL_FILE}, or checkpoints "
            "with identity.json). Files of earlier versions do not: save them again."
        )
    return found


def _saved(folder: Path) -> Iterator[Artifact]:
    for seal in sorted(folder.rglob(SEAL_FILE)):
        home = seal.parent
        about = home / "about.json"
        told = read_json(about) if about.exists() else {}
        broken = broken_files(home) or []
        yield Artifact(_name(home, folder), _made_from(told), tuple(broken))


def _checkpoints(folder: Path) -> Iterator[Artifact]:
    for run in folders_with_checkpoints(folder):
        for checkpoint in checkpoints_in(run):
            identity = checkpoint_identity(checkpoint) or {}
            stage = identity.get("stage", "an unknown stage")
            told = f"a checkpoint of {stage}, seed {identity.get('seed', 'unknown')}"
            broken = () if is_whole(checkpoint) else (checkpoint.name,)
            yield Artifact(_name(checkpoint, folder), told, broken)


def _name(path: Path, folder: Path) -> str:
    name = path.relative_to(folder).as_posix()
    return path.name if name == "." else name


def _made_from(about: Mapping[str, Any]) -> str:
    """Say what an about.json says: "base tiny, recipe Counting vehicles, seed 0"."""
    told = [f"{name} {about[name]}" for name in NAMED if about.get(name) is not None]
    return ", ".join(told) or "nothing says what it was made from"
