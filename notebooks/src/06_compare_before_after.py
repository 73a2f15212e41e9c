# %% [markdown]
# # 06 · Compare before and after, and believe only what the test shows
#
# **Goal.** Ask the base and the trained policies about held-out images: is the difference real, does
# it hold for sampled answers, and do the answers still come from the image?
#
# **Needs** the adapters of notebook 04. **Makes** the main figures of the report. **Takes** about 1
# minute on a laptop CPU.

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
# `DATA = None` takes the folder that notebook 02 used. `OWN_IMAGE` is the path of any picture of
# yours; without one, a scene that no notebook has used is drawn.

# %% tags=["parameters"]
MODEL = "tiny"
DATA = None
OWN_IMAGE = None
ADAPTERS = "dpo"  # folder in artifacts/ whose sub-folders hold adapters

# %%
from pathlib import Path

import numpy as np
from IPython.display import HTML, display

from helpers import plots, widgets
from helpers.counting import count_question
from helpers.evaluation import answer_records, chance_exact, evaluate_counting
from helpers.labels import assert_no_photo_in_both, evaluation_split, read_counts
from helpers.preferences import read_records
from helpers.report import Section
from helpers.runtime import UsageError, artifact, artifacts_dir, open_image, read_json
from helpers.scenes import SPLIT_SEEDS, draw_scene, make_scene
from helpers.statistics import binomial_p, mcnemar_p

section = Section("06_compare_before_after", "Before and after, on held-out images")

# %% [markdown]
# ## The held-out images
#
# These images were in neither training nor validation, and no setting was chosen on them.

# %%
classes = None
if DATA is None:
    source = artifact("preferences/about.json", "notebook 02", lambda: ROOT / "data" / "traffic")
    about = {"data": source, "classes": None} if source.is_dir() else read_json(source)
    DATA, classes = about["data"], about["classes"]
folder = ROOT / DATA
split = evaluation_split(folder)
items = read_counts(folder, split, classes)
assert_no_photo_in_both(read_counts(folder, "train", classes), items)
print(f"{len(items)} images of {folder.name}/{split}, classes {list(items[0].counts)}")
if split == "valid":
    section.say(f"{folder.name} has no test split: these are its validation images, so read the figures with care.")

# %% [markdown]
# ## One base, several policies
#
# The base is loaded once. Each adapter is added to it under its own name and switched on when its
# turn comes; with all of them off, the base answers.

# %%
trained = {p.parent: read_json(p) for p in sorted((artifacts_dir() / ADAPTERS).glob("*/about.json"))}
folders = [path for path, about in trained.items() if about["base"] == MODEL]
for path in trained.keys() - set(folders):
    print(f"⚠️  leaving out {path.name}: it was trained on {trained[path]['base']!r}, not {MODEL!r}")
if not folders:
    raise UsageError(f"no adapter of {MODEL!r} in {artifacts_dir() / ADAPTERS}. Run notebook 04 first.")
model, processor = models.load_model(MODEL)
for path in folders:
    model = models.load_adapter(model, path, path.name)
policies = [path.name for path in folders]
print("policies:", ", ".join(policies))

# %% [markdown]
# ### Is what was saved what was trained?
#
# Notebook 04 noted the greedy answers of each policy before saving it. This is another process, with
# the adapter read back from disk: the answers must be the same, letter by letter.

# %%
for path in folders:
    noted = read_json(path / "validation_answers.json")
    source = Path(noted["records"])
    model.set_adapter(path.name)
    answers = answer_records(model, processor, source, read_records(source))
    same = sum(a == b for a, b in zip(answers, noted["answers"], strict=True))
    assert same == len(answers), f"{path.name}: {len(answers) - same} answers changed on reloading"
    section.say(f"{path.name}: reloaded in a new process, {same} of {len(answers)} greedy answers are identical.")

# %% [markdown]
# ## Ask everyone the same questions
#
# Four conditions: greedy answers, answers sampled at temperature 1, greedy answers with the images
# exchanged between items, and greedy answers to grey images.

# %%
CONDITIONS = {
    "greedy": {},
    "sampled at T = 1": {"temperature": 1.0},
    "greedy, images shuffled": {"images": "shuffled"},
    "greedy, images blank": {"images": "blank"},
}


def ask_everything():
    """All conditions with the model as it is."""
    return {name: evaluate_counting(model, processor, items, **options) for name, options in CONDITIONS.items()}


with models.adapter_off(model):
    results = {"base": ask_everything()}
for name in policies:
    model.set_adapter(name)
    results[name] = ask_everything()

# %%
rows = [["model", *(f"exact, {name}" for name in CONDITIONS), "well formed, greedy", "well formed, sampled"]]
for name, found in results.items():
    formed = [found[condition].well_formed_share for condition in ("greedy", "sampled at T = 1")]
    rows.append(
        [name, *(result.exact_share.short() for result in found.values()), *(share.short() for share in formed)]
    )
section.table(rows)

# %%
measures = {}
for name, found in results.items():
    measures[name] = {f"exact, {condition}": result.exact_share for condition, result in found.items()}
    measures[name]["well formed, sampled"] = found["sampled at T = 1"].well_formed_share
section.picture(
    plots.interval_chart(measures, f"{len(items)} held-out images"),
    "Shares with 95 % intervals, base and every trained seed",
)

# %% [markdown]
# ## Is the difference real?
#
# Base and policy answered the *same* questions, so compare them item by item. McNemar's test looks
# only at the items on which they disagree: if training did nothing, broken → fixed and fixed → broken
# would be equally frequent.

# %%
base = results["base"]["greedy"]
p_values = {}
for name in policies:
    policy = results[name]["greedy"]
    fixed, broken = int((~base.exact & policy.exact).sum()), int((base.exact & ~policy.exact).sum())
    p_values[name] = mcnemar_p(base.exact, policy.exact)
    verdict = "no difference can be claimed" if p_values[name] >= 0.05 else ("better" if fixed > broken else "WORSE")
    section.conclude(
        f"Policy {name}: answers with every count right, {base.exact_share} before → {policy.exact_share} after; "
        f"{fixed} fixed, {broken} broken, exact McNemar p = {p_values[name]:.2g}: {verdict}."
    )

# %% [markdown]
# ## Does the answer come from the image?
#
# With shuffled images an honest model falls to chance: the share of images whose counts happen to
# equal those of another image. A model that keeps its score has learnt something about the questions.

# %%
chance = chance_exact(items)
for name, found in results.items():
    shuffled = found["greedy, images shuffled"]
    p = binomial_p(int(shuffled.exact.sum()), len(items), chance)
    right = found["greedy"].exact_share
    if right.low <= shuffled.exact_share.high:
        verdict = "it cannot be shown that the answers depend on the image"
    elif p >= 0.05:
        verdict = "it falls to chance, so the answers come from the image"
    else:
        verdict = f"it falls, but differs from chance (p = {p:.2g})"
    section.conclude(f"{name} with shuffled images: {shuffled.exact_share}, chance {chance:.4f}: {verdict}.")

# %% [markdown]
# ## What changed, class by class

# %%
first = policies[0]
errors = {"base": base.errors(), first: results[first]["greedy"].errors()}
section.picture(plots.error_chart(errors), f"Stated minus true count before and after ({first})")

# %% [markdown]
# ## Look at the answers
#
# Regressions first: items that the base had right and the policy has wrong. An average hides them.

# %%
after = results[first]["greedy"]
regressions = np.flatnonzero(base.exact & ~after.exact)
repaired = np.flatnonzero(~base.exact & after.exact)
print(f"right → wrong: {len(regressions)}, wrong → right: {len(repaired)}")
shown = [*regressions[:3], *repaired[:4]] or [0]
HTML(widgets.comparison_table(items, base.answers, after.answers, shown))

# %% [markdown]
# The same for the report: four images whose answer changed from wrong to right (or the first four, if
# there are none).

# %%
examples = [*repaired[:4]] or list(range(min(4, len(items))))
titles = [f"before: {base.answers[i]}\nafter: {after.answers[i]}" for i in examples]
section.picture(
    plots.image_grid([open_image(items[i].path) for i in examples], titles),
    "Held-out images, before and after",
    lead=True,
)

# %% [markdown]
# ## Try it yourself
#
# Move the slider to another held-out image, upload a picture, change the question or the temperature.
# Words that only one of the two answers has are marked.

# %%
model.set_adapter(first)
comparison = widgets.Comparison(model, processor, items)
display(comparison.show())

# %% [markdown]
# ## An image of your own
#
# The same without widgets. Set `OWN_IMAGE` to a file; a photo will look strange to the tiny model,
# which has only ever seen drawings.

# %%
own = open_image(Path(OWN_IMAGE)) if OWN_IMAGE else draw_scene(make_scene(SPLIT_SEEDS["test"][-1]))
question = count_question(list(items[0].counts))
with models.adapter_off(model):
    before_own = models.generate_answers(model, processor, [own], [question])[0]
after_own = models.generate_answers(model, processor, [own], [question])[0]
print(f"{question}\n  before: {before_own}\n  after:  {after_own}")
own.resize((224, round(224 * own.height / own.width)))

# %% [markdown]
# ## What you should see
#
# With the defaults: greedy exact from about a third to over .9, McNemar's p far below .001; sampled
# answers at least 90 % well formed; with shuffled or blank images almost none exact, for the base as
# for the policy; errors of two-wheelers gone.
#
# ## Check yourself

# %%
for name in policies:
    shares = results[name]
    assert shares["greedy, images blank"].exact_share.value < 0.5, "exact without an image: the answers ignore it"
if MODEL == "tiny" and folder.name == "traffic":
    assert 0.25 <= base.exact_share.value <= 0.45, "the base counts a third right"
    for name in policies:
        assert results[name]["greedy"].exact_share.value >= 0.90, f"{name}: alignment did not work"
        assert results[name]["sampled at T = 1"].well_formed_share.value >= 0.90, f"{name}: sampling is broken"

# %%
section.share("base_exact", base.exact_share)
section.share("base_exact_sampled", results["base"]["sampled at T = 1"].exact_share)
section.share("base_wellformed_sampled", results["base"]["sampled at T = 1"].well_formed_share)
section.share("base_exact_shuffled_images", results["base"]["greedy, images shuffled"].exact_share)
for name, path in zip(policies, folders, strict=True):
    seed, suffix = trained[path]["seed"], "" if name == first else f"_{name.replace('-', '_')}"
    shares = results[name]
    section.share(f"dpo_exact{suffix}", shares["greedy"].exact_share, seed)
    section.share(f"dpo_exact_sampled{suffix}", shares["sampled at T = 1"].exact_share, seed)
    section.share(f"dpo_wellformed_sampled{suffix}", shares["sampled at T = 1"].well_formed_share, seed)
    section.share(f"dpo_exact_shuffled_images{suffix}", shares["greedy, images shuffled"].exact_share, seed)
    section.single(f"dpo_mcnemar_p{suffix}", p_values[name], seed)
print("report:", section.save())

# %% [markdown]
# ## Next
#
# Change one thing and run 02 → 04 → 06 again: other negatives, no SFT term, your own photos. The
# page `artifacts/report/index.html` holds the figures of your last run.
