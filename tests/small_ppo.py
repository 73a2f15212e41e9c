"""Short runs of PPO on the tiny model."""

import dataclasses

import torch
from shipped import TRAFFIC

from helpers import models
from helpers.config import PPO_PRESETS
from helpers.data.preferences import read_records
from helpers.data.tasks import tasks_of
from helpers.rewards.scoring import count_graded
from helpers.training.ppo import PPOTrainer

PATH = TRAFFIC / "preferences_train.jsonl"
RECORDS = read_records(PATH)[:32]
SMALL = dataclasses.replace(
    PPO_PRESETS["tiny"],
    prompts_per_iteration=4,
    group_size=4,
    mini_batch=2,
    iterations=4,
    checkpoint_every=1,
    critic_layers=3,
    critic_adapter=False,
)


def trainer(settings=SMALL, score=count_graded, model=None, **options) -> PPOTrainer:
    base, processor = models.load_model("tiny")
    return PPOTrainer(model or base, processor, tasks_of(RECORDS), score, settings, **options)


def weights(run) -> dict[str, torch.Tensor]:
    return {name: p.detach().clone() for name, p in run.actor.named_parameters()}


def moved(run, before) -> set[str]:
    return {name for name, p in run.actor.named_parameters() if not torch.equal(p, before[name])}


def shift_answers(run, monkeypatch) -> None:
    """Let the updates of a run see other tokens than the look before them."""
    whole = run.sampler.mini_batches

    def shifted(experience, iteration):
        ids = [ids.roll(1) for ids in experience.rollout.ids]
        rollout = dataclasses.replace(experience.rollout, ids=ids)
        return whole(dataclasses.replace(experience, rollout=rollout), iteration)

    monkeypatch.setattr(run.sampler, "mini_batches", shifted)


def finished(folder, iterations=4, **options):
    settings = dataclasses.replace(SMALL, iterations=iterations, kl_target=1.0, critic_adapter=True)
    run = trainer(settings, folder=folder, **options)
    run.train()
    return run


def same(first, second) -> None:
    ours = weights(second)
    assert all(torch.equal(value, ours[name]) for name, value in weights(first).items())
    timed = {"seconds", "tokens_per_second"}
    rows = [
        [{k: v for k, v in row.items() if k not in timed} for row in run.log]
        for run in (first, second)
    ]
    assert repr(rows[0]) == repr(rows[1])  # NaN is equal to itself here
    assert first.kl == second.kl
