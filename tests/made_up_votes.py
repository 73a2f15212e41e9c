"""Records that do not exist, and votes on them."""

from pathlib import Path

from helpers.data.judgement import Judgement
from helpers.data.record import PreferenceRecord
from helpers.data.vote_log import VoteEvent, content_hash


def record(name="r0", n=2, **fields):
    answers = [{"text": f"{name} answer {place}", "model": f"model {place}"} for place in range(n)]
    return PreferenceRecord(
        image="photo.png", prompt="How many?", answers=answers, id=name, **fields
    )


def records(count, n=2):
    return [record(f"r{number}", n) for number in range(count)]


def event(name="r0", annotator="ana", verdict="tie", ranking=((0, 1),), **fields):
    ranking = ranking and [list(tier) for tier in ranking]
    judgement = Judgement(
        kind="human", annotator=annotator, verdict=verdict, ranking=ranking, **fields
    )
    return VoteEvent(
        record=name, content=content_hash(record(name), Path(".")), judgement=judgement
    )
