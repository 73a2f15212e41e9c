"""Files and what can be wrong with them: readable errors, artifacts, JSON, hashes, images.

`artifacts/` is how one notebook hands its work to the next. Files are written under a temporary
name and renamed, so that a killed notebook leaves either the old file or the new one, never half.
"""

import contextlib
import difflib
import errno
import hashlib
import json
import math
import os
import re
import shutil
import sys
import traceback
import unicodedata
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO, TextIO

from PIL import Image, ImageOps, UnidentifiedImageError

ROOT = Path(__file__).resolve().parent.parent
HEIF_SUFFIXES = {".heic", ".heif"}
MOST_EXTREME_SIDES = 200  # times the shorter side, as a Qwen2-VL's processor has it
MOST_12_BITS = 4_095
MOST_16_BITS = 65_535
SEAL_FILE = "files.json"  # hashes of the files in a folder that belong together
# The disk has no room: full, the share of a user used up, or a file larger than it may be
NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
NOT_ALLOWED = (errno.EROFS, errno.EACCES, errno.EPERM)


class UsageError(ValueError):
    """Something the reader can put right. The message says what is wrong, where, and what to do.

    Notebooks show it as one line instead of a traceback; the command line prints it and exits with
    1.
    """

    # IPython calls this instead of formatting a traceback
    def _render_traceback_(self) -> list[str]:
        return [f"Error: {self}"]


# Signs that move a terminal's cursor, colour it or turn its text around, and halves of characters
_CONTROLS = re.compile(
    r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069\ud800-\udfff]",
)


def printable(text: str) -> str:
    """Somebody's text without what controls a terminal: such signs are escapes, `\\x1b`."""
    return _CONTROLS.sub(lambda found: found[0].encode("unicode_escape").decode(), text)


class PrintableOutput:
    """A stream to print to, which writes texts as `printable` has them."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        self._stream.write(printable(text))
        return len(text)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


def did_you_mean(name: object, choices: Iterable[str]) -> str:
    """Name the nearest of the choices, for the end of a message; say nothing if none is near."""
    near = difflib.get_close_matches(str(name), choices, n=1)
    return f" Did you mean {near[0]!r}?" if near else ""


def explain_error(error: BaseException) -> str | None:
    """Say in one line what went wrong with a disk or a file, where, and what to do.

    None for anything else, such as a fault of this code, of which the traceback is wanted.
    """
    if isinstance(error, OSError) and error.errno is not None:
        return _explain_os_error(error)
    place = _place(error)
    number = _system_error_number(error)
    if number is not None:
        where = _copied_to(error) or place or None
        return _explain_os_error(OSError(number, os.strerror(number), where))
    read_in = f" It was read in {place}." if place else ""
    # by its name: the library is not imported for it
    names = {kind.__name__ for kind in type(error).__mro__}
    if names & {"JSONDecodeError", "SafetensorError"} or "PytorchStreamReader" in str(error):
        return (
            f"a file is damaged, or was cut off while it was written ({_first_line(error)})."
            f"{read_in} `python -m helpers verify artifacts` says which one."
        )
    if isinstance(error, KeyError) and place:
        return (
            f"{error} is missing in what was read in {place}, as in a file of another version or "
            "of another tool. Make it again with this version; VLM_TRACEBACK=1 shows the way there."
        )
    return None


def explain_errors_in_notebooks() -> None:
    """Let IPython show what `explain_error` says in place of a traceback; elsewhere do nothing."""
    ipython = sys.modules.get("IPython")
    shell = ipython.get_ipython() if ipython else None
    if shell is not None:
        shell.set_custom_exc((Exception,), _show_error)


def _show_error(shell: Any, kind: type, error: BaseException, trace: Any, tb_offset=None) -> None:
    said = explain_error(error)
    if said is not None and not os.environ.get("VLM_TRACEBACK"):
        # as of a UsageError, which IPython asks in the same way
        error._render_traceback_ = lambda: [f"Error: {said}"]
    shell.showtraceback((kind, error, trace), tb_offset=tb_offset)


def _system_error_number(error: BaseException) -> int | None:
    """Return the number of the system's error behind one of a library that is not in Python.

    safetensors has it in its text. PyTorch's writer only says that the file is not as long as it
    should be, which is a disk without room.
    """
    text = str(error)
    if "PytorchStreamWriter" in text or "inline_container.cc" in text:
        return None if "PytorchStreamReader" in text else errno.ENOSPC
    # of a whole folder that is copied, as a list of what could not be
    pattern = r"\[Errno (\d+)\]" if isinstance(error, shutil.Error) else r"\(os error (\d+)\)"
    found = re.search(pattern, text)
    return int(found[1]) if found else None


def _copied_to(error: BaseException) -> str | None:
    """Return the first file that a copy of a folder could not write."""
    failed = error.args[0] if isinstance(error, shutil.Error) and error.args else None
    return str(failed[0][1]) if isinstance(failed, list) and failed else None


def _explain_os_error(error: OSError) -> str:
    names = [str(name) for name in (error.filename, error.filename2) if name]
    where = " → ".join(names) or _place(error) or "a file"
    if error.errno in NO_ROOM:
        return (
            f"{where}: there is no room for it ({error.strerror}). Free space on the disk, or set "
            "VLM_ARTIFACTS to another folder."
        )
    if error.errno in NOT_ALLOWED:
        return (
            f"{where}: not allowed here ({error.strerror}). Give a folder in which you may write, "
            "such as by VLM_ARTIFACTS or --out, or a file that you may read."
        )
    return f"{where}: {error.strerror}. Check the path, and that nothing else removes or writes it."


def _first_line(error: BaseException) -> str:
    return (str(error).splitlines() or [""])[0]


def _place(error: BaseException) -> str:
    """Return the innermost line of this suite in a traceback, "helpers/files.py:12"; "": none.

    Of an error in a function that a user has written nothing is said.
    """
    frames = traceback.extract_tb(error.__traceback__)
    own = [frame for frame in frames if "site-packages" not in frame.filename]
    if not own or not Path(own[-1].filename).is_relative_to(ROOT / "helpers"):
        return ""
    return f"{Path(own[-1].filename).relative_to(ROOT).as_posix()}:{own[-1].lineno}"


def artifacts_dir() -> Path:
    """Make the folder of what notebooks make: `$VLM_ARTIFACTS`, else `artifacts/` here."""
    folder = Path(os.environ.get("VLM_ARTIFACTS", ROOT / "artifacts"))
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def starting_folders() -> list[Path]:
    """Folders that a path given by a person counts from: where they stand, then the repository.

    A notebook stands in its own folder; one that is run by a command, where the command was given.
    """
    places = [Path(os.environ.get("VLM_STARTED_IN", ".")), Path.cwd(), ROOT]
    return list(dict.fromkeys(Path(os.path.abspath(place)) for place in places))


def artifact(name: str, made_by: str, fallback: Callable[[], Path]) -> Path:
    """Path of what an earlier notebook made; if it is not there, say so and use `fallback()`."""
    path = artifacts_dir() / name
    if path.exists():
        print(f"Using {_shorten_path(path)}, made by {made_by}.")
        return path
    substitute = fallback()
    print(
        f"⚠️  FALLBACK: {_shorten_path(path)} does not exist, because {made_by} has not been run.\n"
        f"⚠️  Using {_shorten_path(substitute)} instead. For your own data, run {made_by} first."
    )
    return substitute


def _shorten_path(path: Path) -> str:
    return str(path.relative_to(ROOT)) if path.is_relative_to(ROOT) else str(path)


def published_path(path: str) -> str:
    """Shorten a path to its part in the repository, or the file's name, to be published."""
    full = Path(path)
    if full.is_relative_to(ROOT):
        return full.relative_to(ROOT).as_posix()
    return full.name if full.is_absolute() else path


def write_text(path: Path, text: str) -> Path:
    """Write a text file in one step: readers see the old content or the new, never a part."""
    return _replace(path, [text])


def write_lines(path: Path, lines: Iterable[str]) -> Path:
    """The same for lines made one at a time; if making one fails, the old file stays."""
    return _replace(path, (line + "\n" for line in lines))


def _replace(path: Path, parts: Iterable[str]) -> Path:
    with replace_file(path) as temporary, temporary.open("w", encoding="utf-8", newline="\n") as f:
        f.writelines(parts)
    return path


@contextlib.contextmanager
def replace_file(path: Path) -> Iterator[Path]:
    """A temporary file beside `path` to write to, which takes its place at the end.

    If writing fails, the old file stays.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        yield temporary
        # on the disk before it has the name: a machine that is lost keeps the old file or the new
        with temporary.open("rb") as file:
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def set_aside(folder: Path) -> Path:
    """Rename a folder that another one takes the place of, to NAME.old-1, NAME.old-2, …"""
    number = 1
    while (aside := folder.with_name(f"{folder.name}.old-{number}")).exists():
        number += 1
    return folder.rename(aside)


@contextlib.contextmanager
def hold_folder(folder: Path) -> Iterator[None]:
    """Keep other processes that ask for it out of a folder; a kill gives it up.

    Raises UsageError if another one holds it. Where there are no locks (Windows, some network
    drives, a disk that is read-only) nobody is kept out.
    """
    whole = folder.resolve()
    lock = whole.with_name(f".{whole.name}.lock")
    file = _lock_or_refuse(folder, lock) if sys.platform != "win32" else None
    try:
        yield
    finally:
        if file:
            # while it is held: who opens it now finds another file there, or none
            lock.unlink(missing_ok=True)
            file.close()


def _lock_or_refuse(folder: Path, lock: Path) -> TextIO | None:
    """Open and lock the file `lock`; None where that cannot be done."""
    import fcntl

    try:
        lock.parent.mkdir(parents=True, exist_ok=True)
        while True:
            file = lock.open("a+")
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if _is_still_there(file, lock):
                break
            file.close()
    except BlockingIOError:
        file.seek(0)
        holder = file.read().strip()
        file.close()
        raise UsageError(
            f"{folder}: process {holder or 'another'} is at work there. Wait until it has ended, "
            "or give another folder."
        ) from None
    except OSError:
        return None  # no place to write to, which the writer will say, or no locks
    file.truncate(0)
    file.write(f"{os.getpid()}\n")
    file.flush()
    return file


def _is_still_there(file: TextIO, path: Path) -> bool:
    """Is it the file at `path`, or one that its holder has just removed?"""
    try:
        return os.path.samestat(os.fstat(file.fileno()), path.stat())
    except FileNotFoundError:
        return False


def is_set_aside(folder: Path) -> bool:
    """Is it what `set_aside` has made?"""
    return re.search(r"\.old-\d+$", folder.name) is not None


def write_json(path: Path, value: Any) -> Path:
    """Write JSON in one step. Raises ValueError for a number that JSON cannot hold."""
    return write_text(path, json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n")


def null_if_not_finite(value: Any) -> Any:
    """Return the same value with None for each NaN and inf in it, at any depth.

    >>> null_if_not_finite({"loss": [0.5, float("nan")]})
    {'loss': [0.5, None]}
    """
    if isinstance(value, Mapping):
        return {key: null_if_not_finite(part) for key, part in value.items()}
    if isinstance(value, list | tuple):
        return [null_if_not_finite(part) for part in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def write_figures(path: Path, value: Any) -> Path:
    """Write logs or figures as JSON, with null for what is not finite.

    The gradients of the first steps in fp16 are infinite until the scale of the loss is found.
    """
    return write_json(path, null_if_not_finite(value))


def parse_json(raw: bytes) -> Any:
    """Read JSON (UTF-8) strictly: no NaN, no number beyond a float, no key twice.

    Python's own parser lets these pass, and they would be lost on the way or when writing. Raises
    UsageError in one sentence with the column; the caller adds the file and the line.
    """
    try:
        text = raw.decode("utf-8-sig")
        value = json.loads(
            text,
            parse_constant=_refuse_constant,
            parse_float=_parse_finite,
            object_pairs_hook=_refuse_duplicate_keys,
        )
        if "\\ud" in text.lower():
            # half of a surrogate pair is no character and cannot be written
            json.dumps(value, ensure_ascii=False).encode()
        return value
    except UnicodeDecodeError as error:
        raise UsageError(f"not UTF-8 text (byte {error.start}). Save the file as UTF-8.") from None
    except UnicodeEncodeError:
        raise UsageError(
            "a \\ud… escape stands without its partner. Write the character itself."
        ) from None
    except json.JSONDecodeError as error:
        line = "" if error.lineno == 1 else f"line {error.lineno}, "
        raise UsageError(f"not JSON ({error.msg}, {line}column {error.colno}).") from None
    except RecursionError:
        raise UsageError("nested too deeply.") from None
    # from the three functions below, or an integer of over 4,300 digits
    except ValueError as error:
        raise UsageError(f"not JSON ({error}).") from None


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is not a JSON value; leave the field out")


def _parse_finite(text: str) -> float:
    if not math.isfinite(number := float(text)):
        raise ValueError(f"{text} is too large")
    return number


def _refuse_duplicate_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    value: dict[str, Any] = {}
    for key, part in pairs:
        if key in value:
            raise ValueError(f"key {key!r} stands twice in one object")
        value[key] = part
    return value


def read_json(path: Path) -> Any:
    """Read a JSON file. Raises UsageError naming file, line and column."""
    require_file(path)
    try:
        return parse_json(path.read_bytes())
    except FileNotFoundError:
        raise UsageError(
            f"{path}: no such file. Check the path, or run the notebook that makes it."
        ) from None
    except UsageError as error:
        raise UsageError(f"{path}: {error}") from None


def require_file(path: Path) -> None:
    """Raise UsageError for what is there and is no file: reading a pipe would wait for ever."""
    # os.path, unlike Path, takes a name that no system allows for one that is not there
    if os.path.exists(path) and not os.path.isfile(path):
        what = "a folder" if os.path.isdir(path) else "a pipe or a device"
        raise UsageError(f"{path}: is {what}, not a file. Name the file itself.")


def file_hash(path: Path) -> str:
    """Hash of a file's bytes (BLAKE2b, 128 bits), read in pieces.

    Raises UsageError if there is no such file.
    """
    require_file(path)
    try:
        with path.open("rb") as file:
            return stream_hash(file)
    except OSError as error:
        cause = likely_cause(path) or "Check the path."
        raise UsageError(f"{path}: cannot be read ({error.strerror}). {cause}") from None


def stream_hash(stream: BinaryIO) -> str:
    """`file_hash` of a file that is open, at its start; leaves it at its end."""
    return hashlib.file_digest(stream, lambda: hashlib.blake2b(digest_size=16)).hexdigest()


# --- what belongs together ---


def seal_folder(folder: Path, names: Iterable[str]) -> Path:
    """Note the hashes of the files that belong together in a folder: the last that is written."""
    hashes = {name: file_hash(folder / name) for name in sorted(names)}
    return write_json(folder / SEAL_FILE, hashes)


def broken_files(folder: Path) -> list[str] | None:
    """Name the files of a sealed folder that are missing or other ones; None without a seal."""
    seal = folder / SEAL_FILE
    if not seal.exists():
        return None
    broken = []
    for name, known in read_json(seal).items():
        path = folder / name
        if not path.exists() or file_hash(path) != known:
            broken.append(name)
    return broken


def require_whole(folder: Path) -> None:
    """Raise UsageError if files of a folder do not belong together; without a seal none can tell.

    So it is after a save that was cut off: some files are new, others of the save before.
    """
    broken = broken_files(folder)
    if broken:
        raise UsageError(
            f"{folder}: {', '.join(broken)} and the other files do not belong together, as after a "
            "save that was cut off. Make it again, or restore the folder."
        )


def read_heif(where: str) -> None:
    """Teach Pillow the photos of iPhones (HEIC). Raises UsageError if the package is missing."""
    try:
        import pillow_heif
    except ImportError:
        raise UsageError(
            f"{where}: a HEIC photo, as iPhones make them, needs one more package: "
            "pip install pillow-heif. Or save the photos as JPEG."
        ) from None
    pillow_heif.register_heif_opener()


def open_image(path: Path | BinaryIO, where: str | None = None) -> Image.Image:
    """The image at `path` as RGB, turned the way its camera was held (`decode_image`).

    Raises UsageError with `where` (a file and record) if it is missing or cannot be read.
    """
    where = where or str(path)
    if isinstance(path, Path):
        try:
            require_file(path)
        except UsageError as error:
            raise UsageError(f"{where}: {error}" if where != str(path) else f"{error}") from None
        if path.suffix.lower() in HEIF_SUFFIXES:
            read_heif(where)
    try:
        with Image.open(path) as image:
            return decode_image(image)[0]
    except FileNotFoundError:
        cause = likely_cause(path) or "Paths are relative to the data file."
        raise UsageError(f"{where}: image {path} does not exist. {cause}") from None
    except Exception as error:  # Pillow raises a dozen kinds on damaged files, SyntaxError too
        raise UsageError(
            f"{where}: image {path} cannot be read ({reason_of(error)}). Replace or remove it."
        ) from None


def likely_cause(path: Path) -> str:
    """Say in a sentence why a path that is nearly right leads to no file; "" if nobody knows."""
    name = str(path)
    if re.search(r"\bhttps?:/", name):
        return "It is an address: download the file, and name that."
    if re.search(r"\bfile:/", name):
        return "file:// begins an address: write the path alone."
    if "~" in path.parts:
        return "~ is only known to a command line: write the path of the home folder."
    slashed = Path(name.replace("\\", "/"))
    if slashed != path:
        cause = "It has the backslashes of Windows: write /."
        # Written with slashes, another cause may be left
        return cause if os.path.exists(slashed) else f"{cause} {likely_cause(slashed)}".strip()
    bare = Path(*(part.strip() if part != path.anchor else part for part in path.parts))
    if bare != path and os.path.exists(bare):
        return "It is there without the blank at the beginning or end of a name."
    return _other_spelling(path)


def _other_spelling(path: Path) -> str:
    """Name the entry of a folder that a missing path may mean: other case, letters or ending."""
    place = Path(path.anchor)
    # Down the path as far as it is there
    for part in path.parts[1:] if path.anchor else path.parts:
        if os.path.exists(place / part):
            place /= part
            continue
        # The first that is missing: its folder is there
        entries = sorted(os.listdir(place)) if os.path.isdir(place) else []
        for entry in entries:
            if _plain_spelling(entry) == _plain_spelling(part):
                why = "case counts"
                if unicodedata.normalize("NFC", entry) == unicodedata.normalize("NFC", part):
                    why = "letters with accents are composed in another way"
                return f"There is {place / entry}: {why}."
        # Another ending, or one too many
        for entry in entries:
            if Path(entry).stem == Path(part).stem or entry == Path(part).stem:
                return f"There is {place / entry}."
        return ""
    return ""


def _plain_spelling(name: str) -> str:
    return unicodedata.normalize("NFC", name).casefold()


def reason_of(error: Exception) -> str:
    """Say in a few words why Pillow could not read an image."""
    if isinstance(error, UnidentifiedImageError):
        # its own message speaks of an _io.BufferedReader
        return "no image of a known kind"
    return str(error).split("\n")[0] or type(error).__name__


def decode_image(image: Image.Image) -> tuple[Image.Image, str]:
    """Return an opened image as RGB with 8 bits a channel, and in words what else was changed: "".

    It is turned as its EXIF says. What is transparent becomes white, as qwen-vl-utils and vLLM have
    it. More than 8 bits are brought to 0 … 255: Pillow alone makes them all white, or all black.
    Raises ValueError for an image that no model takes, and whatever Pillow raises.
    """
    turned = ImageOps.exif_transpose(image)
    width, height = turned.size
    if max(width, height) > MOST_EXTREME_SIDES * min(width, height):
        raise ValueError(
            f"{width} × {height} pixels: one side is over {MOST_EXTREME_SIDES} times the other, "
            "which models do not take"
        )
    changed = ""
    if turned.mode == "F" or turned.mode.startswith("I"):
        turned, changed = _to_8_bits(turned)
    if turned.has_transparency_data:
        # of premultiplied grey there is no way to RGBA but this
        plain = turned.convert("LA") if turned.mode == "La" else turned
        layer = plain.convert("RGBA")
        turned = Image.alpha_composite(Image.new("RGBA", layer.size, "white"), layer)
    return turned.convert("RGB"), changed


def _to_8_bits(image: Image.Image) -> tuple[Image.Image, str]:
    """Bring pixels of 16 or 32 bits, or floats, to 0 … 255; say by what."""
    import numpy as np

    pixels = np.nan_to_num(np.asarray(image, dtype=np.float64))
    lowest, highest = pixels.min(), pixels.max()
    is_float = image.mode == "F"
    if is_float and lowest >= 0 and highest <= 1:
        scaled, how = pixels * 255, "floats of 0 to 1, times 255"
    elif not is_float and lowest >= 0 and highest <= MOST_12_BITS:
        scaled, how = pixels // 16, "12 bits a pixel, divided by 16"
    elif not is_float and lowest >= 0 and highest <= MOST_16_BITS:
        scaled, how = pixels // 257, "16 bits a pixel, divided by 257"
    elif highest > lowest:
        scaled = (pixels - lowest) * (255 / (highest - lowest))
        how = f"from {lowest:g} … {highest:g} to 0 … 255"
    else:
        scaled, how = pixels.clip(0, 255), "one value, kept between 0 and 255"
    # down to a whole number, but for what rounding has taken off one
    return Image.fromarray((scaled + 1e-6).clip(0, 255).astype(np.uint8)), how
