"""Findings are provoked by their faults in short runs of the tiny model; a healthy run has none.

Not to be seen while a run goes on, and so left to `preflight`: a template that does not close the
answer (the base goes on closing its own), pairs that are equal, a policy that does not start at its
reference, and an image dropped from every prompt (the model cannot even run).
"""

import contextlib
import dataclasses
import io
import json
import math
import random
import re
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from datasets import Dataset
from dpo_logs import log, sample
from shipped import TRAFFIC
from transformers import TrainerCallback, TrainerState

from helpers import models
from helpers.config import DPO_PRESETS, LoraSettings
from helpers.data.preferences import read_records
from helpers.data.trl_pairs import to_trl
from helpers.doctor import dpo_doctor as run_doctor
from helpers.doctor.dpo_doctor import DPODoctor
from helpers.doctor.dpo_rules import DPOHistory, look_dpo
from helpers.doctor.verdicts import Reading
from helpers.files import open_image
from helpers.training import dpo

pytestmark = pytest.mark.heavy(reason="trains the tiny model")
SLOW = pytest.mark.slow(reason="a long run; test_dpo_rules.py has its rules on made-up logs")

SETTINGS = dataclasses.replace(DPO_PRESETS["tiny"], batch_size=8)
FOREIGN = (
    "{% for message in messages %}{{ 'USER: ' if message['role'] == 'user' else 'ASSISTANT: ' }}"
    "{% if message['content'] is string %}{{ message['content'] }}"
    "{% else %}{% for part in message['content'] %}"
    "{% if part['type'] == 'image' %}<|vision_start|><|image_pad|><|vision_end|>"
    "{% elif part['type'] == 'text' %}"
    "{{ part['text'] }}{% endif %}{% endfor %}{% endif %}"
    "{{ '</s>' if message['role'] == 'assistant' else ' ' }}"
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
def watch(pairs, held_out):
    """Train with a doctor; `fault` is done to the model before training, `prepare` to the
    processor, `change` to every pair of the data.
    """

    def run(
        fault=None,
        change=None,
        images=None,
        prepare=None,
        data=pairs,
        every=10,
        callbacks=(),
        folder=None,
        **settings,
    ):
        if change:
            data = Dataset.from_list([change({**row}) for row in data], features=data.features)
        model, processor = models.load_model("tiny")
        if prepare:
            prepare(processor)
        images = images or held_out[0]
        doctor = DPODoctor(processor, images, held_out[1][: len(images)], every=every)
        settings = dataclasses.replace(SETTINGS, **settings)
        trainer = dpo.dpo_trainer(
            model,
            processor,
            data,
            settings,
            callbacks=[*callbacks, doctor],
            folder=folder,
        )
        if fault:
            fault(trainer.model)
        printed = io.StringIO()
        with contextlib.redirect_stdout(printed):
            training = dpo.train_dpo(trainer)
        return SimpleNamespace(
            doctor=doctor, model=trainer.model, log=training.log, printed=printed.getvalue()
        )

    return run


@pytest.fixture(scope="module")
def healthy(watch):
    return watch(steps=24, every=12)  # the rules need twenty steps


def kinds(watched):
    return {verdict.kind: verdict.step for verdict in watched.doctor.verdicts}


def blank(image):
    return image.point(lambda _: 0)


# Runs of the tiny model


def test_a_healthy_run_has_no_finding(healthy):
    assert healthy.doctor.verdicts == [] and healthy.printed == ""
    assert healthy.doctor.state().startswith("Step 24 of 24, healthy so far: loss 0.")
    # a quarter of the steps, and every 12
    assert [sample.step for sample in healthy.doctor.run.samples] == [0, 6, 12, 24]


def test_a_doctor_that_has_seen_nothing_says_so(tiny):
    assert "No step yet." in DPODoctor(tiny[1], [], [])._repr_html_()


def test_the_steps_at_which_answers_are_sampled(tiny):
    """A quarter of a short run is before the first regular one; a long one needs no other."""

    def sampled(planned, every=20):
        doctor = DPODoctor(tiny[1], [], [], every=every)
        steps = [0]
        for step in range(1, planned + 1):
            taken = [sample(taken) for taken in steps]
            doctor.run = DPOHistory(log(step), 8, 1.0, planned, samples=taken)
            if doctor._is_due(step):
                steps.append(step)
        return steps[1:]

    assert sampled(40) == [10, 20, 40] and sampled(24) == [6, 20]
    assert sampled(80) == [20, 40, 60, 80] and sampled(100) == [20, 40, 60, 80, 100]
    # five rows are a quick look
    assert sampled(8) == [5] and sampled(4) == []


def test_a_sample_compares_with_the_reference(healthy, held_out):
    """At the start they are one model; later the reference is still the base."""
    first, *_, last = healthy.doctor.run.samples
    assert first.logps == pytest.approx(first.reference_logps, abs=1e-4)
    assert last.logps != pytest.approx(last.reference_logps, abs=1e-2)
    base, processor = models.load_model("tiny")
    of_base = run_doctor._logps(base, processor, *held_out, last.answers)
    assert last.reference_logps == pytest.approx(of_base, abs=1e-4)


def test_notes_of_another_version_are_left_alone(tmp_path, healthy, capsys):
    """A sample without a field that is new, as an earlier version wrote it: it is said."""
    healthy.doctor.keep(tmp_path)
    TrainerState(log_history=healthy.log).save_to_json(str(tmp_path / "trainer_state.json"))
    fresh = DPODoctor(None, [], [])
    fresh.go_on_from(tmp_path)
    assert fresh.run.samples == healthy.doctor.run.samples and capsys.readouterr().out == ""
    file = tmp_path / "doctor.json"
    kept = json.loads(file.read_text(encoding="utf-8"))
    del kept["samples"][0]["logps"]
    file.write_text(json.dumps(kept), encoding="utf-8")
    other = DPODoctor(None, [], [])
    other.go_on_from(tmp_path)
    assert not other.run.samples and "another version" in capsys.readouterr().out


class StopAt(TrainerCallback):
    def __init__(self, step):
        self.step = step

    def on_step_end(self, args, state, control, **kwargs):
        control.should_training_stop = state.global_step == self.step


def test_a_collapse_is_called_at_a_quarter_of_the_steps_and_not_where_an_sft_term_prevents_it(
    watch,
):
    """In both the loss falls."""
    settings = {"steps": 28, "every": 28, "learning_rate": 3e-3, "beta": 0.1, "warmup_share": 0.0}
    for sft_weight, said in ((0.0, True), (1.0, False)):
        watched = watch(callbacks=[StopAt(7)], sft_weight=sft_weight, **settings)
        assert [sample.step for sample in watched.doctor.run.samples] == [0, 7]
        assert ("collapse" in kinds(watched)) == said, watched.printed
        assert watched.log[-1]["loss"] < watched.log[0]["loss"]


def test_a_healthy_run_gives_a_gradient_to_every_tensor_of_the_language_model_only(healthy):
    census = healthy.doctor.run.census
    assert healthy.doctor.run.pairs == 8 and healthy.doctor.run.beta == 1.0
    assert census.step == 24 and [*census.towers] == ["language"]
    tower = census.towers["language"]  # 3 layers × 7 linear layers × A and B
    assert (tower.tensors, tower.reached, tower.types) == (42, 42, ["float32"])


def test_the_doctor_disturbs_neither_the_random_numbers_nor_the_weights(watch):
    """The same run, with dropout, sampled at every step and never."""
    settings = {"steps": 4, "lora": LoraSettings(dropout=0.1)}
    often, once = watch(every=1, **settings), watch(every=100, **settings)
    assert len(often.doctor.run.samples) == 5 and len(once.doctor.run.samples) == 1  # no 5 rows
    assert [row["loss"] for row in often.log] == pytest.approx(
        [row["loss"] for row in once.log], abs=1e-6
    )
    assert often.model.training is once.model.training


@SLOW
def test_random_labels(watch):
    coin = random.Random(0)

    def swap(row):
        if coin.random() < 0.5:
            row["chosen"], row["rejected"] = row["rejected"], row["chosen"]
        return row

    watched = watch(change=swap, steps=24)
    assert kinds(watched).keys() == {"nothing learnt"}
    assert kinds(watched)["nothing learnt"] <= 24  # the rule needs twenty steps; the run has 24
    assert "which may be 0; pairs preferred the right way: 0." in watched.printed
    assert watched.doctor.verdicts[0].causes[0].startswith("chosen and rejected are swapped")


@SLOW
def test_blank_images(watch, held_out):
    watched = watch(
        change=lambda row: row | {"images": [blank(image) for image in row["images"]]},
        images=[blank(image) for image in held_out[0]],
        steps=20,
    )
    assert kinds(watched)["blind"] == 0  # the sample before training shows it
    assert (
        kinds(watched)["nothing learnt"] <= 20
    )  # by the end of the run: the rule needs twenty steps


@SLOW
def test_a_learning_rate_that_is_too_low(watch):
    """The advice is tried: with the preset's 3e-4, of the same order, margins do reach 1 (the
    healthy run).
    """
    watched = watch(steps=20, learning_rate=1e-7)
    assert kinds(watched).keys() == {"too slow"}
    assert kinds(watched)["too slow"] <= 20  # the rule needs twenty steps
    advised = float(watched.doctor.verdicts[0].measured.split("rate of about ")[1].split()[0])
    assert 3e-5 < advised < 3e-3


@SLOW
def test_a_learning_rate_that_is_too_high(watch):
    found = kinds(watch(steps=20, learning_rate=3e-2))
    assert {"gradient explodes", "diverging", "chosen sinks", "entropy", "blind"} <= found.keys()
    assert found["gradient explodes"] < 10 and found["diverging"] < 12


@SLOW
def test_likelihood_displacement_without_an_sft_term(watch):
    watched = watch(steps=30, learning_rate=3e-3, sft_weight=0.0)
    assert {"chosen sinks", "entropy"} <= kinds(watched).keys() and "diverging" not in kinds(
        watched
    )
    assert (
        np.mean([row["rewards/accuracies"] for row in watched.log[-10:]]) > 0.8
    )  # the curve that reassures


@SLOW
def test_four_pairs_learnt_by_heart(watch, pairs):
    watched = watch(
        data=pairs.select(range(4)), steps=24, batch_size=4, learning_rate=1e-3, sft_weight=0.0
    )
    assert kinds(watched)["saturated"] <= 24
    assert "all of the last 80 pairs are preferred the right way" in watched.printed


@SLOW
def test_one_answer_to_every_image(watch):
    same = [
        {
            "role": "assistant",
            "content": "There are 1 cars, 1 motorcycles, 1 buses, 1 bicycles in the image.",
        }
    ]
    watched = watch(change=lambda row: row | {"chosen": same}, steps=20, learning_rate=3e-3)
    assert {"one answer", "blind"} <= kinds(watched).keys()
    assert len(set(watched.doctor.run.samples[-1].answers)) == 1


def test_a_foreign_chat_template(watch):
    """Seen in the warm-up, before the model gets used to it."""

    def exchange(processor):
        processor.chat_template = FOREIGN

    watched = watch(prepare=exchange, steps=10, warmup_share=1.0)
    assert kinds(watched).keys() == {"foreign text"}
    assert kinds(watched)["foreign text"] <= 10  # within the warm-up


def test_a_model_that_stops_at_another_token_than_its_template(watch):
    """As a base that was never trained to chat: it stops at <|endoftext|>, the template writes
    <|im_end|>.
    """

    def other_end(processor):
        processor.tokenizer.eos_token = processor.tokenizer.pad_token

    def stop_there(model):
        model.generation_config.eos_token_id = model.generation_config.pad_token_id

    watched = watch(prepare=other_end, fault=stop_there, steps=1)
    assert kinds(watched) == {"answers do not end": 0}
    assert "share cut off at 64 tokens: 1.000" in watched.printed


def test_a_layer_frozen_before_training(watch):
    """peft makes it trainable again, so it gets gradients, but the optimizer does not know it."""

    def freeze(model):
        for name, parameter in model.named_parameters():
            if "layers.1." in name:
                parameter.requires_grad_(False)

    watched = watch(fault=freeze, steps=5)
    assert kinds(watched).keys() == {"no gradient"}
    assert kinds(watched)["no gradient"] <= 5  # once B has left zero
    # 42 tensors: 3 layers × 7 linear layers × A and B
    assert "14 of 42 tensors of the language part get none" in watched.printed


def test_an_adapter_cast_to_bf16(watch):
    def cast(model):
        for parameter in model.parameters():
            parameter.data = (
                parameter.data.bfloat16() if parameter.requires_grad else parameter.data
            )

    watched = watch(fault=cast, steps=1)
    assert kinds(watched) == {"low precision": 1} and "are trained in bfloat16" in watched.printed


def test_a_trained_vision_tower_is_counted_by_itself(watch):
    watched = watch(steps=5, lora=LoraSettings(vision=True))
    assert kinds(watched) == {}
    towers = watched.doctor.run.census.towers
    assert {"vision", "language"} <= towers.keys() and all(
        t.reached == t.tensors for t in towers.values()
    )


class Break(TrainerCallback):
    """Makes one weight infinite after step 7, and remembers the weights before step 5."""

    def on_step_begin(self, args, state, control, model=None, **kwargs):
        if state.global_step == 5:
            self.before = {
                n: p.detach().clone() for n, p in model.named_parameters() if "lora_" in n
            }

    def on_step_end(self, args, state, control, model=None, **kwargs):
        if state.global_step == 7:
            next(p for n, p in model.named_parameters() if "lora_B" in n).data[0, 0] = math.inf


def test_numbers_that_are_not_finite_stop_the_run_and_the_last_good_weights_come_back(watch):
    broken = Break()
    watched = watch(steps=20, callbacks=[broken])
    # the weight breaks after step 7, so step 8 is the first that computes with it
    assert kinds(watched) == {"not finite": 8} and len(watched.log) == 8
    assert math.isnan(watched.log[-1]["loss"]), "transformers would have logged a number"
    assert "the adapter has its weights of step 5 again" in watched.printed
    for name, parameter in watched.model.named_parameters():
        if name in broken.before:
            assert torch.equal(parameter, broken.before[name]), name


def test_a_copy_of_broken_weights_is_never_put_back(watch):
    """A copy that is taken after the weights broke gives no finite loss, so the one before it
    stays.
    """

    class BreakAtCopy(Break):
        def on_step_end(self, args, state, control, model=None, **kwargs):
            if state.global_step == 5:
                next(p for n, p in model.named_parameters() if "lora_B" in n).data[0, 0] = 1e38

    watched = watch(steps=10, callbacks=[BreakAtCopy()])
    assert kinds(watched)["not finite"] == 6 and "its weights of step 0 again" in watched.printed
    assert all(p.isfinite().all() for n, p in watched.model.named_parameters() if "lora_" in n)


# A run that goes on


class KillAt(TrainerCallback):
    def __init__(self, step):
        self.step = step

    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step == self.step:
            raise InterruptedError


def test_a_run_that_goes_on_has_the_verdicts_of_one_that_was_not_interrupted(
    watch, held_out, tmp_path
):
    """Of its samples, which a log does not hold, as of the rest."""
    settings = {"steps": 4, "checkpoint_steps": 2, "every": 2}
    settings["images"] = [blank(image) for image in held_out[0][:2]]
    whole = watch(**settings)
    with pytest.raises(InterruptedError):
        watch(callbacks=[KillAt(3)], folder=tmp_path, **settings)
    again = watch(folder=tmp_path, **settings)
    assert "Going on after step 2" in again.printed
    # it was said before
    assert kinds(whole)["blind"] == 0 and "at step 0" not in again.printed
    loaded = watch(folder=tmp_path, **settings)
    assert "Finished after step 4" in loaded.printed
    for other in (again.doctor, loaded.doctor):
        assert other.course.state() == whole.doctor.course.state()
        assert other.state() == whole.doctor.state() and other.reached == whole.doctor.reached
        assert [s.answers for s in other.run.samples] == [
            s.answers for s in whole.doctor.run.samples
        ]


@pytest.mark.slow(reason="rare; the test above has the way of a run that was watched")
def test_a_run_that_was_not_watched_before_is_known_by_its_log(watch, tmp_path, monkeypatch):
    settings = {"folder": tmp_path, "steps": 4, "checkpoint_steps": 2}
    with monkeypatch.context() as patch:
        patch.setattr(DPODoctor, "keep", lambda doctor, checkpoint: None)
        with pytest.raises(InterruptedError):
            watch(callbacks=[KillAt(3)], **settings)
    again = watch(**settings)
    assert [row["step"] for row in again.doctor.run.rows] == [1, 2, 3, 4]
    # its first sample is of the policy as it was found
    assert again.doctor.run.samples[0].step == 2 and again.doctor.verdicts == []


# The panel


def test_the_part_that_a_weight_belongs_to():
    names = {
        "base_model.model.model.visual.blocks.0.attn.qkv.lora_A.default.weight": "vision",
        "model.visual.merger.mlp.0.weight": "connector",
        "model.multi_modal_projector.linear_1.weight": "connector",
        "model.vision_tower.layers.0.weight": "vision",
        "model.language_model.layers.0.self_attn.q_proj.lora_A.default.weight": "language",
    }
    assert {name: run_doctor._tower(name) for name in names} == names


def test_the_panel_escapes_what_the_model_says(tiny):
    doctor = DPODoctor(tiny[1], [], [])
    doctor.run = DPOHistory(
        log(5), 8, 1.0, steps=20, samples=[sample(), sample(5, answers=["<b>No</b>"] * 8)]
    )
    doctor.tell(look_dpo(doctor.run), 5, aloud=False)
    panel = doctor._repr_html_()
    assert "Step 5 of 20, one answer: loss 0.300, accuracy 100%, margin 1.00." in panel
    assert "&lt;b&gt;No&lt;/b&gt;" in panel and "<b>No</b>" not in panel
    assert "<li>the chosen answers are all alike</li>" in panel


def luminance(color):
    """Relative luminance (WCAG 2.2) of #rrggbb."""
    parts = [int(color[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    red, green, blue = (p / 12.92 if p <= 0.04045 else ((p + 0.055) / 1.055) ** 2.4 for p in parts)
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


@pytest.mark.parametrize(
    "kind, ends", [("diverging", False), ("one answer", False), ("one answer", True)]
)
def test_the_panel_can_be_read(tiny, kind, ends):
    doctor = DPODoctor(tiny[1], [], [])
    doctor.run = DPOHistory(log(5), 8, 1.0)
    doctor.tell({kind: Reading("found")}, 5, aloud=False)
    if ends:
        doctor.tell({kind: Reading(None, seen=1)}, 6, aloud=False)
    panel = doctor._repr_html_()
    assert ("withdrawn at step 6" in panel) == ends
    ground, *texts = re.search(r"background:(#\w+); color:(#\w+).*color:(#\w+)", panel).groups()
    for text in texts:
        assert (luminance(ground) + 0.05) / (luminance(text) + 0.05) > 4.5


def test_a_doctor_of_records_asks_their_last_turns_about_their_first_images(tiny):
    records = read_records(TRAFFIC / "preferences_valid.jsonl")[:3]
    doctor = DPODoctor.of_records(tiny[1], records)
    assert doctor.prompts == [record.prompt[0].content for record in records]
    assert len(doctor.images) == 3
