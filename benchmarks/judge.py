"""How far a judge is to be trusted, before and after an adapter has learnt to judge.

python benchmarks/judge.py            # the embedded model, three seeds; about 10 minutes
python benchmarks/judge.py --table    # only writes the table again

Two judges are examined on held-out pairs, whose better answer the true counts decide: the base that
is asked for "A" or "B" in both orders (`rewards.PairJudge`), and the base that is asked behind each
answer whether it is right (`rewards.Verifier`). Then an adapter learns to verify from the training
pairs (`training.right_verdicts`). Beside them the best rule that never looks, on the same pairs.
Figures go to `benchmarks/judge.json` as each run ends; the table is written to `docs/results.md`.
"""

import dataclasses
import logging
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from benchmarks.arguments import benchmark_parser
from helpers import models
from helpers.config import SFT_PRESETS
from helpers.data.preferences import read_records
from helpers.data.record import PreferenceRecord
from helpers.evaluation import JudgeExam, examine_judge
from helpers.files import read_json, write_json
from helpers.report import markdown_table
from helpers.rewards import ModelReplies, PairJudge, Verifier
from helpers.runtime import machine_summary
from helpers.training import right_verdicts, sft_trainer, train_sft
from tools.publish import write_block

OUT = Path(__file__).with_suffix(".json")
PAGE = ROOT / "docs" / "results.md"
BLOCK = "judge"
TRAFFIC = ROOT / "data" / "traffic"
HEAD = (
    "judge",
    "agrees with the truth",
    "decides",
    "for the answer shown first",
    "κ",
    "best blind rule",
    "p against it",
    "may be used",
    "pairs",
    "CPU seconds",
)
# The loss stays at ln 2 for 300 steps, and falls then
SETTINGS = dataclasses.replace(
    SFT_PRESETS["tiny"], learning_rate=1e-3, steps=1200, checkpoint_steps=0
)
SEEDS = (0, 1, 2)

Figures = dict[str, dict]


def figures_of(exam: JudgeExam, seconds: float, first: dict | None = None) -> dict:
    """What the table needs of an exam, as JSON holds it."""
    return {
        "agreement": dataclasses.asdict(exam.agreement),
        "decided": dataclasses.asdict(exam.decided),
        "kappa": exam.kappa and dataclasses.asdict(exam.kappa),
        "best_rule": exam.best_rule,
        "rule_agreement": dataclasses.asdict(exam.rule_agreement),
        "p": exam.p,
        "trusted": exam.is_trusted,
        "first_shown": first,
        "seconds": seconds,
    }


def examine_base(model, processor, test: list[PreferenceRecord]) -> Figures:
    """Both judges, without any training."""
    found = {}
    pairwise = PairJudge(ModelReplies(model, processor, max_new_tokens=8), "A or B")
    for judge in (pairwise, Verifier(model, processor)):
        started = time.process_time()
        exam = examine_judge(test, judge)
        first = pairwise.first_shown if judge is pairwise else None
        found[f"base, asked {judge.name}"] = figures_of(
            exam, time.process_time() - started, first and dataclasses.asdict(first)
        )
    return found


def train_and_examine(
    seed: int, train: list[PreferenceRecord], test: list[PreferenceRecord], steps: int
) -> Figures:
    """An adapter that has learnt to verify; its seconds are those of the training."""
    model, processor = models.load_model("tiny")
    settings = dataclasses.replace(SETTINGS, steps=steps)
    trainer = sft_trainer(model, processor, right_verdicts(train), settings, seed=seed)
    started = time.process_time()
    train_sft(trainer)
    seconds = time.process_time() - started
    exam = examine_judge(test, Verifier(trainer.model, processor))
    return {f"verifier, trained, seed {seed}": figures_of(exam, seconds)}


def table(figures: Figures) -> str:
    """Return a row for each judge."""
    rows = [HEAD]
    for name, found in figures.items():
        cells = [_share(found["agreement"]), _share(found["decided"])]
        cells += [_share(found["first_shown"]), _share(found["kappa"])]
        cells += [f"{found['best_rule']}: {_share(found['rule_agreement'])}", f"{found['p']:.2g}"]
        cells += ["yes" if found["trusted"] else "no", str(found["pairs"])]
        rows.append((name, *cells, f"{found['seconds']:.0f}"))
    return markdown_table(rows)


def _share(figure: dict | None) -> str:
    if not figure or figure["value"] is None:
        return "–"
    return f"{figure['value']:.3f} [{figure['low']:.3f}, {figure['high']:.3f}]"


def main(arguments: list[str] | None = None) -> None:
    parser = benchmark_parser(__doc__, OUT, SEEDS, toy="few records and steps")
    given = parser.parse_args(arguments)
    logging.getLogger("transformers").setLevel(logging.ERROR)
    known = read_json(given.out) if given.out.exists() else {"figures": {}}
    figures = known["figures"]
    if not given.table:
        train = read_records(TRAFFIC / "preferences_train.jsonl")
        test = read_records(TRAFFIC / "preferences_test.jsonl")
        if given.toy:
            train, test = train[:4], test[:8]
        pairs = sum(len(record.pairs()) for record in test)
        runs = [lambda: examine_base(*models.load_model("tiny"), test)]
        steps = 2 if given.toy else SETTINGS.steps
        for seed in given.seeds:
            runs.append(lambda seed=seed: train_and_examine(seed, train, test, steps))
        for run in runs:
            for name, found in run().items():
                figures[name] = found | {"pairs": pairs}
            write_json(given.out, {"environment": machine_summary(), "figures": figures})
    print(table(figures))
    if given.out == OUT:
        write_block(PAGE, BLOCK, table(figures))


if __name__ == "__main__":
    main()
