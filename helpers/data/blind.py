"""How far does a rule get that never sees the image?

A pair of answers that can be told apart without the image teaches a model to do without it. Each rule
gives an answer a number from its text or its place alone, and picks the higher one. The best rule's
accuracy belongs beside every data set: .5 is no leak, 1 means that the pairs teach nothing about
images. Taught in notebook 02.
"""

from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import numpy as np

from helpers.files import open_image
from helpers.statistics import Proportion, proportion

from .counting import parse_counts
from .preferences import Answer, PreferenceRecord

# What a rule sees of an answer: its text, the counts it states (none if unparsable), its place.
BlindRule = Callable[[str, Sequence[int], int], float]
BLIND_RULES: dict[str, BlindRule] = {
    "shorter": lambda text, counts, place: -len(text),
    "longer": lambda text, counts, place: len(text),
    "shown first": lambda text, counts, place: -place,
    "shown last": lambda text, counts, place: place,
}
BLIND_COUNT_RULES: dict[str, BlindRule] = {
    "smaller total": lambda text, counts, place: -sum(counts),
    "larger total": lambda text, counts, place: sum(counts),
    "more zeros": lambda text, counts, place: list(counts).count(0),
}
BlindTable = dict[
    str, dict[str, Proportion]
]  # kind of rejected answer → rule → share of pairs it gets right


class BlindRules:
    """Accuracy of every rule, record by record, without keeping the records.

    A pair that a rule cannot decide counts as a coin toss: half a hit.
    """

    def __init__(self) -> None:
        self._hits: dict[str, dict[str, float]] = defaultdict(lambda: defaultdict(float))
        self._pairs: dict[str, int] = defaultdict(int)
        self._counting = False

    def add(self, record: PreferenceRecord) -> None:
        classes = list(record.truth) if isinstance(record.truth, dict) else []
        self._counting |= bool(classes)
        values = [_values(answer, place, classes) for place, answer in enumerate(record.answers)]
        for better, worse in record.tier_pairs():
            for kind in ("all", record.answers[worse].origin or "unknown"):
                self._pairs[kind] += 1
                for rule, value in values[better].items():
                    other = values[worse][rule]
                    self._hits[kind][rule] += 0.5 if value == other else float(value > other)

    def table(self) -> BlindTable:
        """Kind of rejected answer ("all" first) → rule → accuracy. Counting rules only where there are counts."""
        rules = [*BLIND_COUNT_RULES, *BLIND_RULES] if self._counting else list(BLIND_RULES)
        return {
            kind: {rule: proportion(self._hits[kind][rule], n) for rule in rules}
            for kind, n in self._pairs.items()
        }


def _values(answer: Answer, place: int, classes: Sequence[str]) -> dict[str, float]:
    counts = list((parse_counts(answer.text, classes) or {}).values()) if classes else []
    return {
        name: rule(answer.text, counts, place)
        for name, rule in (BLIND_RULES | BLIND_COUNT_RULES).items()
    }


def blind_rules(records: Iterable[PreferenceRecord]) -> BlindTable:
    """Accuracy of every blind rule on the pairs of `records`, by the origin of the rejected answer."""
    rules = BlindRules()
    for record in records:
        rules.add(record)
    return rules.table()


def true_image_detail_shares(
    records: Sequence[PreferenceRecord], kinds: Sequence[str]
) -> dict[str, Proportion]:
    """Compute how often the true image has more detail than the spoilt one, for each kind of `negative_images`.

    Detail is the standard deviation of the differences between neighbouring pixels. A share near 1 means
    that "prefer the sharper picture" solves the pairs without reading what is in it; only an image as
    sharp as the true one ("shuffled") makes the content count.
    """
    wins = {kind: [] for kind in kinds}
    for record in records:
        true = _image_detail(record.image_paths[0])
        for kind, name in zip(kinds, record.negative_image_paths, strict=True):
            spoilt = _image_detail(name)
            wins[kind].append(0.5 if true == spoilt else float(true > spoilt))
    return {kind: proportion(sum(results), len(results)) for kind, results in wins.items()}


def _image_detail(path: Path) -> float:
    pixels = np.asarray(open_image(path).convert("L"), dtype=float)
    return float(np.diff(pixels, axis=0).std() + np.diff(pixels, axis=1).std())


def best_rule(table: BlindTable, kind: str = "all") -> tuple[str, Proportion]:
    """The rule that gets furthest, and how far."""
    return max(table[kind].items(), key=lambda entry: entry[1].value)


def render_blind_table(table: BlindTable) -> str:
    """The table as text: one line a rule, one column a kind of rejected answer."""
    width = 34
    lines = [f"{'blind rule':<15}" + "".join(f"{kind:>{width}}" for kind in table)]
    for rule in next(iter(table.values()), {}):
        lines.append(f"{rule:<15}" + "".join(f"{table[kind][rule]!s:>{width}}" for kind in table))
    return "\n".join(lines)
