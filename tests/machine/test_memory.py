"""The arithmetic of memory against processors, loaded models, autograd and an allocation profiler, and by hand."""

import gc
import random
from collections import Counter
from dataclasses import replace

import pytest
import torch
from architectures import build
from peft import get_peft_model
from PIL import Image
from torch.nn.functional import linear
from torch.profiler import ProfilerActivity, profile
from transformers import (
    AutoProcessor,
    Idefics3ImageProcessor,
    Qwen2VLConfig,
    Qwen2VLForConditionalGeneration,
)
from transformers.modeling_outputs import CausalLMOutput
from transformers.models.qwen2_vl.image_processing_qwen2_vl import (
    Qwen2VLImageProcessor,
    smart_resize,
)
from trl.trainer.utils import entropy_from_logits, selective_log_softmax_and_entropy

from helpers import losses, models
from helpers.cli import main
from helpers.config import (
    ATTENTION,
    LoraSettings,
    PPOSettings,
    dpo_preset,
    ppo_preset,
    reward_preset,
    sft_preset,
)
from helpers.files import UsageError
from helpers.machine import memory
from helpers.machine.memory import (
    CARD_GB,
    LOGIT_BYTES,
    USABLE_SHARE,
    dpo_logit_bytes,
    forecast_memory,
    largest_batch,
    layer_activation_bytes,
    phases,
    sft_logit_bytes,
)
from helpers.machine.workload import (
    STAGES,
    GenerationSettings,
    Workload,
    default_settings,
    set_batch,
    smallest_settings,
)
from helpers.models import caches as image_features, loading, presets
from helpers.models.caches import ImageFeatures
from helpers.models.encoded_prompts import encode_prompts
from helpers.models.image_sizes import (
    idefics_tiles,
    llava_next_grid,
    qwen_grid,
    visual_tokens,
)
from helpers.models.presets import PRESETS
from helpers.models.prompts import render
from helpers.models.shapes import lora_weights, shapes_of, weight_bytes
from helpers.models.shared_prefix import answer_states, pack
from helpers.training.sft import answer_loss

SIZES = [
    (448, 448),
    (640, 480),
    (480, 640),
    (112, 112),
    (30, 31),
    (1000, 667),
    (4000, 3000),
    (333, 1999),
]
SIZES += [
    (random.Random(k).randint(20, 2500), random.Random(-k - 1).randint(20, 2500)) for k in range(60)
]

QWEN = Workload("qwen2-vl-2b")


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("qwen2-vl-2b", 18 * 13),  # 200,704 pixels in 4 : 3 are 517 × 388, down to multiples of 28
        ("qwen2.5-vl-7b", 18 * 13),
        ("qwen3-vl-4b", 18 * 13),  # 262,144 are 591 × 443, down to multiples of 32
        ("llava-1.5-7b", 24 * 24),
        (
            "llava-next-llama3-8b",
            24 * 24 + 48 * 36 + 36,
        ),  # 672²: 48 tokens wide, 36 high, one at each row's end
        ("smolvlm-256m", 8 * 8),  # one tile of 512²: (512 / 16 / 4)²
        ("smolvlm-2b", 9 * 9),  # one of 384², patches of 14: (27 / 3)²
        ("qwen3.5-2b", 18 * 13),  # as Qwen3-VL
        ("gemma-3-4b", 256),
        # 280 tokens of 48² pixels in 4 : 3 are 927 × 696, down to 19 × 14
        ("gemma-4-e2b", 19 * 14),
        ("lfm2.5-vl-450m", 18 * 13),  # 256 tokens of 32² in 4 : 3 are 591 × 443
        ("internvl3-2b", 16 * 16),  # one tile of 448²: (448 / 14 / 2)²
    ],
)
def test_visual_tokens_of_a_photo_of_640_by_480(name, expected):
    assert visual_tokens(name, 640, 480) == expected


@pytest.mark.parametrize(
    ("side", "least", "most"), [(28, 3136, 200704), (28, 3136, 12845056), (32, 65536, 262144)]
)
def test_qwen_grids_are_the_processors(side, least, most):
    for width, height in SIZES:
        resized = smart_resize(height, width, side, least, most)
        assert qwen_grid(width, height, side, least, most) == (
            resized[1] // side,
            resized[0] // side,
        )
    processor = Qwen2VLImageProcessor(
        patch_size=side // 2, size={"shortest_edge": least, "longest_edge": most}
    )
    _, rows, columns = processor(Image.new("RGB", (333, 199)), return_tensors="pt")[
        "image_grid_thw"
    ][0].tolist()
    assert qwen_grid(333, 199, side, least, most) == (columns // 2, rows // 2)


def test_llava_next_grids_are_the_processors():
    _, processor = build("llava_next")
    pinpoints = PRESETS["llava-next-llama3-8b"].config["image_grid_pinpoints"]
    processor.image_processor.image_grid_pinpoints, processor.patch_size = pinpoints, 14
    for width, height in SIZES:
        tokens, tiles = llava_next_grid(width, height, pinpoints, 336, 14)
        assert (
            tokens == processor._get_number_of_features(height, width, 336, 336) - 1
        )  # without the class token
        assert tiles in (3, 4, 5)  # the whole, and 2, 3 or 4 of it


@pytest.mark.parametrize(
    ("tile", "edge"), [(512, 512), (512, 2048), (384, 384), (384, 1536), (364, 1456)]
)
def test_tiles_are_the_processors(tile, edge):
    processor = Idefics3ImageProcessor(
        size={"longest_edge": edge}, max_image_size={"longest_edge": tile}
    )
    for width, height in SIZES:
        number, _, _ = processor.get_number_of_image_patches(height, width, {})
        assert idefics_tiles(width, height, edge, tile) == max(1, number), (width, height)


def test_a_size_that_is_none_and_shapes_that_are_on_the_hub_are_one_line():
    with pytest.raises(UsageError, match="0 × 448 pixels: give both sides"):
        visual_tokens("llava-1.5-7b", 0, 448)
    with pytest.raises(UsageError, match="sides of over 200 : 1"):
        visual_tokens("qwen2-vl-2b", 9000, 20)
    with pytest.raises(UsageError, match="nobody/model: its shapes are on the hub"):
        forecast_memory(Workload("nobody/model"), dpo_preset("t4"))
    with pytest.raises(
        UsageError, match="unknown stage 'grpo': choose from load, sft, dpo, reward, ppo"
    ):
        forecast_memory(Workload("tiny"), default_settings("grpo"))


def test_weights_in_4_bits_are_those_of_the_loaded_model(tiny):
    expected = models.weight_megabytes(tiny[0])
    assert weight_bytes(shapes_of("tiny"), compute_bytes=4) / 1e6 == pytest.approx(
        expected, rel=0.02
    )
    full, _ = models.load_model("tiny", four_bit=False)
    size = weight_bytes(shapes_of("tiny"), four_bit=False, compute_bytes=4) / 1e6
    assert size == pytest.approx(models.weight_megabytes(full), rel=0.001)


def test_weights_of_qwen2_vl_2b_by_hand():
    model = shapes_of("qwen2-vl-2b")
    # q and o 1536², k and v 1536 × 256, gate, up, down 1536 × 8960; 28 layers
    assert model.quantised == 28 * (2 * 1536**2 + 2 * 1536 * 256 + 3 * 1536 * 8960) == 1_310_195_712
    # 0.5 byte and 0.127 bits a weight; 2 bytes for the 898,789,888 others
    by_hand = 1_310_195_712 * (0.5 + 0.127 / 8) + 2 * (2_208_985_600 - 1_310_195_712)
    assert weight_bytes(model) == pytest.approx(by_hand, rel=1e-4)


@pytest.mark.parametrize(
    "lora", [LoraSettings(), LoraSettings(r=4, target_modules=ATTENTION), LoraSettings(vision=True)]
)
def test_lora_weights_are_those_that_peft_trains(lora):
    model = presets.model_without_weights("tiny")
    trained = get_peft_model(model, models.lora_config(model, lora)).get_nb_trainable_parameters()[
        0
    ]
    assert lora_weights(shapes_of("tiny"), lora) == trained


def test_lora_of_the_source_projects():
    # r · (in + out): 8 × (3072 + 1792 + 1792 + 3072) × 28
    small = LoraSettings(r=8, target_modules=ATTENTION)
    assert (
        lora_weights(shapes_of("qwen2-vl-2b"), small)
        == 8 * (3072 + 1792 + 1792 + 3072) * 28
        == 2_179_072
    )
    assert lora_weights(shapes_of("llava-next-llama3-8b"), LoraSettings(r=8)) == 20_971_520


# --- a model of middling size: hidden 256, 4 layers of 8 heads, MLP 1024 ---


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Its checkpoint, with random weights."""
    path, processor = (
        tmp_path_factory.mktemp("middling"),
        AutoProcessor.from_pretrained(presets.locate("tiny")),
    )
    processor.image_processor.size["longest_edge"] = 200704
    marks = {
        "image_token_id": "image_pad",
        "vision_start_token_id": "vision_start",
        "vision_end_token_id": "vision_end",
    }
    tokens = {
        key: processor.tokenizer.convert_tokens_to_ids(f"<|{mark}|>") for key, mark in marks.items()
    }
    text = {
        "hidden_size": 256, "intermediate_size": 1024, "num_hidden_layers": 4, "num_attention_heads": 8,
        "num_key_value_heads": 2, "vocab_size": len(processor.tokenizer),
        "rope_parameters": {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [4, 6, 6]},
    }  # fmt: skip
    vision = {
        "depth": 2,
        "embed_dim": 64,
        "num_heads": 2,
        "hidden_size": 256,
        "patch_size": 14,
        "mlp_ratio": 2,
    }
    torch.manual_seed(0)
    Qwen2VLForConditionalGeneration(
        Qwen2VLConfig(text_config=text, vision_config=vision, **tokens)
    ).save_pretrained(path)
    processor.save_pretrained(path)
    return str(path)


@pytest.fixture
def half(monkeypatch):
    """Load and compute in 16 bits, as on a GPU, where autocast is on."""
    for module in (loading, image_features):
        monkeypatch.setattr(module, "compute_dtype", lambda: torch.bfloat16)
    real = (
        torch.is_autocast_enabled
    )  # without an argument it means CUDA's, for which adapters on 4-bit layers ask
    monkeypatch.setattr(
        torch, "is_autocast_enabled", lambda *place: real(*place) if place else True
    )


def packed_rows(folder, lora, four_bit):
    """A model in training mode, and 2 rows of image, prompt and 2 answers."""
    model, processor = models.load_model(folder, four_bit=four_bit)
    model = models.add_adapter(model, lora).train()
    images = [[Image.effect_noise((224, 224), 80).convert("RGB")] for _ in range(2)]
    prompts = [render(processor, "How many cars are there?")] * 2
    answers = [["there are many cars and many cars and 1"] * 2] * 2
    encoded = encode_prompts(processor, prompts, images, ImageFeatures(model, processor))
    return model, pack(model, processor, encoded, answers)


def kept_bytes(model, packed, half):
    """Bytes that autograd keeps of a forward, each storage once, without weights."""
    weights = {t.untyped_storage().data_ptr() for t in [*model.parameters(), *model.buffers()]}
    kept = {}

    def note(tensor):
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            kept[storage.data_ptr()] = storage
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        states = forward(model, packed, half)
    assert states.requires_grad
    return sum(storage.nbytes() for storage in kept.values())


def forward(model, packed, half):
    with torch.autocast("cpu", torch.bfloat16, enabled=half):
        return answer_states(model, packed)


def peak_bytes(call):
    """Most bytes that a call had allocated at a time."""
    gc.collect()  # what earlier tests have left would count as freed
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        call()
    events = [
        event for event in profiler.profiler.kineto_results.events() if event.name() == "[memory]"
    ]
    live = peak = 0
    for event in sorted(events, key=lambda event: event.start_ns()):
        live += event.nbytes()
        peak = max(peak, live)
    return peak


def expected(folder, lora, packed, *, checkpointing, four_bit=True, compute_bytes=4):
    """The forecast of activations and mask for those rows, and of the adapter's gradients."""
    length = int(packed.mask.sum(1).max())
    prompt = packed.inputs["input_ids"].shape[1] - 2 * length - visual_tokens(folder, 224, 224)
    settings = replace(dpo_preset("t4"), lora=lora, gradient_checkpointing=checkpointing)
    workload = Workload(
        folder,
        224,
        224,
        prompt_tokens=prompt,
        answer_tokens=length,
        four_bit=four_bit,
        compute_bytes=compute_bytes,
    )
    found = phases(workload, settings)[1]
    return 1e9 * (found.activations + found.mask), 4 * lora_weights(shapes_of(folder), lora)


DROPOUT = LoraSettings(r=8, dropout=0.05, target_modules=ATTENTION)


@pytest.mark.parametrize(
    ("lora", "four_bit"), [(LoraSettings(), True), (DROPOUT, True), (LoraSettings(), False)]
)
def test_activations_are_what_autograd_keeps(folder, lora, four_bit):
    model, packed = packed_rows(folder, lora, four_bit)
    found, _ = expected(folder, lora, packed, checkpointing=False, four_bit=four_bit)
    assert found == pytest.approx(kept_bytes(model, packed, False), rel=0.05)


@pytest.mark.parametrize(
    ("lora", "four_bit"), [(LoraSettings(), True), (DROPOUT, True), (LoraSettings(), False)]
)
def test_activations_in_16_bits_are_what_autograd_keeps(folder, half, lora, four_bit):
    model, packed = packed_rows(folder, lora, four_bit)
    found, _ = expected(
        folder, lora, packed, checkpointing=False, four_bit=four_bit, compute_bytes=2
    )
    assert found == pytest.approx(kept_bytes(model, packed, True), rel=0.05)


@pytest.mark.heavy(reason="passes of models of two seconds")
@pytest.mark.parametrize("checkpointing", [False, True])
def test_activations_are_the_peak_of_forward_and_backward(folder, checkpointing):
    model, packed = packed_rows(folder, LoraSettings(), True)
    if checkpointing:
        model.gradient_checkpointing_enable({"use_reentrant": False})
    forward(
        model, packed, False
    ).sum().backward()  # the first pass also makes gradients, and what kernels keep
    activations, gradients = expected(folder, LoraSettings(), packed, checkpointing=checkpointing)
    model.zero_grad()
    peak = peak_bytes(lambda: forward(model, packed, False).sum().backward())
    assert activations + gradients == pytest.approx(peak, rel=0.15)


def test_what_a_layer_keeps_by_hand():
    model = shapes_of("qwen2-vl-2b")
    # two norms of 1536 in fp32; the normed input of q, k, v and of gate, up; gate, its SiLU, up and their product of 8960;
    # q, k, v and result of 12 × 128; 7 × r 16; 12 heads in fp32
    by_hand = 2 * 4 * 1536 + 2 * (2 * 1536 + 4 * 8960 + 4 * 1536 + 7 * 16) + 4 * 12
    assert layer_activation_bytes(model, LoraSettings()) == by_hand == 102_672
    # r 8 on q, k, v, o with dropout: a copy of 2 bytes and a mask of 1 for each input; nothing of the MLP's input
    small = LoraSettings(r=8, dropout=0.05, target_modules=ATTENTION)
    by_hand = 2 * 4 * 1536 + 4 * 1536 * 3 + 2 * (3 * 8960 + 4 * 1536 + 4 * 8) + 4 * 12
    assert layer_activation_bytes(model, small) == by_hand


def test_logits_by_hand():
    # 2 pairs × 2 answers × 20 tokens × 151,936 × 5 copies in fp32
    found = forecast_memory(QWEN, dpo_preset("t4"))
    assert (
        found.logits
        == pytest.approx(2 * 2 * 20 * 151936 * 20 / 1e9)
        == pytest.approx(0.243, abs=1e-3)
    )
    # 16 pairs: 640 tokens, of which 128 at a time have three more copies: 8 + 12 / 5 < 12 bytes
    many = forecast_memory(QWEN, replace(dpo_preset("t4"), batch_size=16))
    assert many.logits == pytest.approx(640 * 151936 * 12 / 1e9)
    assert phases(QWEN, reward_preset("t4"))[1].logits == 0
    # SFT: 2 answers × 20 tokens, with 6 copies of each logit; and one answer less in a row
    alone = forecast_memory(QWEN, sft_preset("t4"))
    assert alone.logits == pytest.approx(2 * 20 * 151936 * 24 / 1e9)
    assert alone.activations < found.activations and alone.adapter == found.adapter
    # mDPO shows the chosen answer to a spoilt image once more: 3 answers, and twice the rows
    spoilt = forecast_memory(QWEN, dpo_preset("mdpo"))
    assert spoilt.logits == pytest.approx(1.5 * found.logits) and spoilt.features == pytest.approx(
        2 * found.features
    )


def logits_like_dpo(states, head, ids):
    logits = (
        linear(states, head)
        .flatten(0, 1)
        .index_select(0, torch.arange(ids.numel()))
        .unflatten(0, ids.shape)
    )
    return selective_log_softmax_and_entropy(
        logits[:, :-1], ids[:, 1:], entropy_requires_grad=False, row_mask=torch.ones_like(ids[:, 1:])
    )  # fmt: skip


def logits_like_sft(states, head, ids):
    """Of `training.answer_loss`, and the figures that TRL logs beside it."""
    logits = linear(states, head).flatten(0, 1).index_select(0, torch.arange(ids.numel()))
    logits = logits.unflatten(0, ids.shape)
    loss = answer_loss(CausalLMOutput(logits=logits), ids)
    with torch.no_grad():
        entropy_from_logits(logits[..., :-1, :])
        logits[..., :-1, :].argmax(-1)
    return [loss]


def logits_like_ppo(states, head, ids):
    logits = linear(states, head).float() / 1.0
    logits[..., [0]] = -torch.inf
    logps = torch.log_softmax(logits, -1).gather(-1, ids[..., None])
    return logps, losses.entropy(logits)


@pytest.mark.parametrize(
    ("call", "grad", "rows", "expected"),
    [
        (logits_like_dpo, True, 2, dpo_logit_bytes(2 * 41)),
        (logits_like_dpo, True, 8, dpo_logit_bytes(8 * 41)),
        (logits_like_sft, True, 2, sft_logit_bytes(2 * 41)),
        (logits_like_sft, True, 8, sft_logit_bytes(8 * 41)),
        (logits_like_ppo, True, 4, LOGIT_BYTES["ppo"]),
        (logits_like_ppo, False, 4, LOGIT_BYTES["look"]),
    ],
)
def test_bytes_a_logit_are_those_that_the_losses_allocate(call, grad, rows, expected):
    ids, vocab = torch.randint(1, 9000, (rows, 41)), 9000
    states, head = torch.randn(rows, 41, 16, requires_grad=grad), torch.randn(vocab, 16)

    def step():
        logps = call(states, head, ids)[0]
        if grad:
            logps.sum().backward()

    assert peak_bytes(step) / (ids.numel() * vocab) == pytest.approx(expected, rel=0.1)


def test_the_phases_of_ppo_by_hand():
    encoding, sampling, looking, training = phases(QWEN, ppo_preset("t4", critic_layers=3))
    # 8 × 4 answers after 256 + 60 + 20 tokens; 2 × 256 numbers in 28 layers and one more, and one layer spread to 2 × 1536
    assert sampling.cache * 1e9 == pytest.approx(32 * 336 * 2 * (2 * 256 * 29 + 2 * 1536))
    # all 8 × 4 × 20 tokens at once without gradients, 2 × 4 × 20 with
    assert looking.logits * 1e9 == pytest.approx(640 * 151936 * 20)
    assert training.logits * 1e9 == pytest.approx(160 * 151936 * 25)
    # rows of 256 + 60 + 4 × 20 tokens: a mask of bool, and one of 16 bits
    assert training.mask * 1e9 == pytest.approx(
        2 * 396**2 * 3
    ) and looking.mask * 1e9 == pytest.approx(8 * 396**2 * 3)
    # adapters of policy and critic, and a head of 1536² + 1536 × 768
    assert sampling.adapter * 1e9 == pytest.approx(16 * (2 * 18_464_768 + 1536**2 + 1536 * 768))
    assert forecast_memory(QWEN, ppo_preset("t4")).phase == looking.phase and encoding.cache == 0


def test_prompts_that_are_not_looked_at_together_take_no_memory_together():
    whole, sliced, sharded = (
        phases(QWEN, replace(ppo_preset("t4"), **how))
        for how in ({}, {"sampling_batch": 2}, {"shards": 2})
    )
    for part in ("cache", "logits", "features", "activations", "mask"):
        for place in range(3):  # images are encoded, answers are sampled, and looked at
            assert getattr(sliced[place], part) == pytest.approx(getattr(whole[place], part) / 4)
            assert getattr(sharded[place], part) == pytest.approx(getattr(whole[place], part) / 2)
    assert whole[3] == sliced[3] == sharded[3]  # updates


def test_with_checkpointing_the_inputs_of_all_layers_are_kept_and_the_inside_of_one():
    found = phases(QWEN, dpo_preset("t4"))[1]
    # 2 rows of 256 + 60 + 2 × 20 tokens: 28 inputs of 1536, a layer (as above), gradients of 8960 twice, the last norm
    by_hand = 2 * 356 * (28 * 2 * 1536 + 102_672 + 2 * 2 * 8960 + 4 * 1536)
    assert found.activations * 1e9 == pytest.approx(by_hand)


def test_without_checkpointing_every_layer_has_a_mask():
    training = phases(QWEN, reward_preset("t4"))[1]
    assert training.mask * 1e9 == pytest.approx(
        356**2 * (1 + 2 * 28)
    )  # one row of 256 + 60 + 2 × 20
    saved = phases(QWEN, replace(reward_preset("t4"), gradient_checkpointing=True))[1]
    assert saved.mask * 1e9 == pytest.approx(356**2 * (1 + 2))
    fused = phases(QWEN, replace(reward_preset("t4"), gradient_checkpointing=True, head="fusion"))[
        1
    ]
    assert fused.activations == saved.activations  # the inputs of layers are kept anyway


def test_more_of_anything_takes_more():
    dpo, ppo, reward = dpo_preset("t4"), ppo_preset("t4", critic_layers=3), reward_preset("t4")

    def total(settings=dpo, **changes):
        return forecast_memory(Workload("qwen3-vl-2b", **changes), settings).total

    assert total(settings=set_batch(dpo, 4)) > total(settings=dpo)
    assert total(settings=replace(dpo, gradient_checkpointing=False)) > total(settings=dpo)
    assert total(settings=replace(dpo, lora=LoraSettings(vision=True))) > total(settings=dpo)
    assert (
        total(four_bit=False) > total()
        and total(compute_bytes=4) > total()
        and total(answer_tokens=40) > total()
    )
    assert total(width=224, height=224) < total() and total(prompt_tokens=600) > total()
    assert total(reward, answers=4) > total(replace(reward, head="fusion")) > total(reward)
    assert (
        total(ppo)
        > total(replace(ppo, critic_adapter=False))
        > total(replace(ppo, critic_layers=0))
    )
    assert total(replace(ppo, critic_layers=0)) == total(
        replace(ppo, advantages="rloo", critic_adapter=False)
    )


def test_all_images_of_qwen_are_encoded_at_once_and_those_of_llava_one_by_one():
    def encoding(name, size):
        return phases(Workload(name), GenerationSettings(batch_size=size))[0].activations

    assert encoding("qwen2-vl-2b", 8) == pytest.approx(8 * encoding("qwen2-vl-2b", 1))
    assert encoding("llava-1.5-7b", 8) == encoding("llava-1.5-7b", 1)
    # 577 patches × 2 bytes: the hidden states of 24 layers, and of one the residual, its norm and 3 × 4096
    assert encoding("llava-1.5-7b", 1) * 1e9 == pytest.approx(
        577 * 2 * (24 * 1024 + 2 * 1024 + 3 * 4096)
    )


@pytest.mark.parametrize("stage", STAGES)
def test_the_largest_batch_fits_and_one_more_does_not(stage):
    settings = default_settings(stage)
    if stage == "ppo":
        settings = replace(settings, prompts_per_iteration=64, group_size=2)
    gigabytes = forecast_memory(QWEN, set_batch(settings, 20)).total / USABLE_SHARE
    found = largest_batch(QWEN, settings, gigabytes * 1.0001)
    assert found >= 20
    needs = [forecast_memory(QWEN, set_batch(settings, size)).total for size in (found, found + 1)]
    assert needs[0] <= USABLE_SHARE * gigabytes * 1.0001 and (
        needs[1] > USABLE_SHARE * gigabytes * 1.0001 or found == 64
    )


def test_limits_of_the_largest_batch():
    assert largest_batch(Workload("llava-next-llama3-8b"), reward_preset("t4"), 24) is None
    assert largest_batch(Workload("tiny"), dpo_preset("t4"), 80) == memory.LARGEST_BATCH
    assert (
        largest_batch(Workload("tiny"), PPOSettings(prompts_per_iteration=8), 80) == 8
    )  # an iteration has no more


def test_a_model_that_hands_states_on_has_a_row_for_each_answer():
    packed, plain = Workload("qwen3-vl-2b"), Workload("qwen3.5-2b")
    answer = packed.answer_tokens
    assert packed.rows(3, 4) == (3, packed.prompt + 4 * answer)
    assert plain.rows(3, 4) == (12, plain.prompt + answer)
    # the same text, but a prompt for each answer
    kept = [
        memory.forecast_memory(workload, replace(default_settings("dpo"), batch_size=1))
        for workload in (packed, plain)
    ]
    assert kept[1].activations / shapes_of("qwen3.5-2b").layers > (
        kept[0].activations / shapes_of("qwen3-vl-2b").layers
    )


def smallest_card(name):
    """The smallest of `CARD_GB` on which all three trainings fit with the smallest batch; 0: none is needed."""
    trainings = ("dpo", "reward", "ppo")
    needs = [memory.least_memory(Workload(name), default_settings(stage)) for stage in trainings]
    if max(need.total - memory.OVERHEAD_GB for need in needs) < 0.1:
        return 0
    return min(card for card, size in CARD_GB.items() if all(need.fits(size) for need in needs))


@pytest.mark.parametrize("name", PRESETS)
def test_the_card_of_a_preset_is_the_smallest_on_which_all_trainings_fit(name):
    card = PRESETS[name].gpu_gb
    assert smallest_card(name) == card
    if card:
        smaller = [size for other, size in CARD_GB.items() if other < card]
        least = [smallest_settings(default_settings(stage)) for stage in ("dpo", "reward", "ppo")]
        fits = [
            [largest_batch(Workload(name), settings, size) for settings in least]
            for size in (*smaller, CARD_GB[card])
        ]
        assert all(fits[-1]) and all(None in row for row in fits[:-1])


def test_the_table_on_the_command_line(capsys):
    assert (
        main(
            [
                "memory",
                "--model",
                "llava-1.5-7b",
                "--model",
                "tiny",
                "--width",
                "100",
                "--height",
                "900",
            ]
        )
        == 0
    )
    head, *rows = capsys.readouterr().out.splitlines()
    assert head.split() == [
        "model",
        "stage",
        "GB",
        "6",
        "GB",
        "8",
        "GB",
        "15",
        "GB",
        "24",
        "GB",
        "40",
        "GB",
    ]
    assert Counter(row.split()[0] for row in rows) == {"llava-1.5-7b": 5, "tiny": 5}
    cells = next(row.split() for row in rows if "reward" in row)
    saving = replace(reward_preset("t4"), gradient_checkpointing=True)
    assert cells[3:5] == ["–", "3"] and cells[5] == str(
        largest_batch(Workload("llava-1.5-7b", 100, 900), saving, 15.8)
    )
    assert (
        main(["memory", "--model", "tinny"]) == 1
        and "Did you mean 'tiny'?" in capsys.readouterr().err
    )


@pytest.mark.parametrize("stage", STAGES)
def test_a_cpu_holds_its_libraries_and_a_heap_with_holes(stage):
    workload = Workload("tiny", 112, 112, four_bit=False, compute_bytes=4)
    settings = default_settings(stage)
    on_gpu = phases(workload, settings)
    on_cpu = phases(replace(workload, on_gpu=False), settings)
    for gpu, cpu in zip(on_gpu, on_cpu, strict=True):
        assert (cpu.weights, cpu.adapter) == (gpu.weights, gpu.adapter)
        more = memory.CPU_OVERHEAD_GB - memory.OVERHEAD_GB
        assert cpu.overhead == pytest.approx(gpu.overhead + more)
        for part in ("features", "activations", "mask", "logits", "cache"):
            expected = memory.HEAP_FACTOR * getattr(gpu, part)
            assert getattr(cpu, part) == pytest.approx(expected)
