"""One small dataclass a stage, and the presets.

The comments do the arithmetic; the T4 figures are arithmetic too, not measurements.
"""

from dataclasses import dataclass, fields, replace
from typing import Any

from helpers.files import UsageError

ATTENTION = ("q_proj", "k_proj", "v_proj", "o_proj")
ALL_LINEAR = (*ATTENTION, "gate_proj", "up_proj", "down_proj")


@dataclass(frozen=True)
class LoraSettings:
    r: int = 16
    alpha: int = 32  # updates are scaled by alpha / r = 2
    dropout: float = 0.0  # 0, so that the first-step loss is exactly ln 2
    target_modules: tuple[str, ...] = ALL_LINEAR
    vision: bool = False  # True trains the vision tower as well


@dataclass(frozen=True)
class DPOSettings:
    beta: float = 0.1
    losses: tuple[str, ...] = (
        "sigmoid",
    )  # TRL's names: sigmoid, sigmoid_norm, ipo, hinge, robust, bco_pair, …
    loss_weights: tuple[float, ...] = (1.0,)
    sft_weight: float = 0.0  # weight of −log p(chosen) / token, against likelihood displacement
    label_smoothing: float = 0.0  # share of wrong labels that the loss "robust" expects
    image_weight: float = (
        0.0  # mDPO: prefer the right image to a spoilt one, given the chosen answer
    )
    anchor_weight: float = 0.0  # mDPO: keep the chosen answer likelier than under the reference
    learning_rate: float = 5e-6
    steps: int = 400
    batch_size: int = 2  # pairs in one forward: 2 rows of image, prompt and both answers
    accumulation: int = 8  # pairs a step = 2 × 8 = 16
    warmup_share: float = 0.1
    gradient_checkpointing: bool = True
    checkpoint_steps: int = 0  # a checkpoint every so many steps; 0: none
    lora: LoraSettings = LoraSettings()


DPO_PRESETS = {
    # 120 steps × 16 pairs = 1,920 pairs
    "tiny": DPOSettings(
        beta=1.0,
        sft_weight=2.0,
        learning_rate=3e-4,
        steps=120,
        batch_size=16,
        accumulation=1,
        gradient_checkpointing=False,
    ),
    # Qwen2-VL-2B in 4-bit on a T4: 2 pairs × (256 visual + ~60 text + 2 × ~20 answer tokens) a forward
    "t4": DPOSettings(checkpoint_steps=50),
    # the vehicle-counting project: 420 steps × 2 × 4 = 3,360 pairs; it does not state more, the rest is TRL's default
    "vehicles": DPOSettings(steps=420, accumulation=4, learning_rate=1e-6),
    # the reward-model project's adapter: 2,179,072 weights of Qwen2-VL-2B, 8 × (in + out) of q, k, v, o in 28 layers
    "attention": DPOSettings(
        lora=LoraSettings(r=8, alpha=16, dropout=0.05, target_modules=ATTENTION)
    ),
    # MPO (Wang et al. 2024, arXiv 2411.10442): preference, quality and generation, 0.8 : 0.2 : 1
    "mpo": DPOSettings(losses=("sigmoid", "bco_pair"), loss_weights=(0.8, 0.2), sft_weight=1.0),
    # mDPO (Wang et al. 2024, arXiv 2406.11839): its three terms have the same weight
    "mdpo": DPOSettings(image_weight=1.0, anchor_weight=1.0),
}


def dpo_preset(name: str) -> DPOSettings:
    """The settings called `name`. Raises UsageError listing the presets."""
    return _preset(DPO_PRESETS, name, "DPO")


def _preset(presets: dict, name: str, stage: str):
    if name not in presets:
        raise UsageError(
            f"unknown {stage} preset {name!r}: choose {' or '.join(presets)}, or add one to helpers/config.py"
        )
    return presets[name]


@dataclass(frozen=True)
class RewardSettings:
    head: str = "mlp"  # a name in HEADS: helpers/models/heads.py
    objective: str = "bradley_terry"  # a name in OBJECTIVES: helpers/training/reward.py
    learning_rate: float = 5e-6
    epochs: int = 3
    batch_size: int = 1  # records in one forward, each with all its answers
    accumulation: int = 16  # records a step = 1 × 16
    margin_weight: float = 0.0  # × the difference of the answers' scores, if the data has them
    label_smoothing: float = 0.0
    centring_weight: float = 0.0  # of (better + worse)², which keeps scores near 0
    focal_gamma: float = 2.0
    weight_decay: float = 0.0
    max_grad_norm: float = 1.0
    warmup_share: float = 0.1
    patience: int = 3  # stop after so many evaluations without a better held-out accuracy
    evaluations: int = 6  # over the whole training
    gradient_checkpointing: bool = False
    lora: LoraSettings = LoraSettings(r=8, alpha=16, dropout=0.05, target_modules=ATTENTION)


REWARD_PRESETS = {
    # 512 records × 6 epochs / 16 = 192 steps
    "tiny": RewardSettings(
        learning_rate=7e-4,  # twice as much also gets there, but which seed does is up to rounding
        epochs=6,
        batch_size=16,
        accumulation=1,
        patience=10,
        lora=LoraSettings(),
    ),
    # the source project's, for Qwen2-VL-2B in 4-bit: (256 visual + ~60 text + 2 × ~20 answer tokens) a forward
    "t4": RewardSettings(),
}


def reward_preset(name: str) -> RewardSettings:
    """The settings called `name`. Raises UsageError listing the presets."""
    return _preset(REWARD_PRESETS, name, "reward")


@dataclass(frozen=True)
class PPOSettings:
    # with a critic (PPO), or of a group: "rloo", "grpo" (ADVANTAGES: helpers/training/advantages.py)
    advantages: str = "gae"
    policy_loss: str = "clip"  # a name in POLICY_LOSSES: helpers/losses.py
    rollout_filter: str = "all"  # a name in ROLLOUT_FILTERS: helpers/training/rollout.py
    iterations: int = 100
    prompts_per_iteration: int = 8  # asked in an iteration
    group_size: int = 4  # answers to each: 8 × 4 = 32 samples an iteration
    epochs: int = 2  # updates see each answer so often
    mini_batch: int = (
        4  # prompts in one update: 4 × 4 = 16 answers, 8 / 4 × 2 = 4 updates an iteration
    )
    sampling_batch: int = (
        0  # prompts that are sampled, and looked at before the updates, together; 0: all of a shard
    )
    learning_rate: float = 1e-5
    anneal_lr: bool = True  # both learning rates fall linearly to 0
    critic_learning_rate: float = 1e-4
    critic_warm_up_learning_rate: float = (
        1e-4  # before the first iteration, where it has all to learn
    )
    critic_layers: int = (
        3  # 1 or 3; 0: no critic, so that advantages are measured against a constant
    )
    critic_sees_image: bool = False
    critic_detached: bool = True  # its loss does not reach the policy's adapter
    critic_adapter: bool = (
        False  # it has an adapter of its own instead: a second pass, 1.5 times the time
    )
    gamma: float = 1.0
    lam: float = 0.95
    whiten: bool = True  # advantages of a batch to mean 0 and deviation 1; GRPO: divided by the group's deviation
    clip: float = 0.2
    value_clip: float = 0.2
    value_weight: float = 0.5
    entropy_weight: float = 0.0
    kl_weight: float = 0.05
    kl_target: float | None = None  # nats an answer, to which the weight is adapted
    kl_horizon: int = 1000
    kl_estimator: str = "k1"
    no_end_penalty: float = 1.0  # taken off an answer that does not end
    temperature: float = 1.0
    top_p: float = 1.0
    max_new_tokens: int = 64
    max_grad_norm: float = 1.0
    adam_epsilon: float = 1e-8
    gradient_checkpointing: bool = False
    ratio_tolerance: float = (
        1e-3  # of new to old probability before the first update; 16 bits need more
    )
    checkpoint_every: int = 5
    shards: int = 1  # an iteration is sampled in so many parts, or one a process: 1 process with 2 equals 2 processes
    lora: LoraSettings = LoraSettings()

    def check(self, tasks: int, shards: int, processes: int) -> None:
        """Raises UsageError for what cannot be trained with, on so many tasks and in so many processes."""
        if self.temperature <= 0:
            raise UsageError(
                "temperature=0 gives one and the same answer each time: sample with a temperature over 0."
            )
        if shards % processes or self.prompts_per_iteration % shards or self.mini_batch % shards:
            raise UsageError(
                f"{processes} processes share {shards} shards, and those prompts_per_iteration and mini_batch: "
                "make each a multiple of the one before."
            )
        if tasks < self.prompts_per_iteration:
            raise UsageError(
                f"{tasks} tasks, but an iteration asks {self.prompts_per_iteration}: lower prompts_per_iteration."
            )


_TINY = PPOSettings(
    iterations=36,  # × 64 = 2,304 samples
    prompts_per_iteration=16,
    group_size=4,
    mini_batch=8,
    learning_rate=1e-3,
    critic_learning_rate=2e-4,  # five times as much and it forgets in PPO what it learnt before
    critic_warm_up_learning_rate=1e-3,
    critic_adapter=True,
    kl_weight=0.02,
    max_new_tokens=40,
)
PPO_PRESETS = {
    # 36 iterations × 16 × 4 = 2,304 samples, 36 × 2 × 16 / 8 = 144 updates
    "tiny": _TINY,
    "tiny-rloo": replace(_TINY, advantages="rloo"),
    "tiny-grpo": replace(
        _TINY, advantages="grpo", prompts_per_iteration=8, group_size=8, mini_batch=4
    ),
    # Qwen2-VL-2B in 4-bit on a T4: 2 × (256 visual + ~60 text + 4 × ~30 answer tokens) = 872 tokens in an update,
    # logits of 2 × 4 × 30 × 151,936 × 4 bytes = 0.15 GB; 100 × 8 × 4 = 3,200 samples
    "t4": PPOSettings(
        mini_batch=2, critic_adapter=True, gradient_checkpointing=True, ratio_tolerance=5e-2
    ),
    # the reasoning project: one linear layer on the last text state and the pooled image, an entropy bonus
    "reasoning": PPOSettings(
        critic_layers=1, critic_sees_image=True, entropy_weight=0.01, mini_batch=2
    ),
    # the caption project states no numbers: those of the library it used, but for the 256 answers an iteration
    "captions": PPOSettings(
        prompts_per_iteration=32,
        group_size=1,
        epochs=4,
        mini_batch=1,
        learning_rate=1e-5,
        critic_learning_rate=1e-5,
        critic_layers=1,
        critic_detached=False,
        value_weight=0.1,
        kl_weight=0.2,
        kl_target=6.0,
        kl_horizon=10_000,
        anneal_lr=False,
    ),
    # the question-answering project: one answer at a time, of one word, which cannot work (notebook 05);
    # LoRA r 8 of LLaVA-NeXT: 8 × (in + out) of 7 matrices in 32 layers = 20,971,520 weights
    "vqa": PPOSettings(
        iterations=8_379,
        prompts_per_iteration=1,
        group_size=1,
        epochs=1,
        mini_batch=1,
        learning_rate=5e-6,
        critic_learning_rate=1e-5,
        gamma=0.99,
        entropy_weight=0.01,
        kl_weight=0.0,
        no_end_penalty=0.0,
        max_grad_norm=0.5,
        anneal_lr=False,
        lora=LoraSettings(r=8, alpha=32, dropout=0.05),
    ),
}
_KNOBS = {
    "ppo_epochs": "epochs",
    "clip_range": "clip",
    "cliprange": "clip",
    "cliprange_value": "value_clip",
    "vf_coef": "value_weight",
    "init_kl_coef": "kl_weight",
    "target": "kl_target",
    "horizon": "kl_horizon",
    "steps": "iterations",
}


def ppo_preset(name: str, **knobs: Any) -> PPOSettings:
    """The settings called `name`, with some changed, by their names here or by those of TRL's old PPOTrainer.

    There, `batch_size` and `mini_batch_size` count answers; here prompts are counted, with `group_size` answers
    each. Raises UsageError listing the presets, or the names of settings.

    >>> ppo_preset("captions", ppo_epochs=2, clip_range=0.1, batch_size=16, mini_batch_size=4).mini_batch
    4
    """
    settings = _preset(PPO_PRESETS, name, "PPO")
    group = knobs.get("group_size", settings.group_size)
    for answers, prompts in (
        ("batch_size", "prompts_per_iteration"),
        ("mini_batch_size", "mini_batch"),
    ):
        if answers in knobs:
            knobs[prompts] = max(1, knobs.pop(answers) // group)
    knobs = {_KNOBS.get(knob, knob): value for knob, value in knobs.items()}
    known = [field.name for field in fields(PPOSettings)]
    if unknown := set(knobs) - set(known):
        raise UsageError(
            f"no PPO setting is called {', '.join(sorted(unknown))}: choose from {', '.join(known)}."
        )
    return replace(settings, **knobs)
