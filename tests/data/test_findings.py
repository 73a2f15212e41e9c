"""What a report of findings shows, and what salvage keeps, whatever happens to a file."""

import base64
import json
import random
from collections import Counter

import pytest
from budgets import cases
from IPython.lib.pretty import pretty
from preference_files import QUESTION, row, write

from helpers.data.convert_files import is_array, raw_rows, scan_file
from helpers.data.data_doctor import check_file
from helpers.data.findings import salvage
from helpers.data.record import PreferenceRecord
from helpers.files import UsageError


def test_a_report_shows_the_worst_first_and_few_places_of_each(tmp_path):
    rows = [*(row(i, ranking=None) for i in range(7)), "{"]
    text = str(check_file(write(tmp_path / "a.jsonl", rows), images=False))
    assert text.index("ERROR: bad line (1)") < text.index("NOTE: no pairs (7)")
    assert "    a.jsonl:5 (r4): not ranked\n    … and 2 more" in text and "r5" not in text
    long = check_file(
        write(tmp_path / "b.jsonl", [row(0, **{"x" * 5000: 1}), row(1, id="a\nb", ranking=None)]),
        images=False,
    )
    assert (
        "xxx…\n" in str(long)
        and "b.jsonl:2 (a b): not ranked" in str(long)
        and len(str(long)) < 2000
    )
    assert pretty(long) == str(long)  # what a notebook shows


def test_salvage_keeps_good_lines_and_says_what_was_wrong_with_the_others(folder):
    good = [
        json.dumps(row(0)),
        "",
        json.dumps(row(1)) + "\r",
        json.dumps(row(2, prompt="Wie viele Straßen? 数")),
    ]
    bad = [json.dumps(row(3, id="r0")), json.dumps(row(4, images=["gone.png"])), '{"cut": "数']
    path = folder / "a.jsonl"
    path.write_bytes(
        "\n".join([good[0], bad[0], *good[1:3], bad[1], bad[2], ""]).encode()
        + b"\xff\n"
        + good[3].encode()
    )
    report = check_file(path)
    assert salvage(path, report, folder / "out.jsonl") == (3, 4)
    assert (folder / "out.jsonl").read_bytes() == "".join(f"{g}\n" for g in good if g).encode()
    entries = [
        json.loads(line) for line in (folder / "out.bad.jsonl").read_text("utf-8").splitlines()
    ]
    assert [entry["line"] for entry in entries] == [2, 5, 6, 7]
    assert [entry["raw"] for entry in entries[:3]] == bad and "encoding" not in entries[0]
    assert base64.b64decode(entries[3]["raw"]) == b"\xff" and entries[3]["encoding"] == "base64"
    assert (
        entries[0]["error"] == "line 1 has this id too"
        and "gone.png does not exist" in entries[1]["error"]
    )
    assert check_file(folder / "out.jsonl").errors == []


def test_salvage_does_not_overwrite_what_it_reads(tmp_path):
    path = write(tmp_path / "a.bad.jsonl", [row(0)])
    report = check_file(path, images=False)
    for out in ("a.bad.jsonl", "a.jsonl"):
        with pytest.raises(UsageError, match="would be overwritten"):
            salvage(path, report, tmp_path / out)
    assert path.read_text() == json.dumps(row(0)) + "\n"


LINES = [json.dumps(row(i, extra={"note": "数 🚌"}), ensure_ascii=False).encode() for i in range(4)]


LINES += [
    json.dumps({"image": "5.png", "prompt": QUESTION, "chosen": "5", "rejected": "6"}).encode(),
    b"",
]


ORIGINAL = {line: PreferenceRecord.model_validate_json(line) for line in LINES if line}


TINY = [*rb'NaN null -Infinity 1e999 " \ \ud800 { } ] , "id":"r1", "score":1e400,'.split(), b" "]


RARE = [
    b"\n",
    b"\r",
    b"\n\n",
    b"\0",
    b"\x85",
    b"\xff\xfe",
    b"\xef\xbb\xbf",
    b"\xe2\x80\xa8",
    b"\xed\xa0\x80",
]


LONG = [
    b"[" * 100_000,
    b'{"a":' * 3000,
    b"9" * 5000,
    b'"score":' + b"9" * 400 + b",",
    LINES[0],
    LINES[4] + b"\n",
]


def damaged(pick):
    """The file after one to four cuts, flips, repeats and insertions, at places of which each is as likely."""
    data = b"\n".join(LINES)
    for _ in range(pick.randint(1, 4)):
        start = pick.choice(
            [0, pick.randint(0, len(data)), data.find(b"\n", pick.randint(0, len(data))) + 1]
        )
        stop = start + pick.choice([0, 1, 2, 10, 300, max(0, data.find(b"\n", start) + 1 - start)])
        part = data[start:stop]
        new = pick.choice(
            [pick.choice([*TINY, *RARE, *LONG]), b"", bytes(byte ^ 0x21 for byte in part), part * 2]
        )
        data = data[:start] + new + (data[stop:] if pick.random() < 0.95 else b"")
    return data


def lines_of_salvage(folder):
    """The good lines in order, and the bad ones by number, as they were."""
    *good, end = (folder / "out.jsonl").read_bytes().split(b"\n")
    assert end == b""
    entries = map(json.loads, (folder / "out.bad.jsonl").read_bytes().splitlines())
    return good, {
        e["line"]: base64.b64decode(e["raw"]) if "encoding" in e else e["raw"].encode()
        for e in entries
    }


@cases(400, 10_000)
def test_no_damage_loses_a_good_line_or_stops_the_check(tmp_path, number):
    seen = Counter()
    for seed in range(number):
        (tmp_path / "a.jsonl").write_bytes(data := damaged(random.Random(seed)))
        raw = {n: line for n, line in enumerate(data.split(b"\n"), start=1) if line.strip()}
        scanned = {line.number: line for line in scan_file(tmp_path / "a.jsonl")}
        if is_array(tmp_path / "a.jsonl"):  # only if no line is lost by it
            assert sum(line.record is not None for line in scanned.values()) >= sum(
                x in ORIGINAL for x in raw.values()
            )
            raw = {row.number: row.raw for row in raw_rows(tmp_path / "a.jsonl")}
        assert scanned.keys() == raw.keys(), seed
        for n, line in scanned.items():
            assert (line.record is None) == bool(line.error), seed
            assert raw[n] not in ORIGINAL or line.record == ORIGINAL[raw[n]], seed
        report = check_file(tmp_path / "a.jsonl", images=False)
        bad_lines = [finding.line for finding in report.findings if finding.kind == "bad line"]
        assert bad_lines == [n for n, line in scanned.items() if line.error], seed
        assert sum(salvage(tmp_path / "a.jsonl", report, tmp_path / "out.jsonl")) == len(
            raw
        ) and str(report), seed
        if is_array(tmp_path / "a.jsonl"):
            seen["arrays"] += 1
            continue
        good, bad = lines_of_salvage(tmp_path)
        assert bad.keys() >= set(bad_lines) and good == [raw[n] for n in raw if n not in bad], seed
        assert all(raw[n] == line for n, line in bad.items()), seed
        seen.update(
            lines=len(raw),
            bad=len(bad_lines),
            whole=sum(line in ORIGINAL for line in raw.values()),
            salvaged=len(good),
        )
    # whole lines were kept in great number, and lines that were not whole were of both kinds
    assert (
        seen["whole"] > 2 * number
        and seen["bad"] > 0.8 * number
        and seen["lines"] - seen["bad"] > seen["whole"] + 0.05 * number
    )
