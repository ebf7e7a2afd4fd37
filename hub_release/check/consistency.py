"""A package's weights, code, protocol and origin: whether each file loads and is what it must be."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

from safetensors import safe_open
from torch import nn

from hub_release.check.agreement import EXPORT
from hub_release.check.earlier import is_earlier, is_earlier_code
from hub_release.package import HANDLER, LAYOUT, read_record
from hub_release.shipped.bundle import bundle, bundle_without_torch
from hub_release.shipped.merged import served_files
from hub_release.shipped.requirements import (
    PROJECT,
    not_installed,
    read_requirements,
    requirements_of,
    requirements_of_graph,
    same_requirements,
)
from modeling import records
from modeling.infer import (
    AUTO_MAP,
    BUNDLED_BACKBONE,
    CUSTOM_PIPELINES,
    HEAD_FILES,
    HUB_ID,
    SCHEMA_VERSION,
    VERSION_KEY,
    EmotionConfig,
    PackageError,
    backbone_on_meta,
    merged_file,
    read_adapter,
    read_graph,
    read_head_file,
    read_json,
    read_merged,
    read_tokenizer,
    refuse_different_heads,
)
from modeling.recipe import CONTAMINATED

T = TypeVar("T")
_HUB_KEYS = {
    "model_type": EmotionConfig.model_type,
    "architectures": ["EmotionModel"],
    "auto_map": AUTO_MAP,
    "custom_pipelines": CUSTOM_PIPELINES,
    "problem_type": "multi_label_classification",
    "schema_version": SCHEMA_VERSION,
}


class Findings(list[PackageError]):
    """The problems that were found so far."""

    def attempt(self, step: Callable[..., T], *arguments: Any) -> T | None:
        """The value of a step; if it fails, None, and the failure joins the list."""
        try:
            return step(*arguments)
        except PackageError as error:
            self.append(error)
            return None


def weight_problems(package: Path, config: EmotionConfig) -> Findings:
    """What keeps the heads, tokenizer, graph, merged model or adapter from loading, the last onto the named backbone."""
    found = Findings()
    heads = [found.attempt(read_head_file, package, name, config) for name in HEAD_FILES]
    if None not in heads:
        found.attempt(refuse_different_heads, heads)
    if config.reads_words:
        found.attempt(read_tokenizer, package, config)
    backbone = found.attempt(backbone_on_meta, config)
    if not found and (package / merged_file(config)).is_file():
        found.attempt(read_merged, package, config, heads[0])
        found += served_problems(package)
    for name in (LAYOUT.graph, LAYOUT.int8_graph):
        if (package / name).is_file():
            found.attempt(read_graph, package, name)
    if backbone is not None:
        found.attempt(_adapter_problem, package, config, backbone)
    return found


def _adapter_problem(package: Path, config: EmotionConfig, backbone: nn.Module) -> None:
    """Refuse an adapter that does not fit, or has tensors that nothing reads: golden probabilities cannot show them."""
    _, tensors = read_adapter(package, config, backbone)
    with safe_open(package / LAYOUT.adapter, framework="numpy") as file:
        stored = len(file.keys())
    if stored > len(tensors):
        what = f"has {stored - len(tensors)} tensors that no model reads"
        raise PackageError(LAYOUT.adapter, what, EXPORT)


def served_problems(package: Path) -> Findings:
    """Files for servers that do not say what the package's own configuration and tokenizer say."""
    found = Findings()
    for name, text in (found.attempt(served_files, package) or {}).items():
        if (package / name).is_file() and (package / name).read_bytes() != text.encode():
            found.append(PackageError(name, f"is not made from {LAYOUT.config} and {LAYOUT.tokenizer}", EXPORT))
    return found


def code_problems(package: Path) -> Findings:
    """Code that is neither this version's own nor an earlier version's; such code is never run."""
    found = Findings()
    for name, own in (
        (LAYOUT.code, bundle().encode()),
        (LAYOUT.graph_code, bundle_without_torch().encode()),
        (LAYOUT.handler, HANDLER.read_bytes()),
    ):
        path = package / name
        if path.is_file() and path.read_bytes() != own and not is_earlier_code(path):
            remedy = f"{EXPORT}, or check with {_maker(package)}"
            found.append(PackageError(name, "is not the code of this version of hub_release", remedy))
    return found


def _maker(package: Path) -> str:
    try:
        return f"{PROJECT} {read_json(package, LAYOUT.config)[VERSION_KEY]}, which made it"
    except (PackageError, KeyError):
        return "the version of hub_release that made it"


def protocol_problems(package: Path, allow_contaminated: bool) -> Findings:
    """Scores that do not measure the model: contaminated ones, and those of a null test."""
    found = Findings()
    metrics = found.attempt(read_record, package, records.METRICS)
    if metrics is None:
        return found
    if metrics.get("protocol") == CONTAMINATED and not allow_contaminated:
        remedy = "train with split official, or give --allow-contaminated to accept a card that says so"
        found.append(PackageError(LAYOUT.metrics, "has contaminated scores (split protocol pooled-r2)", remedy))
    if metrics.get("null_test"):
        what = "is from a null test, which is trained on nothing"
        found.append(PackageError(LAYOUT.metrics, what, "export the run that it tests"))
    return found


def origin_problems(package: Path, config: EmotionConfig) -> Findings:
    """A backbone or encoder that only this machine has, and wrong requirements."""
    found = Findings()
    written = read_json(package, LAYOUT.config)
    if lost := [key for key, value in _HUB_KEYS.items() if written.get(key) != value]:
        found.append(PackageError(LAYOUT.config, f"lacks what the Auto classes need: {', '.join(lost)}", EXPORT))
    if not re.fullmatch(r"\d[\w.+!]*", str(written.get(VERSION_KEY))):
        found.append(PackageError(LAYOUT.config, f"does not say in {VERSION_KEY} what made it", EXPORT))
    if config.model_name != BUNDLED_BACKBONE and not re.fullmatch(HUB_ID, config.model_name):
        remedy = "train from a Hub id, or push the backbone first"
        found.append(PackageError(LAYOUT.config, f"names the local folder {config.model_name}", remedy))
    encoder = config.encoder.removeprefix("sentence-transformers/")
    if config.reads_embedding and not re.fullmatch(rf"[\w.-]+|{HUB_ID}", encoder):
        found.append(
            PackageError(LAYOUT.config, f"names the local encoder {encoder}", "train with an encoder from the Hub")
        )
    found += _requirement_problems(package, config)
    return found


def _requirement_problems(package: Path, config: EmotionConfig) -> Iterator[PackageError]:
    """Requirements other than what the code of that version needs; bounds may differ between versions."""
    earlier, has_graph = is_earlier(package), (package / LAYOUT.graph_record).is_file()
    has_merged = (package / merged_file(config)).is_file()
    code = (package / LAYOUT.code).read_text(encoding="utf-8") if earlier else None
    wanted = {
        LAYOUT.requirements: requirements_of(
            config.model_name, config.encoder, config.quantization, code, has_graph, has_merged
        )
    }
    if has_graph:
        wanted[LAYOUT.graph_requirements] = requirements_of_graph(config.encoder)
    for name, expected in wanted.items():
        if not (package / name).is_file():
            continue
        try:
            text = (package / name).read_bytes().decode("utf-8")
            same = same_requirements(text, expected) if earlier else text == expected
        except ValueError:
            same = False
        if not same:
            yield PackageError(name, "is not what the code and the encoder need", EXPORT)
        elif missing := not_installed(read_requirements(package / name)):
            yield PackageError(name, f"needs {', '.join(missing)}, not installed here", f"pip install -r {name}")
