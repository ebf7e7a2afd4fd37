"""Integrated gradients: the shares of a text's tokens, and of its sentence embedding, in the logit of a label."""

from typing import Any

import numpy as np
import torch

from modeling.infer.errors import import_optional
from modeling.infer.explanation import Shares
from modeling.infer.features import Features, cut_into_windows

_TOKENS_AT_ONCE = 512
"""Tokens of all points that are computed at once: gradients keep every layer's values of each."""
without_content = torch.zeros_like
"""Embedded tokens, float [1, T, H], → where their path begins."""


def integrate_gradients(model: Any, features: Features, label: int, steps: int, batch_size: int) -> Shares:
    """Shares of one text, by Sundararajan et al. (2017), https://arxiv.org/abs/1703.01365, as captum computes them.

    The path leads straight from the baseline to the text: the embedded tokens from zero, the sentence embedding from
    that of the empty text. Zeros have better deletion curves than the empty token or the table's mean vector. A text of
    several windows has the mean of their shares, or with ``windows: max`` those of the window with the highest logit.

    Args:
        model: an :class:`EmotionModel` that reads words.
        features: of the text and of the empty text.
        label: the label's place.
        steps: points of the path at which gradients are computed.
        batch_size: points that are computed at once, at most.

    Raises:
        ValueError: the model reads no words.
        ImportError: captum is missing.
    """
    if features.tokens is None:
        raise ValueError("integrated gradients need a model that reads words. Remedy: use method='leave-out'")
    captum = import_optional("captum.attr", "captum")
    windows, _ = cut_into_windows(features.take(np.array([0])), model.config)
    device, table = next(model.parameters()).device, model.backbone.get_input_embeddings()

    def read(words: torch.Tensor, embeddings: torch.Tensor | None = None) -> torch.Tensor:
        mask = torch.ones(words.shape[:2], dtype=torch.long, device=device)
        embedded = words.to(table.weight.dtype)  # the path is exact, whatever the backbone's precision is
        return model(embeddings=embeddings, inputs_embeds=embedded, attention_mask=mask).logits.float()

    method, found = captum.IntegratedGradients(read), []
    for window in range(len(windows)):
        (tokens,) = windows.take(np.array([window])).tokens or []
        at_once = max(min(batch_size, _TOKENS_AT_ONCE // len(tokens)), 1)
        with torch.inference_mode(False), torch.enable_grad(), torch.autocast(device.type, enabled=False):
            words = table(torch.from_numpy(tokens).to(device)).detach().float()[None]
            ends: list[tuple[torch.Tensor, ...]] = [(words,), (without_content(words),)]
            if features.embeddings is not None:
                rows = torch.from_numpy(features.embeddings[:, None]).to(device)
                ends = [(*end, row) for end, row in zip(ends, rows, strict=True)]
            shares = method.attribute(*ends, target=label, n_steps=steps, internal_batch_size=at_once)
            logits = [float(read(*end)[0, label].detach()) for end in ends]
        each, *embedding = (share[0].detach().double().sum(-1).cpu().numpy() for share in shares)
        found.append(Shares(each, float(sum(embedding)), *logits))
    return _pool(found, windows.starts.tolist(), int(features.lengths[0]), model.config.windows)


def _pool(found: list[Shares], starts: list[int], length: int, windows: str) -> Shares:
    """Shares of a text of so many tokens, from those of its windows."""
    pairs = list(zip(found, starts, strict=True))
    if windows == "max":
        pairs = [max(pairs, key=lambda pair: pair[0].logit)]
    tokens = np.zeros(length)
    for shares, start in pairs:
        tokens[start : start + len(shares.tokens)] += shares.tokens / len(pairs)
    return Shares(tokens, *np.mean([shares[1:] for shares, _ in pairs], axis=0).tolist())
