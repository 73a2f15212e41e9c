"""The table of presets against the models that it describes, which are built without weights."""

import re

import pytest
from peft import get_peft_model
from torch import nn
from transformers.quantizers import AutoHfQuantizer

from helpers import models
from helpers.config import ALL_LINEAR, ATTENTION, LoraSettings
from helpers.files import ROOT, UsageError
from helpers.models import loading, presets
from helpers.models.presets import PRESETS, in_four_bits, locate, preset_of

BUILT = {}


def built(name):
    if name not in BUILT:
        BUILT[name] = presets.model_without_weights(name)
    return BUILT[name]


def lora_shapes(name, settings):
    """Names and shapes (out, in) of the layers that get an adapter, found as peft finds them: the whole name matches."""
    target = models.lora_config(built(name), settings).target_modules
    return {
        n: tuple(m.weight.shape) for n, m in built(name).named_modules() if re.fullmatch(target, n)
    }


@pytest.mark.parametrize("name", PRESETS)
def test_the_table_describes_the_checkpoint(name):
    preset, model = PRESETS[name], built(name)
    assert all(parameter.device.type == "meta" for parameter in model.parameters()), (
        "takes no memory"
    )
    if not name.startswith("tiny"):
        assert (
            sum(p.numel() for p in model.parameters()) == preset.parameters
        )  # as the hub counts them
        assert preset.gpu_gb > 0
        # a folder of this repository has no revision of its own
        if not (ROOT / preset.location).is_dir():
            assert re.fullmatch(r"[0-9a-f]{40}", preset.revision)
        assert preset.four_bit is None or preset.four_bit.startswith("unsloth/")
    assert preset.licence and {
        model.config._attn_implementation,
        model.config.vision_config._attn_implementation,
    } == {"sdpa"}
    fixed = name.startswith(("llava", "gemma-3", "smol"))
    assert (preset.max_pixels is None) == fixed
    assert (preset.longest_edge is not None) == name.startswith("smol")


# Qwen2-VL-2B: hidden 1536, keys and values 2 heads × 128 = 256, MLP 8960, 28 layers
#   q, k, v, o at r 8:  28 × 8 × (3072 + 1792 + 1792 + 3072) = 28 × 8 × 9728 = 2,179,072
#   all seven at r 16:  28 × 16 × (9728 + 3 × (1536 + 8960)) = 28 × 16 × 41216 = 18,464,768
# LLaVA-NeXT (Llama 3): hidden 4096, keys and values 8 × 128 = 1024, MLP 14336, 32 layers
#   all seven at r 8:   32 × 8 × (2 × 8192 + 2 × 5120 + 3 × 18432) = 32 × 8 × 81920 = 20,971,520
@pytest.mark.parametrize(
    ("name", "r", "modules", "weights"),
    [
        ("qwen2-vl-2b", 8, ATTENTION, 2_179_072),
        ("qwen2-vl-2b", 16, ALL_LINEAR, 18_464_768),
        ("llava-next-llama3-8b", 8, ALL_LINEAR, 20_971_520),
    ],
)
def test_adapters_have_as_many_weights_as_the_source_projects_report(name, r, modules, weights):
    model, settings = presets.model_without_weights(name), LoraSettings(r=r, target_modules=modules)
    assert (
        sum(r * (rows + columns) for rows, columns in lora_shapes(name, settings).values())
        == weights
    )
    adapted = get_peft_model(model, models.lora_config(model, settings))
    assert adapted.get_nb_trainable_parameters() == (weights, PRESETS[name].parameters + weights)


@pytest.mark.parametrize("name", PRESETS)
def test_every_preset_gets_an_adapter_on_its_language_layers_and_nowhere_else(name):
    model, names = built(name), set(lora_shapes(name, LoraSettings()))
    decoder = model.get_decoder()
    prefix = next(n for n, module in model.named_modules() if module is decoder)
    inside = {n for n, module in decoder.layers.named_modules() if isinstance(module, nn.Linear)}
    assert names == {f"{prefix}.layers.{layer}" for layer in inside}
    if name.startswith(("qwen2", "qwen3-", "llava", "smolvlm", "internvl", "gemma-3", "tiny")):
        depth = model.config.get_text_config().num_hidden_layers
        assert len(names) == depth * len(ALL_LINEAR)


@pytest.mark.parametrize("name", PRESETS)
def test_four_bits_are_the_same_layers_of_every_preset(name):
    """What transformers makes 4-bit layers with our configuration: those that get an adapter, and no others."""
    model = presets.model_without_weights(name)
    quantizer = AutoHfQuantizer.from_config(loading.quantization(), pre_quantized=False)
    quantizer.preprocess_model(model, device_map={"": "cpu"})
    four_bit = {n for n, module in model.named_modules() if type(module).__name__ == "Linear4bit"}
    # Gemma 4 has one more, which makes the embeddings of all layers
    more = {"model.language_model.per_layer_model_projection"} if "gemma-4" in name else set()
    assert four_bit == set(lora_shapes(name, LoraSettings())) | more


def bytes_in_four_bits(name, other):
    """½ byte a weight of the language layers, and what brings them back to scale: 1 byte for 64 weights, which are
    themselves scaled by 4 bytes for 256 of them (double quantisation); all else at `other` bytes.
    """
    quantised = [rows * columns for rows, columns in lora_shapes(name, LoraSettings()).values()]
    rest = sum(p.numel() for p in built(name).parameters()) - sum(quantised)
    scales = sum(-(-n // 64) for n in quantised)
    return sum(quantised) // 2 + scales + 4 * sum(
        -(-n // 64 // 256) for n in quantised
    ), other * rest


def test_the_weights_of_qwen2_vl_2b_in_four_bits():
    # a layer: 2 × 1536² + 2 × 1536 × 256 + 3 × 1536 × 8960 = 46,792,704 weights; × 28 = 1,310,195,712
    # ÷ 2 = 655,097,856 bytes; ÷ 64 = 20,471,808 scales; ÷ 256 × 4 = 319,872 bytes of theirs: 675.9 MB in all
    # the rest: 2,208,985,600 − 1,310,195,712 = 898,789,888 weights of 2 bytes, mostly vision tower and vocabulary
    assert bytes_in_four_bits("qwen2-vl-2b", 2) == (
        655_097_856 + 20_471_808 + 319_872,
        1_797_579_776,
    )
    assert sum(bytes_in_four_bits("qwen2-vl-2b", 2)) / 1e6 == pytest.approx(2473.5, abs=0.05)


def test_the_arithmetic_is_that_of_a_loaded_model(tiny):
    """On a CPU the rest has 4 bytes; buffers and the scales' own scales are the difference."""
    assert sum(bytes_in_four_bits("tiny", 4)) / 1e6 == pytest.approx(
        models.weight_megabytes(tiny[0]), rel=1e-3
    )


def test_names_folders_and_hub_ids_are_told_apart(tmp_path):
    assert (
        locate("tiny") == str(ROOT / "data" / "tiny-qwen2-vl")
        and locate("qwen2-vl-2b") == "Qwen/Qwen2-VL-2B-Instruct"
    )
    assert locate("owner/some.name_1") == "owner/some.name_1"
    (tmp_path / "config.json").write_text("{}")
    assert locate(tmp_path) == locate(str(tmp_path)) == str(tmp_path)
    for wrong in ("", ".", "../name", "a/b/c", "owner/na me", "no-such"):
        with pytest.raises(UsageError):
            locate(wrong)


def test_a_preset_is_known_by_each_of_its_names(tmp_path):
    qwen = PRESETS["qwen2-vl-2b"]
    for name in (
        "qwen2-vl-2b",
        "Qwen/Qwen2-VL-2B-Instruct",
        "unsloth/Qwen2-VL-2B-Instruct-bnb-4bit",
    ):
        assert preset_of(name) is qwen
    assert preset_of(ROOT / "data" / "tiny-qwen2-vl") is preset_of("tiny") is PRESETS["tiny"]
    assert preset_of("owner/other") is None and preset_of(tmp_path) is None
    for preset in PRESETS.values():  # no two presets are the same checkpoint
        assert (
            sum(preset.location in (other.location, other.four_bit) for other in PRESETS.values())
            == 1
        )


def test_a_near_miss_gets_a_suggestion():
    with pytest.raises(UsageError, match="Did you mean 'qwen2-vl-2b'"):
        presets.locate("qwen2vl-2b")


def test_a_preset_may_be_loaded_as_it_is():
    """In 4 bits the bias of `smollm2-scenes` would be rounded away, and nothing be left to learn."""
    assert not in_four_bits("smollm2-scenes") and in_four_bits("smollm2-scenes", True)
    assert (
        in_four_bits("tiny") and in_four_bits("somebody/other") and not in_four_bits("tiny", False)
    )
    assert [name for name in PRESETS if not in_four_bits(name)] == ["smollm2-scenes"]
