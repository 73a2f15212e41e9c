"""What can be wrong with a run of PPO, RLOO or GRPO, and the rules that say so.

`diagnose_ppo(log, settings)` is a pure function of what a run logs: what is wrong now. `replay_ppo`
reads a saved log from its start and says when each verdict began and ended.
`helpers/doctor/ppo_doctor.py` calls them while a run goes on. Taught in notebook 05.

Most limits are against the run's own start, since rewards have no scale. The `step` of a finding is
an iteration. Simplifications: answers and iterations count as independent, and intervals are of
95 % at every look.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from helpers.config import PPOSettings
from helpers.statistics import Mean, proportion
from helpers.training import IterationRow

from .dpo_rules import ENTROPY_LEFT, REPETITION_GROWTH, mean_of
from .verdicts import (
    Course,
    Look,
    Reading,
    Rule,
    Rules,
    Verdict,
    ask_rules,
    faults_of,
    read_kinds,
    verdicts_of,
)

# Iterations, and answers in them, at least
START_SPAN = (1, 16)  # before any update
RECENT_SPAN = (3, 48)
WINDOW_SPAN = (10, 160)

SCORE_FALL = 0.5  # of the score at the start
FALL_NOISE = 4  # times the change from one iteration to the next
KL_NATS = 50  # an answer. Healthy: 16 at one peak, else 7
KL_GROWTH = 3  # times the start
KL_TARGETS = 3  # times the target
STILL_KL = 0.01  # nats an answer from the reference
STILL_STEP = 1e-6  # nats a token from the iteration before,
STILL_ROUNDINGS = 2  # or so many times what rounding alone gives
NO_ADVANTAGE = 1e-6  # mean size
ALL_EQUAL = 0.95  # share of prompts with equal scores
CUT_SHARE = 0.1  # of answers
# A critic that explains less than a twentieth of the returns is as good as a constant
EXPLAINED_FLOOR = 0.05
# Of the best iteration: with a score of 0 or 1 there is little left to learn from
NEAR_TOP = 0.85
NORM_ITERATIONS = 3  # since an fp16 scaler halves itself first

PPO_KINDS = read_kinds("ppo")
# each explains those after it
PPO_CONSEQUENCES = ("fixed advantages", "advantages zero", "KL flat zero", "nothing learnt")


class PPOHistory(NamedTuple):
    """A log by its parts; one that is not there yet is empty."""

    log: Sequence[IterationRow]
    settings: PPOSettings
    answers: int  # in an iteration
    start: Sequence[IterationRow]  # before the policy has moved
    recent: Sequence[IterationRow]  # a quick look
    # two long looks that do not overlap, half of the log each if that is shorter
    first: Sequence[IterationRow]
    last: Sequence[IterationRow]
    span: int  # of a quick look
    whole: bool  # are both long looks as long as they should be?

    @property
    def log_in_time(self) -> Sequence[IterationRow]:
        """The log, once a quarter of the run is over and the long looks are whole."""
        early = len(self.log) < self.settings.iterations / 4
        return () if early or not self.whole else self.log

    @property
    def critic_rows(self) -> Sequence[IterationRow]:
        """The last long look at a critic; where all returns are equal nothing is explained."""
        if not self.whole or self.settings.advantages != "gae" or not self.log[-1]["critic"]:
            return ()
        known = [row for row in self.last if math.isfinite(row["ppo/explained_variance"])]
        return known if len(known) > 1 else ()

    def extent(self, part: str) -> tuple[int, int]:
        """Iterations so far, and how many of them the rules of a part look back."""
        n = len(self.log)
        if part not in ("critic_rows", "log_in_time", "first"):
            return n, self.span
        # after the last iteration there is no further look to wait for
        return n, len(self.last) if n < self.settings.iterations else 0

    def start_and_recent(self, key: str) -> tuple[float, float]:
        return _mean(self.start, key), _mean(self.recent, key)

    def is_lately_within(self, key: str, low: float, high: float) -> bool:
        return all(low < row[key] < high for row in self.recent)


def _mean(rows: Sequence[IterationRow], key: str) -> float:
    return float(np.mean([row[key] for row in rows]))


def _iterations(span: tuple[int, int], size: int) -> int:
    """Iterations of a look at (iterations, answers) at least; size: answers in an iteration."""
    return max(span[0], math.ceil(span[1] / size))


def _history(log: Sequence[IterationRow], settings: PPOSettings) -> PPOHistory:
    size = settings.prompts_per_iteration * settings.group_size
    n = len(log)
    start = _iterations(START_SPAN, size)
    recent = _iterations(RECENT_SPAN, size)
    window = _iterations(WINDOW_SPAN, size)
    half = min(window, n // 2) if n >= window else 0
    return PPOHistory(
        log,
        settings,
        size,
        log[:start] if n >= start else (),
        log[-recent:] if n >= recent else (),
        log[:half],
        log[n - half :],
        recent,
        half == window,
    )


def look_ppo(log: Sequence[IterationRow], settings: PPOSettings) -> Look:
    """What the rules say of the run now.

    `log` comes from the trainer, or from its JSON file, where what is no number is None.
    """
    if not log:
        return {}
    rows = []
    for row in log:
        rows.append({name: math.nan if n is None else n for name, n in row.items()})
    run = _history(rows, settings)
    broken = _non_finite_value(run)
    return {"not finite": Reading(broken)} if broken else ask_rules(run, PPO_RULES)


def diagnose_ppo(log: Sequence[IterationRow], settings: PPOSettings) -> list[Verdict]:
    """Find what is wrong with the run now, the worst first."""
    faults = faults_of(look_ppo(log, settings))
    return verdicts_of(faults, PPO_KINDS, PPO_CONSEQUENCES, _step(log))


def _step(log: Sequence[IterationRow]) -> int:
    return int(log[-1].get("iteration", len(log))) if log else 0


def follow_ppo(log: Sequence[IterationRow], settings: PPOSettings) -> Course:
    """Look at a log after each of its iterations, as a doctor does while the run goes on."""
    course = Course(PPO_KINDS, PPO_CONSEQUENCES)
    for end in range(1, len(log) + 1):
        course.follow(look_ppo(log[:end], settings), _step(log[:end]))
    return course


def replay_ppo(log: Sequence[IterationRow], settings: PPOSettings) -> list[Verdict]:
    """Find what was wrong at any time: when each verdict began, and when it ended."""
    return follow_ppo(log, settings).verdicts


def _non_finite_value(run: PPOHistory) -> str | None:
    """Say which number is none; explained variance is NaN where all returns are equal."""
    for name, value in run.log[-1].items():
        parts = ("objective/", "ppo/loss/", "ppo/policy/", "ppo/advantages/")
        if name.startswith(parts) and not math.isfinite(value):
            return f"{name} is {value}."
    rows = run.log[-NORM_ITERATIONS:]
    norms = [row["grad_norm/adapter"] + row["grad_norm/critic"] for row in rows]
    if len(norms) == NORM_ITERATIONS and not np.isfinite(norms).any():
        return f"the gradient norm was not finite in {NORM_ITERATIONS} iterations in a row."


# A rule gets the run and the part of it that PPO_RULES names. It returns what it measured if that
# is a fault, else None. A function `…_now` says how it is when the fault is gone.

# --- a collapse ---


def _score_falls(run, recent):
    start, score = run.start_and_recent("objective/scores")
    changes = np.abs(np.diff([row["objective/scores"] for row in run.log]))
    if score < start - max(SCORE_FALL * abs(start), FALL_NOISE * np.median(changes)):
        return f"the score is {score:.3g}, and was {start:.3g} at the start."


def _answers_repeat(run, recent):
    few, repeats = run.start_and_recent("answers/repeated")
    if repeats > few + REPETITION_GROWTH:
        return (
            f"{repeats:.0%} of the answers' 3-grams are repeats, and {few:.0%} were at the start."
        )


def _one_answer_to_all(run, recent):
    prompts = run.settings.prompts_per_iteration
    many, distinct = (share * run.answers for share in run.start_and_recent("answers/distinct"))
    if prompts > 1 and distinct < 1.5 and many >= max(3, prompts / 2):
        return f"one answer to all of {prompts} prompts, where {many:.0f} differed at the start."


def _entropy_is_gone(run, recent):
    start, score = run.start_and_recent("objective/scores")
    usual, entropy = run.start_and_recent("objective/entropy")
    if entropy < ENTROPY_LEFT * usual and score <= start:
        return (
            f"the entropy is {entropy:.2g} nats a token, and was {usual:.2g}; "
            "the score has not risen."
        )


def _policy_now(run, recent):
    start, score = run.start_and_recent("objective/scores")
    distinct = _mean(recent, "answers/distinct") * run.answers
    return (
        f"the score is {score:.3g}, and was {start:.3g} at the start; "
        f"{_mean(recent, 'answers/repeated'):.0%} of the answers' 3-grams are repeats, "
        f"{distinct:.0f} of {run.answers} answers differ, "
        f"the entropy is {_mean(recent, 'objective/entropy'):.2g} nats a token."
    )


# --- the end of answers, and the way from the reference ---


def _cut_share(run, rows):
    answers = len(rows) * run.answers
    return proportion(_mean(rows, "answers/not_ended") * answers, answers)


def _answers_are_cut(run, start):
    """More than at the start, or more than half."""
    first = _cut_share(run, start)
    now = _cut_share(run, run.recent or start)
    if now.low > min(0.5, max(first.high, CUT_SHARE)):
        return f"share that is cut off: {now}; at the start {first.value:.0%}."


def _cut_now(run, start):
    return f"share that is cut off: {_cut_share(run, run.recent or start)}."


def _kl_runs_away(run, recent):
    start, now = run.start_and_recent("objective/kl")
    target = run.settings.kl_target
    limit = max(KL_TARGETS * target if target else KL_NATS, KL_GROWTH * start)
    if run.is_lately_within("objective/kl", limit, math.inf):
        return (
            f"it is {now:.3g} nats an answer, over {limit:.3g}, and was {start:.3g} at the start."
        )


def _policy_stands_still(run, recent):
    near_reference = run.is_lately_within("objective/kl", -STILL_KL, STILL_KL)
    # before any update it is what rounding gives, in 16 bits more than nothing
    rounding = max(row.get("ppo/policy/approxkl_first", 0.0) for row in recent)
    still = max(STILL_STEP, STILL_ROUNDINGS * rounding)
    if near_reference and run.is_lately_within("ppo/policy/approxkl", -1, still):
        kl = _mean(recent, "objective/kl")
        norm = _mean(recent, "grad_norm/adapter")
        return f"{kl:.1g} nats an answer; the gradient is {norm:.2g}."


def _kl_now(run, recent):
    return f"it is {_mean(recent, 'objective/kl'):.3g} nats an answer."


# --- advantages ---


def _one_answer_is_whitened(run, log):
    settings = run.settings
    if settings.advantages == "gae" and settings.whiten and run.answers == 1:
        size = log[-1]["ppo/advantages/size"]
        return (
            f"one answer, whitened by itself: scores of 0.1 and 10 train alike (size {size:.2g})."
        )


def _is_solved(run):
    """All right at last is no fault: the score rose, or all score the same and near the top."""
    if _change(run.start, run.recent).low > 0:
        return True
    varied, equal = run.start_and_recent("groups/zero_variance")
    start, score = run.start_and_recent("objective/scores")
    best = max(row["objective/scores"] for row in run.log)
    return varied <= ALL_EQUAL < equal and score > max(start, NEAR_TOP * best)


def _advantages_are_zero(run, recent):
    score = _mean(recent, "objective/scores")
    if run.is_lately_within("ppo/advantages/size", -1, NO_ADVANTAGE) and not _is_solved(run):
        size = recent[-1]["ppo/advantages/size"]
        return f"their mean size is {size:.1g}; the mean score is {score:.3g}."


def _groups_are_equal(run, recent):
    settings = run.settings
    equal = _mean(recent, "groups/zero_variance")
    if settings.advantages != "gae" and equal > ALL_EQUAL and not _is_solved(run):
        return f"at {equal:.0%} of the prompts all {settings.group_size} answers score the same."


def _advantages_now(run, recent):
    size = _mean(recent, "ppo/advantages/size")
    equal = _mean(recent, "groups/zero_variance")
    return (
        f"their mean size is {size:.2g}; at {equal:.0%} of the prompts all answers score the same; "
        f"the mean score is {_mean(recent, 'objective/scores'):.3g}."
    )


# --- long looks, because a critic starts as a constant and single iterations are noisy ---


def _critic_learns_nothing(run, known):
    explained = mean_of(known, "ppo/explained_variance")
    if explained.high < EXPLAINED_FLOOR:
        return f"it explains {explained} of the returns' variance; a constant explains 0."


def _critic_now(run, known):
    return f"it explains {mean_of(known, 'ppo/explained_variance')} of the returns' variance."


def _rise(run):
    """How the score changed over the whole run, by the comparison that shows most.

    The last long look with the start and with the first long look, which sees a late rise; and
    in a long run its last quarter with its first, which sees a slow one.
    """
    changes = [_change(run.start, run.last), _change(run.first, run.last)]
    quarter = len(run.log) // 4
    if quarter > len(run.last):
        changes.append(_change(run.log[:quarter], run.log[-quarter:]))
    return max(changes, key=lambda change: change.low)


def _score_does_not_rise(run, log):
    since = _rise(run)
    score = _mean(run.last, "objective/scores")
    best = max(row["objective/scores"] for row in log)
    # the share of an answer's likeliest score
    alike = _mean(run.last, "groups/zero_variance") ** (1 / run.settings.group_size)
    is_at_top = alike >= NEAR_TOP and score >= NEAR_TOP * best > 0
    if since.low <= 0 and not is_at_top:
        return f"the score is {score:.3g}; it rose by {since}, which may be 0{_best_stretch(run)}."


def _best_stretch(run):
    """Where between start and end the score was best: what was learnt may be lost again."""
    length = len(run.last)
    scores = [row["objective/scores"] for row in run.log]
    means = np.convolve(scores, np.ones(length) / length, "valid")
    place = int(means.argmax())
    if not length <= place < len(means) - length:
        return ""
    return (
        f"; at its best, in iterations {place + 1} to {place + length}, it was {means[place]:.3g}"
    )


def _score_now(run, log):
    score = _mean(run.last, "objective/scores")
    since = _rise(run)
    if since.low > 0:
        return f"the score has risen by {since}, to {score:.3g}."
    return f"the score is {score:.3g}, and nearly all answers get the best one."


def _reward_is_hacked(run, first):
    if "objective/truth" not in run.log[0]:
        return None
    score = _change(first, run.last)
    truth = _change(first, run.last, "objective/truth")
    if score.low > 0 and truth.high < 0:
        return f"the score rose by {score}, while the one only watched changed by {truth}."


def _truth_now(run, first):
    score = _change(first, run.last)
    truth = _change(first, run.last, "objective/truth")
    return f"the score changed by {score}, the one only watched by {truth}."


def _change(
    before: Sequence[IterationRow],
    after: Sequence[IterationRow],
    key: str = "objective/scores",
) -> Mean:
    """Mean change with its interval.

    A start too short for an interval is assumed to vary as much as the end does.
    """
    now = mean_of(after, key)
    was = _mean(before, key)
    half = now.high - now.value
    half_before = half * math.sqrt(len(after) / len(before))
    if len(before) > 2:
        half_before = mean_of(before, key).high - was
    half = math.hypot(half, half_before)
    change = now.value - was
    return Mean(change, change - half, change + half)


# What a kind is found by: the part of a run to look at, how it is now, and the rules, of which the
# first counts
PPO_RULES: Rules = {
    "collapse": Rule(
        "recent",
        _policy_now,
        (_score_falls, _answers_repeat, _one_answer_to_all, _entropy_is_gone),
    ),
    "answers do not end": Rule("start", _cut_now, (_answers_are_cut,)),
    "KL runaway": Rule("recent", _kl_now, (_kl_runs_away,)),
    "KL flat zero": Rule("recent", _kl_now, (_policy_stands_still,)),
    "fixed advantages": Rule("log", _advantages_now, (_one_answer_is_whitened,)),
    "advantages zero": Rule("recent", _advantages_now, (_advantages_are_zero, _groups_are_equal)),
    "value head not learning": Rule("critic_rows", _critic_now, (_critic_learns_nothing,)),
    "nothing learnt": Rule("log_in_time", _score_now, (_score_does_not_rise,)),
    "reward hacking": Rule("first", _truth_now, (_reward_is_hacked,)),
}
