"""The shape of the code may only get better: no figure of `tests/shape.toml` rises.

A figure that rose is named with what is new. Whoever lowers one commits the lower figure, with
`python tests/shape.py --write`. Below: every measure on a made-up snippet, with the number worked
out by hand.
"""

import pytest
import shape
from shape import Measure

NAMES = list(shape.read_table())


@pytest.fixture(scope="module")
def measured():
    return shape.measure()


@pytest.mark.parametrize("name", NAMES)
def test_no_figure_rises(name, measured):
    rise = shape.what_rose(name, shape.read_table()[name], measured[name])
    assert not rise, rise


def test_every_measure_is_in_the_table(measured):
    assert list(measured) == NAMES, "run: python tests/shape.py --write"


def test_what_must_be_nothing_is_nothing():
    figures = {name: committed.value for name, committed in shape.read_table().items()}
    assert figures["upward_imports"] == 0
    assert figures["names_with_two_meanings"] == 0
    assert figures["rooms_bound_in_notebooks"] == 0
    assert figures["imports_of_helpers_a_notebook"] == 1
    assert figures["lines_of_the_readme_tree"] <= 25


# --- the table ---


def test_what_rose_is_named_with_the_places_that_are_new():
    committed = Measure(3, {"a.py": 1, "b.py": 2})
    now = Measure(6, {"a.py": 1, "b.py": 3, "c.py": 2})  # c.py rose by 2, b.py by 1
    text = shape.what_rose("long lines", committed, now)
    assert text.splitlines() == [
        "long lines rose: 3 → 6 (+3). It may only fall. New or larger:",
        "  c.py (0 → 2)",
        "  b.py (2 → 3)",
    ]
    short = shape.what_rose("long lines", committed, now, most=1)
    assert short.endswith("  c.py (0 → 2)\n  and 1 more")
    assert shape.what_rose("long lines", now, committed) == ""
    assert shape.what_rose("long lines", now, now) == ""


def test_a_new_place_is_held_to_nothing_in_a_sum_and_to_the_value_in_a_mean():
    places, committed = {"new, dense": 12, "new, light": 5}, Measure(8, {})
    assert Measure(17, places).new_places(committed) == ["new, dense", "new, light"]
    assert Measure(9, places, summed=False).new_places(committed) == ["new, dense"]


def test_the_table_is_lowered_and_never_raised(tmp_path, monkeypatch, capsys):
    path = tmp_path / "shape.toml"
    first = {
        "sum": Measure(3, {'a "quoted".py': 1, "b.py → c": 2}),
        "mean": Measure(10.5, {"a.py": 10.5}),
    }
    monkeypatch.setattr(shape, "measure", lambda: first)
    assert shape.main(["--table", str(path), "--write"]) == 0
    assert shape.read_table(path) == first

    second = {"sum": Measure(4, {"d.py": 4}), "mean": Measure(9.0, {"a.py": 9.0})}
    monkeypatch.setattr(shape, "measure", lambda: second)
    before = path.read_text(encoding="utf-8")
    assert shape.main(["--table", str(path)]) == 1  # something rose; nothing is written unasked
    assert path.read_text(encoding="utf-8") == before
    assert "sum rose: 3 → 4 (+1)" in capsys.readouterr().out
    assert shape.main(["--table", str(path), "--write"]) == 1
    assert shape.read_table(path) == {"sum": first["sum"], "mean": second["mean"]}


# --- rooms and names ---


def test_the_room_of_a_module():
    rooms = [shape.room_of(name) for name in ("data", "losses", "cli", "widgets")]
    assert rooms == ["data", "ground", "roof", "widgets"]


def test_upward_imports():
    modules = {
        # models is above data
        "data/a.py": "from helpers.files import x\nfrom helpers.models.loading import y\n",
        # data is above the ground, inside a function as well
        "files.py": "def f():\n    import helpers.data.a\n",
        # widgets is above report
        "report/p.py": "from helpers import report, widgets\nimport torch\n",
        # the roof may import everything
        "cli.py": "from helpers import widgets\nfrom helpers.data import a\n",
    }
    assert shape.upward_imports(modules) == {
        "data/a.py → helpers.models.loading": 1,
        "files.py → helpers.data.a": 1,
        "report/p.py → helpers.widgets": 1,
    }


def test_imported_names_are_whole():
    source = """
import os.path as p
from helpers import data
def f():
    from helpers.models.heads import HEADS
"""
    found = sorted(shape.imported(source))
    assert found == ["helpers.data", "helpers.models.heads", "os.path"]


def test_public_names_are_those_at_the_top_of_a_module():
    source = """
import os
LIMIT, (LOW, _high) = 3, [n for n in (1, 2)]
names: dict = {}
names["key"] = part.field = 1
_hidden = 1
def walk(): inner = 1
class Walker:
    pace = 2
"""
    assert shape.public_names(source) == {"LIMIT", "LOW", "names", "walk", "Walker"}


def test_names_with_two_meanings():
    modules = {
        "data/rows.py": "Row = dict\ndef votes(): ...\n",  # `votes` is also a module of data
        "data/votes.py": "def read(): ...\n_Row = 1\n",
        "report/page.py": "class Row: ...\nmodels = 1\n",  # `models` is a room
        "report/read.py": "def rows(): ...\n",  # `rows` is a module of another room: fine
        "export.py": "def export(): ...\n",  # its own module has the name
    }
    assert list(shape.names_with_two_meanings(modules)) == [
        "Row: data/rows.py, report/page.py",
        "export: export.py, a module of roof",
        "models: report/page.py, a room",
        "votes: data/rows.py, a module of data",
    ]


# --- lines, tokens, functions ---


def test_tokens_of_code_without_docstrings_comments_and_layout():
    source = '''"""A docstring."""
# a comment
def half(x):
    """Another."""

    return x / 2  # one more


NAME = f"{half(3):.1f} of 3" "text"
'''
    # `def half ( x ) :` 6, `return x / 2` 4, `NAME = f"…" "text"` 4: an f-string is one; 3 lines
    assert shape.code_tokens(source) == (14, 3)
    assert shape.code_tokens('x = """a\nb"""\n') == (3, 2)  # no docstring, and on two lines
    found = shape.tokens_a_line({"a.py": source, "b.py": "x = 1\n", "empty.py": "# none\n"})
    assert found.value == 4.2  # (14 + 3) / (3 + 1) = 4.25, which Python rounds to the even 4.2
    assert found.places == {"a.py": 4.7, "b.py": 3.0}  # 14 / 3, 3 / 1


def test_lines_a_comment_counts_comments_on_lines_of_their_own():
    source = '"""Text."""\n\n# why\nx = 1  # not this one\n'
    # a.py has 3 lines that are not empty, b.py 2; one of the 5 is a comment
    found = shape.lines_a_comment({"a.py": source, "b.py": "y = 1\nz = 2\n"})
    assert found.value == 5.0 and found.places == {"a.py": 2, "b.py": 2}
    assert shape.lines_a_comment({"a.py": "x = 1\n"}).value == 1.0  # without a comment: its lines


def test_crowded_statements_are_wide_assignments_and_tuples():
    assert shape.crowded_statements("a, b = 1, 2\nx = y = 3\nfor i, j, k in rows: pass") == 0
    assert shape.crowded_statements("a, b, c = row\nx = (p, q, r) = row") == 2
    assert shape.crowded_statements("f(), g()\nprint((1, 2))") == 1


def test_long_lines_have_more_than_100_characters():
    assert shape.long_lines(f"{'x' * 100}\n{'é' * 101}\n{'y' * 102}") == 2


def test_nested_comprehensions_count_the_inner_ones():
    one = "a = [[y for y in x] for x in z]"
    two = "b = {k: sum(v for v in row if any(w for w in v)) for k, row in c}"
    none = "a = [x for x in b]\nd = [y for y in (2, 3)]"
    assert [shape.nested_comprehensions(source) for source in (one, two, none)] == [1, 2, 0]


def test_long_functions_are_counted_from_def_to_their_end():
    body = "    x = 1\n"
    fits = f"@cached\ndef fits():\n{body * 44}"  # 1 + 44 lines; the decorator is none of them
    long = f"def long():\n    'Text.'\n{body * 44}"  # 2 + 44
    method = "class A:\n    def method(self):\n" + f"    {body}" * 47  # 1 + 47
    assert shape.long_functions(fits + long + method) == {"long": 46, "method": 48}


# --- notebooks, README ---

NOTEBOOK = """# %% [markdown]
# # Title
# %% tags=["setup"]
from helpers.setup import set_up
report = 1

# %% tags=["parameters"]
SEEDS = (0,)
# %%
from helpers import data, losses
import helpers.report
from torch import nn as models

# %%
losses = [rewards for rewards in (1, 2)]
def show(doctor, other): pass
print(data, [nn for nn in losses])
"""


def test_code_cells_are_those_a_notebook_has_of_its_own():
    lengths = [cell.count("\n") + 1 for cell in shape.code_cells(NOTEBOOK)]
    assert lengths == [
        1,
        3,
        3,
    ]  # no texts, no set-up cell; empty lines at a cell's end do not count


def test_imports_of_helpers_and_rooms_that_a_notebook_binds():
    assert shape.helper_imports(NOTEBOOK) == 2
    # `losses` is no room, but imported from helpers; `helpers.report` binds `helpers`
    assert shape.bound_rooms(NOTEBOOK) == {"models": 1, "losses": 1, "rewards": 1, "doctor": 1}


def test_figures_of_the_notebooks():
    found = shape.measure_notebooks({"01.py": NOTEBOOK, "02.py": f"# %%\n{'x = 1' + chr(10)}" * 2})
    assert found["imports_of_helpers_a_notebook"].places == {"01.py": 2, "02.py": 0}
    assert found["rooms_bound_in_notebooks"].value == 4
    assert found["longest_notebook_cell"].places == {"01.py": 3, "02.py": 1}
    assert found["notebook_cells_over_25_lines"].value == 0
    long = shape.measure_notebooks({"03.py": "# %%\n" + "x = 1\n" * 26})
    assert long["notebook_cells_over_25_lines"].value == 1


def test_the_tree_of_a_readme():
    own = ["helpers/   h", "  data/      d", "  cli.py     c"]
    lines = ["notebooks/   n", "  01_load", *own, "recipes/   r"]
    text = "\n".join(["# T", "## What is where", "", "```", *lines, "```", ""])
    assert shape.readme_tree(text) == own


def test_the_first_glance(tmp_path):
    for name in ("data", "__pycache__"):
        (tmp_path / name).mkdir()
    for name in ("__init__.py", "cli.py"):
        (tmp_path / name).touch()
    assert shape.first_glance(tmp_path) == ["cli.py", "data"]
