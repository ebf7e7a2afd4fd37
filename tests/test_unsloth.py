"""``loader: unsloth``: the reference's calls, in a separate process and environment (``UNSLOTH_PYTHON``)."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import types
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from tokenizers import Tokenizer, models
from transformers import MistralForCausalLM, PreTrainedTokenizerFast

from hub_release.export import export
from modeling import infer
from modeling.backbones import load_frozen_backbone, load_unsloth_backbone
from modeling.infer import EmotionClassifier
from modeling.recipe import ALL_LINEAR
from tests.conftest import ROOT, add_to_hub_cache, tiny_config, tiny_flags, write_corpus
from training.commands.evaluate import load_classifier
from training.options import parse
from training.recipe import RecipeError

PYTHON = os.environ.get("UNSLOTH_PYTHON")
BACKBONE = "tiny/headed-mistral"


def test_what_is_not_supported_names_the_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    for flags in ("--quantization none", "--quantization 8bit --one_token false", "--quantization nf4"):
        with pytest.raises(RecipeError, match=r"loader: unsloth only loads a whole backbone in nf4. Remedy: "):
            parse(["--loader", "unsloth", *flags.split()])
    recipe = parse(["--loader", "unsloth", "--quantization", "nf4", "--one_token", "false"]).recipe
    assert recipe.loader == "unsloth"
    with pytest.raises(ValueError, match=r"cannot read smollm2-135m.*Remedy: use loader transformers"):
        load_unsloth_backbone("smollm2-135m", None, 16, 32, 0.0, ALL_LINEAR)
    with pytest.raises(ImportError, match=r"not installed.*Remedy: run tests/unsloth_environment.sh"):
        load_unsloth_backbone(BACKBONE, None, 16, 32, 0.0, ALL_LINEAR)
    monkeypatch.setitem(sys.modules, "unsloth", types.ModuleType("unsloth"))
    with pytest.raises(RuntimeError, match="Remedy: use a process for each loader"):
        load_frozen_backbone(BACKBONE, None, "none", "cpu")


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that was trained in Unsloth's environment, on a GPU or on its CPU backend."""
    if PYTHON is None:
        pytest.skip("UNSLOTH_PYTHON is not set: make an environment with tests/unsloth_environment.sh")
    base = tmp_path_factory.mktemp("unsloth")
    torch.manual_seed(0)
    MistralForCausalLM(tiny_config()).save_pretrained(base / "backbone")
    tokenizer = Tokenizer(models.WordLevel({"<unk>": 0, "<s>": 1, "</s>": 2}, unk_token="<unk>"))
    names = {"unk_token": "<unk>", "bos_token": "<s>", "eos_token": "</s>", "pad_token": "</s>"}
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, **names).save_pretrained(base / "backbone")
    add_to_hub_cache(BACKBONE, base / "backbone")
    flags = tiny_flags(write_corpus(base / "corpus"), BACKBONE, base / "run")
    environment = {
        **{key: value for key, value in os.environ.items() if key != "VIRTUAL_ENV"},
        "PYTHONPATH": str(ROOT),
        **({} if torch.cuda.is_available() else {"UNSLOTH_FORCE_CPU": "1"}),
        "GOEMOTIONS_MISTRAL_CACHE": str(base / "cache"),
    }
    chosen = ["--loader", "unsloth", "--quantization", "nf4", "--one_token", "false", "--learning_rate_lora", "0.02"]
    result = subprocess.run(
        [PYTHON, str(ROOT / "training" / "run.py"), *flags, *chosen],
        cwd=base,
        env=environment,
        capture_output=True,
        text=True,
    )
    assert result.returncode == 0, result.stderr[-3000:]
    assert "by Unsloth: 14 of 14 linear layers in nf4" in (base / "run" / "train.log").read_text(encoding="utf-8")
    return base / "run"


def test_the_trained_adapter_is_the_references(run: Path) -> None:
    settings = json.loads((run / "model" / "adapter_config.json").read_text())
    assert (settings["r"], settings["lora_alpha"], settings["bias"], settings["use_rslora"]) == (16, 32, "none", False)
    adapter = load_file(run / "model" / "adapter_model.safetensors")
    places = {key.split(".")[-3] for key in adapter if "lora_B" in key and adapter[key].any()}
    assert places >= set(ALL_LINEAR) - {"q_proj", "k_proj"} and sum("lora_A" in key for key in adapter) == 2 * 7


def test_the_plain_path_gives_the_same_probabilities(run: Path, tmp_path: Path) -> None:
    """Checked for the run, its package, and its package in the one-token form."""
    golden: Any = json.loads((run / "golden.json").read_text())
    texts = [row["text"] for row in golden["rows"]]
    expected = np.array([row["probabilities"] for row in golden["rows"]])
    assert expected.std(axis=0).min() > 0.01
    export(run, tmp_path / "package")
    plain = EmotionClassifier(tmp_path / "package")
    config = json.loads((tmp_path / "package" / "config.json").read_text())
    (tmp_path / "package" / "config.json").write_text(json.dumps(config | {"one_token": True}))
    one = EmotionClassifier(tmp_path / "package")
    assert isinstance(one.model.backbone.get_base_model(), infer.OneTokenMistral)
    found = [classifier.predict_proba(texts) for classifier in (load_classifier(str(run)), plain, one)]
    with plain.model.backbone.disable_adapter():
        without_adapter = plain.predict_proba(texts)
    assert np.abs(without_adapter - expected).max() > 0.05
    for probabilities in found:
        print(f"largest difference to the process with Unsloth: {np.abs(probabilities - expected).max():.5f}")
        np.testing.assert_allclose(probabilities, expected, rtol=0, atol=0.005)
    np.testing.assert_allclose(found[0], found[1], rtol=0, atol=1e-6)
