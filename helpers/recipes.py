"""Recipes: a whole training in one TOML file, and how it is read, changed and run.

A recipe names a model, data, the order of stages, and for each stage a preset of
`helpers/config.py` with what is changed in it. `[laptop]` holds what is different on a machine
without a GPU; it is laid over the rest, and `--set` over that. Where it names another preset of a
stage, nothing of what the recipe changed in the first one is left. What the stages do is in
`helpers/recipe_stages`. Documented in docs/recipes.md.
"""

import os
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import (
    Field,
    FiniteFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    ValidationError,
)
from transformers import PreTrainedModel, ProcessorMixin

from helpers import models
from helpers.config import (
    DPOSettings,
    PPOSettings,
    RewardSettings,
    SFTSettings,
    dpo_preset,
    explain_values,
    ppo_preset,
    reward_preset,
    sft_preset,
)
from helpers.data import (
    FORMATS,
    SPLITS,
    PreferenceRecord,
    PreparedData,
    StrictModel,
    Task,
    TruthKind,
    read_prepared,
    read_records,
)
from helpers.files import (
    ROOT,
    UsageError,
    did_you_mean,
    file_hash,
    read_json,
    starting_folders,
)
from helpers.machine import changed_fields, check_machine
from helpers.rewards import SCORERS, anchor_reward, get_scorer, is_own_reward
from helpers.statistics import Estimate
from helpers.training import OBJECTIVES, AnswerSource, check_names

RECIPES = ROOT / "recipes"
# Formats that only the stage `data` reads, beside those of other projects.
OWN_FORMATS = ("record", "visual_genome")
# Scorers that a run makes for itself, beside the ready ones: helpers/recipe_stages.
RUN_SCORERS = ("reward_model", "features", "cosine", "clip")
# What may rank sampled answers beside them: how right they are, whether they are, the reward model
# of the run, and its base, asked which of two answers is better
RANKERS = ("truth", "right", "reward_model", "judge")
StageName = Literal[
    "data", "rank", "features", "captions", "reward", "sft", "dpo", "online", "ppo", "evaluate"
]
# Stages that leave a policy, in the order in which tables have them
POLICY_STAGES = ("sft", "dpo", "online", "ppo")
# Those of them that may begin with the adapter of another one
LATER_STAGES = POLICY_STAGES[1:]
# Where a recipe names no data
SHIPPED_FILES = {
    split: str(ROOT / "data" / "traffic" / f"preferences_{split}.jsonl") for split in SPLITS
}
# What the ranked answers were made of: hashes of the splits
RANKED_FILE = "ranked.json"
# Settings of [data] that are paths
DATA_PATHS = ("source", *SPLITS, "images", "questions")
Names = Annotated[tuple[str, ...], Field(min_length=1)]
ShareOfQuestions = Annotated[float, Field(gt=0, le=1)]


class RecipeData(StrictModel):
    """What is trained on: anything that `data.open_data` reads, relative to the recipe.

    Either `source`, or a file for each split; without `valid` and `test` the data is split by
    photo. Nothing at all is the shipped traffic.
    """

    source: str | None = None  # a file, a folder or a zip
    train: str | None = None
    valid: str | None = None
    test: str | None = None
    # of the project that the recipe is after; our own files are put into it and read back
    format: str = "record"
    images: str | None = None  # their folder, if they are not beside the data
    truth: TruthKind | None = None  # how answers are compared with the true ones
    classes: tuple[str, ...] | None = None  # of labels: count only these
    questions: str | tuple[str, ...] | None = None  # asked of every image: a file, or a list
    # of the photos; the others are all for test
    train_share: Annotated[float | None, Field(gt=0, lt=1)] = None
    limit: PositiveInt | None = None  # of each split, from its start

    def sources(self) -> str | dict[str, str]:
        """What is to be opened: one source, or a file for each split that is named."""
        files = {}
        for split in SPLITS:
            if getattr(self, split):
                files[split] = getattr(self, split)
        if self.source and files:
            raise UsageError("data: name either source, or train, valid and test.")
        if self.source or set(files) == {"train"}:
            return self.source or files["train"]
        return files or dict(SHIPPED_FILES)


class RecipeRank(StrictModel):
    """The model's own answers, ranked, take the place of the answers in the data.

    The stages before `rank` have the answers of the data, those behind it the ranked ones. With SFT
    behind it, which learns the best of each, it is rejection-sampling fine-tuning (RAFT, Dong et
    al. 2023, arXiv 2304.06767).
    """

    answers: Annotated[int, Field(ge=2)] = 4
    share: ShareOfQuestions = 1.0  # of the training questions, drawn by the seed
    # "truth": how right an answer is, which gives most pairs; "right": whether it is, so that SFT
    # does not learn the nearest of wrong ones; "reward_model": that of the stage `reward`, before
    # this one; "judge": the base, asked which of two answers is better; or a function of your own:
    # "my_rewards.py:brevity"
    scorer: str = "heuristic"


class SmallRewardSettings(StrictModel):
    """Of the network on pooled features, and of the text-only model behind a caption."""

    epochs: PositiveInt = 20
    learning_rate: PositiveFloat = 1e-3
    text_model: str | None = None  # captions: a folder or hub id; None builds a tiny one


class RecipeReward(StrictModel):
    preset: str = "t4"
    heads: Names = ("mlp",)
    objectives: Names = ("bradley_terry",)
    settings: dict[str, Any] = Field(default_factory=dict)


class RecipeSFT(StrictModel):
    """Fine-tuning on answers: the baseline that DPO and PPO have to beat, or their beginning."""

    preset: str = "t4"
    # those that were preferred, of the pairs that DPO gets; or the right ones, of known truths
    answers: AnswerSource = "chosen"
    # of all questions, drawn by the seed: right answers cost somebody's time, rewards do not
    share: ShareOfQuestions = 1.0
    settings: dict[str, Any] = Field(default_factory=dict)


class RecipeDPO(StrictModel):
    preset: str = "t4"
    # the policy and the reference that it begins with: the base, or what the stage `sft` has made
    start: Literal["base", "sft"] = "base"
    settings: dict[str, Any] = Field(default_factory=dict)
    preflight: bool = True


class RecipeOnline(StrictModel):
    """DPO in rounds on the policy's own newest answers (Guo et al. 2024, arXiv 2402.04792)."""

    preset: str = "t4"  # of DPO
    start: Literal["base", "sft", "dpo"] = "base"  # as of DPO
    rounds: PositiveInt = 3
    answers: Annotated[int, Field(ge=2)] = 4  # to each question in a round
    share: ShareOfQuestions = 1.0  # of the questions, drawn anew in every round
    scorer: str = "truth"  # what ranks them, as in [rank]
    # with scorer = "reward_model": train one for every round, from [reward] and a seed of its own.
    # What a policy has learnt of the errors of one does not help it with the next.
    fresh_reward: bool = False
    settings: dict[str, Any] = Field(default_factory=dict)  # of each round


class RecipePPO(StrictModel):
    preset: str = "t4"
    start: Literal["base", "sft", "dpo"] = "base"  # as of DPO
    # scorers and their weights; own ones as {"my_rewards.py:brevity" = 1.0}, beside the recipe.
    # None: being right, where the truth is known, else the reward model of the stage `reward`.
    score: dict[str, FiniteFloat] = Field(default_factory=dict)
    clip: str = "openai/clip-vit-base-patch32"  # of the scorer `clip`
    settings: dict[str, Any] = Field(default_factory=dict)
    # epochs of a critic that has an adapter of its own
    critic_warm_up_epochs: NonNegativeInt = 8


class Recipe(StrictModel):
    """One file of recipes/; lists become tuples, everything else is what it is."""

    title: str
    model: str
    seed: NonNegativeInt = 0
    four_bit: bool | None = None  # None: as the model's preset says
    max_pixels: PositiveInt | None = None
    stages: tuple[StageName, ...] = Field(min_length=1)
    data: RecipeData = RecipeData()
    rank: RecipeRank = RecipeRank()
    features: SmallRewardSettings = SmallRewardSettings()
    captions: SmallRewardSettings = SmallRewardSettings(epochs=10, learning_rate=5e-4)
    reward: RecipeReward = RecipeReward()
    sft: RecipeSFT = RecipeSFT()
    dpo: RecipeDPO = RecipeDPO()
    online: RecipeOnline = RecipeOnline()
    ppo: RecipePPO = RecipePPO()

    def is_before(self, first: str, stage: str) -> bool:
        """Is there a stage `first`, and does it come before another one, if that is there, too?"""
        if first not in self.stages or stage not in self.stages:
            return first in self.stages
        return self.stages.index(first) < self.stages.index(stage)

    def reward_settings(self) -> RewardSettings:
        preset = reward_preset(self.reward.preset)
        return replace(preset, **_with_whole_lora(preset, self.reward.settings))

    def sft_settings(self) -> SFTSettings:
        preset = sft_preset(self.sft.preset)
        return replace(preset, **_with_whole_lora(preset, self.sft.settings))

    def dpo_settings(self) -> DPOSettings:
        preset = dpo_preset(self.dpo.preset)
        return replace(preset, **_with_whole_lora(preset, self.dpo.settings))

    def online_settings(self) -> DPOSettings:
        preset = dpo_preset(self.online.preset)
        return replace(preset, **_with_whole_lora(preset, self.online.settings))

    def ppo_settings(self) -> PPOSettings:
        preset = ppo_preset(self.ppo.preset)
        return ppo_preset(self.ppo.preset, **_with_whole_lora(preset, self.ppo.settings))


def _with_whole_lora(
    settings: RewardSettings | SFTSettings | DPOSettings | PPOSettings, changes: Mapping[str, Any]
) -> dict[str, Any]:
    """Return `changes`; its LoRA settings replace only those of the preset that they name."""
    lora = changes.get("lora")
    if not isinstance(lora, Mapping):
        return dict(changes)
    try:
        return {**changes, "lora": replace(settings.lora, **lora)}
    except UsageError as error:
        raise UsageError(f"lora: {error}") from None


def find_recipe(name: str | Path) -> Path:
    """`vehicles` or a path → the file. Raises UsageError listing the recipes there are."""
    path = Path(name)
    known = {file.stem: file for file in sorted(RECIPES.glob("*.toml"))}
    # a file beside you comes before one of ours of the same name
    if path.suffix == ".toml" and path.exists():
        return path
    if str(name) in known:
        return known[str(name)]
    raise UsageError(
        f"no recipe {str(name)!r}: choose {', '.join(known)}, or give the path of a TOML file."
        f"{did_you_mean(name, known)}"
    )


def read_recipe(
    path: Path, *, laptop: bool = False, changes: Sequence[tuple[str, Any]] = ()
) -> Recipe:
    """Read a recipe, and lay `[laptop]` and then `changes` ("dpo.settings.steps", 20) over it.

    Raises UsageError naming the file, the field and what it may be, for all that is unknown, of the
    wrong kind or outside its range.
    """
    try:
        values = tomllib.loads(path.read_text(encoding="utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise UsageError(f"{path}: not TOML ({error}).") from None
    # what is said later wins: the recipe, its [laptop], the command line
    smaller = values.pop("laptop", {})
    if laptop:
        values = deep_merge(_without_replaced_settings(values, smaller), smaller)
    _find_data_paths(values.get("data"), (path.parent, ROOT))
    data_paths = {f"data.{name}" for name in DATA_PATHS}
    values = _anchor_rewards(values, path.parent)
    for name, value in changes:
        if name in data_paths:
            # these count from where one stands
            value = _existing_path(value, starting_folders())
        for part in reversed(name.split(".")):
            value = {part: value}
        # a path on the command line counts from where one stands
        values = deep_merge(values, _anchor_rewards(value, Path.cwd()))
    try:
        recipe = Recipe.model_validate(_lists_to_tuples(values))
        _check_settings(recipe)
    except ValidationError as error:
        raise UsageError(f"{path}: {_explain(error)}") from None
    except UsageError as error:
        raise UsageError(f"{path}: {error}") from None
    return recipe


def _find_data_paths(data: Any, bases: Sequence[Path]) -> None:
    """Make the paths in [data] absolute: they count from the recipe, or from the repository."""
    if isinstance(data, dict):
        for name in DATA_PATHS:
            if name in data:
                data[name] = _existing_path(data[name], bases)


def _existing_path(value: Any, bases: Sequence[Path]) -> Any:
    """The value as an absolute path, if there is such a file; else as it is.

    What is not there is named when the data is opened.
    """
    if isinstance(value, str) and value:
        for base in bases:
            if (base / value).exists():
                return os.path.abspath(base / value)
    return value


def _anchor_rewards(values: Mapping[str, Any], folder: Path) -> dict[str, Any]:
    """Return `values` with the files of own rewards (`my_rewards.py:brevity`) where they are."""
    anchored = dict(values)
    rank, ppo = values.get("rank"), values.get("ppo")
    if isinstance(rank, Mapping) and isinstance(rank.get("scorer"), str):
        anchored["rank"] = {**rank, "scorer": anchor_reward(rank["scorer"], folder)}
    if isinstance(ppo, Mapping) and isinstance(ppo.get("score"), Mapping):
        score = {anchor_reward(str(name), folder): part for name, part in ppo["score"].items()}
        anchored["ppo"] = {**ppo, "score": score}
    return anchored


def _explain(error: ValidationError) -> str:
    """What is wrong with a recipe, in one line; for an unknown name, those that it may have."""
    for item in error.errors():
        if item["type"] != "extra_forbidden":
            continue
        # the tables that the name stands in
        *tables, name = item["loc"]
        part: Any = Recipe
        for table in tables:
            part = part.model_fields[table].annotation
        known = list(part.model_fields)
        place = ".".join(item["loc"])
        choices = f"choose from {', '.join(known)}.{did_you_mean(name, known)}"
        return f"{place}: nothing is called so here; {choices}"
    return explain_values(error)


def _check_settings(recipe: Recipe) -> None:
    """Raise UsageError for settings of a stage that cannot be, or a name that nothing has."""
    for one in ("head", "objective"):  # would be taken from reward.heads and reward.objectives
        if one in recipe.reward.settings:
            raise UsageError(f"reward.settings.{one}: write reward.{one}s in its place.")
    recipe.data.sources()
    for stage in ("reward", *POLICY_STAGES):
        try:
            settings = getattr(recipe, f"{stage}_settings")()
            if stage == "ppo":
                check_names(settings)
        except UsageError as error:
            raise UsageError(f"{stage}: {error}") from None
    _check_starts(recipe)
    for stage in ("rank", "online"):
        by_reward = getattr(recipe, stage).scorer == "reward_model"
        if stage == "online" and recipe.online.fresh_reward:
            if not by_reward:
                raise UsageError('online.fresh_reward: set online.scorer = "reward_model", too.')
            continue
        if by_reward and not recipe.is_before("reward", stage):
            raise UsageError(
                f"{stage}.scorer: the stage `reward` must come before `{stage}`, for its model to "
                "rank by."
            )
    tables = (
        ("data.format: unknown format", [recipe.data.format], (*OWN_FORMATS, *FORMATS)),
        ("rank.scorer: unknown scorer", [recipe.rank.scorer], (*SCORERS, *RANKERS)),
        ("online.scorer: unknown scorer", [recipe.online.scorer], (*SCORERS, *RANKERS)),
        ("reward.heads: unknown head", recipe.reward.heads, models.HEADS),
        ("reward.objectives: unknown objective", recipe.reward.objectives, OBJECTIVES),
        ("ppo.score: unknown scorer", recipe.ppo.score, (*SCORERS, *RUN_SCORERS)),
    )
    for problem, names, choices in tables:
        for name in names:
            if "scorer" in problem and is_own_reward(name):
                get_scorer(name)  # now rather than hours later
            elif name not in choices:
                choose = f"Choose from {', '.join(choices)}.{did_you_mean(name, choices)}"
                raise UsageError(f"{problem} {name!r}. {choose}")


def _check_starts(recipe: Recipe) -> None:
    """Raise UsageError for a stage that cannot begin where the recipe lets it begin."""
    for stage in LATER_STAGES:
        start = getattr(recipe, stage).start
        if start == "base" or stage not in recipe.stages:
            continue
        before = recipe.stages[: recipe.stages.index(stage)]
        if start not in before:
            raise UsageError(
                f"{stage}.start: {stage} is to begin with the adapter of the stage {start}, which "
                "does not come before it. Put it into `stages`."
            )
        own = getattr(recipe, f"{stage}_settings")().lora
        first = getattr(recipe, f"{start}_settings")().lora
        if own != first:
            raise UsageError(
                f"{stage}.start: {stage} goes on with the adapter of {start}, so both must have "
                f"the same one. {stage}.settings.lora is {own}, {start}.settings.lora {first}."
            )


def fit_recipe(recipe: Recipe, stages: Sequence[str] = ()) -> Recipe:
    """Change what has to be, so that the stages (default: its own) fit this machine; say what.

    Raises UsageError if one of them does not fit.
    """
    stages = stages or recipe.stages
    if set(stages) == {"data"}:  # needs no model
        return recipe
    given = {
        "sft": recipe.sft_settings(),
        "dpo": recipe.dpo_settings(),
        "ppo": recipe.ppo_settings(),
        "reward": recipe.reward_settings(),
    }
    # of several heads, the one that keeps most
    heads = recipe.reward.heads
    head = "fusion" if "fusion" in heads else heads[0]
    given["reward"] = replace(given["reward"], head=head)
    wanted = set(stages)
    if "online" in stages and recipe.online.fresh_reward:
        wanted.add("reward")
    given = {stage: settings for stage, settings in given.items() if stage in wanted}
    if given or "online" not in stages:
        recipe = _fit_stages(recipe, given, {stage: stage for stage in given})
    if "online" in stages:
        # a round of it is what DPO takes
        recipe = _fit_stages(recipe, {"dpo": recipe.online_settings()}, {"dpo": "online"})
    return recipe


def _fit_stages(recipe: Recipe, given: Mapping[str, Any], names: Mapping[str, str]) -> Recipe:
    """Let the settings `given` fit; names: stage of the plan → the recipe's."""
    plan = check_machine(
        recipe.model, max_pixels=recipe.max_pixels, four_bit=recipe.four_bit, **given
    )
    # what is changed in a stage's settings becomes part of the recipe
    parts: dict[str, Any] = {"max_pixels": plan.max_pixels}
    for stage, settings in given.items():
        part = getattr(recipe, names[stage])
        own = part.settings | changed_fields(settings, getattr(plan, stage))
        parts[names[stage]] = part.model_copy(update={"settings": own})
    return recipe.model_copy(update=parts)


def deep_merge(base: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """Lay `changes` over `base`, table by table; a table of weights (`score`) is replaced whole."""
    both = dict(base)
    for name, value in changes.items():
        tables = isinstance(value, Mapping) and isinstance(both.get(name), Mapping)
        both[name] = deep_merge(both[name], value) if tables and name != "score" else value
    return both


def _without_replaced_settings(
    values: Mapping[str, Any], smaller: Mapping[str, Any]
) -> dict[str, Any]:
    """Return `values` without the settings of stages for which `smaller` names a preset.

    They are what the recipe changes in another preset: a rate for two billion weights is none for
    one million.
    """
    kept = dict(values)
    for stage, table in smaller.items():
        if isinstance(table, Mapping) and "preset" in table and isinstance(kept.get(stage), dict):
            own = kept[stage].items()
            kept[stage] = {name: value for name, value in own if name != "settings"}
    return kept


def _lists_to_tuples(value: Any) -> Any:
    """TOML has lists where the settings, which never change, have tuples."""
    if isinstance(value, Mapping):
        return {name: _lists_to_tuples(part) for name, part in value.items()}
    return tuple(map(_lists_to_tuples, value)) if isinstance(value, list) else value


@dataclass
class RecipeRun:
    """A recipe, the folder of what it makes, and the figures that have been found.

    replace_other: a stage that finds another run in its folder sets it aside, as NAME.old-1.
    """

    recipe: Recipe
    folder: Path
    replace_other: bool = False
    figures: dict[str, dict[str, float]] = field(default_factory=dict)

    def load(self) -> tuple[PreTrainedModel, ProcessorMixin]:
        recipe = self.recipe
        return models.load_model(
            recipe.model, four_bit=recipe.four_bit, max_pixels=recipe.max_pixels
        )

    def prepared(self) -> PreparedData:
        """What the stage `data` has made. Raises UsageError if it has not been run."""
        return read_prepared(self.folder / "data")

    def _split(self, name: str) -> str:
        """The split itself; in place of a test split that is not there, the held-out one."""
        return self.prepared().held_out if name == "test" else name

    def records(self, split: str) -> list[PreferenceRecord]:
        return self.prepared().records(self._split(split))

    def pairs(self, split: str, stage: str = "evaluate") -> list[PreferenceRecord]:
        """Pairs for a stage: the model's own ranked answers if the recipe ranks before it.

        Raises UsageError where they are missing, or were made of other data.
        """
        if not self.recipe.is_before("rank", stage):
            return self.records(split)
        name = self._split(split)
        ranked = self.ranked_path(name)
        made_of = self.folder / "data" / RANKED_FILE
        if not ranked.exists() or not made_of.exists():
            raise UsageError(
                f"{ranked}: does not exist, and this recipe ranks the model's own answers. "
                "Run the stage rank first."
            )
        if read_json(made_of).get(name) != self.data_hash(name):
            raise UsageError(
                f"{ranked}: was ranked of other data than there is now. Run the stage rank again."
            )
        return read_records(ranked)

    def ranked_path(self, split: str) -> Path:
        """Where the ranked answers to the questions of a split are."""
        return self.folder / "data" / f"{split}-ranked.jsonl"

    def data_hash(self, split: str) -> str:
        """Hash of what the stage `data` has made of a split."""
        prepared = self.prepared()
        path = prepared.path(split)
        questions = prepared.folder / f"{split}-questions.jsonl"
        return file_hash(path if path.exists() else questions)

    def left_by(self, stage: str) -> Path:
        """Return the folder that a stage of this recipe has left: an adapter, or a reward model.

        Raises UsageError if nothing is there, or if another recipe made it.
        """
        folder = self.folder / stage
        if not (folder / "adapter_config.json").exists():
            raise UsageError(
                f"{folder}: holds no adapter. Run the stage {Path(stage).parts[0]} first."
            )
        about = read_json(folder / "about.json")
        made_by = about.get("recipe", self.recipe.title)
        if made_by != self.recipe.title:
            raise UsageError(
                f"{folder}: was made by the recipe {made_by!r}, not by {self.recipe.title!r}. "
                "Give another folder (--out), or train it again."
            )
        return folder

    def tasks(self, split: str) -> list[Task]:
        """The questions of a split, with what is true, if that is known."""
        return self.prepared().tasks(self._split(split))

    def add_figure(self, name: str, figure: Estimate | float) -> None:
        """Keep a figure and print it with its interval."""
        whole = isinstance(figure, Estimate)
        row = {"value": float(figure.value if whole else figure), "seed": self.recipe.seed}
        if whole:
            row |= {"low": figure.low, "high": figure.high, "n": figure.n}
        self.figures[name] = row
        text = f"{figure:.4g}" if isinstance(figure, float) else figure
        print(f"{name:<34} {text}", flush=True)

    def about(self, **more: Any) -> dict[str, Any]:
        """What is noted beside an adapter of this run."""
        recipe = self.recipe
        return {
            "base": recipe.model,
            "seed": recipe.seed,
            "recipe": recipe.title,
            "max_pixels": recipe.max_pixels,
            **more,
        }
