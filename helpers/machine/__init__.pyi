"""The public names of this room, and the module of each; `lazy_loader` reads this file."""

from .artifacts import (
    Artifact as Artifact,
    find_artifacts as find_artifacts,
)
from .checkpoints import (
    CHECKPOINT_FOLDER as CHECKPOINT_FOLDER,
    IDENTITY_FILE as IDENTITY_FILE,
    TRAINER_STATE as TRAINER_STATE,
    Identity as Identity,
    checkpoint_identity as checkpoint_identity,
    checkpoint_step as checkpoint_step,
    checkpoints_in as checkpoints_in,
    folders_with_checkpoints as folders_with_checkpoints,
    is_whole as is_whole,
    last_checkpoint as last_checkpoint,
    seal_checkpoint as seal_checkpoint,
)
from .drive import (
    CLOCK_SECONDS as CLOCK_SECONDS,
    DRIVE_FOLDER as DRIVE_FOLDER,
    QUIET_SECONDS as QUIET_SECONDS,
    DriveCopies as DriveCopies,
    RunCheckpoint as RunCheckpoint,
    ask_for_drive as ask_for_drive,
    last_checkpoints as last_checkpoints,
    print_checkpoints as print_checkpoints,
    use_drive as use_drive,
)
from .duration import (
    CRITIC_WARM_UP_EPOCHS as CRITIC_WARM_UP_EPOCHS,
    EVALUATED_SHARE as EVALUATED_SHARE,
    STEP_LAYERS as STEP_LAYERS,
    StageSeconds as StageSeconds,
)
from .facts import (
    OPTIONAL_PACKAGES as OPTIONAL_PACKAGES,
    SPARE_DISK_GB as SPARE_DISK_GB,
    TESTED_PYTHON as TESTED_PYTHON,
    TESTED_VERSIONS as TESTED_VERSIONS,
    DiskSpace as DiskSpace,
    MachineFacts as MachineFacts,
    available_gb as available_gb,
    device_number as device_number,
    download_gb as download_gb,
    installed_version as installed_version,
    measure_disks as measure_disks,
    measure_machine as measure_machine,
    untested_versions as untested_versions,
    versions_in_use as versions_in_use,
)
from .fits import (
    BF16_GAIN as BF16_GAIN,
    LONG_MINUTES as LONG_MINUTES,
    MachinePlan as MachinePlan,
    StageForecast as StageForecast,
    bf16_text as bf16_text,
    check_machine as check_machine,
    machine_text as machine_text,
    machine_warnings as machine_warnings,
    plan_images as plan_images,
    plan_stages as plan_stages,
    speed_here as speed_here,
    stages_text as stages_text,
    workload_here as workload_here,
)
from .fitting import (
    LARGEST_PIXELS as LARGEST_PIXELS,
    changed_fields as changed_fields,
    fit_images as fit_images,
    fit_settings as fit_settings,
    largest_image as largest_image,
)
from .memory import (
    CARD_GB as CARD_GB,
    CPU_OVERHEAD_GB as CPU_OVERHEAD_GB,
    HEAP_FACTOR as HEAP_FACTOR,
    LARGEST_BATCH as LARGEST_BATCH,
    LOGIT_BYTES as LOGIT_BYTES,
    OVERHEAD_GB as OVERHEAD_GB,
    USABLE_SHARE as USABLE_SHARE,
    PhaseMemory as PhaseMemory,
    dpo_logit_bytes as dpo_logit_bytes,
    forecast_memory as forecast_memory,
    largest_batch as largest_batch,
    layer_activation_bytes as layer_activation_bytes,
    least_memory as least_memory,
    memory_table as memory_table,
    phases as phases,
    sft_logit_bytes as sft_logit_bytes,
)
from .speed import (
    Line as Line,
    MachineSpeed as MachineSpeed,
    bf16_gain as bf16_gain,
    least_seconds as least_seconds,
    measure_speed as measure_speed,
)
from .workload import (
    STAGES as STAGES,
    GenerationSettings as GenerationSettings,
    StageSettings as StageSettings,
    Workload as Workload,
    batch_of as batch_of,
    default_settings as default_settings,
    set_batch as set_batch,
    smallest_settings as smallest_settings,
    stage_of as stage_of,
)
