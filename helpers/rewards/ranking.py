"""Answers of a model, ranked by a scorer, a reward model, a judge or people: preference records.

Any `Ranker` will do (`helpers/rewards/rankers.py`). With a judge this is AI feedback (RLAIF; of
vision-language models, RLAIF-V: Yu et al. 2024, arXiv 2405.17220): what it said stands in the
records as an annotator's verdict of the kind "model".
"""

import os
from collections.abc import Sequence
from pathlib import Path

from transformers import ProcessorMixin

from helpers.data import (
    Answer,
    CountedImage,
    Facts,
    PreferenceRecord,
    Ranking,
    Task,
    TruthKind,
    ask,
    counting_tasks,
    plain_kind,
    seen_text,
    tasks_of,
)
from helpers.files import UsageError
from helpers.models import VLM, SampledAnswer, sample_task_answers

from .rankers import RankedAnswers, Ranker, as_ranker, judgement_of
from .reward_model import RewardModel
from .scoring import Scorer
from .truths import token_budget

# What orders answers; None leaves that to people
RankedBy = Ranker | Scorer | RewardModel | None


def rank(
    images: Path | str | Sequence[Path | str],
    question: str,
    answers: Sequence[str | SampledAnswer],
    ranker: RankedBy,
    facts: Facts = None,
    kind: TruthKind | None = None,
) -> PreferenceRecord:
    """Rank answers to one question about an image, or about several, as `rank_samples` does.

    facts: what is true, for scorers that compare with it; kind: how they do (`TruthKind`). Raises
    UsageError if there are not two different answers.
    """
    shown = [images] if isinstance(images, Path | str) else images
    task = ask(question, list(map(Path, shown)), facts, kind or plain_kind(facts))
    texts = distinct_answers(answers)
    if len(texts) < 2:
        raise UsageError(
            f"{question!r}: {len(texts)} different answers are no ranking. Give two or more."
        )
    return _ranked([task], [texts], _ranker(ranker))[0]


def rank_samples(
    tasks: Sequence[Task] | Sequence[CountedImage],
    answers: Sequence[Sequence[str | SampledAnswer]],
    ranker: RankedBy,
) -> list[PreferenceRecord]:
    """Rank the answers to each task, which come with its images; equal ones together.

    tasks: or counted images, each with the counting question. ranker: a scorer, a reward model or a
    judge; None leaves the ranking to people (`widgets.AnswerRanker`). Gives one record a task:
    answers in the order sampled, equal texts once. An answer that was cut off has no score and
    comes last, together with all others of its kind: no answer is better for having been stopped. A
    task whose answers are all alike gives no record, since there is nothing to rank (the number of
    these is printed); one whose answers are all as good gives a tie, and so no pair; one about
    which a judge abstains has no ranking.
    """
    asked = _as_tasks(tasks)
    # an answer that came twice is no preference over itself
    distinct = [distinct_answers(texts) for texts in answers]
    if len(asked) != len(distinct):
        raise UsageError(
            f"{len(distinct)} lists of answers do not belong to {len(asked)} questions. Give one "
            "list for each."
        )
    kept = [place for place, texts in enumerate(distinct) if len(texts) > 1]
    records = _ranked([asked[i] for i in kept], [distinct[i] for i in kept], _ranker(ranker))
    _say_what_is_missing(len(asked), records)
    return records


def rank_again(records: Sequence[PreferenceRecord], ranker: RankedBy) -> list[PreferenceRecord]:
    """Rank the answers of records by another ranker, in place of the ranking that they have."""
    answers = []
    for record in records:
        answers.append([SampledAnswer(one.text, not one.cut_off) for one in record.answers])
    ranked = []
    fresh = _ranked(tasks_of(records), answers, _ranker(ranker))
    for record, new in zip(records, fresh, strict=True):
        # what was known of an answer stays, but for its score
        known = [
            old.model_copy(update={"score": one.score, "scores": one.scores})
            for old, one in zip(record.answers, new.answers, strict=True)
        ]
        # a judge's earlier verdict is replaced
        names = {judgement.annotator for judgement in new.judgements}
        others = [old for old in record.judgements if old.annotator not in names]
        update = {
            "answers": known,
            "ranking": new.ranking,
            "judgements": others + new.judgements,
        }
        ranked.append(record.model_copy(update=update))
    return ranked


def _ranker(ranker: RankedBy) -> Ranker | None:
    return None if ranker is None else as_ranker(ranker)


def _as_tasks(tasks: Sequence[Task] | Sequence[CountedImage]) -> list[Task]:
    if tasks and isinstance(tasks[0], CountedImage):
        return counting_tasks(tasks)
    return list(tasks)


def distinct_answers(answers: Sequence[str | SampledAnswer]) -> list[SampledAnswer]:
    """The answers in their order, each text once and none without a word.

    Texts are one that a reader cannot tell apart. One came to its end if any of the same text did;
    of a text alone that is taken for granted.
    """
    texts: dict[str, str] = {}  # as it is seen → as it was first written
    ended: dict[str, bool] = {}
    for answer in answers:
        text, whole = (answer, True) if isinstance(answer, str) else answer
        seen = seen_text(text)
        if seen:
            texts.setdefault(seen, text)
            ended[seen] = ended.get(seen, False) or whole
    return [SampledAnswer(text, ended[seen]) for seen, text in texts.items()]


def _ranked(
    tasks: Sequence[Task],
    answers: Sequence[Sequence[SampledAnswer]],
    ranker: Ranker | None,
) -> list[PreferenceRecord]:
    """One record a task, all ranked together."""
    # without a ranker people say which is better
    texts = []
    for several in answers:
        texts.append([answer.text for answer in several])
    found = ranker.rank(tasks, texts) if ranker else [RankedAnswers(None)] * len(tasks)
    records = []
    for task, several, ranked in zip(tasks, answers, found, strict=True):
        made = _scored(several, ranked)
        ranking = put_cut_off_last(ranked.ranking, [answer.ended for answer in several])
        record = _record_of(task, made, ranking)
        if ranker is not None and ranker.annotates:
            record = record.model_copy(update={"judgements": [judgement_of(ranker, ranked)]})
        records.append(record)
    return records


def _scored(answers: Sequence[SampledAnswer], ranked: RankedAnswers) -> list[Answer]:
    """The answers with their scores, from which margins of pairs come, if they have some."""
    made = []
    for place, answer in enumerate(answers):
        found = Answer(text=answer.text, origin="own", cut_off=not answer.ended)
        if ranked.scores:
            score = ranked.scores[place]
            # its parts are kept to look at, but nothing is ranked by what was cut off
            total = score.total if answer.ended else None
            found = found.model_copy(update={"score": total, "scores": score.parts})
        made.append(found)
    return made


def put_cut_off_last(ranking: Ranking | None, ended: Sequence[bool]) -> Ranking | None:
    """The ranking with the answers that were cut off behind all others, as equals.

    ended: of each answer, whether it came to its end.
    """
    cut_off = [place for place, whole in enumerate(ended) if not whole]
    if ranking is None or not cut_off:
        return ranking
    # the others keep their order
    tiers = []
    for tier in ranking:
        whole = [place for place in tier if place not in cut_off]
        if whole:
            tiers.append(whole)
    return [*tiers, cut_off]


def _record_of(task: Task, answers: list[Answer], ranking: Ranking | None) -> PreferenceRecord:
    """The record of a task. A kind that follows from the truth's form is not written down."""
    return PreferenceRecord(
        id=task.id,
        images=[os.path.abspath(image) for image in task.images],
        prompt=list(task.turns),
        answers=answers,
        ranking=ranking,
        truth=task.facts,
        truth_kind=None if task.kind == plain_kind(task.facts) else task.kind,
        group=task.group or None,
    )


def _say_what_is_missing(number: int, records: Sequence[PreferenceRecord]) -> None:
    """Nothing is left out in silence."""
    left_out = number - len(records)
    if left_out:
        print(
            f"{left_out} of {number} questions give no record: all their samples are alike, or "
            "empty."
        )
    cut_off = [answer for record in records for answer in record.answers if answer.cut_off]
    if cut_off:
        print(
            f"{len(cut_off)} answers were cut off before their end, and rank below those that were "
            "not. Allow more tokens (max_new_tokens) if they are many."
        )


def sample_and_rank(
    model: VLM,
    processor: ProcessorMixin,
    tasks: Sequence[Task] | Sequence[CountedImage],
    ranker: RankedBy,
    number: int = 4,
    *,
    temperature: float = 1.0,
    seed: int = 0,
    max_new_tokens: int | None = None,
) -> list[PreferenceRecord]:
    """Let the model answer each task `number` times, and rank that (`rank_samples`).

    max_new_tokens: of an answer; None is what the truths need (`token_budget`). Raises UsageError
    before the first answer if a ready scorer cannot use the truth of a task.
    """
    asked = _as_tasks(tasks)
    ranker = _ranker(ranker)
    if ranker is not None:
        # before hours of sampling
        ranker.check(asked)
    answers = sample_task_answers(
        model,
        processor,
        asked,
        number,
        temperature=temperature,
        seed=seed,
        max_new_tokens=max_new_tokens or token_budget(processor, asked),
    )
    return rank_samples(asked, answers, ranker)
