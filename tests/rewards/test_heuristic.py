"""The heuristic: which words it knows, what each rule pays, and what counts as a contradiction."""

import numpy as np
import pytest
from counted_scene import QUESTION, TRUTH, classes, counts, texts
from hypothesis import given, strategies as st
from PIL import Image

from helpers.data.counting import count_answer, count_question
from helpers.files import UsageError
from helpers.rewards.heuristic import (
    HEURISTIC_RULES,
    HeuristicRule,
    content_words,
    is_english,
    is_mentioned,
    stated_counts,
)
from helpers.rewards.scoring import heuristic_scorer, score_all


def part(name, answer, facts=None, question=""):
    return heuristic_scorer()(None, question, answer, facts).parts[name]


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


letters = st.text(
    "abcdfghjklmnpqrtuvwyzäéж", min_size=3, max_size=8
)  # without the letters of plural endings


@given(letters, letters)
def test_a_word_is_found_between_boundaries_and_nowhere_else(word, other):
    for text in (word, f"one {word}, two", f"({word.upper()})", f"{word}s", f"{other} {word}."):
        assert is_mentioned(text, word)
    assert not is_mentioned(other + word, word) and not is_mentioned(word + other, word)


def test_content_words():
    assert content_words(
        "How many cars, and is the car's driver in the image? I don't see Cars."
    ) == [
        "cars",
        "driver",
        "see",
    ]


def test_a_score_is_a_number_and_says_where_it_comes_from():
    # 0.1 (cars) + 0.5 (because) − 1 (5 is not 2)
    score = heuristic_scorer()(None, "How many cars?", "5 cars, because I say it.", {"cars": 2})
    assert score.total == pytest.approx(-0.4)
    assert {name: value for name, value in score.parts.items() if value} == {
        "grounding": 0.1,
        "reasoning": 0.5,
        "wrong_count": -1.0,
    }
    with pytest.raises(AttributeError):
        score.total = 1.0


def test_grounding_counts_distinct_words_of_question_and_known_classes():
    # dog and ball of the question; "dogs" is "dog" again, "the" is no content word
    assert (
        part(
            "grounding",
            "The dog and other dogs have the ball.",
            question="Does the dog chase the ball?",
        )
        == 0.2
    )
    # RBC of the classes is also in the question: once
    assert (
        part("grounding", "RBC and platelets", {"RBC": 1, "platelets": 0}, "How many RBC?") == 0.2
    )


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


CONTRADICTIONS = [rule.name for rule in HEURISTIC_RULES if rule.weight < 0]


def contradictions(answer, facts=None, question=""):
    parts = heuristic_scorer()(None, question, answer, facts).parts
    return {name for name in CONTRADICTIONS if parts[name]}


@given(counts, st.integers(0, 1))
def test_neither_the_truth_nor_the_question_is_a_contradiction(truth, wording):
    words = ", ".join(f"no {name}" if n == 0 else f"{n} {name}" for name, n in truth.items())
    question = count_question(list(truth), wording)
    for answer in (
        count_answer(truth),
        f"There are {words}.",
        question,
        f"{question} {count_answer(truth)}",
    ):
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
        (
            "One bus.",
            "wrong_count",
        ),  # a number is the matter of wrong_count, so that one error costs 1.0
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
    assert stated_counts("3 buss", ["buses"]) == {
        "buses": [3]
    }  # the published misspelling that `counting` reads
    assert stated_counts("Two cars, no bus, 4 red cars, 1,5 cars", ["cars", "buses"]) == {
        "cars": [2, 5],
        "buses": [0],
    }


def test_weights_are_replaced_by_name():
    score = heuristic_scorer({"reasoning": 3, "grounding": 0})
    assert score(None, "How many cars?", "cars, so", None).total == 3
    assert heuristic_scorer({"wrong_count": -0.25})(
        None, "", "1 car", FACTS
    ).total == pytest.approx(0.1 - 0.25)
    with pytest.raises(
        ValueError, match=r"no rule is called logic\. Choose from grounding, reasoning, wrong_count"
    ):
        heuristic_scorer({"logic": 1})


def test_the_table_of_rules():
    weights = {rule.name: rule.weight for rule in HEURISTIC_RULES}
    assert weights == {"grounding": 0.1, "reasoning": 0.5} | dict.fromkeys(CONTRADICTIONS, -1.0)
    assert all(
        rule.description.endswith(".") and "\n" not in rule.description for rule in HEURISTIC_RULES
    )


@given(texts, texts, st.none() | classes | texts | st.lists(texts))
def test_no_text_breaks_the_heuristic(question, answer, facts):
    score = heuristic_scorer()(None, question, answer, facts)
    assert score.total == sum(score.parts.values()) and np.isfinite(score.total)
    assert set(score.parts) == {rule.name for rule in HEURISTIC_RULES}


# --- own rules, and other languages ---


def shouting(question, answer, facts):
    """True if the answer is in capitals."""
    return answer.isupper()


def test_own_rules_stand_beside_the_others():
    own = [HeuristicRule("shouting", -2.0, shouting), HeuristicRule("long", 0.1, lambda q, a, f: 3)]
    found = heuristic_scorer(rules=own)(None, "", "NO BOAT, SO", None)
    assert found.parts["shouting"] == -2 and found.parts["long"] == pytest.approx(0.3)
    assert found.parts["reasoning"] == 0.5 and found.total == pytest.approx(-1.2)
    other = heuristic_scorer({"shouting": 1, "reasoning": 0}, own)(None, "", "NO BOAT, SO", None)
    assert other.total == pytest.approx(1.3)
    with pytest.raises(UsageError, match=r"rules: two have the same name \(grounding, .*grounding"):
        heuristic_scorer(rules=[HeuristicRule("grounding", 1, shouting)])
    with pytest.raises(UsageError, match=r"no rule is called shout\. .*, shouting, long"):
        heuristic_scorer({"shout": 1}, own)
    wrong = heuristic_scorer(rules=[HeuristicRule("none", 1, lambda q, a, f: None)])
    with pytest.raises(UsageError, match="rule 'none': gave None for the answer 'a boat'"):
        wrong(None, "", "a boat", None)


ENGLISH = [
    "There are 2 cars, 0 buses in the image.",
    "A dog is on a sofa and sleeps by the window.",
    "The larger house stands behind two trees.",
    "It shows a red boat, which is near the shore.",
]
OTHERS = [
    "Ein Hund liegt auf dem Sofa und schläft.",
    "Der Mann steht in der Küche und kocht so gut es geht.",
    "El perro no está en la casa, está en el jardín.",
    "Il y a un chien sur le canapé rouge.",
    "Il cane è in casa con la sua palla.",
    "De kat is in de tuin van de buren.",
    "图中有两辆车和一条狗。",
    "На картинке две машины и собака.",
]


@pytest.mark.parametrize("text", ENGLISH)
def test_english_is_known_by_its_small_words(text):
    assert is_english(text) is True


@pytest.mark.parametrize("text", OTHERS)
def test_other_languages_are_not_english(text):
    assert is_english(text) is False


@pytest.mark.parametrize("text", ["", "2", "Zebra.", "Yes.", "Rotes Auto", "3 cars, 2 buses"])
def test_short_answers_have_no_language(text):
    assert is_english(text) is None


def test_it_is_said_once_that_the_rules_are_english(capsys):
    def heard(answers):
        score_all(heuristic_scorer(), [(None, "?", answer, None) for answer in answers])
        return capsys.readouterr().out

    assert heard(ENGLISH) == "" == heard(["Rotes Auto"] * 5)
    assert heard(ENGLISH + OTHERS[:4]) == ""  # as many: not most
    assert "know English words only" in heard(ENGLISH[:2] + OTHERS)
    assert heard(OTHERS) == ""  # said before
