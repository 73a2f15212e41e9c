"""The data that notebook 02 has prepared: what the later notebooks train on and ask about.

A folder with `train.jsonl`, `valid.jsonl` and, if there are photos enough, `test.jsonl` of
preference records; with `SPLIT-questions.jsonl`, if there are questions without a pair; and with
`about.json`, which says whose data it is, for which model, and of which kind the truth is. Without
notebook 02 it is the shipped traffic, and that is said.
"""

import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, TypeVar

from helpers.files import ROOT, UsageError, artifact, file_hash, read_json, write_lines

from .preferences import read_records
from .record import Message, PreferenceRecord
from .tasks import Task, tasks_of
from .truth import TRUTH_KINDS, TruthKind


class _Trained(Protocol):
    """A policy, of which its name and `about.json` count here."""

    name: str
    about: dict[str, Any]


Policy = TypeVar("Policy", bound=_Trained)
TRAFFIC = ROOT / "data" / "traffic"  # comes with the repository
SHIPPED_ABOUT = {
    "data": "data/traffic",
    "title": "traffic scenes",
    "model": "tiny",
    "kind": "counts",
    "classes": None,
}


@dataclass(frozen=True)
class PreparedData:
    """The splits of one data set, and how they came about.

    prefix: of its files of records.
    """

    folder: Path
    about: dict[str, Any]
    prefix: str = ""

    @property
    def kind(self) -> TruthKind:
        return self.about["kind"]

    @property
    def title(self) -> str:
        """What it is about, for headings: "traffic scenes"."""
        return self.about["title"]

    @property
    def model(self) -> str:
        """The preset or folder of the base that it was prepared with."""
        return self.about["model"]

    @property
    def is_traffic(self) -> bool:
        """Are these the scenes of the repository, of which the notebooks speak?"""
        return ROOT / self.about["data"] == TRAFFIC

    @property
    def splits(self) -> list[str]:
        """The splits that there are, train first."""
        return list(self.about.get("splits", ("train", "valid", "test")))

    @property
    def has_preferences(self) -> bool:
        """Did the data come with answers to choose from, before any were made for it?"""
        counts = self.about.get("splits", {})
        return not counts or any(split["preferences"] for split in counts.values())

    @property
    def image_root(self) -> Path:
        """The folder that the images of the records are in."""
        own = self.folder / "images"
        return self.folder if own.is_dir() else ROOT / "data"

    @property
    def held_out(self) -> str:
        """The split that no setting is chosen on: "test", else "valid"."""
        for name in ("test.jsonl", "test-questions.jsonl"):
            if (self.folder / f"{self.prefix}{name}").exists():
                return "test"
        return "valid"

    def path(self, split: str) -> Path:
        """The file of records of a split."""
        return self.folder / f"{self.prefix}{split}.jsonl"

    def records(self, split: str) -> list[PreferenceRecord]:
        """The preference records of a split. Raises UsageError if there is no such file."""
        return read_records(self.path(split))

    def ranked(self, split: str, least: int = 1) -> list[PreferenceRecord]:
        """The records of a split that have a pair; says how many have none.

        Raises UsageError if there are fewer than `least`.
        """
        records = self.records(split)
        ranked = [record for record in records if record.pairs()]
        if not ranked:
            raise UsageError(
                f"{self.path(split)}: no answer is ranked above another, so there is nothing to "
                "learn. Rank them in notebook 02, or take another SCORER there."
            )
        if len(ranked) < least:
            raise UsageError(
                f"{self.path(split)}: {len(ranked)} record with a pair is too few to say anything. "
                "Collect more preferences, about more photos."
            )
        if len(ranked) < len(records):
            print(f"{split}: {len(records) - len(ranked)} records without a pair are left out")
        return ranked

    def tasks(self, split: str) -> list[Task]:
        """All questions of a split, those without a pair among them."""
        questions = self.folder / f"{split}-questions.jsonl"
        return read_tasks(questions) if questions.exists() else tasks_of(self.records(split))

    def policy_about(self, base: str, max_pixels: int | None, seed: int) -> dict[str, Any]:
        """What is noted beside a policy that was trained on this data."""
        path = self.path("train")
        return {
            "base": base,
            "max_pixels": max_pixels,
            "seed": seed,
            "data": str(path),
            "data_hash": file_hash(path),
        }

    def keep_own(self, policies: Sequence[Policy]) -> list[Policy]:
        """Leave out policies that were trained on other data, and say which.

        One that does not say what it was trained on stays.
        """
        kept = []
        others = []
        for policy in policies:
            (kept if self._is_own(policy.about) else others).append(policy)
        if others:
            names = ", ".join(policy.name for policy in others)
            print(f"⚠️  left out, because they were trained on other data: {names}")
        return kept

    def has_made(self, folder: Path, base: str) -> bool:
        """Is there something of this base in `folder` that was trained on this data?"""
        path = folder / "about.json"
        about = read_json(path) if path.exists() else {}
        return about.get("base") == base and self._is_own(about)

    def _is_own(self, about: dict[str, Any]) -> bool:
        here = file_hash(self.path("train"))
        return about.get("data_hash", here) == here


def read_prepared(folder: Path | None = None) -> PreparedData:
    """Read what is in `folder` (default: what notebook 02 has left, else the shipped traffic).

    Raises UsageError if its about.json is missing or does not say the kind of truth.
    """
    if folder is None:
        about = artifact("preferences/about.json", "notebook 02", lambda: TRAFFIC)
        folder = about.parent if about.is_file() else about
    if folder == TRAFFIC:
        return PreparedData(folder, SHIPPED_ABOUT, "preferences_")
    path = folder / "about.json"
    if not path.exists():
        raise UsageError(f"{path}: no such file. Run notebook 02 with your DATA to make it.")
    about = read_json(path)
    if about.get("kind") not in TRUTH_KINDS:
        raise UsageError(
            f"{path}: 'kind' must be one of {', '.join(TRUTH_KINDS)}. Run notebook 02 again."
        )
    return PreparedData(folder, {**about, "title": about.get("title") or folder.name})


def write_tasks(path: Path, tasks: list[Task]) -> Path:
    """Write questions as JSON lines, images relative to the file."""
    lines = []
    for task in tasks:
        row = {
            "images": [_name(image, path.parent) for image in task.images],
            "prompt": [turn.model_dump() for turn in task.turns],
            "truth": task.facts,
            "truth_kind": task.kind,
            "group": task.group,
            "id": task.id,
        }
        lines.append(json.dumps(row, ensure_ascii=False))
    return write_lines(path, lines)


def _name(image: Path, folder: Path) -> str:
    try:
        return Path(os.path.relpath(image, os.path.abspath(folder))).as_posix()
    except ValueError:  # on Windows there is no way from one drive to another
        return str(image)


def read_tasks(path: Path) -> list[Task]:
    """Read what `write_tasks` wrote."""
    tasks = []
    for line in path.read_text(encoding="utf-8").splitlines():
        row = json.loads(line)
        images = tuple(Path(os.path.abspath(path.parent / name)) for name in row["images"])
        turns = tuple(Message.model_validate(turn) for turn in row["prompt"])
        task = Task(
            images,
            turns,
            row["truth"],
            row["truth_kind"],
            row["group"],
            row.get("id"),
        )
        tasks.append(task)
    return tasks
