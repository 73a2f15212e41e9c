"""`python -m helpers …`: the stages as commands."""

import argparse
import ast
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from helpers import notebooks
from helpers.files import ROOT, UsageError, artifacts_dir, read_json, write_json

DEMO_PARAMETERS: dict[str, dict[str, Any]] = {
    "03": {"HEADS": ("mlp",), "OBJECTIVES": ("bradley_terry",)},
    "04": {"SEEDS": (0, 1, 2), "GALLERY_STEPS": 0, "SWEEP": (), "ROUNDS": 0},
    "05": {"COMPARE": ("rloo", "grpo"), "HACKING": 0, "VQA": 0},
    "07": {"POLICIES": ("dpo/*", "ppo/ppo")},
}


def parse_setting(text: str) -> tuple[str, Any]:
    """`STEPS=60` → ("STEPS", 60); a value that is not a Python literal is taken as text."""
    name, equals, value = text.partition("=")
    if not equals:
        raise UsageError(f"--set {text!r}: write NAME=VALUE, for example --set STEPS=60")
    try:
        return name, ast.literal_eval(value)
    except (ValueError, SyntaxError):
        return name, value


def run_notebooks(args: argparse.Namespace) -> None:
    """Run notebooks in the order given; a setting goes to those that have a parameter of that name."""
    values = dict(parse_setting(text) for text in args.set)
    known = {name: notebooks.parameters(name) for name in args.notebook}
    for setting in values:
        if not any(setting in names for names in known.values()):
            choices = ", ".join(sorted(set().union(*known.values())))
            raise UsageError(f"unknown parameter {setting!r}: these notebooks have {choices}")
    for name in args.notebook:
        started = time.perf_counter()
        own = {setting: value for setting, value in values.items() if setting in known[name]}
        page = notebooks.run_notebook(name, own, artifacts_dir() / "report" / "notebooks")
        print(f"{name}: {time.perf_counter() - started:.0f} s → {page}", flush=True)


def run_demo(args: argparse.Namespace) -> None:
    """Run the suite on the embedded model, with three training seeds, and print what came out."""
    from helpers.report import Section, collect_headlines, read_sections

    started = args.started or time.time()
    pages = artifacts_dir() / "report" / "notebooks"
    for old in (artifacts_dir() / "report" / "sections").glob("*.json"):
        old.unlink()
    for entry in notebooks.catalogue():
        name = entry["file"][:2]
        print(f"[{time.time() - started:4.0f} s] notebook {name} …", flush=True)
        notebooks.run_notebook(name, DEMO_PARAMETERS.get(name), pages)
    section = Section("99_demo", "The whole demo")
    seconds = time.time() - started
    section.add_value("demo_seconds", seconds)
    peak = collect_headlines(read_sections())["peak_memory_gb"].value
    section.conclude(f"The demo took {seconds:.0f} s; peak memory of a notebook {peak:.2f} GB.")
    page = section.save()
    print_summary(read_json(page.parent / "summary.json"))
    print(f"report: {page}")


def print_summary(figures: dict[str, dict[str, float]]) -> None:
    for name, figure in figures.items():
        interval = f" [{figure['low']:.3f}, {figure['high']:.3f}]" if figure["n"] > 1 else ""
        print(
            f"{name:<36} {figure['value']:>10.4g}{interval} (n = {figure['n']}, seed {figure['seed']})"
        )


def run_recipe(args: argparse.Namespace) -> None:
    """Run the stages of a recipe: in one process, or in each of those that torchrun or accelerate has started."""
    from helpers.recipe_stages import run_stages
    from helpers.recipes import RecipeRun, find_recipe, read_recipe

    path = find_recipe(args.config)
    recipe = read_recipe(
        path, laptop=args.laptop, changes=[parse_setting(text) for text in args.set]
    )
    run_stages(RecipeRun(recipe, args.out or artifacts_dir() / "recipes" / path.stem), args.stage)


def write_report(args: argparse.Namespace) -> None:
    """Write the page and the model cards from what the notebooks found; run the evaluation if nobody has."""
    from helpers.report import EVALUATION_NOTEBOOK, build_report

    folder = artifacts_dir() / "report"
    if args.again or not (folder / "sections" / f"{EVALUATION_NOTEBOOK}.json").exists():
        values = {"MODEL": args.model} | (
            {"ADAPTERS": str(args.adapters.resolve())} if args.adapters else {}
        )
        notebooks.run_notebook(EVALUATION_NOTEBOOK, values, folder / "notebooks")
    for path in [build_report(), *sorted((folder / "cards").glob("*.md"))]:
        print(path)


def check_files(args: argparse.Namespace) -> None:
    """Say what is wrong with files of preference records; an error in one of them is a failure."""
    from helpers import data

    if args.salvage and len(args.file) > 1:
        raise UsageError("--salvage takes one file at a time: check the others by themselves.")
    others = [data.find_photos(path, images=args.images) for path in args.benchmark]
    new_lengths = _lengths_of(args.model) if args.model else lambda: None
    reports = []
    for path in args.file:
        lengths, against = new_lengths(), [*others, *reports]
        reports.append(
            data.check_file(
                path, root=args.root, images=args.images, lengths=lengths, against=against
            )
        )
        print(reports[-1], end="\n\n")
    if args.json:
        write_json(args.json, [report.to_json() for report in reports])
    if args.salvage:
        good, bad = data.salvage(args.file[0], reports[0], args.salvage)
        if args.salvage.resolve().parent != args.file[0].resolve().parent:
            print(
                f"Image paths are relative to their file: move {args.salvage} beside {args.file[0]} before using it."
            )
        print(
            f"good lines: {good:,} → {args.salvage}, others: {bad:,} → {args.salvage.with_suffix('.bad.jsonl')}"
        )
    if errors := sum(len(report.errors) for report in reports):
        raise UsageError(f"errors found: {errors:,}, see above. Correct them before training.")


def convert_preferences(args: argparse.Namespace) -> None:
    """Convert a preference file of any known format."""
    from helpers.data import convert_file

    print(convert_file(args.file, args.out, args.to, args.pairs))


def export_adapter(args: argparse.Namespace) -> None:
    """Merge an adapter into its base, check the result, and put it on the hub if that is wanted."""
    from helpers import export

    if args.push:
        export.push_token(args.push)  # rather now than after the merge
    elif args.public:
        raise UsageError("--public says how to push: give --push OWNER/NAME, too.")
    export.merge(None, args.adapter, args.out, export.EXPORT_DTYPES[args.dtype])
    if args.push:
        print(export.push(args.out, args.push, private=not args.public))


def write_schema(args: argparse.Namespace) -> None:
    """Write the JSON Schema of a preference record."""
    from helpers.data import json_schema

    print(write_json(ROOT / "data" / "preference_record.schema.json", json_schema()))


def print_memory(args: argparse.Namespace) -> None:
    """Print what presets take in memory, by arithmetic."""
    from helpers.machine import Workload, memory_table
    from helpers.models import PRESETS

    size = (args.width, args.height, args.max_pixels)
    print(memory_table([Workload(name, *size) for name in args.model or PRESETS]))


def _lengths_of(name: str) -> Callable[[], Any]:
    """Makes what counts the tokens of a file as a model sees them; the processor is loaded once, weights are not."""
    from transformers import AutoConfig

    from helpers.doctor import RecordLengths
    from helpers.models import load_processor, original_source

    processor, source = load_processor(name), original_source(name)
    config = AutoConfig.from_pretrained(source.location, revision=source.revision).get_text_config()
    limit = processor.tokenizer.model_max_length
    return partial(
        RecordLengths, processor, min(limit, getattr(config, "max_position_embeddings", limit))
    )


def build_parser() -> argparse.ArgumentParser:
    top = argparse.ArgumentParser(prog="python -m helpers", description=__doc__)
    commands = top.add_subparsers(required=True, metavar="command")
    command = commands.add_parser(
        "demo", help="run the suite on the embedded model and write the report"
    )
    command.add_argument(
        "--started", type=float, help="time (seconds since 1970) from which demo_seconds counts"
    )
    command.set_defaults(action=run_demo)
    command = commands.add_parser("run", help="run notebooks whole, in the order given")
    command.add_argument("notebook", nargs="+", help="for example 02 04 06")
    command.add_argument(
        "--set", action="append", default=[], metavar="NAME=VALUE", help="set a parameter"
    )
    command.set_defaults(action=run_notebooks)
    command = commands.add_parser("train", help="run the stages of a recipe")
    command.add_argument(
        "--config", required=True, help="a recipe's name (see recipes/) or the path of a TOML file"
    )
    command.add_argument(
        "--stage", action="append", default=[], help="only this stage; may be repeated"
    )
    command.add_argument(
        "--laptop", action="store_true", help="as [laptop] in the recipe says: no GPU is needed"
    )
    command.add_argument(
        "--set", action="append", default=[], metavar="NAME=VALUE", help="dpo.settings.steps=20"
    )
    command.add_argument(
        "--out", type=Path, help="folder for all it makes (default: artifacts/recipes/NAME)"
    )
    command.set_defaults(action=run_recipe)
    command = commands.add_parser(
        "report", help="write the report and the model cards; evaluates first if needed"
    )
    command.add_argument("--model", default="tiny", help="base of the adapters (default: tiny)")
    command.add_argument(
        "--adapters", type=Path, help="folder with adapters (default: the artifacts)"
    )
    command.add_argument(
        "--again", action="store_true", help="evaluate again, though it was done before"
    )
    command.set_defaults(action=write_report)
    command = commands.add_parser(
        "check", help="say what is wrong with files of preference records"
    )
    command.description = (
        "Check files of preference records (JSONL) before training. Exit code 1 if one has errors."
    )
    command.add_argument(
        "file", nargs="+", type=Path, help="several are also searched for photos they share"
    )
    command.add_argument(
        "--root", type=Path, help="data folder that holds the images (default: that of the file)"
    )
    command.add_argument(
        "--no-images", dest="images", action="store_false", help="open no image: quicker"
    )
    command.add_argument(
        "--model", help="count tokens as this model does, for example tiny or qwen2-vl-2b"
    )
    command.add_argument(
        "--benchmark",
        action="append",
        default=[],
        type=Path,
        metavar="PATH",
        help="folder of images or file of records whose photos must not be in the files; may be repeated",
    )
    command.add_argument(
        "--salvage",
        type=Path,
        metavar="OUT",
        help="write good lines to OUT, others to OUT with suffix .bad.jsonl",
    )
    command.add_argument("--json", type=Path, metavar="OUT", help="write the findings as JSON too")
    command.set_defaults(action=check_files)
    command = commands.add_parser("convert", help="convert a preference file of any known format")
    command.add_argument("file", type=Path)
    command.add_argument("out", type=Path)
    command.add_argument(
        "--to", default="record", help="format to write (default: this project's records)"
    )
    command.add_argument(
        "--pairs",
        choices=("all", "extremes"),
        default="all",
        help="all pairs, or best against worst",
    )
    command.set_defaults(action=convert_preferences)
    command = commands.add_parser(
        "export", help="merge an adapter into its base, check it, put it on the hub"
    )
    command.add_argument(
        "adapter", type=Path, help="folder of a policy's adapter, for example artifacts/dpo/seed-0"
    )
    command.add_argument(
        "out", type=Path, help="folder for the merged model: a new one or an empty one"
    )
    command.add_argument(
        "--dtype", choices=("fp16", "fp32"), default="fp16", help="precision of the merged weights"
    )
    command.add_argument(
        "--push",
        metavar="OWNER/NAME",
        help="upload it to this repository of the hub, a private one",
    )
    command.add_argument(
        "--public", action="store_true", help="with --push: everybody may see the repository"
    )
    command.set_defaults(action=export_adapter)
    command = commands.add_parser(
        "memory", help="say what presets take in memory, with gradient checkpointing"
    )
    command.description = (
        "GB with the smallest batch, and the largest batch on cards of so many GB, by arithmetic."
    )
    command.add_argument(
        "--model", action="append", metavar="NAME", help="preset or folder (default: all presets)"
    )
    command.add_argument(
        "--width", type=int, default=1024, help="of an image in pixels (default: 1024)"
    )
    command.add_argument(
        "--height", type=int, default=1024, help="of an image in pixels (default: 1024)"
    )
    command.add_argument(
        "--max-pixels", type=int, help="that images are reduced to (default: the model's own)"
    )
    command.set_defaults(action=print_memory)
    command = commands.add_parser("schema", help="write the JSON Schema of a record to data/")
    command.set_defaults(action=write_schema)
    return top


def main(arguments: list[str] | None = None) -> int:
    args = build_parser().parse_args(arguments)
    try:
        args.action(args)
    except UsageError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0
