"""Load a VLM in 4 bits, put adapters on it, let it answer.

Here: checkpoints and their shapes, chat templates, adapters, generation, image features that are computed once, and
the pass that reads image and prompt once for several answers. Not here: what an answer is worth, and training. Taught
in notebook 01.
"""

import lazy_loader

from helpers.models import loading as loading  # first of all: on a GPU it brings in unsloth, which patches transformers

__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__,
    submod_attrs={
        "adapters": [
            "POLICY",
            "adapter_off",
            "add_adapter",
            "load_adapter",
            "lora_config",
            "save_adapter",
            "using_adapter",
            "weight_megabytes",
        ],
        "caches": [
            "Features",
            "ImageFeatures",
            "ReferenceLogps",
            "core",
            "given",
            "images_hash",
            "is_frozen",
            "joined",
            "processor_settings",
            "reference_hash",
        ],
        "generation": [
            "answer_budget",
            "answer_records",
            "banned_tokens",
            "decoding",
            "generate_after",
            "generate_answers",
            "sample_answers",
            "sample_ids",
        ],
        "heads": ["FusionHead", "HEADS", "LinearHead", "MLPHead", "ValueHead", "fused_layers"],
        "loading": [
            "Source",
            "load_model",
            "load_processor",
            "original",
            "quantization",
            "smaller",
            "told",
            "weight_sources",
        ],
        "policies": ["BASE", "Policies", "SHIPPED", "Saved", "find_policies", "image_limit"],
        "presets": ["PRESETS", "Preset", "config_of", "locate", "preset_of", "table", "without_weights"],
        "prompts": [
            "added_begin",
            "answer_ids",
            "answer_texts",
            "chat_messages",
            "count_image_tokens",
            "encode",
            "end_of_turn",
            "image_token_id",
            "render",
            "render_conversation",
            "tokenize",
        ],
        "shapes": [
            "NF4",
            "Shapes",
            "idefics_tiles",
            "is_known",
            "limits_below",
            "lora_weights",
            "next_grid",
            "own_limit",
            "qwen_grid",
            "tile_edge",
            "tokens_and_patches",
            "visual_tokens",
            "weight_bytes",
        ],
        "shared_prefix": [
            "Answer",
            "EQUAL",
            "Packed",
            "answer_logits",
            "answer_logps",
            "answer_states",
            "can_pack",
            "hidden_states",
            "pack",
            "packing_error",
            "plain",
            "prompt_inputs",
            "unwrapped",
        ],
    },
)
