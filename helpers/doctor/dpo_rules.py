"""What can be wrong with a DPO run, and the rules that say so.

`diagnose_dpo(run)` is a pure function of what a run leaves: TRL's log, sampled answers and a census
of the gradients. `helpers/doctor/dpo_doctor.py` collects the three while a run goes on, and
`replay_dpo` reads a saved log from its start and says when each verdict began and ended. What can
be seen before the first step, `preflight` finds. Taught in notebook 04.

A finding needs a difference that is large, not only one that is sure; most limits are multiples of
the run's own start. Simplifications: steps count as independent, intervals are of 95 % at every
look, and the figures do not tell causes apart, so that these are listed by how often they are to
blame.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np

from helpers.statistics import Mean, Proportion, mean_interval, proportion
from helpers.training.reward import MAX_OVERFLOWS

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

START_ROWS = 2  # rows of the log before the first step can tell
RECENT_ROWS = 5  # rows of a quick look
WINDOW_ROWS = 20  # rows of a long look
# A margin of 0.1 takes the loss from 0.693 to 0.644: less than that at the end is no training
MIN_MARGIN = 0.1
WRONG_MARGIN = 0.5  # a margin of −0.5 is a loss of 0.974, which no noise around ln 2 gives
LOSS_GROWTH = 2  # times the start; healthy runs: under 1
GRADIENT_GROWTH = 10  # times the start; healthy runs: under 2
GRADIENT_LEFT = 0.02  # of the start: what is left moves nothing; healthy runs keep 0.045
ENTROPY_GROWTH = 1.5  # times the start; healthy runs: 0.5 to 1.05
ENTROPY_LEFT = 0.05  # of the start; healthy runs of PPO: 0.3
# nats a token: an answer of 20 tokens then has 1 nat in all, about e = 2.7 different answers
ENTROPY_FLOOR = 0.05
SINK_NATS = 1.0  # chosen answers e times less likely,
SINK_SHARE = 0.1  # and by a tenth of their log-probability
# Token accuracy may not be so far under exp(−entropy), its least value if the model is calibrated
ACCURACY_GAP = 0.05
CENSUS_STEPS = 5  # LoRA's A has no gradient while B = 0, which lasts two steps with a warm-up
LENGTH_GROWTH = 2  # times the length at the start
REPETITION_GROWTH = 0.25  # more repeated 3-grams than at the start; healthy runs of PPO: under 0.02
FAR_NATS = 5.0  # an answer e^5 = 148 times as likely as under the reference
FAR_SHARE = 1 / 3  # of the answers, surely: 6 of 8; healthy: at most 2
SIGHT_NATS = 0.1  # an answer e^0.1 = 1.1 times likelier with its own image
SIGHT_LEFT = 0.1  # share of the start
# of the token limit: an answer tokenised again may be a little shorter than it was sampled
CUT_LENGTH = 0.9

DPO_KINDS = read_kinds("dpo")
# each explains those after it
LEARNING_CHAIN = ("too slow", "nothing learnt", "chance accuracy")

LogRow = Mapping[str, float]


@dataclass(frozen=True)
class AnswerSample:
    """Answers sampled at temperature 1 to a fixed set of held-out images.

    Sequences have one item an answer.
    """

    step: int
    answers: Sequence[str]
    tokens: Sequence[int]  # in the text
    repeated: Sequence[float]  # share of the 3-grams of tokens that were there before
    sight: Sequence[float]  # log p(answer | its image) − log p(answer | the next image)
    logps: Sequence[float]  # log p(answer | its image) under the policy
    reference_logps: Sequence[float]  # the same under the reference
    limit: int  # max_new_tokens

    @property
    def cut_share(self) -> Proportion:
        """Share of the answers that used up the limit instead of ending."""
        return proportion(sum(n >= CUT_LENGTH * self.limit for n in self.tokens), len(self.tokens))

    @property
    def kl(self) -> Mean:
        """KL divergence of the policy from the reference, estimated on the answers, nats each."""
        return mean_interval(np.subtract(self.logps, self.reference_logps))

    def far_share(self, nats: float) -> Proportion:
        """Share of the answers that are so many nats likelier than under the reference."""
        gains = np.subtract(self.logps, self.reference_logps)
        return proportion(int((gains > nats).sum()), len(gains))


class Tower(NamedTuple):
    """Tensors of one part of the model that should be trained."""

    tensors: int
    reached: int  # that the optimizer knows and that had a gradient at some step so far
    types: Sequence[str]


class Census(NamedTuple):
    """Which weights get a gradient at a step."""

    step: int
    # "vision", "connector" and "language", as far as they should be trained
    towers: Mapping[str, Tower]


@dataclass(frozen=True)
class DPOHistory:
    """What is known of a run so far, and the parts of it that rules look at."""

    log: Sequence[LogRow]  # as TRL writes it; rows of evaluations may be among them
    pairs: int  # that one row of the log is a mean of: batch size × accumulation × processes
    beta: float
    steps: int | None = None  # planned; None: as many as were logged
    samples: Sequence[AnswerSample] = ()
    census: Census | None = None

    @property
    def rows(self) -> list[LogRow]:
        return [row for row in self.log if "rewards/margins" in row]

    @property
    def step(self) -> int:
        return int(self.rows[-1].get("step", len(self.rows))) if self.rows else 0

    @property
    def planned(self) -> int:
        return self.steps or self.step

    @property
    def late(self) -> Sequence[LogRow]:
        """A long look back, once a quarter of the run is over."""
        rows = self.rows
        if len(rows) < WINDOW_ROWS or self.step < self.planned / 4:
            return ()
        return rows[-max(WINDOW_ROWS, len(rows) // 4) :]

    @property
    def recent(self) -> Sequence[LogRow]:
        """A quick look back."""
        return _at_least(RECENT_ROWS, self.rows)[-RECENT_ROWS:]

    @property
    def with_norms(self) -> Sequence[LogRow]:
        """Rows whose gradient had a size; single overflows of an fp16 scaler have none."""
        rows = [row for row in self.rows if math.isfinite(row.get("grad_norm", math.nan))]
        return _at_least(RECENT_ROWS, rows)

    @property
    def with_tokens(self) -> Sequence[LogRow]:
        """Rows that say how the answers of the data are predicted."""
        rows = [row for row in self.rows if {"entropy", "mean_token_accuracy"} <= row.keys()]
        return _at_least(RECENT_ROWS, rows)

    def extent(self, part: str) -> tuple[int, int]:
        """Samples or rows so far, and how many of them the rules of a part look back."""
        if part == "samples":
            return len(self.samples), 1
        n = len(self.rows)
        if part != "late":
            return n, RECENT_ROWS
        # after the last step there is no further look to wait for
        return n, len(self.late) if self.step < self.planned else 0


def _at_least(number: int, rows: Sequence[LogRow]) -> Sequence[LogRow]:
    return rows if len(rows) >= number else ()


def mean_of(rows: Sequence[LogRow], key: str) -> Mean:
    """The mean of a figure of the log, with its interval."""
    return mean_interval([row[key] for row in rows])


def _start_value(rows: Sequence[LogRow], key: str) -> float:
    """The highest value at the start, since two rows have no interval to speak of."""
    return max((row[key] for row in rows[:START_ROWS] if math.isfinite(row[key])), default=math.inf)


def look_dpo(run: DPOHistory) -> Look:
    """What the rules say of the run now."""
    broken = non_finite_value(run)
    if broken:
        return {"not finite": Reading(broken)}
    with np.errstate(all="ignore"):
        return ask_rules(run, DPO_RULES)


def diagnose_dpo(run: DPOHistory) -> list[Verdict]:
    """Find what is wrong with the run now, the worst first."""
    return verdicts_of(faults_of(look_dpo(run)), DPO_KINDS, LEARNING_CHAIN, run.step)


def replay_dpo(run: DPOHistory) -> list[Verdict]:
    """Find what was wrong at any time: when each verdict began, and when it ended.

    A census is of one step, so that its rules are not asked.
    """
    course = Course(DPO_KINDS, LEARNING_CHAIN)
    steps = {0: 0}  # step → rows of the log up to it
    for place, row in enumerate(run.log, 1):
        if "rewards/margins" in row:
            steps[int(row.get("step", place))] = place
    for step, place in steps.items():
        samples = [sample for sample in run.samples if sample.step <= step]
        so_far = replace(run, log=run.log[:place], steps=run.planned, samples=samples, census=None)
        course.follow(look_dpo(so_far), step)
    return course.verdicts


def non_finite_value(run: DPOHistory) -> str | None:
    """Say which number of the last row is none, if there is one.

    The trainer logs the mean of earlier losses in place of one that is not a number; TRL's metrics
    do not.
    """
    for row in run.rows[-1:]:
        for key in ("rewards/margins", "logps/chosen", "logps/rejected", "loss"):
            if not math.isfinite(row[key]):
                return f"{key} is {row[key]}."
    norms = [row.get("grad_norm", 0.0) for row in run.rows[-MAX_OVERFLOWS:]]
    if len(norms) == MAX_OVERFLOWS and not np.isfinite(norms).any():
        return f"the gradient norm was not finite for {MAX_OVERFLOWS} steps in a row."


# A rule gets the run and the part of it that DPO_RULES names. It returns what it measured if that
# is a fault, else None. A function `…_now` says how it is when the fault is gone.

# --- does the margin go anywhere, and does it come out on the right side? ---


def _margin_is_zero(run, late):
    if not any(row["rewards/margins"] for row in late):
        return f"the margin was exactly 0 in all of the last {len(late)} rows."


def _margin_is_too_slow(run, late):
    margins = [row["rewards/margins"] for row in late]
    if not any(margins):
        return None
    # of one pair; the mean of several spreads less
    size = math.sqrt(np.mean(margins) ** 2 + run.pairs * np.var(margins))
    # margins grow with the sum of learning rates at most
    rates = [row.get("learning_rate", 0.0) for row in run.rows]
    growth = run.planned / run.step
    advice = ""
    if any(rates):
        growth = 1 + len(rates) * (growth - 1) * max(rates) / sum(rates)
    reach = size * growth
    if reach < MIN_MARGIN:
        if any(rates):
            rate = max(rates) / reach
            advice = f"; a learning rate of about {rate:.0e} would bring them to 1"
        return (
            f"margins are about {size:.1g} and will be {reach:.1g} by step {run.planned}{advice}."
        )


def _right_share(run, late):
    """Pairs preferred the right way; equal rewards are logged as wrong, so they are left out."""
    moved = [row["rewards/accuracies"] for row in late if row["rewards/margins"] != 0]
    return proportion(run.pairs * sum(moved), run.pairs * len(moved)) if moved else None


def _margin_may_be_zero(run, late):
    margin = mean_of(late, "rewards/margins")
    if margin.low <= 0 <= margin.high:
        right = _right_share(run, late)
        return f"the margin is {margin}, which may be 0; pairs preferred the right way: {right}."


def _accuracy_is_chance(run, late):
    right = _right_share(run, late)
    if right and right.low <= 0.5:
        margin = mean_of(late, "rewards/margins")
        return (
            f"pairs preferred the right way: {right}, not above one half; the margin is {margin}."
        )


def _margin_now(run, late):
    margin = mean_of(late, "rewards/margins")
    return f"the margin is {margin}; pairs preferred the right way: {_right_share(run, late)}."


def _rate_is_zero(run, recent):
    """A schedule of its own begins at 0 for one step at most: its warm-up goes on from there."""
    if all(row.get("learning_rate") == 0 for row in recent):
        return f"the learning rate was 0 in all of the last {len(recent)} rows."


def _rate_now(run, recent):
    return f"the learning rate is {recent[-1].get('learning_rate')}."


# --- does it go wrong? ---


def _rejected_is_preferred(run, recent):
    margin = mean_of(recent, "rewards/margins")
    if margin.high < -WRONG_MARGIN:
        return f"the policy prefers the rejected answers, with a margin of {margin}."


def _loss_grows(run, recent):
    loss = mean_of(recent, "loss")
    first = _start_value(run.rows, "loss")
    if loss.low > LOSS_GROWTH * first:
        return f"the loss is {loss}, and was {first:.3g} at the start."


def _median_norm(rows):
    """Medians, since single batches give single peaks."""
    return np.median([row["grad_norm"] for row in rows])


def _gradient_explodes(run, rows):
    norm = _median_norm(rows[-RECENT_ROWS:])
    start = _start_value(rows, "grad_norm")
    if norm > GRADIENT_GROWTH * start:
        return f"its norm is {norm:.3g}, and was {start:.3g} at the start."


def _gradient_is_gone(run, rows):
    late = rows[-WINDOW_ROWS:]
    share = _median_norm(late) / _start_value(rows, "grad_norm")
    all_right = len(late) == WINDOW_ROWS and min(row["rewards/accuracies"] for row in late) == 1
    if all_right and share < GRADIENT_LEFT:
        also = ""
        for row in run.log:
            if "eval_rewards/accuracies" in row:
                also = f"; of the held-out pairs {row['eval_rewards/accuracies']:.0%} are"
        return (
            f"all of the last {WINDOW_ROWS * run.pairs} pairs are preferred the right way{also}, "
            f"and the gradient is down to {share:.1%} of the start."
        )


def _chosen_sinks(run, recent):
    """Likelihood displacement (Razin et al. 2024, arXiv 2410.08847).

    Against the reference on the same pairs.
    """
    chosen = mean_of(recent, "rewards/chosen")
    rejected = mean_of(recent, "rewards/rejected")
    fall = -chosen.value / run.beta
    reference = mean_of(recent, "logps/chosen").value + fall
    limit = max(SINK_NATS, SINK_SHARE * abs(reference))
    if chosen.high / run.beta < -limit and rejected.high < 0:
        return (
            "both answers get less likely than under the reference: "
            f"chosen ones by {fall:.1f} nats, "
            f"rejected ones by {-rejected.value / run.beta:.1f}."
        )


def _loss_now(run, recent):
    return (
        f"the loss is {mean_of(recent, 'loss')}, the margin {mean_of(recent, 'rewards/margins')}."
    )


def _norm_now(run, rows):
    right = _right_share(run, rows[-WINDOW_ROWS:])
    return (
        f"its norm is {_median_norm(rows[-RECENT_ROWS:]):.3g}, "
        f"and was {_start_value(rows, 'grad_norm'):.3g} at the start; "
        f"pairs preferred the right way: {right}."
    )


def _chosen_now(run, recent):
    chosen = mean_of(recent, "rewards/chosen").value / run.beta
    rejected = mean_of(recent, "rewards/rejected").value / run.beta
    return (
        f"against the reference, chosen answers changed by {chosen:.1f} nats, "
        f"rejected ones by {rejected:.1f}."
    )


# --- entropy and accuracy of the next token, on the answers of the data ---


def _entropy_changes(run, rows):
    first = _start_value(rows, "entropy")
    now = mean_of(rows[-RECENT_ROWS:], "entropy")
    if now.low > max(ENTROPY_GROWTH * first, ENTROPY_FLOOR) or now.high < ENTROPY_LEFT * first:
        return f"it is {now} nats a token, and was {first:.2g} at the start."


def _is_sure_and_wrong(run, rows):
    """At first, and still: a model gets used to what was new to it."""
    for some in (rows[:RECENT_ROWS], rows[-RECENT_ROWS:]):
        right = mean_of(some, "mean_token_accuracy")
        least = _least_accuracy(some)
        if right.high + ACCURACY_GAP >= least:
            return None
    right = mean_of(rows[:RECENT_ROWS], "mean_token_accuracy").value
    least = _least_accuracy(rows[:RECENT_ROWS])
    return f"at first the model was {least:.0%} sure of a next token, and {right:.0%} were right."


def _least_accuracy(rows):
    return math.exp(-mean_of(rows, "entropy").value)


def _tokens_now(run, rows):
    recent = rows[-RECENT_ROWS:]
    return (
        f"it is {mean_of(recent, 'entropy')} nats a token, {_least_accuracy(recent):.0%} sure; "
        f"{mean_of(recent, 'mean_token_accuracy').value:.0%} of the next tokens are right."
    )


# --- the last sample against the first, which is of the base if it was taken at step 0 ---


def _answers_are_cut(run, samples):
    last = samples[-1]
    limit = samples[0].cut_share.high if len(samples) > 1 else 0.5
    if last.cut_share.low > limit:
        example = repr(last.answers[0][:60])
        return f"share cut off at {last.limit} tokens: {last.cut_share}, e.g. {example}."


def _image_does_not_matter(run, samples):
    sight = float(np.mean(samples[-1].sight))
    before = float(np.mean(samples[0].sight))
    limit = SIGHT_NATS
    if len(samples) > 1:
        limit = max(limit, SIGHT_LEFT * before)
    if sight < limit:
        return (
            f"its own image makes an answer {sight:.2g} nats likelier than another "
            f"(first {before:.2g})."
        )


def _one_answer_to_all(run, samples):
    answers = samples[-1].answers
    if len(set(answers)) == 1 < len(answers) <= 2 * len(set(samples[0].answers)):
        return f"{answers[0][:60]!r} to all of {len(answers)} images."


def _length_changes(run, samples):
    usual, length = (np.mean(sample.tokens) for sample in (samples[0], samples[-1]))
    if not usual / LENGTH_GROWTH <= length <= LENGTH_GROWTH * usual:
        return f"they have {length:.0f} tokens, and had {usual:.0f} at first."


def _answers_leave_the_reference(run, samples):
    """Far from the reference, and yet not nearer to the chosen answers.

    A policy that learns a new kind of answer goes as far, but then the chosen ones get likelier.
    How far is too far depends on the reference: free text varies more than one short sentence, so
    that its answers have a lower log-probability from the start.
    """
    limit = max(FAR_NATS, -float(np.mean(samples[0].reference_logps)))
    far = samples[-1].far_share(limit)
    chosen = mean_of(run.recent, "rewards/chosen").value / run.beta if run.recent else 0.0
    if far.low > FAR_SHARE and chosen < 0:
        return (
            f"{far} of its own answers are over {limit:.2g} nats likelier than under the reference "
            f"({samples[-1].kl.value:.3g} on average), and the chosen ones of the last "
            f"{RECENT_ROWS} rows {-chosen:.2g} nats less likely; "
            f"e.g. {samples[-1].answers[0][:60]!r}."
        )


def _answers_repeat(run, samples):
    usual, repeats = (np.mean(sample.repeated) for sample in (samples[0], samples[-1]))
    if repeats > usual + REPETITION_GROWTH:
        return f"{repeats:.0%} of their 3-grams are repeats, and {usual:.0%} were at first."


def _sample_now(run, samples):
    last = samples[-1]
    return (
        f"of the {len(last.answers)} answers of step {last.step} {len(set(last.answers))} differ; "
        f"they have {np.mean(last.tokens):.0f} tokens, {np.mean(last.repeated):.0%} of their "
        f"3-grams are repeats, {last.cut_share.value:.0%} are cut off, its own image makes one "
        f"{np.mean(last.sight):.2g} nats likelier than another, and they are {last.kl.value:.2g} "
        "nats likelier than under the reference."
    )


# --- the census of the gradients ---


def _gradient_is_missing(run, census):
    for name, tower in census.towers.items():
        if census.step >= CENSUS_STEPS and tower.reached < tower.tensors:
            missed = f"{tower.tensors - tower.reached} of {tower.tensors}"
            return f"{missed} tensors of the {name} part get none, or are not the optimizer's."


def _precision_is_low(run, census):
    for name, tower in census.towers.items():
        if set(tower.types) != {"float32"}:
            return f"weights of the {name} part are trained in {', '.join(tower.types)}."


def _census_now(run, census):
    parts = []
    for name, tower in census.towers.items():
        types = ", ".join(tower.types)
        parts.append(f"{tower.reached} of {tower.tensors} tensors of the {name} part ({types})")
    return f"a gradient has reached {', '.join(parts)}."


# What a kind is found by: the part of a run to look at, how it is now, and the rules, of which the
# first counts
DPO_RULES: Rules = {
    "too slow": Rule("late", _margin_now, (_margin_is_too_slow,)),
    "nothing learnt": Rule("late", _margin_now, (_margin_is_zero, _margin_may_be_zero)),
    "chance accuracy": Rule("late", _margin_now, (_accuracy_is_chance,)),
    "diverging": Rule("recent", _loss_now, (_rejected_is_preferred, _loss_grows)),
    "chosen sinks": Rule("recent", _chosen_now, (_chosen_sinks,)),
    "rate zero": Rule("recent", _rate_now, (_rate_is_zero,)),
    "gradient explodes": Rule("with_norms", _norm_now, (_gradient_explodes,)),
    "saturated": Rule("with_norms", _norm_now, (_gradient_is_gone,)),
    "entropy": Rule("with_tokens", _tokens_now, (_entropy_changes,)),
    "foreign text": Rule("with_tokens", _tokens_now, (_is_sure_and_wrong,)),
    "answers do not end": Rule("samples", _sample_now, (_answers_are_cut,)),
    "collapse": Rule("samples", _sample_now, (_answers_leave_the_reference,)),
    "blind": Rule("samples", _sample_now, (_image_does_not_matter,)),
    "one answer": Rule("samples", _sample_now, (_one_answer_to_all,)),
    "answers fall apart": Rule("samples", _sample_now, (_length_changes, _answers_repeat)),
    "no gradient": Rule("census", _census_now, (_gradient_is_missing,)),
    "low precision": Rule("census", _census_now, (_precision_is_low,)),
}
