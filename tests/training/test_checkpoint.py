"""A run that was stopped or killed goes on bit for bit, only with the data and settings it had."""

import dataclasses
import os
import shutil
import signal
import subprocess
import sys
import time

import pytest
import torch
from small_ppo import RECORDS, SMALL, finished, same, trainer, weights

from helpers import models
from helpers.files import ROOT, UsageError
from helpers.rewards.scoring import count_exact, count_graded
from helpers.training import checkpoint as ppo_checkpoint
from helpers.training.ppo import PPOTrainer
from helpers.training.rollout import tasks_of

pytestmark = pytest.mark.heavy(reason="trains the tiny model")


def test_a_stopped_run_goes_on_bit_for_bit_from_another_folder(tmp_path):
    whole = finished(tmp_path / "whole")

    def stop(run):
        run.stopped = run.iteration == 2

    settings = whole.settings
    first = trainer(settings, checkpoint=tmp_path / "first" / "run.pt", watch=[stop])
    first.train()
    assert first.iteration == 2
    shutil.move(tmp_path / "first", tmp_path / "drive")
    second = trainer(settings, checkpoint=tmp_path / "drive" / "run.pt")
    second.train()
    same(whole, second)


def test_a_run_of_other_data_settings_or_base_is_not_gone_on_with(tmp_path):
    finished(tmp_path, iterations=1)
    settings = dataclasses.replace(SMALL, iterations=1, kl_target=1.0, critic_adapter=True)
    path = tmp_path / "run.pt"
    for change in ({"seed": 1}, {"score": count_exact}):
        with pytest.raises(
            UsageError, match="of a run with other seed" if "seed" in change else "other reward"
        ):
            trainer(settings, checkpoint=path, **change).train()
    with pytest.raises(UsageError, match="other settings"):
        trainer(dataclasses.replace(settings, clip=0.1), checkpoint=path).train()
    base, processor = models.load_model("tiny")
    with pytest.raises(UsageError, match="other data"):
        PPOTrainer(
            base, processor, tasks_of(RECORDS[:-1]), count_graded, settings, checkpoint=path
        ).train()
    base, processor = models.load_model("tiny", four_bit=False)
    with pytest.raises(UsageError, match="base model"):
        PPOTrainer(
            base, processor, tasks_of(RECORDS), count_graded, settings, checkpoint=path
        ).train()
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(UsageError, match="cannot be read"):
        trainer(settings, checkpoint=path).train()


def test_a_run_goes_on_where_fewer_prompts_fit_at_once(tmp_path, capsys):
    finished(tmp_path, iterations=1)
    settings = dataclasses.replace(
        SMALL, iterations=2, kl_target=1.0, critic_adapter=True, sampling_batch=2
    )
    run = trainer(dataclasses.replace(settings, iterations=1), checkpoint=tmp_path / "run.pt")
    run.train()
    assert run.iteration == 1 and "Going on after iteration 1 of 1" in capsys.readouterr().out


def test_a_kill_while_writing_leaves_the_checkpoint_before(tmp_path, monkeypatch):
    path = tmp_path / "run.pt"
    ppo_checkpoint.save_checkpoint(path, {"identity": {}, "iteration": 1})

    def broken(state, file):
        file.write_bytes(b"half")
        raise KeyboardInterrupt

    monkeypatch.setattr(torch, "save", broken)
    with pytest.raises(KeyboardInterrupt):
        ppo_checkpoint.save_checkpoint(path, {"identity": {}, "iteration": 2})
    assert ppo_checkpoint.load_checkpoint(path, {})["iteration"] == 1 and [*tmp_path.iterdir()] == [
        path
    ]


SCRIPT = """
import dataclasses, sys, torch
from pathlib import Path
sys.path.insert(0, {tests!r})
import small_ppo
run = small_ppo.finished(Path({folder!r}))
if run.accelerator.is_main_process:
    torch.save(({{n: p for n, p in small_ppo.weights(run).items() if "lora_" in n}}, run.log), {folder!r} + "/end.pt")
"""


def command(folder) -> tuple[list[str], dict[str, str]]:
    folder.mkdir(exist_ok=True)
    script = folder / "run.py"
    script.write_text(SCRIPT.format(tests=str(ROOT / "tests"), folder=str(folder)))
    environment = {"ACCELERATE_USE_CPU": "true", "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    return [sys.executable, str(script)], os.environ | environment


def test_a_run_killed_twice_ends_as_one_that_was_not(tmp_path):
    """SIGKILL as soon as the first checkpoint is there, and again in the middle of what comes next."""
    call, environment = command(tmp_path / "killed")
    for wait in (0.0, 1.0):
        process = subprocess.Popen(
            call, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        path, seen = tmp_path / "killed" / "run.pt", None
        seen = path.stat().st_mtime_ns if path.exists() else None
        deadline = time.monotonic() + 120
        while time.monotonic() < deadline and process.poll() is None:
            if path.exists() and path.stat().st_mtime_ns != seen:
                break
            time.sleep(0.02)
        time.sleep(wait)
        process.send_signal(signal.SIGKILL)
        process.wait()
    assert path.exists()
    subprocess.run(call, env=environment, check=True, capture_output=True, timeout=300)
    trained, log = torch.load(tmp_path / "killed" / "end.pt", weights_only=True)
    whole = weights(finished(tmp_path / "whole"))
    assert len(log) == 4 and trained.keys() == {name for name in whole if "lora_" in name}
    assert all(torch.equal(value, whole[name]) for name, value in trained.items())
