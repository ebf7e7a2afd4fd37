"""Records: whether the recipe, the audit and the other files say the same as the model and as each other."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import fields
from pathlib import Path
from typing import Any

from hub_release.card.render import render_card
from hub_release.check.earlier import figures, is_earlier
from hub_release.check.scores import (
    OTHER_LABELS,
    adaptation_problems,
    adapted_problems,
    calibration_problems,
    metrics_problems,
    table_problems,
    threshold_problems,
    unreliable_problems,
)
from hub_release.graphs.measure import GRAPHS
from hub_release.package import LAYOUT, ReleaseError, read_recipe, read_record
from modeling import records
from modeling.focal import alpha_per_label
from modeling.infer import EmotionConfig, PackageError, as_package_error, read_json
from modeling.infer.settings import ModelSettings
from modeling.recipe import CONTAMINATED, CROSS_FIT, planned_epochs, rows_of_a_fold, rows_of_step
from modeling.records import scores_by_split

EXPORT = "run hub_release export again"
_FEWEST_TEXTS = 3
MOST_DIFFERENCE = 0.1
"""Of a graph's golden probabilities from the model's, whatever was recorded: what differs more is another model."""
_MOST_CHARACTERS = 100_000
"""Of all golden texts; ours have 1,700."""


def record_problems(package: Path, config: EmotionConfig) -> list[PackageError]:
    """Labels, thresholds, scores, settings or golden rows that contradict each other, and a card that is not true."""
    found: list[PackageError] = []
    for name, compare in _RECORDS:
        try:
            found += _contradictions(package, config, name, compare)
        except PackageError as error:
            found.append(error)
    return found


def _contradictions(package: Path, config: EmotionConfig, name: str, compare: Comparison) -> list[PackageError]:
    with as_package_error(name, "or a file that it is made from has unexpected content", EXPORT):
        try:
            remedy = "run hub_release adapt again" if name == LAYOUT.adaptation else EXPORT
            return [PackageError(name, what, remedy) for what in compare(package, config)]
        except FileNotFoundError:  # reported with the layout
            return []


def _differences(pairs: Iterable[tuple[str, Any, Any]], other: str) -> Iterator[str]:
    """What two files say differently: name, the value here, the value in ``other``."""
    for name, own, others in pairs:
        if own != others:
            yield f"has {name} {own!r:.80}, but {other} has {others!r:.80}"


def _recipe_problems(package: Path, config: EmotionConfig) -> Iterator[str]:
    try:
        recipe = read_recipe(package)
    except ValueError as error:
        yield str(error)
        return
    names = [field.name for field in fields(ModelSettings)] + ["encoder"] * config.reads_embedding
    pairs = [(name, recipe[name], getattr(config, name)) for name in names if name in recipe]
    if recipe["num_hidden_layers"]:
        pairs.append(("num_hidden_layers", recipe["num_hidden_layers"], config.num_hidden_layers))
    if not read_record(package, records.CONTEXT)["local"]["backbone"]:
        pairs.append(("model_name", recipe["model_name"], config.model_name))
    yield from _differences(pairs, LAYOUT.config)
    adapter = read_json(package, LAYOUT.adapter_config)
    pairs = [(name, recipe[name], adapter.get(key)) for name, key in (("lora_rank", "r"), ("lora_alpha", "lora_alpha"))]
    yield from _differences(pairs, LAYOUT.adapter_config)
    environment = read_record(package, records.ENVIRONMENT)
    size = rows_of_step(recipe, environment["processes"])
    pairs = [
        ("seed", recipe["seed"], environment["seed"]),
        ("rows_of_step", size, environment.get("rows_of_step", size)),
    ]
    yield from _differences(pairs, LAYOUT.environment)
    trained, planned = read_record(package, records.TIMING)["epochs"], _planned_epochs(package, recipe)
    # The trainer counts a last, smaller step as less than an epoch; without patience, nothing else ends it early.
    if not 0 < trained < planned + 1e-6 or (trained <= planned - 1 and not recipe["early_stopping_patience"]):
        yield f"has epochs {planned!r:.80}, but {LAYOUT.timing} has {trained!r:.80}"
    focal = read_record(package, records.FOCAL)
    yield from _differences([("gamma", recipe["gamma"], focal["gamma"])], LAYOUT.focal)
    counted = read_record(package, records.AUDIT)["training_rows"]
    positives, rows = list(counted["positives"].values()), counted["real"] + counted["synthetic"]
    alpha = alpha_per_label(recipe["alpha"], config.emotion_labels, positives, rows)
    if any(abs(own - other) > 1e-4 for own, other in zip(alpha, focal["alpha"].values(), strict=True)):
        yield f"has alpha {recipe['alpha']!r:.80}, which does not give the alpha in {LAYOUT.focal}"


def _planned_epochs(package: Path, recipe: dict[str, Any]) -> int:
    counted = read_record(package, records.AUDIT)["training_rows"]
    size = rows_of_step(recipe, read_record(package, records.ENVIRONMENT)["processes"])
    rows = rows_of_a_fold(counted["real"] + counted["synthetic"], recipe["split"], recipe.get("folds", 1))
    return planned_epochs(recipe["epochs"], recipe.get("min_steps", 0), rows, size)


def _golden_problems(package: Path, config: EmotionConfig) -> Iterator[str]:
    golden = read_record(package, records.GOLDEN)
    if golden["labels"] != config.emotion_labels:
        yield OTHER_LABELS
        return
    texts = [row["text"] for row in golden["rows"] if isinstance(row["text"], str)]
    rows = [row["probabilities"] for row in golden["rows"]]
    if len({text.strip() for text in texts} - {""}) < _FEWEST_TEXTS:
        yield f"has fewer than {_FEWEST_TEXTS} different texts, which do not prove a model"
    if len(texts) < len(rows) or sum(map(len, texts)) > _MOST_CHARACTERS:
        yield f"has rows without a text, or texts of more than {_MOST_CHARACTERS:,} characters"
    if any("\ud800" <= sign <= "\udfff" for text in texts for sign in text):
        yield "has half a character (a lone surrogate)"
    if not all(len(row) == len(golden["labels"]) and all(0 <= value <= 1 for value in row) for row in rows):
        yield "has rows without a probability for every label"


def _focal_problems(package: Path, config: EmotionConfig) -> Iterator[str]:
    focal = read_record(package, records.FOCAL)
    if list(focal["alpha"]) != config.emotion_labels:
        yield OTHER_LABELS
    if not all(0 <= value <= 1 for value in focal["alpha"].values()) or not 0 <= focal["gamma"] < 100:
        yield "has an alpha that is not from 0 to 1, or a gamma that is not from 0 to 100"


def _audit_problems(package: Path, config: EmotionConfig) -> Iterator[str]:
    """Three files must name the same split protocol; only the contaminated one makes rows from rows outside train."""
    audit, recipe = read_record(package, records.AUDIT), read_recipe(package)
    counted = [audit["training_rows"]["positives"], *(split["positives"] for split in audit["splits"].values())]
    if any(list(labels) != config.emotion_labels for labels in (audit["labels"], *counted)):
        yield OTHER_LABELS
        return
    protocols = {
        LAYOUT.audit: audit["protocol"],
        LAYOUT.metrics: read_record(package, records.METRICS)["protocol"],
        LAYOUT.recipe: recipe["split"],
    }
    if len(set(protocols.values())) > 1:
        said = ", ".join(f"{file} {protocol}" for file, protocol in protocols.items())
        yield f"and other files say different split protocols: {said}"
        return
    outside = audit["training_rows"]["synthetic_with_parent_outside_train"]
    if outside and audit["protocol"] != CONTAMINATED:
        yield f"counts {outside:,} rows that were made from rows outside train, which {audit['protocol']} does not do"
    if policy := audit.get("audit_policy"):  # a pooled corpus has none
        yield from _differences([("audit_policy", policy["policy"], recipe["audit_policy"])], LAYOUT.recipe)
    pairs = [("corpus", audit["corpus"], config.dataset), ("revision", audit["revision"], config.dataset_revision)]
    yield from _differences(pairs, LAYOUT.config)
    yield from _count_problems(audit)


def _count_problems(audit: Any) -> Iterator[str]:
    """Counts of rows that do not add up."""
    balanced = audit["training_rows"]
    size = {name: split["rows"] for name, split in audit["splits"].items()}
    size["training_rows"] = balanced["real"] + balanced["synthetic"]
    for name, split in [*audit["splits"].items(), ("training_rows", balanced)]:
        counts = list(split["positives"].values())
        if not all(0 <= count <= size[name] for count in counts):
            yield f"counts more positive rows than {name} has rows, or fewer than none"
        if sum(counts) < size[name] - split.get("rows_without_label", size[name]):
            yield f"counts fewer positive rows than {name} has rows with a label"
    if audit["protocol"] != CONTAMINATED and balanced["real"] > size["train"]:
        yield "counts more real training rows than train has rows"
    for name, copies in audit["copies"].items():
        if not isinstance(copies, dict):
            continue
        kinds = copies["exact"] + copies["normalised"] + copies["near"]
        if copies["rows"] != kinds or not all(0 <= count <= kinds for count in copies["positives"].values()):
            yield f"has copies {name} that do not add up"
        if copies["rows"] > size[name.split("_")[0]]:
            yield f"counts more copies {name} than there are rows"
    for name in ("validation", "test"):  # the policy for copies may have taken a label's last rows from train
        empty = [label for label, count in audit["splits"][name]["positives"].items() if not count]
        if audit["labels_without_positives"][name] != empty:
            yield f"has labels_without_positives that are not those of {name}"


def _environment_problems(package: Path, config: EmotionConfig) -> Iterator[str]:
    environment = read_record(package, records.ENVIRONMENT)
    for key in ("processes", "threads", "memory_gib"):
        if not environment[key] > 0:
            yield f"has {key} {environment[key]!r:.80}, not above 0"


def _timing_problems(package: Path, config: EmotionConfig) -> Iterator[str]:
    for key, value in read_record(package, records.TIMING).items():
        if isinstance(value, int | float) and not 0 <= value < float("inf"):
            yield f"has {key} {value!r:.80}, not from 0"


def _graph_problems(package: Path, config: EmotionConfig) -> Iterator[str]:
    if not (package / LAYOUT.graph_record).is_file():  # reported with the layout if there is a graph
        return
    record = read_record(package, records.GRAPHS)
    names = {name: LAYOUT.int8_graph if name == records.INT8 else LAYOUT.graph for name in GRAPHS}
    found = {name for name, file in names.items() if (package / file).is_file()}
    graphs = record["graphs"]
    if not found - {"openvino"} | {records.TORCH} <= graphs.keys() <= found | {records.TORCH}:
        yield f"names {', '.join(sorted(graphs))}, not the graphs that the package has"
        return
    if not (record["threads"] > 0 and record["batch_size"] > 0):
        yield "has threads or a batch_size that are not above 0"
    for name, graph in graphs.items():
        if list(graph["thresholds"]) != config.emotion_labels:
            yield OTHER_LABELS
        scores = [graph[split][key] for split in ("validation", "test") for key in ("macro_f1", "log_loss")]
        shares = [*graph["thresholds"].values(), *scores[::2]]
        if not all(0 <= share <= 1 for share in shares) or not all(0 <= loss < 100 for loss in scores[1::2]):
            yield f"has thresholds or scores of {name} that no rows have"
        most = MOST_DIFFERENCE if name != records.TORCH else 1e-4
        if not (0 <= graph["golden_difference"] <= most and graph["texts_per_second"] > 0):
            yield f"has {name} with {graph['golden_difference']!r:.80} as its golden_difference, or without a speed"
    own, metrics = graphs[records.TORCH], read_record(package, records.METRICS)
    if metrics["protocol"] == CROSS_FIT:  # graphs were read on rows that the model was trained on
        return
    for split in ("validation", "test"):
        recorded = scores_by_split(metrics)[split]["per_label"]["macro_f1"]
        if not abs(own[split]["macro_f1"] - recorded) <= 1e-4:
            yield f"has a macro_f1 of PyTorch that is not that of {LAYOUT.metrics} ({split})"


def _card_problems(package: Path, config: EmotionConfig) -> Iterator[str]:
    try:
        written = render_card(package)
    except ReleaseError as error:
        if isinstance(error.__cause__, FileNotFoundError):
            raise error.__cause__ from None
        why = str(error).partition(" Remedy: ")[0].rstrip(".")  # the problem gets a remedy of its own
        yield f"cannot be rendered: {why}"
        return
    said = (package / LAYOUT.card).read_text(encoding="utf-8")
    if not (figures(said) == figures(written) if is_earlier(package) else said == written):
        yield "does not match the recorded files"


Comparison = Callable[[Path, EmotionConfig], Iterator[str]]
_RECORDS: tuple[tuple[str, Comparison], ...] = (
    (LAYOUT.recipe, _recipe_problems),
    (LAYOUT.golden, _golden_problems),
    (LAYOUT.thresholds, threshold_problems),
    (LAYOUT.focal, _focal_problems),
    (LAYOUT.per_label, table_problems),
    (LAYOUT.metrics, metrics_problems),
    (LAYOUT.calibration, calibration_problems),
    (LAYOUT.config, unreliable_problems),
    (LAYOUT.audit, _audit_problems),
    (LAYOUT.environment, _environment_problems),
    (LAYOUT.timing, _timing_problems),
    (LAYOUT.graph_record, _graph_problems),
    (LAYOUT.config, adapted_problems),
    (LAYOUT.adaptation, adaptation_problems),
    (LAYOUT.card, _card_problems),
)
