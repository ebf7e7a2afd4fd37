"""Which recipes make sense, and how a recipe file is read."""

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
from modeling.infer.settings import Number, describe_range
from modeling.recipe import FIELDS, WHOLE_ROW_METHODS, Recipe
from training.errors import TrainingError


class RecipeError(TrainingError, ValueError):
    """A bad recipe or flag; the message names the key, where it stands and the accepted values."""


def check_recipe(recipe: Recipe) -> None:
    """Refuse values out of range and settings that do not go together.

    Raises:
        RecipeError: the message names the field and the accepted values.
    """
    if recipe.input != "embedding" and recipe.balance not in WHOLE_ROW_METHODS:
        raise RecipeError(
            f"balance: {recipe.balance} makes rows between embeddings, which have no words to read. Remedy: with input "
            f"{recipe.input} use one of {', '.join(WHOLE_ROW_METHODS)}"
        )
    _check_input(recipe)
    _check_teachers(recipe)
    whole = recipe.prefix != "none" or not recipe.one_token
    if recipe.loader == "unsloth" and not (recipe.quantization == "nf4" and recipe.head == "backbone" and whole):
        raise RecipeError(
            "loader: unsloth loads a whole backbone in nf4. Remedy: quantization nf4, head backbone and one_token false, "
            "or loader transformers"
        )
    if recipe.head == "mlp" and recipe.quantization != "none":
        raise RecipeError(
            "quantization: head mlp has no backbone to quantise. Remedy: quantization none, or head backbone"
        )
    if recipe.torch_compile and (recipe.loader, recipe.quantization, recipe.head) != (
        "transformers",
        "none",
        "backbone",
    ):
        raise RecipeError(
            "torch_compile: what is compiled is a backbone in full precision, loaded by transformers. Remedy: "
            "torch_compile false, or head backbone, quantization none and loader transformers"
        )
    if recipe.encoder not in ENCODERS and not recipe.encoder.startswith("sentence-transformers/"):
        accepted = f"{', '.join(ENCODERS)} or sentence-transformers/<model>"
        raise RecipeError(f"encoder: {recipe.encoder!r} is unknown; accepted: {accepted}")
    from transformers.training_args import OptimizerNames  # imports torch, which --help does without

    if recipe.optim not in set(OptimizerNames):
        raise RecipeError(f"optim: {recipe.optim!r} is unknown; accepted: {', '.join(OptimizerNames)}")
    if recipe.report_to != "none" and importlib.util.find_spec(recipe.report_to) is None:
        raise RecipeError(f"report_to: {recipe.report_to} is not installed. Remedy: pip install {recipe.report_to}")
    if recipe.alpha.startswith("{"):
        _check_alpha(recipe.alpha)
    for name, field in FIELDS.items():
        low, high = field.metadata["range"]
        value = getattr(recipe, name)
        if (low is not None and not low <= value) or (high is not None and not value <= high):
            raise RecipeError(f"{name}: {value} is out of range; accepted: {describe_range(low, high)}")


def _check_input(recipe: Recipe) -> None:
    words = recipe.input != "embedding"
    if words and recipe.head == "mlp":
        raise RecipeError("head: mlp has no backbone to read words. Remedy: head backbone, or input embedding")
    if words and recipe.loader == "unsloth":
        raise RecipeError(
            "loader: unsloth is called as the reference calls it, for one token. Remedy: loader transformers"
        )
    if not words and (recipe.pooling, recipe.attention) != ("last", "causal"):
        raise RecipeError("pooling and attention are of words. Remedy: input tokens or hybrid, or leave them out")
    if recipe.window_overlap >= recipe.window_length:
        raise RecipeError(
            f"window_overlap: {recipe.window_overlap} leaves nothing new to a window of window_length {recipe.window_length}; "
            f"accepted: 0 to {recipe.window_length - 1}"
        )


def _check_teachers(recipe: Recipe) -> None:
    if not recipe.teachers:
        return
    if recipe.balance not in WHOLE_ROW_METHODS:
        raise RecipeError(
            f"teachers: balance {recipe.balance} makes rows between embeddings, which have no text for a teacher to read. "
            f"Remedy: balance {' or '.join(WHOLE_ROW_METHODS)}"
        )
    twice = [teacher for index, teacher in enumerate(recipe.teachers) if teacher in recipe.teachers[:index]]
    if twice:
        raise RecipeError(f"teachers: {twice[0]} is given twice. Remedy: name each teacher once")
    if recipe.gamma or recipe.alpha != "uniform":
        raise RecipeError(
            "teachers: what they say lies between 0 and 1, for which the focal loss is not made. Remedy: gamma 0 and alpha "
            "uniform"
        )


def _check_alpha(alpha: str) -> None:
    try:
        values = json.loads(alpha)
    except json.JSONDecodeError as error:
        raise RecipeError(f"alpha: {alpha!r} is not JSON ({error}); accepted: a preset, or label: value") from None
    for label, value in values.items():
        if isinstance(value, bool) or not isinstance(value, (int, float)):
            raise RecipeError(f"alpha: {label}: {value!r} is not a number from 0 to 1")


# Files


def suggest(name: str, known: Iterable[str]) -> str:
    """``did you mean 'epochs'? `` for a name that is close to a known one, else nothing."""
    close = difflib.get_close_matches(name, list(known), n=1)
    return f"did you mean {close[0]!r}? " if close else ""


def plain_type(hint: Any) -> Any:
    """A type as a command line has it."""
    return float if hint == Number else hint


def read_recipe_file(path: Path) -> list[str]:
    """The settings of a recipe file as flags.

    Raises:
        RecipeError: not YAML, an unknown key, or a value of another type.
    """
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8")) or {}
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise RecipeError(f"not YAML: {error}") from None
    if not isinstance(content, dict):
        raise RecipeError("a mapping key: value is expected")
    for key in content:
        if key not in FIELDS:
            raise RecipeError(f"unknown key {key!r}; {suggest(str(key), FIELDS)}The keys are {', '.join(FIELDS)}")
    return to_flags(content)


_QUOTE = "(quote what YAML would read as a number, a date or yes and no)"
_ACCEPTED: dict[Any, tuple[tuple[type, ...], str]] = {
    int: ((int, str), "a whole number"),
    float: ((int, float, str), "a number"),
    bool: ((bool, str), "true or false"),
    str: ((str,), f"text {_QUOTE}"),
    str | None: ((str, type(None)), f"text {_QUOTE}, or null"),
    list[str]: ((str,), f"a list of texts {_QUOTE}"),
}
"""The types of a setting's values in YAML, and what they are called; of a list those of its items."""


def _refuse_other_type(key: str, value: Any) -> None:
    """Refuse what would become another value as a flag's text, such as a list of one number for a number."""
    hint = get_type_hints(Recipe).get(key)
    if hint is None or (key == "alpha" and isinstance(value, dict)):
        return
    wanted = plain_type(hint)
    types, accepted = _ACCEPTED[
        str if get_args(wanted) and not isinstance(wanted, UnionType) and get_origin(wanted) is not list else wanted
    ]
    items = value if isinstance(value, list) and wanted == list[str] else [value]
    if not all(isinstance(item, types) for item in items):
        raise RecipeError(f"{key}: {value!r} is of another type; accepted: {accepted}")


def to_flags(content: Mapping[str, Any]) -> list[str]:
    """Settings as flags.

    Raises:
        RecipeError: a value of another type.
    """
    flags: list[str] = []
    for key, value in content.items():
        _refuse_other_type(key, value)
        if value is None or value == []:
            continue
        values = value if isinstance(value, list) else [json.dumps(value) if isinstance(value, dict) else value]
        flags += [f"--{key}", *map(str, values)]
    return flags
