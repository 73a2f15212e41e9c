"""What students bring goes the whole way: sets as their tools write them, by recipes."""

import json

import own_sets
import pytest

from helpers import data
from helpers.files import read_json
from helpers.recipe_stages import run_stages
from helpers.recipes import RecipeRun, read_recipe

# Toy steps: that it goes through is asked here, not that it learns.
RECIPE = """
title = "own data"
model = "tiny"
stages = ["data", {stages} "evaluate"]
[data]
source = {source}
[reward]
preset = "tiny"
[reward.settings]
epochs = 1
[dpo]
preset = "tiny"
preflight = false
[dpo.settings]
steps = 2
[ppo]
preset = "tiny"
critic_warm_up_epochs = 0
[ppo.settings]
iterations = 1
prompts_per_iteration = 4
mini_batch = 2
"""
PREFERENCES = (
    "rlhf_v",
    "rlaif_v",
    "vlfeedback",
    "mmpr",
    "csv_of_rankings",
    "free_text",
    "arena_export",
)


def run_recipe(folder, source, stages):
    """Run a recipe that names the data relative to itself; its figures."""
    listed = "".join(f'"{stage}", ' for stage in stages)
    path = folder / "recipe.toml"
    text = RECIPE.format(stages=listed, source=json.dumps(source.relative_to(folder).as_posix()))
    path.write_text(text)
    run = RecipeRun(read_recipe(path), folder / "run")
    run_stages(run)
    return run.figures


@pytest.mark.parametrize("name", [*PREFERENCES, "four_fields"])
def test_preferences_are_opened_as_what_they_are(tmp_path, name):
    opened = data.open_data(own_sets.SETS[name](tmp_path / "set"))
    records = opened.all_records()
    number = 5 if name == "four_fields" else 40 if name == "free_text" else 36
    assert len(records) == number and all(record.pairs() for record in records)
    assert all(image.exists() for record in records for image in record.image_paths)
    assert opened.kind == "none"
    first = records[0]
    # of every first record, the best answer is the true sentence about one red house
    best = first.answers[first.ranking[0][0]].text
    assert ("red house" in best) or "Final answer: 1" in best


def test_questions_with_answers_are_opened_as_what_they_are(tmp_path):
    opened = data.open_data(own_sets.genome_questions(tmp_path / "set"))
    tasks = opened.all_tasks()
    assert len(tasks) == 80 and opened.kind == "exact_match"
    assert (tasks[0].question, tasks[0].facts) == ("What color is the house?", "Red.")


@pytest.mark.heavy(reason="trains by recipes at toy steps")
@pytest.mark.parametrize("name", PREFERENCES)
def test_preferences_go_through_a_recipe(tmp_path, name, capsys):
    figures = run_recipe(tmp_path, own_sets.SETS[name](tmp_path / "set"), ("dpo",))
    accuracy = figures["dpo_pair_accuracy"]
    assert 0 <= accuracy["low"] <= accuracy["value"] <= accuracy["high"] <= 1
    said = capsys.readouterr().out
    assert "No truth is known" in said and "nan" not in said
    # nothing of the traffic scenes was asked
    about = read_json(tmp_path / "run" / "data" / "about.json")
    assert about["kind"] == "none" and "traffic" not in json.dumps(about)


@pytest.mark.heavy(reason="trains by a recipe at toy steps")
def test_free_text_is_rewarded_by_its_reward_model(tmp_path):
    source = own_sets.free_text(tmp_path / "set")
    figures = run_recipe(tmp_path, source, ("reward", "ppo"))
    about = read_json(tmp_path / "run" / "ppo" / "about.json")
    assert about["reward"] == "reward_model" or "reward" in about["reward"]
    # what trained the policy judges it in a circle, and there is no truth to watch
    assert "ppo_truth_last" not in figures and "ppo_scores_last" in figures


@pytest.mark.heavy(reason="samples, ranks and trains at toy steps")
def test_questions_with_answers_go_through_a_recipe(tmp_path):
    source = own_sets.genome_questions(tmp_path / "set")
    figures = run_recipe(tmp_path, source, ("ppo",))
    assert figures["base_right"]["n"] == figures["ppo_right"]["n"] > 0
    assert "ppo_truth_last" in figures


@pytest.mark.heavy(reason="trains by a recipe at toy steps")
def test_several_images_and_turns_go_through_every_stage(tmp_path):
    source = own_sets.several_images_and_turns(tmp_path / "set")
    figures = run_recipe(tmp_path, source, ("reward", "dpo", "ppo"))
    assert {"dpo_right", "ppo_right", "dpo_pair_accuracy"} <= figures.keys()
    record = data.read_prepared(tmp_path / "run" / "data").records("train")[0]
    assert len(record.images) == 2 and len(record.prompt) == 3 and record.kind == "exact_match"


def test_five_lines_are_said_to_be_too_few(tmp_path, capsys):
    opened = data.open_data(own_sets.four_fields(tmp_path / "set"))
    data.prepare_data(opened, tmp_path / "out", max_pixels=None, model="tiny")
    assert "too few" in capsys.readouterr().out
