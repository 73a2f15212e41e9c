"""What happens when a notebook is opened on Colab or Kaggle, as far as it can be tried elsewhere.

The set-up cell runs with this work tree as the repository, in an environment in which the versions of
Colab's GPU runtime are really installed. Neither Colab's own front end nor its GPU is there: no unsloth is
installed. The first time, gigabytes are fetched for it; with uv's cache filled it takes seconds. Kaggle is
a folder, without its packages.
"""

import ast
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from colab import TABLE, VERSIONS, find_python, uv

from helpers import install, notebooks, setup
from helpers.files import ROOT, UsageError, artifacts_dir
from helpers.notebooks import NOTEBOOKS
from tools import sync

FORK = 'repository = "https://github.com/someone/alignment"\ntag = "v1.0"'
EMPTY = 'repository = ""\ntag = ""'


# The set-up cell itself


@pytest.fixture(scope="module")
def runtime(tmp_path_factory):
    """Python of an environment with Colab's versions really installed (its torch as it comes from the index)."""
    if not (python := find_python()):
        pytest.skip(f"Python {TABLE['python']} is not to be found")
    folder = tmp_path_factory.mktemp("runtime")
    subprocess.run([python, "-m", "venv", folder], check=True)
    wanted = [f"{name}=={version.split('+')[0]}" for name, version in VERSIONS.items()]
    uv("pip", "install", "--quiet", "--python", folder, *wanted)
    uv(
        "pip", "uninstall", "--quiet", "--python", folder, "jedi"
    )  # as on Colab, though IPython asks for it
    yield folder / ("Scripts" if os.name == "nt" else "bin") / "python"
    shutil.rmtree(folder, ignore_errors=True)  # gigabytes


@pytest.fixture(scope="module")
def repository_folder(tmp_path_factory):
    """This work tree as a Git repository of one commit with the tag v1."""
    folder = tmp_path_factory.mktemp("origin") / "alignment"

    def git(*arguments, where=ROOT):
        run = subprocess.run(["git", "-C", where, *arguments], capture_output=True, text=True)
        return (
            run.stdout
            if run.returncode == 0
            else pytest.skip(f"git {arguments[0]}: {run.stderr.strip()}")
        )

    for name in git("ls-files", "--cached", "--others", "--exclude-standard").splitlines():
        if (ROOT / name).is_file():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, folder / name)
    git("init", "--quiet", where=folder)
    git("add", "--all", where=folder)
    me = ["-c", "user.name=test", "-c", "user.email=test@localhost", "-c", "commit.gpgsign=false"]
    git(*me, "commit", "--quiet", "--message", "all", where=folder)
    git("tag", "v1", where=folder)
    return folder


@pytest.fixture
def repository(repository_folder):
    """Its address."""
    return repository_folder.as_uri()


@pytest.fixture
def shared_notebooks(tmp_path, monkeypatch):
    """Copies of two notebooks and of setup.toml that may be changed: call it with new lines for the address."""
    copy = tmp_path / "notebooks"
    (copy / "src").mkdir(parents=True)
    for name in ("setup.toml", "index.toml", "src/01_load_model.py", "src/05_train_ppo.py"):
        shutil.copy(NOTEBOOKS / name, copy / name)
    monkeypatch.setattr(notebooks, "NOTEBOOKS", copy)
    monkeypatch.setattr(sync, "NOTEBOOKS", copy)

    def change(address: str) -> Path:
        text = (NOTEBOOKS / "setup.toml").read_text(encoding="utf-8")
        start = text.index("\nrepository = ") + 1
        end = text.index("\n", text.index("\ntag = ") + 1)
        (copy / "setup.toml").write_text(text[:start] + address + text[end:], encoding="utf-8")
        return copy

    return change


def run_cell(python: Path | str, code: str, folder: Path, kaggle: bool = False):
    """Run code as in a fresh kernel that starts in `folder`: /content on Colab, /kaggle/working on Kaggle.

    Returns the completed process.
    """
    folder.mkdir(exist_ok=True, parents=True)
    dropped = ("PYTHONPATH", "VIRTUAL_ENV", "VLM_ARTIFACTS")
    environment = {name: value for name, value in os.environ.items() if name not in dropped}
    environment |= {"HF_HUB_OFFLINE": "1", "PYTHONDONTWRITEBYTECODE": "1"}
    environment["COLAB_RELEASE_TAG"] = "test"  # Kaggle's image has it, too
    if kaggle:
        environment["KAGGLE_KERNEL_RUN_TYPE"] = "Interactive"
    code = code.replace("/kaggle/input", (folder.parent / "input").as_posix())
    command = [python, "-c", code]
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)


def fetching_part(cell: str) -> str:
    """The set-up cell up to the import of helpers, and the folder that it found or fetched."""
    return cell.split("from helpers.setup")[0] + "\nprint(sys.path[0])"


LOOK = """
import importlib.metadata, json
print(json.dumps({found.name.lower(): found.version for found in importlib.metadata.distributions()}))"""


@pytest.mark.slow(reason="Colab's packages, really installed; the other tests are of its parts")
def test_the_set_up_cell_on_colab(runtime, repository, shared_notebooks, tmp_path):
    """Cloned, installed, nothing protected touched, model code imported; a second run has nothing to do.

    In `make test`: what would be installed beside Colab's versions is asked of the index in
    test_install.py; the clone, and the whole cell with the packages of this environment, here.
    """
    shared_notebooks(f'repository = "{repository}"\ntag = "v1"')
    cell, content = sync.set_up_cell(), tmp_path / "content"
    before = json.loads(run_cell(runtime, LOOK, content).stdout)
    first = run_cell(runtime, cell + LOOK, content)
    assert first.returncode == 0, first.stdout + first.stderr
    lines = first.stdout.splitlines()
    assert lines[0].startswith("Installing for") and lines[-2].startswith(
        ("CPU, ", "NVIDIA", "Tesla")
    )
    assert (content / "alignment" / "helpers" / "models" / "loading.py").exists()
    changes = install.compare_versions(before, json.loads(lines[-1]))
    assert (
        changes.replaced.keys() == {"datasets", "pyarrow", "torchao"}
        and changes.added["trl"] == "1.14.2"
    )
    assert not {"jedi", "unsloth"} & changes.added.keys()
    clock = "\nimport time; print(time.process_time())"  # seconds of CPU: other tests may keep it waiting
    again = cell.split("from helpers.setup")[0] + "from helpers.install import ensure\nensure()"
    second = run_cell(runtime, again + clock, content)
    assert second.returncode == 0, second.stdout + second.stderr
    assert float(second.stdout) < 5  # and nothing else is said


@pytest.mark.heavy(reason="clones the repository twice")
def test_a_clone_that_was_cut_off_is_not_taken_for_a_whole_one(
    repository, shared_notebooks, tmp_path
):
    shared_notebooks(f'repository = "{repository}"\ntag = "v1"')
    fetch = fetching_part(sync.set_up_cell())
    content = tmp_path / "content"
    assert fetch.count("mv new$$ alignment") == 1
    killed = fetch.replace("mv new$$ alignment", "kill -9 $$")
    assert run_cell(sys.executable, killed, content).returncode
    assert not (content / "alignment").exists()
    run = run_cell(sys.executable, fetch, content)
    assert run.stdout.strip() == f"{content.as_posix()}/alignment", run.stderr
    assert run.stderr == ""  # not the page of advice that Git writes about tags
    (content / "fetch.log").unlink()
    assert run_cell(sys.executable, fetch, content).stdout == run.stdout
    assert not (content / "fetch.log").exists()  # it was found, not fetched once more


def test_what_cannot_be_fetched_is_said_in_one_line(repository, shared_notebooks, tmp_path):
    shared_notebooks(f'repository = "{repository}"\ntag = "v1"')
    fetch, content = fetching_part(sync.set_up_cell()), tmp_path / "content"
    wrong = run_cell(sys.executable, fetch.replace('"v1"', '"v2"'), content)
    assert wrong.returncode == 1 and not (content / "alignment").exists()
    assert wrong.stderr.count("\n") == 1
    assert f"{repository!r} ('v2'): see fetch.log" in wrong.stderr
    assert "Remote branch v2 not found" in (content / "fetch.log").read_text()


def test_without_internet_on_kaggle_the_cell_says_what_to_do(shared_notebooks, tmp_path):
    address = "http://127.0.0.1:9/alignment"  # nothing listens there
    shared_notebooks(f'repository = "{address}"\ntag = "v1"')
    run = run_cell(sys.executable, sync.set_up_cell(), tmp_path / "working", kaggle=True)
    assert run.returncode == 1 and run.stderr == (
        f"'{address}' ('v1'): see fetch.log. Set it, or %cd to it; Kaggle: Internet on.\n"
    )


def test_without_an_address_the_cell_says_what_to_set(shared_notebooks, tmp_path):
    shared_notebooks(EMPTY)
    run = run_cell(sys.executable, sync.set_up_cell(), tmp_path / "content")
    assert run.returncode == 1 and run.stderr == (
        "'' ('main'): see fetch.log. Set it, or %cd to it; Kaggle: Internet on.\n"
    )


def test_the_nearest_folder_above_that_holds_the_repository_is_taken(shared_notebooks, tmp_path):
    shared_notebooks(EMPTY)
    for folder in (tmp_path, tmp_path / "fork"):
        (folder / "helpers").mkdir(parents=True)
        (folder / "helpers" / "setup.py").touch()
    fetch = fetching_part(sync.set_up_cell())
    for place in ("fork", "fork/notebooks", "fork/notebooks/mine/deeper"):
        run = run_cell(sys.executable, fetch, tmp_path / place)
        assert run.stdout.strip() == (tmp_path / "fork").as_posix(), run.stderr
    assert run_cell(sys.executable, fetch, tmp_path / "notes").stdout.strip() == tmp_path.as_posix()


@pytest.mark.parametrize("place", ["alignment", "datasets/someone/alignment/alignment-v1.0"])
def test_an_attached_repository_is_found_without_internet(shared_notebooks, tmp_path, place):
    """Kaggle has had two layouts of /kaggle/input, and unpacks an archive into its own folder."""
    shared_notebooks('repository = "http://127.0.0.1:9/alignment"\ntag = "v1"')
    (tmp_path / "input" / "photos").mkdir(parents=True)
    (tmp_path / "input" / place / "helpers").mkdir(parents=True)
    (tmp_path / "input" / place / "helpers" / "setup.py").touch()
    fetch = fetching_part(sync.set_up_cell())
    run = run_cell(sys.executable, fetch, tmp_path / "working", kaggle=True)
    assert run.stdout.strip() == (tmp_path / "input" / place).as_posix(), run.stderr
    assert list((tmp_path / "working").iterdir()) == []


BEFORE = """
from pathlib import Path
class Recorder:
    started = []
    def find_spec(self, name, path, target=None):
        self.started.append(name)
sys.meta_path.insert(0, Recorder())
import helpers.setup
helpers.setup.KAGGLE_FOLDER = Path.cwd()
"""
AFTER = """
from helpers import files
files.write_text(files.artifacts_dir() / "note", "kept")
print(ROOT)
print(files.ROOT)
names = ("helpers.", "unsloth", "torch", "transformers")
print([name for name in Recorder.started if name.startswith(names)])
"""


@pytest.mark.heavy(reason="a process that imports all model code")
def test_what_is_attached_is_only_read_and_artifacts_are_kept(
    repository_folder, shared_notebooks, tmp_path
):
    shared_notebooks('repository = "http://127.0.0.1:9/alignment"\ntag = "v1"')
    attached, working = tmp_path / "input" / "alignment", tmp_path / "working"
    shutil.copytree(repository_folder, attached, ignore=shutil.ignore_patterns(".git"))
    before = sorted(attached.rglob("*"))
    cell = sync.set_up_cell().replace("DRIVE = None", 'DRIVE = "mine"')
    cell = cell.replace("from helpers", BEFORE + "from helpers") + AFTER
    run = run_cell(sys.executable, cell, working, kaggle=True)
    assert run.returncode == 0, run.stdout + run.stderr
    drive, artifacts, machine, *roots, order = run.stdout.splitlines()
    assert drive.startswith("⚠️  DRIVE is for Google Colab and does nothing here.")
    kept = f'Kaggle keeps {working} by "Save Version".'
    assert artifacts == f"Artifacts are in {working}/artifacts. {kept}"
    assert machine.startswith(("CPU, ", "NVIDIA", "Tesla")) and roots == [str(attached)] * 2
    first = ["helpers.setup", "helpers.install", "helpers.models", "helpers.models.loading"]
    assert ast.literal_eval(order)[:4] == first, "unsloth comes first, and loading.py brings it in"
    assert sorted(path.name for path in working.rglob("*")) == ["artifacts", "note"]
    assert sorted(attached.rglob("*")) == before


def test_on_kaggle_artifacts_go_where_the_reader_wants_them(artifacts, monkeypatch, tmp_path):
    monkeypatch.setattr(setup, "ensure", lambda: None)
    monkeypatch.setattr(setup, "KAGGLE_FOLDER", tmp_path / "working")
    monkeypatch.setenv("KAGGLE_KERNEL_RUN_TYPE", "Batch")
    assert setup.set_up() == ROOT and artifacts_dir() == artifacts
    monkeypatch.delenv("VLM_ARTIFACTS")
    setup.set_up()
    assert artifacts_dir() == tmp_path / "working" / "artifacts"


def test_a_repository_that_was_uploaded_to_drive_works_on_the_machines_own_disk(
    monkeypatch, tmp_path, capsys
):
    """A mount of Drive is slow and drops now and then: nothing is trained on it."""
    monkeypatch.setattr(setup, "ensure", lambda: None)
    monkeypatch.setattr(setup, "COLAB_FOLDER", tmp_path)
    monkeypatch.setattr(setup, "HERE", tmp_path / "drive" / "MyDrive" / "alignment")
    monkeypatch.setattr(setup, "hosted_machine", lambda: install.COLAB)
    monkeypatch.delenv("VLM_ARTIFACTS", raising=False)
    setup.set_up(drive="")
    assert artifacts_dir() == tmp_path / "artifacts"
    assert "The repository is on Google Drive" in capsys.readouterr().out
    # one that was fetched is on that disk already
    monkeypatch.delenv("VLM_ARTIFACTS")
    monkeypatch.setattr(setup, "HERE", tmp_path / "alignment")
    setup.set_up(drive="")
    assert "VLM_ARTIFACTS" not in os.environ


def test_a_notebook_finds_the_repository_on_a_drive_in_whose_folder_it_stands(
    shared_notebooks, tmp_path
):
    shared_notebooks(EMPTY)
    uploaded = tmp_path / "drive" / "MyDrive" / "my files" / "alignment"
    (uploaded / "helpers").mkdir(parents=True)
    (uploaded / "helpers" / "setup.py").touch()
    run = run_cell(sys.executable, fetching_part(sync.set_up_cell()), uploaded / "notebooks")
    assert run.stdout.strip() == uploaded.as_posix(), run.stderr


# The address, in one place


def test_sync_writes_address_and_badge_into_all_notebooks_and_takes_them_out_again(
    shared_notebooks,
):
    copy = shared_notebooks(EMPTY)
    sync.sync_notebooks()
    bare = {path: path.read_text(encoding="utf-8") for path in (copy / "src").glob("*.py")}
    assert not any("colab-badge" in text for text in bare.values()) and "Colab" not in sync.badges()
    shared_notebooks(FORK)
    for _ in range(2):  # the second time nothing changes
        sync.sync_notebooks()
        for path in bare:
            text = path.read_text(encoding="utf-8")
            assert (
                text.count('REPOSITORY, TAG = "https://github.com/someone/alignment", "v1.0"') == 1
            )
            badge = (
                "[![Open in Colab](https://colab.research.google.com/assets/colab-badge.svg)](https://colab.research.google"
                f".com/github/someone/alignment/blob/v1.0/notebooks/{path.stem}.ipynb)"
            )
            assert text.splitlines()[2:5] == ["#", f"# {badge}", "#"]
            first = json.loads((copy / f"{path.stem}.ipynb").read_text(encoding="utf-8"))["cells"][
                0
            ]
            assert "".join(first["source"]).splitlines()[1:3] == ["", badge]
    assert badge in sync.badges()
    assert sync.badges().count("colab-badge.svg") == len(notebooks.catalogue())
    shared_notebooks(EMPTY)
    sync.sync_notebooks()
    assert {path: path.read_text(encoding="utf-8") for path in bare} == bare


@pytest.mark.parametrize(
    ("address", "message"),
    [
        (
            'repository = "https://github.com/someone/alignment"\ntag = ""',
            "repository and tag go together",
        ),
        ('repository = "https://x.org/a b"\ntag = "v1"', "' ' cannot stand in an address"),
        ('repository = "https://x.org/a\\""\ntag = "v1"', "cannot stand in an address"),
        ("repository = \ntag = 1", "not TOML"),
    ],
)
def test_a_bad_address_is_refused(shared_notebooks, address, message):
    shared_notebooks(address)
    with pytest.raises(UsageError, match=message):
        sync.sync_notebooks()


def test_a_source_without_a_set_up_cell_or_a_title_is_refused():
    text = (NOTEBOOKS / "src" / "01_load_model.py").read_text(encoding="utf-8")
    for broken in (text.replace('tags=["setup"]', ""), text.replace("# # 01", "# 01")):
        with pytest.raises(
            UsageError, match="needs a title in its first cell and one cell tagged 'setup'"
        ):
            sync.add_shared_parts(broken, "01_load_model.ipynb")
