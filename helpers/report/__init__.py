"""Figures, tables, one page, and a card for every policy.

Here: plots, the report that opens offline, model cards, and logs of other tools. Not here: the measurements
themselves (`evaluation`). Taught in notebook 07.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__,
    submod_attrs={
        "html": [
            "GONE",
            "NEW",
            "colored_tokens",
            "colors",
            "comparison_table",
            "figures_of",
            "gallery_html",
            "mark_changes",
            "markdown_table",
            "picture_html",
            "png_bytes",
            "raw_table",
            "said",
            "table_html",
        ],
        "model_card": ["STAGES", "data_licences", "training_command", "versions", "write_cards"],
        "page": [
            "EVALUATION",
            "Headline",
            "Section",
            "build_report",
            "figure_rows",
            "figures_table",
            "publish",
            "read_sections",
            "replace_block",
            "summary",
        ],
        "plots": [
            "ACCENT",
            "CHOSEN",
            "LiveCurves",
            "LivePolicyCurves",
            "NEUTRAL",
            "REJECTED",
            "error_chart",
            "image_grid",
            "interval_chart",
            "policy_curves",
            "reliability",
            "reward_curves",
            "run_curves",
            "training_curves",
            "value_strip",
        ],
        "run_logs": [
            "HELD_OUT",
            "Row",
            "Run",
            "Stage",
            "axes",
            "definition",
            "definitions",
            "differences",
            "find_runs",
            "last_value",
            "points",
            "running_mean",
        ],
    },
)
