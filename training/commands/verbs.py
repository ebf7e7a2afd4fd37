"""The verbs of ``training/run.py``, and the flags of each besides the settings of a recipe."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Generic, Literal, TypeVar

from modeling.recipe import LabelFormat, Recipe


def _option(default: Any, help: str) -> Any:
    if isinstance(default, list):
        return field(default_factory=lambda: list(default), metadata={"help": help})
    return field(default=default, metadata={"help": help})


@dataclass
class RecipeOptions:
    """Which recipe."""

    recipe: str = _option("quickstart", "a name in training/recipes, or a YAML file")


@dataclass
class PlanOptions(RecipeOptions):
    """Which recipe, and how many processes share it."""

    ranks: int = _option(
        1, "also plan one of so many processes that shard the training by FSDP2 (training/accelerate_configs)"
    )


@dataclass
class TrackedOptions(RecipeOptions):
    """Which recipe, and whether its emissions are estimated."""

    co2_country: str | None = _option(
        None, "estimate emissions with codecarbon, for the electricity of this country (such as ITA)"
    )


@dataclass
class OutputOptions:
    """Where results go."""

    output_dir: str | None = _option(None, "folder for the results; by default nothing is written")


@dataclass
class TrainOptions(TrackedOptions):
    """Where the run is written, and whether it resumes."""

    output_dir: str | None = _option(None, "run folder (default: runs/<recipe>)")
    resume: bool = _option(False, "continue from the last complete checkpoint")
    overwrite: bool = _option(False, "train again in a folder that already holds a run")
    remove_checkpoints: bool = _option(False, "delete the checkpoints once the run is finished")


@dataclass
class CompareOptions(TrackedOptions):
    """A grid of runs."""

    seeds: list[int] = _option([], "seeds of every setting (default: the recipe's)")
    output_dir: str | None = _option(None, "folder of the grid (default: runs/compare-<recipe>)")
    overwrite: bool = _option(False, "run everything again, also over runs with other settings or rows")
    axes: list[str] = _option([], "field=value,value for any setting, or loss=bce,focal-uniform,focal-r2")


@dataclass
class CompareRunsOptions(OutputOptions):
    """Finished runs."""

    runs: list[str] = _option([], "folders of finished runs; the others are compared with the first")


@dataclass
class NullTestOptions(TrackedOptions):
    """Where the two runs go."""

    output_dir: str | None = _option(None, "folder of the two runs and their verdict (default: runs/<recipe>)")
    overwrite: bool = _option(False, "replace an earlier null test in that folder")


@dataclass
class EvaluateOptions(OutputOptions):
    """What to score, and on which rows."""

    data: str | None = _option(
        None, "labeled file: .csv, .tsv, .jsonl, .ndjson, .json or .parquet; all but the last may end in .gz"
    )
    mapping: str | None = _option(
        None, "from the model's labels to the file's: brighter, ekman, plutchik, sentiment or a YAML file"
    )
    text_column: str = _option("text", "column of the texts")
    label_column: str = _option("labels", "column with the labels of each row; without it, one 0/1 column per label")
    label_format: LabelFormat = _option(
        "auto",
        "what label_column has: names, multi-hot vectors, or ids in the order of the model's labels; auto finds out, but "
        "takes numbers for ids only if the mapping declares them",
    )
    label_separator: str | None = _option(
        None, "what separates the labels of a cell; by default the one of , ; | tab and line break that fits"
    )
    ignore_columns: list[str] = _option([], "columns of zeros and ones that are not labels")
    dataset: Literal["files", "goemotions"] = _option("files", "goemotions for its own TSV files, which have no header")
    model: str = _option("", "a package folder, a Hub id or the folder of a finished run")


@dataclass
class SuspectsOptions:
    """A run, and where its suspects go."""

    output_dir: str | None = _option(None, "folder for suspects.csv (default: the run's)")
    run: str = _option("", "folder of a finished run with split cross-fit")


@dataclass
class AuditOptions:
    """Two files."""

    text_column: str = _option("text", "column of the texts")
    label_column: str | None = _option(None, "column of the labels (default: labels, if the file has it)")
    dataset: Literal["files", "goemotions"] = _option("files", "goemotions for its own TSV files, which have no header")
    examples: int = _option(5, "how many copies to show")
    paths: list[str] = _option([], "rows to look for, and rows to look in")


Options = TypeVar("Options")


@dataclass(frozen=True)
class Verb(Generic[Options]):
    """A verb of the command line.

    Attributes:
        help: one line.
        options: its own flags, and the field of ``positional`` if it takes words without a flag.
        takes_recipe: do the settings of a recipe apply?
        positional: the field for those words; empty if it takes none.
        details: more text for its ``--help``.
    """

    help: str
    options: type[Options]
    takes_recipe: bool = True
    positional: str = ""
    details: str = ""


VERBS: dict[str, Verb[Any]] = {
    "train": Verb("train a recipe (the default without a verb)", TrainOptions),
    "compare": Verb("train a grid of settings and compare them", CompareOptions, positional="axes"),
    "compare-runs": Verb("compare finished runs by paired bootstrap", CompareRunsOptions, False, "runs"),
    "null-test": Verb("train on noise and on shuffled labels; fail if a score is above chance", NullTestOptions),
    "plan": Verb(
        "print the memory that a recipe needs, which GPU is enough, and the minutes on this machine", PlanOptions
    ),
    "evaluate": Verb("score a package or a run on a labeled file", EvaluateOptions, False, "model"),
    "suspects": Verb(
        "list labels that look wrong: a model that was not trained on the row says otherwise",
        SuspectsOptions,
        False,
        "run",
        "suspects.csv has a line for each doubtful label, the most doubtful first: row, text, label, what is given (0 or\n"
        "1), what the model expects, and the probability of what is given. Look at them: rare readings look wrong, too.\n"
        "--leave_out FILE trains without the rows of the lines that you left in it; rows that scores rest on stay.\n\n"
        "Example: training/run.py suspects runs/tickets",
    ),
    "audit": Verb(
        "look for copies of one file's texts in another file",
        AuditOptions,
        False,
        "paths",
        "A copy is exact (letter for letter), normalized (except for case, spaces and punctuation) or near (70 % of\n"
        "their character 5-grams in common; texts of 34 characters or more). If both files have labels, the report\n"
        "also counts the copies whose labels differ, and names the labels that only one file has.\n\n"
        "Example: training/run.py audit test.csv train.csv\n"
        "Exit code: 0 no copies, 1 copies found, 2 a file cannot be read.",
    ),
}

OLD_FLAGS = {
    "--compare": "compare",
    "--compare_runs": "compare-runs",
    "--null_test": "null-test",
    "--plan": "plan",
    "--evaluate": "evaluate",
}
"""Verbs used to be flags; the flags still work."""


@dataclass(frozen=True)
class Command(Generic[Options]):
    """A parsed command line; ``recipe`` is the default one if the verb takes none."""

    verb: str
    recipe: Recipe
    options: Options
