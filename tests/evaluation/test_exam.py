"""What the report says of policies whose truth is known: one that was never trained, a blind one, a hacked one."""

from types import SimpleNamespace

import pytest
from shipped import TRAFFIC

from helpers import models
from helpers.config import LoraSettings
from helpers.data import read_counts
from helpers.data.counting import count_answer
from helpers.data.pairs import counting_tasks, one_class_question
from helpers.evaluation import exam
from helpers.evaluation.exam import ExamResult
from helpers.evaluation.forgetting import Forgetting
from helpers.evaluation.paired import compare_policies, comparison_rows, find_reward_hacking
from helpers.evaluation.task_results import TaskResult
from helpers.evaluation.truth_judges import judges
from helpers.models.policies import Policies, SavedPolicy, find_policies
from helpers.report.page import Section

pytestmark = pytest.mark.heavy(reason="examines policies on whole splits")

ITEMS = read_counts(TRAFFIC, "test")[:60]
JUDGE = judges(counting_tasks(ITEMS))
NOT_MEASURED = Forgetting({}, "it wants an image")
TRUE = [count_answer(item.counts) for item in ITEMS]


def said(answers, one_class=None, shuffled=None):
    """An examination with these answers; with the images of other items `shuffled`."""

    def result(texts, images="right"):
        return TaskResult(JUDGE, texts, images, 0.0, 0)

    wrong = shuffled or ["There are 9 cars."] * len(ITEMS)
    one_class = one_class or [one_class_question(item.counts, n)[1] for n, item in enumerate(ITEMS)]
    return ExamResult(
        result(answers),
        (result(answers),) * 3,
        result(wrong, "shuffled"),
        result(wrong, "blank"),
        one_class,
        1.0,
    )


def page_of(examined, saved):
    """The report about examinations, as notebook 07 writes it."""
    rows = compare_policies(
        exam.exam_metrics(examined),
        [task.photo for task in JUDGE.tasks],
        {s.name: s.about.get("reward") for s in saved},
    )
    section = Section("07_evaluate", "Evaluation")
    section.table(comparison_rows(rows))
    for sentence in [
        *map(str, rows),
        *find_reward_hacking(rows),
        *(f"{name}: {e.describe_sight()}" for name, e in examined.items()),
    ]:
        section.conclude(sentence)
    policies = SimpleNamespace(saved={policy.name: policy for policy in saved})
    section.examined = exam.policy_findings(policies, examined, rows, NOT_MEASURED)
    return section.save().read_text(encoding="utf-8"), rows


def test_an_untrained_adapter_is_no_difference(tmp_path, artifacts):
    model = models.add_adapter(models.load_model("tiny")[0], LoraSettings())
    models.save_adapter(model, tmp_path / "dpo" / "fresh", {"base": "tiny", "seed": 0})
    saved = find_policies("tiny", tmp_path)
    policies = Policies(*models.load_model("tiny"), saved)
    examined = {
        name: exam.examine(policies, name, judges(JUDGE.tasks[:12]), seeds=(0,))
        for name in policies.names
    }
    assert examined["base"].greedy.answers == examined["dpo/fresh"].greedy.answers
    base = examined["base"]
    assert [base.greedy.images, base.shuffled.images, base.blank.images] == [
        "right",
        "shuffled",
        "blank",
    ]
    assert [(result.temperature, result.seed) for result in base.sampled] == [
        (1.0, 0)
    ] and base.greedy.temperature == 0
    rows = compare_policies(exam.exam_metrics(examined), [item.group for item in ITEMS[:12]])
    assert {row.verdict for row in rows} == {"no difference can be claimed"} and {
        row.adjusted for row in rows
    } == {1.0}
    section = Section("07_evaluate", "Evaluation")
    section.html(str(section.table(comparison_rows(rows)).data))
    section.examined = exam.policy_findings(policies, examined, rows, NOT_MEASURED)
    page = section.save().read_text(encoding="utf-8")
    assert "no difference can be claimed" in page and "better" not in page
    card = (artifacts / "report" / "cards" / "dpo-fresh.md").read_text(encoding="utf-8")
    assert "None found by these questions. 12 items detect a difference of" in card
    assert "is not measured: the processor takes no text without an image (it wants" in card


def test_a_blind_model_is_called_blind(artifacts):
    """It knows the answers by heart, whatever it is shown: right with right images, and with other ones."""
    blind, other = (
        SavedPolicy(f"dpo/{name}", TRAFFIC, {"base": "tiny"}) for name in ("blind", "not asked")
    )
    page, _ = page_of(
        {"base": said(TRUE[:30] + TRUE[:30]), "dpo/blind": said(TRUE, shuffled=TRUE)},
        [blind, other],
    )
    assert "dpo/blind: it cannot be shown that the answers depend on the image" in page
    card = (artifacts / "report" / "cards" / "dpo-blind.md").read_text(encoding="utf-8")
    assert "it cannot be shown that the answers depend on the image." in card
    assert not (artifacts / "report" / "cards" / "dpo-not asked.md").exists()


def test_a_hacked_policy_has_its_heuristic_up_marked_circular_and_its_truth_down(artifacts):
    gamed = ["so many cars because so"] * len(ITEMS)
    policy = SavedPolicy("ppo/heuristic", TRAFFIC, {"base": "tiny", "reward": "heuristic"})
    page, rows = page_of({"base": said(TRUE), "ppo/heuristic": said(gamed, gamed)}, [policy])
    by_name = {row.metric: row for row in rows}
    assert (
        by_name["one class: heuristic"].circular and by_name["one class: heuristic"].direction == 1
    )
    assert not by_name["one class: right"].circular and by_name["one class: right"].direction == -1
    assert "better (circular: the training reward)" in page and "REWARD HACKING" in page
    card = (artifacts / "report" / "cards" / "ppo-heuristic.md").read_text(encoding="utf-8")
    assert "trained with PPO on the reward `heuristic`" in card and "REWARD HACKING" in card
    assert "Answers without readable counts: 1.000" in card
    assert "* ppo/heuristic, one class: right: 1.000 before → 0.000 after" in card


def test_a_policy_of_the_count_reward_is_not_praised_for_it(artifacts):
    policy = SavedPolicy("ppo/ppo", TRAFFIC, {"base": "tiny", "reward": "count_exact"})
    _, rows = page_of({"base": said(TRUE[1:] + TRUE[:1]), "ppo/ppo": said(TRUE)}, [policy])
    assert [row.circular for row in rows] == [True, True, False, False, False]


def test_sampled_shares_are_of_items_not_of_answers():
    """Two items of 60 right in one of three seeds: .0111; 60 values make the interval, not 180."""
    wrong = ["There are 9 cars."] * len(ITEMS)
    results = [
        TaskResult(JUDGE, texts, "right", 1.0, 0) for texts in (TRUE[:2] + wrong[2:], wrong, wrong)
    ]
    found = ExamResult(results[0], tuple(results), results[1], results[1], wrong, 0.0).sampled_mean(
        "exact"
    )
    assert found.value == pytest.approx(2 / 3 / 60) and found.n == 60


def test_rows_and_shares_of_an_exam_by_hand():
    wrong = ["There are 9 cars."] * len(ITEMS)
    base, after = said(wrong), said(TRUE)
    head, first, second = exam.exam_rows({"base": base, "ppo": after})
    assert len(head) == len(first) == len(second) and head[2] == "sampled, 3 seeds"
    assert [text.split()[0] for text in first[1:5]] == ["0.000", "0", "0.000", "0.000"]
    assert [text.split()[0] for text in second[1:5]] == ["1.000", "1", "0.000", "0.000"]
    assert second[0] == "ppo" and second[-1] == "1"
    shares = {name: share.value for name, share in after.shares().items()}
    assert shares == {
        "exact, greedy": 1.0, "exact, sampled (seed 0)": 1.0, "exact, images shuffled": 0.0,
        "exact, images blank": 0.0, "well formed, sampled (seed 0)": 1.0,
    }  # fmt: skip
