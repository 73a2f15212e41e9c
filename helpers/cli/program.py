"""The program `python -m helpers`: its errors in one line, and what settings look like."""

import ast
import contextlib
import os
import sys
import traceback
from typing import Any

from typer import Typer
from typer.main import get_command

from helpers.files import PrintableOutput, UsageError, explain_error, printable

STOPPED_BY_CTRL_C = 130  # the exit code, as of any program

app = Typer(
    help="The stages as commands.",
    add_completion=False,
    rich_markup_mode=None,  # plain text, which needs no import of seconds
    pretty_exceptions_enable=False,
)


def main(arguments: list[str] | None = None) -> int:
    """Run a command and return its exit code; what the reader can put right is one line.

    With VLM_TRACEBACK=1 a traceback is printed before it.
    """
    try:
        # What is printed holds names and texts of files that somebody else has written
        with contextlib.redirect_stdout(PrintableOutput(sys.stdout)):
            get_command(app)(arguments, prog_name="python -m helpers")
    except UsageError as error:
        print(f"error: {printable(str(error))}", file=sys.stderr)
        return 1
    except SystemExit as end:  # as typer ends every command
        if end.code == STOPPED_BY_CTRL_C:
            print(
                "Stopped by Ctrl-C. Repeat the command: what has a checkpoint goes on from it.",
                file=sys.stderr,
            )
        return end.code
    except Exception as error:
        said = explain_error(error)
        if said is None:
            raise
        if os.environ.get("VLM_TRACEBACK"):
            traceback.print_exc()
        print(f"error: {printable(said)}", file=sys.stderr)
        return 1
    return 0


def parse_setting(text: str) -> tuple[str, Any]:
    """`STEPS=60` → ("STEPS", 60); `true` and `false` are TOML's; what is no literal is text."""
    if "=" not in text:
        raise UsageError(f"--set {text!r}: write NAME=VALUE, for example --set STEPS=60")
    name, value = text.split("=", 1)
    if value in ("true", "false"):
        return name, value == "true"
    try:
        return name, ast.literal_eval(value)
    except (ValueError, SyntaxError):
        return name, value
