"""Does the policy still speak? What training on one narrow task has cost the rest of the language.

Two measures, neither of which shows an image. Perplexity of a plain English text after ÷ before
(`helpers/models/perplexity.py`): 1 if nothing was forgotten. And greedy answers to five general
questions in the chat format, before and after. The text alone would not do: a policy may keep all
its English and yet answer every question as its task taught it. Greedy answers, since they are the
same in every run and can be read side by side; how much less likely the policy finds the base's own
answers is a finer figure than how many of five are unchanged. Part of
`helpers/evaluation/evidence.py`, taught in notebook 07.

Simplifications: one language, one short text, no knowledge asked for. Intervals take tokens as
independent.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from helpers.data import ask
from helpers.models import (
    BASE_POLICY,
    DecodingSettings,
    Packer,
    Perplexity,
    Policies,
    answer_logps,
    evaluation_mode,
    plain_english,
    why_no_text,
)
from helpers.statistics import Estimate, Proportion, TableRows, sample_mean, share_of

from .side_by_side import PolicyAnswer, ask_all

GENERAL_PROMPTS = (
    "What is the capital of France?",
    "How do I wash a wool sweater?",
    "Name three fruits that are red.",
    "Why do people sleep at night?",
    "Write one sentence about a dog in the snow.",
)
ANSWER_TOKENS = 24  # enough to see how an answer goes
RATIO_LIMIT = 1.05  # of perplexities, from which it is worth a warning
DROP_LIMIT = math.log(2)  # nats a token: each token of an answer half as likely as it was
REMEDY = (
    "Hold it closer to the base: a larger beta or sft_weight (DPO), a larger kl_weight (PPO), "
    "fewer steps, or a lower learning_rate."
)
FORGETTING_COLUMNS = [
    "model",
    "perplexity of plain English",
    "÷ the base's [95 %]",
    "general answers unchanged",
    "base's answers less likely by, nats a token [95 %]",
    "came to an end",
]


@dataclass(frozen=True)
class Speech:
    """What one model makes of the text and of the general prompts."""

    perplexity: Perplexity
    answers: Sequence[PolicyAnswer]  # greedy, to `GENERAL_PROMPTS`
    # log-probabilities under this model of the tokens of the base's answers, one after the other
    base_answer_logps: Sequence[float]


@dataclass(frozen=True)
class Forgetting:
    """The base and its policies; without models where `fault` says why nothing can be measured."""

    speech: Mapping[str, Speech]  # by model, the base first
    fault: str = ""

    @property
    def base(self) -> Speech:
        return self.speech[BASE_POLICY]

    @property
    def policies(self) -> list[str]:
        return [name for name in self.speech if name != BASE_POLICY]

    # --- the figures ---

    def ratio(self, name: str) -> Estimate:
        """Perplexity of the text, that of `name` ÷ the base's: exp of the mean loss of a token."""
        before = np.array(self.base.perplexity.logps)
        after = np.array(self.speech[name].perplexity.logps)
        lost = sample_mean(before - after)  # nats a token
        limits = [None if end is None else float(np.exp(end)) for end in (lost.low, lost.high)]
        return Estimate(float(np.exp(lost.value)), *limits, lost.n)

    def unchanged(self, name: str) -> Proportion:
        """The share of general answers that are the base's, letter by letter."""
        pairs = zip(self.base.answers, self.speech[name].answers, strict=True)
        return share_of(before.text == after.text for before, after in pairs)

    def drop(self, name: str) -> Estimate:
        """By how much the base's answers have become less likely, nats a token.

        Of answers that are sampled it would be an estimate of KL(base ‖ policy) a token.
        """
        before = np.array(self.base.base_answer_logps)
        return sample_mean(before - np.array(self.speech[name].base_answer_logps))

    def ended(self, name: str) -> Proportion:
        """The share of general answers that came to an end within `ANSWER_TOKENS`."""
        return share_of(answer.ended for answer in self.speech[name].answers)

    def has_forgotten(self, name: str) -> bool:
        """Is one of the two limits passed, by a policy whose base had something to forget?"""
        changed = self.ratio(name).value > RATIO_LIMIT or self.drop(name).value > DROP_LIMIT
        return self.base.perplexity.speaks and changed

    def figures(self) -> dict[str, Estimate | float]:
        """Figures by name, for `figures.json`."""
        found = {}
        for name, speech in self.speech.items():
            found[f"{name}_perplexity"] = speech.perplexity.value
        for name in self.policies:
            found[f"{name}_perplexity_ratio"] = self.ratio(name)
            found[f"{name}_answers_unchanged"] = self.unchanged(name)
            found[f"{name}_answers_drop"] = self.drop(name)
        return found

    # --- the tables ---

    def rows(self) -> TableRows:
        """The table of figures, the head first; the head alone if nothing was measured."""
        rows = [FORGETTING_COLUMNS]
        for name, speech in self.speech.items():
            # the base is no distance from itself
            changes = ["", "", ""]
            if name != BASE_POLICY:
                found = self.ratio(name), self.unchanged(name), self.drop(name)
                changes = [figure.short_text() for figure in found]
            ended = self.ended(name).short_text()
            rows.append([name, speech.perplexity.value_text(), *changes, ended])
        return rows

    def answer_rows(self) -> TableRows:
        """The general answers of all models side by side, the head first; "…": it was cut off."""
        rows = [["general prompt", *self.speech]]
        for number, prompt in enumerate(GENERAL_PROMPTS if self.speech else ()):
            answers = [speech.answers[number] for speech in self.speech.values()]
            texts = [answer.text + ("" if answer.ended else " …") for answer in answers]
            rows.append([prompt, *texts])
        return rows

    # --- the words ---

    def verdict(self, name: str) -> str:
        """One sentence of a policy: does it still speak, and if not, what to do."""
        if self.fault:
            return self._say_fault()
        if not self.base.perplexity.speaks:
            return self._say_base()
        figures = (
            f"perplexity of plain English {self.base.perplexity.value_text()} → "
            f"{self.speech[name].perplexity.value_text()} (× {self.ratio(name).short_text()}, "
            f"limit {RATIO_LIMIT}), {self.unchanged(name).value:.0%} of the "
            f"{len(GENERAL_PROMPTS)} general answers unchanged, log-probability of the base's "
            f"answers lower by {self.drop(name).short_text()} nats a token (limit "
            f"{DROP_LIMIT:.2f}; below 0 it is higher)"
        )
        if self.has_forgotten(name):
            return f"⚠️ {name} has forgotten language: {figures}. {REMEDY}"
        return f"{name} still speaks: {figures}."

    def conclusions(self) -> list[str]:
        """The verdict on each policy, if its base had something to forget."""
        if self.fault or not self.base.perplexity.speaks:
            return []
        return [self.verdict(name) for name in self.policies]

    def sentences(self) -> list[str]:
        """All that the tables allow to say."""
        if self.fault:
            return [self._say_fault()]
        return [self._say_base(), *self.conclusions()]

    def _say_fault(self) -> str:
        return (
            "Whether the policy still speaks is not measured: the processor takes no text without "
            f"an image ({self.fault})."
        )

    def _say_base(self) -> str:
        return f"Plain English without an image: {self.base.perplexity.describe()}."


@torch.no_grad()
def measure_forgetting(policies: Policies, names: Sequence[str]) -> Forgetting:
    """Let the base and the policies `names` read the text and answer the general prompts."""
    processor = policies.processor
    fault = why_no_text(processor)
    if fault:
        return Forgetting({}, fault)
    names = list(dict.fromkeys([BASE_POLICY, *names]))
    tasks = [ask(prompt, []) for prompt in GENERAL_PROMPTS]
    # dropout would change what a trained adapter says from one pass to the next
    with evaluation_mode(policies.model):
        decoding = DecodingSettings(max_new_tokens=ANSWER_TOKENS)
        answers = ask_all(policies, names, tasks, decoding)
        # what the base has said, to be read by every model
        packer = Packer(policies.model, processor, packs=False)
        said = [[torch.tensor(answer.ids)] for answer in answers[BASE_POLICY]]
        packed = packer([task.turns for task in tasks], [[] for _ in tasks], said)
        speech = {}
        for name in names:
            with policies.use_policy(name) as model:
                logps = answer_logps(model, packed)[packed.mask[:, 1:]]
                text = plain_english(model, processor)
            speech[name] = Speech(text, answers[name], logps.tolist())
    return Forgetting(speech)
