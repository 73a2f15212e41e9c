"""Small tensors that are kept for good, in a few large blocks of memory.

A small tensor that is kept between large ones that come and go lies in the space that a large one
has left. The next large one does not fit there any more, so that the heap grew by all pixels of
every new image: 2.7 MB at 336 × 336.
"""

import math

import torch
from torch import Tensor

BLOCK_BYTES = 16 * 2**20
ALIGNMENT = 64  # bytes: where a tensor of any type may begin


class Shelf:
    """Keeps copies of tensors on the CPU, one behind the other."""

    def __init__(self, block_bytes: int = BLOCK_BYTES):
        self._block_bytes = block_bytes
        self._block = torch.empty(0, dtype=torch.uint8)
        self._used = 0

    def put(self, tensor: Tensor) -> Tensor:
        """Return an equal tensor that lies in a block; one that is as large as a block is its own.

        One that is not on the CPU is returned as it is.
        """
        if tensor.device.type != "cpu" or not tensor.numel():
            return tensor
        if tensor.nbytes >= self._block_bytes:
            return tensor.clone()
        if self._used + tensor.nbytes > len(self._block):
            self._block = torch.empty(self._block_bytes, dtype=torch.uint8)
            self._used = 0
        place = self._block[self._used : self._used + tensor.nbytes]
        self._used += ALIGNMENT * math.ceil(tensor.nbytes / ALIGNMENT)
        kept = place.view(tensor.dtype).view(tensor.shape)
        return kept.copy_(tensor)
