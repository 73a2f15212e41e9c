"""One row of any preference format ↔ one record, without loss.

* Row → record: what the format's `show` could not write again (other columns, a prompt in a foreign
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

from helpers.data.formats import FORMATS, Format, Row
from helpers.data.preferences import PreferenceRecord, explain, record_key, shown_second
from helpers.files import UsageError, parse_json

REST = "record_extra"


def from_row(name: str, row: Row) -> tuple[PreferenceRecord, str | None]:
    """The record that a row of format `name` states, and what was changed on the way.

    Raises UsageError saying what is wrong with the row.
    """
    form = FORMATS[name]
    visible = {key: value for key, value in row.items() if key != REST}
    rest = _rest_of(row, visible)
    if "whole" in rest:
        return _validate(rest["whole"]), None
    fields = _parse(form, visible)
    change = fields.pop("change", None)
    if not form.ordered and _swapped(fields) != rest.get("swapped", False):
        fields["answers"], fields["ranking"] = fields["answers"][::-1], [[1], [0]]
    record = _validate(fields)
    if leftover := _leftover(form, record, visible):
        record.extra[name] = leftover
    return (_validate(_patched(record.model_dump(), rest["patch"])) if "patch" in rest else record), change


def _parse(form: Format, visible: Row) -> Row:
    try:
        fields = form.parse(visible)
    except KeyError as error:
        raise UsageError(f"field {error} is missing. A row of this format ({form.title}) needs it.") from None
    except (TypeError, AttributeError, IndexError, ValueError) as error:
        if isinstance(error, UsageError):
            raise
        raise UsageError(f"a field has a type that this format ({form.title}) does not have: {error}.") from None
    return {key: value for key, value in fields.items() if value is not None}


def _validate(fields: Row) -> PreferenceRecord:
    try:
        return PreferenceRecord.model_validate(fields)
    except ValidationError as error:
        raise UsageError(f"{explain(error)}.") from None


def _swapped(fields: Row) -> bool:
    return shown_second(*(answer["text"] for answer in fields["answers"]))


def _leftover(form: Format, record: PreferenceRecord, visible: Row) -> Row:
    """Columns that writing `record` would not give back, and those that it would add."""
    try:
        shown = form.show(record) if form.show else {}
    except UsageError:
        shown = {}
    different = {key: value for key, value in visible.items() if key not in shown or shown[key] != value}
    absent = [key for key in shown if key not in visible]
    return {"row": different, **({"without": absent} if absent else {})} if different or absent else {}


def _digest(visible: Row) -> str:
    filled = {key: value for key, value in visible.items() if value is not None}  # tables fill gaps with null
    return hashlib.sha256(json.dumps(filled, sort_keys=True).encode()).hexdigest()[:16]


def _rest_of(row: Row, visible: Row) -> Row:
    if not row.get(REST):
        return {}
    rest = parse_json(row[REST].encode()) if isinstance(row[REST], str) else None
    if not isinstance(rest, dict) or rest.get("of") != _digest(visible):
        raise UsageError(
            f"the column {REST} does not belong to the others: they were edited after it was written. "
            f"Delete {REST} from this row to read what the others say."
        )
    return rest


# --- one record → rows ----------------------------------------------------------------------------


def to_rows(name: str, record: PreferenceRecord, which: Literal["all", "extremes"] = "all") -> list[Row]:
    """The rows of format `name` that state `record`: one a pair, the first with everything else.

    Raises UsageError if the format cannot hold the record at all.
    """
    form = FORMATS[name]
    if form.show is None:
        raise UsageError(f"{form.title} can be read but not written: choose another format.")
    if record.pairs():
        places = list(record.tier_pairs())
        places = places if which == "all" else [(record.ranking[0][0], record.ranking[-1][0])]
        shown = [_with_two(record, *place) for place in places]
    elif form.ties and len(record.answers) == 2:
        shown = [record]
    else:
        raise UsageError("no answer is ranked above another, so there is no pair")
    rows = [_visible_row(name, two) for two in shown]
    return [_complete(name, rows[0], record)] + [
        {**row, REST: _rest_text(row, {"pair_of": record_key(record)})} for row in rows[1:]
    ]


def _with_two(record: PreferenceRecord, better: int, worse: int) -> PreferenceRecord:
    """The record with two of its answers only, in the order in which they stand."""
    first = min(better, worse)
    ranking = [[0], [1]] if better == first else [[1], [0]]
    answers = [record.answers[first], record.answers[max(better, worse)]]
    return record.model_copy(update={"answers": answers, "ranking": ranking, "judgements": []})


def _visible_row(name: str, two: PreferenceRecord) -> Row:
    """The row of two answers; as it was read, if it was read in this format and still says the same."""
    form, leftover = FORMATS[name], two.extra.get(name)
    if not isinstance(leftover, dict):
        return form.show(two)
    try:
        shown, unfit = form.show(two), None
    except UsageError as error:
        shown, unfit = {}, error
    original = {key: value for key, value in shown.items() if key not in leftover.get("without", [])}
    original |= leftover.get("row", {})
    try:
        if _says(form, _parse(form, original)) == _says(form, two.model_dump()):
            return original
    except UsageError:
        pass  # the record was changed into something that the old columns do not go with
    if unfit:
        raise unfit
    return leftover.get("row", {}) | shown


def _says(form: Format, fields: Row) -> tuple:
    """What the columns of a row mean: images, prompt, texts, and which is better."""
    prompt = [(message["role"], message["content"]) for message in fields["prompt"]]
    texts = [answer["text"] for answer in fields["answers"]]
    ranking = fields.get("ranking")
    if not form.ordered:
        texts, ranking = [texts[tier[0]] for tier in ranking], None
    return fields["images"], prompt, texts, ranking


def _complete(name: str, row: Row, record: PreferenceRecord) -> Row:
    """The row with `record_extra`, if reading the row alone would not give the record."""
    rest: Row = {"key": record_key(record)} if len(record.answers) > 2 else {}
    try:
        base, _ = from_row(name, row)
        if len(record.answers) == 2 and [a.text for a in base.answers] != [a.text for a in record.answers]:
            rest["swapped"] = not _swapped(_parse(FORMATS[name], row))
            base, _ = from_row(name, {**row, REST: _rest_text(row, rest)})
        if patch := _difference(base.model_dump(), record.model_dump()):
            rest["patch"] = patch
    except UsageError:  # the record's own texts hold marks that mean something in this format
        rest["whole"] = record.model_dump()
    return {**row, REST: _rest_text(row, rest)} if rest else row


def _rest_text(row: Row, rest: Row) -> str:
    return json.dumps({"of": _digest(row), **rest}, ensure_ascii=False)


def _difference(base: Any, full: Any) -> Any:
    """What has to change in `base` to give `full`: {key: change}, [new value], or None for nothing."""
    if type(base) is type(full) and base == full:
        return None
    if isinstance(base, dict) and isinstance(full, dict) and base.keys() <= full.keys():
        changes = {key: _difference(base[key], full[key]) if key in base else [full[key]] for key in full}
        return {key: change for key, change in changes.items() if change is not None}
    if isinstance(base, list) and isinstance(full, list) and len(base) == len(full):
        changes = {str(place): _difference(b, f) for place, (b, f) in enumerate(zip(base, full, strict=True))}
        return {place: change for place, change in changes.items() if change is not None}
    return [full]


def _patched(base: Any, change: Any) -> Any:
    if isinstance(change, list):
        return change[0]
    if isinstance(base, list):
        return [
            _patched(value, change[str(place)]) if str(place) in change else value for place, value in enumerate(base)
        ]
    return base | {key: _patched(base.get(key), part) for key, part in change.items()}


def mention(row: Any, key: str) -> str | None:
    """`key` ("key" or "pair_of") of the column `record_extra`, if the row has such a thing and is unedited."""
    if not isinstance(row, dict) or not isinstance(row.get(REST), str):
        return None
    try:
        return _rest_of(row, {name: value for name, value in row.items() if name != REST}).get(key)
    except UsageError:
        return None  # reported when the row is read
