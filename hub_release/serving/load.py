"""The classifier that does the work."""

from __future__ import annotations

from pathlib import Path
from typing import Any


def load_classifier(package: Path, backend: str, **options: Any) -> Any:
    """An ``EmotionClassifier``; for a graph without importing PyTorch, which takes seconds and 250 MiB.

    Args:
        package: its folder.
        backend: ``torch``, ``onnx`` or ``openvino``.
        options: for ``EmotionClassifier``.

    Raises:
        ValueError: the package or an option is wrong; the message has the remedy.
        ImportError: what computes is missing; the message says what to install.
    """
    if backend == "torch":
        from modeling.infer.classifier import EmotionClassifier

        return EmotionClassifier(package, **options)
    from modeling.infer.graph_classifier import EmotionClassifier as GraphClassifier

    return GraphClassifier(package, backend=backend, **options)
