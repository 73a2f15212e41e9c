"""Every rule of PPO, RLOO and GRPO on logs made by hand, on both sides of its limit."""

import dataclasses
import math

import pytest
from ppo_logs import MADE, later, log

from helpers.doctor import ppo_rules
from helpers.doctor.ppo_rules import PPO_KINDS, diagnose_ppo, replay_ppo
from helpers.doctor.verdicts import verdict_kinds


def found(rows, **changes):
    return {v.kind: v.measured for v in diagnose_ppo(rows, dataclasses.replace(MADE, **changes))}


def wave(height, around):
    """Mean `around`, with a standard deviation of `height` × √(n / (n − 1))."""
    return lambda n: around + (height if n % 2 else -height)


def test_a_log_without_a_fault_and_an_empty_one_have_no_finding():
    assert found(log(40)) == {} and found([]) == {} and replay_ppo([], MADE) == []
    assert replay_ppo(log(40), MADE) == []


@pytest.mark.parametrize(
    "name", ["scores", "kl", "entropy", "policy", "value", "approxkl", "size", "truth"]
)
def test_numbers_that_are_not_finite(name):
    for wrong in (math.nan, math.inf, None):  # None: NaN in a JSON log
        rows = log(9, **({"truth": 0.5} | {name: later(0.5, wrong, last=8)}))
        assert found(rows).keys() == {"not finite"}, wrong
    assert f" is {wrong or 'nan'}" in found(rows)["not finite"]


def test_what_need_not_be_finite():
    assert found(log(15, explained_variance=math.nan)) == {}, "all returns are equal"
    assert found(log(15, explained_variance=None)) == {}
    assert found(log(9, adapter=later(0.1, math.inf, last=7))) == {}, (
        "2 iterations: an fp16 scaler at work"
    )
    assert (
        "3 iterations in a row" in found(log(9, adapter=later(0.1, math.inf, last=6)))["not finite"]
    )


def test_the_score_falls():
    # 4 equal rows after the start: the median change is 0, so that half of the start is the limit
    assert "is 0.24, and was 0.5" in found(log(5, scores=later(0.5, 0.24)))["collapse"]
    assert found(log(5, scores=later(0.5, 0.26))) == {}
    assert (
        "collapse" in found(log(5, scores=later(-1.0, -1.6)))
        and found(log(5, scores=later(-1.0, -1.4))) == {}
    )
    # changes of 0.2: the limit is 4 · 0.2 = 0.8 under the start of 0.2; the last three are 0.1,
    # −0.1 and 0.1 off
    assert "collapse" not in found(
        log(9, scores=lambda n: 0.2 if n == 1 else wave(0.1, -0.6)(n))
    )  # −0.567
    assert "collapse" in found(
        log(9, scores=lambda n: 0.2 if n == 1 else wave(0.1, -0.7)(n))
    )  # −0.667
    assert found(log(3, scores=later(0.5, -1.0))) == {}, "the first of three is the start itself"


def test_answers_that_repeat_themselves():
    assert (
        "31% of the answers' 3-grams are repeats, and 5% were"
        in found(log(5, repeated=later(0.05, 0.31)))["collapse"]
    )
    assert found(log(5, repeated=later(0.05, 0.29))) == {}
    assert found(log(9, repeated=lambda n: 0.9 if n == 5 else 0.05)) == {}, (
        "a single peak, gone again"
    )


def test_one_answer_to_all_prompts():
    # 32 answers: 1 / 32 is one of them, 2 / 32 two
    assert (
        "all of 8 prompts, where 16 differed"
        in found(log(5, distinct=later(0.5, 1 / 32)))["collapse"]
    )
    assert found(log(5, distinct=later(0.5, 2 / 32))) == {}
    assert found(log(5, distinct=later(3 / 32, 1 / 32))) == {}, (
        "three answers to eight prompts at the start"
    )
    one_prompt = {"prompts_per_iteration": 1, "group_size": 32}
    assert found(log(5, distinct=later(0.5, 1 / 32)), **one_prompt) == {}, (
        "the right one to one prompt"
    )


def test_the_entropy_is_gone():
    flat = {"scores": 0.5}
    assert (
        "0.049 nats a token, and was 1"
        in found(log(5, entropy=later(1.0, 0.049), **flat))["collapse"]
    )
    assert found(log(5, entropy=later(1.0, 0.051), **flat)) == {}
    assert found(log(5, entropy=later(1.0, 0.01), scores=later(0.5, 0.9))) == {}, (
        "it knows the answers"
    )


def test_answers_that_do_not_end():
    # 96 answers in 3 iterations. Wilson: 0 of 32 [0, .107]; 18.4 of 96 = .192 [.126, .282], 15 of
    # 96 = .156 [.097, .242]
    assert "answers do not end" in found(log(5, not_ended=later(0.0, 0.192)))
    assert found(log(5, not_ended=later(0.0, 0.156))) == {}
    # 12 of 32 at the start [.229, .547]: limit 0.5; 61 of 96 = .635 [.536, .725], 55 of 96 = .573
    # [.473, .667]
    assert found(log(5, not_ended=0.375)) == {}
    assert "answers do not end" in found(log(5, not_ended=later(0.375, 0.635)))
    assert found(log(5, not_ended=later(0.375, 0.573))) == {}
    # 22 of 32 = .6875 at once [.514, .820], 21 of 32 = .656 [.483, .796]
    assert "at the start 69%" in found(log(1, not_ended=22 / 32))["answers do not end"]
    assert found(log(1, not_ended=21 / 32)) == {}


def test_kl_that_runs_away():
    assert (
        "51 nats an answer, over 50, and was 0" in found(log(5, kl=later(0.0, 51.0)))["KL runaway"]
    )
    assert found(log(5, kl=later(0.0, 49.0))) == {}
    assert found(log(9, kl=lambda n: 60.0 if n in (7, 9) else 1.0)) == {}, "two peaks"
    assert "over 18" in found(log(5, kl=later(0.0, 19.0)), kl_target=6.0)["KL runaway"]
    assert found(log(5, kl=later(0.0, 17.0)), kl_target=6.0) == {}
    # an adapter that goes on 20 nats from its base: 3 · 20
    assert (
        "over 60" in found(log(5, kl=later(20.0, 61.0)))["KL runaway"]
        and found(log(5, kl=later(20.0, 59.0))) == {}
    )


def test_a_policy_that_does_not_move():
    still = {"kl": 0.0, "approxkl": 0.0}
    assert found(log(3, **still)) == {"KL flat zero": "0 nats an answer; the gradient is 0.1."}
    assert found(log(2, **still)) == {}
    assert found(log(5, **still | {"kl": 0.011})) == {} and "KL flat zero" in found(
        log(5, **still | {"kl": -0.009})
    )
    assert found(log(5, **still | {"approxkl": 1.1e-6})) == {}
    assert "KL flat zero" in found(log(5, **still | {"approxkl": 0.9e-6}))
    # in bf16 rounding alone gives more; 3e-4 is under twice that
    rounded = log(5, **still | {"approxkl": 3e-4})
    assert found(rounded) == {}
    rounded = [row | {"ppo/policy/approxkl_first": 2e-4} for row in rounded]
    assert "KL flat zero" in found(rounded)


def test_advantages_of_zero():
    still = {"kl": 0.0, "approxkl": 0.0, "scores": 0.5}
    assert found(log(3, size=0.0, **still)).keys() == {"advantages zero"}, (
        "which is why the policy does not move"
    )
    assert found(log(3, size=2e-6, **still)).keys() == {"KL flat zero"}
    # 0.5, 1, 1: a rise of 0.33, t(2) 4.303 · s 0.289 / √3 = 0.717, which may be 0
    assert found(log(3, size=0.0, scores=later(0.5, 1.0))).keys() == {"advantages zero"}
    assert found(log(5, size=0.0, scores=later(0.5, 1.0))) == {}, (
        "everything is right at the end of a good run"
    )


def test_groups_whose_answers_all_score_the_same():
    for advantages in ("rloo", "grpo"):
        equal = found(log(5, zero_variance=0.96, scores=0.5), advantages=advantages)
        assert equal == {"advantages zero": "at 96% of the prompts all 4 answers score the same."}
        assert found(log(5, zero_variance=0.94, scores=0.5), advantages=advantages) == {}
    assert found(log(5, zero_variance=1.0, scores=0.5)) == {}, "a critic compares different prompts"
    assert found(log(5, zero_variance=1.0, scores=later(0.5, 1.0)), advantages="rloo") == {}


def test_one_answer_that_is_whitened():
    alone = {"prompts_per_iteration": 1, "group_size": 1}
    assert found(log(1), **alone).keys() == {"fixed advantages"}
    assert found(log(60, size=0.0, kl=0.0, approxkl=0.0), **alone).keys() == {"fixed advantages"}, (
        "the cause of the rest"
    )
    assert (
        found(log(1), **alone, whiten=False)
        == {}
        == found(log(1), prompts_per_iteration=2, group_size=1)
    )


def test_a_critic_that_explains_nothing():
    # 10 rows of ±0.1: s = 0.1054, t(9) = 2.262, half width 2.262 · 0.1054 / √10 = 0.0754; limit
    # 0.05
    said = found(log(20, explained_variance=wave(0.1, -0.03)))["value head not learning"]
    assert (
        said
        == "it explains -0.03 [-0.105, 0.0454] of the returns' variance; a constant explains 0."
    )
    assert found(log(20, explained_variance=wave(0.1, -0.02))) == {}
    assert found(log(19, explained_variance=0.0)) == {}, "too early to tell"
    assert found(log(20, explained_variance=later(0.0, 0.3, last=9))) == {}
    for other in ({"critic": 0.0}, {"explained_variance": math.nan}):
        assert found(log(20, **({"explained_variance": 0.0} | other))) == {}
    assert found(log(20, explained_variance=0.0), advantages="rloo") == {}


def test_a_reward_that_rises_while_the_other_score_falls():
    # 10 rows are two looks of 5: [.5 …] to [.9 …]; ±0.05: s = 0.0548, t(4) = 2.776 → 0.068; both √2
    # · 0.068 = 0.096
    up = {"scores": lambda n: (0.5 if n <= 5 else 0.9) + wave(0.05, 0)(n)}
    down = found(log(10, **up, truth=lambda n: (0.5 if n <= 5 else 0.39) + wave(0.05, 0)(n)))
    assert down.keys() == {"reward hacking"} and "changed by -0.1" in down["reward hacking"]
    assert found(log(10, **up, truth=lambda n: (0.5 if n <= 5 else 0.43) + wave(0.05, 0)(n))) == {}
    assert found(log(9, **up, truth=lambda n: 0.5 if n <= 5 else 0.1)) == {}, "too early to tell"
    assert found(log(10, scores=wave(0.05, 0.6), truth=lambda n: 0.5 if n <= 5 else 0.3)) == {}, (
        "the score stays"
    )
    assert found(log(10, **up)) == {}


def test_a_score_that_does_not_rise():
    # ±0.1 around: half width of each look 0.0754, of their difference 0.107
    assert (
        "it rose by 0 [-0.107, 0.107], which may be 0"
        in found(log(20, scores=wave(0.1, 0.5)))["nothing learnt"]
    )
    rise = {
        size: log(20, scores=lambda n, size=size: wave(0.1, 0.5 + size * (n > 10))(n))
        for size in (-0.1, 0.1, 0.12)
    }
    assert (
        "nothing learnt" in found(rise[0.1])
        and found(rise[0.12]) == {}
        and "nothing learnt" in found(rise[-0.1])
    )
    assert found(log(19, scores=wave(0.1, 0.5))) == {}, "too early to tell"
    assert found(log(20, scores=wave(0.1, 0.5)), iterations=100) == {}, (
        "not yet a quarter of the run"
    )
    fast = log(20, scores=lambda n: (0.5, 0.7, 0.8)[n - 1] if n < 4 else wave(0.05, 0.9)(n))
    assert found(fast) == {}, "what it learnt, it learnt in three iterations"


def test_a_run_that_starts_near_the_top():
    # share of equal answers 0.53 of groups of 4: 0.53^(1/4) = 0.8532; 0.93 of the best row, 0.98 ·
    # 0.85 = 0.833
    assert found(log(20, scores=wave(0.05, 0.93), zero_variance=0.53)) == {}
    assert "nothing learnt" in found(log(20, scores=wave(0.05, 0.93), zero_variance=0.52))  # 0.8492
    # one answer a prompt says nothing of the kind: ±0.12 around 0.5 is 0.81 of the best row
    one_answer = {"prompts_per_iteration": 32, "group_size": 1}
    assert "nothing learnt" in found(
        log(20, scores=wave(0.12, 0.5), zero_variance=1.0), **one_answer
    )
    assert "nothing learnt" in found(log(20, scores=-1.0, zero_variance=0.9)), (
        "no top is known below 0"
    )


def test_looks_are_longer_where_iterations_are_small():
    """Four answers an iteration: 16 in the start are 4 iterations, 48 are 12, 160 are 40."""
    small = {"prompts_per_iteration": 2, "group_size": 2}
    seen = ppo_rules._history(log(80), dataclasses.replace(MADE, **small))
    assert [len(part) for part in (seen.start, seen.recent, seen.first, seen.last)] == [
        4,
        12,
        40,
        40,
    ] and seen.whole
    falls = log(16, scores=later(0.5, 0.1, last=4), zero_variance=0.0)
    assert found(falls, **small).keys() == {"collapse"} and found(falls[:11], **small) == {}
    assert "nothing learnt" in found(log(80, scores=wave(0.1, 0.5)), **small)
    assert found(log(79, scores=wave(0.1, 0.5)), **small) == {}


def stretches(rows, **changes):
    settings = dataclasses.replace(MADE, **changes)
    return [(v.kind, v.step, v.ended) for v in replay_ppo(rows, settings)]


def test_a_replay_tells_when_each_verdict_began_and_ended():
    """At the end the KL is small again, so that `diagnose_ppo` alone would not know."""
    rows = log(20, kl=lambda n: 70.0 if 5 <= n <= 9 else 0.5, repeated=later(0.05, 0.5, last=14))
    assert found(rows).keys() == {"collapse"}
    # Three iterations in a row over 50 are 5 to 7. The rule looks back three, holds up to 9, and
    # finds nothing at 10, 11, 12 and 13. Of iterations 14 to 16 two repeat: (0.05 + 2 · 0.5) / 3 =
    # 0.35, more than 0.05 + 0.25.
    assert stretches(rows) == [("KL runaway", 7, 13), ("collapse", 16, None)]
    (runaway, _) = replay_ppo(rows, MADE)
    assert runaway.now == "it is 0.5 nats an answer."


def test_one_odd_iteration_ends_no_verdict():
    assert stretches(log(20, kl=lambda n: 49.0 if n in (12, 16) else 70.0 * (n > 1))) == [
        ("KL runaway", 4, None)
    ]
    assert stretches(log(20, kl=lambda n: 49.0 if n in (12, 13) else 70.0 * (n > 1))) == [
        ("KL runaway", 4, 15),
        ("KL runaway", 16, None),
    ]


def test_a_score_that_fell_and_came_back():
    rows = log(12, scores=lambda n: 0.1 if 3 <= n <= 6 else 0.5)
    # The limit is half of 0.5. Of iterations 2 to 4 the mean is 0.233, of 5 to 7 as well, which is
    # the last look to find it.
    assert stretches(rows) == [("collapse", 4, 11)]
    (collapse,) = replay_ppo(rows, MADE)
    assert collapse.now.startswith("the score is 0.5, and was 0.5 at the start; 5% of the answers'")


def test_a_run_that_rises_late_is_not_condemned_for_ever():
    flat = log(60, scores=wave(0.1, 0.5))
    assert stretches(flat, iterations=60) == [("nothing learnt", 20, None)]
    assert verdict_kinds(replay_ppo(flat, MADE)) == "nothing learnt"
    late = log(60, scores=lambda n: wave(0.1, 0.5 + 0.3 * (n > 30))(n))
    (verdict,) = replay_ppo(late, dataclasses.replace(MADE, iterations=60))
    # Long looks of 10. At 36 six of the last ten have risen, which is sure; 36 to 46 are eleven
    # looks.
    assert (verdict.step, verdict.ended) == (20, 46)
    assert verdict.now.startswith("the score has risen by 0.3 [0.193, 0.407], to 0.8")
    assert verdict_kinds([verdict]) == "nothing; in between: nothing learnt (20 to 46)"


def test_after_the_last_iteration_a_long_look_counts_at_once():
    """There is no further look to wait for: what rose just before the end has risen."""
    rows = log(36, scores=lambda n: wave(0.05, 0.5 + 0.4 * (n > 28))(n))
    assert stretches(rows, iterations=36) == [("nothing learnt", 20, 36)]
    assert stretches(rows, iterations=80) == [("nothing learnt", 20, None)]


def test_a_slow_rise_is_seen_over_the_whole_run():
    """Two looks of 10 of 120 cannot tell ±0.1 from a rise of 0.08; two quarters of 30 can."""
    slow = log(120, scores=lambda n: wave(0.1, 0.5 + 0.08 * n / 120)(n))
    settings = dataclasses.replace(MADE, iterations=120)
    run = ppo_rules._history(slow, settings)
    assert ppo_rules._change(run.first, run.last).low < 0 and found(slow, iterations=120) == {}
    (verdict,) = replay_ppo(slow, settings)
    assert verdict.ended is not None and verdict.now.startswith("the score has risen by 0.0")


def test_what_was_learnt_and_lost_is_named():
    lost = log(60, scores=lambda n: wave(0.1, 0.8 if 21 <= n <= 40 else 0.5)(n))
    said = found(lost, iterations=60)["nothing learnt"]
    assert "which may be 0; at its best, in iterations 21 to 30, it was 0.8." in said
    assert "at its best" not in found(log(60, scores=wave(0.1, 0.5)))["nothing learnt"]
    # found, withdrawn in the middle, and found again
    assert [kind for kind, *_ in stretches(lost, iterations=60)] == ["nothing learnt"] * 2


def test_a_run_that_goes_on_reads_the_same_from_its_log():
    """As a checkpoint has it: the log up to any iteration, and then one iteration after another."""
    rows = log(
        50,
        scores=lambda n: wave(0.1, 0.5 + 0.3 * (n > 30))(n),
        kl=lambda n: 70.0 if 5 <= n <= 9 or n > 40 else 0.5,
        explained_variance=later(0.0, 0.4, last=25),
    )
    settings = dataclasses.replace(MADE, iterations=50)
    whole = ppo_rules.follow_ppo(rows, settings)
    assert {v.kind for v in whole.verdicts} == {
        "KL runaway",
        "nothing learnt",
        "value head not learning",
    }
    for cut in (1, 8, 12, 21, 33, 43):
        course = ppo_rules.follow_ppo(rows[:cut], settings)
        for end in range(cut + 1, 51):
            course.follow(ppo_rules.look_ppo(rows[:end], settings), end)
        assert course.verdicts == whole.verdicts, cut


@pytest.mark.parametrize(
    "kind, values, changes",
    [
        ("answers do not end", {"not_ended": lambda n: 0.5 * (3 < n < 20)}, {}),
        ("KL flat zero", {"kl": later(0.0, 1.0, last=9), "approxkl": later(0.0, 1.0, last=9)}, {}),
        ("advantages zero", {"size": later(0.0, 0.8, last=9)}, {}),
        (
            "advantages zero",
            {"zero_variance": later(1.0, 0.2, last=9), "scores": 0.5},
            {"advantages": "rloo"},
        ),
        ("value head not learning", {"explained_variance": later(0.0, 0.5, last=25)}, {}),
        ("reward hacking", {"truth": lambda n: 0.5 - 0.02 * min(n, 60 - n)}, {}),
    ],
)
def test_other_kinds_end_too_and_say_how_it_is_now(kind, values, changes):
    verdicts = replay_ppo(log(60, **values), dataclasses.replace(MADE, iterations=60, **changes))
    (verdict,) = [verdict for verdict in verdicts if verdict.kind == kind]
    assert verdict.ended is not None and verdict.now.endswith(".")


def test_numbers_that_broke_are_not_mended_by_later_ones():
    rows = log(20, kl=lambda n: math.nan if n == 8 else 0.5)
    assert found(rows) == {} and stretches(rows) == [("not finite", 8, None)]


def test_every_kind_names_its_causes_and_a_place():
    for kind, (severity, causes, change) in PPO_KINDS.items():
        assert severity in ("stop", "warning") and causes and all(causes), kind
        assert any(place in change for place in ("`settings`", "`trainer.", "`score`")), kind
    assert set(ppo_rules.PPO_CONSEQUENCES) <= PPO_KINDS.keys()


def test_groups_that_are_all_right_at_last_are_no_fault():
    """RLOO on questions that are learnt: all answers to a prompt score the same, but did not at
    first.
    """
    rloo = {"advantages": "rloo", "prompts_per_iteration": 16, "group_size": 4}
    solved = log(30, scores=later(0.9, 1.0, last=5), zero_variance=later(0.5, 1.0, last=5))
    assert "advantages zero" not in found(solved, **rloo)
    assert "advantages zero" in found(log(30, scores=0.5, zero_variance=1.0), **rloo), (
        "never told apart"
    )
    worse = log(30, scores=later(0.9, 0.88, last=5), zero_variance=later(0.5, 1.0, last=5))
    assert "advantages zero" in found(worse, **rloo), "one answer for all, and no better"
