"""What `make readme` writes."""

import json

import pytest

from helpers.files import ROOT, UsageError, write_json
from tools.publish import figures_table, minutes_table, publish, replace_block


def test_the_readme_block_is_replaced_and_must_be_there():
    text = "a\n<!-- x -->\nold\n<!-- end x -->\nb"
    assert replace_block(text, "x", "new") == "a\n<!-- x -->\nnew\n<!-- end x -->\nb"
    with pytest.raises(UsageError, match="put both lines back"):
        replace_block("a <!-- x --> b", "x", "new")


def test_the_readme_shows_the_published_figures():
    figures = json.loads((ROOT / "docs" / "demo.json").read_text(encoding="utf-8"))
    # the baseline beside what is to beat it
    assert {"base_exact", "sft_exact", "dpo_exact", "dpo_vs_sft_p", "ppo_exact"} <= figures.keys()
    assert figures_table(figures) in (ROOT / "README.md").read_text(encoding="utf-8"), (
        "run: make readme"
    )


def test_figures_of_another_task_are_not_published(tmp_path, monkeypatch):
    monkeypatch.setenv("VLM_ARTIFACTS", str(tmp_path))
    write_json(tmp_path / "preferences" / "about.json", {"data": "data/tasks/reasons"})
    with pytest.raises(UsageError, match="the last run was on data/tasks/reasons"):
        publish(tmp_path)
    assert not (tmp_path / "docs").exists()


def test_minutes_of_another_base_stand_beside_the_embedded_ones():
    def seconds(**values):
        return {f"{name}_seconds": {"value": value} for name, value in values.items()}

    demos = {
        "embedded": seconds(notebook_02=66, demo=120) | {"base_exact": {"value": 0.4}},
        "smollm2-scenes": seconds(demo=6000),
    }
    assert minutes_table(demos).splitlines() == [
        "| notebook | embedded | smollm2-scenes |",
        "|---|---|---|",
        "| 02 | 1.1 | – |",
        "| all | 2.0 | 100.0 |",
    ]
    shown = {"value": 66, "low": 66, "high": 66, "n": 1, "seed": 0}
    assert "notebook_02" not in figures_table({"notebook_02_seconds": shown, "demo_seconds": shown})
