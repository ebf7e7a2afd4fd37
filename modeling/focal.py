"""Focal loss for multi-label classification, and its per-label alpha.

Lin et al., "Focal Loss for Dense Object Detection", ICCV 2017: FL(p_t) = −α_t (1 − p_t)^γ log(p_t), here per label on
sigmoid outputs, as in the reference model.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import cast

import torch
from torch.nn import functional

REFERENCE_HIGH_ALPHA = frozenset(
    [
        "admiration",
        "amusement",
        "anger",
        "annoyance",
        "confusion",
        "disappointment",
        "disapproval",
        "disgust",
        "excitement",
        "fear",
        "joy",
        "love",
        "optimism",
        "sadness",
        "surprise",
    ]
)
"""Labels with alpha 0.75 in the reference's training code; all others have 0.25."""

REFERENCE_CARD_HIGH_ALPHA = (REFERENCE_HIGH_ALPHA - {"disapproval"}) | {"desire"}
"""The same labels in the reference's model card, which differs from its code in one."""

IGNORED_LABEL = -100
"""A target that adds no loss, as everywhere in transformers: for rows that only fill a batch."""

ALPHA_PRESETS = ("r2", "r2-card", "uniform", "inverse-frequency")


def focal_loss(
    logits: torch.Tensor,
    targets: torch.Tensor,
    alpha: torch.Tensor,
    gamma: float,
    num_items: torch.Tensor | int | None = None,
) -> torch.Tensor:
    """Sum of the focal terms divided by the number of label decisions.

    Args:
        logits: float [B, L].
        targets: multi-hot [B, L], or soft in [0, 1] if ``gamma`` is 0 and ``alpha`` is 0.5; decisions marked
            :data:`IGNORED_LABEL` add no loss.
        alpha: weight of a positive per label, [L] in [0, 1]; a negative weighs 1 − alpha.
        gamma: focusing exponent ≥ 0; 0 gives alpha-weighted binary cross-entropy.
        num_items: decisions in the whole optimizer step, B×L summed over micro-batches and processes; defaults to
            this batch's own, which makes the result a mean.
    """
    counted = targets != IGNORED_LABEL
    targets = torch.where(counted, targets, 0).to(logits.dtype)
    cross_entropy = functional.binary_cross_entropy_with_logits(logits, targets, reduction="none")
    # 1 − p_t is the sigmoid of −x for a positive, of x for a negative: exact where 1 − sigmoid(x) would cancel.
    distance = torch.sigmoid(logits * (1 - 2 * targets))
    weight = alpha * targets + (1 - alpha) * (1 - targets)
    total = (counted * weight * distance.pow(gamma) * cross_entropy).sum()
    return total / (counted.sum() if num_items is None else num_items)


def alpha_per_label(
    alpha: str | Mapping[str, float], labels: Sequence[str], positives: Sequence[int], rows: int
) -> list[float]:
    """Alpha per label.

    Args:
        alpha: ``r2`` or ``r2-card`` (0.75 for the reference's fifteen labels, else 0.25), ``uniform`` (0.5),
            ``inverse-frequency`` (1 − share of positive rows), or a mapping label → alpha, also as JSON; its key
            ``default`` (0.5 if absent) covers the labels that are not named.
        labels: the L label names.
        positives: positive training rows per label.
        rows: number of training rows.

    Raises:
        ValueError: unknown preset, unknown label, or a value outside [0, 1].
    """
    if alpha == "r2" or alpha == "r2-card":
        high = REFERENCE_HIGH_ALPHA if alpha == "r2" else REFERENCE_CARD_HIGH_ALPHA
        return [0.75 if label in high else 0.25 for label in labels]
    if alpha == "uniform":
        return [0.5] * len(labels)
    if alpha == "inverse-frequency":
        return [1.0 - count / rows for count in positives]
    if isinstance(alpha, str):
        if not alpha.startswith("{"):
            raise ValueError(
                f"alpha: unknown preset {alpha!r}. Remedy: use {', '.join(ALPHA_PRESETS)} or a mapping label: value"
            )
        alpha = cast(dict[str, float], json.loads(alpha))
    values = dict(alpha)
    default = values.pop("default", 0.5)
    unknown = sorted(set(values) - set(labels))
    if unknown:
        raise ValueError(
            f"alpha: unknown labels {', '.join(unknown)}. Remedy: use {', '.join(labels)}, or default for the others"
        )
    result = [float(values.get(label, default)) for label in labels]
    outside = [f"{label}: {value}" for label, value in zip(labels, result, strict=True) if not 0 <= value <= 1]
    if outside:
        raise ValueError(f"alpha: {', '.join(outside)} is not in [0, 1]. Remedy: use values from 0 to 1")
    return result
