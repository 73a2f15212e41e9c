"""What students bring goes through all notebooks, as it does through recipes (test_own_data)."""

import own_sets
import pytest
from architectures import save_as_on_the_hub
from ci import run_chain, run_own

from helpers.data import SHIPPED_TASKS
from helpers.files import UsageError, read_json


@pytest.mark.heavy(reason="runs notebooks 02 to 07 in short")
def test_free_text_goes_through_all_notebooks(tmp_path):
    artifacts = run_own(tmp_path, DATA=str(own_sets.free_text(tmp_path / "set")))
    page = (artifacts / "report" / "index.html").read_text(encoding="utf-8")
    assert "No truth is known of these questions" in page and "circular" in page
    assert "traffic" not in page and "+nan" not in page
    figures = read_json(artifacts / "report" / "summary.json")
    assert not any(name.startswith("base_exact") for name in figures.get("figures", figures))


@pytest.mark.slow(reason="runs notebook 02 and the beginning of 03")
def test_five_lines_end_in_a_word_that_they_are_too_few(tmp_path):
    with pytest.raises(UsageError, match="1 record with a pair is too few to say anything"):
        run_own(tmp_path, DATA=str(own_sets.four_fields(tmp_path / "set")))


@pytest.mark.slow(reason="runs notebooks 02 to 07 in short on every set")
@pytest.mark.parametrize("name", sorted(own_sets.SETS.keys() - {"free_text", "four_fields"}))
def test_every_set_goes_through_all_notebooks(tmp_path, name):
    artifacts = run_own(tmp_path, DATA=str(own_sets.SETS[name](tmp_path / "set")))
    page = (artifacts / "report" / "index.html").read_text(encoding="utf-8")
    assert "traffic" not in page and "+nan" not in page


@pytest.mark.slow(reason="runs notebooks 02 to 07 in short on four tasks; recipes do it in seconds")
@pytest.mark.parametrize("task", [name for name in SHIPPED_TASKS if name != "counting"])
def test_every_task_goes_through_all_notebooks(tmp_path, task):
    artifacts = run_own(tmp_path, TASK=task)
    page = (artifacts / "report" / "index.html").read_text(encoding="utf-8")
    assert "+nan" not in page
    figures = read_json(artifacts / "report" / "summary.json")
    # the test knows what is right, whatever training was told
    assert {"base_right", "dpo_right", "sft_right"} <= figures.keys()


@pytest.mark.slow(
    reason="runs all notebooks in short; benchmarks/architectures.py --notebooks does with all models"
)
@pytest.mark.parametrize("name", ["smolvlm", "llava", "gemma3", "qwen3_5", "internvl"])
def test_other_architectures_go_through_all_notebooks(tmp_path, name):
    """A random model of each family: what holds for a Qwen2-VL alone would stop here."""
    artifacts = run_chain(tmp_path, short=True, model=save_as_on_the_hub(name, tmp_path / "model"))
    page = (artifacts / "report" / "index.html").read_text(encoding="utf-8")
    assert "+nan" not in page
