"""Probabilities → labels: thresholds, how many labels at most, and texts that carry none."""

import numbers
from collections.abc import Mapping
from typing import Any

import numpy as np

from modeling.infer.package import PackageSettings, is_probability


def read_flag(name: str, value: Any) -> bool:
    """A flag, which is refused if it is a word: "no" would count as true.

    Raises:
        TypeError: neither True nor False.
    """
    if not isinstance(value, bool | np.bool_):
        raise TypeError(f"{name} is {value!r:.80}. Remedy: use True or False")
    return bool(value)


def read_top_k(top_k: Any) -> int | None:
    """The largest number of labels per text; None is all of them.

    Raises:
        ValueError: neither None nor a whole number from 1.
    """
    if top_k is None:
        return None
    if not isinstance(top_k, numbers.Integral) or isinstance(top_k, bool) or top_k < 1:
        raise ValueError(f"top_k is {top_k!r:.80}. Remedy: use a whole number from 1, or None for all")
    return int(top_k)


def read_thresholds(config: PackageSettings, threshold: float | Mapping[str, float] | None) -> np.ndarray:
    """The probability from which each label is predicted, float64 [L].

    Args:
        config: has the package's own thresholds.
        threshold: None for these; one for all labels; or a mapping that overrides single labels.

    Raises:
        ValueError: a threshold is not a number from 0 to 1 or names an unknown label; the message has the value.
    """
    labels = config.emotion_labels
    if threshold is None or isinstance(threshold, Mapping):
        overrides = threshold or {}
    else:
        overrides = dict.fromkeys(labels, threshold)
    unknown = sorted(map(str, set(overrides) - set(labels)))
    if unknown:
        raise ValueError(
            f"unknown labels in threshold: {', '.join(unknown)}. Remedy: use labels of the package: {', '.join(labels)}"
        )
    for label, value in overrides.items():
        if not is_probability(value):
            of = f" of {label}" if isinstance(threshold, Mapping) else ""
            raise ValueError(
                f"the threshold{of} is {value!r:.80}. Remedy: use a number from 0 to 1, a mapping of labels to such "
                "numbers, or None for the package's own"
            )
    values = {**config.decision_thresholds, **overrides}
    return np.array([values[label] for label in labels])
