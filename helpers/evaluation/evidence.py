"""All that can be said of policies without a truth, in one block.

Notebooks 04 to 07, the stage `evaluate` of recipes and the report show it: held-out pairs
(`preference_exam`), wins by a judge (`win_rate`), the shape of the answers (`answer_shapes`), and
what was forgotten (`forgetting`).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from helpers.data import PreferenceRecord, Task
from helpers.models import BASE_POLICY, DecodingSettings, Policies
from helpers.rewards import RewardModel, Scorer
from helpers.statistics import Estimate, TableRows

from .answer_shapes import AnswerShapes
from .forgetting import Forgetting, measure_forgetting
from .preference_exam import PreferenceExam, examine_preferences
from .rightness import Rightness
from .side_by_side import GREEDY, PolicyAnswer, ask_all, texts_of
from .win_rate import WinRates, win_rates


@dataclass(frozen=True)
class Evidence:
    """Tables and what they allow to say; wins is None without a judge."""

    pairs: PreferenceExam
    wins: WinRates | None
    shapes: AnswerShapes
    forgetting: Forgetting

    @property
    def answers(self) -> Mapping[str, Sequence[PolicyAnswer]]:
        """By model, in the order of the tasks; for whoever has more questions about them."""
        return self.shapes.answers

    def parts(self) -> list[PreferenceExam | WinRates | AnswerShapes | Forgetting]:
        parts = (self.pairs, self.wins, self.shapes, self.forgetting)
        return [part for part in parts if part is not None]

    def tables(self) -> list[TableRows]:
        """The tables with more than a head."""
        tables = [part.rows() for part in self.parts()] + [self.forgetting.answer_rows()]
        return [rows for rows in tables if len(rows) > 1]

    def conclusions(self) -> list[str]:
        """One sentence a policy and question, for the top of a report."""
        said = self.pairs.conclusions()
        if self.wins is not None:
            said += [str(row) for row in self.wins.found]
        return said + self.forgetting.conclusions()

    def remarks(self) -> list[str]:
        """All other sentences."""
        # each sentence stands once
        top = self.conclusions()
        said = []
        for part in self.parts():
            said += [sentence for sentence in part.sentences() if sentence not in top]
        return said

    def figures(self) -> dict[str, Estimate]:
        """Figures by name, for `summary.json` and `figures.json`."""
        # no figure of what could not be measured
        found = {}
        for name in self.pairs.policies if self.pairs.photos else ():
            found[f"{name}_pair_accuracy"] = self.pairs.accuracy(name, "DPO margin")
            found[f"{name}_pair_logp_accuracy"] = self.pairs.accuracy(name, "log-probability")
        for row in self.wins.found if self.wins else ():
            found[f"{row.policy}_win_rate_{row.judge}"] = row.rate
            if row.agreement is not None:
                found[f"{row.policy}_agreement_{row.judge}"] = row.agreement
        return found | self.forgetting.figures()


def gather_evidence(
    policies: Policies,
    names: Sequence[str],
    records: Sequence[PreferenceRecord],
    tasks: Sequence[Task],
    *,
    judges: Mapping[str, Scorer | RewardModel] | None = None,
    trained_on: Sequence[PreferenceRecord] = (),
    stopped: bool = False,
    shuffle: bool = True,
    decoding: DecodingSettings = GREEDY,
) -> Evidence:
    """Ask the base and the policies `names` all that needs no truth.

    records, tasks: held-out pairs, and questions that are answered anew (greedily by default).
    judges: scorers or reward models that decide between answers, by the name that tables show.
    trained_on: records on which the blind rule to compare with is chosen. stopped: the pairs also
    said when to stop the training. Where tasks have a truth, it says how often a judge is right.
    """
    names = list(dict.fromkeys([BASE_POLICY, *names]))
    pairs = examine_preferences(
        policies, names, records, trained_on=trained_on, shuffle=shuffle, stopped=stopped
    )
    answers = ask_all(policies, names, tasks, decoding)
    # the same answers are judged and looked at
    wins = None
    if judges:
        abouts = {name: saved.about for name, saved in policies.saved.items()}
        texts = texts_of(answers)
        wins = win_rates(tasks, texts, judges, abouts, _how_right(tasks, texts))
    forgetting = measure_forgetting(policies, names)
    return Evidence(pairs, wins, AnswerShapes(tasks, answers), forgetting)


def _how_right(
    tasks: Sequence[Task], texts: Mapping[str, Sequence[str]]
) -> dict[str, list[float]] | None:
    """How far every answer of every model is right; None if no truth is known.

    A task without a truth, among others that have one, tells no difference.
    """
    rightness = Rightness(tasks)
    if not rightness.is_known:
        return None
    found = {}
    for name, answers in texts.items():
        rows = zip(tasks, answers, strict=True)
        found[name] = [rightness.degree(task, answer) or 0.0 for task, answer in rows]
    return found
