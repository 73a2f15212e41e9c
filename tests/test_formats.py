import pytest
from conftest import TRAFFIC
from PIL import Image

from helpers.formats import evaluation_split, photo_group, read_classes, read_yolo, write_yolo
from helpers.runtime import UsageError


@pytest.fixture
def folder(tmp_path):
    """Two photos with the class names of a microscope data set."""
    (tmp_path / "data.yaml").write_text("nc: 2\nnames: ['RBC', 'white cells']\n")
    write_yolo(
        tmp_path, "train", "a", Image.new("RGB", (64, 48)), [(0, (0, 0, 8, 8)), (0, (8, 8, 20, 20)), (1, (1, 2, 3, 4))]
    )
    write_yolo(tmp_path, "train", "b", Image.new("RGB", (64, 48)), [])
    return tmp_path


def test_counts_are_the_label_lines(folder):
    a, b = read_yolo(folder, "train")
    assert a.counts == {"RBC": 2, "white cells": 1} and b.counts == {"RBC": 0, "white cells": 0}
    # the box (8, 8, 20, 20) of a 64 × 48 image: centre (14, 14), size 12 × 12
    assert (folder / "train/labels/a.txt").read_text().splitlines()[1] == "0 0.218750 0.291667 0.187500 0.250000"


def test_shipped_labels_agree_with_their_counts():
    for item in read_yolo(TRAFFIC, "valid"):
        lines = (TRAFFIC / "valid" / "labels" / f"{item.path.stem}.txt").read_text().splitlines()
        assert sum(item.counts.values()) == len(lines)


def test_names_may_be_a_dictionary(folder):
    (folder / "data.yaml").write_text("names:\n  1: b\n  0: a\n")
    assert read_classes(folder) == ["a", "b"]


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda f: (f / "data.yaml").unlink(), r"data\.yaml: no such file.*export as"),
        (lambda f: (f / "data.yaml").write_text("names: []"), r"'names:' must list the classes"),
        (lambda f: (f / "data.yaml").write_text("names: ["), r"data\.yaml: not YAML"),
        (lambda f: (f / "train/labels/b.txt").unlink(), r"b\.txt: label file is missing"),
        (
            lambda f: (f / "train/labels/a.txt").write_text("0 .5 .5 .1 .1\n7 .5 .5 .1 .1\n"),
            r"a\.txt:2: class '7' is not one of 0 … 1",
        ),
        (lambda f: (f / "train/labels/a.txt").write_text("0 .5 .5\n"), r"a\.txt:1: 3 fields; a box has 5"),
        (lambda f: [p.unlink() for p in (f / "train/images").iterdir()], "holds no image"),
    ],
)
def test_faults_are_named(folder, spoil, message):
    spoil(folder)
    with pytest.raises(UsageError, match=message):
        read_yolo(folder, "train")


def test_a_missing_split_is_named(folder):
    with pytest.raises(UsageError, match="must hold valid/images"):
        read_yolo(folder, "valid")
    assert evaluation_split(folder) == "valid" and evaluation_split(TRAFFIC) == "test"


def test_augmented_copies_share_a_group(tmp_path):
    names = ("street_jpg.rf.60d109572.jpg", "street_jpg.rf.0a1b2c.jpg", "street.jpg")
    assert [photo_group(tmp_path / name) for name in names] == ["street_jpg", "street_jpg", "street"]
