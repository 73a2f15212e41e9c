import pytest
from made_up import made_up_items, wrong_downwards
from shipped import TRAFFIC

from helpers.data import read_counts
from helpers.data.blind import best_rule, blind_rules, render_blind_table, true_image_detail_shares
from helpers.data.counting import count_answer
from helpers.data.pairs import IMAGE_NEGATIVES, NEGATIVES, add_image_negatives, build_records
from helpers.data.record import PreferenceRecord


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
        [
            record(one, two, "edit"),
            record(two, one, "edit"),
            record(one, ten, "edit"),
            record(two, ten, "own"),
        ]
    )
    assert table["edit"]["smaller total"].value == pytest.approx(2 / 3)
    assert table["edit"]["larger total"].value == pytest.approx(1 / 3)
    assert table["edit"]["more zeros"].value == 0.5  # always a tie
    assert table["edit"]["shorter"].value == pytest.approx((0.5 + 0.5 + 1) / 3)
    assert table["own"]["smaller total"].value == 1 and table["all"]["smaller total"].n == 4


def test_own_answers_leak_and_those_of_other_images_do_not():
    items = made_up_items(1000)
    answers = wrong_downwards(items)
    rules = {kind: blind_rules(build_records(items, answers, (kind,)))[kind] for kind in NEGATIVES}
    assert rules["own"]["larger total"].value == 1
    assert all(share.low <= 0.5 <= share.high for share in rules["other image"].values())
    assert rules["edit"]["larger total"].low <= 0.5 <= rules["edit"]["larger total"].high


def test_position_and_length_need_no_counts():
    answers = [{"text": "long one"}, {"text": "b"}, {"text": "c"}]
    fields = {"image": "a.png", "prompt": "?", "answers": answers, "ranking": [[0], [1, 2]]}
    record = PreferenceRecord.model_validate(fields)
    table = blind_rules([record, record])
    assert set(table) == {"all", "unknown"} and "smaller total" not in table["all"]
    assert (
        table["all"]["shown first"].value == 1
        and table["all"]["longer"].value == 1
        and table["all"]["shorter"].n == 4
    )
    assert best_rule(table)[1].value == 1 and "longer" in render_blind_table(table)
    assert blind_rules([]) == {}


def test_only_another_photo_is_as_sharp_as_the_true_one(tmp_path):
    items = read_counts(TRAFFIC, "train")[:60]
    records = build_records(items, [[]] * 60, ("other image",))
    shares = true_image_detail_shares(add_image_negatives(records, tmp_path), IMAGE_NEGATIVES)
    assert shares["blank"].value == 1 and shares["blurred"].value == 1
    assert shares["shuffled"].low < 0.5 < shares["shuffled"].high
