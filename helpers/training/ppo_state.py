"""The state of a run of PPO: what its checkpoints hold, and how it goes on from one.

Random states are not in it: what is drawn follows from the seed and the number of the iteration.
Checkpoints themselves are in `helpers/training/checkpoint.py`.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from peft import PeftModel
from transformers import ProcessorMixin

from helpers.config import PPOSettings
from helpers.data import Task
from helpers.machine import Identity
from helpers.models import VLM, weights_hash
from helpers.rewards import Scorer

from .checkpoint import reward_identity, run_identity

if TYPE_CHECKING:
    from .ppo import PPOTrainer


def ppo_identity(
    model: VLM,
    processor: ProcessorMixin,
    tasks: Sequence[Task],
    score: Scorer,
    settings: PPOSettings,
    seed: int,
    reference: str | None = None,
) -> Identity:
    """What a run must share with a checkpoint to go on from it; `model` as the trainer gets it."""
    start = {}
    if isinstance(model, PeftModel):
        # it goes on from what its adapter has learnt before
        start["adapter at the start"] = weights_hash(model, model.active_adapter)
    if reference:
        start["reference"] = weights_hash(model, reference)
    reward = reward_identity(score)
    return run_identity("ppo", model, processor, tasks, settings, seed=seed, reward=reward, **start)


def state_of(trainer: "PPOTrainer") -> dict[str, Any]:
    """Everything that the next iteration depends on, and the log."""
    scaler = trainer.accelerator.scaler
    return {
        "weights": trainer.actor.trained_weights(),
        "optimizer": trainer.optimizer.state_dict(),
        "scaler": scaler.state_dict() if scaler else None,
        "kl_weight": trainer.kl.weight,
        "log": trainer.log,
    }


@torch.no_grad()
def go_on(trainer: "PPOTrainer") -> None:
    """Put a run into the state of its newest checkpoint, if there is one, and tell its watchers.

    A watcher that keeps something has a method `go_on(trainer)`, which finds it in the log.
    """
    found = trainer.checkpoints.load(trainer.settings.iterations)
    if found is None:
        return
    _, state = found
    # what is trained
    for name, weight in trainer.actor.trained_weights().items():
        weight.copy_(state["weights"][name])
    trainer.optimizer.load_state_dict(state["optimizer"])
    if state["scaler"]:
        trainer.accelerator.scaler.load_state_dict(state["scaler"])
    trainer.kl.weight = state["kl_weight"]
    # what was seen
    trainer.log = state["log"]
    for watcher in trainer.watch:
        if hasattr(watcher, "go_on"):
            watcher.go_on(trainer)
