"""Answers of the model: they depend on neither batch nor memory, and on their seed alone."""

import numpy as np
import pytest
import torch
from architectures import BUILDERS, build
from newer_architectures import NEWER
from pictures import noise
from shipped import pictures_of
from torch.testing import assert_close

from helpers import models
from helpers.data.counting import count_answer, count_question, is_well_formed, parse_counts
from helpers.data.pairs import counting_tasks, question_for
from helpers.data.record import Message
from helpers.data.scenes import CLASSES
from helpers.data.tasks import Task, ask
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
    """`generate` of a model on a card that holds so many rows."""

    def __init__(self, model, rows, error=None):
        self.model, self.rows, self.sizes, self.own = model, rows, [], model.generate
        self.error = error or torch.OutOfMemoryError(
            "CUDA out of memory. Tried to allocate 2.00 GiB."
        )

    def __enter__(self):
        self.model.generate = self
        return self

    def __exit__(self, *_):
        del self.model.generate

    def __call__(self, input_ids, **inputs):
        self.sizes.append(len(input_ids))
        if len(input_ids) > self.rows:
            torch.rand(7)  # what was drawn before memory ran out
            raise self.error
        return self.own(input_ids=input_ids, **inputs)


@pytest.mark.heavy(reason="generates for three seconds")
def test_a_batch_that_does_not_fit_is_halved_until_it_does(tiny, valid_items, capsys):
    images, prompts = pictures_of(valid_items[:6]), [QUESTION] * 6
    how = {"temperature": 1.5, "seed": 1}
    expected = models.generate_answers(*tiny, images, prompts, **how, batch_size=2)
    tiny[0].train()
    with Cramped(tiny[0], rows=3) as cramped:
        assert models.generate_answers(*tiny, images, prompts, **how, batch_size=8) == expected
    assert cramped.sizes == [6, 4, 2, 2, 2] and tiny[0].training
    tiny[0].eval()
    assert [line for line in capsys.readouterr().out.splitlines() if "⚠️" in line] == [
        "⚠️  8 answers at once do not fit into memory: starting again with 4.",
        "⚠️  4 answers at once do not fit into memory: starting again with 2.",
    ]


@pytest.mark.heavy(reason="generates for five seconds")
def test_one_answer_that_does_not_fit_and_other_faults_are_raised(tiny, valid_items):
    images, prompts = pictures_of(valid_items[:2]), [QUESTION] * 2
    with Cramped(tiny[0], rows=0) as cramped, pytest.raises(torch.OutOfMemoryError):
        models.generate_answers(*tiny, images, prompts)
    assert cramped.sizes == [2, 2, 2, 2, 2, 2, 1]  # 64, 32, …, 1 at once, of two
    with (
        Cramped(tiny[0], 0, RuntimeError("shapes differ")) as cramped,
        pytest.raises(RuntimeError, match="differ"),
    ):
        models.generate_answers(*tiny, images, prompts)
    assert cramped.sizes == [2]


def test_each_prompt_needs_its_own_images(tiny, valid_items):
    with pytest.raises(ValueError, match="images for 1 prompts, but 2 prompts"):
        models.generate_answers(*tiny, pictures_of(valid_items[:1]), [QUESTION] * 2)


def test_images_may_be_paths(tiny, valid_items):
    paths = [item.path for item in valid_items[:3]]
    opened = pictures_of(valid_items[:3])
    assert models.generate_answers(*tiny, paths, [QUESTION] * 3) == models.generate_answers(
        *tiny, opened, [QUESTION] * 3
    )


def test_unsloths_own_generate_is_passed_by(tiny):
    """It asks for a cache of its own, and would refuse the one that image and prompt are in."""
    calls = []

    class Base(torch.nn.Module):
        device = torch.device("cpu")

        def generate(self, **inputs):
            raise ValueError("two caches")

        def _old_generate(self, **inputs):
            calls.append(inputs)
            return "tokens"

    assert models.generate_from_cache(Base(), "cache", "config", input_ids="ids") == "tokens"
    assert calls == [
        {"input_ids": "ids", "past_key_values": "cache", "generation_config": "config"}
    ]


def test_sampled_answers_are_grouped_by_image(tiny, valid_items):
    answers = sample_counting_answers(*tiny, valid_items[:5], 3)
    assert len(answers) == 5 and all(len(texts) == 3 for texts in answers)
    stated = [parse_counts(t, list(valid_items[0].counts)) for texts in answers for t in texts]
    near = [
        s and abs(s["cars"] - valid_items[i // 3].counts["cars"]) <= 1 for i, s in enumerate(stated)
    ]
    assert np.mean([bool(n) for n in near]) > 0.8, "answers belong to their images"


def test_tasks_that_count_are_sampled_as_the_counting_questions_are(tiny, valid_items):
    """Same seeds, batches and budgets: what was sampled before is sampled again."""
    items = valid_items[:3]
    expected = [count_answer(item.counts) for item in items]
    budget = answer_budget(tiny[1], expected)
    sampled = sample_task_answers(*tiny, counting_tasks(items), 2, seed=3, expected=expected)
    for place, seed in enumerate((3, 4)):
        alone = models.generate_answers(
            *tiny,
            [item.path for item in items],
            [question_for(item, number) for number, item in enumerate(items)],
            temperature=1.0,
            seed=seed,
            max_new_tokens=budget,
        )
        assert [answers[place].text for answers in sampled] == alone
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


@pytest.mark.parametrize("name", [*BUILDERS, *NEWER])
def test_an_answer_goes_on_from_a_prompt_that_was_read_before(name):
    """Prompts of different lengths: padding is not to count where the answer goes on."""
    model, processor = build(name)
    states = []  # before the language head, of each step
    model.get_output_embeddings().register_forward_pre_hook(
        lambda head, inputs: states.append(inputs[0][:, -1])
    )
    questions, images = [QUESTION, "How many?"], [noise(112, 112), noise(112, 112, seed=1)]
    how = {"max_new_tokens": 3}
    models.generate_answers(model, processor, images, questions, **how)
    expected = list(states)
    states.clear()
    texts = [render(processor, question) for question in questions]
    prompts = encode_prompts(processor, texts, [[image] for image in images])
    sample_ids(model, processor, prompts, group_size=2, temperature=1e-6, **how)
    assert len(states) == len(expected) == 3
    for ours, theirs in zip(states, expected, strict=True):
        assert_close(ours, theirs.repeat_interleave(2, 0), rtol=1e-4, atol=1e-4)


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


def test_a_task_is_asked_with_all_its_images_and_turns(tiny, valid_items, monkeypatch):
    """What the model gets has both pictures, in order, and what was said before."""
    model, processor = tiny
    turns = (
        Message(role="user", content="How many cars are in the image?"),
        Message(role="assistant", content="There are 2 cars."),
        Message(role="user", content="And buses?"),
    )
    paths = (valid_items[0].path, valid_items[1].path)
    seen = []
    generate = model.generate

    def watch(**inputs):
        seen.append(inputs)
        return generate(**inputs)

    monkeypatch.setattr(model, "generate", watch)
    one = answer_tasks(model, processor, [Task(paths, turns)])
    text = processor.tokenizer.decode(seen[0]["input_ids"][0])
    assert text.index("How many cars") < text.index("There are 2 cars.") < text.index("And buses?")
    assert text.count("<|vision_start|>") == 2 and len(seen[0]["image_grid_thw"]) == 2
    # of the second picture, too
    other = answer_tasks(model, processor, [Task(paths, turns)], images=[paths[::-1]])
    assert len(one) == len(other) == 1
    first, second = (call["pixel_values"] for call in seen)
    half = len(first) // 2
    assert (first[:half] == second[half:]).all() and (first[half:] == second[:half]).all()
