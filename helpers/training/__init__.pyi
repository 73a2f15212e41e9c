"""The public names of this room, and the module of each; `lazy_loader` reads this file."""

from .actor_critic import (
    CRITIC_ADAPTER as CRITIC_ADAPTER,
    ActorCritic as ActorCritic,
    TokenFigures as TokenFigures,
    TokenLook as TokenLook,
    pad_and_stack as pad_and_stack,
)
from .advantages import (
    ADVANTAGES as ADVANTAGES,
    AdvantageWay as AdvantageWay,
)
from .checkpoint import (
    NOT_IN_IDENTITY as NOT_IN_IDENTITY,
    Checkpoints as Checkpoints,
    alone_in_its_folder as alone_in_its_folder,
    data_hash as data_hash,
    name_differences as name_differences,
    reward_identity as reward_identity,
    run_identity as run_identity,
)
from .collators import (
    AnswerForward as AnswerForward,
    AnswerOutput as AnswerOutput,
    PairCollator as PairCollator,
)
from .distributed import (
    gather_in_order as gather_in_order,
    mean_over_processes as mean_over_processes,
    mean_rows as mean_rows,
    new_accelerator as new_accelerator,
    own_share as own_share,
    token_mean_over_processes as token_mean_over_processes,
    wrap_for_processes as wrap_for_processes,
)
from .dpo import (
    DPO_LOSSES as DPO_LOSSES,
    DPORun as DPORun,
    ImageTerms as ImageTerms,
    VLMDPOTrainer as VLMDPOTrainer,
    dpo_config as dpo_config,
    dpo_trainer as dpo_trainer,
    image_terms as image_terms,
    train_dpo as train_dpo,
)
from .on_policy import (
    OnPolicyRound as OnPolicyRound,
    on_policy_round as on_policy_round,
)
from .ppo import (
    PPOTrainer as PPOTrainer,
    check_first_ratio as check_first_ratio,
    check_names as check_names,
    critic_loss as critic_loss,
    new_optimizer as new_optimizer,
    policy_loss as policy_loss,
    set_learning_rates as set_learning_rates,
    take_step as take_step,
)
from .reward import (
    OBJECTIVES as OBJECTIVES,
    RewardRun as RewardRun,
    RewardTrainer as RewardTrainer,
    idle_settings as idle_settings,
    losses_of as losses_of,
)
from .rollout import (
    ROLLOUT_FILTERS as ROLLOUT_FILTERS,
    Experience as Experience,
    MiniBatch as MiniBatch,
    Rollout as Rollout,
    keep_all as keep_all,
    keep_different_scores as keep_different_scores,
    roll_out as roll_out,
)
from .run_folder import (
    ppo_trainer as ppo_trainer,
    save_answers as save_answers,
    save_policy as save_policy,
)
from .sampler import (
    Sampler as Sampler,
    pieces as pieces,
)
from .sft import (
    AnswerCollator as AnswerCollator,
    AnswerSource as AnswerSource,
    BrokenNumbers as BrokenNumbers,
    SFTRun as SFTRun,
    VLMSFTTrainer as VLMSFTTrainer,
    answer_loss as answer_loss,
    chosen_answers as chosen_answers,
    reference_answers as reference_answers,
    right_verdicts as right_verdicts,
    sft_config as sft_config,
    sft_trainer as sft_trainer,
    train_sft as train_sft,
)
from .trl_runs import (
    REFERENCE_ADAPTER as REFERENCE_ADAPTER,
    ProgressBar as ProgressBar,
    StopsAskedFor as StopsAskedFor,
    TRLRun as TRLRun,
    adapter_hash as adapter_hash,
    as_reference as as_reference,
    common_options as common_options,
    is_fresh as is_fresh,
    trained_weights as trained_weights,
    undo_casts as undo_casts,
    with_one_adapter as with_one_adapter,
)
from .warm_up import (
    KnownAnswers as KnownAnswers,
    WarmUpState as WarmUpState,
    warm_up_critic as warm_up_critic,
)
from .watch import (
    HeldOutAnswers as HeldOutAnswers,
    IterationRow as IterationRow,
    JSONLog as JSONLog,
    SampleLog as SampleLog,
    TensorBoard as TensorBoard,
    experience_figures as experience_figures,
    first_samples as first_samples,
    log_mean as log_mean,
    mean_of_updates as mean_of_updates,
    pooled_explained_variance as pooled_explained_variance,
    update_figures as update_figures,
)
