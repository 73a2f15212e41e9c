"""Votes: a kernel that is killed between clicks, two annotators at once, a long file of votes."""

import os
import random
import time
from collections import Counter
from collections.abc import Iterator
from functools import partial
from pathlib import Path

from made_up_votes import event, records

from helpers.data import Votes, read_records, write_records
from helpers.data.vote_log import content_hashes, read_events, records_by_key
from helpers.files import write_lines
from helpers.widgets import AnswerRanker

from . import children
from .outcome import SURVIVED, Outcome, Trial

QUESTIONS = 40  # that one annotator is asked
LONGEST = 0.6  # seconds before a kill: about as long as all the votes take
MANY = 5_000
SLOWEST = 0.05  # CPU seconds of a click


def vote(folder: Path, annotator: str, most: int | None = None) -> int:
    """Click "All equal" for every question that is left, and note each vote that has come back."""
    asked = read_records(folder / "records.jsonl")
    ranking = AnswerRanker(Votes(folder / "votes.jsonl", asked, annotator), pause=0)
    told = os.open(folder / f"told-{annotator}", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    clicks = 0
    while ranking.item and clicks != most:
        key = ranking.item.key
        ranking.buttons["tie"].click()
        clicks += 1
        if ranking.item is None or ranking.item.key != key:
            os.write(told, f"{key}\n".encode())
    return 0


def _ask(folder: Path, questions: int = QUESTIONS) -> Path:
    folder.mkdir(parents=True)
    write_records(folder / "records.jsonl", records(questions))
    return folder


def kill_trials(home: Path, draws: random.Random) -> Iterator[Trial]:
    """Kernels that are killed while somebody votes, and opened again until all is done."""
    number = 0
    while True:
        yield partial(_kill_kernel, home / f"votes-{number}", draws.random() * LONGEST)
        number += 1


def _kill_kernel(folder: Path, seconds: float) -> Outcome:
    _ask(folder)
    child = children.start(vote, folder, "ana")
    # the clock starts with the first vote, since a kernel takes seconds to start
    deadline = time.monotonic() + children.LIMIT
    while not (folder / "votes.jsonl").exists() and time.monotonic() < deadline:
        time.sleep(0.002)
    time.sleep(seconds)
    child.kill()
    ended = child.wait()
    if ended.has_traceback:
        return Outcome("raw traceback", ended.text[-1500:])
    return _finish(folder, ("ana",), f"killed after {seconds:.3f} s")


def _finish(folder: Path, annotators: tuple[str, ...], what: str) -> Outcome:
    """Vote on what is left, and compare what was told with what the file has."""
    for annotator in annotators:
        ended = children.run(vote, folder, annotator)
        if ended.code != 0:
            return Outcome("raw traceback", f"{what}\n{ended.text[-1500:]}")
    events, _ = read_events(folder / "votes.jsonl")
    counts = Counter((each.annotator, each.record) for each in events)
    for annotator in annotators:
        told = (folder / f"told-{annotator}").read_text().split()
        for key in told:
            if counts[annotator, key] != 1:
                kind = "lost" if counts[annotator, key] == 0 else "doubled"
                return Outcome(kind, f"{what}: {key} of {annotator} ({folder})")
    if max(counts.values()) > 1:
        return Outcome("doubled", f"{what}: {counts.most_common(1)} ({folder})")
    if len(counts) != QUESTIONS * len(annotators):
        return Outcome("lost", f"{what}: {len(counts)} votes on {QUESTIONS} questions ({folder})")
    return SURVIVED


def writer_trials(home: Path) -> Iterator[Trial]:
    """Two kernels that vote on one file at once: of two annotators, or of one in two windows."""
    number = 0
    while True:
        annotators = ("ana", "ben") if number % 2 else ("ana", "ana")
        yield partial(_vote_at_once, home / f"writers-{number}", annotators)
        number += 1


def _vote_at_once(folder: Path, annotators: tuple[str, str]) -> Outcome:
    _ask(folder)
    both = [children.start(vote, folder, annotator) for annotator in annotators]
    what = " and ".join(annotators)
    for child in both:
        ended = child.wait()
        if ended.has_traceback:
            return Outcome("raw traceback", f"{what}\n{ended.text[-1500:]}")
    return _finish(folder, tuple(dict.fromkeys(annotators)), what)


def click_seconds(folder: Path, votes: int = MANY, clicks: int = 20) -> float:
    """Median CPU seconds of a click on a file that has so many votes already."""
    _ask(folder, votes + clicks)
    path = folder / "votes.jsonl"
    asked = read_records(folder / "records.jsonl")
    contents = content_hashes(records_by_key(asked[:votes]), path)
    lines = []
    for key, content in contents.items():
        given = event(key).model_copy(update={"content": content})
        lines.append(given.model_dump_json(exclude_defaults=True))
    write_lines(path, lines)
    ranking = AnswerRanker(Votes(path, asked, "ana"), pause=0)
    seconds = []
    for _ in range(clicks):
        started = time.process_time()
        ranking.buttons["tie"].click()
        seconds.append(time.process_time() - started)
    return sorted(seconds)[clicks // 2]


def click_trials(home: Path) -> Iterator[Trial]:
    """A click on a file with thousands of votes."""
    yield partial(_click, home / "many-votes")


def _click(folder: Path) -> Outcome:
    ended = children.run(click_seconds, folder)
    if ended.has_traceback:
        return Outcome("raw traceback", ended.text[-1500:])
    if not ended.value < SLOWEST:
        return Outcome("lost", f"a click on {MANY:,} votes takes {ended.value:.3f} s")
    return Outcome("survived", f"{1000 * ended.value:.0f} ms")
