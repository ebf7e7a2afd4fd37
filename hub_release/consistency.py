"""A package's contents: does each file load, and do the files say the same?"""

from __future__ import annotations

import csv
import math
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import nn

import modeling.infer
from hub_release.card import CONTAMINATED, render_card
from hub_release.package import LAYOUT, ReleaseError, read_recipe
from hub_release.requirements import not_installed, read_requirements, requirements_of
from modeling.infer import (
    AUTO_MAP,
    BUNDLED_BACKBONE,
    CUSTOM_PIPELINES,
    HEAD_FILES,
    SCHEMA_VERSION,
    EmotionConfig,
    PackageError,
    build_backbone,
    read_adapter,
    read_config,
    read_head,
    read_head_file,
    read_json,
)

T = TypeVar("T")
_EXPORT = "hub_release export again"
_MAX_LAYERS = 1_000
_MAX_SETTING = 2**20
_HUB_KEYS = {
    "model_type": EmotionConfig.model_type,
    "architectures": ["EmotionModel"],
    "auto_map": AUTO_MAP,
    "custom_pipelines": CUSTOM_PIPELINES,
    "problem_type": "multi_label_classification",
    "schema_version": SCHEMA_VERSION,
}
_HUB_ID = r"\w[\w.-]*/\w[\w.-]*"


class Findings(list[PackageError]):
    """What was found wrong so far."""

    def attempt(self, step: Callable[..., T], *arguments: Any) -> T | None:
        """The value of a step; None where it fails, and its failure joins the list."""
        try:
            return step(*arguments)
        except PackageError as error:
            self.append(error)
            return None


def weight_problems(package: Path) -> Findings:
    """What keeps configuration, head or adapter from being loaded onto the backbone that they name."""
    found = Findings()
    config = found.attempt(read_config, package)
    if config is None:
        return found
    heads = [found.attempt(read_head_file, package, name, config) for name in HEAD_FILES]
    if None not in heads:
        found.attempt(read_head, package, config)
    backbone = found.attempt(_backbone_on_meta, config)
    if backbone is not None:
        found.attempt(read_adapter, package, config, backbone)
    return found


def _backbone_on_meta(config: EmotionConfig) -> nn.Module:
    """The backbone without its weights, to hold the adapter's keys and shapes against."""
    _refuse_backbone(config)
    settings = config.backbone_config or {}
    try:
        with torch.device("meta"):
            backbone = build_backbone(config)
    except Exception as error:  # transformers checks the fields of each architecture with many kinds of exception
        raise PackageError(LAYOUT.config, f"has a backbone_config that cannot be built: {error}", _EXPORT) from None
    if settings.get("hidden_size") != config.hidden_size:
        raise PackageError(LAYOUT.config, "has a backbone_config of another hidden_size", _EXPORT)
    return backbone


def _refuse_backbone(config: EmotionConfig) -> None:
    """Refuse a backbone that would take for ever to build, or fill the memory, even without its weights."""
    settings = config.backbone_config or {}
    if settings.get("model_type") != "mistral":  # of Mistral 3 too: a run records the language model's alone
        raise PackageError(LAYOUT.config, "has no backbone_config of a Mistral", "train on a Mistral and export again")
    layers = settings.get("num_hidden_layers")
    if not isinstance(layers, int) or not 0 < layers <= _MAX_LAYERS or _largest(settings) > _MAX_SETTING:
        raise PackageError(LAYOUT.config, "has a backbone_config without layers, or of a model too large", _EXPORT)


def _largest(value: Any) -> int:
    """The largest magnitude among the integers of a value of JSON."""
    if isinstance(value, dict | list):
        return max(map(_largest, value.values() if isinstance(value, dict) else value), default=0)
    return abs(value) if isinstance(value, int) else 0


def code_problems(package: Path) -> Findings:
    """Code other than this version's own, which is never run; and requirements other than it has."""
    found = Findings()
    for name, own in ((LAYOUT.code, modeling.infer.__file__), (LAYOUT.handler, Path(__file__).with_name("handler.py"))):
        if (package / name).is_file() and (package / name).read_bytes() != Path(str(own)).read_bytes():
            remedy = f"{_EXPORT}, or check with the version of hub_release that made it"
            found.append(PackageError(name, "is not the code of this version of hub_release", remedy))
    return found


def origin_problems(package: Path, allow_contaminated: bool) -> Findings:
    """A backbone or encoder that only this machine has, requirements that are not its own, contaminated scores."""
    found = Findings()
    metrics = found.attempt(read_json, package, LAYOUT.metrics)
    if metrics is not None and metrics.get("protocol") == CONTAMINATED and not allow_contaminated:
        remedy = "train with split official, or --allow-contaminated to accept a card that says so"
        found.append(PackageError(LAYOUT.metrics, "has contaminated scores (split protocol pooled-r2)", remedy))
    try:
        config = read_config(package)
    except PackageError:  # reported with the weights
        return found
    written = read_json(package, LAYOUT.config)
    if lost := [key for key, value in _HUB_KEYS.items() if written.get(key) != value]:
        found.append(PackageError(LAYOUT.config, f"lacks what the Auto classes need: {', '.join(lost)}", _EXPORT))
    if config.model_name != BUNDLED_BACKBONE and not re.fullmatch(_HUB_ID, config.model_name):
        remedy = "train from a Hub id, or push the backbone first"
        found.append(PackageError(LAYOUT.config, f"names the local folder {config.model_name}", remedy))
    encoder = config.encoder.removeprefix("sentence-transformers/")
    if not re.fullmatch(rf"[\w.-]+|{_HUB_ID}", encoder):
        found.append(PackageError(LAYOUT.config, f"names the local encoder {encoder}", "train with one of the Hub"))
    expected = requirements_of(config.model_name, config.encoder, config.quantization)
    if (package / LAYOUT.requirements).read_bytes() != expected.encode():
        found.append(PackageError(LAYOUT.requirements, "is not what infer.py and the encoder need", _EXPORT))
    elif missing := not_installed(read_requirements(package / LAYOUT.requirements)):
        remedy = f"pip install -r {LAYOUT.requirements}"
        found.append(PackageError(LAYOUT.requirements, f"asks for {', '.join(missing)}, not installed here", remedy))
    return found


def record_problems(package: Path) -> Findings:
    """Labels in another order, thresholds, scores or golden rows that contradict each other, and a card that lies."""
    found = Findings()
    try:
        config = read_config(package)
    except PackageError:  # reported with the weights
        return found
    for name, compare in _RECORDS.items():
        try:
            if what := compare(package, config):
                found.append(PackageError(name, what, _EXPORT))
        except PackageError as error:
            found.append(error)
        except Exception as error:  # a stranger's files: whatever they lack raises something of its own
            reason = f"{type(error).__name__}: {error}"
            found.append(PackageError(name, f"or what it is made of does not hold what it should ({reason})", _EXPORT))
    return found


def _recipe_problem(package: Path, config: EmotionConfig) -> str | None:
    try:
        read_recipe(package)
    except ValueError as error:
        return str(error)
    return None


def _golden_problem(package: Path, config: EmotionConfig) -> str | None:
    golden = read_json(package, LAYOUT.golden)
    if golden["labels"] != config.emotion_labels:
        return "and config.json list different labels, or in another order"
    rows = [row["probabilities"] for row in golden["rows"] if isinstance(row["text"], str)]
    if not rows:
        return "holds no rows"
    if not all(len(row) == len(golden["labels"]) and all(0 <= value <= 1 for value in row) for row in rows):
        return "has rows without a probability for every label"
    return None


def _threshold_problem(package: Path, config: EmotionConfig) -> str | None:
    own = read_json(package, LAYOUT.thresholds)["per_label"]
    if list(own) != config.emotion_labels:
        return "and config.json list different labels, or in another order"
    return None if own == config.thresholds else "and config.json have different thresholds"


def _focal_problem(package: Path, config: EmotionConfig) -> str | None:
    alpha = read_json(package, LAYOUT.focal)["alpha"]
    return (
        None if list(alpha) == config.emotion_labels else "and config.json list different labels, or in another order"
    )


def _score_problem(package: Path, config: EmotionConfig) -> str | None:
    """The table per label is rounded to four digits: so far it and the other records must agree."""
    metrics = read_json(package, LAYOUT.metrics)
    with (package / LAYOUT.per_label).open(encoding="utf-8", newline="") as file:
        table = list(csv.DictReader(file))
    for split, policy in sorted({(row["split"], row["thresholds"]) for row in table}):
        rows = [row for row in table if (row["split"], row["thresholds"]) == (split, policy)]
        if [row["label"] for row in rows] != config.emotion_labels:
            return "and config.json list different labels, or in another order"
        mean = sum(float(row["f1"]) for row in rows) / len(rows)
        if not math.isclose(mean, metrics[split][policy]["macro_f1"], abs_tol=1e-4):
            return f"and {LAYOUT.metrics} have different scores ({split}, {policy})"
        own = config.thresholds if policy == "per_label" else {}
        if any(abs(float(row["threshold"]) - own.get(row["label"], float(row["threshold"]))) > 1e-4 for row in rows):
            return "and config.json have different thresholds"
    return None if table else "holds no scores"


def _card_problem(package: Path, config: EmotionConfig) -> str | None:
    _refuse_backbone(config)
    try:
        written = render_card(package)
    except ReleaseError as error:
        return f"cannot be rendered: {error}"
    said = (package / LAYOUT.card).read_text(encoding="utf-8")
    return None if said == written else "does not say what the recorded files say"


_RECORDS: dict[str, Callable[[Path, EmotionConfig], str | None]] = {
    LAYOUT.recipe: _recipe_problem,
    LAYOUT.golden: _golden_problem,
    LAYOUT.thresholds: _threshold_problem,
    LAYOUT.focal: _focal_problem,
    LAYOUT.per_label: _score_problem,
    LAYOUT.card: _card_problem,
}
