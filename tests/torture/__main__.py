"""What the suite promises of kills, disks and damaged files, tried: `make torture`.

    make torture                     # about 20 minutes on two cores
    make torture TORTURE=full        # every file event, more kills; writes docs/reliability.md
    python tests/torture kills       # only families with this word in their names

Prints a line a family. The exit code is 1 if anything was lost, doubled or silently wrong, or if
a user would have seen a traceback. Linux and macOS only.
"""

import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path[:1] = [str(ROOT), str(ROOT / "tests")]

if __name__ == "__main__":
    from torture.command import main

    sys.exit(main())
