"""Answers token by token: several to a prompt, which is read and kept once for all of them.

The cache has one row a prompt. Behind the prompt stand the tokens of all its answers as they came,
and a mask shows each token the prompt and what its own answer has said. With a prompt of 3 tokens
and two answers, after two steps:

    cache        p p p | 1 2 | 1 2      whose token a column is
    token of 1   ■ ■ ■ | ■ · | ■ ·      what the next token of answer 1 sees
    token of 2   ■ ■ ■ | · ■ | · ■

It is the layout of `helpers/models/shared_prefix.py`, one token at a time: the same masks and
positions, the stock attention and the stock cache. An answer that has come to its end leaves, and
so does a prompt whose answers have all ended.

Every token is chosen by a random number of its own, drawn before the first step: an answer depends
neither on which others go on beside it nor on how many are asked at once. `generate` of
transformers, given the same numbers (`DrawnTokens`), chooses the same tokens; it is used for models
that cannot share a prompt (`helpers/models/decoding_check.py`). Taught in notebooks 01 and 05.

Simplification: attention is computed for the answers of one prompt together and then masked, so
that very many very long answers cost more than they must.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from accelerate.utils import send_to_device
from torch import Tensor
from torch.nn.functional import pad
from transformers import (
    DynamicCache,
    GenerationConfig,
    LogitsProcessor,
    LogitsProcessorList,
    ProcessorMixin,
)

from .adapters import VLM, autocast, base_of, contiguous_head
from .caches import Features, backbone_of, use_features
from .encoded_prompts import EncodedPrompts, prompt_inputs
from .loading import stop_ids
from .prompts import image_token_id
from .shared_prefix import layer_masks, prompt_positions

BLOCK = 256  # tokens of the vocabulary that are summed up together, see `choose_tokens`
PROMPT = -1  # whose token a column of the cache is: the prompt's
PADDING = -2  # nobody's
# The cache is tidied up once more of its columns are of answers that have ended than are not
DEAD_SHARE = 0.5


@dataclass(frozen=True)
class DecodingSettings:
    """How an answer is generated: greedily at temperature 0, else sampled.

    `top_p`: of the nucleus (Holtzman et al. 2020).
    """

    temperature: float = 0.0
    top_p: float = 1.0
    max_new_tokens: int = 64
    seed: int = 0


def draw_numbers(prompts: int, group_size: int, settings: DecodingSettings) -> Tensor:
    """Return a random number in [0, 1) for each token to come, (prompts, group_size, tokens).

    The caller's random numbers are left alone. Those of the first prompts do not depend on how many
    there are.
    """
    generator = torch.Generator().manual_seed(settings.seed)
    return torch.rand(prompts, group_size, settings.max_new_tokens, generator=generator)


def banned_tokens(processor: ProcessorMixin) -> list[int]:
    """Return the tokens that stand for images, videos and sounds, which no answer may hold."""
    ids = {image_token_id(processor)}
    for name in ("image_token_id", "video_token_id", "audio_token_id"):
        ids.add(getattr(processor, name, None))
    return sorted(ids - {None})


# --- which token ---


def choose_tokens(
    logits: Tensor,
    numbers: Tensor,
    temperature: float,
    top_p: float = 1.0,
) -> Tensor:
    """Choose one token for each row: logits (rows, vocab), numbers (rows,) in [0, 1) → (rows,).

    The likeliest at temperature 0. Else the first token up to which the probabilities, in the order
    of the vocabulary, sum up to more than the row's number (inverse transform sampling). They are
    summed in blocks first, so that no probability is too small beside the sum to count.
    """
    if temperature == 0:
        return logits.argmax(-1)
    # softmax without its denominator, which the sums below make up for
    scaled = logits.float() / temperature
    weights = (scaled - scaled.amax(-1, keepdim=True)).exp()
    if top_p < 1:
        weights = keep_nucleus(weights, top_p)
    # (rows, blocks, BLOCK), filled up with what is never chosen
    missing = -weights.shape[-1] % BLOCK
    blocks = pad(weights, (0, missing)).unflatten(-1, (-1, BLOCK))
    rows = torch.arange(len(weights), device=weights.device)
    sums = blocks.sum(-1).double().cumsum(-1)
    target = numbers.to(sums) * sums[:, -1]
    # the block first, and then the token in it
    block, within = _first_above(sums, target)
    token, _ = _first_above(blocks[rows, block].double().cumsum(-1), within)
    return block * BLOCK + token


def _first_above(sums: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    """Return where rising sums (rows, n) first exceed target (rows,), and what is left of it.

    A place whose own part is 0 is never returned, whatever rounding did to the target.
    """
    last = sums[:, -1]
    below_last = torch.nextafter(last, torch.zeros_like(last))
    target = torch.minimum(target, below_last)[:, None]
    place = torch.searchsorted(sums, target, right=True)
    before = pad(sums, (1, 0)).gather(1, place)
    return place[:, 0], (target - before)[:, 0]


def keep_nucleus(weights: Tensor, top_p: float) -> Tensor:
    """Return weights (rows, vocab) with 0 outside the nucleus.

    It is made of the likeliest tokens whose probabilities first reach top_p (Holtzman et al. 2020,
    arXiv 1904.09751).
    """
    ranked, order = weights.sort(-1, descending=True)
    # the weight of all that is likelier than a token
    likelier = ranked.cumsum(-1) - ranked
    outside = likelier >= top_p * ranked.sum(-1, keepdim=True)
    outside[:, 0] = False
    return weights.masked_fill(torch.zeros_like(outside).scatter(-1, order, outside), 0)


# --- token by token ---


class AnswerDecoder:
    """Reads prompts once, and then a token of each of their answers a step.

    `logits` are those of the next tokens, (rows, slots, vocab). `rows` says which prompt a row is,
    `slots` which of its answers a slot is; a slot that is left over has the number `group_size`.
    """

    def __init__(
        self,
        model: VLM,
        inputs: Mapping[str, Tensor],
        features: Features,
        group_size: int,
    ):
        self.model = base_of(model)
        prompts = len(inputs["input_ids"])
        device = inputs["input_ids"].device
        self.group_size = group_size
        self.rows = torch.arange(prompts, device=device)
        self.slots = torch.arange(group_size, device=device).expand(prompts, -1)
        mask = inputs["attention_mask"]
        # Whose token each column of the cache is, and where it stands in its text, (rows, columns)
        self.owners = torch.where(mask.bool(), PROMPT, PADDING)
        self.places = (mask.cumsum(1) - 1).clamp(min=0)
        # Position of the next token, (rows,), and with M-RoPE the same three times, (3, rows)
        positions = prompt_positions(backbone_of(model), inputs)
        self.position = positions[..., -1] + 1
        # Without the model's configuration every layer keeps all: windows are a matter of masks
        self.cache = DynamicCache()
        given = {**inputs, "position_ids": positions}
        with use_features(model, features), contiguous_head(model), autocast(model.device):
            output = self.model(
                **given, past_key_values=self.cache, use_cache=True, logits_to_keep=1
            )
        # A loader's own forward may not know logits_to_keep, and give all
        self.logits = output.logits[:, -1:].expand(-1, group_size, -1)

    def step(self, tokens: Tensor) -> None:
        """Read the next token of each answer, (rows, slots)."""
        # every answer of a row has said as many tokens, so all new ones stand in one place
        own = self.slots
        place = self.places.amax(1, keepdim=True) + 1
        self.owners = torch.cat([self.owners, own], 1)
        self.places = torch.cat([self.places, place.expand_as(own)], 1)
        # the prompt, and what its own answer has said
        columns = self.owners[:, None]
        seen = (columns == PROMPT) | (columns == own[:, :, None])  # (rows, slots, columns)
        with autocast(self.model.device):
            output = self.model(
                input_ids=tokens,
                attention_mask=layer_masks(self.model, seen[:, None], place, self.places),
                position_ids=self.position[..., None].expand(*self.position.shape, own.shape[1]),
                past_key_values=self.cache,
                use_cache=True,
            )
        self.logits = output.logits
        self.position = self.position + 1

    def leave(self, goes_on: Tensor) -> Tensor:
        """Let the answers leave that do not go on, and return where the others stood.

        goes_on: (rows, slots) bool. Returned are places among the old rows and slots laid out one
        after another, (rows, slots), of those that there are now.
        """
        old_slots = self.slots.shape[1]
        kept = goes_on.any(1).nonzero().flatten()
        # Those that go on move to the left; the longest row decides how many slots there are
        goes_on = goes_on[kept]
        width = int(goes_on.sum(1).max())
        order = goes_on.int().argsort(dim=1, descending=True, stable=True)[:, :width]
        slots = self.slots[kept].gather(1, order)
        self.slots = slots.masked_fill(~goes_on.gather(1, order), self.group_size)
        # prompts whose answers have all ended
        if len(kept) < len(self.rows):
            self.rows = self.rows[kept]
            self.owners = self.owners[kept]
            self.places = self.places[kept]
            self.position = self.position[..., kept]
            self.cache.batch_select_indices(kept)
        self._tidy_up()
        return kept[:, None] * old_slots + order

    def _tidy_up(self) -> None:
        """Drop the columns of answers that have ended, once they are most of them."""
        alive = (self.owners[:, :, None] == self.slots[:, None, :]).any(2)
        alive &= self.owners < self.group_size
        needed = (self.owners == PROMPT) | alive
        most = int(needed.sum(1).max())
        if most > DEAD_SHARE * needed.shape[1]:
            return
        # In their order, with some that nobody needs where a row has fewer than another
        chosen = needed.int().argsort(dim=1, descending=True, stable=True)[:, :most]
        is_needed = needed.gather(1, chosen)
        self.owners = self.owners.gather(1, chosen).masked_fill(~is_needed, PADDING)
        self.places = self.places.gather(1, chosen)
        for layer in self.cache.layers:
            # (rows, heads, columns, d)
            layer.keys = _take_columns(layer.keys, chosen)
            layer.values = _take_columns(layer.values, chosen)


def _take_columns(states: Tensor, columns: Tensor) -> Tensor:
    """Take columns (rows, n) of states (rows, heads, seq, d) → (rows, heads, n, d)."""
    index = columns[:, None, :, None]
    return states.gather(2, index.expand(-1, states.shape[1], -1, states.shape[3]))


def decode_together(
    model: VLM,
    processor: ProcessorMixin,
    prompts: EncodedPrompts,
    numbers: Tensor,
    how: DecodingSettings,
) -> list[Tensor]:
    """Return the tokens of each answer, those to one prompt together: up to its end, and with it.

    numbers: `draw_numbers`, (prompts, group_size, tokens).
    """
    device = model.device
    inputs, features = send_to_device(prompt_inputs(processor, prompts), device)
    count, group_size = numbers.shape[:2]
    longest = numbers.shape[2]
    decoder = AnswerDecoder(model, inputs, features, group_size)
    # One slot more, for what is left over
    found = torch.zeros(count, group_size + 1, longest, dtype=torch.long, device=device)
    lengths = torch.zeros(count, group_size + 1, dtype=torch.long, device=device)
    numbers = pad(numbers, (0, 0, 0, 1)).to(device)
    ends = torch.tensor(stop_ids(model), device=device)
    banned = torch.tensor(banned_tokens(processor), device=device)
    for number in range(longest):
        rows, slots = decoder.rows[:, None], decoder.slots
        # The next token of every answer
        logits = decoder.logits.flatten(0, 1).index_fill(1, banned, -torch.inf)
        drawn = numbers[rows, slots, number].flatten()
        tokens = choose_tokens(logits, drawn, how.temperature, how.top_p).view_as(slots)
        found[rows, slots, number] = tokens
        lengths[rows, slots] = number + 1
        # Who has come to an end is not asked any more
        goes_on = (slots < group_size) & ~torch.isin(tokens, ends)
        if number + 1 == longest or not goes_on.any():
            break
        if not goes_on.all():
            tokens = tokens.flatten()[decoder.leave(goes_on)]
        decoder.step(tokens)
    # only as far as each answer went
    ids = []
    for answers, own_lengths in zip(found.cpu(), lengths.tolist(), strict=True):
        ids += [answers[slot, : own_lengths[slot]] for slot in range(group_size)]
    return ids


# --- the same with transformers' `generate` ---


class DrawnTokens(LogitsProcessor):
    """Lets `generate` choose as `choose_tokens` does: it leaves one token possible."""

    def __init__(self, numbers: Tensor, start: int, settings: DecodingSettings):
        """numbers: (rows, tokens); start: tokens of the prompts."""
        self.numbers = numbers
        self.start = start
        self.settings = settings

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        numbers = self.numbers[:, input_ids.shape[1] - self.start]
        how = self.settings
        chosen = choose_tokens(scores, numbers, how.temperature, how.top_p)
        return torch.full_like(scores, -torch.inf).scatter(1, chosen[:, None], 0.0)


def decode_with_generate(
    model: VLM,
    processor: ProcessorMixin,
    prompts: EncodedPrompts,
    numbers: Tensor,
    how: DecodingSettings,
) -> list[Tensor]:
    """Return what `decode_together` does, with a prompt of its own for each answer."""
    count, group_size = numbers.shape[:2]
    alone = prompts.select([n for n in range(count) for _ in range(group_size)])
    inputs, features = send_to_device(prompt_inputs(processor, alone), model.device)
    start = inputs["input_ids"].shape[1]
    # a row for each answer
    flat = numbers.flatten(0, 1).to(model.device)
    ends = stop_ids(model)
    config = GenerationConfig(
        max_new_tokens=numbers.shape[2],
        do_sample=False,
        eos_token_id=ends,
        pad_token_id=processor.tokenizer.pad_token_id,
        suppress_tokens=banned_tokens(processor),
    )
    with use_features(model, features), contiguous_head(model):
        output = model.generate(
            **inputs,
            generation_config=config,
            logits_processor=LogitsProcessorList([DrawnTokens(flat, start, how)]),
        )
    ids = []
    for answer in output[:, start:].cpu():
        is_end = torch.isin(answer, torch.tensor(ends))
        # Tokens before the first end, and the end itself
        length = int((is_end.cumsum(0) == 0).sum() + is_end.any())
        ids.append(answer[:length])
    return ids
