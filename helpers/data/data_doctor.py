"""What is wrong with a file of preference records, before a model is trained on it.

`python -m helpers check FILE`, or `check_file(path)` as the last line of a cell;
`helpers/data/findings.toml` lists what can be found. The file is read once, and of its records only
hashes are kept, so it may be larger than the memory. Taught in notebook 02.

Simplification: photos are one if their path, their bytes or their group are. A photo that was
cropped or saved again is a new one, unless its name tells (Roboflow's `….rf.<hash>`).
"""

import os
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple, Protocol

from PIL import Image
from tqdm.auto import tqdm

from helpers.files import (
    HEIF_SUFFIXES,
    UsageError,
    decode_image,
    file_hash,
    likely_cause,
    printable,
    read_heif,
    reason_of,
    require_file,
    stream_hash,
)
from helpers.statistics import Proportion

from .blind import BlindRules, too_good_rules
from .convert_files import scan_file
from .findings import FINDING_KINDS, SAME_PHOTO, DataReport, Finding, Place, Problems
from .image_names import list_folder_images
from .judgement import tier_of_each
from .labels.counted import photo_group
from .preferences import RecordLine
from .record import PreferenceRecord, seen_text
from .templates import CHAT_MARK, END_MARK, count_placeholders

# Models look at less than 1 megapixel; 20 take 60 MB once decoded.
HUGE_MEGAPIXELS = 20
HUGE_MEGABYTES = 20
WHOLE_FILE = Place("")
ABSOLUTE_PATH = re.compile(r"[/\\]|[A-Za-z]:[/\\]")  # on Windows too


class TokenLengths(Protocol):
    """What `check_file` asks about tokens.

    `doctor.RecordLengths` answers it, with transformers, which other checks do without.
    """

    def problems(self, record: PreferenceRecord, sizes: list) -> Problems: ...

    def summary(self) -> dict[str, dict]: ...


def check_file(
    path: Path,
    *,
    root: Path | None = None,
    images: bool = True,
    lengths: TokenLengths | None = None,
    against: Sequence[DataReport | Path] = (),
) -> DataReport:
    """Check a file of preferences: records, or any format that `scan_file` reads.

    `root`: the data folder, which image paths may not leave (default: the folder of the file).
    `images=False` opens no image. `lengths`: also count the tokens that a model sees
    (`doctor.RecordLengths`). `against`: reports, files of records or folders of images; a photo
    that is there too is a leak. Raises UsageError if a file does not exist.
    """
    doctor = _DataDoctor(path, root or path.parent, images, lengths)
    # Without images it is too quick for a bar.
    bar = tqdm(
        scan_file(path), printable(path.name), unit=" records", leave=False, disable=not images
    )
    for line in bar:
        doctor.examine(line)
    for other in against:
        if not isinstance(other, DataReport):
            other = find_photos(other, images=images)
        doctor.compare(other)
    return doctor.finish()


def find_photos(path: Path, images: bool = True) -> DataReport:
    """Collect the photos of a file, or of a folder and its subfolders, to compare another with."""
    if not path.is_dir():
        return check_file(path, images=images)
    report = DataReport(Path(os.path.abspath(path)))
    files = list_folder_images(report.path)
    if not files:
        raise UsageError(f"{report.path}: holds no image. Give another folder.")
    bar = tqdm(files, printable(report.path.name), unit=" images", leave=False, disable=not images)
    for file in bar:
        content = file_hash(file) if images else None
        for how, key in _photo_keys(file, content):
            report.photos[how].setdefault(key, Place(str(file)))
    return report


# --- images ---------------------------------------------------------------------------------------


class _ImageFile(NamedTuple):
    """The content hash and size of an image file, or why it cannot be read."""

    content: str | None = None  # hash of its bytes
    size: tuple[int, int] = (0, 0)  # width, height
    problem: tuple[str, str] | None = None  # kind, message


def _look_at(file: Path) -> _ImageFile:
    """Read an image whole, opening the file once."""
    try:
        require_file(file)
        with file.open("rb") as stream:
            content = stream_hash(stream)
            megabytes = stream.tell() / 1e6
            if file.suffix.lower() in HEIF_SUFFIXES:
                read_heif(str(file))
            with Image.open(stream) as opened:
                # As training will; the header alone is sound even if the rest was cut off.
                image, changed = decode_image(opened)
    except FileNotFoundError:
        cause = likely_cause(file)
        message = f"{file} does not exist. {cause}" if cause else f"{file} does not exist"
        return _ImageFile(problem=("missing image", message))
    except Exception as error:  # Pillow raises a dozen kinds on damaged files, SyntaxError too
        return _unreadable(file, reason_of(error))
    problem = ("pixels", f"{file}: {changed}") if changed else None
    megapixels = image.width * image.height / 1e6
    if megapixels > HUGE_MEGAPIXELS or megabytes > HUGE_MEGABYTES:
        problem = ("huge image", f"{file}: {megapixels:.1f} megapixels, {megabytes:.1f} MB")
    return _ImageFile(content, image.size, problem)


def _unreadable(file: Path, reason: str) -> _ImageFile:
    return _ImageFile(problem=("unreadable image", f"{file} cannot be read ({reason})"))


def _photo_keys(file: Path, content: str | None) -> Iterator[tuple[str, int]]:
    """Yield the ways to recognise this photo elsewhere: (key of SAME_PHOTO, hash)."""
    yield "path", hash(str(file))
    name = photo_group(file)
    if name:  # a stem alone, such as 0001, names many photos
        yield "name", hash(name)
    if content:
        yield "content", hash(content)


# --- one record -----------------------------------------------------------------------------------


def _text_problems(record: PreferenceRecord) -> Problems:
    """Find the problems in the texts, scores and ranks of one record."""
    prompt = "\n".join(message.content for message in record.prompt)
    placeholders = count_placeholders(prompt)
    images = len(record.images)
    if placeholders:
        kind = "placeholder text" if placeholders == images else "image placeholders"
        yield kind, f"placeholders in the prompt: {placeholders}, images of the record: {images}"
    answers = [answer.text for answer in record.answers]
    for place, text in enumerate(answers):
        if count_placeholders(text):
            yield (
                "image placeholders",
                f"answer {place} has a placeholder, but answers have no images",
            )
        for kind, marks in (("end of turn", END_MARK), ("chat template", CHAT_MARK)):
            if mark := marks.search(text):
                yield kind, f"answer {place} holds {mark.group()!r}"
    if mark := CHAT_MARK.search(prompt) or END_MARK.search(prompt):
        yield "chat template", f"the prompt holds {mark.group()!r}"
    seen = [seen_text(text) for text in answers]
    if len(set(seen)) < len(seen):
        yield "duplicate answers", f"{max(seen, key=seen.count)!r} occurs more than once"
    yield from _rank_problems(record)


def _rank_problems(record: PreferenceRecord) -> Problems:
    for better, worse in record.tier_pairs():
        high = record.answers[better].score
        low = record.answers[worse].score
        if high is not None and low is not None and high < low:
            yield (
                "scores",
                f"answer {better} has {high:g} and is ranked above answer {worse}, "
                f"which has {low:g}",
            )
    if len(record.ranking or []) < 2:
        yield "no pairs", "not ranked" if record.ranking is None else "all answers are tied"


class _Hashes(NamedTuple):
    """A record as hashes, by which it is compared with the ones before it."""

    record: int  # of images, prompt, answers and their ranks; not of ids, nor of the order shown
    pairs: list[int]  # of images, prompt, better and worse answer
    reversed_pairs: list[int]  # the same with the two answers the other way round
    annotators: frozenset[str]  # who ranked them, if the record says so
    photos: list[tuple[str, int]]  # key of SAME_PHOTO and hash


def _hashes(
    record: PreferenceRecord,
    files: list[Path],
    looks: list[_ImageFile],
) -> _Hashes:
    photos = [("group", hash(record.group))] if record.group else []
    images = []
    for file, look in zip(files, looks, strict=True):
        photos += _photo_keys(file, look.content)
        images.append(look.content or str(file))
    prompt = [(message.role, message.content) for message in record.prompt]
    # Answers are compared only under the same images and prompt.
    context = hash((*images, *prompt))
    texts = [hash((context, answer.text)) for answer in record.answers]
    tiers = tier_of_each(record.ranking or [])
    # By rank and text: the order shown does not make another record.
    ranked = sorted((tiers.get(place, -1), text) for place, text in enumerate(texts))
    pairs = []
    reversed_pairs = []
    for better, worse in record.tier_pairs():
        pairs.append(hash((texts[better], texts[worse])))
        reversed_pairs.append(hash((texts[worse], texts[better])))
    annotators = _annotators(record)
    return _Hashes(hash(tuple(ranked)), pairs, reversed_pairs, annotators, photos)


def _annotators(record: PreferenceRecord) -> frozenset[str]:
    named = {judgement.annotator for judgement in record.judgements}
    column = record.extra.get("annotator")
    return frozenset(named | {str(column)} if column else named)


# --- the whole file -------------------------------------------------------------------------------


class _DataDoctor:
    """Takes lines one at a time and remembers, as hashes, what later ones are compared with."""

    def __init__(
        self,
        path: Path,
        root: Path,
        images: bool,
        lengths: TokenLengths | None,
    ) -> None:
        counts = dict.fromkeys(("lines", "records", "pairs", "images"), 0)
        self.report = DataReport(path, counts=counts)
        self.folder = Path(os.path.abspath(path)).parent
        self.root = Path(os.path.abspath(root))
        self.images = images
        self.lengths = lengths
        self.looks = {}  # path → _ImageFile
        # id, hash of a record, hash of a pair → the line where it was first, of a pair also who
        # ranked it
        self.ids = {}
        self.records = {}
        self.pairs = {}
        self.rules = BlindRules()

    def examine(self, line: RecordLine) -> None:
        self.report.counts["lines"] += 1
        record = line.record
        where = f"{self.report.path}:{line.number}"
        if record is None:
            self._add("bad line", line.error, Place(where, line.number))
            return
        place = Place(where, line.number, record.id, record.group)
        # What is wrong with the record by itself, …
        found = [("altered", line.change)] if line.change else []
        names = record.images + record.negative_images
        files = [Path(os.path.normpath(self.folder / name)) for name in names]
        found += [*_text_problems(record), *self._image_problems(names, files)]
        # … beside earlier records, …
        own_files = files[: len(record.images)]
        looks = [self.looks.get(file, _ImageFile()) for file in own_files]
        hashes = _hashes(record, own_files, looks)
        found += self._conflicts(place, hashes)
        # … and for the model.
        if self.lengths:
            sizes = [look.size for look in looks if look.content]
            found += self.lengths.problems(record, sizes)
        for kind, message in found:
            self._add(kind, message, place)
        severities = {FINDING_KINDS[kind].severity for kind, _ in found}
        if "error" not in severities:
            self._remember(record, place, hashes)

    def _add(self, kind: str, message: str, place: Place = WHOLE_FILE) -> None:
        severity = FINDING_KINDS[kind].severity
        finding = Finding(severity, kind, place.line, place.record_id, message)
        self.report.findings.append(finding)

    def _image_problems(self, names: list[str], files: list[Path]) -> Problems:
        for name, file in zip(names, files, strict=True):
            if ABSOLUTE_PATH.match(name):
                yield "path", f"{name} is an absolute path"
            elif not file.is_relative_to(self.root):
                yield "path", f"{name} leaves the data folder {self.root}"
            if not self.images:
                continue
            new = file not in self.looks
            if new:
                self.looks[file] = _look_at(file)
            look = self.looks[file]
            # A huge image is told once, a missing one each time.
            if look.problem and (new or not look.content):
                yield look.problem

    def _conflicts(self, place: Place, hashes: _Hashes) -> Problems:
        """Find contradictions to earlier records that had no errors."""
        if place.record_id in self.ids:
            yield "duplicate id", f"line {self.ids[place.record_id]} has this id too"
        for pair in hashes.reversed_pairs:
            if pair in self.pairs:
                line, others = self.pairs[pair]
                # Two people may be of two opinions; one person, or nobody knows who, slipped
                apart = hashes.annotators and others and not hashes.annotators & others
                yield (
                    "disagreement" if apart else "contradiction",
                    f"line {line} ranks two of these answers the other way round",
                )
                break
        if hashes.record in self.records:
            yield "duplicate record", f"says the same as line {self.records[hashes.record]}"
        for how, key in hashes.photos:
            first = self.report.photos[how].get(key, place)
            if first.group and place.group and first.group != place.group:
                yield (
                    "photo in two groups",
                    f"in {place.group}, but line {first.line} in {first.group} "
                    f"has {SAME_PHOTO[how]}",
                )
                break

    def _remember(self, record: PreferenceRecord, place: Place, hashes: _Hashes) -> None:
        if record.id is not None:
            self.ids[record.id] = place.line
        self.records.setdefault(hashes.record, place.line)
        for pair in hashes.pairs:
            self.pairs.setdefault(pair, (place.line, hashes.annotators))
        for how, key in hashes.photos:
            known = self.report.photos[how].setdefault(key, place)
            if place.group and not known.group:
                self.report.photos[how][key] = place
        self.report.counts["records"] += 1
        self.report.counts["pairs"] += len(hashes.pairs)
        self.rules.add(record)

    def compare(self, other: DataReport) -> None:
        """Find photos that are in the other file or folder too, each told once."""
        # A photo may be known again in several ways.
        told = set()
        for how, photos in self.report.photos.items():
            known = other.photos[how]
            for key, place in photos.items():
                if key in known and place not in told:
                    told.add(place)
                    self._add("leak", f"{known[key].where} has {SAME_PHOTO[how]}", place)
        if other.errors:
            self._add("not compared", f"{len(other.errors):,} errors in {other.path}")

    def finish(self) -> DataReport:
        report = self.report
        report.counts["images"] = len(report.photos["path"])
        report.blind = self.rules.table()
        if not report.counts["lines"]:
            self._add("no records", "the file is empty")
        for rule, share in too_good_rules(report.blind).items():
            self._add_blind_rule(rule, share)
        if self.lengths:
            report.lengths = self.lengths.summary()
        report.findings.sort(key=lambda finding: finding.line or 0)
        return report

    def _add_blind_rule(self, rule: str, share: Proportion) -> None:
        message = (
            f"{rule!r} picks the chosen answer without looking, in a share of the pairs of {share}"
        )
        kinds = {kind: row[rule] for kind, row in self.report.blind.items() if kind != "all"}
        if len(kinds) > 1:
            most = max(kinds, key=lambda kind: kinds[kind].value)
            message += f", and of {kinds[most]} where the rejected answer is {most!r}"
        self._add("position" if rule.startswith("shown") else "blind rule", message)
