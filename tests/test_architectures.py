"""One code for all architectures: each stage on a tiny random model of every one, from a folder as on the hub.

All sizes are such that bitsandbytes can quantise them: training runs in 4 bits, as it does with the real ones.
"""

import dataclasses
import json
import math
import shutil

import pytest
import torch
from architectures import BUILDERS, build, save_as_on_the_hub, template_for_trl
from newer_architectures import IMAGE_MARKS, LINEAR, NEWER, RECURRENT
from pictures import noise
from shipped import TRAFFIC
from torch.testing import assert_close

from helpers import models
from helpers.config import DPO_PRESETS, PPO_PRESETS, LoraSettings, reward_preset
from helpers.data.preferences import read_records
from helpers.data.tasks import tasks_of
from helpers.models.caches import backbone_of, vision_inputs
from helpers.models.encoded_prompts import encode_prompts
from helpers.models.packer import Packer
from helpers.models.prompts import (
    count_image_tokens,
    encode,
    end_of_turn,
    image_token_id,
    render,
)
from helpers.models.shared_prefix import answer_logps, pack_separately
from helpers.rewards import reward_model
from helpers.rewards.scoring import make_scorer
from helpers.training import dpo
from helpers.training.ppo import PPOTrainer
from helpers.training.reward import RewardTrainer

pytestmark = pytest.mark.heavy(reason="builds and trains nine models")

PATH = TRAFFIC / "preferences_train.jsonl"
RECORDS = read_records(PATH)[:8]
IMAGES = [noise(112, 112), noise(84, 140, seed=1)]
QUESTIONS = ["How many cars?", "How many buses are in the image?"]
LORA = LoraSettings(r=4)
DPO = dataclasses.replace(
    DPO_PRESETS["tiny"],
    sft_weight=0.0,
    steps=2,
    batch_size=4,
    warmup_share=0.0,
    learning_rate=1e-2,
    lora=LORA,
)
REWARD = dataclasses.replace(
    reward_preset("tiny"), epochs=1, batch_size=4, learning_rate=2e-3, warmup_share=0.0, lora=LORA
)
PPO = dataclasses.replace(
    PPO_PRESETS["tiny"], iterations=1, prompts_per_iteration=2, group_size=2, mini_batch=1, max_new_tokens=6, no_end_penalty=0.0,
    critic_layers=3, critic_adapter=False, learning_rate=1e-2, lora=LORA,
)  # fmt: skip
length = make_scorer("length", lambda image, question, answer, facts: {"length": len(answer) / 10})


new = pytest.mark.slow(reason="seconds for each of these models")


@pytest.fixture(
    scope="module", params=[*BUILDERS, *(pytest.param(name, marks=new) for name in NEWER)]
)
def checkpoint(request, tmp_path_factory):
    """(name, folder) of a checkpoint."""
    return request.param, save_as_on_the_hub(request.param, tmp_path_factory.mktemp(request.param))


@pytest.fixture(scope="module")
def pairs(pairs_dataset):
    return pairs_dataset.select(range(0, 32, 8))


def weights(model):
    return {name: parameter.detach().clone() for name, parameter in model.named_parameters()}


def moved(model, before):
    return {
        name
        for name, parameter in model.named_parameters()
        if not torch.equal(parameter, before[name])
    }


def logits_of(model, processor):
    with torch.no_grad():
        return model(**encode(processor, QUESTIONS, IMAGES)).logits


def test_a_folder_as_on_the_hub_is_the_model_that_was_saved(checkpoint):
    name, folder = checkpoint
    files = {file.name for file in folder.iterdir()}
    assert files >= {
        "config.json",
        "model.safetensors",
        "tokenizer.json",
        "preprocessor_config.json",
        "chat_template.json",
    }
    assert ("processor_config.json" in files) == (not name.startswith(("qwen", "lfm2")))
    (model, processor), (loaded, again) = build(name), models.load_model(folder, four_bit=False)
    assert type(loaded) is type(model) and type(again) is type(processor)
    assert again.chat_template == processor.chat_template
    inputs, same = encode(processor, QUESTIONS, IMAGES), encode(again, QUESTIONS, IMAGES)
    assert inputs.keys() == same.keys() and all(
        torch.equal(value, same[key]) for key, value in inputs.items()
    )
    assert_close(logits_of(loaded, again), logits_of(model, processor), rtol=1e-5, atol=1e-6)


def test_generation_stops_at_the_templates_end_even_if_the_checkpoint_does_not_say_so(
    checkpoint, tmp_path
):
    _, folder = checkpoint
    model, processor = models.load_model(folder, four_bit=False)
    own = model.generation_config.eos_token_id
    end = processor.tokenizer.convert_tokens_to_ids(end_of_turn(processor))
    assert end in (own if isinstance(own, list) else [own])  # and is left as it is
    shutil.copytree(folder, tmp_path / "forgetful")
    path = tmp_path / "forgetful" / "generation_config.json"
    path.write_text(json.dumps({"eos_token_id": processor.tokenizer.pad_token_id}))
    model, processor = models.load_model(tmp_path / "forgetful", four_bit=False)
    assert model.generation_config.eos_token_id == [end, processor.tokenizer.pad_token_id]


def test_in_4_bits_the_language_model_alone_is_quantised(checkpoint):
    name, folder = checkpoint
    (full, processor), (model, _) = (
        models.load_model(folder, four_bit=False),
        models.load_model(folder),
    )
    quantised = {n for n, module in model.named_modules() if type(module).__name__ == "Linear4bit"}
    decoder = next(n for n, module in model.named_modules() if module is model.get_decoder())
    # Gemma 4 has one more, which makes the embeddings of all layers
    assert len(quantised) == LINEAR.get(name, 3 * 7) + (name == "gemma4")
    assert all(n.startswith(f"{decoder}.") for n in quantised)
    error = (logits_of(model, processor) - logits_of(full, processor)).norm() / logits_of(
        full, processor
    ).norm()
    assert (
        1e-3 < error < (0.6 if name == "gemma4" else 0.5)
    )  # rounding is seen; wrong weights give about √2


def test_the_prompt_has_a_place_for_each_vector_of_the_image(checkpoint):
    name, folder = checkpoint
    model, processor = models.load_model(folder, four_bit=False)
    text = render(processor, "How many cars?")
    mark = "<|image_pad|>" if name.startswith("qwen") else "<image>"
    assert text.count(IMAGE_MARKS.get(name, mark)) == 1
    assert text.count("How many cars?") == 1
    inputs = encode(processor, QUESTIONS, IMAGES)
    with torch.no_grad():
        vectors = backbone_of(model).get_image_features(**vision_inputs(inputs)).pooler_output
    vectors = vectors if isinstance(vectors, torch.Tensor) else torch.cat(list(vectors))
    assert sum(count_image_tokens(processor, inputs)) == vectors.numel() // vectors.shape[-1] > 0


def test_lora_reaches_every_layer_of_the_language_model_and_nothing_else(checkpoint, capsys):
    name, folder = checkpoint
    model = models.add_adapter(models.load_model(folder)[0], LORA)
    decoder = model.get_base_model().get_decoder()
    inside = {id(parameter) for parameter in decoder.layers.parameters()}
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    assert len(trained) == LINEAR.get(name, 3 * 7) * 2
    assert all(id(parameter) in inside for parameter in trained)
    assert "does not reach" not in capsys.readouterr().out


def trained_by_dpo(folder, pairs, **how):
    model, processor = models.load_model(folder, four_bit=how.pop("four_bit", True))
    processor.chat_template = how.pop("template", processor.chat_template)
    trainer = dpo.dpo_trainer(model, processor, pairs, DPO, **how)
    before = weights(trainer.model)
    return trainer, before, dpo.train_dpo(trainer)


def test_dpo(checkpoint, pairs, tmp_path, capsys):
    """Packed: an architecture that falls back to one row an answer in silence would fail here."""
    name, folder = checkpoint
    trainer, before, run = trained_by_dpo(folder, pairs)
    assert isinstance(trainer.data_collator, dpo.PairCollator)
    # image features are kept in either layout
    assert trainer.data_collator.packer.features is not None
    assert ("packing does not" in capsys.readouterr().out) == (name in RECURRENT)
    assert (
        run.log[0]["loss"] == pytest.approx(math.log(2), abs=1e-4)
        and run.log[1]["loss"] < math.log(2) - 1e-3
    )
    changed, model, processor = (
        moved(trainer.model, before),
        trainer.model,
        trainer.processing_class,
    )
    assert changed and all("lora_" in name for name in changed)
    answers = [["There are 2.", "No."]] * 2
    prompts = [render(processor, question) for question in QUESTIONS]
    with torch.no_grad():
        own, other = (
            answer_logps(
                model,
                pack_separately(processor, encode_prompts(processor, prompts, images), answers),
            ).sum(1)
            for images in ([[image] for image in IMAGES], [[image] for image in IMAGES[::-1]])
        )
    # convolutions of a random model hardly look
    assert ((own - other).abs() > (5e-4 if name == "lfm2_vl" else 1e-3)).all()
    saved = models.save_adapter(model, tmp_path / "adapter", {})
    fresh, again = models.load_model(folder)
    assert not torch.allclose(logits_of(fresh, again), logits_of(model, processor), atol=1e-3)
    loaded = models.load_adapter(fresh, saved)
    assert_close(logits_of(loaded, again), logits_of(model, processor), rtol=1e-5, atol=1e-5)
    greedy = [
        models.generate_answers(m, processor, IMAGES, QUESTIONS, max_new_tokens=8)
        for m in (model, loaded)
    ]
    assert greedy[0] == greedy[1] and all(greedy[0])


IN_TRLS_LAYOUT = ("qwen2_vl", "llava_next", "smolvlm")  # in make test: a family each
rest = pytest.mark.slow(reason="the other families; each of them is trained by test_dpo")


@pytest.mark.parametrize(
    "checkpoint",
    [name if name in IN_TRLS_LAYOUT else pytest.param(name, marks=rest) for name in BUILDERS],
    indirect=True,
)
def test_dpo_in_trls_layout_learns_the_same(checkpoint, pairs):
    """The fallback, with a template that TRL splits into the tokens that the suite trains on."""
    name, folder = checkpoint
    how = {"four_bit": False}
    packed, _, ours = trained_by_dpo(folder, pairs, packs=True, **how)
    stock, before, theirs = trained_by_dpo(
        folder, pairs, packs=False, template=template_for_trl(name), **how
    )
    assert isinstance(packed.data_collator, dpo.PairCollator) != isinstance(
        stock.data_collator, dpo.PairCollator
    )
    for own, other in zip(ours.log, theirs.log, strict=True):
        for key in ("loss", "logps/chosen", "logps/rejected", "rewards/margins"):
            assert own[key] == pytest.approx(other[key], rel=1e-4, abs=1e-3), key
    assert moved(stock.model, before) == {n for n in before if "lora_" in n}


def test_what_trls_layout_makes_of_the_checkpoints_own_template(checkpoint, pairs):
    """Why the fallback is only that: LLaVA is not asked as it was trained and never learns to end an answer."""
    name, folder = checkpoint
    model, processor = models.load_model(folder)
    trainer = dpo.dpo_trainer(model, processor, pairs, DPO, packs=False)
    batch, decode = trainer.data_collator([trainer.train_dataset[0]]), processor.tokenizer.decode
    row, mask = batch["input_ids"][0], batch["completion_mask"][0].bool()
    begin = {"llava": "USER:", "llava_next": "<|start_header_id|>", "qwen3_vl": "<|im_start|>user"}
    begin |= {"gemma3": "<bos><start_of_turn>user", "gemma4": "<bos><|turn>user"}
    begin |= dict.fromkeys(("qwen3_5", "internvl"), "<|im_start|>user")
    begin["lfm2_vl"] = "<|startoftext|><|im_start|>user"
    smol = dict.fromkeys(("smolvlm", "idefics3"), "<|im_start|>User:")
    system = "<|im_start|>system\nYou are a helpful assistant."
    assert decode(row[~mask]).startswith((begin | smol).get(name, system))
    end = {
        "llava": "image. ",
        "llava_next": "image.<|eot_id|>",
        "smolvlm": "image.<end_of_utterance>\n",
    }
    end["idefics3"] = end["smolvlm"]
    end |= {"gemma3": "image.<end_of_turn>\n", "gemma4": "image.<turn|>\n"}
    assert decode(row[mask]).endswith(end.get(name, "image.<|im_end|>\n"))


def test_a_reward_model(checkpoint, tmp_path):
    name, folder = checkpoint
    reward = reward_model.new_reward_model(*models.load_model(folder), REWARD)
    assert reward.packer.packs == (name not in RECURRENT)
    assert reward.packer.features is not None
    before = weights(reward)
    run = RewardTrainer(reward, RECORDS, RECORDS[:2], REWARD).train()
    assert len(run.log) == 2 and all(math.isfinite(row["loss"]) for row in run.log)
    changed = moved(reward, before)
    assert changed and all(
        name.startswith("head.") or f".{reward_model.REWARD_ADAPTER}." in name for name in changed
    )
    scores = reward_model.score_records(reward, RECORDS[:3])
    saved = reward_model.save_reward_model(reward, tmp_path / "reward", REWARD)
    loaded = reward_model.load_reward_model(*models.load_model(folder), saved)
    again = reward_model.score_records(loaded, RECORDS[:3])
    loaded.packer = Packer(loaded.backbone, loaded.processor, packs=False)
    rows = reward_model.score_records(loaded, RECORDS[:3])
    for own, same, row in zip(scores, again, rows, strict=True):
        assert same == pytest.approx(own, abs=1e-5) and row == pytest.approx(own, abs=1e-4)


def test_a_reward_model_learns_without_packing(checkpoint):
    name, folder = checkpoint
    if name in RECURRENT:
        pytest.skip("it never packs, and learns so in all other tests")
    logs = []
    for packs in (True, False):
        base = models.load_model(folder, four_bit=False)
        reward = reward_model.new_reward_model(*base, REWARD)
        reward.packer = Packer(reward.backbone, reward.processor, packs=packs)
        assert (reward.packer.features is None) != packs
        logs.append(RewardTrainer(reward, RECORDS, RECORDS[:2], REWARD).train().log)
    for packed, rows in zip(*logs, strict=True):
        assert rows["loss"] == pytest.approx(packed["loss"], abs=1e-4)


@pytest.mark.parametrize(("advantages", "packs"), [("gae", True), ("grpo", True), ("gae", False)])
def test_ppo(checkpoint, advantages, packs):
    """The image token is made the likeliest by far; it is still not sampled, and has no probability in the update."""
    name, folder = checkpoint
    model, processor = models.load_model(folder)
    likeliest = torch.zeros(len(processor.tokenizer))
    likeliest[image_token_id(processor)] = 50.0
    model.get_output_embeddings().register_forward_hook(
        lambda module, inputs, logits: logits + likeliest
    )
    settings = dataclasses.replace(
        PPO, advantages=advantages, critic_sees_image=packs
    )  # from kept features
    run = PPOTrainer(
        model, processor, tasks_of(RECORDS), length, settings, packs=None if packs else False
    )
    assert run.sampler.packer.packs == (packs and name not in RECURRENT)
    assert (run.actor.critic is not None) == (advantages == "gae")
    before = weights(run.actor)
    row = run.train()[-1]
    assert row["ppo/ratio_first"] == pytest.approx(1, abs=1e-4) and row["samples"] == 4
    changed = moved(run.actor, before)
    assert changed and all(name.startswith("critic.") or "lora_" in name for name in changed)
    assert any(name.startswith("critic.") for name in changed) == (advantages == "gae")
    ids = torch.cat(list(run.last.rollout.ids))
    assert len(ids) >= 4 and image_token_id(processor) not in ids
    assert run.last.old_logps[run.last.mask].max() > -20 and run.last.old_logps.isfinite().all()
