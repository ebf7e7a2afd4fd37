"""The modules that ship as a package's ``infer.py``, bundled into one file, and the names that the project uses.

A name is imported on first use: a command that needs only a setting does not wait for PyTorch.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
