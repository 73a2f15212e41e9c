"""The loop of the reward model: what moves and what stays, kills, and when it stops."""

import dataclasses

import numpy as np
import pytest
import torch
from PIL import Image
from small_rewards import PATH, QUICK, trainer, weights
from torch.testing import assert_close

from helpers import models
from helpers.config import LoraSettings, RewardSettings
from helpers.data.preferences import read_records
from helpers.data.record import PreferenceRecord, resolve_images
from helpers.files import UsageError
from helpers.models import POOLINGS
from helpers.rewards import reward_model
from helpers.rewards.reward_model import pair_gaps, pair_hits, score_records
from helpers.statistics import proportion
from helpers.training.reward import RewardTrainer, idle_settings, losses_of

pytestmark = pytest.mark.heavy(reason="trains the tiny model")


@pytest.fixture(scope="module")
def records():
    return read_records(PATH)[:24]


def made(number, choose, folder):
    """Pairs whose better answer `choose` draws, on one grey image."""
    Image.new("RGB", (56, 56), "grey").save(folder / "grey.png")
    rows = []
    for i in range(number):
        texts = [f"Yes, {i} cars.", f"No, {i} buses."]
        better = choose(i)
        rows.append(
            {
                "image": "grey.png",
                "prompt": "How many?",
                "chosen": texts[better],
                "rejected": texts[1 - better],
            }
        )
    path = folder / "made.jsonl"
    made_up = [PreferenceRecord.model_validate(row | {"id": str(i)}) for i, row in enumerate(rows)]
    return path, [
        resolve_images(record, path, line) for line, record in enumerate(made_up, start=1)
    ]


def test_training_moves_adapter_and_head_and_nothing_else(records):
    model, processor = models.load_model("tiny")
    policy = models.add_adapter(model, LoraSettings(r=4))
    base = {id(p) for p in model.parameters()}
    before = {name: value.detach().clone() for name, value in policy.named_parameters()}
    run = trainer((policy, processor), records)
    assert run.reward.backbone is policy and base <= {
        id(p) for p in run.reward.backbone.parameters()
    }
    start = weights(run.reward)
    assert {name.split(".")[0] for name in start} == {"base_model", "head"}
    run.train()
    assert all(not torch.equal(value, start[name]) for name, value in weights(run.reward).items())
    after = dict(policy.named_parameters())
    assert all(torch.equal(after[name], value) for name, value in before.items()), (
        "base and policy stay as they are"
    )
    assert policy.active_adapter == models.POLICY_ADAPTER
    assert [n for n, p in policy.named_parameters() if p.requires_grad] == [
        n for n in before if ".default." in n
    ]
    with run.reward.use_adapter():
        assert policy.active_adapter == "reward"


@pytest.mark.parametrize("head", ["mlp", "fusion"])
@pytest.mark.parametrize("pooling", POOLINGS)
def test_every_pooling_is_trained_with_its_own_weights(records, pooling, head):
    settings = dataclasses.replace(QUICK, pooling=pooling, head=head, evaluations=1)
    # of three steps, as the first one moves only one half of an adapter
    run = trainer(models.load_model("tiny"), records[:12], settings)
    start = weights(run.reward)
    assert ("pooling.query" in start) == (pooling == "attention")
    run.train()
    assert all(not torch.equal(value, start[name]) for name, value in weights(run.reward).items())


def first_step(run):
    """Loss and gradients of the first step, before they are clipped."""
    found, clip = {}, run.accelerator.clip_grad_norm_

    def noted(weights, norm):
        found.update({name: value.grad.clone() for name, value in run.weights.items()})
        return clip(weights, norm)

    run.accelerator.clip_grad_norm_ = noted
    return run.train().log[0]["loss"], found


def test_accumulated_gradients_are_those_of_the_full_batch(records):
    """A source project divided by the number of batches although they held different numbers of pairs."""
    model, found = models.load_model("tiny"), []
    uneven = [
        r.model_copy(update={"answers": r.answers[:2], "ranking": [[0], [1]]}) if i % 3 else r
        for i, r in enumerate(records[:8])
    ]
    # without dropout, of which every piece would draw its own
    for size, pieces in ((8, 1), (2, 4), (3, 3)):
        changes = {"head": "linear", "batch_size": size, "accumulation": pieces, "evaluations": 1}
        run = trainer(model, uneven, dataclasses.replace(QUICK, **changes))
        assert len(list(run.pieces(uneven))) == pieces
        found.append(first_step(run))
    for loss, gradients in found[1:]:
        assert loss == pytest.approx(found[0][0], rel=1e-5)
        for name, gradient in gradients.items():
            assert_close(gradient, found[0][1][name], rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize("head", ["mlp", "fusion"])
def test_gradient_checkpointing_changes_no_number(records, head):
    """Nor does dropout: what is computed again is drawn again."""
    found, settings = (
        [],
        dataclasses.replace(QUICK, head=head, batch_size=4, epochs=1, evaluations=1),
    )
    settings = dataclasses.replace(settings, lora=dataclasses.replace(settings.lora, dropout=0.2))
    for saving in (False, True):
        run = trainer(
            models.load_model("tiny"),
            records[:8],
            dataclasses.replace(settings, gradient_checkpointing=saving),
        )
        run.train()
        assert run.reward.backbone.is_gradient_checkpointing == saving
        found.append((run.run.log, weights(run.reward)))
    assert [row["loss"] for row in found[1][0]] == pytest.approx(
        [row["loss"] for row in found[0][0]], rel=1e-4
    )
    for name, value in found[0][1].items():
        assert_close(found[1][1][name], value, rtol=1e-3, atol=1e-4, msg=name)


def test_each_epoch_has_its_own_order_and_sees_every_record_once(records):
    run = trainer(models.load_model("tiny"), records, dataclasses.replace(QUICK, epochs=2))
    epochs = []
    for epoch in range(2):
        steps = range(6 * epoch, 6 * epoch + 6)
        epochs.append([record.id for step in steps for record in run.records_of_step(step)])
    assert sorted(epochs[0]) == sorted(epochs[1]) == sorted(record.id for record in records)
    assert epochs[0] != epochs[1]


def test_numbers_that_are_not_finite_change_no_weight_and_end_the_run(records, monkeypatch):
    settings = dataclasses.replace(QUICK, epochs=3)
    run = trainer(models.load_model("tiny"), records, settings)
    before = weights(run.reward)
    clip = run.accelerator.clip_grad_norm_

    def broken(parameters, norm):
        return clip(parameters, norm) * float("nan")

    monkeypatch.setattr(run.accelerator, "clip_grad_norm_", broken)
    with pytest.raises(UsageError, match=r"gradient nan at step 8, and nothing finite for 8 steps"):
        run.train()
    assert all(torch.equal(value, before[name]) for name, value in weights(run.reward).items())


# Checkpoints


class Killed(Exception):
    pass


def kill_at(run, step, monkeypatch):
    """The run ends in the middle of that step, counted from 0."""
    records_of_step = run.records_of_step

    def killed(number):
        if number == step:
            raise Killed
        return records_of_step(number)

    monkeypatch.setattr(run, "records_of_step", killed)
    with pytest.raises(Killed):
        run.train()


def same_run(first, second):
    """Equal logs, but for times; and equal weights, to the last bit."""
    assert first.step == second.step
    for name in ("log", "evaluations", "best_step"):
        assert getattr(first.run, name) == getattr(second.run, name)
    ours = weights(second.reward)
    assert all(torch.equal(value, ours[name]) for name, value in weights(first.reward).items())


@pytest.mark.parametrize(
    "changes",
    [
        # 6 steps an epoch, and an evaluation after 4 and 8; the MLP has dropout
        {"epochs": 2, "evaluations": 3},
        {"epochs": 4, "evaluations": 3, "accumulation": 2, "objective": "listwise"},
        {"epochs": 2, "evaluations": 2, "weight_decay": 0.1, "warmup_share": 0.5},
    ],
    ids=["in mid-epoch", "in mid-epoch, accumulated", "between epochs"],
)
def test_a_resumed_training_is_the_one_that_was_not_interrupted(
    records, tmp_path, monkeypatch, changes, capsys
):
    settings = dataclasses.replace(QUICK, **changes)
    whole = trainer(models.load_model("tiny"), records, settings)
    whole.train()
    interrupted = trainer(models.load_model("tiny"), records, settings, folder=tmp_path)
    kill_at(interrupted, 9, monkeypatch)
    resumed = trainer(models.load_model("tiny"), records, settings, folder=tmp_path)
    resumed.train()
    same_run(whole, resumed)
    assert resumed.step == 12 and "Going on after step " in capsys.readouterr().out


def test_a_run_that_stopped_early_is_loaded_and_not_trained_a_step_further(
    records, tmp_path, capsys
):
    settings = dataclasses.replace(QUICK, epochs=4, evaluations=12, patience=2)
    run = trainer(models.load_model("tiny"), records, settings, folder=tmp_path)
    run.train()
    assert run.step < run.steps
    again = trainer(models.load_model("tiny"), records, settings, folder=tmp_path)
    again.train()
    same_run(run, again)
    assert f"Finished after step {run.step} (" in capsys.readouterr().out
    assert again.run.seconds == pytest.approx(run.run.seconds, abs=5)
    assert len(list(tmp_path.glob("checkpoint-*"))) == 2


@pytest.fixture(scope="module")
def finished_run(records, tmp_path_factory):
    folder = tmp_path_factory.mktemp("finished")
    trainer(models.load_model("tiny"), records, QUICK, folder=folder).train()
    return folder


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"learning_rate": 1e-4}, r"learning_rate \(0\.002, here 0\.0001\)"),
        ({"objective": "focal"}, r"objective \('bradley_terry', here 'focal'\)"),
        ({"head": "linear"}, "head"),
        ({"pooling": "last"}, r"pooling \(mean, here last\)"),
        ({"pooling": "attention"}, r"pooling"),
        ({"epochs": 2}, "epochs"),
        ({"margin_weight": 1.0}, "margin_weight"),
        ({"lora": LoraSettings(r=3)}, r"lora\.r"),
    ],
)
def test_another_setting_is_another_run(records, finished_run, change, named):
    settings = dataclasses.replace(QUICK, **change)
    with pytest.raises(UsageError, match=f"of a run with other {named}"):
        trainer(models.load_model("tiny"), records, settings, folder=finished_run)


def test_other_data_seeds_and_weights_are_other_runs(records, finished_run):
    def refused(named, rows=records, held_out=records[:8], seed=0, first=0, own=QUICK, **how):
        model = models.load_model("tiny")
        reward = reward_model.new_reward_model(*model, own, first, **how)
        with pytest.raises(UsageError, match=rf"of a run with other {named}\. Put that back"):
            RewardTrainer(reward, rows, held_out, QUICK, seed, finished_run)

    refused("data", rows=records[1:])
    refused("held_out", held_out=records[:7])
    swapped = [
        record.model_copy(update={"ranking": (record.ranking or [])[::-1]}) for record in records
    ]
    refused("data", rows=swapped)
    refused(r"seed \(0, here 1\)", seed=1, first=1)
    refused("first_weights", first=1)
    refused(r"sees_images \(True, here False\)", sees_images=False)
    # what the model does counts, whatever the settings say
    refused(r"pooling \(mean, here last\)", own=dataclasses.replace(QUICK, pooling="last"))


def test_another_processor_is_another_run(records, finished_run):
    model, processor = models.load_model("tiny")
    processor.image_processor.size["longest_edge"] //= 4
    with pytest.raises(UsageError, match="of a run with other processor"):
        trainer((model, processor), records, folder=finished_run)


def test_an_image_that_changes_under_its_path_makes_another_run(tmp_path):
    _, rows = made(12, lambda i: 0, tmp_path)
    settings = dataclasses.replace(QUICK, evaluations=1)
    trainer(models.load_model("tiny"), rows, settings, folder=tmp_path / "run").train()
    trainer(models.load_model("tiny"), rows, settings, folder=tmp_path / "run")
    Image.new("RGB", (56, 56), "white").save(tmp_path / "grey.png")
    with pytest.raises(UsageError, match="of a run with other data, held_out"):
        trainer(models.load_model("tiny"), rows, settings, folder=tmp_path / "run")


def test_another_run_is_set_aside_where_the_user_says_so(records, tmp_path):
    folder = tmp_path / "mlp"
    settings = dataclasses.replace(QUICK, evaluations=1)
    trainer(models.load_model("tiny"), records[:12], settings, folder=folder).train()
    run = trainer(models.load_model("tiny"), records, settings, folder=folder, replace_other=True)
    run.train()
    fresh = trainer(models.load_model("tiny"), records, settings)
    fresh.train()
    same_run(run, fresh)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["mlp", "mlp.old-1"]


def test_a_damaged_checkpoint_is_named_and_the_one_before_is_gone_on_with(
    records, tmp_path, capsys
):
    settings = dataclasses.replace(QUICK, evaluations=3)
    whole = trainer(models.load_model("tiny"), records, settings, folder=tmp_path)
    whole.train()
    state = tmp_path / "checkpoint-6" / "state.pt"
    state.write_bytes(state.read_bytes()[:-100])
    again = trainer(models.load_model("tiny"), records, settings, folder=tmp_path)
    again.train()
    same_run(whole, again)
    said = [line for line in capsys.readouterr().out.splitlines() if "checkpoint-" in line]
    assert "checkpoint-6: damaged" in said[0] and "Going on after step 4 of 6" in said[1]


def test_it_stops_when_held_out_accuracy_does_not_rise_and_keeps_the_best(records, monkeypatch):
    settings = dataclasses.replace(QUICK, epochs=10, evaluations=60, patience=3)
    run = trainer(models.load_model("tiny"), records, settings)
    accuracies, kept = iter([0.5, 0.7, 0.6, 0.7, 0.6]), []

    def evaluate():
        kept.append(weights(run.reward))
        return next(accuracies), 0.0

    monkeypatch.setattr(run, "held_out_accuracy", evaluate)
    result = run.train()
    assert run.step == 5 and result.best_step == 2
    assert all(torch.equal(value, kept[1][name]) for name, value in weights(run.reward).items())


def test_made_up_pairs_are_learnt_and_random_labels_are_not(tmp_path):
    settings = dataclasses.replace(QUICK, epochs=3, batch_size=16)
    for choose, learnt in (
        (lambda i: 0, True),
        (lambda i: np.random.default_rng([7, i]).integers(2), False),
    ):
        _, rows = made(200, choose, tmp_path)
        reward = reward_model.new_reward_model(*models.load_model("tiny"), settings)
        RewardTrainer(reward, rows[:120], rows[:8], settings).train()
        found = pair_hits(pair_gaps(rows[120:], score_records(reward, rows[120:])))
        share = proportion(found.sum(), len(found))
        assert share.value > 0.95 if learnt else share.low < 0.5 < share.high


def test_margins_smoothing_and_centring_reach_the_loss(records):
    record = records[0].model_copy(deep=True)
    for place, answer in enumerate(record.answers):
        answer.score = 1.0 if place in record.ranking[0] else 0.25
    scores = torch.tensor([1.0, -0.5, 0.5])[: len(record.answers)]
    plain = RewardSettings()
    base = losses_of(scores, [record], plain)
    for change in (
        {"margin_weight": 1.0},
        {"label_smoothing": 0.2},
        {"centring_weight": 0.1},
        {"objective": "focal"},
    ):
        assert not torch.allclose(
            losses_of(scores, [record], dataclasses.replace(plain, **change)), base
        )
    assert len(losses_of(scores, [record], plain)) == len(list(record.tier_pairs()))


def test_records_without_a_pair_are_left_out_and_an_error_if_there_are_no_others(records):
    tied = [record.model_copy(update={"ranking": None}) for record in records[:3]]
    reward = reward_model.new_reward_model(*models.load_model("tiny"), QUICK)
    mixed = RewardTrainer(reward, [*tied, *records[3:8]], [*tied, *records[8:10]], QUICK)
    assert mixed.records == records[3:8] and mixed.held_out == records[8:10]
    assert np.isfinite(mixed.train().evaluations[-1]["loss"])
    with pytest.raises(UsageError, match="no pair of a better and a worse answer"):
        trainer(models.load_model("tiny"), tied)
    with pytest.raises(UsageError, match="unknown objective 'contrastive'"):
        trainer(
            models.load_model("tiny"), records, dataclasses.replace(QUICK, objective="contrastive")
        )


@pytest.mark.parametrize(
    ("changes", "idle"),
    [
        ({}, []),
        ({"label_smoothing": 0.1, "margin_weight": 1.0}, []),
        ({"objective": "focal", "label_smoothing": 0.1}, ["label_smoothing"]),
        ({"objective": "focal", "focal_gamma": 3.0}, []),
        ({"focal_gamma": 3.0}, ["focal_gamma"]),
        (
            {"objective": "listwise", "label_smoothing": 0.1, "centring_weight": 0.1},
            ["label_smoothing", "centring_weight"],
        ),
    ],
)
def test_settings_that_the_objective_does_not_read_are_named(changes, idle):
    assert idle_settings(RewardSettings(**changes)) == idle
