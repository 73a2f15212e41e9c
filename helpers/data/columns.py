"""What the columns of somebody's table mean, by their titles.

Case, blanks and underscores do not count: "Image Path", "image_path" and "imagePath" are one.
`ROLES` lists the titles that are known. From the roles follows the shape of the table: pairs of a
chosen and a rejected answer, votes, rankings, or questions with or without answers.
"""

import re
import unicodedata
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from .tables import Sheet, TableRow

HEADER_ROWS = 30  # titles stand in one of the first
# role → titles, without case, blanks and signs; English, German, French and Spanish
ROLES = {
    "image": "image images imagepath imagefile imagename imageid filename file path picture photo "
    "img imgpath bild foto datei dateiname bilddatei imagen fichier photopath imgname",
    "question": "question prompt instruction query frage pregunta consigne",
    "answer": "answer answers groundtruth truth reference references correctanswer rightanswer "
    "goldanswer label antwort antworten respuesta reponse response richtigeantwort",
    "chosen": "chosen preferred better betteranswer chosenanswer preferredanswer good winner "
    "besser bevorzugt chosenresponse preferredresponse",
    "rejected": "rejected worse worseanswer rejectedanswer dispreferred bad loser other "
    "schlechter abgelehnt rejectedresponse",
    "vote": "preference vote verdict choice winner preferred better best judgement wahl urteil "
    "voto voix besser",
    "ranking": "ranking order rangfolge reihenfolge classement",
    "rank": "rank rang place platz position",
    "score": "score rating points bewertung punkte stars",
    "id": "id questionid rowid recordid nr",
    "group": "group photoid groupid gruppe",
    "split": "split set subset part teil",
    "truth_kind": "truthkind",
}
_ROLES_OF: dict[str, list[str]] = defaultdict(list)
for _role, _titles in ROLES.items():
    for _title in _titles.split():
        _ROLES_OF[_title].append(_role)
# Titles with a letter or number behind them: "response_a", "Answer 2"
_MARKED = {
    "answers": "answer response option model output completion candidate reply antwort reponse "
    "respuesta caption text modell",
    "ranks": "rank rang place platz",
    "scores": "score rating points punkte bewertung",
    "images": "image img bild photo foto picture imagepath",
}
# Of these, several without a vote are what is right; of others, what models have said.
REFERENCES = {"answer", "antwort", "respuesta"}


class Column(NamedTuple):
    place: int
    title: str
    mark: str = ""  # "a" of "response_a", "2" of "Answer 2"


@dataclass(frozen=True)
class Layout:
    """The shape of a table, and which columns have which role."""

    shape: str  # one of SHAPES
    columns: Mapping[str, list[Column]]
    unused: tuple[str, ...] = ()

    def values(self, role: str, cells: Sequence[Any]) -> list[Any]:
        """What a row says in the columns of a role; empty cells are left out."""
        found = []
        for column in self.columns.get(role, ()):
            value = cells[column.place] if column.place < len(cells) else None
            if value not in (None, "", []):
                found.append(value)
        return found

    def __str__(self) -> str:
        parts = []
        for role, columns in self.columns.items():
            titles = ", ".join(repr(column.title) for column in columns)
            parts.append(f"{titles} is the {role}" if len(columns) == 1 else f"{titles}: {role}")
        return f"{SHAPES[self.shape]} ({'; '.join(parts)})"


# shape → in words
SHAPES = {
    "pairs": "pairs of a chosen and a rejected answer",
    "votes": "votes for one of several answers",
    "rankings": "rankings of several answers",
    "ranked rows": "rankings, one row an answer",
    "unjudged": "answers that nobody has judged",
    "questions": "questions",
}


def plain_title(title: str) -> str:
    """A title without case, accents, blanks and signs."""
    letters = unicodedata.normalize("NFKD", str(title)).casefold()
    return re.sub(r"[^a-z0-9]", "", letters)


def match_columns(titles: Sequence[str]) -> Layout | None:
    """Find the shape of a table with these titles; None if it is no table of questions at all."""
    roles = defaultdict(list)
    for place, title in enumerate(titles):
        name = plain_title(title)
        for role in _ROLES_OF.get(name, ()):
            roles[role].append(Column(place, title))
        for role, mark in _marked_roles(name):
            roles[role].append(Column(place, title, mark))
    _take_bare_letters(titles, roles)
    # A title may have several roles: the shape decides which one counts
    shape = _shape_of(roles)
    if shape is None:
        return None
    kept = _roles_of_shape(shape, roles)
    used = set()
    for columns in kept.values():
        used |= {column.place for column in columns}
    unused = [title for place, title in enumerate(titles) if place not in used and title]
    return Layout(shape, kept, tuple(unused))


def _marked_roles(name: str) -> list[tuple[str, str]]:
    marked = re.fullmatch(r"([a-z]+?)(\d{1,2}|[a-h])(text|answer|response)?", name)
    found = []
    for role, bases in _MARKED.items():
        if marked and marked[1] in bases.split():
            found.append((role, marked[2]))
            if role == "answers" and marked[1] in REFERENCES:
                found.append(("references", marked[2]))
    return found


def _take_bare_letters(titles: Sequence[str], roles: dict[str, list[Column]]) -> None:
    """Take columns that are called just "A" and "B" as answers, if there are no others."""
    bare = []
    for place, title in enumerate(titles):
        name = plain_title(title)
        if len(name) == 1 and name in "abcdefgh":
            bare.append(Column(place, title, name))
    if not roles["answers"] and [column.mark for column in bare[:2]] == ["a", "b"]:
        roles["answers"] = bare


def _shape_of(roles: Mapping[str, list[Column]]) -> str | None:
    has = {role for role, columns in roles.items() if columns}
    several = len(roles["answers"]) > 1
    if has >= {"chosen", "rejected"}:
        return "pairs"
    if several and has & {"ranking", "ranks", "scores"}:
        return "rankings"
    if several and "vote" in has:
        return "votes"
    if has & {"rank", "score"} and "answer" in has and "image" in has:
        return "ranked rows"
    # "Answer 1", "Answer 2" beside a question are what is right
    if several and len(roles["references"]) < len(roles["answers"]):
        return "unjudged"
    return "questions" if "question" in has else None


_SHAPE_ROLES = {
    "pairs": ("chosen", "rejected"),
    "votes": ("answers", "vote"),
    "rankings": ("answers", "ranking", "ranks", "scores"),
    "ranked rows": ("answer", "rank", "score"),
    "unjudged": ("answers",),
    "questions": ("answer", "references"),
}


def _roles_of_shape(shape: str, roles: Mapping[str, list[Column]]) -> dict[str, list[Column]]:
    """The columns that count in a shape; of two with one title the first, save for answers."""
    kept = {
        "image": [*roles["image"][:1], *roles["images"]],
        "question": roles["question"][:1],
    }
    for role in (*_SHAPE_ROLES[shape], "id", "group", "split", "truth_kind"):
        many = role in ("answers", "references", "ranks", "scores")
        kept[role] = roles[role] if many else roles[role][:1]
    if shape == "questions":
        kept["answer"] = _same_title(roles["answer"])
    if shape == "ranked rows":  # what was answered, not what is right
        kept["response"] = kept.pop("answer")
    # A truth stands beside pairs and votes, too
    taken = set()
    for columns in kept.values():
        taken |= {column.place for column in columns}
    if shape in ("pairs", "votes", "rankings"):
        kept["answer"] = [column for column in roles["answer"] if column.place not in taken]
    return {role: columns for role, columns in kept.items() if columns}


def as_questions(layout: Layout) -> Layout:
    """Read the rows of a ranking as questions whose one answer is right."""
    columns = dict(layout.columns)
    columns["answer"] = columns.pop("response")
    ranks = [*columns.pop("rank", []), *columns.pop("score", [])]
    unused = (*layout.unused, *(column.title for column in ranks))
    return Layout("questions", columns, unused)


def _same_title(columns: Sequence[Column]) -> list[Column]:
    """The first column, and others that are called the same: several answers of one kind."""
    found = []
    for column in columns:
        if plain_title(column.title) == plain_title(columns[0].title):
            found.append(column)
    return found


# --- where the titles stand -----------------------------------------------------------------------


class Header(NamedTuple):
    """What the titles of a table say, and what stands below them."""

    layout: Layout
    rows: list[TableRow]
    repeated: int  # rows that repeat the titles


class _Candidate(NamedTuple):
    fit: int  # number of columns that are understood
    place: int  # of the row of titles
    layout: Layout | None


def header_fit(sheet: Sheet) -> int:
    """How many columns of the best row of titles are understood; 0: there is no such row."""
    return _best_header(sheet).fit


def find_header(sheet: Sheet) -> Header | None:
    """The titles of a table; None if it has none that are known."""
    best = _best_header(sheet)
    if best.layout is None:
        return None
    titles = sheet.rows[best.place].cells
    below = sheet.rows[best.place + 1 :]
    # Tables that were joined, or printed on pages, repeat their titles
    rows = [row for row in below if row.cells[: len(titles)] != titles]
    return Header(best.layout, rows, len(below) - len(rows))


def _best_header(sheet: Sheet) -> _Candidate:
    """The row of titles of which most are understood: above it may stand a heading or a date."""
    best = _Candidate(0, 0, None)
    for place, row in enumerate(sheet.rows[:HEADER_ROWS]):
        layout = match_columns(row.cells)
        if layout is None:
            continue
        understood = set()
        for columns in layout.columns.values():
            understood |= {column.place for column in columns}
        # Of equal ones the first: data below may look like titles, too
        if len(understood) > best.fit:
            best = _Candidate(len(understood), place, layout)
    return best
