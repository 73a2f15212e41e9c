"""A reward model that reads a caption in place of the image: caption + text-only reward model.

From a student project, with the text form it used. A caption is written by the vision-language model
itself, or by any function from image paths to texts; the reward model is any sequence classifier of
transformers with one output, trained with the Bradley-Terry loss. Without a captioner it is the
text-only twin: same model, same text form, no description, and so the baseline that shows what the
caption adds.

What it cannot do: answer for a detail that the caption leaves out, or correct what the caption says
wrongly. If the caption comes from the model that wrote the answers, its mistakes look right.
"""

import itertools
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch import Tensor
from tqdm.auto import tqdm
from transformers import (
    AutoModelForSequenceClassification,
    AutoTokenizer,
    DistilBertConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    ProcessorMixin,
)

from helpers.data import PreferenceRecord, file_of
from helpers.files import UsageError, read_json, write_json
from helpers.losses import bradley_terry_loss
from helpers.models import generate_answers
from helpers.runtime import device

Captioner = Callable[[Sequence[Path]], list[str]]
CAPTION_REWARD_FILE = "caption_reward.json"


def reward_text(caption: str, instruction: str, response: str) -> str:
    """The project's text form; `caption` is empty for the text-only twin."""
    return f"Image description: {caption}\nInstruction: {instruction}\nResponse: {response}"


def reward_texts(
    records: Sequence[PreferenceRecord], captions: Sequence[str] | None
) -> list[list[str]]:
    """One list a record, one text an answer. `captions`: one a record; None for the text-only twin."""
    captions = [""] * len(records) if captions is None else captions
    return [
        [
            reward_text(caption, "\n".join(m.content for m in record.prompt), answer.text)
            for answer in record.answers
        ]
        for caption, record in zip(captions, records, strict=True)
    ]


def vlm_captioner(
    model: PreTrainedModel,
    processor: ProcessorMixin,
    prompt: str = "Describe everything in this image, with numbers and colours.",
    *,
    max_new_tokens: int = 64,
    batch_size: int = 16,
) -> Captioner:
    """Captions by the vision-language model, greedy, made once for each path."""
    known: dict[Path, str] = {}

    def caption(paths: Sequence[Path]) -> list[str]:
        new = [path for path in dict.fromkeys(paths) if path not in known]
        options = {
            "max_new_tokens": max_new_tokens,
            "batch_size": batch_size,
            "description": "captions",
        }
        known.update(
            zip(
                new,
                generate_answers(model, processor, new, [prompt] * len(new), **options),
                strict=True,
            )
        )
        return [known[path] for path in paths]

    return caption


def load_text_reward(name_or_path: str | Path) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """A sequence classifier with one output (a fresh one if the checkpoint has none) and its tokenizer, in fp32.

    A local folder or a hub id. Raises UsageError if it cannot be read or has several outputs.
    """
    try:
        tokenizer = AutoTokenizer.from_pretrained(name_or_path)
        model = AutoModelForSequenceClassification.from_pretrained(
            name_or_path, num_labels=1, dtype=torch.float32
        )
    except (OSError, ValueError, RuntimeError) as error:
        raise UsageError(
            f"{name_or_path}: cannot be loaded as a text reward model ({str(error).strip().splitlines()[0]}). Check "
            "name and network, and that it has one output; offline, take tiny_text_reward."
        ) from None
    return model, tokenizer


def tiny_text_reward(tokenizer: PreTrainedTokenizerBase, seed: int = 0) -> PreTrainedModel:
    """A small untrained DistilBERT for the vocabulary of `tokenizer`: offline, trained in seconds by `fit`."""
    config = DistilBertConfig(
        vocab_size=len(tokenizer),
        max_position_embeddings=256,
        dim=128,
        n_heads=4,
        n_layers=2,
        hidden_dim=256,
        dropout=0.0,
        attention_dropout=0.0,
        seq_classif_dropout=0.0,
        num_labels=1,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return AutoModelForSequenceClassification.from_config(config)


class CaptionReward:
    """score(image, instruction, response) = text reward model of `reward_text`.

    captioner: None makes the text-only twin, which opens no image.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        captioner: Captioner | None,
        batch_size: int = 64,
    ):
        if model.config.num_labels != 1:
            raise UsageError(
                f"the text reward model has {model.config.num_labels} outputs. Load one with num_labels=1."
            )
        if tokenizer.pad_token is None:
            tokenizer.pad_token = tokenizer.eos_token
        # decoders read the score at the last token that is not padding: both must mean the same one
        model.config.get_text_config().pad_token_id = tokenizer.pad_token_id
        self.model, self.tokenizer = model.to(device()).eval(), tokenizer
        self.captioner, self.batch_size = captioner, batch_size

    def texts(self, records: Sequence[PreferenceRecord]) -> list[list[str]]:
        """`reward_texts` of records, with captions if there is a captioner.

        The captions of several images are put together. Raises UsageError if an image is missing.
        """
        if not records:
            raise UsageError("there are no records to score. Give one or more.")
        if self.captioner is None:
            return reward_texts(records, None)
        for record in records:
            if missing := [image for image in record.image_paths if not image.is_file()]:
                raise UsageError(
                    f"{record.place}: image {missing[0]} does not exist. Paths are relative to the data file."
                )
        captions = iter(
            self.captioner([image for record in records for image in record.image_paths])
        )
        return reward_texts(
            records, [" ".join(next(captions) for _ in record.images) for record in records]
        )

    def forward(self, texts: Sequence[str]) -> Tensor:
        """Scores (texts,), with gradient. Right-padded: absolute positions are then those of the text alone.

        Raises UsageError for a text that is too long, since cutting it would cut the response.
        """
        inputs = self.tokenizer(
            list(texts), padding=True, padding_side="right", return_tensors="pt"
        )
        inputs = {
            name: inputs[name].to(self.model.device) for name in ("input_ids", "attention_mask")
        }
        length = inputs["input_ids"].shape[1]
        limit = min(self.model.config.max_position_embeddings, self.tokenizer.model_max_length)
        if length > limit:
            raise UsageError(
                f"a text of {length} tokens is too long, the model reads {limit}. Shorten the captions."
            )
        return self.model(**inputs).logits.squeeze(-1).float()

    def fit(
        self,
        records: Sequence[PreferenceRecord],
        *,
        epochs: int = 10,
        learning_rate: float = 5e-4,
        batch_size: int = 32,
        seed: int = 0,
    ) -> list[float]:
        """Train on every pair of every ranking; `batch_size` counts pairs. Returns the mean loss of each epoch.

        Goes on from the weights it has. Raises UsageError if no record has a ranking with two tiers.
        """
        pairs = [
            (texts[better], texts[worse])
            for record, texts in zip(records, self.texts(records), strict=True)
            for better, worse in record.tier_pairs()
        ]
        if not pairs:
            raise UsageError(
                f"{file_of(records)}: all answers are tied: no pair to train on. Rank some of them."
            )
        optimizer = torch.optim.AdamW(self.model.parameters(), lr=learning_rate)
        generator, losses = torch.Generator().manual_seed(seed), []
        self.model.train()
        with torch.random.fork_rng():
            torch.manual_seed(seed)  # dropout
            for _ in tqdm(range(epochs), desc="caption reward", leave=False):
                total = 0.0
                for rows in torch.randperm(len(pairs), generator=generator).split(batch_size):
                    better, worse = zip(*(pairs[row] for row in rows.tolist()), strict=True)
                    better_scores, worse_scores = self.forward(better + worse).chunk(2)
                    loss = bradley_terry_loss(better_scores, worse_scores).mean()
                    optimizer.zero_grad()
                    loss.backward()
                    torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
                    optimizer.step()
                    total += loss.item() * len(rows) / len(pairs)
                losses.append(total)
        self.model.eval()
        return losses

    @torch.no_grad()
    def score_records(self, records: Sequence[PreferenceRecord]) -> list[list[float]]:
        """One list a record: a score for every answer, in the order of `answers`. Errors as in `texts`."""
        texts = self.texts(records)
        flat = list(itertools.chain(*texts))
        starts = tqdm(range(0, len(flat), self.batch_size), desc="scores", leave=False)
        scores = iter(
            torch.cat([self.forward(flat[i : i + self.batch_size]) for i in starts]).tolist()
        )
        return [[next(scores) for _ in answers] for answers in texts]

    def save(self, folder: Path) -> Path:
        """Write model (safetensors) and tokenizer. A captioner is not saved, only that there was one."""
        self.model.save_pretrained(folder)
        self.tokenizer.save_pretrained(folder)
        write_json(folder / CAPTION_REWARD_FILE, {"captions": self.captioner is not None})
        return folder

    @classmethod
    def load(cls, folder: Path, captioner: Captioner | None) -> "CaptionReward":
        """Load what `save` wrote. Raises UsageError if it needs a captioner and gets none, or the reverse."""
        if read_json(folder / CAPTION_REWARD_FILE)["captions"] != (captioner is not None):
            raise UsageError(
                f"{folder}: trained {'without' if captioner else 'with'} captions. Load it the same way."
            )
        return cls(*load_text_reward(folder), captioner)
