"""What is wrong with a file of preference records, before a model is trained on it.

`python -m helpers check FILE`, or `check(path)` as the last line of a cell; `helpers/data/findings.py`
lists what can be found. The file is read once, and of its records only hashes are kept, so it may be
larger than the memory. Taught in notebook 02.

Simplification: photos are one if their path, their bytes or their group are. A photo that was
cropped or saved again is a new one, unless its name tells (Roboflow's `….rf.<hash>`).
"""

import os
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple, Protocol

from PIL import Image, UnidentifiedImageError
from tqdm.auto import tqdm

from helpers.files import UsageError, file_hash, stream_hash
from helpers.statistics import Proportion

from .blind import BlindRules
from .convert_files import scan_file
from .findings import FINDING_KINDS, SAME_PHOTO, DataReport, Finding, Place, Problems
from .labels import IMAGE_SUFFIXES, photo_group
from .preferences import PreferenceRecord, RecordLine
from .templates import CHAT_MARK, END_MARK, count_placeholders

HUGE_MEGAPIXELS, HUGE_MEGABYTES = (
    20,
    20,
)  # 20 megapixels take 60 MB once decoded; models look at less than 1
BLIND_LIMIT, BLIND_PAIRS = (
    0.6,
    20,
)  # a rule counts if its whole interval is above .6, and not on fewer pairs

ABSOLUTE_PATH = re.compile(r"[/\\]|[A-Za-z]:[/\\]")  # on Windows too


class TokenLengths(Protocol):
    """What `check` asks about tokens; `doctor.RecordLengths` answers it, with transformers, which other checks do without."""

    def problems(self, record: PreferenceRecord, sizes: list[tuple[int, int]]) -> Problems: ...

    def summary(self) -> dict[str, dict[str, float]]: ...


def check_file(
    path: Path | str,
    *,
    root: Path | str | None = None,
    images: bool = True,
    lengths: TokenLengths | None = None,
    against: Sequence[DataReport | Path | str] = (),
) -> DataReport:
    """Check a file of preferences, of this project's records or of any format that `helpers/data/convert_files.py` reads.

    `root`: the data folder, which image paths may not leave (default: the folder of the file).
    `images=False` opens no image. `lengths`: also count the tokens that a model sees
    (`doctor.RecordLengths`). `against`: reports, files of records or folders of
    images; a photo that is there too is a leak. Raises UsageError if a file does not exist, or is a
    JSON array that is cut off.
    """
    path = Path(path)
    doctor = _DataDoctor(path, Path(root or path.parent), images, lengths)
    for line in tqdm(
        scan_file(path), desc=path.name, unit=" records", leave=False, disable=not images
    ):
        doctor.examine(line)
    for other in against:
        doctor.compare(
            other if isinstance(other, DataReport) else find_photos(other, images=images)
        )
    return doctor.finish()


def find_photos(path: Path | str, *, images: bool = True) -> DataReport:
    """Collect the photos of a file of records, or of a folder and its subfolders, to compare another file with."""
    if not Path(path).is_dir():
        return check_file(path, images=images)
    report = DataReport(Path(os.path.abspath(path)))
    files = sorted(file for file in report.path.rglob("*") if file.suffix.lower() in IMAGE_SUFFIXES)
    if not files:
        raise UsageError(
            f"{path}: holds no image ({', '.join(sorted(IMAGE_SUFFIXES))}). Give another folder."
        )
    for file in tqdm(files, desc=report.path.name, unit=" images", leave=False, disable=not images):
        for how, key in _photo_keys(file, file_hash(file) if images else None):
            report.photos[how].setdefault(key, Place(str(file)))
    return report


class _ImageFile(NamedTuple):
    """The content hash and size of an image file, or why it cannot be read."""

    content: str | None = None  # hash of its bytes
    size: tuple[int, int] = (0, 0)  # width, height
    problem: tuple[str, str] | None = None  # kind, message


def _look_at(file: Path) -> _ImageFile:
    """Read an image whole, opening the file once."""
    try:
        with file.open("rb") as stream:
            content = stream_hash(stream)
            megabytes = stream.tell() / 1e6
            with Image.open(stream) as image:
                image.convert(
                    "RGB"
                )  # as training will; the header alone is sound even if the rest was cut off
    except FileNotFoundError:
        return _ImageFile(problem=("missing image", f"{file} does not exist"))
    except (
        Exception
    ) as error:  # Pillow raises a dozen kinds on damaged files, SyntaxError among them
        unknown = isinstance(
            error, UnidentifiedImageError
        )  # whose message speaks of an _io.BufferedReader
        reason = (
            "no image of a known kind"
            if unknown
            else str(error).split("\n")[0] or type(error).__name__
        )
        return _ImageFile(problem=("unreadable image", f"{file} cannot be read ({reason})"))
    megapixels = image.width * image.height / 1e6
    if megapixels <= HUGE_MEGAPIXELS and megabytes <= HUGE_MEGABYTES:
        return _ImageFile(content, image.size)
    return _ImageFile(
        content,
        image.size,
        ("huge image", f"{file}: {megapixels:.1f} megapixels, {megabytes:.1f} MB"),
    )


def _photo_keys(file: Path, content: str | None) -> Iterator[tuple[str, int]]:
    """Yield the ways to recognise this photo elsewhere: (key of SAME_PHOTO, hash)."""
    yield "path", hash(str(file))
    if (name := photo_group(file)) != file.stem:  # a stem alone, such as 0001, names many photos
        yield "name", hash(name)
    if content:
        yield "content", hash(content)


def _text_problems(record: PreferenceRecord) -> Problems:
    """Find the problems in the texts, scores and ranks of one record."""
    prompt, answers = (
        "\n".join(message.content for message in record.prompt),
        [a.text for a in record.answers],
    )
    if n := count_placeholders(prompt):
        kind = "placeholder text" if n == len(record.images) else "image placeholders"
        yield kind, f"placeholders in the prompt: {n}, images of the record: {len(record.images)}"
    for place, text in enumerate(answers):
        if count_placeholders(text):
            yield (
                "image placeholders",
                f"answer {place} has a placeholder, but answers have no images",
            )
        if mark := END_MARK.search(text):
            yield "end of turn", f"answer {place} holds {mark.group()!r}"
        if mark := CHAT_MARK.search(text):
            yield "chat template", f"answer {place} holds {mark.group()!r}"
    if mark := CHAT_MARK.search(prompt) or END_MARK.search(prompt):
        yield "chat template", f"the prompt holds {mark.group()!r}"
    if len(set(answers)) < len(answers):
        yield "duplicate answers", f"{max(answers, key=answers.count)!r} occurs more than once"
    yield from _rank_problems(record)


def _rank_problems(record: PreferenceRecord) -> Problems:
    for better, worse in record.tier_pairs():
        high, low = record.answers[better].score, record.answers[worse].score
        if high is not None and low is not None and high < low:
            yield (
                "scores",
                f"answer {better} has {high:g} and is ranked above answer {worse}, which has {low:g}",
            )
    if len(record.ranking or []) < 2:
        yield "no pairs", "not ranked" if record.ranking is None else "all answers are tied"


class _Hashes(NamedTuple):
    """A record as hashes, by which it is compared with the ones before it."""

    record: int  # of images, prompt, answers and their ranks; not of ids, nor of the order shown
    pairs: list[
        tuple[int, int]
    ]  # of images, prompt, better and worse answer; and the other way round
    photos: list[tuple[str, int]]  # key of SAME and hash


def _hashes(record: PreferenceRecord, files: list[Path], contents: list[str | None]) -> _Hashes:
    images = tuple(content or str(file) for file, content in zip(files, contents, strict=True))
    context = hash((images, tuple((message.role, message.content) for message in record.prompt)))
    texts = [hash((context, answer.text)) for answer in record.answers]
    ranks = {place: rank for rank, tier in enumerate(record.ranking or []) for place in tier}
    ranked = sorted((ranks.get(place, -1), text) for place, text in enumerate(texts))
    pairs = [
        (hash((texts[i], texts[j])), hash((texts[j], texts[i]))) for i, j in record.tier_pairs()
    ]
    photos = [
        key
        for file, content in zip(files, contents, strict=True)
        for key in _photo_keys(file, content)
    ]
    return _Hashes(hash(tuple(ranked)), pairs, photos)


class _DataDoctor:
    """Takes lines one at a time and remembers, as hashes, what later ones are compared with."""

    def __init__(self, path: Path, root: Path, images: bool, lengths: TokenLengths | None) -> None:
        self.report = DataReport(
            path, counts=dict.fromkeys(("lines", "records", "pairs", "images"), 0)
        )
        self.path, self.root = Path(os.path.abspath(path)), Path(os.path.abspath(root))
        self.images, self.lengths = images, lengths
        self.looks: dict[Path, _ImageFile] = {}
        self.ids: dict[str, int] = {}  # → line where it was first, as below
        self.records: dict[int, int] = {}
        self.pairs: dict[int, int] = {}
        self.rules = BlindRules()

    def examine(self, line: RecordLine) -> None:
        self.report.counts["lines"] += 1
        record, place = line.record, Place(f"{self.report.path}:{line.number}", line.number)
        if record is None:
            self._add("bad line", line.error, place)
            return
        place = place._replace(record_id=record.id, group=record.group)
        files = [Path(os.path.normpath(self.path.parent / name)) for name in record.images]
        found = [("altered", line.change)] if line.change else []
        found += [*_text_problems(record), *self._image_problems(record, files)]
        looks = [self.looks.get(file, _ImageFile()) for file in files]
        hashes = _hashes(record, files, [look.content for look in looks])
        found += self._conflicts(place, hashes)
        if self.lengths:
            found += self.lengths.problems(record, [look.size for look in looks if look.content])
        for problem in found:
            self._add(*problem, place)
        if not any(FINDING_KINDS[kind][0] == "error" for kind, _ in found):
            self._remember(record, place, hashes)

    def _add(self, kind: str, message: str, place: Place) -> None:
        self.report.findings.append(
            Finding(FINDING_KINDS[kind][0], kind, place.line, place.record_id, message)
        )

    def _image_problems(self, record: PreferenceRecord, files: list[Path]) -> Problems:
        files = files + [
            Path(os.path.normpath(self.path.parent / name)) for name in record.negative_images
        ]
        for name, file in zip(record.images + record.negative_images, files, strict=True):
            if ABSOLUTE_PATH.match(name):
                yield "path", f"{name} is an absolute path"
            elif not file.is_relative_to(self.root):
                yield "path", f"{name} leaves the data folder {self.root}"
            if self.images:
                new = file not in self.looks
                look = self.looks[file] = _look_at(file) if new else self.looks[file]
                if look.problem and (
                    new or not look.content
                ):  # a huge image is told once, a missing one each time
                    yield look.problem

    def _conflicts(self, place: Place, hashes: _Hashes) -> Problems:
        """Find contradictions to earlier records that had no errors."""
        if place.record_id in self.ids:
            yield "duplicate id", f"line {self.ids[place.record_id]} has this id too"
        opposite = [self.pairs[reverse] for _, reverse in hashes.pairs if reverse in self.pairs]
        if opposite:
            yield (
                "contradiction",
                f"line {opposite[0]} ranks two of these answers the other way round",
            )
        if hashes.record in self.records:
            yield "duplicate record", f"says the same as line {self.records[hashes.record]}"
        for how, key in hashes.photos:
            first = self.report.photos[how].get(key, place)
            if first.group and place.group and first.group != place.group:
                yield (
                    "photo in two groups",
                    f"in {place.group}, but line {first.line} in {first.group} has {SAME_PHOTO[how]}",
                )
                break

    def _remember(self, record: PreferenceRecord, place: Place, hashes: _Hashes) -> None:
        if record.id is not None:
            self.ids[record.id] = place.line
        self.records.setdefault(hashes.record, place.line)
        for pair, _ in hashes.pairs:
            self.pairs.setdefault(pair, place.line)
        groups = [("group", hash(record.group))] if record.group else []
        for how, key in hashes.photos + groups:
            known = self.report.photos[how].setdefault(key, place)
            if place.group and not known.group:
                self.report.photos[how][key] = place
        self.report.counts["records"] += 1
        self.report.counts["pairs"] += len(hashes.pairs)
        self.rules.add(record)

    def compare(self, other: DataReport) -> None:
        """Find photos that are in the other file or folder too, each told once."""
        told: set[Place] = set()
        for how, photos in self.report.photos.items():
            for key, place in photos.items():
                if key in other.photos[how] and place not in told:
                    told.add(place)
                    self._add(
                        "leak", f"{other.photos[how][key].where} has {SAME_PHOTO[how]}", place
                    )
        if other.errors:
            self._add("not compared", f"{len(other.errors):,} errors in {other.path}", Place(""))

    def finish(self) -> DataReport:
        self.report.counts["images"] = len(self.report.photos["path"])
        self.report.blind = self.rules.table()
        if not self.report.counts["lines"]:
            self._add("no records", "the file is empty", Place(""))
        for rule, share in self.report.blind.get("all", {}).items():
            if share.n >= BLIND_PAIRS and share.low > BLIND_LIMIT:
                self._blind_rule(rule, share)
        if self.lengths:
            self.report.lengths = self.lengths.summary()
        self.report.findings.sort(key=lambda finding: finding.line or 0)
        return self.report

    def _blind_rule(self, rule: str, share: Proportion) -> None:
        message = (
            f"{rule!r} picks the chosen answer without looking, in a share of the pairs of {share}"
        )
        kinds = {kind: row[rule] for kind, row in self.report.blind.items() if kind != "all"}
        if len(kinds) > 1:
            most = max(kinds, key=lambda kind: kinds[kind].value)
            message += f", and of {kinds[most]} where the rejected answer is {most!r}"
        self._add("position" if rule.startswith("shown") else "blind rule", message, Place(""))
