"""What is computed once and kept: image features of a frozen vision tower, and log-probabilities under the reference.

The reference never changes, so what it says of a pair is asked once and not in every epoch. The key of
a pair hashes all that the figure depends on: weights of base and reference adapter, processor and
chat template, precision, the images' pixels, the prompt and the answers. Change one, and
the old figure is not found; a stale one cannot be read. Image features have keys of the same kind.
Taught in notebook 04.
"""

import contextlib
import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace

import torch
import transformers
from peft import PeftModel
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import BatchFeature, ProcessorMixin

from helpers.files import replace_file
from helpers.runtime import compute_dtype, tensors_hash

from .adapters import VLM
from .prompts import bos_text, tokenize

Features = Mapping[
    str, Tensor
]  # what a model's `get_image_features` returns: "pooled" (or "pooled.all"), "deepstack.0" …


def backbone_of(model: VLM) -> torch.nn.Module:
    """The model without its language head; adapters stay where they are."""
    return (model.get_base_model() if isinstance(model, PeftModel) else model).model


def processor_settings(processor: ProcessorMixin) -> str:
    """Everything that decides how text and images become inputs, as JSON."""
    tokenizer, images = processor.tokenizer, processor.image_processor.to_dict()
    vocabulary = hashlib.blake2b(
        json.dumps(sorted(tokenizer.get_vocab().items())).encode()
    ).hexdigest()
    marks = [bos_text(processor), tokenizer.eos_token]
    return json.dumps(
        [processor.chat_template, images, marks, vocabulary], sort_keys=True, default=str
    )


def images_hash(images: Sequence[Image.Image]) -> str:
    """Hash of the pixels, in order."""
    digest = hashlib.blake2b(digest_size=16)
    for image in images:
        digest.update(f"{image.mode} {image.size}".encode() + image.tobytes())
    return digest.hexdigest()


def is_frozen(model: VLM) -> bool:
    """Is nothing outside the language model trained or adapted, so that features stay what they are?

    An adapter there may be switched off, and counts also while it is not trained.
    """
    return not any(parameter.requires_grad or "lora_" in name for name, parameter in _vision(model))


def _vision(model: VLM) -> Iterator[tuple[str, torch.nn.Parameter]]:
    """Parameters of vision tower and projector: all that is not in the language model, with its head."""
    base = model.get_base_model() if isinstance(model, PeftModel) else model
    language = {id(parameter) for parameter in base.get_decoder().parameters()}
    return ((name, p) for name, p in backbone_of(model).named_parameters() if id(p) not in language)


class ImageFeatures:
    """Encoded prompts and image features of a model whose vision tower is frozen.

    folder: keep features as safetensors files there instead of in memory. Raises ValueError if the
    vision tower is trained or has an adapter, since its features change then.
    """

    def __init__(self, model: VLM, processor: ProcessorMixin, folder: Path | None = None):
        if not is_frozen(model):
            raise ValueError(
                "the vision tower is trained or has an adapter: its features cannot be kept"
            )
        self._core, self._processor, self._folder = backbone_of(model), processor, folder
        weights = tensors_hash((name, p) for name, p in _vision(model))
        self._fingerprint = f"{weights} {processor_settings(processor)} {compute_dtype()}"
        self._features: dict[str, Features] = {}
        self._prompts: dict[tuple[str, str], BatchFeature] = {}
        self.computed = 0  # for how many image lists the vision tower ran

    def key(self, image_hash: str) -> str:
        """Key of the features of images with this `images_hash`."""
        return hashlib.blake2b(
            (self._fingerprint + image_hash).encode(), digest_size=16
        ).hexdigest()

    def encode(
        self,
        prompts: Sequence[str],
        images: Sequence[Sequence[Image.Image]],
        image_hashes: Sequence[str],
    ) -> list[tuple[BatchFeature, Features]]:
        """For each rendered prompt its model inputs, (1, seq) and without pixels, and the features of its images.

        image_hashes: `images_hash` of the images of each prompt.
        """
        rows = zip(images, image_hashes, strict=True)
        keys = [self.key(image_hash) if pictures else "" for pictures, image_hash in rows]
        found = {key: self._load(key) if key else {} for key in keys}
        missing: dict[str, BatchFeature] = {}
        for prompt, pictures, key in zip(prompts, images, keys, strict=True):
            if (prompt, key) in self._prompts and found[key] is not None:
                continue
            inputs = tokenize(self._processor, [prompt], [pictures])
            if found[key] is None:
                missing[key] = inputs
            small = {name: value for name, value in inputs.items() if not name.startswith("pixel_")}
            self._prompts[prompt, key] = BatchFeature(small)
        for key, features in zip(missing, self._compute([*missing.values()]), strict=True):
            self._store(key, features)
            found[key] = features
        return [
            (self._prompts[prompt, key], found[key])
            for prompt, key in zip(prompts, keys, strict=True)
        ]

    @torch.no_grad()
    def _compute(self, rows: Sequence[BatchFeature]) -> list[Features]:
        """One run of the vision tower: for all rows where patches stand one after another (Qwen-VL), else for each."""
        if len(rows) != 1 and not all("image_grid_thw" in row for row in rows):
            return [self._compute([row])[0] for row in rows]
        if not rows:
            return []
        device = next(self._core.parameters()).device
        known = {"pixel_values", "pixel_attention_mask", "image_grid_thw", "image_sizes"} & set(
            rows[0]
        )
        arguments = {name: torch.cat([row[name] for row in rows]).to(device) for name in known}
        was_training = self._core.training
        self._core.eval()
        with torch.autocast(device.type, compute_dtype(), enabled=device.type == "cuda"):
            output = self._core.get_image_features(**arguments)
        self._core.train(was_training)
        self.computed += len(rows)
        pooled = output.pooler_output
        if isinstance(pooled, Tensor):  # of all tiles together
            return [{"pooled": pooled.cpu().contiguous()}]
        images = iter(pooled)  # one tensor for each
        numbers = [len(row["image_grid_thw"]) for row in rows] if len(rows) > 1 else [len(pooled)]
        features = [
            {"pooled.all": torch.cat([next(images) for _ in range(number)]).cpu()}
            for number in numbers
        ]
        sizes = [len(row["pooled.all"]) for row in features]
        for layer, states in enumerate(getattr(output, "deepstack_features", None) or []):
            for row, part in zip(features, states.split(sizes), strict=True):
                row[f"deepstack.{layer}"] = part.cpu().contiguous()
        return features

    def _load(self, key: str) -> Features | None:
        if self._folder is None:
            return self._features.get(key)
        path = self._folder / f"{key}.safetensors"
        return load_file(path) if path.exists() else None

    def _store(self, key: str, features: Features) -> None:
        if self._folder is None:
            self._features[key] = features
            return
        with replace_file(self._folder / f"{key}.safetensors") as temporary:
            save_file(dict(features), temporary)


def concatenate_features(features: Sequence[Features]) -> dict[str, Tensor]:
    """The features of a batch: image after image, for every layer that gets some."""
    rows = [row for row in features if row]
    return {name: torch.cat([row[name] for row in rows]) for name in (rows[0] if rows else {})}


@contextlib.contextmanager
def use_features(model: VLM, features: Features) -> Iterator[None]:
    """Inside, the model uses `features` (from `concatenate_features`) instead of running its vision tower."""
    inner = backbone_of(model)
    if features:
        pooled = features["pooled"] if "pooled" in features else [features["pooled.all"]]
        deepstack = [features[f"deepstack.{i}"] for i in range(len(features) - 1)]
        output = SimpleNamespace(pooler_output=pooled, deepstack_features=deepstack)
        inner.get_image_features = lambda *args, **kwargs: output
    try:
        yield
    finally:
        inner.__dict__.pop("get_image_features", None)


def weights_hash(model: VLM, adapter: str | None) -> str:
    """Hash of the weights of the base and of one `adapter` on it (None: the base alone).

    Other adapters do not count, nor the names that PEFT gives to the weights beside them.
    """

    def tensors():
        for name, parameter in model.named_parameters():
            if "lora_" in name and f".{adapter}." not in name:
                continue
            name = name.removeprefix("base_model.model.").replace(".base_layer", "")
            yield name, parameter
            state = getattr(parameter, "quant_state", None)
            if state is not None:
                yield f"{name}.absmax", state.absmax

    return tensors_hash(tensors())


def reference_hash(model: PeftModel, processor: ProcessorMixin, adapter: str | None) -> str:
    """Hash of all but the pair: the base, the `adapter` that is the reference (None: the base alone), …"""
    parts = [
        weights_hash(model, adapter),
        processor_settings(processor),
        str(compute_dtype()),
        transformers.__version__,
    ]
    return hashlib.blake2b("\n".join(parts).encode(), digest_size=16).hexdigest()


class ReferenceLogps:
    """Pairs' keys and their log-probabilities; with a folder, in a file there that is only ever appended to."""

    def __init__(self, fingerprint: str, folder: Path | None = None):
        self._fingerprint = fingerprint
        self._file = folder / f"reference-{fingerprint}.jsonl" if folder else None
        self._values: dict[str, list[float]] = (
            dict(_rows(self._file)) if self._file and self._file.exists() else {}
        )

    def key(self, *parts: str) -> str:
        """Key of a pair: hashes of its images, its prompt, its answers, in a fixed order."""
        return hashlib.blake2b(
            json.dumps([self._fingerprint, *parts]).encode(), digest_size=16
        ).hexdigest()

    def get(self, keys: Sequence[str]) -> torch.Tensor | None:
        """Stored log-probabilities of all `keys`, (pairs, answers), or None if one of them is missing."""
        if not all(key in self._values for key in keys):
            return None
        return torch.tensor([self._values[key] for key in keys])

    def add(self, keys: Sequence[str], logps: torch.Tensor) -> None:
        """Keep logps, (pairs, answers), of `keys`; figures that are not finite are not kept."""
        new = {
            key: row
            for key, row in zip(keys, logps.tolist(), strict=True)
            if key not in self._values
        }
        new = {key: row for key, row in new.items() if all(map(_is_finite, row))}
        self._values |= new
        if self._file and new:
            self._file.parent.mkdir(parents=True, exist_ok=True)
            with self._file.open("a", encoding="utf-8", newline="\n") as file:
                file.writelines(f"\n{json.dumps([key, row])}" for key, row in new.items())

    def __len__(self) -> int:
        return len(self._values)


def _is_finite(value: float) -> bool:
    return abs(value) < float("inf")  # False for NaN, too


def _rows(path: Path):
    """Rows of the file; one that a kill cut short is computed again. Each begins with its line break for that."""
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            key, row = json.loads(line)
        except ValueError:
            continue
        yield key, row
