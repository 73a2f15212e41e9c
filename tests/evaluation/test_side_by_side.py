import math

import pytest
import torch
from shipped import TRAFFIC

from helpers import models
from helpers.data import Message, Task, ask, read_counts
from helpers.evaluation.side_by_side import (
    ask_all,
    ask_policies,
    read_gallery,
    save_gallery_item,
    texts_of,
)
from helpers.files import open_image
from helpers.models.decoding import DecodingSettings
from helpers.models.prompts import encode, end_of_turn
from helpers.rewards.scoring import make_scorer

QUESTION = "How many cars, motorcycles, buses and bicycles are in the image?"


@pytest.fixture(scope="module")
def task():
    return ask(QUESTION, [read_counts(TRAFFIC, "test")[3].path])


@pytest.fixture
def image(task):
    return open_image(task.images[0])


def test_the_answers_are_those_of_generate(policies, task, image):
    spoken = ask_policies(policies, policies.names, task)
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
def test_log_probabilities_and_kl_are_those_of_a_plain_forward(policies, task, image):
    """Independent: one forward of prompt and answer, teacher-forced, for policy and base."""
    processor = policies.processor
    row = ask_policies(policies, ["dpo/shipped"], task)[0]
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


def test_the_base_is_no_distance_from_itself(policies, task, image):
    row = ask_policies(policies, ["base"], task, DecodingSettings(temperature=1.5, seed=4))[0]
    assert row.logps == row.base_logps and not any(row.gains) and not any(row.kl)


@pytest.mark.heavy(reason="generates for three seconds")
def test_sampling_depends_on_the_seed_alone_and_a_short_budget_cuts(policies, task, image):
    hot = DecodingSettings(temperature=1.7, seed=1)
    first, again = (ask_policies(policies, ["base"], task, hot)[0] for _ in range(2))
    assert first == again
    texts = {
        ask_policies(policies, ["base"], task, DecodingSettings(1.7, seed=s))[0].text
        for s in range(6)
    }
    assert len(texts) > 1
    narrow = {
        ask_policies(policies, ["base"], task, DecodingSettings(1.7, top_p=1e-6, seed=s))[0].text
        for s in range(3)
    }
    assert narrow == {ask_policies(policies, ["base"], task)[0].text}, (
        "the nucleus is the likeliest token alone"
    )
    cut = ask_policies(policies, ["base"], task, DecodingSettings(max_new_tokens=2))[0]
    assert (
        not cut.ended
        and len(cut.ids) == len(cut.tokens) == len(cut.logps) == len(cut.kl) == 2
        and math.isfinite(cut.logp)
    )


def test_the_reward_is_given_what_was_seen_and_said(policies, task, image):
    length = make_scorer(
        "length", lambda image, question, answer, facts: {"length": len(answer) + image.width}
    )
    row = ask_policies(policies, ["base"], task, reward=length)[0]
    assert row.reward == len(row.text) + image.width


def conversation(first, second):
    """Two images and an earlier turn."""
    turns = [
        Message(role="user", content="Is there a bus?"),
        Message(role="assistant", content="Yes."),
        Message(role="user", content=QUESTION),
    ]
    return Task((first, second), tuple(turns), ["2", "two"], "exact_match", "g")


def test_many_tasks_are_answered_as_one_by_one(policies, task):
    """Several images and turns among them, in batches of two."""
    paths = [item.path for item in read_counts(TRAFFIC, "test")[:3]]
    tasks = [task, conversation(*paths[:2]), ask("How many buses are there?", paths[2:])]
    together = ask_all(policies, policies.names, tasks, batch_size=2)
    for number, one in enumerate(tasks):
        alone = ask_policies(policies, policies.names, one)
        for answer in alone:
            batched = together[answer.policy][number]
            assert (batched.text, batched.ids, batched.ended) == (
                answer.text,
                answer.ids,
                answer.ended,
            )
            torch.testing.assert_close(batched.kl, answer.kl, atol=1e-3, rtol=1e-3)
            torch.testing.assert_close(batched.logps, answer.logps, atol=1e-3, rtol=1e-3)
    assert texts_of(together)["base"] == [answer.text for answer in together["base"]]


def test_the_scorer_gets_all_images_and_no_truth(policies, task):
    seen = []

    def parts(image, question, answer, facts):
        seen.append((image, question, facts))
        return {"one": 1}

    paths = [item.path for item in read_counts(TRAFFIC, "test")[:2]]
    ask_policies(policies, ["base"], conversation(*paths), reward=make_scorer("one", parts))
    ((images, question, facts),) = seen
    assert len(images) == 2 and question == QUESTION and facts is None


def test_a_kept_example_has_its_images_turns_and_truth(tmp_path, policies, task):
    paths = [item.path for item in read_counts(TRAFFIC, "test")[:2]]
    example = conversation(*paths)
    spoken = ask_policies(policies, ["base"], example)
    first = save_gallery_item(tmp_path, example, DecodingSettings(), spoken)
    assert save_gallery_item(tmp_path, example, DecodingSettings(), spoken) == first
    (kept,) = read_gallery(tmp_path)
    assert kept.spoken == spoken and tuple(kept.turns) == example.turns
    assert (kept.truth, kept.truth_kind, kept.question) == (["2", "two"], "exact_match", QUESTION)
    assert [open_image(tmp_path / name).size for name in kept.images] == [
        open_image(path).size for path in paths
    ]
