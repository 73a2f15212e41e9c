import json

import pytest
from conftest import TRAFFIC
from PIL import Image

from helpers.preferences import PreferenceRecord, read_records, to_trl, write_records
from helpers.runtime import UsageError

SHORT = {"image": "a.png", "prompt": "How many cars?", "chosen": "There are 2.", "rejected": "There are 3."}
RANKED = {
    "images": ["a.png"],
    "prompt": [{"role": "user", "content": "How many cars?"}],
    "answers": [{"text": "3"}, {"text": "2"}, {"text": "4"}, {"text": "two"}],
    "ranking": [[1, 3], [0], [2]],
}


def write_lines(path, *lines):
    path.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    return path


def test_the_short_form_is_a_record():
    record = PreferenceRecord.model_validate(SHORT)
    assert record.images == ["a.png"] and record.prompt[0].role == "user"
    assert [(p.chosen.text, p.rejected.text) for p in record.pairs()] == [("There are 2.", "There are 3.")]


def test_ranked_answers_give_every_pair_across_tiers_and_none_within():
    pairs = PreferenceRecord.model_validate(RANKED).pairs()
    texts = {(p.chosen.text, p.rejected.text) for p in pairs}
    assert texts == {("2", "3"), ("two", "3"), ("2", "4"), ("two", "4"), ("3", "4")} and len(pairs) == 5


def test_records_survive_the_round_trip(tmp_path):
    records = [PreferenceRecord.model_validate(r) for r in (SHORT, RANKED)] + read_records(
        TRAFFIC / "preferences" / "train.jsonl"
    )
    assert read_records(write_records(tmp_path / "r.jsonl", records)) == records


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"chosen": "  "}, "answers.0.text: the answer is empty"),
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


@pytest.mark.parametrize("ranking", [[[0], [1], [2]], [[0], [1], [2], [4]], [[0, 0], [1], [2], [3]]])
def test_a_ranking_names_every_answer_once(ranking):
    with pytest.raises(ValueError, match="must name each of the 4 answers once"):
        PreferenceRecord.model_validate({**RANKED, "ranking": ranking})


def test_an_unreadable_line_is_named(tmp_path):
    path = write_lines(tmp_path / "p.jsonl", json.dumps(SHORT), "", '{"image": "a.png", ')
    with pytest.raises(UsageError, match=r"p\.jsonl:3: not JSON .*Each line must be one whole object"):
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
    data = to_trl(tmp_path / "p.jsonl", [PreferenceRecord.model_validate(RANKED)])
    assert data.column_names == ["images", "prompt", "chosen", "rejected"] and len(data) == 5
    row = data[0]
    assert row["images"][0].mode == "RGB" and row["images"][0].size == (30, 20)
    assert row["prompt"] == [{"role": "user", "content": "How many cars?"}]
    assert row["chosen"] == [{"role": "assistant", "content": "2"}]


def test_a_missing_or_broken_image_is_named_before_training(tmp_path):
    records = [PreferenceRecord.model_validate({**SHORT, "id": "r7"})]
    path = tmp_path / "p.jsonl"
    with pytest.raises(UsageError, match=r"p\.jsonl \(record r7\): image .*a\.png does not exist"):
        to_trl(path, records)
    (tmp_path / "a.png").write_text("not a picture")
    with pytest.raises(UsageError, match=r"\(record r7\): image .*a\.png cannot be read"):
        to_trl(path, records)


def test_only_ties_is_an_error(tmp_path):
    Image.new("RGB", (28, 28)).save(tmp_path / "a.png")
    tied = PreferenceRecord.model_validate({**RANKED, "ranking": [[0, 1, 2, 3]]})
    with pytest.raises(UsageError, match="all answers are tied"):
        to_trl(tmp_path / "p.jsonl", [tied])
