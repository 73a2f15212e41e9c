"""DPO, PPO, RLOO, GRPO and the reward model's loop.

Here: the three trainers, their batches, checkpoints, and what they write down. Not here: formulas (`losses`), and
what is wrong with a run (`doctor`). Taught in notebooks 03, 04 and 05.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__,
    submod_attrs={
        "actor_critic": ["ActorCritic", "CRITIC_ADAPTER", "TokenFigures", "warm_up_critic"],
        "checkpoint": ["load_checkpoint", "run_identity", "save_checkpoint"],
        "collators": ["PairCollator"],
        "distributed": [
            "gather_in_order",
            "mean_over_processes",
            "mean_rows",
            "new_accelerator",
            "own_share",
            "token_count",
            "token_mean_over_processes",
            "wrap_for_processes",
        ],
        "dpo": [
            "AnswerForward",
            "DPORun",
            "ProgressBar",
            "REFERENCE_ADAPTER",
            "VLMDPOTrainer",
            "dpo_config",
            "dpo_trainer",
            "train_dpo",
        ],
        "on_policy": ["OnPolicyRound", "on_policy_round"],
        "ppo": ["PPOTrainer"],
        "reward": ["OBJECTIVES", "RewardRun", "RewardTrainer", "losses_of"],
        "rollout": ["Experience", "Rollout", "Task", "pad_and_stack", "roll_out", "tasks_asking", "tasks_of"],
        "run_folder": ["ppo_trainer", "save_answers", "save_policy"],
        "watch": [
            "HeldOutAnswers",
            "IterationRow",
            "JSONLog",
            "SampleLog",
            "TensorBoard",
            "experience_figures",
            "first_samples",
            "log_mean",
            "pooled_explained_variance",
        ],
    },
)
