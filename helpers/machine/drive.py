"""Lost sessions: what is kept on Google Drive, and which checkpoints there are to go on from.

Colab ends a session after some hours, and its disk with it. `use_drive`, the set-up cell's, fetches
what an earlier session left on Google Drive and keeps it up to date; `print_checkpoints` says how
to go on.

A mount of Drive drops now and then and writes late, so nothing is trained on it. Work stays on the
local disk, and every minute what is finished is copied, under another name that is then changed. If
that fails, training goes on. Files of votes are not replaced but merged: several people may vote on
one folder, each on a machine of their own. Simplification: what was deleted locally stays on Drive,
except for checkpoints that newer ones have replaced.
"""

import shutil
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from math import inf
from pathlib import Path

from helpers.data import is_vote_file, merge_votes
from helpers.files import UsageError, artifacts_dir, is_set_aside, replace_file, write_text
from helpers.install import COLAB, KAGGLE, KAGGLE_FOLDER, hosted_machine

from .checkpoints import (
    CHECKPOINT_FOLDER,
    IDENTITY_FILE,
    checkpoint_identity,
    checkpoint_step,
    checkpoints_in,
    folders_with_checkpoints,
    is_whole,
    last_checkpoint,
)

# seconds: a file that was changed later than that ago may not be finished
QUIET_SECONDS = 3.0

# seconds: some file systems keep times no finer
CLOCK_SECONDS = 2.0


class DriveCopies:
    """Copies finished files from the folder `local` to the folder `drive`.

    `start` repeats it, with `every` seconds between.
    """

    def __init__(self, drive: Path, local: Path, every: float = 60.0):
        self.drive = drive
        self.local = local
        self.every = every
        self.failed = False
        self.stop = threading.Event()
        self.thread = threading.Thread(target=self._run, name="copies", daemon=True)

    def restore(self) -> int:
        """Copy to `local` what is newer in `drive`, and count it. Raises OSError."""
        return _copy_newer(self.drive, self.local)

    def keep(self) -> int:
        """Copy to `drive` what is newer in `local`, and count it.

        A failure is said once and raises nothing.
        """
        try:
            # Else a lost mount would be replaced by a folder of that name
            if not self.drive.is_dir():
                raise OSError("it is not there any more")
            count = _copy_newer(self.local, self.drive, time.time() - QUIET_SECONDS)
            _drop_replaced(self.drive, self.local)
        except OSError as error:
            if not self.failed:
                print(
                    f"⚠️  {self.drive}: nothing can be copied there ({error}). Work goes on, on "
                    "this machine only."
                )
            self.failed = True
            return 0
        self.failed = False
        return count

    def start(self) -> None:
        if not self.thread.ident:
            self.thread.start()

    def _run(self) -> None:
        while not self.stop.wait(self.every):
            self.keep()


def _finished_files(folder: Path) -> Iterator[Path]:
    """Files and whole checkpoints, without what is being written and what can be computed again.

    Links to folders are not followed: they may lead back to a folder that they are in.
    """
    for path in sorted(folder.iterdir()):
        if path.name.startswith(".") or path.name == "cache":
            continue
        if path.is_symlink() and path.is_dir():
            continue
        if path.is_dir() and not CHECKPOINT_FOLDER.fullmatch(path.name):
            yield from _finished_files(path)
        elif path.is_file() or checkpoint_identity(path):
            yield path


def _modification_time(path: Path) -> float:
    return (path / IDENTITY_FILE if path.is_dir() else path).stat().st_mtime


def _copy_newer(source: Path, target: Path, until: float = inf) -> int:
    """Copy what was written before `until` and is newer in `source`, or only there; how much."""
    count = 0
    for path in _finished_files(source):
        copy = target / path.relative_to(source)
        try:
            written = _modification_time(path)
            if is_vote_file(path):
                count += written <= until and _merge(path, copy)
                continue
            wanted = not copy.exists() or written > _modification_time(copy) + CLOCK_SECONDS
            # a drive writes late: a checkpoint may be there in part
            if written <= until and wanted and (path.is_file() or is_whole(path)):
                _copy(path, copy)
                count += 1
        except OSError:
            # else the trainer has just removed this one, because it has newer ones
            if path.exists() or not source.is_dir():
                raise
    return count


def _merge(votes: Path, copy: Path) -> bool:
    """Add the votes that `copy` does not have, of whoever voted there; was there any?"""
    ours = copy.read_bytes() if copy.exists() else b""
    merged = merge_votes(ours, votes.read_bytes())
    if merged == ours:
        return False
    with replace_file(copy) as part:
        part.write_bytes(merged)
    return True


def _copy(path: Path, copy: Path) -> None:
    """Copy a file or a folder with its times.

    Under the name `copy` stands the old one or the new one, never a part.
    """
    part = copy.with_name(f".{copy.name}.part")
    _remove(part)
    copy.parent.mkdir(parents=True, exist_ok=True)
    (shutil.copytree if path.is_dir() else shutil.copy2)(path, part)
    if path.is_dir():
        _remove(copy)  # a folder cannot take the place of another
    part.replace(copy)


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def _drop_replaced(drive: Path, local: Path) -> None:
    """Remove checkpoints whose originals are gone: replaced by newer ones, or set aside."""
    for folder in folders_with_checkpoints(local):
        kept = [path for path in checkpoints_in(folder) if checkpoint_identity(path)]
        for copy in checkpoints_in(drive / folder.relative_to(local)):
            original = folder / copy.name
            if not original.exists() and any(_replaces(path, copy) for path in kept):
                _remove(copy)


def _replaces(checkpoint: Path, old: Path) -> bool:
    """Is it of another run in the same folder, or a newer one of the same run?"""
    if checkpoint_identity(checkpoint) != checkpoint_identity(old):
        return True
    return checkpoint_step(checkpoint) > checkpoint_step(old)


# What is offered where DRIVE is None, and the file that remembers the reply
DRIVE_FOLDER = "vlm-alignment"
REPLY_FILE = ".drive"

# Where Colab mounts Google Drive
DRIVE_MOUNT = Path("/content/drive")

# What says in an identity how many steps a run has: a warm-up's (it also has those of its PPO),
# DPO's and PPO's
STEPS_NAMES = ("epochs of the warm-up", "steps", "iterations")

# The copies of each folder, so that a set-up cell that is run again starts no second ones
_running: dict[Path, DriveCopies] = {}


@dataclass(frozen=True)
class RunCheckpoint:
    """The last one of a run that is whole.

    step: updates of DPO and reward model, iterations of PPO.
    """

    run: str  # its folder in artifacts/
    path: Path
    step: int
    steps: int | None  # of the whole run, where the checkpoint knows
    finished: bool  # the run came to its end, or its adapter was saved since

    def __str__(self) -> str:
        whole = f" of {self.steps}" if self.steps else ""
        end = ", finished" if self.finished else " → goes on by itself"
        return f"{self.run}: step {self.step}{whole}{end}"


def last_checkpoints(folder: Path) -> list[RunCheckpoint]:
    """The last whole checkpoint of every run in `folder`, but for those that were set aside."""
    found = []
    for run in folders_with_checkpoints(folder):
        path = last_checkpoint(run)
        if path is None or is_set_aside(run):
            continue
        identity = checkpoint_identity(path) or {}
        steps = next((identity[name] for name in STEPS_NAMES if name in identity), None)
        name = run.relative_to(folder).as_posix()
        step = checkpoint_step(path)
        finished = str(step) == steps or _is_saved_since(run, path)
        found.append(RunCheckpoint(name, path, step, int(steps) if steps else None, finished))
    return found


def _is_saved_since(run: Path, checkpoint: Path) -> bool:
    adapter = run / "adapter_config.json"
    return adapter.exists() and adapter.stat().st_mtime >= _modification_time(checkpoint)


def print_checkpoints() -> None:
    """Print what a lost session left in artifacts/, and how to go on from it."""
    folder = artifacts_dir()
    lines = [str(checkpoint) for checkpoint in last_checkpoints(folder)]
    for run in folders_with_checkpoints(folder):
        lines += [
            f"⚠️  {path} was cut off while it was written, and is passed over."
            for path in reversed(checkpoints_in(run))
            if not is_whole(path)
        ]
    print("\n".join(lines) or f"No checkpoint in {folder}.")


def ask_for_drive(read_reply: Callable[[str], str] = input) -> str:
    """Ask on Colab in which folder of Google Drive work is kept; "" is in none.

    Once a machine, which remembers the reply. Elsewhere nothing is asked: the disk stays.
    """
    if hosted_machine() is not COLAB:
        return ""
    known = artifacts_dir() / REPLY_FILE
    if known.exists():
        return known.read_text(encoding="utf-8")
    print(
        "On Colab every notebook has a machine of its own, which is taken back after some hours.\n"
        "With a folder of your Google Drive, the next notebook finds what this one makes, and a "
        "lost session goes on.\nWithout, the next notebook takes what comes with the repository, "
        "and what is made here is lost."
    )
    try:
        reply = read_reply(f"Enter for the folder {DRIVE_FOLDER!r}, another name, or no: ").strip()
    except (EOFError, NotImplementedError):
        print("Nobody can be asked here, so Google Drive is not used. Set DRIVE to a folder of it.")
        return ""
    folder = "" if reply.lower() in ("no", "n") else reply or DRIVE_FOLDER
    write_text(known, folder)
    return folder


def use_drive(folder: str) -> None:
    """Fetch what is newer in that folder of Google Drive, and keep it up to date from now on.

    "" does nothing. An absolute path is taken as it is, also elsewhere than on Colab. Kaggle has no
    Drive and needs none: there one line says so. Raises UsageError if Drive cannot be had.
    """
    if not folder:
        return
    is_absolute = Path(folder).is_absolute()
    if hosted_machine() is KAGGLE and not is_absolute:
        print(
            f"⚠️  DRIVE is for Google Colab and does nothing here. Kaggle keeps {KAGGLE_FOLDER} by "
            '"Save Version".'
        )
        return
    if not is_absolute:
        _mount()
    drive = DRIVE_MOUNT / "MyDrive" / folder  # an absolute path takes the place of all before it
    try:
        drive.mkdir(parents=True, exist_ok=True)
        copies = _running.setdefault(drive, DriveCopies(drive, artifacts_dir()))
        count = copies.restore()
    except OSError as error:
        raise UsageError(
            f"{drive}: cannot be used ({error}). Run the cell again, or set DRIVE = ''."
        ) from None
    print(f"{drive}: {count} files and checkpoints fetched; from now on it is brought up to date.")
    copies.start()
    print_checkpoints()


def _mount() -> None:
    if hosted_machine() is not COLAB:
        raise UsageError(
            "DRIVE is for Google Colab. Elsewhere set DRIVE = '', or an absolute path."
        )
    from google.colab import drive

    try:
        drive.mount(str(DRIVE_MOUNT))
    except Exception as error:  # a refusal comes as errors of several kinds
        raise UsageError(
            f"Google Drive is not mounted ({error}). Allow it, or set DRIVE = ''."
        ) from None
