# %% [markdown]
# # 05 · Reinforcement learning: PPO, RLOO, GRPO
#
# **Goal.** Let the model answer, score its answers, and make good ones likelier, with images, on
# one small machine. Know at every moment whether the score, the KL and the language do what they
# should, and what a critic is worth.
#
# **Needs** `artifacts/preferences/` from notebook 02 and `artifacts/reward/` from notebook 03 (else
# the shipped preferences, and a reward model trained here). **Makes** adapters in `artifacts/ppo/`.
# **Takes** about 10 minutes on a laptop CPU.

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
# card, `laptop` for SmolVLM-256M without a GPU; `reasoning`, `captions` and `vqa` are those of
# three student projects. `COMPARE` names what PPO is compared with. A run that was cut off goes on
# after its last checkpoint, also if the folder was moved; one that was finished is loaded. Other
# data or settings are another run: it stops and names what differs. With `REPLACE = True` it keeps
# the run before as NAME.old-1 and trains anew.
# `HACKING = 0` and `VQA = 0` leave out the two runs that are meant to fail, and their cures;
# `REJECTION = 0` rejection sampling.
# `REWARD` is what the first runs are rewarded by. None: being right, if the truth is known, else
# the reward model. A name of `rewards.SCORERS`, or a function of yours, as
# "my_rewards.py:brevity": any `f(image, question, answer, truth)` that returns a number.

# %% tags=["parameters"]
MODEL = None  # None: as in notebook 02
PRESET = "tiny"
REWARD = None
ITERATIONS = None
SEED = 0
COMPARE = ("rloo", "grpo", "critic")
WARM_UP = 8  # epochs of the critic before its first iteration; none of its answers is sampled
REWARD_MODEL = True  # a run against it, too
HACKING = 22  # iterations against the heuristic
REJECTION = 8  # answers to each question, the best of which are learnt
REJECTION_STEPS = None  # None: as the preset of SFT says
VQA = 256  # answers, one at a time as a project trained
PAIRS = 64  # held-out questions and pairs of the block that needs no truth
SECOND_JUDGE = False  # True: the learnt reward gets one half of the pairs, a judge the other
REPLACE = False  # True: a run of other settings is set aside, not refused
TENSORBOARD = False  # a log for it, too, if the package is installed

# %%
import dataclasses
import time

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
    statistics,
    training,
)

# %%
section = report.Section("05_train_ppo", "PPO, RLOO and GRPO")
prepared = data.read_prepared()
MODEL = MODEL or prepared.model
settings = config.ppo_preset(PRESET)
settings = dataclasses.replace(settings, iterations=ITERATIONS or settings.iterations)
sft_settings = config.sft_preset(PRESET if PRESET in config.SFT_PRESETS else "t4")
steps = REJECTION_STEPS or sft_settings.steps
sft_settings = dataclasses.replace(sft_settings, steps=steps, lora=settings.lora)
settings

# %% [markdown]
# ## Is the machine enough?
#
# [Notebook 01](01_load_model.ipynb) says how to read this table. It is of the run that takes most:
# the one with a critic. Where that does not fit, take `"critic"` out of `COMPARE`.

# %%
with_critic = {"advantages": "gae", "critic_layers": 3, "critic_adapter": True}
without = {name: getattr(settings, name) for name in with_critic}
largest = with_critic if "critic" in COMPARE else without
plan = machine.check_machine(MODEL, ppo=dataclasses.replace(settings, **largest))
settings = dataclasses.replace(plan.ppo, **without)

# %% [markdown]
# ## What an answer is made of, by hand
#
# An answer is a chain of actions, one a token. The score comes at the end; a price for leaving the
# reference, the KL, comes at every token. Which tokens earned the score? That is measured against
# what was expected before each token. The plainest expectation is one number, the mean score. A
# **critic** predicts before each token how the answer will end: where its prediction jumps,
# something good or bad was said. With rewards $r_t$, predictions $V_t$, and $V = 0$ after the end,
#
# $$\delta_t = r_t + \gamma V_{t+1} - V_t, \qquad A_t = \delta_t + \gamma\lambda A_{t+1}.$$
#
# Three tokens: the critic expects .5, .6 and, after a wrong number, .1. The score is 0; no KL.

# %%
token_rewards, values = torch.tensor([[0.0, 0.0, 0.0]]), torch.tensor([[0.5, 0.6, 0.1]])
gamma, lam = 1.0, 0.95
delta = [0 + 0.6 - 0.5, 0 + 0.1 - 0.6, 0 - 0.1]
by_hand = [0.0, 0.0, delta[2]]
by_hand[1] = delta[1] + gamma * lam * by_hand[2]
by_hand[0] = delta[0] + gamma * lam * by_hand[1]
advantages, returns = losses.gae(token_rewards, values, torch.ones(1, 3), gamma, lam)
assert_close(advantages, torch.tensor([by_hand]))
print("blame per token:", [f"{a:+.3f}" for a in by_hand])

# %% [markdown]
# The second token, the wrong number, gets the most blame. λ weighs trust in the critic: λ = 0
# believes only it, λ = 1 only the score. With one number for all $V_t$ no token is told from
# another: an answer that failed is blamed as a whole. That is how PPO runs first here; what a
# critic adds is measured below.
#
# ### The clipped loss
#
# The same answers are used for several updates. After the first, the policy is no longer the one
# that sampled, so each token is weighted by the ratio $\rho = \pi/\pi_{old}$. To stop a token from
# running away, its gain ends at $1 \pm \varepsilon$:
#
# $$\mathcal L = -\min\big(\rho A,\ \mathrm{clip}(\rho, 1-\varepsilon, 1+\varepsilon) A\big).$$

# %%
old, new = torch.tensor([[-1.0, -1.0]]), torch.tensor([[-0.6, -0.9]])
A = torch.tensor([[1.0, -0.5]])
ratio = torch.exp(new - old)  # 1.49 and 1.11
by_hand = -(1.2 * 1.0 + ratio[0, 1] * -0.5) / 2  # the first is clipped at 1.2
policy_loss = losses.clipped_policy_loss(new, old, A, torch.ones(1, 2), clip=0.2)
assert_close(policy_loss.loss, by_hand)
print(f"ratios {ratio.tolist()}, loss {by_hand:.4f}, clipped {policy_loss.clip_share:.0%}")

# %% [markdown]
# ### Against the others
#
# RLOO and GRPO never have a critic: they sample several answers to one question and compare them
# with each other. RLOO subtracts the mean of the *other* answers; GRPO subtracts the mean and
# divides by the standard deviation. All tokens of an answer then get the same praise or blame.

# %%
scores = torch.tensor([1.0, 0.0, 0.0, 1.0])  # four answers to one question
print(
    "RLOO",
    losses.rloo_advantages(scores, 4).tolist(),
    " GRPO",
    losses.grpo_advantages(scores, 4).tolist(),
)

# %% [markdown]
# ## The questions
#
# Reinforcement learning needs questions and a way to score, not answers. The answers in the file
# are not shown to the policy. Where the truth is known, the score says whether an answer is right:
# of counts, 1 if all are true, else 0.

# %%
records, valid_records = prepared.records("train"), prepared.records("valid")
tasks, held_out_tasks = prepared.tasks("train"), prepared.tasks(prepared.held_out)
print(f"{len(tasks)} questions to train on, {len(held_out_tasks)} held-out ones:")
print(tasks[0].question, tasks[0].facts)

# %% [markdown]
# ## One base, five roles
#
# The base is in memory once. With the policy's adapter it samples and is trained; with all adapters
# off it is the **reference**; with the reward model's it scores, and with one of its own it can be
# the **critic**.
#
# Three log-probabilities of the same tokens must not be mixed up: `old` of the policy that sampled,
# `reference` of the base, and `new` of the policy that is being updated. Before the first update
# `new` equals `old`, so the ratio is 1.000; the loop checks that, and stops if it is not.

# %%
base, processor = models.load_model(MODEL, max_pixels=plan.max_pixels)
budget = rewards.token_budget(processor, held_out_tasks)
settings = dataclasses.replace(settings, max_new_tokens=max(settings.max_new_tokens, budget))
ppo_folder, cache = files.artifacts_dir() / "ppo", files.artifacts_dir() / "cache" / "features"


def new_trainer(name, score, changes=None, questions=tasks, watch=(), truth=None, model=None):
    """A fresh base (or `model`) with fresh adapters; its files are in artifacts/ppo/NAME."""
    policy = models.load_model(MODEL)[0] if model is None else model
    own = dataclasses.replace(settings, **(changes or {}))
    return training.ppo_trainer(
        policy, processor, questions, score, own, ppo_folder / name, seed=SEED, truth=truth,
        watch=watch, cache=cache, replace_other=REPLACE, tensorboard=TENSORBOARD,
    )  # fmt: skip


# %% [markdown]
# What is in such a folder is said in `helpers/training/run_folder.py`. Where no truth is known, the
# reward model of notebook 03 is the score. It learnt from the preferences, and is one more adapter
# on the same base.


# %%
def train_reward_model(pairs=records, name="reward"):
    """What notebook 03 makes, with its preset; it has not been run for this data."""
    print(f"training a reward model on {len(pairs)} records …")
    own = config.reward_preset(PRESET)
    base = models.load_model(MODEL)[0]
    reward = evaluation.train_judge(base, processor, pairs, valid_records, own, SEED)
    return rewards.save_reward_model(reward, ppo_folder / name, own)


def find_reward_models():
    """Folders of the model that is trained against, and of one that only judges, if wanted."""
    if not SECOND_JUDGE:
        made = files.artifacts_dir() / "reward"
        return [made if prepared.has_made(made, MODEL) else train_reward_model()]
    parts = evaluation.halves(records, SEED)
    return [train_reward_model(part, f"reward-{n}") for n, part in enumerate(parts)]


# %%
needs_judge = REWARD_MODEL or not (REWARD or rewards.reward_of(tasks))
reward_folders = find_reward_models() if needs_judge else []


def learnt_reward():
    """A policy with a fresh adapter, the reward model beside it, and its standardised score."""
    policy = models.add_adapter(models.load_model(MODEL)[0], settings.lora, SEED)
    reward = rewards.load_reward_model(policy, processor, reward_folders[0])
    return reward.backbone, rewards.standardised_scorer(reward, valid_records)


score = rewards.get_scorer(REWARD) if REWARD else rewards.reward_of(tasks)
truth = rewards.reward_of(tasks) if REWARD else None  # watched, where it is not the score


def new_run(name, changes=None, watch=(), model=None):
    """A run against the score."""
    if score is not None:
        return new_trainer(name, score, changes, watch=watch, truth=truth, model=model)
    policy, learnt_score = learnt_reward()
    return new_trainer(name, learnt_score, changes, watch=watch, model=policy)


# %% [markdown]
# Three watchers look on after each iteration: greedy answers to 64 validation questions, if their
# truth is known, a doctor, and curves. The doctor says when something begins to be wrong, and takes
# it back when that is over.

# %%
held_out = training.HeldOutAnswers(processor, valid_records[:64], every=2)
watching, curves = doctor.PPODoctor(), report.LivePolicyCurves(held_out=held_out.shares)
watch = [held_out, watching, curves]
trainer = new_run("ppo", watch=watch, model=base)
asked = models.load_model(MODEL)[0] if score is None else base
before = evaluation.evaluate_greedy_and_sampled(asked, processor, held_out_tasks)
for name, share in before.shares().items():
    print(f"base, held out: {name} {share}")

# %% [markdown]
# ## Train
#
# Watch three things. The **score** of the sampled answers must rise, and so must held-out answers,
# which are not trained on. The **KL** says how far the policy has gone: if it runs away, the
# language breaks. And every answer must **end**.
#
# The loop is `PPOTrainer.train` in `helpers/training/ppo.py`: sample, look, reward, advantage,
# policy update, critic update, on one page. [docs/ppo.md](../docs/ppo.md) walks through its lines,
# with the formula beside each.

# %%
log = trainer.train()
samples = int(log[-1]["samples"])
print(f"{samples} samples, {trainer.seconds:.0f} s")

# %%
watching

# %%
curves = report.policy_curves(log, held_out=held_out.shares)
section.picture(curves, f"PPO with the reward {trainer.sampler.score.__name__}")

# %%
section.say(
    f"PPO: {samples} samples, {trainer.seconds:.0f} s; KL to the base "
    f"{log[-1]['objective/kl']:.2f} nats an answer."
)

# %% [markdown]
# ## Held-out images, before and after
#
# Where being right was the reward, it is a *circular* judge: that it rose says that training ran.
# Of counts, the independent ones are how many sampled answers are well formed, here, and the
# questions of notebook 07 that nobody trained on.
#
# Each policy is a row of one table (`PolicyTable` in `helpers/evaluation/policy_table.py`), with
# McNemar's test against the base.


# %%
def save(name, run):
    """The adapter → artifacts/ppo/NAME, with its reward: notebook 07 takes no such for a judge."""
    about = prepared.policy_about(MODEL, plan.max_pixels, SEED)
    about |= rewards.about_reward(run.sampler.score)
    return training.save_policy(run.model, ppo_folder / name, run.settings, about)


def judge(name, run):
    """Greedy and sampled answers to the held-out questions: a row of the table."""
    training.save_answers(run.model, processor, valid_records, save(name, run))
    results[name] = evaluation.evaluate_greedy_and_sampled(run.model, processor, held_out_tasks)
    table.add(name, run, results[name])


table, results = evaluation.PolicyTable(before), {}
judge("ppo", trainer)
section.table(table.rows)

# %% [markdown]
# ## RLOO, GRPO and a critic at equal samples
#
# The same questions, the same number of answers, the same learning rate. `critic` is PPO as above,
# with a critic in the place of the one number.

# %%
half = {
    "prompts_per_iteration": settings.prompts_per_iteration // 2,
    "group_size": 2 * settings.group_size,
}
half |= {"mini_batch": max(1, settings.mini_batch // 2)}
kinds = {
    "rloo": {"advantages": "rloo"},
    "grpo": {"advantages": "grpo", **half},
    "critic": with_critic,
}

# %% [markdown]
# ### A critic that knows what a mistake is
#
# A critic on the policy's own hidden states learns next to nothing here: a policy that writes a
# wrong number does not know that it is wrong, or it would not write it. And by the time the critic
# has seen enough failures, the policy makes others. So ours has an adapter of its own, and is
# warmed up before the first iteration, on true answers, on answers with one count changed, and on
# those of other images. Their scores are known, and none costs a sample.
#
# Its **explained variance** is 1 for a perfect critic, 0 for one that is no better than a constant.
# Below its figure stands what it thinks while a new answer is written: a drop is where it believes
# a mistake was made.


# %%
def warm_up(run):
    """Let the run's critic learn from known answers before the first iteration; the seconds."""
    started, answers = time.perf_counter(), rewards.known_answers(tasks, SEED)
    if not (answers and run.actor.own_adapter and WARM_UP) or run.iteration:
        return 0.0
    history = training.warm_up_critic(run, tasks, answers, WARM_UP)
    first, last = sum(history[:8]) / 8, sum(history[-8:]) / 8
    print(f"squared error of the critic, halved: {first:.3f} → {last:.3f}")
    return time.perf_counter() - started


def look_at_critic(run):
    """What the run's critic explains in the last quarter, and what it thinks of an answer."""
    rollout = run.sampler.sample(run.iteration)
    failed = [n for n, score in enumerate(rollout.scores.tolist()) if score < 1] or [0]
    ids = rollout.ids[failed[0]]
    tokens = [processor.tokenizer.decode([i]) for i in ids.tolist()]
    values = run.actor.look(run.sampler.slices(rollout)).values[failed[0], : len(ids)]
    facts = rollout.tasks[failed[0] // rollout.group_size].facts
    display(report.value_strip(tokens, values.tolist(), f"truth: {facts}"))
    return training.pooled_explained_variance(run.log[-len(run.log) // 4 :])


# %%
reached, explained = {"ppo": held_out.shares}, {}
for name in COMPARE:
    answers = training.HeldOutAnswers(processor, valid_records[:64], every=2)
    other = new_run(name, kinds[name], [answers, doctor.PPODoctor()])
    warm_seconds = warm_up(other)
    other.train()
    judge(name, other)
    reached[name] = answers.shares
    if other.actor.critic:
        explained[name] = look_at_critic(other)
        section.say(
            f"PPO with a critic: {other.seconds:.0f} s, and {warm_seconds:.0f} s before for the "
            f"critic; in the last quarter it explains {explained[name]:.2f} of the variance."
        )

# %%
per_iteration = settings.prompts_per_iteration * settings.group_size
for name, shares in reached.items():
    good = [per_iteration * iteration for iteration, share in shares if share.value >= 0.9]
    print(
        f"{name}: samples until 90 % of 64 validation answers are right:", *(good[:1] or ["never"])
    )
section.table(table.rows)

# %% [markdown]
# ### Does it earn its place?
#
# It knows a good part of what will come of an answer, and yet saves no samples: the rows above need
# about as many, and the critic's warm-up and its own passes take time.
# `python benchmarks/critic.py` looks more closely, after every eighth sample, at two rates, with
# three seeds ([docs/results.md](../docs/results.md)):
#
# | reward | what was expected | mean samples to .90 |
# |---|---|---|
# | at the end | one number; RLOO; a critic | 29; 32; 37 |
# | a quarter at each count | one number; a mean at each count; a critic | 48; 32; 29 |
#
# Why? Most likely because what the policy gets wrong is a habit, too few motorcycles and bicycles,
# which a few updates turn over, even if every token of a failed answer shares the blame. To say
# *which* token was wrong saves little where an answer has twenty. And where a reward says it
# itself, at each count, what is still to come depends on the place. One number for all places is
# then a handicap, which is all that the critic beats there: the mean of each place is to be had for
# nothing, and does as well.
#
# So the presets measure against one number. `critic_layers=3` in the settings turns the critic on;
# `training.warm_up_critic` is what makes it know anything. Long answers, whose score comes late,
# are what critics were made for; such are not measured here.
#
# ## A learnt reward
#
# Mostly there is no truth to compare with, only people's preferences. The reward model of notebook
# 03 learnt from those and gives any answer a score. Its scores have no unit, so they are shifted
# and scaled by those of the validation answers. If a truth is known, it is watched, but nothing is
# learnt from it: the question is whether *right* answers rise when only the learnt score is
# rewarded.

# %%
if REWARD_MODEL and score is not None:
    policy, learnt_score = learnt_reward()
    learnt = new_trainer(
        "reward-model", learnt_score, truth=rewards.reward_of(tasks), watch=[doctor.PPODoctor()],
        model=policy,
    )  # fmt: skip
    learnt.train()
    judge("reward-model", learnt)
    display(section.table([table.rows[0], table.rows[-1]]))
    curves = report.policy_curves(learnt.log)
    display(section.picture(curves, "PPO against the reward model; the truth is only watched"))

# %% [markdown]
# ## Sample, keep the best, fine-tune
#
# The plainest use of a score has no KL, no clip and no advantage: sample some answers to each
# question, keep those that nothing scores above, and fine-tune on them (rejection sampling, as RAFT
# does: Dong et al. 2023, arXiv 2304.06767). The samples are as many as PPO's. It learns from good
# answers only, and never what was wrong with the others; questions whose answers all score alike
# teach it nothing. [docs/which_method.md](../docs/which_method.md) has all methods at one budget.

# %%
if REJECTION:
    policy = models.load_model(MODEL, max_pixels=plan.max_pixels)[0]
    ranker = score or rewards.load_reward_model(*models.load_model(MODEL), reward_folders[0])
    asked = tasks[: max(1, samples // REJECTION)]
    ranked = rewards.sample_and_rank(policy, processor, asked, ranker, REJECTION, seed=SEED)
if REJECTION and not any(record.pairs() for record in ranked):
    section.say("Rejection sampling: all answers to a question score alike, so none is the best.")
elif REJECTION:
    tuning = training.sft_trainer(
        policy, processor, training.chosen_answers(ranked), sft_settings, seed=SEED,
        folder=ppo_folder / "rejection", replace_other=REPLACE, cache=cache.parent,
    )  # fmt: skip
    training.train_sft(tuning)
    kept = evaluation.evaluate_greedy_and_sampled(tuning.model, processor, held_out_tasks)
    found = {"base": before, "ppo": results["ppo"], f"best of {REJECTION}, learnt": kept}
    rows = [[name, *map(str, each.shares().values())] for name, each in found.items()]
    display(section.table([["policy", *before.shares()], *rows]))

# %% [markdown]
# ## What can be said without a truth
#
# Held-out pairs, wins in the eyes of the reward model, and what the answers look like (notebook 04
# says more). A policy that was trained against that very reward model wins in its eyes by
# necessity: such a row is marked *circular*. `SECOND_JUDGE = True` gives the learnt reward only one
# half of the pairs, and trains a judge on the other.

# %%
saved = models.find_policies(MODEL)
policies = models.Policies(models.load_model(MODEL)[0], processor, saved)
judges_of_pairs = {}
for name, folder in zip(("reward model", "second judge"), reward_folders, strict=False):
    judges_of_pairs[name] = rewards.load_reward_model(
        models.load_model(MODEL)[0], processor, folder
    )
held_out_records = prepared.records(prepared.held_out)
evidence = evaluation.gather_evidence(
    policies, [f"ppo/{name}" for name in results], held_out_records[:PAIRS], held_out_tasks[:PAIRS],
    judges=judges_of_pairs, trained_on=records, stopped=prepared.held_out == "valid",
)  # fmt: skip
report.add_evidence(section, evidence)

# %% [markdown]
# ## Reward hacking
#
# A heuristic that knows no truth pays .1 for each word of the question that is mentioned, and .5
# for "because" or "so". To the question how many cars there are, the base says "There are 2 cars.",
# and gets .1. Sampled at a high temperature, a rare answer has a "so" in it, in any place. It gets
# .6, and the rest follows.

# %%
rules = rewards.heuristic_scorer()
without_truth = rewards.make_scorer(
    "heuristic", lambda image, question, answer, facts: rules(image, question, answer).parts
)
asked_of = evaluation.judges(tasks)
simple = asked_of.others or tasks  # of counted images, one class: "How many cars are there?"
wild = {"advantages": "grpo", "prompts_per_iteration": 8, "group_size": 16, "mini_batch": 2}
wild |= {"epochs": 4, "clip": 0.5, "kl_weight": 0.0, "temperature": 1.5, "max_new_tokens": 24}
wild |= {"no_end_penalty": 0.5, "anneal_lr": False, "iterations": HACKING}
print(simple[0].question, simple[0].facts)


# %%
def hack(name, weight, **more):
    """Reward nothing but the heuristic, with this price on the KL; a row of the table."""
    watching, truth = doctor.PPODoctor(), rewards.reward_of(simple)
    changes = wild | {"kl_weight": weight} | more
    hacked = new_trainer(name, without_truth, changes, simple, [watching], truth=truth)
    log = hacked.train()
    save(name, hacked)
    curves = report.policy_curves(log)
    display(section.picture(curves, f"{name}: the heuristic as reward, KL weight {weight}"))
    moved = []
    for figure in ("objective/scores", "objective/truth"):
        if figure in log[0]:
            first, last = (training.log_mean(rows, figure) for rows in (log[:3], log[-3:]))
            moved.append(f"{first:.2f} → {last:.2f}")
        else:
            moved.append("not known")
    kl = training.log_mean(log[-3:], "objective/kl")
    answer = hacked.sampler.sample(hacked.iteration).texts[0]
    return [name, *moved, f"{kl:.1f}", answer, doctor.verdict_kinds(watching.verdicts)]


# %%
head = ["run", "heuristic (circular): first → last", "right: first → last", "KL"]
head += ["an answer at the end", "the doctor says"]
if HACKING:
    rows = [head, hack("heuristic-0.0", 0.0), hack("heuristic-0.3", 0.3)]
    rows.append(hack("ten-times-the-rate", 0.0, learning_rate=10 * settings.learning_rate))
    display(section.table(rows))

# %% [markdown]
# The score rises while the right answers disappear. Judged by the heuristic that trained it, this
# run is a success; only the watched truth tells. A price on leaving the reference is a brake, not a
# cure: the cure is a reward that cannot be had without being right, and a judge that is not the
# reward.
#
# The last row is how another project ended, which trained PPO against a reward model of people's
# preferences: steps that are too large, and no gauge that says so. The answers become one word,
# said again and again; the doctor warns of "KL runaway" first, and stops the run at "collapse" (on
# the traffic scenes with seed 0, at iterations 10 and 18).
#
# ## One word, one answer, one update
#
# A project trained a model on questions such as "What color is the clock?" → "Green.", one answer
# at a time, and its reward *fell* from .41 to .38. Why? It whitened the advantages within that one
# answer. Take an answer of three tokens, a critic that still says 0, and two different scores:

# %%
mask = torch.ones(1, 3)
for total in (0.2, 1.0):
    token_rewards = losses.token_rewards(torch.tensor([total]), torch.zeros(1, 3), mask, 0.0)
    raw, _ = losses.gae(token_rewards, torch.zeros(1, 3), mask, gamma=0.99, lam=0.95)
    white = losses.whiten(raw, mask)
    print(f"score {total}: advantages {raw[0].tolist()} → whitened {white[0].tolist()}")

# %% [markdown]
# The score is gone: a bad answer is pushed as hard as a good one, and always in the same way. The
# first token, which *is* the answer, becomes less likely; the last one, the end, more likely. With
# an answer of one token nothing is left at all.
#
# The next cell has the project's setting on questions that a word answers ("Is there a bus in the
# image?"). Only the learning rate is that of the tiny model: the project's own, 5·10⁻⁶, moves it by
# nothing. (It planned to mix the reward with CLIP: `rewards.weighted_scorer({cosine: 0.7,
# rewards.load_clip(): 0.3})`, which needs a download of a CLIP model.)

# %%
words, unseen = asked_of.short, evaluation.judges(held_out_tasks).short
if VQA and not (words and unseen):
    section.say("No question here has a known answer of a word or two: this run is left out.")
    VQA = 0
# the project's embedding model is not at hand
cosine = rewards.TRUTHS["cosine"].reward([task.facts for task in words] or ["none"])


# %%
def short_answers(name, model, samples=0):
    """A row of the table: cosine reward and rightness of greedy answers to held-out questions."""
    close, right = evaluation.score_greedy_answers(
        model, processor, unseen, cosine, rewards.reward_of(unseen)
    )
    close, share = statistics.mean_interval(close), statistics.proportion(right.sum(), len(right))
    return [name, str(samples), str(close), str(share)], right


def train_short(name, score, changes):
    """Train on the questions that one word answers; a row of the table."""
    watching = doctor.PPODoctor()
    run = new_trainer(name.replace(" ", "-"), score, changes, words, [watching])
    run.train()
    row, right = short_answers(name, run.model, int(run.log[-1]["samples"]))
    p = statistics.mcnemar_p(base_right, right)
    return [*row, f"{p:.1g}", doctor.verdict_kinds(watching.verdicts)]


# %%
project = config.ppo_preset("vqa")
kept = ["prompts_per_iteration", "group_size", "mini_batch", "epochs", "gamma", "entropy_weight"]
kept += ["kl_weight", "max_grad_norm", "no_end_penalty"]
failing = {name: getattr(project, name) for name in kept}
failing |= {"critic_adapter": False, "anneal_lr": False, "iterations": VQA, "max_new_tokens": 8}
print(f"the project: {failing}")
head = ["run", "answers", "cosine, held out", "right, held out", "p (McNemar)", "the doctor says"]
if VQA:
    base_row, base_right = short_answers("base", models.load_model(MODEL)[0])
    rows = [head, [*base_row, "", ""], train_short("one answer at a time", cosine, failing)]
    display(section.table(rows))

# %% [markdown]
# The doctor names it at the first iteration: the advantages do not depend on the scores. The cure
# compares several answers to one question with each other (RLOO), so that a lucky one stands out. A
# right answer scores 1 and any other 0: a cosine also pays for words that every answer shares.
# Questions whose answers all score the same say nothing, so they are left out of the update, and as
# those are most, an update takes many questions. The samples are a little hotter than the model:
# one that is sure of a wrong answer never tries another.

# %%
cure = {"advantages": "rloo", "prompts_per_iteration": 64, "group_size": 4, "mini_batch": 32}
cure |= {"rollout_filter": "different_scores", "temperature": 1.2, "max_new_tokens": 8}
cure |= {"kl_weight": 0.0, "iterations": max(1, VQA // 16)}
if VQA:
    cure["prompts_per_iteration"] = min(64, len(words))
    rows.append(train_short("the cure", rewards.reward_of(words), cure))
    display(section.table(rows))

# %% [markdown]
# The recipe `questions` asks "How many cars are there?", too, which the base gets wrong half of the
# time, and needs 40,960 answers: [docs/recipes.md](../docs/recipes.md) has three seeds of each way.
#
# ## What you should see
#
# On the traffic scenes, with the defaults: PPO (without and with a critic), RLOO and GRPO all reach
# over 90 % greedy exact answers on held-out images from the base's 36 %, within 2,304 samples, and
# twice as many sampled answers are right; the KL stays at 1 to 3 nats an answer; the critic's
# explained variance stays above 0.3 although failures get rare, and it saves no samples. Rewarded
# by the reward model alone, true exact answers rise as well. The heuristic is hacked without a KL
# price, and the doctor says so. One answer at a time lowers the share of right answers (it began at
# 94 %), and the doctor says why; the cure raises it to over 99 % with 4,096 answers.
#
# ## Check yourself

# %%
assert all(abs(row["ppo/ratio_first"] - 1) < trainer.tolerance for row in log), (
    "old and new policy are mixed up"
)
base_weights = [
    name for name, p in trainer.model.named_parameters() if p.requires_grad and "lora_" not in name
]
assert not base_weights, "only adapters are trained"
if MODEL == "tiny" and ITERATIONS is None and REWARD is None and prepared.is_traffic:
    for name in ("ppo", *COMPARE):
        share = results[name].greedy.right_share
        assert share.low > 0.8, f"{name} should count most held-out scenes right"
    if WARM_UP >= 8 and "critic" in explained:
        assert explained["critic"] > 0.2, "the critic should know more than the mean score"

# %%
names = {"ppo": "ppo", "rloo": "rloo", "grpo": "grpo", "reward-model": "ppo_rm"}
for name, figure in names.items():
    if name in results:
        report.add_shares(section, figure, results[name].shares(), SEED)
section.add_value("ppo_samples", log[-1]["samples"], SEED)
section.add_value("ppo_train_seconds", trainer.seconds, SEED)
if "critic" in explained:
    section.add_value("ppo_explained_variance", explained["critic"], SEED)

# %%
for (name, share), after in zip(
    before.shares().items(), results["ppo"].shares().values(), strict=True
):
    section.conclude(
        f"PPO with the reward {trainer.sampler.score.__name__}, {name}: {share} → "
        f"{after.short_text()}, after {samples} samples."
    )
print("report:", section.save())

# %% [markdown]
# ## Next
#
# [06 · Compare before and after](06_compare_before_after.ipynb) has these policies beside those of
# DPO, and [07 · Evaluate](07_evaluate.ipynb) asks all of them more questions about held-out images.
