"""What was forgotten: nothing by an untouched adapter, something by a spoilt one."""

import math
from types import SimpleNamespace

import pytest
import torch
from architectures import BUILDERS, build

from helpers import models
from helpers.config import LoraSettings
from helpers.evaluation import forgetting
from helpers.evaluation.forgetting import (
    GENERAL_PROMPTS,
    Forgetting,
    Speech,
    measure_forgetting,
)
from helpers.evaluation.side_by_side import PolicyAnswer
from helpers.models import perplexity
from helpers.models.perplexity import Perplexity
from helpers.models.policies import Policies

SENTENCE = "The bread is warm, and the cat is asleep."
LORA = LoraSettings(r=4, dropout=0.5)


def with_adapter(model, processor):
    """The policy "dpo/new": base and an adapter that nobody has trained."""
    model = models.add_adapter(model, LORA)
    return Policies.of_trained(model, processor, "dpo/new", {"base": "tiny"})


def spoil(policies, size):
    """Noise in the adapter."""
    torch.manual_seed(1)
    with torch.no_grad():
        for name, parameter in policies.model.named_parameters():
            if "lora_B" in name:
                parameter.normal_(0, size)


def answer(text, ended=True):
    return PolicyAnswer("x", text, [1], [text], [-1.0], [-1.0], [0.0], ended)


def speech(logps, own, texts, characters=10):
    answers = [answer(text, ended=text != "cut") for text in texts]
    return Speech(Perplexity(tuple(logps), characters), answers, own)


SAME = ("a", "b", "c", "d", "e")


def verdict(logps, own, texts=SAME, base_logps=(-1.0, -3.0), characters=10):
    """The findings on a policy whose base has two tokens of text, and two of answers."""
    base = speech(base_logps, (-0.5, -0.5), SAME, characters)
    policy = speech(logps, own, texts, characters)
    return Forgetting({"base": base, "p": policy})


# --- made up, by hand ---


def test_figures_by_hand():
    found = verdict((-1.1, -3.3), (-0.7, -0.9), ("a", "b", "c", "D", "cut"))
    # lost 0.1 and 0.3 nats: e^0.2; half the interval is t(1) · s / √2 = 12.706 · 0.1
    ratio = found.ratio("p")
    assert ratio.value == pytest.approx(math.exp(0.2)) and ratio.n == 2
    assert ratio.low == pytest.approx(math.exp(0.2 - 1.2706), rel=1e-4)
    assert ratio.high == pytest.approx(math.exp(0.2 + 1.2706), rel=1e-4)
    assert found.unchanged("p").value == 3 / 5 and found.ended("p").value == 4 / 5
    # 0.2 and 0.4 nats a token
    assert found.drop("p").value == pytest.approx(0.3)
    figures = found.figures()
    assert figures["base_perplexity"] == pytest.approx(math.exp(2))
    assert figures["p_perplexity_ratio"] == ratio
    assert figures["p_perplexity"] / figures["base_perplexity"] == pytest.approx(ratio.value)
    head, base, policy = found.rows()
    assert len(head) == len(base) == len(policy) and base[1:5] == ["7.39", "", "", ""]
    assert policy[1] == "9.03" and policy[2].startswith("1.22 [")
    assert found.answer_rows()[0] == ["general prompt", "base", "p"]
    assert found.answer_rows()[-1] == [GENERAL_PROMPTS[-1], "e", "cut …"]


def test_the_limits_of_both_measures():
    # e^0.048 = 1.0492, e^0.049 = 1.0502; ln 2 = 0.6931
    assert not verdict((-1.048, -3.048), (-1.19, -1.19)).has_forgotten("p")
    assert verdict((-1.049, -3.049), (-0.5, -0.5)).has_forgotten("p")
    assert verdict((-1.0, -3.0), (-1.2, -1.2)).has_forgotten("p")
    # a policy that reads the text better has forgotten nothing
    assert not verdict((-0.5, -0.5), (-0.1, -0.1)).has_forgotten("p")


def test_words_for_each_finding():
    fine = verdict((-1.0, -3.01), (-0.5, -0.5))
    (said,) = fine.conclusions()
    assert said.startswith("p still speaks: perplexity of plain English 7.39 → 7.43 (× 1.01 ")
    assert "100% of the 5 general answers unchanged" in said and "⚠️" not in said
    worse = verdict((-1.5, -3.5), (-0.5, -0.5))
    (said,) = worse.conclusions()
    assert said.startswith("⚠️ p has forgotten language: ") and "× 1.65 [no interval]" in said
    for remedy in ("beta", "sft_weight", "kl_weight", "fewer steps", "lower learning_rate"):
        assert remedy in said
    assert worse.sentences() == [worse.sentences()[0], said]
    assert "speaks English" in worse.sentences()[0]


def test_a_base_that_does_not_speak_has_nothing_to_forget():
    # 4 nats over 2 characters are 2.9 bits each
    found = verdict((-9.0, -9.0), (-9.0, -9.0), characters=2)
    assert found.ratio("p").value > 100 and not found.has_forgotten("p")
    assert not found.conclusions()
    (said,) = found.sentences()
    assert "does not speak English, so there is nothing to forget" in said and "⚠️" not in said
    assert found.verdict("p") == said


def test_what_cannot_be_measured_is_said_in_one_line():
    found = Forgetting({}, "it wants an image")
    assert len(found.rows()) == len(found.answer_rows()) == 1 and not found.figures()
    (said,) = found.sentences()
    assert "is not measured" in said and "(it wants an image)" in said
    assert found.verdict("p") == said and not found.conclusions()


def test_a_processor_that_refuses_is_not_asked_further(processor):
    tokenizer = SimpleNamespace(added_tokens_decoder={})
    parts = {"chat_template": "", "apply_chat_template": _refuse, "tokenizer": tokenizer}
    strict = type("Strict", (), parts)()
    found = measure_forgetting(Policies(None, strict), [])
    assert found.fault == "an image, please" and not found.speech


def _refuse(self, turns, **how):
    raise ValueError("an image, please")


# --- models ---


def test_an_untouched_adapter_is_no_difference(monkeypatch):
    monkeypatch.setattr(forgetting, "ANSWER_TOKENS", 4)
    policies = with_adapter(*models.load_model("tiny"))
    found = measure_forgetting(policies, ["dpo/new"])
    assert policies.model.active_adapter == "default"
    assert list(found.speech) == ["base", "dpo/new"]
    ratio = found.ratio("dpo/new")
    assert ratio.value == 1 and ratio.low is None
    assert found.unchanged("dpo/new").value == 1 and found.drop("dpo/new").value == 0
    assert found.base.perplexity == found.speech["dpo/new"].perplexity
    # another way to the same: the figures of the answers as they were given
    given = [logp for spoken in found.base.answers for logp in spoken.logps]
    assert found.base.base_answer_logps == pytest.approx(given, abs=1e-5)


def test_a_model_in_training_is_measured_without_dropout(monkeypatch):
    monkeypatch.setattr(forgetting, "ANSWER_TOKENS", 2)
    monkeypatch.setattr(perplexity, "PASSAGES", (SENTENCE,))
    policies = with_adapter(*build("smolvlm"))
    spoil(policies, 0.5)
    policies.model.eval()
    found = measure_forgetting(policies, ["dpo/new"])
    policies.model.train()
    assert measure_forgetting(policies, ["dpo/new"]) == found
    assert policies.model.training


@pytest.mark.heavy(reason="asks seven models")
@pytest.mark.parametrize("name", BUILDERS)
def test_every_architecture_is_asked_without_an_image(name, monkeypatch):
    monkeypatch.setattr(forgetting, "ANSWER_TOKENS", 3)
    monkeypatch.setattr(perplexity, "PASSAGES", (SENTENCE,))
    policies = with_adapter(*build(name))
    spoil(policies, 0.5)
    found = measure_forgetting(policies, policies.names)
    assert not found.fault and len(found.speech["dpo/new"].answers) == len(GENERAL_PROMPTS)
    assert found.ratio("dpo/new").value != 1 and found.drop("dpo/new").value != 0


@pytest.mark.heavy(reason="lets a model learn a sentence")
@pytest.mark.parametrize("name", ["qwen2_vl", "llava", "smolvlm"])
def test_noise_in_the_adapter_of_a_base_that_speaks_is_a_warning(name, monkeypatch):
    monkeypatch.setattr(forgetting, "ANSWER_TOKENS", 3)
    monkeypatch.setattr(perplexity, "PASSAGES", (SENTENCE,))
    model, processor = build(name)
    learn(model, processor)
    policies = with_adapter(model, processor)
    found = measure_forgetting(policies, ["dpo/new"])
    assert found.base.perplexity.speaks
    assert found.verdict("dpo/new").startswith("dpo/new still speaks")
    spoil(policies, 0.5)
    found = measure_forgetting(policies, ["dpo/new"])
    assert found.ratio("dpo/new").value > 1.05 and found.has_forgotten("dpo/new")
    assert found.conclusions()[0].startswith("⚠️ dpo/new has forgotten language")


def learn(model, processor):
    """Teach the model the sentence, until it speaks as much English as that."""
    model.requires_grad_(True)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    inputs = models.tokenize(processor, [SENTENCE], [[]])
    for _ in range(30):
        optimizer.zero_grad()
        model(**inputs, labels=inputs["input_ids"]).loss.backward()
        optimizer.step()
    model.requires_grad_(False)
