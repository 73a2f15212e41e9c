"""Similarity of texts (TF-IDF, sentence-transformers) and of texts and images (CLIP)."""

import sys
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given, strategies as st
from pictures import colour_noise
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.metrics.pairwise import cosine_similarity
from transformers import CLIPImageProcessor, CLIPModel

from helpers.files import ROOT, UsageError
from helpers.rewards.similarity import (
    cosine_scorer,
    load_clip,
    sentence_embedder,
    text_embedder,
    tfidf_embedder,
)


def test_cosine_by_hand_and_best_of_several():
    vectors = {
        "answer": [3, 4],
        "right": [6, 8],
        "half": [4, 3],
        "opposite": [-3, -4],
        "nothing": [0, 0],
    }
    score = cosine_scorer(lambda texts: np.array([vectors[text] for text in texts]))
    assert score(None, "", "answer", "right").total == pytest.approx(1)
    assert score(None, "", "answer", "half").total == pytest.approx(24 / 25)  # (3·4 + 4·3) / (5·5)
    assert score(None, "", "answer", "opposite").total == pytest.approx(-1)
    assert score(None, "", "answer", ["opposite", "half"]).total == pytest.approx(24 / 25)
    assert (
        score(None, "", "answer", "nothing").total
        == score(None, "", "nothing", ["nothing"]).total
        == 0
    )


def test_not_green_is_closer_to_green_than_a_true_sentence():
    """The trap: an answer that denies the reference beats a correct one that says more."""
    colours = ["green", "not green", "The clock on the wall is green.", "The wall is not red."]
    score = cosine_scorer(tfidf_embedder(colours))
    false, true = (score(None, "", answer, "green").total for answer in colours[1:3])
    assert false > true > 0
    # With words of equal weight: 1/√2 = 0.7071 for two words, 1/√4 = 0.5 for four
    score = cosine_scorer(tfidf_embedder(["green", "not", "clock", "is", "the"]))
    assert score(None, "", "not green", "green").total == pytest.approx(2**-0.5)
    assert score(None, "", "the clock is green", "green").total == pytest.approx(0.5)


@given(
    st.lists(st.sampled_from(["a", "red", "car", "2", "cars", "not", "green"]), min_size=1).map(
        " ".join
    )
)
def test_tfidf_cosine_is_that_of_scikit_learn(answer):
    corpus = ["a red car", "2 cars", "green", "not 2 cars"]
    vectorizer = TfidfVectorizer(ngram_range=(1, 2), token_pattern=r"(?u)\b\w+\b").fit(corpus)
    expected = cosine_similarity(*vectorizer.transform([answer, corpus[0]]))[0, 0]
    assert cosine_scorer(tfidf_embedder(corpus))(
        None, "", answer, corpus[0]
    ).total == pytest.approx(expected)


def test_tfidf_keeps_numbers_and_ignores_new_words():
    score = cosine_scorer(tfidf_embedder(["2 cars", "3 cars"]))
    assert (
        score(None, "", "2 cars", "3 cars").total < 0.9 < score(None, "", "2 cars", "2 cars").total
    )
    assert (
        score(None, "", "entirely new", "2 cars").total == score(None, "", "", "2 cars").total == 0
    )
    with pytest.raises(UsageError, match="corpus: cannot fit TF-IDF"):
        tfidf_embedder(["", "!"])


class FakeSentenceTransformer:
    def __init__(self, name):
        if name != "sentence-transformers/paraphrase-MiniLM-L6-v2":
            raise OSError(f"{name} is not a local folder\nand more")

    def encode(self, texts, show_progress_bar):
        return [[len(text), 1] for text in texts]


def test_sentence_transformers_is_used_if_it_is_there(monkeypatch, capsys):
    monkeypatch.setitem(
        sys.modules,
        "sentence_transformers",
        SimpleNamespace(SentenceTransformer=FakeSentenceTransformer),
    )
    assert text_embedder(["green"])(["one", "three"]).tolist() == [[3, 1], [5, 1]]
    assert capsys.readouterr().out == "Text embeddings: sentence-transformers.\n"
    with pytest.raises(
        UsageError, match=r"embeddings of no/such cannot be had \(no/such is not a local folder\)"
    ):
        sentence_embedder("no/such")


def test_without_sentence_transformers_tfidf_takes_its_place(monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "sentence_transformers", None)  # its import fails
    with pytest.raises(UsageError, match="pip install sentence-transformers"):
        sentence_embedder()
    assert text_embedder(["green", "red"])(["red", "blue"]).tolist() == [[0, 1], [0, 0]]
    assert capsys.readouterr().out.startswith(
        "Text embeddings: TF-IDF, because sentence embeddings of"
    )


def clip_cosine(folder, image, text):
    """The cosine from the two towers and projections alone; the text is given as its letters."""
    model, processor = (
        CLIPModel.from_pretrained(folder).eval(),
        CLIPImageProcessor.from_pretrained(folder),
    )
    ends = [
        52,
        *(
            ord(a) - ord("a") + (26 if b == " " else 0)
            for a, b in zip(text, text[1:] + " ", strict=True)
            if a != " "
        ),
        53,
    ]
    with torch.no_grad():
        states = model.text_model(input_ids=torch.tensor([ends])).last_hidden_state[0, -1]
        words = states @ model.text_projection.weight.T
        pixels = processor(image, return_tensors="pt")["pixel_values"]
        picture = model.vision_model(pixels).pooler_output[0] @ model.visual_projection.weight.T
    return float(words @ picture / (words.norm() * picture.norm()))


def test_clip_score_is_that_of_the_two_towers(clip_folder):
    score = load_clip(clip_folder)
    values = {}
    for seed in range(4):
        for text in ("red car", "not a bus", "green"):
            cosine = clip_cosine(clip_folder, colour_noise(seed), text)
            values[seed, text] = cosine
            assert score(colour_noise(seed), "?", text).total == pytest.approx(
                2.5 * max(cosine, 0), abs=1e-5
            )
    assert min(values.values()) < 0 < max(values.values())  # both sides of the max are tested
    assert score.__name__ == "clip" and list(score(colour_noise(0), "", "red").parts) == ["clip"]


def test_clip_reads_77_tokens_and_any_kind_of_image(clip_folder):
    score = load_clip(clip_folder)
    image = colour_noise(0)
    fill = next(letter for letter in "abcdefgh" if score(image, "", f"{letter} " * 75).total > 0)
    # start + 75 letters + end = 77: the 75th word counts, the 76th does not
    assert (
        score(image, "", f"{fill} " * 75 + "y").total
        == score(image, "", f"{fill} " * 75 + "z " * 500).total
    )
    assert (
        score(image, "", f"{fill} " * 74 + "y").total
        != score(image, "", f"{fill} " * 74 + "z").total
    )
    for mode in ("L", "RGBA", "P"):
        assert np.isfinite(score(image.convert(mode), "", "red").total)


def test_clip_needs_an_image_and_a_clip(clip_folder, tmp_path):
    with pytest.raises(UsageError, match="clip: there is no image"):
        load_clip(clip_folder)(None, "", "red")
    with pytest.raises(UsageError, match="it is a qwen2_vl model"):
        load_clip(ROOT / "data" / "tiny-qwen2-vl")
    with pytest.raises(UsageError, match=r"cannot be loaded as a CLIP .* Check name and network"):
        load_clip("no-such-owner/no-such-clip")
    (tmp_path / "config.json").write_text('{"model_type": "clip"}')
    with pytest.raises(UsageError, match="cannot be loaded as a CLIP"):
        load_clip(tmp_path)


def test_clip_score_of_several_images_is_their_mean(clip_folder):
    score = load_clip(clip_folder)
    images = [colour_noise(seed) for seed in range(4)]
    alone = [score(image, "", "red car").total for image in images]
    assert score(images, "", "red car").total == pytest.approx(sum(alone) / 4, abs=1e-6)
    with pytest.raises(UsageError, match="there is no image"):
        score([], "", "red car")
