"""Rows of every two-way format become records and back; what does not fit is refused in words."""

import json

import pytest
from budgets import cases
from format_rows import ROWS, TWO_WAY, fits
from hypothesis import HealthCheck, given, settings
from strategies import records

from helpers.data.convert_files import detect_format
from helpers.data.convert_rows import EXTRA_COLUMN, from_row, to_rows
from helpers.data.record import PreferenceRecord
from helpers.files import UsageError


def through(name: str, record: PreferenceRecord) -> str:
    """The record after it was written as rows, to JSON, and read from the first row."""
    rows = json.loads(json.dumps(to_rows(name, record)))
    assert len(rows) == max(1, len(record.pairs())), name
    return from_row(name, rows[0])[0].model_dump_json()


@cases(40, 1000)
def test_records_of_the_plainest_shape_survive_every_two_way_format(number):
    """The shape that every format holds: one image, one question, two answers, one better."""

    @settings(max_examples=number, deadline=None, suppress_health_check=list(HealthCheck))
    @given(records(max_answers=2, max_images=1, max_turns=1, one_better=True))
    def survives(record):
        for name in TWO_WAY:
            assert through(name, record) == record.model_dump_json(), name

    survives()


@cases(25, 500)
def test_records_of_any_shape_survive_or_are_refused(number):
    @settings(max_examples=number, deadline=None, suppress_health_check=list(HealthCheck))
    @given(records())
    def survives_or_is_refused(record):
        for name in TWO_WAY:
            if fits(name, record):
                assert through(name, record) == record.model_dump_json(), name
            else:
                with pytest.raises(UsageError):
                    to_rows(name, record)

    survives_or_is_refused()


@pytest.mark.parametrize("name", TWO_WAY)
def test_rows_of_the_originals_are_recognised_and_given_back(name):
    row = ROWS[name]
    assert detect_format(row) == name
    record, _ = from_row(name, row)
    assert to_rows(name, record) == [row]
    texts = [[record.answers[place].text for place in tier] for tier in record.ranking]
    expected = {
        "ab": "A cat is sitting on a mat.",
        "chosen_rejected": ROWS["chosen_rejected"]["chosen"],
        "llava_rlhf": "B.",
        "vl_rewardbench": "There.",
    }
    assert texts[0] == [expected.get(name, "Here.")] and len(texts) == 2


def test_what_is_in_the_other_columns_reaches_the_record():
    assert [a.model for a in from_row("vl_rewardbench", ROWS["vl_rewardbench"])[0].answers] == [
        "a",
        "b",
    ]
    rlhf = from_row("rlhf_v", ROWS["rlhf_v"])[0]  # the chosen answer is a person's correction
    assert {a.text: a.model for a in rlhf.answers} == {"Here.": None, "There.": "llava"}
    rlaif = from_row("rlaif_v", ROWS["rlaif_v"])[0]
    assert {a.model for a in rlaif.answers} == {"llava15-7b"}
    conversation = from_row("llava_rlhf", ROWS["llava_rlhf"])[0].prompt
    assert [(m.role, m.content) for m in conversation] == [
        ("user", "Where?"),
        ("assistant", "Here."),
        ("user", "Why?"),
    ]
    assert [m.role for m in from_row("llama_factory", ROWS["llama_factory"])[0].prompt] == [
        "system",
        "user",
    ]


def test_a_prompt_in_a_foreign_template_is_repaired_kept_and_reported():
    """A student project's prompts were read as words: its model never saw an image."""
    row = ROWS["chosen_rejected"]
    record, change = from_row("chosen_rejected", row)
    assert [m.model_dump() for m in record.prompt] == [
        {"role": "user", "content": "Please count the number of vehicles you see."}
    ]
    assert record.extra["chosen_rejected"]["row"]["prompt"] == row["prompt"]
    assert "another model's chat template (<|user|>)" in change
    assert to_rows("trl", record)[0]["prompt"] == [
        {"role": "user", "content": "Please count the number of vehicles you see."}
    ]


@pytest.mark.parametrize(
    ("prompt", "messages"),
    [
        ("<|im_start|>system\nBe short.<|im_end|>\n<|im_start|>user\n<image>Why?<|im_end|>\n<|im_start|>assistant\n", [("system", "Be short."), ("user", "Why?")]),
        ("USER: <image>\nWhy? ASSISTANT:", [("user", "Why?")]),
        ("<|user|>\nWhy?<|end|>\n<|assistant|>\nSo.<|end|>\n<|user|>\nOh?<|end|>", [("user", "Why?"), ("assistant", "So."), ("user", "Oh?")]),
        ("The USER: field is empty. Why?", [("user", "The USER: field is empty. Why?")]),
        ("Why is <image> dark?", [("user", "Why is dark?")]),
    ],
)  # fmt: skip
def test_templates_that_are_recognised(prompt, messages):
    record, change = from_row(
        "mmpr", {"image": "1.jpg", "question": prompt, "chosen": "a", "rejected": "b"}
    )
    assert [(m.role, m.content) for m in record.prompt] == messages
    assert (change is None) == ("field" in prompt)


def test_an_edited_record_wins_over_the_columns_it_was_read_from():
    record, _ = from_row("mmpr", ROWS["mmpr"])
    record.prompt[0].content = "Where is it?"
    (row,) = to_rows("mmpr", record)
    assert {**row, EXTRA_COLUMN: None} == {
        **ROWS["mmpr"],
        "question": "Where is it?",
        EXTRA_COLUMN: None,
    }


def test_position_does_not_give_the_chosen_side_away():
    """chosen is not always answer 0: .5 within 5 standard errors of 1,000 tosses (.5 ± .08)."""
    row = {"image": "1.jpg", "question": "q"}
    first = [
        from_row("mmpr", {**row, "chosen": f"c{k}", "rejected": f"r{k}"})[0].ranking == [[0], [1]]
        for k in range(1000)
    ]
    assert 420 < sum(first) < 580


def vlfeedback(*ratings, texts=("a", "b", "c", "d")):
    names = ("Helpfulness", "Visual Faithfulness", "Ethical Considerations")
    notes = [
        {name: {"Rating": r, "Rationale": "…"} for name, r in zip(names, row, strict=True)}
        for row in ratings
    ]
    completions = [
        {"annotations": n, "model": f"m{t}", "response": t}
        for n, t in zip(notes, texts, strict=False)
    ]
    return {
        "id": "1",
        "prompt": "Where?",
        "models": [],
        "completions": completions,
        "img_path": "1.jpg",
    }


def test_vlfeedback_is_ranked_by_the_mean_rating_and_ties_give_no_pair():
    # means: a (5+4+3)/3 = 4, b (4+4+4)/3 = 4, c (5+5+5)/3 = 5, d (1+2+3)/3 = 2
    row = vlfeedback(("5", "4", "3"), ("4", "4", "4"), ("5", "5", "5"), ("1", "2", "3"))
    record, change = from_row("vlfeedback", row)
    assert record.ranking == [[2], [0, 1], [3]] and change is None
    assert [a.score for a in record.answers] == [4, 4, 5, 2] and record.answers[3].model == "md"
    assert [(p.chosen.text, p.rejected.text, p.margin) for p in record.pairs()] == [
        ("c", "a", 1), ("c", "b", 1), ("c", "d", 3), ("a", "d", 2), ("b", "d", 2),
    ]  # fmt: skip
    columns = {
        key: [c[key] for c in row["completions"]] for key in row["completions"][0]
    }  # as Arrow gives it
    again, _ = from_row("vlfeedback", {**row, "completions": columns})
    assert again.answers == record.answers and again.ranking == record.ranking
    with pytest.raises(UsageError, match="can be read but not written"):
        to_rows("vlfeedback", record)


def test_vlfeedback_without_ratings_and_with_equal_texts():
    record, change = from_row(
        "vlfeedback",
        vlfeedback(("5", "5", "5"), ("N/A", "N/A", "N/A"), ("N/A", "3", "1"), ("1", "2", "1")),
    )
    # The mean of two criteria is no mean of three: the authors leave such answers out
    assert [a.text for a in record.answers] == ["a", "d"] and record.ranking == [[0], [1]]
    assert change == "2 answer(s) without a rating left out (kept in extra)"
    assert record.extra["vlfeedback"]["row"]["completions"][1]["response"] == "b"
    same = vlfeedback(("5", "5", "5"), ("3", "3", "3"), ("1", "1", "1"), texts=("a", "b", "a"))
    assert from_row("vlfeedback", same)[0].ranking == [[0, 1, 2]]


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        (
            "ab",
            {"preference": "response_c"},
            "unknown preference 'response_c': write response_a, response_b or tie",
        ),
        ("ab", {"response_a": ""}, "answers.0.text: the answer is empty"),
        ("ab", {"response_b": 3}, "a field has a type that this format"),
        ("mmpr", {"question": "<image><image> q"}, "the prompt has 2 <image> marks for 1 images"),
        ("mmpr", {"chosen": "There."}, "have the same text but different ranks"),
        ("rlhf_v", {"text": "{'question': 1}"}, "not JSON"),
        ("rlhf_v", {"text": '{"question": "q", "chosen": "a"}'}, "field 'rejected' is missing"),
        ("llava_rlhf", {"preference": 0}, "unknown preference 0: 1 or 2"),
        ("vl_rewardbench", {"human_ranking": [0, 0]}, r"must be \[0, 1\] or \[1, 0\]"),
        ("trl", {"images": None}, "images.0: Input should be a valid string"),
        ("ms_swift", {"messages": []}, "has a type"),
    ],
)
def test_bad_rows_are_refused_in_words(name, change, message):
    with pytest.raises(UsageError, match=message):
        from_row(name, {**ROWS[name], **change})


def test_columns_edited_after_the_export_are_noticed():
    (row,) = to_rows("mmpr", from_row("ab", ROWS["ab"])[0].model_copy(update={"id": "7"}))
    assert from_row("mmpr", row)[0].id == "7"
    with pytest.raises(UsageError, match=f"Delete {EXTRA_COLUMN} from this row"):
        from_row("mmpr", {**row, "chosen": "Something else."})
