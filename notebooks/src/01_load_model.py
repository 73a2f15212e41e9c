# %% [markdown]
# # 01 · Load a 4-bit vision-language model and look inside
#
# **Goal.** Load a Qwen2-VL in 4 bits, see how a picture becomes tokens, and find out what the model
# gets wrong, which is what the later notebooks repair.
#
# **Needs** nothing. **Makes** one section of the report. **Takes** about 1 minute on a laptop CPU.
#
# The default is a tiny Qwen2-VL that comes with this repository and runs offline. It is made of the
# same classes as the real one, so every cell below also runs `MODEL = "qwen2-vl-2b"` on a GPU.

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
# `MODEL` is a preset (`tiny`, `qwen2-vl-2b`, …), a folder with a checkpoint, or a hub id. `DATA` is
# a folder of images with YOLO labels, as Roboflow exports it: put your own here.

# %% tags=["parameters"]
MODEL = "tiny"
DATA = "data/traffic"

# %%
from collections import Counter

from torch import nn

from helpers import data, evaluation, files, machine, models, report

section = report.Section("01_load_model", "The model before training")

# %% [markdown]
# ## Is the machine enough?
#
# The rows say what this machine is. The table says, by arithmetic and before anything is loaded,
# how many GB and about how many minutes each stage takes, and what was changed so that it fits: the
# batch, and where that is not enough, the size of the images. Every notebook asks this first, for
# the stages that it runs; `plan` holds the settings that fit.

# %%
plan = machine.check_machine(MODEL)

# %% [markdown]
# ## Load it in 4 bits
#
# Weights are stored as 4-bit NF4 numbers with one scale for every 64 of them, and multiplied back
# to full precision when they are used. Only the language model's projections are quantised. The
# vision tower keeps its precision: it is small, and everything the model can know about the image
# goes through it. The arithmetic for Qwen2-VL-2B: 1.3 billion weights at half a byte and 0.9
# billion (embeddings, vision) at two are about 2.5 GB instead of 4.4, so a 16 GB card has room to
# train. A model of 135 million weights needs none of this: `smollm2-scenes` is loaded as it is.

# %%
model, processor = models.load_model(MODEL, max_pixels=plan.max_pixels)
full, _ = models.load_model(MODEL, four_bit=False)
before, after = models.weight_megabytes(full), models.weight_megabytes(model)
print(f"{type(model).__name__}: {before:.2f} MB in full, {after:.2f} MB as it is loaded")

# %% [markdown]
# Which weights became 4-bit? Count the layer types of the language model, and of all that is not
# it: the vision tower, and what leads from there. `Linear4bit` should be in the first alone.

# %%
language = set(model.get_decoder().modules())
layers = Counter()
for module in models.backbone_of(model).modules():
    if isinstance(module, nn.Linear):
        layers[type(module).__name__, "language" if module in language else "vision"] += 1
print(layers)

# %%
del full

# %% [markdown]
# ## Look at the data before using it
#
# Each image comes with a label file, one line for every object. The counts of the lines are the
# ground truth for everything that follows.

# %%
items = data.read_counts(ROOT / DATA, "valid")
print(f"{len(items)} validation images, classes {list(items[0].counts)}")
titles = [
    ", ".join(f"{n} {c}" for c, n in item.counts.items() if n) or "nothing" for item in items[:8]
]
report.image_grid([files.open_image(item.path) for item in items[:8]], titles)

# %% [markdown]
# ## Ask one question

# %%
image, question = files.open_image(items[1].path), data.count_question(list(items[1].counts))
print(question)
print("model:", models.generate_answers(model, processor, [image], [question])[0])
print("truth:", items[1].counts)

# %% [markdown]
# ## What the model really reads
#
# A chat model was trained on one exact arrangement of special tokens, its *chat template*. The
# processor writes it; nobody should write it by hand. A placeholder stands for the picture: in
# Qwen2-VL's, one `<|image_pad|>` between `<|vision_start|>` and `<|vision_end|>`.

# %%
print(models.render(processor, question))

# %% [markdown]
# A well-known student project wrote its prompts by hand, as `<|user|> … <image> <|assistant|>`.
# That is another model's template: to Qwen2-VL it is plain text, with no place for the picture, and
# to a model whose placeholder is called `<image>`, one place where the picture needs many. Training
# ran for 420 steps without an error, and the model never saw an image.

# %%
hand_written = "<|user|>\nPlease count the vehicles. <image>\n<|assistant|>\n"
ids = processor.tokenizer(hand_written)["input_ids"]
by_hand = ids.count(models.image_token_id(processor))
print(f"image tokens in the hand-written prompt: {by_hand}")

# %% [markdown]
# ## From pixels to tokens
#
# Qwen2-VL cuts the image into patches of 14 × 14 pixels and merges 2 × 2 patches into one visual
# token, so one token stands for 28 × 28 = 784 pixels and
#
# $$\text{visual tokens} = \frac{\text{height} \times \text{width}}{784}.$$
#
# The processor first rounds both sides to multiples of 28 and shrinks the image if it has more than
# `max_pixels`. Visual tokens are what costs memory: a 448 × 448 image is 256 of them. The cell
# above says how many are used here and how many would fit; for another limit, give it `max_pixels`.
#
# Other models cut otherwise: LLaVA-1.5 makes 576 tokens of every image, whatever its size, and
# SmolVLM makes several tiles of a large one. In each, the prompt has as many places as the vision
# tower has vectors.

# %%
inputs = models.encode(processor, [question], [image])
tokens = models.count_image_tokens(processor, inputs)[0]
print({name: tuple(value.shape) for name, value in inputs.items()})
kept = models.ImageFeatures(model, processor)
prompts = models.encode_prompts(processor, [models.render(processor, question)], [[image]], kept)
vectors = models.image_vectors(prompts.features[0])
print(f"{image.size} image → {tokens} places in the prompt")
print(f"vision tower: {vectors.shape[0]} vectors of {vectors.shape[1]} numbers")

# %%
for size in ((112, 112), (224, 112), (640, 480), (1920, 1080)):
    resized = models.encode(processor, [question], [image.resize(size)])
    number = models.count_image_tokens(processor, resized)[0]
    print(f"{size[0]:>5} × {size[1]:<5} → {number:>4} visual tokens")

# %% [markdown]
# ## Greedy and sampled answers
#
# Greedy decoding takes the likeliest token every time. Sampling at temperature 1 draws from the
# model's own distribution; preference learning needs these different answers to choose between.

# %%
print("greedy :", models.generate_answers(model, processor, [image], [question])[0])
for text in models.generate_answers(
    model, processor, [image] * 4, [question] * 4, temperature=1.0, seed=1
):
    print("sampled:", text)

# %% [markdown]
# ## How good is it?
#
# An answer is *exact* if every count in it is true, and *well formed* if it is exactly the sentence
# asked for, whatever the numbers. Intervals are 95 % Wilson intervals: with 64 images they are
# wide, so this is a first look and not yet a result.

# %%
judge = evaluation.judges(data.counting_tasks(items))
greedy = evaluation.evaluate_tasks(model, processor, judge)
sampled = evaluation.evaluate_tasks(model, processor, judge, temperature=1.0)
for name, result in (("greedy", greedy), ("sampled", sampled)):
    print(name, "exact:", result.right_share, " well formed:", result.share("well formed"))

# %% [markdown]
# The interesting question is *how* it is wrong. Stated minus true count, class by class:

# %%
section.picture(
    report.error_chart({"base": greedy.errors()}),
    "Stated minus true count of the base, validation images",
)

# %% [markdown]
# The tiny model counts cars and buses right and misses motorcycles and bicycles, always downwards.
# It learnt this from labels whose annotator was careless about small things. Nothing is wrong with
# its eyes: it has converged, to the wrong behaviour. This is the kind of fault that preference
# training is for.
#
# ## Does the answer come from the image?
#
# Ask the same questions with the images exchanged. If the exact share does not collapse to chance,
# the model is guessing from the question.

# %%
shuffled = evaluation.evaluate_tasks(model, processor, judge, images="shuffled")
section.say(
    f"Base on {len(items)} validation images: exact {greedy.right_share}; with shuffled images "
    f"{shuffled.right_share}, where chance is {judge.chance:.3f}."
)

# %% [markdown]
# ## What you should see
#
# With the defaults: the 4-bit model a good deal smaller than the full one, 16 visual tokens for a
# 112 × 112 image, all greedy answers well formed, about a third of them exact, errors only among
# two-wheelers, and almost none exact with shuffled images.
#
# ## Check yourself

# %%
assert tokens == len(vectors) > 0, "a place in the prompt for each vector of the vision tower"
assert by_hand < tokens, "the hand-written template does not hold the image"
in_4_bits = models.in_four_bits(MODEL) and models.has_four_bits()
assert layers["Linear", "vision"] > 0 and bool(layers["Linear4bit", "language"]) == in_4_bits
assert not layers["Linear4bit", "vision"], "the vision tower is not quantised"
if MODEL == "tiny" and DATA == "data/traffic":
    assert greedy.share("well formed").value == 1.0, (
        "the embedded base always answers in the right form"
    )
    assert shuffled.right_share.value < 0.1 < greedy.right_share.value, (
        "its answers come from the image"
    )

# %%
section.add_share("base_exact_validation", greedy.right_share)
print("report:", section.save())

# %% [markdown]
# ## Next
#
# [02 · Build preferences](02_build_preferences.ipynb) turns labels and the model's own mistakes
# into pairs of a better and a worse answer.
