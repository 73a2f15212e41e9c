"""Pieces of HTML that widgets and the report share: tables, pictures, words, coloured tokens.

Everything that a model or a person wrote is escaped here. A colour comes with the colour of its
text, since the page around it may be dark, and never says alone what it says.
"""

import base64
import difflib
import html
import io
from collections.abc import Sequence
from pathlib import Path

from PIL import Image

from helpers.data import Task, conversation_text
from helpers.evaluation import GalleryItem, PolicyAnswer, Rightness
from helpers.files import open_image, printable
from helpers.models import BASE_POLICY
from helpers.rewards import TRUTHS

REMOVED_COLOR = "#ffd7d5"
ADDED_COLOR = "#c8f0d3"
LIKELIER_RGB = (46, 160, 67)  # green
LESS_LIKELY_RGB = (248, 81, 73)  # red
FULL_COLOR_NATS = 3.0  # nats of gain or loss at which a token's colour is full
UNDERLINED_NATS = 0.1  # of loss, from which a token is underlined
MARKS = {True: "✓ ", False: "✗ ", None: ""}  # of an answer that is right, wrong, or unknown
TALLEST = 4  # times its width: a picture that would be taller is shown narrower
SHORT_CELL = 40  # characters: figures stay on one line, sentences do not


def table_html(rows: Sequence[Sequence[str]]) -> str:
    """A table; rows[0] is the head, all cells are escaped."""
    return raw_table([list(map(html.escape, row)) for row in rows])


def raw_table(rows: Sequence[Sequence[str]]) -> str:
    """A table of cells that are HTML already; rows[0] is the head."""
    head, *body = rows
    lines = ["".join(f"<th>{cell}</th>" for cell in head)]
    lines += ["".join(map(_table_cell, row)) for row in body]
    return f"<table style='text-align:left'><tr>{'</tr><tr>'.join(lines)}</tr></table>"


def _table_cell(text: str) -> str:
    wrap = ";white-space:nowrap" if len(text) < SHORT_CELL else ""
    return f"<td style='text-align:left{wrap}'>{text}</td>"


def markdown_text(text: str) -> str:
    """Somebody's text in Markdown: on one line, without tags, links, code and formulas."""
    plain = html.escape(printable(" ".join(text.split())), quote=False)
    for sign in ("\\", "`", "$", "*", "["):
        plain = plain.replace(sign, f"\\{sign}")
    return plain


def markdown_code(text: str) -> str:
    """Somebody's text as code in Markdown, on one line."""
    plain = printable(" ".join(text.split())).replace("`", "'")
    return f"`{plain}`"


def markdown_table(rows: Sequence[Sequence[str]]) -> str:
    """A table in Markdown; rows[0] is the head."""
    lines = []
    for row in rows:
        text = " | ".join(cell.replace("|", "\\|") for cell in row)
        lines.append(f"| {text} |")
    # the line under the head
    lines.insert(1, "|" + "---|" * len(rows[0]))
    return "\n".join(lines)


def shown_size(image: Image.Image, width: int) -> tuple[int, int]:
    """Width and height at which an image is shown; one that is very tall is narrower."""
    # Of 1 × 10,000 pixels a picture as wide as the others would take gigabytes
    height = min(round(width * image.height / image.width), TALLEST * width)
    return max(1, min(width, round(height * image.width / image.height))), max(1, height)


def png_bytes(image: Image.Image, width: int = 320) -> bytes:
    """The image as PNG, enlarged or reduced to `width` for the screen (see `shown_size`)."""
    size = shown_size(image, width)
    # Lanczos keeps edges of small drawings sharp
    buffer = io.BytesIO()
    image.resize(size, Image.Resampling.LANCZOS).save(buffer, "PNG")
    return buffer.getvalue()


def picture_html(image: Image.Image, width: int = 130, alt: str = "") -> str:
    """The image inside the page, `width` pixels wide."""
    data = base64.b64encode(png_bytes(image, width)).decode()
    source = f"data:image/png;base64,{data}"
    return f"<img width='{shown_size(image, width)[0]}' alt='{html.escape(alt)}' src='{source}'>"


def mark_changes(before: str, after: str) -> tuple[str, str]:
    """Both texts as HTML; words only one of them has are marked (red before, green after)."""
    # words, since a difference of letters is hard to see
    left = before.split()
    right = after.split()
    kept_left, kept_right = set(), set()  # places of the words that both have
    matcher = difflib.SequenceMatcher(None, left, right, autojunk=False)
    for start, other_start, size in matcher.get_matching_blocks():
        kept_left.update(range(start, start + size))
        kept_right.update(range(other_start, other_start + size))
    return _mark(left, kept_left, REMOVED_COLOR), _mark(right, kept_right, ADDED_COLOR)


def _mark(words: Sequence[str], kept: set[int], color: str) -> str:
    pieces = []
    for place, word in enumerate(words):
        text = html.escape(word)
        marked = f"<mark style='{color_style(color)}'>{text}</mark>"
        pieces.append(text if place in kept else marked)
    return " ".join(pieces)


def color_style(background: str) -> str:
    """A style of dark text on a light background, whatever the theme."""
    return f"background:{background};color:#1f2328"


def colored_tokens(answer: PolicyAnswer) -> str:
    """An answer whose tokens are green where training made them likelier, red where less likely.

    The latter are underlined. Figures of a token appear when the pointer rests on it. The colour is
    full at 3 nats.
    """
    pieces = []
    figures = zip(answer.tokens, answer.logps, answer.gains, answer.kl, strict=True)
    for token, own, gain, kl in figures:
        # of the full colour
        share = min(abs(gain) / FULL_COLOR_NATS, 1.0)
        full = LIKELIER_RGB if gain > 0 else LESS_LIKELY_RGB
        # between white and a light version of the colour, on which dark text can be read
        background = ",".join(str(round(255 - (255 - part) * 0.6 * share)) for part in full)
        line = "underline dotted" if gain < -UNDERLINED_NATS else "none"
        title = f"log p {own:.2f}, {gain:+.2f} against the base; KL {kl:.3f} nats"
        style = f"{color_style(f'rgb({background})')};text-decoration:{line}"
        pieces.append(f"<span title='{title}' style='{style}'>{html.escape(token)}</span>")
    return f"<span style='white-space:pre-wrap;overflow-wrap:anywhere'>{''.join(pieces)}</span>"


def answer_figures(answer: PolicyAnswer) -> str:
    """log p, KL and reward of an answer in one line, and of how many it is the best."""
    parts = [f"log p {answer.logp:.2f}"]
    if answer.policy != BASE_POLICY:
        parts.append(
            f"gain over the base {sum(answer.gains):+.2f}, KL to it {sum(answer.kl):.3f} nats"
        )
    if answer.reward is not None:
        parts.append(f"reward {answer.reward:.2f}")
    if not answer.ended:
        parts.append(f"cut after {len(answer.tokens)} tokens")
    if answer.best_of > 1:
        parts.append(f"best of {answer.best_of} by {html.escape(answer.ranked_by or 'nobody')}")
    return " · ".join(parts)


def comparison_table(
    tasks: Sequence[Task],
    before: Sequence[str],
    after: Sequence[str],
    numbers: Sequence[int],
) -> str:
    """Tasks before and after, for readers without widgets: one row a task in `numbers`.

    An answer has a mark where it is known whether it is right.
    """
    rightness = Rightness(tasks)
    rows = [["image", "question", "before", "after"]]
    for number in numbers:
        task = tasks[number]
        cells = [_pictures(task, number), _escape_lines(conversation_text(task.turns))]
        texts = before[number], after[number]
        for text, marked in zip(texts, mark_changes(*texts), strict=True):
            cells.append(f"{MARKS[rightness.is_right(task, text)]}{marked}")
        rows.append(cells)
    return raw_table(rows)


def _pictures(task: Task, number: int) -> str:
    images = task.open_images()
    return " ".join(picture_html(image, alt=f"item {number}") for image in images)


def _escape_lines(text: str) -> str:
    return html.escape(text).replace("\n", "<br>")


def gallery_html(folder: Path, items: Sequence[GalleryItem]) -> str:
    """The examples of a gallery in the folder `folder`, as a table."""
    rows = [["image", "question", "answers"]]
    for number, example in enumerate(items, start=1):
        pictures = ""
        for name in example.images:
            pictures += picture_html(open_image(folder / name), 160, f"kept example {number}")
        # what a reader asked, and what is true if it is known
        question = _escape_lines(conversation_text(example.turns))
        if example.truth:
            truth = html.escape(TRUTHS[example.truth_kind].answer(example.truth))
            question += f"<br><small>truth: {truth}</small>"
        answers = []
        for spoken in example.spoken:
            _, text = mark_changes(example.spoken[0].text, spoken.text)
            figures = f"<br><small>{answer_figures(spoken)}</small>"
            answers.append(f"<b>{html.escape(spoken.policy)}</b> {text}{figures}")
        rows.append([pictures, question, "<br>".join(answers)])
    return raw_table(rows)


def format_counts(counts: dict[str, int]) -> str:
    """`{"cars": 2, "buses": 0}` → "2 cars, 0 buses"."""
    return ", ".join(f"{n} {cls}" for cls, n in counts.items())
