"""Small files of preferences in which nothing is wrong, and what the doctor says of others."""

import json

from PIL import Image

QUESTION = "How many cars are in the image?"
# The shortest record, and a ranking of four answers with a tie.
SHORT = {
    "image": "a.png",
    "prompt": "How many cars?",
    "chosen": "There are 2.",
    "rejected": "There are 3.",
}
RANKED = {
    "images": ["a.png"],
    "prompt": [{"role": "user", "content": "How many cars?"}],
    "answers": [{"text": "3"}, {"text": "2"}, {"text": "4"}, {"text": "two"}],
    "ranking": [[1, 3], [0], [2]],
}


def row(i, **change):
    """Record number i of a file in which nothing is wrong; the better answer stands first in every other one."""
    texts = [f"There are {i + 10} cars.", f"There are {99 - i} cars."]
    record = {
        "images": [f"images/{i}.png"],
        "prompt": [{"role": "user", "content": QUESTION}],
        "answers": [{"text": text} for text in (texts if i % 2 else texts[::-1])],
        "ranking": [[0], [1]] if i % 2 else [[1], [0]],
        "id": f"r{i}",
        "group": f"photo-{i}",
    }
    return {**record, **change}


def draw(path, number, size=(30, 20)):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, (number % 256, 7, 7)).save(path)


def write(path, rows):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(
        "".join(f"{r if isinstance(r, str) else json.dumps(r)}\n" for r in rows), encoding="utf-8"
    )
    return path


def told(report):
    return [(finding.kind, finding.line) for finding in report.findings]


def messages(report):
    return [finding.message for finding in report.findings]


def answers(*texts, scores=(None, None, None)):
    return [{"text": text, "score": score} for text, score in zip(texts, scores, strict=False)]
