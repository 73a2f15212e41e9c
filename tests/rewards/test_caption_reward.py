import itertools
import json
import math
import random
import subprocess
import sys

import pytest
import torch
from shipped import TRAFFIC
from torch.testing import assert_close
from transformers import AutoModelForSequenceClassification, BertConfig, Qwen2Config

from helpers.data.preferences import read_records
from helpers.data.record import PreferenceRecord
from helpers.files import ROOT, UsageError
from helpers.rewards import caption_reward
from helpers.rewards.caption_reward import (
    CaptionReward,
    load_text_reward,
    reward_text,
    reward_texts,
    tiny_text_reward,
    vlm_captioner,
)

TRAIN = TRAFFIC / "preferences_train.jsonl"
QUICK = {"epochs": 6, "learning_rate": 2e-3}


@pytest.fixture(scope="module")
def tokenizer(tiny):
    return tiny[1].tokenizer


@pytest.fixture(scope="module")
def records():
    return read_records(TRAIN)


def captioner(paths):
    return [f"cars in {path.stem}" for path in paths]


def made_up(better, worse, image="a.png"):
    return PreferenceRecord.model_validate(
        {"image": image, "prompt": "Cars?", "chosen": better, "rejected": worse}
    )


def separable(n, seed=0):
    """ "Red" is better than "blue", whatever stands around it."""
    pick = random.Random(seed)
    words = ("cars", "buses", "bicycles", "in the image", "2", "0", "3")
    texts = [" ".join(pick.choices(words, k=pick.randint(1, 5))) for _ in range(n)]
    return [made_up(f"{text} red", f"{text} blue") for text in texts]


def accuracy(reward, records):
    """Share of pairs that are scored the right way round."""
    scores = reward.score_records(records)
    hits = [
        s[i] > s[j]
        for s, record in zip(scores, records, strict=True)
        for i, j in record.tier_pairs()
    ]
    return sum(hits) / len(hits)


def decoder(tokenizer, **changes):
    """A tiny decoder classifier, which reads its score at the last token."""
    torch.manual_seed(0)
    sizes = {
        "hidden_size": 32,
        "intermediate_size": 32,
        "num_hidden_layers": 2,
        "max_position_embeddings": 128,
    }
    heads = {"num_attention_heads": 2, "num_key_value_heads": 2, "num_labels": 1}
    config = Qwen2Config(**{"vocab_size": len(tokenizer), **sizes, **heads, **changes})
    return AutoModelForSequenceClassification.from_config(config)


def bert(tokenizer):
    """An encoder with absolute positions and, by its config, another padding token than the
    tokenizer's.
    """
    torch.manual_seed(0)
    sizes = {
        "hidden_size": 32,
        "intermediate_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
    }
    return AutoModelForSequenceClassification.from_config(
        BertConfig(vocab_size=len(tokenizer), num_labels=1, initializer_range=0.2, **sizes)
    )


def test_the_text_form_is_the_projects():
    assert reward_text("A cat on a mat.", "What is it?", "A cat.") == (
        "Image description: A cat on a mat.\nInstruction: What is it?\nResponse: A cat."
    )


def test_texts_of_a_record_stand_in_the_order_of_its_answers():
    record = made_up("Two.", "Three.")
    texts = reward_texts([record], ["a street"])[0]
    assert texts == [reward_text("a street", "Cars?", answer.text) for answer in record.answers]
    assert reward_texts([record], None)[0][0].startswith(
        "Image description: \nInstruction: Cars?\n"
    )


def test_the_caption_is_the_models_own_and_made_once_for_a_path(tiny, records, monkeypatch):
    caption = vlm_captioner(
        *tiny, "How many cars, motorcycles, buses and bicycles are in the image?"
    )
    paths = [record.image_paths[0] for record in records[:2]]
    first = caption([*paths, paths[0]])
    assert first[0] == first[2] != first[1] and all(" cars, " in text for text in first)
    monkeypatch.setattr(
        "helpers.rewards.caption_reward.generate_answers",
        lambda model, processor, images, *a, **k: images,
    )
    assert caption(paths) == first[:2]


def test_each_answer_gets_the_caption_of_its_own_images(tokenizer, records):
    two = records[1].model_copy(update={"images": [records[1].images[0], records[2].images[0]]})
    texts = CaptionReward(tiny_text_reward(tokenizer), tokenizer, captioner).texts(
        [records[0], two, records[3]]
    )
    assert "Image description: cars in scene-000000\n" in texts[0][0]
    assert "Image description: cars in scene-000001 cars in scene-000002\n" in texts[1][-1]
    assert "Image description: cars in scene-000003\n" in texts[2][0]


@pytest.mark.heavy(reason="trains")
def test_it_learns_separable_pairs_and_coin_tosses_do_not_carry_over(tokenizer):
    """Trained on rankings that a coin has turned round, it has no opinion of red and blue worth the
    name.
    """
    train, test, coin = separable(60), separable(60, seed=1), random.Random(0)
    tossed = [r.model_copy(update={"ranking": r.ranking[:: coin.choice((1, -1))]}) for r in train]
    gaps = []
    for data in (train, tossed):
        reward = CaptionReward(tiny_text_reward(tokenizer), tokenizer, None)
        losses = reward.fit(data, **QUICK)
        gaps.append(sum(abs(a - b) for a, b in reward.score_records(test)) / len(test))
        if data is train:
            assert losses[-1] < 0.1 and accuracy(reward, test) > 0.95
    assert gaps[1] < gaps[0] / 4


@pytest.mark.heavy(reason="trains")
def test_pairs_that_only_the_caption_decides(tokenizer, records):
    """Is it red or blue? Half of the 20 held-out images are red: the twin, which sees none, gets 10
    right.
    """
    images = [str(record.image_paths[0]) for record in records[:80]]
    colours = dict(zip(images, itertools.cycle(("red", "blue")), strict=False))
    data = [
        made_up(colour, {"red": "blue", "blue": "red"}[colour], image)
        for image, colour in colours.items()
    ]
    share = {}

    def seen(paths):
        return [colours[str(path)] for path in paths]

    for name, write, epochs in (("captions", seen, 25), ("twin", None, 2)):
        reward = CaptionReward(tiny_text_reward(tokenizer), tokenizer, write)
        reward.fit(data[:60], epochs=epochs, learning_rate=1e-3, batch_size=16)
        share[name] = accuracy(reward, data[60:])
    assert share["captions"] > 0.95 and share["twin"] == 0.5


def test_the_loss_is_the_mean_of_minus_log_sigmoid_of_the_difference(tokenizer):
    """One batch at learning rate 0: the loss is that of the first scores; at scores ±200 it is
    finite.
    """
    data = separable(8)
    reward = CaptionReward(tiny_text_reward(tokenizer), tokenizer, None)
    scores = reward.score_records(data)
    expected = [
        math.log1p(math.exp(s[worse] - s[better]))
        for s, record in zip(scores, data, strict=True)
        for better, worse in record.tier_pairs()
    ]
    assert reward.fit(data, epochs=1, learning_rate=0.0) == pytest.approx(
        [sum(expected) / 8], abs=1e-5
    )
    with torch.no_grad():
        reward.model.classifier.weight *= 1e4
    assert math.isfinite(reward.fit(data, epochs=1, learning_rate=0.0)[0])


@pytest.mark.parametrize(
    "make", [tiny_text_reward, decoder, bert], ids=["distilbert", "qwen2", "bert"]
)
def test_padding_does_not_change_a_score(tokenizer, make):
    reward = CaptionReward(make(tokenizer), tokenizer, None)
    texts = [reward_text("", "Cars?", "2 cars " * n) for n in (1, 9, 4)]
    with torch.no_grad():
        together = reward.forward(texts)
        alone = torch.cat([reward.forward([text]) for text in texts])
    assert_close(together, alone, atol=1e-5, rtol=0)
    assert (together[0] - together[1]).abs() > 1e-4, "the comparison needs texts that differ"


def test_a_decoder_without_a_padding_token_takes_the_tokenizers(tokenizer):
    """Its config names none or another one: it would read a score at padding, or refuse a batch."""
    for changes in ({}, {"pad_token_id": tokenizer("2")["input_ids"][0]}):
        reward = CaptionReward(decoder(tokenizer, **changes), tokenizer, None)
        with torch.no_grad():
            assert_close(
                reward.forward(["a 2 2", "2 cars 2 2 2 2 2"])[:1], reward.forward(["a 2 2"])
            )
            assert reward.forward(["a 2 2"]) != reward.forward(["a 2"])


def test_the_same_seed_gives_the_same_scores_and_leaves_the_generator_alone(tokenizer):
    scores = []
    for seed in (1, 1, 2):
        torch.rand(1)  # what was drawn before does not matter
        state = torch.random.get_rng_state()
        reward = CaptionReward(tiny_text_reward(tokenizer), tokenizer, None)
        reward.model.distilbert.embeddings.dropout.p = 0.1  # dropout is seeded, too
        reward.fit(separable(20), epochs=1, seed=seed, batch_size=8)
        assert torch.equal(torch.random.get_rng_state(), state) and not reward.model.training
        scores.append(reward.score_records(separable(5, seed=1)))
    assert scores[0] == scores[1] != scores[2]


def test_all_pairs_of_a_ranking_are_trained_on(tokenizer, records, monkeypatch):
    seen = []
    reward = CaptionReward(tiny_text_reward(tokenizer), tokenizer, None)
    real = reward.forward
    monkeypatch.setattr(reward, "forward", lambda texts: seen.append(list(texts)) or real(texts))
    reward.fit(
        records[1:3], epochs=1, batch_size=3
    )  # two records of three answers, one of them best
    pairs = {
        (a, b)
        for texts in seen
        for a, b in zip(texts[: len(texts) // 2], texts[len(texts) // 2 :], strict=True)
    }
    texts = reward_texts(records[1:3], None)
    assert pairs == {
        (t[i], t[j]) for t, r in zip(texts, records[1:3], strict=True) for i, j in r.tier_pairs()
    }
    assert [len(t) for t in seen] == [6, 2]


@pytest.mark.slow(reason="starts a process")
def test_a_saved_reward_gives_equal_scores_in_a_new_process(
    tokenizer, records, tmp_path, monkeypatch
):
    """Here two texts at once, there all of them."""
    monkeypatch.setattr(caption_reward, "SCORED_AT_ONCE", 2)
    reward = CaptionReward(tiny_text_reward(tokenizer), tokenizer, None)
    reward.fit(records[:8], epochs=1)
    folder = reward.save(tmp_path / "reward")
    assert (folder / "model.safetensors").exists() and not list(folder.glob("*.bin"))
    expected = reward.score_records(records[:4])
    code = f"""
import json, pathlib
from helpers.rewards.caption_reward import CaptionReward
from helpers.data.preferences import read_records
path = pathlib.Path({str(TRAIN)!r})
reward = CaptionReward.load(pathlib.Path({str(folder)!r}), None)
print(json.dumps(reward.score_records(read_records(path)[:4])))
"""
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )
    again = json.loads(done.stdout.splitlines()[-1])
    assert list(itertools.chain(*again)) == pytest.approx(
        list(itertools.chain(*expected)), abs=1e-6
    )


def test_a_captioned_reward_is_not_loaded_as_its_twin(tokenizer, tmp_path):
    CaptionReward(tiny_text_reward(tokenizer), tokenizer, captioner).save(tmp_path / "with")
    with pytest.raises(UsageError, match="trained with captions"):
        CaptionReward.load(tmp_path / "with", None)
    CaptionReward(tiny_text_reward(tokenizer), tokenizer, None).save(tmp_path / "without")
    with pytest.raises(UsageError, match="trained without captions"):
        CaptionReward.load(tmp_path / "without", captioner)


def test_what_cannot_be_scored_or_trained_on_is_refused(tokenizer, records):
    reward = CaptionReward(tiny_text_reward(tokenizer), tokenizer, captioner)
    with pytest.raises(UsageError, match="there are no records to score"):
        reward.score_records([])
    lost = records[0].model_copy(update={"images": ["gone.png"]})
    with pytest.raises(
        UsageError, match=r"record train-scene-000000\): image .*gone.png does not exist"
    ):
        reward.score_records([lost])
    tied = records[0].model_copy(update={"ranking": [[0, 1]]})
    with pytest.raises(UsageError, match="all answers are tied"):
        reward.fit([tied])
    twin = CaptionReward(tiny_text_reward(tokenizer), tokenizer, None)
    assert len(twin.score_records([lost])[0]) == 2  # needs no image
    with pytest.raises(UsageError, match="too long, the model reads 256"):
        twin.score_records([made_up("2 " * 300, "3")])


def test_a_caption_that_leaves_no_room_for_an_answer_is_cut_and_counted(tokenizer, records, capsys):
    first, second = records[0].image_paths[0], records[1].image_paths[0]
    long = {first: "There are 2 cars, ½ of them red. " * 60, second: "There is a car."}
    reward = CaptionReward(
        tiny_text_reward(tokenizer), tokenizer, lambda paths: [long[path] for path in paths]
    )
    cut, whole = reward.texts(records[:2])
    assert "1 of 2 captions are cut" in capsys.readouterr().out
    for text, answer in zip(cut, records[0].answers, strict=True):
        assert text.endswith(f"Response: {answer.text}") and records[0].prompt[0].content in text
        assert "There are 2 cars, ½ of them red." in text
    lengths = [len(tokenizer(text)["input_ids"]) for text in cut]
    # as much as there is room for
    assert reward.limit - 8 <= max(lengths) <= reward.limit == 256
    assert whole == caption_reward.reward_texts(records[1:2], ["There is a car."])[0]
    assert all(map(math.isfinite, reward.score_records(records[:1])[0]))


def test_only_a_model_with_one_output_is_taken(tokenizer, tmp_path):
    model = decoder(tokenizer, num_labels=2)
    with pytest.raises(UsageError, match="has 2 outputs"):
        CaptionReward(model, tokenizer, None)
    model.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    with pytest.raises(UsageError, match="cannot be loaded as a text reward model"):
        load_text_reward(tmp_path)
    with pytest.raises(UsageError, match="cannot be loaded as a text reward model"):
        load_text_reward(tmp_path / "nowhere")
