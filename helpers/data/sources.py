"""`check` and `convert` for everything that `open_data` reads.

A file of preferences is checked and converted line for line, without loss, by `data_doctor.py` and
`convert_files.py`. What else people bring, tables, questions, folders and zips, is opened first.
"""

import tempfile
from collections.abc import Callable
from pathlib import Path

from helpers.files import UsageError, open_image

from .convert_files import count_changed, raw_rows, write_file
from .data_doctor import TokenLengths, check_file
from .door import OpenedData, find_source, open_data
from .findings import DataReport
from .preferences import write_records
from .prepared import write_tasks
from .question_files import JSON_SUFFIXES, is_preference
from .record import PairChoice
from .tables import OTHER_TABLES, TABLE_SUFFIXES
from .templates import strip_record
from .truth import TruthKind


def is_preference_file(path: Path) -> bool:
    """Is it a file that is read line for line: preferences, or what might have been some?"""
    suffix = path.suffix.lower()
    if path.is_dir() or suffix in TABLE_SUFFIXES | OTHER_TABLES | {".zip"}:
        return False
    if suffix not in JSON_SUFFIXES or not path.exists():
        return True
    # Questions are told by their first row
    for row in raw_rows(path):
        if isinstance(row.value, dict):
            asked = {"question", "questions", "qas", "prompt", "data"} & row.value.keys()
            return is_preference(row.value) or not asked
    return True


def check_source(
    source: Path,
    *,
    truth: TruthKind | None = None,
    images: bool = True,
    new_lengths: Callable[[], TokenLengths | None] = lambda: None,
) -> tuple[OpenedData, list[DataReport]]:
    """Open data of any kind and check the preferences in it, split by split.

    images: open those of the questions, too; one that cannot be read is among the leftovers.
    new_lengths: makes what counts the tokens of a split.
    """
    opened = open_data(find_source(source, [Path.cwd()]), truth=truth)
    reports: list[DataReport] = []
    with tempfile.TemporaryDirectory() as folder:
        for split, part in opened.parts.items():
            if not part.records:
                continue
            name = f"{opened.source.stem}-{split}" if split else opened.source.stem
            path = write_records(Path(folder) / f"{name}.jsonl", part.records)
            # Paths were found whatever they were, so that none of them can leave a folder
            root = Path(path.anchor)
            about = {"lengths": new_lengths(), "against": list(reports)}
            report = check_file(path, root=root, images=images, **about)
            report.path = Path(path.name)  # of a file that is gone: the name says whose it was
            reports.append(report)
    if images:
        _open_images(opened)
    return opened, reports


def _open_images(opened: OpenedData) -> None:
    """Add the images of questions that cannot be read to the leftovers."""
    files = {}
    for part in opened.parts.values():
        for task in part.tasks:
            files |= dict.fromkeys(task.images)
    for file in files:
        try:
            open_image(file)
        except UsageError as error:
            opened.left.add("the image cannot be read", f"{error}")


def convert_source(
    source: Path,
    target: Path,
    to: str = "record",
    which: PairChoice = "all",
    truth: TruthKind | None = None,
    strip: bool = False,
) -> str:
    """Convert data of any kind to a file of preferences, or of questions; say what was done.

    strip: take marks of chat templates off the texts of preferences. Where the data has splits,
    each has a file of its own, `target` with -SPLIT; questions that have no answers to choose from
    go to a file with -questions beside preferences.
    """
    opened = open_data(find_source(source, [Path.cwd()]), truth=truth)
    summary = []
    for split, part in opened.parts.items():
        path = target.with_stem(f"{target.stem}-{split}") if split else target
        if part.records:
            records = [strip_record(each) for each in part.records] if strip else part.records
            if strip:
                changed = count_changed(part.records, records)
                summary.append(f"marks of templates taken off: {changed} records")
            left_out = write_file(path, records, to, which)
            summary.append(f"{len(part.records) - len(left_out)} preferences → {path} ({to})")
            summary += [f"left out: {reason}" for reason in left_out]
        if part.tasks:
            if part.records:
                path = path.with_stem(f"{path.stem}-questions")
            write_tasks(path, part.tasks)
            summary.append(f"{len(part.tasks)} questions → {path}")
    return "\n".join([*summary, *opened.left.notes, *opened.left.lines()])
