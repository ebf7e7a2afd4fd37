"""Does a package do what it claims, for a stranger who has nothing but the package?"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from pathlib import Path

from hub_release.card import CONTAMINATED, render_card
from hub_release.package import LAYOUT, ReleaseError

TOLERANCE = 1e-4

_PROBE = '''
import json, sys
from pathlib import Path
import numpy as np
import torch

folder = Path(sys.argv[1])


class Blocker:
    """The repository's packages do not exist for this process, however they are installed."""

    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ("modeling", "training", "hub_release"):
            raise ImportError(f"{name} is not part of the package")


sys.meta_path.insert(0, Blocker())
sys.path.insert(0, str(folder))
sys.dont_write_bytecode = True
from infer import EmotionClassifier

golden = json.loads((folder / "golden.json").read_text(encoding="utf-8"))
texts = [row["text"] for row in golden["rows"]]
wanted = np.array([row["probabilities"] for row in golden["rows"]])
classifier = EmotionClassifier(folder, dtype=torch.float32)
assert classifier.labels == golden["labels"], "config.json and golden.json list different labels"
difference = float(np.abs(classifier.predict_proba(texts) - wanted).max())
print(json.dumps({"rows": len(texts), "difference": difference}))
'''


def check(package: Path, allow_contaminated: bool = False) -> list[str]:
    """Everything that is wrong with a package, each with its remedy; an empty list where nothing is.

    Contaminated scores (made from rows of test, see the card) are wrong unless ``allow_contaminated`` is given.

    The golden probabilities are reproduced in a fresh ``python -I`` process, in another directory, in which neither
    the repository nor its installed packages can be imported.
    """
    missing = [name for name in LAYOUT.files() if not (package / name).is_file()]
    if missing:
        return [f"{name} is missing. Remedy: hub_release export again" for name in missing]
    problems = []
    if not allow_contaminated and json.loads((package / LAYOUT.metrics).read_text())["protocol"] == CONTAMINATED:
        problems.append(
            "the scores are contaminated (split protocol pooled-r2). Remedy: train with split official, or "
            "--allow-contaminated to accept a card that says so"
        )
    try:
        if render_card(package) != (package / LAYOUT.card).read_text(encoding="utf-8"):
            problems.append(f"{LAYOUT.card} does not say what the recorded files say. Remedy: hub_release export again")
    except (ReleaseError, ValueError, KeyError) as error:
        problems.append(f"{LAYOUT.card} cannot be rendered: {error}. Remedy: hub_release export again")
    return [*problems, *_check_golden(package)]


def _check_golden(package: Path) -> list[str]:
    with tempfile.TemporaryDirectory() as elsewhere:
        result = subprocess.run(
            [sys.executable, "-I", "-c", _PROBE, str(package.resolve())],
            cwd=elsewhere,
            capture_output=True,
            text=True,
            check=False,
        )
    if result.returncode:
        last = (result.stderr.strip().splitlines() or ["no message"])[-1]
        return [f"{LAYOUT.code} fails in a fresh process: {last}. Remedy: mend what it names and export again"]
    outcome = json.loads(result.stdout.strip().splitlines()[-1])
    if not outcome["rows"]:
        return [f"{LAYOUT.golden} holds no rows. Remedy: hub_release export again"]
    if not outcome["difference"] <= TOLERANCE:
        return [
            f"the golden probabilities differ by {outcome['difference']:.2g}, more than {TOLERANCE:g}. Remedy: the "
            "weights, the backbone or the encoder are not those of the run: export again"
        ]
    return []
