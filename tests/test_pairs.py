import numpy as np
import pytest
from conftest import TRAFFIC

from helpers.counting import count_answer, is_exact, parse_counts
from helpers.formats import CountedImage, read_yolo
from helpers.pairs import NEGATIVES, blind_rules, build_records, question_for, sample_own_answers
from helpers.preferences import PreferenceRecord, image_paths, read_records

CLASSES = ["cars", "buses"]


def made_up_items(number=200, seed=0):
    rng = np.random.default_rng(seed)
    return [
        CountedImage(TRAFFIC / "train" / "images" / f"{i}.png", {c: int(rng.integers(4)) for c in CLASSES}, str(i))
        for i in range(number)
    ]


def wrong_downwards(items):
    """The answers of a model that always says one car less."""
    return [[count_answer({**item.counts, "cars": max(0, item.counts["cars"] - 1)})] for item in items]


def test_the_true_answer_is_preferred_and_every_other_is_wrong():
    items = made_up_items()
    records = build_records(items, TRAFFIC, wrong_downwards(items), ("own", "edit", "other image"))
    for record, item in zip(records, items, strict=True):
        (best,) = record.ranking[0]
        assert record.answers[best].text == count_answer(item.counts) and record.answers[best].origin == "truth"
        assert all(not is_exact(p.rejected.text, item.counts) for p in record.pairs())
        assert record.truth == item.counts and record.group == item.group
        assert image_paths(TRAFFIC / "x.jsonl", record) == [item.path]
    positions = [record.ranking[0][0] for record in records]
    assert 0 < np.mean([p == 0 for p in positions]) < 0.6, "the position of the true answer is drawn"


def test_an_image_whose_samples_are_all_right_has_no_own_answer(capsys):
    items = made_up_items(3)
    right = [[count_answer(item.counts)] for item in items]
    records = build_records(items, TRAFFIC, right, ("own", "other image"))
    assert {a.origin for r in records for a in r.answers} == {"truth", "other image"}
    assert build_records(items, TRAFFIC, right, ("own",)) == []
    assert "3 of 3 images give no pair" in capsys.readouterr().out


def test_a_well_formed_wrong_answer_is_taken_before_a_garbled_one():
    (item, other) = made_up_items(2)
    wrong = count_answer({**item.counts, "cars": item.counts["cars"] + 1})
    (record, _) = build_records([item, other], TRAFFIC, [["garble", wrong], ["garble"]], ("own",))
    assert [a.text for a in record.answers if a.origin == "own"] == [wrong]


def test_blind_rules_by_hand():
    def record(chosen, rejected, origin):
        return PreferenceRecord.model_validate(
            {
                "image": "a.png",
                "prompt": "?",
                "chosen": count_answer(chosen),
                "rejected": {"text": count_answer(rejected), "origin": origin},
                "truth": chosen,
            }
        )

    one, two, ten = ({"cars": n, "buses": 0} for n in (1, 2, 10))
    table = blind_rules(
        [record(one, two, "edit"), record(two, one, "edit"), record(one, ten, "edit"), record(two, ten, "own")]
    )
    assert table["edit"]["smaller total"].value == pytest.approx(2 / 3)
    assert table["edit"]["larger total"].value == pytest.approx(1 / 3)
    assert table["edit"]["more zeros"].value == 0.5  # always a tie
    assert table["edit"]["shorter"].value == pytest.approx((0.5 + 0.5 + 1) / 3)
    assert table["own"]["smaller total"].value == 1 and table["all"]["smaller total"].n == 4


def test_own_answers_leak_and_those_of_other_images_do_not():
    items = made_up_items(1000)
    answers = wrong_downwards(items)
    rules = {kind: blind_rules(build_records(items, TRAFFIC, answers, (kind,)))[kind] for kind in NEGATIVES}
    assert rules["own"]["larger total"].value == 1
    assert all(share.low <= 0.5 <= share.high for share in rules["other image"].values())
    assert rules["edit"]["larger total"].low <= 0.5 <= rules["edit"]["larger total"].high


def test_kinds_that_do_not_exist_and_data_without_variety_are_errors():
    items = made_up_items(3)
    with pytest.raises(ValueError, match="unknown kinds of negatives"):
        build_records(items, TRAFFIC, [[]] * 3, ("other",))
    same = [CountedImage(i.path, {"cars": 1, "buses": 1}, i.group) for i in items]
    with pytest.raises(ValueError, match="all images have the same counts"):
        build_records(same, TRAFFIC, [[]] * 3, ("other image",))


def test_sampled_answers_are_grouped_by_image(tiny, valid_items):
    answers = sample_own_answers(*tiny, valid_items[:5], number=3)
    assert len(answers) == 5 and all(len(texts) == 3 for texts in answers)
    stated = [parse_counts(t, list(valid_items[0].counts)) for texts in answers for t in texts]
    near = [s and abs(s["cars"] - valid_items[i // 3].counts["cars"]) <= 1 for i, s in enumerate(stated)]
    assert np.mean([bool(n) for n in near]) > 0.8, "answers belong to their images"


def test_shipped_preferences_are_built_from_the_shipped_scenes():
    items = {f"train-{i.path.stem}": i for i in read_yolo(TRAFFIC, "train")}
    records = read_records(TRAFFIC / "preferences" / "train.jsonl")
    assert len(records) == 512
    for number, record in enumerate(records):
        item = items[record.id]
        assert record.truth == item.counts and image_paths(TRAFFIC / "preferences" / "train.jsonl", record) == [
            item.path
        ]
        assert record.prompt[0].content == question_for(item, number)
    rules = blind_rules(records)
    assert all(share.low <= 0.5 <= share.high for share in rules["other image"].values())
