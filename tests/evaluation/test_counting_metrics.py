import pytest
from hypothesis import given, settings, strategies as st
from sklearn.metrics import precision_recall_fscore_support

from helpers.data.counting import count_answer, is_exact
from helpers.evaluation.counting_metrics import count_metrics
from helpers.files import UsageError
from helpers.statistics import mean_interval, proportion

TRUTHS = [
    {"cars": 2, "buses": 1},
    {"cars": 0, "buses": 0},
    {"cars": 1, "buses": 3},
    {"cars": 4, "buses": 0},
]
ANSWERS = [
    "There are 2 cars, 0 buses.",
    "There are many cars.",
    "3 cars and 3 buses",
    "0 cars, 1 bus",
]


def by_name(metrics):
    return {cls.name: cls for cls in metrics.classes}


def test_figures_by_hand():
    # parsed are answers 0, 2, 3. Cars: stated 2 3 0, true 2 1 4: errors 0 +2 −4. Buses: 0 3 1, true 1 3 0: −1 0 +1
    metrics = count_metrics(ANSWERS, TRUTHS)
    assert metrics.unparsed == proportion(1, 4) and metrics.exact == proportion(0, 4)
    cars, buses = metrics.classes
    assert cars.exact == proportion(1, 4) and buses.exact == proportion(1, 4)
    assert cars.absolute_error.value == 2 and cars.bias.value == pytest.approx(-2 / 3)
    assert (cars.bias.low, cars.bias.high) == pytest.approx(
        mean_interval([0, 2, -4])[1:]
    ) and cars.bias.n == 3
    assert buses.absolute_error.value == pytest.approx(2 / 3) and buses.bias.value == 0
    # cars: stated of 2 answers, both true; true of 3. Buses: stated of 2, one true; true of 2
    assert (cars.precision, cars.recall, cars.f1) == (proportion(2, 2), proportion(2, 3), 0.8)
    assert (buses.precision, buses.recall, buses.f1) == (proportion(1, 2), proportion(1, 2), 0.5)
    assert metrics.macro == pytest.approx(
        {
            "exact": 1 / 4,
            "absolute_error": 4 / 3,
            "bias": -1 / 3,
            "precision": 3 / 4,
            "recall": 7 / 12,
            "f1": 0.65,
        }
    )


def test_an_unparsed_answer_is_not_an_answer_of_zero():
    """It is wrong where the truth is 0 and adds no error; with it the share of exact answers falls."""
    truths = [{"cars": 0}, {"cars": 0}, {"cars": 5}]
    metrics = count_metrics(["0 cars", "none that I see", "no idea"], truths)
    cars = metrics.classes[0]
    assert metrics.unparsed == proportion(2, 3) and metrics.exact == cars.exact == proportion(1, 3)
    assert (cars.absolute_error.value, cars.absolute_error.n) == (0, 1)


def test_nothing_parsed_leaves_figures_undefined():
    metrics = count_metrics(["?", ""], [{"cars": 1}, {"cars": 0}])
    cars = metrics.classes[0]
    assert metrics.unparsed.value == 1 and cars.exact == proportion(0, 2)
    assert (cars.absolute_error, cars.bias, cars.precision, cars.recall, cars.f1) == (None,) * 5
    assert metrics.macro["exact"] == 0 and metrics.macro["f1"] is None
    assert metrics.rows()[1][2:] == ["not defined"] * 5


def test_presence_without_positives():
    """No bus anywhere: recall and F1 have nothing to find. One that is claimed has precision 0."""
    claimed = count_metrics(["1 bus", "0 buses"], [{"buses": 0}] * 2).classes[0]
    assert (claimed.precision, claimed.recall, claimed.f1) == (proportion(0, 1), None, None)
    missed = count_metrics(["0 buses"], [{"buses": 2}]).classes[0]
    assert (missed.precision, missed.recall, missed.f1) == (None, proportion(0, 1), 0)
    assert (missed.bias.value, missed.bias.low) == (-2, None)  # one value has no interval


def test_questions_may_ask_for_different_classes():
    metrics = count_metrics(
        ["1 car", "2 buses, 1 car", "3 buses"], [{"cars": 1}, {"cars": 1, "buses": 2}, {"buses": 1}]
    )
    assert by_name(metrics)["cars"].exact == proportion(2, 2)
    assert by_name(metrics)["buses"].exact == proportion(1, 2) and metrics.exact == proportion(2, 3)


def test_the_table_has_a_row_for_each_class():
    rows = count_metrics(ANSWERS, TRUTHS).rows()
    assert [row[0] for row in rows] == [
        "class", "cars", "buses", "mean of the classes", "every class at once", "unparsed"
    ]  # fmt: skip
    assert {len(row) for row in rows} == {7}
    assert rows[0][1:3] == ["exact, all", "absolute error, parsed"] and rows[5][1].startswith(
        "0.250 ["
    )


COUNTS = st.fixed_dictionaries({"cars": st.integers(0, 3), "buses": st.integers(0, 3)})


@given(st.lists(st.tuples(COUNTS, st.none() | COUNTS), min_size=1, max_size=20))
@settings(max_examples=30, deadline=None)
def test_figures_agree_with_other_implementations(rows):
    truths, said = zip(*rows, strict=True)
    answers = ["unclear" if counts is None else count_answer(counts) for counts in said]
    metrics = count_metrics(answers, truths)
    assert metrics.exact == proportion(sum(map(is_exact, answers, truths)), len(rows))
    parsed = [(true, counts) for true, counts in rows if counts is not None]
    for cls in metrics.classes:
        true = [truth[cls.name] > 0 for truth, _ in parsed]
        stated = [counts[cls.name] > 0 for _, counts in parsed]
        if any(true) and any(stated):
            p, r, f, _ = precision_recall_fscore_support(
                true, stated, average="binary", zero_division=0
            )
            assert (cls.precision.value, cls.recall.value, cls.f1) == pytest.approx((p, r, f))
        assert cls.bias is None or abs(cls.bias.value) <= cls.absolute_error.value


@pytest.mark.parametrize(
    ("answers", "truths", "message"),
    [
        (["1 car"], [], "1 answers and 0 truths"),
        ([], [], "0 answers"),
        (["1 car"], [{}], r"truths\[0\]"),
        (["1 car"] * 2, [{"cars": 1}, {"cars": 1.5}], r"truths\[1\]"),
        (["1 car"], [{"cars": -1}], r"truths\[0\]"),
        (["1 car"], [None], r"truths\[0\]"),
        ([None], [{"cars": 1}], "not a text"),
    ],
)
def test_bad_input_is_refused(answers, truths, message):
    with pytest.raises(UsageError, match=message):
        count_metrics(answers, truths)
