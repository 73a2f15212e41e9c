"""Does a model speak English? The perplexity of a fixed text, without an image and without a chat.

The passages of `plain_english.toml` are read as a base reads texts when it is trained on them: as
they stand, with no chat template around them. Before each stands the tokenizer's own first token,
where it has one; where not, the first token of a passage is predicted from nothing and does not
count. The processor is given no image, so that the vision tower has no part in it; whether it takes
such a text is for `why_no_text` to say. Preflight shows the figure of a base before it is trained
(notebook 04), `helpers/evaluation/forgetting.py` what training has made of it (notebook 07).
"""

import math
import tomllib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from jinja2 import TemplateError
from torch import Tensor
from transformers import ProcessorMixin

from helpers.losses import token_logps

from .adapters import VLM, autocast, evaluation_mode
from .prompts import render, tokenize

_TEXT = Path(__file__).with_name("plain_english.toml").read_text(encoding="utf-8")
PASSAGES: tuple[str, ...] = tuple(tomllib.loads(_TEXT)["passages"])

# Bits a character of English, blanks included, for somebody who knows how frequent every word is
# and nothing else (Shannon 1951, Prediction and entropy of printed English). Perplexities of
# tokens cannot be compared between tokenizers: with one token a letter they are below 30.
WORD_FREQUENCY_BITS = 2.14


@dataclass(frozen=True)
class Perplexity:
    """How well one model has predicted the passages."""

    logps: tuple[float, ...]  # log-probability of each token, nats
    characters: int  # of all passages

    @property
    def value(self) -> float:
        """exp of the mean negative log-probability of a token: 1 is perfect."""
        with np.errstate(over="ignore"):  # of a model that finds the text impossible: ∞
            return float(np.exp(-math.fsum(self.logps) / len(self.logps)))

    @property
    def bits(self) -> float:
        """Bits a character, which does not depend on how the tokenizer cuts the text."""
        return -math.fsum(self.logps) / math.log(2) / self.characters

    @property
    def speaks(self) -> bool:
        """Does the model know more of English than how frequent words are?"""
        return self.bits < WORD_FREQUENCY_BITS

    def value_text(self) -> str:
        """Write the perplexity with three digits, or in whole numbers where it is large."""
        return f"{self.value:.3g}" if self.value < 100 else f"{self.value:,.0f}"

    def __str__(self) -> str:
        return f"perplexity {self.value_text()} a token, {self.bits:.2f} bits a character"

    def describe(self) -> str:
        """The figures, and what they mean for a training that is to come or was."""
        if self.speaks:
            return f"{self}: the base speaks English, and may forget it"
        return (
            f"{self} (to know the frequencies of words gives {WORD_FREQUENCY_BITS}): the base does "
            "not speak English, so there is nothing to forget"
        )


def why_no_text(processor: ProcessorMixin) -> str:
    """Return why the processor takes no conversation without an image; "" if it takes one."""
    try:
        tokenize(processor, [render(processor, "Hello?", images=0)], [[]])
    except (TemplateError, TypeError, ValueError, AttributeError, IndexError, KeyError) as problem:
        return (str(problem) or repr(problem)).splitlines()[0]
    return ""


@torch.no_grad()
def text_logps(model: VLM, processor: ProcessorMixin, texts: Sequence[str]) -> list[Tensor]:
    """Return the log-probability in fp32 of every token of each text, (tokens,), in nats.

    texts: as they stand, without chat template and image. The first token has none, unless the
    tokenizer puts a token of its own before it.
    """
    no_images = [[] for _ in texts]
    inputs = tokenize(processor, texts, no_images, padding_side="right").to(model.device)
    mask = inputs["attention_mask"]
    with evaluation_mode(model), autocast(model.device):
        logits = model(**inputs, use_cache=False).logits
    logps = token_logps(logits, inputs["input_ids"], mask).cpu()
    # logps begin with the second token of a row
    lengths = (mask.sum(1) - 1).tolist()
    return [row[:length] for row, length in zip(logps, lengths, strict=True)]


def plain_english(model: VLM, processor: ProcessorMixin) -> Perplexity:
    """Let the model, with the adapters that are on, predict the passages of `plain_english.toml`.

    Raises what the processor raises where it takes no text without an image: ask `why_no_text`.
    """
    logps = torch.cat(text_logps(model, processor, PASSAGES))
    return Perplexity(tuple(logps.tolist()), sum(map(len, PASSAGES)))
