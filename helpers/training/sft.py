"""Supervised fine-tuning (SFT) of a vision-language model with `trl.SFTTrainer`.

Answers that are known to be good are made likelier, and nothing is compared with anything: the
baseline that DPO and PPO have to beat. The loss is the mean of −log p over the tokens of the
answers, the end of turn among them (`losses.sft_loss`).

TRL does the training, since its trainer takes what we have: rows with images, a prompt of several
turns and an answer, of which only the answer is learnt. It divides by the tokens of a whole step,
however many batches and processes share it. What it would do otherwise than we do is to send every
image through the processor and the vision tower in every epoch. So it gets a collator that keeps
image features (`AnswerCollator`, as DPO's), and a function from such a batch to the logits of the
answers in place of the model. Checkpoints and the adapter in fp32 are those of DPO, too
(`helpers/training/trl_runs.py`).

Simplification: each answer has a row of its own, also where several belong to one image.
Taught in notebook 04.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import PIL.Image
from datasets import Dataset
from torch import Tensor
from transformers import ProcessorMixin, TrainerCallback
from transformers.modeling_outputs import CausalLMOutput
from trl import SFTConfig, SFTTrainer

from helpers.config import SFTSettings
from helpers.data import (
    Message,
    PreferenceRecord,
    Task,
    require_plain_texts,
    texts_of_dataset,
    with_images,
)
from helpers.files import UsageError, open_image
from helpers.losses import token_logps
from helpers.machine import Identity
from helpers.models import VLM, Packer
from helpers.rewards import TRUTHS, VERIFY_REPLIES, verifying_turns

from .checkpoint import Checkpoints, run_identity
from .collators import AnswerForward
from .trl_runs import ProgressBar, TRLRun, adapter_hash, common_options, with_one_adapter

AnswerSource = Literal["chosen", "reference"]

IGNORED = -100  # a label that is not learnt, as PyTorch and TRL have it


@dataclass(frozen=True)
class SFTRun:
    """What a training run leaves: its log (one dictionary a logged step) and its duration."""

    log: list[dict[str, float]]
    seconds: float  # without what callbacks spent on watching
    trained_answers: int


# --- What is learnt ---


def chosen_answers(records: Sequence[PreferenceRecord]) -> Dataset:
    """The answers that were preferred: of each record those that nothing is better than.

    Columns `images` (RGB), `prompt`, `completion` (chat messages), which TRL knows. Records in
    which no answer is better than another are left out, and counted. Raises UsageError if all are,
    or naming file, line and record for an image that cannot be read.
    """
    rows = []
    without = 0
    for record in records:
        if not record.pairs():
            without += 1
            continue
        for image in record.image_paths:
            open_image(image, record.place)
        for place in record.ranking[0]:
            rows.append(_row(record.images, record.prompt, record.answers[place].text))
    left = "records, in which no answer is better than another"
    return _answer_rows(rows, without, len(records), left, "Rank their answers")


def reference_answers(tasks: Sequence[Task]) -> Dataset:
    """The right answer to each question whose truth is known, in words; columns as above.

    Of a question with several right answers it is the most frequent one. Questions without a truth
    are left out, and counted. Raises UsageError if all are, or naming an image that cannot be read.
    """
    rows = []
    known = [task for task in tasks if task.is_known]
    for task in known:
        # an image that cannot be read fails here rather than in mid-training
        task.open_images()
        answer = TRUTHS[task.kind].answer(task.facts)
        rows.append(_row([str(image) for image in task.images], task.turns, answer))
    left = "questions, of which no truth is known"
    without = len(tasks) - len(known)
    return _answer_rows(rows, without, len(tasks), left, "Give them one, or take chosen answers")


def right_verdicts(records: Sequence[PreferenceRecord]) -> Dataset:
    """What `rewards.Verifier` should say of the answers of each pair; columns as above.

    "Yes." behind the better answer, "No." behind the worse one, so that both are as frequent.
    Raises UsageError if no answer of any record is better than another.
    """
    rows = []
    without = 0
    for record in records:
        images = [str(path) for path in record.image_paths]
        for pair in record.pairs():
            for answer, reply in zip((pair.chosen, pair.rejected), VERIFY_REPLIES, strict=True):
                rows.append(_row(images, verifying_turns(record.prompt, answer.text), reply))
        without += not record.pairs()
    left = "records, in which no answer is better than another"
    return _answer_rows(rows, without, len(records), left, "Rank their answers")


def _row(images: Sequence[str], turns: Sequence[Message], answer: str) -> dict[str, Any]:
    return {
        "images": list(images),
        "prompt": [turn.model_dump() for turn in turns],
        "completion": [{"role": "assistant", "content": answer}],
    }


def _answer_rows(
    rows: list[dict[str, Any]], without: int, all_of_them: int, left: str, advice: str
) -> Dataset:
    if not rows:
        raise UsageError(
            f"there is no answer to learn: of {all_of_them} {left}, none is left. {advice}."
        )
    if without:
        print(f"SFT leaves out {without} of {all_of_them} {left}.")
    return with_images(Dataset.from_list(rows), "images")


class AnswerCollator:
    """Rows of `chosen_answers` or `reference_answers` → a batch: each answer behind its prompt.

    packer: on the CPU, as TRL's loader wants it.
    """

    def __init__(self, packer: Packer):
        self.packer = packer

    def __call__(self, examples: Sequence[dict[str, Any]]) -> dict[str, Any]:
        conversations: list[list[Message]] = []
        images: list[list[PIL.Image.Image]] = []
        answers: list[list[str]] = []
        for example in examples:
            turns = [Message(role=t["role"], content=t["content"]) for t in example["prompt"]]
            conversations.append(turns)
            images.append(list(example["images"]))
            answers.append([example["completion"][0]["content"]])
        packed = self.packer(conversations, images, answers)
        padding = self.packer.processor.tokenizer.pad_token_id
        return {
            # the answers with the token before them, (answers, 1 + longest)
            "input_ids": packed.ids,
            # the same, without what is not learnt: TRL counts these tokens over a whole step
            "labels": packed.ids.masked_fill(~packed.mask, IGNORED),
            # for TRL's count of tokens, (rows, seq)
            "attention_mask": (packed.inputs["input_ids"] != padding).long(),
            "packed": packed,
        }


# --- The trainer ---


class VLMSFTTrainer(TRLRun, SFTTrainer):
    """TRL's trainer on batches of `AnswerCollator`. options: TRL's."""

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        """Compute this batch's part of the loss of a step, ()."""
        return super().compute_loss(
            AnswerForward(model), inputs, return_outputs, num_items_in_batch
        )


def answer_loss(
    outputs: CausalLMOutput, labels: Tensor, num_items_in_batch: Tensor | int | None = None
) -> Tensor:
    """−log p of the labelled tokens, summed and divided by their number, ().

    outputs.logits (answers, 1 + longest, vocab), of which t predicts token t + 1; labels
    (answers, 1 + longest). num_items_in_batch: tokens of the whole step; None: of this batch.
    """
    learnt = labels != IGNORED
    logps = token_logps(outputs.logits, labels.where(learnt, 0), learnt)
    number = learnt.sum() if num_items_in_batch is None else num_items_in_batch
    return -logps.sum() / number


class BrokenNumbers(TrainerCallback):
    """Ends a run whose loss is no number any more: nothing good comes after it."""

    def on_log(self, args, state, control, logs=None, **kwargs):
        if logs and not math.isfinite(logs.get("loss", 0.0)):
            control.should_training_stop = True


def sft_config(settings: SFTSettings, seed: int, folder: Path | None = None) -> SFTConfig:
    """`settings` in TRL's words, with the defaults that a VLM on a CPU or a T4 needs."""
    return SFTConfig(
        **common_options(settings, seed, folder),
        loss_type="nll",
        completion_only_loss=True,
    )


def sft_trainer(
    model: VLM,
    processor: ProcessorMixin,
    dataset: Dataset,
    settings: SFTSettings,
    *,
    seed: int = 0,
    folder: Path | None = None,
    replace_other: bool = False,
    callbacks: Sequence[TrainerCallback] = (),
    cache: Path | None = None,
    packs: bool | None = None,
) -> VLMSFTTrainer:
    """A TRL trainer for `model`, which gets a fresh adapter unless it has one to go on with.

    dataset: of `chosen_answers`, `reference_answers` or `right_verdicts`. The adapter is in fp32
    and the only thing that is trained. folder, replace_other: of its checkpoints, as in
    `Checkpoints`. cache: a folder for image features, which DPO's trainer can share, else they are
    kept in memory. packs: kept features, or all anew; None tries whether the model can.
    """
    require_plain_texts(processor, texts_of_dataset(dataset))
    model = with_one_adapter(model, processor, settings.lora, seed)
    features = cache / "features" if cache else None
    # on the CPU, where TRL's loader pins batches; `_prepare_inputs` moves them
    packer = Packer(model, processor, cache=features, packs=packs, device="cpu")
    identity: Identity = {}
    if folder:
        identity = run_identity(
            "SFT", model, processor, dataset, settings, seed=seed,
            packs=packer.packs, adapter=adapter_hash(model),
        )  # fmt: skip
    return VLMSFTTrainer(
        model,
        Checkpoints(folder, identity, replace_other=replace_other),
        args=sft_config(settings, seed, folder),
        data_collator=AnswerCollator(packer),
        train_dataset=dataset,
        processing_class=processor,
        compute_loss_func=answer_loss,
        callbacks=[*callbacks, BrokenNumbers(), ProgressBar("SFT", "mean_token_accuracy")],
    )


def train_sft(trainer: VLMSFTTrainer) -> SFTRun:
    """Run the training to its end and collect its log.

    A run with a folder goes on from its last whole checkpoint; a finished one is only loaded.
    Raises UsageError for a run whose loss is no number any more.
    """
    log = trainer.run_to_end()
    last = log[-1]
    if not math.isfinite(last["loss"]):
        raise UsageError(
            f"SFT: the loss of step {last['step']:g} is {last['loss']}, so that nothing more can "
            f"be learnt. Lower learning_rate (it is {trainer.args.learning_rate:g})."
        )
    return SFTRun(log, trainer.seconds(), trainer.trained_examples())
