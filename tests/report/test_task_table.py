"""The table of the five projects, from figures made up by hand."""

from benchmarks.tasks import name_figures
from helpers.report import task_rows


def share(value, seed=0):
    return {"value": value, "low": value - 0.1, "high": value + 0.1, "n": 400, "seed": seed}


RECIPE = {  # what a recipe leaves in figures.json
    "base_right": share(0.4),
    "base_right_sampled": share(0.3),
    "dpo_right": share(0.8),
    "dpo_right_sampled": share(0.7),
    "dpo_vs_sft_p": {"value": 0.004, "seed": 0},
    "dpo_pair_accuracy": share(0.75),
    "dpo_agreement_reward_model": share(0.65),
    "seconds": {"value": 60.0, "seed": 0, "n": 1},
}


def test_figures_have_the_names_of_the_task_the_policy_and_the_seed():
    found = name_figures("reasons", "", 0, RECIPE)
    assert found["reasons_base"] == share(0.4) and found["reasons_dpo_sampled"] == share(0.7)
    assert found["reasons_dpo_p"]["value"] == 0.004
    assert found["reasons_dpo_pairs"] == share(0.75)
    assert "reasons_sft" not in found, "what was not trained has no figure"
    other = name_figures("reasons", "hacked", 2, RECIPE)
    assert other["reasons_hacked_dpo_seed_2"] == share(0.8)
    assert "reasons_hacked_base_seed_2" not in other
    assert not other.keys() & found.keys()


def test_of_counts_the_share_is_that_of_exact_answers():
    found = name_figures("counting", "", 0, {
        "base_exact": share(0.3), "base_exact_sampled": share(0.2), "seconds": share(1.0),
    })  # fmt: skip
    assert found["counting_base"] == share(0.3)


def test_a_row_has_the_first_seed_and_the_range_of_all():
    figures = {
        "reasons_base": share(0.4),
        "reasons_base_seed_1": share(0.4, 1),
        "reasons_dpo": share(0.8),
        "reasons_dpo_seed_1": share(0.7, 1),
        "reasons_dpo_seed_2": share(0.9, 2),
        "reasons_dpo_p": {"value": 0.001},
        "reasons_dpo_p_seed_1": {"value": 0.03},
        "reasons_dpo_pairs": share(0.75),
        "reasons_base_sampled": share(0.3),
        "reasons_dpo_sampled": share(0.6),
        "reasons_dpo_sampled_seed_1": share(0.5, 1),
    }
    head, row = task_rows(figures)
    cells = dict(zip(head, row, strict=True))
    assert cells["base"] == "0.400 [0.300, 0.500]"
    assert cells["DPO"] == "0.800 [0.700, 0.900]; 3 seeds 0.700 – 0.900"
    assert cells["SFT"] == cells["RL"] == "–"
    assert cells["sampled: base, SFT, DPO, RL"] == "0.30, –, 0.60, –"
    # the worst of the seeds, not the best
    assert cells["p against SFT: DPO, RL"] == "0.03, –"
    assert cells["held-out pairs: SFT, DPO, RL"] == "–, 0.75, –"
    assert task_rows({})[1:] == []


def test_better_than_sft_is_what_is_so_in_every_seed():
    figures = {
        "reasons_base": share(0.4),
        "reasons_sft": share(0.5),
        "reasons_sft_seed_1": share(0.6, 1),
        "reasons_dpo": share(0.8),
        "reasons_dpo_seed_1": share(0.7, 1),
        "reasons_dpo_p": {"value": 0.001},
        "reasons_dpo_p_seed_1": {"value": 0.03},
        "reasons_rl": share(0.1),
        "reasons_rl_seed_1": share(0.1, 1),
        "reasons_rl_p": {"value": 0.001},
        "reasons_rl_p_seed_1": {"value": 0.001},
    }
    head, row = task_rows(figures)
    place = head.index("better than SFT")
    assert row[place] == "DPO; RL is worse in 2 of 2 seeds"
    figures["reasons_dpo_p_seed_1"] = figures["reasons_rl_p_seed_1"] = {"value": 0.05}
    assert task_rows(figures)[1][place] == "nothing; RL is worse in 1 of 2 seeds"


def test_the_projects_own_way_has_a_row_of_its_own():
    figures = {"reasons_base": share(0.4), "reasons_hacked_rl": share(0.1)}
    head, _, row = task_rows(figures)
    cells = dict(zip(head, row, strict=True))
    assert cells["task"] == "reasons, RL on the project's rules"
    assert cells["base"] == "0.400 [0.300, 0.500]" and cells["RL"] == "0.100 [0.000, 0.200]"
    assert cells["SFT"] == cells["better than SFT"] == "–"
