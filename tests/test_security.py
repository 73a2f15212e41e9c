"""What SECURITY.md promises: files and texts of other people do nothing but be shown."""

import json
import os
import re
import warnings
from pathlib import Path

import nbformat
import numpy as np
import pytest
from PIL import Image

from helpers import notebooks
from helpers.cli import main
from helpers.data import open_data
from helpers.evaluation import PolicyFindings
from helpers.files import ROOT, UsageError, file_hash, open_image, printable, read_json
from helpers.machine.drive import DriveCopies
from helpers.report import plots
from helpers.report.html import markdown_code, markdown_text, picture_html, png_bytes
from helpers.report.model_card import render_model_card
from helpers.statistics import proportion

# clears the screen, turns the text around, rings, ends a line, is half of a character
HOSTILE = "\x1b[2J\u202eevil\x07\x9b31m\r\ud800"
CONTROLS = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\ud800-\udfff]")


def test_no_code_that_comes_with_a_model_is_ever_run():
    for path in ROOT.glob("helpers/**/*.py"):
        text = path.read_text(encoding="utf-8")
        assert "trust_remote_code" not in text, path
        assert "weights_only=False" not in text, path


def test_what_controls_a_terminal_is_printed_as_an_escape(tmp_path, capsys):
    assert printable(HOSTILE) == r"\x1b[2J\u202eevil\x07\x9b31m\r\ud800"
    assert (
        printable("2 Autos\tund\nein Gruß, 中文, עברית 🚗")
        == "2 Autos\tund\nein Gruß, 中文, עברית 🚗"
    )
    text = HOSTILE.replace("\ud800", "")
    row = {"image": f"{text}.png", "prompt": f"{text}?", "chosen": "a", "rejected": "b", "id": text}
    path = tmp_path / "\x1b[31mred.jsonl"
    path.write_text(json.dumps(row) + "\n" + text, encoding="utf-8")
    for arguments in (["check", str(path)], ["convert", str(path), str(tmp_path / "out.jsonl")]):
        main(arguments)
        shown = capsys.readouterr()
        # a bar goes back to the start of its line
        assert not CONTROLS.search(shown.out + shown.err.replace("\r", "")), arguments
        assert "\\x1b" in shown.out + shown.err


def test_a_name_of_bytes_that_are_no_text_is_printed(tmp_path, capsys):
    path = tmp_path / os.fsdecode(b"\xff.jsonl")
    path.write_text("{}\n")
    assert main(["check", str(path)]) == 1
    assert "\\udcff" in capsys.readouterr().out


@pytest.mark.parametrize(
    "text", ["$x^2$ and $", "中文 한국어", "\x07\u202eevil", r"\frac{1}{2}", "{"]
)
def test_figures_show_any_text(text):
    """A formula that is none would be an error, a letter without a shape a box and a warning."""
    share = {f"{text} measure": proportion(3, 4)}
    picture = Image.new("RGB", (8, 8))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        figures = [
            plots.image_grid([picture], [text]),
            plots.interval_chart({f"{text} model": share}, text),
            plots.error_chart({text: {text: np.array([0.0, 1.0])}}),
            plots.value_strip([text, " "], [0.1, 0.2], text),
            plots.run_curves({text: {text: (np.arange(3.0),) * 3}}, "step"),
        ]
        for figure in figures:
            figure.canvas.draw()
    shown = figures[0].axes[0].get_title()
    assert shown == text or "\\" in shown


def test_a_model_card_quotes_what_others_wrote(tmp_path):
    evil = (
        "<img src=x onerror=alert(1)>\n# [go](https://evil.example) ![p](https://x/p.png) `x` $y$"
    )
    data = tmp_path / "train.jsonl"
    data.write_text(json.dumps({"licence": evil}) + "\n")
    found = PolicyFindings(
        about={"base": f"{evil}`", "data": str(data), "reward": evil, "settings": {evil: evil}},
        n=4,
        rows=[["metric", "base"], [evil, "0.5"]],
        details=[(evil, [["a"], [evil]])],
        sight=evil,
        language=evil,
        failures=[evil],
    )
    card = render_model_card("ppo/ppo", found)
    prose = re.sub(r"```.*?```", "", card.split("---", 2)[2], flags=re.DOTALL)
    prose = re.sub(r"(?<!\\)`[^`]*`", "", prose)
    assert "<img" not in prose and "&lt;img" in prose
    assert not re.search(r"(?<!\\)\[[^]]*\]\(", prose)
    assert not re.search(r"(?<!\\)\$", prose)
    assert "\n# [" not in card
    assert markdown_code("a`b\nc") == "`a'b c`" and markdown_text("a\n\n# b") == "a # b"


def test_an_executed_notebook_is_a_page_without_scripts(tmp_path):
    cells = [
        nbformat.v4.new_markdown_cell(
            "The loss is $-\\log\\sigma(x)$, `$HOME` costs 5.\n\n$$a^2$$"
        ),
        nbformat.v4.new_code_cell(
            "1",
            outputs=[
                nbformat.v4.new_output("stream", text="<script>alert(1)</script> $x$ \x1b[31mred"),
                nbformat.v4.new_output("execute_result", {"text/plain": "<b onload=x>"}),
            ],
        ),
    ]
    notebook = nbformat.v4.new_notebook(cells=cells)
    page = notebooks._save_html(notebook, tmp_path / "page.html").read_text(encoding="utf-8")
    assert page.count("<math") == 2 and "$HOME" in page and "[formula:" not in page
    assert "<script" not in page and "onload=x>" not in page.replace("&lt;b onload=x&gt;", "")
    assert not re.findall(r"<(?:link|img|iframe|script)[^>]*(?:src|href)=.(?!data:)[^>]*", page)


def test_a_strip_of_an_image_is_shown_small(tmp_path):
    """At the width of the others, one of 1 × 10,000 pixels takes 5 GB."""
    strip = Image.new("RGB", (1, 10_000))
    assert len(png_bytes(strip)) < 100_000
    assert "width='1'" in picture_html(strip, 130)
    assert "width='130'" in picture_html(Image.new("RGB", (7, 9)), 130)


def test_pipes_are_not_opened(tmp_path):
    """Reading one waits for somebody to write, for ever."""
    for name in ("a.jsonl", "a.png"):
        os.mkfifo(tmp_path / name)
    calls = [
        lambda: open_data(tmp_path / "a.jsonl"),
        lambda: read_json(tmp_path / "a.jsonl"),
        lambda: file_hash(tmp_path / "a.png"),
        lambda: open_image(tmp_path / "a.png"),
    ]
    for call in calls:
        with pytest.raises(UsageError, match="is a pipe or a device, not a file"):
            call()
    row = {"image": "a.png", "prompt": "?", "chosen": "a", "rejected": "b"}
    (tmp_path / "b.jsonl").write_text(json.dumps(row))
    assert main(["check", str(tmp_path / "b.jsonl")]) == 1


def test_links_that_lead_back_are_not_followed(tmp_path):
    """A copy to a drive would go round and round."""
    local, drive = tmp_path / "local", tmp_path / "drive"
    (local / "run").mkdir(parents=True)
    (local / "run" / "log.json").write_text("[]")
    (local / "run" / "back").symlink_to(local)
    (local / "again").symlink_to(local / "run")
    drive.mkdir()
    assert DriveCopies(local, drive).restore() == 1
    assert [path.relative_to(drive) for path in drive.rglob("*.json")] == [Path("run/log.json")]
