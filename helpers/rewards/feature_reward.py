"""The smallest reward model: an MLP on pooled image, question and answer features.

From a student project whose reward model learnt its heuristic (`scoring.heuristic_scorer`). The
vision-language model is frozen and only gives features; an MLP of three linear layers is trained to
regress a score.

What it cannot do
- The heuristic never looks at the image. Its regression is worth what its facts are: without counts
  it is a rule about texts. Judging a policy by what trained it is circular; only the ground truth
  can tell.
- Means forget order: "2 cars, 0 buses" and "0 cars, 2 buses" have equal features, so equal scores.

Simplification: text features are means of the model's own input embeddings. They need no second
model and nothing but the MLP has to be saved; TF-IDF of helpers/rewards/similarity.py would have to
be fitted and saved.
"""

import inspect
from collections.abc import Sequence
from dataclasses import dataclass
from operator import is_not
from pathlib import Path

import torch
from PIL import Image
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn.functional import huber_loss
from tqdm.auto import tqdm
from transformers import PreTrainedModel, ProcessorMixin

from helpers.data import Message, PreferenceRecord, file_of, stable_hash
from helpers.files import UsageError, open_image, replace_file
from helpers.models import Shelf, images_hash, vision_fingerprint

from .reward_model import split_scores
from .scoring import (
    Score,
    Scorer,
    ScorerInputs,
    heuristic_scorer,
    images_of,
    make_batch_scorer,
    score_all,
    turns_of,
)

FEATURE_REWARD_WEIGHTS = "feature_reward.safetensors"
HELD_OUT_SHARE = 0.2  # of the images: what it says of images that it has not seen
BATCH_SIZE = 64  # answers a step
EQUAL = 1e-6  # standard deviation under which scores are all the same


@torch.no_grad()
def image_feature(
    model: PreTrainedModel,
    processor: ProcessorMixin,
    image: Path | Image.Image,
    where: str | None = None,
) -> Tensor:
    """Mean of the visual tokens as the language model gets them, (hidden,), fp32 on the CPU.

    Any model of transformers 5 with `get_image_features` will do: its `pooler_output` holds the
    tokens of an image, (tokens, hidden), or those of its tiles. Raises UsageError if the image
    cannot be read.
    """
    image = open_image(image, where) if isinstance(image, Path) else image
    inputs = processor.image_processor(images=[image], return_tensors="pt").to(model.device)
    # some processors return more than the model takes
    wanted = inspect.signature(model.get_image_features).parameters
    kept = {name: value for name, value in inputs.items() if name in wanted}
    output = model.get_image_features(**kept)
    tokens = torch.cat([part.flatten(end_dim=-2) for part in output.pooler_output])
    return tokens.float().mean(0).cpu()


@torch.no_grad()
def text_feature(model: PreTrainedModel, processor: ProcessorMixin, text: str) -> Tensor:
    """Mean of the input embeddings of the tokens of `text`, (hidden,), fp32 on the CPU."""
    ids = processor.tokenizer(text, add_special_tokens=False, return_tensors="pt")["input_ids"]
    embeddings = model.get_input_embeddings()(ids.to(model.device))  # (1, tokens, hidden)
    return embeddings.float().mean(1)[0].cpu()


def _question(turns: Sequence[Message]) -> str:
    return "\n".join(message.content for message in turns)


def target_scores(
    records: Sequence[PreferenceRecord],
    scorer: Scorer | None = None,
) -> list[list[float]]:
    """Compute the regression targets: the score of each answer, without the image.

    scorer: the heuristic if None.
    """
    rows = []
    for record in records:
        question = _question(record.prompt)
        rows += [(None, question, answer.text, record.truth) for answer in record.answers]
    # together, so that a scorer with a model in it gets many answers at once
    scores = iter(score_all(scorer or heuristic_scorer(), rows))
    targets = []
    for record in records:
        targets.append([next(scores).total for _ in record.answers])
    return targets


def r_squared(predicted: Tensor, true: Tensor) -> float:
    """1 − Σ(true − predicted)² / Σ(true − mean)², both (n,).

    1 is perfect, 0 as good as the mean of `true`.
    """
    # what is left unexplained, and what there is to explain
    missed = (true - predicted).square().sum()
    return 1 - (missed / (true - true.mean()).square().sum()).item()


@dataclass(frozen=True)
class FeatureFit:
    """R² on the answers trained on, R² on the images held out, and the loss of each epoch."""

    r2_train: float
    r2_held_out: float
    losses: list[float]


class FeatureReward:
    """score(image, question, answer) = MLP([image feature, question feature, answer feature]).

    model, processor: the frozen vision-language model. An image's feature is computed once for each
    path, and with a folder as `cache` once for its pixels: a run that was stopped goes on from it.
    """

    def __init__(
        self, model: PreTrainedModel, processor: ProcessorMixin, cache: Path | None = None
    ):
        self.model = model
        self.processor = processor
        self._cache = cache
        self._fingerprint = vision_fingerprint(model, processor) if cache else ""
        self.size = 3 * model.get_input_embeddings().embedding_dim
        self.net = _Network(self.size)
        self._images: dict[Path, Tensor] = {}
        self._shelf = Shelf()  # where these are

    def _text(self, text: str) -> Tensor:
        return text_feature(self.model, self.processor, text)

    def _image(self, path: Path, where: str | None) -> Tensor:
        """The feature of an image; one that the cache has is not computed again."""
        if self._cache is None:
            return image_feature(self.model, self.processor, path, where)
        image = open_image(path, where)
        kept = self._cache / f"{stable_hash([self._fingerprint, images_hash([image])])}.safetensors"
        if kept.exists():
            return load_file(kept)["mean"]
        found = image_feature(self.model, self.processor, image)
        with replace_file(kept) as beside:
            save_file({"mean": found}, beside)
        return found

    def _mean_feature(self, images: Sequence[Image.Image]) -> Tensor:
        features = [image_feature(self.model, self.processor, image) for image in images]
        return torch.stack(features).mean(0)

    def features(self, records: Sequence[PreferenceRecord]) -> Tensor:
        """One row an answer, (answers, size); several images of a record count as their mean.

        Raises UsageError for an image that cannot be read, or no records.
        """
        if not records:
            raise UsageError("there are no records to score. Give one or more.")
        # one row an answer: (image, question, answer)
        rows, shelf = [], Shelf()
        for record in tqdm(records, desc="features", leave=False):
            images = record.image_paths
            for image in set(images) - self._images.keys():
                self._images[image] = self._shelf.put(self._image(image, record.place))
            seen = torch.stack([self._images[image] for image in images]).mean(0)
            asked = self._text(_question(record.prompt))
            for answer in record.answers:
                rows.append(shelf.put(torch.cat([seen, asked, self._text(answer.text)])))
        return torch.stack(rows)

    def fit(
        self,
        records: Sequence[PreferenceRecord],
        targets: Sequence[Sequence[float]],
        *,
        epochs: int = 20,
        learning_rate: float = 1e-3,
        seed: int = 0,
    ) -> FeatureFit:
        """Regress `targets` (`target_scores`) from a fresh start: Huber loss, AdamW.

        A share of the images is held out, with all answers to them. Raises UsageError if the
        targets do not fit the answers or are all equal, or if no image is left on one side.
        """
        _check_targets(records, targets)
        x = self.features(records)  # (answers, size)
        y = torch.tensor([score for scores in targets for score in scores])  # (answers,)
        generator = torch.Generator().manual_seed(seed)
        train, test = _split(records, y, generator)
        # a fresh network that knows the scale of what it gets and gives
        self.net = _new_network(self.size, seed)
        self.net.measure(x[train], y[train])
        optimizer = torch.optim.AdamW(self.net.parameters(), lr=learning_rate)
        losses = []
        for _ in tqdm(range(epochs), desc="feature reward", leave=False):
            total = 0.0
            # every answer once, in a new order
            order = train[torch.randperm(len(train), generator=generator)]
            for rows in order.split(BATCH_SIZE):
                # in deviations of the targets, so that the loss does not depend on their unit
                loss = huber_loss(self.net(x[rows]) / self.net.y_scale, y[rows] / self.net.y_scale)
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                # the last batch may be smaller, so each counts by its answers
                total += loss.item() * len(rows) / len(train)
            losses.append(total)
        with torch.no_grad():
            explained = [r_squared(self.net(x[rows]), y[rows]) for rows in (train, test)]
        return FeatureFit(*explained, losses)

    @torch.no_grad()
    def score_records(self, records: Sequence[PreferenceRecord]) -> list[list[float]]:
        """One list a record: a score for every answer, in the units of the targets.

        Errors as in `features`.
        """
        return split_scores(self.net(self.features(records)), records)

    def as_scorer(self) -> Scorer:
        """The score as a reward function (`helpers/rewards/scoring.py`), as `features` has it.

        Several images count as their mean; answers to one image that follow each other share its
        feature. Raises UsageError for a question without an image.
        """

        @torch.no_grad()
        def batch(given: Sequence[ScorerInputs]) -> list[Score]:
            rows = []
            known: list[Image.Image] = []
            seen = None
            for image, question, answer, _ in given:
                images = images_of(image)
                if not images:
                    raise UsageError(
                        f"features: {question!r} has no image, and the network needs one. Give "
                        "one, or take another scorer."
                    )
                if len(images) != len(known) or any(map(is_not, images, known)):
                    seen, known = self._mean_feature(images), images
                asked = self._text(_question(turns_of(question)))
                rows.append(torch.cat([seen, asked, self._text(answer)]))
            values = self.net(torch.stack(rows)).tolist()
            return [Score(value, {"features": value}) for value in values]

        return make_batch_scorer("features", batch)

    def save(self, folder: Path) -> Path:
        """Write the MLP (safetensors), without the vision-language model."""
        with replace_file(folder / FEATURE_REWARD_WEIGHTS) as beside:
            save_file(self.net.state_dict(), beside)
        return folder

    @classmethod
    def load(
        cls,
        folder: Path,
        model: PreTrainedModel,
        processor: ProcessorMixin,
    ) -> "FeatureReward":
        """Load what `save` wrote, on the model that gave its features.

        Raises UsageError if the sizes differ.
        """
        reward = cls(model, processor)
        file = folder / FEATURE_REWARD_WEIGHTS
        try:
            weights = load_file(file)
        except (OSError, SafetensorError) as error:
            raise UsageError(
                f"{file}: cannot be read ({error}). Train and save it again."
            ) from None
        size = len(weights["x_mean"])
        if size != reward.size:
            raise UsageError(
                f"{folder}: takes {size} features, this model gives {reward.size}. Load its own."
            )
        reward.net.load_state_dict(weights)
        return reward


class _Network(nn.Module):
    """(rows, size) → (rows,): standardise, three linear layers, back to the targets' units."""

    HIDDEN = 128  # units; some thousand answers are enough for as many

    def __init__(self, size: int):
        super().__init__()
        # of standardised features, (rows, size) → (rows, 1)
        self.layers = nn.Sequential(
            nn.Linear(size, self.HIDDEN),
            nn.GELU(),
            nn.Linear(self.HIDDEN, self.HIDDEN),
            nn.GELU(),
            nn.Linear(self.HIDDEN, 1),
        )
        # saved with the weights, but not trained
        self.register_buffer("x_mean", torch.zeros(size))
        self.register_buffer("x_scale", torch.ones(size))
        self.register_buffer("y_mean", torch.zeros(()))
        self.register_buffer("y_scale", torch.ones(()))

    def measure(self, x: Tensor, y: Tensor) -> None:
        """Take mean and deviation of features and targets from the answers to train on."""
        self.x_mean = x.mean(0)
        self.x_scale = x.std(0) + 1e-6  # a feature may be constant
        self.y_mean = y.mean()
        self.y_scale = y.std()

    def forward(self, x: Tensor) -> Tensor:
        standard = (x - self.x_mean) / self.x_scale
        return self.layers(standard).squeeze(-1) * self.y_scale + self.y_mean


def _new_network(size: int, seed: int) -> _Network:
    """First weights that follow from the seed; the caller's random numbers are left alone."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return _Network(size)


def _check_targets(
    records: Sequence[PreferenceRecord],
    targets: Sequence[Sequence[float]],
) -> None:
    if list(map(len, targets)) != [len(record.answers) for record in records]:
        raise UsageError(
            f"{file_of(records)}: targets must hold one list a record, one number an answer. "
            "Use target_scores."
        )


def _split(
    records: Sequence[PreferenceRecord],
    y: Tensor,
    generator: torch.Generator,
) -> tuple[Tensor, Tensor]:
    """Rows of `features` to train on and to hold out; those of a group, or an image, together.

    y: the targets, which must differ on both sides.
    """
    # whole groups are held out: answers to one image are not independent
    groups = [record.group or str(record.images) for record in records for _ in record.answers]
    names = sorted(set(groups))
    order = torch.randperm(len(names), generator=generator).tolist()
    apart = {names[place] for place in order[: round(HELD_OUT_SHARE * len(names))]}
    if not 0 < len(apart) < len(names):
        raise UsageError(
            f"{file_of(records)}: {HELD_OUT_SHARE:g} of {len(names)} images leaves none "
            "on one side. Give more records."
        )
    test = torch.tensor([group in apart for group in groups])
    if min(y[~test].std(), y[test].std()) < EQUAL:
        raise UsageError(
            f"{file_of(records)}: the targets are all equal, so there is nothing to regress. "
            "Take another scorer."
        )
    return (~test).nonzero()[:, 0], test.nonzero()[:, 0]
