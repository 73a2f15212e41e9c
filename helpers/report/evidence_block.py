"""The block of evidence (`helpers/evaluation/evidence.py`) in a section of the report."""

from IPython.display import HTML

from helpers.evaluation import Evidence

from .html import table_html
from .page import Section


def add_evidence(section: Section, evidence: Evidence, lead: bool = False) -> HTML:
    """Put tables, conclusions and remarks into the section; return the tables, for the cell.

    lead: conclusions go to the top of the page, where one notebook is to speak for all.
    """
    shown = ""
    for rows in evidence.tables():
        section.table(rows)
        shown += table_html(rows) + "<br>"
    for sentence in evidence.conclusions():
        (section.conclude if lead else section.say)(sentence)
    for sentence in evidence.remarks():
        section.say(sentence)
    return HTML(shown)
