"""The tokenizer of a package: built only from the parts that Mistral-shaped backbones use."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

from modeling.infer.errors import PackageError, as_package_error
from modeling.infer.files import read_json
from modeling.infer.package import PackageSettings

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
