"""`python -m helpers …`: the stages as commands.

What a command needs is imported in it: torch takes seconds, and `check` needs none of it.
"""

import ast
import contextlib
import os
import sys
import time
import traceback
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Literal

from typer import Argument, Option, Typer
from typer.main import get_command

from helpers import notebooks
from helpers.files import (
    ROOT,
    PrintableOutput,
    UsageError,
    artifacts_dir,
    explain_error,
    printable,
    read_json,
    write_json,
)

# What the demo gives the notebooks in place of their own values, so that it is shorter. A run of
# other settings in the artifacts is kept under another name.
DEMO_PARAMETERS: dict[str, dict[str, Any]] = {
    "03": {"HEADS": ("mlp",), "OBJECTIVES": ("bradley_terry",), "REPLACE": True},
    "04": {
        "SEEDS": (0, 1, 2),
        "GALLERY_STEPS": 0,
        "HIGH_RATE_STEPS": 0,
        "SWEEP": (),
        "ROUNDS": 0,
        "REPLACE": True,
    },
    "05": {"COMPARE": ("rloo", "grpo", "critic"), "HACKING": 0, "VQA": 0, "REPLACE": True},
    "07": {"POLICIES": ("dpo/*", "sft/seed-0", "ppo/ppo")},
}
# In place of these where another model is taken, for which a training takes minutes
LARGER_DEMO: dict[str, dict[str, Any]] = {"04": {"SEEDS": (0,)}, "05": {"COMPARE": ()}}

TruthOption = Annotated[
    str | None,
    Option(
        metavar="KIND",
        help="How answers are compared with the true ones: exact_match, vqa_accuracy, anls, "
        "token_f1, cosine, choice, yes_no, or none to leave them out.",
        show_default="as the data says",
    ),
]

DemoModelOption = Annotated[
    str | None,
    Option(
        help="Another base for all notebooks, such as smollm2-scenes; its artifacts and pages go "
        "to artifacts/demo-NAME.",
        show_default="the task's",
    ),
]

STOPPED_BY_CTRL_C = 130  # the exit code, as of any program

app = Typer(
    help="The stages as commands.",
    add_completion=False,
    rich_markup_mode=None,  # plain text, which needs no import of seconds
    pretty_exceptions_enable=False,
)


def main(arguments: list[str] | None = None) -> int:
    """Run a command and return its exit code; what the reader can put right is one line.

    With VLM_TRACEBACK=1 a traceback is printed before it.
    """
    try:
        # What is printed holds names and texts of files that somebody else has written
        with contextlib.redirect_stdout(PrintableOutput(sys.stdout)):
            get_command(app)(arguments, prog_name="python -m helpers")
    except UsageError as error:
        print(f"error: {printable(str(error))}", file=sys.stderr)
        return 1
    except SystemExit as end:  # as typer ends every command
        if end.code == STOPPED_BY_CTRL_C:
            print(
                "Stopped by Ctrl-C. Repeat the command: what has a checkpoint goes on from it.",
                file=sys.stderr,
            )
        return end.code
    except Exception as error:
        said = explain_error(error)
        if said is None:
            raise
        if os.environ.get("VLM_TRACEBACK"):
            traceback.print_exc()
        print(f"error: {printable(said)}", file=sys.stderr)
        return 1
    return 0


def parse_setting(text: str) -> tuple[str, Any]:
    """`STEPS=60` → ("STEPS", 60); a value that is not a Python literal is taken as text."""
    if "=" not in text:
        raise UsageError(f"--set {text!r}: write NAME=VALUE, for example --set STEPS=60")
    name, value = text.split("=", 1)
    try:
        return name, ast.literal_eval(value)
    except (ValueError, SyntaxError):
        return name, value


@app.command("demo")
def run_demo(
    task: Annotated[
        str, Option(help="The shipped task: TASK of notebook 02.", metavar="TASK")
    ] = "counting",
    model: DemoModelOption = None,
    preset: Annotated[
        str, Option(help="PRESET of the trainings, where --model is given.")
    ] = "laptop",
    started: Annotated[
        float | None,
        Option(help="Seconds since 1970 from which demo_seconds counts.", show_default="now"),
    ] = None,
) -> None:
    """Run the suite on an embedded model and write the report.

    With three training seeds, with --model one; prints what came out. A demo that was cut off goes
    on with the notebook that it was in.
    """
    from helpers.data import choose_task
    from helpers.report import Section, collect_headlines, read_sections

    choose_task(task)  # a name that no task has is said now
    if model:
        os.environ["VLM_ARTIFACTS"] = str(artifacts_dir() / f"demo-{model}")
    # the set-up before, if `started` says so
    seconds = time.time() - (started or time.time())
    taken = notebooks.run_series(_demo_parameters(task, model, preset), artifacts_dir() / "report")
    seconds += sum(taken.values())
    # last of all, figures of the demo itself, on the same page as the notebooks'
    section = Section("99_demo", "The whole demo")
    for name, own in taken.items():
        section.add_value(f"notebook_{name}_seconds", own)
    section.add_value("demo_seconds", seconds)
    peak = collect_headlines(read_sections())["peak_memory_gb"].value
    section.conclude(f"The demo took {seconds:.0f} s; peak memory of a notebook {peak:.2f} GB.")
    page = section.save()
    print_summary(read_json(page.parent / "summary.json"))
    print(f"report: {page}")


def _demo_parameters(task: str, model: str | None, preset: str) -> dict[str, dict[str, Any]]:
    """What the demo gives each notebook, by its number."""
    values = {}
    for entry in notebooks.catalogue():
        number = entry["file"][:2]
        own = dict(DEMO_PARAMETERS.get(number, {}))
        if number == "02":
            own["TASK"] = task
        if model:
            known = notebooks.parameters(number)
            given = {"MODEL": model, "PRESET": preset, **LARGER_DEMO.get(number, {})}
            own |= {name: value for name, value in given.items() if name in known}
        values[number] = own
    return values


def print_summary(figures: dict[str, dict[str, float]]) -> None:
    for name, figure in figures.items():
        interval = f" [{figure['low']:.3f}, {figure['high']:.3f}]" if figure["n"] > 1 else ""
        made = f"(n = {figure['n']}, seed {figure['seed']})"
        print(f"{name:<36} {figure['value']:>10.4g}{interval} {made}")


@app.command("run")
def run_notebooks(
    notebook: Annotated[list[str], Argument(help="For example 02 04 06.")],
    changes: Annotated[
        list[str] | None, Option("--set", metavar="NAME=VALUE", help="Set a parameter.")
    ] = None,
) -> None:
    """Run notebooks whole, in the order given.

    A setting goes to those that have a parameter of that name.
    """
    # of `--set A=1 B=2` only the first is the option's own
    named = [name for name in notebook if "=" not in name]
    given = [*(changes or ()), *(text for text in notebook if "=" in text)]
    values = dict(parse_setting(text) for text in given)
    known = {name: notebooks.parameters(name) for name in named}
    # before anything runs: a notebook may take an hour
    for setting in values:
        if not any(setting in names for names in known.values()):
            choices = ", ".join(sorted(set().union(*known.values())))
            raise UsageError(f"unknown parameter {setting!r}: these notebooks have {choices}")
    for name in named:
        started = time.perf_counter()
        own = {setting: value for setting, value in values.items() if setting in known[name]}
        page = notebooks.run_notebook(name, own, artifacts_dir() / "report" / "notebooks")
        print(f"{name}: {time.perf_counter() - started:.0f} s → {page}", flush=True)


@app.command("train")
def run_recipe(
    more: Annotated[
        list[str] | None, Argument(metavar="[NAME=VALUE]...", help="Further settings of --set.")
    ] = None,
    *,
    config: Annotated[
        str, Option(help="A recipe's name (see recipes/) or the path of a TOML file.")
    ],
    stage: Annotated[
        list[str] | None, Option(help="Only this stage; may be repeated.", metavar="STAGE")
    ] = None,
    laptop: Annotated[
        bool, Option("--laptop", help="As [laptop] in the recipe says: no GPU is needed.")
    ] = False,
    changes: Annotated[
        list[str] | None,
        Option("--set", metavar="NAME=VALUE", help="For example dpo.settings.steps=20."),
    ] = None,
    out: Annotated[
        Path | None,
        Option(help="Folder for all it makes.", show_default="artifacts/recipes/NAME"),
    ] = None,
    replace: Annotated[
        bool, Option("--replace", help="Keep a run of other settings as NAME.old-1; train anew.")
    ] = False,
) -> None:
    """Run the stages of a recipe.

    In one process, or in each of those that torchrun or accelerate has started.
    """
    from helpers.recipe_stages import run_stages
    from helpers.recipes import RecipeRun, find_recipe, read_recipe

    path = find_recipe(config)
    settings = [parse_setting(text) for text in (*(changes or ()), *(more or ()))]
    recipe = read_recipe(path, laptop=laptop, changes=settings)
    folder = out or artifacts_dir() / "recipes" / path.stem
    run_stages(RecipeRun(recipe, folder, replace_other=replace), stage or ())


@app.command("report")
def write_report(
    model: Annotated[str, Option(help="Base of the adapters.")] = "tiny",
    adapters: Annotated[
        Path | None, Option(help="Folder with adapters.", show_default="the artifacts")
    ] = None,
    again: Annotated[
        bool, Option("--again", help="Evaluate again, though it was done before.")
    ] = False,
) -> None:
    """Write the report and the model cards; evaluate first if needed."""
    from helpers.report import EVALUATION_NOTEBOOK, build_report

    folder = artifacts_dir() / "report"
    if again or not (folder / "sections" / f"{EVALUATION_NOTEBOOK}.json").exists():
        values = {"MODEL": model}
        if adapters:
            values["ADAPTERS"] = str(adapters.resolve())
        notebooks.run_notebook(EVALUATION_NOTEBOOK, values, folder / "notebooks")
    for path in [build_report(), *sorted((folder / "cards").glob("*.md"))]:
        print(path)


@app.command("rewardbench")
def grade_on_benchmark(
    name: Annotated[
        str,
        Argument(help="vl_rewardbench, multimodal_rewardbench or multimodal_rewardbench_2."),
    ],
    file: Annotated[
        Path | None,
        Option(help="A file of the benchmark that you have.", show_default="the hub's copy"),
    ] = None,
    images: Annotated[
        Path | None, Option(help="Folder of its images.", show_default="the file's")
    ] = None,
    model: Annotated[str, Option(help="Base of the reward model, and the judge.")] = "tiny",
    reward: Annotated[Path | None, Option(help="Folder of a reward model to grade.")] = None,
    judge: Annotated[bool, Option("--judge", help="Ask the model itself, in both orders.")] = False,
    pairs: Annotated[int | None, Option(min=1, help="At most so many.", show_default="all")] = None,
) -> None:
    """Grade a reward model, a judge and rules that never look on a benchmark of pairs.

    Of a judge, the official reading of its replies is printed, too.
    """
    from helpers import evaluation, machine, models, rewards
    from helpers.report import markdown_table

    where = {"file": file, "images": images, "rows": pairs}
    records = evaluation.load_benchmark(name, artifacts_dir() / "benchmarks", **where)
    benchmark = evaluation.BENCHMARKS[name]
    rankers = {}
    asked = None
    if reward or judge:
        plan = machine.check_machine(model)
        loaded = models.load_model(model, max_pixels=plan.max_pixels)
        if reward:
            rankers["reward model"] = rewards.as_ranker(rewards.load_reward_model(*loaded, reward))
        if judge:
            use = partial(models.disable_adapters, loaded[0])
            asked = evaluation.judge_for(benchmark, rewards.ModelReplies(*loaded, use=use), model)
            rankers[f"judge {model}"] = asked
    print(f"{benchmark.title}, {len(records):,} pairs; a tie counts ½:")
    print(
        markdown_table(evaluation.grade_rows(evaluation.grade_rankers(records, rankers, benchmark)))
    )
    if asked:
        print(*asked.sentences(), sep="\n")
        print(evaluation.official.REPLY_GRADES[name](records, evaluation.official.votes_of(asked)))


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


@app.command("rank")
def rank_questions(
    questions: Annotated[
        str, Argument(help="Questions or preferences about images, in any known form.")
    ],
    out: Annotated[Path, Option(help="File of preference records to write.")],
    scorer: Annotated[
        str | None,
        Option(
            metavar="NAME",
            help="A ready scorer, one of your own (FILE.py:FUNCTION), or the folder of a reward "
            "model.",
            show_default="people rank them, in notebook 02",
        ),
    ] = None,
    model: Annotated[str, Option(help="Preset or folder; it gives the answers.")] = "tiny",
    answers: Annotated[int, Option(min=2, help="To each question.")] = 4,
    truth: Annotated[
        str | None, Option(metavar="KIND", help="Of the answers in the file, for the scorer.")
    ] = None,
    temperature: Annotated[float, Option(min=0.01, help="Higher: answers differ more.")] = 1.0,
    max_new_tokens: Annotated[
        int | None, Option(min=1, help="Of an answer.", show_default="by the truths")
    ] = None,
    seed: Annotated[int, Option(help="Another one gives other answers.")] = 0,
) -> None:
    """Let a model answer questions several times, and rank the answers.

    The result is preference records, as training takes them.
    """
    from helpers import data

    tasks = _read_tasks(questions, truth)
    how = {"temperature": temperature, "max_new_tokens": max_new_tokens, "seed": seed}
    records = _sample_and_rank(tasks, scorer, model, answers, **how)
    if not records:
        raise UsageError(
            f"{questions}: no question got two different answers, so there is nothing to rank. "
            "Take more --answers, or a higher --temperature."
        )
    data.write_records(out, records)
    pairs = sum(len(record.pairs()) for record in records)
    ranked = f"{pairs:,} pairs" if scorer else "not ranked: rank them in notebook 02"
    print(f"{len(records):,} of {len(tasks):,} questions, {ranked} → {out}")


def _read_tasks(source: str, truth: str | None) -> list[Any]:
    """The questions of a file or folder, those of preferences, too; says what was not used."""
    from helpers import data

    opened = data.open_data(source, truth=truth)
    print(opened)
    return opened.all_tasks()


def _sample_and_rank(
    tasks: list[Any], scorer: str | None, name: str, number: int, **how: Any
) -> list[Any]:
    """Records of `number` answers of a model to each task, ranked by a scorer of any kind."""
    from helpers import machine, models, rewards

    folder = Path(scorer) if scorer and Path(scorer).is_dir() else None
    score = rewards.get_scorer(scorer) if scorer and not folder else None
    if score:
        rewards.as_ranker(score).check(tasks)  # before a model is loaded
    plan = machine.check_machine(name)
    model, processor = models.load_model(name, max_pixels=plan.max_pixels)
    records = rewards.sample_and_rank(model, processor, tasks, score, number, **how)
    if folder:
        # only now: what a reward model has learnt is no part of the model that answers
        reward = rewards.load_reward_model(model, processor, folder)
        records = rewards.rank_again(records, reward)
    return records


@app.command("export")
def export_adapter(
    adapter: Annotated[
        Path, Argument(help="Folder of a policy's adapter, for example artifacts/dpo/seed-0.")
    ],
    out: Annotated[Path, Argument(help="Folder for the merged model: a new one or an empty one.")],
    dtype: Annotated[
        Literal["fp16", "fp32"], Option(help="Precision of the merged weights.")
    ] = "fp16",
    push: Annotated[
        str | None,
        Option(
            metavar="OWNER/NAME",
            help="Upload it to this repository of the hub, a private one.",
        ),
    ] = None,
    public: Annotated[
        bool, Option("--public", help="With --push: everybody may see the repository.")
    ] = False,
) -> None:
    """Merge an adapter into its base, check it, put it on the hub."""
    from helpers import export

    if push:
        export.push_token(push)  # rather now than after the merge
    elif public:
        raise UsageError("--public says how to push: give --push OWNER/NAME, too.")
    export.merge(None, adapter, out, export.EXPORT_DTYPES[dtype])
    if push:
        print(export.push(out, push, private=not public))


@app.command("memory")
def print_memory(
    model: Annotated[
        list[str] | None,
        Option(metavar="NAME", help="Preset or folder; may be repeated.", show_default="all"),
    ] = None,
    width: Annotated[int, Option(help="Of an image in pixels.")] = 1024,
    height: Annotated[int, Option(help="Of an image in pixels.")] = 1024,
    max_pixels: Annotated[
        int | None, Option(help="That images are reduced to.", show_default="the model's own")
    ] = None,
) -> None:
    """Say what presets take in memory, with gradient checkpointing.

    GB with the smallest batch, and the largest batch on cards of so many GB, by arithmetic.
    """
    from helpers.machine import Workload, memory_table
    from helpers.models import PRESETS

    print(memory_table([Workload(name, width, height, max_pixels) for name in model or PRESETS]))


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
