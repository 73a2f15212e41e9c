"""The recipes: what they set, and each run whole, in a short form, on the embedded model."""

import json
import math
import shutil
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file
from shipped import TRAFFIC

from helpers import cli, models, recipe_stages as stages, recipes
from helpers.config import ALL_LINEAR, ATTENTION, ppo_preset, reward_preset, sft_preset
from helpers.data import SPLITS, read_prepared
from helpers.data.preferences import write_records
from helpers.data.record import PreferenceRecord
from helpers.files import UsageError, hold_folder, read_json, write_json
from helpers.machine import facts, fits
from helpers.machine.speed import Line, MachineSpeed
from helpers.machine.workload import GenerationSettings, Workload
from helpers.models import generation, presets
from helpers.recipe_stages import answers, policies, run_stages
from helpers.recipes import (
    POLICY_STAGES,
    RECIPES,
    RecipeRun,
    deep_merge,
    find_recipe,
    fit_recipe,
    read_recipe,
)
from helpers.rewards import get_scorer, load_reward_model, rank_again, score_records

heavy = pytest.mark.heavy(reason="runs all recipes in a short form")

NAMES = sorted(path.stem for path in RECIPES.glob("*.toml"))
LIMIT = 16  # records of each split
STEPS = ["sft.settings.steps=2", "dpo.settings.steps=2", "ppo.settings.iterations=1"]
REWARD = [
    "reward.settings.epochs=1",
    "dpo.preflight=False",
    # two preferences a question, so that there are half as many questions
    "ppo.settings.prompts_per_iteration=8",
]
SHORT = {  # of each recipe, so that it takes seconds
    "counting": STEPS,
    "instructions": [*STEPS, *REWARD, "captions.epochs=1"],
    "questions": [
        "sft.settings.steps=2",
        "ppo.settings.iterations=2",
        "ppo.settings.prompts_per_iteration=16",
        "ppo.settings.checkpoint_every=1",
    ],
    "reasoning": [*STEPS, *REWARD, 'reward.objectives=["focal"]'],
    "reasons": [*STEPS, *REWARD],
    "online": ["online.settings.steps=2", "online.rounds=2"],
    "rejection": [
        "sft.settings.steps=2",
        "reward.settings.epochs=1",
        "rank.answers=3",
        "rank.share=0.5",
    ],
}
ROWS = {  # what a row of each project's data has
    "counting": {"image_path", "prompt", "chosen", "rejected"},
    "instructions": {"image_path", "instruction", "response_a", "response_b", "preference"},
    "reasoning": {"image", "question", "chosen", "rejected"},
}
# The way of the project behind `reasons`, as its recipe says
HACKED = (
    "stages=['data', 'rank', 'features', 'ppo', 'evaluate']",
    "ppo.score={'features': 1.0}",
    "features.epochs=2",
    "rank.answers=3",
)


def run(name, folder, *more):
    changes = [part for setting in (*SHORT[name], *more) for part in ("--set", setting)]
    assert cli.main(["train", "--config", name, "--laptop", "--out", str(folder), *changes]) == 0
    return read_json(folder / "figures.json")


@pytest.fixture(scope="module")
def figures(tmp_path_factory):
    folder = tmp_path_factory.mktemp("recipes")
    limit = f"data.limit={LIMIT}"
    return {name: (folder / name, run(name, folder / name, limit)) for name in NAMES}


def test_there_is_one_for_each_project_and_two_more():
    assert set(SHORT) == set(NAMES) and len(NAMES) == 5 + len({"online", "rejection"})


@heavy
@pytest.mark.parametrize("name", NAMES)
def test_a_recipe_runs_whole(figures, name):
    folder, found = figures[name]
    recipe = read_recipe(find_recipe(name), laptop=True)
    for stage in set(POLICY_STAGES) & set(recipe.stages):
        assert (folder / stage / "adapter_model.safetensors").exists()
        about = read_json(folder / stage / "about.json")
        assert about["base"] == recipe.model and about["recipe"] == recipe.title
    if "reward" in recipe.stages:
        assert (folder / "reward" / "best" / "head.safetensors").exists()
    if "evaluate" in recipe.stages:
        share = found["base_exact" if name in ("counting", "online", "rejection") else "base_right"]
        assert share["n"] == LIMIT and share["low"] < share["value"] < share["high"]
    assert all(isinstance(row["value"], float) and row["seed"] == 0 for row in found.values())


@heavy
@pytest.mark.parametrize(("name", "keys"), ROWS.items())
def test_the_data_has_the_projects_form(figures, name, keys):
    folder, _ = figures[name]
    file = next((folder / "data").glob("train.*.json"))
    text = file.read_text(encoding="utf-8")
    row = json.loads(text)[0] if text.startswith("[") else json.loads(text.splitlines()[0])
    assert keys <= row.keys()


@heavy
def test_questions_are_the_shipped_ones_and_no_image_is_in_both_splits(figures):
    folder, found = figures["questions"]
    prepared = read_prepared(folder / "data")
    train, test = prepared.tasks("train"), prepared.tasks("test")
    assert not {task.images for task in train} & {task.images for task in test}
    assert found["questions_train"]["value"] == len(train) == LIMIT
    assert found["questions_test"]["value"] == len(test) == LIMIT
    assert {"Yes.", "No."} < {task.facts for task in train} and prepared.kind == "exact_match"


@heavy
def test_ranked_answers_are_the_models_own_and_the_questions_stay_all(tmp_path):
    folder = tmp_path
    found = run("reasons", folder, *HACKED, f"data.limit={LIMIT}")
    assert {"features_pair_accuracy", "ppo_right"} < found.keys()
    ranked = [
        json.loads(line)
        for line in (folder / "data" / "test-ranked.jsonl").read_text().splitlines()
    ]
    assert {answer["origin"] for record in ranked for answer in record["answers"]} == {"own"}
    assert len((folder / "data" / "test.jsonl").read_text().splitlines()) == LIMIT >= len(ranked)


@heavy
def test_rejection_sampling_learns_the_best_of_each_questions_samples(figures):
    """The reward model has learnt from the pairs of the data, SFT from its own favourites."""
    folder, found = figures["rejection"]
    recipe = read_recipe(find_recipe("rejection"), laptop=True)
    run_of = RecipeRun(recipe, folder)
    assert run_of.pairs("train", "reward") == run_of.records("train")
    ranked = run_of.pairs("train", "sft")
    assert len(ranked) <= LIMIT / 2  # rank.share
    assert not run_of.ranked_path("test").exists()  # nobody reads it
    reward = load_reward_model(*models.load_model("tiny"), folder / "reward" / "best")
    expected = [value for row in score_records(reward, ranked) for value in row]
    scores = [answer.score for record in ranked for answer in record.answers]
    assert scores == pytest.approx(expected, abs=1e-3)
    assert found["sft_answers"]["value"] == sum(
        len(one.ranking[0]) for one in ranked if one.pairs()
    )


@heavy
def test_online_dpo_goes_on_where_it_was_cut_off(figures, tmp_path, monkeypatch):
    """Cut off in its second round: the first is loaded, and the adapter is that of a whole run."""
    whole, _ = figures["online"]
    asked = []
    own = policies.on_policy_round

    def counted(*args, **how):
        if how["folder"].name == "round-2" and not asked:
            asked.append(how["folder"])
            raise KeyboardInterrupt
        return own(*args, **how)

    monkeypatch.setattr(policies, "on_policy_round", counted)
    with pytest.raises(AssertionError, match="130"):
        run("online", tmp_path, f"data.limit={LIMIT}")
    assert asked and (tmp_path / "online" / "round-1").exists()
    run("online", tmp_path, f"data.limit={LIMIT}")
    kept, expected = (
        load_file(f / "online" / "adapter_model.safetensors") for f in (tmp_path, whole)
    )
    assert all(torch.equal(kept[name], expected[name]) for name in expected)
    about = read_json(tmp_path / "online" / "about.json")
    assert about["rounds"] == 2 and about["start"] == "base"
    rounds = [row["round"] for row in read_json(tmp_path / "online" / "log.json")]
    assert rounds == [1, 1, 2, 2]


@heavy
def test_every_round_may_have_a_reward_of_its_own_and_a_share_of_the_questions(
    tmp_path, monkeypatch
):
    asked = []
    own = policies.on_policy_round

    def counted(policy, processor, tasks, ranker, *args, **how):
        asked.append((tuple(task.images for task in tasks), ranker))
        return own(policy, processor, tasks, ranker, *args, **how)

    monkeypatch.setattr(policies, "on_policy_round", counted)
    changes = (
        "data.limit=8",
        "online.share=0.5",
        "online.scorer='reward_model'",
        "online.fresh_reward=true",
        "reward.preset='tiny'",
        "reward.settings.epochs=1",
        "stages=['data', 'online']",
    )
    found = run("online", tmp_path, *changes)
    (first, reward), (second, other) = asked
    assert len(first) == len(second) == 4 and first != second
    weights, other_weights = (one.head.state_dict() for one in (reward, other))
    assert all(not torch.equal(weights[name], other_weights[name]) for name in weights)
    assert {"online_reward_round_1", "online_reward_round_2"} <= found.keys()
    # a finished round is loaded with the reward that it had
    run("online", tmp_path, *changes)
    again = asked[2][1].head.state_dict()
    assert all(torch.equal(weights[name], again[name]) for name in weights)


def test_settings_of_another_preset_do_not_reach_the_laptop(tmp_path):
    """Rates for a checkpoint of two billion weights had come through to the embedded model."""
    path = tmp_path / "own.toml"
    path.write_text(
        'title = "own"\nmodel = "qwen2-vl-2b"\nstages = ["data", "sft", "ppo"]\n'
        'sft.preset = "t4"\nsft.settings = { steps = 400, accumulation = 8 }\n'
        'ppo.preset = "t4"\nppo.settings = { learning_rate = 5e-5, kl_weight = 0.3 }\n'
        '[laptop]\nmodel = "tiny"\nsft.preset = "tiny"\n'
        "ppo.settings = { kl_weight = 0.2 }\n"
    )
    recipe = read_recipe(path, laptop=True)
    assert recipe.sft_settings() == sft_preset("tiny")
    # the same preset: one setting more is changed
    assert recipe.ppo.settings == {"learning_rate": 5e-5, "kl_weight": 0.2}
    assert read_recipe(path).sft_settings().steps == 400


@pytest.mark.parametrize("name", ["reasons", "instructions", "reasoning", "questions", "counting"])
def test_the_embedded_models_learn_at_their_own_rates(name):
    recipe = read_recipe(find_recipe(name), laptop=True)
    assert recipe.ppo_settings().learning_rate == ppo_preset("tiny-rloo").learning_rate == 1e-3
    sft = recipe.sft_settings()
    assert (sft.steps, sft.accumulation) == (120, 1)


def test_a_fresh_reward_is_one_that_ranks():
    changes = [("online.fresh_reward", True)]
    with pytest.raises(UsageError, match=r"online\.fresh_reward: set online\.scorer"):
        read_recipe(find_recipe("online"), laptop=True, changes=changes)
    changes += [("online.scorer", "reward_model")]
    recipe = read_recipe(find_recipe("online"), laptop=True, changes=changes)
    assert recipe.online.fresh_reward and "reward" not in recipe.stages


def test_what_ranks_must_be_there_when_it_is_needed(tmp_path):
    changes = [("stages", ["data", "rank", "reward", "sft"]), ("rank.scorer", "reward_model")]
    with pytest.raises(UsageError, match=r"`reward` must come before `rank`"):
        read_recipe(find_recipe("counting"), laptop=True, changes=changes)
    recipe = read_recipe(find_recipe("rejection"), laptop=True)
    assert recipe.is_before("rank", "sft") and recipe.is_before("rank", "dpo")
    assert not recipe.is_before("rank", "reward") and not recipe.is_before("ppo", "sft")


@heavy
def test_answers_are_ranked_by_how_right_they_are(tmp_path):
    """Equal to the scorer of that truth; where nothing is known, it is refused."""
    changes = [("stages", ["data", "rank"]), ("data.limit", 6), ("rank.scorer", "truth")]
    recipe = read_recipe(find_recipe("counting"), laptop=True, changes=changes)
    run_stages(RecipeRun(recipe, tmp_path))
    ranked = RecipeRun(recipe, tmp_path).pairs("train")
    assert ranked
    again = rank_again(ranked, get_scorer("count_graded"))
    assert [one.ranking for one in again] == [one.ranking for one in ranked]
    # whether they are: the nearest of wrong answers is as bad as the others
    run_of = RecipeRun(recipe, tmp_path)
    right = rank_again(ranked, answers.find_ranker(run_of, "right"))
    wrong = [record for record in right if not any(a.score for a in record.answers)]
    assert wrong and all(len(record.ranking) == 1 for record in wrong)
    assert any(len(before.ranking) > 1 for before in ranked)


@heavy
def test_a_judge_that_says_nothing_stops_the_stage_in_words(tmp_path):
    changes = [("stages", ["data", "rank"]), ("data.limit", 4), ("rank.scorer", "judge")]
    recipe = read_recipe(find_recipe("counting"), laptop=True, changes=changes)
    with pytest.raises(UsageError, match=r"judge tiny finds no answer better.*cannot be read"):
        run_stages(RecipeRun(recipe, tmp_path))


@heavy
def test_a_stage_that_was_run_before_goes_on_from_its_checkpoint(figures, capsys):
    folder, before = figures["questions"]
    changes = [
        part
        for setting in (*SHORT["questions"], f"data.limit={LIMIT}")
        for part in ("--set", setting)
    ]
    arguments = [
        "train",
        "--config",
        "questions",
        "--laptop",
        "--out",
        str(folder),
        "--stage",
        "ppo",
        *changes,
    ]
    assert cli.main(arguments) == 0
    assert "Finished after step 2" in capsys.readouterr().out
    assert read_json(folder / "figures.json") == before


def test_two_commands_do_not_run_in_one_folder(tmp_path):
    """The figures of one would overwrite those of the other."""
    run = RecipeRun(read_recipe(find_recipe("counting"), laptop=True), tmp_path / "run")
    with (
        hold_folder(tmp_path / "run"),
        pytest.raises(UsageError, match=r"run: process \d+ is at work there"),
    ):
        run_stages(run, ["data"])
    assert not (tmp_path / "run").exists()


def test_what_the_projects_used():
    """From the projects' own reports; the arithmetic of the adapters is in the tests of the presets."""
    found = {name: read_recipe(find_recipe(name)) for name in NAMES}
    assert [found[name].model for name in NAMES] == [
        "qwen2-vl-2b", "llava-1.5-7b", "qwen2-vl-2b", "llava-next-llama3-8b", "qwen2-vl-2b",
        "smolvlm-500m", "qwen2-vl-2b",
    ]  # fmt: skip
    assert all(recipe.model in presets.PRESETS for recipe in found.values())
    assert found["counting"].dpo_settings().steps == 420 and found["instructions"].data.limit == 150
    assert (
        found["reasons"].rank.answers == 4
        and found["reasons"].ppo_settings().entropy_weight == 0.01
    )
    # its rates moved nothing, so the recipe has others
    assert found["reasoning"].reward_settings() == reward_preset("t4")
    reward = reward_preset("reasoning")
    assert (reward.learning_rate, reward.epochs, reward.batch_size, reward.accumulation) == (
        5e-6,
        3,
        1,
        16,
    )
    assert (reward.lora.r, reward.lora.alpha, reward.lora.dropout, reward.lora.target_modules) == (
        8,
        16,
        0.05,
        ATTENTION,
    )
    ppo = found["questions"].ppo_settings()
    assert (ppo.learning_rate, ppo.critic_learning_rate, ppo.gamma, ppo.lam, ppo.clip) == (
        5e-6,
        1e-5,
        0.99,
        0.95,
        0.2,
    )
    assert (ppo.lora.r, ppo.lora.alpha, ppo.lora.dropout, ppo.lora.target_modules) == (
        8,
        32,
        0.05,
        ALL_LINEAR,
    )
    assert (
        ppo.advantages == "rloo" and ppo.group_size == 4
    )  # what is different: one answer alone teaches nothing
    # the project's cosine is the smaller part: it also pays for words that every answer shares
    assert found["questions"].ppo.score == {"exact_match": 0.7, "cosine": 0.3}
    assert found["questions"].sft.answers == "reference"
    assert 525 * 16 == 8_400  # questions, about the project's 8,379


def test_changes_are_laid_over_table_by_table():
    under = {
        "ppo": {"preset": "t4", "score": {"a": 1.0}, "settings": {"group_size": 4, "lam": 0.9}}
    }
    over = {"ppo": {"score": {"b": 2.0}, "settings": {"group_size": 8}}}
    assert deep_merge(under, over) == {
        "ppo": {"preset": "t4", "score": {"b": 2.0}, "settings": {"group_size": 8, "lam": 0.9}}
    }
    recipe = read_recipe(find_recipe("counting"), changes=[("dpo.settings.lora.r", 4), ("seed", 3)])
    assert (
        recipe.dpo_settings().lora.r == 4
        and recipe.dpo_settings().lora.alpha == 32
        and recipe.seed == 3
    )


def card(monkeypatch, gigabytes, gpu=False):
    """A machine with so much memory."""
    if gpu:
        monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda *_: (7, 5))
        monkeypatch.setattr(
            torch.cuda, "get_device_properties", lambda *_: SimpleNamespace(name="Tesla T4")
        )
    monkeypatch.setattr(facts, "available_gb", lambda: (gigabytes, gigabytes))
    line = Line(1e-3, 1e-5)
    speed = MachineSpeed(line, line, line, 1e-9, 3e-9, 1e12, 1e11)
    monkeypatch.setattr(fits, "measure_speed", lambda _: speed)
    monkeypatch.setattr(fits, "bf16_gain", lambda _: 1.0)


def test_what_does_not_fit_is_changed_before_anything_runs(monkeypatch, capsys):
    card(monkeypatch, 30)
    recipe = read_recipe(
        find_recipe("reasoning"),
        changes=[("reward.settings.batch_size", 128), ("reward.settings.accumulation", 1)],
    )
    changed = fit_recipe(recipe)
    settings = changed.reward_settings()
    assert 1 <= settings.batch_size < 128 and settings.batch_size * settings.accumulation == 128
    assert changed.model_copy(update={"reward": recipe.reward}) == recipe  # nothing else
    assert (
        f"batch_size 128 → {settings.batch_size}, accumulation 1 → {settings.accumulation}"
        in capsys.readouterr().out
    )
    card(monkeypatch, 600)
    assert fit_recipe(recipe) == recipe


@pytest.mark.parametrize("name", NAMES)
def test_on_a_t4_every_recipe_fits_by_the_forecast(monkeypatch, capsys, name):
    card(monkeypatch, 15.8, gpu=True)
    before = read_recipe(find_recipe(name))
    after = fit_recipe(before)
    assert after.max_pixels is None and after.model == before.model
    assert (
        after.dpo == before.dpo
        and after.reward_settings().batch_size == before.reward_settings().batch_size
    )
    # prompts at once, checkpointing, mini-batches
    assert after.ppo_settings().group_size == before.ppo_settings().group_size
    together = {"instructions": 16, "questions": 3}  # as docs/recipes.md says
    assert after.ppo_settings().sampling_batch == together.get(name, 0)
    assert "changed to fit" in capsys.readouterr().out


def test_images_are_those_that_fit_the_greediest_of_the_heads(monkeypatch):
    recipe, asked = read_recipe(find_recipe("reasoning"), changes=[("max_pixels", 560**2)]), {}

    def check(model, **given):
        asked.update(given)
        return fits.MachinePlan(
            Workload(model, max_pixels=336**2), 8.0, GenerationSettings(), reward=given["reward"]
        )

    monkeypatch.setattr(recipes, "check_machine", check)
    found = fit_recipe(recipe, ["reward"])
    assert found.max_pixels == 336**2 and found.model_copy(update={"max_pixels": 560**2}) == recipe
    assert asked.keys() == {"max_pixels", "four_bit", "reward"} and asked["max_pixels"] == 560**2
    assert asked["reward"].head == "fusion"  # of linear, mlp and fusion, the one that keeps most


@pytest.mark.heavy(reason="runs the first stage of a recipe")
def test_a_run_is_trained_with_what_fits_and_says_so(monkeypatch, tmp_path):
    """The stage `data` loads nothing; several processes would take the recipe as it is."""
    recipe = read_recipe(find_recipe("counting"), laptop=True, changes=[("data.limit", 4)])
    monkeypatch.setattr(
        stages, "fit_recipe", lambda recipe, _: recipe.model_copy(update={"max_pixels": 28**2})
    )
    run = RecipeRun(recipe, tmp_path)
    run_stages(run, ["data"])
    assert run.about()["max_pixels"] == 28**2
    assert run.load()[1].image_processor.size["longest_edge"] == 28**2


@pytest.mark.heavy(reason="two forecasts with the machine measured")
def test_a_recipe_with_a_stage_that_fits_nowhere_stops_at_once(monkeypatch, tmp_path):
    card(monkeypatch, 8.0)  # of RAM: 32 bits for what is not quantised
    recipe = read_recipe(find_recipe("instructions"))
    with pytest.raises(
        UsageError, match=r"llava-1\.5-7b does not fit: stage \w+ takes .* and 7.2 GB can be used"
    ):
        run_stages(RecipeRun(recipe, tmp_path))
    assert list(tmp_path.iterdir()) == []
    assert fit_recipe(recipe, ["data"]) == recipe  # needs no model
    card(monkeypatch, 8.9)
    small = read_recipe(
        find_recipe("counting"),
        changes=[("dpo.settings.batch_size", 1), ("dpo.settings.accumulation", 8)],
    )
    assert fit_recipe(small).max_pixels is None


START = 'title = "x"\nmodel = "tiny"\nstages = ["data"]\n'
MISTAKES = [  # text of a recipe, what is said beside its path
    (f"{START}modle = 1", "modle: nothing is called so here; choose from .*Did you mean 'model'"),
    (START.replace("data", "tidy"), r"stages\.0 = 'tidy': must be 'data', 'rank', .*'evaluate'"),
    ('title = "x"\nmodel = "tiny"\nstages = []', "stages"),
    (f"{START}seed = -1", "seed = -1: must be greater than or equal to 0"),
    (f"{START}max_pixels = 0", "max_pixels = 0: must be greater than 0"),
    (f"{START}data.limit = -3", r"data\.limit = -3: must be greater than 0"),
    (f"{START}data.limt = 3", r"data\.limt: nothing is called so .*Did you mean 'limit'"),
    (f"{START}data.train_share = 1.0", r"data\.train_share = 1\.0: must be less than 1"),
    (f'{START}data.format = "csv"', "unknown format 'csv'"),
    (f"{START}rank.answers = 1", r"rank\.answers = 1: must be greater than or equal to 2"),
    (
        f'{START}rank.scorer = "heuristics"',
        r"rank\.scorer: unknown scorer 'heuristics'\. Choose from .*Did you mean 'heuristic'",
    ),
    (f"{START}features.epochs = 0", r"features\.epochs = 0: must be greater than 0"),
    (f'{START}captions.epochs = "x"', r"captions\.epochs = 'x': must be a valid integer"),
    (f"{START}captions.learning_rate = -1", r"captions\.learning_rate = -1: must be greater"),
    (
        f'{START}reward.heads = ["mpl"]',
        r"reward\.heads: unknown head 'mpl'\. Choose from linear, mlp, fusion\. Did you mean 'mlp'",
    ),
    (
        f'{START}reward.objectives = ["bradley"]',
        r"reward\.objectives: unknown objective 'bradley'\. Choose from bradley_terry, ",
    ),
    (f'{START}reward.settings.head = "mlp"', r"reward\.settings\.head: write reward\.heads"),
    (f"{START}reward.settings.epochs = 0", "reward: epochs = 0: must be greater than 0"),
    (f"{START}dpo.settings.step = 1", "no DPO setting is called step"),
    (f'{START}dpo.settings.steps = "x"', "dpo: steps = 'x': must be a valid integer"),
    (f"{START}dpo.settings.learning_rate = -1", "dpo: learning_rate = -1: must be greater than 0"),
    (f"{START}dpo.settings.lora.r = 0", "dpo: lora: r = 0: must be greater than 0"),
    (f"{START}dpo.settings.lora = 3", "dpo: lora = 3: must be an instance of LoraSettings"),
    (f'{START}dpo.settings.losses = ["igo"]', r"dpo: losses\.0 = 'igo': .*Did you mean 'ipo'"),
    (f'{START}sft.preset = "tinny"', "sft: unknown SFT preset 'tinny'.*Did you mean 'tiny'"),
    (f"{START}sft.settings.beta = 1.0", "sft: no SFT setting is called beta"),
    (f'{START}sft.answers = "best"', r"sft\.answers = 'best': must be 'chosen' or 'reference'"),
    (f'{START}dpo.start = "ppo"', r"dpo\.start = 'ppo': must be 'base' or 'sft'"),
    (
        START.replace('"data"', '"dpo", "sft"') + 'dpo.start = "sft"',
        r"dpo\.start: dpo is to begin with the adapter of the stage sft, which does not come",
    ),
    (
        START.replace('"data"', '"sft", "ppo"') + 'ppo.start = "sft"\nppo.settings.lora.r = 8',
        r"ppo\.start: ppo goes on with the adapter of sft, .*r=8.*, sft\.settings\.lora .*r=16",
    ),
    (f'{START}ppo.preset = "huge"', "ppo: unknown PPO preset 'huge'"),
    (f"{START}ppo.settings.mini_batch = 0", "ppo: mini_batch = 0: must be greater than 0"),
    (f'{START}ppo.settings.name = "x"', "ppo: no PPO setting is called name"),
    (f'{START}ppo.settings.kl_estimator = "k4"', r"ppo: kl_estimator='k4': choose from k1, k2"),
    (f'{START}ppo.settings.advantages = "reloo"', "ppo: advantages='reloo': choose from gae, rloo"),
    (f"{START}ppo.score = {{ clip = nan }}", r"ppo\.score\.clip = nan: must be a finite number"),
    (
        f"{START}ppo.score = {{ count_exakt = 1.0 }}",
        r"ppo\.score: unknown scorer 'count_exakt'.*reward_model.*Did you mean 'count_exact'",
    ),
    ("title = ", "not TOML"),
]


@pytest.mark.parametrize(("text", "message"), MISTAKES)
def test_mistakes_are_named_with_their_file(tmp_path, text, message):
    path = tmp_path / "own.toml"
    path.write_text(text)
    with pytest.raises(UsageError, match=message) as error:
        read_recipe(path)
    assert str(error.value).startswith(f"{path}: ") and "\n" not in str(error.value)


BREVITY = "def brevity(image, question, answer, truth):\n    return -len(answer.split())\n"


def test_own_rewards_are_beside_the_recipe_or_where_one_stands(tmp_path, monkeypatch):
    there, here = tmp_path / "recipes", tmp_path / "here"
    for folder in (there, here):
        folder.mkdir()
        (folder / "my_rewards.py").write_text(BREVITY)
    path = there / "own.toml"
    score = '{ "my_rewards.py:brevity" = 0.5, heuristic = 1.0 }'
    path.write_text(f'{START}rank.scorer = "my_rewards.py:brevity"\nppo.score = {score}')
    monkeypatch.chdir(here)
    recipe = read_recipe(path)
    assert recipe.rank.scorer == f"{there / 'my_rewards.py'}:brevity"
    assert recipe.ppo.score == {f"{there / 'my_rewards.py'}:brevity": 0.5, "heuristic": 1.0}
    changed = read_recipe(path, changes=[("ppo.score", {"my_rewards.py:brevity": 2.0})])
    assert changed.ppo.score == {f"{here / 'my_rewards.py'}:brevity": 2.0}
    assert changed.rank.scorer == recipe.rank.scorer
    # found out before anything runs
    (there / "my_rewards.py").write_text("def brevity(answer):\n    return 0\n")
    with pytest.raises(UsageError, match=r"own.toml: .*my_rewards.py: brevity must take \(image"):
        read_recipe(path)


@pytest.fixture(scope="module")
def chain(tmp_path_factory):
    """SFT on true answers, and after it DPO, online DPO and PPO, which begin with its adapter."""
    folder = tmp_path_factory.mktemp("chain")
    settings = {
        "data.limit": 8,
        "sft.preset": "tiny",
        "sft.answers": "reference",
        "sft.settings": {"steps": 8, "batch_size": 4, "learning_rate": 2e-3},
        "dpo.preset": "tiny",
        "dpo.preflight": False,
        "dpo.settings": {"steps": 2, "batch_size": 4, "sft_weight": 0.0},
        "online.preset": "tiny",
        "online.rounds": 2,
        "online.settings": {"steps": 2, "batch_size": 4, "sft_weight": 0.0},
        "ppo.preset": "tiny-rloo",
        "ppo.settings": {"iterations": 1, "prompts_per_iteration": 4, "mini_batch": 4},
    }
    text = START.replace('"data"', '"data", "sft", "dpo", "online", "ppo", "evaluate"')
    path = folder / "chain.toml"
    path.write_text(f'{text}dpo.start = "sft"\nonline.start = "sft"\nppo.start = "sft"\n')
    run = RecipeRun(read_recipe(path, changes=[*settings.items()]), folder / "run")
    run_stages(run)
    return run


@heavy
def test_dpo_and_ppo_begin_with_what_sft_has_made_and_are_measured_against_it(chain):
    adapters = {}
    for stage in POLICY_STAGES:
        adapters[stage] = load_file(chain.folder / stage / "adapter_model.safetensors")
        assert read_json(chain.folder / stage / "about.json").get("start", "base") == (
            "base" if stage == "sft" else "sft"
        )
    sizes = {name: float(weight.norm()) for name, weight in adapters["sft"].items()}
    for stage in ("dpo", "online", "ppo"):
        # the same weights, a little further on: nothing was merged, and no base was left behind
        assert adapters[stage].keys() == adapters["sft"].keys()
        moved = 0.0
        for name, weight in adapters["sft"].items():
            step = float((adapters[stage][name] - weight).norm())
            assert step < 0.5 * sizes[name], (stage, name)
            moved += step
        assert moved > 0, stage
    # policy = reference = SFT's policy: a margin of 0, and no distance of the first samples
    for stage in ("dpo", "online"):
        first, *_ = read_json(chain.folder / stage / "log.json")
        assert first["loss"] == pytest.approx(math.log(2), abs=1e-5), stage
    assert abs(chain.figures["ppo_kl_first"]["value"]) < 1e-3


@heavy
def test_every_policy_is_compared_with_the_base_and_with_sft(chain):
    figures = chain.figures
    for policy in POLICY_STAGES:
        assert figures[f"{policy}_exact"]["n"] == 8 and figures[f"{policy}_mcnemar_p"]["value"] >= 0
        assert f"{policy}_pair_accuracy" in figures
    assert figures.keys() >= {
        "dpo_vs_sft_p",
        "online_vs_sft_p",
        "ppo_vs_sft_p",
        "sft_answers",
        "sft_loss_last_10",
    }
    assert "sft_vs_sft_p" not in figures and figures["sft_answers"]["value"] == 8


@heavy
def test_sft_learns_from_a_share_of_the_answers(chain):
    # beside the other run, so that the paths of the images stay right
    folder = chain.folder.parent / "half"
    shutil.copytree(chain.folder / "data", folder / "data")
    sft = chain.recipe.sft.model_copy(update={"share": 0.5})
    run = RecipeRun(chain.recipe.model_copy(update={"sft": sft}), folder)
    run_stages(run, ["sft"])
    # 8 questions in all, as above
    assert run.figures["sft_answers"]["value"] == 4


@heavy
@pytest.mark.parametrize(("stage", "setting"), [("sft", "steps"), ("ppo", "iterations")])
def test_a_run_of_other_settings_is_refused_or_set_aside(chain, stage, setting):
    folder = chain.folder.parent / f"other-{stage}"
    shutil.copytree(chain.folder, folder)
    part = getattr(chain.recipe, stage)
    other = part.model_copy(update={"settings": {**part.settings, setting: 2}})
    recipe = chain.recipe.model_copy(update={stage: other})
    with pytest.raises(UsageError, match=f"of a run with other {setting}"):
        run_stages(RecipeRun(recipe, folder), [stage])
    run_stages(RecipeRun(recipe, folder, replace_other=True), [stage])
    aside = folder / f"{stage}.old-1" / "adapter_model.safetensors"
    assert aside.read_bytes() != (folder / stage / aside.name).read_bytes()


@heavy
def test_a_start_that_was_not_trained_is_named(chain, tmp_path):
    run = RecipeRun(chain.recipe, tmp_path)
    shutil.copytree(chain.folder / "data", tmp_path / "data")
    with pytest.raises(UsageError, match=r"sft: holds no adapter\. Run the stage sft first"):
        run_stages(run, ["dpo"])


@heavy
def test_own_questions_are_ranked_by_an_own_reward(tmp_path):
    """Free questions about two images, in two turns; a reward that looks at both."""
    source = "def widths(image, question, answer, truth):\n"
    source += "    assert len(image) == 2 and len(question.turns) == 3\n    return len(answer)\n"
    (tmp_path / "my_rewards.py").write_text(source)
    text = START.replace('"data"', '"rank"') + 'rank.scorer = "my_rewards.py:widths"\n'
    (tmp_path / "own.toml").write_text(text)
    images = [str(path) for path in sorted((TRAFFIC / "valid" / "images").glob("*.png"))[:2]]
    turns = ["What is in the image?", "Red.", "What is in the image?"]
    prompt = []
    for turn, role in zip(turns, ("user", "assistant", "user"), strict=True):
        prompt.append({"role": role, "content": turn})
    row = {"images": images, "prompt": prompt, "chosen": "A bus.", "rejected": "A car."}
    records = [PreferenceRecord.model_validate(row)]
    run = RecipeRun(read_recipe(tmp_path / "own.toml"), tmp_path / "run")
    for split in SPLITS:
        write_records(run.folder / "data" / f"{split}.jsonl", records)
    about = {"data": "own", "title": "own", "model": "tiny", "kind": "none"}
    write_json(run.folder / "data" / "about.json", about)
    run_stages(run)
    (ranked,) = run.pairs("train")
    assert ranked.prompt == records[0].prompt and ranked.images == images
    scores = [answer.score for answer in ranked.answers]
    assert scores == [len(answer.text) for answer in ranked.answers]
    assert ranked.answers[ranked.ranking[0][0]].score == max(scores)


def test_unknown_recipes_and_stages_are_named(tmp_path, capsys):
    assert cli.main(["train", "--config", "count"]) == 1
    assert "no recipe 'count': choose counting, instructions" in capsys.readouterr().err
    assert (
        cli.main(["train", "--config", "counting", "--stage", "rank", "--out", str(tmp_path)]) == 1
    )
    assert (
        "the recipe has no stage rank: it has data, sft, dpo, ppo, evaluate"
        in capsys.readouterr().err
    )


@pytest.mark.heavy(reason="samples answers of the embedded model")
def test_a_stage_that_asks_goes_on_where_it_was_cut_off(tmp_path, monkeypatch):
    """Ctrl-C in the middle of `rank`: what was answered is read, and the result is the same."""
    recipe = read_recipe(
        find_recipe("counting"),
        laptop=True,
        # a stage that reads held-out pairs, too, is to come
        changes=[("stages", ["data", "rank", "dpo"]), ("data.limit", LIMIT), ("rank.answers", 2)],
    )
    asked_for = ["data", "rank"]
    whole = RecipeRun(recipe, tmp_path / "whole")
    run_stages(whole, asked_for)
    ask, numbers = generation._decode, []

    def counted(model, processor, prompts, *how):
        if len(numbers) == stop_at:
            raise KeyboardInterrupt
        numbers.append(len(prompts))
        return ask(model, processor, prompts, *how)

    monkeypatch.setattr(generation, "_decode", counted)
    cut = RecipeRun(recipe, tmp_path / "cut")
    stop_at = 2
    with pytest.raises(KeyboardInterrupt):
        run_stages(cut, asked_for)
    stop_at = -1
    run_stages(RecipeRun(recipe, tmp_path / "cut"), ["rank"])
    # three splits, both answers to all questions of one at once, each asked once in all
    assert numbers == [LIMIT] * 3
    for split in SPLITS:
        name = f"data/{split}-ranked.jsonl"
        found = (tmp_path / "cut" / name).read_text(encoding="utf-8")
        assert found == (tmp_path / "whole" / name).read_text(encoding="utf-8").replace(
            "/whole/", "/cut/"
        )


# --- what was left in a folder ---


@pytest.mark.heavy(reason="a chain of stages")
def test_what_another_recipe_has_left_decides_nothing(chain, tmp_path):
    """Ranked answers that this recipe does not make, and adapters of a recipe that is not this."""
    folder = tmp_path / "run"
    shutil.copytree(chain.folder, folder)
    run = RecipeRun(chain.recipe, folder)
    own = run.pairs("train")
    write_records(run.ranked_path("train"), own[:1])
    assert run.pairs("train") == own
    about = read_json(folder / "sft" / "about.json")
    write_json(folder / "sft" / "about.json", about | {"recipe": "Another"})
    with pytest.raises(UsageError, match=r"sft: was made by the recipe 'Another', not by"):
        run_stages(run, ["evaluate"])
    with pytest.raises(UsageError, match=r"sft: was made by the recipe 'Another', not by"):
        run_stages(run, ["dpo"])


def test_answers_that_were_ranked_of_other_data_are_not_taken(tmp_path):
    changes = [("stages", ["data", "rank", "dpo"]), ("data.limit", 4)]
    recipe = read_recipe(find_recipe("counting"), laptop=True, changes=changes)
    run = RecipeRun(recipe, tmp_path)
    run_stages(run, ["data"])
    records = run.records("train")
    with pytest.raises(UsageError, match=r"train-ranked\.jsonl: does not exist.*stage rank first"):
        run.pairs("train")
    write_records(run.ranked_path("train"), records[:2])
    write_json(tmp_path / "data" / "ranked.json", {"train": run.data_hash("train")})
    assert len(run.pairs("train")) == 2
    write_records(run.prepared().path("train"), records[:3])
    with pytest.raises(UsageError, match=r"ranked of other data than there is now"):
        run.pairs("train")
