"""How much memory a stage takes, from the model's shapes alone: nothing is downloaded, no GPU is needed.

Weights: language Linear layers in NF4 with doubly quantised scales (QLoRA, Dettmers et al. 2023, arXiv 2305.14314: 4 +
0.127 bits), all else in the compute dtype. Activations: what autograd keeps of a Llama-like layer under LoRA (each kept
tensor is named in `layer_activation_bytes`), after the method of Korthikanti et al. 2022 (arXiv 2205.05198, section 4.1); with
gradient checkpointing (Chen et al. 2016, arXiv 1604.06174) the input of every layer and the inside of one. Shapes and
visual tokens are those of `helpers/models/shapes.py`. `helpers/doctor/dry_run.py` measures a loaded model instead. Used by
`helpers/machine/fits.py`, and by `python -m helpers memory`.

Simplifications: all answers have `answer_tokens` tokens, all images one size; what an allocator loses to fragments is in
`USABLE`; the memory-efficient kernel is taken for attention; unsloth's own kernels keep less than is counted here, and a
copy that was quantised before may hold its vision tower in 4 bits; image features that are kept for later are not counted
(in the memory of the machine, not of the GPU).
"""

from dataclasses import dataclass, fields, replace

from helpers.config import DPOSettings, LoraSettings, PPOSettings, RewardSettings, dpo_preset, ppo_preset, reward_preset
from helpers.files import UsageError
from helpers.models.presets import PRESETS
from helpers.models.shapes import ModelShapes, lora_weights, shapes_of, tokens_and_patches, weight_bytes

USABLE_SHARE = 0.9  # share of a card that can be filled before fragments get in the way
OVERHEAD_GB = 0.8  # GB: CUDA context, kernels and their workspace; on a CPU Python with its libraries
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
BATCH_FIELDS = {"load": "batch_size", "dpo": "batch_size", "reward": "batch_size", "ppo": "mini_batch"}
LARGEST_BATCH = 512  # no larger batch is looked for


@dataclass(frozen=True)
class GenerationSettings:
    """Answers without training: what notebooks that train nothing do. The defaults are `models.generate_answers`'s."""

    batch_size: int = 64
    max_new_tokens: int = 64


StageSettings = GenerationSettings | DPOSettings | RewardSettings | PPOSettings


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

    def __str__(self) -> str:
        parts = [f"{f.name} {getattr(self, f.name):.2f}" for f in fields(self)[1:] if getattr(self, f.name) >= 0.005]
        return f"{self.total:.1f} GB while {self.phase} ({', '.join(parts)})"


def layer_activation_bytes(
    model: ModelShapes, lora: LoraSettings, *, four_bit: bool = True, compute_bytes: int = 2
) -> int:
    """Bytes a token that autograd keeps of one layer of the language model. Frozen layers keep nothing of their input."""
    c, h, a, i = compute_bytes, model.hidden, model.queries, model.intermediate
    inputs = {"q_proj": h, "k_proj": h, "v_proj": h, "o_proj": a, "gate_proj": h, "up_proj": h, "down_proj": i}
    trained = {name: width for name, width in inputs.items() if name in lora.target_modules}
    if lora.dropout or (c == 2 and not four_bit):  # each LoRA matrix has a copy of its own, and a mask
        mask = 0 if not lora.dropout else 1 if c == 2 else 4  # bool on a GPU, fp32 on a CPU
        adapters = sum(trained.values()) * (c + mask)
    else:  # q, k and v share the normed input, gate and up theirs; o's is what attention keeps anyway
        shared = [trained.keys() & group for group in ({"q_proj", "k_proj", "v_proj"}, {"gate_proj", "up_proj"})]
        adapters = c * (h * sum(map(bool, shared)) + (i if "down_proj" in trained else 0))
    norms = 2 * 4 * h + (4 * (a + model.keys) if model.normed_heads else 0)  # their inputs, in fp32
    attention = 4 * c * a + 4 * model.heads  # q, k and v of all heads, result; log of the sum
    return adapters + c * lora.r * len(trained) + norms + attention + 3 * c * i  # gate, its SiLU, up


def dpo_logit_bytes(tokens: int) -> float:
    """Bytes a logit in TRL's DPO: logits, a copy without the last column and three more of 128 tokens at a time for the
    entropy that it logs; later logits and two gradients."""
    return max(4 + 4 + 3 * 4 * 128 / max(tokens, 128), 3 * 4)


class _StageMemory:
    """The phases of a stage, each a `PhaseMemory`."""

    def __init__(
        self,
        name: str,
        settings: StageSettings,
        image: tuple[int, int, int | None],
        prompt: int,
        four_bit: bool,
        c: int,
    ):
        self.model, self.settings, self.c, self.four_bit = shapes_of(name), settings, c, four_bit
        self.visual, self.patches = tokens_and_patches(name, *image)
        self.prompt = self.visual + prompt
        self.lora: LoraSettings | None = getattr(settings, "lora", None)
        self.trained = self._trained()
        workspace = (
            OVERHEAD_GB * 1e9 + (self.model.largest * c if four_bit else 0) + (self.trained * c if c == 2 else 0)
        )
        weights = weight_bytes(self.model, four_bit=four_bit, compute_bytes=c)
        self.always = {"weights": weights, "adapter": ADAMW_BYTES * self.trained, "overhead": workspace}

    def _trained(self) -> int:
        if self.lora is None:
            return 0
        settings, h, adapter = self.settings, self.model.hidden, lora_weights(self.model, self.lora)
        if isinstance(settings, RewardSettings):
            return adapter + (h if settings.head == "linear" else h * (h // 2))
        if isinstance(settings, PPOSettings) and settings.advantages == "gae" and settings.critic_layers:
            width = h * (2 if settings.critic_sees_image else 1)
            head = width * h + h * (h // 2) if settings.critic_layers == 3 else width
            return adapter * (2 if settings.critic_adapter else 1) + head
        return adapter

    def phase(self, phase: str, rows: int, **parts: float) -> PhaseMemory:
        features = rows * self.visual * self.model.hidden * self.c * (1 + self.model.extra_features)
        return PhaseMemory(
            phase, **{part: value / 1e9 for part, value in (self.always | {"features": features} | parts).items()}
        )

    def encoding(self, images: int) -> PhaseMemory:
        """The vision tower without gradients: the residual, its norm, and attention's or the MLP's inside, of one layer."""
        (width, depth, inner, all_states), c = self.model.vision, self.c
        inside = 2 * c * width + max(4 * c * width + 8 * width, 3 * c * inner)  # rotated queries and keys are in fp32
        together = images if self.model.vision[3] is False else 1
        states = c * width * depth if all_states else 0
        return self.phase("images are encoded", 0, activations=together * self.patches * (inside + states))

    def inference(self, phase: str, rows: int, sequence: int, **parts: float) -> PhaseMemory:
        """A forward without gradients: one layer's inside."""
        c, model = self.c, self.model
        layer = 2 * c * model.hidden + max(3 * c * model.intermediate, 4 * c * model.queries + 4 * model.hidden)
        parts |= {"activations": rows * sequence * layer, "mask": rows * sequence**2 * (1 + c)}
        return self.phase(phase, rows, **parts)

    def sampling(self, prompts: int, group: int, length: int) -> PhaseMemory:
        """All layers' keys and values; one layer's twice as it grows, and spread over all heads."""
        model, rows = self.model, prompts * group
        cache = rows * (self.prompt + length) * self.c * (2 * model.keys * (model.layers + 1) + 2 * model.queries)
        logits = LOGIT_BYTES["sample"] * rows * model.vocab
        return self.inference("answers are sampled", prompts, self.prompt, cache=cache, logits=logits)

    def training(self, rows: int, answers: int, length: int, logits: float, checkpointing: bool) -> PhaseMemory:
        """Forward and backward of packed rows: image and prompt once, then `answers` answers."""
        model, c, sequence = self.model, self.c, self.prompt + answers * length
        tokens, inside = (
            rows * sequence,
            layer_activation_bytes(model, self.lora, four_bit=self.four_bit, compute_bytes=c),
        )
        kept = model.layers * inside
        if checkpointing:  # inputs of all layers; one layer's inside with the gradients that run through its MLP
            kept = model.layers * c * model.hidden + inside + 2 * c * model.intermediate
        if getattr(self.settings, "head", "") == "fusion" and c == 2 and not checkpointing:  # else they are kept anyway
            kept += model.layers * c * model.hidden
        masks = 1 + c * (1 if checkpointing else model.layers)  # as bool, and in each layer as numbers
        activations = tokens * (kept + 4 * model.hidden) + self._vision_training(rows, checkpointing)
        return self.phase("training", rows, activations=activations, mask=rows * sequence**2 * masks, logits=logits)

    def _vision_training(self, rows: int, checkpointing: bool) -> float:
        """The same for a vision tower that is trained too, with two or three matrices in its MLP."""
        if not self.lora.vision:
            return 0
        (width, depth, inner, _), c = self.model.vision, self.c
        inside = 8 * width + 6 * c * width + 3 * c * inner
        return rows * self.patches * (depth * c * width + inside if checkpointing else depth * inside)


def phases(
    name: str, stage: str, settings: StageSettings | None = None, *, width: int = 1024, height: int = 1024,
    max_pixels: int | None = None, prompt_tokens: int = 60, answer_tokens: int = 20, answers: int = 2,
    four_bit: bool = True, compute_bytes: int = 2,
) -> list[PhaseMemory]:  # fmt: skip
    """Memory at the peak of each phase of a stage ("load", "dpo", "reward", "ppo").

    settings: of that stage; None: its preset "t4". max_pixels: as of `models.load_model`. answers: to a record of reward
    training (pairs have 2, PPO its group). compute_bytes: 2 on a GPU, 4 on a CPU, where fp32 is computed with. Raises
    UsageError for an unknown stage or model.
    """
    if stage not in BATCH_FIELDS:
        raise UsageError(f"unknown stage {stage!r}: choose from {', '.join(BATCH_FIELDS)}.")
    settings = settings or default_settings(stage)
    plan = _StageMemory(name, settings, (width, height, max_pixels), prompt_tokens, four_bit, compute_bytes)
    batch, vocab = getattr(settings, BATCH_FIELDS[stage]), plan.model.vocab
    if stage == "load":
        return [plan.encoding(batch), plan.sampling(batch, 1, answer_tokens)]
    if stage == "dpo":
        spoilt = bool(settings.image_weight or settings.anchor_weight)  # the chosen answer once more, to a spoilt image
        rows, tokens = batch * (1 + spoilt), batch * (2 + spoilt) * answer_tokens
        logits = dpo_logit_bytes(tokens) * tokens * vocab
        return [plan.encoding(rows), plan.training(rows, 2, answer_tokens, logits, settings.gradient_checkpointing)]
    if stage == "reward":
        return [plan.encoding(batch), plan.training(batch, answers, answer_tokens, 0, settings.gradient_checkpointing)]
    sequence, tokens = plan.prompt + settings.group * answer_tokens, settings.group * answer_tokens
    together = settings.at_once or settings.prompts // settings.shards
    return [
        plan.encoding(together),
        plan.sampling(together, settings.group, answer_tokens),
        plan.inference("answers are looked at", together, sequence, logits=LOGIT_BYTES["look"] * together * tokens * vocab),
        plan.training(batch, settings.group, answer_tokens, LOGIT_BYTES["ppo"] * batch * tokens * vocab, settings.gradient_checkpointing),
    ]  # fmt: skip


def default_settings(stage: str) -> StageSettings:
    """The stage's preset "t4"."""
    presets = {"load": GenerationSettings, "dpo": dpo_preset, "reward": reward_preset, "ppo": ppo_preset}
    return GenerationSettings() if stage == "load" else presets[stage]("t4")


def forecast_memory(
    name: str, stage: str, settings: StageSettings | None = None, **options: int | bool | None
) -> PhaseMemory:
    """The phase that takes most; see `phases` for settings and options.

    >>> forecast("qwen2-vl-2b", "dpo", dpo_preset("t4")).phase
    'training'
    """
    return max(phases(name, stage, settings, **options), key=lambda memory: memory.total)


def set_batch(stage: str, settings: StageSettings, batch: int) -> StageSettings:
    return replace(settings, **{BATCH_FIELDS[stage]: batch})


def smallest_settings(stage: str, settings: StageSettings) -> StageSettings:
    """Return the settings with the smallest batch, gradient checkpointing, and one prompt sampled at a time."""
    if stage == "load":
        return set_batch(stage, settings, 1)
    settings = replace(set_batch(stage, settings, 1), gradient_checkpointing=True)
    return replace(settings, mini_batch=settings.shards, at_once=1) if stage == "ppo" else settings


def least_memory(
    name: str, stage: str, settings: StageSettings | None = None, **options: int | bool | None
) -> PhaseMemory:
    """The forecast for the `smallest` settings."""
    return forecast_memory(name, stage, smallest_settings(stage, settings or default_settings(stage)), **options)


def largest_batch(
    name: str, stage: str, settings: StageSettings | None, gigabytes: float, **options: int | bool | None
) -> int | None:
    """Most pairs in a forward (records, for the reward model; prompts, for PPO; answers, for generation) that fit into
    the usable share of `gigabytes`, at most `MOST`; None if not even one does. Options as in `phases`."""
    settings = settings or default_settings(stage)

    def fits(batch: int) -> bool:
        return (
            forecast_memory(name, stage, set_batch(stage, settings, batch), **options).total <= USABLE_SHARE * gigabytes
        )

    low, high = 0, min(LARGEST_BATCH, settings.prompts if stage == "ppo" else LARGEST_BATCH)
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if fits(middle) else (low, middle - 1)
    return low or None


def smallest_card(name: str, **options: int | bool | None) -> int:
    """The smallest of `CARDS` on which all three trainings fit with the smallest batch; 0 for a model that hardly adds
    to what an empty program takes. Raises UsageError if it fits on none."""
    needs = [least_memory(name, stage, **options) for stage in ("dpo", "reward", "ppo")]
    if max(memory.total - OVERHEAD_GB for memory in needs) < 0.1:
        return 0
    fitting = [card for card, size in CARD_GB.items() if max(memory.total for memory in needs) <= USABLE_SHARE * size]
    if not fitting:
        raise UsageError(f"{name}: cannot be trained on one card of up to {max(CARD_GB)} GB.")
    return fitting[0]


def memory_table(
    names: list[str] | None = None, cards: tuple[int, ...] = (6, 8, 15, 24, 40), **options: int | bool | None
) -> str:
    """Text: for every preset and stage the GB that the `smallest` settings take, and the largest batch with them on each
    card: with gradient checkpointing, and in PPO one prompt sampled at once."""
    lines = [f"{'model':<21}{'stage':<8}{'GB':>6}" + "".join(f"{f'{card} GB':>8}" for card in cards)]
    for name in names or PRESETS:
        for stage in BATCH_FIELDS:
            need = least_memory(name, stage, **options).total
            given = smallest_settings(stage, default_settings(stage))
            most = [largest_batch(name, stage, given, CARD_GB.get(card, card), **options) for card in cards]
            cells = [
                "–" if batch is None else f"≥ {LARGEST_BATCH}" if batch == LARGEST_BATCH else str(batch)
                for batch in most
            ]
            lines.append(f"{name:<21}{stage:<8}{need:>6.1f}" + "".join(f"{cell:>8}" for cell in cells))
    return "\n".join(lines)
