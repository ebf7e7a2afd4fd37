"""Run folder → package."""

from __future__ import annotations

import difflib
import json
import shutil
from collections.abc import Collection
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import yaml
from peft import LoraConfig
from safetensors.torch import load_file, save_file

from hub_release.card.facts import read_facts
from hub_release.card.own import (
    CardDetails,
    change_details,
    choose_examples,
    model_name,
    read_details,
    to_json,
    without_own_words,
)
from hub_release.card.render import render_card, replace_file, write_card
from hub_release.check.integrity import hash_problems, layout_problems, unreadable_problems
from hub_release.graphs.measure import GRAPHS, MAX_LOSS, measure_graphs, read_rows
from hub_release.graphs.write import write_graphs
from hub_release.package import (
    HANDLER,
    LAYOUT,
    RefusedError,
    ReleaseError,
    printable,
    read_record,
    require_folder,
    require_free,
    sha256,
)
from hub_release.shipped.bundle import bundle, bundle_without_torch
from hub_release.shipped.merged import write_merged
from hub_release.shipped.requirements import project_version, requirements_of, requirements_of_graph
from modeling.adapters import split_trained_weights
from modeling.infer import AUTO_MAP, CUSTOM_PIPELINES, VERSION_KEY, EmotionClassifier, publish, staging
from modeling.recipe import hide_local_paths
from modeling.records import ADAPTER_WEIGHTS, BASELINE_WEIGHTS, GOLDEN, MODEL, MODEL_CONFIG, RECORDED, GoldenRow


def export(
    run: Path,
    package: Path,
    graphs: Collection[str] = (),
    max_loss: float = MAX_LOSS,
    merged: bool = False,
    **details: Any,
) -> None:
    """Write the package of a finished run; the folder appears whole or not at all.

    Args:
        run: folder of the run.
        package: folder to write; must be new or empty.
        graphs: also write the model as graphs, and score each: names of :data:`hub_release.graphs.measure.GRAPHS`.
        max_loss: the most macro F1 on validation that a graph may lose.
        merged: also write all weights as one file, see :func:`hub_release.shipped.merged.write_merged`.
        details: fields of :class:`hub_release.card.own.CardDetails`; the name is by default the folder's.

    Raises:
        ReleaseError: the run is not finished, the package folder is a file or not empty, the card cannot show a
            detail, the model has no graph or cannot be merged, or a graph loses too much.
    """
    details["name"] = details.get("name") or model_name(package.resolve().name)
    said = change_details(None, details)
    require_folder(run)
    if (run / BASELINE_WEIGHTS).is_file():
        raise ReleaseError(
            f"{run} is a baseline without a backbone, which no package can hold. Remedy: train with --head backbone, or "
            "score this run on other rows with training/run.py evaluate"
        )
    missing = [name for name in (*RECORDED, MODEL_CONFIG) if not (run / name).is_file()]
    if missing:
        raise ReleaseError(f"{run} is not a finished run: {', '.join(missing)} is missing. Remedy: train to the end")
    if json.loads((run / LAYOUT.metrics).read_text(encoding="utf-8")).get("null_test"):
        raise ReleaseError(f"{run} is a null test: it was trained on nothing. Remedy: export the run that it tests")
    require_free(package)
    if graphs:
        read_rows(run)  # what a graph is scored on is missed before it is written
    with staging(package.parent, ".export-") as temporary:
        written = temporary / "package"
        written.mkdir()
        _write(run, written, bool(graphs), merged)
        if merged:
            write_merged(written)
        _write_details(written, said)
        if graphs:
            _write_graphs(run, written, graphs, max_loss)
        write_card(written)
        for path in written.rglob("*"):
            path.chmod(0o755 if path.is_dir() else 0o644)  # safetensors makes its files readable for their owner only
        require_free(package)  # still: another export may have been faster
        publish(written, package)


def _write(run: Path, package: Path, graphs: bool, merged: bool) -> None:
    for name in RECORDED:
        shutil.copyfile(run / name, package / name)
    _hide_local_paths(package / LAYOUT.recipe)
    _hide_examples(package / LAYOUT.audit)
    (package / LAYOUT.code).write_text(bundle(), encoding="utf-8")
    shutil.copyfile(HANDLER, package / LAYOUT.handler)
    config = json.loads((run / MODEL_CONFIG).read_text(encoding="utf-8"))
    config = _without_origins(config) | {
        "auto_map": AUTO_MAP,
        "custom_pipelines": CUSTOM_PIPELINES,
        "num_labels": len(config["emotion_labels"]),
        VERSION_KEY: project_version(),
    }
    built_on = (config["model_name"], config["encoder"], config["quantization"])
    requirements = requirements_of(*built_on, graph=graphs, merged=merged)
    (package / LAYOUT.requirements).write_text(requirements, encoding="utf-8")
    (package / LAYOUT.config).write_text(json.dumps(config, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    head, adapter = split_trained_weights(load_file(run / ADAPTER_WEIGHTS))
    head = {
        part: {name: value.float().contiguous() for name, value in weights.items()} for part, weights in head.items()
    }
    torch.save(head, package / LAYOUT.head)
    save_file(
        {f"{part}.{name}": value for part, weights in head.items() for name, value in weights.items()},
        package / LAYOUT.safe_head,
    )
    if config["input"] != "embedding":
        shutil.copyfile(run / MODEL / LAYOUT.tokenizer, package / LAYOUT.tokenizer)
    (package / LAYOUT.adapter).parent.mkdir()
    save_file({key: value.contiguous() for key, value in adapter.items()}, package / LAYOUT.adapter)
    _write_adapter_config(run, package, config["model_name"])


def _write_graphs(run: Path, package: Path, graphs: Collection[str], max_loss: float) -> None:
    float32, int8 = bool({"onnx", "openvino"} & set(graphs)), "onnx-int8" in graphs
    write_graphs(package, float32, int8)
    measured = [name for name in GRAPHS if name in graphs or (name == "onnx" and float32)]
    record = measure_graphs(run, package, measured, max_loss)
    (package / LAYOUT.graph_record).write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
    encoder = json.loads((package / LAYOUT.config).read_text(encoding="utf-8"))["encoder"]
    (package / LAYOUT.graph_code).write_text(bundle_without_torch(), encoding="utf-8")
    (package / LAYOUT.graph_requirements).write_text(requirements_of_graph(encoder), encoding="utf-8")


def _write_details(package: Path, details: CardDetails) -> None:
    """Record what the publisher says; examples get golden rows, so that the check reproduces what the card shows."""
    golden = read_record(package, GOLDEN)
    known = [row["text"] for row in golden["rows"]]
    if new := [text for text in details.examples if text not in known]:
        said = EmotionClassifier(package).predict_proba(new).tolist()
        golden["rows"] += [GoldenRow(text=text, probabilities=row) for text, row in zip(new, said, strict=True)]
        (package / GOLDEN).write_text(json.dumps(golden, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    if not details.examples:
        details = replace(details, examples=choose_examples(known, read_facts(package).about_emotions))
    (package / LAYOUT.details).write_text(to_json(details), encoding="utf-8")


def _write_adapter_config(run: Path, package: Path, model_name: str) -> None:
    """Write the LoRA configuration for the bare backbone: without our prefix and without heads."""
    trained = LoraConfig.from_pretrained(str(run / MODEL))
    trained.target_modules = str(trained.target_modules).removeprefix(r"backbone\.")
    trained.modules_to_save = None
    trained.base_model_name_or_path = model_name
    trained.auto_mapping = None
    trained.inference_mode = True
    trained.save_pretrained(str((package / LAYOUT.adapter_config).parent))


def _without_origins(config: dict[str, Any]) -> dict[str, Any]:
    """Remove ``_name_or_path``, the backbone's folder on the training machine."""
    kept = {key: value for key, value in config.items() if key != "_name_or_path"}
    return {key: _without_origins(value) if isinstance(value, dict) else value for key, value in kept.items()}


def _hide_examples(audit: Path) -> None:
    """Remove the texts from the audit: they are rows of the corpus, which may be private."""

    def without(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: without(item) for key, item in value.items() if key != "examples"}
        return value

    content = without(json.loads(audit.read_text(encoding="utf-8")))
    audit.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def _hide_local_paths(recipe: Path) -> None:
    fields = yaml.safe_load(recipe.read_text(encoding="utf-8"))
    recipe.write_text(yaml.safe_dump(hide_local_paths(fields), sort_keys=False, allow_unicode=True), encoding="utf-8")


def renew_card(package: Path, overwrite: bool = False, **changes: Any) -> None:
    """Render the card of a sealed package again. Only the card and its details are sealed again.

    Args:
        package: folder of the package. All other files must match its seal.
        overwrite: also drop edits of the card outside of its section for own words.
        changes: fields of :class:`hub_release.card.own.CardDetails` to record.

    Raises:
        RefusedError: files other than the card do not match the seal.
        ReleaseError: there is no package, the card has other edits, or as :func:`render_card`.
    """
    require_folder(package)
    if not (package / LAYOUT.config).is_file():
        raise ReleaseError(
            f"{package} is not a package: {LAYOUT.config} is missing. Remedy: run hub_release export again"
        )
    problems = unreadable_problems(package)
    if not problems:
        found = [*layout_problems(package), *hash_problems(package)]
        problems = [problem for problem in found if problem.file != LAYOUT.card]
    if problems:
        raise RefusedError(
            f"the card of {package} is left as it is: other files do not match the seal",
            [printable(problem) for problem in problems],
        )
    details = change_details(read_details(package), changes) if changes else None
    card = render_card(package, details)
    if not overwrite:
        _refuse_edits(package, card)
    if details:
        replace_file(package, LAYOUT.details, to_json(details))
    replace_file(package, LAYOUT.card, card)
    _seal_again(package, LAYOUT.card, LAYOUT.details)


def _refuse_edits(package: Path, card: str) -> None:
    """Raise if the card was edited since it was sealed, and the new one would drop that."""
    there = package / LAYOUT.card
    if not there.is_file() or f"{sha256(there)}  {LAYOUT.card}" in (package / LAYOUT.sums).read_text().splitlines():
        return
    now, new = (without_own_words(text) for text in (there.read_text(encoding="utf-8"), card))
    lost = [line for line in difflib.ndiff(new.splitlines(), now.splitlines()) if line.startswith(("+ ", "- "))]
    if lost:
        raise RefusedError(
            f"{there} was edited outside of its section for own words, and is left as it is",
            [
                f"{line[:200]} (edited). Remedy: write it into that section, or give --overwrite to drop it"
                if line.startswith("+ ")
                else f"{line[:200]} (as recorded)"
                for line in lost[:20]
            ],
        )


def _seal_again(package: Path, *names: str) -> None:
    lines = (package / LAYOUT.sums).read_text(encoding="utf-8").splitlines()
    kept = [line for line in lines if line[66:] not in names]
    new = [f"{sha256(package / name)}  {name}" for name in names if (package / name).is_file()]
    ordered = sorted([*kept, *new], key=lambda line: line[66:])
    replace_file(package, LAYOUT.sums, "".join(f"{line}\n" for line in ordered))
