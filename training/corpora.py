"""Corpora as a command reads them: rows, their splits and audit, and the embeddings of their texts."""

from __future__ import annotations

import logging
import os
from dataclasses import dataclass
from typing import Any

import numpy as np
from accelerate import PartialState
from safetensors import SafetensorError

from modeling.infer import ENCODERS, LoadedEncoder, cache_folder, load_encoder
from modeling.recipe import CROSS_FIT, Recipe, marked
from modeling.rows.errors import first_line
from training.audit.rows import CorpusAudit, apply_policy, audit_corpus, audit_folds
from training.data.balance import labels_to_oversample
from training.data.corpus import Corpus, load_corpus
from training.data.encoding import encode
from training.data.reading import SPLITS
from training.data.splits import draw_folds, stratified, without_splits
from training.recipe import RecipeError

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class CheckedCorpus:
    """A corpus with its splits.

    Attributes:
        corpus: the splits.
        audit: copies across splits, label noise, labels without rows.
        fold: int [N] of each row, where every split has all N rows.
    """

    corpus: Corpus
    audit: CorpusAudit
    fold: np.ndarray | None


@dataclass(frozen=True)
class EncodedCorpus(CheckedCorpus):
    """The same with the embeddings of its texts.

    Attributes:
        embeddings: float32 [N, E] of all splits, one after the other.
        encoder_version: what identifies the encoder's weights.
    """

    embeddings: np.ndarray
    encoder_version: str


class Corpora:
    """Corpora as read, and the last one with its splits and embeddings; the runs of a command share them."""

    def __init__(self) -> None:
        self._rows: dict[tuple[Any, ...], Corpus] = {}
        self._checked: tuple[tuple[Any, ...], CheckedCorpus] | None = None
        self._encoded: tuple[tuple[Any, ...], EncodedCorpus] | None = None

    def rows(self, recipe: Recipe) -> Corpus:
        """The corpus as read, before rows are split again or copies dropped.

        Raises:
            CorpusError: bad data.
        """
        settings = {name: getattr(recipe, name) for name in marked("decides_rows")}
        key = tuple(map(str, settings.values()))
        if key not in self._rows:
            self._rows[key] = load_corpus(**settings)
        return self._rows[key]

    def checked(self, recipe: Recipe) -> CheckedCorpus:
        """The corpus with its splits and audit, before its texts are encoded, which may take long.

        Raises:
            CorpusError: bad data.
            BalanceError: a label that cannot be oversampled.
            LeakError: train has a copy of an evaluation row, and the policy is ``fail``.
        """
        corpus = self.rows(recipe)
        drawn = (recipe.split, recipe.split_seed, recipe.folds) if recipe.split in ("stratified", CROSS_FIT) else ()
        key = (id(corpus), *drawn, recipe.audit_policy)
        if self._checked is None or self._checked[0] != key:
            self._checked = self._encoded = None  # two at once could fill the memory
            self._checked = (key, _check_corpus(corpus, recipe))
        checked = self._checked[1]
        labels_to_oversample(
            checked.corpus["train"].labels, checked.corpus.labels, recipe.balance, recipe.balance_labels
        )
        return checked

    def encoded(self, recipe: Recipe) -> EncodedCorpus:
        """The checked corpus with its embeddings.

        Raises:
            RecipeError: the encoder cannot be loaded. See also :meth:`checked`.
        """
        checked = self.checked(recipe)
        key = (id(checked), recipe.encoder)
        if self._encoded is None or self._encoded[0] != key:
            self._encoded = None
            encoder = _load_encoder(recipe)
            vectors = encode(checked.corpus.texts, encoder, cache_folder() / "embeddings")
            found = EncodedCorpus(checked.corpus, checked.audit, checked.fold, vectors, encoder.version)
            self._encoded = (key, found)
        return self._encoded[1]


def encode_share(recipe: Recipe, corpora: Corpora, state: PartialState) -> None:
    """Encode a process's share of the corpus into the cache, while the others encode theirs; nothing if it is alone.

    Raises:
        CorpusError: bad data.
        RecipeError: the encoder cannot be loaded.
    """
    if state.num_processes == 1:
        return
    texts = list(dict.fromkeys(corpora.checked(recipe).corpus.texts))
    with state.main_process_first():  # which says what is wrong with it
        encoder = _load_encoder(recipe)
    encode(share_of(texts, state), encoder, cache_folder() / "embeddings")
    state.wait_for_everyone()


def share_of(texts: list[str], state: PartialState) -> list[str]:
    """A process's share of texts among those of its host: each host has a cache of its own."""
    return texts[state.local_process_index :: int(os.environ.get("LOCAL_WORLD_SIZE", state.num_processes))]


def _load_encoder(recipe: Recipe) -> LoadedEncoder:
    try:
        return load_encoder(recipe.encoder)
    except (OSError, ValueError, SafetensorError) as error:
        raise RecipeError(
            f"encoder: {recipe.encoder!r} cannot be loaded ({first_line(error)}). Remedy: use one of "
            f"{', '.join(ENCODERS)}, or sentence-transformers/<Hub id or folder> of an existing model"
        ) from error


def _check_corpus(corpus: Corpus, recipe: Recipe) -> CheckedCorpus:
    fold = None
    if recipe.split == "stratified":
        corpus = stratified(corpus, recipe.split_seed)
    if recipe.split == CROSS_FIT:
        corpus = without_splits(corpus)
        fold = draw_folds(corpus["train"], recipe.folds, recipe.split_seed)
    corpus.require_splits()
    audit = audit_corpus(corpus) if fold is None else audit_folds(corpus, fold)
    kept = apply_policy(corpus, audit, recipe.audit_policy)
    dropped = len(corpus["train"]) - len(kept["train"])
    before = audit.report["copies"]
    if dropped:
        corpus, audit = kept, audit_corpus(kept)
    policy = {"policy": recipe.audit_policy, "rows_dropped": dropped}
    audit.report["audit_policy"] = {**policy, "copies_before": before} if dropped else policy
    sizes = ", ".join(f"{split} {len(corpus[split]):,}" for split in SPLITS)
    logger.info("corpus %s, %d labels: %s", corpus.name, len(corpus.labels), sizes)
    return CheckedCorpus(corpus, audit, fold)
