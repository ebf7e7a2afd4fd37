"""The command line: a verb, a recipe file, and flags over it, parsed."""

from __future__ import annotations

import copy
import dataclasses
import itertools
from argparse import SUPPRESS, Action, ArgumentDefaultsHelpFormatter, RawDescriptionHelpFormatter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import field
from pathlib import Path
from typing import Any, NoReturn, get_origin, get_type_hints

from transformers.hf_argparser import DataClassType, HfArgumentParser, string_to_bool

from modeling.recipe import FIELDS, GROUPS, Recipe
from training.commands.verbs import OLD_FLAGS, VERBS, Command, Options, RecipeOptions
from training.recipe import RecipeError, check_recipe, plain_type, read_recipe_file, suggest, to_flags

RECIPES = Path(__file__).parent / "recipes"


class _Formatter(ArgumentDefaultsHelpFormatter, RawDescriptionHelpFormatter):
    """Shows one spelling per flag, only defaults that mean something, and descriptions as written."""

    def __init__(self, prog: str) -> None:
        super().__init__(prog, max_help_position=34, width=120)

    def _get_help_string(self, action: Action) -> str | None:
        return super()._get_help_string(action) if action.default not in (None, False, []) else action.help

    def _format_action_invocation(self, action: Action) -> str:
        shown = copy.copy(action)
        shown.option_strings = (
            action.option_strings[-1:] if "-h" in action.option_strings else action.option_strings[:1]
        )
        return super()._format_action_invocation(shown)


class _Parser(HfArgumentParser):
    """A parser that raises instead of exiting, so that the message can name the file."""

    def error(self, message: str) -> NoReturn:
        raise RecipeError(f"{message}. Remedy: see --help")


_METAVARS: dict[Any, str] = {int: "N", float: "X", string_to_bool: "true|false"}


def _flag(item: dataclasses.Field[Any]) -> Any:
    """A field in the form the parser takes: its default and its help."""
    metadata = {"help": item.metadata["help"]}
    if item.default_factory is not dataclasses.MISSING:
        return field(default_factory=item.default_factory, metadata=metadata)
    return field(default=item.default, metadata=metadata)


def _flags(name: str, kind: type, names: Iterable[str]) -> DataClassType:
    """A new dataclass with some fields of ``kind``, which the parser lists under the heading ``name``."""
    hints, items = get_type_hints(kind), {item.name: item for item in dataclasses.fields(kind)}
    fields = [(key, plain_type(hints[key]), _flag(items[key])) for key in names]
    heading = {"_argument_group_name": name}
    return DataClassType(dataclasses.make_dataclass("Flags", fields, namespace=heading))


def _parser(name: str) -> _Parser:
    verb = VERBS[name]
    own = [item.name for item in dataclasses.fields(verb.options) if item.name != verb.positional]
    headings = {f"options of {name}": _flags(f"options of {name}", verb.options, own)}
    for group in GROUPS if verb.takes_recipe else ():
        names = [key for key, item in FIELDS.items() if item.metadata["group"] == group]
        headings[group] = _flags(group, Recipe, names)
    parser = _Parser(
        list(headings.values()),
        prog=f"training/run.py {name}" if name != "train" else "training/run.py [VERB]",
        usage="%(prog)s" + (f" {verb.positional.upper()}" if verb.positional else "") + " [--flag value ...]",
        description=_describe(name),
        epilog=f"Built-in recipes: {', '.join(_recipe_names())}." if verb.takes_recipe else None,
        allow_abbrev=False,
        formatter_class=_Formatter,
    )
    if verb.positional:
        positional = {item.name: item for item in dataclasses.fields(verb.options)}[verb.positional]
        several = get_origin(get_type_hints(verb.options)[verb.positional]) is list
        parser.add_argument(verb.positional, nargs="+" if several else None, help=positional.metadata["help"])
    for action in parser._actions:
        if action.option_strings and action.option_strings[0].startswith("--no_"):
            action.help = SUPPRESS  # the parser adds one for each switch that is on by default
        elif action.type and not action.choices:
            action.metavar = _METAVARS.get(action.type, action.dest.upper() if not action.option_strings else "TEXT")
    return parser


def _describe(name: str) -> str:
    if name != "train":
        verb = VERBS[name]
        return f"{verb.help[0].upper()}{verb.help[1:]}.\n\n{verb.details}".strip()
    verbs = "\n".join(f"  {verb:<14}{other.help}" for verb, other in VERBS.items())
    return (
        "Train multi-label emotion classifiers, compare them and score them.\n\n"
        f"verbs (each has its own --help):\n{verbs}\n\n"
        "A recipe sets some of the settings below, and flags override it. A default below applies if the recipe does not\n"
        "set the field.\n\n"
        "examples:\n"
        "  training/run.py                                           the recipe quickstart\n"
        "  training/run.py --recipe goemotions_tokens --data_dir path/to/goemotions\n"
        "  training/run.py evaluate packages/mine --data rows.csv"
    )


def _recipe_names() -> list[str]:
    return sorted(path.stem for path in RECIPES.glob("*.yaml"))


def parse(argv: Sequence[str]) -> Command[Any]:
    """The verb, its options, and the recipe named by ``--recipe`` with the other flags applied on top.

    Raises:
        RecipeError: unknown verb, recipe or key, wrong type, or a value out of range.
    """
    name, flags = _split_verb(list(argv))
    verb, parser = VERBS[name], _parser(name)
    if {"-h", "--help"} & set(flags):
        parser.print_help()
        raise SystemExit(0)
    settings, stem = _read_recipe(flags, parser) if verb.takes_recipe else ([], "")
    words = list(itertools.takewhile(lambda flag: not flag.startswith("-"), flags))
    rest = [*settings, *flags[len(words) :]]
    values = _parse(parser, [*words, *rest])
    recipe = _pick(Recipe, values)
    if verb.takes_recipe and recipe.start_from:
        from training.fit.start import inherited_settings  # it imports peft, which --help does not need

        recipe = _pick(Recipe, _parse(parser, [*words, *to_flags(inherited_settings(recipe.start_from)), *rest]))
    options = _pick(verb.options, values)
    if verb.takes_recipe:
        check_recipe(recipe)
        _check_places(recipe)
    _check_options(name, recipe, options)
    if verb.takes_recipe and hasattr(options, "output_dir"):
        options.output_dir = options.output_dir or f"runs/{'compare-' if name == 'compare' else ''}{stem}"
    return Command(name, recipe, options)


def _split_verb(argv: list[str]) -> tuple[str, list[str]]:
    """The verb of a command line, ``train`` by default, and the rest."""
    argv = [part for flag in argv for part in (flag.split("=", 1) if flag.split("=")[0] in OLD_FLAGS else [flag])]
    old = [flag for flag in OLD_FLAGS if flag in argv]
    if len(old) > 1:
        raise RecipeError(f"{', '.join(old)} are different verbs. Remedy: give only one")
    if old:
        start, verb = argv.index(old[0]), VERBS[OLD_FLAGS[old[0]]]
        end = next((i for i in range(start + 1, len(argv)) if argv[i].startswith("--")), len(argv))
        words = argv[start + 1 : end] if verb.positional else []  # a switch may have had a value
        return OLD_FLAGS[old[0]], [*words, *argv[:start], *argv[end:]]
    if not argv or argv[0].startswith("-"):
        return "train", argv
    if argv[0] not in VERBS:
        raise RecipeError(
            f"{argv[0]!r} is not a verb. {suggest(argv[0], VERBS)}Remedy: use one of {', '.join(VERBS)}, or none to "
            "train"
        )
    return argv[0], argv[1:]


def _read_recipe(flags: Sequence[str], parser: _Parser) -> tuple[list[str], str]:
    """The settings of the recipe named by the flags, as flags, and its name."""
    place = next((flags[i + 1] for i in range(len(flags) - 1) if flags[i] == "--recipe"), RecipeOptions().recipe)
    place = next((flag.partition("=")[2] for flag in flags if flag.startswith("--recipe=")), place)
    path = RECIPES / f"{place}.yaml"
    if not path.is_file():
        path = Path(place)
    if not path.is_file():
        raise RecipeError(
            f"--recipe {place}: no such recipe or file. {suggest(place, _recipe_names())}Remedy: use one of "
            f"{', '.join(_recipe_names())}, or a YAML file"
        )
    try:
        settings = read_recipe_file(path)
        check_recipe(_pick(Recipe, vars(parser.parse_known_args(["a word", *settings])[0])))
    except RecipeError as error:
        raise RecipeError(f"{path}: {error}") from None
    return settings, path.stem


def _parse(parser: _Parser, flags: Sequence[str]) -> dict[str, Any]:
    namespace, unknown = parser.parse_known_args(list(flags))
    if unknown:
        raise RecipeError(_describe_unknown(unknown[0].partition("=")[0], parser))
    return vars(namespace)


def _describe_unknown(word: str, parser: _Parser) -> str:
    if word in VERBS:
        return f"{word!r} is a verb. Remedy: give it first, right after training/run.py"
    if word in _recipe_names():
        return f"{word!r} is a recipe. Remedy: write --recipe {word}"
    if not word.startswith("-"):
        return f"{word!r} is not expected here. Remedy: write settings as --name value"
    owners = [
        name for name, verb in VERBS.items() if word[2:] in {item.name for item in dataclasses.fields(verb.options)}
    ]
    if owners:
        return f"{word} belongs to the verb {' or '.join(owners)}. Remedy: give that verb first, or leave it out"
    if word[2:] in FIELDS:
        return f"{word} is a setting of a recipe, which this verb does not take. Remedy: leave it out"
    known = [option for action in parser._actions for option in action.option_strings]
    return f"{word} is not a flag. {suggest(word, known)}Remedy: see --help"


def _pick(kind: type[Options], values: Mapping[str, Any]) -> Options:
    names = {item.name for item in dataclasses.fields(kind)}  # type: ignore[arg-type]  # a dataclass
    return kind(**{name: value for name, value in values.items() if name in names})


def _check_places(recipe: Recipe) -> None:
    if recipe.data_dir and recipe.dataset not in ("files", "goemotions"):
        raise RecipeError(
            f"data_dir: dataset {recipe.dataset!r} does not read it. Remedy: use --dataset files or goemotions"
        )


def _check_options(name: str, recipe: Recipe, options: Any) -> None:
    if name == "null-test" and recipe.teachers:
        raise RecipeError("null-test: teachers know what the test removes. Remedy: test the recipe without teachers")
    if name == "null-test" and recipe.start_from:
        raise RecipeError("null-test: a start knows what the test removes. Remedy: test the recipe without start_from")
    output = getattr(options, "output_dir", None)
    if output and Path(output).resolve() in {Path(teacher).resolve() for teacher in recipe.teachers}:
        raise RecipeError(f"teachers: {output} is this run's own folder. Remedy: use another --output_dir")
    if name == "compare-runs" and len(options.runs) < 2:
        raise RecipeError(
            "compare-runs needs at least two run folders. Remedy: name them; the others are compared with the first"
        )
    if name == "evaluate" and not options.data:
        raise RecipeError("evaluate needs rows. Remedy: add --data FILE, a labeled file")
    if name == "audit" and len(options.paths) != 2:
        raise RecipeError(f"audit compares two files, not {len(options.paths)}. Remedy: name two")


def override(recipe: Recipe, changes: Mapping[str, Any]) -> Recipe:
    """The recipe with some settings changed; a value may also be a flag's text.

    Raises:
        RecipeError: unknown setting, wrong type, or a value out of range.
    """
    for name in changes:
        if name not in FIELDS:
            raise RecipeError(f"{name} is not a setting. {suggest(name, FIELDS)}Remedy: see --help for the settings")
    flags = to_flags({**dataclasses.asdict(recipe), **changes})
    changed = _pick(Recipe, _parse(_parser("train"), flags))
    check_recipe(changed)
    return changed
