"""Commands that run notebooks, and the report of what they found."""

import os
import time
from pathlib import Path
from typing import Annotated, Any

from typer import Argument, Option

from helpers import notebooks
from helpers.files import UsageError, artifacts_dir, read_json

from .program import app, parse_setting

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
    "05": {
        "COMPARE": ("rloo", "grpo", "critic"),
        "HACKING": 0,
        "REJECTION": 0,
        "VQA": 0,
        "REPLACE": True,
    },
    "07": {"POLICIES": ("dpo/*", "sft/seed-0", "ppo/ppo")},
}
# In place of these where another model is taken, for which a training takes minutes
LARGER_DEMO: dict[str, dict[str, Any]] = {"04": {"SEEDS": (0,)}, "05": {"COMPARE": ()}}

DemoModelOption = Annotated[
    str | None,
    Option(
        help="Another base for all notebooks, such as smollm2-scenes; its artifacts and pages go "
        "to artifacts/demo-NAME.",
        show_default="the task's",
    ),
]


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
