"""Values of the model card: what the model predicts, and how well it does."""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping, Sequence
from typing import Any

from hub_release.card.facts import Facts
from hub_release.card.own import CardDetails, choose_examples
from hub_release.card.text import Markdown
from modeling.recipe import CROSS_FIT
from modeling.records import SCORE_NAMES, AdaptationRecord, Policy, PolicyScores, ScoreName, scores_by_split

_THRESHOLD_NAMES: dict[Policy, str] = {
    "fixed": "0.5 for all labels",
    "global": "one for all labels",
    "per_label": "one for each label",
}
_PARTS_OF_TEST = {
    "test": "test",
    "test_without_copies": "test, without texts of train",
    "bag_of_words": "test, by a bag of words",
}
_EARLIER_EXAMPLES = ["Thank you so much, this made my day!", "I am scared of what they will say."]

Cells = tuple[str, ...]


def collect_scores(facts: Facts) -> dict[str, Any]:
    """Names, examples, scores, unreliable labels, calibration, and published scores."""
    return {**_identity(facts), **_scores(facts), **_reliability(facts), **_comparison(facts)}


def with_interval(value: float, low: float, high: float) -> Markdown:
    """A score with its interval."""
    return Markdown(f"{value:.3f} [{low:.3f}, {high:.3f}]")


def _score(scores: PolicyScores, name: ScoreName) -> Markdown:
    return with_interval(scores[name], *scores["intervals_95"][name])


def _label_score(row: Mapping[str, str], name: str) -> Markdown:
    return with_interval(*(float(row[key]) for key in (name, f"{name}_low", f"{name}_high")))


def _identity(facts: Facts) -> dict[str, Any]:
    test, details = facts.metrics["test"], facts.details or CardDetails()
    return {
        **{key: getattr(details, key) for key in ("title", "contact", "intended_use")},
        **_examples(facts),
        "about_emotions": facts.about_emotions,
        "contaminated": facts.contaminated,
        "label_count": str(len(facts.labels)),
        "backbone": facts.backbone.name,
        "dataset": facts.dataset.name,
        "headline": _score(test["per_label"], "macro_f1"),
        "headline_fixed": _score(test["fixed"], "macro_f1"),
        "test_rows": f"{facts.audit['splits']['test']['rows']:,}",
        "files": facts.files,
        "threshold_example": Markdown(json.dumps({facts.labels[0]: 0.3}, ensure_ascii=False)),
    }


def _examples(facts: Facts) -> dict[str, Any]:
    """Texts to try, with what the model said; cards of earlier versions all have the same texts in their code."""
    golden = {row["text"]: row["probabilities"] for row in facts.golden["rows"]}
    if facts.details and facts.details.examples:
        shown, first = facts.details.examples, facts.details.examples[:2]
        call = shlex.quote(first[0])
    else:
        shown, first, call = choose_examples(list(golden), True), _EARLIER_EXAMPLES, f'"{_EARLIER_EXAMPLES[0]}"'
    return {
        "examples": [(text, _found(facts, golden[text])) for text in shown],
        "example": Markdown(json.dumps(first[0], ensure_ascii=False)),
        "two_examples": Markdown(json.dumps(first, ensure_ascii=False)),
        "example_command": f"python infer.py {call}",
    }


def _found(facts: Facts, probabilities: Sequence[float]) -> str:
    thresholds = facts.config["thresholds"] | facts.config.get("adapted_thresholds", {})
    reached = sorted(
        (-probability, label)
        for label, probability in zip(facts.golden["labels"], probabilities, strict=True)
        if probability >= thresholds[label]
    )
    return ", ".join(f"{label} {-negative:.3f}" for negative, label in reached) or "none"


def _adapted(record: AdaptationRecord | None) -> dict[str, str] | None:
    if record is None:
        return None
    counts = {name: f"{record[name]:,}" for name in ("texts", "labeled")}
    return counts | {"thresholds": ", ".join(f"{name} {cut:.3g}" for name, cut in record["thresholds"].items())}


def _scores(facts: Facts) -> dict[str, Any]:
    copies = facts.audit["copies"]["test_in_train"]["rows"]
    return {
        "protocol": facts.metrics["protocol"],
        "adapted": _adapted(facts.adaptation),
        "cross_fitted": facts.metrics["protocol"] == CROSS_FIT,
        "folds": str(facts.recipe.get("folds")),
        "bag_of_words": "bag_of_words" in facts.metrics,
        "bootstrap_draws": f"{facts.context['bootstrap_draws']:,}",
        "score_rows": [
            (
                rows,
                policy,
                *(_score(by_policy[key], name) for name in SCORE_NAMES),
            )
            for part, by_policy in scores_by_split(facts.metrics, with_baseline=True).items()
            if (rows := _PARTS_OF_TEST.get(part))
            for key, policy in _THRESHOLD_NAMES.items()
        ],
        "copies_in_test": f"{copies:,}" if copies else None,
        "scored_without_copies": "test_without_copies" in facts.metrics,
        "label_rows": [_label_row(facts, label) for label in facts.labels],
    }


def _label_row(facts: Facts, label: str) -> Cells:
    own, fixed = (facts.test_row(label, policy) for policy in ("per_label", "fixed"))
    scores = (_label_score(own, name) for name in ("precision", "recall", "f1", "average_precision"))
    support = f"{int(own['support']):,}"
    return (label, support, f"{float(own['threshold']):.3f}", *scores, f"{float(fixed['f1']):.3f}")


def _reliability(facts: Facts) -> dict[str, Any]:
    rule, calibration = facts.context["unreliable"], facts.calibration
    rows = [facts.test_row(label, "per_label") for label in facts.config["unreliable_labels"]]
    errors = ("expected_calibration_error", "mean_label_calibration_error", "brier_score")
    scores = ("macro_f1_at_0.5", "macro_f1_at_own_thresholds")
    return {
        "rule_rows": f"{rule['positives_below']:,}",
        "rule_width": f"{rule['f1_interval_wider_than']:g}",
        "unreliable_rows": [(row["label"], f"{int(row['support']):,}", _label_score(row, "f1")) for row in rows],
        "calibration_method": calibration["method"],
        "holds_back": calibration["method"] != "platt" and any(calibration["bias"]),
        "calibration_reason": calibration["reason"],
        "calibration_rows": [
            (
                split,
                when,
                *(f"{calibration[split][when][name]:.4f}" for name in errors),
                *(f"{calibration[split][when][name]:.3f}" for name in scores),
            )
            for split in ("validation", "test")
            for when in ("before", "after")
        ],
    }


def _comparison(facts: Facts) -> dict[str, Any]:
    own = facts.metrics["test"]["per_label"]
    protocol = facts.metrics["protocol"]
    rows = "out of fold" if protocol == CROSS_FIT else "test split, thresholds from validation"
    this = (f"{protocol} {rows}", _score(own, "macro_f1"), _score(own, "micro_f1"))
    others = [
        (row["system"], row["protocol"], *(f"{row[k]:g}" if row[k] is not None else "" for k in names))
        for names in [("macro_f1", "micro_f1")]
        for row in facts.context["published"]
    ]
    return {
        "published_rows": [(Markdown("**this model**"), *this), *others] if others else [],
        "published_test": facts.published_test,
    }
