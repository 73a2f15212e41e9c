"""What the notebooks found, as data (`summary.json`) and as one page (`index.html`).

Each notebook writes one section: headline figures `{value, low, high, n, seed}`, sentences that say
what they mean, and pictures. `build_report` puts the sections that exist together.
"""

import base64
import html
import io
from dataclasses import asdict, dataclass, field
from pathlib import Path

from matplotlib.figure import Figure

from helpers.runtime import artifacts_dir, machine_summary, peak_memory_gb, read_json, write_json, write_text
from helpers.statistics import Proportion


@dataclass(frozen=True)
class Headline:
    """One measured figure; `low` and `high` are its 95 % interval, or equal to it where n is 1."""

    value: float
    low: float
    high: float
    n: int
    seed: int


@dataclass
class Section:
    """What one notebook contributes. Nothing is on disk before `save`."""

    name: str  # "04_train_dpo"
    title: str
    sentences: list[str] = field(default_factory=list)
    headlines: dict[str, Headline] = field(default_factory=dict)
    table: list[list[str]] = field(default_factory=list)  # first row: column heads
    pictures: list[tuple[str, str]] = field(default_factory=list)  # (caption, PNG in base64)

    def say(self, sentence: str) -> None:
        """Print a sentence and keep it for the report."""
        print(sentence)
        self.sentences.append(sentence)

    def share(self, name: str, share: Proportion, seed: int = 0) -> None:
        self.headlines[name] = Headline(share.value, share.low, share.high, share.n, seed)

    def single(self, name: str, value: float, seed: int = 0) -> None:
        """A figure measured once (a duration, a p-value): no interval."""
        self.headlines[name] = Headline(value, value, value, 1, seed)

    def picture(self, figure: Figure, caption: str) -> Figure:
        """Keep a figure for the report and return it, so that the cell shows it too."""
        buffer = io.BytesIO()
        figure.savefig(buffer, format="png", dpi=90)
        self.pictures.append((caption, base64.b64encode(buffer.getvalue()).decode()))
        return figure

    def save(self) -> Path:
        """Write the section, with this notebook's peak memory, and rebuild the report."""
        self.single("peak_memory_gb", peak_memory_gb())
        write_json(artifacts_dir() / "report" / "sections" / f"{self.name}.json", asdict(self))
        return build_report()


def read_sections() -> list[Section]:
    sections = []
    for path in sorted((artifacts_dir() / "report" / "sections").glob("*.json")):
        data = read_json(path)
        data["headlines"] = {name: Headline(**values) for name, values in data["headlines"].items()}
        sections.append(Section(**data))
    return sections


def summary(sections: list[Section]) -> dict[str, Headline]:
    """All headline figures by name; peak memory is the largest of the notebooks'."""
    merged: dict[str, Headline] = {}
    for section in sections:
        for name, headline in section.headlines.items():
            if name != "peak_memory_gb" or name not in merged or headline.value > merged[name].value:
                merged[name] = headline
    return merged


def build_report() -> Path:
    """Write `artifacts/report/summary.json` and `index.html` from the sections that exist."""
    sections, folder = read_sections(), artifacts_dir() / "report"
    headlines = summary(sections)
    write_json(folder / "summary.json", {name: asdict(headline) for name, headline in headlines.items()})
    body = [
        "<h1>Preference alignment of a small vision-language model</h1>",
        f"<p class='note'>{html.escape(machine_summary())}. Intervals are 95 % (Wilson) unless n = 1.</p>",
        _headline_table(headlines),
        *(_section_html(section) for section in sections),
    ]
    return write_text(folder / "index.html", _PAGE.replace("BODY", "\n".join(body)))


def _headline_table(headlines: dict[str, Headline]) -> str:
    rows = []
    for name, h in headlines.items():
        interval = f"{h.low:.3f} – {h.high:.3f}" if h.n > 1 else ""
        value = f"{h.value:.2g}" if 0 < abs(h.value) < 0.001 else f"{h.value:.3f}"
        rows.append([name, value, interval, str(h.n), str(h.seed)])
    return "<h2>Headline figures</h2>" + _table([["figure", "value", "95 % interval", "n", "seed"], *rows])


def _section_html(section: Section) -> str:
    parts = [f"<h2>{html.escape(section.title)}</h2>"]
    notebook = artifacts_dir() / "report" / "notebooks" / f"{section.name}.html"
    if notebook.exists():
        parts.append(f"<p class='note'><a href='notebooks/{notebook.name}'>The notebook as it ran</a></p>")
    parts += [f"<p>{html.escape(sentence)}</p>" for sentence in section.sentences]
    if section.table:
        parts.append(_table(section.table))
    for caption, png in section.pictures:
        alt = html.escape(caption)
        parts.append(f"<figure><img alt='{alt}' src='data:image/png;base64,{png}'><figcaption>{alt}</figcaption></figure>")
    return "\n".join(parts)


def _table(rows: list[list[str]]) -> str:
    """rows[0] is the head; all cells are escaped."""
    head, *body = [[html.escape(cell) for cell in row] for row in rows]
    lines = ["<tr>" + "".join(f"<th>{cell}</th>" for cell in head) + "</tr>"]
    lines += ["<tr>" + "".join(f"<td>{cell}</td>" for cell in row) + "</tr>" for row in body]
    return "<div class='scroll'><table>" + "".join(lines) + "</table></div>"


_PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>Preference alignment report</title>
<style>
body { font: 16px/1.55 system-ui, sans-serif; color: #1f2328; max-width: 62rem; margin: 2rem auto; padding: 0 1rem; }
h1 { line-height: 1.2; } h2 { margin-top: 2.5rem; border-bottom: 1px solid #d0d7de; padding-bottom: .3rem; }
table { border-collapse: collapse; font-size: .9rem; } th, td { padding: .3rem .8rem; text-align: left; }
th { border-bottom: 2px solid #d0d7de; } td { border-bottom: 1px solid #eaeef2; font-variant-numeric: tabular-nums; }
.scroll { overflow-x: auto; } .note, figcaption { color: #57606a; font-size: .9rem; }
figure { margin: 1.5rem 0; } img { max-width: 100%; height: auto; }
@media print { h2 { break-after: avoid; } figure { break-inside: avoid; } }
</style></head><body>
BODY
</body></html>
"""
