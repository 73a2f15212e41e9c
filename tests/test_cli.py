"""The commands: what they say to mistakes, what they import, and what the report does."""

import errno
import json
import os
import re
import shutil
import subprocess
import sys

import pytest
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from shipped import TRAFFIC
from small_rewards import QUICK

from helpers import machine, models, notebooks
from helpers.cli import main, parse_setting
from helpers.config import reward_preset
from helpers.data.preferences import read_records
from helpers.evaluation import write_as_benchmark
from helpers.files import (
    ROOT,
    UsageError,
    artifact,
    explain_error,
    explain_errors_in_notebooks,
    open_image,
    read_json,
    write_json,
)
from helpers.report.page import Section
from helpers.rewards import ModelReplies, reward_model
from helpers.rewards.caption_reward import CaptionReward

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
    assert parse_setting("dpo.preflight=false") == ("dpo.preflight", False)  # as in a recipe
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
            "unknown parameter 'STPES': these notebooks have GALLERY_STEPS, HIGH_RATE_STEPS, MODEL",
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
        "TASK", "DATA", "MODEL", "QUESTIONS", "TRUTH", "CLASSES", "ANSWERS", "PAIRS",
        "NEGATIVES", "SCORER", "SEED",
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


@pytest.fixture
def questions(tmp_path):
    """Three questions that the tiny model answers in several ways."""
    images = sorted((TRAFFIC / "valid" / "images").glob("*.png"))
    rows = [
        {"image": str(image), "question": "What is in the image?", "answer": "Red"}
        for image in images[:3]
    ]
    path = tmp_path / "questions.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.mark.heavy(reason="samples and ranks three times")
def test_questions_are_ranked_by_an_own_reward_a_reward_model_or_people(
    questions, tmp_path, monkeypatch, capsys
):
    out = tmp_path / "ranked.jsonl"

    def rank(*options):
        assert main(["rank", str(questions), "--out", str(out), "--answers", "3", *options]) == 0
        assert "3 of 3 questions" in capsys.readouterr().out
        return read_records(out)

    unranked = rank()
    assert [record.ranking for record in unranked] == [None] * 3
    # the same answers, by a function in the folder where one stands
    source = (
        "def long(image, question, answer, truth):\n    return len(answer) + image.width / 1e4\n"
    )
    (tmp_path / "mine.py").write_text(source)
    monkeypatch.chdir(tmp_path)
    for before, record in zip(unranked, rank("--scorer", "mine.py:long"), strict=True):
        assert [a.text for a in record.answers] == [a.text for a in before.answers]
        scores = [answer.scores["long"] for answer in record.answers]
        best = [place for place, score in enumerate(scores) if score == max(scores)]
        assert record.ranking[0] == best
        assert record.truth == "Red" and record.kind == "exact_match"
    # and by a reward model, which looks at the image
    model, processor = models.load_model("tiny")
    settings = reward_preset("tiny")
    reward = reward_model.new_reward_model(model, processor, settings)
    reward_model.save_reward_model(reward, tmp_path / "reward", settings)
    ranked = rank("--scorer", str(tmp_path / "reward"))
    expected = [value for row in reward_model.score_records(reward, ranked) for value in row]
    found = [answer.score for record in ranked for answer in record.answers]
    assert found == pytest.approx(expected, abs=1e-4)
    assert [a.text for r in ranked for a in r.answers] == [
        a.text for r in unranked for a in r.answers
    ]


@pytest.mark.heavy(reason="samples and asks a judge")
def test_questions_are_ranked_by_a_model_that_is_asked(questions, tmp_path, monkeypatch, capsys):
    """The embedded model says neither A nor B; a judge that always says A is caught at that."""
    out = tmp_path / "ranked.jsonl"
    given = ["rank", str(questions), "--out", str(out), "--answers", "2", "--judge", "tiny"]
    assert main(given) == 0
    said = capsys.readouterr().out
    assert "judge tiny: 1.000" in said and "of its replies cannot be read" in said
    assert not any(record.pairs() for record in read_records(out))
    monkeypatch.setattr(
        ModelReplies, "__call__", lambda self, images, prompts: ["A"] * len(prompts)
    )
    assert main(given) == 0
    assert "POSITION BIAS" in capsys.readouterr().out
    assert main([*given, "--scorer", "heuristic"]) == 1
    assert "--scorer and --judge both rank" in capsys.readouterr().err


def test_a_scorer_that_cannot_use_the_truth_is_refused_before_anything_is_sampled(
    questions, tmp_path, monkeypatch, capsys
):
    monkeypatch.setattr(models, "load_model", None)
    options = ["--out", str(tmp_path / "ranked.jsonl"), "--scorer"]
    assert main(["rank", str(questions), *options, "count_exact"]) == 1
    said = capsys.readouterr().err
    assert "question 'What is in the image?': count_exact: facts must be true counts" in said
    assert main(["rank", str(questions), *options, "mine.py:long"]) == 1
    assert "mine.py: no such file, for the reward 'mine.py:long'" in capsys.readouterr().err


def test_rankers_are_graded_on_a_file_of_a_benchmark(tmp_path, artifacts, capsys):
    """A reward model, the model itself as a judge, and rules, on pairs in a benchmark's columns."""
    own = read_records(TRAFFIC / "preferences_valid.jsonl")[:4]
    file = write_as_benchmark(own, tmp_path / "all_data.json")
    reward = reward_model.new_reward_model(*models.load_model("tiny"), QUICK)
    folder = reward_model.save_reward_model(reward, tmp_path / "reward", QUICK)
    given = ["--file", str(file), "--reward", str(folder), "--judge", "--pairs", "3"]
    assert main(["rewardbench", "multimodal_rewardbench", *given]) == 0
    out = capsys.readouterr().out
    assert "Multimodal RewardBench, 3 pairs" in out
    for name in ("reward model", "judge tiny", "shown first", "longer", "shorter"):
        assert f"| {name} |" in out
    # the tiny model says nothing that could be read as a verdict; coins are tossed for all three
    assert "of its replies cannot be read" in out and "as its 2_get_accuracy.py" in out
    assert "tossed" in out
    assert main(["rewardbench", "mme", "--file", str(file)]) == 1
    assert "unknown benchmark 'mme'" in capsys.readouterr().err


def test_the_demo_on_another_base_has_artifacts_of_its_own(artifacts, monkeypatch, capsys):
    """Pages and policies of two bases in one folder would be one report."""
    ran = {}

    def run(name, values, pages):
        ran[name] = values
        assert pages == artifacts / "demo-smollm2-scenes" / "report" / "notebooks"
        Section(f"{name}_made_up", name).save()

    monkeypatch.setattr(notebooks, "run_notebook", run)
    monkeypatch.setenv("VLM_ARTIFACTS", str(artifacts))  # put back afterwards
    assert main(["demo", "--model", "smollm2-scenes"]) == 0
    assert ran["02"] == {"TASK": "counting", "MODEL": "smollm2-scenes"}
    assert ran["04"]["SEEDS"] == (0,) and ran["04"]["PRESET"] == "laptop"
    assert ran["07"]["MODEL"] == "smollm2-scenes" and "PRESET" not in ran["07"]
    assert "notebook_07_seconds" in capsys.readouterr().out


def test_a_demo_that_was_cut_off_goes_on(artifacts, monkeypatch, capsys):
    ran = []
    broken = {"04"}

    def run(name, values, pages):
        ran.append(name)
        if name in broken:
            raise KeyboardInterrupt
        Section(f"{name}_made_up", name).save()

    monkeypatch.setattr(notebooks, "run_notebook", run)
    with pytest.raises(KeyboardInterrupt):
        notebooks.run_series({"02": {"SEEDS": (0,)}, "04": {}}, artifacts / "report")
    # of other values: from the beginning, and without the sections of the first
    broken = {"05"}
    with pytest.raises(KeyboardInterrupt):
        notebooks.run_series({"04": {}, "05": {"X": (0,)}}, artifacts / "report")
    sections = artifacts / "report" / "sections"
    assert [path.name for path in sections.iterdir()] == ["04_made_up.json"]
    broken = set()
    seconds = notebooks.run_series({"04": {}, "05": {"X": (0,)}}, artifacts / "report")
    assert ran == ["02", "04", "04", "05", "05"]
    assert list(seconds) == ["04", "05"]
    assert "Finished before: notebooks 04." in capsys.readouterr().out
    # a finished one begins anew
    notebooks.run_series({"04": {}}, artifacts / "report")
    assert ran[-1] == "04"


def test_several_settings_may_follow_one_option(monkeypatch, artifacts):
    ran = []
    monkeypatch.setattr(
        notebooks, "run_notebook", lambda name, values, folder: ran.append((name, values))
    )
    assert main(["run", "02", "04", "--set", "DATA=my photos", "STEPS=7", "ANSWERS=2"]) == 0
    assert ran == [("02", {"DATA": "my photos", "ANSWERS": 2}), ("04", {"STEPS": 7})]


# --- errors in one line ---


def damaged_weights(path):
    path.write_bytes(b"\x00" * 8)
    load_file(path)


def damaged_state(path):
    torch.save({"step": torch.ones(9)}, path)
    path.write_bytes(path.read_bytes()[:300])
    torch.load(path)


def raise_error(kind, text):
    raise kind(text)


FAULTS = {
    "full": (lambda path: os_error(errno.ENOSPC, path), "out: there is no room for it"),
    "too large": (lambda path: os_error(errno.EFBIG, path), "out: there is no room for it"),
    "read only": (lambda path: os_error(errno.EROFS, path), "out: not allowed here"),
    "not allowed": (lambda path: os_error(errno.EACCES, path), "out: not allowed here"),
    "gone": (lambda path: path.open(), "out: No such file or directory. Check the path"),
    "a folder": (lambda path: path.parent.open(), "Is a directory"),
    "weights": (damaged_weights, "a file is damaged, or was cut off"),
    "JSON": (lambda path: json.loads('{"a": '), "a file is damaged, or was cut off"),
    # as these libraries say it
    "weights, full": (
        lambda _: raise_error(SafetensorError, "I/O error: No space left (os error 28)"),
        "there is no room for it",
    ),
    "state, full": (
        lambda _: raise_error(RuntimeError, "[enforce fail at inline_container.cc:672] . pos"),
        "there is no room for it",
    ),
    "state": (damaged_state, "a file is damaged, or was cut off"),
    "a folder is copied": (
        lambda path: raise_error(shutil.Error, [("a", str(path), "[Errno 28] No space left")]),
        "out: there is no room for it",
    ),
}


def os_error(number, path):
    raise OSError(number, os.strerror(number), str(path))


@pytest.mark.parametrize("name", FAULTS)
def test_what_can_go_wrong_with_a_disk_is_one_line(name, tmp_path, monkeypatch, capsys):
    fault, said = FAULTS[name]
    monkeypatch.setattr(machine, "find_artifacts", lambda _: fault(tmp_path / "out"))
    assert main(["verify", str(tmp_path)]) == 1
    error = capsys.readouterr().err
    assert error.startswith("error: ") and said in error and error.count("\n") == 1
    monkeypatch.setenv("VLM_TRACEBACK", "1")
    assert main(["verify", str(tmp_path)]) == 1
    assert "Traceback" in capsys.readouterr().err


def test_a_missing_key_is_named_with_the_line_that_asked_for_it(tmp_path):
    """As in the settings of a caption reward that another version wrote."""
    write_json(tmp_path / "caption_reward.json", {"caption": True})
    with pytest.raises(KeyError) as raised:
        CaptionReward.load(tmp_path, None)
    said = explain_error(raised.value)
    assert re.match(r"'captions' is missing in what was read in helpers/rewards/caption_rew", said)
    # in a function of one's own it is that function's fault
    with pytest.raises(KeyError) as raised:
        {}["captions"]
    assert explain_error(raised.value) is None


def test_a_fault_of_the_code_keeps_its_traceback(tmp_path, monkeypatch):
    monkeypatch.setattr(machine, "find_artifacts", lambda _: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        main(["verify", str(tmp_path)])


def test_ctrl_c_says_that_the_command_can_be_repeated(tmp_path, monkeypatch, capsys):
    def stop(folder):
        raise KeyboardInterrupt

    monkeypatch.setattr(machine, "find_artifacts", stop)
    assert main(["verify", str(tmp_path)]) == 130
    assert "Stopped by Ctrl-C. Repeat the command" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("cell", "said"),
    [
        ("open('/none/of/it')", "Error: /none/of/it: No such file or directory."),
        ("from helpers.files import read_json, Path\nread_json(Path('none'))", "Error: none: no"),
        ("1 / 0", "ZeroDivisionError"),
    ],
)
def test_a_notebook_shows_the_same_line_in_place_of_a_traceback(cell, said, monkeypatch, capsys):
    from IPython.core.interactiveshell import InteractiveShell

    shell = InteractiveShell()
    monkeypatch.setattr("IPython.get_ipython", lambda: shell)
    explain_errors_in_notebooks()
    result = shell.run_cell(cell)
    assert result.error_in_exec is not None
    shown = capsys.readouterr().out
    assert said in shown
    assert ("Traceback" in shown) == cell.startswith("1")
