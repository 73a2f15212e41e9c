"""How long a stage takes, about: from a model's shapes, and from this machine's speed at them.

Each pass through the layers is a line in its tokens, which `helpers/machine/speed.py` has measured:
forward, and forward and backward with adapters (the base is frozen, so that only gradients of
inputs are needed). Attention grows with the square of a row, the language head with the predicted
tokens. With gradient checkpointing the layers run forward once more. Weights in 4 bits are unpacked
for every pass. `benchmarks/forecasts.py` compares with what stages take. Used by
`helpers/machine/fits.py`.

Simplifications: opening and resizing images, scorers, and what else runs on the machine are left
out; held-out data are taken to be an eighth of the training data; all answers have the same length.
"""

from dataclasses import dataclass

from helpers.config import DPOSettings, PPOSettings, RewardSettings, SFTSettings
from helpers.models import NF4_BYTES, ModelShapes

from .speed import MachineSpeed
from .workload import GenerationSettings, StageSettings, Workload, stage_of

# Epochs in which notebook 05 warms up a critic that has an adapter of its own
CRITIC_WARM_UP_EPOCHS = 8

# A step's collator, clipping, optimizer and log: as what any pass costs in so many layers. It is
# half a step of the embedded model, and hardly counts for larger ones.
STEP_LAYERS = 25

# Records that an evaluation scores, of those that are trained on
EVALUATED_SHARE = 1 / 8


@dataclass(frozen=True)
class StageSeconds:
    """Seconds of whole stages, from a workload and this machine's speed.

    The methods `load` … `ppo` are the stages.
    """

    workload: Workload
    speed: MachineSpeed

    @property
    def model(self) -> ModelShapes:
        return self.workload.shapes

    def of_stage(self, settings: StageSettings) -> float:
        """Seconds of the stage that the settings are for."""
        stage = getattr(self, stage_of(settings))
        return stage(settings)

    # --- one pass ---

    def forward(self, rows: int, sequence: int, read: int = 0, predicted: int = 0) -> float:
        """One pass without gradients over rows of `sequence` tokens, with `predicted` logits.

        Each row also reads the keys and values of `read` earlier tokens, from a cache.
        """
        model = self.model
        tokens = rows * sequence
        layer = self.speed.forward.seconds(tokens) + tokens * sequence * self.speed.pair
        # One layer's keys and values, which are spread over all heads
        numbers = rows * read * 2 * (model.keys + model.queries)
        layer += numbers * self.workload.compute_bytes / self.speed.bytes
        return model.layers * layer + self._unpacking() + self._head(predicted)

    def update(self, rows: int, sequence: int, predicted: int, checkpointing: bool) -> float:
        """One pass forward and backward; with checkpointing, each layer once more forward."""
        tokens = rows * sequence
        layer = self.speed.training.seconds(tokens) + tokens * sequence * self.speed.trained_pair
        whole = self.model.layers * layer + 2 * (self._unpacking() + self._head(predicted))
        if checkpointing:
            whole += self.forward(rows, sequence)
        return whole

    def _unpacking(self) -> float:
        """All weights in 4 bits read, and written and read again."""
        if not self.workload.four_bit:
            return 0.0
        moved = NF4_BYTES + 2 * self.workload.compute_bytes
        return self.model.quantised * moved / self.speed.bytes

    def _head(self, predicted: int) -> float:
        """The language head for so many tokens; its weights are read."""
        weights = self.model.hidden * self.model.vocab
        product = 2 * weights * predicted / self.speed.flops
        return product + bool(predicted) * weights * self.workload.compute_bytes / self.speed.bytes

    def around(self, steps: float) -> float:
        """What is between the passes of so many steps of an optimizer."""
        return steps * STEP_LAYERS * self.speed.forward.fixed

    def packed(self, rows: int, answers: int, predicts: bool = True) -> float:
        """One pass over image, prompt and so many answers; without logits for scores."""
        lines, sequence = self.workload.rows(rows, answers)
        return self.forward(lines, sequence, 0, self._predicted(rows * answers * predicts))

    def packed_update(
        self, rows: int, answers: int, checkpointing: bool, predicts: bool = True
    ) -> float:
        """The same forward and backward."""
        lines, sequence = self.workload.rows(rows, answers)
        predicted = self._predicted(rows * answers * predicts)
        return self.update(lines, sequence, predicted, checkpointing)

    def _predicted(self, answers: int) -> int:
        return answers * self.workload.answer_tokens

    def images(self, number: float) -> float:
        """The vision tower, once for each image."""
        model = self.model
        patches = self.workload.patches
        pair = self.speed.pair * model.vision_width / model.queries
        layer = self.speed.vision.seconds(patches) + patches**2 * pair
        return number * model.vision_depth * layer

    def sampling(self, prompts: int, group: int) -> float:
        """The prompts once, and then a pass a token; on average half an answer is before it."""
        prompt = self.workload.prompt
        length = self.workload.answer_tokens
        rows = prompts * group
        step = self.forward(rows, 1, prompt + length // 2, rows)
        read = rows if self.model.recurrent else prompts
        return self.forward(read, prompt) + length * step

    # --- the stages ---

    def load(self, settings: GenerationSettings) -> float:
        """One batch of answers."""
        return self.images(settings.batch_size) + self.sampling(settings.batch_size, 1)

    def sft(self, settings: SFTSettings) -> float:
        """Forwards and backwards of all steps; the vision tower runs once for each example."""
        batches = settings.steps * settings.accumulation
        update = self.packed_update(settings.batch_size, 1, settings.gradient_checkpointing)
        seen = min(self.workload.examples, batches * settings.batch_size)
        return batches * update + self.around(settings.steps) + self.images(seen)

    def dpo(self, settings: DPOSettings) -> float:
        """Forwards and backwards of all steps.

        The reference and the vision tower run once for each example.
        """
        batches = settings.steps * settings.accumulation
        # The chosen answer is shown once more, to a spoilt image
        copies = 1 + bool(settings.image_weight or settings.anchor_weight)
        rows = settings.batch_size * copies
        update = self.packed_update(rows, 2, settings.gradient_checkpointing)
        seen = min(self.workload.examples, batches * settings.batch_size)
        reference = seen / settings.batch_size * self.packed(rows, 2)
        trained = batches * update + self.around(settings.steps)
        return trained + reference + self.images(seen * copies)

    def reward(self, settings: RewardSettings) -> float:
        """Forwards and backwards of all epochs, and a forward for each evaluation."""
        examples = self.workload.examples
        answers = self.workload.answers
        batches = examples / settings.batch_size
        checkpointing = settings.gradient_checkpointing
        update = self.packed_update(settings.batch_size, answers, checkpointing, predicts=False)
        look = self.packed(settings.batch_size, answers, predicts=False)
        evaluations = EVALUATED_SHARE * settings.evaluations * batches
        steps = settings.epochs * batches / settings.accumulation
        trained = settings.epochs * batches * update + self.around(steps)
        return trained + evaluations * look + self.images((1 + EVALUATED_SHARE) * examples)

    def ppo(self, settings: PPOSettings) -> float:
        """Samples, three looks at them (policy, reference, critic), updates.

        Before, a critic with an adapter of its own is warmed up.
        """
        has_critic = settings.advantages == "gae" and settings.critic_layers > 0
        own = has_critic and settings.critic_adapter
        prompts = settings.prompts_per_iteration
        group = settings.group_size
        batch = settings.mini_batch
        examples = self.workload.examples
        checkpointing = settings.gradient_checkpointing
        look = self.packed(prompts, group)
        updates = prompts / batch * settings.epochs
        update = updates * (1 + own) * self.packed_update(batch, group, checkpointing)
        update += self.around(updates)
        warm_up = own * CRITIC_WARM_UP_EPOCHS * examples / batch
        warm_up *= self.packed_update(batch, group, checkpointing, predicts=False)
        iteration = self.sampling(prompts, group) + (2 + own) * look + update
        seen = examples if own else min(examples, settings.iterations * prompts)
        return settings.iterations * iteration + warm_up + self.images(seen)
