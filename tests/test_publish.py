"""What `make readme` writes."""

import json

import matplotlib.pyplot as plt
import pytest

from helpers.files import ROOT, UsageError, write_json, write_text
from helpers.report.page import Section
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


def test_the_picture_on_top_keeps_its_name(tmp_path, artifacts):
    """A notebook that got one picture more put another one on top of README."""
    figure, axis = plt.subplots()
    axis.plot([1, 2])
    section = Section("07_evaluate", "Evaluation")
    for place, lead in enumerate((False, True, False)):
        section.picture(figure, str(place), lead=lead)
    plt.close(figure)
    section.save()
    write_text(
        tmp_path / "README.md", "<!-- figures of make demo -->\n<!-- end figures of make demo -->\n"
    )
    old = tmp_path / "docs" / "pictures" / "07_evaluate_4.png"
    write_text(old, "of a run with four")
    publish(tmp_path)
    names = sorted(path.name for path in old.parent.iterdir())
    assert names == ["07_evaluate_1.png", "07_evaluate_3.png", "07_evaluate_lead.png"]
    assert "07_evaluate_lead.png" in (ROOT / "README.md").read_text(encoding="utf-8")


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
