"""Rebuild `data/tasks`: `python data/build_tasks.py` (after `build_tasks_base.py`).

The data of four tasks, each in the form in which its project had it, about the images of
`data/traffic`: questions with short answers; requests with A/B preferences; reasons with A/B
preferences and the true reasons; and calculations with a chosen and a rejected answer, as in MMPR.
All answers to choose from are the base's own: two of its samples, or one of them and one of a
worse model, which is the base while it is shown another image. Mostly the two are written alike, so
that it takes a look at the image to tell them apart. One in ten preferences is the wrong way round,
as people's are.
"""

import argparse
import json
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from data import task_language
from data.build_traffic import NUMBERS
from data.scene_folders import scene_name
from data.task_language import Request
from helpers import models
from helpers.data.pairs import one_class_question, presence_question
from helpers.data.scenes import SPLIT_SEEDS, make_scene
from helpers.data.tasks import ask
from helpers.files import write_lines
from helpers.statistics import derangement

# Roboflow's name of a split, its name among the seeds, and requests drawn for each scene
SPLITS = (("train", "train", 2), ("valid", "validation", 2), ("test", "test", 1))
# Of the base, to each request and its image; a quarter as many to another image. Calculations need
# more, so that there is a right one and a wrong one
SAMPLES = {"instructions": 4, "reasons": 4, "reasoning": 8}
WRONG_LABELS = 0.1
ALIKE = 0.75  # of the pairs, where there is one: two answers of the same form
# Of calculations against guesses, most of which are the calculation's: else "the longer" would win
KEPT_GUESSES = 0.3
BASE = "tiny-tasks"


def image_name(split: str, seed: int) -> str:
    """Where the image of a scene is, seen from the folder of a task."""
    return f"../../traffic/{split}/images/{scene_name(seed)}.png"


def write_questions(folder: Path) -> None:
    """Two questions with short answers about each scene."""
    for split, seeds, _ in SPLITS:
        rows = []
        for place, seed in enumerate(SPLIT_SEEDS[seeds][: NUMBERS[seeds]]):
            counts = make_scene(seed).counts
            for make in (presence_question, one_class_question):
                question, answer = make(counts, place)
                rows.append(
                    {"image": image_name(split, seed), "question": question, "answer": answer}
                )
        _write(folder / f"{split}.jsonl", rows)


def requests_of(task: str, split: str) -> Iterator[tuple[int, Request]]:
    """The seed of a scene, and what is asked of it."""
    _, seeds, several = next(entry for entry in SPLITS if entry[0] == split)
    for seed in SPLIT_SEEDS[seeds][: NUMBERS[seeds]]:
        scene = make_scene(seed)
        asked = set()
        for place in range(several):
            rng = np.random.default_rng([seed, 6, place])
            request = task_language.ask(scene, task, rng)
            # The lot may draw the same question twice
            if request.prompt not in asked:
                asked.add(request.prompt)
                yield seed, request


def write_preferences(folder: Path, task: str, model, processor) -> None:
    """Two answers to a request, and which of them a person prefers; to most requests twice."""
    row_of = _chosen_row if task == "reasoning" else _vote_row
    for number, (split, *_) in enumerate(SPLITS):
        found = list(requests_of(task, split))
        samples = SAMPLES[task]
        own = _sample(model, processor, split, found, samples, seed=number)
        others = _sample(
            model, processor, split, found, samples // 4, seed=100 + number, shuffled=True
        )
        rng = np.random.default_rng([number, 7])
        rows = []
        for (seed, request), several, other in zip(found, own, others, strict=True):
            for candidates in ((several, several), (several, other)):
                pair = _draw_pair(request, *candidates, rng)
                if pair:
                    rows.append(row_of(image_name(split, seed), request, *pair, rng))
        _write(folder / f"{split}.jsonl", rows)
        print(f"{task}, {split}: {len(rows)} pairs of {len(found)} requests")


def write_answers(folder: Path, task: str, splits: tuple[str, ...]) -> None:
    """What is right, for tasks in which somebody knows."""
    for split in splits:
        rows = []
        for seed, request in requests_of(task, split):
            right = request.letter if task == "reasoning" else request.right
            image = image_name(split, seed)
            rows.append({"image": image, "question": request.prompt, "answer": right})
        _write(folder / f"{split}_answers.jsonl", rows)


def _sample(
    model, processor, split: str, found, number: int, seed: int, shuffled: bool = False
) -> list[list[str]]:
    """Answers of the base to each request, (requests, number); shuffled: to another image."""
    folder = ROOT / "data" / "traffic" / split / "images"
    images = [folder / f"{scene_name(scene)}.png" for scene, _ in found]
    places = derangement(len(images), seed) if shuffled else range(len(images))
    tasks = []
    for place, (_, request) in zip(places, found, strict=True):
        tasks.append(ask(request.prompt, [images[place]]))
    sampled = models.sample_task_answers(
        model, processor, tasks, number, seed=seed, max_new_tokens=64
    )
    return [[answer.text for answer in several] for several in sampled]


def _draw_pair(request: Request, some: list[str], others: list[str], rng) -> tuple[str, str] | None:
    """A better and a worse answer, one of each list; None if there is no pair to be kept."""
    pairs, alike = [], []
    for first in dict.fromkeys(some):
        for second in dict.fromkeys(others):
            rated = task_language.rate(request, first), task_language.rate(request, second)
            if rated[0] == rated[1] or _are_guesses(request, first, second):
                continue
            pair = (first, second) if rated[0] > rated[1] else (second, first)
            pairs.append(pair)
            if task_language.form_of(first) == task_language.form_of(second):
                alike.append(pair)
    # Answers that are written alike can only be told apart by looking
    if alike and rng.random() < ALIKE:
        pairs = alike
    elif request.task == "reasoning" and rng.random() >= KEPT_GUESSES:
        return None
    return pairs[int(rng.integers(len(pairs)))] if pairs else None


def _are_guesses(request: Request, *answers: str) -> bool:
    """Two letters without a calculation: which one is right says nothing about how to get there."""
    return request.task == "reasoning" and not any("=" in answer for answer in answers)


def _vote_row(image: str, request: Request, better: str, worse: str, rng) -> dict:
    """A row of A/B preferences; which answer stands first is drawn."""
    answers = [better, worse] if rng.random() < 0.5 else [worse, better]
    preferred = worse if rng.random() < WRONG_LABELS else better
    return {
        "image_path": image,
        "instruction": request.prompt,
        "response_a": answers[0],
        "response_b": answers[1],
        "preference": "response_a" if answers[0] == preferred else "response_b",
    }


def _chosen_row(image: str, request: Request, better: str, worse: str, rng) -> dict:
    """A row as MMPR has it."""
    sides = [better, worse]
    if rng.random() < WRONG_LABELS:
        sides.reverse()
    named = dict(zip(("chosen", "rejected"), sides, strict=True))
    return {"image": image, "question": request.prompt, **named}


def _write(path: Path, rows: list[dict]) -> None:
    write_lines(path, [json.dumps(row) for row in rows])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=ROOT / "data" / "tasks")
    parser.add_argument("--base", default=BASE, help="preset or folder that gives the answers")
    args = parser.parse_args()
    write_questions(args.out / "questions")
    model, processor = models.load_model(args.base)
    known = {"instructions": ("test",), "reasons": ("train", "valid", "test")}
    for task in task_language.TASKS:
        write_preferences(args.out / task, task, model, processor)
        write_answers(args.out / task, task, known.get(task, ("train", "valid", "test")))
    print(f"{len(task_language.TASKS) + 1} tasks → {args.out}")


if __name__ == "__main__":
    main()
