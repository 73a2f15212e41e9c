"""Perplexity of plain text: by hand, on every architecture, whatever stands beside it."""

import copy
import math

import numpy as np
import pytest
import torch
from architectures import BUILDERS, build
from newer_architectures import NEWER
from pictures import noise
from torch.testing import assert_close

from helpers import models
from helpers.models.perplexity import (
    PASSAGES,
    WORD_FREQUENCY_BITS,
    Perplexity,
    plain_english,
    text_logps,
    why_no_text,
)

SHORT = "The cat is old."
LONG = "My sister put a pot of soup on the stove, and we waited."


@torch.no_grad()
def logps_by_hand(model, processor, text):
    """Token after token: what stands before it goes through the model alone, without padding."""
    ids = processor.tokenizer(text)["input_ids"]  # with its own first token, if it has one
    found = []
    for place in range(1, len(ids)):
        logits = model(input_ids=torch.tensor([ids[:place]])).logits[0, -1]
        weights = np.exp(logits.double().numpy())
        found.append(math.log(weights[ids[place]] / weights.sum()))
    return found


def test_figures_by_hand():
    # probabilities ½ and ⅛: 1 / √(½ · ⅛) = 4, and (1 + 3) bits over 4 characters
    found = Perplexity((math.log(1 / 2), math.log(1 / 8)), 4)
    assert found.value == pytest.approx(4) and found.bits == pytest.approx(1)
    assert found.speaks and str(found) == "perplexity 4 a token, 1.00 bits a character"
    assert "may forget it" in found.describe()
    # as many guesses among 8 letters at each character: 3 bits, although only 8 a token
    letters = Perplexity((math.log(1 / 8),) * 5, 5)
    assert letters.value == pytest.approx(8) and letters.bits == pytest.approx(3)
    assert not letters.speaks and letters.bits > WORD_FREQUENCY_BITS
    assert "nothing to forget" in letters.describe()


def test_certainty_is_1_and_large_figures_are_written_out():
    assert Perplexity((0.0, 0.0), 9).value == 1
    assert Perplexity((-math.log(1234567),), 9).value_text() == "1,234,567"
    assert Perplexity((-1e4,), 9).value == math.inf


@pytest.mark.parametrize("name", [*BUILDERS, *NEWER])
def test_a_text_beside_another_has_the_figures_of_a_loop_over_its_tokens(name):
    """The tokenizer's own first token (LLaVA, Gemma, LFM2) makes the first one count; else not."""
    model, processor = build(name)
    _, found = text_logps(model, processor, [LONG, SHORT])
    assert_close(found, torch.tensor(logps_by_hand(model, processor, SHORT)), rtol=0, atol=1e-4)
    tokens = processor.tokenizer(SHORT, add_special_tokens=False)["input_ids"]
    begins = name in ("llava", "llava_next", "gemma3", "gemma4", "lfm2_vl")
    assert len(found) == len(tokens) - (not begins)
    (alone,) = text_logps(model, processor, [SHORT])
    assert_close(alone, found, rtol=0, atol=1e-5)
    assert why_no_text(processor) == ""


def test_the_passages_are_plain_prose_and_all_of_them_count(tiny):
    words = [len(passage.split()) for passage in PASSAGES]
    assert 150 <= sum(words) <= 200
    found = plain_english(*tiny)
    assert found.characters == sum(map(len, PASSAGES))
    by_one = [text_logps(*tiny, [passage])[0] for passage in PASSAGES]
    assert_close(torch.tensor(found.logps), torch.cat(by_one), rtol=0, atol=1e-3)
    # the tiny base knows sentences about traffic, and is sure of them everywhere
    assert found.value > 1000 and not found.speaks


def test_an_answer_about_an_image_in_between_changes_nothing(tiny):
    model, processor = tiny
    before = text_logps(model, processor, [SHORT])[0]
    models.generate_answers(model, processor, [noise(112, 112)], ["What?"], max_new_tokens=2)
    assert torch.equal(text_logps(model, processor, [SHORT])[0], before)


def test_a_template_that_wants_an_image_is_quoted(processor):
    strict = copy.deepcopy(processor)
    strict.chat_template = "{{ raise_exception('one image, please') }}"
    assert why_no_text(processor) == "" and why_no_text(strict) == "one image, please"
