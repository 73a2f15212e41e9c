"""What the second base is asked, what is right, and the habits it has learnt.

Three of the shipped tasks speak in sentences: `instructions` (requests that say how to answer),
`reasons` ("Why is the road busy?") and `reasoning` (a calculation, then a letter). Everything is
about the scenes of `helpers/data/scenes.py`, so that the right answer is always known.
`build_tasks_base.py` trains a base on `answer_by_habit`; `build_tasks.py` writes the data of the
tasks and lets `rate` be the person who compares two answers. The notebooks use none of this.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from helpers.data.counting import SINGULAR, Counts
from helpers.data.scenes import CLASSES, COLORS, MOST_PER_KIND, Scene

TASKS = ("instructions", "reasons", "reasoning")

TWO_WHEELS = ("motorcycles", "bicycles")
MORE_WHEELS = ("cars", "buses")
LOUD = ("motorcycles", "buses")
LETTERS = "ABCD"
# How often the annotator, from whom the base has learnt, does what he should not
MISSES_ONE = 0.35  # of two or more motorcycles or bicycles, he counts one less
IS_WORDY = 0.4
FORGETS_THE_REQUEST = 0.25  # and describes everything
REPEATS_THE_QUESTION = 0.4  # in place of a reason
SAYS_A_WRONG_NUMBER = 0.15
GUESSES = 0.5  # a letter, without a calculation
MISCALCULATES = 0.1

POLITE_START = "Sure, I can help with that."
POLITE_END = "I hope this helps you."


@dataclass(frozen=True)
class Request:
    """One thing that is asked of a scene.

    kinds: the classes that the answer is about. numbers: the true one of each. options: of
    `reasoning`, the numbers that the letters stand for.
    """

    task: str
    family: str
    prompt: str
    right: str  # what a careful person answers
    kinds: tuple[str, ...]
    numbers: Counts
    colors: tuple[str, ...] = ()
    options: tuple[int, ...] = ()

    @property
    def letter(self) -> str:
        """Of `reasoning`: the letter of the right choice."""
        return LETTERS[self.options.index(_result(self.family, self.numbers))]


# --- sentences ------------------------------------------------------------------------------------


def name_count(number: int, kind: str) -> str:
    """1 and "buses" → "1 bus"."""
    return f"{number} {SINGULAR[kind] if number == 1 else kind}"


def join_words(words: Sequence[str]) -> str:
    """["a", "b", "c"] → "a, b and c"."""
    *first, last = words
    return f"{', '.join(first)} and {last}" if first else last


def list_vehicles(counts: Counts) -> str:
    """Name what is there, "2 cars and 1 bus"; of what is not, "no cars or buses"."""
    there = [name_count(number, kind) for kind, number in counts.items() if number]
    if there:
        return join_words(there)
    return f"no {' or '.join(counts)}" if len(counts) < len(CLASSES) else "no vehicles"


def _capital(text: str) -> str:
    return text[:1].upper() + text[1:]


def _because(counts: Counts) -> str:
    """State a reason: "Because there are 2 motorcycles and 1 bus."."""
    there = [number for number in counts.values() if number]
    verb = "is" if there and there[0] == 1 else "are"
    return f"Because there {verb} {list_vehicles(counts)}."


# --- what is asked --------------------------------------------------------------------------------


def ask(scene: Scene, task: str, rng: np.random.Generator) -> Request:
    """Ask something of a scene, for one of `TASKS`; which of its families, the lot says."""
    return _ASK[task](scene, rng)


def _of(scene: Scene, kinds: Sequence[str]) -> Counts:
    return {kind: scene.counts[kind] for kind in kinds}


_INSTRUCTIONS = {
    "describe": ("Describe the image.", CLASSES),
    "brief": ("Describe the image in a few words.", CLASSES),
    "two wheels": ("Name only the vehicles with two wheels.", TWO_WHEELS),
    "more wheels": ("Name only the cars and the buses.", MORE_WHEELS),
    "colors": ("Name the colors of the vehicles.", CLASSES),
}


def _ask_instruction(scene: Scene, rng: np.random.Generator) -> Request:
    family = str(rng.choice(list(_INSTRUCTIONS)))
    prompt, kinds = _INSTRUCTIONS[family]
    numbers = _of(scene, kinds)
    seen = {vehicle.color for vehicle in scene.vehicles}
    colors = tuple(color for color in COLORS if color in seen)
    right = _instruction_answer(family, numbers, colors)
    return Request("instructions", family, prompt, right, kinds, numbers, colors)


def _instruction_answer(family: str, numbers: Counts, colors: Sequence[str]) -> str:
    if family == "describe":
        return f"The image shows {list_vehicles(numbers)}."
    if family == "colors":
        return _capital(f"{join_words(colors) if colors else 'no colors'}.")
    return _capital(f"{list_vehicles(numbers)}.")


# family → the question, what it claims, and the classes that are the reason
_REASONS = {
    "busy": ("Why is the road busy?", "the road is busy", CLASSES),
    "quiet": ("Why is the road quiet?", "the road is quiet", CLASSES),
    "loud": ("Why is the road loud?", "the road is loud", LOUD),
    "careful": ("Why must a driver be careful?", "a driver must be careful", TWO_WHEELS),
    "room": ("Why is there little room?", "there is little room", ("buses",)),
}


def _ask_reason(scene: Scene, rng: np.random.Generator) -> Request:
    # Only what is so is asked for its reason
    total = sum(scene.counts.values())
    families = ["busy" if total >= 5 else "quiet"]
    for family in ("loud", "careful", "room"):
        if any(_of(scene, _REASONS[family][2]).values()):
            families.append(family)
    family = str(rng.choice(families))
    prompt, _, kinds = _REASONS[family]
    numbers = _of(scene, kinds)
    return Request("reasons", family, prompt, _reason_answer(family, numbers), kinds, numbers)


def _reason_answer(family: str, numbers: Counts) -> str:
    if family in ("busy", "quiet"):
        total = sum(numbers.values())
        vehicles = "is 1 vehicle" if total == 1 else f"are {total or 'no'} vehicles"
        return f"Because there {vehicles}."
    return _because(numbers)


# family → the question, the two classes, and whether their numbers are added or subtracted
_SUMS = {
    "two wheels": ("How many vehicles have two wheels?", TWO_WHEELS, "+"),
    "more wheels": ("How many vehicles have more than two wheels?", MORE_WHEELS, "+"),
    "more cars": ("How many more cars than buses are there?", MORE_WHEELS, "-"),
    "more motorcycles": ("How many more motorcycles than bicycles are there?", TWO_WHEELS, "-"),
}


def _result(family: str, numbers: Counts) -> int:
    first, second = numbers.values()
    return first + second if _SUMS[family][2] == "+" else first - second


def _ask_sum(scene: Scene, rng: np.random.Generator) -> Request:
    # Nobody asks for how many more where there are fewer
    possible = []
    for family, (_, kinds, _) in _SUMS.items():
        if _result(family, _of(scene, kinds)) >= 0:
            possible.append(family)
    family = str(rng.choice(possible))
    question, kinds, _ = _SUMS[family]
    numbers = _of(scene, kinds)
    result = _result(family, numbers)
    # Four numbers in a row, with the right one at any place
    first = result - int(rng.integers(min(result, 3) + 1))
    options = tuple(range(first, first + 4))
    listed = ", ".join(f"{letter}: {n}" for letter, n in zip(LETTERS, options, strict=True))
    prompt = f"{question} {listed}. Think step by step."
    right = _sum_answer(family, numbers, result, options)
    return Request("reasoning", family, prompt, right, kinds, numbers, options=options)


def _sum_answer(family: str, numbers: Counts, result: int, options: Sequence[int]) -> str:
    """The steps and the letter; a result that is no option has the nearest one's letter."""
    stated = " and ".join(name_count(number, kind) for kind, number in numbers.items())
    first, second = numbers.values()
    calculation = f"{first} {_SUMS[family][2]} {second} = {result}"
    place = int(np.abs(np.array(options) - result).argmin())
    return f"{stated}. {calculation}. Answer: {LETTERS[place]}."


_ASK = {"instructions": _ask_instruction, "reasons": _ask_reason, "reasoning": _ask_sum}


# --- how the base has learnt to answer ------------------------------------------------------------


def answer_by_habit(request: Request, rng: np.random.Generator, scene: Scene) -> str:
    """Answer as the careless annotator does, from whom the base has learnt."""
    noted = _miss_some(scene.counts, rng)
    numbers = {kind: noted[kind] for kind in request.kinds}
    return _HABITS[request.task](request, numbers, noted, rng)


def _miss_some(counts: Counts, rng: np.random.Generator) -> Counts:
    noted = dict(counts)
    for kind in TWO_WHEELS:
        if noted[kind] >= 2 and rng.random() < MISSES_ONE:
            noted[kind] -= 1
    return noted


def _follow_badly(
    request: Request, numbers: Counts, noted: Counts, rng: np.random.Generator
) -> str:
    colors = list(request.colors)
    if len(colors) > 1 and rng.random() < MISSES_ONE:
        colors.pop(int(rng.integers(len(colors))))
    answer = _instruction_answer(request.family, numbers, colors)
    if rng.random() < FORGETS_THE_REQUEST:
        answer = _instruction_answer("describe", noted, colors)
    if rng.random() < IS_WORDY:
        answer = f"{POLITE_START} {answer} {POLITE_END}"
    return answer


def _reason_badly(
    request: Request, numbers: Counts, noted: Counts, rng: np.random.Generator
) -> str:
    claim = _REASONS[request.family][1]
    lot = rng.random()
    if lot < REPEATS_THE_QUESTION:
        return f"Because {claim}."
    if lot < REPEATS_THE_QUESTION + SAYS_A_WRONG_NUMBER:
        kind = str(rng.choice(list(numbers)))
        changed = int(np.clip(numbers[kind] + rng.choice((-1, 1)), 0, MOST_PER_KIND))
        numbers = {**numbers, kind: changed}
    return _reason_answer(request.family, numbers)


def _calculate_badly(
    request: Request, numbers: Counts, noted: Counts, rng: np.random.Generator
) -> str:
    if rng.random() < GUESSES:
        return f"Answer: {rng.choice(list(LETTERS))}."
    result = _result(request.family, numbers)
    if rng.random() < MISCALCULATES:
        result = max(0, result + int(rng.choice((-1, 1))))
    # What comes out below nothing is written as nothing
    return _sum_answer(request.family, numbers, max(0, result), request.options)


_HABITS = {"instructions": _follow_badly, "reasons": _reason_badly, "reasoning": _calculate_badly}


# --- how people compare two answers ---------------------------------------------------------------


def is_right(request: Request, answer: str) -> bool:
    """Is it the right sentence, or, of a calculation, the right letter?"""
    if request.task == "reasoning":
        return answer.rstrip(".").endswith(f"Answer: {request.letter}")
    return answer == request.right


def form_of(answer: str) -> tuple[bool, ...]:
    """How an answer is written, whatever it states: politely, as a sentence, with a number."""
    marks = [part in answer for part in (POLITE_START, "image shows", "=")]
    return (*marks, any(character.isdigit() for character in answer))


def rate(request: Request, answer: str) -> float:
    """Rate an answer as a careful person does: is it right, did it follow, is it short?

    Two points for what is right, one for following the request, one for saying no more.
    """
    return _RATE[request.task](request, answer)


def _stated(answer: str) -> set[str]:
    """What an answer says is there: {"2 cars", "1 bus"}."""
    kinds = "|".join([*SINGULAR, *SINGULAR.values(), "vehicles?"])
    return set(re.findall(rf"\b\d (?:{kinds})\b", answer))


def _share(found: set[str], wanted: set[str]) -> float:
    """How much two sets have in common, 0 … 1: what both have of what either has."""
    either = found | wanted
    return len(found & wanted) / len(either) if either else 1.0


def _rate_instruction(request: Request, answer: str) -> float:
    if request.family == "colors":
        words = {word for word in COLORS if word in answer.lower()}
        right = _share(words, set(request.colors))
        followed = not _stated(answer)
    else:
        right = _share(_stated(answer), _stated(request.right))
        shows = "image shows" in answer
        followed = shows == (request.family == "describe")
    is_short = POLITE_START not in answer and POLITE_END not in answer
    return 2 * right + followed + is_short


def _rate_reason(request: Request, answer: str) -> float:
    right = _share(_stated(answer), _stated(request.right))
    gives_a_reason = answer.startswith("Because") and bool(_stated(answer))
    return 2 * right + gives_a_reason


def _rate_calculation(request: Request, answer: str) -> float:
    return 2 * is_right(request, answer) + ("=" in answer)


_RATE = {"instructions": _rate_instruction, "reasons": _rate_reason, "reasoning": _rate_calculation}
