"""Tables as programs of many countries write them: CSV, TSV and XLSX, every cell a text.

Excel of a German system writes semicolons and cp1252, others write tabs and UTF-16. A cell stays
what its author sees: "NA", "None", "01" and "1.0" are words here, no missing values and no numbers,
which is why the cells come from csv and openpyxl, with their lines and formats, not from pandas.
What the columns mean is in `helpers/data/columns.py`.
"""

import codecs
import csv
import datetime
import io
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from helpers.files import UsageError

TEXT_TABLES = {".csv", ".tsv", ".tab"}
SHEET_TABLES = {".xlsx", ".xlsm"}
TABLE_SUFFIXES = TEXT_TABLES | SHEET_TABLES
# What other programs write, and how to turn it into what is read here
OTHER_TABLES = {".xls", ".xlsb", ".ods", ".numbers", ".fods"}
SEPARATORS = {",": "commas", ";": "semicolons", "\t": "tabs", "|": "bars"}
LONGEST_CELL = 10_000_000  # characters
BYTE_ORDER_MARKS = {
    codecs.BOM_UTF8: "utf-8-sig",
    codecs.BOM_UTF32_LE: "utf-32",  # before UTF-16, whose mark is its beginning
    codecs.BOM_UTF32_BE: "utf-32",
    codecs.BOM_UTF16_LE: "utf-16",
    codecs.BOM_UTF16_BE: "utf-16",
}


class TableRow(NamedTuple):
    number: int  # of its line or row in the file, counted from 1
    cells: list[str]


@dataclass(frozen=True)
class Sheet:
    """A table before anybody asks what its columns mean."""

    name: str  # the file's, for a sheet of a workbook with the sheet's
    rows: list[TableRow]  # without those in which every cell is empty
    how: str = ""  # it was read, in words


def read_sheets(path: Path, fits: Callable[[Sheet], int] = len) -> list[Sheet]:
    """Read the tables of a file: one, or those of all sheets that are not empty.

    fits: how well a table can be understood; of several ways to cut lines into cells, the one with
    the highest number is taken. Raises UsageError.
    """
    suffix = path.suffix.lower()
    if suffix in SHEET_TABLES:
        return _read_workbook(path)
    if suffix in OTHER_TABLES:
        raise UsageError(
            f"{path}: tables of the kind {suffix} are not read. Save it as .xlsx or .csv."
        )
    return [_read_text_table(path, fits)]


# --- text -----------------------------------------------------------------------------------------


def decode_text(data: bytes) -> tuple[str, str]:
    """The text of a file and the name of its encoding, for files that do not say which it is."""
    for mark, encoding in BYTE_ORDER_MARKS.items():
        if data.startswith(mark):
            return data.decode(encoding, errors="replace"), encoding
    # Half of the bytes of UTF-16 are 0 for most languages
    if data[:200].count(0) > len(data[:200]) / 4:
        encoding = "utf-16-be" if data[:1] == b"\0" else "utf-16-le"
        return data.decode(encoding, errors="replace"), encoding
    for encoding in ("utf-8", "cp1252"):
        try:
            return data.decode(encoding), encoding
        except UnicodeDecodeError:
            continue
    return data.decode("latin-1"), "latin-1"  # which knows every byte


def _read_text_table(path: Path, fits: Callable[[Sheet], int]) -> Sheet:
    text, encoding = decode_text(path.read_bytes())
    candidates = []
    for separator, word in SEPARATORS.items():
        rows = _cut_cells(path, text, separator)
        candidates.append(Sheet(path.name, rows, f"{encoding}, {word} between the columns"))
    # The first of equals: commas, as most have them
    return max(candidates, key=lambda sheet: (fits(sheet), _width(sheet)))


def _width(sheet: Sheet) -> int:
    return max((len(row.cells) for row in sheet.rows), default=0)


def _cut_cells(path: Path, text: str, separator: str) -> list[TableRow]:
    """Cut lines into cells; a cell in quotes may hold the separator and line breaks."""
    limit = csv.field_size_limit(LONGEST_CELL)
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=separator)
    rows = []
    # The reader names the last line of a row, people look at its first
    try:
        start = 1
        for cells in reader:
            # Excel's own line that names the separator
            named = start == 1 and re.fullmatch(r"sep=.?", "".join(cells).strip())
            if any(cell.strip() for cell in cells) and not named:
                rows.append(TableRow(start, [cell.strip() for cell in cells]))
            start = reader.line_num + 1
    except csv.Error as error:
        raise UsageError(
            f"{path}:{reader.line_num}: not a table ({error}). Save it again as CSV or XLSX."
        ) from None
    finally:
        csv.field_size_limit(limit)
    return rows


# --- workbooks ------------------------------------------------------------------------------------


def _read_workbook(path: Path) -> list[Sheet]:
    import openpyxl

    try:
        workbook = openpyxl.load_workbook(path, data_only=True)
    except Exception as error:  # a dozen kinds, of damaged or encrypted files
        raise UsageError(
            f"{path}: not a workbook that can be read ({error}). Save it again, without a password."
        ) from None
    sheets = []
    for sheet in workbook.worksheets:
        values = _sheet_texts(sheet)
        rows = []
        # Empty rows count, so that the numbers are those on the screen
        for number, cells in enumerate(values, start=1):
            if any(cells):
                rows.append(TableRow(number, cells))
        if rows:
            sheets.append(Sheet(f"{path.name}, sheet {sheet.title!r}", rows))
    return sheets


def _sheet_texts(sheet: Any) -> list[list[str]]:
    """The texts of all cells; those that were joined each have the text of the whole."""
    texts = []
    for row in sheet.iter_rows():
        texts.append([cell_text(cell) for cell in row])
    for joined in sheet.merged_cells.ranges:
        text = texts[joined.min_row - 1][joined.min_col - 1]
        # Downwards only: a title over several columns is no title of each
        for row in range(joined.min_row - 1, joined.max_row):
            texts[row][joined.min_col - 1] = text
    return texts


def cell_text(cell: Any) -> str:
    """What a person sees in a cell of a workbook, as far as its value and format say."""
    value, shown = cell.value, str(cell.number_format or "")
    if value is None or cell.data_type == "e":  # "#N/A" and the like
        return ""
    # Before numbers: True is one for Python
    if isinstance(value, bool):
        return "TRUE" if value else "FALSE"
    if isinstance(value, datetime.datetime):
        whole_day = value.time() == datetime.time()
        return value.date().isoformat() if whole_day else value.isoformat(" ")
    if isinstance(value, datetime.date | datetime.time):
        return value.isoformat()
    if isinstance(value, int | float):
        return _number_text(value, shown)
    return str(value).strip()


def _number_text(value: float, shown: str) -> str:
    """A number in its cell's format, where that is zeros ("00", "0.0"), else as it is."""
    zeros = re.fullmatch(r"(0+)(?:\.(0+))?(%?)", shown)
    if not zeros:
        whole = isinstance(value, int) or value.is_integer()
        return str(int(value)) if whole else repr(value)
    digits = len(zeros[2] or "")
    width = len(zeros[1]) + (digits + 1 if digits else 0)
    number = value * 100 if zeros[3] else value
    return f"{number:0{width}.{digits}f}{zeros[3]}"
