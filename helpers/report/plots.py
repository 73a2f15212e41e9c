"""Figures: pictures of data, training curves, intervals.

Every function returns a matplotlib Figure, closed, so that a notebook shows it once.
"""

import functools
import textwrap
import time
from collections.abc import Callable, Mapping, Sequence

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from IPython.display import display
from matplotlib import font_manager
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from PIL import Image
from transformers import TrainerCallback

from helpers.evaluation import BestOfN
from helpers.statistics import Estimate, Proportion

CHOSEN_COLOR = "#1a7f5a"
REJECTED_COLOR = "#c0392b"
NEUTRAL_COLOR = "#57606a"
ACCENT_COLOR = "#2f6fb7"
# Okabe and Ito 2008: told apart by readers who see colours differently; their yellow is too pale on
# white
RUN_COLORS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#000000")
MODEL_COLORS = (
    NEUTRAL_COLOR,  # of the base, which comes first
    CHOSEN_COLOR,
    ACCENT_COLOR,
    "#8e44ad",
    "#b7791f",
    REJECTED_COLOR,
)
# the four panels of a DPO run
CURVES = {  # title: (colours of TRL's keys, level of an untrained model)
    "loss": ({"loss": ACCENT_COLOR}, None),
    "accuracy: chosen preferred": ({"rewards/accuracies": ACCENT_COLOR}, 0.5),
    "margin β · (chosen − rejected)": ({"rewards/margins": ACCENT_COLOR}, 0.0),
    "log-probability of the answers": (
        {"logps/chosen": CHOSEN_COLOR, "logps/rejected": REJECTED_COLOR},
        None,
    ),
}
# of all figures: no frames at the top and the right, no box around a legend
STYLE = {
    # a dollar sign in somebody's text begins no formula
    "text.parse_math": False,
    "figure.constrained_layout.use": True,
    "legend.frameon": False,
    "axes.spines.top": False,
    "axes.spines.right": False,
}
# Fonts of systems and packages with the letters that matplotlib's own font lacks
OTHER_FONTS = (
    "Noto Sans CJK SC", "Noto Sans CJK JP", "WenQuanYi Zen Hei", "PingFang SC", "Hiragino Sans",
    "Microsoft YaHei", "Malgun Gothic", "Arial Unicode MS", "Noto Sans", "Noto Sans Arabic",
    "Noto Sans Hebrew", "Noto Sans Devanagari", "Noto Sans Thai", "Nirmala UI", "Noto Emoji",
    "Segoe UI Symbol",
)  # fmt: skip
REDRAWN_EVERY = 3.0  # seconds, at most
FEW_POINTS = 20  # so few are drawn as dots
PALE = 0.25  # opacity of values under their running mean

Log = Sequence[Mapping[str, float]]  # a row for each step
HeldOut = Sequence[tuple[int, Proportion]]  # (step, share of right answers to held-out questions)


@functools.cache
def _fonts() -> tuple[str, ...]:
    """matplotlib's own font, and those of OTHER_FONTS that this machine has."""
    installed = set(font_manager.get_font_names())
    return ("DejaVu Sans", *(name for name in OTHER_FONTS if name in installed))


@functools.cache
def _is_drawable(letter: str) -> bool:
    """Has any of the fonts this letter? Without it matplotlib draws a box, and warns."""
    for name in _fonts():
        font = font_manager.get_font(font_manager.findfont(name))
        if font.get_char_index(ord(letter)):
            return True
    return False


def _plain(text: str) -> str:
    """Somebody's text as a figure can show it; letters that no font has are escapes, `\\u4e2d`."""
    shown = []
    for letter in text:
        if letter == "\n" or (letter.isprintable() and _is_drawable(letter)):
            shown.append(letter)
        else:
            shown.append(letter.encode("unicode_escape").decode())
    return "".join(shown)


def _styled(draw: Callable[..., Figure]) -> Callable[..., Figure]:
    @functools.wraps(draw)
    def draw_and_close(*args, **kwargs):
        with plt.rc_context({**STYLE, "font.family": list(_fonts())}):
            figure = draw(*args, **kwargs)
        plt.close(figure)
        return figure

    return draw_and_close


@_styled
def image_grid(images: Sequence[Image.Image], titles: Sequence[str], columns: int = 4) -> Figure:
    """Pictures in rows, a title over each (long lines are wrapped)."""
    # rounded up
    rows = -(-len(images) // columns)
    wrapped = []
    for title in titles:
        lines = [textwrap.fill(line, 42) for line in _plain(title).splitlines()]
        wrapped.append("\n".join(lines))
    most = max(title.count("\n") + 1 for title in wrapped)
    size = (3.2 * columns, (3.1 + 0.17 * most) * rows)
    figure, axes = plt.subplots(rows, columns, figsize=size, squeeze=False)
    for axis in axes.flat:
        axis.axis("off")
    for axis, image, title in zip(axes.flat, images, wrapped, strict=False):
        axis.imshow(image)
        axis.set_title(title, fontsize=9)
    return figure


def _draw_level(axis: Axes, level: float) -> None:
    axis.axhline(level, color=NEUTRAL_COLOR, linestyle=":", linewidth=1)


def _draw_smoothed(
    axis: Axes, steps: pd.Series, values: pd.Series, width: int, alpha: float, **style: str
) -> None:
    """Draw values pale, and their running mean over them."""
    axis.plot(steps, values, color=style["color"], alpha=alpha, linewidth=1)
    axis.plot(steps, values.rolling(width, min_periods=1).mean(), **style)


def _draw_held_out(axis: Axes, held_out: HeldOut, marks: str, label: str | None = None) -> None:
    """Draw shares over steps with their intervals."""
    steps = [step for step, _ in held_out]
    shares = pd.DataFrame([share for _, share in held_out])
    axis.vlines(steps, shares["low"], shares["high"], color=CHOSEN_COLOR, alpha=0.4, linewidth=3)
    axis.plot(steps, shares["value"], marks, color=CHOSEN_COLOR, label=label)


@_styled
def training_curves(log: Log, steps: int | None = None, held_out: HeldOut = ()) -> Figure:
    """Loss, accuracy, margin and both log-probabilities over the step, with a running mean of 5.

    held_out: (step, share of exact answers to held-out questions), for one more panel.
    """
    # a panel each, and one for held-out answers
    panels = len(CURVES) + bool(held_out)
    figure, axes = plt.subplots(1, panels, figsize=(3.75 * panels, 3.2))
    table = pd.DataFrame(log)
    for axis, (title, (colors, level)) in zip(axes, CURVES.items(), strict=False):
        for key, color in colors.items():
            label = key.split("/")[-1]
            _draw_smoothed(axis, table.index + 1, table[key], 5, 0.3, color=color, label=label)
        if level is not None:
            _draw_level(axis, level)
        if len(colors) > 1:
            axis.legend()
        axis.set(title=title)
    if held_out:
        _draw_held_out(axes[-1], held_out, "o-")
        n = held_out[0][1].n
        axes[-1].set(title=f"exact answers, {n} held-out images", ylim=(-0.03, 1.03))
    for axis in axes:
        axis.set(xlabel="step", xlim=(0, steps or len(log) + 1))
    return figure


@_styled
def reward_curves(log: Log, evaluations: Log) -> Figure:
    """Loss and accuracy of a reward model: each step with a running mean of 10, held-out dots."""
    figure, axes = plt.subplots(1, 2, figsize=(10, 3.2))
    train = pd.DataFrame(log)
    asked = pd.DataFrame(evaluations)
    for axis, key, level in zip(axes, ("loss", "accuracy"), (np.log(2), 0.5), strict=True):
        style = {"color": ACCENT_COLOR, "label": "train"}
        _draw_smoothed(axis, train["step"], train[key], 10, PALE, **style)
        axis.plot(asked["step"], asked[key], "o-", color=CHOSEN_COLOR, label="held out")
        _draw_level(axis, level)
        axis.set(title=f"{key} (dotted: a model that says nothing)", xlabel="step")
    axes[0].legend()
    return figure


@_styled
def reliability_diagram(bins: Sequence[tuple[float, float, int]]) -> Figure:
    """Accuracy over confidence, a dot for each bin, as large as its number of pairs.

    On the line is calibrated.
    """
    table = pd.DataFrame(bins, columns=["confidence", "accuracy", "pairs"])
    dots = table["confidence"], table["accuracy"]
    figure, axis = plt.subplots(figsize=(4.2, 4))
    axis.plot([0.5, 1], [0.5, 1], color=NEUTRAL_COLOR, linestyle=":")
    axis.plot(*dots, color=ACCENT_COLOR, alpha=0.4)
    # a dot shows how many pairs it stands for
    sizes = 10 + 300 * table["pairs"] / table["pairs"].sum()
    axis.scatter(*dots, s=sizes, color=ACCENT_COLOR, alpha=0.8)
    for x, y, n in bins:
        axis.annotate(f"{n}", (x, y), xytext=(4, -12), textcoords="offset points", fontsize=8)
    axis.set(xlabel="confidence σ(|gap|)", ylabel="share of right pairs")
    axis.set(xlim=(0.48, 1.02), ylim=(min(0.45, table["accuracy"].min() - 0.05), 1.04))
    return figure


@_styled
def best_of_n_curves(found: Sequence[BestOfN]) -> Figure:
    """Draw what the best of n answers scores, and how often it is right, over n.

    Scores are in deviations of single samples from their mean, so that rankers can be compared;
    bands are 95 % intervals.
    """
    known = any(own.right is not None for own in found)
    figure, axes = plt.subplots(1, 1 + known, figsize=(5 * (1 + known), 3.6))
    panels = np.atleast_1d(axes)
    for number, own in enumerate(found):
        color = RUN_COLORS[number % len(RUN_COLORS)]
        spread = own.scores.std() or 1.0
        scores = [own.score_of(n) for n in own.sizes]
        _draw_band(panels[0], own.sizes, scores, color, own.ranker, own.scores.mean(), spread)
        if own.right is not None:
            right = [own.right_of(n) for n in own.sizes]
            _draw_band(panels[1], own.sizes, right, color, own.ranker)
    panels[0].set(title="score of the best, in deviations")
    if known:
        panels[1].set(title="right answers", ylim=(0, 1.02))
    for panel in panels:
        panel.set_xscale("log", base=2)
        panel.set_xlabel("n")
        panel.xaxis.set_major_formatter("{x:.0f}")
    panels[-1].legend()
    return figure


def _draw_band(
    axis: Axes,
    places: Sequence[int],
    figures: Sequence[Estimate],
    color: str,
    label: str,
    shift: float = 0.0,
    scale: float = 1.0,
) -> None:
    """Draw (figures − shift) / scale with their intervals, where they have some."""
    values = [(figure.value - shift) / scale for figure in figures]
    axis.plot(places, values, ".-", color=color, label=label)
    if all(figure.low is not None for figure in figures):
        lows = [(figure.low - shift) / scale for figure in figures]
        highs = [(figure.high - shift) / scale for figure in figures]
        axis.fill_between(places, lows, highs, color=color, alpha=0.15, linewidth=0)


@_styled
def policy_curves(log: Log, iterations: int | None = None, held_out: HeldOut = ()) -> Figure:
    """Score, KL, critic, and language of a run of PPO, RLOO or GRPO over the iteration.

    held_out: (iteration, share of exact answers to held-out questions), shown with the score.
    """
    figure, axes = plt.subplots(1, 4, figsize=(15, 3.2))
    table = pd.DataFrame(log)
    critic = table["critic"].any()
    # without a critic, what starves a method of groups
    third = ("groups with equal scores", {"groups/zero_variance": ""})
    if critic:
        third = ("critic: explained variance", {"ppo/explained_variance": ""})
    panels = [  # (title, {key in the log: label})
        (
            "score of the sampled answers",
            {"objective/scores": "rewarded", "objective/truth": "watched only"},
        ),
        ("KL to the reference, nats an answer", {"objective/kl": ""}),
        third,
        (
            "entropy of a token; answers without end",
            {"objective/entropy": "entropy", "answers/not_ended": "no end"},
        ),
    ]
    for axis, (title, keys) in zip(axes, panels, strict=True):
        for (key, label), color in zip(keys.items(), (ACCENT_COLOR, REJECTED_COLOR), strict=False):
            if key in table:  # the truth is watched now and then, or never
                rows = table.dropna(subset=key)
                axis.plot(rows["iteration"], rows[key], color=color, label=label)
        axis.set(title=title, xlabel="iteration", xlim=(0, iterations or len(log) + 1))
    if held_out:
        _draw_held_out(axes[0], held_out, "o", "held out, greedy exact")
    if critic:
        _draw_level(axes[2], 0)
        axes[2].set_ylim(-1, 1)
    for axis in (axes[0], axes[3]):
        axis.legend()
    return figure


@_styled
def run_curves(
    panels: Mapping[str, Mapping[str, tuple[np.ndarray, np.ndarray, np.ndarray]]], axis_name: str
) -> Figure:
    """Several runs over each other: a panel a metric, two in a row.

    A run has one colour and dashing everywhere. panels: {metric: {run: (x, values, smoothed)}},
    each (points,); NaN is a gap. Values are drawn pale where they were smoothed. Up to 20 points,
    and one between two gaps, are dots.
    """
    rows = -(-len(panels) // 2)
    size = (10, 2.6 * rows + 0.4)
    figure, axes = plt.subplots(rows, 2, figsize=size, squeeze=False)
    styles = {}  # of each run
    for axis, (metric, lines) in zip(axes.flat, panels.items(), strict=False):
        for run, (x, values, smoothed) in lines.items():
            style = styles.setdefault(run, _run_style(len(styles)))
            if not np.array_equal(values, smoothed, equal_nan=True):
                axis.plot(x, values, color=style["color"], alpha=PALE, linewidth=1)
            # a point between two gaps has no line, so that it needs a dot
            gap = np.isnan(np.concatenate([[np.nan], smoothed, [np.nan]]))
            dots = (gap[:-2] & gap[2:]) | (len(x) <= FEW_POINTS)
            axis.plot(x, smoothed, marker="o", markersize=4, markevery=dots, **style)
        axis.set(title=_plain(metric), xlabel=axis_name)
    for axis in axes.flat[len(panels) :]:
        axis.axis("off")
    figure.legend(
        [plt.Line2D([], [], **style) for style in styles.values()],
        # matplotlib leaves out a name that begins with "_"
        [_plain(f" {run}" if run.startswith("_") else run) for run in styles],
        loc="outside lower center",
        ncols=4,
        fontsize=9,
    )
    return figure


def _run_style(number: int) -> dict[str, str]:
    dashing = ("-", "--", "-.", ":")
    return {
        "color": RUN_COLORS[number % len(RUN_COLORS)],
        "linestyle": dashing[number % len(dashing)],
    }


@_styled
def value_strip(tokens: Sequence[str], values: Sequence[float], title: str) -> Figure:
    """Draw the critic's value before each token of an answer as bars over the tokens."""
    figure, axis = plt.subplots(figsize=(0.45 * len(tokens) + 1, 2.4))
    # a bar stands over each token
    places = range(len(tokens))
    axis.bar(places, values, color=ACCENT_COLOR, alpha=0.7)
    axis.set(title=_plain(title), ylabel="expected score", ylim=(min(0, *values), max(1, *values)))
    names = [_plain(token.strip() or "␣") for token in tokens]
    axis.set_xticks(places, names, rotation=60, ha="right", fontsize=8)
    return figure


class _LiveFigure:
    """A figure in the cell's output that is redrawn now and then.

    `watching` counts the seconds that it took. held_out: a list that grows while the run is on, as
    `evaluation.HeldOutAnswers.shares`.
    """

    def __init__(self, held_out: HeldOut = ()):
        self.held_out = held_out
        self.handle = None
        self.drawn = 0.0
        self.watching = 0.0
        self.log: list[dict] = []

    def redraw(self, make: Callable[[], Figure], last: bool = False) -> None:
        started = time.monotonic()
        if not last and started - self.drawn < REDRAWN_EVERY:
            return
        figure = make()
        if self.handle is None:
            self.handle = display(figure, display_id=True)
        else:
            self.handle.update(figure)
        self.drawn = time.monotonic()
        self.watching += self.drawn - started


class LiveCurves(_LiveFigure, TrainerCallback):
    """`training_curves` while a TRL trainer runs."""

    def on_log(self, args, state, control, logs=None, **kwargs):
        if logs and "rewards/margins" in logs:
            self.log.append(dict(logs))
            self._draw(state)

    def on_train_end(self, args, state, control, **kwargs):
        if self.log:
            self._draw(state, last=True)

    def _draw(self, state, last=False):
        self.redraw(lambda: training_curves(self.log, state.max_steps, self.held_out), last)


class LivePolicyCurves(_LiveFigure):
    """`policy_curves` while a `ppo.PPOTrainer` runs: one of its watchers."""

    def __call__(self, trainer) -> None:
        iterations = trainer.settings.iterations
        self.redraw(
            lambda: policy_curves(trainer.log, iterations, self.held_out),
            last=trainer.iteration == iterations,
        )


@_styled
def interval_chart(groups: Mapping[str, Mapping[str, Proportion]], title: str) -> Figure:
    """Proportions with their 95 % intervals: one row a measure, one colour a model.

    groups: {model: {measure: Proportion}}; all models have the same measures.
    """
    measures = list(next(iter(groups.values())))
    places = np.arange(len(measures))
    figure, axis = plt.subplots(figsize=(9, 0.8 + 0.55 * len(measures)))
    for number, (model, values) in enumerate(groups.items()):
        color = MODEL_COLORS[number % len(MODEL_COLORS)]
        # the models of a row stand under each other, around its middle
        offset = (number - (len(groups) - 1) / 2) * 0.8 / max(5, len(groups))
        heights = places + offset
        shares = pd.DataFrame([values[measure] for measure in measures])
        axis.hlines(heights, shares["low"], shares["high"], color=color, linewidth=3, alpha=0.5)
        axis.plot(shares["value"], heights, "o", color=color, label=_plain(model))
    names = [_plain(measure) for measure in measures]
    axis.set(yticks=places, yticklabels=names, title=_plain(title))
    axis.set(xlim=(-0.02, 1.02), ylim=(len(measures) - 0.5, -0.5))
    axis.grid(axis="x", alpha=0.3)
    axis.legend(loc="center left", bbox_to_anchor=(1.0, 0.5))
    return figure


@_styled
def error_chart(errors: Mapping[str, Mapping[str, np.ndarray]]) -> Figure:
    """Histogram of stated − true count for every class. errors: {model: {class: (items,)}}."""
    classes = list(next(iter(errors.values())))
    figure, (axes,) = plt.subplots(
        1,
        len(classes),
        figsize=(3.4 * len(classes), 2.8),
        sharey=True,
        squeeze=False,
    )
    # a bin for each difference from −3 to 3; what is beyond counts at the ends
    bins = np.arange(-3.5, 4.5)
    for axis, cls in zip(axes, classes, strict=True):
        for (model, values), color in zip(errors.items(), MODEL_COLORS, strict=False):
            known = values[cls][~np.isnan(values[cls])]
            axis.hist(np.clip(known, -3, 3), bins, color=color, alpha=0.55, label=_plain(model))
        axis.set(title=_plain(cls), xlabel="stated − true")
    axes[0].set_ylabel("held-out images")
    axes[-1].legend()
    return figure
