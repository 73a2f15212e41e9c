"""Small Parquet files of the schemas of public data sets become records; images become files."""

import io
import json

import pytest
from datasets import Dataset, Features, Image, List, Value
from PIL import Image as Picture

from helpers.data.hub import HUB_SETS, fetch_hub_set
from helpers.data.preferences import read_records
from helpers.files import UsageError, open_image

TEXT, LONG = Value("string"), Value("int64")
RLHF = {
    "ds_name": TEXT,
    "image": Image(),
    "text": TEXT,
    "origin_dataset": TEXT,
    "origin_split": TEXT,
    "idx": LONG,
    "image_path": TEXT,
}
RLAIF = {
    "ds_name": TEXT,
    "image": Image(),
    "question": TEXT,
    "chosen": TEXT,
    "rejected": TEXT,
    "origin_dataset": TEXT,
    "origin_split": TEXT,
    "idx": TEXT,
    "image_path": TEXT,
}
BENCH = {
    "id": TEXT,
    "query": TEXT,
    "response": List(TEXT),
    "image": Image(),
    "human_ranking": List(LONG),
    "models": List(TEXT),
    "judge": TEXT,
    "rationale": TEXT,
    "query_source": TEXT,
    "ground_truth": TEXT,
}
NOTE = {
    name: {"Rating": TEXT, "Rationale": TEXT}
    for name in ("Helpfulness", "Ethical Considerations", "Visual Faithfulness")
}
FEEDBACK = {"id": TEXT, "prompt": TEXT, "models": List(TEXT), "completions": List({"annotations": NOTE, "model": TEXT, "response": TEXT}), "img_path": TEXT}  # fmt: skip


def png(color):
    buffer = io.BytesIO()
    Picture.new("RGB", (8, 6), color).save(buffer, "PNG")
    return {"bytes": buffer.getvalue(), "path": None}


def parquet(tmp_path, features, rows):
    path = tmp_path / "part-0.parquet"
    Dataset.from_list(rows, features=Features(features)).to_parquet(str(path))
    return path


def rlaif(color, chosen="Here.", **change):
    row = {"ds_name": "RLAIF-V", "image": png(color), "question": "Where?", "chosen": chosen, "rejected": "There.", "origin_dataset": "coco", "origin_split": '{"model": "llava15-7b", "type": "detailed"}', "idx": "1", "image_path": "a.jpg"}  # fmt: skip
    return {**row, **change}


@pytest.mark.parametrize("name", ["rlaif_v", "rlaif_v_first"])
def test_images_become_files_and_groups(name, tmp_path):
    file = parquet(tmp_path, RLAIF, [rlaif("red"), rlaif("red", "Yes."), rlaif("blue")])
    path = fetch_hub_set(name, tmp_path / "out", file=file)
    records = read_records(path)
    assert len(records) == 3 and len(list((tmp_path / "out" / "images").iterdir())) == 2
    assert records[0].group == records[1].group != records[2].group
    assert (
        records[0].source.startswith("openbmb/RLAIF-V-Dataset@")
        and records[0].licence == "CC BY-NC 4.0"
    )
    assert open_image(records[2].image_paths[0]).getpixel((0, 0)) == (0, 0, 255)
    assert {a.model for a in records[0].answers} == {"llava15-7b"} and records[0].pairs()[
        0
    ].chosen.text == "Here."
    assert records[0].extra["rlaif_v"]["row"]["image_path"] == "a.jpg"


def test_the_revision_with_json_in_a_string(tmp_path):
    text = json.dumps(
        {"question": "Wo ist „das“?", "chosen": "Hier.", "rejected": "Dort."}, ensure_ascii=False
    )
    row = {"ds_name": "RLHF-V", "image": png("red"), "text": text, "origin_dataset": "coco", "origin_split": '{"model": "muffin", "type": "qa"}', "idx": 3, "image_path": "a.jpg"}  # fmt: skip
    (record,) = read_records(
        fetch_hub_set("rlhf_v", tmp_path / "out", file=parquet(tmp_path, RLHF, [row]))
    )
    (pair,) = record.pairs()
    assert record.prompt[0].content == "Wo ist „das“?" and pair.chosen.text == "Hier."
    assert pair.rejected.model == "muffin" and pair.chosen.model is None


def test_benchmark_rows(tmp_path):
    row = {"id": "1", "query": "Where?", "response": ["a", "b"], "image": png("red"), "human_ranking": [1, 0], "models": ["x", "y"], "judge": None, "rationale": None, "query_source": "povid", "ground_truth": ""}  # fmt: skip
    (record,) = read_records(
        fetch_hub_set("vl_rewardbench", tmp_path / "out", file=parquet(tmp_path, BENCH, [row]))
    )
    assert (
        record.id == "1" and record.pairs()[0].chosen.text == "b" and record.answers[0].model == "x"
    )


def test_sets_that_name_their_images_need_the_folder(tmp_path):
    note = {
        name: {"Rating": rating, "Rationale": "…"} for name, rating in zip(NOTE, "543", strict=True)
    }
    poor = {name: {"Rating": "1", "Rationale": "…"} for name in NOTE}
    completions = [
        {"annotations": poor, "model": "m", "response": "b"},
        {"annotations": note, "model": "n", "response": "a"},
    ]
    row = {
        "id": "9",
        "prompt": "Where?",
        "models": ["m", "n"],
        "completions": completions,
        "img_path": "x/1.jpg",
    }
    file = parquet(tmp_path, FEEDBACK, [row])
    (record,) = read_records(
        fetch_hub_set("vlfeedback", tmp_path / "out", file=file, images=tmp_path / "photos")
    )
    assert record.images == [(tmp_path / "photos" / "x" / "1.jpg").as_posix()]
    assert record.ranking == [[1], [0]] and record.pairs()[0].margin == 3.0  # (5 + 4 + 3) / 3 − 1


def test_bad_rows_are_kept_with_their_reason(tmp_path, capsys):
    file = parquet(tmp_path, RLAIF, [rlaif("red"), rlaif("red", "There."), rlaif("blue", "")])
    assert len(read_records(fetch_hub_set("rlaif_v", tmp_path / "out", file=file))) == 1
    bad = [
        json.loads(line)
        for line in (tmp_path / "out" / "rlaif_v.bad.jsonl").read_text().splitlines()
    ]
    assert [entry["row"] for entry in bad] == [2, 3] and "the answer is empty" in bad[1]["error"]
    assert "2 of 3 rows could not be read" in capsys.readouterr().out


def test_what_cannot_be_had_is_said(tmp_path):
    with pytest.raises(UsageError, match=r"unknown data set 'mme': choose from rlhf_v"):
        fetch_hub_set("mme", tmp_path)
    with pytest.raises(
        UsageError, match=r"openbmb/RLHF-V-Dataset at 5b59b49c cannot be had .*Check the network"
    ):
        fetch_hub_set("rlhf_v", tmp_path)  # the tests run offline
    with pytest.raises(UsageError, match="cannot be had"):
        fetch_hub_set("rlhf_v", tmp_path, file=tmp_path / "none.parquet")


def test_every_set_is_pinned():
    assert all(len(source.revision) == 40 for source in HUB_SETS.values())
