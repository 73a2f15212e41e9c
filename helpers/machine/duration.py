"""How long a stage takes, about: from shapes, and from half a second of this machine.

2 FLOP a weight and token forward, as many again backward (the base is frozen, so that only
gradients of inputs are needed; Kaplan et al. 2020, arXiv 2001.08361, section 2.1), once more with
gradient checkpointing; over the rate of a matrix product. Weights in 4 bits are unpacked for every
pass, and what stands between the products is written and read: over the rate of a copy. A time for
each small operation is added, which is most of it for small models. Used by
`helpers/machine/fits.py`.

Simplifications: opening and resizing images, scorers, and what else runs on the machine are left
out; held-out data are taken to be an eighth of the training data; all answers have the same length.
A factor of 2 is to be expected.
"""

import math
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch

from helpers.config import DPOSettings, PPOSettings, RewardSettings, SFTSettings
from helpers.models import NF4_BYTES, ModelShapes
from helpers.runtime import compute_dtype, device, has_cuda

from .workload import GenerationSettings, StageSettings, Workload, stage_of

# Of a large matrix product's rate, over all products of a layer, small ones of adapters included
EFFICIENCY = 0.4

# Small operations in a layer's forward, Python and modules included
CALLS_PER_LAYER = 350

# The same in a forward or for a generated token, outside the layers
CALLS_OUTSIDE = 700

# Epochs in which notebook 05 warms up a critic that has an adapter of its own
CRITIC_WARM_UP_EPOCHS = 8

# Records that an evaluation scores, of those that are trained on
EVALUATED_SHARE = 1 / 8


@dataclass(frozen=True)
class MachineRates:
    """The best speed of this machine, in the dtype that it computes in."""

    flops: float  # a second, in a matrix product
    bytes: float  # a second, read and written in a copy
    call: float  # seconds of a small operation


@torch.no_grad()
def measure_rates(hidden: int, intermediate: int) -> MachineRates:
    """Time a matrix product of that size, a copy of 64 MB and a hundred additions.

    It takes half a second.
    """
    options = {"device": device(), "dtype": compute_dtype()}
    # About 4 · 10⁹ FLOP, which a CPU does in a tenth of a second
    rows = max(64, min(512, 4 * 10**9 // (2 * hidden * intermediate)))
    left = torch.randn(rows, hidden, **options)
    right = torch.randn(hidden, intermediate, **options)
    source = torch.zeros(16 * 10**6, device=device())
    target = torch.empty_like(source)
    small = torch.zeros(1, device=device())
    product = _best(lambda: left @ right, 0.2)
    copy = _best(lambda: target.copy_(source), 0.2)
    calls = _best(lambda: [small + 1 for _ in range(100)], 0.1)
    return MachineRates(
        flops=2 * rows * hidden * intermediate / product,
        bytes=2 * source.nbytes / copy,
        call=calls / 100,
    )


def _best(call: Callable[[], object], seconds: float) -> float:
    """Return the least seconds of a call that is repeated for that long.

    Other programs only make it slower.
    """
    call()  # the first one also allocates
    least = math.inf
    started = time.perf_counter()
    while least == math.inf or time.perf_counter() - started < seconds:
        _wait_for_gpu()
        before = time.perf_counter()
        call()
        _wait_for_gpu()
        least = min(least, time.perf_counter() - before)
    return least


def _wait_for_gpu() -> None:
    if has_cuda():
        torch.cuda.synchronize()


@dataclass(frozen=True)
class StageSeconds:
    """Seconds of whole stages, from a workload and this machine's rates.

    The methods `load` … `ppo` are the stages.
    """

    workload: Workload
    rates: MachineRates

    @property
    def model(self) -> ModelShapes:
        return self.workload.shapes

    def of_stage(self, settings: StageSettings) -> float:
        """Seconds of the stage that the settings are for."""
        stage = getattr(self, stage_of(settings))
        return stage(settings)

    # --- one pass ---

    def forward(self, rows: int, sequence: int, read: int = 0, predicted: int = 0) -> float:
        """One pass over rows of `sequence` tokens, with `predicted` logits.

        Each row also sees `read` earlier tokens, from a cache.
        """
        model = self.model
        number = self.workload.compute_bytes
        tokens = rows * sequence
        flop = 2 * model.quantised * tokens + 2 * model.hidden * model.vocab * predicted
        flop += 4 * tokens * (sequence + read) * model.queries * model.layers
        # Weights in 4 bits are read, and written and read again
        weights = model.quantised * (NF4_BYTES + 2 * number if self.workload.four_bit else number)
        cache = rows * read * model.layers * 2 * (model.keys + model.queries) * number
        # What stands between the products is written and read
        between = 10 * model.hidden + 5 * model.intermediate
        between *= tokens * model.layers * 2 * number
        calls = CALLS_OUTSIDE + CALLS_PER_LAYER * model.layers
        moved = (weights + cache + between) / self.rates.bytes
        return flop / (EFFICIENCY * self.rates.flops) + moved + calls * self.rates.call

    def packed(self, rows: int, answers: int, predicts: bool = True) -> float:
        """One pass over image, prompt and so many answers; without logits for scores."""
        lines, sequence = self.workload.rows(rows, answers)
        predicted = rows * answers * self.workload.answer_tokens * predicts
        return self.forward(lines, sequence, 0, predicted)

    def images(self, number: float) -> float:
        """The vision tower, once for each image."""
        model = self.model
        patches = self.workload.patches
        depth = model.vision_depth
        weights = sum(inputs * outputs for _, inputs, outputs in model.outside)
        flop = 2 * weights * patches + 4 * patches**2 * model.vision_width * depth
        calls = CALLS_PER_LAYER * depth * self.rates.call
        return number * (flop / (EFFICIENCY * self.rates.flops) + calls)

    def sampling(self, prompts: int, group: int) -> float:
        """The prompts once, and then a pass a token; on average half an answer is before it."""
        prompt = self.workload.prompt
        length = self.workload.answer_tokens
        rows = prompts * group
        step = self.forward(rows, 1, prompt + length // 2, rows)
        read = rows if self.model.recurrent else prompts
        return self.forward(read, prompt) + length * step

    # --- the stages ---

    def load(self, settings: GenerationSettings) -> float:
        """One batch of answers."""
        return self.images(settings.batch_size) + self.sampling(settings.batch_size, 1)

    def sft(self, settings: SFTSettings) -> float:
        """Forwards and backwards of all steps; the vision tower runs once for each example."""
        batches = settings.steps * settings.accumulation
        passes = batches * (2 + settings.gradient_checkpointing)
        seen = min(self.workload.examples, batches * settings.batch_size)
        return passes * self.packed(settings.batch_size, 1) + self.images(seen)

    def dpo(self, settings: DPOSettings) -> float:
        """Forwards and backwards of all steps.

        The reference and the vision tower run once for each example.
        """
        batches = settings.steps * settings.accumulation
        # The chosen answer is shown once more, to a spoilt image
        copies = 1 + bool(settings.image_weight or settings.anchor_weight)
        forward = self.packed(settings.batch_size * copies, 2)
        seen = min(self.workload.examples, batches * settings.batch_size)
        passes = batches * (2 + settings.gradient_checkpointing) + seen / settings.batch_size
        return passes * forward + self.images(seen * copies)

    def reward(self, settings: RewardSettings) -> float:
        """Forwards and backwards of all epochs, and a forward for each evaluation."""
        examples = self.workload.examples
        trained = settings.epochs * (2 + settings.gradient_checkpointing)
        passes = trained + EVALUATED_SHARE * settings.evaluations
        forward = self.packed(settings.batch_size, self.workload.answers, predicts=False)
        batches = passes * examples / settings.batch_size
        return batches * forward + self.images((1 + EVALUATED_SHARE) * examples)

    def ppo(self, settings: PPOSettings) -> float:
        """Samples, three looks at them (policy, reference, critic), updates.

        Before, a critic with an adapter of its own is warmed up.
        """
        has_critic = settings.advantages == "gae" and settings.critic_layers > 0
        own = has_critic and settings.critic_adapter
        prompts = settings.prompts_per_iteration
        group = settings.group_size
        batch = settings.mini_batch
        examples = self.workload.examples
        training = 2 + settings.gradient_checkpointing
        look = self.packed(prompts, group)
        updates = prompts / batch * settings.epochs
        update = updates * (1 + own) * training * self.packed(batch, group)
        warm_up = own * CRITIC_WARM_UP_EPOCHS * training * examples / batch
        warm_up *= self.packed(batch, group, predicts=False)
        iteration = self.sampling(prompts, group) + (2 + own) * look + update
        seen = examples if own else min(examples, settings.iterations * prompts)
        return settings.iterations * iteration + warm_up + self.images(seen)
