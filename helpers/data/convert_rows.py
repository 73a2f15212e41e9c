"""One row of any preference format ↔ one record, without loss.

* Row → record: what the format's `write` could not write again (other columns, a prompt in a
  foreign chat template) is kept in `record.extra[format]`, and comes back when that format is
  written.
* Record → rows: one row a pair. What a row cannot say (other answers, judgements, truth, …) goes
  into one more column, `record_extra`, as JSON text that other programs ignore. It carries a hash
  of the other columns: if somebody edits them, reading says so instead of restoring the old text.
* Formats with a chosen and a rejected side do not say in which order the two were shown. They get
  an order that follows from a hash of the texts, so that position does not give the label away.
"""

import contextlib
import hashlib
import json
from typing import Any

from pydantic import ValidationError

from helpers.files import UsageError, parse_json

from .formats import FORMATS, DatasetRow, Format
from .judgement import explain_validation_error
from .record import PairChoice, PreferenceRecord, is_first_shown_second, record_key

EXTRA_COLUMN = "record_extra"


# --- row → record ---------------------------------------------------------------------------------


def from_row(name: str, row: DatasetRow) -> tuple[PreferenceRecord, str | None]:
    """Read the record that a row of format `name` states, and say what was changed on the way.

    Raises UsageError saying what is wrong with the row.
    """
    form = FORMATS[name]
    visible = _visible_columns(row)
    rest = _rest_of(row)
    if "whole" in rest:
        return _validate(rest["whole"]), None
    # What the columns say, in the order in which the answers were shown …
    fields = _parse(form, visible)
    change = fields.pop("change", None)
    if not form.ordered and _is_swapped(fields) != rest.get("swapped", False):
        fields["answers"].reverse()
        fields["ranking"] = [[1], [0]]
    # … what only this format can say, …
    record = _validate(fields)
    leftover = _leftover_columns(form, record, visible)
    if leftover:
        record.extra[name] = leftover
    # … and what the row could not say.
    if "patch" in rest:
        record = _validate(_apply_patch(record.model_dump(), rest["patch"]))
    return record, change


def _visible_columns(row: DatasetRow) -> DatasetRow:
    return {key: value for key, value in row.items() if key != EXTRA_COLUMN}


def _parse(form: Format, visible: DatasetRow) -> DatasetRow:
    try:
        fields = form.parse(visible)
    except UsageError:
        raise
    except KeyError as error:
        raise UsageError(
            f"field {error} is missing. A row of this format ({form.title}) needs it."
        ) from None
    except (TypeError, AttributeError, IndexError, ValueError) as error:
        raise UsageError(
            f"a field has a type that this format ({form.title}) does not have: {error}."
        ) from None
    return {key: value for key, value in fields.items() if value is not None}


def _validate(fields: DatasetRow) -> PreferenceRecord:
    try:
        return PreferenceRecord.model_validate(fields)
    except ValidationError as error:
        raise UsageError(f"{explain_validation_error(error)}.") from None


def _is_swapped(fields: DatasetRow) -> bool:
    first, second = fields["answers"]
    return is_first_shown_second(first["text"], second["text"])


def _leftover_columns(form: Format, record: PreferenceRecord, visible: DatasetRow) -> DatasetRow:
    """Return the columns that writing `record` would not give back, and name those it would add."""
    shown = {}
    if form.write:
        with contextlib.suppress(UsageError):  # then every column is left over
            shown = form.write(record)
    row = dict(visible)
    for key, value in shown.items():
        if key in row and row[key] == value:
            del row[key]
    added = [key for key in shown if key not in visible]
    if added:
        return {"row": row, "without": added}
    return {"row": row} if row else {}


def _digest(row: DatasetRow) -> str:
    # Tables fill gaps with null.
    filled = {key: value for key, value in _visible_columns(row).items() if value is not None}
    content = json.dumps(filled, sort_keys=True).encode()
    return hashlib.sha256(content).hexdigest()[:16]


def _rest_of(row: DatasetRow) -> DatasetRow:
    """Read the column `record_extra`. Raises UsageError if it is of other columns than these."""
    text = row.get(EXTRA_COLUMN)
    if not text:
        return {}
    rest = parse_json(text.encode()) if isinstance(text, str) else None
    if not isinstance(rest, dict) or rest.get("of") != _digest(row):
        raise UsageError(
            f"the column {EXTRA_COLUMN} does not belong to the others: "
            "they were edited after it was written. "
            f"Delete {EXTRA_COLUMN} from this row to read what the others say."
        )
    return rest


def read_mention(row: Any, key: str) -> str | None:
    """Read `key` ("key" or "pair_of") of `record_extra`, if the row has that and is unedited."""
    try:
        return _rest_of(row).get(key) if isinstance(row, dict) else None
    except UsageError:
        return None  # reported when the row is read


# --- record → rows --------------------------------------------------------------------------------


def to_rows(
    name: str,
    record: PreferenceRecord,
    which: PairChoice = "all",
) -> list[DatasetRow]:
    """Write the rows of format `name` that state `record`: one a pair, the first with all the rest.

    Raises UsageError if the format cannot hold the record at all.
    """
    form = FORMATS[name]
    if form.write is None:
        raise UsageError(f"{form.title} can be read but not written: choose another format.")
    shown = [_keep_two_answers(record, *places) for places in record.tier_pairs(which)]
    # Without a pair, a tie of two or a record that nobody judged may still fit.
    if not shown:
        if not form.ties or len(record.answers) > 2:
            raise UsageError("no answer is ranked above another, so there is no pair")
        shown = [record]
    first, *others = [_visible_row(name, two) for two in shown]
    rows = [_add_extra(name, first, record)]
    mention = {"pair_of": record_key(record)}
    rows += [_with_rest(row, mention) for row in others]
    return rows


def _keep_two_answers(record: PreferenceRecord, better: int, worse: int) -> PreferenceRecord:
    """Keep two answers of the record only, in the order in which they stand."""
    places = sorted((better, worse))
    update = {
        "answers": [record.answers[place] for place in places],
        "ranking": [[0], [1]] if better < worse else [[1], [0]],
        "judgements": [],
    }
    return record.model_copy(update=update)


def _visible_row(name: str, two: PreferenceRecord) -> DatasetRow:
    """Write two answers; as they were read, if they were read in this format and say the same."""
    form = FORMATS[name]
    leftover = two.extra.get(name)
    if not isinstance(leftover, dict):
        return form.write(two)
    unfit = None
    shown = {}
    try:
        shown = form.write(two)
    except UsageError as error:
        unfit = error
    read = leftover.get("row", {})
    without = leftover.get("without", [])
    original = {key: value for key, value in shown.items() if key not in without}
    original |= read
    try:
        meant = _row_meaning(form, _parse(form, original))
        if meant == _row_meaning(form, two.model_dump()):
            return original
    except UsageError:
        pass  # the record was changed into something that the old columns do not go with
    if unfit:
        raise unfit
    return read | shown


def _row_meaning(form: Format, fields: DatasetRow) -> tuple:
    """Return what the columns of a row mean: images, prompt, texts, and which answer is better."""
    prompt = [(message["role"], message["content"]) for message in fields["prompt"]]
    texts = [answer["text"] for answer in fields["answers"]]
    ranking = fields.get("ranking")
    # Where the order shown is not known, it is no part of the meaning.
    if not form.ordered:
        texts = [texts[tier[0]] for tier in ranking]  # the better one first
        ranking = None
    return fields["images"], prompt, texts, ranking


def _add_extra(name: str, row: DatasetRow, record: PreferenceRecord) -> DatasetRow:
    """Add `record_extra` to the row, if reading the row alone would not give the record."""
    rest = {}
    texts = [answer.text for answer in record.answers]
    # Further rows name this one, to be passed over when the file is read.
    if len(texts) > 2:
        rest["key"] = record_key(record)
    try:
        base, _ = from_row(name, row)
        # The order shown was not the one that the hash of the texts gives.
        read = [answer.text for answer in base.answers]
        if len(texts) == 2 and read != texts:
            rest["swapped"] = not _is_swapped(_parse(FORMATS[name], row))
            base, _ = from_row(name, _with_rest(row, rest))
        patch = _make_patch(base.model_dump(), record.model_dump())
        if patch:
            rest["patch"] = patch
    except UsageError:  # the record's own texts hold marks that mean something in this format
        rest["whole"] = record.model_dump()
    return _with_rest(row, rest) if rest else row


def _with_rest(row: DatasetRow, rest: DatasetRow) -> DatasetRow:
    text = json.dumps({"of": _digest(row), **rest}, ensure_ascii=False)
    return {**row, EXTRA_COLUMN: text}


# --- what has to change in one JSON value to give another -----------------------------------------


def _make_patch(base: Any, full: Any) -> Any:
    """Compare two values: {key or place: change}, [new value], or None for no difference."""
    if type(base) is not type(full):
        return [full]
    if base == full:
        return None
    # Lists of one length are compared place by place, others are replaced.
    if isinstance(base, list) and len(base) == len(full):
        base, full = _by_place(base), _by_place(full)
    if not isinstance(base, dict) or not base.keys() <= full.keys():
        return [full]
    changes = {}
    for key, value in full.items():
        change = _make_patch(base[key], value) if key in base else [value]
        if change is not None:
            changes[key] = change
    return changes


def _by_place(values: list) -> dict[str, Any]:
    return {str(place): value for place, value in enumerate(values)}


def _apply_patch(base: Any, change: Any) -> Any:
    if isinstance(change, list):
        return change[0]
    if isinstance(base, list):
        return list(_apply_patch(_by_place(base), change).values())
    changed = dict(base)
    for key, part in change.items():
        changed[key] = _apply_patch(base.get(key), part)
    return changed
