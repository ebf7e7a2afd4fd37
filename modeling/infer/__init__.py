"""The modules that ship, bundled into one file, as a package's ``infer.py``; and what the project uses of them.

A name is imported when it is first used: a command that needs a setting alone does not wait for PyTorch.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
