"""Device, precision, threads: found or measured, said, and never in place of what a user set."""

import os
import re
import subprocess
import sys

import pytest
import torch

from helpers import models, runtime
from helpers.files import ROOT, UsageError


@pytest.fixture
def threads(monkeypatch):
    """A CPU of four threads and a clock; call it with the seconds of one thread and of all."""
    chosen = [4]
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch, "get_num_threads", lambda: chosen[-1])
    monkeypatch.setattr(torch, "set_num_threads", chosen.append)
    runtime.choose_threads.cache_clear()

    def clock(one, all_):
        now = [0.0]

        def tick():
            now[0] += one if chosen[-1] == 1 else all_
            return now[0]

        monkeypatch.setattr(runtime.time, "perf_counter", tick)
        return chosen

    yield clock
    runtime.choose_threads.cache_clear()


@pytest.mark.parametrize(("seconds", "number"), [((1.4, 1.0), 1), ((1.5, 1.0), 4), ((1.0, 9.0), 1)])
def test_all_threads_are_taken_if_they_are_half_as_fast_again(threads, seconds, number, capsys):
    chosen = threads(*seconds)
    runtime.choose_threads(8)
    assert chosen[-1] == number
    (line,) = capsys.readouterr().out.splitlines()
    assert line.startswith(f"CPU: {number} of 4 threads, as all are {seconds[0] / seconds[1]:.1f}")


def test_a_width_is_timed_once_and_draws_no_random_number(threads):
    chosen = threads(1.0, 1.0)
    torch.manual_seed(0)
    expected = torch.rand(3)
    torch.manual_seed(0)
    runtime.choose_threads(8)
    timed = len(chosen)
    runtime.choose_threads(8)
    assert len(chosen) == timed > 6 and torch.equal(torch.rand(3), expected)


def test_what_the_user_has_set_stays(threads, monkeypatch, capsys):
    chosen = threads(1.0, 9.0)
    monkeypatch.setenv("OMP_NUM_THREADS", "4")
    runtime.choose_threads(8)
    assert chosen == [4] and capsys.readouterr().out == ""


@pytest.mark.parametrize(
    ("own", "found"), [({}, "PASSIVE"), ({"OMP_WAIT_POLICY": "active"}, "active")]
)
def test_threads_that_wait_sleep_unless_the_user_wants_otherwise(own, found):
    """Read when torch is imported, so it is set before."""
    environment = {k: v for k, v in os.environ.items() if k != "OMP_WAIT_POLICY"} | own
    code = "import os, sys, helpers; print(os.environ['OMP_WAIT_POLICY'], 'torch' in sys.modules)"
    run = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, env=environment, capture_output=True, text=True
    )
    assert run.stdout.split() == [found, "False"]


def test_tolerances_follow_the_coarsest_type_in_a_model(monkeypatch):
    layers = torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.Linear(2, 2))
    assert runtime.precision_of(layers) == torch.float32
    layers[1].half()  # as a frozen base beside an adapter in fp32
    assert runtime.precision_of(layers) == torch.float16
    layers[0].compute_dtype = torch.bfloat16  # of weights in 4 bits
    assert runtime.precision_of(layers) == torch.bfloat16
    assert runtime.tolerances_of(layers) == runtime.TOLERANCES[torch.bfloat16]
    monkeypatch.setattr(runtime, "compute_dtype", lambda: torch.float16)  # of mixed precision
    assert runtime.precision_of(torch.nn.Linear(2, 2)) == torch.float16


def test_coarser_types_are_allowed_more():
    exact, half, coarse = (
        runtime.TOLERANCES[dtype] for dtype in (torch.float32, torch.float16, torch.bfloat16)
    )
    for fine, middle, rough in zip(exact, half, coarse, strict=True):
        assert fine < middle < rough


def forget_the_machine(monkeypatch, *, cuda=False, mps=False):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: cuda)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: mps)
    for name in ("VLM_DEVICE", "VLM_DTYPE"):
        monkeypatch.delenv(name, raising=False)


def test_a_device_is_found_or_named(monkeypatch):
    forget_the_machine(monkeypatch, mps=True)
    assert runtime.device().type == "cpu"  # Apple's GPU is for those who ask
    monkeypatch.setenv("VLM_DEVICE", "mps")
    assert runtime.device().type == "mps" and not runtime.has_cuda()
    assert not models.has_four_bits()
    forget_the_machine(monkeypatch, cuda=True)
    assert runtime.device().type == "cuda"
    monkeypatch.setenv("VLM_DEVICE", "cpu")
    assert runtime.device().type == "cpu" and runtime.compute_dtype() == torch.float32


@pytest.mark.parametrize(
    ("name", "value", "says"),
    [
        ("VLM_DEVICE", "tpu", "VLM_DEVICE=tpu: no such device. Choose cuda, mps, cpu."),
        ("VLM_DEVICE", "mps", "PyTorch finds no GPU of Apple here"),
        ("VLM_DTYPE", "int8", "VLM_DTYPE=int8: no such precision. Choose fp32, bf16, fp16."),
    ],
)
def test_what_is_not_there_is_said(monkeypatch, name, value, says):
    forget_the_machine(monkeypatch)
    monkeypatch.setenv(name, value)
    with pytest.raises(UsageError, match=re.escape(says)):
        runtime.compute_dtype()
        runtime.device()


@pytest.mark.parametrize(
    ("cuda", "capability", "asked", "dtype"),
    [
        (False, None, None, torch.float32),
        (False, None, "bf16", torch.bfloat16),
        (True, (7, 5), None, torch.float16),  # a T4
        (True, (8, 0), None, torch.bfloat16),
        (True, (8, 0), "fp16", torch.float16),
    ],
)
def test_a_precision_is_the_devices_or_named(monkeypatch, cuda, capability, asked, dtype):
    forget_the_machine(monkeypatch, cuda=cuda)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: capability)
    if asked:
        monkeypatch.setenv("VLM_DTYPE", asked)
    assert runtime.compute_dtype() == dtype


def test_the_peak_is_that_of_this_process_and_not_of_the_one_that_started_it():
    held = torch.ones(4 * 10**8)  # 1.6 GB, which `ru_maxrss` of a child would begin with
    ask = "from helpers.runtime import peak_memory_gb; print(peak_memory_gb())"
    done = subprocess.run(
        [sys.executable, "-c", ask], cwd=ROOT, capture_output=True, text=True, check=True
    )
    child = float(done.stdout)
    assert 0.1 < child < 1.5 < held.nbytes / 1e9 < runtime.peak_memory_gb()
