import json

import pytest
from PIL import Image
from shipped import TRAFFIC

from data.scene_folders import write_yolo
from helpers.data.labels import (
    photo_group,
    read_classes,
    read_counts,
    read_yolo,
)
from helpers.data.scenes import Box
from helpers.data.splitting import photos_of, refuse_shared_photos
from helpers.files import UsageError


@pytest.fixture
def folder(tmp_path):
    """Two photos with the class names of a microscope data set."""
    (tmp_path / "data.yaml").write_text("nc: 2\nnames: ['RBC', 'white cells']\n")
    write_yolo(
        tmp_path,
        "train",
        "a",
        Image.new("RGB", (64, 48)),
        [(0, Box(0, 0, 8, 8)), (0, Box(8, 8, 20, 20)), (1, Box(1, 2, 3, 4))],
    )
    write_yolo(tmp_path, "train", "b", Image.new("RGB", (64, 48)), [])
    return tmp_path


def test_counts_are_the_label_lines(folder):
    a, b = read_yolo(folder, "train")
    assert a.counts == {"RBC": 2, "white cells": 1} and b.counts == {"RBC": 0, "white cells": 0}
    # the box (8, 8, 20, 20) of a 64 × 48 image: centre (14, 14), size 12 × 12
    assert (folder / "train/labels/a.txt").read_text().splitlines()[
        1
    ] == "0 0.218750 0.291667 0.187500 0.250000"


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
        (
            lambda f: (f / "train/labels/a.txt").write_text("0 .5 .5\n"),
            r"a\.txt:1: 3 fields; a box has 5",
        ),
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


def test_augmented_copies_share_a_group(tmp_path):
    names = ("street_jpg.rf.60d109572.jpg", "street_jpg.rf.0a1b2c.jpg", "street.jpg")
    assert [photo_group(tmp_path / name) for name in names] == [
        "street_jpg",
        "street_jpg",
        "street",
    ]


def coco(folder, **change):
    """Two images; image 1 has two cars and a crowd of persons, image 2 one car; buses never occur."""
    data = {
        "images": [{"id": 1, "file_name": "a.jpg"}, {"id": 2, "file_name": "b.jpg"}],
        "categories": [
            {"id": 7, "name": "car"},
            {"id": 3, "name": "person"},
            {"id": 9, "name": "bus"},
        ],
        "annotations": [
            {"image_id": 1, "category_id": 7, "iscrowd": 0},
            {"image_id": 1, "category_id": 7},
            {"image_id": 1, "category_id": 3, "iscrowd": 1},
            {"image_id": 2, "category_id": 7, "iscrowd": 0},
        ],
        **change,
    }
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "_annotations.coco.json").write_text(json.dumps(data))
    return folder.parent


def test_coco_leaves_out_what_nobody_counted(tmp_path, capsys):
    (only,) = read_counts(coco(tmp_path / "train"), "train")
    assert only.path == tmp_path / "train" / "b.jpg" and only.counts == {"car": 1, "person": 0}
    assert "1 of 2 images left out: they have crowd regions" in capsys.readouterr().out
    assert [item.counts for item in read_counts(tmp_path, "train", ["car"])] == [{"car": 1}]


def test_coco_in_its_own_layout(tmp_path):
    coco(tmp_path / "x")
    (tmp_path / "annotations").mkdir()
    (tmp_path / "x" / "_annotations.coco.json").rename(
        tmp_path / "annotations" / "instances_val2017.json"
    )
    assert read_counts(tmp_path, "val")[0].path == tmp_path / "val2017" / "b.jpg"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"categories": None}, "not COCO annotations"),
        ({"images": [{"id": 1}]}, "'file_name'"),
        (
            {"annotations": [{"image_id": 5, "category_id": 7}]},
            "annotation 0 speaks of image 5, category 7",
        ),
    ],
)
def test_faults_of_coco_are_named(tmp_path, change, message):
    with pytest.raises(UsageError, match=message):
        read_counts(coco(tmp_path / "train", **change), "train")


def voc(path, file, *names):
    objects = "".join(
        f"<object><name>{name}</name><difficult>1</difficult></object>" for name in names
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"<annotation><filename>{file}</filename>{objects}</annotation>")


def test_pascal_voc_in_both_layouts(tmp_path):
    voc(tmp_path / "r" / "train" / "a.xml", "a.jpg", "car", "car", "bus")
    voc(tmp_path / "r" / "train" / "b.xml", "b.jpg")
    a, b = read_counts(tmp_path / "r", "train")
    assert a.path == tmp_path / "r" / "train" / "a.jpg"
    assert a.counts == {"bus": 1, "car": 2} and b.counts == {"bus": 0, "car": 0}
    voc(tmp_path / "v" / "Annotations" / "a.xml", "a.jpg", "car")
    listed = tmp_path / "v" / "ImageSets" / "Main" / "val.txt"
    listed.parent.mkdir(parents=True)
    listed.write_text("a\n")
    assert read_counts(tmp_path / "v", "val")[0].path == tmp_path / "v" / "JPEGImages" / "a.jpg"
    listed.write_text("a\nc\n")
    with pytest.raises(UsageError, match=r"c\.xml: not a Pascal VOC file"):
        read_counts(tmp_path / "v", "val")
    (tmp_path / "r" / "train" / "b.xml").write_text("<annotation></annotation>")
    with pytest.raises(UsageError, match="<filename> or the <name> of an object is missing"):
        read_counts(tmp_path / "r", "train")


def test_a_folder_without_labels_and_unknown_classes(tmp_path, folder):
    (tmp_path / "empty").mkdir()
    with pytest.raises(UsageError, match="no labels of a split 'train'"):
        read_counts(tmp_path / "empty", "train")
    assert [item.counts for item in read_counts(folder, "train", ["white cells"])] == [
        {"white cells": 1},
        {"white cells": 0},
    ]
    with pytest.raises(UsageError, match="The labels name RBC, white cells"):
        read_counts(folder, "train", ["buses"])


def photos(folder, names):
    """Images of which those with equal first letters are copies of one photo under Roboflow's names."""
    (folder / "data.yaml").write_text("names: [x]\n")
    for number, name in enumerate(names):
        write_yolo(folder, "train", name, Image.new("RGB", (8, 8), (number, 0, 0)), [])
    return read_yolo(folder, "train")


def refuse(*splits):
    """Refuse counted images of one photo in two of the splits."""
    items = [item for split in splits for item in split]
    numbers = [str(number) for number, split in enumerate(splits) for _ in split]
    photos_of_items = photos_of([((item.path,), item.group) for item in items])
    refuse_shared_photos(photos_of_items, numbers, [str(item.path) for item in items])


def test_copies_of_a_photo_on_both_sides_are_refused(tmp_path):
    names = [f"{photo}_jpg.rf.{copy:03x}" for photo in "abcdefghij" for copy in range(3)]
    items = photos(tmp_path, names)
    write_yolo(
        tmp_path, "train", "z", Image.open(items[0].path), []
    )  # the same picture under another name
    items = read_yolo(tmp_path, "train")
    refuse(items[3:6], items[6:9])
    with pytest.raises(UsageError, match="are of one photo"):
        refuse(items[:1], items[1:2])
    with pytest.raises(
        UsageError, match=r"z\.png \(1\) and .*a_jpg\.rf\.000\.png \(0\) are of one photo"
    ):
        refuse(items[:3], items[3:])
