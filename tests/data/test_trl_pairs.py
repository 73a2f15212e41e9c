"""The data set that TRL trains on."""

import pytest
from PIL import Image
from preference_files import RANKED, SHORT

from helpers.data.record import PreferenceRecord, resolve_images
from helpers.data.trl_pairs import to_trl
from helpers.files import UsageError


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
