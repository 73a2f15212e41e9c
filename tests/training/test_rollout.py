"""Sampled answers: their tokens, their order, their scores."""

import pytest
import torch
from architectures import BUILDERS, build
from pictures import noise
from shipped import TRAFFIC
from torch.testing import assert_close

from helpers.config import PPOSettings
from helpers.data.preferences import read_records
from helpers.data.tasks import Task, tasks_asking, tasks_of
from helpers.files import UsageError
from helpers.models.caches import ImageFeatures
from helpers.models.encoded_prompts import encode_prompts
from helpers.models.generation import sample_ids
from helpers.models.packer import Packer
from helpers.models.prompts import answer_ids, render, user_message
from helpers.models.shared_prefix import answer_logps, pack, pack_separately
from helpers.rewards.scoring import Score, count_exact, make_scorer
from helpers.training import rollout
from helpers.training.rollout import roll_out

PATH = TRAFFIC / "preferences_train.jsonl"
IMAGES = [[noise(112, 112)], [noise(84, 140, 60, seed=1)]]
QUESTIONS = ["How many cars?", "How many buses are in the image, and of which color are they?"]


@pytest.fixture(scope="module")
def tasks():
    return tasks_of(read_records(PATH)[:4])


def rolled(tiny, tasks, score=count_exact, **options):
    defaults = {"group_size": 3, "temperature": 1.0, "top_p": 1.0, "max_new_tokens": 40}
    seed, truth = options.pop("seed", 0), options.pop("truth", None)
    settings = PPOSettings(**defaults | options)
    packer = Packer(*tiny, packs=True)
    return roll_out(packer, tasks, score, settings, seed=seed, truth=truth)


@pytest.mark.parametrize("name", BUILDERS)
def test_kept_features_give_the_answers_that_pixels_give(name):
    model, processor = build(name)
    prompts = [render(processor, question) for question in QUESTIONS]
    rows = [prompts[0], prompts[0], prompts[1]], [IMAGES[0], IMAGES[0], IMAGES[1]]
    how = {"max_new_tokens": 6, "seed": 3}
    features = ImageFeatures(model, processor)
    kept, pixels = (
        sample_ids(model, processor, encode_prompts(processor, *rows, given), **how)
        for given in (features, None)
    )
    assert [row.tolist() for row in kept[0]] == [row.tolist() for row in pixels[0]] and kept[
        1
    ] == pixels[1]
    assert features.computed == 2  # images, not answers
    assert kept[0][0].tolist() != kept[0][1].tolist()  # answers to one prompt differ


@pytest.mark.parametrize("name", BUILDERS)
def test_sampled_tokens_have_the_same_log_probabilities_in_both_layouts(name):
    model, processor = build(name)
    prompts = [render(processor, question) for question in QUESTIONS]
    ids = [torch.tensor([5, 9, 300, 9]), torch.tensor([7]), torch.tensor([11, 12])]
    answers = [ids[:2], ids[2:]]
    kept = encode_prompts(processor, prompts, IMAGES, ImageFeatures(model, processor))
    packed = pack(model, processor, kept, answers)
    for side in ("right", "left"):
        rows = pack_separately(processor, encode_prompts(processor, prompts, IMAGES), answers, side)
        assert [
            row[1:][mask[1:]].tolist() for row, mask in zip(rows.ids, rows.mask, strict=True)
        ] == [i.tolist() for i in ids]
        assert_close(answer_logps(model, packed), answer_logps(model, rows), rtol=1e-4, atol=1e-4)
    assert packed.pooled.shape == (3, model.config.get_text_config().hidden_size)
    assert_close(packed.pooled[0], packed.pooled[1])  # of the same image
    assert not torch.allclose(packed.pooled[0], packed.pooled[2])


def test_tokens_are_those_that_were_sampled(tiny, tasks):
    """The probabilities that generation had for them are those of the packed forward: nothing is shifted."""
    model, processor = tiny
    rollout = rolled(tiny, tasks, temperature=0.7)
    packed = pack(model, processor, rollout.prompts, [rollout.answers(i) for i in range(4)])
    for row, mask, ids in zip(packed.ids, packed.mask, rollout.ids, strict=True):
        assert row[1:][mask[1:]].tolist() == ids.tolist()
    shifted = [[ids.roll(1) for ids in rollout.answers(i)] for i in range(4)]
    wrong = pack(model, processor, rollout.prompts, shifted)
    with torch.no_grad():
        own, other = (answer_logps(model, inputs).sum(1) for inputs in (packed, wrong))
    assert own.min() > -8 and (other < own - 8).all()


def test_equal_seeds_give_equal_answers_and_leave_the_callers_random_numbers_alone(tiny, tasks):
    torch.manual_seed(5)
    first = rolled(tiny, tasks, seed=1)
    after = torch.rand(3)
    torch.manual_seed(5)
    assert torch.equal(after, torch.rand(3))
    assert rolled(tiny, tasks, seed=1).texts == first.texts != rolled(tiny, tasks, seed=2).texts


def test_answers_to_one_task_stand_together(tiny, tasks):
    """Scored by a scorer that says which task an answer belongs to."""
    known = {id(task.facts): float(number) for number, task in enumerate(tasks)}
    seen = []
    whose = make_scorer(
        "whose",
        lambda image, question, answer, facts: (
            seen.append(image.size) or {"task": known[id(facts)]}
        ),
    )
    rollout = rolled(tiny, tasks, whose, truth=count_exact)
    assert (
        rollout.scores.tolist() == [0, 0, 0, 1, 1, 1, 2, 2, 2, 3, 3, 3]
        and seen == [(112, 112)] * 12
    )
    assert rollout.answer_numbers([2, 0]) == [6, 7, 8, 0, 1, 2]
    exact = [
        count_exact(None, "", text, tasks[n // 3].facts).total
        for n, text in enumerate(rollout.texts)
    ]
    assert rollout.truth.tolist() == exact and 0 < sum(exact) < 12


def test_an_answer_that_does_not_end_loses_the_penalty(tiny, tasks):
    one = make_scorer("one", lambda *given: {"one": 1.0})
    cut = rolled(tiny, tasks, one, max_new_tokens=5, no_end_penalty=0.25)
    assert not cut.ended.any() and {len(ids) for ids in cut.ids} == {5}
    assert cut.scores.tolist() == [0.75] * 12 and cut.parts["one"].tolist() == [1.0] * 12
    whole = rolled(tiny, tasks, one)
    end = tiny[1].tokenizer.eos_token_id
    assert whole.ended.all() and all(ids[-1] == end and end not in ids[:-1] for ids in whole.ids)
    assert whole.scores.tolist() == [1.0] * 12 and "<|im_end|>" not in "".join(whole.texts)


def test_a_scorer_with_a_model_gets_all_answers_at_once(tiny, tasks):
    calls = []

    def batch(rows):
        calls.append(len(rows))
        return [Score(float(number), {"part": float(number)}) for number in range(len(rows))]

    score = make_scorer("model", lambda *given: {"part": -1.0})
    score.batch = batch
    rollout = rolled(tiny, tasks, score)
    assert calls == [12] and rollout.scores.tolist() == list(range(12))


def test_a_missing_image_is_named(tiny, tmp_path):
    lost = Task((tmp_path / "lost.png",), (user_message("How many?"),), {"cars": 1})
    with pytest.raises(UsageError, match=r"lost\.png"):
        rolled(tiny, [lost])


def test_other_questions_about_the_images_of_records():
    records = read_records(PATH)[:2]

    def ask(counts, number):
        return f"Question {number}?", f"{sum(counts.values())}"

    tasks = tasks_asking(tasks_of(records), ask)
    assert [task.images for task in tasks] == [tuple(record.image_paths) for record in records]
    assert [[(turn.role, turn.content) for turn in task.turns] for task in tasks] == [
        [("user", "Question 0?")],
        [("user", "Question 1?")],
    ]
    assert [task.facts for task in tasks] == [str(sum(r.truth.values())) for r in records]


def test_sampled_answers_are_scored_without_the_space(monkeypatch):
    model, processor = build("idefics3")
    ids = [torch.tensor(answer_ids(processor, text)) for text in ("Two cars.", "No.")]
    monkeypatch.setattr(rollout, "sample_ids", lambda *_, **__: (ids, [True, True]))
    seen = []
    score = make_scorer(
        "watch", lambda image, question, answer, facts: seen.append(answer) or {"watch": 0.0}
    )
    settings = PPOSettings(group_size=2, max_new_tokens=8)
    tasks = [rollout.Task((), (user_message("Q"),), {})]
    packer = Packer(model, processor, packs=False)
    sampled = rollout.roll_out(packer, tasks, score, settings, seed=0)
    assert sampled.texts == ["Two cars.", "No."] == seen
