"""What splits are called: here, and by people and tools."""

import re
from pathlib import Path

from .columns import plain_title

SPLITS = ("train", "valid", "test")
# What people and tools call them, by plain titles
SPLIT_NAMES = {
    "train": "train training trainset trainingset",
    "valid": "valid validation val dev validset devset eval",
    "test": "test testing testset heldout",
}


def split_name(text: str) -> str:
    """ "val" and "Validation" → "valid"; "" for what names no split."""
    name = plain_title(text)
    for split, names in SPLIT_NAMES.items():
        if name in names.split():
            return split
    return ""


def split_of_file(file: Path, folder: Path) -> str:
    """The split that the name of a file or its folder says: `votes_train.csv`, `val/rows.csv`."""
    # The file's own name says more than that of a folder, and a near folder more than a far one
    parts = [file.stem, *file.relative_to(folder).parts[:-1][::-1]]
    for part in parts:
        for word in re.split(r"[^A-Za-z]+", part):
            if split_name(word):
                return split_name(word)
    return ""
