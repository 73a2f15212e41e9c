"""What students bring goes through all notebooks, as it does through recipes (test_own_data)."""

import own_sets
import pytest
from ci import run_own

from helpers.files import read_json


@pytest.mark.heavy(reason="runs notebooks 02 to 07 in short")
def test_free_text_goes_through_all_notebooks(tmp_path):
    artifacts = run_own(tmp_path, own_sets.free_text(tmp_path / "set"))
    page = (artifacts / "report" / "index.html").read_text(encoding="utf-8")
    assert "No truth is known of these questions" in page and "circular" in page
    assert "traffic" not in page and "+nan" not in page
    figures = read_json(artifacts / "report" / "summary.json")
    assert not any(name.startswith("base_exact") for name in figures.get("figures", figures))


@pytest.mark.slow(reason="runs notebooks 02 to 07 in short on every set")
@pytest.mark.parametrize("name", [name for name in own_sets.SETS if name != "free_text"])
def test_every_set_goes_through_all_notebooks(tmp_path, name):
    artifacts = run_own(tmp_path, own_sets.SETS[name](tmp_path / "set"))
    page = (artifacts / "report" / "index.html").read_text(encoding="utf-8")
    assert "traffic" not in page and "+nan" not in page
