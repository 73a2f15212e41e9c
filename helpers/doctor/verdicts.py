"""A verdict on a run: what was found, why that is likely, what to change.

Both doctors speak in these. Taught in notebooks 04 and 05.
"""

import tomllib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Any

Kinds = dict[str, tuple[str, list[str], str]]  # kind → severity, causes, what to change
# kind → a part of the run, and functions of the run and that part that say what is wrong
Rules = dict[str, tuple]

STOP_COLORS = ("#b42318", "#fef3f2")  # of text and ground
WARNING_COLORS = ("#8a4b00", "#fff8e6")


@dataclass(frozen=True)
class Verdict:
    """One finding: what was measured at `step`, the likely causes in order, what to change."""

    kind: str  # a heading of kinds.toml
    step: int
    measured: str
    severity: str
    causes: list[str]
    change: str

    def __str__(self) -> str:
        causes = "; ".join(f"({number}) {cause}" for number, cause in enumerate(self.causes, 1))
        head = f"{self.severity.upper()} at step {self.step}, {self.kind}: {self.measured}"
        return f"{head}\n  Likely: {causes}.\n  {self.change}"


def read_kinds(training: str) -> Kinds:
    """What can be found in a run of "dpo" or "ppo", the worst first."""
    text = Path(__file__).with_name("kinds.toml").read_text(encoding="utf-8")
    return {kind: tuple(entry.values()) for kind, entry in tomllib.loads(text)[training].items()}


def apply_rules(run: Any, rules: Rules) -> dict[str, str]:
    """Find what is wrong with a run: kind → what was measured.

    A part of the run is empty as long as it is too early to tell. Of the rules of a kind the first
    finding counts.
    """
    # in the order of the table, which is of no account: `kinds.toml` says what is worst
    found = {}
    for kind, (part, *measures) in rules.items():
        seen = getattr(run, part)
        # too early, or nothing of the kind was logged: no rule is asked
        for measure in measures if seen else ():
            measured = measure(run, seen)
            if measured:
                found[kind] = measured
                break
    return found


def verdicts_of(
    found: Mapping[str, str],
    kinds: Kinds,
    chain: Sequence[str],
    step: int,
) -> list[Verdict]:
    """Verdicts on what was found at `step`, the worst first; in `chain` each explains the later."""
    explained = [kind for kind in chain if kind in found][1:]
    return [
        Verdict(kind, step, found[kind], *kinds[kind])
        for kind in kinds
        if kind in found and kind not in explained
    ]


def verdict_kinds(verdicts: Sequence[Verdict], nothing: str = "nothing") -> str:
    """The kinds of what was found, for a row of a table: "loss rises, answers do not end"."""
    return ", ".join(verdict.kind for verdict in verdicts) or nothing


class RunDoctor:
    """What the doctors share: each kind is said once, and a panel shows how the run does."""

    def __init__(self) -> None:
        self.verdicts: list[Verdict] = []

    def tell(self, verdicts: Iterable[Verdict], aloud: bool = True) -> list[Verdict]:
        """Keep verdicts of kinds that were not found before, print them if `aloud`, return them."""
        # by kind, since a fault that lasts would be said at every look
        known = {verdict.kind for verdict in self.verdicts}
        new = {verdict.kind: verdict for verdict in verdicts if verdict.kind not in known}
        self.verdicts += new.values()
        for verdict in new.values() if aloud else ():
            print(f"⚠️  {verdict}")
        return list(new.values())

    def _repr_html_(self) -> str:
        return panel_html(self.state(), self.verdicts)


def panel_html(state: str, verdicts: Sequence[Verdict]) -> str:
    """HTML for a notebook: the state of a run and what was found."""
    items = ""
    for verdict in verdicts:
        color, ground = STOP_COLORS if verdict.severity == "stop" else WARNING_COLORS
        causes = "".join(f"<li>{escape(cause)}</li>" for cause in verdict.causes)
        items += (
            f"<div style='border-left:4px solid {color}; background:{ground}; color:#1f2328; "
            f"margin:.5em 0; padding:.4em 1em'><b style='color:{color}'>"
            f"{escape(verdict.severity)} at step {verdict.step}: {escape(verdict.kind)}</b><br>"
            f"{escape(verdict.measured)}<ol>{causes}</ol>{escape(verdict.change)}</div>"
        )
    return f"<p><b>{escape(state)}</b></p>{items}"
