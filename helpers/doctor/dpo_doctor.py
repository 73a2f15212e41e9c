"""Watches a DPO run while it trains, says what is wrong, and stops it when its numbers break.

The callback collects the log, samples answers and takes a census of the gradients; what is wrong
with them is decided in `helpers/doctor/dpo_rules.py`. Taught in notebook 04.
"""

import json
import math
import time
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import asdict, fields, replace
from pathlib import Path

import torch
from peft import PeftModel
from PIL import Image
from torch import nn
from transformers import ProcessorMixin, TrainerCallback, TrainerState

from helpers.data import PreferenceRecord
from helpers.files import open_image, write_text
from helpers.machine import TRAINER_STATE
from helpers.models import (
    Packer,
    answer_logps,
    evaluation_mode,
    generate_answers,
    user_message,
)
from helpers.statistics import repeated_share
from helpers.training import as_reference

from .dpo_rules import (
    DPO_KINDS,
    LEARNING_CHAIN,
    AnswerSample,
    Census,
    DPOHistory,
    Tower,
    look_dpo,
    non_finite_value,
)
from .verdicts import Course, RunDoctor, verdict_kinds

KEEP_EVERY = 5  # steps between two copies of the weights
MAX_NEW_TOKENS = 64  # well over the longest good answer
DOCTOR_FILE = "doctor.json"  # in a checkpoint: what the doctor has seen beside the log


class DPODoctor(RunDoctor, TrainerCallback):
    """Examines a run at each log, and samples answers every `every` steps, the first before it.

    A run of few steps is sampled after a quarter of them, too. images, prompts: held out, fixed and
    all different, about 8. Sampling leaves the random numbers of training alone. `watching` counts
    the seconds it took.
    """

    def __init__(
        self,
        processor: ProcessorMixin,
        images: Sequence[Image.Image | Path],
        prompts: Sequence[str],
        every: int = 20,
    ) -> None:
        super().__init__(DPO_KINDS, LEARNING_CHAIN)
        self.processor = processor
        self.prompts = prompts
        self.every = every
        self.images = [open_image(image) if isinstance(image, Path) else image for image in images]
        self.run = DPOHistory([], pairs=0, beta=1.0)
        self.reached = set()
        self.watching = 0.0

    def on_train_begin(self, args, state, control, model=None, **kwargs):
        # (step, weights): not yet tried, and known to give finite numbers
        self.copy = None
        self.good = None
        if state.global_step and self.run.step == state.global_step:
            # the run goes on, and `go_on_from` has read what was seen of it
            return
        batch = args.train_batch_size * args.gradient_accumulation_steps * args.world_size
        pairs = batch * int(state.logging_steps)
        # of a run that goes on without what `keep` wrote, the log alone is known
        self.run = DPOHistory([*state.log_history], pairs, args.beta, state.max_steps)
        self.course = Course(DPO_KINDS, LEARNING_CHAIN)
        self.reached = set()
        # the answers of the untrained policy, to compare with
        self._sample(model, state.global_step)
        self.tell(look_dpo(self.run), state.global_step)

    def keep(self, checkpoint: Path) -> None:
        """Write into a checkpoint what the log does not hold."""
        run = self.run
        kept = {"pairs": run.pairs, "beta": run.beta, "steps": run.steps}
        kept["samples"] = [asdict(sample) for sample in run.samples]
        kept["reached"] = sorted(self.reached)
        kept["course"] = self.course.state()
        # JSON of Python's own, since a figure of a sample may be no number
        write_text(checkpoint / DOCTOR_FILE, json.dumps(kept, indent=2, ensure_ascii=False) + "\n")

    def go_on_from(self, checkpoint: Path) -> None:
        """Take up what `keep` wrote; a checkpoint of a run without a doctor has nothing."""
        file = checkpoint / DOCTOR_FILE
        if not file.exists():
            return
        kept = json.loads(file.read_text(encoding="utf-8"))
        log = TrainerState.load_from_json(str(checkpoint / TRAINER_STATE)).log_history
        known = {field.name for field in fields(AnswerSample)}
        if any(sample.keys() != known for sample in kept["samples"]):
            print(f"⚠️  {file} is of another version: the doctor sees the rest of the run.")
            return
        samples = [AnswerSample(**sample) for sample in kept["samples"]]
        self.run = DPOHistory(log, kept["pairs"], kept["beta"], kept["steps"], samples)
        self.reached = set(kept["reached"])
        self.course.restore(kept["course"])

    def on_step_begin(self, args, state, control, model=None, optimizer=None, **kwargs):
        if state.global_step % KEEP_EVERY == 0:
            weights = {}
            for name, parameter in _trained_parameters(model, optimizer).items():
                weights[name] = parameter.detach().to("cpu", copy=True)
            self.copy = (state.global_step, weights)

    def on_pre_optimizer_step(self, args, state, control, model=None, optimizer=None, **kwargs):
        census = _census(state.global_step + 1, model, optimizer, self.reached)
        self.run = replace(self.run, census=census)

    def on_log(self, args, state, control, logs=None, model=None, **kwargs):
        self.run.log.append({**logs, "step": state.global_step})
        if "rewards/margins" not in logs:  # an evaluation
            return
        broken = non_finite_value(self.run)
        if not broken:
            # the copy was taken before this step, which gave finite numbers with it
            if self.copy:
                self.good = self.copy
                self.copy = None
            if self._is_due(state.global_step):
                self._sample(model, state.global_step)
        self.tell(look_dpo(self.run), self.run.step)
        if broken:
            control.should_training_stop = True
            self._put_back(model)

    def _is_due(self, step: int) -> bool:
        """Is it time for another sample: `every` steps on, or at a quarter of a short run?"""
        last = self.run.samples[-1].step
        if step // self.every > last // self.every:
            return True
        # a sample is judged beside the rows of a quick look
        is_second = len(self.run.samples) == 1 and bool(self.run.recent)
        return is_second and 4 * step >= self.run.planned

    def _sample(self, model: PeftModel, step: int) -> None:
        started = time.monotonic()
        for known in self.run.samples[-1:]:
            # a step may break the weights after its loss was logged; the next log will say so
            first = self.images[:1], self.prompts[:1], known.answers[:1]
            (logp,) = _logps(model, self.processor, *first)
            if not math.isfinite(logp):
                print(f"No answers are sampled at step {step}: a log-probability is {logp}.")
                return
        sample = sight_sample(model, self.processor, self.images, self.prompts, step)
        self.run = replace(self.run, samples=[*self.run.samples, sample])
        self.watching += time.monotonic() - started

    def _put_back(self, model: nn.Module) -> None:
        if self.good is None:
            print("Training is stopped. No step was good, so there are no weights to put back.")
            return
        step, weights = self.good
        for name, parameter in model.named_parameters():
            if name in weights:
                parameter.data.copy_(weights[name])
        print(f"Training is stopped, and the adapter has its weights of step {step} again.")

    @classmethod
    def of_records(
        cls,
        processor: ProcessorMixin,
        records: Sequence[PreferenceRecord],
        every: int = 20,
    ) -> "DPODoctor":
        """Watch the answers to the first image and the last turn of records, not trained on."""
        images = [record.image_paths[0] for record in records]
        return cls(processor, images, [record.prompt[-1].content for record in records], every)

    def state(self) -> str:
        """One line: how far the run is and how it does."""
        if not self.run.rows:
            return "No step yet."
        last = self.run.rows[-1]
        kinds = verdict_kinds(self.verdicts, "healthy so far")
        return (
            f"Step {self.run.step} of {self.run.steps}, {kinds}: loss {last['loss']:.3f}, "
            f"accuracy {last['rewards/accuracies']:.0%}, margin {last['rewards/margins']:.2f}."
        )


def _trained_parameters(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
) -> dict[str, nn.Parameter]:
    # by identity, since an optimizer does not know names
    known = {id(parameter) for group in optimizer.param_groups for parameter in group["params"]}
    return {name: p for name, p in model.named_parameters() if id(p) in known}


def _census(
    step: int,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    reached: set[str],
) -> Census:
    """Count what should be trained: the tensors that the optimizer has, and the active adapter.

    reached: names of those that had a gradient so far; this step's are added. peft makes a frozen
    adapter trainable again when it is switched off and on, so that a gradient alone proves nothing.
    """
    trained = _trained_parameters(model, optimizer)
    names = [name for name, parameter in trained.items() if parameter.grad is not None]
    if names:
        # one transfer from the GPU, not one a tensor
        norms = torch.stack([trained[name].grad.norm() for name in names]).tolist()
        reached |= {name for name, norm in zip(names, norms, strict=True) if norm}
    adapter = f".{getattr(model, 'active_adapter', None)}."
    # tower → name of a tensor that should be trained → its type
    towers = defaultdict(dict)
    for name, parameter in model.named_parameters():
        if name in trained or ("lora_" in name and adapter in name):
            towers[_tower(name)][name] = str(parameter.dtype).removeprefix("torch.")
    counts = {}
    for tower, types in towers.items():
        known = len(reached & types.keys())
        counts[tower] = Tower(len(types), known, sorted(set(types.values())))
    return Census(step, counts)


def _tower(name: str) -> str:
    if any(part in name for part in ("merger", "projector", "connector")):
        return "connector"
    return "vision" if "visual" in name or "vision" in name else "language"


def sight_sample(
    model: PeftModel,
    processor: ProcessorMixin,
    images: Sequence[Image.Image],
    prompts: Sequence[str],
    step: int,
) -> AnswerSample:
    """Sample one answer to each image, and compare how likely it is.

    Beside the policy with its own image: the policy with the next image, and the reference.
    """
    answers = generate_answers(
        model,
        processor,
        images,
        prompts,
        temperature=1.0,
        max_new_tokens=MAX_NEW_TOKENS,
        description=f"answers at step {step}",
    )
    others = [*images[1:], images[0]]
    logps = _logps(model, processor, images, prompts, answers)
    of_others = _logps(model, processor, others, prompts, answers)
    with as_reference(model):
        reference_logps = _logps(model, processor, images, prompts, answers)
    sight = [own - other for own, other in zip(logps, of_others, strict=True)]
    tokens = []
    repeated = []
    for answer in answers:
        ids = processor.tokenizer(answer, add_special_tokens=False)["input_ids"]
        tokens.append(len(ids))
        repeated.append(repeated_share(ids))
    return AnswerSample(
        step, answers, tokens, repeated, sight, logps, reference_logps, MAX_NEW_TOKENS
    )


@torch.no_grad()
def _logps(
    model: PeftModel,
    processor: ProcessorMixin,
    images: Sequence[Image.Image],
    prompts: Sequence[str],
    answers: Sequence[str],
) -> list[float]:
    """Log-probability of each answer, without dropout, which would draw random numbers.

    One at a time, because logits of a large vocabulary would fill a small GPU.
    """
    pack = Packer(model, processor, packs=False)
    logps = []
    with evaluation_mode(model):
        for image, prompt, answer in zip(images, prompts, answers, strict=True):
            row = pack([[user_message(prompt)]], [[image]], [[answer]])
            logps.append(float(answer_logps(model, row).sum()))
    return logps
