"""VQA accuracy in the official reading, beside ours."""

import pytest

from helpers.data import ask
from helpers.evaluation import judges
from helpers.evaluation.official import official_vqa_accuracies, official_vqa_accuracy
from helpers.rewards import vqa_accuracy


def ours(answer, annotated):
    return vqa_accuracy(None, "?", answer, annotated).total


@pytest.mark.parametrize(
    ("answer", "annotated", "official", "own"),
    [
        ("Yes", ["yes"] * 10, 0.0, 1.0),  # all agree: raw texts
        ("yes\n", ["yes", " yes"] * 5, 1.0, 1.0),
        # with either of the two left out there is one match, else there are two
        ("Two!", ["2"] * 2 + ["three"] * 8, (2 * 1 / 3 + 8 * 2 / 3) / 10, (2 / 3 + 16 / 3) / 10),
        ("the cat", ["cat"] * 9 + ["dog"], 1.0, 1.0),
        ("the cat", ["cat"] * 10, 0.0, 1.0),
    ],
)
def test_texts_are_normalised_only_where_annotators_differ(answer, annotated, official, own):
    assert official_vqa_accuracy(answer, annotated) == pytest.approx(official)
    assert ours(answer, annotated) == pytest.approx(own)


def test_the_official_figure_stands_in_the_details():
    tasks = [ask("?", [], ["yes"] * 10, "vqa_accuracy"), ask("?", [], ["no"] * 10, "vqa_accuracy")]
    titles = dict(judges(tasks).details(["Yes", "no"]))
    assert titles["as VQA v2's own code counts"][1][1].startswith("0.5 ")
    assert official_vqa_accuracies(["Yes", "no"], [["yes"] * 10, ["no"] * 10]).tolist() == [0, 1]
