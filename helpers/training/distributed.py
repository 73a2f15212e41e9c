"""Several processes that train as one would: shares of a batch, and means over the tokens of all of them.

Data parallelism averages the processes' gradients. That is the gradient of the whole batch only if each process
divides its sum by its share of the *whole* batch's tokens, not by its own number. Used by the two loops that are
written here, `helpers/training/ppo.py` and `helpers/training/reward.py`; TRL's trainer has its own ways.
"""

from typing import Any

import torch
from accelerate import Accelerator, DistributedDataParallelKwargs
from accelerate.utils import DistributedType, gather_object
from torch import Tensor, nn

from helpers.files import UsageError
from helpers.runtime import compute_dtype

ONE_COPY_EACH = (DistributedType.NO, DistributedType.MULTI_CPU, DistributedType.MULTI_GPU)


def new_accelerator(stage: str, find_unused_parameters: bool = False) -> Accelerator:
    """For mixed precision as this machine needs it, on the CPU where there is no GPU.

    find_unused_parameters: a pass may leave trained weights out. Raises UsageError where weights are split over
    processes: these loops sample from the whole model, or score with it.
    """
    half = {torch.float16: "fp16", torch.bfloat16: "bf16"}.get(compute_dtype(), "no")
    handlers = [DistributedDataParallelKwargs(find_unused_parameters=find_unused_parameters)]
    accelerator = Accelerator(
        mixed_precision=half, cpu=not torch.cuda.is_available(), kwargs_handlers=handlers
    )
    if accelerator.distributed_type not in ONE_COPY_EACH:
        raise UsageError(
            f"{stage} runs with a whole model in each process, not with {accelerator.distributed_type.value}: launch it "
            "with recipes/accelerate/ddp.yaml or torchrun."
        )
    return accelerator


def wrap_for_processes(accelerator: Accelerator, module: nn.Module) -> nn.Module:
    """`module` as several processes must call it for their gradients to be averaged; itself if there is one process."""
    return accelerator.prepare(module) if accelerator.num_processes > 1 else module


def own_share(accelerator: Accelerator, items: list) -> list:
    """Every n-th of `items`, for n processes."""
    return items[accelerator.process_index :: accelerator.num_processes]


def gather_in_order(accelerator: Accelerator, own_results: list) -> list:
    """The inverse of `own_share`, of one result for each item, in every process."""
    n = accelerator.num_processes
    if n == 1:
        return own_results
    tagged = [
        (place * n + accelerator.process_index, item) for place, item in enumerate(own_results)
    ]
    return [item for _, item in sorted(gather_object(tagged), key=lambda pair: pair[0])]


def mean_over_processes(accelerator: Accelerator, values: Tensor) -> Tensor:
    """Mean over the processes, elementwise; no gradient goes through it."""
    values = values.detach().float().to(accelerator.device)
    return accelerator.reduce(values, "mean") if accelerator.num_processes > 1 else values


def token_count(accelerator: Accelerator, mask: Tensor) -> Tensor:
    """Divisor of a sum over this process's tokens, (): tokens of all processes / number of processes."""
    return mean_over_processes(accelerator, mask.sum()).clamp(min=1e-9)


def token_mean_over_processes(accelerator: Accelerator, values: Tensor, mask: Tensor) -> Tensor:
    """Mean of `values` over the tokens of all processes, (); no gradient goes through it."""
    return mean_over_processes(accelerator, (values * mask).sum()) / token_count(accelerator, mask)


def mean_rows(accelerator: Accelerator, row: dict[str, Any]) -> dict[str, float]:
    """Means over the processes of figures that each has computed of its own share."""
    values = torch.tensor([float(value) for value in row.values()], dtype=torch.float64)
    if accelerator.num_processes > 1:
        values = accelerator.reduce(values.to(accelerator.device), "mean")
    return dict(zip(row, values.tolist(), strict=True))
