# %% [markdown]
# # 06 · Compare before and after with your own eyes
#
# **Goal.** Ask the base and the trained policies the same things: about held-out images, about a
# photo of yours, blind, one answer after another. Whether the difference is real is for notebook 07
# to say; here you see *what* it is.
#
# **Needs** nothing: without data and adapters of yours, those that come with the repository are
# compared.
# **Makes** kept examples, votes, and from these votes new preference pairs. **Takes** half a minute
# on a laptop CPU until everything can be moved.

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
# `MODEL = None` and `PREPARED = None` take what notebook 02 prepared, and without it the shipped
# traffic scenes; `PREPARED` can be another folder that notebook 02 has made. `ADAPTERS` is a folder
# with adapters, `None` your artifacts. `OWN_IMAGE` is the path of any picture of yours, for those
# who read this without widgets.

# %% tags=["parameters"]
MODEL = None
PREPARED = None
ADAPTERS = None
OWN_IMAGE = None
ANNOTATOR = "me"  # your votes in the arena are kept under this name
MATCHES = 60  # pairs of answers in the arena

# %%
from pathlib import Path

import torch
from IPython.display import HTML
from torch.testing import assert_close

from helpers import data, evaluation, files, machine, models, report, rewards, runtime, widgets

prepared = data.read_prepared(PREPARED and ROOT / PREPARED)
MODEL = MODEL or prepared.model
title = f"Before and after, on held-out images: {prepared.title}"
section = report.Section("06_compare_before_after", title)

# %% [markdown]
# ## Is the machine enough?
#
# [Notebook 01](01_load_model.ipynb) says how to read this table.

# %%
plan = machine.check_machine(MODEL)

# %% [markdown]
# ## Held-out images, one base, several policies
#
# These images were not trained on. Policies of other data are left out, unless `ADAPTERS` names
# their folder. The base is loaded once; each adapter is
# added to it when it is first asked, and switched on when its turn comes. With all of them off, the
# base answers. If you trained a reward model (notebook 03), it is one more adapter, and scores
# every answer.

# %%
tasks = prepared.tasks(prepared.held_out)
pairs = {}
for split in ("train", prepared.held_out):
    path = prepared.path(split)
    pairs[split] = data.read_records(path) if path.exists() else []  # of questions alone
records = pairs[prepared.held_out]
saved = models.find_policies(MODEL, ADAPTERS and Path(ADAPTERS), shipped=prepared.is_traffic)
saved = saved if ADAPTERS else prepared.keep_own(saved)
assert saved, "no adapter was trained on this data: run notebook 04, or name some in ADAPTERS"
model, processor = models.load_model(MODEL, max_pixels=models.image_limit(saved, plan.max_pixels))
folder, judges = files.artifacts_dir() / "reward", {}
if prepared.has_made(folder, MODEL):
    judges["reward model"] = rewards.load_reward_model(model, processor, folder)
    model = judges["reward model"].backbone
policies = models.Policies(model, processor, saved)
first = policies.names[1]
print(f"{len(tasks)} questions of {prepared.title}, {prepared.held_out} split")
print("policies:", ", ".join(policies.names))

# %% [markdown]
# ## Try it
#
# Move the slider to another image, upload one, pick or type a question, change how answers are
# sampled. Words that only one answer has are marked; the other way to mark colours each token by
# what training did to its log-probability. *KL* is how far the policy has moved from the base along
# its answer. **Keep** puts an example into the report.
#
# **Best of n.** Set *best of* to 8 and the temperature to 1. Now each policy gives 8 answers, and
# you see the one that *ranked by* puts first. Open the line below it for the others, with score and
# share. The reward model ranks, if you trained one, or the heuristic, which sees no image; nobody
# is told the truth. This needs no training, but n samples cost n times as much: n times as many
# tokens, even if they are sampled side by side and take less time than that. And a ranker can be
# *hacked*: the more answers there are, the likelier it finds one that it overrates.
# [Notebook 07](07_evaluate.ipynb) shows where.
#
# The tiny model has only ever seen drawings of streets: of a photo it will talk nonsense, before
# and after. Where the right answer is known, ✓ and ✗ say who has it.

# %%
questions = ["What is in the image?", "What color is it?", "Describe the image."]
comparison = widgets.Comparison(policies, tasks, judges, questions)
comparison.show()

# %% [markdown]
# ### The figures by hand
#
# An answer's log-probability is the sum over its tokens of log p(token | image, question, tokens
# before). The KL divergence at a token compares the two distributions of *all* tokens there, Σ p
# log (p / p_base), not only of the one that was said. From the logits:

# %%
task = tasks[0]
(spoken,) = evaluation.ask_policies(policies, [first], task)
images = task.open_images()
prompt = models.render_conversation(processor, task.turns, len(images))
encoded = models.encode_prompts(processor, [prompt], [images])
packed = models.pack_separately(processor, encoded, [[torch.tensor(spoken.ids)]])
packed = packed.to(policies.model.device)
log_p = {}
for name in ("base", first):
    with policies.use_policy(name) as model, torch.no_grad():
        log_p[name] = models.answer_logits(model, packed)[0, :-1].float().log_softmax(-1)
kl = (log_p[first].exp() * (log_p[first] - log_p["base"])).sum(-1)
chosen = log_p[first].gather(-1, packed.ids[0, 1:, None])[:, 0]
rounding = runtime.tolerances_of(policies.model).nats
assert_close(chosen.sum().item(), spoken.logp, atol=rounding, rtol=0)
assert_close(kl.sum().item(), sum(spoken.kl), atol=rounding, rtol=0)
print(f"{spoken.text!r}: log p {chosen.sum():.3f}")
print(f"KL to the base: {kl.sum():.3f} nats over {len(kl)} tokens")

# %% [markdown]
# ## What changed, and what got worse
#
# Greedy answers of the base, of one policy and of the baseline, SFT, if there is one, to all
# held-out questions; the menu of the explorer changes the policy. Where the right answer is
# known, regressions come first, because an average hides them: questions that the base had right
# and the policy has wrong. Where it is not, the answers that changed most.

# %%
names = ["base", first]
baselines = [name for name in policies.names if name.startswith("sft") and name != first]
compared = names + baselines[:1]
known = [answer.text for record in records for answer in record.answers] or ["word " * 40]
tokens = models.answer_budget(processor, known)
decoding = models.DecodingSettings(max_new_tokens=tokens)
evidence = evaluation.gather_evidence(
    policies, compared, records, tasks, judges=judges, decoding=decoding,
    trained_on=pairs["train"], stopped=prepared.held_out == "valid",
)  # fmt: skip
said = evaluation.texts_of(evidence.answers)
explorer = widgets.Explorer(tasks, said)
explorer.show()

# %% [markdown]
# The same for readers without widgets: regressions, then repairs, or what changed most.

# %%
sorted_rows = widgets.select_rows(explorer.rows())
outcomes = explorer.state["counts"]
fixed, broken = outcomes.get("fixed", 0), outcomes.get("broken", 0)
if explorer.rightness.is_known:
    section.say(
        f"{first} on {len(tasks)} held-out questions, greedy: "
        f"{broken} right → wrong, {fixed} wrong → right."
    )
else:
    section.say(
        f"{first} on {len(tasks)} held-out questions, greedy: {outcomes.get('changed', 0)} answers "
        "are not the base's. Nobody has said which answer is right."
    )
of_each = [[row.number for row in sorted_rows if row.outcome == name] for name in outcomes]
shown = [number for numbers in of_each for number in numbers[:4]][:8]
HTML(report.comparison_table(tasks, said["base"], said[first], shown))

# %% [markdown]
# ## What can be said without a truth
#
# Mostly nobody knows the right answer; people only prefer one. Then four things can be said, and
# none of them is the whole: whether a policy prefers what people preferred, in pairs that it has
# not seen; whether a reward model prefers its answers to the base's (**circular** if it was trained
# against that very model); what became of the shape of the answers; and whether the policy still
# speaks, on a plain text and general questions without an image. The first is worth nothing
# where a rule that sees no image does as well, or the images of other photos do.

# %%
report.add_evidence(section, evidence)

# %% [markdown]
# ## Blind arena
#
# You know which answer comes from the policy, and you want it to be better. So do not know it: two
# answers to a question, in random order, without names. Vote with the buttons or keys; each vote is
# on the disk before the next pair appears. **Reveal** shows who won, with an interval, and how many
# votes a difference would still need. Answers are sampled, as people would meet them.

# %%
asked, sampled = tasks[-3 * MATCHES :], {}  # more than wanted, since equal answers are no match
for name in names:
    with policies.use_policy(name) as model:
        sampled[name] = models.answer_tasks(
            model, processor, asked, temperature=1.0, seed=1, max_new_tokens=tokens
        )
# votes belong to these answers: others get another file
seen = data.stable_hash(list(sampled.values()))[:8]
arena, stem = files.artifacts_dir() / "arena", f"{first.replace('/', '-')}-{seen}"
path, voted = arena / f"{stem}.jsonl", arena / f"{stem}.votes.jsonl"
matches = evaluation.build_matches(asked, sampled, ("base", first), records_path=path)
if matches:
    blind = widgets.Arena(data.Votes(voted, matches[:MATCHES], ANNOTATOR))
    blind.show()

# %% [markdown]
# **Export** writes the votes as preference records: the data of a next round. Give that file to
# notebook 02 as `DATA`. Drawings are easy to judge: count.
#
# ## A judge made of rules
#
# The heuristic of notebook 02 never sees the image. Move its weights: can any of them rank answers
# as the truth does, or, where there is none, as people did?

# %%
weights = files.artifacts_dir() / "widgets" / "playground.json"
if records:
    playground = widgets.ScorerPlayground(prepared.records("valid"), weights_path=weights)
    playground.show()

# %% [markdown]
# ## What the runs looked like
#
# Every log in your artifacts: DPO, reward model, PPO. While another notebook trains, **Refresh**
# reads on.

# %%
dashboard = widgets.Dashboard(files.artifacts_dir())
dashboard.show()

# %% [markdown]
# ## An image of your own, without widgets
#
# Set `OWN_IMAGE` to a file; without one, the last held-out image is taken. The question is the last
# one of your data.

# %%
task = data.ask(tasks[-1].question, [Path(OWN_IMAGE)]) if OWN_IMAGE else tasks[-1]
print(data.conversation_text(task.turns))
for answer in evaluation.ask_policies(policies, compared, task, decoding):
    print(
        f"{answer.policy:>12}: {answer.text}   (log p {answer.logp:.2f}, KL {sum(answer.kl):.2f})"
    )
print("       truth:", explorer.rightness.truth(task) or "unknown")
own = task.open_images()[0]
own.resize((224, round(224 * own.height / own.width)))

# %% [markdown]
# ## What you should see
#
# With the defaults: the base counts too few motorcycles and bicycles, the policy counts them all;
# no held-out image gets worse. Marked by tokens, only the digits are coloured: everything else was
# right before. Most of the KL is spent on them.
#
# With your own data: answers that changed where your preferences ask for it and are as long as
# before; held-out pairs above the best rule that sees no image. If the answers only grew longer or
# shorter, that is what the pairs have taught.
#
# ## Check yourself

# %%
assert list(comparison.state["answers"]) and not comparison.state.get("error")
assert [len(texts) for texts in said.values()] == [len(tasks)] * len(compared)
if MODEL == "tiny" and prepared.is_traffic and first.startswith("dpo"):
    assert fixed > 0.5 * len(tasks) and broken < 0.05 * len(tasks), (
        f"{fixed} fixed, {broken} broken"
    )
print("report:", section.save())

# %% [markdown]
# ## Next
#
# Notebook 07 asks whether all this is more than luck.
