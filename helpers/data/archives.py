"""Zip files of data, as other systems make them, unpacked without leaving the folder.

Names may be in UTF-8 without saying so (macOS) or in the code page of an old Windows, with
backslashes between folders. What could be written outside the folder, links and names from the
root, is refused, and so is what would fill the disk.
"""

import shutil
import stat
import zipfile
from collections import Counter
from pathlib import Path, PurePosixPath

from helpers.files import UsageError, artifacts_dir, file_hash

LARGEST_GB = 4  # of all files of an archive, unpacked
MOST_FILES = 100_000
UTF8_NAME = 0x800  # the bit of an entry by which its name is UTF-8
ENCRYPTED = 0x1
# What systems put beside the files of people
SYSTEM_FOLDERS = {"__MACOSX", ".Trashes", ".git"}
SYSTEM_FILES = {".DS_Store", "Thumbs.db", "desktop.ini"}


def is_system_file(path: Path | PurePosixPath) -> bool:
    """Is it one that the operating system made, and nobody brought?"""
    if path.name in SYSTEM_FILES or path.name.startswith("._"):
        return True
    return bool(SYSTEM_FOLDERS & set(path.parts))


def unpack_archive(path: Path, folder: Path | None = None) -> Path:
    """Unpack a zip file and return the folder; one that was unpacked before is not again.

    folder: default is one in the artifacts, named after the archive's content. Raises UsageError
    for what is no zip file, too large, encrypted, or would be written elsewhere.
    """
    target = folder or artifacts_dir() / "unpacked" / f"{path.stem}-{file_hash(path)[:8]}"
    if target.is_dir():
        return target
    half = target.with_name(f"{target.name}.part")
    shutil.rmtree(half, ignore_errors=True)  # of a run that was cut off
    try:
        with zipfile.ZipFile(path) as archive:
            _unpack(archive, path, half)
    except (zipfile.BadZipFile, NotImplementedError, EOFError) as error:
        shutil.rmtree(half, ignore_errors=True)
        raise UsageError(
            f"{path}: not a zip file that can be read ({error}). Make it again, or unpack it and "
            "name the folder."
        ) from None
    except UsageError:
        shutil.rmtree(half, ignore_errors=True)
        raise
    # Only a whole folder has its name
    half.rename(target)
    return target


def _unpack(archive: zipfile.ZipFile, path: Path, folder: Path) -> None:
    folder.mkdir(parents=True)
    entries = [entry for entry in archive.infolist() if not entry.is_dir()]
    _check_size(entries, path)
    names = Counter()
    left = LARGEST_GB * 10**9
    for entry in entries:
        name = _entry_name(entry, path)
        if is_system_file(name):
            continue
        # On Windows and macOS the second would overwrite the first
        names[str(name).casefold()] += 1
        if names[str(name).casefold()] > 1:
            raise UsageError(
                f"{path}: holds two files {str(name)!r}. Rename one of them and pack it again."
            )
        file = folder / name
        file.parent.mkdir(parents=True, exist_ok=True)
        with archive.open(entry) as packed, file.open("wb") as out:
            left -= _copy(packed, out, left, path)


def _check_size(entries: list[zipfile.ZipInfo], path: Path) -> None:
    gigabytes = sum(entry.file_size for entry in entries) / 1e9
    if gigabytes > LARGEST_GB:
        raise UsageError(
            f"{path}: takes {gigabytes:.1f} GB when it is unpacked, and {LARGEST_GB} GB is the "
            "limit here. Unpack it yourself and name the folder."
        )
    if len(entries) > MOST_FILES:
        raise UsageError(
            f"{path}: holds {len(entries):,} files, and {MOST_FILES:,} is the limit here. Unpack "
            "it yourself and name the folder."
        )


def _entry_name(entry: zipfile.ZipInfo, path: Path) -> PurePosixPath:
    """The name of an entry as a relative path. Raises UsageError for one that leads elsewhere."""
    name = entry.filename
    if not entry.flag_bits & UTF8_NAME:
        # zipfile has read it as cp437, which macOS never means
        try:
            name = name.encode("cp437").decode("utf-8")
        except UnicodeError:
            name = entry.filename
    relative = PurePosixPath(name.replace("\\", "/"))
    drive = ":" in (relative.parts or ("",))[0]
    if relative.is_absolute() or drive or ".." in relative.parts:
        raise UsageError(
            f"{path}: the entry {name!r} would be written outside the folder. Such archives are "
            "not unpacked: pack the folder again."
        )
    if stat.S_ISLNK(entry.external_attr >> 16):
        raise UsageError(
            f"{path}: the entry {name!r} is a link. Pack the file itself in its place."
        )
    if entry.flag_bits & ENCRYPTED:
        raise UsageError(f"{path}: is protected by a password. Unpack it and name the folder.")
    return relative


def _copy(packed, out, most: int, path: Path) -> int:
    """Copy a file, at most so many bytes, whatever size its entry names; returns their number."""
    size = 0
    while block := packed.read(2**20):
        size += len(block)
        if size > most:
            raise UsageError(
                f"{path}: takes more than {LARGEST_GB} GB when it is unpacked. Unpack it yourself "
                "and name the folder."
            )
        out.write(block)
    return size
