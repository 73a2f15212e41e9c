"""The policies that there are: the base, and every adapter of it that was trained.

One base is in memory. An adapter is read from its folder when it is first asked, and the base
answers with all of them off. Taught in notebook 06.
"""

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from peft import PeftModel
from transformers import ProcessorMixin

from helpers.files import ROOT, UsageError, artifacts_dir, is_set_aside, read_json

from .adapter_files import HEAD_FILE, load_adapter
from .adapters import VLM, disable_adapters, use_adapter

BASE_POLICY = "base"

# What notebook 04 makes of the tiny base, for readers who have not run it
SHIPPED_POLICIES = ROOT / "data" / "tiny-dpo"


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
    """Find the adapters of `base` in the folders under `folder` (default: the artifacts), by name.

    An adapter of another base is left out, and said to be. If there is none, the shipped one is
    taken for the tiny base, and said to be. Raises UsageError if there is none at all, or an
    about.json is broken.
    """
    folder = folder or artifacts_dir()
    found = []
    for config in sorted(folder.rglob("adapter_config.json")):
        path = config.parent
        is_reward_model = (path / HEAD_FILE).exists()
        is_trainers_own = not (path / "about.json").exists()
        if is_reward_model or is_trainers_own or is_set_aside(path):
            continue
        about = read_json(path / "about.json")
        # "dpo/seed-0"; the folder itself may be an adapter's
        name = path.relative_to(folder).as_posix() if path != folder else path.name
        if about.get("base") != base:
            print(f"⚠️  leaving out {name}: it was trained on {about.get('base')!r}, not {base!r}")
            continue
        found.append(SavedPolicy(name, path, about))
    if not found and shipped:
        found = _shipped_policies(base, folder)
    if not found:
        raise UsageError(
            f"no adapter of {base!r} in {folder}. Run notebook 04 (SFT, DPO) or 05 (PPO) first."
        )
    return found


def _shipped_policies(base: str, folder: Path) -> list[SavedPolicy]:
    about = read_json(SHIPPED_POLICIES / "about.json")
    if about["base"] != base:
        return []
    print(
        f"no adapter in {folder} yet: comparing the one that comes with the repository "
        "(notebook 04, seed 0)"
    )
    return [SavedPolicy("dpo/shipped", SHIPPED_POLICIES, about)]


def image_limit(saved: Sequence[SavedPolicy], limit: int | None = None) -> int | None:
    """Return `max_pixels` for `models.load_model`, so that no policy sees larger images than ever.

    It is `limit`, or the smallest that one of the policies was trained with.
    """
    trained = [policy for policy in saved if policy.about.get("max_pixels")]
    if not trained:
        return limit
    least = min(trained, key=lambda policy: policy.about["max_pixels"])
    pixels = least.about["max_pixels"]
    if limit and limit <= pixels:
        return limit
    print(f"images are reduced to {pixels:,} pixels, as when {least.name} was trained")
    return pixels


class Policies:
    """The base and its adapters under one roof; `names` begins with the base's.

    model: with or without adapters; those that it has stay, and are not asked. Nothing here trains.
    """

    def __init__(self, model: VLM, processor: ProcessorMixin, saved: Sequence[SavedPolicy] = ()):
        self.model = model
        self.processor = processor
        self.saved = {policy.name: policy for policy in saved}
        if BASE_POLICY in self.saved:
            folder = self.saved[BASE_POLICY].folder
            raise UsageError(
                f"{folder}: an adapter cannot be called {BASE_POLICY!r}. Rename its folder."
            )
        self._loaded = {}  # policy → name of its adapter, of those that the model has by now

    @classmethod
    def of_trained(
        cls, model: PeftModel, processor: ProcessorMixin, name: str, about: dict[str, Any]
    ) -> "Policies":
        """The base and the adapter that is active on `model`, as it is now: nothing is loaded.

        about: what its about.json says, or will say.
        """
        policies = cls(model, processor, [SavedPolicy(name, Path(), about)])
        policies._loaded[name] = model.active_adapter
        return policies

    def add_folder(self, folder: Path) -> list[str]:
        """Add the adapters of the same base that are under `folder`; return the new names.

        Raises UsageError if there is none, here or there.
        """
        if not self.saved:
            raise UsageError(
                "there is no adapter yet that says which base this is. Give some with "
                "`find_policies`."
            )
        # All are of one base, so the first one knows it
        base = next(iter(self.saved.values())).about["base"]
        found = find_policies(base, folder, shipped=False)
        new = {policy.name: policy for policy in found if policy.name not in self.saved}
        self.saved |= new
        return list(new)

    @property
    def names(self) -> list[str]:
        return [BASE_POLICY, *self.saved]

    @contextlib.contextmanager
    def use_policy(self, name: str) -> Iterator[VLM]:
        """Make the model the policy `name` inside; afterwards it is as it was.

        Raises UsageError for an unknown name.
        """
        if name == BASE_POLICY:
            with disable_adapters(self.model) as model:
                yield model
            return
        if name not in self.saved:
            raise UsageError(f"unknown policy {name!r}: there are {', '.join(self.names)}.")
        adapter = self._loaded.get(name) or self._free_name(name)
        if name not in self._loaded:
            # Loading switches to an adapter; the one before stays the active one outside
            before = self.model.active_adapter if isinstance(self.model, PeftModel) else adapter
            self.model = load_adapter(self.model, self.saved[name].folder, adapter)
            self.model.set_adapter(before)
            self._loaded[name] = adapter
        with use_adapter(self.model, adapter) as model:
            yield model

    def _free_name(self, name: str) -> str:
        """Return what peft may call a policy: no other adapter on the model has that name."""
        # peft takes a dot for the end of a module's name
        adapter = name.replace(".", "_")
        taken = self.model.peft_config if isinstance(self.model, PeftModel) else {}
        while adapter in taken:
            adapter += "_"
        return adapter
