"""Files and texts of strangers: preferences, labels and images with damage, texts that attack.

Each case is a number, from which all of it is drawn. Many cases share one child; one that takes too
long is a case that hangs.
"""

import json
import random
import re
import shutil
import signal
import traceback
from collections.abc import Callable, Iterator
from functools import partial
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
from format_rows import ROWS
from label_files import write_coco, write_image, write_voc
from PIL import Image

from helpers.data import ask, open_data, scan_file
from helpers.data.data_doctor import check_file
from helpers.files import UsageError, open_image, printable
from helpers.report.html import (
    comparison_table,
    mark_changes,
    markdown_code,
    markdown_table,
    markdown_text,
    table_html,
)

from . import children
from .outcome import Outcome, Trial

AT_ONCE = 25  # cases in a child
SECONDS = 30  # of a case, after which it counts as one that hangs
# A case does something with a folder of its own, and returns in words what is wrong, "" if nothing
Case = Callable[[Path, random.Random], str]

# What tools, people and damage put where a text or a number belongs
VALUES = (
    None, True, -1, 0, 1.5, 10**30, "", " ", "\u200b", "1", "a" * 100_000, "\x00", "\x1b[2J",
    "\u202e", "<|im_end|>", "<image>", "../../x.png", "~/x.png", "file:///x.png",
    "https://x.example/y.png", "C:\\x\\y.png", [], [None], {}, {"text": None}, [[0], [1]], [[[]]],
    {"role": "user", "content": "?"}, [{"role": "assistant", "content": [{"type": "image"}]}],
)  # fmt: skip
BYTES = (
    b"\xff",
    b"\x00",
    b"\r",
    b"\n",
    b'"',
    b"{",
    b"]",
    b"\xef\xbb\xbf",
    b"\\ud800",
    b"NaN",
    b"1e999",
)


def trials(case: Case, home: Path, draws: random.Random) -> Iterator[Trial]:
    """Batches of a case without end."""
    home.mkdir(parents=True, exist_ok=True)
    while True:
        seeds = [draws.randrange(2**32) for _ in range(AT_ONCE)]
        yield partial(_run_batch, case, home, seeds)


def _run_batch(case: Case, home: Path, seeds: list[int]) -> Outcome:
    ended = children.run(_cases, case, home, seeds)
    if ended.value is None:
        what = f"{case.__name__}, seeds {seeds}: ended with {ended.code}\n{ended.text[-1500:]}"
        return Outcome("raw traceback", what, len(seeds))
    kind, what = ended.value
    return Outcome(kind, what, len(seeds)) if kind else Outcome("survived", tried=len(seeds))


def _cases(case: Case, home: Path, seeds: list[int]) -> tuple[str, str]:
    """Run cases one after the other; the kind of the first bad one, and what it was."""
    signal.signal(signal.SIGALRM, _hang)
    for seed in seeds:
        folder = home / f"{case.__name__}-{seed}"
        folder.mkdir()
        signal.alarm(SECONDS)
        try:
            wrong = case(folder, random.Random(seed))
        except Exception:
            return "raw traceback", f"{folder}\n{traceback.format_exc()[-1500:]}"
        finally:
            signal.alarm(0)
        if wrong:
            return "silently wrong", f"{folder}: {wrong}"
        shutil.rmtree(folder)
    return "", ""


def _hang(number: int, frame: Any) -> None:
    raise TimeoutError(f"takes more than {SECONDS} seconds")


def damaged(raw: bytes, draws: random.Random) -> bytes:
    """Bytes with up to four damages: flipped, cut out, put in, doubled, cut off."""
    for _ in range(draws.randint(1, 4)):
        start = draws.randrange(len(raw) + 1)
        end = min(len(raw), start + draws.choice((0, 1, 2, 8, 64)))
        match draws.choice(("flip", "put in", "cut out", "double", "cut off")):
            case "flip":
                new = bytes(byte ^ 1 << draws.randrange(8) for byte in raw[start:end])
            case "put in":
                new = draws.choice(BYTES)
            case "cut out":
                new = b""
            case "double":
                new = raw[start:end] * 2
            case "cut off":
                new, end = b"", len(raw) if draws.random() < 0.2 else end
        raw = raw[:start] + new + raw[end:]
    return raw


# --- preferences ---


def damaged_preferences(folder: Path, draws: random.Random) -> str:
    """Rows of a format, one of them damaged: the others are read as before, or none is."""
    name = draws.choice(sorted(ROWS))
    rows = [_numbered(ROWS[name], number) for number in range(4)]
    whole = folder / "whole.jsonl"
    whole.write_text("".join(json.dumps(row) + "\n" for row in rows))
    wanted = {line.number: line.record for line in scan_file(whole)}
    place = draws.randrange(4)
    lines = [json.dumps(row).encode() for row in rows]
    if draws.random() < 0.5:
        lines[place] = json.dumps(_with_other_values(rows[place], draws)).encode()
    else:
        lines[place] = damaged(lines[place], draws).replace(b"\n", b" ")
    path = folder / draws.choice(("rows.jsonl", "rows.json", "rows.csv", "rows.tsv"))
    path.write_bytes(b"\n".join(lines) + b"\n")
    for image in ("1.jpg", "a.png", "x.jpg", "img1.jpg", "images/1.jpg", "path/to/img1.jpg"):
        write_image(folder / image)
    for read in (partial(check_file, path), partial(open_data, path)):
        try:
            str(read())
        except UsageError as error:
            if path.name not in str(error):
                return f"the error names no file: {error}"
    if path.suffix != ".jsonl" or place == 0:
        return ""  # the first row says of which format a file is
    for line in scan_file(path):
        if line.number != place + 1 and line.record != wanted[line.number]:
            return f"line {line.number} is read as another record ({line.error})"
    return ""


def _numbered(row: dict[str, Any], number: int) -> dict[str, Any]:
    """The row with texts of its own, so that no two rows are one record."""
    text = json.dumps(row).replace("Here.", f"Here {number}.").replace("Where?", f"Where {number}?")
    return json.loads(text)


def _with_other_values(value: Any, draws: random.Random) -> Any:
    """A copy of a JSON value in which something is another value, missing, or too much."""
    if isinstance(value, dict) and value and draws.random() < 0.8:
        key = draws.choice(sorted(value))
        changed = dict(value)
        match draws.choice(("value", "value", "inner", "inner", "away", "name", "more")):
            case "value":
                changed[key] = draws.choice(VALUES)
            case "inner":
                changed[key] = _with_other_values(value[key], draws)
            case "away":
                del changed[key]
            case "name":
                changed[draws.choice(("id", "images", "prompt", "chosen", "x"))] = changed.pop(key)
            case "more":
                changed[draws.choice(("id", "group", "truth", "ranking"))] = draws.choice(VALUES)
        return changed
    if isinstance(value, list) and value and draws.random() < 0.8:
        place = draws.randrange(len(value))
        inner = _with_other_values(value[place], draws)
        return draws.choice(([*value[:place], inner, *value[place + 1 :]], value * 2, value[:-1]))
    return draws.choice(VALUES)


# --- labels ---


def damaged_labels(folder: Path, draws: random.Random) -> str:
    """Labels of three images, one file damaged: the other images keep their counts, or a word."""
    form = draws.choice(("yolo", "coco", "voc"))
    path = _LABELS[form](folder, draws)
    wanted = _counts(folder)
    path.write_bytes(damaged(path.read_bytes(), draws))
    try:
        counts = _counts(folder)
    except UsageError as error:
        return "" if str(folder) in str(error) else f"the error names no file: {error}"
    for name, found in counts.items():
        if any(type(n) is not int or n < 0 for n in found.values()):
            return f"{name} has the counts {found}"
        # Of one file for all images, or a list of classes, every count may change
        apart = form != "coco" and path.suffix != ".yaml" and path.stem != name
        if apart and found != wanted[name]:
            return f"{name} has {found} in place of {wanted[name]}"
    return ""


def _counts(folder: Path) -> dict[str, dict[str, int]]:
    counts = {}
    for task in open_data(folder).all_tasks():
        counts[task.images[0].stem] = task.facts
    return {name: _above_zero(found) for name, found in counts.items()}


def _above_zero(counts: dict[str, int]) -> dict[str, int]:
    return {cls: n for cls, n in counts.items() if n}


def _write_yolo(folder: Path, draws: random.Random) -> Path:
    (folder / "data.yaml").write_text("nc: 2\nnames: ['car', 'bus']\n")
    for number, rows in enumerate(("0 .5 .5 .1 .1\n1 .2 .2 .1 .1\n", "", "1 .5 .5 .1 .1\n")):
        write_image(folder / "train" / "images" / f"{number}.png", number)
        label = folder / "train" / "labels" / f"{number}.txt"
        label.parent.mkdir(exist_ok=True)
        label.write_text(rows)
    names = ("data.yaml", "train/labels/0.txt", "train/labels/2.txt")
    return folder / draws.choice(names)


def _write_coco(folder: Path, draws: random.Random) -> Path:
    write_coco(folder / "train" / "_annotations.coco.json")
    return folder / "train" / "_annotations.coco.json"


def _write_voc(folder: Path, draws: random.Random) -> Path:
    for number, names in enumerate((("car", "bus"), (), ("bus",))):
        write_voc(folder / "train" / f"{number}.xml", f"{number}.png", *names)
    return folder / "train" / f"{draws.choice((0, 2))}.xml"


_LABELS = {"yolo": _write_yolo, "coco": _write_coco, "voc": _write_voc}


# --- images ---

FORMS = ("png", "jpeg", "gif", "bmp", "webp", "tiff", "ppm")
MODES = ("RGB", "L", "1", "P", "LA", "RGBA", "I;16", "I", "F", "CMYK")


def damaged_images(folder: Path, draws: random.Random) -> str:
    """An image of any kind, whole or damaged: training and check say the same of it."""
    path = folder / f"image.{draws.choice(('png', 'jpg', 'tif', 'webp'))}"
    path.write_bytes(_picture(draws, folder))
    try:
        image = open_image(path)
        said = ""
    except UsageError as error:
        image, said = None, str(error)
    row = {"image": path.name, "prompt": "?", "chosen": "a", "rejected": "b"}
    rows = folder / "rows.jsonl"
    rows.write_text(json.dumps(row))
    found = {finding.kind for finding in check_file(rows).findings}
    if image is None:
        if path.name not in said:
            return f"the error names no file: {said}"
        return "" if "unreadable image" in found else f"training stops ({said}), check does not"
    if "unreadable image" in found:
        return "check calls it unreadable, training takes it"
    if image.mode != "RGB" or min(image.size) < 1:
        return f"read as {image.mode} of {image.size}"
    return ""


def _picture(draws: random.Random, folder: Path) -> bytes:
    size = draws.choice(((1, 1), (7, 5), (40, 30), (1, 300), (300, 1)))
    noise = np.random.default_rng(draws.randrange(2**32)).integers(0, 256, (size[1], size[0], 3))
    image = Image.fromarray(noise.astype(np.uint8))
    made = folder / "made"
    while True:
        mode, form = draws.choice(MODES), draws.choice(FORMS)
        try:
            # Pillow knows no way from colours to 16 bits but through 32
            converted = image.convert("I").convert(mode) if ";" in mode else image.convert(mode)
            converted.save(made, form)
        except (OSError, ValueError, KeyError):
            continue  # not every form can hold every mode
        raw = made.read_bytes()
        made.unlink()
        return damaged(raw, draws) if draws.random() < 0.8 else raw


# --- texts ---

PIECES = (
    "<script>alert(1)</script>", "<img src=x onerror=alert(1)>", "</td></table>", "<!--", "]]>",
    "&lt;b&gt;", "'\"><svg onload=x>", "javascript:x", "![p](https://x.example)", "[l](https://x)",
    "`", "```", "$x$", "$$", "|", "\n", "\n# head", "\n* item", "\r", "\x1b[2J", "\x07", "\x9b31m",
    "\u202e", "\u2028", "\u0000", "\\", "{{ 7*7 }}", "{% x %}", "%s", "{0}", "中文", "😀", "a", " ",
)  # fmt: skip
CONTROLS = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]")


class _Tags(HTMLParser):
    """The tags of a page with the names of their attributes, in their order."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.found: list[tuple] = []
        self.feed(page)

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        # Lines of a text are lines of the page
        if tag != "br":
            self.found.append((tag, *(name for name, _ in attributes)))

    def handle_comment(self, data: str) -> None:
        self.found.append(("comment",))


def hostile_texts(folder: Path, draws: random.Random) -> str:
    """A text that attacks is shown with the tags that a harmless one of as many words has."""
    text = "".join(draws.choice(PIECES) for _ in range(draws.randint(1, 12)))
    for show in (_marked, _compared, _tabled):
        if _Tags(show(text)).found != _Tags(show("word")).found:
            return f"{show.__name__} lets {text!r} through"
    if CONTROLS.search(printable(text)):
        return f"{text!r} controls a terminal"
    cell = markdown_text(text)
    if "\n" in cell or "<" in cell or re.search(r"(?<!\\)(?:\\\\)*[$`\[]", cell):
        return f"{text!r} is Markdown: {cell!r}"
    rows = markdown_table([["head"], [cell]]).splitlines()
    code = markdown_code(text)
    if len(rows) != 3 or code.count("`") != 2 or "\n" in code:
        return f"{text!r} breaks its table or its code: {rows}, {code!r}"
    return ""


def _marked(text: str) -> str:
    """Both sides of a comparison with itself, where no word is marked."""
    return " ".join(mark_changes(text, text))


def _compared(text: str) -> str:
    """A row of the table before and after, whose question is the text, too."""
    return comparison_table([ask(text, [])], [text], [text], [0])


def _tabled(text: str) -> str:
    return table_html([["head"], [text]])
