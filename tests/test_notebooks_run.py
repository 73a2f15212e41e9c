"""The notebooks, run whole but in short on the embedded model: every cell runs, and hands over.

`ci.toml` says with what values; `test_notebooks_defaults.py` runs them with their defaults.
"""

import json
import re

import nbformat
import pytest
from ci import CHAIN, SCENES, VALUES, run_chain

from helpers import models, notebooks
from helpers.files import ROOT, UsageError

heavy = pytest.mark.heavy(reason="runs all notebooks in short")


def test_the_values_in_short_are_those_of_parameters_that_there_are():
    for name, values in VALUES.items():
        assert values.keys() <= set(notebooks.parameters(name)), name
        assert "DATA" not in values, "the scenes are set by the table of scenes"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Artifacts of one run of the whole chain in short."""
    return run_chain(tmp_path_factory.mktemp("run"), short=True)


@pytest.fixture(scope="module")
def figures(folder):
    return json.loads((folder / "report" / "summary.json").read_text())


def read_log(path):
    text = path.read_text(encoding="utf-8")
    return json.loads(text) if path.suffix == ".json" else [*map(json.loads, text.splitlines())]


def mean(rows, name):
    return sum(row[name] for row in rows) / len(rows)


@heavy
def test_every_figure_of_the_readme_is_found_with_its_interval(figures):
    published = json.loads((ROOT / "docs" / "demo.json").read_text())
    # it has three seeds, and clocks
    of_the_demo = re.compile(r"_seed_\d$|^(demo|notebook_\d\d)_seconds$")
    assert {name for name in published if not of_the_demo.search(name)} <= figures.keys()
    for name, figure in figures.items():
        # the end of an interval may miss a share of 1 in the last bit
        assert figure["low"] - 1e-9 <= figure["value"] <= figure["high"] + 1e-9, name
        assert (figure["n"] > 1) == (figure["low"] < figure["high"]), name
    for name in ("base_exact", "dpo_exact", "ppo_exact"):
        assert figures[name]["n"] == SCENES["test"]


@heavy
def test_training_goes_the_right_way(folder, figures):
    dpo = read_log(folder / "dpo" / "seed-0" / "log.json")
    assert len(dpo) == VALUES["04"]["STEPS"]
    assert mean(dpo[-5:], "loss") < mean(dpo[:5], "loss") - 0.2
    assert mean(dpo[-5:], "rewards/margins") > mean(dpo[:5], "rewards/margins") + 0.5
    assert figures["dpo_exact"]["low"] > figures["base_exact"]["value"]
    # the baseline: as many steps on the same pairs, and a test of DPO against it
    sft = read_log(folder / "sft" / "seed-0" / "log.json")
    assert len(sft) == len(dpo) and mean(sft[-5:], "loss") < 0.7 * mean(sft[:5], "loss")
    assert figures["sft_exact"]["low"] > figures["base_exact"]["value"]
    assert 0 <= figures["dpo_vs_sft_p"]["value"] <= 1
    judged = read_log(folder / "reward" / "log.json")["evaluations"]
    # eight steps: it has only begun to fall; that it learns is in tests/training/test_reward.py
    assert judged[-1]["loss"] < judged[0]["loss"] - 5e-6
    ppo = read_log(folder / "ppo" / "ppo" / "log.jsonl")
    assert figures["ppo_samples"]["value"] == max(row.get("samples", 0) for row in ppo)


@heavy
def test_answers_come_from_the_image(figures):
    """A reward model needs more steps to look at it: that is asked of the defaults."""
    assert figures["base_exact_shuffled_images"]["value"] < 0.1
    assert figures["dpo_exact_shuffled_images"]["value"] < 0.1


@heavy
def test_the_embedded_base_is_as_promised(figures):
    assert 0.2 <= figures["base_exact"]["value"] <= 0.5
    assert figures["base_wellformed_sampled"]["value"] >= 0.95
    assert figures["peak_memory_gb"]["value"] < 4


@heavy
def test_the_report_says_it_in_words_and_stands_alone(folder):
    page = (folder / "report" / "index.html").read_text(encoding="utf-8")
    assert "it falls to chance, so the answers come from the image" in page
    assert f"{SCENES['valid']} of {SCENES['valid']} greedy answers are identical" in page
    assert not re.search(r"(src|href)='(?!data:|notebooks/)", page)
    assert (folder / "report" / "index.html").stat().st_size < 5e6
    for name in CHAIN:
        assert (folder / "report" / "notebooks" / f"{name}.html").stat().st_size > 100_000


@heavy
def test_the_report_marks_what_is_circular(folder):
    page = (folder / "report" / "index.html").read_text(encoding="utf-8")
    assert "(circular: the training reward)" in page
    card = (folder / "report" / "cards" / "ppo-heuristic-0.0.md").read_text(encoding="utf-8")
    assert "on the reward `heuristic`" in card


@heavy
def test_pages_of_notebooks_show_widgets_without_scripts_from_elsewhere(folder):
    page = (folder / "report" / "notebooks" / "06_compare_before_after.html").read_text(
        encoding="utf-8"
    )
    assert (
        "truth</b>" in page
        and "Rank correlation (Spearman)" in page
        and "<b>dpo/seed-0</b>" in page
        and "sft/seed-0" in page
    )
    assert "unpkg" not in page and "html-manager" not in page and "require.min.js" not in page


@heavy
def test_adapters_are_small_and_say_how_they_were_made(folder):
    adapter = folder / "dpo" / "seed-0"
    assert (adapter / "adapter_model.safetensors").stat().st_size < 1e6
    about = json.loads((adapter / "about.json").read_text())
    assert about["base"] == "tiny" and about["settings"]["steps"] == VALUES["04"]["STEPS"]


FAILS = """
from helpers.files import UsageError
raise UsageError(f"there is no {WHAT}")
"""


@pytest.mark.heavy(reason="a kernel of its own")
def test_a_failing_cell_is_reported_in_one_line(tmp_path, monkeypatch):
    parameters = nbformat.v4.new_code_cell("WHAT = 1", metadata={"tags": ["parameters"]})
    cells = [parameters, nbformat.v4.new_code_cell(FAILS)]
    nbformat.write(nbformat.v4.new_notebook(cells=cells), tmp_path / "01_fails.ipynb")
    monkeypatch.setattr(notebooks, "NOTEBOOKS", tmp_path)
    with pytest.raises(UsageError) as error:
        notebooks.run_notebook("01", {"WHAT": "truth"}, tmp_path / "pages")
    message = str(error.value)
    assert message.startswith("01_fails.ipynb stopped: ") and "there is no truth" in message
    assert "\n" not in message and "Traceback" not in message
    # What ran is kept, with the error
    page = (tmp_path / "pages" / "01_fails.html").read_text(encoding="utf-8")
    assert "there is no" in page and "WHAT" in page


def test_evaluating_without_adapters_says_what_to_run(artifacts):
    """What notebook 07 asks for first."""
    with pytest.raises(UsageError, match=r"no adapter of 'qwen2-vl-2b' .* Run notebook 04"):
        models.find_policies("qwen2-vl-2b")
