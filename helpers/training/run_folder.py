"""The folder of a run: logs and checkpoint while it trains, then the policy and how it was made.

    log.jsonl, samples.jsonl    figures of each iteration of PPO, and some of its sampled answers
    checkpoint-STEP             the whole state of PPO; a run that was cut off goes on from it
    adapter_model.safetensors   the trained adapter, with `about.json` on how it was made
    log.json                    the log of SFT or DPO
    validation_answers.json     greedy answers before saving: a policy that is loaded gives the same

Taught in notebooks 04 and 05; the recipes use it, too.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from accelerate import PartialState
from peft import PeftModel
from transformers import ProcessorMixin

from helpers import models
from helpers.config import DPOSettings, PPOSettings, SFTSettings
from helpers.data import PreferenceRecord, Task, file_of, tasks_of
from helpers.files import write_figures, write_json
from helpers.models import VLM
from helpers.rewards import Scorer, right_share
from helpers.statistics import Proportion

from .ppo import PPOTrainer, Watcher
from .watch import JSONLog, SampleLog, TensorBoard


def ppo_trainer(
    model: VLM,
    processor: ProcessorMixin,
    tasks: Sequence[Task],
    score: Scorer,
    settings: PPOSettings,
    folder: Path,
    *,
    seed: int = 0,
    reference: str | None = None,
    truth: Scorer | None = None,
    watch: Sequence[Watcher] = (),
    cache: Path | None = None,
    replace_other: bool = False,
    tensorboard: bool = False,
) -> PPOTrainer:
    """A `PPOTrainer` with logs and checkpoints in `folder`; only the first process writes logs.

    A run that was cut off goes on. A folder that holds another run is refused, or with
    `replace_other` set aside under another name. reference: as `PPOTrainer` has it. cache: a folder
    for image features, which several runs may share. Raises UsageError if `tensorboard` is wanted
    and not installed.
    """
    watchers = list(watch)
    if PartialState().is_main_process:
        # after the others, which may add figures to the log
        watchers += [JSONLog(folder / "log.jsonl"), SampleLog(folder / "samples.jsonl")]
        if tensorboard:
            watchers.append(TensorBoard(folder / "tensorboard"))
    return PPOTrainer(
        model,
        processor,
        tasks,
        score,
        settings,
        seed=seed,
        reference=reference,
        truth=truth,
        watch=watchers,
        folder=folder,
        replace_other=replace_other,
        cache=cache,
    )


def save_policy(
    model: PeftModel,
    folder: Path,
    settings: SFTSettings | DPOSettings | PPOSettings,
    about: Mapping[str, Any],
    log: Sequence[Mapping[str, float]] = (),
) -> Path:
    """Save a trained adapter and how it was made; a log, if there is one, goes to `log.json`.

    about: the base, its `max_pixels`, the seed, the data and, of PPO, the `reward` that trained it,
    so that nobody takes that for an independent judge. The settings are added to it.
    """
    models.save_adapter(model, folder, {**about, "settings": asdict(settings)})
    if log:
        write_figures(folder / "log.json", list(log))
    return folder


def save_answers(
    model: VLM,
    processor: ProcessorMixin,
    records: Sequence[PreferenceRecord],
    folder: Path,
) -> Proportion | None:
    """Write the greedy answers to `records` beside the adapter; the share of them that is right.

    None if no truth is known. Notebook 07 asks the saved policy again, and its answers must be the
    same.
    """
    answers = models.answer_records(model, processor, records)
    value = {"records": file_of(records), "answers": answers}
    write_json(folder / "validation_answers.json", value)
    return right_share(tasks_of(records), answers)
