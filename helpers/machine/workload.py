"""What is to run: a model, the images and texts that it gets, and the settings of each stage.

The arithmetic of `helpers/machine/memory.py`, `helpers/machine/duration.py` and
`helpers/machine/fitting.py` starts from a `Workload` and a stage's settings. Neither ever changes:
smaller images are another workload, made with `dataclasses.replace`. The type of the settings says
which stage they are for.

Simplifications: all images have one size, and all answers one length.
"""

from dataclasses import dataclass, replace

from helpers.config import (
    DPOSettings,
    PPOSettings,
    RewardSettings,
    SFTSettings,
    dpo_preset,
    ppo_preset,
    reward_preset,
    sft_preset,
)
from helpers.files import UsageError
from helpers.models import ModelShapes, default_max_pixels, shapes_of, tokens_and_patches


@dataclass(frozen=True)
class GenerationSettings:
    """Answers without training: what notebooks that train nothing do.

    The defaults are `models.generate_answers`'s.
    """

    batch_size: int = 64
    max_new_tokens: int = 64


# The stages, in the order of the notebooks, and what each is set by
StageSettings = GenerationSettings | SFTSettings | DPOSettings | RewardSettings | PPOSettings
STAGES = {
    "load": GenerationSettings,
    "sft": SFTSettings,
    "dpo": DPOSettings,
    "reward": RewardSettings,
    "ppo": PPOSettings,
}


@dataclass(frozen=True)
class Workload:
    """What a model is given to do, in any stage."""

    model: str  # a preset, or the folder of a checkpoint
    width: int = 1024  # pixels of every image, before it is reduced to `max_pixels`
    height: int = 1024
    max_pixels: int | None = None  # as of `models.load_model`; None: the model's own limit, or none
    prompt_tokens: int = 60  # of text, without those of the image
    answer_tokens: int = 20  # of every answer, sampled or given
    answers: int = 2  # to a record of reward training (pairs have 2, PPO its group)
    examples: int = 500  # records trained on
    four_bit: bool = True  # language weights as 4-bit NF4
    compute_bytes: int = 2  # of a number: 2 in 16 bits, 4 in fp32
    on_gpu: bool = True

    @property
    def shapes(self) -> ModelShapes:
        """Raises UsageError for a model that is neither a preset nor in a folder."""
        return shapes_of(self.model)

    @property
    def pixel_limit(self) -> int | None:
        """Pixels to which images are reduced; None: to none."""
        return self.max_pixels or default_max_pixels(self.model)

    @property
    def visual_tokens(self) -> int:
        """Tokens that stand for one image."""
        return tokens_and_patches(self.model, self.width, self.height, self.max_pixels)[0]

    @property
    def patches(self) -> int:
        """Patches that the vision tower sees of one image."""
        return tokens_and_patches(self.model, self.width, self.height, self.max_pixels)[1]

    @property
    def prompt(self) -> int:
        """Tokens of image and text before an answer."""
        return self.visual_tokens + self.prompt_tokens

    def rows(self, prompts: int, answers: int) -> tuple[int, int]:
        """Return how many rows prompts with so many answers each are, and the tokens of a row.

        All answers to a prompt are in one row, unless the model hands states on between tokens.
        """
        if self.shapes.recurrent:
            return prompts * answers, self.prompt + self.answer_tokens
        return prompts, self.prompt + answers * self.answer_tokens


def stage_of(settings: StageSettings) -> str:
    """Return the stage that the settings are for."""
    return next(stage for stage, kind in STAGES.items() if isinstance(settings, kind))


def default_settings(stage: str) -> StageSettings:
    """Return the stage's preset "t4". Raises UsageError for an unknown stage."""
    if stage not in STAGES:
        raise UsageError(f"unknown stage {stage!r}: choose from {', '.join(STAGES)}.")
    # There are no presets of answers without training
    presets = {
        "sft": sft_preset,
        "dpo": dpo_preset,
        "reward": reward_preset,
        "ppo": ppo_preset,
    }
    return presets[stage]("t4") if stage in presets else GenerationSettings()


def batch_of(settings: StageSettings) -> int:
    """Return how many pairs a forward takes.

    Reward training counts records instead, PPO prompts, SFT and load answers.
    """
    return settings.mini_batch if isinstance(settings, PPOSettings) else settings.batch_size


def set_batch(settings: StageSettings, batch: int) -> StageSettings:
    """Return the settings with another batch."""
    field = "mini_batch" if isinstance(settings, PPOSettings) else "batch_size"
    return replace(settings, **{field: batch})


def smallest_settings(settings: StageSettings) -> StageSettings:
    """Return the settings that take least memory.

    These are the smallest batch, gradient checkpointing, and one prompt sampled at a time.
    """
    if isinstance(settings, GenerationSettings):
        return set_batch(settings, 1)
    if isinstance(settings, PPOSettings):
        # Prompts of an update are shared among all shards
        least = settings.shards
        return replace(settings, mini_batch=least, sampling_batch=1, gradient_checkpointing=True)
    return replace(settings, batch_size=1, gradient_checkpointing=True)
