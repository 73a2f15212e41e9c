"""Policy, reference and critic on one base: what PPO asks of a model about the tokens of an answer.

The policy is base + adapter, the reference the base with the adapter off, or with a frozen one that
was trained before. The critic says before each token how the answer will end. It is a head on the
policy's hidden states, or has an adapter of its own on the same base: the states of a policy that
writes a wrong number do not say that it is wrong. Used by `helpers/training/ppo.py`, taught in
notebook 05.
"""

from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager, nullcontext
from typing import NamedTuple

import torch
from peft import PeftModel
from torch import Tensor, nn
from torch.nn.functional import pad
from transformers import ProcessorMixin

from helpers import losses, models
from helpers.config import PPOSettings
from helpers.models import PackedAnswers, ValueHead, answer_states

from .advantages import ADVANTAGES

CRITIC_ADAPTER = "critic"  # name of the critic's own adapter


class TokenFigures(NamedTuple):
    """What one pass says of answer tokens, (answers, longest) each; 0 after an answer's end."""

    logps: Tensor
    entropy: Tensor
    values: Tensor | None  # of the state before each token; None if no critic shares the pass


class TokenLook(NamedTuple):
    """What all three roles say of sampled tokens before an update, (answers, longest) each."""

    mask: Tensor  # True on an answer's own tokens; what follows is 0 elsewhere
    old_logps: Tensor  # of the policy that sampled
    reference_logps: Tensor
    entropy: Tensor
    values: Tensor | None  # None without a critic


class ActorCritic(nn.Module):
    """`forward(packed)` is a pass of the policy, `forward(packed, critic=True)` one of the critic.

    The second is for a critic with its own adapter, within `as_critic()`, and gives values only.
    autocast: makes the context of mixed precision in which both run. reference: the adapter that is
    the reference; None: the base alone.
    """

    def __init__(
        self,
        policy: PeftModel,
        processor: ProcessorMixin,
        settings: PPOSettings,
        seed: int = 0,
        autocast: Callable[[], AbstractContextManager] = nullcontext,
        reference: str | None = None,
    ):
        super().__init__()
        self.policy = policy
        self.settings = settings
        self.autocast = autocast
        self.reference = reference
        self.banned = models.banned_tokens(processor)
        self.adapter = [weight for weight in policy.parameters() if weight.requires_grad]
        self.critic: ValueHead | None = None
        self.critic_adapter: list[nn.Parameter] = []
        if ADVANTAGES[settings.advantages].learns_values and settings.critic_layers:
            self._add_critic(seed)

    def _add_critic(self, seed: int) -> None:
        settings = self.settings
        # a head on the hidden states
        hidden = self.policy.config.get_text_config().hidden_size
        torch.manual_seed(seed)
        head = ValueHead(hidden, settings.critic_layers, settings.critic_sees_image)
        self.critic = head.to(self.policy.device)
        if not settings.critic_adapter:
            return
        # an adapter in place of one that an earlier run has left
        if CRITIC_ADAPTER in self.policy.peft_config:
            self.policy.delete_adapter(CRITIC_ADAPTER)
        with models.use_adapter(self.policy, self.policy.active_adapter):
            models.add_adapter(self.policy, settings.lora, seed, CRITIC_ADAPTER)
        for name, weight in self.policy.named_parameters():
            if f".{CRITIC_ADAPTER}." in name:
                # trained from the start, as several processes must find them
                self.critic_adapter.append(weight.requires_grad_(True))

    @property
    def own_adapter(self) -> bool:
        """Has the critic an adapter of its own, and so a pass of its own?"""
        return bool(self.critic_adapter)

    def as_critic(self) -> AbstractContextManager:
        """The critic's adapter in place of the policy's, also for the backward pass."""
        return models.use_adapter(self.policy, CRITIC_ADAPTER)

    def as_reference(self) -> AbstractContextManager:
        """The reference in the place of the policy."""
        if self.reference is None:
            return models.disable_adapters(self.policy)
        return models.use_adapter(self.policy, self.reference)

    def forward(self, packed: PackedAnswers, critic: bool = False) -> TokenFigures | Tensor:
        with self.autocast():
            # before each token of the answers: (answers, longest, hidden)
            states = answer_states(self.policy, packed)
            if critic:
                return self._values(states, packed)
            # as they are sampled from: (answers, longest, vocab)
            logits = self.policy.get_output_embeddings()(states).float()
            logits = logits / self.settings.temperature
            logits[..., self.banned] = -torch.inf
            logps = _logps_of(packed.ids[:, 1:], logits)
            entropy = losses.entropy(logits)
            values = None
            if self.critic is not None and not self.own_adapter:
                if self.settings.critic_detached:
                    # the critic's loss does not reach the policy
                    states = states.detach()
                values = self._values(states, packed)
        mask = packed.mask[:, 1:]
        return TokenFigures(logps.where(mask, 0.0), entropy.where(mask, 0.0), values)

    def _values(self, states: Tensor, packed: PackedAnswers) -> Tensor:
        values = self.critic(states.float(), packed.pooled)
        # under autocast a linear layer answers in 16 bits, which losses must not be made of
        return values.float().where(packed.mask[:, 1:], 0.0)

    @torch.no_grad()
    def look(self, slices: Iterable[PackedAnswers]) -> TokenLook:
        """Ask policy, critic and reference about the tokens of all slices, one after the other."""
        parts = []
        for packed in slices:
            old = self(packed)
            # the critic's values come with the policy's pass, or from a pass of its own
            values = old.values
            if self.own_adapter:
                with self.as_critic():
                    values = self(packed, critic=True)
            with self.as_reference():
                reference = self(packed)
            mask = packed.mask[:, 1:]
            parts.append(TokenLook(mask, old.logps, reference.logps, old.entropy, values))
        columns = zip(*parts, strict=True)
        return TokenLook(*map(pad_and_stack, columns))

    @torch.no_grad()
    def start_at(self, mean: float) -> None:
        """Let an untrained critic predict `mean` everywhere."""
        if self.critic is None:
            return
        last = self.critic.value[-1]
        if not last.weight.any():
            last.bias.fill_(mean)

    def start_updates(self) -> None:
        """Turn gradient checkpointing on if the settings ask for it.

        It needs train mode; dropout stays off, as it would make the policy differ from itself.
        """
        if not self.settings.gradient_checkpointing:
            return
        self.policy.gradient_checkpointing_enable({"use_reentrant": False})
        self.policy.train()
        for module in self.policy.modules():
            if isinstance(module, nn.Dropout):
                module.eval()

    def trainable_parameters(self) -> dict[str, list[nn.Parameter]]:
        """The weights of policy and critic; the second list is empty without a critic."""
        critic = list(self.critic_adapter)
        if self.critic is not None:
            critic = [*self.critic.parameters(), *critic]
        return {"adapter": self.adapter, "critic": critic}

    def trained_weights(self) -> dict[str, Tensor]:
        """The same weights by their names in this module."""
        groups = self.trainable_parameters()
        trained = {id(weight) for weight in groups["adapter"] + groups["critic"]}
        found = {}
        for name, weight in self.named_parameters():
            if id(weight) in trained:
                found[name] = weight.detach()
        return found


def _logps_of(ids: Tensor, logits: Tensor) -> Tensor:
    """Log-probabilities of the tokens `ids`, (answers, longest), among all of the vocabulary."""
    logps = torch.log_softmax(logits, -1)
    return logps.gather(-1, ids[..., None]).squeeze(-1)


def pad_and_stack(parts: Iterable[Tensor | None]) -> Tensor | None:
    """(answers, longest) of several slices as one, with 0 where the answers of a slice are shorter.

    None if the slices have none.
    """
    known = [part for part in parts if part is not None]
    if not known:
        return None
    longest = max(part.shape[1] for part in known)
    padded = [pad(part, (0, longest - part.shape[1])) for part in known]
    return torch.cat(padded)
