import json

import jsonschema
import pytest
from budgets import cases
from hypothesis import HealthCheck, given, settings
from PIL import Image
from shipped import TRAFFIC
from strategies import records as any_records

from helpers.data.preferences import (
    Judgement,
    PreferenceRecord,
    consensus,
    json_schema,
    read_records,
    record_key,
    resolve_images,
    scan_records,
    to_trl,
    write_records,
)
from helpers.files import ROOT, UsageError, write_text

SHORT = {
    "image": "a.png",
    "prompt": "How many cars?",
    "chosen": "There are 2.",
    "rejected": "There are 3.",
}
RANKED = {
    "images": ["a.png"],
    "prompt": [{"role": "user", "content": "How many cars?"}],
    "answers": [{"text": "3"}, {"text": "2"}, {"text": "4"}, {"text": "two"}],
    "ranking": [[1, 3], [0], [2]],
}
SCHEMA = json_schema()
VALIDATOR = jsonschema.Draft202012Validator(SCHEMA)


def write_lines(path, *lines):
    path.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    return path


def test_the_short_form_is_a_record():
    record = PreferenceRecord.model_validate(SHORT)
    assert record.images == ["a.png"] and record.prompt[0].role == "user"
    assert [(p.chosen.text, p.rejected.text) for p in record.pairs()] == [
        ("There are 2.", "There are 3.")
    ]


def test_the_place_of_an_answer_does_not_give_the_short_form_away():
    """1,000 fair coins: within 5 standard errors of one half, .5 ± .08."""
    rows = [
        {**SHORT, "chosen": f"There are {n}.", "rejected": f"There are {n + 1}."}
        for n in range(1000)
    ]
    assert (
        420 < sum(PreferenceRecord.model_validate(row).ranking == [[0], [1]] for row in rows) < 580
    )


@cases(100, 1000)
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


def vote(verdict, ranking, **fields):
    return Judgement(kind="human", annotator="a", verdict=verdict, ranking=ranking, **fields)


def test_consensus_is_by_mean_rank():
    # ranks of answers 0, 1, 2: first (0, 1, 2), second tie of 0 and 1 at 0.5: (0.5, 0.5, 2); sums 0.5, 1.5, 4
    votes = [vote("ranked", [[0], [1], [2]]), vote("ranked", [[0, 1], [2]]), vote("skip", None)]
    assert consensus(votes, 3) == [[0], [1], [2]]
    assert consensus([vote("ranked", [[0], [1]]), vote("ranked", [[1], [0]])], 2) == [
        [0, 1]
    ]  # one vote each
    assert consensus([vote("all bad", [[0, 1]])], 2) == [[0, 1]]
    assert consensus([vote("skip", None)], 2) is None and consensus([], 2) is None


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"verdict": "ranked", "ranking": [[0, 1]]}, "verdict 'ranked' does not go with ranking"),
        ({"verdict": "tie", "ranking": [[0], [1]]}, "verdict 'tie' does not go"),
        ({"verdict": "skip", "ranking": [[0, 1]]}, "verdict 'skip' does not go"),
        ({"verdict": "all bad"}, "verdict 'all bad' does not go"),
        ({"verdict": "skip", "time": "yesterday"}, "Invalid isoformat"),
        ({"verdict": "skip", "seconds": -1.0}, "greater than or equal to 0"),
    ],
)
def test_judgements_that_contradict_themselves(fields, message):
    with pytest.raises(ValueError, match=message):
        Judgement.model_validate({"kind": "human", "annotator": "a", **fields})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"judgements": [{"order": [0, 1]}]},
            r"order of a judgement \[\[0, 1\]\] must name each of the 4",
        ),
        (
            {"judgements": [{"criteria": {"concise": [1.0]}}]},
            "criterion 'concise' has 1 scores for 4 answers",
        ),
        ({"ranking": [[0, 1, 2, 3], []]}, "has an empty tier"),
        (
            {"answers": [{"text": "a", "id": "x"}, {"text": "b", "id": "x"}], "ranking": None},
            "must differ",
        ),
        (
            {"prompt": [{"role": "assistant", "content": "a"}]},
            "must end with a message of the user",
        ),
        ({"truth": {"cars": -1}}, "truth.counts.cars"),
        ({"truth": {"cars": "2"}}, "truth.counts.cars"),
        ({"extra": {"a": float("nan")}}, "not JSON compliant"),
    ],
)
def test_fields_that_do_not_fit_are_named(change, message):
    for judgement in change.get("judgements", []):
        judgement |= {"kind": "human", "annotator": "a", "verdict": "skip"}
    with pytest.raises(ValueError, match=message):
        PreferenceRecord.model_validate({**RANKED, **change})


def test_margins_and_best_against_worst():
    scored = [{"text": str(n), "score": n / 2} for n in range(4)]
    record = PreferenceRecord.model_validate(
        {**RANKED, "answers": scored, "ranking": [[3], [1, 2], [0]]}
    )
    assert [(p.chosen.text, p.rejected.text, p.margin) for p in record.pairs("extremes")] == [
        ("3", "0", 1.5)
    ]
    assert [p.margin for p in record.pairs()] == [1.0, 0.5, 1.5, 0.5, 1.0]
    assert PreferenceRecord.model_validate({**RANKED, "ranking": None}).pairs("extremes") == []
    assert PreferenceRecord.model_validate(SHORT).pairs()[0].margin is None


def test_a_record_is_known_by_its_id_or_its_content():
    first, second = (PreferenceRecord.model_validate({**SHORT, "prompt": p}) for p in "ab")
    assert record_key(first) != record_key(second) and len(record_key(first)) == 16
    judged = first.model_copy(update={"judgements": [vote("skip", None)], "ranking": None})
    assert (
        record_key(judged) == record_key(first)
        and record_key(first.model_copy(update={"id": "7"})) == "7"
    )


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


def test_ranked_answers_give_every_pair_across_tiers_and_none_within():
    pairs = PreferenceRecord.model_validate(RANKED).pairs()
    texts = {(p.chosen.text, p.rejected.text) for p in pairs}
    assert (
        texts == {("2", "3"), ("two", "3"), ("2", "4"), ("two", "4"), ("3", "4")}
        and len(pairs) == 5
    )


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


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"chosen": "  "}, "chosen: the answer is empty"),
        ({"rejected": "There are 2."}, "have the same text but different ranks"),
        ({"image": None}, "images"),
        ({"prompt": ""}, "prompt.0.content"),
        ({"colour": "red"}, "colour: Extra inputs are not permitted"),
    ],
)
def test_a_bad_record_is_named_by_file_line_and_remedy(tmp_path, change, expected):
    path = write_lines(tmp_path / "p.jsonl", json.dumps(SHORT), json.dumps({**SHORT, **change}))
    with pytest.raises(UsageError) as error:
        read_records(path)
    message = str(error.value)
    assert message.startswith(f"{path}:2: ") and expected in message and "\n" not in message


@pytest.mark.parametrize(
    "ranking", [[[0], [1], [2]], [[0], [1], [2], [4]], [[0, 0], [1], [2], [3]]]
)
def test_a_ranking_names_every_answer_once(ranking):
    with pytest.raises(ValueError, match="must name each of the 4 answers once"):
        PreferenceRecord.model_validate({**RANKED, "ranking": ranking})


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


def test_to_trl_has_the_columns_that_make_trl_use_the_images(tmp_path):
    Image.new("L", (30, 20), 99).save(tmp_path / "a.png")
    data = to_trl(
        [resolve_images(PreferenceRecord.model_validate(RANKED), tmp_path / "p.jsonl", 1)]
    )
    assert data.column_names == ["images", "prompt", "chosen", "rejected"] and len(data) == 5
    row = data[0]
    assert row["images"][0].mode == "RGB" and row["images"][0].size == (30, 20)
    assert row["prompt"] == [{"role": "user", "content": "How many cars?"}]
    assert row["chosen"] == [{"role": "assistant", "content": "2"}]


def test_a_missing_or_broken_image_is_named_before_training(tmp_path):
    records = [
        resolve_images(
            PreferenceRecord.model_validate({**SHORT, "id": "r7"}), tmp_path / "p.jsonl", 3
        )
    ]
    with pytest.raises(
        UsageError, match=r"p\.jsonl:3 \(record r7\): image .*a\.png does not exist"
    ):
        to_trl(records)
    (tmp_path / "a.png").write_text("not a picture")
    with pytest.raises(UsageError, match=r"\(record r7\): image .*a\.png cannot be read"):
        to_trl(records)


def test_only_ties_is_an_error(tmp_path):
    Image.new("RGB", (28, 28)).save(tmp_path / "a.png")
    tied = resolve_images(
        PreferenceRecord.model_validate({**RANKED, "ranking": [[0, 1, 2, 3]]}),
        tmp_path / "p.jsonl",
        1,
    )
    with pytest.raises(UsageError, match="all answers are tied"):
        to_trl([tied])
