"""README's tree of `helpers/` is what is there, and the pages name files that exist."""

import ast
import importlib
import re

import pytest
from shape import ROOMS, ROOT, first_glance, imported, read_sources, readme_tree, room_of

from helpers.notebooks import catalogue
from tools.sync import write_presets

README = (ROOT / "README.md").read_text(encoding="utf-8")
TREE = readme_tree(README)
ENTRIES = [line.split()[0] for line in TREE[1:]]
NAMES = [entry.removesuffix("/").removesuffix(".py") for entry in ENTRIES]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
FOLDERS = "benchmarks|data|docs|helpers|notebooks|recipes|tests"


def test_the_tree_names_exactly_what_is_there():
    there = [name if "." in name else f"{name}/" for name in first_glance(ROOT / "helpers")]
    assert sorted(ENTRIES) == sorted(there)
    assert all(len(line.split(maxsplit=1)) == 2 for line in TREE), "every entry has a phrase"


def test_the_tree_stands_in_the_order_of_the_rooms():
    rooms = [room_of(name) for name in NAMES]
    assert rooms == sorted(rooms, key=ROOMS.index)


def test_every_entry_imports_only_what_stands_above_it():
    for path, source in read_sources(ROOT / "helpers").items():
        own = path.split("/")[0].removesuffix(".py")
        if own == "__init__":
            continue
        above = NAMES[: NAMES.index(own) + 1]
        modules = [name.split(".")[1] for name in imported(source) if name.startswith("helpers.")]
        assert set(modules) <= set(above), f"helpers/{path} imports what README names below it"


def test_the_tree_names_the_notebooks_of_the_catalogue():
    listed = re.findall(r"^  (\d\d_\w+) ", README, flags=re.M)
    assert [f"{name}.ipynb" for name in listed] == [entry["file"] for entry in catalogue()]


def test_the_table_of_presets_is_written_anew(tmp_path):
    stale = re.sub(r"^\| `tiny` .*\n", "", README, flags=re.M)
    assert stale != README
    (tmp_path / "README.md").write_text(stale, encoding="utf-8")
    assert write_presets(tmp_path).read_text(encoding="utf-8") == README


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_files_that_a_page_names_are_there(page):
    text = page.read_text(encoding="utf-8")
    named = re.findall(rf"(?<![\w./-])(?:{FOLDERS})/[\w/.-]+\.(?:py|toml|md|ipynb)\b", text)
    missing = sorted({name for name in named if not (ROOT / name).exists() and "NAME" not in name})
    assert not missing, f"{page.name} names files that are not there: {', '.join(missing)}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_names_of_helpers_that_a_page_uses_are_there(page):
    """A page showed `from helpers.labels import read_counts` after the module had moved."""
    for block in re.findall(r"```python\n(.*?)```", page.read_text(encoding="utf-8"), flags=re.S):
        if "from helpers" not in block:
            continue
        nodes, modules = list(ast.walk(ast.parse(block))), {}
        for node in nodes:
            if isinstance(node, ast.ImportFrom) and node.module.split(".")[0] == "helpers":
                for alias in node.names:
                    modules[alias.name] = _find(node.module, alias.name)
        for node in nodes:
            if isinstance(node, ast.Attribute) and ast.unparse(node.value) in modules:
                assert hasattr(modules[ast.unparse(node.value)], node.attr), ast.unparse(node)


def _find(module: str, name: str):
    """What `from module import name` gives."""
    found = importlib.import_module(module)
    return getattr(found, name, None) or importlib.import_module(f"{module}.{name}")
