"""`check` and `convert` take whatever people bring."""

import json

import pytest
from own_files import draw_photos, four_fields, numbered, write_csv, write_lines, write_workbook

from helpers import cli
from helpers.data import is_preference_file, open_data, read_records


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """Six pictures, where one stands."""
    draw_photos(tmp_path, numbered(6))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def votes(folder, number=6):
    rows = [["Bild", "Frage", "Antwort A", "Antwort B", "Wahl"]]
    for n in range(number):
        rows.append([f"photo{n}.png", "Was?", f"Haus {n}", f"Boot {n}", "AB"[n % 2]])
    return write_csv(folder / "votes.csv", rows, ";", "cp1252")


def test_files_of_preferences_are_told_from_other_data(folder):
    preferences = write_lines(folder / "a.jsonl", four_fields(2))
    asked = write_lines(folder / "b.jsonl", [{"image": "photo1.png", "question": "?"}])
    assert is_preference_file(preferences) and is_preference_file(folder / "c.jsonl")
    assert not any(map(is_preference_file, (asked, votes(folder), folder)))


def test_a_table_is_checked_and_what_is_not_used_is_an_error(folder, capsys):
    assert cli.main(["check", str(votes(folder))]) == 0
    out = capsys.readouterr().out
    assert "'Wahl' is the vote" in out and "votes.jsonl: 6 lines, 6 records, 6 pairs" in out
    assert cli.main(["check", str(votes(folder, 8))]) == 1
    captured = capsys.readouterr()
    assert "the image cannot be found (2): votes.csv:8 image photo6.png" in captured.out
    assert "errors found: 2" in captured.err


def test_an_image_of_a_question_that_cannot_be_read_is_an_error(folder, capsys):
    (folder / "photo1.png").write_bytes(b"no image")
    rows = [{"image": f"photo{n}.png", "question": "?"} for n in range(2)]
    write_lines(folder / "q.jsonl", rows)
    assert cli.main(["check", "q.jsonl"]) == 1
    assert "the image cannot be read (1): " in capsys.readouterr().out
    assert cli.main(["check", "q.jsonl", "--no-images"]) == 0


def test_the_kind_of_truth_is_named_by_truth(folder, capsys):
    rows = [["image", "question", "answer"], ["photo0.png", "Is it?", "yes"]]
    write_workbook(folder / "q.xlsx", rows)
    assert cli.main(["convert", "q.xlsx", "out.jsonl", "--truth", "yes_no"]) == 0
    assert "1 questions → out.jsonl" in capsys.readouterr().out
    assert open_data("out.jsonl", base=folder).kind == "yes_no"
    assert cli.main(["check", "q.xlsx", "--truth", "maybe"]) == 1
    assert "unknown kind of truth 'maybe': choose from none, counts" in capsys.readouterr().err
    # of preferences, too
    write_lines(folder / "a.jsonl", [four_fields(1)[0] | {"truth": "yes"}])
    assert cli.main(["convert", "a.jsonl", "b.jsonl", "--truth", "yes_no"]) == 0
    assert read_records(folder / "b.jsonl")[0].kind == "yes_no"


def test_a_table_becomes_a_file_of_any_format(folder):
    assert cli.main(["convert", str(votes(folder)), "out.json", "--to", "llama_factory"]) == 0
    rows = json.loads((folder / "out.json").read_text())
    assert rows[0]["chosen"]["value"] == "Haus 0" and rows[0]["images"] == ["photo0.png"]


def test_splits_and_questions_have_files_of_their_own(folder, capsys):
    write_lines(folder / "data" / "train.jsonl", four_fields(2))
    write_lines(folder / "data" / "test.jsonl", four_fields(1, 2))
    write_csv(folder / "data" / "train.csv", [["image", "question"], ["photo4.png", "Why?"]])
    draw_photos(folder / "data", numbered(5))
    assert cli.main(["convert", "data", "out.jsonl"]) == 0
    names = sorted(path.name for path in folder.glob("out*"))
    assert names == ["out-test.jsonl", "out-train-questions.jsonl", "out-train.jsonl"]
    assert len(read_records(folder / "out-train.jsonl")) == 2
