"""Rebuild `data/traffic/`: `python data/build_traffic.py` (after `build_base.py`).

Draws the scenes of every split and writes `preferences_train.jsonl`, `…_valid.jsonl` and
`…_test.jsonl`, the preference data that notebooks 03 and 04 fall back to: the true answer of each
scene against a wrong answer sampled from the base and against the counts of another scene.
"""

import argparse
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from data.scene_folders import write_split
from helpers import models
from helpers.data import read_counts
from helpers.data.pairs import build_records
from helpers.data.preferences import write_records
from helpers.models.loading import load_model

NUMBERS = {"train": 512, "validation": 64, "test": 400}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=ROOT / "data" / "traffic")
    folder = parser.parse_args().out
    for split, number in NUMBERS.items():
        write_split(folder, split, number)
    model, processor = load_model("tiny")
    for split in ("train", "valid", "test"):
        items = read_counts(folder, split)
        own = models.sample_counting_answers(model, processor, items)
        records = build_records(items, own)
        about = {"source": "data/build_traffic.py", "licence": "Apache-2.0"}
        write_records(
            folder / f"preferences_{split}.jsonl", [r.model_copy(update=about) for r in records]
        )
    print(f"{sum(NUMBERS.values())} scenes and their preferences → {folder}")


if __name__ == "__main__":
    main()
