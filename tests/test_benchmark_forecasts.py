"""The benchmark of the forecasts, on the embedded model; its table."""

import pytest

from benchmarks import forecasts


@pytest.mark.slow(reason="a stage in a process of its own; test_fits.py checks the arithmetic")
def test_a_stage_is_weighed_and_timed_beside_its_forecast():
    figures = forecasts.measure_shape("tiny", ["dpo"])
    # the embedded model takes as much memory as Python with its libraries
    assert 0.75 < figures["tiny_dpo_gb_ratio"]["value"] < 1.25
    assert figures["tiny_dpo_seconds"]["value"] > 0
    *_, row = forecasts.table(figures).splitlines()
    assert row.startswith("| tiny | dpo |")
