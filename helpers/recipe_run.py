"""A run of a recipe: its folder and figures, and the stages that make its data.

Data of any format becomes the run's own records (`data`); answers that the model itself has sampled, ranked by a
scorer, may take the place of those in the data (`rank`). The other stages are in `helpers/recipe_stages.py`.
"""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from transformers import PreTrainedModel, ProcessorMixin

from helpers import models
from helpers.data.convert_files import convert_file
from helpers.data.labels import read_visual_genome
from helpers.data.pairs import as_counted_images, one_class_question, presence_question
from helpers.data.preferences import PreferenceRecord, read_records, write_records
from helpers.files import ROOT, UsageError, open_image, read_json, write_json
from helpers.models.prompts import user_message
from helpers.recipes import Recipe
from helpers.rewards.ranking import sample_and_rank
from helpers.rewards.scoring import SCORERS, Scorer
from helpers.statistics import Proportion
from helpers.training.rollout import Task, tasks_of

SPLITS = ("train", "valid", "test")


@dataclass
class RecipeRun:
    """A recipe, the folder of what it makes, and the figures that have been found."""

    recipe: Recipe
    folder: Path
    figures: dict[str, dict[str, float]] = field(default_factory=dict)

    def load(self) -> tuple[PreTrainedModel, ProcessorMixin]:
        recipe = self.recipe
        return models.load_model(recipe.model, four_bit=recipe.four_bit, max_pixels=recipe.max_pixels)

    def records(self, split: str) -> list[PreferenceRecord]:
        return read_records(self.folder / "data" / f"{split}.jsonl")

    def pairs(self, split: str) -> list[PreferenceRecord]:
        """Training pairs of reward models and DPO: the model's own ranked answers if there are any, else the data."""
        ranked = self.folder / "data" / f"{split}-ranked.jsonl"
        return read_records(ranked) if ranked.exists() else self.records(split)

    def tasks(self, split: str) -> list[Task]:
        """The questions of a split, with what is true: all counts, or an answer."""
        if self.recipe.data.format == "visual_genome":
            rows = read_json(self.folder / "data" / f"{split}-questions.json")
            return [Task((Path(row["image"]),), (user_message(row["question"]),), row["answer"]) for row in rows]
        return tasks_of(self.records(split))

    def add_figure(self, name: str, figure: Proportion | float) -> None:
        """Keep a figure and print it with its interval."""
        value = figure if isinstance(figure, float | int) else figure.value
        row = {"value": float(value), "seed": self.recipe.seed}
        if not isinstance(figure, float | int):
            row |= {"low": figure.low, "high": figure.high, "n": figure.n}
        self.figures[name] = row
        print(f"{name:<34} {f'{figure:.4g}' if isinstance(figure, float) else figure}", flush=True)

    def about(self, **more: Any) -> dict[str, Any]:
        recipe = self.recipe
        own = {"base": recipe.model, "seed": recipe.seed, "recipe": recipe.title, "max_pixels": recipe.max_pixels}
        return own | more


def prepare_data(run: RecipeRun) -> None:
    """Data of any format → the run's own records; our own files are first put into the format of the recipe."""
    settings, target = run.recipe.data, run.folder / "data"
    if settings.format == "visual_genome":
        return _prepare_questions(run)
    for split in SPLITS:
        source = ROOT / getattr(settings, split)
        if settings.format != "record":
            between = target / f"{split}.{settings.format}.json"
            print(convert_file(source, between, settings.format))
            source = between
        convert_file(source, target / f"{split}.jsonl")
        write_records(target / f"{split}.jsonl", run.records(split)[: settings.limit])
    run.add_figure("pairs", sum(len(record.pairs()) for record in run.records("train")))


def _prepare_questions(run: RecipeRun) -> None:
    """Visual Genome's questions, split by image; without its images, such a file is made from the scenes."""
    settings, target = run.recipe.data, run.folder / "data"
    file, images = (ROOT / settings.train, ROOT / settings.images) if settings.images else _write_scene_questions(run)
    asked = read_visual_genome(file, images)
    groups = list(dict.fromkeys(item.group for item in asked))
    order = np.random.default_rng(run.recipe.seed).permutation(len(groups))
    first = {groups[i] for i in order[: round(settings.train_share * len(groups))]}
    for split, inside in (("train", True), ("test", False)):
        rows = [item for item in asked if (item.group in first) == inside][: settings.limit]
        rows = [{"image": str(item.path.resolve()), "question": item.question, "answer": item.answer} for item in rows]
        write_json(target / f"{split}-questions.json", rows)
        run.add_figure(f"questions_{split}", len(rows))


def _write_scene_questions(run: RecipeRun) -> tuple[Path, Path]:
    """Two questions with short answers about each of the shipped scenes, in Visual Genome's form."""
    images, entries = run.folder / "data" / "images", []
    images.mkdir(parents=True, exist_ok=True)
    for split in ("train", "test"):
        for record in read_records(ROOT / getattr(run.recipe.data, split)):
            number = len(entries)
            open_image(record.image_paths[0]).save(images / f"{number}.jpg", quality=95)
            asked = [ask(record.truth, number) for ask in (presence_question, one_class_question)]
            qas = [
                {"qa_id": 2 * number + place, "image_id": number, "question": question, "answer": answer}
                for place, (question, answer) in enumerate(asked)
            ]
            entries.append({"id": number, "qas": qas})
    return write_json(images.parent / "question_answers.json", entries), images


def rank_answers(run: RecipeRun) -> None:
    """Answers sampled from the model and ranked by a scorer take the place of those in the data, as pairs.

    The questions of PPO and of the evaluation stay all of them, also those whose sampled answers are all alike.
    """
    settings, (model, processor) = run.recipe.rank, run.load()
    score = get_scorer(settings.scorer)
    for place, split in enumerate(SPLITS):
        items, seed = as_counted_images(run.records(split)), run.recipe.seed + 1000 * place
        ranked = sample_and_rank(model, processor, items, score, settings.answers, seed=seed)
        write_records(run.folder / "data" / f"{split}-ranked.jsonl", ranked)
    run.add_figure("ranked_pairs", sum(len(record.pairs()) for record in run.pairs("train")))


def get_scorer(name: str) -> Scorer:
    if name not in SCORERS:
        raise UsageError(f"unknown scorer {name!r}: choose from {', '.join(SCORERS)}.")
    return SCORERS[name]
