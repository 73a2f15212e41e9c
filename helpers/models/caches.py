"""What is computed once and kept: image features, and log-probabilities under the reference.

The vision tower is frozen, so the features of an image stay what they are. The reference never
changes, so what it says of a pair is asked once and not in every epoch. The key of a pair hashes
all that the figure depends on: weights of base and reference adapter, processor and chat template,
precision, the images' pixels, the prompt and the answers. Change one, and the old figure is not
found; a stale one cannot be read. Image features have keys of the same kind. Taught in notebook 04.
"""

import contextlib
import hashlib
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from types import SimpleNamespace

import torch
import transformers
from peft import PeftModel
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import BatchFeature, ProcessorMixin

from helpers.files import replace_file
from helpers.runtime import compute_dtype, tensors_hash

from .adapters import VLM, autocast, base_of, evaluation_mode, stored_tensors
from .prompts import TOKEN_KINDS, ImageLists, bos_text, tokenize
from .shelf import Shelf

# What the vision tower made of the images of a prompt, by name. "pooled": a tensor of all tiles
# (SmolVLM), or "pooled.all": the visual tokens of all images (the others); "deepstack.0" …: what
# further layers get (Qwen3-VL). Empty for a prompt without images.
Features = Mapping[str, Tensor]

# Model inputs of tokens, and what TRL's collator puts beside them
TOKEN_INPUTS = {"input_ids", "attention_mask", "position_ids", "completion_mask", *TOKEN_KINDS}

# Layers in which a token looks at others one by one, by their name in a config's layer_types
ATTENTION_LAYERS = {"full_attention", "sliding_attention", "chunked_attention"}


# --- the parts of a model, and hashes of what decides its figures ---


def backbone_of(model: VLM) -> nn.Module:
    """Return the model without its language head; adapters stay where they are."""
    return base_of(model).model


def _vision(model: VLM) -> Iterator[tuple[str, nn.Parameter]]:
    """Yield the parameters of vision tower and projector: all outside the language model."""
    language = {id(parameter) for parameter in base_of(model).get_decoder().parameters()}
    for name, parameter in backbone_of(model).named_parameters():
        if id(parameter) not in language:
            yield name, parameter


def is_frozen(model: VLM) -> bool:
    """Is nothing outside the language model trained or adapted, so that features do not change?

    An adapter there may be switched off, and counts also while it is not trained.
    """
    return not any(parameter.requires_grad or "lora_" in name for name, parameter in _vision(model))


def vision_inputs(inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return those of the model inputs that the vision tower reads: all but those of tokens."""
    return {name: inputs[name] for name in inputs if name not in TOKEN_INPUTS}


def is_recurrent(model: VLM) -> bool:
    """Does a layer hand a state on from token to token: linear attention, or a convolution?

    A mask cannot hide the tokens before from such a state.
    """
    kinds = getattr(model.config.get_text_config(), "layer_types", None) or ()
    return not ATTENTION_LAYERS.issuperset(kinds)


def _text_hash(text: str) -> str:
    return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()


def images_hash(images: Sequence[Image.Image]) -> str:
    """Return a hash of the pixels, in order."""
    digest = hashlib.blake2b(digest_size=16)
    for image in images:
        digest.update(f"{image.mode} {image.size}".encode() + image.tobytes())
    return digest.hexdigest()


def processor_settings(processor: ProcessorMixin) -> str:
    """Return everything that decides how text and images become inputs, as JSON."""
    tokenizer = processor.tokenizer
    vocabulary = json.dumps(sorted(tokenizer.get_vocab().items()))
    settings = [
        processor.chat_template,
        processor.image_processor.to_dict(),
        [bos_text(processor), tokenizer.eos_token],
        hashlib.blake2b(vocabulary.encode()).hexdigest(),
    ]
    return json.dumps(settings, sort_keys=True, default=str)


# --- image features ---


def vision_fingerprint(model: VLM, processor: ProcessorMixin) -> str:
    """Return what decides an image's features: weights outside the language model, settings."""
    weights = tensors_hash(_vision(model))
    return f"{weights} {processor_settings(processor)} {compute_dtype()}"


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
        self._core = backbone_of(model)
        self._processor = processor
        self._folder = folder
        self._fingerprint = vision_fingerprint(model, processor)
        self._features = {}  # key → features, if there is no folder
        self._prompts = {}  # (rendered prompt, key) → model inputs without pixels
        self._shelf = Shelf()  # where both are
        self.computed = 0  # for how many image lists the vision tower ran

    def key(self, image_hash: str) -> str:
        """Return the key of the features of images with this `images_hash`."""
        return _text_hash(self._fingerprint + image_hash)

    def encode(
        self,
        prompts: Sequence[str],
        images: ImageLists,
        image_hashes: Sequence[str],
    ) -> list[tuple[BatchFeature, Features]]:
        """Return for each rendered prompt its model inputs, and the features of its images.

        The inputs are (1, seq) and without pixels. image_hashes: `images_hash` of each prompt's.
        """
        rows = zip(images, image_hashes, strict=True)
        # A prompt without images has the key ""
        keys = [self.key(image_hash) if pictures else "" for pictures, image_hash in rows]
        found = {key: self._load(key) for key in keys}
        missing = {}  # key → model inputs with pixels
        for prompt, pictures, key in zip(prompts, images, keys, strict=True):
            if (prompt, key) in self._prompts and found[key] is not None:
                continue
            inputs = tokenize(self._processor, [prompt], [pictures])
            if found[key] is None:
                missing[key] = inputs
            # Pixels are large, and not needed again
            small = {}
            for name, value in inputs.items():
                if not name.startswith("pixel_"):
                    small[name] = self._shelf.put(value)
            self._prompts[prompt, key] = BatchFeature(small)
        for key, features in zip(missing, self._compute([*missing.values()]), strict=True):
            self._store(key, features)
            found[key] = features
        return [(self._prompts[pair], found[pair[1]]) for pair in zip(prompts, keys, strict=True)]

    def _compute(self, rows: Sequence[BatchFeature]) -> list[Features]:
        """Run the vision tower: once where patches stand in a line (Qwen-VL), else for each row."""
        if rows and all("image_grid_thw" in row for row in rows):
            return self._run_vision_tower(rows)
        return [self._run_vision_tower([row])[0] for row in rows]

    @torch.no_grad()
    def _run_vision_tower(self, rows: Sequence[BatchFeature]) -> list[Features]:
        device = next(self._core.parameters()).device
        arguments = {}
        for name in vision_inputs(rows[0]):
            arguments[name] = torch.cat([row[name] for row in rows]).to(device)
        with evaluation_mode(self._core), autocast(device):
            output = self._core.get_image_features(**arguments)
        self.computed += len(rows)
        if isinstance(output.pooler_output, Tensor):  # of all tiles together
            return [{"pooled": output.pooler_output.cpu().contiguous()}]
        return _split_features(output, rows)

    def _load(self, key: str) -> Features | None:
        if not key:
            return {}
        if self._folder is None:
            return self._features.get(key)
        path = self._folder / f"{key}.safetensors"
        return load_file(path) if path.exists() else None

    def _store(self, key: str, features: Features) -> None:
        if self._folder is None:
            kept = {name: self._shelf.put(value) for name, value in features.items()}
            self._features[key] = kept
            return
        with replace_file(self._folder / f"{key}.safetensors") as temporary:
            save_file(dict(features), temporary)


def _split_features(output: SimpleNamespace, rows: Sequence[BatchFeature]) -> list[Features]:
    """Give each row the features of its own images, of an output that has one tensor an image."""
    images = iter(output.pooler_output)
    features = []
    for row in rows:
        # A model without grids is asked for one row at a time: all images are that row's
        number = len(row["image_grid_thw"]) if "image_grid_thw" in row else None
        features.append({"pooled.all": torch.cat([*islice(images, number)]).cpu()})
    sizes = [len(own["pooled.all"]) for own in features]
    for layer, states in enumerate(getattr(output, "deepstack_features", None) or []):
        for own, part in zip(features, states.split(sizes), strict=True):
            own[f"deepstack.{layer}"] = part.cpu().contiguous()
    return features


def _pooler_output(features: Features) -> Tensor | list[Tensor]:
    """Return what the model's `get_image_features` called so: a tensor of all tiles, or a list."""
    return features["pooled"] if "pooled" in features else [features["pooled.all"]]


def image_vectors(features: Features) -> Tensor:
    """Return the features of all visual tokens, one after another, (visual tokens, hidden)."""
    pooled = _pooler_output(features)
    tokens = pooled if isinstance(pooled, Tensor) else pooled[0]
    return tokens.flatten(0, -2)


def concatenate_features(features: Sequence[Features]) -> dict[str, Tensor]:
    """Return the features of a batch: image after image, for every layer that gets some."""
    rows = [row for row in features if row]
    together = {}
    for name in rows[0] if rows else ():
        together[name] = torch.cat([row[name] for row in rows])
    return together


@contextlib.contextmanager
def use_features(model: VLM, features: Features) -> Iterator[None]:
    """Let the model use `features` inside, as `concatenate_features` gives them.

    Its vision tower does not run. Without features all stays as it is.
    """
    inner = backbone_of(model)
    if features:
        deepstack = [features[f"deepstack.{layer}"] for layer in range(len(features) - 1)]
        output = SimpleNamespace(
            pooler_output=_pooler_output(features), deepstack_features=deepstack
        )
        # An attribute of the instance hides the method of its class
        inner.get_image_features = lambda *args, **kwargs: output
    try:
        yield
    finally:
        inner.__dict__.pop("get_image_features", None)


# --- log-probabilities under the reference ---


def weights_hash(model: VLM, adapter: str | None) -> str:
    """Return a hash of the weights of the base and of one `adapter` on it (None: the base alone).

    Other adapters do not count, nor the names that PEFT gives to the weights beside them.
    """
    weights = []
    for name, tensor in stored_tensors(model):
        if "lora_" not in name or f".{adapter}." in name:
            name = name.removeprefix("base_model.model.").replace(".base_layer", "")
            weights.append((name, tensor))
    return tensors_hash(weights)


def reference_hash(model: PeftModel, processor: ProcessorMixin, adapter: str | None) -> str:
    """Return a hash of all that a reference's figures depend on but the pair itself.

    adapter: the one that is the reference; None: the base alone.
    """
    parts = [
        weights_hash(model, adapter),
        processor_settings(processor),
        str(compute_dtype()),
        transformers.__version__,
    ]
    return _text_hash("\n".join(parts))


class ReferenceLogps:
    """Pairs' keys and their log-probabilities.

    With a folder they are in a file there, which is only ever appended to.
    """

    def __init__(self, fingerprint: str, folder: Path | None = None):
        self._fingerprint = fingerprint
        self._file = folder / f"reference-{fingerprint}.jsonl" if folder else None
        self._values = {}  # key → log-probabilities of the answers
        if self._file and self._file.exists():
            self._values.update(_read_rows(self._file))

    def key(self, *parts: str) -> str:
        """Return the key of a pair: hashes of its images, its prompt and its answers, in order."""
        return _text_hash(json.dumps([self._fingerprint, *parts]))

    def get(self, keys: Sequence[str]) -> Tensor | None:
        """Return the log-probabilities of all `keys`, (pairs, answers); None if one is missing."""
        if not all(key in self._values for key in keys):
            return None
        return torch.tensor([self._values[key] for key in keys])

    def add(self, keys: Sequence[str], logps: Tensor) -> None:
        """Keep logps, (pairs, answers), of `keys`; figures that are not finite are not kept."""
        new = {}
        for key, row in zip(keys, logps.tolist(), strict=True):
            if key not in self._values and all(map(math.isfinite, row)):
                new[key] = row
        self._values |= new
        if self._file and new:
            self._file.parent.mkdir(parents=True, exist_ok=True)
            with self._file.open("a", encoding="utf-8", newline="\n") as file:
                file.writelines(f"\n{json.dumps(row)}" for row in new.items())

    def __len__(self) -> int:
        return len(self._values)


def _read_rows(path: Path) -> Iterator[tuple[str, list[float]]]:
    """Yield the rows of the file; one that a kill cut short is left out, and computed again.

    Each begins with its line break, so that what follows a cut one stands on a line of its own.
    """
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            key, row = json.loads(line)
        except ValueError:
            continue
        yield key, row
