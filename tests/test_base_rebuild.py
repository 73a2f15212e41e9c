"""Slow: the embedded base, rebuilt from nothing by its command, behaves like the one that is shipped."""

import subprocess
import sys

import pytest
from shipped import TRAFFIC

from helpers.data.labels import read_yolo
from helpers.evaluation.exactness import evaluate_counting
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
    items = read_yolo(TRAFFIC, "test")
    for folder in (ROOT / "data" / "tiny-qwen2-vl", tmp_path / "base"):
        model, processor = load_model(folder)
        greedy = evaluate_counting(model, processor, items)
        sampled = evaluate_counting(model, processor, items, temperature=1.0)
        assert greedy.well_formed.all() and sampled.well_formed_share.value >= 0.95
        assert 0.25 <= greedy.exact_share.value <= 0.45
        assert all(
            (errors <= 0).all()
            for cls, errors in greedy.errors().items()
            if cls in ("motorcycles", "bicycles")
        )
    assert "Known bias" in (tmp_path / "base" / "README.md").read_text(encoding="utf-8")
