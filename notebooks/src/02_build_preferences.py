# %% [markdown]
# # 02 · Build preference pairs that need the image
#
# **Goal.** Turn labelled images into preference data: for every image the true answer and answers
# that are worse. Then find out whether the pairs can be told apart *without* looking, because if they
# can, that is what a model will learn.
#
# **Needs** a folder of images with YOLO labels (the traffic scenes are here). **Makes**
# `artifacts/preferences/train.jsonl` and `valid.jsonl`. **Takes** about 1 minute on a laptop CPU.

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
# For photos of your own, set `DATA` to a Roboflow export in YOLO format with any class names. The
# later notebooks then use the same folder.

# %% tags=["parameters"]
MODEL = "tiny"
DATA = "data/traffic"
ANSWERS = 4  # sampled from the model for each image
NEGATIVES = ("own", "other image")  # where rejected answers come from; there is also "edit"
SEED = 0

# %%
import json
from pathlib import Path

import numpy as np

from helpers import plots
from helpers.counting import count_answer, is_exact, is_well_formed
from helpers.labels import read_yolo
from helpers.pairs import NEGATIVES as ALL_KINDS
from helpers.pairs import blind_rules, build_records, highest_counts, question_for, sample_own_answers
from helpers.preferences import PreferenceRecord, image_paths, read_records, write_records
from helpers.report import Section
from helpers.runtime import artifacts_dir, open_image, write_json
from helpers.statistics import proportion

folder = ROOT / DATA  # an absolute DATA stays as it is
out = artifacts_dir() / "preferences"
section = Section("02_build_preferences", "The preference data")

# %% [markdown]
# ## Labels become counts
#
# One line in a label file is one object, so the number of lines of each class is the truth. An image
# without a label file is an error and not "zero of everything": silently wrong labels are worse than
# none.

# %%
train, valid = read_yolo(folder, "train"), read_yolo(folder, "valid")
print(f"{len(train)} training and {len(valid)} validation images")
print(train[4].path.name, train[4].counts)

# %% [markdown]
# No photo may be on both sides. Augmented copies of one photo share a group name (Roboflow writes
# `street.rf.8a1.jpg`, `street.rf.9c2.jpg`), so compare groups and not file names.

# %%
shared = {item.group for item in train} & {item.group for item in valid}
assert not shared, f"these photos are in both splits: {sorted(shared)[:3]}"

# %% [markdown]
# ## Let the model answer
#
# Four answers to every training image, sampled at temperature 1. Where the model is sure it says the
# same thing four times; where it is torn, one of its own answers may well be right.

# %%
model, processor = models.load_model(MODEL)
own_answers = sample_own_answers(model, processor, train, ANSWERS, seed=SEED)

# %%
number = 1
print(question_for(train[number], number), "\ntruth:", count_answer(train[number].counts))
for text in own_answers[number]:
    print("  ✓" if is_exact(text, train[number].counts) else "  ✗", text)

# %%
flat = [(text, item) for texts, item in zip(own_answers, train, strict=True) for text in texts]
right = proportion(sum(is_exact(text, item.counts) for text, item in flat), len(flat))
formed = proportion(sum(is_well_formed(text, list(item.counts)) for text, item in flat), len(flat))
hopeful = sum(any(is_exact(t, i.counts) for t in texts) for texts, i in zip(own_answers, train, strict=True))
print("sampled answers that are exact:      ", right)
print("sampled answers that are well formed:", formed)
print(f"images with at least one exact answer among {ANSWERS}: {hopeful} of {len(train)}")

# %% [markdown]
# ## Three kinds of worse answers
#
# * **own**: a wrong answer of the model itself. It shows the model the mistakes it really makes.
# * **other image**: the true counts of some other image. Well formed, plausible, wrong *here*.
# * **edit**: the truth with one count moved by one, up as often as down.
#
# The true answer is preferred to each of them; the worse ones are tied among themselves.

# %%
records = build_records(train, out, own_answers, NEGATIVES, SEED)
pairs = [pair for record in records for pair in record.pairs()]
print(f"{len(records)} records, {len(pairs)} pairs")
print(json.dumps(records[number].model_dump(exclude_defaults=True), indent=1))

# %% [markdown]
# Look at them. Is the preferred answer really the better one? Thirty seconds here have saved many a
# project.

# %%
shown = records[:4]
titles = [
    "\n".join(f"{'✓' if i in r.ranking[0] else '✗'} {a.text} ({a.origin})" for i, a in enumerate(r.answers))
    for r in shown
]
section.picture(
    plots.image_grid([open_image(image_paths(out / "train.jsonl", r)[0]) for r in shown], titles),
    "Four records: the preferred answer has a tick",
)

# %% [markdown]
# ## Can a blind rule win?
#
# Here are rules that never see the image: "the smaller total is right", "the one with more zeros",
# "the shorter one". A rule that scores .5 learns nothing from the pairs; one that scores .9 means that
# a model can reach .9 by ignoring the picture too.


# %%
def print_rules(table):
    """One line a rule, one column a kind of rejected answer."""
    print(f"{'rule':<15}" + "".join(f"{kind:>34}" for kind in table))
    for rule in next(iter(table.values())):
        print(f"{rule:<15}" + "".join(f"{table[kind][rule]!s:>34}" for kind in table))


rules = blind_rules(records)
print_rules(rules)

# %% [markdown]
# `own` leaks: a model that under-counts is wrong downwards, so "the larger total is right" wins. From
# such pairs alone it would learn to say more, not to look. `other image` cannot leak: over the whole
# set its counts are distributed like the true ones. Mixing the two teaches both what the model gets
# wrong and that the picture decides. For comparison, all three kinds:

# %%
print_rules(blind_rules(build_records(train, out, own_answers, ALL_KINDS, SEED)))

# %% [markdown]
# ### How a published data set leaked
#
# One student project drew the rejected counts at random from 0 to 9 for scenes of at most a few
# vehicles, so the rejected totals were nearly always larger. Rebuild that on our images (0 to three
# times the largest count) and ask the blind rule:

# %%
rng = np.random.default_rng(SEED)
most = 3 * max(highest_counts(train).values())


def with_random_counts(record):
    """The record with rejected counts drawn from 0 … `most`; drawn again if they are the truth."""
    counts = dict(record.truth)
    while counts == record.truth:
        counts = {cls: int(rng.integers(most + 1)) for cls in record.truth}
    answers = {"chosen": count_answer(record.truth), "rejected": {"text": count_answer(counts), "origin": "random"}}
    same = {"images": record.images, "prompt": record.prompt, "truth": record.truth}
    return PreferenceRecord.model_validate({**same, **answers})


leaky = blind_rules([with_random_counts(record) for record in records])["all"]
best_leaky = max(leaky, key=lambda rule: leaky[rule].value)
print(f"rejected counts drawn from 0 … {most}: {best_leaky!r} is right in {leaky[best_leaky]}")

# %%
worst = max(rules["all"], key=lambda rule: rules["all"][rule].value)
section.say(
    f"{len(pairs)} training pairs from {len(records)} images. The best blind rule ({worst!r}) picks the "
    f"chosen answer in {rules['all'][worst]} of them."
)
if "other image" in rules:
    fair = max(rules["other image"].items(), key=lambda entry: entry[1].value)
    section.say(
        f"On pairs with another image's counts the best blind rule ({fair[0]!r}) gets {fair[1]}: no leak would be .5."
    )

# %% [markdown]
# ## Write the files
#
# One JSON object a line, image paths relative to the file. The validation pairs are built in the same
# way from images that training never sees.

# %%
write_records(out / "train.jsonl", records)
valid_answers = sample_own_answers(model, processor, valid, ANSWERS, seed=SEED + 1000)
write_records(out / "valid.jsonl", build_records(valid, out, valid_answers, NEGATIVES, SEED + 1))
write_json(out / "about.json", {"data": str(folder), "model": MODEL, "negatives": NEGATIVES, "seed": SEED})
print((out / "train.jsonl").read_text(encoding="utf-8").splitlines()[0])

# %% [markdown]
# ## What you should see
#
# With the defaults: about 930 pairs from 512 images; under half of the sampled answers exact; the rule "larger
# total" far above .5 on `own` pairs and within its interval of .5 on `other image` pairs; the random
# counts of the published data solved almost entirely by "smaller total".
#
# ## Check yourself

# %%
again = read_records(out / "train.jsonl")
assert [r.model_dump() for r in again] == [r.model_dump() for r in records], "reading gives back what was written"
for record in again:
    best = record.answers[record.ranking[0][0]]
    assert best.origin == "truth" and best.text == count_answer(record.truth), f"{record.id}: chosen is not the truth"
first = proportion(sum(r.ranking[0] == [0] for r in again), len(again))
assert first.low < 0.9, "the position of an answer must not give the label away"

# %%
section.share("blind_rule_best", rules["all"][worst])
section.single("preference_pairs", len(pairs))
print("report:", section.save())

# %% [markdown]
# ## Next
#
# [04 · Train with DPO](04_train_dpo.ipynb) teaches the model to prefer the better answers.
