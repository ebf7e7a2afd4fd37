"""More ways to damage a package: records that contradict each other, sealed again and with a card that repeats them."""

from __future__ import annotations

import csv
from collections.abc import Callable
from pathlib import Path
from typing import Any

import yaml

from hub_release.card.render import write_card
from hub_release.package import LAYOUT
from tests.hostile_packages import Mutation, add, edit, setting

Row = dict[str, str]


def told(name: str, file: str, change: Mutation) -> None:
    """Add a case whose card repeats what the changed records say, if it still can."""

    def mutate(folder: Path) -> None:
        change(folder)
        try:
            write_card(folder)
        except Exception:  # the check has to find the cause, not this
            return

    add(name, file, mutate, True)


def table(change: Callable[[Row], Any], policy: str = "per_label", label: str = "joy", split: str = "test") -> Mutation:
    """Change one row of ``per_label.csv``."""

    def mutate(folder: Path) -> None:
        with (folder / LAYOUT.per_label).open(encoding="utf-8", newline="") as file:
            rows = list(csv.DictReader(file))
        (row,) = [r for r in rows if (r["split"], r["thresholds"], r["label"]) == (split, policy, label)]
        change(row)
        with (folder / LAYOUT.per_label).open("w", encoding="utf-8", newline="") as file:
            writer = csv.DictWriter(file, list(row))
            writer.writeheader()
            writer.writerows(rows)

    return mutate


def recipe(**settings: Any) -> Mutation:
    def mutate(folder: Path) -> None:
        content = yaml.safe_load((folder / LAYOUT.recipe).read_text())
        (folder / LAYOUT.recipe).write_text(yaml.safe_dump(content | settings, sort_keys=False))

    return mutate


def scores(change: Callable[[dict[str, Any]], Any]) -> Mutation:
    return edit(LAYOUT.metrics, lambda content: change(content["test"]["per_label"]))


def shifted(row: Row, name: str, by: float) -> None:
    """Another score, with an interval that holds it."""
    row[name] = str(min(max(float(row[name]) + (by if float(row[name]) + by <= 1 else -by), 0), 1))
    row[f"{name}_low"], row[f"{name}_high"] = "0.0", "1.0"


PER_LABEL, METRICS = LAYOUT.per_label, LAYOUT.metrics
told("a precision of 2.5", PER_LABEL, table(lambda row: row.update(precision="2.5")))
told("a precision that is not a number", PER_LABEL, table(lambda row: row.update(precision="nan")))
told("a precision that no rows give", PER_LABEL, table(lambda row: shifted(row, "precision", 0.0123)))
told("a recall that no rows give", PER_LABEL, table(lambda row: shifted(row, "recall", 0.0123)))
told("an F1 of other scores", PER_LABEL, table(lambda row: shifted(row, "f1", 0.05)))
told("an F1 below zero", PER_LABEL, table(lambda row: row.update(f1="-0.5", f1_low="-1.0")))
told("an interval beside its score", PER_LABEL, table(lambda row: row.update(recall_low="0.0", recall_high="0.001")))
told("an interval turned around", PER_LABEL, table(lambda row: row.update(f1_low="1.0", f1_high="0.0")))
told("an interval beyond one", PER_LABEL, table(lambda row: row.update(f1_high="1.5")))
told("an average precision of minus one", PER_LABEL, table(lambda row: row.update(average_precision="-1")))
told("another number of positive rows", PER_LABEL, table(lambda row: row.update(support="14")))
told("half a positive row", PER_LABEL, table(lambda row: row.update(support="7.5")))
told("a fixed threshold of 0.4", PER_LABEL, table(lambda row: row.update(threshold="0.4"), "fixed"))
told("another common threshold", PER_LABEL, table(lambda row: row.update(threshold="0.123"), "global"))
told("another macro precision", PER_LABEL, scores(lambda c: c.update(macro_precision=c["macro_precision"] + 0.01)))
told("another macro recall", PER_LABEL, scores(lambda c: c.update(macro_recall=c["macro_recall"] - 0.01)))
told("another micro F1", METRICS, scores(lambda c: c.update(micro_f1=c["micro_f1"] + 0.02)))
told("another micro recall", METRICS, scores(lambda c: c.update(micro_recall=0.5, micro_f1=0.5, micro_precision=0.5)))
told("an exact accuracy that no rows give", METRICS, scores(lambda c: c.update(exact_accuracy=0.4567)))
told("a score without its interval", METRICS, scores(lambda c: c["intervals_95"].pop("micro_f1")))
told("an interval without its score", METRICS, scores(lambda c: c["intervals_95"].update(micro_f2=[0.1, 0.9])))
told("an overall interval beside its score", METRICS, scores(lambda c: c["intervals_95"].update(macro_f1=[0.1, 0.2])))
told(
    "a score of two", METRICS, scores(lambda c: c.update(samples_f1=2.0) or c["intervals_95"].update(samples_f1=[0, 2]))
)
told(
    "more positive rows in the audit",
    PER_LABEL,
    edit(LAYOUT.audit, lambda c: c["splits"]["test"]["positives"].update(joy=9)),
)
told("fewer rows than positive ones", LAYOUT.audit, edit(LAYOUT.audit, lambda c: c["splits"]["train"].update(rows=3)))
told(
    "copies that do not add up",
    LAYOUT.audit,
    edit(LAYOUT.audit, lambda c: c["copies"]["validation_in_train"].update(rows=9)),
)
told(
    "a label said to have no rows",
    LAYOUT.audit,
    edit(LAYOUT.audit, lambda c: c["labels_without_positives"]["test"].append("joy")),
)
told("more real rows than train has", LAYOUT.audit, edit(LAYOUT.audit, lambda c: c["training_rows"].update(real=999)))
told("another policy for copies", LAYOUT.audit, edit(LAYOUT.audit, lambda c: c["audit_policy"].update(policy="fail")))
told("another corpus in the audit", LAYOUT.audit, setting(LAYOUT.audit, corpus="goemotions"))
told(
    "a best threshold above one",
    LAYOUT.thresholds,
    edit(LAYOUT.thresholds, lambda c: c["per_label_unshrunk"].update(joy=1.5)),
)
told("another source of thresholds", LAYOUT.thresholds, setting(LAYOUT.thresholds, source="tuned on test"))
told("a calibration of the wrong method", LAYOUT.calibration, setting(LAYOUT.calibration, method="none"))
told("a calibration for fewer labels", LAYOUT.calibration, edit(LAYOUT.calibration, lambda c: c["scale"].pop()))
told(
    "a calibration with other scores",
    LAYOUT.calibration,
    edit(LAYOUT.calibration, lambda c: c["test"]["after"].update({"macro_f1_at_0.5": 0.99})),
)
told(
    "a calibration error of seven",
    LAYOUT.calibration,
    edit(LAYOUT.calibration, lambda c: c["test"]["after"].update(brier_score=7)),
)
told("no unreliable labels", LAYOUT.config, setting(LAYOUT.config, unreliable_labels=[]))
told("six hundred epochs", LAYOUT.recipe, recipe(epochs=600))
told("fewer epochs than were trained", LAYOUT.recipe, recipe(epochs=1))
told("another seed", LAYOUT.recipe, recipe(seed=1))
told("steps of other rows", LAYOUT.recipe, setting(LAYOUT.environment, rows_of_step=7))
told("another rank", LAYOUT.recipe, recipe(lora_rank=64))
told("another scale of LoRA", LAYOUT.recipe, recipe(lora_alpha=64))
told("another gamma", LAYOUT.recipe, recipe(gamma=3.0))
told("another alpha", LAYOUT.recipe, recipe(alpha="uniform"))
told("another window", LAYOUT.recipe, recipe(window_length=64))
told("another pooling", LAYOUT.recipe, recipe(pooling="mean"))
told("another encoder", LAYOUT.recipe, recipe(encoder="minilm"))
told("another backbone", LAYOUT.recipe, recipe(model_name="mistralai/Mistral-7B-v0.1"))
told("fewer layers", LAYOUT.recipe, recipe(num_hidden_layers=1))
told("an alpha of two", LAYOUT.focal, edit(LAYOUT.focal, lambda c: c["alpha"].update(joy=2)))
told("time that ran backward", LAYOUT.timing, setting(LAYOUT.timing, seconds_of_training=-5))
told("no processes", LAYOUT.environment, setting(LAYOUT.environment, processes=0))
told(
    "one empty golden text",
    LAYOUT.golden,
    edit(LAYOUT.golden, lambda c: c.update(rows=c["rows"][:1]) or c["rows"][0].update(text="")),
)
told(
    "golden rows of one text",
    LAYOUT.golden,
    edit(LAYOUT.golden, lambda c: [row.update(text="hi") for row in c["rows"]]),
)
told(
    "a golden text of a megabyte", LAYOUT.golden, edit(LAYOUT.golden, lambda c: c["rows"][0].update(text="a " * 2**19))
)
told("a golden row without a text", LAYOUT.golden, edit(LAYOUT.golden, lambda c: c["rows"][0].update(text=None)))
told(
    "a golden probability of two",
    LAYOUT.golden,
    edit(LAYOUT.golden, lambda c: c["rows"][0]["probabilities"].__setitem__(0, 2)),
)
