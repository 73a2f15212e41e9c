"""What a reward is made of, as a hash: its code, what its functions refer to, the weights in it.

A name is not enough to tell one reward from another: two reward models have the same, and so has a
function of one's own before and after a change. Of functions that come from installed packages the
name counts, not the code.

Simplification: a function is followed through the variables it refers to, not through attributes of
modules. A reward from a file of one's own (`rewards.load_reward`) has the text of that file and of
its neighbours with it.
"""

import hashlib
import inspect
import sysconfig
from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path
from types import CodeType, FunctionType, MethodType, ModuleType
from typing import Any

import numpy as np
from torch import Tensor, nn
from transformers import ProcessorMixin

from helpers.models import processor_settings
from helpers.rewards import FeatureReward, RewardModel
from helpers.runtime import tensors_hash

LIBRARIES = tuple(sysconfig.get_paths()[name] for name in ("stdlib", "purelib", "platlib"))

# scikit-learn keeps the address of an object there, which every process has its own of
NOT_STATE = "_stop_words_id"


def fingerprint(value: Any) -> str:
    """Hash of a value by what is in it. Equal in every process, as far as the value is."""
    digest = hashlib.blake2b(digest_size=16)
    # objects by their ids: kept, so that no id is given to another one meanwhile
    seen: dict[int, Any] = {}
    for part in _parts(value, seen):
        digest.update(part.encode() + b"\0")
    return digest.hexdigest()


def _parts(value: Any, seen: dict[int, Any]) -> Iterator[str]:
    if value is None or isinstance(value, str | bytes | int | float | np.generic):
        yield repr(value)
        return
    if id(value) in seen:
        yield "seen before"
        return
    seen[id(value)] = value
    yield type(value).__qualname__
    inner = _leaf(value)
    if inner is not None:
        yield inner
        return
    for part in _children(value):
        yield from _parts(part, seen)


def _leaf(value: Any) -> str | None:
    """The hash of what is not looked into any further; None for all else."""
    if isinstance(value, RewardModel):
        # its base is the policy's, and is in the identity of every run
        weights = tensors_hash(sorted(value.trainable_parameters().items()))
        return f"{weights} {value.pooling_name} {value.sees_images}"
    if isinstance(value, FeatureReward):
        return tensors_hash(sorted(value.net.state_dict().items()))
    if isinstance(value, nn.Module):
        return tensors_hash(sorted(value.state_dict().items()))
    if isinstance(value, Tensor):
        return tensors_hash([("", value)])
    if isinstance(value, np.ndarray) and value.dtype != object:
        shape = f"{value.dtype} {value.shape}".encode()
        return hashlib.blake2b(shape + value.tobytes(), digest_size=16).hexdigest()
    if isinstance(value, ProcessorMixin):
        return processor_settings(value)
    if isinstance(value, Path):  # the folder may have another place on another machine
        return value.name
    if isinstance(value, ModuleType):
        return value.__name__
    if isinstance(value, type):
        return f"{value.__module__}.{value.__qualname__}"
    return None


def _children(value: Any) -> list[Any]:
    """What a value is made of, in an order that every process has."""
    if isinstance(value, FunctionType):
        around = inspect.getclosurevars(value)
        if value.__code__.co_filename.startswith(LIBRARIES):
            # a decorator of a library, such as torch.no_grad, holds the function behind it
            return [f"{value.__module__}.{value.__qualname__}", around.nonlocals]
        defaults = [value.__defaults__, value.__kwdefaults__]
        return [value.__code__, defaults, around.nonlocals, around.globals, vars(value)]
    if isinstance(value, CodeType):
        return [value.co_code, value.co_names, value.co_consts]
    if isinstance(value, MethodType):
        return [value.__func__, value.__self__]
    if isinstance(value, partial):
        return [value.func, value.args, value.keywords]
    if isinstance(value, Mapping):
        names = sorted(value) if all(isinstance(name, str) for name in value) else value
        return [part for name in names for part in (name, value[name])]
    if isinstance(value, set | frozenset):
        return sorted(value, key=repr)
    if isinstance(value, list | tuple | np.ndarray):
        return list(value)
    state = {
        name: part for name, part in getattr(value, "__dict__", {}).items() if name != NOT_STATE
    }
    called = vars(type(value)).get("__call__")
    # what has no attributes is known by its text, unless that is its address
    text = "" if state or " at 0x" in repr(value) else repr(value)
    return [text, called, state]
