"""Files of records: what survives them, and how a bad line is named."""

import json

import jsonschema
import pytest
from budgets import cases
from hypothesis import HealthCheck, given, settings
from preference_files import RANKED, SHORT
from shipped import TRAFFIC
from strategies import records as any_records

from helpers.data.preferences import json_schema, read_records, scan_records, write_records
from helpers.data.record import PreferenceRecord, record_key, resolve_images
from helpers.files import ROOT, UsageError, write_text

SCHEMA = json_schema()
VALIDATOR = jsonschema.Draft202012Validator(SCHEMA)


def write_lines(path, *lines):
    path.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    return path


@cases(50, 1000)
def test_any_record_survives_its_file_form(number):
    @settings(max_examples=number, deadline=None, suppress_health_check=list(HealthCheck))
    @given(any_records())
    def survives(record):
        line = record.model_dump_json(exclude_defaults=True)
        assert PreferenceRecord.model_validate(json.loads(line)) == record
        assert VALIDATOR.is_valid(json.loads(line))

    survives()


def test_the_exported_schema_is_this_one_and_takes_the_short_form():
    assert json.loads((ROOT / "data" / "preference_record.schema.json").read_text()) == SCHEMA, (
        "run: python -m helpers schema"
    )
    for row in (SHORT, RANKED, {**SHORT, "chosen": {"text": "2", "origin": "truth"}}):
        VALIDATOR.validate(row)
    for row in (
        {**SHORT, "colour": 1},
        {k: v for k, v in SHORT.items() if k != "image"},
        {**RANKED, "chosen": "2"},
    ):
        assert not VALIDATOR.is_valid(row)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (b'{"image": NaN}', "NaN is not a JSON value"),
        (b'{"a": 1e999}', "1e999 is too large"),
        (b'{"prompt": "a", "prompt": "b"}', "key 'prompt' stands twice"),
        (b'{"prompt": "\\ud800"}', "stands without its partner"),
        (b"[" * 100_000, "nested too deeply"),
        (b"1" * 5000, "not JSON"),
        (b"\xff", "not UTF-8 text"),
        (b"{} {}", "column 4"),
    ],
)
def test_lines_that_other_parsers_let_pass_are_refused(tmp_path, line, message):
    path = tmp_path / "p.jsonl"
    path.write_bytes(
        b"\xef\xbb\xbf"
        + json.dumps(SHORT).encode()
        + b"\r\n"
        + line
        + b"\n"
        + json.dumps(SHORT).encode()
    )
    first, bad, last = scan_records(path)
    assert first.record == last.record == PreferenceRecord.model_validate(SHORT)
    assert bad.number == 2 and bad.record is None and message in bad.error


def test_records_survive_the_round_trip(tmp_path):
    path = tmp_path / "r.jsonl"
    records = [resolve_images(PreferenceRecord.model_validate(r), path, 1) for r in (SHORT, RANKED)]
    records += read_records(TRAFFIC / "preferences_train.jsonl")
    assert read_records(write_records(path, records)) == records


def test_images_are_absolute_once_read_and_relative_in_the_file(tmp_path):
    line = {**SHORT, "image": "images/a.png"}
    path = write_text(tmp_path / "one" / "r.jsonl", json.dumps(line) + "\n")
    (record,) = read_records(path)
    assert (
        record.images == [str(tmp_path / "one" / "images" / "a.png")]
        and record.place == f"{path}:1"
    )
    copy = write_records(tmp_path / "two" / "r.jsonl", [record])
    assert json.loads(copy.read_text())["images"] == ["../one/images/a.png"]
    assert read_records(copy) == [record]
    here = write_records(tmp_path / "one" / "again.jsonl", [record])
    assert json.loads(here.read_text())["images"] == ["images/a.png"]


def test_absolute_names_and_addresses_stay_what_they_were(tmp_path):
    names = ["/photos/a.png", "https://example.org/b.png"]
    path = write_text(
        tmp_path / "r.jsonl", "".join(json.dumps({**SHORT, "image": name}) + "\n" for name in names)
    )
    records = read_records(path)
    assert [record.images for record in records] == [[name] for name in names]
    copy = write_records(tmp_path / "out" / "r.jsonl", records)
    assert [json.loads(line)["images"] for line in copy.read_text().splitlines()] == [
        [name] for name in names
    ]


def test_the_key_of_a_record_without_an_id_does_not_depend_on_the_folder(tmp_path):
    keys = set()
    for folder in ("one", "two"):
        path = write_text(tmp_path / folder / "r.jsonl", json.dumps(SHORT) + "\n")
        keys.add(record_key(read_records(path)[0]))
    assert keys == {record_key(PreferenceRecord.model_validate(SHORT))}


def test_numbers_as_ids_and_columns_of_exports_are_kept(tmp_path):
    row = {**SHORT, "id": 7, "group": 3, "__index_level_0__": 5, "split": "train"}
    (record,) = read_records(write_lines(tmp_path / "p.jsonl", json.dumps(row)))
    assert (record.id, record.group) == ("7", "3")
    assert record.extra == {"__index_level_0__": 5, "split": "train"}


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"chosen": "  "}, "chosen: the answer is empty"),
        ({"rejected": "There are 2."}, "have the same text but different ranks"),
        ({"image": None}, "images"),
        ({"prompt": ""}, "prompt.0.content"),
        ({"judgement": "red"}, "judgement: Extra inputs are not permitted"),
        ({"chosen": 2}, "chosen: 2 is no text: put the answer in quotes"),
        ({"truth": {"car": 1, "Cars": 2}}, "the truth counts 'car' and 'Cars'"),
    ],
)
def test_a_bad_record_is_named_by_file_line_and_remedy(tmp_path, change, expected):
    path = write_lines(tmp_path / "p.jsonl", json.dumps(SHORT), json.dumps({**SHORT, **change}))
    with pytest.raises(UsageError) as error:
        read_records(path)
    message = str(error.value)
    assert message.startswith(f"{path}:2: ") and expected in message and "\n" not in message


def test_an_unreadable_line_is_named(tmp_path):
    path = write_lines(tmp_path / "p.jsonl", json.dumps(SHORT), "", '{"image": "a.png", ')
    with pytest.raises(
        UsageError, match=r"p\.jsonl:3: not JSON .*Each line must be one whole object"
    ):
        read_records(path)
    path.write_bytes(json.dumps(SHORT).encode() + b"\n\xff\xfe\n")
    with pytest.raises(UsageError, match=r"p\.jsonl:2: not UTF-8"):
        read_records(path)


def test_no_file_and_no_records_are_errors(tmp_path):
    with pytest.raises(UsageError, match=r"no such file\. Run notebook 02"):
        read_records(tmp_path / "none.jsonl")
    with pytest.raises(UsageError, match="holds no records"):
        read_records(write_lines(tmp_path / "empty.jsonl", ""))
