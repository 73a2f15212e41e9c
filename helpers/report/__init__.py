"""Figures, tables, one page, and a card for every policy.

Here: plots, the report that opens offline, model cards, and logs of other tools. Not here: the measurements
themselves (`evaluation`). Taught in notebook 07.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__,
    submod_attrs={
        "exam_figures": ["add_exam_figures"],
        "html": [
            "ADDED_COLOR",
            "REMOVED_COLOR",
            "answer_figures",
            "color_style",
            "colored_tokens",
            "comparison_table",
            "format_counts",
            "gallery_html",
            "mark_changes",
            "markdown_table",
            "picture_html",
            "png_bytes",
            "raw_table",
            "table_html",
        ],
        "model_card": ["data_licences", "package_versions", "render_model_card", "training_command", "write_cards"],
        "page": [
            "EVALUATION_NOTEBOOK",
            "Headline",
            "Section",
            "build_report",
            "collect_headlines",
            "figure_rows",
            "figures_table",
            "publish",
            "read_sections",
            "replace_block",
            "write_presets",
        ],
        "plots": [
            "ACCENT_COLOR",
            "CHOSEN_COLOR",
            "LiveCurves",
            "LivePolicyCurves",
            "NEUTRAL_COLOR",
            "REJECTED_COLOR",
            "error_chart",
            "image_grid",
            "interval_chart",
            "policy_curves",
            "reliability_diagram",
            "reward_curves",
            "run_curves",
            "training_curves",
            "value_strip",
        ],
        "run_logs": [
            "HELD_OUT_PREFIX",
            "LOGGED_STAGES",
            "LoggedRun",
            "LoggedStage",
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
