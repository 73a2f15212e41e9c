"""Every check is provoked by the fault it is there for, and a healthy run passes them all."""

import dataclasses

import pytest
import torch

from helpers import dpo, models
from helpers.config import DPO_PRESETS, LoraSettings
from helpers.preflight import preflight
from helpers.runtime import UsageError


@pytest.fixture
def trainer(pairs_dataset, tmp_path):
    model, processor = models.load_model("tiny")
    return dpo.make_trainer(model, processor, pairs_dataset, DPO_PRESETS["tiny"], output_dir=tmp_path)


def replace_data(trainer, **columns):
    """The trainer with columns of its data replaced by functions of a row."""
    rows = [trainer.train_dataset[i] for i in range(8)]
    trainer.train_dataset = [{**row, **{name: make(row) for name, make in columns.items()}} for row in rows]


def answer(text):
    return [{"role": "assistant", "content": text}]


def test_a_healthy_run_passes_and_is_left_as_it_was(trainer, capsys):
    before = {n: p.detach().clone() for n, p in trainer.model.named_parameters()}
    mode = trainer.model.training
    checks = preflight(trainer)
    assert [c.name for c in checks] == [
        "image tokens",
        "pixel values",
        "chosen ≠ rejected",
        "end of turn",
        "first-step loss",
        "gradient",
        "image matters",
    ]
    assert all(c.passed for c in checks) and capsys.readouterr().out.count("✓") == 7
    assert trainer.model.training == mode and not trainer._metrics["train"] and not trainer._metrics["eval"]
    for name, parameter in trainer.model.named_parameters():
        assert torch.equal(parameter, before[name]) and (parameter.grad is None or not parameter.grad.any())
    assert trainer.loss_types == ["sigmoid", "sft"]


def test_a_dropped_image_is_noticed(trainer):
    replace_data(trainer, images=lambda row: [])
    with pytest.raises(UsageError, match=r"image tokens: \[0\] in the prompts.*column name `images`"):
        preflight(trainer)


def test_blank_pictures_are_noticed(trainer):
    replace_data(trainer, images=lambda row: [row["images"][0].point(lambda _: 0)])
    with pytest.raises(UsageError, match=r"image matters: exchanging the images moves the log-probs by 0\.000"):
        preflight(trainer)


def test_equal_answers_are_noticed(trainer):
    replace_data(trainer, rejected=lambda row: row["chosen"])
    with pytest.raises(UsageError, match="chosen ≠ rejected: 0 of 8 pairs differ"):
        preflight(trainer)


def test_a_template_that_does_not_close_the_answer_is_noticed(trainer):
    processor = trainer.processing_class
    processor.chat_template = processor.chat_template.replace(
        "{% endif %}<|im_end|>{% endfor %}", "{% endif %}{% endfor %}"
    )
    with pytest.raises(UsageError, match=r"end of turn: 0 of 16 answers end in <\|im_end\|>"):
        preflight(trainer)


def test_a_policy_that_does_not_start_at_its_reference_is_noticed(trainer):
    with torch.no_grad():
        for name, parameter in trainer.model.named_parameters():
            if "lora_B" in name:
                parameter.normal_(0, 0.05)
    with pytest.raises(UsageError, match=r"first-step loss: .*fresh adapter"):
        preflight(trainer)


def test_a_frozen_adapter_is_noticed(trainer):
    for name, parameter in trainer.model.named_parameters():
        if "layers.1." in name:
            parameter.requires_grad_(False)
    trainer.model.base_model.model.model.language_model.norm.weight.requires_grad_(True)
    with pytest.raises(UsageError, match=r"gradient: reaches 14 of 21 adapter layers and 1 other weights"):
        preflight(trainer)


def test_a_wholly_frozen_model_is_noticed(trainer):
    trainer.model.requires_grad_(False)
    with pytest.raises(UsageError, match="gradient: reaches 0 of 21 adapter layers"):
        preflight(trainer)


def test_dropout_in_the_adapter_does_not_disturb_the_checks(pairs_dataset, tmp_path):
    model, processor = models.load_model("tiny")
    settings = dataclasses.replace(DPO_PRESETS["tiny"], lora=LoraSettings(dropout=0.1))
    trainer = dpo.make_trainer(model, processor, pairs_dataset, settings, output_dir=tmp_path)
    assert all(check.passed for check in preflight(trainer))
