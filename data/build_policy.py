"""Rebuild `data/tiny-dpo/`: `python data/build_policy.py` (after `build_traffic.py`).

It takes about a minute on one core.

The adapter that notebook 04 makes with its defaults, from the pairs in `data/traffic`: whoever
opens notebook 06 first has something to compare.
"""

import argparse
import sys
from dataclasses import asdict
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from helpers import models
from helpers.config import dpo_preset
from helpers.data.preferences import read_records
from helpers.data.trl_pairs import to_trl
from helpers.files import read_json, write_json, write_text
from helpers.models import presets
from helpers.training import dpo

BASE, SEED = "tiny", 0
CARD = """# tiny-dpo

A LoRA adapter (rank 16) of the embedded `data/tiny-qwen2-vl`, trained with DPO on the pairs of
`data/traffic/preferences_train.jsonl`; `about.json` has all settings. It counts vehicles in \
drawings of
streets, and is of no use for anything else. Made by `python data/build_policy.py`. Apache-2.0.
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=ROOT / "data" / "tiny-dpo")
    folder = parser.parse_args().out
    source, settings = ROOT / "data" / "traffic" / "preferences_train.jsonl", dpo_preset("tiny")
    model, processor = models.load_model(BASE)
    pairs = to_trl(read_records(source))
    trainer = dpo.dpo_trainer(model, processor, pairs, settings, seed=SEED)
    trainer.train()
    about = {
        "base": BASE,
        "seed": SEED,
        "settings": asdict(settings),
        "data": source.relative_to(ROOT).as_posix(),
    }
    models.save_adapter(trainer.model, folder, about)
    own = {"base_model_name_or_path": presets.PRESETS[BASE].location}  # not a path of this machine
    write_json(folder / "adapter_config.json", read_json(folder / "adapter_config.json") | own)
    write_text(folder / "README.md", CARD)


if __name__ == "__main__":
    main()
