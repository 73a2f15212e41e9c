"""Answers that are kept as they are given: read, not asked again, where nothing differs."""

import json

import pytest
import torch
from shipped import TRAFFIC

from helpers import models
from helpers.config import LoraSettings
from helpers.data import read_counts
from helpers.data.pairs import counting_tasks
from helpers.models import generation


@pytest.fixture(scope="module")
def tasks():
    return counting_tasks(read_counts(TRAFFIC, "test")[:10])


@pytest.fixture
def asked(monkeypatch):
    """How many prompts each batch had that the model was really asked."""
    numbers = []
    ask = generation._decode

    def counted(model, processor, prompts, *how):
        numbers.append(len(prompts))
        return ask(model, processor, prompts, *how)

    monkeypatch.setattr(generation, "_decode", counted)
    return numbers


def answers_of(tiny, tasks, **options):
    images, prompts = [task.images for task in tasks], [task.turns for task in tasks]
    how = {"temperature": 1.0, "batch_size": 4} | options
    return models.generate_answers(*tiny, images, prompts, **how)


def test_what_was_given_is_not_asked_again(tiny, tasks, asked, tmp_path):
    plain = answers_of(tiny, tasks)
    assert asked == [4, 4, 2]
    with models.keep_answers(tmp_path):
        assert answers_of(tiny, tasks) == plain and asked[3:] == [4, 4, 2]
        assert answers_of(tiny, tasks) == plain and asked[6:] == []
    # outside, nothing is kept and nothing is read
    answers_of(tiny, tasks)
    assert asked[6:] == [4, 4, 2] and len(list(tmp_path.iterdir())) == 1


@pytest.mark.parametrize("kept", [1, 2])
def test_a_list_that_was_cut_off_goes_on_as_if_nothing_had_happened(
    tiny, tasks, asked, tmp_path, kept
):
    """Sampled answers, too: each has random numbers of its own."""
    with models.keep_answers(tmp_path):
        whole = answers_of(tiny, tasks)
    (file,) = tmp_path.iterdir()
    lines = file.read_text(encoding="utf-8").splitlines()
    assert lines[0] == "" and len(lines) == 4
    # the kill came in the middle of writing the next line
    cut = "\n".join([*lines[: kept + 1], lines[kept + 1][:50]])
    file.write_text(cut, encoding="utf-8")
    del asked[:]
    with models.keep_answers(tmp_path):
        assert answers_of(tiny, tasks) == whole
        assert sum(asked) == 10 - 4 * kept
        del asked[:]
        assert answers_of(tiny, tasks) == whole and asked == []


def test_other_random_numbers_are_left_alone(tiny, tasks, tmp_path):
    torch.manual_seed(3)
    expected = torch.rand(1)
    torch.manual_seed(3)
    with models.keep_answers(tmp_path):
        answers_of(tiny, tasks)
        answers_of(tiny, tasks)
    assert torch.equal(torch.rand(1), expected)


@pytest.mark.parametrize(
    "change",
    [
        {"seed": 1},
        {"temperature": 0.0},
        {"max_new_tokens": 5},
        "fewer",
        "other images",
        "other question",
    ],
    ids=str,
)
def test_anything_else_is_asked(tiny, tasks, asked, tmp_path, change):
    with models.keep_answers(tmp_path):
        answers_of(tiny, tasks)
        before = len(asked)
        if isinstance(change, dict):
            answers_of(tiny, tasks, **change)
        elif change == "fewer":
            answers_of(tiny, tasks[:9])
        elif change == "other images":
            images = [task.images for task in tasks[::-1]]
            prompts = [task.turns for task in tasks]
            models.generate_answers(*tiny, images, prompts, temperature=1.0, batch_size=4)
        else:
            images = [task.images for task in tasks]
            models.generate_answers(
                *tiny, images, ["How many?"] * 10, temperature=1.0, batch_size=4
            )
    assert len(asked) > before and len(list(tmp_path.iterdir())) == 2


def test_another_adapter_and_the_base_are_asked(tasks, asked, tmp_path):
    model, processor = models.load_model("tiny")
    policy = models.add_adapter(model, LoraSettings(r=4))
    for name, weight in policy.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(weight, std=0.3)
    with models.keep_answers(tmp_path):
        moved = answers_of((policy, processor), tasks, temperature=0.0)
        with models.disable_adapters(policy):
            base = answers_of((policy, processor), tasks, temperature=0.0)
    assert moved != base and sum(asked) == 20
    with models.keep_answers(tmp_path), models.disable_adapters(policy):
        assert answers_of((policy, processor), tasks, temperature=0.0) == base
    assert sum(asked) == 20


def test_a_line_says_what_was_answered(tiny, tasks, tmp_path):
    with models.keep_answers(tmp_path):
        answers = answers_of(tiny, tasks)
    (file,) = tmp_path.iterdir()
    rows = [json.loads(line) for line in file.read_text(encoding="utf-8").split("\n")[1:]]
    assert [row["start"] for row in rows] == [0, 4, 8]
    assert [text for row in rows for ((text, _),) in row["answers"]] == answers


def test_another_number_at_once_reads_what_there_is(tiny, tasks, asked, tmp_path):
    """An answer does not depend on it."""
    with models.keep_answers(tmp_path):
        plain = answers_of(tiny, tasks)
        assert answers_of(tiny, tasks, batch_size=5) == plain and asked == [4, 4, 2]
