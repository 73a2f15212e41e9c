"""Rewards by similarity: cosine of text embeddings with a reference, CLIP of text and image.

Same signature as in `helpers/rewards/scoring.py`.
"""

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from sklearn.feature_extraction.text import TfidfVectorizer

from helpers import runtime
from helpers.files import UsageError

from .references import require_references
from .scoring import Scorer, images_of, make_scorer

Embedder = Callable[[list[str]], np.ndarray]  # n texts → (n, d)


def _reason(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def cosine_scorer(embed: Embedder) -> Scorer:
    """Cosine of the embeddings of answer and reference, −1 … 1; the best of several.

    0 for a zero vector. A known trap: against "green", "not green" scores higher than "The clock on
    the wall is green." Cosine measures shared words, not truth, and rewards saying little.
    """

    def parts(image, question, answer, facts):
        # the answer first, then what it is compared with
        texts = [answer, *require_references(facts, "cosine")]
        vectors = np.asarray(embed(texts), dtype=float)  # (1 + references, d)
        lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
        units = np.divide(vectors, lengths, out=np.zeros_like(vectors), where=lengths > 0)
        return {"cosine": (units[1:] @ units[0]).max()}

    return make_scorer("cosine", parts)


def tfidf_embedder(corpus: Sequence[str]) -> Embedder:
    """TF-IDF vectors of words and pairs of words (scikit-learn, offline), fitted on `corpus`.

    Words that the corpus lacks count for nothing. Raises UsageError if it holds no word at all.
    """
    # scikit-learn's own pattern drops words of one character, and with them the counts
    vectorizer = TfidfVectorizer(ngram_range=(1, 2), token_pattern=r"(?u)\b\w+\b")
    try:
        vectorizer.fit(corpus)
    except ValueError as error:
        raise UsageError(
            f"corpus: cannot fit TF-IDF ({error}). Give the answers of the training data."
        ) from None
    return lambda texts: vectorizer.transform(texts).toarray()


def sentence_embedder(name: str = "sentence-transformers/paraphrase-MiniLM-L6-v2") -> Embedder:
    """Embeddings of a sentence-transformers model.

    Raises UsageError if package or model cannot be had.
    """
    try:
        # optional: not in requirements.txt
        from sentence_transformers import SentenceTransformer

        model = SentenceTransformer(name)
    except (ImportError, OSError, ValueError) as error:
        raise UsageError(
            f"sentence embeddings of {name} cannot be had ({_reason(error)}). "
            "Run `pip install sentence-transformers`, "
            "check name and network, or take tfidf_embedder(corpus)."
        ) from None
    return lambda texts: np.asarray(model.encode(texts, show_progress_bar=False))


def text_embedder(corpus: Sequence[str]) -> Embedder:
    """Sentence-transformers if it can be had, else TF-IDF fitted on `corpus`. Prints which."""
    try:
        embed = sentence_embedder()
    except UsageError as error:
        print(f"Text embeddings: TF-IDF, because {error}")
        return tfidf_embedder(corpus)
    print("Text embeddings: sentence-transformers.")
    return embed


def clip_scorer(model: torch.nn.Module, processor: Callable) -> Scorer:
    """CLIPScore = 2.5 · max(cos(image, answer), 0), 0 … 2.5 (Hessel et al. 2021, arXiv 2104.08718).

    model, processor: transformers' CLIPModel and CLIPProcessor. CLIP reads 77 tokens, start and end
    included; the rest of an answer does not count. Of several images it is the mean, as the answer
    is about all of them: the best would be that of an answer about one alone. Simplified: without
    the paper's prefix "A photo depicts", which is meant for captions. The scorer raises UsageError
    if there is no image.
    """

    @torch.no_grad()
    def parts(image, question, answer, facts):
        images = images_of(image)
        if not images:
            raise UsageError(
                "clip: there is no image to compare the answer with. "
                "Give one, or take another scorer."
            )
        # what is longer than CLIP reads is cut
        inputs = processor(
            text=[answer],
            images=[one.convert("RGB") for one in images],
            return_tensors="pt",
            truncation=True,
            max_length=model.config.text_config.max_position_embeddings,  # 77 in CLIP
        )
        output = model(**inputs.to(model.device))
        # (images,): the one text beside each of them
        cosines = torch.cosine_similarity(output.text_embeds, output.image_embeds)
        return {"clip": 2.5 * cosines.clamp(min=0.0).mean().item()}

    return make_scorer("clip", parts)


def load_clip(name: str | Path = "openai/clip-vit-base-patch32") -> Scorer:
    """`clip_scorer` of a hub id or local folder.

    Raises UsageError if it is no CLIP or cannot be had.
    """
    # slow to import, and rarely needed
    from transformers import AutoConfig, CLIPModel, CLIPProcessor

    try:
        kind = AutoConfig.from_pretrained(name).model_type
        if kind != "clip":  # transformers would go on, with random weights
            raise ValueError(f"it is a {kind} model")
        model = CLIPModel.from_pretrained(name, dtype=torch.float32)
        processor = CLIPProcessor.from_pretrained(name)
    except (OSError, ValueError) as error:
        raise UsageError(
            f"{name}: cannot be loaded as a CLIP ({_reason(error)}). Check name and network; "
            "offline, give the folder of a saved CLIP, or do without this reward."
        ) from None
    return clip_scorer(model.to(runtime.device()).eval(), processor)
