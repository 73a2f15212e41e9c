"""Watches a DPO run while it trains, says once what is wrong, and stops it when its numbers break.

The callback collects the log, samples answers and takes a census of the gradients; what is wrong with
them is decided in `helpers/doctor/dpo_rules.py`. Taught in notebook 04.
"""

import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import torch
from PIL import Image
from torch import nn
from transformers import PreTrainedModel, ProcessorMixin, TrainerCallback

from helpers.data import PreferenceRecord
from helpers.files import open_image
from helpers.models import Packer, answer_logps, generate_answers, user_message
from helpers.statistics import repeated_share

from .dpo_rules import AnswerSample, Census, DPOHistory, Tower, diagnose_dpo, non_finite_values
from .verdicts import panel_html

KEEP_EVERY = 5  # steps between two copies of the weights


class DPODoctor(TrainerCallback):
    """Examines a run at each log, and samples answers every `every` steps, the first before training.

    images, prompts: held out, fixed and all different, about 8; max_new_tokens: well over the longest
    good answer. Sampling leaves the random numbers of training alone. `watching` counts the seconds it took.
    """

    def __init__(
        self,
        processor: ProcessorMixin,
        images: Sequence[Image.Image | Path],
        prompts: Sequence[str],
        every: int = 20,
        max_new_tokens: int = 64,
    ) -> None:
        self.processor, self.prompts, self.every, self.max_new_tokens = (
            processor,
            prompts,
            every,
            max_new_tokens,
        )
        self.images = [open_image(image) if isinstance(image, Path) else image for image in images]
        self.run, self.verdicts, self.watching = DPOHistory([], pairs=0, beta=1.0), [], 0.0

    def on_train_begin(self, args, state, control, model=None, **kwargs):
        pairs = (
            args.train_batch_size
            * args.gradient_accumulation_steps
            * args.world_size
            * int(state.logging_steps)
        )
        self.run, self.verdicts, self.reached = (
            DPOHistory([], pairs, args.beta, state.max_steps),
            [],
            set(),
        )
        self.copy, self.good = (
            None,
            None,
        )  # (step, weights): not yet tried, and known to give finite numbers
        self._sample(model, 0)
        self._examine()

    def on_step_begin(self, args, state, control, model=None, optimizer=None, **kwargs):
        if state.global_step % KEEP_EVERY == 0:
            weights = {
                n: p.detach().to("cpu", copy=True)
                for n, p in _trained_parameters(model, optimizer).items()
            }
            self.copy = (state.global_step, weights)

    def on_pre_optimizer_step(self, args, state, control, model=None, optimizer=None, **kwargs):
        self.run = replace(
            self.run, census=_census(state.global_step + 1, model, optimizer, self.reached)
        )

    def on_log(self, args, state, control, logs=None, model=None, **kwargs):
        self.run.log.append({**logs, "step": state.global_step})
        if "rewards/margins" not in logs:  # an evaluation
            return
        broken = any(non_finite_values(self.run))
        if not broken and self.copy:
            self.copy, self.good = None, self.copy
        if not broken and state.global_step >= self.run.samples[-1].step + self.every:
            self._sample(model, state.global_step)
        self._examine()
        if broken:
            control.should_training_stop = True
            self._put_back(model)

    def _sample(self, model: PreTrainedModel, step: int) -> None:
        started = time.monotonic()
        sample = sight_sample(
            model, self.processor, self.images, self.prompts, step, self.max_new_tokens
        )
        self.run = replace(self.run, samples=[*self.run.samples, sample])
        self.watching += time.monotonic() - started

    def _examine(self) -> None:
        known = {verdict.kind for verdict in self.verdicts}
        new = [verdict for verdict in diagnose_dpo(self.run) if verdict.kind not in known]
        self.verdicts += new
        for verdict in new:
            print(f"⚠️  {verdict}")

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
    ) -> "DPODoctor":
        """Watch the answers to the first image and the last turn of some records, not trained on."""
        images = [record.image_paths[0] for record in records]
        return cls(processor, images, [record.prompt[-1].content for record in records])

    def state(self) -> str:
        """One line: how far the run is and how it does."""
        if not self.run.rows:
            return "No step yet."
        last, kinds = self.run.rows[-1], ", ".join(verdict.kind for verdict in self.verdicts)
        return (
            f"Step {self.run.step} of {self.run.steps}, {kinds or 'healthy so far'}: loss {last['loss']:.3f}, "
            f"accuracy {last['rewards/accuracies']:.0%}, margin {last['rewards/margins']:.2f}."
        )

    def _repr_html_(self) -> str:
        return panel_html(self.state(), self.verdicts)


def _trained_parameters(
    model: nn.Module, optimizer: torch.optim.Optimizer
) -> dict[str, nn.Parameter]:
    known = {id(parameter) for group in optimizer.param_groups for parameter in group["params"]}
    return {
        name: parameter for name, parameter in model.named_parameters() if id(parameter) in known
    }


def _census(
    step: int, model: nn.Module, optimizer: torch.optim.Optimizer, reached: set[str]
) -> Census:
    """Count what should be trained: the tensors that the optimizer has, and the whole active adapter.

    reached: names of those that had a gradient so far; this step's are added. peft makes a frozen
    adapter trainable again when it is switched off and on, so that a gradient alone proves nothing.
    """
    trained, adapter = (
        _trained_parameters(model, optimizer),
        f".{getattr(model, 'active_adapter', None)}.",
    )
    norms = {
        name: parameter.grad.norm()
        for name, parameter in trained.items()
        if parameter.grad is not None
    }
    norms = dict(zip(norms, torch.stack([*norms.values()]).tolist() if norms else [], strict=True))
    reached |= {name for name, norm in norms.items() if norm != 0}
    towers: dict[str, dict[str, nn.Parameter]] = {}
    for name, parameter in model.named_parameters():
        if name in trained or ("lora_" in name and adapter in name):
            towers.setdefault(_tower(name), {})[name] = parameter
    return Census(
        step, {tower: _count(members, norms, reached) for tower, members in towers.items()}
    )


def _tower(name: str) -> str:
    if any(part in name for part in ("merger", "projector", "connector")):
        return "connector"
    return "vision" if "visual" in name or "vision" in name else "language"


def _count(
    members: Mapping[str, nn.Parameter], norms: Mapping[str, float], reached: set[str]
) -> Tower:
    types = sorted({str(parameter.dtype).removeprefix("torch.") for parameter in members.values()})
    norm = math.hypot(*(norms.get(name, 0.0) for name in members))
    return Tower(len(members), len(reached & members.keys()), norm, tuple(types))


@torch.no_grad()
def sight_sample(
    model: PreTrainedModel,
    processor: ProcessorMixin,
    images: Sequence[Image.Image],
    prompts: Sequence[str],
    step: int,
    max_new_tokens: int,
) -> AnswerSample:
    """One answer to each image, and how much likelier it is with this image than with the next one."""
    how = {
        "temperature": 1.0,
        "max_new_tokens": max_new_tokens,
        "description": f"answers at step {step}",
    }
    answers = generate_answers(model, processor, images, prompts, **how)
    was_training = model.training
    model.eval()
    rows = zip(images, [*images[1:], images[0]], prompts, answers, strict=True)
    sight = [
        _logp(model, processor, own, *text) - _logp(model, processor, next_one, *text)
        for own, next_one, *text in rows
    ]
    model.train(was_training)
    ids = [processor.tokenizer(answer, add_special_tokens=False)["input_ids"] for answer in answers]
    return AnswerSample(
        step,
        answers,
        [len(row) for row in ids],
        [repeated_share(row) for row in ids],
        sight,
        max_new_tokens,
    )


def _logp(
    model: PreTrainedModel, processor: ProcessorMixin, image: Image.Image, prompt: str, answer: str
) -> float:
    """Log-probability of one answer; one at a time, because logits of a large vocabulary would fill a small GPU."""
    row = Packer(model, processor, packs=False)([[user_message(prompt)]], [[image]], [[answer]])
    return float(answer_logps(model, row).sum())
