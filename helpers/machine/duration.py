"""How long a stage takes, about, from a model's shapes and from what this machine does in half a second.

2 FLOP a weight and token forward, as many again backward (the base is frozen, so that only gradients of inputs are needed;
Kaplan et al. 2020, arXiv 2001.08361, section 2.1), once more with gradient checkpointing; over the rate of a matrix
product. Weights in 4 bits are unpacked for every pass, and what stands between the products is written and read: over the
rate of a copy. A time for each small operation is added, which is most of it for small models. Used by `helpers/machine/fits.py`.

Simplifications: opening and resizing images, scorers, and what else runs on the machine are left out; held-out data are taken to
be an eighth of the training data; all answers have the same length. A factor of 2 is to be expected.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass

import torch

from helpers.config import DPOSettings, PPOSettings, RewardSettings
from helpers.models import NF4_BYTES, ModelShapes
from helpers.runtime import compute_dtype, device

from .workload import GenerationSettings, StageSettings, Workload

EFFICIENCY = 0.4  # of a large matrix product's rate, over all products of a layer, small ones of adapters included
CALLS_PER_LAYER = 350  # small operations in a layer's forward, Python and modules included
CALLS_OUTSIDE = 700  # in a forward or for a generated token, outside the layers
CRITIC_WARM_UP_EPOCHS = (
    8  # epochs in which notebook 05 warms up a critic that has an adapter of its own
)
EVALUATED_SHARE = 1 / 8  # records that an evaluation scores, of those that are trained on


@dataclass(frozen=True)
class MachineRates:
    """The best speed of this machine, in the dtype that it computes in."""

    flops: float  # a second, in a matrix product
    bytes: float  # a second, read and written in a copy
    call: float  # seconds of a small operation


def _best(call: Callable[[], object], seconds: float) -> float:
    """Least seconds of a call that is repeated for that long: other programs only make it slower."""
    least, started, gpu = float("inf"), time.perf_counter(), torch.cuda.is_available()
    call()
    while least == float("inf") or time.perf_counter() - started < seconds:
        if gpu:
            torch.cuda.synchronize()
        before = time.perf_counter()
        call()
        if gpu:
            torch.cuda.synchronize()
        least = min(least, time.perf_counter() - before)
    return least


@torch.no_grad()
def measure_rates(hidden: int, intermediate: int) -> MachineRates:
    """Time a matrix product of that size, a copy of 64 MB and a hundred additions; takes half a second."""
    dtype, place = compute_dtype(), device()
    rows = max(64, min(512, 4 * 10**9 // (2 * hidden * intermediate)))
    left, right = (
        torch.randn(shape, device=place, dtype=dtype)
        for shape in ((rows, hidden), (hidden, intermediate))
    )
    source, small = torch.zeros(16 * 10**6, device=place), torch.zeros(1, device=place)
    target = torch.empty_like(source)
    product = _best(lambda: left @ right, 0.2)
    copy = _best(lambda: target.copy_(source), 0.2)
    call = _best(lambda: [small + 1 for _ in range(100)], 0.1) / 100
    return MachineRates(2 * rows * hidden * intermediate / product, 2 * source.nbytes / copy, call)


@dataclass(frozen=True)
class StageSeconds:
    """Seconds of whole stages, from a workload and this machine's rates."""

    workload: Workload
    rates: MachineRates

    @property
    def model(self) -> ModelShapes:
        return self.workload.shapes

    def of_stage(self, settings: StageSettings) -> float:
        """Seconds of the stage that the settings are for."""
        match settings:
            case GenerationSettings():
                return self.load(settings)
            case DPOSettings():
                return self.dpo(settings)
            case RewardSettings():
                return self.reward(settings)
            case PPOSettings():
                return self.ppo(settings)

    def forward(self, rows: int, sequence: int, read: int = 0, predicted: int = 0) -> float:
        """One pass over rows of `sequence` tokens that also see `read` earlier ones each, with `predicted` logits."""
        model, rates, c, tokens = (
            self.model,
            self.rates,
            self.workload.compute_bytes,
            rows * sequence,
        )
        flop = 2 * model.quantised * tokens + 2 * model.hidden * model.vocab * predicted
        flop += 4 * tokens * (sequence + read) * model.queries * model.layers
        # in 4 bits read, and written and read again
        weights = model.quantised * (NF4_BYTES + 2 * c if self.workload.four_bit else c)
        cache = rows * read * model.layers * 2 * (model.keys + model.queries) * c
        between = (
            tokens * model.layers * 2 * c * (10 * model.hidden + 5 * model.intermediate)
        )  # written and read
        calls = (CALLS_OUTSIDE + CALLS_PER_LAYER * model.layers) * rates.call
        return flop / (EFFICIENCY * rates.flops) + (weights + cache + between) / rates.bytes + calls

    def images(self, number: float) -> float:
        """The vision tower, once for each image."""
        width, depth, _, _ = self.model.vision
        patches = self.workload.patches
        flop = (
            2 * sum(i * o for _, i, o in self.model.outside) * patches
            + 4 * patches**2 * width * depth
        )
        return number * (
            flop / (EFFICIENCY * self.rates.flops) + CALLS_PER_LAYER * depth * self.rates.call
        )

    def sampling(self, prompts: int, group: int) -> float:
        prompt, length = self.workload.prompt, self.workload.answer_tokens
        step = self.forward(prompts * group, 1, prompt + length // 2, prompts * group)
        return self.forward(prompts, prompt) + length * step

    def packed(self, rows: int, answers: int, predicted: bool = True) -> float:
        tokens = answers * self.workload.answer_tokens
        return self.forward(rows, self.workload.prompt + tokens, 0, rows * tokens * predicted)

    def load(self, settings: GenerationSettings) -> float:
        """One batch of answers."""
        return self.images(settings.batch_size) + self.sampling(settings.batch_size, 1)

    def dpo(self, settings: DPOSettings) -> float:
        """Forwards and backwards of all steps; the reference and the vision tower once for each example."""
        batches, spoilt = (
            settings.steps * settings.accumulation,
            bool(settings.image_weight or settings.anchor_weight),
        )
        forward = self.packed(settings.batch_size * (1 + spoilt), 2)
        seen = min(self.workload.examples, batches * settings.batch_size)
        passes = batches * (2 + settings.gradient_checkpointing) + seen / settings.batch_size
        return passes * forward + self.images(seen * (1 + spoilt))

    def reward(self, settings: RewardSettings) -> float:
        """Forwards and backwards of all epochs, and a forward for each evaluation."""
        examples = self.workload.examples
        trained = settings.epochs * (2 + settings.gradient_checkpointing)
        passes = trained + EVALUATED_SHARE * settings.evaluations
        forward = self.packed(settings.batch_size, self.workload.answers, False)
        batches = passes * examples / settings.batch_size
        return batches * forward + self.images((1 + EVALUATED_SHARE) * examples)

    def ppo(self, settings: PPOSettings) -> float:
        """Samples, three looks at them (policy, reference, critic), updates; before, the critic's warm-up."""
        own = (
            settings.advantages == "gae" and settings.critic_layers > 0 and settings.critic_adapter
        )
        prompts, group, batch = (
            settings.prompts_per_iteration,
            settings.group_size,
            settings.mini_batch,
        )
        examples, training = self.workload.examples, 2 + settings.gradient_checkpointing
        look = self.packed(prompts, group)
        updates = prompts / batch * settings.epochs
        update = updates * (1 + own) * training * self.packed(batch, group)
        warm_up = own * CRITIC_WARM_UP_EPOCHS * training * examples / batch
        warm_up *= self.packed(batch, group, False)
        iteration = self.sampling(prompts, group) + (2 + own) * look + update
        seen = examples if own else min(examples, settings.iterations * prompts)
        return settings.iterations * iteration + warm_up + self.images(seen)
