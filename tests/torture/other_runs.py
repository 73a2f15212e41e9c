"""A finished run that is started again with something else: refused, never taken for the other.

Every setting of every stage is changed, one at a time, and so are the seed and the data.
"""

import json
import random
import re
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import fields
from functools import partial
from pathlib import Path
from typing import Any

from helpers.files import write_lines
from helpers.recipes import read_recipe
from helpers.training.checkpoint import NOT_IN_IDENTITY

from . import children
from .outcome import SURVIVED, Outcome, Trial
from .runs import RECIPE, copy_run, run_stage

FEWER = "half of the records"
# those that train a model
STAGES = ("reward", "sft", "dpo", "ppo")
# Settings whose other values follow no rule, or have to go together
OTHERS = {
    "losses": ["ipo"],
    "loss_weights": [0.5],
    "dpo.label_smoothing": None,  # its loss has none
    "objective": None,  # of [reward]: objectives
    "head": None,
    "pooling": "last",
    "advantages": "grpo",
    "policy_loss": None,  # there is one
    "rollout_filter": None,
    "kl_estimator": "k3",
    "critic_layers": 1,
    "kl_target": 2.0,
    "ratio_tolerance": 0.5,
    "shards": 2,
    "target_modules": ["q_proj", "v_proj"],
    "accumulation": 2,
    "batch_size": 2,
    "prompts_per_iteration": 2,
    "mini_batch": 2,
    "group_size": 2,
    "top_p": 0.9,
}


def other_run_trials(
    whole: Path, home: Path, draws: random.Random, stages: Sequence[str] = STAGES
) -> Iterator[Trial]:
    """One change of one of the stages that `whole` has finished, in an order that is drawn."""
    changes = [change for stage in stages for change in _changes(stage)]
    draws.shuffle(changes)
    for number, (stage, name, value) in enumerate(changes):
        folder = home / f"other-{number}"
        yield partial(_start_other, whole, folder, stage, name, value)


def _changes(stage: str) -> Iterator[tuple[str, str, Any]]:
    """(stage, name for --set, another value) of all that a run depends on."""
    recipe = read_recipe(RECIPE)
    settings = getattr(recipe, f"{stage}_settings")()
    for place, part in (("settings.", settings), ("settings.lora.", settings.lora)):
        for field in fields(part):
            if field.name == "lora":
                continue
            value = getattr(part, field.name)
            other = OTHERS.get(field.name, _another(value))
            # of one stage alone
            other = OTHERS.get(f"{stage}.{field.name}", other)
            if other is not None:
                yield stage, f"{stage}.{place}{field.name}", other
    yield stage, "seed", 7
    yield stage, "data", FEWER
    yield stage, "data", "another word in a question"


def _another(value: Any) -> Any:
    """Another value of the same kind; None if there is no rule for it."""
    if isinstance(value, bool):
        return not value
    if isinstance(value, int):
        return value + 1
    if isinstance(value, float):
        return value / 2 if value else 0.125
    return None


def _start_other(whole: Path, folder: Path, stage: str, name: str, value: Any) -> Outcome:
    copy_run(whole, folder)
    what = f"{stage}, {name}={value!r}"
    changes = []
    if name == "data":
        # PPO asks, the others learn from the ranked answers
        read = "train-questions.jsonl" if stage == "ppo" else "train-ranked.jsonl"
        _change_data(folder / "data" / read, value)
    else:
        changes = ["--set", f"{name}={value!r}"]
    ended = children.run(run_stage, folder, stage, changes)
    refused = re.search(r"error: .*: of a run with other ", ended.text)
    if ended.has_traceback:
        return Outcome("raw traceback", f"{what}\n{ended.text[-1500:]}")
    if name.rpartition(".")[2] in NOT_IN_IDENTITY:
        # they change no weight, so that the run is the same one
        if ended.code != 0:
            return Outcome("lost", f"{what}\n{ended.text[-1500:]}")
    elif not refused:
        return Outcome("silently wrong", f"{what}: ends with {ended.code}\n{ended.text[-1500:]}")
    shutil.rmtree(folder)
    return SURVIVED


def _change_data(path: Path, change: str) -> None:
    """Change a file of records or questions that a stage learns from."""
    lines = path.read_text(encoding="utf-8").splitlines()
    rows = [json.loads(line) for line in lines]
    if change == FEWER:
        rows = rows[: len(rows) // 2]
    else:
        for row in rows:
            row["prompt"][-1]["content"] += " Now?"
    write_lines(path, map(json.dumps, rows))
