"""What the notebooks found, as data (`summary.json`) and as one page (`index.html`).

Each notebook writes one section: headline figures `{value, low, high, n, seed}`, sentences that say
what they mean, and pictures. `build_report` puts the sections that exist together.
"""

import base64
import html
import io
from dataclasses import asdict, dataclass, field
from pathlib import Path

from IPython.display import HTML
from matplotlib.figure import Figure

from helpers.evaluation import PolicyFindings, read_gallery
from helpers.files import UsageError, artifacts_dir, read_json, write_json, write_text
from helpers.runtime import machine_summary, peak_memory_gb
from helpers.statistics import Proportion

from .html import gallery_html, table_html
from .model_card import write_cards

EVALUATION_NOTEBOOK = "07_evaluate"  # the notebook that judges all policies


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
    conclusions: list[str] = field(default_factory=list)  # shown at the top of the page
    sentences: list[str] = field(default_factory=list)
    headlines: dict[str, Headline] = field(default_factory=dict)
    tables: list[str] = field(default_factory=list)  # HTML
    pictures: list[tuple[str, str]] = field(default_factory=list)  # (caption, PNG in base64)
    lead: int | None = None  # number of the picture that stands at the top of the page
    examined: dict[str, PolicyFindings] = field(
        default_factory=dict
    )  # of each policy, for its card

    def say(self, sentence: str) -> None:
        """Print a sentence and keep it for the report."""
        print(sentence)
        self.sentences.append(sentence)

    def conclude(self, sentence: str) -> None:
        """Print a sentence and put it at the top of the report."""
        print(sentence)
        self.conclusions.append(sentence)

    def table(self, rows: list[list[str]]) -> HTML:
        """Keep a table (first row: column heads) for the report and return it, so that the cell shows it too."""
        return self.html(table_html(rows))

    def html(self, fragment: str) -> HTML:
        """Keep a piece of HTML whose texts are already escaped, and return it for display."""
        self.tables.append(fragment)
        return HTML(fragment)

    def add_share(self, name: str, share: Proportion, seed: int = 0) -> None:
        self.headlines[name] = Headline(share.value, share.low, share.high, share.n, seed)

    def add_value(self, name: str, value: float, seed: int = 0) -> None:
        """A figure measured once (a duration, a p-value): no interval."""
        self.headlines[name] = Headline(value, value, value, 1, seed)

    def picture(self, figure: Figure, caption: str, lead: bool = False) -> Figure:
        """Keep a figure for the report (with `lead`, at its top) and return it, so that the cell shows it too."""
        buffer = io.BytesIO()
        figure.savefig(buffer, format="png", dpi=90, bbox_inches="tight")
        if lead:
            self.lead = len(self.pictures)
        self.pictures.append((caption, base64.b64encode(buffer.getvalue()).decode()))
        return figure

    def save(self) -> Path:
        """Write the section, with this notebook's peak memory, and rebuild the report."""
        self.add_value("peak_memory_gb", peak_memory_gb())
        write_json(artifacts_dir() / "report" / "sections" / f"{self.name}.json", asdict(self))
        return build_report()


def read_sections() -> list[Section]:
    """The sections that are there. Raises UsageError for one that another version has written."""
    sections = []
    for path in sorted((artifacts_dir() / "report" / "sections").glob("*.json")):
        data = read_json(path)
        try:
            data["headlines"] = {
                name: Headline(**values) for name, values in data["headlines"].items()
            }
            data["examined"] = {
                name: PolicyFindings(**values) for name, values in data["examined"].items()
            }
            sections.append(Section(**data))
        except (TypeError, KeyError, AttributeError):
            raise UsageError(
                f"{path}: written by another version. Delete it and run its notebook again."
            ) from None
    return sections


def collect_headlines(sections: list[Section]) -> dict[str, Headline]:
    """All headline figures by name; peak memory is the largest of the notebooks'."""
    merged: dict[str, Headline] = {}
    for section in sections:
        for name, headline in section.headlines.items():
            if (
                name != "peak_memory_gb"
                or name not in merged
                or headline.value > merged[name].value
            ):
                merged[name] = headline
    return merged


def build_report() -> Path:
    """Write `artifacts/report/summary.json`, `index.html` and the model cards from the sections that exist."""
    sections, folder = read_sections(), artifacts_dir() / "report"
    figures = {name: asdict(headline) for name, headline in collect_headlines(sections).items()}
    write_json(folder / "summary.json", figures)
    for section in sections:
        write_cards(section.examined)
    body = [
        "<h1>Preference alignment of a small vision-language model</h1>",
        f"<p class='note'>{html.escape(machine_summary())}. Intervals are 95 % (Wilson) unless n = 1.</p>",
        *_conclusions_html(sections),
        "<h2>Headline figures</h2>",
        f"<div class='scroll'>{table_html(figure_rows(figures))}</div>",
        *(_section_html(section) for section in sections),
        *_gallery_section(),
    ]
    return write_text(folder / "index.html", _PAGE.replace("BODY", "\n".join(body)))


def figure_rows(figures: dict[str, dict[str, float]]) -> list[list[str]]:
    """The figures of a `summary.json` as rows of a table, the head first."""
    rows = [["figure", "value", "95 % interval", "n", "seed"]]
    for name, f in figures.items():
        interval = f"{f['low']:.3f} – {f['high']:.3f}" if f["n"] > 1 else ""
        rows.append([name, f"{f['value']:.4g}", interval, str(f["n"]), str(f["seed"])])
    return rows


def _conclusions_html(sections: list[Section]) -> list[str]:
    lines = [html.escape(sentence) for section in sections for sentence in section.conclusions]
    leads = [
        _figure(*section.pictures[section.lead]) for section in sections if section.lead is not None
    ]
    return (
        ["<h2>In short</h2><ul>" + "".join(f"<li>{line}</li>" for line in lines) + "</ul>", *leads]
        if lines
        else []
    )


def _gallery_section() -> list[str]:
    """The examples that a reader kept, if there are any."""
    folder = artifacts_dir() / "gallery"
    kept = read_gallery(folder)
    table = f"<div class='scroll'>{gallery_html(folder, kept)}</div>"
    return [f"<h2>Examples that were kept ({len(kept)})</h2>", table] if kept else []


def _figure(caption: str, png: str) -> str:
    alt = html.escape(caption)
    return f"<figure><img alt='{alt}' src='data:image/png;base64,{png}'><figcaption>{alt}</figcaption></figure>"


def _section_html(section: Section) -> str:
    if not (section.sentences or section.tables or section.pictures):
        return ""
    parts = [f"<h2>{html.escape(section.title)}</h2>"]
    notebook = artifacts_dir() / "report" / "notebooks" / f"{section.name}.html"
    if notebook.exists():
        parts.append(
            f"<p class='note'><a href='notebooks/{notebook.name}'>The notebook as it ran</a></p>"
        )
    parts += [f"<p>{html.escape(sentence)}</p>" for sentence in section.sentences]
    parts += [f"<div class='scroll'>{table}</div>" for table in section.tables]
    parts += [
        _figure(*picture)
        for number, picture in enumerate(section.pictures)
        if number != section.lead
    ]
    return "\n".join(parts)


_PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>Preference alignment report</title>
<style>
body { font: 16px/1.55 system-ui, sans-serif; color: #1f2328; max-width: 62rem; margin: 2rem auto; padding: 0 1rem; }
h1 { line-height: 1.2; } h2 { margin-top: 2.5rem; border-bottom: 1px solid #d0d7de; padding-bottom: .3rem; }
table { border-collapse: collapse; font-size: .9rem; } th, td { padding: .3rem .8rem; text-align: left; }
th { border-bottom: 2px solid #d0d7de; } td { border-bottom: 1px solid #eaeef2; min-width: 4rem; font-variant-numeric: tabular-nums; }
.scroll { overflow-x: auto; margin: 1rem 0; } .note, figcaption { color: #57606a; font-size: .9rem; }
figure { margin: 1.5rem 0; } p, li { overflow-wrap: anywhere; } figure img { max-width: 100%; height: auto; }
@media print { body { max-width: none; margin: 0; font-size: 11px; } .scroll { overflow: visible; } h2 { break-after: avoid; } figure { break-inside: avoid; } }
</style></head><body>
BODY
</body></html>
"""
