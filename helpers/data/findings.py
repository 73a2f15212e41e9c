"""What the data doctor can find, how its report reads, and how the bad lines are sorted out.

Every kind of finding says how bad it is, what it means and what to do: an error would stop the
training or teach it nonsense, a warning is worth a look, a note is only said. The examination itself
is in `helpers/data/data_doctor.py`.
"""

import base64
import json
from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, NamedTuple

from helpers.files import UsageError, write_lines, write_text

from .blind import BlindTable, render_blind_table
from .convert_files import is_array, raw_rows

PLACES_SHOWN = 5
Problems = Iterator[tuple[str, str]]  # kind, message
Severity = Literal["error", "warning", "note"]
FINDING_KINDS: dict[
    str, tuple[Severity, str]
] = {  # kind → how bad it is; what it means and what to do
    "no records": (
        "error",
        "There is nothing to train on. Give another file, or make one with notebook 02.",
    ),
    "bad line": (
        "error",
        "These lines are no valid records. Correct or remove them (--salvage sorts them out).",
    ),
    "missing image": (
        "error",
        "Put the image there or correct its path, which is relative to the file of records.",
    ),
    "unreadable image": (
        "error",
        "The image is damaged or no image at all. Replace it or remove the record.",
    ),
    "duplicate id": (
        "error",
        "An id names one record. Give the later one another id, or remove it.",
    ),
    "image placeholders": (
        "error",
        "The text speaks of another number of images than the record has. Correct it.",
    ),
    "contradiction": (
        "error",
        "The same two answers are ranked both ways: one of the two records is wrong.",
    ),
    "unfit for the model": (
        "error",
        "The model cannot take this record: training would stop at it. Remove it.",
    ),
    "huge image": (
        "warning",
        "It is reduced each time before the model sees it. Reduce the file once.",
    ),
    "path": (
        "warning",
        "It will not be found once the folder is moved. Keep images inside it, with relative paths.",
    ),
    "placeholder text": (
        "warning",
        "The chat template adds the image itself, so this would be read twice. Remove it.",
    ),
    "chat template": (
        "warning",
        "Marks of a chat template would be learnt as words. Keep the bare texts.",
    ),
    "end of turn": (
        "warning",
        "Training adds the end of an answer itself, so it would end twice. Remove the mark.",
    ),
    "duplicate record": (
        "warning",
        "It counts twice in training. Remove the copy unless that is meant.",
    ),
    "duplicate answers": (
        "warning",
        "Equal answers teach nothing about each other. Remove the copy.",
    ),
    "scores": (
        "warning",
        "A worse answer has the higher score. Check whether low scores are the good ones here.",
    ),
    "blind rule": (
        "warning",
        "Training may learn such a rule instead of looking. A model's own mistakes often lean to one side; "
        "mix them with other wrong answers until the share is near .5, and test afterwards with swapped images.",
    ),
    "position": (
        "warning",
        "The place of an answer tells how good it is. Training on pairs does not see places, but whoever judges "
        "these answers does, a person or a model: shuffle them within each record.",
    ),
    "photo in two groups": (
        "warning",
        "A split by group could put it on both sides. Give its records one group.",
    ),
    "leak": (
        "warning",
        "What is trained on cannot be tested on. Move all records of a photo to one side.",
    ),
    "too long": (
        "warning",
        "What is over the limit is cut off or refused. Shorten the texts or reduce the images.",
    ),
    "no pairs": ("note", "Not ranked, or all answers tied: there is no pair to train on."),
    "altered": ("note", "To make a record of a row of another format, this was changed."),
    "not compared": (
        "note",
        "Records with errors were left out of the comparison. Check that file too.",
    ),
}
SAME_PHOTO = {  # how two photos are known to be one
    "group": "the same group",
    "path": "the same image file",
    "name": "a copy of the photo, to go by its name",
    "content": "the same image, byte for byte",
}


@dataclass(frozen=True, slots=True)
class Finding:
    severity: Severity
    kind: str  # one of KINDS
    line: int | None  # counted from 1; None: it is about the whole file
    record_id: str | None
    message: str


class Place(NamedTuple):
    """A record, or an image in a folder."""

    where: str  # file:line, or the path of the image
    line: int | None = None
    record_id: str | None = None
    group: str | None = None


@dataclass(repr=False)
class DataReport:
    """The findings in one file. Prints as text grouped by kind, the worst first."""

    path: Path
    findings: list[Finding] = field(default_factory=list)
    counts: dict[str, int] = field(default_factory=dict)  # lines, records, pairs, images
    blind: BlindTable = field(default_factory=dict)  # every blind rule, see helpers/data/blind.py
    lengths: dict[str, dict[str, float]] = field(
        default_factory=dict
    )  # of what → median, 95 %, max in tokens
    photos: dict[str, dict[int, Place]] = field(
        default_factory=lambda: {how: {} for how in SAME_PHOTO}
    )  # by hash

    @property
    def errors(self) -> list[Finding]:
        return [finding for finding in self.findings if finding.severity == "error"]

    @property
    def warnings(self) -> list[Finding]:
        return [finding for finding in self.findings if finding.severity == "warning"]

    def __repr__(self) -> str:
        n = self.counts | dict.fromkeys(("errors", "warnings", "notes"), 0)
        n |= Counter(f"{finding.severity}s" for finding in self.findings)
        parts = [
            f"{self.path}: "
            + ", ".join(f"{n[k]:,} {k.removesuffix('s') if n[k] == 1 else k}" for k in n)
            + "."
        ]
        parts += [
            self._section(kind)
            for kind in FINDING_KINDS
            if any(finding.kind == kind for finding in self.findings)
        ]
        if self.blind:
            title = "Share of the pairs in which a rule that never sees the image picks the chosen answer:"
            parts.append(f"{title}\n{render_blind_table(self.blind)}")
        for what, row in self.lengths.items():
            parts.append(
                f"{what}: " + ", ".join(f"{name} {tokens:,.0f}" for name, tokens in row.items())
            )
        return "\n\n".join(parts)

    def _section(self, kind: str) -> str:
        severity, advice = FINDING_KINDS[kind]
        found = [finding for finding in self.findings if finding.kind == kind]
        lines = [f"{severity.upper()}: {kind} ({len(found):,})", f"  {advice}"]
        for finding in found[:PLACES_SHOWN]:
            place = f"{self.path.name}:{finding.line}" if finding.line else self.path.name
            about = f"{place} ({finding.record_id})" if finding.record_id else place
            lines.append("    " + _one_line(f"{about}: {finding.message}"))
        more = len(found) - PLACES_SHOWN
        return "\n".join([*lines, f"    … and {more:,} more"] if more > 0 else lines)

    def to_json(self) -> dict[str, Any]:
        """Everything but the photos, for a file of JSON."""
        return asdict(replace(self, path=str(self.path), photos={}))


def _one_line(text: str, longest: int = 300) -> str:
    text = " ".join(text.split())
    return text if len(text) <= longest else text[: longest - 1] + "…"


def salvage(path: Path, report: DataReport, out: Path) -> tuple[int, int]:
    """Write what has no errors to `out` as it was, and the rest to `out` with suffix .bad.jsonl.

    Lines stay as they are, byte for byte; of a JSON array the good items make an array again. Each bad
    one becomes {"line", "error", "raw"}; one that is not UTF-8 is in base64 and has "encoding". Of
    records that exclude each other the first is good. Image paths stay as they are, so `out` belongs
    into the folder of `path`. Returns the number of both.
    """
    bad = out.with_suffix(".bad.jsonl")
    if path.resolve() in (out.resolve(), bad.resolve()):
        raise UsageError(
            f"{path}: would be overwritten while it is read. Give another name to salvage to."
        )
    reasons: dict[int, list[str]] = defaultdict(list)
    for finding in report.errors:
        if finding.line:
            reasons[finding.line].append(finding.message)
    good = (raw.decode().removesuffix("\n") for n, raw, *_ in raw_rows(path) if n not in reasons)
    if is_array(path):
        write_text(out, "[\n" + ",\n".join(good) + "\n]\n")
    else:
        write_lines(out, good)
    write_lines(
        bad, (_bad_line(n, raw, reasons[n]) for n, raw, *_ in raw_rows(path) if n in reasons)
    )
    return sum(1 for n, *_ in raw_rows(path) if n not in reasons), len(reasons)


def _bad_line(number: int, raw: bytes, reasons: list[str]) -> str:
    entry = {"line": number, "error": "; ".join(reasons)}
    try:
        entry |= {"raw": raw.decode().removesuffix("\n")}
    except UnicodeDecodeError:
        entry |= {"raw": base64.b64encode(raw.removesuffix(b"\n")).decode(), "encoding": "base64"}
    return json.dumps(entry, ensure_ascii=False)
