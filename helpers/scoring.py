"""Reward functions for answers: rules, counts, exact match, similarity of texts, CLIP, and their sums.

All have one signature, `score(image, question, answer, facts=None) -> Score`. `facts` is the truth of
the record: counts, a reference answer, a list of accepted (or of the annotators') answers, or None.
Facts of a kind that a scorer cannot use raise UsageError.

Simplifications: stop words, markers and number words are English; texts are scored one at a time.
"""

import re
import unicodedata
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from numbers import Integral
from pathlib import Path

import numpy as np
import torch
from PIL.Image import Image
from sklearn.feature_extraction.text import TfidfVectorizer

from helpers import counting, runtime
from helpers.counting import Counts
from helpers.runtime import UsageError

Facts = Counts | str | Sequence[str] | None


@dataclass(frozen=True)
class Score:
    """A reward and where it comes from: the weighted `parts` sum to `total`."""

    total: float
    parts: dict[str, float]

    def __float__(self) -> float:
        return self.total


Scorer = Callable[[Image | None, str, str, Facts], Score]
Embedder = Callable[[list[str]], np.ndarray]  # n texts → (n, d)


def _scorer(name: str, parts: Callable[[Image | None, str, str, Facts], dict[str, float]]) -> Scorer:
    """The scorer `name` (which trainers and tables show) that sums `parts(image, question, answer, facts)`."""

    def score(image: Image | None, question: str, answer: str, facts: Facts = None) -> Score:
        values = {part: float(value) + 0.0 for part, value in parts(image, question, answer, facts).items()}  # no −0.0
        return Score(sum(values.values()), values)

    score.__name__ = name
    return score


# --- The heuristic: a table of rules on whole words ---

NUMBERS = {w: str(n) for n, w in enumerate(re.findall(r"\w+", "zero one two three four five six seven eight nine ten"))}
_STOP_WORDS = """a an the this that these those it its he his him she her they them their we us our you your i me my is
are was were be been am do does did has have had can could will would should may might must there here and or not no if
than then as at by for from in into of off on out over to up with what which who whose when where why how many much any
some all each please image picture photo because therefore so but while"""
STOP_WORDS = frozenset(_STOP_WORDS.split())
_nfc = partial(unicodedata.normalize, "NFC")


def _words(pattern: str) -> re.Pattern:
    """`pattern` between word boundaries: "so" is not in "person"."""
    return re.compile(rf"(?<!\w)(?:{pattern})(?!\w)", re.IGNORECASE)


_NUMBER, _MARKER = _words("|".join(NUMBERS)), _words("because|therefore|so|but|while")
_VERB = "(?:is|are|was|were|has|have|can|do|does)"
_NO_OBJECT = _words(rf"no(?!\s+(?:[\w-]+\s+){{1,3}}{_VERB}\b)")  # "no bus is red" does not state 0 buses
_NO_REPLY = _words(r"no(?!\s+(?!(?:and|but|or|yes|no|there|it|they|he|she|we|this|that)\b)\w)")  # not that of "no bus"
_HEDGED = _words(r"(not|than|least|most|about|around|over|under|nearly|almost|to|or)\s+\d+|\d+\s*[-–]\s*\d+")
_UNCLAIMED = _words(  # a sentence with one of these does not claim that something is there
    r"no|not|\w+n['’]t|cannot|never|without|neither|nor|none|hardly|lacks?|absent|missing|0|if|whether|may|might|maybe"
    "|perhaps|could|would"
)


def _name(name: str) -> str:
    """Pattern of `name` in singular and plural: "buses" → "bus|buse|buses|busess"."""
    *first, last = _nfc(name).split()
    changes = (("$", "s"), ("s$", ""), ("(?<=[sxzho])$", "es"), ("(?<=[sxzho])es$", ""))
    forms = {re.sub(old, new, last) for old, new in changes}
    endings = sorted({form for form in forms if len(form) > 2} | {last})
    return r"\s+".join([*map(re.escape, first), f"(?:{'|'.join(map(re.escape, endings))})"])


def mentions(text: str, name: str) -> bool:
    """True if `text` has `name` as whole words; case and a plural "s" or "es" do not matter."""
    return bool(_words(_name(name)).search(_nfc(text)))


def content_words(text: str) -> list[str]:
    """Distinct words of `text` but for stop words, in lower case; singular and plural are one word."""
    distinct: list[str] = []
    for word in re.findall(r"(?<![\w'’])[^\W\d_][^\W_]*(?!['’]?\w)", re.sub(r"['’]s\b", "", _nfc(text).lower())):
        if word not in STOP_WORDS and not any(mentions(word, known) for known in distinct):
            distinct.append(word)
    return distinct


def _counts(facts: Facts) -> Counts:
    """The counts in `facts`; {} if it holds something else."""
    return {_nfc(name): n for name, n in facts.items() if name.strip()} if isinstance(facts, Mapping) else {}


def _with_digits(text: str) -> str:
    """Number words and "no" (buses) as digits; without hedged numbers ("at least 2", "2 or 3"), which state none."""
    text = _NUMBER.sub(lambda match: NUMBERS.get(match[0].lower(), match[0]), _nfc(text))
    return _HEDGED.sub(lambda match: match[1] or "", _NO_OBJECT.sub("0", text))


def stated_counts(text: str, classes: Sequence[str]) -> dict[str, list[int]]:
    """Every number right before a class name: "3 cars and no bus" → {"cars": [3], "buses": [0]}.

    `counting.parse_counts` reads each piece of the text; unlike it, this accepts incomplete answers.
    """
    pieces = re.split(r"(?<![\w.])(?=\d)", _with_digits(text))
    read = [(cls, counting.parse_counts(piece, [cls])) for cls in classes for piece in pieces]
    return {cls: [counts[cls] for name, counts in read if counts and name == cls] for cls in classes}


def grounding(question: str, answer: str, facts: Facts) -> float:
    """Number of distinct content words of the question, and of known class names, that the answer mentions."""
    return sum(mentions(answer, word) for word in content_words(" ".join([question, *_counts(facts)])))


def reasoning(question: str, answer: str, facts: Facts) -> float:
    """1 if the answer has because, therefore, so, but or while, whatever it is used for."""
    return float(bool(_MARKER.search(answer)))


def wrong_count(question: str, answer: str, facts: Facts) -> float:
    """1 if the answer states a count that is not the known one.

    Numbers of one class may add up to it: "2 cars on the left, 3 cars on the right" is true of 5 cars.
    """
    truth = _counts(facts)
    stated = stated_counts(answer, list(truth))
    return float(any(n and truth[cls] not in n and truth[cls] != sum(n) for cls, n in stated.items()))


def absent_object(question: str, answer: str, facts: Facts) -> float:
    """1 if the answer claims, without a number, that an object of known count 0 is there.

    "A bus" and "the bus is red" claim it; sentences that ask, deny or suppose do not. "A bus stop" does.
    """
    text = _with_digits(_words("but").sub(";", answer))
    sentences = [s for s in re.findall(r"[^.!?;\n]+[.!?;]*", text) if "?" not in s and not _UNCLAIMED.search(s)]
    some = r"(?:an?|some|several|both|(?<!how )many|there\s+(?:is|are|was|were)|sees?|shows?|contains?)"
    adjective = r"\s+(?:[^\W\d][\w-]*\s+)?"
    absent = [_name(name) for name, n in _counts(facts).items() if n == 0]
    claims = [_words(rf"{some}{adjective}(?:{name})|the{adjective}(?:{name})\s+{_VERB}") for name in absent]
    return float(any(claim.search(sentence) for claim in claims for sentence in sentences))


def yes_and_no(question: str, answer: str, facts: Facts) -> float:
    """1 if the answer says both yes and no; "yes, there are no buses" does not."""
    return float(bool(_words("yes").search(answer) and _NO_REPLY.search(answer)))


def two_counts(question: str, answer: str, facts: Facts) -> float:
    """1 if the answer states different counts of one class (if no counts are known: of a word of the question).

    As in `wrong_count`, numbers that add up to the known count are no contradiction. A true "2 cars. 1 car is
    red." is taken for one.
    """
    truth = _counts(facts)
    stated = stated_counts(answer, list(truth) or content_words(question))
    return float(any(len(set(n)) > 1 and sum(n) != truth.get(cls) for cls, n in stated.items()))


@dataclass(frozen=True)
class Rule:
    """One criterion: `weight` × `value(question, answer, facts)` is its part of the score."""

    name: str
    weight: float
    value: Callable[[str, str, Facts], float]
    description: str


RULES = tuple(
    Rule(value.__name__, weight, value, value.__doc__.splitlines()[0])
    for value, weight in (
        (grounding, 0.1), (reasoning, 0.5),
        (wrong_count, -1.0), (absent_object, -1.0), (yes_and_no, -1.0), (two_counts, -1.0),
    )
)  # fmt: skip


def heuristic(weights: Mapping[str, float] | None = None) -> Scorer:
    """The three criteria of a student project (grounding, reasoning, contradictions): the sum of `RULES`.

    weights: replaces weights by rule name; UsageError for a name that is no rule. Each contradiction
    rule counts once, however often it is broken, so that one bad sentence cannot outweigh all others.

    What it cannot do: it never looks at the image; it knows no truth but counts; copying the question
    scores; any "so" gains 0.5. The project also took 1.0 off an answer about a dog that names a cat.
    A true "the dog chases a cat" does so, too: only known counts can decide it (`absent_object`).
    """
    chosen = {rule.name: rule.weight for rule in RULES}
    unknown = set(weights or ()) - set(chosen)
    if unknown:
        raise UsageError(f"weights: no rule is called {', '.join(sorted(unknown))}. Choose from {', '.join(chosen)}.")
    chosen |= weights or {}
    return _scorer(
        "heuristic", lambda image, *given: {rule.name: chosen[rule.name] * rule.value(*given) for rule in RULES}
    )


# --- Rewards against known counts and reference answers ---


def _refusal(who: str, needed: str, facts: Facts, others: str) -> UsageError:
    return UsageError(
        f"{who}: facts must be {needed}, not {facts!r}. Give what the record holds (for GRPO, name the column of the "
        f"data set), or take a scorer for other facts: {others}."
    )


def _need_counts(facts: Facts, who: str) -> Counts:
    if isinstance(facts, Mapping) and facts and all(isinstance(n, Integral) for n in facts.values()):
        return dict(facts)
    raise _refusal(who, "true counts such as {'cars': 2, 'buses': 0}", facts, "exact_match, vqa_accuracy, cosine")


def _need_references(facts: Facts, who: str) -> list[str]:
    references = [facts] if isinstance(facts, str) else facts
    if isinstance(references, list | tuple) and references and all(isinstance(text, str) for text in references):
        return list(references)
    raise _refusal(who, "a reference answer or a list of them", facts, "count_exact, count_per_class, count_graded")


def _count_scorer(name: str, value: Callable[[int], float], combine: Callable[[list[float]], float]) -> Scorer:
    """`combine` of `value(stated − true)` over the classes; 0 if `counting.parse_counts` cannot read the answer."""

    def parts(image: Image | None, question: str, answer: str, facts: Facts) -> dict[str, float]:
        truth = _need_counts(facts, name)
        stated = counting.parse_counts(answer, list(truth))
        return {name: combine([value(stated[cls] - truth[cls]) for cls in truth]) if stated else 0.0}

    return _scorer(name, parts)


count_exact = _count_scorer("count_exact", lambda error: error == 0, all)  # 1 if every count is true, else 0
count_per_class = _count_scorer("count_per_class", lambda error: error == 0, np.mean)  # share of true counts
# 1 for a true count, 1/2 for one off, 1/3 for two off; mean over the classes (our definition)
count_graded = _count_scorer("count_graded", lambda error: 1 / (1 + abs(error)), np.mean)

PUNCTUATION = ';/[]"{}()=+\\_-><@`,?!'  # the official list: no apostrophe, colon or full stop
_CONTRACTED = """ain't aren't can't could've couldn't didn't doesn't don't hadn't hasn't haven't he'd he's how'd how'll
how's isn't it'd it'll ma'am might've mightn't must've mustn't needn't not've o'clock oughtn't shan't should've shouldn't
somebody'll somebody's someone'd someone'll someone's something'd something'll that's there'd there're there's they'd
they'll they're they've 'twas wasn't we've weren't what'll what're what's what've when's where'd where's where've who'd
who'll who's who've why'll why're why's won't would've wouldn't y'all you'd you'll you're you've"""
CONTRACTIONS = {word.replace("'", ""): word for word in _CONTRACTED.split()}


def normalise(text: str) -> str:
    """The answer as the VQA evaluation compares it: "There are two, I guess!" → "there are 2 i guess".

    As in the official code: a punctuation mark disappears if it stands beside a space anywhere in the
    text, or if the text has a number like 1,000; else it becomes a space. A full stop stays before a
    digit only. Then lower case, "none" to "ten" as digits, no articles, missing apostrophes put back.
    Simplified: double contractions ("couldnt've") are left as they are. Nothing but articles and marks
    is kept ("A" is an answer, too), where the official code would have every such text equal.
    """
    text = " ".join(text.split())
    bare, thousands = text, re.search(r"\d,\d", text)
    for mark in PUNCTUATION:
        bare = bare.replace(mark, "" if thousands or f"{mark} " in text or f" {mark}" in text else " ")
    words = [{"none": "0", **NUMBERS}.get(word, word) for word in re.sub(r"\.(?!\d)", "", bare).lower().split()]
    return " ".join(CONTRACTIONS.get(word, word) for word in words if word not in ("a", "an", "the")) or text.lower()


def _reference_scorer(name: str, combine: Callable[[list[bool]], float]) -> Scorer:
    """`combine` of which references equal the answer, both normalised. An empty answer equals none."""

    def parts(image: Image | None, question: str, answer: str, facts: Facts) -> dict[str, float]:
        given = normalise(answer)
        return {name: combine([given != "" and normalise(text) == given for text in _need_references(facts, name)])}

    return _scorer(name, parts)


def _vote(matches: list[bool]) -> float:
    """VQA accuracy (Antol et al. 2015, arXiv 1505.00468), as it is evaluated for VQA v2.

    Each annotator is left out in turn; min(matches among the others / 3, 1), averaged. With n < 10 annotators the
    same, so that n < 4 give (n − 1)/3 at best; one reference cannot be left out and gives 1/3 (exact_match gives 1).
    Simplified: the official code compares raw texts where all annotators agree; here they are always normalised.
    """
    others = [sum(matches) - match for match in matches] if len(matches) > 1 else matches
    return float(np.mean([min(n / 3, 1) for n in others]))


exact_match = _reference_scorer("exact_match", any)  # 1 if the answer is the reference, or one of them, else 0
vqa_accuracy = _reference_scorer("vqa_accuracy", _vote)


# --- Similarity of texts, and of text and image ---


def _reason(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def cosine_scorer(embed: Embedder) -> Scorer:
    """Cosine of the embeddings of answer and reference, −1 … 1; the best of several; 0 for a zero vector.

    A known trap: against "green", "not green" scores higher than "The clock on the wall is green."
    Cosine measures shared words, not truth, and rewards saying little.
    """

    def parts(image: Image | None, question: str, answer: str, facts: Facts) -> dict[str, float]:
        vectors = np.asarray(embed([answer, *_need_references(facts, "cosine")]), dtype=float)  # (1 + references, d)
        lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
        units = np.divide(vectors, lengths, out=np.zeros_like(vectors), where=lengths > 0)
        return {"cosine": (units[1:] @ units[0]).max()}

    return _scorer("cosine", parts)


def tfidf_embedder(corpus: Sequence[str], ngrams: tuple[int, int] = (1, 2)) -> Embedder:
    """TF-IDF vectors of words and word groups (scikit-learn, offline), fitted once on `corpus`.

    Words that the corpus lacks count for nothing. Raises UsageError if it holds no word at all.
    """
    # scikit-learn's own pattern drops words of one character, and with them the counts
    vectorizer = TfidfVectorizer(ngram_range=ngrams, token_pattern=r"(?u)\b\w+\b")
    try:
        vectorizer.fit(corpus)
    except ValueError as error:
        raise UsageError(f"corpus: cannot fit TF-IDF ({error}). Give the answers of the training data.") from None
    return lambda texts: vectorizer.transform(texts).toarray()


def sentence_embedder(name: str = "sentence-transformers/paraphrase-MiniLM-L6-v2") -> Embedder:
    """Embeddings of a sentence-transformers model. Raises UsageError if package or model cannot be had."""
    try:
        from sentence_transformers import SentenceTransformer  # optional: not in requirements.txt

        model = SentenceTransformer(name)
    except (ImportError, OSError, ValueError) as error:
        raise UsageError(
            f"sentence embeddings of {name} cannot be had ({_reason(error)}). Run `pip install sentence-transformers`, "
            "check name and network, or take tfidf_embedder(corpus)."
        ) from None
    return lambda texts: np.asarray(model.encode(texts, show_progress_bar=False))


def text_embedder(corpus: Sequence[str]) -> Embedder:
    """The sentence-transformers model if it can be had, else TF-IDF fitted on `corpus`. Prints which."""
    try:
        embed = sentence_embedder()
    except UsageError as error:
        print(f"Text embeddings: TF-IDF, because {error}")
        return tfidf_embedder(corpus)
    print("Text embeddings: sentence-transformers.")
    return embed


def clip_score(model: torch.nn.Module, processor: Callable) -> Scorer:
    """CLIPScore = 2.5 · max(cos(image, answer), 0), 0 … 2.5 (Hessel et al. 2021, arXiv 2104.08718).

    model, processor: transformers' CLIPModel and CLIPProcessor. CLIP reads 77 tokens, start and end
    included; the rest of an answer does not count. Simplified: without the paper's prefix "A photo
    depicts", which is meant for captions. The scorer raises UsageError if there is no image.
    """

    @torch.no_grad()
    def parts(image: Image | None, question: str, answer: str, facts: Facts) -> dict[str, float]:
        if image is None:
            raise UsageError("clip: there is no image to compare the answer with. Give one, or take another scorer.")
        limit = {"truncation": True, "max_length": model.config.text_config.max_position_embeddings}  # 77 in CLIP
        inputs = processor(text=[answer], images=[image.convert("RGB")], return_tensors="pt", **limit)
        output = model(**inputs.to(model.device))
        return {"clip": 2.5 * max(torch.cosine_similarity(output.text_embeds, output.image_embeds).item(), 0.0)}

    return _scorer("clip", parts)


def load_clip(name: str | Path = "openai/clip-vit-base-patch32") -> Scorer:
    """`clip_score` of a hub id or local folder. Raises UsageError if it is no CLIP or cannot be had."""
    from transformers import AutoConfig, CLIPModel, CLIPProcessor  # slow to import, and rarely needed

    try:
        kind = AutoConfig.from_pretrained(name).model_type
        if kind != "clip":  # transformers would go on, with random weights
            raise ValueError(f"it is a {kind} model")
        model, processor = CLIPModel.from_pretrained(name, dtype=torch.float32), CLIPProcessor.from_pretrained(name)
    except (OSError, ValueError) as error:
        raise UsageError(
            f"{name}: cannot be loaded as a CLIP ({_reason(error)}). Check name and network; offline, give the folder "
            "of a saved CLIP, or do without this reward."
        ) from None
    return clip_score(model.to(runtime.device()).eval().requires_grad_(False), processor)


# --- Sums, and the way into TRL ---


def weighted(scorers: Mapping[Scorer, float] | Sequence[tuple[str, Scorer, float]]) -> Scorer:
    """Σ weight · scorer, one part each: `weighted({cosine: 0.7, clip: 0.3})` is α·cosine + β·CLIP.

    Weights are no shares: CLIPScore spans 0 … 2.5, a count reward 0 … 1. Parts are named after the
    functions, or as given: [(name, scorer, weight), …]. Raises UsageError if two names are equal.
    """
    rows = [(s.__name__, s, w) for s, w in scorers.items()] if isinstance(scorers, Mapping) else list(scorers)
    names = [name for name, _, _ in rows]
    if not rows or len(set(names)) < len(names):
        raise UsageError(f"scorers: the names {names} must be one or more, and differ. Give [(name, scorer, weight)].")
    return _scorer(
        "+".join(names), lambda *given: {name: weight * scorer(*given).total for name, scorer, weight in rows}
    )


def _said(messages: str | list[dict], role: str) -> str:
    """What `role` said last, in chat messages whose content is text or blocks; a plain text is itself."""
    if isinstance(messages, str):
        return messages
    content = next((message.get("content") for message in reversed(messages) if message["role"] == role), None) or ""
    if isinstance(content, str):
        return content
    return " ".join(block["text"] for block in content if block["type"] == "text")


def _image(columns: Mapping[str, list], row: int) -> Image | None:
    """The image of a row of TRL's columns `images` or `image`. Raises UsageError if it has several."""
    images = (columns["images"][row] or []) if "images" in columns else columns.get("image", [])[row : row + 1]
    if len(images) > 1:
        raise UsageError(f"row {row} of the batch has {len(images)} images, a scorer reads one. Leave such rows out.")
    return images[0] if images else None


def for_grpo(scorer: Scorer, facts_column: str = "truth") -> Callable[..., list[float]]:
    """`scorer` as a reward function of TRL's GRPOTrainer, logged as `rewards/<name of the scorer>/mean`.

    TRL calls it with lists: `prompts` and `completions` (texts, or chat messages), and every column of
    the data set. The question is what the user said last, the answer what the assistant said last; the
    image comes from `images` or `image`, the facts from `facts_column` (None if there is no such column).
    """

    def reward(prompts: list, completions: list, **columns: list) -> list[float]:
        totals = []
        for row, (prompt, completion) in enumerate(zip(prompts, completions, strict=True)):
            facts = columns[facts_column][row] if facts_column in columns else None
            if isinstance(facts, Mapping):  # `datasets` fills in None for classes that only other rows have
                facts = {name: n for name, n in facts.items() if n is not None}
            given = (_image(columns, row), _said(prompt, "user"), _said(completion, "assistant"), facts)
            totals.append(scorer(*given).total)
        return totals

    reward.__name__ = scorer.__name__
    return reward


# Ready to use; cosine_scorer needs an embedder and load_clip a model first
_READY = (heuristic(), count_exact, count_per_class, count_graded, exact_match, vqa_accuracy)
SCORERS: dict[str, Scorer] = {scorer.__name__: scorer for scorer in _READY}
