"""The forecast of a run, and passes that leave its trainer as it was."""

import pytest

from helpers.doctor import dry_run as forecast


def test_the_forecast_is_arithmetic(make, monkeypatch):
    """32 pairs, 4 × 2 a step: 4 steps of the first epoch and 6 later ones, each of two passes."""
    trainer = make(steps=10, accumulation=2)
    trainer.train_dataset = list(trainer.train_dataset) * 4
    passes = iter([3.0, 1.0])
    monkeypatch.setattr(forecast, "time_pass", lambda trainer, examples: next(passes))
    expected = forecast.forecast_run(trainer)
    assert (expected.first_epoch, expected.later) == (6.0, 2.0)
    assert expected.minutes == pytest.approx((4 * 6 + 6 * 2) / 60)
    assert "6.0 s a step in the first epoch, 2.0 s later, 0.6 minutes in all" in str(expected)


def test_the_forecast_measures_rows_that_were_not_seen(make, monkeypatch):
    """The first pass computes image features, the second finds them."""
    trainer = make()
    features, passes = trainer.data_collator.packer.features, []
    time_pass = forecast.time_pass

    def seconds(trainer, examples):
        passes.append(([example["place"] for example in examples], features.computed))
        return time_pass(trainer, examples)

    trainer.train_dataset = [
        {**row, "place": place} for place, row in enumerate(trainer.train_dataset)
    ]
    monkeypatch.setattr(forecast, "time_pass", seconds)
    with forecast.restoring_state(trainer):
        expected = forecast.forecast_run(trainer, seen_rows=[0, 2, 5])
    assert passes == [([1, 3, 4, 6], 0), ([1, 3, 4, 6], 4)] and features.computed == 4
    assert expected.peak_gb > 0.1 and expected.later > 0 and expected.minutes > 0


def test_trials_run_under_the_checkpointing_of_the_run(make):
    trainer = make(gradient_checkpointing=True)
    with forecast.training_mode(trainer):
        assert trainer.model.is_gradient_checkpointing and trainer.model.training
    assert not trainer.model.is_gradient_checkpointing and not trainer.model.training


def test_places_are_spread():
    assert forecast.evenly_spaced(32, 4) == [0, 8, 16, 24] and forecast.evenly_spaced(3, 8) == [
        0,
        1,
        2,
    ]
    assert forecast.evenly_spaced(10, 4) == [0, 2, 5, 7]
