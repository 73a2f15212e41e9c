"""What the set-up cell of every notebook calls: packages, Google Drive, the machine.

It is imported before the packages are installed, so that nothing but `install` may be imported
above the function.
"""

import os
from pathlib import Path

from helpers.install import COLAB, COLAB_FOLDER, KAGGLE, KAGGLE_FOLDER, ensure, hosted_machine

HERE = Path(__file__).resolve().parent.parent


def set_up(drive: str | None = None) -> Path:
    """Install what is missing, fetch the folder `drive` of Google Drive, and print the machine.

    drive: "" uses none; None asks on Colab. Returns the folder of the repository. On Kaggle
    artifacts go to /kaggle/working/artifacts, which is kept: the repository may be a dataset in
    /kaggle/input, where nothing can be written. On Colab they stay on the machine's own disk, also
    if the repository was uploaded to Google Drive: a mount of it is slow, and drops now and then.
    """
    ensure()
    if hosted_machine() is KAGGLE:
        os.environ.setdefault("VLM_ARTIFACTS", str(KAGGLE_FOLDER / "artifacts"))
    is_uploaded = hosted_machine() is COLAB and HERE.is_relative_to(COLAB_FOLDER / "drive")
    if is_uploaded:
        os.environ.setdefault("VLM_ARTIFACTS", str(COLAB_FOLDER / "artifacts"))
    from helpers import models as models  # first of all: on a GPU it brings in unsloth
    from helpers.files import ROOT, artifacts_dir, explain_errors_in_notebooks
    from helpers.machine import ask_for_drive, use_drive
    from helpers.runtime import machine_summary

    explain_errors_in_notebooks()
    use_drive(ask_for_drive() if drive is None else drive)
    if hosted_machine() is KAGGLE:
        kept = f'Kaggle keeps {KAGGLE_FOLDER} by "Save Version".'
        print(f"Artifacts are in {artifacts_dir()}. {kept}")
    if is_uploaded:
        print(f"The repository is on Google Drive. Artifacts are in {artifacts_dir()}.")
    print(machine_summary())
    return ROOT
