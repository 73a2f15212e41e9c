"""The preference formats of other projects, each as two small functions on one row.

`parse` says which fields of a record a row states; `write` makes the row of a record with two answers.
Neither has to care about the rest: `helpers/data/convert_rows.py` keeps what a row or a record has beyond them,
so that nothing is lost either way. `FORMATS` at the end is the table.

Simplification: images come before the text. Where a prompt has its `<image>` marks elsewhere, they are
moved to the front, and the change is reported.
"""

import json
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from helpers.files import UsageError, parse_json

from .preferences import PreferenceRecord
from .templates import IMAGE_MARK, repair_prompt, strip_image_marks

DatasetRow = dict[str, Any]


@dataclass(frozen=True)
class Format:
    """One way to write preferences down."""

    title: str
    is_format: Callable[[DatasetRow], bool]  # is this row of this format?
    parse: Callable[
        [DatasetRow], DatasetRow
    ]  # fields of a record; raises UsageError, KeyError or TypeError
    write: Callable[[PreferenceRecord], DatasetRow] | None = None  # None: this format is only read
    ordered: bool = False  # does a row say in which order the answers were shown?
    ties: bool = False  # can a row say that the two are equally good, or not judged?
    array: bool = False  # files are one JSON array instead of lines


def _question(text: str, images: list[str]) -> DatasetRow:
    """Fields of a record whose prompt is one text, with or without `<image>` marks."""
    _check_marks([text], images)
    messages, change = repair_prompt(text)
    return {"images": images, "prompt": messages, "change": change}


def _conversation(
    turns: list[DatasetRow], images: list[str], role: str = "from", content: str = "value"
) -> DatasetRow:
    """Fields of a record from chat turns; `<image>` marks are taken out of the texts."""
    names = {"human": "user", "gpt": "assistant"}
    texts = [_text(turn[content]) for turn in turns]
    _check_marks(texts, images)
    messages = [
        {"role": names.get(turn[role], turn[role]), "content": strip_image_marks(text)}
        for turn, text in zip(turns, texts, strict=True)
    ]
    inside = any(IMAGE_MARK in text.strip().removeprefix(IMAGE_MARK) for text in texts)
    return {
        "images": images,
        "prompt": messages,
        "change": "image marks moved to the front" if inside else None,
    }


def _check_marks(texts: list[str], images: list[str]) -> None:
    marks = sum(text.count(IMAGE_MARK) for text in texts)
    if marks not in (0, len(images)):
        raise UsageError(f"the prompt has {marks} {IMAGE_MARK} marks for {len(images)} images")


def _text(content: Any) -> str:
    """A message's text: a string, or a list of parts of which the image parts are dropped."""
    if isinstance(content, str):
        return content
    return "\n".join(part["text"] for part in content if part["type"] == "text")


def _marked_messages(record: PreferenceRecord) -> list[tuple[str, str]]:
    """(role, text) of every message, one `<image>` mark an image before the first of the user."""
    marks = IMAGE_MARK * len(record.images)
    first = next(place for place, message in enumerate(record.prompt) if message.role == "user")
    return [
        (m.role, marks + m.content if place == first else m.content)
        for place, m in enumerate(record.prompt)
    ]


def _one_question(record: PreferenceRecord) -> str:
    if len(record.prompt) > 1:
        raise UsageError(
            f"the prompt has {len(record.prompt)} messages, and this format holds one question"
        )
    return record.prompt[0].content


def _one_image(record: PreferenceRecord) -> str:
    if len(record.images) > 1:
        raise UsageError(f"the record has {len(record.images)} images, and this format holds one")
    return record.images[0]


# --- answers ------------------------------------------------------------------------------------


def _two_answers(
    first: str, second: str, ranking: list[list[int]] | None = None, **fields: Any
) -> DatasetRow:
    """Fields of a record with two answers, the first better unless `ranking` says otherwise."""
    return {
        "answers": [{"text": _text(first)}, {"text": _text(second)}],
        "ranking": ranking,
        **fields,
    }


def _chosen_first(chosen: Any, rejected: Any) -> DatasetRow:
    return _two_answers(chosen, rejected, [[0], [1]])


def _sides(record: PreferenceRecord) -> tuple[str, str]:
    """Texts of the better and the worse answer of a record with two."""
    return tuple(record.answers[tier[0]].text for tier in record.ranking)


def _image_list(images: Any) -> list[str]:
    """Paths of one image or several; each a path or `{"path": …}`."""
    images = images if isinstance(images, list) else [images]
    return [image["path"] if isinstance(image, dict) else image for image in images]


_VERDICTS = {"response_a": [[0], [1]], "response_b": [[1], [0]], "tie": [[0, 1]], None: None}


def _parse_ab(row: DatasetRow) -> DatasetRow:
    verdict = row["preference"]
    if not isinstance(verdict, str | None) or verdict not in _VERDICTS:
        raise UsageError(f"unknown preference {verdict!r}: write response_a, response_b or tie")
    answers = _two_answers(row["response_a"], row["response_b"], _VERDICTS[verdict])
    return _question(row["instruction"], [row["image_path"]]) | answers


def _show_ab(record: PreferenceRecord) -> DatasetRow:
    ranking = [sorted(tier) for tier in record.ranking] if record.ranking else None
    verdict = next(name for name, known in _VERDICTS.items() if known == ranking)
    responses = {
        f"response_{letter}": answer.text
        for letter, answer in zip("ab", record.answers, strict=True)
    }
    return {
        "image_path": _one_image(record),
        "instruction": _one_question(record),
        **responses,
        "preference": verdict,
    }


def _flat_format(
    image: str, question: str
) -> tuple[Callable[[DatasetRow], DatasetRow], Callable[[PreferenceRecord], DatasetRow]]:
    """parse and write of formats with one column each for image, question, chosen and rejected."""

    def parse(row: DatasetRow) -> DatasetRow:
        fields = _question(row[question], _image_list(row[image])) | _chosen_first(
            row["chosen"], row["rejected"]
        )
        return _add_model(fields, row)

    def write(record: PreferenceRecord) -> DatasetRow:
        chosen, rejected = _sides(record)
        return {
            image: _one_image(record),
            question: _one_question(record),
            "chosen": chosen,
            "rejected": rejected,
        }

    return parse, write


def _parse_rlhf_v(row: DatasetRow) -> DatasetRow:
    """RLHF-V, and any set that has question and answers as JSON in the string `text`."""
    text = parse_json(row["text"].encode()) if isinstance(row["text"], str) else row["text"]
    image = row["image"] if isinstance(row.get("image"), str) else row["image_path"]
    return _add_model(
        _question(text["question"], [image]) | _chosen_first(text["chosen"], text["rejected"]), row
    )


def _add_model(fields: DatasetRow, row: DatasetRow) -> DatasetRow:
    """`origin_split` names the model that wrote the answers (in RLHF-V the rejected one), as JSON in a string."""
    origin = row.get("origin_split")
    try:
        origin = parse_json(origin.encode()) if isinstance(origin, str) else origin
    except UsageError:  # older rows hold a plain word, which stays in `extra`
        return fields
    if isinstance(origin, dict) and isinstance(origin.get("model"), str):
        for answer in fields["answers"][1 if "text" in row else 0 :]:
            answer["model"] = origin["model"]
    return fields


def _show_rlhf_v(record: PreferenceRecord) -> DatasetRow:
    chosen, rejected = _sides(record)
    text = {"question": _one_question(record), "chosen": chosen, "rejected": rejected}
    return {"image": _one_image(record), "text": json.dumps(text, ensure_ascii=False)}


def _parse_vlfeedback(row: DatasetRow) -> DatasetRow:
    """Ratings of several criteria, 1–5 as text, for each of several models; ranked by their mean, ties together."""
    completions = row["completions"]
    if isinstance(
        completions, dict
    ):  # a sequence of structs comes out of Arrow as a struct of sequences
        completions = [
            dict(zip(completions, values, strict=True))
            for values in zip(*completions.values(), strict=True)
        ]
    answers, unrated = [], []
    for completion in completions:
        ratings = {
            name: float(note["Rating"])
            for name, note in completion["annotations"].items()
            if re.fullmatch(r"\d+(\.\d+)?", str(note["Rating"]))
        }
        answer = {"text": completion["response"], "model": completion["model"], "scores": ratings}
        (answers if ratings else unrated).append(answer)
    for answer in answers:
        answer["score"] = sum(answer["scores"].values()) / len(answer["scores"])
    levels = sorted({answer["score"] for answer in answers}, reverse=True)
    ranking = [
        [place for place, answer in enumerate(answers) if answer["score"] == level]
        for level in levels
    ]
    fields = _question(row["prompt"], [row.get("img_path") or row["image"]])
    if unrated:
        fields["change"] = f"{len(unrated)} answer(s) without a rating left out (kept in extra)"
    return fields | {
        "id": row["id"],
        "answers": answers,
        "ranking": _join_equal_texts(answers, ranking),
    }


def _join_equal_texts(answers: list[DatasetRow], ranking: list[list[int]]) -> list[list[int]]:
    """Equal texts with different ratings contradict each other: their tiers, and those between, become one."""
    merged: list[list[int]] = []
    for tier in ranking:
        texts = {answers[place]["text"] for place in tier}
        clash = next(
            (k for k, other in enumerate(merged) if texts & {answers[p]["text"] for p in other}),
            None,
        )
        if clash is None:
            merged.append(tier)
        else:
            merged[clash:] = [[place for other in [*merged[clash:], tier] for place in other]]
    return merged


def _parse_llava_rlhf(row: DatasetRow) -> DatasetRow:
    turns = row["conversations"]
    turns = turns[0] if turns and isinstance(turns[0], list) else turns
    if (
        turns[-1]["from"] == "gpt"
    ):  # stands for the answer, and is replaced by output_1 and output_2
        turns = turns[:-1]
    if row["preference"] not in (1, 2):
        raise UsageError(f"unknown preference {row['preference']!r}: 1 or 2")
    better = row["preference"] - 1
    answers = _two_answers(
        row["output_1"]["value"], row["output_2"]["value"], [[better], [1 - better]]
    )
    return _conversation(turns, [row["image"]]) | answers


def _show_llava_rlhf(record: PreferenceRecord) -> DatasetRow:
    image, names = _one_image(record), {"user": "human", "assistant": "gpt", "system": "system"}
    turns = [{"from": names[role], "value": text} for role, text in _marked_messages(record)] + [
        {"from": "gpt", "value": ""}
    ]
    outputs = {
        f"output_{k + 1}": {"from": "llava", "value": answer.text}
        for k, answer in enumerate(record.answers)
    }
    return {
        "image": image,
        "conversations": turns,
        **outputs,
        "preference": record.ranking[0][0] + 1,
    }


def _parse_vl_rewardbench(row: DatasetRow) -> DatasetRow:
    """`human_ranking[i]` is the rank of response i, 0 is better (Li et al. 2024, arXiv 2411.17451)."""
    if sorted(row["human_ranking"]) != [0, 1]:
        raise UsageError(f"human_ranking {row['human_ranking']} must be [0, 1] or [1, 0]")
    better = row["human_ranking"].index(0)
    fields = _question(row["query"], [row["image"]]) | _two_answers(
        *row["response"], [[better], [1 - better]]
    )
    for answer, model in zip(fields["answers"], row.get("models") or [], strict=False):
        answer["model"] = model
    return fields | {"id": row.get("id")}


def _show_vl_rewardbench(record: PreferenceRecord) -> DatasetRow:
    row = {"id": record.id} if record.id is not None else {}
    ranks = [0, 1] if record.ranking[0] == [0] else [1, 0]
    responses = [answer.text for answer in record.answers]
    return {
        **row,
        "query": _one_question(record),
        "response": responses,
        "image": _one_image(record),
        "human_ranking": ranks,
    }


def _parse_trl(row: DatasetRow) -> DatasetRow:
    images = _image_list(row["images"] if "images" in row else row["image"])
    prompt = (
        row["prompt"]
        if isinstance(row["prompt"], list)
        else [{"role": "user", "content": row["prompt"]}]
    )
    sides = [
        row[side] if isinstance(row[side], str) else row[side][0]["content"]
        for side in ("chosen", "rejected")
    ]
    return _conversation(prompt, images, "role", "content") | _chosen_first(*sides)


def _show_trl(record: PreferenceRecord) -> DatasetRow:
    prompt = [{"role": message.role, "content": message.content} for message in record.prompt]
    sides = [[{"role": "assistant", "content": text}] for text in _sides(record)]
    return {"images": record.images, "prompt": prompt, "chosen": sides[0], "rejected": sides[1]}


def _parse_llama_factory(row: DatasetRow) -> DatasetRow:
    system = [{"from": "system", "value": row["system"]}] if row.get("system") else []
    fields = _conversation(system + row["conversations"], _image_list(row["images"]))
    return fields | _chosen_first(row["chosen"]["value"], row["rejected"]["value"])


def _show_llama_factory(record: PreferenceRecord) -> DatasetRow:
    names = {"user": "human", "assistant": "gpt", "system": "system"}
    turns = [{"from": names[role], "value": text} for role, text in _marked_messages(record)]
    chosen, rejected = ({"from": "gpt", "value": text} for text in _sides(record))
    return {"conversations": turns, "chosen": chosen, "rejected": rejected, "images": record.images}


def _parse_ms_swift(row: DatasetRow) -> DatasetRow:
    *prompt, answer = row["messages"]
    rejected = (
        row["rejected_response"]
        if "rejected_response" in row
        else row["rejected_messages"][-1]["content"]
    )
    return _conversation(prompt, _image_list(row["images"]), "role", "content") | _chosen_first(
        answer["content"], rejected
    )


def _show_ms_swift(record: PreferenceRecord) -> DatasetRow:
    chosen, rejected = _sides(record)
    messages = [
        {"role": role, "content": text}
        for role, text in [*_marked_messages(record), ("assistant", chosen)]
    ]
    return {"messages": messages, "rejected_response": rejected, "images": record.images}


def _has_columns(*names: str, without: str = "") -> Callable[[DatasetRow], bool]:
    return lambda row: row.keys() >= set(names) and without not in row


def _is_trl(row: DatasetRow) -> bool:
    return _has_columns("prompt", "chosen", "rejected")(row) and isinstance(row["chosen"], list)


FORMATS = {
    "ab": Format(
        "A/B votes",
        _has_columns("response_a", "response_b", "preference"),
        _parse_ab,
        _show_ab,
        ordered=True,
        ties=True,
    ),
    "chosen_rejected": Format(
        "chosen and rejected of an image_path",
        _has_columns("image_path", "prompt", "chosen", "rejected"),
        *_flat_format("image_path", "prompt"),
        array=True,
    ),
    "rlhf_v": Format(
        "RLHF-V, JSON in a string",
        _has_columns("text", without="question"),
        _parse_rlhf_v,
        _show_rlhf_v,
    ),
    "rlaif_v": Format(
        "RLAIF-V",
        _has_columns("origin_split", "question", "chosen", "rejected"),
        *_flat_format("image", "question"),
    ),
    "mmpr": Format(
        "MMPR",
        _has_columns("image", "question", "chosen", "rejected"),
        *_flat_format("image", "question"),
    ),
    "vlfeedback": Format(
        "VLFeedback", _has_columns("prompt", "completions"), _parse_vlfeedback, ordered=True
    ),
    "llava_rlhf": Format(
        "LLaVA-RLHF",
        _has_columns("conversations", "output_1", "output_2"),
        _parse_llava_rlhf,
        _show_llava_rlhf,
        ordered=True,
        array=True,
    ),
    "vl_rewardbench": Format(
        "VL-RewardBench",
        _has_columns("query", "response", "human_ranking"),
        _parse_vl_rewardbench,
        _show_vl_rewardbench,
        ordered=True,
    ),
    "trl": Format("TRL vision preference", _is_trl, _parse_trl, _show_trl),
    "llama_factory": Format(
        "LLaMA-Factory sharegpt ranking",
        _has_columns("conversations", "chosen", "rejected"),
        _parse_llama_factory,
        _show_llama_factory,
        array=True,
    ),
    "ms_swift": Format(
        "ms-swift",
        lambda row: (
            "messages" in row and bool({"rejected_response", "rejected_messages"} & row.keys())
        ),
        _parse_ms_swift,
        _show_ms_swift,
    ),
}
