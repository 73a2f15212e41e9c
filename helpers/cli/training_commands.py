"""Commands that train, rank and export: recipes, rankers, adapters, and what they will take."""

from functools import partial
from pathlib import Path
from typing import Annotated, Any, Literal

from typer import Argument, Option

from helpers.files import UsageError, artifacts_dir

from .program import app, parse_setting

ScorerOption = Annotated[
    str | None,
    Option(
        metavar="NAME",
        help="A ready scorer, one of your own (FILE.py:FUNCTION), or the folder of a reward model.",
        show_default="people rank them, in notebook 02",
    ),
]
JudgeOption = Annotated[
    str | None,
    Option(
        metavar="MODEL",
        help="In place of a scorer: a preset or folder of a model that is asked which of two "
        "answers is better, in both orders.",
    ),
]


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


@app.command("rank")
def rank_questions(
    questions: Annotated[
        str, Argument(help="Questions or preferences about images, in any known form.")
    ],
    out: Annotated[Path, Option(help="File of preference records to write.")],
    scorer: ScorerOption = None,
    judge: JudgeOption = None,
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

    if scorer and judge:
        raise UsageError("--scorer and --judge both rank: give one of them.")
    tasks = _read_tasks(questions, truth)
    how = {"temperature": temperature, "max_new_tokens": max_new_tokens, "seed": seed}
    records = _sample_and_rank(tasks, scorer, judge, model, answers, **how)
    if not records:
        raise UsageError(
            f"{questions}: no question got two different answers, so there is nothing to rank. "
            "Take more --answers, or a higher --temperature."
        )
    data.write_records(out, records)
    pairs = sum(len(record.pairs()) for record in records)
    ranked = f"{pairs:,} pairs" if scorer or judge else "not ranked: rank them in notebook 02"
    print(f"{len(records):,} of {len(tasks):,} questions, {ranked} → {out}")


def _read_tasks(source: str, truth: str | None) -> list[Any]:
    """The questions of a file or folder, those of preferences, too; says what was not used."""
    from helpers import data

    opened = data.open_data(source, truth=truth)
    print(opened)
    return opened.all_tasks()


def _sample_and_rank(
    tasks: list[Any], scorer: str | None, judge: str | None, name: str, number: int, **how: Any
) -> list[Any]:
    """Records of `number` answers of a model to each task, ranked by a scorer or a judge."""
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
        return rewards.rank_again(records, reward)
    if judge:
        if judge != name:
            # one model at a time: it needs the memory of the one that has answered
            del model, processor
            model, processor = models.load_model(judge)
        asked = rewards.PairJudge(rewards.ModelReplies(model, processor), f"judge {judge}")
        records = rewards.rank_again(records, asked)
        print(*asked.sentences(), sep="\n")
    return records


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
