"""A blind arena: two models' answers, judged without names, and what the votes say.

`build_matches` makes the records, `widgets.Arena` shows them, `standings` counts. A question is one
item, however many people judged it: their consensus decides. Pairwise human votes on anonymous
answers are those of Chatbot Arena (Chiang et al. 2024, arXiv 2403.04132).

Simplified: questions are taken as independent (several about one photo are not quite), and p holds
if the number of votes was settled beforehand, not if voting stops once p is small.
"""

import os
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from helpers.data import (
    Answer,
    Judgement,
    PreferenceRecord,
    Task,
    VoteEvent,
    Votes,
    apply_votes,
    consensus,
    content_hashes,
    current_judgements,
    events_on,
    is_first_shown_second,
    lock_file,
    read_records,
    records_by_key,
    write_records,
)
from helpers.files import UsageError, read_json, write_json
from helpers.statistics import (
    SIGNIFICANCE_LEVEL,
    Proportion,
    binomial_p,
    share_of,
    votes_needed,
    win_rate,
)

# a number: place of the answer that won
MatchOutcome = int | Literal["tie", "both bad", "skipped", "unjudged"]


def build_matches(
    tasks: Sequence[Task],
    answers: Mapping[str, Sequence[str]],
    names: tuple[str, str],
    *,
    records_path: Path,
) -> list[PreferenceRecord]:
    """One record a task with the answers of the models `names`, written to `records_path`.

    answers: model → its answer to each task. The record of tasks[i] has the id str(i). Tasks that
    both answer alike, and those with an empty answer, are left out, and their number is printed: a
    difference found in an arena is one among different answers. Without a match no file is written.
    Raises UsageError for lengths that do not fit or an unknown model.
    """
    if len(set(names)) != 2 or not set(names) <= set(answers):
        raise UsageError(
            f"names {names}: name two of the models that answered, which are {', '.join(answers)}."
        )
    n = len(tasks)
    for name in names:
        if len(answers[name]) != n:
            raise UsageError(
                f"{len(answers[name])} answers of {name} for {n} tasks. Give one for each."
            )
    matches = []
    alike = empty = 0
    for i, task in enumerate(tasks):
        texts = {name: answers[name][i] for name in names}
        # answers that are alike leave nothing to judge; a record cannot hold an empty one
        different = {text.strip() for text in texts.values()}
        if len(different) < 2:
            alike += 1
        elif "" in different:
            empty += 1
        else:
            matches.append(_match(i, task, texts))
    # nothing is left out in silence
    left_out = f"{alike} of {n} questions left out: answered alike"
    if empty:
        left_out += f"; {empty} more: one answer is empty, and the other wins without a vote"
    print(f"{len(matches)} matches; {left_out}.")
    if not matches:
        print("Nothing to compare: ask other questions, or sample at a higher temperature.")
        return []
    return read_records(write_records(records_path, matches))


def _match(number: int, task: Task, texts: Mapping[str, str]) -> PreferenceRecord:
    order = list(texts)
    # the place of an answer follows from the texts alone, so it does not tell the model
    if is_first_shown_second(*texts.values()):
        order.reverse()
    return PreferenceRecord(
        id=str(number),
        images=[os.path.abspath(image) for image in task.images],
        prompt=list(task.turns),
        answers=[Answer(text=texts[name], model=name) for name in order],
        # what is known of the question goes on to the next round; nobody who votes sees it
        truth=list(task.facts) if isinstance(task.facts, tuple) else task.facts,
        truth_kind=task.kind,
        group=task.group or None,
    )


def models_of(records: Iterable[PreferenceRecord]) -> tuple[str, str]:
    """The two models of all records, in alphabetical order. Raises UsageError for others."""
    names = ()
    for record in records:
        models = [answer.model for answer in record.answers]
        found = tuple(sorted(model or "" for model in models))
        names = names or found
        if found != names or len(found) != 2 or not all(found) or found[0] == found[1]:
            raise UsageError(
                f"record {record.id!r} has answers of {models}. An arena needs one of each of the "
                "same two models: make the records with evaluation.build_matches."
            )
    return names


@dataclass(frozen=True)
class Standings:
    """What the votes say so far; counts are of questions, by the consensus of who judged them."""

    names: tuple[str, str]
    wins: tuple[int, int]
    ties: int
    both_bad: int  # a draw that more than half of the voters called bad
    skipped: int  # by all who saw it
    unjudged: int
    # ties and both bad count one half; None before the first
    win_rates: tuple[Proportion, Proportion] | None
    p: float  # exact sign test on the questions with a winner
    # share of single votes for a winner that chose what was shown as A
    first_shown_share: Proportion | None
    # more questions with a winner, to tell a win rate `difference` off one half
    still_needed: int
    difference: float
    not_blind: int  # single votes given after their annotator had seen the names

    def sentence(self) -> str:
        """Who is better, if that can be said."""
        first, second = self.wins
        test = f"of {first + second} questions with a winner (exact sign test, p = {self.p:.2g})"
        if self.p >= SIGNIFICANCE_LEVEL:
            return (
                f"No difference can be claimed: {self.names[0]} won {first} and "
                f"{self.names[1]} won {second} {test}."
            )
        better = self.names[1] if second > first else self.names[0]
        return f"{better} is better: it won {max(self.wins)} {test}."

    def remarks(self) -> list[str]:
        """List the caveats of this result, one line each."""
        lines = [
            f"Ties {self.ties}, both bad {self.both_bad}, skipped {self.skipped}, "
            f"not judged yet {self.unjudged}."
        ]
        # an interval without ½ in it: the place of an answer moved the votes
        first = self.first_shown_share
        if first:
            verdict = "the position mattered; it is drawn for each question"
            if first.low <= 0.5 <= first.high:
                verdict = "no sign of a position bias"
            lines.append(f"Share of votes for what was shown as A: {first} ({verdict}).")
        if self.still_needed:
            lines.append(
                f"About {self.still_needed} more questions with a winner to tell "
                f"{0.5 + self.difference:.0%} from 50% with 80% power."
            )
        if self.p < SIGNIFICANCE_LEVEL:
            lines.append("The p holds if the number of votes was settled before looking at it.")
        if self.not_blind:
            lines.append(
                f"Votes given after their voter had seen the names, so not blind: {self.not_blind}."
            )
        return lines

    def __str__(self) -> str:
        lines = [self.sentence()]
        for name, rate in zip(self.names, self.win_rates or (), strict=False):
            lines.append(f"{name}: win rate {rate}")
        return "\n".join(lines + self.remarks())


def standings(
    records: Sequence[PreferenceRecord],
    vote_path: Path,
    difference: float = 0.1,
) -> Standings:
    """Count the votes of the file `vote_path` on `records`.

    difference: the distance of a win rate from one half for which `still_needed` is worked out.
    Raises UsageError for records of other models, votes on other records, or no vote at all.
    """
    names = models_of(records)
    by_key = records_by_key(records)
    events = _events(by_key, vote_path)
    judgements = current_judgements(events)
    won, others = _count_outcomes(by_key, judgements)
    first, second = (won[name] for name in names)
    # a draw is half a win for either
    draws = others["tie"] + others["both bad"]
    rates = None
    if first + second + draws:
        rates = win_rate(first, second, draws), win_rate(second, first, draws)
    return Standings(
        names,
        (first, second),
        others["tie"],
        others["both bad"],
        others["skipped"],
        others["unjudged"],
        rates,
        binomial_p(first, first + second, 0.5) if first + second else 1.0,
        _first_shown_share(judgements.values()),
        max(0, votes_needed(difference) - first - second),
        difference,
        _count_unblinded(events, read_reveals(vote_path)),
    )


def _events(by_key: Mapping[str, PreferenceRecord], path: Path) -> list[VoteEvent]:
    events, notice = events_on(path, content_hashes(by_key, path))
    if not events:
        raise UsageError(
            f"{path}: no vote on any of these {len(by_key)} records. "
            "Give the votes on these, or vote."
        )
    if notice:
        print(notice)
    return events


def _count_outcomes(
    by_key: Mapping[str, PreferenceRecord], judgements: Mapping[tuple[str, str], Judgement]
) -> tuple[Counter[str], Counter[str]]:
    """Questions by the model that won them, and those without a winner by their outcome."""
    # one consensus a question, however many people judged it
    votes = {key: [] for key in by_key}
    for (key, _), judgement in judgements.items():
        votes[key].append(judgement)
    won = Counter()
    others = Counter()
    for key, record in by_key.items():
        outcome = match_outcome(votes[key])
        if isinstance(outcome, int):
            won[record.answers[outcome].model] += 1
        else:
            others[outcome] += 1
    return won, others


def match_outcome(votes: Sequence[Judgement]) -> MatchOutcome:
    """Combine the annotators' votes on one question with two answers."""
    ranking = consensus(votes, 2)
    if ranking is None:
        return "skipped" if votes else "unjudged"
    if len(ranking) == 2:
        return ranking[0][0]
    # no winner: was it a tie of good answers or of bad ones?
    bad = [vote.verdict == "all bad" for vote in votes if vote.verdict != "skip"]
    return "both bad" if 2 * sum(bad) > len(bad) else "tie"


def _first_shown_share(votes: Iterable[Judgement]) -> Proportion | None:
    """Share of votes for the answer shown first; each annotator has an order of their own."""
    ranked = [vote for vote in votes if vote.verdict == "ranked" and vote.order]
    return share_of(vote.ranking[0][0] == vote.order[0] for vote in ranked)


def _reveal_path(vote_path: Path) -> Path:
    return vote_path.with_suffix(".revealed.json")


def read_reveals(vote_path: Path) -> dict[str, int]:
    """Read who has seen the names: annotator → number of their events before that."""
    path = _reveal_path(vote_path)
    seen = read_json(path) if path.exists() else {}
    if not isinstance(seen, dict) or not all(type(number) is int for number in seen.values()):
        raise UsageError(
            f"{path}: must map annotators to numbers of votes. "
            "Restore it, or remove it if nobody looked."
        )
    return seen


def reveal(votes: Votes) -> None:
    """Note beside the vote file that this annotator has seen the names; the first time counts."""
    with lock_file(votes.path):
        events, _ = events_on(votes.path, content_hashes(votes.records, votes.path))
        own = sum(event.annotator == votes.annotator for event in events)
        write_json(_reveal_path(votes.path), {votes.annotator: own} | read_reveals(votes.path))


def _count_unblinded(events: Sequence[VoteEvent], seen: Mapping[str, int]) -> int:
    """Count the valid votes that were given after the annotator had seen the names."""
    given = Counter()
    blind = []
    for event in events:
        given[event.annotator] += 1
        if given[event.annotator] <= seen.get(event.annotator, len(events)):
            blind.append(event)
    # a vote that was changed after the reveal is no blind one
    before = current_judgements(blind)
    return sum(before.get(key) is not vote for key, vote in current_judgements(events).items())


def export_records(
    records: Sequence[PreferenceRecord], vote_path: Path, target: Path
) -> list[PreferenceRecord]:
    """Write the judged records with their votes and rankings, the pairs of a next round.

    Records nobody has judged, or all have skipped, are left out. Raises UsageError for a `target`
    that is one of the sources, and if nothing is judged.
    """
    # writing over a source would destroy what is exported
    sources = {vote_path, *(record.file for record in records if record.file)}
    if target.resolve() in {path.resolve() for path in sources}:
        raise UsageError(
            f"{target} holds the records or the votes themselves. Export to another file."
        )
    judged = [record for record in apply_votes(records, vote_path) if record.ranking is not None]
    if not judged:
        raise UsageError(
            f"{vote_path}: all votes are skips or taken back, so there is nothing to export. "
            "Vote first."
        )
    write_records(target, judged)
    return judged
