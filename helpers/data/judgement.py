"""What one annotator said about the answers of one record, and what several said together."""

from collections.abc import Iterable, Sequence
from datetime import datetime
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

VoteVerdict = Literal["ranked", "tie", "all bad", "skip"]
Ranking = list[list[int]]  # places in `answers`: tiers, best first, ties together
FiniteNumber = Annotated[float, Field(allow_inf_nan=False)]


class StrictModel(BaseModel):
    """Unknown fields are errors, and nothing is converted in silence: "2" is not 2."""

    model_config = ConfigDict(extra="forbid", strict=True)


class Judgement(StrictModel):
    """What one annotator said about the answers of one record."""

    kind: Literal["human", "model", "rule"]
    annotator: str
    verdict: VoteVerdict
    # one tier for "tie" and "all bad", none for "skip"
    ranking: Ranking | None = None
    # order[k]: place in `answers` of the answer shown k-th
    order: list[int] | None = None
    # criterion → a score for each answer
    criteria: dict[str, list[FiniteNumber]] = Field(default_factory=dict)
    seconds: Annotated[FiniteNumber, Field(ge=0)] | None = None
    time: str | None = None  # ISO 8601

    @field_validator("time")
    @classmethod
    def _check_time(cls, time: str | None) -> str | None:
        if time is not None:
            datetime.fromisoformat(time)  # its ValueError says what is wrong
        return time

    @model_validator(mode="after")
    def _check_ranking_fits_verdict(self) -> "Judgement":
        tiers = len(self.ranking or [])
        if self.verdict == "skip":
            fits = self.ranking is None
        elif self.verdict == "ranked":
            fits = tiers > 1
        else:
            fits = tiers == 1
        if not fits:
            raise ValueError(f"verdict {self.verdict!r} does not go with ranking {self.ranking}")
        return self


def tier_of_each(ranking: Ranking) -> dict[int, int]:
    """{place of an answer: number of its tier}, 0 for the best."""
    return {place: tier for tier, places in enumerate(ranking) for place in places}


def rank_by_score(scores: Sequence[float]) -> Ranking:
    """Rank answers by their scores, the highest first; equal scores are one tier."""
    tiers = {}  # score → places
    for place, score in enumerate(scores):
        tiers.setdefault(score, []).append(place)
    return [tiers[score] for score in sorted(tiers, reverse=True)]


def consensus(judgements: Iterable[Judgement], n: int) -> Ranking | None:
    """Rank `n` answers as several judgements do: by mean rank, ties where it is equal.

    Tied answers share the mean of their ranks (mid-ranks); skips do not count. None without a vote.
    """
    votes = [judgement.ranking for judgement in judgements if judgement.ranking]
    if not votes:
        return None
    total = [0.0] * n
    for ranking in votes:
        better = 0  # how many answers stand above this tier
        for tier in ranking:
            for answer in tier:
                total[answer] += better + (len(tier) - 1) / 2
            better += len(tier)
    return rank_by_score([-ranks for ranks in total])


def explain_validation_error(error: ValidationError) -> str:
    """Say pydantic's findings in one line of plain words."""
    findings = []
    for item in error.errors():
        field = ".".join(str(part) for part in item["loc"])
        message = item["msg"].removeprefix("Value error, ")
        findings.append(f"{field}: {message}" if field else message)
    return "; ".join(findings)
