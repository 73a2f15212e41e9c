"""A verdict on a run: what was found, why that is likely, what to change. Both doctors speak in these.

Taught in notebooks 04 and 05.
"""

import tomllib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path

Symptoms = Iterator[tuple[str, str]]  # kind, what was measured


@dataclass(frozen=True)
class Verdict:
    """One finding: what was measured at `step`, the likely causes in order, and what to change where."""

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


def read_kinds(training: str) -> dict[str, tuple[str, list[str], str]]:
    """What can be found in a run of "dpo" or "ppo", the worst first: kind → severity, causes, what to change."""
    text = Path(__file__).with_name("kinds.toml").read_text(encoding="utf-8")
    return {kind: tuple(entry.values()) for kind, entry in tomllib.loads(text)[training].items()}


def verdict_kinds(verdicts: Sequence[Verdict]) -> str:
    """The kinds of what was found, for a row of a table: "loss rises, answers do not end", or "nothing"."""
    return ", ".join(verdict.kind for verdict in verdicts) or "nothing"


def panel_html(state: str, verdicts: Sequence[Verdict]) -> str:
    """HTML for a notebook: the state of a run and what was found."""
    items = ""
    for verdict in verdicts:
        color, ground = (
            ("#b42318", "#fef3f2") if verdict.severity == "stop" else ("#8a4b00", "#fff8e6")
        )
        items += (
            f"<div style='border-left:4px solid {color}; background:{ground}; color:#1f2328; margin:.5em 0; "
            f"padding:.4em 1em'><b style='color:{color}'>{escape(verdict.severity)} at step {verdict.step}: "
            f"{escape(verdict.kind)}</b><br>{escape(verdict.measured)}<ol>"
            + "".join(f"<li>{escape(cause)}</li>" for cause in verdict.causes)
            + f"</ol>{escape(verdict.change)}</div>"
        )
    return f"<p><b>{escape(state)}</b></p>{items}"
