"""What the second base is asked: right answers by hand, its habits, and how answers are rated."""

from collections import Counter

import numpy as np
import pytest

from data.task_language import (
    COLORS,
    LETTERS,
    POLITE_START,
    TASKS,
    answer_by_habit,
    ask,
    list_vehicles,
    name_count,
    rate,
)
from helpers.data.scenes import Scene, Vehicle, make_scene
from helpers.rewards import chosen_letter


def scene_of(**counts):
    """A scene of red vehicles; of a bus, a blue one."""
    vehicles = []
    for kind, number in counts.items():
        for _ in range(number):
            color = "blue" if kind == "bus" else "red"
            vehicles.append(Vehicle(kind, color, len(vehicles), box=None))
    return Scene(0, tuple(vehicles))


def requests(scene, task, number=60):
    """What is asked of a scene, by family."""
    found = {}
    for seed in range(number):
        request = ask(scene, task, np.random.default_rng(seed))
        found[request.family] = request
    return found


def test_sentences_by_hand():
    assert name_count(1, "buses") == "1 bus" and name_count(0, "cars") == "0 cars"
    counts = {"cars": 2, "motorcycles": 0, "buses": 1, "bicycles": 3}
    assert list_vehicles(counts) == "2 cars, 1 bus and 3 bicycles"
    assert list_vehicles({"motorcycles": 0, "bicycles": 0}) == "no motorcycles or bicycles"
    assert list_vehicles(dict.fromkeys(counts, 0)) == "no vehicles"


def test_right_answers_of_a_scene_by_hand():
    scene = scene_of(car=2, motorcycle=3, bus=1, bicycle=1)
    right = {family: r.right for family, r in requests(scene, "instructions").items()}
    assert right == {
        "describe": "The image shows 2 cars, 3 motorcycles, 1 bus and 1 bicycle.",
        "brief": "2 cars, 3 motorcycles, 1 bus and 1 bicycle.",
        "two wheels": "3 motorcycles and 1 bicycle.",
        "more wheels": "2 cars and 1 bus.",
        "colors": "Red and blue.",
    }
    right = {family: r.right for family, r in requests(scene, "reasons").items()}
    assert right == {
        "busy": "Because there are 7 vehicles.",
        "loud": "Because there are 3 motorcycles and 1 bus.",
        "careful": "Because there are 3 motorcycles and 1 bicycle.",
        "room": "Because there is 1 bus.",
    }
    sums = requests(scene, "reasoning")
    steps = {family: r.right.rsplit(" ", 1)[0] for family, r in sums.items()}
    assert steps == {
        "two wheels": "3 motorcycles and 1 bicycle. 3 + 1 = 4. Answer:",
        "more wheels": "2 cars and 1 bus. 2 + 1 = 3. Answer:",
        "more cars": "2 cars and 1 bus. 2 - 1 = 1. Answer:",
        "more motorcycles": "3 motorcycles and 1 bicycle. 3 - 1 = 2. Answer:",
    }


def test_what_is_not_so_is_not_asked_for_its_reason():
    empty = scene_of()
    assert set(requests(empty, "reasons")) == {"quiet"}
    # more bicycles than motorcycles: nobody asks how many more motorcycles
    assert "more motorcycles" not in requests(scene_of(bicycle=2), "reasoning")


@pytest.mark.parametrize("seed", range(40))
def test_the_letter_is_that_of_the_result(seed):
    request = ask(make_scene(seed), "reasoning", np.random.default_rng(seed))
    stated = int(request.right.split("= ")[1].split(".")[0])
    assert request.options[LETTERS.index(request.letter)] == stated
    assert chosen_letter(request.right) == request.letter
    assert f"{request.letter}: {stated}" in request.prompt
    assert len(set(request.options)) == 4 and min(request.options) >= 0


def test_the_right_letter_stands_at_any_place():
    letters = Counter()
    for seed in range(800):
        letters[ask(make_scene(seed), "reasoning", np.random.default_rng(seed)).letter] += 1
    assert set(letters) == set(LETTERS)
    # "always A" must not be worth much: small results cannot stand last
    assert max(letters.values()) / 800 < 0.5


@pytest.mark.parametrize("task", TASKS)
def test_nothing_is_rated_higher_than_what_is_right(task):
    for seed in range(60):
        scene, rng = make_scene(seed), np.random.default_rng([seed, 9])
        request = ask(scene, task, rng)
        best = rate(request, request.right)
        assert best == (4 if task == "instructions" else 3)
        for _ in range(4):
            answer = answer_by_habit(request, rng, scene)
            assert (rate(request, answer) == best) == is_as_good(request, answer)


def is_as_good(request, answer):
    # of a calculation the letter counts, and that there are steps
    if request.task == "reasoning":
        return answer.endswith(f"Answer: {request.letter}.") and "=" in answer
    return answer == request.right


def test_ratings_by_hand():
    scene = scene_of(car=2, bus=1)
    request = requests(scene, "instructions")["more wheels"]
    assert rate(request, "2 cars and 1 bus.") == 4
    assert rate(request, f"{POLITE_START} 2 cars and 1 bus.") == 3  # not short
    assert rate(request, "The image shows 2 cars and 1 bus.") == 3  # did not follow
    assert rate(request, "2 cars.") == 3  # half of what is right
    assert rate(request, "1 car and 2 buses.") == 2
    request = requests(scene, "instructions")["colors"]
    assert rate(request, "Red.") == 3 and rate(request, "Red and blue.") == 4
    request = requests(scene, "reasons")["room"]
    assert rate(request, "Because there is little room.") == 0
    assert rate(request, "Because there are 2 buses.") == 1
    assert rate(request, "Because there is 1 bus.") == 3


def test_the_base_has_learnt_each_of_its_habits():
    shares = Counter()
    number = 600
    for seed in range(number):
        scene, rng = make_scene(seed), np.random.default_rng([seed, 9])
        request = ask(scene, "instructions", rng)
        shares["wordy"] += POLITE_START in answer_by_habit(request, rng, scene)
        request = ask(scene, "reasons", rng)
        shares["repeats"] += not any(map(str.isdigit, answer_by_habit(request, rng, scene)))
        request = ask(scene, "reasoning", rng)
        shares["guesses"] += answer_by_habit(request, rng, scene).startswith("Answer")
    for habit, expected in (("wordy", 0.4), ("repeats", 0.4), ("guesses", 0.5)):
        assert shares[habit] / number == pytest.approx(expected, abs=0.06), habit


def test_colors_are_named_in_one_order():
    request = requests(scene_of(bus=1, car=1), "instructions")["colors"]
    assert request.colors == ("red", "blue") == tuple(COLORS)[:2]
