"""What the doctor of data finds in a file, where, and what it does not take for a fault."""

import copy
import json
import random
import subprocess
import sys
from pathlib import Path

import pytest
from budgets import cases
from pictures import noise
from PIL import Image
from preference_files import QUESTION, answers, draw, messages, row, told, write
from shipped import TRAFFIC

from helpers.cli import main
from helpers.data.data_doctor import check_file, find_photos
from helpers.data.findings import FINDING_KINDS, salvage
from helpers.doctor.lengths import RecordLengths, image_tokens
from helpers.files import ROOT, UsageError

# --- the clean file, and one finding at a time ----------------------------------------------------


def test_a_clean_file_has_no_findings(folder, processor):
    report = check_file(
        write(folder / "a.jsonl", map(row, range(24))), lengths=RecordLengths(processor)
    )
    assert report.findings == []
    assert report.counts == {"lines": 24, "records": 24, "pairs": 24, "images": 24}
    assert "24 records, 24 pairs, 24 images, 0 errors, 0 warnings, 0 notes." in str(report)
    assert "shown first" in str(report) and "0.500 [0.314, 0.686] (n = 24)" in str(report)


SAID = {"text": "There are 11 cars."}
PROVOKED = [  # kind, a change of record 5, what the message says
    ("missing image", {"images": ["images/nowhere.png"]}, "images/nowhere.png does not exist"),
    (
        "missing image",
        {"negative_images": ["images/nowhere.png"]},
        "images/nowhere.png does not exist",
    ),
    (
        "unreadable image",
        {"images": ["cut.jpg"]},
        "cut.jpg cannot be read (image file is truncated",
    ),
    (
        "unreadable image",
        {"images": ["text.png"]},
        "text.png cannot be read (no image of a known kind",
    ),
    ("unreadable image", {"images": ["broken.png"]}, "broken.png cannot be read (broken PNG file"),
    ("unreadable image", {"images": ["images"]}, "images cannot be read ("),
    ("unreadable image", {"images": ["a\0b.png"]}, "cannot be read (embedded null byte)"),
    ("duplicate id", {"id": "r3"}, "line 4 has this id too"),
    (
        "contradiction",
        row(3, id="r5", ranking=[[1], [0]]),
        "line 4 ranks two of these answers the other way round",
    ),
    (
        "contradiction",
        row(3, id="r5", ranking=[[0, 2], [1]], answers=[*row(3)["answers"][::-1], SAID]),
        "line 4 ranks",
    ),
    ("huge image", {"images": ["wide.png"]}, "wide.png: 20.5 megapixels, 0.0 MB"),
    ("huge image", {"images": ["heavy.png"]}, "heavy.png: 0.0 megapixels, 20.0 MB"),
    ("path", {"images": ["../outside.png"]}, "../outside.png leaves the data folder"),
    ("duplicate record", row(3, id="r5"), "says the same as line 4"),
    (
        "duplicate record",
        row(3, id=None, answers=row(3)["answers"][::-1], ranking=[[1], [0]]),
        "the same as line 4",
    ),
    (
        "duplicate record",
        row(3, id="r5", group=None, images=["copy.png"]),
        "says the same as line 4",
    ),
    (
        "duplicate answers",
        {"answers": answers("11", "12", "12"), "ranking": [[0], [1, 2]]},
        "'12' occurs more than",
    ),
    (
        # but for a second blank and an accent that is a sign of its own
        "duplicate answers",
        {"answers": answers("11", "a caf\u00e9", "a  cafe\u0301"), "ranking": [[0], [1, 2]]},
        "'a café' occurs more than",
    ),
    (
        "bad line",
        {"answers": answers("a caf\u00e9", "a  cafe\u0301"), "ranking": [[0], [1]]},
        "answers 0 and 1 have the same text, but for what nobody sees, but different ranks",
    ),
    ("bad line", {"answers": answers("11", "\u200b \ufeff")}, "the answer is empty"),
    (
        "scores",
        {"answers": answers("11", "12", scores=(1, 2.5))},
        "answer 0 has 1 and is ranked above answer 1, which",
    ),
    (
        "photo in two groups",
        {"images": ["images/3.png"]},
        "photo-5, but line 4 in photo-3 has the same image file",
    ),
    (
        "photo in two groups",
        {"images": ["./copy.png"]},
        "photo-5, but line 4 in photo-3 has the same image, byte",
    ),
    ("no pairs", {"ranking": None}, "not ranked"),
    ("no pairs", {"ranking": [[0, 1]]}, "all answers are tied"),
]


@pytest.mark.parametrize(("kind", "change", "expected"), PROVOKED)
def test_a_kind_of_finding_is_told_with_its_place(folder, kind, change, expected):
    jpeg = folder / "whole.jpg"
    noise(90, 90).save(jpeg)
    (folder / "cut.jpg").write_bytes(jpeg.read_bytes()[:-500])
    (folder / "text.png").write_text("not a picture")
    png = (folder / "images" / "0.png").read_bytes()
    noise(300, 300).save(folder / "broken.png")
    first, second = (folder / "broken.png").read_bytes().rsplit(b"IDAT", 1)
    (folder / "broken.png").write_bytes(
        first + b"I\0\1T" + second
    )  # for which Pillow raises a SyntaxError
    (folder / "heavy.png").write_bytes(png + bytes(20_000_000))
    Image.new("1", (5000, 4100)).save(folder / "wide.png")
    draw(folder.parent / "outside.png", 200)
    (folder / "copy.png").write_bytes((folder / "images" / "3.png").read_bytes())
    report = check_file(
        write(folder / "a.jsonl", [row(i, **(change if i == 5 else {})) for i in range(24)])
    )
    assert told(report) == [(kind, 6)] and expected in report.findings[0].message
    assert report.findings[0].severity == FINDING_KINDS[kind][0]
    assert (
        f"{FINDING_KINDS[kind][0].upper()}: {kind} (1)\n  {FINDING_KINDS[kind][1]}\n    a.jsonl:6"
        in str(report)
    )


def test_absolute_paths_of_every_system_are_told(folder):
    rows = [row(0, images=[str(folder / "images" / "0.png")]), row(1, images=["C:\\images\\1.png"])]
    path = write(folder / "a.jsonl", rows)
    assert told(check_file(path, images=False)) == [("path", 1), ("path", 2)]
    assert messages(check_file(path, images=False))[1] == "C:\\images\\1.png is an absolute path"


def test_the_data_folder_may_be_wider_than_the_folder_of_the_file(folder):
    path = write(folder / "preferences" / "a.jsonl", [row(0, images=["../images/0.png"])])
    assert told(check_file(path)) == [("path", 1)] and told(check_file(path, root=folder)) == []


@pytest.mark.parametrize(
    ("text", "images", "kind"),
    [
        (QUESTION, 1, None),
        ("Is 3 < 4, and is <b> bold?", 1, None),
        (f"<image>\n{QUESTION}", 1, "placeholder text"),
        (f"<image>\n{QUESTION}", 2, "image placeholders"),
        (f"<image><image>{QUESTION}", 1, "image placeholders"),
        (f"<image_1> or <image_2>? {QUESTION}", 2, "placeholder text"),
        # one image written as three marks, its pad repeated as in an expanded prompt
        (
            f"<|vision_start|><|image_pad|><|image_pad|><|vision_end|>{QUESTION}",
            1,
            "placeholder text",
        ),
        (f"<|image_1|><|image_2|>{QUESTION}", 1, "image placeholders"),
    ],
)
def test_image_placeholders_are_counted(tmp_path, text, images, kind):
    rows = [row(0, prompt=[{"role": "user", "content": text}], images=["a.png", "b.png"][:images])]
    assert told(check_file(write(tmp_path / "a.jsonl", rows), images=False)) == (
        [(kind, 1)] if kind else []
    )


@pytest.mark.parametrize(
    "mark",
    [
        "<|user|>",
        "<|assistant|>",
        "<|im_start|>",
        "[INST]",
        "USER:",
        "ASSISTANT:",
        "<start_of_turn>",
        "### Human",
    ],
)
def test_marks_of_chat_templates_are_named(tmp_path, mark):
    rows = [
        row(0, prompt=[{"role": "user", "content": f"{mark} {QUESTION}"}]),
        row(1, answers=[{"text": "There are 11 cars."}, {"text": f"{mark} There are 98 cars."}]),
    ]
    report = check_file(write(tmp_path / "a.jsonl", rows), images=False)
    assert told(report) == [("chat template", 1), ("chat template", 2)]
    assert messages(report) == [f"the prompt holds {mark!r}", f"answer 1 holds {mark!r}"]


@pytest.mark.parametrize(
    "mark", ["<|im_end|>", "</s>", "<|eot_id|>", "<end_of_turn>", "<|endoftext|>"]
)
def test_an_answer_that_ends_twice_is_told(tmp_path, mark):
    rows = [row(0, answers=[{"text": f"There are 11 cars.{mark}"}, {"text": "There are 98 cars."}])]
    assert told(check_file(write(tmp_path / "a.jsonl", rows), images=False)) == [("end of turn", 1)]


def test_an_answer_cannot_bring_an_image(tmp_path):
    rows = [row(0, answers=[{"text": "<image> 11"}, {"text": "12"}])]
    assert told(check_file(write(tmp_path / "a.jsonl", rows), images=False)) == [
        ("image placeholders", 1)
    ]


def test_every_bad_line_is_told_and_every_good_one_is_read(tmp_path):
    bad = [
        '{"images": ["a.png"]',
        json.dumps(row(1, ranking=[[0], [2]])),
        json.dumps(row(1, colour="red")),
        "NaN",
    ]
    path = write(tmp_path / "a.jsonl", [row(0), *bad, row(1)])
    path.write_bytes(path.read_bytes() + b'{"images": ["\xff"]}\n')
    report = check_file(path, images=False)
    assert told(report) == [("bad line", line) for line in (2, 3, 4, 5, 7)]
    assert report.counts == {"lines": 7, "records": 2, "pairs": 2, "images": 2}
    assert "not UTF-8" in report.errors[-1].message and "ranking" in report.errors[1].message


@pytest.mark.parametrize("content", ["", "\n \n"])
def test_a_file_without_records_is_an_error_and_no_file_raises(tmp_path, content):
    (tmp_path / "a.jsonl").write_text(content)
    assert told(check_file(tmp_path / "a.jsonl")) == [("no records", None)]
    with pytest.raises(UsageError, match="no such file"):
        check_file(tmp_path / "b.jsonl")


def test_two_people_may_be_of_two_opinions(folder):
    """Of one person, or where nobody knows whose they are, two opinions are a slip."""

    def by(name, ranking, number):
        vote = {"kind": "human", "annotator": name, "verdict": "ranked", "ranking": ranking}
        return row(0, ranking=ranking, id=f"r{number}", judgements=[vote])

    first, other = [[0], [1]], [[1], [0]]
    rows = [by("ann", first, 0), by("bob", other, 1)]
    report = check_file(write(folder / "a.jsonl", rows))
    assert told(report) == [("disagreement", 2)] and not report.errors
    for last in (by("ann", other, 1), row(0, ranking=other, id="r1")):
        report = check_file(write(folder / "a.jsonl", [rows[0], last]))
        assert told(report) == [("contradiction", 2)]
    # as tables name it
    named = [row(0, ranking=ranking, id=None, extra={"annotator": name})
             for name, ranking in (("ann", first), ("bob", other))]  # fmt: skip
    assert told(check_file(write(folder / "a.jsonl", named))) == [("disagreement", 2)]


def test_a_record_with_an_error_does_not_exclude_a_later_one(folder):
    rows = [row(0, images=["gone.png"]), row(0), row(0, ranking=[[0], [1]], id="r1")]
    report = check_file(write(folder / "a.jsonl", rows))
    assert told(report) == [
        ("missing image", 1),
        ("contradiction", 3),
    ]  # r0 of line 1 does not count


def test_a_group_may_be_missing_at_first(folder):
    rows = [row(0, group=None), row(1, images=["images/0.png"]), row(2, images=["images/0.png"])]
    assert told(check_file(write(folder / "a.jsonl", rows))) == [("photo in two groups", 3)]


def test_copies_by_roboflow_are_one_photo(tmp_path):
    rows = [
        row(0, images=["s_jpg.rf.60d1.jpg"]),
        row(1, images=["s_jpg.rf.77aa.jpg"]),
        row(2, images=["x/0.png"]),
    ]
    report = check_file(
        write(tmp_path / "a.jsonl", [*rows, row(3, images=["y/0.png"])]), images=False
    )
    assert told(report) == [("photo in two groups", 2)]  # but 0.png of two folders is two photos


# --- rules that never look -------------------------------------------------------------------------


def test_a_rule_that_never_looks_is_a_warning(tmp_path):
    rows = [
        row(i, answers=answers("No.", "There are many."), ranking=[[i % 2], [1 - i % 2]])
        for i in range(24)
    ]
    for i in range(24):  # the chosen answer is the longer one in every pair
        rows[i]["answers"] = rows[i]["answers"][:: -1 if i % 2 == 0 else 1]
        rows[i]["ranking"] = [[0], [1]] if rows[i]["answers"][0]["text"] != "No." else [[1], [0]]
    report = check_file(write(tmp_path / "a.jsonl", rows), images=False)
    # Wilson, 24 of 24: low = 24 / (24 + 1.96²) = 0.862
    assert messages(report) == [
        "'longer' picks the chosen answer without looking, in a share of the pairs of 1.000 [0.862, 1.000] (n = 24)"
    ]
    assert [(f.severity, f.line) for f in report.findings] == [("warning", None)]


@pytest.mark.parametrize(("right", "warned"), [(17, True), (16, False)])
def test_a_rule_counts_if_its_interval_lies_above_sixty_per_cent(tmp_path, right, warned):
    # of 20 pairs: 17 → Wilson low 0.640, 16 → 0.584
    rows = [row(i, ranking=[[0], [1]] if i < right else [[1], [0]]) for i in range(20)]
    report = check_file(write(tmp_path / "a.jsonl", rows), images=False)
    assert [f.kind for f in report.findings] == ["position"] * warned
    assert (
        check_file(write(tmp_path / "b.jsonl", rows[:19]), images=False).findings == []
    )  # too few pairs to say


@pytest.mark.parametrize(
    ("ranking", "rule"), [([[0], [1]], "shown first"), ([[1], [0]], "shown last")]
)
def test_a_better_answer_that_always_has_the_same_place_is_told(tmp_path, ranking, rule):
    report = check_file(
        write(tmp_path / "a.jsonl", [row(i, ranking=ranking) for i in range(24)]), images=False
    )
    assert [(f.severity, f.kind) for f in report.findings] == [("warning", "position")] and repr(
        rule
    ) in messages(report)[0]


def test_the_short_form_has_no_bias_of_position(tmp_path):
    rows = [
        {"image": f"{i}.png", "prompt": QUESTION, "chosen": f"{i + 10}", "rejected": f"{i + 50}"}
        for i in range(24)
    ]
    assert check_file(write(tmp_path / "a.jsonl", rows), images=False).findings == []


def test_the_shipped_preferences_have_no_errors_and_one_warning_of_their_own():
    train = check_file(TRAFFIC / "preferences_train.jsonl")
    valid = check_file(TRAFFIC / "preferences_valid.jsonl", against=[train, TRAFFIC / "test"])
    # The base under-counts, so the larger total is right against its own answers (0.83), not against others (0.51).
    assert [f.kind for f in train.findings] == ["blind rule"] and valid.findings == []
    assert train.findings[0].message == (
        "'larger total' picks the chosen answer without looking, in a share of the pairs of 0.657 [0.626, 0.687] "
        "(n = 932), and of 0.831 [0.793, 0.864] (n = 424) where the rejected answer is 'own'"
    )


# --- leaks between files ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({}, None),
        ({"group": "photo-3"}, "has the same group"),
        ({"images": ["images/3.png"]}, "has the same image file"),
        ({"images": ["copy.png"]}, "has the same image, byte for byte"),
        ({"images": ["s_jpg.rf.77aa.png"]}, "has a copy of the photo, to go by its name"),
    ],
)
def test_a_photo_in_two_files_is_a_leak(folder, change, expected):
    (folder / "copy.png").write_bytes((folder / "images" / "3.png").read_bytes())
    draw(folder / "s_jpg.rf.60d1.png", 100)
    draw(folder / "s_jpg.rf.77aa.png", 101)
    train = write(
        folder / "train.jsonl",
        [row(i) for i in range(12)] + [row(12, images=["s_jpg.rf.60d1.png"])],
    )
    test = write(folder / "test.jsonl", [row(20), row(21, **change)])
    for other in (train, check_file(train)):
        report = check_file(test, against=[other])
        assert told(report) == ([("leak", 2)] if expected else [])
    line = 13 if "rf" in str(change) else 4
    assert messages(report) == ([f"{train}:{line} {expected}"] if expected else [])


def test_a_benchmark_is_a_folder_of_images(folder):
    path = write(folder / "a.jsonl", [row(0), row(1)])
    draw(folder / "benchmark" / "deep" / "x.png", 1)
    report = check_file(path, against=[folder / "benchmark"])
    assert told(report) == [("leak", 2)]
    assert (
        messages(report)[0]
        == f"{folder / 'benchmark' / 'deep' / 'x.png'} has the same image, byte for byte"
    )
    assert (
        check_file(path, against=[folder / "benchmark"], images=False).findings == []
    )  # another name
    (folder / "empty").mkdir()
    with pytest.raises(UsageError, match="holds no image"):
        find_photos(folder / "empty")


def test_errors_of_the_other_file_are_not_passed_over(folder):
    path, other = (
        write(folder / "a.jsonl", [row(0), row(1, ranking=None)]),
        write(folder / "b.jsonl", [row(0), "{"]),
    )
    assert told(check_file(path, against=[other])) == [
        ("not compared", None),
        ("leak", 1),
        ("no pairs", 2),
    ]


# --- images and tokens -----------------------------------------------------------------------------


def test_every_image_is_opened_once(folder, monkeypatch):
    opened, plain = [], Path.open
    monkeypatch.setattr(
        Path,
        "open",
        lambda path, *rest, **more: opened.append(path.name) or plain(path, *rest, **more),
    )
    rows = [row(i, images=["images/0.png", f"images/{i % 3}.png"], group=None) for i in range(9)]
    check_file(
        write(
            folder / "a.jsonl", [*rows, row(9, images=["gone.png"]), row(10, images=["gone.png"])]
        )
    )
    assert sorted(name for name in opened if name.endswith("png")) == [
        "0.png",
        "1.png",
        "2.png",
        "gone.png",
    ]


def test_every_record_with_a_missing_image_is_told_but_a_huge_image_once(folder):
    Image.new("1", (5000, 4100)).save(folder / "wide.png")
    rows = [row(i, images=["gone.png" if i % 2 else "wide.png"], group=None) for i in range(4)]
    report = check_file(write(folder / "a.jsonl", rows))
    assert told(report) == [("huge image", 1), ("missing image", 2), ("missing image", 4)]


def test_without_images_none_is_opened(tmp_path):
    assert check_file(write(tmp_path / "a.jsonl", [row(0), row(1)]), images=False).findings == []


def test_lengths_are_summed_up_and_long_records_told(folder, processor):
    long = [{"text": "There are " + "very " * 50 + "many."}, {"text": "12"}]
    rows = [*(row(i) for i in range(9)), row(9, answers=long, ranking=[[0], [1]])]
    report = check_file(write(folder / "a.jsonl", rows), lengths=RecordLengths(processor, 60))
    assert told(report) == [("too long", 10)] and "the model takes 60" in messages(report)[0]
    row_of_texts = report.lengths["tokens of prompt and longest answer"]
    assert row_of_texts["median"] < 60 < row_of_texts["95 %"] < row_of_texts["max"]
    tokens = image_tokens(processor, (30, 20))
    assert report.lengths["tokens of images"] == {"median": tokens, "95 %": tokens, "max": tokens}
    assert f"tokens of images: median {tokens}, 95 % {tokens}, max {tokens}" in str(report)
    assert (
        check_file(folder / "a.jsonl", lengths=RecordLengths(processor)).findings == []
    )  # its tokenizer says 2,048
    assert list(
        check_file(folder / "a.jsonl", lengths=RecordLengths(processor), images=False).lengths
    ) == ["tokens of prompt and longest answer"]


def test_what_the_model_cannot_take_is_an_error(folder, processor):
    strict = copy.deepcopy(processor)
    strict.chat_template = "{{ raise_exception('roles must alternate') }}"
    report = check_file(write(folder / "a.jsonl", [row(0)]), lengths=RecordLengths(strict))
    assert told(report) == [("unfit for the model", 1)]
    assert "roles must alternate" in messages(report)[0]


FOREIGN = {
    "image_path": "images/1.png",
    "prompt": "<|user|>\nCount. <image>\n<|assistant|>\n",
    "chosen": "2",
    "rejected": "3",
}


@pytest.mark.parametrize("array", [True, False])
def test_records_of_another_format_are_checked_and_sorted_out_as_they_come(folder, array):
    rows = [FOREIGN, FOREIGN | {"chosen": ""}, FOREIGN | {"image_path": "images/2.png"}]
    text = json.dumps(rows, indent=1) if array else "\n".join(map(json.dumps, rows))
    (folder / "a.json").write_text(text)
    report = check_file(folder / "a.json")
    assert told(report) == [("altered", 1), ("bad line", 2), ("altered", 3)]
    assert "the answer is empty" in messages(report)[1]
    assert salvage(folder / "a.json", report, folder / "good.json") == (2, 1)
    text = (folder / "good.json").read_text()
    good = json.loads(text) if array else [json.loads(line) for line in text.splitlines()]
    assert good == [rows[0], rows[2]] and not check_file(folder / "good.json").errors


def test_of_an_array_that_was_cut_off_the_whole_items_are_kept(folder):
    rows = [FOREIGN | {"image_path": f"images/{i}.png"} for i in range(4)]
    for text in (
        json.dumps(rows, indent=1),
        json.dumps(rows),
        "[\n" + ",\n".join(map(json.dumps, rows)) + "\n]",
    ):
        (folder / "a.json").write_text(text[: text.index("3.png")])
        report = check_file(folder / "a.json")
        assert report.errors[0].message.startswith("the JSON array is damaged at line ")
        assert salvage(folder / "a.json", report, folder / "good.json") == (3, 1)
        assert json.loads((folder / "good.json").read_text()) == rows[:3]
    (folder / "a.json").write_text(json.dumps([row(i) for i in range(3)]) + "x")
    report = check_file(folder / "a.json")
    assert told(report) == [("bad line", 4)], "records of this project in an array, too"
    assert messages(report)[0].startswith("the JSON array is damaged at line ")
    (folder / "a.json").write_text("[ ]")
    assert told(check_file(folder / "a.json")) == [("no records", None)]
    (folder / "a.json").write_text('{"question": "?"}\n')
    assert "unknown format (columns: question)" in messages(check_file(folder / "a.json"))[0]


# --- the command line ------------------------------------------------------------------------------


def test_the_command_exits_with_1_on_errors_only(folder, capsys):
    clean, warned = (
        write(folder / "a.jsonl", [row(0)]),
        write(folder / "b.jsonl", [row(1), row(1, id="x")]),
    )
    assert main(["check", str(clean), str(warned)]) == 0
    printed = capsys.readouterr().out
    assert f"{clean}: 1 line, 1 record, 1 pair, 1 image, 0 errors, 0 warnings, 0 notes." in printed
    assert "WARNING: duplicate record (1)" in printed
    broken = write(folder / "c.jsonl", [row(2), "{"])
    out = ["--salvage", str(folder / "good.jsonl"), "--json", str(folder / "findings.json")]
    assert main(["check", str(broken), *out]) == 1
    captured = capsys.readouterr()
    assert captured.err.endswith(
        "error: errors found: 1, see above. Correct them before training.\n"
    )
    assert (
        "good lines: 1 →" in captured.out
        and (folder / "good.jsonl").read_text() == json.dumps(row(2)) + "\n"
    )
    (report,) = json.loads((folder / "findings.json").read_text())
    assert report["path"] == str(broken) and report["counts"]["records"] == 1
    assert [(f["severity"], f["kind"], f["line"]) for f in report["findings"]] == [
        ("error", "bad line", 2)
    ]
    assert main(["check", str(clean), str(broken), "--salvage", "x"]) == 1


def test_the_command_compares_files_and_counts_tokens(folder, capsys):
    first, second = write(folder / "a.jsonl", [row(0), row(1)]), write(folder / "b.jsonl", [row(1)])
    assert (
        main(
            [
                "check",
                str(first),
                str(second),
                "--model",
                "tiny",
                "--benchmark",
                str(folder / "images"),
            ]
        )
        == 0
    )
    printed = capsys.readouterr().out
    assert f"b.jsonl:1 (r1): {first}:2 has the same group" in printed
    assert f"a.jsonl:2 (r1): {folder / 'images' / '1.png'} has the same image file" in printed
    assert printed.count("tokens of images: median 6, 95 % 6, max 6") == 2
    assert main(["check", str(first), "--model", "tinny"]) == 1
    assert "Did you mean 'tiny'?" in capsys.readouterr().err


def test_help_says_what_every_option_does(capsys):
    assert main(["check", "--help"]) == 0
    text = " ".join(capsys.readouterr().out.split())
    for words in (
        "Exit code 1 if something has errors",
        "open no image",
        "may be repeated",
        ".bad.jsonl",
        "as this model does",
    ):
        assert words in text


@pytest.mark.heavy(reason="a process of its own, whose memory is measured")
@cases(10_000, 100_000)
def test_100_000_records_take_less_than_a_minute_and_a_gigabyte(tmp_path, number):
    """A tenth of them: no more than a fifth of the time and of the memory, the start included."""
    pick = random.Random(0)
    with (tmp_path / "big.jsonl").open("w") as file:
        for i in range(number):
            truth = {
                name: pick.randint(0, 3) for name in ("cars", "motorcycles", "buses", "bicycles")
            }
            texts = [
                f"There are {pick.randint(0, 3)} cars, {n} motorcycles, 0 buses, 1 bicycles."
                for n in range(3)
            ]
            order = pick.sample(range(3), 3)
            change = {
                "truth": truth,
                "answers": answers(*texts),
                "ranking": [[order[0]], sorted(order[1:])],
            }
            file.write(json.dumps(row(i, **change)) + "\n")
    # ru_maxrss would count the memory of this process too, which the child has until it starts its own program
    code = """if True:
        import sys, time
        from pathlib import Path
        from helpers.cli import main
        status = main(["check", sys.argv[1], "--no-images"])
        assert "helpers.models" not in sys.modules
        if (proc := Path("/proc/self/status")).exists():
            peak = int(proc.read_text().split("VmHWM:")[1].split()[0]) * 1024
        else:
            import resource
            peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        print(status, peak, time.process_time())
    """
    command = [sys.executable, "-c", code, str(tmp_path / "big.jsonl")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    status, peak, seconds = map(
        float, done.stdout.splitlines()[-1].split()
    )  # of the processor, however busy it is
    print(f"{number:,} records: {seconds:.1f} s, {peak / 1e6:.0f} MB")
    counted = f"{number:,} records, {2 * number:,} pairs, {number:,} images, 0 errors"
    assert counted in done.stdout and status == 0
    share = 1 if number == 100_000 else 1 / 5
    assert seconds < 60 * share and peak < 1e9 * share
