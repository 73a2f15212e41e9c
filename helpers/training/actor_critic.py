"""Policy, reference and critic on one base: what PPO asks of a model about the tokens of an answer.

The policy is base + adapter, the reference the base with the adapter off. The critic says before each token how the
answer will end. It is a head on the policy's hidden states, or has an adapter of its own on the same base: the
states of a policy that writes a wrong number do not say that it is wrong. Such a critic can be warmed up on any
answers whose score is known, which costs no samples (InstructGPT started its critic from the reward model,
arXiv 2203.02155, for the same reason). Used by `helpers/training/ppo.py`, taught in notebook 05.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import NamedTuple

import numpy as np
import torch
from accelerate import Accelerator
from peft import PeftModel
from torch import Tensor, nn
from tqdm.auto import tqdm
from transformers import ProcessorMixin

from helpers import losses, models
from helpers.config import PPOSettings
from helpers.files import UsageError
from helpers.models import PackedAnswers, ValueHead, answer_states

CRITIC_ADAPTER = "critic"  # name of the critic's own adapter


class TokenFigures(NamedTuple):
    """Log-probabilities, entropy and values of answer tokens, (answers, longest) each; 0 after an answer's end."""

    logps: Tensor
    entropy: Tensor
    values: Tensor  # of the state before each token; 0 if another pass has them


class ActorCritic(nn.Module):
    """`forward(packed)` gives `TokenFigures` of the policy; `forward(packed, critic=True)` gives a critic's values.

    Each is one pass. The second is for a critic with its own adapter, within `as_critic()`.
    """

    def __init__(
        self, policy: PeftModel, processor: ProcessorMixin, settings: PPOSettings, seed: int = 0
    ):
        super().__init__()
        self.policy, self.settings, self.banned = policy, settings, models.banned_tokens(processor)
        self.adapter = [p for p in policy.parameters() if p.requires_grad]
        self.critic, self.own_adapter, self.critic_adapter = None, False, []
        if settings.advantages == "gae" and settings.critic_layers:
            self._add_critic(seed)

    def _add_critic(self, seed: int) -> None:
        settings, hidden = self.settings, self.policy.config.get_text_config().hidden_size
        torch.manual_seed(seed)
        self.critic = ValueHead(hidden, settings.critic_layers, settings.critic_sees_image).to(
            self.policy.device
        )
        self.own_adapter = settings.critic_adapter
        if self.own_adapter:
            if CRITIC_ADAPTER in self.policy.peft_config:
                self.policy.delete_adapter(CRITIC_ADAPTER)
            with models.use_adapter(self.policy, self.policy.active_adapter):
                models.add_adapter(self.policy, settings.lora, seed, CRITIC_ADAPTER)
            self.critic_adapter = [
                p for name, p in self.policy.named_parameters() if f".{CRITIC_ADAPTER}." in name
            ]
            for parameter in self.critic_adapter:  # as several processes must find them
                parameter.requires_grad_(True)

    @contextmanager
    def as_critic(self) -> Iterator[None]:
        """The critic's adapter in place of the policy's, also for the backward pass."""
        with models.use_adapter(self.policy, CRITIC_ADAPTER):
            for parameter in self.critic_adapter:
                parameter.requires_grad_(True)
            yield

    def forward(self, packed: PackedAnswers, critic: bool = False) -> TokenFigures | Tensor:
        mask, states = packed.mask[:, 1:], answer_states(self.policy, packed)
        if critic:
            return self.critic(states.float(), packed.pooled).where(mask, 0.0)
        logits = self.policy.get_output_embeddings()(states).float() / self.settings.temperature
        logits[..., self.banned] = -torch.inf  # they are never sampled
        logps = torch.log_softmax(logits, -1).gather(-1, packed.ids[:, 1:, None]).squeeze(-1)
        values = torch.zeros_like(logps)
        if self.critic is not None and not self.own_adapter:
            states = states.detach() if self.settings.critic_detached else states
            values = self.critic(states.float(), packed.pooled)
        return TokenFigures(
            *(figure.where(mask, 0.0) for figure in (logps, losses.entropy(logits), values))
        )

    @torch.no_grad()
    def values(self, packed: PackedAnswers, figures: TokenFigures) -> Tensor:
        """Compute the critic's value before each token, (answers, longest); `figures` are from the policy's pass."""
        if not self.own_adapter:
            return figures.values
        with self.as_critic():
            return self(packed, critic=True)

    @torch.no_grad()
    def start_at(self, mean: float) -> None:
        """Let an untrained critic predict `mean` everywhere."""
        if self.critic is not None and not self.critic.value[-1].weight.any():
            self.critic.value[-1].bias.fill_(mean)

    def trainable_parameters(self) -> dict[str, list[nn.Parameter]]:
        head = [] if self.critic is None else [*self.critic.parameters()]
        return {"adapter": self.adapter, "critic": head + self.critic_adapter}


def warm_up_critic(
    actor: ActorCritic,
    forward: nn.Module,
    accelerator: Accelerator,
    batch: Callable[[Sequence[int]], tuple[PackedAnswers, Tensor]],
    number_of_prompts: int,
    epochs: int,
    prompts_per_step: int,
    prompts_per_pass: int,
) -> list[float]:
    """Train a critic with an adapter of its own on answers whose scores are known; returns its losses.

    batch(numbers) gives the answers to these prompts and their scores, (answers,). The value of every token is drawn
    to the score of the whole answer. The learning rate falls linearly to 0. `prompts_per_pass` of the prompts of a step
    are in one pass. forward: `actor`, as several processes call it. Raises UsageError without such a critic.
    """
    if not actor.own_adapter:
        raise UsageError(
            "only a critic with an adapter of its own can be warmed up: set critic_adapter=True."
        )
    learning_rate = actor.settings.critic_warm_up_learning_rate
    adamw = torch.optim.AdamW(
        actor.trainable_parameters()["critic"], lr=learning_rate, weight_decay=0.0
    )
    schedule = torch.optim.lr_scheduler.LinearLR(
        adamw, 1.0, 0.0, epochs * -(-number_of_prompts // prompts_per_step)
    )
    optimizer = accelerator.prepare(adamw)
    rng, history = np.random.default_rng(0), []
    step_starts = range(prompts_per_step, number_of_prompts, prompts_per_step)
    for _ in tqdm(range(epochs), desc="critic", unit="epoch", leave=False):
        for chosen in np.split(rng.permutation(number_of_prompts), step_starts):
            pass_starts = range(prompts_per_pass, len(chosen), prompts_per_pass)
            parts = [batch(part) for part in np.split(chosen, pass_starts)]
            actor.start_at(float(torch.cat([scores for _, scores in parts]).mean()))
            tokens, total = sum(packed.mask[:, 1:].sum() for packed, _ in parts), 0.0
            for packed, scores in parts:
                with actor.as_critic():
                    with accelerator.autocast():
                        values = forward(packed, critic=True)
                    loss = 0.5 * losses.masked_mean(
                        (values - scores[:, None]) ** 2, packed.mask[:, 1:], tokens
                    )
                    accelerator.backward(loss)
                total += float(loss.detach())
            optimizer.step(), schedule.step(), optimizer.zero_grad()
            history.append(total)
    return history
