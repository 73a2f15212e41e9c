"""Loading as it would go with a network: the hub's cache is filled by hand, its errors are the real ones."""

import ast
import errno
import importlib.util
import json
import shutil
from pathlib import Path
from types import SimpleNamespace

import httpx
import pytest
import torch
from architectures import build, save_as_on_the_hub
from huggingface_hub import constants, errors as hub_errors
from pictures import noise
from safetensors.torch import load_file
from torch.testing import assert_close
from transformers import (
    AutoTokenizer,
    GenerationConfig,
    Idefics3ImageProcessor,
    Idefics3Processor,
    Qwen2VLConfig,
)
from transformers.quantizers import AutoHfQuantizer

from helpers import models
from helpers.files import ROOT, UsageError
from helpers.models import loading
from helpers.models.loading import CheckpointSource, load_processor
from helpers.models.presets import PRESETS
from helpers.models.prompts import count_image_tokens, encode

TINY = ROOT / "data" / "tiny-qwen2-vl"
QWEN = PRESETS["qwen2-vl-2b"]
NEWEST = "0" * 40
LLAMA = "meta-llama/Llama-3.2-11B-Vision-Instruct"


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """put(folder, hub id, commit, newest=False): a folder as if it had been downloaded."""
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))

    def put(folder, hub_id, commit, newest=False):
        home = tmp_path / "hub" / f"models--{hub_id.replace('/', '--')}"
        shutil.copytree(folder, home / "snapshots" / commit)
        if newest:
            (home / "refs").mkdir()
            (home / "refs" / "main").write_text(commit)
        return home / "snapshots" / commit

    return put


@pytest.fixture
def gpu(monkeypatch):
    """A T4, as far as it decides where weights come from and in which precision they are."""
    monkeypatch.setattr(loading, "has_cuda", lambda: True)
    monkeypatch.setattr(loading, "compute_dtype", lambda: torch.float16)


def change(folder, name, text):
    (folder / name).write_text(text)
    return folder


def first_norm(model):
    return float(model.get_decoder().norm.weight[0])


def with_norm(value, folder, **options):
    """The tiny model with a mark on it, saved in `folder`."""
    model, processor = models.load_model("tiny", **options)
    model.get_decoder().norm.weight.data[0] = value
    model.save_pretrained(folder), processor.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory):
    """The original and its copy in 4 bits, which says, as copies do, that it computes in bf16."""
    folder = tmp_path_factory.mktemp("checkpoints")
    full = with_norm(2.0, folder / "full", four_bit=False)
    copy = with_norm(3.0, folder / "copy")
    config = json.loads((copy / "config.json").read_text())
    config["quantization_config"]["bnb_4bit_compute_dtype"] = "bfloat16"
    (copy / "config.json").write_text(json.dumps(config))
    (copy / "chat_template.jinja").write_text("the copy's own")
    return SimpleNamespace(full=full, copy=copy)


def four_bit_layers(model):
    return [module for module in model.modules() if type(module).__name__ == "Linear4bit"]


def test_the_pinned_commit_is_loaded_and_not_the_newest(cache, checkpoints, capsys):
    cache(checkpoints.full, QWEN.location, QWEN.revision)
    newest = cache(TINY, QWEN.location, NEWEST, newest=True)
    (newest / "chat_template.jinja").write_text("newer")
    model, processor = models.load_model("qwen2-vl-2b")
    assert (
        first_norm(model) == 2.0 and processor.chat_template != "newer" and four_bit_layers(model)
    )
    assert processor.image_processor.size["longest_edge"] == QWEN.max_pixels == 200704
    assert not model.training and not any(
        parameter.requires_grad for parameter in model.parameters()
    )
    assert capsys.readouterr().out.splitlines() == [
        "⚠️  No GPU: with 2.2 billion weights, a stage takes hours. Take smolvlm-256m or tiny to try it."
    ]


def test_a_gpu_gets_the_copy_in_four_bits_but_the_original_processor(
    cache, checkpoints, gpu, capsys
):
    """The copy computes in bf16, its tensors too: a T4 would only emulate it."""
    cache(checkpoints.full, QWEN.location, QWEN.revision)
    cache(checkpoints.copy, QWEN.four_bit, NEWEST, newest=True)
    for name in ("qwen2-vl-2b", QWEN.location, QWEN.four_bit):
        model, processor = models.load_model(name)
        assert first_norm(model) == 3.0 and processor.chat_template != "the copy's own", name
    assert capsys.readouterr().out == ""
    layers = four_bit_layers(model)
    assert len(layers) == 21 and {layer.compute_dtype for layer in layers} == {torch.float16}
    assert {layer.weight.quant_state.dtype for layer in layers} == {torch.float16}
    assert {t.dtype for t in [*model.parameters(), *model.buffers()] if t.is_floating_point()} <= {
        torch.float16,
        torch.float32,
    }
    assert first_norm(models.load_model("qwen2-vl-2b", four_bit=False)[0]) == 2.0


def test_without_its_copy_the_original_is_quantised(cache, checkpoints, gpu, capsys):
    cache(checkpoints.full, QWEN.location, QWEN.revision)
    model, _ = models.load_model("qwen2-vl-2b")
    assert first_norm(model) == 2.0 and len(four_bit_layers(model)) == 21
    (line,) = capsys.readouterr().out.splitlines()
    assert "unsloth/Qwen2-VL-2B-Instruct-bnb-4bit, the copy in 4 bits, cannot be loaded" in line
    assert line.endswith("quantising Qwen/Qwen2-VL-2B-Instruct.")


def test_a_copy_that_is_broken_is_not_passed_over(cache, checkpoints, gpu):
    cache(checkpoints.full, QWEN.location, QWEN.revision)
    broken = cache(checkpoints.copy, QWEN.four_bit, NEWEST, newest=True)
    (broken / "model.safetensors").write_bytes((broken / "model.safetensors").read_bytes()[:5000])
    with pytest.raises(
        UsageError, match=r"cannot be loaded from unsloth/Qwen2-VL-2B-Instruct-bnb-4bit \("
    ):
        models.load_model("qwen2-vl-2b")


def test_where_weights_are_looked_for():
    original, copy = CheckpointSource(QWEN.location, QWEN.revision), CheckpointSource(QWEN.four_bit)
    for name in ("qwen2-vl-2b", QWEN.location, QWEN.four_bit):
        assert loading.original_source(name) == original
        assert loading.weight_sources(name, four_bit=True, on_gpu=True) == [copy, original]
        assert loading.weight_sources(name, four_bit=False, on_gpu=True) == [original]
        assert loading.weight_sources(name, four_bit=True, on_gpu=False) == [original]
    assert loading.weight_sources("tiny", True, True) == [CheckpointSource(str(TINY))]
    assert loading.weight_sources("owner/other", True, True) == [CheckpointSource("owner/other")]
    assert PRESETS["smolvlm-256m"].four_bit is None
    assert loading.weight_sources("smolvlm-256m", True, True) == [
        loading.original_source("smolvlm-256m")
    ]


def hub_error(kind, code=404):
    url = "https://huggingface.co/api/models/owner/name"
    return kind(
        f"{code} Client Error.\n\nFor {url}",
        response=httpx.Response(code, request=httpx.Request("GET", url)),
    )


@pytest.mark.parametrize(
    ("error", "advice"),
    [
        (
            hub_error(hub_errors.GatedRepoError, 403),
            f"Accept the licence at https://huggingface.co/{LLAMA}, set HF_TOKEN",
        ),
        (
            hub_error(hub_errors.RepositoryNotFoundError, 401),
            "or it is private). Check the name; for a private",
        ),
        (
            hub_error(hub_errors.RevisionNotFoundError),
            "Put the newest one into helpers/models/presets.toml",
        ),
        (
            hub_error(hub_errors.HfHubHTTPError, 503),
            "Check the network; offline, use the preset 'tiny'",
        ),
        (
            hub_errors.LocalEntryNotFoundError("not in the cache"),
            "Check the network; offline, use the preset 'tiny'",
        ),
        (
            hub_errors.OfflineModeIsEnabled("HF_HUB_OFFLINE=1"),
            "Check the network; offline, use the preset 'tiny'",
        ),
        (httpx.ConnectTimeout("timed out"), "Check the network; offline, use the preset 'tiny'"),
        (
            OSError(errno.ENOSPC, "No space left on device"),
            "set HF_HOME to a folder on another disk",
        ),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, Exception) else "",
)
@pytest.mark.parametrize("loader", ["transformers", "unsloth"])
def test_what_the_hub_refuses_is_told_in_one_line(error, advice, loader, monkeypatch):
    """The download raises what the hub raises; what transformers makes of it reaches us. unsloth wraps that once more."""

    def refuse(*args, **kwargs):
        raise error

    def wrap(*args, **kwargs):
        try:
            return loading.AutoModelForImageTextToText.from_pretrained(LLAMA)
        except Exception as inner:
            raise RuntimeError("Unsloth: Failed to load model.\n\nAutoConfig error") from inner

    monkeypatch.setattr("transformers.utils.hub.hf_hub_download", refuse)
    if loader == "unsloth":
        monkeypatch.setattr(loading, "unsloth", fake_unsloth(wrap), raising=False)
        monkeypatch.setattr(loading, "load_processor", lambda *_, **__: None)
    with pytest.raises(UsageError) as told:
        loading.load_model(LLAMA)
    assert advice in str(told.value) and "\n" not in str(told.value) and LLAMA in str(told.value)


def test_a_folder_that_is_not_whole_is_told_in_one_line(tmp_path):
    folder = tmp_path / "checkpoint"
    shutil.copytree(TINY, folder)
    with pytest.raises(UsageError, match="save_pretrained writes it"):
        models.load_model(change(folder, "config.json", "{not JSON"))
    shutil.copy(TINY / "config.json", folder)
    (folder / "model.safetensors").write_bytes((TINY / "model.safetensors").read_bytes()[:5000])
    with pytest.raises(UsageError, match="Give the folder of a whole checkpoint"):
        models.load_model(folder)
    (folder / "model.safetensors").unlink()
    with pytest.raises(UsageError, match="Give the folder of a whole checkpoint"):
        models.load_model(folder)


def test_a_library_that_is_not_installed_is_named(monkeypatch):
    def fail(*args, **kwargs):
        raise ImportError(
            "\nSmolVLMProcessor requires the num2words library but it was not found.\nInstall it"
        )

    monkeypatch.setattr(loading.AutoProcessor, "from_pretrained", fail)
    with pytest.raises(UsageError) as told:
        load_processor("tiny")
    assert "num2words" in str(told.value) and str(told.value).endswith(
        "pip install -r requirements.txt."
    )


def test_a_model_of_text_alone_is_named(tmp_path):
    AutoTokenizer.from_pretrained(TINY).save_pretrained(tmp_path)
    settings = json.loads((tmp_path / "tokenizer_config.json").read_text())
    settings.pop("processor_class", None)
    change(tmp_path, "tokenizer_config.json", json.dumps(settings))
    change(tmp_path, "config.json", json.dumps({"model_type": "llama"}))
    with pytest.raises(UsageError, match="reads no images"):
        models.load_model(tmp_path)


def offloaded():
    """What the 4-bit quantiser says of a model of which accelerate has put a part into RAM."""
    quantizer = AutoHfQuantizer.from_config(loading.quantization(), pre_quantized=False)
    with pytest.raises(ValueError) as refused:
        quantizer.validate_environment(device_map={"model.visual": 0, "lm_head": "cpu"})
    return refused.value


# A preset that is added does not change what is proposed here
FEW_PRESETS = {name: PRESETS[name] for name in (
    "tiny", "smolvlm-256m", "smolvlm-500m", "qwen3-vl-2b", "qwen2-vl-2b",
    "qwen2.5-vl-3b", "qwen3-vl-4b", "llava-1.5-7b", "qwen2-vl-7b",
)}  # fmt: skip


@pytest.mark.parametrize(
    "error", [torch.OutOfMemoryError("CUDA out of memory.\nTried to allocate"), offloaded()]
)
@pytest.mark.parametrize("preset, instead", [
    ("qwen2-vl-7b", "llava-1.5-7b, qwen3-vl-4b, qwen2.5-vl-3b"),
    ("qwen2-vl-2b", "qwen3-vl-2b, smolvlm-500m, smolvlm-256m"),
    ("smolvlm-256m", "tiny"),
    ("owner/other", "tiny, smolvlm-256m, smolvlm-500m"),
])  # fmt: skip
def test_too_little_gpu_memory_names_smaller_presets(error, preset, instead, monkeypatch, gpu):
    def fail(*args, **kwargs):
        raise error

    monkeypatch.setattr(loading, "PRESETS", FEW_PRESETS)
    monkeypatch.setattr(loading, "load_processor", lambda *_, **__: None)
    monkeypatch.setattr(loading.AutoModelForImageTextToText, "from_pretrained", fail)
    with pytest.raises(UsageError) as told:
        loading.load_model(preset)
    text = str(told.value)
    assert (
        "Restart the kernels" in text
        and text.endswith(f"a smaller preset: {instead}.")
        and "\n" not in text
    )


def fake_unsloth(from_pretrained):
    return SimpleNamespace(FastVisionModel=SimpleNamespace(from_pretrained=from_pretrained))


def test_unsloth_is_asked_for_this_checkpoint_and_for_nothing_it_does_not_know(monkeypatch, gpu):
    calls, model = [], torch.nn.Linear(2, 2)
    model.config = Qwen2VLConfig()
    model.generation_config = GenerationConfig()

    def from_pretrained(name, **options):
        calls.append((name, options))
        if name == QWEN.four_bit:
            raise RuntimeError("Unsloth: Failed") from hub_error(hub_errors.RepositoryNotFoundError)
        return model, "a tokenizer of its own"

    monkeypatch.setattr(loading, "unsloth", fake_unsloth(from_pretrained), raising=False)
    processor = load_processor("tiny")
    monkeypatch.setattr(loading, "load_processor", lambda *_, **__: processor)
    assert loading.load_model("qwen2-vl-2b") == (model, processor)
    # the checkpoint did not say where its template ends an answer
    assert model.generation_config.eos_token_id == [processor.tokenizer.eos_token_id]
    (copy, first), (name, options) = calls
    assert (copy, first["revision"]) == (QWEN.four_bit, None)
    assert (name, options["revision"]) == (QWEN.location, QWEN.revision)
    assert (
        options["use_exact_model_name"]
        and options["load_in_4bit"]
        and options["dtype"] == torch.float16
    )
    assert options["attn_implementation"] == "sdpa" and "trust_remote_code" not in options
    found = importlib.util.find_spec("unsloth")  # without its import, which needs a GPU
    if found is None:
        pytest.skip("unsloth is not installed here")
    module = ast.parse(
        (Path(found.origin).parent / "models" / "loader.py").read_text(encoding="utf-8")
    )
    fast = next(
        node for node in module.body if isinstance(node, ast.ClassDef) and node.name == "FastModel"
    )
    function = next(node for node in fast.body if getattr(node, "name", "") == "from_pretrained")
    known = {argument.arg for argument in function.args.args}
    assert (
        options.keys() - known == {"attn_implementation"} and function.args.kwarg
    )  # which it hands on


def test_without_bitsandbytes_it_loads_in_full_precision_and_says_so(monkeypatch, capsys):
    real = importlib.util.find_spec
    monkeypatch.setattr(
        loading.importlib.util,
        "find_spec",
        lambda n, *a: None if n == "bitsandbytes" else real(n, *a),
    )
    model, _ = models.load_model("tiny")
    assert not four_bit_layers(model)
    assert capsys.readouterr().out == (
        "⚠️  There is no bitsandbytes for this device: loading in full precision.\n"
    )


def test_a_small_model_needs_no_warning(capsys):
    models.load_model("tiny")
    assert capsys.readouterr().out == ""


def idefics3():
    """The processor of SmolVLM-256M, with few words: tiles of 512, 64 tokens each."""
    tokenizer = AutoTokenizer.from_pretrained(TINY)
    places = [f"<row_{r}_col_{c}>" for r in range(1, 5) for c in range(1, 5)]
    tokenizer.add_tokens(
        ["<image>", "<fake_token_around_image>", "<global-img>", "<end_of_utterance>", *places],
        special_tokens=True,
    )
    images = Idefics3ImageProcessor(
        size={"longest_edge": 2048}, max_image_size={"longest_edge": 512}
    )
    return Idefics3Processor(
        images,
        tokenizer,
        image_seq_len=64,
        chat_template="<image>{{ messages[0].content[1].text }}",
    )


@pytest.mark.parametrize(
    ("max_pixels", "side", "tokens"),
    [
        (None, 512, 64),  # the preset: one tile, and no view of the whole beside it
        (512 * 512 - 1, 512, 64),  # at least one tile
        (
            1024 * 1024,
            1024,
            64 * (2 * 2 + 1),
        ),  # 1000 × 700 → 1024 × 717 → 2 × 2 tiles and the whole
        (1024 * 1024 - 1, 512, 64),  # 1023 is no multiple of 512
        (1_500_000, 1024, 64 * (2 * 2 + 1)),  # √1,500,000 = 1224.7
    ],
)
def test_a_limit_on_pixels_is_a_number_of_tiles_for_smolvlm(
    cache, tmp_path, max_pixels, side, tokens
):
    preset, folder = PRESETS["smolvlm-256m"], tmp_path / "processor"
    idefics3().save_pretrained(folder)
    change(folder, "config.json", json.dumps({"model_type": "idefics3"}))
    cache(folder, preset.location, preset.revision)
    processor = load_processor("smolvlm-256m", max_pixels=max_pixels)
    assert processor.image_processor.size["longest_edge"] == side
    inputs = encode(processor, ["What is it?"], [noise(1000, 700)])
    assert count_image_tokens(processor, inputs) == [tokens]


def test_a_limit_on_pixels_also_bounds_what_small_images_are_enlarged_to():
    """Of Qwen-VL: images under `shortest_edge` pixels are enlarged to it, 3,136 = 4 tokens here, whatever the limit."""
    processor = load_processor("tiny", max_pixels=784)
    assert count_image_tokens(processor, encode(processor, ["?"], [noise(20, 20)])) == [1]
    processor = load_processor("tiny")
    assert count_image_tokens(processor, encode(processor, ["?"], [noise(20, 20)])) == [4]


@pytest.mark.parametrize("name", ["llava", "llava_next"])
def test_llava_has_no_limit_of_pixels(name, tmp_path):
    build(name)[1].save_pretrained(tmp_path)
    change(tmp_path, "config.json", json.dumps({"model_type": name}))
    with pytest.raises(UsageError, match="has no limit of pixels"):
        load_processor(tmp_path, max_pixels=200704)
    assert load_processor(tmp_path).image_processor


@pytest.mark.parametrize("name", ["tinny", "./nowhere", "a/b/c", ""])
def test_an_unknown_model_is_a_one_line_error(name):
    with pytest.raises(UsageError) as error:
        models.load_model(name)
    assert "unknown model" in str(error.value) and "tiny, tiny-tasks, smollm2-scenes" in str(
        error.value
    )
    assert "\n" not in str(error.value)


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
    assert {"config.json", "model.safetensors", "tokenizer.json", "README.md"} <= {
        f.name for f in folder.iterdir()
    }
    model, _ = models.load_model(folder)  # a path works like the preset
    assert_close(model.state_dict(), tiny[0].state_dict())


def test_four_bit_means_the_language_model_and_nothing_else(tiny):
    quantised = [n for n, m in tiny[0].named_modules() if type(m).__name__ == "Linear4bit"]
    assert len(quantised) == 3 * 7  # q, k, v, o, gate, up, down of three layers
    assert all("language_model.layers" in name for name in quantised)
    full, _ = models.load_model("tiny", four_bit=False)
    assert models.weight_megabytes(tiny[0]) < 0.6 * models.weight_megabytes(full)


def test_weights_in_a_pickle_are_not_loaded(tmp_path):
    """Unpickling runs whatever its author wrote."""
    folder = save_as_on_the_hub("smolvlm", tmp_path / "model")
    weights = Path(folder) / "model.safetensors"
    torch.save(load_file(weights), weights.with_name("pytorch_model.bin"))
    weights.unlink()
    with pytest.raises(UsageError, match=r"no file named model\.safetensors"):
        loading.load_model(folder)
