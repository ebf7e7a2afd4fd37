"""A package with thresholds for other texts than those it was trained on."""

from __future__ import annotations

import json
import shutil
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from hub_release.card.render import write_card
from hub_release.check.earlier import is_earlier
from hub_release.check.integrity import hash_problems, unreadable_problems
from hub_release.package import (
    LAYOUT,
    RefusedError,
    ReleaseError,
    package_files,
    printable,
    require_folder,
    require_free,
    sha256,
)
from modeling.infer import EmotionClassifier, publish, staging
from modeling.infer.adaptation import Adaptation
from modeling.records import AdaptationRecord
from modeling.rows.label_cells import LabelReading, LabelSet
from modeling.rows.reading import Columns, read_file, table_rows
from modeling.rows.tables import normal_name


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
    package: Path, file: Path, output: Path, text_column: str = "text", label_column: str = "labels"
) -> tuple[Adaptation, OtherTexts]:
    """Write a copy of a package whose thresholds are for the texts of a file, see :meth:`EmotionClassifier.adapt`.

    Args:
        package: its folder; it stays as it is.
        file: texts, with labels or without.
        output: folder to write; must be new or empty.
        text_column: column of the texts.
        label_column: column with the labels; without it, the 0/1 columns with names of labels.

    Raises:
        ReleaseError: there is no package, an earlier version made it, its files do not match its seal, or ``output`` is
            not free.
        CorpusError: the file cannot be read.
    """
    require_folder(package)
    require_free(output)
    if problems := unreadable_problems(package) or hash_problems(package):
        raise RefusedError(f"{package} cannot be adapted", [printable(problem) for problem in problems])
    if is_earlier(package):
        raise ReleaseError(
            f"{package} has an infer.py that does not know adapted thresholds. Remedy: export its run again"
        )
    classifier = EmotionClassifier(package)
    rows = read_other_texts(file, classifier.labels, text_column, label_column)
    found = classifier.adapt(rows.texts, rows.labels)
    with staging(output.parent, ".adapt-") as temporary:
        written = temporary / "package"
        for name, path in package_files(package).items():
            (written / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, written / name)
        _write(written, found, sha256(file))
        require_free(output)
        publish(written, output)
    return found, rows


def _write(package: Path, found: Adaptation, digest: str) -> None:
    config = json.loads((package / LAYOUT.config).read_text(encoding="utf-8"))
    config["adapted_thresholds"] = config.get("adapted_thresholds", {}) | found.thresholds
    (package / LAYOUT.config).write_text(json.dumps(config, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    facts = {name: value for name, value in asdict(found).items() if name != "before"}
    record: AdaptationRecord = {**facts, "thresholds": config["adapted_thresholds"], "file_sha256": digest}  # type: ignore[typeddict-item]  # asdict
    (package / LAYOUT.adaptation).write_text(json.dumps(record, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    write_card(package)


def read_other_texts(file: Path, labels: Sequence[str], text_column: str, label_column: str) -> OtherTexts:
    """The texts of a file, and their labels if it has a column of labels, or 0/1 columns named as labels.

    Raises:
        CorpusError: the file cannot be read.
    """
    columns = Columns(normal_name(text_column), normal_name(label_column))
    table = read_file(file, columns)
    if columns.labels in table.rows:
        known = LabelSet(tuple(labels), is_closed=False)
    else:
        known = LabelSet(tuple(name for name in labels if name in table.rows and name != columns.text))
    if not known.names:
        table = table._replace(rows=table.rows.assign(**{columns.labels: [[]] * len(table.rows)}))
        rows = table_rows({"file": table}, LabelSet(()), columns, LabelReading("names", ","))["file"]
        return OtherTexts([row.text for row in rows], None, {})
    rows = table_rows({"file": table}, known, columns, LabelReading())["file"]
    counts = Counter(label for row in rows for label in row.labels if label not in labels)
    return OtherTexts(
        [row.text for row in rows], [[label for label in row.labels if label in labels] for row in rows], dict(counts)
    )
