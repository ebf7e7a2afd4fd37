"""A trained model as a classifier: a package, or the model of a finished run."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any, cast

import torch
from peft import PeftModel

from modeling.backbones import load_frozen_backbone
from modeling.infer import EmotionClassifier, EmotionConfig, EmotionModel, PackageError, read_tokenizer
from modeling.records import MODEL, RECIPE
from training.recipe import RecipeError
from training.run_folder import RunFolderError


def is_run_folder(folder: Path) -> bool:
    """Is this a run folder? A package has the recipe too, but with ``config.json`` next to it."""
    return (folder / RECIPE).is_file() and not (folder / "config.json").is_file()


def model_of(folder: str | Path) -> Path:
    """Where a run or a package has its model: a package is one."""
    return Path(folder) / MODEL if is_run_folder(Path(folder)) else Path(folder)


def fingerprint(model: Path, setting: str) -> str:
    """SHA-256 of the files of a model.

    Args:
        model: its folder.
        setting: of the recipe that names it, for the message.

    Raises:
        RecipeError: it is none.
    """
    if not (model / "config.json").is_file():
        raise RecipeError(
            f"{setting}: {model} is neither a finished run nor a package. Remedy: train it to the end, or get one from "
            "the Hub with `hub_release pull`"
        )
    files = sorted(path for path in model.rglob("*") if path.suffix in (".json", ".safetensors", ".pt"))
    digests = [f"{path.relative_to(model)} {hash_file(path)}" for path in files]
    return hashlib.sha256("\n".join(digests).encode()).hexdigest()


def hash_file(path: Path) -> str:
    """SHA-256 of a file, in hexadecimal digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def load_classifier(model: str, dtype: torch.dtype = torch.float32) -> EmotionClassifier:
    """A package (folder or Hub id), or the model of a finished run, in float32 by default on every machine.

    Raises:
        RunFolderError: the run is not finished.
        FileNotFoundError: neither a folder nor a Hub id.
    """
    folder = Path(model)
    if not is_run_folder(folder):
        if folder.is_dir() and not (folder / "config.json").is_file():
            raise RunFolderError(
                f"{model} is neither a package nor a finished run: it has no config.json and no recipe.yaml. Remedy: name "
                "a package that hub_release export wrote, or a run that has finished"
            )
        try:
            return EmotionClassifier(model, dtype=dtype)
        except PackageError as error:
            raise RunFolderError(f"{model}: {error}") from error
    folder = folder / MODEL
    if not (folder / "config.json").is_file():
        raise RunFolderError(
            f"{model} is not a finished run: model/config.json is missing. Remedy: train it to the end"
        )
    if not (folder / "adapter_config.json").is_file():
        return EmotionClassifier(folder, dtype=torch.float32)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    config = EmotionConfig.from_pretrained(folder)
    backbone = load_frozen_backbone(
        config.model_name,
        config.base_model_revision,
        config.quantization,
        device,
        config.reads_one_token,
        num_hidden_layers=config.num_hidden_layers,
    )
    whole = cast(Any, EmotionModel(config, backbone)).to(device)
    with_adapter = PeftModel.from_pretrained(whole, str(folder))
    trained = cast(EmotionModel, with_adapter.get_base_model())
    if dtype != torch.float32 and config.quantization == "none":
        trained = cast(EmotionModel, cast(Any, with_adapter).merge_and_unload())
        trained.backbone.to(dtype)
    if config.reads_words:
        trained.tokenizer = read_tokenizer(folder, config)
    return EmotionClassifier.from_model(trained)
