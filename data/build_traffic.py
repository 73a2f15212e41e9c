"""Rebuild `data/traffic/`: `python data/build_traffic.py` (after `build_base.py`).

Draws the scenes of every split and writes `preferences/train.jsonl` and `valid.jsonl`, the preference
data that notebook 04 falls back to: the true answer of each scene against a wrong answer sampled from
the base and against the counts of another scene.
"""

import argparse
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from helpers.formats import read_yolo
from helpers.models import load_model
from helpers.pairs import build_records, sample_own_answers
from helpers.preferences import write_records
from helpers.scenes import write_split

NUMBERS = {"train": 512, "validation": 64, "test": 400}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=ROOT / "data" / "traffic")
    folder = parser.parse_args().out
    for split, number in NUMBERS.items():
        write_split(folder, split, number)
    model, processor = load_model("tiny")
    preferences = folder / "preferences"
    for split in ("train", "valid"):
        items = read_yolo(folder, split)
        records = build_records(items, preferences, sample_own_answers(model, processor, items))
        write_records(preferences / f"{split}.jsonl", records)
    print(f"{sum(NUMBERS.values())} scenes and their preferences → {folder}")


if __name__ == "__main__":
    main()
