"""When a verdict begins and ends, from look to look, and how that is told."""

import pytest

from helpers.doctor.verdicts import Course, Reading, RunDoctor, Verdict, verdict_kinds

KINDS = {
    "not finite": ("stop", ["a cause"], "A change."),
    "cause": ("warning", ["a cause"], "A change."),
    "effect": ("warning", ["a cause"], "A change."),
}


class Doctor(RunDoctor):
    def state(self):
        return "Step 9."


def follow(faults, kind="effect", span=2, course=None):
    """Looks at steps 1, 2, …: "x" is a fault, "." is none, " " is a look at which nobody asked.

    The rules look back `span` rows.
    """
    course = course or Course(KINDS, ("cause", "effect"))
    for step, mark in enumerate(faults, 1):
        fault = f"wrong at {step}" if mark == "x" else None
        look = {kind: Reading(fault, lambda n=step: f"right at {n}", step, span)}
        course.follow({} if mark == " " else look, step)
    return course


def stretches(course):
    return [(verdict.step, verdict.ended) for verdict in course.verdicts]


@pytest.mark.parametrize(
    "faults, found",
    [
        ("...", []),
        ("..xxx", [(3, None)]),
        # rules that look back two rows: two clear looks are not enough, three are
        ("xx..", [(1, None)]),
        ("xx...", [(1, 5)]),
        # one odd row clears as many looks as the rules look back
        ("xx..xx..xx", [(1, None)]),
        # found again later, it is another verdict
        ("x....x", [(1, 4), (6, None)]),
        # where nobody asked, nothing is known to be right
        ("x      ", [(1, None)]),
    ],
)
def test_a_verdict_ends_when_its_rules_find_nothing_for_longer_than_they_look_back(faults, found):
    assert stretches(follow(faults)) == found


def test_what_is_measured_stands_at_both_ends():
    (verdict,) = follow(".xx....").verdicts
    assert verdict.measured == "wrong at 2" and verdict.now == "right at 6"
    assert str(verdict) == (
        "WARNING at step 2, effect: wrong at 2\n  Withdrawn at step 6: right at 6"
    )


def test_what_is_broken_stays_broken():
    assert stretches(follow("x.......", kind="not finite")) == [(1, None)]


def test_the_same_sample_looked_at_again_is_no_news():
    """Ten looks at the one sample that showed nothing, then at the next one."""
    course = Course(KINDS, ())
    course.follow({"effect": Reading("wrong", str, 1, 1)}, 1)
    for step in range(2, 12):
        assert course.follow({"effect": Reading(None, lambda: "right", 2, 1)}, step) == []
    (ended,) = course.follow({"effect": Reading(None, lambda: "right", 3, 1)}, 12)
    assert (ended.step, ended.ended, ended.now) == (1, 12, "right")


def test_an_effect_is_neither_found_nor_withdrawn_while_its_cause_is_known():
    def look(step, cause, effect):
        faults = {"cause": cause, "effect": effect}
        return {kind: Reading(fault, lambda: "right", step, 1) for kind, fault in faults.items()}

    course = Course(KINDS, ("cause", "effect"))
    course.follow(look(1, None, "slow"), 1)
    for step in range(2, 6):
        course.follow(look(step, "still", "slow"), step)
    # the cause explains it, but it was said, and it holds
    assert stretches(course) == [(1, None), (2, None)]
    other = Course(KINDS, ("cause", "effect"))
    for step, cause in enumerate(["still", None, "still", None, None], 1):
        other.follow(look(step, cause, "slow"), step)
    # the cause was away for one look, and is withdrawn at the last
    assert [(v.kind, v.step, v.ended) for v in other.verdicts] == [
        ("cause", 1, 5),
        ("effect", 5, None),
    ]


def test_a_course_goes_on_from_its_state_as_if_it_had_not_been_cut():
    faults = "xx..x....x..x...."
    whole = follow(faults)
    for cut in range(1, len(faults)):
        later = Course(KINDS, ())
        later.restore(follow(faults[:cut]).state())
        follow(" " * cut + faults[cut:], course=later)
        assert later.verdicts == whole.verdicts, cut


def test_the_doctor_says_once_that_it_began_and_once_that_it_ended(capsys):
    doctor = Doctor(KINDS, ())
    for step in range(1, 10):
        fault = "wrong" if step < 4 else None
        doctor.tell({"effect": Reading(fault, lambda: "<b>right</b>", step, 2)}, step)
    said = capsys.readouterr().out.splitlines()
    assert said[0] == "⚠️  WARNING at step 1, effect: wrong"
    assert said[-1] == "✅ effect, found at step 1, is withdrawn at step 6: <b>right</b>"
    assert len(said) == 4
    panel = doctor._repr_html_()
    assert "withdrawn at step 6: effect, found at step 1" in panel
    assert "&lt;b&gt;right" in panel and "A change." not in panel


def verdict(kind, step=3, ended=None):
    return Verdict(kind, step, "a figure", "warning", ["a cause"], "A change.", ended)


def test_kinds_are_named_in_the_order_found():
    assert verdict_kinds([]) == "nothing"
    assert verdict_kinds([verdict("flat loss")]) == "flat loss"
    assert verdict_kinds([verdict("b"), verdict("a")]) == "b, a"


def test_what_is_wrong_now_stands_before_what_was_wrong_in_between():
    assert verdict_kinds([verdict("a", 3, 9)]) == "nothing; in between: a (3 to 9)"
    assert verdict_kinds([verdict("a", 3, 9)], "healthy so far").startswith("healthy so far; in")
    twice = [verdict("a", 3, 9), verdict("b"), verdict("a", 12, 20), verdict("a", 30)]
    assert verdict_kinds(twice) == "b, a; in between: a (3 to 9, 12 to 20)"
