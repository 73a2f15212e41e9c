"""Random preference records for property tests, of every shape that the record allows."""

import itertools

from hypothesis import assume, strategies as st

from helpers.data.counting import like_classes, unreadable_classes
from helpers.data.record import PreferenceRecord, seen_text

# What breaks converters: marks, quotes, blanks at the ends, other scripts, separators, long numbers.
WORDS = st.sampled_from(
    [
        "<image>",
        "<|user|>",
        "USER:",
        '"',
        "\\",
        " ",
        "\n",
        "\u2028",
        "Straße",
        "数",
        "🚌",
        "a",
        "2 cars",
        "NaN",
    ]
)
TEXTS = st.lists(WORDS, min_size=1, max_size=6).map("".join).filter(str.strip)
NUMBERS = st.floats(-1e6, 1e6) | st.integers(-5, 5).map(float)
PLAIN = st.none() | st.booleans() | st.integers(-(10**20), 10**20) | NUMBERS | TEXTS
JSON = PLAIN | st.lists(PLAIN, max_size=2) | st.dictionaries(WORDS, PLAIN, max_size=2)


@st.composite
def rankings(draw, texts: list[str]):
    """Tiers of the answers in which equal texts are together, or None."""
    if draw(st.integers(0, 5)) == 0:
        return None
    levels = {text: draw(st.integers(0, 2)) for text in dict.fromkeys(texts)}
    order = sorted(draw(st.permutations(range(len(texts)))), key=lambda place: levels[texts[place]])
    return [
        list(tier) for _, tier in itertools.groupby(order, key=lambda place: levels[texts[place]])
    ]


@st.composite
def judgements(draw, n: int):
    verdict = draw(st.sampled_from(["ranked", "tie", "all bad", "skip"]))
    tiers = {"ranked": [[i] for i in draw(st.permutations(range(n)))], "skip": None}
    return {
        "kind": draw(st.sampled_from(["human", "model", "rule"])),
        "annotator": draw(TEXTS),
        "verdict": verdict,
        "ranking": tiers.get(verdict, [list(range(n))]),
        "order": draw(st.none() | st.permutations(range(n)).map(list)),
        "criteria": draw(
            st.dictionaries(TEXTS, st.lists(NUMBERS, min_size=n, max_size=n), max_size=2)
        ),
        "seconds": draw(st.none() | st.floats(0, 1e5)),
        "time": draw(st.none() | st.datetimes().map(lambda time: time.isoformat())),
    }


def _is_tellable(truth: dict) -> bool:
    """Can an answer name its classes? A record refuses others."""
    return not like_classes(list(truth)) and not unreadable_classes(list(truth))


@st.composite
def records(
    draw, max_answers: int = 4, max_images: int = 2, max_turns: int = 3, one_better: bool = False
):
    n = draw(st.integers(2, max_answers))
    ids = draw(st.none() | st.lists(TEXTS, min_size=n, max_size=n, unique=True))
    some = st.none() | TEXTS
    answers = [
        {
            "text": draw(TEXTS),
            "id": ids and ids[place],
            "model": draw(some),
            "origin": draw(some),
            "score": draw(st.none() | NUMBERS),
            "scores": draw(st.dictionaries(TEXTS, NUMBERS, max_size=2)),
        }
        for place in range(n)
    ]
    texts = [seen_text(answer["text"]) for answer in answers]
    if one_better:
        assume(len(set(texts)) == 2)
        ranking = draw(st.sampled_from([[[0], [1]], [[1], [0]]]))
    else:
        ranking = draw(rankings(texts))
    turns = draw(st.integers(1, max_turns))
    roles = (
        ["user", "assistant", "user"]
        if turns == 3
        else ["system", "user"]
        if turns == 2
        else ["user"]
    )
    return PreferenceRecord.model_validate(
        {
            "images": draw(
                st.lists(
                    st.from_regex(r"[a-z]{1,5}/[ab]\.png", fullmatch=True),
                    min_size=1,
                    max_size=max_images,
                )
            ),
            "prompt": [{"role": role, "content": draw(TEXTS)} for role in roles],
            "answers": answers,
            "ranking": ranking,
            "id": draw(some),
            "judgements": draw(st.lists(judgements(n), max_size=2)),
            "truth": draw(
                st.none()
                | TEXTS
                | st.lists(TEXTS, max_size=3)
                | st.dictionaries(TEXTS, st.integers(0, 9), max_size=3).filter(_is_tellable)
            ),
            "negative_images": draw(st.lists(TEXTS, max_size=1)),
            "group": draw(some),
            "source": draw(some),
            "licence": draw(some),
            "extra": draw(st.dictionaries(TEXTS, JSON, max_size=2)),
        }
    )
