"""Tiny random models of the architectures that the suite loads, built from their config classes.

Each has the chat format, the special tokens and the kind of tokenizer of its checkpoints on the hub (`TEMPLATES`,
`_llama2_tokenizer` …); vocabularies are the embedded model's.
"""

import json
from pathlib import Path
from unittest.mock import patch

import torch
from tokenizers import Tokenizer
from tokenizers.processors import TemplateProcessing
from transformers import (
    AutoProcessor,
    CLIPImageProcessor,
    CLIPVisionConfig,
    Idefics3Config,
    Idefics3ForConditionalGeneration,
    Idefics3ImageProcessor,
    Idefics3Processor,
    LlamaConfig,
    LlamaTokenizer,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaNextConfig,
    LlavaNextForConditionalGeneration,
    LlavaNextImageProcessor,
    LlavaNextProcessor,
    LlavaProcessor,
    PreTrainedTokenizerFast,
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

from helpers.files import ROOT

TINY = ROOT / "data" / "tiny-qwen2-vl"


def _turns(
    role: str, image: str, text: str, end: str, prompt: str, begin: str = "", system: str = ""
) -> str:
    """A chat template of pieces in Jinja; m is the message, its images come before its text."""
    parts = "{% for c in m.content if c.type == 'image' %}" + image + "{% endfor %}"
    parts += "{% for c in m.content if c.type == 'text' %}" + text + "{% endfor %}"
    default = (
        "{% if loop.first and m.role != 'system' %}" + system + "{% endif %}" if system else ""
    )
    turns = "{% for m in messages %}" + default + role + parts + end + "{% endfor %}"
    return begin + turns + "{% if add_generation_prompt %}" + prompt + "{% endif %}"


_CHATML = {
    "role": "<|im_start|>{{ m.role }}{{ '\n' }}",
    "image": "<|vision_start|><|image_pad|><|vision_end|>",
    "text": "{{ c.text }}",
    "end": "<|im_end|>{{ '\n' }}",
    "prompt": "<|im_start|>assistant{{ '\n' }}",
}
_QWEN2 = _turns(
    **_CHATML, system="<|im_start|>system{{ '\n' }}You are a helpful assistant.<|im_end|>{{ '\n' }}"
)
_SMOL = _turns(
    begin="<|im_start|>",
    role="{{ m.role.capitalize() }}:{% if m.content[0].type == 'text' %} {% endif %}",
    image="<image>",
    text="{{ c.text }}",
    end="<end_of_utterance>{{ '\n' }}",
    prompt="Assistant:",
)
TEMPLATES = {
    "qwen2_vl": _QWEN2,
    "qwen2_5_vl": _QWEN2,
    "qwen3_vl": _turns(**_CHATML),
    "llava": _turns(
        role="{% if m.role != 'system' %}{{ m.role.upper() }}: {% endif %}",
        image="<image>{{ '\n' }}",
        text="{{ c.text }} ",
        end="",
        prompt="ASSISTANT:",
    ),
    "llava_next": _turns(
        role="<|start_header_id|>{{ m.role }}<|end_header_id|>{{ '\n\n' }}",
        image="<image>",
        text="{{ '\n' }}{{ c.text }}",
        end="<|eot_id|>",
        prompt="<|start_header_id|>assistant<|end_header_id|>{{ '\n\n' }}",
    ),
    "smolvlm": _SMOL,
    "idefics3": _SMOL,
}
TEXT = {
    "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 3, "num_attention_heads": 4, "num_key_value_heads": 2,
    "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0},
}  # fmt: skip
M_ROPE = TEXT | {
    "rope_parameters": {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [1, 1, 2]}
}


def _byte_tokenizer(*extra: str, begin: str = "", **special: str) -> PreTrainedTokenizerFast:
    """Byte-level BPE, as of Llama 3 and SmolLM2; with `begin`, it puts that token before every text."""
    backend = Tokenizer.from_file(str(TINY / "tokenizer.json"))
    backend.add_special_tokens([*extra, *special.values()])
    if begin:
        backend.post_processor = TemplateProcessing(
            f"{begin} $A", None, [(begin, backend.token_to_id(begin))]
        )
    return PreTrainedTokenizerFast(tokenizer_object=backend, model_max_length=2048, **special)


def _llama2_tokenizer(*extra: str) -> LlamaTokenizer:
    """BPE with "▁" for spaces and bytes for what it does not know, which puts "<s>" before every text: Llama 2's."""
    merges = json.loads((TINY / "tokenizer.json").read_text(encoding="utf-8"))["model"]["merges"]
    known = {"▁", *map(chr, range(33, 127))}
    merges = [tuple(part.replace("Ġ", "▁") for part in merge) for merge in merges]
    merges = [merge for merge in merges if known >= set("".join(merge))]
    tokens = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), *sorted(known)]
    ids = {
        token: number
        for number, token in enumerate(dict.fromkeys([*tokens, *map("".join, merges)]))
    }
    special = {"bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>"}
    tokenizer = LlamaTokenizer(
        ids, merges, **special, legacy=False, add_bos_token=True, model_max_length=2048
    )
    tokenizer.add_tokens(list(extra), special_tokens=True)
    return tokenizer


def _qwen(name, config_class, model_class, vision, **text):
    processor = AutoProcessor.from_pretrained(TINY)
    processor.chat_template = TEMPLATES[name]
    token = {name: processor.tokenizer.convert_tokens_to_ids(mark) for name, mark in (
        ("image_token_id", "<|image_pad|>"), ("video_token_id", "<|video_pad|>"),
        ("vision_start_token_id", "<|vision_start|>"), ("vision_end_token_id", "<|vision_end|>"),
    )}  # fmt: skip
    text = M_ROPE | text | {"vocab_size": len(processor.tokenizer)}
    return model_class(config_class(text_config=text, vision_config=vision, **token)), processor


def qwen2_vl():
    vision = {
        "depth": 2,
        "embed_dim": 32,
        "num_heads": 2,
        "hidden_size": 32,
        "patch_size": 14,
        "mlp_ratio": 2,
    }
    return _qwen("qwen2_vl", Qwen2VLConfig, Qwen2VLForConditionalGeneration, vision)


def qwen2_5_vl():
    vision = {
        "depth": 2, "hidden_size": 32, "num_heads": 2, "out_hidden_size": 32, "intermediate_size": 64, "patch_size": 14,
        "fullatt_block_indexes": [1], "window_size": 56,
    }  # fmt: skip
    model, processor = _qwen(
        "qwen2_5_vl", Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration, vision
    )
    parts = {
        "image_processor": processor.image_processor,
        "video_processor": processor.video_processor,
    }
    return model, Qwen2_5_VLProcessor(
        tokenizer=processor.tokenizer, chat_template=processor.chat_template, **parts
    )


def qwen3_vl():
    vision = {
        "depth": 2, "hidden_size": 32, "num_heads": 2, "out_hidden_size": 32, "intermediate_size": 64, "patch_size": 14,
        "num_position_embeddings": 64, "deepstack_visual_indexes": [0, 1],
    }  # fmt: skip
    model, processor = _qwen(
        "qwen3_vl", Qwen3VLConfig, Qwen3VLForConditionalGeneration, vision, head_dim=8
    )
    parts = {
        "image_processor": processor.image_processor,
        "video_processor": processor.video_processor,
    }
    return model, Qwen3VLProcessor(
        tokenizer=processor.tokenizer, chat_template=processor.chat_template, **parts
    )


def _clip():
    return CLIPVisionConfig(
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=3,
        num_attention_heads=2,
        image_size=56,
        patch_size=14,
    )


def llava():
    tokenizer = _llama2_tokenizer("<image>")
    image = tokenizer.convert_tokens_to_ids("<image>")
    text = LlamaConfig(**TEXT, vocab_size=len(tokenizer))
    model = LlavaForConditionalGeneration(
        LlavaConfig(vision_config=_clip(), text_config=text, image_token_index=image)
    )
    size = {"size": {"shortest_edge": 56}, "crop_size": {"height": 56, "width": 56}}
    return model, LlavaProcessor(
        CLIPImageProcessor(**size), tokenizer, patch_size=14, vision_feature_select_strategy="default",
        num_additional_image_tokens=1, chat_template=TEMPLATES["llava"],
    )  # fmt: skip


def llava_next():
    begin, end, header = (
        "<|begin_of_text|>",
        "<|eot_id|>",
        ("<|start_header_id|>", "<|end_header_id|>"),
    )
    special = {"bos_token": begin, "eos_token": end, "pad_token": "<pad>"}
    tokenizer = _byte_tokenizer("<image>", *header, begin=begin, **special)
    image = tokenizer.convert_tokens_to_ids("<image>")
    pinpoints = [[56, 112], [112, 56], [112, 112]]
    text = LlamaConfig(**TEXT, vocab_size=len(tokenizer))
    config = LlavaNextConfig(
        vision_config=_clip(),
        text_config=text,
        image_token_index=image,
        image_grid_pinpoints=pinpoints,
    )
    size = {"size": {"shortest_edge": 56}, "crop_size": {"height": 56, "width": 56}}
    return LlavaNextForConditionalGeneration(config), LlavaNextProcessor(
        LlavaNextImageProcessor(**size, image_grid_pinpoints=pinpoints), tokenizer, patch_size=14,
        vision_feature_select_strategy="default", num_additional_image_tokens=1, chat_template=TEMPLATES["llava_next"],
    )  # fmt: skip


def _smol_tokenizer() -> PreTrainedTokenizerFast:
    tiles = (f"<row_{row}_col_{column}>" for row in range(1, 7) for column in range(1, 7))
    special = {
        "bos_token": "<|im_start|>",
        "eos_token": "<end_of_utterance>",
        "pad_token": "<|im_end|>",
    }
    return _byte_tokenizer(
        "<image>", "<fake_token_around_image>", "<global-img>", *tiles, **special
    )


def _smol(config_class, model_class, tokenizer):
    vision = {
        "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2, "image_size": 56,
        "patch_size": 14,
    }  # fmt: skip
    text = {
        "model_type": "llama",
        **TEXT,
        "vocab_size": len(tokenizer),
        "pad_token_id": tokenizer.pad_token_id,
    }
    image = tokenizer.convert_tokens_to_ids("<image>")
    return model_class(
        config_class(vision_config=vision, text_config=text, scale_factor=2, image_token_id=image)
    )


def smolvlm():
    tokenizer = _smol_tokenizer()
    marks = {
        "image": "<image>",
        "fake_image": "<fake_token_around_image>",
        "global_image": "<global-img>",
    }
    for name, mark in marks.items():
        setattr(tokenizer, f"{name}_token", mark)
        setattr(tokenizer, f"{name}_token_id", tokenizer.convert_tokens_to_ids(mark))
    images = SmolVLMImageProcessor(size={"longest_edge": 112}, max_image_size={"longest_edge": 56})
    processor = SmolVLMProcessor(
        images,
        tokenizer,
        SmolVLMVideoProcessor(),
        image_seq_len=4,
        chat_template=TEMPLATES["smolvlm"],
    )
    return _smol(SmolVLMConfig, SmolVLMForConditionalGeneration, tokenizer), processor


def idefics3():
    """As the checkpoints SmolVLM-256M, -500M and SmolVLM-Instruct declare themselves."""
    tokenizer = _smol_tokenizer()
    images = Idefics3ImageProcessor(size={"longest_edge": 112}, max_image_size={"longest_edge": 56})
    processor = Idefics3Processor(
        images, tokenizer, image_seq_len=4, chat_template=TEMPLATES["idefics3"]
    )
    return _smol(Idefics3Config, Idefics3ForConditionalGeneration, tokenizer), processor


BUILDERS = {
    f.__name__: f for f in (qwen2_vl, qwen2_5_vl, qwen3_vl, llava, llava_next, smolvlm, idefics3)
}


def build(name: str):
    """(model in eval mode, processor), random weights from seed 0."""
    # it imports from here
    from newer_architectures import ENDS, NEWER

    torch.manual_seed(0)
    model, processor = (BUILDERS | NEWER)[name]()
    tokenizer = processor.tokenizer
    ends = [tokenizer.eos_token_id]
    if name in ENDS:
        ends.append(tokenizer.convert_tokens_to_ids(ENDS[name]))
    model.generation_config.eos_token_id = ends if name in ENDS else ends[0]
    return model.eval().requires_grad_(False), processor


def build_deep(name: str, layers: int = 24):
    """As `build`, with so many layers, each of which counts as in a trained model."""
    with (
        patch.dict(TEXT, num_hidden_layers=layers),
        patch.dict(M_ROPE, num_hidden_layers=layers),
    ):
        model, processor = build(name)
    for path, weight in model.get_decoder().layers.named_parameters():
        # not of a norm; (outputs, inputs). What decides how fast linear attention forgets stays
        if weight.ndim == 2 and "linear_attn" not in path:
            torch.nn.init.normal_(weight, std=weight.shape[1] ** -0.5)
    # logits deviate by 0.5 · √32 = 2.8: some tokens are likelier than others, and answers differ
    torch.nn.init.normal_(model.get_output_embeddings().weight, std=0.5)
    return model, processor


def template_for_trl(name: str) -> str:
    """The template of an architecture, changed so that TRL's own layout holds the tokens of the suite's.

    TRL trains on what the template writes after an answer, leaves out the first token that LLaVA's tokenizers add,
    and ends no answer where the template does not.
    """
    begin = {"llava": "<s> ", "llava_next": "<|begin_of_text|>"}.get(name, "")
    template = TEMPLATES[name].replace(
        "{{ '\n' }}{{ c.text }}", "{% if m.role != 'assistant' %}{{ '\n' }}{% endif %}{{ c.text }}"
    )
    closed = "{{ text.rstrip().removesuffix(eos_token) + eos_token }}"
    return (
        begin + "{% set text %}" + template + "{% endset %}"
        "{% if add_generation_prompt %}{{ text }}{% else %}" + closed + "{% endif %}"
    )


def save_as_on_the_hub(name: str, folder: Path, builder=build) -> Path:
    """The model and its processor in the files that checkpoints on the hub have."""
    model, processor = builder(name)
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    own = json.loads((folder / "processor_config.json").read_text(encoding="utf-8"))
    kind = {"processor_class": own["processor_class"]}
    files = {"preprocessor_config.json": own.pop("image_processor") | kind}
    if "video_processor" in own:
        files["video_preprocessor_config.json"] = own.pop("video_processor") | kind
    files["chat_template.json"] = {"chat_template": processor.chat_template}
    (folder / "chat_template.jinja").unlink()
    (folder / "processor_config.json").unlink()
    if own != kind:
        files["processor_config.json"] = own
    for file, content in files.items():
        (folder / file).write_text(json.dumps(content), encoding="utf-8")
    return folder
