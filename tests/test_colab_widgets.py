"""Widget tests once more, with the ipywidgets of Google Colab, which `make setup` puts into a folder of its own.

Those with kernels and processes of their own only in `make test-slow`.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from helpers.files import ROOT

COLAB = Path(sys.prefix) / "ipywidgets7"
FILES = [str(path) for path in sorted(Path(__file__).with_name("widgets").glob("test_*.py"))]


@pytest.mark.heavy(reason="all tests of widgets in a process with other packages")
@pytest.mark.parametrize(
    "marks",
    [
        "not slow and not heavy",
        pytest.param("not slow", marks=pytest.mark.slow(reason="kernels that are killed")),
    ],
)
def test_all_widgets_with_the_ipywidgets_of_colab(marks):
    assert (COLAB / "ipywidgets").is_dir(), (
        f"{COLAB} is missing. Run: make setup, or: {sys.executable} -m uv pip install --python {sys.executable} "
        f"--target {COLAB} --no-deps ipywidgets==7.7.1 ipython-genutils==0.2.0"
    )
    code = (
        "import sys, ipywidgets, pytest; assert ipywidgets.__version__ == '7.7.1', ipywidgets;"
        f"sys.exit(pytest.main(['-q', '-p', 'no:cacheprovider', '-m', {marks!r}, *{json.dumps(FILES)}]))"
    )
    paths = os.pathsep.join([str(COLAB), os.environ.get("PYTHONPATH", "")])
    run = subprocess.run(
        [sys.executable, "-c", code],
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": paths},
        capture_output=True,
        text=True,
    )
    assert run.returncode == 0 and " passed" in run.stdout and "skipped" not in run.stdout, (
        run.stdout + run.stderr
    )
