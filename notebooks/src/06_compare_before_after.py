# %% [markdown]
# # 06 · Compare before and after with your own eyes
#
# **Goal.** Ask the base and the trained policies the same things: about held-out images, about a
# photo of yours, blind, one answer after another. Whether the difference is real is for notebook 07
# to say; here you see *what* it is.
#
# **Needs** nothing: without adapters of yours, one that comes with the repository is compared.
# **Makes** kept examples, votes, and from these votes new preference pairs. **Takes** half a minute
# on a laptop CPU until everything can be moved.

# %% [markdown]
# ## Set-up

# %% tags=["setup"]
REPOSITORY, TAG = "", "main"  # what Colab and Kaggle fetch
DRIVE = ""  # Colab only: folder of your Google Drive that keeps your work, such as "vlm-alignment"

import os
import sys

PLACES = ["../" * up for up in range(9)] + ["alignment"] + [d[0] for d in os.walk("/kaggle/input")]
FOUND = [place for place in PLACES if os.path.exists(os.path.join(place, "helpers", "setup.py"))]
FETCH = f"git clone -qb {TAG} --depth 1 '{REPOSITORY}' new$$ 2>fetch.log && mv new$$ alignment"
if not FOUND and os.system(FETCH):
    sys.exit(f"{REPOSITORY!r} ({TAG!r}) cannot be fetched: fetch.log. Set it; Kaggle: Internet on.")
sys.path.insert(0, os.path.abspath(FOUND[0] if FOUND else "alignment"))
from helpers.setup import set_up

ROOT = set_up(DRIVE)

# %% [markdown]
# ## Parameters
#
# `DATA = None` takes the folder that notebook 02 used. `ADAPTERS` is a folder with adapters, `None`
# your artifacts. `OWN_IMAGE` is the path of any picture of yours, for those who read this without
# widgets.

# %% tags=["parameters"]
MODEL = "tiny"
DATA = None
ADAPTERS = None
OWN_IMAGE = None
ANNOTATOR = "me"  # your votes in the arena are kept under this name
MATCHES = 60  # pairs of answers in the arena

# %%
from pathlib import Path

import numpy as np
import torch
from IPython.display import HTML
from torch.testing import assert_close

from helpers import data, evaluation, files, machine, models, report, rewards, widgets

section = report.Section("06_compare_before_after", "Before and after, on held-out images")

# %% [markdown]
# ## Is the machine enough?
#
# [Notebook 01](01_load_model.ipynb) says how to read this table.

# %%
plan = machine.check_machine(MODEL)

# %% [markdown]
# ## Held-out images, one base, several policies
#
# These images were in neither training nor validation. The base is loaded once; each adapter is
# added to it when it is first asked, and switched on when its turn comes. With all of them off, the
# base answers. If you trained a reward model (notebook 03), it is one more adapter, and scores
# every answer.

# %%
folder, split, items = data.held_out_items(DATA)
saved = models.find_policies(MODEL, ADAPTERS and Path(ADAPTERS))
model, processor = models.load_model(MODEL, max_pixels=models.image_limit(saved, plan.max_pixels))
judge, reward = files.artifacts_dir() / "reward", None
if (judge / "about.json").exists() and files.read_json(judge / "about.json").get("base") == MODEL:
    loaded = rewards.load_reward_model(model, processor, judge)
    model, reward = loaded.backbone, rewards.as_scorer(loaded)
policies = models.Policies(model, processor, saved)
first = policies.names[1]
print(f"{len(items)} images of {folder.name}/{split}, classes {list(items[0].counts)}")
print("policies:", ", ".join(policies.names))

# %% [markdown]
# ## Try it
#
# Move the slider to another image, upload one, pick or type a question, change how answers are
# sampled. Words that only one answer has are marked; the other way to mark colours each token by
# what training did to its log-probability. *KL* is how far the policy has moved from the base along
# its answer. **Keep** puts an example into the report.
#
# The tiny model has only ever seen drawings of streets: of a photo it will talk nonsense, before
# and after.

# %%
kinds = list(items[0].counts)
questions = [f"How many {kind} are there?" for kind in kinds[:2]]
questions += ["What color is the bus?", "Is there a bus in the image?", "Why is the road busy?"]
comparison = widgets.Comparison(policies, items, reward, questions)
comparison.show()

# %% [markdown]
# ### The figures by hand
#
# An answer's log-probability is the sum over its tokens of log p(token | image, question, tokens
# before). The KL divergence at a token compares the two distributions of *all* tokens there, Σ p
# log (p / p_base), not only of the one that was said. From the logits:

# %%
image, question = files.open_image(items[0].path), data.question_for(items[0], 0)
(spoken,) = evaluation.ask_policies(policies, [first], image, question)
encoded = models.encode_prompts(processor, [models.render(processor, question)], [[image]])
packed = models.pack_separately(processor, encoded, [[torch.tensor(spoken.ids)]])
packed = packed.to(policies.model.device)
log_p = {}
for name in ("base", first):
    with policies.use_policy(name) as model, torch.no_grad():
        log_p[name] = models.answer_logits(model, packed)[0, :-1].float().log_softmax(-1)
kl = (log_p[first].exp() * (log_p[first] - log_p["base"])).sum(-1)
chosen = log_p[first].gather(-1, packed.ids[0, 1:, None])[:, 0]
assert_close(chosen.sum().item(), spoken.logp, atol=1e-2, rtol=0)
assert_close(kl.sum().item(), sum(spoken.kl), atol=1e-2, rtol=0)
print(f"{spoken.text!r}: log p {chosen.sum():.3f}")
print(f"KL to the base: {kl.sum():.3f} nats over {len(kl)} tokens")

# %% [markdown]
# ## What changed, and what got worse
#
# Greedy answers of the base and of one policy to all held-out images. Regressions come first,
# because an average hides them: items that the base had right and the policy has wrong.

# %%
found = {}
for name in ("base", first):
    with policies.use_policy(name) as model:
        found[name] = evaluation.evaluate_counting(model, processor, items)
before, after = found["base"], found[first]
broken = np.flatnonzero(before.exact & ~after.exact)
fixed = np.flatnonzero(~before.exact & after.exact)
section.say(
    f"{first} on {len(items)} held-out images, greedy: "
    f"{len(broken)} right → wrong, {len(fixed)} wrong → right."
)
explorer = widgets.Explorer(items, {name: result.answers for name, result in found.items()})
explorer.show()

# %% [markdown]
# The same for readers without widgets: regressions, then repairs.

# %%
shown = [*broken[:3], *fixed[:4]] or [0]
HTML(report.comparison_table(items, before.answers, after.answers, shown))

# %% [markdown]
# ## Blind arena
#
# You know which answer comes from the policy, and you want it to be better. So do not know it: two
# answers to a question, in random order, without names. Vote with the buttons or keys; each vote is
# on the disk before the next pair appears. **Reveal** shows who won, with an interval, and how many
# votes a difference would still need. Answers are sampled, as people would meet them.

# %%
names = ("base", first)
asked = items[-3 * MATCHES :]  # more than wanted, since equal answers are no match
said_by = {}
for name in names:
    with policies.use_policy(name) as model:
        said = evaluation.evaluate_counting(model, processor, asked, temperature=1.0, seed=1)
    said_by[name] = said.answers
prompts = [data.question_for(item, number) for number, item in enumerate(asked)]
# votes belong to these answers: others get another file
seen = data.stable_hash(list(said_by.values()))[:8]
arena, stem = files.artifacts_dir() / "arena", f"{first.replace('/', '-')}-{seen}"
records, voted = arena / f"{stem}.jsonl", arena / f"{stem}.votes.jsonl"
paths, groups = [item.path for item in asked], [item.group for item in asked]
matches = evaluation.build_matches(paths, prompts, said_by, names, groups, records_path=records)
blind = widgets.Arena(data.Votes(voted, matches[:MATCHES], ANNOTATOR))
blind.show()

# %% [markdown]
# **Export** writes the votes as preference records: the data of a next round, for notebook 04
# (`DATA` stays, the pairs come from your votes). Drawings are easy to judge: count.
#
# ## A judge made of rules
#
# The heuristic of notebook 02 never sees the image. Move its weights: can any of them rank answers
# as the truth does?

# %%
source = files.artifact(
    "preferences/valid.jsonl",
    "notebook 02",
    lambda: ROOT / "data" / "traffic" / "preferences_valid.jsonl",
)
weights = files.artifacts_dir() / "widgets" / "playground.json"
playground = widgets.ScorerPlayground(data.read_records(source), weights_path=weights)
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
# Set `OWN_IMAGE` to a file; without one, a scene is drawn that no notebook has used.

# %%
scene = data.make_scene(data.SPLIT_SEEDS["test"][-1])
own = files.open_image(Path(OWN_IMAGE)) if OWN_IMAGE else data.draw_scene(scene)
for answer in evaluation.ask_policies(policies, ["base", first], own, data.count_question(kinds)):
    print(
        f"{answer.policy:>12}: {answer.text}   (log p {answer.logp:.2f}, KL {sum(answer.kl):.2f})"
    )
print("       truth:", "unknown" if OWN_IMAGE else report.format_counts(scene.counts))
own.resize((224, round(224 * own.height / own.width)))

# %% [markdown]
# ## What you should see
#
# With the defaults: the base counts too few motorcycles and bicycles, the policy counts them all;
# no held-out image gets worse. Marked by tokens, only the digits are coloured: everything else was
# right before. Most of the KL is spent on them.
#
# ## Check yourself

# %%
assert list(comparison.state["answers"]) and not comparison.state.get("error")
if MODEL == "tiny" and folder.name == "traffic" and first.startswith("dpo"):
    assert len(fixed) > 200 and len(broken) < 20, f"{len(fixed)} fixed, {len(broken)} broken"
print("report:", section.save())

# %% [markdown]
# ## Next
#
# Notebook 07 asks whether all this is more than luck.
