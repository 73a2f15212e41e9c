"""The rooms: imports point down only, and special libraries have one home."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

from helpers.files import ROOT

ROOMS = (
    "ground", "data", "models", "machine", "rewards", "training", "doctor", "evaluation", "report", "widgets", "roof",
)  # fmt: skip
GROUND = {"files", "runtime", "config", "losses", "statistics", "install"}
HOMES = {"unsloth": "models/loading.py", "bitsandbytes": "models/loading.py", "ipywidgets": "widgets/"}
HELPERS = ROOT / "helpers"
MODULES = sorted(path.relative_to(HELPERS) for path in HELPERS.rglob("*.py"))


def room_of(name: str) -> str:
    """The room of a module, from the first part of its name below `helpers`."""
    if name in ROOMS:
        return name
    return "ground" if name in GROUND else "roof"


def imported(path: Path) -> list[str]:
    """Full names of all that a module imports, anywhere in it."""
    names = []
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.module == "helpers":
            names += [f"helpers.{alias.name}" for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            names.append(node.module or "")
        elif isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
    return names


@pytest.mark.parametrize("module", MODULES, ids=str)
def test_imports_point_down_and_special_libraries_have_one_home(module):
    own = room_of(module.with_suffix("").parts[0])
    for name in imported(HELPERS / module):
        root, *rest = name.split(".")
        if root == "helpers" and rest:
            assert ROOMS.index(room_of(rest[0])) <= ROOMS.index(own), f"{module} imports {name}, which is above it"
        home = HOMES.get(root)
        assert home is None or module.as_posix().startswith(home), f"{module} imports {name}; its home is {home}"


@pytest.mark.parametrize("command", ["import helpers.data; [getattr(helpers.data, n) for n in helpers.data.__all__]",
                                     "from helpers.cli import main; main(['check', 'data/traffic/preferences_test.jsonl'])"])  # fmt: skip
def test_reading_and_checking_data_needs_neither_torch_nor_transformers(command):
    code = f"import sys\n{command}\nprint(sorted({{'torch', 'transformers'}} & sys.modules.keys()))"
    run = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert run.returncode == 0 and run.stdout.splitlines()[-1] == "[]", run.stdout + run.stderr
