"""Texts → sentence embeddings, each text encoded once and kept on disk by encoder, version and content."""

from __future__ import annotations

import hashlib
import logging
import re
import sqlite3
import time
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path

import numpy as np

from modeling.infer import LoadedEncoder, encode_in_batches

logger = logging.getLogger(__name__)


def encode(texts: Sequence[str], encoder: LoadedEncoder, folder: Path) -> np.ndarray:
    """Embeddings of ``texts``, float32 [N, E], in order.

    Texts that are not in the cache are encoded in batches, each committed before the next. So a stopped run loses one
    batch, and several processes may share the file.
    """
    folder.mkdir(parents=True, exist_ok=True)
    slug = re.sub(r"[^\w.-]+", "_", f"{encoder.name}-{encoder.version}")
    keys = [hashlib.sha256(text.encode()).digest() for text in texts]
    with closing(sqlite3.connect(folder / f"{slug}.sqlite", timeout=600)) as database:
        database.execute(
            "CREATE TABLE IF NOT EXISTS embeddings (text_sha256 BLOB PRIMARY KEY, vector BLOB) WITHOUT ROWID"
        )
        known = _read(database, keys)
        missing = {key: text for key, text in zip(keys, texts, strict=True) if key not in known}
        started = time.perf_counter()
        pending = list(missing)
        for batch in encode_in_batches(encoder, list(missing.values())):
            batch_keys, pending = pending[: len(batch)], pending[len(batch) :]
            with database:
                rows = zip(batch_keys, (row.tobytes() for row in batch), strict=True)
                database.executemany("INSERT OR IGNORE INTO embeddings VALUES (?, ?)", rows)
            known.update(zip(batch_keys, batch, strict=True))
    if missing:
        rate = len(missing) / (time.perf_counter() - started)
        logger.info(
            "%s: encoded %d texts, %.0f texts/s; %d cached", encoder.name, len(missing), rate, len(known) - len(missing)
        )
    else:
        logger.info("%s: encoded nothing, all %d texts are cached", encoder.name, len(texts))
    return np.stack([known[key] for key in keys])


def _read(database: sqlite3.Connection, keys: Sequence[bytes], chunk: int = 500) -> dict[bytes, np.ndarray]:
    found: dict[bytes, np.ndarray] = {}
    for start in range(0, len(keys), chunk):
        part = list(dict.fromkeys(keys[start : start + chunk]))
        places = ",".join("?" * len(part))
        query = f"SELECT text_sha256, vector FROM embeddings WHERE text_sha256 IN ({places})"
        found.update((key, np.frombuffer(vector, dtype=np.float32)) for key, vector in database.execute(query, part))
    return found
