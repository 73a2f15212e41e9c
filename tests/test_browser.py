"""A reader in JupyterLab: opens notebook 06, moves things, uploads a photo, votes, loses the kernel, goes on.

Screenshots are left in `artifacts/screenshots`. Skipped, with the reason, where there is no Chromium.
"""

import shutil
import time

import matplotlib.pyplot as plt
import nbformat
import pytest
from browser import (
    CHROMIUM,
    RUN_ALL,
    WHY_NOT,
    chromium,
    jupyter_lab,
    kill_kernel,
    open_notebook,
    screenshot,
)
from ci import write_prepared
from pictures import noise

from helpers import notebooks
from helpers.files import ROOT, write_json
from helpers.models.policies import SHIPPED_POLICIES
from helpers.report.page import Section
from helpers.statistics import proportion
from helpers.widgets.comparison import LIKELIER_TOKENS

pytestmark = [
    pytest.mark.skipif(CHROMIUM is None, reason=WHY_NOT),
    pytest.mark.heavy(reason="a browser, and JupyterLab with a kernel"),
]
PATIENCE = 240_000  # milliseconds
NOTEBOOK = "06_compare_before_after.ipynb"
MATCHES = 12  # a few more than are voted on


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """The notebook with few scenes (JupyterLab saves on its own), links to the suite, two adapters."""
    folder = tmp_path_factory.mktemp("reader") / "suite"
    (folder / "notebooks").mkdir(parents=True)
    values = {"PREPARED": str(write_prepared(folder / "prepared")), "MATCHES": MATCHES}
    notebook = notebooks.read_notebook(NOTEBOOK, values)
    nbformat.write(notebook, folder / "notebooks" / NOTEBOOK)
    for name in ("helpers", "data"):
        (folder / name).symlink_to(ROOT / name)
    for name in ("dpo/seed-0", "ppo/mine"):
        shutil.copytree(SHIPPED_POLICIES, folder / "artifacts" / name)
    log = [
        {"step": step, "loss": 0.69 / step, "rewards/margins": 0.1 * step} for step in range(1, 21)
    ]
    write_json(folder / "artifacts" / "dpo" / "seed-0" / "log.json", log)
    return folder


def run_all(page):
    page.evaluate(RUN_ALL)
    errors = page.locator("[data-mime-type='application/vnd.jupyter.error']")
    assert errors.count() == 0, errors.first.inner_text()


def text(page, name):
    return page.locator(f".compare-{name}").first.inner_text()


def wait_until_changed(page, name, before):
    page.wait_for_function(
        "([name, before]) => { const now = document.querySelector(`.compare-${name}`).innerText;"
        " return now !== before && !document.querySelector('.compare-answers').innerText.includes('thinking') }",
        arg=[name, before],
        timeout=PATIENCE,
    )
    return text(page, name)


def test_a_reader_compares_votes_loses_the_kernel_and_goes_on(folder, tmp_path):
    photo = tmp_path / "photo.jpg"
    noise(640, 480).save(photo)
    environment = {"VLM_ARTIFACTS": str(folder / "artifacts")}
    with jupyter_lab(folder, **environment) as address, chromium() as page:
        started = time.monotonic()
        open_notebook(page, address, f"notebooks/{NOTEBOOK}")
        running = time.monotonic()
        page.evaluate("() => { window.jupyterapp.commands.execute('notebook:run-all-cells') }")
        page.locator(".compare-answers").first.wait_for(timeout=PATIENCE)
        page.wait_for_function(
            "document.querySelector('.compare-answers').innerText.includes('truth')",
            timeout=PATIENCE,
        )
        with page.expect_file_chooser() as chooser:
            page.locator("button.compare-upload").first.click()
        chooser.value.set_files(photo)
        page.wait_for_function(
            "document.querySelector('.compare-answers').innerText.includes('not known for this image')",
            timeout=PATIENCE,
        )
        seconds = time.monotonic() - started
        print(
            f"\nfrom opening notebook 06 to both answers about an own photo: {seconds:.0f} s ({running - started:.0f} s to open)"
        )
        assert seconds < 120
        screenshot(page, "1_own_photo")
        run_all(page)  # returns when every cell has finished; the photo is still there
        assert "not known for this image" in text(page, "answers"), (
            "the upload did not survive running the cell again"
        )
        _compares(page)
        _votes(page)
        kill_kernel(address)
        open_notebook(page, address, f"notebooks/{NOTEBOOK}")
        run_all(page)
        assert page.locator(
            ".compare-temperature input, .compare-temperature .widget-readout"
        ).first.is_visible()
        assert "dpo/seed-0" not in text(page, "answers") and "ppo/mine" in text(page, "answers"), (
            "the choice came back"
        )
        progress = page.locator(".arena-progress").first
        progress.scroll_into_view_if_needed()
        assert "10 of" in progress.inner_text(), "votes were lost"
        assert "ppo" not in page.locator(".arena-standings").first.inner_text()
        page.get_by_role("button", name="Reveal").first.click()
        page.wait_for_function(
            "document.querySelector('.arena-standings').innerText.includes('dpo/seed-0')",
            timeout=PATIENCE,
        )
        screenshot(page, "6_revealed")
        for name in ("explorer", "playground", "dashboard"):
            page.locator(f".{name}").first.scroll_into_view_if_needed()
            time.sleep(1)
            screenshot(page, f"7_{name}")


def _compares(page):
    """By keyboard: another image; by mouse: other adapters; nothing jumps."""
    handle = page.locator(".compare-item .noUi-handle").first
    handle.scroll_into_view_if_needed()
    place = page.locator(".compare-answers").first.bounding_box()["y"]
    before = text(page, "answers")
    handle.press("ArrowRight")
    before = wait_until_changed(page, "answers", before)
    assert "truth" in before and "base" in before and "dpo/seed-0" in before
    assert page.locator(".compare-answers").first.bounding_box()["y"] == place, "the answers jumped"
    screenshot(page, "2_next_image")
    page.locator(".compare-names select").first.select_option(["base", "ppo/mine"])
    wait_until_changed(page, "answers", before)
    assert "ppo/mine" in text(page, "answers") and "dpo/seed-0" not in text(page, "answers")
    page.locator(".compare-marks select").first.select_option(LIKELIER_TOKENS)
    page.wait_for_function(
        "document.querySelector('.compare-answers span[title]') !== null", timeout=PATIENCE
    )
    screenshot(page, "3_tokens")
    before = text(page, "answers")
    number = page.locator(".compare-number .noUi-handle").first
    number.press("ArrowRight")
    several = wait_until_changed(page, "answers", before)
    assert several.count("best of 2 by heuristic") == 2 and "4 answers sampled in" in several
    screenshot(page, "3_best_of_2")
    number.press("ArrowLeft")
    assert wait_until_changed(page, "answers", several) == before
    page.locator(".compare-question input").first.fill("How many cars are there?")
    page.locator(".compare-question input").first.press("Enter")
    wait_until_changed(page, "answers", before)
    page.get_by_role("button", name="Keep this example").first.click()
    page.wait_for_function(
        "document.querySelector('.compare-message').innerText.includes('kept as')", timeout=PATIENCE
    )


def _votes(page):
    """Five by mouse and five by keys."""
    progress = page.locator(".arena-progress").first
    progress.scroll_into_view_if_needed()
    for number in range(10):
        time.sleep(0.5)  # slower than a double click
        if number % 2:
            page.keyboard.press("ab"[number % 4 // 2])
        else:
            page.locator("button.key-a:visible").last.click()
        page.wait_for_function(
            "n => document.querySelector('.arena-progress').innerText.includes(`${n} of`)",
            arg=number + 1,
            timeout=PATIENCE,
        )
    screenshot(page, "4_voted")


def test_the_report_can_be_read_on_a_phone_without_a_network(artifacts):
    section = Section("07_evaluate", "Evaluation")
    section.table(
        [
            ["policy", "metric", "a verdict of several words"],
            ["dpo/seed-0", "all counts right", "better " * 12],
        ]
    )
    section.add_share("dpo_exact", proportion(390, 400))
    section.conclude("Better. " * 20)
    figure, axis = plt.subplots(figsize=(12, 3))
    axis.plot([1, 2])
    page_path = (section.picture(figure, "a wide figure"), section.save())[1]
    with chromium(width=390, height=844) as page:
        asked = []
        page.on("request", lambda request: asked.append(request.url))
        page.goto(page_path.as_uri())
        assert [url for url in asked if not url.startswith(("file:", "data:"))] == []
        wide = page.evaluate(
            "document.documentElement.scrollWidth - document.documentElement.clientWidth"
        )
        assert wide <= 0, f"the page is {wide} pixels wider than a phone"
        assert page.evaluate("document.querySelector('figure img').naturalWidth") > 500
        assert page.evaluate("document.querySelector('figure img').clientWidth") <= 390
        screenshot(page, "8_report_on_a_phone")
