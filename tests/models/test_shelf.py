"""Small tensors in large blocks: equal to what was put there, and the heap stays flat."""

import json
import subprocess
import sys

import numpy as np
import pytest
import torch
from hypothesis import given, strategies as st

from helpers.files import ROOT
from helpers.models.shelf import Shelf

# Pictures of noise through the embedded model, one after another, with features kept in a folder as
# notebooks and recipes keep them; prints what the process holds after each, in MB
GROWTH = """
import json, pathlib, sys
import numpy as np, psutil, torch
from PIL import Image
from helpers import models
from helpers.models import Packer, user_message
side, number = int(sys.argv[1]), int(sys.argv[2])
model, processor = models.load_model("tiny", max_pixels=side * side)
packer = Packer(model, processor, cache=pathlib.Path(sys.argv[3]))
process = psutil.Process()
rng, held = np.random.default_rng(0), []
with torch.no_grad():
    for _ in range(number):
        picture = Image.fromarray(rng.integers(0, 255, (side, side, 3), dtype=np.uint8))
        packed = packer([[user_message("How many?")]], [[picture]], [["1", "2"]])
        models.answer_logps(model, packed)
        held.append(process.memory_info().rss / 1e6)
print(json.dumps(held))
"""


@given(
    shapes=st.lists(st.lists(st.integers(1, 9), min_size=0, max_size=3), max_size=20),
    dtype=st.sampled_from([torch.float32, torch.bfloat16, torch.int64, torch.bool, torch.float16]),
)
def test_what_is_put_is_what_comes_back(shapes, dtype):
    """Of any shape and type, also where a block ends; none overwrites another."""
    shelf, pairs = Shelf(block_bytes=512), []
    for number, shape in enumerate(shapes):
        tensor = (torch.arange(number, number + torch.Size(shape).numel()) % 5).to(dtype)
        pairs.append((tensor.view(shape), shelf.put(tensor.view(shape))))
    for tensor, kept in pairs:
        assert torch.equal(tensor, kept) and kept.dtype == dtype and kept.is_contiguous()
        assert kept.data_ptr() != tensor.data_ptr() or not tensor.numel()


def test_a_tensor_as_large_as_a_block_has_memory_of_its_own():
    shelf, large = Shelf(block_bytes=64), torch.arange(20.0)
    kept = shelf.put(large)
    assert torch.equal(kept, large) and kept.untyped_storage().nbytes() == large.nbytes


def growth(side, number, folder):
    """MB an image, by a line through all but the first fifty."""
    command = [sys.executable, "-c", GROWTH, str(side), str(number), str(folder)]
    run = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    held = json.loads(run.stdout.splitlines()[-1])
    return np.polyfit(range(50, number), held[50:], 1)[0]


@pytest.mark.heavy(reason="110 images in a process of its own")
def test_memory_does_not_grow_by_the_pixels_of_each_image(tmp_path):
    """It was 2.7 MB an image."""
    assert growth(336, 110, tmp_path) < 0.1


@pytest.mark.slow(reason="1,000 large images")
def test_memory_stays_flat_over_a_thousand_photos(tmp_path):
    """It was 7.3 MB an image."""
    assert growth(672, 1000, tmp_path) < 0.1
