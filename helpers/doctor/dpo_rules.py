"""What can be wrong with a DPO run, and the rules that say so.

`diagnose_dpo(run)` is a pure function of what a run leaves: TRL's log, sampled answers and a census
of the gradients. `helpers/doctor/dpo_doctor.py` collects the three while a run goes on. What can be
seen before the first step, `preflight` finds. Taught in notebook 04.

A finding needs a difference that is large, not only one that is sure; most limits are multiples of
the run's own start. Simplifications: steps count as independent, intervals are of 95 % at every
look, and the figures do not tell causes apart, so that these are listed by how often they are to
blame.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from helpers.statistics import Mean, Proportion, mean_interval, proportion
from helpers.training.reward import MAX_OVERFLOWS

from .verdicts import Rules, Verdict, apply_rules, read_kinds, verdicts_of

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
    limit: int  # max_new_tokens

    @property
    def cut_share(self) -> Proportion:
        """Share of the answers that used up the limit instead of ending."""
        return proportion(sum(n >= CUT_LENGTH * self.limit for n in self.tokens), len(self.tokens))


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


def _at_least(number: int, rows: Sequence[LogRow]) -> Sequence[LogRow]:
    return rows if len(rows) >= number else ()


def mean_of(rows: Sequence[LogRow], key: str) -> Mean:
    """The mean of a figure of the log, with its interval."""
    return mean_interval([row[key] for row in rows])


def _start_value(rows: Sequence[LogRow], key: str) -> float:
    """The highest value at the start, since two rows have no interval to speak of."""
    return max((row[key] for row in rows[:START_ROWS] if math.isfinite(row[key])), default=math.inf)


def diagnose_dpo(run: DPOHistory) -> list[Verdict]:
    """Find what is wrong with the run now, the worst first."""
    broken = non_finite_value(run)
    with np.errstate(all="ignore"):
        found = {"not finite": broken} if broken else apply_rules(run, DPO_RULES)
    return verdicts_of(found, DPO_KINDS, LEARNING_CHAIN, run.step)


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
# is a fault, else None.

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


# --- entropy and accuracy of the next token, on the answers of the data ---


def _entropy_changes(run, rows):
    first = _start_value(rows, "entropy")
    now = mean_of(rows[-RECENT_ROWS:], "entropy")
    if now.low > max(ENTROPY_GROWTH * first, ENTROPY_FLOOR) or now.high < ENTROPY_LEFT * first:
        return f"it is {now} nats a token, and was {first:.2g} at the start."


def _is_sure_and_wrong(run, rows):
    right = mean_of(rows[:RECENT_ROWS], "mean_token_accuracy")
    least = math.exp(-mean_of(rows[:RECENT_ROWS], "entropy").value)
    if right.high + ACCURACY_GAP < least:
        return (
            f"at first the model was {least:.0%} sure of a next token, "
            f"and {right.value:.0%} were right."
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


def _answers_repeat(run, samples):
    usual, repeats = (np.mean(sample.repeated) for sample in (samples[0], samples[-1]))
    if repeats > usual + REPETITION_GROWTH:
        return f"{repeats:.0%} of their 3-grams are repeats, and {usual:.0%} were at first."


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


# What a kind is found by: the part of a run to look at, and the rules, of which the first counts
DPO_RULES: Rules = {
    "too slow": ("late", _margin_is_too_slow),
    "nothing learnt": ("late", _margin_is_zero, _margin_may_be_zero),
    "chance accuracy": ("late", _accuracy_is_chance),
    "diverging": ("recent", _rejected_is_preferred, _loss_grows),
    "chosen sinks": ("recent", _chosen_sinks),
    "gradient explodes": ("with_norms", _gradient_explodes),
    "saturated": ("with_norms", _gradient_is_gone),
    "entropy": ("with_tokens", _entropy_changes),
    "foreign text": ("with_tokens", _is_sure_and_wrong),
    "answers do not end": ("samples", _answers_are_cut),
    "blind": ("samples", _image_does_not_matter),
    "one answer": ("samples", _one_answer_to_all),
    "answers fall apart": ("samples", _length_changes, _answers_repeat),
    "no gradient": ("census", _gradient_is_missing),
    "low precision": ("census", _precision_is_low),
}
