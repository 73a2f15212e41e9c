"""A photo is on one side, whatever shows that two entries are of it."""

import pytest
from own_files import draw_photos, numbered

from helpers.data import photos_of, refuse_shared_photos, split_by_photo
from helpers.files import UsageError


def test_photos_are_known_by_group_content_name_and_through_others(tmp_path):
    names = ["a.rf.0a.png", "a.rf.0b.png", "b.png", "c.png", "d.png"]
    first, second, third, fourth, fifth = draw_photos(tmp_path, names)
    fifth.write_bytes(third.read_bytes())
    entries = [
        ([first], ""),
        ([second], ""),  # Roboflow's copy of the first
        ([third], ""),
        ([fourth], "g"),
        ([fifth], "g"),  # the third's bytes, the fourth's group
        ([first, fourth], ""),  # two images: all is one
    ]
    assert photos_of(entries[:3]) == [0, 0, 1]
    assert photos_of(entries[:5]) == [0, 0, 1, 1, 1]
    assert photos_of(entries) == [0] * 6


def test_shares_of_photos_not_of_rows():
    # 100 photos, of which the first has 50 rows
    photos = [*range(100), *[0] * 49]
    splits = split_by_photo(photos)
    of_photo = {photo: split for photo, split in zip(photos, splits, strict=True)}
    assert [list(of_photo.values()).count(s) for s in ("train", "valid", "test")] == [70, 15, 15]
    assert all(of_photo[photo] == split for photo, split in zip(photos, splits, strict=True))
    assert split_by_photo(photos) == splits != split_by_photo(photos, seed=1)


def test_under_30_photos_there_is_no_test_split_but_always_a_valid_one():
    assert set(split_by_photo(range(30))) == {"train", "valid", "test"}
    few = split_by_photo(range(29))
    assert (few.count("train"), few.count("valid"), few.count("test")) == (25, 4, 0)
    assert sorted(split_by_photo(range(2))) == ["train", "valid"]
    with pytest.raises(UsageError, match="all of the data is about one photo"):
        split_by_photo([0, 0, 0])


def test_a_photo_on_both_sides_is_refused_by_name():
    refuse_shared_photos([0, 1], ["train", "test"], ["a", "b"])
    with pytest.raises(UsageError, match=r"b \(test\) and a \(train\) are of one photo"):
        refuse_shared_photos([0, 0], ["train", "test"], ["a", "b"])


def test_equal_files_of_a_hundred_rows_are_one_photo(tmp_path):
    files = draw_photos(tmp_path, numbered(3))
    assert photos_of([([file], "") for file in files * 30]) == [0, 1, 2] * 30
