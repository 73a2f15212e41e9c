import dataclasses
import json
import os
import subprocess
import sys

import numpy as np
import pytest
import torch
from architectures import BUILDERS, build
from PIL import Image
from shipped import TRAFFIC
from torch.testing import assert_close

from helpers import models
from helpers.config import LoraSettings, RewardSettings, reward_preset
from helpers.data.preferences import PreferenceRecord, read_records
from helpers.files import ROOT, UsageError
from helpers.models.heads import HEADS, fused_layers
from helpers.rewards import reward_model
from helpers.rewards.reward_model import head_hash, pair_gaps, pair_hits, score_records
from helpers.statistics import proportion
from helpers.training.reward import OBJECTIVES, RewardTrainer, losses_of

PATH = TRAFFIC / "preferences_train.jsonl"
QUICK = dataclasses.replace(
    reward_preset("tiny"), epochs=1, batch_size=4, evaluations=2, learning_rate=2e-3, warmup_share=0.0
)


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
            {"image": "grey.png", "prompt": "How many?", "chosen": texts[better], "rejected": texts[1 - better]}
        )
    return folder / "made.jsonl", [PreferenceRecord.model_validate(row | {"id": str(i)}) for i, row in enumerate(rows)]


def trainer(model, records, settings=QUICK, seed=0, **options):
    reward = reward_model.new_reward_model(*model, settings, seed)
    return RewardTrainer(reward, records, records[:8], settings, seed, **options)


def flat(scores):
    return torch.tensor([value for row in scores for value in row])


def weights(reward):
    return {name: value.detach().clone() for name, value in reward.trainable_parameters().items()}


# --- the model ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("head", HEADS)
def test_heads_start_small_and_are_trained(head):
    torch.manual_seed(0)
    module = HEADS[head](64)
    matrices = [value for name, value in module.named_parameters() if name.endswith("weight") and value.ndim == 2]
    assert 0.015 < torch.cat([m.flatten() for m in matrices]).std() < 0.025
    scores = module(torch.randn(5, module.layers, 64))
    assert scores.shape == (5,)
    scores.sum().backward()
    assert all(value.grad is not None and value.grad.abs().sum() > 0 for value in module.parameters())


def test_layers_to_fuse():
    assert fused_layers(28, 4) == (7, 14, 21, 28) and fused_layers(3, 4) == (1, 2, 3) and fused_layers(28, 1) == ()


def test_training_moves_adapter_and_head_and_nothing_else(records):
    model, processor = models.load_model("tiny")
    policy = models.add_adapter(model, LoraSettings(r=4))
    base = {id(p) for p in model.parameters()}
    before = {name: value.detach().clone() for name, value in policy.named_parameters()}
    run = trainer((policy, processor), records)
    assert run.reward.backbone is policy and base <= {id(p) for p in run.reward.backbone.parameters()}
    start = weights(run.reward)
    assert {name.split(".")[0] for name in start} == {"base_model", "head"}
    run.train()
    assert all(not torch.equal(value, start[name]) for name, value in weights(run.reward).items())
    after = dict(policy.named_parameters())
    assert all(torch.equal(after[name], value) for name, value in before.items()), "base and policy stay as they are"
    assert policy.active_adapter == models.POLICY_ADAPTER
    assert [n for n, p in policy.named_parameters() if p.requires_grad] == [n for n in before if ".default." in n]
    with run.reward.use_adapter():
        assert policy.active_adapter == "reward"


def test_a_head_that_is_not_there():
    with pytest.raises(UsageError, match=r"unknown head 'deep': choose from linear, mlp, fusion"):
        reward_model.new_reward_model(*models.load_model("tiny"), dataclasses.replace(QUICK, head="deep"))


def test_the_image_changes_the_score_and_the_text_only_twin_has_none(records):
    run = trainer(models.load_model("tiny"), records)
    run.train()
    own = score_records(run.reward, records[:4])
    grey = [[Image.new("RGB", (112, 112), "grey")]] * 4
    assert (flat(own) - flat(score_records(run.reward, records[:4], grey))).abs().max() > 1e-3
    twin = reward_model.new_reward_model(*models.load_model("tiny"), QUICK, sees_images=False)
    blind = [score_records(twin, records[:4], images) for images in (None, grey)]
    assert blind[0] == blind[1]


def test_scores_do_not_depend_on_the_batch(records):
    reward = reward_model.new_reward_model(*models.load_model("tiny"), QUICK)
    together, alone = (score_records(reward, records[:9], batch_size=size) for size in (9, 1))
    assert_close(flat(together), flat(alone), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("name", BUILDERS)
@pytest.mark.parametrize("head", HEADS)
def test_every_head_on_every_architecture(name, head, records, tmp_path):
    """Train, save, reload, score; the objectives take turns."""
    objective = list(OBJECTIVES)[(list(HEADS).index(head) + list(BUILDERS).index(name)) % len(OBJECTIVES)]
    settings = dataclasses.replace(QUICK, head=head, objective=objective)
    run = trainer(build(name), records[:8], settings)
    start = weights(run.reward)
    run.train()
    assert all(np.isfinite(row["loss"]) for row in run.run.log)
    assert any(not torch.equal(value, start[name]) for name, value in weights(run.reward).items())
    scores = score_records(run.reward, records[:3])
    folder = reward_model.save_reward_model(run.reward, tmp_path / "reward", settings)
    again = score_records(reward_model.load_reward_model(*build(name), folder), records[:3])
    assert_close(flat(again), flat(scores), rtol=1e-5, atol=1e-6)


# --- saving ------------------------------------------------------------------------------------------

SCORE = """
import json, sys
from pathlib import Path
from helpers import models
from helpers.data.preferences import read_records
from helpers.rewards import reward_model
path = Path(sys.argv[2])
reward = reward_model.load_reward_model(*models.load_model("tiny"), Path(sys.argv[1]))
print(json.dumps(reward_model.score_records(reward, read_records(path)[:6])))
"""


def test_a_new_process_gives_the_same_scores(records, tmp_path):
    """A source project evaluated a fresh random head: its trained one was never saved."""
    run = trainer(models.load_model("tiny"), records)
    run.train()
    scores = score_records(run.reward, records[:6])
    folder = reward_model.save_reward_model(run.reward, tmp_path / "reward", QUICK, {"accuracy": 0.9})
    assert not list(folder.rglob("*.bin")) and not list(folder.rglob("*.pt"))
    about = json.loads((folder / "about.json").read_text())
    assert about["head_hash"] == head_hash(run.reward) and about["accuracy"] == 0.9
    assert {"head.score.0.weight", "head.score.3.weight"} <= set(about["trained"])
    out = subprocess.run(
        [sys.executable, "-c", SCORE, str(folder), str(PATH)], cwd=ROOT, capture_output=True, text=True, check=True,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    assert_close(
        flat(json.loads(out.stdout.splitlines()[-1])),
        flat(scores),
        rtol=1e-5,
        atol=1e-5,
    )
    other = reward_model.new_reward_model(*models.load_model("tiny"), QUICK, seed=1)
    assert head_hash(other) != about["head_hash"]


def test_a_folder_that_does_not_fit_is_an_error(tmp_path):
    model = models.load_model("tiny")
    with pytest.raises(UsageError, match="holds no reward model"):
        reward_model.load_reward_model(*model, tmp_path)
    reward = reward_model.new_reward_model(*model, QUICK)
    folder = reward_model.save_reward_model(reward, tmp_path / "reward", QUICK)
    about = json.loads((folder / "about.json").read_text())
    (folder / "about.json").write_text(json.dumps(about | {"head_hash": "0"}))
    with pytest.raises(UsageError, match=r"is not the head that about.json speaks of"):
        reward_model.load_reward_model(*models.load_model("tiny"), folder)


# --- training ----------------------------------------------------------------------------------------


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
        found.append((figures["loss"], {name: value.grad.clone() for name, value in run.weights.items()}))
    for loss, gradients in found[1:]:
        assert loss == pytest.approx(found[0][0], rel=1e-5)
        for name, gradient in gradients.items():
            assert_close(gradient, found[0][1][name], rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize("head", ["mlp", "fusion"])
def test_gradient_checkpointing_changes_no_number(records, head):
    """Nor does dropout: what is computed again is drawn again."""
    found, settings = [], dataclasses.replace(QUICK, head=head, batch_size=4, epochs=1, evaluations=1)
    settings = dataclasses.replace(settings, lora=dataclasses.replace(settings.lora, dropout=0.2))
    for saving in (False, True):
        run = trainer(
            models.load_model("tiny"), records[:8], dataclasses.replace(settings, gradient_checkpointing=saving)
        )
        run.train()
        assert run.reward.backbone.is_gradient_checkpointing == saving
        found.append((run.run.log, weights(run.reward)))
    assert [row["loss"] for row in found[1][0]] == pytest.approx([row["loss"] for row in found[0][0]], rel=1e-4)
    for name, value in found[0][1].items():
        assert_close(found[1][1][name], value, rtol=1e-3, atol=1e-4, msg=name)


class Killed(Exception):
    pass


def test_a_resumed_training_is_the_one_that_was_not_interrupted(records, tmp_path, monkeypatch):
    settings = dataclasses.replace(QUICK, epochs=2)  # 6 steps an epoch; MLP with dropout
    whole = trainer(models.load_model("tiny"), records, settings)
    expected = whole.train()

    interrupted = trainer(models.load_model("tiny"), records, settings, checkpoint=tmp_path / "run.pt")
    step, steps = interrupted._train_step, []

    def killed_at_nine():
        steps.append(1)
        if len(steps) > 9:
            raise Killed
        return step()

    monkeypatch.setattr(interrupted, "_train_step", killed_at_nine)
    with pytest.raises(Killed):
        interrupted.train()
    resumed = trainer(models.load_model("tiny"), records, settings, checkpoint=tmp_path / "run.pt")
    found = resumed.train()
    assert resumed.step == whole.step == 12 and found.log == expected.log and found.evaluations == expected.evaluations
    assert all(torch.equal(value, weights(whole.reward)[name]) for name, value in weights(resumed.reward).items())
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
    for choose, learnt in ((lambda i: 0, True), (lambda i: np.random.default_rng([7, i]).integers(2), False)):
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
    for change in ({"margin_weight": 1.0}, {"label_smoothing": 0.2}, {"centring_weight": 0.1}, {"objective": "focal"}):
        assert not torch.allclose(losses_of(scores, [record], dataclasses.replace(plain, **change)), base)
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
        trainer(models.load_model("tiny"), records, dataclasses.replace(QUICK, objective="contrastive"))


def test_standardised_scores_are_deviations_from_those_of_the_records(records):
    model, processor = models.load_model("tiny")
    reward = reward_model.new_reward_model(model, processor, RewardSettings())
    known = [score for row in score_records(reward, records[:4]) for score in row]
    score = reward_model.standardised_scorer(reward, records[:4])
    record = records[0]
    image = Image.open(record.image_paths[0]).convert("RGB")
    found = score(image, record.prompt[-1].content, record.answers[0].text, None).total
    # numpy's deviation of a sample, as torch has it
    assert found == pytest.approx((known[0] - np.mean(known)) / np.std(known, ddof=1), abs=1e-3)
