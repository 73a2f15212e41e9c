"""What can be wrong with a DPO run, and the rules that say so.

`diagnose_dpo(run)` is a pure function of what a run leaves: TRL's log, sampled answers and a census of the
gradients; `replay_dpo` does the same to a saved log. `helpers/doctor/dpo_doctor.py` collects the three while a
run goes on. What can be seen before the first step, `preflight` finds. Taught in notebook 04.

A finding needs a difference that is large, not only one that is sure; most limits are multiples of
the run's own start. Simplifications: steps count as independent, intervals are of 95 % at every look,
and the figures do not tell causes apart, so that these are listed by how often they are to blame.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np

from helpers.statistics import Mean, Proportion, mean_interval, proportion
from helpers.training.reward import MAX_OVERFLOWS

from .verdicts import Symptoms, Verdict, read_kinds

START_ROWS, RECENT_ROWS, WINDOW_ROWS = (
    2,
    5,
    20,
)  # rows of the log: before the first step can tell, a quick look, a long one
MIN_MARGIN = 0.1  # a margin of 0.1 takes the loss from 0.693 to 0.644: less than that at the end is no training
WRONG_MARGIN = 0.5  # a margin of −0.5 is a loss of 0.974, which no noise around ln 2 gives
LOSS_GROWTH, GRADIENT_GROWTH = 2, 10  # times the start; healthy runs: under 1 and 2
GRADIENT_LEFT = 0.02  # of the start: what is left moves nothing; healthy runs keep 0.045
ENTROPY_GROWTH, ENTROPY_LEFT = 1.5, 0.05  # times the start; healthy runs: 0.5 to 1.05; of PPO: 0.3
ENTROPY_FLOOR = 0.05  # nats a token: an answer of 20 tokens then has 1 nat in all: about e = 2.7 different answers
SINK_NATS, SINK_SHARE = (
    1.0,
    0.1,
)  # chosen answers e times less likely, and by a tenth of their log-probability
ACCURACY_GAP = 0.05  # token accuracy may not be so far under exp(−entropy), its least value if the model is calibrated
CENSUS_STEPS = 5  # LoRA's A has no gradient while B = 0, which lasts for two steps with a warm-up
LENGTH_GROWTH = 2  # times the length at the start
REPETITION_GROWTH = 0.25  # more repeated 3-grams than at the start; healthy runs of PPO: under 0.02
SIGHT_NATS, SIGHT_LEFT = (
    0.1,
    0.1,
)  # an answer e^0.1 = 1.1 times likelier with its own image; share of the start
CUT_LENGTH = (
    0.9  # of the token limit: an answer tokenised again may be a little shorter than it was sampled
)

DPO_KINDS = read_kinds("dpo")

LogRow = Mapping[str, float]


@dataclass(frozen=True)
class AnswerSample:
    """Answers sampled at temperature 1 to a fixed set of held-out images; sequences have one item an answer."""

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
    norm: float  # of the gradient at this step, after clipping
    types: tuple[str, ...]


class Census(NamedTuple):
    step: int
    towers: Mapping[
        str, Tower
    ]  # "vision", "connector" and "language", as far as they should be trained


@dataclass(frozen=True)
class DPOHistory:
    """What is known of a run so far."""

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


def mean_of(rows: Sequence[LogRow], key: str) -> Mean:
    return mean_interval([row[key] for row in rows])


def _start_value(rows: Sequence[LogRow], key: str) -> float:
    """The highest value at the start, since two rows have no interval to speak of."""
    return max((row[key] for row in rows[:START_ROWS] if math.isfinite(row[key])), default=math.inf)


def diagnose_dpo(run: DPOHistory) -> list[Verdict]:
    """Find what is wrong with the run now, the worst first."""
    with np.errstate(all="ignore"):
        found = dict(non_finite_values(run)) or dict(
            problem for rule in DPO_RULES for problem in rule(run)
        )
    return [
        Verdict(kind, run.step, found[kind], *DPO_KINDS[kind])
        for kind in DPO_KINDS
        if kind in found
    ]


def replay_dpo(run: DPOHistory) -> list[Verdict]:
    """What was wrong at any time: each kind at the step at which it would first have been seen."""
    first: dict[str, Verdict] = {}
    for end in range(len(run.log) + 1):
        past = replace(run, log=run.log[:end], census=run.census if end == len(run.log) else None)
        past = replace(past, samples=[sample for sample in run.samples if sample.step <= past.step])
        first = {verdict.kind: verdict for verdict in diagnose_dpo(past)} | first
    return sorted(first.values(), key=lambda verdict: verdict.step)


def non_finite_values(run: DPOHistory) -> Symptoms:
    """The trainer logs the mean of earlier losses in place of one that is not a number; TRL's metrics do not."""
    keys = ("rewards/margins", "logps/chosen", "logps/rejected", "loss")
    wrong = [
        f"{key} is {run.rows[-1][key]}"
        for key in keys
        if run.rows and not math.isfinite(run.rows[-1][key])
    ]
    norms = [row.get("grad_norm", 0.0) for row in run.rows[-MAX_OVERFLOWS:]]
    if len(norms) == MAX_OVERFLOWS and not np.isfinite(norms).any():
        wrong.append(f"the gradient norm was not finite for {MAX_OVERFLOWS} steps in a row")
    if wrong:
        yield "not finite", f"{wrong[0]}."


def _learning(run: DPOHistory) -> Symptoms:
    """Does the margin go anywhere, and does it come out on the right side?"""
    rows, steps = run.rows, run.steps or run.step
    if len(rows) < WINDOW_ROWS or run.step < steps / 4:
        return
    recent = rows[-max(WINDOW_ROWS, len(rows) // 4) :]
    margin, spread = (
        mean_of(recent, "rewards/margins"),
        np.var([row["rewards/margins"] for row in recent]),
    )
    size = math.sqrt(
        margin.value**2 + run.pairs * spread
    )  # of one pair; the mean of several spreads less
    moved = [
        row for row in recent if row["rewards/margins"] != 0
    ]  # equal rewards are logged as wrong
    right = (
        proportion(run.pairs * sum(r["rewards/accuracies"] for r in moved), run.pairs * len(moved))
        if moved
        else None
    )
    rates = [row.get("learning_rate", 0.0) for row in rows]
    left = len(rows) * (
        steps / run.step - 1
    )  # rows to come; margins grow with the sum of learning rates at most
    reach = size * (1 + left * max(rates) / sum(rates) if any(rates) else steps / run.step)
    if not moved:
        yield "nothing learnt", f"the margin was exactly 0 in all of the last {len(recent)} rows."
    elif reach < MIN_MARGIN:
        advice = (
            f"; a learning rate of about {max(rates) / reach:.0e} would bring them to 1"
            if any(rates)
            else ""
        )
        yield (
            "too slow",
            f"margins are about {size:.1g} and will be {reach:.1g} by step {steps}{advice}.",
        )
    elif margin.low <= 0 <= margin.high:
        yield (
            "nothing learnt",
            f"the margin is {margin}, which may be 0; pairs preferred the right way: {right}.",
        )
    elif right.low <= 0.5:
        yield (
            "chance accuracy",
            f"pairs preferred the right way: {right}, not above one half; the margin is {margin}.",
        )


def _divergence(run: DPOHistory) -> Symptoms:
    recent = run.rows[-RECENT_ROWS:]
    if len(recent) < RECENT_ROWS:
        return
    margin, loss, first = (
        mean_of(recent, "rewards/margins"),
        mean_of(recent, "loss"),
        _start_value(run.rows, "loss"),
    )
    if margin.high < -WRONG_MARGIN:
        yield "diverging", f"the policy prefers the rejected answers, with a margin of {margin}."
    elif loss.low > LOSS_GROWTH * first:
        yield "diverging", f"the loss is {loss}, and was {first:.3g} at the start."


def _gradient_norm(run: DPOHistory) -> Symptoms:
    """Medians, since single batches give single peaks."""
    rows = [row for row in run.rows if math.isfinite(row.get("grad_norm", math.nan))]
    start, norms = (
        _start_value(rows, "grad_norm"),
        [row["grad_norm"] for row in rows[-WINDOW_ROWS:]],
    )
    if (
        len(norms) >= RECENT_ROWS
        and (norm := np.median(norms[-RECENT_ROWS:])) > GRADIENT_GROWTH * start
    ):
        yield "gradient explodes", f"its norm is {norm:.3g}, and was {start:.3g} at the start."
    all_right = min((row["rewards/accuracies"] for row in rows[-WINDOW_ROWS:]), default=0) == 1
    if (
        len(norms) == WINDOW_ROWS
        and all_right
        and (norm := np.median(norms)) < GRADIENT_LEFT * start
    ):
        held_out = [
            row["eval_rewards/accuracies"] for row in run.log if "eval_rewards/accuracies" in row
        ][-1:]
        also = f"; of the held-out pairs {held_out[0]:.0%} are" if held_out else ""
        pairs = f"all of the last {WINDOW_ROWS * run.pairs} pairs are preferred the right way{also}"
        yield "saturated", f"{pairs}, and the gradient is down to {norm / start:.1%} of the start."


def _likelihood_displacement(run: DPOHistory) -> Symptoms:
    """Likelihood displacement (Razin et al. 2024, arXiv 2410.08847), against the reference on the same pairs."""
    recent = run.rows[-RECENT_ROWS:]
    if len(recent) < RECENT_ROWS:
        return
    chosen, rejected = mean_of(recent, "rewards/chosen"), mean_of(recent, "rewards/rejected")
    reference = mean_of(recent, "logps/chosen").value - chosen.value / run.beta
    if chosen.high / run.beta < -max(SINK_NATS, SINK_SHARE * abs(reference)) and rejected.high < 0:
        falls = f"chosen ones by {-chosen.value / run.beta:.1f} nats, rejected ones by {-rejected.value / run.beta:.1f}"
        yield "chosen sinks", f"both answers get less likely than under the reference: {falls}."


def _tokens(run: DPOHistory) -> Symptoms:
    """Entropy and accuracy of the next token, on the answers of the data."""
    rows = [row for row in run.rows if "entropy" in row and "mean_token_accuracy" in row]
    if len(rows) < RECENT_ROWS:
        return
    first, now = _start_value(rows, "entropy"), mean_of(rows[-RECENT_ROWS:], "entropy")
    if now.low > max(ENTROPY_GROWTH * first, ENTROPY_FLOOR) or now.high < ENTROPY_LEFT * first:
        yield "entropy", f"it is {now} nats a token, and was {first:.2g} at the start."
    right, least = (
        mean_of(rows[:RECENT_ROWS], "mean_token_accuracy"),
        math.exp(-mean_of(rows[:RECENT_ROWS], "entropy").value),
    )
    if right.high + ACCURACY_GAP < least:
        yield (
            "foreign text",
            f"at first the model was {least:.0%} sure of a next token, and {right.value:.0%} were right.",
        )


def _answers(run: DPOHistory) -> Symptoms:
    """The last sample against the first, which is of the base if it was taken at step 0."""
    if not run.samples:
        return
    first, last = run.samples[0], run.samples[-1]
    sight, before = float(np.mean(last.sight)), float(np.mean(first.sight))
    if last.cut_share.low > (0.5 if last is first else first.cut_share.high):
        example = repr(last.answers[0][:60])
        yield (
            "answers do not end",
            f"share cut off at {last.limit} tokens: {last.cut_share}, e.g. {example}.",
        )
    if sight < max(SIGHT_NATS, 0 if last is first else SIGHT_LEFT * before):
        yield (
            "blind",
            f"its own image makes an answer {sight:.2g} nats likelier than another (first {before:.2g}).",
        )
    if len(set(last.answers)) == 1 < len(last.answers) <= 2 * len(set(first.answers)):
        yield "one answer", f"{last.answers[0][:60]!r} to all of {len(last.answers)} images."
    length, usual = np.mean(last.tokens), np.mean(first.tokens)
    repeats, usual_repeats = np.mean(last.repeated), np.mean(first.repeated)
    if not usual / LENGTH_GROWTH <= length <= LENGTH_GROWTH * usual:
        yield "answers fall apart", f"they have {length:.0f} tokens, and had {usual:.0f} at first."
    elif repeats > usual_repeats + REPETITION_GROWTH:
        yield (
            "answers fall apart",
            f"{repeats:.0%} of their 3-grams are repeats, and {usual_repeats:.0%} were at first.",
        )


def _gradients(run: DPOHistory) -> Symptoms:
    for name, tower in run.census.towers.items() if run.census else ():
        if run.census.step >= CENSUS_STEPS and tower.reached < tower.tensors:
            missed = f"{tower.tensors - tower.reached} of {tower.tensors}"
            yield (
                "no gradient",
                f"{missed} tensors of the {name} part get none, or are not the optimizer's.",
            )
        if set(tower.types) != {"float32"}:
            yield (
                "low precision",
                f"weights of the {name} part are trained in {', '.join(tower.types)}.",
            )


DPO_RULES = (
    _learning,
    _divergence,
    _gradient_norm,
    _likelihood_displacement,
    _tokens,
    _answers,
    _gradients,
)
