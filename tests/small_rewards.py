"""Small reward models and the figures that tests ask of them."""

import dataclasses

import torch
from shipped import TRAFFIC

from helpers.config import reward_preset
from helpers.rewards import reward_model
from helpers.training.reward import RewardTrainer

PATH = TRAFFIC / "preferences_train.jsonl"
QUICK = dataclasses.replace(
    reward_preset("tiny"),
    epochs=1,
    batch_size=4,
    evaluations=2,
    learning_rate=2e-3,
    warmup_share=0.0,
)


def trainer(model, records, settings=QUICK, seed=0, **options):
    reward = reward_model.new_reward_model(*model, settings, seed)
    return RewardTrainer(reward, records, records[:8], settings, seed, **options)


def flat(scores):
    return torch.tensor([value for row in scores for value in row])


def weights(reward):
    return {name: value.detach().clone() for name, value in reward.trainable_parameters().items()}
