"""The machine check on machines that are made up: a T4, small cards, a CPU, Colab, other versions, little disk."""

import importlib.metadata
import importlib.util
import os
import platform
import shutil
import socket
from collections import namedtuple
from dataclasses import replace
from types import SimpleNamespace

import psutil
import pytest
import torch
from huggingface_hub import constants
from packaging.requirements import Requirement
from packaging.version import Version

from helpers.config import dpo_preset, ppo_preset, reward_preset, sft_preset
from helpers.files import ROOT, UsageError
from helpers.machine import duration, facts, fits, memory
from helpers.machine.duration import StageSeconds
from helpers.machine.facts import (
    OPTIONAL_PACKAGES,
    TESTED_PYTHON,
    TESTED_VERSIONS,
    download_gb,
    installed_version,
    measure_disks,
    measure_machine,
    untested_versions,
    versions_in_use,
)
from helpers.machine.fits import check_machine, machine_warnings
from helpers.machine.fitting import fit_settings
from helpers.machine.memory import forecast_memory
from helpers.machine.speed import Line, MachineSpeed, bf16_gain, measure_speed
from helpers.machine.workload import GenerationSettings, Workload
from helpers.models.image_sizes import visual_tokens
from helpers.models.presets import PRESETS
from helpers.models.shapes import shapes_of

Disk = namedtuple("Disk", "total used free")
T4 = 15.8e9  # bytes
NEVER = float("inf")
NOTHING = Line(0.0, 0.0)
SPEED = MachineSpeed(Line(1e-3, 1e-5), Line(3e-3, 3e-5), Line(1e-3, 1e-5), 1e-9, 3e-9, 1e12, 1e11)
STEP = duration.STEP_LAYERS
FREE = MachineSpeed(NOTHING, NOTHING, NOTHING, 0.0, 0.0, NEVER, NEVER)  # nothing takes time


def card(name, **changes):
    """Images as large as the presets have them, on a GPU."""
    return replace(Workload(name, 448, 448), **changes)


def tested_versions(**others):
    """The highest tested version of all packages but the others."""
    tested = {package: high + ".0" for package, (_, high) in TESTED_VERSIONS.items()}
    return {"Python": TESTED_PYTHON[1] + ".0"} | tested | others


@pytest.fixture(autouse=True)
def known(monkeypatch, artifacts, tmp_path):
    """No cache of the hub, versions as tested, 100 GB of disk, no Colab, fixed rates, no network."""
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(facts, "versions_in_use", tested_versions)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: Disk(200 * 10**9, 0, 100 * 10**9))
    monkeypatch.setattr(fits, "measure_speed", lambda _: SPEED)
    monkeypatch.setattr(fits, "bf16_gain", lambda _: 1.0)
    monkeypatch.delenv("COLAB_RELEASE_TAG", raising=False)
    monkeypatch.setattr(socket.socket, "connect", lambda *_: pytest.fail("the network was asked"))


def gpu(monkeypatch, total, free=None, reserved=0, capability=(7, 5), name="Tesla T4"):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda *_: capability)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda *_: SimpleNamespace(name=name))
    monkeypatch.setattr(
        torch.cuda, "mem_get_info", lambda *_: (total if free is None else free, total)
    )
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda *_: reserved)


def cpu(monkeypatch, available):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(
        psutil, "virtual_memory", lambda: SimpleNamespace(available=available, total=available * 2)
    )
    monkeypatch.setattr(
        psutil, "Process", lambda: SimpleNamespace(memory_info=lambda: SimpleNamespace(rss=0))
    )


def test_a_t4_computes_in_fp16_and_what_fits_stays_as_it_is(monkeypatch, capsys):
    gpu(monkeypatch, T4)
    given = {"sft": sft_preset("t4"), "dpo": dpo_preset("t4")}
    given |= {"reward": reward_preset("t4"), "ppo": ppo_preset("t4")}
    plan = check_machine("qwen2-vl-2b", **given)
    out = capsys.readouterr().out
    assert all(getattr(plan, stage) is settings for stage, settings in given.items())
    assert (
        "Tesla T4, compute capability 7.5" in out
        and "15.8 GB of 15.8 GB GPU memory are free" in out
    )
    assert "float16: this GPU only emulates bfloat16 (its compute capability is below 8.0)" in out
    assert "versions    as tested, Python" in out and plan.warnings == () and "⚠️" not in out
    # 0.9 × 15.8 = 14.2 GB; all stages have a row, and none a change
    rows = [line.split() for line in out.split("GB of 14.2")[1].splitlines()[1:6]]
    assert [row[0] for row in rows] == ["load", *given] and all(row[-1] == "–" for row in rows)
    assert [float(row[1]) for row in rows] == [
        round(plan.forecasts[row[0]].memory.total, 1) for row in rows
    ]


def test_a_card_of_capability_8_computes_in_bf16(monkeypatch, capsys):
    gpu(monkeypatch, 23.7e9, capability=(8, 9), name="NVIDIA L4")
    check_machine("tiny")
    assert "bfloat16: this GPU has it in hardware" in capsys.readouterr().out


def test_a_batch_that_does_not_fit_is_halved_and_accumulated_twice_as_often(monkeypatch, capsys):
    gpu(monkeypatch, T4)
    settings = replace(
        reward_preset("t4"), batch_size=4, accumulation=4, gradient_checkpointing=True
    )
    plan = check_machine("llava-next-llama3-8b", reward=settings)
    # weights 6.35, adapter 0.24, overhead 0.95, and 1.68 for each record: (14.22 − 7.54) / 1.68 = 3.98
    assert plan.forecasts["reward"].largest_batch == 3
    assert plan.reward == replace(
        settings, batch_size=2, accumulation=8
    )  # 4 × 4 = 2 × 8 = 16 records a step
    assert "batch_size 4 → 2, accumulation 4 → 8" in capsys.readouterr().out
    too_much = forecast_memory(card("llava-next-llama3-8b"), settings).total
    assert plan.forecasts["reward"].memory.total <= 0.9 * 15.8 < too_much


def test_a_model_that_does_not_fit_names_those_that_do(monkeypatch):
    gpu(monkeypatch, 6e9)
    with pytest.raises(UsageError) as error:
        check_machine("llava-next-llama3-8b", reward=reward_preset("t4"))
    text = str(error.value)
    assert (
        text.startswith("llava-next-llama3-8b does not fit: stage load takes 8.1 GB")
        and "5.4 GB can be used" in text
    )
    named = text.rsplit("with: ", 1)[1].rstrip(".").split(", ")
    assert named == [name for name in PRESETS if PRESETS[name].gpu_gb <= 6] and "\n" not in text
    with pytest.raises(
        UsageError, match=r"stage reward takes 9\.8 GB while training, with the smallest batch"
    ):
        fit_settings(card("llava-next-llama3-8b"), reward_preset("t4"), 9.0)
    with pytest.raises(
        UsageError, match=r"while answers are sampled.*PPO's group_size decides that"
    ):
        fit_settings(card("llava-next-llama3-8b"), ppo_preset("t4", critic_layers=3), 11.0)


def test_what_this_process_holds_counts_as_free_and_what_others_hold_does_not(monkeypatch, capsys):
    gpu(monkeypatch, T4, free=3e9, reserved=2e9)
    with pytest.raises(UsageError, match=r"4\.5 GB can be used"):  # 0.9 × (3 + 2)
        check_machine("qwen2-vl-7b")


def test_generation_gets_smaller_batches(monkeypatch):
    gpu(monkeypatch, T4)
    plan = check_machine("llava-next-llama3-8b")
    assert 1 <= plan.load.batch_size == plan.forecasts["load"].largest_batch < 64
    assert check_machine("qwen2-vl-2b").load == GenerationSettings()


def test_images_are_made_smaller_where_the_smallest_batch_does_not_fit(monkeypatch, capsys):
    gpu(monkeypatch, 6.5e9)  # 5.85 GB can be used
    plan = check_machine(
        "qwen2.5-vl-3b", reward=reward_preset("t4"), image=(4000, 4000), max_pixels=2240**2
    )
    out = capsys.readouterr().out
    n = round(plan.max_pixels**0.5 / 28)
    assert plan.max_pixels == (28 * n) ** 2 and 30 < n < 80
    square = card("qwen2.5-vl-3b", width=4000, height=4000)
    needs = [
        forecast_memory(replace(square, max_pixels=(28 * k) ** 2), plan.reward).total
        for k in (n, n + 1)
    ]
    assert needs[0] <= 0.9 * 6.5 < needs[1] and plan.forecasts["reward"].memory.total == needs[0]
    seen = visual_tokens("qwen2.5-vl-3b", 4000, 4000, plan.max_pixels)
    assert (n - 1) ** 2 <= seen <= n**2  # rounding in transformers can make it one less
    assert (
        f"4000 × 4000 pixels are {seen:,} visual tokens (max_pixels {plan.max_pixels:,})\n" in out
    )
    assert plan.warnings == (
        f"images are reduced to {plan.max_pixels:,} instead of 5,017,600 pixels, {seen:,} visual tokens instead of 6,400, so "
        "that the smallest batch fits. Small things may be lost to sight.",
    )


def test_a_limit_that_is_asked_for_is_kept_if_it_fits_and_more_room_is_told(monkeypatch, capsys):
    gpu(monkeypatch, T4)
    assert check_machine("qwen2-vl-2b", dpo=dpo_preset("t4")).max_pixels is None
    assert "256 visual tokens (max_pixels 200,704); up to " in capsys.readouterr().out
    plan = check_machine("qwen2-vl-2b", dpo=dpo_preset("t4"), max_pixels=672**2)
    assert plan.max_pixels == 672**2 and plan.warnings == ()
    assert "576 visual tokens (max_pixels 451,584)" in capsys.readouterr().out
    square = card("qwen2-vl-2b", width=672, height=672, max_pixels=672**2)
    assert plan.forecasts["dpo"].memory == forecast_memory(square, plan.dpo)
    assert check_machine("llava-1.5-7b").max_pixels is None
    assert "576 visual tokens\n" in capsys.readouterr().out


def test_on_a_cpu_ram_is_the_budget_and_fp32_is_computed_in(monkeypatch, capsys):
    cpu(monkeypatch, 10e9)
    plan = check_machine("qwen2-vl-2b", dpo=dpo_preset("t4"))
    out = capsys.readouterr().out
    assert (
        "10.0 GB of 20.0 GB RAM are free" in out
        and "float32: there is no GPU" in out
        and "GB of 9.0" in out
    )
    whole = card("qwen2-vl-2b", compute_bytes=4, on_gpu=False)
    assert plan.forecasts["dpo"].memory == forecast_memory(whole, plan.dpo)
    # 1,310,195,712 weights as stored, 898,789,888 in fp32
    assert plan.forecasts["dpo"].memory.weights == pytest.approx(
        (1_310_195_712 * 0.5159 + 898_789_888 * 4) / 1e9, rel=1e-3
    )
    assert plan.load.batch_size < 64 and plan.dpo == dpo_preset("t4")


def test_without_bitsandbytes_weights_are_whole(monkeypatch):
    cpu(monkeypatch, 60e9)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    found = check_machine("qwen2-vl-2b").forecasts["load"].memory.weights
    assert found == pytest.approx(2_208_985_600 * 4 / 1e9, rel=1e-3)


def test_long_answers_are_warned_of(monkeypatch):
    gpu(monkeypatch, T4)
    assert (
        check_machine("qwen2-vl-2b", ppo=ppo_preset("t4", max_new_tokens=256)).ppo.sampling_batch
        == 3
    )  # no warning
    settings = ppo_preset("t4", max_new_tokens=256, mini_batch=8, sampling_batch=1)
    warning = check_machine("qwen2-vl-2b", ppo=settings).warnings[0]
    need = forecast_memory(card("qwen2-vl-2b", answer_tokens=256), settings).total
    assert f"max_new_tokens = 256 would take {need:.1f} GB" in warning and need > 0.9 * 15.8


# --- versions, disk, Colab ---


def pinned():
    lines = [
        line.split(";")[0].strip() for line in (ROOT / "constraints.txt").read_text().splitlines()
    ]
    return [line.split("==") for line in lines if "==" in line]


def test_tested_versions_are_the_pinned_ones_and_the_lowest_that_are_admitted():
    pins, required = {}, {}
    for name, version in pinned():  # some have two, for several versions of Python
        pins[name] = max(pins.get(name, Version("0")), Version(version))
    for line in (ROOT / "requirements.txt").read_text().splitlines():
        if line and not line.startswith("#"):
            requirement = Requirement(line.split("#")[0].strip())
            required[requirement.name] = requirement.specifier
    for package, (low, high) in TESTED_VERSIONS.items():
        assert Version(high).release == pins[package].release[:2], package
        if low != high:
            assert required[package].contains(low), package
    assert TESTED_PYTHON == ("3.11", "3.13")


@pytest.mark.parametrize(
    ("package", "version", "said"),
    [
        ("torch", "2.15.0", "torch 2.15.0: tested is 2.11 to 2.14."),
        ("torch", "2.10.1+cu128", "torch 2.10.1+cu128: tested is 2.11 to 2.14."),
        ("trl", "1.15.0", "trl 1.15.0: tested is 1.14."),
        ("peft", None, "peft is not installed: run the set-up cell again."),
    ],
)
def test_versions_that_are_off_are_named(monkeypatch, capsys, package, version, said):
    cpu(monkeypatch, 10e9)
    lowest = {name: low for name, (low, _) in TESTED_VERSIONS.items()} | {package: version}
    monkeypatch.setattr(facts, "versions_in_use", lambda: tested_versions(**lowest))
    plan = check_machine("tiny")
    assert len(plan.warnings) == 1 and plan.warnings[0].startswith(said)
    assert f"⚠️  {said}" in (out := capsys.readouterr().out) and "1 not as tested, see below" in out


def test_patches_and_local_builds_are_as_tested_and_what_is_optional_may_be_missing():
    highest = {package: high for package, (_, high) in TESTED_VERSIONS.items()}
    builds = {"torch": "2.14.9+cu130", "numpy": "2.1.3"} | dict.fromkeys(OPTIONAL_PACKAGES)
    installed = {"Python": platform.python_version()} | highest | builds
    assert untested_versions(installed) == []
    assert untested_versions(installed | {"Python": "3.14.0"}) == [
        "Python 3.14.0: tested is 3.11 to 3.13. If something fails, install that first."
    ]


def test_a_package_that_is_not_there_has_no_version():
    assert installed_version("no-such-package") is None
    assert installed_version("torch") == importlib.metadata.version("torch")
    found = versions_in_use()
    assert (
        found["torch"] == installed_version("torch")
        and found["Python"] == platform.python_version()
    )


def test_a_download_is_the_copy_in_4_bits_on_a_gpu_and_16_bits_else(tmp_path):
    # 1,310,195,712 × 0.516 + 898,789,888 × 2 bytes; 2,208,985,600 × 2 bytes; LLaVA has no such copy; tiny is here
    assert download_gb("qwen2-vl-2b", True) == pytest.approx(2.47, abs=0.01)
    assert download_gb("qwen2-vl-2b", False) == pytest.approx(4.42, abs=0.01)
    assert download_gb("llava-1.5-7b", True) == pytest.approx(7.063 * 2, abs=0.01)
    assert download_gb("tiny", True) == 0
    (tmp_path / "hub" / "models--unsloth--Qwen2-VL-2B-Instruct-bnb-4bit").mkdir(parents=True)
    assert download_gb("qwen2-vl-2b", True) == 0 and download_gb("qwen2-vl-2b", False) > 4


def test_little_disk_is_warned_of(monkeypatch, capsys):
    gpu(monkeypatch, T4)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: Disk(10**11, 0, 4 * 10**9))
    assert check_machine("tiny").warnings == ()  # 2 GB for artifacts
    (warning,) = check_machine("qwen2-vl-2b").warnings  # and 2.5 for the model
    assert warning.startswith("disk: 4.0 GB free at") and "4.5 GB are needed" in warning
    assert "4.0 GB free at" in capsys.readouterr().out


def test_two_disks_are_told_apart(monkeypatch, tmp_path, artifacts):
    monkeypatch.setattr(
        shutil, "disk_usage", lambda folder: Disk(0, 0, 3e9 if folder == artifacts else 1e9)
    )
    monkeypatch.setattr(facts, "device_number", lambda folder: folder == artifacts)
    disks = measure_disks(download_gb("qwen2-vl-2b", True))
    # 2 of 3 GB for artifacts, and 2.5 of 1 for the model
    (warning,) = machine_warnings(replace(measure_machine(None), disks=disks))
    assert warning.startswith(f"disk: 1.0 GB free at {tmp_path}, 2.5 GB are needed")


def test_on_colab_it_says_whether_drive_is_there(monkeypatch, capsys):
    cpu(monkeypatch, 10e9)
    monkeypatch.setenv("COLAB_RELEASE_TAG", "release-2026.08")
    assert check_machine("tiny").warnings == (
        "Drive is not mounted: artifacts and checkpoints are lost with this session.",
    )
    monkeypatch.setattr(os.path, "ismount", lambda path: str(path) == "/content/drive")
    assert check_machine("tiny").warnings == ()
    assert "release-2026.08, Drive is mounted" in capsys.readouterr().out


def test_kaggle_is_not_taken_for_colab(monkeypatch, capsys):
    cpu(monkeypatch, 10e9)
    monkeypatch.setenv("COLAB_RELEASE_TAG", "release-2026.08")  # Kaggle's image has it
    monkeypatch.setenv("KAGGLE_KERNEL_RUN_TYPE", "Interactive")
    assert check_machine("tiny").warnings == ()
    assert "Drive" not in capsys.readouterr().out


def test_a_model_on_the_hub_has_no_forecast_and_its_settings_stay(monkeypatch, capsys):
    cpu(monkeypatch, 10e9)
    plan = check_machine("nobody/model", dpo=dpo_preset("t4"), max_pixels=10**5)
    assert plan.dpo == dpo_preset("t4") and plan.forecasts == {} and plan.max_pixels == 10**5
    assert "⚠️  no forecast for nobody/model" in capsys.readouterr().out


def test_a_checkpoint_in_a_folder_has_one(monkeypatch):
    cpu(monkeypatch, 10e9)
    assert (
        check_machine(ROOT / "data" / "tiny-qwen2-vl").forecasts["load"].largest_batch
        == memory.LARGEST_BATCH
    )


# --- minutes ---

# 16 visual tokens, prompts of 40
HERE = Workload("tiny", 112, 112, prompt_tokens=24, four_bit=False)


def test_seconds_of_a_pass_by_hand():
    speed = replace(FREE, forward=Line(5.0, 0.5), pair=0.01, training=Line(7.0, 2.0))
    seconds = StageSeconds(HERE, replace(speed, trained_pair=0.03, flops=1e6))
    # 3 layers; 2 rows of 40 tokens, which see 40; 10 predictions of 402 from 128
    head = 2 * 128 * 402 * 10 / 1e6
    forward = 3 * (5 + 0.5 * 80 + 0.01 * 80 * 40)
    assert seconds.forward(2, 40, 0, 10) == pytest.approx(forward + head)
    update = 3 * (7 + 2 * 80 + 0.03 * 80 * 40) + 2 * head
    assert seconds.update(2, 40, 10, False) == pytest.approx(update)
    assert seconds.update(2, 40, 10, True) == pytest.approx(update + forward)
    # the tower: 2 layers of 96, heads of the language model are 128 together; 8 × 8 patches
    seconds = StageSeconds(HERE, replace(FREE, vision=Line(5.0, 0.5), pair=0.01))
    assert seconds.images(3) == pytest.approx(3 * 2 * (5 + 0.5 * 64 + 0.01 * 64**2 * 96 / 128))


def test_seconds_of_a_stage_by_hand():
    """A forward takes 3, one with its backward 6, an image 2, and `STEP` is around the passes."""
    flat = replace(FREE, forward=Line(1.0, 0.0), training=Line(2.0, 0.0), vision=Line(1.0, 0.0))

    def seconds(settings, examples):
        return StageSeconds(replace(HERE, examples=examples), flat).of_stage(settings)

    dpo = replace(dpo_preset("tiny"), steps=10, batch_size=4, accumulation=2)
    # 20 updates; the reference and the tower for 40 examples
    assert seconds(dpo, 40) == pytest.approx(20 * 6 + 40 / 4 * 3 + 40 * 2 + 10 * STEP)
    # with checkpointing one more; 20 examples are seen twice, and computed once
    again = replace(dpo, gradient_checkpointing=True)
    assert seconds(again, 20) == pytest.approx(20 * 9 + 20 / 4 * 3 + 20 * 2 + 10 * STEP)
    # without reference
    sft = replace(sft_preset("tiny"), steps=10, batch_size=4, accumulation=2)
    assert seconds(sft, 40) == pytest.approx(20 * 6 + 40 * 2 + 10 * STEP)
    # 2 epochs of 64 / 16 batches, 6 evaluations of an eighth
    reward = replace(reward_preset("tiny"), epochs=2, batch_size=16, evaluations=6)
    assert seconds(reward, 64) == pytest.approx(2 * 4 * 6 + 6 * 0.5 * 3 + 72 * 2 + 8 * STEP)
    again = replace(reward, gradient_checkpointing=True)
    assert seconds(again, 64) == pytest.approx(2 * 4 * 9 + 6 * 0.5 * 3 + 72 * 2 + 8 * STEP)
    # prefill and 20 tokens; policy and reference; 2 epochs of 4 updates of 2
    ppo = replace(
        ppo_preset("tiny"),
        iterations=3,
        prompts_per_iteration=8,
        mini_batch=2,
        epochs=2,
        critic_layers=3,
        critic_adapter=False,
    )
    assert seconds(ppo, 100) == pytest.approx(3 * (23 * 3 + 8 * (6 + STEP)) + 24 * 2)
    # a critic of its own looks too, is updated too, and is warmed up in 8 epochs
    own = replace(ppo, critic_adapter=True)
    expected = 3 * (24 * 3 + 16 * 6 + 8 * STEP) + 8 * 100 / 2 * 6 + 100 * 2
    assert seconds(own, 100) == pytest.approx(expected)
    again = replace(own, gradient_checkpointing=True)
    expected = 3 * (24 * 3 + 16 * 9 + 8 * STEP) + 8 * 100 / 2 * 9 + 100 * 2
    assert seconds(again, 100) == pytest.approx(expected)


def test_seconds_of_copies_by_hand():
    model = shapes_of("tiny")
    seconds = StageSeconds(HERE, replace(FREE, bytes=1.0))
    # 5 earlier tokens of 2 rows: keys and values of 64 numbers, spread to 128
    assert seconds.forward(2, 1, 5) == pytest.approx(3 * 2 * 5 * 2 * (64 + 128) * 2)
    # the head's weights, once however many tokens; twice with the backward
    assert seconds.forward(2, 1, 0, 10) == pytest.approx(128 * 402 * 2)
    assert seconds.update(2, 1, 10, False) == pytest.approx(2 * 128 * 402 * 2)
    # in 4 bits unpacked to 2 bytes, and read again
    quantised = StageSeconds(replace(HERE, four_bit=True), replace(FREE, bytes=1.0))
    weights = model.quantised * (duration.NF4_BYTES + 4)
    assert quantised.forward(1, 1) == pytest.approx(weights)
    assert quantised.update(1, 1, 0, False) == pytest.approx(2 * weights)


def test_minutes_are_those_of_the_settings_that_fit(monkeypatch):
    gpu(monkeypatch, T4)
    plan = check_machine(
        "qwen2-vl-7b", reward=replace(reward_preset("t4"), batch_size=4), examples=100
    )
    seconds = StageSeconds(card("qwen2-vl-7b", examples=100), SPEED)
    assert plan.forecasts["reward"].minutes == pytest.approx(seconds.reward(plan.reward) / 60)
    assert plan.forecasts["load"].minutes == pytest.approx(seconds.load(plan.load) / 60)


@pytest.mark.parametrize(
    ("gain", "line", "offered"), [(3.0, 1e-2, True), (1.4, 1e-2, False), (3.0, 1e-7, False)]
)
def test_bf16_is_offered_where_it_is_fast_and_time_matters(
    monkeypatch, capsys, gain, line, offered
):
    cpu(monkeypatch, 20e9)
    speed = replace(SPEED, training=Line(0.0, line))
    monkeypatch.setattr(fits, "measure_speed", lambda _: speed)
    monkeypatch.setattr(fits, "bf16_gain", lambda _: gain)
    check_machine("smolvlm-256m", dpo=dpo_preset("laptop"))
    out = capsys.readouterr().out
    assert (
        "products are 3.0 times as fast in it on this CPU. Set VLM_DTYPE=bf16" in out
    ) == offered


def test_the_presets_of_a_laptop_take_less_than_half_an_hour():
    # Of SmolVLM-256M on one thread of an AMD EPYC with AVX2, quiet: `benchmarks/forecasts.py` says more
    speed = MachineSpeed(
        forward=Line(3.0e-3, 1.0e-4),
        training=Line(8.1e-3, 2.6e-4),
        vision=Line(4.9e-3, 2.4e-4),
        pair=3.5e-8,
        trained_pair=1.3e-7,
        flops=8.9e10,
        bytes=2.0e10,
    )
    workload = Workload(
        "smolvlm-256m", 512, 512, examples=240, four_bit=False, compute_bytes=4, on_gpu=False
    )
    seconds = StageSeconds(workload, speed)
    for preset in (sft_preset, dpo_preset, reward_preset, ppo_preset):
        settings = preset("laptop")
        assert seconds.of_stage(settings) < 30 * 60
        # and with 8 GB of memory
        assert forecast_memory(workload, settings).fits(8)
        assert seconds.of_stage(preset("t4")) > seconds.of_stage(settings)


def test_smaller_images_take_less_time():
    large, small = card("qwen2-vl-2b"), card("qwen2-vl-2b", max_pixels=224**2)
    assert small.prompt == 60 + 8 * 8 and small.patches == 16 * 16
    seconds = [StageSeconds(w, SPEED).of_stage(dpo_preset("t4")) for w in (small, large)]
    assert seconds[0] < seconds[1]


@pytest.mark.parametrize("name", ["tiny", "smolvlm-256m"])
def test_the_speed_of_this_machine_is_sensible(name):
    speed = measure_speed(shapes_of(name))
    assert 1e8 < speed.flops < 1e15 and 1e8 < speed.bytes < 1e13
    # a backward costs more than nothing, and no pass costs hours
    assert 0 < speed.forward.seconds(256) < speed.training.seconds(256) < 100
    assert 0 < speed.pair < speed.trained_pair < 1e-3 and 0 < speed.vision.seconds(64) < 100


def test_bf16_has_a_gain_on_a_cpu_in_full_precision_only(monkeypatch):
    assert 1e-4 < bf16_gain(shapes_of("tiny")) < 100
    monkeypatch.setenv("VLM_DTYPE", "bf16")
    assert bf16_gain(shapes_of("tiny")) == 1


def test_measuring_leaves_random_numbers_alone():
    state = torch.get_rng_state()
    measure_speed(shapes_of("tiny"))
    assert torch.equal(state, torch.get_rng_state())
