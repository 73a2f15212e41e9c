"""What the notebooks found, as data (`summary.json`) and as one page (`index.html`).

Each notebook writes one section: headline figures `{value, low, high, n, seed}`, sentences that say
what they mean, and pictures. `build_report` puts the sections that exist together.
"""

import base64
import io
import math
from dataclasses import asdict, dataclass, field
from pathlib import Path

from IPython.display import HTML
from jinja2 import Template
from matplotlib.figure import Figure
from pydantic import ConfigDict, TypeAdapter, ValidationError

from helpers.evaluation import PolicyFindings, read_gallery
from helpers.files import UsageError, artifacts_dir, read_json, write_json, write_text
from helpers.runtime import machine_summary, peak_memory_gb
from helpers.statistics import Estimate, Proportion, TableRows

from .html import gallery_html, table_html
from .model_card import write_cards

EVALUATION_NOTEBOOK = "07_evaluate"  # the notebook that judges all policies
PEAK = "peak_memory_gb"  # of the headlines, the one that every notebook has


@dataclass(frozen=True)
class Headline(Estimate):
    """One measured figure; `low` and `high` are its 95 % interval, or equal to it where n is 1."""

    seed: int


@dataclass
class Section:
    """What one notebook contributes. Nothing is on disk before `save`."""

    __pydantic_config__ = ConfigDict(extra="forbid")  # other fields: of another version

    name: str  # "04_train_dpo"
    title: str
    conclusions: list[str] = field(default_factory=list)  # shown at the top of the page
    sentences: list[str] = field(default_factory=list)
    headlines: dict[str, Headline] = field(default_factory=dict)
    tables: list[str] = field(default_factory=list)  # HTML
    pictures: list[tuple[str, str]] = field(default_factory=list)  # (caption, PNG in base64)
    lead: int | None = None  # number of the picture that stands at the top of the page
    # of each policy, for its card
    examined: dict[str, PolicyFindings] = field(default_factory=dict)

    def say(self, sentence: str) -> None:
        """Print a sentence and keep it for the report."""
        print(sentence)
        self.sentences.append(sentence)

    def conclude(self, sentence: str) -> None:
        """Print a sentence and put it at the top of the report."""
        print(sentence)
        self.conclusions.append(sentence)

    def table(self, rows: TableRows) -> HTML:
        """Keep a table (first row: column heads) and return it, so that the cell shows it too."""
        return self.html(table_html(rows))

    def html(self, fragment: str) -> HTML:
        """Keep a piece of HTML whose texts are already escaped, and return it for display."""
        self.tables.append(fragment)
        return HTML(fragment)

    def add_share(self, name: str, share: Proportion, seed: int = 0) -> None:
        self.headlines[name] = Headline(**vars(share), seed=seed)

    def add_value(self, name: str, value: float, seed: int = 0) -> None:
        """Add a figure measured once (a duration, a p-value): no interval.

        What is not finite is left out, and said. Raises TypeError for what is not a number.
        """
        if not math.isfinite(value):
            print(f"{name} is {value}: the report leaves it out.")
            return
        self.headlines[name] = Headline(value, value, value, 1, seed)

    def picture(self, figure: Figure, caption: str, lead: bool = False) -> Figure:
        """Keep a figure (with `lead`, at the report's top) and return it, for the cell to show."""
        # as text, so that the section is one JSON file
        buffer = io.BytesIO()
        figure.savefig(buffer, format="png", dpi=90, bbox_inches="tight")
        # pictures are told by their number
        if lead:
            self.lead = len(self.pictures)
        self.pictures.append((caption, base64.b64encode(buffer.getvalue()).decode()))
        return figure

    def save(self) -> Path:
        """Write the section, with this notebook's peak memory, and rebuild the report."""
        self.add_value(PEAK, peak_memory_gb())
        write_json(_report_folder() / "sections" / f"{self.name}.json", asdict(self))
        return build_report()


def read_sections() -> list[Section]:
    """The sections that are there. Raises UsageError for one that another version has written."""
    sections = []
    for path in sorted(_report_folder().glob("sections/*.json")):
        try:
            sections.append(TypeAdapter(Section).validate_python(read_json(path)))
        except ValidationError:
            raise UsageError(
                f"{path}: written by another version. Delete it and run its notebook again."
            ) from None
    return sections


def _report_folder() -> Path:
    return artifacts_dir() / "report"


def collect_headlines(sections: list[Section]) -> dict[str, Headline]:
    """All headline figures by name; peak memory is the largest of the notebooks'."""
    merged = {}
    for section in sections:
        # later sections go before earlier ones, but for the peak
        before = merged.get(PEAK)
        merged |= section.headlines
        if before and before.value > merged[PEAK].value:
            merged[PEAK] = before
    return merged


def build_report() -> Path:
    """Write `artifacts/report/summary.json`, `index.html` and the model cards.

    They are made from the sections that exist.
    """
    folder = _report_folder()
    sections = read_sections()
    figures = {name: asdict(headline) for name, headline in collect_headlines(sections).items()}
    write_json(folder / "summary.json", figures)
    # cards are written anew from what the evaluation found
    for section in sections:
        write_cards(section.examined)
    # examples that a reader kept in notebook 06
    gallery = artifacts_dir() / "gallery"
    kept = read_gallery(gallery)
    page = PAGE.render(
        sections=sections,
        machine=machine_summary(),
        headlines=table_html(figure_rows(figures)),
        # names of the notebooks that are kept as they ran
        notebooks=[path.stem for path in folder.glob("notebooks/*.html")],
        kept=len(kept),
        gallery=gallery_html(gallery, kept),
    )
    return write_text(folder / "index.html", page)


def figure_rows(figures: dict[str, dict[str, float]]) -> TableRows:
    """The figures of a `summary.json` as rows of a table, the head first."""
    rows = [["figure", "value", "95 % interval", "n", "seed"]]
    for name, f in figures.items():
        interval = f"{f['low']:.3f} – {f['high']:.3f}" if f["n"] > 1 else ""
        rows.append([name, f"{f['value']:.4g}", interval, str(f["n"]), str(f["seed"])])
    return rows


# Jinja escapes what it is given, except where a part says `safe`: tables are HTML already.
PAGE = Template(
    """<!doctype html>
<html lang="en"><head><meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>Preference alignment report</title>
<style>
body { font: 16px/1.55 system-ui, sans-serif; color: #1f2328; max-width: 62rem; margin: 2rem auto;
  padding: 0 1rem; }
h1 { line-height: 1.2; }
h2 { margin-top: 2.5rem; border-bottom: 1px solid #d0d7de; padding-bottom: .3rem; }
table { border-collapse: collapse; font-size: .9rem; }
th, td { padding: .3rem .8rem; text-align: left; }
th { border-bottom: 2px solid #d0d7de; }
td { border-bottom: 1px solid #eaeef2; min-width: 4rem; font-variant-numeric: tabular-nums; }
.scroll { overflow-x: auto; margin: 1rem 0; }
.note, figcaption { color: #57606a; font-size: .9rem; }
figure { margin: 1.5rem 0; }
p, li { overflow-wrap: anywhere; }
figure img { max-width: 100%; height: auto; }
@media print {
  body { max-width: none; margin: 0; font-size: 11px; }
  .scroll { overflow: visible; }
  h2 { break-after: avoid; }
  figure { break-inside: avoid; }
}
</style></head><body>
{% macro figure(caption, png) %}
<figure><img alt='{{ caption }}' src='data:image/png;base64,{{ png }}'>
<figcaption>{{ caption }}</figcaption></figure>
{% endmacro %}

<h1>Preference alignment of a small vision-language model</h1>
<p class='note'>{{ machine }}. Intervals are 95 % (Wilson) unless n = 1.</p>

{% set conclusions = sections|sum("conclusions", [])|unique(true)|list %}
{% if conclusions %}
<h2>In short</h2>
<ul>
{% for sentence in conclusions %}
<li>{{ sentence }}</li>
{% endfor %}
</ul>
{% for section in sections if section.lead is not none %}
{{ figure(*section.pictures[section.lead]) }}
{% endfor %}
{% endif %}

<h2>Headline figures</h2>
<div class='scroll'>{{ headlines|safe }}</div>

{% for section in sections if section.sentences or section.tables or section.pictures %}
<h2>{{ section.title }}</h2>
{% if section.name in notebooks %}
<p class='note'><a href='notebooks/{{ section.name }}.html'>The notebook as it ran</a></p>
{% endif %}
{% for sentence in section.sentences %}
<p>{{ sentence }}</p>
{% endfor %}
{% for table in section.tables %}
<div class='scroll'>{{ table|safe }}</div>
{% endfor %}
{% for picture in section.pictures %}
{% if loop.index0 != section.lead %}
{{ figure(*picture) }}
{% endif %}
{% endfor %}
{% endfor %}

{% if kept %}
<h2>Examples that were kept ({{ kept }})</h2>
<div class='scroll'>{{ gallery|safe }}</div>
{% endif %}
</body></html>
""",
    autoescape=True,
    trim_blocks=True,
)
