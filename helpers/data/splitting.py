"""Which photos are trained on, which say when to stop, and which are looked at once, at the end.

Everything about one photo is on one side: its copies under Roboflow's names, equal files under
other names, and whatever the data itself calls one group.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from helpers.files import UsageError, file_hash

from .labels.counted import photo_group

SHARES = (0.7, 0.15, 0.15)  # of the photos: train, valid, test
# With fewer photos a test split has four at most, which say nothing
LEAST_FOR_TEST = 30


def photos_of(entries: Sequence[tuple[Sequence[Path], str]]) -> list[int]:
    """Number the photos that entries (their images, their group) are about, from 0 in their order.

    Entries that share a group, a file, equal files, or a name but for Roboflow's ending are of one
    photo; so are those that are joined through others.
    """
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    first: dict[tuple[str, str], int] = {}  # what photos are known by → the first entry with it
    here = []  # with `there`: pairs of entries that are of one photo
    there = []
    hashes: dict[Path, str] = {}  # many rows ask about one file
    for number, (images, group) in enumerate(entries):
        # Every way to know a photo again
        keys = [("group", group)] if group else []
        for image in images:
            if image not in hashes:
                hashes[image] = file_hash(image)
            keys.append(("content", hashes[image]))
            # Names like 1.jpg come twice in many data sets: alone they say nothing
            if photo_group(image):
                keys.append(("name", photo_group(image)))
        for key in keys:
            here.append(number)
            there.append(first.setdefault(key, number))
    # Entries are nodes of a graph, so that those joined through others are found, too
    size = len(entries)
    links = coo_array((np.ones(len(here)), (here, there)), (size, size))
    _, labels = connected_components(links, directed=False)
    # As dict.fromkeys keeps the order in which photos are met
    order = {label: place for place, label in enumerate(dict.fromkeys(labels.tolist()))}
    return [order[label] for label in labels.tolist()]


def split_by_photo(
    photos: Sequence[int],
    shares: Sequence[float] | None = None,
    seed: int = 0,
) -> list[str]:
    """Name the split of each entry, given its photo; the photos are drawn at random.

    shares: of train, valid and test, default SHARES, and under LEAST_FOR_TEST photos no test.
    Raises UsageError for a single photo, which cannot be on both sides.
    """
    # Those that were left out leave gaps in the numbers
    known = list(dict.fromkeys(photos))
    if len(known) < 2:
        raise UsageError(
            "all of the data is about one photo, and no photo may be trained on and asked about "
            "afterwards. Add others."
        )
    if shares is None:
        # What would have been the test goes to train: what says when to stop stays
        few = (SHARES[0] + SHARES[2], SHARES[1], 0)
        shares = SHARES if len(known) >= LEAST_FOR_TEST else few
    # Ends are rounded, not lengths, so that no photo is lost between two splits
    ends = np.cumsum(shares)[:2]
    train, valid = (round(float(end) * len(known)) for end in ends)
    if shares[1] and valid == train:  # at least one
        train -= 1
    # Photos are drawn, not rows, so that a photo with many rows counts once
    order = np.random.default_rng(seed).permutation(len(known)).tolist()
    split_of = dict.fromkeys(known, "test")
    for place in order[:train]:
        split_of[known[place]] = "train"
    for place in order[train:valid]:
        split_of[known[place]] = "valid"
    return [split_of[photo] for photo in photos]


def refuse_shared_photos(
    photos: Sequence[int],
    splits: Sequence[str],
    names: Sequence[str],
) -> None:
    """Raise UsageError naming two entries (names) if one photo is in more than one split."""
    first = {}
    for photo, split, name in zip(photos, splits, names, strict=True):
        other, place = first.setdefault(photo, (split, name))
        if other != split:
            raise UsageError(
                f"{name} ({split}) and {place} ({other}) are of one photo: a shared group, equal "
                "files, or names that differ only by Roboflow's suffix. Move them to one side, or "
                "rename different photos."
            )
