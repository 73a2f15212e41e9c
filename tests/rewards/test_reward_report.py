import numpy as np
import pytest
from PIL import Image

from helpers.data.record import PreferenceRecord, resolve_images
from helpers.files import UsageError
from helpers.rewards.reward_model import pair_gaps, pair_hits
from helpers.rewards.reward_report import (
    RewardReport,
    calibration_error,
    other_images,
    paired_p,
    rule_scores,
    swap_answers,
)


def record(number, texts, ranking, origins=None):
    origins = origins or ["truth", *["edit"] * (len(texts) - 1)]
    return PreferenceRecord.model_validate(
        {
            "images": [f"{number}.png"],
            "prompt": [{"role": "user", "content": "How many?"}],
            "answers": [
                {"text": text, "origin": origin}
                for text, origin in zip(texts, origins, strict=True)
            ],
            "ranking": ranking,
            "id": str(number),
        }
    )


RECORDS = [
    record(0, ["aaaa", "bb"], [[0], [1]]),  # the better answer is longer, and first
    record(1, ["cc", "dddd"], [[1], [0]], ["own", "truth"]),  # longer, second
    record(2, ["e", "fff", "ggg"], [[0], [1, 2]]),  # shorter than both, first
    record(3, ["hh", "ii"], [[1], [0]], ["own", "truth"]),  # as long, second
]
SCORES = [[2.0, 0.0], [1.0, 1.0], [0.0, 1.0, -1.0], [0.0, 3.0]]  # gaps 2, 0, −1, 1, 3


def test_gaps_and_hits_by_hand():
    gaps = pair_gaps(RECORDS, SCORES)
    assert gaps.tolist() == [2, 0, -1, 1, 3] and pair_hits(gaps).tolist() == [1, 0.5, 0, 1, 1]
    with pytest.raises(UsageError, match="not one for each answer"):
        pair_gaps(RECORDS, SCORES[:3])


def test_the_report_by_hand():
    report = RewardReport("model", RECORDS, {"right": SCORES})
    assert report.accuracy().value == pytest.approx(3.5 / 5) and report.accuracy().n == 5
    # worse answer edit: 1, 0, 1 → 2/3; own: ½, 1 → 3/4; macro (2/3 + 3/4) / 2
    shares = {kind: (share.value, share.n) for kind, share in report.accuracy_by_kind().items()}
    assert shares == {"edit": (pytest.approx(2 / 3), 3), "own": (pytest.approx(0.75), 2)}
    assert (
        report.macro == pytest.approx((2 / 3 + 3 / 4) / 2) != pytest.approx(report.accuracy().value)
    )
    # log(1 + e^−gap): 0.1269, 0.6931, 1.3133, 0.3133, 0.0486
    assert report.negative_log_likelihood == pytest.approx(
        (0.12693 + 0.69315 + 1.31326 + 0.31326 + 0.04859) / 5, abs=1e-4
    )
    lengths = {name: (share.value, share.n) for name, share in report.accuracy_by_length().items()}
    assert lengths == {"longer": (0.75, 2), "shorter": (0.5, 2), "as long": (1.0, 1)}
    rivals = {name: share.value for name, (share, _) in report.rivals().items()}
    # better first: records 0, 2, 2; shorter: both of record 2, a tie in record 3; longer: records 0
    # and 1, a tie
    assert rivals == pytest.approx({"shown first": 3 / 5, "shorter": 2.5 / 5, "longer": 2.5 / 5})


def test_always_first_is_perfect_on_a_sorted_file():
    """In the published files of a source project the better answer always stood first."""
    ordered = [record(i, [f"a{i}", f"b{i}"], [[0], [1]]) for i in range(30)]
    report = RewardReport("model", ordered, {"right": [[1.0, 0.0]] * 30})
    assert report.rivals()["shown first"][0].value == 1
    assert "no better than 'shown first' (1.000" in report.sentences()[0]


def test_calibration_by_hand():
    # confidence σ(0) = .5 and σ(4) = .982; of four gaps of 4 three are right
    gaps = np.array([0.0, 4, 4, 4, -4])
    error, bins = calibration_error(gaps)
    sure = 1 / (1 + np.exp(-4))
    assert bins == [(0.5, 0.5, 1), (pytest.approx(sure), 0.75, 4)]
    assert error == pytest.approx(4 / 5 * (sure - 0.75))


def test_paired_p_by_hand():
    first, second = np.array([1, 1, 1, 1, 1, 0.5]), np.array([0, 0, 0, 0, 0, 0.5])
    assert paired_p(first, second) == pytest.approx(2 / 32) and paired_p(first, first) == 1
    assert paired_p(first, second) == paired_p(second, first)


def many(n, scores_of):
    """n records of two answers whose lengths say nothing; scores_of(better is first) → scores."""
    rng = np.random.default_rng(0)
    records, scores = [], []
    for i in range(n):
        best = int(rng.integers(2))
        records.append(
            record(
                i,
                [f"x{i:03}", f"y{i:03}"],
                [[best], [1 - best]],
                ["truth", "own"] if best == 0 else ["own", "truth"],
            )
        )
        scores.append(scores_of(best, rng))
    return records, scores


def test_words_for_a_model_that_does_not_look():
    def good(best, rng):
        return [2.0, 0.0] if best == 0 else [0.0, 2.0]

    records, scores = many(60, good)
    blind = RewardReport("model", records, {"right": scores, "shuffled": scores}).sentences()
    assert any("does not use the image" in sentence for sentence in blind)
    noise = np.random.default_rng(1).normal(size=(60, 2)).tolist()
    seeing = RewardReport("model", records, {"right": scores, "shuffled": noise}).sentences()
    assert not any("does not use" in sentence or "no better" in sentence for sentence in seeing)
    assert len(seeing) == 1 and "1.000 [0.940, 1.000] (n = 60) of the pairs" in seeing[0]
    half = [row if i % 4 else row[::-1] for i, row in enumerate(scores)]
    assert any(
        "still right in 0.750" in s
        for s in RewardReport("m", records, {"right": scores, "shuffled": half}).sentences()
    )


def test_words_for_a_model_that_a_rule_or_a_random_head_matches():
    records, scores = many(60, lambda best, rng: rng.normal(size=2).tolist())
    said = RewardReport("model", records, {"right": scores}, {"random head": scores}).sentences()
    assert {"'shorter'", "'random head'"} <= {
        word for sentence in said for word in sentence.split() if word[0] == "'"
    } | {sentence.split("than ")[1].split(" (")[0] for sentence in said if "than " in sentence}


def test_other_images_are_never_the_own_ones(tmp_path):
    for i in range(3):
        Image.new("RGB", (20 + i, 30), (i, 0, 0)).save(tmp_path / f"{i}.png")
    made = [record(i % 3, ["a", "b"], [[0], [1]]) for i in range(6)]  # two records an image
    records = [
        resolve_images(one, tmp_path / "a.jsonl", line) for line, one in enumerate(made, start=1)
    ]
    for seed in range(5):
        for r, row in zip(records, other_images(records, "shuffled", seed), strict=True):
            assert row != r.image_paths and len(row) == 1 and row[0].exists()
    grey = other_images(records, "blank")
    assert [row[0].size for row in grey[:3]] == [(20, 30), (21, 30), (22, 30)]
    with pytest.raises(ValueError, match="unknown condition 'grey'"):
        other_images(records, "grey")


def test_swapped_keeps_what_is_better():
    for before, after in zip(RECORDS, swap_answers(RECORDS), strict=True):
        texts = [
            [sorted(r.answers[i].text for i in tier) for tier in r.ranking] for r in (before, after)
        ]
        assert (
            texts[0] == texts[1]
            and [a.text for a in after.answers] == [a.text for a in before.answers][::-1]
        )


def test_a_report_needs_pairs():
    with pytest.raises(UsageError, match="hold no pair"):
        RewardReport("model", [record(0, ["a", "b"], None)], {"right": [[1.0, 2.0]]})
    assert rule_scores(RECORDS[:1], "shorter") == [[-4, -2]]


def test_other_scores_on_the_same_pairs_by_hand():
    """Hits of the report 1, ½, 0, 1, 1; the other 1, 1, 1, 0, ½: (1 + 1 + 1 + 0 + ½) / 5 = .7."""
    other = [[2.0, 0.0], [0.0, 1.0], [2.0, 1.0, 3.0], [0.0, 0.0]]
    gaps = pair_gaps(RECORDS, other)
    assert gaps.tolist() == [2, 1, 1, -1, 0]
    share, p = RewardReport("model", RECORDS, {"right": SCORES}).compare_with(other)
    assert share.value == pytest.approx(0.7) and share.n == 5
    # the report wins two pairs (4, 5), the other two (2, 3): 2 of 4 tosses
    assert p == pytest.approx(1.0)
