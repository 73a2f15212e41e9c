"""Pictures as files really have them: depth, transparency, orientation, damage."""

import io
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given, settings, strategies as st
from PIL import Image

from helpers.data import PreferenceRecord, to_trl
from helpers.data.data_doctor import check_file
from helpers.data.preferences import read_records, write_records
from helpers.files import ROOT, UsageError, open_image


def saved(folder, pixels, name="a.tif", **options):
    """A file of these pixels, in the depth of their type."""
    path = folder / name
    Image.fromarray(np.array(pixels)).save(path, **options)
    return path


def seen(path):
    """The grey values that a model is shown."""
    channels = np.asarray(open_image(path))
    assert channels.dtype == np.uint8 and channels.shape[2] == 3
    assert (channels == channels[..., :1]).all()
    return channels[..., 0].tolist()


@pytest.mark.parametrize(
    ("pixels", "kind", "values"),
    [
        ([[0, 257, 65535]], np.uint16, [[0, 1, 255]]),
        ([[0, 4096, 65535]], np.uint16, [[0, 15, 255]]),  # 4096 / 257 = 15.9
        ([[0, 160, 4095]], np.uint16, [[0, 10, 255]]),  # a camera's 12 bits
        ([[0, 65535, 70000]], np.int32, [[0, 238, 255]]),  # 65535 · 255 / 70000 = 238.7
        ([[-100, 0, 100]], np.int32, [[0, 127, 255]]),
        ([[0, 0.5, 1]], np.float32, [[0, 127, 255]]),
        ([[0, 0.5, 2]], np.float32, [[0, 63, 255]]),
        ([[-1, 0, 1]], np.float32, [[0, 127, 255]]),
        ([[np.nan, 0, 1]], np.float32, [[0, 0, 255]]),
        ([[300, 300, 300]], np.float32, [[255, 255, 255]]),
    ],
)
def test_more_than_8_bits_are_brought_to_their_range(tmp_path, pixels, kind, values):
    path = saved(tmp_path, np.array(pixels, dtype=kind))
    assert seen(path) == values


def test_a_png_of_16_bits_is_no_white_picture(tmp_path):
    path = saved(tmp_path, np.array([[0, 30000, 60000]], dtype=np.uint16), "a.png")
    assert seen(path) == [[0, 116, 233]]


def layer(mode):
    """Red, with nothing on its right side."""
    image = Image.new("RGBA", (4, 2), (255, 0, 0, 255))
    image.paste((0, 0, 0, 0), (2, 0, 4, 2))
    return image.convert(mode) if mode != "P" else image.quantize(4)


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P"])
def test_what_is_transparent_is_white(tmp_path, mode):
    path = tmp_path / "a.png"
    layer(mode).save(path)
    left, right = (open_image(path).getpixel((x, 0)) for x in (0, 3))
    assert right == (255, 255, 255)
    assert left == ((255, 0, 0) if mode != "LA" else (76, 76, 76))


def test_half_transparent_is_half_white(tmp_path):
    path = tmp_path / "a.webp"
    Image.new("RGBA", (2, 2), (0, 0, 0, 128)).save(path, lossless=True)
    assert open_image(path).getpixel((0, 0)) == (127, 127, 127)


def test_a_colour_that_counts_as_transparent_is_white(tmp_path):
    path = tmp_path / "a.png"
    Image.new("RGB", (2, 2), (9, 9, 9)).save(path, transparency=(9, 9, 9))
    assert open_image(path).getpixel((0, 0)) == (255, 255, 255)


def with_exif(raw):
    """A PNG whose EXIF is these bytes."""
    buffer = io.BytesIO()
    Image.new("RGB", (30, 20)).save(buffer, "PNG", exif=b"Exif\0\0" + raw)
    return buffer.getvalue()


BROKEN = {
    "EXIF": with_exif(b"XX*\0\x08\0\0\0"),
    "no picture": b"hello",
    "nothing": b"",
    "cut PNG": None,
    "a strip": None,
}


@pytest.mark.parametrize("name", BROKEN)
def test_what_cannot_be_read_is_one_located_error_in_check_and_in_training(tmp_path, name):
    raw = BROKEN[name]
    if raw is None:
        buffer = io.BytesIO()
        Image.effect_noise((2000, 9) if name == "a strip" else (40, 40), 90).save(buffer, "PNG")
        raw = buffer.getvalue() if name == "a strip" else buffer.getvalue()[:300]
    (tmp_path / "a.png").write_bytes(raw)
    path = tmp_path / "records.jsonl"
    answers = [{"text": "1"}, {"text": "2"}]
    record = PreferenceRecord(
        image="a.png", prompt="How many?", answers=answers, ranking=[[0], [1]], id="r7"
    )
    write_records(path, [record])
    found = [each for each in check_file(path).errors if each.kind == "unreadable image"]
    assert len(found) == 1 and found[0].line == 1
    with pytest.raises(UsageError, match=r"records\.jsonl:1 \(record r7\): image .*a\.png cannot"):
        to_trl(read_records(path))
    if name == "a strip":
        assert "2000 × 9 pixels: one side is over 200 times the other" in found[0].message


def test_a_strip_that_a_model_takes_is_no_error(tmp_path):
    path = saved(tmp_path, np.zeros((10, 2000), dtype=np.uint8), "a.png")
    assert open_image(path).size == (2000, 10)


@given(raw=st.binary(max_size=300), kind=st.sampled_from(["PNG", "GIF", "BMP", "TIFF", "WEBP"]))
@settings(max_examples=150, deadline=None)
def test_damage_is_always_a_usage_error(tmp_path_factory, raw, kind):
    buffer = io.BytesIO()
    Image.effect_noise((9, 9), 50).save(buffer, kind)
    whole = bytearray(buffer.getvalue())
    for place, byte in enumerate(raw):
        # some bytes of the file are others
        whole[(place * 7919 + byte) % len(whole)] ^= byte
    path = tmp_path_factory.mktemp("damage") / "a.png"
    path.write_bytes(whole)
    try:
        assert open_image(path).mode == "RGB"
    except UsageError as error:
        assert str(path) in str(error)


def test_check_says_once_a_file_how_its_pixels_were_changed(tmp_path):
    saved(tmp_path, np.array([[0, 4095]], dtype=np.uint16), "a.png")
    saved(tmp_path, np.array([[0, 255]], dtype=np.uint8), "b.png")
    answers = [{"text": "1"}, {"text": "2"}]
    records = []
    for number, image in enumerate(["a.png", "a.png", "b.png"]):
        record = PreferenceRecord(
            image=image, prompt=f"How many in {number}?", answers=answers, ranking=[[0], [1]]
        )
        records.append(record)
    path = tmp_path / "records.jsonl"
    write_records(path, records)
    found = [each for each in check_file(path).findings if each.kind == "pixels"]
    assert [each.line for each in found] == [1]
    assert "a.png: 12 bits a pixel, divided by 16" in found[0].message


def test_the_kind_of_image_is_registered_without_a_warning():
    command = [sys.executable, "-W", "error::UserWarning", "-c", "import helpers.data.trl_pairs"]
    run = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert run.returncode == 0 and "experimental" not in run.stderr


def test_a_data_set_shows_what_everything_else_shows(tmp_path):
    """DPO and SFT read images through the library, whose own decoding is another one."""
    saved(tmp_path, np.array([[0, 30000, 60000]], dtype=np.uint16), "a.png")
    layer("RGBA").save(tmp_path / "b.png")
    records = []
    for name in ("a.png", "b.png"):
        record = PreferenceRecord(
            image=str(tmp_path / name),
            prompt="How many?",
            answers=[{"text": "1"}, {"text": "2"}],
            ranking=[[0], [1]],
        )
        records.append(record)
    data = to_trl(records)
    # as TRL makes new columns, and what is left of a data set in a file
    mapped = data.map(lambda row: {"more": 1}).select(range(2))
    data.save_to_disk(tmp_path / "kept")
    for rows in (data, mapped, type(data).load_from_disk(tmp_path / "kept")):
        for row, record in zip(rows, records, strict=True):
            assert row["images"][0].tobytes() == open_image(record.image_paths[0]).tobytes()


@pytest.mark.parametrize(
    ("name", "cause"),
    [
        ("Photos/boat.png", "There is {folder}/photos: case counts."),
        ("photos/BOAT.png", "There is {folder}/photos/boat.png: case counts."),
        ("photos\\boat.png", "It has the backslashes of Windows: write /."),
        ("photos\\BOAT.png", "write /. There is {folder}/photos/boat.png: case counts."),
        ("photos/boat.png ", "It is there without the blank"),
        ("photos/boat.jpg", "There is {folder}/photos/boat.png."),
        ("photos/boat", "There is {folder}/photos/boat.png."),
        ("photos/cafe\u0301.png", "letters with accents are composed in another way"),
        ("~/boat.png", "~ is only known to a command line"),
        ("file:///x/boat.png", "file:// begins an address"),
        ("https://x.example/boat.png", "It is an address"),
        ("photos/" + "a" * 5000, "Paths are relative to the data file."),
        ("elsewhere/ship.png", "Paths are relative to the data file."),
    ],
)
def test_a_path_that_is_nearly_right_gets_a_word_on_the_likely_cause(tmp_path, name, cause):
    (tmp_path / "photos").mkdir()
    for file in ("boat.png", "caf\u00e9.png"):
        Image.new("RGB", (8, 8)).save(tmp_path / "photos" / file)
    with pytest.raises(UsageError) as error:
        open_image(tmp_path / name, "rows.jsonl:3")
    message = str(error.value)
    assert message.startswith("rows.jsonl:3: ") and len(message) < 12_000
    # a name that no system allows is said by the system itself
    assert cause.format(folder=tmp_path) in message or "File name too long" in message


def test_what_is_no_file_is_said_with_the_record(tmp_path):
    with pytest.raises(UsageError, match=r"rows\.jsonl:3: .* is a folder, not a file"):
        open_image(tmp_path, "rows.jsonl:3")
