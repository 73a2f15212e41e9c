"""One door for what people bring: labelled images, preferences, questions, as files of any kind.

    open_data("my.csv")            a table of preferences, rankings or questions; also TSV and XLSX
    open_data("votes.jsonl")       preferences in any format of `formats.py`, or questions
    open_data("question_answers.json")   Visual Genome's questions
    open_data("photos", questions=["What is this?"])    every question about every image
    open_data("roboflow")          labels in YOLO, COCO or Pascal VOC form
    open_data("all.zip")           a zip, or a folder, of any of these and their images

What could not be used is counted and named, never dropped in silence. Here the files are found
and read; `helpers/data/prepare.py` splits them and writes what the notebooks read. Taught in
notebook 02.
"""

import itertools
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from helpers.files import UsageError, require_file, starting_folders

from .archives import is_system_file, unpack_archive
from .columns import find_header, header_fit
from .image_names import ImageFinder, list_folder_images
from .labels.counted import IMAGE_SUFFIXES, join_names
from .labels.folder import LabelFolder, classes_counted, open_labels
from .leftovers import Leftovers
from .own_rows import CellRow, ReadRows, RowReader
from .pairs import counting_tasks
from .question_files import JSON_SUFFIXES, FileReader, read_question_list
from .record import PreferenceRecord
from .split_names import SPLITS, split_name, split_of_file
from .tables import OTHER_TABLES, TABLE_SUFFIXES, read_sheets
from .tasks import Task, ask, distinct_tasks, kind_of, tasks_of
from .truth import TRUTH_KINDS, TruthKind

DATA_SUFFIXES = JSON_SUFFIXES | TABLE_SUFFIXES
# Names of lists of questions
LISTS = re.compile(r"(question|frage|prompt|pregunta)", re.IGNORECASE)
KNOWN = (
    "a folder of labelled images (YOLO, COCO, Pascal VOC), a file of preferences or questions "
    "(JSON, JSONL), a table (CSV, TSV, XLSX), a folder of images with QUESTIONS, or a zip of these"
)


@dataclass
class OpenedPart:
    """What belongs to one split: preferences, and questions without answers to choose from."""

    records: list[PreferenceRecord] = field(default_factory=list)
    tasks: list[Task] = field(default_factory=list)

    def all_tasks(self) -> list[Task]:
        """All questions, each once: those of the preferences, too."""
        return distinct_tasks([*self.tasks, *tasks_of(self.records)])


@dataclass(repr=False)
class OpenedData:
    """Data as it was brought. Prints as what was found, and what was not used."""

    source: Path
    parts: dict[str, OpenedPart]  # by split; "" where the data has no splits
    left: Leftovers
    classes: tuple[str, ...] | None = None

    @property
    def kind(self) -> TruthKind:
        """The kind of truth of all questions. Raises UsageError if there are several."""
        return kind_of(self.all_tasks())

    def all_records(self) -> list[PreferenceRecord]:
        return list(itertools.chain(*(part.records for part in self.parts.values())))

    def all_tasks(self) -> list[Task]:
        return list(itertools.chain(*(part.all_tasks() for part in self.parts.values())))

    def __repr__(self) -> str:
        lines = [f"{self.source}"]
        for split, part in self.parts.items():
            pairs = sum(len(record.pairs()) for record in part.records)
            asked = part.all_tasks()
            known = sum(bool(task.facts) for task in asked)
            lines.append(
                f"{split or 'not split'}: {len(part.records):,} preferences with {pairs:,} pairs, "
                f"{len(asked):,} questions, {known:,} of them with a known truth ({self.kind})"
            )
        return "\n".join([*lines, *self.left.notes, *self.left.lines()])


def open_data(
    source: str | Path | Mapping[str, str | Path],
    *,
    truth: TruthKind | None = None,
    classes: Sequence[str] | None = None,
    questions: str | Path | Sequence[str] | None = None,
    images: str | Path | None = None,
    base: Path | Sequence[Path] | None = None,
) -> OpenedData:
    """Read data of any known kind; `source` may also be a file for each split, by its name.

    truth: the kind of all truths, where the data does not say it. classes: count only these.
    questions: asked of every image; a list, a question, or a file of them. images: their folder, if
    they are not beside the data. base: folders that relative paths count from (default: where one
    stands, then the repository). Raises UsageError if there is nothing that can be used.
    """
    if truth is not None and truth not in TRUTH_KINDS:
        raise UsageError(f"unknown kind of truth {truth!r}: choose from {', '.join(TRUTH_KINDS)}.")
    if base is None:
        base = starting_folders()
    bases = [base] if isinstance(base, Path) else list(base)
    reader = _Door(bases, truth, classes)
    reader.questions = _read_questions(questions, bases)
    if images:
        reader.images = [find_source(images, bases)]
    # One source has no split of its own
    named = source if isinstance(source, Mapping) else {"": source}
    found = []
    for split, place in named.items():
        path = find_source(place, bases)
        reader.open(path, split)
        found.append(path)
    # Of several files the folder they share says what they are
    shared = found[0] if len(found) == 1 else Path(os.path.commonpath(found))
    return reader.finish(shared)


def find_source(source: str | Path, bases: Sequence[Path]) -> Path:
    """The file or folder that is meant. Raises UsageError naming where it was looked for."""
    # Paths that were copied from a file manager may stand in quotes
    path = Path(str(source).strip().strip("\"'")).expanduser()
    for base in bases:
        if (base / path).exists():  # an absolute path stays as it is
            found = Path(os.path.abspath(base / path))
            if not found.is_dir():
                require_file(found)
            return found
    where = "" if path.is_absolute() else f" in {' or '.join(dict.fromkeys(map(str, bases)))}"
    raise UsageError(f"{source}: no such file or folder{where}. Give its path; known is {KNOWN}.")


def _read_questions(
    questions: str | Path | Sequence[str] | None,
    bases: Sequence[Path],
) -> tuple[str, ...]:
    if questions is None:
        return ()
    if not isinstance(questions, str | Path):
        return tuple(questions)
    # One text is a file if its ending says so, else a question
    suffix = Path(questions).suffix.lower()
    if isinstance(questions, Path) or suffix in DATA_SUFFIXES | {".txt", ".md"}:
        return read_question_list(find_source(questions, bases))
    return (questions,)


class _Door:
    """Reads one source after the other into parts."""

    def __init__(
        self,
        bases: Sequence[Path],
        truth: TruthKind | None,
        classes: Sequence[str] | None,
    ) -> None:
        self.bases = bases
        self.truth = truth
        self.classes = tuple(classes) if classes else None
        self.questions: tuple[str, ...] = ()
        self.images: list[Path] = []  # folders that were named for them
        self.left = Leftovers()
        self.parts: dict[str, OpenedPart] = {}
        # folders, the splits in them, and what these are here
        self.labelled: list[tuple[LabelFolder, str, str]] = []

    def open(self, path: Path, split: str = "") -> None:
        """Read a source; `split` is that of everything in it that names none itself."""
        # An archive is the folder that was packed
        if path.suffix.lower() == ".zip" and path.is_file():
            path = unpack_archive(path)
        if path.is_dir():
            self._open_folder(_skip_wrappers(path), split)
        elif path.suffix.lower() in DATA_SUFFIXES | OTHER_TABLES:
            self._say_neighbours(path, split)
            self._read_file(path, split, [path.parent])
        elif path.suffix.lower() in IMAGE_SUFFIXES:
            raise UsageError(f"{path}: is one image. Name the folder it is in, and QUESTIONS.")
        else:
            raise UsageError(f"{path}: cannot be read as data. Known is {KNOWN}.")

    def finish(self, source: Path) -> OpenedData:
        """All that was read. Raises UsageError if nothing of it can be used."""
        self._count_labels()
        parts = {split: part for split, part in self.parts.items() if part.records or part.tasks}
        if not parts:
            reasons = "\n".join([*self.left.notes, *self.left.lines()])
            raise UsageError(f"{source}: nothing in it can be used.\n{reasons}".rstrip())
        if "" in parts and len(parts) > 1:
            self._move_unsplit(parts)
        if set(parts) - {""} and "train" not in parts:
            named = " and ".join(split for split in SPLITS if split in parts)
            raise UsageError(
                f"{source}: has {named}, but nothing to train on. Name a file train, "
                "or give one file without splits, which is then split by photo."
            )
        order = [split for split in ("", *SPLITS) if split in parts]
        opened = OpenedData(
            source,
            parts={split: parts[split] for split in order},
            left=self.left,
            classes=self.classes,
        )
        # Rather now than after an hour: several kinds of truth cannot be judged by one table
        kind_of(opened.all_tasks())
        return opened

    def _move_unsplit(self, parts: dict[str, OpenedPart]) -> None:
        # In train they do no harm: what is measured comes from the others
        loose = parts.pop("")
        train = parts.setdefault("train", OpenedPart())
        train.records += loose.records
        train.tasks += loose.tasks
        number = len(loose.records) + len(loose.tasks)
        self.left.say(f"{number} rows name no split beside others that do: they are in train")

    def _part(self, split: str) -> OpenedPart:
        return self.parts.setdefault(split, OpenedPart())

    # --- folders ---

    def _open_folder(self, folder: Path, split: str) -> None:
        labels = open_labels(folder, self.left)
        if labels:
            self._note_labels(labels, split)
            return
        # Questions in a text are asked of every image, so they are no data by themselves
        files = _data_files(folder)
        lists = [file for file in files if file.suffix.lower() == ".txt"]
        if not self.questions and len(lists) == 1:
            self.questions = read_question_list(lists[0])
            self.left.say(f"{lists[0].name}: {len(self.questions)} questions about every image")
        files = [file for file in files if file not in lists]
        read = 0
        for file in files:
            own = split_of_file(file, folder) or split
            try:
                self._read_file(file, own, [file.parent, folder])
                read += 1
            except UsageError as error:
                # A folder may hold a README.json; a single file must be the data
                if len(files) == 1 and not self.questions:
                    raise
                self.left.add("a file that is no data of a known form", f"{error}")
        if not read:
            self._add(self._ask_about_images(folder), split)

    def _note_labels(self, labels: LabelFolder, split: str) -> None:
        """Note what is to be counted, at the end, when the classes of all folders are known."""
        whole = split not in labels.splits
        for name in labels.splits if whole else [split]:
            # What names no split, or is a split alone, belongs where the source does
            own = split if name == "" or labels.splits == ["train"] else name
            self.labelled.append((labels, name, own))

    def _count_labels(self) -> None:
        """Counted images; each is asked for its counts, in the two wordings by turns."""
        if not self.labelled:
            return
        folders = list(dict.fromkeys(labels for labels, _, _ in self.labelled))
        # A class of one split is asked for in all, so that the answers have one form
        names = join_names(labels.class_names for labels in folders)
        shared = Path(os.path.commonpath([labels.folder for labels in folders]))
        counted_as = classes_counted(names, self.classes, shared)
        for labels, name, own in self.labelled:
            self._part(own).tasks += counting_tasks(labels.read(name, counted_as))
        for labels in folders:
            labels.name_unused()

    def _ask_about_images(self, folder: Path) -> ReadRows:
        """Every question about every image of a folder. Raises UsageError without any of them."""
        images = list_folder_images(folder)
        if not images:
            raise UsageError(f"{folder}: holds neither images nor data. Known is {KNOWN}.")
        if not self.questions:
            reasons = "\n".join(self.left.lines())
            raise UsageError(
                f"{folder}: {len(images)} images and nothing to ask about them. Give QUESTIONS, a "
                f"file questions.txt, or a table beside them.\n{reasons}".rstrip()
            )
        found = ReadRows()
        for image in images:
            # The folders train, valid and test keep what is in them
            split = split_name(image.relative_to(folder).parts[0])
            for question in self.questions:
                found.tasks[split].append(ask(question, [image]))
        return found

    # --- files ---

    def _read_file(self, path: Path, split: str, folders: Sequence[Path]) -> None:
        """Read a file of rows. Raises UsageError if it is none of a known form."""
        finder = ImageFinder([*self.images, *folders])
        before = len(self.left)
        if path.suffix.lower() in JSON_SUFFIXES:
            reader = FileReader(
                path,
                finder,
                self.left,
                self.truth,
                self.questions,
            )
            found = reader.read()
        else:
            found = self._read_table(path, finder)
        asked = [*found.records.values(), *found.tasks.values()]
        # Where rows were left out, the leftovers say why there are none
        if not any(asked) and len(self.left) == before:
            raise UsageError(f"{path}: holds no rows.")
        self._add(found, split)

    def _add(self, found: ReadRows, split: str) -> None:
        """Keep what was read; rows that name no split of their own belong to `split`."""
        for own, records in found.records.items():
            self._part(own or split).records += records
        for own, tasks in found.tasks.items():
            self._part(own or split).tasks += tasks

    def _read_table(self, path: Path, finder: ImageFinder) -> ReadRows:
        both = ReadRows()
        understood = 0
        for sheet in read_sheets(path, header_fit):
            header = find_header(sheet)
            if not header:
                titles = ", ".join(sheet.rows[0].cells) if sheet.rows else "nothing"
                self.left.add("a table whose columns are not known", f"{sheet.name} ({titles})")
                continue
            understood += 1
            layout, rows = header.layout, header.rows
            how = f" as {sheet.how}" if sheet.how else ""
            self.left.say(f"{sheet.name}: read{how}: {layout}")
            if layout.unused:
                self.left.say(f"{sheet.name}: columns not used: {', '.join(layout.unused)}")
            if header.repeated:
                self.left.say(f"{sheet.name}: {header.repeated} rows repeat the titles")
            cells = [CellRow(f"{sheet.name}:{row.number}", row.cells) for row in rows]
            if "image" not in layout.columns:
                self._note_questions(layout.values, cells, sheet.name)
                if not self.questions:
                    raise UsageError(f"{path}: names neither images nor questions in its rows.")
                found = self._ask_about_images(path.parent)
            else:
                reader = RowReader(
                    layout,
                    finder,
                    self.left,
                    self.truth,
                    self.questions,
                )
                found = reader.read(cells)
            both.add(found)
        # The titles that were found are the best explanation
        if not understood:
            *_, reason = self.left.reasons.popitem()
            raise UsageError(
                f"{path}: no row of titles is known ({'; '.join(reason)}). Call the columns image, "
                "question and answer, or chosen and rejected, or answer A, answer B and preference."
            )
        return both

    def _note_questions(self, values, rows: Sequence[CellRow], name: str) -> None:
        """Take the questions of a table that names no images: they are asked about all."""
        asked = []
        for row in rows:
            asked += map(str, values("question", row.cells))
        self.questions = tuple(dict.fromkeys([*self.questions, *asked]))
        self.left.say(f"{name}: names no images, so its questions are asked about all")

    def _say_neighbours(self, path: Path, split: str) -> None:
        """Name files of other splits beside one that was named alone."""
        if split or not split_of_file(path, path.parent):
            return
        beside = []
        # Only files of the same kind: a table beside lines is other data
        for file in sorted(path.parent.iterdir()):
            other = file.suffix == path.suffix and file != path
            if other and split_of_file(file, path.parent):
                beside.append(file.name)
        if beside:
            names = " and ".join(beside)
            self.left.say(f"{names} beside it are not read: name the folder to use these splits")


def _skip_wrappers(folder: Path) -> Path:
    """Go into folders that hold nothing but one folder, as archives often do."""
    while True:
        entries = []
        for entry in folder.iterdir():
            if not is_system_file(entry) and not entry.name.startswith("."):
                entries.append(entry)
        if len(entries) != 1 or not entries[0].is_dir():
            return folder
        folder = entries[0]


def _data_files(folder: Path) -> list[Path]:
    """The files of rows in a folder; those one folder below, if there are none."""
    for pattern in ("*", "*/*"):
        files = []
        for file in sorted(folder.glob(pattern)):
            known = file.suffix.lower() in DATA_SUFFIXES | OTHER_TABLES
            known = known or (file.suffix.lower() == ".txt" and bool(LISTS.match(file.stem)))
            # "~$" begins the file that Office keeps beside one that is open
            hidden = is_system_file(file) or file.name.startswith((".", "~$"))
            if known and not hidden and file.is_file():
                files.append(file)
        if files:
            return files
    return []
