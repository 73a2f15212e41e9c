"""`python -m helpers …`: the stages as commands.

    program.py              the program, its errors in one line
    notebook_commands.py    demo, run, report
    training_commands.py    train, rank, rewardbench, export, memory
    data_commands.py        check, convert, verify, schema

What a command needs is imported in it: torch takes seconds, and `check` needs none of it.
"""

# what is imported here is a command: each module puts its own into the program
from . import data_commands, notebook_commands, training_commands  # noqa: F401
from .program import main as main, parse_setting as parse_setting
