"""What can be wrong with a run of PPO, RLOO or GRPO, and the rules that say so.

`diagnose_ppo(log, settings)` is a pure function of what a run logs, and `replay_ppo` does the same to a saved
log. `helpers/doctor/ppo_doctor.py` calls them while a run goes on. Taught in notebook 05.

Most limits are against the run's own start, since rewards have no scale. The `step` of a finding is an iteration.
Simplifications: answers and iterations count as independent, and intervals are of 95 % at every look.
"""

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from helpers.config import PPOSettings
from helpers.statistics import Mean, proportion
from helpers.training import IterationRow

from .dpo_rules import ENTROPY_LEFT, REPETITION_GROWTH, mean_of
from .verdicts import Symptoms, Verdict, read_kinds

START_SPAN, RECENT_SPAN, WINDOW_SPAN = (
    (1, 16),
    (3, 48),
    (10, 160),
)  # iterations, and answers in them, at least; 1 is before any update

SCORE_FALL, FALL_NOISE = (
    0.5,
    4,
)  # of the score at the start, and times the change from one iteration to the next

KL_NATS, KL_GROWTH, KL_TARGETS = (
    50,
    3,
    3,
)  # an answer; times the start or the target. Healthy: 16 at one peak, else 7

STILL_KL, STILL_STEP = (
    0.01,
    1e-6,
)  # nats an answer from the reference, and nats a token from the iteration before

NO_ADVANTAGE, ALL_EQUAL, CUT_SHARE = (
    1e-6,
    0.95,
    0.1,
)  # mean size; share of prompts with equal scores, of answers cut off

EXPLAINED_FLOOR = (
    0.05  # a critic that explains less than a twentieth of the returns is as good as a constant
)

NEAR_TOP = 0.85  # of the best iteration: with a score of 0 or 1 there is little left to learn from

NORM_ITERATIONS, SCORE_TOLERANCE = (
    3,
    1e-3,
)  # iterations, since an fp16 scaler halves itself first; of a score that is computed twice

PPO_KINDS = read_kinds("ppo")

EXPLAINED_BY_CHAIN = (
    "fixed advantages",
    "advantages zero",
    "KL flat zero",
    "nothing learnt",
)  # each explains those after it


class PPOHistory(NamedTuple):
    """A log by its parts; one that is not there yet is empty."""

    log: Sequence[IterationRow]
    settings: PPOSettings
    answers: int  # in an iteration
    start: Sequence[IterationRow]  # before the policy has moved
    recent: Sequence[IterationRow]  # a quick look
    first: Sequence[IterationRow]  # two long looks that do not overlap
    last: Sequence[IterationRow]
    whole: bool  # are both as long as they should be?

    def start_and_recent(self, key: str) -> tuple[float, float]:
        return _mean(self.start, key), _mean(self.recent, key)

    def is_lately_within(self, key: str, low: float, high: float) -> bool:
        return all(low < row[key] < high for row in self.recent)


def _mean(rows: Sequence[IterationRow], key: str) -> float:
    return float(np.mean([row[key] for row in rows]))


def _history(log: Sequence[IterationRow], settings: PPOSettings) -> PPOHistory:
    size, n = settings.prompts_per_iteration * settings.group_size, len(log)
    start, recent, window = (
        max(rows, math.ceil(answers / size))
        for rows, answers in (START_SPAN, RECENT_SPAN, WINDOW_SPAN)
    )
    half = min(window, n // 2) if n >= window else 0
    parts = (
        log[: start * (n >= start)],
        log[n - recent * (n >= recent) :],
        log[:half],
        log[n - half :],
    )
    return PPOHistory(log, settings, size, *parts, whole=half == window)


def diagnose_ppo(log: Sequence[IterationRow], settings: PPOSettings) -> list[Verdict]:
    """Find what is wrong with the run now, the worst first; `log` comes from the trainer or its JSON file."""
    if not log:
        return []
    log = [
        {name: math.nan if value is None else value for name, value in row.items()} for row in log
    ]
    run = _history(log, settings)
    symptoms = dict(_non_finite_values(run)) or dict(
        symptom for rule in PPO_RULES for symptom in rule(run)
    )
    return _verdicts(symptoms, int(log[-1].get("iteration", len(log))))


def _verdicts(symptoms: Mapping[str, str], step: int) -> list[Verdict]:
    explained = [kind for kind in EXPLAINED_BY_CHAIN if kind in symptoms][1:]
    return [
        Verdict(kind, step, symptoms[kind], *PPO_KINDS[kind])
        for kind in PPO_KINDS
        if kind in symptoms and kind not in explained
    ]


def replay_ppo(log: Sequence[IterationRow], settings: PPOSettings) -> list[Verdict]:
    """Find what was wrong at any time: each kind at the first iteration at which it would have been seen."""
    first: dict[str, Verdict] = {}
    for end in range(1, len(log) + 1):
        first = {verdict.kind: verdict for verdict in diagnose_ppo(log[:end], settings)} | first
    return sorted(first.values(), key=lambda verdict: verdict.step)


def _non_finite_values(run: PPOHistory) -> Symptoms:
    """Explained variance is left out: it is NaN where all returns are equal."""
    row, parts = run.log[-1], ("objective/", "ppo/loss/", "ppo/policy/", "ppo/advantages/")
    wrong = [
        f"{name} is {row[name]}"
        for name in row
        if name.startswith(parts) and not math.isfinite(row[name])
    ]
    norms = [
        row["grad_norm/adapter"] + row["grad_norm/critic"] for row in run.log[-NORM_ITERATIONS:]
    ]
    if len(norms) == NORM_ITERATIONS and not np.isfinite(norms).any():
        wrong.append(f"the gradient norm was not finite in {NORM_ITERATIONS} iterations in a row")
    if wrong:
        yield "not finite", f"{wrong[0]}."


def _collapse(run: PPOHistory) -> Symptoms:
    if not run.recent:
        return
    names = ("objective/scores", "answers/repeated", "answers/distinct", "objective/entropy")
    (start, score), (few, repeats), (many, distinct), (usual, entropy) = map(
        run.start_and_recent, names
    )
    noise = np.median(np.abs(np.diff([row["objective/scores"] for row in run.log])))
    prompts, many = run.settings.prompts_per_iteration, many * run.answers
    if score < start - max(SCORE_FALL * abs(start), FALL_NOISE * noise):
        yield "collapse", f"the score is {score:.3g}, and was {start:.3g} at the start."
    elif repeats > few + REPETITION_GROWTH:
        yield (
            "collapse",
            f"{repeats:.0%} of the answers' 3-grams are repeats, and {few:.0%} were at the start.",
        )
    elif prompts > 1 and distinct * run.answers < 1.5 and many >= max(3, prompts / 2):
        yield (
            "collapse",
            f"one answer to all of {prompts} prompts, where {many:.0f} differed at the start.",
        )
    elif entropy < ENTROPY_LEFT * usual and score <= start:
        yield (
            "collapse",
            f"the entropy is {entropy:.2g} nats a token, and was {usual:.2g}; the score has not risen.",
        )


def _ends(run: PPOHistory) -> Symptoms:
    """Report answers that do not end: more than at the start, or more than half."""
    if not (rows := run.recent or run.start):
        return
    sizes = [
        (_mean(part, "answers/not_ended"), len(part) * run.answers) for part in (run.start, rows)
    ]
    first, now = (proportion(share * n, n) for share, n in sizes)
    if now.low > min(0.5, max(first.high, CUT_SHARE)):
        yield "answers do not end", f"share that is cut off: {now}; at the start {first.value:.0%}."


def _kl(run: PPOHistory) -> Symptoms:
    if not run.recent:
        return
    target, (start, now) = run.settings.kl_target, run.start_and_recent("objective/kl")
    limit = max(KL_TARGETS * target if target else KL_NATS, KL_GROWTH * start)
    if run.is_lately_within("objective/kl", limit, math.inf):
        yield (
            "KL runaway",
            f"it is {now:.3g} nats an answer, over {limit:.3g}, and was {start:.3g} at the start.",
        )
    near_reference = run.is_lately_within("objective/kl", -STILL_KL, STILL_KL)
    if near_reference and run.is_lately_within("ppo/policy/approxkl", -1, STILL_STEP):
        yield (
            "KL flat zero",
            f"{now:.1g} nats an answer; the gradient is {_mean(run.recent, 'grad_norm/adapter'):.2g}.",
        )


def _advantages(run: PPOHistory) -> Symptoms:
    settings, size = run.settings, run.log[-1]["ppo/advantages/size"]
    if settings.advantages == "gae" and settings.whiten and run.answers == 1:
        yield (
            "fixed advantages",
            f"one answer, whitened by itself: scores of 0.1 and 10 train alike (size {size:.2g}).",
        )
    if not run.recent or _change(run.start, run.recent).low > 0:  # all at the top is no fault
        return
    (varied, equal), (start, score) = map(
        run.start_and_recent, ("groups/zero_variance", "objective/scores")
    )
    if varied <= ALL_EQUAL < equal and score > max(
        start, NEAR_TOP * max(r["objective/scores"] for r in run.log)
    ):
        return  # solved
    if run.is_lately_within("ppo/advantages/size", -1, NO_ADVANTAGE):
        yield "advantages zero", f"their mean size is {size:.1g}; the mean score is {score:.3g}."
    elif settings.advantages != "gae" and equal > ALL_EQUAL:
        yield (
            "advantages zero",
            f"at {equal:.0%} of the prompts all {settings.group_size} answers score the same.",
        )


def _learning(run: PPOHistory) -> Symptoms:
    """Compare long windows, because a critic starts as a constant and single iterations are noisy."""
    settings, log = run.settings, run.log
    if not run.whole:
        return
    critic, key = settings.advantages == "gae" and log[-1]["critic"], "ppo/explained_variance"
    known = [row for row in run.last if critic and math.isfinite(row[key])]
    if len(known) > 1 and (explained := mean_of(known, key)).high < EXPLAINED_FLOOR:
        yield (
            "value head not learning",
            f"it explains {explained} of the returns' variance; a constant explains 0.",
        )
    rise, since = _change(run.start, run.last), _change(run.first, run.last)
    score, best = _mean(run.last, "objective/scores"), max(row["objective/scores"] for row in log)
    # the share of an answer's likeliest score
    alike = _mean(run.last, "groups/zero_variance") ** (1 / settings.group_size)
    top = alike >= NEAR_TOP and score >= NEAR_TOP * best > 0
    if max(rise.low, since.low) <= 0 and not top and len(log) >= settings.iterations / 4:
        yield "nothing learnt", f"the score is {score:.3g}; it rose by {since}, which may be 0."


def _truth(run: PPOHistory) -> Symptoms:
    if run.first and "objective/truth" in run.log[0]:
        score, truth = (
            _change(run.first, run.last, f"objective/{key}") for key in ("scores", "truth")
        )
        if score.low > 0 and truth.high < 0:
            yield (
                "reward hacking",
                f"the score rose by {score}, while the one only watched changed by {truth}.",
            )


def _change(
    before: Sequence[IterationRow], after: Sequence[IterationRow], key: str = "objective/scores"
) -> Mean:
    """Mean change with its interval; a start too short for an interval is assumed to vary as much as the end does."""
    now, was = mean_of(after, key), _mean(before, key)
    half, scale = now.high - now.value, math.sqrt(len(after) / len(before))
    half = math.hypot(half, mean_of(before, key).high - was if len(before) > 2 else half * scale)
    return Mean(now.value - was, now.value - was - half, now.value - was + half)


PPO_RULES = (_collapse, _ends, _kl, _advantages, _learning, _truth)
