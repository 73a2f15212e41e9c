"""Small files of the benchmarks' schemas, figures worked out by hand, and judges whose faults are known."""

import io
import json
import math

import pytest
from datasets import Dataset, Features, Image, List, Value
from PIL import Image as Picture

from helpers.data.preferences import PreferenceRecord, read_records
from helpers.evaluation.judge import judge_pairs, parse_verdict
from helpers.evaluation.reward_benchmarks import (
    BENCHMARKS,
    grade,
    load_benchmark,
    macro_mean,
    read_scores,
    write_scores,
)
from helpers.files import UsageError, open_image
from helpers.statistics import Proportion

VL, MULTIMODAL = BENCHMARKS["vl_rewardbench"], BENCHMARKS["multimodal_rewardbench"]
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


def record(name, ranking=((0,), (1,)), answers=("a", "b")):
    tiers = [list(tier) for tier in ranking] if ranking is not None else None
    return PreferenceRecord(images=["1.png"], prompt="Where?", answers=[{"text": text} for text in answers], ranking=tiers, id=name)  # fmt: skip


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
    assert records[0].source.startswith("MMInstruction/VL-RewardBench@file ")  # not the pinned revision: a file
    assert open_image(records[0].image_paths[0]).size == (8, 6)


def test_the_second_pair_of_an_id_gets_its_own(tmp_path):
    rows = [vl_row("mathverse_1649"), vl_row("mathverse_1"), vl_row("mathverse_1649", (1, 0))]
    records = load_benchmark("vl_rewardbench", tmp_path / "out", file=parquet(tmp_path / "t.parquet", VL_SCHEMA, rows))
    assert [record.id for record in records] == ["mathverse_1649", "mathverse_1", "mathverse_1649#2"]
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
    assert [MULTIMODAL.group_of(record) for record in records] == [group for _, _, group in MULTIMODAL_GROUPS]
    assert MULTIMODAL.groups == tuple(group for _, _, group in MULTIMODAL_GROUPS)
    first = records[0]
    assert first.id == "nocaps_1" and first.ranking == [[1], [0]] and first.answers[1].text == "b"
    assert first.images == [(tmp_path / "data" / "images" / "1.png").as_posix()]  # beside the file
    assert first.source.startswith("facebookresearch/multimodal_rewardbench@file ") and len(first.source) == 77


def test_multimodal_rewardbench_with_the_images_in_a_parquet_file(tmp_path):
    schema = {name: TEXT for name in ("ID", "Category", "Text", "Output1", "Output2", "Better")} | {"Image": Image()}
    row = multimodal_row("SEED-Bench_1", "vqa", Image=png("blue"))
    file = parquet(tmp_path / "t.parquet", schema, [row])
    (loaded,) = load_benchmark("multimodal_rewardbench", tmp_path / "out", file=file)
    assert open_image(loaded.image_paths[0]).getpixel((0, 0)) == (0, 0, 255)
    assert loaded.ranking == [[0], [1]]


def test_rows_that_say_no_preference_are_named(tmp_path, capsys):
    rows = [multimodal_row("a", "vqa"), multimodal_row("b", "vqa", "Tie"), multimodal_row("c", "vqa", Text=None)]
    file = tmp_path / "all_data.json"
    file.write_text(json.dumps(rows))
    assert [record.id for record in load_benchmark("multimodal_rewardbench", tmp_path / "out", file=file)] == ["a"]
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

NAMES = ["wildvision-1", "RLHF-1", "RLHF-2", "RLHF-3", "RLAIF-4", "mmmu_1", "mmmu_2"]
RECORDS = [record(name, ((1,), (0,)) if name == "RLHF-2" else ((0,), (1,))) for name in NAMES]
SCORES = dict(
    zip(NAMES, [[0.1, 0.9], [2.0, 1.0], [-3.0, -2.5], [1.0, 1.0], [5.0, 4.0], [0.5, 0.5], [1.0, 2.0]], strict=True)
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
    assert flipped.overall.value == pytest.approx(3 / 7) and flipped.macro.value == pytest.approx(0.625)


def test_published_figures_of_gpt_4o_mini():
    """VLMEvalKit pull request 703: 80 of 183, 341 of 749, 206 of 318 give overall .5016 and macro .51341."""
    right = {"wildvision": (80, 183), "RLHF": (341, 749), "mmmu": (206, 318)}
    scores = {f"{start}-{k}": [float(k < hits), 0.5] for start, (hits, n) in right.items() for k in range(n)}
    result = grade([record(name) for name in scores], scores, VL)
    assert result.overall.value == 0.5016 and result.macro.value == pytest.approx(0.5134103034493575, abs=1e-12)


def test_interval_of_the_macro_mean():
    # below: √(0.1² + 0.2² + 0.2²) / 3 = 0.1; above: √(0.2² + 0.4² + 0.4²) / 3 = 0.2
    groups = [Proportion(0.4, 0.3, 0.6, 10), Proportion(0.5, 0.3, 0.9, 20), Proportion(0.6, 0.4, 1.0, 30)]
    result = macro_mean(groups)
    assert (result.value, result.low, result.high) == pytest.approx((0.5, 0.4, 0.7)) and result.n == 60


def test_no_macro_without_all_groups_or_a_definition(tmp_path):
    result = grade(RECORDS[:5], {name: SCORES[name] for name in NAMES[:5]}, VL)
    assert result.macro is None and list(result.groups) == ["general", "hallucination"]
    assert "macro                            not defined" in str(result)
    file = tmp_path / "all_data.json"
    file.write_text(json.dumps([multimodal_row(name, category) for name, category, _ in MULTIMODAL_GROUPS]))
    records = load_benchmark("multimodal_rewardbench", tmp_path / "out", file=file)
    result = grade(records, {record.id: [1.0, float(record.id == "PAIRS_1") * 2] for record in records}, MULTIMODAL)
    assert result.macro is None and result.overall.value == 7 / 8 and result.groups["safety/bias"].value == 0.0


def test_nothing_decided():
    result = grade(RECORDS, {name: [1.0, 1.0] for name in NAMES}, VL)
    assert result.overall.value == result.macro.value == 0.5 and result.decided is None and result.ties == 7


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
    with pytest.raises(UsageError, match=r"record RLHF-9: . answers, ranking .* needs exactly two answers"):
        grade([*RECORDS, unfit], scores, VL)
    with pytest.raises(UsageError, match=r"record RLHF-9: . answers"):
        judge_pairs([*RECORDS, unfit], lambda *_: pytest.fail("asked before the records were checked"), VL)


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
    assert [json.loads(line)["id"] for line in path.read_text().splitlines()] == NAMES  # in the records' order
    assert read_scores(path, RECORDS) == scores
    assert grade(RECORDS, read_scores(path, RECORDS), VL) == grade(RECORDS, scores, VL)


def line(name, scores):
    return json.dumps({"id": name, "scores": scores})


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (line("mmmu_3", [1, 2]), r":2: no record has the id 'mmmu_3'"),
        (line("mmmu_1", [1, 2]), r":2: a second line of the id mmmu_1"),
        (line("mmmu_2", [1, 2, 3]), r":2: record mmmu_2: \[1, 2, 3\] must be a list of 2 numbers"),
        (line("mmmu_2", [True, 2]), r":2: record mmmu_2: .* must be a list of 2 numbers"),
        (line("mmmu_2", ["1", 2]), r":2: record mmmu_2: .* must be a list of 2 numbers"),
        (line("mmmu_2", None), r":2: record mmmu_2: None must be a list of 2 numbers"),
        (line(["mmmu_2"], [1, 2]), r":2: no record has the id \['mmmu_2'\]"),
        ('{"id": "mmmu_2", "scores": [NaN, 2]}', r":2: not JSON \(NaN is not"),
        ('{"id": "mmmu_2", "score": [1, 2]}', r":2: a line must be"),
        ("[1]", r":2: a line must be"),
        ("{", r":2: not JSON"),
        ("", r"scores.jsonl: 1 of 2 records have no scores, the first mmmu_2"),
    ],
)
def test_a_bad_line_is_named(tmp_path, text, message):
    path = tmp_path / "scores.jsonl"
    path.write_text(line("mmmu_1", [1, 2]) + "\n" + text + "\n")
    with pytest.raises(UsageError, match=r"scores\.jsonl" + message.removeprefix("scores.jsonl")):
        read_scores(path, RECORDS[-2:])


def test_no_file_and_nothing_unfit_is_written(tmp_path):
    with pytest.raises(UsageError, match=r"no such file.*score the benchmark first"):
        read_scores(tmp_path / "none.jsonl", RECORDS)
    for values, message in [([math.nan, 1.0], "cannot be ranked"), ([1.0], "must be a list of 2 numbers")]:
        with pytest.raises(UsageError, match=f"scores.jsonl: record mmmu_1: .* {message}"):
            write_scores(tmp_path / "scores.jsonl", RECORDS, {**SCORES, "mmmu_1": values})
    with pytest.raises(UsageError, match="no record has the id 'other'"):
        write_scores(tmp_path / "scores.jsonl", RECORDS, {**SCORES, "other": [1.0, 2.0]})
    assert list(tmp_path.iterdir()) == []


# --- judges ---

MANY = [record(f"{start}-{k}") for start in ("wildvision", "RLHF", "mmmu") for k in range(100, 200)]


def truthful(record, order):
    return "first" if order[0] == record.ranking[0][0] else "second"


def test_a_truthful_judge_is_right_wherever_the_better_answer_is_shown():
    result = judge_pairs(RECORDS + MANY, truthful, VL, votes=3)
    assert result.grade.overall.value == result.grade.macro.value == 1.0 and result.abstentions == 0
    assert result.first.low < 0.5 < result.first.high and result.first.n == result.votes == 3 * 307
    assert "POSITION BIAS" not in str(result)


def test_a_judge_of_places_is_found_out():
    """All better answers stand first in `MANY`: shown in that order, this judge would be right every time."""
    result = judge_pairs(MANY, lambda record, order: "first", VL)
    assert result.first.value == 1.0 and result.first.low > 0.98 and "POSITION BIAS" in str(result)
    assert result.grade.overall.low < 0.5 < result.grade.overall.high
    assert "POSITION BIAS" in str(judge_pairs(MANY, lambda record, order: "second", VL))


def test_the_order_depends_on_seed_id_and_vote_only():
    seen = {}

    def ask(record, order):
        seen.setdefault(record.id, []).append(order)
        return "first"

    whole = judge_pairs(MANY, ask, VL, votes=5, seed=1)
    orders, seen = seen, {}
    judge_pairs(MANY[::-1][:50], ask, VL, votes=5, seed=1)
    assert all(seen[name] == orders[name] for name in seen) and len(seen) == 50
    assert any(len(set(votes)) == 2 for votes in orders.values())  # within a record it changes, too
    assert judge_pairs(MANY, ask, VL, votes=5, seed=2).scores != whole.scores
    assert {order for votes in orders.values() for order in votes} == {(0, 1), (1, 0)}


def in_turn(*verdicts):
    """A judge that means the first of `answers` for "a", the second for "b", and says nothing for None."""
    left = iter(verdicts)

    def ask(record, order):
        meant = next(left)
        return None if meant is None else "first" if order[0] == "ab".index(meant) else "second"

    return ask


@pytest.mark.parametrize(
    ("votes", "scores"),
    [
        ("aab", [1.0, 0.0]),
        ("abb", [0.0, 1.0]),
        ("ab", [0.0, 0.0]),  # no majority
        (["a", "a", None, None], [0.0, 0.0]),  # two of four are no majority
        (["a", None, None], [0.0, 0.0]),
        (["a", "a", None], [1.0, 0.0]),
    ],
)
def test_majority_of_all_votes(votes, scores):
    result = judge_pairs(RECORDS[:1], in_turn(*votes), VL, votes=len(votes))
    assert result.scores == {"wildvision-1": scores} and result.abstentions == (scores == [0.0, 0.0])
    assert result.unreadable == list(votes).count(None) and result.votes == len(votes)
    assert result.first.n == len(votes) - list(votes).count(None)


def test_abstentions_count_half_and_are_shown(tmp_path):
    # better are a a b a a a a: right, right, abstains, right, wrong, abstains, right
    result = judge_pairs(RECORDS, in_turn("a", "a", None, "a", "b", None, "a"), VL)
    assert result.grade.overall.value == 5 / 7  # (4 + 2 · ½) / 7
    assert result.grade.decided.value == 4 / 5 and result.abstentions == result.unreadable == 2
    assert "2 abstentions (a tie above); 2 of 7 votes unreadable" in str(result)
    path = write_scores(tmp_path / "scores.jsonl", RECORDS, result.scores)
    assert grade(RECORDS, read_scores(path, RECORDS), VL) == result.grade


def test_a_silent_judge_and_wrong_arguments():
    result = judge_pairs(RECORDS, lambda *_: None, VL, votes=2)
    assert result.first is None and result.grade.overall.value == 0.5 and "shown first none" in str(result)
    with pytest.raises(UsageError, match="record wildvision-1: ask gave 'A'"):
        judge_pairs(RECORDS, lambda *_: "A", VL)
    with pytest.raises(UsageError, match="votes = 0"):
        judge_pairs(RECORDS, truthful, VL, votes=0)


@pytest.mark.parametrize(
    ("text", "verdict"),
    [
        ("Both are fine, but A has more detail. [[A]]", "first"),
        ("Final verdict: [[B]]", "second"),
        ("Assistant A is better. [[b]]", "second"),  # the mark counts
        ("[[A]] if assistant A is better, [[B]] if assistant B is better", None),
        ("[[C]]", None),
        ("[[tie]]", None),
        ("B", "second"),
        (" **Answer 1**. ", "first"),
        ("Answer: 2", "second"),
        ("The second answer", "second"),
        ("3", None),
        ("Overall Judgment: Answer 2 is better.", "second"),
        ("### Overall Judgment\n**Answer 1 is superior** due to its accuracy.", "first"),
        ("Answer 1 is better in style. Overall Judgment: Answer 2 is slightly better.", "second"),
        ("Answer 1 is better in style. Answer 2 is better in detail.", None),
        ("Answer 1 is better in style. Overall judgement: both are equal.", None),
        ("Answer 1 is better than Answer 2.", "first"),
        ("The better response is Response B", "second"),
        ("The better answer is a matter of taste.", None),
        ("The better answer is 2 lines long.", None),
        ("Assistant B's response is clearly better", "second"),
        ("ANSWER 2 IS BETTER", "second"),
        ("Answer 1 is best described as short.", None),
        ("<think>Answer 1 is better? No.</think><answer>Answer 2 is better</answer>", "second"),
        ("<think>Hm.</think>\n<answer>1</answer>", "first"),
        ("Verdict: (A)", "first"),
        ("Answer 1 is not better.", None),
        ("It is hard to say whether Answer 1 is better.", None),
        ("I cannot say that Answer 2 is better.", None),
        ("Answer 12 is better.", None),
        ("Answer 1 and Answer 2 are equally good.", None),
        ("I am sorry, I cannot help with that.", None),
        ("", None),
    ],
)
def test_parse_verdict(text, verdict):
    assert parse_verdict(text) == verdict
