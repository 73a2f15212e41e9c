import sys
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from datasets import Dataset
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.metrics.pairwise import cosine_similarity
from transformers import (
    CLIPConfig,
    CLIPImageProcessor,
    CLIPModel,
    CLIPProcessor,
    CLIPTextConfig,
    CLIPTokenizer,
    CLIPVisionConfig,
)
from trl import GRPOTrainer
from trl.trainer.utils import get_callable_name

from helpers.data.counting import count_answer, count_question
from helpers.files import ROOT, UsageError
from helpers.rewards.heuristic import HEURISTIC_RULES, content_words, is_mentioned, stated_counts
from helpers.rewards.scoring import (
    SCORERS,
    Score,
    count_exact,
    count_graded,
    count_per_class,
    exact_match,
    grpo_reward_function,
    heuristic_scorer,
    normalise,
    vqa_accuracy,
    weighted_scorer,
)
from helpers.rewards.similarity import cosine_scorer, load_clip, sentence_embedder, text_embedder, tfidf_embedder

TRUTH = {"cars": 2, "motorcycles": 3, "buses": 0, "bicycles": 1}
QUESTION = count_question(list(TRUTH))


def part(name, answer, facts=None, question=""):
    return heuristic_scorer()(None, question, answer, facts).parts[name]


# --- words ---


@pytest.mark.parametrize(
    ("text", "name", "expected"),
    [
        ("a bus", "buses", True),
        ("two BUSES", "bus", True),
        ("the box", "boxes", True),
        ("one horse", "horses", True),
        ("a busy street", "bus", False),
        ("scars", "cars", False),
        ("take care", "cars", False),
        ("a plan", "planes", False),
        ("deux vélos", "vélo", True),
        ("deux ve\u0301los", "v\u00e9lo", True),  # the same letters, composed and not
        ("deux vélosport", "vélo", False),
        ("2 White  blood cell", "white blood cells", True),
        ("C++", "c++", True),  # a name is text, not a pattern
    ],
)
def test_names_are_whole_words_with_or_without_plural(text, name, expected):
    assert is_mentioned(text, name) is expected


letters = st.text("abcdfghjklmnpqrtuvwyzäéж", min_size=3, max_size=8)  # without the letters of plural endings


@given(letters, letters)
def test_a_word_is_found_between_boundaries_and_nowhere_else(word, other):
    for text in (word, f"one {word}, two", f"({word.upper()})", f"{word}s", f"{other} {word}."):
        assert is_mentioned(text, word)
    assert not is_mentioned(other + word, word) and not is_mentioned(word + other, word)


def test_content_words():
    assert content_words("How many cars, and is the car's driver in the image? I don't see Cars.") == [
        "cars",
        "driver",
        "see",
    ]


# --- the heuristic ---


def test_a_score_is_a_number_and_says_where_it_comes_from():
    # 0.1 (cars) + 0.5 (because) − 1 (5 is not 2)
    score = heuristic_scorer()(None, "How many cars?", "5 cars, because I say it.", {"cars": 2})
    assert float(score) == score.total == pytest.approx(-0.4)
    assert {name: value for name, value in score.parts.items() if value} == {
        "grounding": 0.1,
        "reasoning": 0.5,
        "wrong_count": -1.0,
    }
    with pytest.raises(AttributeError):
        score.total = 1.0


def test_grounding_counts_distinct_words_of_question_and_known_classes():
    # dog and ball of the question; "dogs" is "dog" again, "the" is no content word
    assert part("grounding", "The dog and other dogs have the ball.", question="Does the dog chase the ball?") == 0.2
    # RBC of the classes is also in the question: once
    assert part("grounding", "RBC and platelets", {"RBC": 1, "platelets": 0}, "How many RBC?") == 0.2


@pytest.mark.parametrize("word", ["because", "Therefore", "so", "BUT", "while"])
def test_a_marker_counts_once_and_as_a_word(word):
    assert part("reasoning", f"It is red, {word} it is {word}.") == 0.5
    assert part("reasoning", f"x{word} {word}x") == 0


def test_so_is_not_in_person_and_but_not_in_button():
    assert part("reasoning", "The person pushes a button meanwhile.") == 0


def test_copying_the_question_scores():
    """The heuristic rewards an answer that says nothing: a copy beats a true answer in one word."""
    question = "Is the red car in front of the white house?"
    # red, car, front, white, house
    assert heuristic_scorer()(None, question, question).total == pytest.approx(0.5)
    assert heuristic_scorer()(None, question, "Yes.").total == 0


def test_the_image_makes_no_difference():
    score = heuristic_scorer()
    images = (None, Image.new("RGB", (4, 4)), Image.new("RGB", (4, 4), "white"))
    assert len({score(image, QUESTION, count_answer(TRUTH), TRUTH).total for image in images}) == 1


counts = st.fixed_dictionaries({name: st.integers(0, 9) for name in TRUTH})
CONTRADICTIONS = [rule.name for rule in HEURISTIC_RULES if rule.weight < 0]


def contradictions(answer, facts=None, question=""):
    parts = heuristic_scorer()(None, question, answer, facts).parts
    return {name for name in CONTRADICTIONS if parts[name]}


@given(counts, st.integers(0, 1))
def test_neither_the_truth_nor_the_question_is_a_contradiction(truth, wording):
    words = ", ".join(f"no {name}" if n == 0 else f"{n} {name}" for name, n in truth.items())
    question = count_question(list(truth), wording)
    for answer in (count_answer(truth), f"There are {words}.", question, f"{question} {count_answer(truth)}"):
        assert contradictions(answer, truth, question) == set()


@given(counts, counts)
def test_any_other_counts_are_a_wrong_count_and_nothing_else(truth, stated):
    expected = set() if truth == stated else {"wrong_count"}
    assert contradictions(count_answer(stated), truth) == expected


FACTS = {"cars": 2, "buses": 0}


@pytest.mark.parametrize(
    "answer",
    [
        "0 buses",
        "There are no buses.",
        "There is no bus, and zero buses is my answer.",
        "There isn't a bus.",
        "I do not see a bus or some buses.",
        "Neither a car nor a bus",
        "Is there a bus? I wonder how many buses.",
        "There may be a bus.",
        "The number of buses is 0.",
        "2 cars; no bus is red",
        "No car is red.",  # says nothing of the number of cars
        "at least 1 car, no more than 3 cars, 2-3 cars, 1 or 2 cars",
        "1 car on the left and one car on the right",  # 1 + 1 = 2
        "not 3 cars but 2",
        "There are 2 cars. Yes, 2 cars.",  # said twice is said once
        "1.5 cars",
        "ſıx cars",  # equal to "six" for re.IGNORECASE, not for a dictionary
        "a business, abuse, the busy",
    ],
)
def test_what_is_no_contradiction(answer):
    assert contradictions(answer, FACTS) == set()


@pytest.mark.parametrize(
    ("answer", "rule"),
    [
        ("There are 3 cars and 7 cars elsewhere, 2 cars.", "two_counts"),
        ("3 cars", "wrong_count"),
        ("There are THREE cars.", "wrong_count"),
        ("One bus.", "wrong_count"),  # a number is the matter of wrong_count, so that one error costs 1.0
        ("No cars.", "wrong_count"),
        ("1 car, 3 cars left", "two_counts wrong_count"),  # 1 + 3 = 4, neither is 2
        ("There is a bus.", "absent_object"),
        ("I see buses.", "absent_object"),
        ("There is a big bus but no dog.", "absent_object"),
        ("It is not dark. The bus is red.", "absent_object"),
        ("Yes and no.", "yes_and_no"),
        ("No. Well, yes!", "yes_and_no"),
    ],
)
def test_what_is_a_contradiction(answer, rule):
    assert contradictions(answer, FACTS) == set(rule.split())


def test_each_contradiction_counts_once():
    truth = dict.fromkeys(TRUTH, 1)
    assert part("wrong_count", count_answer(dict.fromkeys(TRUTH, 5)), truth) == -1
    assert part("absent_object", "A bus, a car. The bus is red.", dict.fromkeys(TRUTH, 0)) == -1


def test_contradictions_that_need_no_truth():
    assert contradictions("2 cars and 3 cars", question="How many cars?") == {"two_counts"}
    assert contradictions("2 cars and 3 vans", question="How many cars and vans?") == set()
    assert contradictions("5 cars", "a reference answer") == set()
    assert contradictions("Yes, there are no cars.") == set()
    assert contradictions("yes, nobody") == set()


def test_naming_a_second_animal_is_wrong_only_if_the_truth_says_so():
    answer = "The dog chases a cat."
    assert contradictions(answer, {"dogs": 1, "cats": 0}, "Is there a dog?") == {"absent_object"}
    assert contradictions(answer, {"dogs": 1, "cats": 1}, "Is there a dog?") == set()
    assert contradictions(answer, None, "Is there a dog?") == set()


def test_stated_counts():
    assert stated_counts("3 buss", ["buses"]) == {"buses": [3]}  # the published misspelling that `counting` reads
    assert stated_counts("Two cars, no bus, 4 red cars, 1,5 cars", ["cars", "buses"]) == {"cars": [2, 5], "buses": [0]}


def test_weights_are_replaced_by_name():
    score = heuristic_scorer({"reasoning": 3, "grounding": 0})
    assert score(None, "How many cars?", "cars, so", None).total == 3
    assert heuristic_scorer({"wrong_count": -0.25})(None, "", "1 car", FACTS).total == pytest.approx(0.1 - 0.25)
    with pytest.raises(ValueError, match=r"no rule is called logic\. Choose from grounding, reasoning, wrong_count"):
        heuristic_scorer({"logic": 1})


def test_the_table_of_rules():
    weights = {rule.name: rule.weight for rule in HEURISTIC_RULES}
    assert weights == {"grounding": 0.1, "reasoning": 0.5} | dict.fromkeys(CONTRADICTIONS, -1.0)
    assert all(rule.description.endswith(".") and "\n" not in rule.description for rule in HEURISTIC_RULES)


classes = st.dictionaries(st.text(min_size=1, max_size=6), st.integers(0, 12), max_size=3)
pieces = st.sampled_from(["no", "yes", "2", "cars", "a bus", "ſıx", "not", "but", ".", "?", "so", "0", "1.5", "–"])
texts = st.text(max_size=40) | st.lists(pieces).map(" ".join)


@given(texts, texts, st.none() | classes | texts | st.lists(texts))
def test_no_text_breaks_the_heuristic(question, answer, facts):
    score = heuristic_scorer()(None, question, answer, facts)
    assert score.total == sum(score.parts.values()) and np.isfinite(score.total)
    assert set(score.parts) == {rule.name for rule in HEURISTIC_RULES}


# --- counts ---


@pytest.mark.parametrize(
    ("stated", "exact", "per_class", "graded"),
    [
        (TRUTH, 1, 1, 1),
        ({**TRUTH, "cars": 3}, 0, 0.75, (0.5 + 3) / 4),  # one off: 1/2
        ({**TRUTH, "cars": 0, "buses": 3}, 0, 0.5, (1 / 3 + 1 / 4 + 2) / 4),  # two off: 1/3, three off: 1/4
        ({name: n + 1 for name, n in TRUTH.items()}, 0, 0, 0.5),
    ],
)
def test_count_rewards_by_hand(stated, exact, per_class, graded):
    rewards = [
        score(None, QUESTION, count_answer(stated), TRUTH) for score in (count_exact, count_per_class, count_graded)
    ]
    assert [reward.total for reward in rewards] == pytest.approx([exact, per_class, graded])
    assert [list(reward.parts) for reward in rewards] == [["count_exact"], ["count_per_class"], ["count_graded"]]


def test_graded_pays_for_coming_closer_and_too_few_cost_as_much_as_too_many():
    rewards = [count_graded(None, "", f"{n} cars", {"cars": 5}).total for n in range(11)]
    assert rewards[5] == 1 and rewards == rewards[::-1] and sorted(rewards[:6]) == rewards[:6]


@pytest.mark.parametrize("score", [count_exact, count_per_class, count_graded])
def test_what_has_no_counts_scores_nothing(score):
    for answer in ("", "many cars", count_answer(TRUTH) + " 2 cars", "2 cars"):
        assert score(None, QUESTION, answer, TRUTH).total == 0
    for facts in (None, "2 cars", ["2"], {}, {"cars": "2"}, {"cars": None}):
        with pytest.raises(UsageError, match=rf"{score.__name__}: facts must be true counts .* exact_match"):
            score(None, QUESTION, "2 cars", facts)


@given(st.text(), counts)
def test_count_rewards_are_ordered(answer, truth):
    for text in (answer, count_answer(truth), count_answer({**truth, "cars": 4})):
        exact, share, graded = (
            score(None, "", text, truth).total for score in (count_exact, count_per_class, count_graded)
        )
        assert 0 <= exact <= share <= graded <= 1


# --- reference answers ---


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("There are two, I guess!", "there are 2 i guess"),
        ("None", "0"),
        ("The  Cat\nand a dog", "cat and dog"),
        ("dont", "don't"),
        ("It's Johns'", "it's johns'"),  # apostrophes stay
        ("couldnt've", "couldnt've"),  # in the official table, not in ours
        ("red/blue", "red blue"),  # no space beside the mark: it becomes one
        ("red/ blue/green", "red bluegreen"),  # a space beside one of them: all disappear
        ("1,000 t-shirts", "1000 tshirts"),  # 1,000: all marks disappear
        ("2.5 m. U.S.", "2.5 m us"),
        ("yes?", "yes"),
        ("A", "a"),  # would be empty
        (" \n", ""),
    ],
)
def test_normal_form_of_an_answer(text, expected):
    assert normalise(text) == expected


def test_exact_match():
    assert exact_match(None, "", "The two dogs.", "2 dogs").total == 1
    assert exact_match(None, "", "dog", ["cat", "Dog!"]).total == 1
    assert exact_match(None, "", "dogs", ["cat", "dog"]).total == 0
    assert exact_match(None, "", "", ["", "the"]).total == 0  # saying nothing is no answer
    assert exact_match(None, "", "a", "A").total == 1


def test_vqa_accuracy_by_hand():
    # 10 annotators, 3 say green. Leaving out one of these 3 leaves 2: 2/3. Leaving out one of the other 7: 1.
    # (3 · 2/3 + 7 · 1) / 10 = 0.9
    annotators = ["green"] * 3 + ["blue"] * 6 + ["The blue."]
    assert vqa_accuracy(None, "", "Green.", annotators).total == pytest.approx(0.9)
    assert vqa_accuracy(None, "", "blue", annotators).total == 1  # 7 say so, at least 6 are left
    # 1 says grey: (1 · 0 + 9 · 1/3) / 10 = 0.3;  2 say grey: (2 · 1/3 + 8 · 2/3) / 10 = 0.6
    assert vqa_accuracy(None, "", "grey", ["grey"] + ["red"] * 9).total == pytest.approx(0.3)
    assert vqa_accuracy(None, "", "grey", ["grey"] * 2 + ["red"] * 8).total == pytest.approx(0.6)
    assert vqa_accuracy(None, "", "red", ["grey"] * 10).total == 0
    assert vqa_accuracy(None, "", "grey", ["grey"] * 10).total == 1


def test_vqa_accuracy_of_few_annotators():
    # n who agree: n − 1 are left each time, so (n − 1)/3 at best; one is not left out: 1/3
    best = [vqa_accuracy(None, "", "dog", ["dog"] * n).total for n in (1, 2, 3, 4, 5)]
    assert best == pytest.approx([1 / 3, 1 / 3, 2 / 3, 1, 1])
    assert vqa_accuracy(None, "", "dog", "dog").total == pytest.approx(1 / 3)


@given(st.text(), st.lists(st.text(), min_size=1, max_size=10))
def test_reference_scores_of_any_text(answer, references):
    exact, vote = exact_match(None, "", answer, references), vqa_accuracy(None, "", answer, references)
    assert exact.total in (0, 1) and 0 <= vote.total <= exact.total
    if answer.split():
        assert exact_match(None, "", answer, [*references, answer]).total == 1


@pytest.mark.parametrize("score", [exact_match, vqa_accuracy, cosine_scorer(lambda texts: np.eye(len(texts)))])
@pytest.mark.parametrize("facts", [None, {"cars": 2}, [], [1], 3])
def test_scorers_for_texts_refuse_other_facts(score, facts):
    with pytest.raises(UsageError, match=rf"{score.__name__}: facts must be a reference answer .* count_exact"):
        score(None, "", "dog", facts)


# --- cosine ---


def test_cosine_by_hand_and_best_of_several():
    vectors = {"answer": [3, 4], "right": [6, 8], "half": [4, 3], "opposite": [-3, -4], "nothing": [0, 0]}
    score = cosine_scorer(lambda texts: np.array([vectors[text] for text in texts]))
    assert score(None, "", "answer", "right").total == pytest.approx(1)
    assert score(None, "", "answer", "half").total == pytest.approx(24 / 25)  # (3·4 + 4·3) / (5·5)
    assert score(None, "", "answer", "opposite").total == pytest.approx(-1)
    assert score(None, "", "answer", ["opposite", "half"]).total == pytest.approx(24 / 25)
    assert score(None, "", "answer", "nothing").total == score(None, "", "nothing", ["nothing"]).total == 0


def test_not_green_is_closer_to_green_than_a_true_sentence():
    """The trap: an answer that denies the reference beats a correct one that says more."""
    colours = ["green", "not green", "The clock on the wall is green.", "The wall is not red."]
    score = cosine_scorer(tfidf_embedder(colours))
    false, true = (score(None, "", answer, "green").total for answer in colours[1:3])
    assert false > true > 0
    # With words of equal weight: 1/√2 = 0.7071 for two words, 1/√4 = 0.5 for four
    score = cosine_scorer(tfidf_embedder(["green", "not", "clock", "is", "the"], ngrams=(1, 1)))
    assert score(None, "", "not green", "green").total == pytest.approx(2**-0.5)
    assert score(None, "", "the clock is green", "green").total == pytest.approx(0.5)


@given(st.lists(st.sampled_from(["a", "red", "car", "2", "cars", "not", "green"]), min_size=1).map(" ".join))
def test_tfidf_cosine_is_that_of_scikit_learn(answer):
    corpus = ["a red car", "2 cars", "green", "not 2 cars"]
    vectorizer = TfidfVectorizer(ngram_range=(1, 2), token_pattern=r"(?u)\b\w+\b").fit(corpus)
    expected = cosine_similarity(*vectorizer.transform([answer, corpus[0]]))[0, 0]
    assert cosine_scorer(tfidf_embedder(corpus))(None, "", answer, corpus[0]).total == pytest.approx(expected)


def test_tfidf_keeps_numbers_and_ignores_new_words():
    score = cosine_scorer(tfidf_embedder(["2 cars", "3 cars"]))
    assert score(None, "", "2 cars", "3 cars").total < 0.9 < score(None, "", "2 cars", "2 cars").total
    assert score(None, "", "entirely new", "2 cars").total == score(None, "", "", "2 cars").total == 0
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
        sys.modules, "sentence_transformers", SimpleNamespace(SentenceTransformer=FakeSentenceTransformer)
    )
    assert text_embedder(["green"])(["one", "three"]).tolist() == [[3, 1], [5, 1]]
    assert capsys.readouterr().out == "Text embeddings: sentence-transformers.\n"
    with pytest.raises(UsageError, match=r"embeddings of no/such cannot be had \(no/such is not a local folder\)"):
        sentence_embedder("no/such")


def test_without_sentence_transformers_tfidf_takes_its_place(monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "sentence_transformers", None)  # its import fails
    with pytest.raises(UsageError, match="pip install sentence-transformers"):
        sentence_embedder()
    assert text_embedder(["green", "red"])(["red", "blue"]).tolist() == [[0, 1], [0, 0]]
    assert capsys.readouterr().out.startswith("Text embeddings: TF-IDF, because sentence embeddings of")


# --- CLIP ---


@pytest.fixture(scope="module")
def clip_folder(tmp_path_factory):
    """A CLIP of the real classes with random weights, 32 × 32 pixels and one token a letter."""
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("clip")
    letters = [chr(code) for code in range(ord("a"), ord("z") + 1)]
    tokens = [*letters, *(letter + "</w>" for letter in letters), "<|startoftext|>", "<|endoftext|>"]
    vocabulary = {token: number for number, token in enumerate(tokens)}
    size = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    special = {"bos_token_id": 52, "eos_token_id": 53, "pad_token_id": 53}
    config = CLIPConfig(
        text_config=CLIPTextConfig(vocab_size=len(tokens), projection_dim=8, **size, **special).to_dict(),
        vision_config=CLIPVisionConfig(image_size=32, patch_size=8, projection_dim=8, **size).to_dict(),
        projection_dim=8,
    )
    CLIPModel(config).save_pretrained(folder)
    images = CLIPImageProcessor(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32})
    CLIPProcessor(images, CLIPTokenizer(vocab=vocabulary, merges=[])).save_pretrained(folder)
    return folder


def noise(seed):
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (40, 50, 3), dtype=np.uint8))


def clip_cosine(folder, image, text):
    """The cosine from the two towers and projections alone; the text is given as its letters."""
    model, processor = CLIPModel.from_pretrained(folder).eval(), CLIPImageProcessor.from_pretrained(folder)
    ends = [
        52,
        *(ord(a) - ord("a") + (26 if b == " " else 0) for a, b in zip(text, text[1:] + " ", strict=True) if a != " "),
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
            cosine = clip_cosine(clip_folder, noise(seed), text)
            values[seed, text] = cosine
            assert score(noise(seed), "?", text).total == pytest.approx(2.5 * max(cosine, 0), abs=1e-5)
    assert min(values.values()) < 0 < max(values.values())  # both sides of the max are tested
    assert score.__name__ == "clip" and list(score(noise(0), "", "red").parts) == ["clip"]


def test_clip_reads_77_tokens_and_any_kind_of_image(clip_folder):
    score = load_clip(clip_folder)
    image = noise(0)
    fill = next(letter for letter in "abcdefgh" if score(image, "", f"{letter} " * 75).total > 0)
    # start + 75 letters + end = 77: the 75th word counts, the 76th does not
    assert score(image, "", f"{fill} " * 75 + "y").total == score(image, "", f"{fill} " * 75 + "z " * 500).total
    assert score(image, "", f"{fill} " * 74 + "y").total != score(image, "", f"{fill} " * 74 + "z").total
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


# --- sums ---


def test_weighted_sums_by_hand(clip_folder):
    clip, cosine = load_clip(clip_folder), cosine_scorer(tfidf_embedder(["red", "car"]))
    image = next(noise(seed) for seed in range(9) if clip(noise(seed), "", "red").total > 0)
    alone = clip(image, "", "red").total
    both = weighted_scorer({cosine: 0.7, clip: 0.3})
    score = both(image, "", "red", "red")  # cosine of a text with itself: 1
    assert score.parts == pytest.approx({"cosine": 0.7, "clip": 0.3 * alone})
    assert score.total == pytest.approx(0.7 + 0.3 * alone) and both.__name__ == "cosine+clip"


def test_weighted_names():
    strict = heuristic_scorer({"reasoning": 0})
    both = weighted_scorer([("lenient", heuristic_scorer(), 1), ("strict", strict, -2)])
    assert both(None, "car?", "a car, so", None).parts == pytest.approx({"lenient": 0.6, "strict": -0.2})
    for scorers in ({heuristic_scorer(): 1, strict: 1}, [], {}):
        with pytest.raises(UsageError, match="scorers: the names"):
            weighted_scorer(scorers)


@given(st.lists(st.floats(-3, 3), min_size=4, max_size=4), texts)
def test_parts_sum_to_the_total(weights, answer):
    scorers = [heuristic_scorer(), count_exact, count_per_class, count_graded]
    score = weighted_scorer(dict(zip(scorers, weights, strict=True)))(None, QUESTION, answer, TRUTH)
    assert score.total == sum(score.parts.values()) and isinstance(score, Score)


def test_the_ready_scorers():
    counts = {"count_exact", "count_per_class", "count_graded"}
    ready = counts | {"heuristic", "exact_match", "vqa_accuracy"}
    assert ready <= SCORERS.keys()  # recipes and notebooks ask for these; others may come
    assert all(scorer.__name__ == name for name, scorer in SCORERS.items())
    assert SCORERS["count_exact"](None, QUESTION, count_answer(TRUTH), TRUTH).total == 1


# --- TRL ---


def trl_rewards(reward_funcs, inputs, prompts, completions):
    """Rewards (completions, functions) and the names they are logged under, from GRPOTrainer's own call."""
    names = [get_callable_name(function) for function in reward_funcs]
    trainer = SimpleNamespace(
        accelerator=Accelerator(cpu=True),
        reward_funcs=reward_funcs,
        reward_func_names=names,
        reward_processing_classes=[None] * len(reward_funcs),
        state=SimpleNamespace(global_step=0),
        args=SimpleNamespace(report_to=[]),
        environments=None,
        _log_completion_extra=None,
        _log_metric=None,
    )
    ids = [[1, 2]] * len(prompts)
    return GRPOTrainer._calculate_rewards(trainer, inputs, prompts, completions, ids), names


def recording(name="recorded"):
    """A scorer that keeps what it was given and returns the number of calls."""
    calls = []

    def score(image, question, answer, facts=None):
        calls.append((image, question, answer, facts))
        return Score(float(len(calls)), {name: float(len(calls))})

    score.__name__ = name
    return score, calls


def test_trl_calls_a_scorer_with_chat_messages_and_images():
    """A vision data set as TRL passes it on: content in blocks, `images` a column, absent classes None."""
    image = noise(0)
    data = Dataset.from_list([{"truth": {"cars": 2}}, {"truth": {"buses": 1}}])
    inputs = [{"prompt": [], "images": [image], "truth": row["truth"]} for row in data]
    assert inputs[0]["truth"] == {"cars": 2, "buses": None}  # what `datasets` makes of it
    blocks = [{"type": "image", "image": image}, {"type": "text", "text": "How many cars?"}]
    prompts = [
        [{"role": "system", "content": "Be brief."}, {"role": "user", "content": blocks}],
        [
            {"role": "user", "content": "Hello"},
            {"role": "assistant", "content": "Hello!"},
            {"role": "user", "content": "How many buses?"},
        ],
    ]
    completions = [
        [{"role": "assistant", "content": "2 cars"}],
        [{"role": "assistant", "content": [{"type": "text", "text": "2 buses"}]}],
    ]
    spy, calls = recording()
    rewards, names = trl_rewards(
        [grpo_reward_function(spy), grpo_reward_function(count_exact)], inputs, prompts, completions
    )
    assert names == ["recorded", "count_exact"]
    assert rewards.tolist() == [[1, 1], [2, 0]]
    assert calls == [
        (image, "How many cars?", "2 cars", {"cars": 2}),
        (image, "How many buses?", "2 buses", {"buses": 1}),
    ]


def test_trl_calls_a_scorer_with_plain_texts():
    inputs = [{"prompt": "Colour?", "reference": "green"}, {"prompt": "Colour?", "reference": "red"}]
    spy, calls = recording()
    functions = [grpo_reward_function(exact_match, facts_column="reference"), grpo_reward_function(spy)]
    rewards, names = trl_rewards(functions, inputs, ["Colour?"] * 2, ["Green.", "Green."])
    assert rewards[:, 0].tolist() == [1, 0] and names == ["exact_match", "recorded"]
    assert calls == [(None, "Colour?", "Green.", None)] * 2  # no column of images or truth


def test_grpo_images_and_empty_answers():
    image = noise(1)
    spy, calls = recording()
    reward = grpo_reward_function(spy)
    ask, say = [{"role": "user", "content": "?"}], [{"role": "assistant", "content": None}]
    assert reward(prompts=[ask] * 2, completions=[say, []], image=[image, None]) == [1.0, 2.0]
    assert reward(prompts=[ask] * 2, completions=[say] * 2, images=[None, []]) == [3.0, 4.0]
    assert [call[0] for call in calls] == [image, None, None, None] and all(call[2] == "" for call in calls)
    with pytest.raises(UsageError, match="row 1 of the batch has 2 images"):
        reward(prompts=[ask] * 2, completions=[say] * 2, images=[[image], [image, image]])
    with pytest.raises(UsageError, match="name the column"):
        grpo_reward_function(count_exact)(prompts=[ask], completions=[say])
