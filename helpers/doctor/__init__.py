"""What is wrong with a run before it starts, and while it runs.

Here: preflight, the rules that read a log, and the two doctors that watch a training. Not here: what is wrong
with data (`data.check`). Taught in notebooks 04 and 05.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__,
    submod_attrs={
        "checks": ["Checks", "preflight"],
        "dpo_doctor": ["RunDoctor", "sample_answers"],
        "dpo_rules": [
            "Census",
            "KINDS",
            "RULES",
            "Row",
            "Run",
            "Sample",
            "Tower",
            "diagnose",
            "mean_of",
            "not_finite",
            "replay",
        ],
        "dry_run": [
            "Examples",
            "Forecast",
            "LOSS_SCALE",
            "USABLE",
            "as_in_training",
            "backward",
            "collate",
            "forecast",
            "loss_of",
            "spread",
            "unchanged",
        ],
        "input_checks": [
            "Batches",
            "Check",
            "Look",
            "different_answers",
            "end_of_turn",
            "image_size",
            "image_tokens",
            "look_at",
            "pixel_values",
            "truncation",
        ],
        "lengths": ["Lengths", "text_tokens"],
        "ppo_doctor": ["PolicyDoctor", "misplaced"],
        "ppo_rules": ["CHAIN", "LOOSE", "Seen", "diagnose_policy", "replay_policy"],
        "verdicts": ["Found", "Verdict", "panel"],
    },
)
