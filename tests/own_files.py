"""Files as people bring them: tables of other countries, workbooks, zips of other systems."""

import json
import zipfile
from pathlib import Path

import openpyxl
from pictures import colour_noise

LONG = "A house with a red roof beside a tree."
SHORT = "A boat."


def draw_photos(folder: Path, names, first: int = 0) -> list[Path]:
    """Different small pictures; names may have folders in them."""
    files = []
    for number, name in enumerate(names):
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        colour_noise(first + number).save(path)
        files.append(path)
    return files


def numbered(number: int, start: int = 0) -> list[str]:
    return [f"photo{n}.png" for n in range(start, start + number)]


def write_csv(path: Path, rows, separator=",", encoding="utf-8", newline="\n") -> Path:
    """Rows as a program writes them: cells in quotes where they hold the separator."""
    lines = []
    for row in rows:
        cells = []
        for cell in row:
            text = str(cell)
            if any(sign in text for sign in (separator, '"', "\n")):
                text = '"' + text.replace('"', '""') + '"'
            cells.append(text)
        lines.append(separator.join(cells))
    path.write_bytes((newline.join(lines) + newline).encode(encoding))
    return path


def write_workbook(path: Path, rows, formats=None, joined=(), sheets=()) -> Path:
    """A workbook; formats: cell → number format; joined: ranges; sheets: more of them, by title."""
    workbook = openpyxl.Workbook()
    sheet = workbook.active
    for row in rows:
        sheet.append(row)
    for place, shown in (formats or {}).items():
        sheet[place].number_format = shown
    for cells in joined:
        sheet.merge_cells(cells)
    for title, more in dict(sheets).items():
        other = workbook.create_sheet(title)
        for row in more:
            other.append(row)
    workbook.save(path)
    return path


def write_lines(path: Path, rows) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def write_zip(path: Path, folder: Path, name_of=lambda name: name) -> Path:
    """All files of a folder, under the names that another system would give them."""
    with zipfile.ZipFile(path, "w") as archive:
        for file in sorted(folder.rglob("*")):
            if file.is_file():
                entry = zipfile.ZipInfo(name_of(file.relative_to(folder).as_posix()))
                archive.writestr(entry, file.read_bytes())
    return path


def four_fields(number: int, start: int = 0) -> list[dict]:
    """The shortest preferences: in every other one the longer answer is the better one."""
    rows = []
    for n in range(start, start + number):
        texts = [f"{LONG} {n}", f"{SHORT} {n}"]
        chosen, rejected = texts if n % 2 else texts[::-1]
        row = {"image": f"photo{n}.png", "prompt": "What is shown?"}
        rows.append({**row, "chosen": chosen, "rejected": rejected})
    return rows
