"""The figures of notebook 07, from its examinations to the names in `summary.json`."""

from collections.abc import Mapping, Sequence

from helpers.evaluation import ExamResult, Metric, PolicyComparison, policy_findings
from helpers.models import BASE_POLICY, Policies, SavedPolicy
from helpers.statistics import proportion

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
    base = examined[BASE_POLICY]
    section.add_share("base_exact", base.greedy.exact_share)
    section.add_share("base_exact_sampled", base.sampled[0].exact_share)
    section.add_share("base_wellformed_sampled", base.sampled[0].well_formed_share)
    section.add_share("base_exact_shuffled_images", base.shuffled.exact_share)
    p_values = {row.policy: row.adjusted for row in comparisons if row.metric == ALL_COUNTS}
    trained = [policy for policy in policies.saved.values() if policy.name.startswith("dpo")]
    first = next(iter(policies.saved.values()), None)
    for policy in trained:
        suffix = "" if policy is first else f"_{policy.folder.name.replace('-', '_')}"
        _add_policy(section, policy, suffix, examined[policy.name], p_values[policy.name])
    (one_class,) = (metric.values for metric in metrics if metric.name == ONE_CLASS)
    asked = trained[0].name if trained else BASE_POLICY  # without DPO, its figure is the base's
    for label, name in {"base": BASE_POLICY, "dpo": asked}.items():
        right = one_class[name]
        section.add_share(f"{label}_one_class", proportion(int(right.sum()), len(right)))
    section.examined = policy_findings(policies, examined, comparisons)


def _add_policy(
    section: Section,
    policy: SavedPolicy,
    suffix: str,
    found: ExamResult,
    p: float,
) -> None:
    section.add_share(f"dpo_exact{suffix}", found.greedy.exact_share, policy.seed)
    sampled = found.sampled[0]
    section.add_share(f"dpo_exact_sampled{suffix}", sampled.exact_share, policy.seed)
    section.add_share(f"dpo_wellformed_sampled{suffix}", sampled.well_formed_share, policy.seed)
    section.add_share(f"dpo_exact_shuffled_images{suffix}", found.shuffled.exact_share, policy.seed)
    section.add_value(f"dpo_mcnemar_p{suffix}", p, policy.seed)
