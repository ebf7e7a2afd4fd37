"""Initialize the projected token: long enough that the backbone keeps its content.

A pretrained decoder turns a lone token at position 0 into an attention sink. Within three layers its MLPs add the
same vector, hundreds to thousands of times longer than the token. The final norm then divides the token's content
by that length. Whether this happens depends on the token's length in the residual stream. At the length of the
vocabulary's own tokens, two different inputs leave the 135M backbone with a cosine above 0.9. About a hundred times
longer, the same inputs stay below 0.1.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import nn

_SAMPLE = 4_096
"""Rows that the embeddings are measured on."""


@torch.no_grad()
def standardize_projection(projection: nn.Sequential, embeddings: np.ndarray, token_norm: float, seed: int) -> None:
    """Initialize a projection in place from the embeddings that it will read.

    The first linear layer absorbs the standardization of its input (zero mean, unit variance per dimension), so the
    layout stays Linear, GELU, Linear. The second is centered and scaled so that tokens have the mean length
    ``token_norm``.

    Args:
        projection: Linear(E → H/2), GELU, Linear(H/2 → H).
        embeddings: training embeddings, float [N, E].
        token_norm: mean Euclidean length of a projected token.
        seed: seed of the sample of rows and of the weights.
    """
    first, last = projection[0], projection[2]
    assert isinstance(first, nn.Linear) and isinstance(last, nn.Linear)
    rows = np.random.default_rng(seed).permutation(len(embeddings))[:_SAMPLE]
    inputs = torch.from_numpy(np.ascontiguousarray(embeddings[rows], dtype=np.float32))
    mean, deviation = inputs.mean(dim=0), inputs.std(dim=0, correction=0).clamp_min(1e-6)
    generator = torch.Generator().manual_seed(seed)
    first.weight.normal_(std=first.in_features**-0.5, generator=generator)
    first.weight /= deviation
    first.bias.copy_(-(first.weight @ mean))
    last.weight.normal_(std=last.in_features**-0.5, generator=generator)
    last.bias.zero_()
    tokens = projection(inputs)
    scale = token_norm / (tokens - tokens.mean(dim=0)).norm(dim=1).mean().clamp_min(1e-6)
    last.weight *= scale
    last.bias.copy_(-tokens.mean(dim=0) * scale)
