"""The public names of this room, and the module of each; `lazy_loader` reads this file."""

from .adapter_files import (
    ADAPTER_FILES as ADAPTER_FILES,
    HEAD_FILE as HEAD_FILE,
    attach_adapter as attach_adapter,
    load_adapter as load_adapter,
    read_adapter_tensors as read_adapter_tensors,
    save_adapter as save_adapter,
)
from .adapters import (
    POLICY_ADAPTER as POLICY_ADAPTER,
    VLM as VLM,
    add_adapter as add_adapter,
    autocast as autocast,
    base_of as base_of,
    contiguous_head as contiguous_head,
    disable_adapters as disable_adapters,
    evaluation_mode as evaluation_mode,
    lora_config as lora_config,
    stored_tensors as stored_tensors,
    use_adapter as use_adapter,
    weight_megabytes as weight_megabytes,
)
from .caches import (
    Features as Features,
    ImageFeatures as ImageFeatures,
    ReferenceLogps as ReferenceLogps,
    backbone_of as backbone_of,
    concatenate_features as concatenate_features,
    image_vectors as image_vectors,
    images_hash as images_hash,
    is_frozen as is_frozen,
    is_recurrent as is_recurrent,
    processor_settings as processor_settings,
    reference_hash as reference_hash,
    use_features as use_features,
    vision_fingerprint as vision_fingerprint,
    vision_inputs as vision_inputs,
    weights_hash as weights_hash,
)
from .decoding import (
    AnswerDecoder as AnswerDecoder,
    DecodingSettings as DecodingSettings,
    DrawnTokens as DrawnTokens,
    banned_tokens as banned_tokens,
    choose_tokens as choose_tokens,
    decode_together as decode_together,
    decode_with_generate as decode_with_generate,
    draw_numbers as draw_numbers,
    keep_nucleus as keep_nucleus,
)
from .decoding_check import (
    can_share_prompts as can_share_prompts,
    check_decoding as check_decoding,
)
from .encoded_prompts import (
    EncodedPrompts as EncodedPrompts,
    encode_prompts as encode_prompts,
    prompt_inputs as prompt_inputs,
)
from .generation import (
    FREE_TEXT_TOKENS as FREE_TEXT_TOKENS,
    answer_budget as answer_budget,
    answer_records as answer_records,
    answer_tasks as answer_tasks,
    generate_answers as generate_answers,
    sample_counting_answers as sample_counting_answers,
    sample_ids as sample_ids,
    sample_task_answers as sample_task_answers,
)
from .heads import (
    HEADS as HEADS,
    FusionHead as FusionHead,
    LinearHead as LinearHead,
    MLPHead as MLPHead,
    ValueHead as ValueHead,
    fused_layers as fused_layers,
)
from .image_sizes import (
    default_max_pixels as default_max_pixels,
    gemma4_grid as gemma4_grid,
    gemma4_tokens as gemma4_tokens,
    idefics_tiles as idefics_tiles,
    internvl_tiles as internvl_tiles,
    lfm2_grid as lfm2_grid,
    limit_pixels as limit_pixels,
    llava_next_grid as llava_next_grid,
    qwen_grid as qwen_grid,
    smaller_limits as smaller_limits,
    tile_edge as tile_edge,
    tokens_and_patches as tokens_and_patches,
    visual_tokens as visual_tokens,
)
from .kept_answers import (
    KeptAnswers as KeptAnswers,
    SampledAnswer as SampledAnswer,
    keep_answers as keep_answers,
)
from .loading import (
    CheckpointSource as CheckpointSource,
    explain_load_errors as explain_load_errors,
    has_four_bits as has_four_bits,
    load_model as load_model,
    load_processor as load_processor,
    original_source as original_source,
    quantization as quantization,
    smaller_presets as smaller_presets,
    stop_ids as stop_ids,
    weight_sources as weight_sources,
)
from .packer import (
    Packer as Packer,
)
from .packing_check import (
    PackingCheck as PackingCheck,
    can_keep_features as can_keep_features,
    can_pack as can_pack,
    check_packing as check_packing,
    code_of as code_of,
    compare_layouts as compare_layouts,
    rounded_otherwise as rounded_otherwise,
)
from .perplexity import (
    PASSAGES as PASSAGES,
    WORD_FREQUENCY_BITS as WORD_FREQUENCY_BITS,
    Perplexity as Perplexity,
    plain_english as plain_english,
    text_logps as text_logps,
    why_no_text as why_no_text,
)
from .policies import (
    BASE_POLICY as BASE_POLICY,
    SHIPPED_POLICIES as SHIPPED_POLICIES,
    Policies as Policies,
    SavedPolicy as SavedPolicy,
    find_policies as find_policies,
    image_limit as image_limit,
)
from .pooling import (
    POOLINGS as POOLINGS,
    AttentionPooling as AttentionPooling,
    LastPooling as LastPooling,
    MeanPooling as MeanPooling,
)
from .presets import (
    PRESETS as PRESETS,
    Preset as Preset,
    config_of as config_of,
    in_four_bits as in_four_bits,
    locate as locate,
    model_without_weights as model_without_weights,
    preset_of as preset_of,
)
from .prompts import (
    answer_ids as answer_ids,
    answer_texts as answer_texts,
    bos_text as bos_text,
    count_image_tokens as count_image_tokens,
    encode as encode,
    end_of_turn as end_of_turn,
    image_token_id as image_token_id,
    render as render,
    render_conversation as render_conversation,
    text_after_answer as text_after_answer,
    tokenize as tokenize,
    user_message as user_message,
)
from .shapes import (
    NF4_BYTES as NF4_BYTES,
    ModelShapes as ModelShapes,
    is_known as is_known,
    lora_weights as lora_weights,
    shapes_of as shapes_of,
    weight_bytes as weight_bytes,
)
from .shared_prefix import (
    PackedAnswers as PackedAnswers,
    answer_logits as answer_logits,
    answer_logps as answer_logps,
    answer_states as answer_states,
    gather_columns as gather_columns,
    hidden_states as hidden_states,
    layer_masks as layer_masks,
    pack as pack,
    pack_separately as pack_separately,
    prompt_positions as prompt_positions,
)
from .shelf import Shelf as Shelf
