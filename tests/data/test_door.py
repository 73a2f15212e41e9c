"""One door: data of every kind as people bring it, and what is said of it."""

import json
import sys

import pytest
from own_files import (
    draw_photos,
    four_fields,
    numbered,
    write_csv,
    write_lines,
    write_workbook,
    write_zip,
)
from PIL import Image
from shipped import TRAFFIC

from helpers.data import open_data, write_tasks
from helpers.files import ROOT, UsageError


@pytest.fixture
def folder(tmp_path):
    """A folder with pictures photo0.png to photo9.png."""
    draw_photos(tmp_path, numbered(10))
    return tmp_path


def questions(number=10):
    return [
        {"image": f"photo{n}.png", "question": "What?", "answer": f"a{n}"} for n in range(number)
    ]


def only(opened):
    """The one part of data that is not split."""
    assert list(opened.parts) == [""]
    return opened.parts[""]


# --- kinds of data ---


def test_a_label_folder_keeps_its_splits_and_its_counts():
    opened = open_data(TRAFFIC, classes=["cars"])
    assert {split: len(part.tasks) for split, part in opened.parts.items()} == {
        "train": 512,
        "valid": 64,
        "test": 400,
    }
    task = opened.parts["train"].tasks[1]
    assert opened.kind == task.kind == "counts" and list(task.facts) == ["cars"]
    assert task.question == "Please count the cars you see."  # the second wording, by turns


def test_preferences_of_other_projects(folder):
    row = {"image": "photo1.png", "question": "Q?", "chosen": "x", "rejected": "y"}
    rlhf_v = {"text": json.dumps({k: row[k] for k in ("question", "chosen", "rejected")})}
    vl = {"id": "1", "prompt": "Q?", "img_path": "photo3.png", "completions": []}
    for model, rating in (("a", "5"), ("b", "2")):
        notes = {"Helpfulness": {"Rating": rating}}
        vl["completions"].append({"model": model, "response": model, "annotations": notes})
    for name, rows in {
        "mmpr": [row, row | {"image": "photo2.png"}],
        "rlaif_v": [row | {"origin_split": "{}"}],
        "rlhf_v": [rlhf_v | {"image_path": "photo1.png"}],
        "vlfeedback": [vl],
    }.items():
        part = only(open_data(write_lines(folder / f"{name}.jsonl", rows)))
        assert len(part.records) == len(rows), name
        assert part.records[0].pairs()[0].chosen.text in ("x", "a")
        assert part.records[0].image_paths[0].is_file()


def test_questions_with_answers_and_without(folder):
    path = write_lines(
        folder / "q.jsonl", [*questions(2), {"image": "photo3.png", "question": "Why?"}]
    )
    part = only(open_data(path))
    assert [task.facts for task in part.tasks] == ["a0", "a1", None]
    assert [task.kind for task in part.tasks] == ["exact_match", "exact_match", "none"]
    assert open_data(path, truth="yes_no").kind == "yes_no"
    # an array, an object that holds it, and UTF-16
    for text in (questions(3), {"info": {}, "data": questions(3)}):
        (folder / "q.json").write_text(json.dumps(text, indent=1), encoding="utf-16")
        opened = open_data(folder / "q.json")
        assert len(only(opened).tasks) == 3 and "utf-16" in opened.left.notes[0]


def test_visual_genome(folder):
    qas = [
        {"qa_id": n, "image_id": 107, "question": f"{n}? ", "answer": "Green."} for n in range(2)
    ]
    entries = [
        {"id": 107, "qas": qas},
        {"id": 108},
        {"id": 109, "qas": [qas[0] | {"image_id": 109}]},
    ]
    (folder / "question_answers.json").write_text(json.dumps(entries))
    draw_photos(folder / "VG_100K", ["107.jpg"])
    opened = open_data(folder / "question_answers.json")
    tasks = only(opened).tasks
    assert [(task.question, task.facts, task.group) for task in tasks] == [
        ("0?", "Green.", "107"),
        ("1?", "Green.", "107"),
    ]
    said = "\n".join(opened.left.lines())
    assert "not Visual Genome's (1): question_answers.json:2" in said and "109.jpg: no such" in said


def test_a_table_as_a_german_excel_writes_it(folder):
    rows = [
        ["Umfrage 2026 – Häuser & Boote"],
        [],
        ["Bild", "Frage", "Antwort A", "Antwort B", "Wahl", "Datum"],
        ["photo0.PNG", "Was ist größer; was kleiner?", "Haus", "Boot", "A", "01.02.2026"],
        ["Fotos\\photo1.png", "Was?", "NA", "None", "B", ""],
        ["Bild", "Frage", "Antwort A", "Antwort B", "Wahl", "Datum"],
        ["photo99.png", "Was?", "1", "2", "B", ""],
    ]
    path = write_csv(folder / "umfrage.csv", rows, ";", "cp1252", "\r\n")
    opened = open_data(path)
    part = only(opened)
    assert [[a.text for a in record.answers] for record in part.records] == [
        ["Haus", "Boot"],
        ["NA", "None"],
    ]
    assert part.records[1].pairs()[0].chosen.text == "None"
    assert part.records[0].prompt[0].content == "Was ist größer; was kleiner?"
    said = repr(opened)
    assert "cp1252, semicolons between the columns" in said and "columns not used: Datum" in said
    assert "'Bild' is the image" in said and "1 rows repeat the titles" in said
    assert "the image cannot be found (1): umfrage.csv:7 image photo99.png" in said


def test_a_workbook_with_numbers_and_several_sheets(folder):
    rows = [["image", "question", "answer"], ["photo0.png", "How many?", 3], ["photo1.png", "?", 1]]
    more = [["image", "prompt", "chosen", "rejected"], ["photo2.png", "?", 2, 5.5]]
    path = write_workbook(
        folder / "a.xlsx", rows, {"C3": "0.0"}, sheets={"pairs": more, "notes": [["by me"]]}
    )
    opened = open_data(path)
    part = only(opened)
    assert [task.facts for task in part.tasks] == ["3", "1.0"]
    assert part.records[0].pairs()[0].rejected.text == "5.5"
    assert "columns are not known (1): a.xlsx, sheet 'notes' (by me)" in repr(opened)


def test_images_with_a_list_of_questions(folder):
    (folder / "valid").mkdir()
    for number in range(2):
        (folder / f"photo{number}.png").rename(folder / "valid" / f"photo{number}.png")
    with pytest.raises(
        UsageError, match=r"10 images and nothing to ask about them\. Give QUESTIONS"
    ):
        open_data(folder)
    # valid alone is no split of all
    opened = open_data(folder / "valid", questions=["One?", "Two?"])
    assert len(only(opened).tasks) == 4 and opened.kind == "none"
    (folder / "valid" / "questions.txt").write_text("One?\n\nTwo?\nOne?\n")
    assert len(only(open_data(folder / "valid")).tasks) == 4
    write_csv(folder / "valid" / "questions.txt", [])
    with pytest.raises(UsageError, match="holds no questions"):
        open_data(folder / "valid")


def test_questions_are_given_as_text_file_or_table(folder):
    photos = folder / "photos"
    draw_photos(photos, numbered(3), first=50)
    asked = write_csv(folder / "asked.csv", [["Question"], ["One?"], ["Two, or three?"]])
    for given in (["One?", "Two, or three?"], str(asked), "asked.csv"):
        tasks = only(open_data(photos, questions=given, base=folder)).tasks
        assert [task.question for task in tasks[:2]] == ["One?", "Two, or three?"]
    assert len(only(open_data(photos, questions="What is this?")).tasks) == 3
    # a table of questions beside the images, which it does not name
    write_csv(photos / "fragen.csv", [["Frage"], ["Was?"], ["Wo?"]])
    opened = open_data(photos)
    assert len(only(opened).tasks) == 6 and "names no images" in repr(opened)


# --- files that belong together ---


def test_files_of_splits_and_others_in_a_folder_are_read_together(folder):
    rows = four_fields(9)
    write_lines(folder / "votes_train-00000-of-00001.jsonl", rows[:5])
    write_lines(folder / "votes_train2.jsonl", rows[5:7])
    write_lines(folder / "validation.jsonl", rows[7:8])
    write_lines(folder / "TEST.jsonl", rows[8:])
    (folder / "README.json").write_text("{}")
    (folder / "broken.json").write_text("[{")
    opened = open_data(folder)
    assert {split: len(part.records) for split, part in opened.parts.items()} == {
        "train": 7,
        "valid": 1,
        "test": 1,
    }
    assert "no data of a known form (2)" in repr(opened) and "README.json" in repr(opened)


def test_folders_of_splits_with_a_table_in_each(tmp_path):
    for place, split in enumerate(("train", "val")):
        draw_photos(tmp_path / split, numbered(3), first=3 * place)
        rows = [["file_name", "question", "answer"], ["photo0.png", "?", split]]
        write_csv(tmp_path / split / "metadata.csv", rows)
    opened = open_data(tmp_path)
    assert {s: p.tasks[0].facts for s, p in opened.parts.items()} == {
        "train": "train",
        "valid": "val",
    }
    assert opened.parts["valid"].tasks[0].images[0].parent.name == "val"


def test_a_file_named_alone_is_read_alone_and_its_neighbours_are_named(folder):
    write_lines(folder / "train.jsonl", four_fields(5))
    write_lines(folder / "valid.jsonl", four_fields(2, 5))
    opened = open_data(folder / "train.jsonl")
    assert len(only(opened).records) == 5
    assert "valid.jsonl beside it are not read: name the folder" in repr(opened)
    both = open_data({"train": folder / "train.jsonl", "test": folder / "valid.jsonl"})
    assert {s: len(p.records) for s, p in both.parts.items()} == {"train": 5, "test": 2}


def test_a_zip_made_on_windows(folder, tmp_path_factory, artifacts):
    data = folder / "Meine Daten"
    draw_photos(data / "Bilder", ["Größe 1.JPG", "Größe 2.JPG"], first=90)
    rows = [["Image", "Question", "Chosen", "Rejected"]]
    rows += [[f"bilder\\größe {n}.jpg", "Was?", "ja", "nein"] for n in (1, 2)]
    write_csv(data / "tabelle.csv", rows, ";", "cp1252", "\r\n")
    place = tmp_path_factory.mktemp("zip") / "daten.zip"
    wrapped = folder / "pack"
    data.parent.joinpath("pack").mkdir()
    data.rename(wrapped / data.name)
    write_zip(place, wrapped, lambda name: name.replace("/", "\\"))
    assert len(only(open_data(place)).records) == 2


# --- what is wrong with it ---


def test_bad_lines_and_missing_images_are_counted_and_named(folder):
    rows = four_fields(6)
    rows[2] = rows[2] | {"chosen": ""}
    rows[4] = rows[4] | {"image": "gone.png"}
    path = write_lines(folder / "a.jsonl", rows)
    path.write_text(path.read_text() + "not json\n")
    opened = open_data(path)
    assert len(only(opened).records) == 4
    said = repr(opened)
    assert "the line cannot be read (2): a.jsonl:3 chosen:" in said.replace("Value error, ", "")
    assert "the image cannot be found (1): a.jsonl:5 image gone.png" in said


def test_what_is_no_data_is_refused_in_words(folder, tmp_path):
    (folder / "a.json").write_text('[{"name": "x"}]')
    with pytest.raises(UsageError, match=r"neither preferences nor questions .*fields: name"):
        open_data(folder / "a.json")
    path = write_csv(folder / "a.csv", [["name", "age"], ["x", "3"]])
    with pytest.raises(UsageError, match=r"no row of titles is known \(a\.csv \(name, age\)\)"):
        open_data(path)
    path = write_csv(folder / "b.csv", [["image", "question"], ["gone.png", "?"]])
    with pytest.raises(UsageError, match=r"nothing in it can be used\.\n(.*\n)*.*image gone\.png"):
        open_data(path)
    with pytest.raises(UsageError, match=r"nowhere\.csv: no such file or folder in "):
        open_data("nowhere.csv")
    with pytest.raises(UsageError, match=r"photo1\.png: is one image"):
        open_data(folder / "photo1.png")
    with pytest.raises(UsageError, match=r"unknown kind of truth 'maybe'"):
        open_data(path, truth="maybe")
    (folder / "data.parquet").write_bytes(b"x")
    with pytest.raises(UsageError, match=r"data\.parquet: cannot be read as data\. Known is"):
        open_data(folder / "data.parquet")


def test_truths_of_several_kinds_ask_for_one(folder):
    rows = [*questions(1), {"image": "photo1.png", "question": "?", "answer": {"cars": 2}}]
    with pytest.raises(UsageError, match=r"several kinds .*--truth"):
        open_data(write_lines(folder / "q.jsonl", rows))


def test_splits_without_train_are_refused(folder):
    write_lines(folder / "test.jsonl", four_fields(2))
    write_lines(folder / "valid.jsonl", four_fields(2, 2))
    with pytest.raises(UsageError, match="has valid and test, but nothing to train on"):
        open_data(folder)


# --- where relative paths count from ---


def test_relative_paths_count_from_where_one_stands(folder, monkeypatch):
    write_lines(folder / "mine.jsonl", four_fields(2))
    monkeypatch.chdir(folder)
    assert open_data("mine.jsonl").source == folder / "mine.jsonl"
    assert open_data("data/traffic").source == ROOT / "data" / "traffic"  # a notebook's default
    monkeypatch.chdir(ROOT)
    with pytest.raises(UsageError, match="no such file"):
        open_data("mine.jsonl")
    assert open_data("mine.jsonl", base=folder).source == folder / "mine.jsonl"
    monkeypatch.setenv("VLM_STARTED_IN", str(folder))  # as a command leaves it for a notebook
    assert open_data("mine.jsonl").source == folder / "mine.jsonl"


def test_questions_that_were_written_are_read_back(folder):
    part = only(open_data(write_lines(folder / "q.jsonl", questions(3))))
    write_tasks(folder / "again" / "tasks.jsonl", part.tasks)
    assert only(open_data(folder / "again" / "tasks.jsonl")).tasks == part.tasks


# --- photos of phones ---


def test_heic_photos_are_read_and_the_missing_package_is_named(folder, monkeypatch):
    heif = pytest.importorskip("pillow_heif")
    heif.register_heif_opener()
    photos = folder / "phone"
    photos.mkdir()
    Image.open(folder / "photo1.png").save(photos / "IMG_0001.HEIC")
    (task,) = only(open_data(photos, questions=["What?"])).tasks
    assert task.open_images()[0].size == (50, 40)
    monkeypatch.setitem(sys.modules, "pillow_heif", None)
    with pytest.raises(UsageError, match=r"IMG_0001\.HEIC: a HEIC photo.*pip install pillow-heif"):
        task.open_images()
