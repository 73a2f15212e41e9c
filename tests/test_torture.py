"""The torture finds what it is there to find, and a minute of it finds nothing."""

import os
import random
import sys
from collections import Counter

import pytest

if sys.platform == "win32":
    pytest.skip("kills by signals need Linux or macOS", allow_module_level=True)

from torture import children, command, runs
from torture.children import Fault
from torture.command import FAMILIES, Room
from torture.outcome import Outcome, Tally, has_bad, last_line, run_family
from torture.saves import Artifact, save_trials

heavy = pytest.mark.heavy(reason="starts processes that are killed, and trains")


@pytest.fixture(scope="module")
def room(tmp_path_factory):
    return Room(tmp_path_factory.mktemp("torture"), ("data", "rank", "sft"))


@heavy
@pytest.mark.parametrize(
    "family", [family for family in FAMILIES if family.few], ids=lambda family: family.name
)
def test_nothing_is_lost_doubled_or_silently_wrong(family, room):
    tally = run_family(family.name, family.trials(room, random.Random(1)), family.few)
    assert not tally.bad, "\n".join(outcome.what for outcome in tally.bad)
    # Some trials are of many cases
    assert tally.kinds["survived"] >= family.few


# --- it finds what is wrong ---


def write_three(folder):
    for name in "abc":
        (folder / name).write_text(name * 3000)
    return 5


def fail(folder):
    raise ValueError(str(folder))


@heavy
def test_faults_happen_where_they_are_wanted(tmp_path):
    ended = children.run(write_three, tmp_path, fault=Fault("none", tmp_path))
    assert (ended.code, ended.value, ended.events) == (5, 5, 3)
    other = tmp_path / "other"
    other.mkdir()
    ended = children.run(write_three, other, fault=Fault("kill", other, 2))
    assert ended.code == -9 and sorted(os.listdir(other)) == ["a", "b"]
    # what lies elsewhere does not count
    assert children.run(write_three, tmp_path, fault=Fault("kill", other, 0)).code == 5
    for kind, said in (("full", "No space left"), ("read-only", "Read-only file system")):
        ended = children.run(write_three, other, fault=Fault(kind, other, 1))
        assert ended.code == 1 and said in ended.text and ended.has_traceback
    ended = children.run(write_three, other, fault=Fault("cut", other, 1000))
    assert "File too large" in ended.text and (other / "a").stat().st_size == 1000


@heavy
def test_a_child_that_fails_shows_its_traceback_and_one_that_hangs_is_ended(tmp_path):
    ended = children.run(fail, tmp_path)
    assert ended.code == 1 and ended.has_traceback and f"ValueError: {tmp_path}" in ended.text
    child = children.start(input)  # waits for ever, or finds no input
    child.kill()
    assert child.wait().code in (-9, 1)


def save_loosely(folder, seed):
    """Two files that belong together, and nothing says so."""
    folder.mkdir(parents=True, exist_ok=True)
    for name in "ab":
        (folder / name).write_text(f"{name} {seed}")


def load_loosely(folder):
    return [(folder / name).read_text() for name in "ab"]


@heavy
def test_a_save_in_place_is_found_as_a_mixture(tmp_path, monkeypatch):
    loose = Artifact("loose", save_loosely, load_loosely)
    monkeypatch.setattr("torture.saves.ARTIFACTS", (loose,))
    tally = run_family("loose", save_trials(tmp_path, random.Random(0), "kill"), 3)
    assert tally.kinds == Counter({"silently wrong": 1, "survived": 2})
    assert "loads as a mixture" in tally.bad[0].what


@pytest.mark.parametrize(
    ("found", "kind"),
    [
        ({"log.jsonl": [1, 2], "net": "h"}, "survived"),
        ({"log.jsonl": [1], "net": "h"}, "lost"),
        ({"log.jsonl": [1, 2, 2], "net": "h"}, "doubled"),
        ({"log.jsonl": [1, 3], "net": "h"}, "silently wrong"),
        ({"log.jsonl": [1, 2], "net": "g"}, "silently wrong"),
        ({"log.jsonl": [1, 2]}, "lost"),
        ({"log.jsonl": [1, 2], "net": "h", "net.old-1": "g"}, "doubled"),
    ],
)
def test_what_a_run_leaves_is_compared_with_the_whole_one(found, kind):
    assert runs.compare(found, {"log.jsonl": [1, 2], "net": "h"})[0] == kind


def test_times_and_the_order_of_figures_do_not_count(tmp_path):
    for name, line in (
        ("one", '{"loss": 1, "step": 2, "seconds": 3}'),
        ("two", '{"step": 2, "loss": 1}'),
    ):
        (tmp_path / name).mkdir()
        (tmp_path / name / "log.jsonl").write_text(line + "\n")
        (tmp_path / name / "checkpoint-1").mkdir()
        (tmp_path / name / "checkpoint-1" / name).write_text("")
    one, two = (runs.left_in(tmp_path / name) for name in ("one", "two"))
    assert runs.compare(one, two)[0] == "survived" and list(one) == ["log.jsonl"]


def test_the_table_and_its_last_line(capsys, monkeypatch):
    tally = run_family(
        "made up", [lambda: Outcome("survived"), lambda: Outcome("lost", "a vote")], 2
    )
    assert tally.row() == ["made up", "2", "1", "1", "0", "0", "0"]
    assert last_line([tally, Tally("none")]) == (
        "2 trials: 1 lost, 0 doubled, 0 silently wrong, 0 raw traceback."
    )
    assert has_bad([tally]) and not has_bad([Tally("none")])
    with pytest.raises(ValueError, match="no outcome is called 'fine'"):
        Outcome("fine")
    bad = command.Family("made up", lambda *_: [lambda: Outcome("doubled", "a vote")], 1, 1, 1)
    monkeypatch.setattr(command, "FAMILIES", (bad,))
    assert command.main(["made"]) == 1
    said = capsys.readouterr().out
    assert "| made up | 1 | 0 | 0 | 1 | 0 | 0 |" in said and "What went wrong is kept in" in said
