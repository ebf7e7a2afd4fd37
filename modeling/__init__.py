"""The model: what ships (``infer``), its loss, its backbones and its adapters."""
