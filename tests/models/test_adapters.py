import importlib.util
import json
import re
import subprocess
import sys

import pytest
import torch
from architectures import build
from pictures import noise
from safetensors.torch import load_file
from torch.testing import assert_close

from helpers import models
from helpers.config import LoraSettings
from helpers.data.counting import count_question, is_well_formed
from helpers.data.scenes import CLASSES
from helpers.evaluation.exactness import images_for
from helpers.files import ROOT, UsageError
from helpers.models import presets
from helpers.models.prompts import count_image_tokens, encode, render
from helpers.models.shared_prefix import answer_logps, encode_prompts, pack_separately

QUESTION = count_question(CLASSES)


def with_adapter(**settings):
    model, processor = models.load_model("tiny")
    return models.add_adapter(model, LoraSettings(**settings)), processor


def push_off_zero(model, seed=0):
    """A fresh adapter changes nothing; give its B matrices values."""
    torch.manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.normal_(0, 0.05)


@pytest.mark.parametrize("name", ["tinny", "./nowhere", "a/b/c", ""])
def test_an_unknown_model_is_a_one_line_error(name):
    with pytest.raises(UsageError) as error:
        models.load_model(name)
    assert "unknown model" in str(error.value) and "tiny, qwen2-vl-2b" in str(error.value)
    assert "\n" not in str(error.value)


def test_a_near_miss_gets_a_suggestion():
    with pytest.raises(UsageError, match="Did you mean 'qwen2-vl-2b'"):
        presets.locate("qwen2vl-2b")


def test_a_hub_model_without_network_is_a_one_line_error():
    with pytest.raises(UsageError, match="offline, use the preset 'tiny'") as error:
        models.load_model("nobody/no-such-model")
    assert "\n" not in str(error.value)


def test_a_folder_without_a_checkpoint_is_named(tmp_path):
    with pytest.raises(UsageError, match=r"holds no config\.json"):
        models.load_model(tmp_path)


def test_the_embedded_base_is_a_hub_checkpoint_in_a_folder(tiny):
    folder = ROOT / "data" / "tiny-qwen2-vl"
    assert type(tiny[0]).__name__ == "Qwen2VLForConditionalGeneration"
    assert type(tiny[1]).__name__ == "Qwen2VLProcessor"
    assert sum(f.stat().st_size for f in folder.iterdir()) < 10e6
    assert {"config.json", "model.safetensors", "tokenizer.json", "README.md"} <= {f.name for f in folder.iterdir()}
    model, _ = models.load_model(folder)  # a path works like the preset
    assert_close(model.state_dict(), tiny[0].state_dict())


def test_four_bit_means_the_language_model_and_nothing_else(tiny):
    quantised = [n for n, m in tiny[0].named_modules() if type(m).__name__ == "Linear4bit"]
    assert len(quantised) == 3 * 7  # q, k, v, o, gate, up, down of three layers
    assert all("language_model.layers" in name for name in quantised)
    full, _ = models.load_model("tiny", four_bit=False)
    assert models.weight_megabytes(tiny[0]) < 0.6 * models.weight_megabytes(full)


def test_sampling_before_training_leaves_the_gradient_alone(tiny, valid_items):
    """bitsandbytes repacks weights on some CPUs at the first call in eval mode; the packed product has
    no gradient, and a policy that had sampled once trained on what was left of it."""
    model, processor = with_adapter()
    push_off_zero(model)
    image = images_for(valid_items[:1])
    prompt = encode_prompts(processor, [render(processor, QUESTION)], [image])
    row = pack_separately(processor, prompt, [["There are 2 cars."]])

    def gradients():
        model.zero_grad()
        model.train()
        answer_logps(model, row).sum().backward()
        return {n: p.grad.clone() for n, p in model.named_parameters() if p.requires_grad}

    before = gradients()
    models.generate_answers(model, processor, image, [QUESTION])
    assert_close(gradients(), before)
    assert all(g.abs().sum() > 0 for g in before.values())


def test_the_adapter_trains_the_language_model_only_in_fp32(capsys):
    model, _ = with_adapter(r=4)
    trained = {n: p for n, p in model.named_parameters() if p.requires_grad}
    # r · (in + out) of q 128→128, k and v 128→64, o 128→128, gate and up 128→384, down 384→128; 3 layers
    by_hand = 3 * 4 * (256 + 192 + 192 + 256 + 512 + 512 + 512)
    assert sum(p.numel() for p in trained.values()) == by_hand == 29184
    assert "29,184 of" in capsys.readouterr().out
    assert all("language_model" in n and "lora_" in n and p.dtype == torch.float32 for n, p in trained.items())


def test_the_vision_tower_gets_an_adapter_only_when_asked():
    model, _ = with_adapter(target_modules=("qkv", "q_proj"), vision=True)
    names = [n for n, p in model.named_parameters() if p.requires_grad]
    assert any("visual" in n for n in names) and any("language_model" in n for n in names)


def test_adapter_off_is_the_base_bit_for_bit(tiny, valid_items):
    model, processor = with_adapter()
    push_off_zero(model)
    inputs = encode(processor, [QUESTION], images_for(valid_items[:1]))
    with torch.no_grad():
        base, on = tiny[0](**inputs).logits, model(**inputs).logits
        with models.disable_adapters(model):
            off = model(**inputs).logits
    assert torch.equal(off, base) and not torch.allclose(on, base)


def test_a_saved_adapter_answers_the_same_in_a_new_process(tmp_path, valid_items):
    model, processor = with_adapter()
    push_off_zero(model)
    folder = models.save_adapter(model, tmp_path / "adapter", {"base": "tiny"})
    items = valid_items[:16]
    here = models.generate_answers(model, processor, images_for(items), [QUESTION] * 16)
    code = f"""
import json, pathlib
from helpers import models
from helpers.evaluation import images_for
from helpers.data.labels import read_yolo
model, processor = models.load_model("tiny")
model = models.load_adapter(model, pathlib.Path({str(folder)!r}))
items = read_yolo(pathlib.Path("data/traffic"), "valid")[:16]
print(json.dumps(models.generate_answers(model, processor, images_for(items), [{QUESTION!r}] * 16)))
"""
    run = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert json.loads(run.stdout.splitlines()[-1]) == here
    base, _ = models.load_model("tiny")
    assert models.generate_answers(base, processor, images_for(items), [QUESTION] * 16) != here


def test_adapters_that_are_missing_or_do_not_fit_are_named(tmp_path):
    base, _ = models.load_model("tiny")
    with pytest.raises(UsageError, match="holds no adapter"):
        models.load_adapter(base, tmp_path)
    model, _ = with_adapter(r=4)
    folder = models.save_adapter(model, tmp_path / "a", {})
    weights = folder / "adapter_config.json"
    weights.write_text(re.sub(r'"r": 4', '"r": 8', weights.read_text()))
    with pytest.raises(UsageError, match="does not fit the model loaded"):
        models.load_adapter(base, folder)


def test_greedy_answers_do_not_depend_on_the_batch(tiny, valid_items):
    images = images_for(valid_items[:6])
    prompts = [count_question(CLASSES, i) for i in range(5)] + ["Is there a car in the image?"]
    together = models.generate_answers(*tiny, images, prompts)
    alone = [models.generate_answers(*tiny, [i], [p])[0] for i, p in zip(images, prompts, strict=True)]
    assert together == alone
    assert all(is_well_formed(text, CLASSES) for text in together[:5]) and together[5] in ("Yes.", "No.")


def test_sampling_follows_its_seed_and_leaves_the_generator_alone(tiny, valid_items):
    images, prompts = images_for(valid_items[:8]), [QUESTION] * 8
    torch.manual_seed(5)
    expected = torch.rand(1)
    torch.manual_seed(5)
    first = models.generate_answers(*tiny, images, prompts, temperature=1.5, seed=1)
    assert torch.equal(torch.rand(1), expected)
    assert first == models.generate_answers(*tiny, images, prompts, temperature=1.5, seed=1)
    assert first != models.generate_answers(*tiny, images, prompts, temperature=1.5, seed=2)


class Cramped:
    """`generate` of a model on a card that holds so many rows."""

    def __init__(self, model, rows, error=None):
        self.model, self.rows, self.sizes, self.own = model, rows, [], model.generate
        self.error = error or torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")

    def __enter__(self):
        self.model.generate = self
        return self

    def __exit__(self, *_):
        del self.model.generate

    def __call__(self, input_ids, **inputs):
        self.sizes.append(len(input_ids))
        if len(input_ids) > self.rows:
            torch.rand(7)  # what was drawn before memory ran out
            raise self.error
        return self.own(input_ids=input_ids, **inputs)


def test_a_batch_that_does_not_fit_is_halved_until_it_does(tiny, valid_items, capsys):
    images, prompts = images_for(valid_items[:6]), [QUESTION] * 6
    how = {"temperature": 1.5, "seed": 1}
    expected = models.generate_answers(*tiny, images, prompts, **how, batch_size=2)
    tiny[0].train()
    with Cramped(tiny[0], rows=3) as cramped:
        assert models.generate_answers(*tiny, images, prompts, **how, batch_size=8) == expected
    assert cramped.sizes == [6, 4, 2, 2, 2] and tiny[0].training
    tiny[0].eval()
    assert [line for line in capsys.readouterr().out.splitlines() if "⚠️" in line] == [
        "⚠️  8 answers at once do not fit into memory: starting again with 4.",
        "⚠️  4 answers at once do not fit into memory: starting again with 2.",
    ]


def test_one_answer_that_does_not_fit_and_other_faults_are_raised(tiny, valid_items):
    images, prompts = images_for(valid_items[:2]), [QUESTION] * 2
    with Cramped(tiny[0], rows=0) as cramped, pytest.raises(torch.OutOfMemoryError):
        models.generate_answers(*tiny, images, prompts)
    assert cramped.sizes == [2, 2, 2, 2, 2, 2, 1]  # 64, 32, …, 1 at once, of two
    with Cramped(tiny[0], 0, RuntimeError("shapes differ")) as cramped, pytest.raises(RuntimeError, match="differ"):
        models.generate_answers(*tiny, images, prompts)
    assert cramped.sizes == [2]


def test_one_image_a_prompt_is_needed(tiny, valid_items):
    with pytest.raises(ValueError, match="1 images but 2 prompts"):
        models.generate_answers(*tiny, images_for(valid_items[:1]), [QUESTION] * 2)


def test_the_template_has_qwen2_vls_structure(tiny):
    assert render(tiny[1], "How many?") == (
        "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n"
        "<|im_start|>user\n<|vision_start|><|image_pad|><|vision_end|>How many?<|im_end|>\n"
        "<|im_start|>assistant\n"
    )


def test_image_tokens_are_pixels_over_784(tiny, valid_items):
    inputs = encode(tiny[1], [QUESTION, QUESTION], images_for(valid_items[:2]))
    assert count_image_tokens(tiny[1], inputs) == [112 * 112 // 784] * 2 == [16, 16]
    small = [image.resize((56, 84)) for image in images_for(valid_items[:1])]
    inputs = encode(tiny[1], [QUESTION], small)
    assert count_image_tokens(tiny[1], inputs) == [56 * 84 // 784]


def test_a_limit_on_pixels_is_a_limit_on_tokens(valid_items):
    _, processor = models.load_model("tiny", max_pixels=56 * 84)
    inputs = encode(processor, [QUESTION], [images_for(valid_items[:1])[0].resize((640, 480))])
    assert count_image_tokens(processor, inputs)[0] <= 56 * 84 // 784 == 6


def test_images_may_be_paths(tiny, valid_items):
    paths = [item.path for item in valid_items[:3]]
    opened = images_for(valid_items[:3])
    assert models.generate_answers(*tiny, paths, [QUESTION] * 3) == models.generate_answers(
        *tiny, opened, [QUESTION] * 3
    )


def test_answers_are_marked_and_end_the_turn(tiny, valid_items):
    prompts, images = [render(tiny[1], QUESTION)] * 2, [[image] for image in images_for(valid_items[:2])]
    rows = pack_separately(tiny[1], encode_prompts(tiny[1], prompts, images), [["Yes."], ["There are 2 cars."]])
    texts = [tiny[1].tokenizer.decode(ids[mask]) for ids, mask in zip(rows.ids, rows.mask, strict=True)]
    assert texts == ["Yes.<|im_end|>", "There are 2 cars.<|im_end|>"]


def test_unsloths_own_generate_is_passed_by(tiny):
    """It asks for a cache of its own, and would refuse the one that image and prompt are in."""
    calls = []

    class Base(torch.nn.Module):
        device = torch.device("cpu")

        def generate(self, **inputs):
            raise ValueError("two caches")

        def _old_generate(self, **inputs):
            calls.append(inputs)
            return "tokens"

    assert models.generate_from_cache(Base(), "cache", "config", input_ids="ids") == "tokens"
    assert calls == [{"input_ids": "ids", "past_key_values": "cache", "generation_config": "config"}]


UNSLOTH = """
import os, sys, types
os.environ |= {"UNSLOTH_ALLOW_CPU": "1", "UNSLOTH_DISABLE_STATISTICS": "1"}
import torch
card = types.SimpleNamespace(name="CPU", total_memory=8 * 2**30, major=7, minor=5, multi_processor_count=1)
torch.cuda.get_device_properties = lambda index=0: card
import unsloth
from pathlib import Path
sys.path[:0] = sys.argv[2:]
from helpers.models import loading
from models.test_adapters import logits_with, make_adapter
loading.unsloth, folder = unsloth, Path(sys.argv[1])
make_adapter(folder, "unsloth", seed=1)
logits = {name: logits_with(folder, name) for name in ("transformers", "unsloth")}
torch.save(logits, folder / "logits.pt")
"""


def make_adapter(folder, name, seed):
    model = models.add_adapter(models.load_model(folder / "base", four_bit=False)[0], LoraSettings(r=4), seed)
    push_off_zero(model, seed)
    models.save_adapter(model, folder / name, {})


def logits_with(folder, name):
    base, processor = models.load_model(folder / "base", four_bit=False)
    model = models.load_adapter(base, folder / name)
    with torch.no_grad():
        return model(**encode(processor, [QUESTION], [noise(112, 112)])).logits


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("unsloth") is None, reason="unsloth is not installed here")
def test_adapters_fit_whichever_library_loaded_the_base(tmp_path):
    """unsloth on a CPU, which it is made to take for a GPU: its own forward, in full precision."""
    for part in build("qwen2_vl"):
        part.save_pretrained(tmp_path / "base")
    make_adapter(tmp_path, "transformers", seed=0)
    subprocess.run(
        [sys.executable, "-c", UNSLOTH, str(tmp_path), str(ROOT), str(ROOT / "tests")], cwd=tmp_path, check=True
    )
    adapters = [load_file(tmp_path / name / "adapter_model.safetensors") for name in ("transformers", "unsloth")]
    ours, theirs = ({name: weight.shape for name, weight in adapter.items()} for adapter in adapters)
    assert ours == theirs and len(ours) == 3 * 7 * 2  # layers, matrices, A and B
    there = torch.load(tmp_path / "logits.pt")
    for name, logits in there.items():
        assert_close(logits_with(tmp_path, name), logits, atol=1e-4, rtol=0)
    assert not torch.allclose(there["unsloth"], there["transformers"], atol=1e-2)
