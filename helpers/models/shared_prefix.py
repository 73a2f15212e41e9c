"""One forward for an image, a prompt and several answers to it.

    [image + prompt | answer 0 | answer 1 | …]

Answers see the image, the prompt and themselves, never each other: a block mask hides the others, and
positions go on from the prompt for each of them. Log-probabilities and hidden states are those of one
row per answer (`plain`), at the cost of one image and one prompt. Taught in notebooks 03 and 04.

`Packer` decides once for a model whether it packs, and goes in two steps: `encode` reads prompts and images, once
for all answers to them; `pack` puts answers behind them.

Simplification: attention is computed for the whole row and then masked, so that many long answers
cost more than they must.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor
from torch.nn.functional import pad
from torch.nn.utils.rnn import pad_sequence
from transformers import BatchFeature, ProcessorMixin

from helpers.losses import token_logps

from .adapters import VLM
from .caches import (
    Features,
    ImageFeatures,
    backbone_of,
    concatenate_features,
    images_hash,
    is_frozen,
    use_features,
)
from .prompts import Conversation, answer_ids, render, render_conversation, tokenize

RenderedPrompt = str  # a prompt as `prompts.render_conversation` writes it
AnswerInput = (
    str | Tensor
)  # a text, which gets its end of turn, or the tokens that were sampled, (tokens,)
PACKING_TOLERANCE = (
    2e-2  # relative difference that rounding in 16 bits explains; a wrong mask gives > 0.2
)


@dataclass(frozen=True)
class EncodedPrompts:
    """Prompts and their images as the model reads them: made once, for any answers that will follow."""

    texts: Sequence[RenderedPrompt]
    image_hashes: Sequence[str]  # `images_hash` of the images of each prompt
    rows: Sequence[
        BatchFeature
    ]  # model inputs of each prompt, (1, seq); without pixels if there are features
    features: Sequence[Features]  # of the images of each prompt; empty if none are kept

    def __len__(self) -> int:
        return len(self.texts)

    def select(self, numbers: Sequence[int]) -> "EncodedPrompts":
        """The prompts with these numbers, in this order."""
        return EncodedPrompts(
            texts=[self.texts[n] for n in numbers],
            image_hashes=[self.image_hashes[n] for n in numbers],
            rows=[self.rows[n] for n in numbers],
            features=[self.features[n] for n in numbers],
        )

    @classmethod
    def concatenate(cls, parts: Sequence["EncodedPrompts"]) -> "EncodedPrompts":
        """The prompts of all parts, one part after the other."""
        return cls(
            texts=[text for part in parts for text in part.texts],
            image_hashes=[image_hash for part in parts for image_hash in part.image_hashes],
            rows=[row for part in parts for row in part.rows],
            features=[features for part in parts for features in part.features],
        )


def encode_prompts(
    processor: ProcessorMixin,
    prompts: Sequence[RenderedPrompt],
    images: Sequence[Sequence[Image.Image]],
    features: ImageFeatures | None = None,
) -> EncodedPrompts:
    """Hash the images of each prompt and tokenise each prompt with them, equal ones once.

    With `features`, images that were seen before cost neither the processor nor the vision tower.
    """
    hashes = [images_hash(pictures) for pictures in images]
    if features is not None:
        pairs = features.encode(prompts, images, hashes)
        rows, kept = [inputs for inputs, _ in pairs], [own for _, own in pairs]
        return EncodedPrompts(list(prompts), hashes, rows, kept)
    known: dict[tuple[str, str], BatchFeature] = {}
    for prompt, image_hash, pictures in zip(prompts, hashes, images, strict=True):
        if (prompt, image_hash) not in known:
            known[prompt, image_hash] = tokenize(processor, [prompt], [pictures])
    rows = [known[key] for key in zip(prompts, hashes, strict=True)]
    return EncodedPrompts(list(prompts), hashes, rows, [{} for _ in rows])


def prompt_inputs(
    processor: ProcessorMixin, prompts: EncodedPrompts, padding_side: str = "left"
) -> tuple[BatchFeature, Features, Tensor | None]:
    """Model inputs of all prompts together, and if features are kept, these and their mean, (prompts, hidden)."""
    paddings = {
        "input_ids": processor.tokenizer.pad_token_id,
        "attention_mask": 0,
        "mm_token_type_ids": 0,
    }
    together = BatchFeature()
    for name in dict.fromkeys(name for row in prompts.rows for name in row):
        values = [row[name] for row in prompts.rows if name in row]
        together[name] = _pad_and_concatenate(values, paddings.get(name, 0), padding_side)
    kept = concatenate_features(prompts.features)
    if not kept:
        return together, {}, None
    together["pixel_values"] = torch.zeros(
        1
    )  # says that there are images; `use_features` says what they are
    name = "pooled" if "pooled" in kept else "pooled.all"
    no_image = kept[name].new_zeros(kept[name].shape[-1])
    means = [own[name].flatten(0, -2).mean(0) if own else no_image for own in prompts.features]
    return together, kept, torch.stack(means)


def _pad_and_concatenate(values: Sequence[Tensor], padding: int, side: str) -> Tensor:
    """One tensor of several, which may differ in all sizes but the first: in tokens, or in the tiles of an image."""
    sizes = [max(size) for size in zip(*(value.shape[1:] for value in values), strict=True)]
    padded = []
    for value in values:
        missing = [size - own for size, own in zip(sizes, value.shape[1:], strict=True)]
        left_and_right = [(n, 0) if side == "left" and value.ndim == 2 else (0, n) for n in missing]
        amounts = [
            n for pair in reversed(left_and_right) for n in pair
        ]  # as `pad` wants them, last size first
        padded.append(pad(value, amounts, value=padding))
    return torch.cat(padded)


@dataclass(frozen=True)
class PackedAnswers:
    """Model inputs, and where in them the answers are.

    columns holds, for each answer, the last token of its prompt and then its own tokens, the last of
    them the end of turn; shorter answers repeat it. mask is True on the answer's own tokens.
    """

    inputs: BatchFeature  # input_ids (rows, seq), attention_mask (rows, 1, seq, seq) or (rows, seq), images
    rows: Tensor  # (answers,) row of each answer
    columns: Tensor  # (answers, 1 + longest)
    mask: Tensor  # (answers, 1 + longest) bool
    features: Features = field(default_factory=dict)  # of the images, if they are kept
    pooled: Tensor | None = None  # their mean for each answer, (answers, hidden)

    @property
    def ids(self) -> Tensor:
        """Tokens at `columns`, (answers, 1 + longest)."""
        return self.inputs["input_ids"][self.rows[:, None], self.columns]

    def order(self, answers: Sequence[int]) -> "PackedAnswers":
        """The same rows with the answers in another order."""
        chosen = {name: getattr(self, name)[answers] for name in ("rows", "columns", "mask")}
        return replace(self, **chosen, pooled=None if self.pooled is None else self.pooled[answers])

    def to(self, device: torch.device | str, **kwargs) -> "PackedAnswers":
        inputs = BatchFeature({name: value.to(device) for name, value in self.inputs.items()})
        features = {name: value.to(device) for name, value in self.features.items()}
        pooled = None if self.pooled is None else self.pooled.to(device)
        return PackedAnswers(
            inputs, *(t.to(device) for t in (self.rows, self.columns, self.mask)), features, pooled
        )


def pack(
    model: VLM,
    processor: ProcessorMixin,
    prompts: EncodedPrompts,
    answers: Sequence[Sequence[AnswerInput]],
) -> PackedAnswers:
    """All answers to a prompt in one row; prompts are left-padded. `answers` may be of different numbers."""
    inputs, kept, pooled = prompt_inputs(processor, prompts)
    width, padding = inputs["input_ids"].shape[1], processor.tokenizer.pad_token_id
    tails, segments, columns = [], [], []
    for row in answers:
        parts = [_answer_ids(processor, answer) for answer in row]
        tails.append(torch.cat(parts))
        segments.append(
            torch.cat([torch.full((len(part),), number) for number, part in enumerate(parts, 1)])
        )
        start = width
        for part in parts:
            columns.append(torch.tensor([width - 1, *range(start, start + len(part))]))
            start += len(part)
    tail = pad_sequence(tails, batch_first=True, padding_value=padding)
    after = pad_sequence(segments, batch_first=True, padding_value=-1)
    segment = torch.cat(
        [inputs["attention_mask"] - 1, after], 1
    )  # 0: prompt, k: answer k − 1, −1: nothing
    inputs["input_ids"] = torch.cat([inputs["input_ids"], tail], 1)
    if "mm_token_type_ids" in inputs:
        inputs["mm_token_type_ids"] = pad(inputs["mm_token_type_ids"], (0, tail.shape[1]))
    inputs["position_ids"] = _positions(backbone_of(model), inputs, segment)
    inputs["attention_mask"] = _block_mask(segment)
    owners = torch.tensor([row for row, texts in enumerate(answers) for _ in texts])
    return PackedAnswers(
        inputs, owners, *_columns(columns), kept, None if pooled is None else pooled[owners]
    )


def pack_separately(
    processor: ProcessorMixin,
    prompts: EncodedPrompts,
    answers: Sequence[Sequence[AnswerInput]],
    padding_side: str = "right",
) -> PackedAnswers:
    """Put each answer in a row of its own, with its own copy of the image: works with every architecture."""
    numbers = [number for number, row in enumerate(answers) for _ in row]
    ids = [_answer_ids(processor, answer) for row in answers for answer in row]
    alone = prompts.select(numbers)
    lengths = [row["input_ids"].shape[1] for row in alone.rows]
    rows = [_append_answer(row, own) for row, own in zip(alone.rows, ids, strict=True)]
    inputs, kept, pooled = prompt_inputs(processor, replace(alone, rows=rows), padding_side)
    width, columns = inputs["input_ids"].shape[1], []
    for length, own in zip(lengths, ids, strict=True):
        stop = width if padding_side == "left" else length + len(own)
        columns.append(torch.arange(stop - len(own) - 1, stop))
    return PackedAnswers(inputs, torch.arange(len(ids)), *_columns(columns), kept, pooled)


def _append_answer(prompt: BatchFeature, ids: Tensor) -> BatchFeature:
    """Model inputs of one prompt, (1, seq), with the tokens of an answer, (tokens,), behind it."""
    tails = {
        "input_ids": ids,
        "attention_mask": torch.ones_like(ids),
        "mm_token_type_ids": torch.zeros_like(ids),
    }
    longer = {
        name: torch.cat([prompt[name], tail[None]], 1)
        for name, tail in tails.items()
        if name in prompt
    }
    return BatchFeature({**prompt, **longer})


def _columns(columns: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """Columns of each answer, the last one repeated up to the longest, and the mask of its own tokens."""
    longest = max(len(c) for c in columns)
    filled = torch.stack([torch.cat([c, c[-1:].expand(longest - len(c))]) for c in columns])
    lengths = torch.tensor([len(c) for c in columns])
    places = torch.arange(longest).expand_as(filled)
    return filled, (places > 0) & (places < lengths[:, None])


def _answer_ids(processor: ProcessorMixin, text: AnswerInput) -> Tensor:
    if isinstance(text, Tensor):
        return text.cpu()
    return torch.tensor(answer_ids(processor, text))


def _block_mask(segment: Tensor) -> Tensor:
    """(rows, seq) → (rows, 1, seq, seq), True where a token sees another; padding sees itself, or a row is empty."""
    sees, seen = segment[:, :, None], segment[:, None, :]
    causal = torch.ones(segment.shape[1], segment.shape[1], dtype=torch.bool).tril()
    own = torch.eye(segment.shape[1], dtype=torch.bool)
    return ((causal & (seen >= 0) & ((seen == 0) | (seen == sees))) | own)[:, None]


def _positions(model: torch.nn.Module, inputs: BatchFeature, segment: Tensor) -> Tensor:
    """Positions (rows, seq), or (3, rows, seq) for M-RoPE, that start anew after the prompt for each answer."""
    real = (segment >= 0).long()
    if hasattr(model, "get_rope_index") and "image_grid_thw" in inputs:
        positions, _ = model.get_rope_index(
            inputs["input_ids"],
            mm_token_type_ids=inputs["mm_token_type_ids"],
            image_grid_thw=inputs["image_grid_thw"],
            attention_mask=real,
        )
    else:
        positions = (real.cumsum(1) - 1).clamp(min=0)
    earlier = torch.zeros_like(segment)  # tokens of the answers before this one
    for k in range(2, int(segment.max()) + 1):
        before = ((segment > 0) & (segment < k)).sum(1, keepdim=True)
        earlier = torch.where(segment == k, before, earlier)
    return positions - earlier


def hidden_states(model: VLM, packed: PackedAnswers, layers: Sequence[int] = ()) -> Tensor:
    """Hidden state at the last token of each answer, (answers, hidden), after the last norm.

    With `layers` (0: embeddings, 1: after the first layer, …) those, (answers, len(layers), hidden).
    """
    ends = packed.columns[:, -1]
    with use_features(model, packed.features):
        output = backbone_of(model)(
            **packed.inputs, use_cache=False, output_hidden_states=bool(layers)
        )
    if not layers:
        return output.last_hidden_state[packed.rows, ends]
    return torch.stack([output.hidden_states[layer][packed.rows, ends] for layer in layers], dim=1)


def answer_logits(model: torch.nn.Module, packed: PackedAnswers) -> Tensor:
    """Logits at `packed.columns`, (answers, 1 + longest, vocab): those at t predict token t + 1.

    model: also one that accelerate has wrapped. The language head runs on answers only.
    """
    width, first = packed.inputs["input_ids"].shape[1], int(packed.columns.min())
    with use_features(unwrap(model), packed.features):
        logits = model(**packed.inputs, use_cache=False, logits_to_keep=width - first).logits
    logits = logits[:, first - width :]  # a loader's own forward may not know logits_to_keep
    return _gather_columns(logits, packed.rows, packed.columns - first)


def answer_states(model: VLM, packed: PackedAnswers) -> Tensor:
    """Hidden states before each token of the answers, after the last norm, (answers, longest, hidden)."""
    with use_features(model, packed.features):
        states = backbone_of(model)(**packed.inputs, use_cache=False).last_hidden_state
    return _gather_columns(states, packed.rows, packed.columns[:, :-1])


def _gather_columns(values: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    """(rows, seq, d) at rows (answers,) and columns (answers, n) → (answers, n, d)."""
    places = rows[:, None] * values.shape[1] + columns
    return values.flatten(0, 1).index_select(0, places.flatten()).unflatten(0, places.shape)


def unwrap(model: torch.nn.Module) -> VLM:
    """The model that a data-parallel wrapper holds."""
    return model.module if isinstance(model, torch.nn.parallel.DistributedDataParallel) else model


def answer_logps(model: VLM, packed: PackedAnswers) -> Tensor:
    """Log-probability of each answer's tokens, (answers, longest), in fp32; 0 after its end."""
    return token_logps(answer_logits(model, packed), packed.ids, packed.mask)


@torch.no_grad()
def packing_error(
    model: VLM,
    processor: ProcessorMixin,
    prompt: RenderedPrompt,
    images: Sequence[Image.Image],
    answers: Sequence[str],
) -> float:
    """Largest difference of packed hidden states and logits from the plain ones, relative to their norm.

    The packed ones are computed with kept image features if the vision tower is frozen.
    """
    was_training = model.training
    model.eval()
    features = ImageFeatures(model, processor) if images and is_frozen(model) else None
    kept = encode_prompts(processor, [prompt], [images], features)
    plain = encode_prompts(processor, [prompt], [images])
    layouts = [
        pack(model, processor, kept, [answers]),
        pack_separately(processor, plain, [answers]),
    ]
    layouts = [packed.to(model.device) for packed in layouts]
    states = [hidden_states(model, p).float() for p in layouts]
    logits = [answer_logits(model, p)[:, -1].float() for p in layouts]
    model.train(was_training)
    return max(float(((a - b).norm(dim=1) / b.norm(dim=1)).max()) for a, b in (states, logits))


def can_pack(model: VLM, processor: ProcessorMixin) -> bool:
    """Does this model give the same with all answers in one row? Tries it; says so if not.

    Attention other than PyTorch's may not take a block mask, and a loader may replace the forward.
    """
    image = Image.effect_noise((224, 224), 80).convert("RGB")
    try:
        error = packing_error(
            model,
            processor,
            render(processor, "What is it?"),
            [image],
            ["No.", "It is a cat.", "A"],
        )
    except (TypeError, ValueError, RuntimeError, AttributeError, IndexError) as problem:
        error, reason = float("inf"), str(problem).splitlines()[0]
    else:
        reason = f"its figures differ by {error:.0%}"
    if error > PACKING_TOLERANCE:
        print(
            f"⚠️  One row per answer instead of one per image, which is slower: packing does not work here ({reason})."
        )
    return error <= PACKING_TOLERANCE


class Packer:
    """Decides once how answers to prompts become inputs of a model, and makes them.

    packs: all answers to a prompt in one row (`pack`), or a row each (`pack_separately`); None tries whether the
    model can pack, and says so if not. keeps_features: image features are computed once, where the model packs and
    nothing trains or adapts its vision tower; in the folder `cache`, else in memory. device: of what `pack` makes;
    None: the model's.
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
        self.model, self.processor = model, processor
        self.packs = can_pack(model, processor) if packs is None else packs
        self.features: ImageFeatures | None = None
        self._device = device
        if not self.packs or not keeps_features:
            return
        if is_frozen(model):
            self.features = ImageFeatures(model, processor, cache)
        else:
            print(
                "⚠️  The vision tower is trained or has an adapter: image features are computed anew in every pass."
            )

    @property
    def device(self) -> torch.device | str:
        return self.model.device if self._device is None else self._device

    def encode(
        self, conversations: Sequence[Conversation], images: Sequence[Sequence[Image.Image]]
    ) -> EncodedPrompts:
        """Render and tokenise each conversation, and look up its images: once for all answers to it."""
        pairs = zip(conversations, images, strict=True)
        texts = [
            render_conversation(self.processor, messages, len(pictures))
            for messages, pictures in pairs
        ]
        return encode_prompts(self.processor, texts, images, self.features)

    def pack(
        self, prompts: EncodedPrompts, answers: Sequence[Sequence[AnswerInput]]
    ) -> PackedAnswers:
        """Model inputs of all answers to each prompt, in their order, on `device`."""
        if self.packs:
            packed = pack(self.model, self.processor, prompts, answers)
        else:
            packed = pack_separately(self.processor, prompts, answers)
        return packed.to(self.device)

    def __call__(
        self,
        conversations: Sequence[Conversation],
        images: Sequence[Sequence[Image.Image]],
        answers: Sequence[Sequence[AnswerInput]],
    ) -> PackedAnswers:
        """`encode` and `pack` in one step, for answers that are needed once."""
        return self.pack(self.encode(conversations, images), answers)
