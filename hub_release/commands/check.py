"""``hub_release check``: what is wrong with a package."""

from __future__ import annotations

from hub_release.commands.console import AllowContaminated, Json, Package, errors, finish
from hub_release.package import RefusedError


def check(package: Package, allow_contaminated: AllowContaminated = False, as_json: Json = False) -> None:
    """List everything that is wrong with a package, each problem with its remedy.

    First, every file is read as data: layout, hashes, plain tensors, one order of labels, no secrets, a card that
    matches the records. Then a fresh, isolated process reproduces the trained model's probabilities.

    Example: `hub_release check packages/goemotions`
    """
    with errors(as_json):
        from hub_release.check.earlier import describe_earlier
        from hub_release.check.gate import check as check_package

        problems = check_package(package, allow_contaminated)
        if problems:
            raise RefusedError(f"{package} fails the check", problems)
        text = f"✓ {package} is complete, its card is true, and a fresh process reproduces the trained model."
        text += describe_earlier(package)
        finish(as_json, text, package=str(package))
