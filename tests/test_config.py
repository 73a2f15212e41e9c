"""Settings by name: presets, old names, and what a wrong name or value says."""

import pickle
import re
import reprlib
from dataclasses import asdict, fields, replace

import pytest

from helpers.config import (
    ATTENTION,
    DPO_PRESETS,
    PPO_PRESETS,
    REWARD_PRESETS,
    SFT_PRESETS,
    DPOSettings,
    LoraSettings,
    PPOSettings,
    RewardSettings,
    SFTSettings,
    dpo_preset,
    ppo_preset,
    sft_preset,
)
from helpers.files import UsageError

KINDS = (LoraSettings, DPOSettings, SFTSettings, RewardSettings, PPOSettings)
PRESETS = []
for presets in (DPO_PRESETS, SFT_PRESETS, REWARD_PRESETS, PPO_PRESETS):
    PRESETS += presets.values()
NAN, INFINITE = float("nan"), float("inf")
OVER_0 = "must be greater than 0"
FROM_0 = "must be greater than or equal to 0"
TO_1 = "must be less than or equal to 1"
WHOLE, NUMBER = "must be a valid integer", "must be a valid number"
YES_OR_NO, TUPLE, TEXT = (
    "must be a valid boolean",
    "must be a valid tuple",
    "must be a valid string",
)
WRONG_VALUES = [  # settings, field, value, what it must be
    (LoraSettings, "r", 0, OVER_0),
    (LoraSettings, "r", 8.0, WHOLE),
    (LoraSettings, "alpha", -16, OVER_0),
    (LoraSettings, "alpha", True, WHOLE),
    (LoraSettings, "dropout", 1, "must be less than 1"),
    (LoraSettings, "dropout", -0.1, FROM_0),
    (LoraSettings, "target_modules", "q_proj", TUPLE),
    (LoraSettings, "target_modules", ["q_proj"], TUPLE),
    (LoraSettings, "target_modules", (), "Tuple should have at least 1 item"),
    (LoraSettings, "target_modules", (1,), TEXT),
    (LoraSettings, "vision", "yes", YES_OR_NO),
    (DPOSettings, "beta", 0, OVER_0),
    (DPOSettings, "beta", NAN, "must be a finite number"),
    (DPOSettings, "losses", ("sigmiod",), "Did you mean 'sigmoid'?"),
    (DPOSettings, "losses", (), "Tuple should have at least 1 item"),
    (DPOSettings, "losses", "ipo", TUPLE),
    (DPOSettings, "loss_weights", (-1.0,), FROM_0),
    (DPOSettings, "loss_weights", ("1",), NUMBER),
    (DPOSettings, "sft_weight", -1, FROM_0),
    (DPOSettings, "label_smoothing", 0.5, "must be less than 0.5"),
    (DPOSettings, "image_weight", INFINITE, "must be a finite number"),
    (DPOSettings, "anchor_weight", -0.5, FROM_0),
    (DPOSettings, "learning_rate", -1, OVER_0),
    (DPOSettings, "learning_rate", "5e-6", NUMBER),
    (DPOSettings, "steps", "x", WHOLE),
    (DPOSettings, "steps", 0, OVER_0),
    (DPOSettings, "steps", None, WHOLE),
    (DPOSettings, "batch_size", 0, OVER_0),
    (DPOSettings, "accumulation", 0.5, WHOLE),
    (DPOSettings, "warmup_share", 10, TO_1),
    (DPOSettings, "gradient_checkpointing", 1, YES_OR_NO),
    (DPOSettings, "checkpoint_steps", -1, FROM_0),
    (DPOSettings, "lora", {"r": 8}, "must be an instance of LoraSettings"),
    (SFTSettings, "learning_rate", 0, OVER_0),
    (SFTSettings, "steps", 1.0, WHOLE),
    (SFTSettings, "accumulation", 0, OVER_0),
    (RewardSettings, "head", 3, TEXT),
    (
        RewardSettings,
        "pooling",
        "man",
        "must be 'last', 'mean' or 'attention'. Did you mean 'mean'?",
    ),
    (RewardSettings, "objective", None, TEXT),
    (RewardSettings, "learning_rate", 0, OVER_0),
    (RewardSettings, "epochs", 0, OVER_0),
    (RewardSettings, "batch_size", -2, OVER_0),
    (RewardSettings, "accumulation", 0, OVER_0),
    (RewardSettings, "margin_weight", -1, FROM_0),
    (RewardSettings, "label_smoothing", 1, "must be less than 0.5"),
    (RewardSettings, "centring_weight", -0.01, FROM_0),
    (RewardSettings, "focal_gamma", -2, FROM_0),
    (RewardSettings, "weight_decay", -0.01, FROM_0),
    (RewardSettings, "max_grad_norm", 0, OVER_0),
    (RewardSettings, "warmup_share", -0.1, FROM_0),
    (RewardSettings, "patience", 0, OVER_0),
    (RewardSettings, "evaluations", 0, OVER_0),
    (PPOSettings, "iterations", 0, OVER_0),
    (PPOSettings, "iterations", 1e3, WHOLE),
    (PPOSettings, "prompts_per_iteration", 0, OVER_0),
    (PPOSettings, "group_size", 0, OVER_0),
    (PPOSettings, "epochs", -1, OVER_0),
    (PPOSettings, "mini_batch", 0, OVER_0),
    (PPOSettings, "sampling_batch", -1, FROM_0),
    (PPOSettings, "learning_rate", -1e-5, FROM_0),
    (PPOSettings, "critic_learning_rate", -1, FROM_0),
    (PPOSettings, "critic_warm_up_learning_rate", NAN, "must be a finite number"),
    (PPOSettings, "critic_layers", 2, "must be 0, 1 or 3"),
    (PPOSettings, "gamma", 1.1, TO_1),
    (PPOSettings, "lam", -0.95, FROM_0),
    (PPOSettings, "clip", 0, OVER_0),
    (PPOSettings, "value_clip", -0.2, OVER_0),
    (PPOSettings, "value_weight", -0.5, FROM_0),
    (PPOSettings, "entropy_weight", -0.01, FROM_0),
    (PPOSettings, "kl_weight", -0.05, FROM_0),
    (PPOSettings, "kl_target", 0, OVER_0),
    (PPOSettings, "kl_horizon", 0, OVER_0),
    (PPOSettings, "kl_estimator", 1, TEXT),
    (PPOSettings, "no_end_penalty", -1, FROM_0),
    (PPOSettings, "temperature", -1, FROM_0),
    (PPOSettings, "top_p", 0, OVER_0),
    (PPOSettings, "top_p", 1.5, TO_1),
    (PPOSettings, "max_new_tokens", 0, OVER_0),
    (PPOSettings, "max_grad_norm", -1, OVER_0),
    (PPOSettings, "adam_epsilon", 0, OVER_0),
    (PPOSettings, "ratio_tolerance", 0, OVER_0),
    (PPOSettings, "checkpoint_every", 0, OVER_0),
    (PPOSettings, "shards", 0, OVER_0),
]


def test_smoothing_is_refused_where_the_loss_has_no_term_for_it():
    """It would change nothing, in silence."""
    for losses in (("sigmoid",), ("hinge", "ipo")):
        with pytest.raises(UsageError, match=f"does nothing for {', '.join(losses)}: take losses"):
            DPOSettings(label_smoothing=0.1, losses=losses, loss_weights=(1.0,) * len(losses))
    both = DPOSettings(label_smoothing=0.1, losses=("sigmoid", "robust"), loss_weights=(1.0, 1.0))
    assert both.label_smoothing == 0.1 and DPOSettings(losses=("ipo",)).label_smoothing == 0


@pytest.mark.parametrize(("kind", "field", "value", "allowed"), WRONG_VALUES)
def test_a_wrong_value_is_one_line_with_field_value_and_what_is_allowed(
    kind, field, value, allowed
):
    for make in (lambda: kind(**{field: value}), lambda: replace(kind(), **{field: value})):
        with pytest.raises(UsageError) as error:
            make()
        said = str(error.value)
        assert said.startswith(field) and allowed in said
        assert f" = {reprlib.repr(value)}: " in said or f".0 = {value[0]!r}: " in said
        assert "\n" not in said and "pydantic" not in said


@pytest.mark.parametrize("kind", KINDS)
def test_every_field_has_a_kind(kind):
    for field in fields(kind):
        with pytest.raises(UsageError, match=rf"^{field.name} = <object .*must be"):
            kind(**{field.name: object()})


def test_all_that_is_wrong_is_said_at_once():
    with pytest.raises(UsageError, match=r"steps = 1\.5: must .*\. batch_size = 0: must be"):
        DPOSettings(steps=1.5, batch_size=0)


def test_each_loss_has_a_weight():
    with pytest.raises(UsageError, match=r"'ipo'.* need as many loss_weights, not"):
        DPOSettings(losses=("sigmoid", "ipo"))


def test_answers_that_are_all_alike_are_refused():
    with pytest.raises(UsageError, match=r"^temperature=0 gives one and the same answer each time"):
        PPOSettings(temperature=0)


def test_an_unknown_setting_is_named_with_those_there_are():
    with pytest.raises(UsageError, match=r"no DPO setting is called step: .*Did you mean 'steps'"):
        replace(DPOSettings(), step=3)


@pytest.mark.parametrize("settings", PRESETS)
def test_presets_are_valid_and_settings_stay_dataclasses(settings):
    values = {field.name: getattr(settings, field.name) for field in fields(settings)}
    assert type(settings)(**values) == settings == pickle.loads(pickle.dumps(settings))
    assert eval(repr(settings)) == settings and hash(replace(settings)) == hash(settings)
    assert asdict(settings)["lora"]["r"] == settings.lora.r
    with pytest.raises(AttributeError):
        settings.lora = LoraSettings(target_modules=ATTENTION)


def test_a_whole_number_is_a_float_where_one_is_wanted():
    assert repr(DPOSettings(beta=1)) == repr(DPOSettings(beta=1.0))


def test_losses_are_those_of_trl():
    """TRL lists them in the description of its own setting."""
    from trl import DPOConfig

    described = DPOConfig.__dataclass_fields__["loss_type"].metadata["help"].split("If multiple")[0]
    for loss in (names := re.findall("`'(.+?)'`", described)):
        assert DPOSettings(losses=(loss,)).losses == (loss,)
    with pytest.raises(UsageError) as error:
        DPOSettings(losses=("",))
    assert set(re.findall("'(.+?)'", str(error.value).split("must be")[1])) == set(names)


def test_old_names_of_settings():
    settings = ppo_preset(
        "captions",
        ppo_epochs=2,
        clip_range=0.1,
        batch_size=16,
        mini_batch_size=4,
        gamma=0.9,
        lam=0.8,
    )
    assert (settings.epochs, settings.clip) == (2, 0.1)
    assert (settings.prompts_per_iteration, settings.mini_batch) == (16, 4)
    assert (settings.gamma, settings.lam) == (0.9, 0.8)
    # 64 answers / group_size 4
    assert ppo_preset("t4", batch_size=64, mini_batch_size=16).prompts_per_iteration == 16
    with pytest.raises(UsageError, match="no PPO setting is called clip_rang"):
        ppo_preset("tiny", clip_rang=0.1)
    with pytest.raises(UsageError, match="choose tiny or"):
        ppo_preset("small")


@pytest.mark.parametrize("number", ["x", 0, -4])
def test_a_wrong_number_of_answers_is_not_made_a_prompt(number):
    with pytest.raises(UsageError, match=f"prompts_per_iteration = {number!r}: must be"):
        ppo_preset("tiny", batch_size=number)


def test_the_question_answering_projects_numbers():
    vqa = ppo_preset("vqa")
    assert (vqa.learning_rate, vqa.critic_learning_rate, vqa.critic_layers) == (5e-6, 1e-5, 3)
    ratios = (vqa.gamma, vqa.lam, vqa.clip, vqa.value_weight, vqa.entropy_weight)
    assert ratios == (0.99, 0.95, 0.2, 0.5, 0.01)
    assert (vqa.prompts_per_iteration, vqa.group_size, vqa.epochs) == (1, 1, 1)
    assert (vqa.max_grad_norm, vqa.kl_weight) == (0.5, 0.0)
    assert (vqa.lora.r, vqa.lora.alpha, vqa.lora.dropout) == (8, 32, 0.05)
    assert len(vqa.lora.target_modules) == 7
    # LLaVA-NeXT's language model: 32 layers, 4,096 wide, 1,024 for keys and values, 14,336 in the MLP
    wide = [
        (4096, 4096),
        (4096, 1024),
        (4096, 1024),
        (4096, 4096),
        (4096, 14336),
        (4096, 14336),
        (14336, 4096),
    ]
    assert 32 * vqa.lora.r * sum(map(sum, wide)) == 20_971_520


def test_an_unknown_preset_is_a_one_line_error():
    with pytest.raises(UsageError, match="unknown DPO preset 'tyni': choose tiny or t4 or"):
        dpo_preset("tyni")
    with pytest.raises(UsageError, match=r"Did you mean 'vehicles'\?"):
        dpo_preset("vehicle")


def test_sft_has_as_many_steps_and_examples_a_step_as_dpo():
    """So that its baseline beside DPO differs in what is learnt, not in how much of it."""
    for name, settings in SFT_PRESETS.items():
        other = DPO_PRESETS[name]
        a_step = settings.batch_size * settings.accumulation
        assert (settings.steps, a_step) == (other.steps, other.batch_size * other.accumulation)
        assert settings.lora == other.lora and settings == sft_preset(name)
    with pytest.raises(UsageError, match="unknown SFT preset 'tinny': choose tiny or t4"):
        sft_preset("tinny")


@pytest.mark.parametrize("presets", [DPO_PRESETS, SFT_PRESETS], ids=["DPO", "SFT"])
def test_every_preset_that_trains_over_a_minute_writes_checkpoints(presets):
    """Colab may take the machine back in the middle."""
    for name, settings in presets.items():
        assert 0 < settings.checkpoint_steps < settings.steps, name
    for name, settings in PPO_PRESETS.items():
        assert settings.checkpoint_every < settings.iterations, name
