"""The stages `data` and `rank`: what is asked, and the answers that are compared."""

from helpers.data import (
    FORMATS,
    SPLITS,
    PreparedData,
    convert_file,
    open_data,
    prepare_data,
    write_records,
)
from helpers.files import UsageError, write_json
from helpers.recipes import RANKED_FILE, RecipeRun
from helpers.rewards import (
    ModelReplies,
    PairJudge,
    RankedBy,
    as_ranker,
    degree_of,
    get_scorer,
    load_reward_model,
    reward_of,
    sample_and_rank,
)
from helpers.statistics import drawn_share

# Stages that read held-out pairs, too: behind `rank`, of the model's own answers
WITH_HELD_OUT_PAIRS = ("features", "captions", "reward", "dpo")


def prepare_recipe_data(run: RecipeRun) -> None:
    """Open data of any kind, split it if it is not, and put it into the format of the recipe."""
    recipe, settings = run.recipe, run.recipe.data
    about = {
        "truth": settings.truth,
        "classes": settings.classes,
        "questions": settings.questions,
    }
    opened = open_data(settings.sources(), images=settings.images or None, **about)
    share = settings.train_share
    prepared = prepare_data(
        opened,
        run.folder / "data",
        max_pixels=recipe.max_pixels,
        model=recipe.model,
        seed=recipe.seed,
        shares=(share, 0, 1 - share) if share else None,
        limit=settings.limit,
    )
    if opened.all_records():
        if settings.format in FORMATS:
            _through_format(prepared, settings.format)
        run.add_figure("pairs", sum(len(record.pairs()) for record in run.records("train")))
        return
    for split, counts in prepared.about["splits"].items():
        run.add_figure(f"questions_{split}", counts["questions"])


def _through_format(prepared: PreparedData, name: str) -> None:
    """Put the preferences into the form of the project that the recipe is after, and read them."""
    for split in SPLITS:
        path = prepared.path(split)
        if path.exists():
            between = path.with_name(f"{split}.{name}.json")
            print(convert_file(path, between, name))
            convert_file(between, path)


def rank_answers(run: RecipeRun) -> None:
    """Put the model's own answers, ranked, in place of those in the data, as pairs.

    The questions of PPO and of the evaluation stay all of them, also those whose sampled answers
    are all alike. Held-out questions are answered only for a stage that reads such pairs.
    """
    settings = run.recipe.rank
    stages = run.recipe.stages
    later = stages[stages.index("rank") :]
    splits = SPLITS if set(later) & set(WITH_HELD_OUT_PAIRS) else ("train",)
    model, processor = run.load()
    ranker = as_ranker(find_ranker(run, settings.scorer))
    for place, split in enumerate(splits):
        tasks = run.tasks(split)
        seed = run.recipe.seed + 1000 * place  # so that no split repeats the draws of another
        if split == "train":
            tasks = drawn_share(tasks, settings.share, run.recipe.seed)
        ranked = sample_and_rank(model, processor, tasks, ranker, settings.answers, seed=seed)
        if not ranked:
            raise UsageError(
                f"{split}: to none of the {len(tasks)} questions has the model given two different "
                f"answers, so there is nothing to rank. Ask for more than {settings.answers} "
                "(rank.answers), or take answers that are written (without the stage rank)."
            )
        if split == "train" and not any(record.pairs() for record in ranked):
            said = " ".join(ranker.sentences())
            raise UsageError(
                f"{split}: {ranker.name} finds no answer better than another. {said} Take another "
                "ranker (rank.scorer), or more answers (rank.answers)."
            )
        write_records(run.ranked_path(split), ranked)
    print(*ranker.sentences(), sep="\n")
    made_of = {split: run.data_hash(split) for split in splits}
    write_json(run.folder / "data" / RANKED_FILE, made_of)
    run.add_figure("ranked_pairs", sum(len(record.pairs()) for record in run.pairs("train")))


def find_ranker(run: RecipeRun, name: str) -> RankedBy:
    """What ranks the answers to the questions of a run: `rank.scorer`, or `online.scorer`."""
    if name == "reward_model":
        # on a base of its own: what it has learnt is no part of the model that answers
        return load_reward_model(*run.load(), run.left_by("reward/best"))
    if name == "judge":
        return PairJudge(ModelReplies(*run.load()), f"judge {run.recipe.model}")
    of_truth = {"truth": degree_of, "right": reward_of}
    if name not in of_truth:
        return get_scorer(name)
    score = of_truth[name](run.tasks("train"))
    if score is None:
        raise UsageError(
            f"scorer = {name}: nothing is known to be true of these questions. Take another "
            "scorer, or reward_model."
        )
    return score
