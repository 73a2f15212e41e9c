"""The record: its short form, what it refuses, its pairs and its key."""

import pytest
from preference_files import RANKED, SHORT

from helpers.data.judgement import Judgement
from helpers.data.record import PreferenceRecord, record_key

SKIP = Judgement(kind="human", annotator="a", verdict="skip")


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
    judged = first.model_copy(update={"judgements": [SKIP], "ranking": None})
    assert (
        record_key(judged) == record_key(first)
        and record_key(first.model_copy(update={"id": "7"})) == "7"
    )


def test_ranked_answers_give_every_pair_across_tiers_and_none_within():
    pairs = PreferenceRecord.model_validate(RANKED).pairs()
    texts = {(p.chosen.text, p.rejected.text) for p in pairs}
    assert (
        texts == {("2", "3"), ("two", "3"), ("2", "4"), ("two", "4"), ("3", "4")}
        and len(pairs) == 5
    )


@pytest.mark.parametrize(
    "ranking", [[[0], [1], [2]], [[0], [1], [2], [4]], [[0, 0], [1], [2], [3]]]
)
def test_a_ranking_names_every_answer_once(ranking):
    with pytest.raises(ValueError, match="must name each of the 4 answers once"):
        PreferenceRecord.model_validate({**RANKED, "ranking": ranking})
