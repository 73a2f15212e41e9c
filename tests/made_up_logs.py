"""Small logs of runs that never were, in the files of every stage."""

import json

from helpers.report.run_logs import find_runs

DPO = {"loss": 0.7, "rewards/accuracies": 0.5, "rewards/margins": 0.0, "logps/chosen": -9.0}


def write(path, content):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content if isinstance(content, str) else json.dumps(content), encoding="utf-8")
    return path


def dpo_rows(steps=3, **changes):
    return [{**DPO, "step": n, "num_tokens": 100.0 * n, **changes} for n in range(1, steps + 1)]


def ppo_lines(steps=3):
    rows = [
        {"objective/scores": n / 10, "iteration": n, "samples": 64 * n, "seconds": 2.5 * n}
        for n in range(1, steps + 1)
    ]
    return "".join(json.dumps(row) + "\n" for row in rows)


def write_logs(folder):
    """Two runs of DPO, one of GRPO and one of a reward model; returns the folder."""
    write(folder / "dpo" / "one" / "log.json", dpo_rows())
    write(folder / "dpo" / "two" / "log.json", dpo_rows(loss=0.6))
    write(folder / "ppo" / "grpo" / "log.jsonl", ppo_lines())
    steps = [{"step": n, "loss": 1 / n, "accuracy": n / 4} for n in (1, 2, 3, 4)]
    asked = [{"step": 2, "accuracy": 0.25, "loss": 0.9}, {"step": 4, "accuracy": 0.75, "loss": 0.4}]
    write(folder / "reward" / "log.json", {"steps": steps, "evaluations": asked})
    return folder


def one(folder, name):
    return next(run for run in find_runs(folder) if run.name == name)
