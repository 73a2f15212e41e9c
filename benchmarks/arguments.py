"""The options that the benchmarks with several seeds and a table of their own share."""

import argparse
from collections.abc import Sequence
from pathlib import Path


def benchmark_parser(
    description: str, out: Path, seeds: Sequence[int], toy: str
) -> argparse.ArgumentParser:
    """Return a parser that knows --seeds, --toy, --out and --table.

    out: the JSON file of the figures. toy: what --toy makes smaller.
    """
    parser = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seeds", nargs="+", type=int, default=list(seeds))
    parser.add_argument("--toy", action="store_true", help=toy)
    parser.add_argument("--out", type=Path, default=out)
    parser.add_argument("--table", action="store_true", help="write the table again, run nothing")
    return parser
