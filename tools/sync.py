"""Write the notebooks from their sources, and README's table of presets: `make sync`.

What all notebooks share, the set-up cell and the address that their badges lead to, comes from
`notebooks/setup.toml`.
"""

import re
import sys
import tomllib
from pathlib import Path

import jupytext
import nbformat

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from helpers.files import UsageError, write_text
from helpers.models import PRESETS
from helpers.notebooks import NOTEBOOKS, catalogue
from tools.publish import write_block

COLAB_URL = "https://colab.research.google.com"


def notebook_from_source(source: Path):
    """The notebook that a percent-format file stands for: stripped, with stable cell ids."""
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


def read_shared_parts() -> dict[str, str]:
    """`notebooks/setup.toml`. Raises UsageError if the repository has an address and no tag: a
    badge needs both.
    """
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
    """The set-up cell of all notebooks, with address and tag of the repository; without a tag,
    branch `main`.
    """
    shared = read_shared_parts()
    cell = shared["cell"].strip().replace("@REPOSITORY@", shared["repository"])
    return cell.replace("@TAG@", shared["tag"] or "main")


def badge(file: str) -> str:
    """Markdown of a badge that opens `notebooks/FILE` in Colab; empty if the repository is nowhere
    on GitHub.
    """
    shared = read_shared_parts()
    github = re.fullmatch(r"https://github\.com/([^/]+/[^/]+?)(\.git)?/?", shared["repository"])
    if not github:
        return ""
    address = f"{COLAB_URL}/github/{github[1]}/blob/{shared['tag']}/notebooks/{file}"
    return f"[![Open in Colab]({COLAB_URL}/assets/colab-badge.svg)]({address})"


def badges() -> str:
    """Markdown list of the catalogue for the README: every notebook with its badge, if there are
    badges.
    """
    lines = []
    for entry in catalogue():
        file = entry["file"]
        lines.append(f"* [{file[:2]} · {entry['title']}](notebooks/{file}) {badge(file)}".rstrip())
    return "\n".join(lines)


def add_shared_parts(text: str, file: str) -> str:
    """A percent-format source with the set-up cell and, under its title, the badge of `FILE` or
    none.

    Raises UsageError if the source has not one cell tagged `setup`, or no title.
    """
    text, cells = re.subn(
        r'(?<=^# %% tags=\["setup"\]\n).*?(?=^# %%)',
        lambda _: set_up_cell() + "\n\n",
        text,
        flags=re.M | re.S,
    )
    text = re.sub(r"^#\n# \[!\[Open in Colab\].*\n", "", text, flags=re.M)
    line = f"#\n# {badge(file)}\n" if badge(file) else ""
    text, titles = re.subn(r"\A# %% \[markdown\]\n# # .+\n", lambda title: title[0] + line, text)
    if (cells, titles) != (1, 1):
        raise UsageError(
            f"the source of {file} needs a title in its first cell and one cell tagged 'setup'."
        )
    return text


def sync_notebooks() -> list[Path]:
    """Write what is shared into every `notebooks/src/*.py`, and each as its stripped `.ipynb`;
    returns the notebooks.
    """
    written = []
    for source in sorted((NOTEBOOKS / "src").glob("*.py")):
        target = NOTEBOOKS / f"{source.stem}.ipynb"
        text = source.read_text(encoding="utf-8")
        if (shared := add_shared_parts(text, target.name)) != text:
            write_text(source, shared)
        written.append(write_text(target, nbformat.writes(notebook_from_source(source)) + "\n"))
    return written


def write_presets(root: Path) -> Path:
    """Put the table of presets into the README of the repository at `root`; returns the README."""
    return write_block(root / "README.md", "presets", presets_table())


def presets_table() -> str:
    """The checkpoints as a Markdown table.

    Columns: name, where it is, the smallest card for training in 4 bits, licence.
    """
    rows = ["| preset | checkpoint | smallest card | licence |", "|---|---|---|---|"]
    for name, preset in PRESETS.items():
        card = f"{preset.gpu_gb} GB" if preset.gpu_gb else "none"
        rows.append(f"| `{name}` | {preset.location} | {card} | {preset.licence} |")
    return "\n".join(rows)


if __name__ == "__main__":
    for path in [*sync_notebooks(), write_presets(ROOT)]:
        print(path)
