"""Logs and samples of DPO made by hand."""

from helpers.doctor.dpo_rules import AnswerSample


def log(steps, **values):
    """Rows of a healthy run; a value may be a function of the step, from 1."""
    healthy = {
        "loss": 0.3,
        "grad_norm": 2.0,
        "learning_rate": 1e-4,
        "entropy": 1.0,
        "mean_token_accuracy": 0.6,
    }
    healthy |= {"accuracies": 1.0, "margins": 1.0, "chosen": 0.5, "rejected": -0.5}
    values = {
        key: value if callable(value) else lambda _, v=value: v
        for key, value in (healthy | values).items()
    }
    short = ("accuracies", "margins", "chosen", "rejected")
    rows = []
    for step in range(1, steps + 1):
        row = {f"rewards/{k}" if k in short else k: make(step) for k, make in values.items()}
        rows.append(
            row
            | {"step": step, "logps/chosen": -20 + row["rewards/chosen"], "logps/rejected": -30.0}
        )
    return rows


def sample(step=0, **values):
    healthy = {
        "answers": [f"{n} cars" for n in range(8)],
        "tokens": [20] * 8,
        "repeated": [0.1] * 8,
    }
    healthy |= {"sight": [5.0] * 8, "logps": [-1.0] * 8, "reference_logps": [-1.2] * 8}
    return AnswerSample(step=step, limit=64, **(healthy | values))
