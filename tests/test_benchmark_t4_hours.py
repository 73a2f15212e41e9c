"""Hours of a T4 by arithmetic."""

import pytest

from benchmarks import t4_hours
from helpers.models import shapes_of


def test_speed_of_a_layer_by_hand():
    shapes = shapes_of("qwen2-vl-2b")
    speed = t4_hours.speed_of(shapes, t4_hours.Shares(0.5, 0.1, 0.5, 1e-3))
    # 28 layers of queries and outputs 1536², keys and values 1536 × 256, three of 1536 × 8960
    weights = 2 * 1536 * 1536 + 2 * 1536 * 256 + 3 * 1536 * 8960
    assert speed.forward.token == pytest.approx(2 * weights / 32.5e12)
    assert speed.training.token == pytest.approx(2 * speed.forward.token)
    assert speed.pair == pytest.approx(4 * 1536 / 6.5e12)
    assert speed.bytes == 160e9


def test_each_preset_of_a_t4_is_done_in_two_hours():
    """Even by shares that are not kind to the card, for the default model."""
    for name, settings in t4_hours.stages().items():
        least, most = t4_hours.hours("qwen2-vl-2b", settings)
        assert 0 < least < most <= 2, name


def test_table_has_a_row_for_each_preset():
    rows = t4_hours.table().splitlines()
    assert len(rows) == 2 + len(t4_hours.stages())
    assert rows[0].count("|") == 2 + len(t4_hours.MODELS)
