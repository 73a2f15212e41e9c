"""Notebooks as programs: set their parameters, run them whole, keep the percent-format pairs equal.

A parameter is a name assigned in the cell tagged `parameters`; a run puts a cell with other values
behind it, as papermill does. What all notebooks share, the set-up cell and the address that their
badges lead to, comes from `notebooks/setup.toml`. jupytext, nbclient and nbconvert are development
packages, so they are imported where they are used: Colab does without them.
"""

import ast
import os
import re
import tomllib
from pathlib import Path
from typing import Any

from tqdm.auto import tqdm

from helpers.files import ROOT, UsageError, write_text

NOTEBOOKS = ROOT / "notebooks"
COLAB_URL = "https://colab.research.google.com"


def catalogue() -> list[dict[str, Any]]:
    """The notebooks in the order of reading: file, title, what each needs and makes, minutes."""
    return tomllib.loads((NOTEBOOKS / "index.toml").read_text(encoding="utf-8"))["notebook"]


def find_notebook(name: str) -> Path:
    """`"04"` or `"04_train_dpo"` → its path. Raises UsageError listing the notebooks there are."""
    found = sorted(NOTEBOOKS.glob(f"{name.removesuffix('.ipynb')}*.ipynb"))
    if len(found) != 1:
        known = ", ".join(p.stem for p in sorted(NOTEBOOKS.glob("*.ipynb")))
        raise UsageError(f"no notebook {name!r}: choose one of {known}")
    return found[0]


def parameters(name: str) -> list[str]:
    """Names that the `parameters` cell of a notebook assigns."""
    import nbformat

    cells = nbformat.read(find_notebook(name), as_version=4).cells
    source = cells[_parameters_cell(cells)].source
    targets = [t for node in ast.parse(source).body if isinstance(node, ast.Assign) for t in node.targets]
    return [target.id for target in targets if isinstance(target, ast.Name)]


def _parameters_cell(cells: list) -> int:
    tagged = [i for i, cell in enumerate(cells) if "parameters" in cell.metadata.get("tags", [])]
    if len(tagged) != 1:
        raise UsageError(f"the notebook has {len(tagged)} cells tagged 'parameters', it needs one")
    return tagged[0]


def run_notebook(name: str, values: dict[str, Any] | None = None, html_folder: Path | None = None) -> Path | None:
    """Run a notebook whole in a kernel of its own; the executed page goes to `html_folder`.

    Raises UsageError with the notebook, the cell and the last lines of its error if a cell fails.
    """
    import nbformat
    from nbclient import NotebookClient
    from nbclient.exceptions import CellExecutionError

    path = find_notebook(name)
    notebook = nbformat.read(path, as_version=4)
    if values:
        source = "\n".join(f"{name} = {value!r}" for name, value in values.items())
        notebook.cells.insert(_parameters_cell(notebook.cells) + 1, nbformat.v4.new_code_cell(source))
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])}
    progress = tqdm(total=len(notebook.cells), desc=path.stem, unit="cell", mininterval=2)
    client = NotebookClient(
        notebook,
        timeout=None,
        kernel_name="python3",
        resources={"metadata": {"path": str(NOTEBOOKS)}},
        extra_arguments=["--log-level=ERROR"],  # else every kernel warns that its local port is not encrypted
        on_cell_complete=lambda cell, cell_index: progress.update(),
    )
    try:
        client.execute(env=environment)
    except CellExecutionError as error:
        plain = re.sub(r"\x1b\[[0-9;]*m", "", str(error))  # without terminal colours
        last = [line.strip() for line in plain.splitlines() if line.strip()][-3:]
        raise UsageError(f"{path.name} stopped: " + " | ".join(last)) from None
    finally:
        progress.close()
    return _save_html(notebook, html_folder / f"{path.stem}.html") if html_folder else None


def _save_html(notebook, path: Path) -> Path:
    """The page without scripts of widgets, which come from the network: widgets show their plain HTML instead."""
    from nbconvert import HTMLExporter
    from traitlets.config import Config

    notebook.metadata.pop("widgets", None)
    kinds = ["text/html", "image/svg+xml", "image/png", "image/jpeg", "text/markdown", "text/latex", "text/plain"]
    config = Config(NbConvertBase={"display_data_priority": kinds})
    page, _ = HTMLExporter(config=config, embed_images=True, require_js_url="").from_notebook_node(notebook)
    return write_text(path, page)


def notebook_from_source(source: Path):
    """The notebook that a percent-format file stands for: stripped, with stable cell ids."""
    import jupytext

    notebook = jupytext.read(source)
    for number, cell in enumerate(notebook.cells):
        cell["id"] = f"cell-{number:02d}"
        cell.metadata = {"tags": cell.metadata["tags"]} if "tags" in cell.metadata else {}
    notebook.metadata = {
        "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
        "language_info": {"name": "python"},
    }
    notebook.nbformat, notebook.nbformat_minor = 4, 5
    return notebook


def _read_shared_parts() -> dict[str, str]:
    """`notebooks/setup.toml`. Raises UsageError if the repository has an address and no tag: a badge needs both."""
    path = NOTEBOOKS / "setup.toml"
    try:
        shared = tomllib.loads(path.read_text(encoding="utf-8"))
    except tomllib.TOMLDecodeError as error:
        raise UsageError(f"{path}: not TOML ({error}).") from None
    if bool(shared["repository"]) != bool(shared["tag"]):
        raise UsageError(f"{path}: repository and tag go together. Set both, or leave both empty.")
    if bad := re.search(r"[\s\"'\\\\]", shared["repository"] + shared["tag"]):
        raise UsageError(f"{path}: {bad[0]!r} cannot stand in an address or a tag.")
    return shared


def set_up_cell() -> str:
    """The set-up cell of all notebooks, with address and tag of the repository; without a tag, branch `main`."""
    shared = _read_shared_parts()
    cell = shared["cell"].strip().replace("@REPOSITORY@", shared["repository"])
    return cell.replace("@TAG@", shared["tag"] or "main")


def badge(file: str) -> str:
    """Markdown of a badge that opens `notebooks/FILE` in Colab; empty if the repository is nowhere on GitHub."""
    shared = _read_shared_parts()
    github = re.fullmatch(r"https://github\.com/([^/]+/[^/]+?)(\.git)?/?", shared["repository"])
    if not github:
        return ""
    address = f"{COLAB_URL}/github/{github[1]}/blob/{shared['tag']}/notebooks/{file}"
    return f"[![Open in Colab]({COLAB_URL}/assets/colab-badge.svg)]({address})"


def badges() -> str:
    """Markdown list of the catalogue for the README: every notebook with its badge, if there are badges."""
    lines = []
    for entry in catalogue():
        file = entry["file"]
        lines.append(f"* [{file[:2]} · {entry['title']}](notebooks/{file}) {badge(file)}".rstrip())
    return "\n".join(lines)


def add_shared_parts(text: str, file: str) -> str:
    """A percent-format source with the set-up cell and, under its title, the badge of `FILE` or none.

    Raises UsageError if the source has not one cell tagged `setup`, or no title.
    """
    text, cells = re.subn(
        r'(?<=^# %% tags=\["setup"\]\n).*?(?=^# %%)', lambda _: set_up_cell() + "\n\n", text, flags=re.M | re.S
    )
    text = re.sub(r"^#\n# \[!\[Open in Colab\].*\n", "", text, flags=re.M)
    line = f"#\n# {badge(file)}\n" if badge(file) else ""
    text, titles = re.subn(r"\A# %% \[markdown\]\n# # .+\n", lambda title: title[0] + line, text)
    if (cells, titles) != (1, 1):
        raise UsageError(f"the source of {file} needs a title in its first cell and one cell tagged 'setup'.")
    return text


def sync_notebooks() -> list[Path]:
    """Write what is shared into every `notebooks/src/*.py`, and each as its stripped `.ipynb`; returns the notebooks."""
    import nbformat

    written = []
    for source in sorted((NOTEBOOKS / "src").glob("*.py")):
        target = NOTEBOOKS / f"{source.stem}.ipynb"
        text = source.read_text(encoding="utf-8")
        if (shared := add_shared_parts(text, target.name)) != text:
            write_text(source, shared)
        written.append(write_text(target, nbformat.writes(notebook_from_source(source)) + "\n"))
    return written
