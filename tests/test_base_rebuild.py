"""Slow: the embedded bases, rebuilt by their commands, behave like those that are shipped."""

import subprocess
import sys

import pytest
from shipped import TRAFFIC

from data.build_tasks_base import measure
from helpers.data import read_counts
from helpers.data.pairs import counting_tasks
from helpers.evaluation.task_results import evaluate_tasks
from helpers.evaluation.truth_judges import judges
from helpers.files import ROOT
from helpers.models.loading import load_model


@pytest.mark.slow(reason="training the base from nothing takes seven minutes")
def test_the_rebuilt_base_behaves_alike(tmp_path):
    command = [
        sys.executable,
        str(ROOT / "data" / "build_base.py"),
        "--out",
        str(tmp_path / "base"),
        "--seed",
        "1",
    ]
    subprocess.run(command, check=True, timeout=900)
    items = read_counts(TRAFFIC, "test")
    for folder in (ROOT / "data" / "tiny-qwen2-vl", tmp_path / "base"):
        model, processor = load_model(folder)
        judge = judges(counting_tasks(items))
        greedy = evaluate_tasks(model, processor, judge)
        sampled = evaluate_tasks(model, processor, judge, temperature=1.0)
        assert greedy.values["well formed"].all() and sampled.share("well formed").value >= 0.95
        assert 0.25 <= greedy.right_share.value <= 0.45
        assert all(
            (errors <= 0).all()
            for cls, errors in greedy.errors().items()
            if cls in ("motorcycles", "bicycles")
        )
    assert "Known bias" in (tmp_path / "base" / "README.md").read_text(encoding="utf-8")


@pytest.mark.slow(reason="a tenth of the second base's training takes three minutes")
def test_the_rebuilt_second_base_learns_what_the_shipped_one_knows(tmp_path):
    command = [sys.executable, str(ROOT / "data" / "build_tasks_base.py"), "--seed", "1"]
    command += ["--steps", "300", "--out", str(tmp_path / "base")]
    subprocess.run(command, check=True, timeout=900)
    shipped = measure(ROOT / "data" / "tiny-tasks", scenes=200)
    rebuilt = measure(tmp_path / "base", scenes=200)
    for task, shares in shipped.items():
        right, other = shares["right, greedy"], shares["right, greedy, another image"]
        # it has something to learn in every task, and what it knows it sees
        assert 0.4 <= right.value <= 0.9, task
        assert shares["right, sampled at T = 1"].value < 0.6, task
        assert right.low > other.high, task
        assert 0.02 < rebuilt[task]["right, greedy"].value <= right.high, task
