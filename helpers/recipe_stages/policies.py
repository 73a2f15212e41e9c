"""The stages `sft`, `dpo` and `ppo`, and how one of them begins where another has ended."""

from accelerate import PartialState
from datasets import Dataset
from transformers import ProcessorMixin

from helpers import models
from helpers.data import to_trl
from helpers.doctor import DPODoctor, PPODoctor, preflight
from helpers.files import UsageError
from helpers.models import VLM
from helpers.recipes import RecipeRun
from helpers.rewards import about_reward, known_answers, reward_of
from helpers.statistics import drawn_share
from helpers.training import (
    REFERENCE_ADAPTER,
    chosen_answers,
    dpo,
    log_mean,
    on_policy_round,
    ppo_trainer,
    reference_answers,
    save_policy,
    sft_trainer,
    train_sft,
    warm_up_critic,
)

from .answers import find_ranker
from .reward_models import fresh_reward, policy_scorer


def train_sft_policy(run: RecipeRun) -> None:
    """Train a policy on answers that were preferred, or that are known to be right."""
    recipe = run.recipe
    model, processor = run.load()
    folder, settings = run.folder / "sft", recipe.sft_settings()
    trainer = sft_trainer(
        model,
        processor,
        _answers_to_learn(run),
        settings,
        seed=recipe.seed,
        folder=folder,
        replace_other=run.replace_other,
        cache=run.folder / "cache",
    )
    done = train_sft(trainer)
    if trainer.accelerator.is_main_process:
        policy = trainer.accelerator.unwrap_model(trainer.model)
        about = run.about(answers=recipe.sft.answers)
        save_policy(policy, folder, settings, about, done.log)
        run.add_figure("sft_answers", len(trainer.train_dataset))
        run.add_figure("sft_loss_last_10", log_mean(done.log[-10:], "loss"))


def _answers_to_learn(run: RecipeRun) -> Dataset:
    settings = run.recipe.sft
    if settings.answers == "reference":
        tasks = run.tasks("train")
        return reference_answers(drawn_share(tasks, settings.share, run.recipe.seed))
    # those of the pairs that DPO is given
    records = run.pairs("train", "sft")
    return chosen_answers(drawn_share(records, settings.share, run.recipe.seed))


def starting_policy(run: RecipeRun, stage: str) -> tuple[VLM, ProcessorMixin]:
    """The model that a stage begins with: the base, or base and adapter of a stage before it.

    That adapter is not merged: what the stage makes of it is an adapter of the same base, which can
    be loaded alone, and nothing is rounded to 4 bits. The reference is a frozen copy of it.
    """
    model, processor = run.load()
    start = getattr(run.recipe, stage).start
    if start == "base":
        return model, processor
    return models.load_adapter(model, run.left_by(start)), processor


def train_dpo_policy(run: RecipeRun) -> None:
    """Train a policy by DPO, watched by its doctor where there is one process.

    Where it begins with an adapter, the trainer makes the frozen copy that is the reference.
    """
    recipe = run.recipe
    model, processor = starting_policy(run, "dpo")
    folder, alone = run.folder / "dpo", PartialState().num_processes == 1
    doctor = DPODoctor.of_records(processor, run.pairs("valid", "dpo")[:8])
    trainer = dpo.dpo_trainer(
        model,
        processor,
        to_trl(run.pairs("train", "dpo")),
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
        about = run.about(start=recipe.dpo.start)
        save_policy(policy, folder, recipe.dpo_settings(), about, done.log)
        run.add_figure("dpo_loss_last_10", log_mean(done.log[-10:], "loss"))


def train_online_policy(run: RecipeRun) -> None:
    """Train a policy by DPO in rounds, each on the pairs that it has just made.

    Answers and checkpoints of each round are kept, so that a run that was cut off goes on where it
    was, and finished rounds are only loaded. It runs in one process.
    """
    if PartialState().num_processes > 1:
        raise UsageError("the stage online samples between its trainings: run it in one process.")
    recipe, folder = run.recipe, run.folder / "online"
    policy, processor = starting_policy(run, "online")
    tasks, fresh = run.tasks("train"), recipe.online.fresh_reward
    ranker = None if fresh else find_ranker(run, recipe.online.scorer)
    settings, log = recipe.online_settings(), []
    for number in range(1, recipe.online.rounds + 1):
        ranker = fresh_reward(run, number) if fresh else ranker
        # a seed of its own for every round: other answers, and another order of the pairs
        with models.keep_answers(run.folder / "cache" / "answers"):
            done = on_policy_round(
                policy,
                processor,
                drawn_share(tasks, recipe.online.share, recipe.seed + number),
                ranker,
                settings,
                sampling_seed=recipe.seed + 1000 * number,
                seed=recipe.seed + number,
                answers=recipe.online.answers,
                cache=run.folder / "cache",
                folder=folder / f"round-{number}",
                replace_other=run.replace_other,
            )
        print(f"round {number} of {recipe.online.rounds}: {done}", flush=True)
        policy = done.policy
        if done.run:
            run.add_figure(f"online_pairs_round_{number}", float(done.pairs))
            log += [{"round": number, **row} for row in done.run.log]
    if not log:
        raise UsageError(
            "online: in no round do the answers to a question differ in their scores, so there is "
            "nothing to learn. Take another scorer, or more answers."
        )
    about = run.about(start=recipe.online.start, rounds=recipe.online.rounds)
    save_policy(policy, folder, settings, about, log)


def train_ppo_policy(run: RecipeRun) -> None:
    """Train a policy by PPO; a critic with an adapter of its own is warmed up on known answers."""
    recipe = run.recipe
    model, processor = starting_policy(run, "ppo")
    settings, tasks = recipe.ppo_settings(), run.tasks("train")
    folder, reference = run.folder / "ppo", None
    if recipe.ppo.start != "base":
        # KL is measured against what it begins with
        reference = REFERENCE_ADAPTER
        model = models.load_adapter(model, run.left_by(recipe.ppo.start), reference)
        model.set_adapter(models.POLICY_ADAPTER)
    model, score = policy_scorer(run, model, processor, tasks)
    trainer = ppo_trainer(
        model,
        processor,
        tasks,
        score,
        settings,
        folder,
        seed=recipe.seed,
        replace_other=run.replace_other,
        reference=reference,
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
        about = run.about(start=recipe.ppo.start, **about_reward(score))
        save_policy(trainer.model, folder, settings, about)
        # of three iterations, since one alone says little
        figures = [name for name in ("scores", "truth", "kl") if f"objective/{name}" in log[0]]
        for name in figures:
            for when, rows in (("first", log[:3]), ("last", log[-3:])):
                run.add_figure(f"ppo_{name}_{when}", log_mean(rows, f"objective/{name}"))
