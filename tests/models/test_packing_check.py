"""What was found of a model is not tried again; what may be otherwise is."""

import pytest

from helpers import models
from helpers.models import packing_check


@pytest.fixture
def tried(monkeypatch):
    """Nothing is known yet; the layouts that are tried."""
    found = []
    check = packing_check.check_packing

    def count(*given, packs):
        found.append(packs)
        return check(*given, packs=packs)

    monkeypatch.setattr(packing_check, "check_packing", count)
    monkeypatch.setattr(packing_check, "_RIGHT", set())
    return found


def test_a_model_of_the_same_code_is_not_tried_again(tried):
    for _ in range(2):
        model, processor = models.load_model("tiny")
        assert models.can_pack(model, processor)
    assert tried == [True]
    # features alone are another question, and so is a tower that is trained
    assert models.can_keep_features(model, processor)
    next(packing_check.backbone_of(model).visual.parameters()).requires_grad_(True)
    assert models.can_pack(model, processor)
    assert tried == [True, False, True]


def test_what_a_model_does_of_its_own_is_tried_each_time(tried):
    model, processor = models.load_model("tiny")
    hook = model.lm_head.register_forward_hook(lambda *_: None)
    assert models.can_pack(model, processor) and models.can_pack(model, processor)
    hook.remove()
    layer = model.get_decoder().layers[0].mlp
    forward = type(layer).forward
    layer.forward = lambda states: forward(layer, states)
    assert models.can_pack(model, processor) and tried == [True] * 3


def test_another_forward_of_a_class_is_tried(tried, monkeypatch):
    model, processor = models.load_model("tiny")
    assert models.can_pack(model, processor)
    kind = type(model.get_decoder().layers[0].mlp)
    forward = kind.forward
    monkeypatch.setattr(kind, "forward", lambda self, states: forward(self, states))
    assert models.can_pack(model, processor) and tried == [True] * 2


def test_a_fault_is_not_remembered(tried, monkeypatch, capsys):
    model, processor = models.load_model("tiny")
    weight = model.lm_head.weight.data.clone()
    model.lm_head.weight.data.fill_(float("nan"))
    assert not models.can_pack(model, processor)
    model.lm_head.weight.data.copy_(weight)
    assert models.can_pack(model, processor) and tried == [True] * 2
