"""The rooms: imports point down only, and special libraries have one home."""

import ast
import subprocess
import sys

import pytest
from shape import ROOMS, imported, public_names, room_of

from helpers.files import ROOT

HOMES = {
    "unsloth": "models/loading.py",
    "bitsandbytes": "models/loading.py",
    "ipywidgets": "widgets/",
}
HELPERS = ROOT / "helpers"
MODULES = sorted(path.relative_to(HELPERS) for path in HELPERS.rglob("*.py"))


@pytest.mark.parametrize("module", MODULES, ids=str)
def test_imports_point_down_and_special_libraries_have_one_home(module):
    own = room_of(module.with_suffix("").parts[0])
    for name in imported((HELPERS / module).read_text(encoding="utf-8")):
        root, *rest = name.split(".")
        if root == "helpers" and rest:
            low, high = ROOMS.index(room_of(rest[0])), ROOMS.index(own)
            assert low <= high, f"{module} imports {name}, which is above it"
        home = HOMES.get(root) or ""
        assert module.as_posix().startswith(home), f"{module} imports {name}; its home is {home}"


@pytest.mark.parametrize("room", ROOMS[1:-1])
def test_a_room_lists_the_public_names_of_its_modules(room):
    listed = {}
    for node in ast.parse((HELPERS / room / "__init__.pyi").read_text(encoding="utf-8")).body:
        if isinstance(node, ast.ImportFrom) and node.module:
            listed.setdefault(node.module, set()).update(alias.name for alias in node.names)
    for module, names in listed.items():
        file = HELPERS.joinpath(room, *module.split(".")).with_suffix(".py")
        source = file.read_text(encoding="utf-8")
        missing = names - public_names(source)
        assert not missing, f"helpers/{room}/{module}.py does not define {', '.join(missing)}"
        defined = {
            node.name
            for node in ast.parse(source).body
            if isinstance(node, ast.FunctionDef | ast.ClassDef)
        }
        unlisted = {name for name in defined if not name.startswith("_")} - names
        assert not unlisted, (
            f"helpers/{room}/__init__.pyi does not list {', '.join(unlisted)} of {module}.py"
        )


@pytest.mark.parametrize("command", ["import helpers.data; [getattr(helpers.data, n) for n in helpers.data.__all__]",
                                     "from helpers.cli import main; main(['check', 'data/traffic/preferences_test.jsonl'])"])  # fmt: skip
def test_reading_and_checking_data_needs_neither_torch_nor_transformers(command):
    code = f"import sys\n{command}\nprint(sorted({{'torch', 'transformers'}} & sys.modules.keys()))"
    run = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert run.returncode == 0 and run.stdout.splitlines()[-1] == "[]", run.stdout + run.stderr


TESTS = ROOT / "tests"
TEST_FILES = sorted(
    path.relative_to(TESTS) for path in TESTS.rglob("test_*.py") if path.parent != TESTS
)


@pytest.mark.parametrize("path", TEST_FILES, ids=str)
def test_a_test_in_a_room_has_the_name_of_a_module_of_that_room(path):
    """Tests that cross rooms stand at the top of `tests/`."""
    module = path.with_name(path.name.removeprefix("test_"))
    assert (HELPERS / module).exists(), f"tests/{path}: there is no helpers/{module}"
