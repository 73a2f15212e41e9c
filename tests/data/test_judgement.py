"""What a judgement may say, and the ranking that several make."""

import pytest

from helpers.data.judgement import Judgement, consensus


def vote(verdict, ranking, **fields):
    return Judgement(kind="human", annotator="a", verdict=verdict, ranking=ranking, **fields)


def test_consensus_is_by_mean_rank():
    # ranks of answers 0, 1, 2: first (0, 1, 2), second tie of 0 and 1 at 0.5: (0.5, 0.5, 2); sums 0.5, 1.5, 4
    votes = [vote("ranked", [[0], [1], [2]]), vote("ranked", [[0, 1], [2]]), vote("skip", None)]
    assert consensus(votes, 3) == [[0], [1], [2]]
    assert consensus([vote("ranked", [[0], [1]]), vote("ranked", [[1], [0]])], 2) == [
        [0, 1]
    ]  # one vote each
    assert consensus([vote("all bad", [[0, 1]])], 2) == [[0, 1]]
    assert consensus([vote("skip", None)], 2) is None and consensus([], 2) is None


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"verdict": "ranked", "ranking": [[0, 1]]}, "verdict 'ranked' does not go with ranking"),
        ({"verdict": "tie", "ranking": [[0], [1]]}, "verdict 'tie' does not go"),
        ({"verdict": "skip", "ranking": [[0, 1]]}, "verdict 'skip' does not go"),
        ({"verdict": "all bad"}, "verdict 'all bad' does not go"),
        ({"verdict": "skip", "time": "yesterday"}, "Invalid isoformat"),
        ({"verdict": "skip", "seconds": -1.0}, "greater than or equal to 0"),
    ],
)
def test_judgements_that_contradict_themselves(fields, message):
    with pytest.raises(ValueError, match=message):
        Judgement.model_validate({"kind": "human", "annotator": "a", **fields})
