"""From counted images to preference records: where the rejected answers come from, and what they leak.

The chosen answer states the true counts. A rejected answer is one of

* `own`: a wrong answer that the model itself sampled. It shows the model its own mistakes, but if
  all of these are under-counts, "say more" is learnt instead of "look".
* `edit`: the truth with one count moved one step, up as often as down.
* `other image`: the counts of another image. Over the whole set these are distributed like the
  truth, so no rule that does not look at the image can tell them apart.

A pair that can be told apart without the image teaches a blind rule. `blind_rules` measures how far
such rules get; the figure belongs beside every data set.
"""

import os
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from peft import PeftModel
from transformers import PreTrainedModel, ProcessorMixin

from helpers.counting import count_answer, count_question, edited_counts, is_exact, is_well_formed, parse_counts
from helpers.formats import CountedImage
from helpers.models import generate_answers
from helpers.preferences import Answer, PreferenceRecord
from helpers.statistics import Proportion, proportion

NEGATIVES = ("own", "edit", "other image")


def question_for(item: CountedImage, number: int) -> str:
    """The counting question about the `number`-th image of a split: the two wordings take turns."""
    return count_question(list(item.counts), number)


def highest_counts(items: Sequence[CountedImage]) -> dict[str, int]:
    """The largest count of each class that occurs (at least 1, so that every count can be edited)."""
    return {cls: max(1, *(item.counts[cls] for item in items)) for cls in items[0].counts}


def sample_own_answers(
    model: PreTrainedModel | PeftModel,
    processor: ProcessorMixin,
    items: Sequence[CountedImage],
    number: int = 4,
    temperature: float = 1.0,
    seed: int = 0,
) -> list[list[str]]:
    """`number` sampled answers to the counting question about each item: (items, number)."""
    images = [item.path for item in items]
    questions = [question_for(item, i) for i, item in enumerate(items)]
    columns = [
        generate_answers(
            model, processor, images, questions,
            temperature=temperature, seed=seed + i, max_new_tokens=answer_budget(processor, items),
            description=f"sampling answer {i + 1} of {number}",
        )
        for i in range(number)
    ]  # fmt: skip
    return [list(answers) for answers in zip(*columns, strict=True)]


def answer_budget(processor: ProcessorMixin, items: Sequence[CountedImage]) -> int:
    """Tokens to allow for an answer: the longest true answer and half as much again."""
    longest = max(len(processor.tokenizer(count_answer(item.counts))["input_ids"]) for item in items)
    return longest + longest // 2 + 2


def build_records(
    items: Sequence[CountedImage],
    root: Path,
    own_answers: Sequence[Sequence[str]],
    negatives: Sequence[str] = ("own", "other image"),
    seed: int = 0,
) -> list[PreferenceRecord]:
    """One record an image: the true answer and one rejected answer of each kind in `negatives`.

    own_answers: N sampled answers for each item. An item whose samples are all correct has no `own`
    answer, and no record if that was the only kind (the number of these is printed). Image paths are
    relative to `root`.
    """
    unknown = set(negatives) - set(NEGATIVES)
    if unknown:
        raise ValueError(f"unknown kinds of negatives {sorted(unknown)}: choose from {NEGATIVES}")
    rng = np.random.default_rng(seed)
    highest = highest_counts(items)
    records = []
    for number, item in enumerate(items):
        texts = {"truth": count_answer(item.counts)}
        if "own" in negatives:
            wrong = _wrong_answer(own_answers[number], item)
            if wrong:
                texts["own"] = wrong
        if "edit" in negatives:
            texts["edit"] = count_answer(edited_counts(item.counts, highest, rng))
        if "other image" in negatives:
            texts["other image"] = count_answer(_other_counts(items, item, rng))
        if len(set(texts.values())) > 1:
            records.append(_record(item, number, root, texts, rng))
    if len(records) < len(items):
        print(f"{len(items) - len(records)} of {len(items)} images give no pair: every sampled answer is right.")
    return records


def _wrong_answer(answers: Sequence[str], item: CountedImage) -> str | None:
    """The first wrong answer, one that has the right form if there is one."""
    wrong = [a for a in answers if a.strip() and not is_exact(a, item.counts)]
    return next((a for a in wrong if is_well_formed(a, list(item.counts))), wrong[0] if wrong else None)


def _other_counts(items: Sequence[CountedImage], item: CountedImage, rng: np.random.Generator) -> dict[str, int]:
    different = [other.counts for other in items if other.counts != item.counts]
    if not different:
        raise ValueError("all images have the same counts, so no count of another image is wrong")
    return different[int(rng.integers(len(different)))]


def _record(
    item: CountedImage, number: int, root: Path, texts: dict[str, str], rng: np.random.Generator
) -> PreferenceRecord:
    """Answers in a random order, equal texts once: the position of the true answer says nothing."""
    distinct = {text: origin for origin, text in reversed(texts.items())}  # "truth" wins, then "own"
    order = [list(distinct)[i] for i in rng.permutation(len(distinct))]
    best = order.index(texts["truth"])
    return PreferenceRecord(
        id=f"{item.path.parent.parent.name}-{item.path.stem}",
        images=[Path(os.path.relpath(item.path, root)).as_posix()],
        prompt=[{"role": "user", "content": question_for(item, number)}],
        answers=[Answer(text=text, origin=distinct[text]) for text in order],
        ranking=[[best], [i for i in range(len(order)) if i != best]],
        truth=item.counts,
        group=item.group,
    )


def blind_rules(records: Sequence[PreferenceRecord]) -> dict[str, dict[str, Proportion]]:
    """How often rules that never see the image pick the chosen answer, by kind of rejected answer.

    .5 is no leak; 1 means that the pairs teach nothing about images. A pair that a rule cannot
    decide counts as a coin toss (the interval then treats it as half a hit).
    """
    classes = list(records[0].truth or {})
    rules: dict[str, Callable[[Answer], float]] = {
        "smaller total": lambda answer: -sum(_stated(answer, classes)),
        "larger total": lambda answer: sum(_stated(answer, classes)),
        "more zeros": lambda answer: _stated(answer, classes).count(0),
        "shorter": lambda answer: -len(answer.text),
        "longer": lambda answer: len(answer.text),
    }
    pairs = [pair for record in records for pair in record.pairs()]
    origins = dict.fromkeys(str(pair.rejected.origin) for pair in pairs)
    kinds = {"all": pairs} | {origin: [p for p in pairs if str(p.rejected.origin) == origin] for origin in origins}
    return {
        kind: {
            name: proportion(sum(_wins(rule(p.chosen), rule(p.rejected)) for p in members), len(members))
            for name, rule in rules.items()
        }
        for kind, members in kinds.items()
    }


def _wins(chosen: float, rejected: float) -> float:
    return 0.5 if chosen == rejected else float(chosen > rejected)


def _stated(answer: Answer, classes: Sequence[str]) -> list[int]:
    """The counts that an answer states; none if it cannot be parsed."""
    return list((parse_counts(answer.text, classes) or {}).values())
