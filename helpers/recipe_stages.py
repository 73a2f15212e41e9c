"""What the stages of a recipe (`helpers/recipes.py`) do: each reads what the one before has left in the run's folder.

Reward models, DPO and PPO run in one process or in several (torchrun, accelerate launch). What is not training runs in
the first process while the others wait. A stage that was cut off goes on from its last checkpoint.
"""

import dataclasses
import shutil
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import numpy as np
import torch
from accelerate import PartialState
from transformers import PreTrainedModel, ProcessorMixin

from helpers import models
from helpers.data import (
    PreferenceRecord,
    as_counted_images,
    best_rule,
    blind_rules,
    convert_file,
    one_class_question,
    presence_question,
    read_records,
    read_visual_genome,
    to_trl,
    true_and_wrong_answers,
    write_records,
)
from helpers.doctor import DPODoctor, PPODoctor, preflight
from helpers.evaluation import evaluate_greedy_and_sampled, score_greedy_answers
from helpers.files import ROOT, UsageError, open_image, read_json, write_json
from helpers.recipes import RecipeRun, fit_recipe
from helpers.rewards import (
    SCORERS,
    CaptionReward,
    FeatureReward,
    Scorer,
    cosine_scorer,
    exact_match,
    get_scorer,
    load_clip,
    load_text_reward,
    pair_gaps,
    pair_hits,
    reward_model,
    sample_and_rank,
    score_records,
    target_scores,
    text_embedder,
    tiny_text_reward,
    vlm_captioner,
    weighted_scorer,
)
from helpers.statistics import derangement, mcnemar_p, proportion
from helpers.training import (
    RewardTrainer,
    Task,
    dpo,
    log_mean,
    ppo_trainer,
    save_policy,
    warm_up_critic,
)

SPLITS = ("train", "valid", "test")


def run_stages(run: RecipeRun, names: Sequence[str] = ()) -> dict[str, dict[str, float]]:
    """Run the recipe's stages in its order, or only those in `names`; their figures go to `figures.json` in the folder.

    One process first changes what does not fit this machine, as the notebooks do; several take the recipe as it is.
    """
    if unknown := set(names) - set(run.recipe.stages):
        raise UsageError(
            f"the recipe has no stage {', '.join(sorted(unknown))}: it has {', '.join(run.recipe.stages)}."
        )
    state, path = PartialState(cpu=not torch.cuda.is_available()), run.folder / "figures.json"
    if path.exists():
        run.figures = read_json(path)
    if state.num_processes == 1:
        run.recipe = fit_recipe(run.recipe, names)
    for name in run.recipe.stages:
        if names and name not in names:
            continue
        state.wait_for_everyone()
        if name in TRAINING_STAGES or state.is_main_process:
            state.print(f"── {name} ──", flush=True)
            RECIPE_STAGES[name](run)
        state.wait_for_everyone()
        if state.is_main_process:
            write_json(path, run.figures)
    return run.figures


def prepare_data(run: RecipeRun) -> None:
    """Data of any format → the run's own records; our own files are first put into the format of the recipe."""
    settings, target = run.recipe.data, run.folder / "data"
    if settings.format == "visual_genome":
        return _prepare_questions(run)
    for split in SPLITS:
        source = ROOT / getattr(settings, split)
        if settings.format != "record":
            between = target / f"{split}.{settings.format}.json"
            print(convert_file(source, between, settings.format))
            source = between
        convert_file(source, target / f"{split}.jsonl")
        write_records(target / f"{split}.jsonl", run.records(split)[: settings.limit])
    run.add_figure("pairs", sum(len(record.pairs()) for record in run.records("train")))


def _prepare_questions(run: RecipeRun) -> None:
    """Visual Genome's questions, split by image; without its images, such a file is made from the scenes."""
    settings, target = run.recipe.data, run.folder / "data"
    file, images = (
        (ROOT / settings.train, ROOT / settings.images)
        if settings.images
        else _write_scene_questions(run)
    )
    asked = read_visual_genome(file, images)
    groups = list(dict.fromkeys(item.group for item in asked))
    order = np.random.default_rng(run.recipe.seed).permutation(len(groups))
    first = {groups[i] for i in order[: round(settings.train_share * len(groups))]}
    for split, inside in (("train", True), ("test", False)):
        rows = [item for item in asked if (item.group in first) == inside][: settings.limit]
        rows = [
            {"image": str(item.path.resolve()), "question": item.question, "answer": item.answer}
            for item in rows
        ]
        write_json(target / f"{split}-questions.json", rows)
        run.add_figure(f"questions_{split}", len(rows))


def _write_scene_questions(run: RecipeRun) -> tuple[Path, Path]:
    """Two questions with short answers about each of the shipped scenes, in Visual Genome's form."""
    images, entries = run.folder / "data" / "images", []
    images.mkdir(parents=True, exist_ok=True)
    for split in ("train", "test"):
        for record in read_records(ROOT / getattr(run.recipe.data, split)):
            number = len(entries)
            open_image(record.image_paths[0]).save(images / f"{number}.jpg", quality=95)
            asked = [ask(record.truth, number) for ask in (presence_question, one_class_question)]
            qas = [
                {
                    "qa_id": 2 * number + place,
                    "image_id": number,
                    "question": question,
                    "answer": answer,
                }
                for place, (question, answer) in enumerate(asked)
            ]
            entries.append({"id": number, "qas": qas})
    return write_json(images.parent / "question_answers.json", entries), images


def rank_answers(run: RecipeRun) -> None:
    """Answers sampled from the model and ranked by a scorer take the place of those in the data, as pairs.

    The questions of PPO and of the evaluation stay all of them, also those whose sampled answers are all alike.
    """
    settings, (model, processor) = run.recipe.rank, run.load()
    score = get_scorer(settings.scorer)
    for place, split in enumerate(SPLITS):
        items, seed = as_counted_images(run.records(split)), run.recipe.seed + 1000 * place
        ranked = sample_and_rank(model, processor, items, score, settings.answers, seed=seed)
        write_records(run.folder / "data" / f"{split}-ranked.jsonl", ranked)
    run.add_figure("ranked_pairs", sum(len(record.pairs()) for record in run.pairs("train")))


def train_feature_reward(run: RecipeRun) -> None:
    """The smallest reward model: a network on pooled features that regresses the heuristic."""
    settings, (model, processor) = run.recipe.features, run.load()
    reward, records = FeatureReward(model, processor), run.pairs("train")
    fit = reward.fit(
        records, target_scores(records),
        epochs=settings.epochs, learning_rate=settings.learning_rate, seed=run.recipe.seed,
    )  # fmt: skip
    run.add_figure("features_r2_held_out", fit.r2_held_out)
    _judge(run, "features", reward.score_records)
    reward.save(run.folder / "features")


def train_caption_rewards(run: RecipeRun) -> None:
    """A text-only reward model that reads a caption instead of the image, beside the same without captions."""
    settings, (model, processor) = run.recipe.captions, run.load()
    for name, captioner in (("captions", vlm_captioner(model, processor)), ("captions_none", None)):
        seed = run.recipe.seed
        text = (
            load_text_reward(settings.text_model)
            if settings.text_model
            else (tiny_text_reward(processor.tokenizer, seed), processor.tokenizer)
        )
        reward, records = CaptionReward(*text, captioner), run.pairs("train")
        reward.fit(records, epochs=settings.epochs, learning_rate=settings.learning_rate, seed=seed)
        _judge(run, name, reward.score_records)
        if captioner:
            reward.save(run.folder / "captions")


def _judge(
    run: RecipeRun, name: str, score: Callable[[Sequence[PreferenceRecord]], list[list[float]]]
) -> None:
    """Accuracy on the pairs of the test split, beside the best rule that never sees the image."""
    records = [record for record in run.pairs("test") if record.pairs()]
    right = pair_hits(pair_gaps(records, score(records)))
    run.add_figure(f"{name}_pair_accuracy", proportion(float(right.sum()), len(right)))
    rule, share = best_rule(blind_rules(records))
    run.add_figure(f"blind_{rule.replace(' ', '_')}", share)


def train_reward_models(run: RecipeRun) -> None:
    """Reward models that see the image: all heads and objectives that are wanted; the best on validation is kept."""
    recipe, found = run.recipe, {}
    records, held_out = run.pairs("train"), run.pairs("valid")
    for head in recipe.reward.heads:
        for objective in recipe.reward.objectives:
            model, processor = run.load()
            settings = dataclasses.replace(recipe.reward_settings(), head=head, objective=objective)
            scored = reward_model.new_reward_model(model, processor, settings, recipe.seed)
            folder = run.folder / "reward" / f"{head}-{objective}"
            trainer = RewardTrainer(
                scored, records, held_out, settings, recipe.seed, folder / "checkpoint.pt"
            )  # fmt: skip
            log = trainer.train()
            found[folder] = max(row["accuracy"] for row in log.evaluations)
            if not trainer.accelerator.is_main_process:
                continue
            reward_model.save_reward_model(scored, folder, settings, run.about())
            _judge(run, f"reward_{head}_{objective}", partial(score_records, scored))
            _judge_with_shuffled_images(run, f"reward_{head}_{objective}", scored)
    if PartialState().is_main_process:
        shutil.copytree(
            max(found, key=found.get), run.folder / "reward" / "best", dirs_exist_ok=True
        )


def _judge_with_shuffled_images(
    run: RecipeRun, name: str, scored: reward_model.RewardModel
) -> None:
    records = run.pairs("test")
    images = [record.image_paths for record in records]
    others = [images[i] for i in derangement(len(images), run.recipe.seed)]
    right = pair_hits(pair_gaps(records, score_records(scored, records, others)))
    run.add_figure(f"{name}_other_images", proportion(float(right.sum()), len(right)))


def train_dpo_policy(run: RecipeRun) -> None:
    recipe, (model, processor) = run.recipe, run.load()
    records = run.pairs("train")
    folder, alone = run.folder / "dpo", PartialState().num_processes == 1
    doctor = DPODoctor.of_records(processor, run.pairs("valid")[:8])
    trainer = dpo.dpo_trainer(
        model, processor, to_trl(records), recipe.dpo_settings(), seed=recipe.seed,
        output_dir=folder / "trainer", cache=run.folder / "cache", callbacks=[doctor] if alone else [],
    )  # fmt: skip
    if alone and recipe.dpo.preflight:
        preflight(trainer)
    done = dpo.train_dpo(trainer, resume=True)
    if trainer.accelerator.is_main_process:
        policy = trainer.accelerator.unwrap_model(trainer.model)
        save_policy(policy, folder, recipe.dpo_settings(), run.about(), done.log)
        run.add_figure("dpo_loss_last_10", log_mean(done.log[-10:], "loss"))


def train_ppo_policy(run: RecipeRun) -> None:
    recipe, (model, processor) = run.recipe, run.load()
    settings, tasks, folder = recipe.ppo_settings(), run.tasks("train"), run.folder / "ppo"
    model, score = _weighted_scorer(run, model, processor, tasks)
    trainer = ppo_trainer(
        model, processor, tasks, score, settings, folder, seed=recipe.seed, truth=_truth_scorer(tasks),
        watch=[PPODoctor()], cache=run.folder / "cache" / "features",
    )  # fmt: skip
    if (
        not trainer.iteration
        and trainer.actor.own_adapter
        and recipe.ppo.critic_warm_up_epochs
        and isinstance(tasks[0].facts, dict)
    ):
        answers = true_and_wrong_answers([task.facts for task in tasks], recipe.seed)
        warm_up_critic(trainer, tasks, answers, recipe.ppo.critic_warm_up_epochs)
    log = trainer.train()
    if PartialState().is_main_process:
        save_policy(trainer.model, folder, settings, run.about(reward=score.__name__))
        for name in ("objective/scores", "objective/truth", "objective/kl"):
            for when, rows in (("first", log[:3]), ("last", log[-3:])):
                run.add_figure(f"ppo_{name.split('/')[1]}_{when}", log_mean(rows, name))


def _truth_scorer(tasks: Sequence[Task]) -> Scorer:
    """Scorer that is only watched, not trained on: are the counts, or is the answer, true?"""
    return SCORERS["count_exact"] if isinstance(tasks[0].facts, dict) else exact_match


def _weighted_scorer(
    run: RecipeRun, model: PreTrainedModel, processor: ProcessorMixin, tasks: Sequence[Task]
) -> tuple[torch.nn.Module, Scorer]:
    """The scorers of the recipe with their weights, and the model, which a trained reward model shares."""
    rows = []
    for name, weight in run.recipe.ppo.score.items():
        if name == "reward_model":
            model, scorer = _learnt_scorer(run, model, processor)
        elif name == "features":
            scorer = FeatureReward.load(run.folder / "features", model, processor).as_scorer()
        elif name == "cosine":
            scorer = cosine_scorer(text_embedder([str(task.facts) for task in tasks]))
        elif name == "clip":
            scorer = load_clip(run.recipe.ppo.clip)
        else:
            scorer = get_scorer(name)
        rows.append((name, scorer, weight))
    return model, rows[0][1] if len(rows) == 1 and rows[0][2] == 1 else weighted_scorer(rows)


def _learnt_scorer(
    run: RecipeRun, model: PreTrainedModel, processor: ProcessorMixin
) -> tuple[torch.nn.Module, Scorer]:
    """The stage `reward`'s model on the policy's base; its scores are standardised on the validation answers."""
    policy = models.add_adapter(model, run.recipe.ppo_settings().lora, run.recipe.seed)
    scored = reward_model.load_reward_model(policy, processor, run.folder / "reward" / "best")
    return scored.backbone, reward_model.standardised_scorer(scored, run.pairs("valid"))


def evaluate_policies(run: RecipeRun) -> None:
    """Base and policies on the test split: are the counts, or the answers, true?"""
    model, processor = run.load()
    tasks = run.tasks("test")
    base = _right_answers(run, "base", model, processor, tasks)
    for name in ("dpo", "ppo"):
        if (run.folder / name / "adapter_config.json").exists():
            policy = models.load_adapter(run.load()[0], run.folder / name)
            right = _right_answers(run, name, policy, processor, tasks)
            run.add_figure(f"{name}_mcnemar_p", float(mcnemar_p(base, right)))


def _right_answers(
    run: RecipeRun,
    name: str,
    model: torch.nn.Module,
    processor: ProcessorMixin,
    tasks: Sequence[Task],
) -> list[bool]:
    """Which greedy answers are right, (tasks,). Counts are asked for in both wordings, sampled ones noted as well."""
    if isinstance(tasks[0].facts, dict):
        items = as_counted_images(run.records("test"))
        found = evaluate_greedy_and_sampled(model, processor, items)
        run.add_figure(f"{name}_exact", found.greedy.exact_share)
        run.add_figure(f"{name}_exact_sampled", found.sampled.exact_share)
        run.add_figure(f"{name}_wellformed_sampled", found.sampled.well_formed_share)
        return list(found.greedy.exact)
    (totals,) = score_greedy_answers(model, processor, tasks, exact_match)
    right = [bool(total) for total in totals]
    run.add_figure(f"{name}_right", proportion(sum(right), len(right)))
    return right


TRAINING_STAGES = ("reward", "dpo", "ppo")
RECIPE_STAGES: dict[str, Callable[[RecipeRun], None]] = {
    "data": prepare_data, "rank": rank_answers, "features": train_feature_reward, "captions": train_caption_rewards,
    "reward": train_reward_models, "dpo": train_dpo_policy, "ppo": train_ppo_policy, "evaluate": evaluate_policies,
}  # fmt: skip
