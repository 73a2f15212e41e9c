"""The benchmark of best-of-n at toy size: the same samples for every ranker, and a table."""

import json

import pytest

from benchmarks import best_of_n


@pytest.mark.heavy(reason="trains two small reward models for a moment")
def test_all_rankers_choose_among_the_same_samples(tmp_path, capsys):
    out = tmp_path / "best.json"
    best_of_n.main(["--toy", "--seeds", "3", "--out", str(out)])
    figures = json.loads(out.read_text())["figures"]
    assert len(figures) == 4 and all(name.endswith("| 3") for name in figures)
    # with one sample nothing is chosen: all are as right
    assert len({found["right"]["1"]["value"] for found in figures.values()}) == 1
    for found in figures.values():
        assert list(found["right"]) == ["1", "2", "4"] and found["samples"] == 16
        scores = [found["score"][n]["value"] for n in ("1", "2", "4")]
        assert scores == sorted(scores) and 0 <= found["p_8_against_1"] <= 1
    assert out.with_suffix(".png").stat().st_size > 5_000
    assert "| reward model | 3 | 0." in capsys.readouterr().out
