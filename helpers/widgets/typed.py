"""Rank answers by typing, where widgets do not appear; and what typing and clicking share."""

import itertools
import re
import time
from collections.abc import Callable

from IPython.display import display

from helpers.data import (
    ANSWER_LABELS,
    PreferenceRecord,
    Tiers,
    Votes,
    VoteVerdict,
    VotingItem,
    conversation_text,
)
from helpers.files import UsageError, open_image, printable

VERDICT_KEYS: dict[str, VoteVerdict] = {"t": "tie", "x": "all bad", "s": "skip"}


def complete_tiers(tiers: Tiers, n: int, join_last: bool = False) -> Tiers | None:
    """Tiers of `n` answers with the only one left put last; None while more are left.

    join_last: level with the last.
    complete_tiers([[1]], 2) → [[1], [0]]
    complete_tiers([[1], [0]], 3, join_last=True) → [[1], [0, 2]]
    """
    placed = list(itertools.chain(*tiers))
    left = [k for k in range(n) if k not in placed]
    if len(left) > 1:
        return None
    if not left:
        return tiers
    if join_last:
        return [*tiers[:-1], [*tiers[-1], *left]]
    return [*tiers, left]


def prompt_text(record: PreferenceRecord) -> str:
    """The prompt of a record as text."""
    return conversation_text(record.prompt)


def rank_in_text(votes: Votes, read_reply: Callable[[str], str] = input) -> None:
    """Rank by typing, where widgets do not appear: the same votes in the same file.

    `read_reply` gets the question and gives the reply. Stops at the end, and at "q".
    """
    item = votes.next()
    while item is not None:
        is_shown = _print(item, votes)
        started = time.monotonic()
        reply = read_reply("Best first (b>a=c), t all equal, x all bad, s skip, u undo, q stop: ")
        reply = reply.strip().lower()
        if reply == "q":
            return
        # a reply that is no vote, or cannot be written, leaves the item
        try:
            if reply == "u":
                item = votes.undo() or item
                continue
            verdict, tiers = parse_reply(reply, len(item.order))
            if verdict != "skip" and not is_shown:
                raise UsageError("without its picture an item can only be skipped (s).")
            seconds = round(time.monotonic() - started, 2)
            votes.vote(item, verdict, tiers, seconds=seconds)
            item = votes.next()
        except (UsageError, OSError) as error:
            print(f"Not counted: {error}")
            item = votes.renew(item)
    print(f"{votes.progress()}: all are judged.")


def _print(item: VotingItem, votes: Votes) -> bool:
    """Show an item; were all of its pictures shown?"""
    print(f"\n{votes.progress()}\n{votes.notice}")
    is_shown = True
    for path in item.record.image_paths:
        print(printable(str(path)))
        try:
            image = open_image(path)
            image.thumbnail((640, 480))
            display(image)
        except UsageError as error:
            print(printable(f"{error} Skip it (s)."))
            is_shown = False
    # the answers under the letters by which they are named
    answers = [f"[{label}] {text}" for label, text in zip(ANSWER_LABELS, item.texts, strict=False)]
    print(printable("\n\n".join([prompt_text(item.record), *answers])))
    return is_shown


def parse_reply(reply: str, n: int) -> tuple[VoteVerdict, Tiers]:
    """Read a typed vote on `n` answers: "b>a=c" → ("ranked", [[1], [0, 2]]).

    A single answer left out comes last. Raises UsageError for anything but letters in order of
    preference, t, x or s.
    """
    if reply in VERDICT_KEYS:
        return VERDICT_KEYS[reply], []
    clean = re.sub("[ >,]", "", reply)
    if re.fullmatch("[a-f](=?[a-f])*", clean):
        tiers = []
        # a letter, and those that "=" ties to it
        for tied in re.findall(".(?:=.)*", clean):
            tiers.append([ANSWER_LABELS.lower().find(letter) for letter in tied.split("=")])
        ranking = complete_tiers(tiers, n) or []
        if sorted(itertools.chain(*ranking)) == list(range(n)):
            return "ranked", ranking
    raise UsageError(
        f"{reply!r} is no vote. Type the letters, best first, = between equals: b>a=c."
    )
