"""The examples of CONTRIBUTING.md, put into a copy as the page says, work there."""

import json
import re
import shutil
import subprocess
import sys

import pytest
from PIL import Image

from helpers.files import ROOT

pytestmark = pytest.mark.heavy(reason="a copy of the package, in processes of its own")

PAGE = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
HELP = ("strategies", "format_rows", "budgets")  # what the tests of rows import
CONVERT_TESTS = ("tests/data/test_convert_rows.py", *(f"tests/{name}.py" for name in HELP))
ASKED = {"photo": "1.png", "ask": "How many cars?", "liked": "2", "disliked": "3"}
ROWS = [ASKED | {"votes": votes} for votes in (5, 7)]

# Run in the copy, whose `helpers` it imports; the last line that it prints is read by the tests.
USE = """
import json
from helpers import rewards
from helpers.cli import main
from helpers.files import UsageError
from helpers.rewards import get_scorer
from helpers.recipes import find_recipe, read_recipe

codes = [
    main(["check", "rows.jsonl"]),
    main(["convert", "rows.jsonl", "records.jsonl"]),
    main(["convert", "records.jsonl", "again.jsonl", "--to", "liked"]),
]
scorers = {"brief": 0.5, "count_exact": 1.0}
changes = [("data.format", "liked"), ("rank.scorer", "brief"), ("ppo.score", scorers)]
recipe = read_recipe(find_recipe("counting"), changes=changes)
answer = None, "How many cars?", "There are 2 cars.", {"cars": 2}
weights = {get_scorer(name): weight for name, weight in recipe.ppo.score.items()}
try:
    get_scorer("unknown")
except UsageError as error:
    message = str(error)
print(json.dumps({
    "codes": codes,
    "format": recipe.data.format,
    "names": list(rewards.SCORERS),
    "alone": get_scorer(recipe.rank.scorer)(*answer).total,
    "in a sum": rewards.weighted_scorer(weights)(*answer).parts,
    "message": message,
}))
"""


def examples(heading):
    """The pieces of Python under a heading of the page."""
    section = re.search(rf"^### {heading}\n(.*?)(?=^##)", PAGE, flags=re.M | re.S)[1]
    return re.findall(r"```python\n(.*?)```", section, flags=re.S)


def replace_line(path, line, new):
    """Put `new` in place of a line that the file has once."""
    text = path.read_text(encoding="utf-8")
    assert text.count(f"\n{line}\n") == 1, f"{path} should have one line {line!r}"
    path.write_text(text.replace(f"\n{line}\n", f"\n{new.rstrip()}\n"), encoding="utf-8")


def run(folder, *arguments):
    done = subprocess.run([sys.executable, *arguments], cwd=folder, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def read_lines(path):
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


@pytest.fixture(scope="module")
def copy(tmp_path_factory):
    """A copy of what the examples need, with both of them, each put in by one edit."""
    folder, old = tmp_path_factory.mktemp("copy"), shutil.ignore_patterns("__pycache__")
    shutil.copytree(ROOT / "helpers", folder / "helpers", ignore=old)
    shutil.copytree(ROOT / "recipes", folder / "recipes")
    (folder / "tests" / "data").mkdir(parents=True)
    for file in ("pyproject.toml", *CONVERT_TESTS):
        shutil.copy(ROOT / file, folder / file)
    (reward,), (functions, row) = examples("A reward"), examples("A format")
    replace_line(folder / "helpers/rewards/catalogue.py", "        yes_no,", reward)
    replace_line(folder / "helpers/data/formats.py", "FORMATS = {", functions)
    replace_line(folder / "tests/format_rows.py", "ROWS = {", row)
    Image.new("RGB", (64, 64)).save(folder / "1.png")
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    return folder


@pytest.fixture(scope="module")
def used(copy):
    return json.loads(run(copy, "-c", USE).splitlines()[-1])


def test_a_reward_is_one_line(used):
    assert used["names"][-1] == "brief"
    assert used["alone"] == -4  # "There are 2 cars." has four words
    assert used["in a sum"] == {"brief": -2.0, "count_exact": 1.0}  # 0.5 · −4, 1 · 1
    assert "yes_no, brief. One of your own is" in used["message"]


def test_a_format_is_one_edit(used, copy):
    assert used["codes"] == [0, 0, 0]
    assert used["format"] == "liked"
    records = read_lines(copy / "records.jsonl")
    best = [record["answers"][record["ranking"][0][0]]["text"] for record in records]
    assert best == ["2", "2"]
    assert read_lines(copy / "again.jsonl") == ROWS  # with `votes`, which it says nothing of


def test_a_row_is_the_test_of_a_format(copy):
    options = ["-q", "--noconftest", "-p", "no:cacheprovider", "-k", "given_back and liked"]
    assert "1 passed" in run(copy, "-m", "pytest", *options, CONVERT_TESTS[0])
