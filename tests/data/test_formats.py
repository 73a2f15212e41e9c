"""Rows as other tools write them: read as they are meant, or refused in words that say why."""

import json

import pytest
from PIL import Image

from helpers.data.convert_files import detect_format
from helpers.data.convert_rows import from_row
from helpers.data.door import open_data
from helpers.files import UsageError

ASKED = {"role": "user", "content": "How many boxes?"}
SYSTEM = {"role": "system", "content": "Be short."}


def says(text):
    return {"role": "assistant", "content": text}


def trl(chosen, rejected, prompt=(ASKED,)):
    return {"images": ["a.png"], "prompt": list(prompt), "chosen": chosen, "rejected": rejected}


def read(row):
    name = detect_format(row)
    record, _ = from_row(name, row)
    better = record.answers[record.ranking[0][0]].text
    worse = record.answers[record.ranking[1][0]].text
    return name, [message.content for message in record.prompt], better, worse


@pytest.mark.parametrize(
    ("chosen", "rejected", "prompt"),
    [
        ([says("3")], [says("7")], ["How many boxes?"]),
        # the whole conversation in each
        ([ASKED, says("3")], [ASKED, says("7")], ["How many boxes?"]),
        ([SYSTEM, ASKED, says("3")], [SYSTEM, ASKED, says("7")], ["Be short.", "How many boxes?"]),
        ([SYSTEM, says("3")], [SYSTEM, says("7")], ["Be short.", "How many boxes?"]),
        # turns that both share go before the answers
        (
            [says("The red ones?"), {"role": "user", "content": "All."}, says("3")],
            [says("The red ones?"), {"role": "user", "content": "All."}, says("7")],
            ["How many boxes?", "The red ones?", "All."],
        ),
        (
            [ASKED, says("Which?"), {"role": "user", "content": "All."}, says("3")],
            [ASKED, says("Which?"), {"role": "user", "content": "All."}, says("7")],
            ["How many boxes?", "Which?", "All."],
        ),
        # a copy of the question that has the mark of the image
        (
            [{"role": "user", "content": "<image>How many boxes?"}, says("3")],
            [ASKED, says("7")],
            ["How many boxes?"],
        ),
    ],
)
def test_of_several_turns_the_last_answer_is_compared(chosen, rejected, prompt):
    assert read(trl(chosen, rejected)) == ("trl", prompt, "3", "7")


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        (
            trl(
                [says("The red ones?"), {"role": "user", "content": "All."}, says("3")],
                [says("Let me look."), {"role": "user", "content": "Well?"}, says("7")],
            ),
            "different turns before their last answers",
        ),
        (
            trl(
                [{"role": "user", "content": "Why?"}, says("3")],
                [{"role": "user", "content": "Why?"}, says("7")],
            ),
            "another question than the prompt",
        ),
        (trl([says("3"), ASKED], [says("7")]), "chosen ends with a turn of 'user'"),
        (
            trl([says("3")], [says("7")], [{"role": "user", "content": [{"type": "video"}]}]),
            "part of type 'video'",
        ),
        (
            trl(
                [says("3")],
                [says("7")],
                [{"role": "user", "content": [{"type": "image"}, {"type": "image"}]}],
            ),
            "2 <image> marks for 1 images",
        ),
        (
            {
                "messages": [ASKED, says("3")],
                "rejected_messages": [{"role": "user", "content": "Is there a box?"}, says("7")],
                "images": ["a.png"],
            },
            "answer another conversation",
        ),
        (
            {
                "messages": [ASKED, says("3")],
                "rejected_messages": [ASKED, says("7")],
                "images": ["a.png"],
                "rejected_images": ["b.png"],
            },
            "rejected_images are other pictures than images",
        ),
        (
            {
                "messages": [ASKED, says("3")],
                "rejected_response": "7",
                "images": ["a.png"],
                "rejected_images": ["b.png"],
            },
            "rejected_images are other pictures than images",
        ),
    ],
)
def test_what_a_pair_cannot_say_is_refused_in_words(row, reason):
    with pytest.raises(UsageError, match=reason):
        from_row(detect_format(row), row)


def test_ms_swift_with_whole_conversations():
    row = {
        "messages": [ASKED, says("3")],
        "rejected_messages": [{"role": "user", "content": "<image>How many boxes?"}, says("7")],
        "images": ["a.png"],
        "rejected_images": [{"path": "a.png"}],
    }
    assert read(row) == ("ms_swift", ["How many boxes?"], "3", "7")


@pytest.mark.parametrize(
    "row",
    [
        {
            "messages": [{"role": "user", "content": "<image>How many boxes?"}],
            "chosen": says("3"),
            "rejected": says("7"),
            "images": ["a.png"],
        },
        {
            "conversations": [{"role": "user", "content": "<image>How many boxes?"}],
            "chosen": {"from": "gpt", "value": "3"},
            "rejected": {"from": "gpt", "value": "7"},
            "images": ["a.png"],
        },
    ],
)
def test_llama_factory_has_two_words_for_a_turn(row):
    assert read(row) == ("llama_factory", ["How many boxes?"], "3", "7")


def test_parts_of_a_message_are_texts_and_places_of_images():
    parts = [{"type": "text", "text": "How many"}, {"type": "image"}, {"type": "text", "text": "?"}]
    record, change = from_row(
        "trl", trl([says("3")], [says("7")], [{"role": "user", "content": parts}])
    )
    assert record.prompt[0].content.split() == ["How", "many", "?"] and record.images == ["a.png"]
    assert change == "image marks moved to the front"


def test_popes_own_file_is_questions(tmp_path):
    Image.new("RGB", (30, 30)).save(tmp_path / "a.png")
    rows = []
    for number, label in enumerate(("yes", "no", "yes"), start=1):
        text = f"Is there a box {number} in the image?"
        rows.append({"question_id": number, "image": "a.png", "text": text, "label": label})
    path = tmp_path / "coco_pope_random.json"
    path.write_text("\n".join(map(json.dumps, rows)))
    (tasks,) = [part.tasks for part in open_data(path).parts.values()]
    assert [task.facts for task in tasks] == ["yes", "no", "yes"]
    assert tasks[0].question == "Is there a box 1 in the image?"
