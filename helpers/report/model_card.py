"""A Markdown model card for every policy that notebook 07 examined: what it is, what it can, and what it cannot.

The head is the metadata block that the Hugging Face hub reads (Mitchell et al. 2019, arXiv 1810.03993, is where the
idea comes from). Figures, failures and settings are those of the run; nothing is written by hand.
"""

import importlib.metadata
import json
import platform
import shlex
from pathlib import Path
from typing import Any

import yaml

from helpers.data import raw_rows
from helpers.evaluation import PolicyFindings
from helpers.files import ROOT, UsageError, artifacts_dir, write_text
from helpers.models import PRESETS

from .html import markdown_table

CARD_PACKAGES = ("torch", "transformers", "peft", "trl", "bitsandbytes", "unsloth")
STAGE_NOTEBOOKS = {"dpo": "04", "ppo": "05"}
UNKNOWN_LICENCE = "not stated in the data: say it before you publish"


def write_cards(examined: dict[str, PolicyFindings]) -> list[Path]:
    """The cards of the policies that `Section.examined` holds → `artifacts/report/cards/NAME.md`."""
    folder = artifacts_dir() / "report" / "cards"
    return [
        write_text(folder / f"{name.replace('/', '-')}.md", render_model_card(name, findings))
        for name, findings in examined.items()
    ]


def render_model_card(name: str, findings: PolicyFindings) -> str:
    """The card of one policy, as Markdown."""
    about, base = findings.about, findings.about["base"]
    licences = data_licences(about)
    metadata = {
        "base_model": PRESETS[base].location if base in PRESETS else base, "library_name": "peft",
        "pipeline_tag": "image-text-to-text", "tags": ["lora", "preference-alignment", name.split("/")[0]],
    }  # fmt: skip
    parts = [
        "---\n" + yaml.safe_dump(metadata, sort_keys=False) + "---",
        f"# {name}",
        f"A LoRA adapter of `{base}`, trained with {name.split('/')[0].upper()}"
        + (f" on the reward `{about['reward']}`" if about.get("reward") else " on preference pairs")
        + f", seed {about.get('seed', 0)}.",
        "## Data\n"
        + f"`{_shorten_path(about.get('data', 'not noted'))}`. Licence of the data: {', '.join(licences)}. "
        f"Licence of the base: {_base_licence(base)}.",
        "## Training command\n```\n"
        + training_command(name, about)
        + "\n```\nSettings:\n```json\n"
        + json.dumps(about.get("settings", {}), indent=1)
        + "\n```",
        "## Versions\n" + ", ".join(package_versions()) + ".",
        f"## Figures\n{findings.n} held-out items, the same for the base; 95 % intervals; p adjusted by Holm over all rows of the "
        "report.\n\n" + markdown_table(findings.rows),
        "## Counting, greedy\n" + markdown_table(findings.counting),
        "## Does it look at the image?\n" + findings.sight + ".",
        "## Known failures\n" + "\n".join(f"* {line}" for line in findings.failures),
        "Not tested on anything but these items. Made for teaching; decide nothing with it that matters to anyone.",
    ]
    return "\n\n".join(parts) + "\n"


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
    """The licences that the records of the training data name, each once. Raises UsageError for a broken file."""
    path = ROOT / about.get("data", "")
    if not path.is_file():
        return [f"unknown, {_shorten_path(path.as_posix())} is not here any more"]
    found = set()
    for number, _, row, error in raw_rows(path):
        if error or not isinstance(row, dict):
            raise UsageError(
                f"{path}:{number}: not a JSON object. Run `python -m helpers check {path}`."
            )
        found.add(row.get("licence"))
    return sorted(licence or UNKNOWN_LICENCE for licence in found)


def _base_licence(base: str) -> str:
    return PRESETS[base].licence if base in PRESETS else "see the base's own card"


def _shorten_path(path: str) -> str:
    """Shorten a path to its part in the repository, or to the file's name, because cards are published."""
    full = Path(path)
    return (
        full.relative_to(ROOT).as_posix()
        if full.is_relative_to(ROOT)
        else path
        if not full.is_absolute()
        else full.name
    )
