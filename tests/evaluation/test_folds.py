"""Parts by photo, and reward models that judge what they have not seen."""

import dataclasses

import pytest
from shipped import TRAFFIC
from small_rewards import QUICK

from helpers import models
from helpers.data import PreferenceRecord, read_records
from helpers.evaluation import (
    CrossValidation,
    cross_validate,
    halves,
    photo_folds,
    photo_of,
    train_judge,
)
from helpers.files import UsageError


def record(number, photo):
    return PreferenceRecord.model_validate(
        {
            "id": str(number),
            "image": f"/p/{number}.png",
            "prompt": "?",
            "chosen": f"yes {number}",
            "rejected": f"no, it is not {number}",
            "group": photo,
        }
    )


def test_no_photo_is_in_two_parts_and_nothing_is_lost():
    records = [record(i, f"photo {i // 3}") for i in range(33)]
    parts = photo_folds(records, 4, seed=1)
    photos = [{photo_of(one) for one in part} for part in parts]
    assert sum(map(len, photos)) == 11 == len(set.union(*photos))
    assert sorted(map(len, photos)) == [2, 3, 3, 3]
    assert sorted(one.id for part in parts for one in part) == sorted(one.id for one in records)
    first, second = halves(records)
    assert len(first) + len(second) == 33 and halves(records) == (first, second)
    assert halves(records, seed=1) != (first, second)
    with pytest.raises(UsageError, match="1 photos cannot be dealt into 2 parts"):
        halves(records[:2])


def test_records_without_a_group_are_told_by_their_images():
    one = record(1, None)
    assert photo_of(one) == "/p/1.png"


def test_figures_by_hand():
    records = [record(i, str(i)) for i in range(8)]
    scores = []
    for number, one in enumerate(records):
        better = one.ranking[0][0]
        # right in all but the first
        row = [0.0, 0.0]
        row[better if number else 1 - better] = 1.0
        scores.append(row)
    found = CrossValidation(records, scores, 4)
    assert found.hits().tolist() == [0] + [1] * 7
    assert "4 folds" in found.rows()[1][0] and "0.875" in found.rows()[1][1]
    said = found.sentences()[0]
    assert (
        "cross-validated" in said and "cannot be shown to be more than the rule 'shorter'" in said
    )


@pytest.mark.heavy(reason="trains four small reward models")
def test_each_pair_is_judged_by_a_model_that_has_not_seen_its_photo(monkeypatch):
    from helpers.evaluation import folds

    records = read_records(TRAFFIC / "preferences_train.jsonl")[:16]
    seen = []
    train = folds.train_judge

    def watched(model, processor, trained, *rest, **options):
        seen.append({photo_of(one) for one in trained})
        return train(model, processor, trained, *rest, **options)

    monkeypatch.setattr(folds, "train_judge", watched)
    quick = dataclasses.replace(QUICK, epochs=1)
    found = cross_validate(lambda: models.load_model("tiny"), records, quick, folds=2)
    assert sorted(one.id or "" for one in found.records) == sorted(one.id or "" for one in records)
    assert len(found.scores) == 16 and len(seen) == 2 and not seen[0] & seen[1]
    reward = train_judge(*models.load_model("tiny"), *halves(records), quick)
    assert reward.head is not None and not reward.training
