"""Which setting helps on these data? A grid of runs over recipe fields and seeds, in one table and one plot."""

from __future__ import annotations

import dataclasses
import itertools
import logging
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import yaml

from training.null_test import Train
from training.plots import plot_comparison
from training.recipe import Recipe, RecipeError, RunOptions, override
from training.run_folder import RunFolder
from training.scoring import bootstrap_weights, weighted_scores

logger = logging.getLogger(__name__)

LOSSES = {
    "bce": {"alpha": "uniform", "gamma": "0"},
    "focal-uniform": {"alpha": "uniform", "gamma": "2"},
    "focal-r2": {"alpha": "r2", "gamma": "2"},
}
"""Values of the axis ``loss``, which sets alpha and gamma together."""


@dataclasses.dataclass(frozen=True)
class Cell:
    """One setting of the grid: its name, its overrides, and a run folder for each seed."""

    name: str
    overrides: dict[str, str]
    runs: dict[int, RunFolder]


def compare(recipe: Recipe, options: RunOptions, train: Train) -> int:
    """Run the grid and write ``comparison.md``, ``.csv`` and ``.png``.

    A run that is there with the same settings is not run again, so a stopped comparison goes on where it was.

    Raises:
        RecipeError: an axis or a value that no recipe has.
    """
    folder = Path(str(options.output_dir))
    cells = build_cells(options.compare, options.seeds or [recipe.seed], folder)
    settings = {(cell.name, seed): _settings(recipe, cell, seed) for cell in cells for seed in cell.runs}
    todo = [
        (cell, seed) for cell in cells for seed in cell.runs if not _is_done(cell.runs[seed], settings[cell.name, seed])
    ]
    logger.info("%d of %d runs are to be made", len(todo), len(settings))
    for number, (cell, seed) in enumerate(todo, start=1):
        run = cell.runs[seed]
        code = train(
            settings[cell.name, seed],
            dataclasses.replace(options, output_dir=str(run.path), overwrite=True, resume=False),
        )
        if code:
            return code
        shutil.rmtree(run.checkpoints)
        logger.info("%d of %d: %s, seed %d is done", number, len(todo), cell.name, seed)
    table = summarise(cells)
    result = RunFolder(folder)
    result.write_text("comparison.csv", table.round(4).to_csv(index=False))
    result.write_text("comparison.md", to_markdown(table))
    with result.replacing("comparison.png") as path:
        plot_comparison(path, table, {cell.name: list(_test_scores(cell).values()) for cell in cells})
    logger.info("%s\nthe comparison is in %s", to_markdown(table), folder)
    return 0


def build_cells(axes: list[str], seeds: list[int], folder: Path) -> list[Cell]:
    """The grid of ``field=value,value`` axes.

    Raises:
        RecipeError: an axis that is not of this form, or an unknown loss.
    """
    values: dict[str, list[str]] = {}
    for axis in axes:
        field, _, listed = axis.partition("=")
        values[field] = [value for value in listed.split(",") if value]
        if not values[field]:
            raise RecipeError(f"--compare {axis}: write field=value,value, such as balance=none,smote")
        unknown = sorted(set(values[field]) - set(LOSSES)) if field == "loss" else []
        if unknown:
            raise RecipeError(f"--compare {axis}: unknown loss {', '.join(unknown)}; accepted: {', '.join(LOSSES)}")
    cells = []
    for choice in itertools.product(*values.values()):
        chosen = dict(zip(values, choice, strict=True))
        name = ", ".join(f"{field} {value}" for field, value in chosen.items())
        place = folder / "_".join(f"{field}={value}".replace("/", "-") for field, value in chosen.items())
        overrides = {**chosen, **LOSSES[chosen["loss"]]} if "loss" in chosen else chosen
        overrides.pop("loss", None)
        cells.append(Cell(name, overrides, {seed: RunFolder(place / f"seed-{seed}") for seed in seeds}))
    return cells


def _settings(recipe: Recipe, cell: Cell, seed: int) -> Recipe:
    return override(recipe, {**cell.overrides, "seed": str(seed)})


def _is_done(run: RunFolder, recipe: Recipe) -> bool:
    if not (run.path / "timing.json").is_file():  # the last file of a finished run
        return False
    stored = yaml.safe_load((run.path / "recipe.yaml").read_text(encoding="utf-8"))
    return bool(stored == dataclasses.asdict(recipe))


def _test_scores(cell: Cell) -> dict[int, float]:
    return {seed: run.read_json("metrics.json")["test"]["per_label"]["macro_f1"] for seed, run in cell.runs.items()}


def summarise(cells: list[Cell]) -> pd.DataFrame:
    """One row for each cell: macro F1 over the seeds, and the paired difference to the first cell.

    Thresholds are each run's own, from validation. Intervals are of 1,000 bootstrap samples of the test rows, the
    same rows for every cell, of the mean over the seeds; a difference is paired by rows.
    """
    first_draws, first_references = _draws(cells[0])
    rows: list[dict[str, Any]] = []
    for cell in cells:
        metrics = [run.read_json("metrics.json") for run in cell.runs.values()]
        test = np.array([entry["test"]["per_label"]["macro_f1"] for entry in metrics])
        draws, references = _draws(cell)
        low, high = np.percentile(draws, [2.5, 97.5])
        row = {
            "setting": cell.name,
            "seeds": len(test),
            "validation": np.mean([entry["validation"]["per_label"]["macro_f1"] for entry in metrics]),
            "test": test.mean(),
            "test_sd": test.std(ddof=1) if len(test) > 1 else np.nan,
            "test_low": low,
            "test_high": high,
            "test_at_0.5": np.mean([entry["test"]["fixed"]["macro_f1"] for entry in metrics]),
            "contaminated": any(entry["protocol"] == "pooled-r2" for entry in metrics),
        }
        if cell is not cells[0] and np.array_equal(references, first_references):
            difference = draws - first_draws
            row["difference"] = test.mean() - rows[0]["test"]
            row["difference_low"], row["difference_high"] = np.percentile(difference, [2.5, 97.5])
        rows.append(row)
    return pd.DataFrame(rows)


def _draws(cell: Cell) -> tuple[np.ndarray, np.ndarray]:
    """Macro F1 of bootstrap samples, the mean over the seeds, [draws]; and the test labels."""
    draws = []
    for run in cell.runs.values():
        arrays = run.read_arrays("predictions.npz")
        references = arrays["test_references"]
        own = run.read_json("thresholds.json")["per_label"]
        predictions = arrays["test_probabilities"] >= np.array(list(own.values()))
        whole, _ = weighted_scores(predictions, references, bootstrap_weights(len(references)))
        draws.append(whole["macro_f1"])
    return np.mean(draws, axis=0), references


def to_markdown(table: pd.DataFrame) -> str:
    """The table for people; a difference whose interval leaves out 0 is bold."""
    lines = [
        "| setting | seeds | validation | test (sd) [95 %] | test at 0.5 | against the first [95 %] |",
        "|---|---|---|---|---|---|",
    ]
    for row in table.to_dict("records"):
        difference = "–"
        if not np.isnan(row.get("difference", np.nan)):
            low, high = row["difference_low"], row["difference_high"]
            difference = f"{row['difference']:+.3f} [{low:+.3f}, {high:+.3f}]"
            difference = f"**{difference}**" if low > 0 or high < 0 else difference
        spread = "" if np.isnan(row["test_sd"]) else f" ({row['test_sd']:.3f})"
        name = row["setting"] + (" (contaminated)" if row["contaminated"] else "")
        test = f"{row['test']:.3f}{spread} [{row['test_low']:.3f}, {row['test_high']:.3f}]"
        cells = [name, str(row["seeds"]), f"{row['validation']:.3f}", test, f"{row['test_at_0.5']:.3f}", difference]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"
