"""What the set-up cell does on Colab and Kaggle: install what is missing, and no more.

A fresh Colab kernel has numpy, Pillow, matplotlib and ipywidgets loaded, and its torch is built for
the GPU driver. To replace one of them means a restart, or a runtime that no longer works. So they
are pinned at the version that is there, and `requirements.txt` decides about the rest: what
satisfies it stays. Kaggle's image is built on Colab's, and treated alike. Elsewhere nothing is
installed; what is missing is said.

`hosted_machine` is the one place that knows whether this is Colab, Kaggle or neither.

Runs before any other import: standard library and `packaging`, which Colab has, and no other module
of this package. Simplification: what another package on Colab needs from one that is replaced is
not looked at, as pip does not either.
"""

import functools
import importlib
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

_ROOT = Path(__file__).resolve().parent.parent
INSTALL_COMMAND = f'"{sys.executable}" -m pip install -r "{_ROOT / "requirements.txt"}"'

try:
    from packaging.requirements import Requirement
    from packaging.utils import canonicalize_name
except ImportError:
    raise SystemExit(
        "The packages of the notebooks are not installed here. "
        f"Run in a terminal: {INSTALL_COMMAND}"
    ) from None

PROTECTED = (
    # built for each other and for the GPU driver
    *("torch", "torchvision", "torchaudio", "triton"),
    # what a fresh kernel of Colab has loaded
    *("certifi", "decorator", "httplib2", "ipykernel", "ipython", "ipywidgets", "matplotlib"),
    *("numpy", "packaging", "pillow", "psutil", "python-dateutil", "pyzmq", "tornado"),
    *("traitlets", "typing-extensions", "wcwidth"),
    # built against numpy; loaded as soon as a reader looks at a table
    "pandas",
)
# unsloth cannot even be imported without a GPU. bitsandbytes stays: it quantises on a CPU, too.
GPU_ONLY = ("unsloth", "unsloth-zoo")
NO_NETWORK = re.compile(
    "NewConnectionError|ConnectTimeout|ProxyError|Connection refused|name resolution"
    "|Name or service not known|Could not resolve host|getaddrinfo|dns error"
    "|error sending request|Network is unreachable|tcp connect error"
)
SAID_LINES = 8  # of what pip printed, in an error: its own conflicts take no more
# Replaced though this kernel had loaded them: until it is restarted, nothing may go on.
stale_packages: list[str] = []


@dataclass(frozen=True)
class HostedMachine:
    """A machine that runs notebooks in the browser, and what a reader does there."""

    name: str
    connect: str  # when there is no network
    restart: str  # for a new kernel on the same disk
    start_anew: str  # for a machine without what was installed
    change_versions: str  # for other versions of Python and torch


COLAB = HostedMachine(
    name="Colab",
    connect="Check the connection",
    restart="In the menu: Runtime → Restart session",
    start_anew="Runtime → Disconnect and delete runtime",
    change_versions="Choose another version in the menu: Runtime → Change runtime type → "
    "Runtime version. The notebooks were made for that of August 2026.",
)
KAGGLE = HostedMachine(
    name="Kaggle",
    connect="Turn on Internet in the notebook's settings",
    restart="In the menu: Run → Restart & clear cell outputs",
    start_anew="Stop the session and start it again",
    change_versions="Choose another environment in the notebook's settings.",
)
COLAB_FOLDER = Path("/content")  # where notebooks run; a Drive that is mounted is in drive/
KAGGLE_FOLDER = Path("/kaggle/working")  # all that Kaggle keeps, with "Save Version"


@dataclass(frozen=True)
class UnmetRequirement:
    """A requirement that is not satisfied, and the version that is there instead, if any."""

    requirement: Requirement
    version: str | None

    @property
    def name(self) -> str:
        return canonicalize_name(self.requirement.name)

    def __str__(self) -> str:
        there = f"there is {self.version}" if self.version else "missing"
        return f"{self.requirement} ({there})"


@dataclass(frozen=True)
class VersionChanges:
    """What an installation did: versions of what was added, and (old, new) of what was replaced."""

    added: dict[str, str]
    replaced: dict[str, tuple[str, str]]

    def __str__(self) -> str:
        replaced = [f"{name} {old} → {new}" for name, (old, new) in self.replaced.items()]
        added = [f"{name} {version}" for name, version in self.added.items()]
        return (
            f"replaced: {', '.join(replaced) or 'nothing'}\nadded: {', '.join(added) or 'nothing'}"
        )


def hosted_machine() -> HostedMachine | None:
    """COLAB or KAGGLE, whichever this machine is; None elsewhere."""
    if "KAGGLE_KERNEL_RUN_TYPE" in os.environ:  # first: Kaggle's image has the marks of Colab's
        return KAGGLE
    if "COLAB_RELEASE_TAG" in os.environ or "google.colab" in sys.modules:
        return COLAB
    return None


@functools.cache
def has_gpu() -> bool:
    """Whether there is an NVIDIA GPU that works, without importing torch."""
    try:
        listing = subprocess.run(["nvidia-smi", "-L"], capture_output=True, text=True, timeout=30)
    except (OSError, subprocess.TimeoutExpired):
        return False
    return listing.returncode == 0 and "GPU 0" in listing.stdout


def read_requirements(path: Path, gpu: bool) -> list[Requirement]:
    """Read the lines of a requirements file that count here; without a GPU, what needs none."""
    wanted = []
    for line in path.read_text(encoding="utf-8").splitlines():
        text = line.split("#")[0].strip()
        if not text:
            continue
        requirement = Requirement(text)
        here = not requirement.marker or requirement.marker.evaluate()
        if here and (gpu or canonicalize_name(requirement.name) not in GPU_ONLY):
            wanted.append(requirement)
    return wanted


def unmet_requirements(requirements: Iterable[Requirement]) -> list[UnmetRequirement]:
    """Find the requirements that are not satisfied, also those of installed packages, and so on.

    The latter matter when an installation was cut off: the package is there, something that it
    needs is not. Protected packages are not asked what they need: Colab leaves jedi out, which its
    IPython requires, and must stay as it is.
    """
    unmet: dict[str, UnmetRequirement] = {}
    todo, seen = list(requirements), set()
    while todo:
        requirement = todo.pop()
        try:
            found = metadata.distribution(requirement.name)
        except metadata.PackageNotFoundError:
            unmet[str(requirement)] = UnmetRequirement(requirement, None)
            continue
        if not requirement.specifier.contains(found.version, prereleases=True):
            unmet[str(requirement)] = UnmetRequirement(requirement, found.version)
            continue
        name = canonicalize_name(requirement.name)
        asked = (name, frozenset(requirement.extras))
        if asked not in seen and name not in PROTECTED:
            todo += _needs(found, requirement.extras)
        seen.add(asked)
    return sorted(unmet.values(), key=str)


def _needs(found: metadata.Distribution, extras: Iterable[str]) -> list[Requirement]:
    """What an installed package requires on this system when it is asked for with these extras."""
    chosen = [{"extra": extra} for extra in ("", *extras)]
    needs = []
    for need in map(Requirement, found.requires or ()):
        if not need.marker or any(map(need.marker.evaluate, chosen)):
            needs.append(need)
    return needs


def installed_versions() -> dict[str, str]:
    """Versions of all installed packages; of one found twice that which an import would take."""
    versions: dict[str, str] = {}
    for found in metadata.distributions():
        name = found.metadata["Name"]
        if name:  # a removal that was cut off leaves a folder without a name
            versions.setdefault(canonicalize_name(name), found.version)
    return versions


def pins(versions: dict[str, str]) -> list[str]:
    """Constraints that keep the protected packages, with the local part: torch==2.11.0+cu128."""
    return [f"{name}=={versions[name]}" for name in PROTECTED if name in versions]


def ensure(root: Path = _ROOT) -> VersionChanges:
    """Install what `requirements.txt` asks for and Colab or Kaggle lacks; elsewhere only say so.

    Raises SystemExit with one message for the reader: what is wrong, and what to do.
    """
    machine = hosted_machine()
    if machine and stale_packages:
        raise SystemExit(_restart(stale_packages, machine))
    wanted = read_requirements(root / "requirements.txt", has_gpu())
    unmet = unmet_requirements(wanted)
    if unmet and machine:
        return _bring_up_to_date(wanted, unmet, machine)
    if unmet:
        _advise(unmet)
    return VersionChanges({}, {})


def _bring_up_to_date(
    wanted: Sequence[Requirement], unmet: Sequence[UnmetRequirement], machine: HostedMachine
) -> VersionChanges:
    """Install, look at what became of it, and ask for a restart if the kernel needs one."""
    _refuse_protected(unmet, machine)
    names = ", ".join(sorted({lack.name for lack in unmet}))
    print(f"Installing for {names} … (about a minute)", flush=True)
    before = installed_versions()
    # a protected package only where it is missing: asked for by name, pip would look at its needs
    asked = [
        requirement
        for requirement in wanted
        if canonicalize_name(requirement.name) not in PROTECTED or unmet_requirements([requirement])
    ]
    _install(asked, pins(before), machine)
    importlib.invalidate_caches()
    after = installed_versions()
    changes = compare_versions(before, after)
    _verify(changes, unmet_requirements(wanted), machine)
    if _has_uv():
        _compile(dict(after.items() - before.items()))
    print(changes)
    stale_packages.extend(loaded_packages(changes.replaced))
    if stale_packages:
        raise SystemExit(_restart(stale_packages, machine))
    return changes


def _advise(unmet: Sequence[UnmetRequirement]) -> None:
    """Print advice on a machine whose owner decides; stop if a package is missing."""
    text = "; ".join(map(str, unmet))
    if any(lack.version is None for lack in unmet):
        raise SystemExit(f"Packages are missing: {text}. Run in a terminal: {INSTALL_COMMAND}")
    print(
        f"⚠️  Other versions than the notebooks were tested with: {text}. "
        f"To get those, run in a terminal: {INSTALL_COMMAND}"
    )


def _refuse_protected(unmet: Sequence[UnmetRequirement], machine: HostedMachine) -> None:
    fixed = [str(lack) for lack in unmet if lack.version and lack.name in PROTECTED]
    if fixed:
        raise SystemExit(
            f"This {machine.name} runtime does not suit the notebooks: {'; '.join(fixed)}, "
            f"and that cannot be replaced in a running one. {machine.change_versions}"
        )


def _install(
    wanted: Sequence[Requirement], constraints: Sequence[str], machine: HostedMachine
) -> None:
    """Run pip, or uv where Python has it. Raises SystemExit with what it said if it fails."""
    tool = ["pip", "install"]
    if _has_uv():
        tool = ["uv", "pip", "install", "--python", sys.executable]
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        for option, lines in (("-r", wanted), ("-c", constraints)):
            path = Path(folder) / f"lines{option}"
            path.write_text("\n".join(map(str, lines)), encoding="utf-8")
            tool += [option, str(path)]
        run = subprocess.run([sys.executable, "-m", *tool], capture_output=True, text=True)
    if run.returncode:
        raise SystemExit(explain_failure(run.stdout + run.stderr, machine))


def _has_uv() -> bool:
    return importlib.util.find_spec("uv") is not None


def _compile(names: Iterable[str]) -> None:
    """Compile the modules of new packages on all cores, so that no later import has to wait for it.

    pip does so by itself; uv would compile all that Colab has.
    """
    folders = set()
    for found in map(metadata.distribution, names):
        for file in found.files or ():
            if file.suffix == ".py" and file.parts[0] != "..":
                folders.add(str(found.locate_file(file.parts[0])))
    if folders:
        command = [sys.executable, "-m", "compileall", "-q", "-j", "0", *sorted(folders)]
        subprocess.run(command, capture_output=True)


def explain_failure(output: str, machine: HostedMachine) -> str:
    """One message out of what pip or uv printed before it failed."""
    if NO_NETWORK.search(output):
        return (
            "There is no network: the packages cannot be fetched. "
            f"{machine.connect}, then run this cell again."
        )
    lines = [line.strip() for line in output.splitlines() if line.strip()]
    errors = [place for place, line in enumerate(lines) if re.match("ERROR|error|×", line)]
    # from the first error on, else the end
    first = errors[0] if errors else max(0, len(lines) - SAID_LINES)
    said = "\n  ".join(lines[first : first + SAID_LINES]) or "nothing"
    return (
        f"The packages could not be installed. What pip said:\n  {said}\n"
        f"If another package of this runtime stands in the way: {machine.start_anew}, "
        "then run this cell first of all."
    )


def compare_versions(before: dict[str, str], after: dict[str, str]) -> VersionChanges:
    """Compare two lists of versions: what was added, and what has another one (or none) after."""
    added = {name: version for name, version in sorted(after.items()) if name not in before}
    replaced = {}
    for name, old in sorted(before.items()):
        new = after.get(name, "removed")
        if new != old:
            replaced[name] = (old, new)
    return VersionChanges(added, replaced)


def _verify(
    changes: VersionChanges, unmet: Sequence[UnmetRequirement], machine: HostedMachine
) -> None:
    wrong = [
        f"replaced against the rule: {name} {old} → {new}"
        for name, (old, new) in changes.replaced.items()
        if name in PROTECTED
    ]
    wrong += [f"not satisfied: {lack}" for lack in unmet]
    if wrong:
        raise SystemExit(
            f"The installation did not do what it should: {'; '.join(wrong)}. "
            f"This runtime cannot be relied on: {machine.start_anew}, "
            "then run this cell first of all."
        )


def loaded_packages(names: Iterable[str]) -> list[str]:
    """Choose the packages that this kernel has already imported a module of."""
    owners = set()
    for module, packages in metadata.packages_distributions().items():
        if module in sys.modules:
            owners.update(map(canonicalize_name, packages))
    return sorted(owners.intersection(names))


def _restart(names: Sequence[str], machine: HostedMachine) -> str:
    return (
        f"⚠️  RESTART NEEDED: {', '.join(names)} had been loaded before and has been replaced. "
        f"{machine.restart}, then run this cell again, before any other. "
        "Nothing will be installed a second time."
    )
