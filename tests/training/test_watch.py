"""Figures of a run of PPO by hand, and its logs on the disk."""

import builtins
import json
import math
from types import SimpleNamespace

import pytest
import torch
from PIL import Image

from helpers.files import UsageError
from helpers.models.encoded_prompts import EncodedPrompts
from helpers.report import plots
from helpers.rewards.scoring import Score
from helpers.statistics import proportion
from helpers.training import watch as ppo_figures
from helpers.training.rollout import Experience, Rollout

ROW = {"ppo/returns/var": 1.0, "ppo/explained_variance": 0.5, "iteration": 1.0, "critic": 1.0}


def experience() -> Experience:
    """Two questions, two answers each, of 3, 1, 2 and 3 tokens."""
    mask = torch.tensor([[1, 1, 1], [1, 0, 0], [1, 1, 0], [1, 1, 1]]).bool()
    ids = [torch.tensor(row) for row in ([5, 6, 7], [5], [8, 9], [5, 6, 7])]
    rollout = Rollout(
        tasks=[], prompts=EncodedPrompts(["a", "b"], ["", ""], [{}, {}], [{}, {}]), images=[[], []], group_size=2, ids=ids, texts=["x", "y", "z", "x"],
        ended=torch.tensor([True, True, True, False]), scores=torch.tensor([1.0, 0.0, 0.5, 0.5]),
        results=[Score(x, {"exact": x}) for x in (1.0, 0.0, 1.0, 1.0)], truth=torch.tensor([1.0, 0.0, 0.0, 0.0]),
    )  # fmt: skip
    ones = mask.float()
    returns = torch.tensor([[1.0, 1, 1], [0, 0, 0], [0.5, 0.5, 0], [0.5, 0.5, 0.5]])
    return Experience(
        rollout=rollout,
        mask=mask,
        old_logps=-ones,
        reference_logps=-2 * ones,
        entropy=0.25 * ones,
        values=0.5 * ones,
        learnt=mask,
        rewards=returns,
        advantages=2 * ones,
        returns=returns,
    )


def test_figures_by_hand():
    row = ppo_figures.experience_figures(experience())
    # tokens 3, 1, 2, 3; KL of 1 a token; returns: 3 × 1, 1 × 0, 5 × .5, of 9
    assert (
        row["objective/scores"] == 0.5
        and row["objective/truth"] == 0.25
        and row["reward/exact"] == 0.75
    )
    assert row["objective/kl"] == row["answers/tokens"] == 9 / 4 and row["tokens"] == 9
    assert row["ppo/returns/mean"] == pytest.approx(5.5 / 9)
    assert row["ppo/returns/var"] == pytest.approx((3 + 5 * 0.25) / 9 - (5.5 / 9) ** 2)
    assert row["ppo/explained_variance"] == pytest.approx(0, abs=1e-6)  # of a constant
    assert row["objective/entropy"] == 0.25 and row["ppo/advantages/size"] == 2
    assert (
        row["answers/not_ended"] == 0.25
        and row["answers/distinct"] == 0.75
        and row["answers/repeated"] == 0
    )
    assert row["groups/zero_variance"] == 0.5


def test_explained_variance_of_several_iterations():
    """Residuals .5 · 1 and 1.25 · 4 of 5: 1 − 5.5 / 5; an iteration without variance says nothing."""
    rows = [ROW, {**ROW, "ppo/returns/var": 4.0, "ppo/explained_variance": -0.25}]
    assert ppo_figures.pooled_explained_variance(rows) == pytest.approx(-0.1)
    flat = {**ROW, "ppo/returns/var": 0.0, "ppo/explained_variance": math.nan}
    assert ppo_figures.pooled_explained_variance([*rows, flat]) == pytest.approx(-0.1)
    assert math.isnan(ppo_figures.pooled_explained_variance([flat]))


def test_logs_have_each_iteration_once_also_when_a_run_goes_on(tmp_path):
    trainer = SimpleNamespace(log=[], iteration=0, last=experience())
    log, samples = (
        ppo_figures.JSONLog(tmp_path / "log.jsonl"),
        ppo_figures.SampleLog(tmp_path / "samples.jsonl", every=2),
    )
    for iteration in (1, 2, 3, 2, 3, 4):  # killed after 3, gone on with after 1
        trainer.iteration, trainer.log = (
            iteration,
            [{"iteration": n, "x": math.nan, "y": math.inf} for n in range(1, iteration + 1)],
        )
        log(trainer)
        samples(trainer)
    rows = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert rows == [{"iteration": n, "x": None, "y": None} for n in (1, 2, 3, 4)]
    rows = [json.loads(line) for line in (tmp_path / "samples.jsonl").read_text().splitlines()]
    assert [row["iteration"] for row in rows] == [1, 1, 2, 2, 4, 4]
    assert [(row["prompt"], row["answer"], row["score"]) for row in rows[:2]] == [
        ("a", "x", 1.0),
        ("b", "z", 0.5),
    ]


def test_tensorboard_gets_every_figure_or_is_named(tmp_path, monkeypatch):
    written = []
    log = ppo_figures.TensorBoard.__new__(ppo_figures.TensorBoard)
    writer = SimpleNamespace(add_scalar=lambda *row: written.append(row), flush=lambda: None)
    log.folder, log.writer = tmp_path, None
    log.make = lambda folder, purge_step: written.append(("from", purge_step)) or writer
    log(SimpleNamespace(iteration=7, log=[{"a": 1.0, "b": 2.0}]))
    assert written == [("from", 7), ("a", 1.0, 7), ("b", 2.0, 7)]
    real = builtins.__import__

    def refuse(name, *rest):
        if "tensorboard" in name:
            raise ImportError(name)
        return real(name, *rest)

    monkeypatch.setattr(builtins, "__import__", refuse)
    with pytest.raises(UsageError, match="pip install tensorboard"):
        ppo_figures.TensorBoard(tmp_path)


@pytest.mark.heavy(reason="draws for two seconds")
def test_the_panel_is_drawn_with_and_without_critic_truth_and_held_out_questions(tmp_path):
    row = ppo_figures.experience_figures(experience()) | ROW
    bare = {name: value for name, value in row.items() if name != "objective/truth"} | {
        "critic": 0.0
    }
    for log, shares in (([row, row], [(1, proportion(3, 8))]), ([bare], [])):
        figure = plots.policy_curves(log, 4, shares)
        figure.savefig(tmp_path / "x.png")
        assert Image.open(tmp_path / "x.png").width > 1000
        titles = [axis.get_title() for axis in figure.axes]
        assert titles[2] == (
            "critic: explained variance" if log[0]["critic"] else "groups with equal scores"
        )
        assert len(figure.axes[0].lines) == (3 if shares else 1)
    plots.value_strip(["There", " are", " "], [0.5, -0.1, 1.2], "truth").savefig(tmp_path / "x.png")


def test_a_mean_of_some_rows_by_hand():
    rows = [{"loss": value} for value in (4.0, 1.0, 2.0)]
    assert ppo_figures.log_mean(rows[-2:], "loss") == 1.5  # (1 + 2) / 2
