import dataclasses
import json

import pytest
import yaml

from helpers.evaluation.exam import PolicyFindings
from helpers.files import UsageError
from helpers.report.model_card import data_licences, render_model_card, training_command


def found(**about):
    return PolicyFindings(
        about={"base": "tiny", "seed": 2, "settings": {"beta": 0.5}} | about, n=400, failures=["it lies"],
        rows=[["policy", "p"], ["x|y", "0.01"]], details=[("class by class", [["class"], ["cars"]])], sight="it falls to chance",
        language="⚠️ it has forgotten language",
    )  # fmt: skip


def test_a_card_holds_what_a_reader_of_the_hub_needs():
    card = render_model_card("dpo/seed-2", found(data="data/traffic/preferences_train.jsonl"))
    metadata = yaml.safe_load(card.split("---")[1])
    assert metadata["base_model"] == "data/tiny-qwen2-vl" and metadata["library_name"] == "peft"
    assert "Licence of the data: Apache-2.0. Licence of the base: Apache-2.0." in card
    assert (
        "python -m helpers run 04 --set MODEL=tiny --set 'SEEDS=(2,)'" in card
        and '"beta": 0.5' in card
    )
    assert "## Does it still speak?\n⚠️ it has forgotten language\n" in card
    assert (
        "| x\\|y | 0.01 |" in card
        and "* it lies" in card
        and "torch 2." in card
        and "400 held-out items" in card
    )


def test_a_card_of_a_reward_names_it_and_no_path_of_a_machine(tmp_path):
    path = tmp_path / "train.jsonl"
    path.write_text('{"licence": "CC BY 4.0"}\n{"licence": null}\n')
    card = render_model_card("ppo/ppo", found(reward="count_exact", data=str(path)))
    assert (
        "trained with PPO on the reward `count_exact`, seed 2" in card and str(tmp_path) not in card
    )
    assert "CC BY 4.0, not stated in the data" in card
    path.unlink()
    assert "unknown, train.jsonl is not here any more" in render_model_card(
        "ppo/ppo", found(data=str(path))
    )


def test_broken_data_is_named(tmp_path):
    path = tmp_path / "train.jsonl"
    path.write_text('{"licence": "MIT"}\n{"licence"')
    with pytest.raises(UsageError, match=r"train\.jsonl:2: not a JSON object"):
        data_licences({"data": str(path)})


def test_the_command_quotes_what_a_shell_would_read():
    assert (
        training_command("ppo/ppo", {"base": "a b", "seed": 1})
        == "python -m helpers run 05 --set 'MODEL=a b' --set SEED=1"
    )
    assert json.dumps(dataclasses.asdict(found()))
