import json

import matplotlib.pyplot as plt
import pytest

from helpers.files import UsageError
from helpers.report.page import Headline, Section, build_report, collect_headlines
from helpers.statistics import proportion


def test_sections_become_a_page_and_a_summary(artifacts):
    section = Section("04_train_dpo", "DPO <training>")
    section.add_share("dpo_exact", proportion(9, 10), seed=2)
    section.add_value("dpo_train_seconds", 41.5, seed=2)
    section.conclude("better & real")
    section.table([["a", "b"], ["<script>", "2"]])
    figure, axis = plt.subplots()
    axis.plot([1, 2])
    section.picture(figure, "a 'curve'")
    plt.close(figure)
    page = section.save().read_text(encoding="utf-8")
    figures = json.loads((artifacts / "report" / "summary.json").read_text())
    assert figures["dpo_exact"].keys() == {"value", "low", "high", "n", "seed"}
    assert figures["dpo_exact"]["value"] == 0.9 and figures["dpo_exact"]["seed"] == 2
    assert figures["dpo_train_seconds"] == {
        "value": 41.5,
        "low": 41.5,
        "high": 41.5,
        "n": 1,
        "seed": 2,
    }
    assert figures["peak_memory_gb"]["value"] > 0.1
    assert "better &amp; real" in page and "&lt;script&gt;" in page and "<script>" not in page
    assert "data:image/png;base64," in page and "http" not in page.replace("http-equiv", "")


def test_a_figure_is_a_finite_number(artifacts, capsys):
    section = Section("05_train_ppo", "PPO")
    section.add_value("ppo_explained_variance", float("nan"))  # all returns were equal
    assert "ppo_explained_variance is nan" in capsys.readouterr().out
    with pytest.raises(TypeError):
        section.add_value("ppo_explained_variance", "0.4")
    section.save()
    assert "ppo_explained_variance" not in section.headlines


def test_peak_memory_is_the_largest_and_other_figures_are_the_latest():
    def section(name, peak, exact):
        return Section(name, name, headlines={"peak_memory_gb": one(peak), "exact": one(exact)})

    def one(value):
        return Headline(value, value, value, 1, 0)

    merged = collect_headlines(
        [section("01", 2.0, 0.1), section("02", 3.0, 0.2), section("03", 1.0, 0.3)]
    )
    assert merged["peak_memory_gb"].value == 3.0 and merged["exact"].value == 0.3


def test_a_section_of_another_version_is_named(artifacts):
    path = artifacts / "report" / "sections" / "01_load_model.json"
    path.parent.mkdir(parents=True)
    path.write_text('{"name": "01_load_model", "title": "t", "headlines": {}, "colour": 1}')
    with pytest.raises(
        UsageError, match=r"01_load_model\.json: written by another version\. Delete it"
    ):
        build_report()


def test_a_section_saved_twice_is_there_once(artifacts):
    for text in ("first", "second"):
        section = Section("01_load_model", "t")
        section.say(text)
        section.save()
    page = build_report().read_text(encoding="utf-8")
    assert "second" in page and "first" not in page
