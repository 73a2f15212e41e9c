"""The figures of notebook 07, from its examinations to the names in `summary.json`."""

from collections.abc import Mapping, Sequence

from helpers.evaluation import (
    ExamResult,
    Forgetting,
    Metric,
    PolicyComparison,
    binary_measures,
    policy_findings,
)
from helpers.models import BASE_POLICY, Policies
from helpers.statistics import Proportion, share_of

from .page import Section


def add_exam_figures(
    section: Section,
    policies: Policies,
    examined: Mapping[str, ExamResult],
    metrics: Sequence[Metric],
    comparisons: Sequence[PolicyComparison],
    forgetting: Forgetting,
    against_sft: Sequence[PolicyComparison] = (),
) -> None:
    """Put into a section the headline figures of base, SFT and DPO, and what model cards need.

    The first policy of a stage has the plain names, such as `dpo_exact`; those of further seeds end
    in the name of their folder: `dpo_exact_seed_1`. Policies of PPO have their figures from
    notebook 05. against_sft: comparisons with the policy of SFT, such as `dpo_vs_sft_p`.
    """
    judge = examined[BASE_POLICY].judge
    _add_shares(section, "base_{}", examined[BASE_POLICY])
    # p of the first measure, adjusted by Holm over the whole table
    main = judge.measures[0].name
    p_values = {row.policy: row.adjusted for row in comparisons if row.metric == main}
    p_against_sft = {row.policy: row.adjusted for row in against_sft if row.metric == main}
    asked = BASE_POLICY  # without DPO, its figure is the base's
    for stage in ("sft", "dpo"):
        trained = [policy for policy in policies.saved.values() if policy.name.startswith(stage)]
        for number, policy in enumerate(trained):
            suffix = f"_{policy.folder.name.replace('-', '_')}" if number else ""
            name = f"{stage}_{{}}{suffix}"
            _add_shares(section, name, examined[policy.name], policy.seed)
            section.add_value(name.format("mcnemar_p"), p_values[policy.name], policy.seed)
            if policy.name in p_against_sft:
                section.add_value(name.format("vs_sft_p"), p_against_sft[policy.name], policy.seed)
        if stage == "dpo" and trained:
            asked = trained[0].name
    for metric in metrics:
        if judge.others and metric.name == f"{judge.other_name}: right":
            name = judge.other_name.replace(" ", "_")
            section.add_share(f"base_{name}", share_of(metric.values[BASE_POLICY]))
            section.add_share(f"dpo_{name}", share_of(metric.values[asked]))
    section.examined = policy_findings(policies, examined, comparisons, forgetting)


def _add_shares(section: Section, name: str, found: ExamResult, seed: int = 0) -> None:
    """Add the shares of one model; `name` has {} for what is measured."""
    # shares of single answers: sampled ones are of the first seed
    sampled = found.sampled[0]
    main, *rest = [measure.short for measure in binary_measures(found.judge)]
    shares = {main: found.greedy.share(main), f"{main}, sampled": sampled.share(main)}
    for short in rest:
        shares[f"{short}, sampled"] = sampled.share(short)
    shares[f"{main}, shuffled images"] = found.shuffled.share(main)
    for measure, share in shares.items():
        section.add_share(name.format(figure_name(measure)), share, seed)


def add_shares(section: Section, name: str, shares: Mapping[str, Proportion], seed: int) -> None:
    """Add the shares of one policy, as `GreedyAndSampled.shares` names them."""
    for measure, share in shares.items():
        section.add_share(f"{name}_{figure_name(measure)}", share, seed)


def figure_name(measure: str) -> str:
    """Turn what is measured into a part of a figure's name.

    >>> figure_name("well formed, sampled")
    'wellformed_sampled'
    """
    return measure.replace("well formed", "wellformed").replace(", ", "_").replace(" ", "_")
