"""Commands that read data and artifacts: checked, converted, verified."""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Literal

from typer import Argument, Option

from helpers.files import ROOT, UsageError, write_json

from .program import app

TruthOption = Annotated[
    str | None,
    Option(
        metavar="KIND",
        help="How answers are compared with the true ones: exact_match, vqa_accuracy, anls, "
        "token_f1, cosine, choice, yes_no, or none to leave them out.",
        show_default="as the data says",
    ),
]


@app.command("check")
def check_files(
    file: Annotated[list[Path], Argument(help="Several: also searched for photos they share.")],
    root: Annotated[Path | None, Option(help="Folder of the images, if not the file's.")] = None,
    no_images: Annotated[bool, Option("--no-images", help="Be quicker: open no image.")] = False,
    model: Annotated[str | None, Option(help="Count tokens as this model does.")] = None,
    benchmark: Annotated[
        list[Path] | None,
        Option(
            metavar="PATH",
            help="Folder of images or file of records whose photos must not be in the files; "
            "may be repeated.",
        ),
    ] = None,
    salvage: Annotated[
        Path | None,
        Option(
            metavar="OUT", help="Write good lines to OUT, others to OUT with suffix .bad.jsonl."
        ),
    ] = None,
    json: Annotated[Path | None, Option(metavar="OUT", help="Write findings as JSON too.")] = None,
    truth: TruthOption = None,
) -> None:
    """Say what is wrong with data, before training with it.

    Preferences and questions in any known format, tables, folders, zips. Exit code 1 if something
    has errors.
    """
    from helpers import data

    if salvage and not data.is_preference_file(file[0]):
        raise UsageError(f"{file[0]}: --salvage sorts the lines of a file of preferences only.")
    if salvage and len(file) > 1:
        raise UsageError("--salvage takes one file at a time: check the others by themselves.")
    # what must not be in the files: photos of benchmarks, and of the files before
    images = not no_images
    against = [data.find_photos(path, images=images) for path in benchmark or ()]
    about = {"root": root, "images": images, "model": model, "truth": truth}
    reports, unused = _check_each(file, against, **about)
    if json:
        write_json(json, [report.to_json() for report in reports])
    if salvage:
        _print_salvaged(file[0], salvage, *data.salvage(file[0], reports[0], salvage))
    if errors := unused + sum(len(report.errors) for report in reports):
        raise UsageError(f"errors found: {errors:,}, see above. Correct them before training.")


def _check_each(
    files: list[Path],
    against: list[Any],
    root: Path | None,
    images: bool,
    model: str | None,
    truth: str | None,
) -> tuple[list[Any], int]:
    """Check one file after the other: their reports, and how much of others is not used."""
    from helpers import data

    # of each file its own
    new_lengths = _lengths_of(model) if model else lambda: None
    reports, unused = [], 0
    for path in files:
        if truth is None and data.is_preference_file(path):
            given = {"lengths": new_lengths(), "against": [*against, *reports]}
            reports.append(data.check_file(path, root=root, images=images, **given))
            print(reports[-1], end="\n\n")
        else:
            of_splits, left_out = _check_opened(path, truth, images, new_lengths)
            reports += of_splits
            unused += left_out
    return reports, unused


def _check_opened(
    path: Path, truth: str | None, images: bool, new_lengths: Callable[[], Any]
) -> tuple[list[Any], int]:
    """Check data of any kind and print what is in it: its reports, and how much is not used."""
    from helpers import data

    opened, reports = data.check_source(path, truth=truth, images=images, new_lengths=new_lengths)
    print(opened, *reports, sep="\n\n", end="\n\n")
    return reports, opened.left.errors


def _print_salvaged(source: Path, out: Path, good: int, bad: int) -> None:
    if out.resolve().parent != source.resolve().parent:
        print(
            f"Image paths are relative to their file: move {out} beside {source} before using it."
        )
    print(f"good lines: {good:,} → {out}, others: {bad:,} → {out.with_suffix('.bad.jsonl')}")


def _lengths_of(name: str) -> Callable[[], Any]:
    """Makes what counts the tokens of a file as a model sees them, without its weights."""
    from transformers import AutoConfig

    from helpers.doctor import RecordLengths
    from helpers.models import load_processor, original_source

    # loaded once for all files
    processor, source = load_processor(name), original_source(name)
    config = AutoConfig.from_pretrained(source.location, revision=source.revision).get_text_config()
    limit = processor.tokenizer.model_max_length
    longest = min(limit, getattr(config, "max_position_embeddings", limit))
    return partial(RecordLengths, processor, longest)


@app.command("convert")
def convert_preferences(
    file: Path,
    out: Path,
    to: Annotated[str, Option(help="Format to write; record is this project's own.")] = "record",
    pairs: Annotated[
        Literal["all", "extremes"], Option(help="All pairs, or best against worst.")
    ] = "all",
    truth: TruthOption = None,
    strip: Annotated[
        bool, Option("--strip", help="Take marks of chat templates off the texts.")
    ] = False,
) -> None:
    """Convert preferences or questions of any known format, also tables, folders and zips."""
    from helpers import data

    if truth is None and data.is_preference_file(file):
        print(data.convert_file(file, out, to, pairs, strip))
    else:
        print(data.convert_source(file, out, to, pairs, truth, strip))


@app.command("verify")
def verify_artifacts(
    folder: Annotated[Path, Argument(help="artifacts/, or a part of it.")],
) -> None:
    """Say of each saved model and checkpoint what it was made from, and whether it is whole.

    Hashes are computed again. Ends with 1 if a file is missing or is not what was written.
    """
    from helpers.machine import find_artifacts

    found = find_artifacts(folder)
    for artifact in found:
        print(artifact)
    broken = [artifact for artifact in found if artifact.broken]
    if broken:
        raise UsageError(
            f"{len(broken)} of {len(found)} are not as they were written. Remove them and run what "
            "makes them again; a run goes on from an older checkpoint that is whole."
        )


@app.command("schema")
def write_schema() -> None:
    """Write the JSON Schema of a record to data/."""
    from helpers.data import json_schema

    print(write_json(ROOT / "data" / "preference_record.schema.json", json_schema()))
