"""What a training run will take: a dry step of the very trainer that will train.

It is timed and weighed. Also what such trials need: `restoring_state` puts everything back that a
trial touches, `training_mode` makes the model compute as it will in training, `preference_only`
leaves out other terms of the loss. Used by `helpers/doctor/checks.py` and
`helpers/doctor/reach.py`, taught in notebook 04.

Simplifications: the optimizer's own time is left out, and so is that steps of long rows are slower.
"""

import contextlib
import copy
import math
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from accelerate.utils import send_to_device
from torch import Tensor
from trl import DPOTrainer

from helpers.machine import USABLE_SHARE
from helpers.models import ReferenceLogps
from helpers.runtime import has_cuda, peak_memory_gb

Examples = Sequence[dict[str, Any]]  # rows of the data set
# fp16 gradients vanish below 6e-8. A fixed scale, a power of two and so exact, does here what a
# GradScaler does over a whole training: AdamW divides gradients by their own size, so that no scale
# has to be taken out again.
LOSS_SCALE = 1024.0
MOMENT_BYTES = 8  # a weight: two moments in fp32


@dataclass(frozen=True)
class Forecast:
    # seconds a step while image features and reference log-probabilities are computed
    first_epoch: float
    later: float  # seconds a step when they are kept
    minutes: float  # for all steps
    # GPU memory with the optimizer's, or memory of the process (GB = 10⁹ bytes)
    peak_gb: float
    total_gb: float | None = None  # of the GPU
    largest_batch: int | None = None  # pairs in one forward that are likely to fit into the GPU

    def __str__(self) -> str:
        seconds = f"{self.later:.1f} s a step"
        if self.first_epoch > self.later:
            seconds = (
                f"{self.first_epoch:.1f} s a step in the first epoch, {self.later:.1f} s later"
            )
        memory = f"{self.peak_gb:.1f} GB"
        if self.total_gb:
            memory += f" of {self.total_gb:.1f} GB"
        if self.largest_batch is not None:
            memory += f", batches of {self.largest_batch} pairs are likely to fit"
        return f"Forecast: {seconds}, {self.minutes:.1f} minutes in all, peak memory {memory}."


def time_pass(trainer: DPOTrainer, examples: Examples) -> float:
    """Seconds of one pass over `examples` and back, without the optimizer."""
    started = time.perf_counter()
    backward(loss_of(trainer, collate(trainer, examples)))
    trainer.model.zero_grad()
    if has_cuda():
        torch.cuda.synchronize()
    return time.perf_counter() - started


def forecast_run(trainer: DPOTrainer, seen_rows: Sequence[int] = ()) -> Forecast:
    """Pass twice over a batch of rows not among `seen_rows`, and reckon from that.

    The first pass fills the caches, the second uses them. Run a pass of that size before: the first
    one on a GPU also loads kernels.
    """
    args = trainer.args
    data = trainer.train_dataset
    size = args.per_device_train_batch_size
    accumulation = args.gradient_accumulation_steps
    # rows whose features are not yet kept, if there are enough of them
    fresh = sorted(set(range(len(data))).difference(seen_rows))
    if len(fresh) < size:
        fresh = range(len(data))
    examples = [data[fresh[place]] for place in evenly_spaced(len(fresh), size)]
    on_gpu = has_cuda()
    before = 0
    if on_gpu:
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
    with training_mode(trainer):
        first = time_pass(trainer, examples) * accumulation
        later = time_pass(trainer, examples) * accumulation
    if "packed" not in collate(trainer, examples[:1]):
        first = later  # TRL's layout keeps nothing
    epoch = min(args.max_steps, math.ceil(len(data) / (size * accumulation)))
    minutes = (epoch * first + (args.max_steps - epoch) * later) / 60
    if not on_gpu:
        return Forecast(first, later, minutes, peak_memory_gb())
    # what is there with any batch, and what a batch of `examples` adds
    trained = sum(p.numel() for p in trainer.model.parameters() if p.requires_grad)
    optimizer = MOMENT_BYTES * trained
    fixed = (before + optimizer) / 1e9
    peak = peak_memory_gb() + optimizer / 1e9
    total = torch.cuda.mem_get_info()[1] / 1e9
    largest = int((USABLE_SHARE * total - fixed) / max(peak - fixed, 1e-9) * len(examples))
    return Forecast(first, later, minutes, peak, total, largest)


def evenly_spaced(rows: int, limit: int) -> list[int]:
    """Choose at most `limit` places in range(rows), since neighbours often share an image."""
    limit = min(limit, rows)
    return [number * rows // limit for number in range(limit)]


def collate(trainer: DPOTrainer, examples: Examples) -> dict[str, Any]:
    """The batch that the trainer would make; TRL's collator changes rows, so it gets copies."""
    batch = trainer.data_collator([dict(example) for example in examples])
    return send_to_device(dict(batch), trainer.accelerator.device)


def loss_of(trainer: DPOTrainer, batch: dict[str, Any]) -> Tensor:
    """The trainer's loss, ().

    Autocast is entered anew each time, since it remembers the weights it has cast.
    """
    with trainer.accelerator.autocast():
        return trainer.compute_loss(trainer.model, batch)


def backward(loss: Tensor) -> None:
    if loss.requires_grad:
        (loss * LOSS_SCALE).backward()


@contextlib.contextmanager
def training_mode(trainer: DPOTrainer) -> Iterator[None]:
    """Training mode with the gradient checkpointing of the run, but without dropout."""
    model = trainer.model
    args = trainer.args
    checkpointing = args.gradient_checkpointing and not model.is_gradient_checkpointing
    if checkpointing:
        model.gradient_checkpointing_enable(args.gradient_checkpointing_kwargs)
    model.train()
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.eval()
    try:
        yield
    finally:
        model.eval()
        if checkpointing:
            model.gradient_checkpointing_disable()


@contextlib.contextmanager
def preference_only(trainer: DPOTrainer) -> Iterator[None]:
    """The preference term alone, without SFT and image terms."""
    alone = {"loss_types": ["sigmoid"], "loss_weights": [1.0]}
    alone |= {name: 0.0 for name in ("image_weight", "anchor_weight") if hasattr(trainer, name)}
    before = {name: getattr(trainer, name) for name in (*alone, "beta")}
    vars(trainer).update(alone)
    try:
        yield
    finally:
        vars(trainer).update(before)


@contextlib.contextmanager
def restoring_state(trainer: DPOTrainer) -> Iterator[None]:
    """Use eval mode inside; restore weights, flags, modes, logs and random states afterwards.

    Reference log-probabilities that are computed within are not kept: a trial leaves nothing to a
    run.
    """
    model = trainer.model
    collator = trainer.data_collator
    # what a trial may change, and how it was
    flags = [(parameter, parameter.requires_grad) for parameter in model.parameters()]
    tensors = [parameter for parameter, trained in flags if trained] + list(model.buffers())
    values = [(tensor, tensor.detach().clone()) for tensor in tensors]
    modes = [(module, module.training) for module in model.modules()]
    logs = copy.deepcopy(trainer._metrics)
    tokens = trainer._total_train_tokens
    reference = getattr(collator, "reference", None)
    if reference is not None:
        collator.reference = ReferenceLogps("trial")
    model.eval()
    try:
        with torch.random.fork_rng():
            yield
    finally:
        model.zero_grad()
        for tensor, value in values:
            tensor.data.copy_(value)
        for parameter, trained in flags:
            parameter.requires_grad_(trained)
        for module, training in modes:
            module.training = training
        trainer._metrics = logs
        trainer._total_train_tokens = tokens
        if reference is not None:
            collator.reference = reference
