"""What fits on this machine, how long it takes, and what outlives a lost session.

Here: the forecast of memory and time, what is made smaller so that a stage fits, and copies on Google Drive. Not here:
devices and dtypes (`runtime`). Taught in notebook 01.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__,
    submod_attrs={
        "drive": [
            "COARSE",
            "Checkpoint",
            "Copies",
            "QUIET",
            "found",
            "last_checkpoint",
            "last_checkpoints",
            "trainer_state",
            "use_drive",
        ],
        "duration": ["CALLS", "CALLS_OUTSIDE", "EFFICIENCY", "HELD_OUT", "Rates", "Seconds", "measure_rates"],
        "fits": [
            "OPTIONAL",
            "PYTHON",
            "Plan",
            "TESTED",
            "available_gb",
            "check_machine",
            "download_gb",
            "versions_off",
        ],
        "fitting": ["LARGEST", "changed", "fit", "fit_images", "largest_image"],
        "memory": [
            "BATCH",
            "CARDS",
            "Generation",
            "LOGIT",
            "MOST",
            "Memory",
            "OVERHEAD",
            "Settings",
            "USABLE",
            "default_settings",
            "dpo_logit",
            "forecast",
            "kept_by_a_layer",
            "largest_batch",
            "least",
            "phases",
            "smallest",
            "smallest_card",
            "table",
            "with_batch",
        ],
    },
)
