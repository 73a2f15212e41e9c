"""Put the figures and pictures of the last `make demo` into README.md and docs/: `make readme`."""

import base64
import sys
from collections.abc import Mapping
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from helpers.data import SHIPPED_ABOUT
from helpers.files import UsageError, artifacts_dir, read_json, write_json, write_text
from helpers.report import figure_rows, markdown_table, read_sections

Figures = dict[str, dict[str, float]]  # a summary.json


def publish(root: Path) -> list[Path]:
    """Put the figures and pictures of the last run into a repository's README and `docs/`.

    Raises UsageError if there is no report yet, or if it is of another task.
    """
    about = artifacts_dir() / "preferences" / "about.json"
    prepared = read_json(about) if about.exists() else SHIPPED_ABOUT
    if prepared["data"] != SHIPPED_ABOUT["data"]:
        raise UsageError(
            f"the last run was on {prepared['data']}, and README shows {SHIPPED_ABOUT['data']}: "
            "run `make demo` first."
        )
    figures = read_json(artifacts_dir() / "report" / "summary.json")
    written = [write_json(root / "docs" / "demo.json", figures)]
    pictures = root / "docs" / "pictures"
    pictures.mkdir(parents=True, exist_ok=True)
    for section in read_sections():
        # of a run that had more of them
        for old in pictures.glob(f"{section.name}_*.png"):
            old.unlink()
        for number, (_, png) in enumerate(section.pictures):
            # numbers change with what a notebook shows; README shows the one on top
            which = "lead" if number == section.lead else number + 1
            path = pictures / f"{section.name}_{which}.png"
            path.write_bytes(base64.b64decode(png))
            written.append(path)
    written.append(write_block(root / "README.md", "figures of make demo", figures_table(figures)))
    written += _publish_minutes(root, figures)
    return written


def _publish_minutes(root: Path, figures: Figures) -> list[Path]:
    """Put what each notebook of the demos took into docs/results.md, embedded base and others."""
    demos = {"embedded": figures}
    written = []
    for path in sorted(artifacts_dir().glob("demo-*/report/summary.json")):
        other = read_json(path)
        name = path.parents[1].name.removeprefix("demo-")
        demos[name] = other
        written.append(write_json(root / "docs" / f"demo-{name}.json", other))
    if not written:
        return []  # what other bases took stays as it was
    page = root / "docs" / "results.md"
    written.append(write_block(page, "minutes of the demos", minutes_table(demos)))
    return written


def minutes_table(demos: Mapping[str, Figures]) -> str:
    """The minutes of each notebook and of the whole demo, a column a base, as Markdown."""
    names = [name for name in next(iter(demos.values())) if name.endswith("_seconds")]
    rows = [["notebook", *demos]]
    for name in names:
        minutes = []
        for figures in demos.values():
            known = name in figures
            minutes.append(f"{figures[name]['value'] / 60:.1f}" if known else "–")
        number = name.removesuffix("_seconds").removeprefix("notebook_")
        rows.append(["all" if number == "demo" else number, *minutes])
    return markdown_table(rows)


def write_block(page: Path, name: str, body: str) -> Path:
    """Put `body` into the block `name` of a page; returns the page.

    Raises UsageError if the page has no such block.
    """
    return write_text(page, replace_block(page.read_text(encoding="utf-8"), name, body))


def replace_block(text: str, name: str, body: str) -> str:
    """`text` with what stands between `<!-- name -->` and `<!-- end name -->` replaced by `body`.

    Raises UsageError if the text has no such block.
    """
    start, end = f"<!-- {name} -->", f"<!-- end {name} -->"
    before, found_start, rest = text.partition(start)
    _, found_end, after = rest.partition(end)
    if not (found_start and found_end):
        raise UsageError(f"no block between {start} and {end}: put both lines back")
    return f"{before}{start}\n{body}\n{end}{after}"


def figures_table(figures: Figures) -> str:
    """The figures of a `summary.json` as Markdown, but for the seconds of each notebook."""
    shown = {name: figure for name, figure in figures.items() if not name.startswith("notebook_")}
    head, *rows = figure_rows(shown)
    return markdown_table([head, *([f"`{name}`", *rest] for name, *rest in rows)])


if __name__ == "__main__":
    for path in publish(ROOT):
        print(path)
