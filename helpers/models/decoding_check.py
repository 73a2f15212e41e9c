"""Does a model give the same where answers share the cache of their prompt? It is tried first.

The steps of `helpers/models/decoding.py` are compared with plain rows, as packed answers are
(`helpers/models/packing_check.py`). A prompt of text is enough: what differs is attention, masks,
positions and the cache, and images are read in an ordinary pass.
"""

from collections.abc import Hashable, Sequence
from weakref import WeakKeyDictionary

import torch
from accelerate.utils import send_to_device
from torch import Tensor
from torch.nn.functional import pad
from transformers import ProcessorMixin

from .adapters import VLM, base_of, evaluation_mode
from .caches import is_recurrent
from .decoding import AnswerDecoder
from .encoded_prompts import EncodedPrompts, encode_prompts, prompt_inputs
from .packing_check import PackingCheck, code_of, compare_layouts, rounded_otherwise
from .prompts import render
from .shared_prefix import answer_logits, pack_separately

QUESTIONS = ("What is it?", "What do you see, and where is it?")  # of different lengths
# The first ends before the second
ANSWERS = ("No.", "It is a cat on a red mat.")

# What was found to work in this process, and what was not: by code and sizes, or where a model has
# a forward or a hook of its own, by the model
_TRIED: dict[Hashable, bool] = {}
_TRIED_MODELS: WeakKeyDictionary = WeakKeyDictionary()


@torch.no_grad()
def check_decoding(model: VLM, processor: ProcessorMixin) -> PackingCheck:
    """Compare logits before each token of two answers, step by step and in plain rows.

    Raises whatever a model raises that cannot go on from such a cache.
    """
    texts = [render(processor, question, images=0) for question in QUESTIONS]
    prompts = encode_prompts(processor, texts, [[] for _ in texts])
    answers = [ANSWERS for _ in texts]
    plain = pack_separately(processor, prompts, answers).to(model.device)
    left = pack_separately(processor, prompts, answers, "left").to(model.device)
    # (answers, longest) and how long each is
    ids = plain.ids[:, 1:]
    lengths = plain.mask.sum(1).tolist()
    with evaluation_mode(model):
        # what is taken for rounding is how far plain layouts lie from each other
        rows = [_own(answer_logits(model, layout), lengths) for layout in (plain, left)]
        with rounded_otherwise(model):
            rows.append(_own(answer_logits(model, plain), lengths))
        stepwise = _own(_stepwise_logits(model, processor, prompts, ids, lengths), lengths)
    return compare_layouts(stepwise, *rows)


def _own(logits: Tensor, lengths: Sequence[int]) -> list[Tensor]:
    """Take logits (answers, steps, vocab) apart: for each answer those before its own tokens."""
    return [row[:length] for row, length in zip(logits, lengths, strict=True)]


def _stepwise_logits(
    model: VLM,
    processor: ProcessorMixin,
    prompts: EncodedPrompts,
    ids: Tensor,
    lengths: Sequence[int],
) -> Tensor:
    """Return logits before each given token, (answers, longest, vocab); 0 behind an answer."""
    inputs, features = send_to_device(prompt_inputs(processor, prompts), model.device)
    group_size = len(ANSWERS)
    decoder = AnswerDecoder(model, inputs, features, group_size)
    longest = ids.shape[1]
    found = decoder.logits.new_zeros(len(prompts), group_size + 1, longest, decoder.logits.shape[2])
    # Tokens by prompt and answer; a slot that is left over gets any
    given = pad(ids.view(len(prompts), group_size, longest), (0, 0, 0, 1))
    last = torch.tensor([*lengths[:group_size], 0], device=ids.device) - 1
    for number in range(longest):
        rows, slots = decoder.rows[:, None], decoder.slots
        found[rows, slots, number] = decoder.logits
        # an answer leaves as it does when its end was sampled
        goes_on = number < last[slots]
        if not goes_on.any():
            break
        if not goes_on.all():
            decoder.leave(goes_on)
            rows, slots = decoder.rows[:, None], decoder.slots
        decoder.step(given[rows, slots, number])
    return found[:, :group_size].flatten(0, 1)


def can_share_prompts(model: VLM, processor: ProcessorMixin) -> bool:
    """Can the answers to a prompt share its cache? Tries it once; says so if not."""
    if is_recurrent(model):  # a state cannot be handed to several answers
        return False
    # equal code and sizes need no second trial, whatever the weights
    code = code_of(model, processor)
    known, key = (_TRIED_MODELS, base_of(model)) if code is None else (_TRIED, code)
    if key not in known:
        known[key] = _tried(model, processor)
    return known[key]


def _tried(model: VLM, processor: ProcessorMixin) -> bool:
    try:
        check = check_decoding(model, processor)
        reason = "" if check.ok else str(check)
    except (TypeError, ValueError, RuntimeError, AttributeError, IndexError) as problem:
        reason = (str(problem) or repr(problem)).splitlines()[0]
    if reason:
        print(
            "⚠️  A copy of the prompt for each answer, which is slower: sharing it does not work "
            f"here ({reason})."
        )
    return not reason
