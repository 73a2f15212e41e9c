import copy
import dataclasses

import pytest
import torch
from datasets import Dataset
from torch.testing import assert_close

from helpers import dpo, models
from helpers.config import DPO_PRESETS, dpo_preset
from helpers.evaluation import evaluate_pairs, pair_logps
from helpers.losses import completion_logps, dpo_loss
from helpers.runtime import UsageError

SETTINGS = dataclasses.replace(DPO_PRESETS["tiny"], steps=6, batch_size=8)


@pytest.fixture
def make(pairs_dataset, tmp_path):
    """Trainer of a fresh adapter (or of `model`), with changed settings."""

    def build(model=None, **changes):
        base, processor = models.load_model("tiny")
        settings = dataclasses.replace(SETTINGS, **changes)
        return dpo.make_trainer(model or base, processor, pairs_dataset, settings, output_dir=tmp_path)

    return build


def state(model):
    return {name: parameter.detach().clone() for name, parameter in model.named_parameters()}


def test_an_unknown_preset_is_a_one_line_error():
    with pytest.raises(UsageError, match="unknown DPO preset 'tyni': choose tiny or t4"):
        dpo_preset("tyni")


def test_training_moves_the_adapter_and_nothing_else(make):
    trainer = make()
    before = state(trainer.model)
    run = dpo.train(trainer)
    for name, parameter in trainer.model.named_parameters():
        assert torch.equal(parameter, before[name]) == ("lora_" not in name), name
        assert not parameter.requires_grad or parameter.dtype == torch.float32
    assert len(run.log) == 6 and run.trained_pairs == 48 and run.seconds > 0
    assert {"loss", "rewards/accuracies", "rewards/margins", "logps/chosen", "logps/rejected"} <= run.log[0].keys()


def test_the_reference_is_the_base_and_no_second_adapter_is_kept(make):
    trainer = make()
    assert list(trainer.model.peft_config) == [models.POLICY] and trainer.ref_model is None
    assert not any(".ref." in name for name, _ in trainer.model.named_parameters())


def test_going_on_with_an_adapter_keeps_its_weights_exactly(make):
    """TRL rounds the adapter of a quantised model to bf16; a second round would start from a rounded first."""
    first = make()
    dpo.train(first)
    trained = state(first.model)
    second = make(model=first.model)
    assert_close(state(second.model), trained, atol=0, rtol=0)


def test_the_loss_is_trls_loss_of_our_log_probabilities(make):
    """TRL's sigmoid loss against the formula, with an adapter that is not zero."""
    trainer = make(sft_weight=0.0, beta=0.3)
    with torch.no_grad():
        for name, parameter in trainer.model.named_parameters():
            if "lora_B" in name:
                parameter.normal_(0, 0.05)
    trainer.model.eval()
    examples = [trainer.train_dataset[i] for i in range(8)]
    batch = trainer._prepare_inputs(trainer.data_collator(copy.deepcopy(examples)))
    inputs = {k: v for k, v in batch.items() if k != "completion_mask"}
    with torch.no_grad():
        theirs = trainer.compute_loss(trainer.model, batch)
        policy = completion_logps(trainer.model(**inputs).logits, batch["input_ids"], batch["completion_mask"])
        with models.adapter_off(trainer.model):
            reference = completion_logps(trainer.model(**inputs).logits, batch["input_ids"], batch["completion_mask"])
    ours, margin = dpo_loss(*policy.chunk(2), *reference.chunk(2), beta=0.3)
    assert_close(ours, theirs, atol=1e-5, rtol=1e-5)
    assert margin.abs().min() > 1e-3, "the comparison needs a policy that differs from its reference"


def test_our_encoding_gives_trls_log_probabilities(make, pairs_dataset):
    """Left-padded prompts of `encode` against TRL's collator: the same sums."""
    trainer = make()
    trainer.model.eval()
    examples = [pairs_dataset[i] for i in range(8)]
    batch = trainer._prepare_inputs(trainer.data_collator(copy.deepcopy(examples)))
    inputs = {k: v for k, v in batch.items() if k != "completion_mask"}
    with torch.no_grad():
        theirs = completion_logps(trainer.model(**inputs).logits, batch["input_ids"], batch["completion_mask"])
    ours = pair_logps(trainer.model, trainer.processing_class, pairs_dataset.select(range(8)), batch_size=3)
    assert_close(torch.tensor([*ours[0], *ours[1]]), theirs.cpu(), atol=1e-4, rtol=1e-4)


def test_pairs_with_several_images_are_refused_and_not_cut(tiny, pairs_dataset):
    row = pairs_dataset[0]
    two = Dataset.from_list([{**row, "images": row["images"] * 2}])
    with pytest.raises(UsageError, match="pair 0 has 2 images and 1 turns, not one of each"):
        pair_logps(*tiny, two)


def test_four_pairs_can_be_learnt_by_heart(pairs_dataset, tmp_path):
    """The smallest proof that gradients point the right way: loss far under ln 2, every pair preferred."""
    model, processor = models.load_model("tiny")
    settings = dataclasses.replace(SETTINGS, steps=25, batch_size=4, sft_weight=0.0, learning_rate=1e-3)
    four = pairs_dataset.select(range(4))
    trainer = dpo.make_trainer(model, processor, four, settings, output_dir=tmp_path)
    run = dpo.train(trainer)
    assert run.log[-1]["loss"] < 0.1
    assert evaluate_pairs(trainer.model, processor, four).accuracy.value == 1


def test_the_same_seed_gives_the_same_run(make):
    first, second = (dpo.train(make()).log for _ in range(2))
    assert [row["loss"] for row in first] == pytest.approx([row["loss"] for row in second], abs=1e-6)
