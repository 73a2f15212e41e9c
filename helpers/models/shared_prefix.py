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
cost of one image and one prompt. Taught in notebooks 03 and 04. Whether a model can do so, is tried
in `helpers/models/packing_check.py`; `helpers/models/packer.py` decides by it.

Simplification: attention is computed for the whole row and then masked, so that many long answers
cost more than they must.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace

import torch
from accelerate.utils import send_to_device
from torch import Tensor, nn
from torch.nn.functional import pad
from torch.nn.utils.rnn import pad_sequence
from transformers import BatchFeature, ProcessorMixin

from helpers.losses import token_logps

from .adapters import VLM, contiguous_head
from .caches import (
    Features,
    backbone_of,
    use_features,
)
from .encoded_prompts import EncodedPrompts, prompt_inputs
from .prompts import (
    TOKEN_KINDS,
    answer_ids,
)

# A text, which gets its end of turn, or the tokens that were sampled, (tokens,)
AnswerInput = str | Tensor
AnswerLists = Sequence[Sequence[AnswerInput]]  # the answers to each prompt

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
    places = positions if positions.ndim == 2 else positions[0]
    inputs["attention_mask"] = layer_masks(model, mask, places, places)
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


def layer_masks(
    model: VLM,
    mask: Tensor,
    seeing: Tensor,
    seen: Tensor,
) -> Tensor | dict[str, Tensor]:
    """Return the mask that every layer gets, or one for each kind of layer that the model has.

    mask: (rows, 1, tokens, columns); seeing: positions of the tokens, (rows, tokens); seen: of the
    columns, (rows, columns). A layer of sliding attention (Gemma) sees nothing that is a window or
    more before a token.
    """
    text = model.config.get_text_config()
    if "sliding_attention" not in (getattr(text, "layer_types", None) or ()):
        return mask
    distance = seeing[:, :, None] - seen[:, None, :]
    is_near = (distance < text.sliding_window)[:, None]
    return {"full_attention": mask, "sliding_attention": mask & is_near}


def prompt_positions(
    backbone: nn.Module,
    inputs: Mapping[str, Tensor],
    real: Tensor | None = None,
) -> Tensor:
    """Return positions (rows, seq), or (3, rows, seq) for M-RoPE.

    real: which tokens are not padding, (rows, seq); None: as the attention mask says.
    """
    real = inputs["attention_mask"] if real is None else real
    if hasattr(backbone, "get_rope_index") and "image_grid_thw" in inputs:
        positions, _ = backbone.get_rope_index(
            inputs["input_ids"],
            mm_token_type_ids=inputs["mm_token_type_ids"],
            image_grid_thw=inputs["image_grid_thw"],
            attention_mask=real,
        )
        return positions
    return (real.cumsum(1) - 1).clamp(min=0)


def _positions(backbone: nn.Module, inputs: Mapping[str, Tensor], segment: Tensor) -> Tensor:
    """Return positions as `prompt_positions` does; answers go on from the prompt."""
    positions = prompt_positions(backbone, inputs, (segment >= 0).long())
    # So far each answer goes on from the one before: take off the tokens of all earlier ones
    for number in range(2, int(segment.max()) + 1):
        earlier = ((segment > 0) & (segment < number)).sum(1, keepdim=True)  # (rows, 1)
        positions = positions - earlier * (segment == number)
    return positions


# --- what a pass over the answers gives ---


def hidden_states(model: VLM, packed: PackedAnswers, layers: Sequence[int] = ()) -> Tensor:
    """Return the hidden state at each token of the answers, (answers, longest, hidden).

    It is that after the last norm. With `layers` (0: embeddings, 1: after the first layer, …) it is
    those, (answers, longest, len(layers), hidden). A shorter answer repeats its last token, where
    `packed.mask` is False.
    """
    with use_features(model, packed.features):
        output = backbone_of(model)(
            **packed.inputs, use_cache=False, output_hidden_states=bool(layers)
        )
    own = packed.rows, packed.columns[:, 1:]
    if not layers:
        return gather_columns(output.last_hidden_state, *own)
    found = [gather_columns(output.hidden_states[layer], *own) for layer in layers]
    return torch.stack(found, dim=2)


def answer_states(model: VLM, packed: PackedAnswers) -> Tensor:
    """Return hidden states before each token of the answers, (answers, longest, hidden).

    They are those after the last norm.
    """
    with use_features(model, packed.features):
        states = backbone_of(model)(**packed.inputs, use_cache=False).last_hidden_state
    return gather_columns(states, packed.rows, packed.columns[:, :-1])


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
    return gather_columns(logits, packed.rows, packed.columns - first)


def answer_logps(model: VLM, packed: PackedAnswers) -> Tensor:
    """Return the log-probability of each answer's tokens, (answers, longest), in fp32.

    It is 0 after the end of an answer.
    """
    return token_logps(answer_logits(model, packed), packed.ids, packed.mask)


def gather_columns(values: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    """Take (rows, seq, d) at rows (answers,) and columns (answers, n) → (answers, n, d)."""
    places = rows[:, None] * values.shape[1] + columns
    return values.flatten(0, 1).index_select(0, places.flatten()).unflatten(0, places.shape)
