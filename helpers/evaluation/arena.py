"""A blind arena: two models' answers to the same questions, judged without names, and what the votes say.

`matches` makes the records, `widgets.Arena` shows them, `standings` counts. A question is one item, however
many people judged it: their consensus decides. Pairwise human votes on anonymous answers are those of
Chatbot Arena (Chiang et al. 2024, arXiv 2403.04132).

Simplified: questions are taken as independent (several about one photo are not quite), and p holds if the
number of votes was settled beforehand, not if voting stops once p is small.
"""

import os
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from pydantic import ValidationError

from helpers.data import (
    Answer,
    Judgement,
    PreferenceRecord,
    VoteEvent,
    Votes,
    apply_votes,
    consensus,
    content_hashes,
    current_judgements,
    events_on,
    explain_validation_error,
    is_first_shown_second,
    lock_file,
    read_records,
    records_by_key,
    write_records,
)
from helpers.files import UsageError, read_json, write_json
from helpers.statistics import Proportion, binomial_p, proportion, votes_needed, win_rate

MatchOutcome = (
    int | Literal["tie", "both bad", "skipped", "unjudged"]
)  # a number: place of the answer that won


def build_matches(
    paths: Sequence[Path],
    prompts: Sequence[str],
    answers: Mapping[str, Sequence[str]],
    names: tuple[str, str],
    groups: Sequence[str] | None = None,
    *,
    records_path: Path,
) -> list[PreferenceRecord]:
    """One record a question with the answers of the two models `names`, written to `records_path`.

    answers: model → its answer to each question. A question is (paths[i], prompts[i]); its record has the id
    str(i). Questions that both answer alike are left out, and their number is printed: a difference found
    in an arena is one among different answers. Raises UsageError for lengths that do not fit, an unknown
    model, an empty answer, or nothing to compare.
    """
    columns = {
        "prompts": prompts,
        **({"groups": groups} if groups is not None else {}),
        **_answers_of_two(answers, names),
    }
    for what, column in columns.items():
        if len(column) != len(paths):
            raise UsageError(f"{len(column)} {what} for {len(paths)} images. Give one for each.")
    differ = [
        i for i in range(len(paths)) if len({answers[name][i].strip() for name in names}) == 2
    ]
    if not differ:
        raise UsageError(
            f"{names[0]} and {names[1]} answer all {len(paths)} questions alike: nothing to compare."
        )
    print(
        f"{len(differ)} matches; {len(paths) - len(differ)} of {len(paths)} questions left out: answered alike."
    )
    records = []
    for i in differ:
        texts = {name: answers[name][i] for name in names}
        records.append(
            _match(i, os.path.abspath(paths[i]), prompts[i], texts, groups and groups[i])
        )
    return read_records(write_records(records_path, records))


def _answers_of_two(
    answers: Mapping[str, Sequence[str]], names: tuple[str, str]
) -> dict[str, Sequence[str]]:
    if len(set(names)) != 2 or not set(names) <= set(answers):
        raise UsageError(
            f"names {names}: name two of the models that answered, which are {', '.join(answers)}."
        )
    return {f"answers of {name}": answers[name] for name in names}


def _match(
    number: int, image: str, prompt: str, texts: Mapping[str, str], group: str | None
) -> PreferenceRecord:
    """The place of an answer follows from the texts alone, so it does not tell the model."""
    order = list(texts)[::-1] if is_first_shown_second(*texts.values()) else list(texts)
    try:
        pair = [Answer(text=texts[name], model=name) for name in order]
        return PreferenceRecord(
            id=str(number), images=[image], prompt=prompt, answers=pair, group=group
        )
    except ValidationError as error:
        raise UsageError(
            f"question {number} ({image}): {explain_validation_error(error)}. Answer it again, or leave it out."
        ) from None


def models_of(records: Iterable[PreferenceRecord]) -> tuple[str, str]:
    """The two models of all records, in alphabetical order. Raises UsageError if there are others."""
    names: tuple[str, ...] = ()
    for record in records:
        found = tuple(sorted(answer.model or "" for answer in record.answers))
        names = names or found
        if found != names or len(set(found)) != 2 or len(found) != 2 or not all(found):
            raise UsageError(
                f"record {record.id!r} has answers of {[answer.model for answer in record.answers]}. An arena needs "
                "one of each of the same two models: make the records with evaluation.matches."
            )
    return names


@dataclass(frozen=True)
class Standings:
    """What the votes say so far; counts are of questions, by the consensus of those who judged them."""

    names: tuple[str, str]
    wins: tuple[int, int]
    ties: int
    both_bad: int  # a draw that more than half of the voters called bad
    skipped: int  # by all who saw it
    unjudged: int
    win_rates: (
        tuple[Proportion, Proportion] | None
    )  # ties and both bad count one half; None before the first
    p: float  # exact sign test on the questions with a winner
    first_shown_share: (
        Proportion | None
    )  # share of single votes for a winner that chose what was shown as A
    still_needed: int  # more questions with a winner, to tell a win rate `difference` off one half
    difference: float
    not_blind: int  # single votes given after their annotator had seen the names

    def sentence(self) -> str:
        """Who is better, if that can be said."""
        decided = sum(self.wins)
        test = f"of {decided} questions with a winner (exact sign test, p = {self.p:.2g})"
        if self.p >= 0.05:
            return f"No difference can be claimed: {self._count_text()} {test}."
        better = self.wins[1] > self.wins[0]
        return f"{self.names[better]} is better: it won {self.wins[better]} {test}."

    def _count_text(self) -> str:
        return " and ".join(
            f"{name} won {wins}" for name, wins in zip(self.names, self.wins, strict=True)
        )

    def remarks(self) -> list[str]:
        """List the caveats of this result, one line each."""
        lines = [
            f"Ties {self.ties}, both bad {self.both_bad}, skipped {self.skipped}, not judged yet {self.unjudged}."
        ]
        if self.first_shown_share:
            even = self.first_shown_share.low <= 0.5 <= self.first_shown_share.high
            verdict = (
                "no sign of a position bias"
                if even
                else "the position mattered; it is drawn for each question"
            )
            lines.append(
                f"Share of votes for what was shown as A: {self.first_shown_share} ({verdict})."
            )
        aim = f"to tell {0.5 + self.difference:.0%} from 50% with 80% power"
        lines.append(
            f"About {self.still_needed} more questions with a winner {aim}."
            if self.still_needed
            else ""
        )
        if self.p < 0.05:
            lines.append("The p holds if the number of votes was settled before looking at it.")
        if self.not_blind:
            lines.append(
                f"Votes given after their voter had seen the names, so not blind: {self.not_blind}."
            )
        return [line for line in lines if line]

    def __str__(self) -> str:
        rates = [
            f"{name}: win rate {rate}"
            for name, rate in zip(self.names, self.win_rates or (), strict=False)
        ]
        return "\n".join([self.sentence(), *rates, *self.remarks()])


def standings(
    records: Sequence[PreferenceRecord],
    vote_path: Path,
    names: tuple[str, str] | None = None,
    difference: float = 0.1,
) -> Standings:
    """Count the votes of the file `vote_path` on `records`; `names` puts the models in another order.

    difference: the distance of a win rate from one half for which `still_needed` is worked out. Raises
    UsageError for records of other models, votes on other records, or no vote at all.
    """
    names = _order_names(models_of(records), names)
    by_key = records_by_key(records)
    events = _events(by_key, vote_path)
    votes: dict[str, list[Judgement]] = {key: [] for key in by_key}
    for (key, _), judgement in current_judgements(events).items():
        votes[key].append(judgement)
    outcomes = Counter(
        _name_winner(record, match_outcome(votes[key])) for key, record in by_key.items()
    )
    wins = tuple(outcomes["won", name] for name in names)
    draws = outcomes["tie"] + outcomes["both bad"]
    return Standings(
        names, wins, outcomes["tie"], outcomes["both bad"], outcomes["skipped"], outcomes["unjudged"],
        win_rates=(win_rate(*wins, draws), win_rate(*wins[::-1], draws)) if sum(wins) + draws else None,
        p=binomial_p(wins[0], sum(wins), 0.5) if sum(wins) else 1.0,
        first_shown_share=_shown_first_share([vote for of_one in votes.values() for vote in of_one]),
        still_needed=max(0, votes_needed(difference) - sum(wins)), difference=difference,
        not_blind=_count_unblinded(events, read_reveals(vote_path)),
    )  # fmt: skip


def _order_names(found: tuple[str, str], names: tuple[str, str] | None) -> tuple[str, str]:
    if names is not None and tuple(sorted(names)) != found:
        raise UsageError(f"names {names}: the records have answers of {found[0]} and {found[1]}.")
    return names or found


def _events(by_key: Mapping[str, PreferenceRecord], path: Path) -> list[VoteEvent]:
    events, notice = events_on(path, content_hashes(by_key, path))
    if not events:
        raise UsageError(
            f"{path}: no vote on any of these {len(by_key)} records. Give the votes on these, or vote."
        )
    if notice:
        print(notice)
    return events


def match_outcome(votes: Sequence[Judgement]) -> MatchOutcome:
    """Combine the annotators' votes on one question with two answers."""
    ranking = consensus(votes, 2)
    if ranking is None:
        return "skipped" if votes else "unjudged"
    if len(ranking) == 2:
        return ranking[0][0]
    judged = [vote for vote in votes if vote.verdict != "skip"]
    bad = sum(vote.verdict == "all bad" for vote in judged)
    return "both bad" if 2 * bad > len(judged) else "tie"


def _name_winner(record: PreferenceRecord, result: MatchOutcome) -> object:
    return ("won", record.answers[result].model) if isinstance(result, int) else result


def _shown_first_share(votes: Sequence[Judgement]) -> Proportion | None:
    """Share of votes for the answer that was shown first; each annotator has an order of their own."""
    chosen = [
        vote.ranking[0][0] == vote.order[0]
        for vote in votes
        if vote.verdict == "ranked" and vote.order
    ]
    return proportion(sum(chosen), len(chosen)) if chosen else None


def _reveal_path(vote_path: Path) -> Path:
    return vote_path.with_suffix(".revealed.json")


def read_reveals(vote_path: Path) -> dict[str, int]:
    """Read who has seen the names: annotator → number of their events before that."""
    path = _reveal_path(vote_path)
    seen = read_json(path) if path.exists() else {}
    if not isinstance(seen, dict) or not all(type(number) is int for number in seen.values()):
        raise UsageError(
            f"{path}: must map annotators to numbers of votes. Restore it, or remove it if nobody looked."
        )
    return seen


def reveal(votes: Votes) -> None:
    """Note beside the vote file that this annotator has seen the names; the first time counts."""
    with lock_file(votes.path):
        contents = content_hashes(votes.records, votes.path)
        own = [
            event
            for event in events_on(votes.path, contents)[0]
            if event.annotator == votes.annotator
        ]
        write_json(_reveal_path(votes.path), {votes.annotator: len(own)} | read_reveals(votes.path))


def _count_unblinded(events: Sequence[VoteEvent], seen: Mapping[str, int]) -> int:
    """Count the valid votes that were given after the annotator had seen the names."""
    number: Counter[str] = Counter()
    blind = []
    for event in events:
        number[event.annotator] += 1
        if number[event.annotator] <= seen.get(event.annotator, len(events)):
            blind.append(event)
    before = current_judgements(blind)
    return sum(
        before.get(key) is not judgement for key, judgement in current_judgements(events).items()
    )


def export_records(
    records: Sequence[PreferenceRecord], vote_path: Path, target: Path
) -> list[PreferenceRecord]:
    """Write the judged records with their votes and rankings to `target`, the pairs of a next round.

    Records nobody has judged, or all have skipped, are left out. Raises UsageError
    for a target that is one of the sources, and if nothing is judged.
    """
    sources = {vote_path, *(record.file for record in records if record.file)}
    if target.resolve() in {path.resolve() for path in sources}:
        raise UsageError(
            f"{target} holds the records or the votes themselves. Export to another file."
        )
    judged = [record for record in apply_votes(records, vote_path) if record.ranking is not None]
    if not judged:
        raise UsageError(
            f"{vote_path}: all votes are skips or taken back, so there is nothing to export. Vote first."
        )
    write_records(target, judged)
    return judged
