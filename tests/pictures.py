"""Images that are the same in every run: Pillow's own noise has no seed."""

import numpy as np
from PIL import Image


def noise(width: int, height: int, sigma: float = 80, seed: int = 0) -> Image.Image:
    grey = np.random.default_rng(seed).normal(128, sigma, (height, width)).clip(0, 255)
    return Image.fromarray(grey.astype(np.uint8)).convert("RGB")


def colour_noise(seed: int) -> Image.Image:
    """50 × 40 pixels, each of a colour of its own."""
    return Image.fromarray(
        np.random.default_rng(seed).integers(0, 256, (40, 50, 3), dtype=np.uint8)
    )
