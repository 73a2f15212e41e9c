"""Widgets: rank answers, compare policies, look through answers and runs; the only room that knows ipywidgets.

They work with ipywidgets 7.7.1 (Colab) and 8. Every widget shows errors in itself, escapes what a model wrote, and holds
its state in `.state`, so that tests and notebooks can read what a reader sees. Not here: anything that can be done without a
click. Taught in notebooks 02 to 07.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__,
    submod_attrs={
        "arena": ["Arena", "standings_table"],
        "common": [
            "ERROR_COLOR",
            "button",
            "escape_text",
            "jpeg_strip",
            "listen_to_keys",
            "note",
            "show",
            "show_errors",
            "uploaded_bytes",
        ],
        "comparison": ["Comparison", "LIKELIER_TOKENS", "is_answer_right"],
        "dashboard": ["Dashboard", "figure_png", "last_values"],
        "explorer": [
            "Explorer",
            "ItemRow",
            "OUTCOMES",
            "PER_PAGE",
            "all_kinds",
            "count_changes",
            "error_kinds",
            "item_card",
            "outcome_of",
            "select_rows",
            "tabulate",
            "thumbnail",
        ],
        "playground": ["DEFAULT_WEIGHTS", "ScorerPlayground", "ranking_summary", "ranking_table", "read_weights"],
        "ranking": ["AnswerRanker"],
        "typed": ["complete_tiers", "parse_reply", "prompt_text", "rank_in_text"],
    },
)
