"""Best of n at answer time: sample n answers to one question, and show the one ranked first.

All n are sampled in one call, which reads image and prompt once, and any `rewards.Ranker` orders
them. They cost n times the tokens of one answer; less than n times the seconds, as they are said
side by side. What choosing gains over many questions, and where a ranker is hacked by it, is
measured in `best_of_n.py`. Taught in notebook 06.
"""

import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace

import torch

from helpers.data import Ranking, Task, seen_text
from helpers.files import UsageError
from helpers.models import (
    DecodingSettings,
    EncodedPrompts,
    Packer,
    Policies,
    SampledAnswer,
    answer_texts,
    sample_ids,
)
from helpers.rewards import (
    RankedAnswers,
    Ranker,
    Scorer,
    distinct_answers,
    put_cut_off_last,
)

from .side_by_side import PolicyAnswer, look_at_answers, with_reward


@dataclass(frozen=True)
class RankedText:
    """One of the different texts among the sampled answers."""

    text: str
    times: int  # how often it was sampled
    place: int | None  # 1 is the best, equals share one; None: the ranker does not say
    score: float | None  # the ranker's; None: it only compares
    ended: bool  # False: cut off, and so behind all that were not, whatever the score


@dataclass(frozen=True)
class BestAnswer:
    """The best of n sampled answers of one policy, and all of them in their order."""

    answer: PolicyAnswer  # the first of `texts`, with its figures
    texts: list[RankedText]  # the best first, each text once; none that is without a word
    sampling_seconds: float
    ranking_seconds: float

    @property
    def empty(self) -> int:
        """How many of the n answers are without a word, and are not ranked."""
        return self.answer.best_of - sum(text.times for text in self.texts)

    @property
    def is_ranked(self) -> bool:
        """Did the ranker say which is better?"""
        return any(text.place is not None for text in self.texts)

    @property
    def first(self) -> list[RankedText]:
        """The texts that share the first place; empty if the ranker does not say."""
        return [text for text in self.texts if text.place == 1]


@torch.no_grad()
def ask_for_best(
    policies: Policies,
    names: Sequence[str],
    task: Task,
    ranker: Ranker,
    number: int,
    decoding: DecodingSettings,
    reward: Scorer | None = None,
) -> list[BestAnswer]:
    """The best of `number` sampled answers of each of the policies `names`, in their order.

    Equal arguments give equal answers, and the first n are the same for every larger `number`. Of
    texts that are equally good the first one sampled is taken. reward: as in `ask_policies`. Raises
    UsageError if the ranker cannot rank.
    """
    # rather before the cost than after it
    ranker.check([task])
    images = task.open_images()
    packer = Packer(policies.model, policies.processor, packs=False)
    prompt = packer.encode([task.turns], [images])
    found = []
    for name in names:
        best = _best_of_policy(policies, packer, name, prompt, task, ranker, number, decoding)
        answer = with_reward(best.answer, task, images, reward)
        found.append(replace(best, answer=answer))
    return found


def _best_of_policy(
    policies: Policies,
    packer: Packer,
    name: str,
    prompt: EncodedPrompts,
    task: Task,
    ranker: Ranker,
    number: int,
    decoding: DecodingSettings,
) -> BestAnswer:
    started = time.perf_counter()
    settings = asdict(decoding)
    with policies.use_policy(name) as model:
        ids, ended = sample_ids(model, policies.processor, prompt, group_size=number, **settings)
    sampling_seconds = time.perf_counter() - started
    # what the ranker cost before is not of this question
    before = ranker.cost.seconds
    samples = list(map(SampledAnswer, answer_texts(policies.processor, ids), ended))
    texts = _rank_texts(ranker, task, samples)
    ranking_seconds = ranker.cost.seconds - before
    # the figures of the best alone: they cost one or two passes an answer
    place = _place_of(texts[0], samples) if texts else 0
    (answer,) = look_at_answers(policies, packer, name, prompt, ids[place:][:1], ended[place:][:1])
    answer = replace(answer, best_of=number, ranked_by=ranker.title)
    return BestAnswer(answer, texts, sampling_seconds, ranking_seconds)


def _rank_texts(
    ranker: Ranker,
    task: Task,
    samples: Sequence[SampledAnswer],
) -> list[RankedText]:
    """The different texts among the samples, the best first; equals in the order sampled."""
    times = Counter(seen_text(sample.text) for sample in samples)
    different = distinct_answers(samples)
    if not different:
        return []
    ranked = _rank(ranker, task, [answer.text for answer in different])
    ranking = put_cut_off_last(ranked.ranking, [answer.ended for answer in different])
    places = _places(ranking)
    texts = []
    for number, answer in enumerate(different):
        score = ranked.scores[number].total if ranked.scores else None
        often = times[seen_text(answer.text)]
        texts.append(RankedText(answer.text, often, places.get(number), score, answer.ended))
    # sorting is stable, and without a ranking nothing moves
    return sorted(texts, key=lambda text: text.place or 0)


def _rank(ranker: Ranker, task: Task, texts: Sequence[str]) -> RankedAnswers:
    try:
        (ranked,) = ranker.rank([task], [texts])
    # a lack of memory is no fault of the ranker
    except (UsageError, RuntimeError):
        raise
    # whatever a ranker of others raises
    except Exception as error:
        reason = f"{type(error).__name__}: {error}"
        raise UsageError(
            f"{ranker.title} cannot rank the answers ({reason}). Correct it, or choose another."
        ) from error
    return ranked


def _places(ranking: Ranking | None) -> dict[int, int]:
    """{number of an answer: its place}: as in a race, after two firsts comes the third.

    >>> _places([[0, 2], [1]])
    {0: 1, 2: 1, 1: 3}
    """
    places = {}
    for tier in ranking or ():
        place = len(places) + 1
        places |= dict.fromkeys(tier, place)
    return places


def _place_of(best: RankedText, samples: Sequence[SampledAnswer]) -> int:
    """The first sample that is this text, and came to its end if any such one did."""
    for place, sample in enumerate(samples):
        if seen_text(sample.text) == seen_text(best.text) and sample.ended == best.ended:
            return place
    raise ValueError(f"{best.text!r} is none of the samples")
