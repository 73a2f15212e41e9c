"""Answers of the model: they depend on neither batch nor memory, and on their seed alone."""

import numpy as np
import pytest
import torch
from architectures import build
from pictures import noise
from shipped import pictures_of
from torch.testing import assert_close

from helpers import models
from helpers.data.counting import count_answer, count_question, is_well_formed, parse_counts
from helpers.data.pairs import counting_tasks, question_for
from helpers.data.record import Message
from helpers.data.scenes import CLASSES
from helpers.data.tasks import Task, ask
from helpers.models import generation
from helpers.models.encoded_prompts import encode_prompts
from helpers.models.generation import (
    answer_budget,
    answer_tasks,
    sample_counting_answers,
    sample_ids,
    sample_task_answers,
)
from helpers.models.prompts import render

QUESTION = count_question(CLASSES)


def test_greedy_answers_do_not_depend_on_the_batch(tiny, valid_items):
    images = pictures_of(valid_items[:6])
    prompts = [count_question(CLASSES, i) for i in range(5)] + ["Is there a car in the image?"]
    together = models.generate_answers(*tiny, images, prompts)
    alone = [
        models.generate_answers(*tiny, [i], [p])[0] for i, p in zip(images, prompts, strict=True)
    ]
    assert together == alone
    assert all(is_well_formed(text, CLASSES) for text in together[:5]) and together[5] in (
        "Yes.",
        "No.",
    )


def test_sampling_follows_its_seed_and_leaves_the_generator_alone(tiny, valid_items):
    images, prompts = pictures_of(valid_items[:8]), [QUESTION] * 8
    torch.manual_seed(5)
    expected = torch.rand(1)
    torch.manual_seed(5)
    first = models.generate_answers(*tiny, images, prompts, temperature=1.5, seed=1)
    assert torch.equal(torch.rand(1), expected)
    assert first == models.generate_answers(*tiny, images, prompts, temperature=1.5, seed=1)
    assert first != models.generate_answers(*tiny, images, prompts, temperature=1.5, seed=2)


class Cramped:
    """Asking a model on a card that holds so many prompts at once."""

    def __init__(self, monkeypatch, rows, error=None):
        self.rows, self.sizes, self.own = rows, [], generation._decode
        self.error = error or torch.OutOfMemoryError(
            "CUDA out of memory. Tried to allocate 2.00 GiB."
        )
        monkeypatch.setattr(generation, "_decode", self)

    def __call__(self, model, processor, prompts, numbers, how):
        self.sizes.append(len(prompts))
        if len(prompts) > self.rows:
            raise self.error
        return self.own(model, processor, prompts, numbers, how)


def test_a_batch_that_does_not_fit_is_halved_until_it_does(tiny, valid_items, capsys, monkeypatch):
    """What was answered before is not asked again, and each answer is what it would have been."""
    images, prompts = pictures_of(valid_items[:6]), [QUESTION] * 6
    how = {"temperature": 1.5, "seed": 1}
    expected = models.generate_answers(*tiny, images, prompts, **how)
    tiny[0].train()
    cramped = Cramped(monkeypatch, rows=3)
    assert models.generate_answers(*tiny, images, prompts, **how, batch_size=8) == expected
    assert cramped.sizes == [6, 4, 2, 2, 2] and tiny[0].training
    tiny[0].eval()
    assert [line for line in capsys.readouterr().out.splitlines() if "⚠️" in line] == [
        "⚠️  8 answers at once do not fit into memory: going on with 4.",
        "⚠️  4 answers at once do not fit into memory: going on with 2.",
    ]


def test_one_answer_that_does_not_fit_and_other_faults_are_raised(tiny, valid_items, monkeypatch):
    images, prompts = pictures_of(valid_items[:2]), [QUESTION] * 2
    cramped = Cramped(monkeypatch, rows=0)
    with pytest.raises(torch.OutOfMemoryError):
        models.generate_answers(*tiny, images, prompts)
    assert cramped.sizes == [2, 2, 2, 2, 2, 2, 1]  # 64, 32, …, 1 at once, of two
    monkeypatch.undo()
    cramped = Cramped(monkeypatch, 0, RuntimeError("shapes differ"))
    with pytest.raises(RuntimeError, match="differ"):
        models.generate_answers(*tiny, images, prompts)
    assert cramped.sizes == [2]


def test_sampled_answers_do_not_depend_on_how_many_are_asked_at_once(tiny, valid_items):
    tasks = counting_tasks(valid_items[:6])
    how = {"temperature": 1.5, "seed": 2, "max_new_tokens": 30}
    six = sample_task_answers(*tiny, tasks, 3, **how)
    assert sample_task_answers(*tiny, tasks[:2], 3, **how) == six[:2]
    assert len({answer.text for answers in six for answer in answers}) > 6


def test_each_prompt_needs_its_own_images(tiny, valid_items):
    with pytest.raises(ValueError, match="images for 1 prompts, but 2 prompts"):
        models.generate_answers(*tiny, pictures_of(valid_items[:1]), [QUESTION] * 2)


def test_images_may_be_paths(tiny, valid_items):
    paths = [item.path for item in valid_items[:3]]
    opened = pictures_of(valid_items[:3])
    assert models.generate_answers(*tiny, paths, [QUESTION] * 3) == models.generate_answers(
        *tiny, opened, [QUESTION] * 3
    )


def test_sampled_answers_are_grouped_by_image(tiny, valid_items):
    answers = sample_counting_answers(*tiny, valid_items[:5], 3)
    assert len(answers) == 5 and all(len(texts) == 3 for texts in answers)
    stated = [parse_counts(t, list(valid_items[0].counts)) for texts in answers for t in texts]
    near = [
        s and abs(s["cars"] - valid_items[i // 3].counts["cars"]) <= 1 for i, s in enumerate(stated)
    ]
    assert np.mean([bool(n) for n in near]) > 0.8, "answers belong to their images"


def test_tasks_that_count_are_sampled_as_the_counting_questions_are(tiny, valid_items):
    """Same seed and budget: the question about each image is that of its place."""
    items = valid_items[:3]
    expected = [count_answer(item.counts) for item in items]
    budget = answer_budget(tiny[1], expected)
    sampled = sample_task_answers(*tiny, counting_tasks(items), 1, seed=3, expected=expected)
    alone = models.generate_answers(
        *tiny,
        [item.path for item in items],
        [question_for(item, number) for number, item in enumerate(items)],
        temperature=1.0,
        seed=3,
        max_new_tokens=budget,
    )
    assert [answer.text for (answer,) in sampled] == alone
    assert all(answer.ended for answers in sampled for answer in answers)


def test_an_answer_that_its_tokens_cut_off_is_marked(tiny, valid_items):
    """ "Yes." and its end are three tokens; a sentence with counts is longer."""
    paths = [valid_items[0].path]
    tasks = [ask("Is there a car in the image?", paths), ask(QUESTION, paths)]
    (short,), (sentence,) = sample_task_answers(*tiny, tasks, 1, max_new_tokens=6)
    assert short.ended and short.text in ("Yes.", "No.")
    assert not sentence.ended and sentence.text.startswith("There")
    # nothing is known of how long an answer is
    (short,), (sentence,) = sample_task_answers(*tiny, tasks, 1)
    assert short.ended and sentence.ended and is_well_formed(sentence.text, CLASSES)


def test_text_alone_is_sampled_the_same_after_images():
    """M-RoPE keeps how far positions lag behind tokens; a text is not to get those of images."""
    model, processor = build("qwen2_vl")
    text = encode_prompts(processor, [render(processor, QUESTION, images=0)], [[]])
    with_image = encode_prompts(processor, [render(processor, QUESTION)], [[noise(112, 112)]])
    how = {"group_size": 2, "max_new_tokens": 8}
    expected, _ = sample_ids(model, processor, text, **how)
    sample_ids(model, processor, with_image, **how)
    again, _ = sample_ids(model, processor, text, **how)
    assert_close(again, expected)


def test_a_task_is_asked_with_all_its_images_and_turns(tiny, valid_items):
    """What the model gets has both pictures, in order, and what was said before."""
    model, processor = tiny
    turns = (
        Message(role="user", content="How many cars are in the image?"),
        Message(role="assistant", content="There are 2 cars."),
        Message(role="user", content="And buses?"),
    )
    paths = (valid_items[0].path, valid_items[1].path)
    seen = []
    hook = model.register_forward_pre_hook(
        lambda module, args, given: seen.append(given) if "pixel_values" in given else None,
        with_kwargs=True,
    )
    one = answer_tasks(model, processor, [Task(paths, turns)])
    text = processor.tokenizer.decode(seen[0]["input_ids"][0])
    assert text.index("How many cars") < text.index("There are 2 cars.") < text.index("And buses?")
    assert text.count("<|vision_start|>") == 2 and len(seen[0]["image_grid_thw"]) == 2
    # of the second picture, too
    other = answer_tasks(model, processor, [Task(paths, turns)], images=[paths[::-1]])
    hook.remove()
    assert len(one) == len(other) == 1
    first, second = (call["pixel_values"] for call in seen)
    half = len(first) // 2
    assert (first[:half] == second[half:]).all() and (first[half:] == second[:half]).all()
