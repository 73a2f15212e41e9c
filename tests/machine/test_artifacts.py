"""Files that belong together: saves that are cut off anywhere, and `verify`."""

import shutil

import pytest
import torch
from safetensors.torch import save_file

from helpers import cli, files, models
from helpers.config import LoraSettings, reward_preset
from helpers.files import UsageError, read_json, write_json, write_text
from helpers.machine import find_artifacts, seal_checkpoint
from helpers.rewards import load_reward_model, new_reward_model, save_reward_model


def policy(seed):
    """An adapter that answers otherwise with each seed."""
    model = models.add_adapter(models.load_model("tiny")[0], LoraSettings(r=2), seed)
    torch.manual_seed(seed)
    for name, weight in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(weight, std=0.1)
    return model


def save_policy(folder, seed):
    models.save_adapter(policy(seed), folder, {"base": "tiny", "seed": seed})


def load_policy(folder):
    model = models.load_adapter(models.load_model("tiny")[0], folder)
    weights = [w for name, w in model.named_parameters() if "lora_B" in name]
    return torch.cat([w.flatten() for w in weights]).clone(), read_json(folder / "about.json")


def save_reward(folder, seed):
    settings = reward_preset("tiny")
    scored = new_reward_model(*models.load_model("tiny"), settings, seed)
    torch.manual_seed(seed)
    for weight in scored.trainable_parameters().values():
        torch.nn.init.normal_(weight, std=0.1)
    save_reward_model(scored, folder, settings, {"base": "tiny", "seed": seed})


def load_reward(folder):
    scored = load_reward_model(*models.load_model("tiny"), folder)
    weights = [w.flatten() for _, w in sorted(scored.trainable_parameters().items())]
    return torch.cat(weights).clone(), read_json(folder / "about.json")


def mixtures(old, new):
    """Folders as a save of `new` over `old` leaves them when it is cut off after any file."""
    order = sorted(new.iterdir(), key=lambda path: path.stat().st_mtime_ns)
    for written in range(len(order) + 1):
        mixed = old.with_name(f"mixed-{written}")
        shutil.copytree(old, mixed)
        for path in order[:written]:
            shutil.copy(path, mixed)
        yield written, mixed
        if written < len(order):
            # and in the middle of the next one
            half = old.with_name(f"half-{written}")
            shutil.copytree(mixed, half)
            raw = order[written].read_bytes()
            (half / order[written].name).write_bytes(raw[: len(raw) // 2])
            yield written, half


@pytest.mark.parametrize(
    "save, load", [(save_policy, load_policy), (save_reward, load_reward)], ids=["policy", "reward"]
)
def test_a_save_that_was_cut_off_is_the_old_one_the_new_one_or_refused(tmp_path, save, load):
    """Never a mixture: weights of one training with the settings, or the head, of another."""
    for seed in (0, 1):
        save(tmp_path / f"seed-{seed}", seed)
    whole = {seed: load(tmp_path / f"seed-{seed}")[0] for seed in (0, 1)}
    assert not torch.equal(whole[0], whole[1])
    loaded, refused = 0, 0
    for _, folder in mixtures(tmp_path / "seed-0", tmp_path / "seed-1"):
        try:
            weights, about = load(folder)
        except UsageError as error:
            assert str(folder) in str(error)
            refused += 1
            continue
        loaded += 1
        assert torch.equal(weights, whole[about["seed"]]), folder.name
    # the first and the last are whole; README.md of peft belongs to nothing
    assert loaded >= 2 and refused >= 4


def test_verify_names_what_is_whole_and_what_is_not(tmp_path, capsys):
    save_policy(tmp_path / "dpo" / "seed-0", 0)
    save_policy(tmp_path / "dpo" / "seed-1", 1)
    checkpoint = tmp_path / "sft" / "checkpoint-3"
    write_text(checkpoint / "state.txt", "three steps")
    seal_checkpoint(checkpoint, {"stage": "SFT", "seed": "4"})
    assert cli.main(["verify", str(tmp_path)]) == 0
    said = capsys.readouterr().out
    assert "dpo/seed-1: ✓ whole; base tiny, seed 1" in said
    assert "sft/checkpoint-3: ✓ whole; a checkpoint of SFT, seed 4" in said
    write_text(checkpoint / "state.txt", "four steps")
    (tmp_path / "dpo" / "seed-0" / "adapter_config.json").unlink()
    assert cli.main(["verify", str(tmp_path)]) == 1
    said = capsys.readouterr()
    assert "dpo/seed-0: ✗ not as it was written: adapter_config.json" in said.out
    assert "checkpoint-3: ✗ not as it was written" in said.out
    assert "2 of 3 are not as they were written" in said.err
    # of a single one
    (alone,) = find_artifacts(tmp_path / "dpo" / "seed-1")
    assert alone.name == "seed-1" and not alone.broken


def test_verify_says_where_there_is_nothing(tmp_path):
    with pytest.raises(UsageError, match="nothing here says which files belong together"):
        find_artifacts(tmp_path)
    with pytest.raises(UsageError, match="no such folder"):
        find_artifacts(tmp_path / "none")


def test_a_folder_of_an_earlier_version_is_loaded(tmp_path):
    """It has no seal, so that nothing can be said against it."""
    save_policy(tmp_path, 0)
    (tmp_path / files.SEAL_FILE).unlink()
    load_policy(tmp_path)
    write_json(tmp_path / "about.json", {"base": "tiny", "seed": 5})
    assert load_policy(tmp_path)[1]["seed"] == 5


def test_a_file_is_on_the_disk_before_it_has_its_name(tmp_path, monkeypatch):
    """What is renamed before it is written out can be empty after a machine was lost."""
    events = []
    monkeypatch.setattr(files.os, "fsync", lambda number: events.append("sync"))
    replace = files.Path.replace
    monkeypatch.setattr(
        files.Path, "replace", lambda *given: events.append("rename") or replace(*given)
    )
    with files.replace_file(tmp_path / "net.safetensors") as beside:
        save_file({"weight": torch.ones(2)}, beside)
    assert events == ["sync", "rename"]
