import json
import random
import subprocess
import sys
from types import SimpleNamespace

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from shipped import TRAFFIC
from torch.testing import assert_close
from transformers import AutoModelForImageTextToText, CLIPVisionConfig, LlamaConfig, LlavaConfig

from helpers.data.preferences import read_records
from helpers.data.tasks import tasks_of
from helpers.files import ROOT, UsageError
from helpers.rewards import feature_reward
from helpers.rewards.feature_reward import (
    FeatureReward,
    image_feature,
    r_squared,
    target_scores,
    text_feature,
)
from helpers.rewards.scoring import make_scorer, score_all

TRAIN = TRAFFIC / "preferences_train.jsonl"


@pytest.fixture(scope="module")
def records():
    return read_records(TRAIN)[:60]


@pytest.fixture(scope="module")
def reward(tiny, records):
    """One model whose images are read once; `fit` starts afresh each time."""
    return FeatureReward(*tiny)


def cars(records):
    """A made-up score that needs image and answer: is the number of cars that the answer states the
    true one?
    """
    return [[float(f"are {r.truth['cars']} cars" in a.text) for a in r.answers] for r in records]


def words(records):
    """A made-up score of the answer alone, that survives the loss of order: how often it says 2."""
    return [[float(answer.text.count("2")) for answer in record.answers] for record in records]


def test_r_squared_is_that_of_the_definition():
    true = torch.tensor([1.0, 2.0, 3.0])  # Σ(true − 2)² = 2
    assert r_squared(true, true) == 1
    assert r_squared(torch.full((3,), 2.0), true) == 0
    assert r_squared(torch.tensor([1.0, 2.0, 4.0]), true) == pytest.approx(0.5)  # 1 − 1/2
    assert r_squared(true.flip(0), true) == pytest.approx(-3)  # 1 − (4 + 0 + 4)/2


def test_the_image_feature_is_the_mean_of_the_tokens_the_language_model_gets(tiny, records):
    """112 × 112 pixels are 16 visual tokens of 28 × 28."""
    model, processor = tiny
    path = records[0].image_paths[0]
    inputs = processor.image_processor(
        images=[Image.open(path).convert("RGB")], return_tensors="pt"
    )
    with torch.no_grad():
        tokens = model.model.visual(
            inputs["pixel_values"], grid_thw=inputs["image_grid_thw"]
        ).pooler_output
    assert tokens.shape == (16, 128)
    assert_close(image_feature(model, processor, path), tokens.mean(0))


def test_a_model_of_another_family_gives_features_too(tmp_path):
    """LLaVA returns (images, tokens, hidden); a processor may return more than the model takes."""
    vision = CLIPVisionConfig(
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        image_size=28,
        patch_size=14,
    )
    text = LlamaConfig(
        vocab_size=32,
        hidden_size=24,
        intermediate_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
    )
    torch.manual_seed(0)
    config = LlavaConfig(vision_config=vision, text_config=text, image_token_id=31)
    model = AutoModelForImageTextToText.from_config(config).eval()
    pixels = torch.randn(1, 3, 28, 28)

    class Inputs(dict):
        def to(self, device):
            return self

    def image_processor(images, return_tensors):
        return Inputs(pixel_values=pixels, num_crops=[1])

    get_features = model.get_image_features
    model.get_image_features = lambda pixel_values: get_features(pixel_values=pixel_values)
    Image.new("RGB", (28, 28)).save(tmp_path / "a.png")
    feature = image_feature(
        model, SimpleNamespace(image_processor=image_processor), tmp_path / "a.png"
    )
    with torch.no_grad():
        tokens = model.get_image_features(pixel_values=pixels).pooler_output
    assert feature.shape == (24,)
    assert_close(feature, tokens[0].mean(0))


def test_text_features_do_not_know_the_order_of_words(tiny):
    features = [
        text_feature(*tiny, text)
        for text in (" 2 cars 0 buses", " 0 cars 2 buses", " 1 cars 2 buses")
    ]
    assert_close(features[0], features[1])
    assert (features[0] - features[2]).abs().max() > 1e-3


def test_an_image_is_read_once_for_its_path(tiny, records, monkeypatch):
    calls = []
    real = feature_reward.image_feature
    monkeypatch.setattr(feature_reward, "image_feature", lambda *a: calls.append(a[2]) or real(*a))
    reward = FeatureReward(*tiny)
    for _ in range(2):
        reward.features([records[0], records[1], records[0]])
    assert calls == [record.image_paths[0] for record in records[:2]]


@pytest.mark.heavy(reason="trains")
def test_features_that_were_kept_are_not_computed_again(tiny, records, tmp_path, monkeypatch):
    """As after a kill: those of the images that were seen are there, of a changed one not."""
    shown = []
    for number, record in enumerate(records[:3]):
        image = tmp_path / f"{number}.png"
        image.write_bytes(record.image_paths[0].read_bytes())
        shown.append(record.model_copy(update={"images": [str(image)]}))
    whole = FeatureReward(*tiny).features(shown)
    computed, compute = [], feature_reward.image_feature
    monkeypatch.setattr(
        feature_reward, "image_feature", lambda *given: computed.append(1) or compute(*given)
    )
    FeatureReward(*tiny, tmp_path / "cache").features(shown[:2])
    again = FeatureReward(*tiny, tmp_path / "cache").features(shown)
    assert torch.equal(again, whole) and len(computed) == 3
    Image.open(tmp_path / "0.png").rotate(180).save(tmp_path / "0.png")
    FeatureReward(*tiny, tmp_path / "cache").features(shown)
    assert len(computed) == 4


def test_it_learns_a_score_of_answers_and_shuffled_targets_do_not_carry_over(reward, records):
    targets = words(records)
    fit = reward.fit(records, targets, epochs=80)
    assert fit.r2_train > 0.95 and fit.r2_held_out > 0.6 and fit.losses[-1] < fit.losses[0] / 10
    flat = [score for scores in targets for score in scores]
    random.Random(0).shuffle(flat)
    shuffled = iter(flat)
    fit = reward.fit(records, [[next(shuffled) for _ in scores] for scores in targets], epochs=80)
    assert fit.r2_train > 0.5 > 0 > fit.r2_held_out  # learnt by heart


def test_scores_come_in_the_order_of_records_and_answers_and_in_the_units_of_the_targets(
    reward, records
):
    targets = [[100 * score + 100_000 for score in scores] for scores in words(records)]
    reward.fit(records, targets, epochs=80)
    scores = reward.score_records(records)
    assert [len(s) for s in scores] == [len(r.answers) for r in records]
    flat = torch.tensor(
        [[a, b] for s, t in zip(scores, targets, strict=True) for a, b in zip(s, t, strict=True)]
    )
    assert (flat[:, 0] - flat[:, 1]).abs().mean() < 15
    alone = [reward.score_records([record])[0] for record in records[:5]]
    for one, among in zip(alone, scores[:5], strict=True):
        assert one == pytest.approx(among, abs=0.1)  # of about 100,000


def test_the_image_changes_the_score(reward, records):
    reward.fit(records, cars(records), epochs=10)
    other = records[0].model_copy(update={"images": records[7].images})
    assert reward.score_records([other])[0] != pytest.approx(
        reward.score_records(records[:1])[0], abs=1e-3
    )


def test_held_out_images_are_not_trained_on(reward, records):
    """With the targets of the held-out images spoilt, the trained scores are the same."""
    generator = torch.Generator().manual_seed(3)
    targets = torch.tensor([score for scores in words(records) for score in scores])
    _, out = feature_reward._split(records, targets, generator)
    places = [i for i, record in enumerate(records) for _ in record.answers]
    held = {places[row] for row in out.tolist()}
    assert len(held) == 12  # of 60 images
    reward.fit(records, words(records), epochs=3, seed=3)
    before = reward.score_records(records)
    spoilt = [
        [s + 9 * k for k, s in enumerate(scores)] if i in held else scores
        for i, scores in enumerate(words(records))
    ]
    reward.fit(records, spoilt, epochs=3, seed=3)
    assert reward.score_records(records) == before


def test_the_same_seed_gives_the_same_scores_and_leaves_the_generator_alone(reward, records):
    scores = []
    for seed in (1, 1, 2):
        torch.rand(1)  # what was drawn before does not matter
        state = torch.random.get_rng_state()
        reward.fit(records, words(records), epochs=2, seed=seed)
        assert torch.equal(torch.random.get_rng_state(), state)
        scores.append(reward.score_records(records))
    assert scores[0] == scores[1] != scores[2]


def test_the_frozen_model_stays_bit_equal_and_without_gradient(tiny, reward, records):
    before = [parameter.detach().clone() for parameter in tiny[0].parameters()]
    reward.fit(records, words(records), epochs=1)
    for parameter, old in zip(tiny[0].parameters(), before, strict=True):
        assert torch.equal(parameter, old) and parameter.grad is None


def test_the_heuristic_of_answers_is_what_is_regressed(records):
    """0.1 for each of four class names, −1 for a wrong count."""
    for record, scores in zip(records, target_scores(records), strict=True):
        for answer, score in zip(record.answers, scores, strict=True):
            assert score == pytest.approx(0.4 if answer.origin == "truth" else -0.6)
    shorter = make_scorer(
        "shorter", lambda image, question, answer, facts: {"shorter": -len(answer)}
    )
    assert target_scores(records[:1], shorter)[0][0] == -len(records[0].answers[0].text)


@pytest.mark.slow(reason="starts a process")
def test_a_saved_reward_gives_equal_scores_in_a_new_process(tiny, reward, records, tmp_path):
    reward.fit(records, words(records), epochs=3)
    reward.save(tmp_path / "reward")
    assert not list((tmp_path / "reward").glob("*.pt"))
    expected = reward.score_records(records[:4])
    assert FeatureReward.load(tmp_path / "reward", *tiny).score_records(records[:4]) == expected
    code = f"""
import json, pathlib
from transformers import AutoModelForImageTextToText, AutoProcessor
from helpers.rewards.feature_reward import FeatureReward
from helpers.data.preferences import read_records
path, tiny = pathlib.Path({str(TRAIN)!r}), {str(ROOT / "data" / "tiny-qwen2-vl")!r}
model = AutoModelForImageTextToText.from_pretrained(tiny)
processor = AutoProcessor.from_pretrained(tiny)
processor.image_processor.size["longest_edge"] = 112 * 112
reward = FeatureReward.load(pathlib.Path({str(tmp_path / "reward")!r}), model, processor)
print(json.dumps(reward.score_records(read_records(path)[:4])))
"""
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )
    for again, scores in zip(json.loads(done.stdout.splitlines()[-1]), expected, strict=True):
        assert again == pytest.approx(scores, abs=1e-6)


def test_what_does_not_fit_is_refused(tiny, reward, records, tmp_path):
    with pytest.raises(UsageError, match="there are no records to score"):
        reward.score_records([])
    with pytest.raises(UsageError, match="targets must hold one list a record"):
        reward.fit(records, words(records)[:-1])
    with pytest.raises(UsageError, match="all equal, so there is nothing to regress"):
        reward.fit(records, [[0.4] * len(record.answers) for record in records])
    with pytest.raises(UsageError, match="none on one side"):
        reward.fit(records[:2], words(records[:2]))
    lost = records[0].model_copy(update={"images": ["gone.png"]})
    with pytest.raises(
        UsageError, match=r"record train-scene-000000\): image .*gone.png does not exist"
    ):
        reward.score_records([lost])


def test_a_folder_of_another_model_or_a_damaged_one_is_refused(tiny, reward, tmp_path):
    with pytest.raises(UsageError, match=r"feature_reward.safetensors: cannot be read"):
        FeatureReward.load(tmp_path, *tiny)
    folder = reward.save(tmp_path / "reward")
    weights = load_file(folder / feature_reward.FEATURE_REWARD_WEIGHTS)
    fewer = {**weights, "x_mean": weights["x_mean"][:96].clone()}
    save_file(fewer, folder / feature_reward.FEATURE_REWARD_WEIGHTS)
    with pytest.raises(UsageError, match="takes 96 features, this model gives 384"):
        FeatureReward.load(folder, *tiny)
    (folder / feature_reward.FEATURE_REWARD_WEIGHTS).write_bytes(b"half")
    with pytest.raises(UsageError, match="cannot be read"):
        FeatureReward.load(folder, *tiny)


def test_as_a_reward_function_it_sees_what_it_sees_of_records(reward, records):
    """Several images and turns; answers to one image share its feature, others do not."""
    reward.fit(records, target_scores(records), epochs=1)
    first, second, third = records[:3]
    turns = [{"role": "user", "content": "Hello"}, {"role": "assistant", "content": "Yes?"}]
    turns += [turn.model_dump() for turn in first.prompt]
    fields = {"images": first.images + second.images, "prompt": turns}
    several = [type(first).model_validate(first.model_dump() | fields), second, third]
    rows = []
    for task, record in zip(tasks_of(several), several, strict=True):
        images = task.open_images()
        rows += [task.scorer_inputs(images, answer.text) for answer in record.answers]
    found = torch.tensor([score.total for score in score_all(reward.as_scorer(), rows)])
    expected = torch.tensor([value for row in reward.score_records(several) for value in row])
    assert_close(found, expected, rtol=1e-5, atol=1e-6)
    with pytest.raises(UsageError, match=r"features: 'Why\?' has no image"):
        reward.as_scorer()(None, "Why?", "So.", None)
