"""The smallest reward model: an MLP on pooled image, question and answer features, regressing a score.

From a student project whose reward model learnt its heuristic (`scoring.heuristic`). The
vision-language model is frozen and only gives features; an MLP of three linear layers is trained.

What it cannot do
- The heuristic never looks at the image. Its regression is worth what its facts are: without counts it
  is a rule about texts. Judging a policy by what trained it is circular; only the ground truth can tell.
- Means forget order: "2 cars, 0 buses" and "0 cars, 2 buses" have equal features, so equal scores.

Simplification: text features are means of the model's own input embeddings. They need no second model
and nothing but the MLP has to be saved; TF-IDF of helpers/rewards/similarity.py would have to be fitted and saved.
"""

import inspect
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path

import torch
from PIL import Image
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn.functional import huber_loss
from tqdm.auto import tqdm
from transformers import PreTrainedModel, ProcessorMixin

from helpers.data import PreferenceRecord, file_of
from helpers.files import UsageError, open_image, read_json, write_json

from .scoring import Score, Scorer, ScorerInputs, heuristic_scorer, make_scorer

FEATURE_REWARD_WEIGHTS, FEATURE_REWARD_FILE = "feature_reward.safetensors", "feature_reward.json"


@torch.no_grad()
def image_feature(
    model: PreTrainedModel,
    processor: ProcessorMixin,
    image: Path | Image.Image,
    where: str | None = None,
) -> Tensor:
    """Mean of the visual tokens as the language model gets them, (hidden,), fp32 on the CPU.

    Any model of transformers 5 with `get_image_features` will do: its `pooler_output` holds the tokens
    of an image, (tokens, hidden), or those of its tiles. Raises UsageError if the image cannot be read.
    """
    image = open_image(image, where) if isinstance(image, Path) else image
    inputs = processor.image_processor(images=[image], return_tensors="pt").to(model.device)
    wanted = inspect.signature(
        model.get_image_features
    ).parameters  # some processors return more than it takes
    output = model.get_image_features(
        **{name: value for name, value in inputs.items() if name in wanted}
    )
    tokens = torch.cat([part.flatten(end_dim=-2) for part in output.pooler_output])
    return tokens.float().mean(0).cpu()


@torch.no_grad()
def text_feature(model: PreTrainedModel, processor: ProcessorMixin, text: str) -> Tensor:
    """Mean of the input embeddings of the tokens of `text`, (hidden,), fp32 on the CPU."""
    ids = processor.tokenizer(text, add_special_tokens=False, return_tensors="pt")["input_ids"]
    return model.get_input_embeddings()(ids.to(model.device)).float().mean(1)[0].cpu()


def _question(record: PreferenceRecord) -> str:
    return "\n".join(message.content for message in record.prompt)


def target_scores(
    records: Sequence[PreferenceRecord], scorer: Scorer | None = None
) -> list[list[float]]:
    """Compute the regression targets: `scorer` (default: the heuristic) of each answer, without the image."""
    scorer = scorer or heuristic_scorer()
    return [
        [scorer(None, _question(r), answer.text, r.truth).total for answer in r.answers]
        for r in records
    ]


def r_squared(predicted: Tensor, true: Tensor) -> float:
    """1 − Σ(true − predicted)² / Σ(true − mean)², both (n,): 1 is perfect, 0 as good as the mean of `true`."""
    return 1 - ((true - predicted).square().sum() / (true - true.mean()).square().sum()).item()


@dataclass(frozen=True)
class FeatureFit:
    """R² on the answers trained on, R² on the images held out, and the loss of each epoch."""

    r2_train: float
    r2_held_out: float
    losses: list[float]


class FeatureReward:
    """score(image, question, answer) = MLP([image feature, question feature, answer feature]).

    model, processor: the frozen vision-language model. An image's feature is computed once for each path.
    """

    def __init__(self, model: PreTrainedModel, processor: ProcessorMixin, hidden: int = 128):
        self.model, self.processor, self.hidden = model, processor, hidden
        self.size = 3 * model.get_input_embeddings().embedding_dim
        self.net = _Network(self.size, hidden)
        self._images: dict[Path, Tensor] = {}

    def features(self, records: Sequence[PreferenceRecord]) -> Tensor:
        """One row an answer, (answers, size); several images of a record count as their mean.

        Raises UsageError for an image that cannot be read, or no records.
        """
        if not records:
            raise UsageError("there are no records to score. Give one or more.")
        rows = []
        for record in tqdm(records, desc="features", leave=False):
            images = record.image_paths
            for image in set(images) - self._images.keys():
                self._images[image] = image_feature(self.model, self.processor, image, record.place)
            seen = torch.stack([self._images[image] for image in images]).mean(0)
            asked = text_feature(self.model, self.processor, _question(record))
            said = [
                text_feature(self.model, self.processor, answer.text) for answer in record.answers
            ]
            rows += [torch.cat([seen, asked, feature]) for feature in said]
        return torch.stack(rows)

    def fit(
        self,
        records: Sequence[PreferenceRecord],
        targets: Sequence[Sequence[float]],
        *,
        held_out: float = 0.2,
        epochs: int = 20,
        learning_rate: float = 1e-3,
        batch_size: int = 64,
        seed: int = 0,
    ) -> FeatureFit:
        """Regress `targets` (`target_scores`) from a fresh start: Huber loss of standardised scores, AdamW.

        A share `held_out` of the images is kept out, with all answers to them. Raises UsageError if the
        targets do not fit the answers or are all equal, or if no image is left on one side.
        """
        if [len(scores) for scores in targets] != [len(record.answers) for record in records]:
            raise UsageError(
                f"{file_of(records)}: targets must hold one list a record, one number an answer. Use target_scores."
            )
        x, y = (
            self.features(records),
            torch.tensor([score for scores in targets for score in scores]),
        )
        generator = torch.Generator().manual_seed(seed)
        train, test = _split(records, held_out, generator)
        if min(y[train].std(), y[test].std()) < 1e-6:
            raise UsageError(
                f"{file_of(records)}: the targets are all equal, so there is nothing to regress. Take another scorer."
            )
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.net = _Network(self.size, self.hidden)
        self.net.measure(x[train], y[train])
        optimizer = torch.optim.AdamW(self.net.parameters(), lr=learning_rate)
        losses = []
        for _ in tqdm(range(epochs), desc="feature reward", leave=False):
            total = 0.0
            for rows in train[torch.randperm(len(train), generator=generator)].split(batch_size):
                loss = huber_loss(self.net(x[rows]) / self.net.y_scale, y[rows] / self.net.y_scale)
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                total += loss.item() * len(rows) / len(train)
            losses.append(total)
        with torch.no_grad():
            return FeatureFit(
                *(r_squared(self.net(x[rows]), y[rows]) for rows in (train, test)), losses
            )

    @torch.no_grad()
    def score_records(self, records: Sequence[PreferenceRecord]) -> list[list[float]]:
        """One list a record: a score for every answer, in the units of the targets. Errors as in `features`."""
        scores = iter(self.net(self.features(records)).tolist())
        return [[next(scores) for _ in record.answers] for record in records]

    def as_scorer(self) -> Scorer:
        """The score as a reward function (`helpers/rewards/scoring.py`); answers to one image in a row share its feature."""

        @torch.no_grad()
        def batch(given: Sequence[ScorerInputs]) -> list[Score]:
            rows = []
            for _, group in groupby(given, key=lambda row: id(row[0])):
                group = list(group)
                seen = image_feature(self.model, self.processor, group[0][0])
                texts = [
                    [text_feature(self.model, self.processor, text) for text in row[1:3]]
                    for row in group
                ]
                rows += [torch.cat([seen, *pair]) for pair in texts]
            return [
                Score(value, {"features": value}) for value in self.net(torch.stack(rows)).tolist()
            ]

        score = make_scorer("features", lambda *given: batch([given])[0].parts)
        score.batch = batch
        return score

    def save(self, folder: Path) -> Path:
        """Write the MLP (safetensors) and its sizes (JSON); the vision-language model is not saved."""
        folder.mkdir(parents=True, exist_ok=True)
        save_file(self.net.state_dict(), folder / FEATURE_REWARD_WEIGHTS)
        write_json(folder / FEATURE_REWARD_FILE, {"size": self.size, "hidden": self.hidden})
        return folder

    @classmethod
    def load(
        cls, folder: Path, model: PreTrainedModel, processor: ProcessorMixin
    ) -> "FeatureReward":
        """Load what `save` wrote, on the model that gave its features. Raises UsageError if the sizes differ."""
        about = read_json(folder / FEATURE_REWARD_FILE)
        reward = cls(model, processor, about["hidden"])
        if reward.size != about["size"]:
            raise UsageError(
                f"{folder}: takes {about['size']} features, this model gives {reward.size}. Load its own."
            )
        try:
            reward.net.load_state_dict(load_file(folder / FEATURE_REWARD_WEIGHTS))
        except (OSError, SafetensorError, RuntimeError) as error:
            raise UsageError(
                f"{folder / FEATURE_REWARD_WEIGHTS}: cannot be read ({error}). Train and save it again."
            ) from None
        return reward


class _Network(nn.Module):
    """(rows, size) → (rows,): standardise, three linear layers, back to the units of the targets."""

    def __init__(self, size: int, hidden: int):
        super().__init__()
        layers = [
            nn.Linear(size, hidden),
            nn.GELU(),
            nn.Linear(hidden, hidden),
            nn.GELU(),
            nn.Linear(hidden, 1),
        ]
        self.layers = nn.Sequential(*layers)
        for name, columns in (("x", (size,)), ("y", ())):
            self.register_buffer(f"{name}_mean", torch.zeros(columns))
            self.register_buffer(f"{name}_scale", torch.ones(columns))

    def measure(self, x: Tensor, y: Tensor) -> None:
        self.x_mean, self.x_scale = x.mean(0), x.std(0) + 1e-6  # a feature may be constant
        self.y_mean, self.y_scale = y.mean(), y.std()

    def forward(self, x: Tensor) -> Tensor:
        return (
            self.layers((x - self.x_mean) / self.x_scale).squeeze(-1) * self.y_scale + self.y_mean
        )


def _split(
    records: Sequence[PreferenceRecord], held_out: float, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """Rows of `features` to train on and to hold out; one group's, or one image's, stay together."""
    groups = [record.group or str(record.images) for record in records for _ in record.answers]
    names = sorted(set(groups))
    apart = {
        names[i]
        for i in torch.randperm(len(names), generator=generator)[: round(held_out * len(names))]
    }
    if not 0 < len(apart) < len(names):
        raise UsageError(
            f"{file_of(records)}: {held_out:g} of {len(names)} images leaves none on one side. Give more records."
        )
    test = torch.tensor([group in apart for group in groups])
    return (~test).nonzero()[:, 0], test.nonzero()[:, 0]
