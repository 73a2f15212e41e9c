"""Headline figures of notebook 07 from examinations made by hand."""

from types import SimpleNamespace

import pytest
from shipped import TRAFFIC

from helpers.data import read_counts
from helpers.data.counting import count_answer
from helpers.data.pairs import counting_tasks, one_class_question
from helpers.evaluation.exam import ExamResult, exam_metrics
from helpers.evaluation.forgetting import Forgetting
from helpers.evaluation.paired import compare_policies
from helpers.evaluation.task_results import TaskResult
from helpers.evaluation.truth_judges import judges
from helpers.models.policies import SavedPolicy
from helpers.report.exam_figures import add_exam_figures
from helpers.report.page import Section

ITEMS = read_counts(TRAFFIC, "test")[:20]
JUDGE = judges(counting_tasks(ITEMS))
NOT_MEASURED = Forgetting({}, "it wants an image")
TRUE = [count_answer(item.counts) for item in ITEMS]
WRONG = ["There are 9 cars."] * len(ITEMS)
ONE_CLASS = [one_class_question(item.counts, number)[1] for number, item in enumerate(ITEMS)]


def exam(right, one_class):
    """`right` true greedy answers, one sampled seed with one fewer; the last `one_class` are right."""

    def result(n, images="right"):
        return TaskResult(JUDGE, TRUE[:n] + WRONG[n:], images, 0.0, 0)

    texts = WRONG[: len(ITEMS) - one_class] + ONE_CLASS[len(ITEMS) - one_class :]
    shuffled = result(1, "shuffled")
    return ExamResult(result(right), (result(right - 1),), shuffled, shuffled, texts, 1.0)


def policy(name, seed):
    return SavedPolicy(name, TRAFFIC / name, {"base": "tiny", "seed": seed})


def figures(*saved_exams):
    """The section of a base with 5 of 20 right, and of policies with their exams."""
    examined = {"base": exam(5, 20)} | {p.name: found for p, found in saved_exams}
    policies = SimpleNamespace(saved={p.name: p for p, _ in saved_exams})
    metrics = exam_metrics(examined)
    comparisons = compare_policies(metrics, [item.group for item in ITEMS])
    section = Section("07_evaluate", "Evaluation")
    add_exam_figures(section, policies, examined, metrics, comparisons, NOT_MEASURED)
    return section, comparisons


@pytest.mark.heavy(reason="examines policies")
def test_names_values_and_seeds_by_hand():
    first, second, other = policy("dpo/seed-0", 0), policy("dpo/seed-1", 1), policy("ppo/ppo", 0)
    exams = [(first, exam(20, 10)), (second, exam(15, 0)), (other, exam(20, 20))]
    section, comparisons = figures(*exams)
    found = {name: (headline.value, headline.seed) for name, headline in section.headlines.items()}
    p = {row.policy: row.adjusted for row in comparisons if row.metric == "all counts right"}
    assert found == {
        "base_exact": (5 / 20, 0), "base_exact_sampled": (4 / 20, 0),
        "base_wellformed_sampled": (pytest.approx(4 / 20), 0), "base_exact_shuffled_images": (1 / 20, 0),
        "dpo_exact": (1.0, 0), "dpo_exact_sampled": (19 / 20, 0), "dpo_wellformed_sampled": (19 / 20, 0),
        "dpo_exact_shuffled_images": (1 / 20, 0), "dpo_mcnemar_p": (p["dpo/seed-0"], 0),
        "dpo_exact_seed_1": (15 / 20, 1), "dpo_exact_sampled_seed_1": (14 / 20, 1),
        "dpo_wellformed_sampled_seed_1": (14 / 20, 1), "dpo_exact_shuffled_images_seed_1": (1 / 20, 1),
        "dpo_mcnemar_p_seed_1": (p["dpo/seed-1"], 1),
        "base_one_class": (1.0, 0), "dpo_one_class": (10 / 20, 0),
    }  # fmt: skip
    assert list(section.headlines)[-2:] == ["base_one_class", "dpo_one_class"]
    assert list(section.examined) == ["dpo/seed-0", "dpo/seed-1", "ppo/ppo"]


@pytest.mark.heavy(reason="examines policies")
def test_sft_has_its_figures_and_dpo_a_test_against_it():
    saved = [policy("dpo/seed-0", 0), policy("sft/seed-0", 0), policy("sft/seed-1", 1)]
    results = (exam(20, 10), exam(15, 0), exam(14, 0))
    exams = {one.name: found for one, found in zip(saved, results, strict=True)}
    examined = {"base": exam(5, 20)} | exams
    metrics, clusters = exam_metrics(examined), [item.group for item in ITEMS]
    against_sft = compare_policies(metrics, clusters, baseline="sft/seed-0")
    section = Section("07_evaluate", "Evaluation")
    policies = SimpleNamespace(saved={one.name: one for one in saved})
    comparisons = compare_policies(metrics, clusters)
    add_exam_figures(section, policies, examined, metrics, comparisons, NOT_MEASURED, against_sft)
    found = {name: headline.value for name, headline in section.headlines.items()}
    assert (found["sft_exact"], found["sft_exact_seed_1"]) == (15 / 20, 14 / 20)
    assert {"sft_mcnemar_p", "sft_mcnemar_p_seed_1", "dpo_mcnemar_p"} <= found.keys()
    (row,) = [row for row in against_sft if row.metric == "all counts right"]
    assert found["dpo_vs_sft_p"] == row.adjusted and row.policy == "dpo/seed-0"
    assert not [name for name in found if name.startswith("sft_vs")]


@pytest.mark.heavy(reason="examines policies")
def test_without_dpo_its_one_class_is_the_bases():
    section, _ = figures((policy("ppo/ppo", 0), exam(20, 7)))
    assert "dpo_exact" not in section.headlines
    assert section.headlines["dpo_one_class"] == section.headlines["base_one_class"]
