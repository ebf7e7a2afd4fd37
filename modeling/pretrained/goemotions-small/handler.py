"""Serve a package on Hugging Face Inference Endpoints; ships as the package's ``handler.py``.

    {"inputs": "I passed the exam!"}
    {"inputs": ["I passed the exam!", "What?!"], "parameters": {"threshold": 0.0, "top_k": 3}}

The parameters are those of ``EmotionClassifier.predict``. Without a threshold, the package's own thresholds apply.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

# The server loads this file by its path; infer.py is next to it.
sys.path.insert(0, str(Path(__file__).resolve().parent))

from infer import EmotionClassifier

PARAMETERS = ("threshold", "exclude_unreliable", "top_k")


class EndpointHandler:
    """Answer requests with the package in the folder ``path``, by default the folder of this file."""

    def __init__(self, path: str = "") -> None:
        self.classifier = EmotionClassifier(path or Path(__file__).resolve().parent)

    def __call__(self, data: dict[str, Any]) -> list[list[dict[str, Any]]]:
        """Labels that reach their threshold, highest first; one list of ``{"label", "score"}`` per text.

        Raises:
            ValueError: the request is not of the form above; the message names the field.
        """
        texts, parameters = _read(data)
        results = self.classifier.predict(texts, **parameters)
        return [[{"label": label, "score": score} for label, score in row.items()] for row in results]


def _read(data: dict[str, Any]) -> tuple[list[str], dict[str, Any]]:
    if not isinstance(data, dict):
        raise ValueError(f'the request must be an object with "inputs", got {data!r:.80}')
    inputs, parameters = data.get("inputs"), data.get("parameters") or {}
    texts = [inputs] if isinstance(inputs, str) else inputs
    if not isinstance(texts, list) or not all(isinstance(text, str) for text in texts):
        raise ValueError(f'"inputs" must be a text or a list of texts, got {inputs!r:.80}')
    if not isinstance(parameters, dict) or not set(parameters) <= set(PARAMETERS):
        raise ValueError(f'"parameters" may hold {", ".join(PARAMETERS)}, got {parameters!r:.80}')
    # predict itself checks threshold and top_k.
    if type(parameters.get("exclude_unreliable", False)) is not bool:
        raise ValueError(f'"exclude_unreliable" must be true or false, got {parameters["exclude_unreliable"]!r:.80}')
    return texts, parameters
