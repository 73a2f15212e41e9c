"""What the stages of a recipe (`helpers/recipes.py`) do.

Each reads what the one before has left in the run's folder. Reward models, DPO and PPO run in one
process or in several (torchrun, accelerate launch). What is not training runs in the first process
while the others wait. A stage that was cut off goes on from its last checkpoint.
"""

import shutil
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from itertools import product
from pathlib import Path

import torch
from accelerate import PartialState
from transformers import PreTrainedModel, ProcessorMixin

from helpers import models
from helpers.data import (
    FORMATS,
    SPLITS,
    PreferenceRecord,
    PreparedData,
    Task,
    best_rule,
    blind_rules,
    convert_file,
    one_class_question,
    open_data,
    prepare_data,
    presence_question,
    read_records,
    to_trl,
    write_records,
)
from helpers.doctor import DPODoctor, PPODoctor, preflight
from helpers.evaluation import (
    GreedyAndSampled,
    evaluate_greedy_and_sampled,
    gather_evidence,
    judges,
)
from helpers.files import UsageError, open_image, read_json, write_json
from helpers.models import Policies, SavedPolicy
from helpers.recipes import RUN_SCORERS, SHIPPED_FILES, RecipeRun, fit_recipe
from helpers.report import figure_name
from helpers.rewards import (
    CaptionReward,
    FeatureReward,
    Scorer,
    about_reward,
    cosine_scorer,
    get_scorer,
    known_answers,
    load_clip,
    load_text_reward,
    pair_gaps,
    pair_hits,
    reward_model,
    reward_of,
    sample_and_rank,
    score_all,
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
    dpo,
    log_mean,
    ppo_trainer,
    save_policy,
    warm_up_critic,
)

EVIDENCE = 100  # held-out questions and records that are asked of without a truth


def run_stages(run: RecipeRun, names: Sequence[str] = ()) -> dict[str, dict[str, float]]:
    """Run the recipe's stages in its order, or only those in `names`.

    Their figures go to `figures.json` in the folder. One process first changes what does not fit
    this machine, as the notebooks do; several take the recipe as it is.
    """
    stages = run.recipe.stages
    unknown = sorted(set(names) - set(stages))
    if unknown:
        raise UsageError(
            f"the recipe has no stage {', '.join(unknown)}: it has {', '.join(stages)}."
        )
    state = PartialState(cpu=not torch.cuda.is_available())
    path = run.folder / "figures.json"
    if path.exists():
        run.figures = read_json(path)
    if state.num_processes == 1:
        run.recipe = fit_recipe(run.recipe, names)
    for name in stages:
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


def prepare_recipe_data(run: RecipeRun) -> None:
    """Open data of any kind, split it if it is not, and put it into the format of the recipe."""
    recipe, settings = run.recipe, run.recipe.data
    about = {
        "truth": settings.truth,
        "classes": settings.classes,
        "questions": settings.questions,
    }
    source, images = settings.sources(), settings.images or None
    # A recipe for questions that names none is tried on the scenes
    if settings.format == "visual_genome" and source == SHIPPED_FILES:
        source, images = _write_scene_questions(run)
    opened = open_data(source, images=images, **about)
    share = settings.train_share
    prepared = prepare_data(
        opened,
        run.folder / "data",
        max_pixels=recipe.max_pixels,
        model=recipe.model,
        seed=recipe.seed,
        shares=(share, 0, 1 - share) if share else None,
        limit=settings.limit,
    )
    if opened.all_records():
        if settings.format in FORMATS:
            _through_format(prepared, settings.format)
        run.add_figure("pairs", sum(len(record.pairs()) for record in run.records("train")))
        return
    for split, counts in prepared.about["splits"].items():
        run.add_figure(f"questions_{split}", counts["questions"])


def _through_format(prepared: PreparedData, name: str) -> None:
    """Put the preferences into the form of the project that the recipe is after, and read them."""
    for split in SPLITS:
        path = prepared.path(split)
        if path.exists():
            between = path.with_name(f"{split}.{name}.json")
            print(convert_file(path, between, name))
            convert_file(between, path)


def _write_scene_questions(run: RecipeRun) -> tuple[Path, Path]:
    """Two questions with short answers about each of the shipped scenes, as Visual Genome's."""
    # an entry for each scene, with questions that have numbers of their own
    images, entries = run.folder / "data" / "images", []
    images.mkdir(parents=True, exist_ok=True)
    for split in ("train", "test"):
        for record in read_records(Path(SHIPPED_FILES[split])):
            number = len(entries)
            open_image(record.image_paths[0]).save(images / f"{number}.jpg", quality=95)
            qas = []
            for place, ask in enumerate((presence_question, one_class_question)):
                question, answer = ask(record.truth, number)
                asked = {"question": question, "answer": answer}
                qas.append({"qa_id": 2 * number + place, "image_id": number, **asked})
            entries.append({"id": number, "qas": qas})
    return write_json(images.parent / "question_answers.json", entries), images


def rank_answers(run: RecipeRun) -> None:
    """Put the model's own answers, ranked by a scorer, in place of those in the data, as pairs.

    The questions of PPO and of the evaluation stay all of them, also those whose sampled answers
    are all alike.
    """
    settings = run.recipe.rank
    model, processor = run.load()
    score = get_scorer(settings.scorer)
    for place, split in enumerate(SPLITS):
        tasks = run.tasks(split)
        seed = run.recipe.seed + 1000 * place  # so that no split repeats the draws of another
        ranked = sample_and_rank(model, processor, tasks, score, settings.answers, seed=seed)
        if not ranked:
            raise UsageError(
                f"{split}: to none of the {len(tasks)} questions has the model given two different "
                f"answers, so there is nothing to rank. Ask for more than {settings.answers} "
                "(rank.answers), or take answers that are written (without the stage rank)."
            )
        write_records(run.folder / "data" / f"{split}-ranked.jsonl", ranked)
    run.add_figure("ranked_pairs", sum(len(record.pairs()) for record in run.pairs("train")))


def train_feature_reward(run: RecipeRun) -> None:
    """Train the smallest reward model: a network on pooled features that follows the heuristic."""
    settings = run.recipe.features
    model, processor = run.load()
    reward, records = FeatureReward(model, processor), run.pairs("train")
    fit = reward.fit(
        records,
        target_scores(records),
        epochs=settings.epochs,
        learning_rate=settings.learning_rate,
        seed=run.recipe.seed,
    )
    run.add_figure("features_r2_held_out", fit.r2_held_out)
    _judge(run, "features", reward.score_records)
    reward.save(run.folder / "features")


def train_caption_rewards(run: RecipeRun) -> None:
    """Train a text-only reward model that reads a caption for the image, and one without."""
    settings = run.recipe.captions
    model, processor = run.load()
    seed, records = run.recipe.seed, run.pairs("train")
    for name, captioner in (("captions", vlm_captioner(model, processor)), ("captions_none", None)):
        if settings.text_model:
            text_model, tokenizer = load_text_reward(settings.text_model)
        else:
            tokenizer = processor.tokenizer
            text_model = tiny_text_reward(tokenizer, seed)
        reward = CaptionReward(text_model, tokenizer, captioner)
        reward.fit(records, epochs=settings.epochs, learning_rate=settings.learning_rate, seed=seed)
        _judge(run, name, reward.score_records)
        if captioner:
            reward.save(run.folder / "captions")


def _judge(
    run: RecipeRun,
    name: str,
    score: Callable[[Sequence[PreferenceRecord]], list[list[float]]],
) -> None:
    """Accuracy on the pairs of the test split, beside the best rule that never sees the image."""
    records = [record for record in run.pairs("test") if record.pairs()]
    right = pair_hits(pair_gaps(records, score(records)))
    run.add_figure(f"{name}_pair_accuracy", proportion(float(right.sum()), len(right)))
    rule, share = best_rule(blind_rules(records))
    run.add_figure(f"blind_{rule.replace(' ', '_')}", share)


def train_reward_models(run: RecipeRun) -> None:
    """Train reward models that see the image: all heads and objectives that are wanted.

    The best on validation is kept.
    """
    recipe, found = run.recipe, {}
    records, held_out = run.pairs("train"), run.pairs("valid")
    for head, objective in product(recipe.reward.heads, recipe.reward.objectives):
        model, processor = run.load()
        settings = replace(recipe.reward_settings(), head=head, objective=objective)
        scored = reward_model.new_reward_model(model, processor, settings, recipe.seed)
        folder = run.folder / "reward" / f"{head}-{objective}"
        trainer = RewardTrainer(
            scored, records, held_out, settings, recipe.seed, folder, run.replace_other
        )
        log = trainer.train()
        found[folder] = max(row["accuracy"] for row in log.evaluations)
        if trainer.accelerator.is_main_process:
            reward_model.save_reward_model(scored, folder, settings, run.about())
            _judge(run, f"reward_{head}_{objective}", partial(score_records, scored))
            _judge_with_shuffled_images(run, f"reward_{head}_{objective}", scored)
    # the stage `ppo` takes it from there
    if PartialState().is_main_process:
        shutil.copytree(
            max(found, key=found.get),
            run.folder / "reward" / "best",
            dirs_exist_ok=True,
            ignore=shutil.ignore_patterns("checkpoint-*"),
        )


def _judge_with_shuffled_images(
    run: RecipeRun, name: str, scored: reward_model.RewardModel
) -> None:
    records = run.pairs("test")
    if len(records) < 2:
        print(f"{name}: {len(records)} held-out record cannot be shown another one's image")
        return
    images = [record.image_paths for record in records]
    # each record with the image of another one: what is right now was not seen
    others = [images[i] for i in derangement(len(images), run.recipe.seed)]
    right = pair_hits(pair_gaps(records, score_records(scored, records, others)))
    run.add_figure(f"{name}_other_images", proportion(float(right.sum()), len(right)))


def train_dpo_policy(run: RecipeRun) -> None:
    """Train a policy by DPO, watched by its doctor where there is one process."""
    recipe = run.recipe
    model, processor = run.load()
    folder, alone = run.folder / "dpo", PartialState().num_processes == 1
    doctor = DPODoctor.of_records(processor, run.pairs("valid")[:8])
    trainer = dpo.dpo_trainer(
        model,
        processor,
        to_trl(run.pairs("train")),
        recipe.dpo_settings(),
        seed=recipe.seed,
        folder=folder,
        replace_other=run.replace_other,
        cache=run.folder / "cache",
        callbacks=[doctor] if alone else [],
    )
    # checks and doctor look at one process's batches and gradients
    if alone and recipe.dpo.preflight:
        preflight(trainer)
    done = dpo.train_dpo(trainer)
    if trainer.accelerator.is_main_process:
        policy = trainer.accelerator.unwrap_model(trainer.model)
        save_policy(policy, folder, recipe.dpo_settings(), run.about(), done.log)
        run.add_figure("dpo_loss_last_10", log_mean(done.log[-10:], "loss"))


def train_ppo_policy(run: RecipeRun) -> None:
    """Train a policy by PPO; a critic with an adapter of its own is warmed up on known answers."""
    recipe = run.recipe
    model, processor = run.load()
    settings, tasks = recipe.ppo_settings(), run.tasks("train")
    folder = run.folder / "ppo"
    model, score = _weighted_scorer(run, model, processor, tasks)
    trainer = ppo_trainer(
        model,
        processor,
        tasks,
        score,
        settings,
        folder,
        seed=recipe.seed,
        # only watched, not trained on: is the answer right?
        truth=reward_of(tasks),
        watch=[PPODoctor()],
        cache=run.folder / "cache" / "features",
    )
    epochs = recipe.ppo.critic_warm_up_epochs
    answers = known_answers(tasks, recipe.seed)
    # a run that goes on has a critic that was warm before
    if answers and epochs and trainer.actor.own_adapter and not trainer.iteration:
        warm_up_critic(trainer, tasks, answers, epochs)
    log = trainer.train()
    if PartialState().is_main_process:
        save_policy(trainer.model, folder, settings, run.about(**about_reward(score)))
        # of three iterations, since one alone says little
        figures = [name for name in ("scores", "truth", "kl") if f"objective/{name}" in log[0]]
        for name in figures:
            for when, rows in (("first", log[:3]), ("last", log[-3:])):
                run.add_figure(f"ppo_{name}_{when}", log_mean(rows, f"objective/{name}"))


def _weighted_scorer(
    run: RecipeRun,
    model: PreTrainedModel,
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
    model: PreTrainedModel,
    processor: ProcessorMixin,
) -> tuple[torch.nn.Module, Scorer]:
    """The stage `reward`'s model on the policy's base, with scores standardised on `valid`."""
    # the policy's adapter comes first, so that the reward's is the second on one base
    policy = models.add_adapter(model, run.recipe.ppo_settings().lora, run.recipe.seed)
    scored = reward_model.load_reward_model(policy, processor, run.folder / "reward" / "best")
    return scored.backbone, reward_model.standardised_scorer(scored, run.pairs("valid"))


def evaluate_policies(run: RecipeRun) -> None:
    """Base and policies on the test split: held-out pairs, wins, and who is right, if known."""
    model, processor = run.load()
    tasks = run.tasks("test")
    _show_evidence(run, tasks)
    if not judges(tasks).measures:
        print("No truth is known of these questions, so nobody can say which answers are right.")
        return
    base = _evaluate_policy(run, "base", model, processor, tasks)
    # each policy on a fresh base, on the same tasks: the tests are paired
    for name in ("dpo", "ppo"):
        if (run.folder / name / "adapter_config.json").exists():
            policy = models.load_adapter(run.load()[0], run.folder / name)
            found = _evaluate_policy(run, name, policy, processor, tasks)
            p = mcnemar_p(base.greedy.right, found.greedy.right)
            run.add_figure(f"{name}_mcnemar_p", float(p))


def _show_evidence(run: RecipeRun, tasks: Sequence[Task]) -> None:
    """Print what can be said without a truth, and add its figures; nothing without pairs."""
    saved = []
    for name in ("dpo", "ppo"):
        folder = run.folder / name
        if (folder / "adapter_config.json").exists():
            saved.append(SavedPolicy(name, folder, read_json(folder / "about.json")))
    if not saved or not run.prepared().path("train").exists():
        return
    policies = Policies(*run.load(), saved)
    best = run.folder / "reward" / "best"
    judging = {}
    if best.exists():
        judging["reward_model"] = reward_model.load_reward_model(*run.load(), best)
    evidence = gather_evidence(
        policies,
        policies.names,
        run.records("test")[:EVIDENCE],
        tasks[:EVIDENCE],
        judges=judging,
        trained_on=run.records("train"),
        stopped=run.prepared().held_out == "valid",
    )
    for sentence in [*evidence.conclusions(), *evidence.remarks()]:
        print(sentence)
    for name, figure in evidence.figures().items():
        run.add_figure(name, figure)


def _evaluate_policy(
    run: RecipeRun,
    name: str,
    model: torch.nn.Module,
    processor: ProcessorMixin,
    tasks: Sequence[Task],
) -> GreedyAndSampled:
    """Greedy and sampled answers of one model, and their shares among the run's figures."""
    found = evaluate_greedy_and_sampled(model, processor, tasks)
    for measure, share in found.shares().items():
        run.add_figure(f"{name}_{figure_name(measure)}", share)
    return found


# These run in all processes.
TRAINING_STAGES = ("reward", "dpo", "ppo")
RECIPE_STAGES: dict[str, Callable[[RecipeRun], None]] = {
    "data": prepare_recipe_data,
    "rank": rank_answers,
    "features": train_feature_reward,
    "captions": train_caption_rewards,
    "reward": train_reward_models,
    "dpo": train_dpo_policy,
    "ppo": train_ppo_policy,
    "evaluate": evaluate_policies,
}
