"""Rewards of one's own: a function in a file of Python, named as `my_rewards.py:brevity`.

    def brevity(image, question, answer, truth):
        return -len(answer.split())

`image` is the image, a list of several, or None; `truth` is what the data says, or None. The result
is a number, True or False, or a `Score` with its parts. A scorer that the suite makes, such as
`heuristic_scorer(rules=[…])`, may stand in the file under a name, too.

The file is run anew each time it is loaded. What it imports from its own folder is loaded with it
and belongs to it: these neighbours come before modules of the same name elsewhere, such as
`helpers`, and nobody else sees them. The text of all these files is part of the scorer, so that a
run whose reward was changed is another run (`helpers/training/fingerprints.py`).

Simplification: neighbours are imported at the top of the file; an import inside a function comes
too late, as the folder is no longer searched then. Data that a function reads is no part of it.
"""

import contextlib
import importlib
import inspect
import os
import re
import sys
import sysconfig
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from importlib.machinery import SourceFileLoader
from importlib.util import module_from_spec, spec_from_loader
from pathlib import Path
from types import ModuleType
from typing import Any

from helpers.files import ROOT, UsageError, did_you_mean, file_hash, starting_folders

from .scoring import Score, Scorer, ScorerInputs, finite_number, score_all

SIGNATURE = "(image, question, answer, truth)"
# nothing in them is a neighbour
NOT_OWN = (sysconfig.get_path("stdlib") + os.sep, str(ROOT / "helpers") + os.sep)


def is_own_reward(name: str) -> bool:
    """Whether a name means a function in a file; names of ready scorers have no colon."""
    return ":" in name or name.endswith(".py")


def anchor_reward(name: str, folder: Path) -> str:
    """The name of a reward of one's own with its path counted from `folder`; others stay."""
    if not is_own_reward(name):
        return name
    file, function = _split_name(name)
    path = folder.absolute() / Path(file).expanduser()
    return f"{path}:{function}" if function else str(path)


def _split_name(name: str) -> tuple[str, str]:
    """The file and the function; "" if none is named."""
    # the last colon: the one of a Windows drive comes before
    found = re.fullmatch(r"(.+):(\w+)", name, flags=re.DOTALL)
    return (found[1], found[2]) if found else (name, "")


def load_reward(name: str, folder: Path | None = None) -> Scorer:
    """The reward `FILE.py:FUNCTION`, its path counted from `folder`.

    Without a folder it counts from where one stands, then from the repository.

    Raises UsageError for a file or function that is not there or cannot be used, and, when an
    answer is scored, for an error in the function or a value that is no finite number, naming the
    answer.
    """
    file, function = _split_name(name)
    # the first place that has it; an absolute path stays as it is
    places = [folder] if folder else starting_folders()
    paths = [place / Path(file).expanduser() for place in places]
    path = next((path for path in paths if path.is_file()), None)
    if path is None:
        raise UsageError(
            f"{paths[0]}: no such file, for the reward {name!r}. Write FILE.py:FUNCTION; relative "
            "paths count from the recipe, else from where you stand."
        )
    # anew each time, so that what was changed since counts
    module, sources = _load_file(path)
    found = _find_function(module, function, path)
    return _make_scorer(_OwnReward(found, function, path), sources)


# --- the file and its neighbours ---


def _load_file(path: Path) -> tuple[ModuleType, dict[str, str]]:
    """Run a file; return it with the hash of its text and of each neighbour's, by name."""
    folder = path.resolve().parent
    # not its own name, which a module of the suite may have; equal on every machine
    loader = SourceFileLoader(f"own_reward_{path.stem}", str(path.resolve()))
    module = module_from_spec(spec_from_loader(loader.name, loader))
    with _neighbours_first(path.resolve()) as loaded:
        sys.modules[loader.name] = module  # dataclasses look for it there
        try:
            loader.exec_module(module)
        # whatever a file of others raises
        except (Exception, SystemExit) as error:
            raise UsageError(
                f"{path}: cannot be loaded{_line_of(error, folder)} ({_reason(error)}). Correct it."
                f"{_names_of_python(path)}"
            ) from error
        # while they are still known: the file itself is among them
        sources = {}
        for part in loaded():
            if file := getattr(part, "__file__", None):
                inside = Path(file).resolve().relative_to(folder)
                sources[inside.as_posix()] = file_hash(folder / inside)
    return module, dict(sorted(sources.items()))


@contextlib.contextmanager
def _neighbours_first(path: Path) -> Iterator[Callable[[], list[ModuleType]]]:
    """Search the folder of `path` first for a while; afterwards all modules are as before.

    Yields a function that lists the modules of the folder that were imported meanwhile. The name of
    the file itself hides nothing: `torch.py` that imports torch means the library.
    """
    folder = path.parent
    before = dict(sys.modules)
    keep_bytecode = sys.dont_write_bytecode
    # what a neighbour takes the name of, and what was imported from this folder before
    tops = {name.split(".")[0] for name in before}
    hidden = {top for top in tops if top != path.stem and _is_hidden_by(top, folder)}
    for name, module in before.items():
        is_hidden = name.split(".")[0] in hidden
        if is_hidden or (name != "__main__" and _is_inside(module, folder)):
            del sys.modules[name]
    sys.path.insert(0, str(folder))
    # a changed neighbour must never be read from a cache, nor leave one in the folder of others
    sys.dont_write_bytecode = True
    importlib.invalidate_caches()
    try:
        yield lambda: list(_own_modules(folder, before).values())
    finally:
        sys.dont_write_bytecode = keep_bytecode
        sys.path.remove(str(folder))
        # the functions keep their modules; nobody else is to find them
        for name in _own_modules(folder, before):
            del sys.modules[name]
        sys.modules.update(before)


def _is_hidden_by(name: str, folder: Path) -> bool:
    """Whether the folder has a module of that name that is not the one of the suite itself."""
    if name in sys.stdlib_module_names:
        return False
    places = folder / f"{name}.py", folder / name / "__init__.py"
    return any(place.exists() and not _is_installed(place) for place in places)


def _is_installed(path: Path | str) -> bool:
    """Whether a path is Python's, a package's or the suite's, also where the folder holds them."""
    # as text: thousands of modules are asked about
    text = str(path)
    if "site-packages" in text or "dist-packages" in text or text.startswith(NOT_OWN):
        return True
    return os.path.realpath(text).startswith(NOT_OWN)


def _is_inside(module: ModuleType, folder: Path) -> bool:
    """Whether a module was imported from the folder; a package without a file has folders."""
    # not by getattr, which makes lazy modules load
    known = getattr(module, "__dict__", {})
    places = [known["__file__"]] if known.get("__file__") else list(known.get("__path__", ()))
    if not places or _is_installed(places[0]):
        return False
    return Path(places[0]).resolve().is_relative_to(folder)


def _own_modules(folder: Path, before: Mapping[str, ModuleType]) -> dict[str, ModuleType]:
    """The modules that were imported from the folder since `before`."""
    found = {}
    for name, module in sys.modules.items():
        if before.get(name) is not module and _is_inside(module, folder):
            found[name] = module
    return found


def _names_of_python(path: Path) -> str:
    """Name neighbours that Python's own modules come before, for the end of a message."""
    # they were loaded before any file of one's own
    others = [file for file in sorted(path.parent.glob("*.py")) if file.name != path.name]
    names = [file.name for file in others if file.stem in sys.stdlib_module_names]
    if not names:
        return ""
    return (
        f" Python has its own modules of these names: {', '.join(names)}. Rename what you import."
    )


def _find_function(module: ModuleType, name: str, path: Path) -> Callable[..., Any]:
    """The function of that name, which takes what scorers take."""
    own = []
    for key, value in vars(module).items():
        if _is_public_function(key, value, module):
            own.append(key)
    listed = f"It has {', '.join(own)}." if own else "It defines no function."
    if not name:
        raise UsageError(f"{path}: which reward? Write {path.name}:FUNCTION. {listed}")
    found = getattr(module, name, None)
    if not callable(found):
        hint = did_you_mean(name, own)
        raise UsageError(f"{path}: there is no function {name!r}. {listed}{hint}")
    # rather now than after hours of sampling
    try:
        inspect.signature(found).bind(None, "", "", None)
    except TypeError as error:
        raise UsageError(
            f"{path}: {name} must take {SIGNATURE}, and it does not ({error})."
        ) from None
    except ValueError:
        pass  # a built-in function does not say what it takes
    return found


def _is_public_function(name: str, value: Any, module: ModuleType) -> bool:
    # what the file imports is not offered as its own
    made_here = getattr(value, "__module__", None) == module.__name__
    return callable(value) and made_here and not name.startswith("_")


# --- what it returns ---


@dataclass(frozen=True)
class _OwnReward:
    """A function of somebody else's; what goes wrong in it is said by its name."""

    function: Callable[..., Any]
    name: str
    path: Path

    def score_all(self, rows: Sequence[ScorerInputs]) -> list[Score]:
        if hasattr(self.function, "batch"):  # a scorer of the suite, with a model in it
            answers = " | ".join(row[2] for row in rows[:1])
            given = self._run(lambda: score_all(self.function, rows), answers)
        else:
            given = [self._run(partial(self.function, *row), row[2]) for row in rows]
        scores = []
        for value, row in zip(given, rows, strict=True):
            scores.append(self._check(value, row[2]))
        return scores

    def _run(self, call: Callable[[], Any], answer: str) -> Any:
        try:
            return call()
        # whatever a function of others raises
        except Exception as error:
            folder = self.path.resolve().parent
            advice = "Correct the function."
            if isinstance(error, ModuleNotFoundError) and _is_hidden_by(str(error.name), folder):
                advice = "Import it at the top of the file."
            raise UsageError(
                f"reward {self.name} of {self.path}: failed{_line_of(error, folder)} on the answer "
                f"{answer!r} ({_reason(error)}). {advice}"
            ) from error

    def _check(self, value: Any, answer: str) -> Score:
        parts = value.parts if isinstance(value, Score) else {self.name: value}
        # the total of a Score need not be the sum of its parts, so both are looked at
        total = finite_number(value.total if isinstance(value, Score) else value)
        numbers = {part: finite_number(one) for part, one in parts.items()}
        if total is None or None in numbers.values():
            raise UsageError(
                f"reward {self.name} of {self.path}: gave {value!r} for the answer {answer!r}. "
                "Return a finite number, True or False, or a Score."
            )
        return Score(total, numbers)


def _make_scorer(reward: _OwnReward, sources: dict[str, str]) -> Scorer:
    """The reward as a scorer, whose attribute `sources` is a part of its fingerprint."""

    def score(
        image: Any,
        question: str,
        answer: str,
        facts: Any = None,
    ) -> Score:
        return reward.score_all([(image, question, answer, facts)])[0]

    # trainers log it by its name, and batches come from `score_all`
    score.__name__ = reward.name
    score.batch = reward.score_all
    score.sources = sources
    return score


def _reason(error: BaseException) -> str:
    said = str(error).strip().splitlines()
    # it is a sentence already
    if isinstance(error, UsageError):
        return said[0]
    return f"{type(error).__name__}: {said[0]}" if said else type(error).__name__


def _line_of(error: BaseException, folder: Path) -> str:
    """ " in line 3 of words.py": the last place in the folder that the error came through."""
    place = ""
    if isinstance(error, SyntaxError) and error.filename:
        return f" in line {error.lineno} of {Path(error.filename).name}"
    # from the outermost call inwards, so that the last place found is the nearest to the error
    trace = error.__traceback__
    while trace:
        file = Path(trace.tb_frame.f_code.co_filename)
        if file.is_relative_to(folder) and not _is_installed(file):
            place = f" in line {trace.tb_lineno} of {file.name}"
        trace = trace.tb_next
    return place
