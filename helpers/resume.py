"""Lost sessions: which checkpoints there are to go on from, and where they are kept.

Colab ends a session after some hours, and its disk with it. `use_drive`, the set-up cell's, fetches what an earlier
session left on Google Drive and keeps it up to date; `found` says how to go on.
"""

import re
from dataclasses import dataclass
from pathlib import Path

import torch

from helpers.drive import Copies, last_checkpoint, trainer_state
from helpers.install import on_colab
from helpers.runtime import UsageError, artifacts_dir

MOUNT = Path("/content/drive")
_running: dict[Path, Copies] = {}


@dataclass(frozen=True)
class Checkpoint:
    """The last one of a run that is whole. step: updates of DPO and reward model, iterations of PPO."""

    run: str  # its folder in artifacts/
    path: Path
    step: int
    steps: int | None  # of the whole run, where the checkpoint knows
    finished: bool  # the run came to its end, or its adapter was saved since

    def __str__(self) -> str:
        done = f"{self.run}: step {self.step}" + (f" of {self.steps}" if self.steps else "")
        goes_on = "goes on by itself" if self.run.startswith("reward") else "set RESUME = True"
        return f"{done}, finished" if self.finished else f"{done} → {goes_on}"


def last_checkpoints(folder: Path) -> list[Checkpoint]:
    """The last whole checkpoint of every run in `folder`, as notebooks 03, 04 and 05 name them."""
    files = sorted([*folder.glob("reward*/**/checkpoint*.pt"), *folder.glob("ppo/*/checkpoint.pt")])
    found = [(path.parent, last_checkpoint(path)) for path in sorted(folder.glob("dpo/*/trainer"))]
    found += [(path.parent, _of_file(path)) for path in files]
    return [_checkpoint(folder, run, *last) for run, last in found if last]


def _checkpoint(folder: Path, run: Path, step: int, path: Path, steps: int | None) -> Checkpoint:
    adapter = run / "adapter_config.json"
    saved = adapter.exists() and adapter.stat().st_mtime >= path.stat().st_mtime
    return Checkpoint(run.relative_to(folder).as_posix(), path, step, steps, step == steps or saved)


def _of_file(path: Path) -> tuple[int, Path, int | None] | None:
    """The state that `RewardTrainer` or `PolicyTrainer` wrote in one step; None if it is none or damaged."""
    try:
        state = torch.load(path, weights_only=True, map_location="cpu", mmap=True)
        step = state["iteration"] if "iteration" in state else state["step"]
    except Exception:  # torch has no error of its own for a file that is none of its
        return None
    steps = re.search(r"\biterations=(\d+)", str(state.get("identity")))
    return step, path, int(steps[1]) if steps else None


def found() -> None:
    """Print what a lost session left in artifacts/, and how to go on from it."""
    folder = artifacts_dir()
    lines = [str(checkpoint) for checkpoint in last_checkpoints(folder)]
    cut_off = [path for path in folder.glob("dpo/*/trainer/checkpoint-*") if not trainer_state(path)]
    lines += [f"⚠️  {path} was cut off while it was written, and is passed over." for path in sorted(cut_off)]
    print("\n".join(lines) or f"No checkpoint in {folder}.")


def use_drive(folder: str) -> None:
    """Fetch what is newer in that folder of Google Drive, and keep it up to date from now on; "" does nothing.

    An absolute path is taken as it is, also elsewhere than on Colab. Raises UsageError if Drive cannot be had.
    """
    if not folder:
        return
    drive = MOUNT / "MyDrive" / folder
    if not Path(folder).is_absolute():
        _mount()
    try:
        drive.mkdir(parents=True, exist_ok=True)
        copies = _running.setdefault(drive, Copies(drive, artifacts_dir()))
        print(f"{drive}: {copies.restore()} files and checkpoints fetched; from now on it is brought up to date.")
    except OSError as error:
        raise UsageError(f"{drive}: cannot be used ({error}). Run the cell again, or set DRIVE = ''.") from None
    copies.start()
    found()


def _mount() -> None:
    if not on_colab():
        raise UsageError("DRIVE is for Google Colab. Elsewhere set DRIVE = '', or an absolute path.")
    from google.colab import drive

    try:
        drive.mount(str(MOUNT))
    except Exception as error:  # a refusal comes as errors of several kinds
        raise UsageError(f"Google Drive is not mounted ({error}). Allow it, or set DRIVE = ''.") from None
