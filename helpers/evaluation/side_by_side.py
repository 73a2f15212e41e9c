"""One question to several policies: each one's answer, its likelihood, its distance from the base.

Log-probabilities are of the tokens as they were generated, the end of turn included if it came, at
temperature 1 whatever the answer was sampled at. Examples that a reader keeps go to
`artifacts/gallery`: one JSON file each, beside its image. Taught in notebook 06.
"""

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from io import BytesIO
from pathlib import Path

import torch
from PIL import Image
from pydantic import TypeAdapter, ValidationError
from torch import Tensor

from helpers.data import Counts
from helpers.files import UsageError, read_json, replace_file, stream_hash, write_json
from helpers.models import (
    BASE_POLICY,
    EncodedPrompts,
    PackedAnswers,
    Packer,
    Policies,
    answer_logits,
    answer_texts,
    sample_ids,
    user_message,
)
from helpers.rewards import Scorer


@dataclass(frozen=True)
class DecodingSettings:
    """How an answer is generated: greedily at temperature 0, else sampled.

    `top_p`: of the nucleus (Holtzman et al. 2020).
    """

    temperature: float = 0.0
    top_p: float = 1.0
    max_new_tokens: int = 64
    seed: int = 0


@dataclass(frozen=True)
class PolicyAnswer:
    """An answer of one policy; the lists have an entry for each token."""

    policy: str
    text: str
    ids: list[int]  # the tokens as they were generated; reading the text again may give others
    tokens: list[str]
    logps: list[float]  # log-probability under the policy that spoke, nats
    base_logps: list[float]  # the same tokens under the base
    kl: list[float]  # exact KL(policy ‖ base) of the next token, over the vocabulary, nats
    ended: bool  # False: cut at `max_new_tokens`
    reward: float | None = None

    @property
    def logp(self) -> float:
        return math.fsum(self.logps)

    @property
    def gains(self) -> list[float]:
        """log p(policy) − log p(base) of every token: what training made more likely."""
        return [own - base for own, base in zip(self.logps, self.base_logps, strict=True)]


@torch.no_grad()
def ask_policies(
    policies: Policies,
    names: Sequence[str],
    image: Image.Image,
    question: str,
    decoding: DecodingSettings = DecodingSettings(),
    reward: Scorer | None = None,
) -> list[PolicyAnswer]:
    """The answers of the policies `names`, in their order; equal arguments give equal answers.

    reward: scores (image, question, answer) without knowing a truth, for example
    `reward_model.as_scorer`.
    """
    # the image and the question are encoded once for all policies
    packer = Packer(policies.model, policies.processor, packs=False)
    prompt = packer.encode([[user_message(question)]], [[image]])
    answers = []
    for name in names:
        answer = _ask_policy(policies, packer, name, prompt, decoding)
        if reward is not None:
            total = reward(image, question, answer.text, None).total
            answer = replace(answer, reward=total)
        answers.append(answer)
    return answers


def _ask_policy(
    policies: Policies,
    packer: Packer,
    name: str,
    prompt: EncodedPrompts,
    decoding: DecodingSettings,
) -> PolicyAnswer:
    processor = policies.processor
    with policies.use_policy(name) as model:
        (ids,), (ended,) = sample_ids(model, processor, prompt, **asdict(decoding))
        packed = packer.pack(prompt, [[ids]])
        own = _next_token_logps(model, packed)
    # the same tokens under the base: what training changed
    base = own
    if name != BASE_POLICY:
        with policies.use_policy(BASE_POLICY) as model:
            base = _next_token_logps(model, packed)
    # (tokens, 1), to pick the spoken token out of the vocabulary
    spoken = ids.to(own.device)[:, None]
    return PolicyAnswer(
        name,
        answer_texts(processor, [ids])[0],
        ids.tolist(),
        [processor.tokenizer.decode([i]) for i in ids],
        logps=own.gather(-1, spoken).squeeze(-1).tolist(),
        base_logps=base.gather(-1, spoken).squeeze(-1).tolist(),
        kl=(own.exp() * (own - base)).sum(-1).tolist(),
        ended=ended,
    )


def _next_token_logps(model: torch.nn.Module, packed: PackedAnswers) -> Tensor:
    """Log-probabilities of the vocabulary before each token of the only answer, (tokens, vocab)."""
    # in fp32, whatever the model computes in
    return answer_logits(model, packed)[0, :-1].float().log_softmax(-1)


@dataclass(frozen=True)
class GalleryItem:
    """One kept example: question, decoding and every policy's answer.

    `image` lies in the gallery's folder.
    """

    image: str
    question: str
    decoding: DecodingSettings
    truth: Counts | None
    spoken: list[PolicyAnswer]


def save_gallery_item(
    folder: Path,
    image: Image.Image,
    question: str,
    decoding: DecodingSettings,
    answers: Sequence[PolicyAnswer],
    truth: Counts | None,
) -> Path:
    """Write an example; the same one again is the same file."""
    buffer = BytesIO()
    image.save(buffer, "PNG")
    buffer.seek(0)
    # names are hashes of the content: the same example is the same file
    name = f"{stream_hash(buffer)[:16]}.png"
    with replace_file(folder / name) as temporary:
        temporary.write_bytes(buffer.getvalue())
    entry = asdict(GalleryItem(name, question, decoding, truth, list(answers)))
    key = stream_hash(BytesIO(repr(entry).encode()))[:16]
    return write_json(folder / f"{key}.json", entry)


def read_gallery(folder: Path) -> list[GalleryItem]:
    """The examples of a folder, oldest first; none if there is no folder.

    Raises UsageError naming a broken file.
    """
    items = []
    for path in sorted(folder.glob("*.json"), key=lambda path: path.stat().st_mtime_ns):
        try:
            items.append(TypeAdapter(GalleryItem).validate_python(read_json(path)))
        except ValidationError:
            raise UsageError(
                f"{path}: not an example of this gallery, or of another version. Delete or move it."
            ) from None
    return items
