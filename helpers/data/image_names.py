"""Which file is meant by the name of an image in a table that was made elsewhere.

The name as it stands comes first. If there is no such file, it is looked for below the folders of
the data: with the other kind of slashes, in other case, in another folder, without its suffix. What
fits exactly one file is that file; what fits several is named and not used.
"""

import os
import re
import unicodedata
from collections import defaultdict
from collections.abc import Iterator, Sequence
from functools import cached_property
from pathlib import Path, PurePosixPath

from helpers.files import UsageError, likely_cause

from .archives import is_system_file
from .labels.counted import IMAGE_SUFFIXES

SHOWN = 3  # files of the same name
LONGEST_SHOWN = 300  # characters of a name that may be anything


class ImageFinder:
    """Finds images by their names in the folders of a data set; `folders[0]` counts first."""

    def __init__(self, folders: Sequence[Path]) -> None:
        self.folders = list(dict.fromkeys(Path(os.path.abspath(folder)) for folder in folders))

    def find(self, name: str) -> Path:
        """The file that is meant. Raises UsageError if there is none, or more than one."""
        shown_name = name if len(name) <= LONGEST_SHOWN else f"{name[:LONGEST_SHOWN]}…"
        if re.match(r"[a-z]+://", name) and not name.startswith("file://"):
            raise UsageError(f"image {shown_name}: is an address. Download it and name the file.")
        plain = _plain_name(name)
        for folder in self.folders:
            file = Path(os.path.normpath(folder / plain))
            # os.path, unlike Path, takes a name that no system allows for one that is not there
            if os.path.isfile(file):
                return file
        if not list(_tails(plain)):
            raise UsageError(f"image {shown_name!r}: names no file. Write its name.")
        found = self._look_up(plain)
        if len(found) == 1:
            return found[0]
        if not found:
            places = ", ".join(map(str, self.folders))
            cause = likely_cause(self.folders[0] / plain)
            raise UsageError(
                f"image {shown_name}: no such file in {places} or below. {cause}".rstrip()
            )
        shown = ", ".join(map(str, found[:SHOWN]))
        raise UsageError(
            f"image {shown_name}: {len(found)} files are called so ({shown}). Name its folder, too."
        )

    def _look_up(self, name: str) -> list[Path]:
        """The files that fit a name best: by as many of its last parts as any file has."""
        # The longest end of the path that any file has: "x/1.png" before "1.png"
        tails = [_key(tail) for tail in _tails(name)]
        for tail in tails:
            if tail in self._by_tail:
                return self._by_tail[tail]
        # "IMG_1", or "img_1.jpeg" where the file is IMG_1.JPG
        stem = _stem(tails[-1])
        return self._by_stem.get(stem, [])

    @cached_property
    def _files(self) -> list[Path]:
        found = {}
        for folder in self.folders:
            for file in _image_files(folder):
                found[file] = None
        return list(found)

    @cached_property
    def _by_tail(self) -> dict[str, list[Path]]:
        """Every path and the last parts of it → the files that end so."""
        files = defaultdict(list)
        for file in self._files:
            for tail in _tails(file.as_posix()):
                files[_key(tail)].append(file)
        return files

    @cached_property
    def _by_stem(self) -> dict[str, list[Path]]:
        files = defaultdict(list)
        for file in self._files:
            files[_stem(_key(file.name))].append(file)
        return files


def list_folder_images(folder: Path) -> list[Path]:
    """All images in a folder and its sub-folders, sorted."""
    return sorted(_image_files(folder))


def _image_files(folder: Path) -> Iterator[Path]:
    for root, folders, names in os.walk(folder):
        # In place: os.walk does not enter what is not there
        folders[:] = [name for name in folders if not name.startswith(".")]
        for name in names:
            file = Path(root, name)
            if file.suffix.lower() in IMAGE_SUFFIXES and not is_system_file(file):
                yield file


def _plain_name(name: str) -> str:
    """A name with slashes of one kind, without quotes and blanks around it."""
    return name.strip().strip("\"'").strip().removeprefix("file://").replace("\\", "/")


def _tails(name: str) -> Iterator[str]:
    """`a/b/c.png`, `b/c.png`, `c.png`."""
    parts = [part for part in PurePosixPath(name).parts if part not in ("/", ".", "..")]
    for start in range(len(parts)):
        yield "/".join(parts[start:])


def _key(name: str) -> str:
    # macOS takes letters with accents apart; Windows does not know case
    return unicodedata.normalize("NFC", name).casefold()


def _stem(name: str) -> str:
    stem, suffix = os.path.splitext(name)
    return stem if suffix in IMAGE_SUFFIXES else name
