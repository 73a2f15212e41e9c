# %% [markdown]
# # 02 · Build preference pairs that need the image
#
# **Goal.** Turn labelled images into preference data: for every image the true answer and answers
# that are worse, or the model's own answers ranked by a score, or by you. Then find out whether the
# pairs can be told apart *without* looking, because if they can, that is what a model will learn.
#
# **Needs** a folder of images with labels in YOLO, COCO or Pascal VOC format (the traffic scenes
# are here). **Makes** `artifacts/preferences/train.jsonl`, `valid.jsonl` and `test.jsonl`.
# **Takes** about 1 minute on a laptop CPU.

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
# For photos of your own, set `DATA` to a folder with `train`, `valid` and, if there is one, `test`,
# as Roboflow exports it, with any class names. The later notebooks then use the same folder.

# %% tags=["parameters"]
MODEL = "tiny"
DATA = "data/traffic"
CLASSES = None  # count only these, for example ("car", "bus"); None: all that the labels name
ANSWERS = 4  # sampled from the model for each image
PAIRS = "built"  # true answer against worse ones; "ranked": the model's answers, ranked by SCORER
# where the worse answers of built pairs come from; there is also "edit"
NEGATIVES = ("own", "other image")
# or count_per_class, count_exact, heuristic: see helpers/rewards/scoring.py
SCORER = "count_graded"
SEED = 0

# %%
import json

import numpy as np
from scipy.stats import spearmanr

from helpers import data, files, machine, models, report, rewards, statistics, widgets

folder = ROOT / DATA  # an absolute DATA stays as it is
out = files.artifacts_dir() / "preferences"

section = report.Section("02_build_preferences", "The preference data")

# %% [markdown]
# ## Is the machine enough?
#
# [Notebook 01](01_load_model.ipynb) says how to read this table.

# %%
plan = machine.check_machine(MODEL)

# %% [markdown]
# ## Labels become counts
#
# One box in a label file is one object, so the number of boxes of each class is the truth. An image
# without a label file is an error and not "zero of everything": silently wrong labels are worse
# than none.

# %%
train = data.read_counts(folder, "train", CLASSES)
valid = data.read_counts(folder, "valid", CLASSES)
print(f"{len(train)} training and {len(valid)} validation images")
print(train[4].path.name, train[4].counts)

# %% [markdown]
# No photo may be on both sides. Copies are known by their content and by their names: Roboflow
# calls the augmented copies of `street.jpg` `street_jpg.rf.8a1.jpg`, `street_jpg.rf.9c2.jpg`.

# %%
data.assert_no_photo_in_both(train, valid)

# %% [markdown]
# ## Let the model answer
#
# Four answers to every training image, sampled at temperature 1. Where the model is sure it says
# the same thing four times; where it is torn, one of its own answers may well be right.

# %%
model, processor = models.load_model(MODEL, max_pixels=plan.max_pixels)

# several answers to the counting question about each image
own_answers = models.sample_counting_answers(model, processor, train, ANSWERS, seed=SEED)

# %%
number = 1
print(data.question_for(train[number], number), "\ntruth:", data.count_answer(train[number].counts))
for text in own_answers[number]:
    print("  ✓" if data.is_exact(text, train[number].counts) else "  ✗", text)

# %%
flat = [(text, item) for texts, item in zip(own_answers, train, strict=True) for text in texts]
hits = sum(data.is_exact(text, item.counts) for text, item in flat)
right = statistics.proportion(hits, len(flat))
well_formed = [data.is_well_formed(text, list(item.counts)) for text, item in flat]
formed = statistics.proportion(sum(well_formed), len(flat))
print("sampled answers that are exact:      ", right)
print("sampled answers that are well formed:", formed)
hopeful = {item.path for text, item in flat if data.is_exact(text, item.counts)}
print(f"images with at least one exact answer among {ANSWERS}: {len(hopeful)} of {len(train)}")

# %% [markdown]
# ## Score them and rank them
#
# A score makes preferences out of the model's own answers: rank the four, and every answer is
# preferred to those below it. The *margin* of a pair is the difference of the two scores. Two
# scores to choose from:
#
# * **graded**: for each class 1 / (1 + error), averaged. It knows the true counts.
# * **heuristic**: a table of rules about words, as a student project had it. No rule sees the
#   image.

# %%
for rule in rewards.HEURISTIC_RULES:
    print(f"{rule.weight:+.1f} × {rule.name:<14} {rule.description}")

# %%
score = rewards.SCORERS[SCORER]
question = data.question_for(train[number], number)
for text in own_answers[number]:
    print(f"{score(None, question, text, train[number].counts).total:.3f}  {text}")

# %%
ranked = rewards.rank_samples(train, own_answers, score)
ranked_pairs = [pair for record in ranked for pair in record.pairs()]
extremes = [pair for record in ranked for pair in record.pairs("extremes")]
print(f"{len(ranked)} images give {len(ranked_pairs)} pairs,")
print(f"{len(extremes)} of them best against worst")
for name, members in (("all pairs", ranked_pairs), ("best against worst", extremes)):
    margin = sum(pair.margin for pair in members) / max(1, len(members))
    print(f"mean margin of {name}: {margin:.3f}")

# %% [markdown]
# Does the heuristic rank as the truth does? If it knows the counts, one of its rules can tell a
# wrong count; without them, it has nothing but words to go by. Its rank correlation with "is the
# answer exactly right?" says what it is worth as a teacher:

# %%
exact = [float(data.is_exact(text, item.counts)) for text, item in flat]
questions = [data.question_for(item, n) for n, item in enumerate(train) for _ in range(ANSWERS)]
for name in ("counts known", "counts unknown"):
    totals = []
    for question, (text, item) in zip(questions, flat, strict=True):
        facts = item.counts if name == "counts known" else None
        totals.append(rewards.SCORERS["heuristic"](None, question, text, facts).total)
    if len(set(totals)) > 1:
        print(f"{name}: {spearmanr(totals, exact).statistic:+.2f}")
    else:
        print(f"{name}: every answer scores the same, and a constant correlates with nothing")

# %% [markdown]
# ## Three kinds of worse answers
#
# A model whose samples are all wrong never shows itself the right answer. Where the truth is known,
# put it in, and take as worse answers:
#
# * **own**: a wrong answer of the model itself. It shows the model the mistakes it really makes.
# * **other image**: the true counts of some other image. Well formed, plausible, wrong *here*.
# * **edit**: the truth with one count moved by one, up as often as down.
#
# The true answer is preferred to each of them; the worse ones are tied among themselves.


# %%
def make_records(items, answers, seed):
    """Built from the truth, or the model's own answers in their order: as `PAIRS` says."""
    if PAIRS == "built":
        return data.build_records(items, answers, NEGATIVES, seed)
    return rewards.rank_samples(items, answers, score)


records = make_records(train, own_answers, SEED)
pairs = [pair for record in records for pair in record.pairs()]
print(f"{len(records)} records, {len(pairs)} pairs")
print(json.dumps(records[number].model_dump(exclude_defaults=True), indent=1))

# %% [markdown]
# Look at them. Is the preferred answer really the better one? Thirty seconds here have saved many a
# project.


# %%
def title(record):
    """The answers of a record, one a line; those that nothing is better than have a tick."""
    marks = ["✓" if place in record.ranking[0] else "✗" for place in range(len(record.answers))]
    pairs = zip(marks, record.answers, strict=True)
    return "\n".join(f"{mark} {answer.text} ({answer.origin})" for mark, answer in pairs)


pictures = [files.open_image(record.image_paths[0]) for record in records[:4]]
grid = report.image_grid(pictures, [title(record) for record in records[:4]])
section.picture(grid, "Four records: the preferred answer has a tick")

# %% [markdown]
# ## Can a blind rule win?
#
# Here are rules that never see the image: "the smaller total is right", "the one with more zeros",
# "the shorter one". A rule that scores .5 learns nothing from the pairs; one that scores .9 means
# that a model can reach .9 by ignoring the picture too.

# %%
rules = data.blind_rules(records)
print(data.render_blind_table(rules))

# %% [markdown]
# `own` leaks: a model that under-counts is wrong downwards, so "the larger total is right" wins.
# From such pairs alone it would learn to say more, not to look. `other image` cannot leak: over the
# whole set its counts are distributed like the true ones. Mixing the two teaches both what the
# model gets wrong and that the picture decides. For comparison, all three kinds:

# %%
all_kinds = data.build_records(train, own_answers, data.NEGATIVES, SEED)
print(data.render_blind_table(data.blind_rules(all_kinds)))

# %% [markdown]
# ### How a published data set leaked
#
# One student project drew the rejected counts at random from 0 to 9 for scenes of at most a few
# vehicles, so the rejected totals were nearly always larger. Rebuild that on our images (0 to three
# times the largest count) and ask the blind rule:

# %%
rng = np.random.default_rng(SEED)
most = 3 * max(data.highest_counts([item.counts for item in train]).values())


def with_random_counts(record):
    """The record with rejected counts drawn from 0 … `most`; drawn again if they are the truth."""
    counts = dict(record.truth)
    while counts == record.truth:
        counts = {cls: int(rng.integers(most + 1)) for cls in record.truth}
    answers = {
        "chosen": data.count_answer(record.truth),
        "rejected": {"text": data.count_answer(counts), "origin": "random"},
    }
    same = {"images": record.images, "prompt": record.prompt, "truth": record.truth}
    return data.PreferenceRecord.model_validate({**same, **answers})


leaky = data.blind_rules([with_random_counts(record) for record in records])
rule, share = data.best_rule(leaky)
print(f"rejected counts drawn from 0 … {most}: {rule!r} is right in {share}")

# %%
worst, worst_share = data.best_rule(rules)
section.say(
    f"{len(pairs)} training pairs from {len(records)} images. The best blind rule ({worst!r}) "
    f"picks the chosen answer in {worst_share} of them."
)
if "other image" in rules:
    fair, fair_share = data.best_rule(rules, "other image")
    section.say(
        f"On pairs with another image's counts the best blind rule ({fair!r}) gets {fair_share}: "
        "no leak is .5."
    )

# %% [markdown]
# ## Images can be the worse side, too
#
# Some losses (mDPO) keep the answer and spoil the image: with the right picture the answer must be
# more likely than with a grey, cropped, blurred or swapped one. These leak as well: "prefer the
# sharper picture" beats three of the four without reading anything in it.

# %%
spoilt = data.add_image_negatives(records[:64], out / "negatives", data.IMAGE_NEGATIVES, SEED)
paths = [*spoilt[number].image_paths, *spoilt[number].negative_image_paths]
grid = report.image_grid(
    [files.open_image(path) for path in paths], ["true", *data.IMAGE_NEGATIVES]
)
section.picture(grid, "One image and its four spoilt versions")

# %%
for kind, share in data.true_image_detail_shares(spoilt, data.IMAGE_NEGATIVES).items():
    print(f"{kind:<9} the true image has more detail in {share}")

# %% [markdown]
# ## Write the files
#
# One JSON object a line, image paths relative to the file. The validation pairs, which say when to
# stop a training, and the test pairs (if the data has a test split), which say how good it was, are
# built in the same way from images that training never sees.

# %%
data.write_records(out / "train.jsonl", records)
held_out = {"valid": valid}
if (folder / "test").is_dir():
    held_out["test"] = data.read_counts(folder, "test", CLASSES)
for place, (split, items) in enumerate(held_out.items(), start=1):
    seed = SEED + 1000 * place
    answers = models.sample_counting_answers(model, processor, items, ANSWERS, seed=seed)
    data.write_records(out / f"{split}.jsonl", make_records(items, answers, SEED + place))

# %%
about = {
    "data": str(folder),
    "classes": CLASSES,
    "model": MODEL,
    "pairs": PAIRS,
    "negatives": NEGATIVES,
    "seed": SEED,
}
files.write_json(out / "about.json", about)
print((out / "train.jsonl").read_text(encoding="utf-8").splitlines()[0])

# %% [markdown]
# ## Ask the doctor
#
# `check` (on the command line: `python -m helpers check FILE`) reads every line and opens every
# image: broken lines, missing images, double ids, contradictions, foreign chat templates, photos on
# both sides, and the blind rules once more. Errors must be mended; a warning must at least be
# understood.

# %%
# the images stay where they are, outside artifacts/
train_check = data.check_file(out / "train.jsonl", root=folder)
train_check

# %% [markdown]
# The held-out files are compared with it: a photo in both would be a leak.

# %%
leaks, errors = [], train_check.errors
for split in held_out:
    check = data.check_file(out / f"{split}.jsonl", root=folder, against=[train_check])
    leaks += [finding.message for finding in check.findings if finding.kind == "leak"]
    errors = errors + check.errors
print(leaks or f"no photo of train is in {' or '.join(held_out)}")

# %% [markdown]
# ## Be the judge yourself
#
# People can rank, too: two to six answers in a random order, without a word about where they come
# from. Each vote is on the disk before the next item appears, so that a lost kernel costs nothing;
# run the cell again and it goes on. Give another name for a second annotator and compare.

# %%
votes = data.Votes(out / f"votes-{MODEL}-{SEED}.jsonl", ranked[:20], annotator="me")
widgets.AnswerRanker(votes).show()

# %% [markdown]
# `data.apply_votes(records, path)` puts the votes into the records, and
# `data.annotator_agreement(records, path)` is Cohen's κ of two annotators
# (both in `helpers/data/votes.py`).
#
# ## Other formats
#
# Records go to and come from the files of other projects without loss; what a format cannot say
# travels in an extra column. On the command line: `python -m helpers convert FILE OUT --to trl`.

# %%
path = out / "train-llama-factory.json"
data.write_file(path, records, "llama_factory")
back = [data.resolve_images(line.record, path, line.number) for line in data.scan_file(path)]
assert [r.model_dump() for r in back] == [r.model_dump() for r in records]

# %%
foreign = {"image_path": "a.jpg", "prompt": "<|user|>\nCount the cars. <image>\n<|assistant|>\n"}
foreign |= {"chosen": "There are 2.", "rejected": "There are 5."}
(out / "foreign.json").write_text(json.dumps([foreign]), encoding="utf-8")
for line in data.scan_file(out / "foreign.json"):
    print(line.record.prompt[0].content, "|", line.change)

# %% [markdown]
# ## What you should see
#
# With the defaults: about 930 pairs from 512 images; under half of the sampled answers exact; the
# rule "larger total" far above .5 on `own` pairs and within its interval of .5 on `other image`
# pairs; the random counts of the published data solved almost entirely by "smaller total".
#
# ## Check yourself

# %%
again = data.read_records(out / "train.jsonl")
assert [r.model_dump() for r in again] == [r.model_dump() for r in records], (
    "reading gives back what was written"
)
if PAIRS == "built":
    for record in again:
        best = record.answers[record.ranking[0][0]]
        assert best.origin == "truth", f"{record.id}: chosen is not the truth"
        assert best.text == data.count_answer(record.truth), f"{record.id}: chosen is not true"
first = statistics.proportion(sum(r.ranking[0] == [0] for r in again), len(again))
assert first.low < 0.9, "the position of an answer must not give the label away"

# %%
assert not errors, "the doctor found errors: see above"
section.add_share("blind_rule_best", worst_share)
section.add_value("preference_pairs", len(pairs))
print("report:", section.save())

# %% [markdown]
# ## Next
#
# [03 · Train a reward model](03_train_reward_model.ipynb) learns to tell the better answer from the
# worse; [04 · Train with DPO](04_train_dpo.ipynb) teaches the model to prefer it.
