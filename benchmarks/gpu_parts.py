"""The parts of `benchmarks/gpu.py`: functions (plan, note, backend), each in its own process.

`backend` is who loads the model, decided before this module was imported (`gpu_run.import_parts`).
Stock TRL is what it is in `benchmarks/dpo.py`: `dpo.dpo_trainer(packs=False)`. Seconds of a DPO
step run from the end of one step to the end of the next: collator, forward, backward, optimizer,
log. Peaks are what PyTorch allocated (on a CPU the memory of the process, since it began);
forecasts are `helpers/machine/memory.py`'s, on a GPU without its context.
"""

import dataclasses
import gc
import math
import os
import signal
import statistics
from collections.abc import Callable, Sequence
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

from helpers import models  # before all that unsloth changes

# isort: split
import torch
from torch import Tensor, nn
from transformers import ProcessorMixin, TrainerCallback

from benchmarks.dpo import Case, now, pairs
from benchmarks.gpu_model import (
    ASKED,
    BATCH,
    Peak,
    dataset_of,
    dpo_settings,
    dtypes,
    environment,
    forecast,
    load_model,
    ppo_settings,
    questions,
    write_model,
)
from benchmarks.gpu_run import Notes, Part, Plan, in_process, work
from helpers import runtime
from helpers.config import DPO_PRESETS
from helpers.data.trl_pairs import from_trl
from helpers.doctor.dry_run import LOSS_SCALE, backward, collate, loss_of, training_mode
from helpers.files import UsageError
from helpers.losses import completion_logps
from helpers.machine.checkpoints import last_checkpoint
from helpers.machine.workload import GenerationSettings
from helpers.models.packer import Packer
from helpers.models.shared_prefix import PackedAnswers, answer_logits
from helpers.rewards.scoring import make_scorer
from helpers.statistics import proportion
from helpers.training import dpo
from helpers.training.ppo import PPOTrainer

Weights = dict[str, Tensor]
WARM_UP = 3  # steps that do not count
length = make_scorer("length", lambda image, question, answer, facts: {"length": len(answer) / 100})


def checkpoint(plan: Plan, note: Notes, backend: str) -> None:
    """Both models, the images, and what the machine is."""
    note(environment=environment())
    started = now()
    note(parameters=write_model(plan.preset, plan.folder / "model", plan.toy))
    note(
        seconds=now() - started,
        parameters_small=write_model(plan.preset, plan.folder / "small", True),
    )
    number = max(plan.steps, plan.iterations * ppo_settings(plan).prompts_per_iteration, ASKED)
    pairs(Case("gpu", None, (plan.side, plan.side), DPO_PRESETS["t4"], 0), plan.folder, number)


@dataclasses.dataclass
class Look:
    """What a loaded model says of pairs that are always the same."""

    names: list[str]  # of the adapter's weights
    logits: Tensor  # of the base, at the tokens of the answers, (tokens, vocab)
    logps: Tensor  # with an adapter, (answers,)
    gradient: Weights  # of a DPO batch, by weight


def load(plan: Plan, note: Notes, backend: str) -> None:
    """Seconds, memory, and a `Look`, saved with its adapter; then answers are sampled."""
    peak, started = Peak(), now()
    model, processor = load_model(plan)
    note(seconds=now() - started, load_peak_gb=peak.figures()["peak_gb"])
    note(weights_gb=models.weight_megabytes(model) / 1e3)
    note(four_bit_layers=sum(type(module).__name__ == "Linear4bit" for module in model.modules()))
    note(model_class=type(model).__name__, dtypes=dtypes(model))
    seen, policy, batch = look_at(plan, model, processor)
    torch.save(dataclasses.asdict(seen), plan.folder / f"look-{backend}.pt")
    models.save_adapter(policy, plan.folder / f"adapter-{backend}", {"base": "random"})
    note(lora_weights=len(seen.names), **read_adapters(plan, policy, batch, seen))
    base = policy.unload()  # the adapters would count as memory
    gc.collect()
    settings, tasks = GenerationSettings(ASKED, 4 if plan.toy else 20), questions(plan, ASKED)
    expected = forecast(plan, settings, processor)
    peak, started = Peak(), now()
    said = models.generate_answers(
        base, processor, [task.images[0] for task in tasks], [task.question for task in tasks],
        max_new_tokens=settings.max_new_tokens, batch_size=ASKED,
    )  # fmt: skip
    note(generation_seconds=now() - started, n=len(said), answers_not_empty=sum(map(bool, said)))
    note(weights_forecast_gb=expected.weights, **peak.figures(expected))


def look_at(
    plan: Plan, model: nn.Module, processor: ProcessorMixin
) -> tuple[Look, nn.Module, PackedAnswers]:
    """Logits of the base; then log-probabilities and a gradient with an adapter whose weights hang
    on their names.
    """
    rows = dataset_of(plan, 2 * BATCH)
    known = [from_trl(row) for row in rows]
    answers = [[pair.chosen, pair.rejected] for pair in known]
    plain = Packer(model, processor, packs=False, device=runtime.device())
    batch = plain([pair.prompt for pair in known], [pair.images for pair in known], answers)
    logits = say(model, batch)[batch.mask.roll(-1, 1)].float().cpu()
    trainer = dpo.dpo_trainer(model, processor, rows, dpo_settings(plan))
    trained = {name: p for name, p in trainer.model.named_parameters() if p.requires_grad}
    fill(trained)
    logps = completion_logps(say(trainer.model, batch), batch.ids, batch.mask).cpu()
    with training_mode(trainer):
        backward(loss_of(trainer, collate(trainer, [rows[place] for place in range(BATCH)])))
    gradient = {
        name: p.grad.float().cpu() / LOSS_SCALE for name, p in trained.items() if p.grad is not None
    }
    trainer.model.zero_grad()
    return Look(sorted(trained), logits, logps, gradient), trainer.model, batch


@torch.no_grad()
def say(model: nn.Module, batch: PackedAnswers) -> Tensor:
    device = runtime.device().type
    with torch.autocast(device, runtime.compute_dtype(), enabled=device == "cuda"):
        return answer_logits(model.eval(), batch)


@torch.no_grad()
def fill(weights: Weights) -> None:
    """Random numbers that any loader gives the weight of that name, so that the adapter says
    something.
    """
    for name, weight in weights.items():
        generator = torch.Generator().manual_seed(int.from_bytes(name.encode()) % 2**63)
        scale = 0.02 if "lora_B" in name else weight.shape[-1] ** -0.5
        weight.copy_(torch.randn(weight.shape, generator=generator) * scale)


def read_adapters(
    plan: Plan, policy: nn.Module, batch: PackedAnswers, seen: Look
) -> dict[str, float]:
    """Each adapter that was saved so far, loaded here: by how much log-probabilities differ from
    those of our own, nats.
    """
    found = {}
    for folder in sorted(plan.folder.glob("adapter-*")):
        name = folder.name.replace("-", "_")
        models.load_adapter(policy, folder, name)
        logps = completion_logps(say(policy, batch), batch.ids, batch.mask).cpu()
        found[f"{name}_logps_differ_by"] = float((logps - seen.logps).abs().max())
    return found


def exchange(plan: Plan, note: Notes, backend: str) -> None:
    """A second look with transformers beside what both loaders have seen."""
    model, processor = load_model(plan)
    seen, policy, batch = look_at(plan, model, processor)
    for path in sorted(plan.folder.glob("look-*.pt")):
        other = Look(**torch.load(path, weights_only=True))
        note(**{path.stem.removeprefix("look-"): differences(seen, other)})
    note(**read_adapters(plan, policy, batch, seen))


def differences(one: Look, other: Look) -> dict[str, Any]:
    """Of two looks at the same pairs. Norms are compared as other : one − 1, logits by the norm of
    their difference.
    """
    agree = one.logits.argmax(-1) == other.logits.argmax(-1)
    names = sorted(one.gradient.keys() & other.gradient.keys())
    first = torch.cat([one.gradient[name].flatten() for name in names])
    second = torch.cat([other.gradient[name].flatten() for name in names])
    return {
        "lora_names_equal": one.names == other.names,
        "only_in_one": sorted(set(one.names) ^ set(other.names))[:4],
        "logits_relative_error": float((one.logits - other.logits).norm() / one.logits.norm()),
        "top1_agreement": dataclasses.asdict(proportion(int(agree.sum()), len(agree))),
        "logps_differ_by": float((one.logps - other.logps).abs().max()),
        "gradient_cosine": float(nn.functional.cosine_similarity(first, second, dim=0)),
        "gradient_norm_difference": float(second.norm() / first.norm() - 1),
        "n": len(agree),
    }


class Clock(TrainerCallback):
    """Seconds of each step, all of it."""

    def __init__(self) -> None:
        self.seconds: list[float] = []

    def on_train_begin(self, args, state, control, **kwargs):
        self.last = now()

    def on_step_end(self, args, state, control, **kwargs):
        self.seconds.append(now() - self.last)
        self.last += self.seconds[-1]


def train_dpo(plan: Plan, note: Notes, backend: str, packs: bool | None = None) -> None:
    """All steps, on so few pairs that the second half of them sees each once more."""
    model, processor = load_model(plan)
    settings = dpo_settings(plan)
    clock, peak = Clock(), Peak()
    rows = dataset_of(plan, max(BATCH, plan.steps * BATCH // 2))
    trainer = dpo.dpo_trainer(model, processor, rows, settings, packs=packs, callbacks=[clock])
    note(trainer=type(trainer).__mro__[1].__module__, collator=type(trainer.data_collator).__name__)
    log = dpo.train_dpo(trainer).log
    note(**step_seconds(clock.seconds, math.ceil(len(rows) / BATCH)), n=len(log), **losses(log))
    note(**peak.figures(forecast(plan, settings, processor)))
    found = dtypes(trainer.model, trainer.optimizer)
    note(dtypes=found, bf16_tensors=found.get("bfloat16", 0))


def step_seconds(seconds: Sequence[float], epoch: int) -> dict[str, float]:
    """Medians of all steps, those of the first epoch and all later ones; the first `WARM_UP` count
    only if there are no others.
    """
    parts = {"": seconds, "_first_epoch": seconds[:epoch]}
    parts = {name: part[WARM_UP:] or part[-1:] for name, part in parts.items()} | {
        "_later": seconds[epoch:]
    }
    found = {f"seconds{name}": statistics.median(part) for name, part in parts.items() if part}
    return found | {f"n{name}": len(part) for name, part in parts.items() if name}


def losses(log: Sequence[dict[str, float]]) -> dict[str, float]:
    """How far the first loss is from ln 2, what became of it, and how many steps had a gradient
    that is not finite.
    """
    norms = [row["grad_norm"] for row in log if "grad_norm" in row]
    return {
        "loss_first": log[0]["loss"],
        "loss_first_less_ln_2": log[0]["loss"] - math.log(2),
        "loss_last": log[-1]["loss"],
        "gradients": len(norms),
        "non_finite_gradients": sum(not math.isfinite(norm) for norm in norms),
        "non_finite_losses": sum(not math.isfinite(row["loss"]) for row in log),
    }


def train_ppo(plan: Plan, note: Notes, backend: str) -> None:
    """Iterations with the preset "t4" and short answers, whose score is their length."""
    model, processor = load_model(plan)
    settings, peak = ppo_settings(plan), Peak()
    tasks = questions(plan, plan.iterations * settings.prompts_per_iteration)
    trainer = PPOTrainer(model, processor, tasks, length, settings)
    note(packs=trainer.sampler.packer.packs)
    log = trainer.train()
    ends = [0, *(row["seconds"] for row in log)]
    seconds = [end - start for start, end in pairwise(ends)]
    norms = [row["grad_norm/adapter"] for row in log]
    note(
        seconds=statistics.median(seconds[1:] or seconds),
        seconds_first=seconds[0],
        n=len(log),
        ratio_first=log[0]["ppo/ratio_first"],
        ratios=[row["ppo/ratio_first"] for row in log],
        tokens_per_second=log[-1]["tokens_per_second"],
        score_first=log[0]["objective/scores"],
        non_finite_gradients=sum(not math.isfinite(norm) for norm in norms),
        grad_norm_first=norms[0],
    )
    note(**peak.figures(forecast(plan, settings, processor)))
    found = dtypes(trainer.model, trainer.optimizer)
    note(dtypes=found, bf16_tensors=found.get("bfloat16", 0))


class Watch(TrainerCallback):
    """Counts the steps of DPO, or the iterations of PPO; `kill` ends the process in the one after
    the first checkpoint.
    """

    def __init__(self, kill: bool, checkpoint: Callable[[], Any]):
        self.kill, self.checkpoint = kill, checkpoint
        self.steps = 0

    def on_step_end(self, args, state, control, **kwargs):
        self()

    def __call__(self, *_: Any) -> None:
        self.steps += 1
        if self.kill and self.checkpoint():
            os.kill(os.getpid(), signal.SIGKILL)


def small_dpo(plan: Plan, folder: Path, kill: bool = False) -> tuple[Weights, int]:
    """Final weights of 5 steps with a checkpoint after every second; the steps done here."""
    model, processor = load_model(plan, "small")
    settings = dpo_settings(plan, steps=5, checkpoint_steps=2, learning_rate=1e-3)
    watch = Watch(kill, lambda: last_checkpoint(folder))
    trainer = dpo.dpo_trainer(
        model, processor, dataset_of(plan, 4), settings, folder=folder, callbacks=[watch]
    )
    dpo.train_dpo(trainer)
    return {
        name: p.detach().cpu() for name, p in trainer.model.named_parameters() if p.requires_grad
    }, watch.steps


def small_ppo(plan: Plan, folder: Path, kill: bool = False) -> tuple[Weights, int]:
    """Final weights of policy and critic of 3 iterations with a checkpoint after each.

    A run finds the checkpoints by itself.
    """
    model, processor = load_model(plan, "small")
    sizes = {"prompts_per_iteration": 2, "group_size": 2, "mini_batch": 1, "max_new_tokens": 4}
    rates = {"learning_rate": 1e-3, "critic_learning_rate": 1e-3}
    settings = ppo_settings(plan, iterations=3, checkpoint_every=1, **sizes, **rates)
    watch = Watch(kill, lambda: list(folder.glob("checkpoint-*")))
    trainer = PPOTrainer(
        model, processor, questions(plan, 4), length, settings, folder=folder, watch=[watch]
    )
    trainer.train()
    weights = trainer.actor.trained_weights()
    return {name: weight.cpu() for name, weight in weights.items()}, watch.steps


SMALL = {"dpo": small_dpo, "ppo": small_ppo}


def killed(plan: Plan, note: Notes, backend: str, stage: str) -> None:
    SMALL[stage](plan, plan.folder / f"resume-{stage}-{backend}", kill=True)


def resume(plan: Plan, note: Notes, backend: str, stage: str) -> None:
    """A run that is killed and gone on with, and two whole ones: by how much do final weights
    differ at most?
    """
    train, folder = SMALL[stage], plan.folder / f"resume-{stage}-{backend}"
    part = Part(f"killed_{stage}", backend, 0)
    log = plan.folder / f"{part.name}.log"
    process = in_process(work, (part, plan, None), log, leader=False)
    process.join()
    if process.exitcode != -signal.SIGKILL:
        raise UsageError(
            f"the run to be killed ended with {process.exitcode}: {log.read_text()[-200:].strip()}"
        )
    kept = [path.relative_to(folder).as_posix() for path in sorted(folder.glob("checkpoint*"))]
    gone_on, left = train(plan, folder)
    (whole, steps), (again, _) = (
        train(plan, plan.folder / f"{folder.name}-{number}") for number in (1, 2)
    )
    note(
        checkpoints=kept, n=sum(p.numel() for p in whole.values()), steps=steps, steps_gone_on=left
    )
    note(
        largest_lora_b=max(float(p.abs().max()) for name, p in whole.items() if "lora_B" in name)
    )  # it began at 0
    note(
        largest_difference=largest(whole, gone_on),
        largest_difference_unkilled=largest(whole, again),
    )


def largest(one: Weights, other: Weights) -> float:
    """Largest difference of two sets of weights. Raises UsageError if they are not of the same
    names.
    """
    if one.keys() != other.keys():
        raise UsageError(f"weights of different names: {sorted(one.keys() ^ other.keys())[:4]}")
    return max(float((one[name] - other[name]).abs().max()) for name in one)


PARTS = {
    "checkpoint": checkpoint,
    "load": load,
    "exchange": exchange,
    "dpo": train_dpo,
    "trl": partial(train_dpo, packs=False),
    "ppo": train_ppo,
}
for _stage in SMALL:
    PARTS[f"killed_{_stage}"] = partial(killed, stage=_stage)
    PARTS[f"resume_{_stage}"] = partial(resume, stage=_stage)
