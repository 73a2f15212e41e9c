"""Widget tests once more, with the ipywidgets of Google Colab, which `make setup` puts into a folder of its own.

In `make test` those that render, move, upload or vote, a few of each widget; what files and votes
hold does not depend on the version. All of them, with kernels and processes of their own, in
`make test-slow`.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from helpers.files import ROOT

COLAB = Path(sys.prefix) / "ipywidgets7"
WIDGETS = Path(__file__).with_name("widgets")
DRAWN_AND_MOVED = {
    "arena": [
        "it_reads_like_an_arena_and_votes_like_a_ranking",
        "votes_after_reveal_are_counted_as_not_blind_over_a_restart",
        "markup_in_names_is_shown_not_run",
    ],
    "comparison": [
        "it_shows_all_answers_at_once_and_again_after_each_move",
        "an_upload_is_asked_about_and_has_no_known_truth",
        "a_file_that_is_no_picture_is_an_error_in_the_widget_and_the_next_question_works",
        "the_best_is_shown_and_the_others_follow_in_order",
        "the_menu_changes_who_ranks_and_a_tie_is_called_one",
    ],
    "dashboard": [
        "it_shows_the_first_stage_at_once",
        "stage_runs_figures_axis_and_smoothing_change_the_picture",
        "controls_have_names_and_heights_do_not_change",
    ],
    "explorer": [
        "menus_filter",
        "pages",
        "controls_have_labels_and_keys",
    ],
    "playground": [
        "it_ranks_at_once_and_after_each_move",
        "controls_have_names_and_heights_do_not_change",
    ],
    "ranking": [
        "one_click_is_one_vote",
        "more_answers_are_clicked_best_first_and_saved",
        "criteria_are_stored_by_place_and_only_when_used",
        "heights_do_not_change_from_item_to_item",
        "the_note_and_the_keys",
    ],
}


def run_with_colabs_widgets(arguments):
    """Run pytest in a process that has Colab's ipywidgets; all must pass and none be skipped."""
    assert (COLAB / "ipywidgets").is_dir(), (
        f"{COLAB} is missing. Run: make setup, or: {sys.executable} -m uv pip install "
        f"--python {sys.executable} --target {COLAB} --no-deps ipywidgets==7.7.1 "
        f"ipython-genutils==0.2.0"
    )
    options = ["-q", "-p", "no:cacheprovider", *arguments]
    code = (
        "import sys, ipywidgets, pytest\n"
        "assert ipywidgets.__version__ == '7.7.1', ipywidgets\n"
        f"sys.exit(pytest.main({json.dumps(options)}))"
    )
    paths = os.pathsep.join([str(COLAB), os.environ.get("PYTHONPATH", "")])
    environment = os.environ | {"PYTHONPATH": paths}
    command = [sys.executable, "-c", code]
    run = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    said = run.stdout + run.stderr
    assert run.returncode == 0 and " passed" in run.stdout and "skipped" not in run.stdout, said


@pytest.mark.heavy(reason="tests of widgets in a process with other packages")
def test_widgets_are_drawn_and_moved_with_the_ipywidgets_of_colab():
    """A name that is no longer there fails, as pytest does not find it."""
    chosen = []
    for widget, names in DRAWN_AND_MOVED.items():
        chosen += [f"{WIDGETS / f'test_{widget}.py'}::test_{name}" for name in names]
    run_with_colabs_widgets(chosen)


@pytest.mark.slow(reason="all tests of widgets once more; in make test those that draw and move")
def test_all_widgets_with_the_ipywidgets_of_colab():
    run_with_colabs_widgets(["-m", "not slow", *map(str, sorted(WIDGETS.glob("test_*.py")))])
