"""Saves over an older save that are interrupted at every file event.

What is loaded afterwards is the older one or the new one, whole, or it is refused in one line.
"""

import random
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch

from helpers import models
from helpers.config import LoraSettings, reward_preset
from helpers.data import stable_hash
from helpers.files import UsageError, explain_error, read_json
from helpers.rewards import (
    CaptionReward,
    FeatureReward,
    load_reward_model,
    new_reward_model,
    save_reward_model,
    tiny_text_reward,
)

from . import children
from .children import Fault
from .outcome import SURVIVED, Outcome, Trial, each_in_turn

MODEL = "tiny"
FAULTS = ("kill", "full", "cut")
OLD, NEW = 0, 1  # seeds, from which all weights are drawn
REFUSED = "refused"


# --- what is saved: weights of a seed, and what says whose they are ---


def _draw(weights: dict[str, torch.Tensor], seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    for _, weight in sorted(weights.items()):
        drawn = torch.randn(weight.shape, generator=generator) * 0.1
        weight.data.copy_(drawn)


def _hash(weights: dict[str, torch.Tensor]) -> str:
    return stable_hash({name: part.float().tolist() for name, part in sorted(weights.items())})


def _trained(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    return {name: weight for name, weight in model.named_parameters() if "lora_" in name}


def save_policy(folder: Path, seed: int) -> None:
    model = models.add_adapter(models.load_model(MODEL)[0], LoraSettings(r=2), seed)
    _draw(_trained(model), seed)
    models.save_adapter(model, folder, {"base": MODEL, "seed": seed})


def load_policy(folder: Path) -> Any:
    model = models.load_adapter(models.load_model(MODEL)[0], folder)
    return read_json(folder / "about.json")["seed"], _hash(_trained(model))


def save_reward(folder: Path, seed: int) -> None:
    settings = reward_preset("tiny")
    scored = new_reward_model(*models.load_model(MODEL), settings, seed)
    _draw(scored.trainable_parameters(), seed)
    save_reward_model(scored, folder, settings, {"base": MODEL, "seed": seed})


def load_reward(folder: Path) -> Any:
    scored = load_reward_model(*models.load_model(MODEL), folder)
    return read_json(folder / "about.json")["seed"], _hash(scored.trainable_parameters())


def save_features(folder: Path, seed: int) -> None:
    reward = FeatureReward(*models.load_model(MODEL))
    _draw(reward.net.state_dict(), seed)
    reward.save(folder)


def load_features(folder: Path) -> Any:
    return _hash(FeatureReward.load(folder, *models.load_model(MODEL)).net.state_dict())


def save_captions(folder: Path, seed: int) -> None:
    tokenizer = models.load_model(MODEL)[1].tokenizer
    model = tiny_text_reward(tokenizer, seed)
    _draw(dict(model.named_parameters()), seed)
    CaptionReward(model, tokenizer, None).save(folder)


def load_captions(folder: Path) -> Any:
    return _hash(dict(CaptionReward.load(folder, None).model.named_parameters()))


@dataclass(frozen=True)
class Artifact:
    """Something that is saved: `save(folder, seed)`, and `load(folder)`, which says what it is."""

    name: str
    save: Callable[[Path, int], None]
    load: Callable[[Path], Any]


ARTIFACTS = (
    Artifact("policy", save_policy, load_policy),
    Artifact("reward model", save_reward, load_reward),
    Artifact("features", save_features, load_features),
    Artifact("captions", save_captions, load_captions),
)


# --- trials ---


def in_words(call: Callable[..., Any], *arguments: Any) -> Any:
    """Call it as a command does: what a reader can put right is a line, not a traceback."""
    try:
        return call(*arguments)
    except UsageError as error:
        print(f"error: {error}")
    except Exception as error:
        said = explain_error(error)
        if said is None:
            raise
        print(f"error: {said}")
    return REFUSED


def save_trials(home: Path, draws: random.Random, kind: str) -> Iterator[Trial]:
    """Trials of every artifact in turn, each with a fault at another file event."""
    yield from each_in_turn(
        _of_artifact(artifact, home / f"{kind}-{artifact.name}", draws, kind)
        for artifact in ARTIFACTS
    )


def _of_artifact(
    artifact: Artifact, home: Path, draws: random.Random, kind: str
) -> Iterator[Trial]:
    whole = {seed: home / f"seed-{seed}" for seed in (OLD, NEW)}
    for seed, folder in whole.items():
        children.run(artifact.save, folder, seed)
    known = [children.run(artifact.load, folder).value for folder in whole.values()]
    if None in known or known[0] == known[1]:
        raise RuntimeError(f"{artifact.name}: cannot be saved and loaded without a fault")
    over = home / "over"
    shutil.copytree(whole[OLD], over)
    events = children.run(artifact.save, over, NEW, fault=Fault("none", over)).events
    places = list(range(events))
    if kind == "cut":
        largest = max(path.stat().st_size for path in whole[NEW].iterdir())
        places = [draws.randrange(largest) for _ in places]
    draws.shuffle(places)
    for place in places:
        yield partial(_interrupt, artifact, home, known, Fault(kind, home / f"{place}", place))


def _interrupt(artifact: Artifact, home: Path, known: list[Any], fault: Fault) -> Outcome:
    what = f"{artifact.name}, {fault.kind} at {fault.at:,}"
    shutil.copytree(home / f"seed-{OLD}", fault.folder)
    saved = children.run(in_words, artifact.save, fault.folder, NEW, fault=fault)
    if saved.has_traceback:
        return Outcome("raw traceback", f"{what}, saving\n{saved.text[-1500:]}")
    loaded = children.run(in_words, artifact.load, fault.folder)
    if loaded.has_traceback:
        return Outcome("raw traceback", f"{what}, loading\n{loaded.text[-1500:]}")
    if loaded.value != REFUSED and loaded.value not in known:
        return Outcome("silently wrong", f"{what}: {fault.folder} loads as a mixture")
    if saved.code == 0 and saved.value is None and loaded.value != known[NEW]:
        return Outcome("lost", f"{what}: the save said nothing, and {fault.folder} has not it")
    shutil.rmtree(fault.folder)
    return SURVIVED
