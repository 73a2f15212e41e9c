"""Rows of a preference data set → a batch for DPO: each image and prompt once, with both answers behind it.

Taught in notebook 04.
"""

from collections.abc import Sequence
from typing import Any

from helpers.data import from_trl
from helpers.files import UsageError
from helpers.models import Packer, ReferenceLogps


class PairCollator:
    """Rows of a preference data set → a batch: each image and prompt once, with both answers.

    rows: images, prompt, chosen, rejected (`preferences.to_trl`); with `spoilt`, also negative_images, of
    which the first is shown with the chosen answer alone. packer: one that packs, on the CPU, as TRL's loader wants it.
    """

    def __init__(self, packer: Packer, reference: ReferenceLogps, spoilt: bool = False):
        self.packer, self.reference, self.spoilt = packer, reference, spoilt

    def __call__(self, examples: Sequence[dict[str, Any]]) -> dict[str, Any]:
        pairs, n = [from_trl(example) for example in examples], len(examples)
        conversations, images = [pair.prompt for pair in pairs], [pair.images for pair in pairs]
        answers = [[pair.chosen, pair.rejected] for pair in pairs]
        order = [
            *range(0, 2 * n, 2),
            *range(1, 2 * n, 2),
        ]  # TRL's: all chosen answers, then all rejected ones
        if self.spoilt:
            conversations, images = (
                conversations * 2,
                images + [_first_negative(example) for example in examples],
            )
            answers = answers + [[pair.chosen] for pair in pairs]
            order += range(2 * n, 3 * n)
        prompts = self.packer.encode(conversations, images)
        packed = self.packer.pack(prompts, answers).order(order)
        keys = [[prompts.image_hashes[i], prompts.texts[i], *answers[i]] for i in range(n)]
        if self.spoilt:
            keys = [[*key, prompts.image_hashes[n + i]] for i, key in enumerate(keys)]
        padding = self.packer.processor.tokenizer.pad_token_id
        return {
            "input_ids": packed.ids[
                : 2 * n
            ],  # what TRL calls so: labels, with the token before them
            "completion_mask": packed.mask[: 2 * n].long(),
            "attention_mask": (packed.inputs["input_ids"] != padding).long(),
            "packed": packed,
            "keys": [self.reference.key(*key) for key in keys],
        }


def _first_negative(example: dict[str, Any]) -> list:
    if not example.get("negative_images"):
        raise UsageError(
            "a pair has no negative_images, which image_weight needs: see pairs.add_image_negatives."
        )
    return example["negative_images"][:1]
