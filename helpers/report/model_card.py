"""A model card for every policy that notebook 07 examined: what it is, can, and cannot.

The head is the metadata block that the Hugging Face hub reads (Mitchell et al. 2019, arXiv
1810.03993, is where the idea comes from). Figures, failures and settings are those of the run;
nothing is written by hand.
"""

import importlib.metadata
import json
import platform
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from huggingface_hub import ModelCard, ModelCardData

from helpers.data import raw_rows
from helpers.evaluation import PolicyFindings
from helpers.files import ROOT, UsageError, artifacts_dir, printable, published_path, write_text
from helpers.models import PRESETS

from .html import markdown_code, markdown_table, markdown_text

CARD_PACKAGES = ("torch", "transformers", "peft", "trl", "bitsandbytes", "unsloth")
STAGE_NOTEBOOKS = {"sft": "04", "dpo": "04", "ppo": "05"}
UNKNOWN_LICENCE = "not stated in the data: say it before you publish"
CARD = """\
---
{{ card_data }}
---

# {{ text(name) }}

A LoRA adapter of {{ code(about.base) }}, trained with {{ method.upper() }} on \
{% if about.reward %}the reward {{ code(about.reward) }}{% elif method == 'sft' %}\
{{ about.answers or 'chosen' }} answers{% else %}preference pairs{% endif %}, \
seed {{ about.seed or 0 }}.

## Data
{{ code(data) }}. Licence of the data: {{ text(data_licences|join(', ')) }}. \
Licence of the base: {{ base_licence }}.

## Training command
```
{{ command }}
```
Settings:
```json
{{ settings }}
```

## Versions
{{ versions|join(', ') }}.

## Figures
{{ found.n }} held-out items, the same for the base; 95 % intervals; p adjusted by Holm over all \
rows of the report.

{{ table(found.rows) }}

{% for title, rows in found.details %}## Greedy answers, {{ text(title) }}
{{ table(rows) }}

{% endfor %}## Does it look at the image?
{{ text(found.sight) }}.

## Does it still speak?
{{ text(found.language) }}

## Known failures
{% for failure in found.failures %}* {{ text(failure) }}
{% endfor %}
Not tested on anything but these items. Made for teaching; decide nothing with it that matters to \
anyone.
"""


def write_cards(examined: dict[str, PolicyFindings]) -> list[Path]:
    """Write the cards of the policies in `Section.examined`: `artifacts/report/cards/NAME.md`."""
    folder = artifacts_dir() / "report" / "cards"
    paths = []
    for name, findings in examined.items():
        path = folder / f"{name.replace('/', '-')}.md"
        paths.append(write_text(path, render_model_card(name, findings)))
    return paths


def render_model_card(name: str, findings: PolicyFindings) -> str:
    """The card of one policy, as Markdown."""
    about = findings.about
    base = about["base"]
    preset = PRESETS.get(base)
    method = name.split("/")[0]
    metadata = ModelCardData(
        base_model=preset.location if preset else base,
        library_name="peft",
        pipeline_tag="image-text-to-text",
        tags=["lora", "preference-alignment", method],
    )
    card = ModelCard.from_template(
        metadata,
        template_str=CARD,
        name=name,
        about=about,
        method=method,
        data=published_path(about.get("data", "not noted")),
        data_licences=data_licences(about),
        base_licence=preset.licence if preset else "see the base's own card",
        command=printable(training_command(name, about).replace("\n", " ")),
        settings=json.dumps(about.get("settings", {}), indent=1),
        versions=package_versions(),
        found=findings,
        text=markdown_text,
        code=markdown_code,
        table=_plain_table,
    )
    return card.content + "\n"


def _plain_table(rows: Sequence[Sequence[str]]) -> str:
    """A table whose cells may hold what somebody has written."""
    plain = []
    for row in rows:
        plain.append([markdown_text(cell) for cell in row])
    return markdown_table(plain)


def training_command(name: str, about: dict[str, Any]) -> str:
    """The command that trains such an adapter again, with the notebook's defaults otherwise."""
    number = STAGE_NOTEBOOKS.get(name.split("/")[0], "04 or 05")
    seed = int(about.get("seed", 0))
    seeds = f"SEEDS=({seed},)" if number == "04" else f"SEED={seed}"
    model = shlex.quote(f"MODEL={about['base']}")
    return f"python -m helpers run {number} --set {model} --set {shlex.quote(seeds)}"


def package_versions() -> list[str]:
    """Python and the packages that made the figures, as they are installed."""
    found = [f"Python {platform.python_version()}"]
    for package in CARD_PACKAGES:
        try:
            found.append(f"{package} {importlib.metadata.version(package)}")
        except importlib.metadata.PackageNotFoundError:
            found.append(f"{package} not installed")
    return found


def data_licences(about: dict[str, Any]) -> list[str]:
    """The licences that the records of the training data name, each once.

    Raises UsageError for a broken file.
    """
    path = ROOT / about.get("data", "")
    if not path.is_file():
        return [f"unknown, {published_path(path.as_posix())} is not here any more"]
    found = set()
    for number, _, row, error in raw_rows(path):
        if error or not isinstance(row, dict):
            raise UsageError(
                f"{path}:{number}: not a JSON object. Run `python -m helpers check {path}`."
            )
        found.add(row.get("licence") or UNKNOWN_LICENCE)
    return sorted(found)
