"""The benchmark of real language: what is run, what is skipped, its tables."""

import ast

import pytest
import torch
from shipped import TRAFFIC

from benchmarks import real_language
from helpers import models
from helpers.config import LoraSettings
from helpers.data import read_counts
from helpers.data.pairs import counting_tasks
from helpers.files import read_json, write_json, write_text
from helpers.recipes import read_recipe

SHARE = {"value": 0.9, "low": 0.85, "high": 0.94, "n": 200}
POLICY = {
    "seconds": {"value": 600.0},
    "exact": SHARE,
    "exact_sampled": SHARE,
    "wellformed_sampled": {**SHARE, "value": 0.99},
    "perplexity": {"value": 23.6},
    "kl": {"value": 1.2, "low": 1.0, "high": 1.4, "n": 64},
    "p": {"value": 1e-9, "n": 200},
    "right": "10",
}


@pytest.fixture
def measured(tmp_path, monkeypatch):
    """A page and a file of figures of its own; training is noted, not done."""
    page = write_text(tmp_path / "results.md", "<!-- real_language --><!-- end real_language -->")
    monkeypatch.setattr(real_language, "PAGE", page)
    monkeypatch.setattr(real_language, "OUT", tmp_path / "real_language.json")
    calls = []

    def measure(name, seed, base_right):
        calls.append((name, seed, base_right))
        return POLICY

    monkeypatch.setattr(real_language, "measure", measure)
    return calls


def run(monkeypatch, *arguments):
    monkeypatch.setattr("sys.argv", ["real_language.py", *arguments])
    real_language.main()


def test_runs_that_are_there_are_skipped(measured, monkeypatch):
    run(monkeypatch, "--only", "base", "dpo", "--seeds", "0", "1")
    # The base's greedy answers, with which each policy is compared, are asked for once
    assert measured == [("base", 0, None), ("dpo", 0, "10"), ("dpo", 1, "10")]
    run(monkeypatch, "--only", "dpo", "rloo", "--seeds", "1")
    assert measured[3:] == [("rloo", 1, "10")]
    found = read_json(real_language.OUT)
    assert set(found["runs"]) == {"base_seed_0", "dpo_seed_0", "dpo_seed_1", "rloo_seed_1"}


def test_table_has_a_row_for_each_run(measured, monkeypatch):
    run(monkeypatch, "--only", "base", "dpo", "--seeds", "0")
    text = real_language.PAGE.read_text(encoding="utf-8")
    row = "| DPO | 0 | 0.9 [0.85, 0.94] | 0.9 [0.85, 0.94] | 0.99 [0.85, 0.94] | 1e-09 |"
    assert row + " 1.2 [1, 1.4] | 23.6 | 10 |" in text


def test_reward_models_have_a_table_of_their_own(measured, monkeypatch):
    trained = {
        "reward_mlp_bradley_terry_pair_accuracy": SHARE,
        "reward_mlp_bradley_terry_other_images": {**SHARE, "value": 0.6},
    }
    row = {"seconds": {"value": 300.0}, "training": trained}
    write_json(real_language.OUT, {"runs": {"reward_seed_2": row}})
    run(monkeypatch, "--table")
    assert measured == []
    text = real_language.PAGE.read_text(encoding="utf-8")
    assert "| mean | 2 | 0.9 [0.85, 0.94] | 0.6 [0.85, 0.94] | 5 |" in text


def test_figures_over_seeds_are_named_and_take_the_outermost_limits():
    worse = {**SHARE, "value": 0.8, "low": 0.74, "high": 0.85}
    runs = {
        "dpo_seed_0": POLICY,
        "dpo_seed_1": POLICY | {"exact": worse, "p": {"value": 0.01, "n": 200}},
        "reward_seed_0": {
            "training": {
                "reward_mlp_bradley_terry_pair_accuracy": SHARE,
                "reward_mlp_bradley_terry_other_images": worse,
            }
        },
    }
    figures = real_language.summarise(runs)
    exact = figures["dpo_t4_exact"]
    assert exact["value"] == pytest.approx(0.85) and exact["seeds"] == [0.9, 0.8]
    assert (exact["low"], exact["high"], exact["n"]) == (0.74, 0.94, 200)
    # The p of all seeds is that of the one that shows least
    assert figures["dpo_t4_p"] == {"value": 0.01, "n": 200}
    assert figures["dpo_t4_seconds"] == {"value": 600.0, "seeds": [600.0, 600.0]}
    assert figures["reward_t4_pairs"]["value"] == 0.9
    assert figures["reward_t4_pairs_shuffled_images"]["value"] == 0.8


def test_the_names_of_figures_know_every_run():
    """A run without a name would be missing from the figures without a word."""
    assert {*real_language.PREFIXES, "reward"} == set(real_language.RUNS)


def test_every_run_is_a_recipe_that_can_be_read():
    """Presets exist, what is set is known, and each run has the runs before it that it needs."""
    for name, training in real_language.RUNS.items():
        changes = []
        for change in training.changes:
            key, _, value = change.partition("=")
            changes.append((key, ast.literal_eval(value)))
        recipe = read_recipe(real_language.RECIPE, changes=changes)
        assert recipe.model == real_language.MODEL, name
        assert set(training.stages) <= set(recipe.stages)
        for other in training.before:
            assert other in real_language.RUNS
    settings = read_recipe(real_language.RECIPE).dpo_settings()
    # 8 pairs a step, as the preset of a T4 has
    assert settings.batch_size * settings.accumulation == 8 and settings.learning_rate == 1e-4


def test_kl_of_a_policy_from_its_base():
    """0 where the adapter changes nothing; with noise, its samples are likelier than before."""
    model, processor = models.load_model("tiny")
    policy = models.add_adapter(model, LoraSettings(r=4), 0)
    tasks = counting_tasks(read_counts(TRAFFIC, "test")[:6])
    assert real_language.kl_from_base(policy, processor, tasks).value == pytest.approx(0, abs=1e-5)
    torch.manual_seed(0)
    for name, parameter in policy.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.05)
    assert real_language.kl_from_base(policy, processor, tasks).value > 0.1
