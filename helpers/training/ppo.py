"""PPO, RLOO and GRPO of a vision-language model, in one visible loop (in the manner of CleanRL).

`PPOTrainer.train` is the algorithm, from top to bottom; docs/ppo.md walks through it, with the
formula beside each step. Three log-probabilities are kept apart, since mixing them up is how such
loops go wrong: `old` is of the policy that sampled, `reference` of what KL is measured against, the
base with the adapter off or one that was trained before, `new` of the policy that is being updated.
One base serves all roles: the policy is base + adapter, the critic, if `critic_layers` of the
settings asks for one, a head (`helpers/training/actor_critic.py`), and the reward any scorer.
Formulas are in `helpers/losses.py`. Taught in notebook 05.

Another method enters by its line in a table: `ADVANTAGES` (`helpers/training/advantages.py`),
`POLICY_LOSSES` (`helpers/losses.py`) or `ROLLOUT_FILTERS` (`helpers/training/rollout.py`).

Several processes share the questions of an iteration (`helpers/training/sampler.py`); logged
figures are means of the processes'.

Simplification: dropout of the adapter stays off, as it would make `new` differ from `old` before
any update.
"""

import math
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path

import torch
from accelerate import Accelerator
from accelerate.optimizer import AcceleratedOptimizer
from peft import PeftModel
from torch import Tensor, nn
from tqdm.auto import tqdm
from transformers import ProcessorMixin

from helpers import losses, models
from helpers.config import PPOSettings
from helpers.data import Task, require_plain_texts, texts_of_tasks
from helpers.files import UsageError
from helpers.losses import KL_ESTIMATORS, POLICY_LOSSES, AdaptiveKL, PolicyLoss
from helpers.models import VLM, Packer
from helpers.rewards import Scorer
from helpers.runtime import seed_everything, tolerances_of

from .actor_critic import ActorCritic, TokenFigures
from .advantages import ADVANTAGES
from .checkpoint import Checkpoints, alone_in_its_folder
from .distributed import (
    mean_over_processes,
    mean_rows,
    new_accelerator,
    token_mean_over_processes,
    wrap_for_processes,
)
from .ppo_state import go_on, ppo_identity, state_of
from .rollout import ROLLOUT_FILTERS, Experience, MiniBatch
from .sampler import Sampler
from .watch import IterationRow, experience_figures, mean_of_updates, update_figures

Watcher = Callable[["PPOTrainer"], None]


class PPOTrainer:
    """`train()` runs all iterations of `settings` and returns the log, one dictionary an iteration.

    tasks: what is asked; score: what an answer is worth (`helpers/rewards/scoring.py`,
    `reward_model.as_scorer`, sums of them); truth: another scorer of the same answers that nothing
    is learnt from. `model` gets a fresh adapter unless it has one to go on with. reference: the
    name of a frozen adapter on it that KL is measured against; None: the base with adapters off.

    watch: called after each iteration with the trainer; its `stopped` ends the run, and with its
    `is_broken` the state of that iteration is not kept. folder: of this run alone, gets the whole
    state after every `checkpoint_every` iterations; a trainer that finds it goes on as if it had
    never stopped. A folder of another run is refused, or with `replace_other` set aside. cache: a
    folder for image features. packs: all answers to a task in one row, or a row each; None tries
    whether the model can.
    """

    # what watchers say
    stopped = False
    is_broken = False

    def __init__(
        self,
        model: VLM,
        processor: ProcessorMixin,
        tasks: Sequence[Task],
        score: Scorer,
        settings: PPOSettings,
        *,
        seed: int = 0,
        reference: str | None = None,
        truth: Scorer | None = None,
        watch: Sequence[Watcher] = (),
        folder: Path | None = None,
        replace_other: bool = False,
        cache: Path | None = None,
        packs: bool | None = None,
    ):
        # policy and critic have a pass each, in which the other one's weights are not used
        accelerator = new_accelerator("PPO", find_unused_parameters=settings.critic_adapter)
        shards = max(settings.shards, accelerator.num_processes)
        check_names(settings)
        require_plain_texts(processor, texts_of_tasks(tasks))
        settings.check(len(tasks), shards, accelerator.num_processes)
        # what run it is depends on the model as it comes in
        made_of = (model, processor, tasks, score, settings, seed, reference)
        identity = ppo_identity(*made_of) if folder else {}
        self.checkpoints = Checkpoints(folder, identity, replace_other=replace_other)
        # a model that has an adapter goes on with it, as a second round does
        if not isinstance(model, PeftModel):
            model = models.add_adapter(model, settings.lora, seed)
        seed_everything(seed)
        # image features are kept, and answers to one task share its prompt
        packer = Packer(model, processor, cache=cache, packs=packs, device=accelerator.device)
        self.settings, self.accelerator = settings, accelerator
        # who asks and scores, who answers and predicts, and what one backward pass goes through
        self.sampler = Sampler(packer, tasks, score, truth, settings, accelerator, seed, shards)
        self.actor = ActorCritic(model, processor, settings, seed, accelerator.autocast, reference)
        self.forward = wrap_for_processes(accelerator, self.actor)
        self.optimizer = new_optimizer(accelerator, self.actor)
        self.kl = AdaptiveKL(settings.kl_weight, settings.kl_target, settings.kl_horizon)
        self.watch = watch
        # one row an iteration; what the last one saw is for the watchers
        self.log: list[IterationRow] = []
        self.last: Experience | None = None
        go_on(self)

    @alone_in_its_folder
    def train(self, iterations: int | None = None) -> list[IterationRow]:
        """Run all iterations that are left, or so many of them; returns the log."""
        settings, accelerator = self.settings, self.accelerator
        actor, method = self.actor, ADVANTAGES[settings.advantages]
        for iteration in self._count_iterations(iterations):
            started = time.perf_counter()

            # 1. Sample: the policy answers each question a few times, a scorer rates the answers.
            rollout = self.sampler.sample(iteration)
            scores = rollout.scores.to(accelerator.device)
            kept = ROLLOUT_FILTERS[settings.rollout_filter](rollout).to(accelerator.device)

            # 2. Look: what policy, reference and critic say of every token before any update.
            actor.start_at(float(mean_over_processes(accelerator, scores.mean())))
            seen = actor.look(self.sampler.slices(rollout))

            # 3. Reward: the price of KL at every token, and the score at an answer's last one.
            kl = KL_ESTIMATORS[settings.kl_estimator](seen.old_logps - seen.reference_logps)
            price = 0.0 if method.kl_in_loss else self.kl.weight
            rewards = losses.token_rewards(scores, kl, seen.mask, price)

            # 4. Advantage: was it better than expected? Without a critic, the mean was expected.
            if seen.values is None:
                expected = mean_over_processes(accelerator, rewards.sum(1).mean())
                seen = seen._replace(values=expected * seen.mask)
            learnt = seen.mask & kept[:, None]
            mean = partial(token_mean_over_processes, accelerator)
            advantages, returns = method.estimate(rewards, seen.values, learnt, settings, mean)
            self.last = Experience(rollout, *seen, learnt, rewards, advantages, returns)

            # The same answers serve for several updates.
            updates: list[IterationRow] = []
            actor.start_updates()
            set_learning_rates(self.optimizer, settings, iteration)
            for batch in self.sampler.mini_batches(self.last, iteration):
                # 5. Policy update: what was better than expected becomes likelier, within a clip.
                new = self.forward(batch.packed)
                loss, policy = policy_loss(new, batch, settings, self.kl.weight)
                if not updates:
                    check_first_ratio(policy, batch.mask, self.tolerance)

                # 6. Critic update: values are drawn to the returns. A head on the policy's states
                # has had its pass; a critic with an adapter of its own has one of its own.
                if actor.own_adapter:
                    accelerator.backward(loss)
                    with actor.as_critic():
                        own = self.forward(batch.packed, critic=True)
                        value = critic_loss(own, batch, settings)
                        accelerator.backward(settings.value_weight * value)
                else:
                    value = critic_loss(new.values, batch, settings)
                    accelerator.backward(loss + settings.value_weight * value)
                norms = take_step(accelerator, self.optimizer, settings.max_grad_norm)
                updates.append(update_figures(policy, value, norms))
            self._end_iteration(updates, time.perf_counter() - started)
        self.model.eval()
        return self.log

    def _count_iterations(self, most: int | None) -> Iterator[int]:
        """Numbers of the next iterations, on a progress bar, until a watcher says stop."""
        end = self.settings.iterations
        if most is not None:
            end = min(end, self.iteration + most)
        bar = tqdm(
            total=end,
            initial=self.iteration,
            desc=self.settings.advantages,
            disable=not self.accelerator.is_main_process or None,  # None: where it is no terminal
        )
        while self.iteration < end and not self.stopped:
            yield self.iteration
            # here the iteration is done, and its row is in the log
            row = self.log[-1]
            bar.set_postfix(score=f"{row['objective/scores']:.3f}", kl=f"{row['objective/kl']:.2f}")
            bar.update()
        bar.close()

    def _end_iteration(self, updates: Sequence[IterationRow], seconds: float) -> None:
        """Write the iteration down, let watchers look, and keep the state of the run."""
        settings, accelerator = self.settings, self.accelerator
        done = self.iteration + 1
        answers = settings.prompts_per_iteration * settings.group_size
        # what was sampled, and how the updates on it went
        row = experience_figures(self.last)
        row["objective/kl_weight"] = self.kl.weight
        row["critic"] = self.actor.critic is not None
        row |= mean_of_updates(updates)
        # each process has looked at its own answers
        row = mean_rows(accelerator, row)
        row["samples"] = done * answers
        row["iteration"] = done
        row["seconds"] = self.seconds + seconds
        row["tokens_per_second"] = row["tokens"] / seconds
        if not updates and accelerator.is_main_process:
            print(
                f"⚠️  Iteration {done}: rollout_filter={settings.rollout_filter!r} left no answer "
                "to learn from, so all weights stay as they are."
            )
        # the price of KL follows its target
        self.kl.update(row["objective/kl"], answers)
        self.log.append(row)
        for look in self.watch:
            look(self)
        # after the watchers: one that stops the run has its say in the state, too
        is_due = done % settings.checkpoint_every == 0 or done == settings.iterations
        if is_due and not self.is_broken:
            accelerator.wait_for_everyone()
            self.checkpoints.save(done, state_of(self))

    @property
    def model(self) -> PeftModel:
        return self.actor.policy

    @property
    def tolerance(self) -> float:
        """How far rounding may take the ratio of a token from 1."""
        return self.settings.ratio_tolerance or tolerances_of(self.model).nats

    @property
    def iteration(self) -> int:
        """How many iterations are done."""
        return len(self.log)

    @property
    def seconds(self) -> float:
        """What all iterations took, without the watchers."""
        return self.log[-1]["seconds"] if self.log else 0.0


def policy_loss(
    new: TokenFigures, batch: MiniBatch, settings: PPOSettings, kl_weight: float
) -> tuple[Tensor, PolicyLoss]:
    """What the policy minimises, (), and the figures of its clipped part.

    Sums over tokens are divided by `batch.count`, so that processes together have the mean.
    """
    clipped = POLICY_LOSSES[settings.policy_loss]
    policy = clipped(
        new.logps, batch.old_logps, batch.advantages, batch.mask, settings.clip, batch.count
    )
    # what PPO, RLOO and GRPO share; below is what the settings add
    loss = policy.loss
    if settings.entropy_weight:
        # a bonus for a policy that keeps trying other tokens
        bonus = losses.masked_mean(new.entropy, batch.mask, batch.count)
        loss = loss - settings.entropy_weight * bonus
    if ADVANTAGES[settings.advantages].kl_in_loss and kl_weight:
        # GRPO: the price of KL is paid here, by the estimate that is never negative
        kl = losses.k3(new.logps - batch.reference_logps)
        loss = loss + kl_weight * losses.masked_mean(kl, batch.mask, batch.count)
    return loss, policy


def critic_loss(values: Tensor | None, batch: MiniBatch, settings: PPOSettings) -> Tensor:
    """What the critic minimises, (); 0 without a critic."""
    if values is None:
        return torch.zeros((), device=batch.count.device)
    return losses.clipped_value_loss(
        values, batch.values, batch.returns, batch.mask, settings.value_clip, batch.count
    )


def new_optimizer(accelerator: Accelerator, actor: ActorCritic) -> AcceleratedOptimizer:
    """Adam for the adapter of the policy and for the critic, each with its own learning rate."""
    settings, weights = actor.settings, actor.trainable_parameters()
    # one group each: the learning rate may fall, its peak stays on record
    peaks = {"adapter": settings.learning_rate, "critic": settings.critic_learning_rate}
    groups = [
        {"name": name, "params": weights[name], "lr": peak, "peak": peak}
        for name, peak in peaks.items()
    ]
    adamw = torch.optim.AdamW(groups, weight_decay=0.0, eps=settings.adam_epsilon)
    return accelerator.prepare(adamw)


def set_learning_rates(
    optimizer: AcceleratedOptimizer, settings: PPOSettings, iteration: int
) -> None:
    """Let both learning rates fall linearly to 0, if the settings say so."""
    left = 1 - iteration / settings.iterations if settings.anneal_lr else 1.0
    for group in optimizer.param_groups:
        group["lr"] = left * group["peak"]


def take_step(
    accelerator: Accelerator, optimizer: AcceleratedOptimizer, max_norm: float
) -> dict[str, float]:
    """Clip the gradients of policy and critic to `max_norm` each, and step; returns their norms.

    What gets no gradient stays as it is. If a norm is not finite, nothing moves.
    """
    # gradients of fp16 are scaled up; their norm is of those that are not
    accelerator.unscale_gradients(optimizer)
    norms = {}
    for group in optimizer.param_groups:
        norm = float(nn.utils.clip_grad_norm_(group["params"], max_norm))
        norms[group["name"]] = norm
        if norm == 0:
            # Adam's momentum would move weights without a gradient
            for weight in group["params"]:
                weight.grad = None
    # fp16's scaler leaves such a step out by itself, and lowers its scale
    is_finite = all(map(math.isfinite, norms.values()))
    if is_finite or accelerator.scaler is not None:
        optimizer.step()
    optimizer.zero_grad()
    return norms


def check_first_ratio(policy: PolicyLoss, mask: Tensor, tolerance: float) -> None:
    """Raise RuntimeError if the policy is not the one that sampled, before any update.

    tolerance: of the ratio of one token. Rounding of many, True in `mask`, cancels in their mean.
    Answers that do not belong to their probabilities may cancel, too, but not in the estimate of
    KL, which is about half the square of a small log-ratio.
    """
    allowed = tolerance / max(float(mask.sum()), 1.0) ** 0.5
    if abs(policy.ratio - 1) > allowed or policy.approx_kl > tolerance * allowed / 2:
        raise RuntimeError(
            f"the ratio of new to old probability is {policy.ratio:.4f} before any update, not "
            f"1.000 (KL {policy.approx_kl:.2g} nats a token; rounding explains {allowed:.2g}): "
            "sampled answers and their log-probabilities do not belong together."
        )


def check_names(settings: PPOSettings) -> None:
    """Raise UsageError for a name that is in no table, listing those that are."""
    tables = {
        "advantages": ADVANTAGES,
        "policy_loss": POLICY_LOSSES,
        "rollout_filter": ROLLOUT_FILTERS,
        "kl_estimator": KL_ESTIMATORS,
    }
    for setting, table in tables.items():
        name = getattr(settings, setting)
        if name not in table:
            raise UsageError(f"{setting}={name!r}: choose from {', '.join(table)}.")
    if ADVANTAGES[settings.advantages].compares_answers and settings.group_size < 2:
        raise UsageError(
            f"{settings.advantages} compares the answers to one prompt: set group_size to 2 or "
            "more."
        )
