"""The model card, filled from the package's recorded facts by a strict template."""

from __future__ import annotations

import csv
from dataclasses import replace
from functools import lru_cache
from pathlib import Path

from jinja2 import Environment, StrictUndefined, Template, TemplateError, meta
from safetensors import SafetensorError

from hub_release.card.facts import read_facts
from hub_release.card.metadata import build_metadata
from hub_release.card.origin import collect_origin
from hub_release.card.own import CardDetails, read_own_words, section
from hub_release.card.scores import collect_scores
from hub_release.card.text import Markdown, cells, code, plain
from hub_release.package import LAYOUT, ReleaseError, printable, seal, template_path
from modeling.infer import PackageError, staging

_BAD_CONTENT = (
    *(LookupError, TypeError, ValueError, ArithmeticError, AttributeError),
    *(csv.Error, SafetensorError, TemplateError),
)
"""Raised by recorded files whose content no run writes."""


def render_card(package: Path, details: CardDetails | None = None) -> str:
    """The card of a package folder; the same files give the same card. A card that is there keeps its own words.

    Args:
        package: the package's folder.
        details: what the publisher says, instead of what the package records.

    Raises:
        ReleaseError: a recorded file is missing, is not what a run writes, or contradicts another; or the template's
            variables and the values differ; or the publisher's own words break out of their section.
    """
    template_text = template_path().read_text(encoding="utf-8")
    try:
        facts = read_facts(package)
        facts = replace(facts, details=details or facts.details)
        there = package / LAYOUT.card
        words = read_own_words(there.read_text(encoding="utf-8")) if there.is_file() else ""
        values = {
            "own_words": Markdown(section(words)),
            "metadata": Markdown(str(build_metadata(facts)).strip()),
            **collect_scores(facts),
            **collect_origin(facts),
        }
        template, wanted = compile_template(template_text)
        if wanted != set(values):
            raise ReleaseError(f"the card's template and its values differ: {', '.join(sorted(wanted ^ set(values)))}")
        card = template.render(values)
        card.encode("utf-8")  # half an emoji is legal in JSON, but cannot be encoded
        return card
    except FileNotFoundError as error:
        raise ReleaseError(
            f"{Path(str(error.filename)).name} is missing. Remedy: run hub_release export again"
        ) from error
    except PackageError as error:
        raise ReleaseError(printable(error)) from error
    except _BAD_CONTENT as error:
        raise ReleaseError(
            f"a recorded file is not what a run writes ({type(error).__name__}: {error}). "
            "Remedy: run hub_release export again"
        ) from error


@lru_cache(maxsize=1)
def compile_template(text: str) -> tuple[Template, set[str]]:
    """A template and the variables that it needs. Compiling one takes longer than filling it in."""
    environment = Environment(
        undefined=StrictUndefined, keep_trailing_newline=True, trim_blocks=True, lstrip_blocks=True, finalize=plain
    )
    environment.filters |= {"code": code, "cells": cells}
    return environment.from_string(text), meta.find_undeclared_variables(environment.parse(text))


def write_card(package: Path) -> None:
    """Render the card of a package folder and seal the package; the file is replaced whole or not at all.

    Raises:
        ReleaseError: as :func:`render_card`.
    """
    replace_file(package, LAYOUT.card, render_card(package))
    seal(package)


def replace_file(package: Path, name: str, content: str) -> None:
    """Write a text file of a package, whole or not at all."""
    with staging(package, ".card-") as folder:
        written = folder / name
        written.write_text(content, encoding="utf-8")
        written.replace(package / name)
