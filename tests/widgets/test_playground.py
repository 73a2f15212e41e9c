"""The scorer playground: what a reader sees after each move.

`test_colab_widgets.py` runs these tests once more with the ipywidgets of Google Colab.
"""

import json
import time

import numpy as np
import pytest
from made_up import record
from PIL import Image

from helpers.data.record import PreferenceRecord, resolve_images
from helpers.files import UsageError
from helpers.rewards import rule_ranking
from helpers.rewards.heuristic import HEURISTIC_RULES
from helpers.widgets import playground as widgets
from helpers.widgets.playground import ScorerPlayground


@pytest.fixture
def folder(tmp_path):
    Image.new("RGB", (64, 48), "navy").save(tmp_path / "photo.png")
    return tmp_path


@pytest.fixture
def play(folder):
    return lambda records, **options: ScorerPlayground(
        [resolve_images(r, folder / "x.jsonl", 1) for r in records], **options
    )


def test_equal_scores_are_ties_whatever_the_rounding():
    """3 × 0.1 is 0.30000000000000004 to a computer, which once put an equal answer first."""
    weights = dict.fromkeys(widgets.DEFAULT_WEIGHTS, 0.0) | {"grounding": 0.1, "reasoning": 0.3}
    totals = rule_ranking.weighted_sum(
        np.array([[3, 0, 0, 0, 0, 0], [0, 1, 0, 0, 0, 0.0]]), weights
    )
    assert totals[0] == totals[1] == 0.3
    assert ">1</td>" in widgets.ranking_table(["a", "b"], np.zeros((2, 6)), totals, np.ones(2))
    assert ">2</td>" not in widgets.ranking_table(["a", "b"], np.zeros((2, 6)), totals, np.ones(2))


def test_what_cannot_be_told_from_chance_is_said():
    share = rule_ranking.proportion(5, 10)
    found = {
        "cannot be told from chance": rule_ranking.Correlation(0.1, -0.1, 0.3, 20, 10),
        "ranks with the truth": rule_ranking.Correlation(0.3, 0.1, 0.5, 20, 10),
        "ranks against the truth": rule_ranking.Correlation(-0.3, -0.5, -0.1, 20, 10),
        "more than chance cannot be said": rule_ranking.Correlation(0.3, None, None, 20, 9),
        "not defined": rule_ranking.Correlation(None, None, None, 20, 10),
    }
    for words, correlation in found.items():
        text = widgets.ranking_summary(correlation, share, counts_known=False)
        assert words in text and "0.500 [" in text and "(n = 10)" in text
        assert sum(other in text for other in list(found)[:3]) == (words in list(found)[:3])
    assert "not equally good" in widgets.ranking_summary(found["not defined"], None, True)


def test_it_ranks_at_once_and_after_each_move(play):
    playground = play([record(n) for n in range(12)], counts_known=False)
    # the question's only content word is "cars"; the last answer says "so", too: .1, .1, .1 + .5
    assert playground.state["totals"] == [0.1, 0.1, 0.6] and playground.state["ranking"] == [
        2,
        0,
        1,
    ]
    assert playground.state["truth"] == pytest.approx([0.41667, 1, 0.75], abs=1e-4)
    # the truer of two is the second, the third, the second: tie, right, wrong
    assert (
        playground.state["agreement"].value == pytest.approx(0.5)
        and playground.state["agreement"].n == 36
    )
    playground.sliders["reasoning"].value = -0.5
    assert playground.state["totals"] == [0.1, 0.1, -0.4] and playground.state["ranking"] == [
        0,
        1,
        2,
    ]
    assert playground.state["agreement"].value == pytest.approx(0.5)  # tie, wrong, right
    assert "-0.50" in playground.table.value and "-0.40" in playground.table.value
    # now the classes are words to mention, too, .1 more for "buses", and wrong counts cost 1: −.8,
    # .2, −1.3
    playground.counts_known.value = True
    assert (
        playground.state["totals"] == pytest.approx([-0.8, 0.2, -1.3])
        and "the very ones" in playground.summary.value
    )
    assert bytes(playground.picture.value).startswith(
        b"\xff\xd8"
    ) and "never sees the image" in texts_of(playground)


def test_reset_measures_once_and_forgets_nothing(play, monkeypatch):
    playground = play([record(0)])
    first = dict(playground.state)
    for slider in playground.sliders.values():
        slider.value = 1.5
    assert set(playground.state["weights"].values()) == {1.5}
    calls = []
    monkeypatch.setattr(
        widgets, "correlate", lambda *given: calls.append(given) or first["correlation"]
    )
    playground.reset.click()
    assert (
        len(calls) == 1
        and playground.state == first
        and playground.weights == widgets.DEFAULT_WEIGHTS
    )


def test_rules_are_asked_once(play, monkeypatch):
    asked, rule_values = [], rule_ranking.rule_values
    monkeypatch.setattr(
        widgets, "rule_values", lambda *given: asked.append(given[1]) or rule_values(*given)
    )
    playground = play([record(n) for n in range(3)])
    for value in (0.5, 1.0, -1.0):
        playground.sliders["grounding"].value = value
    for known in (False, True, False):
        playground.counts_known.value = known
    playground.record.value = 2
    assert asked == [True, False]


def test_a_move_takes_less_than_50_milliseconds_for_2000_answers(play, monkeypatch):
    values = np.random.default_rng(0).integers(0, 4, (2001, 6)).astype(float)
    monkeypatch.setattr(widgets, "rule_values", lambda *_: values)
    playground = play([record(n) for n in range(667)])
    times = []
    for weight in (0.3, 0.7, 1.1, -0.3, -0.7):
        started = time.perf_counter()
        playground.sliders["grounding"].value = weight
        times.append(time.perf_counter() - started)
    assert playground.state["correlation"].n == 2001 and min(times) < 0.05


def test_another_record(play, folder):
    Image.new("RGB", (64, 48), "red").save(folder / "other.png")
    playground = play([record(0), record(1, ["<b>2 cars</b>", "3 cars"], image="other.png")])
    picture = playground.picture.value
    playground.record.value = 1
    assert playground.state["record"] == "id 1" and len(playground.state["totals"]) == 2
    assert playground.picture.value != picture and "How many cars? 1" in playground.prompt.value
    assert "&lt;b&gt;2 cars" in playground.table.value and "<b>2" not in playground.table.value


def test_records_without_a_truth_are_left_out_and_told(play):
    others = [record(n, truth=truth) for n, truth in enumerate((None, {}, None, {}))]
    playground = play([*others, record(9)])
    assert (
        playground.state["record"] == "id 9"
        and "4 records without a known truth" in playground.message.value
    )
    assert "left out" not in play([record(0)]).message.value
    with pytest.raises(UsageError, match="None of the records has a known truth or a ranking"):
        play([others[0], others[2]])


def test_answers_are_compared_with_a_reference_answer(play):
    playground = play([record(n, truth="2 cars") for n in range(3)])
    assert "left out" not in playground.message.value and len(playground.state["totals"]) >= 2


def test_a_missing_picture_is_told_and_the_rest_goes_on(play):
    playground = play([record(0, image="gone.png"), record(1)])
    assert "gone.png does not exist" in playground.message.value and playground.picture.value == b""
    playground.sliders["grounding"].value = 1.0
    assert playground.state["totals"][1] == 2.0 and "gone.png" in playground.state["message"]
    playground.record.value = 1
    assert playground.state["message"] == "" and playground.picture.value


def test_weights_are_there_when_the_cell_is_run_again(play, folder):
    kept = folder / "weights.json"
    playground = play([record(0)], weights_path=kept)
    assert not kept.exists(), "nothing was moved"
    playground.sliders["reasoning"].value = 1.2
    again = play([record(0)], weights_path=kept)
    assert (
        again.weights == widgets.DEFAULT_WEIGHTS | {"reasoning": 1.2}
        and again.state == playground.state
    )
    playground.reset.click()
    assert json.loads(kept.read_text()) == widgets.DEFAULT_WEIGHTS


@pytest.mark.parametrize(
    "content",
    [
        "{",
        "[]",
        '{"grounding": 1}',
        json.dumps(widgets.DEFAULT_WEIGHTS | {"grounding": 2.1}),
        '{"grounding": "1"}',
    ],
)
def test_a_file_of_weights_that_is_none_is_told(play, folder, content):
    (folder / "weights.json").write_text(content)
    playground = play([record(0)], weights_path=folder / "weights.json")
    assert (
        "weights.json" in playground.state["message"]
        and playground.weights == widgets.DEFAULT_WEIGHTS
    )
    assert (folder / "weights.json").read_text() == content
    playground.sliders["reasoning"].value = 1.0
    assert (
        playground.state["message"] == ""
        and widgets.read_weights(folder / "weights.json")["reasoning"] == 1.0
    )


def test_weights_that_cannot_be_written_are_told(play, folder, monkeypatch):
    def full(path, value):
        raise OSError(28, "No space left on device")

    playground = play([record(0)], weights_path=folder / "weights.json")
    with monkeypatch.context() as patch:
        patch.setattr(widgets, "write_json", full)
        playground.sliders["reasoning"].value = 1.0
    assert (
        "No space left" in playground.message.value
        and playground.state["weights"]["reasoning"] == 1.0
    )
    playground.sliders["reasoning"].value = 1.1
    assert playground.state["message"] == ""


def test_controls_have_names_and_heights_do_not_change(play):
    playground = play([record(0), record(1, ["short", "long " * 300])])
    changing = (playground.message, playground.summary, playground.prompt, playground.table)
    heights = [part.layout.height for part in changing]
    playground.record.value = 1
    assert heights == [part.layout.height for part in changing] and all(heights)
    controls = [
        *playground.sliders.values(),
        playground.record,
        playground.counts_known,
        playground.reset,
    ]
    assert (
        all(control.description for control in controls)
        and len(controls) == len(HEURISTIC_RULES) + 3
    )
    assert all((s.min, s.max, s.step) == (-2, 2, 0.1) for s in playground.sliders.values())


def texts_of(playground):
    def inside(widget):
        return [
            widget,
            *(part for child in getattr(widget, "children", ()) for part in inside(child)),
        ]

    return " ".join(str(getattr(part, "value", "")) for part in inside(playground.box))


def test_where_nobody_knows_a_truth_people_s_rankings_take_its_place(tmp_path):
    """The rule that counts "because" ranks as people did in the first, and is level in the second."""
    Image.new("RGB", (8, 8)).save(tmp_path / "photo.png")
    records = []
    for better, worse in (("It is red, because of the roof.", "A boat."), ("A house.", "A tree.")):
        fields = {
            "images": [str(tmp_path / "photo.png")],
            "prompt": "Why is it red?",
            "answers": [{"text": worse}, {"text": better}],
            "ranking": [[1], [0]],
        }
        records.append(PreferenceRecord.model_validate(fields))
    unjudged = records[0].model_copy(update={"ranking": None})
    playground = ScorerPlayground([*records, unjudged])
    assert "what people preferred" in playground.summary.value
    assert playground.state["agreement"].n == 2 and playground.left_out == 1
    assert playground.state["truth"] == [-1.0, 0.0]
    with pytest.raises(UsageError, match="known truth or a ranking"):
        ScorerPlayground([unjudged])
