"""How much memory a stage takes, from the model's shapes alone: no download, no GPU.

Weights: language Linear layers in NF4 with doubly quantised scales (QLoRA, Dettmers et al. 2023,
arXiv 2305.14314: 4 + 0.127 bits), all else in the compute dtype. Activations: what autograd keeps
of a Llama-like layer under LoRA (each kept tensor is named in `layer_activation_bytes`), after the
method of Korthikanti et al. 2022 (arXiv 2205.05198, section 4.1); with gradient checkpointing (Chen
et al. 2016, arXiv 1604.06174) the input of every layer and the inside of one. Shapes and visual
tokens are those of `helpers/models/image_sizes.py`. `helpers/doctor/dry_run.py` measures a loaded
model instead. Used by `helpers/machine/fits.py`, and by `python -m helpers memory`.

Simplifications: what a GPU's allocator loses to fragments is in `USABLE_SHARE`, what a CPU's does
in `HEAP_FACTOR`; the memory-efficient kernel is taken for attention; unsloth's own kernels keep
less than is counted here, and a copy that was quantised before may hold its vision tower in 4 bits;
image features that are kept for later are not counted (in the memory of the machine, not of the
GPU).
"""

from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from functools import cached_property

from helpers.config import (
    SAME_PART,
    DPOSettings,
    LoraSettings,
    PPOSettings,
    RewardSettings,
    SFTSettings,
)
from helpers.models import ModelShapes, lora_weights, weight_bytes

from .workload import (
    STAGES,
    GenerationSettings,
    StageSettings,
    Workload,
    default_settings,
    set_batch,
    smallest_settings,
    stage_of,
)

# Share of a card that can be filled before fragments get in the way
USABLE_SHARE = 0.9

# GB: CUDA context, kernels and their workspace
OVERHEAD_GB = 0.8

# GB on a CPU: Python with its libraries, as `benchmarks/forecasts.py` finds them
CPU_OVERHEAD_GB = 1.25

# On a CPU, bytes held for a byte that comes and goes: the heap that tensors of less than 32 MB lie
# in is full of holes (glibc's malloc). Measured 1.6 to 2.2 in training; with each tensor in pages
# of its own (MALLOC_MMAP_THRESHOLD_=1000000), which takes longer, it was 1.1.
HEAP_FACTOR = 1.9

# What a card is called, in GB, and the bytes / 10⁹ that CUDA reports of it
CARD_GB = {6: 6.2, 8: 8.3, 12: 12.4, 15: 15.8, 24: 23.7, 40: 42.2, 80: 84.9}

# Cards of `memory_table`
TABLE_CARDS = (6, 8, 15, 24, 40)

# Bytes a trained weight: it, its gradient and two averages in fp32
ADAMW_BYTES = 16

# Bytes a logit at the peak, counted with an allocation profiler; of others: `dpo_logit_bytes` …
LOGIT_BYTES = {
    "ppo": 25,  # log-probability and entropy: 5 fp32 copies, and their gradient 1¼
    "look": 20,  # the same without gradients: 5
    "sample": 12,  # 3: processors, softmax
}

# No larger batch is looked for
LARGEST_BATCH = 512


@dataclass(frozen=True)
class PhaseMemory:
    """GB (10⁹ bytes) while `phase`, the one that takes most, is at its peak."""

    phase: str
    weights: float
    adapter: float  # weights, gradients, AdamW, also of a critic and of heads
    overhead: float  # context, workspace, one layer's weights in 16 bits
    features: float = 0.0  # of the images of a batch
    activations: float = 0.0
    mask: float = 0.0
    logits: float = 0.0
    cache: float = 0.0  # keys and values while sampling

    @property
    def total(self) -> float:
        _, *parts = fields(self)
        return sum(getattr(self, part.name) for part in parts)

    def fits(self, gigabytes: float) -> bool:
        """Does it fit into the usable share of a card, or of RAM, with so many GB?"""
        return self.total <= USABLE_SHARE * gigabytes


# --- bytes of what a pass keeps ---

# Linear layers by their part in a layer: what reads the first norm, the second, and what ends it
MIXERS = {"q_proj", "k_proj", "v_proj", *SAME_PART["q_proj"]}
WIDENERS = {"gate_proj", "up_proj", *SAME_PART["gate_proj"], *SAME_PART["up_proj"]}
NARROWERS = {"down_proj", *SAME_PART["down_proj"]}


def layer_activation_bytes(
    model: ModelShapes, lora: LoraSettings, four_bit: bool = True, compute_bytes: int = 2
) -> int:
    """Return the bytes a token that autograd keeps of one layer of the language model.

    Frozen layers keep nothing of their input. compute_bytes: of a number, 2 on a GPU, 4 on a CPU.
    """
    inputs = {name: width for name, width, _ in model.linear if name in lora.module_names}
    if lora.dropout or (compute_bytes == 2 and not four_bit):
        # Each LoRA matrix has a copy of its own, and a mask: bool on a GPU, fp32 on a CPU
        mask = (1 if compute_bytes == 2 else 4) if lora.dropout else 0
        adapters = sum(inputs.values()) * (compute_bytes + mask)
    else:
        # q, k and v share the normed input, gate and up theirs; o's is what attention keeps anyway
        normed = bool(inputs.keys() & MIXERS) + bool(inputs.keys() & WIDENERS)
        narrowed = max((inputs.get(name, 0) for name in NARROWERS), default=0)
        adapters = compute_bytes * (normed * model.hidden + narrowed)
    adapters += compute_bytes * lora.r * len(inputs)
    norms = 2 * 4 * model.hidden  # their inputs, in fp32
    if model.normed_heads:
        norms += 4 * (model.queries + model.keys)
    # q, k and v of all heads, result; log of the sum
    attention = 4 * compute_bytes * model.queries + 4 * model.heads
    mlp = 3 * compute_bytes * model.intermediate  # gate, its SiLU, up
    return adapters + norms + attention + mlp


def dpo_logit_bytes(tokens: int) -> float:
    """Return the bytes a logit in TRL's DPO, all in fp32.

    First logits, a copy without the last column, and three more of 128 tokens at a time for the
    entropy that it logs; later logits and two gradients.
    """
    first = 4 + 4 + 3 * 4 * 128 / max(tokens, 128)
    return max(first, 3 * 4)


def sft_logit_bytes(tokens: int) -> float:
    """Return the bytes a logit in SFT, all in fp32.

    First logits, their log-softmax, and for the entropy that TRL logs a copy without the last
    column and three more of 128 tokens at a time; later logits, log-softmax and two gradients.
    """
    first = 3 * 4 + 3 * 4 * 128 / max(tokens, 128)
    return max(first, 4 * 4)


# --- the phases of a stage ---


@dataclass(frozen=True)
class _StageMemory:
    """The phases of a stage, each a `PhaseMemory`. The methods `load` … `ppo` are the stages."""

    workload: Workload
    settings: StageSettings

    @property
    def model(self) -> ModelShapes:
        return self.workload.shapes

    @property
    def number(self) -> int:
        """Bytes of a number that is computed with."""
        return self.workload.compute_bytes

    @cached_property
    def always(self) -> PhaseMemory:
        """What is there in every phase."""
        trained = self._trained()
        workspace = 0
        if self.workload.four_bit:  # the layer that is unpacked
            workspace += self.model.largest * self.number
        if self.number == 2:  # trained weights are in fp32, and cast for each pass
            workspace += trained * self.number
        weights = weight_bytes(self.model, self.workload.four_bit, self.number)
        overhead = OVERHEAD_GB if self.workload.on_gpu else CPU_OVERHEAD_GB
        return PhaseMemory(
            "always",
            weights=weights / 1e9,
            adapter=ADAMW_BYTES * trained / 1e9,
            overhead=overhead + workspace / 1e9,
        )

    def _trained(self) -> int:
        """Numbers that are trained: adapters and heads."""
        settings = self.settings
        hidden = self.model.hidden
        if isinstance(settings, GenerationSettings):
            return 0
        adapter = lora_weights(self.model, settings.lora)
        if isinstance(settings, RewardSettings):
            return adapter + (hidden if settings.head == "linear" else hidden * (hidden // 2))
        if isinstance(settings, DPOSettings | SFTSettings):
            return adapter
        if settings.advantages != "gae" or not settings.critic_layers:
            return adapter
        width = 2 * hidden if settings.critic_sees_image else hidden
        head = width
        if settings.critic_layers == 3:
            head = width * hidden + hidden * (hidden // 2)
        return adapter * (1 + settings.critic_adapter) + head

    def phase(self, phase: str, rows: int, **parts: float) -> PhaseMemory:
        """What is always there, the features of so many images, and the given parts in bytes."""
        tokens = rows * self.workload.visual_tokens
        parts["features"] = (
            tokens * self.model.hidden * self.number * (1 + self.model.extra_features)
        )
        held = 1 if self.workload.on_gpu else HEAP_FACTOR
        gigabytes = {part: held * size / 1e9 for part, size in parts.items()}
        return replace(self.always, phase=phase, **gigabytes)

    def encoding(self, images: int) -> PhaseMemory:
        """The vision tower without gradients.

        One layer's residual, its norm, and the inside of attention or of the MLP are there.
        """
        model = self.model
        width = model.vision_width
        attention = 4 * self.number * width + 8 * width  # rotated queries and keys are in fp32
        mlp = 3 * self.number * model.vision_intermediate
        kept = 2 * self.number * width + max(attention, mlp)  # of a patch
        if model.keeps_vision_states:  # images are encoded one at a time
            kept += self.number * width * model.vision_depth
            images = 1
        patches = images * self.workload.patches
        return self.phase("images are encoded", 0, activations=patches * kept)

    def inference(self, phase: str, rows: int, sequence: int, **parts: float) -> PhaseMemory:
        """A forward without gradients: one layer's inside."""
        model = self.model
        attention = 4 * self.number * model.queries + 4 * model.hidden
        mlp = 3 * self.number * model.intermediate
        layer = 2 * self.number * model.hidden + max(attention, mlp)
        mask = rows * sequence**2 * (1 + self.number)  # as bool, and as numbers
        return self.phase(phase, rows, activations=rows * sequence * layer, mask=mask, **parts)

    def sampling(self, prompts: int, group: int) -> PhaseMemory:
        """All layers' keys and values; one layer's twice as it grows, and spread over all heads."""
        model = self.model
        rows = prompts * group
        token = self.number * (2 * model.keys * (model.layers + 1) + 2 * model.queries)
        cache = rows * (self.workload.prompt + self.workload.answer_tokens) * token
        logits = LOGIT_BYTES["sample"] * rows * model.vocab
        prompt = self.workload.prompt
        # States that cannot be repeated come from a prompt for each answer
        read = rows if model.recurrent else prompts
        return self.inference("answers are sampled", read, prompt, cache=cache, logits=logits)

    def training(self, rows: int, answers: int, logits: float) -> PhaseMemory:
        """Forward and backward of packed rows: image and prompt once, then `answers` answers."""
        model = self.model
        settings = self.settings
        four_bit = self.workload.four_bit
        layer = layer_activation_bytes(model, settings.lora, four_bit, self.number)
        inputs = model.layers * self.number * model.hidden  # of all layers
        fusion = isinstance(settings, RewardSettings) and settings.head == "fusion"
        if settings.gradient_checkpointing:
            # One layer's inside, with the gradients that run through its MLP
            kept = inputs + layer + 2 * self.number * model.intermediate
            masks = 1 + self.number  # as bool, and in one layer as numbers
        else:
            kept = model.layers * layer
            masks = 1 + self.number * model.layers
            if fusion and self.number == 2:  # in fp32 they are kept anyway
                kept += inputs
        lines, sequence = self.workload.rows(rows, answers)
        activations = lines * sequence * (kept + 4 * model.hidden)
        activations += rows * self.workload.patches * self._vision_training()
        mask = lines * sequence**2 * masks
        return self.phase("training", lines, activations=activations, mask=mask, logits=logits)

    def _vision_training(self) -> int:
        """The bytes a patch of a vision tower that is trained too.

        Its MLP has two matrices or three.
        """
        if not self.settings.lora.vision:
            return 0
        width = self.model.vision_width
        layer = 8 * width + 6 * self.number * width
        layer += 3 * self.number * self.model.vision_intermediate
        depth = self.model.vision_depth
        if self.settings.gradient_checkpointing:
            return depth * self.number * width + layer
        return depth * layer

    def load(self, settings: GenerationSettings) -> list[PhaseMemory]:
        return [self.encoding(settings.batch_size), self.sampling(settings.batch_size, 1)]

    def sft(self, settings: SFTSettings) -> list[PhaseMemory]:
        tokens = settings.batch_size * self.workload.answer_tokens
        logits = sft_logit_bytes(tokens) * tokens * self.model.vocab
        return [self.encoding(settings.batch_size), self.training(settings.batch_size, 1, logits)]

    def dpo(self, settings: DPOSettings) -> list[PhaseMemory]:
        # The chosen answer is shown once more, to a spoilt image
        spoilt = bool(settings.image_weight or settings.anchor_weight)
        rows = settings.batch_size * (1 + spoilt)
        tokens = settings.batch_size * (2 + spoilt) * self.workload.answer_tokens
        logits = dpo_logit_bytes(tokens) * tokens * self.model.vocab
        return [self.encoding(rows), self.training(rows, 2, logits)]

    def reward(self, settings: RewardSettings) -> list[PhaseMemory]:
        batch = settings.batch_size
        return [self.encoding(batch), self.training(batch, self.workload.answers, 0)]

    def ppo(self, settings: PPOSettings) -> list[PhaseMemory]:
        group = settings.group_size
        together = settings.sampling_batch or settings.prompts_per_iteration // settings.shards
        tokens = group * self.workload.answer_tokens  # answered to a prompt
        logits = tokens * self.model.vocab
        look = LOGIT_BYTES["look"] * together * logits
        update = LOGIT_BYTES["ppo"] * settings.mini_batch * logits
        lines, sequence = self.workload.rows(together, group)
        return [
            self.encoding(together),
            self.sampling(together, group),
            self.inference("answers are looked at", lines, sequence, logits=look),
            self.training(settings.mini_batch, group, update),
        ]


# --- what a stage takes ---


def phases(workload: Workload, settings: StageSettings) -> list[PhaseMemory]:
    """Return the memory at the peak of each phase of the stage that the settings are for.

    Raises UsageError for an unknown model.
    """
    stage = getattr(_StageMemory(workload, settings), stage_of(settings))
    return stage(settings)


def forecast_memory(workload: Workload, settings: StageSettings) -> PhaseMemory:
    """Return the phase that takes most.

    >>> forecast_memory(Workload("qwen2-vl-2b"), dpo_preset("t4")).phase
    'training'
    """
    return max(phases(workload, settings), key=lambda memory: memory.total)


def least_memory(workload: Workload, settings: StageSettings) -> PhaseMemory:
    """Return the forecast for the `smallest_settings`."""
    return forecast_memory(workload, smallest_settings(settings))


def largest_batch(workload: Workload, settings: StageSettings, gigabytes: float) -> int | None:
    """Return the largest batch that fits into the usable share of `gigabytes`; None if not even 1.

    It is of pairs in a forward (records, for the reward model; prompts, for PPO; answers, for SFT
    and generation), and at most `LARGEST_BATCH`.
    """
    most = LARGEST_BATCH
    if isinstance(settings, PPOSettings):
        most = min(most, settings.prompts_per_iteration)

    def is_too_large(batch: int) -> bool:
        return not forecast_memory(workload, set_batch(settings, batch)).fits(gigabytes)

    # Batches before the first that does not fit
    return bisect_left(range(1, most + 1), True, key=is_too_large) or None


def memory_table(workloads: Sequence[Workload]) -> str:
    """Return a text: the `smallest_settings` of each stage, and the largest batch with them.

    It has a row for each workload and stage, with the GB, and the batch on each card.
    """
    words = {None: "–", LARGEST_BATCH: f"≥ {LARGEST_BATCH}"}
    head = "".join(f"{f'{card} GB':>8}" for card in TABLE_CARDS)
    lines = [f"{'model':<21}{'stage':<8}{'GB':>6}{head}"]
    for workload in workloads:
        for stage in STAGES:
            settings = smallest_settings(default_settings(stage))
            need = forecast_memory(workload, settings).total
            row = f"{workload.model:<21}{stage:<8}{need:>6.1f}"
            for card in TABLE_CARDS:
                batch = largest_batch(workload, settings, CARD_GB[card])
                row += f"{words.get(batch, batch):>8}"
            lines.append(row)
    return "\n".join(lines)
