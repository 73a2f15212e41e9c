"""What fits on this machine, how long it takes, and what outlives a lost session.

Here: what is to run, what the machine is, the forecast of memory and time, what is made smaller so that a stage fits, and
copies on Google Drive. Not here:
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
        "facts": [
            "DiskSpace",
            "MachineFacts",
            "OPTIONAL_PACKAGES",
            "SPARE_DISK_GB",
            "TESTED_PYTHON",
            "TESTED_VERSIONS",
            "available_gb",
            "device_number",
            "download_gb",
            "installed_version",
            "installed_versions",
            "measure_disks",
            "measure_machine",
            "untested_versions",
        ],
        "fits": [
            "MachinePlan",
            "StageForecast",
            "check_machine",
            "machine_text",
            "machine_warnings",
            "plan_images",
            "plan_stages",
            "stages_text",
        ],
        "fitting": ["LARGEST_PIXELS", "changed_fields", "fit_images", "fit_settings", "largest_image"],
        "memory": [
            "CARD_GB",
            "LARGEST_BATCH",
            "LOGIT_BYTES",
            "OVERHEAD_GB",
            "PhaseMemory",
            "USABLE_SHARE",
            "dpo_logit_bytes",
            "forecast_memory",
            "largest_batch",
            "layer_activation_bytes",
            "least_memory",
            "memory_table",
            "phases",
            "smallest_card",
        ],
        "workload": [
            "GenerationSettings",
            "STAGES",
            "StageSettings",
            "Workload",
            "batch_of",
            "default_settings",
            "set_batch",
            "smallest_settings",
            "stage_of",
        ],
    },
)
