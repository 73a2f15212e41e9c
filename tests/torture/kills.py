"""Kills at any time in any stage, and disks that fill up or cannot be written to.

A run is stopped, up to three times, and started again until it ends: it must have left what a run
leaves that nothing has stopped, to the bit.
"""

import itertools
import random
import shutil
import signal
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from helpers.machine import DriveCopies, drive

from . import children
from .children import Fault
from .outcome import SURVIVED, Outcome, Trial, each_in_turn
from .runs import STAGES, compare, copy_run, left_in, run_stage

KILLS = (1, 1, 2, 3)  # of one trial, drawn
# seconds: in place of a drive's 3, so that more of what is being written is copied
COPIED_AFTER = 0.2
SMALLEST = 50_000  # bytes that a cut file may have; the text that a child prints is shorter


@dataclass(frozen=True)
class WholeStage:
    """A stage of a run that nothing has stopped.

    before: the run's folder as the stage finds it. left: what it leaves. events: its file events.
    """

    name: str
    before: Path
    left: Mapping[str, object]
    seconds: float
    events: int


def whole_stages(home: Path, names: Sequence[str] = STAGES) -> list[WholeStage]:
    """Run stages, one after the other, in `home/whole` without a fault.

    Raises RuntimeError if one fails.
    """
    run = home / "whole"
    run.mkdir(parents=True)
    # the server imports the package now, so that no stage's seconds have that in them
    children.run(bool)
    found = []
    for name in names:
        before = copy_run(run, home / f"before-{name}")
        started = time.monotonic()
        ended = children.run(run_stage, run, name, fault=Fault("none", run))
        if ended.code != 0:
            raise RuntimeError(f"the stage {name} ends with {ended.code}:\n{ended.text}")
        seconds = time.monotonic() - started
        found.append(WholeStage(name, before, left_in(run), seconds, ended.events))
    return found


# --- kills ---


def kill_trials(
    stages: list[WholeStage], home: Path, draws: random.Random, signals: tuple[int, ...]
) -> Iterator[Trial]:
    """Trials of every stage in turn; each kills a run at times that are drawn."""
    yield from each_in_turn(
        _kills_of(stage, home, random.Random(draws.random()), signals) for stage in stages
    )


def _kills_of(
    stage: WholeStage, home: Path, draws: random.Random, signals: tuple[int, ...]
) -> Iterator[Trial]:
    number = 0
    while True:
        # a run that goes on is shorter, so that later kills come sooner
        times = [draws.random() * stage.seconds / n for n in range(1, draws.choice(KILLS) + 1)]
        folder = home / f"kill-{signals[0]}-{stage.name}-{number}"
        yield partial(_kill_and_repeat, stage, folder, times, draws.choice(signals))
        number += 1


def _kill_and_repeat(stage: WholeStage, folder: Path, times: list[float], number: int) -> Outcome:
    copy_run(stage.before, folder)
    what = f"{stage.name}, {signal.Signals(number).name} after "
    what += ", ".join(f"{seconds:.2f} s" for seconds in times)
    for seconds in times:
        child = children.start(run_stage, folder, stage.name)
        if child.is_alive_after(seconds):
            child.kill(number)
        ended = child.wait()
        if ended.has_traceback:
            return Outcome("raw traceback", f"{what}\n{ended.text[-1500:]}")
    return repeat(stage, folder, what)


def repeat(stage: WholeStage, folder: Path, what: str) -> Outcome:
    """Run the stage to its end, and compare what it leaves with the whole run."""
    ended = children.run(run_stage, folder, stage.name)
    if ended.has_traceback:
        return Outcome("raw traceback", f"{what}, repeated\n{ended.text[-1500:]}")
    if ended.code != 0:
        return Outcome("lost", f"{what}: the command repeated ends with\n{ended.text[-1500:]}")
    kind, found = compare(left_in(folder), stage.left)
    if kind == "survived":
        shutil.rmtree(folder)
        return SURVIVED
    return Outcome(kind, f"{what}: {found} ({folder})")


def _at_drawn_times(
    trial: Callable[[WholeStage, Path, float], Outcome],
    name: str,
    stages: Sequence[WholeStage],
    home: Path,
    draws: random.Random,
) -> Iterator[Trial]:
    """Trials of each stage in turn, each with a folder of its own and a moment of the stage."""
    for number, stage in enumerate(itertools.cycle(stages)):
        moment = draws.random() * stage.seconds
        yield partial(trial, stage, home / f"{name}-{stage.name}-{number}", moment)


# --- a machine that is lost ---


def machine_trials(
    stages: Sequence[WholeStage], home: Path, draws: random.Random
) -> Iterator[Trial]:
    """A machine that is lost at a time that is drawn, just after its work was copied to a drive."""
    drive.QUIET_SECONDS = COPIED_AFTER
    yield from _at_drawn_times(_lose_machine, "machine", stages, home, draws)


def _lose_machine(stage: WholeStage, folder: Path, seconds: float) -> Outcome:
    copy_run(stage.before, folder)
    kept = folder.with_name(f"{folder.name}-drive")
    kept.mkdir()
    copies = DriveCopies(kept, folder)
    copies.keep()
    child = children.start(run_stage, folder, stage.name)
    child.is_alive_after(seconds)
    # while it trains and writes
    copies.keep()
    child.kill()
    child.wait()
    if copies.failed:
        return Outcome("lost", f"{stage.name}: the copies failed at {seconds:.2f} s ({kept})")
    shutil.rmtree(folder)
    folder.mkdir()
    DriveCopies(kept, folder).restore()
    outcome = repeat(stage, folder, f"{stage.name}, machine lost after {seconds:.2f} s")
    if outcome is SURVIVED:
        shutil.rmtree(kept)
    return outcome


# --- two at once ---


def two_trials(stages: Sequence[WholeStage], home: Path, draws: random.Random) -> Iterator[Trial]:
    """The same command twice at once, in one folder; the second starts at a time that is drawn."""
    yield from _at_drawn_times(_run_twice, "two", stages, home, draws)


def _run_twice(stage: WholeStage, folder: Path, wait: float) -> Outcome:
    copy_run(stage.before, folder)
    what = f"{stage.name} twice, {wait:.2f} s apart"
    first = children.start(run_stage, folder, stage.name)
    first.is_alive_after(wait)
    second = children.start(run_stage, folder, stage.name)
    ended = [first.wait(), second.wait()]
    for each in ended:
        if each.has_traceback:
            return Outcome("raw traceback", f"{what}\n{each.text[-1500:]}")
        if each.code != 0 and "is at work there" not in each.text:
            return Outcome("lost", f"{what}\n{each.text[-1500:]}")
    if all(each.code != 0 for each in ended):
        return Outcome("lost", f"{what}: both were refused")
    return repeat(stage, folder, what)


# --- at every file event ---


def event_trials(
    stages: list[WholeStage], home: Path, draws: random.Random, kind: str
) -> Iterator[Trial]:
    """Trials of every stage in turn, each with a fault at another file event."""
    yield from each_in_turn(
        _events_of(stage, home, random.Random(draws.random()), kind) for stage in stages
    )


def _events_of(stage: WholeStage, home: Path, draws: random.Random, kind: str) -> Iterator[Trial]:
    places = list(range(stage.events))
    if kind == "cut":
        places = [draws.randint(SMALLEST, _largest_file(stage)) for _ in range(stage.events)]
    draws.shuffle(places)
    for place in places:
        yield partial(_fault_and_repeat, stage, home / f"{kind}-{stage.name}-{place}", kind, place)


def _largest_file(stage: WholeStage) -> int:
    sizes = [path.stat().st_size for path in stage.before.rglob("*") if path.is_file()]
    return max([SMALLEST, *sizes])


def _fault_and_repeat(stage: WholeStage, folder: Path, kind: str, place: int) -> Outcome:
    copy_run(stage.before, folder)
    what = f"{stage.name}, {kind} at {place:,}"
    ended = children.run(run_stage, folder, stage.name, fault=Fault(kind, folder, place))
    if ended.has_traceback:
        return Outcome("raw traceback", f"{what}\n{ended.text[-1500:]}")
    if ended.code == 1 and "error: " not in ended.text:
        return Outcome("raw traceback", f"{what}: no word on why\n{ended.text[-1500:]}")
    return repeat(stage, folder, what)
