"""Shared fixtures. The tiny model is loaded once a session; tests that change it load their own."""

import os

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import pytest
from costs import pytest_runtest_call, pytest_runtest_setup  # noqa: F401  hooks
from shipped import TRAFFIC

# The longest files, by their names: they start first, so that workers share the rest.
FIRST = (
    # for make test-slow: half an hour each, then a quarter of an hour and less
    "test_notebooks_defaults",
    "test_recipes_whole",
    "test_mutations",
    "test_base_rebuild",
    # five minutes
    "test_notebooks_run",
    "test_own_notebooks",
    # one to two minutes each from here on
    "test_dpo_doctor",
    "test_ppo",
    "test_dpo",
    "test_browser",
    "test_architectures",
    "test_checks",
    "test_reward",
    "test_recipes",
    "test_own_data",
    "test_distributed",
    "test_colab_widgets",
    "test_ppo_doctor",
    "test_benchmark_rl",
    "test_benchmark_gpu",
    "test_comparison",
    "test_export",
    "test_setup",
    "test_install",
)


def pytest_collection_modifyitems(items):
    names = [item.path.stem for item in items]
    order = sorted(
        range(len(items)), key=lambda i: FIRST.index(names[i]) if names[i] in FIRST else len(FIRST)
    )
    items[:] = [items[i] for i in order]
    for item in items:
        for mark in item.iter_markers():
            if mark.name == "slow" and not mark.kwargs.get("reason"):
                raise pytest.UsageError(f"{item.nodeid}: slow needs a reason=")


# What needs torch and transformers is imported where it is used: tests of arithmetic start at once.


@pytest.fixture(scope="session")
def tiny():
    """(model, processor) of the embedded base in 4 bits, without an adapter."""
    from helpers import models

    return models.load_model("tiny")


@pytest.fixture(scope="session")
def valid_items():
    from helpers.data import read_counts

    return read_counts(TRAFFIC, "valid")


@pytest.fixture(scope="session")
def pairs_dataset():
    """32 pairs of the shipped preferences as a TRL data set."""
    from helpers.data import read_records, to_trl

    path = TRAFFIC / "preferences_train.jsonl"
    return to_trl(read_records(path)[:20]).select(range(32))


@pytest.fixture
def artifacts(tmp_path, monkeypatch):
    """An empty artifacts folder of the test's own."""
    monkeypatch.setenv("VLM_ARTIFACTS", str(tmp_path / "artifacts"))
    return tmp_path / "artifacts"


@pytest.fixture(scope="session")
def processor():
    """The processor of the embedded base alone, where no weights are needed."""
    from transformers import AutoProcessor

    from helpers.files import ROOT

    return AutoProcessor.from_pretrained(ROOT / "data" / "tiny-qwen2-vl")
