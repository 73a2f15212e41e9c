"""The figures of notebook 07, from its examinations to the names in `summary.json`."""

from collections.abc import Mapping, Sequence

from helpers.evaluation import ExamResult, Metric, PolicyComparison, policy_findings
from helpers.models import BASE_POLICY, Policies
from helpers.statistics import share_of

from .page import Section

ALL_COUNTS = "all counts right"  # names of metrics of `exam.exam_metrics`
ONE_CLASS = "one class: right"


def add_exam_figures(
    section: Section,
    policies: Policies,
    examined: Mapping[str, ExamResult],
    metrics: Sequence[Metric],
    comparisons: Sequence[PolicyComparison],
) -> None:
    """Put into a section the headline figures of the base and of DPO, and what model cards need.

    The first policy has the plain names, such as `dpo_exact`; those of further seeds end in the
    name of their folder: `dpo_exact_seed_1`. Policies of PPO have their figures from notebook 05.
    """
    _add_shares(section, "base_{}", examined[BASE_POLICY])
    # p of McNemar, adjusted by Holm over the whole table
    p_values = {row.policy: row.adjusted for row in comparisons if row.metric == ALL_COUNTS}
    first, *_ = policies.saved or [None]
    trained = [policy for policy in policies.saved.values() if policy.name.startswith("dpo")]
    for policy in trained:
        suffix = "" if policy.name == first else f"_{policy.folder.name.replace('-', '_')}"
        name = f"dpo_{{}}{suffix}"
        _add_shares(section, name, examined[policy.name], policy.seed)
        section.add_value(name.format("mcnemar_p"), p_values[policy.name], policy.seed)
    (one_class,) = (metric.values for metric in metrics if metric.name == ONE_CLASS)
    asked = trained[0].name if trained else BASE_POLICY  # without DPO, its figure is the base's
    section.add_share("base_one_class", share_of(one_class[BASE_POLICY]))
    section.add_share("dpo_one_class", share_of(one_class[asked]))
    section.examined = policy_findings(policies, examined, comparisons)


def _add_shares(section: Section, name: str, found: ExamResult, seed: int = 0) -> None:
    """Add the shares of one model; `name` has {} for what is measured."""
    # shares of single answers: sampled ones are of the first seed
    sampled = found.sampled[0]
    shares = {
        "exact": found.greedy.exact_share,
        "exact_sampled": sampled.exact_share,
        "wellformed_sampled": sampled.well_formed_share,
        "exact_shuffled_images": found.shuffled.exact_share,
    }
    for measure, share in shares.items():
        section.add_share(name.format(measure), share, seed)
