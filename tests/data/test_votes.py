"""Votes as a whole: orders, undo, export, and how far annotators agree."""

import contextlib
import multiprocessing
import random

import pytest
from hypothesis import given, settings, strategies as st
from made_up_votes import event, record, records

from helpers.data.judgement import Judgement
from helpers.data.preferences import read_records, write_records
from helpers.data.record import resolve_images
from helpers.data.vote_log import append_event, read_events
from helpers.data.votes import Votes, annotator_agreement, apply_votes
from helpers.files import UsageError
from helpers.statistics import binomial_p


def test_two_records_with_one_key(path):
    with pytest.raises(UsageError, match="two records are called 'r0'"):
        Votes(path, [record(), record()], "ana")
    nameless = [r.model_copy(update={"id": None}) for r in records(2)]
    assert len(Votes(path, nameless, "ana").keys) == 2
    with pytest.raises(UsageError, match="two records are called"):
        Votes(path, [nameless[0], nameless[0].model_copy()], "ana")


def test_orders_differ_by_seed_and_annotator_and_survive_a_restart(path):
    def shown(annotator, seed):
        votes, orders = Votes(path, records(40, n=3), annotator, seed), {}
        for key in votes.keys:
            orders[key] = votes._item(key).order
        return votes.keys, orders

    assert shown("ana", 0) == shown("ana", 0)
    for other in (shown("ana", 1), shown("ben", 0)):
        assert other[0] != shown("ana", 0)[0] and other[1] != shown("ana", 0)[1]


@pytest.mark.parametrize("n", [2, 3, 6])
def test_each_place_is_shown_first_equally_often(path, n):
    votes = Votes(path, records(1000, n), "ana")
    first = [votes._item(key).order[0] for key in votes.keys]
    for place in range(n):
        # six places in three runs: none of 11 exact tests below .001 unless the draw is crooked
        assert binomial_p(first.count(place), 1000, 1 / n) > 0.001


def test_ranking_and_criteria_are_stored_by_place(path):
    votes = Votes(
        path,
        [record(n=3)],
        "ana",
        seed=next(s for s in range(99) if order_of(path, s) == [2, 0, 1]),
    )
    item = votes.next()
    assert item.order == [2, 0, 1] and item.texts == ["r0 answer 2", "r0 answer 0", "r0 answer 1"]
    # shown: B first, then A and C together; "concise" for A, "helpful" for none
    assert votes.vote(
        item, "ranked", [[1], [0, 2]], {"concise": [1, 0, 0], "helpful": [0, 0, 0]}, seconds=2.5
    )
    judgement = Votes(path, [record(n=3)], "ana").judged["r0"]
    assert judgement.ranking == [[0], [1, 2]] and judgement.order == [2, 0, 1]
    assert (
        judgement.criteria == {"concise": [0, 0, 1]}
        and judgement.seconds == 2.5
        and judgement.kind == "human"
    )


def order_of(path, seed):
    return Votes(path, [record(n=3)], "ana", seed).next().order


def test_verdicts(path):
    votes = Votes(path, records(5, n=3), "ana")
    for verdict, tiers in [
        ("tie", ()),
        ("all bad", ()),
        ("skip", ()),
        ("ranked", [[0, 1, 2]]),
        ("ranked", [[0], [1], [2]]),
    ]:
        votes.vote(votes.next(), verdict, tiers, {"concise": [0, 0, 0]})
    all_of_them = [
        (vote.verdict, vote.ranking and len(vote.ranking)) for vote in votes.judged.values()
    ]
    assert all_of_them == [("tie", 1), ("all bad", 1), ("skip", None), ("tie", 1), ("ranked", 3)]
    assert not any(vote.criteria for vote in votes.judged.values()) and votes.next() is None


def test_equal_answers_must_be_equal(path):
    twins = record(n=3)
    twins.answers[2].text = twins.answers[0].text
    votes = Votes(path, [twins], "ana")
    item = votes.next()
    a, c = sorted(item.order.index(place) for place in (0, 2))
    b = item.order.index(1)
    with pytest.raises(UsageError, match=f"{'ABC'[a]} and {'ABC'[c]} are the same"):
        votes.vote(item, "ranked", [[a], [b], [c]])
    assert votes.vote(item, "ranked", [[a, c], [b]])
    assert apply_votes([twins], path)[0].ranking == [[0, 2], [1]]


def test_a_second_click_on_what_was_shown_once_does_nothing(path):
    """Two kernels on one file, or a click that was queued twice."""
    here, there = Votes(path, records(3), "ana"), Votes(path, records(3), "ana")
    item, same = here.next(), there.next()
    assert (
        here.vote(item, "tie") and not here.vote(item, "skip") and not there.vote(same, "all bad")
    )
    assert len(read_events(path)[0]) == 1 and there.judged[item.key].verdict == "tie"
    assert there.next().key != item.key
    here.undo()
    assert not there.vote(same, "skip"), "it was shown before the vote that was taken back"
    assert there.vote(there.next(), "skip") and there.judged[item.key].verdict == "skip"


def test_undo_goes_back_one_by_one_over_restarts(path):
    votes = Votes(path, records(4), "ana")
    keys = [votes.next().key for _ in range(3) if votes.vote(votes.next(), "tie")]
    for key in reversed([key for key in votes.keys[:3]]):
        votes = Votes(path, records(4), "ana")
        assert votes.undo().key == key and votes.next().key == key
    assert Votes(path, records(4), "ana").undo() is None and len(keys) == 3
    assert len(read_events(path)[0]) == 6, "an undo is an event"
    assert votes.vote(votes.next(), "skip") and votes.progress() == "1 of 4 · 1 skipped"


def test_undo_takes_back_only_the_own_vote(path):
    ana, ben = Votes(path, records(2), "ana"), Votes(path, records(2), "ben")
    ana.vote(ana.next(), "tie")
    item = ben.next()
    ben.vote(item, "skip")
    ana.undo()
    assert not Votes(path, records(2), "ana").judged and set(
        Votes(path, records(2), "ben").judged
    ) == {item.key}


def test_progress_and_median(path):
    votes = Votes(path, records(4), "ana")
    assert votes.progress() == "0 of 4" and votes.median_seconds is None
    for seconds in (1.0, 9.0, 2.0):
        votes.vote(votes.next(), "tie", seconds=seconds)
    assert votes.progress() == "3 of 4 · 2.0 s each" and votes.median_seconds == 2


def test_votes_on_answers_that_have_changed_since_are_refused(path):
    votes = Votes(path, [record()], "ana")
    votes.vote(votes.next(), "ranked", [[0], [1]])
    changed = record()
    changed.answers[0].text = "another text"
    changed.answers[1].model = "another model"  # not shown, so it may change
    for use in (lambda: Votes(path, [changed], "ben"), lambda: apply_votes([changed], path)):
        with pytest.raises(UsageError, match="'r0' has other images, prompt or answers"):
            use()


def test_more_answers_than_letters_and_no_name(path):
    with pytest.raises(UsageError, match="7 answers"):
        Votes(path, [record(n=7)], "ana")
    with pytest.raises(UsageError, match="annotator is empty"):
        Votes(path, records(1), " ")


# Export


def test_apply_attaches_and_ranks(path):
    before = [
        record("r0", truth="2", ranking=[[0], [1]]),
        record("r1", extra={"x": 1}),
        record("r2", ranking=[[1], [0]]),
    ]
    model = Judgement(kind="model", annotator="ana", verdict="ranked", ranking=[[1], [0]])
    before[0].judgements = [model]
    for event_ in (
        event("r0", "ana", "ranked", [[1], [0]]),
        event("r1", "ana", "all bad"),
        event("r2", "ana", "skip", None),
        event("r0", "ben", "skip", None),
        event("elsewhere"),
    ):
        append_event(path, event_)
    after = apply_votes(before, path)
    assert after[0].ranking == [[1], [0]] and after[0].extra == {"ranking_before": [[0], [1]]}, (
        "ben's skip is no vote"
    )
    assert [(j.kind, j.annotator) for j in after[0].judgements] == [
        ("model", "ana"),
        ("human", "ana"),
        ("human", "ben"),
    ]
    assert after[1].ranking == [[0, 1]] and after[1].pairs() == [] and after[1].extra == {"x": 1}
    assert after[2].ranking == [[1], [0]] and after[2].extra == {}, (
        "without a vote the ranking stays"
    )
    assert before[0].ranking == [[0], [1]] and before[0].judgements == [model], (
        "the records given are not changed"
    )
    for old, new in zip(before, after, strict=True):
        rest = {"judgements", "ranking", "extra"}
        assert old.model_dump(exclude=rest) == new.model_dump(exclude=rest)
    assert apply_votes(after, path) == after, "once more changes nothing"
    ranked = path.with_name("ranked.jsonl")
    assert read_records(write_records(ranked, after)) == [
        resolve_images(record, ranked, 1) for record in after
    ]


def test_two_annotators_who_disagree_make_a_tie(path):
    append_event(path, event("r0", "ana", "ranked", [[1], [0]]))
    append_event(path, event("r0", "ben", "ranked", [[0], [1]]))
    assert apply_votes([record()], path)[0].ranking == [[0, 1]]
    append_event(path, event("r0", "ben", "ranked", [[1], [0]]))
    assert apply_votes([record()], path)[0].ranking == [[1], [0]], "ben's last judgement counts"


def test_apply_needs_votes_on_these_records(path):
    with pytest.raises(UsageError, match="no vote on any of these 1 records"):
        apply_votes([record()], path)
    append_event(path, event("elsewhere"))
    with pytest.raises(UsageError, match="no vote on any"):
        apply_votes([record()], path)
    append_event(path, event("r0", ranking=[[0, 1, 2]]))
    with pytest.raises(
        UsageError, match=r"'r0': ranking of a judgement .* must name each of the 2 answers"
    ):
        apply_votes([record()], path)


def test_apply_tells_of_a_half_line(path, capsys):
    append_event(path, event())
    path.write_bytes(path.read_bytes() + b'{"rec')
    apply_votes([record()], path)
    assert "half a line (5 bytes" in capsys.readouterr().out


# Agreement


def test_kappa_by_hand(path):
    # 4 pairs with the same winner, 1 with opposite winners, 1 called a tie by both. Both ways round:
    # observed 5/6; ties 1/6 each, either winner 5/12 each: chance 1/36 + 2 · 25/144 = 3/8; (5/6 − 3/8) / (5/8) = 11/15
    for number, (ana, ben) in enumerate([((0, 1), (0, 1))] * 4 + [((0, 1), (1, 0)), (None, None)]):
        for name, places in (("ana", ana), ("ben", ben)):
            tiers = [[place] for place in places] if places else [[0, 1]]
            append_event(path, event(f"r{number}", name, "ranked" if places else "tie", tiers))
    append_event(path, event("r6", "ana", "skip", None))
    append_event(path, event("r6", "ben"))
    kappa = annotator_agreement(records(7), path)
    assert kappa.value == pytest.approx(11 / 15) and kappa.observed_agreement == pytest.approx(
        5 / 6
    )
    assert (kappa.n, kappa.groups) == (6, 6) and kappa.low < 11 / 15 < kappa.high
    assert (
        annotator_agreement(records(7), path) == kappa
        and annotator_agreement(records(7), path, ("ben", "ana")).value == kappa.value
    )


@given(flips=st.lists(st.booleans(), min_size=6, max_size=6))
@settings(max_examples=10, deadline=None)
def test_kappa_does_not_depend_on_how_the_file_lists_answers(tmp_path_factory, flips):
    path = tmp_path_factory.mktemp("flips") / "votes.jsonl"
    for number, flip in enumerate(flips):
        for name, places in (("ana", (0, 1)), ("ben", (0, 1) if number else (1, 0))):
            tiers = [[1 - place if flip else place] for place in places]
            append_event(path, event(f"r{number}", name, "ranked", tiers))
    assert annotator_agreement(records(6), path).value == pytest.approx(
        2 * 5 / 6 - 1
    )  # two labels: 2 · observed − 1


def test_kappa_of_longer_rankings_counts_pairs_and_records(path):
    three = records(2, n=3)
    ana, ben = Votes(path, three, "ana"), Votes(path, three, "ben")
    for votes in (ana, ben):
        while item := votes.next():
            votes.vote(item, "ranked", [[item.order.index(place)] for place in (2, 0, 1)])
    kappa = annotator_agreement(three, path)
    assert (kappa.value, kappa.n, kappa.groups) == (1, 6, 2)


def test_agreement_where_there_is_none_to_state(path):
    append_event(path, event("r0", "ana"))
    with pytest.raises(UsageError, match=r"two annotators, and here are \['ana'\]"):
        annotator_agreement(records(2), path)
    append_event(path, event("r1", "ben"))
    with pytest.raises(UsageError, match="ana and ben judged no record both"):
        annotator_agreement(records(2), path)
    append_event(path, event("r0", "ben", "all bad"))
    kappa = annotator_agreement(records(2), path)
    assert kappa.value is None and "not defined" in str(kappa) and "nan" not in str(kappa)
    append_event(path, event("r0", "eva"))
    with pytest.raises(UsageError, match="Name two of them"):
        annotator_agreement(records(2), path)
    assert annotator_agreement(records(2), path, ("ana", "eva")).n == 1


# Two kernels at once


def _vote_to_the_end(path, verdict, counted):
    votes = Votes(path, records(30), "ana")
    while item := votes.next():
        if votes.vote(item, verdict):
            counted.send(item.key)
    counted.close()


def test_two_kernels_on_one_file_count_each_record_once(path):
    context = multiprocessing.get_context("fork")
    readers, processes = [], []
    for verdict in ("tie", "skip"):
        reader, writer = context.Pipe(duplex=False)
        processes.append(context.Process(target=_vote_to_the_end, args=(path, verdict, writer)))
        processes[-1].start()
        writer.close()
        readers.append(reader)
    counted = []
    for reader, process in zip(readers, processes, strict=True):
        with contextlib.suppress(EOFError):
            while True:
                counted.append(reader.recv())
        process.join(30)
        assert process.exitcode == 0
    assert len(counted) == 30 == len(set(counted)) == len(read_events(path)[0])


def test_random_events_leave_what_a_plain_account_says(path):
    """Against a dictionary that is kept by hand: 120 votes and undos of two annotators in turn."""
    random_, held = random.Random(0), {"ana": [], "ben": []}
    votes = {name: Votes(path, records(60), name) for name in held}
    for _ in range(120):
        name = random_.choice(["ana", "ben"])
        if random_.random() < 0.4:
            item = votes[name].undo()
            assert (item and item.key) == (held[name].pop() if held[name] else None)
        elif item := votes[name].next():
            votes[name].vote(item, "tie")
            held[name].append(item.key)
    for name, keys in held.items():
        assert list(Votes(path, records(60), name).judged) == keys
