"""From opened data to the folder that notebooks 03 to 07 read (`helpers/data/prepared.py`).

Photos are split, images copied beside the records, and what was done, left out, or is too little to
learn from is said in a few lines. Taught in notebook 02.
"""

import os
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from helpers.files import ROOT, UsageError, likely_cause, write_json
from helpers.statistics import detectable_difference, items_needed

from .blind import blind_rules, blind_warnings
from .door import OpenedData
from .image_copies import copy_images, same_place
from .leftovers import Leftovers
from .preferences import write_records
from .prepared import PreparedData, read_prepared, write_tasks
from .record import PreferenceRecord
from .split_names import SPLITS
from .splitting import LEAST_FOR_TEST, photos_of, refuse_shared_photos, split_by_photo
from .tasks import Task, distinct_tasks, tasks_of

LEAST_PAIRS = 30  # fewer teach nothing that could be seen afterwards
FROM_TRAIN = (0.85, 0.15, 0)  # shares of train's photos, where the data has no valid split
VISIBLE = 0.1  # a difference of shares that one would like to see


@dataclass(frozen=True)
class Entry:
    """A preference or a question on its way into a split."""

    item: PreferenceRecord | Task
    images: tuple[Path, ...]
    group: str
    split: str  # "" until it is drawn
    photo: int = 0

    @property
    def spoilt(self) -> list[Path]:
        """Images with which the answer is wrong: only preferences have them."""
        if isinstance(self.item, Task):
            return []
        return [same_place(path) for path in self.item.negative_image_paths]


def prepare_data(
    opened: OpenedData,
    out: Path,
    *,
    max_pixels: int | None = None,
    model: str | Path = "tiny",
    seed: int = 0,
    shares: Sequence[float] | None = None,
    limit: int | None = None,
    title: str | None = None,
) -> PreparedData:
    """Split the data by photo where it is not split, and write it with its images to `out`.

    shares: of the photos, in the order of SPLITS. limit: of the preferences and of the questions of
    each split, from the start. title: what the data is about, for headings. Prints what was done.
    Raises UsageError if a photo is in two splits of the data.
    """
    out = same_place(out)
    entries = _entries(opened)
    # Before anything of an earlier call is removed
    _refuse_shared_photos(entries)
    _remove_older_files(out)
    # Split only what can be read, so that the shares are right
    entries = _copy(entries, out, max_pixels, opened.left)
    entries = _assign(entries, shares, seed, opened.left)
    counts = {}
    for split in SPLITS:
        chosen = [entry.item for entry in entries if entry.split == split]
        if chosen:
            counts[split] = _write_split(out, split, chosen, limit)
    about = {
        "data": _portable(opened.source),
        "title": title or _title_of(opened.source),
        "model": str(model),
        "kind": opened.kind,
        "classes": list(opened.classes) if opened.classes else None,
        "seed": seed,
        "max_pixels": max_pixels,
        "splits": counts,
        "not_used": opened.left.lines(),
    }
    write_json(out / "about.json", about)
    prepared = read_prepared(out)
    print("\n".join(describe(prepared, opened.left)))
    return prepared


def _entries(opened: OpenedData) -> list[Entry]:
    """All that was read, with the number of its photo."""
    entries = []
    for split, part in opened.parts.items():
        for record in part.records:
            images = tuple(map(same_place, record.image_paths))
            entries.append(Entry(record, images, record.group or "", split))
        for task in part.tasks:
            images = tuple(map(same_place, task.images))
            entries.append(Entry(task, images, task.group, split))
    entries = [entry for entry in entries if not _missing(entry, opened.left)]
    if not entries:
        reasons = "\n".join(opened.left.lines())
        raise UsageError(f"{opened.source}: none of the images is there.\n{reasons}")
    photos = photos_of([(entry.images, entry.group) for entry in entries])
    numbered = []
    for entry, photo in zip(entries, photos, strict=True):
        numbered.append(replace(entry, photo=photo))
    return numbered


def _missing(entry: Entry, left: Leftovers) -> bool:
    """Is an image of an entry no file? Then it is among the leftovers, with its record."""
    for image in (*entry.images, *entry.spoilt):
        # What is there and is no file, a pipe or a folder, would never end, or not begin
        if not os.path.isfile(image):
            record = entry.item if isinstance(entry.item, PreferenceRecord) else None
            where = f"{record.place}: " if record else ""
            why = "is no file." if os.path.exists(image) else "does not exist."
            place = f"{where}image {image} {why} {likely_cause(image)}".rstrip()
            left.add("the image cannot be read", place)
            return True
    return False


# --- splits ---------------------------------------------------------------------------------------


def _refuse_shared_photos(entries: Sequence[Entry]) -> None:
    # What has no split yet is drawn by photo, and so cannot be on two sides
    named = [entry for entry in entries if entry.split]
    refuse_shared_photos(
        [entry.photo for entry in named],
        [entry.split for entry in named],
        [str(entry.images[0]) for entry in named],
    )


def _assign(
    entries: Sequence[Entry],
    shares: Sequence[float] | None,
    seed: int,
    left: Leftovers,
) -> list[Entry]:
    """Give each entry its split: the one the data names, or one that is drawn by photo."""
    named = {entry.split for entry in entries}
    loose = ""
    if "train" in named and "valid" not in named:
        # What says when to stop is drawn from train, never from test
        loose, shares = "train", FROM_TRAIN
        left.say("there is no valid split: 15 % of the photos of train are taken for it")
    # Everything is drawn, or only what was taken from train, or nothing
    drawn = [entry.photo for entry in entries if entry.split == loose]
    if not drawn:
        return list(entries)
    splits = iter(split_by_photo(drawn, shares, seed))
    assigned = []
    for entry in entries:
        split = next(splits) if entry.split == loose else entry.split
        assigned.append(replace(entry, split=split))
    return assigned


# --- writing --------------------------------------------------------------------------------------


def _remove_older_files(out: Path) -> None:
    """Remove what was made of other data, which later notebooks would take for these."""
    (out / "about.json").unlink(missing_ok=True)
    for split in SPLITS:
        for name in (f"{split}.jsonl", f"{split}-questions.jsonl", f"{split}-ranked.jsonl"):
            (out / name).unlink(missing_ok=True)


def _copy(
    entries: Sequence[Entry],
    out: Path,
    max_pixels: int | None,
    left: Leftovers,
) -> list[Entry]:
    """Copy the images, and let entries name the copies; those that cannot be read are left."""
    needed = []
    for entry in entries:
        needed += [*entry.images, *entry.spoilt]
    places = copy_images(needed, out, max_pixels, left)
    whole = []
    for entry in entries:
        if all(image in places for image in [*entry.images, *entry.spoilt]):
            whole.append(entry)
    if not whole:
        reasons = "\n".join(left.lines())
        raise UsageError(f"none of the images can be read, so nothing was written.\n{reasons}")
    names: dict[int, str] = {}  # of photos whose data gives them no group
    taken = {entry.group for entry in whole}
    # A preference and its question have one id, and may
    ids = Counter((type(entry.item), entry.item.id) for entry in whole)
    moved = []
    for entry in whole:
        images = [places[image] for image in entry.images]
        # All that is about one photo stays one cluster of a test
        if entry.photo not in names:
            names[entry.photo] = entry.group or _new_name(images[0].stem, taken)
        group = entry.group or names[entry.photo]
        spoilt = [places[image] for image in entry.spoilt]
        item = _moved_item(entry, images, spoilt, group, ids)
        moved.append(replace(entry, item=item))
    return moved


def _new_name(name: str, taken: set[str]) -> str:
    """The name, with a number if another photo has it already; it is taken from now on."""
    new = name
    number = 2
    while new in taken:
        new = f"{name}-{number}"
        number += 1
    taken.add(new)
    return new


def _moved_item(
    entry: Entry,
    images: Sequence[Path],
    spoilt: Sequence[Path],
    group: str,
    ids: Mapping[tuple[type, str | None], int],
) -> PreferenceRecord | Task:
    """The preference or question with its images where they are now."""
    # An id names one of them: what stands twice, as in tables that were joined, names none
    name = entry.item.id if ids[type(entry.item), entry.item.id] == 1 else None
    if isinstance(entry.item, Task):
        return replace(entry.item, images=tuple(images), group=group, id=name)
    update = {
        "images": [str(image) for image in images],
        "negative_images": [str(image) for image in spoilt],
        "group": group,
        "id": name,
    }
    return entry.item.model_copy(update=update)


def _write_split(
    out: Path,
    split: str,
    items: Sequence[PreferenceRecord | Task],
    limit: int | None,
) -> dict[str, int]:
    """Write the files of a split; how many photos, preferences, pairs and questions these hold."""
    records = [item for item in items if isinstance(item, PreferenceRecord)][:limit]
    if records:
        write_records(out / f"{split}.jsonl", records)
    alone = [item for item in items if isinstance(item, Task)]
    asked = distinct_tasks([*alone, *tasks_of(records)])[:limit]
    write_tasks(out / f"{split}-questions.jsonl", asked)
    return {
        "photos": len({task.photo for task in asked}),
        "preferences": len(records),
        "pairs": sum(len(record.pairs()) for record in records),
        "questions": len(asked),
    }


def _portable(source: Path) -> str:
    """A path that is the same on another machine, if the data comes with the repository."""
    return source.relative_to(ROOT).as_posix() if source.is_relative_to(ROOT) else str(source)


def _title_of(source: Path) -> str:
    if source == ROOT / "data" / "traffic":
        return "traffic scenes"
    return source.stem.replace("_", " ").replace("-", " ")


# --- what was done, in words ----------------------------------------------------------------------


def describe(prepared: PreparedData, left: Leftovers) -> list[str]:
    """What a folder holds, how it was read, what was not used, and what it can show."""
    counts = prepared.about["splits"]
    lines = [f"{prepared.title} → {prepared.folder}"]
    for split, numbers in counts.items():
        stated = []
        for name, n in numbers.items():
            if n:
                stated.append(f"{n:,} {name.removesuffix('s') if n == 1 else name}")
        lines.append(f"  {split}: {', '.join(stated)}")
    lines += [f"  {line}" for line in [*left.notes, *left.lines()]]
    if "test" not in counts:
        photos = sum(numbers["photos"] for numbers in counts.values())
        why = f"{photos} photos are under {LEAST_FOR_TEST}, so there"
        lines.append(
            f"{why if photos < LEAST_FOR_TEST else 'There'} is no test split: figures are "
            "cross-validated, or of the photos that also say when to stop."
        )
    # What pairs are worth can only be said of pairs
    train = prepared.path("train")
    records = prepared.records("train") if train.exists() else []
    if any(record.pairs() for record in records):
        lines += _describe_pairs(counts, prepared.held_out)
        lines += blind_warnings(blind_rules(records))
    return lines


def _describe_pairs(counts: Mapping[str, Mapping[str, int]], held_out: str) -> list[str]:
    """What so many pairs can show at best, said before anybody ranks or trains."""
    # As many as there are, and as many as it takes
    trained = counts["train"]["pairs"]
    held = counts[held_out]["pairs"]
    needed = items_needed(VISIBLE)
    lines = []
    total = sum(numbers["pairs"] for numbers in counts.values())
    if total < LEAST_PAIRS:
        lines.append(
            f"⚠️ {total} pairs are too few: a model learns them by heart, and nothing can be said "
            f"about others. Collect {LEAST_PAIRS} at the very least, better hundreds."
        )
    # With very few pairs not even the largest difference could be seen
    try:
        seen = f"can show a difference of {detectable_difference(held):.2f} or more"
    except ValueError:
        seen = "cannot show any difference"
    lines.append(
        f"{trained:,} pairs to train on. The {held:,} held-out ones ({held_out}) {seen} between "
        f"two models (power .8); for {VISIBLE:.2f} it takes {needed:,}."
    )
    return lines
