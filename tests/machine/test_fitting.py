"""What is made smaller so that it fits: batches, checkpointing, images; and that the forecast's images are the processor's."""

import random
from dataclasses import replace

import pytest
from architectures import save_as_on_the_hub
from PIL import Image

from helpers.config import dpo_preset, ppo_preset, reward_preset
from helpers.files import UsageError
from helpers.machine import memory
from helpers.machine.fitting import LARGEST_PIXELS, changed_fields, fit_images, fit_settings, largest_image
from helpers.machine.memory import USABLE_SHARE, GenerationSettings, forecast_memory, least_memory, phases
from helpers.models.loading import load_processor
from helpers.models.prompts import count_image_tokens, encode
from helpers.models.shapes import default_max_pixels, smaller_limits, visual_tokens

CARD = {"width": 448, "height": 448, "four_bit": True, "compute_bytes": 2}
SIZES = [(640, 480), (480, 640), (112, 112), (1000, 300), (30, 31)]
SIZES += [(random.Random(k).randint(40, 1500), random.Random(-k - 1).randint(40, 1500)) for k in range(12)]


def gigabytes(need):
    """Of a card on which `need` just fits."""
    return need.total / USABLE_SHARE + 1e-6


# --- batches ---


def test_pairs_a_step_stay_the_same_whatever_fits():
    settings = replace(dpo_preset("t4"), batch_size=6, accumulation=5)
    for batch, size in ((6, 6), (5, 5), (4, 3), (3, 3), (2, 2), (1, 1)):  # 4 does not divide 30
        gigabytes = (
            forecast_memory("qwen2-vl-7b", "dpo", replace(settings, batch_size=batch), **CARD).total / USABLE_SHARE
            + 1e-6
        )
        fitted, largest = fit_settings("qwen2-vl-7b", "dpo", settings, gigabytes, CARD)
        assert (largest, fitted.batch_size) == (batch, size) and fitted.batch_size * fitted.accumulation == 30


@pytest.mark.parametrize(("stage", "preset"), [("dpo", dpo_preset("t4")), ("reward", reward_preset("t4"))])
def test_checkpointing_comes_before_a_smaller_batch(stage, preset):
    settings = replace(preset, batch_size=4, accumulation=4, gradient_checkpointing=False)
    saving = replace(settings, gradient_checkpointing=True)
    plain, saved, least = (
        forecast_memory("qwen2-vl-7b", stage, s, **CARD)
        for s in (settings, saving, memory.smallest_settings(stage, settings))
    )
    assert plain.total > saved.total > least.total
    assert fit_settings("qwen2-vl-7b", stage, settings, gigabytes(plain), CARD)[0] is settings
    assert fit_settings("qwen2-vl-7b", stage, settings, gigabytes(saved), CARD) == (saving, 4)
    assert fit_settings("qwen2-vl-7b", stage, settings, gigabytes(least), CARD)[0] == replace(
        saving, batch_size=1, accumulation=16
    )


def test_ppo_looks_at_fewer_prompts_at_once_before_all_else():
    """Slices are as equal as can be, and fit also if all answers are as long as they may be; updates are left alone."""
    settings = replace(ppo_preset("t4"), prompts=12, mini_batch=1, max_new_tokens=40)
    for size, found in ((12, 0), (11, 6), (6, 6), (5, 4), (4, 4), (3, 3), (2, 2), (1, 1)):
        *before, _ = phases("qwen2-vl-7b", "ppo", replace(settings, at_once=size), **CARD, answer_tokens=40)
        card = gigabytes(max(before, key=lambda phase: phase.total))
        fitted, _ = fit_settings("qwen2-vl-7b", "ppo", settings, card, CARD)
        assert fitted == replace(settings, at_once=found), size


def test_the_sources_models_train_on_a_t4_with_fewer_prompts_at_once():
    card = {"width": 1024, "height": 1024, "four_bit": True, "compute_bytes": 2}
    for name in ("llava-1.5-7b", "llava-next-llama3-8b"):
        settings = ppo_preset("t4")
        assert forecast_memory(name, "ppo", settings, **card).total > USABLE_SHARE * 15.8
        fitted, _ = fit_settings(name, "ppo", settings, 15.8, card)
        assert 1 <= fitted.at_once < 8 and forecast_memory(name, "ppo", fitted, **card).total <= USABLE_SHARE * 15.8


def test_ppo_gets_checkpointing_and_then_smaller_mini_batches():
    settings = replace(ppo_preset("t4"), prompts=12, mini_batch=12, at_once=1, gradient_checkpointing=False)

    def fitted(batch, checkpointing, settings=settings):
        like = replace(settings, mini_batch=batch, gradient_checkpointing=checkpointing)
        return fit_settings(
            "qwen2-vl-7b",
            "ppo",
            settings,
            forecast_memory("qwen2-vl-7b", "ppo", like, **CARD).total / USABLE_SHARE + 1e-6,
            CARD,
        )

    assert fitted(12, False)[0] is settings
    assert fitted(12, True) == (replace(settings, gradient_checkpointing=True), 12)
    found, largest = fitted(10, True)  # 10 would fit, but 12 prompts are cut into 6 and 6
    assert largest == 10 and found == replace(settings, gradient_checkpointing=True, mini_batch=6)
    quarters = replace(settings, shards=4)
    assert fitted(10, True, quarters)[0] == replace(quarters, gradient_checkpointing=True, mini_batch=4)


def test_a_large_batch_that_fits_is_not_made_smaller():
    settings = replace(dpo_preset("tiny"), batch_size=memory.LARGEST_BATCH + 100)
    assert fit_settings("tiny", "dpo", settings, 80, CARD) == (settings, memory.LARGEST_BATCH + 100)


# --- images ---


@pytest.mark.parametrize("name", ["qwen2_vl", "qwen2_5_vl", "qwen3_vl", "smolvlm", "idefics3"])
def test_the_images_of_the_forecast_are_those_that_the_processor_makes(name, tmp_path):
    folder = str(save_as_on_the_hub(name, tmp_path / name))
    own = default_max_pixels(folder)
    for limit in (None, own, 4 * own, own // 2, own // 7, 800):  # the last is less than the least
        processor = load_processor(folder, max_pixels=limit)
        for width, height in SIZES:
            inputs = encode(processor, ["How many?"], [Image.new("RGB", (width, height))])
            made = int(count_image_tokens(processor, inputs)[0])
            assert visual_tokens(folder, width, height, limit) == made, (limit, width, height)


def test_limits_by_hand():
    # 448² pixels are 16 × 16 tokens of 28²; down to 8 × 8, which are 224²
    assert default_max_pixels("qwen2-vl-2b") == 448**2
    assert smaller_limits("qwen2-vl-2b", 448**2) == [(28 * n) ** 2 for n in range(15, 7, -1)]
    assert smaller_limits("qwen2-vl-2b", 448**2 + 1)[0] == 448**2
    assert smaller_limits("qwen3-vl-2b", 300 * 300) == [288**2, 256**2]  # tokens of 32²
    assert default_max_pixels("tiny") == 112**2 and smaller_limits("tiny", 112**2) == []  # 4 × 4 tokens are fewer
    assert default_max_pixels("smolvlm-256m") == 512**2 and smaller_limits("smolvlm-256m", 512**2) == []  # one tile
    assert smaller_limits("smolvlm-256m", 2048**2) == [1536**2, 1024**2, 512**2]
    for llava in ("llava-1.5-7b", "llava-next-llama3-8b"):
        assert default_max_pixels(llava) is None and smaller_limits(llava, 10**6) == []


def test_images_are_reduced_only_as_far_as_the_smallest_batch_needs():
    stages = {"reward": replace(reward_preset("t4"), batch_size=2, accumulation=8)}
    for place, limit in enumerate(smaller_limits("qwen2.5-vl-3b", 448**2)):
        need = least_memory("qwen2.5-vl-3b", "reward", stages["reward"], **CARD, max_pixels=limit)
        assert fit_images("qwen2.5-vl-3b", stages, gigabytes(need), CARD) == limit, place
    need = least_memory("qwen2.5-vl-3b", "reward", stages["reward"], **CARD)
    assert fit_images("qwen2.5-vl-3b", stages, gigabytes(need), CARD) is None  # as the preset has it
    asked = CARD | {"max_pixels": 336**2}
    assert fit_images("qwen2.5-vl-3b", stages, gigabytes(need), asked) == 336**2
    large = CARD | {"width": 800, "height": 800}
    need = least_memory("qwen2.5-vl-3b", "reward", stages["reward"], **large, max_pixels=560**2)
    assert fit_images("qwen2.5-vl-3b", stages, gigabytes(need), large | {"max_pixels": 672**2}) == 560**2
    assert fit_images("qwen2.5-vl-3b", stages, 3.0, CARD) == 224**2  # nothing fits: `fit` says so
    assert fit_images("llava-1.5-7b", stages, 3.0, CARD) is None


def test_the_stage_that_needs_most_decides():
    stages = {"load": GenerationSettings(), "dpo": dpo_preset("t4"), "ppo": ppo_preset("t4")}
    card = gigabytes(least_memory("qwen2.5-vl-3b", "ppo", stages["ppo"], **CARD, max_pixels=336**2))
    limit = fit_images("qwen2.5-vl-3b", stages, card, CARD)
    assert limit == 336**2
    assert fit_images("qwen2.5-vl-3b", {"load": GenerationSettings(), "dpo": stages["dpo"]}, card, CARD) is None
    for stage, settings in stages.items():  # and with it all of them fit
        fit_settings("qwen2.5-vl-3b", stage, settings, card, CARD | {"max_pixels": limit})


def test_checkpointing_and_shards_come_before_smaller_images():
    settings = replace(ppo_preset("t4"), prompts=8, mini_batch=8, shards=2, gradient_checkpointing=False)
    like = replace(settings, mini_batch=2, gradient_checkpointing=True, at_once=1)
    card = gigabytes(forecast_memory("qwen2-vl-7b", "ppo", like, **CARD))
    assert fit_images("qwen2-vl-7b", {"ppo": settings}, card, CARD) is None
    assert fit_settings("qwen2-vl-7b", "ppo", settings, card, CARD)[0].gradient_checkpointing
    assert fit_images("qwen2-vl-7b", {"ppo": settings}, card - 0.01, CARD) == 420**2


def test_the_largest_image_fits_as_the_stages_are_set_and_the_next_does_not():
    stages = {"dpo": dpo_preset("t4"), "load": GenerationSettings()}
    most = largest_image("qwen2-vl-2b", stages, 15.8, CARD)
    side = int(most**0.5)
    assert side**2 == most and side % 28 == 0 and 448 < side < 4096

    def fits(side):
        square = CARD | {"width": side, "height": side, "max_pixels": side**2}
        return all(
            forecast_memory("qwen2-vl-2b", s, given, **square).total <= USABLE_SHARE * 15.8
            for s, given in stages.items()
        )

    assert fits(side) and not fits(side + 28)
    assert largest_image("qwen2-vl-2b", stages, 3.0, CARD) == 0 == largest_image("llava-1.5-7b", stages, 80, CARD)
    assert (
        largest_image("smolvlm-256m", {"load": GenerationSettings(1)}, 80, CARD)
        == smaller_limits("smolvlm-256m", LARGEST_PIXELS)[0]
    )


def test_an_error_says_with_which_images_nothing_fits():
    with pytest.raises(UsageError, match=r"stage dpo takes .* GB while training, .* images of 64 visual tokens"):
        fit_settings("qwen2-vl-2b", "dpo", dpo_preset("t4"), 3.0, CARD | {"max_pixels": 224**2})


def test_what_was_changed_is_named():
    settings = dpo_preset("t4")
    after = replace(settings, batch_size=1, accumulation=16)
    assert changed_fields(settings, settings) == {} and changed_fields(settings, after) == {
        "batch_size": 1,
        "accumulation": 16,
    }
