"""What notebook 02 leaves, and what later notebooks make of it."""

import shutil
from types import SimpleNamespace

import pytest
from shipped import TRAFFIC

from helpers.data import ask, counting_tasks, read_counts, read_prepared, read_tasks, write_tasks
from helpers.data.record import Message
from helpers.data.tasks import Task
from helpers.files import UsageError, write_json


def prepare(folder, **about):
    """The validation records of the traffic scenes as a prepared folder of somebody."""
    folder.mkdir(parents=True)
    for split in ("train", "valid"):
        shutil.copy(TRAFFIC / "preferences_valid.jsonl", folder / f"{split}.jsonl")
    whole = {"data": "my photos", "kind": "counts", "model": "tiny", **about}
    write_json(folder / "about.json", whole)
    return folder


def test_without_notebook_02_it_is_the_shipped_traffic_and_that_is_said(artifacts, capsys):
    prepared = read_prepared()
    assert prepared.folder == TRAFFIC and prepared.is_traffic and prepared.held_out == "test"
    assert (prepared.kind, prepared.model, prepared.title) == ("counts", "tiny", "traffic scenes")
    assert "FALLBACK" in capsys.readouterr().out


def test_the_questions_of_the_shipped_records_are_those_of_the_labels():
    for split in ("train", "valid", "test"):
        shipped = read_prepared(TRAFFIC).tasks(split)
        assert [(task.images, task.question, task.facts, task.id) for task in shipped] == [
            (task.images, task.question, task.facts, task.id)
            for task in counting_tasks(read_counts(TRAFFIC, split))
        ]
        assert len({task.photo for task in shipped}) == len(shipped)


def test_what_notebook_02_has_left_is_taken(artifacts):
    prepare(artifacts / "preferences", title="houses")
    prepared = read_prepared()
    assert prepared.title == "houses" and not prepared.is_traffic
    # without a test split, it is the one on which settings may have been chosen
    assert prepared.held_out == "valid" and len(prepared.tasks("valid")) == 64


@pytest.mark.parametrize("kind", [None, "numbers"])
def test_a_folder_that_does_not_say_what_is_true_is_refused(tmp_path, kind):
    folder = prepare(tmp_path / "preferences", kind=kind)
    with pytest.raises(UsageError, match=r"about.json: 'kind' must be one of none, counts"):
        read_prepared(folder)


def test_questions_come_back_as_they_were_written(tmp_path):
    image = tmp_path / "images" / "a.png"
    turns = (
        Message(role="user", content="Was ist das?"),
        Message(role="assistant", content="Ein Haus."),
        Message(role="user", content="Und das „dort“?"),
    )
    tasks = [
        Task((image, tmp_path / "b.png"), turns, ["ein Baum", "Baum"], "exact_match", "a"),
        ask("How many?", [image], {"cars": 2}, "counts"),
        ask("Why?", [image]),
    ]
    path = write_tasks(tmp_path / "train-questions.jsonl", tasks)
    assert read_tasks(path) == tasks


def test_a_policy_of_other_data_is_left_out_and_named(tmp_path, capsys):
    mine, other = prepare(tmp_path / "mine"), prepare(tmp_path / "other")
    # one byte makes it other data
    with (other / "train.jsonl").open("a") as file:
        file.write("\n")
    here, there = read_prepared(mine), read_prepared(other)
    policies = []
    for name, about in (
        ("dpo/mine", here.policy_about("tiny", None, 0)),
        ("dpo/other", there.policy_about("tiny", None, 0)),
        ("dpo/old", {"base": "tiny"}),
    ):
        policies.append(SimpleNamespace(name=name, about=about))
    kept = [policy.name for policy in here.keep_own(policies)]
    assert kept == ["dpo/mine", "dpo/old"]
    assert "trained on other data: dpo/other" in capsys.readouterr().out


def test_a_reward_model_of_other_data_or_another_base_is_not_taken(tmp_path):
    prepared = read_prepared(prepare(tmp_path / "mine"))
    folder = tmp_path / "reward"
    assert not prepared.has_made(folder, "tiny")
    write_json(folder / "about.json", prepared.policy_about("tiny", None, 0))
    assert prepared.has_made(folder, "tiny") and not prepared.has_made(folder, "qwen2-vl-2b")
    other = {**prepared.policy_about("tiny", None, 0), "data_hash": "of another file"}
    write_json(folder / "about.json", other)
    assert not prepared.has_made(folder, "tiny")
