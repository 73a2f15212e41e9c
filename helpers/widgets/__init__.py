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
            "ERROR",
            "button",
            "errors_shown",
            "jpeg_strip",
            "listen_to_keys",
            "note",
            "plain",
            "show",
            "uploaded_bytes",
        ],
        "comparison": ["Comparison", "TOKENS", "verdict"],
        "dashboard": ["Dashboard", "last_values", "png"],
        "explorer": [
            "Explorer",
            "OUTCOMES",
            "PER_PAGE",
            "Row",
            "all_kinds",
            "card",
            "changed_counts",
            "error_kinds",
            "outcome_of",
            "select",
            "tabulate",
            "thumbnail",
        ],
        "playground": ["DEFAULTS", "ScorerPlayground", "ranking_table", "read_weights", "summary"],
        "ranking": ["Ranking"],
        "typed": ["completed", "parse_reply", "prompt_text", "rank_in_text"],
    },
)
