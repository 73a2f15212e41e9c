"""The stage `evaluate`: base and policies on the test split, and what was forgotten."""

from collections.abc import Sequence
from pathlib import Path

import torch
from transformers import ProcessorMixin

from helpers import models
from helpers.data import Task
from helpers.evaluation import (
    GreedyAndSampled,
    evaluate_greedy_and_sampled,
    gather_evidence,
    judges,
)
from helpers.files import read_json
from helpers.models import Policies, SavedPolicy
from helpers.recipes import POLICY_STAGES, RecipeRun
from helpers.report import figure_name
from helpers.rewards import reward_model
from helpers.statistics import mcnemar_p

EVIDENCE = 100  # held-out questions and records that are asked of without a truth


def evaluate_policies(run: RecipeRun) -> None:
    """Base and policies on the test split: held-out pairs, wins, and who is right, if known."""
    model, processor = run.load()
    tasks = run.tasks("test")
    _show_evidence(run, tasks)
    if not judges(tasks).measures:
        print("No truth is known of these questions, so nobody can say which answers are right.")
        return
    base = _evaluate_policy(run, "base", model, processor, tasks)
    baseline = None
    # each policy on a fresh base, on the same tasks: the tests are paired
    for name, folder in _policy_folders(run).items():
        policy = models.load_adapter(run.load()[0], folder)
        found = _evaluate_policy(run, name, policy, processor, tasks)
        p = mcnemar_p(base.greedy.right, found.greedy.right)
        run.add_figure(f"{name}_mcnemar_p", float(p))
        if name == "sft":
            baseline = found.greedy.right
        elif baseline is not None:
            # what comparing answers, or a reward, gives beyond the good answers themselves
            run.add_figure(f"{name}_vs_sft_p", float(mcnemar_p(baseline, found.greedy.right)))


def _policy_folders(run: RecipeRun) -> dict[str, Path]:
    """The folders of the policies that this run has trained, SFT's first."""
    folders = {}
    for name in POLICY_STAGES:
        # what another recipe has left in the folder is not this one's
        if name in run.recipe.stages and (run.folder / name / "adapter_config.json").exists():
            folders[name] = run.left_by(name)
    return folders


def _show_evidence(run: RecipeRun, tasks: Sequence[Task]) -> None:
    """Print what can be said without a truth, and add its figures; nothing without a policy."""
    saved = []
    for name, folder in _policy_folders(run).items():
        saved.append(SavedPolicy(name, folder, read_json(folder / "about.json")))
    if not saved:
        return
    # a run whose data has questions alone has no pairs to judge
    has_pairs = run.prepared().path("train").exists()
    policies = Policies(*run.load(), saved)
    judging = {}
    if "reward" in run.recipe.stages and (run.folder / "reward" / "best").exists():
        best = run.left_by("reward/best")
        judging["reward_model"] = reward_model.load_reward_model(*run.load(), best)
    evidence = gather_evidence(
        policies,
        policies.names,
        run.records("test")[:EVIDENCE] if has_pairs else [],
        tasks[:EVIDENCE],
        judges=judging,
        trained_on=run.records("train") if has_pairs else [],
        stopped=run.prepared().held_out == "valid",
    )
    for sentence in [*evidence.conclusions(), *evidence.remarks()]:
        print(sentence)
    for name, figure in evidence.figures().items():
        run.add_figure(name, figure)


def _evaluate_policy(
    run: RecipeRun,
    name: str,
    model: torch.nn.Module,
    processor: ProcessorMixin,
    tasks: Sequence[Task],
) -> GreedyAndSampled:
    """Greedy and sampled answers of one model, and their shares among the run's figures."""
    found = evaluate_greedy_and_sampled(model, processor, tasks)
    for measure, share in found.shares().items():
        run.add_figure(f"{name}_{figure_name(measure)}", share)
    return found
