"""The block of evidence (`helpers/evaluation/evidence.py`) in a section of the report."""

from IPython.display import HTML

from helpers.evaluation import Evidence

from .html import table_html
from .page import Section


def add_evidence(section: Section, evidence: Evidence) -> HTML:
    """Put tables, conclusions and remarks into the section; return the tables, for the cell."""
    shown = ""
    for rows in evidence.tables():
        section.table(rows)
        shown += table_html(rows) + "<br>"
    for sentence in evidence.conclusions():
        section.conclude(sentence)
    for sentence in evidence.remarks():
        section.say(sentence)
    return HTML(shown)
