"""Preflight on tiny random models of every architecture, in both layouts: healthy, and with the
processor out of step.
"""

import dataclasses

import pytest
import torch
from architectures import BUILDERS, TEMPLATES, build
from pictures import noise
from PIL import Image

from helpers.config import DPO_PRESETS, LoraSettings
from helpers.doctor import input_checks
from helpers.doctor.checks import preflight
from helpers.files import UsageError
from helpers.models.prompts import answer_ids, encode
from helpers.training import dpo

pytestmark = pytest.mark.heavy(reason="trains the tiny model")

SETTINGS = dataclasses.replace(DPO_PRESETS["tiny"], batch_size=4)


def trainer_of(name, pairs_dataset, packed, **changes):
    model, processor = build(name)
    settings = dataclasses.replace(SETTINGS, **changes)
    data = pairs_dataset.select(range(0, 32, 4))
    return dpo.dpo_trainer(model, processor, data, settings, packs=packed)


@pytest.mark.parametrize("packed", [True, False], ids=["packed", "plain"])
@pytest.mark.parametrize("name", BUILDERS)
def test_a_healthy_run_passes(name, packed, pairs_dataset):
    trainer = trainer_of(name, pairs_dataset, packed)
    before = {n: p.detach().clone() for n, p in trainer.model.named_parameters()}
    if (
        name == "llava" and not packed
    ):  # TRL's layout ends an answer as its template does: not at all
        with pytest.raises(UsageError, match="end of turn: 0 of 16 answers end in </s>"):
            preflight(trainer)
        return
    checks = preflight(trainer)
    assert len(checks) == 14 and all(check.passed for check in checks)
    for n, parameter in trainer.model.named_parameters():
        assert torch.equal(parameter, before[n]) and parameter.requires_grad == ("lora_" in n)


@pytest.mark.parametrize("packed", [True, False], ids=["packed", "plain"])
@pytest.mark.parametrize("name", BUILDERS)
def test_image_tokens_are_counted_against_the_vision_tower(name, packed, pairs_dataset):
    """The processor writes another number of tokens than the model makes vectors; the count is not
    taken from it.
    """
    trainer = trainer_of(name, pairs_dataset, packed)
    processor = trainer.processing_class
    expected = {"llava_next": "[88]", "smolvlm": "[20]", "idefics3": "[20]"}.get(name, "[16]")
    if name.startswith("qwen"):
        processor.image_processor.merge_size = 1
    elif name in ("smolvlm", "idefics3"):
        processor.image_seq_len = 3
    else:
        processor.num_additional_image_tokens = 2
    with pytest.raises(UsageError, match="image tokens: ") as error:
        preflight(trainer)
    if packed and name.startswith("qwen"):
        assert "no batch can be made: shape mismatch" in str(error.value)
        return
    tokens, vectors = (
        str(error.value)
        .split("image tokens: ")[1]
        .split(" from the vision tower")[0]
        .split(" in the prompts, ")
    )
    assert tokens != vectors and vectors == expected


@pytest.mark.parametrize(
    ("name", "packed"), [("qwen2_5_vl", True), ("llava", True), ("llava_next", False)]
)
def test_a_trained_vision_tower(name, packed, pairs_dataset):
    """Nothing is kept then. LLaVA and LLaVA-NeXT never use the last layer of their tower, with 6
    adapters.
    """
    trainer = trainer_of(name, pairs_dataset, packed, lora=LoraSettings(vision=True))
    assert not packed or trainer.data_collator.packer.features is None
    checks = {check.name: check for check in preflight(trainer)}
    assert all(check.passed for check in checks.values())
    reached = checks["gradient"].measured
    assert reached.startswith(
        "reaches 35 of 41" if name.startswith("llava") else "reaches 33 of 33"
    ), reached


def test_a_vision_tower_that_no_gradient_reaches_is_noticed(pairs_dataset):
    trainer = trainer_of("llava", pairs_dataset, True, lora=LoraSettings(vision=True))
    tower = trainer.model.get_base_model().model.vision_tower
    tower.register_forward_hook(lambda module, inputs, output: output.__class__(
        last_hidden_state=output.last_hidden_state.detach(),
        hidden_states=tuple(state.detach() for state in output.hidden_states),
    ))  # fmt: skip
    with pytest.raises(UsageError, match="gradient: reaches 23 of 41") as error:
        preflight(trainer)
    assert "first missed: ['base_model.model.model.vision_tower" in str(error.value)


@pytest.mark.parametrize(
    ("name", "kept"),
    [
        ("llava", 56 * 56),  # one crop
        ("llava_next", 4 * 56 * 56),  # 2 × 2 tiles, not the small view of the whole
        ("smolvlm", 4 * 56 * 56),
        ("idefics3", 4 * 56 * 56),
        ("qwen2_5_vl", 112 * 112),  # 64 patches of 14²
        ("qwen3_vl", 112 * 112),
    ],
)
def test_the_share_of_pixels_of_each_processor(name, kept):
    _, processor = build(name)
    texts = {"prompt": "How many?", "chosen": "2", "rejected": "3"}
    row = {key: [{"role": "user", "content": text}] for key, text in texts.items()}
    look = input_checks.row_inputs(processor, {**row, "images": [noise(448, 448)] * 2})
    assert look.kept_pixels == pytest.approx(kept / 448**2)


def test_the_share_of_pixels_is_that_of_the_processor(tiny):
    """224 × 112: reduced to at most 112² pixels in multiples of 28: 140 × 56 = 7,840 of 25,088;
    half 0, half 160: ± 80.
    """
    _, processor = tiny
    image = Image.new("L", (224, 112))
    image.paste(160, (112, 0, 224, 112))
    prompt = [{"role": "user", "content": "How many?"}]
    row = {
        "images": [image],
        "prompt": prompt,
        "chosen": [{"role": "assistant", "content": "2"}],
        "rejected": [{"role": "assistant", "content": "3 4"}],
    }
    look = input_checks.row_inputs(processor, row)
    assert look.kept_pixels == pytest.approx(140 * 56 / (224 * 112))
    assert look.contrast == pytest.approx(80)


@pytest.mark.parametrize("name", TEMPLATES)
def test_the_look_before_training_counts_prompt_and_answer(name):
    _, processor = build(name)
    images = [noise(112, 112)]
    row = {"images": images, "prompt": [{"role": "user", "content": "Q"}]}
    row |= {
        side: [{"role": "assistant", "content": text}]
        for side, text in (("chosen", "2"), ("rejected", "2 or 3"))
    }
    prompt = encode(processor, ["Q"], images)["input_ids"].shape[1]
    assert input_checks.row_inputs(processor, row).tokens == prompt + len(
        answer_ids(processor, "2 or 3")
    )
