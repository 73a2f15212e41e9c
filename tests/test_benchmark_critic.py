"""The benchmark of the critic: rewards at each count, what is expected there, and a run in small."""

import json
from types import SimpleNamespace

import pytest
import torch
from torch.testing import assert_close

from benchmarks import critic
from helpers import models
from helpers.losses import masked_mean

FACTS = {"cars": 2, "buses": 1}
TEXTS = ["There are 2 cars, 1 buses.", "There are 2 cars, 4 buses.", "Many cars."]


@pytest.fixture(scope="module")
def tokenizer():
    return models.load_processor("tiny").tokenizer


@pytest.fixture
def rollout(tokenizer):
    """Answers to one question: both counts are true, one of them, and none can be read."""
    ids = [torch.tensor(tokenizer(text, add_special_tokens=False)["input_ids"]) for text in TEXTS]
    results = [SimpleNamespace(total=total) for total in (1.0, 0.5, 0.0)]
    tasks = [SimpleNamespace(facts=FACTS)]
    return SimpleNamespace(ids=ids, texts=TEXTS, results=results, tasks=tasks, group_size=3)


def tokens_of(rollout, tokenizer, row):
    return [tokenizer.decode([number]) for number in rollout.ids[row].tolist()]


def test_a_true_count_is_rewarded_at_the_token_that_ends_its_number(rollout, tokenizer):
    longest = max(map(len, rollout.ids))
    places = critic.count_places(rollout, tokenizer, longest)
    for row, rights in enumerate([["2", "1"], ["2"], []]):
        tokens = tokens_of(rollout, tokenizer, row)
        rewarded = [tokens[place].strip() for place in places.rewards[row].nonzero()[:, 0]]
        assert rewarded == rights, tokens
    assert places.rewards.sum(1).tolist() == [1.0, 0.5, 0.0]
    # no number has ended before the first one's own token, one after it, and both at the end
    first = int(places.rewards[0].nonzero()[0])
    assert places.ended[0, : first + 1].tolist() == [0] * (first + 1)
    assert places.ended[0, first + 1] == 1 and places.ended[0, -1] == 2
    assert places.ended[1, len(rollout.ids[1]) - 1] == 2 and not places.ended[2].any()


def test_what_is_expected_at_each_count_by_hand():
    ahead = torch.tensor([[1.0, 0.5], [0.5, 0.5], [0.0, 0.0], [0.5, 0.0]])
    ended = torch.tensor([[0, 1]] * 4)
    mask = torch.ones(4, 2, dtype=torch.bool)
    mean = critic.mean_at_each_count(ahead, ended, mask)
    # (1 + .5 + 0 + .5) / 4 and (.5 + .5 + 0 + 0) / 4
    assert_close(mean, torch.tensor([[0.5, 0.25]] * 4))
    # of the other answer to the question
    others = critic.mean_at_each_count(ahead, ended, mask, group_size=2)
    assert_close(others, torch.tensor([[0.5, 0.5], [1.0, 0.5], [0.5, 0.0], [0.0, 0.0]]))
    # what is beyond an answer's end counts nowhere
    mask[0, 1] = False
    mean = critic.mean_at_each_count(ahead, ended, mask)
    assert_close(mean[:, 1], torch.tensor([0.0, 0.5 / 3, 0.5 / 3, 0.5 / 3]))


@pytest.mark.parametrize("expected", ["constant", "mean", "others", "critic"])
def test_the_rewards_of_an_answer_still_sum_to_its_score(rollout, tokenizer, expected):
    each = critic.EachCount(expected, tokenizer, rollout)
    longest = max(map(len, rollout.ids))
    mask = torch.zeros(3, longest, dtype=torch.bool)
    rewards = torch.zeros(3, longest)
    for row, score in enumerate([1.0, 0.5, 0.0]):
        last = len(rollout.ids[row])
        mask[row, :last] = True
        rewards[row, last - 1] = score
    settings = critic.replace(critic.SETTINGS, group_size=3, lam=1.0)
    # a critic that is right about every answer expects nothing better or worse
    values = torch.tensor([[1.0], [0.5], [0.0]]) * mask
    advantages, returns = each.estimate(rewards, values, mask, settings, masked_mean)
    # with λ = 1 the return of every token is that of the whole answer
    assert_close(returns, values)
    if expected == "critic":
        assert not advantages.any()
    else:
        assert float(masked_mean(advantages, mask)) == pytest.approx(0, abs=1e-6)
        assert float(advantages.abs().max()) > 0.5


def test_a_row_of_the_table_has_all_rates_and_the_best_ones_cost():
    figures = {}
    for rate, samples, done in ((0.001, (48, 64), (1, 1)), (0.002, (24, 160), (1, 0))):
        for seed in (0, 1):
            start = f"at the end | critic, λ .5 | {rate} | {seed}"
            found = {"samples": samples[seed], "reached": done[seed], "seconds": 4.0}
            found |= {"warm-up seconds": 90.0, "explained variance": 0.5}
            for what, value in found.items():
                figures[f"{start} | {what}"] = {"value": float(value), "n": 1, "seed": seed}
    row = [line for line in critic.table(figures).splitlines() if "critic, λ .5" in line]
    assert row == ["| at the end | critic, λ .5 | 48, 64 | 24, > 160 | 56 | 4 + 90 | 0.50, 0.50 |"]


def test_a_run_that_is_known_is_not_run_again():
    known = {"at the end | RLOO | 0.001 | 0 | samples": {"value": 48.0}}
    asked = list(critic.new_runs([0.001], [0], known))
    assert len(asked) == sum(map(len, critic.METHODS.values())) - 1
    assert ("at the end", "RLOO", 0.001, 0) not in asked


@pytest.mark.slow(reason="trains nine policies; the tests above check what is made of them")
def test_it_runs_in_small(tmp_path):
    out = tmp_path / "critic.json"
    critic.main(["--toy", "--rates", "1e-3", "--seeds", "0", "--out", str(out)])
    figures = json.loads(out.read_text())["figures"]
    for reward, methods in critic.METHODS.items():
        for name in methods:
            start = f"{reward} | {name} | 0.001 | 0"
            assert figures[f"{start} | samples"]["value"] in (8, 16)
            has_critic = name in critic.CRITICS
            assert (f"{start} | warm-up seconds" in figures) == has_critic
