"""The shipped tasks open as anybody's own data would, and hold what they say."""

from collections import Counter

import numpy as np
import pytest

from data import task_language
from data.build_tasks import requests_of
from helpers.data import SHIPPED_TASKS, choose_task, open_data
from helpers.files import ROOT, UsageError
from helpers.rewards import TRUTHS

KINDS = {
    "counting": "counts",
    "instructions": "exact_match",
    "reasons": "exact_match",
    "questions": "exact_match",
    "reasoning": "choice",
}
PREFERRED = ("instructions", "reasons", "reasoning")  # with answers to choose from


@pytest.fixture(scope="module", params=SHIPPED_TASKS)
def opened(request):
    task = choose_task(request.param)
    return request.param, open_data(task.data, truth=task.truth)


def test_every_row_is_used_and_every_split_is_there(opened):
    name, data = opened
    assert list(data.parts) == ["train", "valid", "test"]
    assert data.kind == KINDS[name]
    assert not data.left.lines()
    photos = Counter()
    for part in data.parts.values():
        photos.update({task.images[0] for task in part.all_tasks()})
    assert set(photos.values()) == {1}, "no scene is in two splits"
    assert len(photos) == 976
    assert all(image.is_file() for image in photos)


def test_what_is_known_and_when(opened):
    name, data = opened
    for split, part in data.parts.items():
        known = {task.is_known for task in part.all_tasks()}
        # of requests people know only which answer they like better, and the test knows more
        hidden = name == "instructions" and split != "test"
        assert known == {not hidden}


@pytest.mark.parametrize("name", PREFERRED)
def test_one_in_ten_preferences_is_wrong(name):
    data = open_data(choose_task(name).data)
    asked = {}
    for seed, request in requests_of(name, "train"):
        asked[f"scene-{seed:06d}", request.prompt] = request
    wrong = []
    for record in data.parts["train"].records:
        request = asked[record.image_paths[0].stem, record.prompt[-1].content]
        for better, worse in [(pair.chosen.text, pair.rejected.text) for pair in record.pairs()]:
            wrong.append(task_language.rate(request, better) < task_language.rate(request, worse))
    assert len(wrong) > 400
    assert 0.06 < np.mean(wrong) < 0.14


def test_calculations_are_compared_and_not_two_guesses():
    for part in open_data(choose_task("reasoning").data).parts.values():
        for record in part.records:
            assert any("=" in answer.text for answer in record.answers), record.place


def test_own_data_takes_the_place_of_a_task():
    own = choose_task("counting", data="my photos", truth="anls")
    assert (own.data, own.model, own.truth) == ("my photos", "tiny", "anls")
    other = choose_task("reasoning", model="qwen2-vl-2b")
    assert (other.model, other.truth) == ("qwen2-vl-2b", "choice")
    with pytest.raises(UsageError, match="Did you mean 'reasons'"):
        choose_task("reason")


def test_every_base_and_kind_is_there():
    for task in SHIPPED_TASKS.values():
        assert (ROOT / task.data).is_dir()
        assert task.truth is None or task.truth in TRUTHS
