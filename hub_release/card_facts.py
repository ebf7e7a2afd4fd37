"""What the model card is filled from: the files of a package, read once and held against each other."""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

import yaml
from safetensors import safe_open
from transformers import AutoConfig
from transformers.configuration_utils import PreTrainedConfig

from hub_release.package import LAYOUT, ReleaseError, read_recipe

CONTAMINATED = "pooled-r2"
"""The split protocol that trains on children of test rows."""
_HUB_ID = re.compile(r"\w[\w.-]*/\w[\w.-]*")


@dataclass(frozen=True)
class Source:
    """A part that the model stands on: backbone, encoder, dataset, set of labels or method.

    Attributes:
        name: what to call it; empty where it is a folder or files of the publisher's own.
        hub_id: where the Hub has it.
        license: its licence, where it is known.
        citation: key of the BibTeX entry.
        language: ISO code of a dataset's texts, where it is known.
        config: configuration of a Hub dataset.
        test_rows: rows of a dataset's test split as it is published, where that is known.
        about: what a reader of the scores should know of it.
        precision: of the weights of a backbone, where it is not that of its Hub id.
        tags: what the Hub should list the model under.
    """

    name: str = ""
    hub_id: str | None = None
    license: str | None = None
    citation: str | None = None
    language: str | None = None
    config: str | None = None
    test_rows: int | None = None
    about: str = ""
    precision: str = ""
    tags: Sequence[str] = ()


@dataclass(frozen=True)
class Facts:
    """The recorded files of a package, by their names in the layout; ``per_label`` has the rows of all splits."""

    config: dict[str, Any]
    metrics: dict[str, Any]
    audit: dict[str, Any]
    recipe: dict[str, Any]
    environment: dict[str, Any]
    calibration: dict[str, Any]
    timing: dict[str, Any]
    context: dict[str, Any]
    golden: dict[str, Any]
    adapter_config: dict[str, Any]
    per_label: list[dict[str, str]]
    head_shapes: dict[str, list[int]]
    adapter_shapes: dict[str, list[int]]
    backbone: Source
    encoder: Source
    dataset: Source
    label_set: Source
    files: frozenset[str]

    @property
    def labels(self) -> list[str]:
        """The L labels, in the order of the outputs."""
        return list(self.config["emotion_labels"])

    @property
    def contaminated(self) -> bool:
        """Was the model trained on children of test rows?"""
        return bool(self.metrics["protocol"] == CONTAMINATED)

    @property
    def published_test(self) -> bool:
        """Is the test split that of a published dataset, and as it is published?"""
        test, dropped = self.audit["splits"]["test"], self.recipe["unlabelled"] == "drop"
        rows = test["rows"] + (test["rows_without_label"] if dropped else 0)
        is_whole = self.dataset.test_rows in (None, rows)
        return self.dataset.hub_id is not None and self.metrics["protocol"] == "official" and is_whole

    def test_row(self, label: str, policy: str) -> dict[str, str]:
        """The row of ``per_label.csv`` of one label on test under one threshold policy."""
        return next(
            row for row in self.per_label if (row["split"], row["label"], row["thresholds"]) == ("test", label, policy)
        )

    def backbone_config(self) -> PreTrainedConfig:
        """The backbone's configuration, defaults included."""
        settings = dict(self.config["backbone_config"])
        return AutoConfig.for_model(settings.pop("model_type"), **settings).get_text_config()


def read_facts(package: Path) -> Facts:
    """Read the recorded files of a package.

    Raises:
        ReleaseError: two files say different things of the same thing.
    """

    def read(name: str) -> Any:
        return json.loads((package / name).read_text(encoding="utf-8"))

    config, context = read(LAYOUT.config), read(LAYOUT.context)
    recipe = read_recipe(package)
    with (package / LAYOUT.per_label).open(encoding="utf-8", newline="") as file:
        per_label = list(csv.DictReader(file))
    local = context["local"]
    dataset = _find_source("datasets", config["dataset"], local["dataset"])
    facts = Facts(
        config=config,
        metrics=read(LAYOUT.metrics),
        audit=read(LAYOUT.audit),
        recipe=recipe,
        environment=read(LAYOUT.environment),
        calibration=read(LAYOUT.calibration),
        timing=read(LAYOUT.timing),
        context=context,
        golden=read(LAYOUT.golden),
        adapter_config=read(LAYOUT.adapter_config),
        per_label=per_label,
        head_shapes=_read_shapes(package / LAYOUT.safe_head),
        adapter_shapes=_read_shapes(package / LAYOUT.adapter),
        backbone=_find_source("backbones", config["model_name"], local["backbone"]),
        encoder=_find_encoder(config["encoder"], local["encoder"]),
        dataset=replace(dataset, config=dataset.config or recipe["dataset_config"]),
        label_set=_find_source("label_sets", " ".join(recipe["labels"]), False),
        files=frozenset(path.name for path in package.iterdir()),
    )
    _refuse_contradictions(facts)
    return facts


@cache
def read_sources() -> dict[str, Any]:
    """What is known of parts that others published: the content of ``sources.yaml``."""
    content: dict[str, Any] = yaml.safe_load(Path(__file__).with_name("sources.yaml").read_text(encoding="utf-8"))
    return content


def _find_source(kind: str, name: str, is_local: bool) -> Source:
    """The part called ``name`` in a configuration; what is not published keeps its name to itself."""
    if is_local:
        return Source()
    known = read_sources()[kind].get(name)
    if known:
        return Source(**known)
    return Source(name=name, hub_id=name) if _HUB_ID.fullmatch(name) else Source()


def _find_encoder(name: str, is_local: bool) -> Source:
    library = "sentence-transformers/"
    if not name.startswith(library):
        return _find_source("encoders", name, is_local)
    model = name.removeprefix(library)  # the library's own models need no owner
    source = _find_source("encoders", model if "/" in model else name, is_local)
    return replace(source, citation="sentence_bert")


def _read_shapes(path: Path) -> dict[str, list[int]]:
    """Shapes of a safetensors file, from its header alone."""
    with safe_open(path, framework="numpy") as file:
        return {key: list(file.get_slice(key).get_shape()) for key in file.keys()}  # noqa: SIM118  # no mapping


def _refuse_contradictions(facts: Facts) -> None:
    config, labels = facts.config, facts.labels
    width, hidden = config["embed_dim"], config["hidden_size"]
    expected = {
        "projection.0.weight": [hidden // 2, width],
        "projection.2.weight": [hidden, hidden // 2],
        "classifier.weight": [len(labels), hidden],
    }
    for key, shape in expected.items():
        if facts.head_shapes.get(key) != shape:
            raise ReleaseError(
                f"{LAYOUT.safe_head}: {key} is {facts.head_shapes.get(key)}, {LAYOUT.config} says {shape}"
            )
    scored = {row["label"] for row in facts.per_label if row["split"] == "test"}
    if scored != set(labels):
        raise ReleaseError(f"{LAYOUT.per_label} and {LAYOUT.config} list different labels")
    for label in labels:
        scored_at = float(facts.test_row(label, "per_label")["threshold"])
        if abs(scored_at - config["thresholds"][label]) > 1e-4:
            raise ReleaseError(f"{label} was scored at threshold {scored_at}, {LAYOUT.config} has another")
