"""Several processes that train as one would: shares of a batch, and means over all of them.

Data parallelism averages the processes' gradients. That is the gradient of the whole batch only if
each process divides its sum by its share of the *whole* batch's tokens, not by its own number. Used
by the two loops that are written here, `helpers/training/ppo.py` and `helpers/training/reward.py`;
TRL's trainer has its own ways.
"""

import itertools
from collections.abc import Mapping, Sequence

import torch
from accelerate import Accelerator, DistributedDataParallelKwargs
from accelerate.utils import DistributedType, gather_object
from torch import Tensor, nn

from helpers.files import UsageError
from helpers.runtime import DTYPES, compute_dtype, device

# the ways to run in which each process has a whole model
ONE_COPY_EACH = (DistributedType.NO, DistributedType.MULTI_CPU, DistributedType.MULTI_GPU)


def new_accelerator(stage: str, find_unused_parameters: bool = False) -> Accelerator:
    """For mixed precision as this machine needs it, on the CPU where there is no GPU.

    find_unused_parameters: a pass may leave trained weights out. Raises UsageError where weights
    are split over processes: these loops sample from the whole model, or score with it.
    """
    names = {dtype: name for name, dtype in DTYPES.items()}
    dtype = compute_dtype()
    handler = DistributedDataParallelKwargs(find_unused_parameters=find_unused_parameters)
    accelerator = Accelerator(
        mixed_precision="no" if dtype == torch.float32 else names[dtype],
        cpu=device().type == "cpu",
        kwargs_handlers=[handler],
    )
    if accelerator.distributed_type not in ONE_COPY_EACH:
        raise UsageError(
            f"{stage} runs with a whole model in each process, not with "
            f"{accelerator.distributed_type.value}: launch it with recipes/accelerate/ddp.yaml or "
            "torchrun."
        )
    return accelerator


def wrap_for_processes(accelerator: Accelerator, module: nn.Module) -> nn.Module:
    """`module` as several processes must call it for their gradients to be averaged.

    It is the module itself if there is one process.
    """
    return accelerator.prepare(module) if accelerator.num_processes > 1 else module


def own_share(accelerator: Accelerator, items: Sequence) -> Sequence:
    """Every n-th of `items`, for n processes."""
    return items[accelerator.process_index :: accelerator.num_processes]


def gather_in_order(accelerator: Accelerator, own_results: list) -> list:
    """The inverse of `own_share`, of one result for each item, in every process."""
    if accelerator.num_processes == 1:
        return own_results
    # result k of process p belongs to item k · n + p
    places = itertools.count(accelerator.process_index, accelerator.num_processes)
    own = zip(places, own_results, strict=False)
    found = gather_object(list(own))
    found.sort(key=lambda pair: pair[0])
    return [result for _, result in found]


def mean_over_processes(
    accelerator: Accelerator,
    values: Tensor,
) -> Tensor:
    """Mean over the processes, elementwise; no gradient goes through it."""
    values = values.detach().float()
    values = values.to(accelerator.device)
    if accelerator.num_processes == 1:
        return values
    return accelerator.reduce(values, "mean")


def token_mean_over_processes(
    accelerator: Accelerator,
    values: Tensor,
    mask: Tensor,
) -> Tensor:
    """Mean of `values` over the tokens of all processes, (); no gradient goes through it."""
    total = (values * mask).sum()
    # one mean divided by the other is the sum over all divided by the number of all
    mean_total = mean_over_processes(accelerator, total)
    mean_tokens = mean_over_processes(accelerator, mask.sum())
    return mean_total / mean_tokens.clamp(min=1e-9)


def mean_rows(
    accelerator: Accelerator,
    row: Mapping[str, float],
) -> dict[str, float]:
    """Means over the processes of figures that each has computed of its own share."""
    own = [float(value) for value in row.values()]
    means = torch.tensor(own, dtype=torch.float64)
    if accelerator.num_processes > 1:
        means = accelerator.reduce(means.to(accelerator.device), "mean")
    return dict(zip(row, means.tolist(), strict=True))
