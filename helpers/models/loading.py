"""Checkpoints: processor and weights of a preset, a local folder or a hub id.

The only module that knows unsloth and bitsandbytes. Weights are in 4-bit NF4 with double
quantisation (QLoRA, Dettmers et al. 2023, arXiv 2305.14314). Only the language model is quantised
here; the vision tower keeps its precision, since it is small and the image features are what the
answers depend on. A copy on the hub that was quantised before (`four_bit` of a preset) is a third
of the download; which layers it quantised is its own.

All else is pinned: processor and weights come from the commit that `helpers/models/presets.toml`
names.
"""

import contextlib
import errno
import importlib.util
import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch

# unsloth patches peft and transformers, and wants to be imported before them
if torch.cuda.is_available() and importlib.util.find_spec("unsloth"):
    import unsloth

from huggingface_hub import errors as hub_errors
from safetensors import SafetensorError
from transformers import (
    AutoModelForImageTextToText,
    AutoProcessor,
    BitsAndBytesConfig,
    PreTrainedModel,
    ProcessorMixin,
)

from helpers.files import UsageError
from helpers.runtime import choose_threads, compute_dtype, device, has_cuda

from . import smollm2
from .image_sizes import limit_pixels
from .presets import PRESETS, Preset, config_of, in_four_bits, locate, preset_of
from .prompts import end_of_turn

# What stays in its own precision, by its name in one architecture or another
NON_LANGUAGE_MODULES = (
    "visual",
    "vision_tower",
    "vision_model",
    "multi_modal_projector",
    "connector",
    "embed_vision",
    "audio_tower",
    "embed_audio",
    "lm_head",
)

# Parameters; without a GPU a larger model takes hours for a stage
SLOW_ON_A_CPU = 1e9

# What the libraries raise for a checkpoint that cannot be had, read or held
LOAD_ERRORS = (
    OSError,
    ValueError,
    RuntimeError,
    ImportError,
    SafetensorError,
    hub_errors.HTTPError,
)

OFFLINE_ADVICE = "Check the network; offline, use the preset 'tiny' or a local folder."

# Kinds of errors, what is wrong, what to do: the first that is among the causes holds
HUB_ERRORS = (
    (
        hub_errors.GatedRepoError,
        "it is gated",
        "Accept the licence at https://huggingface.co/{id}, set HF_TOKEN to a token of that "
        "account, and run this again.",
    ),
    (
        hub_errors.RepositoryNotFoundError,
        "the hub has no such repository, or it is private",
        "Check the name; for a private repository, set HF_TOKEN.",
    ),
    (
        hub_errors.RevisionNotFoundError,
        "the hub no longer has this commit",
        "Put the newest one into helpers/models/presets.toml.",
    ),
    (
        (hub_errors.LocalEntryNotFoundError, hub_errors.HTTPError, ConnectionError, TimeoutError),
        "the hub does not answer, and it was not downloaded before",
        OFFLINE_ADVICE,
    ),
)


@dataclass(frozen=True)
class CheckpointSource:
    """Where a checkpoint is."""

    location: str  # folder or hub id
    revision: str | None = None  # commit on the hub; None: the newest


# --- model and processor ---


def load_model(
    name_or_path: str | Path = "tiny",
    *,
    four_bit: bool | None = None,
    max_pixels: int | None = None,
) -> tuple[PreTrainedModel, ProcessorMixin]:
    """Load model (eval mode, frozen) and processor of a preset, a local folder or a hub id.

    On a GPU with unsloth installed, unsloth loads it; else transformers with bitsandbytes, on the
    CPU too. `four_bit`: language weights in 4-bit NF4 (default: as the preset says). `max_pixels`
    bounds the image size and so the number of visual tokens (default: the preset's). Raises
    UsageError if the name is unknown, or the checkpoint cannot be had, read or held in memory.
    """
    processor = load_processor(name_or_path, max_pixels=max_pixels)
    four_bit = in_four_bits(name_or_path, four_bit)
    preset = preset_of(name_or_path)
    parameters = (preset and preset.parameters) or 0
    if parameters > SLOW_ON_A_CPU and not has_cuda():
        print(
            f"⚠️  No GPU: with {parameters / 1e9:.1f} billion weights, a stage takes hours. Take "
            "smolvlm-256m or tiny to try it."
        )
    if four_bit and not has_four_bits():
        print("⚠️  There is no bitsandbytes for this device: loading in full precision.")
        four_bit = False
    model = _load_weights(name_or_path, four_bit)
    _set_compute_dtype(model)
    _stop_at_end_of_turn(model, processor)
    choose_threads(model.config.get_text_config().hidden_size)
    model.requires_grad_(False)
    return model.eval(), processor


def has_four_bits() -> bool:
    """Can weights be in 4 bits here? bitsandbytes multiplies them on a CPU and on CUDA alone."""
    return device().type != "mps" and importlib.util.find_spec("bitsandbytes") is not None


def load_processor(name_or_path: str | Path, *, max_pixels: int | None = None) -> ProcessorMixin:
    """Load the processor alone, with images limited as for `load_model`. Raises UsageError."""
    preset = preset_of(name_or_path)
    source = original_source(name_or_path)
    with explain_load_errors(name_or_path, source):
        processor = AutoProcessor.from_pretrained(source.location, revision=source.revision)
    if not hasattr(processor, "image_processor"):  # what comes of a model of text alone
        raise UsageError(f"{source.location} reads no images. Choose a vision-language model.")
    # Asked for, else the preset's
    limit = max_pixels or (preset and preset.max_pixels)
    if limit:
        limit_pixels(processor, limit)
    elif preset and preset.longest_edge:
        processor.image_processor.size["longest_edge"] = preset.longest_edge
    return processor


# --- where weights come from, and how they are loaded ---


def original_source(name_or_path: str | Path) -> CheckpointSource:
    """Return the source of processor and full-precision weights.

    For a preset's 4-bit copy it is what the copy was made from.
    """
    preset = preset_of(name_or_path)
    if preset and preset is PRESETS.get(smollm2.PRESET):
        # Its folder here holds only what is added to a package
        return CheckpointSource(str(smollm2.assembled_folder(config_of(smollm2.PRESET))))
    location = locate(name_or_path)
    if preset and location in (preset.location, preset.four_bit):
        return CheckpointSource(preset.location, preset.revision)
    return CheckpointSource(location)


def weight_sources(
    name_or_path: str | Path, four_bit: bool, on_gpu: bool
) -> list[CheckpointSource]:
    """Return where to look for the weights, one after the other.

    On a GPU the preset's copy in 4 bits comes first.
    """
    preset = preset_of(name_or_path)
    original = original_source(name_or_path)
    sources = [original]
    is_preset = preset is not None and preset.location == original.location
    if four_bit and on_gpu and is_preset and preset.four_bit:
        sources.insert(0, CheckpointSource(preset.four_bit))
    return sources


def _load_weights(name_or_path: str | Path, four_bit: bool) -> PreTrainedModel:
    # The last source is the only one whose failure is an error
    *copies, last = weight_sources(name_or_path, four_bit, has_cuda())
    for copy in copies:
        try:
            return _load(copy, four_bit)
        except LOAD_ERRORS as error:
            reason, _ = _hub_error(error)
            if not reason:
                raise UsageError(_advice(name_or_path, copy, error)) from error
            print(
                f"⚠️  {copy.location}, the copy in 4 bits, cannot be loaded ({reason}): "
                f"quantising {last.location}."
            )
    with explain_load_errors(name_or_path, last):
        return _load(last, four_bit)


def _load(source: CheckpointSource, four_bit: bool) -> PreTrainedModel:
    """Load one checkpoint: with unsloth, where it was imported above."""
    options = {
        "revision": source.revision,
        "dtype": compute_dtype(),
        "attn_implementation": "sdpa",  # what takes the mask of packed answers
    }
    if "unsloth" in globals():
        model, _ = unsloth.FastVisionModel.from_pretrained(
            source.location,
            load_in_4bit=four_bit,
            use_exact_model_name=True,  # else it maps names to copies of its own choice
            use_gradient_checkpointing=False,
            **options,
        )
        return model
    return AutoModelForImageTextToText.from_pretrained(
        source.location,
        use_safetensors=True,  # other files of weights are pickles, which can run code
        quantization_config=quantization() if four_bit else None,
        device_map={"": device()},
        **options,
    )


def quantization() -> BitsAndBytesConfig:
    """Return 4-bit NF4 of the language model's linear layers, without its head."""
    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=compute_dtype(),
        llm_int8_skip_modules=[f".*{name}" for name in NON_LANGUAGE_MODULES],
    )


def _stop_at_end_of_turn(model: PreTrainedModel, processor: ProcessorMixin) -> None:
    """Let generation stop where the chat template ends an answer, if the checkpoint forgets to say.

    Qwen3.5's smaller checkpoints name another token, which no turn ends with.
    """
    known = stop_ids(model)
    end = processor.tokenizer.convert_tokens_to_ids(end_of_turn(processor))
    if end not in known:
        model.generation_config.eos_token_id = [end, *known]


def stop_ids(model: PreTrainedModel) -> list[int]:
    """Return the tokens at which generation stops: a checkpoint names one, several or none."""
    found = model.generation_config.eos_token_id
    if found is None:
        return []
    return found if isinstance(found, list) else [found]


def _set_compute_dtype(model: PreTrainedModel) -> None:
    """Let 4-bit layers compute in this machine's precision, with products that have a gradient.

    A copy that was quantised before brings bf16 along, which a T4 only emulates. And on CPUs with
    AVX512-BF16, bitsandbytes repacks the weights for inference at the first call in eval mode. The
    repacked product has no gradient and rounds to bf16: training after sampling would go wrong
    without a word.
    """
    for module in model.modules():
        if hasattr(module, "support_avx512bf16_for_cpu"):
            module.support_avx512bf16_for_cpu = False
        state = getattr(getattr(module, "weight", None), "quant_state", None)
        if state is not None:
            module.compute_dtype = state.dtype = compute_dtype()


# --- what goes wrong, in one line ---


@contextlib.contextmanager
def explain_load_errors(name_or_path: str | Path, source: CheckpointSource) -> Iterator[None]:
    """Turn an error while loading a checkpoint into one readable line."""
    try:
        yield
    except LOAD_ERRORS as error:
        raise UsageError(_advice(name_or_path, source, error)) from error


def _has_cause(error: BaseException, kinds: type | tuple[type, ...]) -> bool:
    return any(isinstance(cause, kinds) for cause in _causes(error))


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    """Yield an error and what led to it: the libraries wrap the hub's errors in their own."""
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def _hub_error(error: BaseException) -> tuple[str, str]:
    """Return why the hub does not hand a checkpoint out, and what to do.

    Both are empty if it is something else.
    """
    for kinds, reason, advice in HUB_ERRORS:
        if _has_cause(error, kinds):
            return reason, advice
    if "does not appear to have" in str(error):
        return "a file is missing", f"Check the name. {OFFLINE_ADVICE}"
    return "", ""


def _reason(error: BaseException) -> str:
    """Return the first line of what the error says."""
    if isinstance(error, RuntimeError) and error.__cause__:  # unsloth's, which says less
        error = error.__cause__
    first, *_ = str(error).strip().splitlines() or [type(error).__name__]
    return first


def _advice(name_or_path: str | Path, source: CheckpointSource, error: Exception) -> str:
    """Return what is wrong and what to do, in one line."""
    model = f"model {str(name_or_path)!r}"
    is_offloaded = "dispatched on the CPU or the disk" in str(error)
    if is_offloaded or _has_cause(error, torch.OutOfMemoryError):
        presets = ", ".join(smaller_presets(preset_of(name_or_path)))
        return (
            f"{model} does not fit into the memory that is left on this GPU. Restart the kernels "
            f"of other notebooks and this one, or take a smaller preset: {presets}."
        )
    # What the hub says, unless something else is known to be wrong
    reason, advice = _hub_error(error)
    if _has_cause(error, ImportError):
        advice = "Install what is missing: pip install -r requirements.txt."
    elif any(getattr(cause, "errno", None) == errno.ENOSPC for cause in _causes(error)):
        advice = "Free space, or set HF_HOME to a folder on another disk."
    elif Path(source.location).is_dir():
        reason = ""
        advice = "Give the folder of a whole checkpoint, as save_pretrained writes it."
    reason = reason or _reason(error)
    advice = (advice or f"Check the name. {OFFLINE_ADVICE}").format(id=source.location)
    place = f"{source.location} at {source.revision[:8]}" if source.revision else source.location
    return f"{model} cannot be loaded from {place} ({reason}). {advice}"


def smaller_presets(preset: Preset | None) -> list[str]:
    """Return the names of the three next smaller presets, the largest first.

    Without a preset they are the three smallest, the smallest first.
    """
    limit = (preset and preset.parameters) or math.inf
    sizes = {name: other.parameters or 0 for name, other in PRESETS.items()}
    smaller = [name for name in sizes if sizes[name] < limit]
    return sorted(smaller, key=sizes.get, reverse=limit < math.inf)[:3]
