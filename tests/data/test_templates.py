"""Marks of chat templates: those of the model at hand are refused, all of them can be taken off."""

import dataclasses

import pytest
from PIL import Image
from transformers import AutoProcessor

from helpers import cli, models
from helpers.config import SFT_PRESETS, dpo_preset, ppo_preset, reward_preset
from helpers.data import PreferenceRecord, find_special_mark, strip_record, to_trl
from helpers.data.data_doctor import check_file
from helpers.data.preferences import read_records, write_records
from helpers.data.tasks import tasks_of
from helpers.doctor import RecordLengths
from helpers.files import UsageError
from helpers.models import Packer
from helpers.models.prompts import answer_ids, render, user_message
from helpers.rewards import make_scorer, reward_model
from helpers.training import PPOTrainer, RewardTrainer, chosen_answers, dpo
from helpers.training.sft import sft_trainer

# Of a Qwen2-VL, at whatever place in a text
MARKS = ["<|im_end|>", "<|image_pad|>", "<|video_pad|>", "<|vision_start|>", "<|endoftext|>"]
RENDERED = "<|im_start|>user\nHow many?<|im_end|>\n<|im_start|>assistant\nTwo.<|im_end|>"


def record(prompt="How many?", *answers, **fields):
    texts = [{"text": text} for text in answers or ("1", "2")]
    return PreferenceRecord(
        image="a.png", prompt=prompt, answers=texts, ranking=[[0], [1]], **fields
    )


def written(folder, *records):
    Image.effect_noise((56, 56), 90).convert("RGB").save(folder / "a.png")
    write_records(folder / "records.jsonl", records)
    return folder / "records.jsonl"


@pytest.mark.parametrize("mark", MARKS)
def test_a_mark_of_the_model_is_refused_where_text_becomes_tokens(tiny, mark):
    _, processor = tiny
    assert find_special_mark(processor, f"one {mark} two") == mark
    with pytest.raises(UsageError, match="is no text to this model"):
        render(processor, f"How many {mark}?")
    with pytest.raises(UsageError, match="the answer holds"):
        answer_ids(processor, f"Two.{mark}\n<|im_start|>user\nAnd now?")


@pytest.mark.parametrize("text", ["a <b> c", "<image>", "</s>", "USER: hello", "[INST]", "| x |"])
def test_what_is_a_mark_elsewhere_is_text_here(tiny, text):
    _, processor = tiny
    assert find_special_mark(processor, text) is None
    assert text in render(processor, text)


def test_another_model_has_other_marks():
    class Tokenizer:
        def __init__(self, **added):
            kind = dataclasses.make_dataclass("Token", ["content", "special"])
            self.added_tokens_decoder = {
                number: kind(content, special)
                for number, (content, special) in enumerate(added.values())
            }

    class LLaVA:
        tokenizer = Tokenizer(a=("</s>", True), b=("<tool_call>", False), c=("the", True))
        image_token = "<image>"

    llava = LLaVA()
    assert find_special_mark(llava, "What is this? <image>") == "<image>"
    assert find_special_mark(llava, "A boat.</s>") == "</s>"
    # an added token that is no special one is read as text, and a word is a word
    assert find_special_mark(llava, "<tool_call> the <|im_end|>") is None


START = {
    "reward model": lambda model, processor, records, folder: RewardTrainer(
        reward_model.new_reward_model(model, processor, reward_preset("tiny"), 0),
        records,
        records,
        reward_preset("tiny"),
        0,
    ),
    "DPO": lambda model, processor, records, folder: dpo.dpo_trainer(
        model, processor, to_trl(records), dpo_preset("tiny")
    ),
    "DPO as TRL has it": lambda model, processor, records, folder: dpo.dpo_trainer(
        model, processor, to_trl(records), dpo_preset("tiny"), packs=False
    ),
    "SFT": lambda model, processor, records, folder: sft_trainer(
        model, processor, chosen_answers(records), SFT_PRESETS["tiny"]
    ),
    "PPO": lambda model, processor, records, folder: PPOTrainer(
        model,
        processor,
        tasks_of(records) * 16,
        make_scorer("zero", lambda *given: {"zero": 0.0}),
        ppo_preset("tiny-rloo"),
    ),
}


@pytest.mark.parametrize("stage", START)
def test_no_training_begins_with_such_a_text(tmp_path, stage):
    """It ended after a few steps, with all checks passed."""
    where = {
        "reward model": r"records\.jsonl:2 \(record r7\): answer 0",
        "PPO": r"question 2 \(r7\)",
        "SFT": "row 2 of the data, completion",
    }.get(stage, "row 2 of the data, chosen")
    bad = record("How many?", "1 <|image_pad|>", "2", id="r7")
    if stage == "PPO":
        bad = record("How many <|image_pad|>?", id="r7")
    path = written(tmp_path, record(), bad)
    with pytest.raises(UsageError, match=where + r" holds '<\|image_pad\|>'"):
        START[stage](*models.load_model("tiny"), read_records(path), tmp_path)


def test_check_names_the_record_for_the_marks_of_the_model(tmp_path, tiny):
    path = written(tmp_path, record(), record("How many?", "1 <|object_ref_end|>", "2"))
    found = check_file(path, lengths=RecordLengths(tiny[1])).errors
    assert [(each.kind, each.line) for each in found] == [("unfit for the model", 2)]
    assert "<|object_ref_end|>" in found[0].message


@pytest.mark.parametrize(
    ("prompt", "answer", "turns", "text"),
    [
        ("How many?", RENDERED, ["How many?"], "Two."),
        ("<image>\nHow many?", "Two.</s>", ["How many?"], "Two."),
        ("USER: <image>\nHow many? ASSISTANT:", "Two.", ["How many?"], "Two."),
        ("<|vision_start|><|image_pad|><|vision_end|>How many?", "Two.", ["How many?"], "Two."),
        ("[INST] How many? [/INST]", "[INST] How many? [/INST] Two. </s>", ["How many?"], "Two."),
        ("<s>How many?", "<start_of_turn>model\nTwo.<end_of_turn>\n", ["How many?"], "Two."),
        (
            "How many?",
            "<|start_header_id|>assistant<|end_header_id|>\n\nTwo.<|eot_id|>",
            ["How many?"],
            "Two.",
        ),
        (RENDERED, "Two.", ["How many?", "Two."], "Two."),
        # nothing to take off
        (
            "Is a < b | c > d?",
            "  a<b, as <b>bold</b>",
            ["Is a < b | c > d?"],
            "a<b, as <b>bold</b>",
        ),
    ],
)
def test_templates_are_taken_off(prompt, answer, turns, text):
    bare = strip_record(record(prompt, answer, "no"))
    assert [message.content for message in bare.prompt] == turns
    assert bare.answers[0].text == text


def test_an_answer_of_marks_alone_stays():
    assert strip_record(record("How many?", "<|im_end|>", "2")).answers[0].text == "<|im_end|>"


def test_convert_takes_them_off_and_counts_them(tmp_path, capsys, tiny):
    path = written(tmp_path, record(), record("<|image_pad|>How many?", RENDERED, "2"))
    out = tmp_path / "bare.jsonl"
    assert cli.main(["convert", str(path), str(out), "--strip"]) == 0
    assert "marks of templates taken off: 1 records" in capsys.readouterr().out
    assert [each.answers[0].text for each in read_records(out)] == ["1", "Two."]
    assert not check_file(out, lengths=RecordLengths(tiny[1])).errors


def test_a_typed_question_with_a_mark_is_a_message(tiny):
    model, processor = tiny
    packer = Packer(model, processor)
    with pytest.raises(UsageError, match="the text holds"):
        packer.encode([[user_message("How many <|im_end|>?")]], [[]])


def test_the_marks_of_a_processor_that_was_saved_are_the_same(tiny, tmp_path):
    tiny[1].save_pretrained(tmp_path)
    again = AutoProcessor.from_pretrained(tmp_path)
    assert all(find_special_mark(again, mark) == mark for mark in MARKS)
