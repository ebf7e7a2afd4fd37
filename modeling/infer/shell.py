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
import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from modeling.infer.classifier import EmotionClassifier
from modeling.infer.texts import check_texts


def _read_texts(path: Path) -> list[str]:
    """Texts of a JSONL file (each line a string, or an object with "text"), or the lines of any other file."""
    try:
        content = path.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise ValueError(f"{path} cannot be read ({error.strerror}). Remedy: give --input a file of texts") from None
    except UnicodeDecodeError as error:
        number = error.object[: error.start].count(b"\n") + 1
        raise ValueError(f"{path}, line {number} is not UTF-8. Remedy: save the file as UTF-8") from None
    # Not splitlines: a text may have any line separator except the newline.
    lines = [line.rstrip("\r") for line in content.rstrip("\n").split("\n")] if content else []
    if path.suffix != ".jsonl":
        return lines
    return [_read_row(line, f"{path}, line {number}") for number, line in enumerate(lines, 1) if line.strip()]


def _read_row(line: str, place: str) -> str:
    try:
        row = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise ValueError(
            f'{place} is not JSON ({error}). Remedy: write {{"text": "…"}} or name the file .txt'
        ) from None
    text = row.get("text") if isinstance(row, dict) else row
    if not isinstance(text, str):
        raise ValueError(f'{place} has no text: {line!r:.80}. Remedy: write {{"text": "…"}} or a string')
    return text


def _refuse_unwritable(path: Path) -> None:
    if path.is_dir():
        raise ValueError(f"--output {path} is a folder. Remedy: name a file in it")
    if not path.parent.is_dir() or not os.access(path if path.exists() else path.parent, os.W_OK):
        raise ValueError(
            f"--output {path} cannot be written: it or the folder {path.parent} is missing or not writable. Remedy: "
            "make that folder, or name another file"
        )


def main(argv: Sequence[str] | None = None) -> int:
    """``python infer.py "text" …`` or ``python infer.py --input texts.jsonl --output scores.jsonl``."""
    parser = argparse.ArgumentParser(description="Classify texts by emotion: one JSON line per text.")
    parser.add_argument("texts", nargs="*", help="texts to classify")
    parser.add_argument("--input", type=Path, help='a .jsonl file with "text" on each line, or a text file')
    parser.add_argument("--output", type=Path, help="where to write the JSON lines (default: the screen)")
    parser.add_argument("--model", default=str(Path(__file__).resolve().parent), help="package folder or Hub id")
    parser.add_argument("--threshold", type=float, help="one threshold for all labels; 0 gives every label")
    parser.add_argument("--top_k", type=int, help="at most this many labels per text")
    parser.add_argument("--exclude_unreliable", action="store_true", help="leave out labels with too few test rows")
    parser.add_argument("--device", help="cpu, cuda, cuda:1 …")
    arguments = parser.parse_args(argv)
    try:
        if arguments.output:
            _refuse_unwritable(arguments.output)
        texts = check_texts(arguments.texts + (_read_texts(arguments.input) if arguments.input else []))
        if not texts:
            parser.error("no text given: write texts after the command, or use --input FILE")
        classifier = EmotionClassifier(arguments.model, device=arguments.device)
        results = classifier.predict(texts, arguments.threshold, arguments.exclude_unreliable, arguments.top_k)
    except (OSError, ValueError, TypeError, ImportError) as error:
        sys.stderr.write(f"error: {error}\n")
        return 2
    lines = [
        json.dumps({"text": text, "emotions": emotions}, ensure_ascii=False)
        for text, emotions in zip(texts, results, strict=True)
    ]
    content = "\n".join(lines) + "\n"
    if arguments.output:
        try:
            arguments.output.write_text(content, encoding="utf-8")
            return 0
        except OSError as error:
            sys.stderr.write(
                f"error: {arguments.output} cannot be written ({error.strerror}); printing the results instead\n"
            )
    sys.stdout.write(content)
    return 2 if arguments.output else 0


if __name__ == "__main__":
    raise SystemExit(main())
