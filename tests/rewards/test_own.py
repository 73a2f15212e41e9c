"""Rewards from files of one's own: what may stand in them, and what is said when it may not."""

import re
import sys
from pathlib import Path

import pytest
import torch
from PIL import Image

from helpers.files import ROOT, UsageError
from helpers.rewards.catalogue import get_scorer
from helpers.rewards.own import anchor_reward, load_reward
from helpers.rewards.scoring import score_all, weighted_scorer

BREVITY = """
def brevity(image, question, answer, truth):
    return -len(answer.split())
"""


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "my_rewards.py").write_text(BREVITY)
    return tmp_path


def write(folder, source, name="my_rewards.py"):
    (folder / name).write_text(source)
    return folder


def returning(folder, expression):
    source = "import numpy as np\nimport torch\nfrom helpers.rewards import Score\n"
    line = f"def given(image, question, answer, truth):\n    return {expression}\n"
    return load_reward("my_rewards.py:given", write(folder, source + line))


def test_a_function_in_a_file_is_a_scorer(folder):
    score = load_reward("my_rewards.py:brevity", folder)
    found = score(None, "What is it?", "a red boat", None)
    assert found.total == -3 and found.parts == {"brevity": -3.0}
    assert score.__name__ == "brevity"
    rows = [(None, "", "one", None), (None, "", "one two", None)]
    assert [one.total for one in score_all(score, rows)] == [-1, -2]
    both = weighted_scorer({score: 0.5, get_scorer("exact_match"): 1.0})
    assert both(None, "", "two words", "two words").parts == {"brevity": -1.0, "exact_match": 1.0}


def test_it_is_asked_for_as_the_ready_ones_are(folder, monkeypatch):
    inside = get_scorer("my_rewards.py:brevity", folder)
    assert inside(None, "", "a b", None).total == -2
    full = get_scorer(f"{folder / 'my_rewards.py'}:brevity")
    assert full(None, "", "a b", None).total == -2
    monkeypatch.chdir(folder)  # where one stands
    assert get_scorer("my_rewards.py:brevity")(None, "", "a", None).total == -1


@pytest.mark.parametrize(
    "expression, total",
    [
        ("True", 1.0),
        ("2", 2.0),
        ("np.float32(0.5)", 0.5),
        ("np.bool_(False)", 0.0),
        ("np.array(3)", 3.0),
        ("torch.tensor(0.25)", 0.25),
        ("-0.0", 0.0),
        ("Score(1.5, {'a': np.float64(1), 'b': 0.5})", 1.5),
    ],
)
def test_values_that_are_numbers(folder, expression, total):
    found = returning(folder, expression)(None, "?", "yes", None)
    assert found.total == total and type(found.total) is float
    assert sum(found.parts.values()) == total


@pytest.mark.parametrize(
    "expression, said",
    [
        ("None", "None"),
        ("'1'", "'1'"),
        ("float('nan')", "nan"),
        ("float('inf')", "inf"),
        ("[1]", r"\[1\]"),
        ("np.ones(1)", r"array"),
        ("torch.tensor(float('nan'))", "tensor"),
        ("10 ** 400", "1000"),
        ("Score(float('nan'), {})", "Score"),
        ("Score(1.0, {'a': None})", "Score"),
    ],
)
def test_a_wrong_value_is_said_with_the_answer(folder, expression, said):
    score = returning(folder, expression)
    told = rf"reward given of .*my_rewards.py: gave {said}.* for the answer 'two boats'. Return"
    with pytest.raises(UsageError, match=told):
        score_all(score, [(None, "?", "two boats", None)])


def test_an_error_inside_is_said_with_its_line_and_the_answer(folder):
    source = "def ratio(image, question, answer, truth):\n    return 1 / (len(answer) - 3)\n"
    score = load_reward("my_rewards.py:ratio", write(folder, source))
    assert score(None, "", "four", None).total == 1
    told = (
        r"reward ratio of .*my_rewards.py: failed in line 2 of my_rewards.py on the answer 'six' "
        r"\(ZeroDivisionError: division by zero\)"
    )
    with pytest.raises(UsageError, match=told):
        score_all(score, [(None, "", "four", None), (None, "", "six", None)])


@pytest.mark.parametrize(
    "name, said",
    [
        ("missing.py:brevity", "missing.py: no such file, for the reward 'missing.py:brevity'"),
        ("my_rewards.py:brevty", r"no function 'brevty'. It has brevity. Did you mean 'brevity'\?"),
        ("my_rewards.py", "which reward. Write my_rewards.py:FUNCTION. It has brevity."),
        ("my_rewards.py:", "no such file"),
        ("count_exakt", "unknown scorer 'count_exakt': .*FILE.py:FUNCTION. Did you mean"),
    ],
)
def test_a_name_that_means_nothing(folder, name, said):
    with pytest.raises(UsageError, match=said):
        get_scorer(name, folder)


@pytest.mark.parametrize(
    "source, said",
    [
        ("def brevity(:\n", r"cannot be loaded in line 1 of my_rewards.py \(SyntaxError"),
        ("import no_such_thing\n", r"in line 1 of my_rewards.py \(ModuleNotFoundError"),
        ("x = 1\nraise SystemExit(3)\n", r"in line 2 of my_rewards.py \(SystemExit: 3"),
        ("def brevity(answer):\n    return 1\n", r"brevity must take \(image, question, answer, t"),
        ("brevity = 3\n", "there is no function 'brevity'. It defines no function."),
    ],
)
def test_a_file_that_cannot_be_used(folder, source, said):
    with pytest.raises(UsageError, match=said):
        load_reward("my_rewards.py:brevity", write(folder, source))


NEIGHBOUR = "from dataclasses import dataclass\n\n@dataclass\nclass Word:\n    text: str = {!r}\n"
USES = """
from helpers import Word
from parts.marks import MARK

def polite(image, question, answer, truth):
    return (Word().text in answer) + answer.count(MARK)
"""


def with_neighbours(folder, word):
    (folder / "parts").mkdir(parents=True)
    (folder / "parts" / "marks.py").write_text("MARK = '!'\n")
    (folder / "helpers.py").write_text(NEIGHBOUR.format(word))
    return write(folder, USES, "scoring.py")


def test_neighbours_come_first_and_are_seen_by_nobody_else(tmp_path):
    """`helpers` and `scoring` are names of this suite, and two folders have the same names."""
    paths, modules = list(sys.path), dict(sys.modules)
    first = load_reward("scoring.py:polite", with_neighbours(tmp_path / "a", "please"))
    second = load_reward("scoring.py:polite", with_neighbours(tmp_path / "b", "thanks"))
    assert first(None, "", "please!", None).total == 2
    assert second(None, "", "please!", None).total == 1
    assert sys.path == paths and sys.modules == modules
    assert set(first.sources) == {"scoring.py", "helpers.py", "parts/marks.py"}
    assert not list(tmp_path.rglob("__pycache__"))
    import helpers

    assert helpers.__path__ == [str(ROOT / "helpers")]


def test_a_changed_file_is_read_again(folder):
    before = load_reward("my_rewards.py:brevity", folder)
    write(folder, BREVITY.replace("-len", "+len"))
    after = load_reward("my_rewards.py:brevity", folder)
    assert before(None, "", "a b", None).total == -2 and after(None, "", "a b", None).total == 2


def test_any_name_and_a_file_beside_the_suite(tmp_path):
    """A file that is called as a library is; one in a folder that holds the suite itself."""
    write(tmp_path, "import torch\n\ndef f(image, question, answer, truth):\n    return torch.pi\n")
    (tmp_path / "my_rewards.py").rename(tmp_path / "torch.py")
    assert load_reward("torch.py:f", tmp_path)(None, "", "", None).total == torch.pi
    write(tmp_path, BREVITY, "my rewards, 2nd try.txt")
    assert load_reward("my rewards, 2nd try.txt:brevity", tmp_path)(None, "", "a", None).total == -1
    (tmp_path / "helpers").symlink_to(ROOT / "helpers")
    source = "from helpers.rewards import count_exact\n\n\ndef right(*given):\n"
    write(tmp_path, source + "    return count_exact(*given)\n")
    score = load_reward("my_rewards.py:right", tmp_path)
    assert score(None, "", "There are 2 cars.", {"cars": 2}).total == 1
    # what the suite itself refuses is said by the name of the reward, too
    with pytest.raises(UsageError, match=r"reward right of .*'two'.*facts must be true counts"):
        score(None, "", "two", None)


def test_an_import_that_comes_too_late_is_named(folder):
    (folder / "words.py").write_text("LIMIT = 3\n")
    source = "def late(image, question, answer, truth):\n    import words\n    return words.LIMIT\n"
    score = load_reward("my_rewards.py:late", write(folder, source))
    with pytest.raises(UsageError, match=r"No module named 'words'\). Import it at the top"):
        score(None, "", "yes", None)


def test_it_gets_images_and_truth_as_they_are(folder):
    source = (
        "def seen(image, question, answer, truth):\n"
        "    images = image if isinstance(image, list) else [image]\n"
        "    return sum(one.width for one in images) + len(truth)\n"
    )
    score = load_reward("my_rewards.py:seen", write(folder, source))
    small, wide = Image.new("RGB", (2, 2)), Image.new("RGB", (30, 2))
    assert score(small, "", "", ["a", "b"]).total == 4
    assert score([small, wide], "", "", "abc").total == 35


def test_a_scorer_of_the_suite_stands_in_the_file(folder):
    source = (
        "from helpers.rewards import HeuristicRule, heuristic_scorer, make_batch_scorer, Score\n"
        "def shouts(question, answer, facts):\n    return answer.isupper()\n"
        "loud = heuristic_scorer(rules=[HeuristicRule('shouts', -2.0, shouts)])\n"
        "def all_at_once(rows):\n    return [Score(len(rows), {'rows': len(rows)}) for _ in rows]\n"
        "together = make_batch_scorer('together', all_at_once)\n"
    )
    write(folder, source)
    loud = load_reward("my_rewards.py:loud", folder)
    assert loud(None, "", "NO BOATS", None).parts["shouts"] == -2
    together = load_reward("my_rewards.py:together", folder)
    assert [one.total for one in score_all(together, [(None, "", "", None)] * 3)] == [3, 3, 3]


def test_paths_count_from_a_folder(tmp_path):
    assert anchor_reward("heuristic", tmp_path) == "heuristic"
    assert anchor_reward("my.py:f", tmp_path) == f"{tmp_path / 'my.py'}:f"
    assert anchor_reward(f"{ROOT / 'my.py'}:f", tmp_path) == f"{ROOT / 'my.py'}:f"
    assert anchor_reward("~/my.py:f", tmp_path) == f"{Path.home() / 'my.py'}:f"


def test_what_the_page_shows_works(tmp_path):
    page = (ROOT / "docs" / "rewards.md").read_text(encoding="utf-8")
    pieces = re.findall(r"```python\n# my_rewards\.py\n(.*?)```", page, flags=re.DOTALL)
    write(tmp_path, "\n\n".join(reversed(pieces)))
    brevity = load_reward("my_rewards.py:brevity", tmp_path)
    assert brevity(None, "?", "one two", None).total == -2
    strict = load_reward("my_rewards.py:strict", tmp_path)
    found = strict(None, "?", "Maybe, so what", None)
    assert found.parts["hedges"] == -0.5 and found.parts["reasoning"] == 0
    assert len(pieces) == 2
