"""Answers that share their prompt: the tokens that `generate` gives, for equal random numbers."""

import functools
import itertools

import pytest
import torch
from architectures import BUILDERS, build
from newer_architectures import NEWER
from pictures import noise
from torch.testing import assert_close
from transformers import LogitsProcessorList, TopPLogitsWarper

from helpers import models
from helpers.models import decoding
from helpers.models.caches import is_recurrent
from helpers.models.decoding import (
    DEAD_SHARE,
    AnswerDecoder,
    DecodingSettings,
    choose_tokens,
    decode_together,
    decode_with_generate,
    draw_numbers,
    keep_nucleus,
)
from helpers.models.decoding_check import can_share_prompts, check_decoding
from helpers.models.encoded_prompts import encode_prompts
from helpers.models.prompts import render

QUESTIONS = ("How many cars, and how many buses?", "How many?", "Why?")
SAMPLED = DecodingSettings(temperature=1.0, max_new_tokens=12, seed=3)


def prompts_of(processor):
    """Three prompts of different lengths, each with an image of its own."""
    texts = [render(processor, question) for question in QUESTIONS]
    images = [[noise(112, 112, seed=seed)] for seed in range(3)]
    return encode_prompts(processor, texts, images)


def often_ending(model, every=7):
    """Let one in `every` tokens end an answer."""
    vocabulary = model.config.get_text_config().vocab_size
    model.generation_config.eos_token_id = list(range(3, vocabulary, every))
    return model


# --- which token ---


def test_a_token_is_chosen_by_where_its_number_falls():
    """Probabilities .5, .25, .25: numbers below .5 choose the first."""
    logits = torch.tensor([0.5, 0.25, 0.25]).log().expand(6, -1)
    numbers = torch.tensor([0.0, 0.49, 0.51, 0.74, 0.76, 0.999])
    assert choose_tokens(logits, numbers, 1.0).tolist() == [0, 0, 1, 1, 2, 2]
    # squared and normalised: 2/3, 1/6, 1/6
    assert choose_tokens(logits, torch.full((6,), 0.65), 0.5).tolist() == [0] * 6
    assert choose_tokens(logits, torch.full((6,), 0.7), 0.5).tolist() == [1] * 6
    assert choose_tokens(logits, numbers, 0.0).tolist() == [0] * 6


def test_no_token_is_chosen_that_cannot_be():
    """Neither at the ends of the interval, nor behind the last block of the vocabulary."""
    logits = torch.full((4, 1000), -torch.inf)
    logits[:, [300, 301, 700]] = 0.0
    almost = torch.nextafter(torch.tensor(1.0), torch.tensor(0.0))
    numbers = torch.tensor([0.0, 0.5, almost, 1.0])
    assert choose_tokens(logits, numbers, 1.0).tolist() == [300, 301, 700, 700]


def test_tokens_are_as_frequent_as_they_are_likely():
    """χ² over 150,000 draws from a vocabulary of several blocks; rare tokens are drawn, too."""
    from scipy.stats import chisquare

    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(1000, generator=generator) * 2
    numbers = torch.rand(150_000, generator=generator)
    found = []
    for part in numbers.split(5000):
        found.append(choose_tokens(logits.expand(len(part), -1), part, 1.3))
    counts = torch.bincount(torch.cat(found), minlength=1000).double()
    expected = (logits.double() / 1.3).softmax(0) * len(numbers)
    common = expected > 5
    observed = torch.cat([counts[common], counts[~common].sum()[None]])
    theory = torch.cat([expected[common], expected[~common].sum()[None]])
    assert chisquare(observed, theory).pvalue > 0.01


def test_a_small_probability_counts_beside_a_large_one():
    """A fp32 sum that has reached 1 takes no 1e-8 any more: 20,000 of them would never be drawn."""
    logits = torch.full((1, 20_001), 1e-8).log()
    logits[0, 0] = 0.0
    # half of what is behind the first token
    number = torch.tensor([1 - 1e-4], dtype=torch.float64)
    assert abs(int(choose_tokens(logits, number, 1.0)) - 10_000) < 50


@pytest.mark.parametrize("top_p", [0.1, 0.5, 0.9])
def test_the_nucleus_is_that_of_transformers(top_p):
    logits = torch.randn(5, 700, generator=torch.Generator().manual_seed(1)) * 3
    kept = keep_nucleus(logits.softmax(-1), top_p) > 0
    theirs = TopPLogitsWarper(top_p)(None, logits.clone())
    assert torch.equal(kept, theirs > -torch.inf) and kept.any(1).all()


def test_numbers_do_not_depend_on_how_many_prompts_there_are():
    """So an answer is the same, however many are asked."""
    how = DecodingSettings(max_new_tokens=5, seed=4)
    assert torch.equal(draw_numbers(3, 2, how), draw_numbers(7, 2, how)[:3])
    assert draw_numbers(1, 1, how).ne(draw_numbers(1, 1, DecodingSettings(seed=5))[..., :5]).all()


# --- token by token ---


@pytest.mark.parametrize("name", [*BUILDERS, *NEWER])
@pytest.mark.parametrize("how", [SAMPLED, DecodingSettings(max_new_tokens=8)], ids=str)
def test_tokens_are_those_of_generate(name, how):
    """Prompts of three lengths with images, three answers each, of which most end early."""
    model, processor = build(name)
    often_ending(model)
    prompts = prompts_of(processor)
    numbers = draw_numbers(3, 3, how)
    theirs = decode_with_generate(model, processor, prompts, numbers, how)
    assert can_share_prompts(model, processor) == (not is_recurrent(model))
    if not is_recurrent(model):
        ours = decode_together(model, processor, prompts, numbers, how)
        assert [ids.tolist() for ids in ours] == [ids.tolist() for ids in theirs]
    lengths = {len(ids) for ids in theirs}
    assert len(theirs) == 9 and (how.temperature == 0 or len(lengths) > 2)


@pytest.mark.parametrize("name", ["qwen2_vl", "smolvlm"])
def test_what_has_ended_is_not_computed_any_more(name, monkeypatch):
    """Rows, slots and columns go down as answers end, and the others stay as they were."""
    model, processor = build(name)
    often_ending(model, every=5)
    prompts = prompts_of(processor)
    how = DecodingSettings(temperature=1.0, max_new_tokens=40, seed=1)
    numbers = draw_numbers(3, 48, how)
    sizes = []
    step = AnswerDecoder.step

    def watched(decoder, tokens):
        step(decoder, tokens)
        columns = decoder.cache.layers[0].keys.shape[2]
        assert columns == decoder.owners.shape[1] == decoder.places.shape[1]
        sizes.append((*tokens.shape, columns))

    monkeypatch.setattr(AnswerDecoder, "step", watched)
    ours = decode_together(model, processor, prompts, numbers, how)
    rows, slots, columns = zip(*sizes, strict=True)
    assert list(rows) == sorted(rows, reverse=True) and rows[-1] < 3
    assert list(slots) == sorted(slots, reverse=True) and slots[-1] < 4
    assert any(later < earlier for earlier, later in itertools.pairwise(columns))
    theirs = decode_with_generate(model, processor, prompts, numbers, how)
    assert [ids.tolist() for ids in ours] == [ids.tolist() for ids in theirs]
    # nothing is lost by never tidying up, but memory
    monkeypatch.setattr(decoding, "DEAD_SHARE", 0.0)
    assert DEAD_SHARE > 0
    again = decode_together(model, processor, prompts, numbers, how)
    assert [ids.tolist() for ids in again] == [ids.tolist() for ids in ours]


def test_no_banned_token_is_said(tiny):
    model, processor = tiny
    prompts = encode_prompts(processor, [render(processor, "Q")], [[noise(112, 112)]])
    how = DecodingSettings(temperature=50.0, max_new_tokens=64)
    ids = decode_together(model, processor, prompts, draw_numbers(1, 16, how), how)
    banned = set(models.banned_tokens(processor))
    assert banned and not banned & {int(token) for row in ids for token in row}


# --- what is tried first ---


def test_a_model_that_goes_wrong_step_by_step_gets_a_prompt_for_each_answer(capsys):
    """Masks that are ignored show in the figures; `generate` is taken, and it is said once."""
    model, processor = build("qwen2_vl")
    forward = model.forward

    @functools.wraps(forward)
    def forgetful(*args, attention_mask=None, past_key_values=None, **given):
        if attention_mask is not None and attention_mask.ndim == 4:
            attention_mask = None
        return forward(
            *args, attention_mask=attention_mask, past_key_values=past_key_values, **given
        )

    model.forward = forgetful
    assert not check_decoding(model, processor).ok
    prompts = prompts_of(processor)
    how = {"group_size": 2, "temperature": 1.0, "max_new_tokens": 6}
    ids, _ = models.sample_ids(model, processor, prompts, **how)
    models.sample_ids(model, processor, prompts, **how)
    assert capsys.readouterr().out.count("sharing it does not work here") == 1
    del model.forward
    expected, _ = models.sample_ids(model, processor, prompts, **how)
    assert_close(ids, expected)


def test_a_model_that_takes_no_such_cache_gets_a_prompt_for_each_answer(capsys):
    model, processor = build("qwen2_vl")
    forward = model.forward

    @functools.wraps(forward)
    def stubborn(*args, attention_mask=None, **given):
        if attention_mask is not None and attention_mask.ndim == 4:
            raise ValueError("only two dimensions")
        return forward(*args, attention_mask=attention_mask, **given)

    model.forward = stubborn
    assert not can_share_prompts(model, processor)
    assert "(only two dimensions)" in capsys.readouterr().out


def test_a_processor_of_generate_leaves_the_drawn_token():
    how = DecodingSettings(temperature=1.0)
    numbers = torch.tensor([[0.0, 0.0], [0.0, 0.999]])
    chain = LogitsProcessorList([decoding.DrawnTokens(numbers, start=3, settings=how)])
    scores = chain(torch.zeros(2, 4, dtype=torch.long), torch.zeros(2, 5))
    assert scores.argmax(1).tolist() == [0, 4]
