"""The policies that there are: the base, and every adapter of it that was trained. One base is in memory.

An adapter is read from its folder when it is first asked, and the base answers with all of them off. Taught
in notebook 06.
"""

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from peft import PeftModel
from transformers import ProcessorMixin

from helpers import models
from helpers.files import ROOT, UsageError, artifacts_dir, read_json

from .adapters import VLM

BASE_POLICY = "base"
SHIPPED_POLICIES = (
    ROOT / "data" / "tiny-dpo"
)  # what notebook 04 makes of the tiny base, for readers who have not run it


@dataclass(frozen=True)
class SavedPolicy:
    """An adapter on disk. `name` is that of its folder after its stage's: "dpo/seed-0"."""

    name: str
    folder: Path
    about: dict[str, Any]  # how it was made: base, seed, settings, data

    @property
    def seed(self) -> int:
        return int(self.about.get("seed", 0))


def find_policies(base: str, folder: Path | None = None, shipped: bool = True) -> list[SavedPolicy]:
    """The adapters of `base` in the folders under `folder` (default: the artifacts), by name.

    An adapter of another base is left out, and said to be. If there is none, the shipped one is taken for
    the tiny base, and said to be. Raises UsageError if there is none at all, or an about.json is broken.
    """
    folder, found = folder or artifacts_dir(), []
    for config in sorted(folder.rglob("adapter_config.json")):
        path = config.parent
        if (path / "head.safetensors").exists() or not (path / "about.json").exists():
            continue  # a reward model, or a trainer's own checkpoint
        about = read_json(path / "about.json")
        name = path.relative_to(folder).as_posix() if path != folder else path.name
        if about.get("base") != base:
            print(f"⚠️  leaving out {name}: it was trained on {about.get('base')!r}, not {base!r}")
            continue
        found.append(SavedPolicy(name, path, about))
    if not found and shipped and base == read_json(SHIPPED_POLICIES / "about.json")["base"]:
        print(
            f"no adapter in {folder} yet: comparing the one that comes with the repository (notebook 04, seed 0)"
        )
        found = [
            SavedPolicy("dpo/shipped", SHIPPED_POLICIES, read_json(SHIPPED_POLICIES / "about.json"))
        ]
    if not found:
        raise UsageError(
            f"no adapter of {base!r} in {folder}. Run notebook 04 (DPO) or 05 (PPO) first."
        )
    return found


def image_limit(saved: Sequence[SavedPolicy], limit: int | None = None) -> int | None:
    """`max_pixels` for `models.load_model`: `limit`, or the smallest that one of the policies was trained with."""
    trained = {
        policy.name: pixels for policy in saved if (pixels := policy.about.get("max_pixels"))
    }
    if not trained or (limit and limit <= min(trained.values())):
        return limit
    least = min(trained, key=trained.get)
    print(f"images are reduced to {trained[least]:,} pixels, as when {least} was trained")
    return trained[least]


class Policies:
    """The base and its adapters under one roof; `names` begins with the base's.

    model: with or without adapters; those that it has stay, and are not asked. Nothing here trains.
    """

    def __init__(self, model: VLM, processor: ProcessorMixin, saved: Sequence[SavedPolicy] = ()):
        self.model, self.processor = model, processor
        self.saved = {policy.name: policy for policy in saved}
        if BASE_POLICY in self.saved:
            raise UsageError(
                f"{self.saved[BASE_POLICY].folder}: an adapter cannot be called {BASE_POLICY!r}. Rename its folder."
            )
        self._loaded: set[str] = set()

    def add_folder(self, folder: Path) -> list[str]:
        """Names of the adapters under `folder` that join those that there are, of the same base.

        Raises UsageError if there is none, here or there.
        """
        if not self.saved:
            raise UsageError(
                "there is no adapter yet that says which base this is. Give some with `find_policies`."
            )
        found = find_policies(next(iter(self.saved.values())).about["base"], folder, shipped=False)
        new = {policy.name: policy for policy in found if policy.name not in self.saved}
        self.saved |= new
        return list(new)

    @property
    def names(self) -> list[str]:
        return [BASE_POLICY, *self.saved]

    @contextlib.contextmanager
    def use_policy(self, name: str) -> Iterator[VLM]:
        """The model as the policy `name`; afterwards it is as it was. Raises UsageError for an unknown name."""
        if name == BASE_POLICY:
            with models.disable_adapters(self.model) as model:
                yield model
            return
        if name not in self.saved:
            raise UsageError(f"unknown policy {name!r}: there are {', '.join(self.names)}.")
        if name not in self._loaded:
            before = self.model.active_adapter if isinstance(self.model, PeftModel) else None
            self.model = models.load_adapter(
                self.model, self.saved[name].folder, _adapter_name(name)
            )
            self.model.set_adapter(before or _adapter_name(name))
            self._loaded.add(name)
        with models.use_adapter(self.model, _adapter_name(name)) as model:
            yield model


def _adapter_name(name: str) -> str:
    """peft takes a dot for the end of a module's name."""
    return name.replace(".", "_")
