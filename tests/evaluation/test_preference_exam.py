"""Held-out pairs: figures by hand, too few of them, and a model that is asked."""

import warnings

import numpy as np
import pytest
from scipy.stats import binomtest
from shipped import TRAFFIC

from helpers import models
from helpers.data import PreferenceRecord, from_trl, read_records, to_trl
from helpers.evaluation import PreferenceExam, examine_preferences
from helpers.evaluation.pair_accuracy import pair_logps, record_logps
from helpers.models import Packer, Policies, find_policies
from helpers.statistics import proportion


def pair(number, photo=None, better="short", worse="a longer one", images=None, turns=None):
    """The better answer comes first."""
    return PreferenceRecord.model_validate(
        {
            "id": str(number),
            "images": images or [f"/photos/{photo or number}.png"],
            "prompt": turns or "What is it?",
            "answers": [{"text": f"{better} {number}"}, {"text": f"{worse} {number}"}],
            "ranking": [[0], [1]],
            "group": photo,
        }
    )


def exam(records, base, policy, **changes):
    """base, policy: of each record the log-probabilities of the better and the worse answer."""
    fields = {"rule": "shorter", "rule_chosen_here": False, "stopped": False, "shuffled": {}}
    logps = {"base": base, "dpo": policy}
    return PreferenceExam(records=records, logps=logps, **fields | changes)


def test_margin_and_log_probability_by_hand():
    records = [pair(i) for i in range(4)]
    base = [[-2, -1], [-1, -2], [-1, -2], [-3, -3]]
    # gains of the better − gains of the worse: 3 − 1, −1, 0 (a tie), 2
    policy = [[1, 0], [-2, -2], [-2, -3], [-1, -3]]
    found = exam(records, base, policy)
    assert found.hits("dpo", "DPO margin").tolist() == [1, 0, 0.5, 1]
    assert found.hits("dpo", "log-probability").tolist() == [1, 0.5, 1, 1]
    assert found.hits("base", "log-probability").tolist() == [0, 1, 1, 0.5]
    assert found.accuracy("dpo", "DPO margin") == proportion(2.5, 4)
    head, before, margin, plain, rule = found.rows()
    assert len({len(row) for row in found.rows()}) == 1 and head[0] == "model"
    assert before[:3] == ["base", "log-probability", proportion(2.5, 4).short_text()]
    assert margin[:3] == ["dpo", "DPO margin", proportion(2.5, 4).short_text()]
    assert plain[2] == proportion(3.5, 4).short_text()
    assert rule[2] == proportion(4, 4).short_text(), "the shorter answer is always the better one"


def test_a_clear_gain_is_claimed_and_tested_as_scipy_does():
    records = [pair(i) for i in range(20)]
    base = [[-2.0, -1.0]] * 16 + [[-1.0, -2.0]] * 4
    policy = [[-1.0, -2.0]] * 20
    margin, plain = exam(records, base, policy).comparisons
    # the plain figure: 16 fixed, none broken
    assert plain.p == pytest.approx(binomtest(16, 16).pvalue) and plain.test == "McNemar"
    assert (plain.fixed, plain.broken, plain.verdict) == (16, 0, "better")
    # the margin: the base's 4 have no gain, a tie each, so that signs are turned
    assert margin.after == (16 + 2) / 20 and margin.test == "sign-flip"
    assert "better" in exam(records, base, policy).sentences()[0]


def test_pairs_of_one_photo_count_as_one():
    records = [pair(i, photo=f"p{i // 5}") for i in range(20)]
    base = [[-2.0, -1.0]] * 20
    policy = [[-1.0, -2.0]] * 20
    found = exam(records, base, policy)
    # 4 photos: all signs alike by chance in 2 of 16
    assert [row.p for row in found.comparisons] == [0.125, 0.125]
    assert found.accuracy("dpo", "DPO margin") == proportion(4, 4)
    assert "20 held-out pairs (4 photos)" in found.sentences()[0]
    assert "fewer than 6" in found.sentences()[-1]


@pytest.mark.parametrize("number", [0, 1, 2])
def test_few_pairs_are_said_to_be_few(number):
    records = [pair(i) for i in range(number)]
    rows = [[-2.0, -1.0]] * number
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = exam(records, rows, [[-1.0, -2.0]] * number, stopped=True)
        table, said = found.rows(), " ".join(found.sentences())
    assert "nan" not in str(table) + said
    assert ("no held-out pair" in said) == (number == 0)
    assert ("can show no difference" in said) == (number > 0)
    assert ("also stopped the training" in said) == (number > 0)
    assert "better" not in str(table)


def test_the_rule_and_the_images_are_judged_by_paired_tests():
    records = [pair(i) for i in range(12)]
    base = [[0.0, 0.0]] * 12
    looks = {"base": base, "dpo": [[-1.0, 1.0]] * 12}
    found = exam(records, base, [[1.0, -1.0]] * 12, shuffled=looks)
    said = found.sentences()
    assert "cannot be shown that the policy is better" in said[1], "the rule has all, too"
    assert "come from the image, at least in part" in said[2]
    blind = exam(
        records, base, [[1.0, -1.0]] * 12, shuffled={"base": base, "dpo": found.logps["dpo"]}
    )
    assert "cannot be shown that its preferences come from the image" in blind.sentences()[2]
    worse = exam(records, base, [[-1.0, 1.0]] * 12).sentences()
    assert "the policy is WORSE" in worse[1]


@pytest.fixture(scope="module")
def policies():
    return Policies(*models.load_model("tiny"), find_policies("tiny", TRAFFIC))


def test_records_and_pairs_have_the_same_log_probabilities(tiny):
    """One of the first records has two images, one a conversation."""
    records = read_records(TRAFFIC / "preferences_valid.jsonl")[:3]
    turns = [*records[1].prompt, *read_turns()]
    several = [
        records[0].model_copy(update={"images": records[0].images + records[2].images}),
        records[1].model_copy(update={"prompt": turns}),
        records[2],
    ]
    packer = Packer(*tiny, keeps_features=False)
    dataset = to_trl(several)
    chosen, rejected = pair_logps(packer, dataset)
    by_record = record_logps(packer, several)
    flat = []
    for record, row in zip(several, by_record, strict=True):
        flat += [(row[better], row[worse]) for better, worse in record.tier_pairs()]
    np.testing.assert_allclose(np.array(flat).T, [chosen, rejected], atol=1e-3)
    assert len(from_trl(dataset[0]).images) == 2
    assert by_record[0] != record_logps(packer, records)[0], "the second image counts"
    assert by_record[1] != record_logps(packer, records)[1], "the earlier turns count"


def read_turns():
    return PreferenceRecord.model_validate(
        {
            "image": "x.png",
            "prompt": [
                {"role": "assistant", "content": "There is a bus."},
                {"role": "user", "content": "How many cars, then?"},
            ],
            "answers": [{"text": "a"}, {"text": "b"}],
        }
    ).prompt


def test_the_shipped_policy_is_better_on_pairs_that_it_has_not_seen(policies):
    records = read_records(TRAFFIC / "preferences_valid.jsonl")[:24]
    trained_on = read_records(TRAFFIC / "preferences_train.jsonl")[:40]
    found = examine_preferences(policies, ["dpo/shipped"], records, trained_on=trained_on)
    assert found.accuracy("dpo/shipped", "DPO margin").value > 0.9
    shuffled = found.accuracy("dpo/shipped", "DPO margin", shuffled=True)
    assert shuffled.value < found.accuracy("dpo/shipped", "DPO margin").value
    assert list(found.logps) == ["base", "dpo/shipped"] and not found.rule_chosen_here
    assert np.isfinite(np.concatenate(found.logps["base"])).all()


def test_records_without_a_pair_ask_nobody(policies, monkeypatch):
    record = pair(0).model_copy(update={"ranking": None})
    monkeypatch.setattr(policies, "use_policy", lambda name: pytest.fail("asked"))
    found = examine_preferences(policies, ["dpo/shipped"], [record])
    assert len(found.rows()) == 1 and found.rule is None
