"""What notebooks 03 to 07 get: splits by photo, images beside the records, and words."""

import shutil

import pytest
from own_files import draw_photos, four_fields, numbered, write_lines
from PIL import Image
from shipped import TRAFFIC

from helpers.data import open_data, prepare_data, read_prepared
from helpers.files import UsageError, read_json


def prepare(tmp_path, number, **about):
    """Preferences about so many photos, prepared in tmp_path / "out"."""
    draw_photos(tmp_path / "in", numbered(number))
    path = write_lines(tmp_path / "in" / "my_votes.jsonl", four_fields(number))
    return prepare_data(open_data(path), tmp_path / "out", **about)


def photos(prepared, split):
    return {record.group for record in prepared.records(split)}


def test_forty_preferences_are_split_by_photo_and_travel(tmp_path, capsys):
    prepared = prepare(tmp_path, 40, model="qwen2-vl-2b")
    sizes = {split: len(prepared.records(split)) for split in ("train", "valid", "test")}
    assert sizes == {"train": 28, "valid": 6, "test": 6} and prepared.held_out == "test"
    assert not photos(prepared, "train") & (photos(prepared, "valid") | photos(prepared, "test"))
    assert (prepared.kind, prepared.title, prepared.model) == ("none", "my votes", "qwen2-vl-2b")
    about = read_json(tmp_path / "out" / "about.json")
    assert about["splits"]["train"] == {
        "photos": 28,
        "preferences": 28,
        "pairs": 28,
        "questions": 28,
    }
    said = capsys.readouterr().out
    assert "28 pairs to train on. The 6 held-out ones (test) can show a difference of 0.96" in said
    # moved elsewhere, without the files it came from
    shutil.rmtree(tmp_path / "in")
    (tmp_path / "out").rename(tmp_path / "drive")
    moved = read_prepared(tmp_path / "drive")
    for task in moved.tasks("test"):
        assert task.open_images()[0].size == (50, 40)
    assert all(image.is_file() for record in moved.records("train") for image in record.image_paths)
    names = [record.image_names(tmp_path / "drive")[0] for record in moved.records("train")]
    assert all(name.startswith("images/photo") for name in names)


def test_the_same_data_is_split_alike_and_another_seed_otherwise(tmp_path):
    first = photos(prepare(tmp_path, 40), "test")
    assert photos(prepare(tmp_path, 40), "test") == first
    assert photos(prepare(tmp_path, 40, seed=1), "test") != first


def test_five_pairs_are_too_few_and_that_is_said(tmp_path, capsys):
    prepared = prepare(tmp_path, 5)
    said = capsys.readouterr().out
    assert "5 pairs are too few" in said
    assert "5 photos are under 30, so there is no test split: figures are cross-validated" in said
    assert "The 1 held-out ones (valid) cannot show any difference" in said
    assert not prepared.path("test").exists() and prepared.held_out == "valid"
    assert len(prepared.records("train")) == 4


def test_a_blind_rule_that_wins_is_named(tmp_path, capsys):
    draw_photos(tmp_path, numbered(40))
    rows = [row | {"chosen": "long and longer", "rejected": "short"} for row in four_fields(40)]
    prepare_data(open_data(write_lines(tmp_path / "a.jsonl", rows)), tmp_path / "out")
    assert "⚠️ 'longer' picks the chosen answer without looking" in capsys.readouterr().out


def test_splits_of_the_data_are_kept_and_a_photo_in_two_is_refused(tmp_path):
    draw_photos(tmp_path, numbered(12))
    write_lines(tmp_path / "train.jsonl", four_fields(8))
    write_lines(tmp_path / "test.jsonl", four_fields(4, 8))
    prepared = prepare_data(open_data(tmp_path), tmp_path / "out")
    # there was no valid split: it is taken from train, and test stays what it was
    assert [len(prepared.records(s)) for s in ("train", "valid", "test")] == [7, 1, 4]
    before = (tmp_path / "out" / "train.jsonl").read_bytes()
    shutil.copy(tmp_path / "photo0.png", tmp_path / "photo9.png")  # the same picture
    with pytest.raises(
        UsageError, match=r"photo9\.png \(test\) and .*photo0\.png \(train\) are of"
    ):
        prepare_data(open_data(tmp_path), tmp_path / "out")
    assert (tmp_path / "out" / "train.jsonl").read_bytes() == before  # nothing was touched


def test_images_are_reduced_with_their_proportions_and_small_ones_stay_as_they_are(tmp_path):
    folder = tmp_path / "in"
    draw_photos(folder, ["small.png", "copy.png"])
    shutil.copy(folder / "small.png", folder / "copy.png")
    Image.new("RGB", (2000, 500), "red").save(folder / "wide.jpg")
    tall = Image.new("RGB", (1200, 900), "blue")
    exif = tall.getexif()
    exif[0x0112] = 6  # the camera was held upright
    tall.save(folder / "tall.jpg", exif=exif)
    (folder / "sub").mkdir()
    Image.new("RGB", (900, 900), "green").save(folder / "sub" / "wide.bmp")
    prepared = prepare_data(
        open_data(folder, questions=["What?"]), tmp_path / "out", max_pixels=600 * 600
    )
    tasks = [*prepared.tasks("train"), *prepared.tasks("valid")]
    sizes = {task.images[0].name: task.open_images()[0].size for task in tasks}
    assert sizes == {
        "copy.png": (50, 40),  # equal files once, and one photo
        "wide.jpg": (1200, 300),
        "wide.png": (600, 600),  # a drawing stays without loss
        "tall.jpg": (519, 692),
    }
    # people still have to see what a tiny model looks at
    prepare_data(open_data(folder, questions=["?"]), tmp_path / "tiny", max_pixels=112 * 112)
    assert Image.open(tmp_path / "tiny" / "images" / "wide.png").size == (448, 448)
    original = (folder / "small.png").read_bytes()
    assert (prepared.folder / "images" / "copy.png").read_bytes() == original


def test_names_that_stand_twice_do_not_overwrite_each_other(tmp_path):
    draw_photos(tmp_path / "in", ["a/1.png", "b/1.png", "B2/1.PNG"])
    prepared = prepare_data(open_data(tmp_path / "in", questions=["?"]), tmp_path / "out")
    files = sorted(path.name for path in (prepared.folder / "images").iterdir())
    assert files == ["1-2.png", "1-3.png", "1.png"]


def test_what_comes_with_the_repository_stays_where_it_is(tmp_path):
    prepared = prepare_data(open_data(TRAFFIC), tmp_path / "out")
    assert (prepared.title, prepared.kind) == ("traffic scenes", "counts")
    assert prepared.about["data"] == "data/traffic" and not (tmp_path / "out" / "images").exists()
    task = prepared.tasks("test")[0]
    assert (
        task.images[0].parent == TRAFFIC / "test" / "images" and task.group == task.images[0].stem
    )


def test_an_image_that_cannot_be_read_is_left_out_and_named(tmp_path, capsys):
    draw_photos(tmp_path / "in", numbered(6))
    whole = (tmp_path / "in" / "photo3.png").read_bytes()
    (tmp_path / "in" / "photo3.png").write_bytes(whole[: len(whole) // 2])
    opened = open_data(write_lines(tmp_path / "in" / "a.jsonl", four_fields(6)))
    prepared = prepare_data(opened, tmp_path / "out")
    assert sum(len(prepared.records(split)) for split in ("train", "valid")) == 5
    assert "not used, the image cannot be read (1): " in capsys.readouterr().out
    assert "photo3.png" in prepared.about["not_used"][0]
    for file in (tmp_path / "in").glob("*.png"):
        file.write_bytes(b"")
    with pytest.raises(UsageError, match="none of the images can be read"):
        prepare_data(open_data(tmp_path / "in" / "a.jsonl"), tmp_path / "out")


def test_other_data_leaves_nothing_of_the_data_before(tmp_path):
    prepare(tmp_path / "first", 40)
    (tmp_path / "first" / "out").rename(tmp_path / "out")
    draw_photos(tmp_path / "in", numbered(4), first=70)
    prepared = prepare_data(open_data(tmp_path / "in", questions=["?"]), tmp_path / "out")
    files = sorted(path.name for path in prepared.folder.iterdir())
    assert files == ["about.json", "images", "train-questions.jsonl", "valid-questions.jsonl"]
    assert len(list((prepared.folder / "images").iterdir())) == 4


def test_prepared_data_can_be_prepared_again_in_its_own_folder(tmp_path):
    prepared = prepare(tmp_path, 40)
    before = {split: photos(prepared, split) for split in ("train", "valid", "test")}
    again = prepare_data(open_data(prepared.folder), prepared.folder)
    assert {split: photos(again, split) for split in before} == before
    assert again.tasks("test")[0].open_images()


def test_a_question_with_several_preferences_is_asked_once(tmp_path):
    draw_photos(tmp_path, numbered(4))
    rows = four_fields(4)
    rows += [row | {"rejected": "Nothing.", "id": "1", "truth": "boat"} for row in rows]
    prepared = prepare_data(open_data(write_lines(tmp_path / "a.jsonl", rows)), tmp_path / "out")
    records = [*prepared.records("train"), *prepared.records("valid")]
    tasks = [*prepared.tasks("train"), *prepared.tasks("valid")]
    assert len(records) == 8 and len(tasks) == 4
    assert all(task.facts == "boat" for task in tasks)  # the one that knows the truth
    assert all(record.id is None for record in records)  # an id that stands twice names nothing


def test_limit_takes_the_first_of_each_split(tmp_path):
    prepared = prepare(tmp_path, 40, limit=3)
    assert [len(prepared.records(split)) for split in ("train", "valid", "test")] == [3, 3, 3]
    assert len(prepared.tasks("train")) == 3
