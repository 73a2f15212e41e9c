"""The benchmark of DPO steps at toy size: both trainers learn the same, and ours computes less."""

import json
import subprocess
import sys

import pytest

from benchmarks import dpo
from helpers.files import ROOT

TOY = pytest.mark.slow(
    reason="a toy run of the benchmark; that ours learns what TRL does is in training/test_dpo.py"
)


@pytest.fixture(scope="module")
def figures(tmp_path_factory):
    """What a whole toy run writes."""
    out = tmp_path_factory.mktemp("benchmark") / "dpo.json"
    dpo.main(["--toy", "--out", str(out)])
    assert out.with_suffix(".png").stat().st_size > 10_000
    return json.loads(out.read_text())["figures"]


@TOY
@pytest.mark.parametrize("case", ["proxy", "proxy_checkpointing", "embedded", "gpu_256"])
def test_ours_learns_the_same_and_computes_less(figures, case):
    others = f"{case}_checkpointing_"
    own = {
        key: value
        for key, value in figures.items()
        if key.startswith(f"{case}_") and not key.startswith(others)
    }
    found = {key.removeprefix(f"{case}_"): value for key, value in own.items()}
    value = {key: entry["value"] for key, entry in found.items()}
    phases = {
        f"{phase}_{what}"
        for phase in dpo.PHASES
        for what in ("seconds", "flops", "tokens", "patches")
    }
    ratios = {f"{phase}_{what}" for phase in dpo.PHASES[1:] for what in ("ratio", "limit")}
    others = {
        "stock_setup_seconds",
        "ours_setup_seconds",
        "loss",
        "loss_difference",
        "visual_tokens",
        "pairs",
    }
    assert phases | ratios | others == found.keys() - {"parameters"}
    assert all(
        entry["low"] <= entry["value"] <= entry["high"] and entry["n"] >= 1
        for entry in found.values()
    )

    assert (
        found["loss"]["n"] == 8 and found["loss"]["high"] - found["loss"]["low"] > 1e-2
    )  # both are trained
    assert found["loss_difference"]["high"] < 1e-4

    # 16 visual tokens are 64 patches; stock: 2 answers a pair, each to policy and reference
    assert value["stock_patches"] == 2 * 2 * 64 * value["pairs"]
    assert value["ours_first_patches"] == 64 * value["pairs"] and value["ours_later_patches"] == 0
    assert value["ours_later_tokens"] < value["ours_first_tokens"] < value["stock_tokens"]
    assert value["ours_first_tokens"] == 2 * value["ours_later_tokens"]
    assert value["ours_later_limit"] > value["ours_first_limit"] > 1


@TOY
def test_a_product_with_a_4_bit_matrix_is_counted(figures):
    """Of the same shape, in 4 bits and with checkpointing: more is computed. PyTorch's counter saw less."""
    assert figures["gpu_256_stock_flops"]["value"] > 1.2 * figures["proxy_stock_flops"]["value"]


@pytest.mark.heavy(reason="writes 70 million weights")
def test_the_proxy_has_the_proportions_of_the_original(tmp_path):
    """A third of width and depth: 70 million weights, and 8.4 million for 16,384 tokens."""
    assert dpo.write_model(dpo.THIRD, tmp_path) == pytest.approx(78.7e6, rel=0.01)


@pytest.mark.slow(reason="steps of TRL and of this suite in bf16, in a process of their own")
def test_both_step_in_sixteen_bits(tmp_path):
    out = tmp_path / "figures.json"
    command = [sys.executable, str(ROOT / "benchmarks" / "sixteen_bits.py"), "--toy"]
    subprocess.run([*command, "--out", str(out)], check=True)
    found = json.loads(out.read_text())
    assert "bfloat16" in found["environment"]
    for method in ("dpo", "grpo"):
        for kind in ("ratio", "limit"):
            assert found["figures"][f"{method}_bf16_{kind}"]["value"] > 1
