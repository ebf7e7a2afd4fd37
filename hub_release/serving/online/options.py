"""What a client may ask for; the options of the command line."""

from dataclasses import dataclass


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


def texts_at_once(backend: str) -> int:
    """Texts that a classifier reads at once, of those of a batch.

    Texts of one moment have all lengths. Sorted and cut into eights they need little padding: with ONNX Runtime a thread
    reads 480 of them a second, and 206 in batches of 64. OpenVINO has to get used to each new shape, so it gets few.
    """
    return 8 if backend == "onnx" else 64
