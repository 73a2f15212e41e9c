"""What is wrong with a run before it starts, and while it runs.

Here: preflight, the rules that read a log, and the two doctors that watch a training. Not here: what is wrong
with data (`data.check`). Taught in notebooks 04 and 05.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__,
    submod_attrs={
        "checks": ["PreflightChecks", "preflight"],
        "dpo_doctor": ["DPODoctor", "sight_sample"],
        "dpo_rules": [
            "AnswerSample",
            "Census",
            "DPOHistory",
            "DPO_KINDS",
            "Tower",
            "diagnose_dpo",
            "mean_of",
            "non_finite_values",
            "replay_dpo",
        ],
        "dry_run": [
            "Examples",
            "Forecast",
            "LOSS_SCALE",
            "backward",
            "collate",
            "evenly_spaced",
            "forecast_run",
            "loss_of",
            "restoring_state",
            "training_mode",
        ],
        "input_checks": [
            "Batches",
            "Check",
            "RowInputs",
            "check_different_answers",
            "check_end_of_turn",
            "check_image_size",
            "check_image_tokens",
            "check_pixel_values",
            "check_truncation",
            "row_inputs",
        ],
        "lengths": ["RecordLengths", "image_tokens", "text_tokens"],
        "ppo_doctor": ["PPODoctor", "find_misplaced_rewards"],
        "ppo_rules": ["PPOHistory", "PPO_KINDS", "SCORE_TOLERANCE", "diagnose_ppo", "replay_ppo"],
        "verdicts": ["Symptoms", "Verdict", "panel_html", "verdict_kinds"],
    },
)
