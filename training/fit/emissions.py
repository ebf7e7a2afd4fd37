"""Emissions of a run, estimated by codecarbon if the user names the country whose electricity it uses."""

from __future__ import annotations

import importlib
import importlib.metadata
from typing import Any

from modeling.records import Emissions
from training.recipe import RecipeError


def start_tracking(country: str | None) -> Any:
    """A running codecarbon tracker that needs no network, or None without a country.

    Args:
        country: ISO 3166-1 alpha-3 code, such as ITA.

    Raises:
        RecipeError: codecarbon is not installed, or there is no such country (codecarbon would use the mean of all).
    """
    if country is None:
        return None
    try:
        codecarbon, pycountry = importlib.import_module("codecarbon"), importlib.import_module("pycountry")
    except ImportError as error:
        raise RecipeError(f"--co2_country needs codecarbon ({error}). Remedy: pip install codecarbon") from error
    if pycountry.countries.get(alpha_3=country) is None:
        raise RecipeError(f"--co2_country {country}: no such country. Remedy: use a three-letter code such as ITA")
    tracker = codecarbon.OfflineEmissionsTracker(country_iso_code=country, save_to_file=False, log_level="error")
    tracker.start()
    return tracker


def stop_tracking(tracker: Any) -> Emissions | None:
    """Grams of CO2 equivalent, source and country; None without a tracker."""
    if tracker is None:
        return None
    kilograms = tracker.stop()
    source = f"codecarbon {importlib.metadata.version('codecarbon')}"
    return {"grams": kilograms * 1e3, "source": source, "location": tracker.final_emissions_data.country_name}
