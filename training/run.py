"""Train an emotion classifier: ``accelerate launch training/run.py --recipe NAME``. The stages in order."""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Sequence
from pathlib import Path

# Threads that spin while they wait make two processes on two cores ten times slower; set before torch loads OpenMP.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import torch
from accelerate import PartialState

from training.audit.rows import LeakError
from training.commands.compare import compare, compare_runs
from training.commands.evaluate import evaluate
from training.commands.null_test import run_null_tests
from training.commands.plan import describe_plan
from training.commands.train import train
from training.data.balance import BalanceError
from training.data.tables import CorpusError
from training.fit.prepare import forget_rows
from training.options import parse_recipe
from training.recipe import RecipeError
from training.run_folder import RunFolderError

logger = logging.getLogger("training")


def main(argv: Sequence[str] | None = None) -> int:
    """Do what the flags ask for. Returns the exit code: 1 for a failed test, 2 where the input is at fault."""
    forget_rows()
    try:
        recipe, options = parse_recipe(sys.argv[1:] if argv is None else argv)
        if options.plan:
            sys.stdout.write(describe_plan(recipe) + "\n")
            return 0
        output = Path(options.output_dir) if options.output_dir else None
        if options.evaluate and options.data:
            columns = (recipe.text_column, recipe.label_column)
            return evaluate(options.evaluate, options.data, options.mapping, *columns, output, recipe.dataset)
        many = options.compare or options.compare_runs or options.null_test
        if many and PartialState(cpu=not torch.cuda.is_available()).num_processes > 1:
            raise RecipeError("--compare, --compare_runs and --null_test are many runs of one process each: launch one")
        if options.compare_runs:
            return compare_runs(options.compare_runs, output)
        if options.compare:
            return compare(recipe, options, train)
        if options.null_test:
            return run_null_tests(recipe, options, train)
        return train(recipe, options)
    except (RecipeError, CorpusError, BalanceError, RunFolderError, LeakError, ImportError, OSError) as error:
        sys.stderr.write(f"error: {error}\n")
        return 2


if __name__ == "__main__":
    raise SystemExit(main())
