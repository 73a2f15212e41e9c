"""Tiny random models of architectures of 2025 and 2026, as `architectures` makes those before.

Their templates end a turn with a token that may not be the tokenizer's own end (Gemma).
"""

import itertools

import torch
from architectures import M_ROPE, TEXT, TINY, _byte_tokenizer, _turns
from transformers import (
    AutoProcessor,
    Gemma3Config,
    Gemma3ForConditionalGeneration,
    Gemma3ImageProcessor,
    Gemma3Processor,
    Gemma4AudioFeatureExtractor,
    Gemma4Config,
    Gemma4ForConditionalGeneration,
    Gemma4ImageProcessor,
    Gemma4Processor,
    Gemma4VideoProcessor,
    GotOcr2ImageProcessor,
    InternVLConfig,
    InternVLForConditionalGeneration,
    InternVLProcessor,
    InternVLVideoProcessor,
    Lfm2VlConfig,
    Lfm2VlForConditionalGeneration,
    Lfm2VlImageProcessor,
    Lfm2VlProcessor,
    Qwen3_5Config,
    Qwen3_5ForConditionalGeneration,
    Qwen3VLProcessor,
)

THINKING = "<think>\n\n</think>\n\n"  # what stands before an answer without thoughts
CHATML = {
    "role": "<|im_start|>{{ m.role }}{{ '\n' }}",
    "text": "{{ c.text }}",
    "end": "<|im_end|>{{ '\n' }}",
    "prompt": "<|im_start|>assistant{{ '\n' }}",
}
GEMMA_ROLE = "{{ 'model' if m.role == 'assistant' else m.role }}{{ '\n' }}"
TEMPLATES = {
    "qwen3_5": _turns(
        role="<|im_start|>{{ m.role }}{{ '\n' }}"
        "{% if m.role == 'assistant' %}" + THINKING + "{% endif %}",
        image="<|vision_start|><|image_pad|><|vision_end|>",
        text="{{ c.text }}",
        end="<|im_end|>{{ '\n' }}",
        prompt="<|im_start|>assistant{{ '\n' }}" + THINKING,
    ),
    "gemma3": _turns(
        begin="<bos>",
        role="<start_of_turn>" + GEMMA_ROLE,
        image="<start_of_image>",
        text="{{ c.text }}",
        end="<end_of_turn>{{ '\n' }}",
        prompt="<start_of_turn>model{{ '\n' }}",
    ),
    "gemma4": _turns(
        begin="<bos>",
        role="<|turn>" + GEMMA_ROLE,
        image="<|image|>",
        text="{{ c.text }}",
        end="<turn|>{{ '\n' }}",
        prompt="<|turn>model{{ '\n' }}",
    ),
    "lfm2_vl": _turns(begin="<|startoftext|>", image="<image>", **CHATML),
    "internvl": _turns(image="<IMG_CONTEXT>{{ '\n' }}", **CHATML),
}


def _name_tokens(tokenizer, **tokens: str) -> None:
    """Set attributes as a tokenizer_config.json does: `image_token`, `image_token_id`."""
    for name, token in tokens.items():
        tokenizer._set_model_specific_special_tokens({f"{name}_token": token})


def _layers(*kinds: str) -> list[str]:
    """These kinds of layers over and over, as many as there are in all."""
    return list(itertools.islice(itertools.cycle(kinds), TEXT["num_hidden_layers"]))


def qwen3_5():
    """Three layers in four are of linear attention."""
    tiny = AutoProcessor.from_pretrained(TINY)
    tokenizer = tiny.tokenizer
    ids = {}
    for name, mark in (
        ("image_token_id", "<|image_pad|>"),
        ("video_token_id", "<|video_pad|>"),
        ("vision_start_token_id", "<|vision_start|>"),
        ("vision_end_token_id", "<|vision_end|>"),
    ):
        ids[name] = tokenizer.convert_tokens_to_ids(mark)
    text = M_ROPE | {
        "head_dim": 16,
        # every fourth is of the other kind
        "num_hidden_layers": max(4, TEXT["num_hidden_layers"]),
        "linear_key_head_dim": 8,
        "linear_value_head_dim": 8,
        "linear_num_key_heads": 2,
        "linear_num_value_heads": 4,
        "rope_parameters": {
            "rope_type": "default",
            "rope_theta": 1e4,
            "partial_rotary_factor": 0.75,
            "mrope_section": [2, 2, 2],
            "mrope_interleaved": True,
        },
        "vocab_size": len(tokenizer),
    }
    vision = {
        "depth": 2,
        "hidden_size": 32,
        "num_heads": 2,
        "out_hidden_size": 32,
        "intermediate_size": 64,
        "patch_size": 14,
        "num_position_embeddings": 64,
    }
    config = Qwen3_5Config(text_config=text, vision_config=vision, **ids)
    processor = Qwen3VLProcessor(
        tiny.image_processor,
        tokenizer,
        tiny.video_processor,
        chat_template=TEMPLATES["qwen3_5"],
    )
    return Qwen3_5ForConditionalGeneration(config), processor


def _siglip(**more):
    return {
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "patch_size": 14,
        **more,
    }


def _gemma_tokenizer(marks, *others):
    """With a token for the end of texts, which is not the end of a turn."""
    tokenizer = _byte_tokenizer(
        *marks.values(),
        *others,
        begin="<bos>",
        bos_token="<bos>",
        eos_token="<eos>",
        pad_token="<pad>",
    )
    _name_tokens(tokenizer, **marks)
    return tokenizer


def _gemma_text(tokenizer):
    return {
        **TEXT,
        "head_dim": 8,
        "sliding_window": 24,
        "layer_types": _layers("sliding_attention", "sliding_attention", "full_attention"),
        "rope_parameters": None,
        "vocab_size": len(tokenizer),
    }


def gemma3():
    """Visual tokens see each other; two layers look back no further than a window."""
    marks = {
        "boi": "<start_of_image>",
        "eoi": "<end_of_image>",
        "image": "<image_soft_token>",
    }
    tokenizer = _gemma_tokenizer(marks, "<start_of_turn>", "<end_of_turn>")
    token = tokenizer.convert_tokens_to_ids
    text = _gemma_text(tokenizer) | {"query_pre_attn_scalar": 8}
    config = Gemma3Config(
        text_config=text,
        vision_config=_siglip(image_size=112),
        mm_tokens_per_image=16,
        boi_token_index=token("<start_of_image>"),
        eoi_token_index=token("<end_of_image>"),
        image_token_index=token("<image_soft_token>"),
    )
    images = Gemma3ImageProcessor(size={"height": 112, "width": 112})
    processor = Gemma3Processor(
        images, tokenizer, chat_template=TEMPLATES["gemma3"], image_seq_length=16
    )
    model = Gemma3ForConditionalGeneration(config)
    # it begins with 0, and the model would see nothing
    torch.nn.init.normal_(model.model.multi_modal_projector.mm_input_projection_weight, std=0.2)
    return model, processor


def gemma4():
    """Two kinds of attention with heads of two sizes, and embeddings for each layer."""
    marks = {
        "boi": "<|image>",
        "eoi": "<image|>",
        "image": "<|image|>",
        "audio": "<|audio|>",
        "boa": "<|audio>",
        "eoa": "<audio|>",
    }
    tokenizer = _gemma_tokenizer(marks, "<|video|>", "<|turn>", "<turn|>")
    token = tokenizer.convert_tokens_to_ids
    text = _gemma_text(tokenizer) | {
        "global_head_dim": 16,
        "hidden_size_per_layer_input": 8,
        "pad_token_id": tokenizer.pad_token_id,  # stands for images in embeddings of layers
        "vocab_size_per_layer_input": len(tokenizer),
    }
    vision = _siglip(
        num_key_value_heads=2, head_dim=16, pooling_kernel_size=2, position_embedding_size=64
    )
    config = Gemma4Config(
        text_config=text,
        vision_config=vision,
        audio_config=None,
        boi_token_id=token("<|image>"),
        eoi_token_id=token("<image|>"),
        image_token_id=token("<|image|>"),
        video_token_id=token("<|video|>"),
        boa_token_id=token("<|audio>"),
        eoa_token_index=token("<audio|>"),
        audio_token_id=token("<|audio|>"),
    )
    sizes = {"patch_size": 14, "pooling_kernel_size": 2, "max_soft_tokens": 70}
    processor = Gemma4Processor(
        Gemma4AudioFeatureExtractor(),
        Gemma4ImageProcessor(**sizes),
        tokenizer,
        Gemma4VideoProcessor(**sizes),
        chat_template=TEMPLATES["gemma4"],
        image_seq_length=70,
    )
    return Gemma4ForConditionalGeneration(config), processor


def lfm2_vl():
    """Two layers in three are short convolutions; an image has a varying number of tokens."""
    marks = {
        "image": "<image>",
        "image_start": "<|image_start|>",
        "image_end": "<|image_end|>",
        "image_thumbnail": "<|img_thumbnail|>",
    }
    tiles = [f"<|img_row_{row}_col_{column}|>" for row in range(1, 4) for column in range(1, 4)]
    tokenizer = _byte_tokenizer(
        *marks.values(),
        *tiles,
        "<|im_start|>",
        begin="<|startoftext|>",
        bos_token="<|startoftext|>",
        eos_token="<|im_end|>",
        pad_token="<|pad|>",
    )
    _name_tokens(tokenizer, **marks)
    text = {
        "model_type": "lfm2",
        **TEXT,
        "layer_types": _layers("conv", "conv", "full_attention"),
        "block_auto_adjust_ff_dim": False,
        "vocab_size": len(tokenizer),
    }
    config = Lfm2VlConfig(
        text_config=text,
        vision_config=_siglip(num_patches=16, model_type="siglip2_vision_model"),
        image_token_id=tokenizer.convert_tokens_to_ids("<image>"),
        projector_hidden_size=32,
    )
    images = Lfm2VlImageProcessor(
        encoder_patch_size=14,
        tile_size=56,
        min_image_tokens=4,
        max_image_tokens=16,
        max_tiles=4,
    )
    processor = Lfm2VlProcessor(images, tokenizer, chat_template=TEMPLATES["lfm2_vl"])
    return Lfm2VlForConditionalGeneration(config), processor


def internvl():
    """Qwen2 as the language model, and tiles of a large image."""
    tiny = AutoProcessor.from_pretrained(TINY)
    tokenizer = tiny.tokenizer
    marks = {
        "start_image": "<img>",
        "end_image": "</img>",
        "context_image": "<IMG_CONTEXT>",
        "video": "<video>",
    }
    tokenizer.add_tokens(list(marks.values()), special_tokens=True)
    _name_tokens(tokenizer, **marks)
    text = {"model_type": "qwen2", **TEXT, "vocab_size": len(tokenizer)}
    config = InternVLConfig(
        text_config=text,
        vision_config=_siglip(image_size=56),
        image_token_id=tokenizer.convert_tokens_to_ids("<IMG_CONTEXT>"),
        image_seq_length=4,
    )
    images = GotOcr2ImageProcessor(
        size={"height": 56, "width": 56}, min_patches=1, max_patches=4, crop_to_patches=True
    )
    processor = InternVLProcessor(
        images,
        tokenizer,
        InternVLVideoProcessor(),
        image_seq_length=4,
        chat_template=TEMPLATES["internvl"],
    )
    return InternVLForConditionalGeneration(config), processor


# what stands for an image in a rendered prompt
IMAGE_MARKS = {
    "qwen3_5": "<|image_pad|>",
    "gemma3": "<start_of_image>",
    "gemma4": "<|image|>",
    "lfm2_vl": "<image>",
    "internvl": "<IMG_CONTEXT>",
}
# linear layers of the decoder that LoRA is put on, and all that are quantised
LINEAR = {
    "qwen3_5": 3 * 5 + 4 + 4 * 3,  # three layers of linear attention, one of the other
    "gemma4": 3 * (7 + 2),  # each has embeddings of its own
    "lfm2_vl": 2 * 2 + 4 + 3 * 3,  # two convolutions, and one layer of attention
}
RECURRENT = ("qwen3_5", "lfm2_vl")  # their layers hand states on: nothing can be packed
NEWER = {f.__name__: f for f in (qwen3_5, gemma3, gemma4, lfm2_vl, internvl)}
# of Gemma's generation_config.json; all others end with their tokenizer's end
ENDS = {"gemma3": "<end_of_turn>", "gemma4": "<turn|>"}
