"""Start from a finished model: its adapter, projection and pooling, and the classifier's rows of the same labels.

What must agree with it (:data:`INHERITED`) is taken from its recipe. All other weights and settings begin anew.
"""

from __future__ import annotations

import dataclasses
import logging
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
import yaml
from peft import PeftModel, get_peft_model_state_dict, set_peft_model_state_dict

from modeling.adapters import BACKBONE_PREFIX, PEFT_PREFIX, split_trained_weights
from modeling.infer import HUB_ID, as_package_error, read_config, read_json
from modeling.infer.adapter import ADAPTER_FILES, MAX_ADAPTER_BYTES
from modeling.infer.files import installed_package, local_folder, read_bytes, refuse_unsafe_entries
from modeling.infer.weights import load_safetensors, read_head, refuse_other_tensors
from modeling.recipe import Recipe
from modeling.records import ADAPTER_WEIGHTS, AUDIT, METRICS, MODEL, RECIPE, StartRecord
from modeling.rows.errors import first_line
from training.data.reading import SPLITS
from training.fit.prepare import Prepared
from training.recipe import RecipeError
from training.trained import fingerprint, is_run_folder

logger = logging.getLogger(__name__)

INHERITED = (
    *("head", "input", "pooling", "attention", "prefix", "one_token", "encoder"),
    *("model_name", "model_revision", "num_hidden_layers", "lora_rank", "lora_alpha", "lora_target_modules"),
)
"""Settings that must agree with the start: the weights mean nothing without them."""
_FILES = "files"
"""The name of every corpus of one's own: it says nothing."""
_MOST_RECIPE_BYTES, _MOST_TARGETS, _MOST_RANK = 2**20, 100, 2**12


@dataclass(frozen=True)
class Start:
    """A model to start from.

    Attributes:
        name: as it was given.
        records: the folder with its recipe and audit.
        model: the folder with its configuration and weights; in a package the same.
    """

    name: str
    records: Path
    model: Path

    @property
    def is_run(self) -> bool:
        """Is it a run, and not a package?"""
        return self.records != self.model


@lru_cache
def find_start(name: str) -> Start:
    """A finished run, a package folder, a package that is installed with the project, or one on the Hub.

    Raises:
        RecipeError: it is none of these.
    """
    folder = Path(name)
    try:
        start = Start(name, folder, folder / MODEL) if is_run_folder(folder) else _find_package(name)
        config = read_json(start.model, "config.json")
        read_bytes(start.records, RECIPE, _MOST_RECIPE_BYTES)
    except (OSError, ValueError) as error:
        raise RecipeError(
            f"start_from: {name} is neither a finished run nor a package ({first_line(error)}). Remedy: train it to the "
            "end, or name a package's folder or Hub id"
        ) from None
    if config.get("head", "backbone") != "backbone":
        raise RecipeError(
            f"start_from: {name} is a baseline without a backbone. Remedy: start from a model with head backbone"
        )
    return start


def _find_package(name: str) -> Start:
    folder = local_folder(name, None)
    refuse_unsafe_entries(folder)
    return Start(name, folder, folder)


def inherited_settings(name: str) -> dict[str, Any]:
    """The settings of a start that a run takes over.

    Raises:
        RecipeError: they cannot be read, are not plain values, or are not those of the start's own configuration.
    """
    start = find_start(name)
    try:
        content = yaml.safe_load(read_bytes(start.records, RECIPE, _MOST_RECIPE_BYTES))
        settings = {key: content[key] for key in INHERITED}
        adapter = read_json(start.model, Path(ADAPTER_FILES[1]).name if start.is_run else ADAPTER_FILES[1])
        own = read_json(start.model, "config.json") | {"lora_rank": adapter["r"], "lora_alpha": adapter["lora_alpha"]}
    except (OSError, yaml.YAMLError, RecursionError, KeyError, TypeError, ValueError) as error:
        raise RecipeError(
            f"start_from: {name} has a {RECIPE} without a setting that is needed ({first_line(error)}). Remedy: train "
            "and export it with this version"
        ) from None
    if settings["input"] == "tokens":  # then only the audit used the encoder
        del own["encoder"]
    for key, value in settings.items():
        values = value if isinstance(value, list) and len(value) < _MOST_TARGETS else [value]
        plain = all(item is None or isinstance(item, (str, int)) for item in values)
        if not plain or any(str(item).startswith("-") for item in values):
            raise RecipeError(f"start_from: {name} has a {key} that is no setting. Remedy: start from another model")
        if own.get(key, value) != value:
            raise RecipeError(
                f"start_from: {name} has {key} {value!r:.80} in its {RECIPE}, and {own[key]!r:.80} in its model. Remedy: "
                "start from another model"
            )
    if not isinstance(settings["lora_rank"], int) or not 1 <= settings["lora_rank"] <= _MOST_RANK:
        raise RecipeError(
            f"start_from: {name} has a LoRA of rank {settings['lora_rank']}. Remedy: start from another model"
        )
    return settings


def refuse_other_settings(recipe: Recipe) -> None:
    """Refuse settings that do not agree with the start's.

    Raises:
        RecipeError: the message names the first, and both values.
    """
    if not recipe.start_from:
        return
    for key, value in inherited_settings(recipe.start_from).items():
        if getattr(recipe, key) != value:
            raise RecipeError(
                f"{key}: {getattr(recipe, key)!r} is not {value!r}, which start_from {recipe.start_from} has. Remedy: "
                f"leave {key} out, or start from another model"
            )


def record_start(data: Prepared, recipe: Recipe) -> Prepared:
    """The data with an audit that says what the run starts from.

    Raises:
        RecipeError: the start was trained on rows that this run evaluates on.
    """
    if not recipe.start_from:
        return data
    given = find_start(recipe.start_from)
    record: StartRecord = {
        "hub_id": recipe.start_from if _is_hub_id(recipe.start_from) else None,
        "sha256": fingerprint(given.model, "start_from"),
        "labels_taken": [label for label in data.corpus.labels if label in _labels(given)],
        "seen": _refuse_seen_rows(given, data),
    }
    return dataclasses.replace(data, audit={**data.audit, "start": record})


def take_over(model: PeftModel, name: str, labels: Sequence[str]) -> None:
    """Put a start's weights into a new model, in place.

    Args:
        model: with LoRA; its classifier keeps the rows of labels that the start does not have.
        name: of the start.
        labels: of the model, in its order.

    Raises:
        RecipeError: the start cannot be read, or does not fit.
    """
    given = find_start(name)
    own = get_peft_model_state_dict(model, save_embedding_layers=False)
    own_head, own_adapter = split_trained_weights(own)
    wanted = {f"{part}.{key}": value for part, weights in own_head.items() for key, value in weights.items()}
    theirs = _labels(given)
    try:
        head, adapter = _read_weights(given)
        adapter = {key: value for key, value in adapter.items() if key in own_adapter or not _is_idle(key)}
        refuse_other_tensors("the adapter", adapter, {key: value.shape for key, value in own_adapter.items()})
        sizes = {
            key: (len(theirs), *value.shape[1:]) if key.startswith("classifier.") else value.shape
            for key, value in wanted.items()
        }
        refuse_other_tensors("the heads", head, sizes)
    except (OSError, ValueError) as error:
        raise RecipeError(
            f"start_from: {name} cannot be taken over ({first_line(error)}). Remedy: start from another model, or export "
            "or download this one again"
        ) from None
    common = [label for label in labels if label in theirs]
    to, of = [labels.index(label) for label in common], [theirs.index(label) for label in common]
    for key in ("classifier.weight", "classifier.bias"):
        rows = wanted[key].clone()
        rows[to] = head[key][of].to(rows)
        head[key] = rows
    found = {PEFT_PREFIX + key: value for key, value in head.items()}
    found |= {BACKBONE_PREFIX + key.removeprefix(PEFT_PREFIX): value for key, value in adapter.items()}
    set_peft_model_state_dict(model, {key: found[key] for key in own})
    logger.info(
        "starts from %s: adapter, heads, and the classifier's rows of %d of %d labels", name, len(common), len(labels)
    )


def _labels(given: Start) -> list[str]:
    labels = read_json(given.model, "config.json").get("emotion_labels")
    if not isinstance(labels, list) or not all(isinstance(label, str) for label in labels):
        raise RecipeError(
            f"start_from: {given.name} has no labels in its config.json. Remedy: start from another model"
        )
    return labels


def _is_idle(key: str) -> bool:
    """Queries and keys of one token, which change nothing."""
    return bool(re.search(r"\.[qk]_proj\.", key))


def _is_hub_id(name: str) -> bool:
    return bool(re.fullmatch(HUB_ID, name)) and not Path(name).exists() and installed_package(name) is None


def _read_weights(given: Start) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
    """The heads, as ``classifier.weight`` and so on, and the adapter."""
    name = Path(ADAPTER_WEIGHTS).name if given.is_run else ADAPTER_FILES[0]
    with as_package_error(name, "is damaged"):
        weights = load_safetensors(read_bytes(given.model, name, MAX_ADAPTER_BYTES))
    if not given.is_run:
        return read_head(given.model, read_config(given.model)), weights
    parts, adapter = split_trained_weights(weights)
    return {f"{part}.{key}": value for part, head in parts.items() for key, value in head.items()}, adapter


def _refuse_seen_rows(given: Start, data: Prepared) -> list[str]:
    """Refuse a start that was trained on rows that this run evaluates on.

    A split's hash covers its labels, too, so a split with other labels is not known again: of the same corpus, other than
    in its official splits, only the same splits are accepted. Hashes of splits are all that a package says of its rows:
    single copies are not found.

    Returns:
        the hashes of the splits that the start and its own starts have learned from.
    """
    try:
        audit = read_json(given.records, AUDIT)
        theirs = {split: audit["splits"][split]["sha256"] for split in SPLITS}
        whole = audit["corpus_sha256"]  # a corpus of one file, which was split here, has one hash
        seen = {theirs["train"], *(whole[split] for split in whole if split not in ("validation", "test"))}
        seen |= set(audit["start"]["seen"]) if "start" in audit else set()
        protocol, corpus = audit["protocol"], audit["corpus"]
        if not all(re.fullmatch("[0-9a-f]{64}", digest) for digest in (*seen, *theirs.values())):
            raise ValueError("a hash that is none")
        if read_json(given.records, METRICS).get("null_test"):
            raise ValueError("it is a null test")
    except (OSError, KeyError, TypeError, ValueError) as error:
        raise RecipeError(
            f"start_from: {given.name} does not say what it was trained on ({first_line(error)}). Remedy: start from "
            "a model that does"
        ) from None
    ours = {split: data.audit["splits"][split]["sha256"] for split in SPLITS}
    same = all(theirs[split] == ours[split] for split in ("validation", "test"))
    known = [split for split in ("validation", "test") if ours[split] in seen]
    known += ["test"] if ours["test"] == theirs["validation"] else []  # its checkpoint was chosen on them
    same_corpus = whole == data.audit["corpus_sha256"] or corpus == data.audit["corpus"] != _FILES
    moved = same_corpus and not same and (protocol, data.audit["protocol"]) != ("official", "official")
    if known or moved:
        what = f"this run's {known[0]} rows" if known else "the same corpus, split otherwise"
        raise RecipeError(
            f"start_from: {given.name} was trained on {what}, so scores would say nothing about new texts. Remedy: use "
            "its split, split_seed and audit_policy, or start from another model"
        )
    return sorted(seen)
