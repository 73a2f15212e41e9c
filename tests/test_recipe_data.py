"""[data] of a recipe: anything that the door reads, relative to the recipe, and never traffic."""

import pytest
from own_files import draw_photos, four_fields, numbered, write_csv, write_lines

from helpers import cli
from helpers.data import read_prepared
from helpers.files import UsageError, read_json
from helpers.recipes import read_recipe

START = 'title = "x"\nmodel = "tiny"\nstages = ["data"]\n[data]\n'


@pytest.fixture
def folder(tmp_path):
    draw_photos(tmp_path / "mine", numbered(40))
    return tmp_path


def prepare(folder, *lines, changes=()):
    """Run the stage `data` of a recipe with these lines in [data]; what it has made."""
    path = folder / "own.toml"
    path.write_text(START + "\n".join(lines))
    arguments = ["train", "--config", str(path), "--out", str(folder / "run")]
    for change in changes:
        arguments += ["--set", change]
    assert cli.main(arguments) == 0
    return read_prepared(folder / "run" / "data"), read_json(folder / "run" / "figures.json")


def of_own(records):
    return all("What is shown?" in record.prompt[-1].content for record in records)


def test_a_recipe_that_names_only_train_is_split_and_judged_on_its_own_photos(folder):
    write_lines(folder / "mine" / "votes.jsonl", four_fields(40))
    prepared, figures = prepare(folder, 'train = "mine/votes.jsonl"')
    sizes = [len(prepared.records(split)) for split in ("train", "valid", "test")]
    assert sizes == [28, 6, 6] and figures["pairs"]["value"] == 28
    assert all(of_own(prepared.records(split)) for split in prepared.splits)


def test_files_for_each_split_are_kept_and_a_missing_one_is_drawn_from_train(folder):
    write_lines(folder / "mine" / "a.jsonl", four_fields(20))
    write_lines(folder / "mine" / "b.jsonl", four_fields(5, 20))
    prepared, _ = prepare(folder, 'train = "mine/a.jsonl"', 'test = "mine/b.jsonl"')
    assert [len(prepared.records(s)) for s in ("train", "valid", "test")] == [17, 3, 5]
    prepared, _ = prepare(folder, 'train = "mine/a.jsonl"', 'valid = "mine/b.jsonl"')
    assert prepared.held_out == "valid" and prepared.splits == ["train", "valid"]


def test_a_table_of_rankings_in_the_form_of_another_project(folder):
    rows = [["Image", "Question", "Answer 1", "Answer 2", "Answer 3", "Ranking"]]
    for n in range(40):
        rows.append([f"photo{n}.png", "What is shown?", "a", "b", "c", "2 > 1 = 3"])
    write_csv(folder / "mine" / "ranked.csv", rows, "\t", "utf-16")
    prepared, figures = prepare(folder, 'source = "mine/ranked.csv"', 'format = "trl"')
    assert figures["pairs"]["value"] == 56  # 28 records of two pairs
    assert prepared.records("train")[0].ranking == [[1], [0, 2]]
    assert (prepared.folder / "train.trl.json").exists()


def test_questions_are_counted_and_have_the_kind_that_was_named(folder):
    rows = [{"image": f"photo{n}.png", "question": "Is it?", "answer": "yes"} for n in range(40)]
    write_lines(folder / "mine" / "q.jsonl", rows)
    prepared, figures = prepare(folder, 'source = "mine/q.jsonl"', 'truth = "yes_no"')
    assert prepared.kind == "yes_no" and figures["questions_test"]["value"] == 6
    assert prepared.tasks("test")[0].facts == "yes" and not prepared.path("test").exists()


def test_images_with_a_list_of_questions_and_a_path_from_the_command_line(folder, monkeypatch):
    monkeypatch.chdir(folder)
    lines = ('source = "elsewhere"', 'questions = ["What?", "Where?"]')
    prepared, figures = prepare(folder, *lines, changes=["data.source=mine"])
    assert figures["questions_train"]["value"] == 56 and prepared.kind == "none"


def test_data_that_is_not_there_is_named_and_never_replaced_by_traffic(folder, capsys):
    path = folder / "own.toml"
    path.write_text(START + 'train = "nowhere.jsonl"')
    assert cli.main(["train", "--config", str(path), "--out", str(folder / "run")]) == 1
    assert "nowhere.jsonl: no such file or folder" in capsys.readouterr().err
    path.write_text(START + 'train = "a.jsonl"\nsource = "b.jsonl"')
    with pytest.raises(UsageError, match="name either source, or train, valid and test"):
        read_recipe(path)
