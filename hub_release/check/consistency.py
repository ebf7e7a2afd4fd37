"""A package's contents: whether each file loads, and whether the files agree."""

from __future__ import annotations

import csv
import math
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import torch
from safetensors import safe_open
from torch import nn

from hub_release.bundle import bundle
from hub_release.card.facts import refuse_backbone
from hub_release.card.render import render_card
from hub_release.check.earlier import figures, is_earlier, is_earlier_code
from hub_release.package import HANDLER, LAYOUT, ReleaseError, read_recipe, read_record
from hub_release.requirements import PROJECT, VERSION_KEY, not_installed, read_requirements, requirements_of
from modeling import records
from modeling.infer import (
    AUTO_MAP,
    BUNDLED_BACKBONE,
    CUSTOM_PIPELINES,
    HEAD_FILES,
    HUB_ID,
    SCHEMA_VERSION,
    EmotionConfig,
    PackageError,
    build_backbone,
    read_adapter,
    read_head_file,
    read_json,
    read_tokenizer,
    refuse_different_heads,
)
from modeling.recipe import CONTAMINATED
from modeling.records import scores_by_split

T = TypeVar("T")
_EXPORT = "run hub_release export again"
_OTHER_LABELS = "and config.json list different labels, or in another order"
_HUB_KEYS = {
    "model_type": EmotionConfig.model_type,
    "architectures": ["EmotionModel"],
    "auto_map": AUTO_MAP,
    "custom_pipelines": CUSTOM_PIPELINES,
    "problem_type": "multi_label_classification",
    "schema_version": SCHEMA_VERSION,
}


class Findings(list[PackageError]):
    """The problems that were found so far."""

    def attempt(self, step: Callable[..., T], *arguments: Any) -> T | None:
        """The value of a step; if it fails, None, and the failure joins the list."""
        try:
            return step(*arguments)
        except PackageError as error:
            self.append(error)
            return None


def weight_problems(package: Path, config: EmotionConfig) -> Findings:
    """What keeps the heads, tokenizer or adapter from loading onto the backbone that the configuration names."""
    found = Findings()
    heads = [found.attempt(read_head_file, package, name, config) for name in HEAD_FILES]
    if None not in heads:
        found.attempt(refuse_different_heads, heads)
    if config.reads_words:
        found.attempt(read_tokenizer, package, config)
    backbone = found.attempt(_backbone_on_meta, config)
    if backbone is not None:
        found.attempt(_adapter_problem, package, config, backbone)
    return found


def _backbone_on_meta(config: EmotionConfig) -> nn.Module:
    """The backbone without its weights, to compare the adapter's keys and shapes with."""
    if config.head == "mlp":
        raise PackageError(
            LAYOUT.config, "is for a baseline without a backbone", "train with head backbone, then export"
        )
    settings = config.backbone_config or {}
    refuse_backbone(settings)
    try:
        with torch.device("meta"):
            backbone = build_backbone(config)
    except Exception as error:  # transformers checks the fields of each architecture with many kinds of exception
        raise PackageError(LAYOUT.config, f"has a backbone_config that cannot be built: {error}", _EXPORT) from None
    if settings.get("hidden_size") != config.hidden_size:
        raise PackageError(LAYOUT.config, "has a backbone_config with another hidden_size", _EXPORT)
    return backbone


def _adapter_problem(package: Path, config: EmotionConfig, backbone: nn.Module) -> None:
    """Refuse an adapter that does not fit, or has tensors that nothing reads: golden probabilities cannot show them."""
    _, tensors = read_adapter(package, config, backbone)
    with safe_open(package / LAYOUT.adapter, framework="numpy") as file:
        stored = len(file.keys())
    if stored > len(tensors):
        what = f"has {stored - len(tensors)} tensors that no model reads"
        raise PackageError(LAYOUT.adapter, what, _EXPORT)


def code_problems(package: Path) -> Findings:
    """Code that is neither this version's own nor an earlier version's; such code is never run."""
    found = Findings()
    for name, own in ((LAYOUT.code, bundle().encode()), (LAYOUT.handler, HANDLER.read_bytes())):
        path = package / name
        if path.is_file() and path.read_bytes() != own and not is_earlier_code(path):
            remedy = f"{_EXPORT}, or check with {_maker(package)}"
            found.append(PackageError(name, "is not the code of this version of hub_release", remedy))
    return found


def _maker(package: Path) -> str:
    try:
        return f"{PROJECT} {read_json(package, LAYOUT.config)[VERSION_KEY]}, which made it"
    except (PackageError, KeyError):
        return "the version of hub_release that made it"


def protocol_problems(package: Path, allow_contaminated: bool) -> Findings:
    """Scores that do not measure the model: contaminated ones, and those of a null test."""
    found = Findings()
    metrics = found.attempt(read_record, package, records.METRICS)
    if metrics is None:
        return found
    if metrics.get("protocol") == CONTAMINATED and not allow_contaminated:
        remedy = "train with split official, or give --allow-contaminated to accept a card that says so"
        found.append(PackageError(LAYOUT.metrics, "has contaminated scores (split protocol pooled-r2)", remedy))
    if metrics.get("null_test"):
        what = "is from a null test, which is trained on nothing"
        found.append(PackageError(LAYOUT.metrics, what, "export the run that it tests"))
    return found


def origin_problems(package: Path, config: EmotionConfig) -> Findings:
    """A backbone or encoder that only this machine has, and wrong requirements."""
    found = Findings()
    written = read_json(package, LAYOUT.config)
    if lost := [key for key, value in _HUB_KEYS.items() if written.get(key) != value]:
        found.append(PackageError(LAYOUT.config, f"lacks what the Auto classes need: {', '.join(lost)}", _EXPORT))
    if not re.fullmatch(r"\d[\w.+!]*", str(written.get(VERSION_KEY))):
        found.append(PackageError(LAYOUT.config, f"does not say in {VERSION_KEY} what made it", _EXPORT))
    if config.model_name != BUNDLED_BACKBONE and not re.fullmatch(HUB_ID, config.model_name):
        remedy = "train from a Hub id, or push the backbone first"
        found.append(PackageError(LAYOUT.config, f"names the local folder {config.model_name}", remedy))
    encoder = config.encoder.removeprefix("sentence-transformers/")
    if config.reads_embedding and not re.fullmatch(rf"[\w.-]+|{HUB_ID}", encoder):
        found.append(
            PackageError(LAYOUT.config, f"names the local encoder {encoder}", "train with an encoder from the Hub")
        )
    expected = requirements_of(config.model_name, config.encoder, config.quantization)
    if not (package / LAYOUT.requirements).is_file():
        return found
    if (package / LAYOUT.requirements).read_bytes() != expected.encode():
        found.append(PackageError(LAYOUT.requirements, "is not what infer.py and the encoder need", _EXPORT))
    elif missing := not_installed(read_requirements(package / LAYOUT.requirements)):
        remedy = f"pip install -r {LAYOUT.requirements}"
        found.append(PackageError(LAYOUT.requirements, f"needs {', '.join(missing)}, not installed here", remedy))
    return found


def record_problems(package: Path, config: EmotionConfig) -> Findings:
    """Labels, thresholds, scores or golden rows that contradict each other, and a card that is not true."""
    found = Findings()
    for name, compare in _RECORDS.items():
        try:
            if what := compare(package, config):
                found.append(PackageError(name, what, _EXPORT))
        except PackageError as error:
            found.append(error)
        except FileNotFoundError:  # reported with the layout
            continue
        except Exception as error:  # a stranger's files can raise anything
            reason = f"{type(error).__name__}: {error}"
            found.append(
                PackageError(name, f"or a file that it is made from has unexpected content ({reason})", _EXPORT)
            )
    return found


def _recipe_problem(package: Path, config: EmotionConfig) -> str | None:
    try:
        read_recipe(package)
    except ValueError as error:
        return str(error)
    return None


def _golden_problem(package: Path, config: EmotionConfig) -> str | None:
    golden = read_record(package, records.GOLDEN)
    if golden["labels"] != config.emotion_labels:
        return _OTHER_LABELS
    rows = [row["probabilities"] for row in golden["rows"] if isinstance(row["text"], str)]
    if not rows:
        return "has no rows"
    if not all(len(row) == len(golden["labels"]) and all(0 <= value <= 1 for value in row) for row in rows):
        return "has rows without a probability for every label"
    return None


def _threshold_problem(package: Path, config: EmotionConfig) -> str | None:
    recorded = read_record(package, records.THRESHOLDS)
    own = recorded["per_label"]
    if any(list(recorded[key]) != config.emotion_labels for key in ("per_label", "per_label_unshrunk")):
        return _OTHER_LABELS
    return None if own == config.thresholds else "and config.json have different thresholds"


def _focal_problem(package: Path, config: EmotionConfig) -> str | None:
    alpha = read_record(package, records.FOCAL)["alpha"]
    return None if list(alpha) == config.emotion_labels else _OTHER_LABELS


def _audit_problem(package: Path, config: EmotionConfig) -> str | None:
    """Three files must name the same split protocol; only the contaminated one makes rows from rows outside train."""
    audit = read_record(package, records.AUDIT)
    counted = [audit["training_rows"]["positives"], *(split["positives"] for split in audit["splits"].values())]
    if any(list(labels) != config.emotion_labels for labels in (audit["labels"], *counted)):
        return _OTHER_LABELS
    protocols = {
        LAYOUT.audit: audit["protocol"],
        LAYOUT.metrics: read_record(package, records.METRICS)["protocol"],
        LAYOUT.recipe: read_recipe(package)["split"],
    }
    if len(set(protocols.values())) > 1:
        said = ", ".join(f"{file} {protocol}" for file, protocol in protocols.items())
        return f"and other files say different split protocols: {said}"
    outside = audit["training_rows"]["synthetic_with_parent_outside_train"]
    if outside and audit["protocol"] != CONTAMINATED:
        return f"counts {outside:,} rows that were made from rows outside train, which {audit['protocol']} does not do"
    return None


def _score_problem(package: Path, config: EmotionConfig) -> str | None:
    """The table per label and the other records must agree to four digits: older tables were rounded to that."""
    by_split: Any = scores_by_split(read_record(package, records.METRICS))
    with (package / LAYOUT.per_label).open(encoding="utf-8", newline="") as file:
        table = list(csv.DictReader(file))
    groups: dict[tuple[str, str], list[dict[str, str]]] = {}
    for row in table:
        groups.setdefault((row["split"], row["thresholds"]), []).append(row)
    if set(groups) != {(split, policy) for split in by_split for policy in by_split[split]}:
        return f"and {LAYOUT.metrics} have scores of different splits or thresholds"
    for (split, policy), rows in groups.items():
        if [row["label"] for row in rows] != config.emotion_labels:
            return _OTHER_LABELS
        mean = sum(float(row["f1"]) for row in rows) / len(rows)
        if not math.isclose(mean, by_split[split][policy]["macro_f1"], abs_tol=1e-4):
            return f"and {LAYOUT.metrics} have different scores ({split}, {policy})"
        own = config.thresholds if policy == "per_label" else {}
        if any(abs(float(row["threshold"]) - own.get(row["label"], float(row["threshold"]))) > 1e-4 for row in rows):
            return "and config.json have different thresholds"
    return None if table else "has no scores"


def _card_problem(package: Path, config: EmotionConfig) -> str | None:
    try:
        written = render_card(package)
    except ReleaseError as error:
        if isinstance(error.__cause__, FileNotFoundError):
            raise error.__cause__ from None
        return f"cannot be rendered: {error}"
    said = (package / LAYOUT.card).read_text(encoding="utf-8")
    same = figures(said) == figures(written) if is_earlier(package) else said == written
    return None if same else "does not match the recorded files"


_RECORDS: dict[str, Callable[[Path, EmotionConfig], str | None]] = {
    LAYOUT.recipe: _recipe_problem,
    LAYOUT.golden: _golden_problem,
    LAYOUT.thresholds: _threshold_problem,
    LAYOUT.focal: _focal_problem,
    LAYOUT.per_label: _score_problem,
    LAYOUT.audit: _audit_problem,
    LAYOUT.card: _card_problem,
}
