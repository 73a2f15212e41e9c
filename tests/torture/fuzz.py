"""Recipes with mistakes and adapters with damage: refused in one line, or taken as they say."""

import json
import random
import re
import shutil
import tomllib
from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from helpers import models
from helpers.files import SEAL_FILE
from helpers.recipes import DATA_PATHS, RECIPES, Recipe, read_recipe

from . import children
from .outcome import SURVIVED, Outcome, Trial
from .saves import MODEL, REFUSED, in_words, save_policy

# --- recipes ---

# What people write where a number, a name or a list belongs; as TOML has it
VALUES = (
    "-1", "0", "1", "1.0", "1e400", "nan", "inf", "-inf", "999999999999999999999", "true", "false",
    '""', '"5"', '"tiny"', '"nonsense"', '"1e-4"', "[]", "[1]", '["data"]', '["data", "dpo"]', "{}",
    "{ a = 1 }", '{ r = 4 }', '"../../etc"', "1979-05-27", "'''\n'''",
)  # fmt: skip
LINE = re.compile(r"^(\w+) = (.*)$")


def recipe_trials(home: Path, draws: random.Random) -> Iterator[Trial]:
    """The shipped recipes, each with up to three mistakes."""
    home.mkdir(parents=True, exist_ok=True)
    texts = [path.read_text(encoding="utf-8") for path in sorted(RECIPES.glob("*.toml"))]
    number = 0
    while True:
        text = draws.choice(texts)
        for _ in range(draws.randint(1, 3)):
            text = _with_a_mistake(text, draws)
        path = home / f"recipe-{number}.toml"
        path.write_text(text, encoding="utf-8")
        yield partial(_read_recipe, path, draws.random() < 0.5)
        number += 1


def _with_a_mistake(text: str, draws: random.Random) -> str:
    lines = text.splitlines()
    places = [place for place, line in enumerate(lines) if LINE.match(line)]
    if not places:
        return text
    place = draws.choice(places)
    name, value = LINE.match(lines[place]).groups()
    match draws.choice(("value", "value", "value", "name", "away", "twice", "cut", "number")):
        case "value":
            lines[place] = f"{name} = {draws.choice(VALUES)}"
        case "name":
            lines[place] = f"{name[:-1]}{draws.choice('abx_')} = {value}"
        case "away":
            del lines[place]
        case "twice":
            lines.insert(place, lines[place])
        case "cut":
            lines[place] = lines[place][: draws.randrange(len(lines[place]))]
        case "number":
            # of the settings inside a table of one line
            lines[place] = re.sub(r"\b\d[\d.e-]*", lambda _: draws.choice(VALUES), lines[place])
    return "\n".join(lines) + "\n"


def _read_recipe(path: Path, laptop: bool) -> Outcome:
    ended = children.run(in_words, _what_is_not_held, path, laptop)
    what = f"{path}, laptop={laptop}"
    if ended.has_traceback:
        return Outcome("raw traceback", f"{what}\n{ended.text[-1500:]}")
    if ended.value == REFUSED and path.name not in ended.text:
        return Outcome("silently wrong", f"{what}: the error names no file: {ended.text}")
    if ended.value not in (REFUSED, ""):
        return Outcome("silently wrong", f"{what}: {ended.value}")
    return SURVIVED


def _what_is_not_held(path: Path, laptop: bool) -> str:
    """Read a recipe; name the first value of the file that the recipe does not have."""
    recipe = read_recipe(path, laptop=laptop)
    written = tomllib.loads(path.read_text(encoding="utf-8"))
    if laptop or "laptop" in written:
        smaller = written.pop("laptop", {})
        if laptop:
            return _missing(smaller, recipe)
    return _missing(written, recipe)


def _missing(written: Mapping[str, Any], recipe: Recipe) -> str:
    held = recipe.model_dump()
    for name, value in written.items():
        parts = value.items() if isinstance(held.get(name), dict) else [("", value)]
        for part, wanted in parts:
            found = held[name][part] if part else held.get(name)
            if part in DATA_PATHS or part in ("score", "scorer"):
                continue  # paths become absolute
            if not _same(wanted, found):
                return f"{name}.{part} is {wanted!r} in the file and {found!r} in the recipe"
    return ""


def _same(written: Any, held: Any) -> bool:
    """Are they the same value of the same kind? A list of TOML is a tuple here."""
    if isinstance(written, list):
        pairs = zip(written, held, strict=False)
        return len(written) == len(held) and all(_same(*pair) for pair in pairs)
    if isinstance(written, Mapping):
        return all(name in held and _same(value, held[name]) for name, value in written.items())
    if isinstance(written, bool) or isinstance(held, bool):
        return written is held
    return written == held and isinstance(held, str) == isinstance(written, str)


# --- adapters ---


def adapter_trials(home: Path, draws: random.Random) -> Iterator[Trial]:
    """A saved policy, damaged; with its seal or without, as another tool writes it."""
    whole = home / "whole"
    children.run(save_policy, whole, 1)
    number = 0
    while True:
        folder = home / f"adapter-{number}"
        shutil.copytree(whole, folder)
        sealed = draws.random() < 0.3
        if not sealed:
            (folder / SEAL_FILE).unlink()
        damage = draws.choice(list(DAMAGES))
        DAMAGES[damage](folder, draws)
        what = f"{damage}, {'with' if sealed else 'without'} its seal"
        yield partial(_load_adapter, folder, what, sealed)
        number += 1


def _load_adapter(folder: Path, what: str, sealed: bool) -> Outcome:
    ended = children.run(in_words, _what_is_not_loaded, folder)
    if ended.has_traceback:
        return Outcome("raw traceback", f"{what} ({folder})\n{ended.text[-1500:]}")
    if ended.value == REFUSED:
        shutil.rmtree(folder)
        return SURVIVED
    if sealed:
        return Outcome("silently wrong", f"{what}: loaded, though it is not what was saved")
    if ended.value:
        return Outcome("silently wrong", f"{what}: {ended.value} ({folder})")
    shutil.rmtree(folder)
    return SURVIVED


def _what_is_not_loaded(folder: Path) -> str:
    """Load an adapter; name what the file has and the model has not, or the reverse."""
    model = models.load_adapter(models.load_model(MODEL)[0], folder)
    loaded = {n: p for n, p in model.named_parameters() if "lora_" in n}
    names = {name.replace(f".{models.POLICY_ADAPTER}.", "."): name for name in loaded}
    written = load_file(folder / "adapter_model.safetensors")
    if written.keys() != names.keys():
        return f"{sorted(written.keys() ^ names.keys())[0]} is only in one of the two"
    for name, tensor in written.items():
        weight = loaded[names[name]]
        if not torch.equal(weight, tensor.to(weight.dtype)):
            return f"{name} is another one"
        if not weight.isfinite().all():
            return f"{name} is not finite"
    return ""


def _change_tensors(folder: Path, change) -> None:
    path = folder / "adapter_model.safetensors"
    tensors = load_file(path)
    change(tensors)
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, path)


def _change_one(change):
    """A damage that changes one tensor, which is drawn."""

    def damage(folder: Path, draws: random.Random) -> None:
        def of_all(tensors: dict[str, torch.Tensor]) -> None:
            name = draws.choice(sorted(tensors))
            change(tensors, name)

        _change_tensors(folder, of_all)

    return damage


def _rename(tensors: dict[str, torch.Tensor], name: str) -> None:
    tensors[name.replace("base_model", "model")] = tensors.pop(name)


def _remove_half(folder: Path, draws: random.Random) -> None:
    def of_all(tensors: dict[str, torch.Tensor]) -> None:
        for name in draws.sample(sorted(tensors), len(tensors) // 2):
            del tensors[name]

    _change_tensors(folder, of_all)


def _replace_number(value: float):
    def change(tensors: dict[str, torch.Tensor], name: str) -> None:
        tensors[name] = tensors[name].clone()
        tensors[name].view(-1)[0] = value

    return _change_one(change)


def _flip_bit(file: str):
    def damage(folder: Path, draws: random.Random) -> None:
        raw = bytearray((folder / file).read_bytes())
        raw[draws.randrange(len(raw))] ^= 1 << draws.randrange(8)
        (folder / file).write_bytes(raw)

    return damage


def _cut(file: str):
    def damage(folder: Path, draws: random.Random) -> None:
        raw = (folder / file).read_bytes()
        (folder / file).write_bytes(raw[: draws.randrange(len(raw))])

    return damage


def _configure(name: str, value: Any):
    def damage(folder: Path, draws: random.Random) -> None:
        path = folder / "adapter_config.json"
        config = json.loads(path.read_text())
        config[name] = value
        path.write_text(json.dumps(config))

    return damage


DAMAGES = {
    "a tensor is missing": _change_one(lambda tensors, name: tensors.pop(name)),
    "a tensor has another name": _change_one(_rename),
    "a tensor is transposed": _change_one(
        lambda tensors, name: tensors.update({name: tensors[name].T})
    ),
    "a tensor is too much": _change_one(
        lambda tensors, name: tensors.update({f"{name}.more": tensors[name].clone()})
    ),
    "a tensor is of integers": _change_one(
        lambda tensors, name: tensors.update({name: tensors[name].to(torch.int8)})
    ),
    "a tensor is in half": _change_one(
        lambda tensors, name: tensors.update({name: tensors[name].half()})
    ),
    "a tensor is empty": _change_one(
        lambda tensors, name: tensors.update({name: tensors[name][:0]})
    ),
    "half of the tensors": _remove_half,
    "NaN": _replace_number(float("nan")),
    "inf": _replace_number(float("-inf")),
    "a bit of the weights": _flip_bit("adapter_model.safetensors"),
    "a bit of the config": _flip_bit("adapter_config.json"),
    "a bit of about.json": _flip_bit("about.json"),
    "weights cut short": _cut("adapter_model.safetensors"),
    "config cut short": _cut("adapter_config.json"),
    "about.json cut short": _cut("about.json"),
    "another rank": _configure("r", 3),
    "other modules": _configure("target_modules", ["q_proj"]),
    "modules that are not there": _configure("target_modules", ["wqkv"]),
    "another kind": _configure("peft_type", "IA3"),
    "an unknown kind": _configure("peft_type", "MAGIC"),
    "DoRA": _configure("use_dora", True),
    "another base": _configure("base_model_name_or_path", "somebody/other"),
    "a rank of words": _configure("r", "eight"),
    "weights are a folder": lambda folder, _: _make_folder(folder / "adapter_model.safetensors"),
}


def _make_folder(path: Path) -> None:
    path.unlink()
    path.mkdir()
