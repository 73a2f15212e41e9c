"""What the set-up cell does on Google Colab after it has fetched the repository: install what is missing, and no more.

A fresh Colab kernel has numpy, Pillow, matplotlib and ipywidgets loaded, and its torch is built for the GPU driver. To
replace one of them means a restart, or a runtime that no longer works. So they are pinned at the version that is there,
and `requirements.txt` decides about the rest: what satisfies it stays. Elsewhere nothing is installed; what is missing
is said.

Runs before any other import: standard library and `packaging`, which Colab has, and no other module of this package.
Simplification: what another package on Colab needs from one that is replaced is not looked at, as pip does not either.
"""

import functools
import importlib
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
COMMAND = f'"{sys.executable}" -m pip install -r "{ROOT / "requirements.txt"}"'

try:
    from packaging.requirements import Requirement
    from packaging.utils import canonicalize_name
except ImportError:
    raise SystemExit(f"The packages of the notebooks are not installed here. Run in a terminal: {COMMAND}") from None

PROTECTED = (
    # built for each other and for the GPU driver
    *("torch", "torchvision", "torchaudio", "triton"),
    # what a fresh kernel of Colab has loaded
    *("certifi", "decorator", "httplib2", "ipykernel", "ipython", "ipywidgets", "matplotlib", "numpy", "packaging"),
    *("pillow", "psutil", "python-dateutil", "pyzmq", "tornado", "traitlets", "typing-extensions", "wcwidth"),
    # built against numpy; loaded as soon as a reader looks at a table
    "pandas",
)
# unsloth cannot even be imported without a GPU. bitsandbytes stays: it quantises to 4 bits on a CPU, too.
GPU_ONLY = ("unsloth", "unsloth-zoo")
NO_NETWORK = re.compile(
    "NewConnectionError|ConnectTimeout|ProxyError|Connection refused|name resolution|Name or service not known"
    "|Could not resolve host|getaddrinfo|dns error|error sending request|Network is unreachable|tcp connect error"
)
_stale: list[str] = []  # replaced though this kernel had loaded them: until it is restarted, nothing may go on


@dataclass(frozen=True)
class Lack:
    """A requirement that is not satisfied, and the version that is there instead, if any."""

    requirement: Requirement
    version: str | None

    @property
    def name(self) -> str:
        return canonicalize_name(self.requirement.name)

    def __str__(self) -> str:
        return f"{self.requirement} ({f'there is {self.version}' if self.version else 'missing'})"


@dataclass(frozen=True)
class Changes:
    """What an installation did: versions of what was added, and (old, new) of what was replaced."""

    added: dict[str, str]
    replaced: dict[str, tuple[str, str]]

    def __str__(self) -> str:
        replaced = [f"{name} {old} → {new}" for name, (old, new) in self.replaced.items()]
        added = [f"{name} {version}" for name, version in self.added.items()]
        return f"replaced: {', '.join(replaced) or 'nothing'}\nadded: {', '.join(added) or 'nothing'}"


def on_colab() -> bool:
    return "COLAB_RELEASE_TAG" in os.environ or "google.colab" in sys.modules


@functools.cache
def has_gpu() -> bool:
    """Whether there is an NVIDIA GPU that works, without importing torch."""
    try:
        listing = subprocess.run(["nvidia-smi", "-L"], capture_output=True, text=True, timeout=30)
    except (OSError, subprocess.TimeoutExpired):
        return False
    return listing.returncode == 0 and "GPU 0" in listing.stdout


def read_requirements(path: Path, gpu: bool) -> list[Requirement]:
    """The lines of a requirements file that count on this system; without a GPU, those that need none."""
    lines = [line.split("#")[0].strip() for line in path.read_text(encoding="utf-8").splitlines()]
    wanted = [Requirement(line) for line in lines if line]
    wanted = [requirement for requirement in wanted if not requirement.marker or requirement.marker.evaluate()]
    return [requirement for requirement in wanted if gpu or canonicalize_name(requirement.name) not in GPU_ONLY]


def unmet(wanted: Iterable[Requirement]) -> list[Lack]:
    """Which of `wanted` is not satisfied, and which requirement of the packages that are there for it, in turn.

    The latter matter when an installation was cut off: the package is there, something that it needs is not. Protected
    packages are not asked what they need: Colab leaves jedi out, which its IPython requires, and must stay as it is.
    """
    lacking: dict[str, Lack] = {}
    todo, seen = list(wanted), set()
    while todo:
        requirement = todo.pop()
        try:
            found = metadata.distribution(requirement.name)
        except metadata.PackageNotFoundError:
            lacking[str(requirement)] = Lack(requirement, None)
            continue
        if not requirement.specifier.contains(found.version, prereleases=True):
            lacking[str(requirement)] = Lack(requirement, found.version)
        elif (key := (canonicalize_name(requirement.name), frozenset(requirement.extras))) not in seen:
            seen.add(key)
            todo += [] if key[0] in PROTECTED else _needs(found, requirement.extras)
    return sorted(lacking.values(), key=str)


def _needs(found: metadata.Distribution, extras: Iterable[str]) -> list[Requirement]:
    """What an installed package requires on this system when it is asked for with these extras."""
    needs = [Requirement(line) for line in found.requires or []]
    chosen = [{"extra": extra} for extra in ("", *extras)]
    return [need for need in needs if not need.marker or any(need.marker.evaluate(extra) for extra in chosen)]


def installed() -> dict[str, str]:
    """Versions of all installed packages; of a package found twice the one that an import would take."""
    versions: dict[str, str] = {}
    for found in metadata.distributions():
        if name := found.metadata["Name"]:  # a removal that was cut off leaves a folder without a name
            versions.setdefault(canonicalize_name(name), found.version)
    return versions


def pins(versions: dict[str, str]) -> list[str]:
    """Constraints that keep the protected packages where they are, with the local part, such as torch==2.11.0+cu128."""
    return [f"{name}=={versions[name]}" for name in PROTECTED if name in versions]


def ensure(root: Path = ROOT) -> Changes:
    """On Colab: install what `requirements.txt` asks for and is not there. Elsewhere: say what is not there.

    Raises SystemExit with one message for the reader: what is wrong, and what to do.
    """
    if _stale:
        raise SystemExit(_restart(_stale))
    wanted = read_requirements(root / "requirements.txt", has_gpu())
    lacking = unmet(wanted)
    if lacking and not on_colab():
        _advise(lacking)
    if not lacking or not on_colab():
        return Changes({}, {})
    _refuse_protected(lacking)
    print(f"Installing for {', '.join(sorted({lack.name for lack in lacking}))} … (about a minute)", flush=True)
    before = installed()
    _install([line for line in wanted if canonicalize_name(line.name) not in PROTECTED or unmet([line])], pins(before))
    importlib.invalidate_caches()
    changes = compare(before, installed())
    _verify(changes, unmet(wanted))
    print(changes)
    _stale.extend(loaded(changes.replaced))
    if _stale:
        raise SystemExit(_restart(_stale))
    return changes


def _advise(lacking: Sequence[Lack]) -> None:
    """Not our environment: another version is the owner's decision, but without a package nothing runs."""
    text = "; ".join(map(str, lacking))
    if any(lack.version is None for lack in lacking):
        raise SystemExit(f"Packages are missing: {text}. Run in a terminal: {COMMAND}")
    print(f"⚠️  Other versions than the notebooks were tested with: {text}. To get those, run in a terminal: {COMMAND}")


def _refuse_protected(lacking: Sequence[Lack]) -> None:
    fixed = [lack for lack in lacking if lack.version and lack.name in PROTECTED]
    if fixed:
        raise SystemExit(
            f"This Colab runtime does not suit the notebooks: {'; '.join(map(str, fixed))}, and that cannot be replaced in "
            "a running one. Choose another version in the menu: Runtime → Change runtime type → Runtime version. "
            "The notebooks were made for that of August 2026."
        )


def _install(wanted: Sequence[Requirement], constraints: Sequence[str]) -> None:
    """Run pip, or uv where Python has it, in this Python. Raises SystemExit with what it said if it fails."""
    tool = (
        ["uv", "pip", "install", "--python", sys.executable] if importlib.util.find_spec("uv") else ["pip", "install"]
    )
    folder = Path(tempfile.mkdtemp())
    try:
        for name, lines in (("requirements", wanted), ("constraints", constraints)):
            (folder / name).write_text("\n".join(map(str, lines)), encoding="utf-8")
        files = ["-r", str(folder / "requirements"), "-c", str(folder / "constraints")]
        run = subprocess.run([sys.executable, "-m", *tool, *files], capture_output=True, text=True)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    if run.returncode:
        raise SystemExit(explain(run.stdout + run.stderr))


def explain(output: str) -> str:
    """One message out of what pip or uv printed before it failed."""
    if NO_NETWORK.search(output):
        return "There is no network: the packages cannot be fetched. Check the connection, then run this cell again."
    lines = [line.strip() for line in output.splitlines() if line.strip()]
    first = next((i for i, line in enumerate(lines) if re.match("ERROR|error|×", line)), max(0, len(lines) - 8))
    said = "\n  ".join(lines[first : first + 8]) or "nothing"
    return (
        f"The packages could not be installed. What pip said:\n  {said}\nIf another package of this runtime stands in the "
        "way: Runtime → Disconnect and delete runtime, then run this cell first of all."
    )


def compare(before: dict[str, str], after: dict[str, str]) -> Changes:
    """What is new in `after`, and what has another version there (or none)."""
    added = {name: version for name, version in sorted(after.items()) if name not in before}
    moved = {name: (old, after.get(name, "removed")) for name, old in sorted(before.items()) if after.get(name) != old}
    return Changes(added, moved)


def _verify(changes: Changes, lacking: Sequence[Lack]) -> None:
    moved = [f"{name} {old} → {new}" for name, (old, new) in changes.replaced.items() if name in PROTECTED]
    if moved or lacking:
        wrong = [*(f"replaced against the rule: {text}" for text in moved), *(f"not satisfied: {x}" for x in lacking)]
        raise SystemExit(
            f"The installation did not do what it should: {'; '.join(wrong)}. This runtime cannot be relied on: "
            "Runtime → Disconnect and delete runtime, then run this cell first of all."
        )


def loaded(names: Iterable[str]) -> list[str]:
    """Those of the packages of which this kernel has a module loaded."""
    names, modules = set(names), metadata.packages_distributions()
    owners = {canonicalize_name(owner) for module, all_ in modules.items() if module in sys.modules for owner in all_}
    return sorted(names & owners)


def _restart(names: Sequence[str]) -> str:
    return (
        f"⚠️  RESTART NEEDED: {', '.join(names)} had been loaded before and has been replaced. In the menu: Runtime → Restart "
        "session, then run this cell again, before any other. Nothing will be installed a second time."
    )
