"""Notebooks as programs: set their parameters and run them whole.

A parameter is a name assigned in the cell tagged `parameters`; a run puts a cell with other values
behind it, as papermill does. nbclient and nbconvert are development packages, so they are imported
where they are used: Colab does without them. `tools/sync.py` writes the notebooks.
"""

import ast
import json
import os
import re
import time
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from helpers.files import ROOT, UsageError, read_json, write_json, write_text

NOTEBOOKS = ROOT / "notebooks"
# of what a cell shows, the first of these that it has; scripts of widgets are not among them
SHOWN_KINDS = (
    "text/html",
    "image/svg+xml",
    "image/png",
    "image/jpeg",
    "text/markdown",
    "text/latex",
    "text/plain",
)

# nbconvert's own page, without the scripts that it takes from a network
PAGE_TEMPLATE = """\
{% extends 'lab/index.html.j2' %}
{% block html_head_js %}{% endblock %}
{% block html_head_js_mathjax %}{% endblock %}
{% block html_head_js_mermaidjs %}{% endblock %}
"""
FORMULAS = re.compile(
    r"(?P<code>```.*?```|`[^`]*`)|\$\$(?P<block>.+?)\$\$|(?<!\\)\$(?P<inline>[^$]+?)\$",
    re.DOTALL,
)
FORMULA_PLACE = "[formula:{}]"


def catalogue() -> list[dict[str, Any]]:
    """The notebooks in the order of reading: file, title, what each needs and makes, minutes."""
    return tomllib.loads((NOTEBOOKS / "index.toml").read_text(encoding="utf-8"))["notebook"]


def find_notebook(name: str) -> Path:
    """`"04"` or `"04_train_dpo"` → its path. Raises UsageError listing the notebooks there are."""
    found = sorted(NOTEBOOKS.glob(f"{name.removesuffix('.ipynb')}*.ipynb"))
    if len(found) != 1:
        known = ", ".join(path.stem for path in sorted(NOTEBOOKS.glob("*.ipynb")))
        raise UsageError(f"no notebook {name!r}: choose one of {known}")
    return found[0]


def parameters(name: str) -> list[str]:
    """Names that the `parameters` cell of a notebook assigns."""
    import nbformat

    cells = nbformat.read(find_notebook(name), as_version=4).cells
    names = []
    for node in ast.parse(cells[_parameters_cell(cells)].source).body:
        if isinstance(node, ast.Assign):
            names += [target.id for target in node.targets if isinstance(target, ast.Name)]
    return names


def _parameters_cell(cells: list) -> int:
    tagged = [i for i, cell in enumerate(cells) if "parameters" in cell.metadata.get("tags", [])]
    if len(tagged) != 1:
        raise UsageError(f"the notebook has {len(tagged)} cells tagged 'parameters', it needs one")
    return tagged[0]


def read_notebook(name: str, values: dict[str, Any] | None = None) -> Any:
    """A notebook as nbformat reads it, with a cell of other values behind its parameters."""
    import nbformat

    notebook = nbformat.read(find_notebook(name), as_version=4)
    if values:
        source = "\n".join(f"{name} = {value!r}" for name, value in values.items())
        cell = nbformat.v4.new_code_cell(source)
        notebook.cells.insert(_parameters_cell(notebook.cells) + 1, cell)
    return notebook


def run_notebook(
    name: str, values: dict[str, Any] | None = None, html_folder: Path | None = None
) -> Path | None:
    """Run a notebook whole in a kernel of its own; the executed page goes to `html_folder`.

    The page of a notebook that stops ends with its error. Raises UsageError with the notebook, the
    cell and the last lines of its error if a cell fails.
    """
    from nbclient import NotebookClient
    from nbclient.exceptions import CellExecutionError
    from tqdm.auto import tqdm

    path = find_notebook(name)
    notebook = read_notebook(name, values)
    progress = tqdm(total=len(notebook.cells), desc=path.stem, unit="cell", mininterval=2)
    client = NotebookClient(
        notebook,
        timeout=None,
        kernel_name="python3",
        resources={"metadata": {"path": str(NOTEBOOKS)}},
        # else every kernel warns that its local port is not encrypted
        extra_arguments=["--log-level=ERROR"],
        on_cell_complete=lambda cell, cell_index: progress.update(),
    )
    python_path = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    try:
        # relative paths among the values count from here, not from the notebook's folder
        env = {**os.environ, "PYTHONPATH": python_path, "VLM_STARTED_IN": str(Path.cwd())}
        client.execute(env=env)
    except CellExecutionError as error:
        plain = re.sub(r"\x1b\[[0-9;]*m", "", str(error))  # without terminal colours
        last = [line.strip() for line in plain.splitlines() if line.strip()][-3:]
        if html_folder:
            _save_html(notebook, html_folder / f"{path.stem}.html")
        raise UsageError(f"{path.name} stopped: " + " | ".join(last)) from None
    finally:
        progress.close()
    return _save_html(notebook, html_folder / f"{path.stem}.html") if html_folder else None


def run_series(values: Mapping[str, dict[str, Any]], report: Path) -> dict[str, int]:
    """Run notebooks one after another, each with its values; returns the seconds of each.

    `report` is the folder of the report: pages go to `report/notebooks`. A series that was cut off
    goes on with the notebook that it was in, if the values are the same; else it begins anew, with
    a report of its own. The time of a notebook that was cut off is not counted.
    """
    noted = report / "series.json"  # there while a series is unfinished
    wanted = json.loads(json.dumps(values))  # as it will be read again: tuples are lists
    series: dict[str, Any] = {"values": wanted, "seconds": {}}
    if noted.exists() and read_json(noted)["values"] == wanted:
        series = read_json(noted)
    else:
        for old in (report / "sections").glob("*.json"):
            old.unlink()

    seconds: dict[str, int] = series["seconds"]
    if seconds:
        print(f"Finished before: notebooks {', '.join(seconds)}. The others follow.")
    for name, given in values.items():
        if name in seconds:
            continue
        print(f"[{sum(seconds.values()):4.0f} s] notebook {name} …", flush=True)
        begun = time.time()
        run_notebook(name, given, report / "notebooks")
        seconds[name] = round(time.time() - begun)
        write_json(noted, series)
    noted.unlink()
    return seconds


def _save_html(notebook, path: Path) -> Path:
    """Write the page; opening it loads nothing from the network and runs no script.

    Widgets show their plain HTML instead, and formulas are MathML, which browsers draw themselves.
    """
    from nbconvert import HTMLExporter
    from traitlets.config import Config

    notebook.metadata.pop("widgets", None)
    formulas: list[str] = []
    for cell in notebook.cells:
        if cell.cell_type == "markdown":
            cell.source = _take_formulas(cell.source, formulas)
    config = Config(NbConvertBase={"display_data_priority": list(SHOWN_KINDS)})
    exporter = HTMLExporter(config=config, embed_images=True, raw_template=PAGE_TEMPLATE)
    page, _ = exporter.from_notebook_node(notebook)
    # Only now: nbconvert would take tags apart that stand in a line of text
    for number, formula in enumerate(formulas):
        page = page.replace(FORMULA_PLACE.format(number), formula)
    return write_text(path, page)


def _take_formulas(text: str, formulas: list[str]) -> str:
    """Put places where Markdown has formulas, and add these to the list as MathML.

    A formula stands between one or two dollar signs; code stays as it is.
    """
    from latex2mathml.converter import convert

    def take(found: re.Match) -> str:
        if found["code"]:
            return found["code"]
        display = "block" if found["block"] else "inline"
        formulas.append(convert(found["block"] or found["inline"], display=display))
        return FORMULA_PLACE.format(len(formulas) - 1)

    return FORMULAS.sub(take, text)
