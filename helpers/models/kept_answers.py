"""Answers that are written down as they are given, so that who is cut off goes on there.

Inside `keep_answers(folder)` every list of prompts has a file of its own in the folder, a line for
each batch. The name of the file is a hash of all that its answers depend on: weights, processor,
images, prompts, and how they are decoded. So asking the same again reads them, and asking anything
else makes another file. Sampling goes on with the random numbers that it would have had.
"""

import base64
import contextlib
import json
from collections.abc import Iterator, Sequence
from contextvars import ContextVar
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from peft.tuners.tuners_utils import BaseTunerLayer
from PIL import Image
from transformers import GenerationConfig, ProcessorMixin

from helpers.data import stable_hash
from helpers.files import file_hash
from helpers.runtime import has_cuda

from .adapters import VLM
from .caches import images_hash, reference_hash

_folder: ContextVar[Path | None] = ContextVar("folder of kept answers", default=None)


@contextlib.contextmanager
def keep_answers(folder: Path) -> Iterator[None]:
    """Keep inside every answer that a model gives in a list; `folder` may have earlier ones."""
    token = _folder.set(folder)
    try:
        yield
    finally:
        _folder.reset(token)


class KeptAnswers:
    """The batches of answers to one list of prompts, by the place of their first.

    path: None keeps nothing.
    """

    def __init__(self, path: Path | None):
        self.path = path
        self._batches: dict[int, dict[str, Any]] = {}
        if path and path.exists():
            for line in path.read_text(encoding="utf-8").splitlines():
                # what a kill cut short is no JSON, and is asked again
                with contextlib.suppress(ValueError):
                    batch = json.loads(line)
                    self._batches[batch["start"]] = batch

    @classmethod
    def of(
        cls,
        model: VLM,
        processor: ProcessorMixin,
        images: Sequence[Any],
        prompts: Sequence[Any],
        config: GenerationConfig,
        *numbers: int,
    ) -> "KeptAnswers":
        """Open the file of these prompts; numbers: the seed and how many are asked at once."""
        folder = _folder.get()
        if folder is None:
            return cls(None)
        parts = [
            reference_hash(model, processor, _active_adapter(model)),
            [_picture_hash(one) for one in images],
            [_plain(prompt) for prompt in prompts],
            config.to_json_string(),
            numbers,
        ]
        return cls(folder / f"answers-{stable_hash(parts)}.jsonl")

    def read(self, start: int) -> list[tuple[str, bool]] | None:
        """Return a batch, text and whether it ended; random numbers go on behind it. None: none."""
        batch = self._batches.get(start)
        if batch is None:
            return None
        torch.set_rng_state(_decode(batch["random"]))
        if has_cuda() and batch["random_cuda"]:
            torch.cuda.set_rng_state(_decode(batch["random_cuda"]))
        return [(text, ended) for text, ended in batch["answers"]]

    def write(self, start: int, answers: Sequence[tuple[str, bool]]) -> None:
        """Write a batch down, with the state of the random numbers after it."""
        if self.path is None:
            return
        batch = {
            "start": start,
            "answers": [list(answer) for answer in answers],
            "random": _encode(torch.get_rng_state()),
            "random_cuda": _encode(torch.cuda.get_rng_state()) if has_cuda() else None,
        }
        self.path.parent.mkdir(parents=True, exist_ok=True)
        # The line break comes first, so that what follows a line cut short stands alone
        with self.path.open("a", encoding="utf-8", newline="\n") as file:
            file.write(f"\n{json.dumps(batch, ensure_ascii=False)}")


def _active_adapter(model: VLM) -> str | None:
    """Return the adapter that answers; None where it is the base."""
    if not isinstance(model, PeftModel):
        return None
    layers = [module for module in model.modules() if isinstance(module, BaseTunerLayer)]
    return None if layers[0].disable_adapters else model.active_adapter


def _picture_hash(pictures: Any) -> list[str]:
    """Return hashes of the images of one prompt: of a file's bytes, or of pixels."""
    shown = [pictures] if isinstance(pictures, Image.Image | Path) else pictures
    return [file_hash(one) if isinstance(one, Path) else images_hash([one]) for one in shown]


def _plain(prompt: Any) -> Any:
    """Return a prompt as JSON can hold it: a question, or the turns of a conversation."""
    if isinstance(prompt, str):
        return prompt
    return [[turn.role, turn.content] for turn in prompt]


def _encode(state: torch.Tensor) -> str:
    return base64.b64encode(bytes(state.tolist())).decode()


def _decode(text: str) -> torch.Tensor:
    return torch.tensor(list(base64.b64decode(text)), dtype=torch.uint8)
