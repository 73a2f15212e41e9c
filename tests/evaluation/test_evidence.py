"""The whole block on the tiny model, and in the report."""

import pytest
from made_up_tasks import tasks_about
from shipped import TRAFFIC

from helpers.data import read_records, tasks_of
from helpers.evaluation import gather_evidence
from helpers.report import Section, add_evidence
from helpers.rewards import heuristic_scorer


@pytest.mark.heavy(reason="answers and scores for some seconds")
def test_the_block_with_a_truth_and_a_judge(policies, artifacts):
    records = read_records(TRAFFIC / "preferences_valid.jsonl")[:8]
    found = gather_evidence(
        policies, policies.names, records, tasks_of(records),
        judges={"rules": heuristic_scorer()}, stopped=True,
    )  # fmt: skip
    heads = [rows[0][0] for rows in found.tables()]
    assert heads == ["model", "policy", "model", "model", "general prompt"]
    assert set(found.figures()) == {
        "dpo/shipped_pair_accuracy",
        "dpo/shipped_pair_logp_accuracy",
        "dpo/shipped_win_rate_rules",
        "dpo/shipped_agreement_rules",
        "base_perplexity",
        "dpo/shipped_perplexity",
        "dpo/shipped_perplexity_ratio",
        "dpo/shipped_answers_unchanged",
        "dpo/shipped_answers_drop",
    }
    section = Section("x", "X")
    page = add_evidence(section, found, lead=True).data
    assert page.count("<table") == 5 == len(section.tables)
    assert len(section.conclusions) == 2 and "dpo/shipped prefers" in section.conclusions[0]
    said = " ".join(section.sentences)
    assert "also stopped the training" in said and "which sees no image" in said
    assert "does not speak English, so there is nothing to forget" in said
    assert not set(section.conclusions) & set(section.sentences)
    beside = Section("04_train_dpo", "not the one that speaks")
    add_evidence(beside, found)
    assert not beside.conclusions and set(section.conclusions) <= set(beside.sentences)
    assert list(found.answers) == ["base", "dpo/shipped"]


def test_questions_without_pairs_truth_or_judge(policies, tmp_path):
    found = gather_evidence(policies, ["dpo/shipped"], [], tasks_about(tmp_path, ["a"]))
    assert len(found.tables()) == 3 and not found.conclusions()
    assert found.figures() == found.forgetting.figures()
    assert "no held-out pair" in found.remarks()[0]
