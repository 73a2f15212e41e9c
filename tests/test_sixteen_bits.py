"""DPO, reward model and PPO in bf16 and fp16, packed and with kept features, behind 24 layers.

With as many layers, rounding adds up to what once was taken for a mask that is wrong.
`tests/test_precision.py` has the types of all tensors; here it is whether each stage trains, and
whether a mistake is still told from rounding.
"""

import dataclasses
import math

import pytest
import torch
from architectures import build_deep, save_as_on_the_hub
from precisions import sixteen_bits
from shipped import TRAFFIC
from small_ppo import shift_answers

from helpers import models
from helpers.config import DPO_PRESETS, PPO_PRESETS, LoraSettings, reward_preset
from helpers.data.preferences import read_records
from helpers.data.tasks import tasks_of
from helpers.models.packer import Packer
from helpers.models.packing_check import check_packing
from helpers.rewards import reward_model
from helpers.rewards.scoring import make_scorer
from helpers.runtime import TOLERANCES, tolerances_of
from helpers.training import dpo
from helpers.training.ppo import PPOTrainer
from helpers.training.reward import RewardTrainer

pytestmark = pytest.mark.slow(
    reason="24 layers; test_what_rounding_adds_up_to_in_many_layers_is_no_mistake packs them"
)

RECORDS = read_records(TRAFFIC / "preferences_train.jsonl")[:8]
LORA = LoraSettings(r=4)
PPO = {
    "iterations": 1,
    "prompts_per_iteration": 4,
    "mini_batch": 2,
    "max_new_tokens": 8,
    "no_end_penalty": 0.0,
    "learning_rate": 1e-3,
    "lora": LORA,
}
length = make_scorer("length", lambda image, question, answer, facts: {"length": len(answer) / 10})


@pytest.fixture(scope="module", params=["qwen2_vl", "smolvlm"])
def folder(request, tmp_path_factory):
    """Of a checkpoint with 24 layers."""
    return save_as_on_the_hub(request.param, tmp_path_factory.mktemp(request.param), build_deep)


@pytest.fixture(params=[torch.bfloat16, torch.float16], ids=str)
def dtype(request):
    with sixteen_bits(request.param):
        yield request.param


def load(folder, dtype):
    model, processor = models.load_model(folder, four_bit=False)
    assert model.dtype == dtype and tolerances_of(model) == TOLERANCES[dtype]
    return model, processor


def packs_with_kept_features(packer):
    return packer.packs and packer.features is not None and packer.features.computed > 0


def test_dpo(folder, dtype, pairs_dataset):
    settings = dataclasses.replace(
        DPO_PRESETS["tiny"], steps=6, batch_size=4, warmup_share=0.0, learning_rate=3e-3, lora=LORA
    )
    pairs = pairs_dataset.select(range(4))
    trainer = dpo.dpo_trainer(*load(folder, dtype), pairs, settings)
    log = dpo.train_dpo(trainer).log
    assert packs_with_kept_features(trainer.data_collator.packer)
    assert all(math.isfinite(row["loss"] + row["grad_norm"]) for row in log)
    assert log[0]["rewards/margins"] == pytest.approx(0, abs=settings.beta * 0.8)
    assert log[-1]["loss"] < log[0]["loss"] and log[-1]["rewards/margins"] > 0


def test_a_reward_model(folder, dtype):
    settings = dataclasses.replace(
        reward_preset("tiny"), epochs=2, batch_size=4, learning_rate=1e-3, lora=LORA
    )
    reward = reward_model.new_reward_model(*load(folder, dtype), settings)
    before = {n: p.detach().clone() for n, p in reward.trainable_parameters().items()}
    run = RewardTrainer(reward, RECORDS, RECORDS[:2], settings).train()
    assert packs_with_kept_features(reward.packer)
    assert all(math.isfinite(row["loss"] + row["grad_norm"]) for row in run.log)
    assert any(not torch.equal(p, before[n]) for n, p in reward.trainable_parameters().items())
    packed = reward_model.score_records(reward, RECORDS[:4])
    reward.packer = Packer(reward.backbone, reward.processor, packs=False)
    plain = reward_model.score_records(reward, RECORDS[:4])
    allowed = TOLERANCES[dtype].score
    for ours, theirs in zip(packed, plain, strict=True):
        assert ours == pytest.approx(theirs, rel=allowed, abs=allowed)


@pytest.mark.parametrize(
    ("preset", "more"),
    [("t4", {"critic_layers": 3}), ("t4", {}), ("captions", {}), ("reasoning", {}), ("vqa", {})],
)
def test_ppo(folder, dtype, preset, more):
    """Once the ratio had to be 1 ± 0.001, which stopped the first iteration in 16 bits."""
    settings = dataclasses.replace(PPO_PRESETS[preset], **PPO, **more)
    assert settings.ratio_tolerance is None
    run = PPOTrainer(*load(folder, dtype), tasks_of(RECORDS), length, settings)
    before = {n: p.clone() for n, p in run.actor.trained_weights().items()}
    (row,) = run.train()
    assert packs_with_kept_features(run.sampler.packer)
    assert math.isfinite(row["ppo/loss/policy"] + row["grad_norm/adapter"])
    assert any(not torch.equal(p, before[n]) for n, p in run.actor.trained_weights().items())


def test_answers_that_are_not_those_sampled_stop_ppo(folder, dtype, monkeypatch):
    settings = dataclasses.replace(PPO_PRESETS["t4"], **PPO)
    run = PPOTrainer(*load(folder, dtype), tasks_of(RECORDS), length, settings)
    shift_answers(run, monkeypatch)
    with pytest.raises(RuntimeError, match="before any update"):
        run.train()


def test_packing_is_within_a_multiple_of_rounding(folder, dtype):
    check = check_packing(*load(folder, dtype))
    assert check.ok and check.floor > 100 * torch.finfo(torch.float32).eps
