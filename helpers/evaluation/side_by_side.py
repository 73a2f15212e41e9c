"""One question to several policies: each one's answer, its likelihood, its distance from the base.

Log-probabilities are of the tokens as they were generated, the end of turn included if it came, at
temperature 1 whatever the answer was sampled at. Examples that a reader keeps go to
`artifacts/gallery`: one JSON file each, beside its image. Taught in notebook 06.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from io import BytesIO
from pathlib import Path

import torch
from PIL import Image
from pydantic import TypeAdapter, ValidationError
from torch import Tensor
from tqdm.auto import tqdm
from transformers import ProcessorMixin

from helpers.data import Message, Task, Truth, TruthKind
from helpers.files import UsageError, read_json, replace_file, stream_hash, write_json
from helpers.models import (
    BASE_POLICY,
    DecodingSettings,
    EncodedPrompts,
    Packer,
    Policies,
    answer_logits,
    answer_texts,
    sample_ids,
)
from helpers.rewards import Scorer

GREEDY = DecodingSettings()


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
    best_of: int = 1  # of how many sampled answers this is the best
    ranked_by: str | None = None  # who says so, of several

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
    task: Task,
    decoding: DecodingSettings = GREEDY,
    reward: Scorer | None = None,
    images: Sequence[Image.Image] | None = None,
) -> list[PolicyAnswer]:
    """The answers of the policies `names`, in their order; equal arguments give equal answers.

    reward: scores (image, question, answer) without knowing a truth, for example
    `reward_model.as_scorer`. images: to show in place of the task's own.
    """
    shown = task.open_images() if images is None else list(images)
    # the images and the question are encoded once for all policies
    packer = Packer(policies.model, policies.processor, packs=False)
    prompt = packer.encode([task.turns], [shown])
    answers = []
    for name in names:
        (answer,) = _ask_policy(policies, packer, name, prompt, decoding)
        answers.append(with_reward(answer, task, shown, reward))
    return answers


def with_reward(
    answer: PolicyAnswer,
    task: Task,
    images: Sequence[Image.Image],
    reward: Scorer | None,
) -> PolicyAnswer:
    """The answer with what `reward` gives it, which is not told the truth; None leaves it as is."""
    if reward is None:
        return answer
    given = task.scorer_inputs(images, answer.text)[:-1]
    return replace(answer, reward=reward(*given, None).total)


@torch.no_grad()
def ask_all(
    policies: Policies,
    names: Sequence[str],
    tasks: Sequence[Task],
    decoding: DecodingSettings = GREEDY,
    batch_size: int = 16,
) -> dict[str, list[PolicyAnswer]]:
    """The answers of the policies `names` to all tasks, with every token's figures.

    Greedy answers are those of `ask_policies`; sampled ones depend on the batches, too.
    """
    packer = Packer(policies.model, policies.processor, packs=False)
    answers: dict[str, list[PolicyAnswer]] = {name: [] for name in names}
    for start in tqdm(range(0, len(tasks), batch_size), desc="answers", leave=False):
        batch = tasks[start : start + batch_size]
        images = [task.open_images() for task in batch]
        prompts = packer.encode([task.turns for task in batch], images)
        # each batch has a seed of its own, or all would draw the same random numbers
        own = replace(decoding, seed=decoding.seed + start)
        for name in names:
            answers[name] += _ask_policy(policies, packer, name, prompts, own)
    return answers


def texts_of(answers: Mapping[str, Sequence[PolicyAnswer]]) -> dict[str, list[str]]:
    """The texts of what `ask_all` gives, by policy."""
    texts = {}
    for name, spoken in answers.items():
        texts[name] = [answer.text for answer in spoken]
    return texts


def _ask_policy(
    policies: Policies,
    packer: Packer,
    name: str,
    prompts: EncodedPrompts,
    decoding: DecodingSettings,
) -> list[PolicyAnswer]:
    """One answer to each prompt."""
    with policies.use_policy(name) as model:
        ids, ended = sample_ids(model, policies.processor, prompts, **asdict(decoding))
    return look_at_answers(policies, packer, name, prompts, ids, ended)


@torch.no_grad()
def look_at_answers(
    policies: Policies,
    packer: Packer,
    name: str,
    prompts: EncodedPrompts,
    ids: Sequence[Tensor],
    ended: Sequence[bool],
) -> list[PolicyAnswer]:
    """The figures of an answer of the policy `name` to each prompt.

    ids: its tokens, (tokens,); ended: whether it came to its end (`models.sample_ids`).
    """
    processor = policies.processor
    packed = packer.pack(prompts, [[own] for own in ids])
    with policies.use_policy(name) as model:
        logits = answer_logits(model, packed)
    # the same tokens under the base: what training changed
    base_logits = logits
    if name != BASE_POLICY:
        with policies.use_policy(BASE_POLICY) as model:
            base_logits = answer_logits(model, packed)
    answers = []
    for number, tokens in enumerate(ids):
        own = _next_token_logps(logits[number], len(tokens))
        base = own
        if name != BASE_POLICY:
            base = _next_token_logps(base_logits[number], len(tokens))
        answers.append(_policy_answer(processor, name, tokens, own, base, ended[number]))
    return answers


def _policy_answer(
    processor: ProcessorMixin, name: str, ids: Tensor, own: Tensor, base: Tensor, ended: bool
) -> PolicyAnswer:
    """ids (tokens,); own, base: log-probabilities of the next token, (tokens, vocab)."""
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


def _next_token_logps(logits: Tensor, number: int) -> Tensor:
    """Log-probabilities of the vocabulary before each of `number` tokens, (number, vocab).

    logits: of one answer, (1 + longest, vocab).
    """
    # in fp32, whatever the model computes in
    return logits[:number].float().log_softmax(-1)


@dataclass(frozen=True)
class GalleryItem:
    """One kept example: images, question, decoding and every policy's answer.

    `images` lie in the gallery's folder; the question is the last of several turns, if there are
    more. truth, truth_kind: what is known to be true, and how answers are judged by it.
    """

    images: list[str]
    turns: list[Message]
    decoding: DecodingSettings
    truth: Truth | None
    truth_kind: TruthKind
    spoken: list[PolicyAnswer]

    @property
    def question(self) -> str:
        return self.turns[-1].content


def save_gallery_item(
    folder: Path,
    task: Task,
    decoding: DecodingSettings,
    answers: Sequence[PolicyAnswer],
    images: Sequence[Image.Image] | None = None,
) -> Path:
    """Write an example; the same one again is the same file. images: as in `ask_policies`."""
    shown = task.open_images() if images is None else images
    names = [_save_image(folder, image) for image in shown]
    truth = list(task.facts) if isinstance(task.facts, tuple) else task.facts
    item = GalleryItem(names, list(task.turns), decoding, truth, task.kind, list(answers))
    entry = TypeAdapter(GalleryItem).dump_python(item, mode="json")
    key = stream_hash(BytesIO(repr(entry).encode()))[:16]
    return write_json(folder / f"{key}.json", entry)


def _save_image(folder: Path, image: Image.Image) -> str:
    """The name, a hash of the content: the same image is the same file."""
    buffer = BytesIO()
    image.save(buffer, "PNG")
    buffer.seek(0)
    name = f"{stream_hash(buffer)[:16]}.png"
    with replace_file(folder / name) as temporary:
        temporary.write_bytes(buffer.getvalue())
    return name


def read_gallery(folder: Path) -> list[GalleryItem]:
    """The examples of a folder, oldest first; none if there is no folder.

    Raises UsageError naming a broken file.
    """
    items = []
    # by the time of keeping, to a nanosecond
    for path in sorted(folder.glob("*.json"), key=lambda path: path.stat().st_mtime_ns):
        try:
            items.append(TypeAdapter(GalleryItem).validate_python(read_json(path)))
        except ValidationError:
            raise UsageError(
                f"{path}: not an example of this gallery, or of another version. Delete or move it."
            ) from None
    return items
