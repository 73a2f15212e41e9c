"""environment.yml, for those who use conda: its layers, and that what pip is to install resolves.

The layer of conda (Python and pip) is created for real only where conda or micromamba is on PATH; else it is checked by
hand: `conda env create -f environment.yml`.
"""

import re
import shutil
import subprocess

import pytest
import yaml
from colab import uv
from packaging.requirements import Requirement
from packaging.version import Version

from helpers.files import ROOT

FILE = ROOT / "environment.yml"
ENVIRONMENT = yaml.safe_load(FILE.read_text(encoding="utf-8"))
CONDA = next(
    (path for name in ("micromamba", "mamba", "conda") if (path := shutil.which(name))), None
)


def split():
    """Version of Python, and the lines for pip."""
    python, pip, (lines,) = (
        ENVIRONMENT["dependencies"][0],
        ENVIRONMENT["dependencies"][1],
        ENVIRONMENT["dependencies"][2:],
    )
    assert pip == "pip"  # conda warns, and may take another one, if pip is used without being named
    return re.fullmatch(r"python=(3\.\d+)", python)[1], lines["pip"]


def test_conda_brings_python_and_pip_only_and_pip_the_rest():
    """Packages built against each other must come from one place: torch, numpy and pyarrow not from two."""
    assert ENVIRONMENT.keys() == {"name", "channels", "dependencies"} and ENVIRONMENT[
        "channels"
    ] == ["conda-forge"]
    assert split()[1] == ["-r requirements.txt", "-r requirements-dev.txt"]


def test_its_python_is_one_that_the_suite_supports():
    (condition,) = re.findall(
        r"\((3, \d+)\) <= sys.version_info < \((3, \d+)\)", (ROOT / "Makefile").read_text()
    )
    low, high = (Version(bound.replace(", ", ".")) for bound in condition)
    assert low <= Version(split()[0]) < high


@pytest.mark.slow(reason="asks the package index; what the file lists is compared above")
def test_what_pip_is_to_install_resolves_on_every_system(tmp_path):
    """For the Python of the file; what is for Linux, or not for macOS, is asked for there only."""
    python, lines = split()
    files = [ROOT / line.removeprefix("-r ") for line in lines]
    where = ["--universal", "--python-version", python, "--quiet", "--no-header", "--no-annotate"]
    uv("pip", "compile", *where, *files, "--output-file", tmp_path / "lock")
    locked = [Requirement(line) for line in (tmp_path / "lock").read_text().splitlines()]
    for platform, machine in (("linux", "x86_64"), ("darwin", "arm64"), ("win32", "AMD64")):
        system = {
            "sys_platform": platform,
            "platform_machine": machine,
            "python_full_version": f"{python}.1",
        }
        names = {line.name for line in locked if not line.marker or line.marker.evaluate(system)}
        assert {"torch", "trl", "jupyterlab", "pytest"} <= names
        assert ("unsloth" in names, "bitsandbytes" in names) == (
            platform == "linux",
            platform != "darwin",
        )


@pytest.mark.skipif(CONDA is None, reason="neither conda nor micromamba is on PATH")
def test_conda_can_make_it(tmp_path):
    """Dry, and without the lines for pip, which are resolved above."""
    bare = ENVIRONMENT | {"dependencies": ENVIRONMENT["dependencies"][:2]}
    (tmp_path / "bare.yml").write_text(yaml.safe_dump(bare))
    command = [
        CONDA,
        *([] if "micromamba" in CONDA else ["env"]),
        "create",
        "--dry-run",
        "--yes",
        "--name",
        "test-of-suite",
    ]
    run = subprocess.run(
        [*command, "--file", str(tmp_path / "bare.yml")], capture_output=True, text=True
    )
    if re.search("Connection|resolve host|HTTP error|CondaHTTPError", run.stdout + run.stderr):
        pytest.skip("no conda channel can be reached")
    assert run.returncode == 0, run.stdout + run.stderr
