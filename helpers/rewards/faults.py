"""What is wrong with an answer whose true counts are known, in words that can be counted."""

from helpers.data import (
    Counts,
    count_question,
    is_exact,
    is_well_formed,
    parse_counts,
)

from .heuristic import stated_counts


def count_faults(truth: Counts, answer: str) -> frozenset[str]:
    """All that is wrong: too many or few of what, unreadable, or not the expected sentence.

    count_faults({"cars": 2, "buses": 1}, "There are 3 cars, 0 buses in the image")
    → {"too many cars", "too few buses", "not well formed"} (no full stop)
    """
    counts = parse_counts(answer, list(truth))
    # the form of the answer
    faults = set()
    if not is_well_formed(answer, list(truth)):
        faults.add("not well formed")
    if counts is None:
        faults.add("not parsed")
        return frozenset(faults)
    # what it gets wrong
    for name, true in truth.items():
        if counts[name] != true:
            faults.add(f"too {'many' if counts[name] > true else 'few'} {name}")
    return frozenset(faults)


def counts_agree(truth: Counts, question: str, answer: str) -> bool | None:
    """Are the counts right that an answer to any question states? None if it states none.

    The question for all classes wants all of them.
    """
    if question in (count_question(list(truth), wording) for wording in (0, 1)):
        return is_exact(answer, truth)
    # of any other question, the counts that are stated
    checks = []
    for cls, numbers in stated_counts(answer, list(truth)).items():
        checks += [number == truth[cls] for number in numbers]
    return all(checks) if checks else None
