"""What one of several processes holds when FSDP2 shards the training of a model over them (training/accelerate_configs)."""

from __future__ import annotations

from modeling.memory.plan import MemoryPlan

FETCHED = "weights fetched from the other processes"
_WHOLE = ("constants of the quantized matrices", "activations", "workspace")
"""Parts that every process has: bitsandbytes keeps its constants beside the weights, where FSDP does not see them."""
_OF_LAYERS = ("frozen matrices", "quantized matrices", "adapters")


def shard(plan: MemoryPlan, ranks: int, layers: int) -> dict[str, dict[str, int]]:
    """Moment of training (``step``, ``optimizer``) → part → bytes of one process.

    Each holds its share of every weight, gradient and optimizer state, rounded up, and the whole weights of the layer
    that it computes and of the next one, or of a layer and the table of tokens.

    Args:
        plan: of one process alone.
        ranks: how many share it.
        layers: of the backbone.
    """
    found = {}
    for moment in ("step", "optimizer"):  # evaluations need less than a step; the final scoring is of the whole model
        parts = plan.training[moment]
        whole = _WHOLE if moment != "optimizer" else _WHOLE[:1]  # whose temporaries are of what a process holds
        found[moment] = {name: size if name in whole else -(-size // ranks) for name, size in parts.items()}
        layer = sum(parts.get(name, 0) for name in _OF_LAYERS) // max(layers, 1)
        if moment != "optimizer":  # which reads only what a process holds
            found[moment][FETCHED] = layer + max(layer, parts.get("embed_tokens", 0))
    return found
