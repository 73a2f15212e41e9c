"""Adapters on disk: whole ones come back, and none is loaded that would answer as its base."""

import json
import re

import pytest
import torch
from safetensors.torch import load_file, save_file

from helpers import models
from helpers.config import LoraSettings
from helpers.files import SEAL_FILE, UsageError, read_json, write_json
from helpers.models import policies


def saved_adapter(folder, about=None, seed=0):
    """Save an adapter that moves the model; returns its folder."""
    model, _ = models.load_model("tiny")
    model = models.add_adapter(model, LoraSettings(r=4), seed)
    torch.manual_seed(seed)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.1)
    return models.save_adapter(model, folder, about or {"base": "tiny"})


def change_weights(folder, change):
    """Write the adapter's tensors again, as `change` makes them, as another tool does."""
    path = folder / "adapter_model.safetensors"
    save_file(change(load_file(path)), path)
    (folder / SEAL_FILE).unlink(missing_ok=True)


def keep_half(weights):
    return {name: value for name, value in weights.items() if "layers.0." in name}


def to_other_layers(weights):
    return {name.replace("layers.0.", "layers.9."): value for name, value in weights.items()}


def as_whole_numbers(weights):
    return {name: (100 * value).to(torch.int8) for name, value in weights.items()}


def one_is_nan(weights):
    first = min(weights)
    return weights | {first: torch.full_like(weights[first], torch.nan)}


def with_magnitudes(weights):
    """As DoRA saves them, in a folder whose configuration does not say so."""
    first = next(name for name in weights if "lora_A" in name)
    name = first.replace("lora_A.weight", "lora_magnitude_vector")
    return weights | {name: torch.ones(64)}


def without_a_dimension(weights):
    first = min(weights)
    return weights | {first: weights[first][:, :-1].contiguous()}


@pytest.mark.parametrize(
    "change, said",
    [
        (keep_half, "tensors do not fit this base .* trained on tiny"),
        (to_other_layers, r"28 tensors do not fit this base .*layers\.0\."),
        (as_whole_numbers, "of torch.int8, in which no adapter answers"),
        (one_is_nan, "is not finite"),
        (with_magnitudes, "1 tensors do not fit this base .*magnitude"),
        (without_a_dimension, "trained on tiny and does not fit the model loaded"),
    ],
)
def test_an_adapter_that_would_not_answer_is_refused(tmp_path, change, said):
    """peft loads most of these without an error: the model would answer as its base does."""
    folder = saved_adapter(tmp_path / "adapter")
    change_weights(folder, change)
    base, _ = models.load_model("tiny")
    with pytest.raises(UsageError, match=said) as refused:
        models.load_adapter(base, folder)
    assert str(folder) in str(refused.value)


def test_an_adapter_that_is_refused_leaves_the_others_as_they_are(tmp_path):
    good = saved_adapter(tmp_path / "good")
    bad = saved_adapter(tmp_path / "bad", seed=1)
    change_weights(bad, keep_half)
    model = models.load_adapter(models.load_model("tiny")[0], good)
    with pytest.raises(UsageError, match="do not fit"):
        models.load_adapter(model, bad, "second")
    assert set(model.peft_config) == {"default"} and model.active_adapter == "default"


def test_a_whole_one_comes_back_in_its_own_numbers(tmp_path):
    """Also where the file is in 16 bits, as some tools write it."""
    folder = saved_adapter(tmp_path / "adapter")
    change_weights(folder, lambda weights: {name: w.half() for name, w in weights.items()})
    model = models.load_adapter(models.load_model("tiny")[0], folder)
    saved = load_file(folder / "adapter_model.safetensors")
    for name, parameter in model.named_parameters():
        if "lora_" in name:
            assert torch.equal(parameter, saved[name.replace(".default", "")].float())


def test_a_reward_models_folder_is_no_policy(tmp_path):
    folder = saved_adapter(tmp_path / "reward")
    (folder / models.HEAD_FILE).write_bytes(b"")
    base, _ = models.load_model("tiny")
    with pytest.raises(UsageError, match=r"of a reward model .* which answers nothing"):
        models.load_adapter(base, folder)


def test_without_about_json_the_configuration_names_the_base(tmp_path):
    folder = saved_adapter(tmp_path / "adapter")
    (folder / "about.json").unlink()
    config = folder / "adapter_config.json"
    write_json(config, read_json(config) | {"base_model_name_or_path": "their/model"})
    change_weights(folder, keep_half)
    with pytest.raises(UsageError, match="trained on their/model"):
        models.load_adapter(models.load_model("tiny")[0], folder)


def test_another_rank_than_the_configuration_says(tmp_path):
    folder = saved_adapter(tmp_path / "adapter")
    config = folder / "adapter_config.json"
    config.write_text(re.sub(r'"r": 4', '"r": 8', config.read_text()))
    (folder / SEAL_FILE).unlink()
    with pytest.raises(UsageError, match="does not fit the model loaded"):
        models.load_adapter(models.load_model("tiny")[0], folder)


def test_names_that_differ_in_a_dot_are_two_policies(tmp_path, tiny):
    """peft takes a dot for the end of a module's name, so one of them gets another name there."""
    for number, name in enumerate(("a.b", "a_b")):
        saved_adapter(tmp_path / name, seed=number)
    model, processor = models.load_model("tiny")
    found = policies.find_policies("tiny", tmp_path, shipped=False)
    loaded = models.Policies(model, processor, found)
    weights = {}
    for name in ("a.b", "a_b"):
        with loaded.use_policy(name) as policy:
            active = policy.active_adapter
            weights[name] = {
                key: value.clone()
                for key, value in policy.named_parameters()
                if f".{active}." in key and "lora_B" in key
            }
    first, second = (torch.cat([w.flatten() for w in each.values()]) for each in weights.values())
    assert not torch.equal(first, second)
    saved = load_file(tmp_path / "a_b" / "adapter_model.safetensors")
    expected = torch.cat([w.flatten() for name, w in sorted(saved.items()) if "lora_B" in name])
    assert torch.equal(second.sort().values, expected.sort().values)
    assert json.loads((tmp_path / "a.b" / "about.json").read_text())["base"] == "tiny"
