"""What is installed on Colab and Kaggle, as far as it can be tried elsewhere.

`colab_versions.toml` holds the versions that matter of Colab's GPU runtime. They are claimed in an empty environment,
and pip and uv say what they would change there. Then `helpers/install.py`, on packages that are only claimed. That they
are really installed is in `test_setup.py`.
"""

import json
import os
import shutil
import subprocess
import sys
import urllib.request
from pathlib import Path

import pytest
from colab import TABLE, VERSIONS, claim, claimed_environment, run_or_skip, uv
from packaging.utils import canonicalize_name

from helpers import install
from helpers.files import ROOT
from helpers.install import VersionChanges, ensure, pins, read_requirements, unmet_requirements

REQUIREMENTS = ROOT / "requirements.txt"


# What pip and uv would do on Colab


@pytest.fixture(scope="module")
def colab(tmp_path_factory):
    """Python of an environment in which Colab's versions are claimed, and the constraints of the set-up cell."""
    folder = tmp_path_factory.mktemp("claimed")
    (folder / "constraints").write_text("\n".join(pins(VERSIONS)))
    return claimed_environment(folder / "venv", VERSIONS), folder / "constraints"


def asked_for(folder: Path, gpu: bool) -> Path:
    """A file with the lines of requirements.txt that the set-up cell asks pip for on Colab."""
    path = folder / "requirements"
    lines = read_requirements(REQUIREMENTS, gpu)
    path.write_text(
        "\n".join(
            str(line) for line in lines if canonicalize_name(line.name) not in install.PROTECTED
        )
    )
    return path


def changes_by_uv(python: Path, *arguments: str | Path) -> VersionChanges:
    text = uv(
        "pip", "install", "--dry-run", "--output-format", "json", "--python", python, *arguments
    ).stdout
    rows = json.loads(text)["changes"]
    old = {row["name"]: row["version"] for row in rows if row["action"] == "uninstalled"}
    new = {row["name"]: row["version"] for row in rows if row["action"] == "installed"}
    return install.compare_versions(old, new)


def megabytes(url: str) -> float:
    with urllib.request.urlopen(urllib.request.Request(url, method="HEAD"), timeout=60) as answer:
        return int(answer.headers["Content-Length"]) / 1e6


@pytest.mark.heavy(reason="asks the package index what would be installed")
def test_on_colab_three_packages_are_replaced_and_no_protected_one(colab, tmp_path, capsys):
    """As Colab does it, with pip; with sizes. unsloth and what it brings are for a GPU."""
    python, constraints = colab
    ask = [
        "install",
        "--quiet",
        "--dry-run",
        "--report",
        tmp_path / "report",
        "-r",
        asked_for(tmp_path, gpu=True),
    ]
    run_or_skip(python, "-m", "pip", *ask, "-c", constraints)
    found = [
        (
            row["metadata"]["name"].lower().replace("_", "-"),
            row["metadata"]["version"],
            row["download_info"]["url"],
        )
        for row in json.loads((tmp_path / "report").read_text())["install"]
    ]
    sizes = {name: megabytes(url) for name, _, url in found}
    with capsys.disabled():
        print(
            f"\nColab's runtime of {TABLE['published']} would have to fetch {sum(sizes.values()):.0f} MB:"
        )
        for name, version, _ in sorted(found):
            kind = f"replaces {VERSIONS[name]}" if name in VERSIONS else "is added"
            print(f"  {name} {version} {kind} ({sizes[name]:.1f} MB)")
    replaced = {name for name, _, _ in found if name in VERSIONS}
    assert not replaced & TABLE["protected"].keys()
    assert replaced == {"datasets", "pyarrow", "torchao"}
    assert {"trl", "bitsandbytes", "unsloth", "unsloth-zoo", "xformers"} <= sizes.keys() and len(
        found
    ) - 3 <= 20
    assert "jedi" not in sizes
    assert sum(sizes.values()) < 250


@pytest.mark.heavy(reason="asks the package index what would be installed")
@pytest.mark.parametrize("gpu", [True, False])
def test_uv_would_do_the_same_and_without_a_gpu_less(colab, gpu, tmp_path):
    python, constraints = colab
    changes = changes_by_uv(python, "-r", asked_for(tmp_path, gpu), "-c", constraints)
    assert changes.replaced.keys() == {"datasets", "pyarrow", "torchao"}
    assert (
        "unsloth" in changes.added,
        "xformers" in changes.added,
        "bitsandbytes" in changes.added,
    ) == (
        gpu,
        gpu,
        True,
    )


@pytest.mark.heavy(reason="asks the package index what would be installed")
def test_without_constraints_the_ranges_alone_keep_the_protected_packages(colab):
    assert (
        not changes_by_uv(colab[0], "-r", REQUIREMENTS).replaced.keys() & TABLE["protected"].keys()
    )


@pytest.mark.heavy(reason="asks the package index what would be installed")
def test_the_pinned_versions_satisfy_the_requirements(tmp_path):
    """What `make setup` installs needs nothing more, nor anything else."""
    pinned = {
        r.name: next(iter(r.specifier)).version
        for r in read_requirements(ROOT / "constraints.txt", gpu=True)
    }
    python = claimed_environment(tmp_path / "venv", pinned)
    files = ["-r", REQUIREMENTS, "-r", ROOT / "requirements-dev.txt"]
    assert changes_by_uv(python, *files) == VersionChanges({}, {})


def test_the_table_has_all_that_is_protected():
    assert TABLE["protected"].keys() == set(install.PROTECTED)


# helpers/install.py, on packages that are only claimed


@pytest.fixture
def site(tmp_path, monkeypatch):
    """A folder that holds all installed packages; claim(site, name, version) puts one there."""
    folder = tmp_path / "site"
    folder.mkdir()
    monkeypatch.setattr(
        sys, "path", [str(folder), *(p for p in sys.path if "site-packages" not in p)]
    )
    monkeypatch.setattr(install, "has_gpu", lambda: False)
    monkeypatch.setattr(install, "stale_packages", [])
    (tmp_path / "requirements.txt").write_text(
        "torch>=2.11,<2.15\ndatasets>=4.7,<5\ntrl==1.14.2\nunsloth==1.0 # GPU\n"
    )
    monkeypatch.setenv("COLAB_RELEASE_TAG", "test")
    return folder


@pytest.fixture
def pip(monkeypatch):
    """Replaces pip: `pip.does` is called instead, `pip.calls` are (command, requirements, constraints)."""

    class Pip:
        code, says = 0, ""

        def __init__(self):
            self.calls = []

        def does(self):
            raise AssertionError("nothing was to be installed")

        def run(self, command, **options):
            if command[2] == "compileall":
                self.compiled = command[6:]
                return subprocess.CompletedProcess(command, 0)
            assert command[1:3] in (["-m", "pip"], ["-m", "uv"])
            files = [
                Path(command[command.index(flag) + 1]).read_text().split("\n")
                for flag in ("-r", "-c")
            ]
            self.calls.append((command, *files))
            self.does()
            return subprocess.CompletedProcess(command, self.code, self.says, "")

    fake = Pip()
    monkeypatch.setattr(install.subprocess, "run", fake.run)
    return fake


def replace_with(site, *packages):
    """A pip that installs these (name, version), in place of what is there under the name."""

    def does():
        for name, version in packages:
            for old in site.glob(f"{name}-*.dist-info"):
                shutil.rmtree(old)
            claim(site, name, version)

    return does


def lacks(site, *lines):
    return [str(lack) for lack in unmet_requirements([install.Requirement(line) for line in lines])]


def test_what_is_missing_or_outside_the_range_is_lacking(site):
    claim(site, "torch", "2.11.0+cu128")
    claim(site, "Data_Sets", "4.0.0")
    assert lacks(site, "torch>=2.11,<2.15", "torch==2.11.0") == []
    assert lacks(site, "data-sets>=4.7,<5") == ["data-sets<5,>=4.7 (there is 4.0.0)"]
    assert lacks(site, "trl==1.14.2") == ["trl==1.14.2 (missing)"]


def test_so_is_what_an_installed_package_needs_on_this_system(site):
    """An installation that was cut off: trl is there, what it needs is not."""
    never = "x>=1; python_version < '3'"
    claim(site, "trl", "1.14.2", requires=("datasets>=4.7", "vllm; extra == 'vllm'", never))
    claim(site, "datasets", "4.8.5", requires=("pyarrow>=21", "trl"))  # a circle must end
    claim(site, "pyarrow", "18.1.0")
    assert lacks(site, "trl") == ["pyarrow>=21 (there is 18.1.0)"]
    assert lacks(site, "trl[vllm]") == [
        "pyarrow>=21 (there is 18.1.0)",
        'vllm; extra == "vllm" (missing)',
    ]


def test_what_a_protected_package_needs_is_not_looked_at(site, pip, tmp_path):
    """Colab's IPython asks for jedi, which Colab leaves out on purpose: neither lacking, nor brought in by pip."""
    claim(site, "torch", "2.11.0", requires=("jedi>=0.16",))
    claim(site, "trl", "1.14.2", requires=("torch",))
    assert lacks(site, "torch", "trl") == []
    pip.does = replace_with(site, ("datasets", "4.8.5"))
    ensure(tmp_path)
    assert pip.calls[0][1] == ["datasets<5,>=4.7", "trl==1.14.2"]


def test_requirements_are_those_of_this_system_and_of_the_gpu(tmp_path):
    text = "# comment\ntrl==1.14.2  # why\nunsloth_zoo==1\nwin; sys_platform == 'nowhere'\n\nbitsandbytes>=0.50\n"
    (tmp_path / "r.txt").write_text(text)
    assert [r.name for r in read_requirements(tmp_path / "r.txt", gpu=False)] == [
        "trl",
        "bitsandbytes",
    ]
    assert [r.name for r in read_requirements(tmp_path / "r.txt", gpu=True)] == [
        "trl",
        "unsloth_zoo",
        "bitsandbytes",
    ]


def test_on_colab_it_installs_with_the_protected_pinned_and_a_second_call_nothing(
    site, pip, tmp_path, capsys
):
    claim(site, "torch", "2.11.0+cu128")
    claim(site, "numpy", "2.1.3")
    claim(site, "datasets", "4.0.0")
    pip.does = replace_with(site, ("datasets", "4.8.5"), ("trl", "1.14.2"))
    changes = ensure(tmp_path)
    assert changes == VersionChanges({"trl": "1.14.2"}, {"datasets": ("4.0.0", "4.8.5")})
    ((command, requirements, constraints),) = pip.calls
    assert command[:4] == [sys.executable, "-m", "pip", "install"]
    assert requirements == ["datasets<5,>=4.7", "trl==1.14.2"]  # torch is there; no GPU: no unsloth
    assert constraints == ["torch==2.11.0+cu128", "numpy==2.1.3"]
    said = capsys.readouterr().out
    assert (
        said.startswith("Installing for datasets, trl …")
        and "replaced: datasets 4.0.0 → 4.8.5\nadded: trl" in said
    )
    assert (
        ensure(tmp_path) == VersionChanges({}, {})
        and len(pip.calls) == 1
        and capsys.readouterr().out == ""
    )


def test_it_installs_on_kaggle_too_whose_image_has_the_marks_of_colab(
    site, pip, tmp_path, monkeypatch
):
    monkeypatch.setenv("KAGGLE_KERNEL_RUN_TYPE", "Interactive")
    claim(site, "torch", "2.11.0")
    pip.does = replace_with(site, ("datasets", "4.8.5"), ("trl", "1.14.2"))
    assert ensure(tmp_path) == VersionChanges({"datasets": "4.8.5", "trl": "1.14.2"}, {})
    assert pip.calls[0][1:] == (["datasets<5,>=4.7", "trl==1.14.2"], ["torch==2.11.0"])


def test_what_the_reader_is_to_do_names_the_menus_of_the_machine(site, pip, tmp_path, monkeypatch):
    monkeypatch.setenv("KAGGLE_KERNEL_RUN_TYPE", "Interactive")
    claim(site, "torch", "2.15.0")
    with pytest.raises(
        SystemExit, match=r"This Kaggle runtime .* another environment in the notebook's settings"
    ):
        ensure(tmp_path)
    replace_with(site, ("torch", "2.11.0"))()
    pip.code, pip.does = 1, lambda: None
    with pytest.raises(
        SystemExit, match="in the way: Stop the session and start it again, then run"
    ):
        ensure(tmp_path)
    monkeypatch.setattr(install, "stale_packages", ["datasets"])
    with pytest.raises(
        SystemExit,
        match=r"RESTART NEEDED: datasets .* Run → Restart & clear cell outputs, then run",
    ):
        ensure(tmp_path)


@pytest.mark.parametrize(
    ("variables", "machine"),
    [
        ((), None),
        (("COLAB_RELEASE_TAG",), install.COLAB),
        (("KAGGLE_KERNEL_RUN_TYPE",), install.KAGGLE),
        (("COLAB_RELEASE_TAG", "KAGGLE_KERNEL_RUN_TYPE"), install.KAGGLE),
    ],
)
def test_which_hosted_machine_this_is(variables, machine, monkeypatch):
    for name in ("COLAB_RELEASE_TAG", "KAGGLE_KERNEL_RUN_TYPE"):
        monkeypatch.delenv(name, raising=False)
    for name in variables:
        monkeypatch.setenv(name, "test")
    assert install.hosted_machine() is machine
    if machine is None:  # a kernel of Colab without the variable
        monkeypatch.setitem(sys.modules, "google.colab", sys)
        assert install.hosted_machine() is install.COLAB


def test_uv_is_taken_where_python_has_it(site, pip, tmp_path, monkeypatch):
    claim(site, "torch", "2.11.0")
    monkeypatch.setattr(install.importlib.util, "find_spec", lambda name: name == "uv")
    pip.does = replace_with(site, ("datasets", "4.8.5"), ("trl", "1.14.2"))
    ensure(tmp_path)
    assert pip.calls[0][0][1:6] == ["-m", "uv", "pip", "install", "--python"]


def test_what_uv_installed_is_compiled_as_pip_does_by_itself(site, pip, tmp_path, monkeypatch):
    """Only that: all that Colab has would take minutes."""
    claim(site, "torch", "2.11.0", modules=("torch",))
    monkeypatch.setattr(install.importlib.util, "find_spec", lambda name: name == "uv")

    def does():
        replace_with(site, ("datasets", "4.8.5"), ("trl", "1.14.2"))()
        for name in ("datasets", "trl"):
            (site / name).mkdir()
            (site / name / "__init__.py").touch()
            (record,) = site.glob(f"{name}-*/RECORD")
            record.write_text(f"{name}/__init__.py,,\n{name}/notes.txt,,\n../../bin/tool.py,,\n")

    pip.does = does
    ensure(tmp_path)
    assert pip.compiled == [str(site / "datasets"), str(site / "trl")]


def test_a_runtime_whose_torch_is_outside_the_range_is_refused_before_anything_is_installed(
    site, pip, tmp_path
):
    claim(site, "torch", "2.15.0+cu128")
    with pytest.raises(
        SystemExit, match=r"torch<2.15,>=2.11 \(there is 2.15.0\+cu128\).*Runtime version"
    ):
        ensure(tmp_path)
    assert pip.calls == []


def test_a_protected_package_that_moved_all_the_same_is_not_hushed_up(site, pip, tmp_path):
    claim(site, "torch", "2.11.0+cu128")
    pip.does = replace_with(site, ("torch", "2.14.0"), ("datasets", "4.8.5"), ("trl", "1.14.2"))
    with pytest.raises(
        SystemExit, match=r"replaced against the rule: torch 2.11.0\+cu128 → 2.14.0.*delete runtime"
    ):
        ensure(tmp_path)


def test_an_installation_that_left_something_out_is_not_hushed_up(site, pip, tmp_path):
    claim(site, "torch", "2.11.0")
    pip.does = replace_with(site, ("datasets", "4.8.5"))
    with pytest.raises(SystemExit, match=r"not satisfied: trl==1.14.2 \(missing\)"):
        ensure(tmp_path)


def test_a_replaced_package_that_was_loaded_asks_for_a_restart_until_there_is_one(
    site, pip, tmp_path, monkeypatch
):
    """`import pandas` loads pyarrow; replacing it then breaks the kernel with "IpcReadOptions size changed"."""
    claim(site, "torch", "2.11.0", modules=("torch",))
    claim(site, "datasets", "4.0.0", modules=("datasets_of_test",))
    monkeypatch.setitem(sys.modules, "datasets_of_test", sys)

    def does():
        replace_with(site, ("trl", "1.14.2"))()
        shutil.rmtree(next(site.glob("datasets-*")))
        claim(site, "datasets", "4.8.5", modules=("datasets_of_test",))

    pip.does = does
    for _ in range(2):
        with pytest.raises(
            SystemExit, match=r"RESTART NEEDED: datasets had been loaded .* Restart session"
        ):
            ensure(tmp_path)
    assert len(pip.calls) == 1
    monkeypatch.setattr(install, "stale_packages", [])  # a new kernel
    assert ensure(tmp_path) == VersionChanges({}, {})


def test_a_replaced_package_that_was_not_loaded_needs_no_restart(site):
    claim(site, "datasets", "4.8.5", modules=("datasets_of_test",))
    assert install.loaded_packages(["datasets"]) == []


def test_what_pip_says_when_it_fails_is_shown_from_its_error_on(site, pip, tmp_path):
    claim(site, "torch", "2.11.0")
    pip.does, pip.code = lambda: None, 1
    pip.says = "Collecting trl\nWARNING: old\nERROR: Cannot install trl\nThe conflict is caused by:\n  x needs torch 3\n"
    with pytest.raises(SystemExit) as error:
        ensure(tmp_path)
    said = str(error.value)
    assert "ERROR: Cannot install trl\n  The conflict is caused by:\n  x needs torch 3\n" in said
    assert "Collecting" not in said and "delete runtime" in said


@pytest.mark.parametrize("tool", [["pip"], ["uv", "pip"]])
def test_no_network_is_one_sentence(tool, tmp_path):
    """What the tools themselves print: nothing listens at the address."""
    nowhere = [
        "--index-url",
        "http://127.0.0.1:9/simple",
        "--target",
        tmp_path,
        "surely-not-there-1",
    ]
    quick = ["--retries", "1"] if tool == ["pip"] else []
    run = subprocess.run(
        [sys.executable, "-m", *tool, "install", *quick, *nowhere],
        capture_output=True,
        text=True,
        env=os.environ | {"UV_HTTP_RETRIES": "0"},
    )
    assert run.returncode
    colab, kaggle = [
        install.explain_failure(run.stdout + run.stderr, host)
        for host in (install.COLAB, install.KAGGLE)
    ]
    start, end = (
        "There is no network: the packages cannot be fetched. ",
        ", then run this cell again.",
    )
    assert colab == f"{start}Check the connection{end}"
    assert kaggle == f"{start}Turn on Internet in the notebook's settings{end}"


def test_elsewhere_than_on_colab_nothing_is_installed(site, pip, tmp_path, monkeypatch, capsys):
    monkeypatch.delenv("COLAB_RELEASE_TAG")
    claim(site, "torch", "2.15.0")
    claim(site, "datasets", "4.8.5")
    with pytest.raises(
        SystemExit,
        match=r"missing: .*trl==1.14.2 \(missing\).*Run in a terminal: .* -m pip install -r",
    ):
        ensure(tmp_path)
    claim(site, "trl", "1.14.2")
    assert (
        ensure(tmp_path) == VersionChanges({}, {}) and pip.calls == []
    )  # another version is the owner's decision
    assert (
        "Other versions than the notebooks were tested with: torch<2.15,>=2.11 (there is 2.15.0)"
        in capsys.readouterr().out
    )


def test_a_gpu_is_what_nvidia_smi_lists(tmp_path, monkeypatch):
    if os.name == "nt":
        pytest.skip("writes a shell script")
    smi = tmp_path / "nvidia-smi"
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    for script, there in (
        ("echo 'GPU 0: Tesla T4'", True),
        ("echo 'GPU 0: lost'; exit 9", False),
        ("echo ''", False),
    ):
        smi.write_text(f"#!/bin/sh\n{script}\n")
        smi.chmod(0o755)
        install.has_gpu.cache_clear()
        assert install.has_gpu() is there
    monkeypatch.setenv("PATH", str(tmp_path / "nowhere"))
    install.has_gpu.cache_clear()
    assert install.has_gpu() is False
    install.has_gpu.cache_clear()


def test_importing_it_loads_nothing_that_it_may_replace():
    code = "import sys, helpers.install; print(sorted({m.split('.')[0] for m in sys.modules} & set(sys.argv[1:])))"
    loud = ["torch", "numpy", "pandas", "pyarrow", "datasets", "transformers", "matplotlib", "PIL"]
    run = subprocess.run(
        [sys.executable, "-c", code, *loud], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert run.stdout.strip() == "[]"
