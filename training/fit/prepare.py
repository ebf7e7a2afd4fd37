"""What a run learns from: corpus, embeddings, balanced training rows, and the audit of all three."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from accelerate import PartialState
from safetensors import SafetensorError
from tokenizers import Tokenizer

from modeling.backbones import read_backbone_config, read_tokenizer
from modeling.infer import ENCODERS, CacheError, Features, LoadedEncoder, cache_folder, load_encoder, tokenize
from modeling.recipe import CONTAMINATED, CROSS_FIT, Recipe, marked
from modeling.records import Audit
from modeling.rows.errors import first_line
from training.audit.label_order import suspect_labels
from training.audit.rows import CorpusAudit, apply_policy, audit_corpus, audit_folds, audit_rows
from training.audit.suspects import read_dropped
from training.data.balance import Rows, imbalance, labels_to_oversample, oversample, real_rows, thin_label
from training.data.corpus import Corpus, load_corpus
from training.data.encoding import encode
from training.data.reading import SPLITS
from training.data.splits import draw_folds, pooled_r2, stratified, without_splits
from training.recipe import RecipeError
from training.trained import hash_file

logger = logging.getLogger(__name__)

NULL_TESTS = ("noise", "labels")


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
    fold: np.ndarray | None = None


@dataclass(frozen=True)
class EncodedCorpus:
    """A corpus with its splits.

    Attributes:
        corpus: the splits.
        embeddings: float32 [N, E] of all splits, one after the other.
        encoder_version: what identifies the encoder's weights.
        audit: copies across splits, label noise, labels without rows.
        fold: int [N] of each row, where every split has all N rows.
    """

    corpus: Corpus
    embeddings: np.ndarray
    encoder_version: str
    audit: CorpusAudit
    fold: np.ndarray | None = None


@dataclass(frozen=True)
class Prepared:
    """The data of a run.

    Attributes:
        corpus: the splits; ``train`` has its rows before balancing.
        embeddings: float32 [N, E] of each split's rows.
        rows: the training rows after balancing.
        audit: the content of ``audit.json``.
        copies: bool [N] for each evaluation split: is the row's text also in train?
        encoder_version: what identifies the encoder's weights.
        tokenizer: the tokenizer, if the backbone reads words.
        tokens: token ids of each split's texts, if the backbone reads words.
        reads_embedding: does the backbone read the embeddings? If not, only the audit uses them.
        targets: float [N, L], the targets of the training rows, if not their labels.
        fold: int [N], the fold of each row, if every split has all N rows.
        left_out: bool [N], training rows that are not trained on.
    """

    corpus: Corpus
    embeddings: dict[str, np.ndarray]
    rows: Rows
    audit: Audit
    copies: dict[str, np.ndarray]
    encoder_version: str
    tokenizer: Tokenizer | None = None
    tokens: dict[str, list[np.ndarray]] | None = None
    reads_embedding: bool = True
    targets: np.ndarray | None = None
    fold: np.ndarray | None = None
    left_out: np.ndarray | None = None

    def features(self, split: str) -> Features:
        """What the model reads of a split's rows."""
        return Features(
            self.embeddings[split] if self.reads_embedding else None,
            None if self.tokens is None else self.tokens[split],
        )

    def training_texts(self) -> list[str]:
        """Texts of the training rows after balancing; a copy has its parent's text."""
        every = [text for split in SPLITS for text in self.corpus[split].texts]
        return [every[parent] for parent in self.rows.parents[:, 0]]

    def training_features(self) -> Features:
        """What the model reads of the training rows after balancing; a copy has its parent's words."""
        tokens = None
        if self.tokens is not None:
            every = [row for split in SPLITS for row in self.tokens[split]]
            tokens = [every[parent] for parent in self.rows.parents[:, 0]]
        return Features(self.rows.embeddings if self.reads_embedding else None, tokens)


def prepare(recipe: Recipe, corpora: Corpora, null_test: str | None = None) -> Prepared:
    """Load, encode, audit and balance.

    Args:
        recipe: the recipe.
        corpora: what was read already.
        null_test: ``noise`` puts noise in place of the embeddings, ``labels`` shuffles the training labels; either way
            train says nothing about any other row.

    Raises:
        CorpusError: bad data.
        RecipeError: the encoder cannot be loaded.
        BalanceError: a label that cannot be oversampled.
        LeakError: train has an evaluation row, or a copy or child of one, that the recipe does not accept.
    """
    encoded = corpora.encoded(recipe)
    corpus, vectors, audit = encoded.corpus, encoded.embeddings, encoded.audit
    contaminated = recipe.split == CONTAMINATED
    left_out = read_dropped(Path(recipe.leave_out), corpus) if recipe.leave_out else None
    if null_test == "noise":
        vectors = np.random.default_rng(recipe.seed).standard_normal(vectors.shape, dtype=np.float32) * vectors.std()
    if null_test == "labels":  # before a pooled split every row is a training row
        corpus = _shuffle_labels(corpus, SPLITS if contaminated else ("train",), recipe.seed)
    if contaminated:
        corpus, vectors, rows = pooled_r2(
            corpus,
            vectors,
            lambda embeddings, labels: balance(embeddings, labels, corpus.labels, recipe),
            recipe.split_seed,
        )
        audit = audit_corpus(corpus)
    else:
        rows = balance(vectors[: len(corpus["train"])], corpus["train"].labels, corpus.labels, recipe, left_out)
    ends = np.cumsum([len(corpus[split]) for split in SPLITS])[:-1]
    embeddings = dict(zip(SPLITS, np.split(vectors, ends), strict=True))
    mlsmote_labels = recipe.mlsmote_labels if recipe.balance == "mlsmote" else None
    report: Audit = {
        **audit.report,
        **audit_rows(corpus, vectors, rows, audit.report, mlsmote_labels, contaminated),
        "corpus_sha256": corpora.rows(recipe).fingerprints(),
        "protocol": recipe.split,
        "imbalance": {"before": imbalance(corpus["train"].labels), "after": imbalance(rows.labels)},
        "suspected_label_permutations": {s: _suspects(embeddings, corpus, s) for s in ("validation", "test")},
    }
    if recipe.leave_out and left_out is not None:
        report["left_out"] = {"rows": int(left_out.sum()), "sha256": hash_file(Path(recipe.leave_out))}
    tokenizer, tokens = None, None
    if recipe.input != "embedding":
        tokenizer, tokens = read_words(recipe, corpus, null_test)
        report["truncation"] = _truncation(tokens, recipe.window_length)
    return Prepared(
        corpus,
        embeddings,
        rows,
        report,
        audit.copies,
        encoded.encoder_version,
        tokenizer,
        tokens,
        recipe.input != "tokens",
        fold=encoded.fold,
        left_out=left_out,
    )


def read_words(
    recipe: Recipe, corpus: Corpus, null_test: str | None = None
) -> tuple[Tokenizer, dict[str, list[np.ndarray]]]:
    """The backbone's tokenizer, and the token ids of each split's texts.

    Raises:
        RecipeError: the tokenizer cannot be read.
    """
    try:
        tokenizer = read_tokenizer(recipe.model_name, recipe.model_revision)
        config = read_backbone_config(recipe.model_name, recipe.model_revision)
    except CacheError:
        raise
    except (OSError, ValueError, AttributeError) as error:
        raise RecipeError(
            f"model_name: the tokenizer of {recipe.model_name!r} cannot be read ({first_line(error)}). Remedy: use a "
            "backbone with a tokenizer.json, or input embedding"
        ) from error
    tokens = {split: tokenize(tokenizer, corpus[split].texts, config.bos_token_id) for split in SPLITS}
    if null_test == "noise":  # with the texts' lengths, shuffled: length alone says something about the labels
        generator = np.random.default_rng(recipe.seed)
        tokens = {
            split: [
                generator.integers(config.vocab_size, size=size) for size in generator.permutation([*map(len, rows)])
            ]
            for split, rows in tokens.items()
        }
    return tokenizer, tokens


def _truncation(tokens: dict[str, list[np.ndarray]], window_length: int) -> dict[str, dict[str, int]]:
    """How much of each split exceeds ``window_length`` tokens: cut off in training, read in windows when scored."""
    found = {}
    for split, rows in tokens.items():
        beyond = np.maximum(np.array([len(row) for row in rows]) - window_length, 0)
        found[split] = {
            "texts": len(rows),
            "tokens": int(sum(map(len, rows))),
            "texts_longer": int((beyond > 0).sum()),
            "tokens_beyond": int(beyond.sum()),
        }
        logger.info(
            "%s: %s tokens in %s texts; %s of them have more than %d tokens, %s tokens beyond that",
            split,
            *(f"{found[split][name]:,}" for name in ("tokens", "texts", "texts_longer")),
            window_length,
            f"{found[split]['tokens_beyond']:,}",
        )
    return found


def balance(
    embeddings: np.ndarray,
    labels: np.ndarray,
    names: tuple[str, ...],
    recipe: Recipe,
    left_out: np.ndarray | None = None,
) -> Rows:
    """Thin neutral and oversample rare labels, as the recipe says, among the rows that are not left out."""
    rows = real_rows(embeddings, labels)
    if left_out is not None:
        rows = rows.take(np.flatnonzero(~left_out))
    if recipe.neutral_keep != 1 and "neutral" in names:
        alone = recipe.split != CONTAMINATED
        rows = thin_label(rows, names.index("neutral"), recipe.neutral_keep, recipe.seed, alone)
    rows = oversample(
        rows,
        names,
        recipe.balance,
        recipe.seed,
        recipe.balance_target,
        recipe.balance_ratio,
        recipe.balance_neighbours,
        recipe.balance_labels,
        recipe.mlsmote_labels,
    )
    logger.info("training rows: %d real, %d synthetic", (~rows.synthetic).sum(), rows.synthetic.sum())
    return rows


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
            texts = [text for split in SPLITS for text in checked.corpus[split].texts]
            vectors = encode(texts, encoder, cache_folder() / "embeddings")
            found = EncodedCorpus(checked.corpus, vectors, encoder.version, checked.audit, checked.fold)
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
    texts = sorted({text for split in corpora.checked(recipe).corpus.splits.values() for text in split.texts})
    with state.main_process_first():  # which says what is wrong with it
        encoder = _load_encoder(recipe)
    encode(texts[state.process_index :: state.num_processes], encoder, cache_folder() / "embeddings")
    state.wait_for_everyone()


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


def _shuffle_labels(corpus: Corpus, splits: Iterable[str], seed: int) -> Corpus:
    generator = np.random.default_rng(seed)
    shuffled = {
        name: dataclasses.replace(split, labels=generator.permutation(split.labels)) if name in splits else split
        for name, split in corpus.splits.items()
    }
    return dataclasses.replace(corpus, splits=shuffled)


def _suspects(embeddings: dict[str, np.ndarray], corpus: Corpus, split: str) -> list[dict[str, Any]]:
    found = suspect_labels(
        embeddings["train"], corpus["train"].labels, embeddings[split], corpus[split].labels, corpus.labels
    )
    for suspect in found:
        logger.warning("%s: labels that look swapped compared with train: %s", split, suspect)
    return [dataclasses.asdict(suspect) for suspect in found]
