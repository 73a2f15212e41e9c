"""PPO, RLOO and GRPO of a vision-language model, in one visible loop (in the manner of CleanRL).

An iteration samples answers, scores them, turns scores into advantages, and updates the policy a few times.
Three log-probabilities are kept apart, since mixing them up is how such loops go wrong: `old` is of the policy that
sampled, `reference` of the base with the adapter off, which KL is measured against, `new` of the policy that
is being updated. One base serves all roles: the policy is base + adapter, the reference the base, the critic a
head (`helpers/training/actor_critic.py`), and the reward any scorer. Formulas are in `helpers/losses.py`. Taught in notebook 05.

Several processes share the questions of an iteration and get what one process gets that samples them in as many
shards (`helpers/training/distributed.py`); logged figures are means of the processes'.

Simplification: dropout of the adapter stays off, as it would make `new` differ from `old` before any update.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import torch
from peft import PeftModel
from torch import Tensor, nn
from tqdm.auto import tqdm
from transformers import ProcessorMixin

from helpers import losses, models
from helpers.config import PPOSettings
from helpers.models import VLM, PackedAnswers, Packer
from helpers.rewards import Scorer, score_all
from helpers.runtime import seed_everything

from . import distributed
from .actor_critic import ActorCritic, warm_up_critic
from .checkpoint import load_checkpoint, run_identity, save_checkpoint
from .rollout import Experience, Rollout, Task, pad_and_stack, roll_out
from .watch import IterationRow, experience_figures

Watcher = Callable[["PPOTrainer"], None]


class PPOTrainer:
    """`train()` runs all iterations of `settings` and returns the log, one dictionary an iteration.

    tasks: what is asked; score: what an answer is worth (`helpers/rewards/scoring.py`, `reward_model.as_scorer`, sums of
    them); truth: another scorer of the same answers that nothing is learnt from. `model` gets a fresh adapter unless
    it has one to go on with; the reference is the base with the adapter off.

    watch: called after each iteration with the trainer; its `stopped` ends the run. checkpoint: a file that holds
    the whole state after every `checkpoint_every` iterations; a trainer that finds it goes on as if it had
    never stopped. cache: a folder for image features. packs: all answers to a task in one row, or a row each; None
    tries whether the model can.
    """

    def __init__(
        self,
        model: VLM,
        processor: ProcessorMixin,
        tasks: Sequence[Task],
        score: Scorer,
        settings: PPOSettings,
        *,
        seed: int = 0,
        truth: Scorer | None = None,
        watch: Sequence[Watcher] = (),
        checkpoint: Path | None = None,
        cache: Path | None = None,
        packs: bool | None = None,
    ):
        # policy and critic have a pass each, in which the other one's weights are not used
        self.accelerator = distributed.new_accelerator(
            "PPO", find_unused_parameters=settings.critic_adapter
        )
        self.shards = max(settings.shards, self.accelerator.num_processes)
        settings.check(len(tasks), self.shards, self.accelerator.num_processes)
        if not isinstance(model, PeftModel):
            model = models.add_adapter(model, settings.lora, seed)
        seed_everything(seed)
        self.model, self.processor, self.tasks, self.score, self.truth = (
            model,
            processor,
            tasks,
            score,
            truth,
        )
        self.settings, self.seed, self.watch, self.checkpoint = settings, seed, watch, checkpoint
        self.packer = Packer(
            model, processor, cache=cache, packs=packs, device=self.accelerator.device
        )
        self.actor = ActorCritic(model, processor, settings, seed)
        self.forward = distributed.wrap_for_processes(self.accelerator, self.actor)
        self.trainable_parameters = self.actor.trainable_parameters()
        peaks = {"adapter": settings.learning_rate, "critic": settings.critic_learning_rate}
        groups = [
            {"params": self.trainable_parameters[name], "lr": lr, "peak": lr}
            for name, lr in peaks.items()
        ]
        self.optimizer = self.accelerator.prepare(
            torch.optim.AdamW(groups, weight_decay=0.0, eps=settings.adam_epsilon)
        )
        self.kl = losses.AdaptiveKL(settings.kl_weight, settings.kl_target, settings.kl_horizon)
        self.iteration, self.seconds, self.stopped = 0, 0.0, False
        self.log: list[IterationRow] = []
        self.asked: list[Task] = []  # in the last iteration, by this process
        self.last: Experience | None = None

    def train(self) -> list[IterationRow]:
        """Run all remaining iterations."""
        if self.checkpoint:
            self._resume(self.checkpoint)
        settings, main = self.settings, self.accelerator.is_main_process
        bar = tqdm(
            total=settings.iterations,
            initial=self.iteration,
            desc=settings.advantages,
            disable=not main or None,
        )
        while self.iteration < settings.iterations and not self.stopped:
            started = time.perf_counter()
            row = self.iterate()
            self.iteration += 1
            self.seconds += (took := time.perf_counter() - started)
            row |= {
                "iteration": self.iteration,
                "seconds": self.seconds,
                "tokens_per_second": row["tokens"] / took,
            }
            self.log.append(row)
            for look in self.watch:
                look(self)
            bar.set_postfix(score=f"{row['objective/scores']:.3f}", kl=f"{row['objective/kl']:.2f}")
            bar.update()
            if self.checkpoint and self.iteration % settings.checkpoint_every == 0:
                self._save(self.checkpoint)
        bar.close()
        self.model.eval()
        return self.log

    def warm_up_critic(
        self,
        tasks: Sequence[Task],
        answers: Sequence[Sequence[str]],
        epochs: int = 8,
        prompts_per_step: int = 16,
    ) -> list[float]:
        """Train the critic on answers to each task, whoever wrote them, and their scores: no sample is drawn.

        prompts_per_step: tasks of a step, of which `mini_batch` are in memory at a time.
        """
        known: dict[int, list[float]] = {}

        def batch(chosen: Sequence[int]) -> tuple[PackedAnswers, Tensor]:
            images = [tasks[i].open_images() for i in chosen]
            for i, pictures in zip(chosen, images, strict=True):
                if i not in known:
                    given = [tasks[i].scorer_inputs(pictures, text) for text in answers[i]]
                    known[i] = [result.total for result in score_all(self.score, given)]
            scores = torch.tensor([value for i in chosen for value in known[i]])
            packed = self.packer(
                [tasks[i].turns for i in chosen], images, [answers[i] for i in chosen]
            )
            return packed, scores.to(self.accelerator.device)

        self.model.eval()
        self._train_mode()
        at_a_time = self.settings.mini_batch
        return warm_up_critic(
            self.actor,
            self.forward,
            self.accelerator,
            batch,
            len(tasks),
            epochs,
            prompts_per_step,
            at_a_time,
        )

    def iterate(self) -> IterationRow:
        """One iteration: sample, score, compare, update."""
        self.last = experience = self.experience(self.sample())
        row = experience_figures(experience) | {
            "objective/kl_weight": self.kl.weight,
            "critic": self.actor.critic is not None,
        }
        row |= self.update(experience)
        row = distributed.mean_rows(self.accelerator, row)
        row["samples"] = (
            (self.iteration + 1) * self.settings.prompts_per_iteration * self.settings.group_size
        )
        self.kl.update(
            row["objective/kl"], self.settings.prompts_per_iteration * self.settings.group_size
        )
        return row

    def sample(self) -> Rollout:
        settings, parts, self.asked = self.settings, [], []
        self.model.eval()
        for shard in self.own_shards():
            seed = (self.seed * 1_000_003 + self.iteration) * 1_009 + shard
            for number, tasks in enumerate(self._slices(self.next_tasks(shard))):
                self.asked += tasks
                parts.append(roll_out(
                    self.packer, tasks, self.score,
                    group_size=settings.group_size, temperature=settings.temperature, top_p=settings.top_p,
                    max_new_tokens=settings.max_new_tokens, no_end_penalty=settings.no_end_penalty,
                    seed=seed + number * 2_654_435_761,  # a prime; of seeds the last 32 bits count
                    truth=self.truth,
                ))  # fmt: skip
        return Rollout.concatenate(parts)

    def _slices(self, tasks: Sequence) -> list[Sequence]:
        """Split the tasks into slices that fit into memory together in passes without gradients."""
        size = self.settings.sampling_batch or self.settings.prompts_per_iteration // self.shards
        return [tasks[start : start + size] for start in range(0, len(tasks), size)]

    def own_shards(self) -> range:
        return range(self.accelerator.process_index, self.shards, self.accelerator.num_processes)

    def next_tasks(self, shard: int) -> list[Task]:
        """Choose the tasks of this iteration and shard. Each pass over the tasks has its own order, set by the seed."""
        size = self.settings.prompts_per_iteration
        number, place = divmod(self.iteration, len(self.tasks) // size)
        order = np.random.default_rng([self.seed, number]).permutation(len(self.tasks))
        return [
            self.tasks[i] for i in order[place * size : (place + 1) * size][shard :: self.shards]
        ]

    @torch.no_grad()
    def experience(self, rollout: Rollout) -> Experience:
        """Compute log-probabilities, values, rewards, advantages and returns of the sampled answers."""
        settings, scores = self.settings, rollout.scores.to(self.accelerator.device)
        if self.iteration == 0:
            self.actor.start_at(
                float(distributed.mean_over_processes(self.accelerator, scores.mean()))
            )
        looks = [
            self._look_at(self.pack(rollout, part))
            for part in self._slices(range(len(rollout.prompts)))
        ]
        mask, old, entropy, values, reference = map(pad_and_stack, zip(*looks, strict=True))
        kl = losses.KL_ESTIMATORS[settings.kl_estimator](old - reference)
        in_loss = settings.advantages == "grpo"  # its KL is a term of the loss
        rewards = losses.token_rewards(scores, kl, mask, 0.0 if in_loss else self.kl.weight)
        totals = rewards.sum(1)
        if self.actor.critic is None:
            values = (
                distributed.mean_over_processes(self.accelerator, totals.mean()) * mask
            )  # a constant
        advantages, returns = losses.gae(rewards, values, mask, settings.gamma, settings.lam)
        if settings.advantages == "gae" and settings.whiten:
            advantages = losses.whiten(
                advantages, mask, partial(distributed.token_mean_over_processes, self.accelerator)
            )
        elif settings.advantages == "rloo":
            advantages = losses.rloo_advantages(totals, settings.group_size)[:, None] * mask
        elif settings.advantages == "grpo":
            advantages = (
                losses.grpo_advantages(totals, settings.group_size, settings.whiten)[:, None] * mask
            )
        return Experience(
            rollout, mask, old, reference, values, entropy, rewards, advantages, returns
        )

    def _look_at(self, packed: PackedAnswers) -> tuple[Tensor, ...]:
        """Mask, the policy's log-probabilities and entropy, the critic's values, the reference's log-probabilities."""
        with self.accelerator.autocast():
            old = self.actor(packed)
            values = self.actor.values(packed, old)
            with models.disable_adapters(self.model):
                reference = self.actor(packed).logps
        return packed.mask[:, 1:], old.logps, old.entropy, values, reference

    def update(self, experience: Experience) -> IterationRow:
        """Epochs of clipped updates over mini-batches of tasks; figures are means over all of them."""
        settings, rollout, rows = self.settings, experience.rollout, []
        left = 1 - self.iteration / settings.iterations if settings.anneal_lr else 1.0
        for group in self.optimizer.param_groups:
            group["lr"] = left * group["peak"]
        self._train_mode()
        rng, tasks = (
            np.random.default_rng([self.seed, self.iteration]),
            settings.prompts_per_iteration // self.shards,
        )
        size, starts = settings.mini_batch // self.shards, range(0, len(rollout.prompts), tasks)
        for _ in range(settings.epochs):
            for chosen in np.split(rng.permutation(tasks), range(size, tasks, size)):
                rows.append(
                    self.step(experience, np.concatenate([start + chosen for start in starts]))
                )
                if len(rows) == 1 and abs(rows[0]["ppo/ratio"] - 1) > settings.ratio_tolerance:
                    raise RuntimeError(
                        f"the ratio of new to old probability is {rows[0]['ppo/ratio']:.4f} before any update, not "
                        "1.000: sampled answers and their log-probabilities do not belong together."
                    )
        means = {name: float(np.mean([row[name] for row in rows])) for name in rows[0]}
        return means | {"ppo/ratio_first": rows[0]["ppo/ratio"]}

    def step(self, experience: Experience, tasks: Sequence[int]) -> IterationRow:
        """One optimizer step on the answers to the tasks with these numbers. What gets no gradient stays as it is."""
        settings = self.settings
        batch, answers = (
            self.pack(experience.rollout, tasks),
            experience.rollout.answer_numbers(tasks),
        )
        mask = batch.mask[:, 1:]
        count = distributed.token_count(self.accelerator, mask)
        names = ("old_logps", "reference_logps", "values", "advantages", "returns")
        old, reference, values, advantages, returns = (
            experience.cut(n, answers, mask.shape[1]) for n in names
        )
        with self.accelerator.autocast():
            new = self.forward(batch)
        policy = losses.clipped_policy_loss(new.logps, old, advantages, mask, settings.clip, count)
        loss, value = policy.loss, torch.zeros(())
        if self.actor.critic is not None and not self.actor.own_adapter:
            value = losses.clipped_value_loss(
                new.values, values, returns, mask, settings.value_clip, count
            )
            loss = loss + settings.value_weight * value
        if settings.entropy_weight:
            loss = loss - settings.entropy_weight * losses.masked_mean(new.entropy, mask, count)
        if settings.advantages == "grpo" and self.kl.weight:
            loss = loss + self.kl.weight * losses.masked_mean(
                losses.k3(new.logps - reference), mask, count
            )
        self.accelerator.backward(loss)
        if self.actor.own_adapter:
            with self.actor.as_critic():
                with self.accelerator.autocast():
                    own = self.forward(batch, critic=True)
                value = losses.clipped_value_loss(
                    own, values, returns, mask, settings.value_clip, count
                )
                self.accelerator.backward(settings.value_weight * value)
        self.accelerator.unscale_gradients(self.optimizer)
        norms = {}
        for name, weights in self.trainable_parameters.items():
            norms[name] = float(nn.utils.clip_grad_norm_(weights, settings.max_grad_norm))
            if norms[name] == 0:  # Adam's momentum would move weights without a gradient
                for weight in weights:
                    weight.grad = None
        self.optimizer.step()
        self.optimizer.zero_grad()
        return {
            "ppo/loss/policy": float(policy.loss.detach()),
            "ppo/loss/value": float(value.detach()),
            "ppo/policy/approxkl": policy.approx_kl,
            "ppo/policy/clipfrac": policy.clip_share,
            "ppo/ratio": policy.ratio,
            "grad_norm/adapter": norms["adapter"],
            "grad_norm/critic": norms["critic"],
        }

    def pack(self, rollout: Rollout, tasks: Sequence[int] | None = None) -> PackedAnswers:
        """Model inputs of the answers to some of the rollout's tasks (all of them), in their order."""
        tasks = range(len(rollout.prompts)) if tasks is None else tasks
        return self.packer.pack(rollout.prompts.select(tasks), [rollout.answers(i) for i in tasks])

    def _train_mode(self) -> None:
        """Turn gradient checkpointing on if the settings ask for it. It needs train mode; dropout stays off."""
        if self.settings.gradient_checkpointing:
            self.model.gradient_checkpointing_enable({"use_reentrant": False})
            self.model.train()
            for module in self.model.modules():
                if isinstance(module, nn.Dropout):
                    module.eval()

    def _weights(self) -> dict[str, Tensor]:
        """Return all trained weights by name: the policy's adapter, the critic's adapter and its head."""
        known = {
            id(parameter) for group in self.trainable_parameters.values() for parameter in group
        }
        return {name: p.detach() for name, p in self.actor.named_parameters() if id(p) in known}

    def _save(self, path: Path) -> None:
        """Save the state of the run. Random states are not saved: they follow from the seed and the iteration."""
        self.accelerator.wait_for_everyone()
        if not self.accelerator.is_main_process:
            return
        scaler = self.accelerator.scaler
        state = {name: getattr(self, name) for name in ("identity", "iteration", "log", "seconds")}
        state |= {
            "weights": self._weights(),
            "optimizer": self.optimizer.state_dict(),
            "kl_weight": self.kl.weight,
        }
        save_checkpoint(path, state | {"scaler": scaler.state_dict() if scaler else None})

    @torch.no_grad()
    def _resume(self, path: Path) -> None:
        own = {
            "settings": replace(self.settings, checkpoint_every=1, sampling_batch=0),
            "seed": self.seed,
        }
        own |= {
            "number of processes": self.accelerator.num_processes,
            "reward": self.score.__name__,
        }
        self.identity = run_identity(self.model, self.processor, self.tasks, **own)
        if not path.exists():
            return
        state = load_checkpoint(path, self.identity)
        for name, weight in self._weights().items():
            weight.copy_(state["weights"][name])
        self.optimizer.load_state_dict(state["optimizer"])
        if state["scaler"]:
            self.accelerator.scaler.load_state_dict(state["scaler"])
        self.iteration, self.log, self.seconds = state["iteration"], state["log"], state["seconds"]
        self.kl.weight = state["kl_weight"]
        print(f"Going on after iteration {self.iteration} of {self.settings.iterations} ({path}).")
