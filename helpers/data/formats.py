"""The preference formats of other projects, each as two small functions on one row.

`parse` says which fields of a record a row states; `write` makes the row of a record with two
answers. Neither has to care about the rest: `helpers/data/convert_rows.py` keeps what a row or a
record has beyond them, so that nothing is lost either way. `FORMATS` at the end is the table.

Simplification: images come before the text. Where a prompt has its `<image>` marks elsewhere, they
are moved to the front, and the change is reported.
"""

import itertools
import json
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from helpers.files import UsageError, parse_json

from .judgement import Ranking, rank_by_score
from .record import PreferenceRecord, seen_text
from .templates import IMAGE_MARK, repair_prompt, strip_image_marks

DatasetRow = dict[str, Any]
Parser = Callable[[DatasetRow], DatasetRow]
Writer = Callable[[PreferenceRecord], DatasetRow]


@dataclass(frozen=True)
class Format:
    """One way to write preferences down."""

    title: str
    is_format: Callable[[DatasetRow], bool]  # is this row of this format?
    parse: Parser  # row → fields of a record; raises UsageError, KeyError or TypeError
    write: Writer | None = None  # None: this format is only read
    ordered: bool = False  # does a row say in which order the answers were shown?
    ties: bool = False  # can a row say that the two are equally good, or not judged?
    array: bool = False  # files are one JSON array instead of lines


# --- images and prompts ---------------------------------------------------------------------------


def _image_list(images: Any) -> list[str]:
    """List the paths of one image or several; each a path or `{"path": …}`."""
    if not isinstance(images, list):
        images = [images]
    return [image["path"] if isinstance(image, dict) else image for image in images]


def _check_marks(marks: int, images: list[str]) -> None:
    if marks not in (0, len(images)):
        raise UsageError(f"the prompt has {marks} {IMAGE_MARK} marks for {len(images)} images")


def _question(text: str, images: list[str]) -> DatasetRow:
    """Fields of a record whose prompt is one text, with or without `<image>` marks."""
    _check_marks(text.count(IMAGE_MARK), images)
    # A prompt in the template of another model would be read as words.
    messages, change = repair_prompt(text)
    return {"images": images, "prompt": messages, "change": change}


# ShareGPT's names of the roles, and those of a record
_ROLES = {"human": "user", "gpt": "assistant", "system": "system"}
_SHAREGPT_ROLES = {role: name for name, role in _ROLES.items()}


def _conversation(
    turns: list[DatasetRow],
    images: list[str],
    role: str = "from",
    content: str = "value",
) -> DatasetRow:
    """Fields of a record from chat turns; `<image>` marks are taken out of the texts."""
    fields = {"images": images, "prompt": []}
    marks = 0
    for turn in turns:
        text = _text(turn[content])
        marks += text.count(IMAGE_MARK)
        # A role that nobody knows is refused with the record.
        name = _ROLES.get(turn[role], turn[role])
        fields["prompt"].append({"role": name, "content": strip_image_marks(text)})
        if IMAGE_MARK in text.strip().removeprefix(IMAGE_MARK):
            fields["change"] = "image marks moved to the front"
    _check_marks(marks, images)
    return fields


def _text(content: Any) -> str:
    """The text of a message: a string, or a list of parts, of which those of images are marks."""
    if isinstance(content, str):
        return content
    texts = []
    for part in content:
        if part["type"] == "text":
            texts.append(part["text"])
        elif part["type"] in ("image", "image_url"):
            texts.append(IMAGE_MARK)
        else:
            raise UsageError(f"a message has a part of type {part['type']!r}: only text and images")
    return "\n".join(texts)


def _split_last(turns: list[DatasetRow], name: str) -> tuple[list[DatasetRow], str]:
    """The turns before the last one, and the text of the last one, which is the assistant's."""
    *before, last = turns
    if last["role"] != "assistant":
        raise UsageError(f"{name} ends with a turn of {last['role']!r}, not of the assistant")
    return before, last["content"]


def _same_turns(first: list[DatasetRow], second: list[DatasetRow]) -> bool:
    """Do they say the same? Marks of images do not count: one of two copies may lack them."""
    sides = []
    for turns in (first, second):
        said = [(turn["role"], strip_image_marks(_text(turn["content"]))) for turn in turns]
        sides.append(said)
    return sides[0] == sides[1]


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


def _turns(
    record: PreferenceRecord,
    role: str = "from",
    content: str = "value",
) -> list[DatasetRow]:
    """Chat turns of a prompt, one `<image>` mark an image before the first text of the user."""
    marks = IMAGE_MARK * len(record.images)
    turns = []
    for message in record.prompt:
        name = _SHAREGPT_ROLES[message.role] if role == "from" else message.role
        text = message.content
        if message.role == "user":
            text = marks + text
            marks = ""
        turns.append({role: name, content: text})
    return turns


# --- answers --------------------------------------------------------------------------------------


def _two_answers(first: Any, second: Any, better: int = 0) -> DatasetRow:
    """Fields of a record with two answers; `better` is the place of the better one."""
    return {
        "answers": [{"text": _text(first)}, {"text": _text(second)}],
        "ranking": [[better], [1 - better]],
    }


def _sides(record: PreferenceRecord) -> tuple[str, str]:
    """Texts of the better and the worse answer of a record with two."""
    better, worse = record.ranking
    return record.answers[better[0]].text, record.answers[worse[0]].text


# --- one format after the other -------------------------------------------------------------------

_VERDICTS = {
    "response_a": [[0], [1]],
    "response_b": [[1], [0]],
    "tie": [[0, 1]],
    None: None,  # not judged
}


def _parse_ab(row: DatasetRow) -> DatasetRow:
    verdict = row["preference"]
    if not isinstance(verdict, str | None) or verdict not in _VERDICTS:
        raise UsageError(f"unknown preference {verdict!r}: write response_a, response_b or tie")
    fields = _question(row["instruction"], [row["image_path"]])
    fields |= _two_answers(row["response_a"], row["response_b"])
    fields["ranking"] = _VERDICTS[verdict]
    return fields


def _show_ab(record: PreferenceRecord) -> DatasetRow:
    # Places in a tie have no order, but the table has one.
    ranking = [sorted(tier) for tier in record.ranking] if record.ranking else None
    first, second = record.answers
    return {
        "image_path": _one_image(record),
        "instruction": _one_question(record),
        "response_a": first.text,
        "response_b": second.text,
        "preference": next(name for name, known in _VERDICTS.items() if known == ranking),
    }


def _flat_format(image: str, question: str) -> tuple[Parser, Writer]:
    """parse and write of formats with one column each for image, question, chosen and rejected."""

    def parse(row: DatasetRow) -> DatasetRow:
        fields = _question(row[question], _image_list(row[image]))
        return _add_model(fields | _two_answers(row["chosen"], row["rejected"]), row)

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
    text = row["text"]
    if isinstance(text, str):
        text = parse_json(text.encode())
    # On the hub `image` is the picture itself; once it is stored, the path of its file.
    image = row["image"] if isinstance(row.get("image"), str) else row["image_path"]
    fields = _question(text["question"], [image])
    return _add_model(fields | _two_answers(text["chosen"], text["rejected"]), row)


def _add_model(fields: DatasetRow, row: DatasetRow) -> DatasetRow:
    """Name the model that wrote the answers, from `origin_split`, which is JSON in a string."""
    origin = row.get("origin_split")
    try:
        if isinstance(origin, str):
            origin = parse_json(origin.encode())
    except UsageError:  # older rows hold a plain word, which stays in `extra`
        return fields
    if isinstance(origin, dict) and isinstance(origin.get("model"), str):
        # In RLHF-V, which has `text`, the chosen answer is a person's correction.
        for answer in fields["answers"][1 if "text" in row else 0 :]:
            answer["model"] = origin["model"]
    return fields


def _show_rlhf_v(record: PreferenceRecord) -> DatasetRow:
    chosen, rejected = _sides(record)
    text = {"question": _one_question(record), "chosen": chosen, "rejected": rejected}
    return {"image": _one_image(record), "text": json.dumps(text, ensure_ascii=False)}


def _parse_vlfeedback(row: DatasetRow) -> DatasetRow:
    """Ratings of several criteria for each of several models; ranked by their mean."""
    completions = row["completions"]
    if isinstance(completions, dict):
        # A sequence of structs comes out of Arrow as a struct of sequences.
        values = zip(*completions.values(), strict=True)
        completions = [dict(zip(completions, each, strict=True)) for each in values]
    answers = [_rated_answer(completion) for completion in completions]
    rated = [answer for answer in answers if answer["scores"]]
    for answer in rated:
        answer["score"] = sum(answer["scores"].values()) / len(answer["scores"])
    fields = _question(row["prompt"], [row.get("img_path") or row["image"]])
    unrated = len(answers) - len(rated)
    if unrated:
        fields["change"] = f"{unrated} answer(s) without a rating left out (kept in extra)"
    fields["id"] = row["id"]
    fields["answers"] = rated
    fields["ranking"] = _join_equal_texts(rated)
    return fields


def _rated_answer(completion: DatasetRow) -> DatasetRow:
    """An answer of VLFeedback with its ratings, 1–5 as text; one "N/A" and it was not rated.

    The authors leave such answers out (Li et al. 2023, arXiv 2312.10665): the mean of the other
    criteria would compare answers by different things.
    """
    scores = {}
    for name, note in completion["annotations"].items():
        rating = str(note["Rating"])
        if not re.fullmatch(r"\d+(\.\d+)?", rating):
            scores = {}
            break
        scores[name] = float(rating)
    return {"text": completion["response"], "model": completion["model"], "scores": scores}


def _join_equal_texts(answers: list[DatasetRow]) -> Ranking:
    """Rank answers by score, where equal texts with different scores would contradict each other.

    The tiers of equal texts, and those between, become one.
    """
    merged = []
    tier_of = {}  # text as a reader sees it → its tier in `merged`
    texts = [seen_text(answer["text"]) for answer in answers]
    for tier in rank_by_score([answer["score"] for answer in answers]):
        # The first earlier tier with one of these texts; a new one if there is none.
        first = min(tier_of.get(texts[place], len(merged)) for place in tier)
        merged[first:] = [[*itertools.chain(*merged[first:]), *tier]]
        for place in merged[first]:
            tier_of[texts[place]] = first
    return merged


def _parse_llava_rlhf(row: DatasetRow) -> DatasetRow:
    turns = row["conversations"]
    # Some files have the conversation in a list of its own.
    turns = turns[0] if turns and isinstance(turns[0], list) else turns
    if turns[-1]["from"] == "gpt":
        turns = turns[:-1]  # it stands for the answer, and output_1 and output_2 replace it
    if row["preference"] not in (1, 2):
        raise UsageError(f"unknown preference {row['preference']!r}: 1 or 2")
    fields = _conversation(turns, [row["image"]])
    first, second = row["output_1"]["value"], row["output_2"]["value"]
    return fields | _two_answers(first, second, row["preference"] - 1)


def _show_llava_rlhf(record: PreferenceRecord) -> DatasetRow:
    first, second = record.answers
    return {
        "image": _one_image(record),
        "conversations": [*_turns(record), {"from": "gpt", "value": ""}],
        "output_1": {"from": "llava", "value": first.text},
        "output_2": {"from": "llava", "value": second.text},
        "preference": record.ranking[0][0] + 1,
    }


def _parse_vl_rewardbench(row: DatasetRow) -> DatasetRow:
    """`human_ranking[i]` is the rank of response i, 0 is better."""
    ranks = row["human_ranking"]
    if sorted(ranks) != [0, 1]:
        raise UsageError(f"human_ranking {ranks} must be [0, 1] or [1, 0]")
    fields = _question(row["query"], [row["image"]])
    fields |= _two_answers(*row["response"], better=ranks.index(0))
    for answer, model in zip(fields["answers"], row.get("models") or [], strict=False):
        answer["model"] = model
    return fields | {"id": row.get("id")}


def _show_vl_rewardbench(record: PreferenceRecord) -> DatasetRow:
    row = {"id": record.id} if record.id is not None else {}
    return row | {
        "query": _one_question(record),
        "response": [answer.text for answer in record.answers],
        "image": _one_image(record),
        "human_ranking": [0, 1] if record.ranking[0] == [0] else [1, 0],
    }


def _parse_trl(row: DatasetRow) -> DatasetRow:
    images = _image_list(row["images"] if "images" in row else row["image"])
    prompt = row["prompt"]
    if not isinstance(prompt, list):
        prompt = [{"role": "user", "content": prompt}]
    before, texts = [], []
    for name in ("chosen", "rejected"):
        side = row[name]
        turns, text = ([], side) if isinstance(side, str) else _split_last(side, name)
        before.append(turns)
        texts.append(text)
    if not _same_turns(*before):
        raise UsageError(
            "chosen and rejected go through different turns before their last answers, but a pair "
            "is two answers to one prompt. Keep shared turns in the prompt, and one answer each"
        )
    prompt = _whole_prompt(prompt, before[0])
    return _conversation(prompt, images, "role", "content") | _two_answers(*texts)


def _whole_prompt(prompt: list[DatasetRow], before: list[DatasetRow]) -> list[DatasetRow]:
    """The prompt of a row whose answers may repeat it, or go on from it, in turns `before`."""
    if not before or _same_turns(before, prompt):
        return prompt
    system = before[:1] if before[0]["role"] == "system" else []
    rest = before[len(system) :]
    if not rest or _same_turns(rest, prompt):
        return [*system, *prompt]
    if _same_turns(before[: len(prompt)], prompt) or _same_turns(rest[: len(prompt)], prompt):
        return before
    if rest[0]["role"] == "assistant":
        return [*system, *prompt, *rest]
    raise UsageError(
        "chosen and rejected begin with another question than the prompt. Make them one answer each"
    )


def _show_trl(record: PreferenceRecord) -> DatasetRow:
    chosen, rejected = _sides(record)
    return {
        "images": record.images,
        "prompt": [message.model_dump() for message in record.prompt],
        "chosen": [{"role": "assistant", "content": chosen}],
        "rejected": [{"role": "assistant", "content": rejected}],
    }


def _parse_llama_factory(row: DatasetRow) -> DatasetRow:
    turns = row["conversations"] if "conversations" in row else row["messages"]
    role, content = ("from", "value") if "from" in turns[0] else ("role", "content")
    if row.get("system"):
        turns = [{role: "system", content: row["system"]}, *turns]
    fields = _conversation(turns, _image_list(row["images"]), role, content)
    sides = (row["chosen"], row["rejected"])
    return fields | _two_answers(*(side.get("value", side.get("content")) for side in sides))


def _show_llama_factory(record: PreferenceRecord) -> DatasetRow:
    chosen, rejected = _sides(record)
    return {
        "conversations": _turns(record),
        "chosen": {"from": "gpt", "value": chosen},
        "rejected": {"from": "gpt", "value": rejected},
        "images": record.images,
    }


def _parse_ms_swift(row: DatasetRow) -> DatasetRow:
    prompt, answer = _split_last(row["messages"], "messages")
    images = _image_list(row["images"])
    if "rejected_response" in row:
        rejected = row["rejected_response"]
    else:
        other, rejected = _split_last(row["rejected_messages"], "rejected_messages")
        if not _same_turns(prompt, other):
            raise UsageError(
                "rejected_messages answer another conversation than messages, but a pair is two "
                "answers to one prompt"
            )
    if row.get("rejected_images") and _image_list(row["rejected_images"]) != images:
        raise UsageError(
            "rejected_images are other pictures than images, but a pair is two answers to the same "
            "pictures. For pictures that are compared, a record has negative_images (mDPO)"
        )
    fields = _conversation(prompt, images, "role", "content")
    return fields | _two_answers(answer, rejected)


def _show_ms_swift(record: PreferenceRecord) -> DatasetRow:
    chosen, rejected = _sides(record)
    answer = {"role": "assistant", "content": chosen}
    return {
        "messages": [*_turns(record, "role", "content"), answer],
        "rejected_response": rejected,
        "images": record.images,
    }


# --- the table ------------------------------------------------------------------------------------


def _has_columns(*names: str, without: str = "") -> Callable[[DatasetRow], bool]:
    return lambda row: row.keys() >= set(names) and without not in row


def _is_trl(row: DatasetRow) -> bool:
    return _has_columns("prompt", "chosen", "rejected")(row) and isinstance(row["chosen"], list)


def _is_rlhf_v(row: DatasetRow) -> bool:
    """JSON in a string: a bare text is something else, such as POPE's question."""
    text = row.get("text")
    if "question" in row:
        return False
    return isinstance(text, dict) or (isinstance(text, str) and text.lstrip().startswith("{"))


def _is_llama_factory(row: DatasetRow) -> bool:
    named = "conversations" in row or "messages" in row
    return named and all(isinstance(row.get(side), dict) for side in ("chosen", "rejected"))


def _is_ms_swift(row: DatasetRow) -> bool:
    return "messages" in row and ("rejected_response" in row or "rejected_messages" in row)


FORMATS = {
    # Two answers of unnamed models and the vote of a person; the only format that knows ties.
    "ab": Format(
        "A/B votes",
        _has_columns("response_a", "response_b", "preference"),
        _parse_ab,
        _show_ab,
        ordered=True,
        ties=True,
    ),
    # One table for a whole project, with the texts as a first tutorial has them.
    "chosen_rejected": Format(
        "chosen and rejected of an image_path",
        _has_columns("image_path", "prompt", "chosen", "rejected"),
        *_flat_format("image_path", "prompt"),
        array=True,
    ),
    # Yu et al. 2023, arXiv 2312.00849
    "rlhf_v": Format(
        "RLHF-V, JSON in a string",
        _is_rlhf_v,
        _parse_rlhf_v,
        _show_rlhf_v,
    ),
    # Yu et al. 2024, arXiv 2405.17220; before mmpr, whose columns it has too
    "rlaif_v": Format(
        "RLAIF-V",
        _has_columns("origin_split", "question", "chosen", "rejected"),
        *_flat_format("image", "question"),
    ),
    # Wang et al. 2024, arXiv 2411.10442
    "mmpr": Format(
        "MMPR",
        _has_columns("image", "question", "chosen", "rejected"),
        *_flat_format("image", "question"),
    ),
    # Li et al. 2024, arXiv 2410.09421
    "vlfeedback": Format(
        "VLFeedback", _has_columns("prompt", "completions"), _parse_vlfeedback, ordered=True
    ),
    # Sun et al. 2023, arXiv 2309.14525
    "llava_rlhf": Format(
        "LLaVA-RLHF",
        _has_columns("conversations", "output_1", "output_2"),
        _parse_llava_rlhf,
        _show_llava_rlhf,
        ordered=True,
        array=True,
    ),
    # Li et al. 2024, arXiv 2411.17451
    "vl_rewardbench": Format(
        "VL-RewardBench",
        _has_columns("query", "response", "human_ranking"),
        _parse_vl_rewardbench,
        _show_vl_rewardbench,
        ordered=True,
    ),
    # What DPOTrainer of TRL reads.
    "trl": Format("TRL vision preference", _is_trl, _parse_trl, _show_trl),
    # Data sets of LLaMA-Factory with `ranking: true`.
    "llama_factory": Format(
        "LLaMA-Factory sharegpt ranking",
        _is_llama_factory,
        _parse_llama_factory,
        _show_llama_factory,
        array=True,
    ),
    # Data sets of ms-swift for `swift rlhf`.
    "ms_swift": Format(
        "ms-swift",
        _is_ms_swift,
        _parse_ms_swift,
        _show_ms_swift,
    ),
}
