# %% [markdown]
# # 02 · Build preference pairs that need the image
#
# **Goal.** Turn what you have, labelled images, preferences, or questions about images, into
# preference data: for every image answers that are better and worse. Then find out whether the
# pairs can be told apart *without* looking, because if they can, that is what a model will learn.
#
# **Needs** data of your own, or nothing: the traffic scenes are here. **Makes**
# `artifacts/preferences/`, with the images, which all later notebooks read. **Takes** about 1
# minute on a laptop CPU.

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
# `TASK` is one of the five that come with the repository, each after a student project:
#
# * `"counting"`: how many vehicles of each kind?
# * `"instructions"`: requests that say how to answer, and which of two answers people prefer;
# * `"reasons"`: "Why is the road busy?", with answers ranked by rules or by people;
# * `"questions"`: questions with an answer of a few words;
# * `"reasoning"`: calculate, then choose a letter.
#
# `DATA` is your own, in place of a task; any of these, relative to where you stand:
#
# * a folder of images with labels (YOLO, COCO, Pascal VOC), as Roboflow exports it;
# * a file of preferences in any format that `python -m helpers convert` knows, or of questions,
#   `{"image": …, "question": …, "answer": …}`, with or without the answer;
# * a table (CSV, TSV, XLSX) of preferences, votes, rankings or questions: columns are matched by
#   their titles;
# * a folder of images, with `QUESTIONS` to ask about every one;
# * a folder that holds such files beside its images, or a zip of any of these.
#
# The later notebooks use what this one makes of it, and its `MODEL`.

# %% tags=["parameters"]
TASK = "counting"
DATA = None  # None: the task's
MODEL = None  # None: the task's, and "tiny" for your own data
QUESTIONS = None  # asked of every image: a list, or a file with one a line
TRUTH = None  # how answers are judged, such as "vqa_accuracy" or "yes_no"; None: as the data says
CLASSES = None  # count only these, for example ("car", "bus"); None: all that the labels name
ANSWERS = 4  # sampled from the model for each question
# "built": the data's own preferences, or true counts against worse ones; else, and always with
# "ranked", the model's answers, ranked by SCORER
PAIRS = "built"
# where the worse answers of counts come from; there is also "edit"
NEGATIVES = ("own", "other image")
SCORER = None  # None: the truth, or rules where there is none; see helpers/rewards/catalogue.py
SEED = 0

# %%
import json

import numpy as np

from helpers import (
    data,
    evaluation,
    files,
    machine,
    models,
    report,
    rewards,
    statistics,
    widgets,
)

# %%
out = files.artifacts_dir() / "preferences"
section = report.Section("02_build_preferences", "The preference data")
task = data.choose_task(TASK, data=DATA, model=MODEL, truth=TRUTH)
MODEL = task.model
opened = data.open_data(task.data, truth=task.truth, classes=CLASSES, questions=QUESTIONS)
opened

# %% [markdown]
# ## Is the machine enough?
#
# [Notebook 01](01_load_model.ipynb) says how to read this table.

# %%
plan = machine.check_machine(MODEL)

# %% [markdown]
# ## Photos are split, images copied
#
# Data that names its splits keeps them; other data is split by *photo*, 70 % to train on, 15 % that
# say when to stop, 15 % that are looked at once, at the end. No photo may be on both sides, and
# everything that is known about one stays together: copies are known by their content and by their
# names (Roboflow calls the augmented copies of `street.jpg` `street_jpg.rf.8a1.jpg`,
# `street_jpg.rf.9c2.jpg`). Under 30 photos there is no test split. The images are copied beside the
# records, no larger than the model and people need, so that the folder can be moved.
#
# One box in a label file is one object, so the number of boxes of each class is the truth there. An
# image without a label file is an error and not "zero of everything": silently wrong labels are
# worse than none.

# %%
most = plan.max_pixels or models.default_max_pixels(MODEL)  # that the model looks at
prepared = data.prepare_data(opened, out, max_pixels=most, model=MODEL, seed=SEED)
for line in prepared.about["not_used"]:
    section.say(line)

# %%
train = prepared.tasks("train")
number = 1
print(f"{len(train)} questions to train on, such as {train[number].question!r}")
print(train[number].images[0].name, "truth:", train[number].facts)

# %% [markdown]
# ## Let the model answer
#
# Four answers to every training question, sampled at temperature 1. Where the model is sure it says
# the same thing four times; where it is torn, one of its own answers may well be right.

# %%
model, processor = models.load_model(MODEL, max_pixels=plan.max_pixels)


def sample(tasks, seed):
    """Several answers to each question, (tasks, answers)."""
    longest = rewards.token_budget(processor, tasks)
    return models.sample_task_answers(
        model, processor, tasks, ANSWERS, seed=seed, max_new_tokens=longest
    )


own_answers = sample(train, SEED)

# %%
print(train[number].question)
print(*rewards.mark_answers(train[number], own_answers[number]), sep="\n")
print()
print(*rewards.describe_samples(train, own_answers), sep="\n")
first_answers = [several[0].text for several in own_answers]
for sentence in evaluation.describe_unreadable(train, first_answers, MODEL):
    section.conclude(sentence)

# %% [markdown]
# ## Score them and rank them
#
# A score makes preferences out of the model's own answers: rank the four, and every answer is
# preferred to those below it. The *margin* of a pair is the difference of the two scores. Two
# kinds of scores:
#
# * **what is known to be true**: how far an answer is right. Of counts: for each class
#   1 / (1 + error), averaged.
# * **heuristic**: a table of rules about words, as a student project had it. No rule sees the
#   image. It is all there is where nobody has said what is true, but for people: see below.

# %%
for rule in rewards.HEURISTIC_RULES:
    print(f"{rule.weight:+.1f} × {rule.name:<14} {rule.description}")

# %%
score = rewards.default_scorer(train, SCORER)
picture = train[number].open_images()
for answer in own_answers[number]:
    total = score(*train[number].scorer_inputs(picture, answer.text)).total
    print(f"{total:.3f}  {answer.text}")

# %%
ranked = rewards.rank_samples(train, own_answers, score)
ranked_pairs = [pair for record in ranked for pair in record.pairs()]
extremes = [pair for record in ranked for pair in record.pairs("extremes")]
print(f"{len(ranked)} questions give {len(ranked_pairs)} pairs,")
print(f"{len(extremes)} of them best against worst")
for name, members in (("all pairs", ranked_pairs), ("best against worst", extremes)):
    margins = [pair.margin for pair in members if pair.margin is not None]  # of whole answers
    print(f"mean margin of {name}: {sum(margins) / max(1, len(margins)):.3f}")

# %% [markdown]
# Does the heuristic rank as the truth does? If it knows the counts, one of its rules can tell a
# wrong count; without them, it has nothing but words to go by. Its rank correlation with "is the
# answer right?" says what it is worth as a teacher:

# %%
print(*rewards.compare_heuristic(train, own_answers), sep="\n")

# %% [markdown]
# ## Three kinds of worse answers
#
# A model whose samples are all wrong never shows itself the right answer. Where the counts are
# known, put them in, and take as worse answers:
#
# * **own**: a wrong answer of the model itself. It shows the model the mistakes it really makes.
# * **other image**: the true counts of some other image. Well formed, plausible, wrong *here*.
# * **edit**: the truth with one count moved by one, up as often as down.
#
# The true answer is preferred to each of them; the worse ones are tied among themselves.
# Preferences that came with the data stay as they are. To other questions the model's own answers
# are ranked; where the truth is known, together with the true answer and one that is true of
# another question.


# %%
def make_records(split, sample, seed):
    """The preferences of a split, as `PAIRS` says."""
    return rewards.make_preferences(prepared, split, sample, PAIRS, NEGATIVES, score, seed)


records = make_records("train", lambda tasks: own_answers, SEED)
pairs = [pair for record in records for pair in record.pairs()]
print(f"{len(records)} records, {len(pairs)} pairs")
print(json.dumps(records[0].model_dump(exclude_defaults=True), indent=1))

# %% [markdown]
# Look at them. Is the preferred answer really the better one? Thirty seconds here have saved many a
# project.


# %%
def title(record):
    """The answers of a record, one a line; those that nothing is better than have a tick."""
    best = record.ranking[0] if record.ranking else []
    lines = []
    for place, answer in enumerate(record.answers):
        origin = f" ({answer.origin})" if answer.origin else ""
        lines.append(f"{'✓' if place in best else '✗'} {answer.text}{origin}")
    return "\n".join(lines)


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
# Of counts, `own` leaks: a model that under-counts is wrong downwards, so "the larger total is
# right" wins. From such pairs alone it would learn to say more, not to look. `other image` cannot
# leak: over the whole set its counts are distributed like the true ones. Mixing the two teaches
# both what the model gets wrong and that the picture decides. For comparison, all three kinds:

# %%
items = data.counted_items(train)
texts = [[answer.text for answer in several] for several in own_answers]
all_kinds = data.build_records(items, texts, data.NEGATIVES, SEED)
print(data.render_blind_table(data.blind_rules(all_kinds)))

# %% [markdown]
# ### How a published data set leaked
#
# One student project drew the rejected counts at random from 0 to 9 for scenes of at most a few
# vehicles, so the rejected totals were nearly always larger. Rebuild that on counted images (0 to
# three times the largest count) and ask the blind rule:

# %%
rng = np.random.default_rng(SEED)
counted = data.counted_records(records)
most = 3 * max([1, *(n for record in counted for n in record.truth.values())])


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


leaky = data.blind_rules([with_random_counts(record) for record in counted])
print(f"rejected counts drawn from 0 … {most}: {data.name_best_rule(leaky)}")

# %%
section.say(f"{len(pairs)} training pairs from {len(records)} questions.")
if not pairs:
    section.say("⚠️ Nothing is preferred to anything: rank the answers yourself, or change SCORER.")
section.say(f"The best blind rule: {data.name_best_rule(rules)}.")
if "other image" in rules:
    section.say(
        f"On pairs with another image's counts: {data.name_best_rule(rules, 'other image')}; "
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
paths = [*spoilt[0].image_paths[:1], *spoilt[0].negative_image_paths]
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
# stop a training, and the test pairs (if there are photos enough), which say how good it was, are
# made in the same way from images that training never sees.

# %%
data.write_records(out / "train.jsonl", records)
held_out = prepared.splits[1:]
for place, split in enumerate(held_out, start=1):
    seed = SEED + 1000 * place
    made = make_records(split, lambda tasks, seed=seed: sample(tasks, seed), SEED + place)
    data.write_records(out / f"{split}.jsonl", made)

# %%
made = {"pairs": PAIRS, "negatives": NEGATIVES, "scorer": SCORER}
files.write_json(out / "about.json", prepared.about | made)
print((out / "train.jsonl").read_text(encoding="utf-8").splitlines()[0])

# %% [markdown]
# ## Ask the doctor
#
# `check` (on the command line: `python -m helpers check FILE`) reads every line and opens every
# image: broken lines, missing images, double ids, contradictions, foreign chat templates, photos on
# both sides, and the blind rules once more. Errors must be mended; a warning must at least be
# understood.

# %%
train_check = data.check_file(out / "train.jsonl", root=prepared.image_root)
train_check

# %% [markdown]
# The held-out files are compared with it: a photo in both would be a leak.

# %%
leaks, errors = [], train_check.errors
for split in held_out:
    path = out / f"{split}.jsonl"
    check = data.check_file(path, root=prepared.image_root, against=[train_check])
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
shown = (ranked or records)[:20]  # where all samples are alike, what the data has
votes = data.Votes(out / f"votes-{MODEL}-{SEED}.jsonl", shown, annotator="me")
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
path = out / "formats" / "train-llama-factory.json"
with_pairs = [record for record in records if record.pairs()]
if with_pairs:
    data.write_file(path, with_pairs, "llama_factory")
    back = [data.resolve_images(line.record, path, line.number) for line in data.scan_file(path)]
    assert [r.model_dump() for r in back] == [r.model_dump() for r in with_pairs]

# %%
foreign = {"image_path": "a.jpg", "prompt": "<|user|>\nCount the cars. <image>\n<|assistant|>\n"}
foreign |= {"chosen": "There are 2.", "rejected": "There are 5."}
path = files.write_json(out / "formats" / "foreign.json", [foreign])
for line in data.scan_file(path):
    print(line.record.prompt[0].content, "|", line.change)

# %% [markdown]
# ## What you should see
#
# With your own data: what was read and what was not, under `DATA`; how many pairs it takes to see
# anything; and no blind rule far above .5, or a warning that names it.
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
# what was built here is true, and its place gives nothing away; your own votes are yours
built = data.counted_records(again) if PAIRS == "built" and not prepared.has_preferences else []
for record in built:
    best = record.answers[record.ranking[0][0]]
    assert best.origin == "truth", f"{record.id}: chosen is not the truth"
    assert best.text == data.count_answer(record.truth), f"{record.id}: chosen is not true"
if built:
    first = statistics.proportion(sum(r.ranking[0] == [0] for r in built), len(built))
    assert first.low < 0.9, "the position of an answer must not give the label away"

# %%
if errors:
    section.say(f"⚠️ The doctor found {len(errors)} errors in the preferences: see above.")
assert not (errors and built), "the doctor found errors in what was built: see above"
if rules:
    section.add_share("blind_rule_best", data.best_rule(rules)[1])
section.add_value("preference_pairs", len(pairs))
print("report:", section.save())

# %% [markdown]
# ## Next
#
# [03 · Train a reward model](03_train_reward_model.ipynb) learns to tell the better answer from the
# worse; [04 · Train with DPO](04_train_dpo.ipynb) teaches the model to prefer it.
