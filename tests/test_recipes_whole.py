"""The recipes, whole on the embedded model as their [laptop] says, reach what docs/recipes.md shows.

`test_recipes.py` runs them in a short form.
"""

import pytest

from helpers import cli
from helpers.files import read_json
from helpers.recipes import RECIPES

pytestmark = pytest.mark.slow(reason="two to ten minutes a recipe")

# Figures and the least that they must reach; docs/results.md has what they were.
REACHED = {
    "counting": {"sft_exact": 0.9, "dpo_exact": 0.9, "dpo_wellformed_sampled": 0.9},
    "instructions": {
        "reward_mlp_bradley_terry_pair_accuracy": 0.68,
        "dpo_right": 0.7,
        "ppo_right_sampled": 0.55,
    },
    "online": {"online_exact": 0.95, "online_exact_sampled": 0.8},
    "questions": {"sft_right": 0.78, "ppo_right": 0.85},
    "reasoning": {"reward_linear_bradley_terry_pair_accuracy": 0.68, "dpo_right": 0.9},
    "rejection": {"sft_exact": 0.95, "sft_exact_sampled": 0.65},
    "reasons": {
        "reward_mlp_bradley_terry_pair_accuracy": 0.75,
        "dpo_right": 0.84,
        "ppo_right_sampled": 0.6,
    },
}


def test_no_recipe_is_forgotten():
    assert REACHED.keys() == {path.stem for path in RECIPES.glob("*.toml")}


@pytest.mark.parametrize("name", REACHED)
def test_a_recipe_reaches_its_figures(name, tmp_path):
    assert cli.main(["train", "--config", name, "--laptop", "--out", str(tmp_path)]) == 0
    figures = read_json(tmp_path / "figures.json")
    for figure, least in REACHED[name].items():
        assert figures[figure]["value"] >= least, figure
    for figure in figures:
        if figure.endswith("_other_images"):
            # with another image fewer pairs can be told apart
            own = figure.replace("_other_images", "_pair_accuracy")
            assert figures[figure]["value"] < figures[own]["value"] - 0.05, figure
