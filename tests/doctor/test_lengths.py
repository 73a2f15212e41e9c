"""How many visual tokens an image costs, at the sizes of the real checkpoints, with the real
processor classes.

Expected numbers are worked by hand; what a preset's own limit (max_pixels, longest_edge) makes of a
photo is among them.
"""

import pytest
from architectures import build
from PIL import Image
from preference_files import QUESTION, row
from transformers import (
    CLIPImageProcessor,
    Idefics3ImageProcessor,
    LlavaNextImageProcessor,
    Qwen2VLImageProcessor,
)

from helpers.data.record import PreferenceRecord
from helpers.doctor.lengths import image_tokens, text_tokens
from helpers.models.encoded_prompts import encode_prompts
from helpers.models.presets import PRESETS
from helpers.models.prompts import count_image_tokens, encode, image_token_id, render, tokenize
from helpers.models.shared_prefix import pack_separately


def qwen(name, patch_size, longest_edge, shortest_edge=56 * 56):
    _, processor = build(name)
    size = {"shortest_edge": shortest_edge, "longest_edge": longest_edge}
    processor.image_processor = Qwen2VLImageProcessor(patch_size=patch_size, size=size)
    return processor


def llava(name, images, **more):
    _, processor = build(name)
    size = {"size": {"shortest_edge": 336}, "crop_size": {"height": 336, "width": 336}}
    processor.image_processor = images(**size, **more)
    return processor


def smolvlm(tile, longest_edge, tokens):
    _, processor = build("idefics3")
    size = {"size": {"longest_edge": longest_edge}, "max_image_size": {"longest_edge": tile}}
    processor.image_processor, processor.image_seq_len = Idefics3ImageProcessor(**size), tokens
    return processor


def llava_next():
    pinpoints = PRESETS["llava-next-llama3-8b"].config["image_grid_pinpoints"]
    return llava("llava_next", LlavaNextImageProcessor, image_grid_pinpoints=pinpoints)


# limits of the presets
PIXELS_2 = PRESETS["qwen2-vl-2b"].max_pixels
PIXELS_3 = PRESETS["qwen3-vl-2b"].max_pixels
SMOL_EDGE = PRESETS["smolvlm-256m"].longest_edge
SMOL_2B_EDGE = PRESETS["smolvlm-2b"].longest_edge

CASES = {
    # Qwen2-VL, Qwen2.5-VL: sides to the nearest multiple of 28 = 14 × 2, a token for 28 × 28 pixels
    "qwen2-vl 448×448": (lambda: qwen("qwen2_vl", 14, 12845056), (448, 448), 16 * 16),
    # 640 / 28 = 22.9 → 23, 480 / 28 = 17.1 → 17
    "qwen2-vl 640×480": (lambda: qwen("qwen2_vl", 14, 12845056), (640, 480), 23 * 17),
    "qwen2.5-vl 640×480": (lambda: qwen("qwen2_5_vl", 14, 12845056), (640, 480), 23 * 17),
    # under 56² = 3,136 pixels it is enlarged to 2 × 2 tokens
    "qwen2-vl 28×28": (lambda: qwen("qwen2_vl", 14, 12845056), (28, 28), 4),
    # 200,704 = 256 × 784: at most 256 tokens. 4:3 → √(200,704 × 4/3) = 517.3 by 388.0, down to 18 ×
    # 28 and 13 × 28
    "qwen2-vl preset 448×448": (lambda: qwen("qwen2_vl", 14, PIXELS_2), (448, 448), 256),
    "qwen2-vl preset 2000×2000": (lambda: qwen("qwen2_vl", 14, PIXELS_2), (2000, 2000), 256),
    "qwen2-vl preset 640×480": (lambda: qwen("qwen2_vl", 14, PIXELS_2), (640, 480), 18 * 13),
    "qwen2-vl preset 4000×3000": (lambda: qwen("qwen2_vl", 14, PIXELS_2), (4000, 3000), 18 * 13),
    # Qwen3-VL: patches of 16, a token for 32 × 32 pixels, at least 256² = 65,536 pixels
    "qwen3-vl 448×448": (lambda: qwen("qwen3_vl", 16, 16777216, 65536), (448, 448), 14 * 14),
    "qwen3-vl 640×480": (lambda: qwen("qwen3_vl", 16, 16777216, 65536), (640, 480), 20 * 15),
    "qwen3-vl 100×100": (lambda: qwen("qwen3_vl", 16, 16777216, 65536), (100, 100), 8 * 8),
    # 262,144 = 256 × 1,024. 4:3 → √(262,144 × 4/3) = 591.2 by 443.4, down to 18 × 32 and 13 × 32
    "qwen3-vl preset 2000×2000": (lambda: qwen("qwen3_vl", 16, PIXELS_3, 65536), (2000, 2000), 256),
    "qwen3-vl preset 640×480": (lambda: qwen("qwen3_vl", 16, PIXELS_3, 65536), (640, 480), 18 * 13),
    # LLaVA-1.5: cut to 336 × 336, patches of 14, the class token left out: 24 × 24
    "llava 640×480": (lambda: llava("llava", CLIPImageProcessor), (640, 480), 576),
    "llava 100×900": (lambda: llava("llava", CLIPImageProcessor), (100, 900), 576),
    # LLaVA-NeXT: 576 of the whole at 336², then the best of five canvases, its padding taken off
    # again, and a token at the
    # end of each of its rows. 336²: canvas 672 × 336 of 48 × 24 patches, as none wastes less; 24 ×
    # 24 are the image
    "llava-next 336×336": (llava_next, (336, 336), 576 + 24 * 24 + 24),
    # canvas 672²: 48 × 48 patches, all image
    "llava-next 672×672": (llava_next, (672, 672), 576 + 48 * 48 + 48),
    # canvas 672 × 336, of the same shape: 48 × 24 patches, all image
    "llava-next 1000×500": (llava_next, (1000, 500), 576 + 48 * 24 + 24),
    # canvas 672²: 48 patches wide, 480 × 48 / 640 = 36 high
    "llava-next 640×480": (llava_next, (640, 480), 576 + 48 * 36 + 36),
    # SmolVLM-256M and -500M: views of 512 × 512, (512 / 16)² / 4² = 64 tokens each. The longer side
    # becomes longest_edge;
    # what fits into one view is one view, and there is no other of the whole
    "smolvlm-256m preset 640×480": (lambda: smolvlm(512, SMOL_EDGE, 64), (640, 480), 64),
    "smolvlm-256m preset 300×200": (lambda: smolvlm(512, SMOL_EDGE, 64), (300, 200), 64),
    # 2048²: 4 × 4 tiles and the whole; 640 × 480 → 2048 × 1536: 4 × 3 tiles and the whole
    "smolvlm-256m 2048×2048": (lambda: smolvlm(512, 2048, 64), (2048, 2048), 17 * 64),
    "smolvlm-256m 640×480": (lambda: smolvlm(512, 2048, 64), (640, 480), 13 * 64),
    # SmolVLM-Instruct: views of 384 × 384, patches of 14: 27 × 27 / 3² = 81 tokens each
    "smolvlm-2b preset 640×480": (lambda: smolvlm(384, SMOL_2B_EDGE, 81), (640, 480), 81),
    "smolvlm-2b 1000×1000": (lambda: smolvlm(384, 1536, 81), (1000, 1000), 17 * 81),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_visual_tokens(case):
    make, size, expected = CASES[case]
    processor = make()
    assert count_image_tokens(
        processor, encode(processor, ["How many?"], [Image.new("RGB", size)])
    ) == [expected]
    assert image_tokens(processor, size) == expected


@pytest.mark.parametrize(("tile", "patch", "scale", "tokens"), [(512, 16, 4, 64), (384, 14, 3, 81)])
def test_tokens_of_a_view_are_those_that_the_config_gives(tile, patch, scale, tokens):
    """`image_seq_len` stands in a file of its own; it must be what the vision tower makes."""
    preset = PRESETS["smolvlm-256m" if tile == 512 else "smolvlm-2b"]
    assert (
        preset.vision["image_size"],
        preset.vision["patch_size"],
        preset.config["scale_factor"],
    ) == (
        tile,
        patch,
        scale,
    )
    assert (tile // patch) ** 2 // scale**2 == tokens


def test_two_images_of_different_size_in_one_prompt_and_in_two():
    processor = qwen("qwen2_vl", 14, PIXELS_2)
    images = [Image.new("RGB", (448, 448)), Image.new("RGB", (640, 480))]
    assert count_image_tokens(processor, encode(processor, ["Q", "Q"], images)) == [256, 234]
    together = tokenize(processor, [render(processor, "Q", images=2)], [images])
    assert count_image_tokens(processor, together) == [256 + 234]
    assert count_image_tokens(
        processor, tokenize(processor, [render(processor, "Q", images=0)], [[]])
    ) == [0]
    assert image_token_id(processor) == processor.tokenizer.convert_tokens_to_ids("<|image_pad|>")


def test_tokens_are_those_that_the_model_gets(processor):
    record = PreferenceRecord.model_validate(row(1))
    for size in [(30, 20), (112, 112), (300, 40), (1000, 700), (28, 29)]:
        image = Image.new("RGB", size)
        prompt = encode_prompts(processor, [render(processor, QUESTION)], [[image]])
        packed = pack_separately(processor, prompt, [[record.answers[0].text]])
        assert count_image_tokens(processor, packed.inputs) == [image_tokens(processor, size)]
        assert packed.inputs["input_ids"].shape[1] == image_tokens(processor, size) + text_tokens(
            processor, record
        )


def test_other_processors_are_asked_with_a_blank_image(processor, monkeypatch):
    expected = image_tokens(processor, (100, 60))
    monkeypatch.delattr(type(processor.image_processor), "get_number_of_image_patches")
    assert image_tokens(processor, (100, 60)) == expected > 1


def test_a_conversation_has_its_images_in_the_first_question(processor):
    roles = ["system", "user", "assistant", "user"]
    prompt = [{"role": role, "content": "Count the cars."} for role in roles]
    once = PreferenceRecord.model_validate(row(1, prompt=prompt))
    twice = PreferenceRecord.model_validate(row(1, prompt=prompt, images=["a.png", "b.png"]))
    marks = [f"<|im_start|>{role}\nCount the cars.<|im_end|>\n" for role in roles]
    image = "<|vision_start|><|vision_end|>"
    marks[1] = marks[1].replace("\n", f"\n{image}", 1)
    text = "".join(marks) + "<|im_start|>assistant\n" + "There are 11 cars.<|im_end|>"
    assert text_tokens(processor, once) == len(processor.tokenizer(text)["input_ids"])
    assert text_tokens(processor, twice) == text_tokens(processor, once) + 2
