"""The command line: a recipe file first, then flags over it, and what to do with it."""

from __future__ import annotations

import argparse
import dataclasses
import difflib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NoReturn, Protocol, get_type_hints

import yaml
from transformers import HfArgumentParser
from transformers.hf_argparser import DataClassType

from training.recipe import Recipe, RecipeError, check_recipe

RECIPES = Path(__file__).parent / "recipes"


@dataclass
class RunOptions:
    """Where the run goes, or what is evaluated instead of trained; not part of the recipe."""

    recipe: str = field(default="quickstart", metadata={"help": "a name in training/recipes, or a YAML file"})
    output_dir: str | None = field(
        default=None,
        metadata={"help": "run folder (default: runs/<recipe>), or where --evaluate and --compare_runs write"},
    )
    resume: bool = field(default=False, metadata={"help": "continue from the last complete checkpoint"})
    overwrite: bool = field(default=False, metadata={"help": "train anew in a folder that holds a run"})
    null_test: bool = field(
        default=False,
        metadata={"help": "run the recipe on noise and on shuffled labels; fails where it finds anything"},
    )
    plan: bool = field(
        default=False,
        metadata={"help": "train nothing: print the memory that the recipe needs, part by part, and which GPU has it"},
    )
    compare: list[str] = field(
        default_factory=list,
        metadata={
            "help": "a grid of runs: field=value,value … for any field of a recipe, and loss=bce,focal-uniform,focal-r2"
        },
    )
    compare_runs: list[str] = field(
        default_factory=list,
        metadata={"help": "train nothing: compare the test scores of these run folders by paired bootstrap"},
    )
    seeds: list[int] = field(default_factory=list, metadata={"help": "seeds of every setting of --compare"})
    co2_country: str | None = field(
        default=None,
        metadata={"help": "estimate emissions with codecarbon, by the electricity of this country (such as ITA)"},
    )
    evaluate: str | None = field(
        default=None, metadata={"help": "train nothing: score this package, Hub id or run folder on --data"}
    )
    data: str | None = field(default=None, metadata={"help": "labelled file to evaluate on: CSV, TSV, JSONL, Parquet"})
    mapping: str | None = field(
        default=None,
        metadata={"help": "from the model's labels to the file's: ekman, plutchik, sentiment or a YAML file"},
    )


class Train(Protocol):
    """Runs a recipe; see :func:`training.run.train`."""

    def __call__(self, recipe: Recipe, options: RunOptions, null_test: str | None = None) -> int:
        """Run."""
        ...


class _Parser(HfArgumentParser):
    """A parser that raises where argparse would exit, so that the message can name the file."""

    def error(self, message: str) -> NoReturn:
        raise RecipeError(message)


def _parser() -> _Parser:
    parser = _Parser(
        [DataClassType(Recipe), DataClassType(RunOptions)],
        description="Train a multi-label emotion classifier. A recipe sets every field below; flags override it.",
        epilog=f"Recipes that ship: {', '.join(sorted(path.stem for path in RECIPES.glob('*.yaml')))}.",
        allow_abbrev=False,
    )
    return parser


def _read_yaml(path: Path) -> list[str]:
    """The settings of a recipe file as flags."""
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8")) or {}
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise RecipeError(f"not YAML: {error}") from None
    if not isinstance(content, dict):
        raise RecipeError("a mapping key: value is expected")
    known = [item.name for item in dataclasses.fields(Recipe)]
    for key in content:
        if key not in known:
            close = difflib.get_close_matches(str(key), known, n=1)
            hint = f"did you mean {close[0]!r}? " if close else ""
            raise RecipeError(f"unknown key {key!r}; {hint}The keys are {', '.join(known)}")
    return _to_flags(content)


_ACCEPTED: dict[Any, tuple[tuple[type, ...], str]] = {
    int: ((int, str), "a whole number"),
    float: ((int, float, str), "a number"),
    bool: ((bool, str), "true or false"),
    str: ((str,), "text (quote what YAML would read as a number, a date or yes and no)"),
    str | None: ((str, type(None)), "text (quote what YAML would read as a number, a date or yes and no), or null"),
    list[str]: ((str,), "a list of texts (quote what YAML would read as a number, a date or yes and no)"),
}
"""The types of a setting's values in YAML, and what they are called; of a list those of its items."""


def _refuse_other_type(key: str, value: Any) -> None:
    """Refuse what would become another value as a flag's text, such as a list of one number for a number."""
    wanted = get_type_hints(Recipe).get(key)
    if wanted is None or (key == "alpha" and isinstance(value, dict)):
        return
    types, accepted = _ACCEPTED[wanted]
    items = value if isinstance(value, list) and wanted == list[str] else [value]
    if not all(isinstance(item, types) for item in items):
        raise RecipeError(f"{key}: {value!r} is of another type; accepted: {accepted}")


def _to_flags(content: Mapping[str, Any]) -> list[str]:
    flags: list[str] = []
    for key, value in content.items():
        _refuse_other_type(key, value)
        if value is None or value == []:
            continue
        values = value if isinstance(value, list) else [json.dumps(value) if isinstance(value, dict) else value]
        flags += [f"--{key}", *map(str, values)]
    return flags


def parse_recipe(argv: Sequence[str] | None = None) -> tuple[Recipe, RunOptions]:
    """The recipe named by ``--recipe``, with the other flags laid over it.

    Raises:
        RecipeError: unknown recipe or key, wrong type, or a value out of range.
    """
    parser = _parser()
    flags = list(argv or [])
    namespace, _ = _options_only().parse_known_args(flags)
    path = RECIPES / f"{namespace.recipe}.yaml"
    if not path.is_file():
        path = Path(namespace.recipe)
    if not path.is_file():
        names = ", ".join(sorted(file.stem for file in RECIPES.glob("*.yaml")))
        raise RecipeError(f"--recipe {namespace.recipe}: no such recipe or file; the recipes are {names}")
    if {"-h", "--help"} & set(flags):
        parser.print_help()
        raise SystemExit(0)
    try:
        settings = _read_yaml(path)
        file_recipe, _ = parser.parse_args_into_dataclasses(settings)
        check_recipe(file_recipe)
    except RecipeError as error:
        raise RecipeError(f"{path}: {error}") from None
    try:
        recipe, options = parser.parse_args_into_dataclasses([*settings, *flags])
    except ValueError as error:  # a flag that no field has
        raise RecipeError(f"{error} See --help") from None
    check_recipe(recipe)
    if recipe.data_dir and recipe.dataset not in ("files", "goemotions"):
        raise RecipeError(f"data_dir is not read by dataset {recipe.dataset!r}; use --dataset files or goemotions")
    things = (options.compare, options.compare_runs, options.null_test, options.evaluate, options.plan)
    if sum(map(bool, things)) > 1:
        raise RecipeError(
            "--compare, --compare_runs, --null_test, --evaluate and --plan are five things to do: give one of them"
        )
    if options.null_test and recipe.teachers:
        raise RecipeError("--null_test: teachers know what it takes away. Remedy: test the recipe without teachers")
    if options.output_dir and Path(options.output_dir).resolve() in {Path(name).resolve() for name in recipe.teachers}:
        raise RecipeError(f"teachers: {options.output_dir} is this run's own folder. Remedy: another --output_dir")
    if len(options.compare_runs) == 1:
        raise RecipeError("--compare_runs needs two run folders or more; the others are compared with the first")
    if options.seeds and not options.compare:
        raise RecipeError("--seeds belongs to --compare; the seed of one run is --seed")
    if options.evaluate and not options.data:
        raise RecipeError("--evaluate needs rows: add --data FILE, a labelled CSV, TSV, JSONL or Parquet file")
    if not options.evaluate and (options.data or options.mapping):
        raise RecipeError("--data and --mapping belong to --evaluate PACKAGE_OR_RUN; a training corpus is --data_dir")
    if not options.evaluate and not options.compare_runs:
        options.output_dir = options.output_dir or f"runs/{'compare-' if options.compare else ''}{path.stem}"
    return recipe, options


def override(recipe: Recipe, changes: Mapping[str, Any]) -> Recipe:
    """The recipe with some fields changed; a value may also be a flag's text.

    Raises:
        RecipeError: unknown field, wrong type, or a value out of range.
    """
    flags = _to_flags({**dataclasses.asdict(recipe), **changes})
    try:
        changed, _ = _parser().parse_args_into_dataclasses(flags)
    except ValueError as error:  # a flag that no field has
        raise RecipeError(f"{error} See --help") from None
    check_recipe(changed)
    return changed


def _options_only() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument("--recipe", default="quickstart")
    return parser
