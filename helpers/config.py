"""One small dataclass a stage, and the presets.

A value of the wrong kind or outside its range is a UsageError where the settings are made. The
comments do the arithmetic; the T4 figures are arithmetic too, not measurements.
"""

import functools
import re
import reprlib
from dataclasses import fields, replace
from typing import Annotated, Any, Literal, dataclass_transform

from pydantic import (
    ConfigDict,
    Field,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    ValidationError,
)
from pydantic.dataclasses import dataclass

from helpers.files import UsageError, did_you_mean

Share = Annotated[float, Field(ge=0, le=1)]
WrongShare = Annotated[float, Field(ge=0, lt=0.5)]  # of labels; at a half they say nothing
DPOLoss = Literal[  # as TRL calls them
    "sigmoid",
    "sigmoid_norm",
    "hinge",
    "ipo",
    "exo_pair",
    "nca_pair",
    "robust",
    "bco_pair",
    "sppo_hard",
    "aot",
    "aot_unpaired",
    "apo_zero",
    "apo_down",
    "discopop",
    "sft",
]

# How an answer's hidden states become one (POOLINGS: helpers/models/pooling.py)
Pooling = Literal["last", "mean", "attention"]


def explain_values(error: ValidationError) -> str:
    """What pydantic has found wrong, in one line: each field, its value and what it must be."""
    found: dict[str, str] = {}
    for item in error.errors():
        field = ".".join(map(str, item["loc"]))
        problem = item["msg"].removeprefix("Value error, ").replace("Input should be", "must be")
        # of names, as in "Input should be 'sigmoid', 'hinge' or 'ipo'"
        choices = re.findall("'(.+?)'", item.get("ctx", {}).get("expected", ""))
        value = f"{field} = {reprlib.repr(item['input'])}: " if field else ""
        text = f"{value}{problem}.{did_you_mean(item['input'], choices)}"
        # a tuple with a wrong item is called too short as well: the first finding says enough
        found.setdefault(str(item["loc"][:1]), text)
    return " ".join(found.values())


@dataclass_transform(frozen_default=True)
def _settings(cls: type) -> type:
    """A frozen dataclass that checks its values whenever one is made, also by `replace`.

    Nothing is converted in silence ("2" is not 2) but whole numbers to floats.
    """
    strict = ConfigDict(strict=True, extra="forbid", allow_inf_nan=False)
    checked = dataclass(frozen=True, config=strict)(cls)
    construct = checked.__init__
    known = [field.name for field in fields(checked)]

    @functools.wraps(construct)
    def __init__(self, *args: Any, **values: Any) -> None:
        for name in values:
            if name not in known:
                stage = cls.__name__.removesuffix("Settings")
                raise UsageError(
                    f"no {stage} setting is called {name}: choose from {', '.join(known)}."
                    f"{did_you_mean(name, known)}"
                )
        try:
            construct(self, *args, **values)
        except ValidationError as error:
            raise UsageError(explain_values(error)) from None

    checked.__init__ = __init__
    return checked


ATTENTION = ("q_proj", "k_proj", "v_proj", "o_proj")
ALL_LINEAR = (*ATTENTION, "gate_proj", "up_proj", "down_proj")
# What has the same part in layers that are built otherwise: linear attention (Qwen3.5),
# convolutions and their feed-forward (LFM2), and what Gemma 4 adds to each layer
SAME_PART = {
    "q_proj": ("in_proj_qkv", "in_proj_z", "in_proj_a", "in_proj_b", "in_proj"),
    "o_proj": ("out_proj",),
    "gate_proj": ("w1", "per_layer_input_gate"),
    "up_proj": ("w3",),
    "down_proj": ("w2", "per_layer_projection"),
}


@_settings
class LoraSettings:
    r: PositiveInt = 16
    alpha: PositiveInt = 32  # updates are scaled by alpha / r = 2
    # 0, so that the first-step loss is exactly ln 2
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0
    target_modules: Annotated[tuple[str, ...], Field(min_length=1)] = ALL_LINEAR
    vision: bool = False  # True trains the vision tower as well

    @property
    def module_names(self) -> tuple[str, ...]:
        """The target modules by their names in every kind of layer."""
        names = list(self.target_modules)
        for name in self.target_modules:
            names += SAME_PART.get(name, ())
        return tuple(names)


# of TRL's, those with a term for pairs that are labelled the wrong way round
SMOOTHED_LOSSES = frozenset({"robust", "exo_pair", "aot", "aot_unpaired"})


@_settings
class DPOSettings:
    beta: PositiveFloat = 0.1
    losses: Annotated[tuple[DPOLoss, ...], Field(min_length=1)] = ("sigmoid",)
    loss_weights: tuple[NonNegativeFloat, ...] = (1.0,)
    sft_weight: NonNegativeFloat = 0.0  # of −log p(chosen) / token, against likelihood displacement
    # share of wrong labels that a loss of SMOOTHED_LOSSES expects
    label_smoothing: WrongShare = 0.0
    # mDPO: prefer the right image to a spoilt one, given the chosen answer
    image_weight: NonNegativeFloat = 0.0
    # mDPO: keep the chosen answer likelier than under the reference
    anchor_weight: NonNegativeFloat = 0.0
    learning_rate: PositiveFloat = 5e-6
    steps: PositiveInt = 400
    batch_size: PositiveInt = 2  # pairs in one forward: 2 rows of image, prompt and both answers
    accumulation: PositiveInt = 8  # pairs a step = 2 × 8 = 16
    warmup_share: Share = 0.1
    gradient_checkpointing: bool = True
    checkpoint_steps: NonNegativeInt = 50  # a checkpoint every so many steps; 0: at the end only
    lora: LoraSettings = LoraSettings()

    def __post_init__(self):
        if len(self.loss_weights) != len(self.losses):
            raise ValueError(f"{self.losses} need as many loss_weights, not {self.loss_weights}")
        if self.label_smoothing and not SMOOTHED_LOSSES.intersection(self.losses):
            raise ValueError(
                f"label_smoothing does nothing for {', '.join(self.losses)}: take losses of "
                f"{', '.join(sorted(SMOOTHED_LOSSES))}, or label_smoothing=0"
            )


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
        checkpoint_steps=40,
    ),
    # Qwen2-VL-2B in 4-bit on a T4:
    # 2 pairs × (256 visual + ~60 text + 2 × ~20 answer tokens) a forward.
    # 120 steps × 2 × 4 = 960 pairs; what counts is the sum of the rates, and that the SFT term
    # holds the chosen answers up (docs/results.md, real language)
    "t4": DPOSettings(
        sft_weight=2.0,
        learning_rate=1e-4,
        steps=120,
        accumulation=4,
        checkpoint_steps=30,
    ),
    # SmolVLM-256M on a laptop's CPU: 60 steps × 8 = 480 pairs, at a rate at which so few steps are
    # enough; the SFT term keeps the chosen answers likely
    "laptop": DPOSettings(
        sft_weight=1.0,
        learning_rate=1e-4,
        steps=60,
        batch_size=4,
        accumulation=2,
        gradient_checkpointing=False,
        checkpoint_steps=20,
    ),
    # the vehicle-counting project's 420 steps × 2 × 4 = 3,360 pairs, at rates with the sum of `t4`
    "vehicles": DPOSettings(
        sft_weight=2.0,
        learning_rate=3e-5,
        steps=420,
        accumulation=4,
    ),
    # what that project ran: it states no more, the rest is TRL's default; the rates move nothing
    "vehicles-source": DPOSettings(steps=420, accumulation=4, learning_rate=1e-6),
    # the reward-model project's adapter: 2,179,072 weights of Qwen2-VL-2B,
    # 8 × (in + out) of q, k, v, o in 28 layers
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
        choices = " or ".join(presets)
        raise UsageError(
            f"unknown {stage} preset {name!r}: choose {choices}, or add one to helpers/config.py."
            f"{did_you_mean(name, presets)}"
        )
    return presets[name]


@_settings
class SFTSettings:
    """Settings of supervised fine-tuning; what DPO has too is called the same."""

    learning_rate: PositiveFloat = 1e-4  # ten times that of all weights, as usual for LoRA
    steps: PositiveInt = 400
    batch_size: PositiveInt = 2  # answers in one forward, each with its image and prompt
    accumulation: PositiveInt = 8  # answers a step = 2 × 8 = 16
    warmup_share: Share = 0.1
    gradient_checkpointing: bool = True
    checkpoint_steps: NonNegativeInt = 50  # a checkpoint every so many steps; 0: at the end only
    lora: LoraSettings = LoraSettings()


SFT_PRESETS = {
    # as many steps and answers a step as DPO's preset of that name has pairs: 120 × 16 = 1,920
    "tiny": SFTSettings(
        learning_rate=3e-4,
        steps=120,
        batch_size=16,
        accumulation=1,
        gradient_checkpointing=False,
        checkpoint_steps=40,
    ),
    # Qwen2-VL-2B in 4-bit on a T4: 2 × (256 visual + ~60 text + ~20 answer tokens) a forward
    # as many answers as DPO's preset of that name has pairs
    "t4": SFTSettings(steps=120, accumulation=4, checkpoint_steps=30),
    # as many answers as DPO's preset of that name has pairs
    "laptop": SFTSettings(
        steps=60,
        batch_size=4,
        accumulation=2,
        gradient_checkpointing=False,
        checkpoint_steps=20,
    ),
}


def sft_preset(name: str) -> SFTSettings:
    """The settings called `name`. Raises UsageError listing the presets."""
    return _preset(SFT_PRESETS, name, "SFT")


@_settings
class RewardSettings:
    head: str = "mlp"  # a name in HEADS: helpers/models/heads.py
    # which of an answer's tokens the head reads: the last, or all, with equal or learnt weights
    pooling: Pooling = "mean"
    objective: str = "bradley_terry"  # a name in OBJECTIVES: helpers/training/reward.py
    learning_rate: PositiveFloat = 5e-6
    epochs: PositiveInt = 3
    batch_size: PositiveInt = 1  # records in one forward, each with all its answers
    accumulation: PositiveInt = 16  # records a step = 1 × 16
    # × the difference of the answers' scores, if the data has them
    margin_weight: NonNegativeFloat = 0.0
    label_smoothing: WrongShare = 0.0
    centring_weight: NonNegativeFloat = 0.0  # of (better + worse)², which keeps scores near 0
    focal_gamma: NonNegativeFloat = 2.0
    weight_decay: NonNegativeFloat = 0.0
    max_grad_norm: PositiveFloat = 1.0
    warmup_share: Share = 0.1
    # stop after so many evaluations without a better held-out accuracy
    patience: PositiveInt = 3
    evaluations: PositiveInt = 6  # over the whole training
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
    # Qwen2-VL-2B in 4-bit on a T4: (256 visual + ~60 text + 2 × ~20 answer tokens) a forward;
    # 512 records × 2 epochs / 8 = 128 steps
    "t4": RewardSettings(learning_rate=5e-4, epochs=2, accumulation=8, lora=LoraSettings()),
    # the reasoning project's, which read the last token; the rates move nothing
    "reasoning": RewardSettings(pooling="last"),
    # SmolVLM-256M on a laptop's CPU: 240 records × 2 epochs / 8 = 60 steps
    "laptop": RewardSettings(
        learning_rate=5e-4,
        epochs=2,
        batch_size=4,
        accumulation=2,
        evaluations=2,
        lora=LoraSettings(),
    ),
}


def reward_preset(name: str) -> RewardSettings:
    """The settings called `name`. Raises UsageError listing the presets."""
    return _preset(REWARD_PRESETS, name, "reward")


@_settings
class PPOSettings:
    # against a critic or a constant (PPO), or of a group: "rloo", "grpo"
    # (ADVANTAGES: helpers/training/advantages.py)
    advantages: str = "gae"
    policy_loss: str = "clip"  # a name in POLICY_LOSSES: helpers/losses.py
    rollout_filter: str = "all"  # a name in ROLLOUT_FILTERS: helpers/training/rollout.py
    iterations: PositiveInt = 100
    prompts_per_iteration: PositiveInt = 8  # asked in an iteration
    group_size: PositiveInt = 4  # answers to each: 8 × 4 = 32 samples an iteration
    epochs: PositiveInt = 2  # updates see each answer so often
    # prompts in one update: 4 × 4 = 16 answers, 8 / 4 × 2 = 4 updates an iteration
    mini_batch: PositiveInt = 4
    # prompts that are sampled, and looked at before the updates, together; 0: all of a shard
    sampling_batch: NonNegativeInt = 0
    learning_rate: NonNegativeFloat = 1e-5  # 0: only the critic learns
    anneal_lr: bool = True  # both learning rates fall linearly to 0
    critic_learning_rate: NonNegativeFloat = 1e-4
    # before the first iteration, where it has all to learn
    critic_warm_up_learning_rate: NonNegativeFloat = 1e-4
    # 0: no critic, so that advantages are measured against a constant, which needs no more samples
    # and has no weights (docs/results.md, a critic)
    critic_layers: Literal[0, 1, 3] = 0
    critic_sees_image: bool = False
    critic_detached: bool = True  # its loss does not reach the policy's adapter
    # it has an adapter of its own instead: a second pass, 1.5 times the time
    critic_adapter: bool = False
    gamma: Share = 1.0
    lam: Share = 0.95
    # advantages of a batch to mean 0 and deviation 1; GRPO: divided by the group's deviation
    whiten: bool = True
    clip: PositiveFloat = 0.2
    value_clip: PositiveFloat = 0.2
    value_weight: NonNegativeFloat = 0.5
    entropy_weight: NonNegativeFloat = 0.0
    kl_weight: NonNegativeFloat = 0.05
    kl_target: PositiveFloat | None = None  # nats an answer, to which the weight is adapted
    kl_horizon: PositiveInt = 1000
    kl_estimator: str = "k1"  # a name in KL_ESTIMATORS: helpers/losses.py
    no_end_penalty: NonNegativeFloat = 1.0  # taken off an answer that does not end
    temperature: NonNegativeFloat = 1.0
    top_p: Annotated[float, Field(gt=0, le=1)] = 1.0
    max_new_tokens: PositiveInt = 64
    max_grad_norm: PositiveFloat = 1.0
    adam_epsilon: PositiveFloat = 1e-8
    gradient_checkpointing: bool = False
    # of a token's new to old probability before the first update, less for a mean over many; None:
    # what rounding explains in the precision in use (TOLERANCES: helpers/runtime.py)
    ratio_tolerance: PositiveFloat | None = None
    checkpoint_every: PositiveInt = 5
    # an iteration is sampled in so many parts, or one a process:
    # 1 process with 2 equals 2 processes
    shards: PositiveInt = 1
    lora: LoraSettings = LoraSettings()

    def __post_init__(self):
        if not self.temperature:
            raise ValueError(
                "temperature=0 gives one and the same answer each time: "
                "sample with a temperature over 0"
            )

    def check(self, tasks: int, shards: int, processes: int) -> None:
        """Raise UsageError for what cannot be trained with, on so many tasks and processes."""
        if shards % processes or self.prompts_per_iteration % shards or self.mini_batch % shards:
            raise UsageError(
                f"{processes} processes share {shards} shards, and those prompts_per_iteration "
                "and mini_batch: make each a multiple of the one before."
            )
        if tasks < self.prompts_per_iteration:
            raise UsageError(
                f"{tasks} tasks, but an iteration asks {self.prompts_per_iteration}: "
                "lower prompts_per_iteration."
            )


_TINY = PPOSettings(
    iterations=36,  # × 64 = 2,304 samples
    prompts_per_iteration=16,
    group_size=4,
    mini_batch=8,
    learning_rate=1e-3,
    critic_learning_rate=2e-4,  # five times as much and it forgets in PPO what it learnt before
    critic_warm_up_learning_rate=1e-3,
    critic_adapter=True,  # of the critic that critic_layers=3 turns on
    kl_weight=0.02,
    max_new_tokens=40,
)
_T4 = PPOSettings(
    iterations=25,  # × 8 × 4 = 800 samples, each seen twice
    learning_rate=5e-5,
    mini_batch=2,
    critic_adapter=True,  # of the critic that critic_layers=3 turns on
    gradient_checkpointing=True,
)
# A group's mean in the place of a constant: 60 × 8 × 4 = 1,920 samples, each seen once. All 32 of
# an iteration make one step: with two steps of 8 answers each it stays where noise and learning
# are in balance (docs/results.md, real language).
_T4_GROUPS = {"iterations": 60, "learning_rate": 1e-4, "mini_batch": 8, "epochs": 1}
PPO_PRESETS = {
    # 36 iterations × 16 × 4 = 2,304 samples, 36 × 2 × 16 / 8 = 144 updates
    "tiny": _TINY,
    "tiny-rloo": replace(_TINY, advantages="rloo"),
    "tiny-grpo": replace(
        _TINY, advantages="grpo", prompts_per_iteration=8, group_size=8, mini_batch=4
    ),
    # Qwen2-VL-2B in 4-bit on a T4:
    # 2 × (256 visual + ~60 text + 4 × ~30 answer tokens) = 872 tokens in an update,
    # logits of 2 × 4 × 30 × 151,936 × 4 bytes = 0.15 GB
    "t4": _T4,
    "t4-rloo": replace(_T4, advantages="rloo", **_T4_GROUPS),
    "t4-grpo": replace(_T4, advantages="grpo", **_T4_GROUPS),
    # SmolVLM-256M on a laptop's CPU: 20 iterations × 4 × 4 = 320 samples; a group's mean takes the
    # place of a critic, which would be a second pass
    "laptop": PPOSettings(
        advantages="rloo",
        iterations=20,
        prompts_per_iteration=4,
        learning_rate=5e-5,
        epochs=1,
        max_new_tokens=40,
    ),
    # the reasoning project: its critic, one linear layer on the last text state and the pooled
    # image, and its entropy bonus
    "reasoning": PPOSettings(
        critic_layers=1, critic_sees_image=True, entropy_weight=0.01, mini_batch=2
    ),
    # the caption project states no numbers: those of the library it used,
    # but for the 256 answers an iteration
    "captions": PPOSettings(
        prompts_per_iteration=32,
        group_size=1,
        epochs=4,
        mini_batch=1,
        critic_learning_rate=1e-5,
        critic_layers=1,  # that library's
        critic_detached=False,
        value_weight=0.1,
        kl_weight=0.2,
        kl_target=6.0,
        kl_horizon=10_000,
        anneal_lr=False,
    ),
    # the question-answering project: one answer at a time, of one word,
    # which cannot work (notebook 05);
    # it had a critic;
    # LoRA r 8 of LLaVA-NeXT: 8 × (in + out) of 7 matrices in 32 layers = 20,971,520 weights
    "vqa": PPOSettings(
        iterations=8_379,
        prompts_per_iteration=1,
        group_size=1,
        epochs=1,
        mini_batch=1,
        learning_rate=5e-6,
        critic_learning_rate=1e-5,
        critic_layers=3,
        gamma=0.99,
        entropy_weight=0.01,
        kl_weight=0.0,
        no_end_penalty=0.0,
        max_grad_norm=0.5,
        anneal_lr=False,
        lora=LoraSettings(r=8, alpha=32, dropout=0.05),
    ),
}
# names in TRL's old PPOTrainer → names here
_TRL_NAMES = {
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
# these count answers there and prompts here
_TRL_COUNTS = {"batch_size": "prompts_per_iteration", "mini_batch_size": "mini_batch"}


def ppo_preset(name: str, /, **knobs: Any) -> PPOSettings:
    """The settings called `name`, with some changed, by their names here or by TRL's.

    In TRL's old PPOTrainer, `batch_size` and `mini_batch_size` count answers; here prompts are
    counted, with `group_size` answers each. Raises UsageError listing the presets, or the names of
    settings.

    >>> changes = {"ppo_epochs": 2, "clip_range": 0.1, "batch_size": 16, "mini_batch_size": 4}
    >>> ppo_preset("captions", **changes).mini_batch
    4
    """
    settings = _preset(PPO_PRESETS, name, "PPO")
    if "group_size" in knobs:
        settings = replace(settings, group_size=knobs.pop("group_size"))
    for answers, prompts in _TRL_COUNTS.items():
        number = knobs.pop(answers, None)
        if isinstance(number, int) and number > 0:
            number = max(1, number // settings.group_size)
        if number is not None:  # where it is no number of answers, the settings will say so
            knobs[prompts] = number
    return replace(settings, **{_TRL_NAMES.get(knob, knob): knobs[knob] for knob in knobs})
