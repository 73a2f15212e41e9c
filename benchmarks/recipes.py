"""Run the five recipes on the embedded model, as [laptop] in them says: a JSON and docs' table.

python benchmarks/recipes.py            # about 10 minutes on two cores
python benchmarks/recipes.py --only vehicles questions
"""

import argparse
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from helpers.files import ROOT, artifacts_dir, read_json, write_json, write_text
from helpers.recipe_stages import run_stages
from helpers.recipes import RECIPES, RecipeRun, read_recipe
from helpers.runtime import machine_summary

RESULTS = Path(__file__).with_suffix(".json")
PAGE = ROOT / "docs" / "recipes.md"
START, END = "<!-- figures of the recipes -->", "<!-- end figures of the recipes -->"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--only", nargs="+", default=sorted(path.stem for path in RECIPES.glob("*.toml"))
    )
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    results = read_json(RESULTS)["recipes"] if RESULTS.exists() else {}
    for name in args.only:
        recipe = read_recipe(RECIPES / f"{name}.toml", laptop=True, changes=[("seed", args.seed)])
        folder, started = artifacts_dir() / "recipes" / f"{name}-{args.seed}", time.perf_counter()
        figures = run_stages(RecipeRun(recipe, folder))
        results[name] = {
            "title": recipe.title,
            "seconds": time.perf_counter() - started,
            "figures": figures,
        }
        write_json(RESULTS, {"environment": machine_summary(), "recipes": results})
        write_text(PAGE, page(PAGE.read_text(encoding="utf-8"), results))


def page(text: str, results: dict) -> str:
    """The page with the figures of `results` between its marks."""
    before, rest = text.split(START)
    return before + START + "\n" + table(results) + END + rest.split(END)[1]


def table(results: dict) -> str:
    lines = ["| recipe | figure | value | 95 % interval | n | seed |", "|---|---|---|---|---|---|"]
    for name, row in sorted(results.items()):
        for figure, found in row["figures"].items():
            interval = f"{found['low']:.3f} – {found['high']:.3f}" if "n" in found else ""
            cells = [f"`{figure}`", f"{found['value']:.4g}", interval, found.get("n", 1)]
            cells.append(found["seed"])
            lines.append(f"| {name} | {' | '.join(map(str, cells))} |")
        lines.append(f"| {name} | seconds | {row['seconds']:.0f} | | 1 | |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
