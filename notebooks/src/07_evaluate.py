# %% [markdown]
# # 07 · Evaluate, and believe only what the test shows
#
# **Goal.** Is the difference real, does it hold for sampled answers and for questions that were not
# trained on, do the answers come from the image, and is the judge independent of the training? The
# notebook ends with one page and a model card for every policy.
#
# **Needs** the adapters of notebooks 04 and 05; without any, one that comes with the repository is
# examined. **Makes** `artifacts/report/index.html` and `artifacts/report/cards/`. **Takes** about
# half a minute a policy on a laptop CPU.

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
# `POLICIES` are patterns of names: those of `artifacts/` begin with their stage. `BENCHMARKS` and
# `JUDGED` are for published benchmarks (see below): name → file. For best-of-n, `BEST_OF` answers
# are sampled to each of `BEST_OF_QUESTIONS` questions (0: none). What is asked, and of which base,
# is as in notebook 02; `PREPARED` may name another folder that it has made.

# %% tags=["parameters"]
MODEL = None
PREPARED = None
ADAPTERS = None
POLICIES = ("dpo/*", "sft/*", "ppo/ppo", "ppo/reward-model", "ppo/heuristic-0.0")
SEEDS = (0, 1, 2)  # of the sampled answers
PAIRS = 100  # held-out questions and pairs of the block that needs no truth
BEST_OF = 16
BEST_OF_QUESTIONS = 32
BENCHMARKS = {}  # for example {"pope": "data/pope.parquet", "mme": None}: None downloads it
JUDGED = {}  # for example {"llava_bench": ("questions.jsonl", "reviews.jsonl")}
EXPORT = ""  # folder for the first policy merged into its base, for example "merged"
PUSH_TO = ""  # owner/name on the Hugging Face hub, a private repository

# %%
from fnmatch import fnmatch
from pathlib import Path

import numpy as np
from IPython.display import display
from scipy.stats import binom
from torch.testing import assert_close

from helpers import data, evaluation, export, files, machine, models, report, rewards

section = report.Section("07_evaluate", "Does it help? Evaluation on held-out images")
prepared = data.read_prepared(PREPARED and ROOT / PREPARED)
MODEL = MODEL or prepared.model

# %% [markdown]
# ## Is the machine enough?
#
# [Notebook 01](01_load_model.ipynb) says how to read this table.

# %%
plan = machine.check_machine(MODEL)

# %% [markdown]
# ## What is examined
#
# Held-out images that no setting was chosen on, one base, and the adapters whose names fit
# `POLICIES`.

# %%
split, tasks = prepared.held_out, prepared.tasks(prepared.held_out)
if split == "valid":
    section.say(
        f"{prepared.title} has no test split: these are its validation images, on which settings "
        "may have been chosen, so read the figures with care."
    )
saved = models.find_policies(MODEL, ADAPTERS and Path(ADAPTERS), shipped=prepared.is_traffic)
saved = [policy for policy in saved if any(fnmatch(policy.name, pattern) for pattern in POLICIES)]
saved = prepared.keep_own(saved)
max_pixels = models.image_limit(saved, plan.max_pixels)
policies = models.Policies(*models.load_model(MODEL, max_pixels=max_pixels), saved)
processor, names = policies.processor, policies.names
judge = evaluation.judges(tasks)
print(f"{len(tasks)} questions of {prepared.title}, split {split}; {', '.join(names)}")
assert saved, f"no adapter fits {POLICIES}"

# %% [markdown]
# ### Is what was saved what was trained?
#
# Notebooks 04 and 05 noted the greedy answers of each policy before saving it. This is another
# process, with the adapter read back from disk: the answers must be the same, letter by letter.

# %%
for policy in saved:
    path = policy.folder / "validation_answers.json"
    if path.exists():
        noted = files.read_json(path)
        records = data.read_records(Path(noted["records"]))
        with policies.use_policy(policy.name) as model:
            answers = models.answer_records(model, processor, records)
        same = sum(a == b for a, b in zip(answers, noted["answers"], strict=True))
        assert same == len(answers), (
            f"{policy.name}: {len(answers) - same} answers changed on reloading"
        )
        identical = f"{same} of {len(answers)} greedy answers are identical"
        section.say(f"{policy.name}: reloaded in a new process, {identical}.")

# %% [markdown]
# ## What can be said without a truth
#
# Held-out pairs, beside a rule without eyes and beside the images of other photos; wins in the eyes
# of the reward model of notebook 03, *circular* for a policy that was trained against it; what the
# answers look like; and whether the policy **still speaks**. Notebook 04 says more.
#
# None of the other figures shows whether a policy that counts cars has lost the rest of its
# language. So each model reads a plain English text (perplexity after ÷ before: above 1.05 is worth
# a warning), and answers five general questions without an image, side by side below. A base that
# speaks no English, such as the tiny one, has nothing to forget.

# %%
reward_folder, judges_of_pairs = files.artifacts_dir() / "reward", {}
if prepared.has_made(reward_folder, MODEL):
    base = models.load_model(MODEL, max_pixels=max_pixels)[0]
    judges_of_pairs["reward model"] = rewards.load_reward_model(base, processor, reward_folder)
evidence = evaluation.gather_evidence(
    policies, names, prepared.records(split)[:PAIRS], tasks[:PAIRS],
    judges=judges_of_pairs, trained_on=prepared.records("train"), stopped=split == "valid",
)  # fmt: skip
report.add_evidence(section, evidence, lead=True)

# %% [markdown]
# ## Ask everyone the same questions
#
# Greedy, sampled at temperature 1 with three seeds, with the images exchanged between questions,
# with grey images. Of counted images also the count of one class, which the preferences did not
# train: what is paid for the gain elsewhere shows here. Who asks what is in `examine` in
# `helpers/evaluation/exam.py`. All this needs a known truth.

# %%
examined = {}
if judge.measures:
    examined = {name: evaluation.examine(policies, name, judge, SEEDS) for name in names}
    display(section.table(evaluation.exam_rows(examined)))
else:
    section.say("No truth is known of these questions, so nobody can say which answers are right.")

# %%
shares = {name: found.shares() for name, found in examined.items()}
if shares:
    chart = report.interval_chart(shares, f"{len(judge.tasks)} held-out questions")
    display(section.picture(chart, "Shares with 95 % intervals"))

# %% [markdown]
# ## Is the difference real?
#
# Base and policy answered the *same* questions, so compare them item by item. McNemar's test looks
# only at the items on which they disagree. If training did nothing, wrong → right and right → wrong
# would be equally frequent: with *b* of one and *c* of the other, p is that of so uneven a result
# in *b + c* tosses of a coin.

# %%
first = names[1]
if examined:
    before, after = examined["base"].greedy.right, examined[first].greedy.right
    fixed, broken = int((~before & after).sum()), int((before & ~after).sum())
    by_hand = min(1.0, 2 * binom.cdf(min(fixed, broken), fixed + broken, 0.5))
    print(f"{first}: {fixed} fixed, {broken} broken, p = {by_hand:.2g}")

# %% [markdown]
# Several policies and several metrics are several chances to be lucky, so p is adjusted for all of
# them (Holm). Sampled answers and scores are no right or wrong; there, the signs of all differences
# are turned at random. Copies of one photo count as one throughout.
#
# **Circular**: a metric that was the policy's own training reward says that training ran, and no
# more. It is marked, and needs one beside it that was not.

# %%
clusters = [task.photo for task in judge.tasks]
reward_columns = {policy.name: policy.about.get("reward") for policy in saved}
metrics, comparisons, against_sft = [], [], []
if examined:
    metrics = evaluation.exam_metrics(examined)
    comparisons = evaluation.compare_policies(metrics, clusters, reward_columns)
    if comparisons[0].test == "McNemar":
        assert_close(comparisons[0].p, by_hand, rtol=1e-6, atol=0)
    display(section.table(evaluation.comparison_rows(comparisons)))

# %%
for row in comparisons:
    if row.metric == metrics[0].name or (row.direction < 0 and not row.circular):
        section.conclude(str(row))
for warning in evaluation.find_reward_hacking(comparisons):
    section.conclude(warning)
if comparisons:
    section.say(evaluation.power_note(len(set(clusters)), comparisons))

# %% [markdown]
# ### Does it beat plain fine-tuning?
#
# SFT (notebook 04) has seen the chosen answers of the same pairs and compared nothing. What a
# policy gains over it is the gain of comparing answers (DPO) or of a reward (PPO); more than that
# over the base is owed to the good answers alone. Where nothing beats SFT, say so.

# %%
baselines = [name for name in examined if name.startswith("sft")]
if baselines:
    against_sft = evaluation.compare_policies(metrics, clusters, reward_columns, baselines[0])
    display(section.table(evaluation.comparison_rows(against_sft)))
for row in against_sft:
    if row.metric == metrics[0].name:
        section.conclude(str(row))
if against_sft and not any(row.direction > 0 and not row.circular for row in against_sft):
    section.conclude(f"By no metric can a policy be said to be better than {baselines[0]}.")

# %% [markdown]
# ### What would choosing the best of several samples do?
#
# **Best of n** needs no training: sample n answers of the base and keep the one that the reward
# model likes best. It is the policy to beat for whatever was trained against that reward, at n
# times the price of an answer; from the base it is at most $\log n - \frac{n-1}{n}$ nats away. The
# score of the best rises with n, always. Where the share of right answers falls meanwhile, the
# reward model is *hacked*, and training against it would go the same way.

# %%
if BEST_OF and judges_of_pairs:
    ranker = rewards.as_ranker(judges_of_pairs["reward model"])
    questions = tasks[:BEST_OF_QUESTIONS]
    with policies.use_policy("base") as model:
        found = evaluation.sample_best_of_n(model, processor, questions, ranker, BEST_OF)
    section.table(found.rows())
    for sentence in found.sentences():
        section.say(sentence)
    display(section.picture(report.best_of_n_curves([found]), "Best of n samples of the base"))

# %% [markdown]
# ## Does the answer come from the image?
#
# With shuffled images an honest model falls to chance: of counts, the share of images that happen
# to have the counts of another one. A model that keeps its score has learnt something about the
# questions.

# %%
for name, found in examined.items():
    chance = "" if judge.chance is None else f", chance {judge.chance:.4f}"
    section.conclude(
        f"{name} with shuffled images: {found.shuffled.right_share}{chance}: "
        f"{found.describe_sight()}."
    )

# %% [markdown]
# ## What changed, in detail
#
# Of counts, class by class: an answer without readable counts is a figure of its own, and never a
# count of 0; *bias* is stated − true. Of texts, what BLEU and ROUGE see, and what they do not:
# "There are 2 cars." against "There are 3 cars." shares nearly all its words, so look at BLEU
# beside the share that is right. And CHAIR: of the objects that an answer mentions, how many are
# not there? With *recall* beside it, for who says nothing hallucinates nothing. The official code
# takes "0 buses" for a mention of a bus; how many mentions are denied stands beside.

# %%
for name in ("base", first) if examined else ():
    found = examined[name]
    for title, rows in judge.details(found.greedy.answers, found.others):
        display(section.table([[f"{title}, {name}", *rows[0][1:]], *rows[1:]]))

# %%
errors = {name: examined[name].greedy.errors() for name in ("base", first) if examined}
if any(errors.values()):
    chart = report.error_chart(errors)
    display(section.picture(chart, f"Stated minus true count before and after ({first})"))

# %%
if examined:
    repaired, regressions = np.flatnonzero(~before & after), np.flatnonzero(before & ~after)
    examples = [*regressions[:2], *repaired[:4]][:4] or list(range(min(4, len(judge.tasks))))
    said = {name: examined[name].greedy.answers for name in ("base", first)}
    titles = [f"before: {said['base'][i]}\nafter: {said[first][i]}" for i in examples]
    pictures = [judge.tasks[i].open_images()[0] for i in examples]
    grid = report.image_grid(pictures, titles)
    display(section.picture(grid, "Held-out images, before and after", lead=True))

# %% [markdown]
# ## Is it there? (POPE)
#
# POPE asks yes or no, half of the questions about objects that are not there: drawn at random, the
# most frequent ones, or those that usually stand beside what is there. The questions come from your
# own labels, the rules are the official ones. One of these: an answer without "no" or "not" is a
# yes. What cannot be read stands beside, and the share of *yes* among the predictions: a model that
# always says yes has an F1 of .67. It needs labels of two classes or more.

# %%
polled = []
for kind in ("random", "popular", "adversarial"):
    polled += judge.polls(kind, 200)


def generate(images, prompts):
    """Greedy answers of whoever is speaking."""
    return models.generate_answers(
        model, processor, images, prompts, max_new_tokens=16, description="POPE"
    )


for name in ("base", first) if polled else ():
    with policies.use_policy(name) as model:
        answers = evaluation.official.ask_questions(polled, generate, batch=len(polled))
    grade = evaluation.official.grade_pope(polled, answers)
    display(section.table(grade.table(f"POPE, {name}")))

# %% [markdown]
# ## Published benchmarks
#
# POPE, MME, HallusionBench by yes and no; LLaVA-Bench and MMHal-Bench from a judge's reviews that
# you have (no judge is called here). Nothing of them comes with this repository: give a file of the
# hub's schema in `BENCHMARKS`, or None to download it at the pinned revision. VL-RewardBench is for
# reward models: notebook 03.

# %%
official, out = evaluation.official, files.artifacts_dir() / "benchmarks"
for benchmark, file in BENCHMARKS.items():
    questions = official.load_questions(benchmark, out, file=Path(file) if file else None)
    for name in names:
        with policies.use_policy(name) as model:
            answers = official.ask_questions(questions, generate)
        path = out / f"{benchmark}-{name.replace('/', '-')}.jsonl"
        official.write_answers(path, questions, answers)
        grade = official.GRADES[benchmark](questions, answers)
        print(name, grade, sep="\n")
        display(section.table(grade.table(f"{benchmark}, {name}")))

# %%
for benchmark, (questions_file, reviews_file) in JUDGED.items():
    questions = official.load_questions(benchmark, out, file=Path(questions_file))
    reviews = official.read_reviews(Path(reviews_file), questions)
    grade = official.GRADES[benchmark](questions, reviews)
    print(grade)
    display(section.table(grade.table(benchmark)))

# %% [markdown]
# ## The five projects
#
# What each of the student projects got, and what its task gives here, with plain fine-tuning (SFT)
# beside it. Where DPO or reinforcement learning does not beat SFT, p says so.
# `python benchmarks/tasks.py` measures the table; `TASK` of notebook 02 runs any of them here.

# %%
measured = report.task_rows(files.read_json(report.TASK_FIGURES))
if measured[1:]:
    display(section.table(measured))

# %% [markdown]
# ## What you should see
#
# On the traffic scenes, with the defaults: SFT, DPO and PPO from about a third to nearly all counts
# right, p far below .001, sampled answers twice as often right; with shuffled or blank images
# almost none, for the base as for the policies. SFT is as good as any of them: where the right
# answers are known, learning them is enough. And a price: asked for one class only, which they
# were not trained on, the policies are *worse* than the base, and a sampled answer is malformed
# more often. If notebook 05 trained on the heuristic, its policy's heuristic is up, circular, and
# its right answers down.
#
# ## Check yourself

# %%
if MODEL == "tiny" and prepared.is_traffic:
    for name in names:
        assert examined[name].blank.right_share.value < 0.5, (
            "exact without an image: the answers ignore it"
        )
    base_share = examined["base"].greedy.right_share
    assert 0.25 <= base_share.value <= 0.45, "the base counts a third right"
    for name in [name for name in names if name.startswith(("dpo", "sft"))]:
        assert examined[name].greedy.right_share.value >= 0.90, f"{name}: alignment did not work"
        formed = examined[name].sampled_mean("well formed")
        assert formed.value >= 0.90, f"{name}: sampling is broken"

# %%
if examined:
    report.add_exam_figures(
        section, policies, examined, metrics, comparisons, evidence.forgetting, against_sft
    )
print("report:", section.save())

# %% [markdown]
# ## Optional: a model for others
#
# `EXPORT` merges the first policy into its base in 16 bits and checks that both say the same;
# `PUSH_TO` uploads that, or the adapter if nothing was merged. The figures above are of the base in
# 4 bits, and only nearly those of a merged model. With both empty, nothing happens.
# `docs/export.md` says the rest.

# %%
wanted = saved[0].folder
if PUSH_TO:
    export.push_token(PUSH_TO)  # rather now than after the merge
if EXPORT:
    wanted = export.merge(None, wanted, Path(EXPORT))
if PUSH_TO:
    print(export.push(wanted, PUSH_TO))

# %% [markdown]
# ## Next
#
# Open the report; send it: it is one file. The cards in `artifacts/report/cards/` are Markdown for
# the hub. Then change one thing and run 02 → 04 → 07 again: other negatives, no SFT term, your own
# photos.
