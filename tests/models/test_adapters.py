import importlib.util
import json
import subprocess
import sys

import pytest
import torch
from architectures import build
from pictures import noise
from safetensors.torch import load_file
from shipped import pictures_of
from torch.testing import assert_close

from helpers import models
from helpers.config import ALL_LINEAR, ATTENTION, LoraSettings
from helpers.data.counting import count_question
from helpers.data.scenes import CLASSES
from helpers.files import ROOT, UsageError
from helpers.models.encoded_prompts import encode_prompts
from helpers.models.prompts import encode, render
from helpers.models.shared_prefix import answer_logps, pack_separately

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


def test_sampling_before_training_leaves_the_gradient_alone(tiny, valid_items):
    """bitsandbytes repacks weights on some CPUs at the first call in eval mode; the packed product has
    no gradient, and a policy that had sampled once trained on what was left of it."""
    model, processor = with_adapter()
    push_off_zero(model)
    image = pictures_of(valid_items[:1])
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
    assert all(
        "language_model" in n and "lora_" in n and p.dtype == torch.float32
        for n, p in trained.items()
    )


def test_the_vision_tower_gets_an_adapter_only_when_asked():
    model, _ = with_adapter(target_modules=("qkv", "q_proj"), vision=True)
    names = [n for n, p in model.named_parameters() if p.requires_grad]
    assert any("visual" in n for n in names) and any("language_model" in n for n in names)


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        (ALL_LINEAR, ""),
        (ATTENTION, ""),
        # linear attention has no keys of their own: layer 3 alone is of the other kind
        (("k_proj",), "not layer 0, layer 1, layer 2."),
    ],
)
def test_layers_that_lora_does_not_reach_are_named(asked, said, capsys):
    model, _ = build("qwen3_5")
    models.add_adapter(model, LoraSettings(r=2, target_modules=asked))
    heard = capsys.readouterr().out
    assert ("does not reach" in heard) == bool(said) and said in heard


def test_a_linear_layer_of_an_unknown_name_is_named(capsys):
    model, _ = build("qwen2_vl")
    model.get_decoder().layers[1].adapter = torch.nn.Linear(2, 2)
    models.add_adapter(model, LoraSettings(r=2))
    assert "not adapter in 1 layers." in capsys.readouterr().out


def test_adapter_off_is_the_base_bit_for_bit(tiny, valid_items):
    model, processor = with_adapter()
    push_off_zero(model)
    inputs = encode(processor, [QUESTION], pictures_of(valid_items[:1]))
    with torch.no_grad():
        base, on = tiny[0](**inputs).logits, model(**inputs).logits
        with models.disable_adapters(model):
            off = model(**inputs).logits
    assert torch.equal(off, base) and not torch.allclose(on, base)


@pytest.mark.slow(reason="starts a process")
def test_a_saved_adapter_answers_the_same_in_a_new_process(tmp_path, valid_items):
    model, processor = with_adapter()
    push_off_zero(model)
    folder = models.save_adapter(model, tmp_path / "adapter", {"base": "tiny"})
    items = valid_items[:16]
    here = models.generate_answers(model, processor, pictures_of(items), [QUESTION] * 16)
    code = f"""
import json, pathlib
from helpers import models
from helpers.data import read_counts
from helpers.files import open_image
model, processor = models.load_model("tiny")
model = models.load_adapter(model, pathlib.Path({str(folder)!r}))
items = read_counts(pathlib.Path("data/traffic"), "valid")[:16]
pictures = [open_image(item.path) for item in items]
print(json.dumps(models.generate_answers(model, processor, pictures, [{QUESTION!r}] * 16)))
"""
    run = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert json.loads(run.stdout.splitlines()[-1]) == here
    base, _ = models.load_model("tiny")
    assert models.generate_answers(base, processor, pictures_of(items), [QUESTION] * 16) != here


def test_a_folder_without_an_adapter_is_named(tmp_path):
    base, _ = models.load_model("tiny")
    with pytest.raises(UsageError, match="holds no adapter"):
        models.load_adapter(base, tmp_path)


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
    model = models.add_adapter(
        models.load_model(folder / "base", four_bit=False)[0], LoraSettings(r=4), seed
    )
    push_off_zero(model, seed)
    models.save_adapter(model, folder / name, {})


def logits_with(folder, name):
    base, processor = models.load_model(folder / "base", four_bit=False)
    model = models.load_adapter(base, folder / name)
    with torch.no_grad():
        return model(**encode(processor, [QUESTION], [noise(112, 112)])).logits


@pytest.mark.slow(reason="a process of its own, in which unsloth compiles its forward")
@pytest.mark.skipif(
    importlib.util.find_spec("unsloth") is None, reason="unsloth is not installed here"
)
def test_adapters_fit_whichever_library_loaded_the_base(tmp_path):
    """unsloth on a CPU, which it is made to take for a GPU: its own forward, in full precision."""
    for part in build("qwen2_vl"):
        part.save_pretrained(tmp_path / "base")
    make_adapter(tmp_path, "transformers", seed=0)
    subprocess.run(
        [sys.executable, "-c", UNSLOTH, str(tmp_path), str(ROOT), str(ROOT / "tests")],
        cwd=tmp_path,
        check=True,
    )
    adapters = [
        load_file(tmp_path / name / "adapter_model.safetensors")
        for name in ("transformers", "unsloth")
    ]
    ours, theirs = (
        {name: weight.shape for name, weight in adapter.items()} for adapter in adapters
    )
    assert ours == theirs and len(ours) == 3 * 7 * 2  # layers, matrices, A and B
    there = torch.load(tmp_path / "logits.pt")
    for name, logits in there.items():
        assert_close(logits_with(tmp_path, name), logits, atol=1e-4, rtol=0)
    assert not torch.allclose(there["unsloth"], there["transformers"], atol=1e-2)
