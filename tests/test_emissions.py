"""Emissions of a run, if codecarbon is installed."""

from __future__ import annotations

import sys

import pytest

from training.fit.emissions import start_tracking, stop_tracking
from training.recipe import RecipeError


def test_emissions_of_a_real_clock() -> None:
    pytest.importorskip("codecarbon")
    assert stop_tracking(start_tracking(None)) is None
    with pytest.raises(RecipeError, match="no such country"):
        start_tracking("XXX")
    tracker = start_tracking("ITA")
    sum(range(10_000_000))
    found = stop_tracking(tracker)
    assert found is not None
    assert 0 < found["grams"] < 1 and found["location"] == "Italy" and found["source"].startswith("codecarbon ")


def test_emissions_need_their_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "codecarbon", None)
    with pytest.raises(RecipeError, match="pip install codecarbon"):
        start_tracking("ITA")
