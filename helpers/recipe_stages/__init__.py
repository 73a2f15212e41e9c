"""What the stages of a recipe (`helpers/recipes.py`) do.

    answers.py          the data, and the model's own answers ranked in place of those in it
    reward_models.py    three kinds of reward models, and the scorers of PPO
    policies.py         SFT, DPO, DPO in rounds, and PPO
    verdicts.py         base and policies on the test split

Each stage reads what the one before has left in the run's folder. Reward models and policies run in
one process or in several (torchrun, accelerate launch). What is not training runs in the first
process while the others wait. A stage that was cut off goes on from its last checkpoint.
"""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext

from accelerate import PartialState

from helpers import models
from helpers.files import UsageError, hold_folder, read_json, write_figures
from helpers.recipes import RecipeRun, fit_recipe
from helpers.runtime import device

from .answers import prepare_recipe_data, rank_answers
from .policies import (
    train_dpo_policy,
    train_online_policy,
    train_ppo_policy,
    train_sft_policy,
)
from .reward_models import train_caption_rewards, train_feature_reward, train_reward_models
from .verdicts import evaluate_policies

# These run in all processes.
TRAINING_STAGES = ("reward", "sft", "dpo", "online", "ppo")
RECIPE_STAGES: dict[str, Callable[[RecipeRun], None]] = {
    "data": prepare_recipe_data,
    "rank": rank_answers,
    "features": train_feature_reward,
    "captions": train_caption_rewards,
    "reward": train_reward_models,
    "sft": train_sft_policy,
    "dpo": train_dpo_policy,
    "online": train_online_policy,
    "ppo": train_ppo_policy,
    "evaluate": evaluate_policies,
}


def run_stages(run: RecipeRun, names: Sequence[str] = ()) -> dict[str, dict[str, float]]:
    """Run the recipe's stages in its order, or only those in `names`.

    Their figures go to `figures.json` in the folder. One process first changes what does not fit
    this machine, as the notebooks do; several take the recipe as it is.
    """
    stages = run.recipe.stages
    unknown = sorted(set(names) - set(stages))
    if unknown:
        raise UsageError(
            f"the recipe has no stage {', '.join(unknown)}: it has {', '.join(stages)}."
        )
    state = PartialState(cpu=device().type == "cpu")
    if state.num_processes == 1:
        run.recipe = fit_recipe(run.recipe, names)
    wanted = [name for name in stages if not names or name in names]
    # two commands in one folder would overwrite each other's figures
    with hold_folder(run.folder) if state.is_main_process else nullcontext():
        _run_in_order(run, wanted, state)
    return run.figures


def _run_in_order(run: RecipeRun, names: Sequence[str], state: PartialState) -> None:
    path = run.folder / "figures.json"
    if path.exists():
        run.figures = read_json(path)
    for name in names:
        state.wait_for_everyone()
        if name in TRAINING_STAGES or state.is_main_process:
            state.print(f"── {name} ──", flush=True)
            with keep_what_is_given(run, name):
                RECIPE_STAGES[name](run)
        state.wait_for_everyone()
        if state.is_main_process:
            write_figures(path, run.figures)


def keep_what_is_given(run: RecipeRun, name: str) -> AbstractContextManager[None]:
    """Keep the answers that a model gives in a stage, which then goes on where it was cut off.

    Training keeps checkpoints, and asks only to watch.
    """
    if name in TRAINING_STAGES:
        return nullcontext()
    return models.keep_answers(run.folder / "cache" / "answers")
