"""A reward model that looks at the image: base + LoRA adapter `reward` + head → a score an answer.

The head reads the hidden states at the answer's tokens, which have seen image and prompt, as one
state: their mean, or another of `helpers/models/pooling.py`. All answers to one prompt go through
the model in one row (`helpers/models/shared_prefix.py`). The base is shared with the policy;
nothing of it is copied. Trained by `helpers/training/reward.py`, taught in notebook 03.
"""

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from peft import PeftModel
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from tqdm.auto import tqdm
from transformers import ProcessorMixin

from helpers import models
from helpers.config import RewardSettings
from helpers.data import PreferenceRecord
from helpers.files import UsageError, open_image, read_json, seal_folder
from helpers.models import (
    HEADS,
    POOLINGS,
    VLM,
    PackedAnswers,
    Packer,
    fused_layers,
    hidden_states,
)
from helpers.models.prompts import Conversation
from helpers.runtime import seed_everything, tensors_hash

from .scoring import Score, Scorer, ScorerInputs, images_of, make_batch_scorer, turns_of

REWARD_ADAPTER = "reward"  # name of the adapter
ROWS_AT_ONCE = 64  # answers of a reward function in one forward without gradient
# for each record a score for each of its answers, in their order
RecordScores = Sequence[Sequence[float]]


class RewardModel(nn.Module):
    """`forward(packed)` gives the scores of packed answers, (answers,), in fp32.

    With `sees_images=False` it is its own text-only twin: the same weights to train, no image.
    """

    def __init__(
        self,
        backbone: PeftModel,
        processor: ProcessorMixin,
        head_name: str,
        pooling_name: str,
        sees_images: bool = True,
    ):
        super().__init__()
        for kind, name, known in (
            ("head", head_name, HEADS),
            ("pooling", pooling_name, POOLINGS),
        ):
            if name not in known:
                raise UsageError(f"unknown {kind} {name!r}: choose from {', '.join(known)}.")
        # the base is shared; only pooling and head are this model's own
        text = backbone.config.get_text_config()
        self.backbone = backbone
        self.processor = processor
        self.head_name = head_name
        self.pooling_name = pooling_name
        self.sees_images = sees_images
        self.head = HEADS[head_name](text.hidden_size).to(backbone.device)
        self.layers = fused_layers(text.num_hidden_layers, self.head.layers)
        pooling = POOLINGS[pooling_name](len(self.layers) or 1, text.hidden_size)
        self.pooling = pooling.to(backbone.device)
        self.packer = Packer(backbone, processor)

    def forward(self, packed: PackedAnswers) -> Tensor:
        states = hidden_states(self.backbone, packed, self.layers).float()
        # with one layer, too, there is a dimension of layers
        states = states if self.layers else states[:, :, None]
        return self.head(self.pooling(states, packed.mask[:, 1:]))

    def trainable_parameters(self) -> dict[str, nn.Parameter]:
        """The parameters that are trained and saved: of the adapter, the pooling and the head."""
        adapter = {n: p for n, p in self.backbone.named_parameters() if f".{REWARD_ADAPTER}." in n}
        pooling = {f"pooling.{n}": p for n, p in self.pooling.named_parameters()}
        return adapter | pooling | {f"head.{n}": p for n, p in self.head.named_parameters()}

    def head_weights(self) -> dict[str, Tensor]:
        """The weights beside the adapter's, by their names in a saved folder.

        They are those of the head, and of a pooling that is learnt.
        """
        pooling = {f"pooling.{n}": w for n, w in self.pooling.state_dict().items()}
        return self.head.state_dict() | pooling

    def use_adapter(self) -> AbstractContextManager:
        """Use the adapter `reward` for a while; afterwards the policy's is back."""
        return models.use_adapter(self.backbone, REWARD_ADAPTER)

    def batch(
        self,
        records: Sequence[PreferenceRecord],
        images: Sequence[Sequence[Image.Image]],
    ) -> PackedAnswers:
        """Model inputs of all answers of `records`, in their order."""
        answers = []
        for record in records:
            answers.append([answer.text for answer in record.answers])
        return self.pack([record.prompt for record in records], images, answers)

    def pack(
        self,
        conversations: Sequence[Conversation],
        images: Sequence[Sequence[Image.Image]],
        answers: Sequence[Sequence[str]],
    ) -> PackedAnswers:
        """Model inputs of all answers to each conversation, in their order."""
        seen = images if self.sees_images else [[] for _ in images]
        return self.packer(conversations, seen, answers)


def new_reward_model(
    model: VLM,
    processor: ProcessorMixin,
    settings: RewardSettings,
    seed: int = 0,
    sees_images: bool = True,
) -> RewardModel:
    """A reward model to be trained: a fresh adapter `reward` on `model`, and a random head.

    An adapter `reward` that `model` has is replaced. With a policy on it, `model` is shared by
    both.
    """
    model = remove_reward_adapter(model)
    with _keep_policy_active(model):
        backbone = models.add_adapter(model, settings.lora, seed, REWARD_ADAPTER)
    # of the head's first weights
    seed_everything(seed)
    return RewardModel(backbone, processor, settings.head, settings.pooling, sees_images)


def _keep_policy_active(model: VLM) -> AbstractContextManager:
    """An adapter that is active stays so while another one is added."""
    if isinstance(model, PeftModel):
        return models.use_adapter(model, model.active_adapter)
    return nullcontext()


def remove_reward_adapter(model: VLM) -> VLM:
    """The model without an adapter `reward`; the first of the others is active."""
    if not isinstance(model, PeftModel) or REWARD_ADAPTER not in model.peft_config:
        return model
    others = [name for name in model.peft_config if name != REWARD_ADAPTER]
    if not others:
        return model.unload()
    model.set_adapter(others[0])
    model.delete_adapter(REWARD_ADAPTER)
    return model


@torch.no_grad()
def score_records(
    reward: RewardModel,
    records: Sequence[PreferenceRecord],
    images: Sequence[Sequence[Path | Image.Image]] | None = None,
    batch_size: int = 16,
) -> list[list[float]]:
    """Scores of all answers of `records`.

    images: other ones than the records' own, for each record. Raises UsageError for one that cannot
    be read.
    """
    if images is None:
        images = [record.image_paths for record in records]
    reward.eval()
    scores = []
    with reward.use_adapter():
        for start in tqdm(range(0, len(records), batch_size), desc="scores", leave=False):
            rows = slice(start, start + batch_size)
            # opened in their turn: all at once would fill the memory
            opened = [list(map(_opened, row)) for row in images[rows]]
            found = reward(reward.batch(records[rows], opened))
            scores += split_scores(found, records[rows])
    return scores


def split_scores(scores: Tensor, records: Sequence[PreferenceRecord]) -> list[list[float]]:
    """Cut scores of all answers, (answers,), into one list a record."""
    sizes = [len(record.answers) for record in records]
    return [part.tolist() for part in scores.split(sizes)]


def _opened(image: Path | Image.Image) -> Image.Image:
    return open_image(image) if isinstance(image, Path) else image


def as_scorer(
    reward: RewardModel,
    mean: float = 0.0,
    scale: float = 1.0,
) -> Scorer:
    """(score − mean) / scale as a reward function (`helpers/rewards/scoring.py`).

    It needs no facts, and reads all images and turns of a question, as training did; of a question
    that is a plain text, that turn alone. Only differences of scores mean something, so that their
    size must be set: with mean and deviation of some answers' scores, a weight of KL speaks of
    deviations.
    """

    @torch.no_grad()
    def batch(rows: Sequence[ScorerInputs]) -> list[Score]:
        reward.eval()
        values = []
        with reward.use_adapter():
            # many at once, but no more than fit
            for start in range(0, len(rows), ROWS_AT_ONCE):
                part = rows[start : start + ROWS_AT_ONCE]
                values += reward(_pack_questions(reward, part)).tolist()
        scaled = [(value - mean) / scale for value in values]
        return [Score(value, {"reward_model": value}) for value in scaled]

    scorer = make_batch_scorer("reward_model", batch)
    scorer.reward_hash = head_hash(reward)
    return scorer


def about_reward(scorer: Scorer) -> dict[str, str]:
    """What a policy's about.json notes of its reward, so that nobody takes it for a judge."""
    about = {"reward": scorer.__name__}
    if hasattr(scorer, "reward_hash"):
        about["reward_hash"] = scorer.reward_hash
    return about


def standardised_scorer(reward: RewardModel, records: Sequence[PreferenceRecord]) -> Scorer:
    """`as_scorer` in deviations: mean and deviation are those of the answers in `records`."""
    scores = score_records(reward, records)
    seen = torch.tensor([score for row in scores for score in row])
    return as_scorer(reward, float(seen.mean()), float(seen.std()))


def _pack_questions(reward: RewardModel, rows: Sequence[ScorerInputs]) -> PackedAnswers:
    """Model inputs in the order of `rows`.

    Answers to the same question about the same images that follow each other share a row.
    """
    conversations = []
    images = []
    answers = []
    last = None
    for image, question, answer, _ in rows:
        shown, turns = images_of(image), list(turns_of(question))
        # other images or another question: a new row
        asked = [id(one) for one in shown], turns
        if asked != last:
            last = asked
            conversations.append(turns)
            images.append(shown)
            answers.append([])
        answers[-1].append(answer)
    return reward.pack(conversations, images, answers)


def pair_gaps(records: Sequence[PreferenceRecord], scores: RecordScores) -> np.ndarray:
    """Score of the better minus score of the worse answer of each pair, (pairs,).

    In the order of the records.
    """
    if list(map(len, scores)) != [len(record.answers) for record in records]:
        raise UsageError(
            "the scores are not one for each answer of each record. Score the same records."
        )
    gaps = []
    for record, row in zip(records, scores, strict=True):
        gaps += [row[better] - row[worse] for better, worse in record.tier_pairs()]
    return np.array(gaps, dtype=float)


def pair_hits(gaps: np.ndarray) -> np.ndarray:
    """1 where the better answer has the higher score, ½ where both are equal, else 0; (pairs,)."""
    return np.where(gaps == 0, 0.5, gaps > 0)


def head_hash(reward: RewardModel) -> str:
    """Hash of the weights of head and pooling: a head not saved, or not trained, shows."""
    return tensors_hash(sorted(reward.head_weights().items()))


def save_reward_model(
    reward: RewardModel,
    folder: Path,
    settings: RewardSettings,
    about: dict[str, Any] | None = None,
) -> Path:
    """Adapter, head and configuration in one folder: safetensors and JSON, no pickle."""
    about = {
        "head": reward.head_name,
        "pooling": reward.pooling_name,
        "head_hash": head_hash(reward),
        "sees_images": reward.sees_images,
        "trained": sorted(reward.trainable_parameters()),
        "settings": asdict(settings),
        **(about or {}),
    }
    models.save_adapter(reward.backbone, folder, about, REWARD_ADAPTER)
    save_file(reward.head_weights(), folder / models.HEAD_FILE)
    seal_folder(folder, [*models.ADAPTER_FILES, models.HEAD_FILE])
    return folder


def load_reward_model(model: VLM, processor: ProcessorMixin, folder: Path) -> RewardModel:
    """A saved reward model on `model`, which keeps the adapters it has.

    Raises UsageError if it does not fit.
    """
    if not (folder / models.HEAD_FILE).exists():
        raise UsageError(
            f"{folder}: holds no reward model ({models.HEAD_FILE}). "
            "Run notebook 03, or give another folder."
        )
    about = read_json(folder / "about.json")
    model = remove_reward_adapter(model)
    with _keep_policy_active(model):
        backbone = models.attach_adapter(model, folder, REWARD_ADAPTER)
    # folders from before the setting do not name it: their heads read the last token
    pooling = about.get("pooling", "last")
    reward = RewardModel(backbone, processor, about["head"], pooling, about["sees_images"])
    weights, saved = reward.head_weights(), load_file(folder / models.HEAD_FILE)
    for name in weights.keys() & saved.keys():
        weights[name].copy_(saved[name])
    # a head of another training would give scores that look right
    if head_hash(reward) != about["head_hash"]:
        raise UsageError(
            f"{folder}: {models.HEAD_FILE} is not the head that about.json speaks of. "
            "Restore the folder."
        )
    for parameter in reward.trainable_parameters().values():
        parameter.requires_grad_(False)
    return reward.eval()
