"""DPO, PPO, RLOO, GRPO and the reward model's loop.

Here: the three trainers, their batches, checkpoints, and what they write down. Not here: formulas (`losses`), and
what is wrong with a run (`doctor`). Taught in notebooks 03, 04 and 05.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__,
    submod_attrs={
        "actor_critic": ["ActorCritic", "CRITIC", "Figures", "warm_up"],
        "checkpoint": ["identity", "load", "save"],
        "collators": ["PairCollator"],
        "distributed": [
            "mean_of_all",
            "mean_rows",
            "mean_share",
            "new_accelerator",
            "own_share",
            "put_together",
            "token_count",
            "wrapped",
        ],
        "dpo": [
            "AnswerForward",
            "DPORun",
            "ProgressBar",
            "REFERENCE",
            "VLMDPOTrainer",
            "dpo_config",
            "make_trainer",
            "train",
        ],
        "ppo": ["PolicyTrainer"],
        "reward": ["OBJECTIVES", "RewardRun", "RewardTrainer", "losses_of"],
        "rollout": ["Experience", "Rollout", "Task", "roll_out", "shown", "stacked", "tasks_of"],
        "watch": [
            "HeldOut",
            "JSONLog",
            "Row",
            "SampleLog",
            "TensorBoard",
            "describe",
            "pooled_explained_variance",
            "samples",
        ],
    },
)
