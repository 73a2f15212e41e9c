# %% [markdown]
# # 04 · Align the model with DPO
#
# **Goal.** Train a LoRA adapter with direct preference optimization so that the model prefers the
# better answers, and know at every moment whether it is learning.
#
# **Needs** `artifacts/preferences/` from notebook 02 (else the shipped traffic preferences).
# **Makes** one adapter a seed in `artifacts/dpo/`. **Takes** about 1 minute a seed on a laptop CPU.

# %% [markdown]
# ## Set-up

# %% tags=["setup"]
# Set-up, the same in every notebook. On Colab: fetch the repository and install what is missing.
REPOSITORY = ""  # Colab only: address of the Git repository that this notebook comes from

import subprocess
import sys
from pathlib import Path

ROOT = next((p for p in [Path.cwd(), *Path.cwd().parents] if (p / "helpers" / "runtime.py").exists()), None)
if ROOT is None:
    if not REPOSITORY:
        raise SystemExit("helpers/ is not here. Open the notebook in its repository, or set REPOSITORY above.")
    ROOT = Path("/content/repository")
    if not ROOT.exists():
        subprocess.run(["git", "clone", "--quiet", "--depth", "1", REPOSITORY, str(ROOT)], check=True)
    install = [sys.executable, "-m", "pip", "install", "--quiet", "-r", str(ROOT / "requirements.txt")]
    subprocess.run(install, check=True)
sys.path.insert(0, str(ROOT))

from helpers import models  # first of all imports: on a GPU it brings in unsloth
from helpers.runtime import machine_summary

print(machine_summary())

# %% [markdown]
# ## Parameters
#
# `PRESET` holds the hyper-parameters: `tiny` for the embedded model, `t4` for a 2B model on a 16 GB
# card. `STEPS = None` takes the preset's. One seed is an anecdote; three are the start of a result.

# %% tags=["parameters"]
MODEL = "tiny"
PRESET = "tiny"
STEPS = None
SEEDS = (0,)

# %%
import dataclasses

import torch
from torch.testing import assert_close

from helpers import dpo, plots
from helpers.config import dpo_preset
from helpers.counting import is_exact
from helpers.evaluation import answer_records, evaluate_pairs
from helpers.losses import dpo_loss
from helpers.preferences import image_paths, read_records, to_trl
from helpers.preflight import preflight
from helpers.report import Section
from helpers.runtime import artifact, artifacts_dir, open_image, write_json
from helpers.statistics import proportion

section = Section("04_train_dpo", "DPO training")
settings = dpo_preset(PRESET)
settings = dataclasses.replace(settings, steps=STEPS or settings.steps)
settings

# %% [markdown]
# ## The loss, by hand
#
# DPO compares how much more the policy likes an answer than the reference does. With β as the price
# of leaving the reference,
#
# $$\mathcal L = -\log\sigma\Big(\beta\big[\underbrace{(\log\pi(y_c)-\log\pi_{ref}(y_c))}_{\text{chosen}}
# -\underbrace{(\log\pi(y_r)-\log\pi_{ref}(y_r))}_{\text{rejected}}\big]\Big).$$
#
# The log-probability of an answer is the *sum* over its tokens. Here are two pairs with made-up
# numbers: the first prefers `chosen` 2.0 more than the reference does, the second 0.5 less.

# %%
chosen, rejected = torch.tensor([-10.0, -12.0]), torch.tensor([-15.0, -14.0])
reference_chosen, reference_rejected = torch.tensor([-11.0, -12.0]), torch.tensor([-14.0, -14.5])
beta = 0.1
margin = (chosen - reference_chosen) - (rejected - reference_rejected)
by_hand = -torch.log(torch.sigmoid(beta * margin)).mean()
print(f"margins {margin.tolist()}, loss {by_hand:.4f}")

# %%
loss, helper_margin = dpo_loss(chosen, rejected, reference_chosen, reference_rejected, beta)
assert_close(loss, by_hand)
assert_close(helper_margin, margin)

# %% [markdown]
# At the start policy and reference are the same model, all margins are 0, and the loss is
# $-\log\sigma(0) = \ln 2 = 0.6931$. A run whose loss stays there has learnt **nothing**. That is not
# a detail: a project whose loss sat at 0.70–0.72 for 420 steps was presented as "stable".

# %%
start, _ = dpo_loss(chosen, rejected, chosen, rejected, beta)
print(f"{start:.4f}")

# %% [markdown]
# ## The preference data

# %%
source = artifact(
    "preferences/train.jsonl", "notebook 02", lambda: ROOT / "data" / "traffic" / "preferences_train.jsonl"
)
records = read_records(source)
train_data = to_trl(source, records)
print(train_data)

# %% [markdown]
# TRL decides by the *name* of a column whether images are used: `images` (or `image`) makes this
# vision data. A column called `image_path` would be ignored without a word, and the model would train
# on text alone.

# %%
first = train_data[0]
print(
    first["prompt"][0]["content"],
    "\n  chosen:  ",
    first["chosen"][0]["content"],
    "\n  rejected:",
    first["rejected"][0]["content"],
)
first["images"][0].resize((224, 224))

# %% [markdown]
# ## One base, one adapter
#
# LoRA adds two thin matrices to each projection of the language model and trains only those. The base
# stays frozen in 4 bits, so one copy of it serves twice: with the adapter it is the policy, with the
# adapter switched off it is the reference. No second model is held in memory.


# %%
def new_trainer(seed, callbacks=()):
    """A freshly loaded base with a fresh adapter, in TRL's trainer."""
    model, processor = models.load_model(MODEL)
    return dpo.make_trainer(
        model, processor, train_data, settings,
        seed=seed, output_dir=artifacts_dir() / "dpo" / f"seed-{seed}" / "trainer", callbacks=callbacks,
    )  # fmt: skip


trainer = new_trainer(SEEDS[0], [plots.LiveCurves()])
model, processor = trainer.model, trainer.processing_class

# %% [markdown]
# ## Preflight: is this run able to learn?
#
# Seven checks, each of them a way in which such a run has failed in silence. They use the very batch
# and the very loss that training will use, and they stop the notebook if one fails.

# %%
checks = preflight(trainer)

# %% [markdown]
# ## Train
#
# Watch three things. The **accuracy** (how often the chosen answer is preferred more than by the
# reference) must leave .5. The **margin** must grow. And the log-probability of the *chosen* answers
# must not sink along with the rejected ones: DPO only widens the gap between them, and it may do so by
# making both less likely ("likelihood displacement"), after which sampled answers fall apart. The
# preset therefore adds an SFT term, `sft_weight` × the negative log-likelihood of the chosen answer.
#
# What is that term worth? [docs/results.md](../docs/results.md) has the measured answer: without it, a
# quarter of the sampled answers fall apart. With *only* it (plain fine-tuning on the true answers) this
# task is learnt at least as well. Our preferences are made from exact labels, so the right answer is
# known; DPO is for the case in which one only knows which of two answers is the better one.

# %%
run = dpo.train(trainer)
print(f"{settings.steps} steps, {run.trained_pairs} pairs, {run.seconds:.0f} s")

# %%
section.picture(plots.training_curves(run.log), f"DPO training, seed {SEEDS[0]}")
last = run.log[-10:]
mean = {key: sum(row[key] for row in last) / len(last) for key in ("rewards/accuracies", "rewards/margins")}
section.say(
    f"Seed {SEEDS[0]}: after {settings.steps} steps the chosen answer is preferred in {mean['rewards/accuracies']:.0%} "
    f"of training pairs, with a mean margin of {mean['rewards/margins']:.2f}."
)

# %% [markdown]
# ## Pairs it has never seen
#
# Accuracy on the training pairs can be memory. The validation pairs come from other images.

# %%
valid_source = source.with_name(source.name.replace("train", "valid"))
valid_records = read_records(valid_source)
valid_data = to_trl(valid_source, valid_records)
pairs = evaluate_pairs(model, processor, valid_data)
held_out = pairs.accuracy
section.say(f"Validation pairs on which the policy prefers the chosen answer more than the base does: {held_out}.")

# %% [markdown]
# Did the chosen answers become likelier, or only less unlikely than the rejected ones?

# %%
for side, policy, base in (
    ("chosen", pairs.chosen, pairs.reference_chosen),
    ("rejected", pairs.rejected, pairs.reference_rejected),
):
    print(f"log-probability of {side:>8} answers: base {base.mean():7.2f} → policy {policy.mean():7.2f}")
if pairs.chosen.mean() < pairs.reference_chosen.mean():
    section.say("⚠️ The chosen answers became less likely: raise sft_weight or lower the learning rate.")

# %% [markdown]
# ## Before and after on one image

# %%
record = valid_records[0]
image, question = open_image(image_paths(valid_source, record)[0]), record.prompt[-1].content
with models.adapter_off(model):
    before = models.generate_answers(model, processor, [image], [question])[0]
after = models.generate_answers(model, processor, [image], [question])[0]
print(f"{question}\n  before: {before}\n  after:  {after}\n  truth:  {record.truth}")

# %% [markdown]
# ## Save the adapter
#
# Only the adapter is saved (the base is unchanged), as safetensors, with a note of how it was made
# and its greedy answers to the validation questions. Notebook 06 loads it in a new process and checks
# that the answers are the same.


# %%
def save(trainer, run, seed):
    """Adapter, settings, log and reference answers → artifacts/dpo/seed-N."""
    folder = artifacts_dir() / "dpo" / f"seed-{seed}"
    answers = answer_records(trainer.model, processor, valid_source, valid_records)
    about = {"base": MODEL, "seed": seed, "settings": dataclasses.asdict(settings), "data": str(source)}
    models.save_adapter(trainer.model, folder, about)
    write_json(folder / "log.json", run.log)
    write_json(folder / "validation_answers.json", {"records": str(valid_source), "answers": answers})
    exact = proportion(sum(is_exact(a, r.truth) for a, r in zip(answers, valid_records, strict=True)), len(answers))
    print(f"seed {seed}: {run.seconds:.0f} s, greedy exact on validation {exact} → {folder}")
    return exact


exact = {SEEDS[0]: save(trainer, run, SEEDS[0])}

# %% [markdown]
# ## Does it hold with other seeds?
#
# The seed decides the adapter's first values and the order of the pairs. A result that one seed gives
# and the next does not is luck. Set `SEEDS = (0, 1, 2)` to see; every seed is reported, not the best.

# %%
seconds = {SEEDS[0]: run.seconds}
for seed in SEEDS[1:]:
    trainer = new_trainer(seed)
    preflight(trainer)
    repeat = dpo.train(trainer)
    seconds[seed], exact[seed] = repeat.seconds, save(trainer, repeat, seed)

# %%
rows = [[str(seed), f"{seconds[seed]:.0f}", str(exact[seed])] for seed in SEEDS]
section.table([["seed", "seconds", "greedy exact, validation images"], *rows])

# %% [markdown]
# ## What you should see
#
# With the defaults: all seven checks pass; the loss starts a little over 0.69 (ln 2 plus the SFT term)
# and falls below 0.3; accuracy rises to over .9 and the margin keeps growing; the chosen log-probability
# rises while the rejected one falls; over 90 % of the greedy answers on validation images are exact.
#
# **If the loss stays at ln 2**, nothing is learnt: is the adapter trained at all, is the learning rate
# far too low, are chosen and rejected swapped in half of the data? **If the accuracy is 1 and the
# answers are bad**, the pairs can be solved without the image: look at the blind rules in notebook 02.
#
# ## Check yourself

# %%
trainable = [name for name, parameter in model.named_parameters() if parameter.requires_grad]
assert trainable and all("lora_" in name for name in trainable), "only the adapter is trained"
assert not any("visual" in name for name in trainable), "the vision tower is frozen"
assert mean["rewards/accuracies"] > 0.6, "accuracy is near .5: the run has not learnt, read the advice above"
if MODEL == "tiny" and STEPS is None and "scene-" in records[0].images[0]:
    assert held_out.low > 0.8, "unseen pairs should be told apart as well"

# %%
for seed in SEEDS:
    suffix = "" if seed == SEEDS[0] else f"_seed_{seed}"
    section.single(f"dpo_train_seconds{suffix}", seconds[seed], seed)
section.share("dpo_pair_accuracy_validation", held_out, SEEDS[0])
print("report:", section.save())

# %% [markdown]
# ## Next
#
# [06 · Compare before and after](06_compare_before_after.ipynb) asks both models about images that
# nobody has used so far.
