"""The parts besides the backbone, which train in full."""

from torch import nn

from modeling.infer.config import EmotionConfig


def build_projection(embed_dim: int, hidden_size: int) -> nn.Sequential:
    """Linear(E → H/2), GELU, Linear(H/2 → H), the layout of the reference."""
    return nn.Sequential(nn.Linear(embed_dim, hidden_size // 2), nn.GELU(), nn.Linear(hidden_size // 2, hidden_size))


def build_heads(config: EmotionConfig) -> nn.ModuleDict:
    """The parts besides the backbone, by name: those that ``input`` and ``pooling`` need."""
    heads = nn.ModuleDict()
    if config.reads_embedding:
        heads["projection"] = build_projection(config.embed_dim, config.hidden_size)
    if config.reads_words and config.pooling == "attention":
        heads["pooling"] = nn.Linear(config.hidden_size, 1, bias=False)
    heads["classifier"] = nn.Linear(config.hidden_size, len(config.emotion_labels))
    return heads
