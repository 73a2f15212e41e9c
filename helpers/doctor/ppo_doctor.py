"""Watches a run of `helpers/training/ppo.py`, says what is wrong, and stops it if need be.

`PPODoctor` examines the log after each iteration (the rules are in `helpers/doctor/ppo_rules.py`)
and now and then the samples: tokens that are trained are decoded and scored again, and each score
must be on the last of its answer's tokens. Taught in notebook 05.

Simplifications: "one answer" is that of a single process, and a scorer that never says the same
twice cannot be checked.
"""

from collections.abc import Sequence

import torch
from accelerate.utils import gather_object
from torch import Tensor

from helpers import losses
from helpers.config import PPOSettings
from helpers.models import answer_texts
from helpers.rewards import score_all
from helpers.runtime import TOLERANCES, tolerances_of
from helpers.training import ADVANTAGES, PPOTrainer

from .ppo_rules import PPO_CONSEQUENCES, PPO_KINDS, follow_ppo, look_ppo
from .verdicts import Reading, RunDoctor, verdict_kinds

# what is 0 outside of the tokens that are trained
TOKEN_FIGURES = (
    "old_logps",
    "reference_logps",
    "values",
    "entropy",
    "rewards",
    "advantages",
    "returns",
)


def find_misplaced_rewards(trainer: PPOTrainer) -> str:
    """Find rewards of the last iteration that are at the wrong place or for the wrong tokens.

    "" if there are none.
    """
    seen = trainer.last
    settings = trainer.settings
    packed = seen.rollout.pack(trainer.sampler.packer)
    mask = packed.mask[:, 1:]
    outside = [name for name in TOKEN_FIGURES if getattr(seen, name)[~seen.mask].any()]
    if outside or not torch.equal(mask, seen.mask):
        return f"{', '.join(outside) or 'the mask'}: not 0 outside of the tokens that are trained."
    # GRPO has its penalty in the loss, not in the rewards
    in_loss = ADVANTAGES[settings.advantages].kl_in_loss
    weight = 0.0 if in_loss else trainer.log[-1]["objective/kl_weight"]
    kl = losses.KL_ESTIMATORS[settings.kl_estimator](seen.old_logps - seen.reference_logps)
    scores = seen.rollout.scores.to(mask.device)
    wrong = _check_reward_places(scores, seen.rewards, weight * kl, mask.sum(1))
    ids = [row[own] for row, own in zip(packed.ids[:, 1:], mask, strict=True)]
    return wrong or _check_trained_tokens(trainer, ids)


def _places(wrong: Tensor) -> list[int]:
    """Numbers of the answers that are wrong, (answers,) bool."""
    return wrong.nonzero().flatten().tolist()


def _check_reward_places(scores: Tensor, rewards: Tensor, penalty: Tensor, lengths: Tensor) -> str:
    """Check that rewards are the score at the last token and 0 elsewhere, but for the KL penalty.

    scores, lengths: (answers,); rewards, penalty: (answers, longest).
    """
    left = rewards + penalty
    wanted = torch.zeros_like(left).scatter(1, lengths[:, None] - 1, scores[:, None])
    # all in fp32; rounding grows with what was added
    allowed = TOLERANCES[torch.float32].score + 1e-5 * penalty.abs()
    wrong = _places(((left - wanted).abs() > allowed).any(1))
    if not wrong:
        return ""
    row = wrong[0]
    total = float(rewards[row].sum())
    due = float(scores[row] - penalty[row].sum())
    place = int(left[row].abs().argmax()) + 1
    return (
        f"the rewards of answer {row + 1} sum to {total:.3g} and should to {due:.3g}, "
        f"and the largest is at token {place} of {int(lengths[row])} ({len(wrong)} so)."
    )


def _check_trained_tokens(trainer: PPOTrainer, ids: Sequence[Tensor]) -> str:
    """Score the tokens that are trained again.

    If that differs, twice, since some scorers do not repeat themselves.
    """
    rollout = trainer.last.rollout
    texts = answer_texts(trainer.sampler.packer.processor, ids)
    rows = []
    for number, text in enumerate(texts):
        # the answers to one prompt stand together
        prompt = number // rollout.group_size
        rows.append(rollout.tasks[prompt].scorer_inputs(rollout.images[prompt], text))
    # an answer that was cut off paid a penalty
    stops = torch.tensor(trainer.model.generation_config.eos_token_id)
    is_cut = torch.tensor([not torch.isin(row[-1].cpu(), stops) for row in ids])
    paid = is_cut.float() * trainer.settings.no_end_penalty

    def score() -> Tensor:
        totals = [score.total for score in score_all(trainer.sampler.score, rows)]
        return torch.tensor(totals) - paid

    # a reward model reads them in other batches than before
    found, tolerance = score(), tolerances_of(trainer.model).score
    allowed = tolerance * (1 + rollout.scores.abs())
    wrong = _places((found - rollout.scores).abs() > allowed)
    if not wrong or not torch.allclose(found, score(), tolerance, tolerance):
        return ""
    row = wrong[0]
    return (
        f"the tokens of answer {row + 1} say {texts[row][:60]!r}, worth {found[row]:.3g}, "
        f"and got {rollout.scores[row]:.3g} ({len(wrong)} so)."
    )


class PPODoctor(RunDoctor):
    """For `PPOTrainer(watch=[doctor])`.

    The samples are examined at the first iteration, of a run that goes on as well, and at every
    `every`-th.
    """

    def __init__(self, every: int = 10) -> None:
        super().__init__(PPO_KINDS, PPO_CONSEQUENCES)
        self.every = every
        self.settings = PPOSettings()
        self.row = {}
        self.has_looked = False  # at samples

    @torch.no_grad()
    def __call__(self, trainer: PPOTrainer) -> None:
        looks = not self.has_looked or trainer.iteration % self.every == 0
        self.row = trainer.log[-1]
        self.settings = trainer.settings
        look = look_ppo(trainer.log, trainer.settings)
        broken = []
        for name, weights in trainer.actor.trainable_parameters().items():
            if not all(bool(weight.isfinite().all()) for weight in weights):
                broken.append(name)
        if broken:
            fault = f"the last update broke weights of: {', '.join(broken)}."
            look.setdefault("not finite", Reading(fault))
        elif looks:
            # every process looks at its own samples
            wrong = "".join(gather_object([find_misplaced_rewards(trainer)]))
            self.has_looked = True
            if wrong:
                look["scores misplaced"] = Reading(wrong)
        self.tell(look, trainer.iteration, aloud=trainer.accelerator.is_main_process)
        trainer.is_broken |= self._stops()
        trainer.stopped |= trainer.is_broken

    def _stops(self) -> bool:
        return any(verdict.severity == "stop" for verdict in self.course.open)

    def go_on(self, trainer: PPOTrainer) -> None:
        """Read from its log what a run that goes on has shown before; a stopped one stays so."""
        self.row = trainer.log[-1]
        self.settings = trainer.settings
        self.course = follow_ppo(trainer.log, trainer.settings)
        trainer.stopped |= self._stops()

    def state(self) -> str:
        """One line: how far the run is and how it does."""
        row = self.row
        if not row:
            return "No iteration yet."
        kinds = verdict_kinds(self.verdicts, "healthy so far")
        return (
            f"Iteration {row['iteration']:.0f} of {self.settings.iterations}, {kinds}: "
            f"score {row['objective/scores']:.3g}, KL {row['objective/kl']:.2g} nats an answer."
        )
