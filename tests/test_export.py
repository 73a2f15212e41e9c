"""Merging is checked against base + adapter as peft computes it, on other images than the export's own; the hub is a fake."""

import dataclasses
import json
import shutil
import sys
from types import ModuleType, SimpleNamespace

import pytest
import torch
import yaml
from architectures import build
from huggingface_hub import errors
from peft import LoraConfig, PeftModel, get_peft_model
from pictures import noise
from safetensors.torch import load_file, save_file
from torch.testing import assert_close
from transformers import AutoModelForImageTextToText, AutoProcessor

from helpers import export, models
from helpers.cli import main
from helpers.config import LoraSettings
from helpers.evaluation.exam import PolicyFindings
from helpers.files import ROOT, UsageError, read_json, write_json
from helpers.models.policies import SHIPPED_POLICIES
from helpers.models.prompts import encode
from helpers.report.page import Section
from helpers.runtime import TOLERANCES

pytestmark = pytest.mark.heavy(reason="merges models of four architectures")

TINY = ROOT / "data" / "tiny-qwen2-vl"
DATA = "data/traffic/preferences_train.jsonl"
CASES = {  # base, precision, LoRA on the vision tower too, embeddings that are also the head
    "tiny": (None, torch.float16, False, True),
    "tiny_vision": (None, torch.float32, True, True),
    "llava": ("llava", torch.float16, False, False),
    "smolvlm_vision": ("smolvlm", torch.float32, True, False),
}


@pytest.fixture(autouse=True)
def no_figures(artifacts):
    """Cards look for figures in the artifacts: those of this machine are none of theirs."""


def random_adapter(base, folder, vision=False, size=0.1, name=models.POLICY_ADAPTER, **about):
    """An adapter that does something, saved in `folder`."""
    model, _ = models.load_model(base, four_bit=False)
    model = models.add_adapter(model, LoraSettings(r=4, alpha=8, vision=vision), name=name)
    torch.manual_seed(1)
    for weight_name, weight in model.named_parameters():
        if "lora_B" in weight_name:
            weight.data.normal_(0, size)
    return models.save_adapter(
        model, folder, {"base": str(base), "seed": 3, "data": DATA, **about}, name
    )


@pytest.fixture(scope="module", params=CASES)
def merged(request, tmp_path_factory):
    """A merge: base, adapter, folder, precision, whether embeddings and head are one."""
    if request.param == "tiny":
        return request.getfixturevalue("shipped")
    return merge_of(request.param, tmp_path_factory.mktemp("export"))


@pytest.fixture(scope="module")
def shipped(tmp_path_factory):
    return merge_of("tiny", tmp_path_factory.mktemp("shipped"))


def merge_of(case, folder):
    (name, dtype, vision, tied), base, adapter = CASES[case], TINY, SHIPPED_POLICIES
    if name:
        base = folder / "base"
        for part in build(name):
            part.save_pretrained(base)
    if name or vision:
        adapter = random_adapter(base, folder / "adapter", vision)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("VLM_ARTIFACTS", str(folder / "artifacts"))
        export.merge(None, adapter, folder / "merged", dtype)
    return SimpleNamespace(
        base=base, adapter=adapter, folder=folder / "merged", dtype=dtype, tied=tied, vision=vision
    )


def plain(folder, dtype):
    return AutoModelForImageTextToText.from_pretrained(folder, dtype=dtype).eval()


@torch.no_grad()
def logits_of(model, processor):
    return model(**encode(processor, ["How many dogs?"], [noise(112, 84, seed=7)])).logits.float()


def relative(a, b):
    return float((a - b).norm() / b.norm())


def test_the_merged_folder_says_with_transformers_alone_what_base_and_adapter_say(merged):
    processor = AutoProcessor.from_pretrained(merged.folder)
    base = logits_of(plain(merged.base, merged.dtype), processor)
    both = logits_of(
        PeftModel.from_pretrained(plain(merged.base, merged.dtype), merged.adapter).eval(),
        processor,
    )
    alone = logits_of(plain(merged.folder, merged.dtype), processor)
    assert (
        relative(alone, both)
        < (1e-4 if merged.dtype == torch.float32 else 2e-2)
        < 0.1
        < relative(base, both)
    )
    again, _ = models.load_model(merged.folder, four_bit=False)
    assert relative(logits_of(again, processor), both) < 2e-2


def test_each_weight_is_the_sum_in_the_precision_asked_for(merged):
    """W + α / r · B A in fp32, rounded once; W is what it is in that precision."""
    base, saved = (
        plain(merged.base, merged.dtype).state_dict(),
        plain(merged.folder, merged.dtype).state_dict(),
    )
    lora, config = (
        load_file(merged.adapter / "adapter_model.safetensors"),
        read_json(merged.adapter / "adapter_config.json"),
    )
    assert saved.keys() == base.keys()
    changed = 0
    for name, value in saved.items():
        key = f"base_model.model.{name.removesuffix('.weight')}.lora_"
        if f"{key}A.weight" in lora:
            delta = (
                lora[f"{key}B.weight"]
                @ lora[f"{key}A.weight"]
                * (config["lora_alpha"] / config["r"])
            )
            assert_close(value, (base[name].float() + delta).to(merged.dtype), rtol=1e-3, atol=1e-7)
            assert not torch.equal(value, base[name])
            changed += 1
        else:
            assert torch.equal(value, base[name]), name
    assert changed == len(lora) / 2 >= 21
    assert merged.vision == any(part in name for name in lora for part in ("visual", "vision"))


def test_the_files_are_those_of_a_checkpoint_and_nothing_is_in_4_bits(merged):
    files = {file.name for file in merged.folder.iterdir()}
    assert files == {
        "README.md", "about.json", "chat_template.jinja", "config.json", "generation_config.json", "model.safetensors",
        "processor_config.json", "tokenizer.json", "tokenizer_config.json",
    }  # fmt: skip
    tensors = load_file(merged.folder / "model.safetensors")
    assert {tensor.dtype for tensor in tensors.values()} == {merged.dtype}
    assert "quantization_config" not in read_json(merged.folder / "config.json")
    assert any(name.endswith("lm_head.weight") for name in tensors) != merged.tied
    facts = read_json(merged.folder / "about.json")["merged"]
    assert facts["ties"] == 0 < facts["tokens"] and facts["relative_error"] < facts["effect"] / 2
    assert sorted(p.name for p in merged.folder.parent.iterdir() if "merged" in p.name) == [
        "merged"
    ]


def test_greedy_answers_of_the_shipped_policy_survive(shipped):
    merged = shipped
    pictures, questions = (
        [noise(112, 112)] * 2,
        ["How many cars are there?", "How many buses are there?"],
    )
    both = PeftModel.from_pretrained(plain(merged.base, merged.dtype), merged.adapter).eval()
    processor = AutoProcessor.from_pretrained(merged.folder)
    said = [
        models.generate_answers(m, processor, pictures, questions)
        for m in (both, plain(merged.folder, merged.dtype))
    ]
    assert said[0] == said[1] and all(text.startswith("There") for text in said[0])


def test_nothing_on_the_card_names_this_machine(merged):
    card = (merged.folder / "README.md").read_text(encoding="utf-8")
    metadata = yaml.safe_load(card.split("---")[1])
    assert (
        metadata["library_name"] == "transformers"
        and metadata["pipeline_tag"] == "image-text-to-text"
    )
    assert metadata["license"] == ("apache-2.0" if merged.base == TINY else "other")
    assert "base_model" not in metadata, "the hub takes hub ids only"
    assert (
        DATA in card
        and "licence: Apache-2.0" in card
        and "None: notebook 07 has not examined" in card
    )
    for file in merged.folder.glob("*.[jm][sd]*"):
        assert (
            str(ROOT) not in file.read_text(encoding="utf-8")
            and str(merged.folder.parent) not in file.read_text()
        )


def test_the_card_of_a_preset_links_to_it_and_brings_the_figures(artifacts):
    about = {"base": "qwen2.5-vl-3b", "seed": 1, "reward": "count_exact", "data": DATA}
    found = PolicyFindings(
        about=about,
        n=400,
        rows=[["p"], ["0.01"]],
        details=[("class by class", [["c"], ["d"]])],
        sight="s",
        failures=["it lies"],
        language="it still speaks",
    )
    other = dataclasses.replace(found, about=about | {"seed": 2}, failures=["no"])
    section = Section("07_evaluate", "Evaluation")
    section.examined = {"ppo/ppo": found, "ppo/other": other}
    section.save()
    how = {"dtype": "float16", "relative_error": 1e-3}
    card = export.hub_card(about | {"merged": how}, "mine")
    metadata = yaml.safe_load(card.split("---")[1])
    assert (
        metadata["base_model"] == "Qwen/Qwen2.5-VL-3B-Instruct"
        and metadata["base_model_relation"] == "merge"
    )
    assert metadata["license"] == "other" and "not for commercial use" in card
    assert "* it lies" in card and "400 held-out items" in card and "usually in 4 bits" in card
    assert card.count("\n# ") == 1 and "the reward `count_exact`" in card
    assert "None: notebook 07" in export.hub_card(about | {"seed": 9, "merged": how}, "mine")
    adapter = yaml.safe_load(export.hub_card(about, "mine").split("---")[1])
    assert adapter["base_model_relation"] == "adapter" and adapter["library_name"] == "peft"


def change_one_number(folder, *given):
    weights = load_file(folder / "model.safetensors")
    next(value for name, value in sorted(weights.items()) if name.endswith("down_proj.weight"))[
        0, 0
    ] += 0.01
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    return REAL_VERIFY(folder, *given)


REAL_VERIFY = export.verify


def test_one_number_that_was_changed_on_the_disk_is_seen(monkeypatch, tmp_path):
    monkeypatch.setattr(export, "verify", change_one_number)
    with pytest.raises(UsageError, match="the weights read back are not those written"):
        export.merge(None, SHIPPED_POLICIES, tmp_path / "merged", images=1)
    assert list(tmp_path.glob("*merged*")) == [], "nothing is left that looks like a model"


@pytest.mark.parametrize("size", [0.1, 2e-4])
def test_a_merge_that_forgets_the_adapter_is_refused_however_little_it_does(
    size, monkeypatch, tmp_path
):
    """2e-4: the adapter moves the logits by less than 2 %, which alone would pass for rounding."""
    adapter = random_adapter("tiny", tmp_path / "adapter", size=size)
    monkeypatch.setattr(
        PeftModel, "merge_and_unload", lambda self, **_: self.unload(), raising=False
    )
    with pytest.raises(
        UsageError, match=r"logits are off by .* the whole adapter moves them by"
    ) as told:
        export.merge(None, adapter, tmp_path / "merged", images=1)
    error = float(str(told.value).split("off by ")[1].split()[0])
    assert (error < 2e-2) == (size == 2e-4) and not (tmp_path / "merged").exists()


def test_an_adapter_that_does_nothing_yet_merges_also_into_a_base_with_idle_sampling_flags(
    tmp_path,
):
    """Checkpoints on the hub have a temperature without do_sample, which transformers reads but does not write."""
    base = shutil.copytree(TINY, tmp_path / "base")
    write_json(
        base / "generation_config.json",
        read_json(base / "generation_config.json") | {"temperature": 0.9, "top_p": 0.6},
    )
    export.merge(
        base, random_adapter("tiny", tmp_path / "adapter", size=0.0), tmp_path / "merged", images=1
    )
    assert read_json(tmp_path / "merged" / "about.json")["merged"]["effect"] == 0
    assert read_json(tmp_path / "merged" / "about.json")["base"] == "base", (
        "the folder's name, and not where it was"
    )
    kept = read_json(tmp_path / "merged" / "generation_config.json")
    assert kept["eos_token_id"] == 388 and "temperature" not in kept


def test_an_adapter_on_a_head_that_is_the_embedding_too_is_refused(tmp_path):
    """The sum would change both."""
    config = LoraConfig(r=4, target_modules=["lm_head"], task_type="CAUSAL_LM")
    model = get_peft_model(models.load_model("tiny", four_bit=False)[0], config)
    model.base_model.model.lm_head.lora_B["default"].weight.data.normal_(0, 0.1)
    adapter = models.save_adapter(model, tmp_path / "adapter", {"base": "tiny"})
    with pytest.raises(UsageError, match="logits are off by"):
        export.merge(None, adapter, tmp_path / "merged", torch.float32, images=1)


def test_two_tokens_may_be_exchanged_in_fp16_if_they_are_as_good_as_tied(shipped):
    folder = shipped.folder
    model, processor = plain(folder, torch.float16), AutoProcessor.from_pretrained(folder)
    both = PeftModel.from_pretrained(plain(TINY, torch.float16), SHIPPED_POLICIES).eval()
    spoken = export.reference_output(both, processor, 1)
    weights = export.finite_hash(model)
    own = export.logits_along(model, processor, spoken.inputs)
    first, other = own[0].argmax(), int(own[0].argmin())

    def said(gap, dtype=torch.float16):
        """Base + adapter prefers another token than the merged model by `gap`; all else is equal."""
        logits = own.clone()
        logits[0, other] = logits[0, first] + gap
        changed = dataclasses.replace(spoken, logits=logits, effect=1e9)
        return REAL_VERIFY(folder, changed, weights, dtype, torch.device("cpu"))

    with pytest.MonkeyPatch.context() as patch:
        lax = TOLERANCES[torch.float16]._replace(relative=1.0)
        patch.setitem(TOLERANCES, torch.float16, lax)
        assert said(0.05)["ties"] == 1
        with pytest.raises(UsageError, match=r"greedy answers are others, by 0\.30 nats"):
            said(0.3)
    # what docs/export.md says
    assert TOLERANCES[torch.float32][:2] == (1e-4, 1e-3)
    assert TOLERANCES[torch.float16][:2] == (2e-2, 0.1)


def copied(folder, **config):
    shutil.copytree(SHIPPED_POLICIES, folder)
    write_json(folder / "adapter_config.json", read_json(folder / "adapter_config.json") | config)
    return folder


def test_what_cannot_be_merged_is_refused_before_anything_is_loaded(tmp_path, monkeypatch):
    monkeypatch.setattr(
        export.AutoModelForImageTextToText,
        "from_pretrained",
        lambda *_, **__: pytest.fail("loaded"),
    )
    out = tmp_path / "out"

    def refused(adapter, message, base=None, out=out, dtype=torch.float16):
        with pytest.raises(UsageError, match=message):
            export.merge(base, adapter, out, dtype)

    refused(tmp_path, "holds no adapter")
    reward = copied(tmp_path / "scores")
    (reward / "head.safetensors").write_bytes(b"")
    refused(reward, "of a reward model or critic")
    critic = copied(tmp_path / "critic")
    (critic / "about.json").unlink()
    refused(critic, "of a reward model or critic")
    trainer = copied(tmp_path / "checkpoint-60")
    (trainer / "about.json").unlink()
    refused(trainer, "no about.json names its base")
    refused(
        copied(tmp_path / "prompt", peft_type="PROMPT_TUNING"),
        "kind PROMPT_TUNING cannot be merged",
    )
    refused(SHIPPED_POLICIES, "unknown model 'tinny'. Did you mean 'tiny'", base="tinny")
    refused(SHIPPED_POLICIES, "a merge is in fp16 or fp32", dtype=torch.bfloat16)
    refused(SHIPPED_POLICIES, "exists and is not empty", out=tmp_path)
    refused(SHIPPED_POLICIES, "exists and is not empty", out=SHIPPED_POLICIES / "about.json")
    monkeypatch.setattr(export.psutil, "virtual_memory", lambda: SimpleNamespace(available=0.25e9))
    monkeypatch.setattr(export.torch.cuda, "is_available", lambda: False)
    refused(
        SHIPPED_POLICIES, r"the merge takes 1\.0 GB, and 0\.2 GB are free"
    )  # 1,176,832 × 2 bytes = 0.002 GB, and 1 GB
    assert not out.exists()


def test_the_memory_of_a_large_model_is_known_without_its_weights(monkeypatch, capsys):
    monkeypatch.setattr(export.psutil, "virtual_memory", lambda: SimpleNamespace(available=5e9))
    monkeypatch.setattr(export.torch.cuda, "is_available", lambda: False)
    with pytest.raises(UsageError, match=r"the merge takes 5\.4 GB, and 5\.0 GB are free"):
        export.device_with_room(
            "qwen2-vl-2b", torch.float16
        )  # 2,208,985,600 × 2 bytes = 4.42 GB, and 1 GB
    assert (
        "2,208,985,600 weights × 2 bytes + 1 GB for the checks = 5.4 GB" in capsys.readouterr().out
    )
    with pytest.raises(UsageError, match=r"takes 9\.8 GB"):  # × 4 bytes = 8.84 GB
        export.device_with_room("qwen2-vl-2b", torch.float32)
    monkeypatch.setattr(export.psutil, "virtual_memory", lambda: SimpleNamespace(available=6e9))
    assert export.device_with_room("qwen2-vl-2b", torch.float16).type == "cpu"


def test_a_base_in_4_bits_is_never_merged_into(tmp_path):
    for part in models.load_model("tiny"):
        part.save_pretrained(tmp_path / "quantised")
    with pytest.raises(UsageError, match="is quantised"):
        export.merge(tmp_path / "quantised", SHIPPED_POLICIES, tmp_path / "merged")


def test_adapters_that_are_broken_or_of_another_base_are_named(tmp_path):
    cut = copied(tmp_path / "cut")
    (cut / "adapter_model.safetensors").write_bytes(
        (cut / "adapter_model.safetensors").read_bytes()[:99]
    )
    with pytest.raises(UsageError, match="cannot be read"):
        export.merge(None, cut, tmp_path / "merged")
    renamed = copied(tmp_path / "renamed")
    weights = load_file(renamed / "adapter_model.safetensors")
    weights = {name.replace("layers.0.", "layers.9."): value for name, value in weights.items()}
    save_file(weights, renamed / "adapter_model.safetensors")
    with pytest.raises(
        UsageError, match=r"28 tensors do not fit this base .*layers\.0\."
    ):  # 7 layers × A, B × 2 names
        export.merge(None, renamed, tmp_path / "merged")
    assert not (tmp_path / "merged").exists()


def test_what_overflows_in_fp16_is_told(tmp_path):
    """First numbers on the way through the model, with finite weights, then a weight that its precision cannot hold."""
    with pytest.raises(
        UsageError, match=r"this model's numbers overflow\. Merge with --dtype fp32"
    ):
        export.merge(
            None,
            random_adapter("tiny", tmp_path / "large", size=3e3),
            tmp_path / "merged",
            images=1,
        )
    model = plain(TINY, torch.float16)
    export.finite_hash(model)
    model.lm_head.weight.data[5, 7] = 1e5
    with pytest.raises(UsageError, match=r"not finite after the merge in torch\.float16"):
        export.finite_hash(model)


class FakeApi:
    """What the hub was asked; `there` are repositories that exist, with their privacy."""

    def __init__(self, there=(), error=None):
        self.there, self.error, self.uploaded, self.token = dict(there), error, None, None

    def __call__(self, token):
        self.token = token
        return self

    def create_repo(self, repository, *, private, exist_ok):
        assert exist_ok
        if self.error:
            raise self.error
        self.there.setdefault(repository, private)
        return f"https://huggingface.co/{repository}"

    def repo_info(self, repository):
        return SimpleNamespace(private=self.there[repository])

    def upload_folder(self, *, repo_id, folder_path, allow_patterns):
        self.uploaded = {name: (folder_path / name).read_bytes() for name in allow_patterns}


@pytest.fixture
def hub(monkeypatch):
    api = FakeApi()
    monkeypatch.setattr(export, "HfApi", api)
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    return api


def with_leftovers(folder):
    """Files of training beside what is published."""
    for name in ("optimizer.pt", "scheduler.pt", "rng_state.pth", "training_args.bin", "checkpoint.pt", "critic.safetensors",
                 "trainer_state.json", "log.json", "validation_answers.json"):  # fmt: skip
        (folder / name).write_text("{}")
    (folder / "checkpoint-60").mkdir()
    (folder / "checkpoint-60" / "adapter_model.safetensors").write_text("")
    return folder


def test_an_adapter_is_pushed_privately_without_checkpoints_or_paths(hub, tmp_path, capsys):
    folder = with_leftovers(
        copied(tmp_path / "seed-0", base_model_name_or_path="/home/somebody/base")
    )
    write_json(
        folder / "about.json",
        read_json(folder / "about.json") | {"data": "/home/somebody/pairs.jsonl"},
    )
    (folder / "README.md").write_text("base_model: /home/somebody/base")
    before = {file.name: file.read_bytes() for file in folder.iterdir() if file.is_file()}
    assert export.push(folder, "me/counter") == "https://huggingface.co/me/counter"
    assert hub.uploaded.keys() == {
        "README.md",
        "about.json",
        "adapter_config.json",
        "adapter_model.safetensors",
    }
    assert hub.there == {"me/counter": True} and hub.token == "hf_secret"
    assert (
        hub.uploaded["adapter_model.safetensors"]
        == (SHIPPED_POLICIES / "adapter_model.safetensors").read_bytes()
    )
    assert not any(b"somebody" in content for content in hub.uploaded.values())
    assert json.loads(hub.uploaded["about.json"])["data"] == "pairs.jsonl"
    assert (
        yaml.safe_load(hub.uploaded["README.md"].decode().split("---")[1])["library_name"] == "peft"
    )
    assert before == {file.name: file.read_bytes() for file in folder.iterdir() if file.is_file()}
    said = capsys.readouterr().out
    assert "Licence of the base: Apache-2.0" in said and "hf_secret" not in said


def test_a_merged_model_is_pushed_with_all_that_loading_it_takes(shipped, hub, tmp_path):
    folder = with_leftovers(shutil.copytree(shipped.folder, tmp_path / "copy"))
    export.push(folder, "me/counter", private=False)
    assert hub.uploaded.keys() == {
        file.name for file in shipped.folder.iterdir()
    } and hub.there == {"me/counter": False}
    for shard in (
        "model-00001-of-00002.safetensors",
        "model.safetensors.index.json",
        "preprocessor_config.json",
    ):
        assert export.PUBLISHED_FILES.fullmatch(shard)


def test_what_is_meant_to_be_private_does_not_go_into_a_public_repository(hub):
    hub.there["me/known"] = False
    with pytest.raises(UsageError, match="is there and public; nothing was uploaded"):
        export.push(SHIPPED_POLICIES, "me/known")
    assert hub.uploaded is None
    export.push(SHIPPED_POLICIES, "me/known", private=False)
    assert hub.uploaded


def test_a_refusal_is_told_in_one_line_without_the_token(hub):
    for error in (
        errors.OfflineModeIsEnabled("offline with hf_secret\nmore"),
        ConnectionError("hf_secret\n"),
    ):
        hub.error = error
        with pytest.raises(UsageError, match="me/counter: not uploaded") as told:
            export.push(SHIPPED_POLICIES, "me/counter")
        assert "hf_secret" not in str(told.value) and "\n" not in str(told.value)


@pytest.mark.parametrize(
    "name",
    ["", "counter", "a/b/c", "me/../you", "me/a b", "https://huggingface.co/me/x", "/x", "me/"],
)
def test_names_that_are_not_owner_and_name_are_refused(name, hub):
    with pytest.raises(UsageError, match="owner/name"):
        export.push(SHIPPED_POLICIES, name)


def test_a_reward_model_or_any_folder_is_not_pushed(hub, tmp_path):
    with pytest.raises(UsageError, match="holds no adapter"):
        export.push(tmp_path, "me/counter")
    reward = copied(tmp_path / "scores", r=4)
    (reward / "head.safetensors").write_bytes(b"")
    with pytest.raises(UsageError, match="of a reward model"):
        export.push(reward, "me/counter")
    assert hub.uploaded is None


def test_the_token_comes_from_the_environment_or_colab_and_is_asked_for_only_there(
    hub, monkeypatch
):
    monkeypatch.setenv("HF_TOKEN", " \n")
    with pytest.raises(
        UsageError, match=r"https://huggingface\.co/settings/tokens, then set HF_TOKEN"
    ):
        export.push(SHIPPED_POLICIES, "me/counter")
    colab, userdata = ModuleType("google.colab"), ModuleType("google.colab.userdata")
    colab.userdata = userdata
    monkeypatch.setitem(sys.modules, "google", ModuleType("google"))
    monkeypatch.setitem(sys.modules, "google.colab", colab)
    monkeypatch.setitem(sys.modules, "google.colab.userdata", userdata)
    userdata.get = {"HF_TOKEN": "hf_colab"}.get
    assert export.push_token("me/counter") == "hf_colab"
    for name in ("TimeoutException", "SecretNotFoundError", "NotebookAccessError"):

        def refuse(_, name=name):
            raise type(name, (Exception,), {})("hf_colab")

        userdata.get = refuse
        with pytest.raises(UsageError, match="no token for the hub") as told:
            export.push_token("me/counter")
        assert "hf_colab" not in str(told.value)


def test_the_command_line_merges_and_pushes(hub, tmp_path, monkeypatch, capsys):
    out = tmp_path / "merged"
    assert (
        main(["export", str(SHIPPED_POLICIES), str(out), "--dtype", "fp32", "--push", "me/counter"])
        == 0
    )
    assert read_json(out / "config.json")["dtype"] == "float32" and hub.there == {
        "me/counter": True
    }
    assert capsys.readouterr().out.splitlines()[-1] == "https://huggingface.co/me/counter"
    assert (
        main(["export", str(SHIPPED_POLICIES), str(out)]) == 1
        and "is not empty" in capsys.readouterr().err
    )
    monkeypatch.setattr(export, "merge", lambda *_: pytest.fail("merged before the name was read"))
    assert main(["export", str(SHIPPED_POLICIES), str(tmp_path / "b"), "--push", "counter"]) == 1
    assert main(["export", str(SHIPPED_POLICIES), str(tmp_path / "b"), "--public"]) == 1
    assert "give --push OWNER/NAME" in capsys.readouterr().err
