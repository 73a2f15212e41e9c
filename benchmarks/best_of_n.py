"""Best of n: what a ranker gains without training, and where it is hacked.

python benchmarks/best_of_n.py            # the embedded model, three seeds; about 20 minutes
python benchmarks/best_of_n.py --table    # only writes the table again

For each seed a reward model learns from the training pairs (preset `tiny`). Then 64 answers of the
base to each of 100 test scenes are ranked by it, by the twin of it that has never seen an image, by
the heuristic without the counts, and by how long they are; all at temperature 1, with the same
samples. The truth is "are all counts right?". The figures of best of 1, 2, 4, … 64 come from the
same 64 samples (`helpers/evaluation/best_of_n.py`). They go to `benchmarks/best_of_n.json` as each
seed ends; the table is written to `docs/results.md`, and a picture beside the JSON.
"""

import dataclasses
import logging
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from benchmarks.arguments import benchmark_parser
from helpers import models
from helpers.config import reward_preset
from helpers.data.preferences import read_records
from helpers.data.tasks import tasks_of
from helpers.evaluation import BestOfN, choose_among, kl_bound
from helpers.files import read_json, write_json
from helpers.report import best_of_n_curves, markdown_table
from helpers.rewards import Ranker, RewardRanker, ScorerRanker, get_scorer, make_scorer
from helpers.rewards.reward_model import new_reward_model
from helpers.runtime import machine_summary
from helpers.training.reward import RewardTrainer
from tools.publish import write_block

OUT = Path(__file__).with_suffix(".json")
PAGE = ROOT / "docs" / "results.md"
BLOCK = "best_of_n"
TRAFFIC = ROOT / "data" / "traffic"
SEEDS = (0, 1, 2)
SHOWN = (1, 2, 4, 8, 16, 64)  # n of the table
HEAD = ("ranker", "seed", *(f"right, n = {n}" for n in SHOWN), "p: 8 against 1", "hacked from n")

Figures = dict[str, dict]
length = make_scorer("length", lambda image, question, answer, facts: {"length": len(answer)})


def rankers(seed: int, epochs: int | None, records: int | None) -> list[Ranker]:
    """Those to compare; the reward models are trained here."""
    train = read_records(TRAFFIC / "preferences_train.jsonl")[:records]
    valid = read_records(TRAFFIC / "preferences_valid.jsonl")[:records]
    settings = reward_preset("tiny")
    settings = dataclasses.replace(settings, epochs=epochs or settings.epochs)
    found = []
    for name, sees_images in (("reward model", True), ("its twin without images", False)):
        reward = new_reward_model(*models.load_model("tiny"), settings, seed, sees_images)
        RewardTrainer(reward, train, valid, settings, seed).train()
        found.append(RewardRanker(reward, name))
    found.append(ScorerRanker(get_scorer("heuristic"), "heuristic", told=False))
    found.append(ScorerRanker(length, "the longest", told=False))
    return found


def as_figures(found: BestOfN) -> dict:
    """What table and picture need of a curve, as JSON holds it."""
    sizes = found.sizes
    return {
        "right": {str(n): dataclasses.asdict(found.right_of(n)) for n in sizes},
        "score": {str(n): dataclasses.asdict(found.score_of(n)) for n in sizes},
        "kl_bound": {str(n): kl_bound(n) for n in sizes},
        "spread": float(found.scores.std()),
        "p_8_against_1": found.p_against(min(8, sizes[-1]), 1),
        "hacked_from": found.best_size if found.is_hacked else None,
        "samples": int(found.scores.size),
    }


def measure(
    seed: int, tasks: list, samples: int, epochs: int | None = None, records: int | None = None
) -> tuple[Figures, list[BestOfN]]:
    """The curves of all rankers with one seed, of the same samples."""
    model, processor = models.load_model("tiny")
    sampled = models.sample_task_answers(model, processor, tasks, samples, seed=seed)
    figures = {}
    curves = []
    for ranker in rankers(seed, epochs, records):
        found = choose_among(tasks, sampled, ranker)
        figures[f"{ranker.name} | {seed}"] = as_figures(found)
        curves.append(found)
    return figures, curves


def table(figures: Figures) -> str:
    """Return a row for each ranker and seed."""
    rows = [HEAD]
    for name, found in sorted(figures.items(), key=lambda entry: entry[0].split(" | ")[0]):
        ranker, seed = name.split(" | ")
        cells = []
        for n in SHOWN:
            figure = found["right"].get(str(n))
            shown = "–"
            if figure:
                shown = f"{figure['value']:.3f}"
                if figure["low"] is not None:
                    shown += f" [{figure['low']:.3f}, {figure['high']:.3f}]"
            cells.append(shown)
        hacked = found["hacked_from"]
        rows.append((ranker, seed, *cells, f"{found['p_8_against_1']:.2g}", str(hacked or "–")))
    return markdown_table(rows)


def main(arguments: list[str] | None = None) -> None:
    parser = benchmark_parser(__doc__, OUT, SEEDS, toy="few scenes, samples and records")
    given = parser.parse_args(arguments)
    logging.getLogger("transformers").setLevel(logging.ERROR)
    figures = read_json(given.out)["figures"] if given.out.exists() else {}
    if not given.table:
        tasks = tasks_of(read_records(TRAFFIC / "preferences_test.jsonl"))[:100]
        toy = {"tasks": tasks[:4], "samples": 4, "epochs": 1, "records": 8}
        how = toy if given.toy else {"tasks": tasks, "samples": 64}
        for seed in given.seeds:
            found, curves = measure(seed, **how)
            figures |= found
            write_json(given.out, {"environment": machine_summary(), "figures": figures})
        best_of_n_curves(curves).savefig(given.out.with_suffix(".png"), dpi=90)
    print(table(figures))
    if given.out == OUT:
        write_block(PAGE, BLOCK, table(figures))


if __name__ == "__main__":
    main()
