import pytest
from hypothesis import given, settings, strategies as st

from helpers.data.counting import count_answer
from helpers.evaluation.hallucination import (
    chair_metrics,
    object_mentions,
    phrase_index,
)
from helpers.files import UsageError
from helpers.statistics import proportion

SYNONYMS = {
    "dog": ["puppy", "pup"],
    "hot dog": [],
    "person": ["man", "people", "baby", "child", "children", "passenger"],
    "toilet": ["lavatory"],
    "chair": ["seat"],
    "bus": ["minibus"],
    "knife": [],
    "wine glass": [],
    "tie": ["bow"],
    "train": [],
    "oven": ["stove", "stove top oven"],
}
INDEX = phrase_index(SYNONYMS)


def found(text, index=INDEX):
    return [mention.object for mention in object_mentions(text, index)]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("A dog and two dogs.", ["dog", "dog"]),  # every mention counts
        ("a hot dog", ["hot dog"]),
        ("HOT DOGS, dogs", ["hot dog", "dog"]),
        ("a hot, dog", ["dog"]),  # a mark keeps words apart
        ("the dog's puppies", ["dog", "dog"]),
        ("three minibuses, a bus", ["bus", "bus"]),
        ("knives, wine glasses", ["knife", "wine glass"]),
        ("two men and a woman", ["person"]),  # "woman" is not listed, and holds "man"
        ("a dogma, a catfish, glasses", []),
        ("a stove top oven", ["oven"]),
        ("a baby dog", ["dog"]),  # no person
        ("baby dogs and a baby", ["dog", "person"]),
        ("a baby elephant", []),  # no person, and elephants are not listed
        ("a passenger train", ["train"]),
        ("a passenger of the train", ["person", "train"]),
        ("a man's bow tie", ["person", "tie"]),
        ("a toilet seat", ["toilet"]),
        (
            "a lavatory and a seat",
            ["toilet", "chair"],
        ),  # the official rule looks for the word toilet
        ("a toilet with two seats, a chair", ["toilet", "chair"]),
        ("", []),
    ],
)
def test_mentions(text, expected):
    assert found(text) == expected


def test_singulars_of_names_that_are_plurals():
    """Counting classes are plurals, and double words work for them, too."""
    index = phrase_index({"buses": [], "wine_glasses": [], "puppies": [], "dogs": []})
    assert found("a bus, 2 buses, a wine glass, one puppy, a baby dog", index) == [
        "buses", "buses", "wine_glasses", "puppies", "dogs"
    ]  # fmt: skip


def test_a_listed_word_goes_before_a_made_plural():
    """ "Glasses" are spectacles if the list says so."""
    assert found("a glass, glasses", phrase_index({"glass": [], "spectacles": ["glasses"]})) == [
        "glass",
        "spectacles",
    ]


@given(
    st.lists(
        st.sampled_from(
            ["a", "red", "dog", "hot", "baby", "train", "passenger", "pup", "seat", ",", "man"]
        )
    )
)
def test_singular_words_are_read_as_the_official_rules_say(words):
    """Pairs of words from left to right, then what is listed; written down once more without phrases."""
    pairs = {("hot", "dog"): "hot dog", ("baby", "dog"): "dog", ("passenger", "train"): "train"}
    listed = {word: name for name, others in SYNONYMS.items() for word in (name, *others)}
    expected, rest = [], list(words)
    while rest:
        pair = pairs.get(tuple(rest[:2]))
        word, rest = (pair, rest[2:]) if pair else (rest[0], rest[1:])
        expected += [listed[word]] if word in listed else []
    assert found(" ".join(words)) == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("no bus", [True]),
        ("0 buses", [True]),
        ("zero red buses", [True]),
        ("There isn't a bus.", [True]),
        ("There isn’t a bus.", [True]),
        ("no dog or bus", [True, True]),
        ("without dogs. A bus", [True, False]),
        ("no dogs but buses", [True, False]),
        ("0 dogs 2 buses", [True, False]),
        ("0 dogs two buses", [True, False]),
        ("no dogs, one bus", [True, False]),
        ("not only a bus", [False]),
        ("there is no other kind of bus", [False]),  # more than three words before
        ("10 buses", [False]),
        ("a bus", [False]),
    ],
)
def test_denied_mentions(text, expected):
    assert [mention.negated for mention in object_mentions(text, INDEX)] == expected


# --- CHAIR ---


def test_figures_by_hand():
    # mentions: dog dog person | bus | – | dog. There: dog | person | dog bus | dog. False: person, bus
    captions = ["A dog, a dog and a man", "a bus", "it is sunny", "the puppy"]
    metrics = chair_metrics(
        captions, [["dog"], ["person"], ["puppy", "bus"], ["dog", "dog"]], SYNONYMS
    )
    assert metrics.chair_i == proportion(2, 5) and metrics.chair_s == proportion(2, 4)
    assert metrics.recall == proportion(2, 5)  # dog, dog of dog; person; dog, bus; dog
    assert metrics.silent == proportion(1, 4)
    assert metrics.negated == proportion(0, 5) and metrics.false_negated == proportion(0, 2)
    assert metrics.rows()[1] == ["CHAIR_i", str(proportion(2, 5))]


def test_saying_nothing_has_no_hallucination_and_no_recall():
    metrics = chair_metrics(["", "nice"], [["dog"], ["bus"]], SYNONYMS)
    assert metrics.chair_s.value == 0 and metrics.chair_i is None and metrics.negated is None
    assert metrics.recall == proportion(0, 2) and metrics.silent.value == 1
    assert chair_metrics(["a dog"], [[]], SYNONYMS).recall is None
    assert chair_metrics([""], [[]], SYNONYMS).rows()[1:4:2] == [
        ["CHAIR_i", "not defined"],
        ["recall", "not defined"],
    ]


def test_a_true_answer_of_zero_buses_is_a_hallucination_to_the_official_metric():
    truth = {"dogs": 2, "buses": 0}
    synonyms = {"dogs": [], "buses": []}
    official = chair_metrics([count_answer(truth)], [truth], synonyms)
    assert official.chair_i == proportion(1, 2) and official.chair_s.value == 1
    assert official.negated == proportion(1, 2) and official.false_negated == proportion(1, 1)


OBJECTS = st.sets(st.sampled_from(["dog", "bus", "person", "train"]))


@given(
    st.lists(
        st.tuples(st.lists(st.sampled_from(["dogs", "bus", "a man", "train"])), OBJECTS), min_size=1
    )
)
@settings(max_examples=40, deadline=None)
def test_limits(rows):
    captions, objects = [", ".join(words) for words, _ in rows], [there for _, there in rows]
    metrics = chair_metrics(captions, objects, SYNONYMS)
    assert (metrics.chair_s.value == 0) == (metrics.chair_i is None or metrics.chair_i.value == 0)
    everything = chair_metrics(captions, [["dog", "bus", "person", "train"]] * len(rows), SYNONYMS)
    assert everything.chair_s.value == 0 and everything.silent == metrics.silent
    mentioned = chair_metrics(captions, [found(caption) for caption in captions], SYNONYMS)
    assert mentioned.recall is None or mentioned.recall.value == 1


@pytest.mark.parametrize(
    ("captions", "objects", "message"),
    [
        (["a dog"], [], "1 captions, objects of 0"),
        ([], [], "at least one"),
        (["a dog"] * 2, [["dog"], ["cat"]], r"objects\[1\]: \['cat'\]"),
        (["a dog"], [["baby elephant"]], r"objects\[0\]"),
        (["a dog"], ["dog"], "is 'dog'; give a list"),
        (["a dog"], [{"dog": None}], "or counts"),
        ([None], [["dog"]], "None is given as a caption"),
    ],
)
def test_bad_input_is_refused(captions, objects, message):
    with pytest.raises(UsageError, match=message):
        chair_metrics(captions, objects, SYNONYMS)


# --- synonyms ---


def test_words_that_stand_twice_and_capital_letters():
    """As MSCOCO's list has them."""
    index = phrase_index({"bicycle": ["bike", "bicycle", "bike"], "cell phone": ["iPhone"]})
    assert found("bikes, an iPhone", index) == ["bicycle", "cell phone"]


@pytest.mark.parametrize(
    ("synonyms", "message"),
    [
        ({"bus": "minibus"}, "give a list of words"),
        ({"bus": ["coach"], "dog": ["coach"]}, "'coach' is listed for 'bus' and for 'dog'"),
        ({"bus": ["_"]}, "'_' of 'bus' has no word"),
    ],
)
def test_synonyms_that_do_not_fit_are_refused(synonyms, message):
    with pytest.raises(UsageError, match=message):
        phrase_index(synonyms)
