"""The commands: what they say to mistakes, what they import, and what the report does."""

import subprocess
import sys

import pytest
from shipped import TRAFFIC

from helpers import notebooks
from helpers.cli import main, parse_setting
from helpers.files import ROOT, UsageError, artifact, open_image, read_json
from helpers.report.page import Section

RECORDS = str(TRAFFIC / "preferences_valid.jsonl")
# Each takes more than a second to import, or is for notebooks only.
HEAVY = ("torch", "transformers", "datasets", "pandas", "pyarrow", "scipy.stats", "statsmodels",
         "sklearn", "matplotlib", "nbformat", "IPython", "rich")  # fmt: skip
RUN = """
import sys, time
from helpers.cli import main
status = main(sys.argv[2:])
heavy = sorted(set(sys.argv[1].split()) & sys.modules.keys())
print(status, heavy, time.process_time() < 6)
"""


def test_settings_are_python_literals_or_text():
    assert parse_setting("STEPS=60") == ("STEPS", 60)
    assert parse_setting("SEEDS=(0, 1)") == ("SEEDS", (0, 1))
    assert parse_setting("DATA=/some/folder=x") == ("DATA", "/some/folder=x")
    with pytest.raises(UsageError, match="write NAME=VALUE"):
        parse_setting("STEPS")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["run", "77"], "no notebook '77': choose one of 01_load_model"),
        (
            ["run", "04", "--set", "STPES=3"],
            "unknown parameter 'STPES': these notebooks have GALLERY_STEPS, MODEL, PRESET, REPLACE",
        ),
    ],
)
def test_mistakes_are_one_line_and_exit_with_1(arguments, message, capsys):
    assert main(arguments) == 1
    error = capsys.readouterr().err
    assert error.startswith("error: ") and message in error and error.count("\n") == 1


@pytest.mark.parametrize(
    "arguments",
    [
        ["--help"],
        ["check", RECORDS],
        ["convert", RECORDS, "OUT", "--to", "trl"],
        ["train", "--help"],
        ["export", "--help"],
        ["memory", "--help"],
    ],
)
def test_a_command_that_needs_no_model_starts_at_once(arguments, tmp_path):
    """It took 6 s while `check` imported pandas and datasets. The limit is four times what it takes."""
    arguments = [str(tmp_path / "out.json") if part == "OUT" else part for part in arguments]
    command = [sys.executable, "-c", RUN, " ".join(HEAVY), *arguments]
    run = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    assert run.stdout.splitlines()[-1] == "0 [] True"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["chek"], "No such command 'chek'"),
        (["convert", "a", "b", "--pairs", "best"], "'best' is not one of 'all', 'extremes'"),
        (["train"], "Missing option '--config'"),
        (["check"], "Missing argument"),
    ],
)
def test_a_command_that_is_written_wrong_exits_with_2(arguments, message, capsys):
    assert main(arguments) == 2
    assert message in capsys.readouterr().err


def test_parameters_are_read_from_the_tagged_cell():
    assert notebooks.parameters("02_build") == [
        "MODEL", "DATA", "QUESTIONS", "TRUTH", "CLASSES", "ANSWERS", "PAIRS", "NEGATIVES",
        "SCORER", "SEED",
    ]  # fmt: skip


def test_a_missing_artifact_falls_back_loudly(artifacts, tmp_path, capsys):
    path = artifact("preferences/train.jsonl", "notebook 02", lambda: tmp_path / "shipped.jsonl")
    assert path == tmp_path / "shipped.jsonl"
    assert "FALLBACK" in capsys.readouterr().out
    (artifacts / "preferences").mkdir(parents=True)
    (artifacts / "preferences" / "train.jsonl").write_text("")
    assert (
        artifact("preferences/train.jsonl", "notebook 02", lambda: tmp_path).parent.name
        == "preferences"
    )
    assert "FALLBACK" not in capsys.readouterr().out


def test_files_that_cannot_be_read_are_named(tmp_path):
    (tmp_path / "a.json").write_text('{"a": 1,\n "b" 2}')
    with pytest.raises(UsageError, match=r"a\.json: not JSON .*, line 2, column 6"):
        read_json(tmp_path / "a.json")
    with pytest.raises(UsageError, match="no such file"):
        read_json(tmp_path / "b.json")
    with pytest.raises(UsageError, match=r"image .*c\.png does not exist"):
        open_image(tmp_path / "c.png")


def test_report_evaluates_first_if_nobody_has(artifacts, monkeypatch, tmp_path, capsys):
    asked = []
    monkeypatch.setattr(notebooks, "run_notebook", lambda *given: asked.append(given))
    assert main(["report", "--adapters", str(tmp_path)]) == 0
    assert asked == [
        (
            "07_evaluate",
            {"MODEL": "tiny", "ADAPTERS": str(tmp_path)},
            artifacts / "report" / "notebooks",
        )
    ]
    assert capsys.readouterr().out.splitlines()[-1].endswith("report/index.html")


def test_report_uses_what_is_there_unless_asked_again(artifacts, monkeypatch):
    asked = []
    monkeypatch.setattr(notebooks, "run_notebook", lambda *given: asked.append(given))
    Section("07_evaluate", "Evaluation").save()
    assert main(["report"]) == 0 and not asked
    assert main(["report", "--again"]) == 0 and len(asked) == 1
