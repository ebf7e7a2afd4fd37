"""Train emotion classifiers, compare them and score them: ``accelerate launch training/run.py --recipe NAME``.

Each verb is one file in ``commands/``, imported only when used, so that ``--help`` answers at once.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from typing import Any

# Threads that spin while they wait make two processes on two cores ten times slower; set before torch loads OpenMP.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
# Bars belong on a screen, not in a log; tqdm reads this when it is imported.
if not sys.stderr.isatty():
    os.environ.setdefault("TQDM_DISABLE", "1")

from modeling.infer.quiet import silence_libraries
from training.commands.verbs import Command
from training.errors import TrainingError
from training.options import parse


def main(argv: Sequence[str] | None = None) -> int:
    """Run the verb and return the exit code: 1 for a failed test, 2 for bad input."""
    silence_libraries()
    try:
        return run(parse(sys.argv[1:] if argv is None else argv))
    except (TrainingError, ImportError, OSError) as error:
        sys.stderr.write(f"error: {error}\n")
        return 2


def run(command: Command[Any]) -> int:
    """Run a parsed command."""
    recipe, options = command.recipe, command.options
    match command.verb:
        case "evaluate":
            from training.commands.evaluate import evaluate

            return evaluate(options)
        case "audit":
            from training.audit.two_files import audit_files

            return audit_files(**vars(options))
        case "plan":
            from training.commands.plan import describe_plan

            sys.stdout.write(describe_plan(recipe) + "\n")
            return 0
        case "compare-runs":
            from training.commands.compare import compare_runs

            return compare_runs(options)
        case "compare":
            from training.commands.compare import compare

            return compare(recipe, options)
        case "null-test":
            from training.commands.null_test import run_null_tests

            return run_null_tests(recipe, options)
        case _:
            from training.commands.train import train
            from training.fit.prepare import Corpora

            return train(recipe, options, Corpora())


if __name__ == "__main__":
    raise SystemExit(main())
