"""What the data doctor can find, how its report reads, and how the bad lines are sorted out.

Every kind of finding says how bad it is, what it means and what to do; the kinds stand in
`findings.toml`. The examination itself is in `helpers/data/data_doctor.py`.
"""

import base64
import json
import tomllib
from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Literal, NamedTuple

from helpers.files import UsageError, write_lines, write_text

from .blind import BlindTable, render_blind_table
from .convert_files import is_array, raw_rows
from .preferences import RawRow

PLACES_SHOWN = 5  # of each kind of finding
LONGEST_LINE = 300  # characters; a bad line may hold a whole book
Severity = Literal["error", "warning", "note"]
Problems = Iterator[tuple[str, str]]  # kind, message


class FindingKind(NamedTuple):
    severity: Severity
    advice: str  # what it means and what to do


_TABLE = tomllib.loads(Path(__file__).with_name("findings.toml").read_text(encoding="utf-8"))
# kind → how bad it is and what to do, the worst first
FINDING_KINDS = {kind: FindingKind(**entry) for kind, entry in _TABLE.items()}
SAME_PHOTO = {  # how two photos are known to be one
    "group": "the same group",
    "path": "the same image file",
    "name": "a copy of the photo, to go by its name",
    "content": "the same image, byte for byte",
}


@dataclass(frozen=True, slots=True)
class Finding:
    severity: Severity
    kind: str  # one of FINDING_KINDS
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
    # lines, records, pairs, images
    counts: dict[str, int] = field(default_factory=dict)
    # every blind rule, see helpers/data/blind.py
    blind: BlindTable = field(default_factory=dict)
    # of what → median, 95 %, max in tokens
    lengths: dict[str, dict[str, float]] = field(default_factory=dict)
    # key of SAME_PHOTO → hash → where the photo was first
    photos: dict[str, dict[int, Place]] = field(
        default_factory=lambda: {how: {} for how in SAME_PHOTO}
    )

    @property
    def errors(self) -> list[Finding]:
        return [finding for finding in self.findings if finding.severity == "error"]

    def __repr__(self) -> str:
        found = Counter(f"{finding.severity}s" for finding in self.findings)
        numbers = self.counts | {name: found[name] for name in ("errors", "warnings", "notes")}
        stated = []
        for name, n in numbers.items():
            stated.append(f"{n:,} {name.removesuffix('s') if n == 1 else name}")
        parts = [f"{self.path}: {', '.join(stated)}."]
        by_kind = defaultdict(list)
        for finding in self.findings:
            by_kind[finding.kind].append(finding)
        for kind in sorted(by_kind, key=list(FINDING_KINDS).index):
            parts.append(self._section(kind, by_kind[kind]))
        if self.blind:
            parts.append(
                "Share of the pairs in which a rule that never sees the image "
                f"picks the chosen answer:\n{render_blind_table(self.blind)}"
            )
        for what, row in self.lengths.items():
            quantiles = [f"{name} {tokens:,.0f}" for name, tokens in row.items()]
            parts.append(f"{what}: {', '.join(quantiles)}")
        return "\n\n".join(parts)

    def _section(self, kind: str, found: list[Finding]) -> str:
        severity, advice = FINDING_KINDS[kind]
        lines = [f"{severity.upper()}: {kind} ({len(found):,})", f"  {advice}"]
        for finding in found[:PLACES_SHOWN]:
            place = f"{self.path.name}:{finding.line}" if finding.line else self.path.name
            if finding.record_id:
                place += f" ({finding.record_id})"
            lines.append("    " + _one_line(f"{place}: {finding.message}"))
        more = len(found) - PLACES_SHOWN
        if more > 0:
            lines.append(f"    … and {more:,} more")
        return "\n".join(lines)

    def to_json(self) -> dict:
        """Return everything but the photos, for a file of JSON."""
        return asdict(replace(self, path=str(self.path), photos={}))


def _one_line(text: str) -> str:
    text = " ".join(text.split())
    return text if len(text) <= LONGEST_LINE else f"{text[: LONGEST_LINE - 1]}…"


def salvage(path: Path, report: DataReport, out: Path) -> tuple[int, int]:
    """Write what has no errors to `out` as it was, and the rest to `out` with suffix .bad.jsonl.

    Lines stay as they are, byte for byte; of a JSON array the good items make an array again. Each
    bad one becomes {"line", "error", "raw"}; one that is not UTF-8 is in base64 and has "encoding".
    Of records that exclude each other the first is good. Image paths stay as they are, so `out`
    belongs into the folder of `path`. Returns the number of both.
    """
    bad = out.with_suffix(".bad.jsonl")
    if path.resolve() in (out.resolve(), bad.resolve()):
        raise UsageError(
            f"{path}: would be overwritten while it is read. Give another name to salvage to."
        )
    reasons = defaultdict(list)  # number of a row → what is wrong with it
    for finding in report.errors:
        if finding.line:
            reasons[finding.line].append(finding.message)
    # In the order of the file; what no finding names is good.
    good_lines, bad_lines = [], []
    for row in raw_rows(path):
        if row.number in reasons:
            bad_lines.append(_bad_line(row, reasons[row.number]))
        else:
            good_lines.append(row.raw.decode().removesuffix("\n"))
    if is_array(path):
        items = ",\n".join(good_lines)
        write_text(out, f"[\n{items}\n]\n")
    else:
        write_lines(out, good_lines)
    write_lines(bad, bad_lines)
    return len(good_lines), len(bad_lines)


def _bad_line(row: RawRow, reasons: list[str]) -> str:
    entry = {"line": row.number, "error": "; ".join(reasons)}
    try:
        entry["raw"] = row.raw.decode().removesuffix("\n")
    except UnicodeDecodeError:
        entry["raw"] = base64.b64encode(row.raw.removesuffix(b"\n")).decode()
        entry["encoding"] = "base64"
    return json.dumps(entry, ensure_ascii=False)
