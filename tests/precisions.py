"""A CPU that is told to compute in 16 bits, as a GPU would."""

import contextlib
import sys
from collections.abc import Iterator

import pytest
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState

NAMES = {torch.float16: "fp16", torch.bfloat16: "bf16"}  # accelerate's


@contextlib.contextmanager
def sixteen_bits(dtype: torch.dtype) -> Iterator[None]:
    """That type in every module that asks, and what accelerate does with it on a GPU.

    It is autocast, and in fp16 a scaler of the loss.
    """
    start = Accelerator.__init__

    def on_a_gpu(self, *args, **kwargs):
        start(self, *args, **kwargs)
        assert self.mixed_precision == NAMES[dtype] and self.scaler is None
        self.native_amp = True
        if dtype == torch.float16:
            self.scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10)

    with pytest.MonkeyPatch.context() as patch:
        for name, module in list(sys.modules.items()):
            asks = name.startswith("helpers.") and hasattr(module, "compute_dtype")
            if asks and name != "helpers.runtime":
                patch.setattr(module, "compute_dtype", lambda: dtype)
        patch.setattr(Accelerator, "__init__", on_a_gpu)
        # it remembers the precision of the tests before
        AcceleratorState._reset_state(reset_partial_state=True)
        yield
        AcceleratorState._reset_state(reset_partial_state=True)
