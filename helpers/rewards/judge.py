"""A judge: a vision-language model is asked which answer is better, or how good an answer is.

Who replies is a function (`AskModel`): a model that is loaded here (`ModelReplies`: the policy's
own base, another checkpoint, or an adapter that was trained to judge), or any function of yours,
such as one that asks a service. Pairs are shown in both orders, so that a judge of places says
nothing (Zheng et al. 2023, arXiv 2306.05685). What cannot be read, and what has no majority, is an
abstention. Before its verdicts are used, ask how far they are to be trusted
(`helpers/evaluation/judge.py`). Prompts and readers are in `judge_prompts.py`.
"""

import itertools
import random
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from transformers import ProcessorMixin

from helpers.data import Message, Task, conversation_text, rank_by_score, seen_text
from helpers.files import UsageError
from helpers.models import VLM, Packer, answer_logps, evaluation_mode, generate_answers
from helpers.statistics import Proportion, share_of

from .judge_prompts import (
    BEST_RATING,
    CRITERIA,
    PAIR_PROMPT,
    VERIFY_PROMPT,
    VERIFY_REPLIES,
    JudgeVerdict,
    PairPrompt,
    criteria_prompt,
    parse_ratings,
)
from .rankers import AnswersOfTasks, RankedAnswers, Ranker, ScorerRanker
from .scoring import Score, ScorerInputs, images_of, make_batch_scorer, turns_of

# The images of each prompt, and the prompts → a reply to each, in their order
AskModel = Callable[[Sequence[Sequence[Path]], Sequence[str]], Sequence[str]]
Orders = Literal["both", "drawn"]


class ModelReplies:
    """The replies of a model that is loaded here; `tokens` counts those of prompts and replies.

    use: a context in which the model judges, such as `lambda: models.use_adapter(model, "judge")`
    or `lambda: models.disable_adapters(model)` for its base.
    """

    def __init__(
        self,
        model: VLM,
        processor: ProcessorMixin,
        *,
        temperature: float = 0.0,
        max_new_tokens: int = 32,
        seed: int = 0,
        use: Callable[[], AbstractContextManager] = nullcontext,
    ):
        self.model = model
        self.processor = processor
        self.temperature = temperature
        self.max_new_tokens = max_new_tokens
        self.seed = seed
        self.use = use
        self.tokens = 0

    def __call__(self, images: Sequence[Sequence[Path]], prompts: Sequence[str]) -> list[str]:
        # greedy by default; several samples need a temperature
        with self.use():
            replies = generate_answers(
                self.model,
                self.processor,
                images,
                prompts,
                temperature=self.temperature,
                seed=self.seed,
                max_new_tokens=self.max_new_tokens,
                description="judge",
            )
        # another list of prompts gets other random numbers
        self.seed += 1
        for text in (*prompts, *replies):
            self.tokens += len(self.processor.tokenizer(text)["input_ids"])
        return replies


@dataclass(frozen=True)
class JudgeReply:
    """What a judge said about two answers, and how it was read."""

    task: str | None  # id of the task
    places: tuple[int, int]  # of the answers that were shown first and second
    text: str
    verdict: JudgeVerdict


class _AskingRanker(Ranker):
    """What both judges share: they ask for all at once, check what they get, and count tokens."""

    kind = "model"
    annotates = True

    def __init__(self, ask: AskModel, name: str, samples: int):
        super().__init__(name)
        if samples < 1:
            raise UsageError(f"samples = {samples}: ask at least once.")
        self.ask = ask
        self.samples = samples

    def _replies(self, images: Sequence[Sequence[Path]], prompts: Sequence[str]) -> list[str]:
        # a function of one's own need not count
        before = getattr(self.ask, "tokens", 0)
        replies = list(self.ask(images, prompts)) if prompts else []
        if len(replies) != len(prompts) or not all(isinstance(text, str) for text in replies):
            raise UsageError(
                f"judge {self.name}: {len(replies)} replies to {len(prompts)} prompts, "
                f"{replies[:1]!r} first. The function must return one text for each prompt, in "
                "their order."
            )
        self.cost.tokens += getattr(self.ask, "tokens", 0) - before
        return replies


class PairJudge(_AskingRanker):
    """Asks which of two answers is better, for all pairs of different answers to a question.

    orders: "both" shows each pair in both orders, `samples` times each; "drawn" shows it `samples`
    times, each time in an order that is drawn from seed, id and time. An answer wins a pair with
    more than half of all votes, unreadable ones included; otherwise the judge abstains. Several
    answers are ordered by the pairs that they win (Copeland). `replies` keeps what was said.
    """

    def __init__(
        self,
        ask: AskModel,
        name: str = "judge",
        *,
        samples: int = 1,
        orders: Orders = "both",
        prompt: PairPrompt = PAIR_PROMPT,
        seed: int = 0,
    ):
        super().__init__(ask, name, samples)
        self.orders = orders
        self.prompt = prompt
        self.seed = seed
        self.replies: list[JudgeReply] = []

    def _rank(self, tasks: Sequence[Task], answers: AnswersOfTasks) -> list[RankedAnswers]:
        shown = []  # number of the task, and the places of the two answers
        for number, (task, texts) in enumerate(zip(tasks, answers, strict=True)):
            for pair in itertools.combinations(range(len(texts)), 2):
                # what a reader cannot tell apart is a tie without asking
                if seen_text(texts[pair[0]]) != seen_text(texts[pair[1]]):
                    shown += [(number, order) for order in self._orders_of(task, pair)]
        images = []
        prompts = []
        for number, (first, second) in shown:
            task, texts = tasks[number], answers[number]
            question = conversation_text(task.turns)
            images.append(task.images)
            prompts.append(self.prompt.ask(question, texts[first], texts[second]))
        # what was said belongs to the task that it was asked for
        said: list[list[JudgeReply]] = [[] for _ in tasks]
        for (number, order), text in zip(shown, self._replies(images, prompts), strict=True):
            reply = JudgeReply(tasks[number].id, order, text, self.prompt.read(text))
            said[number].append(reply)
            self.replies.append(reply)
        return [_rank_by_votes(own, len(texts)) for own, texts in zip(said, answers, strict=True)]

    def _orders_of(self, task: Task, pair: tuple[int, int]) -> list[tuple[int, int]]:
        swapped = pair[::-1]
        if self.orders == "both":
            return [pair, swapped] * self.samples
        orders = []
        for vote in range(self.samples):
            # a coin of its own for every vote: no order of asking changes it
            coin = random.Random(f"{self.seed} {vote} {task.id or task.photo} {pair}")
            orders.append(pair if coin.random() < 0.5 else swapped)
        return orders

    @property
    def first_shown(self) -> Proportion | None:
        """Share of the readable verdicts for the answer shown first; ½ without a bias."""
        return share_of(reply.verdict == "first" for reply in self.replies if reply.verdict)

    @property
    def unreadable(self) -> Proportion | None:
        """Share of the replies that name no answer, or both."""
        return share_of(reply.verdict is None for reply in self.replies)

    @property
    def is_biased(self) -> bool:
        """Does the place of an answer move the verdict? Its interval is then without ½."""
        first = self.first_shown
        return first is not None and not first.low <= 0.5 <= first.high

    def sentences(self) -> list[str]:
        """Say how its verdicts depend on the place, and how many could not be read."""
        if not self.replies:
            return [f"{self.name}: nothing was asked."]
        warning = ": POSITION BIAS" if self.is_biased else ""
        return [
            f"{self.name}: {self.unreadable} of its replies cannot be read; of the others "
            f"{self.first_shown or 'none'} are for the answer shown first{warning}."
        ]


def _rank_by_votes(replies: Sequence[JudgeReply], number: int) -> RankedAnswers:
    """Order `number` answers by the pairs that they win; one that ties gets half of a win."""
    votes: dict[tuple[int, int], list[int]] = {}  # pair → places of the answers voted for
    asked: dict[tuple[int, int], int] = {}
    for reply in replies:
        pair = (min(reply.places), max(reply.places))
        asked[pair] = asked.get(pair, 0) + 1
        if reply.verdict is not None:
            votes.setdefault(pair, []).append(reply.places[reply.verdict == "second"])
    # a win is a point, and a tie half of one for each
    points = [0.0] * number
    decided = False
    for first, second in itertools.combinations(range(number), 2):
        own = votes.get((first, second), [])
        half = asked.get((first, second), 0) / 2
        if own.count(first) > half:
            points[first] += 1
            decided = True
        elif own.count(second) > half:
            points[second] += 1
            decided = True
        else:
            points[first] += 0.5
            points[second] += 0.5
    if not decided:
        return RankedAnswers(None)
    ranking = rank_by_score(points)
    # the share of all votes between the best and the next that are for the best
    confidence = None
    if len(ranking) > 1:
        best, following = ranking[0][0], ranking[1][0]
        pair = (min(best, following), max(best, following))
        if pair in asked:
            confidence = votes.get(pair, []).count(best) / asked[pair]
    return RankedAnswers(ranking, confidence=confidence)


class CriteriaJudge(_AskingRanker):
    """Asks how good each answer is by some criteria; the mean of all ratings is its score, 0 … 1.

    An answer of which no reply can be read has no score, and its question no ranking.
    """

    def __init__(
        self,
        ask: AskModel,
        name: str = "judge",
        *,
        samples: int = 1,
        criteria: Sequence[str] = CRITERIA,
    ):
        super().__init__(ask, name, samples)
        self.criteria = tuple(criteria)
        self.unread = 0  # replies that could not be read
        self.asked = 0

    def _rank(self, tasks: Sequence[Task], answers: AnswersOfTasks) -> list[RankedAnswers]:
        # each answer alone, as often as there are samples
        images = []
        prompts = []
        for task, texts in zip(tasks, answers, strict=True):
            question = conversation_text(task.turns)
            for text in texts:
                prompt = criteria_prompt(question, text, self.criteria)
                images += [task.images] * self.samples
                prompts += [prompt] * self.samples
        replies = iter(self._replies(images, prompts))
        # one answer without a rating leaves nothing to compare the others with
        ranked = []
        for texts in answers:
            scores = []
            for _ in texts:
                scores.append(self._score_of([next(replies) for _ in range(self.samples)]))
            if None in scores:
                ranked.append(RankedAnswers(None))
            else:
                ranking = rank_by_score([score.total for score in scores])
                ranked.append(RankedAnswers(ranking, tuple(scores)))
        return ranked

    def _score_of(self, replies: Sequence[str]) -> Score | None:
        """Return the mean of what could be read; its parts are the criteria's, and sum to it."""
        read = [parse_ratings(text, self.criteria) for text in replies]
        known = [ratings for ratings in read if ratings is not None]
        self.asked += len(read)
        self.unread += len(read) - len(known)
        if not known:
            return None
        # each criterion weighs as much, and 10 for all of them is a score of 1
        parts = {}
        for name in self.criteria:
            mean = sum(ratings[name] for ratings in known) / len(known)
            parts[name] = mean / BEST_RATING / len(self.criteria)
        return Score(sum(parts.values()), parts)

    def sentences(self) -> list[str]:
        """Say how many replies could not be read."""
        return [f"{self.name}: {self.unread} of {self.asked} replies cannot be read."]


class Verifier(ScorerRanker):
    """Asks a model of ours behind each answer, as the next turn, whether it is right.

    A generative verifier (Zhang et al. 2024, arXiv 2408.15240): the score is log p("Yes.") − log
    p("No."), read off in one forward, so that nothing is sampled and nothing has to be parsed. The
    answer stands where the model itself would have said it, so that its states hold how surprising
    it is. Each answer is asked about alone: there is no place that could bias it. use: as in
    `ModelReplies`. An adapter learns to verify from `training.right_verdicts`.
    """

    kind = "model"
    annotates = True

    def __init__(
        self,
        model: VLM,
        processor: ProcessorMixin,
        name: str = "verifier",
        *,
        use: Callable[[], AbstractContextManager] = nullcontext,
    ):
        super().__init__(make_batch_scorer(name, self._scores_of), told=False)
        self.packer = Packer(model, processor)
        self.use = use

    @torch.no_grad()
    def _scores_of(self, rows: Sequence[ScorerInputs]) -> list[Score]:
        conversations = []
        images = []
        for shown, question, answer, _ in rows:
            conversations.append(verifying_turns(turns_of(question), answer))
            images.append(images_of(shown))
        # both replies stand behind each conversation, in one row
        packed = self.packer(conversations, images, [VERIFY_REPLIES] * len(rows))
        self.cost.tokens += int(packed.inputs["input_ids"].numel())
        with self.use(), evaluation_mode(self.packer.model):
            logps = answer_logps(self.packer.model, packed).sum(1).view(-1, 2)
        margins = (logps[:, 0] - logps[:, 1]).tolist()
        return [Score(margin, {"log p(yes) − log p(no)": margin}) for margin in margins]


def verifying_turns(turns: Sequence[Message], answer: str) -> list[Message]:
    """Return a conversation, the answer that was given, and the question whether it is right."""
    said = Message.model_construct(role="assistant", content=answer)
    asked = Message.model_construct(role="user", content=VERIFY_PROMPT)
    return [*turns, said, asked]
