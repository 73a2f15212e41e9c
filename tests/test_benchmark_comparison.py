"""The comparison of methods: everyone's budget, the paired tests, and a toy run."""

import json

import pytest

from benchmarks import comparison

NAMES = ("counting | SFT | 0", "counting | DPO | 0")


def test_everyone_may_sample_as_many_answers():
    """3 rounds × 4 answers × 192 questions, and 8 answers × 288 questions, are 2,304, too."""
    online = comparison.changes_of("counting", comparison.METHODS["online DPO"], questions=512)
    assert 3 * 4 * round(online["online.share"] * 512) == comparison.BUDGET == 36 * 64
    ranked = comparison.METHODS["rejection sampling"]
    assert 8 * round(comparison.changes_of("reasons", ranked, 868)["rank.share"] * 868) == 2304
    # fewer questions than the budget has: all of them
    assert comparison.changes_of("reasons", ranked, 100)["rank.share"] == 1


def test_a_task_without_a_truth_is_trained_without_it():
    for row, method in comparison.METHODS.items():
        changes = comparison.changes_of("reasons", method, 512)
        assert "truth" not in changes.values(), row
        if method.policy == "ppo":
            assert changes["ppo.score"] == {"reward_model": 1.0}
            assert changes["ppo.critic_warm_up_epochs"] == 0


def test_the_paired_test_is_against_sft_of_the_same_seed():
    """Of six questions that differ, DPO is right in all: p = 2 × 0.5⁶ = 0.03."""
    figures = dict(zip(NAMES, ({"greedy": "0000001"}, {"greedy": "1111111"}), strict=True))
    assert comparison.p_cell(figures, "counting", "DPO", "greedy") == "+0.03"
    assert comparison.p_cell(figures, "counting", "SFT", "greedy") == "–"
    figures = dict(zip(NAMES, ({"greedy": "1111110"}, {"greedy": "0000000"}), strict=True))
    assert comparison.p_cell(figures, "counting", "DPO", "greedy") == "−0.03"
    assert comparison.share_cell(["11", "00"]).startswith("0.500 [0.150, 0.850]")
    assert comparison.share_cell(["11", "00"]).endswith("(1.00, 0.00)")


@pytest.mark.heavy(reason="trains a few steps of three methods")
def test_runs_are_measured_once(tmp_path, artifacts, capsys):
    out = tmp_path / "comparison.json"
    rows = ["SFT", "rejection sampling", "best of 8"]
    given = ["--toy", "--only", "reasons", "--seeds", "1", "--out", str(out), "--methods", *rows]
    comparison.main(given)
    figures = json.loads(out.read_text())["figures"]
    assert list(figures) == [f"reasons | {row} | 1" for row in rows]
    sft, rejection, best = figures.values()
    assert len(sft["greedy"]) == len(best["sampled"]) == 8 and "greedy" not in best
    # 8 questions × 2 answers; the reward model's seconds are counted for those who use it
    assert (sft["samples"], rejection["samples"]) == (0, 16) and "reward_seconds" not in sft
    assert rejection["reward_seconds"] == best["reward_seconds"] > 0
    assert best["kl"]["value"] == pytest.approx(1.204, abs=1e-3)  # log 8 − 7/8
    assert "| best of 8 | – |" in capsys.readouterr().out
    before = out.read_text()
    comparison.main(given)
    assert out.read_text() == before
