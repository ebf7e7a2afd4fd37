"""Train emotion classifiers, compare them and score them: ``python training/run.py --recipe NAME``.

Each verb is one file in ``commands/``, imported only when used, so that ``--help`` answers at once.
"""

from __future__ import annotations

import os
import shlex
import sys
from collections.abc import Sequence
from typing import Any

# Threads that spin while they wait make two processes on two cores ten times slower; set before torch loads OpenMP.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
# Bars belong on a screen, not in a log; tqdm reads this when it is imported.
if not sys.stderr.isatty():
    os.environ.setdefault("TQDM_DISABLE", "1")

from modeling.infer.quiet import restore_logs, silence_libraries
from modeling.infer.stops import EXHAUSTED, catch_sigterm, describe_local_error, describe_stop
from modeling.rows.errors import InputError
from training.commands.verbs import Command


def main(argv: Sequence[str] | None = None) -> int:
    """Run the verb and return the exit code; CONTRIBUTING.md lists them."""
    silence_libraries()
    words = sys.argv[1:] if argv is None else list(argv)
    command: Command[Any] | None = None
    try:
        with catch_sigterm(), restore_logs():
            from training.options import parse  # it imports transformers, which Ctrl-C may stop too

            command = parse(words)
            return run(command)
    except (Exception, KeyboardInterrupt) as error:
        if (stop := describe_stop(error)) is not None:
            code, reason = stop
            if os.environ.get("RANK", "0") == "0":  # the other processes of a launch have nothing to add
                kept, again = describe_rest(command, words)
                first = "free some of it, and " if code == EXHAUSTED else ""
                sys.stderr.write(f"{reason}: {kept}. Remedy: to go on, {first}run {again}\n")
            return code
        if not isinstance(error, (InputError, ImportError, OSError)):
            raise
        said = describe_local_error(error) if isinstance(error, OSError) and error.errno else error
        sys.stderr.write(f"error: {said}\n")
        return 2


def describe_rest(command: Command[Any] | None, words: Sequence[str]) -> tuple[str, str]:
    """What a stopped command has kept, and the command that goes on."""
    kept, again = "nothing was done yet", list(words)
    if command is not None and command.verb == "train":
        from training.commands.train import describe_kept

        kept, resume = describe_kept(command.recipe, command.options)
        if resume:
            again = [*_without(words, "--overwrite", "--resume"), "--resume"]
    elif command is not None:
        kept = "finished runs and embeddings are kept"
    return kept, shlex.join(["python", sys.argv[0], *again])


def _without(words: Sequence[str], *switches: str) -> list[str]:
    """Words of a command line without these switches, and without the values that they may have."""
    kept: list[str] = []
    after_switch = False
    for word in words:
        is_switch = word.partition("=")[0] in switches
        if not is_switch and not (after_switch and not word.startswith("-")):
            kept.append(word)
        after_switch = is_switch
    return kept


def run(command: Command[Any]) -> int:
    """Run a parsed command."""
    recipe, options = command.recipe, command.options
    match command.verb:
        case "evaluate":
            from training.commands.evaluate import evaluate

            return evaluate(options)
        case "suspects":
            from training.commands.suspects import list_suspects

            return list_suspects(options)
        case "audit":
            from training.audit.two_files import audit_files

            return audit_files(**vars(options))
        case "plan":
            from training.commands.plan import describe_plan

            sys.stdout.write(describe_plan(recipe, options.ranks) + "\n")
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
            from training.corpora import Corpora

            return train(recipe, options, Corpora())


if __name__ == "__main__":
    raise SystemExit(main())
