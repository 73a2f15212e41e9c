"""How far does a rule get that never sees the image?

A pair of answers that can be told apart without the image teaches a model to do without it. Each
rule gives an answer a number from its text or its place alone, and picks the higher one. The best
rule's accuracy belongs beside every data set: .5 is no leak, 1 means that the pairs teach nothing
about images. Taught in notebook 02.
"""

from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np

from helpers.files import open_image
from helpers.statistics import Proportion, proportion

from .counting import classes_of, parse_counts
from .record import PreferenceRecord

# kind of rejected answer → rule → share of pairs it gets right
BlindTable = dict[str, dict[str, Proportion]]
COUNT_RULES = ("smaller total", "larger total", "more zeros")  # they say nothing without counts
# A rule counts if its whole interval is above this share, and not on fewer pairs.
BLIND_LIMIT = 0.6
BLIND_PAIRS = 20
COLUMN_WIDTH = 34  # of a printed table: a share with its interval and n


def blind_values(text: str, counts: Sequence[int], place: int) -> dict[str, float]:
    """Value an answer by every rule.

    counts: what it states, nothing if unparsable. place: where it stands among the answers.
    """
    return {
        "smaller total": -sum(counts),
        "larger total": sum(counts),
        "more zeros": counts.count(0),
        "shorter": -len(text),
        "longer": len(text),
        "shown first": -place,
        "shown last": place,
    }


def blind_record_values(record: PreferenceRecord) -> list[dict[str, float]]:
    """Value every answer of a record by every rule, in the order of the answers."""
    classes = classes_of(record.truth)
    values = []
    for place, answer in enumerate(record.answers):
        stated = parse_counts(answer.text, classes) if classes else None
        counts = list(stated.values()) if stated else []
        values.append(blind_values(answer.text, counts, place))
    return values


class BlindRules:
    """Accuracy of every rule, record by record, without keeping the records.

    A pair that a rule cannot decide counts as a coin toss: half a hit.
    """

    def __init__(self) -> None:
        self._hits = Counter()  # (kind of rejected answer, rule) → pairs it gets right
        self._pairs = Counter()  # kind of rejected answer → pairs
        self._counting = False

    def add(self, record: PreferenceRecord) -> None:
        self._counting |= bool(classes_of(record.truth))
        values = blind_record_values(record)
        # Each pair counts for all, and for the kind of its rejected answer.
        for better, worse in record.tier_pairs():
            kinds = ("all", record.answers[worse].origin or "unknown")
            self._pairs.update(kinds)
            for rule, value in values[better].items():
                hit = _hit(value, values[worse][rule])
                for kind in kinds:
                    self._hits[kind, rule] += hit

    def table(self) -> BlindTable:
        """Return the accuracy of each rule by the kind of the rejected answer, "all" first.

        The rules on counts are in it only where there are counts.
        """
        table = {kind: {} for kind in self._pairs}
        for (kind, rule), hits in self._hits.items():
            if self._counting or rule not in COUNT_RULES:
                table[kind][rule] = proportion(hits, self._pairs[kind])
        return table


def _hit(better: float, worse: float) -> float:
    return 0.5 if better == worse else float(better > worse)


def blind_rules(records: Iterable[PreferenceRecord]) -> BlindTable:
    """Measure every blind rule on the pairs of `records`, by the origin of the rejected answer."""
    rules = BlindRules()
    for record in records:
        rules.add(record)
    return rules.table()


def best_rule(table: BlindTable, kind: str = "all") -> tuple[str, Proportion]:
    """Find the rule that gets furthest, and how far."""
    shares = table[kind]
    best = max(shares, key=lambda rule: shares[rule].value)
    return best, shares[best]


def name_best_rule(table: BlindTable, kind: str = "all") -> str:
    """The best rule in words, or that there is none without pairs."""
    if kind not in table:
        return "no pairs of this kind"
    rule, share = best_rule(table, kind)
    return f"{rule!r} is right in {share} of the pairs"


def too_good_rules(table: BlindTable) -> dict[str, Proportion]:
    """The rules that pick the chosen answer too often, over all pairs, and how often."""
    found = {}
    for rule, share in table.get("all", {}).items():
        if share.n >= BLIND_PAIRS and share.low > BLIND_LIMIT:
            found[rule] = share
    return found


def blind_warnings(table: BlindTable) -> list[str]:
    """A sentence for each rule that picks the chosen answer too often."""
    lines = []
    for rule, share in too_good_rules(table).items():
        lines.append(
            f"⚠️ {rule!r} picks the chosen answer without looking, in a share of the pairs of "
            f"{share}. A model may learn that instead: add pairs in which it is wrong."
        )
    return lines


def render_blind_table(table: BlindTable) -> str:
    """The table as text: one line a rule, one column a kind of rejected answer."""
    if not table:
        return "no pairs"
    rows = {"blind rule": list(table)}
    for rule in next(iter(table.values()), {}):
        rows[rule] = [str(shares[rule]) for shares in table.values()]
    lines = []
    for name, cells in rows.items():
        columns = [cell.rjust(COLUMN_WIDTH) for cell in cells]
        lines.append(f"{name:<15}{''.join(columns)}")
    return "\n".join(lines)


def true_image_detail_shares(
    records: Sequence[PreferenceRecord],
    kinds: Sequence[str],
) -> dict[str, Proportion]:
    """Compute how often the true image has more detail than the spoilt one, for each of `kinds`.

    kinds: those of `negative_images`, in their order. Detail is the standard deviation of the
    differences between neighbouring pixels. A share near 1 means that "prefer the sharper picture"
    solves the pairs without reading what is in it; only an image as sharp as the true one
    ("shuffled") makes the content count.
    """
    hits = dict.fromkeys(kinds, 0.0)
    for record in records:
        true = _image_detail(record.image_paths[0])
        for kind, spoilt in zip(kinds, record.negative_image_paths, strict=True):
            hits[kind] += _hit(true, _image_detail(spoilt))
    return {kind: proportion(found, len(records)) for kind, found in hits.items()}


def _image_detail(path: Path) -> float:
    pixels = np.asarray(open_image(path).convert("L"), dtype=float)
    down = np.diff(pixels, axis=0).std()
    across = np.diff(pixels, axis=1).std()
    return float(down + across)
