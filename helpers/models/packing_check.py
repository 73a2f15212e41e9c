"""Does a model give the same with all answers in one row? It is tried before anything is packed.

Packed answers (`helpers/models/shared_prefix.py`) are compared with a row each, and what is taken
for rounding is measured in the same call. Attention other than PyTorch's may not take a block mask,
a loader may replace the forward, and layers may hand a state on from token to token.
"""

import contextlib
from collections.abc import Hashable, Iterator, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import NamedTuple

import torch
from PIL import Image
from torch import Tensor, nn
from transformers import ProcessorMixin

from helpers.runtime import precision_of

from .adapters import VLM, evaluation_mode
from .caches import ImageFeatures, backbone_of, is_frozen, is_recurrent
from .encoded_prompts import encode_prompts
from .prompts import render
from .shared_prefix import PackedAnswers, answer_logits, gather_columns, pack, pack_separately

# Packed answers may differ from plain ones by so many times as two plain layouts differ from each
# other. In 16 bits right masks gave up to 0.5, masks and positions that are wrong 6 and more (seven
# architectures of 24 layers; benchmarks/rounding.py measures a model).
PACKING_FLOORS = 2
# Where plain layouts hardly differ: rounding in fp32, and a single one in 16 bits
SMALLEST_LIMIT = 1e-4

# What was found right in this process (`code_of`), with packed answers or with features alone. To
# try takes ten passes through the vision tower, up to a minute with SmolVLM-256M on a CPU.
_RIGHT: set[tuple[Hashable, bool]] = set()


@dataclass(frozen=True)
class PackingCheck:
    """How far packed figures lie from plain ones, relative to their norm.

    floor: how far two plain layouts lie apart, which is rounding; limit: what is taken for it.
    """

    difference: float
    floor: float
    limit: float

    @property
    def ok(self) -> bool:
        """Is it rounding? Figures that are not numbers are not."""
        return self.difference <= self.limit

    def __str__(self) -> str:
        return (
            f"its figures differ by {self.difference:.2g}, plain layouts among each other by "
            f"{self.floor:.2g}, and {self.limit:.2g} would be rounding"
        )


@torch.no_grad()
def check_packing(
    model: VLM,
    processor: ProcessorMixin,
    question: str = "What is it?",
    image: Image.Image | None = None,
    answers: Sequence[str] = ("It is a cat on a red mat.", "No.", "A dog."),
    packs: bool = True,
) -> PackingCheck:
    """Compare packed answers with a row each, and these, padded left or alone, among each other.

    Figures are hidden states and logits of all tokens of an answer; the worst answer counts. The
    packed ones are computed with kept image features if the vision tower is frozen; packs=False
    tries these alone, in a row each. An answer alone has embeddings that are rounded otherwise:
    some processors give plain layouts to the bit alike, and packed ones, where attention adds in
    another order, not. image: None takes noise. Raises whatever a model raises that cannot take
    such a row.
    """
    images = [[image or Image.effect_noise((112, 112), 80).convert("RGB")]]
    prompts = encode_prompts(processor, [render(processor, question)], images)
    kept = prompts
    if is_frozen(model):
        features = ImageFeatures(model, processor)
        kept = encode_prompts(processor, prompts.texts, images, features)

    def separately(texts: Sequence[str], padding_side: str = "right") -> PackedAnswers:
        return pack_separately(processor, prompts, [texts], padding_side).to(model.device)

    if packs:
        packed = pack(model, processor, kept, [answers]).to(model.device)
    else:
        packed = pack_separately(processor, kept, [answers]).to(model.device)
    plain, left = separately(answers), separately(answers, "left")
    with evaluation_mode(model):
        looks = [_look(model, layout) for layout in (packed, plain, left)]
        with rounded_otherwise(model):
            alone = [_look(model, separately([text])) for text in answers]
    # of each layout the rows of all answers
    states = [look.states for look in looks]
    states.append([look.states[0] for look in alone])
    logits = [look.logits for look in looks]
    logits.append([look.logits[0] for look in alone])
    checks = [compare_layouts(*states), compare_layouts(*logits)]
    return max(checks, key=lambda check: (not check.ok, check.difference / check.limit))


@contextlib.contextmanager
def rounded_otherwise(model: VLM) -> Iterator[None]:
    """Move each number of the tokens' embeddings by one unit of its last place, up or down."""
    unit = torch.finfo(precision_of(model)).eps
    generator = torch.Generator().manual_seed(0)

    def move(module: nn.Module, args: tuple, embeddings: Tensor) -> Tensor:
        up = torch.rand(embeddings.shape, generator=generator) < 0.5
        factors = torch.where(up, 1 + unit, 1 - unit).to(embeddings.device)
        return (embeddings * factors).to(embeddings.dtype)

    hook = model.get_input_embeddings().register_forward_hook(move)
    try:
        yield
    finally:
        hook.remove()


class _Look(NamedTuple):
    """What a model makes of answers; for each those of its own tokens."""

    states: list[Tensor]  # (n, hidden), after the last norm
    logits: list[Tensor]  # (n, vocab)


def _look(model: VLM, packed: PackedAnswers) -> _Look:
    """Take both from one pass."""
    caught = []  # the backbone's states, (rows, seq, hidden)
    hook = backbone_of(model).register_forward_hook(
        lambda module, args, output: caught.append(output.last_hidden_state)
    )
    try:
        logits = answer_logits(model, packed)
    finally:
        hook.remove()
    states = gather_columns(caught[0], packed.rows, packed.columns)
    return _Look(_answer_rows(states, packed), _answer_rows(logits, packed))


def _answer_rows(values: Tensor, packed: PackedAnswers) -> list[Tensor]:
    """Take values (answers, 1 + longest, d) apart: for each answer those of its own, (n, d)."""
    own = packed.mask.clone()
    own[:, 0] = True  # the last token of the prompt
    return [row[mask] for row, mask in zip(values, own, strict=True)]


def compare_layouts(packed: Sequence[Tensor], *plain: Sequence[Tensor]) -> PackingCheck:
    """Compare packed answers with the nearest of several plain layouts, and these with another."""
    difference = min(_distance(packed, rows) for rows in plain)
    floor = max(_distance(one, other) for one, other in combinations(plain, 2))
    smallest = max(SMALLEST_LIMIT, torch.finfo(packed[0].dtype).eps)
    return PackingCheck(difference, floor, max(PACKING_FLOORS * floor, smallest))


def _distance(ours: Sequence[Tensor], theirs: Sequence[Tensor]) -> float:
    """Return ‖ours − theirs‖ / ‖theirs‖ of the worst answer; NaN if one of them is NaN."""
    errors = []
    for one, other in zip(ours, theirs, strict=True):
        errors.append((one.float() - other.float()).norm() / other.float().norm())
    return float(torch.stack(errors).max())


def can_pack(model: VLM, processor: ProcessorMixin) -> bool:
    """Does this model give the same with all answers in one row? Tries it; says so if not."""
    reason = _fault_of(model, processor, packs=True)
    if reason:
        print(
            "⚠️  One row per answer instead of one per image, which is slower: packing does not "
            f"work here ({reason})."
        )
    return not reason


def can_keep_features(model: VLM, processor: ProcessorMixin) -> bool:
    """Does this model, in a row for each answer, give the same with kept image features?"""
    reason = _fault_of(model, processor, packs=False)
    if reason:
        print(
            "⚠️  Image features are computed anew in every pass: kept ones do not work here "
            f"({reason})."
        )
    return not reason


def _fault_of(model: VLM, processor: ProcessorMixin, packs: bool) -> str:
    """Return why packed answers, or kept features alone, cannot be used; '' if they can."""
    if packs and is_recurrent(model):
        return "layers of linear attention or convolutions carry one answer into the next"
    code = code_of(model, processor)
    if (code, packs) in _RIGHT:
        return ""
    try:
        check = check_packing(model, processor, packs=packs)
    except (TypeError, ValueError, RuntimeError, AttributeError, IndexError) as problem:
        return (str(problem) or repr(problem)).splitlines()[0]
    if check.ok and code is not None:
        _RIGHT.add((code, packs))
    return "" if check.ok else str(check)


def code_of(model: VLM, processor: ProcessorMixin) -> Hashable | None:
    """Return all that decides whether a mask is right, which is code and sizes, not weights.

    None for a model with a forward or a hook of its own: what that does is not known.
    """
    forwards = set()
    for module in model.modules():
        if "forward" in vars(module) or module._forward_hooks or module._forward_pre_hooks:
            return None
        forwards.add(type(module).forward)
    sizes = model.config.to_json_string()
    place = (precision_of(model), model.device, is_frozen(model))
    return (frozenset(forwards), sizes, model.config._attn_implementation, type(processor), place)
