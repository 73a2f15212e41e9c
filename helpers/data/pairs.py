"""From counted images to preference records: where worse answers and worse images come from.

`build_records`: the chosen answer states the true counts, and a rejected answer is one of

* `own`: a wrong answer that the model itself sampled. It shows the model its own mistakes, but if
  all of these are under-counts, "say more" is learnt instead of "look".
* `edit`: the truth with one count moved one step, up as often as down.
* `other image`: the counts of another image. Over the whole set these are distributed like the
  truth, so no rule that does not look at the image can tell them apart.

In `rewards.rank_samples` no answer is written for the model: its own samples are ranked by their
scores.

`add_image_negatives`: the other side of a pair, for losses that compare images instead of answers
(mDPO, Wang et al. 2024, arXiv 2406.11839): the same answer is worse with a spoilt image.

What of this can be told apart without looking is measured in `helpers/data/blind.py`. Taught in
notebook 02.
"""

import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageFilter
from tqdm.auto import tqdm

from helpers.files import open_image, replace_file

from .counting import (
    SINGULAR,
    Counts,
    classes_of,
    count_answer,
    count_question,
    edited_counts,
    is_exact,
    is_well_formed,
)
from .judgement import Ranking
from .labels.counted import CountedImage
from .record import Answer, Message, PreferenceRecord
from .tasks import Task

# kinds of rejected answers, and of spoilt images
NEGATIVES = ("own", "edit", "other image")
IMAGE_NEGATIVES = ("blank", "crop", "shuffled", "blurred")

# What is asked of an image where nobody has said what
DEFAULT_QUESTION = "Describe the image."

# --- questions ------------------------------------------------------------------------------------


def question_for(item: CountedImage, number: int) -> str:
    """Ask for the counts of the `number`-th image of a split: the two wordings take turns.

    An image that has been asked about before keeps its question.
    """
    return item.question or count_question(list(item.counts), number)


def one_class_question(counts: Counts, number: int) -> tuple[str, str]:
    """Ask for the count of one class, and give the true answer.

    The item's number chooses the class.
    """
    name = list(counts)[number % len(counts)]
    return f"How many {name} are there?", f"There are {counts[name]} {name}."


def one_class_answers(counts: Counts, number: int) -> tuple[str, str | list[str]]:
    """The same question, with all answers that are right: of one, "There is 1 car.", too."""
    question, answer = one_class_question(counts, number)
    name = list(counts)[number % len(counts)]
    if counts[name] != 1:
        return question, answer
    return question, [f"There is 1 {SINGULAR.get(name, name)}.", answer]


def presence_question(counts: Counts, number: int) -> tuple[str, str]:
    """Ask whether there is one of a class, and give the true answer, one word.

    The item's number chooses the class. Only the classes of the scenes are put into the singular.
    """
    name = list(counts)[number % len(counts)]
    question = f"Is there a {SINGULAR.get(name, name)} in the image?"
    return question, "Yes." if counts[name] else "No."


def counting_tasks(items: Sequence[CountedImage]) -> list[Task]:
    """Ask the counting question about each item, as tasks whose truth is its counts."""
    tasks = []
    for number, item in enumerate(items):
        turn = Message(role="user", content=question_for(item, number))
        image = Path(os.path.abspath(item.path))
        tasks.append(Task((image,), (turn,), item.counts, "counts", item.group, _name(item)))
    return tasks


def _name(item: CountedImage) -> str:
    """Its split and its file, unless it has a name: the id of its record."""
    return item.name or f"{item.path.parent.parent.name}-{item.path.stem}"


def counted_items(tasks: Sequence[Task]) -> list[CountedImage]:
    """The tasks whose truth is counts, as counted images; none of other data."""
    items = []
    for task in tasks:
        if task.kind == "counts" and len(task.images) == 1:
            about = task.group, task.id, task.question
            items.append(CountedImage(task.images[0], task.facts, *about))
    return items


def caption_question(tasks: Sequence[Task]) -> str:
    """What to ask for a caption that tells what the tasks are about: counts, or all there is."""
    items = counted_items(tasks)
    return count_question(list(items[0].counts)) if items else DEFAULT_QUESTION


def counted_records(records: Sequence[PreferenceRecord]) -> list[PreferenceRecord]:
    """The records whose truth is counts; none of other data."""
    return [record for record in records if record.kind == "counts"]


# --- wrong answers --------------------------------------------------------------------------------


def highest_counts(truths: Sequence[Counts], at_least: int = 1) -> dict[str, int]:
    """Return the largest count of each class; at least 1, so that every count can be edited."""
    highest = dict.fromkeys(truths[0], at_least)
    for truth in truths:
        for cls in highest:
            highest[cls] = max(highest[cls], truth[cls])
    return highest


class _WrongCounts:
    """Draws counts that are wrong for one of some images."""

    def __init__(self, truths: Sequence[Counts], rng: np.random.Generator) -> None:
        self._truths = truths
        self._rng = rng
        self._highest = highest_counts(truths)
        # counts → all that differ from them; many images have the same counts
        self._different = {}
        # do any two images differ?
        self.differ = any(truth != truths[0] for truth in truths)

    def edit(self, truth: Counts) -> Counts:
        return edited_counts(truth, self._highest, self._rng)

    def of_other_image(self, truth: Counts) -> Counts:
        key = tuple(truth.values())
        if key not in self._different:
            self._different[key] = [other for other in self._truths if other != truth]
        others = self._different[key]
        return others[int(self._rng.integers(len(others)))]


def true_and_wrong_answers(truths: Sequence[Counts], seed: int = 0) -> list[list[str]]:
    """Give four answers for each truth: it twice, one with a count edited, one of another image.

    A critic learns from them what a mistake looks like, also one that the policy does not make yet:
    first from the last kind, which is easy to tell, then from the one before. Where all images have
    the same counts, both are edited.
    """
    wrong = _WrongCounts(truths, np.random.default_rng(seed))
    rows = []
    for truth in truths:
        other = wrong.of_other_image(truth) if wrong.differ else wrong.edit(truth)
        answers = [truth, truth, wrong.edit(truth), other]
        rows.append([count_answer(counts) for counts in answers])
    return rows


def build_records(
    items: Sequence[CountedImage],
    own_answers: Sequence[Sequence[str]],
    negatives: Sequence[str] = ("own", "other image"),
    seed: int = 0,
) -> list[PreferenceRecord]:
    """Make one record an image: the true answer and a rejected one of each kind in `negatives`.

    own_answers: N sampled answers for each item. An item whose samples are all correct has no `own`
    answer, and no record if that was the only kind (the number of these is printed). Where all
    images have the same counts, none of another image are wrong: they are edited instead, in words.
    """
    unknown = set(negatives) - set(NEGATIVES)
    if unknown:
        raise ValueError(f"unknown kinds of negatives {sorted(unknown)}: choose from {NEGATIVES}")
    if not items:
        return []
    rng = np.random.default_rng(seed)
    wrong = _WrongCounts([item.counts for item in items], rng)
    if "other image" in negatives and not wrong.differ:
        print("All images have the same counts: wrong ones are edited, not those of another image.")
        negatives = [*(kind for kind in negatives if kind != "other image"), "edit"]
    records = []
    for number, item in enumerate(items):
        # Of equal texts the first origin counts, so the truth comes first.
        texts = {"truth": count_answer(item.counts)}
        own = _wrong_answer(own_answers[number], item) if "own" in negatives else None
        if own:
            texts["own"] = own
        if "edit" in negatives:
            texts["edit"] = count_answer(wrong.edit(item.counts))
        if "other image" in negatives:
            texts["other image"] = count_answer(wrong.of_other_image(item.counts))
        # A wrong answer may be missing, but never equal to the truth.
        if len(set(texts.values())) > 1:
            records.append(_record(item, number, texts, rng))
    without = len(items) - len(records)
    if without:
        print(f"{without} of {len(items)} images give no pair: every sampled answer is right.")
    return records


def _wrong_answer(answers: Sequence[str], item: CountedImage) -> str | None:
    """Find the first wrong answer, one that has the right form if there is one."""
    garbled = None
    for text in answers:
        if not text.strip() or is_exact(text, item.counts):
            continue
        if is_well_formed(text, list(item.counts)):
            return text
        garbled = garbled or text
    return garbled


def _record(
    item: CountedImage,
    number: int,
    texts: dict[str, str],
    rng: np.random.Generator,
) -> PreferenceRecord:
    """Put answers in a random order, so that the position of the true one says nothing.

    texts: origin → text; equal texts stand once, of origin "truth" or else "own".
    """
    # Backwards, so that of equal texts the first origin is the last to be written.
    origins = {text: origin for origin, text in reversed(texts.items())}
    distinct = list(origins)
    order = [distinct[place] for place in rng.permutation(len(distinct))]
    answers = [Answer(text=text, origin=origins[text]) for text in order]
    best = order.index(texts["truth"])
    others = [place for place in range(len(order)) if place != best]
    return record_of_item(item, number, answers, [[best], others])


def record_of_item(
    item: CountedImage,
    number: int,
    answers: list[Answer],
    ranking: Ranking | None,
) -> PreferenceRecord:
    """Make the record of the counting question about an image."""
    return PreferenceRecord(
        id=_name(item),
        images=[os.path.abspath(item.path)],
        prompt=[{"role": "user", "content": question_for(item, number)}],
        answers=answers,
        ranking=ranking,
        truth=item.counts,
        group=item.group,
    )


# --- data that teaches the wrong thing ------------------------------------------------------------


def make_one_sided(records: Sequence[PreferenceRecord]) -> list[PreferenceRecord]:
    """Give the records one worse answer each, which is only ever too much.

    Of counted images it counts too many; else it is the better answer with a worse one behind it.
    For showing what such data does: "the smaller total is right", or "the shorter answer", solves
    every pair without looking. Records whose counts cannot be raised are left out.
    """
    rng = np.random.default_rng(0)
    truths = [record.truth for record in records if classes_of(record.truth)]
    highest = highest_counts(truths, at_least=0) if truths else {}
    if all(truth == highest for truth in truths):
        # All images have the same counts: more than any of them has is too much
        highest = {cls: n + 1 for cls, n in highest.items()}
    result = []
    for record in records:
        if classes_of(record.truth):
            pair = _raised_counts(record.truth, highest, rng)
        else:
            pair = _with_more_behind(record)
        if pair is None:
            continue
        true, wrong = Answer(text=pair[0]), Answer(text=pair[1], origin="edit")
        update = {"answers": [true, wrong], "ranking": [[0], [1]]}
        result.append(record.model_copy(update=update))
    return result


def _raised_counts(
    truth: Counts, highest: Mapping[str, int], rng: np.random.Generator
) -> tuple[str, str] | None:
    """The true answer, and one whose counts are higher; None if none can be raised."""
    # no draw would ever end the loop below
    if truth == highest:
        return None
    raised = truth
    while raised == truth:
        raised = {}
        for cls, n in truth.items():
            added = int(rng.integers(0, 3))
            raised[cls] = min(highest[cls], n + added)
    return count_answer(truth), count_answer(raised)


def _with_more_behind(record: PreferenceRecord) -> tuple[str, str] | None:
    """The better answer of the first pair, and that answer with the worse one behind it."""
    for better, worse in record.tier_pairs():
        good, bad = record.answers[better].text, record.answers[worse].text
        return good, f"{good} {bad}"
    return None


def swap_rankings(
    records: Sequence[PreferenceRecord],
    swapped: Sequence[bool],
) -> list[PreferenceRecord]:
    """Put the worst answers first in the records that `swapped` marks: wrong labels.

    swapped: (records,). Like `make_one_sided`, for showing what such data does.
    """
    result = []
    for record, swap in zip(records, swapped, strict=True):
        if swap:
            record = record.model_copy(update={"ranking": record.ranking[::-1]})
        result.append(record)
    return result


# --- wrong images ---------------------------------------------------------------------------------


def spoil_image(
    image: Image.Image,
    kind: str,
    rng: np.random.Generator,
) -> Image.Image:
    """Return the image without what an answer needs, in its own size.

    "blank": grey. "crop": a part of 5–20 % of the area, enlarged (mDPO crops to at most 20 %).
    "blurred": Gaussian, with a radius of a tenth of the shorter side.
    """
    if kind == "blank":
        return Image.new("RGB", image.size, (127, 127, 127))
    if kind == "blurred":
        return image.filter(ImageFilter.GaussianBlur(min(image.size) / 10))
    if kind == "crop":
        # A share of the area is the square of a share of the side.
        side = float(np.sqrt(rng.uniform(0.05, 0.20)))
        left, top = rng.uniform(0, 1 - side, 2)
        width, height = image.size
        box = (
            left * width,
            top * height,
            (left + side) * width,
            (top + side) * height,
        )
        return image.resize(image.size, Image.Resampling.BILINEAR, box)
    raise ValueError(f"unknown kind {kind!r}: choose from {IMAGE_NEGATIVES}")


def add_image_negatives(
    records: Sequence[PreferenceRecord],
    folder: Path,
    kinds: Sequence[str] = IMAGE_NEGATIVES,
    seed: int = 0,
) -> list[PreferenceRecord]:
    """Give the records one `negative_images` entry for each of `kinds`, in that order.

    Spoilt images are written to `folder`. "shuffled" is the image of another record with another
    truth, so that the best answer is wrong there; where all have one truth this is said, and it is
    the image of any other.
    """
    rng = np.random.default_rng(seed)
    known = [record.truth for record in records if record.truth is not None]
    if "shuffled" in kinds and len(known) > 1 and all(truth == known[0] for truth in known):
        print("⚠️ All records have the same truth: with another image, too, the answer is right.")
    result = []
    for number, record in enumerate(tqdm(records, "image negatives", leave=False)):
        names = []
        for kind in kinds:
            if kind == "shuffled":
                # A picture of its own, so nothing is written.
                names.append(_other_image(record, records, rng))
                continue
            path = os.path.abspath(folder / f"{_file_name(record, number)}-{kind}.png")
            image = open_image(record.image_paths[0], record.place)
            with replace_file(Path(path)) as beside:
                spoil_image(image, kind, rng).save(beside, "PNG")
            names.append(path)
        result.append(record.model_copy(update={"negative_images": names}))
    return result


def _file_name(record: PreferenceRecord, number: int) -> str:
    """The id of a record, or its number: an id may be a path that leads out of the folder."""
    is_name = record.id is not None and re.fullmatch(r"[^\W_][\w.-]{0,99}", record.id)
    return record.id if is_name else f"_{number}"


def _other_image(
    record: PreferenceRecord,
    records: Sequence[PreferenceRecord],
    rng: np.random.Generator,
) -> str:
    same = None
    # A random order, so that the first one that differs is a fair draw.
    for place in rng.permutation(len(records)):
        other = records[place]
        if other.images == record.images:
            continue
        # Where nobody knows what is true, another photo has to do.
        if record.truth is None or other.truth != record.truth:
            return other.images[0]
        same = same or other.images[0]
    if same is None:
        raise ValueError("all records are about the same image, so there is no other to show")
    return same
