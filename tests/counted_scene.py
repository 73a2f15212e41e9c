"""The counts of one scene, and the question that asks for them."""

from hypothesis import strategies as st

from helpers.data.counting import count_question

TRUTH = {"cars": 2, "motorcycles": 3, "buses": 0, "bicycles": 1}
QUESTION = count_question(list(TRUTH))
counts = st.fixed_dictionaries({name: st.integers(0, 9) for name in TRUTH})
classes = st.dictionaries(st.text(min_size=1, max_size=6), st.integers(0, 12), max_size=3)
pieces = st.sampled_from(
    ["no", "yes", "2", "cars", "a bus", "ſıx", "not", "but", ".", "?", "so", "0", "1.5", "–"]
)
texts = st.text(max_size=40) | st.lists(pieces).map(" ".join)
