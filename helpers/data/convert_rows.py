"""One row of any preference format ↔ one record, without loss.

* Row → record: what the format's `write` could not write again (other columns, a prompt in a foreign
  chat template) is kept in `record.extra[format]`, and comes back when that format is written.
* Record → rows: one row a pair. What a row cannot say (other answers, judgements, truth, …) goes into
  one more column, `record_extra`, as JSON text that other programs ignore. It carries a hash of the
  other columns: if somebody edits them, reading says so instead of restoring the old text.
* Formats with a chosen and a rejected side do not say in which order the two were shown. They get an
  order that follows from a hash of the texts, so that position does not give the label away.
"""

import hashlib
import json
from typing import Any, Literal

from pydantic import ValidationError

from helpers.files import UsageError, parse_json

from .formats import FORMATS, DatasetRow, Format
from .preferences import (
    PreferenceRecord,
    explain_validation_error,
    is_first_shown_second,
    record_key,
)

EXTRA_COLUMN = "record_extra"


def from_row(name: str, row: DatasetRow) -> tuple[PreferenceRecord, str | None]:
    """The record that a row of format `name` states, and what was changed on the way.

    Raises UsageError saying what is wrong with the row.
    """
    form = FORMATS[name]
    visible = {key: value for key, value in row.items() if key != EXTRA_COLUMN}
    rest = _rest_of(row, visible)
    if "whole" in rest:
        return _validate(rest["whole"]), None
    fields = _parse(form, visible)
    change = fields.pop("change", None)
    if not form.ordered and _is_swapped(fields) != rest.get("swapped", False):
        fields["answers"], fields["ranking"] = fields["answers"][::-1], [[1], [0]]
    record = _validate(fields)
    if leftover := _leftover_columns(form, record, visible):
        record.extra[name] = leftover
    return (
        _validate(_apply_patch(record.model_dump(), rest["patch"])) if "patch" in rest else record
    ), change


def _parse(form: Format, visible: DatasetRow) -> DatasetRow:
    try:
        fields = form.parse(visible)
    except KeyError as error:
        raise UsageError(
            f"field {error} is missing. A row of this format ({form.title}) needs it."
        ) from None
    except (TypeError, AttributeError, IndexError, ValueError) as error:
        if isinstance(error, UsageError):
            raise
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
    return is_first_shown_second(*(answer["text"] for answer in fields["answers"]))


def _leftover_columns(form: Format, record: PreferenceRecord, visible: DatasetRow) -> DatasetRow:
    """Columns that writing `record` would not give back, and those that it would add."""
    try:
        shown = form.write(record) if form.write else {}
    except UsageError:
        shown = {}
    different = {
        key: value for key, value in visible.items() if key not in shown or shown[key] != value
    }
    absent = [key for key in shown if key not in visible]
    return (
        {"row": different, **({"without": absent} if absent else {})} if different or absent else {}
    )


def _digest(visible: DatasetRow) -> str:
    filled = {
        key: value for key, value in visible.items() if value is not None
    }  # tables fill gaps with null
    return hashlib.sha256(json.dumps(filled, sort_keys=True).encode()).hexdigest()[:16]


def _rest_of(row: DatasetRow, visible: DatasetRow) -> DatasetRow:
    if not row.get(EXTRA_COLUMN):
        return {}
    rest = parse_json(row[EXTRA_COLUMN].encode()) if isinstance(row[EXTRA_COLUMN], str) else None
    if not isinstance(rest, dict) or rest.get("of") != _digest(visible):
        raise UsageError(
            f"the column {EXTRA_COLUMN} does not belong to the others: they were edited after it was written. "
            f"Delete {EXTRA_COLUMN} from this row to read what the others say."
        )
    return rest


# --- one record → rows ----------------------------------------------------------------------------


def to_rows(
    name: str, record: PreferenceRecord, which: Literal["all", "extremes"] = "all"
) -> list[DatasetRow]:
    """The rows of format `name` that state `record`: one a pair, the first with everything else.

    Raises UsageError if the format cannot hold the record at all.
    """
    form = FORMATS[name]
    if form.write is None:
        raise UsageError(f"{form.title} can be read but not written: choose another format.")
    if record.pairs():
        places = list(record.tier_pairs())
        places = places if which == "all" else [(record.ranking[0][0], record.ranking[-1][0])]
        shown = [_keep_two_answers(record, *place) for place in places]
    elif form.ties and len(record.answers) == 2:
        shown = [record]
    else:
        raise UsageError("no answer is ranked above another, so there is no pair")
    rows = [_visible_row(name, two) for two in shown]
    return [_add_extra(name, rows[0], record)] + [
        {**row, EXTRA_COLUMN: _rest_text(row, {"pair_of": record_key(record)})} for row in rows[1:]
    ]


def _keep_two_answers(record: PreferenceRecord, better: int, worse: int) -> PreferenceRecord:
    """The record with two of its answers only, in the order in which they stand."""
    first = min(better, worse)
    ranking = [[0], [1]] if better == first else [[1], [0]]
    answers = [record.answers[first], record.answers[max(better, worse)]]
    return record.model_copy(update={"answers": answers, "ranking": ranking, "judgements": []})


def _visible_row(name: str, two: PreferenceRecord) -> DatasetRow:
    """The row of two answers; as it was read, if it was read in this format and still says the same."""
    form, leftover = FORMATS[name], two.extra.get(name)
    if not isinstance(leftover, dict):
        return form.write(two)
    try:
        shown, unfit = form.write(two), None
    except UsageError as error:
        shown, unfit = {}, error
    original = {
        key: value for key, value in shown.items() if key not in leftover.get("without", [])
    }
    original |= leftover.get("row", {})
    try:
        if _row_meaning(form, _parse(form, original)) == _row_meaning(form, two.model_dump()):
            return original
    except UsageError:
        pass  # the record was changed into something that the old columns do not go with
    if unfit:
        raise unfit
    return leftover.get("row", {}) | shown


def _row_meaning(form: Format, fields: DatasetRow) -> tuple:
    """Meaning of a row's columns: images, prompt, texts, and which answer is better."""
    prompt = [(message["role"], message["content"]) for message in fields["prompt"]]
    texts = [answer["text"] for answer in fields["answers"]]
    ranking = fields.get("ranking")
    if not form.ordered:
        texts, ranking = [texts[tier[0]] for tier in ranking], None
    return fields["images"], prompt, texts, ranking


def _add_extra(name: str, row: DatasetRow, record: PreferenceRecord) -> DatasetRow:
    """The row with `record_extra`, if reading the row alone would not give the record."""
    rest: DatasetRow = {"key": record_key(record)} if len(record.answers) > 2 else {}
    try:
        base, _ = from_row(name, row)
        if len(record.answers) == 2 and [a.text for a in base.answers] != [
            a.text for a in record.answers
        ]:
            rest["swapped"] = not _is_swapped(_parse(FORMATS[name], row))
            base, _ = from_row(name, {**row, EXTRA_COLUMN: _rest_text(row, rest)})
        if patch := _make_patch(base.model_dump(), record.model_dump()):
            rest["patch"] = patch
    except UsageError:  # the record's own texts hold marks that mean something in this format
        rest["whole"] = record.model_dump()
    return {**row, EXTRA_COLUMN: _rest_text(row, rest)} if rest else row


def _rest_text(row: DatasetRow, rest: DatasetRow) -> str:
    return json.dumps({"of": _digest(row), **rest}, ensure_ascii=False)


def _make_patch(base: Any, full: Any) -> Any:
    """What has to change in `base` to give `full`: {key: change}, [new value], or None for nothing."""
    if type(base) is type(full) and base == full:
        return None
    if isinstance(base, dict) and isinstance(full, dict) and base.keys() <= full.keys():
        changes = {
            key: _make_patch(base[key], full[key]) if key in base else [full[key]] for key in full
        }
        return {key: change for key, change in changes.items() if change is not None}
    if isinstance(base, list) and isinstance(full, list) and len(base) == len(full):
        changes = {
            str(place): _make_patch(b, f)
            for place, (b, f) in enumerate(zip(base, full, strict=True))
        }
        return {place: change for place, change in changes.items() if change is not None}
    return [full]


def _apply_patch(base: Any, change: Any) -> Any:
    if isinstance(change, list):
        return change[0]
    if isinstance(base, list):
        return [
            _apply_patch(value, change[str(place)]) if str(place) in change else value
            for place, value in enumerate(base)
        ]
    return base | {key: _apply_patch(base.get(key), part) for key, part in change.items()}


def read_mention(row: Any, key: str) -> str | None:
    """`key` ("key" or "pair_of") of the column `record_extra`, if the row has such a thing and is unedited."""
    if not isinstance(row, dict) or not isinstance(row.get(EXTRA_COLUMN), str):
        return None
    try:
        return _rest_of(
            row, {name: value for name, value in row.items() if name != EXTRA_COLUMN}
        ).get(key)
    except UsageError:
        return None  # reported when the row is read
