"""The chat formats of the checkpoints on the hub, written out by hand, and what becomes of them as tokens.

They were compared with the chat_template.json, tokenizer_config.json and special_tokens_map.json of the presets' repositories.
"""

import pytest
import torch
from architectures import TEMPLATES, build
from newer_architectures import ENDS, NEWER
from pictures import noise
from shipped import TRAFFIC, pictures_of

from helpers import models
from helpers.data.counting import count_question
from helpers.data.preferences import read_records
from helpers.data.record import Message
from helpers.data.scenes import CLASSES
from helpers.models.caches import ImageFeatures, processor_settings
from helpers.models.encoded_prompts import encode_prompts
from helpers.models.prompts import (
    answer_ids,
    answer_texts,
    bos_text,
    count_image_tokens,
    encode,
    end_of_turn,
    image_token_id,
    render,
    render_conversation,
    tokenize,
    user_message,
)
from helpers.models.shared_prefix import pack, pack_separately

_IMAGE = "<|vision_start|><|image_pad|><|vision_end|>"
_SYSTEM = "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n"
_CHATML = f"<|im_start|>user\n{_IMAGE}Q<|im_end|>\n<|im_start|>assistant\n"
_LLAMA3 = "<|start_header_id|>{}<|end_header_id|>\n\n"
ONE = {
    "qwen2_vl": _SYSTEM + _CHATML,
    "qwen2_5_vl": _SYSTEM + _CHATML,
    "qwen3_vl": _CHATML,
    "llava": "USER: <image>\nQ ASSISTANT:",
    "llava_next": f"{_LLAMA3.format('user')}<image>\nQ<|eot_id|>{_LLAMA3.format('assistant')}",
    "smolvlm": "<|im_start|>User:<image>Q<end_of_utterance>\nAssistant:",
    "idefics3": "<|im_start|>User:<image>Q<end_of_utterance>\nAssistant:",
}
TURNS = [
    Message(role=role, content=text)
    for role, text in (("system", "S"), ("user", "Q"), ("assistant", "A"), ("user", "R"))
]
_CHATML = (
    f"<|im_start|>system\nS<|im_end|>\n<|im_start|>user\n{_IMAGE}Q<|im_end|>\n<|im_start|>assistant\nA<|im_end|>\n"
    "<|im_start|>user\nR<|im_end|>\n<|im_start|>assistant\n"
)
_SMOL = (
    "<|im_start|>System: S<end_of_utterance>\nUser:<image>Q<end_of_utterance>\nAssistant: A<end_of_utterance>\n"
    "User: R<end_of_utterance>\nAssistant:"
)
MANY = {
    "qwen2_vl": _CHATML,
    "qwen2_5_vl": _CHATML,
    "qwen3_vl": _CHATML,
    "llava": "S USER: <image>\nQ ASSISTANT: A USER: R ASSISTANT:",
    "llava_next": (  # this template has a line break before every text
        f"{_LLAMA3.format('system')}\nS<|eot_id|>{_LLAMA3.format('user')}<image>\nQ<|eot_id|>"
        f"{_LLAMA3.format('assistant')}\nA<|eot_id|>{_LLAMA3.format('user')}\nR<|eot_id|>{_LLAMA3.format('assistant')}"
    ),
    "smolvlm": _SMOL,
    "idefics3": _SMOL,
}
#             first token, added by the tokenizer, end of turn
MARKS = {
    "qwen2_vl": (None, "", "<|im_end|>"),
    "qwen2_5_vl": (None, "", "<|im_end|>"),
    "qwen3_vl": (None, "", "<|im_end|>"),
    "llava": ("<s>", "<s>", "</s>"),
    "llava_next": ("<|begin_of_text|>", "<|begin_of_text|>", "<|eot_id|>"),
    "smolvlm": ("<|im_start|>", "", "<end_of_utterance>"),
    "idefics3": ("<|im_start|>", "", "<end_of_utterance>"),
}
IMAGES = [noise(112, 112), noise(84, 140, seed=1)]
QUESTION = count_question(CLASSES)
ANSWERS = ["There are 2 cars.", "No", "2", "", "Two lines.\nAnd a third: ½", "Late\n"]


@pytest.fixture(scope="module", params=TEMPLATES)
def family(request):
    """(name, model, processor)."""
    return request.param, *build(request.param)


def test_a_prompt_as_the_checkpoint_knows_it(family):
    name, _, processor = family
    assert render(processor, "Q") == ONE[name]
    mark = "<image>\n" if name == "llava" else _IMAGE if name.startswith("qwen") else "<image>"
    without = {
        "llava_next": ONE[name].replace("<image>", ""),
        "smolvlm": ONE[name].replace("<image>", " "),
    }
    without["idefics3"] = without["smolvlm"]
    assert render(processor, "Q", images=0) == without.get(name, ONE[name].replace(mark, ""))
    assert render(processor, "Q", images=2) == ONE[name].replace(mark, mark * 2)


def test_a_conversation_as_the_checkpoint_knows_it(family):
    """The image belongs to the first question; a turn of the system takes the place of the default one."""
    name, _, processor = family
    assert render_conversation(processor, TURNS, 1) == MANY[name]
    assert render_conversation(processor, [user_message("Q")], 1) == ONE[name]


def test_the_first_token_is_there_once(family):
    """LLaVA's templates leave "<s>" to the tokenizer, which was told not to add any: the model was asked without."""
    name, model, processor = family
    first, added, _ = MARKS[name]
    tokenizer = processor.tokenizer
    assert tokenizer.bos_token == first and bos_text(processor) == added
    texts = [render(processor, "Q"), render_conversation(processor, TURNS, 1)]
    pictures, answers = [[image] for image in IMAGES], [["No."], ["2", "Yes."]]
    features = ImageFeatures(model, processor)
    every = {
        "left": tokenize(processor, texts, pictures),
        "right": tokenize(processor, texts, pictures, "right"),
        "encode": encode(processor, ["Q", "A longer one?"], IMAGES),
        "no image": tokenize(processor, [render(processor, "Q", images=0)], [[]]),
        "packed": pack(
            model, processor, encode_prompts(processor, texts, pictures), answers
        ).inputs,
        "kept": pack(
            model, processor, encode_prompts(processor, texts, pictures, features), answers
        ).inputs,
        "plain": pack_separately(
            processor, encode_prompts(processor, texts, pictures), answers
        ).inputs,
    }
    for layout, inputs in every.items():
        for row in inputs["input_ids"]:
            tokens = tokenizer.convert_ids_to_tokens(row[row != tokenizer.pad_token_id].tolist())
            assert first is None or (tokens[0] == first and tokens.count(first) == 1), layout


def test_tokens_are_those_that_the_processor_makes_by_itself(family):
    _, _, processor = family
    text = render(processor, "How many cars?")
    alone = processor(text=[text], images=[[IMAGES[0]]], return_tensors="pt")
    ours = tokenize(processor, [text], [[IMAGES[0]]])
    assert torch.equal(ours["input_ids"], alone["input_ids"])
    assert torch.equal(ours["pixel_values"], alone["pixel_values"])


def test_a_first_token_in_the_text_would_not_do_for_llama_2():
    """Its tokenizer puts "▁" before the first word of a text, but not behind a token that is written out."""
    _, processor = build("llava")
    written = processor.tokenizer("<s>" + ONE["llava"], add_special_tokens=False)["input_ids"]
    assert written != processor.tokenizer(ONE["llava"])["input_ids"]


def test_a_template_that_writes_the_first_token_is_left_alone():
    _, processor = build("llava_next")
    processor.chat_template = "{{ bos_token }}" + processor.chat_template
    ids = encode(processor, ["Q"], IMAGES[:1])["input_ids"][0]
    assert (
        ids[0] == processor.tokenizer.bos_token_id
        and (ids == processor.tokenizer.bos_token_id).sum() == 1
    )


def test_a_tokenizer_that_also_ends_texts_does_not_end_prompts():
    _, processor = build("llava")
    processor.tokenizer.add_eos_token = True
    assert processor.tokenizer("Q")["input_ids"][-1] == processor.tokenizer.eos_token_id
    assert bos_text(processor) == ""
    assert processor.tokenizer.eos_token_id not in encode(processor, ["Q"], IMAGES[:1])["input_ids"]


def test_kept_features_know_of_the_first_token():
    """Prompts and reference log-probabilities that were kept without it are not those with it."""
    settings = []
    for begins in (True, False):
        _, processor = build("llava")
        processor.tokenizer.add_bos_token = begins
        settings.append(processor_settings(processor))
    assert settings[0] != settings[1]


def test_padding_on_either_side(family):
    _, _, processor = family
    texts = [render(processor, "Q"), render(processor, "How many cars are in the image?")]
    left, right = (
        tokenize(processor, texts, [[IMAGES[0]]] * 2, side) for side in ("left", "right")
    )
    alone = [tokenize(processor, [text], [[IMAGES[0]]])["input_ids"][0] for text in texts]
    missing = len(alone[1]) - len(alone[0])
    assert missing > 0
    for inputs, mask in (
        (left, [0] * missing + [1] * len(alone[0])),
        (right, [1] * len(alone[0]) + [0] * missing),
    ):
        assert inputs["attention_mask"].tolist() == [mask, [1] * len(alone[1])]
        for row, kept, ids in zip(
            inputs["input_ids"], inputs["attention_mask"].bool(), alone, strict=True
        ):
            assert (
                torch.equal(row[kept], ids)
                and (row[~kept] == processor.tokenizer.pad_token_id).all()
            )


def test_an_answer_ends_in_the_end_of_turn_and_nowhere_else(family):
    name, _, processor = family
    end = MARKS[name][2]
    assert end_of_turn(processor) == end
    for answer in ANSWERS:
        tokens = processor.tokenizer.convert_ids_to_tokens(answer_ids(processor, answer))
        assert tokens[-1] == end and tokens.count(end) == 1


def test_an_answer_has_the_tokens_that_it_has_in_a_conversation(family):
    """SmolVLM's and LLaVA's prompts end in "Assistant:", and a space is before the first word."""
    name, _, processor = family
    turns = [
        user_message("Q"),
        Message(role="assistant", content="There are 2."),
        user_message("R"),
    ]
    whole = processor.tokenizer(render_conversation(processor, turns, 0), add_special_tokens=False)[
        "input_ids"
    ]
    prompt = processor.tokenizer(render(processor, "Q", images=0), add_special_tokens=False)[
        "input_ids"
    ]
    answer = answer_ids(processor, "There are 2.")
    if name == "llava_next":  # but for the line break of its template
        prompt = prompt + processor.tokenizer("\n")["input_ids"][1:]
    if name == "llava":  # whose template ends no turn
        answer = answer[:-1]
    assert whole[: len(prompt) + len(answer)] == prompt + answer


@pytest.mark.parametrize("answer", ANSWERS)
def test_an_answer_is_read_as_it_was_written(family, answer):
    _, _, processor = family
    assert answer_texts(processor, [answer_ids(processor, answer)]) == [answer]


def test_a_space_is_written_once():
    """An answer that was sampled may bring its space along."""
    _, processor = build("idefics3")
    assert answer_ids(processor, " Two.") == answer_ids(processor, "Two.")
    assert processor.tokenizer.decode(answer_ids(processor, "Two.")) == " Two.<end_of_utterance>"


def test_the_embedded_models_answers_are_tokens_of_their_text(tiny):
    _, processor = tiny
    records = read_records(TRAFFIC / "preferences_train.jsonl")
    texts = list(dict.fromkeys(answer.text for record in records for answer in record.answers))
    assert len(texts) > 200
    for text in texts:
        expected = processor.tokenizer(text + "<|im_end|>", add_special_tokens=False)["input_ids"]
        assert answer_ids(processor, text) == expected


def test_a_template_that_goes_on_otherwise_than_its_prompt():
    """As of models that think first: what is written before the answer is then not known."""
    _, processor = build("qwen3_vl")
    processor.chat_template += "{% if add_generation_prompt %}<think>{% endif %}"
    assert answer_ids(processor, "2") == processor.tokenizer("2<|im_end|>")["input_ids"]


def test_an_answer_that_would_melt_into_the_prompts_last_token():
    """The prompt ends in a line break and has its tokens already; the answer keeps its own."""
    _, processor = build("qwen3_vl")
    processor.tokenizer.add_tokens(["\nL"])
    alone = processor.tokenizer("Late<|im_end|>")["input_ids"]
    assert answer_ids(processor, "Late") == alone
    assert answer_texts(processor, [alone]) == ["Late"]


def test_line_breaks_before_an_answer_are_left_out(family):
    """With a tokenizer that knows them as one token they would be part of the prompt's last."""
    _, _, processor = family
    assert answer_ids(processor, "\n\r\nLate") == answer_ids(processor, "Late")


def test_the_template_has_qwen2_vls_structure(tiny):
    assert render(tiny[1], "How many?") == (
        "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n"
        "<|im_start|>user\n<|vision_start|><|image_pad|><|vision_end|>How many?<|im_end|>\n"
        "<|im_start|>assistant\n"
    )


def test_image_tokens_are_pixels_over_784(tiny, valid_items):
    inputs = encode(tiny[1], [QUESTION, QUESTION], pictures_of(valid_items[:2]))
    assert count_image_tokens(tiny[1], inputs) == [112 * 112 // 784] * 2 == [16, 16]
    small = [image.resize((56, 84)) for image in pictures_of(valid_items[:1])]
    inputs = encode(tiny[1], [QUESTION], small)
    assert count_image_tokens(tiny[1], inputs) == [56 * 84 // 784]


def test_a_limit_on_pixels_is_a_limit_on_tokens(valid_items):
    _, processor = models.load_model("tiny", max_pixels=56 * 84)
    inputs = encode(processor, [QUESTION], [pictures_of(valid_items[:1])[0].resize((640, 480))])
    assert count_image_tokens(processor, inputs)[0] <= 56 * 84 // 784 == 6


@pytest.mark.parametrize("name", NEWER)
def test_an_answer_ends_where_the_template_ends_a_turn(name):
    """Gemma's tokenizer has an end of its own, which its template never writes."""
    model, processor = build(name)
    tokenizer = processor.tokenizer
    end = ENDS.get(name, tokenizer.eos_token)
    assert end_of_turn(processor) == end
    ids = answer_ids(processor, "There are 2 cars.")
    assert ids[-1] == tokenizer.convert_tokens_to_ids(end)
    assert answer_texts(processor, [ids]) == ["There are 2 cars."]
    assert (end == tokenizer.eos_token) == (name not in ENDS)
    likeliest = torch.zeros(len(tokenizer))
    likeliest[ids[-1]] = 50.0
    model.get_output_embeddings().register_forward_hook(lambda head, _, logits: logits + likeliest)
    prompts = encode_prompts(processor, [render(processor, "Q")], [[noise(112, 112)]])
    sampled, ended = models.sample_ids(model, processor, prompts, max_new_tokens=4)
    assert ended == [True] and sampled[0].tolist() == ids[-1:]
    texts = models.generate_answers(model, processor, [noise(112, 112)], ["Q"], max_new_tokens=4)
    assert texts == [""]


@pytest.mark.parametrize("name", NEWER)
def test_no_answer_holds_a_token_that_stands_for_a_part_of_an_image(name):
    """In Gemma 3's template another token stands for the whole image."""
    _, processor = build(name)
    inputs = encode(processor, ["Q"], [noise(112, 112)])
    most_frequent = inputs["input_ids"][0].mode().values.item()
    assert image_token_id(processor) == most_frequent in models.banned_tokens(processor)
