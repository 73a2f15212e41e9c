"""The tests notice mistakes in the most important lines: tests/mutations.toml holds them."""

from dataclasses import replace

import mutations
import pytest
from mutations import ROOT, StaleTable, read_mutations

TABLE = read_mutations()
NAMES = [mutation.name for mutation in TABLE]


@pytest.mark.parametrize("mutation", TABLE, ids=NAMES)
def test_the_table_names_lines_and_tests_that_are_there(mutation):
    path, name = mutation.test.split("::")
    assert f"def {name}(" in (ROOT / path).read_text("utf-8")
    source = (ROOT / mutation.file).read_text("utf-8")
    assert mutation.apply(source) != source


def test_a_line_that_is_not_there_once_is_an_error():
    mutation = replace(TABLE[0], name="x", old="a + b", new="a − b")
    assert mutation.apply("c = a + b") == "c = a − b"
    with pytest.raises(StaleTable, match=r"x: 'a \+ b' stands 2 times"):
        mutation.apply("a + b, a + b")
    with pytest.raises(StaleTable, match="stands 0 times"):
        mutation.apply("a - b")


def test_survivors_and_stale_lines_are_reported(monkeypatch, capsys):
    first, second = replace(TABLE[0], name="one"), replace(TABLE[0], name="two")
    monkeypatch.setattr(mutations, "read_mutations", lambda: [first, second])
    monkeypatch.setattr(mutations, "check_copy", lambda found: None)
    monkeypatch.setattr(mutations, "is_noticed", lambda mutation: mutation is first)
    assert mutations.main([]) == 1
    said = capsys.readouterr().out
    assert "noticed  one\nSURVIVED two\n1 of 2 mistakes were noticed." in said
    assert f"{second.file}: two ({second.test} passes)" in said
    assert mutations.main(["ON"]) == 0  # the word picks the first one

    def fail(mutation):
        raise StaleTable("gone")

    monkeypatch.setattr(mutations, "is_noticed", fail)
    assert mutations.main([]) == 1 and "error: gone" in capsys.readouterr().err


SLOW = pytest.mark.slow(
    reason="each starts pytest on a copy of the repository, five minutes in all"
)


@SLOW
def test_without_a_mistake_the_copy_passes():
    mutations.check_copy(TABLE)


@SLOW
@pytest.mark.parametrize("mutation", TABLE, ids=NAMES)
def test_a_mistake_is_noticed(mutation):
    assert mutations.is_noticed(mutation), f"{mutation.test} passes with {mutation.new!r}"
