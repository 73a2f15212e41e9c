"""Small files of the hub's columns become questions, images become files; answers go to files and back."""

import io
import json
from pathlib import Path

import numpy as np
import pytest
from datasets import Dataset, Features, Image, Value
from PIL import Image as Picture

from helpers.data import scenes
from helpers.data.labels import CountedImage
from helpers.evaluation.official import (
    GRADES,
    OFFICIAL,
    Question,
    ask,
    load,
    pope_questions,
    read_answers,
    read_questions,
    write_answers,
)
from helpers.evaluation.official.polling import presence_question
from helpers.evaluation.official.questions import COGNITION, PERCEPTION
from helpers.files import UsageError, open_image

TEXT = Value("string")


def png(color="red"):
    buffer = io.BytesIO()
    Picture.new("RGB", (8, 6), color).save(buffer, "PNG")
    return {"bytes": buffer.getvalue(), "path": None}


def parquet(path, rows):
    features = {name: Image() if name == "image" else TEXT for name in rows[0]}
    Dataset.from_list(rows, features=Features(features)).to_parquet(str(path))
    return path


def pope(number, category="random", answer="yes", image=None, **change):
    return {"id": number, "question_id": number, "question": "Is there a dog in the image?", "answer": answer, "image_source": "COCO_1", "image": image or png(), "category": category, **change}  # fmt: skip


# --- loading ---


def test_pope_from_a_parquet_file_with_images_in_it(tmp_path):
    rows = [pope("1"), pope("1", "popular", "no"), pope("2", "adversarial", "No", png("blue"))]
    folder = tmp_path / "out"
    questions = load("pope", folder, file=parquet(tmp_path / "test.parquet", rows))
    assert [(q.id, q.label, q.group) for q in questions] == [("random-1", "yes", "random"), ("popular-1", "no", "popular"), ("adversarial-2", "no", "adversarial")]  # fmt: skip
    assert questions[0].prompt == "Is there a dog in the image?"  # nothing is appended
    assert questions[0].image == questions[1].image != questions[2].image  # one file for equal images
    assert len(list((folder / "images").iterdir())) == 2
    assert open_image(questions[2].image).getpixel((0, 0)) == (0, 0, 255)
    assert read_questions(folder / "pope.jsonl") == questions
    assert json.loads((folder / "pope.jsonl").read_text().splitlines()[0])["image"].startswith("images/")
    assert load("pope", folder, file=tmp_path / "test.parquet", rows=2) == questions[:2]


def test_mme_pairs_share_a_name(tmp_path):
    rows = [
        {"question_id": "OCR/1.png", "image": png(), "question": f"{q}? Please answer yes or no.", "answer": a, "category": "OCR"}
        for q, a in [("A", "Yes"), ("B", "No")]
    ]  # fmt: skip
    questions = load("mme", tmp_path / "out", file=parquet(tmp_path / "t.parquet", rows))
    assert [q.id for q in questions] == ["OCR/1.png#1", "OCR/1.png#2"]
    assert {q.about["pair"] for q in questions} == {"OCR/1.png"} and [q.label for q in questions] == ["yes", "no"]
    assert len(PERCEPTION) == 10 and len(COGNITION) == 4


def hallusion(**change):
    row = {"category": "VS", "subcategory": "map", "visual_input": "2", "set_id": "1", "figure_id": "2", "sample_note": "", "question_id": "0", "question": "Is it?", "gt_answer_details": "It is not.", "gt_answer": "0", "filename": "./bench/VS/map/1_2.png"}  # fmt: skip
    return {**row, **change}


def test_hallusion_from_the_authors_json_and_from_a_table(tmp_path):
    (tmp_path / "bench" / "VS" / "map").mkdir(parents=True)
    (tmp_path / "bench" / "VS" / "map" / "1_2.png").write_bytes(png()["bytes"])
    rows = [hallusion(), hallusion(visual_input="0", figure_id="0", gt_answer="1", filename=None)]
    (tmp_path / "HallusionBench.json").write_text(json.dumps(rows))
    edited, plain = load("hallusion_bench", tmp_path / "out", file=tmp_path / "HallusionBench.json")
    assert (edited.id, edited.label, edited.group) == ("VS_map_1_2_0", "no", "VS") and edited.image.is_file()
    assert (plain.id, plain.label, plain.image) == ("VS_map_1_0_0", "yes", None)
    assert edited.about == {"subcategory": "map", "set_id": "1", "figure_id": "2", "question_id": "0", "gt_answer_details": "It is not.", "visual_input": "2"}  # fmt: skip
    assert read_questions(tmp_path / "out" / "hallusion_bench.jsonl") == [edited, plain]
    table = parquet(
        tmp_path / "t.parquet", [row | {"image": image} for row, image in zip(rows, [png(), png()], strict=True)]
    )
    again = load("hallusion_bench", tmp_path / "again", file=table)
    assert [q.id for q in again] == [edited.id, plain.id]
    assert (
        again[0].image.parent == tmp_path / "again" / "images" and again[1].image is None
    )  # asked without, whatever the table holds


def test_llava_bench_and_mmhal_bench(tmp_path):
    row = {"question_id": "0", "question": "Name?", "image": png(), "category": "conv", "image_id": "001", "gpt_answer": "Diamond Head.", "caption": "A view."}  # fmt: skip
    (question,) = load("llava_bench", tmp_path / "out", file=parquet(tmp_path / "t.parquet", [row]))
    assert (question.id, question.label, question.group) == ("0", "Diamond Head.", "conv")
    assert question.about == {"caption": "A view."}
    row = {"question_type": "attribute", "question_topic": "food", "image_id": "x", "image_src": "https://host/a/7_o.jpg", "image_content": ["Cat", "Dog"], "question": "Color?", "gt_answer": "Red.", "model_answer": ""}  # fmt: skip
    (tmp_path / "response_template.json").write_text(json.dumps([row, row]))
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "7_o.jpg").write_bytes(png()["bytes"])
    file = tmp_path / "response_template.json"
    first, second = load("mmhal_bench", tmp_path / "out", file=file, images=tmp_path / "photos")
    assert (first.id, second.id) == ("1", "2") and first.image == tmp_path / "photos" / "7_o.jpg"
    assert first.about == {"image_content": "Cat, Dog"} and first.group == "attribute"
    assert read_questions(tmp_path / "out" / "mmhal_bench.jsonl") == [first, second]
    with pytest.raises(UsageError, match=r"file=…/response_template.json"):
        load("mmhal_bench", tmp_path / "out")


@pytest.mark.parametrize(
    ("name", "row", "said"),
    [
        ("pope", pope("2", answer="maybe"), "unknown answer 'maybe': yes, no"),
        ("pope", pope("2", category="test"), "unknown category 'test'"),
        ("pope", pope("2", question=None), "field question is missing"),
        ("mme", pope("2", category="ocr"), "unknown category 'ocr'"),
        ("hallusion_bench", hallusion(gt_answer="2"), "unknown gt_answer '2'"),
        ("hallusion_bench", hallusion(visual_input="3"), "unknown visual_input '3'"),
        ("hallusion_bench", hallusion(filename=None), "neither image nor filename"),
        ("hallusion_bench", hallusion(filename="no.png"), "no.png does not exist"),
        ("hallusion_bench", hallusion(set_id=True), "field set_id is missing or no text"),
        ("mmhal_bench", {"image_content": "Cat"}, "image_content must be a list"),
        ("llava_bench", {"category": "llava_bench_conv"}, "unknown category 'llava_bench_conv'"),
    ],
)
def test_bad_rows_are_named_and_nothing_is_written(name, row, said, tmp_path):
    row.pop("image", None)
    path = tmp_path / "data.jsonl"
    path.write_text("\n" + json.dumps(row))
    with pytest.raises(UsageError, match="1 of 1 rows cannot be read") as caught:
        load(name, tmp_path / "out", file=path)
    assert f"{path}:2: " in str(caught.value) and said in str(caught.value)
    assert not (tmp_path / "out" / f"{name}.jsonl").exists()


def test_bad_files(tmp_path):
    with pytest.raises(UsageError, match="unknown benchmark 'mmbench'"):
        load("mmbench", tmp_path)
    with pytest.raises(UsageError, match="no such file"):
        load("pope", tmp_path, file=tmp_path / "no.parquet")
    (tmp_path / "half.jsonl").write_text('{"question_id": 1')
    with pytest.raises(UsageError, match=r"half.jsonl:1: not JSON"):
        load("pope", tmp_path, file=tmp_path / "half.jsonl")
    (tmp_path / "no.parquet").write_text("PAR1")
    with pytest.raises(UsageError, match="cannot be had"):
        load("pope", tmp_path, file=tmp_path / "no.parquet")
    (tmp_path / "empty.jsonl").write_text("")
    with pytest.raises(UsageError, match="there are no questions"):
        load("pope", tmp_path, file=tmp_path / "empty.jsonl")
    twice = parquet(tmp_path / "twice.parquet", [pope("1"), pope("1")])
    with pytest.raises(UsageError, match="2 questions have the id random-1"):
        load("pope", tmp_path, file=twice)
    (tmp_path / "q.jsonl").write_text('{"id": "1", "prompt": "?", "image": null, "label": "yes"}')
    with pytest.raises(UsageError, match=r"q.jsonl:1: group: Field required"):
        read_questions(tmp_path / "q.jsonl")


def test_the_catalogue():
    known = {"pope", "mme", "hallusion_bench", "llava_bench", "mmhal_bench"}
    assert known <= OFFICIAL.keys() == GRADES.keys(), "every benchmark has a function that grades it"
    for official in OFFICIAL.values():
        assert len(official.source.revision) == 40 and official.metrics and official.licence


# --- asking, answers ---


def asked(number):
    return [Question(id=str(i), prompt=f"{i}?", image=None, label="yes", group="random") for i in range(number)]


def test_ask_in_batches_and_in_order():
    seen = []

    def generate(images, prompts):
        seen.append(len(prompts))
        return [f"{image} {prompt}" for image, prompt in zip(images, prompts, strict=True)]

    assert ask(asked(5), generate, batch=2) == {str(i): f"None {i}?" for i in range(5)} and seen == [2, 2, 1]
    with pytest.raises(UsageError, match="gave 1 answers to 2 questions"):
        ask(asked(2), lambda images, prompts: ["Yes"])


def test_answers_come_back(tmp_path):
    questions, answers = asked(3), {"2": "", "0": "Ja „so“\n", "1": "No"}
    path = write_answers(tmp_path / "answers.jsonl", questions, answers)
    assert path.read_text().splitlines()[0] == '{"id": "0", "answer": "Ja „so“\\n"}'
    assert read_answers(path, questions) == answers
    with pytest.raises(UsageError, match="1 of 3 questions have no answer"):
        write_answers(path, questions, {"0": "", "1": ""})


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ('{"id": "9", "answer": ""}', r"a.jsonl:2: no question has the id '9'"),
        ('{"id": "0", "answer": "again"}', r"a.jsonl:2: a second answer for the id 0"),
        ('{"id": "1", "answer": null}', r"a.jsonl:2: a line must be"),
        ('{"id": "1", "answer": "a", "x": "b"}', r"a.jsonl:2: a line must be"),
        ('["1", "Yes"]', r"a.jsonl:2: a row is an object"),
        ("", r"1 of 2 questions have no answer, the first 1"),
    ],
)
def test_bad_answers(line, said, tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_text('{"id": "0", "answer": "Yes"}\n' + line)
    with pytest.raises(UsageError, match=said):
        read_answers(path, asked(2))


# --- polling ---


def item(name, *present):
    counts = {cls: int(cls in present) for cls in "abcd"}
    return CountedImage(Path(name), counts, name)


ITEMS = [item("1", "a", "b"), item("2", "a", "b"), item("3", "c", "d"), item("4", "c", "d"), item("5", "c", "d"), item("6", "a")]  # fmt: skip


def asked_about(questions, name):
    return [(q.prompt.split()[3], q.label) for q in questions if q.image.stem == name]


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("strategy", ["random", "popular", "adversarial"])
def test_polling_is_true_and_half_yes(strategy, seed):
    questions = pope_questions(ITEMS, strategy, per_image=1, seed=seed)
    assert [q.label for q in questions] == ["yes", "no"] * 6 and {q.group for q in questions} == {strategy}
    counts = {item.path: item.counts for item in ITEMS}
    for q in questions:
        assert (counts[q.image][q.prompt.split()[3]] > 0) == (q.label == "yes")
    assert questions == pope_questions(ITEMS, strategy, per_image=1, seed=seed)
    assert len({q.id for q in questions}) == 12


@pytest.mark.parametrize("seed", range(5))
def test_polling_of_the_image_with_one_object(seed):
    # c and d are in three images each, c seen first; a's only companion is b
    popular = pope_questions(ITEMS, "popular", per_image=1, seed=seed)
    assert asked_about(popular, "6") == [("a", "yes"), ("c", "no")]
    adversarial = pope_questions(ITEMS, "adversarial", per_image=1, seed=seed)
    assert asked_about(adversarial, "6") == [("a", "yes"), ("b", "no")]


def test_polling_never_asks_twice_and_says_what_it_leaves_out(capsys):
    questions = pope_questions(ITEMS, "adversarial", per_image=2)
    assert "1 of 6 images left out" in capsys.readouterr().out  # the sixth has one object only
    for name in "12345":
        assert sorted(word for word, _ in asked_about(questions, name)) == list("abcd")
    with pytest.raises(UsageError, match="no image has 3 objects"):
        pope_questions(ITEMS, "random")
    with pytest.raises(UsageError, match="unknown strategy 'rare'"):
        pope_questions(ITEMS, "rare")


def test_polling_leaves_out_objects_that_never_occur():
    items = [item("1", "a"), item("2", "b")]
    asked = {q.prompt.split()[3] for q in pope_questions(items, "random", per_image=1)}
    assert asked == {"a", "b"}


def test_the_question_is_that_of_the_scenes():
    for seed in range(20):
        question = scenes.make_question(scenes.make_scene(seed), "presence", np.random.default_rng(seed))
        kind = question.prompt.split()[3]
        assert kind in scenes.VEHICLE_KINDS and presence_question(kind) == question.prompt
    items = [CountedImage(Path(f"{seed}"), scenes.make_scene(seed).counts, "") for seed in range(20)]
    words = {q.prompt.removeprefix("Is there a ").removesuffix(" in the image?") for q in pope_questions(items, "random", 1)}  # fmt: skip
    assert words == set(scenes.VEHICLE_KINDS)
    assert presence_question("orange") == "Is there an orange in the image?"
