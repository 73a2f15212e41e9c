import dataclasses
import json
import math
import os
import subprocess
import sys

import numpy as np
import pytest
import torch
from architectures import BUILDERS, build
from PIL import Image
from small_rewards import PATH, QUICK, flat, trainer, weights
from torch.testing import assert_close

from helpers import models
from helpers.config import RewardSettings
from helpers.data import Answer
from helpers.data.preferences import read_records
from helpers.data.tasks import tasks_of
from helpers.files import ROOT, SEAL_FILE, UsageError, open_image
from helpers.models import POOLINGS
from helpers.models.heads import HEADS
from helpers.rewards import reward_model
from helpers.rewards.reward_model import head_hash, score_records
from helpers.rewards.scoring import score_all
from helpers.training.reward import OBJECTIVES

WIDTH = 128  # of the embedded model's hidden states


@pytest.fixture(scope="module")
def records():
    return read_records(PATH)[:24]


# --- the model ------------------------------------------------------------------------------------


def test_a_head_that_is_not_there():
    with pytest.raises(UsageError, match=r"unknown head 'deep': choose from linear, mlp, fusion"):
        reward_model.new_reward_model(
            *models.load_model("tiny"), dataclasses.replace(QUICK, head="deep")
        )


@pytest.mark.heavy(reason="trains")
def test_the_image_changes_the_score_and_the_text_only_twin_has_none(records):
    run = trainer(models.load_model("tiny"), records)
    run.train()
    own = score_records(run.reward, records[:4])
    grey = [[Image.new("RGB", (112, 112), "grey")]] * 4
    assert (flat(own) - flat(score_records(run.reward, records[:4], grey))).abs().max() > 1e-3
    twin = reward_model.new_reward_model(*models.load_model("tiny"), QUICK, sees_images=False)
    blind = [score_records(twin, records[:4], images) for images in (None, grey)]
    assert blind[0] == blind[1]


# --- which tokens the head reads ---


def plain_states(model, processor, record, answer, layers):
    """States at the tokens of one answer, (tokens, layers, hidden), from a text without padding."""
    image = open_image(record.image_paths[0])
    text = models.render_conversation(processor, record.prompt, 1) + answer
    text += models.end_of_turn(processor)
    inputs = processor(text=[text], images=[image], return_tensors="pt")
    ids = models.answer_ids(processor, answer)
    assert inputs["input_ids"][0, -len(ids) :].tolist() == ids
    with torch.no_grad():
        output = model(**inputs, output_hidden_states=True)
    # the last of them is that after the last norm
    return torch.stack([output.hidden_states[layer][0, -len(ids) :] for layer in layers], 1)


def pool_by_hand(pooling, states, query):
    """(tokens, layers, hidden) → (layers, hidden), a layer and a token at a time."""
    found = []
    for layer in range(states.shape[1]):
        own = states[:, layer]
        shares = [1 / len(own)] * len(own)
        if pooling == "attention":
            units = [state / state.square().mean().sqrt() for state in own]
            powers = [math.exp(float(unit @ query[layer]) / len(unit) ** 0.5) for unit in units]
            shares = [power / sum(powers) for power in powers]
        mean = sum(share * state for share, state in zip(shares, own, strict=True))
        found.append(own[-1] if pooling == "last" else mean)
    return torch.stack(found)


@pytest.fixture(scope="module")
def base():
    """The embedded model as it is, without an adapter."""
    return models.load_model("tiny")


@pytest.mark.parametrize("head", ["linear", "fusion"])
@pytest.mark.parametrize("pooling", POOLINGS)
def test_pooled_states_are_those_of_each_answer_alone(records, base, pooling, head):
    """All answers in one row and a row each, with others of other lengths, of one layer or four."""
    settings = dataclasses.replace(QUICK, head=head, pooling=pooling)
    reward = reward_model.new_reward_model(*models.load_model("tiny"), settings)
    texts = ["No.", "There are 2 cars, 0 motorcycles, 1 bus, 0 bicycles in the image.", "Two"]
    answers = [Answer(text=text) for text in texts]
    record = records[0].model_copy(update={"answers": answers, "ranking": [[0, 1, 2]]})
    query = torch.randn(len(reward.layers) or 1, WIDTH)
    if pooling == "attention":
        reward.pooling.query.data = query
    expected = []
    for text in texts:
        states = plain_states(*base, record, text, reward.layers or (-1,))
        expected.append(pool_by_hand(pooling, states, query))
    given = []
    reward.head.register_forward_pre_hook(lambda head, args: given.append(args[0]))
    for packs in (True, False):
        reward.packer.packs = packs
        score_records(reward, [record, records[1]])
        assert_close(given[-1][:3], torch.stack(expected), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("pooling", POOLINGS)
def test_gradients_reach_the_tokens_that_the_head_reads(records, pooling):
    settings = dataclasses.replace(QUICK, head="linear", pooling=pooling)
    reward = reward_model.new_reward_model(*models.load_model("tiny"), settings)
    caught = []

    def keep(module, args, output):
        output.last_hidden_state.requires_grad_().retain_grad()
        caught.append(output.last_hidden_state)

    hook = models.backbone_of(reward.backbone).register_forward_hook(keep)
    packed = reward.batch(records[:2], [[open_image(r.image_paths[0])] for r in records[:2]])
    reward(packed).sum().backward()
    hook.remove()
    reached = {tuple(place) for place in (caught[-1].grad != 0).any(-1).nonzero().tolist()}
    expected = set()
    for row, columns, mask in zip(packed.rows, packed.columns, packed.mask, strict=True):
        own = columns[mask].tolist()
        expected |= {(int(row), column) for column in (own[-1:] if pooling == "last" else own)}
    assert len(expected) >= len(packed.rows) and reached == expected


def test_a_pooling_that_is_not_there():
    model, processor = models.load_model("tiny")
    backbone = models.add_adapter(model, QUICK.lora, 0, reward_model.REWARD_ADAPTER)
    match = r"unknown pooling 'max': choose from last, mean, attention"
    with pytest.raises(UsageError, match=match):
        reward_model.RewardModel(backbone, processor, "mlp", "max")


def test_scores_do_not_depend_on_the_batch(records):
    reward = reward_model.new_reward_model(*models.load_model("tiny"), QUICK)
    together, alone = (score_records(reward, records[:9], batch_size=size) for size in (9, 1))
    assert_close(flat(together), flat(alone), rtol=1e-4, atol=1e-6)


@pytest.mark.heavy(reason="builds nine models")
@pytest.mark.parametrize("name", BUILDERS)
@pytest.mark.parametrize("head", HEADS)
def test_every_head_on_every_architecture(name, head, records, tmp_path):
    """Train, save, reload, score; the objectives take turns."""
    objective = list(OBJECTIVES)[
        (list(HEADS).index(head) + list(BUILDERS).index(name)) % len(OBJECTIVES)
    ]
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


# --- as a reward function ---


def test_a_reward_function_sees_all_images_and_turns_as_training_does(records):
    """Two pictures and three turns: the same scores as of the whole record."""
    reward = reward_model.new_reward_model(*models.load_model("tiny"), QUICK)
    first, second = records[:2]
    turns = [
        {"role": "user", "content": "How many cars are there?"},
        {"role": "assistant", "content": "There are 2 cars."},
        *(turn.model_dump() for turn in first.prompt),
    ]
    fields = {"images": first.images + second.images, "prompt": turns}
    long = type(first).model_validate(first.model_dump() | fields)
    rows = []
    for task, record in zip(tasks_of([long, second]), (long, second), strict=True):
        images = task.open_images()
        rows += [task.scorer_inputs(images, answer.text) for answer in record.answers]
    found = [score.total for score in score_all(reward_model.as_scorer(reward), rows)]
    assert_close(flat([found]), flat(score_records(reward, [long, second])), rtol=1e-4, atol=1e-5)
    # what it is given counts: one picture, or the last turn as a plain text, is another question
    images, question, answer, facts = rows[0]
    score = reward_model.as_scorer(reward)
    assert abs(score(images[0], question, answer, facts).total - found[0]) > 1e-4
    assert abs(score(images, str(question), answer, facts).total - found[0]) > 1e-4


# --- saving ---------------------------------------------------------------------------------------

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


@pytest.fixture(scope="module")
def saved(records, tmp_path_factory):
    """A trained reward model, its scores, and the folder that it was saved in."""
    run = trainer(models.load_model("tiny"), records)
    run.train()
    folder = tmp_path_factory.mktemp("saved") / "reward"
    reward_model.save_reward_model(run.reward, folder, QUICK, {"accuracy": 0.9})
    return run.reward, score_records(run.reward, records[:6]), folder


@pytest.mark.heavy(reason="trains")
def test_a_saved_model_gives_the_same_scores(records, saved):
    """A source project evaluated a fresh random head: its trained one was never saved."""
    reward, scores, folder = saved
    assert not list(folder.rglob("*.bin")) and not list(folder.rglob("*.pt"))
    about = json.loads((folder / "about.json").read_text())
    assert about["head_hash"] == head_hash(reward) and about["accuracy"] == 0.9
    assert {"head.score.0.weight", "head.score.3.weight"} <= set(about["trained"])
    loaded = reward_model.load_reward_model(*models.load_model("tiny"), folder)
    again = score_records(loaded, records[:6])
    assert_close(flat(again), flat(scores), rtol=1e-5, atol=1e-5)
    other = reward_model.new_reward_model(*models.load_model("tiny"), QUICK, seed=1)
    assert head_hash(other) != about["head_hash"]


@pytest.mark.slow(reason="starts a process; the test above loads the model in this one")
def test_a_new_process_gives_the_same_scores(saved):
    _, scores, folder = saved
    out = subprocess.run(
        [sys.executable, "-c", SCORE, str(folder), str(PATH)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
    )
    assert_close(
        flat(json.loads(out.stdout.splitlines()[-1])),
        flat(scores),
        rtol=1e-5,
        atol=1e-5,
    )


def test_a_folder_that_does_not_fit_is_an_error(tmp_path):
    model = models.load_model("tiny")
    with pytest.raises(UsageError, match="holds no reward model"):
        reward_model.load_reward_model(*model, tmp_path)
    reward = reward_model.new_reward_model(*model, QUICK)
    folder = reward_model.save_reward_model(reward, tmp_path / "reward", QUICK)
    edit_about(folder, head_hash="0")
    with pytest.raises(UsageError, match=r"is not the head that about.json speaks of"):
        reward_model.load_reward_model(*models.load_model("tiny"), folder)


@pytest.mark.parametrize(
    ("pooling", "head"), [("last", "mlp"), ("mean", "mlp"), ("attention", "fusion")]
)
def test_a_saved_model_reads_the_same_tokens_again(records, tmp_path, pooling, head):
    settings = dataclasses.replace(QUICK, head=head, pooling=pooling)
    reward = reward_model.new_reward_model(*models.load_model("tiny"), settings)
    if pooling == "attention":
        # as training would leave it: at 0 it is a mean
        torch.nn.init.normal_(reward.pooling.query, std=20)
    scores = score_records(reward, records[:3])
    folder = reward_model.save_reward_model(reward, tmp_path / "reward", settings)
    assert json.loads((folder / "about.json").read_text())["pooling"] == pooling
    loaded = reward_model.load_reward_model(*models.load_model("tiny"), folder)
    assert loaded.pooling_name == pooling and head_hash(loaded) == head_hash(reward)
    assert_close(flat(score_records(loaded, records[:3])), flat(scores), rtol=1e-5, atol=1e-6)
    # a new query makes a mean
    for other in {"last", "mean"} - {pooling}:
        loaded.pooling = POOLINGS[other](len(loaded.layers) or 1, WIDTH)
        again = flat(score_records(loaded, records[:3]))
        assert (again - flat(scores)).abs().max() > 1e-5


def edit_about(folder, **changes):
    """Change about.json; a value of None takes the name out."""
    about = json.loads((folder / "about.json").read_text()) | changes
    kept = {name: value for name, value in about.items() if value is not None}
    (folder / "about.json").write_text(json.dumps(kept))
    # as a folder of an earlier version, which has no seal
    (folder / SEAL_FILE).unlink(missing_ok=True)


def test_a_folder_from_before_the_setting_reads_the_last_token(records, tmp_path):
    settings = dataclasses.replace(QUICK, pooling="last")
    reward = reward_model.new_reward_model(*models.load_model("tiny"), settings)
    folder = reward_model.save_reward_model(reward, tmp_path / "reward", settings)
    edit_about(folder, pooling=None)
    loaded = reward_model.load_reward_model(*models.load_model("tiny"), folder)
    assert loaded.pooling_name == "last"
    found, expected = (flat(score_records(one, records[:3])) for one in (loaded, reward))
    assert_close(found, expected, rtol=1e-5, atol=1e-6)


def test_a_folder_whose_pooling_does_not_fit_is_an_error(tmp_path):
    settings = dataclasses.replace(QUICK, pooling="attention")
    reward = reward_model.new_reward_model(*models.load_model("tiny"), settings)
    folder = reward_model.save_reward_model(reward, tmp_path / "reward", settings)
    edit_about(folder, pooling="max")
    with pytest.raises(UsageError, match=r"unknown pooling 'max': choose from last, mean, att"):
        reward_model.load_reward_model(*models.load_model("tiny"), folder)
    edit_about(folder, pooling="mean")
    with pytest.raises(UsageError, match=r"is not the head that about.json speaks of"):
        reward_model.load_reward_model(*models.load_model("tiny"), folder)


# --- training -------------------------------------------------------------------------------------


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
