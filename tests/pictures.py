"""The pictures of a run without their drawing, which takes as long as a tiny training."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from matplotlib.figure import Figure
from PIL import Image

from tests import EXHAUSTIVE
from training.fit import results

_DRAW = results.draw


@contextmanager
def quick_pictures() -> Iterator[None]:
    """Lay out every picture of a run, but write one pixel; with ``EXHAUSTIVE`` draw them.

    For runs whose pictures nobody looks at: those of the fixtures in conftest.py and of test_plots.py are drawn.
    """

    def draw_quickly(*arguments: Any) -> None:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(Figure, "savefig", _write_pixel)
            _DRAW(*arguments)

    with pytest.MonkeyPatch.context() as patch:
        if not EXHAUSTIVE:
            patch.setattr(results, "draw", draw_quickly)
        yield


@contextmanager
def drawn_pictures() -> Iterator[None]:
    """Draw the pictures of runs, also within :func:`quick_pictures`."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(results, "draw", _DRAW)
        yield


def _write_pixel(figure: Figure, path: Path, **options: Any) -> None:
    Image.new("1", (1, 1)).save(path, format="PNG")
