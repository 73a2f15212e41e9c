"""Rebuild the second base, `data/tiny-tasks`: `python data/build_tasks_base.py`.

It begins with the weights of the embedded base (`build_base.py`), which sees the scenes already,
gets a vocabulary for the sentences of `data/task_language.py`, and learns to answer as the careless
annotator there does. So it has habits to lose: it is wordy, repeats the question in place of a
reason, guesses in place of calculating, and counts too few motorcycles and bicycles.
"""

import argparse
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from transformers import Qwen2VLForConditionalGeneration

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from data import task_language
from data.build_base import (
    build_model,
    build_processor,
    build_tokenizer,
    read_arguments,
    train_and_save,
)
from data.task_language import Request
from helpers import models
from helpers.data.scenes import SPLIT_SEEDS, Scene, draw_scene, make_scene
from helpers.files import write_text
from helpers.statistics import Proportion, share_of

FIRST_BASE = ROOT / "data" / "tiny-qwen2-vl"
VOCABULARY = 640  # tokens; the sentences are more varied than those of the first base
# Of the scenes that train a base; the first base has seen those before
FIRST_SEED = 1_000_000
SHARES = {"instructions": 0.35, "reasons": 0.25, "reasoning": 0.4}


@dataclass(frozen=True)
class Example:
    """What a base is trained on: a question, and the careless annotator's answer."""

    prompt: str
    answer: str


def make_example(seed: int) -> tuple[Scene, Example]:
    """A scene and what is asked of it, answered by habit; all follow from the seed."""
    scene = make_scene(seed + FIRST_SEED)
    rng = np.random.default_rng([seed, 3])
    task = str(rng.choice(list(SHARES), p=list(SHARES.values())))
    request = task_language.ask(scene, task, rng)
    return scene, Example(request.prompt, task_language.answer_by_habit(request, rng, scene))


def take_over(new: Qwen2VLForConditionalGeneration, tokenizer) -> None:
    """Put the first base's weights into `new`; a new token begins as the mean of its old parts."""
    old, old_processor = models.load_model(FIRST_BASE, four_bit=False)
    state = old.state_dict()
    name = next(key for key in state if key.endswith("embed_tokens.weight"))
    known = old_processor.tokenizer
    rows = []
    for token in range(len(tokenizer)):
        text = tokenizer.convert_ids_to_tokens(token)
        parts = [known.convert_tokens_to_ids(text)] if text in known.get_vocab() else []
        parts = parts or known(tokenizer.decode([token]), add_special_tokens=False)["input_ids"]
        rows.append(state[name][parts].mean(0))
    for key, weight in new.state_dict().items():
        is_vocabulary = weight.shape[0] == len(tokenizer)
        with torch.no_grad():
            weight.copy_(torch.stack(rows) if is_vocabulary else state[key])


def requests_of_test_scenes(task: str, scenes: int) -> tuple[list[Request], list[Image.Image]]:
    """What is asked of fresh test scenes, and their images."""
    requests, images = [], []
    for seed in SPLIT_SEEDS["test"][:scenes]:
        scene = make_scene(seed)
        requests.append(task_language.ask(scene, task, np.random.default_rng([seed, 4])))
        images.append(draw_scene(scene))
    return requests, images


def right_share(
    model, processor, requests: Sequence[Request], images: Sequence[Image.Image], temperature: float
) -> Proportion:
    """Share of the requests that are answered rightly, with these images."""
    prompts = [request.prompt for request in requests]
    answers = models.generate_answers(
        model, processor, images, prompts, temperature=temperature, max_new_tokens=64
    )
    right = [
        task_language.is_right(request, answer)
        for request, answer in zip(requests, answers, strict=True)
    ]
    return share_of(np.array(right))


def measure(folder: Path, scenes: int = 400) -> dict[str, dict[str, Proportion]]:
    """Shares of right answers on fresh test scenes: {task: {measure: share}}."""
    model, processor = models.load_model(folder)
    table = {}
    for task in task_language.TASKS:
        requests, images = requests_of_test_scenes(task, scenes)
        others = [*images[1:], images[0]]
        row = {}
        for name, shown, temperature in (
            ("right, greedy", images, 0.0),
            ("right, sampled at T = 1", images, 1.0),
            ("right, greedy, another image", others, 0.0),
        ):
            row[name] = right_share(model, processor, requests, shown, temperature)
        table[task] = row
    return table


def write_card(folder: Path, args: argparse.Namespace, seconds: float, parameters: int) -> None:
    """The model card: command, data, figures, known habits."""
    table, habits = measure(folder), task_language
    names = list(next(iter(table.values())))
    rows = "\n".join(
        f"| {name} | {' | '.join(str(table[task][name]) for task in table)} |" for name in names
    )
    megabytes = (folder / "model.safetensors").stat().st_size / 1e6
    write_text(
        folder / "README.md",
        f"""---
license: apache-2.0
library_name: transformers
pipeline_tag: image-text-to-text
---
# tiny-tasks

A `Qwen2VLForConditionalGeneration` of {parameters / 1e6:.1f} M parameters ({megabytes:.1f} MB)
that answers requests, gives reasons and calculates, about drawings of traffic and nothing else. It
begins with the weights of `data/tiny-qwen2-vl` and runs offline on a CPU.

**Known habits, on purpose.** It learnt from a simulated careless annotator who adds polite phrases
({habits.IS_WORDY:.0%} of the requests), describes everything in place of what was asked for
({habits.FORGETS_THE_REQUEST:.0%}), repeats the question in place of a reason
({habits.REPEATS_THE_QUESTION:.0%}), guesses a letter in place of calculating
({habits.GUESSES:.0%}), and counts one motorcycle or bicycle too few where there are several
({habits.MISSES_ONE:.0%}). The notebooks repair this with preferences.

**Made by** `python data/build_tasks_base.py --steps {args.steps} --batch-size {args.batch_size} \
--learning-rate {args.learning_rate:g} --seed {args.seed}` in {seconds:.0f} s of training on \
{torch.get_num_threads()} CPU threads (torch {torch.__version__}).

**Data**: {args.steps * args.batch_size:,} procedural scenes, each seen once; no licence attaches to
them.

**Figures**, 400 test scenes (seeds from {SPLIT_SEEDS["test"][0]:,}), 4-bit NF4, 95 % Wilson
intervals:

| share of answers | {" | ".join(table)} |
|---|{"---|" * len(table)}
{rows}
""",
    )


def main() -> None:
    args = read_arguments(__doc__.splitlines()[0], "tiny-tasks", steps=3000)
    torch.manual_seed(args.seed)
    tokenizer = build_tokenizer(VOCABULARY, make_example)
    processor = build_processor(tokenizer)
    model = build_model(processor)
    take_over(model, tokenizer)
    train_and_save(model, processor, args, make_example, write_card)


if __name__ == "__main__":
    main()
