"""The benchmark of GPUs, on a CPU: a whole toy run, and what becomes of parts that crash or take too long."""

import json
import math
import os
import signal
import subprocess
import sys
import time

import pytest
import torch

from benchmarks import gpu, gpu_model, gpu_parts, gpu_run
from helpers import runtime
from helpers.files import ROOT, UsageError
from helpers.models.packing_check import check_packing

slow = pytest.mark.slow(reason="a toy run of the benchmark, in many processes")

PLAN = gpu.Plan("qwen2-vl-2b", None, "fp16", 2, 1, True, None)
pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="forks")


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    """What a whole toy run writes, as a reader starts it."""
    out = tmp_path_factory.mktemp("benchmark") / "gpu.json"
    command = [sys.executable, str(ROOT / "benchmarks" / "gpu.py"), "--toy", "--out", str(out)]
    done = subprocess.run(
        command, capture_output=True, text=True, env=os.environ | {"CUDA_VISIBLE_DEVICES": ""}
    )
    assert done.returncode == 0, done.stderr
    assert "resume_ppo_transformers" in done.stdout
    return json.loads(out.read_text())


def leaves(value):
    if isinstance(value, dict):
        return [leaf for inner in value.values() for leaf in leaves(inner)]
    return (
        [leaf for inner in value for leaf in leaves(inner)] if isinstance(value, list) else [value]
    )


# the toy run


@slow
def test_every_part_has_its_row(results):
    assert results["settings"]["steps"] == 2 and results["settings"]["toy"]
    assert results["environment"]["compute_dtype"] == "float32"
    assert (
        results["environment"]["versions"]["torch"].split("+")[0] == torch.__version__.split("+")[0]
    )
    assert set(results["parts"]) == {part.name for part in gpu.PARTS}
    for name, row in results["parts"].items():
        if name.endswith("unsloth"):
            assert row == {"skipped": "no GPU"}
        else:
            assert "error" not in row and 0 < row["process_seconds"] < 300, name
    numbers = [leaf for leaf in leaves(results) if isinstance(leaf, float)]
    assert len(numbers) > 50 and all(map(math.isfinite, numbers))
    assert not {"nan", "inf", "-inf"} & {leaf for leaf in leaves(results) if isinstance(leaf, str)}
    assert list(results["parts"]) == sorted(results["parts"])


@slow
def test_dpo_starts_at_ln_2_and_learns_the_same_as_trl(results):
    ours, stock = results["parts"]["dpo_transformers"], results["parts"]["trl_transformers"]
    for row in (ours, stock):
        assert abs(row["loss_first_less_ln_2"]) < 1e-6 and row["loss_first"] == pytest.approx(
            math.log(2), abs=1e-4
        )
        assert row["loss_last"] < row["loss_first"] - 1e-3
        assert (
            row["n"] == row["gradients"] == 2
            and row["non_finite_gradients"] == row["bf16_tensors"] == 0
        )
        assert (
            row["dtypes"].keys() == {"float32", "uint8"} and row["dtypes"]["uint8"] == 14
        )  # 2 layers × 7 matrices
    assert ours["loss_last"] == pytest.approx(stock["loss_last"], abs=2e-4)
    assert (
        ours["collator"] == "PairCollator"
        and stock["collator"] == "DataCollatorForVisionPreference"
    )
    ratio = results["comparisons"]["transformers_faster_later"]
    assert ratio == pytest.approx(stock["seconds_later"] / ours["seconds_later"], rel=1e-2)


@slow
def test_ppo_begins_with_the_policy_that_sampled(results):
    row = results["parts"]["ppo_transformers"]
    assert (
        row["packs"]
        and row["ratio_first"] == pytest.approx(1, abs=1e-3)
        and row["grad_norm_first"] > 0
    )
    assert row["n"] == 1 and row["seconds"] > 0 and row["bf16_tensors"] == 0


@slow
@pytest.mark.parametrize(("stage", "steps", "left"), [("dpo", 5, 3), ("ppo", 3, 2)])
def test_a_killed_run_goes_on_to_the_same_weights(results, stage, steps, left):
    """DPO is killed in step 3, with a checkpoint of step 2; PPO in iteration 2, with one of iteration 1."""
    row = results["parts"][f"resume_{stage}_transformers"]
    assert row["largest_difference"] == row["largest_difference_unkilled"] == 0
    assert row["largest_lora_b"] > 1e-3  # something was learnt
    assert (row["steps"], row["steps_gone_on"]) == (steps, left)
    assert row["checkpoints"] == ["checkpoint-2" if stage == "dpo" else "checkpoint-1"]


@slow
def test_a_second_look_sees_the_same(results):
    row, loaded = results["parts"]["exchange"], results["parts"]["load_transformers"]
    assert (
        row["adapter_transformers_logps_differ_by"]
        == loaded["adapter_transformers_logps_differ_by"]
        == 0
    )
    control = row["transformers"]
    assert control["lora_names_equal"] and control["only_in_one"] == []
    assert (
        control["logits_relative_error"] == control["logps_differ_by"] == 0
        and control["gradient_cosine"] == 1
    )
    assert (
        control["top1_agreement"]["value"] == 1
        and control["top1_agreement"]["n"] == control["n"] > 50
    )
    assert loaded["lora_weights"] == 2 * 7 * 2 and loaded["four_bit_layers"] == 14
    assert loaded["answers_not_empty"] == loaded["n"] == 8
    assert loaded["weights_gb"] == pytest.approx(loaded["weights_forecast_gb"], rel=0.02)


@slow
def test_peaks_stand_beside_their_forecasts(results):
    for name in ("load_transformers", "dpo_transformers", "trl_transformers", "ppo_transformers"):
        row = results["parts"][name]
        assert row["peak_gb"] / row["forecast_gb"] == pytest.approx(row["forecast_ratio"], rel=1e-2)
        assert 0.3 < row["forecast_ratio"] < 3


# parts that go wrong


@pytest.fixture
def forked(monkeypatch):
    """Processes as they are begun without a GPU, which need nothing that can be pickled."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)


def crash(note):
    note(seconds=1.5, n=3)
    os.write(1, b"noise\n")
    raise ValueError("first line\nno such kernel")


def be_killed(note):
    os.write(2, b"what the driver said\n")
    os.kill(os.getpid(), signal.SIGKILL)


def hang(note, mark):
    note(n=1)
    gpu_run.in_process(_write_later, (mark,), mark.with_suffix(".log"), leader=False)
    time.sleep(60)


def _write_later(mark):
    mark.with_suffix(".begun").touch()
    time.sleep(4)
    mark.touch()


def fine(number, note):
    note(value=number / 3)
    note(other=[1])


def test_a_part_that_crashes_keeps_what_it_has_noted(tmp_path, forked):
    row = gpu.run_part(crash, (), tmp_path / "x.json", 30)
    assert row.pop("process_seconds") < 30
    assert row == {"seconds": 1.5, "n": 3, "error": "no such kernel"}
    assert "noise" in (tmp_path / "x.log").read_text()


def test_a_part_that_the_system_kills_is_a_row_too(tmp_path, forked):
    row = gpu.run_part(be_killed, (), tmp_path / "x.json", 30)
    assert row["error"] == "killed by SIGKILL: what the driver said"


@pytest.mark.heavy(reason="waits for processes")
def test_a_part_that_takes_too_long_is_ended_with_all_it_has_started(tmp_path, forked):
    mark = tmp_path / "mark"
    row = gpu.run_part(lambda note: hang(note, mark), (), tmp_path / "x.json", 2)
    assert (
        row["error"] == "not ready after 2 s" and row["n"] == 1 and 2 <= row["process_seconds"] < 10
    )
    assert mark.with_suffix(".begun").exists()
    time.sleep(3)
    assert not mark.exists()


def test_a_part_that_ends_well(tmp_path, forked):
    row = gpu.run_part(fine, (1.0,), tmp_path / "x.json", 30)
    assert row.pop("process_seconds") > 0 and row == {"value": 0.3333, "other": [1]}


def test_parts_share_their_time_and_the_rest_goes_on(monkeypatch, tmp_path, capsys):
    """30 s in all: a has its own limit of 20, b the 30 − 12 that are left, c less than the least."""
    clock, limits, saved = [0.0], [], []

    def run_part(target, arguments, out, limit):
        limits.append(limit)
        clock[0] += 12
        return {"error": "x"}

    monkeypatch.setattr(gpu, "run_part", run_part)
    monkeypatch.setattr(gpu.time, "perf_counter", lambda: clock[0])
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    parts = [
        gpu.Part("a", "transformers", 20),
        gpu.Part("b", "transformers", 20),
        gpu.Part("u", "unsloth", 20),
    ]
    rows = gpu.run_parts(
        [*parts, gpu.Part("c", "transformers", 20)],
        gpu.replace(PLAN, folder=tmp_path),
        lambda r: saved.append(len(r)),
        30,
    )
    assert limits == [20, 18] and saved == [1, 2, 3, 4]
    assert rows == {
        "a_transformers": {"error": "x"},
        "b_transformers": {"error": "x"},
        "u_unsloth": {"skipped": "no GPU"},
        "c_transformers": {"error": "not begun: 30 s are over"},
    }
    assert "c_transformers: error: not begun" in capsys.readouterr().out
    assert gpu.SECONDS + gpu.LEAST < 600


# figures and arguments


def test_json_is_sorted_and_rounded_and_says_what_is_not_finite():
    value = {"b": 1 / 3, "a": [math.nan, 12345.6, 7], "c": {"y": math.inf, "x": True}}
    assert gpu_run.tidy(value) == {
        "a": ["nan", 12350.0, 7],
        "b": 0.3333,
        "c": {"x": True, "y": "inf"},
    }
    assert list(gpu_run.tidy(value)) == ["a", "b", "c"] and list(gpu_run.tidy(value)["c"]) == [
        "x",
        "y",
    ]


def test_ours_is_compared_with_trl_of_the_same_loader_and_with_stock():
    rows = {
        "trl_transformers": {"seconds": 2.0, "seconds_later": 3.0},
        "dpo_transformers": {"seconds": 0.5, "seconds_later": 1.0},
        "trl_unsloth": {"error": "x"},
        "dpo_unsloth": {"seconds": 0.25},
    }
    expected = {
        "transformers_faster": 4.0,
        "transformers_faster_later": 3.0,
        "unsloth_to_stock_faster": 8.0,
    }
    assert gpu.comparisons(rows) == expected  # 2 / 0.5, 3 / 1, 2 / 0.25
    text = gpu.table({"parts": rows, "comparisons": gpu.comparisons(rows)})
    assert "0.5 s; 1 s later" in text and "error: x" in text and text.endswith("8.00")


def test_a_figure_that_is_not_finite_is_shown():
    assert gpu.in_short({"loss_last": "nan", "seconds": 2.0}) == "2 s; loss_last: nan"
    assert (
        gpu.in_short({"unsloth": {"gradient_cosine": 0.5}, "n": 1})
        == "unsloth: gradients' cosine 0.500000"
    )
    assert gpu.in_short({}) == "done"


def test_arguments(monkeypatch, capsys, tmp_path):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    plan, out = gpu.read_plan([])
    assert (
        plan == gpu.Plan("qwen2-vl-2b", 15.0, "fp16", 20, 3, False, None) and out.name == "gpu.json"
    )
    plan, out = gpu.read_plan(
        ["--steps", "7", "--gigabytes", "6.5", "--dtype", "bf16", "--out", str(tmp_path / "x")]
    )
    assert (plan.steps, plan.gigabytes, plan.dtype, plan.side, out) == (
        7,
        6.5,
        "bf16",
        448,
        tmp_path / "x",
    )
    with pytest.raises(UsageError, match="must be more than 0"):
        gpu.read_plan(["--steps", "0"])
    with pytest.raises(SystemExit, match="Error: --steps"):
        gpu.main(["--gigabytes", "-1"])
    (tmp_path / "old").touch()
    with pytest.raises(UsageError, match="holds something already"):
        gpu.read_plan(["--folder", str(tmp_path)])
    assert gpu.read_plan(["--folder", str(tmp_path / "new")])[0].folder == tmp_path / "new"
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    plan, out = gpu.read_plan(["--steps", "7"])
    assert out is None  # figures of a GPU are not written over
    assert (plan.toy, plan.steps, plan.iterations, plan.gigabytes, plan.side) == (
        True,
        2,
        1,
        None,
        112,
    )
    assert "No GPU" in capsys.readouterr().out


def test_seconds_of_the_first_epoch_and_later():
    """Six steps, three of an epoch: the first three do not count, unless there are no others."""
    assert gpu_parts.step_seconds([9.0, 8.0, 7.0, 1.0, 2.0, 3.0], 3) == {
        "seconds": 2.0, "seconds_first_epoch": 7.0, "seconds_later": 2.0, "n_first_epoch": 1, "n_later": 3,
    }  # fmt: skip
    assert gpu_parts.step_seconds([9.0, 8.0, 7.0, 4.0, 6.0, 1.0], 5) == {
        "seconds": 4.0, "seconds_first_epoch": 5.0, "seconds_later": 1.0, "n_first_epoch": 2, "n_later": 1,
    }  # fmt: skip
    assert gpu_parts.step_seconds([5.0], 1) == {
        "seconds": 5.0, "seconds_first_epoch": 5.0, "n_first_epoch": 1, "n_later": 0,
    }  # fmt: skip


def test_gradients_that_are_not_finite_are_counted():
    log = [
        {"loss": 0.7, "grad_norm": math.inf},
        {"loss": math.nan, "grad_norm": math.nan},
        {"loss": 0.5},
    ]
    found = gpu_parts.losses([*log, {"loss": 0.4, "grad_norm": 1.0}])
    assert (found["non_finite_gradients"], found["gradients"], found["non_finite_losses"]) == (
        2,
        3,
        1,
    )
    assert (
        found["loss_first_less_ln_2"] == pytest.approx(0.7 - 0.693147, abs=1e-6)
        and found["loss_last"] == 0.4
    )


def test_two_looks_compared():
    """Logits (3, 4) and (3, 0): 4 / 5. Gradients (1, 0) and (2, 2): cosine 1 / √2, norm √8 − 1."""
    one = gpu_parts.Look(
        ["a", "b"],
        torch.tensor([[3.0, 4.0]]),
        torch.tensor([1.0, 2.0]),
        {"a": torch.tensor([1.0, 0.0])},
    )
    other = gpu_parts.Look(
        ["a"], torch.tensor([[3.0, 0.0]]), torch.tensor([1.0, 2.5]), {"a": torch.tensor([2.0, 2.0])}
    )
    found = gpu_parts.differences(one, other)
    assert (
        found["logits_relative_error"] == pytest.approx(0.8)
        and found["top1_agreement"]["value"] == 0
    )
    assert found["gradient_cosine"] == pytest.approx(0.70711, abs=1e-5)
    assert found["gradient_norm_difference"] == pytest.approx(8**0.5 - 1)
    assert (
        not found["lora_names_equal"]
        and found["only_in_one"] == ["b"]
        and found["logps_differ_by"] == 0.5
    )


def test_weights_are_compared_by_name():
    one = {"a": torch.tensor([1.0, 2.0]), "b": torch.zeros(2)}
    assert (
        gpu_parts.largest(one, {"a": torch.tensor([1.0, 1.5]), "b": torch.tensor([0.0, 0.25])})
        == 0.5
    )
    with pytest.raises(UsageError, match="different names"):
        gpu_parts.largest(one, {"a": one["a"]})


def test_an_adapter_is_filled_by_name_and_not_by_place():
    first, second = (
        {n: torch.zeros(4, 3) for n in names} for names in (("x.lora_A", "x.lora_B"), ("x.lora_B",))
    )
    gpu_parts.fill(first), gpu_parts.fill(second)
    assert (
        torch.equal(first["x.lora_B"], second["x.lora_B"]) and first["x.lora_A"].abs().max() > 0.1
    )
    assert 0 < first["x.lora_B"].abs().max() < 0.1


def test_every_module_computes_in_the_forced_precision(monkeypatch):
    """As on a card that has bf16: whatever each module would have found out, it is told fp16."""
    ours = [
        module
        for name, module in sys.modules.items()
        if name.partition(".")[0] in ("helpers", "benchmarks")
    ]
    known = [module for module in ours if hasattr(module, "compute_dtype")]
    assert runtime in known and len(known) >= 7
    for module in known:
        monkeypatch.setattr(module, "compute_dtype", lambda: torch.bfloat16)
    gpu_model.force_dtype(torch.float16)
    assert {module.compute_dtype() for module in known} == {torch.float16}


def test_dtypes_of_a_model(tiny):
    layer = torch.nn.Linear(2, 3).half()
    layer.register_buffer("step", torch.zeros(1, dtype=torch.bfloat16))
    assert gpu_model.dtypes(layer) == {"float16": 2, "bfloat16": 1}
    weights = torch.nn.Linear(2, 1, bias=False)
    optimizer = torch.optim.AdamW(weights.parameters())
    weights(torch.ones(2)).sum().backward(), optimizer.step()
    assert gpu_model.dtypes(weights, optimizer) == {"float32": 1 + 3}  # step and two averages
    found = gpu_model.dtypes(tiny[0])
    assert found["uint8"] == 21 and found["float32"] > 2 * 21


@pytest.mark.parametrize("preset", ["qwen2-vl-2b", "qwen2.5-vl-3b", "qwen3-vl-2b"])
def test_the_checkpoint_of_a_preset_loads_and_packs(tmp_path, preset):
    """Of the preset's architecture, every id has a word, and images are cut into its patches."""
    assert gpu_model.write_model(preset, tmp_path / "model", small=True) > 100_000
    model, processor = gpu_model.load_model(gpu.replace(PLAN, preset=preset, folder=tmp_path))
    assert model.config.model_type == gpu_model.configuration(preset, False).model_type
    assert processor.image_processor.patch_size == model.config.vision_config.patch_size
    vocabulary = model.config.get_text_config().vocab_size
    words = processor.tokenizer.convert_ids_to_tokens(range(vocabulary))
    assert all(words) and processor.tokenizer.decode([vocabulary - 1]) == f" w{vocabulary - 1}"
    assert len(processor.tokenizer("w599 and")["input_ids"]) > 3  # no text becomes such a token
    assert model.config.image_token_id == processor.image_token_id == words.index("<|image_pad|>")
    assert check_packing(model, processor, "Cars?", answers=["Two.", "None at all."]).ok


def test_full_size_is_the_presets_own():
    config = gpu_model.configuration("qwen2-vl-2b", small=False)
    assert (config.text_config.hidden_size, config.vision_config.depth) == (1536, 32)
    with pytest.raises(UsageError, match="Qwen-VL models only"):
        gpu_model.configuration("smolvlm-256m", small=True)
