"""The model: the code that ships (``infer``), its loss, its backbones and its adapters."""
