"""The public names of this room, and the module of each; `lazy_loader` reads this file."""

from .checks import (
    PreflightChecks as PreflightChecks,
    preflight as preflight,
)
from .dpo_doctor import (
    DPODoctor as DPODoctor,
    sight_sample as sight_sample,
)
from .dpo_rules import (
    DPO_KINDS as DPO_KINDS,
    AnswerSample as AnswerSample,
    Census as Census,
    DPOHistory as DPOHistory,
    Tower as Tower,
    diagnose_dpo as diagnose_dpo,
    look_dpo as look_dpo,
    mean_of as mean_of,
    non_finite_value as non_finite_value,
    replay_dpo as replay_dpo,
)
from .dry_run import (
    LOSS_SCALE as LOSS_SCALE,
    Examples as Examples,
    Forecast as Forecast,
    backward as backward,
    collate as collate,
    evenly_spaced as evenly_spaced,
    forecast_run as forecast_run,
    loss_of as loss_of,
    preference_only as preference_only,
    restoring_state as restoring_state,
    time_pass as time_pass,
    training_mode as training_mode,
)
from .input_checks import (
    Batches as Batches,
    Check as Check,
    RowInputs as RowInputs,
    check_different_answers as check_different_answers,
    check_end_of_turn as check_end_of_turn,
    check_image_size as check_image_size,
    check_image_tokens as check_image_tokens,
    check_pixel_values as check_pixel_values,
    check_truncation as check_truncation,
    row_inputs as row_inputs,
)
from .lengths import (
    RecordLengths as RecordLengths,
    image_tokens as image_tokens,
    text_tokens as text_tokens,
)
from .ppo_doctor import (
    PPODoctor as PPODoctor,
    find_misplaced_rewards as find_misplaced_rewards,
)
from .ppo_rules import (
    PPO_KINDS as PPO_KINDS,
    PPOHistory as PPOHistory,
    diagnose_ppo as diagnose_ppo,
    follow_ppo as follow_ppo,
    look_ppo as look_ppo,
    replay_ppo as replay_ppo,
)
from .reach import (
    AIM_MARGIN as AIM_MARGIN,
    LEAST_MARGIN as LEAST_MARGIN,
    Reach as Reach,
    check_reach as check_reach,
    margin_slope as margin_slope,
    step_rates as step_rates,
)
from .verdicts import (
    Course as Course,
    Reading as Reading,
    Rule as Rule,
    RunDoctor as RunDoctor,
    Verdict as Verdict,
    ask_rules as ask_rules,
    faults_of as faults_of,
    panel_html as panel_html,
    read_kinds as read_kinds,
    verdict_kinds as verdict_kinds,
    verdicts_of as verdicts_of,
)
