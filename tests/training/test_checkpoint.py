"""What makes two runs the same, and which checkpoint is gone on with."""

import dataclasses
import errno
import json
import shutil
import subprocess
import sys

import numpy as np
import pytest
import torch
from PIL import Image
from shipped import TRAFFIC

from helpers import models
from helpers.config import DPO_PRESETS, LoraSettings, RewardSettings
from helpers.data import read_records, to_trl, write_records
from helpers.data.tasks import tasks_of
from helpers.files import ROOT, UsageError, hold_folder
from helpers.machine.checkpoints import (
    checkpoint_identity,
    checkpoint_step,
    checkpoints_in,
    is_whole,
    last_checkpoint,
)
from helpers.rewards.catalogue import get_scorer
from helpers.rewards.scoring import Score, count_exact, count_graded, make_scorer, weighted_scorer
from helpers.rewards.similarity import cosine_scorer, tfidf_embedder
from helpers.training import checkpoint as checkpoints
from helpers.training.checkpoint import (
    NOT_IN_IDENTITY,
    Checkpoints,
    alone_in_its_folder,
    data_hash,
    reward_identity,
    run_identity,
)

HERE = {"stage": "DPO", "data": "0" * 32, "learning_rate": "0.001"}
OTHER = {"stage": "DPO", "data": "1" * 32, "learning_rate": "0.01"}


@pytest.fixture
def records(tmp_path):
    """Three records of the shipped ones, with images of their own that may be changed."""
    shown = []
    for number, record in enumerate(read_records(TRAFFIC / "preferences_train.jsonl")[:3]):
        image = tmp_path / "images" / f"{number}.png"
        image.parent.mkdir(exist_ok=True)
        shutil.copy(record.image_paths[0], image)
        shown.append(record.model_copy(update={"images": [str(image)]}, deep=True))
    return shown


# What is learnt from


@pytest.mark.parametrize("form", [list, to_trl, tasks_of], ids=["records", "pairs", "tasks"])
def test_data_are_known_by_their_content_and_not_by_their_paths(records, tmp_path, form):
    before = data_hash(form(records))
    assert data_hash(form(records)) == before
    moved = tmp_path / "elsewhere"
    shutil.move(tmp_path / "images", moved)
    there = [
        record.model_copy(update={"images": [str(moved / f"{number}.png")]})
        for number, record in enumerate(records)
    ]
    assert data_hash(form(there)) == before
    assert data_hash(form(there[::-1])) != before and data_hash(form(there[:-1])) != before
    # another image under the same path
    Image.new("RGB", (56, 56), "red").save(moved / "1.png")
    assert data_hash(form(there)) != before


@pytest.mark.parametrize(
    ("change", "counts"),
    [
        (lambda r: r.answers[0].__setattr__("text", "No cars."), True),
        (lambda r: r.answers[0].__setattr__("score", 0.123), True),
        (lambda r: r.ranking.reverse(), True),
        (lambda r: r.prompt[-1].__setattr__("content", "How many buses?"), True),
        (lambda r: r.truth.update(cars=17), True),
        (lambda r: r.negative_images.append(r.images[0]), True),
        (lambda r: r.__setattr__("id", "another"), False),
        (lambda r: r.__setattr__("source", "elsewhere"), False),
    ],
)
def test_all_of_a_record_that_is_learnt_from_counts(records, change, counts):
    before = data_hash(records)
    change(records[1])
    assert (data_hash(records) != before) == counts


def test_all_of_a_task_counts(records):
    task = tasks_of(records)[0]
    before = data_hash([task])
    asked = tasks_of(records)[1].turns
    for change in ({"facts": {"cars": 17}}, {"turns": (*asked, *asked)}, {"images": ()}):
        assert data_hash([dataclasses.replace(task, **change)]) != before


def test_a_pair_of_a_data_set_counts_with_both_sides(records):
    pairs = to_trl(records)
    before = data_hash(pairs)
    for column in ("prompt", "chosen", "rejected"):
        changed = pairs.map(lambda row, c=column: {c: [row[c][0] | {"content": "Other."}]})
        assert data_hash(changed) != before, column
    swapped = pairs.rename_columns({"chosen": "rejected", "rejected": "chosen"})
    assert data_hash(swapped) != before
    assert data_hash(pairs.map(lambda row: {"images": row["images"]})) != "", "decoded images"


def test_an_image_is_read_once_however_many_records_show_it(records, monkeypatch):
    read = []

    def counted(path):
        read.append(path)
        return "hash"

    monkeypatch.setattr(checkpoints, "file_hash", counted)
    data_hash(records * 5)
    assert len(read) == 3
    data_hash(to_trl(records * 5))
    assert len(read) == 6


def test_a_missing_image_is_named(records, tmp_path):
    (tmp_path / "images" / "2.png").unlink()
    with pytest.raises(UsageError, match=r"2\.png: cannot be read"):
        data_hash(records)


# Settings, base, processor


def identity(tiny, records, settings=DPO_PRESETS["tiny"], seed=0, **more):
    return run_identity("DPO", *tiny, records, settings, seed=seed, **more)


def changed(first, second):
    return {name for name in first.keys() | second.keys() if first.get(name) != second.get(name)}


def test_every_setting_is_a_part_of_the_identity_by_its_name(tiny, records):
    settings = dataclasses.replace(DPO_PRESETS["tiny"], losses=("robust",))
    before = identity(tiny, records, settings)
    for field in dataclasses.fields(settings):
        value = getattr(settings, field.name)
        others = {"lora": LoraSettings(r=3), "losses": ("aot",), "loss_weights": (0.5,)}
        if field.name in others:
            other = others[field.name]
        elif isinstance(value, bool):
            other = not value
        else:
            other = value + 1 if isinstance(value, int) else value + 0.25
        after = identity(tiny, records, dataclasses.replace(settings, **{field.name: other}))
        expected = {"lora": {"lora.r"}}.get(field.name, {field.name} - set(NOT_IN_IDENTITY))
        assert changed(before, after) == expected, field.name
    assert json.loads(json.dumps(before)) == before


def test_names_that_do_not_count_are_settings(tiny):
    from helpers.config import PPO_PRESETS

    known = {f.name for s in (DPO_PRESETS, PPO_PRESETS) for f in dataclasses.fields(s["tiny"])}
    assert set(NOT_IN_IDENTITY) <= known


def test_seed_processes_and_what_a_stage_adds_count(tiny, records, monkeypatch):
    before = identity(tiny, records, reward="count_exact")
    assert changed(before, identity(tiny, records, seed=1, reward="count_exact")) == {"seed"}
    assert changed(before, identity(tiny, records, reward="count_graded")) == {"reward"}
    monkeypatch.setattr(
        checkpoints, "PartialState", lambda: type("Two", (), {"num_processes": 2})()
    )
    after = identity(tiny, records, reward="count_exact")
    assert changed(before, after) == {"number of processes"}


@pytest.mark.heavy(reason="reads and writes models")
def test_base_and_processor_count_by_their_content(records):
    model, processor = models.load_model("tiny")
    before = identity((model, processor), records)
    assert changed(before, identity(models.load_model("tiny"), records)) == set()
    processor.image_processor.size["longest_edge"] //= 4
    assert changed(before, identity((model, processor), records)) == {"processor"}
    _, processor = models.load_model("tiny")
    processor.chat_template += " "
    assert changed(before, identity((model, processor), records)) == {"processor"}
    other, processor = models.load_model("tiny")
    other.get_decoder().norm.weight.data[0] += 1e-3
    assert changed(before, identity((other, processor), records)) == {"base model"}
    other, processor = models.load_model("tiny", four_bit=False)
    assert changed(before, identity((other, processor), records)) == {"base model"}


def test_an_adapter_on_the_base_is_no_part_of_the_base(records):
    model, processor = models.load_model("tiny")
    before = identity((model, processor), records)
    policy = models.add_adapter(model, LoraSettings(target_modules=("q_proj",)))
    assert changed(before, identity((policy, processor), records)) == set()
    models.add_adapter(policy, LoraSettings(), 1, "reward")
    assert changed(before, identity((policy, processor), records)) == set()


# Rewards


def brief(factor):
    return make_scorer("brief", lambda image, q, answer, facts: {"brief": -factor * len(answer)})


def test_a_reward_is_known_by_what_is_in_it():
    assert reward_identity(count_exact).startswith("count_exact ")
    assert reward_identity(brief(1.0)) == reward_identity(brief(1.0))
    assert reward_identity(brief(1.0)) != reward_identity(brief(2.0))
    longer = make_scorer("brief", lambda image, q, answer, facts: {"brief": +1.0 * len(answer)})
    assert reward_identity(longer) != reward_identity(brief(1.0)), "other code, the same name"
    half, whole = (weighted_scorer([("a", count_graded, w)]) for w in (0.5, 1.0))
    assert reward_identity(half) != reward_identity(whole)
    exact = weighted_scorer([("a", count_exact, 1.0)])
    assert reward_identity(exact) != reward_identity(whole)


def test_a_function_that_a_reward_calls_counts():
    def made(sign):
        def helper(text):
            return len(text) if sign > 0 else -len(text)

        return make_scorer("mine", lambda image, q, answer, facts: {"mine": helper(answer)})

    assert reward_identity(made(1)) == reward_identity(made(1)) != reward_identity(made(-1))


def test_an_object_that_scores_counts_with_its_state():
    class Judge:
        __name__ = "judge"

        def __init__(self, weights):
            self.weights = np.array(weights)

        def __call__(self, image, question, answer, facts=None):
            return Score(float(self.weights.sum()), {})

    assert reward_identity(Judge([1.0])) == reward_identity(Judge([1.0]))
    assert reward_identity(Judge([1.0])) != reward_identity(Judge([2.0]))


def test_an_embedding_counts_with_the_texts_it_was_fitted_on():
    scorers = [cosine_scorer(tfidf_embedder(texts)) for texts in (["a b"], ["a b"], ["a b", "b"])]
    first, same, other = map(reward_identity, scorers)
    assert first == same != other


def test_a_reward_of_ones_own_counts_with_its_file_and_its_neighbours(tmp_path):
    """The function stays, and what it imports changes: another run. Another folder is none."""
    source = "from words import LIKED\n\ndef liked(image, question, answer, truth):\n"
    source += "    return sum(word in LIKED for word in answer.split())\n"

    def identity(folder, words, more=""):
        (tmp_path / folder).mkdir(exist_ok=True)
        (tmp_path / folder / "my_rewards.py").write_text(source + more)
        (tmp_path / folder / "words.py").write_text(words)
        (tmp_path / folder / "unused.py").write_text(folder)
        return reward_identity(get_scorer("my_rewards.py:liked", tmp_path / folder))

    first = identity("a", "LIKED = {'boat'}\n")
    assert first.startswith("liked ")
    assert first == identity("a", "LIKED = {'boat'}\n") == identity("b", "LIKED = {'boat'}\n")
    assert first != identity("a", "LIKED = {'boat'}\nOTHER = 1\n")
    assert first != identity("a", "LIKED = {'boat'}\n", "# a remark\n")
    # so does a sum that it is a part of
    both = weighted_scorer({get_scorer("my_rewards.py:liked", tmp_path / "a"): 1, count_exact: 1})
    identity("a", "LIKED = {'boats'}\n")
    other = weighted_scorer({get_scorer("my_rewards.py:liked", tmp_path / "a"): 1, count_exact: 1})
    assert reward_identity(both) != reward_identity(other)


def test_a_reward_model_counts_with_its_weights_and_their_scale():
    from helpers.rewards import reward_model

    settings = RewardSettings(head="linear", lora=LoraSettings(r=2))

    def made(seed, **changes):
        own = dataclasses.replace(settings, **changes)
        return reward_model.new_reward_model(*models.load_model("tiny"), own, seed)

    first = reward_identity(reward_model.as_scorer(made(0)))
    assert first.startswith("reward_model ")
    assert first == reward_identity(reward_model.as_scorer(made(0)))
    assert first != reward_identity(reward_model.as_scorer(made(1)))
    # the same weights, which read other tokens
    assert first != reward_identity(reward_model.as_scorer(made(0, pooling="last")))
    assert first != reward_identity(reward_model.as_scorer(made(0), mean=0.5))
    assert first != reward_identity(reward_model.as_scorer(made(0), scale=2.0))


# Checkpoints


def test_the_last_two_are_kept_and_the_newest_is_loaded(tmp_path, capsys):
    run = Checkpoints(tmp_path / "run", HERE)
    assert run.load() is None
    for step in (8, 9, 10):
        run.save(step, {"weights": torch.tensor([step])})
    assert [path.name for path in checkpoints_in(tmp_path / "run")] == [
        "checkpoint-10",
        "checkpoint-9",
    ]
    step, state = Checkpoints(tmp_path / "run", HERE).load(steps=20)
    assert step == 10 and state["weights"].tolist() == [10]
    path = tmp_path / "run" / "checkpoint-10"
    assert capsys.readouterr().out == f"Going on after step 10 of 20 ({path}).\n"
    Checkpoints(tmp_path / "run", HERE).load(steps=10)
    assert "Finished after step 10" in capsys.readouterr().out
    assert checkpoint_identity(path) == HERE and checkpoint_step(path) == 10
    assert last_checkpoint(tmp_path / "run") == path


def test_without_a_folder_nothing_is_written():
    run = Checkpoints(None, HERE)
    run.save(1, {})
    assert run.load() is None and run.newest() is None


def test_the_folder_may_be_moved(tmp_path):
    Checkpoints(tmp_path / "run", HERE).save(3, {"a": 1})
    shutil.move(tmp_path / "run", tmp_path / "drive")
    assert Checkpoints(tmp_path / "drive", HERE).load() == (3, {"a": 1})


def test_another_run_is_refused_by_what_differs(tmp_path):
    Checkpoints(tmp_path / "run", HERE).save(3, {})
    with pytest.raises(UsageError) as error:
        Checkpoints(tmp_path / "run", OTHER)
    expected = "of a run with other data, learning_rate (0.001, here 0.01). Put that back"
    assert expected in str(error.value) and "replace_other=True" in str(error.value)
    with pytest.raises(UsageError, match=r"of a run with other clip \(none, here 0\.2\)"):
        Checkpoints(tmp_path / "run", HERE | {"clip": "0.2"})


def test_another_run_is_set_aside_with_all_that_it_left(tmp_path, capsys):
    for _ in range(2):
        Checkpoints(tmp_path / "run", HERE, replace_other=True).save(3, {"run": "here"})
        (tmp_path / "run" / "adapter").write_text("here")
        run = Checkpoints(tmp_path / "run", OTHER, replace_other=True)
        assert run.load() is None and not (tmp_path / "run").exists()
        run.save(1, {"run": "other"})
    aside = sorted(path.name for path in tmp_path.iterdir())
    assert aside == ["run", "run.old-1", "run.old-2", "run.old-3"]
    assert (tmp_path / "run.old-1" / "adapter").read_text() == "here"
    assert Checkpoints(tmp_path / "run.old-1", HERE).load() == (3, {"run": "here"})
    assert "held another run, which is now run.old-3" in capsys.readouterr().out
    # the same run is gone on with, whatever may be replaced
    assert Checkpoints(tmp_path / "run", OTHER, replace_other=True).load()[0] == 1


def test_a_folder_is_trained_in_by_one_program_at_a_time(tmp_path):
    """Another process is refused with its number, until the first one ends or is killed."""
    holding = (
        "import sys, time; from pathlib import Path; from helpers.files import hold_folder\n"
        "with hold_folder(Path(sys.argv[1])): print('held', flush=True); time.sleep(60)"
    )
    folder = tmp_path / "run"
    other = subprocess.Popen(
        [sys.executable, "-c", holding, str(folder)], cwd=ROOT, stdout=subprocess.PIPE, text=True
    )
    run = Checkpoints(folder, HERE)
    trained = []

    class Trainer:
        checkpoints = run

        @alone_in_its_folder
        def train(self, steps):
            trained.append(steps)

    assert other.stdout.readline() == "held\n"
    try:
        with pytest.raises(UsageError, match=rf"run: process {other.pid} is at work there"):
            Trainer().train(3)
        # nor is what it writes set aside
        run.save(1, {})
        with pytest.raises(UsageError, match="is at work there"):
            Checkpoints(folder, OTHER, replace_other=True)
    finally:
        other.kill()
        other.wait()
    Trainer().train(4)
    assert trained == [4]


def test_a_folder_that_cannot_be_written_to_is_not_held(tmp_path, monkeypatch):
    """What a finished run has left can be loaded from a disk that is read-only."""
    Checkpoints(tmp_path / "run", HERE).save(3, {"run": "here"})

    kind = type(tmp_path)
    whole = kind.open

    def read_only(path, mode="r", *given, **more):
        if mode.startswith("r"):
            return whole(path, mode, *given, **more)
        raise OSError(errno.EROFS, "Read-only file system", str(path))

    monkeypatch.setattr(kind, "open", read_only)
    with hold_folder(tmp_path / "run"):
        assert Checkpoints(tmp_path / "run", HERE).newest().name == "checkpoint-3"


def cut_off(path):
    path.write_bytes(path.read_bytes()[:100])


def change_a_bit(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize("damage", [cut_off, change_a_bit, lambda path: path.unlink()])
@pytest.mark.parametrize("name", ["state.pt", "identity.json"])
def test_a_damaged_checkpoint_is_named_and_the_one_before_is_taken(tmp_path, capsys, name, damage):
    run = Checkpoints(tmp_path, HERE)
    for step in (1, 2):
        run.save(step, {"weights": torch.full((100,), step)})
    path = tmp_path / "checkpoint-2"
    if (name, damage) == ("identity.json", change_a_bit):
        pytest.skip("a bit of a name in it makes it another run's")
    damage(path / name)
    assert not is_whole(path) and last_checkpoint(tmp_path) == tmp_path / "checkpoint-1"
    assert Checkpoints(tmp_path, HERE).load()[0] == 1
    first, second = capsys.readouterr().out.splitlines()
    assert first.startswith(f"⚠️  {path}: damaged, or cut off") and "after step 1 (" in second


def test_no_checkpoint_is_whole_and_the_run_begins_anew(tmp_path, capsys):
    Checkpoints(tmp_path, HERE).save(1, {})
    cut_off(tmp_path / "checkpoint-1" / "state.pt")
    run = Checkpoints(tmp_path, HERE)
    assert run.load() is None and "damaged" in capsys.readouterr().out
    run.save(1, {"again": True})
    assert run.load() == (1, {"again": True})


def test_a_checkpoint_of_another_run_beside_ones_own_is_passed_over(tmp_path, capsys):
    """Google Drive may bring one back: the highest step is not the newest run."""
    Checkpoints(tmp_path / "there", OTHER).save(9, {"run": "other"})
    Checkpoints(tmp_path / "here", HERE).save(2, {"run": "here"})
    shutil.move(tmp_path / "there" / "checkpoint-9", tmp_path / "here")
    assert Checkpoints(tmp_path / "here", HERE).load() == (2, {"run": "here"})
    assert "checkpoint-9: of another run. It is passed over." in capsys.readouterr().out


@pytest.mark.parametrize("when", ["save", "seal_checkpoint"])
def test_a_kill_while_writing_leaves_the_checkpoint_before(tmp_path, monkeypatch, when):
    run = Checkpoints(tmp_path, HERE)
    run.save(1, {"step": 1})

    def killed(*arguments):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(torch if when == "save" else checkpoints, when, killed)
        with pytest.raises(KeyboardInterrupt):
            run.save(2, {"step": 2})
    assert Checkpoints(tmp_path, HERE).load() == (1, {"step": 1})
    run.save(2, {"step": 2})
    assert [path.name for path in sorted(tmp_path.iterdir())] == ["checkpoint-1", "checkpoint-2"]


def test_records_that_were_written_and_read_again_are_the_same_data(records, tmp_path):
    path = write_records(tmp_path / "copy" / "train.jsonl", records)
    assert data_hash(read_records(path)) == data_hash(records)
