"""Settings that must be made before any library is imported."""

import atexit
import os
import shutil
import tempfile
from pathlib import Path

os.environ["OMP_WAIT_POLICY"] = "PASSIVE"
os.environ["OMP_NUM_THREADS"] = "1"  # pytest-xdist runs one process per core
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"
os.environ["PYTHONDONTWRITEBYTECODE"] = "1"  # importing a package's infer.py must not add a file to the package
_SHARED = os.environ.get("TESTS_HUB_CACHE")
# Processes that are forked elsewhere import this package too, not another one of its name.
os.environ["PYTHONPATH"] = os.pathsep.join(
    filter(None, [str(Path(__file__).resolve().parent.parent), os.environ.get("PYTHONPATH")])
)
EXHAUSTIVE = bool(os.environ.get("EXHAUSTIVE"))
"""Run also what repeats a cheaper test with more cases or larger models? See README.md."""
HUB_CACHE = Path(_SHARED or tempfile.mkdtemp(prefix="hub-cache-"))
"""The Hub's cache for tests: empty at the start, and used only by this process and those of tests/forks.py."""
os.environ["HF_HUB_CACHE"] = str(HUB_CACHE)
if not _SHARED:
    atexit.register(shutil.rmtree, HUB_CACHE, ignore_errors=True)
