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
from helpers.data.tasks import tasks_of
from helpers.doctor import PPODoctor
from helpers.files import ROOT, UsageError
from helpers.rewards.scoring import count_exact, count_graded, make_scorer
from helpers.training import warm_up
from helpers.training.ppo import PPOTrainer
from helpers.training.warm_up import warm_up_critic
from helpers.training.watch import HeldOutAnswers, JSONLog

pytestmark = pytest.mark.heavy(reason="trains the tiny model")

constant = make_scorer("constant", lambda *given: {"constant": 0.5})


def test_a_stopped_run_goes_on_bit_for_bit_from_another_folder(tmp_path):
    whole = finished(tmp_path / "whole")

    def stop(run):
        run.stopped = run.iteration == 2

    settings = whole.settings
    first = trainer(settings, folder=tmp_path / "first", watch=[stop])
    first.train()
    assert first.iteration == 2
    shutil.move(tmp_path / "first", tmp_path / "drive")
    second = trainer(settings, folder=tmp_path / "drive")
    assert second.iteration == 2 and second.seconds == first.seconds
    second.train()
    same(whole, second)


def test_a_run_of_other_data_settings_or_base_is_not_gone_on_with(tmp_path):
    finished(tmp_path, iterations=1)
    settings = dataclasses.replace(SMALL, iterations=1, kl_target=1.0, critic_adapter=True)
    for change in ({"seed": 1}, {"score": count_exact}):
        (name,) = change
        with pytest.raises(UsageError, match="other seed" if name == "seed" else "other reward"):
            trainer(settings, folder=tmp_path, **change)
    with pytest.raises(UsageError, match=r"other clip \(0\.2, here 0\.1\)"):
        trainer(dataclasses.replace(settings, clip=0.1), folder=tmp_path)
    base, processor = models.load_model("tiny")
    tasks = tasks_of(RECORDS)
    with pytest.raises(UsageError, match="other data"):
        PPOTrainer(base, processor, tasks[:-1], count_graded, settings, folder=tmp_path)
    base, processor = models.load_model("tiny", four_bit=False)
    with pytest.raises(UsageError, match="base model"):
        PPOTrainer(base, processor, tasks, count_graded, settings, folder=tmp_path)
    # what the policy has learnt before is also a part of the run
    trained = models.add_adapter(models.load_model("tiny")[0], settings.lora, seed=5)
    with pytest.raises(UsageError, match="adapter at the start"):
        trainer(settings, model=trained, folder=tmp_path)


def test_another_run_may_take_the_folder_of_one_that_is_set_aside(tmp_path, capsys):
    folder = tmp_path / "ppo"
    finished(folder, iterations=1)
    settings = dataclasses.replace(SMALL, iterations=1)
    run = trainer(settings, folder=folder, replace_other=True)
    assert run.iteration == 0 and "ppo.old-1" in capsys.readouterr().out
    run.train()
    assert (tmp_path / "ppo.old-1" / "checkpoint-1").is_dir()
    assert (folder / "checkpoint-1").is_dir()


def test_a_finished_run_is_loaded_and_not_trained_further(tmp_path, capsys):
    """Its last iteration is kept, whatever `checkpoint_every` is."""
    settings = dataclasses.replace(SMALL, iterations=2, checkpoint_every=5, critic_adapter=True)
    first = trainer(settings, folder=tmp_path)
    first.train()
    again = trainer(settings, folder=tmp_path, watch=[lambda run: pytest.fail("trained")])
    assert "Finished after step 2" in capsys.readouterr().out
    # its critic is warm already
    assert warm_up_critic(again, again.sampler.tasks, [["No."]] * 32) == []
    assert again.train() == first.log
    same(first, again)


def test_watchers_find_in_the_log_what_they_saw_before(tmp_path):
    def watch(processor):
        return [HeldOutAnswers(processor, RECORDS[:4], every=1), PPODoctor(), JSONLog(path)]

    path = tmp_path / "log.jsonl"
    processor = models.load_processor("tiny")
    settings = dataclasses.replace(SMALL, iterations=2, kl_weight=0.0)
    held_out, doctor, _ = watch(processor)
    run = trainer(settings, constant, folder=tmp_path, watch=[held_out, doctor, JSONLog(path)])
    run.train()
    assert len(held_out.shares) == 2 and '"held_out/exact"' in path.read_text()
    later = watch(processor)
    again = trainer(settings, constant, folder=tmp_path, watch=later)
    assert later[0].shares == held_out.shares
    assert later[1].verdicts == doctor.verdicts and later[1].state() == doctor.state()
    assert again.stopped == run.stopped


def test_a_run_goes_on_where_fewer_prompts_fit_at_once(tmp_path, capsys):
    finished(tmp_path, iterations=1)
    settings = dataclasses.replace(SMALL, kl_target=1.0, critic_adapter=True, sampling_batch=2)
    run = trainer(dataclasses.replace(settings, iterations=1), folder=tmp_path)
    run.train()
    assert run.iteration == 1 and "Finished after step 1" in capsys.readouterr().out


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


@pytest.mark.slow(reason="four processes that train")
def test_a_run_killed_twice_ends_as_one_that_was_not(tmp_path):
    """SIGKILL as soon as the first checkpoint is there, and again in the middle of what comes next."""
    folder = tmp_path / "killed"
    call, environment = command(folder)
    for wait in (0.0, 1.0):
        process = subprocess.Popen(
            call, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        seen = set(folder.glob("checkpoint-*"))
        deadline = time.monotonic() + 120
        while time.monotonic() < deadline and process.poll() is None:
            if set(folder.glob("checkpoint-*")) - seen:
                break
            time.sleep(0.02)
        time.sleep(wait)
        process.send_signal(signal.SIGKILL)
        process.wait()
    assert list(folder.glob("checkpoint-*"))
    subprocess.run(call, env=environment, check=True, capture_output=True, timeout=300)
    trained, log = torch.load(folder / "end.pt", weights_only=True)
    whole = weights(finished(tmp_path / "whole"))
    assert len(log) == 4 and trained.keys() == {name for name in whole if "lora_" in name}
    assert all(torch.equal(value, whole[name]) for name, value in trained.items())


def test_a_warm_up_that_was_cut_off_goes_on_bit_for_bit(tmp_path, monkeypatch, capsys):
    """Killed in the second of three epochs; afterwards with other answers, which begins anew."""
    settings = dataclasses.replace(SMALL, critic_adapter=True)
    tasks, answers = tasks_of(RECORDS[:8]), [["Yes.", "No."]] * 8
    score = make_scorer("yes", lambda *given: {"yes": float(given[2] == "Yes.")})

    def warm(folder, texts=answers):
        run = trainer(settings, score, folder=folder)
        return run, warm_up_critic(run, tasks, texts, 3, prompts_per_step=4)

    whole, losses = warm(tmp_path / "whole")
    add, calls = warm_up._add_gradients, []

    def killed(*given):
        calls.append(1)
        if len(calls) == 4:
            raise KeyboardInterrupt
        return add(*given)

    monkeypatch.setattr(warm_up, "_add_gradients", killed)
    with pytest.raises(KeyboardInterrupt):
        warm(tmp_path / "cut")
    capsys.readouterr()
    again, history = warm(tmp_path / "cut")
    assert "Going on after step 1 of 3" in capsys.readouterr().out
    # the second and third epoch
    assert len(calls) == 4 + 4 and history == losses
    ours = weights(again)
    assert all(torch.equal(value, ours[name]) for name, value in weights(whole).items())
    # a run that is killed before its first checkpoint finds its critic warm
    _, history = warm(tmp_path / "cut")
    assert len(calls) == 8 and history == losses
    assert "Finished after step 3" in capsys.readouterr().out
    _, other = warm(tmp_path / "cut", [["Yes.", "Never."]] * 8)
    assert len(calls) == 8 + 6 and other != losses
