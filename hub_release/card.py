"""The model card, filled from the package's recorded facts by a strict template."""

from __future__ import annotations

import csv
import hashlib
import re
import tempfile
from pathlib import Path

from jinja2 import Environment, StrictUndefined, TemplateError, meta
from safetensors import SafetensorError

from hub_release.card_facts import CONTAMINATED, read_facts
from hub_release.card_metadata import build_metadata
from hub_release.card_origin import collect_origin
from hub_release.card_scores import collect_scores
from hub_release.integrity import hash_problems, layout_problems, unreadable_problems
from hub_release.package import LAYOUT, RefusedError, ReleaseError, seal, template_path, words_of
from modeling.infer import PackageError

__all__ = ["CONTAMINATED", "render_card", "renew_card", "write_card"]

_BAD_CONTENT = (
    *(LookupError, TypeError, ValueError, ArithmeticError, AttributeError),
    *(csv.Error, SafetensorError, TemplateError),
)
"""What a recorded file with other content than a run writes makes of reading it."""


def render_card(package: Path) -> str:
    """The card of a package folder; the same files give the same card.

    Raises:
        ReleaseError: a recorded file is missing, is not what a run writes or contradicts another; or a variable of the
            template has no value, or a value has no place in the template.
    """
    template = template_path().read_text(encoding="utf-8")
    environment = Environment(
        undefined=StrictUndefined, keep_trailing_newline=True, trim_blocks=True, lstrip_blocks=True, autoescape=False
    )
    try:
        facts = read_facts(package)
        values = {"metadata": str(build_metadata(facts)).strip(), **collect_scores(facts), **collect_origin(facts)}
        wanted = meta.find_undeclared_variables(environment.parse(template))
        if wanted != set(values):
            raise ReleaseError(f"the card's template and its values differ: {', '.join(sorted(wanted ^ set(values)))}")
        card = environment.from_string(template).render(values)
        card.encode("utf-8")  # half an emoji is legal in JSON, and no text
        return card
    except FileNotFoundError as error:
        raise ReleaseError(f"{Path(str(error.filename)).name} is missing. Remedy: hub_release export again") from error
    except PackageError as error:
        raise ReleaseError(words_of(error)) from error
    except _BAD_CONTENT as error:
        raise ReleaseError(
            f"a recorded file is not what a run writes ({type(error).__name__}: {error}). Remedy: hub_release export again"
        ) from error


def write_card(package: Path) -> None:
    """Render the card of a package folder, and seal the package; the file is replaced whole or not at all.

    Raises:
        ReleaseError: as :func:`render_card`.
    """
    _replace(package, LAYOUT.card, render_card(package))
    seal(package)


def renew_card(package: Path) -> None:
    """Render the card of a sealed package again. Its seal is renewed for the card alone, and must hold for the rest.

    Raises:
        RefusedError: files beside the card are not those that the package was sealed with.
        ReleaseError: there is no package, or as :func:`render_card`.
    """
    if not (package / LAYOUT.config).is_file():
        raise ReleaseError(f"{package} is no package: {LAYOUT.config} is missing. Remedy: hub_release export again")
    problems = unreadable_problems(package)
    if not problems:
        found = [*layout_problems(package), *hash_problems(package)]
        problems = [problem for problem in found if problem.file != LAYOUT.card]
    if problems:
        raise RefusedError(
            f"the card of {package} is left as it is: other files are not those of its seal",
            [words_of(problem) for problem in problems],
        )
    card = render_card(package)
    _replace(package, LAYOUT.card, card)
    sums = (package / LAYOUT.sums).read_text(encoding="utf-8")
    own_line = rf"^[0-9a-f]{{64}}(?= [ *]{re.escape(LAYOUT.card)}$)"
    digest = hashlib.sha256(card.encode("utf-8")).hexdigest()
    _replace(package, LAYOUT.sums, re.sub(own_line, digest, sums, flags=re.MULTILINE))


def _replace(package: Path, name: str, content: str) -> None:
    with tempfile.TemporaryDirectory(dir=package, prefix=".card-") as folder:
        written = Path(folder, name)
        written.write_text(content, encoding="utf-8")
        written.replace(package / name)
