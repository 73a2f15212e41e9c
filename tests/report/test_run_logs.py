"""Logs of every stage as arrays: figures by hand, and what a damaged file says of itself."""

import os

import numpy as np
import pandas as pd
import pytest
from made_up_logs import dpo_rows, one, ppo_lines, write, write_logs

from helpers.report import run_logs
from helpers.report.run_logs import LOGGED_STAGES, LoggedRun, find_runs, points, running_mean


@pytest.fixture
def folder(tmp_path):
    return write_logs(tmp_path)


def test_every_stage_is_read(folder):
    runs = find_runs(folder)
    assert [(run.name, run.stage) for run in runs] == [
        ("dpo/one", "dpo"), ("dpo/two", "dpo"), ("ppo/grpo", "ppo"), ("reward", "reward")
    ]  # fmt: skip
    assert not any(run.error or run.notes or run.gaps for run in runs)
    assert runs[1].steps.tolist() == [1, 2, 3] and runs[1].columns["loss"].tolist() == [0.6] * 3
    assert "step" not in runs[0].columns and "iteration" not in runs[2].columns
    assert runs[2].steps.tolist() == [1, 2, 3] and runs[2].columns["samples"].tolist() == [
        64,
        128,
        192,
    ]


def test_a_log_without_margins_is_one_of_sft(folder):
    rows = [{"step": n, "loss": 1 / n, "mean_token_accuracy": 0.9} for n in (1, 2)]
    write(folder / "sft" / "a" / "log.json", rows)
    assert [(run.name, run.stage) for run in find_runs(folder) if run.stage in ("dpo", "sft")] == [
        ("dpo/one", "dpo"),
        ("dpo/two", "dpo"),
        ("sft/a", "sft"),
    ]


def test_held_out_pairs_of_a_reward_model_stand_at_their_steps(folder):
    run = one(folder, "reward")
    assert run.steps.tolist() == [1, 2, 2, 3, 4, 4]
    assert [x.tolist() for x in points(run, "held out/accuracy")] == [[2, 4], [0.25, 0.75]]
    assert [x.tolist() for x in points(run, "accuracy")] == [[1, 2, 3, 4], [0.25, 0.5, 0.75, 1]]


def test_half_a_line_at_the_end_is_left_out_and_told(folder):
    path = folder / "ppo" / "grpo" / "log.jsonl"
    write(path, ppo_lines() + '{"objective/sc')
    run = one(folder, "ppo/grpo")
    assert run.steps.tolist() == [1, 2, 3] and run.error is None
    assert run.notes == (
        f"{path}:4: half a line (14 bytes) is left out, as of a run that is writing",
    )
    write(path, ppo_lines().rstrip("\n"))
    assert one(folder, "ppo/grpo").steps.tolist() == [1, 2, 3] and not one(folder, "ppo/grpo").notes


def test_a_broken_line_elsewhere_is_an_error_and_the_other_runs_are_there(folder):
    path = folder / "ppo" / "grpo" / "log.jsonl"
    write(path, ppo_lines() + '{"objective/sc\n')
    assert one(folder, "ppo/grpo").error.startswith(f"{path}:4: not JSON")
    write(path, '{"iteration"\n' + ppo_lines())
    assert one(folder, "ppo/grpo").error.startswith(f"{path}:1: not JSON")
    assert [run.error is None for run in find_runs(folder)] == [True, True, False, True]


@pytest.mark.parametrize(
    "content, words",
    [
        ("", "not JSON"), ("[" * 100_000, "not JSON"), ("[1]", "row 1: is no object"), ('"x"', "neither a list"),
        ("{}", "neither a list"), ('{"steps": 1, "evaluations": []}', "neither a list"),
        ('[{"step": 1}, {"loss": 1}]', "row 2: has no step"), ('[{"step": "1"}]', "row 1: has no step"),
        ('[{"step": null}]', "row 1: has no step"), ('[{"step": NaN}]', "row 1: has no step"),
        ('{"steps": [], "evaluations": [{"loss": 1}]}', "row 1 of evaluations: has no step"),
        ('{"steps": [3], "evaluations": []}', "row 1 of steps: is no object"),
    ],
)  # fmt: skip
def test_a_file_that_is_no_log_is_an_error_by_name(folder, content, words):
    path = write(folder / "dpo" / "one" / "log.json", content)
    run = one(folder, "dpo/one")
    assert run.error.startswith(str(path)) and words in run.error and len(run.steps) == 0
    assert len(find_runs(folder)) == 4


def test_bytes_that_are_no_text_and_a_file_that_cannot_be_read(folder):
    (folder / "dpo" / "one" / "log.json").write_bytes(b"\xff\xfe\x00")
    assert "not JSON" in one(folder, "dpo/one").error
    (folder / "dpo" / "two" / "log.json").unlink()
    (folder / "dpo" / "two" / "log.json").mkdir()
    assert "cannot be read" in one(folder, "dpo/two").error


def test_what_is_no_number_is_a_gap_and_what_is_not_logged_is_none(folder):
    rows = '[{"step": 1, "loss": 1}, {"step": 2, "loss": NaN}, {"step": 3, "loss": -Infinity}, {"step": 4, "loss": null},'
    write(
        folder / "dpo" / "one" / "log.json",
        rows + f' {{"step": 5, "loss": 1{"0" * 400}}}, {{"step": 6}}]',
    )
    run = one(folder, "dpo/one")
    assert run.gaps["loss"].tolist() == [False, True, True, True, True, False]
    assert np.isnan(run.columns["loss"]).tolist() == [False, True, True, True, True, True]
    x, values = points(run, "loss")
    assert x.tolist() == [1, 2, 3, 4, 5] and values[0] == 1 and np.isnan(values[1:]).all()
    assert run_logs.last_value(run, "loss") == 1 and run_logs.last_value(run, "other") is None


def test_figures_that_are_no_numbers_are_left_out_and_told(folder):
    write(
        folder / "dpo" / "one" / "log.json",
        [{"step": 1, "loss": 1, "phase": "warm-up", "cold": True}],
    )
    run = one(folder, "dpo/one")
    assert list(run.columns) == ["loss", "cold"] and run.columns["cold"].tolist() == [1]
    assert run.notes == ("'phase' is left out: it holds something else than numbers",)


def test_steps_that_go_back_are_sorted_and_told(folder):
    rows = [
        {"step": n % 20, "loss": n} for n in range(40)
    ]  # two runs of 20 steps, one after the other
    write(folder / "dpo" / "one" / "log.json", rows)
    run = one(folder, "dpo/one")
    assert (
        run.steps.tolist() == [n for n in range(20) for _ in range(2)] and "go back" in run.notes[0]
    )
    assert run.columns["loss"].tolist() == [
        n + 20 * second for n in range(20) for second in range(2)
    ]


def test_a_run_under_way_is_read_from_its_last_checkpoint(folder):
    for number, age in (
        (50, 2000),
        (100, 3000),
        (300, 1000),
    ):  # 300 is of an older run in the same folder
        checkpoint = folder / "dpo" / "one" / "trainer" / f"checkpoint-{number}"
        path = write(
            checkpoint / "trainer_state.json", {"log_history": dpo_rows(number // 50), "epoch": 1}
        )
        os.utime(path, (age, age))
    assert [run.name for run in find_runs(folder)][:3] == [
        "dpo/one",
        "dpo/one/trainer/checkpoint-100",
        "dpo/two",
    ]
    run = one(folder, "dpo/one/trainer/checkpoint-100")
    assert run.stage == "dpo" and run.steps.tolist() == [1, 2]


def test_the_checkpoints_of_a_run_that_has_ended_are_no_run_of_their_own(folder):
    before = [run.name for run in find_runs(folder)]
    write(folder / "dpo" / "one" / "checkpoint-20" / "trainer_state.json", {"log_history": []})
    assert [run.name for run in find_runs(folder)] == before


def test_an_empty_log_and_two_in_one_folder(folder):
    write(folder / "ppo" / "grpo" / "log.json", "[]")
    runs = {run.name: run for run in find_runs(folder)}
    assert runs["ppo/grpo/log.json"].notes == ("no row has been logged yet",) and len(runs) == 5
    assert len(runs["ppo/grpo/log.jsonl"].steps) == 3
    assert [run.name for run in find_runs(folder / "reward")] == ["reward"]
    assert find_runs(folder / "nowhere") == []


def test_settings_in_which_runs_differ(folder):
    lora = {"r": 16, "modules": ["q_proj"] * 20}
    for name, seed, rate in (("one", 0, 1e-3), ("two", 1, 1e-3)):
        about = {"base": "tiny", "seed": seed, "settings": {"learning_rate": rate, "lora": lora}}
        write(folder / "dpo" / name / "about.json", about)
    write(folder / "reward" / "about.json", {"base": "tiny", "settings": {"learning_rate": 0.5}})
    one_run, two, reward = (one(folder, name) for name in ("dpo/one", "dpo/two", "reward"))
    assert run_logs.differences([one_run, two]) == ["seed 0", "seed 1"]
    assert (
        run_logs.differences([one_run, reward])[1]
        == "seed not given, learning_rate 0.5, r not given"
    )
    write(folder / "dpo" / "one" / "about.json", "{")
    broken = one(folder, "dpo/one")
    assert broken.about == {} and "about.json" in broken.notes[0] and len(broken.steps) == 3


def test_running_mean_by_hand_and_as_pandas_has_it():
    assert running_mean(np.array([2.0, 4, 9]), 2).tolist() == [2, 3, 6.5]
    values = np.array([1.0, 3, np.nan, 5, np.nan, np.nan, np.nan, 7])
    for width in (1, 2, 3, 50):
        expected = pd.Series(values).rolling(width, min_periods=1).mean().where(~np.isnan(values))
        np.testing.assert_allclose(running_mean(values, width), expected)
    assert running_mean(np.array([1e300, 1.0, 1.0]), 2)[2] == 1, (
        "a spike is forgotten once it is out of the window"
    )
    assert len(running_mean(np.zeros(0), 5)) == 0


def test_axes_are_those_that_every_run_logs(folder):
    dpo, ppo = one(folder, "dpo/one"), one(folder, "ppo/grpo")
    assert run_logs.axes([dpo]) == ["step", "num_tokens"] and run_logs.axes([ppo]) == [
        "step",
        "seconds",
        "samples",
    ]
    assert run_logs.axes([dpo, ppo]) == ["step"] and len(points(dpo, "objective/scores")[0]) == 0


def test_a_row_that_does_not_say_where_it_is_stands_between_its_neighbours(folder):
    rows = [
        {"step": 1, "loss": 1, "seconds": 10},
        {"step": 2, "loss": 2},
        {"step": 5, "loss": 5, "seconds": 40},
    ]
    write(folder / "dpo" / "one" / "log.json", rows)
    assert points(one(folder, "dpo/one"), "loss", "seconds")[0].tolist() == [
        10,
        17.5,
        40,
    ]  # 10 + 30 · 1/4


def test_definitions_come_from_the_tables(tmp_path):
    page = "intro\n\n| `loss` | of nothing |\n\nWhile DPO trains (names):\n\n| name | meaning |\n|---|---|\n"
    page += "| `loss` | this |\n| `a`, `b` | both x | y |\n| `c` | third |\n\n| `d` | late |\n\nOf PPO, RLOO and GRPO\n"
    page += "unless said:\n\n| `loss` | that |\n"
    found = run_logs.definitions(write(tmp_path / "metrics.md", page))
    assert found == {
        "dpo": {"loss": "this", "c": "third", "d": "late"},
        "sft": {},
        "reward": {},
        "ppo": {"loss": "that"},
    }
    assert run_logs.definitions(tmp_path / "none.md") == {}


def test_what_is_shown_first_is_defined_in_the_docs():
    for stage in ("dpo", "sft", "ppo"):
        assert all(
            run_logs.definition(stage, metric) for metric in LOGGED_STAGES[stage].main_figures
        )
    assert run_logs.definition("ppo", "reward/count_exact") == "each part of the score by itself"
    assert (
        "KL" not in run_logs.definition("dpo", "loss")
        and run_logs.definition("dpo", "objective/kl") is None
    )
    assert all(len(stage.main_figures) == 4 for stage in LOGGED_STAGES.values())


def test_a_run_that_could_not_be_read_has_no_figures():
    run = LoggedRun("x", error="x: gone")
    assert run_logs.axes([run]) == ["step"] and [len(part) for part in points(run, "loss")] == [
        0,
        0,
    ]
