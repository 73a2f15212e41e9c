# %% [markdown]
# # 05 · Reinforcement learning: PPO, RLOO, GRPO
#
# **Goal.** Let the model answer, score its answers, and make good ones likelier, with images, on one small
# machine. Know at every moment whether the score, the KL and the critic do what they should.
#
# **Needs** `artifacts/preferences/` from notebook 02 and `artifacts/reward/` from notebook 03 (else the shipped
# preferences, and a reward model trained here). **Makes** adapters in `artifacts/ppo/`. **Takes** about
# 10 minutes on a laptop CPU.

# %% [markdown]
# ## Set-up

# %% tags=["setup"]
# Set-up, the same in every notebook. On Colab: fetch the repository and install what is missing.
REPOSITORY, TAG = "", ""  # Colab only: address of the Git repository of this notebook, and its tag
DRIVE = ""  # Colab only: folder of your Google Drive that keeps your work, for example "vlm-alignment"

import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = next((p for p in [Path.cwd(), *Path.cwd().parents] if (p / "helpers" / "setup.py").exists()), None)
if ROOT is None:
    if not REPOSITORY or not Path("/content").is_dir():
        raise SystemExit("helpers/ is not here. Open the notebook in its repository; on Colab, set REPOSITORY above.")
    ROOT = Path("/content", Path(REPOSITORY).stem)
    if not ROOT.exists():  # fetched under another name: a download that is cut off leaves nothing under this one
        part = Path(tempfile.mkdtemp(dir="/content"), ROOT.name)
        clone = ["git", "clone", "--quiet", "--depth", "1", "--branch", TAG or "main", REPOSITORY, str(part)]
        if (run := subprocess.run(clone, capture_output=True, text=True)).returncode:
            raise SystemExit(f"{REPOSITORY} (tag {TAG!r}) cannot be fetched: {run.stderr.strip()} Check both above.")
        part.rename(ROOT)
sys.path.insert(0, str(ROOT))
from helpers.setup import set_up

set_up(DRIVE)

# %% [markdown]
# ## Parameters
#
# `PRESET` holds the hyper-parameters: `tiny` for the embedded model, `t4` for a 2B model on a 16 GB card;
# `reasoning`, `captions` and `vqa` are those of three student projects. `COMPARE` names what PPO is compared with.
# With `RESUME = True` a run that was cut off goes on after its last checkpoint, also if the folder was moved.
# `HACKING = 0` and `VQA = 0` leave out the two runs that are meant to fail, and their cures.

# %% tags=["parameters"]
MODEL = "tiny"
PRESET = "tiny"
ITERATIONS = None
SEED = 0
RESUME = False
WARM_UP = 8  # epochs of the critic before the first iteration; none of its answers is sampled
COMPARE = ("rloo", "grpo", "constant")
REWARD_MODEL = True
HACKING = 22  # iterations against the heuristic
VQA = 256  # answers, one at a time as a project trained
TENSORBOARD = False  # a log for it, too, if the package is installed

# %%
import dataclasses
import time

import numpy as np
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

section = report.Section("05_train_ppo", "PPO, RLOO and GRPO")
settings = config.ppo_preset(PRESET)
settings = dataclasses.replace(settings, iterations=ITERATIONS or settings.iterations)
settings

# %% [markdown]
# ## Is the machine enough?
#
# [Notebook 01](01_load_model.ipynb) says how to read this table.

# %%
plan = machine.check_machine(MODEL, ppo=settings)
settings = plan.ppo

# %% [markdown]
# ## What an answer is made of, by hand
#
# An answer is a chain of actions, one a token. The score comes at the end; a price for leaving the reference,
# the KL, comes at every token. Which tokens earned the score? A **critic** predicts before each token how the answer
# will end. Where its prediction jumps, something good or bad was said. With rewards $r_t$, predictions $V_t$,
# and $V = 0$ after the end,
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
# The second token, the wrong number, gets the most blame. λ weighs trust in the critic: λ = 0 believes
# only it, λ = 1 only the score.
#
# ### The clipped loss
#
# The same answers are used for several updates. After the first, the policy is no longer the one that sampled, so each
# token is weighted by the ratio $\rho = \pi/\pi_{old}$. To stop a token from running away, its gain ends at
# $1 \pm \varepsilon$:
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
# ### Without a critic
#
# RLOO and GRPO need none: they sample several answers to one question and compare them with each other.
# RLOO subtracts the mean of the *other* answers; GRPO subtracts the mean and divides by the standard deviation.
# All tokens of an answer then get the same praise or blame.

# %%
scores = torch.tensor([1.0, 0.0, 0.0, 1.0])  # four answers to one question
print("RLOO", losses.rloo_advantages(scores, 4).tolist(), " GRPO", losses.grpo_advantages(scores, 4).tolist())

# %% [markdown]
# ## The questions
#
# Reinforcement learning needs questions and a way to score, not answers. The answers in the file are not shown
# to the policy. The score here is `count_exact`: 1 if all counts are true, else 0.


# %%
shipped = ROOT / "data" / "traffic"
source = files.artifact("preferences/train.jsonl", "notebook 02", lambda: shipped / "preferences_train.jsonl")
valid_source, test_source = (source.with_name(source.name.replace("train", name)) for name in ("valid", "test"))
records, valid_records, test_records = (data.read_records(path) for path in (source, valid_source, test_source))
if not all(isinstance(record.truth, dict) for record in [*records, *valid_records, *test_records]):
    raise files.UsageError(
        f"{source}: records without true counts, by which this notebook scores and judges. Use notebook 04."
    )
tasks, items = training.tasks_of(records), data.as_counted_images(test_records)
print(f"{len(tasks)} questions to train on, {len(items)} held-out ones: {tasks[0].question!r} {tasks[0].facts}")

# %% [markdown]
# ## One base, five roles
#
# The base is in memory once. With the policy's adapter it samples and is trained; with all adapters off it is
# the **reference**; with an adapter of its own it is the **critic**; later, with the reward model's, it scores.
#
# Three log-probabilities of the same tokens must not be mixed up: `old` of the policy that sampled, `reference`
# of the base, and `new` of the policy that is being updated. Before the first update `new` equals `old`, so the
# ratio is 1.000; the loop checks that, and stops if it is not.


# %%
def new_trainer(name, score, changes=None, questions=None, watch=(), truth=None, model=None):
    """A freshly loaded base (or `model`) with fresh adapters; its logs and checkpoint are in artifacts/ppo/NAME."""
    folder = files.artifacts_dir() / "ppo" / name
    if not RESUME:
        (folder / "checkpoint.pt").unlink(missing_ok=True)
    base = models.load_model(MODEL)[0] if model is None else model
    watch = [*watch, training.TensorBoard(folder / "tensorboard")] if TENSORBOARD else watch
    logs = [training.JSONLog(folder / "log.jsonl"), training.SampleLog(folder / "samples.jsonl")]
    return training.PPOTrainer(
        base, processor, questions or tasks, score, dataclasses.replace(settings, **(changes or {})), seed=SEED,
        truth=truth, watch=[*logs, *watch], checkpoint=folder / "checkpoint.pt", cache=files.artifacts_dir() / "cache" / "features",
    )  # fmt: skip


base, processor = models.load_model(MODEL, max_pixels=plan.max_pixels)
longest = max(settings.max_new_tokens, models.answer_budget(processor, data.counting_questions(items).answers))
settings = dataclasses.replace(settings, max_new_tokens=longest)
held_out = training.HeldOutAnswers(processor, valid_records[:64], every=2)
watching, curves = doctor.PPODoctor(), report.LivePolicyCurves(held_out=held_out.shares)
trainer = new_trainer("ppo", rewards.count_exact, watch=[held_out, watching, curves], model=base)
before = {t: evaluation.evaluate_counting(base, processor, items, temperature=t) for t in (0.0, 1.0)}
print(f"base, held out: greedy exact {before[0.0].exact_share}, sampled {before[1.0].exact_share}")

# %% [markdown]
# ## A critic that knows what a mistake is
#
# A critic on the policy's own hidden states learns next to nothing here: a policy that writes a wrong number
# does not know that it is wrong, or it would not write it. And by the time the critic has seen enough failures, the
# policy makes others. So ours has an adapter of its own, and is warmed up before the first iteration, on true answers,
# on answers with one count changed, and on those of other images. Their scores are known, and none costs a sample.

# %%
warm_seconds = 0.0
if trainer.actor.own_adapter and WARM_UP:
    answers = data.true_and_wrong_answers([task.facts for task in tasks], seed=SEED)
    started = time.perf_counter()
    history = trainer.warm_up_critic(tasks, answers, WARM_UP)
    warm_seconds = time.perf_counter() - started
    print(f"squared error of the critic, halved: {sum(history[:8]) / 8:.3f} → {sum(history[-8:]) / 8:.3f}")

# %% [markdown]
# ## Train
#
# Watch four things. The **score** of the sampled answers must rise, and so must held-out answers, which are not
# trained on. The **KL** says how far the policy has gone: if it runs away, the language breaks. The critic's
# **explained variance** is 1 for a perfect critic, 0 for one that is no better than a constant. And every answer must
# **end**.

# %%
log = trainer.train()
print(f"{int(log[-1]['samples'])} samples, {trainer.seconds:.0f} s, and {warm_seconds:.0f} s before for the critic")

# %%
watching

# %%
section.picture(report.policy_curves(log, held_out=held_out.shares), "PPO with the count reward")
late = log[-len(log) // 4 :]
known = training.pooled_explained_variance(late) if trainer.actor.critic else float("nan")
section.say(
    f"PPO: {int(log[-1]['samples'])} samples, {trainer.seconds:.0f} s; KL to the base {log[-1]['objective/kl']:.2f} nats an answer; "
    f"the critic explains {known:.2f} of the variance of the returns in the last quarter."
)

# %% [markdown]
# What the critic thinks while an answer is written: a drop is where it believes a mistake was made.

# %%
experience = trainer.last
failed = [n for n, score in enumerate(experience.rollout.scores.tolist()) if score < 1] or [0]
ids = experience.rollout.ids[failed[0]]
tokens = [processor.tokenizer.decode([i]) for i in ids.tolist()]
facts = trainer.asked[failed[0] // settings.group_size].facts
report.value_strip(tokens, experience.values[failed[0], : len(ids)].tolist(), f"truth: {facts}")

# %% [markdown]
# ## Held-out images, before and after
#
# Where exact counts were the reward, they are a *circular* judge: that they rose says that training ran. The independent
# ones are how many sampled answers are well formed, here, and the questions of notebook 07 that nobody trained on.


# %%
def save(name, run):
    """The adapter → artifacts/ppo/NAME, with the reward that trained it: notebook 07 does not take that for a judge."""
    about = {"base": MODEL, "max_pixels": plan.max_pixels, "seed": SEED}
    about |= {"reward": run.score.__name__, "data": str(source), "settings": dataclasses.asdict(run.settings)}
    models.save_adapter(run.model, files.artifacts_dir() / "ppo" / name, about)


def judge(name, run):
    """Greedy and sampled answers to the held-out questions → artifacts/ppo/NAME, and a row of the table."""
    save(name, run)
    noted = models.answer_records(run.model, processor, valid_records)
    file = files.artifacts_dir() / "ppo" / name / "validation_answers.json"
    files.write_json(file, {"records": str(valid_source), "answers": noted})
    found = {t: evaluation.evaluate_counting(run.model, processor, items, temperature=t) for t in (0.0, 1.0)}
    p = statistics.mcnemar_p(before[0.0].exact, found[0.0].exact)
    kind_of_judge = "circular" if run.score is rewards.count_exact else "independent"
    return found, [
        name, kind_of_judge, found[0.0].exact_share.short_text(), found[1.0].exact_share.short_text(),
        found[1.0].well_formed_share.short_text(), f"{p:.1g}", f"{int(run.log[-1]['samples'])}", f"{run.seconds:.0f}",
        f"{sum(row['objective/kl'] for row in run.log[-5:]) / 5:.2f}",
    ]  # fmt: skip


head = [
    "policy",
    "exact as a judge",
    "greedy exact",
    "sampled exact",
    "sampled, well formed",
    "p (McNemar)",
    "samples",
    "seconds",
    "KL",
]
shares = (before[0.0].exact_share, before[1.0].exact_share, before[1.0].well_formed_share)
results, rows = {}, [head, ["base", "", *(share.short_text() for share in shares), "", "", "", "0"]]
results["ppo"], row = judge("ppo", trainer)
rows.append(row)
section.table(rows)

# %% [markdown]
# ## GAE, RLOO, GRPO at equal samples
#
# The same questions, the same number of answers, the same learning rate. `constant` is PPO whose critic is one
# number, the mean: what remains when the critic is taken away.

# %%
half = {"prompts_per_iteration": settings.prompts_per_iteration // 2, "group_size": 2 * settings.group_size}
half |= {"mini_batch": max(1, settings.mini_batch // 2)}
kinds = {"rloo": {"advantages": "rloo"}, "grpo": {"advantages": "grpo", **half}, "constant": {"critic_layers": 0}}
reached = {"ppo": held_out.shares}
for name in COMPARE:
    shares = training.HeldOutAnswers(processor, valid_records[:64], every=2)
    other = new_trainer(name, rewards.count_exact, kinds[name], watch=[shares, doctor.PPODoctor()])
    other.train()
    results[name], row = judge(name, other)
    rows.append(row)
    reached[name] = shares.shares

# %%
per_iteration = settings.prompts_per_iteration * settings.group_size
first = {
    name: next((per_iteration * at for at, share in found if share.value >= 0.9), None)
    for name, found in reached.items()
}
print("samples until 90 % of 64 validation answers are exact:", first)
section.table(rows)

# %% [markdown]
# ## A learnt reward
#
# Mostly there is no truth to count with, only people's preferences. The reward model of notebook 03 learnt from
# those and gives any answer a score. It is one more adapter on the same base. Its scores have no unit, so they are
# shifted and scaled by those of the validation answers. The critic is a constant this time. The truth is watched, but nothing is learnt from it: the
# question is whether *true* exact answers rise when only the learnt score is rewarded.


# %%
def train_reward_model():
    """What notebook 03 makes, with its preset."""
    chosen = config.reward_preset(PRESET)
    reward = rewards.new_reward_model(models.load_model(MODEL)[0], processor, chosen, SEED)
    training.RewardTrainer(reward, records, valid_records, chosen, SEED).train()
    return rewards.save_reward_model(reward, files.artifacts_dir() / "ppo" / "reward", chosen)


if REWARD_MODEL:
    folder = files.artifact("reward", "notebook 03", train_reward_model)
    policy = models.add_adapter(models.load_model(MODEL)[0], settings.lora, SEED)
    reward = rewards.load_reward_model(policy, processor, folder)
    seen = torch.tensor([s for row in rewards.score_records(reward, valid_records) for s in row])
    score = rewards.as_scorer(reward, float(seen.mean()), float(seen.std()))
    watching = doctor.PPODoctor()
    learnt = new_trainer(
        "reward-model", score, {"critic_layers": 0}, truth=rewards.count_exact, watch=[watching], model=reward.backbone
    )
    learnt.train()
    results["reward-model"], row = judge("reward-model", learnt)
    display(section.table([head, row]))
    section.picture(report.policy_curves(learnt.log), "PPO against the reward model; the truth is only watched")

# %% [markdown]
# ## Reward hacking
#
# A heuristic that knows no truth pays .1 for each word of the question that is mentioned, and .5 for "because" or
# "so". To the question how many cars there are, the base says "There are 2 cars.", and gets .1. Sampled at a high
# temperature, a rare answer has a "so" in it, in any place. It gets .6, and the rest follows.


# %%
def one_class(records, path):
    """How many of one class? The classes take turns."""
    for number, record in enumerate(records):
        question, answer = data.one_class_question(record.truth, number)
        yield training.Task(tuple(record.image_paths), (("user", question),), answer)


rules = rewards.heuristic_scorer()
without_truth = rewards.make_scorer(
    "heuristic", lambda image, question, answer, facts: rules(image, question, answer).parts
)
simple = list(one_class(records, source))
wild = {"advantages": "grpo", "prompts_per_iteration": 8, "group_size": 16, "mini_batch": 2, "epochs": 4}
wild |= {"clip": 0.5, "kl_weight": 0.0}
wild |= {"temperature": 1.5, "max_new_tokens": 24, "no_end_penalty": 0.5, "anneal_lr": False, "iterations": HACKING}
table = [
    [
        "KL weight",
        "heuristic (circular): first → last",
        "right: first → last",
        "KL",
        "an answer at the end",
        "the doctor says",
    ]
]
for weight in (0.0, 0.3) if HACKING else ():
    watching = doctor.PPODoctor()
    hacked = new_trainer(
        f"heuristic-{weight}",
        without_truth,
        wild | {"kl_weight": weight},
        simple,
        [watching],
        truth=rewards.exact_match,
    )
    hacking = hacked.train()
    save(f"heuristic-{weight}", hacked)
    section.picture(report.policy_curves(hacking), f"The heuristic as reward, KL weight {weight}")
    two = {name: [sum(row[name] for row in part) / 3 for part in (hacking[:3], hacking[-3:])] for name in
           ("objective/scores", "objective/truth", "objective/kl")}  # fmt: skip
    moved = [" → ".join(f"{value:.2f}" for value in two[name]) for name in ("objective/scores", "objective/truth")]
    verdicts = ", ".join(verdict.kind for verdict in watching.verdicts) or "nothing"
    table.append([str(weight), *moved, f"{two['objective/kl'][1]:.1f}", hacked.last.rollout.texts[0], verdicts])
if HACKING:
    section.table(table)

# %% [markdown]
# The score rises while the right answers disappear. Judged by the heuristic that trained it, this run is a success;
# only the watched truth tells. A price on leaving the reference is a brake, not a cure: the cure is a reward that
# cannot be had without being right, and a judge that is not the reward.
#
# ## One word, one answer, one update
#
# A project trained a model on questions such as "What color is the clock?" → "Green.", one answer at a
# time, and its reward *fell* from .41 to .38. Why? It whitened the advantages within that one answer. Take an answer of
# three tokens, a critic that still says 0, and two different scores:

# %%
for score_there in (0.2, 1.0):
    mask = torch.ones(1, 3)
    token_rewards = losses.token_rewards(torch.tensor([score_there]), torch.zeros(1, 3), mask, 0.0)
    raw, _ = losses.gae(token_rewards, torch.zeros(1, 3), mask, gamma=0.99, lam=0.95)
    white = losses.whiten(raw, mask)
    print(f"score {score_there}: advantages {raw[0].tolist()} → whitened {white[0].tolist()}")

# %% [markdown]
# The score is gone: a bad answer is pushed as hard as a good one, and always in the same way. The first token, which
# *is* the answer, becomes less likely; the last one, the end, more likely. With an answer of one token nothing is
# left at all. The cure: four answers to a question, compared with each other (RLOO), over sixteen questions.
#
# Both runs below ask "Is there a bus in the image?", and have the project's reward and the same learning rate, that of
# the tiny model: the project's own, 5·10⁻⁶, moves it by nothing. (It planned to mix the reward with CLIP:
# `rewards.weighted_scorer({cosine: 0.7, rewards.load_clip(): 0.3})`, which needs a download of a CLIP model.)
# The doctor stops the first, so the cure gets more answers; it is not for want of answers that the first one fell.


# %%
def presence(records, path):
    """Is there one of a class? The classes take turns; the answer is one word."""
    singular = {plural: kind for kind, plural in data.PLURAL.items()}
    for number, record in enumerate(records):
        kind = list(record.truth)[number % len(record.truth)]
        question = ("user", f"Is there a {singular.get(kind, kind)} in the image?")
        yield training.Task(tuple(record.image_paths), (question,), "Yes." if record.truth[kind] else "No.")


words, unseen = list(presence(records, source)), list(presence(test_records, test_source))
cosine = rewards.cosine_scorer(
    rewards.tfidf_embedder([task.facts for task in words])
)  # the project's embedding model is not at hand


def short_answers(model):
    """Cosine reward and rightness of greedy answers to the held-out questions, (questions,) each."""
    said = models.generate_answers(model, processor, [t.images[0] for t in unseen], [t.question for t in unseen])
    given = [(None, t.question, text, t.facts) for t, text in zip(unseen, said, strict=True)]
    return [np.array([score(*row).total for row in given]) for score in (cosine, rewards.exact_match)]


project = config.ppo_preset("vqa")
kept = [
    "prompts_per_iteration",
    "group_size",
    "mini_batch",
    "epochs",
    "gamma",
    "entropy_weight",
    "kl_weight",
    "max_grad_norm",
    "no_end_penalty",
]
failing = {name: getattr(project, name) for name in kept}
failing |= {"critic_adapter": False, "anneal_lr": False, "iterations": VQA}
cure = {"advantages": "rloo", "prompts_per_iteration": 16, "group_size": 4, "mini_batch": 8}
cure |= {"iterations": max(1, VQA // 4)}
print(f"the project: {failing}")

# %%
table = [["run", "answers", "cosine, held out", "right, held out", "p (McNemar)", "the doctor says"]]
short = {"base": short_answers(models.load_model(MODEL)[0])} if VQA else {}
for name, changes in {"one answer at a time": failing, "the cure": cure}.items() if VQA else ():
    watching = doctor.PPODoctor()
    run = new_trainer(name.replace(" ", "-"), cosine, changes | {"max_new_tokens": 8}, words, [watching])
    run.train()
    short[name] = short_answers(run.model)
    verdicts = ", ".join(verdict.kind for verdict in watching.verdicts) or "nothing"
    p = statistics.mcnemar_p(short["base"][1], short[name][1])
    table.append([name, f"{int(run.log[-1]['samples'])}", str(statistics.mean_interval(short[name][0])),
                  str(statistics.proportion(short[name][1].sum(), len(short[name][1]))), f"{p:.1g}", verdicts])  # fmt: skip
if VQA:
    table.insert(1, ["base", "0", str(statistics.mean_interval(short["base"][0])),
                     str(statistics.proportion(short["base"][1].sum(), len(short["base"][1]))), "", ""])  # fmt: skip
    display(section.table(table))

# %% [markdown]
# ## What you should see
#
# With the defaults: PPO, RLOO and GRPO all reach over 90 % greedy exact answers on held-out images from the base's 36 %,
# within 2,304 samples, and twice as many sampled answers are right; the KL stays at 1 to 3 nats an answer; the critic's
# explained variance stays above 0.3 although failures get rare. Rewarded by the reward model alone, true exact answers
# rise as well. The heuristic is hacked without a KL price, and the doctor says so. One answer at a time
# lowers the reward, the cure raises it.
#
# Is the critic worth its adapter? In samples, hardly: compare the rows `ppo` and `constant`. On answers of twenty tokens
# with one score at the end, comparing answers with each other does as well, and costs less
# ([docs/results.md](../docs/results.md), three seeds).
#
# ## Check yourself

# %%
assert all(abs(row["ppo/ratio_first"] - 1) < settings.ratio_tolerance for row in log), "old and new policy are mixed up"
base_weights = [name for name, p in trainer.model.named_parameters() if p.requires_grad and "lora_" not in name]
assert not base_weights, "only adapters are trained"
if MODEL == "tiny" and ITERATIONS is None and "scene-" in records[0].images[0]:
    for name in ("ppo", *COMPARE):
        assert results[name][0.0].exact_share.low > 0.8, f"{name} should count most held-out scenes right"
    assert WARM_UP < 8 or known > 0.2, "the critic should know more than the mean score"

# %%
names = {"ppo": "ppo", "rloo": "rloo", "grpo": "grpo", "reward-model": "ppo_rm"}
for name, figure in names.items():
    if name in results:
        section.add_share(f"{figure}_exact", results[name][0.0].exact_share, SEED)
section.add_share("ppo_exact_sampled", results["ppo"][1.0].exact_share, SEED)
section.add_share("ppo_wellformed_sampled", results["ppo"][1.0].well_formed_share, SEED)
section.add_value("ppo_samples", log[-1]["samples"], SEED)
section.add_value("ppo_train_seconds", trainer.seconds + warm_seconds, SEED)
if trainer.actor.critic:
    section.add_value("ppo_explained_variance", known, SEED)
section.conclude(
    f"PPO with the count reward: greedy exact {before[0.0].exact_share} → {results['ppo'][0.0].exact_share}, sampled "
    f"{before[1.0].exact_share.short_text()} → {results['ppo'][1.0].exact_share.short_text()}, "
    f"after {int(log[-1]['samples'])} samples."
)
print("report:", section.save())

# %% [markdown]
# ## Next
#
# [06 · Compare before and after](06_compare_before_after.ipynb) has these policies beside those of DPO, and
# [07 · Evaluate](07_evaluate.ipynb) asks all of them more questions about held-out images.
