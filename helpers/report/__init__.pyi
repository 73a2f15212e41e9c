"""The public names of this room, and the module of each; `lazy_loader` reads this file."""

from .evidence_block import add_evidence as add_evidence
from .exam_figures import (
    add_exam_figures as add_exam_figures,
    add_shares as add_shares,
    figure_name as figure_name,
)
from .html import (
    ADDED_COLOR as ADDED_COLOR,
    MARKS as MARKS,
    REMOVED_COLOR as REMOVED_COLOR,
    answer_figures as answer_figures,
    color_style as color_style,
    colored_tokens as colored_tokens,
    comparison_table as comparison_table,
    format_counts as format_counts,
    gallery_html as gallery_html,
    mark_changes as mark_changes,
    markdown_code as markdown_code,
    markdown_table as markdown_table,
    markdown_text as markdown_text,
    picture_html as picture_html,
    png_bytes as png_bytes,
    raw_table as raw_table,
    shown_size as shown_size,
    table_html as table_html,
)
from .model_card import (
    data_licences as data_licences,
    package_versions as package_versions,
    render_model_card as render_model_card,
    training_command as training_command,
    write_cards as write_cards,
)
from .page import (
    EVALUATION_NOTEBOOK as EVALUATION_NOTEBOOK,
    Headline as Headline,
    Section as Section,
    build_report as build_report,
    collect_headlines as collect_headlines,
    figure_rows as figure_rows,
    read_sections as read_sections,
)
from .plots import (
    ACCENT_COLOR as ACCENT_COLOR,
    CHOSEN_COLOR as CHOSEN_COLOR,
    NEUTRAL_COLOR as NEUTRAL_COLOR,
    REJECTED_COLOR as REJECTED_COLOR,
    LiveCurves as LiveCurves,
    LivePolicyCurves as LivePolicyCurves,
    best_of_n_curves as best_of_n_curves,
    error_chart as error_chart,
    image_grid as image_grid,
    interval_chart as interval_chart,
    policy_curves as policy_curves,
    reliability_diagram as reliability_diagram,
    reward_curves as reward_curves,
    run_curves as run_curves,
    training_curves as training_curves,
    value_strip as value_strip,
)
from .run_logs import (
    HELD_OUT_PREFIX as HELD_OUT_PREFIX,
    LOGGED_STAGES as LOGGED_STAGES,
    LoggedRun as LoggedRun,
    LoggedStage as LoggedStage,
    axes as axes,
    definition as definition,
    definitions as definitions,
    differences as differences,
    find_runs as find_runs,
    last_value as last_value,
    points as points,
    running_mean as running_mean,
)
from .task_table import (
    PROJECTS as PROJECTS,
    TASK_FIGURES as TASK_FIGURES,
    task_rows as task_rows,
)
