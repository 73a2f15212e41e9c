"""The stages `features`, `captions` and `reward`, and the scorers that PPO is trained with."""

import shutil
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from itertools import product
from pathlib import Path

import torch
from accelerate import PartialState
from peft import PeftModel
from transformers import ProcessorMixin

from helpers import models
from helpers.config import RewardSettings
from helpers.data import PreferenceRecord, Task, best_rule, blind_rules
from helpers.files import UsageError
from helpers.models import VLM
from helpers.recipes import RUN_SCORERS, RecipeRun
from helpers.rewards import (
    CaptionReward,
    FeatureReward,
    Scorer,
    cosine_scorer,
    get_scorer,
    load_clip,
    load_text_reward,
    pair_gaps,
    pair_hits,
    reward_model,
    reward_of,
    score_all,
    score_records,
    target_scores,
    text_embedder,
    tiny_text_reward,
    vlm_captioner,
    weighted_scorer,
)
from helpers.statistics import derangement, proportion
from helpers.training import RewardTrainer


def train_feature_reward(run: RecipeRun) -> None:
    """Train the smallest reward model: a network on pooled features that follows the heuristic."""
    settings = run.recipe.features
    model, processor = run.load()
    cache = run.folder / "cache" / "image-means"
    reward, records = FeatureReward(model, processor, cache), run.pairs("train", "features")
    fit = reward.fit(
        records,
        target_scores(records),
        epochs=settings.epochs,
        learning_rate=settings.learning_rate,
        seed=run.recipe.seed,
    )
    run.add_figure("features_r2_held_out", fit.r2_held_out)
    _judge(run, "features", "features", reward.score_records)
    reward.save(run.folder / "features")


def train_caption_rewards(run: RecipeRun) -> None:
    """Train a text-only reward model that reads a caption for the image, and one without."""
    settings = run.recipe.captions
    model, processor = run.load()
    seed, records = run.recipe.seed, run.pairs("train", "captions")
    for name, captioner in (("captions", vlm_captioner(model, processor)), ("captions_none", None)):
        if settings.text_model:
            text_model, tokenizer = load_text_reward(settings.text_model)
        else:
            tokenizer = processor.tokenizer
            text_model = tiny_text_reward(tokenizer, seed)
        reward = CaptionReward(text_model, tokenizer, captioner)
        reward.fit(records, epochs=settings.epochs, learning_rate=settings.learning_rate, seed=seed)
        _judge(run, "captions", name, reward.score_records)
        if captioner:
            reward.save(run.folder / "captions")


def _judge(
    run: RecipeRun,
    stage: str,
    name: str,
    score: Callable[[Sequence[PreferenceRecord]], list[list[float]]],
) -> None:
    """Accuracy on the pairs of the test split, beside the best rule that never sees the image."""
    records = [record for record in run.pairs("test", stage) if record.pairs()]
    right = pair_hits(pair_gaps(records, score(records)))
    run.add_figure(f"{name}_pair_accuracy", proportion(float(right.sum()), len(right)))
    rule, share = best_rule(blind_rules(records))
    run.add_figure(f"blind_{rule.replace(' ', '_')}", share)


def train_reward_models(run: RecipeRun) -> None:
    """Train reward models that see the image: all heads and objectives that are wanted.

    The best on validation is kept.
    """
    recipe, found = run.recipe, {}
    records = run.pairs("train", "reward")
    held_out = run.pairs("valid", "reward")
    for head, objective in product(recipe.reward.heads, recipe.reward.objectives):
        settings = replace(recipe.reward_settings(), head=head, objective=objective)
        folder = run.folder / "reward" / f"{head}-{objective}"
        trainer = _reward_trainer(run, records, held_out, settings, recipe.seed, folder)
        scored = trainer.reward
        log = trainer.train()
        found[folder] = max(row["accuracy"] for row in log.evaluations)
        if trainer.accelerator.is_main_process:
            reward_model.save_reward_model(scored, folder, settings, run.about())
            _judge(run, "reward", f"reward_{head}_{objective}", partial(score_records, scored))
            _judge_with_shuffled_images(run, f"reward_{head}_{objective}", scored)
    # the stage `ppo` takes it from there
    if PartialState().is_main_process:
        _keep_best(max(found, key=found.get), run.folder / "reward" / "best")


def _reward_trainer(
    run: RecipeRun,
    records: Sequence[PreferenceRecord],
    held_out: Sequence[PreferenceRecord],
    settings: RewardSettings,
    seed: int,
    folder: Path,
) -> RewardTrainer:
    """Return the trainer of a new reward model on a base of its own; its files are in `folder`."""
    scored = reward_model.new_reward_model(*run.load(), settings, seed)
    return RewardTrainer(scored, records, held_out, settings, seed, folder, run.replace_other)


def fresh_reward(run: RecipeRun, number: int) -> reward_model.RewardModel:
    """Train the reward model of a round of the stage `online`: other weights to begin with.

    It learns from the same pairs as the stage `reward`, with the first of its heads and objectives.
    One that was trained before is loaded.
    """
    recipe = run.recipe
    settings = replace(
        recipe.reward_settings(),
        head=recipe.reward.heads[0],
        objective=recipe.reward.objectives[0],
    )
    records, held_out = run.pairs("train", "online"), run.pairs("valid", "online")
    folder = run.folder / "online" / f"reward-{number}"
    seed = recipe.seed + number
    trainer = _reward_trainer(run, records, held_out, settings, seed, folder)
    accuracy = max(row["accuracy"] for row in trainer.train().evaluations)
    run.add_figure(f"online_reward_round_{number}", float(accuracy))
    return trainer.reward


def _judge_with_shuffled_images(
    run: RecipeRun, name: str, scored: reward_model.RewardModel
) -> None:
    records = run.pairs("test", "reward")
    if len(records) < 2:
        print(f"{name}: {len(records)} held-out record cannot be shown another one's image")
        return
    images = [record.image_paths for record in records]
    # each record with the image of another one: what is right now was not seen
    others = [images[i] for i in derangement(len(images), run.recipe.seed)]
    right = pair_hits(pair_gaps(records, score_records(scored, records, others)))
    run.add_figure(f"{name}_other_images", proportion(float(right.sum()), len(right)))


def _keep_best(folder: Path, best: Path) -> None:
    """Copy a reward model's folder beside the last best one, and then put it in its place."""
    beside = best.with_name(f".{best.name}.part")
    shutil.rmtree(beside, ignore_errors=True)
    shutil.copytree(folder, beside, ignore=shutil.ignore_patterns("checkpoint-*"))
    shutil.rmtree(best, ignore_errors=True)
    beside.rename(best)


def policy_scorer(
    run: RecipeRun,
    model: VLM,
    processor: ProcessorMixin,
    tasks: Sequence[Task],
) -> tuple[torch.nn.Module, Scorer]:
    """The recipe's scorers with their weights, and the model, which a reward model shares."""
    rows = []
    for name, weight in _scores_of(run, tasks).items():
        match name:  # of RUN_SCORERS: helpers/recipes.py
            case "reward_model":
                model, scorer = _learnt_scorer(run, model, processor)
            case "features":
                scorer = FeatureReward.load(run.folder / "features", model, processor).as_scorer()
            case "cosine":
                scorer = cosine_scorer(text_embedder([str(task.facts) for task in tasks]))
            case "clip":
                scorer = load_clip(run.recipe.ppo.clip)
            case _:
                scorer = get_scorer(name)
                name = scorer.__name__  # of one's own: without its file
        rows.append((name, scorer, weight))
    if len(rows) == 1 and weight == 1:
        return model, scorer  # one alone keeps its own name
    return model, weighted_scorer(rows)


def _scores_of(run: RecipeRun, tasks: Sequence[Task]) -> dict[str, float]:
    """The scorers of PPO with their weights; where the recipe names none, those that the data has.

    Raises UsageError if a scorer needs another truth than the questions have.
    """
    named = run.recipe.ppo.score
    truth = reward_of(tasks)
    if not named:
        return {"reward_model" if truth is None else truth.__name__: 1.0}
    for name in named:
        if name in RUN_SCORERS:
            continue
        try:
            # any answer shows whether the scorer can use such a truth
            score_all(get_scorer(name), [tasks[0].scorer_inputs(tasks[0].open_images(), "1")])
        except UsageError as error:
            raise UsageError(
                f"ppo.score: {error} Leave `score` out, and being right is the reward where the "
                "truth is known, else the reward model."
            ) from None
    return named


def _learnt_scorer(
    run: RecipeRun,
    model: VLM,
    processor: ProcessorMixin,
) -> tuple[torch.nn.Module, Scorer]:
    """The stage `reward`'s model on the policy's base, with scores standardised on `valid`."""
    # the policy's adapter comes first, so that the reward's is the second on one base
    if not isinstance(model, PeftModel):
        model = models.add_adapter(model, run.recipe.ppo_settings().lora, run.recipe.seed)
    scored = reward_model.load_reward_model(model, processor, run.left_by("reward/best"))
    return scored.backbone, reward_model.standardised_scorer(scored, run.pairs("valid", "reward"))
