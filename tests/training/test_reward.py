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
from helpers.rewards import reward_model
from helpers.rewards.reward_model import pair_gaps, pair_hits, score_records
from helpers.statistics import proportion
from helpers.training.reward import RewardTrainer, losses_of


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


def test_accumulated_gradients_are_those_of_the_full_batch(records):
    """A source project divided by the number of batches although they held different numbers of pairs."""
    model, found = models.load_model("tiny"), []
    uneven = [
        r.model_copy(update={"answers": r.answers[:2], "ranking": [[0], [1]]}) if i % 3 else r
        for i, r in enumerate(records[:8])
    ]
    for size in (8, 2, 3):
        settings = dataclasses.replace(QUICK, head="linear", batch_size=size)
        run = trainer(model, uneven, settings)
        with run.reward.use_adapter():
            run.reward.eval()  # no dropout
            figures = run.gradients(uneven)
        found.append(
            (figures["loss"], {name: value.grad.clone() for name, value in run.weights.items()})
        )
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


class Killed(Exception):
    pass


def test_a_resumed_training_is_the_one_that_was_not_interrupted(records, tmp_path, monkeypatch):
    settings = dataclasses.replace(QUICK, epochs=2)  # 6 steps an epoch; MLP with dropout
    whole = trainer(models.load_model("tiny"), records, settings)
    expected = whole.train()

    interrupted = trainer(
        models.load_model("tiny"), records, settings, checkpoint=tmp_path / "run.pt"
    )
    gradients, steps = interrupted.gradients, []  # asked for once a step

    def killed_at_nine(rows):
        steps.append(1)
        if len(steps) > 9:
            raise Killed
        return gradients(rows)

    monkeypatch.setattr(interrupted, "gradients", killed_at_nine)
    with pytest.raises(Killed):
        interrupted.train()
    resumed = trainer(models.load_model("tiny"), records, settings, checkpoint=tmp_path / "run.pt")
    found = resumed.train()
    assert (
        resumed.step == whole.step == 12
        and found.log == expected.log
        and found.evaluations == expected.evaluations
    )
    assert all(
        torch.equal(value, weights(whole.reward)[name])
        for name, value in weights(resumed.reward).items()
    )
    with pytest.raises(UsageError, match="of a run with other settings"):
        trainer(models.load_model("tiny"), records, QUICK, checkpoint=tmp_path / "run.pt").train()


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
        _, rows = made(300, choose, tmp_path)
        reward = reward_model.new_reward_model(*models.load_model("tiny"), settings)
        RewardTrainer(reward, rows[:200], rows[:20], settings).train()
        found = pair_hits(pair_gaps(rows[200:], score_records(reward, rows[200:])))
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
