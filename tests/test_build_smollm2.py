"""How the base with real language weights is trained, in toy form."""

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch.nn.functional import log_softmax
from torch.testing import assert_close
from toy_smollm2 import toy_config, toy_language, toy_tokenizer

from data import build_smollm2_scenes as build
from data.smollm2_tower import (
    COLOR_TOKENS,
    SceneTargets,
    Spelling,
    Tower,
    read_digits,
    spelled_share,
    train_tower,
)
from helpers import models
from helpers.config import LoraSettings
from helpers.data.scenes import CLASSES, COLORS, SPLIT_SEEDS, make_scene
from helpers.models import smollm2
from helpers.models.presets import config_of

LORA = LoraSettings(r=2, alpha=4)


@pytest.fixture(scope="module")
def tokenizer():
    return toy_tokenizer()


@pytest.fixture(scope="module")
def processor(tokenizer):
    return smollm2.make_processor(tokenizer)


@pytest.fixture(scope="module")
def language(tokenizer):
    return toy_language(tokenizer)


@pytest.fixture
def model(tokenizer, language, monkeypatch):
    """The whole model before its training, with a fresh adapter."""
    config = toy_config(tokenizer)
    monkeypatch.setattr(build, "config_of", lambda name: config)
    torch.manual_seed(1)
    built = build.build_model(language, Tower(config))
    return models.base_of(models.add_adapter(built, LORA, 0))


# --- what it is trained on ------------------------------------------------------------------------


def test_examples_follow_from_their_seed_and_under_count():
    first = [build.make_example(seed) for seed in range(150)]
    assert first == [build.make_example(seed) for seed in range(150)]
    counted = [e for e in first if e.answer.startswith("There are") and "bicycles in" in e.answer]
    # .55 of 150, with a deviation of 6.1
    assert 64 <= len(counted) <= 101
    short = [sum(e.scene.counts.values()) - sum(_numbers(e.answer)) for e in counted]
    # Where one is missing it is a motorcycle or bicycle, but for one car or bus in ten
    assert np.mean(short) > 0.3
    assert {e.scene.seed for e in first} <= set(SPLIT_SEEDS["base"])


def _numbers(answer: str) -> list[int]:
    return [int(word) for word in answer.split() if word.isdigit()]


def test_targets_say_what_is_in_the_scene(processor):
    scenes = [make_scene(SPLIT_SEEDS["base"][0] + place) for place in range(4)]
    batch = SceneTargets(processor.image_processor, steps=1).collate(scenes)
    assert batch["pixels"].shape == (4, 3, 112, 112)
    for row, scene in enumerate(scenes):
        assert batch["counts"][row].tolist() == list(scene.counts.values())
        assert int((batch["kinds"][row] > 0).sum()) == len(scene.vehicles)
        seen = {list(COLORS)[place] for place in batch["occurs"][row].nonzero().flatten()}
        assert seen == {vehicle.color for vehicle in scene.vehicles}
        for vehicle in scene.vehicles:
            assert batch["colors"][row, vehicle.cell] == list(COLORS).index(vehicle.color)


def test_tokens_that_spell_the_scene_are_at_no_distance(tokenizer):
    torch.manual_seed(0)
    embedding = torch.randn(len(tokenizer), 64)
    spelling = Spelling(embedding, tokenizer)
    counts = torch.tensor([[0, 1, 2, 3], [3, 3, 0, 1]])
    occurs = torch.tensor([[0, 1, 0, 1, 1, 0], [1, 1, 1, 1, 1, 1]])
    tokens = torch.zeros(2, 16, 64)
    tokens[:, 0:8:2] = spelling.digits[counts]
    tokens[:, 1:8:2] = spelling.kinds
    for row in range(2):
        for place, there in enumerate(occurs[row].tolist()):
            tokens[row, COLOR_TOKENS.start + place] = spelling.colors[there, place]
    assert read_digits(spelling, tokens).tolist() == counts.tolist()
    right = spelling.loss(tokens, counts, occurs)
    wrong = spelling.loss(tokens, (counts + 1) % 4, occurs)
    # Only the cross-entropy of four digits is left
    assert right < 0.5 < wrong
    assert spelling.loss(tokens, counts, 1 - occurs) > 3 * right
    assert len(CLASSES) * 2 == COLOR_TOKENS.start


# --- losses ---------------------------------------------------------------------------------------


def test_scene_loss_is_the_models_own(model, processor, monkeypatch):
    """With digits weighed like the rest, it is transformers' own, one row at a time."""
    monkeypatch.setattr(build, "DIGIT_WEIGHT", 1.0)
    examples = [build.make_example(seed) for seed in range(3)]
    found = build.scene_loss(model, processor, examples)
    losses, tokens = [], []
    for example in examples:
        content = [{"type": "image"}, {"type": "text", "text": example.prompt}]
        prompt = processor.apply_chat_template(
            [{"role": "user", "content": content}], add_generation_prompt=True
        )
        image = build.draw_scene(example.scene)
        text = f"{prompt} {example.answer}<end_of_utterance>"
        batch = processor(text=[text], images=[[image]], return_tensors="pt")
        start = processor(text=[prompt], images=[[image]], return_tensors="pt")["input_ids"].shape[
            1
        ]
        labels = batch["input_ids"].clone()
        labels[:, :start] = -100
        losses.append(model(**batch, labels=labels).loss)
        tokens.append(int((labels != -100).sum()))
    weights = torch.tensor(tokens) / sum(tokens)
    assert_close(found, (weights * torch.stack(losses)).sum(), rtol=1e-5, atol=1e-5)


def test_digits_weigh_more(model, processor, monkeypatch):
    examples = [build.make_example(seed) for seed in range(3)]
    losses = {}
    for weight in (1.0, 3.0, 1e6):
        monkeypatch.setattr(build, "DIGIT_WEIGHT", weight)
        losses[weight] = float(build.scene_loss(model, processor, examples).detach())
    # (others + w · digits) / (n_others + w · n_digits) lies between both means
    low, high = sorted((losses[1.0], losses[1e6]))
    assert low < losses[3.0] < high


def test_nothing_is_lost_where_it_expects_the_same(model):
    ids = torch.arange(5, 17)
    with torch.no_grad():
        expected = log_softmax(model(input_ids=ids[None]).logits[0].float(), -1)
        same = build.PlainExample(ids, 4, expected[4:])
        shorter = build.PlainExample(ids[:9], 2, expected[2:9])
        assert float(build.plain_loss(model, [same, shorter])) == pytest.approx(0, abs=1e-6)
        # From certainty, the divergence is the cross-entropy
        sure = torch.full_like(expected[4:5], build.NEVER)
        sure[0, 7] = 0.0
        lost = build.plain_loss(model, [build.PlainExample(ids[:5], 4, sure)])
    assert float(lost) == pytest.approx(-float(expected[4, 7]), rel=1e-4)


def test_expected_ends_move_to_the_new_token():
    expected = torch.tensor([[-1.0, -2.0, -3.0, build.NEVER], [-1.0, -2.0, -3.0, build.NEVER]])
    build._use_new_tokens(expected, first=1, old_end=2)
    assert expected[0].tolist() == [build.NEVER, 0.0, build.NEVER, build.NEVER]
    assert expected[1].tolist() == [-1.0, -2.0, build.NEVER, -3.0]


def test_plain_examples_read_as_the_template_does(language, tokenizer):
    examples = build.plain_examples(
        language, tokenizer, ["What is a car?", "Why is the road busy?"]
    )
    spoken = [e for e in examples if e.start > 0]
    plain = [e for e in examples if e.start == 0]
    assert len(plain) == 2
    for example in examples:
        assert len(example.log_probabilities) == len(example.ids) - example.start
        assert example.log_probabilities.shape[1] == len(tokenizer)
    for example in spoken:
        text = tokenizer.decode(example.ids)
        assert text.startswith("<|im_start|>User: ") and "<end_of_utterance>\nAssistant: " in text


# --- training -------------------------------------------------------------------------------------


def _plain(model) -> list:
    ids = torch.arange(5, 25)
    with torch.no_grad():
        expected = log_softmax(model(input_ids=ids[None]).logits[0].float(), -1)
    return [build.PlainExample(ids, 3, expected[3:]) for _ in range(4)]


@pytest.mark.heavy
def test_stopped_training_goes_on_to_the_same_weights(
    model, processor, tokenizer, language, tmp_path, monkeypatch
):
    """Four steps equal two, a stop and two more, to the bit; language model and tower stay."""
    monkeypatch.setattr(build, "SCENES_A_STEP", 2)
    monkeypatch.setattr(build, "CHECKPOINT_STEPS", 2)
    plain = _plain(model)
    before = {n: p.detach().clone() for n, p in model.named_parameters()}
    build.train_language(model, processor, plain, 4, tmp_path / "whole.pt")
    after = dict(model.named_parameters())
    old = len(tokenizer) - smollm2.NEW_TOKENS
    moved = {n for n, p in after.items() if not torch.equal(p, before[n])}
    table = "model.text_model.embed_tokens.weight"
    assert table in moved and torch.equal(after[table][:old], before[table][:old])
    # nor does the tower learn from careless annotators
    assert {n for n in moved if "lora_" not in n} == {table}
    assert any("lora_A" in n for n in moved)

    def stop(state, path, save=torch.save):
        save(state, path)
        raise KeyboardInterrupt

    config = toy_config(tokenizer)
    torch.manual_seed(1)
    again = build.build_model(language, Tower(config))
    again = models.base_of(models.add_adapter(again, LORA, 0))
    with monkeypatch.context() as patch:
        patch.setattr(build.torch, "save", stop)
        with pytest.raises(KeyboardInterrupt):
            build.train_language(again, processor, plain, 4, tmp_path / "half.pt")
    torch.manual_seed(1)
    fresh = build.build_model(language, Tower(config))
    fresh = models.base_of(models.add_adapter(fresh, LORA, 0))
    build.train_language(fresh, processor, plain, 4, tmp_path / "half.pt")
    for name, parameter in fresh.named_parameters():
        assert torch.equal(parameter, after[name]), name


def test_delta_is_what_was_trained(model, language, processor, tmp_path):
    """Put together again, it gives the logits of the trained model, but for what bf16 rounds."""
    torch.manual_seed(2)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.1)
    delta = build.delta_of(model)
    rank = LORA.r
    for name, tensor in delta.items():
        if name.startswith("lora."):
            assert tensor.shape[0 if name.endswith(".a") else 1] == rank
    weights = smollm2.put_together(language.model.state_dict(), delta)
    smollm2.save_checkpoint(weights, model.config, processor, tmp_path)
    assert set(load_file(tmp_path / "model.safetensors")) == set(weights)
    loaded, _ = models.load_model(tmp_path, four_bit=False)
    batch = processor(
        text=[models.render(processor, "How many?")],
        images=[[build.draw_scene(make_scene(3))]],
        return_tensors="pt",
    )
    with torch.no_grad():
        ours, theirs = loaded(**batch).logits.float(), model(**batch).logits
    assert_close(ours, theirs, rtol=0.05, atol=0.05)
    assert (ours - theirs).abs().max() > 0


def test_what_the_tower_spells_is_read_without_the_language_model(model, processor, monkeypatch):
    """Of an untrained tower next to nothing; of states that spell a count, that count."""
    assert spelled_share(model, processor, 4).value < 1
    zero = processor.tokenizer("0", add_special_tokens=False)["input_ids"]
    state = model.get_input_embeddings().weight[zero].mean(0)
    monkeypatch.setattr(
        type(model.model.connector), "forward", lambda *given: state.expand(1, 16, -1)
    )
    empty = [make_scene(seed) for seed in SPLIT_SEEDS["test"][:200]]
    share = sum(not any(scene.counts.values()) for scene in empty) / 200
    assert 0 < share == spelled_share(model, processor, 200).value


@pytest.mark.heavy
def test_tower_learns_and_goes_on(tokenizer, processor, tmp_path):
    config = config_of(smollm2.PRESET)
    torch.manual_seed(0)
    embedding = torch.randn(len(tokenizer), config.text_config.hidden_size) / 10
    tower = Tower(config)
    before = tower.connector.modality_projection.proj.weight.detach().clone()
    train_tower(tower, embedding, processor, 2, tmp_path / "tower.pt", every=1)
    assert not torch.equal(before, tower.connector.modality_projection.proj.weight)
    again = Tower(config)
    # Nothing is left to do: it only takes over
    train_tower(again, embedding, processor, 2, tmp_path / "tower.pt")
    for one, two in zip(tower.parameters(), again.parameters(), strict=True):
        assert torch.equal(one, two)
