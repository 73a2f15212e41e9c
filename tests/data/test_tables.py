"""Cells stay what their author wrote, whatever program, country or system wrote the table."""

import datetime

import pytest
from own_files import write_csv, write_workbook

from helpers.data import decode_text, header_fit, read_sheets
from helpers.files import UsageError

WORDS = ["NA", "None", "01", "1.0", "2024-01-02", "TRUE", "1e5", "nan", "-"]


def cells(path):
    (sheet,) = read_sheets(path, header_fit)
    return [row.cells for row in sheet.rows]


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "cp1252"])
@pytest.mark.parametrize("separator", [",", ";", "\t"])
def test_texts_survive_every_encoding_and_separator(tmp_path, encoding, separator):
    rows = [["image", "question", "answer"], ["ä.png", "Größe, etwa; „so“?", "5 €"]]
    path = write_csv(tmp_path / "a.csv", rows, separator, encoding, "\r\n")
    assert cells(path) == rows
    (sheet,) = read_sheets(path, header_fit)
    assert encoding.removesuffix("-le").removesuffix("-sig") in sheet.how


def test_bytes_that_no_code_page_knows_are_read_all_the_same():
    assert decode_text(b"caf\xe9 \x81") == ("café \x81", "latin-1")
    assert decode_text(b"caf\xe9") == ("café", "cp1252")


def test_words_of_tables_are_no_numbers_dates_or_gaps(tmp_path):
    rows = [["image", "question", "answer"]]
    rows += [["a.png", "?", word] for word in WORDS]
    assert cells(write_csv(tmp_path / "a.csv", rows)) == rows
    assert cells(write_workbook(tmp_path / "a.xlsx", rows)) == rows


def test_numbers_of_a_workbook_are_what_a_person_sees(tmp_path):
    day = datetime.datetime(2024, 1, 2)
    row = [3, 2.5, 1, 7, 0.5, True, day, datetime.datetime(2024, 1, 2, 15, 30), 1e6, None, "=1/0"]
    formats = {"C2": "0.0", "D2": "000", "E2": "0%"}
    path = write_workbook(tmp_path / "a.xlsx", [["image", "question"], row], formats)
    assert cells(path)[1] == [
        "3", "2.5", "1.0", "007", "50%", "TRUE", "2024-01-02", "2024-01-02 15:30:00", "1000000",
        "", "",
    ]  # fmt: skip


def test_lines_and_rows_are_numbered_as_programs_show_them(tmp_path):
    rows = [["image", "question"], ["a.png", "two\nlines"], ["b.png", "?"]]
    (sheet,) = read_sheets(write_csv(tmp_path / "a.csv", rows), header_fit)
    assert [row.number for row in sheet.rows] == [1, 2, 4]
    (sheet,) = read_sheets(write_workbook(tmp_path / "a.xlsx", [rows[0], [], rows[1]]), header_fit)
    assert [row.number for row in sheet.rows] == [1, 3]


def test_a_joined_cell_counts_for_all_its_rows(tmp_path):
    rows = [["image", "question"], ["a.png", "one?"], [None, "two?"], ["b.png", "three?"]]
    path = write_workbook(tmp_path / "a.xlsx", rows, joined=["A2:A3"])
    assert [row[0] for row in cells(path)] == ["image", "a.png", "a.png", "b.png"]


def test_all_sheets_are_read_and_empty_ones_are_not(tmp_path):
    path = write_workbook(
        tmp_path / "a.xlsx", [["image", "question"]], sheets={"2": [], "3": [["x"]]}
    )
    assert [sheet.name for sheet in read_sheets(path)] == [
        "a.xlsx, sheet 'Sheet'",
        "a.xlsx, sheet '3'",
    ]


def test_excels_own_line_about_the_separator_is_no_row(tmp_path):
    path = tmp_path / "a.csv"
    path.write_text("sep=;\nimage;question\na.png;Why, and how?\n")
    assert cells(path) == [["image", "question"], ["a.png", "Why, and how?"]]


def test_what_cannot_be_read_is_said(tmp_path):
    (tmp_path / "a.xls").write_bytes(b"\xd0\xcf\x11\xe0")
    with pytest.raises(UsageError, match=r"a\.xls: tables of the kind \.xls .* Save it as \.xlsx"):
        read_sheets(tmp_path / "a.xls")
    (tmp_path / "a.xlsx").write_bytes(b"PK\x03\x04 half")
    with pytest.raises(UsageError, match=r"a\.xlsx: not a workbook that can be read"):
        read_sheets(tmp_path / "a.xlsx")
