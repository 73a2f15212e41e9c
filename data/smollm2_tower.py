"""The first stage of `build_smollm2_scenes.py`: a vision tower that spells what it sees.

The tower learns without the language model, which makes a step a hundred times as cheap. Four
losses, each for the cells of a scene or for the whole of it:

* which vehicle, in which colour, stands in each cell;
* how many of each kind there are, from the mean of the tower's states;
* the visual tokens *spell* it: the first eight are "2", "cars", "1", "motorcycles" and so on, in
  the language model's own embeddings, the next six the colours that occur. A language model can
  read that from the first step on;
* the digits among them are told from each other as the language model does, by the dot product.
"""

import time
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, mse_loss
from torch.utils.data import DataLoader, IterableDataset
from tqdm.auto import tqdm
from transformers import Idefics3Config, Idefics3ForConditionalGeneration
from transformers.models.idefics3.modeling_idefics3 import (
    Idefics3Connector,
    Idefics3VisionTransformer,
)

from data.build_base import cell_labels, rate_share
from helpers.data.scenes import (
    CLASSES,
    COLORS,
    MOST_PER_KIND,
    SPLIT_SEEDS,
    VEHICLE_KINDS,
    Scene,
    draw_scene,
    make_scene,
)
from helpers.statistics import Proportion, proportion

DIGITS = [str(number) for number in range(MOST_PER_KIND + 1)]
NO_COLOR = " no"  # what a visual token spells in place of a colour that does not occur
COUNT_TOKENS = 2 * len(CLASSES)  # visual tokens that spell a number and its kind, in turn
COLOR_TOKENS = slice(COUNT_TOKENS, COUNT_TOKENS + len(COLORS))
BATCH_SIZE = 32
LEARNING_RATE = 1e-3
WARMUP_STEPS = 60


class Tower(nn.Module):
    """Vision tower and connector of an Idefics3: pixels → visual tokens."""

    def __init__(self, config: Idefics3Config):
        super().__init__()
        self.vision_model = Idefics3VisionTransformer._from_config(config.vision_config)
        self.connector = Idefics3Connector(config)
        for name, module in self.named_modules():
            if isinstance(module, nn.Linear):
                # Far larger than transformers' own .02, with which the tower hardly learns to count
                std = module.in_features**-0.5
                is_output = name.endswith(("out_proj", "fc2"))
                nn.init.normal_(module.weight, std=std / 2 if is_output else std)

    def forward(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        """pixels: (batch, 3, side, side) → states by cell (batch, 16, 512), tokens (…, 576)."""
        states = self.vision_model(pixel_values=pixels).last_hidden_state
        cells = self.connector.pixel_shuffle(states, self.connector.scale_factor)
        return cells, self.connector.modality_projection(cells)


class SceneTargets(IterableDataset):
    """Batches of fresh scenes: pixels and what is true of them, as tensors of integers."""

    def __init__(self, image_processor, steps: int, first_step: int = 0):
        self.image_processor = image_processor
        self.steps = range(first_step, steps)

    def __iter__(self):
        for step in self.steps:
            first = SPLIT_SEEDS["base"][0] + step * BATCH_SIZE
            yield self.collate([make_scene(first + place) for place in range(BATCH_SIZE)])

    def collate(self, scenes: list[Scene]) -> dict[str, Tensor]:
        images = [[draw_scene(scene)] for scene in scenes]
        pixels = self.image_processor(images, return_tensors="pt")["pixel_values"][:, 0]
        kinds, colors = cell_labels(scenes)
        counts = torch.tensor([list(scene.counts.values()) for scene in scenes])
        occurs = torch.zeros(len(scenes), len(COLORS), dtype=torch.long)
        for row, scene in enumerate(scenes):
            for vehicle in scene.vehicles:
                occurs[row, list(COLORS).index(vehicle.color)] = 1
        return {
            "pixels": pixels,
            "kinds": kinds,
            "colors": colors,
            "counts": counts,
            "occurs": occurs,
        }


class Spelling:
    """The words that visual tokens spell, in the language model's embeddings."""

    def __init__(self, embedding: Tensor, tokenizer):
        def of(word: str) -> Tensor:
            ids = tokenizer(word, add_special_tokens=False)["input_ids"]
            return embedding[ids].mean(0)

        self.digits = torch.stack([of(digit) for digit in DIGITS])
        self.kinds = torch.stack([of(f" {kind}") for kind in CLASSES])
        colors = torch.stack([of(f" {color}") for color in COLORS])
        # (2, colours, hidden): not there, there
        self.colors = torch.stack([of(NO_COLOR).expand_as(colors), colors])
        self.scale = embedding.var()

    def loss(self, tokens: Tensor, counts: Tensor, occurs: Tensor) -> Tensor:
        """Tell how far visual tokens, (batch, 16, hidden), are from spelling the scene."""
        digits = tokens[:, 0:COUNT_TOKENS:2]
        kinds = tokens[:, 1:COUNT_TOKENS:2]
        colors = tokens[:, COLOR_TOKENS]
        color_targets = self.colors[occurs, torch.arange(len(COLORS))]
        distance = (
            mse_loss(digits, self.digits[counts])
            + mse_loss(kinds, self.kinds.expand_as(kinds))
            + mse_loss(colors, color_targets)
        )
        # In units of the embedding's own deviation, by dot products
        read = digits @ self.digits.T / self.scale / self.digits.shape[1]
        closeness = cross_entropy(4 * read.flatten(0, 1), counts.flatten())
        return distance / self.scale + closeness


def train_tower(
    tower: Tower, embedding: Tensor, processor, steps: int, checkpoint: Path, every: int = 200
) -> float:
    """Train the tower in place, going on from `checkpoint` if it is there; return the seconds."""
    width = tower.connector.modality_projection.proj.in_features
    heads = nn.ModuleDict(
        {
            "kinds": nn.Linear(width, len(VEHICLE_KINDS) + 1),
            "colors": nn.Linear(width, len(COLORS)),
            "counts": nn.Linear(width, len(CLASSES) * len(DIGITS)),
        }
    )
    spelling = Spelling(embedding, processor.tokenizer)
    trained = nn.ModuleDict({"tower": tower, "heads": heads})
    optimizer = torch.optim.AdamW(trained.parameters(), lr=LEARNING_RATE, weight_decay=0.01)
    first = _resume(checkpoint, trained, optimizer)
    loader = DataLoader(
        SceneTargets(processor.image_processor, steps, first), batch_size=None, num_workers=1
    )
    progress = tqdm(loader, total=steps, initial=first, desc="tower", mininterval=5)
    started = time.perf_counter()
    for step, batch in enumerate(progress, first):
        for group in optimizer.param_groups:
            group["lr"] = LEARNING_RATE * rate_share(step, steps, WARMUP_STEPS)
        cells, tokens = tower(batch["pixels"])
        counts = heads["counts"](cells.mean(1)).unflatten(-1, (len(CLASSES), -1))
        spelled = spelling.loss(tokens, batch["counts"], batch["occurs"])
        loss = (
            cross_entropy(heads["kinds"](cells).flatten(0, 1), batch["kinds"].flatten())
            + cross_entropy(heads["colors"](cells).flatten(0, 1), batch["colors"].flatten())
            + cross_entropy(counts.flatten(0, 1), batch["counts"].flatten())
            + spelled
        )
        loss.backward()
        nn.utils.clip_grad_norm_(trained.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        if step % 50 == 49:
            right = read_digits(spelling, tokens) == batch["counts"]
            progress.set_postfix(loss=f"{loss.item():.3f}", digits=f"{right.float().mean():.2f}")
        if (step + 1) % every == 0 or step + 1 == steps:
            state = {"model": trained.state_dict(), "optimizer": optimizer.state_dict()}
            torch.save({**state, "step": step + 1}, checkpoint)
    return time.perf_counter() - started


def read_digits(spelling: Spelling, tokens: Tensor) -> Tensor:
    """Read the digits that visual tokens spell: the nearest embeddings, (batch, kinds)."""
    digits = tokens[:, 0:COUNT_TOKENS:2].detach()
    return torch.cdist(digits, spelling.digits.expand(len(digits), -1, -1)).argmin(-1)


@torch.no_grad()
def spelled_share(model: Idefics3ForConditionalGeneration, processor, scenes: int) -> Proportion:
    """Share of fresh test scenes of which the visual tokens alone spell every count."""
    embedding = model.get_input_embeddings().weight.float()
    spelling = Spelling(embedding, processor.tokenizer)
    right = []
    for seed in SPLIT_SEEDS["test"][:scenes]:
        scene = make_scene(seed)
        pixels = processor.image_processor([[draw_scene(scene)]], return_tensors="pt")
        pixels = pixels["pixel_values"].flatten(0, 1).to(model.dtype)
        cells = model.model.vision_model(pixel_values=pixels).last_hidden_state
        digits = read_digits(spelling, model.model.connector(cells).float())[0]
        right.append(digits.tolist() == [scene.counts[kind] for kind in CLASSES])
    return proportion(sum(right), len(right))


def _resume(checkpoint: Path, trained: nn.Module, optimizer: torch.optim.Optimizer) -> int:
    """Load a checkpoint if there is one; return the step to go on with."""
    if not checkpoint.exists():
        return 0
    saved = torch.load(checkpoint, weights_only=True)
    trained.load_state_dict(saved["model"])
    optimizer.load_state_dict(saved["optimizer"])
    return saved["step"]
