"""Mappings between label sets: the built-in ones in ``mappings/``, or your own YAML file.

    labels:              # required: the labels to score, each with the labels that stand for it
      joy: [joy, love]
    ids: {1: joy}        # optional: names of the ids, for a file with ids
    columns: [text, labels]  # optional: columns of a CSV or TSV file without a header

A mapping works in both directions. A label of the model or of the file stands for every target that lists it, and for
itself if it is a target. So one mapping takes a model of GoEmotions' 28 to a file of Plutchik's eight, and the reverse.
"""

from __future__ import annotations

import difflib
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from modeling.rows.tables import CorpusError
from training.data.taxonomy import GOEMOTIONS_28, MAPPINGS

_KEYS = ("labels", "ids", "columns")
_EXAMPLES = {"labels": "labels: {target: [label, ...], ...}", "ids": "ids: {1: label, ...}"}


class MappingError(CorpusError):
    """A bad mapping; the message names the file, the key and the remedy."""


@dataclass(frozen=True)
class LabelMapping:
    """Which labels stand for which.

    Attributes:
        source: the file, for messages.
        labels: target → the labels that stand for it.
        ids: id as text → label name.
        columns: columns of a file without a header; empty if files have one.
    """

    source: str
    labels: Mapping[str, tuple[str, ...]]
    ids: Mapping[str, str] = field(default_factory=dict)
    columns: tuple[str, ...] = ()

    def targets(self, label: str) -> tuple[str, ...]:
        """The targets that ``label`` stands for; empty if the mapping leaves it out."""
        return tuple(target for target, members in self.labels.items() if label == target or label in members)

    def names(self) -> set[str]:
        """Every label that the mapping mentions."""
        return {*self.labels, *self.ids.values(), *(member for members in self.labels.values() for member in members)}

    def refuse_unknown(self, model_labels: Collection[str], file_labels: Collection[str]) -> None:
        """Refuse a label that stands for a target but that nothing else has: it is misspelled.

        Raises:
            MappingError: neither the model nor the file nor GoEmotions nor the mapping itself has the label.
        """
        known = {*model_labels, *file_labels, *GOEMOTIONS_28, *self.labels, *self.ids.values()}
        for target, members in self.labels.items():
            for member in members:
                if member not in known:
                    close = difflib.get_close_matches(member, sorted(known), n=1)
                    raise MappingError(
                        f"{self.source}, labels, {target}: neither the model nor the file has the label {member!r}. "
                        + (f"Did you mean {close[0]!r}? " if close else "")
                        + "Remedy: correct it, or remove it"
                    )


def identity(labels: Sequence[str]) -> LabelMapping:
    """The mapping of labels that are equal on both sides."""
    return LabelMapping("no mapping", {label: (label,) for label in labels})


def shipped_mappings() -> list[str]:
    """Names of the built-in mappings."""
    return sorted(path.stem for path in MAPPINGS.glob("*.yaml"))


def read_mapping(name: str) -> LabelMapping:
    """Read the mapping ``name``: a built-in one, or a YAML file.

    Raises:
        MappingError: no such mapping, or the file is not a mapping.
    """
    path = MAPPINGS / f"{name}.yaml"
    if not path.is_file():
        path = Path(name)
    if not path.is_file():
        raise MappingError(
            f"--mapping {name}: no such mapping or file. Remedy: use {', '.join(shipped_mappings())} or a YAML file"
        )
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise MappingError(
            f"{path}: not YAML: {error}\nRemedy: correct that place, and save the file as UTF-8"
        ) from None
    if not isinstance(content, dict) or "labels" not in content:
        raise MappingError(f"{path}: the key labels is missing. Remedy: add {_EXAMPLES['labels']}")
    unknown = [key for key in content if key not in _KEYS]
    if unknown:
        raise MappingError(f"{path}: unknown key {unknown[0]!r}. Remedy: use {', '.join(_KEYS)}")
    labels = {
        _name(path, "labels", target): _names(path, f"labels, {target}", members)
        for target, members in _dict(path, "labels", content["labels"]).items()
    }
    _refuse_ambiguous(path, labels)
    ids = {
        _id(path, label_id): _name(path, f"ids, {label_id}", label)
        for label_id, label in _dict(path, "ids", content.get("ids") or {}).items()
    }
    return LabelMapping(str(path), labels, ids, _names(path, "columns", content.get("columns") or []))


def _refuse_ambiguous(path: Path, labels: Mapping[str, Sequence[str]]) -> None:
    """A target that is also a source must list itself, or a label of its name would mean two things."""
    if not labels:
        raise MappingError(f"{path}, labels: no target. Remedy: write {_EXAMPLES['labels']}")
    for target, members in labels.items():
        for member in members:
            if member in labels and member not in labels[member]:
                raise MappingError(
                    f"{path}, labels, {target}: {member!r} is also a target, but does not list itself. Remedy: list "
                    f"{member} under {member}, or give that target another name"
                )


def _dict(path: Path, key: str, value: Any) -> dict[Any, Any]:
    if not isinstance(value, dict):
        raise MappingError(f"{path}, {key}: expected a mapping, got {value!r:.80}. Remedy: write {_EXAMPLES[key]}")
    return value


def _names(path: Path, key: str, value: Any) -> tuple[str, ...]:
    if not isinstance(value, list):
        raise MappingError(f"{path}, {key}: expected a list, got {value!r:.80}. Remedy: write [{value}]")
    names = tuple(_name(path, key, item) for item in value)
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise MappingError(f"{path}, {key}: {twice[0]!r} is listed twice. Remedy: list it once")
    return names


def _name(path: Path, key: str, value: Any) -> str:
    # YAML reads yes, no, on and off as truth values.
    if not isinstance(value, str) or not value.strip():
        raise MappingError(f"{path}, {key}: {value!r} is not a name. Remedy: quote it")
    return value


def _id(path: Path, value: Any) -> str:
    if not isinstance(value, int) or isinstance(value, bool):
        raise MappingError(f"{path}, ids: {value!r} is not a whole number. Remedy: write {_EXAMPLES['ids']}")
    return str(value)


# Two label sets


@dataclass(frozen=True)
class LabelMatch:
    """How a model's labels match a file's.

    Attributes:
        model: scored target → the model's labels that stand for it.
        file: scored target → the file's labels that stand for it.
        file_left: unmatched label of the file → its rows, and why.
        model_left: unmatched label of the model → why.
        not_scored: target that one side has no label for → why.
    """

    model: dict[str, list[str]]
    file: dict[str, list[str]]
    file_left: dict[str, dict[str, Any]]
    model_left: dict[str, str]
    not_scored: dict[str, str]


def match_labels(
    mapping: LabelMapping | None, model_labels: Sequence[str], counts: Mapping[str, int], source: str
) -> LabelMatch:
    """Match the label sets; a target is scored if the model has a label for it, and a row of the file has one, too.

    Without a mapping the file has the model's label set, so every label is scored, even one that no row has.

    Args:
        mapping: the mapping; None if the file's labels are the model's.
        model_labels: the labels of the model.
        counts: label of the file → its rows.
        source: the file, for messages.

    Raises:
        MappingError: the file has labels that the model does not have, and there is no mapping; a label in the
            mapping is unknown; or no target has labels on both sides.
    """
    if mapping is None:
        unknown = [f"{label!r} ({counts[label]} rows)" for label in sorted(set(counts) - set(model_labels))]
        if unknown:
            more = f" and {len(unknown) - 20} more" if len(unknown) > 20 else ""
            raise MappingError(
                f"{source}: the model has no label {', '.join(unknown[:20])}{more}; it has {', '.join(model_labels)}. "
                f"Remedy: give --mapping a built-in one ({', '.join(shipped_mappings())}) or your own YAML file, as "
                "shown in training/data/label_mapping.py; leave 0/1 columns that are not labels out with --ignore_columns"
            )
        mapping = identity(model_labels)
        if counts:  # the label sets are the same: a label that no row has can still be predicted wrongly
            counts = dict.fromkeys(model_labels, 0) | dict(counts)
    mapping.refuse_unknown(model_labels, counts)
    model = {target: [label for label in model_labels if target in mapping.targets(label)] for target in mapping.labels}
    file = {target: [label for label in sorted(counts) if target in mapping.targets(label)] for target in model}
    scored = [target for target in mapping.labels if model[target] and file[target]]
    if not scored:
        raise MappingError(
            f"{mapping.source}: no label of {source} ({', '.join(sorted(counts)) or 'it has none'}) matches one of the "
            f"model ({', '.join(model_labels)}). Remedy: use another mapping"
        )

    def why(label: str, other: str) -> str | None:
        targets = mapping.targets(label)
        if set(targets) & set(scored):
            return None
        return f"the {other} has nothing for {', '.join(targets)}" if targets else "not in the mapping"

    return LabelMatch(
        {target: model[target] for target in scored},
        {target: file[target] for target in scored},
        {label: {"rows": counts[label], "why": why(label, "model")} for label in sorted(counts) if why(label, "model")},
        {label: reason for label in model_labels if (reason := why(label, "file"))},
        {
            target: "no row of the file has a label for it" if model[target] else "the model has no label for it"
            for target in mapping.labels
            if target not in scored
        },
    )
