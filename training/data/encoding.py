"""Texts → sentence embeddings, each text encoded once and kept on disk by encoder, version and content."""

from __future__ import annotations

import hashlib
import logging
import re
import sqlite3
import time
from collections.abc import Mapping, Sequence
from contextlib import closing
from pathlib import Path

import numpy as np

from modeling.infer import CacheError, LoadedEncoder, encode_in_batches, require_writable

logger = logging.getLogger(__name__)

_DAMAGED = (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB)


def encode(texts: Sequence[str], encoder: LoadedEncoder, folder: Path) -> np.ndarray:
    """Embeddings of ``texts``, float32 [N, E], in order.

    Texts that are not in the cache are encoded in batches, each committed before the next. So a stopped run loses one
    batch, and several processes may share the file. Each embedding is verified by its hash, and made again if that
    differs.

    Raises:
        CacheError: the cache cannot be used.
    """
    slug = re.sub(r"[^\w.-]+", "_", f"{encoder.name}-{encoder.version}")
    path = folder / f"{slug}.sqlite"
    keys = [hashlib.sha256(text.encode()).digest() for text in texts]
    wanted = dict(zip(keys, texts, strict=True))
    try:
        known = _encode(wanted, encoder, path)
    except sqlite3.DatabaseError as error:
        if getattr(error, "sqlite_errorcode", 0) & 0xFF not in _DAMAGED:
            raise CacheError(folder, f"cannot be used ({path.name}: {error})") from error
        logger.warning("%s is damaged (%s); all its embeddings are made again", path, error)
        for part in (path, path.with_name(f"{path.name}-journal")):
            part.unlink(missing_ok=True)
        known = _encode(wanted, encoder, path)
    return np.stack([known[key] for key in keys])


def _encode(texts: Mapping[bytes, str], encoder: LoadedEncoder, path: Path) -> dict[bytes, np.ndarray]:
    """Embeddings of texts, by the keys of the texts; what the file lacks is encoded and added to it."""
    known = _read(path, list(texts))
    missing = {key: text for key, text in texts.items() if key not in known}
    if not missing:
        logger.info("%s: encoded nothing, all %d texts are cached", encoder.name, len(texts))
        return known
    require_writable(path.parent)
    cached, started, pending = len(known), time.perf_counter(), list(missing)
    with closing(_open(path)) as database:
        database.execute(
            "CREATE TABLE IF NOT EXISTS embeddings (text_sha256 BLOB PRIMARY KEY, vector BLOB) WITHOUT ROWID"
        )
        # A table of its own: earlier versions wrote embeddings without a hash, and may share the file.
        database.execute("CREATE TABLE IF NOT EXISTS hashes (text_sha256 BLOB PRIMARY KEY, sha256 BLOB) WITHOUT ROWID")
        for batch in encode_in_batches(encoder, list(missing.values())):
            batch_keys, pending = pending[: len(batch)], pending[len(batch) :]
            rows = [(key, row.tobytes()) for key, row in zip(batch_keys, batch, strict=True)]
            with database:
                database.executemany("INSERT OR REPLACE INTO embeddings VALUES (?, ?)", rows)
                hashes = ((key, _hash(key, vector)) for key, vector in rows)
                database.executemany("INSERT OR REPLACE INTO hashes VALUES (?, ?)", hashes)
            known.update(zip(batch_keys, batch, strict=True))
    rate = len(missing) / (time.perf_counter() - started)
    logger.info("%s: encoded %d texts, %.0f texts/s; %d cached", encoder.name, len(missing), rate, cached)
    return known


def _open(path: Path) -> sqlite3.Connection:
    return sqlite3.connect(path, timeout=600)


def _hash(key: bytes, vector: bytes) -> bytes:
    return hashlib.sha256(key + vector).digest()


def _read(path: Path, keys: Sequence[bytes], chunk: int = 500) -> dict[bytes, np.ndarray]:
    """The embeddings that are in the file and match their hash, by key."""
    found: dict[bytes, np.ndarray] = {}
    if not path.is_file():
        return found
    damaged = 0
    with closing(_open(path)) as database:
        tables = {name for (name,) in database.execute("SELECT name FROM sqlite_master")}
        if not tables >= {"embeddings", "hashes"}:
            return found
        for start in range(0, len(keys), chunk):
            part = keys[start : start + chunk]
            places = ",".join("?" * len(part))
            query = f"SELECT * FROM embeddings JOIN hashes USING (text_sha256) WHERE text_sha256 IN ({places})"
            for key, vector, sha256 in database.execute(query, part):
                if _hash(key, vector) == sha256:
                    found[key] = np.frombuffer(vector, dtype=np.float32)
                else:
                    damaged += 1
    if damaged:
        logger.warning("%s: %d embeddings are not as they were written; they are made again", path, damaged)
    return found
