"""Verdicts in a row of a table."""

from helpers.doctor.verdicts import Verdict, verdict_kinds


def verdict(kind):
    return Verdict(kind, 3, "a figure", "warning", ("a cause",), "A change.")


def test_kinds_are_named_in_the_order_found():
    assert verdict_kinds([]) == "nothing"
    assert verdict_kinds([verdict("flat loss")]) == "flat loss"
    assert verdict_kinds([verdict("b"), verdict("a")]) == "b, a"
