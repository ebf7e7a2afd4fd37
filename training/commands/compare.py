"""Which setting helps on these data? A grid of runs over recipe fields and seeds, in one table and one plot."""

from __future__ import annotations

import dataclasses
import hashlib
import itertools
import re
import sys
from pathlib import Path
from typing import Any

import torch
import yaml
from accelerate import PartialState

from modeling.recipe import CONTAMINATED, Recipe
from modeling.records import AUDIT, PREDICTIONS, RECIPE, TIMING
from training.commands.train import hash_inputs, train
from training.commands.verbs import CompareOptions, CompareRunsOptions, TrainOptions
from training.corpora import Corpora
from training.options import override
from training.recipe import RecipeError
from training.run_folder import RunFolder
from training.scores.comparison import Cell, macro_f1_of, summarize, to_markdown
from training.scores.plots import plot_comparison

LOSSES = {
    "bce": {"alpha": "uniform", "gamma": "0"},
    "focal-uniform": {"alpha": "uniform", "gamma": "2"},
    "focal-r2": {"alpha": "r2", "gamma": "2"},
}
"""Values of the axis ``loss``, which sets alpha and gamma together."""

_LONGEST_NAME = 120


def compare(recipe: Recipe, options: CompareOptions) -> int:
    """Run the grid and write ``comparison.md``, ``.csv`` and ``.png``.

    A finished run with the same settings and rows is not run again, so a stopped comparison continues where it stopped;
    ``--overwrite`` runs everything again.

    Raises:
        RecipeError: an axis or a value that is not valid in a recipe; or a finished run with other settings or rows.
    """
    _refuse_several_processes()
    folder, corpora = Path(str(options.output_dir)), Corpora()
    cells = build_cells(options.axes, options.seeds or [recipe.seed], folder)
    settings = {(cell.name, seed): _settings(recipe, cell, seed) for cell in cells for seed in cell.runs}
    _refuse_other_test_rows(cells, settings)
    # All before the first run: an input may be missing.
    inputs = {key: hash_inputs(setting, corpora) for key, setting in settings.items()}
    with RunFolder(folder).locked():
        todo = [
            (cell, seed)
            for cell in cells
            for seed in cell.runs
            if options.overwrite or not _is_done(cell.runs[seed], settings[cell.name, seed], inputs[cell.name, seed])
        ]
        other = [str(cell.runs[seed].path) for cell, seed in todo if cell.runs[seed].is_finished]
        if other and not options.overwrite:
            raise RecipeError(
                f"compare: finished with other settings or rows: {', '.join(other)}. Remedy: remove "
                f"{'it' if len(other) == 1 else 'them'} to train again, run everything again with --overwrite, or use "
                "another --output_dir"
            )
        sys.stdout.write(f"{len(todo)} of {len(settings)} runs to do\n")
        for number, (cell, seed) in enumerate(todo, start=1):
            of_run = TrainOptions(options.recipe, options.co2_country, str(cell.runs[seed].path), overwrite=True)
            train(settings[cell.name, seed], dataclasses.replace(of_run, remove_checkpoints=True), corpora)
            sys.stdout.write(f"{number} of {len(todo)} done: {cell.name}, seed {seed}\n")
        _report(cells, folder)
    return 0


def _refuse_other_test_rows(cells: list[Cell], settings: dict[tuple[str, int], Recipe]) -> None:
    """The seeds of a setting are averaged row by row, so they must be tested on the same rows."""
    for cell in cells:
        pooled = [settings[cell.name, seed] for seed in cell.runs if settings[cell.name, seed].split == CONTAMINATED]
        if len(pooled) > 1 and pooled[0].neutral_keep != 1:
            raise RecipeError(
                f"compare: with split {CONTAMINATED} and neutral_keep {pooled[0].neutral_keep:g}, each seed is tested on "
                "other rows, which cannot be averaged. Remedy: give one seed, or neutral_keep 1"
            )


def _refuse_several_processes() -> None:
    if PartialState(cpu=not torch.cuda.is_available()).num_processes > 1:
        raise RecipeError("a grid is many single-process runs. Remedy: launch one process")


def compare_runs(options: CompareRunsOptions) -> int:
    """Compare existing runs by paired bootstrap and print the table; write it if an output folder is given.

    The runs of a folder with one run per seed (``seed-0``, …) are averaged.

    Raises:
        RecipeError: a run is not finished, or was not tested on the same rows as the first.
    """
    _refuse_several_processes()
    output = Path(options.output_dir) if options.output_dir else None
    cells = [Cell(folder, {}, dict(enumerate(_finished_runs(Path(folder))))) for folder in options.runs]
    tested = {run.path: describe_rows(run, "test") for cell in cells for run in cell.runs.values()}
    first = next(iter(tested))
    for path, split in tested.items():
        if split != tested[first]:
            raise RecipeError(
                f"compare-runs: {path} was tested on other rows or labels than {first}, so rows cannot be paired. "
                "Remedy: train both with the same data, split, split seed and labels"
            )
    _report(cells, output)
    return 0


def _finished_runs(folder: Path) -> list[RunFolder]:
    runs = [folder] if (folder / RECIPE).is_file() else sorted(folder.glob("seed-*"))
    for run in runs or [folder]:
        if not (run / TIMING).is_file():  # written last
            raise RecipeError(
                f"compare-runs: {run} is not a finished run. Remedy: train it to the end, or name another folder"
            )
    return [RunFolder(run) for run in runs]


def describe_rows(run: RunFolder, split: str) -> tuple[list[str], str, bytes]:
    """Labels, hash of the rows and references of a split, to compare with another run's."""
    audit, arrays = run.read(AUDIT), run.read_arrays(PREDICTIONS)
    return audit["labels"], audit["splits"][split]["sha256"], arrays[f"{split}_references"].tobytes()


def _report(cells: list[Cell], folder: Path | None) -> None:
    """Print the table, and write table and plot into ``folder`` if given."""
    table = summarize(cells)
    sys.stdout.write(to_markdown(table))
    if folder is None:
        return
    folder.mkdir(parents=True, exist_ok=True)
    result = RunFolder(folder)
    result.write_text("comparison.csv", table.round(5).to_csv(index=False))
    result.write_text("comparison.md", to_markdown(table))
    with result.replacing("comparison.png") as path:
        plot_comparison(path, table, {cell.name: macro_f1_of(cell, "test") for cell in cells})
    sys.stdout.write(f"the comparison is in {folder}\n")


def build_cells(axes: list[str], seeds: list[int], folder: Path) -> list[Cell]:
    """The grid of ``field=value,value`` axes; a list or a mapping as a value goes in brackets, as in YAML.

    Raises:
        RecipeError: an axis is malformed, is given twice, or sets what another one sets; a value is given twice; or two
            settings would share a folder.
    """
    values: dict[str, list[Any]] = {}
    for axis in axes:
        field, chosen = _parse_axis(axis)
        if field in values:
            raise RecipeError(f"compare {axis}: {field} is given twice. Remedy: list all its values in one axis")
        twice = [value for index, value in enumerate(chosen) if value in chosen[:index]]
        if twice:
            raise RecipeError(f"compare {axis}: {field} {twice[0]} is given twice. Remedy: list each value once")
        values[field] = chosen
    if "loss" in values and {"alpha", "gamma"} & set(values):
        raise RecipeError("compare: loss sets alpha and gamma. Remedy: give either loss, or alpha and gamma")
    cells: list[Cell] = []
    for choice in itertools.product(*values.values()):
        settings = dict(zip(values, choice, strict=True))
        name = ", ".join(f"{field} {value}" for field, value in settings.items())
        place = folder / _shorten(
            "_".join(re.sub(r"[^\w.=+-]+", "-", f"{f}={v}").strip("-") for f, v in settings.items())
        )
        clash = next((cell.name for cell in cells if place in {run.path.parent for run in cell.runs.values()}), None)
        if clash:
            raise RecipeError(
                f"compare: {clash!r} and {name!r} would share the folder {place}. Remedy: compare them with two "
                "commands, each with its own --output_dir"
            )
        overrides = settings | LOSSES[settings["loss"]] if "loss" in settings else settings
        overrides.pop("loss", None)
        cells.append(Cell(name, overrides, {seed: RunFolder(place / f"seed-{seed}") for seed in seeds}))
    return cells


def _shorten(name: str) -> str:
    """A folder name that file systems accept: a longer one is cut and gets a hash of the whole name."""
    if len(name) <= _LONGEST_NAME:
        return name
    return f"{name[:_LONGEST_NAME]}-{hashlib.sha256(name.encode()).hexdigest()[:8]}"


def _parse_axis(axis: str) -> tuple[str, list[Any]]:
    field, _, listed = axis.partition("=")
    try:
        values = yaml.safe_load(f"[{listed}]")
    except yaml.YAMLError:
        values = []
    if not values:
        raise RecipeError(f"compare {axis}: not an axis. Remedy: write field=value,value, such as balance=none,smote")
    if field == "seed":
        raise RecipeError(
            f"compare {axis}: seed is not an axis. Remedy: give the seeds of every setting as --seeds 0 1 2"
        )
    unknown = sorted({str(value) for value in values} - set(LOSSES)) if field == "loss" else []
    if unknown:
        raise RecipeError(f"compare {axis}: unknown loss {', '.join(unknown)}. Remedy: use {', '.join(LOSSES)}")
    return field, values


def _settings(recipe: Recipe, cell: Cell, seed: int) -> Recipe:
    return override(recipe, {**cell.overrides, "seed": seed})


def _is_done(run: RunFolder, recipe: Recipe, inputs: dict[str, str]) -> bool:
    if not (run.path / TIMING).is_file():  # written last
        return False
    stored = yaml.safe_load((run.path / RECIPE).read_text(encoding="utf-8"))
    # A field that the run's version did not have was at its default.
    return dataclasses.asdict(Recipe()) | stored == dataclasses.asdict(recipe) and run.inputs_sha256() == inputs
