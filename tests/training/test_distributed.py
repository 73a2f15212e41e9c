"""Two processes (gloo, CPU) train reward model, SFT, DPO and PPO as one does at as many pairs or answers a step."""

import os
import subprocess
import sys

import pytest
import torch
from accelerate.commands.config.config_args import load_config_from_file
from safetensors.torch import load_file
from torch.testing import assert_close

from helpers import cli
from helpers.files import ROOT, UsageError, read_json
from helpers.training import distributed

pytestmark = pytest.mark.heavy(reason="trains in processes of their own")

RECIPE = """
title = "One process or two"
model = "tiny"
stages = ["data", "reward", "sft", "dpo", "ppo"]
[data]
limit = 16
[reward]
preset = "tiny"
heads = ["linear"]  # the others have dropout, which each process draws for itself
settings = { epochs = 1, batch_size = 4, evaluations = 1, lora = { r = 4 } }
[sft]
preset = "tiny"
settings = { steps = 2, batch_size = 4, warmup_share = 0.0 }
[dpo]
preset = "tiny"
settings = { steps = 2, batch_size = 4, sft_weight = 0.0, warmup_share = 0.0, checkpoint_steps = 2 }
[ppo]
preset = "tiny"
critic_warm_up_epochs = 1
score = { count_graded = 1.0 }
settings = { iterations = 2, prompts_per_iteration = 4, group_size = 2, mini_batch = 2, shards = 2, critic_layers = 3, checkpoint_every = 2, max_new_tokens = 24 }
"""
REPORT = 'import torch.distributed as d; print("processes", d.get_world_size() if d.is_initialized() else 1)'


def arguments(folder, *settings):
    """Arguments that run the recipe."""
    recipe = folder.parent / "recipe.toml"
    recipe.write_text(RECIPE)
    changes = [part for setting in settings for part in ("--set", setting)]
    return ["train", "--config", str(recipe), "--out", str(folder), *changes]


def train_in_two(folder):
    """Run the recipe in two processes; returns what they printed."""
    script = folder.parent / "train.py"
    script.write_text(
        f"from helpers.cli import main\ncode = main()\n{REPORT}\nraise SystemExit(code)\n"
    )
    launch = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    command = [sys.executable, *launch, str(script), *arguments(folder)]
    environment = {
        "ACCELERATE_USE_CPU": "true",
        "PYTHONPATH": str(ROOT),
        "OMP_NUM_THREADS": "1",
        "TQDM_DISABLE": "1",
    }
    done = subprocess.run(
        command, env=os.environ | environment, capture_output=True, text=True, timeout=600
    )
    assert done.returncode == 0, done.stdout[-1000:] + done.stderr[-3000:]
    return done.stdout


@pytest.fixture(scope="module")
def both(tmp_path_factory):
    """Folders of one process (this one), with batches twice as large, and of two."""
    folder = tmp_path_factory.mktemp("processes")
    larger = (
        "dpo.settings.batch_size=8",
        "sft.settings.batch_size=8",
        "reward.settings.accumulation=2",
    )
    assert cli.main(arguments(folder / "one", *larger)) == 0
    printed = train_in_two(folder / "two")
    assert printed.count("processes 2") == 2  # a launcher may start one, without a word
    return folder / "one", folder / "two"


@pytest.mark.parametrize(
    "file",
    ["reward/linear-bradley_terry/adapter_model.safetensors", "reward/linear-bradley_terry/head.safetensors",
     "sft/adapter_model.safetensors", "dpo/adapter_model.safetensors", "ppo/adapter_model.safetensors"],
)  # fmt: skip
def test_two_processes_get_the_weights_of_one(both, file):
    one, two = (load_file(folder / file) for folder in both)
    assert one.keys() == two.keys()
    for name, weight in one.items():
        assert_close(two[name], weight, atol=1e-4, rtol=0)
    assert any(
        weight.abs().max() > 1e-4
        for name, weight in one.items()
        if "lora_B" in name or "lora" not in name
    )


def test_the_critic_of_two_processes_is_that_of_one(both):
    one, two = (
        torch.load(folder / "ppo" / "checkpoint-2" / "state.pt", weights_only=True)
        for folder in both
    )
    critic = [name for name in one["weights"] if "critic" in name]
    assert len(critic) > 40 and len(one["log"]) == len(two["log"]) == 2
    for name in critic:
        assert_close(two["weights"][name], one["weights"][name], atol=1e-4, rtol=0)


def test_their_logs_agree(both):
    dpo = [read_json(folder / "dpo" / "log.json") for folder in both]
    for key in ("loss", "rewards/margins", "logps/chosen"):
        assert [row[key] for row in dpo[1]] == pytest.approx([row[key] for row in dpo[0]], abs=1e-4)
    # of answers of different lengths: the tokens of both processes count alike
    sft = [read_json(folder / "sft" / "log.json") for folder in both]
    for key in ("loss", "mean_token_accuracy"):
        assert [row[key] for row in sft[1]] == pytest.approx([row[key] for row in sft[0]], abs=1e-5)
    one, two = (read_json(folder / "figures.json") for folder in both)
    assert one.keys() == two.keys() and "reward_linear_bradley_terry_pair_accuracy" in one
    for name in one:
        assert two[name]["value"] == pytest.approx(one[name]["value"], abs=1e-3), name
    samples = [(folder / "ppo" / "log.jsonl").read_text().count('"samples"') for folder in both]
    assert samples == [2, 2]


def test_every_item_has_one_owner_and_comes_back_in_order():
    class Process:
        num_processes = 3

        def __init__(self, index):
            self.process_index = index

    items = list("abcdefgh")
    shares = [distributed.own_share(Process(index), items) for index in range(3)]
    assert shares == [["a", "d", "g"], ["b", "e", "h"], ["c", "f"]]


def test_what_is_put_together_is_in_the_order_of_the_items(monkeypatch):
    class Process:
        num_processes, process_index = 2, 0

    monkeypatch.setattr(distributed, "gather_object", lambda own: [*own, (1, "b"), (3, "d")])
    assert distributed.gather_in_order(Process(), ["a", "c"]) == ["a", "b", "c", "d"]


def test_split_weights_are_refused_where_the_whole_model_is_needed(monkeypatch):
    class Sharded:
        def __init__(self, **_):
            self.distributed_type = distributed.DistributedType.FSDP

    monkeypatch.setattr(distributed, "Accelerator", Sharded)
    with pytest.raises(
        UsageError, match="PPO runs with a whole model in each process, not with FSDP"
    ):
        distributed.new_accelerator("PPO")


@pytest.mark.parametrize(
    ("name", "kind"), [("ddp", "MULTI_GPU"), ("fsdp", "FSDP"), ("deepspeed", "DEEPSPEED")]
)
def test_the_shipped_configurations_are_what_accelerate_reads(name, kind):
    path = ROOT / "recipes" / "accelerate" / f"{name}.yaml"
    config = load_config_from_file(str(path))
    assert config.distributed_type == kind and config.num_processes == 2
    command = path.read_text(encoding="utf-8").split("accelerate launch ")[1].splitlines()[0]
    assert (
        f"--config_file recipes/accelerate/{name}.yaml" in command
        and "-m helpers train --config counting" in command
    )
