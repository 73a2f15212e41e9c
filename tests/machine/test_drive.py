"""Lost sessions: checkpoints that were cut off are not taken, and copies on a drive that fails do no harm."""

import errno
import json
import os
import shutil
import sys
import time
from types import ModuleType, SimpleNamespace

import pytest
from transformers.trainer_utils import get_last_checkpoint

from helpers.data import vote_log
from helpers.files import UsageError
from helpers.machine import drive
from helpers.machine.checkpoints import IDENTITY_FILE, seal_checkpoint
from helpers.machine.drive import DriveCopies, last_checkpoints


def written(path, text="x", age=100.0):
    """A file whose last change was `age` seconds ago."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    os.utime(path, (time.time() - age, time.time() - age))
    return path


def checkpoint(run, step, steps=400, whole=True, age=100.0, stage="DPO", moments="moments"):
    """What TRL leaves in a checkpoint, in the order of writing; identity.json is the last."""
    folder = run / f"checkpoint-{step}"
    written(folder / "adapter_model.safetensors", "weights", age)
    written(folder / "optimizer.pt", moments, age)
    if whole:
        name = "iterations" if stage == "PPO" else "steps"
        identity = {"stage": stage} | ({name: str(steps)} if steps else {})
        seal_checkpoint(folder, identity)
        os.utime(folder / IDENTITY_FILE, (time.time() - age, time.time() - age))
    return folder


@pytest.fixture
def copies(tmp_path):
    """local/ and drive/, both there and empty."""
    for name in ("local", "drive"):
        (tmp_path / name).mkdir()
    return DriveCopies(tmp_path / "drive", tmp_path / "local")


# What there is to go on from


def test_the_newest_whole_checkpoint_wins(artifacts):
    run = artifacts / "dpo" / "seed-0"
    for step in (50, 100, 200):
        checkpoint(run, step, whole=step < 200)
    (found,) = last_checkpoints(artifacts)
    assert (found.run, found.step, found.steps, found.path) == (
        "dpo/seed-0",
        100,
        400,
        run / "checkpoint-100",
    )
    assert str(found) == "dpo/seed-0: step 100 of 400 → goes on by itself"


@pytest.mark.parametrize("damage", ["identity.json", "optimizer.pt"])
def test_a_checkpoint_that_was_cut_off_is_named_and_not_taken(artifacts, damage, capsys):
    """transformers' `get_last_checkpoint` goes by the number alone and would take it."""
    run = artifacts / "dpo" / "seed-1"
    checkpoint(run, 50)
    text = (checkpoint(run, 100) / damage).read_text()
    (run / "checkpoint-100" / damage).write_text(text[:5] if damage.endswith("json") else "")
    assert get_last_checkpoint(str(run)).endswith("checkpoint-100")
    drive.print_checkpoints()
    first, second = capsys.readouterr().out.splitlines()
    assert first == "dpo/seed-1: step 50 of 400 → goes on by itself"
    assert second.startswith("⚠️") and second.endswith(
        "checkpoint-100 was cut off while it was written, and is passed over."
    )


def test_runs_of_all_stages_are_found(artifacts, capsys):
    checkpoint(artifacts / "dpo" / "seed-0", 400)
    checkpoint(artifacts / "dpo" / "seed-0.old-1", 50)
    checkpoint(artifacts / "ppo" / "grpo", 35, 36, stage="PPO")
    checkpoint(artifacts / "ppo" / "rloo", 20, 36, stage="PPO")
    checkpoint(artifacts / "ppo" / "ppo", 5, whole=False)
    # saved after its last checkpoint
    written(artifacts / "ppo" / "grpo" / "adapter_config.json", age=-5)
    checkpoint(artifacts / "reward" / "mlp-bradley_terry-0", 30, None, stage="reward model")
    drive.print_checkpoints()
    cut_off = artifacts / "ppo" / "ppo" / "checkpoint-5"
    assert capsys.readouterr().out.splitlines() == [
        "dpo/seed-0: step 400 of 400, finished",
        "ppo/grpo: step 35 of 36, finished",
        "ppo/rloo: step 20 of 36 → goes on by itself",
        "reward/mlp-bradley_terry-0: step 30 → goes on by itself",
        f"⚠️  {cut_off} was cut off while it was written, and is passed over.",
    ]


def test_no_checkpoint_is_said(artifacts, capsys):
    drive.print_checkpoints()
    assert capsys.readouterr().out == f"No checkpoint in {artifacts}.\n"


def test_real_checkpoints_are_read(artifacts):
    """As `Checkpoints` writes them, with the settings that make a run of PPO what it is."""
    from helpers.config import ppo_preset
    from helpers.training.checkpoint import Checkpoints

    identity = {"stage": "PPO", "iterations": repr(ppo_preset("tiny").iterations), "seed": "0"}
    Checkpoints(artifacts / "ppo" / "ppo", identity).save(5, {"weights": {}})
    (found,) = last_checkpoints(artifacts)
    assert (found.step, found.steps) == (5, ppo_preset("tiny").iterations)


# Copies


def test_what_is_finished_is_copied_and_what_is_not_is_left(copies):
    written(copies.local / "preferences" / "train.jsonl", "new")
    written(copies.local / "ppo" / "ppo" / ".checkpoint-7.part" / "state.pt")
    written(copies.local / "cache" / "features" / "a.pt")
    written(copies.local / "log.jsonl", age=-5)  # may still be written
    trainer = copies.local / "dpo" / "seed-0"
    checkpoint(trainer, 50)
    checkpoint(trainer, 100, whole=False)
    assert copies.keep() == 2
    there = sorted(str(p.relative_to(copies.drive)) for p in copies.drive.rglob("*") if p.is_file())
    place = os.path.join("dpo", "seed-0", "checkpoint-50", "")
    assert there == [
        *(place + name for name in ("adapter_model.safetensors", "identity.json", "optimizer.pt")),
        os.path.join("preferences", "train.jsonl"),
    ]
    assert copies.keep() == 0
    written(copies.local / "preferences" / "train.jsonl", "newer", age=50)
    assert (
        copies.keep() == 1 and (copies.drive / "preferences" / "train.jsonl").read_text() == "newer"
    )


def test_restore_fetches_what_is_newer_and_leaves_newer_local_files_alone(copies):
    for place, ages in ((copies.local, (10, 500, 100)), (copies.drive, (50, 50, 100))):
        for name, age in zip(("local_newer", "drive_newer", "same"), ages, strict=True):
            written(place / name, place.name, age)
    written(copies.drive / "only" / "there", "drive")
    checkpoint(copies.drive / "dpo" / "seed-0", 50)
    checkpoint(copies.drive / "dpo" / "seed-0", 100, whole=False)  # Drive writes late
    assert copies.restore() == 3
    read = {
        name: (copies.local / name).read_text() for name in ("local_newer", "drive_newer", "same")
    }
    assert read == {"local_newer": "local", "drive_newer": "drive", "same": "local"}
    assert (copies.local / "only" / "there").exists()
    assert [found.step for found in last_checkpoints(copies.local)] == [50]
    assert copies.restore() == 0


@pytest.mark.parametrize("what", ["file", "folder"])
def test_a_copy_is_whole_or_not_there(copies, what, monkeypatch):
    """Killed in the middle of copying: the old copy is left as it was, and the next attempt ends well."""
    if what == "file":
        old = written(copies.drive / "adapter", "old", age=500)
        written(copies.local / "adapter", "new")
    else:
        old = checkpoint(copies.drive / "dpo" / "a", 50, age=500) / "optimizer.pt"
        checkpoint(copies.local / "dpo" / "a", 50, moments="new")
    before = old.read_text()

    def killed(source, target):
        if source.is_dir():
            target.mkdir()
            source, target = source / "optimizer.pt", target / "optimizer.pt"
        target.write_text(source.read_text()[:1])
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(shutil, "copy2", killed)
        patch.setattr(shutil, "copytree", killed)
        with pytest.raises(KeyboardInterrupt):
            copies.keep()
    assert old.read_text() == before
    assert copies.keep() == 1 and old.read_text() == "new"
    assert not [path for path in copies.drive.rglob("*") if path.name.endswith(".part")]


def vote(record, annotator, undo=False):
    """A line of a file of votes."""
    event = {"record": record, "content": "c"}
    if undo:
        return json.dumps(event | {"undo": annotator}) + "\n"
    judgement = {"kind": "human", "annotator": annotator, "verdict": "skip"}
    return json.dumps(event | {"judgement": judgement}) + "\n"


def counted(path):
    """Which votes of a file count."""
    events, _ = vote_log.read_events(path)
    return set(vote_log.current_judgements(events))


@pytest.mark.parametrize("name", ["preferences/votes-tiny-0.jsonl", "arena/dpo-0.votes.jsonl"])
def test_two_people_who_vote_on_one_drive_lose_nothing(copies, tmp_path, name):
    """Each on a machine of their own, which copied the whole file over the other's."""
    other = DriveCopies(copies.drive, tmp_path / "other")
    for machine, annotator in ((copies, "ana"), (other, "ben")):
        lines = vote("1", annotator) + vote("1", annotator, undo=True) + vote("2", annotator)
        written(machine.local / name, lines + vote("2", annotator, undo=True))
    for machine in (copies, other, copies, other):
        machine.keep()
    assert counted(copies.drive / name) == set()
    written(other.local / name, (other.local / name).read_text() + vote("3", "ben"))
    written(copies.local / name, (copies.local / name).read_text() + vote("3", "ana"))
    for machine in (other, copies, other):
        machine.keep()
    assert counted(copies.drive / name) == {("3", "ben"), ("3", "ana")}
    # nothing is written twice, and a new machine has all of it
    size = (copies.drive / name).stat().st_size
    assert copies.keep() == 0 and (copies.drive / name).stat().st_size == size
    third = DriveCopies(copies.drive, tmp_path / "third")
    third.local.mkdir()
    assert third.restore() == 1
    assert counted(third.local / name) == counted(copies.drive / name)


def test_a_drive_that_fails_is_said_once_and_stops_nothing(copies, monkeypatch, capsys):
    written(copies.local / "adapter")

    def dropped(*_):
        raise OSError(errno.ENOTCONN, "Transport endpoint is not connected")

    with monkeypatch.context() as patch:
        patch.setattr(shutil, "copy2", dropped)
        assert copies.keep() == copies.keep() == 0
    said = capsys.readouterr().out
    assert (
        said.count("\n") == 1
        and "Transport endpoint is not connected" in said
        and "Work goes on" in said
    )
    assert copies.keep() == 1  # it is there again


def test_a_mount_that_is_lost_is_not_replaced_by_a_folder_of_its_name(copies, capsys):
    written(copies.local / "adapter")
    copies.drive.rmdir()
    assert copies.keep() == 0 and not copies.drive.exists()
    assert "it is not there any more" in capsys.readouterr().out


def test_a_checkpoint_that_the_trainer_removes_meanwhile_is_no_failure(copies, monkeypatch, capsys):
    gone = checkpoint(copies.local / "dpo" / "a", 50)
    written(copies.local / "zebra")
    copytree = shutil.copytree

    def removed(source, target):
        shutil.rmtree(gone)
        copytree(source, target)

    monkeypatch.setattr(shutil, "copytree", removed)
    assert copies.keep() == 1 and capsys.readouterr().out == ""
    assert (copies.drive / "zebra").exists()


def test_checkpoints_that_newer_ones_have_replaced_do_not_pile_up(copies):
    trainer = copies.local / "dpo" / "a"
    for step in (50, 100, 150):
        checkpoint(trainer, step)
        if step > 100:
            shutil.rmtree(trainer / f"checkpoint-{step - 100}")  # save_total_limit=2
        copies.keep()
    there = copies.drive / "dpo" / "a"
    assert sorted(path.name for path in there.iterdir()) == ["checkpoint-100", "checkpoint-150"]
    shutil.rmtree(copies.local / "dpo")  # a session was lost: nothing is removed
    copies.keep()
    assert len(list(there.iterdir())) == 2


def test_checkpoints_of_a_run_that_was_set_aside_move_with_it(copies):
    """Else the next session would find the old run's, with a higher step, beside the new run's."""
    run = copies.local / "dpo" / "a"
    checkpoint(run, 150)
    copies.keep()
    run.rename(run.with_name("a.old-1"))
    checkpoint(run, 50, steps=80)
    copies.keep()
    there = sorted(path.name for path in (copies.drive / "dpo").glob("*/checkpoint-*"))
    assert there == ["checkpoint-150", "checkpoint-50"]
    assert (copies.drive / "dpo" / "a.old-1" / "checkpoint-150").is_dir()


def test_a_checkpoint_that_is_on_drive_in_part_is_not_fetched(copies):
    """The drive has its last file, and not yet all of another one."""
    folder = checkpoint(copies.drive / "dpo" / "a", 50)
    written(folder / "optimizer.pt", "mom")
    assert copies.restore() == 0 and not (copies.local / "dpo").exists()


def test_it_runs_by_itself(copies):
    written(copies.local / "adapter")
    copies.every = 0.01
    copies.start()
    copies.start()  # the set-up cell a second time
    for _ in range(500):
        if (copies.drive / "adapter").exists():
            break
        time.sleep(0.01)
    copies.stop.set()
    copies.thread.join(5)
    assert (copies.drive / "adapter").exists() and not copies.thread.is_alive()


# The line of the set-up cell


@pytest.fixture
def colab(artifacts, tmp_path, monkeypatch):
    """Colab with a Drive; `mounted` counts, `error` is raised, `started` are the copies that run."""
    state = SimpleNamespace(
        mounted=0, started=[], error=None, folder=tmp_path / "mount" / "MyDrive" / "vlm"
    )

    def mount(path):
        state.mounted += 1
        if state.error:
            raise state.error

    google = ModuleType("google.colab")
    google.drive = SimpleNamespace(mount=mount)
    monkeypatch.setitem(sys.modules, "google.colab", google)
    monkeypatch.setattr(drive, "DRIVE_MOUNT", tmp_path / "mount")
    monkeypatch.setattr(DriveCopies, "start", lambda self: state.started.append(self))
    return state


def test_use_drive_restores_and_says_how_to_go_on(colab, artifacts, capsys):
    checkpoint(colab.folder / "dpo" / "seed-0", 50)
    drive.use_drive("vlm")
    drive.use_drive("vlm")
    said = capsys.readouterr().out.splitlines()
    assert said[0].endswith(
        "vlm: 1 files and checkpoints fetched; from now on it is brought up to date."
    )
    assert said[1] == "dpo/seed-0: step 50 of 400 → goes on by itself" and ": 0 files" in said[2]
    assert (artifacts / "dpo" / "seed-0" / "checkpoint-50").is_dir()
    assert len(set(map(id, colab.started))) == 1 and colab.mounted == 2, (
        "one thread, however often it is asked for"
    )


@pytest.mark.parametrize(
    ("reply", "folder"),
    [("", "vlm-alignment"), ("mine ", "mine"), ("no", ""), ("N", ""), (EOFError, "")],
)
def test_colab_is_asked_once_for_its_drive(colab, artifacts, monkeypatch, capsys, reply, folder):
    """Every notebook has a machine of its own there: without, 03 never sees what 02 has made."""
    monkeypatch.setattr(drive, "hosted_machine", lambda: drive.COLAB)
    asked = []

    def read_reply(prompt):
        asked.append(prompt)
        if reply is EOFError:
            raise EOFError
        return reply

    assert drive.ask_for_drive(read_reply) == folder
    said = capsys.readouterr().out
    assert "every notebook has a machine of its own" in said and "is lost" in said
    assert drive.ask_for_drive(read_reply) == folder
    assert len(asked) == (2 if reply is EOFError else 1)


def test_elsewhere_nothing_is_asked(artifacts, capsys):
    assert drive.ask_for_drive(pytest.fail) == "" and capsys.readouterr().out == ""


def test_use_drive_does_nothing_unless_asked(colab, capsys):
    drive.use_drive("")
    assert (colab.mounted, capsys.readouterr().out, colab.started) == (0, "", [])


def test_use_drive_refuses_in_one_line(colab, monkeypatch):
    colab.error = ValueError("mount failed")
    with pytest.raises(
        UsageError, match=r"not mounted \(mount failed\). Allow it, or set DRIVE = ''"
    ):
        drive.use_drive("vlm")
    colab.error = None
    colab.folder.parent.mkdir(parents=True)
    colab.folder.write_text("a file of that name")
    with pytest.raises(UsageError, match="cannot be used"):
        drive.use_drive("vlm")
    monkeypatch.delitem(sys.modules, "google.colab")
    monkeypatch.delenv("COLAB_RELEASE_TAG", raising=False)
    with pytest.raises(UsageError, match="DRIVE is for Google Colab"):
        drive.use_drive("vlm")


def test_on_kaggle_one_line_says_that_there_is_no_drive(colab, monkeypatch, capsys):
    monkeypatch.setenv("KAGGLE_KERNEL_RUN_TYPE", "Interactive")  # its image has google.colab, too
    drive.use_drive("vlm")
    said = '⚠️  DRIVE is for Google Colab and does nothing here. Kaggle keeps /kaggle/working by "Save Version".\n'
    assert (colab.mounted, capsys.readouterr().out, colab.started) == (0, said, [])


def test_any_folder_will_do_if_its_path_is_absolute(colab, artifacts, tmp_path):
    written(tmp_path / "disk" / "arena" / "votes.jsonl")
    drive.use_drive(str(tmp_path / "disk"))
    assert (artifacts / "arena" / "votes.jsonl").exists() and colab.mounted == 0


def test_times_of_drive_may_be_coarse():
    assert drive.QUIET_SECONDS > drive.CLOCK_SECONDS, (
        "else a file written to within that time would never be copied again"
    )
