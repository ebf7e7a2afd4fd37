"""The package: which files it holds, once, as frozen data; and where the model card's template lies."""

from __future__ import annotations

from dataclasses import astuple, dataclass
from pathlib import Path


class ReleaseError(RuntimeError):
    """A run or package that cannot be released; the message names the remedy."""


class RefusedError(ReleaseError):
    """A package that its check refuses.

    Attributes:
        problems: all of them, each with its remedy.
    """

    def __init__(self, where: str, problems: list[str]) -> None:
        super().__init__(f"{where}: {len(problems)} problem{'s' * (len(problems) != 1)}")
        self.problems = problems


@dataclass(frozen=True)
class Layout:
    """File names of a package, relative to its folder. The first six are the reference's."""

    card: str = "README.md"
    config: str = "config.json"
    focal: str = "focal_config.json"
    head: str = "head_weights.pt"
    code: str = "infer.py"
    adapter: str = "lora_adapter/adapter_model.safetensors"
    adapter_config: str = "lora_adapter/adapter_config.json"
    safe_head: str = "head.safetensors"
    golden: str = "golden.json"
    metrics: str = "metrics.json"
    thresholds: str = "thresholds.json"
    per_label: str = "per_label.csv"
    calibration: str = "calibration.json"
    audit: str = "audit.json"
    recipe: str = "recipe.yaml"
    environment: str = "environment.json"
    timing: str = "timing.json"
    context: str = "context.json"

    def files(self) -> tuple[str, ...]:
        """All of them."""
        return astuple(self)


LAYOUT = Layout()

RECORDED = (
    LAYOUT.focal,
    LAYOUT.golden,
    LAYOUT.metrics,
    LAYOUT.thresholds,
    LAYOUT.per_label,
    LAYOUT.calibration,
    LAYOUT.audit,
    LAYOUT.recipe,
    LAYOUT.environment,
    LAYOUT.timing,
    LAYOUT.context,
)
"""Files that the package takes from the run folder as they are."""


def template_path() -> Path:
    """The model card's template: beside this file in an installed wheel, at the top of a checkout."""
    here = Path(__file__).resolve().parent
    name = "model_card_template.md"
    path = here / name if (here / name).is_file() else here.parent / name
    if not path.is_file():
        raise ReleaseError(f"{name} is missing. Remedy: install goemotions-mistral again")
    return path
