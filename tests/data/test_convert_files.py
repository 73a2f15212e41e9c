"""Whole files of every two-way format survive; a bad row stops the conversion and is named."""

import json

import pytest
from format_rows import RANKED, ROWS, TWO_WAY, fits
from hypothesis import given, settings
from strategies import records

from helpers.data.convert_files import convert_file, detect_format, scan_file, write_file
from helpers.data.convert_rows import to_rows
from helpers.data.formats import FORMATS
from helpers.data.preferences import read_records, write_records
from helpers.data.record import PreferenceRecord, name_images, resolve_images
from helpers.files import UsageError


@pytest.fixture(scope="module")
def sample():
    """60 random records with ids."""
    found = []

    @settings(max_examples=60, deadline=None, database=None, derandomize=True)
    @given(records())
    def collect(record):
        found.append(record.model_copy(update={"id": f"{len(found)}-{record.id}"}))

    collect()
    return found


@pytest.mark.parametrize("name", TWO_WAY)
def test_files_of_many_records_survive(name, sample, tmp_path):
    """Through a file, all pairs of N answers as rows of their own, and in any order of the rows."""
    kept = [record for record in sample if fits(name, record)]
    path = tmp_path / "file"
    left_out = write_file(path, sample, name)
    assert len(left_out) == len(sample) - len(kept) and len(kept) > 5
    assert [line.record.model_dump_json() for line in scan_file(path)] == [
        r.model_dump_json() for r in kept
    ]
    text = path.read_text(encoding="utf-8")
    rows = (
        json.loads(text)
        if FORMATS[name].array
        else [json.loads(line) for line in text.split("\n") if line]
    )
    assert len(rows) == sum(max(1, len(r.pairs())) for r in kept)
    path.write_text(json.dumps(rows[::-1]))
    assert sorted(line.record.id for line in scan_file(path)) == sorted(r.id for r in kept)


def test_convert_moves_paths_and_says_what_it_did(tmp_path):
    (tmp_path / "out").mkdir()
    source = tmp_path / "votes.jsonl"
    rows = [
        ROWS["ab"],
        {**ROWS["ab"], "preference": "tie"},
        {**ROWS["ab"], "instruction": "<|user|>\nq<image>"},
    ]
    source.write_text("".join(json.dumps(row) + "\n" for row in rows))
    summary = convert_file(source, tmp_path / "out" / "r.jsonl")
    assert (
        summary.startswith("3 records →")
        and "changed in 1 rows: the prompt was in another model's" in summary
    )
    lines = (tmp_path / "out" / "r.jsonl").read_text().splitlines()
    assert json.loads(lines[0])["images"] == ["../path/to/img1.jpg"]
    assert read_records(tmp_path / "out" / "r.jsonl")[0].images == [
        str(tmp_path / "path" / "to" / "img1.jpg")
    ]
    summary = convert_file(tmp_path / "out" / "r.jsonl", tmp_path / "trl.jsonl", "trl")
    assert (
        "2 records →" in summary
        and "left out: record 2: no answer is ranked above another" in summary
    )
    assert json.loads((tmp_path / "trl.jsonl").read_text().splitlines()[0])["images"] == [
        "path/to/img1.jpg"
    ]


def test_a_bad_row_stops_the_conversion_and_is_named(tmp_path):
    source = tmp_path / "votes.jsonl"
    source.write_text(
        json.dumps(ROWS["ab"])
        + "\nnonsense\n"
        + json.dumps({**ROWS["ab"], "preference": 1})
        + "\n[1]\n"
    )
    with pytest.raises(UsageError) as error:
        convert_file(source, tmp_path / "out.jsonl")
    message = str(error.value)
    assert "3 of 4 rows cannot be read" in message and "votes.jsonl:2: not JSON" in message
    assert "votes.jsonl:3: unknown preference 1" in message and "a row is an object" in message
    assert not (tmp_path / "out.jsonl").exists()
    with pytest.raises(UsageError, match="unknown format 'csv': choose from record, ab"):
        convert_file(source, tmp_path / "out", "csv")
    source.write_text('{"colour": 1}\n')
    with pytest.raises(UsageError, match=r"unknown format \(columns: colour\)"):
        convert_file(source, tmp_path / "out")


def test_records_of_this_project_are_recognised(tmp_path):
    records = [PreferenceRecord.model_validate(RANKED)]
    path = write_records(tmp_path / "r.jsonl", records)
    assert [line.record for line in scan_file(path)] == records
    assert detect_format({"image": "a", "prompt": "q", "chosen": "x", "rejected": "y"}) == "record"
    named = records[0].model_copy(update={"images": ["a.png", "/b.png", "http://c/d.png"]})
    read = resolve_images(named, tmp_path / "r.jsonl", 1)
    assert read.images == [str(tmp_path / "a.png"), "/b.png", "http://c/d.png"]
    assert name_images(read, tmp_path / "x").images == ["../a.png", "/b.png", "http://c/d.png"]
    assert len(to_rows("trl", records[0])) == 3 and len(to_rows("trl", records[0], "extremes")) == 1
