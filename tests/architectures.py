"""Tiny random models of the architectures that the suite loads, built from their config classes."""

import torch
from transformers import (
    AutoProcessor,
    AutoTokenizer,
    CLIPImageProcessor,
    CLIPVisionConfig,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaNextConfig,
    LlavaNextForConditionalGeneration,
    LlavaNextImageProcessor,
    LlavaNextProcessor,
    LlavaProcessor,
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
    Qwen2_5_VLProcessor,
    Qwen2VLConfig,
    Qwen2VLForConditionalGeneration,
    Qwen3VLConfig,
    Qwen3VLForConditionalGeneration,
    Qwen3VLProcessor,
    SmolVLMConfig,
    SmolVLMForConditionalGeneration,
    SmolVLMImageProcessor,
    SmolVLMProcessor,
    SmolVLMVideoProcessor,
)

from helpers.runtime import ROOT

TINY = ROOT / "data" / "tiny-qwen2-vl"
TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{% for c in m['content'] %}"
    "{% if c['type'] == 'image' %}<image>{% else %}{{ c['text'] }}{% endif %}{% endfor %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
TEXT = {
    "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 3, "num_attention_heads": 4, "num_key_value_heads": 2,
    "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0},
}  # fmt: skip
M_ROPE = TEXT | {"rope_parameters": {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [1, 1, 2]}}


def _tokenizer(*extra: str):
    tokenizer = AutoTokenizer.from_pretrained(TINY)
    tokenizer.add_tokens(list(extra), special_tokens=True)
    return tokenizer


def _qwen(config_class, model_class, vision, **text):
    processor = AutoProcessor.from_pretrained(TINY)
    token = {name: processor.tokenizer.convert_tokens_to_ids(mark) for name, mark in (
        ("image_token_id", "<|image_pad|>"), ("video_token_id", "<|video_pad|>"),
        ("vision_start_token_id", "<|vision_start|>"), ("vision_end_token_id", "<|vision_end|>"),
    )}  # fmt: skip
    text = M_ROPE | text | {"vocab_size": len(processor.tokenizer)}
    return model_class(config_class(text_config=text, vision_config=vision, **token)), processor


def qwen2_vl():
    vision = {"depth": 2, "embed_dim": 32, "num_heads": 2, "hidden_size": 32, "patch_size": 14, "mlp_ratio": 2}
    return _qwen(Qwen2VLConfig, Qwen2VLForConditionalGeneration, vision)


def qwen2_5_vl():
    vision = {
        "depth": 2, "hidden_size": 32, "num_heads": 2, "out_hidden_size": 32, "intermediate_size": 64, "patch_size": 14,
        "fullatt_block_indexes": [1], "window_size": 56,
    }  # fmt: skip
    model, processor = _qwen(Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration, vision)
    parts = {"image_processor": processor.image_processor, "video_processor": processor.video_processor}
    return model, Qwen2_5_VLProcessor(tokenizer=processor.tokenizer, chat_template=processor.chat_template, **parts)


def qwen3_vl():
    vision = {
        "depth": 2, "hidden_size": 32, "num_heads": 2, "out_hidden_size": 32, "intermediate_size": 64, "patch_size": 14,
        "num_position_embeddings": 64, "deepstack_visual_indexes": [0, 1],
    }  # fmt: skip
    model, processor = _qwen(Qwen3VLConfig, Qwen3VLForConditionalGeneration, vision, head_dim=8)
    parts = {"image_processor": processor.image_processor, "video_processor": processor.video_processor}
    return model, Qwen3VLProcessor(tokenizer=processor.tokenizer, chat_template=processor.chat_template, **parts)


def _clip():
    return CLIPVisionConfig(
        hidden_size=32, intermediate_size=64, num_hidden_layers=3, num_attention_heads=2, image_size=56, patch_size=14
    )


def llava():
    tokenizer = _tokenizer("<image>")
    image = tokenizer.convert_tokens_to_ids("<image>")
    text = LlamaConfig(**TEXT, vocab_size=len(tokenizer))
    model = LlavaForConditionalGeneration(LlavaConfig(vision_config=_clip(), text_config=text, image_token_index=image))
    size = {"size": {"shortest_edge": 56}, "crop_size": {"height": 56, "width": 56}}
    return model, LlavaProcessor(
        CLIPImageProcessor(**size), tokenizer, patch_size=14, vision_feature_select_strategy="default",
        num_additional_image_tokens=1, chat_template=TEMPLATE,
    )  # fmt: skip


def llava_next():
    tokenizer = _tokenizer("<image>")
    image = tokenizer.convert_tokens_to_ids("<image>")
    pinpoints = [[56, 112], [112, 56], [112, 112]]
    text = LlamaConfig(**TEXT, vocab_size=len(tokenizer))
    config = LlavaNextConfig(
        vision_config=_clip(), text_config=text, image_token_index=image, image_grid_pinpoints=pinpoints
    )
    size = {"size": {"shortest_edge": 56}, "crop_size": {"height": 56, "width": 56}}
    return LlavaNextForConditionalGeneration(config), LlavaNextProcessor(
        LlavaNextImageProcessor(**size, image_grid_pinpoints=pinpoints), tokenizer, patch_size=14,
        vision_feature_select_strategy="default", num_additional_image_tokens=1, chat_template=TEMPLATE,
    )  # fmt: skip


def smolvlm():
    marks = [
        "<image>",
        "<fake_token_around_image>",
        "<global-img>",
        *(f"<row_{r}_col_{c}>" for r in (1, 2) for c in (1, 2)),
    ]
    tokenizer = _tokenizer(*marks)
    for name, mark in (("image", "<image>"), ("fake_image", marks[1]), ("global_image", marks[2])):
        setattr(tokenizer, f"{name}_token", mark)
        setattr(tokenizer, f"{name}_token_id", tokenizer.convert_tokens_to_ids(mark))
    vision = {
        "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2, "image_size": 56,
        "patch_size": 14,
    }  # fmt: skip
    text = {"model_type": "llama", **TEXT, "vocab_size": len(tokenizer), "pad_token_id": tokenizer.pad_token_id}
    config = SmolVLMConfig(
        vision_config=vision,
        text_config=text,
        scale_factor=2,
        image_token_id=tokenizer.convert_tokens_to_ids("<image>"),
    )
    images = SmolVLMImageProcessor(size={"longest_edge": 112}, max_image_size={"longest_edge": 56})
    processor = SmolVLMProcessor(images, tokenizer, SmolVLMVideoProcessor(), image_seq_len=4, chat_template=TEMPLATE)
    return SmolVLMForConditionalGeneration(config), processor


BUILDERS = {f.__name__: f for f in (qwen2_vl, qwen2_5_vl, qwen3_vl, llava, llava_next, smolvlm)}


def build(name: str):
    """(model in eval mode, processor), random weights from seed 0."""
    torch.manual_seed(0)
    model, processor = BUILDERS[name]()
    model.generation_config.eos_token_id = processor.tokenizer.eos_token_id
    return model.eval().requires_grad_(False), processor
