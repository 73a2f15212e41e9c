"""How many samples PPO, RLOO and GRPO need, here and in TRL: part "learning" of `rl.py`.

The embedded model, 64 samples an iteration, reward 1 for true counts and 0 for others. Every
`EVERY` iterations it gives greedy answers to 128 validation scenes, of which the first 64 are the
shipped ones; at the end it answers the 400 test scenes, greedily and sampled. Also here, for both
parts: TRL's trainer with the settings of `helpers/config.py`.
"""

import dataclasses
import math
import tempfile
from pathlib import Path

import datasets
import torch
from tqdm.auto import tqdm
from transformers import PrinterCallback, ProgressCallback, TrainerCallback
from trl import GRPOConfig, GRPOTrainer, RLOOConfig, RLOOTrainer

from benchmarks.dpo import TRAFFIC, entry, now
from benchmarks.dpo_recipe import pooled
from data.scene_folders import write_split
from helpers import models
from helpers.config import PPO_PRESETS, PPOSettings
from helpers.data import read_counts
from helpers.data.pairs import counting_tasks, true_and_wrong_answers
from helpers.data.preferences import read_records
from helpers.data.tasks import Task, tasks_of
from helpers.evaluation.task_results import evaluate_tasks
from helpers.evaluation.truth_judges import judges
from helpers.report import markdown_table
from helpers.rewards.scoring import Scorer, count_exact, grpo_reward_function
from helpers.runtime import compute_dtype
from helpers.statistics import Proportion
from helpers.training.ppo import PPOTrainer
from helpers.training.trl_runs import REFERENCE_ADAPTER, undo_casts
from helpers.training.warm_up import warm_up_critic
from helpers.training.watch import pooled_explained_variance

# what makes TRL's loss that of helpers/training/ppo.py: means over a mini-batch's tokens, plain k3
STOCK = {
    "grpo": (GRPOTrainer, GRPOConfig, {"loss_type": "bnpo", "use_bias_correction_kl": False}),
    "rloo": (RLOOTrainer, RLOOConfig, {}),
}
METHODS = {  # name: (preset, trained by TRL, changes)
    "PPO": ("tiny", False, {"critic_layers": 3}),
    "PPO critic on policy states": (
        "tiny",
        False,
        {"critic_layers": 3, "critic_adapter": False},
    ),
    "PPO constant critic": ("tiny", False, {}),
    "RLOO": ("tiny-rloo", False, {}),
    "GRPO": ("tiny-grpo", False, {}),
    "TRL RLOO": ("tiny-rloo", True, {}),
    "TRL GRPO": ("tiny-grpo", True, {}),
}
WARM_UP = 8  # epochs of the critic, as in notebook 05
GOAL, EVERY = 0.9, 2  # greedy exact share, iterations between two looks at it


def stock_reward(score: Scorer, settings: PPOSettings, end: int):
    """`score` as a reward function of TRL that takes `no_end_penalty` off answers without the token
    `end`.
    """

    def reward(completion_ids, **columns):
        totals = zip(inner(**columns), completion_ids, strict=True)
        return [total - settings.no_end_penalty * (end not in ids) for total, ids in totals]

    inner, reward.__name__ = grpo_reward_function(score), score.__name__
    return reward


def stock_trainer(
    model, processor, tasks: list[Task], score: Scorer, settings: PPOSettings, seed: int, **more
):
    """TRL's trainer with `settings` in its words. `more`: of its config."""
    trainer, config, loss = STOCK[settings.advantages]
    steps = settings.prompts_per_iteration // settings.mini_batch
    dtype, cuda = compute_dtype(), torch.cuda.is_available()
    kept = {"suppress_tokens": models.banned_tokens(processor)} | more.pop("generation_kwargs", {})
    args = config(
        num_generations=settings.group_size,
        per_device_train_batch_size=settings.mini_batch * settings.group_size,
        steps_per_generation=steps,
        gradient_accumulation_steps=1,
        num_iterations=settings.epochs,
        max_steps=settings.iterations * settings.epochs * steps,
        beta=settings.kl_weight,
        epsilon=settings.clip,
        temperature=settings.temperature,
        top_p=settings.top_p,
        max_completion_length=settings.max_new_tokens,
        learning_rate=settings.learning_rate,
        max_grad_norm=settings.max_grad_norm,
        generation_kwargs=kept,
        lr_scheduler_type="linear" if settings.anneal_lr else "constant",
        gradient_checkpointing=settings.gradient_checkpointing,
        fp16=dtype == torch.float16,
        bf16=dtype == torch.bfloat16,
        use_cpu=not cuda,
        dataloader_pin_memory=cuda,
        save_strategy="no",
        report_to=[],
        seed=seed,
        **loss,
        **more,
    )
    rows = [
        {
            "images": [str(image) for image in task.images],
            "prompt": [message.model_dump() for message in task.turns],
            "truth": task.facts,
        }
        for task in tasks
    ]
    images = datasets.List(datasets.Image(mode="RGB"))
    model = models.add_adapter(model, settings.lora, seed)
    weights = {name: p.detach().clone() for name, p in model.named_parameters() if p.requires_grad}
    made = trainer(
        model=model, args=args, processing_class=processor,
        reward_funcs=stock_reward(score, settings, processor.tokenizer.eos_token_id),
        train_dataset=datasets.Dataset.from_list(rows).cast_column("images", images),
    )  # fmt: skip
    model.delete_adapter(REFERENCE_ADAPTER)  # without the copy, TRL switches the adapter off
    undo_casts(model, weights)
    for callback in (PrinterCallback, ProgressCallback):
        made.remove_callback(callback)
    return made


class HeldOut(TrainerCallback):
    """Greedy answers to `items` after every so many iterations; `watching` counts the seconds that
    it took.
    """

    def __init__(self, processor, items, settings: PPOSettings):
        self.processor = processor
        self.judge = judges(counting_tasks(items))
        self.settings = settings
        self.shares: dict[int, Proportion] = {}
        self.watching = 0.0

    def look(self, model, iteration: float) -> None:
        if iteration % EVERY == 0 or iteration == self.settings.iterations:
            started = now()
            samples = (
                int(iteration) * self.settings.prompts_per_iteration * self.settings.group_size
            )
            self.shares[samples] = evaluate_tasks(model, self.processor, self.judge).right_share
            self.watching += now() - started

    def on_step_end(self, args, state, control, model=None, **kwargs):
        self.look(model, state.global_step / (args.num_iterations * args.steps_per_generation))


def learn(
    method: str, seed: int, changes: dict, sets: dict, folder: Path
) -> dict[str, Proportion | float]:
    """Shares of one run: after every `EVERY` iterations, and at the end; its seconds without
    evaluation.

    changes: to the preset; sets: "tasks" to learn from, "valid" and "test" scenes.
    """
    preset, by_trl, own = METHODS[method]
    changes = changes | own
    settings, (model, processor) = (
        dataclasses.replace(PPO_PRESETS[preset], **changes),
        models.load_model(),
    )
    held_out = HeldOut(processor, sets["valid"], settings)
    if by_trl:
        trainer = stock_trainer(
            model, processor, sets["tasks"], count_exact, settings, seed, output_dir=str(folder)
        )
        trainer.add_callback(held_out)
        started = now()
        trainer.train()
        seconds = now() - started - held_out.watching
    else:
        watch = [lambda trainer: held_out.look(trainer.model, trainer.iteration)]
        trainer = PPOTrainer(
            model, processor, sets["tasks"], count_exact, settings, seed=seed, watch=watch
        )
        started = now()
        if trainer.actor.own_adapter:
            answers = true_and_wrong_answers([task.facts for task in sets["tasks"]], seed=seed)
            epochs = WARM_UP if len(sets["test"]) > 8 else 1
            warm_up_critic(trainer, sets["tasks"], answers, epochs)
        warming = now() - started
        trainer.train()
        seconds = warming + trainer.seconds
    judge = judges(counting_tasks(sets["test"]))
    greedy = evaluate_tasks(trainer.model, processor, judge)
    sampled = evaluate_tasks(trainer.model, processor, judge, temperature=1.0, seed=seed)
    found = {f"held_out_after_{samples}": share for samples, share in held_out.shares.items()}
    found |= {"exact": greedy.right_share, "exact_sampled": sampled.right_share}
    found |= {"wellformed_sampled": sampled.share("well formed"), "seconds": seconds}
    if not by_trl and trainer.actor.critic is not None:
        late = trainer.log[-max(1, len(trainer.log) // 4) :]
        if math.isfinite(known := pooled_explained_variance(late)):
            found["explained_variance"] = known
    if reached := [samples for samples, share in held_out.shares.items() if share.value >= GOAL]:
        found["samples"] = reached[0]
    return found


def learning(seeds: int, iterations: int, toy: bool, only: str | None = None) -> dict[str, dict]:
    """Entries of the learning part, or `only` of one method: `<method>_<what>_seed_<seed>`."""
    records = read_records(TRAFFIC / "preferences_train.jsonl")
    figures, changes = {}, {"iterations": iterations}
    changes |= {"prompts_per_iteration": 4, "group_size": 4, "mini_batch": 2} if toy else {}
    with tempfile.TemporaryDirectory() as name:
        write_split(Path(name), "validation", 8 if toy else 128)
        sets = {"tasks": tasks_of(records), "valid": read_counts(Path(name), "valid")}
        sets["test"] = read_counts(TRAFFIC, "test")[: 8 if toy else None]
        methods = [method for method in METHODS if only in (None, slug(method))]
        for method, seed in tqdm(
            [(method, seed) for method in methods for seed in range(seeds)], desc="runs"
        ):
            for what, value in learn(method, seed, changes, sets, Path(name) / "run").items():
                share = isinstance(value, Proportion)
                found = dataclasses.asdict(value) if share else entry([value])
                figures[f"{slug(method)}_{what}_seed_{seed}"] = found | {"seed": seed}
    return figures


def slug(method: str) -> str:
    return method.lower().replace(" ", "_")


def learning_runs(figures: dict[str, dict], method: str, what: str) -> list[dict]:
    """The entries of a method's seeds."""
    return [
        entry for key, entry in figures.items() if key.startswith(f"{slug(method)}_{what}_seed_")
    ]


def learning_table(figures: dict[str, dict]) -> str:
    """One line a method; shares pool the seeds, the others are seed by seed."""
    rows = [
        ["method", f"samples until {GOAL:.2f} held-out exact, each seed", "exact", "exact, sampled"]
    ]
    rows[0] += ["well formed, sampled", "seconds of training, each seed", "critic explains"]
    for method in METHODS:
        if seconds := learning_runs(figures, method, "seconds"):
            reached = {
                entry["seed"]: f"{entry['value']:.0f}"
                for entry in learning_runs(figures, method, "samples")
            }
            row = [
                method,
                ", ".join(reached.get(entry["seed"], "not reached") for entry in seconds),
            ]
            for what in ("exact", "exact_sampled", "wellformed_sampled"):
                shares = []
                for run in learning_runs(figures, method, what):
                    shares.append(Proportion(run["value"], run["low"], run["high"], run["n"]))
                row.append(str(pooled(shares)))
            explained = [
                f"{run['value']:.2f}"
                for run in learning_runs(figures, method, "explained_variance")
            ]
            row.append(", ".join(f"{entry['value']:.0f}" for entry in seconds))
            rows.append([*row, ", ".join(explained)])
    return markdown_table(rows)
