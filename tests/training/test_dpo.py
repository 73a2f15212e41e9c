import copy
import dataclasses
import json
import shutil
from typing import get_args

import pytest
import torch
from shipped import TRAFFIC
from torch.testing import assert_close
from transformers import TrainerCallback
from trl import DPOTrainer

from helpers import models
from helpers.config import (
    DPO_PRESETS,
    SMOOTHED_LOSSES,
    DPOLoss,
    LoraSettings,
    dpo_preset,
)
from helpers.data.pairs import add_image_negatives
from helpers.data.preferences import read_records
from helpers.data.trl_pairs import to_trl
from helpers.evaluation.pair_accuracy import evaluate_pairs, pair_logps
from helpers.files import ROOT, UsageError
from helpers.losses import anchor_loss, bco_loss, completion_logps, dpo_loss, sft_loss, token_logps
from helpers.models import caches, encoded_prompts
from helpers.models.caches import ImageFeatures, images_hash
from helpers.models.packer import Packer
from helpers.training import dpo

pytestmark = pytest.mark.heavy(reason="trains the tiny model")

VALID = TRAFFIC / "preferences_valid.jsonl"
SETTINGS = dataclasses.replace(DPO_PRESETS["tiny"], steps=6, batch_size=8)


@pytest.fixture
def make(pairs_dataset):
    """Trainer of a fresh adapter (or of `model`), with changed settings."""

    def build(model=None, dataset=None, **changes):
        names = ("packs", "cache", "folder", "replace_other", "seed", "callbacks")
        options = {name: changes.pop(name) for name in names if name in changes}
        base, processor = models.load_model("tiny")
        settings = dataclasses.replace(SETTINGS, **changes)
        return dpo.dpo_trainer(
            model or base, processor, dataset or pairs_dataset, settings, **options
        )

    return build


def batch_of(trainer, rows):
    examples = [trainer.train_dataset[i] for i in rows]
    return trainer._prepare_inputs(trainer.data_collator(copy.deepcopy(examples)))


def off_zero(model, seed=0):
    """Leave the start, where the adapter is nothing and policy and reference agree."""
    torch.manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B.default" in name:
                parameter.normal_(0, 0.05)


def state(model):
    return {name: parameter.detach().clone() for name, parameter in model.named_parameters()}


def test_training_moves_the_adapter_and_nothing_else(make):
    trainer = make()
    before = state(trainer.model)
    run = dpo.train_dpo(trainer)
    for name, parameter in trainer.model.named_parameters():
        assert torch.equal(parameter, before[name]) == ("lora_" not in name), name
        assert not parameter.requires_grad or parameter.dtype == torch.float32
    assert len(run.log) == 6 and run.trained_pairs == 48 and run.seconds > 0
    assert {
        "loss",
        "rewards/accuracies",
        "rewards/margins",
        "logps/chosen",
        "logps/rejected",
    } <= run.log[0].keys()


def test_the_reference_is_the_base_and_no_second_adapter_is_kept(make):
    trainer = make()
    assert list(trainer.model.peft_config) == [models.POLICY_ADAPTER] and trainer.ref_model is None
    assert not any(".ref." in name for name, _ in trainer.model.named_parameters())


def test_going_on_with_an_adapter_keeps_its_weights_and_makes_them_the_reference(make):
    """TRL rounds the adapter of a quantised model to bf16; a second round would start from a rounded first."""
    first = make()
    dpo.train_dpo(first)
    trained = state(first.model)
    second = make(model=first.model)
    after = state(second.model)
    assert_close({name: after[name] for name in trained}, trained, atol=0, rtol=0)
    copies = {n: p for n, p in second.model.named_parameters() if ".ref." in n}
    # 42 tensors: 3 layers × 7 linear layers × A and B
    assert len(copies) == 42 and not any(p.requires_grad for p in copies.values())
    for name, copy_ in copies.items():
        assert torch.equal(copy_, trained[name.replace(".ref.", ".default.")])
    second.model.eval()
    margins = second.compute_loss(second.model, batch_of(second, range(4)))
    assert margins.item() != 0 and second._metrics["eval"]["rewards/margins"][-1] == pytest.approx(
        0, abs=1e-5
    )
    run = dpo.train_dpo(second)
    assert abs(run.log[-1]["rewards/margins"]) > 0
    for name, copy_ in second.model.named_parameters():
        assert ".ref." not in name or torch.equal(
            copy_, trained[name.replace(".ref.", ".default.")]
        )
    third = make(model=second.model)
    # 42 tensors: 3 layers × 7 linear layers × A and B
    assert sum(".ref." in name for name, _ in third.model.named_parameters()) == 42


def test_ten_steps_log_what_stock_trl_logs(make):
    """The same pairs, seed and adapter in TRL's own layout, which is TRL's own code from batch to loss.

    This is the test that fails when a new TRL asks something else of model or batch.
    """
    changes = {
        "steps": 10,
        "batch_size": 4,
        "losses": ("sigmoid", "bco_pair"),
        "loss_weights": (0.8, 0.2),
    }
    stock, ours = make(packs=False, **changes), make(**changes)
    assert (
        type(stock.data_collator).__module__.startswith("trl.") and not stock.precompute_ref_logps
    )
    calls = {"stock": 0, "ours": 0}
    for name, trainer in (("stock", stock), ("ours", ours)):
        layer = trainer.model.get_base_model().get_decoder().layers[0]
        layer.register_forward_hook(lambda *_, name=name: calls.update({name: calls[name] + 1}))
    logs = [dpo.train_dpo(trainer).log for trainer in (stock, ours)]
    same = ("loss", "rewards/chosen", "rewards/rejected", "rewards/margins", "logps/chosen", "logps/rejected",
            "rewards/accuracies", "entropy", "mean_token_accuracy", "logits/chosen", "grad_norm")  # fmt: skip
    for step, (theirs, own) in enumerate(zip(*logs, strict=True)):
        for key in same:
            assert own[key] == pytest.approx(theirs[key], abs=1e-3, rel=1e-3), (step, key)
    assert calls == {
        "stock": 20,
        "ours": 10 + 8,
    }  # 32 pairs: ten steps, and the reference of eight batches, once
    assert logs[0][-1]["rewards/margins"] > 0.1
    weights = [state(trainer.model) for trainer in (stock, ours)]
    for name, weight in weights[0].items():
        assert_close(weights[1][name], weight, atol=2e-3, rtol=1e-2)


@pytest.mark.parametrize(
    "loss", ["sigmoid", "sigmoid_norm", "ipo", "hinge", "robust", "apo_zero", "sppo_hard", "aot"]
)
def test_every_loss_of_trl_comes_out_the_same(make, loss):
    """Packed against TRL's layout, with an adapter that has left zero."""
    values = []
    for packs in (True, False):
        smoothing = 0.1 if loss in SMOOTHED_LOSSES else 0.0
        trainer = make(packs=packs, losses=(loss,), label_smoothing=smoothing, beta=0.3)
        off_zero(trainer.model)
        trainer.model.eval()
        with torch.no_grad():
            values.append(float(trainer.compute_loss(trainer.model, batch_of(trainer, range(8)))))
    assert values[0] == pytest.approx(values[1], rel=1e-4)


def test_the_pure_losses_are_trls(make):
    """Our formulas on our log-probabilities against TRL's on TRL's batch, with an adapter that is not zero."""
    trainer = make(packs=False)
    off_zero(trainer.model)
    trainer.model.eval()
    batch = batch_of(trainer, range(8))
    inputs = {k: v for k, v in batch.items() if k != "completion_mask"}
    with torch.no_grad():
        logits = trainer.model(**inputs).logits
        policy = completion_logps(logits, batch["input_ids"], batch["completion_mask"]).chunk(2)
        with models.disable_adapters(trainer.model):
            other = trainer.model(**inputs).logits
            reference = completion_logps(other, batch["input_ids"], batch["completion_mask"]).chunk(
                2
            )
    lengths = batch["completion_mask"].sum(1).chunk(2)
    means = [
        [side / length for side, length in zip(pair, lengths, strict=True)]
        for pair in (policy, reference)
    ]
    chosen = token_logps(logits, batch["input_ids"], batch["completion_mask"])[:8]
    assert dpo_loss(*policy, *reference, beta=0.3)[1].abs().min() > 1e-3, (
        "policy and reference must differ"
    )
    for loss, ours in {
        "sigmoid": dpo_loss(*policy, *reference, beta=0.3)[0],
        "sigmoid_norm": dpo_loss(*means[0], *means[1], beta=0.3)[0],
        "robust": dpo_loss(*policy, *reference, beta=0.3, label_smoothing=0.1)[0],
        "bco_pair": bco_loss(*policy, *reference, beta=0.3),
        "sft": sft_loss(chosen, batch["completion_mask"][:8, 1:]),
    }.items():
        trainer.loss_types, trainer.loss_weights, trainer.beta, trainer.label_smoothing = (
            [loss],
            [1.0],
            0.3,
            0.1,
        )
        with torch.no_grad():
            assert_close(ours, trainer.compute_loss(trainer.model, batch), atol=1e-5, rtol=1e-5)


def test_our_log_probabilities_are_those_of_trls_batch(make, pairs_dataset):
    trainer = make(packs=False)
    trainer.model.eval()
    batch = batch_of(trainer, range(8))
    inputs = {k: v for k, v in batch.items() if k != "completion_mask"}
    with torch.no_grad():
        theirs = completion_logps(
            trainer.model(**inputs).logits, batch["input_ids"], batch["completion_mask"]
        )
    packer = Packer(trainer.model, trainer.processing_class, packs=True)
    ours = pair_logps(packer, pairs_dataset.select(range(8)), batch_size=3)
    assert_close(torch.tensor([*ours[0], *ours[1]]), theirs.cpu(), atol=1e-4, rtol=1e-4)


def test_the_vision_tower_runs_once_an_image_and_the_reference_once_a_pair(make, tmp_path):
    trainer = make(steps=12, cache=tmp_path / "cache")
    images = len({row["images"][0].tobytes() for row in trainer.train_dataset})
    dpo.train_dpo(trainer)
    store, features = trainer.data_collator.reference, trainer.data_collator.packer.features
    assert features.computed == images < len(trainer.train_dataset) == len(store) == 32
    again = make(cache=tmp_path / "cache")
    store = again.data_collator.reference
    assert len(store) == 32
    batch = batch_of(again, range(32))
    assert again.data_collator.packer.features.computed == 0 and store.get(batch["keys"]).shape == (
        32,
        2,
    )


def test_an_image_is_hashed_once_a_batch(make, spoilt_dataset, monkeypatch):
    """Features and reference log-probabilities are looked up by the same hash, also of spoilt images."""
    hashed = []

    def counted(images):
        hashed.append(images)
        return images_hash(images)

    for module in (caches, encoded_prompts):
        monkeypatch.setattr(module, "images_hash", counted)
    for trainer, lists in ((make(), 4), (make(dataset=spoilt_dataset, image_weight=1.0), 8)):
        hashed.clear()
        batch = trainer.data_collator([trainer.train_dataset[i] for i in range(4)])
        assert len(hashed) == lists and len(set(batch["keys"])) == 4


def test_kept_figures_are_those_of_the_reference(make):
    trainer = make()
    off_zero(trainer.model)
    batch = batch_of(trainer, range(8))
    kept = trainer._reference(batch)
    with torch.no_grad(), models.disable_adapters(trainer.model):
        logits = trainer.forward(trainer.model, batch)
    assert_close(
        kept.T.flatten(), completion_logps(logits, batch["input_ids"], batch["completion_mask"])
    )
    assert torch.equal(trainer._reference(batch), kept)


def test_a_stale_cache_is_never_read(make, tmp_path, pairs_dataset):
    """Each thing the figures depend on is changed alone: nothing that was kept before is found."""
    cache = tmp_path / "cache"
    first = make(cache=cache)
    first._reference(batch_of(first, range(8)))

    def found(trainer, **columns):
        rows = [
            {
                **pairs_dataset[i],
                **{name: change(pairs_dataset[i]) for name, change in columns.items()},
            }
            for i in range(8)
        ]
        return trainer.data_collator.reference.get(trainer.data_collator(rows)["keys"]) is not None

    assert found(make(cache=cache))
    text = lambda row: [{"role": "assistant", "content": "There are 9 cars."}]  # noqa: E731
    assert not found(make(cache=cache), chosen=text) and not found(make(cache=cache), rejected=text)
    assert not found(
        make(cache=cache), prompt=lambda row: [{"role": "user", "content": "How many?"}]
    )
    assert not found(make(cache=cache), images=lambda row: [row["images"][0].rotate(90)])
    swapped = {"chosen": lambda row: row["rejected"], "rejected": lambda row: row["chosen"]}
    assert not found(make(cache=cache), **swapped)

    base, processor = models.load_model("tiny")
    processor.image_processor.size["longest_edge"] //= 4
    assert not found(dpo.dpo_trainer(base, processor, pairs_dataset, SETTINGS, cache=cache))
    base, processor = models.load_model("tiny")
    processor.chat_template = processor.chat_template.replace("You are", "You were").replace(
        "user", "user "
    )
    assert not found(dpo.dpo_trainer(base, processor, pairs_dataset, SETTINGS, cache=cache))
    base, processor = models.load_model("tiny")
    base.get_decoder().norm.weight.data[0] += 1e-3
    assert not found(dpo.dpo_trainer(base, processor, pairs_dataset, SETTINGS, cache=cache))
    base, processor = models.load_model("tiny", four_bit=False)
    assert not found(dpo.dpo_trainer(base, processor, pairs_dataset, SETTINGS, cache=cache))
    trained = make(cache=cache)
    off_zero(trained.model)
    assert not found(make(model=trained.model, cache=cache))


def test_a_reference_file_that_a_kill_cut_short_is_gone_on_with(make, tmp_path):
    cache = tmp_path / "cache"
    first = make(cache=cache)
    batch = batch_of(first, range(8))
    kept = first._reference(batch)
    file = next(cache.glob("reference-*.jsonl"))
    file.write_text(file.read_text()[:-20])
    second = make(cache=cache)
    assert len(second.data_collator.reference) == 7
    assert_close(second._reference(batch), kept)
    keys = [json.loads(line)[0] for line in file.read_text().splitlines()[1:] if line.endswith("]")]
    assert (
        sorted(keys) == sorted(batch["keys"])
        and len(make(cache=cache).data_collator.reference) == 8
    )


def test_features_of_other_weights_or_sizes_are_not_read(tiny, tmp_path, pairs_dataset):
    model, processor = models.load_model("tiny")
    image = pairs_dataset[0]["images"][0]
    one, two = images_hash([image]), images_hash([image, image])
    features = ImageFeatures(model, processor, tmp_path)
    _, first = features.encode(["x"], [[image]], [one])[0]
    _, again = ImageFeatures(model, processor, tmp_path).encode(["y"], [[image]], [one])[0]
    assert_close(dict(again), dict(first), rtol=0, atol=0) and len(list(tmp_path.iterdir())) == 1
    next(p for n, p in model.named_parameters() if "merger" in n).data[0] += 0.1
    changed = ImageFeatures(model, processor, tmp_path)
    assert changed.key(one) != features.key(one) and changed.key(two) != changed.key(one)
    _, other = changed.encode(["x"], [[image]], [one])[0]
    assert changed.computed == 1 and not torch.equal(other["pooled.all"], first["pooled.all"])
    processor.image_processor.size["longest_edge"] //= 4
    smaller = ImageFeatures(model, processor, tmp_path)
    assert smaller.key(one) != changed.key(one)
    assert (
        len(smaller.encode(["x"], [[image]], [one])[0][1]["pooled.all"])
        == 4
        < len(other["pooled.all"])
    )


def test_a_trained_vision_tower_is_not_cached_and_gets_gradients(make, capsys):
    trainer, stock = (
        make(lora=LoraSettings(vision=True), packs=p, gradient_checkpointing=True)
        for p in (None, False)
    )
    assert (
        "vision tower is trained" in capsys.readouterr().out
        and trainer.data_collator.packer.features is None
    )
    gradients = []
    for t in (trainer, stock):
        t.model.eval()
        off_zero(t.model)
        t.compute_loss(t.model, batch_of(t, range(4))).backward()
        gradients.append({n: p.grad for n, p in t.model.named_parameters() if p.grad is not None})
    assert any("visual" in name for name in gradients[0])
    for name, gradient in gradients[1].items():
        assert_close(
            gradients[0][name], gradient, rtol=1e-3, atol=1e-4 * float(gradient.norm()) + 1e-7
        )


def test_dropout_of_the_adapter_is_kept_and_stays_out_of_the_reference(make):
    """TRL switches dropout off unless it is told not to; a second round's reference is an adapter with dropout."""
    first = make(lora=LoraSettings(dropout=0.5))
    off_zero(first.model)
    trainer = make(model=first.model)
    batch = batch_of(trainer, range(8))
    trainer.model.train()
    kept = trainer._reference(batch)
    assert trainer.model.training
    trainer.model.eval()
    trainer.compute_loss(trainer.model, batch)
    assert trainer._metrics["eval"]["rewards/margins"] == [pytest.approx(0, abs=1e-4)]
    trainer.model.train()
    losses = {float(trainer.compute_loss(trainer.model, batch).detach()) for _ in range(3)}
    assert len(losses) == 3 and torch.equal(trainer._reference(batch), kept)


def test_gradient_checkpointing_changes_nothing(make):
    weights = []
    for checkpointing in (True, False):
        trainer = make(gradient_checkpointing=checkpointing, steps=2)
        dpo.train_dpo(trainer)
        assert trainer.model.get_base_model().model.is_gradient_checkpointing == checkpointing
        weights.append(state(trainer.model))
    assert_close(weights[0], weights[1], rtol=1e-3, atol=1e-6)


# Checkpoints


class Killed(Exception):
    pass


class KillAt(dpo.TrainerCallback):
    """Ends the run in the middle of training, after a step."""

    def __init__(self, step):
        self.step = step

    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step == self.step:
            raise Killed


def same_run(first, second):
    """Equal logs, but for times; and equal weights, to the last bit."""
    (trainer, run), (other_trainer, other) = first, second
    assert run.log == other.log and run.trained_pairs == other.trained_pairs
    weights, others = (state(trainer.model) for trainer in (trainer, other_trainer))
    assert weights.keys() == others.keys()
    assert all(torch.equal(weight, others[name]) for name, weight in weights.items())


def interrupted(make, folder, step, **changes):
    """A run that is killed after `step` and gone on with by another trainer."""
    with pytest.raises(Killed):
        dpo.train_dpo(make(folder=folder, callbacks=[KillAt(step)], **changes))
    trainer = make(folder=folder, **changes)
    return trainer, dpo.train_dpo(trainer)


@pytest.mark.parametrize(
    "changes",
    [
        # 32 pairs: an epoch has four steps, and step 3 is in the middle of it
        {"checkpoint_steps": 3, "lora": LoraSettings(dropout=0.2)},
        {"checkpoint_steps": 3, "batch_size": 4, "accumulation": 2},
        {"checkpoint_steps": 4},
    ],
    ids=["in mid-epoch, with dropout", "in mid-epoch, accumulated", "between epochs"],
)
def test_a_killed_run_goes_on_as_if_nothing_had_happened(make, tmp_path, changes, capsys):
    changes = {"steps": 7} | changes
    trainer = make(**changes)
    whole = trainer, dpo.train_dpo(trainer)
    same_run(whole, interrupted(make, tmp_path, 5, **changes))
    step = changes["checkpoint_steps"]
    assert f"Going on after step {step} of 7 ({tmp_path / f'checkpoint-{step}'})." in (
        capsys.readouterr().out
    )


def test_a_second_round_goes_on_with_its_policy_and_not_with_its_reference(make, tmp_path):
    """transformers would load the frozen copy of the adapter, and leave the policy at its start."""
    first = make(steps=2)
    dpo.train_dpo(first)
    trained = state(first.model)

    def policy():
        base, _ = models.load_model("tiny")
        model = models.add_adapter(base, SETTINGS.lora)
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                parameter.copy_(trained[name])
        return model

    changes = {"steps": 5, "checkpoint_steps": 3}
    trainer = make(model=policy(), **changes)
    whole = trainer, dpo.train_dpo(trainer)
    with pytest.raises(Killed):
        dpo.train_dpo(make(model=policy(), folder=tmp_path, callbacks=[KillAt(4)], **changes))
    again = make(model=policy(), folder=tmp_path, **changes)
    same_run(whole, (again, dpo.train_dpo(again)))
    with pytest.raises(UsageError, match="of a run with other adapter"):
        make(folder=tmp_path, **changes)


def test_a_finished_run_is_loaded_and_not_trained_a_step_further(make, tmp_path, capsys):
    first = make(steps=3, folder=tmp_path)
    run = dpo.train_dpo(first)
    capsys.readouterr()
    again = make(steps=3, folder=tmp_path)
    loaded = dpo.train_dpo(again)
    same_run((first, run), (again, loaded))
    assert again.optimizer is None and not again.model.training
    assert loaded.seconds == pytest.approx(run.seconds, abs=5)
    said = f"Finished after step 3 ({tmp_path / 'checkpoint-3'}): loaded, not trained again."
    assert said in capsys.readouterr().out
    # nor in the same session, nor a third time
    same_run((first, run), (again, dpo.train_dpo(again)))
    assert len(run.log) == 3 and [p.name for p in tmp_path.iterdir()] == ["checkpoint-3"]


def breaks_off(trainer, batch, monkeypatch):
    """Let the data of a trainer raise StopIteration at a batch."""
    kind, seen = type(trainer.data_collator), []
    collate = kind.__call__

    def broken(collator, examples):
        seen.append(1)
        if len(seen) == batch:
            raise StopIteration
        return collate(collator, examples)

    monkeypatch.setattr(kind, "__call__", broken)
    return trainer


def test_a_run_whose_data_break_off_is_no_finished_run(make, monkeypatch):
    """transformers takes a StopIteration for the end of the data, and ends without a word."""
    with pytest.raises(UsageError, match=r"ended after [12] of 4 steps, and nothing asked it to"):
        dpo.train_dpo(breaks_off(make(steps=4), 3, monkeypatch))


def test_a_run_that_a_callback_stops_is_no_error(make):
    class Enough(TrainerCallback):
        def on_step_end(self, args, state, control, **kwargs):
            control.should_training_stop = state.global_step == 2

    run = dpo.train_dpo(make(steps=4, callbacks=[Enough()]))
    assert len(run.log) == 2


def other_text(row):
    return {"chosen": [row["chosen"][0] | {"content": "There are 9 cars."}]}


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"beta": 0.5}, r"beta \(1\.0, here 0\.5\)"),
        ({"learning_rate": 1e-5}, r"learning_rate \(0\.0003, here 1e-05\)"),
        ({"losses": ("ipo",)}, "losses"),
        ({"sft_weight": 0.0}, "sft_weight"),
        ({"batch_size": 4}, "batch_size"),
        ({"steps": 4}, "steps"),
        ({"lora": LoraSettings(r=4)}, r"lora\.r \(16, here 4\)"),
        ({"seed": 1}, r"seed \(0, here 1\)"),
        ({"packs": False}, r"packs \(True, here False\)"),
    ],
)
def test_another_setting_is_another_run(finished_run, make, change, named):
    with pytest.raises(UsageError, match=f"of a run with other {named}"):
        make(folder=finished_run, **({"steps": 2} | change))


@pytest.mark.parametrize(
    "change",
    [
        lambda data: data.select(range(31)),
        lambda data: data.select([1, 0, *range(2, 32)]),
        lambda data: data.map(other_text),
        lambda data: data.rename_columns({"chosen": "rejected", "rejected": "chosen"}),
    ],
    ids=["fewer", "in another order", "another text", "swapped labels"],
)
def test_other_pairs_are_another_run(finished_run, make, pairs_dataset, change):
    with pytest.raises(UsageError, match=r"of a run with other data\. Put that back"):
        make(folder=finished_run, steps=2, dataset=change(pairs_dataset))


@pytest.fixture(scope="module")
def finished_run(pairs_dataset, tmp_path_factory):
    """Folder of two steps on the pairs of the shipped preferences."""
    folder = tmp_path_factory.mktemp("finished")
    settings = dataclasses.replace(SETTINGS, steps=2)
    base, processor = models.load_model("tiny")
    dpo.train_dpo(dpo.dpo_trainer(base, processor, pairs_dataset, settings, folder=folder))
    return folder


def test_another_base_or_processor_is_another_run(finished_run, pairs_dataset):
    settings = dataclasses.replace(SETTINGS, steps=2)
    for named in ("processor", "base model"):
        model, processor = models.load_model("tiny")
        if named == "processor":
            processor.image_processor.size["longest_edge"] //= 4
        else:
            model.get_decoder().norm.weight.data[0] += 1e-3
        with pytest.raises(UsageError, match=f"of a run with other {named}. Put that back"):
            dpo.dpo_trainer(model, processor, pairs_dataset, settings, folder=finished_run)


def test_an_image_that_changes_under_its_path_makes_another_run(make, tmp_path):
    records = read_records(ROOT / "data" / "traffic" / "preferences_train.jsonl")[:3]
    image = tmp_path / "scene.png"
    shutil.copy(records[0].image_paths[0], image)
    records = [record.model_copy(update={"images": [str(image)]}) for record in records]
    run = {"steps": 1, "batch_size": 2, "folder": tmp_path / "run"}
    dpo.train_dpo(make(dataset=to_trl(records), **run))
    make(dataset=to_trl(records), **run)
    shutil.copy(read_records(VALID)[5].image_paths[0], image)
    with pytest.raises(UsageError, match="of a run with other data"):
        make(dataset=to_trl(records), **run)


def test_another_run_is_set_aside_where_the_user_says_so(make, tmp_path, capsys):
    run = tmp_path / "seed-0"
    dpo.train_dpo(make(steps=2, folder=run))
    changed = make(steps=2, beta=0.2, folder=run, replace_other=True)
    log = dpo.train_dpo(changed).log
    assert "seed-0.old-1" in capsys.readouterr().out
    assert (tmp_path / "seed-0.old-1" / "checkpoint-2" / "identity.json").exists()
    fresh = make(steps=2, beta=0.2)
    assert log == dpo.train_dpo(fresh).log, "nothing of the old run is in it"


def test_a_damaged_checkpoint_is_named_and_the_one_before_is_gone_on_with(make, tmp_path, capsys):
    changes = {"steps": 5, "checkpoint_steps": 2}
    trainer = make(**changes)
    whole = trainer, dpo.train_dpo(trainer)
    with pytest.raises(Killed):
        dpo.train_dpo(make(folder=tmp_path, callbacks=[KillAt(5)], **changes))
    newest = tmp_path / "checkpoint-4"
    weights = newest / "adapter_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"x")
    # of a run that was killed while it wrote
    (tmp_path / "checkpoint-6").mkdir()
    capsys.readouterr()
    again = make(folder=tmp_path, **changes)
    same_run(whole, (again, dpo.train_dpo(again)))
    said = [line for line in capsys.readouterr().out.splitlines() if "checkpoint-" in line]
    assert [line.split(":")[0] for line in said[:2]] == [
        f"⚠️  {tmp_path / 'checkpoint-6'}",
        f"⚠️  {newest}",
    ]
    assert "Going on after step 2 of 5" in said[2] and len(said) == 3


def test_how_often_a_checkpoint_is_written_makes_no_other_run(make, tmp_path):
    with pytest.raises(Killed):
        run = make(steps=3, folder=tmp_path, checkpoint_steps=1, callbacks=[KillAt(3)])
        dpo.train_dpo(run)
    assert len(dpo.train_dpo(make(steps=3, folder=tmp_path)).log) == 3


def test_without_a_folder_nothing_is_written(make, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    dpo.train_dpo(make(steps=1, checkpoint_steps=1))
    assert not list(tmp_path.iterdir())


def test_losses_are_those_that_trl_knows(make, monkeypatch):
    assert set(dpo.DPO_LOSSES) == set(get_args(DPOLoss))
    with pytest.raises(UsageError, match="sigmoyd"):
        make(losses=("sigmoyd",))
    monkeypatch.setattr(dpo, "DPO_LOSSES", ("hinge", "ipo"))
    with pytest.raises(UsageError, match="unknown loss 'sigmoid': choose from hinge, ipo"):
        make()


@pytest.fixture(scope="module")
def spoilt_dataset(tmp_path_factory):
    """Eight pairs with a blank image to compare with."""
    source = ROOT / "data" / "traffic" / "preferences_train.jsonl"
    folder = tmp_path_factory.mktemp("spoilt")
    return to_trl(add_image_negatives(read_records(source)[:6], folder, ("blank",)))


def test_mdpo_is_the_sum_of_its_three_terms(make, spoilt_dataset):
    """Against the terms computed with a plain forward of the spoilt images."""
    trainer = make(
        dataset=spoilt_dataset,
        losses=("sigmoid",),
        sft_weight=0.0,
        image_weight=0.7,
        anchor_weight=0.3,
        beta=0.3,
    )
    off_zero(trainer.model)
    trainer.model.eval()
    rows = trainer.train_dataset.select(range(6))
    spoilt = rows.map(lambda row: {"images": row["negative_images"]})
    with torch.no_grad():
        loss = float(trainer.compute_loss(trainer.model, batch_of(trainer, range(6))))
    right = evaluate_pairs(trainer.model, trainer.processing_class, rows)
    wrong = evaluate_pairs(trainer.model, trainer.processing_class, spoilt)
    pairs, blank = (
        {n: torch.tensor(v) for n, v in vars(result).items()} for result in (right, wrong)
    )
    text, _ = dpo_loss(
        pairs["chosen"],
        pairs["rejected"],
        pairs["reference_chosen"],
        pairs["reference_rejected"],
        0.3,
    )
    image, margin = dpo_loss(
        pairs["chosen"], blank["chosen"], pairs["reference_chosen"], blank["reference_chosen"], 0.3
    )
    expected = (
        text + 0.7 * image + 0.3 * anchor_loss(pairs["chosen"], pairs["reference_chosen"], 0.3)
    )
    assert loss == pytest.approx(float(expected), rel=1e-4)
    metrics = trainer._metrics["eval"]
    assert metrics["image/accuracies"] == [pytest.approx(float((margin > 0).float().mean()))]
    assert metrics["rewards/margins"][-1] == pytest.approx(
        0.3
        * float(
            (
                right.chosen - right.reference_chosen - right.rejected + right.reference_rejected
            ).mean()
        ),
        rel=1e-3,
    )


def test_mdpo_trains_and_logs_the_image_terms(make, spoilt_dataset):
    trainer = make(
        dataset=spoilt_dataset, image_weight=1.0, anchor_weight=1.0, steps=10, batch_size=4
    )
    log = dpo.train_dpo(trainer).log
    assert log[-1]["image/margins"] > log[0]["image/margins"] == pytest.approx(0, abs=1e-5)


def test_mdpo_without_spoilt_images_is_refused(make):
    trainer = make(image_weight=1.0)
    with pytest.raises(UsageError, match=r"negative_images.*add_image_negatives"):
        dpo.train_dpo(trainer)


def test_mdpo_in_the_plain_layout_is_the_same(make, spoilt_dataset):
    losses, gradients = [], []
    for packs in (True, False):
        trainer = make(dataset=spoilt_dataset, image_weight=0.7, anchor_weight=0.3, packs=packs)
        assert trainer.data_collator.packer.packs == packs
        off_zero(trainer.model)
        trainer.model.eval()
        loss = trainer.compute_loss(trainer.model, batch_of(trainer, range(4)))
        loss.backward()
        losses.append(loss.detach())
        gradients.append([p.grad for p in trainer.model.parameters() if p.requires_grad])
    assert_close(*losses)
    for ours, theirs in zip(*gradients, strict=True):
        assert_close(ours, theirs, rtol=1e-3, atol=1e-5 * float(theirs.norm()) + 1e-7)


def test_a_model_that_cannot_pack_gets_a_row_for_each_answer(make, monkeypatch):
    """With the suite's own tokens and a reference that is asked once, unlike in TRL's layout."""
    packed = make()
    monkeypatch.setattr("helpers.models.packer.can_pack", lambda *_: False)
    plain = make()
    assert not plain.data_collator.packer.packs
    losses = []
    for trainer in (packed, plain):
        off_zero(trainer.model)
        trainer.model.eval()
        batch = batch_of(trainer, range(4))
        losses.append(float(trainer.compute_loss(trainer.model, batch)))
        assert len(trainer.data_collator.reference) == 4
    assert len(batch["packed"].inputs["input_ids"]) == 8  # 4 pairs
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)


def test_presets_are_configurations_that_trl_takes(tmp_path):
    for name, settings in DPO_PRESETS.items():
        config = dpo.dpo_config(settings, 0, tmp_path)
        assert len(config.loss_type) == len(config.loss_weights) and config.max_length is None, name
    assert dpo.dpo_config(dpo_preset("mpo"), 0, tmp_path).loss_type == [
        "sigmoid",
        "bco_pair",
        "sft",
    ]
    assert issubclass(dpo.VLMDPOTrainer, DPOTrainer)


def test_four_pairs_can_be_learnt_by_heart(pairs_dataset):
    """The smallest proof that gradients point the right way: loss far under ln 2, every pair preferred."""
    model, processor = models.load_model("tiny")
    settings = dataclasses.replace(
        SETTINGS, steps=25, batch_size=4, sft_weight=0.0, learning_rate=1e-3
    )
    four = pairs_dataset.select(range(4))
    trainer = dpo.dpo_trainer(model, processor, four, settings)
    run = dpo.train_dpo(trainer)
    assert run.log[-1]["loss"] < 0.1
    assert evaluate_pairs(trainer.model, processor, four).accuracy.value == 1


def test_the_same_seed_gives_the_same_run(make):
    first, second = (dpo.train_dpo(make()).log for _ in range(2))
    assert [row["loss"] for row in first] == pytest.approx(
        [row["loss"] for row in second], abs=1e-6
    )
