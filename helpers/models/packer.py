"""From conversations, images and answers to the inputs of a model, in the layout that it can take.

`Packer` decides once for a model whether it packs (`helpers/models/packing_check.py`), and goes in
two steps: `encode` reads prompts and images, once for all answers to them; `pack` puts answers
behind them.
"""

from collections.abc import Sequence
from pathlib import Path

import torch
from transformers import ProcessorMixin

from .adapters import VLM
from .caches import ImageFeatures, is_frozen
from .encoded_prompts import EncodedPrompts, encode_prompts
from .packing_check import can_keep_features, can_pack
from .prompts import Conversation, ImageLists, render_conversation
from .shared_prefix import AnswerLists, PackedAnswers, pack, pack_separately


class Packer:
    """Decides once how answers to prompts become inputs of a model, and makes them.

    packs: all answers to a prompt in one row (`pack`), or a row each (`pack_separately`); None
    tries whether the model can pack, and says so if not. keeps_features: image features are
    computed once, unless packs is False or something trains or adapts the vision tower; in the
    folder `cache`, else in memory. device: of what `pack` makes; None: the model's.
    """

    def __init__(
        self,
        model: VLM,
        processor: ProcessorMixin,
        *,
        cache: Path | None = None,
        packs: bool | None = None,
        keeps_features: bool = True,
        device: torch.device | str | None = None,
    ):
        self.model = model
        self.processor = processor
        self.packs = can_pack(model, processor) if packs is None else packs
        self.features = None
        self._device = device
        if packs is False or not keeps_features:
            return
        if is_frozen(model):
            if self.packs or can_keep_features(model, processor):
                self.features = ImageFeatures(model, processor, cache)
        else:
            print(
                "⚠️  The vision tower is trained or has an adapter: image features are computed "
                "anew in every pass."
            )

    @property
    def device(self) -> torch.device | str:
        return self.model.device if self._device is None else self._device

    def encode(self, conversations: Sequence[Conversation], images: ImageLists) -> EncodedPrompts:
        """Render and tokenise each conversation, and look up its images: once for all answers."""
        texts = []
        for messages, pictures in zip(conversations, images, strict=True):
            texts.append(render_conversation(self.processor, messages, len(pictures)))
        return encode_prompts(self.processor, texts, images, self.features)

    def pack(self, prompts: EncodedPrompts, answers: AnswerLists) -> PackedAnswers:
        """Return model inputs of all answers to each prompt, in their order, on `device`."""
        if self.packs:
            packed = pack(self.model, self.processor, prompts, answers)
        else:
            packed = pack_separately(self.processor, prompts, answers)
        return packed.to(self.device)

    def __call__(
        self,
        conversations: Sequence[Conversation],
        images: ImageLists,
        answers: AnswerLists,
    ) -> PackedAnswers:
        """Encode and pack in one step, for answers that are needed once."""
        return self.pack(self.encode(conversations, images), answers)
