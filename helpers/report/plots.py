"""Figures: pictures of data, training curves, intervals. Every function returns a matplotlib Figure."""

import textwrap
import time
from collections.abc import Callable, Mapping, Sequence

import matplotlib.pyplot as plt
import numpy as np
from IPython.display import display
from matplotlib.figure import Figure
from PIL import Image
from transformers import TrainerCallback

from helpers.statistics import Proportion

CHOSEN_COLOR, REJECTED_COLOR, NEUTRAL_COLOR, ACCENT_COLOR = (
    "#1a7f5a",
    "#c0392b",
    "#57606a",
    "#2f6fb7",
)
# Okabe and Ito 2008: told apart by readers who see colours differently; their yellow is too pale on white
RUN_COLORS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#000000")
CURVES = {  # title: (TRL's keys, level of an untrained model)
    "loss": (("loss",), None),
    "accuracy: chosen preferred": (("rewards/accuracies",), 0.5),
    "margin β · (chosen − rejected)": (("rewards/margins",), 0.0),
    "log-probability of the answers": (("logps/chosen", "logps/rejected"), None),
}


def image_grid(images: Sequence[Image.Image], titles: Sequence[str], columns: int = 4) -> Figure:
    """Pictures in rows, a title over each (long lines are wrapped)."""
    rows = -(-len(images) // columns)
    wrapped = [
        "\n".join(textwrap.fill(line, 42) for line in title.splitlines()) for title in titles
    ]
    lines = max(title.count("\n") + 1 for title in wrapped)
    size = (3.2 * columns, (3.1 + 0.17 * lines) * rows)
    figure, axes = plt.subplots(rows, columns, figsize=size, squeeze=False, layout="constrained")
    for axis in axes.flat:
        axis.axis("off")
    for axis, image, title in zip(axes.flat, images, wrapped, strict=False):
        axis.imshow(image)
        axis.set_title(title, fontsize=9)
    return _finish(figure)


def _finish(figure: Figure) -> Figure:
    """The figure without frames at the top and the right; closed, so that a notebook shows it once."""
    for axis in figure.axes:
        axis.spines[["top", "right"]].set_visible(False)
    plt.close(figure)
    return figure


def training_curves(
    log: Sequence[Mapping[str, float]],
    steps: int | None = None,
    held_out: Sequence[tuple[int, Proportion]] = (),
) -> Figure:
    """Loss, accuracy, margin and both log-probabilities against the step, with a running mean of 5.

    held_out: (step, share of exact answers to held-out questions), for one more panel.
    """
    panels = len(CURVES) + bool(held_out)
    figure, axes = plt.subplots(1, panels, figsize=(3.75 * panels, 3.2), layout="constrained")
    for axis, (title, (keys, level)) in zip(axes, CURVES.items(), strict=False):
        for key, color in zip(
            keys, (CHOSEN_COLOR if len(keys) > 1 else ACCENT_COLOR, REJECTED_COLOR), strict=False
        ):
            values = np.array([row[key] for row in log])
            axis.plot(range(1, len(values) + 1), values, color=color, alpha=0.3, linewidth=1)
            means = [values[max(0, i - 4) : i + 1].mean() for i in range(len(values))]
            axis.plot(range(1, len(values) + 1), means, color=color, label=key.split("/")[-1])
        if level is not None:
            axis.axhline(level, color=NEUTRAL_COLOR, linestyle=":", linewidth=1)
        if len(keys) > 1:
            axis.legend(frameon=False)
        axis.set(title=title)
    if held_out:
        at, shares = zip(*held_out, strict=True)
        axes[-1].vlines(
            at,
            [s.low for s in shares],
            [s.high for s in shares],
            color=CHOSEN_COLOR,
            alpha=0.4,
            linewidth=3,
        )
        axes[-1].plot(at, [s.value for s in shares], "o-", color=CHOSEN_COLOR)
        axes[-1].set(title=f"exact answers, {shares[0].n} held-out images", ylim=(-0.03, 1.03))
    for axis in axes:
        axis.set(xlabel="step", xlim=(0, steps or len(log) + 1))
    return _finish(figure)


def reward_curves(
    log: Sequence[Mapping[str, float]], evaluations: Sequence[Mapping[str, float]]
) -> Figure:
    """Loss and accuracy of a reward model: each step with a running mean of 10, and held-out pairs as dots."""
    figure, axes = plt.subplots(1, 2, figsize=(10, 3.2), layout="constrained")
    for axis, key, level in zip(axes, ("loss", "accuracy"), (np.log(2), 0.5), strict=True):
        values = np.array([row[key] for row in log])
        steps = [row["step"] for row in log]
        axis.plot(steps, values, color=ACCENT_COLOR, alpha=0.25, linewidth=1)
        axis.plot(
            steps,
            [values[max(0, i - 9) : i + 1].mean() for i in range(len(values))],
            color=ACCENT_COLOR,
            label="train",
        )
        dots = [row["step"] for row in evaluations], [row[key] for row in evaluations]
        axis.plot(*dots, "o-", color=CHOSEN_COLOR, label="held out")
        axis.axhline(level, color=NEUTRAL_COLOR, linestyle=":", linewidth=1)
        axis.set(title=f"{key} (dotted: a model that says nothing)", xlabel="step")
    axes[0].legend(frameon=False)
    return _finish(figure)


def reliability_diagram(bins: Sequence[tuple[float, float, int]]) -> Figure:
    """Accuracy against confidence, one dot a bin as large as its number of pairs; on the line is calibrated."""
    confidence, accuracy, numbers = np.array(bins).T
    figure, axis = plt.subplots(figsize=(4.2, 4), layout="constrained")
    axis.plot([0.5, 1], [0.5, 1], color=NEUTRAL_COLOR, linestyle=":")
    axis.plot(confidence, accuracy, color=ACCENT_COLOR, alpha=0.4)
    axis.scatter(
        confidence, accuracy, s=10 + 300 * numbers / numbers.sum(), color=ACCENT_COLOR, alpha=0.8
    )
    for x, y, n in bins:
        axis.annotate(f"{n}", (x, y), xytext=(4, -12), textcoords="offset points", fontsize=8)
    axis.set(xlabel="confidence σ(|gap|)", ylabel="share of right pairs")
    axis.set(xlim=(0.48, 1.02), ylim=(min(0.45, accuracy.min() - 0.05), 1.04))
    return _finish(figure)


def policy_curves(
    log: Sequence[Mapping[str, float]],
    iterations: int | None = None,
    held_out: Sequence[tuple[int, Proportion]] = (),
) -> Figure:
    """Score, KL, critic, and language of a run of PPO, RLOO or GRPO against the iteration.

    held_out: (iteration, share of exact answers to held-out questions), shown with the score.
    """
    figure, axes = plt.subplots(1, 4, figsize=(15, 3.2), layout="constrained")
    critic = any(row["critic"] for row in log)
    third = ("critic: explained variance", {"": "ppo/explained_variance"})
    panels = [
        (
            "score of the sampled answers",
            {"rewarded": "objective/scores", "watched only": "objective/truth"},
        ),
        ("KL to the reference, nats an answer", {"": "objective/kl"}),
        third if critic else ("groups with equal scores", {"": "groups/zero_variance"}),
        (
            "entropy of a token; answers without end",
            {"entropy": "objective/entropy", "no end": "answers/not_ended"},
        ),
    ]
    for axis, (title, keys) in zip(axes, panels, strict=True):
        for (label, key), color in zip(keys.items(), (ACCENT_COLOR, REJECTED_COLOR), strict=False):
            points = [(row["iteration"], row[key]) for row in log if key in row]
            if points:
                axis.plot(*zip(*points, strict=True), color=color, label=label)
        axis.set(title=title, xlabel="iteration", xlim=(0, iterations or len(log) + 1))
    if held_out:
        at, shares = zip(*held_out, strict=True)
        axes[0].vlines(
            at,
            [s.low for s in shares],
            [s.high for s in shares],
            color=CHOSEN_COLOR,
            alpha=0.4,
            linewidth=3,
        )
        axes[0].plot(
            at, [s.value for s in shares], "o", color=CHOSEN_COLOR, label="held out, greedy exact"
        )
    if critic:
        axes[2].axhline(0, color=NEUTRAL_COLOR, linestyle=":", linewidth=1)
        axes[2].set_ylim(-1, 1)
    for axis in (axes[0], axes[3]):
        axis.legend(frameon=False)
    return _finish(figure)


def run_curves(
    panels: Mapping[str, Mapping[str, tuple[np.ndarray, np.ndarray, np.ndarray]]], axis_name: str
) -> Figure:
    """Several runs over each other: a panel a metric, two in a row; a run has one colour and dashing everywhere.

    panels: {metric: {run: (x, values, smoothed)}}, each (points,); NaN is a gap. Values are drawn pale where
    they were smoothed. Up to 20 points, and one between two gaps, are dots.
    """
    rows = -(-len(panels) // 2)
    figure, axes = plt.subplots(
        rows, 2, figsize=(10, 2.6 * rows + 0.4), squeeze=False, layout="constrained"
    )
    runs = list(dict.fromkeys(run for lines in panels.values() for run in lines))
    handles = {}
    for axis, (metric, lines) in zip(axes.flat, panels.items(), strict=False):
        for run, (x, values, smoothed) in lines.items():
            number = runs.index(run)
            style = {
                "color": RUN_COLORS[number % len(RUN_COLORS)],
                "linestyle": ("-", "--", "-.", ":")[number % 4],
            }
            if not np.array_equal(values, smoothed, equal_nan=True):
                axis.plot(x, values, color=style["color"], alpha=0.25, linewidth=1)
            gap = np.isnan(np.concatenate([[np.nan], smoothed, [np.nan]]))
            dots = (gap[:-2] & gap[2:]) | (len(x) <= 20)
            axis.plot(x, smoothed, marker="o", markersize=4, markevery=dots, **style)
            handles[run] = plt.Line2D([], [], **style)
        axis.set(title=metric.replace("$", r"\$"), xlabel=axis_name)
    for axis in axes.flat[len(panels) :]:
        axis.axis("off")
    names = [
        " " * run.startswith("_") + run.replace("$", r"\$") for run in handles
    ]  # "_…" would be left out
    figure.legend(
        list(handles.values()),
        names,
        loc="outside lower center",
        ncols=4,
        frameon=False,
        fontsize=9,
    )
    return _finish(figure)


def value_strip(tokens: Sequence[str], values: Sequence[float], title: str) -> Figure:
    """Draw the critic's value before each token of an answer as bars over the tokens."""
    figure, axis = plt.subplots(figsize=(0.45 * len(tokens) + 1, 2.4), layout="constrained")
    axis.bar(range(len(tokens)), values, color=ACCENT_COLOR, alpha=0.7)
    axis.set(title=title, ylabel="expected score", ylim=(min(0, *values), max(1, *values)))
    axis.set_xticks(
        range(len(tokens)),
        [token.strip() or "␣" for token in tokens],
        rotation=60,
        ha="right",
        fontsize=8,
    )
    return _finish(figure)


class _LiveFigure:
    """A figure in the cell's output that is redrawn at most every `every` seconds; `watching` counts what it took.

    held_out: a list that grows while the run is on, as `evaluation.HeldOutAnswers.shares`.
    """

    def __init__(self, every: float = 3.0, held_out: Sequence[tuple[int, Proportion]] = ()):
        self.every, self.held_out = every, held_out
        self.handle, self.drawn, self.watching = None, 0.0, 0.0

    def redraw(self, make: Callable[[], Figure], last: bool = False) -> None:
        started = time.monotonic()
        if not last and started - self.drawn < self.every:
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

    def __init__(self, every: float = 3.0, held_out: Sequence[tuple[int, Proportion]] = ()):
        super().__init__(every, held_out)
        self.log = []

    def on_log(self, args, state, control, logs=None, **kwargs):
        if logs and "rewards/margins" in logs:
            self.log.append(dict(logs))
            self.redraw(lambda: training_curves(self.log, state.max_steps, self.held_out))

    def on_train_end(self, args, state, control, **kwargs):
        if self.log:
            self.redraw(
                lambda: training_curves(self.log, state.max_steps, self.held_out), last=True
            )


class LivePolicyCurves(_LiveFigure):
    """`policy_curves` while a `ppo.PPOTrainer` runs: one of its watchers."""

    def __call__(self, trainer) -> None:
        iterations = trainer.settings.iterations
        self.redraw(
            lambda: policy_curves(trainer.log, iterations, self.held_out),
            trainer.iteration == iterations,
        )


def interval_chart(groups: Mapping[str, Mapping[str, Proportion]], title: str) -> Figure:
    """Proportions with their 95 % intervals: one row a measure, one colour a model.

    groups: {model: {measure: Proportion}}; all models have the same measures.
    """
    measures = list(next(iter(groups.values())))
    figure, axis = plt.subplots(figsize=(9, 0.8 + 0.55 * len(measures)), layout="constrained")
    colors = [NEUTRAL_COLOR, CHOSEN_COLOR, ACCENT_COLOR, "#8e44ad", "#b7791f", REJECTED_COLOR]
    for number, (model, values) in enumerate(groups.items()):
        offset = (number - (len(groups) - 1) / 2) * 0.8 / max(5, len(groups))
        heights = np.arange(len(measures)) + offset
        points = [values[measure] for measure in measures]
        axis.hlines(
            heights,
            [p.low for p in points],
            [p.high for p in points],
            color=colors[number % len(colors)],
            linewidth=3,
            alpha=0.5,
        )
        axis.plot(
            [p.value for p in points], heights, "o", color=colors[number % len(colors)], label=model
        )
    axis.set(
        yticks=range(len(measures)),
        yticklabels=measures,
        xlim=(-0.02, 1.02),
        title=title,
        ylim=(len(measures) - 0.5, -0.5),
    )
    axis.grid(axis="x", alpha=0.3)
    axis.legend(frameon=False, loc="center left", bbox_to_anchor=(1.0, 0.5))
    return _finish(figure)


def error_chart(errors: Mapping[str, Mapping[str, np.ndarray]]) -> Figure:
    """Histogram of stated − true count for every class. errors: {model: {class: (items,)}}."""
    classes = list(next(iter(errors.values())))
    figure, axes = plt.subplots(
        1,
        len(classes),
        figsize=(3.4 * len(classes), 2.8),
        sharey=True,
        squeeze=False,
        layout="constrained",
    )
    bins = np.arange(-3.5, 4.5)
    for axis, cls in zip(axes[0], classes, strict=True):
        for (model, values), color in zip(
            errors.items(), (NEUTRAL_COLOR, CHOSEN_COLOR, ACCENT_COLOR), strict=False
        ):
            known = values[cls][~np.isnan(values[cls])]
            axis.hist(np.clip(known, -3, 3), bins, color=color, alpha=0.55, label=model)
        axis.set(title=cls, xlabel="stated − true")
    axes[0, 0].set_ylabel("held-out images")
    axes[0, -1].legend(frameon=False)
    return _finish(figure)
