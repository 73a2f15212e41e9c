"""What fits on this machine, how long it takes, and what outlives a lost session.

Here: the forecast of memory and time, what is made smaller so that a stage fits, and copies on Google Drive. Not here:
devices and dtypes (`runtime`). Taught in notebook 01.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__,
    submod_attrs={
        "drive": [
            "CLOCK_SECONDS",
            "DriveCopies",
            "QUIET_SECONDS",
            "RunCheckpoint",
            "last_checkpoint",
            "last_checkpoints",
            "print_checkpoints",
            "trainer_state",
            "use_drive",
        ],
        "duration": ["CALLS_OUTSIDE", "CALLS_PER_LAYER", "EFFICIENCY", "MachineRates", "StageSeconds", "measure_rates"],
        "fits": [
            "MachinePlan",
            "OPTIONAL_PACKAGES",
            "TESTED_PYTHON",
            "TESTED_VERSIONS",
            "available_gb",
            "check_machine",
            "download_gb",
            "untested_versions",
        ],
        "fitting": ["LARGEST_PIXELS", "changed_fields", "fit_images", "fit_settings", "largest_image"],
        "memory": [
            "BATCH_FIELDS",
            "CARD_GB",
            "GenerationSettings",
            "LARGEST_BATCH",
            "LOGIT_BYTES",
            "OVERHEAD_GB",
            "PhaseMemory",
            "StageSettings",
            "USABLE_SHARE",
            "default_settings",
            "dpo_logit_bytes",
            "forecast_memory",
            "largest_batch",
            "layer_activation_bytes",
            "least_memory",
            "memory_table",
            "phases",
            "set_batch",
            "smallest_card",
            "smallest_settings",
        ],
    },
)
