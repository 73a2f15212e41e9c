import math

import pytest
import torch
from shipped import TRAFFIC

from helpers import models
from helpers.data.labels import read_yolo
from helpers.evaluation.side_by_side import DecodingSettings, ask_policies
from helpers.files import open_image
from helpers.models.policies import Policies, find_policies
from helpers.models.prompts import encode, end_of_turn
from helpers.rewards.scoring import make_scorer

QUESTION = "How many cars, motorcycles, buses and bicycles are in the image?"


@pytest.fixture(scope="module")
def policies():
    return Policies(*models.load_model("tiny"), find_policies("tiny", TRAFFIC))


@pytest.fixture(scope="module")
def image():
    return open_image(read_yolo(TRAFFIC, "test")[3].path)


def test_the_answers_are_those_of_generate(policies, image):
    spoken = ask_policies(policies, policies.names, image, QUESTION)
    for row in spoken:
        with policies.use_policy(row.policy) as model:
            assert (
                row.text
                == models.generate_answers(model, policies.processor, [image], [QUESTION])[0]
            )
    assert spoken[0].ended and "".join(spoken[0].tokens) == spoken[0].text + end_of_turn(
        policies.processor
    )


@torch.no_grad()
def test_log_probabilities_and_kl_are_those_of_a_plain_forward(policies, image):
    """Independent: one forward of prompt and answer, teacher-forced, for policy and base."""
    processor = policies.processor
    row = ask_policies(policies, ["dpo/shipped"], image, QUESTION)[0]
    inputs = encode(processor, [QUESTION], [image])
    ids = processor.tokenizer(
        row.text + end_of_turn(processor), add_special_tokens=False, return_tensors="pt"
    ).input_ids
    start = inputs["input_ids"].shape[1]
    whole = dict(inputs) | {
        "input_ids": torch.cat([inputs["input_ids"], ids], 1),
        "attention_mask": torch.ones(1, start + ids.shape[1], dtype=torch.long),
        "mm_token_type_ids": torch.nn.functional.pad(
            inputs["mm_token_type_ids"], (0, ids.shape[1])
        ),
    }
    found = {}
    for name in ("dpo/shipped", "base"):
        with policies.use_policy(name) as model:
            found[name] = model(**whole).logits[0, start - 1 : -1].float().log_softmax(-1)
    own, base = found["dpo/shipped"], found["base"]
    picked = [values.gather(-1, ids[0][:, None])[:, 0] for values in (own, base)]
    torch.testing.assert_close(torch.tensor(row.logps), picked[0], atol=2e-4, rtol=0)
    torch.testing.assert_close(torch.tensor(row.base_logps), picked[1], atol=2e-4, rtol=0)
    kl = torch.nn.functional.kl_div(base, own, reduction="none", log_target=True).sum(-1)
    torch.testing.assert_close(torch.tensor(row.kl), kl, atol=2e-4, rtol=0)
    assert row.logp == pytest.approx(float(picked[0].sum()), abs=1e-3) and sum(row.kl) > 0.05
    assert row.gains == pytest.approx((picked[0] - picked[1]).tolist(), abs=4e-4)


def test_the_base_is_no_distance_from_itself(policies, image):
    row = ask_policies(
        policies, ["base"], image, QUESTION, DecodingSettings(temperature=1.5, seed=4)
    )[0]
    assert row.logps == row.base_logps and not any(row.gains) and not any(row.kl)


@pytest.mark.heavy(reason="generates for three seconds")
def test_sampling_depends_on_the_seed_alone_and_a_short_budget_cuts(policies, image):
    hot = DecodingSettings(temperature=1.7, seed=1)
    first, again = (ask_policies(policies, ["base"], image, QUESTION, hot)[0] for _ in range(2))
    assert first == again
    texts = {
        ask_policies(policies, ["base"], image, QUESTION, DecodingSettings(1.7, seed=s))[0].text
        for s in range(6)
    }
    assert len(texts) > 1
    narrow = {
        ask_policies(
            policies, ["base"], image, QUESTION, DecodingSettings(1.7, top_p=1e-6, seed=s)
        )[0].text
        for s in range(3)
    }
    assert narrow == {ask_policies(policies, ["base"], image, QUESTION)[0].text}, (
        "the nucleus is the likeliest token alone"
    )
    cut = ask_policies(policies, ["base"], image, QUESTION, DecodingSettings(max_new_tokens=2))[0]
    assert (
        not cut.ended
        and len(cut.ids) == len(cut.tokens) == len(cut.logps) == len(cut.kl) == 2
        and math.isfinite(cut.logp)
    )


def test_the_reward_is_given_what_was_seen_and_said(policies, image):
    length = make_scorer(
        "length", lambda image, question, answer, facts: {"length": len(answer) + image.width}
    )
    row = ask_policies(policies, ["base"], image, QUESTION, reward=length)[0]
    assert row.reward == len(row.text) + image.width
