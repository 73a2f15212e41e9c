"""Kinds of truth: a field of the record, never guessed from one answer."""

from pathlib import Path

import pytest
from pydantic import ValidationError

from helpers.data import PreferenceRecord, ask, tasks_of

PLAIN = {"image": "a.png", "prompt": "What is it?", "chosen": "A cat.", "rejected": "A dog."}


def record(**fields):
    return PreferenceRecord.model_validate({**PLAIN, **fields})


@pytest.mark.parametrize(
    ("truth", "kind"),
    [(None, "none"), ({"cars": 0}, "counts"), ("yes", "exact_match"), (["a", "b"], "exact_match")],
)
def test_a_truth_without_a_kind_has_the_plain_one_of_its_form(truth, kind):
    assert record(truth=truth).kind == kind
    assert tasks_of([record(truth=truth)])[0].kind == kind


def test_the_kind_that_a_reader_sets_is_kept_and_written():
    said = record(truth="yes", truth_kind="yes_no")
    assert said.kind == "yes_no"
    assert PreferenceRecord.model_validate_json(said.model_dump_json()) == said
    assert "truth_kind" not in record(truth="yes").model_dump(exclude_defaults=True)


@pytest.mark.parametrize(
    ("truth", "kind", "said"),
    [
        ("2", "counts", "needs a table of counts"),
        ({"cars": 2}, "vqa_accuracy", "needs an answer, or a list"),
        ("2", "none", "does not go with"),
        (["2", "2", "3"], "vqa_accuracy", "of 4 people or more, not 3"),
    ],
)
def test_a_truth_that_is_not_of_its_kind_is_refused(truth, kind, said):
    with pytest.raises(ValidationError, match=said):
        record(truth=truth, truth_kind=kind)


def test_a_file_of_one_kind_may_have_records_without_a_truth():
    assert record(truth_kind="yes_no").kind == "none"


def test_questions_about_one_photo_are_one_cluster():
    first, second = ask("What?", [Path("a.png")]), ask("Why?", [Path("a.png")])
    assert first.photo == second.photo != ask("What?", [Path("b.png")]).photo
    assert ask("What?", [Path("c.png")], group="a").photo == "a"
