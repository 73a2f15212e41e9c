"""Rows of a preference data set → a batch for DPO → the logits of its answers.

In a batch each image and prompt stands once, with both answers behind it. TRL looks at nothing but
logits, so that it takes `AnswerForward` for a model. Taught in notebook 04.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers.modeling_outputs import CausalLMOutput

from helpers.data import from_trl
from helpers.files import UsageError
from helpers.losses import completion_logps
from helpers.models import PackedAnswers, Packer, ReferenceLogps, answer_logits


class PairCollator:
    """Rows of a preference data set → a batch: each image and prompt once, with both answers.

    rows: images, prompt, chosen, rejected (`preferences.to_trl`); with `spoilt`, also
    negative_images, of which the first is shown with the chosen answer alone.
    packer: on the CPU, as TRL's loader wants it.
    """

    def __init__(self, packer: Packer, reference: ReferenceLogps, spoilt: bool = False):
        self.packer = packer
        self.reference = reference
        self.spoilt = spoilt

    def __call__(self, examples: Sequence[dict[str, Any]]) -> dict[str, Any]:
        pairs = [from_trl(example) for example in examples]
        number = len(pairs)
        conversations = [pair.prompt for pair in pairs]
        images = [pair.images for pair in pairs]
        answers = [[pair.chosen, pair.rejected] for pair in pairs]
        # TRL's order: all chosen answers, then all rejected ones
        order = [*range(0, 2 * number, 2), *range(1, 2 * number, 2)]
        if self.spoilt:
            # every question once more: about its spoilt image, with the chosen answer alone
            conversations = conversations * 2
            images = images + [_first_negative(example) for example in examples]
            answers = answers + [[pair.chosen] for pair in pairs]
            order += range(2 * number, 3 * number)
        prompts = self.packer.encode(conversations, images)
        packed = self.packer.pack(prompts, answers).order(order)
        # what the reference says of a pair depends on all that is in its key
        keys = [[prompts.image_hashes[i], prompts.texts[i], *answers[i]] for i in range(number)]
        if self.spoilt:
            for i, key in enumerate(keys):
                key.append(prompts.image_hashes[number + i])
        padding = self.packer.processor.tokenizer.pad_token_id
        return {
            # what TRL calls so: labels, with the token before them, (2 · pairs, 1 + longest answer)
            "input_ids": packed.ids[: 2 * number],
            "completion_mask": packed.mask[: 2 * number].long(),
            # for TRL's count of tokens, (rows, seq)
            "attention_mask": (packed.inputs["input_ids"] != padding).long(),
            "packed": packed,
            "keys": [self.reference.key(*key) for key in keys],
        }


def _first_negative(example: dict[str, Any]) -> list:
    if not example.get("negative_images"):
        raise UsageError(
            "a pair has no negative_images, which image_weight needs: "
            "see pairs.add_image_negatives."
        )
    return example["negative_images"][:1]


@dataclass
class AnswerOutput(CausalLMOutput):
    """What TRL reads of a model's output, and the answers that it does not know of."""

    # of the chosen answers to spoilt images, (pairs,); None without such images
    spoilt_logps: Tensor | None = None


class AnswerForward:
    """The model as TRL sees it: a batch of `PairCollator` → logits of its answers.

    They are (2 · pairs, 1 + longest, vocab), those of the chosen answers first.
    """

    def __init__(self, model: torch.nn.Module):
        self.model = model

    def __call__(self, packed: PackedAnswers, input_ids: Tensor, **_) -> AnswerOutput:
        logits = answer_logits(self.model, packed)
        sides = len(input_ids)
        spoilt = None
        if sides < len(logits):
            spoilt = completion_logps(logits[sides:], packed.ids[sides:], packed.mask[sides:])
        # in fp32, since TRL would take log-softmax in 16 bits
        return AnswerOutput(logits=logits[:sides].float(), spoilt_logps=spoilt)
