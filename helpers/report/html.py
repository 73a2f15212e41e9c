"""Pieces of HTML that widgets and the report share: tables, pictures, marked words, coloured tokens.

Everything that a model or a person wrote is escaped here. A colour comes with the colour of its text, since
the page around it may be dark, and never says alone what it says.
"""

import base64
import difflib
import html
import io
from collections.abc import Sequence
from pathlib import Path

from PIL import Image

from helpers.data import CountedImage, is_exact
from helpers.evaluation import GalleryItem, PolicyAnswer
from helpers.files import open_image
from helpers.models import BASE_POLICY

REMOVED_COLOR, ADDED_COLOR = "#ffd7d5", "#c8f0d3"
FULL_COLOR_NATS = 3.0  # nats of gain or loss at which a token's colour is full


def table_html(rows: Sequence[Sequence[str]]) -> str:
    """A table; rows[0] is the head, all cells are escaped."""
    return raw_table([[html.escape(cell) for cell in row] for row in rows])


def raw_table(rows: Sequence[Sequence[str]]) -> str:
    """A table of cells that are HTML already; rows[0] is the head."""
    head, *body = rows
    lines = ["<tr>" + "".join(f"<th>{cell}</th>" for cell in head) + "</tr>"]
    lines += [
        "<tr>"
        + "".join(f"<td style='text-align:left{_wrap(cell)}'>{cell}</td>" for cell in row)
        + "</tr>"
        for row in body
    ]
    return "<table style='text-align:left'>" + "".join(lines) + "</table>"


def _wrap(cell: str) -> str:
    """Figures stay on one line, sentences do not."""
    return ";white-space:nowrap" if len(cell) < 40 else ""


def markdown_table(rows: Sequence[Sequence[str]]) -> str:
    """A table in Markdown; rows[0] is the head."""
    head, *body = [
        "| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |" for row in rows
    ]
    return "\n".join([head, "|" + "---|" * len(rows[0]), *body])


def png_bytes(image: Image.Image, width: int = 320) -> bytes:
    """The image as PNG, enlarged or reduced to `width` for the screen."""
    buffer = io.BytesIO()
    image.resize((width, round(width * image.height / image.width)), Image.Resampling.LANCZOS).save(
        buffer, "PNG"
    )
    return buffer.getvalue()


def picture_html(image: Image.Image, width: int = 130, alt: str = "") -> str:
    """The image inside the page, `width` pixels wide."""
    data = base64.b64encode(png_bytes(image, width)).decode()
    return f"<img width='{width}' alt='{html.escape(alt, quote=True)}' src='data:image/png;base64,{data}'>"


def mark_changes(before: str, after: str) -> tuple[str, str]:
    """Both texts as HTML; words that only one of them has are marked (red before, green after)."""
    left, right = before.split(), after.split()
    marked: tuple[list[str], list[str]] = ([], [])
    for operation, a, b, c, d in difflib.SequenceMatcher(
        None, left, right, autojunk=False
    ).get_opcodes():
        for words, out, color in (
            (left[a:b], marked[0], REMOVED_COLOR),
            (right[c:d], marked[1], ADDED_COLOR),
        ):
            for word in words:
                word = html.escape(word)
                out.append(
                    word
                    if operation == "equal"
                    else f"<mark style='{color_style(color)}'>{word}</mark>"
                )
    return " ".join(marked[0]), " ".join(marked[1])


def color_style(background: str) -> str:
    """A style of dark text on a light background, whatever the theme."""
    return f"background:{background};color:#1f2328"


def colored_tokens(answer: PolicyAnswer) -> str:
    """An answer whose tokens are green where training made them likelier, red and underlined where less likely.

    Figures of a token appear when the pointer rests on it. The colour is full at 3 nats.
    """
    pieces = []
    for token, own, gain, kl in zip(
        answer.tokens, answer.logps, answer.gains, answer.kl, strict=True
    ):
        share = min(abs(gain) / FULL_COLOR_NATS, 1.0)
        background = (
            f"rgb({_mix(46, share)},{_mix(160, share)},{_mix(67, share)})" if gain > 0 else None
        )
        background = background or f"rgb({_mix(248, share)},{_mix(81, share)},{_mix(73, share)})"
        line = "underline dotted" if gain < -0.1 else "none"
        title = f"log p {own:.2f}, {gain:+.2f} against the base; KL {kl:.3f} nats"
        style = f"{color_style(background)};text-decoration:{line}"
        pieces.append(f"<span title='{title}' style='{style}'>{html.escape(token)}</span>")
    return f"<span style='white-space:pre-wrap;overflow-wrap:anywhere'>{''.join(pieces)}</span>"


def _mix(full: int, share: float) -> int:
    """A channel between white and a light version of a colour, on which dark text can be read."""
    return round(255 - (255 - full) * 0.6 * share)


def answer_figures(answer: PolicyAnswer) -> str:
    """log p, KL and reward of an answer in one line."""
    parts = [f"log p {answer.logp:.2f}"]
    if answer.policy != BASE_POLICY:
        parts.append(
            f"gain over the base {sum(answer.gains):+.2f}, KL to it {sum(answer.kl):.3f} nats"
        )
    if answer.reward is not None:
        parts.append(f"reward {answer.reward:.2f}")
    if not answer.ended:
        parts.append(f"cut after {len(answer.tokens)} tokens")
    return " · ".join(parts)


def comparison_table(
    items: Sequence[CountedImage],
    before: Sequence[str],
    after: Sequence[str],
    numbers: Sequence[int],
    width: int = 130,
) -> str:
    """Items before and after, for readers without widgets: one row an item in `numbers`."""
    rows = [["image", "before", "after"]]
    for number in numbers:
        item, texts = items[number], (before[number], after[number])
        marks = ["✓" if is_exact(text, item.counts) else "✗" for text in texts]
        cells = [f"{mark} {text}" for mark, text in zip(marks, mark_changes(*texts), strict=True)]
        rows.append([picture_html(open_image(item.path), width, f"item {number}"), *cells])
    return raw_table(rows)


def gallery_html(folder: Path, items: Sequence[GalleryItem], width: int = 160) -> str:
    """The examples of a gallery in the folder `folder`, as a table."""
    rows = [["image", "question", "answers"]]
    for number, example in enumerate(items, start=1):
        first = example.spoken[0].text
        answers = [
            f"<b>{html.escape(s.policy)}</b> {mark_changes(first, s.text)[1]}<br><small>{answer_figures(s)}</small>"
            for s in example.spoken
        ]
        truth = (
            f"<br><small>truth: {html.escape(format_counts(example.truth))}</small>"
            if example.truth
            else ""
        )
        picture = picture_html(open_image(folder / example.image), width, f"kept example {number}")
        rows.append([picture, html.escape(example.question) + truth, "<br>".join(answers)])
    return raw_table(rows)


def format_counts(counts: dict[str, int]) -> str:
    """`{"cars": 2, "buses": 0}` → "2 cars, 0 buses"."""
    return ", ".join(f"{n} {cls}" for cls, n in counts.items())
