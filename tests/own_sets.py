"""Small data sets as students and their tools bring them, about drawn houses and boats."""

import csv
import io
import json
import random

from PIL import Image, ImageDraw

from helpers import data, evaluation

COLOURS = {"red": "#c03028", "blue": "#2850b0", "green": "#38803c", "yellow": "#e0c030"}
KINDS = ("house", "boat")


def draw(kind, colour, number):
    """A picture of `number` houses or boats of one colour."""
    image = Image.new("RGB", (112, 112), "#d8e8f0")
    pen = ImageDraw.Draw(image)
    for place in range(number):
        x, y, paint = 6 + 36 * place, 40 + 10 * (place % 2), COLOURS[colour]
        if kind == "house":
            pen.rectangle([x, y + 14, x + 26, y + 40], fill=paint)
            pen.polygon([(x, y + 14), (x + 13, y), (x + 26, y + 14)], fill="#604030")
        else:
            pen.polygon([(x, y + 30), (x + 28, y + 30), (x + 22, y + 40), (x + 6, y + 40)], paint)
            pen.line([(x + 14, y + 30), (x + 14, y + 4)], fill="#604030", width=2)
    return image


def scenes(folder, number):
    """Draw pictures 0.jpg, 1.jpg, …; what is on each: (name, kind, colour, number)."""
    folder.mkdir(parents=True, exist_ok=True)
    drawn = []
    for place in range(number):
        kind, colour = KINDS[place % 2], list(COLOURS)[place % 4]
        shown = 1 + place % 3
        # a spot of its own, so that no two pictures are one photo
        picture = draw(kind, colour, shown)
        picture.putpixel((place % 112, place // 112), (0, 0, 0))
        picture.save(folder / f"{place}.jpg", quality=95)
        drawn.append((f"{place}.jpg", kind, colour, shown))
    return drawn


def told(kind, colour, number):
    """A sentence that is true, and one that is not."""
    plural = "s" if number > 1 else ""
    other = KINDS[1 - KINDS.index(kind)]
    wrong = list(COLOURS)[(list(COLOURS).index(colour) + 1) % 4]
    return f"There are {number} {colour} {kind}{plural}.", f"I see a {wrong} {other}."


def write_lines(path, rows):
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
    return path


def free_text(folder, number=40):
    """A/B preferences of free text, as a student project's labelling page wrote them."""
    rng = random.Random(0)
    rows = []
    for name, *scene in scenes(folder, number):
        good, bad = told(*scene)
        first = rng.random() < 0.5
        rows.append(
            {
                "image_path": name,
                "instruction": "Describe the main object.",
                "response_a": good if first else bad,
                "response_b": bad if first else good,
                "preference": "response_a" if first else "response_b",
            }
        )
    return write_lines(folder / "preferences.jsonl", rows)


def genome_questions(folder, number=40):
    """Two questions with short answers a picture, as Visual Genome's question_answers.json."""
    entries = []
    for place, (name, kind, colour, _) in enumerate(scenes(folder / "images", number)):
        asked = [
            (f"What color is the {kind}?", f"{colour.title()}."),
            ("What is it?", f"A {kind}."),
        ]
        qas = []
        for turn, (question, answer) in enumerate(asked):
            qa = {"qa_id": 2 * place + turn, "image_id": int(name.split(".")[0])}
            qas.append({**qa, "question": question, "answer": answer})
        entries.append({"id": int(name.split(".")[0]), "qas": qas})
    path = folder / "question_answers.json"
    path.write_text(json.dumps(entries))
    return folder


def rlhf_v(folder, number=36):
    rows = []
    for place, (name, *scene) in enumerate(scenes(folder, number)):
        good, bad = told(*scene)
        text = {"question": "What is shown?", "chosen": good, "rejected": bad}
        rows.append(
            {
                "ds_name": "RLHF-V",
                "image": name,
                "text": json.dumps(text),
                "origin_dataset": "drawn",
                "origin_split": json.dumps({"model": "m", "type": "detailed"}),
                "idx": place,
                "image_path": name,
            }
        )
    return write_lines(folder / "rlhf_v.jsonl", rows)


def rlaif_v(folder, number=36):
    rows = []
    for place, (name, *scene) in enumerate(scenes(folder, number)):
        good, bad = told(*scene)
        rows.append(
            {
                "ds_name": "RLAIF-V",
                "image": name,
                "question": "What is shown?",
                "chosen": good,
                "rejected": bad,
                "origin_dataset": "drawn",
                "origin_split": json.dumps({"model": "m", "type": "detailed"}),
                "idx": str(place),
                "image_path": name,
            }
        )
    return write_lines(folder / "rlaif_v.jsonl", rows)


def vlfeedback(folder, number=36):
    """Four rated answers a picture, by three criteria."""
    rows = []
    for place, (name, *scene) in enumerate(scenes(folder, number)):
        good, bad = told(*scene)
        completions = []
        texts = [good, bad, "A picture.", f"{good} {bad}"]
        for rank, (model, text) in enumerate(zip("abcd", texts, strict=True)):
            ratings = {}
            for criterion in ("Helpfulness", "Ethical Considerations", "Visual Faithfulness"):
                ratings[criterion] = {"Rating": str(5 - rank), "Rationale": ""}
            completions.append({"model": model, "response": text, "annotations": ratings})
        rows.append(
            {"id": str(place), "image": name, "prompt": "Describe it.", "completions": completions}
        )
    return write_lines(folder / "vlfeedback.jsonl", rows)


def mmpr(folder, number=36):
    """Reasoning that ends in an answer, against reasoning that ends in another."""
    rows = []
    for name, kind, colour, shown in scenes(folder, number):
        steps = f"I count the {kind}s one by one. All are {colour}."
        rows.append(
            {
                "image": name,
                "question": f"<image>\nHow many {kind}s are there?",
                "chosen": f"{steps} Final answer: {shown}",
                "rejected": f"{steps} Final answer: {shown + 1}",
            }
        )
    return write_lines(folder / "mmpr.jsonl", rows)


def csv_of_rankings(folder, number=36):
    """Three answers and their ranks in a table, as a German Excel saves it."""
    text = io.StringIO()
    table = csv.writer(text, delimiter=";")
    table.writerow(["Bild", "Frage", "Antwort 1", "Antwort 2", "Antwort 3", "Rangfolge"])
    for name, *scene in scenes(folder, number):
        good, bad = told(*scene)
        table.writerow([name, "Was ist zu sehen?", bad, f"Für mich: {good}", good, "3,2,1"])
    path = folder / "rankings.csv"
    path.write_bytes(text.getvalue().encode("cp1252"))
    return path


def four_fields(folder, number=5):
    """Five lines of image, prompt, chosen, rejected."""
    rows = []
    for name, *scene in scenes(folder, number):
        good, bad = told(*scene)
        rows.append({"image": name, "prompt": "What is it?", "chosen": good, "rejected": bad})
    return write_lines(folder / "five.jsonl", rows)


def several_images_and_turns(folder, number=36):
    """Questions about two pictures, asked in a second turn, with the right answer."""
    drawn = scenes(folder, 2 * number)
    rows = []
    # each picture is in one question only, else all would be about one photo
    for (name, _, _, shown), (other, _, _, more) in zip(drawn[::2], drawn[1::2], strict=True):
        answers = ["The first.", "The second."]
        right, wrong = answers if shown > more else answers[::-1]
        turns = [
            {"role": "user", "content": "Here are two pictures."},
            {"role": "assistant", "content": "I see them."},
            {"role": "user", "content": "Which of them shows more?"},
        ]
        rows.append(
            {
                "images": [name, other],
                "prompt": turns,
                "answers": [{"text": right}, {"text": wrong}],
                "ranking": [[0], [1]],
                "truth": right,
                "group": name,
            }
        )
    return write_lines(folder / "records.jsonl", rows)


def arena_export(folder, number=36):
    """What a reader's votes in the blind arena of notebook 06 leave: the pairs of a next round."""
    tasks, answers = [], {"base": [], "dpo/seed-0": []}
    for name, *scene in scenes(folder, number):
        good, bad = told(*scene)
        tasks.append(data.ask("What is shown?", [folder / name], group=name))
        answers["base"].append(bad)
        answers["dpo/seed-0"].append(good)
    names = ("base", "dpo/seed-0")
    path = folder / "arena" / "records.jsonl"
    matches = evaluation.build_matches(tasks, answers, names, records_path=path)
    votes = data.Votes(folder / "arena" / "votes.jsonl", matches, annotator="me")
    while item := votes.next():
        # the true sentence says how many there are
        best = next(k for k, text in enumerate(item.texts) if text.startswith("There are"))
        votes.vote(item, "ranked", [[best], [1 - best]])
    evaluation.export_records(matches, votes.path, folder / "next_round.jsonl")
    return folder / "next_round.jsonl"


def one_object(folder, number=40):
    """Labels of one class of which every image shows one: licence plates, each cut out."""
    scenes(folder / "images", number)
    (folder / "labels").mkdir()
    (folder / "classes.txt").write_text("plate\n")
    for place in range(number):
        (folder / "labels" / f"{place}.txt").write_text("0 0.5 0.5 0.25 0.25\n")
    return folder


SETS = {
    made.__name__: made
    for made in (
        free_text,
        genome_questions,
        rlhf_v,
        rlaif_v,
        vlfeedback,
        mmpr,
        csv_of_rankings,
        four_fields,
        several_images_and_turns,
        arena_export,
        one_object,
    )
}
