"""Answers, reviews and scores that belong to questions or records by id, to each exactly once."""

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from helpers.data import DatasetRow, raw_rows, record_key
from helpers.files import UsageError

Value = TypeVar("Value")
# what is done with items of a kind before something is said of them
DONE = {"question": "asked", "record": "scored"}


def by_id(items: Sequence[Any], kind: str = "question") -> dict[str, Any]:
    """Items by their ids. Raises UsageError if there are none, or two have one id."""
    if not items:
        raise UsageError(f"there are no {kind}s. Load the benchmark first.")
    ids = list(map(record_key, items))
    # the most frequent id tells whether any is there twice
    (name, times), *_ = Counter(ids).most_common(1)
    if times > 1:
        raise UsageError(f"{times} {kind}s have the id {name}. Remove the copies from the file.")
    return dict(zip(ids, items, strict=True))


def check_each(
    values: Mapping[str, Any],
    items: Sequence[Any],
    place: str | Path,
    what: str,
    kind: str = "question",
) -> None:
    """Raise UsageError unless there is one value for each item and for nothing else."""
    known = by_id(items, kind)
    for key in values:
        _check_known(key, known, kind, f"{place}: ")
    # what nobody answered must not vanish from a mean
    missing = [key for key in known if key not in values]
    if missing:
        raise UsageError(
            f"{place}: {len(missing)} of {len(known)} {kind}s have no {what}, "
            f"the first {missing[0]}."
        )


def _check_known(key: Any, known: Mapping[str, Any], kind: str, place: str = "") -> None:
    if not isinstance(key, str) or key not in known:
        raise UsageError(
            f"{place}no {kind} has the id {key!r}. Give the {kind}s that were {DONE[kind]}."
        )


def placed_rows(path: Path) -> Iterator[tuple[str, DatasetRow]]:
    """(where it stands, row) of a JSON or JSONL file. Raises UsageError for what is no row."""
    for number, _, row, error in raw_rows(path):
        where = f"{path}:{number}"
        if error or not isinstance(row, dict):
            raise UsageError(f"{where}: {error or 'a row is an object with named fields.'}")
        yield where, row


def read_each(
    paths: Sequence[Path],
    items: Sequence[Any],
    what: str,
    read: Callable[[DatasetRow, int], tuple[str, Value]],
    kind: str = "question",
) -> dict[str, Value]:
    """Values from JSON or JSONL files; `read(row, place from 0)` gives an id and its value.

    Raises UsageError naming file and line (or item) of what is malformed, unknown or there twice.
    """
    known = by_id(items, kind)
    values = {}
    for path in paths:
        if not path.is_file():
            raise UsageError(f"{path}: no such file. Check the path, or write the file first.")
        for where, row in placed_rows(path):
            try:
                key, value = read(row, len(values))
                _check_known(key, known, kind)
                if key in values:
                    raise UsageError(f"a second {what} for the id {key}. Keep one.")
            except UsageError as problem:
                raise UsageError(f"{where}: {problem}") from None
            values[key] = value
    check_each(values, items, ", ".join(map(str, paths)), what, kind)
    return values
