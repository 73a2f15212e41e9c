"""What the set-up cell of every notebook calls: packages, unsloth before all others, Google Drive, the machine.

It is imported before the packages are installed, so that nothing but `install` may be imported above the function.
"""

from helpers.install import ensure


def set_up(drive: str = "") -> None:
    """Install what is missing, fetch the folder `drive` of Google Drive if one is named, and print the machine."""
    ensure()
    from helpers import models as models  # first of all: on a GPU it brings in unsloth
    from helpers.machine.drive import use_drive
    from helpers.runtime import machine_summary

    use_drive(drive)
    print(machine_summary())
