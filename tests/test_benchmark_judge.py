"""The benchmark of judges at toy size: what it writes, and what the table shows."""

import json

import pytest

from benchmarks import judge


@pytest.mark.heavy(reason="trains two steps")
def test_judges_are_examined_before_and_after(tmp_path, capsys):
    out = tmp_path / "judge.json"
    judge.main(["--toy", "--seeds", "0", "--out", str(out)])
    figures = json.loads(out.read_text())["figures"]
    assert list(figures) == [
        "base, asked A or B",
        "base, asked verifier",
        "verifier, trained, seed 0",
    ]
    # the embedded base says neither A nor B
    silent = figures["base, asked A or B"]
    assert silent["decided"]["value"] == 0 and silent["agreement"]["value"] == 0.5
    assert silent["kappa"] is None and silent["first_shown"] is None and not silent["trusted"]
    assert figures["base, asked verifier"]["decided"]["value"] == 1
    printed = capsys.readouterr().out
    assert (
        "| base, asked A or B | 0.500 [" in printed and "| verifier, trained, seed 0 |" in printed
    )
    before = out.read_text()
    judge.main(["--table", "--out", str(out)])
    assert out.read_text() == before
