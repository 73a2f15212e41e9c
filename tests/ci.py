"""The notebooks in short, for `make test`: fewer scenes, and the values of tests/ci.toml."""

import shutil
import tomllib
from pathlib import Path
from typing import Any

import pytest
from shipped import TRAFFIC

from helpers import data, notebooks
from helpers.files import write_json

TABLE = tomllib.loads(Path(__file__).with_suffix(".toml").read_text(encoding="utf-8"))
SCENES: dict[str, int] = TABLE["scenes"]
VALUES: dict[str, dict[str, Any]] = TABLE["notebooks"]
CHAIN = [entry["file"].removesuffix(".ipynb") for entry in notebooks.catalogue()]


def write_scenes(folder: Path) -> Path:
    """A data folder with the first scenes of each split of data/traffic."""
    folder.mkdir(parents=True)
    shutil.copy(TRAFFIC / "data.yaml", folder)
    for split, number in SCENES.items():
        for kind in ("images", "labels"):
            (folder / split / kind).mkdir(parents=True)
            for path in sorted((TRAFFIC / split / kind).iterdir())[:number]:
                shutil.copy(path, folder / split / kind)
    return folder


def write_prepared(folder: Path) -> Path:
    """What notebook 02 would leave of the first scenes of each split, with the shipped pairs."""
    for split, number in SCENES.items():
        records = data.read_records(TRAFFIC / f"preferences_{split}.jsonl")[:number]
        data.write_records(folder / f"{split}.jsonl", records)
    write_json(folder / "about.json", {**data.SHIPPED_ABOUT, "data": str(folder)})
    return folder


def run_own(folder: Path, **chosen: Any) -> Path:
    """Run notebooks 02 to 07 in short on own data (DATA=…) or a shipped task (TASK=…).

    Of a task, the later ones get as many records of each split as they get scenes elsewhere.
    Returns the artifacts.
    """
    artifacts = folder / "artifacts"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("VLM_ARTIFACTS", str(artifacts))
        for name in CHAIN[1:]:
            values = dict(VALUES.get(name[:2], {}))
            if name.startswith("02"):
                values |= chosen
            pages = artifacts / "report" / "notebooks"
            notebooks.run_notebook(name, values, html_folder=pages)
            if name.startswith("02") and "TASK" in chosen:
                shorten_prepared(artifacts / "preferences")
    return artifacts


def shorten_prepared(folder: Path) -> None:
    """Keep the first records and questions of each split that notebook 02 has made."""
    for split, number in SCENES.items():
        for name in (f"{split}.jsonl", f"{split}-questions.jsonl"):
            lines = (folder / name).read_text(encoding="utf-8").splitlines(keepends=True)
            (folder / name).write_text("".join(lines[:number]), encoding="utf-8")


def run_chain(folder: Path, short: bool, model: Path | None = None) -> Path:
    """Run all notebooks one after the other, in short or with their defaults; the artifacts.

    model: a checkpoint in place of the task's.
    """
    artifacts = folder / "artifacts"
    values = {name: VALUES.get(name[:2], {}) for name in CHAIN} if short else {}
    if short:
        first = next(name for name in CHAIN if name.startswith("02"))
        values[first] = {**values[first], "DATA": str(write_scenes(folder / "scenes"))}
    if model is not None:
        for name in CHAIN[:2]:  # the others take it from there
            values[name] = {**values[name], "MODEL": str(model)}
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("VLM_ARTIFACTS", str(artifacts))
        for name in CHAIN:
            pages = artifacts / "report" / "notebooks"
            notebooks.run_notebook(name, values.get(name), html_folder=pages)
    return artifacts
