"""How fast this machine is at layers of a model's shapes, measured in a few seconds.

A decoder of a few layers, as Mistral has them, is built in the shapes of the language model, with
adapters, and one without in those of the vision tower; both are timed on few tokens and on many.
The line through both times has what any pass costs (Python, small operations, weights that are
read) and what a token adds. Attention over many tokens is timed alone, since it grows with their
square. Used by `helpers/machine/duration.py`.

Simplifications: layers that are built otherwise (convolutions, linear attention) are taken to cost
as much as one of those a weight; weights are all alike, which no product is faster for.
"""

import math
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
from peft import LoraConfig, inject_adapter_in_model
from torch import Tensor, nn
from transformers import MistralConfig, MistralModel

from helpers.config import LoraSettings
from helpers.models import ModelShapes
from helpers.runtime import compute_dtype, device, has_cuda

# Tokens of the two passes that are timed, in rows of few, so that attention does not count
ROW = 16
FEW, MANY = 1, 16  # rows

# Tokens of a row whose attention is timed
ATTENDED = 256

# Weights of the layers that are built: more would not be measured better
MOST_WEIGHTS = 3 * 10**7
MOST_LAYERS = 4

# Seconds in which a time is taken again and again
REPEATED = 0.1


@dataclass(frozen=True)
class Line:
    """Seconds of a pass through a layer: what any costs, and what a token adds."""

    fixed: float
    token: float

    def seconds(self, tokens: float) -> float:
        return self.fixed + tokens * self.token

    def scaled(self, share: float) -> "Line":
        """Return the line of a layer with that share of the weights."""
        return Line(self.fixed, share * self.token)


@dataclass(frozen=True)
class MachineSpeed:
    """What a layer of a model takes on this machine, in the dtype that it computes in."""

    forward: Line  # of the language model, with adapters, without gradients
    training: Line  # forward and backward
    vision: Line  # of the vision tower, without gradients
    pair: float  # seconds of a query that looks at a key, with all heads of a layer
    trained_pair: float  # forward and backward
    flops: float  # a second, in a large matrix product
    bytes: float  # a second, read and written in a copy


def measure_speed(model: ModelShapes) -> MachineSpeed:
    """Time layers of these shapes, attention, a matrix product, and a copy of 64 MB."""
    head = model.queries // model.heads
    language = _build_layers(
        model.hidden, model.intermediate, model.heads, model.keys // head, head, adapters=True
    )
    share = model.quantised / model.layers / _weights_of_a_layer(language)
    tower = _build_tower(model)
    outside = sum(inputs * outputs for _, inputs, outputs in model.outside)
    tower_share = outside / model.vision_depth / _weights_of_a_layer(tower)
    pair, trained_pair = _time_attention(model.heads, head)
    return MachineSpeed(
        forward=_time_layers(language, trains=False).scaled(share),
        training=_time_layers(language, trains=True).scaled(share),
        vision=_time_layers(tower, trains=False).scaled(tower_share),
        pair=pair,
        trained_pair=trained_pair,
        flops=_product_flops(model.hidden, model.intermediate, compute_dtype()),
        bytes=_copied_bytes(),
    )


def bf16_gain(model: ModelShapes) -> float:
    """How many times as fast is a product in bf16, on a CPU in fp32? Elsewhere it is 1.

    A CPU without instructions for bf16 takes seconds to answer.
    """
    if compute_dtype() != torch.float32 or device().type != "cpu":
        return 1.0
    sizes = (model.hidden, model.intermediate)
    return _product_flops(*sizes, torch.bfloat16) / _product_flops(*sizes, torch.float32)


def _build_tower(model: ModelShapes) -> MistralModel:
    """Return layers of the vision tower's sizes."""
    width = model.vision_width
    # Heads of 64 to 80 are usual; how many there are hardly matters in short rows
    heads = max(heads for heads in range(1, width // 64 + 2) if width % heads == 0)
    return _build_layers(
        width, model.vision_intermediate, heads, heads, width // heads, adapters=False
    )


def _build_layers(
    hidden: int, intermediate: int, heads: int, key_heads: int, width: int, adapters: bool
) -> MistralModel:
    """Return a decoder of a few layers, whose weights are all alike."""
    weights = hidden * width * 2 * (heads + key_heads) + 3 * hidden * intermediate
    config = MistralConfig(
        hidden_size=hidden,
        intermediate_size=intermediate,
        num_attention_heads=heads,
        num_key_value_heads=key_heads,
        head_dim=width,
        sliding_window=None,
        num_hidden_layers=max(1, min(MOST_LAYERS, MOST_WEIGHTS // weights)),
        vocab_size=1,
        pad_token_id=None,
        bos_token_id=None,
        eos_token_id=None,
    )
    with torch.device("meta"):
        model = MistralModel(config).to(compute_dtype()).requires_grad_(False)
        if adapters:
            lora = LoraSettings()
            names = list(lora.target_modules)
            inject_adapter_in_model(LoraConfig(r=lora.r, target_modules=names), model)
    model.to_empty(device=device())
    for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
        if "lora_" in name:  # trained weights are in fp32
            tensor.data = tensor.data.float()
        tensor.data.fill_(1 / hidden)
    return model


def _weights_of_a_layer(model: MistralModel) -> float:
    """Return the weights of the linear layers in one layer, without those of adapters."""
    weights = 0
    for name, module in model.named_modules():
        if isinstance(module, nn.Linear) and "lora_" not in name:
            weights += module.weight.numel()
    return weights / len(model.layers)


def _time_layers(model: MistralModel, trains: bool) -> Line:
    """Return the seconds of one layer of the model."""
    few, many = (_time_pass(model, rows, trains) for rows in (FEW, MANY))
    token = max(0.0, many - few) / (ROW * (MANY - FEW))
    fixed = max(0.0, few - FEW * ROW * token)
    layers = len(model.layers)
    return Line(fixed / layers, token / layers)


def _time_pass(model: MistralModel, rows: int, trains: bool) -> float:
    place = device()
    dtype = compute_dtype()
    states = torch.full((rows, ROW, model.config.hidden_size), 1.0, device=place, dtype=dtype)
    # As in training, where the first adapter's gradients reach the states before it
    states.requires_grad_(trains)

    def run() -> None:
        mixed = dtype != torch.float32
        with torch.set_grad_enabled(trains), torch.autocast(place.type, dtype, enabled=mixed):
            ends = model(inputs_embeds=states, use_cache=False).last_hidden_state
        if trains:
            ends.float().sum().backward()

    return least_seconds(run)


def _time_attention(heads: int, width: int) -> tuple[float, float]:
    """Return the seconds a pair of tokens: forward, and forward and backward."""
    options = {"device": device(), "dtype": compute_dtype()}
    queries = torch.zeros(1, heads, ATTENDED, width, **options)
    keys = torch.zeros(1, heads, ATTENDED, width, **options)
    seen = torch.ones(ATTENDED, ATTENDED, dtype=torch.bool, device=device()).tril()
    mask = torch.zeros(1, 1, ATTENDED, ATTENDED, **options)
    mask.masked_fill_(~seen, torch.finfo(mask.dtype).min)

    def attend() -> Tensor:
        return nn.functional.scaled_dot_product_attention(queries, keys, keys, attn_mask=mask)

    with torch.no_grad():
        forward = least_seconds(attend)
    queries.requires_grad_()
    keys.requires_grad_()
    trained = least_seconds(lambda: attend().sum().backward())
    return forward / ATTENDED**2, trained / ATTENDED**2


@torch.no_grad()
def _product_flops(hidden: int, intermediate: int, dtype: torch.dtype) -> float:
    """Return the floating point operations a second of a product of these sizes."""
    options = {"device": device(), "dtype": dtype}
    # About 4 · 10⁹, which a CPU does in a tenth of a second
    rows = max(64, min(512, 4 * 10**9 // (2 * hidden * intermediate)))
    left = torch.ones(rows, hidden, **options)
    right = torch.ones(hidden, intermediate, **options)
    return 2 * rows * hidden * intermediate / least_seconds(lambda: left @ right)


@torch.no_grad()
def _copied_bytes() -> float:
    source = torch.zeros(16 * 10**6, device=device())
    target = torch.empty_like(source)
    return 2 * source.nbytes / least_seconds(lambda: target.copy_(source))


def least_seconds(call: Callable[[], object]) -> float:
    """Return the least seconds of a call that is repeated for a while.

    Other programs only make it slower.
    """
    call()  # the first one also allocates
    least = math.inf
    started = time.perf_counter()
    while least == math.inf or time.perf_counter() - started < REPEATED:
        _wait_for_gpu()
        before = time.perf_counter()
        call()
        _wait_for_gpu()
        least = min(least, time.perf_counter() - before)
    return least


def _wait_for_gpu() -> None:
    if has_cuda():
        torch.cuda.synchronize()
