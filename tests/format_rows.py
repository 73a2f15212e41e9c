"""A row of every two-way format, and which records it can hold."""

from helpers.data.formats import FORMATS
from helpers.data.record import PreferenceRecord

TWO_WAY = [name for name, form in FORMATS.items() if form.write]
RANKED = {
    "images": ["a.png"],
    "prompt": "How many cars?",
    "answers": [
        {"text": "2", "score": 1.0},
        {"text": "3", "score": 0.5},
        {"text": "many", "score": -1.0},
    ],
    "ranking": [[0], [1], [2]],
    "id": "r1",
    "truth": {"cars": 2},
}


def fits(name: str, record: PreferenceRecord) -> bool:
    """What a format can hold, read off the columns of its row in `ROWS`."""
    row = ROWS[name]
    turns = [row[column] for column in ("conversations", "messages", "prompt") if column in row]
    if len(record.prompt) > 1 and not any(isinstance(column, list) for column in turns):
        return False
    if len(record.images) > 1 and "images" not in row:
        return False
    tied = record.ranking is None or len(record.ranking) < 2
    return not tied or (name == "ab" and len(record.answers) == 2)


ROWS = {
    "ab": {"image_path": "path/to/img1.jpg", "instruction": "Describe the main object.", "response_a": "A cat is sitting on a mat.", "response_b": "There is an animal.", "preference": "response_a", "annotator": 3},
    "chosen_rejected": {"image_path": "/content/drive/x.jpg", "prompt": "<|user|>\nPlease count the number of vehicles you see. <image>\n<|assistant|>\n", "chosen": "There are 2 cars, 3 motorcycles, 0 buss, 0 bicycles in the image.", "rejected": "There are 5 cars, 6 motorcycles, 3 buss, 9 bicycles in the image."},
    "rlhf_v": {"ds_name": "RLHF-V", "image": "images/1.jpg", "text": '{"question": "Where?",  "chosen": "Here.", "rejected": "There."}', "origin_dataset": "coco", "origin_split": '{"model": "llava", "type": "question answering"}', "idx": 7, "image_path": "1.jpg"},
    "rlaif_v": {"ds_name": "RLAIF-V", "image": "images/1.jpg", "question": "Where?", "chosen": "Here.", "rejected": "There.", "origin_dataset": "coco", "origin_split": '{"model": "llava15-7b", "type": "detailed"}', "idx": "7", "image_path": "1.jpg"},
    "mmpr": {"image": "images/1.jpg", "question": "<image>\nWhere?", "chosen": "Here.", "rejected": "There.", "length": 12},
    "llava_rlhf": {"id": "000", "image": "1.jpg", "conversations": [{"from": "human", "value": "Where?\n<image>"}, {"from": "gpt", "value": "Here."}, {"from": "human", "value": "Why?"}, {"from": "gpt", "value": "Old."}], "output_1": {"from": "llava", "value": "A."}, "output_2": {"from": "llava", "value": "B."}, "preference": 2, "hallucination": False},
    "vl_rewardbench": {"id": "RLAIF-V-1", "query": "Where?", "response": ["Here.", "There."], "image": "1.jpg", "human_ranking": [1, 0], "models": ["a", "b"], "judge": None, "rationale": "", "query_source": "wildvision", "ground_truth": ""},
    "trl": {"images": ["1.jpg"], "prompt": [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "Where?"}]}], "chosen": [{"role": "assistant", "content": [{"type": "text", "text": "Here."}]}], "rejected": [{"role": "assistant", "content": "There."}]},
    "llama_factory": {"conversations": [{"from": "human", "value": "<image>Where?"}], "chosen": {"from": "gpt", "value": "Here."}, "rejected": {"from": "gpt", "value": "There."}, "images": ["1.jpg"], "system": "Be short."},
    "ms_swift": {"messages": [{"role": "user", "content": "<image>Where?"}, {"role": "assistant", "content": "Here."}], "rejected_response": "There.", "images": ["1.jpg"], "rejected_images": ["1.jpg"], "margin": 0.3},
}  # fmt: skip
