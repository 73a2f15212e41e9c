"""A judge is only trusted where it beats chance, and every rule that never looks."""

import pytest
from benchmark_pairs import record
from made_up_tasks import tasks_about

from helpers.data import PreferenceRecord
from helpers.evaluation import examine_judge
from helpers.files import UsageError
from helpers.rewards import PairJudge, Score, as_ranker, make_batch_scorer, make_scorer

longer = make_scorer("longer", lambda image, question, answer, facts: {"n": len(answer)})


def pairs(folder, number, better="aaa", worse="bb"):
    """Pairs of photos of their own; every other record has the better answer second."""
    found = []
    for k, task in enumerate(tasks_about(folder, [str(k) for k in range(number)])):
        texts = [better, worse][:: 1 if k % 2 else -1]
        ranking = [[texts.index(better)], [texts.index(worse)]]
        images = [str(task.images[0])]
        found.append(
            PreferenceRecord(
                id=str(k),
                images=images,
                prompt=list(task.turns),
                answers=[{"text": text} for text in texts],
                ranking=ranking,
                group=str(k),
            )
        )
    return found


def knowing(right):
    """A ranker that prefers "a…" in the first `right` questions, and the other one then."""

    def batch(rows):
        scores = []
        for _, question, answer, _ in rows:
            number = int(question.split("(")[1].rstrip(")"))
            value = float((answer[0] == "a") == (number < right))
            scores.append(Score(value, {"knows": value}))
        return scores

    return as_ranker(make_batch_scorer("knows", batch))


def test_a_judge_that_sees_what_no_rule_sees_is_trusted(tmp_path):
    """Answers of equal length and mixed places: blind rules are at .5."""
    exam = examine_judge(pairs(tmp_path, 40, "aaa", "bbb"), knowing(36))
    assert exam.agreement.value == 0.9 and exam.agreement.n == 40
    assert exam.decided.value == 1 and exam.rule_agreement.value == 0.5
    # 36 of 40 the same label; labels are about balanced
    assert exam.kappa.value == pytest.approx(0.8, abs=0.03) and exam.kappa.n == 40
    assert exam.is_trusted and "its verdicts can be used" in exam.sentences()[0]
    assert exam.rows()[1][0] == "knows" and "agrees" in exam.rows()[0][1]


def test_a_judge_that_is_no_better_than_the_longer_answer_is_not(tmp_path):
    """The better answer is the longer one throughout: to see that needs no judge."""
    records = pairs(tmp_path, 40)
    exam = examine_judge(records, as_ranker(longer))
    assert exam.agreement.value == 1 and exam.best_rule == "longer" and not exam.is_trusted
    assert "do not use its verdicts" in exam.sentences()[0] and "'longer'" in exam.sentences()[0]
    worse = examine_judge(records, knowing(36))
    assert worse.agreement.value == 0.9 and not worse.is_trusted


def test_a_judge_at_chance_and_one_that_abstains(tmp_path):
    records = pairs(tmp_path, 40, "aaa", "bbb")
    chance = examine_judge(records, knowing(20))
    assert chance.agreement.value == 0.5 and not chance.is_trusted
    judge = PairJudge(lambda images, prompts: ["[[A]]"] * len(prompts), "places")
    silent = examine_judge(records, judge)
    assert silent.agreement.value == 0.5 and silent.decided.value == 0 and silent.kappa is None
    assert not silent.is_trusted and "POSITION BIAS" in " ".join(silent.sentences())
    assert "80 answers" in silent.sentences()[-1] and "none" in silent.rows()[1]


def test_several_answers_are_examined_pair_by_pair(tmp_path):
    (task,) = tasks_about(tmp_path, ["x"])
    record_of_three = PreferenceRecord(
        images=[str(task.images[0])],
        prompt=list(task.turns),
        answers=[{"text": "a"}, {"text": "bbb"}, {"text": "cc"}],
        ranking=[[1], [0, 2]],
    )
    exam = examine_judge([record_of_three], as_ranker(longer))
    assert exam.agreement.value == 1 and exam.agreement.n == 1  # one photo


def test_without_a_pair_there_is_nothing_to_examine():
    with pytest.raises(UsageError, match="no pair of a better and a worse answer"):
        examine_judge([record("x-1", None)], as_ranker(longer))
