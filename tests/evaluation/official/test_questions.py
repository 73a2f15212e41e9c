"""Small files of the hub's columns become questions, and their images files."""

import io
import json

import pytest
from datasets import Dataset, Features, Image, Value
from PIL import Image as Picture

from helpers.evaluation.official import GRADES, OFFICIAL_BENCHMARKS, load_questions
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


def test_pope_from_a_parquet_file_with_images_in_it(tmp_path):
    rows = [pope("1"), pope("1", "popular", "no"), pope("2", "adversarial", "No", png("blue"))]
    folder = tmp_path / "out"
    questions = load_questions("pope", folder, file=parquet(tmp_path / "test.parquet", rows))
    assert [(q.id, q.label, q.group) for q in questions] == [("random-1", "yes", "random"), ("popular-1", "no", "popular"), ("adversarial-2", "no", "adversarial")]  # fmt: skip
    assert questions[0].prompt == "Is there a dog in the image?"  # nothing is appended
    assert (
        questions[0].image == questions[1].image != questions[2].image
    )  # one file for equal images
    assert len(list((folder / "images").iterdir())) == 2
    assert open_image(questions[2].image).getpixel((0, 0)) == (0, 0, 255)
    assert json.loads((folder / "pope.jsonl").read_text().splitlines()[0])["image"].startswith(
        "images/"
    )
    assert load_questions("pope", folder, file=tmp_path / "test.parquet", rows=2) == questions[:2]


def test_mme_pairs_share_a_name(tmp_path):
    rows = [
        {"question_id": "OCR/1.png", "image": png(), "question": f"{q}? Please answer yes or no.", "answer": a, "category": "OCR"}
        for q, a in [("A", "Yes"), ("B", "No")]
    ]  # fmt: skip
    questions = load_questions("mme", tmp_path / "out", file=parquet(tmp_path / "t.parquet", rows))
    assert [q.id for q in questions] == ["OCR/1.png#1", "OCR/1.png#2"]
    assert {q.about["pair"] for q in questions} == {"OCR/1.png"} and [
        q.label for q in questions
    ] == ["yes", "no"]
    assert len(PERCEPTION) == 10 and len(COGNITION) == 4


def hallusion(**change):
    row = {"category": "VS", "subcategory": "map", "visual_input": "2", "set_id": "1", "figure_id": "2", "sample_note": "", "question_id": "0", "question": "Is it?", "gt_answer_details": "It is not.", "gt_answer": "0", "filename": "./bench/VS/map/1_2.png"}  # fmt: skip
    return {**row, **change}


def test_hallusion_from_the_authors_json_and_from_a_table(tmp_path):
    (tmp_path / "bench" / "VS" / "map").mkdir(parents=True)
    (tmp_path / "bench" / "VS" / "map" / "1_2.png").write_bytes(png()["bytes"])
    rows = [hallusion(), hallusion(visual_input="0", figure_id="0", gt_answer="1", filename=None)]
    (tmp_path / "HallusionBench.json").write_text(json.dumps(rows))
    edited, plain = load_questions(
        "hallusion_bench", tmp_path / "out", file=tmp_path / "HallusionBench.json"
    )
    assert (edited.id, edited.label, edited.group) == (
        "VS_map_1_2_0",
        "no",
        "VS",
    ) and edited.image.is_file()
    assert (plain.id, plain.label, plain.image) == ("VS_map_1_0_0", "yes", None)
    assert edited.about == {"subcategory": "map", "set_id": "1", "figure_id": "2", "question_id": "0", "gt_answer_details": "It is not.", "visual_input": "2"}  # fmt: skip
    table = parquet(
        tmp_path / "t.parquet",
        [row | {"image": image} for row, image in zip(rows, [png(), png()], strict=True)],
    )
    again = load_questions("hallusion_bench", tmp_path / "again", file=table)
    assert [q.id for q in again] == [edited.id, plain.id]
    assert (
        again[0].image.parent == tmp_path / "again" / "images" and again[1].image is None
    )  # asked without, whatever the table holds


def test_llava_bench_and_mmhal_bench(tmp_path):
    row = {"question_id": "0", "question": "Name?", "image": png(), "category": "conv", "image_id": "001", "gpt_answer": "Diamond Head.", "caption": "A view."}  # fmt: skip
    (question,) = load_questions(
        "llava_bench", tmp_path / "out", file=parquet(tmp_path / "t.parquet", [row])
    )
    assert (question.id, question.label, question.group) == ("0", "Diamond Head.", "conv")
    assert question.about == {"caption": "A view."}
    row = {"question_type": "attribute", "question_topic": "food", "image_id": "x", "image_src": "https://host/a/7_o.jpg", "image_content": ["Cat", "Dog"], "question": "Color?", "gt_answer": "Red.", "model_answer": ""}  # fmt: skip
    (tmp_path / "response_template.json").write_text(json.dumps([row, row]))
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "7_o.jpg").write_bytes(png()["bytes"])
    file = tmp_path / "response_template.json"
    first, second = load_questions(
        "mmhal_bench", tmp_path / "out", file=file, images=tmp_path / "photos"
    )
    assert (first.id, second.id) == ("1", "2") and first.image == tmp_path / "photos" / "7_o.jpg"
    assert first.about == {"image_content": "Cat, Dog"} and first.group == "attribute"
    with pytest.raises(UsageError, match=r"file=…/response_template.json"):
        load_questions("mmhal_bench", tmp_path / "out")


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
        load_questions(name, tmp_path / "out", file=path)
    assert f"{path}:2: " in str(caught.value) and said in str(caught.value)
    assert not (tmp_path / "out" / f"{name}.jsonl").exists()


def test_bad_files(tmp_path):
    with pytest.raises(UsageError, match="unknown benchmark 'mmbench'"):
        load_questions("mmbench", tmp_path)
    with pytest.raises(UsageError, match="no such file"):
        load_questions("pope", tmp_path, file=tmp_path / "no.parquet")
    (tmp_path / "half.jsonl").write_text('{"question_id": 1')
    with pytest.raises(UsageError, match=r"half.jsonl:1: not JSON"):
        load_questions("pope", tmp_path, file=tmp_path / "half.jsonl")
    (tmp_path / "no.parquet").write_text("PAR1")
    with pytest.raises(UsageError, match="cannot be had"):
        load_questions("pope", tmp_path, file=tmp_path / "no.parquet")
    (tmp_path / "empty.jsonl").write_text("")
    with pytest.raises(UsageError, match="there are no questions"):
        load_questions("pope", tmp_path, file=tmp_path / "empty.jsonl")
    twice = parquet(tmp_path / "twice.parquet", [pope("1"), pope("1")])
    with pytest.raises(UsageError, match="2 questions have the id random-1"):
        load_questions("pope", tmp_path, file=twice)


def test_the_catalogue():
    known = {"pope", "mme", "hallusion_bench", "llava_bench", "mmhal_bench"}
    assert known <= OFFICIAL_BENCHMARKS.keys()
    assert OFFICIAL_BENCHMARKS.keys() == GRADES.keys(), (
        "every benchmark has a function that grades it"
    )
    for official in OFFICIAL_BENCHMARKS.values():
        assert len(official.source.revision) == 40 and official.source.licence
