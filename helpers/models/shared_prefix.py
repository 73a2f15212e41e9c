"""One forward for an image, a prompt and several answers to it.

A packed row holds the prompt once, and behind it all answers to it. Here a prompt of 3 tokens (one
of them stands for the image) with answers of 3 tokens and of 2, each with its end of turn:

    tokens     <image>  Cars  ?  |  There  2  <end>  |  No  <end>
    segment       0      0    0  |    1    1    1    |   2    2      0: prompt, −1: padding
    position      0      1    2  |    3    4    5    |   3    4      each goes on from the prompt

    token of …     sees the prompt   answer 1   answer 2
    the prompt          ◣               ·          ·       ◣: what is before it, and itself
    answer 1            ■               ◣          ·       ■: all of it
    answer 2            ■               ·          ◣       ·: nothing

So log-probabilities and hidden states are those of one row per answer (`pack_separately`), at the
cost of one image and one prompt. Taught in notebooks 03 and 04.

`Packer` decides once for a model whether it packs, and goes in two steps: `encode` reads prompts
and images, once for all answers to them; `pack` puts answers behind them.

Simplification: attention is computed for the whole row and then masked, so that many long answers
cost more than they must.
"""

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from itertools import combinations
from pathlib import Path
from typing import NamedTuple

import torch
from accelerate.utils import send_to_device
from PIL import Image
from torch import Tensor, nn
from torch.nn.functional import pad
from torch.nn.utils.rnn import pad_sequence
from transformers import BatchFeature, ProcessorMixin

from helpers.losses import token_logps
from helpers.runtime import precision_of

from .adapters import VLM, contiguous_head, evaluation_mode
from .caches import (
    Features,
    ImageFeatures,
    backbone_of,
    is_frozen,
    is_recurrent,
    use_features,
)
from .encoded_prompts import EncodedPrompts, encode_prompts, prompt_inputs
from .prompts import (
    TOKEN_KINDS,
    Conversation,
    ImageLists,
    answer_ids,
    render,
    render_conversation,
)

# A text, which gets its end of turn, or the tokens that were sampled, (tokens,)
AnswerInput = str | Tensor
AnswerLists = Sequence[Sequence[AnswerInput]]  # the answers to each prompt

# Packed answers may differ from plain ones by so many times as two plain layouts differ from each
# other. In 16 bits right masks gave up to 0.5, masks and positions that are wrong 6 and more (seven
# architectures of 24 layers; benchmarks/rounding.py measures a model).
PACKING_FLOORS = 2
# Where plain layouts hardly differ: rounding in fp32, and a single one in 16 bits
SMALLEST_LIMIT = 1e-4


# --- the two layouts ---


@dataclass(frozen=True)
class PackedAnswers:
    """Model inputs, and where in them the answers are.

    columns holds, for each answer, the last token of its prompt and then its own tokens, the last
    of them the end of turn; shorter answers repeat it. mask is True on the answer's own tokens.
    """

    # input_ids (rows, seq), attention_mask (rows, seq), (rows, 1, seq, seq) or one such for each
    # kind of layer, images
    inputs: Mapping[str, Tensor | Mapping[str, Tensor]]
    rows: Tensor  # (answers,) row of each answer
    columns: Tensor  # (answers, 1 + longest)
    mask: Tensor  # (answers, 1 + longest) bool
    features: Features  # of the images, if they are kept
    pooled: Tensor | None  # their mean for each answer, (answers, hidden)

    @property
    def ids(self) -> Tensor:
        """Tokens at `columns`, (answers, 1 + longest)."""
        return self.inputs["input_ids"][self.rows[:, None], self.columns]

    @property
    def seen(self) -> Tensor:
        """Which tokens see which, (rows, seq, seq), in layers that look back as far as they can."""
        mask = self.inputs["attention_mask"]
        if isinstance(mask, Mapping):
            mask = mask["full_attention"]
        if mask.ndim == 4:
            return mask[:, 0]
        length = mask.shape[1]
        causal = torch.ones(length, length, dtype=torch.bool, device=mask.device).tril()
        return causal & mask[:, None].bool()

    def order(self, answers: Sequence[int]) -> "PackedAnswers":
        """Return the same rows with the answers in another order."""
        return replace(
            self,
            rows=self.rows[answers],
            columns=self.columns[answers],
            mask=self.mask[answers],
            pooled=None if self.pooled is None else self.pooled[answers],
        )

    def to(self, device: torch.device | str, **_) -> "PackedAnswers":
        """Return a copy on `device`. What else accelerate asks for is left out."""
        moved = {}
        for field in fields(self):
            moved[field.name] = send_to_device(getattr(self, field.name), device)
        return PackedAnswers(**moved)


def pack(
    model: VLM,
    processor: ProcessorMixin,
    prompts: EncodedPrompts,
    answers: AnswerLists,
) -> PackedAnswers:
    """Put all answers to a prompt into one row; prompts are left-padded.

    `answers` may be of different numbers.
    """
    inputs, features = prompt_inputs(processor, prompts)  # (rows, width)
    width = inputs["input_ids"].shape[1]
    owners = []  # row of each answer
    columns = []  # of each answer
    tails = []  # tokens of all answers of a row, one after another
    numbers = []  # for each of these the number of its answer, from 1
    for row, texts in enumerate(answers):
        ids = [_answer_tokens(processor, text) for text in texts]
        tails.append(torch.cat(ids))
        lengths = torch.tensor([len(own) for own in ids])
        numbers.append(torch.arange(1, len(ids) + 1).repeat_interleave(lengths))
        start = width
        for length in lengths.tolist():
            owners.append(row)
            columns.append(torch.tensor([width - 1, *range(start, start + length)]))
            start += length
    # Rows get the same length: prompts have it from the left already, answers from the right here
    tail = pad_sequence(tails, batch_first=True, padding_value=processor.tokenizer.pad_token_id)
    behind = pad_sequence(numbers, batch_first=True, padding_value=-1)
    segment = torch.cat([inputs["attention_mask"] - 1, behind], 1)  # (rows, seq), see above
    inputs["input_ids"] = torch.cat([inputs["input_ids"], tail], 1)
    for name in inputs.keys() & TOKEN_KINDS:
        inputs[name] = pad(inputs[name], (0, tail.shape[1]))
    positions = _positions(backbone_of(model), inputs, segment)
    mask = _block_mask(segment)
    if "token_type_ids" in inputs:  # Gemma 3 makes a mask of them, unless it gets one
        mask |= _same_image(inputs.pop("token_type_ids"))
    inputs["position_ids"] = positions
    inputs["attention_mask"] = _masks_of_layers(model, mask, positions)
    means = prompts.mean_features()
    pooled = None if means is None else means[owners]
    return PackedAnswers(inputs, torch.tensor(owners), *_fill(columns), features, pooled)


def pack_separately(
    processor: ProcessorMixin,
    prompts: EncodedPrompts,
    answers: AnswerLists,
    padding_side: str = "right",
) -> PackedAnswers:
    """Put each answer into a row of its own, with its own copy of the image.

    This works with every architecture.
    """
    owners = [number for number, texts in enumerate(answers) for _ in texts]
    ids = [_answer_tokens(processor, text) for texts in answers for text in texts]
    alone = prompts.select(owners)
    rows = [_append_answer(row, own) for row, own in zip(alone.rows, ids, strict=True)]
    inputs, features = prompt_inputs(processor, replace(alone, rows=rows), padding_side)
    width = inputs["input_ids"].shape[1]
    # Answers end where their row ends, before any padding on the right
    columns = []
    for row, own in zip(rows, ids, strict=True):
        stop = width if padding_side == "left" else row["input_ids"].shape[1]
        columns.append(torch.arange(stop - len(own) - 1, stop))
    order = torch.arange(len(ids))
    return PackedAnswers(inputs, order, *_fill(columns), features, alone.mean_features())


def _answer_tokens(processor: ProcessorMixin, answer: AnswerInput) -> Tensor:
    """Return the tokens of an answer, (tokens,)."""
    if isinstance(answer, Tensor):
        return answer.cpu()
    return torch.tensor(answer_ids(processor, answer))


def _append_answer(prompt: BatchFeature, ids: Tensor) -> BatchFeature:
    """Return model inputs of one prompt, (1, seq), with the tokens of an answer behind it."""
    longer = BatchFeature({**prompt})
    longer["input_ids"] = torch.cat([prompt["input_ids"], ids[None]], 1)
    longer["attention_mask"] = pad(prompt["attention_mask"], (0, len(ids)), value=1)
    for name in prompt.keys() & TOKEN_KINDS:
        longer[name] = pad(prompt[name], (0, len(ids)))
    return longer


def _fill(columns: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """Return the columns of all answers, (answers, 1 + longest), and the mask of their own tokens.

    The last column of a shorter answer is repeated. Column 0 is the prompt's.
    """
    filled = pad_sequence(columns, batch_first=True, padding_value=-1)
    mask = filled >= 0
    mask[:, 0] = False
    # Columns rise along an answer, so the largest so far is the last one
    return filled.cummax(1).values, mask


# --- mask and positions of a packed row ---


def _block_mask(segment: Tensor) -> Tensor:
    """Return which tokens see which: segment (rows, seq) → (rows, 1, seq, seq), True where seen.

    >>> _block_mask(torch.tensor([[-1, 0, 0, 1, 1, 2]]))[0, 0].int()
    tensor([[1, 0, 0, 0, 0, 0],
            [0, 1, 0, 0, 0, 0],
            [0, 1, 1, 0, 0, 0],
            [0, 1, 1, 1, 0, 0],
            [0, 1, 1, 1, 1, 0],
            [0, 1, 1, 0, 0, 1]], dtype=torch.int32)
    """
    length = segment.shape[1]
    seeing = segment[:, :, None]  # a row of the mask
    seen = segment[:, None, :]  # a column
    causal = torch.ones(length, length, dtype=torch.bool).tril()
    prompt_or_own = (seen == 0) | ((seen == seeing) & (seen > 0))
    # Padding sees itself: softmax over a row in which nothing is seen is not a number
    itself = torch.eye(length, dtype=torch.bool)
    return ((causal & prompt_or_own) | itself)[:, None]


def _same_image(kinds: Tensor) -> Tensor:
    """Return which visual tokens are of one image: kinds (rows, seq), 1: visual → as `_block_mask`.

    >>> _same_image(torch.tensor([[0, 1, 1, 0, 1]]))[0, 0].int()
    tensor([[0, 0, 0, 0, 0],
            [0, 1, 1, 0, 0],
            [0, 1, 1, 0, 0],
            [0, 0, 0, 0, 0],
            [0, 0, 0, 0, 1]], dtype=torch.int32)
    """
    is_visual = kinds == 1
    is_first = is_visual & ~pad(is_visual, (1, 0))[:, :-1]
    image = is_first.cumsum(1)  # the number of each token's image, from 1
    both = is_visual[:, :, None] & is_visual[:, None, :]
    return (both & (image[:, :, None] == image[:, None, :]))[:, None]


def _masks_of_layers(model: VLM, mask: Tensor, positions: Tensor) -> Tensor | dict[str, Tensor]:
    """Return the mask that every layer gets, or one for each kind of layer that the model has.

    A layer of sliding attention (Gemma) sees nothing that is a window or more before a token.
    """
    text = model.config.get_text_config()
    if "sliding_attention" not in (getattr(text, "layer_types", None) or ()):
        return mask
    distance = positions[:, :, None] - positions[:, None, :]
    is_near = (distance < text.sliding_window)[:, None]
    return {"full_attention": mask, "sliding_attention": mask & is_near}


def _positions(backbone: nn.Module, inputs: Mapping[str, Tensor], segment: Tensor) -> Tensor:
    """Return positions (rows, seq), or (3, rows, seq) for M-RoPE; answers go on from the prompt."""
    real = (segment >= 0).long()
    if hasattr(backbone, "get_rope_index") and "image_grid_thw" in inputs:
        positions, _ = backbone.get_rope_index(
            inputs["input_ids"],
            mm_token_type_ids=inputs["mm_token_type_ids"],
            image_grid_thw=inputs["image_grid_thw"],
            attention_mask=real,
        )
    else:
        positions = (real.cumsum(1) - 1).clamp(min=0)
    # So far each answer goes on from the one before: take off the tokens of all earlier ones
    for number in range(2, int(segment.max()) + 1):
        earlier = ((segment > 0) & (segment < number)).sum(1, keepdim=True)  # (rows, 1)
        positions = positions - earlier * (segment == number)
    return positions


# --- what a pass over the answers gives ---


def hidden_states(model: VLM, packed: PackedAnswers, layers: Sequence[int] = ()) -> Tensor:
    """Return the hidden state at the last token of each answer, (answers, hidden).

    It is that after the last norm. With `layers` (0: embeddings, 1: after the first layer, …) it is
    those, (answers, len(layers), hidden).
    """
    with use_features(model, packed.features):
        output = backbone_of(model)(
            **packed.inputs, use_cache=False, output_hidden_states=bool(layers)
        )
    ends = packed.rows, packed.columns[:, -1]
    if not layers:
        return output.last_hidden_state[ends]
    return torch.stack([output.hidden_states[layer][ends] for layer in layers], dim=1)


def answer_states(model: VLM, packed: PackedAnswers) -> Tensor:
    """Return hidden states before each token of the answers, (answers, longest, hidden).

    They are those after the last norm.
    """
    with use_features(model, packed.features):
        states = backbone_of(model)(**packed.inputs, use_cache=False).last_hidden_state
    return _gather_columns(states, packed.rows, packed.columns[:, :-1])


def answer_logits(model: nn.Module, packed: PackedAnswers) -> Tensor:
    """Return logits at `packed.columns`, (answers, 1 + longest, vocab): t predicts token t + 1.

    model: also one that accelerate has wrapped. The language head runs on answers only.
    """
    wrapped = isinstance(model, nn.parallel.DistributedDataParallel)
    # Columns from the first that is needed
    first = int(packed.columns.min())
    kept = packed.inputs["input_ids"].shape[1] - first
    inner = model.module if wrapped else model
    with use_features(inner, packed.features), contiguous_head(inner):
        logits = model(**packed.inputs, use_cache=False, logits_to_keep=kept).logits
    # A loader's own forward may not know logits_to_keep, and give all
    logits = logits[:, -kept:]
    return _gather_columns(logits, packed.rows, packed.columns - first)


def answer_logps(model: VLM, packed: PackedAnswers) -> Tensor:
    """Return the log-probability of each answer's tokens, (answers, longest), in fp32.

    It is 0 after the end of an answer.
    """
    return token_logps(answer_logits(model, packed), packed.ids, packed.mask)


def _gather_columns(values: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    """Take (rows, seq, d) at rows (answers,) and columns (answers, n) → (answers, n, d)."""
    places = rows[:, None] * values.shape[1] + columns
    return values.flatten(0, 1).index_select(0, places.flatten()).unflatten(0, places.shape)


# --- does a model pack? ---


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
        with _rounded_otherwise(model):
            alone = [_look(model, separately([text])) for text in answers]
    # of each layout the rows of all answers
    states = [look.states for look in looks]
    states.append([look.states[0] for look in alone])
    logits = [look.logits for look in looks]
    logits.append([look.logits[0] for look in alone])
    checks = [_compare_layouts(*states), _compare_layouts(*logits)]
    return max(checks, key=lambda check: (not check.ok, check.difference / check.limit))


@contextlib.contextmanager
def _rounded_otherwise(model: VLM) -> Iterator[None]:
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
    states = _gather_columns(caught[0], packed.rows, packed.columns)
    return _Look(_answer_rows(states, packed), _answer_rows(logits, packed))


def _answer_rows(values: Tensor, packed: PackedAnswers) -> list[Tensor]:
    """Take values (answers, 1 + longest, d) apart: for each answer those of its own, (n, d)."""
    own = packed.mask.clone()
    own[:, 0] = True  # the last token of the prompt
    return [row[mask] for row, mask in zip(values, own, strict=True)]


def _compare_layouts(packed: Sequence[Tensor], *plain: Sequence[Tensor]) -> PackingCheck:
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
    """Does this model give the same with all answers in one row? Tries it; says so if not.

    Attention other than PyTorch's may not take a block mask, and a loader may replace the forward.
    """
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
    try:
        check = check_packing(model, processor, packs=packs)
    except (TypeError, ValueError, RuntimeError, AttributeError, IndexError) as problem:
        return (str(problem) or repr(problem)).splitlines()[0]
    return "" if check.ok else str(check)


class Packer:
    """Decides once how answers to prompts become inputs of a model, and makes them.

    packs: all answers to a prompt in one row (`pack`), or a row each (`pack_separately`); None
    tries whether the model can pack, and says so if not. keeps_features: image features are
    computed once, unless packs is False or something trains or adapts the vision tower; in the
    folder `cache`, else in memory. device: of what `pack` makes; None: the model's.
    """

    def __init__(
        self,
        model: VLM,
        processor: ProcessorMixin,
        *,
        cache: Path | None = None,
        packs: bool | None = None,
        keeps_features: bool = True,
        device: torch.device | str | None = None,
    ):
        self.model = model
        self.processor = processor
        self.packs = can_pack(model, processor) if packs is None else packs
        self.features = None
        self._device = device
        if packs is False or not keeps_features:
            return
        if is_frozen(model):
            if self.packs or can_keep_features(model, processor):
                self.features = ImageFeatures(model, processor, cache)
        else:
            print(
                "⚠️  The vision tower is trained or has an adapter: image features are computed "
                "anew in every pass."
            )

    @property
    def device(self) -> torch.device | str:
        return self.model.device if self._device is None else self._device

    def encode(self, conversations: Sequence[Conversation], images: ImageLists) -> EncodedPrompts:
        """Render and tokenise each conversation, and look up its images: once for all answers."""
        texts = []
        for messages, pictures in zip(conversations, images, strict=True):
            texts.append(render_conversation(self.processor, messages, len(pictures)))
        return encode_prompts(self.processor, texts, images, self.features)

    def pack(self, prompts: EncodedPrompts, answers: AnswerLists) -> PackedAnswers:
        """Return model inputs of all answers to each prompt, in their order, on `device`."""
        if self.packs:
            packed = pack(self.model, self.processor, prompts, answers)
        else:
            packed = pack_separately(self.processor, prompts, answers)
        return packed.to(self.device)

    def __call__(
        self,
        conversations: Sequence[Conversation],
        images: ImageLists,
        answers: AnswerLists,
    ) -> PackedAnswers:
        """Encode and pack in one step, for answers that are needed once."""
        return self.pack(self.encode(conversations, images), answers)
