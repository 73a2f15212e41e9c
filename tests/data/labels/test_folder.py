"""Labels as the tools write them: what is counted, what is not used, and what is refused."""

import json
import os

import pytest
from label_files import COCO, coco_content, write_coco, write_image, write_voc
from PIL import Image
from shipped import TRAFFIC

from data.scene_folders import write_yolo
from helpers.cli import main
from helpers.data import open_data, open_labels, photo_group, read_counts
from helpers.data.leftovers import Leftovers
from helpers.data.scenes import Box
from helpers.data.splitting import photos_of, refuse_shared_photos
from helpers.files import UsageError

A_BOX = "0.5 0.5 0.25 0.25"


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


def counts_of(folder, split="train", classes=None):
    return {item.path.stem: item.counts for item in read_counts(folder, split, classes)}


def leftovers_of(folder):
    """What opening the folder leaves, reason → places."""
    return open_data(folder).left.reasons


# --- YOLO -----------------------------------------------------------------------------------------


def test_counts_are_the_label_lines(folder):
    a, b = read_counts(folder, "train")
    assert a.counts == {"RBC": 2, "white cells": 1} and b.counts == {"RBC": 0, "white cells": 0}
    # the box (8, 8, 20, 20) of a 64 × 48 image: centre (14, 14), size 12 × 12
    lines = (folder / "train/labels/a.txt").read_text().splitlines()
    assert lines[1] == "0 0.218750 0.291667 0.187500 0.250000"


def test_shipped_labels_agree_with_their_counts():
    for item in read_counts(TRAFFIC, "valid"):
        lines = (TRAFFIC / "valid" / "labels" / f"{item.path.stem}.txt").read_text().splitlines()
        assert sum(item.counts.values()) == len(lines)


@pytest.mark.parametrize(
    ("names", "rows", "counts"),
    [
        ("{1: b, 0: a}", f"0 {A_BOX}\n", {"a": 1, "b": 0}),
        # Keys are the numbers in the label files, not places: 2 is the second
        ("{2: b, 1: a}", f"2 {A_BOX}\n", {"a": 0, "b": 1}),
        ("{'0': a}", f"0 {A_BOX}\n", {"a": 1}),
        # as Windows saves a text, and as NumPy writes a number
        ("[a]", f"\ufeff0 {A_BOX}\n", {"a": 1}),
        ("[a]", f"0.0 {A_BOX}\n", {"a": 1}),
        # a polygon of three points
        ("[a]", "0 0.1 0.1 0.2 0.1 0.2 0.2\n", {"a": 1}),
        # rounded by the tool that wrote it
        ("[a]", "0 0.5 0.5 1.000001 1.0\n", {"a": 1}),
        # one box twice is one object; of another class it is another object
        ("[a, b]", f"0 {A_BOX}\n0 {A_BOX}\n1 {A_BOX}\n", {"a": 1, "b": 1}),
        ("[a]\nkpt_shape: [1, 3]", f"0 {A_BOX} 0 0 0\n", {"a": 1}),
    ],
)
def test_labels_as_they_are_written(folder, names, rows, counts):
    (folder / "data.yaml").write_text(f"names: {names}\n", encoding="utf-8")
    (folder / "train/labels/a.txt").write_text(rows, encoding="utf-8")
    assert counts_of(folder)["a"] == counts


def test_a_row_that_stands_twice_is_named(folder):
    (folder / "train/labels/a.txt").write_text(f"0 {A_BOX}\n" * 3)
    places = leftovers_of(folder)["a label line that stands twice"]
    assert [place.rpartition("/")[2] for place in places] == ["a.txt:2", "a.txt:3"]


def _yaml(text):
    return lambda folder: (folder / "data.yaml").write_text(text)


def _rows(text):
    return lambda folder: (folder / "train/labels/a.txt").write_text(text)


BOMB = "a: &a [x, x]\nb: &b [*a, *a]\nnames: [*b, *b]\n"


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda f: (f / "data.yaml").unlink(), r"data\.yaml: no such file.*export as"),
        (_yaml("names: []"), r"'names:' must list the classes"),
        (_yaml("names: ["), r"data\.yaml: not YAML"),
        (_yaml("a: 2024-13-45\nnames: [a]"), r"data\.yaml: not YAML"),
        (_yaml("[" * 10_000), r"data\.yaml: not YAML"),
        (_yaml(BOMB), r"data\.yaml: uses YAML's aliases"),
        (_yaml("names: [a, yes]"), r"class 1 is True, which is no text. Put its name in quotes"),
        (_yaml("names: [1, a]"), r"class 0 is 1, which is no text"),
        (_yaml("names: [a, ]\nnc: 2"), r"says nc: 2, and names 1 classes"),
        (_yaml("names: {a: b}"), r"has 'a' where a class number is expected"),
        (_yaml("names: {1: a, 2: b}"), r"a\.txt:1: class '0' is not one of \[1, 2\]"),
        (_yaml("names: [car, Car]"), r"'car' and 'Car' are one to an answer.*CLASSES = \['car'\]"),
        (_yaml("names: [bus, buses]"), r"'bus' and 'buses' are one to an answer"),
        (_yaml("names: [car, x, car]"), r"'car' and 'car' are one to an answer"),
        (_yaml("names: [a, b, 'a, 2 b']"), "could not be read again"),
        (lambda f: (f / "train/labels/b.txt").unlink(), r"b\.txt: label file is missing"),
        (
            _rows(f"0 {A_BOX}\n7 {A_BOX}\n"),
            r"a\.txt:2: class '7' is not one of 0 … 1",
        ),
        (_rows(f"{'9' * 5000} {A_BOX}\n"), r"a\.txt:1: class '9+' is not one of 0 … 1"),
        (_yaml(f"names: {{'{'9' * 5000}': a}}"), "where a class number is expected|not YAML"),
        (_rows("0 .5 .5\n"), r"a\.txt:1: 3 fields; a box has 5"),
        (_rows(f"0 {A_BOX} 0.9\n"), r"a\.txt:1: 6 fields: a model's predictions"),
        (_rows(f"0 {A_BOX} 0.9 0.9 0.9\n"), r"a\.txt:1: 8 fields: neither a box"),
        (_rows("0 nan .5 .1 .1\n"), r"a\.txt:1: 'nan' is no share"),
        (_rows("0 .5 -0.5 .1 .1\n"), r"a\.txt:1: '-0.5' is no share"),
        (_rows("0 32 24 8 8\n"), r"a\.txt:1: '32' is no share"),
        (_rows("0 x .5 .1 .1\n"), r"a\.txt:1: 'x' is no share"),
        (lambda f: [p.unlink() for p in (f / "train/images").iterdir()], "holds no image"),
    ],
)
def test_faults_are_named(folder, spoil, message):
    spoil(folder)
    with pytest.raises(UsageError, match=message):
        read_counts(folder, "train")


def test_a_missing_split_is_named(folder):
    with pytest.raises(UsageError, match=r"no labels of a split 'valid'\. There is train"):
        read_counts(folder, "valid")


LAYOUTS = {
    "Roboflow": ("train/images/a.png", "train/labels/a.txt", "valid/images/b.png"),
    "ultralytics": ("images/train/a.png", "labels/train/a.txt", "images/val/b.png"),
    "COCO's years": ("images/train/x/a.png", "labels/train/x/a.txt", "images/val/x/b.png"),
    "side by side": ("train/a.png", "train/a.txt", "val/b.png"),
    "CVAT": ("obj_train_data/a.png", "obj_train_data/a.txt", "obj_valid_data/b.png"),
}


@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS)
def test_layouts_of_yolo(tmp_path, layout):
    image, label, other = layout
    (tmp_path / "classes.txt").write_text("car\nbus\n")
    write_image(tmp_path / image)
    write_image(tmp_path / other, 1)
    (tmp_path / label).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / label).write_text(f"1 {A_BOX}\n")
    of_other = tmp_path / other.replace("images", "labels").replace(".png", ".txt")
    of_other.parent.mkdir(parents=True, exist_ok=True)
    of_other.write_text("")
    assert counts_of(tmp_path) == {"a": {"car": 0, "bus": 1}}
    assert counts_of(tmp_path, "val") == {"b": {"car": 0, "bus": 0}}
    assert set(open_data(tmp_path).parts) == {"train", "valid"}


def test_labels_without_splits(tmp_path):
    """Label Studio's export, and a folder where LabelImg has worked."""
    for name, image, label in (("apart", "images", "labels"), ("together", "", "")):
        folder = tmp_path / name
        write_image(folder / image / "a.png")
        (folder / label).mkdir(exist_ok=True)
        (folder / label / "a.txt").write_text(f"0 {A_BOX}\n")
        (folder / "classes.txt").write_text("car\n")
        assert open_labels(folder).splits == [""]
        opened = open_data(folder)
        assert [task.facts for task in opened.parts[""].tasks] == [{"car": 1}]
        assert not opened.left


@pytest.mark.parametrize(
    ("named", "said"),
    [
        ("train: ../mine/images\nval: other/images\n", ""),
        ("path: /content/set\ntrain: mine/images\nval: other/images\n", ""),
        ("train: [mine/images]\nval: list.txt\n", ""),
        ("train: /etc\nval: other/images\n", "train: /etc is not in the folder, and not used"),
        ("train: ../../mine/imgs\nval: other/images\n", "train: ../../mine/imgs is not in"),
    ],
)
def test_the_folders_that_data_yaml_names(tmp_path, named, said):
    (tmp_path / "data.yaml").write_text(f"{named}names: [car]\n")
    for split, name in (("mine", "a"), ("other", "b")):
        write_yolo(tmp_path, split, name, Image.new("RGB", (8, 8), (len(split), 0, 0)), [])
    (tmp_path / "list.txt").write_text("./other/images/b.png\n")
    left = Leftovers()
    labels = open_labels(tmp_path, left)
    assert labels.splits == (["valid"] if said else ["train", "valid"])
    assert said in "".join(left.notes) and bool(left.notes) == bool(said)
    assert counts_of(tmp_path, "valid") == {"b": {"car": 0}}


def test_what_no_label_speaks_of_is_named(folder):
    write_image(folder / "extra" / "z.png")
    (folder / "train/labels/old.txt").write_text("")
    (folder / "README.txt").write_text("Exported by somebody.")
    assert leftovers_of(folder) == {
        "an image that no label speaks of": ["extra/z.png"],
        "a label file without an image": ["train/labels/old.txt"],
    }


def test_what_is_not_missed_is_no_error(folder):
    """`check` ends with 1 for what has to be put right, not for a README's picture."""
    write_image(folder / "extra" / "z.png")
    (folder / "train/labels/a.txt").write_text(f"0 {A_BOX}\n" * 3)
    left = open_data(folder).left
    assert len(left) == 3 and left.errors == 0 and main(["check", str(folder)]) == 0
    left.add("the image cannot be read", "a.png")
    assert left.errors == 1


def test_files_that_are_about_something_else_are_no_labels(tmp_path):
    """Lines of preferences may be called result.json, and a card of the data data.yaml."""
    write_image(tmp_path / "a.png")
    row = {"image": "a.png", "prompt": "?", "chosen": "x", "rejected": "y"}
    lines = [json.dumps(row), json.dumps({**row, "chosen": "z"})]
    (tmp_path / "result.json").write_text("\n".join(lines))
    (tmp_path / "data.yaml").write_text("author: me\n")
    assert open_labels(tmp_path) is None
    assert len(open_data(tmp_path).all_records()) == 2
    (tmp_path / "train").mkdir()
    (tmp_path / "train" / "_annotations.coco.json").write_text("{")
    with pytest.raises(UsageError, match=r"_annotations\.coco\.json: not JSON"):
        open_labels(tmp_path)


def test_augmented_copies_share_a_group(tmp_path):
    names = ("street_jpg.rf.60d109572.jpg", "street_jpg.rf.0a1b2c.jpg", "street.jpg")
    groups = [photo_group(tmp_path / name) for name in names]
    assert groups == ["street_jpg", "street_jpg", ""]


def test_two_photos_of_one_name_are_two(tmp_path):
    """Cameras call the first photo of every day 1.jpg."""
    (tmp_path / "data.yaml").write_text("names: [car]\n")
    for number, split in enumerate(("train", "valid")):
        write_yolo(tmp_path, split, "1", Image.new("RGB", (8, 8), (number, 0, 0)), [])
    for number, day in enumerate(("mon", "tue")):
        write_image(tmp_path / "train/images" / day / "2.png", 10 + number)
        (tmp_path / "train/labels" / day).mkdir()
        (tmp_path / "train/labels" / day / "2.txt").write_text("")
    items = read_counts(tmp_path, "train") + read_counts(tmp_path, "valid")
    assert len(set(photos_of([((item.path,), item.group) for item in items]))) == 4
    assert [item.name for item in items] == ["train-1", None, None, "valid-1"]


# --- COCO -----------------------------------------------------------------------------------------


def test_coco_leaves_out_what_nobody_counted(tmp_path):
    write_coco(tmp_path / "train" / "_annotations.coco.json")
    assert counts_of(tmp_path) == {"b": {"car": 1, "person": 0}}
    assert leftovers_of(tmp_path) == {
        "an image with crowd regions, which nobody counted": ["a.jpg"],
    }
    assert counts_of(tmp_path, classes=["Cars"]) == {"b": {"Cars": 1}}


@pytest.mark.parametrize(
    ("annotations", "images", "split"),
    [
        ("annotations/instances_val2017.json", "val2017", "valid"),
        ("annotations/instances_val.json", "images/val", "valid"),
        ("annotations/instances_train2017.json", "images/train2017", "train"),
        ("annotations/instances_default.json", "images/default", ""),
        ("annotations/instances_default.json", "images", ""),
        ("annotations/train.json", "images", "train"),
        ("result.json", "images", ""),
        ("labels.json", "data", ""),
        ("valid/_annotations.coco.json", "valid", "valid"),
    ],
)
def test_coco_in_its_own_layouts(tmp_path, annotations, images, split):
    write_coco(tmp_path / annotations, tmp_path / images)
    labels = open_labels(tmp_path)
    assert labels.splits == [split]
    (item,) = labels.read(split, {"car": "car"})
    assert item.path == tmp_path / images / "b.jpg" and item.counts == {"car": 1}


@pytest.mark.parametrize("name", ["C:\\data\\b.jpg", "val2017/b.jpg", "/home/me/B.JPG", "b"])
def test_names_of_other_machines_in_coco(tmp_path, name):
    images = [{"id": 1, "file_name": "a.jpg"}, {"id": 2, "file_name": name}]
    write_coco(tmp_path / "train" / "_annotations.coco.json", images=images)
    assert [item.path.name for item in read_counts(tmp_path, "train")] == ["b.jpg"]


def test_a_class_of_one_split_is_asked_for_in_all(tmp_path):
    """Else a right answer of the other splits would be graded wrong."""
    rare = [{"image_id": 2, "category_id": 9}]
    write_coco(tmp_path / "train" / "_annotations.coco.json")
    write_coco(tmp_path / "valid" / "_annotations.coco.json", number=5, annotations=rare)
    for split in ("train", "valid"):
        assert all(
            set(each) == {"car", "person", "bus"} for each in counts_of(tmp_path, split).values()
        )
    # as two sources, too
    parts = open_data({"train": tmp_path / "train", "valid": tmp_path / "valid"}).parts
    asked = [list(task.facts) for part in parts.values() for task in part.tasks]
    assert all(classes == ["car", "person", "bus"] for classes in asked) and len(asked) == 3


def test_an_image_that_is_not_there_or_not_named(tmp_path):
    images = [{"id": 1, "file_name": "a.jpg"}, {"id": 2, "file_name": "gone.jpg"}]
    annotations = [{"image_id": 1, "category_id": 7}]
    write_coco(tmp_path / "_annotations.coco.json", images=images, annotations=annotations)
    left = leftovers_of(tmp_path)
    assert left["an image that no label speaks of"] == ["b.jpg"]
    (place,) = left["the image of a label is not there"]
    assert place.startswith("_annotations.coco.json: image gone.jpg: no such file")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"categories": None}, "not COCO annotations"),
        ({"images": [{"id": 1}]}, "'file_name'"),
        (
            {"annotations": [{"image_id": 5, "category_id": 7}]},
            "annotation 0 speaks of image 5, category 7",
        ),
        (
            {"annotations": [{"image_id": 2, "category_id": 7, "score": 0.9}]},
            "annotation 0 has a score",
        ),
        (
            {"annotations": [{"image_id": 2, "category_id": 7, "bbox": [0, None, 1, 1]}]},
            "annotation 0: its bbox holds what is no number",
        ),
        (
            {"images": [{"id": 1, "file_name": "a.jpg"}, {"id": 1, "file_name": "b.jpg"}]},
            "'a.jpg' and 'b.jpg' have one id, 1",
        ),
        (
            {"images": [{"id": 1, "file_name": "b.jpg"}, {"id": 2, "file_name": "./b.jpg"}]},
            "are one file",
        ),
        (
            {"categories": [{"id": 7, "name": "car"}, {"id": 3, "name": "Cars"}]},
            "'car' and 'Cars' are one to an answer",
        ),
        ({"annotations": []}, "no object is labelled"),
    ],
)
def test_faults_of_coco_are_named(tmp_path, change, message):
    write_coco(tmp_path / "train" / "_annotations.coco.json", **change)
    with pytest.raises(UsageError, match=message):
        read_counts(tmp_path, "train")


def test_other_json_is_no_label(tmp_path):
    (tmp_path / "annotations").mkdir()
    for name in ("captions_val2017.json", "train.json"):
        content = coco_content()
        del content["categories"]
        (tmp_path / "annotations" / name).write_text(json.dumps(content))
    assert open_labels(tmp_path) is None
    assert COCO["annotations"]


# --- Pascal VOC -----------------------------------------------------------------------------------


def test_pascal_voc_beside_the_images(tmp_path):
    write_voc(tmp_path / "train" / "a.xml", "a.jpg", "car", "car", "bus")
    write_voc(tmp_path / "train" / "b.xml", "b.jpg")
    write_voc(tmp_path / "valid" / "c.xml", "c.jpg", "cart")
    classes = {"bus": 0, "car": 0, "cart": 0}
    assert counts_of(tmp_path) == {"a": classes | {"bus": 1, "car": 2}, "b": classes}
    assert counts_of(tmp_path, "valid") == {"c": classes | {"cart": 1}}


def test_pascal_voc_in_its_own_layout(tmp_path):
    write_voc(tmp_path / "Annotations" / "a.xml", "a.jpg", "car", images=tmp_path / "JPEGImages")
    listed = tmp_path / "ImageSets" / "Main" / "val.txt"
    listed.parent.mkdir(parents=True)
    listed.write_text("a\n")
    (listed.parent / "car_val.txt").write_text("a  1\n")
    (item,) = read_counts(tmp_path, "val")
    assert item.path == tmp_path / "JPEGImages" / "a.jpg" and item.counts == {"car": 1}
    listed.write_text("a\nc\n")
    with pytest.raises(UsageError, match=r"c\.xml: not a Pascal VOC file"):
        read_counts(tmp_path, "val")


@pytest.mark.parametrize(
    ("label", "images", "split"),
    [
        ("annotations/a.xml", "images", ""),
        ("annotations/train/a.xml", "images/train", "train"),
        ("train/annotations/a.xml", "train/images", "train"),
        ("a.xml", "", ""),
        ("val/a.xml", "val", "valid"),
    ],
)
@pytest.mark.parametrize("named", ["a.jpg", "a", "DSC_0001.JPG", "C:\\photos\\a.jpg", ""])
def test_pascal_voc_as_tools_write_it(tmp_path, label, images, split, named):
    """The image with the name of the XML file: what it names was true where it was labelled."""
    write_voc(tmp_path / label, "a.jpg", "car", images=tmp_path / images, named=named)
    labels = open_labels(tmp_path)
    (item,) = labels.read(split, {"car": "car"})
    assert labels.splits == [split]
    assert item.path == tmp_path / images / "a.jpg" and item.counts == {"car": 1}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("<annotation><object></object></annotation>", "object 1 has no <name>"),
        ("<annotation>", r"b\.xml: not a Pascal VOC file"),
        ("<!DOCTYPE a [<!ENTITY x 'y'>]><annotation>&x;</annotation>", "declares XML entities"),
        (
            "<annotation><object><name>car</name><score>.9</score></object></annotation>",
            "object 1 has a score",
        ),
    ],
)
def test_faults_of_pascal_voc_are_named(tmp_path, text, message):
    write_voc(tmp_path / "train" / "b.xml", "b.jpg", "car")
    (tmp_path / "train" / "b.xml").write_text(text)
    with pytest.raises(UsageError, match=message):
        read_counts(tmp_path, "train")


def test_two_labels_of_one_image_and_one_of_none(tmp_path):
    write_voc(tmp_path / "train" / "a.xml", "a.jpg", "car")
    write_voc(tmp_path / "train" / "gone.xml", "gone.jpg", "car")
    os.remove(tmp_path / "train" / "gone.jpg")
    (place,) = leftovers_of(tmp_path)["the image of a label is not there"]
    assert place.endswith("gone.xml: gone.jpg")
    write_voc(tmp_path / "train" / "copy.xml", "copy.jpg", "car", named="a.jpg")
    os.remove(tmp_path / "train" / "copy.jpg")
    with pytest.raises(UsageError, match=r"copy\.xml and .*a\.xml are both about .*a\.jpg"):
        read_counts(tmp_path, "train")


# --- all of them ----------------------------------------------------------------------------------


def test_a_folder_without_labels_and_unknown_classes(tmp_path, folder):
    (tmp_path / "empty").mkdir()
    with pytest.raises(UsageError, match="no labels of a split 'train'"):
        read_counts(tmp_path / "empty", "train")
    assert counts_of(folder, classes=["white cells"]) == {
        "a": {"white cells": 1},
        "b": {"white cells": 0},
    }
    with pytest.raises(UsageError, match="The labels name RBC, white cells"):
        read_counts(folder, "train", ["buses"])


def test_names_that_are_one_to_an_answer_are_counted_as_one_if_asked(folder):
    (folder / "data.yaml").write_text("names: [Car, car]\n")
    assert counts_of(folder, classes=["car"])["a"] == {"car": 3}
    with pytest.raises(UsageError, match="'car' and 'Car' are one to an answer"):
        read_counts(folder, "train", ["car", "Car"])


def photos(folder, names):
    """Images of which those with equal first letters are copies of one photo."""
    (folder / "data.yaml").write_text("names: [x]\n")
    for number, name in enumerate(names):
        write_yolo(folder, "train", name, Image.new("RGB", (8, 8), (number, 0, 0)), [])
    return read_counts(folder, "train")


def refuse(*splits):
    """Refuse counted images of one photo in two of the splits."""
    items = [item for split in splits for item in split]
    numbers = [str(number) for number, split in enumerate(splits) for _ in split]
    photos_of_items = photos_of([((item.path,), item.group) for item in items])
    refuse_shared_photos(photos_of_items, numbers, [str(item.path) for item in items])


def test_copies_of_a_photo_on_both_sides_are_refused(tmp_path):
    names = [f"{photo}_jpg.rf.{copy:03x}" for photo in "abcdefghij" for copy in range(3)]
    items = photos(tmp_path, names)
    # the same picture under another name
    write_yolo(tmp_path, "train", "z", Image.open(items[0].path), [])
    items = read_counts(tmp_path, "train")
    refuse(items[3:6], items[6:9])
    with pytest.raises(UsageError, match="are of one photo"):
        refuse(items[:1], items[1:2])
    message = r"z\.png \(1\) and .*a_jpg\.rf\.000\.png \(0\) are of one photo"
    with pytest.raises(UsageError, match=message):
        refuse(items[:3], items[3:])
