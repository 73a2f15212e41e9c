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
            "POLICY_ADAPTER",
            "add_adapter",
            "disable_adapters",
            "load_adapter",
            "lora_config",
            "save_adapter",
            "use_adapter",
            "weight_megabytes",
        ],
        "caches": [
            "Features",
            "ImageFeatures",
            "ReferenceLogps",
            "backbone_of",
            "concatenate_features",
            "images_hash",
            "is_frozen",
            "processor_settings",
            "reference_hash",
            "use_features",
        ],
        "generation": [
            "answer_budget",
            "answer_records",
            "banned_tokens",
            "generate_answers",
            "generate_from_cache",
            "generation_config",
            "sample_answers",
            "sample_ids",
        ],
        "heads": ["FusionHead", "HEADS", "LinearHead", "MLPHead", "ValueHead", "fused_layers"],
        "loading": [
            "CheckpointSource",
            "explain_load_errors",
            "load_model",
            "load_processor",
            "original_source",
            "quantization",
            "smaller_presets",
            "weight_sources",
        ],
        "policies": ["BASE_POLICY", "Policies", "SHIPPED_POLICIES", "SavedPolicy", "find_policies", "image_limit"],
        "presets": ["PRESETS", "Preset", "config_of", "locate", "model_without_weights", "preset_of", "presets_table"],
        "prompts": [
            "answer_ids",
            "answer_texts",
            "bos_text",
            "count_image_tokens",
            "encode",
            "end_of_turn",
            "image_token_id",
            "render",
            "render_conversation",
            "text_after_answer",
            "tokenize",
            "user_message",
        ],
        "shapes": [
            "ModelShapes",
            "NF4_BYTES",
            "default_max_pixels",
            "idefics_tiles",
            "is_known",
            "llava_next_grid",
            "lora_weights",
            "qwen_grid",
            "shapes_of",
            "smaller_limits",
            "tile_edge",
            "tokens_and_patches",
            "visual_tokens",
            "weight_bytes",
        ],
        "shared_prefix": [
            "EncodedPrompts",
            "PACKING_TOLERANCE",
            "PackedAnswers",
            "Packer",
            "answer_logits",
            "answer_logps",
            "answer_states",
            "can_pack",
            "encode_prompts",
            "hidden_states",
            "pack",
            "pack_separately",
            "packing_error",
            "prompt_inputs",
            "unwrap",
        ],
    },
)
