"""The benchmark of poolings: the probe on made-up states, its table, and a run in small."""

import json
import subprocess
import sys

import numpy as np
import pytest

from benchmarks import pooling
from helpers.config import RewardSettings
from helpers.data import Answer
from helpers.data.preferences import read_records
from helpers.files import ROOT


def share(value, low, high, n):
    return {"value": value, "low": low, "high": high, "n": n, "seed": 0}


def test_gaps_are_better_minus_worse_of_each_record():
    record = read_records(ROOT / "data" / "traffic" / "preferences_valid.jsonl")[0]
    answers = [Answer(text=text) for text in ("a", "b", "c")]
    three = record.model_copy(update={"answers": answers, "ranking": [[2], [0, 1]]})
    two = record.model_copy(update={"answers": answers[:2], "ranking": [[0], [1]]})
    states = np.array([[1.0, 0.0], [2.0, 0.0], [5.0, 1.0], [7.0, 7.0], [3.0, 9.0]])
    found = pooling.gaps_of([three, two], states)
    # third − first, third − second; then first − second of the next record
    assert found.tolist() == [[4.0, 1.0], [3.0, 1.0], [4.0, -2.0]]


def test_the_probe_finds_a_direction_and_only_where_there_is_one():
    rng = np.random.default_rng(0)
    gaps = {name: rng.normal(size=(400, 6)) for name in ("train", "valid", "right", "shuffled")}
    for name in ("train", "valid", "right"):
        # the better answer is so much further along the third number
        gaps[name][:, 2] = np.abs(gaps[name][:, 2]) + 0.5
    found = pooling.probe(gaps)
    assert found["right"].mean() > 0.97
    # without it 200 ± 3 deviations of 10
    assert 170 < found["shuffled"].sum() < 230


def test_a_row_of_the_table_has_all_seeds_of_a_setting():
    figures = {
        "tiny | counting | mean | probe | 0 | right": share(0.9, 0.8, 0.95, 40),
        "tiny | counting | mean | probe | 0 | shuffled": share(0.5, 0.4, 0.6, 40),
        "tiny | counting | mean | 0.001 | 0 | right": share(0.75, 0.6, 0.85, 40),
        "tiny | counting | mean | 0.001 | 0 | shuffled": share(0.5, 0.4, 0.6, 40),
        "tiny | counting | mean | 0.001 | 0 | seconds": {"value": 61.7, "n": 1, "seed": 0},
        "tiny | counting | mean | 0.001 | 1 | right": share(0.8, 0.65, 0.9, 40),
        "tiny | counting | mean | 0.001 | 1 | shuffled": share(0.45, 0.3, 0.6, 40),
        "tiny | counting | mean | 0.001 | 1 | seconds": {"value": 58.2, "n": 1, "seed": 1},
    }
    _, _, probe, trained = pooling.table(figures).splitlines()
    assert probe == (
        "| tiny | counting | mean | probe | 0.900 [0.800, 0.950] | 0.500 [0.400, 0.600] | 40 |  |"
    )
    assert trained == (
        "| tiny | counting | mean | 0.001 | 0.750 [0.600, 0.850]; 0.800 [0.650, 0.900] "
        "| 0.500 [0.400, 0.600]; 0.450 [0.300, 0.600] | 40 | 62; 58 |"
    )


def test_a_run_that_is_known_is_not_run_again(monkeypatch):
    splits = {"train": [None] * 9, "valid": [], "test": [None] * 5}
    settings = RewardSettings(learning_rate=0.5, epochs=2)
    trial = pooling.Trial("models/tiny", "counting", splits, settings)
    start = "tiny | counting: 9 + 5 records, 2 epochs"
    known = {f"{start} | last | probe | 0 | right": share(0.5, 0.4, 0.6, 40)}
    known[f"{start} | mean | 0.5 | 1 | right"] = share(0.5, 0.4, 0.6, 40)
    known["tiny | counting: 9 + 5 records, 3 epochs | last | 0.5 | 1 | right"] = share(1, 0, 1, 1)
    asked = []

    def train_once(trial, name, rate, seed):
        asked.append((name, rate, seed))
        return {"right": share(1.0, 0.9, 1.0, 40)}

    monkeypatch.setattr(pooling, "train_once", train_once)
    found = list(pooling.new_runs(trial, ["last", "mean"], None, [0, 1], known))
    assert asked == [("last", 0.5, 0), ("mean", 0.5, 0), ("last", 0.5, 1)]
    assert found[0].keys() == {f"{start} | last | 0.5 | 0 | right"}


@pytest.mark.slow(reason="trains three reward models; the tests above check what is made of them")
def test_it_runs_in_small(tmp_path):
    out = tmp_path / "figures.json"
    command = [sys.executable, str(ROOT / "benchmarks" / "pooling.py"), "--toy", "--out", str(out)]
    subprocess.run(command, check=True)
    found = json.loads(out.read_text())
    for name in pooling.POOLINGS:
        run = f"tiny | counting: 16 + 8 records, 1 epochs | {name} | 0.0007 | 0"
        accuracy = found["figures"][f"{run} | right"]
        assert accuracy["low"] < accuracy["value"] < accuracy["high"] and accuracy["n"] >= 8
    # a second time there is nothing left to do
    before = out.stat().st_mtime_ns
    subprocess.run(command, check=True)
    assert out.stat().st_mtime_ns == before
