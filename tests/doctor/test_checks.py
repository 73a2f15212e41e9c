"""Every check is provoked by the fault itself, in both layouts, and fails alone; a healthy run
passes them all.
"""

import copy
import dataclasses

import pytest
import torch
from PIL import Image

from helpers.config import ATTENTION, LoraSettings
from helpers.doctor import checks as preflight
from helpers.doctor.dry_run import Forecast
from helpers.files import UsageError
from helpers.training import dpo

pytestmark = pytest.mark.heavy(reason="trains the tiny model")

NAMES = [
    "image tokens",
    "pixel values",
    "image size",
    "truncation",
    "dtypes",
    "plain English",
    "chosen ≠ rejected",
    "end of turn",
]
NAMES += ["first-step loss", "gradient", "learning rate", "image matters", "four pairs by heart"]
NAMES += ["memory"]
PAIRS = 4


@pytest.fixture(autouse=True)
def few_updates(monkeypatch):
    """The tiny model knows four pairs by heart after six updates; what cannot be learnt need not be
    tried for longer.
    """
    monkeypatch.setattr(preflight, "BY_HEART_RATES", (1e-3,) * 8)


@pytest.fixture(params=[True, False], ids=["packed", "plain"])
def trainer(request, make):
    return make(packed=request.param)


def failed(trainer) -> dict[str, str]:
    """What the checks that fail say, by name."""
    with pytest.raises(UsageError, match=r"^preflight failed, nothing was trained") as error:
        preflight.preflight(trainer, PAIRS)
    findings = str(error.value).split("trained. ")[1].split(" | ")
    return dict(finding.split(": ", 1) for finding in findings)


def replace_data(trainer, **columns):
    """The trainer with columns of its data replaced by functions of a row."""
    rows = list(trainer.train_dataset)
    trainer.train_dataset = [
        {**row, **{name: make(row) for name, make in columns.items()}} for row in rows
    ]


def answer(text):
    return [{"role": "assistant", "content": text}]


def spoil(trainer, size=0.05):
    """An adapter that has left zero."""
    with torch.no_grad():
        for name, parameter in trainer.model.named_parameters():
            if "lora_B.default" in name:
                parameter.normal_(0, size)


def snapshot(trainer):
    model = trainer.model
    return {
        "weights": {n: p.detach().clone() for n, p in model.state_dict().items()},
        "trained": [n for n, p in model.named_parameters() if p.requires_grad],
        "gradients": [
            n for n, p in model.named_parameters() if p.grad is not None and p.grad.any()
        ],
        "modes": [module.training for module in model.modules()],
        "checkpointing": model.is_gradient_checkpointing,
        "adapter": model.active_adapter,
        "metrics": copy.deepcopy(trainer._metrics),
        "tokens": trainer._total_train_tokens,
        "random": torch.get_rng_state(),
        "loss": [
            getattr(trainer, name, 0)
            for name in (
                "loss_types",
                "loss_weights",
                "label_smoothing",
                "beta",
                "image_weight",
                "anchor_weight",
            )
        ],
    }


def assert_same(before, after):
    for name, value in before.pop("weights").items():
        assert torch.equal(after["weights"][name], value), name
    after.pop("weights")
    assert torch.equal(before.pop("random"), after.pop("random"))
    assert before == after


def test_a_healthy_run_passes_and_is_left_as_it_was(trainer, capsys):
    trainer._metrics["train"]["loss"].append(1.0)
    trainer.model.train()
    trainer.model.get_base_model().lm_head.eval()
    before = snapshot(trainer)
    checks = preflight.preflight(trainer, PAIRS)
    assert [check.name for check in checks] == NAMES
    assert all(check.passed for check in checks)
    printed = capsys.readouterr().out
    assert printed.count("✓") == len(NAMES) == 14 and "Forecast: " in printed and "⚠" not in printed
    assert_same(before, snapshot(trainer))


def test_a_failed_preflight_leaves_everything_as_it_was_too(make):
    trainer = make()
    spoil(trainer)
    replace_data(trainer, rejected=lambda row: row["chosen"])
    before = snapshot(trainer)
    assert failed(trainer).keys() >= {"chosen ≠ rejected"}
    assert_same(before, snapshot(trainer))


def test_reference_log_probabilities_of_a_trial_are_not_kept(make):
    """With an unfrozen norm, learning by heart changes the base: figures from then would be wrong
    ever after.
    """
    trainer = make()
    store = trainer.data_collator.reference
    trainer.model.get_base_model().model.language_model.norm.weight.requires_grad_(True)
    assert failed(trainer).keys() == {"gradient"}
    assert trainer.data_collator.reference is store and len(store) == 0


def test_training_after_preflight_is_training_without(make):
    def losses(check):
        trainer = make(steps=3)
        if check:
            preflight.preflight(trainer, PAIRS)
        return [row["loss"] for row in dpo.train_dpo(trainer).log]

    assert losses(True) == pytest.approx(losses(False), abs=1e-6)


def test_a_dropped_image_is_noticed(trainer):
    replace_data(trainer, images=lambda row: [])
    findings = failed(trainer)
    assert findings.keys() == {"image tokens", "pixel values"}
    assert findings["image tokens"].startswith("[0] in the prompts, [0] from the vision tower")
    assert findings["pixel values"].startswith("of 8 rows 8 have no image")


def test_one_dropped_image_is_noticed(make):
    trainer = make()
    first = trainer.train_dataset[0]["prompt"]
    replace_data(trainer, images=lambda row: [] if row["prompt"] == first else row["images"])
    assert failed(trainer)["image tokens"].startswith("[0, 16] in the prompts")


def test_another_name_of_the_column_is_noticed(make, pairs_dataset):
    trainer = make(data=pairs_dataset.select(range(4)).rename_column("images", "image_path"))
    with pytest.raises(UsageError, match=r"no column `images`, only .*'image_path'"):
        preflight.preflight(trainer, PAIRS)


def test_a_template_without_the_image_is_noticed(trainer):
    processor = trainer.processing_class
    processor.chat_template = processor.chat_template.replace("<|image_pad|>", "")
    assert failed(trainer)["image tokens"].startswith(
        "[0] in the prompts, [16] from the vision tower"
    )


def test_blank_pictures_are_noticed(trainer):
    replace_data(trainer, images=lambda row: [Image.new("RGB", (112, 112), (200, 30, 90))])
    findings = failed(trainer)
    assert findings.keys() >= {"pixel values", "image matters"}
    assert "8 a blank one; least contrast 0.0" in findings["pixel values"]
    assert findings["image matters"].startswith(
        "exchanging the images moves the log-probs by 0.000"
    )


def test_one_and_the_same_picture_everywhere_is_noticed(make):
    trainer = make()
    picture = trainer.train_dataset[0]["images"]
    replace_data(trainer, images=lambda row: picture)
    assert "image matters" in failed(trainer)


def test_neighbours_that_share_an_image_are_exchanged_with_others(pairs_dataset):
    """Pairs of one ranking stand together: exchanging with the next row would change nothing."""
    (first,), (other,) = pairs_dataset[0]["images"], pairs_dataset[16]["images"]
    rows = [
        {"images": [image], "row": place}
        for place, image in enumerate((first, first, other, first))
    ]
    exchanged = preflight._exchange_images(rows)
    assert [row["images"] for row in exchanged] == [[other], [other], [first], [other]]
    assert [row["row"] for row in exchanged] == [0, 1, 2, 3]
    assert preflight._exchange_images(rows[:2]) == rows[:2]


def test_equal_answers_are_noticed(make):
    trainer = make()
    replace_data(trainer, rejected=lambda row: row["chosen"])
    findings = failed(trainer)
    assert findings["chosen ≠ rejected"].startswith("0 of 4 pairs differ")
    assert "preference loss 0.69 → 0.693 after 8 updates" in findings["four pairs by heart"]


def test_a_template_that_does_not_close_the_answer_is_noticed(make):
    """In TRL's layout; the packed one ends the answers itself."""
    unclosed = "{% endif %}<|im_end|>{% endfor %}", "{% endif %}{% endfor %}"
    for packed in (False, True):
        trainer = make(packed=packed)
        processor = trainer.processing_class
        processor.chat_template = processor.chat_template.replace(*unclosed)
        if not packed:
            findings = failed(trainer)
            assert findings.keys() == {"end of turn"}
            assert findings["end of turn"].startswith(
                "0 of 8 answers end in <|im_end|>, the template writes nothing"
            )
    assert all(check.passed for check in preflight.preflight(trainer, PAIRS))


def test_an_end_that_only_the_template_knows_does_no_harm(make):
    """As Gemma's: every stage takes the template's."""
    trainer = make()
    trainer.processing_class.tokenizer.eos_token = "<|endoftext|>"
    assert all(check.passed for check in preflight.preflight(trainer, PAIRS))


def test_a_template_that_ends_a_turn_in_words_is_noticed(make):
    trainer = make()
    processor = trainer.processing_class
    processor.chat_template = processor.chat_template.replace("<|im_end|>", "[END]")
    findings = failed(trainer)
    assert "the template writes [END]" in findings["end of turn"]


def test_sampling_that_does_not_stop_there_is_noticed(make):
    trainer = make()
    trainer.model.generation_config.eos_token_id = [trainer.processing_class.tokenizer.pad_token_id]
    assert "sampling does not stop there" in failed(trainer)["end of turn"]


def test_a_policy_that_does_not_start_at_its_reference_is_noticed(trainer):
    spoil(trainer)
    findings = failed(trainer)
    assert findings.keys() == {"first-step loss"} and "new trainer" in findings["first-step loss"]


def test_a_frozen_adapter_is_noticed(trainer):
    for name, parameter in trainer.model.named_parameters():
        if "layers.1." in name:
            parameter.requires_grad_(False)
    trainer.model.base_model.model.model.language_model.norm.weight.requires_grad_(True)
    before = snapshot(trainer)
    findings = failed(trainer)
    assert findings.keys() == {"gradient"}
    assert findings["gradient"].startswith("reaches 14 of 21 adapter layers and 1 other weights")
    assert_same(before, snapshot(trainer))


def test_a_wholly_frozen_model_is_noticed(trainer):
    trainer.model.requires_grad_(False)
    findings = failed(trainer)
    assert findings.keys() == {"gradient", "learning rate", "four pairs by heart"}
    assert findings["gradient"].startswith("reaches 0 of 21 adapter layers")
    assert findings["four pairs by heart"].startswith(
        "preference loss 0.69 → 0.693 after 0 updates"
    )
    assert not any(parameter.requires_grad for parameter in trainer.model.parameters())


def test_pairs_that_contradict_each_other_are_noticed(trainer):
    """−log σ(m) − log σ(−m) ≥ 2 ln 2 for every margin m."""
    row = trainer.train_dataset[0]
    trainer.train_dataset = [row, {**row, "chosen": row["rejected"], "rejected": row["chosen"]}] * 2
    trainer.train_dataset.append({**row, "images": trainer.train_dataset[0]["images"]})
    found = failed(trainer)["four pairs by heart"]
    loss = float(found.split(" → ")[1].split()[0])
    assert loss > 0.69 and "after 8 updates" in found


def test_one_contradiction_among_four_pairs_is_noticed(make):
    """Two of four pairs at ln 2 keep the mean at 0.35 or above."""
    trainer = make()
    rows = [trainer.train_dataset[place] for place in (0, 2, 5)]
    trainer.train_dataset = [
        *rows,
        {**rows[0], "chosen": rows[0]["rejected"], "rejected": rows[0]["chosen"]},
    ]
    assert float(failed(trainer)["four pairs by heart"].split(" → ")[1].split()[0]) > 0.34


def test_a_beta_of_zero_is_noticed(make):
    trainer = make()
    trainer.beta = 0.0
    assert failed(trainer).keys() == {"four pairs by heart"}


def test_an_adapter_in_bf16_is_noticed(make):
    trainer = make()
    for parameter in trainer.model.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.bfloat16()
    findings = failed(trainer)
    # 42 tensors: 3 layers × 7 linear layers × A and B
    assert "dtypes" in findings and findings["dtypes"].startswith("0 of 42 trained tensors in fp32")


def test_bf16_is_noticed_where_a_gpu_has_none(make, monkeypatch):
    """A T4: fp16 is its precision, bf16 is emulated and slow."""
    trainer = make()
    monkeypatch.setattr(preflight, "compute_dtype", lambda: torch.float16)
    trainable = {n for n, p in trainer.model.named_parameters() if p.requires_grad}
    assert preflight._check_dtypes(trainer, trainable).passed
    layer = trainer.model.get_base_model().model.language_model.layers[0].mlp.up_proj.base_layer
    layer.compute_dtype = torch.bfloat16
    assert (
        "1 in bf16, which this GPU only emulates"
        in preflight._check_dtypes(trainer, trainable).measured
    )
    layer.compute_dtype = torch.float32
    trainer.model.get_base_model().model.language_model.norm.bfloat16()
    check = preflight._check_dtypes(trainer, trainable)
    assert not check.passed and "language_model.norm.weight" in check.measured


def test_a_max_length_is_noticed(make):
    """TRL's collator cuts the answers off; image tokens would go next."""
    trainer = make(packed=False)
    trainer.args.max_length = trainer.data_collator.max_length = 50
    findings = failed(trainer)
    assert findings.keys() == {"truncation"} and "max_length 50" in findings["truncation"]


def test_too_long_a_prompt_is_noticed(trainer):
    text = trainer.train_dataset[-1]["prompt"][-1]["content"]
    long = [{"role": "user", "content": text + " and the buses" * 700}]
    replace_data(
        trainer, prompt=lambda row: long if row["prompt"][-1]["content"] == text else row["prompt"]
    )
    findings = failed(trainer)
    assert findings.keys() == {"truncation"} and "the model takes 2048" in findings["truncation"]


def test_a_strongly_reduced_image_is_a_warning(make, capsys):
    """112² of 560² pixels: 4 %."""
    trainer = make()
    replace_data(trainer, images=lambda row: [row["images"][0].resize((560, 560))])
    checks = preflight.preflight(trainer, PAIRS)
    found = next(check for check in checks if check.name == "image size")
    assert not found.passed and found.warns
    assert found.measured == "the model sees at least 4% of an image's pixels (8 of 8 rows)"
    printed = capsys.readouterr().out
    assert (
        "⚠️ image size" in printed
        and "give check_machine, whose plan the model is loaded with, a larger max_pixels"
        in printed
    )


def test_a_learning_rate_that_adds_up_to_nothing_is_noticed(trainer):
    """120 steps of 1e-8 at the peak, 6e-7 in all: not a thousandth of a nat."""
    trainer.args.learning_rate = 1e-8
    findings = failed(trainer)
    assert findings.keys() == {"learning rate"}
    assert findings["learning rate"].startswith("120 steps move the margin by at most 0.0")


def test_a_learning_rate_that_adds_up_to_little_is_a_warning(make, capsys):
    checks = preflight.preflight(make(learning_rate=1e-6), PAIRS)
    (found,) = [check for check in checks if not check.passed]
    assert found.name == "learning rate" and found.warns
    assert "⚠️  learning rate: Raise learning_rate" in capsys.readouterr().out


def test_a_forecast_over_the_gpus_memory_is_a_warning():
    fits = Forecast(2.0, 1.0, 3.0, 10.0, 16.0, 4)
    assert preflight._check_memory(fits).passed and "batches of 4 pairs are likely to fit" in str(
        fits
    )
    over = preflight._check_memory(dataclasses.replace(fits, peak_gb=15.0, largest_batch=1))
    assert (
        over.warns
        and not over.passed
        and "in the Parameters cell of notebook 04 to 1 and" in over.remedy
    )


def test_memory_that_does_not_suffice_is_one_line(make, monkeypatch):
    trainer = make()
    before = snapshot(trainer)

    def no_memory(*_):
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(trainer, "compute_loss", no_memory)
    with pytest.raises(UsageError, match="too small for 4 pairs in one forward: lower batch_size"):
        preflight.preflight(trainer, PAIRS)
    assert_same(before, snapshot(trainer))


def test_going_on_with_a_trained_adapter(make):
    """Its frozen copy is the reference, and counts neither as policy nor as trained."""
    first = make(steps=2)
    dpo.train_dpo(first)
    for packed in (True, False):
        second = make(model=first.model, packed=packed)
        assert any(".ref." in name for name, _ in second.model.named_parameters())
        before = snapshot(second)
        checks = preflight.preflight(second, PAIRS)
        assert all(check.passed for check in checks)
        # 42 tensors: 3 layers × 7 linear layers × A and B
        assert "reaches 21 of 21" in checks[9].measured and "42 of 42" in checks[4].measured
        assert_same(before, snapshot(second))


def test_mdpo_and_all_other_terms_are_switched_off_for_the_first_loss(make):
    trainer = make(image_weight=1.0, anchor_weight=1.0, losses=("robust",), label_smoothing=0.2)
    replace_data(trainer, negative_images=lambda row: [row["images"][0].rotate(180)])
    before = snapshot(trainer)
    checks = preflight.preflight(trainer, PAIRS)
    assert all(check.passed for check in checks) and checks[8].measured.startswith("0.6931")
    assert_same(before, snapshot(trainer))
    assert trainer.image_weight == trainer.anchor_weight == 1.0


@pytest.mark.parametrize("packed", [True, False])
def test_checkpointing_small_batches_and_dropout_do_not_disturb_the_checks(make, packed):
    lora = LoraSettings(r=8, alpha=16, dropout=0.05, target_modules=ATTENTION)
    trainer = make(
        packed=packed, lora=lora, gradient_checkpointing=True, batch_size=3, beta=0.1, steps=800
    )
    before = snapshot(trainer)
    assert all(check.passed for check in preflight.preflight(trainer, PAIRS))
    assert_same(before, snapshot(trainer))
