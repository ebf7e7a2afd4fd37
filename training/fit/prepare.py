"""What a run learns from: corpus, embeddings, balanced training rows, and the audit of all three."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from tokenizers import Tokenizer

from modeling.backbones import read_backbone_config, read_tokenizer
from modeling.infer import CacheError, Features, cache_folder
from modeling.recipe import CONTAMINATED, Recipe
from modeling.records import Audit
from modeling.rows.errors import first_line
from training.audit.label_order import suspect_labels
from training.audit.rows import audit_corpus, audit_rows
from training.audit.suspects import read_dropped
from training.corpora import Corpora
from training.data.balance import Rows, imbalance, oversample, real_rows, thin_label
from training.data.corpus import Corpus
from training.data.encoding import TokenRows, tokenize_rows
from training.data.reading import SPLITS
from training.data.splits import pooled_r2
from training.recipe import RecipeError
from training.trained import hash_file

logger = logging.getLogger(__name__)

NULL_TESTS = ("noise", "labels")


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
    tokens: dict[str, TokenRows] | None = None
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
        every = self.corpus.texts
        return [every[parent] for parent in self.rows.parents[:, 0]]

    def training_features(self) -> Features:
        """What the model reads of the training rows after balancing; a copy has its parent's words."""
        tokens = None
        if self.tokens is not None:
            every = [self.tokens[split] for split in SPLITS]  # of one array
            starts = np.concatenate([rows.starts for rows in every])
            ends = np.concatenate([rows.ends for rows in every])
            tokens = TokenRows(every[0].ids, starts, ends).take(self.rows.parents[:, 0])
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


def read_words(recipe: Recipe, corpus: Corpus, null_test: str | None = None) -> tuple[Tokenizer, dict[str, TokenRows]]:
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
    rows = tokenize_rows(tokenizer, corpus.texts, config.bos_token_id, cache_folder() / "embeddings")
    ends = np.cumsum([len(corpus[split]) for split in SPLITS]).tolist()
    places = {split: slice(end - len(corpus[split]), end) for split, end in zip(SPLITS, ends, strict=True)}
    if null_test == "noise":  # with the texts' lengths, shuffled: length alone says something about the labels
        generator = np.random.default_rng(recipe.seed)
        shuffled = [generator.permutation((rows.ends - rows.starts)[place]) for place in places.values()]
        ids = generator.integers(config.vocab_size, size=len(rows.ids))
        rows = TokenRows.of_lengths(ids, np.concatenate(shuffled))
    return tokenizer, {split: rows[place] for split, place in places.items()}


def _truncation(tokens: dict[str, TokenRows], window_length: int) -> dict[str, dict[str, int]]:
    """How much of each split exceeds ``window_length`` tokens: cut off in training, read in windows when scored."""
    found = {}
    for split, rows in tokens.items():
        lengths = rows.ends - rows.starts
        beyond = np.maximum(lengths - window_length, 0)
        found[split] = {
            "texts": len(rows),
            "tokens": int(lengths.sum()),
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
