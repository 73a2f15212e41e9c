"""From the hidden states of an answer's tokens to one state: what the head of a reward model reads.

"last" is that of InstructGPT (Ouyang et al. 2022, arXiv 2203.02155), "mean" that of Sentence-BERT
(Reimers and Gurevych 2019, arXiv 1908.10084), "attention" a mean whose weights are learnt, as in
Lin et al. 2017 (arXiv 1703.03130). An answer's end of turn is one of its tokens: it has seen all of
the answer, and an empty answer has nothing else. Taught in notebook 03.
"""

import torch
from torch import Tensor, nn
from torch.nn.functional import rms_norm


class LastPooling(nn.Module):
    """The state at the last token of an answer, which has seen all of it."""

    def __init__(self, layers: int, hidden: int):
        super().__init__()

    def forward(self, states: Tensor, mask: Tensor) -> Tensor:
        """states: (answers, tokens, layers, hidden), mask: (answers, tokens), True on its own.

        Returns (answers, layers, hidden), as the other ones do.
        """
        ends = mask.sum(1) - 1
        return states[torch.arange(len(states), device=states.device), ends]


class MeanPooling(nn.Module):
    """The mean over all tokens of an answer."""

    def __init__(self, layers: int, hidden: int):
        super().__init__()

    def forward(self, states: Tensor, mask: Tensor) -> Tensor:
        """Sizes are those of `LastPooling.forward`."""
        weights = mask / mask.sum(1, keepdim=True)
        return (weights[:, :, None, None] * states).sum(1)


class AttentionPooling(nn.Module):
    """A mean over all tokens of an answer, with softmax(q · h / √hidden) as weights.

    Each layer has a query q of its own, and compares it with states h at unit scale. It starts at
    0, which makes the plain mean.
    """

    def __init__(self, layers: int, hidden: int):
        super().__init__()
        self.query = nn.Parameter(torch.zeros(layers, hidden))

    def forward(self, states: Tensor, mask: Tensor) -> Tensor:
        """Sizes are those of `LastPooling.forward`."""
        hidden = states.shape[-1]
        unit = rms_norm(states, (hidden,))
        # Products and sums, not a matrix product, which autocast would compute in 16 bits
        scores = (unit * self.query).sum(-1) / hidden**0.5  # (answers, tokens, layers)
        scores = scores.masked_fill(~mask[:, :, None], -torch.inf)
        return (scores.softmax(1)[..., None] * states).sum(1)


# Their names are those of `Pooling` in helpers/config.py
POOLINGS = {"last": LastPooling, "mean": MeanPooling, "attention": AttentionPooling}
