"""How far rounding reaches in a model: benchmarks/rounding.py MODEL [--records 6] [--dtypes fp32]

`TOLERANCES` of `helpers/runtime.py` are made of such figures. MODEL, a folder or preset, is loaded
in each precision without 4 bits; answers to shipped scenes are packed, and in a row each, and what
both say is compared. Each is computed right, so that all of the difference is rounding. Figures are
the largest over all tokens and answers; a score is the state behind an answer along 20 random
directions, relative to its deviation over the answers. `packs` is what `check_packing` says.
"""

import argparse
import sys
import time
from pathlib import Path

import torch
from torch import Tensor
from transformers import AutoModelForImageTextToText

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from helpers import models
from helpers.data import read_records
from helpers.files import open_image
from helpers.runtime import DTYPES

PAIRS = ROOT / "data" / "traffic" / "preferences_train.jsonl"
DIRECTIONS = 20


@torch.no_grad()
def look(model: models.VLM, packed: models.PackedAnswers) -> tuple[Tensor, Tensor]:
    """Log-probabilities of the answers' tokens, (answers, longest), and scores of the answers."""
    logps = models.answer_logps(model, packed)
    ends = models.hidden_states(model, packed)[:, -1].float()
    directions = torch.randn(ends.shape[1], DIRECTIONS, generator=torch.Generator().manual_seed(0))
    return logps, ends @ directions


def measure(model: models.VLM, processor, number: int) -> dict[str, float]:
    """Compare packed answers with a row each, of so many records."""
    records = read_records(PAIRS)[:number]
    conversations = [record.prompt for record in records]
    images = [[open_image(path) for path in record.image_paths] for record in records]
    answers = [[answer.text for answer in record.answers] for record in records]
    looks = []
    for packs in (True, False):
        packer = models.Packer(model, processor, packs=packs, keeps_features=False)
        looks.append(look(model, packer(conversations, images, answers)))
    (logps, scores), (plain_logps, plain_scores) = looks
    gaps = logps - plain_logps  # (answers, longest), 0 behind an answer
    tokens = (logps != 0).sum(1)
    ratios = 1 + torch.expm1(gaps).sum(1) / tokens
    return {
        "answers": len(gaps),
        "token": float(gaps.abs().max()),
        "answer": float(gaps.sum(1).abs().max()),
        "ratio": float((ratios - 1).abs().max()),
        "score": float(((scores - plain_scores).abs() / plain_scores.std(0)).max()),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model")
    parser.add_argument("--records", type=int, default=6)
    parser.add_argument("--dtypes", nargs="+", choices=DTYPES, default=list(DTYPES))
    given = parser.parse_args()
    source = models.original_source(given.model)
    processor = models.load_processor(given.model)
    for name in given.dtypes:
        started = time.perf_counter()
        model = AutoModelForImageTextToText.from_pretrained(
            source.location, revision=source.revision, dtype=DTYPES[name]
        )
        model.eval().requires_grad_(False)
        check = models.check_packing(model, processor)
        figures = measure(model, processor, given.records)
        said = ", ".join(f"{key} {value:.1e}" for key, value in figures.items())
        seconds = time.perf_counter() - started
        print(f"{name}: packs {check.ok}, {check}; {said}; {seconds:.0f} s", flush=True)


if __name__ == "__main__":
    main()
