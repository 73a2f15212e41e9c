import json
import shutil

import pytest
import torch
from shipped import TRAFFIC

from helpers import models
from helpers.config import LoraSettings
from helpers.data import read_counts
from helpers.data.pairs import counting_tasks
from helpers.evaluation.task_results import evaluate_tasks
from helpers.evaluation.truth_judges import judges
from helpers.files import UsageError, open_image
from helpers.models.policies import SHIPPED_POLICIES, Policies, find_policies, image_limit
from helpers.models.prompts import encode


def copy(folder, base="tiny", **more):
    shutil.copytree(SHIPPED_POLICIES, folder)
    (folder / "about.json").write_text(json.dumps({"base": base, "seed": 3, **more}))


@pytest.fixture(scope="module")
def shipped():
    return Policies(*models.load_model("tiny"), find_policies("tiny", TRAFFIC))


def test_adapters_are_found_by_stage_and_others_are_left_out_and_named(tmp_path, capsys):
    copy(tmp_path / "dpo" / "seed-3")
    copy(tmp_path / "ppo" / "v1.5")
    copy(tmp_path / "dpo" / "real", base="qwen2-vl-2b")
    copy(tmp_path / "reward")
    (tmp_path / "reward" / "head.safetensors").write_bytes(b"")
    # of another run, which was set aside
    copy(tmp_path / "dpo" / "seed-3.old-1")
    shutil.copytree(SHIPPED_POLICIES, tmp_path / "dpo" / "seed-3" / "trainer" / "checkpoint-60")
    (tmp_path / "dpo" / "seed-3" / "trainer" / "checkpoint-60" / "about.json").unlink()
    found = find_policies("tiny", tmp_path)
    assert [(p.name, p.seed) for p in found] == [("dpo/seed-3", 3), ("ppo/v1.5", 3)]
    assert (
        "leaving out dpo/real: it was trained on 'qwen2-vl-2b', not 'tiny'"
        in capsys.readouterr().out
    )


def test_without_any_the_shipped_one_is_taken_and_said_to_be(tmp_path, capsys):
    (only,) = find_policies("tiny", tmp_path)
    assert (
        only.folder == SHIPPED_POLICIES and "comes with the repository" in capsys.readouterr().out
    )
    with pytest.raises(UsageError, match="Run notebook 04"):
        find_policies("tiny", tmp_path, shipped=False)
    with pytest.raises(UsageError, match="no adapter of 'qwen2-vl-2b'"):
        find_policies("qwen2-vl-2b", tmp_path)


def test_all_policies_see_images_as_small_as_any_was_trained_with(tmp_path, capsys):
    for name, pixels in (("a", None), ("b", 90_000), ("c", 50_176)):
        copy(tmp_path / name, max_pixels=pixels)
    saved = find_policies("tiny", tmp_path)
    assert image_limit(saved[:1]) is None and image_limit(saved[:1], 70_000) == 70_000
    assert image_limit(saved, 40_000) == 40_000 and capsys.readouterr().out == ""
    assert image_limit(saved) == 50_176 == image_limit(saved, 60_000)
    assert (
        capsys.readouterr().out
        == "images are reduced to 50,176 pixels, as when c was trained\n" * 2
    )


def test_the_shipped_adapter_names_no_path_of_a_machine():
    config = json.loads((SHIPPED_POLICIES / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == "data/tiny-qwen2-vl"
    assert (
        json.loads((SHIPPED_POLICIES / "about.json").read_text())["data"]
        == "data/traffic/preferences_train.jsonl"
    )


@pytest.mark.heavy(reason="generates for two seconds")
def test_the_shipped_adapter_counts_what_the_base_miscounts(shipped):
    """Of 400 held-out scenes the base has a third right, this nearly all; 60 of them are enough to see that."""
    items = read_counts(TRAFFIC, "test")[:60]
    judge, shares = judges(counting_tasks(items)), []
    for name in ("base", "dpo/shipped"):
        with shipped.use_policy(name) as model:
            shares.append(evaluate_tasks(model, shipped.processor, judge).right_share)
    assert shares[0].high < 0.6 and shares[1].low > 0.9


def test_one_base_speaks_for_all_and_is_left_as_it_was(tmp_path):
    copy(tmp_path / "dpo" / "v1.5")
    model, processor = models.load_model("tiny")
    weights = {name: p.data_ptr() for name, p in model.named_parameters()}
    policies = Policies(model, processor, find_policies("tiny", tmp_path))
    assert policies.names == ["base", "dpo/v1.5"]
    question = "How many cars are there?"
    image = read_counts(TRAFFIC, "test")[0].path

    def answer(name):
        with policies.use_policy(name) as speaker:
            return models.generate_answers(speaker, processor, [image], [question])[0]

    first = answer("base")
    assert answer("dpo/v1.5") and answer("base") == first
    kept = {
        name.replace("base_model.model.", "").replace(".base_layer", ""): p
        for name, p in policies.model.named_parameters()
    }
    assert all(kept[name].data_ptr() == pointer for name, pointer in weights.items()), (
        "a second copy of the base"
    )


def test_more_adapters_of_the_same_base_can_join(tmp_path, tiny):
    copy(tmp_path / "one" / "dpo" / "a")
    copy(tmp_path / "two" / "dpo" / "a")
    copy(tmp_path / "two" / "ppo" / "b")
    policies = Policies(*tiny, find_policies("tiny", tmp_path / "one"))
    assert policies.add_folder(tmp_path / "two") == ["ppo/b"] and policies.names == [
        "base",
        "dpo/a",
        "ppo/b",
    ]
    assert policies.saved["dpo/a"].folder.is_relative_to(tmp_path / "one"), (
        "a name that is taken stays whose it was"
    )
    with pytest.raises(UsageError, match="no adapter yet"):
        Policies(*tiny).add_folder(tmp_path / "two")


def test_an_adapter_that_was_there_stays_active(tmp_path):
    copy(tmp_path / "dpo" / "a")
    model, processor = models.load_model("tiny")
    model = models.add_adapter(model, LoraSettings(), name="reward")
    policies = Policies(model, processor, find_policies("tiny", tmp_path))
    with policies.use_policy("dpo/a") as speaker:
        assert speaker.active_adapter == "dpo/a"
    assert policies.model.active_adapter == "reward"
    with policies.use_policy("base") as speaker, torch.no_grad():
        assert all(
            not layer.active_adapters or layer.disable_adapters for layer in lora_layers(speaker)
        )
    assert policies.model.active_adapter == "reward"


def lora_layers(model):
    return [module for module in model.modules() if hasattr(module, "lora_A")]


def test_unknown_and_reserved_names_are_refused(tmp_path, tiny):
    copy(tmp_path / "base")
    with pytest.raises(UsageError, match="cannot be called 'base'"):
        Policies(*tiny, find_policies("tiny", tmp_path))
    with (
        pytest.raises(UsageError, match="unknown policy 'dpo': there are base"),
        Policies(*tiny).use_policy("dpo"),
    ):
        pass


def test_a_policy_that_was_just_trained_is_asked_as_it_is():
    """No file is read: the adapter on the model is the policy, the base is the model without it."""
    model, processor = models.load_model("tiny")
    trained = models.add_adapter(model, LoraSettings(r=2), 0)
    with torch.no_grad():
        for name, weight in trained.named_parameters():
            if "lora_B" in name:
                weight.add_(0.05)
    policies = Policies.of_trained(trained, processor, "dpo/now", {"reward": "x"})
    assert (
        policies.names == ["base", "dpo/now"] and policies.saved["dpo/now"].about["reward"] == "x"
    )
    image = open_image(read_counts(TRAFFIC, "valid")[0].path)
    inputs = encode(processor, ["Where?"], [image])
    found = {}
    for name in policies.names:
        with policies.use_policy(name) as model, torch.no_grad():
            found[name] = model(**inputs).logits
    with torch.no_grad():
        assert torch.equal(found["dpo/now"], trained(**inputs).logits)
    assert not torch.allclose(found["dpo/now"], found["base"])
