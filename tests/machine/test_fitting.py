"""What is made smaller so that it fits: batches, checkpointing, images; and that the forecast's images are the processor's."""

import json
import random
from dataclasses import replace

import pytest
from architectures import save_as_on_the_hub
from PIL import Image

from helpers.config import dpo_preset, ppo_preset, reward_preset
from helpers.files import UsageError
from helpers.machine import memory
from helpers.machine.fitting import (
    LARGEST_PIXELS,
    changed_fields,
    fit_images,
    fit_settings,
    largest_image,
)
from helpers.machine.memory import USABLE_SHARE, forecast_memory, least_memory, phases
from helpers.machine.workload import GenerationSettings, Workload, smallest_settings
from helpers.models.image_sizes import default_max_pixels, smaller_limits, visual_tokens
from helpers.models.loading import load_processor
from helpers.models.prompts import count_image_tokens, encode

QWEN7, QWEN3, QWEN2 = (
    Workload(name, 448, 448) for name in ("qwen2-vl-7b", "qwen2.5-vl-3b", "qwen2-vl-2b")
)
LLAVA = Workload("llava-1.5-7b", 448, 448)
SIZES = [(640, 480), (480, 640), (112, 112), (1000, 300), (30, 31)]
SIZES += [
    (random.Random(k).randint(40, 1500), random.Random(-k - 1).randint(40, 1500)) for k in range(12)
]


def gigabytes(need):
    """Of a card on which `need` just fits."""
    return need.total / USABLE_SHARE + 1e-6


# --- batches ---


def test_pairs_a_step_stay_the_same_whatever_fits():
    settings = replace(dpo_preset("t4"), batch_size=6, accumulation=5)
    for batch, size in ((6, 6), (5, 5), (4, 3), (3, 3), (2, 2), (1, 1)):  # 4 does not divide 30
        card = gigabytes(forecast_memory(QWEN7, replace(settings, batch_size=batch)))
        fitted, largest = fit_settings(QWEN7, settings, card)
        assert (largest, fitted.batch_size) == (
            batch,
            size,
        ) and fitted.batch_size * fitted.accumulation == 30


@pytest.mark.parametrize("preset", [dpo_preset("t4"), reward_preset("t4")], ids=["dpo", "reward"])
def test_checkpointing_comes_before_a_smaller_batch(preset):
    settings = replace(preset, batch_size=4, accumulation=4, gradient_checkpointing=False)
    saving = replace(settings, gradient_checkpointing=True)
    plain, saved, least = (
        forecast_memory(QWEN7, s) for s in (settings, saving, smallest_settings(settings))
    )
    assert plain.total > saved.total > least.total
    assert fit_settings(QWEN7, settings, gigabytes(plain))[0] is settings
    assert fit_settings(QWEN7, settings, gigabytes(saved)) == (saving, 4)
    assert fit_settings(QWEN7, settings, gigabytes(least))[0] == replace(
        saving, batch_size=1, accumulation=16
    )


def test_ppo_looks_at_fewer_prompts_at_once_before_all_else():
    """Slices are as equal as can be, and fit also if all answers are as long as they may be; updates are left alone."""
    settings = replace(ppo_preset("t4"), prompts_per_iteration=12, mini_batch=1, max_new_tokens=40)
    for size, found in ((12, 0), (11, 6), (6, 6), (5, 4), (4, 4), (3, 3), (2, 2), (1, 1)):
        *before, _ = phases(
            replace(QWEN7, answer_tokens=40), replace(settings, sampling_batch=size)
        )
        card = gigabytes(max(before, key=lambda phase: phase.total))
        fitted, _ = fit_settings(QWEN7, settings, card)
        assert fitted == replace(settings, sampling_batch=found), size


def test_the_sources_models_train_on_a_t4_with_fewer_prompts_at_once():
    for name in ("llava-1.5-7b", "llava-next-llama3-8b"):
        workload, settings = Workload(name, 1024, 1024), ppo_preset("t4")
        assert forecast_memory(workload, settings).total > USABLE_SHARE * 15.8
        fitted, _ = fit_settings(workload, settings, 15.8)
        assert (
            1 <= fitted.sampling_batch < 8
            and forecast_memory(workload, fitted).total <= USABLE_SHARE * 15.8
        )


def test_ppo_gets_checkpointing_and_then_smaller_mini_batches():
    settings = replace(
        ppo_preset("t4"),
        prompts_per_iteration=12,
        mini_batch=12,
        sampling_batch=1,
        gradient_checkpointing=False,
    )

    def fitted(batch, checkpointing, settings=settings):
        like = replace(settings, mini_batch=batch, gradient_checkpointing=checkpointing)
        return fit_settings(QWEN7, settings, gigabytes(forecast_memory(QWEN7, like)))

    assert fitted(12, False)[0] is settings
    assert fitted(12, True) == (replace(settings, gradient_checkpointing=True), 12)
    found, largest = fitted(10, True)  # 10 would fit, but 12 prompts are cut into 6 and 6
    assert largest == 10 and found == replace(settings, gradient_checkpointing=True, mini_batch=6)
    quarters = replace(settings, shards=4)
    assert fitted(10, True, quarters)[0] == replace(
        quarters, gradient_checkpointing=True, mini_batch=4
    )


def test_a_large_batch_that_fits_is_not_made_smaller():
    settings = replace(dpo_preset("tiny"), batch_size=memory.LARGEST_BATCH + 100)
    assert fit_settings(Workload("tiny", 448, 448), settings, 80) == (
        settings,
        memory.LARGEST_BATCH + 100,
    )


# --- images ---


@pytest.mark.parametrize(
    "name",
    [
        "qwen2_vl",
        "qwen2_5_vl",
        "qwen3_vl",
        "qwen3_5",
        "smolvlm",
        "idefics3",
        "gemma4",
        "lfm2_vl",
        "internvl",
    ],
)
def test_the_images_of_the_forecast_are_those_that_the_processor_makes(name, tmp_path):
    folder = str(save_as_on_the_hub(name, tmp_path / name))
    own = default_max_pixels(folder) or 112**2  # LFM2-VL cuts what is larger
    for limit in (None, own, 4 * own, own // 2, own // 7, 800):  # the last is less than the least
        processor = load_processor(folder, max_pixels=limit)
        for width, height in SIZES:
            inputs = encode(processor, ["How many?"], [Image.new("RGB", (width, height))])
            made = int(count_image_tokens(processor, inputs)[0])
            assert visual_tokens(folder, width, height, limit) == made, (limit, width, height)


@pytest.mark.parametrize("name", ["smolvlm", "idefics3"])
def test_a_checkpoint_that_cuts_no_images_is_known(name, tmp_path):
    folder = save_as_on_the_hub(name, tmp_path / name)
    path = folder / "preprocessor_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"do_image_splitting": False}))
    processor = load_processor(folder)
    for width, height in SIZES[:8]:
        inputs = encode(processor, ["How many?"], [Image.new("RGB", (width, height))])
        assert (
            visual_tokens(str(folder), width, height)
            == 4
            == count_image_tokens(processor, inputs)[0]
        )


def test_images_that_a_model_cuts_as_it_likes_are_made_smaller_too(tmp_path):
    """LFM2-VL has no limit of pixels then, and a folder says so."""
    folder = str(save_as_on_the_hub("lfm2_vl", tmp_path / "model"))
    assert default_max_pixels(folder) is None
    workload = Workload(folder, 640, 480)
    stages = [GenerationSettings(1)]
    assert fit_images(workload, stages, 80) == workload
    # where nothing fits, the smallest there is: 8 × 8 tokens of 28²
    assert fit_images(workload, stages, 0.1).max_pixels == 224**2


def test_limits_by_hand():
    # 448² pixels are 16 × 16 tokens of 28²; down to 8 × 8, which are 224²
    assert default_max_pixels("qwen2-vl-2b") == 448**2
    assert smaller_limits("qwen2-vl-2b", 448**2) == [(28 * n) ** 2 for n in range(15, 7, -1)]
    assert smaller_limits("qwen2-vl-2b", 448**2 + 1)[0] == 448**2
    assert smaller_limits("qwen3-vl-2b", 300 * 300) == [288**2, 256**2]  # tokens of 32²
    assert (
        default_max_pixels("tiny") == 112**2 and smaller_limits("tiny", 112**2) == []
    )  # 4 × 4 tokens are fewer
    assert (
        default_max_pixels("smolvlm-256m") == 512**2
        and smaller_limits("smolvlm-256m", 512**2) == []
    )  # one tile
    assert smaller_limits("smolvlm-256m", 2048**2) == [1536**2, 1024**2, 512**2]
    for fixed in ("llava-1.5-7b", "llava-next-llama3-8b", "gemma-3-4b"):
        assert default_max_pixels(fixed) is None and smaller_limits(fixed, 10**6) == []
    # 140 and 70 tokens of 48²
    assert smaller_limits("gemma-4-e2b", 280 * 48**2) == [140 * 48**2, 70 * 48**2]
    assert smaller_limits("internvl3-1b", 3 * 448**2) == [2 * 448**2, 448**2]
    assert smaller_limits("lfm2.5-vl-450m", 300 * 300) == [288**2, 256**2]  # tokens of 32²


def test_images_are_reduced_only_as_far_as_the_smallest_batch_needs():
    reward = replace(reward_preset("t4"), batch_size=2, accumulation=8)
    for place, limit in enumerate(smaller_limits("qwen2.5-vl-3b", 448**2)):
        need = least_memory(replace(QWEN3, max_pixels=limit), reward)
        assert fit_images(QWEN3, [reward], gigabytes(need)).max_pixels == limit, place
    need = least_memory(QWEN3, reward)
    assert fit_images(QWEN3, [reward], gigabytes(need)) == QWEN3  # as the preset has it
    asked = replace(QWEN3, max_pixels=336**2)
    assert fit_images(asked, [reward], gigabytes(need)) == asked
    large = replace(QWEN3, width=800, height=800)
    need = least_memory(replace(large, max_pixels=560**2), reward)
    fitted = fit_images(replace(large, max_pixels=672**2), [reward], gigabytes(need))
    assert fitted == replace(large, max_pixels=560**2)
    assert (
        fit_images(QWEN3, [reward], 3.0).max_pixels == 224**2
    )  # nothing fits: `fit_settings` says so
    assert fit_images(LLAVA, [reward], 3.0).max_pixels is None


def test_the_stage_that_needs_most_decides():
    stages = [GenerationSettings(), dpo_preset("t4"), ppo_preset("t4")]
    card = gigabytes(least_memory(replace(QWEN3, max_pixels=336**2), stages[-1]))
    fitted = fit_images(QWEN3, stages, card)
    assert fitted.max_pixels == 336**2
    assert fit_images(QWEN3, stages[:2], card).max_pixels is None
    for settings in stages:  # and with it all of them fit
        fit_settings(fitted, settings, card)


def test_checkpointing_and_shards_come_before_smaller_images():
    settings = replace(
        ppo_preset("t4"),
        prompts_per_iteration=8,
        mini_batch=8,
        shards=2,
        gradient_checkpointing=False,
    )
    like = replace(settings, mini_batch=2, gradient_checkpointing=True, sampling_batch=1)
    card = gigabytes(forecast_memory(QWEN7, like))
    assert fit_images(QWEN7, [settings], card).max_pixels is None
    assert fit_settings(QWEN7, settings, card)[0].gradient_checkpointing
    assert fit_images(QWEN7, [settings], card - 0.01).max_pixels == 420**2


def test_the_largest_image_fits_as_the_stages_are_set_and_the_next_does_not():
    stages = [dpo_preset("t4"), GenerationSettings()]
    most = largest_image(QWEN2, stages, 15.8)
    side = int(most**0.5)
    assert side**2 == most and side % 28 == 0 and 448 < side < 4096

    def fits(side):
        square = replace(QWEN2, width=side, height=side, max_pixels=side**2)
        return all(forecast_memory(square, given).total <= USABLE_SHARE * 15.8 for given in stages)

    assert fits(side) and not fits(side + 28)
    assert largest_image(QWEN2, stages, 3.0) == 0 == largest_image(LLAVA, stages, 80)
    found = largest_image(Workload("smolvlm-256m", 448, 448), [GenerationSettings(1)], 80)
    assert found == smaller_limits("smolvlm-256m", LARGEST_PIXELS)[0]


def test_an_error_says_with_which_images_nothing_fits():
    with pytest.raises(
        UsageError, match=r"stage dpo takes .* GB while training, .* images of 64 visual tokens"
    ):
        fit_settings(replace(QWEN2, max_pixels=224**2), dpo_preset("t4"), 3.0)


def test_what_was_changed_is_named():
    settings = dpo_preset("t4")
    after = replace(settings, batch_size=1, accumulation=16)
    assert changed_fields(settings, settings) == {} and changed_fields(settings, after) == {
        "batch_size": 1,
        "accumulation": 16,
    }
