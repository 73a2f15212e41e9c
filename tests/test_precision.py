"""Which tensor is in which precision on a T4, whose 16-bit type is fp16: tried on a CPU that is told to take fp16.

bf16 is only emulated there, and fp16 is too coarse for weights that are trained: a step of 1e-5 on a weight of 0.05 is
less than the distance to the next number. Autocast to fp16 and the scaling of the loss, which accelerate only turns on
for a GPU, are turned on here; how fast or how exact a GPU is, is not tried.
"""

import dataclasses
import itertools

import pytest
import torch
from bitsandbytes.nn import Linear4bit
from pictures import noise
from precisions import sixteen_bits
from safetensors.torch import load_file
from torch.testing import assert_close
from trl import DPOTrainer

from helpers import models
from helpers.config import DPO_PRESETS, PPO_PRESETS, REWARD_PRESETS, LoraSettings
from helpers.data.preferences import read_records
from helpers.data.tasks import tasks_of
from helpers.doctor import checks as preflight
from helpers.files import ROOT, open_image
from helpers.losses import dpo_loss, token_logps
from helpers.models.encoded_prompts import encode_prompts
from helpers.models.prompts import encode, render
from helpers.models.shared_prefix import answer_logps, pack_separately
from helpers.rewards import reward_model
from helpers.rewards.scoring import make_scorer
from helpers.training import dpo, ppo, reward as reward_training
from helpers.training.actor_critic import CRITIC_ADAPTER, ActorCritic

pytestmark = pytest.mark.heavy(reason="trains in each precision")

PATH = ROOT / "data" / "traffic" / "preferences_train.jsonl"
SETTINGS = dataclasses.replace(DPO_PRESETS["tiny"], steps=2, batch_size=4)
ADAPTER = LoraSettings(r=4)


@pytest.fixture(autouse=True)
def t4():
    """fp16 in every module that asks, and what accelerate does with it on a GPU."""
    with sixteen_bits(torch.float16):
        yield


def trained(model):
    return {name: p for name, p in model.named_parameters() if p.requires_grad}


def dtypes(tensors):
    return {tensor.dtype for tensor in tensors}


def in_fp16(model):
    """No bf16 in weights, buffers, or what 4-bit layers compute with; all that belongs to adapters in fp32."""
    layers = [module for module in model.modules() if isinstance(module, Linear4bit)]
    assert len(layers) == 21 and {layer.compute_dtype for layer in layers} == {torch.float16}
    assert {layer.weight.quant_state.dtype for layer in layers} == {torch.float16}
    names = dict([*model.named_parameters(), *model.named_buffers()])
    added = {name for name in names if "lora_" in name or name.startswith(("head.", "critic."))}
    assert dtypes(names[name] for name in names.keys() - added) == {
        torch.float16,
        torch.uint8,
        torch.float32,
    }
    base = {
        name for name, p in model.named_parameters()
    } - added  # the fp32 ones are buffers: of rotary positions
    assert dtypes(names[name] for name in base) == {torch.float16, torch.uint8}
    assert dtypes(names[name] for name in added) <= {torch.float32}
    return True


def test_a_model_in_four_bits_is_in_fp16_and_its_adapter_in_fp32(tmp_path):
    model, _ = models.load_model("tiny")
    assert in_fp16(model)
    configs = [module.config for module in model.modules() if hasattr(module, "config")]
    assert {config._attn_implementation for config in configs} == {"sdpa"}
    assert {type(config).__name__ for config in configs} >= {
        "Qwen2VLTextConfig",
        "Qwen2VLVisionConfig",
    }
    model = models.add_adapter(model, ADAPTER)
    # 42 tensors: 3 layers × 7 linear layers × A and B
    assert len(trained(model)) == 42 and in_fp16(model)
    folder = models.save_adapter(model, tmp_path, {})
    assert dtypes(load_file(folder / "adapter_model.safetensors").values()) == {torch.float32}
    again = models.load_adapter(models.load_model("tiny")[0], folder)
    assert in_fp16(again) and in_fp16(models.load_adapter(again, folder, "second"))
    assert sum("lora_" in name for name, _ in again.named_parameters()) == 84


def test_the_arguments_of_dpo_ask_for_fp16(tmp_path):
    config = dpo.dpo_config(SETTINGS, 0, tmp_path)
    assert config.fp16 and not config.bf16


def test_trl_casts_the_adapter_to_bf16_and_make_trainer_takes_it_back(tmp_path, pairs_dataset):
    model, processor = models.load_model("tiny")
    model = models.add_adapter(model, ADAPTER)
    stock = {"train_dataset": pairs_dataset, "processing_class": processor}
    DPOTrainer(model=model, args=dpo.dpo_config(SETTINGS, 0, tmp_path), **stock)
    assert dtypes(trained(model).values()) == {torch.bfloat16}, (
        "TRL no longer does this: helpers/training/dpo.py need not undo it"
    )

    first = dpo.dpo_trainer(models.load_model("tiny")[0], processor, pairs_dataset, SETTINGS)
    assert in_fp16(first.model) and preflight._check_dtypes(first, set(trained(first.model))).passed
    dpo.train_dpo(first)
    kept = {name: p.detach().clone() for name, p in trained(first.model).items()}
    second = dpo.dpo_trainer(first.model, processor, pairs_dataset, SETTINGS)
    copies = {name: p for name, p in second.model.named_parameters() if ".ref." in name}
    assert (
        in_fp16(second.model)
        and len(copies) == 42
        and not any(p.requires_grad for p in copies.values())
    )
    for name, copy_ in copies.items():
        assert torch.equal(copy_, kept[name.replace(".ref.", ".default.")]), (
            "to the last bit, not rounded to bf16"
        )


def ready_for_adam(optimizer):
    """fp32 weights and states, in which ε is more than 0: in fp16 it is not, and a gradient of 0 would divide 0 by 0."""
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            assert (
                parameter.dtype == torch.float32
                and torch.tensor(group["eps"], dtype=parameter.dtype) > 0
            )
            state = optimizer.state[parameter]
            assert not state or dtypes([state["exp_avg"], state["exp_avg_sq"]]) == {torch.float32}
    assert any(optimizer.state.values()) and torch.tensor(1e-8, dtype=torch.float16) == 0
    return True


def test_dpo_trains_in_fp32_on_logits_in_fp32(pairs_dataset, monkeypatch):
    """TRL takes the log-softmax in the precision of the logits: accelerate has brought them to fp32."""
    seen, call = [], dpo.AnswerForward.__call__

    def watched(self, packed, input_ids, **given):
        output = call(self, packed, input_ids, **given)
        seen.append(output.logits.dtype)
        return output

    monkeypatch.setattr(dpo.AnswerForward, "__call__", watched)
    model, processor = models.load_model("tiny")
    trainer = dpo.dpo_trainer(model, processor, pairs_dataset, SETTINGS)
    run = dpo.train_dpo(trainer)
    assert len(seen) == 4 and set(seen) == {
        torch.float32
    }  # two steps, and the reference before each
    assert run.log[0]["loss"] > 0 and all(abs(row["grad_norm"]) < float("inf") for row in run.log)
    assert ready_for_adam(trainer.optimizer) and in_fp16(trainer.model)


def test_a_reward_model_is_trained_saved_and_loaded_in_fp32(tmp_path):
    records = [record for record in read_records(PATH) if any(record.tier_pairs())][:8]
    settings = dataclasses.replace(REWARD_PRESETS["tiny"], lora=ADAPTER, batch_size=4, epochs=1)
    policy = models.add_adapter(models.load_model("tiny")[0], ADAPTER)
    reward = reward_model.new_reward_model(policy, models.load_model("tiny")[1], settings)
    assert in_fp16(reward.backbone) and dtypes(reward.trainable_parameters().values()) == {
        torch.float32
    }
    trainer = reward_training.RewardTrainer(reward, records, records[:2], settings)
    run = trainer.train()
    assert all(row["loss"] > 0 and row["grad_norm"] > 0 for row in run.log) and ready_for_adam(
        trainer.optimizer
    )
    with reward.use_adapter(), torch.no_grad():
        images = [[open_image(path) for path in record.image_paths] for record in records[:2]]
        scores = reward(reward.batch(records[:2], images))
    assert scores.dtype == torch.float32
    folder = reward_model.save_reward_model(reward, tmp_path / "reward", settings)
    again = reward_model.load_reward_model(*models.load_model("tiny"), folder)
    assert in_fp16(again.backbone) and dtypes(again.trainable_parameters().values()) == {
        torch.float32
    }
    for name, value in again.trainable_parameters().items():
        assert torch.equal(value, reward.trainable_parameters()[name])


def test_ppo_trains_policy_and_critic_in_fp32():
    records = read_records(PATH)[:4]
    settings = dataclasses.replace(
        PPO_PRESETS["tiny"],
        prompts_per_iteration=2,
        group_size=2,
        mini_batch=2,
        critic_layers=3,
        lora=ADAPTER,
    )
    turns = itertools.cycle((0.0, 1.0))  # the tiny model's answers are all as good
    score = make_scorer("turns", lambda *given: {"turns": next(turns)})
    run = ppo.PPOTrainer(*models.load_model("tiny"), tasks_of(records), score, settings)
    (row,) = run.train(1)
    trained = [weight for part in run.actor.trainable_parameters().values() for weight in part]
    assert in_fp16(run.model) and dtypes(trained) == {torch.float32}
    assert {
        CRITIC_ADAPTER,
        models.POLICY_ADAPTER,
    } == run.model.peft_config.keys() and ready_for_adam(run.optimizer)
    assert all(abs(value) < float("inf") for value in row.values())
    figures = run.actor(run.last.rollout.pack(run.sampler.packer))
    assert dtypes([figures.logps, figures.entropy]) == {torch.float32}
    assert figures.values is None and run.last.values.dtype == torch.float32


def test_a_critics_head_and_adapter_are_made_in_fp32():
    model, processor = models.load_model("tiny")
    settings = dataclasses.replace(PPO_PRESETS["tiny"], critic_layers=3, lora=ADAPTER)
    actor = ActorCritic(models.add_adapter(model, ADAPTER), processor, settings)
    trained = [weight for part in actor.trainable_parameters().values() for weight in part]
    assert in_fp16(actor.policy) and dtypes(trained) == {torch.float32}


def test_log_probabilities_of_logits_in_fp16_are_exact():
    """As many words as Qwen2-VL has, and logits up to ±60: between 32 and 64, fp16 has steps of 1/32."""
    torch.manual_seed(0)
    logits = (torch.randn(2, 9, 151_936) * 12).clamp(-60, 60).half()
    ids, mask = torch.randint(0, 151_936, (2, 9)), torch.ones(2, 9)
    exact = torch.log_softmax(logits[:, :-1].double(), -1).gather(-1, ids[:, 1:, None]).squeeze(-1)
    ours = token_logps(logits, ids, mask)
    rounded = (
        torch.log_softmax(logits[:, :-1], -1).gather(-1, ids[:, 1:, None]).squeeze(-1).double()
    )
    assert ours.dtype == torch.float32 and exact.min() < -60
    assert_close(ours.double(), exact, atol=1e-4, rtol=0)
    assert (rounded - exact).abs().max() > 1e-2, "in fp16 they are not"
    loss, _ = dpo_loss(*ours.sum(1)[:, None], *exact.float().sum(1)[:, None], beta=0.1)
    assert loss.dtype == torch.float32 and float(loss) == pytest.approx(
        0.6931, abs=1e-3
    )  # ln 2: the same model


def test_log_probabilities_of_answers_come_in_fp32():
    model, processor = models.load_model("tiny")
    prompt = encode_prompts(processor, [render(processor, "How many cars?")], [[noise(112, 112)]])
    row = pack_separately(processor, prompt, [["There are 2 cars."]])
    with torch.no_grad():
        assert (
            model(**encode(processor, ["How many cars?"], [noise(112, 112)])).logits.dtype
            == torch.float16
        )
        logps = answer_logps(model, row)
    assert logps.dtype == torch.float32 and bool(logps.isfinite().all()) and float(logps.sum()) < 0


def test_reference_figures_kept_before_training_are_in_fp32(pairs_dataset):
    """Preflight fills the store before accelerate brings logits to fp32, and training reads what it finds there."""
    model, processor = models.load_model("tiny")
    trainer = dpo.dpo_trainer(model, processor, pairs_dataset, SETTINGS)
    batch = trainer._prepare_inputs(
        trainer.data_collator([trainer.train_dataset[i] for i in range(8)])
    )
    kept = trainer._reference(batch)
    with torch.no_grad(), models.disable_adapters(trainer.model):
        logits = models.answer_logits(trainer.model, batch["packed"])
    logps = (
        torch.log_softmax(logits[:, :-1].double(), -1)
        .gather(-1, batch["input_ids"][:, 1:, None])
        .squeeze(-1)
    )
    exact = (logps * batch["completion_mask"][:, 1:]).sum(1).view(2, -1).T
    assert_close(kept.double(), exact, atol=1e-4, rtol=0)
