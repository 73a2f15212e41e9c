"""A verdict on a run: what was found, why that is likely, what to change, and when it ended.

Both doctors speak in these. A verdict begins at the first look that finds it. It is withdrawn once
its rules have found nothing for longer than they look back, so that one odd row cannot end it.
After the last step of a run there are no more looks: there a long look, which has an interval,
counts at once. What is found again later is a new verdict. `Course` decides all this, for a run
that goes on and for a saved log alike. Taught in notebooks 04 and 05.
"""

import tomllib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from html import escape
from pathlib import Path
from typing import Any, NamedTuple

Kinds = dict[str, tuple[str, list[str], str]]  # kind → severity, causes, what to change
# of a run and a part of it: what was measured, in words
InWords = Callable[[Any, Any], str | None]

# What these have spoilt stays so: broken weights, and what was learnt from wrong rewards
LASTING = ("not finite", "scores misplaced")

STOP_COLORS = ("#b42318", "#fef3f2")  # of text and ground
WARNING_COLORS = ("#8a4b00", "#fff8e6")
ENDED_COLORS = ("#4b5563", "#f6f8fa")


class Rule(NamedTuple):
    """What a kind is found by."""

    part: str  # of a run: what to look at; it is empty as long as it is too early to tell
    now: InWords  # what is so when nothing is wrong any more
    faults: Sequence[InWords]  # what is wrong, or None; the first that is wrong counts


Rules = dict[str, Rule]


class Reading(NamedTuple):
    """What the rules of one kind say at one look."""

    fault: str | None
    now: Callable[[], str] = str
    seen: int = 0  # rows or samples so far
    span: int = 0  # how many of them the rules look back


Look = dict[str, Reading]  # kind → reading, of the kinds that could be asked


@dataclass(frozen=True)
class Verdict:
    """One finding: what was measured at `step`, the likely causes in order, what to change."""

    kind: str  # a heading of kinds.toml
    step: int
    measured: str
    severity: str
    causes: list[str]
    change: str
    ended: int | None = None  # the step at which it was withdrawn
    now: str = ""  # what was measured then

    def __str__(self) -> str:
        head = f"{self.severity.upper()} at step {self.step}, {self.kind}: {self.measured}"
        if self.ended is not None:
            return f"{head}\n  Withdrawn at step {self.ended}: {self.now}"
        causes = "; ".join(f"({number}) {cause}" for number, cause in enumerate(self.causes, 1))
        return f"{head}\n  Likely: {causes}.\n  {self.change}"

    @property
    def news(self) -> str:
        """What there is to say of it at the look at which it begins or ends."""
        if self.ended is None:
            return f"⚠️  {self}"
        return (
            f"✅ {self.kind}, found at step {self.step}, "
            f"is withdrawn at step {self.ended}: {self.now}"
        )


def read_kinds(training: str) -> Kinds:
    """What can be found in a run of "dpo" or "ppo", the worst first."""
    text = Path(__file__).with_name("kinds.toml").read_text(encoding="utf-8")
    return {kind: tuple(entry.values()) for kind, entry in tomllib.loads(text)[training].items()}


def ask_rules(run: Any, rules: Rules) -> Look:
    """Ask the rules of each kind about a run.

    A kind is left out as long as it is too early to tell, and where nothing of it was logged.
    run: its method `extent(part)` gives the rows or samples so far, and how many of them the rules
    of that part look back.
    """
    # in the order of the table, which is of no account: `kinds.toml` says what is worst
    look = {}
    for kind, rule in rules.items():
        part = getattr(run, rule.part)
        if not part:
            continue
        fault = None
        for measure in rule.faults:
            fault = measure(run, part)
            if fault:
                break
        look[kind] = Reading(fault, partial(rule.now, run, part), *run.extent(rule.part))
    return look


def faults_of(look: Look) -> dict[str, str]:
    """What is wrong at a look: kind → what was measured."""
    return {kind: reading.fault for kind, reading in look.items() if reading.fault}


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


class Course:
    """The verdicts on a run from look to look: when each began, and when it ended."""

    def __init__(self, kinds: Kinds, chain: Sequence[str]):
        self.kinds = kinds
        self.chain = chain
        self.verdicts: list[Verdict] = []
        # kind → rows or samples at the last look that found it
        self.last_seen: dict[str, int] = {}

    @property
    def open(self) -> list[Verdict]:
        """What is wrong now."""
        return [verdict for verdict in self.verdicts if verdict.ended is None]

    def follow(self, look: Look, step: int) -> list[Verdict]:
        """Take in the next look; return the verdicts that ended or began with it."""
        news = []
        for place, verdict in enumerate(self.verdicts):
            reading = look.get(verdict.kind)
            if verdict.ended is None and reading and self._is_over(verdict.kind, reading):
                self.verdicts[place] = replace(verdict, ended=step, now=reading.now())
                news.append(self.verdicts[place])
        faults = faults_of(look)
        for kind in faults:
            self.last_seen[kind] = look[kind].seen
        # what explains others does so until it is withdrawn
        known = {verdict.kind: verdict.measured for verdict in self.open}
        for verdict in verdicts_of(known | faults, self.kinds, self.chain, step):
            if verdict.kind not in known:
                self.verdicts.append(verdict)
                news.append(verdict)
        return news

    def _is_over(self, kind: str, reading: Reading) -> bool:
        clear = reading.seen - self.last_seen[kind]
        return not reading.fault and clear > reading.span and kind not in LASTING

    def state(self) -> dict[str, Any]:
        """All that `restore` needs, for a JSON file."""
        verdicts = [asdict(verdict) for verdict in self.verdicts]
        return {"verdicts": verdicts, "last_seen": self.last_seen}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Go on from a `state`."""
        self.verdicts = [Verdict(**fields) for fields in state["verdicts"]]
        self.last_seen = dict(state["last_seen"])


def verdict_kinds(verdicts: Sequence[Verdict], nothing: str = "nothing") -> str:
    """What is wrong now, then what was in between, for a row of a table.

    "loss rises, answers do not end"; "nothing; in between: KL runaway (7 to 13)".
    """
    now = [verdict.kind for verdict in verdicts if verdict.ended is None]
    stretches = {}
    for verdict in verdicts:
        if verdict.ended is not None:
            stretches.setdefault(verdict.kind, []).append(f"{verdict.step} to {verdict.ended}")
    before = [f"{kind} ({', '.join(steps)})" for kind, steps in stretches.items()]
    text = ", ".join(now) or nothing
    return f"{text}; in between: {', '.join(before)}" if before else text


class RunDoctor:
    """What the doctors share: a verdict is said when it begins and when it ends, and a panel."""

    def __init__(self, kinds: Kinds, chain: Sequence[str]) -> None:
        self.course = Course(kinds, chain)

    @property
    def verdicts(self) -> list[Verdict]:
        """All verdicts, in the order in which they began; `ended` is None while one holds."""
        return self.course.verdicts

    def tell(self, look: Look, step: int, aloud: bool = True) -> list[Verdict]:
        """Take in a look; return, and print if `aloud`, what began or ended with it."""
        news = self.course.follow(look, step)
        for verdict in news if aloud else ():
            print(verdict.news)
        return news

    def _repr_html_(self) -> str:
        return panel_html(self.state(), self.verdicts)


def panel_html(state: str, verdicts: Sequence[Verdict]) -> str:
    """HTML for a notebook: the state of a run, what is wrong with it, and what was."""
    holding = [verdict for verdict in verdicts if verdict.ended is None]
    ended = [verdict for verdict in verdicts if verdict.ended is not None]
    items = "".join(_box(verdict) for verdict in holding + ended)
    return f"<p><b>{escape(state)}</b></p>{items}"


def _box(verdict: Verdict) -> str:
    """One verdict. Of one that is withdrawn no causes: there is nothing to change."""
    if verdict.ended is not None:
        color, ground = ENDED_COLORS
        head = f"withdrawn at step {verdict.ended}: {verdict.kind}, found at step {verdict.step}"
        rest = f"<br>{escape(verdict.now)}"
    else:
        color, ground = STOP_COLORS if verdict.severity == "stop" else WARNING_COLORS
        head = f"{verdict.severity} at step {verdict.step}: {verdict.kind}"
        causes = "".join(f"<li>{escape(cause)}</li>" for cause in verdict.causes)
        rest = f"<ol>{causes}</ol>{escape(verdict.change)}"
    return (
        f"<div style='border-left:4px solid {color}; background:{ground}; color:#1f2328; "
        f"margin:.5em 0; padding:.4em 1em'><b style='color:{color}'>"
        f"{escape(head)}</b><br>{escape(verdict.measured)}{rest}</div>"
    )
