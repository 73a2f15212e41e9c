"""From counted images to preference records: where the worse answers and the worse images come from.

`build_records`: the chosen answer states the true counts, and a rejected answer is one of

* `own`: a wrong answer that the model itself sampled. It shows the model its own mistakes, but if
  all of these are under-counts, "say more" is learnt instead of "look".
* `edit`: the truth with one count moved one step, up as often as down.
* `other image`: the counts of another image. Over the whole set these are distributed like the
  truth, so no rule that does not look at the image can tell them apart.

In `rewards.rank_samples` no answer is written for the model: its own samples are ranked by their scores.

`add_image_negatives`: the other side of a pair, for losses that compare images instead of answers
(mDPO, Wang et al. 2024, arXiv 2406.11839): the same answer is worse with a spoilt image.

What of this can be told apart without looking is measured in `helpers/data/blind.py`. Taught in notebook 02.
"""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageFilter
from tqdm.auto import tqdm

from helpers.files import open_image

from .counting import (
    SINGULAR,
    Counts,
    count_answer,
    count_question,
    edited_counts,
    is_exact,
    is_well_formed,
)
from .labels import CountedImage
from .preferences import Answer, PreferenceRecord, Ranking

NEGATIVES = ("own", "edit", "other image")
IMAGE_NEGATIVES = ("blank", "crop", "shuffled", "blurred")


def question_for(item: CountedImage, number: int) -> str:
    """The counting question about the `number`-th image of a split: the two wordings take turns."""
    return count_question(list(item.counts), number)


def one_class_question(counts: Counts, number: int) -> tuple[str, str]:
    """Ask for the count of one class, and give the true answer; the item's number chooses the class."""
    name = list(counts)[number % len(counts)]
    return f"How many {name} are there?", f"There are {counts[name]} {name}."


def presence_question(counts: Counts, number: int) -> tuple[str, str]:
    """Ask whether there is one of a class, and give the true answer, one word.

    The item's number chooses the class. Only the classes of the scenes are put into the singular.
    """
    name = list(counts)[number % len(counts)]
    return f"Is there a {SINGULAR.get(name, name)} in the image?", "Yes." if counts[name] else "No."


def highest_counts(truths: Sequence[Counts]) -> dict[str, int]:
    """The largest count of each class that occurs (at least 1, so that every count can be edited)."""
    return {cls: max(1, *(truth[cls] for truth in truths)) for cls in truths[0]}


class CountingQuestions(NamedTuple):
    """The counting question about each of some images; all lists are in the order of the images."""

    questions: list[str]
    images: list[Path]
    answers: list[str]  # the true ones


def counting_questions(items: Sequence[CountedImage]) -> CountingQuestions:
    """The counting question about each item, its image and its true answer."""
    questions = [question_for(item, number) for number, item in enumerate(items)]
    return CountingQuestions(
        questions, [item.path for item in items], [count_answer(item.counts) for item in items]
    )


def as_counted_images(records: Sequence[PreferenceRecord]) -> list[CountedImage]:
    """The first images of records, with their true counts."""
    return [CountedImage(record.image_paths[0], record.truth, record.group) for record in records]


def true_and_wrong_answers(truths: Sequence[Counts], seed: int = 0) -> list[list[str]]:
    """For each truth four answers: the true one twice, one with a count edited, and the counts of another image.

    A critic learns from them what a mistake looks like, also one that the policy does not make yet: first
    from the last kind, which is easy to tell, then from the one before.
    """
    rng = np.random.default_rng(seed)
    highest, others = highest_counts(truths), _OtherCounts(truths)
    rows = [
        (truth, truth, edited_counts(truth, highest, rng), others.draw(truth, rng))
        for truth in truths
    ]
    return [[count_answer(counts) for counts in row] for row in rows]


def build_records(
    items: Sequence[CountedImage],
    own_answers: Sequence[Sequence[str]],
    negatives: Sequence[str] = ("own", "other image"),
    seed: int = 0,
) -> list[PreferenceRecord]:
    """One record an image: the true answer and one rejected answer of each kind in `negatives`.

    own_answers: N sampled answers for each item. An item whose samples are all correct has no `own`
    answer, and no record if that was the only kind (the number of these is printed).
    """
    unknown = set(negatives) - set(NEGATIVES)
    if unknown:
        raise ValueError(f"unknown kinds of negatives {sorted(unknown)}: choose from {NEGATIVES}")
    rng = np.random.default_rng(seed)
    truths = [item.counts for item in items]
    highest, others = highest_counts(truths), _OtherCounts(truths)
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
            texts["other image"] = count_answer(others.draw(item.counts, rng))
        if len(set(texts.values())) > 1:
            records.append(_record(item, number, texts, rng))
    if len(records) < len(items):
        print(
            f"{len(items) - len(records)} of {len(items)} images give no pair: every sampled answer is right."
        )
    return records


def _wrong_answer(answers: Sequence[str], item: CountedImage) -> str | None:
    """The first wrong answer, one that has the right form if there is one."""
    wrong = [a for a in answers if a.strip() and not is_exact(a, item.counts)]
    return next(
        (a for a in wrong if is_well_formed(a, list(item.counts))), wrong[0] if wrong else None
    )


class _OtherCounts:
    """Draws the counts of another image, different from an item's; equal counts share one list."""

    def __init__(self, every: Sequence[Counts]):
        self._all = every
        self._different: dict[tuple[int, ...], list[Counts]] = {}

    def draw(self, counts: Counts, rng: np.random.Generator) -> Counts:
        key = tuple(counts.values())
        if key not in self._different:
            self._different[key] = [other for other in self._all if other != counts]
        if not self._different[key]:
            raise ValueError(
                "all images have the same counts, so no count of another image is wrong"
            )
        return self._different[key][int(rng.integers(len(self._different[key])))]


def _record(
    item: CountedImage, number: int, texts: dict[str, str], rng: np.random.Generator
) -> PreferenceRecord:
    """Answers in a random order, equal texts once: the position of the true answer says nothing."""
    distinct = {
        text: origin for origin, text in reversed(texts.items())
    }  # "truth" wins, then "own"
    order = [list(distinct)[i] for i in rng.permutation(len(distinct))]
    best = order.index(texts["truth"])
    ranking = [[best], [i for i in range(len(order)) if i != best]]
    return record_of_item(
        item, number, [Answer(text=text, origin=distinct[text]) for text in order], ranking
    )


def record_of_item(
    item: CountedImage, number: int, answers: list[Answer], ranking: Ranking | None
) -> PreferenceRecord:
    """The record of the counting question about an image."""
    return PreferenceRecord(
        id=f"{item.path.parent.parent.name}-{item.path.stem}",
        images=[os.path.abspath(item.path)],
        prompt=[{"role": "user", "content": question_for(item, number)}],
        answers=answers,
        ranking=ranking,
        truth=item.counts,
        group=item.group,
    )


def make_one_sided(records: Sequence[PreferenceRecord], seed: int = 0) -> list[PreferenceRecord]:
    """The records with one worse answer each, whose counts are only ever too high: for showing what such data does.

    "The smaller total is right" solves every pair without looking. Records whose counts cannot be
    raised are left out.
    """
    rng = np.random.default_rng(seed)
    highest = {cls: max(record.truth[cls] for record in records) for cls in records[0].truth}
    result = []
    for record in records:
        raised = dict(record.truth)
        while raised == record.truth and raised != highest:
            raised = {
                cls: min(highest[cls], n + int(rng.integers(0, 3)))
                for cls, n in record.truth.items()
            }
        if raised != record.truth:
            answers = [
                Answer(text=count_answer(record.truth)),
                Answer(text=count_answer(raised), origin="edit"),
            ]
            result.append(record.model_copy(update={"answers": answers, "ranking": [[0], [1]]}))
    return result


def swap_rankings(
    records: Sequence[PreferenceRecord],
    swapped: Sequence[bool],
) -> list[PreferenceRecord]:
    """The records, with the worst answers first in those that `swapped` marks: wrong labels.

    swapped: (records,). Like `make_one_sided`, for showing what such data does.
    """
    return [
        record.model_copy(update={"ranking": record.ranking[::-1]}) if swap else record
        for record, swap in zip(records, swapped, strict=True)
    ]


def spoil_image(image: Image.Image, kind: str, rng: np.random.Generator) -> Image.Image:
    """The image without what an answer needs, in its own size.

    "blank": grey. "crop": a part of 5–20 % of the area, enlarged (mDPO crops to at most 20 %).
    "blurred": Gaussian, with a radius of a tenth of the shorter side.
    """
    width, height = image.size
    if kind == "blank":
        return Image.new("RGB", image.size, (127, 127, 127))
    if kind == "blurred":
        return image.filter(ImageFilter.GaussianBlur(min(width, height) / 10))
    if kind == "crop":
        side = float(np.sqrt(rng.uniform(0.05, 0.20)))
        left, top = rng.uniform(0, 1 - side, 2)
        box = (left * width, top * height, (left + side) * width, (top + side) * height)
        return image.resize(image.size, Image.Resampling.BILINEAR, box)
    raise ValueError(f"unknown kind {kind!r}: choose from {IMAGE_NEGATIVES}")


def add_image_negatives(
    records: Sequence[PreferenceRecord],
    folder: Path,
    kinds: Sequence[str] = IMAGE_NEGATIVES,
    seed: int = 0,
) -> list[PreferenceRecord]:
    """The records with one `negative_images` entry for each of `kinds`, in that order.

    Spoilt images are written to `folder`. "shuffled" is the image of another record with another truth, so that the best answer is wrong there.
    """
    rng = np.random.default_rng(seed)
    result = []
    for number, record in enumerate(tqdm(records, desc="image negatives", leave=False)):
        names = []
        for kind in kinds:
            if kind == "shuffled":
                others = (records[i] for i in rng.permutation(len(records)))
                other = next((other for other in others if other.truth != record.truth), None)
                if other is None:
                    raise ValueError(
                        "all records have the same truth, so no other image makes the answer wrong"
                    )
                names.append(other.images[0])
                continue
            folder.mkdir(parents=True, exist_ok=True)
            path = Path(os.path.abspath(folder / f"{record.id or number}-{kind}.png"))
            spoil_image(open_image(record.image_paths[0], record.place), kind, rng).save(path)
            names.append(str(path))
        result.append(record.model_copy(update={"negative_images": names}))
    return result
