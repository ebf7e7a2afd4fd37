"""Reproduce a package's golden probabilities: ``python -I probe.py FOLDER MODULES DISTRIBUTIONS BYTES NAME``.

The check runs this file in its own process. Only the package, the standard library and the named modules can be
imported there. Everything else that is installed, this project included, is out of reach.
"""

from __future__ import annotations

import importlib.machinery
import importlib.metadata
import importlib.util
import json
import re
import sys
import sysconfig
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any


def declare(folder: str, modules: set[str], distributions: set[str]) -> None:
    """Hide everything from this process that neither the package nor its requirements bring along."""
    paths = [*(sysconfig.get_path(name) for name in ("stdlib", "platstdlib")), sysconfig.get_config_var("DESTSHARED")]

    class Declared(importlib.machinery.PathFinder):
        """Finds declared modules."""

        @classmethod
        def find_spec(cls, fullname: str, path: Sequence[str] | None = None, target: Any = None) -> Any:
            """Look for a module that is not named only in the package and the standard library."""
            if path is None and fullname not in modules:
                path = [folder, *paths]
            return super().find_spec(fullname, path, target)

        @classmethod
        def find_distributions(cls, *arguments: Any, **options: Any) -> Iterable[Any]:
            """Find the named distributions."""
            for found in super().find_distributions(*arguments, **options):
                if re.sub(r"[-_.]+", "-", found.name).lower() in distributions:
                    yield found

    standard = (importlib.machinery.BuiltinImporter, importlib.machinery.FrozenImporter)
    finders: list[Any] = [finder for finder in sys.meta_path if finder in standard]
    sys.meta_path[:] = [*finders, Declared]
    sys.path.insert(0, folder)
    sys.dont_write_bytecode = True


def limit_memory(most: int) -> None:
    """End this process, not the machine, if it needs more than ``most`` bytes."""
    if importlib.util.find_spec("resource"):
        import resource

        _, hard = resource.getrlimit(resource.RLIMIT_DATA)
        soft = most if hard == resource.RLIM_INFINITY else min(most, hard)
        resource.setrlimit(resource.RLIMIT_DATA, (soft, hard))


def load_with_torch(folder: str, most: int) -> Any:
    """The package's classifier in float32."""
    import torch

    if not torch.cuda.is_available():  # a GPU's driver reserves what it wants
        limit_memory(most)
    from infer import EmotionClassifier

    return EmotionClassifier(folder, dtype=torch.float32)


def load_graph(folder: str, most: int, name: str) -> Any:
    """The classifier of one of the package's graphs, by its name in ``graphs.json``."""
    limit_memory(most)
    from infer_onnx import EmotionClassifier

    backend, _, quantization = name.partition("-")
    # OpenVINO's own choice of precision differs from machine to machine.
    dtype = "float32" if backend == "openvino" else None
    return EmotionClassifier(folder, backend=backend, quantization=quantization or "none", dtype=dtype)


def measure(folder: str, classifier: Any) -> float:
    """The largest difference between the golden probabilities and the classifier's."""
    import numpy as np

    golden = json.loads(Path(folder, "golden.json").read_text(encoding="utf-8"))
    texts = [row["text"] for row in golden["rows"]]
    wanted = np.array([row["probabilities"] for row in golden["rows"]])
    return float(np.abs(classifier.predict_proba(texts) - wanted).max())


if __name__ == "__main__":
    declare(sys.argv[1], set(sys.argv[2].split()), set(sys.argv[3].split()))
    folder, most, name = sys.argv[1], int(sys.argv[4]), sys.argv[5]
    classifier = load_with_torch(folder, most) if name == "torch" else load_graph(folder, most, name)
    difference = measure(folder, classifier)
    sys.stdout.write(json.dumps({"difference": difference}) + "\n")
