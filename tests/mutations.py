"""Do the tests notice? Mistakes in the most important lines of the package, one at a time.

    python tests/mutations.py              # all of tests/mutations.toml
    python tests/mutations.py gae mask     # those whose name has one of these words in it

Each mistake is made in a copy of the repository, where the test that is named beside it must fail.
A mistake that no test notices survives: it is listed, and the exit code is 1. A line that was
rewritten since is no survivor but an error, and so is a test that is not there: the table is stale.
"""

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
import tomllib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
TABLE = Path(__file__).with_suffix(".toml")
COPIED = ("helpers", "tests", "pyproject.toml")  # the rest is only read, so links are enough
PASSED, FAILED = 0, 1  # exit codes of pytest; others mean that the test could not be run


class StaleTable(Exception):
    """The table speaks of a line or a test that is not there."""


@dataclass(frozen=True)
class Mutation:
    name: str  # what the line would do wrong
    file: str
    old: str  # stands in the file exactly once
    new: str
    test: str  # must fail: path of the file, ::, name of the test

    def apply(self, source: str) -> str:
        """The source text with the mistake. Raises StaleTable if `old` isn't there exactly once."""
        found = source.count(self.old)
        if found != 1:
            raise StaleTable(
                f"{self.name}: {self.old!r} stands {found} times in {self.file}, not once. "
                f"Bring tests/mutations.toml up to date."
            )
        return source.replace(self.old, self.new)


def read_mutations(path: Path = TABLE) -> list[Mutation]:
    """All mistakes of the table, in its order."""
    return [Mutation(**row) for row in tomllib.loads(path.read_text("utf-8"))["mutation"]]


def copy_repository(folder: Path) -> None:
    """What may be changed as copies, the rest as links."""
    own = shutil.ignore_patterns("__pycache__")
    for path in ROOT.iterdir():
        if path.name not in COPIED:
            (folder / path.name).symlink_to(path)
        elif path.is_dir():
            shutil.copytree(path, folder / path.name, ignore=own)
        else:
            shutil.copy(path, folder)


def run_tests(folder: Path, tests: Sequence[str]) -> subprocess.CompletedProcess:
    """Run tests of the copy. Raises StaleTable if they could not be run."""
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    command = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", *tests]
    run = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)
    if run.returncode not in (PASSED, FAILED):
        raise StaleTable(f"{' '.join(tests)} could not be run:\n{run.stdout[-2000:]}{run.stderr}")
    return run


def is_noticed(mutation: Mutation) -> bool:
    """Make the mistake in a copy and run its test there: True if the test fails."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        copy_repository(folder)
        path = folder / mutation.file
        path.write_text(mutation.apply(path.read_text("utf-8")), "utf-8")
        return run_tests(folder, [mutation.test]).returncode == FAILED


def check_copy(mutations: Sequence[Mutation]) -> None:
    """Run all the tests in a copy without a mistake. Raises StaleTable if one fails there."""
    with tempfile.TemporaryDirectory() as name:
        copy_repository(Path(name))
        run = run_tests(Path(name), sorted({mutation.test for mutation in mutations}))
    if run.returncode != PASSED:
        raise StaleTable(f"a test fails without any mistake:\n{run.stdout[-2000:]}")


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("word", nargs="*", help="only mistakes with one of these in their names")
    words = parser.parse_args(arguments).word
    mutations = [
        mutation
        for mutation in read_mutations()
        if not words or any(word.lower() in mutation.name.lower() for word in words)
    ]
    try:
        check_copy(mutations)
        survivors = []
        for mutation in mutations:
            noticed = is_noticed(mutation)
            print("noticed " if noticed else "SURVIVED", mutation.name, flush=True)
            if not noticed:
                survivors.append(f"{mutation.file}: {mutation.name} ({mutation.test} passes)")
    except StaleTable as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print(f"{len(mutations) - len(survivors)} of {len(mutations)} mistakes were noticed.")
    print("\n".join(survivors))
    return int(bool(survivors))


if __name__ == "__main__":
    sys.exit(main())
