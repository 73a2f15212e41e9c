"""The public names of this room, and the module of each; `lazy_loader` reads this file."""

from .arena import (
    Arena as Arena,
    standings_table as standings_table,
)
from .common import (
    ERROR_COLOR as ERROR_COLOR,
    Panel as Panel,
    button as button,
    centred as centred,
    errors_in as errors_in,
    escape_text as escape_text,
    html_place as html_place,
    in_column as in_column,
    in_row as in_row,
    jpeg_strip as jpeg_strip,
    labelled as labelled,
    listen_to_keys as listen_to_keys,
    note as note,
    open_strip as open_strip,
    padded_table as padded_table,
    picture_place as picture_place,
    show as show,
    show_errors as show_errors,
    show_picture as show_picture,
    slider as slider,
    uploaded_bytes as uploaded_bytes,
)
from .comparison import (
    LIKELIER_TOKENS as LIKELIER_TOKENS,
    Comparison as Comparison,
)
from .dashboard import (
    Dashboard as Dashboard,
    figure_png as figure_png,
    last_values as last_values,
)
from .explorer import (
    OUTCOMES as OUTCOMES,
    PER_PAGE as PER_PAGE,
    Explorer as Explorer,
    ItemRow as ItemRow,
    count_changes as count_changes,
    item_card as item_card,
    outcome_of as outcome_of,
    select_rows as select_rows,
    tabulate as tabulate,
    thumbnail as thumbnail,
)
from .playground import (
    DEFAULT_WEIGHTS as DEFAULT_WEIGHTS,
    ScorerPlayground as ScorerPlayground,
    ranking_summary as ranking_summary,
    ranking_table as ranking_table,
    read_weights as read_weights,
)
from .ranked_texts import (
    cost_text as cost_text,
    is_misled as is_misled,
    samples_html as samples_html,
)
from .ranking import (
    AnswerRanker as AnswerRanker,
)
from .typed import (
    complete_tiers as complete_tiers,
    parse_reply as parse_reply,
    prompt_text as prompt_text,
    rank_in_text as rank_in_text,
)
