import copy
import doctest

import pytest
import torch
from architectures import BUILDERS, build, build_deep
from newer_architectures import NEWER, RECURRENT
from pictures import noise
from shipped import pictures_of
from torch.testing import assert_close

from helpers import models
from helpers.config import LoraSettings
from helpers.models import encoded_prompts, shared_prefix
from helpers.models.caches import ImageFeatures, backbone_of
from helpers.models.encoded_prompts import EncodedPrompts, encode_prompts
from helpers.models.packer import Packer
from helpers.models.packing_check import PackingCheck, can_keep_features, can_pack, check_packing
from helpers.models.prompts import render, user_message
from helpers.models.shared_prefix import (
    answer_logits,
    answer_logps,
    hidden_states,
    pack,
    pack_separately,
)

QUESTIONS = ["How many cars?", "How many buses are in the image, and of which color are they?"]
ANSWERS = [["There are 2.", "No."], ["There are 2 cars, 0 buses.", "x", "Green. Yes"]]
IMAGES = [
    [noise(112, 112)],
    [noise(84, 140, seed=1).point(lambda value: value // 2)],
]


@pytest.fixture(scope="module", params=BUILDERS)
def batch(request):
    model, processor = build(request.param)
    prompts = [render(processor, question) for question in QUESTIONS]
    return model, processor, encode_prompts(processor, prompts, IMAGES)


def own_states(model, packed, layers=()):
    """The states at all answers' own tokens, one answer behind the other, (tokens, …)."""
    return hidden_states(model, packed, layers)[packed.mask[:, 1:]]


def last_states(model, packed):
    return hidden_states(model, packed)[:, -1]


def test_answers_in_one_row_have_the_states_of_a_row_each(batch):
    model, processor, prompts = batch
    packed = pack(model, processor, prompts, ANSWERS)
    assert packed.inputs["input_ids"].shape[0] == 2 and len(packed.rows) == 5
    states = own_states(model, packed)
    right, left = (pack_separately(processor, prompts, ANSWERS, side) for side in ("right", "left"))
    assert_close(states, own_states(model, right), rtol=1e-4, atol=1e-5)
    assert_close(own_states(model, left), own_states(model, right), rtol=1e-4, atol=1e-5)
    layers = own_states(model, packed, (1, 2, 3))
    assert_close(layers, own_states(model, right, (1, 2, 3)), rtol=1e-4, atol=1e-5)
    assert_close(layers[:, 2], states)


def test_an_answer_does_not_see_the_others_but_sees_the_image(batch):
    model, processor, prompts = batch
    before = last_states(model, pack(model, processor, prompts, ANSWERS))
    for place in (0, 1):  # before the other one in the row, and behind it
        first = [*ANSWERS[0]]
        first[place] = "Seven of them, at least."
        after = last_states(model, pack(model, processor, prompts, [first, ANSWERS[1]]))
        others = [number for number in range(5) if number != place]
        assert_close(after[others], before[others], rtol=1e-4, atol=1e-5)
        assert not torch.allclose(after[place], before[place], atol=1e-3)
    other_image = last_states(
        model,
        pack(model, processor, encode_prompts(processor, prompts.texts, [IMAGES[0]] * 2), ANSWERS),
    )
    changed = (other_image - before).norm(dim=1)
    assert (changed[2:] > 1e-4).all() and (changed[:2] < 1e-4).all()


def test_gradients_are_equal(batch):
    model, processor, prompts = batch
    weight = model.get_decoder().layers[0].mlp.up_proj.weight
    gradients = []
    for inputs in (
        pack(model, processor, prompts, ANSWERS),
        pack_separately(processor, prompts, ANSWERS),
    ):
        weight.requires_grad_(True)
        gradients.append(torch.autograd.grad(own_states(model, inputs).square().sum(), weight)[0])
        weight.requires_grad_(False)
    assert_close(*gradients, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize(
    "answers", [[["There are 2.", "No."]] * 2, ANSWERS, [["No.", "A", "There are 2.", "x y"]] * 2]
)
def test_log_probabilities_are_equal_token_by_token(batch, answers):
    """N = 2 and 4 and unequal numbers, against a row each with padding on either side, with and without kept features."""
    model, processor, prompts = batch
    kept = ImageFeatures(model, processor)
    packed = pack(model, processor, prompts, answers)
    ours = answer_logps(model, packed)
    assert ours.shape == packed.mask[:, 1:].shape and (ours[packed.mask[:, 1:]] < 0).all()
    assert (ours[~packed.mask[:, 1:]] == 0).all() and ours.dtype == torch.float32
    with_kept = pack(
        model, processor, encode_prompts(processor, prompts.texts, IMAGES, kept), answers
    )
    assert_close(answer_logps(model, with_kept), ours, rtol=1e-4, atol=1e-5)
    for side in ("right", "left"):
        alone = pack_separately(processor, prompts, answers, side)
        assert torch.equal(alone.ids[alone.mask], packed.ids[packed.mask])
        assert_close(answer_logps(model, alone), ours, rtol=1e-4, atol=1e-5)


def test_an_adapters_gradients_are_equal(batch):
    """A DPO-like loss on the packed and the plain layout, with a LoRA adapter that has left zero."""
    model, processor, prompts = batch
    policy = models.add_adapter(model, LoraSettings(r=4))
    with torch.no_grad():
        for name, parameter in policy.named_parameters():
            if "lora_B" in name:
                parameter.normal_(0, 0.05)
    weights = [parameter for parameter in policy.parameters() if parameter.requires_grad]
    kept = ImageFeatures(policy, processor)
    gradients = []
    for inputs in (
        pack(policy, processor, encode_prompts(processor, prompts.texts, IMAGES, kept), ANSWERS),
        pack(policy, processor, prompts, ANSWERS),
        *(pack_separately(processor, prompts, ANSWERS, side) for side in ("right", "left")),
    ):
        sums = answer_logps(policy, inputs).sum(1)
        loss = (
            -torch.nn.functional.logsigmoid(sums[0] - sums[1] + sums[2] - sums[3]) - 0.1 * sums[4]
        )
        gradients.append(torch.autograd.grad(loss, weights))
    policy.unload()
    for other in gradients[1:]:
        for ours, theirs in zip(gradients[0], other, strict=True):
            assert_close(ours, theirs, rtol=1e-4, atol=1e-5 * float(theirs.norm()) + 1e-7)


def test_the_language_head_runs_on_answers_only(batch):
    model, processor, prompts = batch
    sizes = []
    hook = model.get_output_embeddings().register_forward_hook(
        lambda m, inputs, output: sizes.append(output.shape[1])
    )
    packed = pack(model, processor, prompts, ANSWERS)
    logits = answer_logits(model, packed)
    hook.remove()
    longest_row = max(int(packed.mask[:2].sum()), int(packed.mask[2:].sum()))
    assert sizes == [longest_row + 1] and logits.shape[:2] == packed.columns.shape


def test_without_images_too(batch):
    model, processor, _ = batch
    prompts = [render(processor, question, images=0) for question in QUESTIONS]
    prompts = encode_prompts(processor, prompts, [[], []])
    packed, rows = (
        pack(model, processor, prompts, ANSWERS),
        pack_separately(processor, prompts, ANSWERS),
    )
    assert_close(own_states(model, packed), own_states(model, rows), rtol=1e-4, atol=1e-5)


def second_and_third(mask):
    """Where these answers of a packed row begin: a first token does not see the one before it."""
    return [i for i in range(1, mask.shape[-1]) if not mask[0, 0, i, i - 1]]


def every_answer_sees_the_others(inputs):
    inputs["attention_mask"] = torch.ones_like(inputs["attention_mask"]).tril()


def the_second_answer_sees_the_first(inputs):
    second, third = second_and_third(inputs["attention_mask"])
    inputs["attention_mask"] = inputs["attention_mask"].clone()
    inputs["attention_mask"][..., second:third, :second] = True


def positions_go_on_along_the_row(inputs):
    second, _ = second_and_third(inputs["attention_mask"])
    positions = inputs["position_ids"].clone()
    behind = torch.arange(1, positions.shape[-1] - second + 1)
    positions[..., second:] = positions[..., second - 1 : second] + behind
    inputs["position_ids"] = positions


MASKS = (every_answer_sees_the_others, the_second_answer_sees_the_first)
PRECISIONS = (torch.float32, torch.bfloat16, torch.float16)
# how far plain layouts lie apart behind 24 layers
FLOORS = {
    torch.float32: (1e-8, 1e-5),
    torch.bfloat16: (2e-3, 1e-1),
    torch.float16: (5e-4, 1e-2),
}


def packs_with(model, processor, mistake):
    """Packing tried on a model that makes the mistake in packed rows."""

    def spoil(module, args, inputs):
        if inputs["attention_mask"].ndim == 4:
            mistake(inputs)
        return args, inputs

    hook = backbone_of(model).register_forward_pre_hook(spoil, with_kwargs=True)
    packs = can_pack(model, processor)
    hook.remove()
    return packs


@pytest.mark.parametrize("dtype", PRECISIONS, ids=str)
def test_a_wrong_mask_is_found_and_said_in_every_precision(batch, dtype, capsys):
    model, processor, _ = batch
    model = copy.deepcopy(model).to(dtype)
    assert can_pack(model, processor) and capsys.readouterr().out == ""
    for mistake in MASKS:
        assert not packs_with(model, processor, mistake)
        assert "packing does not work" in capsys.readouterr().out


def test_wrong_positions_are_found(batch):
    model, processor, _ = batch
    assert not packs_with(model, processor, positions_go_on_along_the_row)


@pytest.mark.parametrize("dtype", PRECISIONS, ids=str)
@pytest.mark.parametrize("name", ["qwen2_vl", "smolvlm"])
def test_what_rounding_adds_up_to_in_many_layers_is_no_mistake(name, dtype, capsys):
    """Real weights in bf16 differ by 2 to 8 % in plain layouts; once, 2 % was the limit."""
    model, processor = build_deep(name)
    model = model.to(dtype)
    check = check_packing(model, processor)
    assert check.ok and can_pack(model, processor) and capsys.readouterr().out == ""
    low, high = FLOORS[dtype]
    assert low < check.floor < high
    assert check.limit == pytest.approx(max(2 * check.floor, 1e-4))  # 2: PACKING_FLOORS
    for mistake in (*MASKS, positions_go_on_along_the_row):
        assert not packs_with(model, processor, mistake)
        assert "would be rounding" in capsys.readouterr().out


@pytest.mark.parametrize("name", NEWER)
def test_newer_models_pack_unless_they_hand_states_on(name, capsys):
    """Gemma's windows are shorter than the prompt, and its visual tokens see each other."""
    model, processor = build(name)
    prompt = encode_prompts(processor, [render(processor, "What is it?")], [[noise(112, 112)]])
    if name.startswith("gemma"):
        assert prompt.rows[0]["input_ids"].shape[1] > model.config.text_config.sliding_window
    assert can_pack(model, processor) == (name not in RECURRENT)
    said = capsys.readouterr().out
    assert ("carry one answer into the next" in said) == (name in RECURRENT)
    assert can_keep_features(model, processor) and not capsys.readouterr().out


def test_a_loaders_forward_that_takes_the_block_mask_for_one_of_padding_is_found(batch, capsys):
    """Only the logits are wrong then."""
    model, processor, _ = batch

    def causal(module, args, inputs):
        if inputs["attention_mask"].ndim == 4:  # all real tokens see the first one
            inputs["attention_mask"] = inputs["attention_mask"][:, 0, :, 0].long()
        return args, inputs

    hook = model.register_forward_pre_hook(causal, with_kwargs=True)
    packs = can_pack(model, processor)
    hook.remove()
    assert not packs and "would be rounding" in capsys.readouterr().out


def test_what_is_not_a_number_is_not_rounding():
    nan = float("nan")
    assert PackingCheck(0.2, 0.1, 0.3).ok and not PackingCheck(0.4, 0.1, 0.3).ok
    assert not PackingCheck(nan, 0.1, 0.3).ok and not PackingCheck(0.2, nan, nan).ok


def test_the_language_head_gets_its_input_in_one_piece(batch, monkeypatch):
    """A slice of several rows would cost a copy of the head's weight for each of them."""
    model, processor, prompts = batch
    seen = []
    head = model.get_output_embeddings()
    forward = head.forward
    monkeypatch.setattr(
        head, "forward", lambda states: seen.append(states.is_contiguous()) or forward(states)
    )
    answer_logits(model, pack(model, processor, prompts, ANSWERS))
    answer_logits(model, pack_separately(processor, prompts, ANSWERS))
    models.generate_answers(
        model, processor, [images[0] for images in IMAGES], QUESTIONS, max_new_tokens=2
    )
    assert len(seen) >= 4 and all(seen) and not head._forward_pre_hooks
    seen.clear()
    model(**pack(model, processor, prompts, ANSWERS).inputs, logits_to_keep=3)
    assert seen == [False]  # transformers itself


def test_a_forward_that_keeps_all_logits_or_none_is_no_trap(batch, monkeypatch, capsys):
    model, processor, prompts = batch
    packed = pack(model, processor, prompts, ANSWERS)
    expected, forward = answer_logits(model, packed), model.forward
    monkeypatch.setattr(model, "forward", lambda logits_to_keep=0, **inputs: forward(**inputs))
    assert_close(answer_logits(model, packed), expected)
    monkeypatch.setattr(
        model, "forward", lambda **inputs: type("Output", (), {"logits": torch.empty(0)})
    )
    assert not can_pack(model, processor) and "packing does not work" in capsys.readouterr().out


def test_the_mask_is_the_one_in_its_picture():
    assert doctest.testmod(shared_prefix) == (0, 2)


def inputs_of(packed):
    return {name: value for name, value in packed.inputs.items()} | dict(packed.features)


@pytest.mark.parametrize("packs", [True, False], ids=["packed", "plain"])
def test_prompts_are_encoded_once_and_selected_for_every_batch(batch, packs, monkeypatch):
    """Some prompts in another order give the inputs that encoding them anew gives, and cost nothing."""
    model, processor, _ = batch
    conversations = [[user_message(question)] for question in [*QUESTIONS, "Is it day?"]]
    images = [*IMAGES, IMAGES[0]]
    packer = Packer(model, processor, packs=packs)
    assert (packer.features is not None) == packs
    encoded, again = (
        packer.encode(conversations, images),
        packer.encode(conversations[:1], images[:1]),
    )
    assert (
        len(encoded) == 3
        and encoded.image_hashes[0] == encoded.image_hashes[2] != encoded.image_hashes[1]
    )
    numbers, answers = [2, 0], [["Yes."], ANSWERS[0]]
    expected = packer([conversations[n] for n in numbers], [images[n] for n in numbers], answers)

    def forbidden(*_, **__):
        raise AssertionError("encoded a second time")

    for name in ("images_hash", "tokenize"):
        monkeypatch.setattr(encoded_prompts, name, forbidden)
    monkeypatch.setattr("helpers.models.packer.render_conversation", forbidden)
    monkeypatch.setattr(type(processor), "__call__", forbidden)
    chosen = encoded.select(numbers)
    assert chosen.texts == [encoded.texts[2], encoded.texts[0]]
    assert_close(inputs_of(packer.pack(chosen, answers)), inputs_of(expected), rtol=0, atol=0)
    parts = EncodedPrompts.concatenate([encoded.select([2]), again])
    assert_close(inputs_of(packer.pack(parts, answers)), inputs_of(expected), rtol=0, atol=0)
    assert parts.image_hashes == chosen.image_hashes and len(encoded.select([])) == 0


def test_equal_prompts_are_tokenised_once(batch, monkeypatch):
    model, processor, _ = batch
    calls, call = [], type(processor).__call__
    monkeypatch.setattr(
        type(processor),
        "__call__",
        lambda self, **given: calls.append(given["text"]) or call(self, **given),
    )
    packer = Packer(model, processor, packs=False)
    conversations = [
        [user_message(question)] for question in (QUESTIONS[0], QUESTIONS[0], QUESTIONS[1])
    ]
    encoded = packer.encode(conversations, [IMAGES[0], IMAGES[0], IMAGES[0]])
    assert calls == [[encoded.texts[0]], [encoded.texts[2]]]


def test_a_packer_that_is_told_tries_nothing(batch, monkeypatch):
    model, processor, _ = batch
    monkeypatch.setattr("helpers.models.packer.can_pack", lambda *_: pytest.fail("tried"))
    assert Packer(model, processor, packs=True).features is not None
    assert Packer(model, processor, packs=True, keeps_features=False).features is None
    assert Packer(model, processor, packs=False).features is None
    packed = Packer(model, processor, packs=True, device="meta")(
        [[user_message("?")]], [IMAGES[0]], [["No."]]
    )
    assert {value.device.type for value in inputs_of(packed).values()} == {"meta"}


def test_an_adapter_of_the_vision_tower_is_not_kept_even_if_it_is_not_trained(capsys):
    """It may be switched off, and its features are then others."""
    model, processor = build("qwen2_vl")
    policy = models.add_adapter(model, LoraSettings(r=4, vision=True))
    for parameter in policy.parameters():
        parameter.requires_grad_(False)
    assert Packer(policy, processor, packs=True).features is None
    assert "has an adapter" in capsys.readouterr().out


def test_answers_are_marked_and_end_the_turn(tiny, valid_items):
    prompts, images = (
        [render(tiny[1], QUESTIONS[0])] * 2,
        [[image] for image in pictures_of(valid_items[:2])],
    )
    rows = pack_separately(
        tiny[1], encode_prompts(tiny[1], prompts, images), [["Yes."], ["There are 2 cars."]]
    )
    texts = [
        tiny[1].tokenizer.decode(ids[mask]) for ids, mask in zip(rows.ids, rows.mask, strict=True)
    ]
    assert texts == ["Yes.<|im_end|>", "There are 2 cars.<|im_end|>"]
