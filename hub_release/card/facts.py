"""The facts on the model card: the recorded files of a package, read once and checked against each other."""

from __future__ import annotations

import csv
import errno
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cache, cached_property
from pathlib import Path
from typing import Any

import torch
import yaml
from safetensors import safe_open
from transformers import AutoConfig
from transformers.configuration_utils import PreTrainedConfig

from hub_release.card.own import CardDetails, read_details
from hub_release.card.text import HTML
from hub_release.package import LAYOUT, ReleaseError, read_recipe, read_record, sha256
from modeling import records
from modeling.infer import (
    HUB_ID,
    EmotionConfig,
    PackageError,
    as_package_error,
    build_heads,
    merged_file,
    read_config,
    refuse_backbone,
    refuse_large_header,
)
from modeling.recipe import CONTAMINATED
from modeling.records import (
    AdaptationRecord,
    Audit,
    CalibrationRecord,
    Content,
    Context,
    Environment,
    Golden,
    GraphRecord,
    Metrics,
    Record,
    Timing,
)

_CONFIG = Record[dict[str, Any]](LAYOUT.config)
_ADAPTER_CONFIG = Record[dict[str, Any]](LAYOUT.adapter_config)
_REMEDY = "run hub_release export again"


@dataclass(frozen=True)
class Source:
    """A part that the model builds on: backbone, encoder, dataset, label set or method.

    Attributes:
        name: its name; empty for a local folder or local files of the publisher.
        hub_id: its id on the Hub.
        license: its license, if known.
        citation: key of the BibTeX entry.
        language: ISO code of a dataset's texts, if known.
        config: configuration of a Hub dataset.
        test_rows: rows of a dataset's published test split, if known.
        about: what a reader of the scores should know about it.
        precision: precision of a backbone's weights, if the weights of its Hub id have another.
        tags: tags for the model on the Hub.
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
    metrics: Metrics
    audit: Audit
    recipe: dict[str, Any]
    environment: Environment
    calibration: CalibrationRecord
    timing: Timing
    context: Context
    golden: Golden
    adapter_config: dict[str, Any]
    per_label: list[dict[str, str]]
    head_shapes: dict[str, list[int]]
    adapter_shapes: dict[str, list[int]]
    weight_hashes: dict[str, str]
    backbone: Source
    encoder: Source
    dataset: Source
    label_set: Source
    details: CardDetails | None
    files: frozenset[str]
    adaptation: AdaptationRecord | None
    graphs: GraphRecord | None
    graph_files: Sequence[str]
    merged: str | None

    @property
    def labels(self) -> list[str]:
        """The L labels, in the order of the outputs."""
        return list(self.config["emotion_labels"])

    @property
    def about_emotions(self) -> bool:
        """Whether the rows are labeled with emotions, as far as ``sources.yaml`` knows."""
        return "emotion-classification" in self.dataset.tags

    @property
    def contaminated(self) -> bool:
        """Whether the model was trained on rows that were made from test rows."""
        return bool(self.metrics["protocol"] == CONTAMINATED)

    @property
    def published_test(self) -> bool:
        """Whether the test split is the whole published test split of a dataset."""
        test, dropped = self.audit["splits"]["test"], self.recipe["unlabelled"] == "drop"
        rows = test["rows"] + (test["rows_without_label"] if dropped else 0)
        is_whole = self.dataset.test_rows in (None, rows)
        return self.dataset.hub_id is not None and self.metrics["protocol"] == "official" and is_whole

    def test_row(self, label: str, policy: str) -> dict[str, str]:
        """The row of ``per_label.csv`` of one label on test under one threshold policy."""
        return self._test_rows[label, policy]

    @cached_property
    def _test_rows(self) -> dict[tuple[str, str], dict[str, str]]:
        return {(row["label"], row["thresholds"]): row for row in self.per_label if row["split"] == "test"}

    def backbone_config(self) -> PreTrainedConfig:
        """The backbone's configuration, defaults included.

        Raises:
            PackageError: it is not valid, see :func:`refuse_backbone`.
        """
        settings = dict(self.config["backbone_config"] or {})
        refuse_backbone(settings)
        try:
            return AutoConfig.for_model(settings.pop("model_type"), **settings).get_text_config()
        except Exception as error:  # transformers checks the fields of each architecture with many kinds of exception
            raise PackageError(LAYOUT.config, f"has a backbone_config that cannot be read: {error}") from None


def read_facts(package: Path) -> Facts:
    """Read the recorded files of a package.

    Raises:
        FileNotFoundError: one is missing.
        PackageError: one is not strict JSON, or has HTML where no run writes any; or the configuration is not valid.
        ReleaseError: two files contradict each other.
    """

    def read(record: Record[Content]) -> Content:
        if not (package / record).is_file():
            raise FileNotFoundError(errno.ENOENT, "No such file", record)
        return read_record(package, record)

    config, context = read(_CONFIG), read(records.CONTEXT)
    parsed = read_config(package)  # refuses a configuration that the card cannot use
    merged = merged_file(parsed)
    has_merged = (package / merged).is_file()
    weights = (LAYOUT.safe_head, LAYOUT.head, LAYOUT.adapter, *([merged] if has_merged else []))
    recipe = read_recipe(package)
    with (package / LAYOUT.per_label).open(encoding="utf-8", newline="") as file:
        per_label = list(csv.DictReader(file))
    local = context["local"]
    dataset = _find_source("datasets", config["dataset"], local["dataset"])
    facts = Facts(
        config=config,
        metrics=read(records.METRICS),
        audit=read(records.AUDIT),
        recipe=recipe,
        environment=read(records.ENVIRONMENT),
        calibration=read(records.CALIBRATION),
        timing=read(records.TIMING),
        context=context,
        golden=read(records.GOLDEN),
        adapter_config=read(_ADAPTER_CONFIG),
        per_label=per_label,
        head_shapes=_read_shapes(package / LAYOUT.safe_head),
        adapter_shapes=_read_shapes(package / LAYOUT.adapter),
        weight_hashes={name: sha256(package / name) for name in weights},
        backbone=_find_source("backbones", config["model_name"], local["backbone"]),
        encoder=_find_encoder(config["encoder"], local["encoder"]),
        dataset=replace(dataset, config=dataset.config or recipe["dataset_config"]),
        label_set=_find_source("label_sets", " ".join(recipe["labels"]), False),
        details=read_details(package),
        files=frozenset(path.name for path in package.iterdir()),
        adaptation=read(records.ADAPTATION) if (package / LAYOUT.adaptation).is_file() else None,
        graphs=read(records.GRAPHS) if (package / LAYOUT.graph_record).is_file() else None,
        graph_files=[name for name in (LAYOUT.graph, LAYOUT.int8_graph) if (package / name).is_file()],
        merged=merged if has_merged else None,
    )
    _refuse_html(facts)
    _refuse_contradictions(facts, parsed)
    return facts


@cache
def read_sources() -> dict[str, Any]:
    """What is known about published parts: the content of ``sources.yaml``."""
    content: dict[str, Any] = yaml.safe_load(Path(__file__).with_name("sources.yaml").read_text(encoding="utf-8"))
    return content


def _find_source(kind: str, name: str, is_local: bool) -> Source:
    """The part called ``name`` in a configuration; a part that is not published gets no name."""
    if is_local:
        return Source()
    known = read_sources()[kind].get(name)
    if known:
        return Source(**known)
    return Source(name=name, hub_id=name) if re.fullmatch(HUB_ID, name) else Source()


def _find_encoder(name: str, is_local: bool) -> Source:
    library = "sentence-transformers/"
    if not name.startswith(library):
        return _find_source("encoders", name, is_local)
    model = name.removeprefix(library)  # the library's own models need no owner
    source = _find_source("encoders", model if "/" in model else name, is_local)
    return replace(source, citation="sentence_bert")


def _read_shapes(path: Path) -> dict[str, list[int]]:
    """Shapes of a safetensors file, from its header alone."""
    with path.open("rb") as file, as_package_error(path.name, "is damaged"):
        refuse_large_header(file.read(8))
    with as_package_error(path.name, "is damaged"), safe_open(path, framework="numpy") as tensors:
        return {key: list(tensors.get_slice(key).get_shape()) for key in tensors.keys()}  # noqa: SIM118  # not a mapping


def _refuse_html(facts: Facts) -> None:
    """Refuse HTML in a record, except in labels, which are the publisher's choice. (The card escapes what it shows.)"""
    odd_labels = [label for label in facts.labels if HTML.search(label)]
    recorded = {
        **{LAYOUT.config: facts.config, LAYOUT.metrics: facts.metrics, LAYOUT.audit: facts.audit},
        **{LAYOUT.recipe: facts.recipe, LAYOUT.environment: facts.environment, LAYOUT.timing: facts.timing},
        **{LAYOUT.calibration: facts.calibration, LAYOUT.context: facts.context, LAYOUT.per_label: facts.per_label},
        **{LAYOUT.adapter_config: facts.adapter_config, LAYOUT.graph_record: facts.graphs},
    }
    for name, content in recorded.items():
        for text in _strings(content):
            for label in odd_labels:
                text = text.replace(label, "")
            if HTML.search(text):
                raise PackageError(name, f"has HTML in {text[:100]!r}", _REMEDY)


def _strings(value: Any) -> Iterator[str]:
    """All texts in a JSON value, keys included."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict | list):
        for part in (*value, *value.values()) if isinstance(value, dict) else value:
            yield from _strings(part)


def _refuse_contradictions(facts: Facts, parsed: EmotionConfig) -> None:
    config, labels = facts.config, facts.labels
    if facts.details and not set(facts.details.examples) <= {row["text"] for row in facts.golden["rows"]}:
        raise ReleaseError(f"{LAYOUT.golden} lacks examples of {LAYOUT.details}. Remedy: {_REMEDY}")
    with torch.device("meta"):
        expected = {key: list(weight.shape) for key, weight in build_heads(parsed).state_dict().items()}
    for key, shape in expected.items():
        if facts.head_shapes.get(key) != shape:
            found = facts.head_shapes.get(key)
            raise ReleaseError(
                f"{LAYOUT.safe_head}: {key} is {found}, but {LAYOUT.config} says {shape}. Remedy: {_REMEDY}"
            )
    scored = {row["label"] for row in facts.per_label if row["split"] == "test"}
    if scored != set(labels):
        raise ReleaseError(f"{LAYOUT.per_label} and {LAYOUT.config} list different labels. Remedy: {_REMEDY}")
    for label in labels:
        scored_at = float(facts.test_row(label, "per_label")["threshold"])
        if abs(scored_at - config["thresholds"][label]) > 1e-4:
            raise ReleaseError(
                f"{label} was scored at threshold {scored_at}, but {LAYOUT.config} has another. Remedy: {_REMEDY}"
            )
