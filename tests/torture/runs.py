"""A small run of every stage: its parts, and what it leaves."""

import json
import shutil
from collections.abc import Sequence
from pathlib import Path

from helpers import cli
from helpers.files import file_hash

RECIPE = Path(__file__).with_name("recipe.toml")
STAGES = ("data", "rank", "features", "captions", "reward", "sft", "dpo", "ppo", "evaluate")
# They only say how long something took
TIMES = ("seconds", "tokens_per_second")
LOGS = (".json", ".jsonl")


def run_stage(folder: Path, stage: str, changes: Sequence[str] = ()) -> int:
    """Run a stage by its command, in this process; its exit code. changes: further arguments."""
    command = ["train", "--config", str(RECIPE), "--out", str(folder), "--stage", stage]
    return cli.main([*command, *changes])


def copy_run(folder: Path, to: Path) -> Path:
    """Copy a run as it is."""
    shutil.rmtree(to, ignore_errors=True)
    shutil.copytree(folder, to)
    return to


def left_in(folder: Path) -> dict[str, object]:
    """What a run has left, by file: logs and figures without times, hashes of the rest.

    Checkpoints and caches are no part of it, nor what a kill leaves under a temporary name.
    """
    found = {}
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder).as_posix()
        parts = name.split("/")
        hidden = any(part.startswith((".", "checkpoint-")) for part in parts)
        if path.is_dir() or hidden or parts[0] == "cache":
            continue
        if path.name == "files.json":
            continue  # hashes of files that are compared themselves
        found[name] = _rows(path) if path.suffix in LOGS else file_hash(path)
    return found


def _rows(path: Path) -> list[object]:
    text = path.read_text(encoding="utf-8")
    lines = text.splitlines() if path.suffix == ".jsonl" else [text]
    return [json.loads(line, object_hook=_without_times) for line in lines]


def _without_times(value: dict) -> dict:
    # in one order: a log that was read back from a checkpoint has another one
    return {name: part for name, part in sorted(value.items()) if name not in TIMES}


def compare(found: dict[str, object], whole: dict[str, object]) -> tuple[str, str]:
    """What is another thing than in the whole run: kind of an outcome, and words on it."""
    for name in sorted(whole.keys() - found.keys()):
        return "lost", f"{name} is missing"
    for name in sorted(found.keys() - whole.keys()):
        return "doubled", f"{name} is too much"
    for name, value in whole.items():
        other = found[name]
        if repr(other) == repr(value):  # NaN is equal to itself here
            continue
        if isinstance(value, list) and len(other) != len(value):
            kind = "lost" if len(other) < len(value) else "doubled"
            return kind, f"{name} has {len(other)} lines in place of {len(value)}"
        return "silently wrong", f"{name} is another one"
    return "survived", ""
