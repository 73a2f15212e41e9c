"""Watches a run of `helpers/training/ppo.py`, says once what is wrong, and stops it when there is no use in going on.

`PPODoctor` examines the log after each iteration (the rules are in `helpers/doctor/ppo_rules.py`) and now and then
the samples: tokens that are trained are decoded and scored again, and each score must be on the last of its answer's
tokens. Taught in notebook 05.

Simplifications: "one answer" is that of a single process, and a scorer that never says the same twice cannot be checked.
"""

from collections.abc import Sequence

import numpy as np
import torch
from accelerate.utils import gather_object
from torch import Tensor

from helpers import losses
from helpers.config import PPOSettings
from helpers.models import answer_texts
from helpers.rewards import score_all
from helpers.training import ADVANTAGES, PPOTrainer

from .ppo_rules import SCORE_TOLERANCE, _verdicts, diagnose_ppo, replay_ppo
from .verdicts import panel_html


def find_misplaced_rewards(trainer: PPOTrainer) -> str:
    """Find rewards of the last iteration that are at the wrong place or for the wrong tokens; "" if there are none."""
    seen, settings = trainer.last, trainer.settings
    packed = seen.rollout.pack(trainer.sampler.packer)
    ids, mask = packed.ids[:, 1:], packed.mask[:, 1:]
    names = (
        "old_logps",
        "reference_logps",
        "values",
        "entropy",
        "rewards",
        "advantages",
        "returns",
    )
    outside = [name for name in names if getattr(seen, name)[~seen.mask].any()]
    if outside or not torch.equal(mask, seen.mask):
        return f"{', '.join(outside) or 'the mask'}: not 0 outside of the tokens that are trained."
    in_loss = ADVANTAGES[settings.advantages].kl_in_loss
    weight = 0.0 if in_loss else trainer.log[-1]["objective/kl_weight"]
    penalty = weight * losses.KL_ESTIMATORS[settings.kl_estimator](
        seen.old_logps - seen.reference_logps
    )
    wrong = _check_reward_places(
        seen.rollout.scores.to(mask.device), seen.rewards, penalty, mask.sum(1)
    )
    return wrong or _check_trained_tokens(
        trainer, [row[own] for row, own in zip(ids, mask, strict=True)]
    )


def _check_reward_places(scores: Tensor, rewards: Tensor, penalty: Tensor, lengths: Tensor) -> str:
    """Check that rewards (answers, longest) without the KL penalty are the score at the last token and 0 elsewhere."""
    left = rewards + penalty
    wanted = torch.zeros_like(left).scatter(1, lengths[:, None] - 1, scores[:, None])
    wrong = (
        ((left - wanted).abs() > SCORE_TOLERANCE + 1e-5 * penalty.abs())
        .any(1)
        .nonzero()
        .flatten()
        .tolist()
    )
    if not wrong:
        return ""
    row = wrong[0]
    total, place = (
        float(rewards[row].sum()),
        f"token {int(left[row].abs().argmax()) + 1} of {int(lengths[row])}",
    )
    due = f"and should to {float(scores[row] - penalty[row].sum()):.3g}, and the largest is at {place}"
    return f"the rewards of answer {row + 1} sum to {total:.3g} {due} ({len(wrong)} so)."


def _check_trained_tokens(trainer: PPOTrainer, ids: Sequence[Tensor]) -> str:
    """Score the tokens that are trained again; if that differs, twice, since some scorers do not repeat themselves."""
    rollout, stops = (
        trainer.last.rollout,
        torch.tensor(trainer.model.generation_config.eos_token_id),
    )
    texts = answer_texts(trainer.sampler.packer.processor, ids)
    pairs = [
        pair
        for pair in zip(rollout.tasks, rollout.images, strict=True)
        for _ in range(rollout.group_size)
    ]
    rows = [
        task.scorer_inputs(images, text) for (task, images), text in zip(pairs, texts, strict=True)
    ]
    cut = (
        torch.tensor([not torch.isin(row[-1].cpu(), stops) for row in ids]).float()
        * trainer.settings.no_end_penalty
    )
    found = torch.tensor([score.total for score in score_all(trainer.sampler.score, rows)]) - cut
    wrong = (
        (found - rollout.scores)
        .abs()
        .gt(SCORE_TOLERANCE * (1 + rollout.scores.abs()))
        .nonzero()
        .flatten()
        .tolist()
    )
    if not wrong or not np.allclose(
        found + cut,
        [s.total for s in score_all(trainer.sampler.score, rows)],
        SCORE_TOLERANCE,
        SCORE_TOLERANCE,
    ):
        return ""
    says = f"the tokens of answer {wrong[0] + 1} say {texts[wrong[0]][:60]!r}, worth {found[wrong[0]]:.3g}"
    return f"{says}, and got {rollout.scores[wrong[0]]:.3g} ({len(wrong)} so)."


class PPODoctor:
    """For `PPOTrainer(watch=[doctor])`; the samples are examined at its first iteration and at every `every`-th."""

    def __init__(self, every: int = 10) -> None:
        self.every, self.verdicts, self.settings, self.row = every, [], PPOSettings(), {}

    @torch.no_grad()
    def __call__(self, trainer: PPOTrainer) -> None:
        look, known = (
            not self.row or trainer.iteration % self.every == 0,
            {verdict.kind for verdict in self.verdicts},
        )
        self.row, self.settings = trainer.log[-1], trainer.settings
        groups = [
            name
            for name, weights in trainer.actor.trainable_parameters().items()
            if not all(bool(weight.isfinite().all()) for weight in weights)
        ]
        found = (
            {"not finite": f"the last update broke weights of: {', '.join(groups)}."}
            if groups
            else {}
        )
        if (
            look
            and not groups
            and (wrong := "".join(gather_object([find_misplaced_rewards(trainer)])))
        ):
            found["scores misplaced"] = wrong
        verdicts = [
            *_verdicts(found, trainer.iteration),
            *diagnose_ppo(trainer.log, trainer.settings),
        ]
        new = {verdict.kind: verdict for verdict in verdicts if verdict.kind not in known}.values()
        self.verdicts += new
        trainer.stopped |= any(verdict.severity == "stop" for verdict in new)
        for verdict in new if trainer.accelerator.is_main_process else ():
            print(f"⚠️  {verdict}")

    def go_on(self, trainer: PPOTrainer) -> None:
        """Read what a run that goes on has shown before in its log; one that was stopped stays so."""
        self.row, self.settings = trainer.log[-1], trainer.settings
        self.verdicts = replay_ppo(trainer.log, trainer.settings)
        trainer.stopped |= any(verdict.severity == "stop" for verdict in self.verdicts)

    def state(self) -> str:
        """One line: how far the run is and how it does."""
        if not (row := self.row):
            return "No iteration yet."
        kinds = ", ".join(verdict.kind for verdict in self.verdicts) or "healthy so far"
        done = f"Iteration {row['iteration']:.0f} of {self.settings.iterations}, {kinds}"
        return f"{done}: score {row['objective/scores']:.3g}, KL {row['objective/kl']:.2g} nats an answer."

    def _repr_html_(self) -> str:
        return panel_html(self.state(), self.verdicts)
