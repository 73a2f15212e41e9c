"""The families of the torture, how much of each is tried, and its table."""

import argparse
import random
import shutil
import signal
import tempfile
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from helpers.report import markdown_table
from helpers.runtime import machine_summary
from tools.publish import write_block

from . import fuzz, kills, memory, other_runs, saves, strangers, votes
from .outcome import HEAD, Trial, has_bad, last_line, run_family

ROOT = Path(__file__).resolve().parents[2]
PAGE = ROOT / "docs" / "reliability.md"
BLOCK = "table of make torture"
BOTH = (signal.SIGKILL, signal.SIGKILL, signal.SIGINT)


class Room:
    """A folder for trials, and the whole stages that they start from, run when first asked for."""

    def __init__(self, home: Path, names: Sequence[str] = kills.STAGES):
        self.home = home
        self.names = tuple(names)

    @cached_property
    def stages(self) -> list[kills.WholeStage]:
        return kills.whole_stages(self.home, self.names)

    def finished(self) -> tuple[Path, list[str]]:
        """The folder in which all stages are finished, and those of them that train a model."""
        whole = self.stages[0].before.with_name("whole")
        return whole, [name for name in other_runs.STAGES if name in self.names]


@dataclass(frozen=True)
class Family:
    """Trials of one kind, and how many: in `make test`, in `make torture`, with TORTURE=full.

    Files and texts of strangers are tried 25 at once, and counted one by one.
    """

    name: str
    trials: Callable[[Room, random.Random], Iterable[Trial]]
    few: int
    some: int
    many: int


def _saves(kind: str) -> Callable[[Room, random.Random], Iterable[Trial]]:
    return lambda room, draws: saves.save_trials(room.home / "saves", draws, kind)


def _events(kind: str) -> Callable[[Room, random.Random], Iterable[Trial]]:
    return lambda room, draws: kills.event_trials(room.stages, room.home, draws, kind)


def _recipes(room: Room, draws: random.Random) -> Iterable[Trial]:
    return fuzz.recipe_trials(room.home / "recipes", draws)


def _adapters(room: Room, draws: random.Random) -> Iterable[Trial]:
    return fuzz.adapter_trials(room.home / "adapters", draws)


def _strangers(case: strangers.Case) -> Callable[[Room, random.Random], Iterable[Trial]]:
    return lambda room, draws: strangers.trials(case, room.home / case.__name__, draws)


def _kernels(room: Room, draws: random.Random) -> Iterable[Trial]:
    return votes.kill_trials(room.home, draws)


def _two_kernels(room: Room, draws: random.Random) -> Iterable[Trial]:
    return votes.writer_trials(room.home)


def _click(room: Room, draws: random.Random) -> Iterable[Trial]:
    return votes.click_trials(room.home)


def _kills(room: Room, draws: random.Random) -> Iterable[Trial]:
    return kills.kill_trials(room.stages, room.home, draws, BOTH)


def _machines(room: Room, draws: random.Random) -> Iterable[Trial]:
    return kills.machine_trials(room.stages, room.home, draws)


def _two_commands(room: Room, draws: random.Random) -> Iterable[Trial]:
    return kills.two_trials(room.stages, room.home, draws)


def _other_runs(room: Room, draws: random.Random) -> Iterable[Trial]:
    whole, stages = room.finished()
    return other_runs.other_run_trials(whole, room.home, draws, stages)


def _long_runs(room: Room, draws: random.Random) -> Iterable[Trial]:
    return memory.memory_trials(room.home, images=300)


# The cheap ones first. Numbers of trials: in `make test`, in `make torture`, in full.
FAMILIES = (
    Family("damaged preferences", _strangers(strangers.damaged_preferences), 2, 80, 280),
    Family("damaged labels", _strangers(strangers.damaged_labels), 2, 50, 200),
    Family("damaged images", _strangers(strangers.damaged_images), 2, 40, 200),
    Family("hostile texts", _strangers(strangers.hostile_texts), 2, 40, 200),
    Family("recipes with mistakes", _recipes, 20, 300, 2000),
    Family("damaged adapters", _adapters, 10, 100, 400),
    Family("kernels killed while voting", _kernels, 4, 30, 100),
    Family("two that vote at once", _two_kernels, 2, 10, 40),
    Family("a click on 5,000 votes", _click, 1, 1, 1),
    Family("saves killed at a file event", _saves("kill"), 4, 40, 200),
    Family("saves on a full disk", _saves("full"), 2, 20, 100),
    Family("saves cut off by the disk", _saves("cut"), 2, 20, 100),
    Family("stages killed at any time", _kills, 3, 54, 180),
    Family("stages killed at a file event", _events("kill"), 3, 27, 180),
    Family("stages on a full disk", _events("full"), 2, 18, 90),
    Family("stages cut off by the disk", _events("cut"), 2, 18, 90),
    Family("stages on a disk that is read-only", _events("read-only"), 1, 9, 45),
    Family("machines lost, work on a drive", _machines, 1, 18, 90),
    Family("two commands in one folder", _two_commands, 1, 9, 45),
    Family("another run in the folder", _other_runs, 3, 30, 200),
    Family("memory of long runs", _long_runs, 0, 3, 3),
)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run families, print their table and what must be 0; 1 if it is not."""
    parser = argparse.ArgumentParser(
        prog="python tests/torture", description="Kills, full disks, damaged files: what is lost?"
    )
    parser.add_argument("words", nargs="*", help="Only families with one of these in their names.")
    parser.add_argument("--full", action="store_true", help="More of all; writes the table.")
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args(arguments)
    chosen = [f for f in FAMILIES if not given.words or any(w in f.name for w in given.words)]
    started = time.monotonic()
    home = Path(tempfile.mkdtemp(prefix="torture-"))
    room = Room(home)
    tallies = []
    for family in chosen:
        number = family.many if given.full else family.some
        trials = family.trials(room, random.Random(given.seed))
        tallies.append(run_family(family.name, trials, number))
    minutes = (time.monotonic() - started) / 60
    table = markdown_table([list(HEAD), *(tally.row() for tally in tallies)])
    figures = "".join(f"{each.family}: {', '.join(each.said)}.\n" for each in tallies if each.said)
    said = f"{figures}{last_line(tallies)} Seed {given.seed}, {minutes:.0f} minutes, "
    said += f"{machine_summary()}."
    print(f"\n{table}\n\n{said}")
    if given.full and not given.words:
        write_block(PAGE, BLOCK, f"{table}\n\n{said}")
    if has_bad(tallies):
        print(f"What went wrong is kept in {home}.")
        return 1
    shutil.rmtree(home)
    return 0
