"""Every finding is provoked by its fault in a short run of the tiny model, and a healthy run has none.

Not to be seen while a run goes on, and so left to `preflight`: a template that does not close the
answer (the base goes on closing its own), pairs that are equal, a policy that does not start at its
reference, and an image dropped from every prompt (the model cannot even run).
"""

import contextlib
import dataclasses
import io
import math
import random
import re
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from datasets import Dataset
from shipped import TRAFFIC
from transformers import TrainerCallback

from helpers import models
from helpers.config import DPO_PRESETS, LoraSettings
from helpers.data.preferences import read_records, to_trl
from helpers.doctor import dpo_doctor as run_doctor
from helpers.doctor.dpo_doctor import DPODoctor
from helpers.doctor.dpo_rules import DPO_KINDS, AnswerSample, Census, DPOHistory, Tower, diagnose_dpo, replay_dpo
from helpers.doctor.verdicts import Verdict
from helpers.files import open_image
from helpers.training import dpo

SETTINGS = dataclasses.replace(DPO_PRESETS["tiny"], batch_size=8)
FOREIGN = (
    "{% for message in messages %}{{ 'USER: ' if message['role'] == 'user' else 'ASSISTANT: ' }}"
    "{% if message['content'] is string %}{{ message['content'] }}{% else %}{% for part in message['content'] %}"
    "{% if part['type'] == 'image' %}<|vision_start|><|image_pad|><|vision_end|>{% elif part['type'] == 'text' %}"
    "{{ part['text'] }}{% endif %}{% endfor %}{% endif %}{{ '</s>' if message['role'] == 'assistant' else ' ' }}"
    "{% endfor %}{% if add_generation_prompt %}ASSISTANT: {% endif %}"
)


@pytest.fixture(scope="module")
def pairs():
    path = TRAFFIC / "preferences_train.jsonl"
    return to_trl(read_records(path)[:180]).select(range(320))


@pytest.fixture(scope="module")
def held_out():
    """Eight images and their questions."""
    path = TRAFFIC / "preferences_valid.jsonl"
    records = read_records(path)[:8]
    images = [open_image(record.image_paths[0]) for record in records]
    return images, [record.prompt[-1].content for record in records]


@pytest.fixture(scope="module")
def watch(pairs, held_out, tmp_path_factory):
    """Train with a doctor; `fault` is done to the model before training, `prepare` to the processor, `change` to every pair of the data."""

    def run(fault=None, change=None, images=None, prepare=None, data=pairs, every=10, callbacks=(), **settings):
        if change:
            data = Dataset.from_list([change({**row}) for row in data], features=data.features)
        model, processor = models.load_model("tiny")
        if prepare:
            prepare(processor)
        doctor = DPODoctor(processor, images or held_out[0], held_out[1], every=every)
        settings = dataclasses.replace(SETTINGS, **settings)
        trainer = dpo.dpo_trainer(
            model, processor, data, settings, output_dir=tmp_path_factory.mktemp("run"), callbacks=[*callbacks, doctor]
        )
        if fault:
            fault(trainer.model)
        printed = io.StringIO()
        with contextlib.redirect_stdout(printed):
            training = dpo.train_dpo(trainer)
        return SimpleNamespace(doctor=doctor, model=trainer.model, log=training.log, printed=printed.getvalue())

    return run


@pytest.fixture(scope="module")
def healthy(watch):
    return watch(steps=40, every=20)


def kinds(watched):
    return {verdict.kind: verdict.step for verdict in watched.doctor.verdicts}


def blank(image):
    return image.point(lambda _: 0)


# Runs of the tiny model


def test_a_healthy_run_has_no_finding(healthy):
    assert healthy.doctor.verdicts == [] and healthy.printed == ""
    assert healthy.doctor.state().startswith("Step 40 of 40, healthy so far: loss 0.")
    assert [sample.step for sample in healthy.doctor.run.samples] == [0, 20, 40]
    assert replay_dpo(healthy.doctor.run) == []


def test_a_doctor_that_has_seen_nothing_says_so(tiny):
    assert "No step yet." in DPODoctor(tiny[1], [], [])._repr_html_()


def test_a_healthy_run_gives_a_gradient_to_every_tensor_of_the_language_model_only(healthy):
    census = healthy.doctor.run.census
    assert healthy.doctor.run.pairs == 8 and healthy.doctor.run.beta == 1.0
    assert census.step == 40 and [*census.towers] == ["language"]
    tower = census.towers["language"]  # 3 layers × 7 linear layers × A and B
    assert (tower.tensors, tower.reached, tower.types) == (42, 42, ("float32",)) and tower.norm > 0


def test_the_doctor_disturbs_neither_the_random_numbers_nor_the_weights(watch):
    """The same run, with dropout, sampled at every step and never."""
    settings = {"steps": 4, "lora": LoraSettings(dropout=0.1)}
    often, once = watch(every=1, **settings), watch(every=100, **settings)
    assert len(often.doctor.run.samples) == 5 and len(once.doctor.run.samples) == 1
    assert [row["loss"] for row in often.log] == pytest.approx([row["loss"] for row in once.log], abs=1e-6)
    assert often.model.training is once.model.training


def test_random_labels(watch):
    coin = random.Random(0)

    def swap(row):
        if coin.random() < 0.5:
            row["chosen"], row["rejected"] = row["rejected"], row["chosen"]
        return row

    watched = watch(change=swap, steps=24)
    assert kinds(watched) == {"nothing learnt": 20}
    assert "which may be 0; pairs preferred the right way: 0." in watched.printed
    assert watched.doctor.verdicts[0].causes[0].startswith("chosen and rejected are swapped")


def test_blank_images(watch, held_out):
    watched = watch(
        change=lambda row: row | {"images": [blank(image) for image in row["images"]]},
        images=[blank(image) for image in held_out[0]],
        steps=20,
    )
    assert kinds(watched).items() >= {"blind": 0, "nothing learnt": 20}.items()


def test_a_learning_rate_that_is_too_low(watch):
    """The advice is tried: with the preset's 3e-4, of the same order, margins do reach 1 (the healthy run)."""
    watched = watch(steps=20, learning_rate=1e-7)
    assert kinds(watched) == {"too slow": 20}
    advised = float(watched.doctor.verdicts[0].measured.split("rate of about ")[1].split()[0])
    assert 3e-5 < advised < 3e-3


def test_a_learning_rate_that_is_too_high(watch):
    found = kinds(watch(steps=20, learning_rate=3e-2))
    assert {"gradient explodes", "diverging", "chosen sinks", "entropy", "blind"} <= found.keys()
    assert found["gradient explodes"] < 10 and found["diverging"] < 12


def test_likelihood_displacement_without_an_sft_term(watch):
    watched = watch(steps=30, learning_rate=3e-3, sft_weight=0.0)
    assert {"chosen sinks", "entropy"} <= kinds(watched).keys() and "diverging" not in kinds(watched)
    assert np.mean([row["rewards/accuracies"] for row in watched.log[-10:]]) > 0.8  # the curve that reassures


def test_four_pairs_learnt_by_heart(watch, pairs):
    watched = watch(data=pairs.select(range(4)), steps=24, batch_size=4, learning_rate=1e-3, sft_weight=0.0)
    assert kinds(watched)["saturated"] <= 24
    assert "all of the last 80 pairs are preferred the right way" in watched.printed


def test_one_answer_to_every_image(watch):
    same = [{"role": "assistant", "content": "There are 1 cars, 1 motorcycles, 1 buses, 1 bicycles in the image."}]
    watched = watch(change=lambda row: row | {"chosen": same}, steps=20, learning_rate=3e-3)
    assert {"one answer", "blind"} <= kinds(watched).keys()
    assert len(set(watched.doctor.run.samples[-1].answers)) == 1


def test_a_foreign_chat_template(watch):
    """Seen in the warm-up, before the model gets used to it."""

    def exchange(processor):
        processor.chat_template = FOREIGN

    watched = watch(prepare=exchange, steps=10, warmup_share=1.0)
    assert kinds(watched) == {"foreign text": 5}


def test_a_model_that_stops_at_another_token_than_its_template(watch):
    """As a base that was never trained to chat: it stops at <|endoftext|>, the template writes <|im_end|>."""

    def other_end(processor):
        processor.tokenizer.eos_token = processor.tokenizer.pad_token

    def stop_there(model):
        model.generation_config.eos_token_id = model.generation_config.pad_token_id

    watched = watch(prepare=other_end, fault=stop_there, steps=1)
    assert kinds(watched) == {"answers do not end": 0}
    assert "share cut off at 64 tokens: 1.000" in watched.printed


def test_a_layer_frozen_before_training(watch):
    """peft makes it trainable again, so that it gets gradients, but the optimizer does not know it."""

    def freeze(model):
        for name, parameter in model.named_parameters():
            if "layers.1." in name:
                parameter.requires_grad_(False)

    watched = watch(fault=freeze, steps=5)
    assert kinds(watched) == {"no gradient": 5}
    assert "14 of 42 tensors of the language part get none" in watched.printed


def test_an_adapter_cast_to_bf16(watch):
    def cast(model):
        for parameter in model.parameters():
            parameter.data = parameter.data.bfloat16() if parameter.requires_grad else parameter.data

    watched = watch(fault=cast, steps=1)
    assert kinds(watched) == {"low precision": 1} and "are trained in bfloat16" in watched.printed


def test_a_trained_vision_tower_is_counted_by_itself(watch):
    watched = watch(steps=5, lora=LoraSettings(vision=True))
    assert kinds(watched) == {}
    towers = watched.doctor.run.census.towers
    assert {"vision", "language"} <= towers.keys() and all(t.reached == t.tensors for t in towers.values())


class Break(TrainerCallback):
    """Makes one weight infinite after step 7, and remembers the weights before step 5."""

    def on_step_begin(self, args, state, control, model=None, **kwargs):
        if state.global_step == 5:
            self.before = {n: p.detach().clone() for n, p in model.named_parameters() if "lora_" in n}

    def on_step_end(self, args, state, control, model=None, **kwargs):
        if state.global_step == 7:
            next(p for n, p in model.named_parameters() if "lora_B" in n).data[0, 0] = math.inf


def test_numbers_that_are_not_finite_stop_the_run_and_the_last_good_weights_come_back(watch):
    broken = Break()
    watched = watch(steps=20, callbacks=[broken])
    assert kinds(watched) == {"not finite": 8} and len(watched.log) == 8
    assert math.isfinite(watched.log[-1]["loss"]), "the trainer hides it, which is why the rule looks at the margins"
    assert "the adapter has its weights of step 5 again" in watched.printed
    for name, parameter in watched.model.named_parameters():
        if name in broken.before:
            assert torch.equal(parameter, broken.before[name]), name


def test_a_copy_of_broken_weights_is_never_put_back(watch):
    """A copy that is taken after the weights broke gives no finite loss, so the one before it stays."""

    class BreakAtCopy(Break):
        def on_step_end(self, args, state, control, model=None, **kwargs):
            if state.global_step == 5:
                next(p for n, p in model.named_parameters() if "lora_B" in n).data[0, 0] = 1e38

    watched = watch(steps=10, callbacks=[BreakAtCopy()])
    assert kinds(watched)["not finite"] == 6 and "its weights of step 0 again" in watched.printed
    assert all(p.isfinite().all() for n, p in watched.model.named_parameters() if "lora_" in n)


# The rules, on logs made by hand


def log(steps, **values):
    """Rows of a healthy run; a value may be a function of the step, from 1."""
    healthy = {"loss": 0.3, "grad_norm": 2.0, "learning_rate": 1e-4, "entropy": 1.0, "mean_token_accuracy": 0.6}
    healthy |= {"accuracies": 1.0, "margins": 1.0, "chosen": 0.5, "rejected": -0.5}
    values = {key: value if callable(value) else lambda _, v=value: v for key, value in (healthy | values).items()}
    short = ("accuracies", "margins", "chosen", "rejected")
    rows = []
    for step in range(1, steps + 1):
        row = {f"rewards/{k}" if k in short else k: make(step) for k, make in values.items()}
        rows.append(row | {"step": step, "logps/chosen": -20 + row["rewards/chosen"], "logps/rejected": -30.0})
    return rows


def found(rows=(), **about):
    return {v.kind: v.measured for v in diagnose_dpo(DPOHistory(**({"log": rows, "pairs": 8, "beta": 1.0} | about)))}


def wave(height, around=0.0):
    """Mean `around`, with a standard deviation of `height` × √(n / (n − 1))."""
    return lambda step: around + (height if step % 2 else -height)


def test_a_log_without_a_fault_and_an_empty_one_have_no_finding():
    assert found(log(40)) == {} and found() == {}


def test_a_margin_that_may_be_0():
    assert found(log(20, margins=0, accuracies=0)) == {
        "nothing learnt": "the margin was exactly 0 in all of the last 20 rows."
    }
    # 20 rows of ±1: s = √(20 / 19) = 1.026, t(19) = 2.093, half width = 2.093 · 1.026 / √20 = 0.480
    assert "0.47 [-0.0102, 0.95]" in found(log(20, margins=wave(1, 0.47)))["nothing learnt"]
    assert "nothing learnt" not in found(log(20, margins=wave(1, 0.49)))
    assert "nothing learnt" not in found(log(19, margins=wave(1))), "too early to tell"
    assert "nothing learnt" not in found(log(24, margins=wave(1)), steps=100), "not yet a quarter of the run"
    assert "nothing learnt" in found(log(25, margins=wave(1)), steps=100)


def test_accuracy_at_chance():
    # 20 rows × 8 pairs: Wilson's interval of 92 of 160 = .575 is [.4975, .6490], of 93 [.5036, .6549]
    assert "0.575 [0.498, 0.649] (n = 160)" in found(log(20, accuracies=92 / 160))["chance accuracy"]
    assert "chance accuracy" not in found(log(20, accuracies=93 / 160))
    assert found(log(20, accuracies=0.3, margins=-0.3)).keys() == {"chance accuracy"}, "surely not 0, but wrong"


def test_steps_without_a_learning_rate_do_not_count_as_wrong():
    """While the warm-up is at 0 the rewards are equal, and TRL counts equal as wrong."""
    late = {"margins": lambda step: float(step > 5), "accuracies": lambda step: float(step > 5)}
    assert found(log(20, **late)) == {}


def test_a_margin_that_will_not_get_anywhere():
    # Margin 0.02 after 25 steps of 1e-4; 75 more make it 0.08 < 0.1; 1e-4 / 0.08 → 1e-3
    said = found(log(25, margins=0.02), steps=100)["too slow"]
    assert "margins are about 0.02 and will be 0.08 by step 100; a learning rate of about 1e-03" in said
    assert "too slow" not in found(log(25, margins=0.026), steps=100)  # 0.104
    # Means of 8 pairs that are 0.05 either side of 0: one pair is 0.05 · √8 = 0.14 off, so the policy does move
    assert found(log(20, margins=wave(0.05))).keys() == {"nothing learnt"}
    # In a warm-up that reached 1e-4 at its end, 0.013 of a mean of 0.5e-4: 0.013 · (1 + 75 / 13) = 0.088
    warm = log(25, margins=0.013, learning_rate=lambda step: step / 25 * 1e-4)
    assert "will be 0.09 by step 100" in found(warm, steps=100)["too slow"]


def test_divergence():
    assert "loss is 0.7" in found(log(10, loss=lambda step: 0.3 if step <= 3 else 0.7))["diverging"]
    assert "diverging" not in found(log(10, loss=lambda step: 0.3 if step <= 3 else 0.6))  # limit: over 2 × 0.3
    assert "margin of -0.6" in found(log(10, margins=-0.6))["diverging"]
    assert "diverging" not in found(log(10, margins=-0.5))
    assert "diverging" not in found(log(10, margins=wave(1, -0.6))), "as wide as that, it may be more than −0.5"


def test_the_gradient_norm():
    assert "20.1, and was 2 " in found(log(9, grad_norm=lambda s: 2.0 if s <= 4 else 20.1))["gradient explodes"]
    assert "gradient explodes" not in found(log(9, grad_norm=lambda s: 2.0 if s <= 4 else 20.0))
    assert "gradient explodes" not in found(log(9, grad_norm=lambda s: 900.0 if s in (5, 9) else 2.0)), "two peaks"


def test_single_overflows_of_an_fp16_scaler_are_no_finding():
    assert found(log(20, grad_norm=lambda step: math.inf if step in (1, 2, 9) else 2.0)) == {}
    assert "not finite" not in found(log(7, grad_norm=math.inf))
    assert "not finite" not in found(log(8, grad_norm=lambda step: 2.0 if step == 4 else math.inf))
    assert "8 steps on end" in found(log(8, grad_norm=math.inf))["not finite"]


def test_a_number_that_is_not_finite_is_the_only_finding():
    broken = log(20, margins=lambda step: math.nan if step == 20 else 0.0, loss=0.9)
    samples = [sample(), sample(20, answers=["No."] * 8)]
    assert found(broken, samples=samples) == {"not finite": "rewards/margins is nan."}


def test_both_answers_sinking():
    # The reference gives −20, so the limit is max(1, 2) nats; β 0.1: rewards of −0.21 are 2.1 nats
    assert "chosen ones by 2.1 nats" in found(log(5, chosen=-2.1, rejected=-3.0))["chosen sinks"]
    assert found(log(5, chosen=-1.9, rejected=-3.0)) == {}
    assert found(log(5, chosen=-2.1, rejected=0.1)) == {}
    rows = [row | {"logps/chosen": -22.1} for row in log(5, chosen=-0.21, rejected=-0.3)]
    assert "chosen ones by 2.1 nats" in found(rows, beta=0.1)["chosen sinks"]


def test_saturation():
    small = {"grad_norm": lambda step: 2.0 if step <= 3 else 0.039}  # 2 % of 2 is 0.04
    assert "all of the last 160 pairs" in found(log(30, **small))["saturated"]
    assert found(log(30, accuracies=lambda step: 7 / 8 if step == 15 else 1.0, **small)) == {}
    assert found(log(30, grad_norm=lambda step: 2.0 if step <= 3 else 0.041)) == {}
    held_out = [*log(30, **small), {"eval_rewards/accuracies": 0.62}]
    assert "held-out pairs 62% are" in found(held_out)["saturated"]


def test_entropy():
    assert "1.51" in found(log(9, entropy=lambda step: 1.0 if step <= 4 else 1.51))["entropy"]
    assert "0.049" in found(log(9, entropy=lambda step: 1.0 if step <= 4 else 0.049))["entropy"]
    for still_fine in (1.5, 0.051):
        assert "entropy" not in found(log(9, entropy=lambda step, late=still_fine: 1.0 if step <= 4 else late))
    assert found(log(9, entropy=lambda step: 0.01 if step <= 4 else 0.04, mean_token_accuracy=0.99)) == {}


def test_a_model_that_is_sure_and_wrong_at_the_start():
    # exp(−0.5) = 0.607, less 0.05 is 0.557
    said = found(log(5, entropy=0.5, mean_token_accuracy=0.55))["foreign text"]
    assert "61% sure of a next token, and 55% were right" in said
    assert found(log(5, entropy=0.5, mean_token_accuracy=0.56)) == {}


def sample(step=0, **values):
    healthy = {"answers": [f"{n} cars" for n in range(8)], "tokens": [20] * 8, "repeated": [0.1] * 8}
    return AnswerSample(step=step, limit=64, **(healthy | {"sight": [5.0] * 8} | values))


def after(**values):
    """Findings when the second sample differs from a healthy first one."""
    return found(samples=[sample(), sample(20, **values)])


def test_answers_that_do_not_end():
    cut = [58] * 6 + [20] * 2  # 0.9 · 64 = 57.6. Wilson: 0 of 8 [0, .324], 6 of 8 [.409, .929], 5 of 8 [.306, .863]
    assert "0.750 [0.409, 0.929]" in after(tokens=cut)["answers do not end"]
    assert "answers do not end" not in after(tokens=[58] * 5 + [20] * 3)
    assert "answers do not end" not in after(tokens=[57] * 8)
    assert "answers do not end" in found(samples=[sample(tokens=[58] * 7 + [20])])  # 7 of 8 [.529, .978]
    assert "answers do not end" not in found(samples=[sample(tokens=cut)])


def test_answers_that_fall_apart():
    assert after(tokens=[40] * 8) == {} and after(tokens=[10] * 8) == {}
    assert "have 41 tokens, and had 20" in after(tokens=[41] * 8)["answers fall apart"]
    assert "have 9 tokens" in after(tokens=[9] * 8)["answers fall apart"]
    assert after(repeated=[0.34] * 8) == {} and "36%" in after(repeated=[0.36] * 8)["answers fall apart"]


def test_answers_that_ignore_the_image():
    assert "0.09 nats" in found(samples=[sample(sight=[0.09] * 8)])["blind"]
    assert found(samples=[sample(sight=[0.11] * 8)]) == {}
    assert "blind" in after(sight=[0.49] * 8) and after(sight=[0.51] * 8) == {}  # a tenth of 5 nats


def test_one_answer():
    assert "'No.' to all of 8 images" in after(answers=["No."] * 8)["one answer"]
    assert after(answers=["No."] * 7 + ["Yes."]) == {}
    few = [sample(answers=["No."] * 6 + ["Yes.", "Both."]), sample(20, answers=["No."] * 8)]
    assert found(samples=few) == {}, "with three answers at the start, eight equal ones are no wonder"


def census(step=9, **vision):
    whole = {"tensors": 4, "reached": 4, "norm": 1.0, "types": ("float32",)}
    return Census(step, {"language": Tower(**whole), "vision": Tower(**(whole | vision))})


def test_the_census():
    assert found(census=census()) == {}
    assert found(census=census(reached=0)) == {
        "no gradient": "4 of 4 tensors of the vision part get none, or are not the optimizer's."
    }
    assert found(census=census(step=4, reached=0)) == {}, "LoRA's A needs a step of B first"
    assert "float16" in found(census=census(step=1, types=("float16", "float32")))["low precision"]


def test_the_part_that_a_weight_belongs_to():
    names = {
        "base_model.model.model.visual.blocks.0.attn.qkv.lora_A.default.weight": "vision",
        "model.visual.merger.mlp.0.weight": "connector",
        "model.multi_modal_projector.linear_1.weight": "connector",
        "model.vision_tower.layers.0.weight": "vision",
        "model.language_model.layers.0.self_attn.q_proj.lora_A.default.weight": "language",
    }
    assert {name: run_doctor._tower(name) for name in names} == names


def test_repeated_3_grams():
    assert run_doctor.repeated([1, 2, 3, 1, 2, 3, 1]) == pytest.approx(0.4)  # 123 231 312 123 231
    assert run_doctor.repeated([1, 2, 3, 4]) == 0 and run_doctor.repeated([1, 2]) == 0


def test_a_replay_tells_when_each_finding_would_have_come():
    """At the end the loss is fine again, so that `diagnose_dpo` alone would not know."""
    rows = log(40, loss=lambda step: 0.9 if 10 <= step <= 20 else 0.3)
    samples = [sample(), sample(20, answers=["No."] * 8)]
    assert found(rows, samples=samples).keys() == {"one answer"}
    # 0.3, 0.9 × 4: mean 0.78, t(4) 2.776 · s 0.268 / √5 = 0.333 → 0.447; five of 0.9 are over 0.6
    verdicts = replay_dpo(DPOHistory(rows, 8, 1.0, samples=samples))
    assert [(verdict.kind, verdict.step) for verdict in verdicts] == [("diverging", 14), ("one answer", 20)]


def test_every_kind_names_its_causes_and_a_cell():
    for kind, (severity, causes, change) in DPO_KINDS.items():
        assert severity in ("stop", "warning") and causes and all(causes), kind
        assert any(place in change for place in ("`settings`", "`new_trainer`", "notebook 02")), kind


def test_the_panel_escapes_what_the_model_says(tiny):
    doctor = DPODoctor(tiny[1], [], [])
    doctor.run = DPOHistory(log(5), 8, 1.0, steps=20, samples=[sample(), sample(5, answers=["<b>No</b>"] * 8)])
    doctor.verdicts = diagnose_dpo(doctor.run)
    panel = doctor._repr_html_()
    assert "Step 5 of 20, one answer: loss 0.300, accuracy 100%, margin 1.00." in panel
    assert "&lt;b&gt;No&lt;/b&gt;" in panel and "<b>No</b>" not in panel
    assert "<li>the chosen answers are all alike</li>" in panel


def luminance(color):
    """Relative luminance (WCAG 2.2) of #rrggbb."""
    parts = [int(color[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    red, green, blue = (p / 12.92 if p <= 0.04045 else ((p + 0.055) / 1.055) ** 2.4 for p in parts)
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


@pytest.mark.parametrize("kind", ["diverging", "one answer"])
def test_the_panel_can_be_read(tiny, kind):
    doctor = DPODoctor(tiny[1], [], [])
    doctor.run = DPOHistory(log(5), 8, 1.0)
    doctor.verdicts = [Verdict(kind, 5, "found", *DPO_KINDS[kind])]
    ground, *texts = re.search(r"background:(#\w+); color:(#\w+).*color:(#\w+)", doctor._repr_html_()).groups()
    for text in texts:
        assert (luminance(ground) + 0.05) / (luminance(text) + 0.05) > 4.5
