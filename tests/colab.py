"""What the tests of Colab's set-up and of environment.yml share: a Python like Colab's, uv, packages that are only claimed."""

import os
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from helpers.install import NO_NETWORK

TABLE = tomllib.loads(Path(__file__).with_name("colab_versions.toml").read_text(encoding="utf-8"))
VERSIONS = TABLE["protected"] | TABLE["other"]
REQUIRES = {
    "ipykernel": ("ipython",),
    "ipython": ("jedi>=0.16",),
}  # Colab has no jedi, and is to have none


def find_python(version: str = TABLE["python"]) -> str | None:
    """An interpreter of that version: this one, one on PATH or uv's; pyenv's stubs on PATH may lead nowhere."""
    pyenv = Path(os.environ.get("PYENV_ROOT", Path.home() / ".pyenv"), "versions")
    found = subprocess.run(
        [sys.executable, "-m", "uv", "python", "find", version], capture_output=True, text=True
    )
    known = [sys.executable, shutil.which(f"python{version}"), found.stdout.strip()]
    for python in [*known, *map(str, sorted(pyenv.glob(f"{version}.*/bin/python")))]:
        ask = [python, "-c", "import sys; print('%d.%d' % sys.version_info[:2])"]
        if python and subprocess.run(ask, capture_output=True, text=True).stdout.strip() == version:
            return python
    return None


def run_or_skip(*command: str | Path, **options) -> subprocess.CompletedProcess:
    """Run a command that asks the package index; where there is none to be reached the test is skipped."""
    run = subprocess.run([str(part) for part in command], capture_output=True, text=True, **options)
    if run.returncode and NO_NETWORK.search(run.stdout + run.stderr):
        pytest.skip("no package index can be reached")
    assert run.returncode == 0, run.stdout + run.stderr
    return run


def uv(*arguments: str | Path) -> subprocess.CompletedProcess:
    return run_or_skip(sys.executable, "-m", "uv", *arguments)


def claim(
    site: Path,
    name: str,
    version: str,
    requires: tuple[str, ...] = (),
    modules: tuple[str, ...] = (),
) -> Path:
    """Make a folder look to pip, uv and importlib as if a package were installed in it."""
    folder = site / f"{re.sub('[-.]+', '_', name)}-{version}.dist-info"
    folder.mkdir(parents=True)
    needs = "".join(f"Requires-Dist: {line}\n" for line in requires)
    (folder / "METADATA").write_text(
        f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n{needs}", encoding="utf-8"
    )
    (folder / "RECORD").write_text("", encoding="utf-8")
    (folder / "top_level.txt").write_text("\n".join(modules), encoding="utf-8")
    return folder


def claimed_environment(folder: Path, versions: dict[str, str]) -> Path:
    """A virtual environment with pip in which these versions are claimed; its Python, of Colab's version if there is one."""
    python = find_python() or sys.executable
    subprocess.run([python, "-m", "venv", folder], check=True)
    own = folder / ("Scripts" if os.name == "nt" else "bin") / "python"
    ask = "import sysconfig; print(sysconfig.get_path('purelib'))"
    site = subprocess.run(
        [own, "-c", ask], capture_output=True, text=True, check=True
    ).stdout.strip()
    for name, version in versions.items():
        for real in Path(site).glob(f"{name}-*.dist-info"):  # Python 3.11 brings setuptools
            shutil.rmtree(real)
        claim(Path(site), name, version, REQUIRES.get(name, ()))
    return own
