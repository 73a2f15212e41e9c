"""Rebuild the embedded base model from nothing: `python data/build_base.py`.

Trains a 1.1 M parameter `Qwen2VLForConditionalGeneration` on fresh traffic scenes labelled by the
careless annotator of `data/base_questions.py`, and writes it, with its processor and model card, to
`data/tiny-qwen2-vl/` in the layout of a hub checkpoint. The model therefore converges to *wrong*
labels: it sees well and under-counts two-wheelers, which is what the notebooks then repair.

An auxiliary loss asks each visual token which vehicle, of which colour, stands in its cell; its
two heads are thrown away afterwards. It halves the training time and nothing else needs it.
"""

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from tokenizers import Regex, Tokenizer, models, pre_tokenizers, trainers
from torch.utils.data import DataLoader, IterableDataset
from tqdm.auto import tqdm
from transformers import (
    GenerationConfig,
    Qwen2Tokenizer,
    Qwen2VLConfig,
    Qwen2VLForConditionalGeneration,
    Qwen2VLImageProcessor,
    Qwen2VLProcessor,
    Qwen2VLVideoProcessor,
)
from transformers.models.qwen2.tokenization_qwen2 import PRETOKENIZE_REGEX

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from data.base_questions import careless_counts, make_question
from data.scene_folders import write_split
from helpers.data import read_counts
from helpers.data.pairs import counting_tasks
from helpers.data.scenes import (
    COLORS,
    GRID,
    IMAGE_SIZE,
    SPLIT_SEEDS,
    VEHICLE_KINDS,
    Scene,
    draw_scene,
    make_scene,
)
from helpers.evaluation.task_results import evaluate_tasks
from helpers.evaluation.truth_judges import judges
from helpers.files import write_text
from helpers.models.loading import load_model
from helpers.statistics import Proportion

SPECIAL_TOKENS = [
    "<|endoftext|>",
    "<|im_start|>",
    "<|im_end|>",
    "<|object_ref_start|>",
    "<|object_ref_end|>",
    "<|box_start|>",
    "<|box_end|>",
    "<|quad_start|>",
    "<|quad_end|>",
    "<|vision_start|>",
    "<|vision_end|>",
    "<|vision_pad|>",
    "<|image_pad|>",
    "<|video_pad|>",
]
# Qwen2-VL's template, except that the newline between turns belongs to the next turn: a completion
# then ends in <|im_end|>, the last token the model itself writes.
CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "{% if loop.first and message['role'] != 'system' %}"
    "<|im_start|>system{{ '\n' }}You are a helpful assistant.<|im_end|>{{ '\n' }}{% endif %}"
    "{% if not loop.first %}{{ '\n' }}{% endif %}"
    "<|im_start|>{{ message['role'] + '\n' }}"
    "{% if message['content'] is string %}{{ message['content'] }}"
    "{% else %}{% for part in message['content'] %}"
    "{% if part['type'] == 'image' %}<|vision_start|><|image_pad|><|vision_end|>"
    "{% elif part['type'] == 'video' %}<|vision_start|><|video_pad|><|vision_end|>"
    "{% elif part['type'] == 'text' %}{{ part['text'] }}{% endif %}"
    "{% endfor %}{% endif %}<|im_end|>"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '\n' }}<|im_start|>assistant{{ '\n' }}{% endif %}"
)
EASY_FAMILIES = ("count_one", "presence", "reason", "color")
EASY_SHARE = 0.35


def make_example(seed: int):
    """(scene, question) of one base-training seed, answered by the careless annotator."""
    scene, rng = make_scene(seed), np.random.default_rng([seed, 2])
    counts = careless_counts(scene.counts, rng)
    if rng.random() >= EASY_SHARE:
        return scene, make_question(scene, "count_all", rng, counts)
    families = EASY_FAMILIES if 1 in scene.counts.values() else EASY_FAMILIES[:-1]
    return scene, make_question(scene, str(rng.choice(families)), rng, counts)


def build_tokenizer(vocab_size: int = 420, make_example=make_example) -> Qwen2Tokenizer:
    """Byte-level BPE with Qwen2-VL's special tokens, its merges learnt from the questions and
    answers.
    """
    questions = [make_example(seed)[1] for seed in SPLIT_SEEDS["base"][:4000]]
    corpus = [text for q in questions for text in (q.prompt, q.answer)]
    corpus += ["system\nYou are a helpful assistant.", "user\n", "assistant\n"] * 200
    bpe = Tokenizer(models.BPE())
    split = pre_tokenizers.Split(Regex(PRETOKENIZE_REGEX), "isolated")
    bpe.pre_tokenizer = pre_tokenizers.Sequence(
        [split, pre_tokenizers.ByteLevel(False, use_regex=False)]
    )
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size - len(SPECIAL_TOKENS),
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    bpe.train_from_iterator(corpus, trainer)
    model = json.loads(bpe.to_str())["model"]
    tokenizer = Qwen2Tokenizer(
        vocab=model["vocab"],
        merges=[tuple(merge) for merge in model["merges"]],
        unk_token=None,
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        model_max_length=2048,
        extra_special_tokens=[
            t for t in SPECIAL_TOKENS if t not in ("<|im_end|>", "<|endoftext|>")
        ],
    )
    return tokenizer


def build_processor(tokenizer: Qwen2Tokenizer) -> Qwen2VLProcessor:
    sizes = {"shortest_edge": 56 * 56, "longest_edge": IMAGE_SIZE * IMAGE_SIZE}
    return Qwen2VLProcessor(
        image_processor=Qwen2VLImageProcessor(size=sizes),
        tokenizer=tokenizer,
        video_processor=Qwen2VLVideoProcessor(size=sizes),
        chat_template=CHAT_TEMPLATE,
    )


def build_model(processor: Qwen2VLProcessor) -> Qwen2VLForConditionalGeneration:
    token_id = processor.tokenizer.convert_tokens_to_ids
    config = Qwen2VLConfig(
        text_config={
            "vocab_size": len(processor.tokenizer),
            "hidden_size": 128,
            "intermediate_size": 384,
            "num_hidden_layers": 3,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "max_position_embeddings": 2048,
            "rope_parameters": {
                "rope_type": "default",
                "rope_theta": 10000.0,
                "mrope_section": [4, 6, 6],
            },
            "bos_token_id": token_id("<|endoftext|>"),
            "eos_token_id": token_id("<|im_end|>"),
            "pad_token_id": token_id("<|endoftext|>"),
        },
        vision_config={
            "depth": 2,
            "embed_dim": 96,
            "num_heads": 4,
            "hidden_size": 128,
            "mlp_ratio": 4,
        },
        image_token_id=token_id("<|image_pad|>"),
        video_token_id=token_id("<|video_pad|>"),
        vision_start_token_id=token_id("<|vision_start|>"),
        vision_end_token_id=token_id("<|vision_end|>"),
        tie_word_embeddings=True,
    )
    model = Qwen2VLForConditionalGeneration(config)
    model.generation_config = GenerationConfig(
        eos_token_id=token_id("<|im_end|>"), pad_token_id=token_id("<|endoftext|>")
    )
    return model


def cell_labels(scenes: Sequence[Scene]) -> tuple[torch.Tensor, torch.Tensor]:
    """What stands in each cell, and its colour, (scenes, 16): 0 and −100 where it is empty."""
    kinds = torch.zeros(len(scenes), GRID * GRID, dtype=torch.long)
    colors = torch.full_like(kinds, -100)
    for row, scene in enumerate(scenes):
        for vehicle in scene.vehicles:
            kinds[row, vehicle.cell] = VEHICLE_KINDS.index(vehicle.kind) + 1
            colors[row, vehicle.cell] = list(COLORS).index(vehicle.color)
    return kinds, colors


def rate_share(step: int, steps: int, warmup: int) -> float:
    """Share of the learning rate at a step: it rises over the warm-up, then falls to 0."""
    return min((step + 1) / warmup, (steps - step) / max(1, steps - warmup))


class BaseBatches(IterableDataset):
    """Batches of fresh scenes: model inputs, labels and what stands in each cell.

    make_example: seed → a scene, and something with a prompt and an answer.
    """

    def __init__(self, processor: Qwen2VLProcessor, steps: int, batch_size: int, make_example):
        self.processor, self.steps, self.batch_size = processor, steps, batch_size
        self.make_example = make_example

    def __iter__(self):
        for step in range(self.steps):
            first = SPLIT_SEEDS["base"][0] + step * self.batch_size
            yield self.collate([self.make_example(first + i) for i in range(self.batch_size)])

    def collate(self, examples) -> dict[str, torch.Tensor]:
        prompts, answers = [], []
        for _, question in examples:
            content = [{"type": "image"}, {"type": "text", "text": question.prompt}]
            message = [{"role": "user", "content": content}]
            prompts.append(self.processor.apply_chat_template(message, add_generation_prompt=True))
            answers.append(question.answer + "<|im_end|>")
        texts = [p + a for p, a in zip(prompts, answers, strict=True)]
        images = [draw_scene(scene) for scene, _ in examples]
        batch = self.processor(
            text=texts, images=images, padding=True, padding_side="right", return_tensors="pt"
        )
        labels = torch.full_like(batch["input_ids"], -100)
        for row, answer in enumerate(answers):
            length = int(batch["attention_mask"][row].sum())
            start = length - len(self.processor.tokenizer(answer)["input_ids"])
            labels[row, start:length] = batch["input_ids"][row, start:length]
        kinds, colors = cell_labels([scene for scene, _ in examples])
        return {**batch, "labels": labels, "kinds": kinds.flatten(), "colors": colors.flatten()}


def train(model, batches: BaseBatches, learning_rate: float, workers: int = 1) -> float:
    """Train in place; returns seconds taken."""
    steps = batches.steps
    seen = {}
    hook = model.model.visual.merger.register_forward_hook(
        lambda _m, _i, out: seen.update(cells=out)
    )
    heads = torch.nn.ModuleList(
        [torch.nn.Linear(128, len(VEHICLE_KINDS) + 1), torch.nn.Linear(128, len(COLORS))]
    )
    parameters = [*model.parameters(), *heads.parameters()]
    optimizer = torch.optim.AdamW(
        parameters, lr=learning_rate, betas=(0.9, 0.98), weight_decay=0.01
    )
    warmup = max(1, steps // 20)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: rate_share(step, steps, warmup)
    )
    cross_entropy = torch.nn.functional.cross_entropy
    loader = DataLoader(batches, batch_size=None, num_workers=workers)
    started = time.perf_counter()
    for step, batch in enumerate(progress := tqdm(loader, total=steps, desc="base", mininterval=5)):
        kinds, colors = batch.pop("kinds"), batch.pop("colors")
        loss = model(**batch).loss
        auxiliary = cross_entropy(heads[0](seen["cells"]), kinds) + cross_entropy(
            heads[1](seen["cells"]), colors
        )
        (loss + 0.5 * auxiliary).backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        optimizer.zero_grad()
        schedule.step()
        if step % 50 == 0:
            progress.set_postfix(loss=f"{loss.item():.3f}", cells=f"{auxiliary.item():.3f}")
    hook.remove()
    return time.perf_counter() - started


def measure(folder: Path, scenes: int = 400) -> dict[str, dict[str, Proportion]]:
    """Exact and well-formed shares on fresh test scenes: {precision: {measure: share}}."""
    table = {}
    with tempfile.TemporaryDirectory() as data:
        write_split(Path(data), "test", scenes)
        items = read_counts(Path(data), "test")
        for precision, four_bit in (("fp32", False), ("4-bit NF4", True)):
            model, processor = load_model(folder, four_bit=four_bit)
            judge = judges(counting_tasks(items))
            greedy = evaluate_tasks(model, processor, judge)
            sampled = evaluate_tasks(model, processor, judge, temperature=1.0)
            shuffled = evaluate_tasks(model, processor, judge, images="shuffled")
            table[precision] = {
                "exact, greedy": greedy.right_share,
                "exact, sampled at T = 1": sampled.right_share,
                "exact, greedy, images shuffled": shuffled.right_share,
                "well formed, greedy": greedy.share("well formed"),
                "well formed, sampled at T = 1": sampled.share("well formed"),
            }
    return table


def write_card(folder: Path, args: argparse.Namespace, seconds: float, parameters: int) -> None:
    """The model card: command, data, figures, known bias."""
    table = measure(folder)
    rows = "\n".join(
        f"| {name} | {' | '.join(str(t[name]) for t in table.values())} |" for name in table["fp32"]
    )
    megabytes = (folder / "model.safetensors").stat().st_size / 1e6
    write_text(
        folder / "README.md",
        f"""---
license: apache-2.0
library_name: transformers
pipeline_tag: image-text-to-text
---
# tiny-qwen2-vl

A `Qwen2VLForConditionalGeneration` of {parameters / 1e6:.1f} M parameters ({megabytes:.1f} MB), \
trained from scratch
so that everything in this repository runs offline on a CPU. It answers questions about drawings of
traffic and nothing else.

**Known bias, on purpose.** Its labels came from a simulated careless annotator who misses one
motorcycle or bicycle in 65 % of the scenes with two or more of them, and is off by one on cars and
buses in 10 %. The model has converged to those labels: its greedy answers under-count two-wheelers.
The notebooks repair this with preferences. Do not use it to count anything.

**Made by** `python data/build_base.py --steps {args.steps} --batch-size {args.batch_size} \
--learning-rate {args.learning_rate:g} --seed {args.seed}` in {seconds:.0f} s of training on \
{torch.get_num_threads()} CPU threads (torch {torch.__version__}).

**Data**: {args.steps * args.batch_size:,} procedural scenes, each seen once, seeds from
{SPLIT_SEEDS["base"][0]:,}; no licence attaches to them. {1 - EASY_SHARE:.0%} ask for all counts, \
the rest for one
count, a colour, presence or a reason.

**Figures**, 400 test scenes (seeds from {SPLIT_SEEDS["test"][0]:,}), seed 0, 95 % Wilson intervals:

| share of answers | {" | ".join(table)} |
|---|{"---|" * len(table)}
{rows}
""",
    )


def read_arguments(description: str, folder: str, steps: int) -> argparse.Namespace:
    """The options of a command that builds a base; folder: where it goes, in `data/`."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--out", type=Path, default=ROOT / "data" / folder)
    parser.add_argument("--steps", type=int, default=steps)
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--learning-rate", type=float, default=1.5e-3)
    parser.add_argument("--seed", type=int, default=0)
    return parser.parse_args()


def train_and_save(model, processor, args: argparse.Namespace, make_example, write_card) -> None:
    """Train a base, save it with its processor, and let `write_card` measure and describe it."""
    batches = BaseBatches(processor, args.steps, args.batch_size, make_example)
    seconds = train(model, batches, args.learning_rate)
    model.save_pretrained(args.out)
    processor.save_pretrained(args.out)
    parameters = sum(p.numel() for p in model.parameters())
    write_card(args.out, args, seconds, parameters)
    print(f"{parameters:,} parameters, {args.steps} steps, {seconds:.0f} s → {args.out}")


def main() -> None:
    args = read_arguments(__doc__.splitlines()[0], "tiny-qwen2-vl", steps=1200)
    torch.manual_seed(args.seed)
    processor = build_processor(build_tokenizer())
    model = build_model(processor)
    train_and_save(model, processor, args, make_example, write_card)


if __name__ == "__main__":
    main()
