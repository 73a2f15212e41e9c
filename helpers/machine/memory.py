"""How much memory a stage takes, from the model's shapes alone: nothing is downloaded, no GPU is needed.

Weights: language Linear layers in NF4 with doubly quantised scales (QLoRA, Dettmers et al. 2023, arXiv 2305.14314: 4 +
0.127 bits), all else in the compute dtype. Activations: what autograd keeps of a Llama-like layer under LoRA (each kept
tensor is named in `layer_activation_bytes`), after the method of Korthikanti et al. 2022 (arXiv 2205.05198, section 4.1); with
gradient checkpointing (Chen et al. 2016, arXiv 1604.06174) the input of every layer and the inside of one. Shapes and
visual tokens are those of `helpers/models/shapes.py`. `helpers/doctor/dry_run.py` measures a loaded model instead. Used by
`helpers/machine/fits.py`, and by `python -m helpers memory`.

Simplifications: what an allocator loses to fragments is in `USABLE_SHARE`; the memory-efficient
kernel is taken for attention; unsloth's own kernels keep less than is counted here, and a copy that
was quantised before may hold its vision tower in 4 bits; image features that are kept for later are
not counted (in the memory of the machine, not of the GPU).
"""

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from functools import cached_property

from helpers.config import DPOSettings, LoraSettings, PPOSettings, RewardSettings
from helpers.models import ModelShapes, lora_weights, weight_bytes

from .workload import (
    STAGES,
    GenerationSettings,
    StageSettings,
    Workload,
    default_settings,
    set_batch,
    smallest_settings,
)

USABLE_SHARE = 0.9  # share of a card that can be filled before fragments get in the way
OVERHEAD_GB = (
    0.8  # GB: CUDA context, kernels and their workspace; on a CPU Python with its libraries
)
CARD_GB = {
    6: 6.2,
    8: 8.3,
    12: 12.4,
    15: 15.8,
    24: 23.7,
    40: 42.2,
    80: 84.9,
}  # name in GB → bytes / 10⁹ that CUDA reports
ADAMW_BYTES = 16  # bytes a trained weight: it, its gradient and two averages in fp32
# Bytes a logit at the peak, counted with an allocation profiler: PPO's log-probability and entropy 5 fp32 copies and their
# gradient 1¼, or 5 without gradients ("look"); sampling 3 (processors, softmax); DPO's see `dpo_logit_bytes`
LOGIT_BYTES = {"ppo": 25, "look": 20, "sample": 12}
LARGEST_BATCH = 512  # no larger batch is looked for


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
        return sum(getattr(self, field.name) for field in fields(self)[1:])

    def fits(self, gigabytes: float) -> bool:
        """Does it fit into the usable share of a card, or of RAM, with so many GB?"""
        return self.total <= USABLE_SHARE * gigabytes

    def __str__(self) -> str:
        parts = [
            f"{f.name} {getattr(self, f.name):.2f}"
            for f in fields(self)[1:]
            if getattr(self, f.name) >= 0.005
        ]
        return f"{self.total:.1f} GB while {self.phase} ({', '.join(parts)})"


def layer_activation_bytes(
    model: ModelShapes, lora: LoraSettings, *, four_bit: bool = True, compute_bytes: int = 2
) -> int:
    """Bytes a token that autograd keeps of one layer of the language model. Frozen layers keep nothing of their input."""
    c, h, a, i = compute_bytes, model.hidden, model.queries, model.intermediate
    inputs = {
        "q_proj": h,
        "k_proj": h,
        "v_proj": h,
        "o_proj": a,
        "gate_proj": h,
        "up_proj": h,
        "down_proj": i,
    }
    trained = {name: width for name, width in inputs.items() if name in lora.target_modules}
    if lora.dropout or (
        c == 2 and not four_bit
    ):  # each LoRA matrix has a copy of its own, and a mask
        mask = 0 if not lora.dropout else 1 if c == 2 else 4  # bool on a GPU, fp32 on a CPU
        adapters = sum(trained.values()) * (c + mask)
    else:  # q, k and v share the normed input, gate and up theirs; o's is what attention keeps anyway
        shared = [
            trained.keys() & group
            for group in ({"q_proj", "k_proj", "v_proj"}, {"gate_proj", "up_proj"})
        ]
        adapters = c * (h * sum(map(bool, shared)) + (i if "down_proj" in trained else 0))
    norms = 2 * 4 * h + (4 * (a + model.keys) if model.normed_heads else 0)  # their inputs, in fp32
    attention = 4 * c * a + 4 * model.heads  # q, k and v of all heads, result; log of the sum
    return (
        adapters + c * lora.r * len(trained) + norms + attention + 3 * c * i
    )  # gate, its SiLU, up


def dpo_logit_bytes(tokens: int) -> float:
    """Bytes a logit in TRL's DPO: logits, a copy without the last column and three more of 128 tokens at a time for the
    entropy that it logs; later logits and two gradients."""
    return max(4 + 4 + 3 * 4 * 128 / max(tokens, 128), 3 * 4)


@dataclass(frozen=True)
class _StageMemory:
    """The phases of a stage, each a `PhaseMemory`."""

    workload: Workload
    settings: StageSettings

    @property
    def model(self) -> ModelShapes:
        return self.workload.shapes

    @property
    def c(self) -> int:
        return self.workload.compute_bytes

    @cached_property
    def always(self) -> PhaseMemory:
        """What is there in every phase."""
        workload, model, trained = self.workload, self.model, self._trained()
        workspace = model.largest * self.c if workload.four_bit else 0
        workspace += trained * self.c if self.c == 2 else 0
        weights = weight_bytes(model, four_bit=workload.four_bit, compute_bytes=self.c)
        parts = (weights, ADAMW_BYTES * trained, OVERHEAD_GB * 1e9 + workspace)
        return PhaseMemory("always", *(size / 1e9 for size in parts))

    def _trained(self) -> int:
        """Numbers that are trained: adapters and heads."""
        settings, h = self.settings, self.model.hidden
        if isinstance(settings, GenerationSettings):
            return 0
        adapter = lora_weights(self.model, settings.lora)
        if isinstance(settings, RewardSettings):
            return adapter + (h if settings.head == "linear" else h * (h // 2))
        if (
            isinstance(settings, PPOSettings)
            and settings.advantages == "gae"
            and settings.critic_layers
        ):
            width = h * (2 if settings.critic_sees_image else 1)
            head = width * h + h * (h // 2) if settings.critic_layers == 3 else width
            return adapter * (2 if settings.critic_adapter else 1) + head
        return adapter

    def phase(self, phase: str, rows: int, **parts: float) -> PhaseMemory:
        """What is always there, the features of so many images, and the given parts in bytes."""
        model = self.model
        tokens = rows * self.workload.visual_tokens
        parts |= {"features": tokens * model.hidden * self.c * (1 + model.extra_features)}
        return replace(
            self.always, phase=phase, **{part: size / 1e9 for part, size in parts.items()}
        )

    def encoding(self, images: int) -> PhaseMemory:
        """The vision tower without gradients: the residual, its norm, and attention's or the MLP's inside, of one layer."""
        (width, depth, inner, all_states), c = self.model.vision, self.c
        inside = 2 * c * width + max(
            4 * c * width + 8 * width, 3 * c * inner
        )  # rotated queries and keys are in fp32
        together = images if self.model.vision[3] is False else 1
        states = c * width * depth if all_states else 0
        return self.phase(
            "images are encoded",
            0,
            activations=together * self.workload.patches * (inside + states),
        )

    def inference(self, phase: str, rows: int, sequence: int, **parts: float) -> PhaseMemory:
        """A forward without gradients: one layer's inside."""
        c, model = self.c, self.model
        layer = 2 * c * model.hidden + max(
            3 * c * model.intermediate, 4 * c * model.queries + 4 * model.hidden
        )
        parts |= {"activations": rows * sequence * layer, "mask": rows * sequence**2 * (1 + c)}
        return self.phase(phase, rows, **parts)

    def sampling(self, prompts: int, group: int) -> PhaseMemory:
        """All layers' keys and values; one layer's twice as it grows, and spread over all heads."""
        model, prompt, rows = self.model, self.workload.prompt, prompts * group
        numbers = 2 * model.keys * (model.layers + 1) + 2 * model.queries  # of a token
        cache = rows * (prompt + self.workload.answer_tokens) * self.c * numbers
        logits = LOGIT_BYTES["sample"] * rows * model.vocab
        return self.inference("answers are sampled", prompts, prompt, cache=cache, logits=logits)

    def training(self, rows: int, answers: int, logits: float) -> PhaseMemory:
        """Forward and backward of packed rows: image and prompt once, then `answers` answers."""
        model, c, four_bit = self.model, self.c, self.workload.four_bit
        checkpointing = self.settings.gradient_checkpointing
        sequence = self.workload.prompt + answers * self.workload.answer_tokens
        inside = layer_activation_bytes(
            model, self.settings.lora, four_bit=four_bit, compute_bytes=c
        )
        kept = model.layers * inside
        if (
            checkpointing
        ):  # inputs of all layers; one layer's inside with the gradients that run through its MLP
            kept = model.layers * c * model.hidden + inside + 2 * c * model.intermediate
        fusion = isinstance(self.settings, RewardSettings) and self.settings.head == "fusion"
        if fusion and c == 2 and not checkpointing:  # else they are kept anyway
            kept += model.layers * c * model.hidden
        masks = 1 + c * (
            1 if checkpointing else model.layers
        )  # as bool, and in each layer as numbers
        activations = rows * sequence * (kept + 4 * model.hidden)
        activations += self._vision_training(rows, checkpointing)
        return self.phase(
            "training",
            rows,
            activations=activations,
            mask=rows * sequence**2 * masks,
            logits=logits,
        )

    def _vision_training(self, rows: int, checkpointing: bool) -> float:
        """The same for a vision tower that is trained too, with two or three matrices in its MLP."""
        if not self.settings.lora.vision:
            return 0
        (width, depth, inner, _), c = self.model.vision, self.c
        inside = 8 * width + 6 * c * width + 3 * c * inner
        return (
            rows
            * self.workload.patches
            * (depth * c * width + inside if checkpointing else depth * inside)
        )

    def load(self, settings: GenerationSettings) -> list[PhaseMemory]:
        return [self.encoding(settings.batch_size), self.sampling(settings.batch_size, 1)]

    def dpo(self, settings: DPOSettings) -> list[PhaseMemory]:
        # the chosen answer is shown once more, to a spoilt image
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
        sequence = self.workload.prompt + tokens
        return [
            self.encoding(together),
            self.sampling(together, group),
            self.inference("answers are looked at", together, sequence, logits=look),
            self.training(
                settings.mini_batch, group, LOGIT_BYTES["ppo"] * settings.mini_batch * logits
            ),
        ]


def phases(workload: Workload, settings: StageSettings) -> list[PhaseMemory]:
    """Return the memory at the peak of each phase of the stage that the settings are for.

    Raises UsageError for an unknown model.
    """
    memory = _StageMemory(workload, settings)
    match settings:
        case GenerationSettings():
            return memory.load(settings)
        case DPOSettings():
            return memory.dpo(settings)
        case RewardSettings():
            return memory.reward(settings)
        case PPOSettings():
            return memory.ppo(settings)


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
    """Return the largest batch that fits into the usable share of `gigabytes`; None if not even 1 does.

    It is of pairs in a forward (records, for the reward model; prompts, for PPO; answers, for
    generation), and at most `LARGEST_BATCH`.
    """
    low, high = 0, LARGEST_BATCH
    if isinstance(settings, PPOSettings):
        high = min(high, settings.prompts_per_iteration)
    while low < high:
        middle = (low + high + 1) // 2
        fits = forecast_memory(workload, set_batch(settings, middle)).fits(gigabytes)
        low, high = (middle, high) if fits else (low, middle - 1)
    return low or None


def memory_table(workloads: Sequence[Workload], cards: Sequence[int] = (6, 8, 15, 24, 40)) -> str:
    """Return a text: what the `smallest_settings` of each stage take, and the largest batch with them.

    A row for each workload and stage, with the GB, and the batch on each card.
    """
    head = "".join(f"{f'{card} GB':>8}" for card in cards)
    lines = [f"{'model':<21}{'stage':<8}{'GB':>6}{head}"]
    for workload in workloads:
        for stage in STAGES:
            settings = smallest_settings(default_settings(stage))
            need = forecast_memory(workload, settings).total
            sizes = (CARD_GB.get(card, card) for card in cards)
            most = [largest_batch(workload, settings, size) for size in sizes]
            row = "".join(f"{_batch_text(batch):>8}" for batch in most)
            lines.append(f"{workload.model:<21}{stage:<8}{need:>6.1f}{row}")
    return "\n".join(lines)


def _batch_text(batch: int | None) -> str:
    if batch is None:
        return "–"
    return f"≥ {batch}" if batch == LARGEST_BATCH else str(batch)
