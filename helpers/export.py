"""From an adapter to a model that others can use: merged into its base, checked, and published.

A merge writes W + (α / r) B A in place of W (Hu et al. 2021, arXiv 2106.09685, section 4.1; peft's
`merge_and_unload`). The base is loaded in fp16 or fp32, never in 4 bits: there the sum would be
rounded to one of 16 values, and most of what was learnt is less than the distance between two. bf16
is not offered, since its 8 bits lose small changes too. An adapter that was trained on 4-bit
weights meets other weights here, so that figures of notebook 07 are not the merged model's.
Described in docs/export.md, used in notebook 07.

Simplification: that the merged model says the same is tried on a few shipped images, along the
greedy answers.
"""

import gc
import os
import re
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import torch

from helpers import models  # before peft and transformers, since it may import unsloth

# isort: split
from huggingface_hub import HfApi, ModelCardData, errors
from huggingface_hub.utils import validate_repo_id
from peft import PeftModel
from torch import Tensor
from transformers import AutoModelForImageTextToText, AutoProcessor, PreTrainedModel, ProcessorMixin

from helpers.data import question_for, read_counts
from helpers.files import (
    ROOT,
    UsageError,
    open_image,
    published_path,
    read_json,
    write_json,
    write_text,
)
from helpers.install import COLAB, hosted_machine
from helpers.models import Packer, answer_logits, preset_of, user_message
from helpers.report import data_licences, package_versions, read_sections, render_model_card
from helpers.rewards import REWARD_ADAPTER
from helpers.runtime import TOLERANCES, has_cuda, tensors_hash
from helpers.training import CRITIC_ADAPTER

EXPORT_DTYPES = {"fp16": torch.float16, "fp32": torch.float32}
CHECK_MEMORY_GB = 1.0  # that the checks take beside the weights
CHECK_TOKENS = 32  # of an answer that is compared: two sentences with counts
# names of licences here → on the hub, which calls all others "other"
HUB_LICENCES = {
    "Apache-2.0": "apache-2.0",
    "Llama 2 community licence": "llama2",
    "Llama 3 community licence": "llama3",
}
# weights, settings, processor and tokenizer, card; no checkpoint and no log
PUBLISHED_FILES = re.compile(
    r"(adapter_)?model(-\d+-of-\d+)?\.safetensors|model\.safetensors\.index\.json"
    r"|(adapter_|generation_)?config\.json|about\.json|README\.md"
    r"|((video_)?pre)?processor_config\.json|(tokenizer|tokenizer_config|vocab)\.json"
    r"|(added_tokens|special_tokens_map)\.json|tokenizer\.model|merges\.txt"
    r"|chat_template\.(jinja|json)"
)


@dataclass(frozen=True)
class ReferenceOutput:
    """The output of base + adapter, which the merged model must repeat."""

    inputs: tuple[list, list, list]  # conversations, images, greedy answers
    logits: Tensor  # (tokens of all answers, vocab), before each token
    effect: float  # how far the adapter moves them, relative to their norm


def merge(
    base: str | Path | None,
    adapter: Path,
    out: Path,
    dtype: torch.dtype = torch.float16,
    images: int = 4,
) -> Path:
    """Write base + adapter as one model to the folder `out`, which is there only after all checks.

    base: preset, folder or hub id; None: what the adapter's about.json names. images: shipped ones
    to ask both about. Beside weights (safetensors) and processor, with the training's image size,
    there are a card and about.json. Raises UsageError if it is no policy's adapter, memory is
    short, or the merged model says other than base + adapter.
    """
    about = policy_facts(adapter, base)
    base, out = about["base"], out.resolve()
    if dtype not in EXPORT_DTYPES.values():
        raise UsageError(f"a merge is in {' or '.join(EXPORT_DTYPES)}, not in {dtype}.")
    if out.exists() and not (out.is_dir() and not any(out.iterdir())):
        raise UsageError(f"{out}: exists and is not empty. Give another folder, or empty it.")
    processor = models.load_processor(base)
    place = device_with_room(base, dtype)
    model = models.load_adapter(_load(base, dtype, place), adapter)
    expected = reference_output(model, processor, images)
    # beside `out`, so that the last step is a rename, which cannot stop halfway
    part = out.with_name(f".{out.name}.part")
    shutil.rmtree(part, ignore_errors=True)
    try:
        weights = _save(model.merge_and_unload(), processor, part)
        del model
        gc.collect()  # room for the one that is read back
        checked = verify(part, expected, weights, dtype, place)
        about["merged"] = {"dtype": str(dtype).removeprefix("torch."), **checked}
        _write_card(part, about, out.name)
        if out.exists():
            out.rmdir()
        part.rename(out)
    except OSError as error:
        raise UsageError(
            f"{out}: cannot be written ({error}). Free space, or give another folder."
        ) from error
    finally:
        shutil.rmtree(part, ignore_errors=True)
    print(f"{out}: {about['merged']}")
    return out


def policy_facts(adapter: Path, base: str | Path | None = None) -> dict[str, Any]:
    """Read the about.json of a policy's adapter, with `base` if it is given.

    Raises UsageError for anything else.
    """
    files = {file.name for file in adapter.iterdir()} if adapter.is_dir() else set()
    if not files >= {"adapter_model.safetensors", "adapter_config.json"}:
        raise UsageError(
            f"{adapter}: holds no adapter (adapter_config.json, adapter_model.safetensors)."
        )
    about = read_json(adapter / "about.json") if "about.json" in files else {}
    # without about.json, the name that adapters of reward models and critics are saved under
    unnamed = not about and adapter.name in (REWARD_ADAPTER, CRITIC_ADAPTER)
    if models.HEAD_FILE in files or "head" in about or unnamed:
        raise UsageError(
            f"{adapter}: of a reward model or critic, which answers nothing. "
            "Give a policy's adapter."
        )
    kind = read_json(adapter / "adapter_config.json").get("peft_type")
    if kind != "LORA":
        raise UsageError(
            f"{adapter}: an adapter of the kind {kind} cannot be merged. Only LoRA's can."
        )
    if not (base or about.get("base")):
        raise UsageError(
            f"{adapter}: no about.json names its base. Give the base, or what `save_adapter` wrote."
        )
    return about | {"base": str(base or about["base"])}


def device_with_room(base: str, dtype: torch.dtype) -> torch.device:
    """Choose the GPU if the weights fit, else the CPU.

    Raises UsageError with both figures if neither has room.
    """
    if getattr(models.config_of(base), "quantization_config", None):
        raise UsageError(
            f"{base}: is quantised, and a merge would be rounded like it. "
            "Give the original as the base."
        )
    bare = models.model_without_weights(base)
    number = sum(parameter.numel() for parameter in bare.parameters())
    need = number * dtype.itemsize / 1e9 + CHECK_MEMORY_GB
    print(
        f"{number:,} weights × {dtype.itemsize} bytes + {CHECK_MEMORY_GB:.0f} GB for the checks "
        f"= {need:.1f} GB of memory"
    )
    if has_cuda() and torch.cuda.mem_get_info()[0] / 1e9 > need:
        return torch.device("cuda")
    free = psutil.virtual_memory().available / 1e9
    if free < need:
        raise UsageError(
            f"{base}: the merge takes {need:.1f} GB, and {free:.1f} GB are free. "
            "Close other programs."
        )
    return torch.device("cpu")


def _load(base: str | Path, dtype: torch.dtype, place: torch.device) -> PreTrainedModel:
    source = models.original_source(base)
    options = {"revision": source.revision, "dtype": dtype, "attn_implementation": "sdpa"}
    if place.type != "cpu":
        # straight there; with a CPU in it, transformers would take the model for offloaded
        options["device_map"] = {"": place}
    with models.explain_load_errors(base, source):
        return AutoModelForImageTextToText.from_pretrained(source.location, **options).eval()


@torch.no_grad()
def reference_output(
    model: PeftModel, processor: ProcessorMixin, images: int = 4
) -> ReferenceOutput:
    """Greedy answers to questions about the first shipped test images.

    Raises UsageError for logits that overflow.
    """
    questions, pictures = [], []
    for number, item in enumerate(read_counts(ROOT / "data" / "traffic", "test")[:images]):
        questions.append(question_for(item, number))
        pictures.append(open_image(item.path))
    answers = models.generate_answers(
        model, processor, pictures, questions, max_new_tokens=CHECK_TOKENS
    )
    inputs = (
        [[user_message(question)] for question in questions],
        [[picture] for picture in pictures],
        [[answer] for answer in answers],
    )
    logits = logits_along(model, processor, inputs)
    if not logits.isfinite().all():
        raise UsageError(
            f"in {model.dtype} this model's numbers overflow. Merge with --dtype fp32."
        )
    with models.disable_adapters(model):
        before = logits_along(model, processor, inputs)
    return ReferenceOutput(inputs, logits, _distance(before, logits))


def logits_along(
    model: torch.nn.Module, processor: ProcessorMixin, inputs: tuple[list, list, list]
) -> Tensor:
    """Compute the logits before each token of given answers, (tokens, vocab)."""
    packed = Packer(model, processor, packs=False)(*inputs)
    return answer_logits(model, packed)[:, :-1][packed.mask[:, 1:]].float().cpu()


def _distance(logits: Tensor, others: Tensor) -> float:
    """Largest over the tokens, relative to the norm of `others`; (tokens, vocab) each."""
    return float(((logits - others).norm(dim=1) / others.norm(dim=1)).max())


def _save(model: PreTrainedModel, processor: ProcessorMixin, folder: Path) -> str:
    """Write a merged model; return the hash of its weights."""
    weights = finite_hash(model)
    if not model.generation_config.do_sample:
        # these say nothing then, and transformers refuses to save them
        model.generation_config.update(temperature=None, top_p=None, top_k=None)
    model.save_pretrained(folder, max_shard_size="5GB")
    processor.save_pretrained(folder)
    return weights


def finite_hash(model: PreTrainedModel) -> str:
    """Hash the weights of a merged model. Raises UsageError for one that is not finite."""
    for name, weight in model.named_parameters():
        if not weight.isfinite().all():
            raise UsageError(
                f"{name}: not finite after the merge in {weight.dtype}. Merge with --dtype fp32."
            )
    return tensors_hash(sorted(model.named_parameters()))


@torch.no_grad()
def verify(
    folder: Path, expected: ReferenceOutput, weights: str, dtype: torch.dtype, place: torch.device
) -> dict[str, Any]:
    """Read a merged model back and ask it the same.

    weights: hash of what was to be written. Along base + adapter's answers each likeliest token
    must be the same one, or as good as tied by what rounding explains. Raises UsageError if
    weights, logits or greedy answers differ.
    """
    model, processor = _load(folder, dtype, place), AutoProcessor.from_pretrained(folder)
    if tensors_hash(sorted(model.named_parameters())) != weights:
        raise UsageError(
            f"{folder}: the weights read back are not those written. Check the disk, merge again."
        )
    limit, tie = TOLERANCES[dtype].relative, TOLERANCES[dtype].nats
    logits = logits_along(model, processor, expected.inputs)
    error = _distance(logits, expected.logits)
    # half the effect: a merge that forgets the adapter is off by all of it
    if not error <= min(limit, expected.effect / 2):  # not >: NaN is no success
        raise UsageError(
            f"the merged model's logits are off by {error:.1e} of their norm; {limit:.0e} would be "
            f"rounding, and the whole adapter moves them by {expected.effect:.1e}. "
            "Merge with --dtype fp32; if it is as far off, do not merge."
        )
    # how much base + adapter prefers its own choice to the merged model's, in nats, (tokens,)
    chosen = logits.argmax(1, keepdim=True)
    behind = expected.logits.max(1).values - expected.logits.gather(1, chosen)[:, 0]
    if behind.max() > tie:
        raise UsageError(
            f"the merged model's greedy answers are others, by {behind.max():.2f} nats: "
            "try --dtype fp32."
        )
    return {
        "relative_error": error,
        "effect": expected.effect,
        "tokens": len(behind),
        "ties": int((behind > 0).sum()),
    }


def _write_card(folder: Path, about: dict[str, Any], name: str) -> None:
    """Write README.md and about.json, with no path of this machine."""
    write_text(folder / "README.md", hub_card(about, name))
    paths = {key: published_path(about[key]) for key in ("base", "data") if key in about}
    write_json(folder / "about.json", about | paths)


def hub_card(about: dict[str, Any], name: str) -> str:
    """README.md of a merged model or an adapter, with figures if notebook 07 has examined it."""
    base, licence = _origin(about)
    merged = about.get("merged")
    on_hub = not Path(base).is_absolute() and not (ROOT / base).exists()
    relation = "merge" if merged else "adapter"
    metadata = ModelCardData(
        license=HUB_LICENCES.get(licence, "other"),
        library_name="transformers" if merged else "peft",
        pipeline_tag="image-text-to-text",
        tags=["preference-alignment", "merged" if merged else "lora"],
        base_model=base if on_hub else None,  # the hub takes only hub ids
        base_model_relation=relation if on_hub else None,
    )
    reward = about.get("reward")
    trained_on = f"the reward `{reward}`" if reward else "preference pairs"
    text = f"A LoRA adapter of `{published_path(base)}` (licence: {licence}), "
    text += f"trained on {trained_on}"
    if merged:
        text += (
            f", merged into its weights in {merged['dtype']}: logits are within "
            f"{merged['relative_error']:.0e} of those of base + adapter. Figures below are of the "
            "adapter on the base as notebook 07 loaded it, usually in 4 bits"
        )
    return f"---\n{metadata}\n---\n\n# {name}\n\n{text}.\n\n{_figures(about)}"


def _figures(about: dict[str, Any]) -> str:
    """The sections of a card on data, versions and figures: notebook 07's, or that it has none."""
    facts = {key: value for key, value in about.items() if key != "merged"}
    for section in read_sections():
        for name, findings in section.examined.items():
            if findings.about == facts:
                card = render_model_card(name, findings)
                return card[card.index("\n## ") + 1 :]
    data = published_path(about.get("data", "not noted"))
    return (
        f"## Data\n`{data}`, licence: {', '.join(data_licences(about))}.\n\n"
        f"## Versions\n{', '.join(package_versions())}.\n\n"
        "## Figures\nNone: notebook 07 has not examined this adapter.\n"
    )


def _origin(about: dict[str, Any]) -> tuple[str, str]:
    """Hub id or folder of the base, and its licence."""
    preset = preset_of(about["base"])
    if preset:
        return preset.location, preset.licence
    return about["base"], "see the base's own card"


def push(folder: Path, repository: str, private: bool = True) -> str:
    """Upload a merged model or a policy's adapter, without checkpoints and logs.

    Returns its address on the hub. Raises UsageError for a bad name, no token, a public repository
    that should be private, or what the hub refuses.
    """
    token = push_token(repository)
    adapter = not (folder / "config.json").exists()
    about = policy_facts(folder) if adapter else read_json(folder / "about.json")
    base, licence = _origin(about)
    data = ", ".join(data_licences(about))
    print(
        f"Licence of the base: {licence}; of the data: {data}. What you publish must keep to both."
    )
    if not adapter:
        return _upload(folder, repository, token, private)
    with tempfile.TemporaryDirectory() as name:  # the files of an adapter name folders of here
        copy = Path(name)
        for file in _published_files(folder):
            shutil.copy(file, copy)
        config = read_json(copy / "adapter_config.json")
        config["base_model_name_or_path"] = published_path(base)
        write_json(copy / "adapter_config.json", config)
        _write_card(copy, about, repository.split("/")[1])
        return _upload(copy, repository, token, private)


def _published_files(folder: Path) -> list[Path]:
    return [f for f in folder.iterdir() if f.is_file() and PUBLISHED_FILES.fullmatch(f.name)]


def _upload(folder: Path, repository: str, token: str, private: bool) -> str:
    """Upload what is published of a folder, unless that would show what is meant to be private."""
    names = sorted(file.name for file in _published_files(folder))
    api = HfApi(token=token)
    try:
        address = api.create_repo(repository, private=private, exist_ok=True)
        public = private and not api.repo_info(repository).private
        if not public:
            api.upload_folder(repo_id=repository, folder_path=folder, allow_patterns=names)
    except (errors.HTTPError, OSError) as error:
        reason = str(error).splitlines()[0].replace(token, "HF_TOKEN")
        raise UsageError(
            f"{repository}: not uploaded ({reason}). Check network and the token's rights."
        ) from None
    if public:
        raise UsageError(
            f"{repository}: is there and public; nothing was uploaded. "
            "Give another name, or --public."
        )
    return str(address)


def push_token(repository: str) -> str:
    """The token to push there with.

    Raises UsageError if there is none, or for a name that is not owner/name.
    """
    try:
        validate_repo_id(repository)
    except errors.HFValidationError:
        repository = ""
    if repository.count("/") != 1:
        raise UsageError(
            "a repository on the hub is called owner/name, with letters, digits, '-', '_' and '.'."
        )
    token = os.environ.get("HF_TOKEN", "").strip() or _colab_secret()
    if not token:
        raise UsageError(
            "no token for the hub. Make one that may write at "
            "https://huggingface.co/settings/tokens, then set HF_TOKEN to it; on Colab, add it as "
            "the secret HF_TOKEN (the key on the left) and let this notebook read it."
        )
    return token


def _colab_secret() -> str | None:
    if hosted_machine() is not COLAB:
        return None
    try:
        from google.colab import userdata

        return userdata.get("HF_TOKEN")
    # none there, refused, nobody answers: errors of several kinds, and for us the same
    except Exception:
        return None
