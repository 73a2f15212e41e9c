"""Settings by name: presets, old names, and what a wrong name says."""

import pytest

from helpers.config import dpo_preset, ppo_preset
from helpers.files import UsageError


def test_old_names_of_settings():
    settings = ppo_preset(
        "captions",
        ppo_epochs=2,
        clip_range=0.1,
        batch_size=16,
        mini_batch_size=4,
        gamma=0.9,
        lam=0.8,
    )
    assert (
        settings.epochs,
        settings.clip,
        settings.prompts_per_iteration,
        settings.mini_batch,
    ) == (2, 0.1, 16, 4)
    assert (settings.gamma, settings.lam) == (0.9, 0.8)
    assert (
        ppo_preset("t4", batch_size=64, mini_batch_size=16).prompts_per_iteration == 16
    )  # × group_size 4
    with pytest.raises(UsageError, match="no PPO setting is called clip_rang"):
        ppo_preset("tiny", clip_rang=0.1)
    with pytest.raises(UsageError, match="choose tiny or"):
        ppo_preset("small")


def test_the_question_answering_projects_numbers():
    vqa = ppo_preset("vqa")
    assert (vqa.learning_rate, vqa.critic_learning_rate, vqa.critic_layers) == (5e-6, 1e-5, 3)
    assert (vqa.gamma, vqa.lam, vqa.clip, vqa.value_weight, vqa.entropy_weight) == (
        0.99,
        0.95,
        0.2,
        0.5,
        0.01,
    )
    assert (vqa.prompts_per_iteration, vqa.group_size, vqa.epochs) == (1, 1, 1)
    assert (vqa.max_grad_norm, vqa.kl_weight) == (0.5, 0.0)
    assert (vqa.lora.r, vqa.lora.alpha, vqa.lora.dropout, len(vqa.lora.target_modules)) == (
        8,
        32,
        0.05,
        7,
    )
    # LLaVA-NeXT's language model: 32 layers, 4,096 wide, 1,024 for keys and values, 14,336 in the MLP
    wide = [
        (4096, 4096),
        (4096, 1024),
        (4096, 1024),
        (4096, 4096),
        (4096, 14336),
        (4096, 14336),
        (14336, 4096),
    ]
    assert 32 * vqa.lora.r * sum(map(sum, wide)) == 20_971_520


def test_an_unknown_preset_is_a_one_line_error():
    with pytest.raises(UsageError, match="unknown DPO preset 'tyni': choose tiny or t4 or"):
        dpo_preset("tyni")
