"""A reward model that reads a caption in place of the image: caption + text-only reward model.

From a student project, with the text form it used. A caption is written by the vision-language
model itself, or by any function from image paths to texts; the reward model is any sequence
classifier of transformers with one output, trained with the Bradley-Terry loss. Without a captioner
it is the text-only twin: same model, same text form, no description, and so the baseline that shows
what the caption adds.

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
from helpers.files import (
    SEAL_FILE,
    UsageError,
    read_json,
    require_whole,
    seal_folder,
    write_json,
)
from helpers.losses import bradley_terry_loss
from helpers.models import generate_answers
from helpers.runtime import device

from .reward_model import split_scores

Captioner = Callable[[Sequence[Path]], list[str]]
CAPTION_REWARD_FILE = "caption_reward.json"
SCORED_AT_ONCE = 64  # texts in one forward without gradient


def reward_text(caption: str, instruction: str, response: str) -> str:
    """The project's text form; `caption` is empty for the text-only twin."""
    return f"Image description: {caption}\nInstruction: {instruction}\nResponse: {response}"


def reward_texts(
    records: Sequence[PreferenceRecord],
    captions: Sequence[str] | None,
) -> list[list[str]]:
    """One list a record, one text an answer.

    captions: one a record; None for the text-only twin.
    """
    texts = []
    for place, record in enumerate(records):
        caption = captions[place] if captions else ""
        question = "\n".join(message.content for message in record.prompt)
        texts.append([reward_text(caption, question, answer.text) for answer in record.answers])
    return texts


def vlm_captioner(
    model: PreTrainedModel,
    processor: ProcessorMixin,
    prompt: str = "Describe everything in this image, with numbers and colours.",
) -> Captioner:
    """Captions by the vision-language model, greedy, made once for each path."""
    known: dict[Path, str] = {}

    def caption(paths: Sequence[Path]) -> list[str]:
        # in the order of `paths`, each once
        new = [path for path in dict.fromkeys(paths) if path not in known]
        prompts = [prompt] * len(new)
        made = generate_answers(
            model,
            processor,
            new,
            prompts,
            batch_size=16,  # captions are longer than answers
            description="captions",
        )
        known.update(zip(new, made, strict=True))
        return [known[path] for path in paths]

    return caption


def load_text_reward(name_or_path: str | Path) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """A sequence classifier with one output and its tokenizer, in fp32.

    A local folder or a hub id; a checkpoint without such an output gets a fresh one. Raises
    UsageError if it cannot be read or has several outputs.
    """
    try:
        tokenizer = AutoTokenizer.from_pretrained(name_or_path)
        model = AutoModelForSequenceClassification.from_pretrained(
            name_or_path, num_labels=1, dtype=torch.float32
        )
    except (OSError, ValueError, RuntimeError) as error:
        reason = str(error).strip().splitlines()[0]
        raise UsageError(
            f"{name_or_path}: cannot be loaded as a text reward model ({reason}). "
            "Check name and network, and that it has one output; offline, take tiny_text_reward."
        ) from None
    return model, tokenizer


def tiny_text_reward(tokenizer: PreTrainedTokenizerBase, seed: int = 0) -> PreTrainedModel:
    """A small untrained DistilBERT for the vocabulary of `tokenizer`; `fit` takes seconds."""
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
    ):
        outputs = model.config.num_labels
        if outputs != 1:
            raise UsageError(
                f"the text reward model has {outputs} outputs. Load one with num_labels=1."
            )
        if tokenizer.pad_token is None:
            tokenizer.pad_token = tokenizer.eos_token
        # decoders read the score at the last token that is no padding: both must mean the same one
        model.config.get_text_config().pad_token_id = tokenizer.pad_token_id
        self.model = model.to(device()).eval()
        self.tokenizer = tokenizer
        self.captioner = captioner

    def texts(self, records: Sequence[PreferenceRecord]) -> list[list[str]]:
        """`reward_texts` of records, with captions if there is a captioner.

        The captions of several images are put together. Raises UsageError if an image is missing.
        """
        if not records:
            raise UsageError("there are no records to score. Give one or more.")
        if self.captioner is None:
            return reward_texts(records, None)
        paths = []
        for record in records:
            paths += record.image_paths
            for image in record.image_paths:
                if not image.is_file():
                    raise UsageError(
                        f"{record.place}: image {image} does not exist. "
                        "Paths are relative to the data file."
                    )
        # all at once, since a captioner is quickest with many
        captions = dict(zip(paths, self.captioner(paths), strict=True))
        fitting = []
        cut = 0
        for record in records:
            caption = " ".join(map(captions.get, record.image_paths))
            fitting.append(self._fit_caption(caption, record))
            cut += fitting[-1] != caption
        if cut:
            print(
                f"⚠️  {cut} of {len(records)} captions are cut at their end: the text model reads "
                f"{self.limit} tokens of caption, question and answer."
            )
        return reward_texts(records, fitting)

    @property
    def limit(self) -> int:
        """Tokens that the model reads: it has no positions beyond."""
        return min(self.model.config.max_position_embeddings, self.tokenizer.model_max_length)

    def _fit_caption(self, caption: str, record: PreferenceRecord) -> str:
        """Return as much of a caption as leaves room for question and answer."""
        ids = self.tokenizer(caption, add_special_tokens=False)["input_ids"]
        kept = len(ids)
        while kept >= 0:
            excess = self._longest(caption, record) - self.limit
            if excess <= 0:
                return caption
            # at least so many; the end of what is left may be other tokens than before
            kept -= excess
            caption = self.tokenizer.decode(ids[: max(kept, 0)], skip_special_tokens=True)
        return ""

    def _longest(self, caption: str, record: PreferenceRecord) -> int:
        """Return the tokens of the longest text of a record."""
        (texts,) = reward_texts([record], [caption])
        return max(map(len, self.tokenizer(texts)["input_ids"]))

    def forward(self, texts: Sequence[str]) -> Tensor:
        """Scores (texts,), with gradient.

        Right-padded: absolute positions are then those of the text alone. Raises UsageError for a
        text that is too long, since cutting it would cut the response.
        """
        inputs = self.tokenizer(
            list(texts),
            padding=True,
            padding_side="right",
            return_tensors="pt",
            return_token_type_ids=False,
        ).to(self.model.device)
        length = inputs["input_ids"].shape[1]
        if length > self.limit:
            raise UsageError(
                f"a text of {length} tokens is too long, the model reads {self.limit}. "
                "Shorten questions and answers, or take a text model that reads more."
            )
        return self.model(**inputs).logits.squeeze(-1).float()

    def _pairs(self, records: Sequence[PreferenceRecord]) -> list[tuple[str, str]]:
        """Texts of the better and the worse answer of every pair of every ranking."""
        pairs = []
        for record, texts in zip(records, self.texts(records), strict=True):
            pairs += [(texts[better], texts[worse]) for better, worse in record.tier_pairs()]
        if not pairs:
            raise UsageError(
                f"{file_of(records)}: all answers are tied: no pair to train on. Rank some of them."
            )
        return pairs

    def fit(
        self,
        records: Sequence[PreferenceRecord],
        *,
        epochs: int = 10,
        learning_rate: float = 5e-4,
        batch_size: int = 32,
        seed: int = 0,
    ) -> list[float]:
        """Train on every pair of every ranking, and return the mean loss of each epoch.

        Goes on from the weights it has; `batch_size` counts pairs. Raises UsageError if no record
        has a ranking with two tiers.
        """
        pairs = self._pairs(records)
        # the whole model is trained, not an adapter
        optimizer = torch.optim.AdamW(self.model.parameters(), lr=learning_rate)
        generator = torch.Generator().manual_seed(seed)
        losses = []
        self.model.train()
        with torch.random.fork_rng():
            # of dropout; the order of the pairs has a generator of its own
            torch.manual_seed(seed)
            for _ in tqdm(range(epochs), desc="caption reward", leave=False):
                total = 0.0
                for rows in torch.randperm(len(pairs), generator=generator).split(batch_size):
                    # one forward for both sides: (2 · pairs,) scores, the better half first
                    better, worse = zip(*(pairs[row] for row in rows.tolist()), strict=True)
                    better_scores, worse_scores = self.forward(better + worse).chunk(2)
                    loss = bradley_terry_loss(better_scores, worse_scores).mean()
                    # one step of AdamW, with the gradient's norm held to 1
                    optimizer.zero_grad()
                    loss.backward()
                    torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
                    optimizer.step()
                    # the last batch may be smaller, so each counts by its pairs
                    total += loss.item() * len(rows) / len(pairs)
                losses.append(total)
        self.model.eval()
        return losses

    @torch.no_grad()
    def score_records(self, records: Sequence[PreferenceRecord]) -> list[list[float]]:
        """One list a record: a score for every answer, in the order of `answers`.

        Errors as in `texts`.
        """
        flat = list(itertools.chain(*self.texts(records)))
        scores = []
        for start in tqdm(range(0, len(flat), SCORED_AT_ONCE), desc="scores", leave=False):
            scores.append(self.forward(flat[start : start + SCORED_AT_ONCE]))
        return split_scores(torch.cat(scores), records)

    def save(self, folder: Path) -> Path:
        """Write model (safetensors) and tokenizer; of a captioner only that there was one."""
        self.model.save_pretrained(folder)
        self.tokenizer.save_pretrained(folder)
        write_json(folder / CAPTION_REWARD_FILE, {"captions": self.captioner is not None})
        files = [file.name for file in folder.iterdir() if file.is_file()]
        seal_folder(folder, [name for name in files if name != SEAL_FILE])
        return folder

    @classmethod
    def load(cls, folder: Path, captioner: Captioner | None) -> "CaptionReward":
        """Load what `save` wrote.

        Raises UsageError if it needs a captioner and gets none, or the reverse.
        """
        require_whole(folder)
        if read_json(folder / CAPTION_REWARD_FILE)["captions"] != (captioner is not None):
            raise UsageError(
                f"{folder}: trained {'without' if captioner else 'with'} captions. "
                "Load it the same way."
            )
        return cls(*load_text_reward(folder), captioner)
