"""The image that a name means is found where exactly one file fits it."""

import unicodedata

import pytest
from own_files import draw_photos

from helpers.data import ImageFinder
from helpers.files import UsageError


@pytest.fixture
def finder(tmp_path):
    names = ["a.png", "photos/IMG_1.JPG", "photos/x/b.png", "photos/y/b.png", "Größe 1.png"]
    draw_photos(tmp_path, names)
    return ImageFinder([tmp_path])


@pytest.mark.parametrize(
    ("name", "file"),
    [
        ("a.png", "a.png"),
        ("./a.png", "a.png"),
        ("A.PNG", "a.png"),
        ("photos\\IMG_1.JPG", "photos/IMG_1.JPG"),
        ("C:\\Users\\me\\photos\\img_1.jpg", "photos/IMG_1.JPG"),
        ("/home/somebody/a.png", "a.png"),
        ("IMG_1", "photos/IMG_1.JPG"),
        ("img_1.jpeg", "photos/IMG_1.JPG"),
        ("y/b.png", "photos/y/b.png"),
        ("old\\x\\b.png", "photos/x/b.png"),
        (' "a.png" ', "a.png"),
        (unicodedata.normalize("NFD", "größe 1.png"), "Größe 1.png"),
    ],
)
def test_a_name_that_fits_one_file_is_that_file(finder, name, file):
    assert finder.find(name) == finder.folders[0] / file


def test_what_fits_several_files_or_none_is_said(finder):
    with pytest.raises(UsageError, match=r"image b\.png: 2 files are called so \(.*x.b\.png, "):
        finder.find("b.png")
    with pytest.raises(UsageError, match=r"image c\.png: no such file in"):
        finder.find("c.png")
    with pytest.raises(UsageError, match="is an address"):
        finder.find("https://example.org/a.png")


def test_the_first_folder_counts_first(tmp_path):
    draw_photos(tmp_path, ["one/a.png", "two/a.png", "two/b.png"])
    finder = ImageFinder([tmp_path / "two", tmp_path / "one"])
    assert finder.find("a.png") == tmp_path / "two" / "a.png"
