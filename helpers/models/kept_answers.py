"""Answers that are written down as they are given, so that who is cut off goes on there.

Inside `keep_answers(folder)` every list of prompts has a file of its own in the folder, a line for
each batch. The name of the file is a hash of all that its answers depend on: weights, processor,
images, prompts, and how they are decoded. So asking the same again reads them, and asking anything
else makes another file. What an answer is sampled from does not depend on those before it.
"""

import contextlib
import json
from collections.abc import Iterator, Sequence
from contextvars import ContextVar
from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple

from peft import PeftModel
from peft.tuners.tuners_utils import BaseTunerLayer
from PIL import Image
from transformers import ProcessorMixin

from helpers.data import stable_hash
from helpers.files import file_hash

from .adapters import VLM
from .caches import images_hash, reference_hash
from .decoding import DecodingSettings


class SampledAnswer(NamedTuple):
    """An answer, and whether the model came to its end before its tokens were used up."""

    text: str
    ended: bool


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
        how: DecodingSettings,
        group_size: int,
    ) -> "KeptAnswers":
        """Open the file of `group_size` answers to each of these prompts."""
        folder = _folder.get()
        if folder is None:
            return cls(None)
        parts = [
            reference_hash(model, processor, _active_adapter(model)),
            [_picture_hash(one) for one in images],
            [_plain(prompt) for prompt in prompts],
            asdict(how),
            group_size,
        ]
        return cls(folder / f"answers-{stable_hash(parts)}.jsonl")

    def read(self, start: int) -> list[list[SampledAnswer]] | None:
        """Return a batch: the answers to each prompt from `start` on. None: none is kept."""
        batch = self._batches.get(start)
        if batch is None:
            return None
        kept = []
        for answers in batch["answers"]:
            kept.append([SampledAnswer(*answer) for answer in answers])
        return kept

    def write(self, start: int, answers: Sequence[Sequence[SampledAnswer]]) -> None:
        """Write down the answers to the prompts from `start` on."""
        if self.path is None:
            return
        batch = {"start": start, "answers": answers}
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
