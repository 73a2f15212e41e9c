"""The shape of the code in figures that may only fall: `tests/shape.toml` holds them.

    python tests/shape.py            # the table: committed figures beside those of now
    python tests/shape.py --write    # commits the figures that fell; one that rose stays as it was

`tests/test_shape.py` fails when one rises. Every measure is a function on source text, or on a
dictionary {path: source text}. It says where a figure comes from, so that the test can name what is
new. Needs the standard library only.
"""

import argparse
import ast
import io
import json
import re
import sys
import tokenize
import tomllib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import takewhile
from pathlib import Path, PurePosixPath

ROOT = Path(__file__).resolve().parents[1]
TABLE = Path(__file__).with_suffix(".toml")

# A room imports from itself and from those before it. The roof is all modules outside the others.
ROOMS = (
    "ground", "data", "models", "machine", "rewards", "training",
    "doctor", "evaluation", "report", "widgets", "roof",
)  # fmt: skip
GROUND = ("files", "runtime", "config", "losses", "statistics", "install")

LONG_LINE = 100  # characters
LONG_FUNCTION = 45  # lines, from `def` to the end
LONG_CELL = 25  # lines
COMPREHENSIONS = (ast.ListComp, ast.SetComp, ast.DictComp, ast.GeneratorExp)
DEFINITIONS = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)
IMPORTS = (ast.Import, ast.ImportFrom)
EMPTY_TOKENS = {
    tokenize.COMMENT, tokenize.NEWLINE, tokenize.NL, tokenize.INDENT, tokenize.DEDENT,
    tokenize.ENCODING, tokenize.ENDMARKER,
}  # fmt: skip

Sources = Mapping[str, str]  # path, with slashes → source text


@dataclass(frozen=True)
class Measure:
    """A figure that may only fall, and the places that it comes from: {place: its part}."""

    value: float
    places: dict[str, float]
    summed: bool = True  # the value is the sum over the places; False: their mean or largest

    def new_places(self, committed: "Measure") -> list[str]:
        """Places whose part is larger than the committed one, the largest rise first.

        A place that was not there had no part in a sum; in a mean or a largest, it is held to the
        committed value.
        """
        start, rises = 0 if self.summed else committed.value, {}
        for place, part in self.places.items():
            rises[place] = part - committed.places.get(place, start)
        return sorted((place for place in rises if rises[place] > 0), key=rises.get, reverse=True)


def _total(places: Mapping[str, float]) -> Measure:
    kept = {place: part for place, part in places.items() if part}
    return Measure(sum(kept.values()), kept)


def _largest(places: Mapping[str, float]) -> Measure:
    return Measure(max(places.values(), default=0), dict(places), summed=False)


# --- rooms and names ------------------------------------------------------------------------------


def room_of(name: str) -> str:
    """The room of a module, from the first part of its name below `helpers`.

    >>> room_of("data"), room_of("files"), room_of("cli")
    ('data', 'ground', 'roof')
    """
    if name in ROOMS:
        return name
    return "ground" if name in GROUND else "roof"


def imported(source: str) -> list[str]:
    """Full names of all that a module imports, anywhere in it: "helpers.files", "torch.nn"."""
    names = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.ImportFrom) and node.module == "helpers":
            names += [f"helpers.{alias.name}" for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            names.append(node.module or "")
        elif isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
    return names


def upward_imports(modules: Sources) -> dict[str, int]:
    """{"data/pairs.py → helpers.models": how often} for imports of a higher room.

    modules: by their paths below `helpers`.
    """
    upward = Counter()
    for path, source in modules.items():
        own = ROOMS.index(_room_of_path(path))
        for name in imported(source):
            root, *rest = name.split(".")
            if root == "helpers" and rest and ROOMS.index(room_of(rest[0])) > own:
                upward[f"{path} → {name}"] += 1
    return dict(upward)


def _parts(path: str) -> tuple[str, ...]:
    return PurePosixPath(path).with_suffix("").parts


def _room_of_path(path: str) -> str:
    return room_of(_parts(path)[0])


def public_names(source: str) -> set[str]:
    """Functions, classes and assigned names at the top of a module, if they are public."""
    names = set()
    for node in ast.parse(source).body:
        if isinstance(node, DEFINITIONS):
            names.add(node.name)
        elif isinstance(node, ast.Assign):
            names.update(*map(_stored_names, node.targets))
        elif isinstance(node, ast.AnnAssign):
            names.update(_stored_names(node.target))
    return {name for name in names if not name.startswith("_")}


def _stored_names(tree: ast.AST) -> list[str]:
    """Names that are assigned anywhere in `tree`, loop variables among them."""
    nodes = [node for node in ast.walk(tree) if isinstance(node, ast.Name)]
    return [node.id for node in nodes if isinstance(node.ctx, ast.Store)]


def names_with_two_meanings(modules: Sources) -> dict[str, int]:
    """{"name: its meanings": 1} for public names that stand for two things.

    Two modules define it, or it is also the name of a room, or of a module of its own room.
    """
    meanings: dict[str, list[str]] = {}
    for path, source in modules.items():
        for name in public_names(source):
            meanings.setdefault(name, []).append(path)
    in_rooms = {(_room_of_path(path), part) for path in modules for part in _parts(path)}
    for name, paths in meanings.items():
        rooms = sorted({_room_of_path(path) for path in paths})
        if name in ROOMS:
            paths.append("a room")
        else:
            paths += [f"a module of {room}" for room in rooms if (room, name) in in_rooms]
    several = sorted(name for name in meanings if len(meanings[name]) > 1)
    return {f"{name}: {', '.join(meanings[name])}": 1 for name in several}


# --- lines, tokens, functions ---------------------------------------------------------------------


def code_tokens(source: str) -> tuple[int, int]:
    """(tokens, lines that carry one) without comments, docstrings and what only lays the text out.

    An f-string is one token, as Python 3.11 reads it; later versions take it apart, and the figure
    must not depend on that.
    """
    docstrings, tokens, lines, depth = _docstring_starts(source), 0, set(), 0
    opening = getattr(tokenize, "FSTRING_START", None)
    closing = getattr(tokenize, "FSTRING_END", None)
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type in EMPTY_TOKENS or token.start in docstrings:
            continue
        depth -= token.type == closing
        if depth == 0 and token.type != closing:
            tokens += 1
        lines.update(range(token.start[0], token.end[0] + 1))
        depth += token.type == opening
    return tokens, len(lines)


def _docstring_starts(source: str) -> set[tuple[int, int]]:
    """(line, column) where the docstrings of a module, its classes and its functions start."""
    starts = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, (ast.Module, *DEFINITIONS)) and ast.get_docstring(node):
            starts.add((node.body[0].lineno, node.body[0].col_offset))
    return starts


def tokens_a_line(modules: Sources) -> Measure:
    """Tokens by line of code over all modules, and of each module, with one decimal."""
    counts = {path: code_tokens(source) for path, source in modules.items()}
    places = {path: round(tokens / lines, 1) for path, (tokens, lines) in counts.items() if lines}
    tokens, lines = (sum(column) for column in zip(*counts.values(), strict=True))
    return Measure(round(tokens / lines, 1), places, summed=False)


def lines_a_comment(modules: Sources) -> Measure:
    """Lines of text (not empty) by line that is a comment of its own, over all modules.

    The fewer, the more is explained. Of each module: its lines that are none, so that a new one
    without comments is named.
    """
    own, others = 0, {}
    for path, source in modules.items():
        lines = [line.strip() for line in source.splitlines() if line.strip()]
        comments = sum(line.startswith("#") for line in lines)
        own += comments
        others[path] = len(lines) - comments
    return Measure(round((own + sum(others.values())) / max(own, 1), 1), others, summed=False)


def crowded_statements(source: str) -> int:
    """Number of assignments to more than two names at once, and of tuples that stand as statements.

    >>> crowded_statements("a, b, c = 1, 2, 3"), crowded_statements("f(), g()")
    (1, 1)
    """
    found = 0
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Expr):
            found += isinstance(node.value, ast.Tuple)
        elif isinstance(node, ast.Assign):
            tuples = [target for target in node.targets if isinstance(target, ast.Tuple)]
            found += any(len(target.elts) > 2 for target in tuples)
    return found


def long_lines(source: str) -> int:
    """Number of lines of more than 100 characters."""
    return sum(len(line) > LONG_LINE for line in source.splitlines())


def nested_comprehensions(source: str) -> int:
    """Number of comprehensions (generator expressions, too) inside another one."""
    outer = [node for node in ast.walk(ast.parse(source)) if isinstance(node, COMPREHENSIONS)]
    inside = {part for node in outer for part in ast.walk(node) if part is not node}
    return sum(node in inside for node in outer)


def long_functions(source: str) -> dict[str, int]:
    """{name: lines} of functions and methods of more than 45 lines, from `def` to the end."""
    found = {}
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            lines = node.end_lineno - node.lineno + 1
            if lines > LONG_FUNCTION:
                found[node.name] = lines
    return found


# --- notebooks, README ----------------------------------------------------------------------------


def code_cells(source: str) -> list[str]:
    """Texts of the code cells of a notebook in percent format, without the set-up cell."""
    parts = re.split(r"^(# %%.*)\n", source, flags=re.M)
    cells = zip(parts[1::2], parts[2::2], strict=True)
    other = re.compile(r'\[markdown\]|"setup"')
    return [text.strip("\n") for head, text in cells if not other.search(head)]


def helper_imports(source: str) -> int:
    """Number of statements of a notebook, beyond its set-up cell, that import from `helpers`."""
    modules = [imported(ast.unparse(statement)) for statement in _import_statements(source)]
    return sum(any(name.split(".")[0] == "helpers" for name in names) for names in modules)


def _import_statements(source: str) -> Iterator[ast.stmt]:
    for cell in code_cells(source):
        yield from (node for node in ast.walk(ast.parse(cell)) if isinstance(node, IMPORTS))


def bound_rooms(source: str) -> dict[str, int]:
    """{name: how often} for names of rooms that a notebook gives to something else.

    Assigned names, parameters, loop variables, functions, and imports from elsewhere. What the
    notebook imports from `helpers` counts as a room, too.
    """
    rooms, bound = set(ROOMS), Counter()
    for node in _import_statements(source):
        names = [alias.asname or alias.name.split(".")[0] for alias in node.names]
        if isinstance(node, ast.ImportFrom) and node.module == "helpers":
            rooms.update(names)
        else:
            bound.update(names)
    for cell in code_cells(source):
        tree = ast.parse(cell)
        bound.update(_stored_names(tree))
        bound.update(node.arg for node in ast.walk(tree) if isinstance(node, ast.arg))
        bound.update(node.name for node in ast.walk(tree) if isinstance(node, DEFINITIONS))
    return {name: number for name, number in bound.items() if name in rooms}


def readme_tree(text: str) -> list[str]:
    """Lines of README's list of what is in `helpers/`, the head first."""
    lines = text.split("\n## What is where\n")[1].split("```")[1].splitlines()
    start = next(number for number, line in enumerate(lines) if line.startswith("helpers/"))
    return [lines[start], *takewhile(lambda line: line[:1] == " ", lines[start + 1 :])]


# --- the table ------------------------------------------------------------------------------------


def read_sources(folder: Path, pattern: str = "**/*.py") -> dict[str, str]:
    """{path below `folder`: source text} of Python files, in order."""
    files = sorted(folder.glob(pattern))
    return {path.relative_to(folder).as_posix(): path.read_text(encoding="utf-8") for path in files}


def first_glance(helpers: Path) -> list[str]:
    """Names of the folders and files that one sees in `helpers/`."""
    names = sorted(path.name for path in helpers.iterdir())
    return [name for name in names if name not in ("__pycache__", "__init__.py")]


def measure(root: Path = ROOT) -> dict[str, Measure]:
    """All measures of the repository at `root`, by name."""
    folders = {
        "helpers": read_sources(root / "helpers"),
        "notebooks": read_sources(root / "notebooks" / "src"),
        "benchmarks": read_sources(root / "benchmarks"),
        "data": read_sources(root / "data", "*.py"),
        "tests": read_sources(root / "tests"),
    }
    entries = dict.fromkeys(first_glance(root / "helpers"), 1)
    found = {"entries_at_the_first_glance": _total(entries)}
    found |= measure_helpers(folders["helpers"])
    for name, sources in folders.items():
        found[f"lines_over_100_in_{name}"] = _total(_by_file(long_lines, sources))
    found |= measure_notebooks(folders["notebooks"])
    tree = readme_tree((root / "README.md").read_text(encoding="utf-8"))
    lengths = {line: len(line) for line in tree}
    found["lines_of_the_readme_tree"] = _total({"README.md": len(tree)})
    found["longest_line_of_the_readme_tree"] = _largest(lengths)
    mean = round(sum(lengths.values()) / len(tree), 1)
    found["mean_line_of_the_readme_tree"] = _total({"README.md": mean})
    return found


def measure_helpers(modules: Sources) -> dict[str, Measure]:
    """Measures of the package, from its modules by their paths below `helpers`."""
    functions = _flat({path: long_functions(source) for path, source in modules.items()})
    return {
        "upward_imports": _total(upward_imports(modules)),
        "names_with_two_meanings": _total(names_with_two_meanings(modules)),
        "tokens_a_line": tokens_a_line(modules),
        "lines_a_comment": lines_a_comment(modules),
        "crowded_statements": _total(_by_file(crowded_statements, modules)),
        "nested_comprehensions": _total(_by_file(nested_comprehensions, modules)),
        "functions_over_45_lines": _total(dict.fromkeys(functions, 1)),
    }


def measure_notebooks(sources: Sources) -> dict[str, Measure]:
    """Measures of the notebooks, from their percent-format sources by name."""
    rooms, longest, long_cells = {}, {}, {}
    for name, source in sources.items():
        lengths = [cell.count("\n") + 1 for cell in code_cells(source)]
        longest[name] = max(lengths, default=0)
        long_cells[name] = sum(length > LONG_CELL for length in lengths)
        rooms[name] = bound_rooms(source)
    return {
        "imports_of_helpers_a_notebook": _largest(_by_file(helper_imports, sources)),
        "rooms_bound_in_notebooks": _total(_flat(rooms)),
        "longest_notebook_cell": _largest(longest),
        "notebook_cells_over_25_lines": _total(long_cells),
    }


def _by_file(count: Callable[[str], int], sources: Sources) -> dict[str, int]:
    return {path: count(text) for path, text in sources.items()}


def _flat(found: Mapping[str, Mapping[str, int]]) -> dict[str, int]:
    flat = {}
    for path, names in found.items():
        flat |= {f"{path}: {name}": number for name, number in names.items()}
    return flat


def read_table(path: Path = TABLE) -> dict[str, Measure]:
    """The committed measures by name."""
    table = tomllib.loads(path.read_text(encoding="utf-8"))
    return {name: Measure(value, table["places"][name]) for name, value in table["figures"].items()}


def what_rose(name: str, committed: Measure, now: Measure, most: int = 10) -> str:
    """What rose, by how much and where, in words; empty if it did not."""
    if now.value <= committed.value:
        return ""
    rise = f"{committed.value:g} → {now.value:g} (+{now.value - committed.value:.4g})"
    lines = [f"{name} rose: {rise}. It may only fall. New or larger:"]
    new = now.new_places(committed)
    for place in new[:most]:
        lines.append(f"  {place} ({committed.places.get(place, 0):g} → {now.places[place]:g})")
    if len(new) > most:
        lines.append(f"  and {len(new) - most} more")
    return "\n".join(lines)


def lower(committed: Mapping[str, Measure], now: Mapping[str, Measure]) -> dict[str, Measure]:
    """The table to commit: a measure as it is now, but one that rose stays as it was committed."""
    lowered = dict(now)
    for name in now.keys() & committed.keys():
        if now[name].value > committed[name].value:
            lowered[name] = committed[name]
    return lowered


def render_table(measures: Mapping[str, Measure]) -> str:
    """The table as TOML."""
    lines = ["# Figures that may only fall, and where they come from."]
    lines += ["# Written by: python tests/shape.py --write", "[figures]"]
    lines += [f"{name} = {found.value}" for name, found in measures.items()]
    for name, found in measures.items():
        lines += ["", f"[places.{name}]"]
        for place, part in sorted(found.places.items()):
            lines.append(f"{json.dumps(place, ensure_ascii=False)} = {part}")
    return "\n".join(lines) + "\n"


def main(arguments: Iterable[str] | None = None) -> int:
    """Print the table, write it if asked to; 1 if a figure rose."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--write", action="store_true", help="commit the figures that fell")
    parser.add_argument("--table", type=Path, default=TABLE, help="default: tests/shape.toml")
    options = parser.parse_args(arguments)
    now, committed = measure(), {}
    if options.table.exists():
        committed = read_table(options.table)
    print(f"{'measure':<36} {'committed':>9} {'now':>9}")
    for name, found in now.items():
        before = f"{committed[name].value:g}" if name in committed else "-"
        print(f"{name:<36} {before:>9} {found.value:>9g}")
    known = [name for name in now if name in committed]
    rises = [text for name in known if (text := what_rose(name, committed[name], now[name]))]
    print("".join(f"\n{text}\n" for text in rises), end="")
    if options.write:
        options.table.write_text(render_table(lower(committed, now)), encoding="utf-8")
    return 1 if rises else 0


if __name__ == "__main__":
    sys.exit(main())
