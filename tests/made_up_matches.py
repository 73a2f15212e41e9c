"""Matches of the arena between two models that do not exist."""

from PIL import Image

from helpers.data import ask
from helpers.evaluation import arena

NAMES = ("zeta-base", "alpha-policy")


def make(folder, number=3, name="records.jsonl", texts=("old", "new")):
    """`number` records; the file is in a folder of its own, beside that of the picture."""
    (folder / "images").mkdir(exist_ok=True)
    Image.new("RGB", (64, 48), (90, 120, 90)).save(folder / "images" / "photo.png")
    answers = {
        who: [f"{text} answer to {i}" for i in range(number)]
        for who, text in zip(NAMES, texts, strict=True)
    }
    picture = folder / "images" / "photo.png"
    tasks = [ask(f"How many in {i}?", [picture], group="group 0") for i in range(number)]
    return arena.build_matches(tasks, answers, NAMES, records_path=folder / "arena" / name)
