"""Recipes: a whole training in one TOML file, and how it is read, changed and run.

A recipe names a model, data, the order of stages, and for each stage a preset of `helpers/config.py` with what is changed
in it. `[laptop]` holds what is different on a machine without a GPU; it is laid over the rest, and `--set` over that.
What the stages do is in `helpers/recipe_stages.py`. Documented in docs/recipes.md.
"""

import dataclasses
import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, ValidationError
from transformers import PreTrainedModel, ProcessorMixin

from helpers import models
from helpers.config import (
    DPOSettings,
    PPOSettings,
    RewardSettings,
    dpo_preset,
    ppo_preset,
    reward_preset,
)
from helpers.data import (
    FORMATS,
    PreferenceRecord,
    StrictModel,
    explain_validation_error,
    read_records,
)
from helpers.files import ROOT, UsageError, read_json
from helpers.machine import changed_fields, check_machine
from helpers.statistics import Proportion
from helpers.training import Task, tasks_of

RECIPES = ROOT / "recipes"
StageName = Literal["data", "rank", "features", "captions", "reward", "dpo", "ppo", "evaluate"]


class RecipeData(StrictModel):
    """Files of preferences in any known format, or Visual Genome's questions with their folder of images."""

    train: str = "data/traffic/preferences_train.jsonl"
    valid: str = "data/traffic/preferences_valid.jsonl"
    test: str = "data/traffic/preferences_test.jsonl"
    format: str = "record"  # of the project that the recipe is after; our own files are put into it and read back
    images: str | None = None  # Visual Genome only: its files are the same for all splits
    train_share: float = 0.7  # Visual Genome only: of its images
    limit: int | None = None  # of each file, from its start


class RecipeRank(StrictModel):
    """The model's own answers, ranked by a scorer, take the place of the answers in the data."""

    answers: int = 4
    scorer: str = "heuristic"


class SmallRewardSettings(StrictModel):
    """Settings of the small reward models: the network on pooled features, and the text-only model behind a caption."""

    epochs: int = 20
    learning_rate: float = 1e-3
    text_model: str | None = None  # captions: a folder or hub id; None builds a tiny one


class RecipeReward(StrictModel):
    preset: str = "t4"
    heads: tuple[str, ...] = ("mlp",)
    objectives: tuple[str, ...] = ("bradley_terry",)
    settings: dict[str, Any] = Field(default_factory=dict)


class RecipeDPO(StrictModel):
    preset: str = "t4"
    settings: dict[str, Any] = Field(default_factory=dict)
    preflight: bool = True


class RecipePPO(StrictModel):
    preset: str = "t4"
    score: dict[str, float] = Field(default={"count_exact": 1.0})  # scorers and their weights
    clip: str = "openai/clip-vit-base-patch32"  # of the scorer `clip`
    settings: dict[str, Any] = Field(default_factory=dict)
    critic_warm_up_epochs: int = 8  # epochs of a critic that has an adapter of its own


class Recipe(StrictModel):
    """One file of recipes/; lists become tuples, everything else is what it is."""

    title: str
    model: str
    seed: int = 0
    four_bit: bool = True
    max_pixels: int | None = None
    stages: tuple[StageName, ...] = Field(min_length=1)
    data: RecipeData = RecipeData()
    rank: RecipeRank = RecipeRank()
    features: SmallRewardSettings = SmallRewardSettings()
    captions: SmallRewardSettings = SmallRewardSettings(epochs=10, learning_rate=5e-4)
    reward: RecipeReward = RecipeReward()
    dpo: RecipeDPO = RecipeDPO()
    ppo: RecipePPO = RecipePPO()

    def reward_settings(self) -> RewardSettings:
        return _change_fields(reward_preset(self.reward.preset), self.reward.settings, "reward")

    def dpo_settings(self) -> DPOSettings:
        return _change_fields(dpo_preset(self.dpo.preset), self.dpo.settings, "dpo")

    def ppo_settings(self) -> PPOSettings:
        return ppo_preset(
            self.ppo.preset, **_merge_lora(ppo_preset(self.ppo.preset), self.ppo.settings)
        )


def _merge_lora(settings: Any, changes: Mapping[str, Any]) -> dict[str, Any]:
    """Return `changes`; its LoRA settings replace only those of the preset that they name."""
    own = {
        name: tuple(value) if isinstance(value, list) else value
        for name, value in changes.get("lora", {}).items()
    }
    return dict(changes) | ({"lora": _change_fields(settings.lora, own, "lora")} if own else {})


def _change_fields(settings: Any, changes: Mapping[str, Any], stage: str) -> Any:
    """A dataclass with some fields changed. Raises UsageError for a name that it has not."""
    known = [field.name for field in dataclasses.fields(settings)]
    if unknown := sorted(set(changes) - set(known)):
        raise UsageError(
            f"{stage}: no setting is called {', '.join(unknown)}. Choose from {', '.join(known)}."
        )
    if "lora" in changes:
        changes = _merge_lora(settings, changes)
    return dataclasses.replace(settings, **changes)


def find_recipe(name: str | Path) -> Path:
    """`vehicles` or a path → the file. Raises UsageError listing the recipes there are."""
    path = Path(name)
    known = {file.stem: file for file in sorted(RECIPES.glob("*.toml"))}
    if path.suffix == ".toml" and path.exists():
        return path
    if str(name) in known:
        return known[str(name)]
    raise UsageError(
        f"no recipe {str(name)!r}: choose {', '.join(known)}, or give the path of a TOML file."
    )


def read_recipe(
    path: Path, *, laptop: bool = False, changes: Sequence[tuple[str, Any]] = ()
) -> Recipe:
    """The recipe in a file, with `[laptop]` and then `changes` ("dpo.settings.steps", 20) laid over it.

    Raises UsageError naming the file and the field if something in it is unknown or of the wrong kind.
    """
    try:
        values = tomllib.loads(path.read_text(encoding="utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise UsageError(f"{path}: not TOML ({error}).") from None
    smaller = values.pop("laptop", {})
    values = deep_merge(values, smaller) if laptop else values
    for name, value in changes:
        for part in reversed(name.split(".")):
            value = {part: value}
        values = deep_merge(values, value)
    try:
        recipe = Recipe.model_validate(_lists_to_tuples(values))
        recipe.reward_settings(), recipe.dpo_settings(), recipe.ppo_settings()
    except ValidationError as error:
        raise UsageError(f"{path}: {explain_validation_error(error)}") from None
    except UsageError as error:
        raise UsageError(f"{path}: {error}") from None
    if recipe.data.format not in ("record", "visual_genome", *FORMATS):
        raise UsageError(
            f"{path}: unknown format {recipe.data.format!r}. Choose record, visual_genome, {', '.join(FORMATS)}."
        )
    return recipe


def fit_recipe(recipe: Recipe, stages: Sequence[str] = ()) -> Recipe:
    """The recipe with what had to be changed so that the stages (default: its own) fit this machine; says what it is.

    Raises UsageError if one of them does not fit.
    """
    stages = stages or recipe.stages
    if set(stages) == {"data"}:  # needs no model
        return recipe
    given = {
        "dpo": recipe.dpo_settings(),
        "ppo": recipe.ppo_settings(),
        "reward": recipe.reward_settings(),
    }
    heads = recipe.reward.heads
    given["reward"] = dataclasses.replace(
        given["reward"], head="fusion" if "fusion" in heads else heads[0]
    )
    given = {stage: settings for stage, settings in given.items() if stage in stages}
    plan = check_machine(
        recipe.model, max_pixels=recipe.max_pixels, four_bit=recipe.four_bit, **given
    )
    parts: dict[str, Any] = {"max_pixels": plan.max_pixels}
    for stage, settings in given.items():
        part = getattr(recipe, stage)
        own = part.settings | changed_fields(settings, getattr(plan, stage))
        parts[stage] = part.model_copy(update={"settings": own})
    return recipe.model_copy(update=parts)


def deep_merge(base: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """Lay `changes` over `base`, table by table; a table of weights (`score`) is replaced whole."""
    both = dict(base)
    for name, value in changes.items():
        deeper = (
            isinstance(value, Mapping) and isinstance(both.get(name), Mapping) and name != "score"
        )
        both[name] = deep_merge(both[name], value) if deeper else value
    return both


def _lists_to_tuples(value: Any) -> Any:
    """TOML has lists where the settings, which never change, have tuples."""
    if isinstance(value, Mapping):
        return {name: _lists_to_tuples(part) for name, part in value.items()}
    return tuple(map(_lists_to_tuples, value)) if isinstance(value, list) else value


@dataclasses.dataclass
class RecipeRun:
    """A recipe, the folder of what it makes, and the figures that have been found.

    replace_other: a stage that finds another run in its folder sets it aside, as NAME.old-1.
    """

    recipe: Recipe
    folder: Path
    replace_other: bool = False
    figures: dict[str, dict[str, float]] = dataclasses.field(default_factory=dict)

    def load(self) -> tuple[PreTrainedModel, ProcessorMixin]:
        recipe = self.recipe
        return models.load_model(
            recipe.model, four_bit=recipe.four_bit, max_pixels=recipe.max_pixels
        )

    def records(self, split: str) -> list[PreferenceRecord]:
        return read_records(self.folder / "data" / f"{split}.jsonl")

    def pairs(self, split: str) -> list[PreferenceRecord]:
        """Training pairs of reward models and DPO: the model's own ranked answers if there are any, else the data."""
        ranked = self.folder / "data" / f"{split}-ranked.jsonl"
        return read_records(ranked) if ranked.exists() else self.records(split)

    def tasks(self, split: str) -> list[Task]:
        """The questions of a split, with what is true: all counts, or an answer."""
        if self.recipe.data.format == "visual_genome":
            rows = read_json(self.folder / "data" / f"{split}-questions.json")
            return [
                Task((Path(row["image"]),), (models.user_message(row["question"]),), row["answer"])
                for row in rows
            ]
        return tasks_of(self.records(split))

    def add_figure(self, name: str, figure: Proportion | float) -> None:
        """Keep a figure and print it with its interval."""
        value = figure if isinstance(figure, float | int) else figure.value
        row = {"value": float(value), "seed": self.recipe.seed}
        if not isinstance(figure, float | int):
            row |= {"low": figure.low, "high": figure.high, "n": figure.n}
        self.figures[name] = row
        print(f"{name:<34} {f'{figure:.4g}' if isinstance(figure, float) else figure}", flush=True)

    def about(self, **more: Any) -> dict[str, Any]:
        recipe = self.recipe
        own = {
            "base": recipe.model,
            "seed": recipe.seed,
            "recipe": recipe.title,
            "max_pixels": recipe.max_pixels,
        }
        return own | more
