# %% [markdown]
# # 04 · Align the model with DPO
#
# **Goal.** Train a LoRA adapter with direct preference optimization so that the model prefers the
# better answers, and know at every moment whether it is learning; beside it the baseline, plain
# fine-tuning (SFT) on the better answers alone.
#
# **Needs** `artifacts/preferences/` from notebook 02 (else the shipped traffic preferences).
# **Makes** one adapter a seed in `artifacts/dpo/` and in `artifacts/sft/`. **Takes** about 1½
# minutes a seed on a laptop CPU, and 6 minutes more for the failures, the sweep and the on-policy
# rounds.

# %% [markdown]
# ## Set-up

# %% tags=["setup"]
REPOSITORY, TAG = "", "main"  # what Colab and Kaggle fetch
DRIVE = None  # Colab only: folder of your Google Drive that keeps your work; "": none; None: ask

import os
import sys

PLACES = ["../" * up for up in range(9)] + ["alignment"] + [d[0] for d in os.walk("/kaggle/input")]
FOUND = [place for place in PLACES if os.path.exists(os.path.join(place, "helpers", "setup.py"))]
FETCH = f"git clone -qb {TAG} --depth 1 '{REPOSITORY}' new$$ 2>fetch.log && mv new$$ alignment"
if not FOUND and os.system(FETCH):
    sys.exit(f"{REPOSITORY!r} ({TAG!r}): see fetch.log. Set it, or %cd to it; Kaggle: Internet on.")
sys.path.insert(0, os.path.abspath(FOUND[0] if FOUND else "alignment"))
from helpers.setup import set_up

ROOT = set_up(DRIVE)

# %% [markdown]
# ## Parameters
#
# `PRESET` holds the hyper-parameters: `tiny` for the embedded model, `t4` for a 2B model on a 16 GB
# card, `laptop` for SmolVLM-256M without a GPU. `STEPS = None` takes the preset's. One seed is an
# anecdote; three are the start of a result.
# A training that was cut off goes on from its last checkpoint (`t4` writes one every 30 steps,
# `tiny` every 40), and one that was finished is loaded. Other data or settings are another run: it
# stops and names what differs. With `REPLACE = True` it keeps the run before as seed-N.old-1 and
# trains anew.
# `GALLERY_STEPS = 0`, `HIGH_RATE_STEPS = 0`, `SWEEP = ()` and `ROUNDS = 0` leave out the failures,
# the two runs at a high rate, the sweep and the rounds. The data, and the model that it was
# prepared with, are those of notebook 02.

# %% tags=["parameters"]
MODEL = None  # None: as in notebook 02
PRESET = "tiny"
STEPS = None
SEEDS = (0,)
GALLERY_STEPS = 40  # of each run that is made to fail
HIGH_RATE_STEPS = 28  # of each of the two runs at ten times the rate
SWEEP = ((0.1, 0.0), (0.1, 2.0), (1.0, 0.0), (1.0, 2.0))  # β and weight of the SFT term
SWEEP_STEPS = 40  # of each
ROUNDS = 2  # sample, rank, pair, train
ROUND_STEPS = 60  # of each
ROUND_RANKER = None  # "truth", or "reward_model" of notebook 03. None: the truth, if it is known
REPLACE = False  # True: a run of other settings is set aside, not refused

# %%
import dataclasses

import torch
from IPython.display import display
from torch.testing import assert_close

from helpers import (
    config,
    data,
    doctor,
    evaluation,
    files,
    losses,
    machine,
    models,
    report,
    rewards,
    training,
)

# %%
section = report.Section("04_train_dpo", "DPO training")
prepared = data.read_prepared()
MODEL = MODEL or prepared.model
settings = config.dpo_preset(PRESET)
settings = dataclasses.replace(settings, steps=STEPS or settings.steps)
sft_settings = config.sft_preset(PRESET if PRESET in config.SFT_PRESETS else "t4")
sft_settings = dataclasses.replace(sft_settings, steps=settings.steps, lora=settings.lora)
settings

# %% [markdown]
# ## Is the machine enough?
#
# [Notebook 01](01_load_model.ipynb) says how to read this table.

# %%
plan = machine.check_machine(MODEL, sft=sft_settings, dpo=settings)
settings = plan.dpo

# %% [markdown]
# ## The loss, by hand
#
# DPO compares how much more the policy likes an answer than the reference does. With β as the price
# of leaving the reference,
#
# $$\mathcal L = -\log\sigma\Big(\beta\big[
# \underbrace{(\log\pi(y_c)-\log\pi_{ref}(y_c))}_{\text{chosen}}
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
loss, helper_margin = losses.dpo_loss(chosen, rejected, reference_chosen, reference_rejected, beta)
assert_close(loss, by_hand)
assert_close(helper_margin, margin)

# %% [markdown]
# At the start policy and reference are the same model, all margins are 0, and the loss is
# $-\log\sigma(0) = \ln 2 = 0.6931$. A run whose loss stays there has learnt **nothing**. That is
# not a detail: a project whose loss sat at 0.70–0.72 for 420 steps was presented as "stable".

# %%
start, _ = losses.dpo_loss(chosen, rejected, chosen, rejected, beta)
print(f"{start:.4f}")

# %% [markdown]
# ### Relatives
#
# * **Length-normalised:** means over tokens instead of sums (`losses=("sigmoid_norm",)`), where
#   long answers win.
# * **Label smoothing:** a share ε of the labels is wrong (`losses=("robust",)`,
#   `label_smoothing=ε`).
# * **MPO** mixes preference, quality and generation, 0.8 : 0.2 : 1 (`PRESET = "mpo"`).
# * **mDPO** compares *images*: the chosen answer should be likelier with its own image than with a
#   spoilt one. That is the same formula with the spoilt image in the place of the rejected answer.
#   An anchor keeps the chosen answer from becoming less likely (`PRESET = "mdpo"`; needs
#   `negative_images`).

# %%
spoilt, reference_spoilt = torch.tensor([-10.5, -12.5]), torch.tensor([-11.0, -12.0])
image_term, _ = losses.dpo_loss(chosen, spoilt, reference_chosen, reference_spoilt, beta)
mdpo = loss + image_term + losses.anchor_loss(chosen, reference_chosen, beta)
print(f"mDPO: preference {loss:.3f} + image {image_term:.3f} + anchor = {mdpo:.3f}")
print("at the start: 3 ln 2 = 2.079")

# %% [markdown]
# ## The preference data

# %%
records, valid_records = prepared.records("train"), prepared.records("valid")
valid_tasks = prepared.tasks("valid")
train_data = data.to_trl(records)
print(train_data)

# %% [markdown]
# TRL decides by the *name* of a column whether images are used: `images` (or `image`) makes this
# vision data. A column called `image_path` would be ignored without a word, and the model would
# train on text alone.

# %%
first = train_data[0]
for side in ("prompt", "chosen", "rejected"):
    print(f"{side + ':':<10}", first[side][0]["content"])
first["images"][0].resize((224, 224))

# %% [markdown]
# ## One base, one adapter
#
# LoRA adds two thin matrices to each projection of the language model and trains only those. The
# base stays frozen in 4 bits, so one copy of it serves twice: with the adapter it is the policy,
# with the adapter switched off it is the reference. No second model is held in memory.
# `dpo_trainer` in `helpers/training/dpo.py` puts all that into TRL's trainer.


# %%
def new_trainer(seed=0, dataset=train_data, model=None, callbacks=(), folder=None, **changes):
    """A freshly loaded base (or `model`) with a fresh adapter, in TRL's trainer.

    changes: to the settings. folder: of this run alone; None writes nothing.
    """
    base = models.load_model(MODEL, max_pixels=plan.max_pixels)[0] if model is None else model
    own = dataclasses.replace(settings, **changes)
    return training.dpo_trainer(
        base, processor, dataset, own, seed=seed, callbacks=callbacks,
        folder=folder, replace_other=REPLACE, cache=cache,
    )  # fmt: skip


dpo_folder, cache = files.artifacts_dir() / "dpo", files.artifacts_dir() / "cache"
base, processor = models.load_model(MODEL, max_pixels=plan.max_pixels)

# %% [markdown]
# Three callbacks watch the run: greedy answers to 64 validation questions, if their truth is known,
# a doctor, which samples answers to eight of them, and curves.

# %%
held_out_exact = training.HeldOutAnswers(processor, valid_records[:64])
watching = doctor.DPODoctor.of_records(processor, valid_records[:8])
curves = report.LiveCurves(held_out=held_out_exact.shares)
trainer = new_trainer(
    SEEDS[0], model=base, callbacks=[held_out_exact, watching, curves],
    folder=dpo_folder / f"seed-{SEEDS[0]}",
)  # fmt: skip
model = trainer.model

# %% [markdown]
# ## One image, one prompt, two answers
#
# TRL writes every pair as two sequences, each with image and prompt, and sends both through the
# model once more for the reference: four times the image, four times the prompt. But a frozen
# vision tower gives the same features every time, both answers follow the same prompt, and the
# reference never changes. So
#
# * the features of an image are computed once and kept,
# * image and prompt stand once in a row, with both answers behind them; a mask keeps the answers
#   from seeing each other (notebook 03 draws it),
# * what the reference says of a pair is computed once and kept in a file. Its name and keys are
#   made of weights, processor, images and texts, so that an old figure is never read for a new
#   question.
#
# The losses are those of TRL, to four digits in the tests. What it saves depends on the share of
# image and prompt in a sequence: see [docs/results.md](../docs/results.md).

# %%
rows = [train_data[i] for i in range(settings.batch_size)]
batch = trainer.data_collator(rows)
if "packed" in batch:
    ours = batch["packed"].inputs["input_ids"].numel()
    answers = int(batch["completion_mask"].sum())
    stock = (
        2 * len(rows) * (batch["packed"].inputs["input_ids"].shape[1] - answers // len(rows))
        + answers
    )
    print(
        f"tokens through the language model, {len(rows)} pairs: {ours} with the answers in one row;"
    )
    print(f"apart, with the reference in every step, about {2 * stock}")

# %% [markdown]
# ## Preflight: is this run able to learn?
#
# Each of these checks is a way in which such a run has failed in silence. They use the very batch
# and the very loss that training will use, learn four pairs by heart and forget them again, and
# stop the notebook if one fails. One of them looks at the base alone: how well it reads plain
# English, which is what training on one narrow task may cost. The last line says what the run will
# cost.
#
# The check of the **learning rate** foresees how far the margin can move. Adam moves each weight by
# about the rate a step, so what counts is the sum of the rates over the steps: that, × the L1 norm
# of the margin's gradient, × β, is about the largest margin there can be. Measured runs came to a
# seventh of it up to nearly all, so aim at 2 (a loss of 0.127), not at the least that can be told
# from rounding. `helpers/doctor/reach.py` says what it cannot know, such as the end of a rate that
# is too high: that is below.

# %%
checks = doctor.preflight(trainer)

# %% [markdown]
# ## Train
#
# Watch three things. The **accuracy** (how often the chosen answer is preferred more than by the
# reference) must leave .5. The **margin** must grow. And the log-probability of the *chosen*
# answers must not sink along with the rejected ones: DPO only widens the gap between them, and it
# may do so by making both less likely ("likelihood displacement"), after which sampled answers fall
# apart. The preset therefore adds an SFT term, `sft_weight` × the negative log-likelihood of the
# chosen answer.
#
# A doctor watches the run as well: the log, the gradients of every part of the model, and answers
# sampled on the way. It says in one sentence what is wrong, why that is likely, and what to change,
# and it says so when that is over.
# The loop itself is TRL's; what a step computes is in `VLMDPOTrainer` in `helpers/training/dpo.py`.
#
# What is that term worth? [docs/results.md](../docs/results.md) has the measured answer: without
# it, a quarter of the sampled answers fall apart. With *only* it this task is learnt at least as
# well: that is the baseline below.

# %%
run = training.train_dpo(trainer)
print(f"{settings.steps} steps, {run.trained_pairs} pairs, {run.seconds:.0f} s")
watching

# %%
curves = report.training_curves(run.log, held_out=held_out_exact.shares)
display(section.picture(curves, f"DPO training, seed {SEEDS[0]}"))
train_accuracy = training.log_mean(run.log[-10:], "rewards/accuracies")
train_margin = training.log_mean(run.log[-10:], "rewards/margins")
section.say(
    f"Seed {SEEDS[0]}: after {settings.steps} steps the chosen answer is preferred in "
    f"{train_accuracy:.0%} of training pairs, with a mean margin of {train_margin:.2f}."
)

# %% [markdown]
# ## Pairs it has never seen
#
# Accuracy on the training pairs can be memory. The validation pairs come from other images.

# %%
valid_data = data.to_trl(valid_records)
pairs = evaluation.evaluate_pairs(model, processor, valid_data)
held_out = pairs.accuracy
section.say(
    "Validation pairs on which the policy prefers the chosen answer more than the base does: "
    f"{held_out}."
)

# %% [markdown]
# Did the chosen answers become likelier, or only less unlikely than the rejected ones?

# %%
for side, policy, reference in (
    ("chosen", pairs.chosen, pairs.reference_chosen),
    ("rejected", pairs.rejected, pairs.reference_rejected),
):
    means = f"base {reference.mean():7.2f} → policy {policy.mean():7.2f}"
    print(f"log-probability of {side:>8} answers: {means}")
if pairs.chosen.mean() < pairs.reference_chosen.mean():
    section.say(
        "⚠️ The chosen answers became less likely: raise sft_weight or lower the learning rate."
    )

# %% [markdown]
# ## Before and after on one image

# %%
task = valid_tasks[0]
with models.disable_adapters(model):
    (before,) = models.answer_tasks(model, processor, [task])
(after,) = models.answer_tasks(model, processor, [task])
print(f"{task.question}\n  before: {before}\n  after:  {after}\n  truth:  {task.facts}")

# %% [markdown]
# ## Save the adapter
#
# Only the adapter is saved (the base is unchanged), as safetensors, with a note of how it was made
# and its greedy answers to the validation questions. Notebook 07 loads it in a new process and
# checks that the answers are the same. What is in the folder is said in
# `helpers/training/run_folder.py`.


# %%
def save(trainer, run, seed, stage="dpo"):
    """Adapter, settings, log and validation answers → artifacts/STAGE/seed-N; the right share."""
    folder = files.artifacts_dir() / stage / f"seed-{seed}"
    about = prepared.policy_about(MODEL, plan.max_pixels, seed)
    training.save_policy(trainer.model, folder, getattr(plan, stage), about, run.log)
    right = training.save_answers(trainer.model, processor, valid_records, folder)
    found = "no truth to judge by" if right is None else f"right on validation {right}"
    print(f"{stage}, seed {seed}: {run.seconds:.0f} s, greedy answers: {found} → {folder}")
    return found


right = {SEEDS[0]: save(trainer, run, SEEDS[0])}

# %% [markdown]
# ## The baseline: the chosen answers alone
#
# What does comparing give that good answers alone do not? Supervised fine-tuning (SFT) makes the
# chosen answers of the same pairs likelier, in as many steps, and never sees a rejected one. Its
# loss is the SFT term by itself, the mean of −log p over the tokens of the answers. Every table
# below has it beside DPO. Our preferences are made from exact labels, so that the chosen answer is
# *the* right one, and SFT is hard to beat. DPO is for the case in which one only knows which of two
# answers is the better one. `sft_trainer` is in `helpers/training/sft.py`.

# %%
token_logps = torch.tensor([[-0.1, -0.2, -0.3], [-0.4, -0.6, 0.0]])  # answers of 3 tokens and of 2
mask = torch.tensor([[1, 1, 1], [1, 1, 0]])
by_hand = -token_logps.sum() / 5  # a mean over tokens, in which a longer answer counts more
assert_close(losses.sft_loss(token_logps, mask), by_hand)
sft_seconds, sft_right = {}, {}
for seed in SEEDS:
    tuning = training.sft_trainer(
        models.load_model(MODEL, max_pixels=plan.max_pixels)[0], processor,
        training.chosen_answers(records), plan.sft, seed=seed, cache=cache,
        folder=files.artifacts_dir() / "sft" / f"seed-{seed}", replace_other=REPLACE,
    )  # fmt: skip
    tuned = training.train_sft(tuning)
    sft_seconds[seed], sft_right[seed] = tuned.seconds, save(tuning, tuned, seed, "sft")

# %% [markdown]
# ## What can be said without a truth
#
# Often nobody knows which answer is right, only which of two is preferred. Then four things can be
# measured: held-out pairs, beside a rule without eyes and beside the images of other photos; wins
# in the eyes of a judge (notebook 07); what the answers look like, for a policy that begins to
# repeat itself, or says ever more, has not become better; and whether the policy still speaks, or
# has forgotten the language that it was not trained on. `gather_evidence` is in
# `helpers/evaluation/evidence.py`.

# %%
policies = models.Policies(
    models.load_model(MODEL, max_pixels=plan.max_pixels)[0],
    processor,
    models.find_policies(MODEL),
)
evidence = evaluation.gather_evidence(
    policies, [f"{stage}/seed-{SEEDS[0]}" for stage in ("dpo", "sft")],
    valid_records[:64], valid_tasks[:64], trained_on=records, stopped=prepared.held_out == "valid",
)  # fmt: skip
report.add_evidence(section, evidence)

# %% [markdown]
# ## Does it hold with other seeds?
#
# The seed decides the adapter's first values and the order of the pairs. A result that one seed
# gives and the next does not is luck. Set `SEEDS = (0, 1, 2)` to see; every seed is reported, not
# the best.

# %%
seconds = {SEEDS[0]: run.seconds}
for seed in SEEDS[1:]:
    trainer = new_trainer(seed, folder=dpo_folder / f"seed-{seed}")
    doctor.preflight(trainer)
    repeat = training.train_dpo(trainer)
    seconds[seed], right[seed] = repeat.seconds, save(trainer, repeat, seed)
rows = [["DPO", str(seed), f"{seconds[seed]:.0f}", right[seed]] for seed in SEEDS]
rows += [["SFT", str(seed), f"{sft_seconds[seed]:.0f}", sft_right[seed]] for seed in SEEDS]
section.table([["method", "seed", "seconds", "greedy answers"], *rows])

# %% [markdown]
# ## A gallery of failures
#
# Four runs that are made to fail, each as a project did that nobody stopped. The doctor watches
# them too.
#
# * **Half of the labels swapped.** The loss stays at .70: what is learnt from one pair is unlearnt
#   by the next.
# * **A learning rate that is far too low.** The loss stays at .69, and it looks stable.
# * **One grey picture for all.** The images never reach the model; the pairs are learnt by heart.
# * **One-sided negatives without an SFT term.** The rejected answer always counts more. "Say less"
#   solves every pair without looking, and the training accuracy is splendid.

# %%
coins = torch.rand(len(records), generator=torch.Generator().manual_seed(0)) < 0.5
swapped = data.swap_rankings(records, coins.tolist())  # at random, or it is a pattern
grey = dpo_folder / "grey.png"
files.open_image(records[0].image_paths[0]).point(lambda _: 127).save(grey)
blind = [record.model_copy(update={"images": [str(grey)]}) for record in records]
one_sided = data.make_one_sided(records)


# %%
def fail(name, dataset, **changes):
    """Train a short while with data or settings that are wrong; a row of the table."""
    watching = doctor.DPODoctor.of_records(processor, valid_records[:8])
    answers = training.HeldOutAnswers(processor, valid_records[:64], every=GALLERY_STEPS)
    failing = new_trainer(
        dataset=dataset, callbacks=[watching, answers], steps=GALLERY_STEPS, **changes
    )
    end = training.train_dpo(failing).log[-10:]
    loss, accuracy = (training.log_mean(end, key) for key in ("loss", "rewards/accuracies"))
    unseen = evaluation.evaluate_pairs(failing.model, processor, valid_data).accuracy
    figures = [f"{loss:.3f}", f"{accuracy:.2f}", str(unseen)]
    figures += [str(share) for _, share in answers.shares[-1:]]
    return [name, *figures, doctor.verdict_kinds(watching.verdicts)]


# %%
judge = evaluation.judges(valid_tasks)
head = ["run", "loss at the end", "training accuracy", "validation pairs"]
head += [f"{measure.short}, validation" for measure in judge.measures[:1]]
if GALLERY_STEPS:
    rate = settings.learning_rate / 1e4
    rows = [
        fail("half of the labels swapped", data.to_trl(swapped), sft_weight=0.0),
        fail("learning rate / 10,000", train_data, learning_rate=rate, sft_weight=0.0),
        fail("one grey picture for all", data.to_trl(blind)),
        fail("one-sided negatives, no SFT term", data.to_trl(one_sided), sft_weight=0.0),
    ]
    display(section.table([[*head, "the doctor says"], *rows]))

# %% [markdown]
# Read the table by columns. The **loss** condemns only the first two. The **training accuracy**
# praises the second, in which a margin of 0.0003 has the right sign and moves nothing, and the
# last. **Validation pairs** and **exact answers** see through that one: the answers are far worse
# than the base's, and of pairs in which the truth may be the larger number as well, most are
# missed. Its curves show at most that both answers become less likely. The blind rules of notebook
# 02 tell the reason, and before training.

# %% [markdown]
# ## A rate that is too high
#
# The same data at ten times the rate and β = 0.1, without an SFT term and with one. Preflight
# foresees the same margin for both, and loss and pair accuracy are as good. But without the term
# the *chosen* answers get less likely, too, and then the policy says what nobody has ever compared.
# So the doctor asks it after a quarter of the steps: how much likelier are its own answers than
# under the reference (their KL), and are the chosen ones less likely than at the start? A policy
# that learns a new kind of answer goes as far, but to the chosen ones.


# %%
def train_fast(name, sft_weight):
    """Train at ten times the rate: {what reassures, and what tells: its figure}."""
    watching = doctor.DPODoctor.of_records(processor, valid_records[:8], every=HIGH_RATE_STEPS)
    fast = new_trainer(
        callbacks=[watching], steps=HIGH_RATE_STEPS, learning_rate=10 * settings.learning_rate,
        beta=0.1, sft_weight=sft_weight, warmup_share=0.0,
        batch_size=max(1, settings.batch_size // 2),
    )  # fmt: skip
    log = training.train_dpo(fast).log
    keys = ("loss", "rewards/accuracies", "rewards/chosen")
    loss, accuracy, chosen = (training.log_mean(log[-5:], key) for key in keys)
    found = evaluation.evaluate_greedy_and_sampled(fast.model, processor, valid_tasks[:32]).shares()
    last = watching.run.samples[-1]
    print(f"{name}, own answers: {last.answers[:2]}")
    early = [v for v in watching.verdicts if v.step <= HIGH_RATE_STEPS / 4]
    row = {"run": name, "loss": f"{loss:.3f}", "training accuracy": f"{accuracy:.2f}"}
    row |= {"chosen, nats": f"{chosen / 0.1:+.1f}", "KL, nats": f"{last.kl.value:.1f}", **found}
    return row | {"the doctor at a quarter": doctor.verdict_kinds(early)}, log


# %%
if HIGH_RATE_STEPS:
    without, log = train_fast("without an SFT term", 0.0)
    beside, _ = train_fast("sft_weight = 1", 1.0)
    display(section.picture(report.training_curves(log), "Ten times the rate, no SFT term"))
    rows = [list(map(str, run.values())) for run in (without, beside)]
    display(section.table([[*without], *rows]))

# %% [markdown]
# ## What β and the SFT term do
#
# β is the price of leaving the reference: a small one lets the policy go far for the same margin.
# The SFT term holds the chosen sentence in place.

# %%
sweep = {}
for strength, weight in SWEEP:
    changes = {"beta": strength, "sft_weight": weight}
    tried = new_trainer(steps=SWEEP_STEPS, **changes)
    training.train_dpo(tried)
    found = evaluation.evaluate_greedy_and_sampled(tried.model, processor, valid_tasks).shares()
    unseen = evaluation.evaluate_pairs(tried.model, processor, valid_data).accuracy
    # where no truth is known, the held-out pairs have to speak
    sweep[f"β {strength:g}, SFT {weight:g}"] = found or {"validation pairs": unseen}
if sweep:
    title = f"{SWEEP_STEPS} steps each, {len(valid_tasks)} validation questions"
    chart = report.interval_chart(sweep, title)
    display(section.picture(chart, "β and the SFT term"))

# %% [markdown]
# ## Online DPO: rounds on the policy's own answers
#
# The pairs so far were made once, from the base. But as the policy moves on, its old mistakes are
# no longer its mistakes. A round of online DPO asks the policy itself: sample four answers to each
# question, rank them, take the best against the worst, train, and begin again. No answer is
# written for the model, so the chosen answers are as likely as what it says anyway, and nothing
# falls apart even without an SFT term. The reference of a round is the policy at its start, so each
# round begins at ln 2. A round is `on_policy_round` in `helpers/training/on_policy.py`.
#
# What ranks them may be the truth: of counts, 1 if all are right, less for each one that is off
# (`rewards.TRUTHS` has the others). Where nobody knows it, it is the reward model of notebook 03.
# A policy that is trained on its favourites finds its errors, too; the recipe `online` can train a
# fresh reward model for every round (`docs/recipes.md`). A round in which all sampled answers rank
# the same has no pair to train on; it is left out, and that is said.

# %%
tasks = prepared.tasks("train")[:256]
policy = models.load_model(MODEL)[0]
own = dataclasses.replace(settings, steps=ROUND_STEPS, sft_weight=0.0)
assert ROUND_RANKER in (None, "truth", "reward_model"), f"ROUND_RANKER: {ROUND_RANKER}"
reward_folder = files.artifacts_dir() / "reward"
ranker = rewards.degree_of(tasks) if ROUND_RANKER in (None, "truth") else None
if ranker is None and ROUND_RANKER != "truth" and prepared.has_made(reward_folder, MODEL):
    ranker = rewards.load_reward_model(*models.load_model(MODEL), reward_folder)


def shares_of(model):
    """Shares of right answers to the validation questions."""
    return evaluation.evaluate_greedy_and_sampled(model, processor, valid_tasks).shares()


# %%
if ROUNDS and ranker is None:
    section.say("No rounds: the truth is not known, and notebook 03 has left no reward model.")
elif ROUNDS:
    reached = {"0": shares_of(policy)}
    for number in range(1, ROUNDS + 1):
        done = training.on_policy_round(
            policy, processor, tasks, ranker, own, sampling_seed=1000 * number, cache=cache
        )
        policy = done.policy
        print(f"round {number}: {done}")
        reached[str(number)] = shares_of(policy)
    if reached["0"]:
        rows = [[number, *map(str, shares.values())] for number, shares in reached.items()]
        display(section.table([["rounds", *reached["0"]], *rows]))

# %% [markdown]
# ## What you should see
#
# On the traffic scenes, with the defaults: all checks pass and the doctor finds nothing; the loss
# starts a little over 0.69 (ln 2 plus the SFT term) and falls below 0.3; accuracy rises to over .9
# and the margin keeps growing; the chosen log-probability rises while the rejected one falls; over
# 90 % of the greedy answers on validation images are exact, and so are SFT's. The doctor finds the
# first failures of the gallery, and each on-policy round raises the exact answers. At ten times the
# rate both runs end with a loss of about .37 and a training accuracy of over .9. Without the SFT
# term the chosen answers are some nats less likely, hardly a sampled answer is well formed, and the
# doctor says "collapse" at a quarter of the steps; with it, nothing of that.
#
# **If the loss stays at ln 2**, nothing is learnt: is the adapter trained at all, is the learning
# rate far too low, are chosen and rejected swapped in half of the data? **If the accuracy is 1 and
# the answers are bad**, the pairs can be solved without the image: look at the blind rules in
# notebook 02.
#
# ## Check yourself

# %%
trainable = [name for name, parameter in model.named_parameters() if parameter.requires_grad]
assert trainable and all("lora_" in name for name in trainable), "only the adapter is trained"
assert models.is_frozen(model), "the vision tower is frozen"
if train_accuracy <= 0.6:
    section.say("⚠️ Accuracy is near .5: the run has not learnt. Read the advice above.")
if MODEL == "tiny" and prepared.is_traffic:
    assert train_accuracy > 0.6, "the traffic pairs are learnt"
    assert STEPS or held_out.low > 0.8, "unseen pairs should be told apart as well"
for seed in SEEDS:
    suffix = "" if seed == SEEDS[0] else f"_seed_{seed}"
    section.add_value(f"dpo_train_seconds{suffix}", seconds[seed], seed)
    section.add_value(f"sft_train_seconds{suffix}", sft_seconds[seed], seed)
section.add_share("dpo_pair_accuracy_validation", held_out, SEEDS[0])
print("report:", section.save())

# %% [markdown]
# ## Next
#
# [06 · Compare before and after](06_compare_before_after.ipynb) asks both models about images that
# nobody has used so far, and [07 · Evaluate](07_evaluate.ipynb) whether the difference is more than
# luck.
