"""Log-probabilities of pairs, packed and a row each."""

import torch
from datasets import Dataset
from torch.testing import assert_close

from helpers.evaluation.pair_accuracy import pair_logps
from helpers.models.packer import Packer


def test_pairs_may_have_several_images_and_turns(tiny, pairs_dataset):
    """Packed against a row for each answer."""
    row = pairs_dataset[0]
    turns = [
        {"role": "system", "content": "Be short."},
        *row["prompt"],
        {"role": "assistant", "content": "Two."},
    ]
    rows = [
        row,
        {**row, "images": [*row["images"], *pairs_dataset[5]["images"]]},
        {**row, "prompt": turns + row["prompt"]},
    ]
    several = Dataset.from_list([{**r, "images": [str(len(r["images"]))]} for r in rows])
    several = several.map(lambda r, i: {"images": [str(i)]}, with_indices=True).with_transform(
        lambda batch: {**batch, "images": [rows[int(i[0])]["images"] for i in batch["images"]]}
    )
    packed, apart = (pair_logps(Packer(*tiny, packs=packs), several) for packs in (True, False))
    assert_close(torch.tensor([*packed]), torch.tensor([*apart]), rtol=1e-4, atol=1e-4)
    assert len({round(float(value), 3) for value in packed[0]}) == 3
