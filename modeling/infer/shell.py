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
import itertools
import json
import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

from modeling.infer.classifier import EmotionClassifier
from modeling.infer.errors import TableError
from modeling.infer.stops import catch_sigterm, describe_stop
from modeling.infer.tables import ROW_SUFFIXES, TEXT_SUFFIX, read_texts
from modeling.infer.texts import check_texts

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
