"""Questions about drawn pictures, with or without a truth."""

from PIL import Image

from helpers.data import ask


def tasks_about(folder, photos, facts=None, kind="none"):
    """A question for each name in `photos`; equal names are one photo."""
    tasks = []
    for number, photo in enumerate(photos):
        path = folder / f"{photo}.png"
        if not path.exists():
            Image.new("RGB", (64, 48), (40 * (number % 6), 120, 90)).save(path)
        tasks.append(ask(f"What is in it? ({number})", [path], facts, kind, photo))
    return tasks
