"""Labels of a run's rows that look wrong, for somebody to look at."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path

from modeling.records import SUSPECTS
from training.audit.suspects import find_suspects, write_suspects
from training.commands.verbs import SuspectsOptions
from training.recipe import RecipeError
from training.run_folder import RunFolder

_SHOWN = 20


def list_suspects(options: SuspectsOptions) -> int:
    """Write ``suspects.csv``, print its first lines, and return the exit code 0.

    Raises:
        RecipeError: the run is not cross-fitted, or not finished; or there is a list already.
        ImportError: cleanlab is missing.
    """
    output = Path(options.output_dir or options.run)
    if (output / SUSPECTS).exists():
        raise RecipeError(
            f"{output / SUSPECTS} is there already, and may have your changes. Remedy: rename it, or use another --output_dir"
        )
    table, unjudged = find_suspects(RunFolder(options.run))
    output.mkdir(parents=True, exist_ok=True)
    with RunFolder(output).replacing(SUSPECTS) as path:
        write_suspects(table, path)
    shown = table.head(_SHOWN).drop(columns="row").assign(text=[text[:70] for text in table["text"][:_SHOWN]])
    sys.stdout.write(
        f"{shown.to_string(index=False)}\n{len(table):,} labels of {table['row'].nunique():,} rows look wrong\n"
    )
    if unjudged:
        sys.stdout.write(f"not judged, because too few or too many rows have them: {', '.join(unjudged)}\n")
    again = shlex.join(
        ["python", "training/run.py", "--recipe", f"{options.run}/recipe.yaml", "--leave_out", str(output / SUSPECTS)]
    )
    sys.stdout.write(
        f"{output / SUSPECTS} lists them. Next: delete the lines that are right, correct your rows or train without those "
        f"that are left: {again} --output_dir runs/without\n"
    )
    return 0
