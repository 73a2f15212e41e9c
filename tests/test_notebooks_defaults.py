"""The notebooks, run whole with their defaults on the embedded model, reach what they promise.

`test_notebooks_run.py` runs them in short.
"""

import json
import re

import pytest
from ci import CHAIN, run_chain

pytestmark = pytest.mark.slow(reason="the notebooks with their defaults take half an hour")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Artifacts of one run of the whole chain with its default parameters."""
    return run_chain(tmp_path_factory.mktemp("run"), short=False)


@pytest.fixture(scope="module")
def figures(folder):
    return json.loads((folder / "report" / "summary.json").read_text())


def test_alignment_works(figures):
    assert 0.25 <= figures["base_exact"]["value"] <= 0.45
    assert figures["base_wellformed_sampled"]["value"] >= 0.95
    assert figures["dpo_exact"]["value"] >= 0.90 and figures["dpo_exact"]["n"] == 400
    assert figures["dpo_exact_sampled"]["value"] >= 0.50
    assert figures["dpo_wellformed_sampled"]["value"] >= 0.90
    assert figures["dpo_mcnemar_p"]["value"] < 1e-6


def test_reinforcement_learning_works(figures):
    for name in ("ppo_exact", "rloo_exact", "grpo_exact"):
        assert figures[name]["value"] >= 0.90 and figures[name]["n"] == 400
    assert figures["ppo_exact_sampled"]["value"] >= 1.8 * figures["base_exact_sampled"]["value"]
    assert figures["ppo_wellformed_sampled"]["value"] >= 0.90
    assert figures["ppo_rm_exact"]["low"] > figures["base_exact"]["high"]
    assert figures["ppo_samples"]["value"] <= 2500


def test_the_answers_come_from_the_image(figures):
    assert figures["dpo_exact_shuffled_images"]["high"] < 0.05
    assert figures["base_exact_shuffled_images"]["high"] < 0.05


def test_the_reward_model_looks_at_the_image(figures):
    right, shuffled = figures["rm_pair_accuracy"], figures["rm_pair_accuracy_shuffled_images"]
    assert right["value"] >= 0.90 and right["n"] > 700
    assert right["value"] > shuffled["value"] + 0.25
    assert figures["rm_shorter_wins"]["low"] < 0.5 < figures["rm_shorter_wins"]["high"]


def test_training_is_as_fast_as_promised(figures):
    assert figures["rm_train_seconds"]["value"] < 180
    assert figures["dpo_train_seconds"]["value"] < 180
    assert figures["peak_memory_gb"]["value"] < 4


def test_the_report_says_it_in_words_and_stands_alone(folder):
    page = (folder / "report" / "index.html").read_text(encoding="utf-8")
    assert "better." in page and "it falls to chance, so the answers come from the image" in page
    assert "64 of 64 greedy answers are identical" in page
    assert not re.search(r"(src|href)='(?!data:|notebooks/)", page)
    for name in CHAIN:
        assert (folder / "report" / "notebooks" / f"{name}.html").stat().st_size > 100_000


def test_the_report_shows_a_hacked_reward_and_marks_what_is_circular(folder):
    page = (folder / "report" / "index.html").read_text(encoding="utf-8")
    assert (
        "ppo/heuristic-0.0: REWARD HACKING. one class: heuristic, its training reward, rose" in page
    )
    assert (
        "better (circular: the training reward)" in page and "ppo/ppo: REWARD HACKING" not in page
    )
    assert (folder / "report" / "index.html").stat().st_size < 5e6
    card = (folder / "report" / "cards" / "ppo-heuristic-0.0.md").read_text(encoding="utf-8")
    assert "on the reward `heuristic`" in card and "REWARD HACKING" in card


def test_pages_of_notebooks_show_widgets_without_scripts_from_elsewhere(folder):
    page = (folder / "report" / "notebooks" / "06_compare_before_after.html").read_text(
        encoding="utf-8"
    )
    assert (
        "truth</b>" in page
        and "Rank correlation (Spearman)" in page
        and "<b>dpo/seed-0</b>" in page
    )
    assert "unpkg" not in page and "html-manager" not in page and "require.min.js" not in page


def test_adapters_are_small_and_say_how_they_were_made(folder):
    adapter = folder / "dpo" / "seed-0"
    assert (adapter / "adapter_model.safetensors").stat().st_size < 1e6
    about = json.loads((adapter / "about.json").read_text())
    assert about["base"] == "tiny" and about["settings"]["steps"] == 120
