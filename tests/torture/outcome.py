"""What a trial of the torture ended in, and the table of all families."""

from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import islice

from tqdm.auto import tqdm

# What must not happen
BAD = ("lost", "doubled", "silently wrong", "raw traceback")
HEAD = ("family", "tried", "survived", *BAD)
AT_ONCE = 2  # trials; each is one process most of the time
SHOWN = 5  # bad trials of a family that are printed whole


@dataclass(frozen=True)
class Outcome:
    """What a trial ended in: "survived", or one of BAD; `what` says what was tried and found.

    tried: cases of a trial that tries many; a bad one speaks for all of them.
    """

    kind: str
    what: str = ""
    tried: int = 1

    def __post_init__(self):
        if self.kind not in ("survived", *BAD):
            raise ValueError(f"no outcome is called {self.kind!r}")


SURVIVED = Outcome("survived")
Trial = Callable[[], Outcome]


@dataclass
class Tally:
    """How the trials of a family ended; bad: those that must not be; said: others' figures."""

    family: str
    kinds: Counter = field(default_factory=Counter)
    bad: list[Outcome] = field(default_factory=list)
    said: list[str] = field(default_factory=list)

    def add(self, outcome: Outcome) -> None:
        self.kinds[outcome.kind] += outcome.tried
        if outcome.kind != "survived":
            self.bad.append(outcome)
        elif outcome.what:
            self.said.append(outcome.what)

    def row(self) -> list[str]:
        """Its row of the table, as HEAD has the columns."""
        counts = [self.kinds[kind] for kind in ("survived", *BAD)]
        return [self.family, *(f"{number:,}" for number in (sum(counts), *counts))]


def run_family(name: str, trials: Iterable[Trial], number: int) -> Tally:
    """Run the first `number` trials of a family, a few at once; print those that went wrong."""
    tally = Tally(name)
    with ThreadPoolExecutor(AT_ONCE) as pool, tqdm(total=number, desc=name) as bar:
        for outcome in pool.map(_run_trial, islice(trials, number)):
            tally.add(outcome)
            bar.update()
            if outcome in tally.bad[:SHOWN]:
                bar.write(f"{name}: {outcome.kind}: {outcome.what}")
    return tally


def _run_trial(trial: Trial) -> Outcome:
    return trial()


def last_line(tallies: Iterable[Tally]) -> str:
    """Say in one line what must be 0."""
    kinds = sum((tally.kinds for tally in tallies), Counter())
    tried = sum(kinds.values())
    found = ", ".join(f"{kinds[kind]:,} {kind}" for kind in BAD)
    return f"{tried:,} trials: {found}."


def has_bad(tallies: Iterable[Tally]) -> bool:
    return any(tally.bad for tally in tallies)


def each_in_turn(lists: Iterable[Iterable[Trial]]) -> Iterator[Trial]:
    """One trial of each list, then the next of each, so that a short run has some of all."""
    waiting = [iter(trials) for trials in lists]
    while waiting:
        left = []
        for trials in waiting:
            trial = next(trials, None)
            if trial is not None:
                yield trial
                left.append(trials)
        waiting = left
