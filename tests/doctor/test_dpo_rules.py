"""Every rule of DPO on logs made by hand, on both sides of its limit."""

import math

import pytest
from dpo_logs import log, sample

from helpers.doctor.dpo_rules import (
    DPO_KINDS,
    LEARNING_CHAIN,
    Census,
    DPOHistory,
    Tower,
    diagnose_dpo,
    look_dpo,
    replay_dpo,
)
from helpers.doctor.verdicts import Course, verdict_kinds


def found(rows=(), **about):
    return {
        v.kind: v.measured
        for v in diagnose_dpo(DPOHistory(**({"log": rows, "pairs": 8, "beta": 1.0} | about)))
    }


def wave(height, around=0.0):
    """Mean `around`, with a standard deviation of `height` × √(n / (n − 1))."""
    return lambda step: around + (height if step % 2 else -height)


def test_a_log_without_a_fault_and_an_empty_one_have_no_finding():
    assert found(log(40)) == {} and found() == {}


def test_a_margin_that_may_be_0():
    assert found(log(20, margins=0, accuracies=0)) == {
        "nothing learnt": "the margin was exactly 0 in all of the last 20 rows."
    }
    # 20 rows of ±1: s = √(20 / 19) = 1.026, t(19) = 2.093, half width = 2.093 · 1.026 / √20 = 0.480
    assert "0.47 [-0.0102, 0.95]" in found(log(20, margins=wave(1, 0.47)))["nothing learnt"]
    assert "nothing learnt" not in found(log(20, margins=wave(1, 0.49)))
    assert "nothing learnt" not in found(log(19, margins=wave(1))), "too early to tell"
    assert "nothing learnt" not in found(log(24, margins=wave(1)), steps=100), (
        "not yet a quarter of the run"
    )
    assert "nothing learnt" in found(log(25, margins=wave(1)), steps=100)


def test_accuracy_at_chance():
    # 20 rows × 8 pairs: Wilson's interval of 92 of 160 = .575 is [.4975, .6490], of 93 [.5036,
    # .6549]
    assert (
        "0.575 [0.498, 0.649] (n = 160)" in found(log(20, accuracies=92 / 160))["chance accuracy"]
    )
    assert "chance accuracy" not in found(log(20, accuracies=93 / 160))
    assert found(log(20, accuracies=0.3, margins=-0.3)).keys() == {"chance accuracy"}, (
        "surely not 0, but wrong"
    )


def test_steps_without_a_learning_rate_do_not_count_as_wrong():
    """While the warm-up is at 0 the rewards are equal, and TRL counts equal as wrong."""
    late = {"margins": lambda step: float(step > 5), "accuracies": lambda step: float(step > 5)}
    assert found(log(20, **late)) == {}


def test_a_margin_that_will_not_get_anywhere():
    # Margin 0.02 after 25 steps of 1e-4; 75 more make it 0.08 < 0.1; 1e-4 / 0.08 → 1e-3
    said = found(log(25, margins=0.02), steps=100)["too slow"]
    assert (
        "margins are about 0.02 and will be 0.08 by step 100; a learning rate of about 1e-03"
        in said
    )
    assert "too slow" not in found(log(25, margins=0.026), steps=100)  # 0.104
    # Means of 8 pairs that are 0.05 either side of 0: one pair is 0.05 · √8 = 0.14 off, so the
    # policy does move
    assert found(log(20, margins=wave(0.05))).keys() == {"nothing learnt"}
    # In a warm-up that reached 1e-4 at its end, 0.013 of a mean of 0.5e-4: 0.013 · (1 + 75 / 13) =
    # 0.088
    warm = log(25, margins=0.013, learning_rate=lambda step: step / 25 * 1e-4)
    assert "will be 0.09 by step 100" in found(warm, steps=100)["too slow"]


def test_divergence():
    assert "loss is 0.7" in found(log(10, loss=lambda step: 0.3 if step <= 3 else 0.7))["diverging"]
    assert "diverging" not in found(
        log(10, loss=lambda step: 0.3 if step <= 3 else 0.6)
    )  # limit: over 2 × 0.3
    assert "margin of -0.6" in found(log(10, margins=-0.6))["diverging"]
    assert "diverging" not in found(log(10, margins=-0.5))
    assert "diverging" not in found(log(10, margins=wave(1, -0.6))), (
        "as wide as that, it may be more than −0.5"
    )


def test_the_gradient_norm():
    assert (
        "20.1, and was 2 "
        in found(log(9, grad_norm=lambda s: 2.0 if s <= 4 else 20.1))["gradient explodes"]
    )
    assert "gradient explodes" not in found(log(9, grad_norm=lambda s: 2.0 if s <= 4 else 20.0))
    assert "gradient explodes" not in found(
        log(9, grad_norm=lambda s: 900.0 if s in (5, 9) else 2.0)
    ), "two peaks"


def test_single_overflows_of_an_fp16_scaler_are_no_finding():
    assert found(log(20, grad_norm=lambda step: math.inf if step in (1, 2, 9) else 2.0)) == {}
    assert "not finite" not in found(log(7, grad_norm=math.inf))
    assert "not finite" not in found(log(8, grad_norm=lambda step: 2.0 if step == 4 else math.inf))
    assert "8 steps in a row" in found(log(8, grad_norm=math.inf))["not finite"]


def test_a_number_that_is_not_finite_is_the_only_finding():
    broken = log(20, margins=lambda step: math.nan if step == 20 else 0.0, loss=0.9)
    samples = [sample(), sample(20, answers=["No."] * 8)]
    assert found(broken, samples=samples) == {"not finite": "rewards/margins is nan."}


def test_a_learning_rate_that_stays_at_0():
    """As of a second schedule for an optimizer that the first set to the 0 of its warm-up."""
    stays = log(5, learning_rate=0.0, margins=0.0, accuracies=0.0)
    assert found(stays) == {"rate zero": "the learning rate was 0 in all of the last 5 rows."}
    assert "rate zero" not in found(log(4, learning_rate=0.0)), "too early to tell"
    assert found(log(5, learning_rate=lambda step: 1e-4 * (step > 1))) == {}, "a warm-up"
    assert stretches(log(20, learning_rate=lambda step: 1e-4 * (step > 8))) == [
        ("rate zero", 5, 14)
    ]


def test_both_answers_sinking():
    # The reference gives −20, so the limit is max(1, 2) nats; β 0.1: rewards of −0.21 are 2.1 nats
    assert "chosen ones by 2.1 nats" in found(log(5, chosen=-2.1, rejected=-3.0))["chosen sinks"]
    assert found(log(5, chosen=-1.9, rejected=-3.0)) == {}
    assert found(log(5, chosen=-2.1, rejected=0.1)) == {}
    rows = [row | {"logps/chosen": -22.1} for row in log(5, chosen=-0.21, rejected=-0.3)]
    assert "chosen ones by 2.1 nats" in found(rows, beta=0.1)["chosen sinks"]


def test_saturation():
    small = {"grad_norm": lambda step: 2.0 if step <= 3 else 0.039}  # 2 % of 2 is 0.04
    assert "all of the last 160 pairs" in found(log(30, **small))["saturated"]
    assert found(log(30, accuracies=lambda step: 7 / 8 if step == 15 else 1.0, **small)) == {}
    assert found(log(30, grad_norm=lambda step: 2.0 if step <= 3 else 0.041)) == {}
    held_out = [*log(30, **small), {"eval_rewards/accuracies": 0.62}]
    assert "held-out pairs 62% are" in found(held_out)["saturated"]


def test_entropy():
    assert "1.51" in found(log(9, entropy=lambda step: 1.0 if step <= 4 else 1.51))["entropy"]
    assert "0.049" in found(log(9, entropy=lambda step: 1.0 if step <= 4 else 0.049))["entropy"]
    for still_fine in (1.5, 0.051):
        assert "entropy" not in found(
            log(9, entropy=lambda step, late=still_fine: 1.0 if step <= 4 else late)
        )
    assert (
        found(log(9, entropy=lambda step: 0.01 if step <= 4 else 0.04, mean_token_accuracy=0.99))
        == {}
    )


def test_a_model_that_is_sure_and_wrong_at_the_start():
    # exp(−0.5) = 0.607, less 0.05 is 0.557
    said = found(log(5, entropy=0.5, mean_token_accuracy=0.55))["foreign text"]
    assert "61% sure of a next token, and 55% were right" in said
    assert found(log(5, entropy=0.5, mean_token_accuracy=0.56)) == {}


def after(**values):
    """Findings when the second sample differs from a healthy first one."""
    return found(samples=[sample(), sample(20, **values)])


def test_answers_that_do_not_end():
    cut = [58] * 6 + [
        20
    ] * 2  # 0.9 · 64 = 57.6. Wilson: 0 of 8 [0, .324], 6 of 8 [.409, .929], 5 of 8 [.306, .863]
    assert "0.750 [0.409, 0.929]" in after(tokens=cut)["answers do not end"]
    assert "answers do not end" not in after(tokens=[58] * 5 + [20] * 3)
    assert "answers do not end" not in after(tokens=[57] * 8)
    assert "answers do not end" in found(
        samples=[sample(tokens=[58] * 7 + [20])]
    )  # 7 of 8 [.529, .978]
    assert "answers do not end" not in found(samples=[sample(tokens=cut)])


def test_answers_that_fall_apart():
    assert after(tokens=[40] * 8) == {} and after(tokens=[10] * 8) == {}
    assert "have 41 tokens, and had 20" in after(tokens=[41] * 8)["answers fall apart"]
    assert "have 9 tokens" in after(tokens=[9] * 8)["answers fall apart"]
    assert (
        after(repeated=[0.34] * 8) == {}
        and "36%" in after(repeated=[0.36] * 8)["answers fall apart"]
    )


def own(gain, reference=-1.2, **values):
    """Answers whose log-probability is so much higher than under the reference."""
    numbers = [gain] * 8 if isinstance(gain, float) else gain
    logps = [reference + number for number in numbers]
    return sample(20, logps=logps, reference_logps=[reference] * 8, **values)


def test_answers_that_leave_the_reference_while_the_chosen_ones_sink():
    """Loss and accuracy are splendid, as when it was first seen: −4.4 nats, a KL of 14."""
    sinking = log(10, chosen=lambda step: -0.1 * (step > 5), rejected=-2.0)

    def collapse(gain, rows=sinking, first=None, **about):
        samples = [first or sample(), own(gain)]
        return found(rows, samples=samples, beta=0.1, **about).get("collapse")

    # Wilson's interval of 6 of 8 is [.409, .929], of 5 of 8 [.306, .863]; β 0.1: −0.1 is −1 nat
    said = collapse([5.2] * 6 + [0.0] * 2)
    assert said.startswith("0.750 [0.409, 0.929] (n = 8) of its own answers are over 5 nats")
    # 6 · 5.2 / 8 = 3.9
    assert "(3.9 on average), and the chosen ones of the last 5 rows 1 nats less likely" in said
    assert collapse(4.9) is None and collapse([50.0] * 5 + [0.0] * 3) is None
    # a policy that goes as far to the chosen answers
    assert collapse(20.0, rows=log(10, chosen=0.1)) is None
    # free text, whose own answers have −40: as far again
    free = sample(reference_logps=[-40.0] * 8)
    assert collapse(39.0, first=free) is None and collapse(41.0, first=free)
    # not before there are rows to judge by
    assert collapse(20.0, rows=sinking[:4]) is None


def test_a_collapse_is_a_reason_to_stop_and_ends_with_the_second_sample_that_does_not_show_it():
    samples = [sample(), own(9.0), *(sample(step) for step in (30, 40, 50))]
    sinking = log(60, chosen=-0.1, rejected=-2.0)
    (verdict,) = replayed(sinking, samples=samples)
    assert (verdict.kind, verdict.severity) == ("collapse", "stop")
    assert (verdict.step, verdict.ended) == (20, 40)
    assert verdict.now.endswith("and they are 0.2 nats likelier than under the reference.")


def test_answers_that_ignore_the_image():
    assert "0.09 nats" in found(samples=[sample(sight=[0.09] * 8)])["blind"]
    assert found(samples=[sample(sight=[0.11] * 8)]) == {}
    assert "blind" in after(sight=[0.49] * 8) and after(sight=[0.51] * 8) == {}  # a tenth of 5 nats


def test_one_answer():
    assert "'No.' to all of 8 images" in after(answers=["No."] * 8)["one answer"]
    assert after(answers=["No."] * 7 + ["Yes."]) == {}
    few = [sample(answers=["No."] * 6 + ["Yes.", "Both."]), sample(20, answers=["No."] * 8)]
    assert found(samples=few) == {}, (
        "with three answers at the start, eight equal ones are no wonder"
    )


def census(step=9, **vision):
    whole = {"tensors": 4, "reached": 4, "types": ("float32",)}
    return Census(step, {"language": Tower(**whole), "vision": Tower(**(whole | vision))})


def test_the_census():
    assert found(census=census()) == {}
    assert found(census=census(reached=0)) == {
        "no gradient": "4 of 4 tensors of the vision part get none, or are not the optimizer's."
    }
    assert found(census=census(step=4, reached=0)) == {}, "LoRA's A needs a step of B first"
    assert "float16" in found(census=census(step=1, types=("float16", "float32")))["low precision"]


def test_every_kind_names_its_causes_and_a_cell():
    for kind, (severity, causes, change) in DPO_KINDS.items():
        assert severity in ("stop", "warning") and causes and all(causes), kind
        assert any(place in change for place in ("`settings`", "`new_trainer`", "notebook 02")), (
            kind
        )


# When a verdict begins and ends


def replayed(rows, **about):
    return replay_dpo(DPOHistory(**({"log": rows, "pairs": 8, "beta": 1.0} | about)))


def stretches(rows, **about):
    return [(v.kind, v.step, v.ended) for v in replayed(rows, **about)]


def test_a_run_without_a_fault_has_no_verdict_at_any_time():
    assert replayed([]) == [] and replayed(log(60)) == []


def test_a_run_that_learns_late_is_not_condemned_for_ever():
    late = log(
        80,
        margins=lambda step: wave(0.5, 1.0 * (step > 40))(step),
        accuracies=lambda step: 1.0 if step > 40 else 0.5,
    )
    (verdict,) = replayed(late)
    # A quarter of 80 is 20. Of a look of 20 rows at ±0.5 the half width is 0.24: six risen rows
    # are 0.3 more or less sure, and then come more than 20 looks that find nothing.
    assert (verdict.kind, verdict.step) == ("nothing learnt", 20)
    assert 40 + 20 < verdict.ended < 40 + 20 + 14
    assert verdict.now == (
        "the margin is 1 [0.76, 1.24]; "
        "pairs preferred the right way: 1.000 [0.977, 1.000] (n = 160)."
    )
    never = log(80, margins=wave(0.5), accuracies=0.5)
    assert stretches(never) == [("nothing learnt", 20, None)]
    assert verdict_kinds(replayed(never)) == "nothing learnt"


def test_after_the_last_step_a_long_look_counts_at_once():
    rows = log(60, margins=lambda step: wave(0.5, 1.0 * (step > 48))(step))
    assert stretches(rows) == [("nothing learnt", 20, 60)]
    # of a run that has still to go on
    assert stretches(rows, steps=80) == [("nothing learnt", 20, None)]


def test_a_loss_that_rose_and_fell_again():
    rows = log(30, loss=lambda step: 0.8 if 8 <= step <= 14 else 0.3)
    # five rows at 0.8 are surely over 2 · 0.3; four of them and one of 0.3 are not
    (verdict,) = replayed(rows)
    assert (verdict.kind, verdict.step, verdict.severity) == ("diverging", 12, "stop")
    # found up to step 14; rows 15 to 20 are more than the five that the rule looks back
    assert verdict.ended == 20
    assert verdict.now == "the loss is 0.3 [0.3, 0.3], the margin 1 [1, 1]."


@pytest.mark.parametrize(
    "kind, values",
    [
        ("too slow", {"margins": lambda step: 0.01 if step <= 25 else 1.0}),
        ("chosen sinks", {"chosen": lambda step: -4.0 if 9 < step < 20 else 0.5}),
        ("gradient explodes", {"grad_norm": lambda step: 30.0 if 9 < step < 20 else 2.0}),
        ("saturated", {"grad_norm": lambda step: 0.01 if 4 < step < 40 else 2.0}),
        ("entropy", {"entropy": lambda step: 2.0 if 9 < step < 20 else 1.0}),
        # a template that is new to it at first
        ("foreign text", {"entropy": lambda step: 0.1 if step < 20 else 1.0}),
    ],
)
def test_other_kinds_end_too_and_say_how_it_is_now(kind, values):
    verdicts = [verdict for verdict in replayed(log(80, **values)) if verdict.kind == kind]
    assert verdicts and verdicts[0].ended is not None and verdicts[0].now.endswith(".")


def test_numbers_that_broke_are_not_mended_by_later_ones():
    rows = log(20, margins=lambda step: math.nan if step == 8 else 1.0)
    assert stretches(rows) == [("not finite", 8, None)]


def test_a_fault_of_the_answers_ends_with_the_second_sample_that_does_not_show_it():
    samples = [sample(), sample(10, answers=["No."] * 8), sample(20), sample(30), sample(40)]
    (verdict,) = replayed(log(50), samples=samples)
    assert (verdict.kind, verdict.step, verdict.ended) == ("one answer", 10, 30)
    assert verdict.now.startswith("of the 8 answers of step 30 8 differ; they have 20 tokens")
    assert stretches(log(29), samples=samples[:3]) == [("one answer", 10, None)]


def test_a_tower_that_is_reached_late():
    course = Course(DPO_KINDS, LEARNING_CHAIN)
    for step in range(1, 21):
        seen = census(step, reached=4 if step > 8 else 2)
        course.follow(look_dpo(DPOHistory(log(step), 8, 1.0, 20, census=seen)), step)
    (verdict,) = course.verdicts
    assert (verdict.kind, verdict.step, verdict.ended) == ("no gradient", 5, 14)
    assert "4 of 4 tensors of the vision part (float32)" in verdict.now
