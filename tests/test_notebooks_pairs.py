"""The notebooks as files: pairs in sync, no output, one set-up cell, the skeleton, the catalogue."""

import ast
import itertools
import os
import tomllib
from pathlib import Path

import nbformat
import pytest

from helpers.files import ROOT
from helpers.notebooks import NOTEBOOKS, from_source, set_up_cell

NAMES = [path.stem for path in sorted(NOTEBOOKS.glob("*.ipynb"))]
SKELETON = (
    "**Goal.**",
    "**Needs**",
    "**Makes**",
    "**Takes**",
    "## Set-up",
    "## Parameters",
    "## What you should see",
    "## Check yourself",
    "## Next",
)
LAYERS = [  # imports point to a lower line only
    {"install", "drive", "runtime", "config", "statistics", "presets"},
    {"counting", "losses", "heads", "notebooks", "prompts", "templates", "run_logs", "resume", "shapes"},
    {"labels", "counting_metrics", "memory"},
    {"scenes", "preferences", "heuristic", "scoring", "similarity", "duration"},
    {"text_metrics", "hallucination", "rule_ranking", "fitting", "machine"},
    {"blind", "formats", "rows", "convert", "hub", "findings", "lengths", "data_doctor"},
    {"vote_file", "votes", "text_ranking", "arena"},
    {"official", "benchmarks", "judge", "image_features", "run_rules"},
    {"shared_prefix", "reference_logps", "processes"},
    {"loading", "models", "forecast"},
    {"policies"},
    {"input_checks"},
    {"preflight"},
    {"rollout", "actor_critic", "ppo_figures", "ppo_checkpoint"},
    {"pairs", "dpo", "ppo", "run_doctor", "reward_model", "reward_training", "feature_reward", "caption_reward"},
    {"side_by_side", "gallery", "paired"},
    {"pages"},
    {"ppo_doctor", "evaluation", "exam", "model_card", "reward_report", "plots", "report", "export"},
    {"recipes"},
    {"recipe_data"},
    {"stages"},
    {"widgets", "cli"},
]


@pytest.mark.parametrize("name", NAMES)
def test_pairs_are_in_sync_and_stripped(name):
    notebook = nbformat.read(NOTEBOOKS / f"{name}.ipynb", as_version=4)
    assert nbformat.writes(notebook) == nbformat.writes(from_source(NOTEBOOKS / "src" / f"{name}.py")), "run: make sync"
    for cell in notebook.cells:
        if cell.cell_type == "code":
            assert cell.outputs == [] and cell.execution_count is None
    assert "widgets" not in notebook.metadata


def test_every_notebook_has_a_source_and_a_catalogue_entry():
    assert [path.stem for path in sorted((NOTEBOOKS / "src").glob("*.py"))] == NAMES
    catalogue = tomllib.loads((NOTEBOOKS / "index.toml").read_text(encoding="utf-8"))
    assert [entry["file"] for entry in catalogue["notebook"]] == [f"{name}.ipynb" for name in NAMES]
    for entry in catalogue["notebook"]:
        assert entry.keys() == {"file", "title", "needs", "makes", "minutes_cpu"}


def test_the_set_up_cell_is_the_same_everywhere():
    cells = []
    for name in NAMES:
        notebook = nbformat.read(NOTEBOOKS / f"{name}.ipynb", as_version=4)
        cells += [cell.source for cell in notebook.cells if "setup" in cell.metadata.get("tags", [])]
    assert len(cells) == len(NAMES) and set(cells) == {set_up_cell()}, "run: make sync"
    assert sum(bool(line.strip()) for line in cells[0].splitlines()) <= 26
    before_helpers = cells[0].split("from helpers")[0]
    assert {"pathlib", "subprocess", "sys", "tempfile"} >= {
        (node.module if isinstance(node, ast.ImportFrom) else node.names[0].name)
        for node in ast.walk(ast.parse(before_helpers))
        if isinstance(node, ast.Import | ast.ImportFrom)
    }, "only the standard library may be imported before the packages are installed"
    assert cells[0].split("ensure()\n")[1].startswith("from helpers import models"), "unsloth comes first"


@pytest.mark.parametrize("name", NAMES)
def test_notebooks_have_the_skeleton_and_a_readable_size(name):
    path = NOTEBOOKS / f"{name}.ipynb"
    notebook = nbformat.read(path, as_version=4)
    text = "\n".join(cell.source for cell in notebook.cells if cell.cell_type == "markdown")
    positions = [text.find(part) for part in SKELETON]
    assert -1 not in positions and positions == sorted(positions)
    assert 25 <= len(notebook.cells) <= 60 and path.stat().st_size < 100_000
    assert max(cell.source.count("\n") for cell in notebook.cells if cell.cell_type == "code") < 40


def imports(module):
    """What a module, or a package with its parts, imports."""
    home = ROOT / "helpers" / module
    files = sorted(home.glob("*.py")) if home.is_dir() else [home.with_suffix(".py")]
    for node in itertools.chain(*(ast.walk(ast.parse(file.read_text(encoding="utf-8"))) for file in files)):
        if isinstance(node, ast.ImportFrom) and node.module == "helpers":
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and (node.module or "").startswith("helpers."):
            yield node.module.split(".")[1]
        elif isinstance(node, ast.ImportFrom):
            yield node.module
        elif isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)


def test_imports_point_downwards_and_special_libraries_have_one_home():
    level = {module: number for number, layer in enumerate(LAYERS) for module in layer}
    modules = {Path(name).stem for name in os.listdir(ROOT / "helpers")} - {"__init__", "__main__", "__pycache__"}
    assert modules == level.keys()
    for module in modules:
        for imported in imports(module):
            assert imported not in level or level[imported] <= level[module], f"{module} imports {imported}"
            for library, home in (("unsloth", "loading"), ("bitsandbytes", "loading"), ("ipywidgets", "widgets")):
                assert imported.split(".")[0] != library or module == home, f"{module} imports {library}"
