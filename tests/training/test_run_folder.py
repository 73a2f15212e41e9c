"""What is in the folder of a run, before it and after it."""

import dataclasses
import json

import pytest
from shipped import TRAFFIC

from helpers import models
from helpers.config import PPO_PRESETS, LoraSettings, dpo_preset
from helpers.data.counting import is_exact
from helpers.data.preferences import read_records
from helpers.data.tasks import tasks_of
from helpers.files import UsageError
from helpers.models.policies import find_policies
from helpers.rewards.scoring import count_graded
from helpers.training.run_folder import ppo_trainer, save_answers, save_policy

VALID = TRAFFIC / "preferences_valid.jsonl"


@pytest.fixture
def policy():
    return models.add_adapter(models.load_model("tiny")[0], LoraSettings())


def test_a_saved_policy_says_how_it_was_made(policy, tmp_path):
    settings, folder = dpo_preset("tiny"), tmp_path / "dpo" / "seed-3"
    made = {"base": "tiny", "seed": 3}
    assert save_policy(policy, folder, settings, made, [{"loss": 0.7}]) == folder
    about = json.loads((folder / "about.json").read_text())
    assert about["base"] == "tiny" and about["settings"]["steps"] == settings.steps
    assert about["settings"]["lora"]["r"] == settings.lora.r
    assert json.loads((folder / "log.json").read_text()) == [{"loss": 0.7}]
    (found,) = find_policies("tiny", tmp_path)
    assert found.name == "dpo/seed-3" and found.seed == 3


def test_a_log_whose_gradients_overflowed_is_written(policy, tmp_path):
    """As in the first steps in fp16; JSON has no word for inf and NaN."""
    rows = [{"loss": 0.7, "grad_norm": float("inf")}, {"loss": float("nan"), "grad_norm": 1.0}]
    save_policy(policy, tmp_path, dpo_preset("tiny"), {"base": "tiny"}, rows)
    found = json.loads((tmp_path / "log.json").read_text(), parse_constant=pytest.fail)
    assert found == [{"loss": 0.7, "grad_norm": None}, {"loss": None, "grad_norm": 1.0}]


def test_without_a_log_there_is_no_file_of_it(policy, tmp_path):
    save_policy(policy, tmp_path, PPO_PRESETS["tiny"], {"base": "tiny", "reward": "count_exact"})
    assert not (tmp_path / "log.json").exists()
    assert json.loads((tmp_path / "about.json").read_text())["reward"] == "count_exact"


def test_answers_are_kept_with_the_file_of_their_questions(tiny, tmp_path):
    records = read_records(VALID)[:6]
    share = save_answers(*tiny, records, tmp_path)
    kept = json.loads((tmp_path / "validation_answers.json").read_text())
    assert kept["records"] == str(VALID)
    assert kept["answers"] == models.answer_records(*tiny, records)
    right = [is_exact(text, r.truth) for text, r in zip(kept["answers"], records, strict=True)]
    assert share.value == sum(right) / 6 and share.n == 6


@pytest.mark.heavy(reason="trains for two seconds")
def test_a_run_of_ppo_writes_its_logs_and_is_not_done_twice(tmp_path):
    processor = models.load_processor("tiny")
    tasks = tasks_of(read_records(TRAFFIC / "preferences_train.jsonl")[:4])
    settings = dataclasses.replace(
        PPO_PRESETS["tiny"], iterations=1, prompts_per_iteration=2, group_size=2, mini_batch=2,
        epochs=1, max_new_tokens=4, critic_adapter=False, checkpoint_every=1,
    )  # fmt: skip

    def run(**options):
        seen = []
        model = models.load_model("tiny")[0]
        options |= {"watch": [seen.append]}
        trainer = ppo_trainer(model, processor, tasks, count_graded, settings, tmp_path, **options)
        trainer.train()
        return trainer, seen

    trainer, seen = run()
    assert seen == [trainer] and len(trainer.log) == 1
    rows = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    samples = (tmp_path / "samples.jsonl").read_text().splitlines()
    assert [row["iteration"] for row in rows] == [1] and len(samples) == 2  # one a question
    assert (tmp_path / "checkpoint-1").is_dir()
    assert run()[1] == []  # it was finished
    with pytest.raises(UsageError, match="other seed"):
        run(seed=1)
    assert len(run(seed=1, replace_other=True)[1]) == 1
    assert (tmp_path.with_name(f"{tmp_path.name}.old-1") / "log.jsonl").is_file()
