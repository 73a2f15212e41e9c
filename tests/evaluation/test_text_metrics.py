import pytest
import sacrebleu
from hypothesis import given, settings, strategies as st
from rouge_score.rouge_scorer import RougeScorer
from sacrebleu.metrics import BLEU

from helpers.evaluation.text_metrics import distinct_share, reference_metrics
from helpers.files import UsageError
from helpers.rewards.references import anls
from helpers.rewards.scoring import Score
from helpers.statistics import mean_interval, proportion

TEXTS = [
    "a red bus waits at the stop",
    "two dogs play with a ball",
    "a man",
    "the bus is red and the stop is empty",
]
REFERENCES = [
    ["a red bus waits at a stop", "the red bus is waiting at the bus stop"],
    ["two dogs play with a red ball"],
    ["a man rides a horse", "a man", "one rider"],
    ["a bus that is red and a stop that is empty", "the bus is red and the stop is full of people"],
]


# --- ANLS ---


@pytest.mark.parametrize(
    ("answer", "facts", "expected"),
    [
        ("Stop", "stop", 1),
        ("  STOP \n sign", "stop sign", 1),
        ("stap", "stop", 3 / 4),  # one letter of four
        ("cars", "car", 3 / 4),
        ("bus", "car", 0),  # three of three
        ("ab", "ax", 0),  # a distance of exactly ½
        ("abcde", "abcxy", 3 / 5),
        ("stop", ["go", "stopp", "stoppp"], 4 / 5),  # the best reference
        ("", "stop", 0),
    ],
)
def test_anls_by_hand(answer, facts, expected):
    score = anls(None, "", answer, facts)
    assert (
        isinstance(score, Score)
        and score.total == pytest.approx(expected)
        and list(score.parts) == ["anls"]
    )


def test_anls_is_a_scorer_that_refuses_other_facts():
    assert anls.__name__ == "anls"
    with pytest.raises(UsageError, match="anls: facts must be"):
        anls(None, "", "2 cars", {"cars": 2})


# --- corpus scores ---


def test_one_reference_gives_what_sacrebleu_gives():
    metrics = reference_metrics(TEXTS, [texts[0] for texts in REFERENCES])
    column = [[texts[0] for texts in REFERENCES]]
    assert metrics.bleu.value == pytest.approx(sacrebleu.corpus_bleu(TEXTS, column).score)
    assert metrics.chrf.value == pytest.approx(sacrebleu.corpus_chrf(TEXTS, column).score)
    assert metrics.bleu.low < metrics.bleu.value < metrics.bleu.high
    assert metrics.bleu_signature.startswith(
        "nrefs:1|case:mixed|eff:no|tok:13a|smooth:exp|version:"
    )
    assert metrics.chrf_signature.startswith(
        "nrefs:1|case:mixed|eff:yes|nc:6|nw:0|space:no|version:"
    )


def test_references_that_are_missing_are_no_empty_texts():
    """Repeating a reference changes nothing; padding with "" makes a length of 0 the closest one to a short answer."""
    metrics = reference_metrics(TEXTS, REFERENCES)
    repeated = [[texts[min(k, len(texts) - 1)] for texts in REFERENCES] for k in range(3)]
    assert metrics.bleu.value == pytest.approx(sacrebleu.corpus_bleu(TEXTS, repeated).score)
    assert metrics.chrf.value == pytest.approx(sacrebleu.corpus_chrf(TEXTS, repeated).score)
    assert metrics.bleu_signature.startswith("nrefs:var|") and metrics.chrf_signature.startswith(
        "nrefs:var|"
    )


def test_a_short_answer_is_not_closest_to_a_reference_that_is_missing():
    # 6 + 1 words against 6 + 5: e^(1 − 11/7) = .565. Padded with "", the second answer has a reference of 0 words
    answers, known = (
        ["a red bus waits at stops", "dogs"],
        [["a red bus waits at stops", "a bus"], ["dogs play with a ball"]],
    )
    padded = [["a red bus waits at stops", "dogs play with a ball"], ["a bus", ""]]
    assert reference_metrics(answers, known).bleu.value == pytest.approx(56.5, abs=0.05)
    assert sacrebleu.corpus_bleu(answers, padded).score == pytest.approx(100)


def test_the_interval_of_bleu_is_as_wide_as_sacrebleus():
    answers, known = TEXTS * 20, [texts[0] for texts in REFERENCES] * 20
    found = reference_metrics(answers, known).bleu
    theirs = BLEU().corpus_score(answers, [known], n_bootstrap=1000)
    assert (found.high - found.low) / 2 == pytest.approx(theirs._ci, rel=0.1)


def test_intervals_where_resamples_score_zero():
    """sacrebleu 2.6's own bootstrap fails for chrF there (TypeError of two kinds of float)."""
    metrics = reference_metrics(["a red bus waits here", ""], ["a red bus waits here", "a dog"])
    assert (metrics.chrf.low, metrics.chrf.high) == (0, pytest.approx(100))
    same, one = (
        reference_metrics(["a"] * 3, ["b"] * 3),
        reference_metrics(["a red bus waits"], ["a red bus waits"]),
    )
    assert (same.bleu.value, same.bleu.low) == (0, None) and (one.chrf.value, one.chrf.low) == (
        100,
        None,
    )


def test_rouge_is_that_of_rouge_score_and_knows_other_alphabets():
    scorer = RougeScorer(["rougeL"])
    metrics = reference_metrics(TEXTS, REFERENCES)
    direct = [
        scorer.score_multi(texts, text)["rougeL"].fmeasure
        for text, texts in zip(TEXTS, REFERENCES, strict=True)
    ]
    expected = mean_interval(direct)
    assert (metrics.rouge_l.value, metrics.rouge_l.low) == pytest.approx(
        (expected.value, expected.low)
    )
    # "a red car" against "a red bus": 2 of 3 words in order
    assert reference_metrics(["a red car"], ["A red, bus."]).rouge_l.value == pytest.approx(2 / 3)
    assert reference_metrics(["красный автобус"], ["Красный автобус."]).rouge_l.value == 1
    assert scorer.score("красный автобус", "красный автобус")["rougeL"].fmeasure == 0


@given(
    st.lists(
        st.sampled_from(["a red bus", "bus", "The dog's ball", "2 cars, 1 bus", ""]),
        min_size=1,
        max_size=6,
    )
)
@settings(max_examples=20, deadline=None)
def test_rouge_of_ascii_texts_is_the_stock_one(answers):
    found = reference_metrics(answers, ["The red bus and 2 dogs"] * len(answers)).rouge_l.value
    stock = [
        RougeScorer(["rougeL"]).score("The red bus and 2 dogs", text)["rougeL"].fmeasure
        for text in answers
    ]
    assert found == pytest.approx(sum(stock) / len(stock))


def test_distinct_by_hand():
    # words the bus the bus a: 3 different of 5; pairs the-bus bus-the the-bus, and none of the second answer: 2 / 5
    assert (
        distinct_share(["The bus, the bus", "a"], 1),
        distinct_share(["The bus, the bus", "a"], 2),
    ) == (
        3 / 5,
        2 / 5,
    )
    assert distinct_share(["", "!"], 1) is None and distinct_share(["one"], 2) == 0


# --- short answers ---


def test_short_answers_by_hand():
    # normalised: "2" and "bus" are right, "" and "a dog" are not; words 1, 2, 0, 2
    metrics = reference_metrics(
        ["Two.", "the bus", " ", "a dog"], ["2", ["coach", "bus"], "x", "cat"]
    )
    assert metrics.exact_match == proportion(2, 4) and metrics.empty == proportion(1, 4)
    # ANLS: "two." 0; "the bus" is 4 letters off "bus", of 7, and 7 off "coach": 0; 0; "a dog" 0
    assert metrics.anls.value == 0 and metrics.anls.low is None
    assert (metrics.words.value, metrics.words.n) == (5 / 4, 4)
    assert (
        reference_metrics(["the red bus"] * 2, ["the red bus"] * 2).bleu.value == 0
    )  # no four words
    assert metrics.vqa_accuracy is None  # a single reference could give 1/3 at most


def test_vqa_accuracy_needs_four_references():
    # 2 of 4 say bus: leaving out one of those leaves 1/3, of the others 2/3: (2/3 + 4/3) / 4 = 1/2
    four = ["bus", "bus", "car", "van"]
    assert reference_metrics(["bus"], [four]).vqa_accuracy.value == pytest.approx(1 / 2)
    assert reference_metrics(["bus"] * 2, [four, four[:3]]).vqa_accuracy is None
    assert reference_metrics(["bus"], [["bus"] * 4]).vqa_accuracy.value == 1


def test_right_texts_are_best_and_rows_show_every_figure():
    metrics = reference_metrics([texts[0] for texts in REFERENCES], REFERENCES)
    assert metrics.bleu.value == pytest.approx(100) and metrics.chrf.value == pytest.approx(100)
    assert metrics.rouge_l.value == metrics.anls.value == metrics.exact_match.value == 1
    rows = dict(metrics.rows())
    assert (
        rows["empty"].startswith("0.000 [")
        and rows["vqa accuracy"] == "not defined"
        and "nrefs:var" in rows["bleu signature"]
    )
    assert rows["anls"] == "1 [no interval] (n = 4)" and len(rows) == 13


@pytest.mark.parametrize(
    ("answers", "references", "message"),
    [
        (["a"], [], "1 answers, references for 0"),
        ([], [], "at least one"),
        (["a", "b"], ["a", []], r"references\[1\]"),
        (["a", "b"], ["a", ["b", " "]], r"references\[1\]"),
        (["a"], [None], r"references\[0\]"),
        ([None], ["a"], r"answers\[0\]"),
    ],
)
def test_bad_input_is_refused(answers, references, message):
    with pytest.raises(UsageError, match=message):
        reference_metrics(answers, references)
