"""Labels in the form of Pascal VOC: an XML file an image.

They are beside the images, or in `Annotations` with the images in `JPEGImages` or `images`. Splits
are lists in `ImageSets/Main`, or folders with the names of splits. Objects marked `difficult` are
there, so they are counted.
"""

from collections import defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path, PurePosixPath
from xml.etree import ElementTree

from helpers.files import UsageError

from ..image_names import ImageFinder
from ..leftovers import Leftovers
from ..split_names import split_name, split_of_file
from .counted import IMAGE_SUFFIXES, LabelledImage, Labels

XML_HEAD = 4096  # bytes in which an annotation says that it is one
XML_PLACES = ("*.xml", "*/*.xml", "*/*/*.xml")  # train/Annotations/1.xml is the deepest
SPLIT_LISTS = Path("ImageSets", "Main")
IMAGE_FOLDERS = ("JPEGImages", "images", "Images")


class VocLabels(Labels[Path]):
    """The labels of a folder in the form of Pascal VOC."""

    def __init__(self, folder: Path, files: dict[str, list[Path]], left: Leftovers) -> None:
        super().__init__(folder, files, left)
        self._read: dict[str, list[LabelledImage]] = {}
        self._images: dict[Path, dict[str, list[Path]]] = {}
        self._finder = ImageFinder([folder])

    def class_names(self) -> list[str]:
        """The names that occur in any split: VOC has no list of its classes."""
        read = [image for split in self.splits for image in self.read(split)]
        names = sorted({name for image in read for name in image.objects})
        if not names:
            raise UsageError(f"{self.folder}: no object is labelled in any image.")
        return names

    def read(self, split: str) -> list[LabelledImage]:
        """Read the images of a split. Raises UsageError naming the XML file of what is wrong."""
        if split not in self._read:
            self._read[split] = self._read_files(self.places[split])
        return self._read[split]

    def _read_files(self, paths: Sequence[Path]) -> list[LabelledImage]:
        read = []
        labels: dict[Path, Path] = {}  # image → its XML file
        for path in paths:
            file, names = _read_annotation(path)
            image = self._find_image(path, file)
            if image is None:
                self.left.add("the image of a label is not there", f"{path}: {file or path.stem}")
                self.left_out.add(path)
                continue
            if image in labels:
                raise UsageError(
                    f"{path} and {labels[image]} are both about {image}. Remove one of them."
                )
            labels[image] = path
            read.append(LabelledImage(image, names, path))
        return read

    def _find_image(self, path: Path, file: str) -> Path | None:
        """The image of an XML file: the one with its name, else the one that it names.

        What it names was true where it was labelled: a path of that machine, the name that the
        camera gave, a name without its ending.
        """
        named = PurePosixPath(file.replace("\\", "/"))
        for folder in self._image_folders(path):
            images = self._images_in(folder)
            for stem in (path.stem, named.stem, named.name):
                found = images.get(stem.casefold(), [])
                if len(found) == 1:
                    return found[0]
        # Anywhere in the folder, if only one image is called so
        try:
            return self._finder.find(file or path.stem)
        except UsageError:
            return None

    def _image_folders(self, path: Path) -> Iterator[Path]:
        """Where the image of an XML file may be, the likeliest first."""
        yield path.parent
        inner = path.parent.relative_to(self.folder).parts[1:]  # Annotations/train → train
        for name in IMAGE_FOLDERS:
            yield path.parent.parent / name
            yield self.folder.joinpath(name, *inner)

    def _images_in(self, folder: Path) -> dict[str, list[Path]]:
        """The images in a folder by their names without ending and case."""
        if folder not in self._images:
            images = defaultdict(list)
            for image in sorted(folder.iterdir()) if folder.is_dir() else ():
                if image.suffix.lower() in IMAGE_SUFFIXES:
                    images[image.stem.casefold()].append(image)
            self._images[folder] = images
        return self._images[folder]


def _read_annotation(path: Path) -> tuple[str, tuple[str, ...]]:
    """The image that an XML file names, "" if none, and the class of each object."""
    try:
        raw = path.read_bytes()
        # A few lines of entities are a gigabyte when they are put in
        if b"<!ENTITY" in raw:
            raise UsageError(f"{path}: declares XML entities, which no label needs. Remove them.")
        root = ElementTree.fromstring(raw)
    except (OSError, ElementTree.ParseError, LookupError, ValueError) as error:
        if isinstance(error, UsageError):
            raise
        raise UsageError(
            f"{path}: not a Pascal VOC file ({error}). Export it again or drop the image."
        ) from None
    names = []
    # Parts of an object (a person's head) are not objects of their own
    for number, node in enumerate(root.findall("object"), start=1):
        name = (node.findtext("name") or "").strip()
        if not name:
            raise UsageError(f"{path}: object {number} has no <name>. Correct it.")
        if node.find("score") is not None or node.find("confidence") is not None:
            raise UsageError(
                f"{path}: object {number} has a score: a model's predictions are no truth. Take "
                "the labels that people made."
            )
        names.append(name)
    return (root.findtext("filename") or "").strip(), tuple(names)


# --- where the XML files are ----------------------------------------------------------------------


def find_voc(folder: Path, left: Leftovers) -> VocLabels | None:
    """Find labels in the form of Pascal VOC; None if the folder has none."""
    annotations = _listed_files(folder) or _files_by_folder(folder)
    return VocLabels(folder, annotations, left) if annotations else None


def _listed_files(folder: Path) -> dict[str, list[Path]]:
    """The XML files of each split that ImageSets/Main lists."""
    files: dict[str, list[Path]] = {}
    for listed in sorted((folder / SPLIT_LISTS).glob("*.txt")):
        # Beside train.txt stands car_train.txt, in which every image is marked as with or without
        split = split_name(listed.stem)
        if not split:
            continue
        for line in listed.read_text(encoding="utf-8-sig").splitlines():
            if line.strip():
                name = f"{line.split()[0]}.xml"
                files.setdefault(split, []).append(folder / "Annotations" / name)
    return files


def _files_by_folder(folder: Path) -> dict[str, list[Path]]:
    """The XML files by the split that their folder names."""
    files: dict[str, list[Path]] = {}
    for pattern in XML_PLACES:
        for path in sorted(folder.glob(pattern)):
            if not path.is_file():
                continue
            with path.open("rb") as file:
                if b"<annotation" not in file.read(XML_HEAD):
                    continue
            # The name of the file is that of a photo
            split = split_of_file(path.parent, folder) if path.parent != folder else ""
            files.setdefault(split, []).append(path)
    return files
