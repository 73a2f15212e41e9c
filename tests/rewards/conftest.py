"""Fixtures of several files of this room."""

import pytest
import torch
from transformers import (
    CLIPConfig,
    CLIPImageProcessor,
    CLIPModel,
    CLIPProcessor,
    CLIPTextConfig,
    CLIPTokenizer,
    CLIPVisionConfig,
)


@pytest.fixture(scope="module")
def clip_folder(tmp_path_factory):
    """A CLIP of the real classes with random weights, 32 × 32 pixels and one token a letter."""
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("clip")
    letters = [chr(code) for code in range(ord("a"), ord("z") + 1)]
    tokens = [
        *letters,
        *(letter + "</w>" for letter in letters),
        "<|startoftext|>",
        "<|endoftext|>",
    ]
    vocabulary = {token: number for number, token in enumerate(tokens)}
    size = {
        "hidden_size": 16,
        "intermediate_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
    }
    special = {"bos_token_id": 52, "eos_token_id": 53, "pad_token_id": 53}
    config = CLIPConfig(
        text_config=CLIPTextConfig(
            vocab_size=len(tokens), projection_dim=8, **size, **special
        ).to_dict(),
        vision_config=CLIPVisionConfig(
            image_size=32, patch_size=8, projection_dim=8, **size
        ).to_dict(),
        projection_dim=8,
    )
    CLIPModel(config).save_pretrained(folder)
    images = CLIPImageProcessor(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32})
    CLIPProcessor(images, CLIPTokenizer(vocab=vocabulary, merges=[])).save_pretrained(folder)
    return folder
