"""Sampled answers that a test writes itself, in place of those of a model."""

import torch

from helpers.evaluation import best_answer
from helpers.models.prompts import end_of_turn


def let_it_say(monkeypatch, processor, texts, cut_off=()):
    """The answers of `ask_for_best` from now on, in this order; cut_off: texts without an end.

    Returns a list that grows by one entry a call: how many answers it asked for.
    """
    asked = []

    def sample_ids(model, processor, prompts, *, group_size, **decoding):
        asked.append(group_size)
        ids = []
        for text in texts[:group_size]:
            end = "" if text in cut_off else end_of_turn(processor)
            written = processor.tokenizer(text + end, add_special_tokens=False)["input_ids"]
            ids.append(torch.tensor(written, dtype=torch.long))
        return ids, [text not in cut_off for text in texts[:group_size]]

    monkeypatch.setattr(best_answer, "sample_ids", sample_ids)
    return asked
