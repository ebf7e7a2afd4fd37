"""A package with thresholds for other texts than those it was trained on."""

from __future__ import annotations

import json
import shutil
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from hub_release.card.render import write_card
from hub_release.check.integrity import hash_problems, unreadable_problems
from hub_release.package import (
    LAYOUT,
    RefusedError,
    ReleaseError,
    package_files,
    printable,
    read_record,
    require_folder,
    require_free,
    sha256,
)
from hub_release.shipped.bundle import bundle
from modeling.infer import EmotionClassifier, publish, staging
from modeling.infer.adaptation import Adaptation
from modeling.records import AUDIT, AdaptationRecord
from modeling.rows.label_cells import LabelReading, LabelSet
from modeling.rows.reading import Columns, read_file, table_rows
from modeling.rows.tables import CorpusError, normal_name


@dataclass(frozen=True)
class OtherTexts:
    """Texts of another kind.

    Attributes:
        texts: the N texts.
        labels: the package's labels of each text; None if the file has none.
        others: label that the package does not have → rows with it.
    """

    texts: list[str]
    labels: list[list[str]] | None
    others: dict[str, int]


def adapt_package(
    package: Path, file: Path, output: Path, text_column: str = "text", label_column: str | None = None
) -> tuple[Adaptation, OtherTexts]:
    """Write a copy of a package whose thresholds are for the texts of a file, see :meth:`EmotionClassifier.adapt`.

    Args:
        package: its folder; it stays as it is.
        file: texts, with labels or without.
        output: folder to write; must be new or empty.
        text_column: column of the texts.
        label_column: column with the labels; by default ``labels``, or 0/1 columns with names of labels.

    Raises:
        ReleaseError: there is no package, another version made it, it is adapted already, its files do not match its
            seal, ``output`` is not free, or no threshold would change.
        CorpusError: the file cannot be read, or has none of the package's labels.
    """
    require_folder(package)
    require_free(output)
    if problems := unreadable_problems(package) or hash_problems(package):
        raise RefusedError(f"{package} cannot be adapted", [printable(problem) for problem in problems])
    if (package / LAYOUT.code).read_bytes() != bundle().encode():
        raise ReleaseError(
            f"{package} has the infer.py of another version, which may not know adapted thresholds. Remedy: use "
            "classifier.adapt in Python, or the hub_release that made the package"
        )
    classifier = EmotionClassifier(package)
    if classifier.config.adapted_thresholds:
        raise ReleaseError(f"{package} is adapted already. Remedy: adapt the package that it was made from")
    rows = read_other_texts(file, classifier.labels, text_column, label_column)
    found = classifier.adapt(rows.texts, rows.labels)
    if not found.thresholds:
        raise ReleaseError(f"no threshold would change with {file}. Remedy: give texts with labels")
    with staging(output.parent, ".adapt-") as temporary:
        written = temporary / "package"
        for name, path in package_files(package).items():
            (written / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, written / name)
        _write(written, found, sha256(file))
        require_free(output)
        publish(written, output)
    return found, rows


@dataclass(frozen=True)
class Distance:
    """How far texts are from the rows that a package was validated on, by what the model expects in them.

    Attributes:
        apart: differences between the labels' shares, added up, for each label of a validation row.
        chance: what as many texts of the same kind would have, about, if they were drawn with their labels.
        label: the label with the greatest difference.
        share: the share of the texts that the model expects to have it.
        usual: the share of the validation rows that have it.
    """

    apart: float
    chance: float
    label: str
    share: float
    usual: float

    def __str__(self) -> str:
        return (
            f"distance from the rows that the package was validated on: {self.apart:.2f} (about {self.chance:.2f} would be "
            f"chance). {self.label!r} differs most: the model expects it in {self.share:.0%} of these texts, and "
            f"{self.usual:.0%} of those rows had it"
        )


def measure_distance(package: Path, found: Adaptation) -> Distance:
    """How far the texts are for which thresholds were chosen."""
    validation = read_record(package, AUDIT)["splits"]["validation"]
    usual = np.array([validation["positives"][label] for label in found.shares]) / validation["rows"]
    here = np.array([*found.shares.values()])
    most, labels = int(np.argmax(abs(here - usual))), max(float(usual.sum()), 1e-9)
    # The mean absolute deviation of a share, if it is normal.
    chance = np.sqrt(2 / np.pi * usual * (1 - usual) * (1 / found.texts + 1 / validation["rows"]))
    return Distance(
        apart=float(abs(here - usual).sum()) / labels,
        chance=float(chance.sum()) / labels,
        label=[*found.shares][most],
        share=float(here[most]),
        usual=float(usual[most]),
    )


def _write(package: Path, found: Adaptation, digest: str) -> None:
    config = json.loads((package / LAYOUT.config).read_text(encoding="utf-8"))
    config["adapted_thresholds"] = found.thresholds
    (package / LAYOUT.config).write_text(json.dumps(config, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    facts = {name: value for name, value in asdict(found).items() if name not in ("before", "shares")}
    record: AdaptationRecord = {**facts, "file_sha256": digest}  # type: ignore[typeddict-item]  # asdict
    (package / LAYOUT.adaptation).write_text(json.dumps(record, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    write_card(package)


def read_other_texts(file: Path, labels: Sequence[str], text_column: str, label_column: str | None) -> OtherTexts:
    """The texts of a file, and their labels if it has a column of labels, or 0/1 columns named as labels.

    Raises:
        CorpusError: the file cannot be read, lacks the column that is named, or has labels but none of the package's.
    """
    columns = Columns(normal_name(text_column), normal_name(label_column or "labels"))
    table = read_file(file, columns)
    own = {normal_name(name): name for name in labels}
    if columns.labels in table.rows:
        known = LabelSet(tuple(labels), is_closed=False)
    elif label_column is not None:
        there = ", ".join(map(repr, table.rows.columns))
        raise CorpusError(
            f"{file}: no column {label_column!r}, only {there}. Remedy: set --label_column to one of these"
        )
    else:
        known = LabelSet(tuple(name for name in own if name in table.rows and name != columns.text))
    if not known.names:
        table = table._replace(rows=table.rows.assign(**{columns.labels: [[]] * len(table.rows)}))
        rows = table_rows({"file": table}, LabelSet(()), columns, LabelReading("names", ","))["file"]
        return OtherTexts([row.text for row in rows], None, {})
    rows = table_rows({"file": table}, known, columns, LabelReading())["file"]
    named = [[own[normal_name(label)] for label in row.labels if normal_name(label) in own] for row in rows]
    others = Counter(label for row in rows for label in row.labels if normal_name(label) not in own)
    if not any(named):
        said = ", ".join(repr(label) for label, _ in others.most_common(5)) or "none"
        raise CorpusError(
            f"{file}: no row has a label of the package ({', '.join(labels)}); the file has {said}. Remedy: rename the labels, "
            "or train from the package (start_from)"
        )
    return OtherTexts([row.text for row in rows], named, dict(others.most_common()))
