"""The dashboard, on small logs written here: what it shows, and what each move changes.

`test_colab_widgets.py` runs these tests once more with the ipywidgets of Google Colab.
"""

import math

import pytest
from made_up_logs import DPO, dpo_rows, ppo_lines, write, write_logs

from helpers.report import plots
from helpers.report.run_logs import LOGGED_STAGES
from helpers.widgets import dashboard as widgets
from helpers.widgets.dashboard import Dashboard


@pytest.fixture
def folder(tmp_path):
    return write_logs(tmp_path)


@pytest.fixture
def quick(monkeypatch):
    """Instead of a picture, what it would be made of: drawing takes long where it is not what is
    tested.
    """
    monkeypatch.setattr(plots, "run_curves", lambda panels, axis: repr((panels, axis)))
    monkeypatch.setattr(widgets, "figure_png", str.encode)


def test_it_shows_the_first_stage_at_once(folder):
    dashboard = Dashboard(folder)
    state = dashboard.state
    assert (
        state["stage"] == "dpo"
        and state["runs"] == ["dpo/one", "dpo/two"]
        and state["axis"] == "step"
    )
    assert (
        state["metrics"] == list(LOGGED_STAGES["dpo"].main_figures)
        and not state["errors"]
        and not state["notes"]
    )
    assert state["last"]["dpo/two"]["loss"] == 0.6 and bytes(dashboard.picture.value).startswith(
        b"\x89PNG"
    )
    assert (
        "0.6</td>" in dashboard.table.value
        and "<b>loss</b>: preference term" in dashboard.meanings.value
    )
    assert "4 logs, read at" in dashboard.message.value
    assert [label for label, _ in dashboard.stage.options] == [
        "DPO",
        "reward model",
        "PPO, RLOO, GRPO",
    ]


def test_stage_runs_figures_axis_and_smoothing_change_the_picture(quick, folder):
    dashboard = Dashboard(folder)
    pictures = [dashboard.picture.value]
    for name, value in (
        ("chosen", ("dpo/two",)),
        ("axis", "num_tokens"),
        ("stage", "ppo"),
        ("smoothing", 1),
        ("axis", "seconds"),
    ):
        getattr(dashboard, name).value = value
        pictures.append(dashboard.picture.value)
    dashboard.metrics["ppo", "samples"].value = True
    pictures.append(dashboard.picture.value)
    assert len(set(pictures)) == len(pictures) and dashboard.state["axis"] == "seconds"
    assert "samples" in dashboard.state["metrics"] and dashboard.state["last"] == {
        "ppo/grpo": dict.fromkeys(LOGGED_STAGES["ppo"].main_figures)
        | {"objective/scores": 0.3, "samples": 192}
    }
    dashboard.stage.value = "dpo"
    assert dashboard.state["axis"] == "step" and dashboard.state["metrics"] == list(
        LOGGED_STAGES["dpo"].main_figures
    )
    dashboard.stage.value = "ppo"
    assert "samples" in dashboard.state["metrics"], "a stage's ticks stay"


def test_a_move_draws_once(quick, folder, monkeypatch):
    dashboard, drawn = Dashboard(folder), []
    monkeypatch.setattr(widgets, "figure_png", lambda figure: drawn.append(figure) or b"")
    dashboard.axis.value = "num_tokens"
    assert len(drawn) == 1
    dashboard.stage.value = "ppo"
    assert len(drawn) == 2
    write(folder / "ppo" / "rloo" / "log.jsonl", ppo_lines())
    dashboard.refresh.click()
    assert len(drawn) == 3, "the runs to choose from change, what is chosen does not"


def test_held_out_figures_are_not_smoothed(quick, folder, monkeypatch):
    drawn = {}
    monkeypatch.setattr(plots, "run_curves", lambda panels, axis: drawn.update(panels) or "")
    dashboard = Dashboard(folder)
    dashboard.smoothing.value = 2
    dashboard.stage.value = "reward"
    assert drawn["accuracy"]["reward"][2].tolist() == [0.25, 0.375, 0.625, 0.875]
    assert drawn["held out/accuracy"]["reward"][2].tolist() == [0.25, 0.75]


def test_refresh_reads_what_another_process_wrote(quick, folder):
    dashboard = Dashboard(folder)
    dashboard.stage.value = "ppo"
    dashboard.metrics["ppo", "objective/kl"].value = False
    picture = dashboard.picture.value
    write(folder / "ppo" / "grpo" / "log.jsonl", ppo_lines(5) + '{"iter')
    write(folder / "ppo" / "rloo" / "log.jsonl", ppo_lines(2))
    dashboard.refresh.click()
    assert (
        dashboard.state["last"]["ppo/grpo"]["objective/scores"] == 0.5
        and dashboard.picture.value != picture
    )
    assert dashboard.state["runs"] == ["ppo/grpo"] and "new: ppo/rloo" in dashboard.message.value
    assert (
        "objective/kl" not in dashboard.state["metrics"]
        and "half a line (6 bytes)" in dashboard.message.value
    )
    dashboard.chosen.value = ("ppo/rloo",)
    (folder / "ppo" / "rloo" / "log.jsonl").unlink()
    dashboard.refresh.click()
    assert dashboard.state["runs"] == ["ppo/grpo"], "what is gone is no longer chosen"


def test_a_broken_log_is_an_error_and_the_others_are_shown(quick, folder):
    write(folder / "dpo" / "two" / "log.json", "[{")
    dashboard = Dashboard(folder)
    assert dashboard.state["runs"] == ["dpo/one"] and dashboard.picture.value
    assert (
        len(dashboard.state["errors"]) == 1 and "two/log.json: not JSON" in dashboard.message.value
    )
    assert widgets.note("x", error=True)[:40] == dashboard.message.value[:40], (
        "errors come first, in their colour"
    )
    write(folder / "dpo" / "two" / "log.json", dpo_rows())
    dashboard.refresh.click()
    assert not dashboard.state["errors"] and list(dashboard.chosen.options)[1] == (
        "dpo/two",
        "dpo/two",
    )


def test_gaps_are_counted(quick, folder):
    write(folder / "dpo" / "one" / "log.json", [*dpo_rows(2), {**DPO, "step": 3, "loss": None}])
    dashboard = Dashboard(folder)
    assert dashboard.state["gaps"] == {"dpo/one": {"loss": 1}, "dpo/two": {}}
    assert "dpo/one: 1 of loss is NaN, infinite or null" in dashboard.message.value
    assert dashboard.state["last"]["dpo/one"]["loss"] == 0.7


def test_nothing_to_show_is_said_and_logs_that_appear_are_found(quick, tmp_path):
    dashboard = Dashboard(tmp_path / "artifacts")
    assert "No logs under" in dashboard.message.value and dashboard.picture.value == b""
    write(tmp_path / "artifacts" / "ppo" / "a" / "log.jsonl", ppo_lines())
    dashboard.refresh.click()
    assert dashboard.state["runs"] == ["ppo/a"] and dashboard.picture.value
    dashboard.chosen.value = ()
    assert "Choose at least one run" in dashboard.message.value and dashboard.table.value == ""
    dashboard.chosen.value = ("ppo/a",)
    for box in dashboard.metrics.values():
        box.value = False
    assert (
        "Choose at least one run and one figure" in dashboard.message.value
        and dashboard.picture.value == b""
    )


def test_an_error_while_drawing_is_shown(quick, folder, monkeypatch):
    def fail(panels, axis):
        raise ValueError("no <ink>")

    dashboard = Dashboard(folder)
    monkeypatch.setattr(plots, "run_curves", fail)
    dashboard.smoothing.value = 9
    assert "Error: no &lt;ink&gt;" in dashboard.message.value and dashboard.state["errors"] == [
        "Error: no <ink>"
    ]


def test_names_are_shown_not_run(quick, folder):
    write(folder / "dpo" / "<img src=x>" / "log.json", dpo_rows(**{"<script>": 1.0}))
    write(folder / "dpo" / "<img src=y>" / "log.json", "{")
    dashboard = Dashboard(folder)
    dashboard.metrics["dpo", "<script>"].value = True
    assert (
        dashboard.metrics["dpo", "<script>"].description == "‹script›"
        and "<script>" in dashboard.state["metrics"]
    )
    shown = dashboard.table.value + dashboard.message.value + dashboard.meanings.value
    assert (
        "<img" not in shown
        and "<script" not in shown
        and "&lt;img src=x" in shown
        and "&lt;img src=y" in shown
    )


@pytest.mark.heavy(reason="draws for three seconds")
@pytest.mark.parametrize("values", [[1e300, -1e300], [1e308, 1e308], [0.0, 5e-324]])
def test_numbers_at_the_limits_are_drawn(folder, values):
    write(
        folder / "dpo" / "one" / "log.json", [{"step": n, "loss": v} for n, v in enumerate(values)]
    )
    dashboard = Dashboard(folder)
    assert dashboard.picture.value and not dashboard.state["errors"]
    assert math.isclose(dashboard.state["last"]["dpo/one"]["loss"], values[-1])


def test_controls_have_names_and_heights_do_not_change(quick, folder):
    dashboard = Dashboard(folder)
    changing = (dashboard.message, dashboard.table, dashboard.meanings, dashboard._ticks)
    heights = [part.layout.height for part in changing]
    dashboard.stage.value = "ppo"
    assert heights == [part.layout.height for part in changing] and all(heights)
    controls = [
        dashboard.stage,
        dashboard.chosen,
        dashboard.axis,
        dashboard.smoothing,
        dashboard.refresh,
    ]
    assert all(control.description for control in [*controls, *dashboard.metrics.values()])
