"""A base like `smollm2-scenes`, in toy form: a small Llama and vocabulary in SmolLM2's place."""

import torch
from architectures import TEXT, _byte_tokenizer
from transformers import Idefics3Config, LlamaConfig, LlamaForCausalLM

from helpers.models import smollm2

VISION = {
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "image_size": 112,
    "patch_size": 14,
}


def toy_tokenizer():
    """The embedded base's vocabulary, with SmolVLM's new tokens behind it."""
    special = {"bos_token": "<|im_start|>", "eos_token": "<|im_end|>", "pad_token": "<|im_end|>"}
    return smollm2.add_new_tokens(_byte_tokenizer(**special))


def toy_config(tokenizer) -> Idefics3Config:
    text = {
        **TEXT,
        "model_type": "llama",
        "vocab_size": len(tokenizer),
        "pad_token_id": tokenizer.pad_token_id,
        "tie_word_embeddings": True,
    }
    return Idefics3Config(
        vision_config=VISION,
        text_config=text,
        scale_factor=2,
        image_token_id=tokenizer.convert_tokens_to_ids(smollm2.IMAGE_TOKEN),
        tie_word_embeddings=True,
    )


def toy_language(tokenizer) -> LlamaForCausalLM:
    """The language model as its file would give it: without the new tokens."""
    torch.manual_seed(0)
    end = tokenizer.convert_tokens_to_ids("<|im_end|>")
    old = len(tokenizer) - smollm2.NEW_TOKENS
    config = LlamaConfig(**TEXT, vocab_size=old, tie_word_embeddings=True, eos_token_id=end)
    return LlamaForCausalLM(config).eval()
