"""Log-probabilities under the reference, computed once for each pair and kept in a file.

The reference never changes, so what it says of a pair is asked once and not in every epoch. The key of
a pair hashes all that the figure depends on: weights of base and reference adapter, processor and
chat template, precision, the images' pixels, the prompt and the answers. Change one, and
the old figure is not found; a stale one cannot be read. Taught in notebook 04.
"""

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path

import torch
import transformers
from peft import PeftModel
from transformers import ProcessorMixin

from helpers.image_features import processor_settings
from helpers.runtime import compute_dtype, tensors_hash


def reference_hash(model: PeftModel, processor: ProcessorMixin, adapter: str | None) -> str:
    """Hash of all but the pair: the base, the `adapter` that is the reference (None: the base alone), …"""

    def tensors():
        for name, parameter in model.named_parameters():
            if "lora_" in name and f".{adapter}." not in name:
                continue
            yield name, parameter
            state = getattr(parameter, "quant_state", None)
            if state is not None:
                yield f"{name}.absmax", state.absmax

    parts = [tensors_hash(tensors()), processor_settings(processor), str(compute_dtype()), transformers.__version__]
    return hashlib.blake2b("\n".join(parts).encode(), digest_size=16).hexdigest()


class ReferenceLogps:
    """Pairs' keys and their log-probabilities; with a folder, in a file there that is only ever appended to."""

    def __init__(self, fingerprint: str, folder: Path | None = None):
        self._fingerprint = fingerprint
        self._file = folder / f"reference-{fingerprint}.jsonl" if folder else None
        self._values: dict[str, list[float]] = dict(_rows(self._file)) if self._file and self._file.exists() else {}

    def key(self, *parts: str) -> str:
        """Key of a pair: hashes of its images, its prompt, its answers, in a fixed order."""
        return hashlib.blake2b(json.dumps([self._fingerprint, *parts]).encode(), digest_size=16).hexdigest()

    def get(self, keys: Sequence[str]) -> torch.Tensor | None:
        """What is kept of all `keys`, (pairs, answers), or None if one of them is missing."""
        if not all(key in self._values for key in keys):
            return None
        return torch.tensor([self._values[key] for key in keys])

    def add(self, keys: Sequence[str], logps: torch.Tensor) -> None:
        """Keep logps, (pairs, answers), of `keys`; figures that are not finite are not kept."""
        new = {key: row for key, row in zip(keys, logps.tolist(), strict=True) if key not in self._values}
        new = {key: row for key, row in new.items() if all(map(_finite, row))}
        self._values |= new
        if self._file and new:
            self._file.parent.mkdir(parents=True, exist_ok=True)
            with self._file.open("a", encoding="utf-8", newline="\n") as file:
                file.writelines(f"\n{json.dumps([key, row])}" for key, row in new.items())

    def __len__(self) -> int:
        return len(self._values)


def _finite(value: float) -> bool:
    return abs(value) < float("inf")  # False for NaN, too


def _rows(path: Path):
    """Rows of the file; one that a kill cut short is computed again. Each begins with its line break for that."""
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            key, row = json.loads(line)
        except ValueError:
            continue
        yield key, row
