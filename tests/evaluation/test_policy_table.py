"""Rows of policies by hand."""

from types import SimpleNamespace

import pytest
from shipped import TRAFFIC

from helpers.data import CountedImage
from helpers.data.pairs import counting_tasks, one_class_question
from helpers.data.preferences import read_records
from helpers.data.tasks import tasks_asking, tasks_of
from helpers.evaluation.policy_table import PolicyTable, score_greedy_answers
from helpers.evaluation.task_results import GreedyAndSampled, TaskResult
from helpers.evaluation.truth_judges import judges
from helpers.rewards.references import exact_match
from helpers.rewards.scoring import count_exact, make_scorer
from helpers.statistics import mcnemar_p, proportion

RIGHT, WRONG = "There are 1 cars in the image.", "There are 7 cars in the image."
IMAGE = TRAFFIC / "valid" / "images" / "scene-100000.png"
ITEMS = [CountedImage(IMAGE, {"cars": 1}, str(number)) for number in range(8)]
JUDGE = judges(counting_tasks(ITEMS))


def answers(right):
    """The first `right` greedy answers are right; sampled, one fewer."""
    first, second = ([RIGHT] * n + [WRONG] * (len(ITEMS) - n) for n in (right, right - 1))
    greedy = TaskResult(JUDGE, first, "right", 0.0, 0)
    return GreedyAndSampled(greedy, TaskResult(JUDGE, second, "right", 1.0, 0))


def trained(score):
    log = [{"samples": 64.0 * n, "objective/kl": float(n)} for n in range(1, 8)]
    return SimpleNamespace(sampler=SimpleNamespace(score=score), log=log, seconds=12.4)


def test_rows_by_hand():
    table = PolicyTable(answers(1))
    table.add("ppo", trained(count_exact), answers(8))
    table.add("learnt", trained(make_scorer("learnt", lambda *given: {})), answers(1))
    head, base, ppo, learnt = table.rows
    assert len({len(row) for row in table.rows}) == 1 and head[0] == "policy"
    shares = [proportion(n, 8).short_text() for n in (1, 0, 8)]
    assert base == ["base", "", *shares, "", "", "", "0"]
    # 7 wrong → right, none the other way: 2 · ½⁷ = .0156; KL (3 + 4 + 5 + 6 + 7) / 5
    assert mcnemar_p(answers(1).greedy.right, answers(8).greedy.right) == pytest.approx(2 / 2**7)
    shares = [proportion(n, 8).short_text() for n in (8, 7, 8)]
    assert ppo == ["ppo", "circular", *shares, "0.02", "448", "12", "5.00"]
    assert learnt[1] == "independent" and learnt[5] == "1"


def test_greedy_answers_are_scored_by_every_scorer(tiny):
    records = read_records(TRAFFIC / "preferences_valid.jsonl")[:4]
    tasks, seen = tasks_asking(tasks_of(records), one_class_question), []

    def measure(image, question, answer, facts):
        seen.append(answer)
        return {"characters": len(answer)}

    length = make_scorer("length", measure)
    right, lengths = score_greedy_answers(*tiny, tasks, exact_match, length)
    assert lengths.tolist() == [len(text) for text in seen] and len(seen) == 4
    rows = zip(tasks, seen, strict=True)
    found = [exact_match(None, task.question, text, task.facts).total for task, text in rows]
    assert right.tolist() == found and sum(found) > 0
