"""Texts → sentence embeddings, each text encoded once and kept on disk by encoder, version and content; and tokens."""

from __future__ import annotations

import hashlib
import itertools
import logging
import os
import re
import sqlite3
import tempfile
import time
from collections.abc import Iterable, Mapping, Sequence
from contextlib import closing
from pathlib import Path
from typing import IO, Any

import numpy as np
from tokenizers import Tokenizer

from modeling.infer import CacheError, LoadedEncoder, encode_in_batches, require_writable, tokenize

logger = logging.getLogger(__name__)

MAPPED_BYTES = 2**28
"""From this size on embeddings lie in a file: the system holds of it what it has room for."""
_TEXTS_AT_ONCE = 10_000
_DAMAGED = (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB)


def encode(texts: Sequence[str], encoder: LoadedEncoder, folder: Path) -> np.ndarray:
    """Embeddings of ``texts``, float32 [N, E], in order; many of them lie in a file that the system maps into memory.

    Texts that are not in the cache are encoded in batches, each committed before the next. So a stopped run loses one
    batch, and several processes may share the file. Each embedding is verified by its hash, and made again if that
    differs.

    Raises:
        CacheError: the cache cannot be used.
    """
    slug = re.sub(r"[^\w.-]+", "_", f"{encoder.name}-{encoder.version}")
    path = folder / f"{slug}.sqlite"
    try:
        return _encode(texts, encoder, path)
    except sqlite3.DatabaseError as error:
        if getattr(error, "sqlite_errorcode", 0) & 0xFF not in _DAMAGED:
            raise CacheError(folder, f"cannot be used ({path.name}: {error})") from error
        logger.warning("%s is damaged (%s); all its embeddings are made again", path, error)
        for part in (path, path.with_name(f"{path.name}-journal")):
            part.unlink(missing_ok=True)
        return _encode(texts, encoder, path)


class _Vectors:
    """Embeddings of N texts, filled row by row; their width is known with the first.

    Args:
        keys: of the texts, [N].
        folder: for the file that holds many of them.
    """

    def __init__(self, keys: Sequence[bytes], folder: Path) -> None:
        self.keys, self.folder = keys, folder
        self.rows: np.ndarray | None = None
        self.missing: dict[bytes, list[int]] = {}

    def fill(self, places: Iterable[int], vectors: Mapping[bytes, np.ndarray]) -> None:
        """Fill rows from embeddings by key; a row whose key has none is missing."""
        for place in places:
            vector = vectors.get(self.keys[place])
            if vector is None:
                self.missing.setdefault(self.keys[place], []).append(place)
                continue
            if self.rows is None:
                self.rows = _allocate((len(self.keys), len(vector)), self.folder)
            self.rows[place] = vector


def _allocate(shape: tuple[int, int], folder: Path) -> np.ndarray:
    """A float32 array; a large one in a file without a name, which is gone with the process."""
    if 4 * shape[0] * shape[1] < MAPPED_BYTES:
        return np.empty(shape, dtype=np.float32)
    with _unnamed(folder) as file:
        if hasattr(os, "posix_fallocate"):  # a full disk is an error now, not a fault of the memory later
            os.posix_fallocate(file.fileno(), 0, 4 * shape[0] * shape[1])
        return np.asarray(np.memmap(file, dtype=np.float32, mode="w+", shape=shape))


def _unnamed(folder: Path) -> IO[bytes]:
    """A file without a name, in a folder or, if that is only read, elsewhere."""
    return tempfile.TemporaryFile(dir=folder if os.access(folder, os.W_OK) else None)


class TokenRows(Sequence[np.ndarray]):
    """Token ids of N texts, int64 [T] each, out of one array that many rows may share.

    Args:
        ids: of all texts, one after the other.
        starts: where each row begins in it, int [N].
        ends: where it ends, int [N].
    """

    def __init__(self, ids: np.ndarray, starts: np.ndarray, ends: np.ndarray) -> None:
        self.ids, self.starts, self.ends = ids, starts, ends

    def __len__(self) -> int:
        return len(self.starts)

    def __getitem__(self, row: Any) -> Any:
        if isinstance(row, slice):
            return TokenRows(self.ids, self.starts[row], self.ends[row])
        return self.ids[self.starts[row] : self.ends[row]].astype(np.int64)

    def take(self, rows: np.ndarray) -> TokenRows:
        """The rows with these indices."""
        return TokenRows(self.ids, self.starts[rows], self.ends[rows])

    @classmethod
    def of_lengths(cls, ids: np.ndarray, lengths: np.ndarray) -> TokenRows:
        """Rows that lie one after the other."""
        ends = np.cumsum(lengths)
        return cls(ids, ends - lengths, ends)


def tokenize_rows(tokenizer: Tokenizer, texts: Sequence[str], bos_token_id: int, folder: Path) -> TokenRows:
    """Token ids of ``texts`` in a file without a name, of which the system holds in memory what it has room for."""
    lengths = np.zeros(len(texts), dtype=np.int64)
    with _unnamed(folder) as file:
        for start in range(0, len(texts), _TEXTS_AT_ONCE):
            for row, tokens in enumerate(
                tokenize(tokenizer, texts[start : start + _TEXTS_AT_ONCE], bos_token_id), start
            ):
                lengths[row] = len(tokens)
                file.write(tokens.astype(np.int32).tobytes())
        file.flush()
        ids = np.asarray(np.memmap(file, dtype=np.int32, mode="r"))
    return TokenRows.of_lengths(ids, lengths)


def _encode(texts: Sequence[str], encoder: LoadedEncoder, path: Path) -> np.ndarray:
    """Embeddings of texts, [N, E]; what the file lacks is encoded and added to it."""
    found = _Vectors([hashlib.sha256(text.encode()).digest() for text in texts], path.parent)
    _read(path, found)
    missing = found.missing
    if not missing:
        logger.info("%s: encoded nothing, all %d texts are cached", encoder.name, len(texts))
        return np.zeros((0, 0), np.float32) if found.rows is None else found.rows
    require_writable(path.parent)
    started, pending = time.perf_counter(), list(missing)
    cached = len(set(found.keys)) - len(missing)
    with closing(_open(path)) as database:
        # A page of the usual 4,096 bytes would hold one vector, and half a page of nothing; with larger ones, more of the
        # index is written for each text.
        database.execute("PRAGMA page_size = 8192")
        # The system may write when it likes: what a loss of power damages is noticed, and made again.
        database.execute("PRAGMA synchronous = OFF")
        # Rows lie in the order in which they were added, and only an index is sorted by hash: rows that are sorted by hash
        # themselves would be written all over the file.
        _drop_earlier_tables(database, path)
        database.execute(
            "CREATE TABLE IF NOT EXISTS vectors "
            "(row INTEGER PRIMARY KEY, text_sha256 BLOB UNIQUE, sha256 BLOB, vector BLOB)"
        )
        start = 0
        for batch in encode_in_batches(encoder, [texts[places[0]] for places in missing.values()]):
            keys = pending[start : start + len(batch)]
            start += len(batch)
            rows = [(key, row.tobytes()) for key, row in zip(keys, batch, strict=True)]
            with database:
                database.executemany(
                    "INSERT OR REPLACE INTO vectors (text_sha256, sha256, vector) VALUES (?, ?, ?)",
                    ((key, _hash(key, vector), vector) for key, vector in rows),
                )
            places = itertools.chain.from_iterable(missing[key] for key in keys)
            found.fill(places, dict(zip(keys, batch, strict=True)))
    rate = len(missing) / (time.perf_counter() - started)
    logger.info("%s: encoded %d texts, %.0f texts/s; %d cached", encoder.name, len(missing), rate, cached)
    assert found.rows is not None
    return found.rows


def _drop_earlier_tables(database: sqlite3.Connection, path: Path) -> None:
    """Give their room in the file to new embeddings."""
    earlier = database.execute("SELECT name FROM sqlite_master WHERE name IN ('embeddings', 'hashes')").fetchall()
    if earlier:
        logger.info("%s: embeddings of an earlier version are made again", path)
    for (name,) in earlier:
        database.execute(f"DROP TABLE IF EXISTS {name}")  # another process may be faster


def _open(path: Path) -> sqlite3.Connection:
    return sqlite3.connect(path, timeout=600)


def _hash(key: bytes, vector: bytes) -> bytes:
    return hashlib.sha256(key + vector).digest()


def _read(path: Path, found: _Vectors, chunk: int = 500) -> None:
    """Fill in the embeddings that are in the file and match their hash."""
    number, damaged = len(found.keys), 0
    if not path.is_file():
        found.fill(range(number), {})
        return
    with closing(_open(path)) as database:
        if not database.execute("SELECT name FROM sqlite_master WHERE name = 'vectors'").fetchone():
            found.fill(range(number), {})
            return
        for start in range(0, number, chunk):
            part, known = found.keys[start : start + chunk], {}
            places = ",".join("?" * len(part))
            query = f"SELECT text_sha256, sha256, vector FROM vectors WHERE text_sha256 IN ({places})"
            for key, sha256, vector in database.execute(query, part):
                if _hash(key, vector) == sha256:
                    known[key] = np.frombuffer(vector, dtype=np.float32)
                else:
                    damaged += 1
            found.fill(range(start, start + len(part)), known)
    if damaged:
        logger.warning("%s: %d embeddings are not as they were written; they are made again", path, damaged)
