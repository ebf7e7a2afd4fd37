"""What a client may ask for; the options of the command line."""

from dataclasses import dataclass

TEXTS_AT_ONCE = 8
"""Texts of a batch that are read at once. Those of one moment have all lengths; sorted and cut into eights they need
little padding."""


@dataclass(frozen=True)
class Limits:
    """What a client may ask for.

    Attributes:
        body_bytes: of a request.
        body_seconds: within which a request must have come.
        texts: of a request.
        characters: of a text.
        batch: texts that are classified at once.
        waiting: texts that wait; beyond, requests get 429 with ``Retry-After``.
    """

    body_bytes: int = 1_000_000
    body_seconds: float = 10.0
    texts: int = 128
    characters: int = 100_000
    batch: int = 64
    waiting: int = 1_024
