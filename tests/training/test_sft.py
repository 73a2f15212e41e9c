"""SFT against arithmetic, TRL's own layout, and the SFT term of DPO; rows, resume and errors."""

import dataclasses

import pytest
import torch
from datasets import Dataset
from pictures import colour_noise
from shipped import TRAFFIC
from torch.testing import assert_close
from trl.trainer.sft_trainer import DataCollatorForVisionLanguageModeling

from helpers import models
from helpers.config import SFT_PRESETS, LoraSettings, dpo_preset
from helpers.data import Message, PreferenceRecord, Task, read_records, tasks_of
from helpers.files import UsageError
from helpers.training import HeldOutAnswers, dpo, sft

heavy = pytest.mark.heavy(reason="trains the tiny model")

SETTINGS = dataclasses.replace(SFT_PRESETS["tiny"], steps=2, batch_size=4)
TRAIN = TRAFFIC / "preferences_train.jsonl"


def photo(path, seed=0):
    colour_noise(seed).save(path)
    return path


@pytest.fixture(scope="module")
def answers():
    return sft.chosen_answers(read_records(TRAIN)[:12])


@pytest.fixture
def make(answers):
    """Trainer of a fresh adapter (or of `model`), with changed settings."""

    def build(model=None, dataset=None, **changes):
        names = ("packs", "cache", "folder", "replace_other", "seed", "callbacks")
        options = {name: changes.pop(name) for name in names if name in changes}
        base, processor = models.load_model("tiny")
        settings = dataclasses.replace(SETTINGS, **changes)
        data = answers if dataset is None else dataset
        return sft.sft_trainer(model or base, processor, data, settings, **options)

    return build


def batch_of(trainer, rows):
    examples = [trainer.train_dataset[i] for i in rows]
    return trainer._prepare_inputs(trainer.data_collator(examples))


@torch.no_grad()
def loss_of(trainer, batch):
    trainer.model.eval()
    return trainer.compute_loss(trainer.model, dict(batch))


def weights(model):
    return {name: parameter.detach().clone() for name, parameter in model.named_parameters()}


# --- what is learnt ---


def record(**fields):
    return PreferenceRecord.model_validate({"images": ["a.png"], "prompt": "Which?", **fields})


def test_the_answers_that_nothing_is_better_than_are_learnt(tmp_path, capsys):
    image = photo(tmp_path / "a.png")
    texts = [{"text": text} for text in ("best", "worst", "best, too", "middle")]
    records = [
        record(images=[str(image)], answers=texts, ranking=[[0, 2], [3], [1]]),
        record(images=[str(image)], answers=texts[:2]),  # nobody has judged
        record(images=[str(image)], answers=texts[:2], ranking=[[0, 1]]),  # tied
    ]
    rows = sft.chosen_answers(records)
    assert [row["completion"][0] for row in rows.remove_columns("images")] == [
        {"role": "assistant", "content": "best"},
        {"role": "assistant", "content": "best, too"},
    ]
    assert rows[0]["prompt"] == [{"role": "user", "content": "Which?"}]
    assert rows[0]["images"][0].mode == "RGB"
    assert "leaves out 2 of 3 records, in which no answer is better" in capsys.readouterr().out
    with pytest.raises(UsageError, match=r"of 2 records.*none is left. Rank their answers"):
        sft.chosen_answers(records[1:])


def test_right_answers_are_said_in_words_and_questions_without_a_truth_are_counted(
    tmp_path, capsys
):
    image, turns = (photo(tmp_path / "a.png"),), (Message(role="user", content="How many?"),)
    tasks = [
        Task(image, turns, {"cars": 2}, "counts"),
        Task(image, turns, ["red", "blue", "red"], "vqa_accuracy"),
        Task(image, turns),
    ]
    rows = sft.reference_answers(tasks)
    said = [row["completion"][0]["content"] for row in rows.remove_columns("images")]
    assert said == ["There are 2 cars in the image.", "red"]
    assert "leaves out 1 of 3 questions, of which no truth is known" in capsys.readouterr().out
    with pytest.raises(UsageError, match="of 1 questions, of which no truth is known, none"):
        sft.reference_answers(tasks[2:])


def test_an_image_that_cannot_be_read_is_named_before_anything_is_trained(tmp_path):
    broken = tmp_path / "b.png"
    broken.write_text("no image")
    turns = (Message(role="user", content="How many?"),)
    with pytest.raises(UsageError, match=r"b\.png"):
        sft.reference_answers([Task((broken,), turns, "2", "exact_match")])


def test_the_right_answers_of_the_shipped_records_are_their_chosen_ones():
    """Of counts the truth in words is the chosen answer, so that both ways teach the same."""
    records = [one for one in read_records(TRAIN)[:40] if one.pairs()]
    chosen = sft.chosen_answers(records).remove_columns("images")
    right = sft.reference_answers(tasks_of(records)).remove_columns("images")
    assert chosen["completion"] == right["completion"]


# --- the loss ---


def test_the_loss_is_the_mean_of_minus_log_p_over_the_answers_tokens():
    """Two answers of 2 tokens and of 1, all logits equal but for one."""
    logits = torch.zeros(2, 3, 4)
    logits[0, 0, 1] = torch.log(torch.tensor(3.0))  # 3 of 3 + 1 + 1 + 1: p = 1/2
    labels = torch.tensor([[-100, 1, 2], [-100, 3, -100]])
    output = sft.CausalLMOutput(logits=logits)
    # −log ½ − log ¼ − log ¼ = 0.6931 + 1.3863 + 1.3863, over 3 tokens
    assert_close(sft.answer_loss(output, labels), torch.tensor(3.4657 / 3), atol=1e-4, rtol=0)
    # a step of 6 tokens, of which this batch has 3
    assert_close(sft.answer_loss(output, labels, 6), torch.tensor(3.4657 / 6), atol=1e-4, rtol=0)


@heavy
def test_it_is_what_stock_trl_computes_in_its_own_layout(make):
    """TRL's collator and the model's own loss, from a row to a number, without a line of ours."""
    trainer = make()
    rows = range(5)
    stock = DataCollatorForVisionLanguageModeling(
        trainer.processing_class, completion_only_loss=True
    )
    theirs = stock([trainer.train_dataset[i] for i in rows]).to(trainer.model.device)
    ours = batch_of(trainer, rows)
    assert (theirs["labels"] != -100).sum() == (ours["labels"] != -100).sum()
    trainer.model.eval()
    with torch.no_grad():
        expected = trainer.model(**theirs).loss
    assert_close(loss_of(trainer, ours), expected, atol=1e-5, rtol=1e-5)
    assert_close(loss_of(make(packs=False), ours), expected, atol=1e-5, rtol=1e-5)


@heavy
def test_it_is_the_sft_term_of_dpo_on_the_same_batch(make, pairs_dataset):
    base, processor = models.load_model("tiny")
    settings = dataclasses.replace(dpo_preset("tiny"), losses=("sft",), sft_weight=0.0)
    pairs = dpo.dpo_trainer(base, processor, pairs_dataset, settings)
    examples = [pairs_dataset[i] for i in range(6)]
    dpo_batch = pairs._prepare_inputs(pairs.data_collator(examples))
    pairs.model.eval()
    with torch.no_grad():
        term = pairs.compute_loss(pairs.model, dpo_batch)
    chosen = pairs_dataset.rename_column("chosen", "completion").select(range(6))
    trainer = make(dataset=chosen)
    assert_close(loss_of(trainer, batch_of(trainer, range(6))), term, atol=1e-5, rtol=1e-5)


@heavy
def test_the_image_is_read(make, answers):
    trainer = make()
    batch = [answers[i] for i in range(4)]
    others = [row | {"images": answers[i + 4]["images"]} for i, row in enumerate(batch)]
    found = []
    for rows in (batch, others):
        inputs = trainer._prepare_inputs(trainer.data_collator(rows))
        found.append(float(loss_of(trainer, inputs)))
    own, other = found
    assert other > own + 0.05


@heavy
def test_several_images_and_turns_are_in_the_prompt(make, tmp_path):
    paths = [str(photo(tmp_path / f"{n}.png", seed=n)) for n in range(2)]
    turns = ["What is in the image?", "A car.", "And in the other?"]
    prompt = []
    for turn, role in zip(turns, ("user", "assistant", "user"), strict=True):
        prompt.append({"role": role, "content": turn})
    rows = []
    for images, shown in ((paths, prompt), (paths[::-1], prompt), (paths, prompt[-1:])):
        answers = [{"text": "There are 2 cars."}, {"text": "No."}]
        rows.append(record(images=images, prompt=shown, answers=answers, ranking=[[0], [1]]))
    trainer = make(dataset=sft.chosen_answers(rows))
    alone = make(dataset=trainer.train_dataset, packs=False)
    found = [float(loss_of(trainer, batch_of(trainer, [i]))) for i in range(3)]
    # the order of the images and the turns before count
    assert abs(found[0] - found[1]) > 1e-4 and abs(found[0] - found[2]) > 1e-4
    for i, loss in enumerate(found):
        assert float(loss_of(alone, batch_of(alone, [i]))) == pytest.approx(loss, abs=1e-4)
    assert len(sft.train_sft(trainer).log) == 2


# --- a run ---


@heavy
def test_training_moves_the_adapter_alone_and_learns_answers_by_heart(make, answers):
    held_out = HeldOutAnswers(models.load_processor("tiny"), read_records(TRAIN)[12:14], every=10)
    trainer = make(
        dataset=answers.select(range(4)), steps=10, batch_size=4, learning_rate=4e-3,
        callbacks=[held_out],
    )  # fmt: skip
    before = weights(trainer.model)
    run = sft.train_sft(trainer)
    for name, parameter in trainer.model.named_parameters():
        assert torch.equal(parameter, before[name]) == ("lora_" not in name), name
        assert not parameter.requires_grad or parameter.dtype == torch.float32
    assert run.log[-1]["loss"] < 0.2 * run.log[0]["loss"]
    assert [step for step, _ in held_out.shares] == [0, 10] and held_out.watching > 0
    assert run.trained_answers == 40 and run.seconds > 0 and not trainer.model.training


@heavy
def test_accumulated_batches_are_one_step_over_all_their_tokens(make):
    """Answers of different lengths: a mean of means would weigh their tokens differently."""
    whole, parts = make(), make(batch_size=1, accumulation=4)
    logs = [sft.train_sft(trainer).log for trainer in (whole, parts)]
    for step, (own, other) in enumerate(zip(*logs, strict=True)):
        assert other["loss"] == pytest.approx(own["loss"], abs=1e-5), step
    assert_close(weights(parts.model), weights(whole.model), atol=1e-4, rtol=0)


class KillAt(sft.TrainerCallback):
    """Ends the run in the middle of training, after a step."""

    def __init__(self, step):
        self.step = step

    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step == self.step:
            raise KeyboardInterrupt


@heavy
def test_a_killed_run_goes_on_as_if_nothing_had_happened(make, tmp_path, capsys):
    # 12 answers: an epoch has three steps, and step 2 is in the middle of it
    changes = {"steps": 4, "checkpoint_steps": 2, "lora": LoraSettings(dropout=0.2)}
    whole = make(**changes)
    log = sft.train_sft(whole).log
    with pytest.raises(KeyboardInterrupt):
        sft.train_sft(make(folder=tmp_path, callbacks=[KillAt(3)], **changes))
    resumed = make(folder=tmp_path, **changes)
    assert sft.train_sft(resumed).log == log
    assert f"Going on after step 2 of 4 ({tmp_path / 'checkpoint-2'})." in capsys.readouterr().out
    assert_close(weights(resumed.model), weights(whole.model), atol=0, rtol=0)
    # what is finished is loaded
    again = make(folder=tmp_path, **changes)
    assert sft.train_sft(again).log == log
    assert_close(weights(again.model), weights(whole.model), atol=0, rtol=0)
    assert "Finished after step 4" in capsys.readouterr().out


@heavy
def test_other_answers_or_settings_are_another_run(make, answers, tmp_path):
    folder = tmp_path / "run"
    sft.train_sft(make(folder=folder, steps=1))
    with pytest.raises(UsageError, match="of a run with other learning_rate"):
        make(folder=folder, steps=1, learning_rate=1e-5)
    rows = [dict(row) for row in answers.remove_columns("images")]
    rows[0]["completion"] = [{"role": "assistant", "content": "No."}]
    changed = Dataset.from_list(rows).add_column("images", [[str(TRAIN)]] * len(rows))
    with pytest.raises(UsageError, match="of a run with other data"):
        make(
            folder=folder,
            steps=1,
            dataset=changed.cast_column("images", answers.features["images"]),
        )
    make(folder=folder, steps=1, learning_rate=1e-5, replace_other=True)
    assert (tmp_path / "run.old-1" / "checkpoint-1").exists()


@heavy
def test_a_run_whose_loss_is_no_number_stops_and_says_what_to_do(make):
    trainer = make(steps=6)
    with torch.no_grad():
        weight = next(p for p in trainer.model.parameters() if p.requires_grad)
        weight[0, 0] = torch.nan
    with pytest.raises(UsageError, match=r"the loss of step 1 is nan.*Lower learning_rate"):
        sft.train_sft(trainer)
