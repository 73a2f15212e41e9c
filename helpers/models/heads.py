"""Heads in fp32: of a reward model (hidden state of an answer → one score) and of a critic.

The source projects' linear and MLP heads, fusion of several layers, and value head of three layers,
which gives a value a token. Taught in notebooks 03 and 05.
"""

import torch
from torch import Tensor, nn
from torch.nn.functional import rms_norm


def _init_normal(module: nn.Module) -> None:
    """Draw weights from N(0, 0.02) and set biases to 0."""
    if isinstance(module, nn.Linear):
        nn.init.normal_(module.weight, std=0.02)
        if module.bias is not None:
            nn.init.zeros_(module.bias)


# --- heads of a reward model ---


class LinearHead(nn.Module):
    """w · h. Scores matter by their differences only, so there is no bias."""

    layers = 1  # how many hidden states it wants

    def __init__(self, hidden: int):
        super().__init__()
        self.score = nn.Linear(hidden, 1, bias=False)
        self.apply(_init_normal)

    def forward(self, states: Tensor) -> Tensor:
        """states: (answers, 1, hidden) → (answers,)."""
        return self.score(states[:, 0]).squeeze(-1)


class MLPHead(nn.Module):
    """h → h/2, GELU, dropout 0.1, → 1."""

    layers = 1

    def __init__(self, hidden: int):
        super().__init__()
        self.score = nn.Sequential(
            nn.Linear(hidden, hidden // 2),
            nn.GELU(),
            nn.Dropout(0.1),
            nn.Linear(hidden // 2, 1, bias=False),
        )
        self.apply(_init_normal)

    def forward(self, states: Tensor) -> Tensor:
        """states: (answers, 1, hidden) → (answers,)."""
        return self.score(states[:, 0]).squeeze(-1)


class FusionHead(nn.Module):
    """A learned mean of several layers, then an MLP.

    The mean is the scalar mix of Peters et al. 2018 (arXiv 1802.05365). Each layer is brought to
    unit scale first: without, the deepest ones outweigh the others. It starts at the plain mean.
    """

    layers = 4

    def __init__(self, hidden: int):
        super().__init__()
        self.mix = nn.Parameter(torch.zeros(self.layers))
        self.head = MLPHead(hidden)

    def forward(self, states: Tensor) -> Tensor:
        """states: (answers, layers, hidden) → (answers,)."""
        unit = rms_norm(states, states.shape[-1:])
        # A model with fewer layers than the head wants gives fewer states
        weights = torch.softmax(self.mix[: states.shape[1]], 0)
        mean = (weights[:, None] * unit).sum(1, keepdim=True)
        return self.head(mean)


HEADS = {"linear": LinearHead, "mlp": MLPHead, "fusion": FusionHead}


def fused_layers(depth: int, n: int) -> tuple[int, ...]:
    """Choose the hidden states for a head: `n` of `depth` layers, evenly spaced up to the last.

    None are chosen for n = 1: then the last one is used, after the last norm.

    fused_layers(28, 4) → (7, 14, 21, 28)
    """
    if n == 1:
        return ()
    chosen = {max(1, round(depth * k / n)) for k in range(1, n + 1)}
    return tuple(sorted(chosen))


# --- head of a critic ---


class ValueHead(nn.Module):
    """Hidden state before a token → value of that state.

    layers: 1 (w · h + b) or 3 (h → h → h/2 → 1 with GELU). The last layer starts at 0, so that
    values do. With `sees_image` it also gets the mean image feature.
    """

    def __init__(self, hidden: int, layers: int = 3, sees_image: bool = False):
        super().__init__()
        if layers not in (1, 3):
            raise ValueError(f"a value head has 1 or 3 layers, not {layers}")
        self.sees_image = sees_image
        width = 2 * hidden if sees_image else hidden
        body = []
        if layers == 3:
            half = hidden // 2
            body = [nn.Linear(width, hidden), nn.GELU(), nn.Linear(hidden, half), nn.GELU()]
            width = half
        last = nn.Linear(width, 1)
        nn.init.zeros_(last.weight)
        nn.init.zeros_(last.bias)
        self.value = nn.Sequential(*body, last)

    def forward(self, states: Tensor, pooled: Tensor | None = None) -> Tensor:
        """states: (answers, tokens, hidden), pooled: (answers, hidden) → (answers, tokens)."""
        if self.sees_image:
            if pooled is None:
                raise ValueError(
                    "this value head sees the image, but no kept image features were given"
                )
            # The image's feature stands beside the state of every token
            unit = rms_norm(pooled.float(), pooled.shape[-1:])
            image = unit[:, None].expand(-1, states.shape[1], -1)
            states = torch.cat([states, image], -1)
        return self.value(states).squeeze(-1)
