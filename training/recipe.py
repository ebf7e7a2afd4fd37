"""Check recipes and read recipe files."""

from __future__ import annotations

import difflib
import importlib.util
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from types import UnionType
from typing import Any, get_args, get_origin, get_type_hints

import yaml

from modeling.infer import ENCODERS
from modeling.infer.settings import Number
from modeling.recipe import CONTAMINATED, CROSS_FIT, FIELDS, WHOLE_ROW_METHODS, Recipe
from modeling.rows.errors import InputError


class RecipeError(InputError, ValueError):
    """A bad recipe or flag; the message names the key, its place and the remedy."""


def check_recipe(recipe: Recipe) -> None:
    """Refuse out-of-range values and settings that conflict.

    Raises:
        RecipeError: the message names the field, its value and the remedy.
    """
    if recipe.input != "embedding" and recipe.balance not in WHOLE_ROW_METHODS:
        raise RecipeError(
            f"balance: {recipe.balance} makes rows between embeddings, which have no words to read. Remedy: with input "
            f"{recipe.input}, use one of {', '.join(WHOLE_ROW_METHODS)}"
        )
    _check_input(recipe)
    _check_teachers(recipe)
    if recipe.leave_out and recipe.split == CONTAMINATED:
        raise RecipeError(f"leave_out: split {CONTAMINATED} has no training rows yet. Remedy: use another split")
    if recipe.split == CROSS_FIT and recipe.audit_policy == "drop-from-train":
        raise RecipeError(
            "audit_policy: with split cross-fit every row is trained on; copies share a fold. Remedy: use report or fail"
        )
    if recipe.split == CROSS_FIT and recipe.early_stopping_patience:
        raise RecipeError(
            "early_stopping_patience: split cross-fit has no rows to stop on. Remedy: use early_stopping_patience 0"
        )
    if recipe.start_from and (recipe.head == "mlp" or recipe.loader == "unsloth"):
        raise RecipeError(
            "start_from: only head backbone with loader transformers starts from a model. Remedy: use these, or leave "
            "start_from out"
        )
    whole = recipe.prefix != "none" or not recipe.one_token
    if recipe.loader == "unsloth" and not (recipe.quantization == "nf4" and recipe.head == "backbone" and whole):
        raise RecipeError(
            "loader: unsloth only loads a whole backbone in nf4. Remedy: use quantization nf4, head backbone and "
            "one_token false, or loader transformers"
        )
    if recipe.head == "mlp" and recipe.quantization != "none":
        raise RecipeError(
            "quantization: head mlp has no backbone to quantize. Remedy: use quantization none or head backbone"
        )
    if recipe.torch_compile and (recipe.loader, recipe.quantization, recipe.head) != (
        "transformers",
        "none",
        "backbone",
    ):
        raise RecipeError(
            "torch_compile: only a full-precision backbone loaded by transformers can be compiled. Remedy: use "
            "torch_compile false, or head backbone, quantization none and loader transformers"
        )
    if recipe.encoder not in ENCODERS and not recipe.encoder.startswith("sentence-transformers/"):
        raise RecipeError(
            f"encoder: {recipe.encoder!r} is unknown. Remedy: choose {', '.join(ENCODERS)} or sentence-transformers/<model>"
        )
    from transformers.training_args import OptimizerNames  # imports torch, which --help does not need

    if recipe.optim not in set(OptimizerNames):
        raise RecipeError(f"optim: {recipe.optim!r} is unknown. Remedy: use {', '.join(OptimizerNames)}")
    if recipe.report_to != "none" and importlib.util.find_spec(recipe.report_to) is None:
        raise RecipeError(f"report_to: {recipe.report_to} is not installed. Remedy: pip install {recipe.report_to}")
    if recipe.alpha.startswith("{"):
        _check_alpha(recipe.alpha)
    for name, field in FIELDS.items():
        try:
            field.metadata["validator"](getattr(recipe, name))
        except ValueError as error:
            raise RecipeError(f"{name}: {error}") from None


def _check_input(recipe: Recipe) -> None:
    words = recipe.input != "embedding"
    if words and recipe.head == "mlp":
        raise RecipeError("head: mlp has no backbone to read words. Remedy: use head backbone or input embedding")
    if words and recipe.loader == "unsloth":
        raise RecipeError(
            "loader: unsloth is called as in the reference, for one token. Remedy: use loader transformers"
        )
    if not words and (recipe.pooling, recipe.attention) != ("last", "causal"):
        raise RecipeError(
            "pooling and attention apply only to words. Remedy: use input tokens or hybrid, or leave them out"
        )
    if recipe.window_overlap >= recipe.window_length:
        raise RecipeError(
            f"window_overlap: {recipe.window_overlap} leaves nothing new in a window of window_length "
            f"{recipe.window_length}. Remedy: use a smaller window_overlap or a larger window_length"
        )


def _check_teachers(recipe: Recipe) -> None:
    if not recipe.teachers:
        return
    if recipe.balance not in WHOLE_ROW_METHODS:
        raise RecipeError(
            f"teachers: balance {recipe.balance} makes rows between embeddings, which have no text for a teacher to "
            f"read. Remedy: use balance {' or '.join(WHOLE_ROW_METHODS)}"
        )
    if recipe.split == CROSS_FIT:
        raise RecipeError(
            "teachers: with split cross-fit, a teacher knows the rows of every fold. Remedy: use split stratified"
        )
    twice = [teacher for index, teacher in enumerate(recipe.teachers) if teacher in recipe.teachers[:index]]
    if twice:
        raise RecipeError(f"teachers: {twice[0]} is given twice. Remedy: name each teacher once")
    if recipe.gamma or recipe.alpha != "uniform":
        raise RecipeError(
            "teachers: the focal loss is not made for their targets, which are between 0 and 1. Remedy: use gamma 0 "
            "and alpha uniform"
        )


def _check_alpha(alpha: str) -> None:
    try:
        values = json.loads(alpha)
    except json.JSONDecodeError as error:
        raise RecipeError(
            f'alpha: {alpha!r} is not JSON ({error}). Remedy: use a preset, or a JSON mapping such as {{"joy": 0.75}}'
        ) from None
    for label, value in values.items():
        if isinstance(value, bool) or not isinstance(value, (int, float)):
            raise RecipeError(f"alpha: {label}: {value!r} is not a number. Remedy: use a number from 0 to 1")


# Files


def suggest(name: str, known: Iterable[str]) -> str:
    """``Did you mean 'epochs'? `` for a name that is close to a known one, else empty."""
    close = difflib.get_close_matches(name, list(known), n=1)
    return f"Did you mean {close[0]!r}? " if close else ""


def plain_type(hint: Any) -> Any:
    """The type that the command line takes."""
    return float if hint == Number else hint


def read_recipe_file(path: Path) -> list[str]:
    """The settings of a recipe file as flags.

    Raises:
        RecipeError: not YAML, an unknown key, or a value of the wrong type.
    """
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8")) or {}
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise RecipeError(f"not YAML: {error}\nRemedy: correct that place, and save the file as UTF-8") from None
    if not isinstance(content, dict):
        raise RecipeError(
            f"expected a mapping key: value, got {content!r:.80}. Remedy: write settings such as epochs: 3, one a line"
        )
    for key in content:
        if key not in FIELDS:
            raise RecipeError(f"unknown key {key!r}. {suggest(str(key), FIELDS)}Remedy: use one of {', '.join(FIELDS)}")
    return to_flags(content)


_QUOTE = "(quote anything that YAML would read as a number, a date, yes or no)"
_ACCEPTED: dict[Any, tuple[tuple[type, ...], str]] = {
    int: ((int, str), "a whole number"),
    float: ((int, float, str), "a number"),
    bool: ((bool, str), "true or false"),
    str: ((str,), f"text {_QUOTE}"),
    str | None: ((str, type(None)), f"text {_QUOTE}, or null"),
    list[str]: ((str,), f"a list of texts {_QUOTE}"),
}
"""The types that a setting's values may have in YAML, and their names; for a list, the types of its items."""


_HINTS = get_type_hints(Recipe)


def _refuse_other_type(key: str, value: Any) -> None:
    """Refuse a value that would change when written as a flag, such as a list of one number for a number."""
    hint = _HINTS.get(key)
    if hint is None or (key == "alpha" and isinstance(value, dict)):
        return
    wanted = plain_type(hint)
    types, accepted = _ACCEPTED[
        str if get_args(wanted) and not isinstance(wanted, UnionType) and get_origin(wanted) is not list else wanted
    ]
    items = value if isinstance(value, list) and wanted == list[str] else [value]
    if not all(isinstance(item, types) for item in items):
        raise RecipeError(f"{key}: {value!r} has the wrong type. Remedy: write {accepted}")


def to_flags(content: Mapping[str, Any]) -> list[str]:
    """Settings as flags.

    Raises:
        RecipeError: a value of the wrong type.
    """
    flags: list[str] = []
    for key, value in content.items():
        _refuse_other_type(key, value)
        if value is None or value == []:
            continue
        values = value if isinstance(value, list) else [json.dumps(value) if isinstance(value, dict) else value]
        flags += [f"--{key}", *map(str, values)]
    return flags
