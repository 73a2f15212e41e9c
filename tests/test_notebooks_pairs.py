"""The notebooks as files: pairs in sync, no output, one set-up cell, the skeleton, the catalogue."""

import ast
import tomllib

import nbformat
import pytest

from helpers.notebooks import NOTEBOOKS
from tools.sync import notebook_from_source, set_up_cell

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


@pytest.mark.parametrize("name", NAMES)
def test_pairs_are_in_sync_and_stripped(name):
    notebook = nbformat.read(NOTEBOOKS / f"{name}.ipynb", as_version=4)
    assert nbformat.writes(notebook) == nbformat.writes(
        notebook_from_source(NOTEBOOKS / "src" / f"{name}.py")
    ), "run: make sync"
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
        cells += [
            cell.source for cell in notebook.cells if "setup" in cell.metadata.get("tags", [])
        ]
    assert len(cells) == len(NAMES) and set(cells) == {set_up_cell()}, "run: make sync"
    assert sum(bool(line.strip()) for line in cells[0].splitlines()) <= 12
    before_helpers, after = cells[0].split("from helpers")
    assert {"os", "sys"} >= {
        (node.module if isinstance(node, ast.ImportFrom) else node.names[0].name)
        for node in ast.walk(ast.parse(before_helpers))
        if isinstance(node, ast.Import | ast.ImportFrom)
    }, "only the standard library may be imported before the packages are installed"
    assert after == ".setup import set_up\n\nROOT = set_up(DRIVE)"


@pytest.mark.parametrize("name", NAMES)
def test_notebooks_have_the_skeleton_and_a_readable_size(name):
    path = NOTEBOOKS / f"{name}.ipynb"
    notebook = nbformat.read(path, as_version=4)
    text = "\n".join(cell.source for cell in notebook.cells if cell.cell_type == "markdown")
    positions = [text.find(part) for part in SKELETON]
    assert -1 not in positions and positions == sorted(positions)
    assert 25 <= len(notebook.cells) <= 60 and path.stat().st_size < 100_000
    code = [cell.source for cell in notebook.cells if cell.cell_type == "code"]
    assert max(source.count("\n") + 1 for source in code) <= 25
