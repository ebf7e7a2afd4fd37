"""Settings side by side: scores over the seeds, and their paired differences from the first setting."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import numpy as np
import pandas as pd

from modeling.recipe import CONTAMINATED, rows_of_step
from modeling.records import AUDIT, ENVIRONMENT, LOG_LOSSES, METRICS, PREDICTIONS, THRESHOLDS, TIMING
from training.run_folder import RunFolder
from training.scores.scoring import DRAWS, bootstrap, weighted_scores

_SAME_STEPS = 1.1
"""Settings with up to this many times the steps of another count as equally long."""


@dataclass(frozen=True)
class Cell:
    """One setting of the grid: its name, its overrides, and a run folder for each seed."""

    name: str
    overrides: dict[str, Any]
    runs: dict[int, RunFolder]


def summarize(cells: list[Cell]) -> pd.DataFrame:
    """One row for each cell: log loss and macro F1 over the seeds, and their paired differences from the first cell.

    Each run uses its own thresholds from validation (so the validation score is tuned on itself); the validation log
    loss is cross-fitted. Intervals are for the mean over the seeds, from 1,000 bootstrap samples of the rows, the same
    samples for every cell. A difference is paired by rows, and given only if both cells have the same labels.
    """
    first, first_references = _draws(cells[0], "test")
    first_losses, first_rows = _log_losses(cells[0])
    rows: list[dict[str, Any]] = []
    for cell in cells:
        metrics = [run.read(METRICS) for run in cell.runs.values()]
        test = np.array(macro_f1_of(cell, "test"))
        draws, references = _draws(cell, "test")
        validation = _interval(_draws(cell, "validation")[0])
        losses, losses_rows = _log_losses(cell)
        row = {
            "setting": cell.name,
            "seeds": len(test),
            "log_loss": np.nan if losses is None else losses.mean(),
            **_no_difference("log_loss_difference"),
            "validation": np.mean(macro_f1_of(cell, "validation")),
            "validation_low": validation[0],
            "validation_high": validation[1],
            "test": test.mean(),
            "test_sd": test.std(ddof=1) if len(test) > 1 else np.nan,
            **dict(zip(("test_low", "test_high"), _interval(draws), strict=True)),
            "test_at_0.5": np.mean([entry["test"]["fixed"]["macro_f1"] for entry in metrics]),
            "steps": np.mean([_steps(run) for run in cell.runs.values()]),
            "contaminated": any(entry["protocol"] == CONTAMINATED for entry in metrics),
            **_no_difference("difference"),
        }
        if rows and np.array_equal(references, first_references):
            row |= _with_interval("difference", test.mean() - rows[0]["test"], draws - first)
        if rows and losses is not None and first_losses is not None and np.array_equal(losses_rows, first_rows):
            paired = losses - first_losses
            drawn = bootstrap(len(paired), partial(_means, paired))
            row |= _with_interval("log_loss_difference", paired.mean(), drawn)
        rows.append(row)
    return pd.DataFrame(rows)


def _steps(run: RunFolder) -> float:
    """Optimizer steps of a run."""
    recipe, counted = run.read_recipe(), run.read(AUDIT)["training_rows"]
    size = rows_of_step(recipe, run.read(ENVIRONMENT)["processes"])
    return run.read(TIMING)["epochs"] * np.ceil((counted["real"] + counted["synthetic"]) / size)


def _log_losses(cell: Cell) -> tuple[np.ndarray | None, np.ndarray]:
    """Cross-fitted log loss of each validation row, averaged over the seeds, [N], and the rows' labels.

    The first is None if a run did not record it.
    """
    arrays = [run.read_arrays(PREDICTIONS) for run in cell.runs.values()]
    found = (
        np.mean([each[LOG_LOSSES] for each in arrays], axis=0) if all(LOG_LOSSES in each for each in arrays) else None
    )
    return found, arrays[0]["validation_references"]


def _no_difference(name: str) -> dict[str, float]:
    return dict.fromkeys((name, f"{name}_low", f"{name}_high"), np.nan)


def _with_interval(name: str, value: float, draws: np.ndarray) -> dict[str, float]:
    low, high = _interval(draws)
    return {name: float(value), f"{name}_low": low, f"{name}_high": high}


def macro_f1_of(cell: Cell, split: Literal["validation", "test"]) -> list[float]:
    """Macro F1 of each seed, with thresholds per label."""
    return [run.read(METRICS)[split]["per_label"]["macro_f1"] for run in cell.runs.values()]


def _interval(draws: np.ndarray) -> list[float]:
    return [float(value) for value in np.percentile(draws, [2.5, 97.5])]


def _means(values: np.ndarray, weights: np.ndarray) -> np.ndarray:
    return np.asarray(weights @ values / len(values))


def _draws(cell: Cell, split: str) -> tuple[np.ndarray, np.ndarray]:
    """Macro F1 of bootstrap samples, averaged over the seeds, [draws], and the labels of the split."""
    draws = []
    for run in cell.runs.values():
        arrays = run.read_arrays(PREDICTIONS)
        references = arrays[f"{split}_references"]
        own = np.array(list(run.read(THRESHOLDS)["per_label"].values()))
        predictions = arrays[f"{split}_probabilities"] >= arrays.get(f"{split}_thresholds", own)
        whole, _ = bootstrap(len(references), weighted_scores(predictions, references))
        draws.append(whole["macro_f1"])
    return np.mean(draws, axis=0), references


def to_markdown(table: pd.DataFrame) -> str:
    """The table as Markdown; a difference is bold if its interval excludes 0."""
    fewest, most = table["seeds"].min(), table["seeds"].max()
    seeds = f"{fewest}" if fewest == most else f"{fewest} to {most}"
    lines = [
        f"Cross-fitted log loss of validation, which decides, and macro F1, mean over {seeds} "
        f"{'seed' if most == 1 else 'seeds'}. Intervals come from {DRAWS:,} bootstrap samples of "
        "the rows with these seeds: they do not say how much other seeds would differ"
        + ("; the standard deviation (sd) over the seeds does." if most > 1 else ", and one seed cannot."),
        "",
        "| setting | seeds | validation log loss | against the first [95 %] | validation macro F1 [95 %] | "
        "test (sd) [95 %] | test at 0.5 | against the first [95 %] |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for row in table.to_dict("records"):
        spread = "" if np.isnan(row["test_sd"]) else f" ({row['test_sd']:.3f})"
        cells = [
            row["setting"] + (" (contaminated)" if row["contaminated"] else ""),
            str(row["seeds"]),
            "–" if np.isnan(row["log_loss"]) else f"{row['log_loss']:.4f}",
            _difference(row, "log_loss_difference", 4),
            f"{row['validation']:.3f} [{row['validation_low']:.3f}, {row['validation_high']:.3f}]",
            f"{row['test']:.3f}{spread} [{row['test_low']:.3f}, {row['test_high']:.3f}]",
            f"{row['test_at_0.5']:.3f}",
            _difference(row, "difference", 3),
        ]
        lines.append(f"| {' | '.join(cells)} |")
    if table["steps"].max() > _SAME_STEPS * table["steps"].min():
        each = ", ".join(f"{row['setting']}: {row['steps']:,.0f}" for row in table.to_dict("records"))
        lines += [
            "",
            f"The settings differ in optimizer steps ({each}), so part of a difference may come from these alone.",
        ]
    return "\n".join(lines) + "\n"


def _difference(row: dict[Any, Any], name: str, digits: int) -> str:
    value, low, high = row[name], row[f"{name}_low"], row[f"{name}_high"]
    if np.isnan(value):
        return "–"
    text = f"{value:+.{digits}f} [{low:+.{digits}f}, {high:+.{digits}f}]"
    return f"**{text}**" if low > 0 or high < 0 else text
