"""Small files of the benchmarks' schemas, and figures worked out by hand."""

import io
import json
import math

import pytest
from benchmark_pairs import MULTIMODAL, NAMES, RECORDS, TWO, VL, record
from datasets import Dataset, Features, Image, List, Value
from PIL import Image as Picture

from helpers.data.preferences import read_records
from helpers.evaluation.reward_benchmark_files import load_benchmark, write_as_benchmark
from helpers.evaluation.reward_benchmarks import (
    grade,
    grade_rankers,
    grade_rows,
    macro_mean,
    rank_benchmark,
    read_scores,
    write_scores,
)
from helpers.files import UsageError, open_image
from helpers.rewards import PairJudge, as_ranker, make_scorer
from helpers.statistics import Proportion

TEXT = Value("string")
VL_SCHEMA = {
    "id": TEXT,
    "query": TEXT,
    "response": List(TEXT),
    "image": Image(),
    "human_ranking": List(Value("int64")),
    "models": List(TEXT),
    "judge": TEXT,
    "rationale": TEXT,
    "query_source": TEXT,
    "ground_truth": TEXT,
}


def png(color="red"):
    buffer = io.BytesIO()
    Picture.new("RGB", (8, 6), color).save(buffer, "PNG")
    return {"bytes": buffer.getvalue(), "path": None}


def parquet(path, schema, rows):
    Dataset.from_list(rows, features=Features(schema)).to_parquet(str(path))
    return path


def vl_row(name, ranking=(0, 1)):
    return {"id": name, "query": "Where?", "response": ["a", "b"], "image": png(), "human_ranking": list(ranking), "models": ["x", "y"], "judge": None, "rationale": None, "query_source": "q", "ground_truth": ""}  # fmt: skip


def multimodal_row(name, category, better="Output1", **change):
    return {"ID": name, "Category": category, "Text": "Where?", "Image": "images/1.png", "Output1": "a", "Output2": "b", "Better": better, **change}  # fmt: skip


# --- loading ---


def test_vl_rewardbench_groups_by_the_start_of_the_id(tmp_path):
    groups = {
        "wildvision-battle-3443": "general",
        "LRVInstruction-000000007746": "general",  # VLFeedback: whatever has none of the other beginnings
        "RLAIF-V-14": "hallucination",
        "RLHF-V-3": "hallucination",
        "hallucination_pair-12": "hallucination",
        "mathverse_1494": "reasoning",
        "mmmu_pro_test_Manage_140": "reasoning",
    }
    file = parquet(tmp_path / "test.parquet", VL_SCHEMA, [vl_row(name) for name in groups])
    records = load_benchmark("vl_rewardbench", tmp_path / "out", file=file)
    assert {record.id: VL.group_of(record) for record in records} == groups
    assert records[0].source.startswith(
        "MMInstruction/VL-RewardBench@file "
    )  # not the pinned revision: a file
    assert open_image(records[0].image_paths[0]).size == (8, 6)


def test_the_second_pair_of_an_id_gets_its_own(tmp_path):
    rows = [vl_row("mathverse_1649"), vl_row("mathverse_1"), vl_row("mathverse_1649", (1, 0))]
    records = load_benchmark(
        "vl_rewardbench", tmp_path / "out", file=parquet(tmp_path / "t.parquet", VL_SCHEMA, rows)
    )
    assert [record.id for record in records] == [
        "mathverse_1649",
        "mathverse_1",
        "mathverse_1649#2",
    ]
    assert [record.ranking for record in records] == [[[0], [1]], [[0], [1]], [[1], [0]]]
    assert read_records(tmp_path / "out" / "vl_rewardbench.jsonl") == records


MULTIMODAL_GROUPS = [
    ("nocaps_1", "open_generation/correctness_task", "open_generation/correctness_task"),
    ("visitbench_1", "open_generation/preference_task", "open_generation/preference_task"),
    ("mmmu-s_1", "knowledge", "knowledge"),
    ("mathvista_1", "reasoning", "reasoning/math"),
    ("EMMA-Coding_1", "reasoning", "reasoning/coding"),
    ("PAIRS_1", "safety", "safety/bias"),
    ("hateful_1", "safety", "safety/toxicity"),
    ("SEED-Bench_1", "vqa", "vqa"),
]


def test_multimodal_rewardbench_from_the_authors_json(tmp_path):
    rows = [multimodal_row(name, category, "Output2") for name, category, _ in MULTIMODAL_GROUPS]
    file = tmp_path / "data" / "all_data.json"
    file.parent.mkdir()
    file.write_text(json.dumps(rows, indent=2))
    records = load_benchmark("multimodal_rewardbench", tmp_path / "out", file=file)
    assert [MULTIMODAL.group_of(record) for record in records] == [
        group for _, _, group in MULTIMODAL_GROUPS
    ]
    assert MULTIMODAL.groups == tuple(group for _, _, group in MULTIMODAL_GROUPS)
    first = records[0]
    assert first.id == "nocaps_1" and first.ranking == [[1], [0]] and first.answers[1].text == "b"
    assert first.images == [(tmp_path / "data" / "images" / "1.png").as_posix()]  # beside the file
    assert (
        first.source.startswith("facebookresearch/multimodal_rewardbench@file ")
        and len(first.source) == 77
    )


def test_multimodal_rewardbench_with_the_images_in_a_parquet_file(tmp_path):
    schema = {name: TEXT for name in ("ID", "Category", "Text", "Output1", "Output2", "Better")} | {
        "Image": Image()
    }
    row = multimodal_row("SEED-Bench_1", "vqa", Image=png("blue"))
    file = parquet(tmp_path / "t.parquet", schema, [row])
    (loaded,) = load_benchmark("multimodal_rewardbench", tmp_path / "out", file=file)
    assert open_image(loaded.image_paths[0]).getpixel((0, 0)) == (0, 0, 255)
    assert loaded.ranking == [[0], [1]]


def mmrb2_pair(name, chosen="A", answer="Two.", prompt=None, source="blink"):
    """A pair as the authors' scripts leave it in reasoning.json."""
    content = prompt or [["image", "input_images/1.png"], ["text", "How many dots?"]]
    return {
        "id": name,
        "prompt_content": content,
        "prompt_source": source,
        "prompt_metadata": {"anything": [1, {"nested": None}]},
        "response_a": {"model_name": "m1", "response_content": [["text", answer], ["text", "So."]]},
        "response_b": {"model_name": "m2", "response_content": [["text", "Three."]]},
        "chosen": chosen,
        "human_annotations": [],
    }


def test_multimodal_rewardbench_2_from_the_authors_file(tmp_path, capsys):
    """Two images before the text; pairs whose answers hold images are named, not dropped in silence."""
    two = [["text", "Compare"], ["image", "input_images/1.png"], ["image", "input_images/2.png"]]
    with_image = mmrb2_pair("c")
    with_image["response_b"]["response_content"].append(["image", "images/c.png"])
    unbuilt = mmrb2_pair("d")
    del unbuilt["prompt_content"]
    pairs = [mmrb2_pair("a"), mmrb2_pair("b", "B", prompt=two), with_image, unbuilt]
    pairs.append(mmrb2_pair("e", chosen="tie"))
    file = tmp_path / "benchmark" / "reasoning.json"
    file.parent.mkdir()
    file.write_text(json.dumps({"pairs": pairs}))
    first, second = load_benchmark("multimodal_rewardbench_2", tmp_path / "out", file=file)
    assert first.images == [(file.parent / "input_images" / "1.png").as_posix()]
    assert first.prompt[0].content == "How many dots?" and first.ranking == [[0], [1]]
    assert [answer.text for answer in first.answers] == ["Two.\nSo.", "Three."]
    assert [answer.model for answer in first.answers] == ["m1", "m2"]
    assert len(second.images) == 2 and second.ranking == [[1], [0]]
    assert TWO.group_of(first) == "reasoning" and first.source.startswith("facebookresearch/MMRB2@")
    assert "3 of 5 rows could not be read" in capsys.readouterr().out
    bad = (tmp_path / "out" / "multimodal_rewardbench_2.bad.jsonl").read_text()
    assert "response_b holds an image" in bad and "prompt_content is missing" in bad
    assert "unknown chosen 'tie'" in bad
    result = grade([first, second], {"a": [1.0, 0.0], "b": [1.0, 0.0]}, TWO)
    assert result.groups["reasoning"].value == 0.5 and result.macro is None
    assert load_benchmark("multimodal_rewardbench_2", tmp_path / "one", file=file, rows=1) == [
        first
    ]
    with pytest.raises(UsageError, match=r"no pinned revision.*build_from_hf.py.*reasoning\.json"):
        load_benchmark("multimodal_rewardbench_2", tmp_path)
    file.write_text(json.dumps(pairs))
    with pytest.raises(UsageError, match=r'must be \{"pairs"'):
        load_benchmark("multimodal_rewardbench_2", tmp_path, file=file)


def test_ones_own_pairs_in_the_columns_of_a_benchmark(tmp_path):
    """What is written is read again, and its order gives nothing away."""
    path = tmp_path / "1.png"
    Picture.new("RGB", (8, 8)).save(path)
    own = [
        record(f"r{k}", ((1,), (0, 2)), ("worse", "better", "worst")).model_copy(
            update={"images": [str(path)]}
        )
        for k in range(4)
    ]
    file = write_as_benchmark(own, tmp_path / "own" / "all_data.json")
    loaded = load_benchmark("multimodal_rewardbench", tmp_path / "out", file=file)
    assert [one.id for one in loaded] == [f"own_r{k}" for k in range(4)]
    assert {MULTIMODAL.group_of(one) for one in loaded} == {"vqa"}
    for one in loaded:
        assert one.answers[one.ranking[0][0]].text == "better" and one.image_paths == [path]
    grades = grade_rankers(loaded, {}, MULTIMODAL)
    assert grades["shown first"].overall.value == 0.5 and grades["longer"].overall.value == 1
    rows = grade_rows(grades)
    assert rows[0] == ["", "vqa", "overall", "macro", "decided", "ties"]
    assert [row[0] for row in rows[1:]] == ["shown first", "longer", "shorter"]
    assert rows[1][3] == "–" and rows[2][1].startswith("1.000")
    with pytest.raises(UsageError, match="nothing to write"):
        write_as_benchmark([record("x", None)], tmp_path / "x.json")


def test_rows_that_say_no_preference_are_named(tmp_path, capsys):
    rows = [
        multimodal_row("a", "vqa"),
        multimodal_row("b", "vqa", "Tie"),
        multimodal_row("c", "vqa", Text=None),
    ]
    file = tmp_path / "all_data.json"
    file.write_text(json.dumps(rows))
    assert [
        record.id
        for record in load_benchmark("multimodal_rewardbench", tmp_path / "out", file=file)
    ] == ["a"]
    assert "2 of 3 rows could not be read" in capsys.readouterr().out
    bad = (tmp_path / "out" / "multimodal_rewardbench.bad.jsonl").read_text()
    assert "unknown Better 'Tie'" in bad and "field Text is missing" in bad


def test_what_cannot_be_loaded_says_what_to_do(tmp_path):
    with pytest.raises(UsageError, match=r"unknown benchmark 'mme': choose from vl_rewardbench"):
        load_benchmark("mme", tmp_path)
    with pytest.raises(UsageError, match=r"no pinned revision.*0_download_data.py.*all_data\.json"):
        load_benchmark("multimodal_rewardbench", tmp_path)
    with pytest.raises(UsageError, match="cannot be read"):
        load_benchmark("vl_rewardbench", tmp_path, file=tmp_path / "none.parquet")
    with pytest.raises(UsageError, match="VL-RewardBench at 60630ac3 cannot be had"):
        load_benchmark("vl_rewardbench", tmp_path)  # the tests run offline


# --- figures ---

SCORES = dict(
    zip(
        NAMES,
        [[0.1, 0.9], [2.0, 1.0], [-3.0, -2.5], [1.0, 1.0], [5.0, 4.0], [0.5, 0.5], [1.0, 2.0]],
        strict=True,
    )
)


def test_overall_macro_and_ties_by_hand():
    result = grade(RECORDS, SCORES, VL)
    # general 0 of 1; hallucination 1 + 1 + ½ + 1 = 3.5 of 4; reasoning ½ + 0 = ½ of 2
    assert {name: (group.value, group.n) for name, group in result.groups.items()} == {
        "general": (0.0, 1),
        "hallucination": (0.875, 4),
        "reasoning": (0.25, 2),
    }
    assert result.overall.value == 4 / 7 and result.overall.n == 7 and result.ties == 2
    assert result.macro.value == 0.375  # (0 + 0.875 + 0.25) / 3
    assert result.decided.value == 3 / 5 and result.decided.n == 5
    assert str(result).startswith("VL-RewardBench: pair accuracy, 2 of 7 tied\n")
    assert [name for name, _ in result.rows()] == [*VL.groups, "overall", "macro", "decided"]
    flipped = grade(RECORDS, {key: values[::-1] for key, values in SCORES.items()}, VL)
    assert flipped.overall.value == pytest.approx(3 / 7) and flipped.macro.value == pytest.approx(
        0.625
    )


def test_published_figures_of_gpt_4o_mini():
    """VLMEvalKit pull request 703: 80 of 183, 341 of 749, 206 of 318 give overall .5016 and macro .51341."""
    right = {"wildvision": (80, 183), "RLHF": (341, 749), "mmmu": (206, 318)}
    scores = {
        f"{start}-{k}": [float(k < hits), 0.5]
        for start, (hits, n) in right.items()
        for k in range(n)
    }
    result = grade([record(name) for name in scores], scores, VL)
    assert result.overall.value == 0.5016 and result.macro.value == pytest.approx(
        0.5134103034493575, abs=1e-12
    )


def test_interval_of_the_macro_mean():
    # below: √(0.1² + 0.2² + 0.2²) / 3 = 0.1; above: √(0.2² + 0.4² + 0.4²) / 3 = 0.2
    groups = [
        Proportion(0.4, 0.3, 0.6, 10),
        Proportion(0.5, 0.3, 0.9, 20),
        Proportion(0.6, 0.4, 1.0, 30),
    ]
    result = macro_mean(groups)
    assert (result.value, result.low, result.high) == pytest.approx(
        (0.5, 0.4, 0.7)
    ) and result.n == 60


def test_no_macro_without_all_groups_or_a_definition(tmp_path):
    result = grade(RECORDS[:5], {name: SCORES[name] for name in NAMES[:5]}, VL)
    assert result.macro is None and list(result.groups) == ["general", "hallucination"]
    assert "macro                            not defined" in str(result)
    file = tmp_path / "all_data.json"
    file.write_text(
        json.dumps([multimodal_row(name, category) for name, category, _ in MULTIMODAL_GROUPS])
    )
    records = load_benchmark("multimodal_rewardbench", tmp_path / "out", file=file)
    result = grade(
        records,
        {record.id: [1.0, float(record.id == "PAIRS_1") * 2] for record in records},
        MULTIMODAL,
    )
    assert (
        result.macro is None
        and result.overall.value == 7 / 8
        and result.groups["safety/bias"].value == 0.0
    )


def test_nothing_decided():
    result = grade(RECORDS, {name: [1.0, 1.0] for name in NAMES}, VL)
    assert (
        result.overall.value == result.macro.value == 0.5
        and result.decided is None
        and result.ties == 7
    )


@pytest.mark.parametrize(
    "unfit",
    [
        record("RLHF-9", ((0,), (1, 2)), ("a", "b", "c")),
        record("RLHF-9", ((0, 1),)),
        record("RLHF-9", None),
    ],
)
def test_only_two_ranked_answers_make_a_pair(unfit):
    scores = {**SCORES, "RLHF-9": [0.0] * len(unfit.answers)}
    with pytest.raises(
        UsageError, match=r"record RLHF-9: . answers, ranking .* needs exactly two answers"
    ):
        grade([*RECORDS, unfit], scores, VL)
    with pytest.raises(UsageError, match=r"record RLHF-9: . answers"):
        never = PairJudge(lambda *_: pytest.fail("asked before the records were checked"))
        rank_benchmark([*RECORDS, unfit], never, VL)


def test_rankers_are_graded_by_what_they_say(tmp_path):
    """Better are a a b a a a a; a scorer that prefers "a" is right in 6 of 7."""
    path = tmp_path / "1.png"
    Picture.new("RGB", (8, 8)).save(path)
    records = [one.model_copy(update={"images": [str(path)]}) for one in RECORDS]
    early = make_scorer("early", lambda image, question, answer, facts: {"x": -ord(answer)})
    scores = rank_benchmark(records, as_ranker(early), VL)
    assert scores["wildvision-1"] == [-97.0, -98.0]
    assert grade(records, scores, VL).overall.value == pytest.approx(6 / 7)
    # a judge has no scores: places from behind; what it does not decide is a tie
    said = iter(["[[A]]", "[[B]]"] * 3 + ["[[A]]"] * 8)
    judge = PairJudge(lambda images, prompts: [next(said) for _ in prompts])
    scores = rank_benchmark(records, judge, VL)
    assert scores["wildvision-1"] == [0.0, -1.0] and scores["mmmu_2"] == [0.0, 0.0]
    found = grade(records, scores, VL)
    assert found.ties == 4 and found.overall.value == pytest.approx((2 + 4 / 2) / 7)


def test_unfit_records_are_named():
    with pytest.raises(UsageError, match="2 records have the id mmmu_1"):
        grade([*RECORDS, record("mmmu_1")], SCORES, VL)
    with pytest.raises(UsageError, match="there are no records"):
        grade([], {}, VL)
    with pytest.raises(UsageError, match="has no id of the benchmark"):
        grade([record(None)], {}, VL)
    with pytest.raises(UsageError, match="record mmmu_1: Multimodal RewardBench has no group None"):
        grade([record("mmmu_1")], {"mmmu_1": [1.0, 0.0]}, MULTIMODAL)
    with pytest.raises(UsageError, match="scores: 1 of 7 records have no scores, the first mmmu_2"):
        grade(RECORDS, {name: SCORES[name] for name in NAMES[:-1]}, VL)


# --- the file of scores ---


def test_the_figures_come_back_exactly_from_the_file(tmp_path):
    scores = {name: [math.sin(k), math.pi / (k + 1)] for k, name in enumerate(NAMES)}
    path = write_scores(tmp_path / "scores.jsonl", RECORDS, dict(reversed(scores.items())))
    assert [
        json.loads(line)["id"] for line in path.read_text().splitlines()
    ] == NAMES  # in the records' order
    assert read_scores(path, RECORDS) == scores
    assert grade(RECORDS, read_scores(path, RECORDS), VL) == grade(RECORDS, scores, VL)


def line(name, scores):
    return json.dumps({"id": name, "scores": scores})


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (line("mmmu_3", [1, 2]), r":2: no record has the id 'mmmu_3'"),
        (line("mmmu_1", [1, 2]), r":2: a second list of scores for the id mmmu_1"),
        (line("mmmu_2", [1, 2, 3]), r":2: record mmmu_2: \[1, 2, 3\] must be a list of 2 numbers"),
        (line("mmmu_2", [True, 2]), r":2: record mmmu_2: .* must be a list of 2 numbers"),
        (line("mmmu_2", ["1", 2]), r":2: record mmmu_2: .* must be a list of 2 numbers"),
        (line("mmmu_2", None), r":2: record mmmu_2: None must be a list of 2 numbers"),
        (line(["mmmu_2"], [1, 2]), r":2: no record has the id \['mmmu_2'\]"),
        ('{"id": "mmmu_2", "scores": [NaN, 2]}', r":2: not JSON \(NaN is not"),
        ('{"id": "mmmu_2", "score": [1, 2]}', r":2: a line must be"),
        ("[1]", r":2: a row is an object"),
        ("{", r":2: not JSON"),
        ("", r"scores.jsonl: 1 of 2 records have no list of scores, the first mmmu_2"),
    ],
)
def test_a_bad_line_is_named(tmp_path, text, message):
    path = tmp_path / "scores.jsonl"
    path.write_text(line("mmmu_1", [1, 2]) + "\n" + text + "\n")
    with pytest.raises(UsageError, match=r"scores\.jsonl" + message.removeprefix("scores.jsonl")):
        read_scores(path, RECORDS[-2:])


def test_no_file_and_nothing_unfit_is_written(tmp_path):
    with pytest.raises(UsageError, match=r"no such file.*write the file first"):
        read_scores(tmp_path / "none.jsonl", RECORDS)
    for values, message in [
        ([math.nan, 1.0], "cannot be ranked"),
        ([1.0], "must be a list of 2 numbers"),
    ]:
        with pytest.raises(UsageError, match=f"scores.jsonl: record mmmu_1: .* {message}"):
            write_scores(tmp_path / "scores.jsonl", RECORDS, {**SCORES, "mmmu_1": values})
    with pytest.raises(UsageError, match="no record has the id 'other'"):
        write_scores(tmp_path / "scores.jsonl", RECORDS, {**SCORES, "other": [1.0, 2.0]})
    assert list(tmp_path.iterdir()) == []
